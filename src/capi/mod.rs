//! The C interface: what `include/engine.h` declares. `docs/embedding.md` is its guide.
//!
//! # Layout
//! [`status`], status codes, the last error, and the guard around every function; [`handle`], the
//! table behind opaque handles; [`context`], a device with its callbacks; [`array`], arrays of the
//! caller's; [`kernels`], products, attention, layer normalisation, the spectral block on them;
//! [`buffer`], memory of a context and strings; [`model`], checkpoints and their predictions;
//! [`definition`], a model in JSON; [`trainer`], training step by step.
//!
//! The same rules hold for every function. It gives a status; results go to where pointers point,
//! and are written only on success. A handle is a number that is never used again, so a freed one
//! is refused, not followed. Nothing panics across the boundary. All state hangs on the host's
//! handles; the table of handles itself is shared and holds no setting.
#![allow(unsafe_code)] // Pointers of the caller's; each block says why it holds.

pub mod array;
pub mod buffer;
pub mod context;
pub mod definition;
pub mod handle;
pub mod kernels;
pub mod model;
pub mod status;
#[cfg(test)]
mod tests;
pub mod trainer;

/// Version of the binary interface: it changes when a program that was built for another one would
/// not work. Fields that are added at the end of a structure with a size, and functions that are
/// added, do not change it.
pub const ENGINE_ABI_VERSION: u32 = 1;

/// The version of the binary interface that this library has: compare it with ENGINE_ABI_VERSION
/// before any other call where the library is opened at run time.
#[unsafe(no_mangle)]
pub extern "C" fn engine_abi_version() -> u32 {
    ENGINE_ABI_VERSION
}

/// The engine's version, as in "0.1.0". The text is constant.
#[unsafe(no_mangle)]
pub extern "C" fn engine_version() -> *const std::ffi::c_char {
    const { concat!(env!("CARGO_PKG_VERSION"), "\0") }.as_ptr().cast()
}
