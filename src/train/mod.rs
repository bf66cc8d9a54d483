//! Training: what a run leaves on disk, its schedule and its end.
//!
//! # Layout
//! [`schedule`] the learning rate by step, [`early_stop`] when to stop; [`run_dir`] the run's
//! folder, [`checkpoint_file`] tensors in it; [`signal`] Ctrl-C and termination.

pub mod checkpoint_file;
pub mod early_stop;
pub mod run_dir;
pub mod schedule;
pub mod signal;
