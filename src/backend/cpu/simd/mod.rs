//! The host's room for `unsafe`: raw memory, file maps, and calls into vector kernels. Everything
//! it exports is safe to call.
#![allow(unsafe_code)]

pub mod columns;
pub mod gemm;
mod gemm_blocks;
#[cfg(target_arch = "x86_64")]
mod gemm_tile;
pub mod map;
pub mod memory;
pub mod packing;
pub mod philox;
pub mod transpose;
#[cfg(target_arch = "x86_64")]
mod vectors;
