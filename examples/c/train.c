/* Training step by step: a model is defined, trained with the engine's loss and then with one of the
 * host's own, saved, and loaded again. */
#include <math.h>
#include <string.h>

#include "check.h"

enum { BATCH = 8, CHANNELS = 4, WINDOW = 32 };

/* Windows whose label is the strength of a sine in the first channel. */
static void make(float *windows, float *targets, unsigned *state) {
    for (int i = 0; i < BATCH; i++) {
        targets[i] = draw(state);
        for (int c = 0; c < CHANNELS; c++) {
            for (int t = 0; t < WINDOW; t++) {
                float wave = c == 0 ? targets[i] * sinf(0.6f * (float)t) : 0;
                windows[(i * CHANNELS + c) * WINDOW + t] = wave + 0.1f * draw(state);
            }
        }
    }
}

/* The mean of log cosh of the error: a loss that the engine does not have. `user` is the targets. */
static int32_t log_cosh(const float *outputs, size_t batch, size_t n_outputs, size_t pass,
                        float *gradient, double *loss, void *user) {
    const float *targets = (const float *)user + pass * batch * n_outputs;
    *loss = 0;
    for (size_t i = 0; i < batch * n_outputs; i++) {
        double error = outputs[i] - targets[i], n = (double)(batch * n_outputs);
        *loss += log(cosh(error)) / n;
        gradient[i] = (float)(tanh(error) / n);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: train CHECKPOINT\n");
        return 2;
    }
    engine_context *context;
    CHECK(engine_context_new(NULL, &context));
    engine_training training = ENGINE_TRAINING_INIT;
    training.batch = BATCH;
    training.clip = 1.0;
    training.seed = 7;
    const char *definition = "{\"model\": {\"name\": \"eegformer\", \"n_channels\": 4, "
                             "\"window\": 32, \"d_model\": 16, \"n_heads\": 2, \"n_layers\": 1, "
                             "\"patch\": 4}}";
    engine_trainer *trainer;
    CHECK(engine_trainer_new(context, definition, &training, &trainer));

    static float windows[BATCH * CHANNELS * WINDOW], targets[BATCH];
    engine_array to_windows = floats(windows, BATCH, CHANNELS, WINDOW);
    engine_array to_targets = floats(targets, BATCH, 1, 0);
    engine_step step = ENGINE_STEP_INIT;
    unsigned state = 5;
    double first = 0;
    for (int i = 0; i < 60; i++) {
        make(windows, targets, &state);
        if (i < 40) {
            CHECK(engine_trainer_step(trainer, &to_windows, &to_targets, 3e-3, &step));
        } else {
            CHECK(engine_trainer_step_with(trainer, &to_windows, log_cosh, targets, 3e-3, &step));
        }
        if (i == 0) first = step.loss;
        if (i % 10 == 9) printf("step %d loss %.9g\n", (int)step.step, step.loss);
    }
    if (!(step.loss < first / 4)) {
        fprintf(stderr, "it did not learn: %g, then %g\n", first, step.loss);
        return 1;
    }

    /* The saved model gives what the trained one gives. */
    static float outputs[BATCH], again[BATCH];
    engine_array to_outputs = floats(outputs, BATCH, 1, 0), to_again = floats(again, BATCH, 1, 0);
    CHECK(engine_trainer_forward(trainer, &to_windows, &to_outputs));
    CHECK(engine_trainer_save(trainer, argv[1]));
    engine_model *model;
    CHECK(engine_model_load(context, argv[1], 0, &model));
    CHECK(engine_model_forward(model, &to_windows, &to_again));
    if (memcmp(outputs, again, sizeof outputs) != 0) {
        fprintf(stderr, "the saved model differs\n");
        return 1;
    }
    CHECK(engine_model_free(model));
    CHECK(engine_trainer_free(trainer));
    CHECK(engine_context_free(context));
    return 0;
}
