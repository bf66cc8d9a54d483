//! The host's room for `unsafe`: raw memory, file maps, and calls into vector kernels. Everything
//! it exports is safe to call.
#![allow(unsafe_code)]

pub mod gemm;
pub mod map;
pub mod memory;
