/* What the examples share: an error ends the program with the engine's message. */
#ifndef CHECK_H
#define CHECK_H

#include <engine.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call)                                                                                \
    do {                                                                                           \
        engine_status status_ = (call);                                                            \
        if (status_ != ENGINE_STATUS_OK) {                                                         \
            fprintf(stderr, "%s\n%s\n", #call, engine_last_error());                               \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* A host array of floats; unused axes are given as 0. */
static inline engine_array floats(float *data, size_t a, size_t b, size_t c) {
    engine_array array = {data, {a, b, c}, 1u + (b > 0) + (c > 0), ENGINE_F32, ENGINE_HOST};
    return array;
}

/* Numbers between -1 and 1 that are the same everywhere. */
static inline float draw(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (float)(1u << 23) - 1.0f;
}

#endif
