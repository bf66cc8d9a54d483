// A hipBLAS on the CPU: plain matrix products, enqueued on the emulator's streams. It understands
// both numberings of element types, each only in the function that has it: ENGINE_HIPBLAS is the
// version that it stands for, 1 (no _v2), 2 (both) or 3 (hipDataType in the function without _v2).
#include "../../src/backend/gpu/hip/engine_hipblas.h"

#include <cstring>

#include "device.h"

extern "C" int engine_emulator_enqueue(void* stream, int (*function)(void*), void (*drop)(void*), void* data);

#ifndef ENGINE_HIPBLAS
#define ENGINE_HIPBLAS 2
#endif

namespace {

enum Kind { F32, F16, BF16, UNKNOWN };

struct Handle {
  void* stream = nullptr;
};

struct Matrix {
  const void* at;
  Kind kind;
  int leading;
  long long stride;
  bool transposed;
};

struct Product {
  int m, n, k, batch;
  float alpha, beta;
  Matrix a, b, c;
};

Kind of_hipblas(int type) {
  return type == HIPBLAS_R_32F ? F32 : type == HIPBLAS_R_16F ? F16 : type == HIPBLAS_R_16B ? BF16 : UNKNOWN;
}
Kind of_hip(int type) {
  return type == HIP_R_32F ? F32 : type == HIP_R_16F ? F16 : type == HIP_R_16BF ? BF16 : UNKNOWN;
}

float value_at(const Matrix& x, long long i) {
  if (x.kind == F32) return static_cast<const float*>(x.at)[i];
  unsigned short bits = static_cast<const unsigned short*>(x.at)[i];
  return x.kind == F16 ? f16_value(bits) : float_of(unsigned(bits) << 16);
}

void store(const Matrix& x, long long i, float value) {
  void* at = const_cast<void*>(x.at);
  if (x.kind == F32) static_cast<float*>(at)[i] = value;
  else static_cast<unsigned short*>(at)[i] = x.kind == F16 ? f16_bits(value) : bf16_bits(value);
}

// Element (row, col) of a column-major matrix that may be transposed, in product `batch`.
long long index(const Matrix& x, int batch, int row, int col) {
  return batch * x.stride + (x.transposed ? static_cast<long long>(row) * x.leading + col
                                          : static_cast<long long>(col) * x.leading + row);
}

int compute(void* data) {
  const Product& p = *static_cast<const Product*>(data);
  for (int batch = 0; batch < p.batch; ++batch)
    for (int col = 0; col < p.n; ++col)
      for (int row = 0; row < p.m; ++row) {
        float sum = 0.0f;
        for (int i = 0; i < p.k; ++i)
          sum = std::fma(value_at(p.a, index(p.a, batch, row, i)), value_at(p.b, index(p.b, batch, i, col)), sum);
        long long at = index(p.c, batch, row, col);
        // With beta 0, C is not read: it may hold NaN.
        store(p.c, at, p.alpha * sum + (p.beta == 0.0f ? 0.0f : p.beta * value_at(p.c, at)));
      }
  return 0;
}

int multiply(hipblasHandle_t handle, int op_a, int op_b, Product product) {
  bool operations = (op_a == HIPBLAS_OP_N || op_a == HIPBLAS_OP_T) && (op_b == HIPBLAS_OP_N || op_b == HIPBLAS_OP_T);
  bool kinds = product.a.kind != UNKNOWN && product.b.kind == product.a.kind && product.c.kind != UNKNOWN;
  bool sizes = product.m >= 0 && product.n >= 0 && product.k >= 0 && product.batch >= 0 && product.c.leading >= product.m &&
               product.a.leading >= (op_a == HIPBLAS_OP_N ? product.m : product.k) &&
               product.b.leading >= (op_b == HIPBLAS_OP_N ? product.k : product.n);
  if (!handle || !operations || !kinds || !sizes) return HIPBLAS_STATUS_INVALID_VALUE;
  product.a.transposed = op_a == HIPBLAS_OP_T, product.b.transposed = op_b == HIPBLAS_OP_T;
  auto drop = [](void* data) { delete static_cast<Product*>(data); };
  return engine_emulator_enqueue(static_cast<Handle*>(handle)->stream, compute, drop, new Product(product));
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

hipblasStatus_t hipblasCreate(hipblasHandle_t* handle) {
  *handle = new Handle;
  return HIPBLAS_STATUS_SUCCESS;
}
hipblasStatus_t hipblasDestroy(hipblasHandle_t handle) {
  delete static_cast<Handle*>(handle);
  return HIPBLAS_STATUS_SUCCESS;
}
hipblasStatus_t hipblasSetStream(hipblasHandle_t handle, void* stream) {
  static_cast<Handle*>(handle)->stream = stream;
  return HIPBLAS_STATUS_SUCCESS;
}

hipblasStatus_t hipblasSgemmStridedBatched(hipblasHandle_t handle, int op_a, int op_b, int m, int n, int k,
                                           const float* alpha, const float* a, int lda, long long stride_a,
                                           const float* b, int ldb, long long stride_b, const float* beta,
                                           float* c, int ldc, long long stride_c, int batch) {
  return multiply(handle, op_a, op_b, {m, n, k, batch, *alpha, *beta, {a, F32, lda, stride_a, false},
                                       {b, F32, ldb, stride_b, false}, {c, F32, ldc, stride_c, false}});
}

hipblasStatus_t hipblasGemmStridedBatchedEx(hipblasHandle_t handle, int op_a, int op_b, int m, int n, int k,
                                            const void* alpha, const void* a, int a_type, int lda,
                                            long long stride_a, const void* b, int b_type, int ldb,
                                            long long stride_b, const void* beta, void* c, int c_type, int ldc,
                                            long long stride_c, int batch, int compute_type, int) {
  constexpr bool HIP_TYPES = ENGINE_HIPBLAS == 3;
  if (compute_type != int(HIP_TYPES ? HIPBLAS_COMPUTE_32F : HIPBLAS_R_32F)) return HIPBLAS_STATUS_NOT_SUPPORTED;
  auto kind = HIP_TYPES ? of_hip : of_hipblas;
  return multiply(handle, op_a, op_b,
                  {m, n, k, batch, *static_cast<const float*>(alpha), *static_cast<const float*>(beta),
                   {a, kind(a_type), lda, stride_a, false}, {b, kind(b_type), ldb, stride_b, false},
                   {c, kind(c_type), ldc, stride_c, false}});
}

#if ENGINE_HIPBLAS == 2

hipblasStatus_t hipblasGemmStridedBatchedEx_v2(hipblasHandle_t handle, int op_a, int op_b, int m, int n, int k,
                                               const void* alpha, const void* a, int a_type, int lda,
                                               long long stride_a, const void* b, int b_type, int ldb,
                                               long long stride_b, const void* beta, void* c, int c_type,
                                               int ldc, long long stride_c, int batch, int compute_type, int) {
  if (compute_type != HIPBLAS_COMPUTE_32F) return HIPBLAS_STATUS_NOT_SUPPORTED;
  return multiply(handle, op_a, op_b,
                  {m, n, k, batch, *static_cast<const float*>(alpha), *static_cast<const float*>(beta),
                   {a, of_hip(a_type), lda, stride_a, false}, {b, of_hip(b_type), ldb, stride_b, false},
                   {c, of_hip(c_type), ldc, stride_c, false}});
}
#endif

}  // extern "C"
#pragma GCC visibility pop
