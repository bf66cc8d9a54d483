// Kernels on the caller's vectors: attention of a window by itself, checked by what must hold of it.
#include <cmath>
#include <cstdio>
#include <vector>

#include <engine.hpp>

int main() try {
    engine::Context context;
    const std::size_t batch = 2, time = 50, heads = 4, width = 32;
    std::vector<float> qkv(batch * time * 3 * width), out(batch * time * width);
    unsigned state = 1;
    for (float &x : qkv) {
        state = state * 1664525u + 1013904223u;
        x = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
    }
    // Values that are equal at all times: their weighted mean is what they are.
    for (std::size_t i = 0; i < batch * time; i++) {
        for (std::size_t c = 0; c < width; c++) {
            qkv[i * 3 * width + 2 * width + c] = static_cast<float>(c);
        }
    }
    const std::vector<float> &input = qkv;
    context.attention(engine::Array(input.data(), {batch, time, 3 * width}), heads,
                      engine::Array(out.data(), {batch, time, width}));
    float worst = 0;
    for (std::size_t i = 0; i < out.size(); i++) {
        worst = std::fmax(worst, std::fabs(out[i] - static_cast<float>(i % width)));
    }
    std::printf("attention differs by %.1e\n", worst);
    if (!(worst < 1e-4f)) {
        return 1;
    }

    // What does not fit is refused with words.
    try {
        context.attention(engine::Array(input.data(), {batch, time, 3 * width}), 5,
                          engine::Array(out.data(), {batch, time, width}));
        return 1;
    } catch (const engine::Error &error) {
        std::printf("refused: %s\n", error.what());
    }
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
