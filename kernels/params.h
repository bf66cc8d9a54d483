// One struct per op: argument 0 of its kernels, as src/ops/ declares it. SIZE is checked here by the
// compiler and against the Rust struct by a test.
#pragma once

#ifndef ENGINE_PARAMS_ONLY
using size_t = decltype(sizeof(0));
#endif

constexpr int MAX_AT = 12;  // operands of a kernel

#define SIZE(Name, bytes) static_assert(sizeof(Name) == bytes, "as in src/ops")

// --- gemm.cu
enum : unsigned {
  GEMM_BIAS = 1, GEMM_GELU = 2, GEMM_DROPOUT = 4, GEMM_RESIDUAL = 8, GEMM_ACCUMULATE = 16,
  GEMM_SUMS = 32, GEMM_SUMS_ACCUMULATE = 64, GEMM_GELU_SLOPE = 128
};
struct Gemm {
  unsigned m, n, k, batch, a_rs, a_cs, a_bs, b_rs, b_cs, b_bs, flags, stream;
  float probability;
};
SIZE(Gemm, 52);
struct ColumnSums { unsigned rows, cols, accumulate; };
SIZE(ColumnSums, 12);

// --- attention.cu
struct Attention { unsigned batch, time, heads, head_dim; float scale; };
SIZE(Attention, 20);

// --- norm.cu
struct LayerNorm { unsigned rows, cols; float epsilon; };
SIZE(LayerNorm, 12);
struct LayerNormBackward { unsigned rows, cols, accumulate; };
SIZE(LayerNormBackward, 12);
struct LayerNormParams { unsigned rows, cols; };
SIZE(LayerNormParams, 8);
struct Softmax { unsigned rows, cols; };
SIZE(Softmax, 8);
struct SoftmaxBackward { unsigned rows, cols, accumulate; };
SIZE(SoftmaxBackward, 12);
struct BatchNorm {
  unsigned batch, channels, time, training;
  float epsilon, momentum;
  unsigned accumulate;
};
SIZE(BatchNorm, 28);

// --- spectral.cu
struct Spectral { unsigned batch, time, channels, accumulate, passes, radices, conjugate; };
SIZE(Spectral, 28);
struct SpectralGrad { unsigned batch, time, channels, accumulate, passes, radices, with_input; };
SIZE(SpectralGrad, 28);

// --- conv.cu
struct Conv1d {
  unsigned batch, groups, inputs, outputs, time, kernel, stride, padding, time_out, has_bias, accumulate;
};
SIZE(Conv1d, 44);
struct ComposeFilters { unsigned outputs, filters, channels, kernel; };
SIZE(ComposeFilters, 16);

// --- pool.cu
struct Pool { unsigned rows, time, time_out, kernel, stride, kind, accumulate; };
SIZE(Pool, 28);
struct MeanTime { unsigned batch, time, channels, backward, accumulate; };
SIZE(MeanTime, 20);

// --- elementwise.cu
struct Patchify { unsigned batch, channels, time, patch, backward, accumulate; };
SIZE(Patchify, 24);
struct AddTable { unsigned batch, n; };
SIZE(AddTable, 8);
struct Fill { unsigned n; float value; };
SIZE(Fill, 8);
struct Axpy { unsigned n; float scale; unsigned accumulate; };
SIZE(Axpy, 12);
struct Binary { unsigned n, multiply, accumulate; };
SIZE(Binary, 12);
struct Unary { unsigned n, function; };
SIZE(Unary, 8);
struct UnaryBackward { unsigned n, function, accumulate; };
SIZE(UnaryBackward, 12);
struct Dropout { unsigned n, stream; float probability; unsigned accumulate; };
SIZE(Dropout, 16);

// --- window.cu
struct WindowGather { unsigned rows, channels, time; };
SIZE(WindowGather, 12);

// --- loss.cu
struct PointLoss { unsigned n, kind; float parameter; };
SIZE(PointLoss, 12);
struct PointLossBackward { PointLoss of; unsigned accumulate; };
SIZE(PointLossBackward, 16);
struct CrossEntropy { unsigned n, classes; float smoothing; unsigned accumulate; };
SIZE(CrossEntropy, 16);

// --- optimizer.cu
struct GradNorm { unsigned n; };
SIZE(GradNorm, 4);
struct AdamW { unsigned n, pad; double beta1, beta2, epsilon; };
SIZE(AdamW, 32);
struct Sgd { unsigned n; float momentum; unsigned nesterov; };
SIZE(Sgd, 12);
