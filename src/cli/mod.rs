//! The program's command line.
//!
//! # Layout
//! [`args`] the commands and their flags, which become the top layer of settings -> one file per
//! command -> [`console`] what the user sees of it.

pub mod args;
pub mod console;
pub mod data_prepare;
pub mod evaluate;
pub mod train;
