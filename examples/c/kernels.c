/* Kernels on the caller's own arrays: a product, attention, layer normalisation and the spectral block,
 * each compared with plain loops. */
#include <math.h>
#include <string.h>

#include "check.h"

static double worst(const float *found, const double *expected, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        most = fmax(most, fabs(found[i] - expected[i]) / (1 + fabs(expected[i])));
    }
    return most;
}

static void report(const char *name, double error) {
    printf("%-10s differs by %.1e\n", name, error);
    if (!(error < 1e-5)) {
        exit(1);
    }
}

static void product(engine_context *context) {
    enum { M = 5, N = 7, K = 11 };
    float a[M * K], b[N * K], c[M * N];
    double expected[M * N];
    unsigned state = 1;
    for (int i = 0; i < M * K; i++) a[i] = draw(&state);
    for (int i = 0; i < N * K; i++) b[i] = draw(&state);
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += (double)a[i * K + k] * b[j * K + k];
            expected[i * N + j] = sum;
        }
    }
    engine_array va = floats(a, M, K, 0), vb = floats(b, N, K, 0), vc = floats(c, M, N, 0);
    CHECK(engine_gemm(context, &va, &vb, NULL, &vc, ENGINE_TRANSPOSE_B));
    report("gemm", worst(c, expected, M * N));
}

static void attention(engine_context *context) {
    enum { TIME = 6, HEADS = 2, D = 4, ROW = 3 * HEADS * D };
    float qkv[TIME * ROW], out[TIME * HEADS * D];
    double expected[TIME * HEADS * D];
    unsigned state = 2;
    for (int i = 0; i < TIME * ROW; i++) qkv[i] = draw(&state);
    for (int h = 0; h < HEADS; h++) {
        for (int t = 0; t < TIME; t++) {
            double weights[TIME], sum = 0;
            for (int s = 0; s < TIME; s++) {
                double score = 0;
                for (int d = 0; d < D; d++) {
                    score += (double)qkv[t * ROW + h * D + d] * qkv[s * ROW + (HEADS + h) * D + d];
                }
                sum += weights[s] = exp(score / sqrt(D));
            }
            for (int d = 0; d < D; d++) {
                double value = 0;
                for (int s = 0; s < TIME; s++) {
                    value += weights[s] / sum * qkv[s * ROW + (2 * HEADS + h) * D + d];
                }
                expected[(t * HEADS + h) * D + d] = value;
            }
        }
    }
    engine_array vq = floats(qkv, 1, TIME, ROW), vo = floats(out, 1, TIME, HEADS * D);
    CHECK(engine_attention(context, &vq, HEADS, &vo, NULL));
    report("attention", worst(out, expected, TIME * HEADS * D));
}

static void layernorm(engine_context *context) {
    enum { ROWS = 3, COLS = 8 };
    float x[ROWS * COLS], gamma[COLS], beta[COLS], y[ROWS * COLS];
    double expected[ROWS * COLS];
    unsigned state = 3;
    for (int i = 0; i < ROWS * COLS; i++) x[i] = draw(&state);
    for (int i = 0; i < COLS; i++) gamma[i] = draw(&state), beta[i] = draw(&state);
    for (int r = 0; r < ROWS; r++) {
        double mean = 0, variance = 0;
        for (int i = 0; i < COLS; i++) mean += x[r * COLS + i] / (double)COLS;
        for (int i = 0; i < COLS; i++) variance += pow(x[r * COLS + i] - mean, 2) / COLS;
        for (int i = 0; i < COLS; i++) {
            double normal = (x[r * COLS + i] - mean) / sqrt(variance + 1e-5);
            expected[r * COLS + i] = normal * gamma[i] + beta[i];
        }
    }
    engine_array vx = floats(x, ROWS, COLS, 0), vg = floats(gamma, COLS, 0, 0);
    engine_array vb = floats(beta, COLS, 0, 0), vy = floats(y, ROWS, COLS, 0);
    CHECK(engine_layernorm(context, &vx, &vg, &vb, 1e-5f, &vy, NULL, NULL));
    report("layernorm", worst(y, expected, ROWS * COLS));
}

static void spectral(engine_context *context) {
    enum { TIME = 10, BINS = TIME / 2 + 1 };
    const double pi = 3.14159265358979323846;
    float x[TIME], gain[BINS * 2], y[TIME], dx[TIME], d_gain[BINS * 2];
    double expected[TIME];
    unsigned state = 4;
    for (int i = 0; i < TIME; i++) x[i] = draw(&state);
    for (int i = 0; i < BINS * 2; i++) gain[i] = draw(&state);
    memset(expected, 0, sizeof expected);
    for (int f = 0; f < BINS; f++) {
        double re = 0, im = 0;
        for (int t = 0; t < TIME; t++) {
            re += x[t] * cos(2 * pi * f * t / TIME);
            im -= x[t] * sin(2 * pi * f * t / TIME);
        }
        double out_re = re * gain[2 * f] - im * gain[2 * f + 1];
        double out_im = re * gain[2 * f + 1] + im * gain[2 * f];
        double share = (f == 0 || 2 * f == TIME ? 1.0 : 2.0) / TIME;
        for (int t = 0; t < TIME; t++) {
            double phase = 2 * pi * f * t / TIME;
            /* The imaginary part of the first and last bin is nothing to a real signal. */
            double imaginary = f == 0 || 2 * f == TIME ? 0 : out_im;
            expected[t] += share * (out_re * cos(phase) - imaginary * sin(phase));
        }
    }
    engine_array vx = floats(x, 1, TIME, 1), vg = floats(gain, BINS, 1, 2);
    engine_array vy = floats(y, 1, TIME, 1), vdx = floats(dx, 1, TIME, 1);
    engine_array vdg = floats(d_gain, BINS, 1, 2);
    CHECK(engine_spectral(context, &vx, &vg, &vy));
    report("spectral", worst(y, expected, TIME));

    /* Gradients of parameters are added to, so they start at 0. The block is linear in its gain:
     * <gain, d_gain> = <y, dy>. */
    memset(d_gain, 0, sizeof d_gain);
    CHECK(engine_spectral_backward(context, &vy, &vx, &vg, &vdx, &vdg));
    double left = 0, right = 0;
    for (int i = 0; i < BINS * 2; i++) left += (double)gain[i] * d_gain[i];
    for (int i = 0; i < TIME; i++) right += (double)y[i] * y[i];
    report("backward", fabs(left - right) / right);
}

int main(void) {
    if (engine_abi_version() != ENGINE_ABI_VERSION) {
        fprintf(stderr, "the library is not the header's\n");
        return 1;
    }
    engine_options options = ENGINE_OPTIONS_INIT;
    options.threads = 2;
    engine_context *context;
    CHECK(engine_context_new(&options, &context));
    product(context);
    attention(context);
    layernorm(context);
    spectral(context);
    CHECK(engine_context_free(context));
    return 0;
}
