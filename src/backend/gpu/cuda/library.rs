//! cuBLAS, where it is found.

use std::ffi::{c_int, c_void};

use cudarc::cublas::{result as cublas, sys as blas_sys};
use cudarc::driver::{result, sys};

use super::facts::{cublas_is_present, failed, refused};
use crate::backend::gpu::blas::{Matrix, Product};
use crate::{DType, Result};

/// Bytes cuBLAS may use; what NVIDIA recommends for Hopper.
const BLAS_WORKSPACE: usize = 32 << 20;

/// A handle on a queue.
#[derive(Debug)]
pub(super) struct Blas(pub(super) blas_sys::cublasHandle_t);
// SAFETY: used under the queue's lock, one thread at a time.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// A cuBLAS handle on `stream` with memory of its own, so that products can be recorded; None where
/// the library is not there.
pub(super) fn open_blas(stream: sys::CUstream) -> Result<Option<Blas>> {
    if !cublas_is_present() {
        return Ok(None);
    }
    let Ok(handle) = cublas::create_handle() else { return Ok(None) };
    // SAFETY: a live handle and stream; cuBLAS' stream type is the driver's by another name.
    let set = unsafe { cublas::set_stream(handle, stream.cast()) };
    // SAFETY: the context is current; the memory lives as long as the process' context.
    let memory = unsafe { result::malloc_sync(BLAS_WORKSPACE) };
    let memory = memory.map_err(|e| failed("memory for cuBLAS", e))?;
    // SAFETY: memory of the size given.
    let given =
        unsafe { blas_sys::cublasSetWorkspace_v2(handle, memory as *mut c_void, BLAS_WORKSPACE) };
    let works = set.is_ok() && given == blas_sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
    Ok(works.then_some(Blas(handle)))
}

fn blas_type(dtype: DType) -> blas_sys::cudaDataType {
    match dtype {
        DType::Bf16 => blas_sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => blas_sys::cudaDataType::CUDA_R_16F,
        _ => blas_sys::cudaDataType::CUDA_R_32F,
    }
}

/// Enqueues a product.
pub(super) fn multiply(blas: &Blas, p: &Product, tf32: bool) -> Result<()> {
    use blas_sys::cublasComputeType_t as Compute;
    let size = |n: usize| c_int::try_from(n).unwrap_or(c_int::MAX);
    let turned = |m: &Matrix| match m.transposed {
        true => blas_sys::cublasOperation_t::CUBLAS_OP_T,
        false => blas_sys::cublasOperation_t::CUBLAS_OP_N,
    };
    let compute = match tf32 && p.a.dtype == DType::F32 {
        true => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
        false => Compute::CUBLAS_COMPUTE_32F,
    };
    let (one, beta) = (1.0f32, if p.accumulate { 1.0f32 } else { 0.0 });
    // SAFETY: a live handle on the queue's stream; the operands are live memory of this card with
    // the extents the op was checked for; alpha and beta are read before the call returns.
    unsafe {
        cublas::gemm_strided_batched_ex(
            blas.0,
            turned(&p.a),
            turned(&p.b),
            size(p.rows),
            size(p.cols),
            size(p.inner),
            std::ptr::from_ref(&one).cast(),
            p.a.address as *const c_void,
            blas_type(p.a.dtype),
            size(p.a.stride),
            p.a.batch_stride as i64,
            p.b.address as *const c_void,
            blas_type(p.b.dtype),
            size(p.b.stride),
            p.b.batch_stride as i64,
            std::ptr::from_ref(&beta).cast(),
            p.c.address as *mut c_void,
            blas_type(p.c.dtype),
            size(p.c.stride),
            p.c.batch_stride as i64,
            size(p.batch),
            compute,
            blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|error| refused(format!("cuBLAS: {error:?}"), "give --gemm native"))
}
