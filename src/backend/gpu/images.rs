//! The kernels compiled into this program.

/// Fat binaries for NVIDIA's driver.
pub const CUDA: &[&[u8]] = &[];
