//! A native training engine for EEG models and for small transformers of any kind.
//!
//! # Layout
//! In the order data flows:
//! - [`data`]: recordings, BIDS folders, filters, windows, the cache, splits, generated EEG
//! - [`config`]: profiles and settings: flag over file over profile over default
//! - [`tensor`], [`tape`]: what is computed with, and how gradients come back
//! - [`ops`]: primitives; [`nn`]: parameters and layers; [`model`]: what is trained
//! - [`optim`], [`train`]: updates, recorded steps, runs
//! - [`backend`]: machines: memory, queues, the CPU reference, the null device
//! - [`metrics`]: scores, intervals, aggregation of windows to subjects
//! - [`report`]: the run's page, its figures, TensorBoard events
//! - [`console`]: what the user sees of a command; [`cli`]: the commands of the program `engine`
//! - [`capi`]: the C interface, for programs in other languages
//!
//! [`guide`] begins with a first model; `docs/embedding.md` is for C, C++ and Python.

#![deny(missing_docs)]

pub mod backend;
pub mod capi;
pub mod cli;
pub mod config;
pub mod console;
pub mod data;
mod dtype;
mod error;
pub mod guide;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod report;
pub mod tape;
pub mod tensor;
pub mod train;

pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use tape::{Tape, Var};
pub use tensor::{Shape, Tensor, View};
