//! What there is of NVIDIA's on this machine, and what is wrong with it, in words.

use std::ffi::c_int;

use cudarc::cublas::sys as blas_sys;
use cudarc::driver::{DriverError, result, sys};

use crate::backend::route::Wishes;
use crate::backend::{Arch, Machine};
use crate::{Error, Result};

/// Oldest driver whose interface is complete, as `cuDriverGetVersion` counts.
const OLDEST_DRIVER: c_int = 12_000;

/// What is wrong with NVIDIA's stack on this machine, in words for `engine devices`.
pub(super) fn refused(problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Device { device: "cuda".into(), problem: problem.into(), remedy: remedy.into() }
}

/// The driver's own words for an error, with what to do about it.
pub(super) fn failed(what: &str, error: DriverError) -> Error {
    use sys::CUresult as E;
    let words = match error.error_string() {
        Ok(words) => words.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", error.0 as u32),
    };
    let remedy = match error.0 {
        E::CUDA_ERROR_OUT_OF_MEMORY => "close other programs on the card, or take a smaller batch",
        E::CUDA_ERROR_NO_DEVICE => "use --device cpu; a card may be hidden by CUDA_VISIBLE_DEVICES",
        E::CUDA_ERROR_DEVICE_UNAVAILABLE => "another program has the card for itself: end it",
        E::CUDA_ERROR_INVALID_IMAGE | E::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            "build the program for this card: ENGINE_CUDA_ARCHS lists the cards it has kernels for"
        }
        E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | E::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "update NVIDIA's driver: these kernels are of a newer CUDA than it knows"
        }
        _ => "the last checkpoint is intact: go on with `engine train --resume`",
    };
    refused(format!("{what}: {words}"), remedy)
}

/// True where NVIDIA's driver library can be opened. cudarc panics where it cannot.
pub fn driver_is_present() -> bool {
    // SAFETY: opens and closes a library; its initialisers are NVIDIA's.
    unsafe { sys::is_culib_present() }
}

/// True where cuBLAS can be opened.
pub fn cublas_is_present() -> bool {
    // SAFETY: as above.
    unsafe { blas_sys::is_culib_present() }
}

/// Number of cards.
///
/// # Errors
/// [`Error::Device`] with what is missing and what would mend it.
pub fn count() -> Result<usize> {
    if !driver_is_present() {
        let remedy = "install NVIDIA's driver, or use --device cpu";
        return Err(refused("libcuda.so.1 is not on this machine", remedy));
    }
    result::init().map_err(|e| failed("NVIDIA's driver does not start", e))?;
    let version = driver_version()?;
    if version < OLDEST_DRIVER {
        let problem = format!("NVIDIA's driver knows CUDA {}", version_words(version));
        return Err(refused(problem, "update the driver to one for CUDA 13 (580 or newer)"));
    }
    let count = result::device::get_count().map_err(|e| failed("counting cards", e))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub(super) fn driver_version() -> Result<c_int> {
    let mut version = 0;
    // SAFETY: writes one integer.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    status.result().map_err(|e| failed("the driver's version", e))?;
    Ok(version)
}

pub(super) fn version_words(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<u32> {
    // SAFETY: a valid card.
    let value = unsafe { result::device::get_attribute(device, which) };
    Ok(value.map_err(|e| failed("a fact about the card", e))?.max(0) as u32)
}

/// Facts about a card, or about an older one where `sm` wants those; and what the card really is.
pub(super) fn arch_of(device: sys::CUdevice, sm: Option<u32>) -> Result<(Arch, Machine)> {
    use sys::CUdevice_attribute as A;
    let major = attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let own = 10 * major + minor;
    let named = || std::env::var("ENGINE_CUDA_SM").ok().and_then(|text| text.parse().ok());
    let sm = sm.or_else(named).map_or(own, |sm: u32| sm.min(own));
    let mut shared = attribute(device, A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    if let Some(older) = Arch::claim(&format!("sm_{sm}")).filter(|_| sm != own) {
        shared = shared.min(older.shared);
    }
    // SAFETY: a valid card.
    let memory = unsafe { result::device::total_mem(device) };
    let arch = Arch {
        name: format!("sm_{sm}"),
        machine: Machine::Cuda { sm },
        wave: 32,
        units: attribute(device, A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: memory.map_err(|e| failed("the card's memory", e))? as u64,
        shared,
        matrix_cores: true,
        bf16: true,
        blas: false,
        wishes: Wishes::default(),
    };
    Ok((arch, Machine::Cuda { sm: own }))
}
