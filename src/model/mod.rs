//! Models: windows `[batch, channels, time]` to predictions `[batch, outputs]`.

pub mod eegformer;
pub mod shallow;

pub use eegformer::{EegFormer, EegFormerConfig};
pub use shallow::{Shallow, ShallowConfig};

use crate::Result;
use crate::nn::params::Builder;
use crate::tape::{Tape, Var};

/// Something that turns windows into predictions.
pub trait Model: Send + Sync {
    /// As on the command line: "eegformer".
    fn name(&self) -> &'static str;

    /// Predictions `[batch, outputs]` of windows `[batch, channels, time]`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when the windows do not fit the model.
    fn forward(&self, tape: &Tape<'_>, windows: &Var) -> Result<Var>;

    /// Layers of the backbone, for freezing from the input on.
    fn layers(&self) -> usize;
}

/// What to build; from this alone a checkpoint's model is built again.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum ModelConfig {
    /// The transformer.
    EegFormer(EegFormerConfig),
    /// The convolutional baseline.
    Shallow(ShallowConfig),
}

impl ModelConfig {
    /// The model and its parameters' descriptions.
    ///
    /// # Errors
    /// [`crate::Error::Input`] naming the field that does not fit.
    pub fn build(&self, builder: &mut Builder) -> Result<Box<dyn Model>> {
        Ok(match self {
            Self::EegFormer(config) => Box::new(EegFormer::new(builder, config)?),
            Self::Shallow(config) => Box::new(Shallow::new(builder, config)?),
        })
    }

    /// False for a model that computes in the type of its parameters only.
    pub fn has_mixed_precision(&self) -> bool {
        matches!(self, Self::EegFormer(_))
    }

    /// Channels and samples of the windows it takes, and its outputs.
    pub fn extents(&self) -> (usize, usize, usize) {
        match self {
            Self::EegFormer(c) => (c.n_channels, c.window, c.num_classes),
            Self::Shallow(c) => (c.n_channels, c.window, c.num_classes),
        }
    }
}
