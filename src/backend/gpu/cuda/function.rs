//! Handles of kernels.

use std::ffi::c_int;

use cudarc::driver::{result, sys};

use super::facts::failed;
use crate::Result;

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
