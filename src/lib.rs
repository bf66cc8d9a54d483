//! A native training engine for EEG models and for small transformers of any kind.
//!
//! # Layout
//! In the order data flows:
//! - [`data`]: recordings, BIDS folders, filters, windows, the cache, splits, generated EEG
//! - [`config`]: profiles and settings: flag over file over profile over default
//! - [`metrics`]: scores, intervals, aggregation of windows to subjects
//! - [`report`]: the run's page, its figures, TensorBoard events

/// Where the numbers are worked on.
pub mod backend {
    /// The processor.
    pub mod cpu {
        /// What needs `unsafe` on the processor.
        pub mod simd {
            pub mod map;
        }
    }
}
pub mod config;
pub mod data;
mod error;
pub mod metrics;
pub mod report;

pub use error::{Error, Result};
