/* What the engine uses of hipBLAS, as its headers of ROCm 5 to 7 have it. See engine_hip.h.
 *
 * hipBLAS has two numberings of element types: its own (hipblasDatatype_t, 150 and above), and
 * hipDataType. hipblasGemmStridedBatchedEx takes the first up to version 2 and the second from
 * version 3 on; where there is a function of that name with _v2, it takes the second. */
#pragma once
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int hipblasStatus_t;
typedef void* hipblasHandle_t;

enum { HIPBLAS_STATUS_SUCCESS = 0, HIPBLAS_STATUS_INVALID_VALUE = 3, HIPBLAS_STATUS_NOT_SUPPORTED = 7 };
enum { HIPBLAS_OP_N = 111, HIPBLAS_OP_T = 112, HIPBLAS_OP_C = 113 };
enum { HIPBLAS_R_16F = 150, HIPBLAS_R_32F = 151, HIPBLAS_R_16B = 168 };
enum { HIP_R_32F = 0, HIP_R_16F = 2, HIP_R_16BF = 14 };
enum { HIPBLAS_COMPUTE_32F = 2 };
enum { HIPBLAS_GEMM_DEFAULT = 160 };

hipblasStatus_t hipblasCreate(hipblasHandle_t* handle);
hipblasStatus_t hipblasDestroy(hipblasHandle_t handle);
hipblasStatus_t hipblasSetStream(hipblasHandle_t handle, void* stream);
hipblasStatus_t hipblasSgemmStridedBatched(hipblasHandle_t handle, int op_a, int op_b, int m, int n,
                                           int k, const float* alpha, const float* a, int lda,
                                           long long stride_a, const float* b, int ldb,
                                           long long stride_b, const float* beta, float* c, int ldc,
                                           long long stride_c, int batch);
hipblasStatus_t hipblasGemmStridedBatchedEx(hipblasHandle_t handle, int op_a, int op_b, int m, int n,
                                            int k, const void* alpha, const void* a, int a_type,
                                            int lda, long long stride_a, const void* b, int b_type,
                                            int ldb, long long stride_b, const void* beta, void* c,
                                            int c_type, int ldc, long long stride_c, int batch,
                                            int compute_type, int algorithm);
hipblasStatus_t hipblasGemmStridedBatchedEx_v2(hipblasHandle_t handle, int op_a, int op_b, int m,
                                               int n, int k, const void* alpha, const void* a,
                                               int a_type, int lda, long long stride_a,
                                               const void* b, int b_type, int ldb,
                                               long long stride_b, const void* beta, void* c,
                                               int c_type, int ldc, long long stride_c, int batch,
                                               int compute_type, int algorithm);

#ifdef __cplusplus
}
#endif
