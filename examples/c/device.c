/* Kernels, a model and training on arrays in a card's memory that the caller allocated, on a stream of the
 * caller's: the results of the CPU's arrays. The maker's runtime is opened when the program runs, so that
 * it builds without a toolkit; a program that has one calls cudaMalloc or hipMalloc as ever.
 *
 *     device cuda libcudart.so       device hip libamdhip64.so */
#include <dlfcn.h>
#include <math.h>
#include <string.h>

#include "check.h"

/* The five functions of CUDA's and HIP's runtimes that are needed here; they differ in name alone. */
typedef struct {
    int (*malloc)(void **, size_t);
    int (*free)(void *);
    int (*stream_create)(void **, unsigned);
    int (*stream_synchronize)(void *);
    int (*memcpy_async)(void *, const void *, size_t, int, void *);
    void *stream;
    void *taken[64];
    size_t n_taken;
} runtime;

enum { TO_CARD = 1, TO_HOST = 2 };

static void *find(void *library, const char *maker, const char *function) {
    char name[64];
    snprintf(name, sizeof name, "%s%s", maker, function);
    void *found = dlsym(library, name);
    if (found == NULL) {
        fprintf(stderr, "%s is not there\n", name);
        exit(1);
    }
    return found;
}

static void need(int code, const char *what) {
    if (code != 0) {
        fprintf(stderr, "%s: error %d\n", what, code);
        exit(1);
    }
}

static runtime open_runtime(const char *maker, const char *file) {
    void *library = dlopen(file, RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    runtime r = {0};
    *(void **)&r.malloc = find(library, maker, "Malloc");
    *(void **)&r.free = find(library, maker, "Free");
    *(void **)&r.stream_create = find(library, maker, "StreamCreateWithFlags");
    *(void **)&r.stream_synchronize = find(library, maker, "StreamSynchronize");
    *(void **)&r.memcpy_async = find(library, maker, "MemcpyAsync");
    need(r.stream_create(&r.stream, 1), "a stream");
    return r;
}

/* The array's copy in the card's memory. */
static engine_array on_card(runtime *r, engine_array host) {
    size_t bytes = sizeof(float);
    for (unsigned i = 0; i < host.rank; i++) bytes *= host.shape[i];
    engine_array card = host;
    card.memory = ENGINE_DEVICE;
    if (r->n_taken == sizeof r->taken / sizeof *r->taken) exit(1);
    need(r->malloc(&card.data, bytes), "memory");
    r->taken[r->n_taken++] = card.data;
    need(r->memcpy_async(card.data, host.data, bytes, TO_CARD, r->stream), "a copy");
    return card;
}

/* The largest difference between a card's array and the host's. */
static double differs(runtime *r, engine_array card, engine_array host) {
    size_t n = 1;
    for (unsigned i = 0; i < host.rank; i++) n *= host.shape[i];
    float *found = malloc(n * sizeof *found);
    need(r->memcpy_async(found, card.data, n * sizeof *found, TO_HOST, r->stream), "a copy");
    need(r->stream_synchronize(r->stream), "the stream");
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double expected = ((float *)host.data)[i];
        most = fmax(most, fabs(found[i] - expected) / (1 + fabs(expected)));
        if (found[i] != found[i]) most = INFINITY;
    }
    free(found);
    return most;
}

static void report(const char *name, double error) {
    printf("%-18s differs by %.1e\n", name, error);
    if (!(error < 1e-4)) exit(1);
}

enum { BATCH = 2, TIME = 20, HEADS = 2, WIDTH = 16, BINS = TIME / 2 + 1 };

static float numbers[12][BATCH * TIME * 3 * WIDTH];

static engine_array drawn(int which, size_t a, size_t b, size_t c) {
    unsigned state = 17u + (unsigned)which;
    for (size_t i = 0; i < sizeof numbers[0] / sizeof(float); i++) numbers[which][i] = draw(&state);
    return floats(numbers[which], a, b, c);
}

/* Each kernel on the CPU's arrays and on the card's. */
static void kernels(runtime *r, engine_context *cpu, engine_context *card) {
    engine_array x = drawn(0, BATCH, TIME, 3 * WIDTH), w = drawn(1, 3 * WIDTH, 8, 0);
    engine_array flat = floats(x.data, BATCH * TIME, 3 * WIDTH, 0);
    engine_array y = floats(numbers[2], BATCH * TIME, 8, 0), bias = drawn(3, 8, 0, 0);
    engine_array d_flat = on_card(r, flat), d_w = on_card(r, w), d_y = on_card(r, y);
    engine_array d_bias = on_card(r, bias);
    CHECK(engine_gemm(cpu, &flat, &w, &bias, &y, 0));
    CHECK(engine_gemm(card, &d_flat, &d_w, &d_bias, &d_y, 0));
    report("gemm", differs(r, d_y, y));

    engine_array out = floats(numbers[4], BATCH, TIME, WIDTH), lse = floats(numbers[5], BATCH, TIME, HEADS);
    engine_array grad = floats(numbers[6], BATCH, TIME, 3 * WIDTH);
    engine_array d_x = on_card(r, x), d_out = on_card(r, out), d_lse = on_card(r, lse);
    engine_array d_grad = on_card(r, grad);
    CHECK(engine_attention(cpu, &x, HEADS, &out, &lse));
    CHECK(engine_attention(card, &d_x, HEADS, &d_out, &d_lse));
    report("attention", differs(r, d_out, out));
    CHECK(engine_attention_backward(cpu, &out, &x, &out, &lse, HEADS, &grad));
    CHECK(engine_attention_backward(card, &d_out, &d_x, &d_out, &d_lse, HEADS, &d_grad));
    report("attention backward", differs(r, d_grad, grad));

    engine_array gamma = drawn(7, 3 * WIDTH, 0, 0), beta = drawn(8, 3 * WIDTH, 0, 0);
    engine_array d_gamma = on_card(r, gamma), d_beta = on_card(r, beta);
    CHECK(engine_layernorm(cpu, &x, &gamma, &beta, 1e-5f, &grad, NULL, NULL));
    CHECK(engine_layernorm(card, &d_x, &d_gamma, &d_beta, 1e-5f, &d_grad, NULL, NULL));
    report("layernorm", differs(r, d_grad, grad));

    engine_array gain = drawn(9, BINS, 3 * WIDTH, 2), d_gain = on_card(r, gain);
    CHECK(engine_spectral(cpu, &x, &gain, &grad));
    CHECK(engine_spectral(card, &d_x, &d_gain, &d_grad));
    report("spectral", differs(r, d_grad, grad));

    /* A host's array is refused, not followed. */
    engine_status status = engine_gemm(card, &flat, &d_w, NULL, &d_y, 0);
    if (status != ENGINE_STATUS_ARGUMENT) exit(1);
    printf("refused: %s\n", engine_last_error());
}

/* A model that the CPU trains and saves, on the card's windows; then a step on the card. */
static void model(runtime *r, engine_context *cpu, engine_context *card, const char *path) {
    const char *definition = "{\"model\": {\"name\": \"eegformer\", \"n_channels\": 4, \"window\": 16, "
                             "\"d_model\": 16, \"n_heads\": 2, \"n_layers\": 1, \"patch\": 2}}";
    engine_training training = ENGINE_TRAINING_INIT;
    training.batch = 3;
    engine_trainer *trainer, *second;
    engine_array windows = drawn(0, 3, 4, 16), targets = drawn(1, 3, 1, 0);
    engine_array outputs = floats(numbers[2], 3, 1, 0);
    engine_step here = ENGINE_STEP_INIT, there = ENGINE_STEP_INIT;
    CHECK(engine_trainer_new(cpu, definition, &training, &trainer));
    CHECK(engine_trainer_step(trainer, &windows, &targets, 1e-3, &here));
    CHECK(engine_trainer_save(trainer, path));
    CHECK(engine_trainer_forward(trainer, &windows, &outputs));

    engine_model *loaded;
    engine_array d_windows = on_card(r, windows), d_outputs = on_card(r, outputs);
    CHECK(engine_model_load(card, path, 2, &loaded));
    CHECK(engine_model_forward(loaded, &d_windows, &d_outputs));
    report("forward", differs(r, d_outputs, outputs));

    CHECK(engine_trainer_load(card, path, &training, &second));
    CHECK(engine_trainer_step(trainer, &windows, &targets, 1e-3, &here));
    CHECK(engine_trainer_step(second, &windows, &targets, 1e-3, &there));
    report("training", fabs(here.loss - there.loss) / here.loss);
    CHECK(engine_model_free(loaded));
    CHECK(engine_trainer_free(trainer));
    CHECK(engine_trainer_free(second));
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: device cuda|hip RUNTIME CHECKPOINT\n");
        return 2;
    }
    runtime r = open_runtime(argv[1], argv[2]);
    engine_context *cpu, *card;
    CHECK(engine_context_new(NULL, &cpu));
    void *own = r.stream;
    for (int turn = 0; turn < 2; turn++) {
        /* On the caller's stream, then on the default one. */
        r.stream = turn == 0 ? own : NULL;
        engine_options options = ENGINE_OPTIONS_INIT;
        options.device = argv[1];
        options.use_stream = 1;
        options.stream = r.stream;
        options.memory = 64 << 20;
        CHECK(engine_context_new(&options, &card));
        engine_device_info info = ENGINE_DEVICE_INFO_INIT;
        CHECK(engine_context_get_info(card, &info));
        printf("%s, %s stream\n", info.name, turn == 0 ? "the caller's" : "the default");
        kernels(&r, cpu, card);
        model(&r, cpu, card, argv[3]);
        CHECK(engine_context_free(card));
        while (r.n_taken > 0) need(r.free(r.taken[--r.n_taken]), "freeing memory");
    }
    CHECK(engine_context_free(cpu));
    return 0;
}
