//! Parameters, and the layers models are built from.

pub mod layers;
pub mod params;
