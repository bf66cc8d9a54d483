//! From EEG files to windows.
//!
//! # Layout
//! `format/` one file per file format -> [`recording`] -> `bids` (a whole dataset) ->
//! `filter`, `resample`, `preprocess` -> `window` -> `cache` -> `split`, `sampler`, `augment`.
//! `montage` where electrodes sit, `names` what channels are called.
//! `synth/` writes generated datasets that walk the same way.

pub mod augment;
pub mod bids;
pub mod cache;
pub mod filter;
pub mod format;
pub mod montage;
pub mod names;
pub mod prepare;
pub mod preprocess;
pub mod recording;
pub mod resample;
pub mod rng;
pub mod sampler;
pub mod split;
pub mod synth;
pub mod window;

pub use recording::{Annotation, Channel, ChannelKind, Recording};
