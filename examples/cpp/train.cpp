// Training step by step, with the engine's loss and with one of the host's own; then saved and loaded.
// The same numbers as examples/c/train.c.
#include <cmath>
#include <cstdio>
#include <vector>

#include <engine.hpp>

namespace {

constexpr std::size_t batch = 8, channels = 4, window = 32;

class Source {
public:
    // Windows whose label is the strength of a sine in the first channel.
    void make(std::vector<float> &windows, std::vector<float> &targets) {
        for (std::size_t i = 0; i < batch; i++) {
            targets[i] = draw();
            for (std::size_t c = 0; c < channels; c++) {
                for (std::size_t t = 0; t < window; t++) {
                    float wave =
                        c == 0 ? targets[i] * std::sin(0.6f * static_cast<float>(t)) : 0.0f;
                    windows[(i * channels + c) * window + t] = wave + 0.1f * draw();
                }
            }
        }
    }

private:
    float draw() {
        state_ = state_ * 1664525u + 1013904223u;
        return static_cast<float>(state_ >> 8) / 8388608.0f - 1.0f;
    }
    unsigned state_ = 5;
};

} // namespace

int main(int argc, char **argv) try {
    if (argc != 2) {
        std::fprintf(stderr, "usage: train CHECKPOINT\n");
        return 2;
    }
    engine::Context context;
    engine_training training = ENGINE_TRAINING_INIT;
    training.batch = batch;
    training.clip = 1.0;
    training.seed = 7;
    engine::Trainer trainer = context.trainer(
        R"({"model": {"name": "eegformer", "n_channels": 4, "window": 32, "d_model": 16,
                      "n_heads": 2, "n_layers": 1, "patch": 4}})",
        training);
    std::vector<float> windows(batch * channels * window), targets(batch);
    const engine::Array to_windows(windows.data(), {batch, channels, window});
    const engine::Array to_targets(targets.data(), {batch, 1});

    // The mean of log cosh of the error: a loss that the engine does not have.
    const engine::Trainer::Loss log_cosh = [&](const float *outputs, std::size_t rows,
                                               std::size_t width, std::size_t pass,
                                               float *gradient) {
        const float *expected = targets.data() + pass * rows * width;
        const double n = static_cast<double>(rows * width);
        double loss = 0;
        for (std::size_t i = 0; i < rows * width; i++) {
            const double error = outputs[i] - expected[i];
            loss += std::log(std::cosh(error)) / n;
            gradient[i] = static_cast<float>(std::tanh(error) / n);
        }
        return loss;
    };
    Source source;
    for (int i = 0; i < 60; i++) {
        source.make(windows, targets);
        const engine_step step = i < 40 ? trainer.step(to_windows, to_targets, 3e-3)
                                        : trainer.step(to_windows, log_cosh, 3e-3);
        if (i % 10 == 9) {
            std::printf("step %d loss %.9g\n", static_cast<int>(step.step), step.loss);
        }
    }

    std::vector<float> outputs(batch), again(batch);
    trainer.forward(to_windows, engine::Array(outputs.data(), {batch, 1}));
    trainer.save(argv[1]);
    context.load(argv[1]).forward(to_windows, engine::Array(again.data(), {batch, 1}));
    return outputs == again ? 0 : 1;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
