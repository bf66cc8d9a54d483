//! File formats, one file each. A reader never panics on any bytes.

pub mod edf_write;
