//! GPUs: one queue for every maker's cards, over a thin driver each.
//!
//! # Layout
//! [`driver`], what a maker's driver must do; [`queue`], the backend built on it; [`lanes`], what may run
//! side by side; `chain`, what one launch takes together; `host`, ops that run on the host in between; `staging`, pinned memory of uploads; [`blas`], plain products for the vendor's
//! library; [`cuda`], NVIDIA's driver; [`hip`], AMD's; [`images`], the kernels compiled into this
//! program; [`self_test`], a card's kernels against the CPU at the start of a run.
#![allow(unsafe_code)] // Foreign functions; each block says why it holds.

pub mod blas;
pub(in crate::backend) mod chain;
pub mod cuda;
pub mod driver;
pub mod hip;
mod host;
pub mod images;
pub mod lanes;
#[cfg(test)]
pub(crate) mod paper;
pub mod queue;
pub mod self_test;
mod staging;

pub use queue::Gpu;
