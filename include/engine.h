/* The engine for programs in C and C++: kernels, trained models, training. docs/embedding.md is the
 * guide. Made of src/capi by `ENGINE_WRITE_HEADER=1 cargo test --release --test embedding header`; do
 * not edit.
 *
 * Every function gives a status: ENGINE_STATUS_OK, or one whose message engine_last_error has, for the
 * thread that called. Results are written only on success. Handles may be used from any thread; one
 * that was freed is refused with ENGINE_STATUS_HANDLE. Structures that begin with a size are set up by
 * their initialisers below. No function throws, ends the process, or keeps a pointer to an array after
 * the work is done. */

#ifndef ENGINE_H
#define ENGINE_H

#include <stddef.h>
#include <stdint.h>

/* Initialisers: everything but the size is 0, which stands for the default. */
#ifdef __cplusplus
#define ENGINE_SIZED(type) [] { type made{}; made.size = sizeof made; return made; }()
#else
#define ENGINE_SIZED(type) {.size = sizeof(type)}
#endif
#define ENGINE_OPTIONS_INIT ENGINE_SIZED(engine_options)
#define ENGINE_TRAINING_INIT ENGINE_SIZED(engine_training)
#define ENGINE_DEVICE_INFO_INIT ENGINE_SIZED(engine_device_info)
#define ENGINE_MODEL_INFO_INIT ENGINE_SIZED(engine_model_info)
#define ENGINE_STEP_INIT ENGINE_SIZED(engine_step)

// Version of the binary interface: it changes when a program that was built for another one would
// not work. Fields that are added at the end of a structure with a size, and functions that are
// added, do not change it.
#define ENGINE_ABI_VERSION 1

// IEEE 754 binary32.
#define ENGINE_F32 0

// IEEE 754 binary64; on the CPU only.
#define ENGINE_F64 1

// bfloat16; in a card's memory only.
#define ENGINE_BF16 2

// IEEE 754 binary16; in a card's memory only.
#define ENGINE_F16 3

// 32-bit integers: labels.
#define ENGINE_I32 4

// In the host's memory.
#define ENGINE_HOST 0

// In the memory of the context's card.
#define ENGINE_DEVICE 1

// Most axes of an array.
#define ENGINE_MAX_RANK 5

// Importance of a message: informative.
#define ENGINE_LOG_INFO 0

// Importance of a message: something was left out or done otherwise than asked.
#define ENGINE_LOG_WARNING 1

// engine_gemm: a is given as `[.., k, m]`.
#define ENGINE_TRANSPOSE_A 1

// engine_gemm: b is given as `[.., n, k]`.
#define ENGINE_TRANSPOSE_B 2

// engine_gemm: the product is added to what c holds.
#define ENGINE_ACCUMULATE 4

// Mean of (output - target)².
#define ENGINE_LOSS_MSE 0

// Mean of the Huber loss, linear from 1 on.
#define ENGINE_LOSS_HUBER 1

// Mean of |output - target|.
#define ENGINE_LOSS_L1 2

// Mean binary cross-entropy of a logit; targets are 0 and 1 (or between).
#define ENGINE_LOSS_BCE 3

// Mean cross-entropy of logits; targets are class numbers of ENGINE_I32.
#define ENGINE_LOSS_CROSS_ENTROPY 4

// AdamW (Loshchilov and Hutter 2019).
#define ENGINE_ADAMW 0

// Gradient descent with momentum.
#define ENGINE_SGD 1

// What a function gives back. Every status but ENGINE_STATUS_OK has a message: engine_last_error.
enum engine_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // It worked.
    ENGINE_STATUS_OK = 0,
    // An argument that is null, out of range, of the wrong shape or type.
    ENGINE_STATUS_ARGUMENT = 1,
    // A handle that was freed, or is of another kind.
    ENGINE_STATUS_HANDLE = 2,
    // A file, or something in it, that the user can mend.
    ENGINE_STATUS_INPUT = 3,
    // The operating system refused a file.
    ENGINE_STATUS_IO = 4,
    // The device's memory, or the limit on it, does not suffice.
    ENGINE_STATUS_MEMORY = 5,
    // A loss, gradient or weight is not finite; the weights are as they were.
    ENGINE_STATUS_NOT_FINITE = 6,
    // The device is not there, or failed.
    ENGINE_STATUS_DEVICE = 7,
    // The cancel callback asked to stop.
    ENGINE_STATUS_CANCELLED = 8,
    // A mistake in the engine. The handle in use may be in disorder: free it.
    ENGINE_STATUS_INTERNAL = 9,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum engine_status engine_status;
#else
typedef int32_t engine_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Memory of a context. Make it with engine_buffer_new.
typedef struct engine_buffer engine_buffer;

// A device with its memory, its threads or stream, and the host's callbacks. Calls may come from
// any thread; those on one context take turns. Make it with engine_context_new.
typedef struct engine_context engine_context;

// A trained model. Calls may come from any thread; those on one model take turns.
typedef struct engine_model engine_model;

// What a model predicts of a recording's windows. It does not change.
typedef struct engine_predictions engine_predictions;

// A model in training. Calls may come from any thread; those on one trainer take turns.
typedef struct engine_trainer engine_trainer;

// Type of an array's elements.
typedef int32_t engine_dtype;

// Where an array lies.
typedef int32_t engine_memory;

// An array of the caller's: dense, row-major, aligned to its elements. The engine keeps no pointer to
// it after the call (on a card: after the work that the call enqueued).
typedef struct {
    // First element.
    void *data;
    // Extents, outermost first; those from `rank` on are not looked at.
    size_t shape[ENGINE_MAX_RANK];
    // Number of axes, at most ENGINE_MAX_RANK.
    uint32_t rank;
    // ENGINE_F32 and so on.
    engine_dtype dtype;
    // ENGINE_HOST or ENGINE_DEVICE.
    engine_memory memory;
} engine_array;

// Gets a message (ENGINE_LOG_INFO, ENGINE_LOG_WARNING), on the thread that called the engine or on
// one that works for it. The text is valid during the call. It must not use the same context.
typedef void (*engine_log)(int32_t level, const char *message, void *user);

// Asked now and then during long calls, on the thread that called the engine or on one that works
// for it: anything but 0 ends the call with ENGINE_STATUS_CANCELLED. It must not use the same context.
typedef int32_t (*engine_cancel)(void *user);

// How a context is made. Start from ENGINE_OPTIONS_INIT: a member that is 0 has its default.
typedef struct {
    // sizeof(engine_options) of the program.
    size_t size;
    // "cpu" (also null), "cuda", "hip", or "auto": the first card that works, else the CPU.
    const char *device;
    // Which card of that maker, from 0.
    uint32_t ordinal;
    // Threads of a CPU context; 0: one a core. Results do not depend on it.
    uint32_t threads;
    // Bytes of the device's memory that may be used; 0: what is free now.
    uint64_t memory;
    // Other than 0: work goes to `stream`, else to a stream of the context's own. Cards only.
    int32_t use_stream;
    // The host's cudaStream_t, CUstream or hipStream_t, of the device's primary context; null: the
    // default stream. It must outlive the context.
    void *stream;
    // Folder for what reading a recording leaves behind, to be used again; null: a temporary one,
    // removed after each call. UTF-8.
    const char *cache_dir;
    // Where messages go; null: nowhere.
    engine_log log;
    // Given to `log`.
    void *log_user;
    // Asked whether to stop; null: never.
    engine_cancel cancel;
    // Given to `cancel`.
    void *cancel_user;
} engine_options;

// Facts about a context's device.
typedef struct {
    // sizeof(engine_device_info) of the program.
    size_t size;
    // Other than 0: arrays of kernels lie in a card's memory (ENGINE_DEVICE).
    int32_t is_card;
    // Threads, multiprocessors or compute units.
    uint32_t units;
    // Bytes of memory it may use.
    uint64_t memory;
    // Bytes of it in use.
    uint64_t memory_used;
    // "cpu avx512", "sm_90", "gfx1010": a text that ends with NUL.
    char name[64];
} engine_device_info;

// Facts about a model.
typedef struct {
    // sizeof(engine_model_info) of the program.
    size_t size;
    // Channels of a window.
    size_t n_channels;
    // Samples of a window.
    size_t window;
    // Outputs of a forward pass.
    size_t n_outputs;
    // Numbers of a prediction: 1 where a number is predicted, else one a class.
    size_t n_predictions;
    // Trained scalars.
    uint64_t n_parameters;
    // Sampling rate of a window, Hz.
    double sample_rate;
    // Other than 0: it predicts classes.
    int32_t is_classifier;
    // Other than 0: the settings of its run were found, so that recordings can be read as in it.
    int32_t reads_recordings;
} engine_model_info;

// How a model is trained. Start from ENGINE_TRAINING_INIT: a member that is 0 has its default.
typedef struct {
    // sizeof(engine_training) of the program.
    size_t size;
    // Windows of one forward pass; 0: 16.
    uint32_t batch;
    // Forward passes of one step; 0: 1. A step takes batch * accumulation windows.
    uint32_t accumulation;
    // ENGINE_LOSS_MSE and so on.
    int32_t loss;
    // ENGINE_ADAMW or ENGINE_SGD.
    int32_t optimizer;
    // AdamW: decay of the first moment; 0: 0.9.
    double beta1;
    // AdamW: decay of the second moment; 0: 0.95.
    double beta2;
    // AdamW: added to the root of the second moment; 0: 1e-8.
    double epsilon;
    // SGD: decay of the velocity.
    double momentum;
    // Decay of the weights; 0: none.
    double weight_decay;
    // The gradient's norm is clipped to this; 0: it is not.
    double clip;
    // Of first weights and dropout.
    uint64_t seed;
    // ENGINE_F32; on a card also ENGINE_BF16: mixed precision.
    int32_t compute;
} engine_training;

// What one step found.
typedef struct {
    // sizeof(engine_step) of the program.
    size_t size;
    // Steps done, this one included.
    uint64_t step;
    // The loss before the update.
    double loss;
    // The gradient's norm before clipping.
    double grad_norm;
} engine_step;

// The host's loss: gets outputs `[batch, n_outputs]` of one forward pass (number `pass` of the step,
// from 0), writes the gradient of the loss by each of them to `gradient`, and the loss to `loss`.
// Anything but 0 ends the step with ENGINE_STATUS_CANCELLED, the weights as they were. It must not
// call the trainer, throw or jump away.
typedef int32_t (*engine_loss)(const float *outputs,
                               size_t batch,
                               size_t n_outputs,
                               size_t pass,
                               float *gradient,
                               double *loss,
                               void *user);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the binary interface that this library has: compare it with ENGINE_ABI_VERSION
// before any other call where the library is opened at run time.
uint32_t engine_abi_version(void);

// The engine's version, as in "0.1.0". The text is constant.
const char *engine_version(void);

// Takes `bytes` of a context's memory, for arrays: a card's (ENGINE_DEVICE) where the context has one,
// else the host's, aligned to 256 bytes. What it holds is unspecified.
engine_status engine_buffer_new(const engine_context *context,
                                size_t bytes,
                                engine_buffer **out);

// Where a buffer lies: the first byte, for `data` of an engine_array.
engine_status engine_buffer_data(const engine_buffer *buffer, void **out);

// Gives a buffer's memory back; null is nothing. On a card, work that was enqueued on the context
// before may still use it.
engine_status engine_buffer_free(engine_buffer *buffer);

// Copies an array to another of the same shape and type, between the host's and the card's memory in
// any direction, in the order of the context's work. It waits, but where both are the card's.
engine_status engine_copy(const engine_context *context,
                          const engine_array *from,
                          const engine_array *to);

// Frees a text that the engine gave by a parameter `char **`; null is nothing. Constant texts and
// those of engine_last_error are not freed.
void engine_string_free(char *text);

// Opens a device. `options` may be null: a CPU context with defaults.
engine_status engine_context_new(const engine_options *options,
                                 engine_context **out);

// Frees a context; null is nothing. Models and trainers that were made of it go on working, so it
// may be freed first.
engine_status engine_context_free(engine_context *context);

// Waits until all work of a context is done. Calls on host arrays have waited already; those on a
// card's arrays have not.
engine_status engine_context_sync(const engine_context *context);

// Tells about a context's device. `info->size` must be set (ENGINE_DEVICE_INFO_INIT).
engine_status engine_context_get_info(const engine_context *context, engine_device_info *info);

// Handles that are not freed yet, in the whole process: for tests that look for leaks.
size_t engine_live_handles(void);

// c = A B, or c += A B, then the row `bias` `[n]` added to every row where it is given (null: none).
// a is `[m, k]`, b `[k, n]`, c `[m, n]`, or all three with the number of products in front. `flags`
// are ENGINE_TRANSPOSE_A, ENGINE_TRANSPOSE_B and ENGINE_ACCUMULATE. All of one type; sums in f32 (f64
// for f64).
engine_status engine_gemm(const engine_context *context,
                          const engine_array *a,
                          const engine_array *b,
                          const engine_array *bias,
                          const engine_array *c,
                          uint32_t flags);

// out = softmax(Q Kᵀ / √head_dim) V by heads. qkv is `[batch, time, 3 * heads * head_dim]` (queries,
// keys, values, each head by head, as PyTorch's in_proj gives them), out `[batch, time, heads *
// head_dim]` of its type, lse `[batch, time, heads]` (the logarithms of the sums of exponentials, in
// f32, or f64 for f64), which the backward pass wants; null: not wanted.
engine_status engine_attention(const engine_context *context,
                               const engine_array *qkv,
                               uint32_t heads,
                               const engine_array *out,
                               const engine_array *lse);

// The gradient of engine_attention: d_qkv, of the shape of qkv, from the gradient d_out of its result,
// its argument qkv and its results out and lse.
engine_status engine_attention_backward(const engine_context *context,
                                        const engine_array *d_out,
                                        const engine_array *qkv,
                                        const engine_array *out,
                                        const engine_array *lse,
                                        uint32_t heads,
                                        const engine_array *d_qkv);

// y = (x - mean) / √(variance + epsilon) * gamma + beta over the last axis of x `[.., cols]`. y has
// the shape and type of x; gamma and beta are `[cols]`, in f32 (f64 for f64), as are mean and rstd
// `[rows]`, which the backward pass wants; null: not wanted.
engine_status engine_layernorm(const engine_context *context,
                               const engine_array *x,
                               const engine_array *gamma,
                               const engine_array *beta,
                               float epsilon,
                               const engine_array *y,
                               const engine_array *mean,
                               const engine_array *rstd);

// The gradients of engine_layernorm: dx, of the shape of x, and d_gamma and d_beta `[cols]`, which are
// added to, from the gradient dy of its result, its arguments x and gamma and its results mean and
// rstd.
engine_status engine_layernorm_backward(const engine_context *context,
                                        const engine_array *dy,
                                        const engine_array *x,
                                        const engine_array *gamma,
                                        const engine_array *mean,
                                        const engine_array *rstd,
                                        const engine_array *dx,
                                        const engine_array *d_gamma,
                                        const engine_array *d_beta);

// y = irfft(rfft(x) * gain) along time. x and y are `[batch, time, channels]`, gain `[time / 2 + 1,
// channels, 2]` (real, imaginary), in f32 (f64 for f64).
engine_status engine_spectral(const engine_context *context,
                              const engine_array *x,
                              const engine_array *gain,
                              const engine_array *y);

// The gradients of engine_spectral: dx, of the shape of x, and d_gain, of the shape of gain, which is
// added to, from the gradient dy of its result and its arguments.
engine_status engine_spectral_backward(const engine_context *context,
                                       const engine_array *dy,
                                       const engine_array *x,
                                       const engine_array *gain,
                                       const engine_array *dx,
                                       const engine_array *d_gain);

// Loads a checkpoint that `engine train` or engine_trainer_save wrote: `path` is a run's folder (its
// best weights are meant) or a file. `batch` windows are computed at a time; 0: 32. Results do not
// depend on it.
engine_status engine_model_load(const engine_context *context,
                                const char *path,
                                uint32_t batch,
                                engine_model **out);

// Frees a model; null is nothing.
engine_status engine_model_free(engine_model *model);

// Tells about a model. `info->size` must be set (ENGINE_MODEL_INFO_INIT).
engine_status engine_model_get_info(const engine_model *model, engine_model_info *info);

// What a model is, as JSON: its sizes, the names of its channels, what it predicts (name and unit, or
// classes), how outputs become predictions. Free the text with engine_string_free.
engine_status engine_model_describe(const engine_model *model,
                                    char **out);

// Outputs `[n, n_outputs]` of windows `[n, n_channels, window]`, both f32: what the model computes,
// before it becomes a prediction. Samples are scaled as in training (robustly, to about 1). On a card
// both may lie in its memory (ENGINE_DEVICE): the work is then enqueued, not waited for.
engine_status engine_model_forward(const engine_model *model,
                                   const engine_array *windows,
                                   const engine_array *outputs);

// Predictions `[n, n_predictions]` of windows `[n, n_channels, window]` of f32: a number in its own
// unit, or the classes' probabilities. `predictions` are f64 or f32; both lie in the host's memory.
engine_status engine_model_predict(const engine_model *model,
                                   const engine_array *windows,
                                   const engine_array *predictions);

// Reads a recording (EDF, BDF, BrainVision, EEGLAB), filters, scales and cuts it as the model's run
// did, and predicts each window: the numbers of `engine predict RUN --data FILE --windows`. The model
// was loaded from a run's folder, or from a checkpoint in one.
engine_status engine_model_predict_file(const engine_model *model,
                                        const char *path,
                                        engine_predictions **out);

// Frees predictions; null is nothing.
engine_status engine_predictions_free(engine_predictions *predictions);

// The number of windows, and of numbers of each.
engine_status engine_predictions_extents(const engine_predictions *predictions,
                                         size_t *windows,
                                         size_t *width);

// Copies predictions: `values` `[windows, width]`, `starts_s` `[windows]` (seconds from the first
// sample) and `mean` `[width]` (over the windows); each may be null. f64 or f32, in the host's memory.
engine_status engine_predictions_read(const engine_predictions *predictions,
                                      const engine_array *values,
                                      const engine_array *starts_s,
                                      const engine_array *mean);

// The message of the last call on this thread that failed: place, problem, remedy. "" where none
// has. Valid until the next call on this thread that fails, or the thread's end; never null.
const char *engine_last_error(void);

// A status in a word, as in "argument". The text is constant; "unknown" for other numbers.
const char *engine_status_name(int32_t status);

// Defines a model and makes it ready for training. `definition` is JSON as engine_model_describe gives
// it, of which only the model's name must be there:
// `{"model": {"name": "eegformer", "n_channels": 19, "window": 200, "num_classes": 1, "d_model": 64}}`.
engine_status engine_trainer_new(const engine_context *context,
                                 const char *definition,
                                 const engine_training *training,
                                 engine_trainer **out);

// Loads a checkpoint to train on: one of engine_trainer_save goes on as if it had never stopped (given
// the same `training` and data); of any other the weights are taken. `path` may also be the folder of a
// run of `engine train`.
engine_status engine_trainer_load(const engine_context *context,
                                  const char *path,
                                  const engine_training *training,
                                  engine_trainer **out);

// Frees a trainer; null is nothing.
engine_status engine_trainer_free(engine_trainer *trainer);

// Tells about the model in training. `info->size` must be set (ENGINE_MODEL_INFO_INIT).
engine_status engine_trainer_get_info(const engine_trainer *trainer, engine_model_info *info);

// One step of training at learning rate `lr`: forward, backward, clip, update. `windows` are
// `[batch * accumulation, n_channels, window]` of f32, `targets` `[batch * accumulation, n_outputs]` of
// f32, or class numbers `[batch * accumulation]` of i32 for ENGINE_LOSS_CROSS_ENTROPY; both in the
// host's memory. It waits for the step's results; `result` may be null.
engine_status engine_trainer_step(const engine_trainer *trainer,
                                  const engine_array *windows,
                                  const engine_array *targets,
                                  double lr,
                                  engine_step *result);

// One step with a loss of the host's, which is called once a forward pass; the loss and its gradient
// are averaged over the passes. Ops run one by one, which takes longer than engine_trainer_step.
engine_status engine_trainer_step_with(const engine_trainer *trainer,
                                       const engine_array *windows,
                                       engine_loss loss,
                                       void *user,
                                       double lr,
                                       engine_step *result);

// Outputs of windows by the present weights, without dropout: as engine_model_forward.
engine_status engine_trainer_forward(const engine_trainer *trainer,
                                     const engine_array *windows,
                                     const engine_array *outputs);

// Saves weights, what the model is, and the optimizer's state: a safetensors file that
// engine_model_load, engine_trainer_load and `engine` read, and PyTorch the weights of. A file that is
// there already survives until the new one is whole.
engine_status engine_trainer_save(const engine_trainer *trainer,
                                  const char *path);

// The message of the last call on this thread that failed: place, problem, remedy. "" where none
// has. Valid until the next call on this thread that fails, or the thread's end; never null.
const char *engine_last_error(void);

// A status in a word, as in "argument". The text is constant; "unknown" for other numbers.
const char *engine_status_name(int32_t status);

// Opens a device. `options` may be null: a CPU context with defaults.
engine_status engine_context_new(const engine_options *options,
                                 engine_context **out);

// Frees a context; null is nothing. Models and trainers that were made of it go on working, so it
// may be freed first.
engine_status engine_context_free(engine_context *context);

// Waits until all work of a context is done. Calls on host arrays have waited already; those on a
// card's arrays have not.
engine_status engine_context_sync(const engine_context *context);

// Tells about a context's device. `info->size` must be set (ENGINE_DEVICE_INFO_INIT).
engine_status engine_context_get_info(const engine_context *context, engine_device_info *info);

// Takes `bytes` of a context's memory, for arrays: a card's (ENGINE_DEVICE) where the context has one,
// else the host's, aligned to 256 bytes. What it holds is unspecified.
engine_status engine_buffer_new(const engine_context *context,
                                size_t bytes,
                                engine_buffer **out);

// Where a buffer lies: the first byte, for `data` of an engine_array.
engine_status engine_buffer_data(const engine_buffer *buffer, void **out);

// Gives a buffer's memory back; null is nothing. On a card, work that was enqueued on the context
// before may still use it.
engine_status engine_buffer_free(engine_buffer *buffer);

// Copies an array to another of the same shape and type, between the host's and the card's memory in
// any direction, in the order of the context's work. It waits, but where both are the card's.
engine_status engine_copy(const engine_context *context,
                          const engine_array *from,
                          const engine_array *to);

// Frees a text that the engine gave by a parameter `char **`; null is nothing. Constant texts and
// those of engine_last_error are not freed.
void engine_string_free(char *text);

// c = A B, or c += A B, then the row `bias` `[n]` added to every row where it is given (null: none).
// a is `[m, k]`, b `[k, n]`, c `[m, n]`, or all three with the number of products in front. `flags`
// are ENGINE_TRANSPOSE_A, ENGINE_TRANSPOSE_B and ENGINE_ACCUMULATE. All of one type; sums in f32 (f64
// for f64).
engine_status engine_gemm(const engine_context *context,
                          const engine_array *a,
                          const engine_array *b,
                          const engine_array *bias,
                          const engine_array *c,
                          uint32_t flags);

// out = softmax(Q Kᵀ / √head_dim) V by heads. qkv is `[batch, time, 3 * heads * head_dim]` (queries,
// keys, values, each head by head, as PyTorch's in_proj gives them), out `[batch, time, heads *
// head_dim]` of its type, lse `[batch, time, heads]` (the logarithms of the sums of exponentials, in
// f32, or f64 for f64), which the backward pass wants; null: not wanted.
engine_status engine_attention(const engine_context *context,
                               const engine_array *qkv,
                               uint32_t heads,
                               const engine_array *out,
                               const engine_array *lse);

// The gradient of engine_attention: d_qkv, of the shape of qkv, from the gradient d_out of its result,
// its argument qkv and its results out and lse.
engine_status engine_attention_backward(const engine_context *context,
                                        const engine_array *d_out,
                                        const engine_array *qkv,
                                        const engine_array *out,
                                        const engine_array *lse,
                                        uint32_t heads,
                                        const engine_array *d_qkv);

// y = (x - mean) / √(variance + epsilon) * gamma + beta over the last axis of x `[.., cols]`. y has
// the shape and type of x; gamma and beta are `[cols]`, in f32 (f64 for f64), as are mean and rstd
// `[rows]`, which the backward pass wants; null: not wanted.
engine_status engine_layernorm(const engine_context *context,
                               const engine_array *x,
                               const engine_array *gamma,
                               const engine_array *beta,
                               float epsilon,
                               const engine_array *y,
                               const engine_array *mean,
                               const engine_array *rstd);

// The gradients of engine_layernorm: dx, of the shape of x, and d_gamma and d_beta `[cols]`, which are
// added to, from the gradient dy of its result, its arguments x and gamma and its results mean and
// rstd.
engine_status engine_layernorm_backward(const engine_context *context,
                                        const engine_array *dy,
                                        const engine_array *x,
                                        const engine_array *gamma,
                                        const engine_array *mean,
                                        const engine_array *rstd,
                                        const engine_array *dx,
                                        const engine_array *d_gamma,
                                        const engine_array *d_beta);

// y = irfft(rfft(x) * gain) along time. x and y are `[batch, time, channels]`, gain `[time / 2 + 1,
// channels, 2]` (real, imaginary), in f32 (f64 for f64).
engine_status engine_spectral(const engine_context *context,
                              const engine_array *x,
                              const engine_array *gain,
                              const engine_array *y);

// The gradients of engine_spectral: dx, of the shape of x, and d_gain, of the shape of gain, which is
// added to, from the gradient dy of its result and its arguments.
engine_status engine_spectral_backward(const engine_context *context,
                                       const engine_array *dy,
                                       const engine_array *x,
                                       const engine_array *gain,
                                       const engine_array *dx,
                                       const engine_array *d_gain);

// Loads a checkpoint that `engine train` or engine_trainer_save wrote: `path` is a run's folder (its
// best weights are meant) or a file. `batch` windows are computed at a time; 0: 32. Results do not
// depend on it.
engine_status engine_model_load(const engine_context *context,
                                const char *path,
                                uint32_t batch,
                                engine_model **out);

// Frees a model; null is nothing.
engine_status engine_model_free(engine_model *model);

// Tells about a model. `info->size` must be set (ENGINE_MODEL_INFO_INIT).
engine_status engine_model_get_info(const engine_model *model, engine_model_info *info);

// What a model is, as JSON: its sizes, the names of its channels, what it predicts (name and unit, or
// classes), how outputs become predictions. Free the text with engine_string_free.
engine_status engine_model_describe(const engine_model *model,
                                    char **out);

// Outputs `[n, n_outputs]` of windows `[n, n_channels, window]`, both f32: what the model computes,
// before it becomes a prediction. Samples are scaled as in training (robustly, to about 1). On a card
// both may lie in its memory (ENGINE_DEVICE): the work is then enqueued, not waited for.
engine_status engine_model_forward(const engine_model *model,
                                   const engine_array *windows,
                                   const engine_array *outputs);

// Predictions `[n, n_predictions]` of windows `[n, n_channels, window]` of f32: a number in its own
// unit, or the classes' probabilities. `predictions` are f64 or f32; both lie in the host's memory.
engine_status engine_model_predict(const engine_model *model,
                                   const engine_array *windows,
                                   const engine_array *predictions);

// Reads a recording (EDF, BDF, BrainVision, EEGLAB), filters, scales and cuts it as the model's run
// did, and predicts each window: the numbers of `engine predict RUN --data FILE --windows`. The model
// was loaded from a run's folder, or from a checkpoint in one.
engine_status engine_model_predict_file(const engine_model *model,
                                        const char *path,
                                        engine_predictions **out);

// Frees predictions; null is nothing.
engine_status engine_predictions_free(engine_predictions *predictions);

// The number of windows, and of numbers of each.
engine_status engine_predictions_extents(const engine_predictions *predictions,
                                         size_t *windows,
                                         size_t *width);

// Copies predictions: `values` `[windows, width]`, `starts_s` `[windows]` (seconds from the first
// sample) and `mean` `[width]` (over the windows); each may be null. f64 or f32, in the host's memory.
engine_status engine_predictions_read(const engine_predictions *predictions,
                                      const engine_array *values,
                                      const engine_array *starts_s,
                                      const engine_array *mean);

// Defines a model and makes it ready for training. `definition` is JSON as engine_model_describe gives
// it, of which only the model's name must be there:
// `{"model": {"name": "eegformer", "n_channels": 19, "window": 200, "num_classes": 1, "d_model": 64}}`.
engine_status engine_trainer_new(const engine_context *context,
                                 const char *definition,
                                 const engine_training *training,
                                 engine_trainer **out);

// Loads a checkpoint to train on: one of engine_trainer_save goes on as if it had never stopped (given
// the same `training` and data); of any other the weights are taken. `path` may also be the folder of a
// run of `engine train`.
engine_status engine_trainer_load(const engine_context *context,
                                  const char *path,
                                  const engine_training *training,
                                  engine_trainer **out);

// Frees a trainer; null is nothing.
engine_status engine_trainer_free(engine_trainer *trainer);

// Tells about the model in training. `info->size` must be set (ENGINE_MODEL_INFO_INIT).
engine_status engine_trainer_get_info(const engine_trainer *trainer, engine_model_info *info);

// One step of training at learning rate `lr`: forward, backward, clip, update. `windows` are
// `[batch * accumulation, n_channels, window]` of f32, `targets` `[batch * accumulation, n_outputs]` of
// f32, or class numbers `[batch * accumulation]` of i32 for ENGINE_LOSS_CROSS_ENTROPY; both in the
// host's memory. It waits for the step's results; `result` may be null.
engine_status engine_trainer_step(const engine_trainer *trainer,
                                  const engine_array *windows,
                                  const engine_array *targets,
                                  double lr,
                                  engine_step *result);

// One step with a loss of the host's, which is called once a forward pass; the loss and its gradient
// are averaged over the passes. Ops run one by one, which takes longer than engine_trainer_step.
engine_status engine_trainer_step_with(const engine_trainer *trainer,
                                       const engine_array *windows,
                                       engine_loss loss,
                                       void *user,
                                       double lr,
                                       engine_step *result);

// Outputs of windows by the present weights, without dropout: as engine_model_forward.
engine_status engine_trainer_forward(const engine_trainer *trainer,
                                     const engine_array *windows,
                                     const engine_array *outputs);

// Saves weights, what the model is, and the optimizer's state: a safetensors file that
// engine_model_load, engine_trainer_load and `engine` read, and PyTorch the weights of. A file that is
// there already survives until the new one is whole.
engine_status engine_trainer_save(const engine_trainer *trainer,
                                  const char *path);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ENGINE_H */
