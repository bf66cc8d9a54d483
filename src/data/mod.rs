//! From EEG files to windows.
//!
//! # Layout
//! `format/` one file per file format -> [`recording`] -> `bids` (a whole dataset) ->
//! `filter`, `resample`, `preprocess` -> `window` -> `cache` -> `split`, `sampler`, `augment`.
//! `synth/` writes generated datasets that walk the same way.

pub mod bids;
pub mod format;
pub mod montage;
pub mod recording;
pub mod rng;
pub mod synth;

pub use recording::{Annotation, Channel, ChannelKind, Recording};
