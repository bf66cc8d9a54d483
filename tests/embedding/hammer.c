/* Many threads, each with its own handles, make random calls with random arguments, good and bad: null,
 * wrong sizes, freed handles, handles of another kind, NaN. Nothing may crash or leak, and every error
 * must have a message. Arguments: seconds, threads, seed, a folder, a checkpoint. */
#include <engine.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FLOATS = 4096, STATUSES = 10 };

typedef struct {
    unsigned long long state;
    int number;
    float *numbers[4];
    engine_context *context;
    engine_context *freed;
    engine_model *model;
    engine_trainer *trainer;
    long calls;
    long statuses[STATUSES];
    int cancel;
} hand;

static double end_time;
static const char *folder, *checkpoint;
static atomic_int failed;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static unsigned below(hand *h, unsigned n) {
    h->state = h->state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(h->state >> 33) % n;
}

/* True once in n. */
static int once_in(hand *h, unsigned n) { return below(h, n) == 0; }

/* Counts a status; an error without a message, or an unknown status, fails the test. */
static void tell(hand *h, engine_status status) {
    h->calls++;
    if ((int)status < 0 || (int)status >= STATUSES) {
        fprintf(stderr, "status %d is unknown\n", (int)status);
        failed = 1;
        return;
    }
    h->statuses[status]++;
    if (status == ENGINE_STATUS_OK) {
        return;
    }
    const char *message = engine_last_error();
    if (strlen(message) < 10 || strstr(message, "remedy: ") == NULL) {
        fprintf(stderr, "status %s has the message '%s'\n", engine_status_name(status), message);
        failed = 1;
    }
    if (status == ENGINE_STATUS_INTERNAL) {
        fprintf(stderr, "%s\n", message);
        failed = 1;
    }
}

/* An array of these extents, now and then a wrong one. Its memory always suffices for what it says. */
static const engine_array *array(hand *h, engine_array *to, int which, size_t a, size_t b,
                                 size_t c) {
    engine_array made = {h->numbers[which], {a, b, c}, 1u + (b > 0) + (c > 0), ENGINE_F32, ENGINE_HOST};
    if (once_in(h, 12)) {
        switch (below(h, 9)) {
        case 0: return NULL;
        case 1: made.data = NULL; break;
        case 2: made.rank = below(h, 9); break;
        case 3: made.shape[below(h, 2)] = below(h, 6); break;
        case 4: made.shape[0] = SIZE_MAX - below(h, 3); break;
        case 5: made.dtype = (int)below(h, 9) - 2; break;
        case 6: made.memory = (int)below(h, 4) - 1; break;
        case 7: made.data = (char *)made.data + 1; break;
        default: made.data = h->numbers[below(h, 4)]; break;
        }
    }
    /* The memory behind it is FLOATS floats: what claims more, and could be, would not be the engine's
     * mistake. Extents near SIZE_MAX cannot be. */
    size_t n = made.dtype == ENGINE_F64 ? 2 : 1;
    for (unsigned i = 0; i < made.rank && i < 5; i++) {
        n *= made.shape[i] <= FLOATS ? made.shape[i] : 1;
    }
    if (n > FLOATS) made.shape[0] = 0;
    if (once_in(h, 40)) h->numbers[which][below(h, FLOATS)] = NAN;
    *to = made;
    return to;
}

static engine_context *context(hand *h) {
    switch (below(h, 30)) {
    case 0: return NULL;
    case 1: return h->freed;
    case 2: return (engine_context *)h->model;
    case 3: return (engine_context *)(size_t)(16 * below(h, 100000));
    default: return h->context;
    }
}

static void kernel(hand *h) {
    engine_array v[8];
    engine_context *on = context(h);
    unsigned a = 1 + below(h, 6), b = 1 + below(h, 6), c = 1 + below(h, 6), heads = 1 + below(h, 3);
    switch (below(h, 6)) {
    case 0:
        tell(h, engine_gemm(on, array(h, v, 0, a, b, 0), array(h, v + 1, 1, b, c, 0),
                            once_in(h, 2) ? array(h, v + 2, 2, c, 0, 0) : NULL,
                            array(h, v + 3, 3, a, c, 0), below(h, 10) ? 0 : below(h, 16)));
        break;
    case 1:
        tell(h, engine_attention(on, array(h, v, 0, a, b, 3 * heads * c), once_in(h, 9) ? a : heads,
                                 array(h, v + 1, 1, a, b, heads * c),
                                 once_in(h, 2) ? array(h, v + 2, 2, a, b, heads) : NULL));
        break;
    case 2:
        tell(h, engine_attention_backward(
                    on, array(h, v, 1, a, b, heads * c), array(h, v + 1, 0, a, b, 3 * heads * c),
                    array(h, v + 2, 1, a, b, heads * c), array(h, v + 3, 2, a, b, heads), heads,
                    array(h, v + 4, 3, a, b, 3 * heads * c)));
        break;
    case 3:
        tell(h, engine_layernorm(on, array(h, v, 0, a, b, 0), array(h, v + 1, 1, b, 0, 0),
                                 array(h, v + 2, 1, b, 0, 0), once_in(h, 9) ? NAN : 1e-5f,
                                 array(h, v + 3, 3, a, b, 0), NULL,
                                 once_in(h, 2) ? array(h, v + 4, 2, a, 0, 0) : NULL));
        break;
    case 4:
        tell(h, engine_spectral(on, array(h, v, 0, a, b, c), array(h, v + 1, 1, b / 2 + 1, c, 2),
                                array(h, v + 2, 2, a, b, c)));
        break;
    default:
        tell(h, engine_spectral_backward(
                    on, array(h, v, 0, a, b, c), array(h, v + 1, 0, a, b, c),
                    array(h, v + 2, 1, b / 2 + 1, c, 2), array(h, v + 3, 2, a, b, c),
                    array(h, v + 4, 3, b / 2 + 1, c, 2)));
    }
}

static int32_t loss(const float *outputs, size_t batch, size_t n_outputs, size_t pass, float *gradient,
                    double *value, void *user) {
    hand *h = user;
    (void)pass;
    *value = 0;
    for (size_t i = 0; i < batch * n_outputs; i++) {
        gradient[i] = once_in(h, 50) ? NAN : outputs[i];
        *value += outputs[i] * outputs[i] / 2;
    }
    return once_in(h, 10);
}

static int32_t cancel(void *user) { return once_in(user, 20); }

static void log_message(int32_t level, const char *message, void *user) {
    (void)user;
    if (level < 0 || message == NULL) failed = 1;
}

static void open_context(hand *h) {
    const char *devices[] = {NULL, "cpu", "cpu", "cpu", "tpu", "\xff"};
    engine_options options = ENGINE_OPTIONS_INIT;
    options.threads = 1 + below(h, 2);
    options.memory = once_in(h, 10) ? 1000 : 64 << 20;
    options.device = devices[below(h, 6)];
    options.cache_dir = folder;
    options.log = log_message;
    options.cancel = h->cancel ? cancel : NULL;
    options.cancel_user = h;
    if (once_in(h, 10)) options.size = below(h, 300) & ~7u;
    /* A larger size than there is would not be the engine's mistake. */
    if (options.size > sizeof options) options.size = sizeof options;
    engine_context *made = NULL;
    tell(h, engine_context_new(once_in(h, 20) ? NULL : &options, once_in(h, 20) ? NULL : &made));
    if (made != NULL) {
        tell(h, engine_context_free(h->context));
        h->freed = h->context;
        h->context = made;
    }
}

static void open_trainer(hand *h) {
    const char *definitions[] = {
        "{\"model\": {\"name\": \"eegformer\", \"n_channels\": 2, \"window\": 8, \"d_model\": 4, "
        "\"n_heads\": 2, \"n_layers\": 1, \"patch\": 2}}",
        "{\"model\": {\"name\": \"shallow\", \"n_channels\": 2, \"window\": 24, \"filters\": 3, "
        "\"kernel\": 5, \"pool\": 6, \"pool_stride\": 3}}",
        "{\"model\": {\"name\": \"eegformer\", \"n_channels\": 16384, \"d_model\": 16384}}",
        "{\"model\": {\"name\": \"eegformer\", \"n_heads\": 0}}",
        "{\"model\": {\"name\": \"shallow\", \"window\": 3}}",
        "{\"model\": 3}",
        "nonsense",
        NULL,
    };
    engine_training training = ENGINE_TRAINING_INIT;
    training.batch = 1 + below(h, 4);
    training.accumulation = below(h, 3);
    training.loss = (int)below(h, 6);
    training.optimizer = (int)below(h, 3) % 3;
    training.beta1 = once_in(h, 9) ? 1.5 : 0;
    training.clip = once_in(h, 9) ? NAN : 1;
    unsigned which = once_in(h, 3) ? below(h, 8) : below(h, 2);
    engine_trainer *made = NULL;
    if (once_in(h, 4)) {
        char path[512];
        snprintf(path, sizeof path, "%s/%d.safetensors", folder, h->number);
        tell(h, engine_trainer_load(context(h), once_in(h, 2) ? path : checkpoint, &training, &made));
    } else {
        tell(h, engine_trainer_new(context(h), definitions[which], once_in(h, 20) ? NULL : &training,
                                   once_in(h, 20) ? NULL : &made));
    }
    if (made != NULL) {
        tell(h, engine_trainer_free(h->trainer));
        if (once_in(h, 2)) tell(h, engine_trainer_free(h->trainer)); /* once more: refused */
        h->trainer = made;
    }
}

static void train(hand *h) {
    engine_array v[2];
    engine_model_info info = ENGINE_MODEL_INFO_INIT;
    engine_step step = ENGINE_STEP_INIT;
    tell(h, engine_trainer_get_info(h->trainer, &info));
    size_t rows = 1 + below(h, 6), channels = info.n_channels, window = info.window;
    if (once_in(h, 9)) step.size = below(h, (unsigned)sizeof step + 1);
    for (int i = 0; i < FLOATS; i++) h->numbers[0][i] = (float)below(h, 2001) / 1000 - 1;
    double lr = once_in(h, 20) ? NAN : 1e-3;
    const engine_array *windows = array(h, v, 0, rows, channels, window);
    switch (below(h, 4)) {
    case 0:
        tell(h, engine_trainer_step(h->trainer, windows, array(h, v + 1, 1, rows, 1, 0), lr, &step));
        break;
    case 1:
        tell(h, engine_trainer_step_with(h->trainer, windows, once_in(h, 20) ? NULL : loss, h, lr,
                                         once_in(h, 2) ? NULL : &step));
        break;
    case 2:
        tell(h, engine_trainer_forward(h->trainer, windows, array(h, v + 1, 1, rows, 1, 0)));
        break;
    default: {
        char path[512];
        snprintf(path, sizeof path, "%s/%d.safetensors", once_in(h, 5) ? "/nowhere" : folder, h->number);
        tell(h, engine_trainer_save(h->trainer, path));
    }
    }
}

static void predict(hand *h) {
    engine_array v[2];
    engine_model *on = once_in(h, 20) ? (engine_model *)h->context : h->model;
    if (once_in(h, 8)) {
        engine_model *made = NULL;
        tell(h, engine_model_load(context(h), once_in(h, 3) ? folder : checkpoint, below(h, 3), &made));
        if (made != NULL) {
            tell(h, engine_model_free(h->model));
            h->model = made;
        }
    }
    engine_model_info info = ENGINE_MODEL_INFO_INIT;
    char *text = NULL;
    tell(h, engine_model_get_info(on, &info));
    tell(h, engine_model_describe(on, &text));
    engine_string_free(text);
    engine_predictions *made = NULL;
    tell(h, engine_model_predict_file(on, once_in(h, 2) ? checkpoint : "/nowhere.edf", &made));
    tell(h, engine_predictions_free(made));
    size_t rows = 1 + below(h, 2);
    if (rows * info.n_channels * info.window > FLOATS) return;
    const engine_array *windows = array(h, v, 0, rows, info.n_channels, info.window);
    tell(h, engine_model_forward(on, windows, array(h, v + 1, 1, rows, info.n_outputs, 0)));
    tell(h, engine_model_predict(on, windows, array(h, v + 1, 2, rows, info.n_predictions, 0)));
}

static void memory(hand *h) {
    engine_array v[2];
    engine_buffer *buffer = NULL;
    void *data = NULL;
    tell(h, engine_buffer_new(context(h), below(h, 10) ? 16384 : (size_t)below(h, 3) << 45, &buffer));
    tell(h, engine_buffer_data(buffer, once_in(h, 9) ? NULL : &data));
    if (data != NULL) memset(data, 0, 16384);
    tell(h, engine_copy(context(h), array(h, v, 0, 7, 3, 0), array(h, v + 1, 1, 7, 3, 0)));
    tell(h, engine_buffer_free(buffer));
    engine_device_info info = ENGINE_DEVICE_INFO_INIT;
    tell(h, engine_context_get_info(context(h), once_in(h, 9) ? NULL : &info));
    tell(h, engine_context_sync(context(h)));
}

static void *work(void *given) {
    hand *h = given;
    for (int i = 0; i < 4; i++) {
        h->numbers[i] = calloc(FLOATS, sizeof(float));
    }
    while (h->context == NULL) open_context(h);
    while (now() < end_time && !failed) {
        switch (below(h, 24)) {
        case 0: open_context(h); break;
        case 1: open_trainer(h); break;
        case 2: predict(h); break;
        case 3: memory(h); break;
        case 4: case 5: case 6: train(h); break;
        default: kernel(h);
        }
    }
    tell(h, engine_trainer_free(h->trainer));
    tell(h, engine_model_free(h->model));
    tell(h, engine_context_free(h->context));
    for (int i = 0; i < 4; i++) free(h->numbers[i]);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    int threads = atoi(argv[2]);
    folder = argv[4];
    checkpoint = argv[5];
    end_time = now() + atof(argv[1]);
    hand *hands = calloc((size_t)threads, sizeof *hands);
    pthread_t *running = calloc((size_t)threads, sizeof *running);
    for (int i = 0; i < threads; i++) {
        hands[i].state = strtoull(argv[3], NULL, 10) * 1000003u + (unsigned)i;
        hands[i].number = i;
        hands[i].cancel = i % 3 == 0;
        pthread_create(&running[i], NULL, work, &hands[i]);
    }
    long calls = 0, statuses[STATUSES] = {0};
    for (int i = 0; i < threads; i++) {
        pthread_join(running[i], NULL);
        calls += hands[i].calls;
        for (int s = 0; s < STATUSES; s++) statuses[s] += hands[i].statuses[s];
    }
    printf("%ld calls by %d threads:", calls, threads);
    for (int s = 0; s < STATUSES; s++) {
        if (statuses[s] > 0) printf(" %ld %s", statuses[s], engine_status_name(s));
    }
    printf("\n%zu handles left\n", engine_live_handles());
    free(hands);
    free(running);
    return failed || engine_live_handles() != 0;
}
