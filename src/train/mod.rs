//! Training: recorded steps, and what a run leaves on disk.
//!
//! # Layout
//! [`dataset`] settings to windows, [`target`] their labels; [`recipe`] settings to model, rule and
//! loss; [`step`] one update as a recording, [`planner`] the batch that fits; [`fit`] the loop
//! around it, [`loader`] its batches, [`resident`] recordings on a card, [`schedule`] its learning
//! rate, [`early_stop`] its end, [`signal`] Ctrl-C; [`run_dir`] the run's folder, [`checkpoint_file`]
//! tensors in a file, [`state`] which, [`snapshot`] them while they are copied, [`saver`] written beside
//! the steps;
//! [`profile`] where a step's time and memory go; [`validation`] outputs for windows; [`results`] predictions, scores and the report; [`inference`] a checkpoint's model on data.

pub mod checkpoint_file;
pub mod dataset;
pub mod device;
pub mod early_stop;
pub mod fit;
pub mod inference;
#[cfg(test)]
mod limit_tests;
pub mod loader;
pub mod loss_scale;
pub mod planner;
pub mod profile;
pub mod recipe;
pub mod resident;
pub mod results;
pub mod run_dir;
pub mod saver;
pub mod schedule;
pub mod signal;
pub mod snapshot;
pub mod state;
pub mod step;
pub mod target;
pub mod validation;
