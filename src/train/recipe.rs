//! From settings to what is built: the model, the update rule, the loss, the step.

use super::dataset::Dataset;
use super::step::{Objective, StepSpec};
use crate::backend::Machine;
use crate::config::{Amp, ClassWeights, LossName, ModelName, OptimizerName, Recompute, Settings};
use crate::metrics::Task;
use crate::model::{EegFormerConfig, ModelConfig, ShallowConfig};
use crate::ops::loss::Pointwise;
use crate::optim::Rule;
use crate::{DType, Error, Result};

/// Windows of one evaluation pass where no training says how many fit.
pub const EVAL_BATCH: usize = 32;

/// Windows of one evaluation pass beside a training: as many as a forward pass of it takes, since
/// what it keeps for its backward pass is more than they need; with small ones, up to all of an
/// update's.
pub fn eval_batch(batch: usize, accumulation: usize) -> usize {
    batch.max(EVAL_BATCH.min(batch * accumulation))
}

/// The model the settings describe, for these windows.
pub fn model_config(
    settings: &Settings,
    n_channels: usize,
    window: usize,
    outputs: usize,
) -> ModelConfig {
    let m = &settings.model;
    match m.name {
        ModelName::EegFormer => ModelConfig::EegFormer(EegFormerConfig {
            n_channels,
            window,
            num_classes: outputs,
            d_model: m.d_model,
            n_heads: m.n_heads,
            n_layers: m.n_layers,
            patch: m.patch,
            dropout: m.dropout as f32,
            n_spectral: m.n_spectral,
            recompute: settings.train.recompute == Recompute::Layers,
        }),
        ModelName::Shallow => ModelConfig::Shallow(ShallowConfig {
            n_channels,
            window,
            num_classes: outputs,
            filters: m.shallow_filters,
            kernel: m.shallow_kernel,
            pool: m.shallow_pool,
            pool_stride: m.shallow_pool_stride,
            dropout: m.dropout as f32,
        }),
    }
}

/// The update rule the settings describe.
pub fn rule(settings: &Settings) -> Rule {
    let t = &settings.train;
    match t.optimizer {
        OptimizerName::AdamW => {
            Rule::AdamW { beta1: t.betas[0], beta2: t.betas[1], epsilon: t.eps }
        }
        OptimizerName::Sgd => Rule::Sgd { momentum: t.momentum, nesterov: false },
    }
}

/// The loss for the target, with class weights of the training windows.
fn objective(settings: &Settings, task: &Task, labels: &[f64]) -> Result<Objective> {
    let t = &settings.train;
    let Task::Classification { classes, .. } = task else {
        return match t.loss {
            LossName::Auto | LossName::Mse => Ok(Objective::Pointwise(Pointwise::Mse)),
            LossName::Huber => Ok(Objective::Pointwise(Pointwise::Huber { delta: 1.0 })),
            LossName::L1 => Ok(Objective::Pointwise(Pointwise::L1)),
            other => {
                let problem = format!("{other} is a loss of classes, the target is a number");
                Err(Error::input("train.loss", problem, "choose auto, mse, huber or l1"))
            }
        };
    };
    if matches!(t.loss, LossName::Mse | LossName::Huber | LossName::L1) {
        let problem = format!("{} is a loss of numbers, the target has classes", t.loss);
        return Err(Error::input("train.loss", problem, "choose auto, bce or ce"));
    }
    let mut counts = vec![0.0f64; classes.len()];
    labels.iter().for_each(|&label| counts[label as usize] += 1.0);
    let weights: Vec<f64> = match &t.class_weights {
        ClassWeights::Off => vec![1.0; classes.len()],
        ClassWeights::Given(all) if all.len() == classes.len() => all.clone(),
        ClassWeights::Given(all) => {
            let problem = format!("{} weights for {} classes", all.len(), classes.len());
            let remedy = format!("give one for each of {}", classes.join(", "));
            return Err(Error::input("train.class_weights", problem, remedy));
        }
        ClassWeights::Balanced => {
            let n = labels.len() as f64 / classes.len() as f64;
            counts.iter().map(|count| n / count.max(1.0)).collect()
        }
    };
    if classes.len() == 2 && t.loss != LossName::Ce {
        let positive_weight = (weights[1] / weights[0]) as f32;
        return Ok(Objective::Pointwise(Pointwise::BceWithLogits { positive_weight }));
    }
    if classes.len() == 2 {
        let problem = "two classes have one logit here";
        return Err(Error::input("train.loss", problem, "choose auto or bce"));
    }
    let weights = weights.iter().map(|&w| w as f32).collect();
    Ok(Objective::CrossEntropy { weights, smoothing: t.label_smoothing as f32 })
}

/// Type of activations for a setting of mixed precision, which CPUs do not have.
pub fn compute_type(amp: Amp, machine: Machine) -> Option<DType> {
    if machine == Machine::Cpu {
        return None;
    }
    match amp {
        Amp::Off | Amp::Tf32 => None,
        Amp::Bf16 => Some(DType::Bf16),
        Amp::F16 => Some(DType::F16),
    }
}

/// The step of a run: what is allocated and recorded, for these training labels.
pub fn step_spec(
    settings: &Settings,
    data: &Dataset,
    labels: &[f64],
    (batch, machine): (usize, Machine),
) -> Result<StepSpec> {
    let outputs = data.target.outputs();
    Ok(StepSpec {
        model: model_config(settings, data.channels().len(), data.length, outputs),
        batch,
        accumulation: settings.train.accumulation,
        // A batch of 0 is one to be planned, with its evaluation.
        eval_batch: eval_batch(batch.max(1), settings.train.accumulation),
        objective: objective(settings, &data.target.task, labels)?,
        rule: rule(settings),
        average: settings.train.ema.is_some(),
        dtype: DType::F32,
        compute: compute_type(settings.train.amp, machine),
        seed: settings.train.seed,
    })
}
