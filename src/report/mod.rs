//! The run's page, its figures, TensorBoard events.
//!
//! # Layout
//! [`Report`] (`input`: plain data) -> `page` (one HTML file) -> `sections` (words and tables) and
//! one file per family of figures: `curves`, `regression`, `classification`, `scalp`, `spectral`.
//! They draw with `axis` (axes, legends), `svg` (shapes, numbers, rasters) and `colour`; colours of
//! lines and text are in `style.css`. `tensorboard` stands alone.
//!
//! The page loads nothing and runs nothing, so it can be mailed and archived.

mod axis;
mod classification;
mod colour;
mod curves;
mod input;
mod page;
mod regression;
mod scalp;
mod sections;
mod spectral;
mod svg;
mod tensorboard;

pub use input::{ChannelMap, ChannelValue, Curves, Fold, Report, Skipped, SpectralGain};
pub use tensorboard::EventWriter;
