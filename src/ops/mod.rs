//! Primitives: each file has an op's parameter struct, its host function, its plan, and the
//! function that puts it on a tape together with its gradient.
//!
//! # Layout
//! Matrix products: [`gemm`], [`mlp`]. Transformers: [`attention`], [`layernorm`], [`softmax`],
//! [`positions`], [`patch`]. Time: [`spectral`], [`conv`], [`pool`], [`filters`]. Pointwise:
//! [`elementwise`], [`dropout`] (with [`philox`]). Ends: [`window`], where batches come from; [`loss`],
//! [`optimizer`].

pub mod attention;
pub mod batchnorm;
pub mod conv;
pub mod dropout;
pub mod elementwise;
pub mod filters;
pub mod gemm;
mod gemm_plan;
pub mod layernorm;
pub mod loss;
pub mod mlp;
pub mod optimizer;
pub mod patch;
pub mod philox;
mod plans;
pub mod pool;
pub mod positions;
pub mod softmax;
pub mod spectral;
pub mod window;

use crate::{Error, Result};

/// Implements [`crate::backend::Op`] for a parameter struct that has a
/// [`crate::backend::cpu::host::HostKernel`]: name, and the plan of its kernels, named after the op
/// and the type. An op that can be a plain matrix product has a function `vendor` that says when; one
/// that never reads its outputs may say so by `overwrites`.
macro_rules! op {
    ($type:ty, $name:literal, |$op:ident, $arch:ident, $kernel:ident| $plan:expr) => {
        op!($type, $name, |$op, $arch, $kernel| $plan, vendor = |_, _, _| false);
    };
    (
        $type:ty, $name:literal, |$op:ident, $arch:ident, $kernel:ident| $plan:expr,
        vendor = $vendor:expr
    ) => {
        op!($type, $name, |$op, $arch, $kernel| $plan, vendor = $vendor, overwrites = |_| false);
    };
    (
        $type:ty, $name:literal, |$op:ident, $arch:ident, $kernel:ident| $plan:expr,
        vendor = $vendor:expr, overwrites = $overwrites:expr
    ) => {
        impl crate::backend::Op for $type {
            fn reads_outputs(&self) -> bool {
                let overwrites: fn(&$type) -> bool = $overwrites;
                !overwrites(self)
            }

            fn name(&self) -> &'static str {
                $name
            }

            fn params(&self) -> &[u8] {
                bytemuck::bytes_of(self)
            }

            fn host(&self, io: &mut crate::backend::HostIo<'_>) -> crate::Result<()> {
                crate::backend::cpu::host::HostKernel::host_any(self, io)
            }

            fn plan(
                &self,
                $arch: &crate::backend::Arch,
                dtype: crate::DType,
            ) -> crate::backend::Route {
                use crate::backend::Route;
                use crate::backend::route::{Choice, choose_op};
                let suits: fn(&$type, &crate::backend::Arch, crate::DType) -> bool = $vendor;
                match choose_op($name, $arch) {
                    Choice::Host => return Route::Host,
                    Choice::Blas if suits(self, $arch, dtype) => return Route::Blas,
                    Choice::Blas | Choice::Kernel => {}
                }
                let $op = self;
                let kernel = format!("{}_{}", $name, dtype.name());
                let $kernel = kernel.as_str();
                Route::Kernel($plan)
            }
        }
    };
}
pub(crate) use op;

/// A size as a kernel parameter.
pub(crate) fn size(n: usize) -> u32 {
    // Tensors of more than 2^32 elements do not fit the arena of any card this runs on.
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Checks that the last axis of `dims` is `n`.
pub(crate) fn expect_last(op: &'static str, dims: &[usize], n: usize) -> Result<()> {
    if dims.last() == Some(&n) {
        return Ok(());
    }
    Err(Error::shape(op, format!("last axis of {dims:?} is not {n}")))
}

/// Checks that two shapes are equal.
pub(crate) fn expect_same(op: &'static str, a: &[usize], b: &[usize]) -> Result<()> {
    if a == b { Ok(()) } else { Err(Error::shape(op, format!("{a:?} and {b:?} differ"))) }
}
