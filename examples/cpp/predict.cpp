// A trained model and a recording in, predictions out: what `engine predict RUN --data FILE --windows`
// prints, as lines of start (s) and numbers.
#include <cstdio>

#include <engine.hpp>

int main(int argc, char **argv) try {
    if (argc != 3) {
        std::fprintf(stderr, "usage: predict RUN RECORDING\n");
        return 2;
    }
    engine::Options options;
    options.log = [](bool warning, const std::string &message) {
        std::fprintf(stderr, "%s%s\n", warning ? "warning: " : "", message.c_str());
    };
    const engine::Model model = engine::Context(options).load(argv[1]);
    const engine::Predictions found = model.predict_file(argv[2]);
    for (std::size_t i = 0; i < found.windows; i++) {
        std::printf("%.17g", found.starts_s[i]);
        for (std::size_t j = 0; j < found.width; j++) {
            std::printf(" %.17g", found.values[i * found.width + j]);
        }
        std::printf("\n");
    }
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
