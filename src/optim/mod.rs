//! Optimizers over the flat arrays of parameters.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::nn::params::{Params, Part, Spec};
use crate::ops::elementwise::Fill;
use crate::ops::optimizer::{AdamW, BLOCK, CONTROL, GradNorm, HYPER, Sgd};
use crate::tensor::Tensor;
use crate::{DType, Result, Tape};

/// Which update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Rule {
    /// AdamW.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        epsilon: f64,
    },
    /// Gradient descent with momentum.
    Sgd {
        /// Decay of the velocity.
        momentum: f64,
        /// Look ahead.
        nesterov: bool,
    },
}

impl Rule {
    /// Names of the arrays the rule keeps, each like the trained parameters.
    pub fn state_names(&self) -> &'static [&'static str] {
        match self {
            Self::AdamW { .. } => &["first_moment", "second_moment"],
            Self::Sgd { .. } => &["velocity"],
        }
    }
}

/// What one group of parameters gets in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay, where the parameter has it.
    pub decay: f64,
    /// False: left alone.
    pub trained: bool,
}

/// What one step gets besides rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Control {
    /// Optimizer step, counted from 1.
    pub step: u64,
    /// Gradient norm to clip to; 0 for none.
    pub clip: f64,
    /// What the loss was multiplied by before the backward pass.
    pub loss_scale: f64,
    /// Decay of the averaged weights, where kept.
    pub average: f64,
}

/// Update rule and its state on the device.
#[derive(Debug)]
pub struct Optimizer {
    rule: Rule,
    /// One or two arrays like the trained parameters.
    state: Vec<Tensor>,
    average: Option<Tensor>,
    groups: Tensor,
    hyper: Tensor,
    control: Tensor,
    norm: Tensor,
    layers: usize,
    /// Memory of [`Optimizer::prepare`], used again in every step.
    rates: Mutex<Vec<f64>>,
}

/// Position of a part in the table of rates: embedding, layers, head.
fn part_index(part: Part, layers: usize) -> usize {
    match part {
        Part::Embedding => 0,
        Part::Layer(i) => 1 + i as usize,
        Part::Head => 1 + layers,
    }
}

impl Optimizer {
    /// State for all parameters of a model of `layers` layers; `average` keeps averaged weights,
    /// which start as the present ones.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(params: &Params, rule: Rule, layers: usize, average: bool) -> Result<Self> {
        let (backend, dtype) = (params.backend(), params.dtype());
        let n = params.grads().numel();
        let tape = Tape::inference(params);
        let mut state = Vec::new();
        for name in rule.state_names() {
            let array = backend.empty([n], dtype, &format!("optimizer.{name}"))?;
            tape.run(Fill::new(n, 0.0), &[], &[&array])?;
            state.push(array);
        }
        let average = match average {
            true => {
                let array = backend.empty([n], dtype, "optimizer.average")?;
                crate::ops::elementwise::copy(&tape, &params.trained_values()?, &array)?;
                Some(array)
            }
            false => None,
        };
        let group_of =
            |spec: &Spec| (2 * part_index(spec.part, layers) + usize::from(spec.decay)) as i32;
        let groups = params.block_groups(group_of);
        Ok(Self {
            rule,
            state,
            average,
            groups: backend.tensor([n / BLOCK], &groups, "optimizer.groups")?,
            hyper: backend.empty([2 * (layers + 2), HYPER], dtype, "optimizer.hyper")?,
            control: backend.empty([CONTROL], dtype, "optimizer.control")?,
            norm: backend.empty([2], dtype, "optimizer.norm")?,
            layers,
            rates: Mutex::default(),
        })
    }

    /// Writes what the next step reads: `rates` by part.
    ///
    /// # Errors
    /// As [`crate::backend::Backend::upload`].
    pub fn prepare(
        &self,
        params: &Params,
        control: Control,
        rates: impl Fn(Part) -> Rates,
    ) -> Result<()> {
        let mut hyper = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        hyper.clear();
        for index in 0..self.layers + 2 {
            let part = match index {
                0 => Part::Embedding,
                i if i <= self.layers => Part::Layer((i - 1) as u16),
                _ => Part::Head,
            };
            let Rates { lr, decay, trained } = rates(part);
            for decay in [0.0, decay] {
                hyper.extend([lr, decay, f64::from(trained)]);
            }
        }
        params.write_floats(&self.hyper, &hyper)?;
        let step = i32::try_from(control.step).unwrap_or(i32::MAX);
        let (bias1, bias2) = match self.rule {
            Rule::AdamW { beta1, beta2, .. } => (1.0 - beta1.powi(step), 1.0 - beta2.powi(step)),
            Rule::Sgd { .. } => (1.0, 1.0),
        };
        let Control { clip, loss_scale, average, .. } = control;
        params.write_floats(&self.control, &[clip, 1.0 / loss_scale, average, bias1, bias2])
    }

    /// Enqueues norm, clip and update.
    ///
    /// # Errors
    /// As [`Tape::run`].
    pub fn enqueue(&self, tape: &Tape<'_>) -> Result<()> {
        tape.scoped("optimizer", || self.enqueue_update(tape))
    }

    fn enqueue_update(&self, tape: &Tape<'_>) -> Result<()> {
        let params = tape.params();
        let (values, grads) = (params.trained_values()?, params.grads());
        let n = crate::ops::size(grads.numel());
        let tables = [grads, &self.groups, &self.hyper, &self.control];
        tape.run(GradNorm { n }, &tables, &[&self.norm])?;
        let inputs = [grads, &self.groups, &self.hyper, &self.control, &self.norm];
        let mut outputs = vec![&values];
        outputs.extend(&self.state);
        outputs.extend(&self.average);
        match self.rule {
            Rule::AdamW { beta1, beta2, epsilon } => {
                tape.run(AdamW { n, pad: 0, beta1, beta2, epsilon }, &inputs, &outputs)
            }
            Rule::Sgd { momentum, nesterov } => {
                let op = Sgd { n, momentum: momentum as f32, nesterov: nesterov.into() };
                tape.run(op, &inputs, &outputs)
            }
        }
    }

    /// Gradient norm of the last step, before clipping, and the factor that followed from it `[2]`.
    pub fn norm_tensor(&self) -> &Tensor {
        &self.norm
    }

    /// Gradient norm of the last step, before clipping.
    ///
    /// # Errors
    /// As [`crate::backend::Backend::download`].
    pub fn norm(&self, params: &Params) -> Result<f64> {
        Ok(f64::from(params.read_floats(&self.norm)?[0]))
    }

    /// Starts the averaged weights, where kept, from the present ones.
    ///
    /// # Errors
    /// As [`Tape::run`].
    pub fn restart_average(&self, params: &Params) -> Result<()> {
        let Some(average) = &self.average else { return Ok(()) };
        crate::ops::elementwise::copy(&Tape::inference(params), &params.trained_values()?, average)
    }

    /// Averaged weights `[n]`, where kept.
    pub fn average(&self) -> Option<&Tensor> {
        self.average.as_ref()
    }

    /// State to save, by name: arrays like the trained parameters.
    pub fn arrays(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let names = self.rule.state_names();
        let average = self.average.as_ref().map(|tensor| ("average", tensor));
        names.iter().copied().zip(&self.state).chain(average)
    }

    /// Bytes per element of what it holds, for reports.
    pub fn dtype(&self) -> DType {
        self.norm.dtype()
    }
}
