/* A trained model and a recording in, predictions out: what `engine predict RUN --data FILE --windows`
 * prints, as lines of start (s) and numbers. */
#include "check.h"

static void say(int32_t level, const char *message, void *user) {
    (void)user;
    fprintf(stderr, "%s%s\n", level == ENGINE_LOG_WARNING ? "warning: " : "", message);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: predict RUN RECORDING\n");
        return 2;
    }
    engine_options options = ENGINE_OPTIONS_INIT;
    options.log = say;
    engine_context *context;
    engine_model *model;
    engine_predictions *predictions;
    CHECK(engine_context_new(&options, &context));
    CHECK(engine_model_load(context, argv[1], 0, &model));
    CHECK(engine_model_predict_file(model, argv[2], &predictions));

    size_t windows, width;
    CHECK(engine_predictions_extents(predictions, &windows, &width));
    double *values = malloc(windows * width * sizeof *values);
    double *starts = malloc(windows * sizeof *starts);
    engine_array to_values = {values, {windows, width}, 2, ENGINE_F64, ENGINE_HOST};
    engine_array to_starts = {starts, {windows}, 1, ENGINE_F64, ENGINE_HOST};
    CHECK(engine_predictions_read(predictions, &to_values, &to_starts, NULL));
    for (size_t i = 0; i < windows; i++) {
        printf("%.17g", starts[i]);
        for (size_t j = 0; j < width; j++) {
            printf(" %.17g", values[i * width + j]);
        }
        printf("\n");
    }
    free(values);
    free(starts);
    CHECK(engine_predictions_free(predictions));
    CHECK(engine_model_free(model));
    CHECK(engine_context_free(context));
    return 0;
}
