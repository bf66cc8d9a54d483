//! Training: recorded steps, runs, checkpoints.

pub mod step;
