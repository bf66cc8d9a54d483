//! The foundation model: patches, positions, spectral blocks, transformer layers, mean, head.

use serde::{Deserialize, Serialize};

use super::Model;
use crate::nn::layers::{LayerNorm, Linear, TransformerLayer};
use crate::nn::params::{Builder, Init, ParamId, Part};
use crate::ops::gemm::{self, After};
use crate::ops::{attention, elementwise, patch, pool, positions, spectral};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Extents of an [`EegFormer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EegFormerConfig {
    /// Channels of a window.
    pub n_channels: usize,
    /// Samples of a window.
    pub window: usize,
    /// Outputs.
    pub num_classes: usize,
    /// Channels of a token.
    pub d_model: usize,
    /// Attention heads; divides `d_model`.
    pub n_heads: usize,
    /// Transformer layers.
    pub n_layers: usize,
    /// Samples of a patch.
    pub patch: usize,
    /// Probability of an element of a residual branch being dropped.
    pub dropout: f32,
    /// Spectral blocks before the layers.
    pub n_spectral: usize,
    /// Compute each layer again in the backward pass instead of keeping what it needs.
    #[serde(default)]
    pub recompute: bool,
}

impl Default for EegFormerConfig {
    fn default() -> Self {
        Self {
            n_channels: 129,
            window: 200,
            num_classes: 1,
            d_model: 128,
            n_heads: 8,
            n_layers: 6,
            patch: 1,
            dropout: 0.1,
            n_spectral: 1,
            recompute: false,
        }
    }
}

impl EegFormerConfig {
    /// Tokens of a window.
    pub fn tokens(&self) -> usize {
        self.window / self.patch.max(1)
    }

    fn check(&self) -> Result<()> {
        let bad = |field: &str, problem: String, remedy: &str| {
            Err(Error::input(format!("model.{field}"), problem, remedy))
        };
        if self.n_heads == 0 || self.d_model == 0 || !self.d_model.is_multiple_of(self.n_heads) {
            let problem = format!("{} heads do not divide d_model {}", self.n_heads, self.d_model);
            return bad("n_heads", problem, "choose a divisor of d_model");
        }
        if self.d_model / self.n_heads > attention::MAX_HEAD_DIM {
            let problem = format!("heads of {} channels", self.d_model / self.n_heads);
            return bad("n_heads", problem, "use more heads: at most 128 channels each");
        }
        if self.patch == 0 || self.patch > self.window {
            let problem = format!("{} samples, of a window of {}", self.patch, self.window);
            return bad("patch", problem, "choose 1 to the window's length");
        }
        if self.n_channels == 0 || self.num_classes == 0 {
            return bad("n_channels", "no channels or no outputs".into(), "give at least one");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", format!("{}", self.dropout), "choose 0 <= dropout < 1");
        }
        Ok(())
    }
}

/// The model; see `docs/weights.md` for the same in PyTorch.
#[derive(Debug)]
pub struct EegFormer {
    config: EegFormerConfig,
    patch_weight: ParamId,
    patch_bias: ParamId,
    positions: ParamId,
    gains: Vec<ParamId>,
    layers: Vec<TransformerLayer>,
    norm: LayerNorm,
    head: Linear,
}

impl EegFormer {
    /// Describes the parameters.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field that does not fit.
    pub fn new(builder: &mut Builder, config: &EegFormerConfig) -> Result<Self> {
        config.check()?;
        let (d, tokens) = (config.d_model, config.tokens());
        let taps = config.n_channels * config.patch;
        builder.part(Part::Embedding);
        let (patch_weight, patch_bias) = builder.scoped("patch_embed", |builder| {
            let shape = [d, config.n_channels, config.patch];
            let weight = builder.param("weight", shape, Init::fan_in(taps));
            (weight, builder.param("bias", [d], Init::fan_in(taps)))
        });
        let positions =
            builder.undecayed("pos_embed", [tokens, d], Init::Normal { deviation: 0.02 });
        let gains = (0..config.n_spectral).map(|i| {
            builder.scoped(&format!("spectral.{i}"), |builder| {
                let shape = [tokens / 2 + 1, d, 2];
                builder.undecayed("gain", shape, Init::ComplexOne { deviation: 0.02 })
            })
        });
        let gains = gains.collect();
        let mut layers = Vec::with_capacity(config.n_layers);
        for i in 0..config.n_layers {
            builder.part(Part::Layer(i as u16));
            let layer = |builder: &mut Builder| {
                TransformerLayer::new(builder, d, config.n_heads, config.dropout)
            };
            layers.push(builder.scoped(&format!("layers.{i}"), layer));
        }
        builder.part(Part::Head);
        Ok(Self {
            patch_weight,
            patch_bias,
            positions,
            gains,
            layers,
            norm: LayerNorm::new(builder, "norm", d),
            head: Linear::new(builder, "head", d, config.num_classes),
            config: config.clone(),
        })
    }

    /// Features `[batch, tokens, d_model]` of windows, before the mean and the head.
    ///
    /// # Errors
    /// [`Error::Shape`] when the windows do not fit the model.
    pub fn features(&self, tape: &Tape<'_>, windows: &Var) -> Result<Var> {
        let config = &self.config;
        let mut x = tape.scoped("patch_embed", || {
            let dtype = tape.params().compute_type();
            let patches = patch::patchify(tape, windows, config.patch, dtype)?;
            let weight = tape.weight(self.patch_weight, dtype);
            let taps = config.n_channels * config.patch;
            let weight = elementwise::reshape(tape, &weight, &[config.d_model, taps])?;
            let bias = tape.param(self.patch_bias);
            let after = After { bias: Some(&bias), ..After::default() };
            let tokens = gemm::linear(tape, &patches, &weight, after)?;
            positions::add_positions(tape, &tokens, &tape.param(self.positions))
        })?;
        for (i, &gain) in self.gains.iter().enumerate() {
            let block = || spectral::spectral(tape, &x, &tape.param(gain));
            x = tape.scoped(&format!("spectral.{i}"), block)?;
        }
        for (i, layer) in self.layers.iter().enumerate() {
            x = tape.scoped(&format!("layers.{i}"), || match config.recompute {
                true => {
                    let layer = layer.clone();
                    tape.checkpoint(&x, move |tape, x| layer.forward(tape, x))
                }
                false => layer.forward(tape, &x),
            })?;
        }
        self.norm.forward(tape, &x)
    }
}

impl Model for EegFormer {
    fn name(&self) -> &'static str {
        "eegformer"
    }

    fn forward(&self, tape: &Tape<'_>, windows: &Var) -> Result<Var> {
        let config = &self.config;
        if windows.dims().get(1..) != Some(&[config.n_channels, config.window]) {
            let (channels, window) = (config.n_channels, config.window);
            let problem = format!("windows {} for [_, {channels}, {window}]", windows.shape());
            return Err(Error::shape("eegformer", problem));
        }
        let features = self.features(tape, windows)?;
        // Outputs, and with them the loss, are in the type of the master weights.
        let pooled = pool::mean_time(tape, &features)?;
        self.head.forward(tape, &elementwise::cast(tape, &pooled, tape.params().dtype())?)
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }
}
