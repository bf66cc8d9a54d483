// The engine for C++17: engine.h with handles that free themselves, errors as exceptions, and arrays
// that know their type. docs/embedding.md is its guide.
//
//     engine::Context context;                                    // the CPU
//     engine::Model model = context.load("runs/age");
//     engine::Predictions found = model.predict_file("subject.bdf");
//
// Handles are moved, not copied. They may be used from any thread. A callback that throws ends the
// engine's call, which throws the same exception.
#ifndef ENGINE_HPP
#define ENGINE_HPP

#include <engine.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace engine {

/// What the engine refused: its message (place, problem, remedy) and its status.
class Error : public std::runtime_error {
public:
    Error(engine_status status, const std::string &message)
        : std::runtime_error(message), status_(status) {}
    engine_status status() const noexcept { return status_; }

private:
    engine_status status_;
};

/// Throws what went wrong.
inline void check(engine_status status) {
    if (status != ENGINE_STATUS_OK) {
        throw Error(status, engine_last_error());
    }
}

namespace detail {

template <class T> struct Dtype;
template <> struct Dtype<float> {
    static constexpr engine_dtype value = ENGINE_F32;
};
template <> struct Dtype<double> {
    static constexpr engine_dtype value = ENGINE_F64;
};
template <> struct Dtype<std::int32_t> {
    static constexpr engine_dtype value = ENGINE_I32;
};

/// Frees a handle when it goes.
template <class T, engine_status (*Free)(T *)> struct Freer {
    void operator()(T *handle) const noexcept { Free(handle); }
};
template <class T, engine_status (*Free)(T *)> using Handle = std::unique_ptr<T, Freer<T, Free>>;

/// The host's functions, kept for as long as anything may call them.
struct Callbacks {
    std::function<void(bool warning, const std::string &)> log;
    std::function<bool()> cancel;

    void keep(std::exception_ptr thrown) noexcept {
        std::lock_guard<std::mutex> turn(mutex);
        if (!error) {
            error = std::move(thrown);
        }
    }

    /// Throws what a callback threw, else what the engine refused.
    void check(engine_status status) {
        std::exception_ptr thrown;
        {
            std::lock_guard<std::mutex> turn(mutex);
            thrown.swap(error);
        }
        if (thrown) {
            std::rethrow_exception(thrown);
        }
        engine::check(status);
    }

    static void on_log(std::int32_t level, const char *message, void *user) noexcept {
        auto *self = static_cast<Callbacks *>(user);
        try {
            self->log(level == ENGINE_LOG_WARNING, message);
        } catch (...) {
            self->keep(std::current_exception());
        }
    }

    static std::int32_t on_cancel(void *user) noexcept {
        auto *self = static_cast<Callbacks *>(user);
        try {
            return self->cancel() ? 1 : 0;
        } catch (...) {
            self->keep(std::current_exception());
            return 1;
        }
    }

private:
    std::mutex mutex;
    std::exception_ptr error;
};

} // namespace detail

/// A dense, row-major array of the caller's. It owns nothing.
class Array {
public:
    template <class T>
    Array(T *data, std::initializer_list<std::size_t> shape, engine_memory memory = ENGINE_HOST)
        : Array(data, std::vector<std::size_t>(shape), memory) {}

    template <class T>
    Array(T *data, const std::vector<std::size_t> &shape, engine_memory memory = ENGINE_HOST)
        : Array(const_cast<std::remove_const_t<T> *>(data),
                detail::Dtype<std::remove_const_t<T>>::value, shape, memory) {}

    /// Of a type that C++ has no name for: ENGINE_BF16, ENGINE_F16.
    Array(void *data, engine_dtype dtype, const std::vector<std::size_t> &shape,
          engine_memory memory = ENGINE_HOST)
        : array_{} {
        if (shape.size() > ENGINE_MAX_RANK) {
            throw std::invalid_argument("engine::Array: at most 5 axes");
        }
        array_.data = data;
        array_.dtype = dtype;
        array_.memory = memory;
        array_.rank = static_cast<std::uint32_t>(shape.size());
        for (std::size_t i = 0; i < shape.size(); i++) {
            array_.shape[i] = shape[i];
        }
    }

    /// As the functions of engine.h take it. Those that only read it leave constant data alone.
    const engine_array *get() const noexcept { return &array_; }

private:
    engine_array array_;
};

/// How a context is made; what is not set has its default.
struct Options {
    std::string device = "cpu"; // "cuda", "hip", "auto"
    std::uint32_t ordinal = 0;
    std::uint32_t threads = 0; // one a core
    std::uint64_t memory = 0;  // what is free
    bool use_stream = false;
    void *stream = nullptr;
    std::string cache_dir; // a temporary one
    std::function<void(bool warning, const std::string &message)> log;
    std::function<bool()> cancel; // true: stop
};

/// What a model predicts of a recording's windows.
struct Predictions {
    std::size_t windows = 0;
    std::size_t width = 0;
    std::vector<double> values;   // [windows, width]
    std::vector<double> starts_s; // [windows]
    std::vector<double> mean;     // [width]
};

/// A trained model.
class Model {
public:
    engine_model_info info() const {
        engine_model_info found = ENGINE_MODEL_INFO_INIT;
        check(engine_model_get_info(handle_.get(), &found));
        return found;
    }

    /// What it is, as JSON.
    std::string describe() const {
        char *text = nullptr;
        check(engine_model_describe(handle_.get(), &text));
        std::unique_ptr<char, void (*)(char *)> owned(text, engine_string_free);
        return owned.get();
    }

    /// Outputs [n, n_outputs] of windows [n, n_channels, window].
    void forward(const Array &windows, const Array &outputs) const {
        check(engine_model_forward(handle_.get(), windows.get(), outputs.get()));
    }

    /// Predictions [n, n_predictions] of windows [n, n_channels, window].
    void predict(const Array &windows, const Array &predictions) const {
        check(engine_model_predict(handle_.get(), windows.get(), predictions.get()));
    }

    /// Predictions of a recording's windows.
    Predictions predict_file(const std::string &path) const {
        engine_predictions *made = nullptr;
        check(engine_model_predict_file(handle_.get(), path.c_str(), &made));
        detail::Handle<engine_predictions, engine_predictions_free> owned(made);
        Predictions found;
        check(engine_predictions_extents(made, &found.windows, &found.width));
        found.values.resize(found.windows * found.width);
        found.starts_s.resize(found.windows);
        found.mean.resize(found.width);
        Array values(found.values.data(), {found.windows, found.width});
        Array starts(found.starts_s.data(), {found.windows});
        Array mean(found.mean.data(), {found.width});
        check(engine_predictions_read(made, values.get(), starts.get(), mean.get()));
        return found;
    }

    engine_model *get() const noexcept { return handle_.get(); }

private:
    friend class Context;
    Model(engine_model *handle, std::shared_ptr<detail::Callbacks> callbacks)
        : handle_(handle), callbacks_(std::move(callbacks)) {}

    void check(engine_status status) const { callbacks_->check(status); }

    detail::Handle<engine_model, engine_model_free> handle_;
    std::shared_ptr<detail::Callbacks> callbacks_;
};

/// A model in training.
class Trainer {
public:
    /// Gets outputs [batch, n_outputs] of pass number `pass`, writes the loss's gradient by them, and
    /// gives the loss.
    using Loss = std::function<double(const float *outputs, std::size_t batch,
                                      std::size_t n_outputs, std::size_t pass, float *gradient)>;

    engine_step step(const Array &windows, const Array &targets, double lr) {
        engine_step found = ENGINE_STEP_INIT;
        check(engine_trainer_step(handle_.get(), windows.get(), targets.get(), lr, &found));
        return found;
    }

    /// One step with a loss of the host's.
    engine_step step(const Array &windows, const Loss &loss, double lr) {
        engine_step found = ENGINE_STEP_INIT;
        Called called{&loss, nullptr};
        engine_status status =
            engine_trainer_step_with(handle_.get(), windows.get(), on_loss, &called, lr, &found);
        if (called.error) {
            std::rethrow_exception(called.error);
        }
        check(status);
        return found;
    }

    /// Outputs by the present weights.
    void forward(const Array &windows, const Array &outputs) const {
        check(engine_trainer_forward(handle_.get(), windows.get(), outputs.get()));
    }

    void save(const std::string &path) const {
        check(engine_trainer_save(handle_.get(), path.c_str()));
    }

    engine_trainer *get() const noexcept { return handle_.get(); }

private:
    friend class Context;
    struct Called {
        const Loss *loss;
        std::exception_ptr error;
    };

    static std::int32_t on_loss(const float *outputs, std::size_t batch, std::size_t n_outputs,
                                std::size_t pass, float *gradient, double *loss,
                                void *user) noexcept {
        auto *called = static_cast<Called *>(user);
        try {
            *loss = (*called->loss)(outputs, batch, n_outputs, pass, gradient);
            return 0;
        } catch (...) {
            called->error = std::current_exception();
            return 1;
        }
    }

    Trainer(engine_trainer *handle, std::shared_ptr<detail::Callbacks> callbacks)
        : handle_(handle), callbacks_(std::move(callbacks)) {}
    void check(engine_status status) const { callbacks_->check(status); }

    detail::Handle<engine_trainer, engine_trainer_free> handle_;
    std::shared_ptr<detail::Callbacks> callbacks_;
};

/// Memory of a context.
class Buffer {
public:
    void *data() const {
        void *at = nullptr;
        check(engine_buffer_data(handle_.get(), &at));
        return at;
    }

private:
    friend class Context;
    explicit Buffer(engine_buffer *handle) : handle_(handle) {}
    detail::Handle<engine_buffer, engine_buffer_free> handle_;
};

/// A device with its memory, its threads or stream, and the host's callbacks.
class Context {
public:
    explicit Context(const Options &options = {})
        : callbacks_(std::make_shared<detail::Callbacks>()) {
        if (engine_abi_version() != ENGINE_ABI_VERSION) {
            throw std::runtime_error("libengine is of another version than engine.h");
        }
        callbacks_->log = options.log;
        callbacks_->cancel = options.cancel;
        engine_options given = ENGINE_OPTIONS_INIT;
        given.device = options.device.c_str();
        given.ordinal = options.ordinal;
        given.threads = options.threads;
        given.memory = options.memory;
        given.use_stream = options.use_stream ? 1 : 0;
        given.stream = options.stream;
        given.cache_dir = options.cache_dir.empty() ? nullptr : options.cache_dir.c_str();
        if (options.log) {
            given.log = detail::Callbacks::on_log;
            given.log_user = callbacks_.get();
        }
        if (options.cancel) {
            given.cancel = detail::Callbacks::on_cancel;
            given.cancel_user = callbacks_.get();
        }
        engine_context *made = nullptr;
        engine_status status = engine_context_new(&given, &made);
        handle_.reset(made);
        callbacks_->check(status);
    }

    /// A run's folder, or a checkpoint. `batch` windows are computed at a time; 0: 32.
    Model load(const std::string &path, std::uint32_t batch = 0) const {
        engine_model *made = nullptr;
        check(engine_model_load(handle_.get(), path.c_str(), batch, &made));
        return Model(made, callbacks_);
    }

    /// A new model to train, defined in JSON.
    Trainer trainer(const std::string &definition, const engine_training &training) const {
        engine_trainer *made = nullptr;
        check(engine_trainer_new(handle_.get(), definition.c_str(), &training, &made));
        return Trainer(made, callbacks_);
    }

    /// A checkpoint to train on.
    Trainer resume(const std::string &path, const engine_training &training) const {
        engine_trainer *made = nullptr;
        check(engine_trainer_load(handle_.get(), path.c_str(), &training, &made));
        return Trainer(made, callbacks_);
    }

    /// c = a b + bias; `flags` are ENGINE_TRANSPOSE_A and so on.
    void gemm(const Array &a, const Array &b, const Array *bias, const Array &c,
              std::uint32_t flags = 0) const {
        const engine_array *row = bias ? bias->get() : nullptr;
        check(engine_gemm(handle_.get(), a.get(), b.get(), row, c.get(), flags));
    }

    void attention(const Array &qkv, std::uint32_t heads, const Array &out,
                   const Array *lse = nullptr) const {
        const engine_array *sums = lse ? lse->get() : nullptr;
        check(engine_attention(handle_.get(), qkv.get(), heads, out.get(), sums));
    }

    void layernorm(const Array &x, const Array &gamma, const Array &beta, const Array &y,
                   float epsilon = 1e-5f) const {
        check(engine_layernorm(handle_.get(), x.get(), gamma.get(), beta.get(), epsilon, y.get(), nullptr, nullptr));
    }

    void spectral(const Array &x, const Array &gain, const Array &y) const {
        check(engine_spectral(handle_.get(), x.get(), gain.get(), y.get()));
    }

    void copy(const Array &from, const Array &to) const {
        check(engine_copy(handle_.get(), from.get(), to.get()));
    }

    Buffer buffer(std::size_t bytes) const {
        engine_buffer *made = nullptr;
        check(engine_buffer_new(handle_.get(), bytes, &made));
        return Buffer(made);
    }

    void sync() const { check(engine_context_sync(handle_.get())); }

    engine_device_info info() const {
        engine_device_info found = ENGINE_DEVICE_INFO_INIT;
        check(engine_context_get_info(handle_.get(), &found));
        return found;
    }

    /// For functions of engine.h that have no method here.
    engine_context *get() const noexcept { return handle_.get(); }

private:
    void check(engine_status status) const { callbacks_->check(status); }

    std::shared_ptr<detail::Callbacks> callbacks_;
    detail::Handle<engine_context, engine_context_free> handle_;
};

} // namespace engine

#endif
