//! The guide of programs that use this crate. For C, C++ and Python see `docs/embedding.md`.
//!
//! # Layout
//! [`first_model`], [`custom_op`], [`custom_route`]. Their code is compiled and run with the tests.

#[doc = include_str!("../docs/guide/first-model.md")]
#[doc = concat!("```rust\n", include_str!("../examples/custom_layer.rs"), "```")]
pub mod first_model {}

#[doc = include_str!("../docs/guide/custom-op.md")]
#[doc = concat!("# The listings\n```rust\n", include_str!("../examples/custom_op.rs"), "```")]
#[doc = concat!("```text\n", include_str!("../docs/guide/softsign.cu"), "```")]
pub mod custom_op {}

#[doc = include_str!("../docs/guide/custom-route.md")]
pub mod custom_route {}
