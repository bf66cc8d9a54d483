//! Handles of kernels, and what the copy engine goes by.

use std::ffi::{c_int, c_void};

use cudarc::driver::{result, sys};

use super::facts::failed;
use crate::backend::gpu::driver::Mapped;
use crate::{DType, Result};

/// A kernel's handle.
#[derive(Debug, Clone, Copy)]
pub struct Function(pub(super) sys::CUfunction);
// SAFETY: see `Context`.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Dynamic shared memory that a kernel may have without asking.
pub(super) const DEFAULT_SHARED: u32 = 48 << 10;

/// Lets a kernel have so much.
///
/// # Errors
/// [`crate::Error::Device`] where the card has less.
pub(super) fn allow_shared(function: sys::CUfunction, shared: u32, name: &str) -> Result<()> {
    if shared <= DEFAULT_SHARED {
        return Ok(());
    }
    let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: a live function.
    unsafe { result::function::set_function_attribute(function, which, shared as c_int) }
        .map_err(|e| failed(&format!("{shared} bytes of shared memory for {name}"), e))
}

/// Columns of a box: 128 bytes, the widest rows that the copy engine swizzles.
const BOX_COLS: u32 = 64;

/// The argument that stands for an operand; zeros for none.
///
/// # Errors
/// [`crate::Error::Device`] where the driver refuses it.
pub(super) fn encode(operand: &Option<Mapped>) -> Result<sys::CUtensorMap> {
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    let Some(Mapped { address, dtype, map }) = operand else { return Ok(encoded) };
    let element = match dtype {
        DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    };
    let extents = [map.cols, map.rows].map(u64::from);
    let pitch = u64::from(map.pitch) * dtype.size() as u64;
    let (boxes, steps) = ([BOX_COLS, map.box_rows], [1, 1]);
    // SAFETY: reads arrays of the rank given and writes one map, which no one looks at before; the
    // address is only noted.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            element,
            2,
            *address as *mut c_void,
            extents.as_ptr(),
            &pitch,
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(|e| failed("an operand for the copy engine", e))?;
    Ok(encoded)
}
