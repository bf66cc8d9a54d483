//! A native training engine for EEG models and for small transformers of any kind.
//!
//! # Layout
//! In the order data flows:
//! - [`data`]: recordings, BIDS folders, filters, windows, the cache, splits, generated EEG
//! - [`config`]: profiles and settings: flag over file over profile over default
//! - [`metrics`]: scores, intervals, aggregation of windows to subjects
//! - [`report`]: the run's page, its figures, TensorBoard events
//! - [`train`]: schedule, early stopping, run folders, checkpoints, signals
//! - [`cli`]: the commands of the program `engine` and their output

pub mod cli;
pub mod config;
pub mod data;
mod error;
pub mod metrics;
pub mod report;
pub mod train;

pub use error::{Error, Result};
