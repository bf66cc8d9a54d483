//! Training: recorded steps, and what a run leaves on disk.
//!
//! # Layout
//! [`step`] one update as a recording, [`planner`] the batch that fits; [`schedule`] the learning rate by step, [`early_stop`] when
//! to stop; [`run_dir`] the run's folder, [`checkpoint_file`] tensors in it; [`signal`] Ctrl-C and
//! termination.

pub mod checkpoint_file;
pub mod early_stop;
pub mod planner;
pub mod run_dir;
pub mod schedule;
pub mod signal;
pub mod step;
