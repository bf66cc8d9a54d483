//! ShallowFBCSPNet (Schirrmeister et al. 2017): the baseline a foundation model must beat.

use serde::{Deserialize, Serialize};

use super::Model;
use crate::nn::params::{Builder, Init, ParamId, Part};
use crate::ops::batchnorm::{Norm, batchnorm};
use crate::ops::conv::{Steps, conv1d};
use crate::ops::dropout::dropout;
use crate::ops::elementwise::{Function, apply, reshape};
use crate::ops::filters::compose;
use crate::ops::gemm::{After, linear};
use crate::ops::pool::{Kind, pool};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Extents of a [`Shallow`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShallowConfig {
    /// Channels of a window.
    pub n_channels: usize,
    /// Samples of a window.
    pub window: usize,
    /// Outputs.
    pub num_classes: usize,
    /// Temporal, and spatial, filters.
    pub filters: usize,
    /// Samples of a temporal filter.
    pub kernel: usize,
    /// Samples of a pooling window.
    pub pool: usize,
    /// Samples between pooling windows.
    pub pool_stride: usize,
    /// Probability of a feature being dropped.
    pub dropout: f32,
}

impl Default for ShallowConfig {
    fn default() -> Self {
        Self {
            n_channels: 129,
            window: 200,
            num_classes: 1,
            filters: 40,
            kernel: 25,
            pool: 75,
            pool_stride: 15,
            dropout: 0.5,
        }
    }
}

impl ShallowConfig {
    /// Samples after filtering and after pooling.
    fn times(&self) -> Result<(usize, usize)> {
        let filtered = (self.window + 1).saturating_sub(self.kernel);
        if self.kernel == 0 || self.pool == 0 || self.pool_stride == 0 || self.pool > filtered {
            let problem = format!(
                "a window of {} samples leaves nothing after a filter of {} and a pool of {}",
                self.window, self.kernel, self.pool
            );
            let remedy = "use longer windows, or smaller model.kernel and model.pool";
            return Err(Error::input("model.kernel", problem, remedy));
        }
        if self.filters == 0 || self.n_channels == 0 || self.num_classes == 0 {
            let problem = "no filters, no channels or no outputs";
            return Err(Error::input("model.filters", problem, "give at least one"));
        }
        Ok((filtered, (filtered - self.pool) / self.pool_stride + 1))
    }
}

/// The model, with braindecode's parameter names and shapes.
#[derive(Debug)]
pub struct Shallow {
    config: ShallowConfig,
    time: (ParamId, ParamId),
    space: ParamId,
    norm: [ParamId; 4],
    head: (ParamId, ParamId),
}

impl Shallow {
    /// Describes the parameters.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field that does not fit.
    pub fn new(builder: &mut Builder, config: &ShallowConfig) -> Result<Self> {
        let (_, pooled) = config.times()?;
        let (f, kernel, channels) = (config.filters, config.kernel, config.n_channels);
        builder.part(Part::Embedding);
        let (time, space) = builder.scoped("conv_time_spat", |builder| {
            let time = builder.scoped("conv_time", |builder| {
                let init = Init::glorot(kernel, f * kernel);
                let weight = builder.param("weight", [f, 1, kernel, 1], init);
                (weight, builder.param("bias", [f], Init::Constant(0.0)))
            });
            let space = builder.scoped("conv_spat", |builder| {
                let init = Init::glorot(f * channels, f * channels);
                builder.param("weight", [f, f, 1, channels], init)
            });
            (time, space)
        });
        let norm = builder.scoped("bnorm", |builder| {
            [
                builder.param("weight", [f], Init::Constant(1.0)),
                builder.param("bias", [f], Init::Constant(0.0)),
                builder.buffer("running_mean", [f], Init::Constant(0.0)),
                builder.buffer("running_var", [f], Init::Constant(1.0)),
            ]
        });
        builder.part(Part::Head);
        let head = builder.scoped("final_layer.conv_classifier", |builder| {
            let shape = [config.num_classes, f, pooled, 1];
            let init = Init::glorot(f * pooled, config.num_classes * pooled);
            let weight = builder.param("weight", shape, init);
            (weight, builder.param("bias", [config.num_classes], Init::Constant(0.0)))
        });
        Ok(Self { config: config.clone(), time, space, norm, head })
    }

    fn filtered(&self, tape: &Tape<'_>, windows: &Var) -> Result<Var> {
        let ShallowConfig { filters: f, kernel, n_channels, .. } = self.config;
        let bank = reshape(tape, &tape.param(self.time.0), &[f, kernel])?;
        let mix = reshape(tape, &tape.param(self.space), &[f, f, n_channels])?;
        let (weight, bias) = compose(tape, &bank, &tape.param(self.time.1), &mix)?;
        conv1d(tape, windows, &weight, Some(&bias), Steps::default())
    }
}

impl Model for Shallow {
    fn name(&self) -> &'static str {
        "shallow"
    }

    fn forward(&self, tape: &Tape<'_>, windows: &Var) -> Result<Var> {
        let config = &self.config;
        if windows.dims().get(1..) != Some(&[config.n_channels, config.window]) {
            let (channels, window) = (config.n_channels, config.window);
            let problem = format!("windows {} for [_, {channels}, {window}]", windows.shape());
            return Err(Error::shape("shallow", problem));
        }
        let x = tape.scoped("conv_time_spat", || self.filtered(tape, windows))?;
        let norm = Norm {
            gamma: tape.param(self.norm[0]),
            beta: tape.param(self.norm[1]),
            running_mean: tape.params().value(self.norm[2]),
            running_var: tape.params().value(self.norm[3]),
        };
        let x = tape.scoped("bnorm", || batchnorm(tape, &x, &norm, 1e-5, 0.1))?;
        let power = tape.scoped("power", || {
            let squared = apply(tape, Function::Square, &x)?;
            let pooled = pool(tape, &squared, Kind::Average, config.pool, config.pool_stride)?;
            apply(tape, Function::Log, &pooled)
        })?;
        let kept = dropout(tape, &power, config.dropout)?;
        let features = kept.tensor().numel() / kept.dims()[0];
        let flat = reshape(tape, &kept, &[kept.dims()[0], features])?;
        let weight = tape.param(self.head.0);
        let weight = reshape(tape, &weight, &[config.num_classes, features])?;
        let bias = tape.param(self.head.1);
        linear(tape, &flat, &weight, After { bias: Some(&bias), ..After::default() })
    }

    fn layers(&self) -> usize {
        0
    }
}
