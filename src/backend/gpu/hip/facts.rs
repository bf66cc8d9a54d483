//! What there is of AMD's on this machine, and what is known to go wrong with it.

use std::path::{Path, PathBuf};

use super::library::{self, no_device_remedy, refused};
use super::vendor;
use crate::{Error, Result};

/// Number of cards.
///
/// # Errors
/// [`Error::Device`] with what is missing and what would mend it.
pub fn count() -> Result<usize> {
    library::open()?.count()
}

/// The runtime that was opened and its version: ("libamdhip64.so.6", "6.3").
///
/// # Errors
/// [`Error::Device`] where there is none.
pub fn runtime() -> Result<(String, Option<String>)> {
    let library = library::open()?;
    Ok((library.name.clone(), library.version()))
}

/// True where something of AMD's compute stack is here: its runtime, or its kernel driver.
pub fn is_here() -> bool {
    kernel_driver().exists() || !library::is_missing()
}

/// The device file of AMD's kernel driver.
pub fn kernel_driver() -> &'static Path {
    Path::new("/dev/kfd")
}

/// The folders in which rocBLAS looks for its matrix products, and whether one has some for a card.
pub fn rocblas_files(arch: &str) -> (Vec<PathBuf>, bool) {
    (vendor::folders(), vendor::files_for(arch).is_some())
}

/// The runtime works and knows of no card.
pub(super) fn no_card() -> Error {
    refused("the HIP runtime is there and finds no card", no_device_remedy())
}

/// What is set on this machine that is known to do harm, each with its remedy.
pub fn warnings() -> Vec<String> {
    let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut warnings = Vec::new();
    if let Some(version) = value("HSA_OVERRIDE_GFX_VERSION") {
        warnings.push(format!(
            "HSA_OVERRIDE_GFX_VERSION={version} makes the card take another card's code, which has \
             crashed systems; this program has code for the card itself: unset it"
        ));
    }
    if let Some(wish) = vendor::hipblaslt_wish().filter(|wish| !["", "0"].contains(wish)) {
        warnings.push(format!(
            "ROCBLAS_USE_HIPBLASLT={wish} is taken as 0 here: hipBLASLt has no code for RDNA1, and \
             this program never uses it: unset it"
        ));
    }
    for name in ["HIP_LAUNCH_BLOCKING", "AMD_SERIALIZE_KERNEL", "AMD_SERIALIZE_COPY"] {
        if let Some(set) = value(name).filter(|set| set != "0") {
            warnings.push(format!(
                "{name}={set} makes the host wait for everything it enqueues, which is slow: unset \
                 it unless you look for a fault"
            ));
        }
    }
    warnings
}
