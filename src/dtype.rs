//! Element types, chosen at run time.

use bytemuck::Pod;
use half::{bf16, f16};

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32: parameters, gradients, optimizer state, and all accumulation.
    F32,
    /// IEEE 754 binary64: on the CPU only, the reference of every check.
    F64,
    /// bfloat16 storage, accumulated in f32.
    Bf16,
    /// IEEE 754 binary16 storage, accumulated in f32.
    F16,
    /// Labels, indices and the step's counters.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// As in kernel names: "f32", "bf16".
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::I32 => "i32",
        }
    }

    /// Type of sums and statistics over values of this type: f32, or f64 for f64.
    pub const fn statistics(self) -> Self {
        if matches!(self, Self::F64) { Self::F64 } else { Self::F32 }
    }

    /// True for everything but [`DType::I32`].
    pub const fn is_float(self) -> bool {
        !matches!(self, Self::I32)
    }
}

/// A Rust type that is some [`DType`].
pub trait Element: Pod + Send + Sync {
    /// The type's tag.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
}
impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
