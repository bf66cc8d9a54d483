//! GPUs: one queue for every maker's cards, over a thin driver each.
//!
//! # Layout
//! [`driver`], what a maker's driver must do; [`queue`], the backend built on it; [`lanes`], what may
//! run side by side; [`blas`], plain products for the vendor's library; [`cuda`], NVIDIA's driver; [`images`], the kernels compiled
//! into this program.
#![allow(unsafe_code)] // Foreign functions; each block says why it holds.

pub mod blas;
pub mod cuda;
pub mod driver;
pub mod hip;
pub mod images;
pub mod lanes;
pub mod queue;

pub use queue::Gpu;
