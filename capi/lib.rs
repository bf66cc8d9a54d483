//! The functions of `include/engine.h`, exported.

pub use engine::capi::*;
