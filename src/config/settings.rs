//! The typed settings of a run, section by section as in its TOML file.
//!
//! Every field has a value at all times: where "no value" is meaningful it is written as a word
//! ("off", "auto"), so that a recorded run says everything that was in force.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{
    Amp, BadChannels, Bytes, ClassWeights, DeviceName, Gemm, LossName, ModelName, Notch,
    OptimizerName, Recompute, Reference, Route, Scale, ScheduleName, Warmup, auto, generated, off,
};
pub use crate::data::augment::Settings as AugmentSettings;

/// Everything that decides what a run does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the EEG comes from and how it is cut into windows.
    pub data: DataSettings,
    /// The model's shape.
    pub model: ModelSettings,
    /// How it is trained.
    pub train: TrainSettings,
    /// What is done to training windows, and how often.
    pub augment: AugmentSettings,
    /// What it runs on.
    pub device: DeviceSettings,
    /// Where results go and how much is said.
    pub run: RunSettings,
}

/// `[data]`: where the EEG comes from and how it is cut into windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// A BIDS folder. None ("generated"): EEG made by the generator.
    #[serde(with = "generated")]
    pub dir: Option<PathBuf>,
    /// The participants.tsv column to learn: numeric, or of two or more classes.
    pub target: String,
    /// BIDS tasks to read, as in "RestingState"; empty for all.
    pub tasks: Vec<String>,
    /// Channels the model sees, by name and in this order; empty for every EEG channel.
    pub channels: Vec<String>,
    /// Length of a window, s.
    pub window_s: f64,
    /// From one window's start to the next one's, s.
    pub stride_s: f64,
    /// Texts of the events that windows are cut around; empty to cut the whole recording.
    pub events: Vec<String>,
    /// From an event to the start of its window, s; negative for before.
    pub event_offset_s: f64,
    /// High-pass corner, Hz. None ("off"): no high-pass.
    #[serde(with = "off")]
    pub low_hz: Option<f64>,
    /// Low-pass corner, Hz. None ("off"): no low-pass beyond that of resampling.
    #[serde(with = "off")]
    pub high_hz: Option<f64>,
    /// The mains filter: "auto", "off" or Hz.
    pub notch_hz: Notch,
    /// Sampling rate of the windows, Hz. None ("off"): the recordings' own, which must agree.
    #[serde(with = "off")]
    pub resample_hz: Option<f64>,
    /// The reference: "average", "recorded" or a list of channel names.
    pub reference: Reference,
    /// What becomes of bad channels.
    pub bad_channels: BadChannels,
    /// How µV become numbers near 1.
    pub scale: Scale,
    /// Scaled samples are limited to ± this. None ("off"): not limited.
    #[serde(with = "off")]
    pub clip: Option<f64>,
    /// Folder of the window cache. None ("auto"): chosen by the cache, and said.
    #[serde(with = "auto")]
    pub cache_dir: Option<PathBuf>,
    /// Share of the subjects that chooses the checkpoint, in [0, 1).
    pub val_fraction: f64,
    /// Share of the subjects that is only ever scored once, in [0, 1).
    pub test_fraction: f64,
    /// Cross-validation over this many folds of subjects; 0 for a single split.
    pub folds: usize,
    /// Draw training windows so that classes, or quintiles of a number, come equally often.
    pub balanced: bool,
    /// Shuffle the labels among subjects: every score must fall to chance.
    pub shuffle_labels: bool,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            dir: None,
            target: "age".to_string(),
            tasks: Vec::new(),
            channels: Vec::new(),
            window_s: 2.0,
            stride_s: 2.0,
            events: Vec::new(),
            event_offset_s: 0.0,
            low_hz: Some(0.5),
            high_hz: Some(45.0),
            notch_hz: Notch::Auto,
            resample_hz: Some(100.0),
            reference: Reference::Average,
            bad_channels: BadChannels::Interpolate,
            scale: Scale::Recording,
            clip: Some(15.0),
            cache_dir: None,
            val_fraction: 0.15,
            test_fraction: 0.15,
            folds: 0,
            balanced: false,
            shuffle_labels: false,
        }
    }
}

/// `[model]`: the model's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// Which model.
    pub name: ModelName,
    /// Width of a token.
    pub d_model: usize,
    /// Attention heads; each is d_model / n_heads wide, at most 128.
    pub n_heads: usize,
    /// Transformer layers.
    pub n_layers: usize,
    /// Length of a patch, samples; one token each.
    pub patch: usize,
    /// Probability that an activation is dropped in training, in [0, 1).
    pub dropout: f64,
    /// Spectral blocks ahead of the transformer.
    pub n_spectral: usize,
    /// ShallowFBCSPNet: temporal, and spatial, filters.
    pub shallow_filters: usize,
    /// ShallowFBCSPNet: length of a temporal filter, samples.
    pub shallow_kernel: usize,
    /// ShallowFBCSPNet: length of the mean pool, samples.
    pub shallow_pool: usize,
    /// ShallowFBCSPNet: step of the mean pool, samples.
    pub shallow_pool_stride: usize,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            name: ModelName::EegFormer,
            d_model: 128,
            n_heads: 8,
            n_layers: 6,
            patch: 1,
            dropout: 0.1,
            n_spectral: 1,
            shallow_filters: 40,
            shallow_kernel: 25,
            shallow_pool: 75,
            shallow_pool_stride: 15,
        }
    }
}

/// `[train]`: how the model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// Passes over the training windows.
    pub epochs: u64,
    /// Stop after this many optimizer steps, whatever `epochs` says. None ("off"): no such limit.
    #[serde(with = "off")]
    pub max_steps: Option<u64>,
    /// Windows per forward pass. None ("auto"): what the memory planner finds to fit.
    #[serde(with = "auto")]
    pub batch: Option<usize>,
    /// Forward passes per optimizer step.
    pub accumulation: usize,
    /// Peak learning rate of the backbone.
    pub lr: f64,
    /// Peak learning rate of the head. None ("auto"): `lr`.
    #[serde(with = "auto")]
    pub head_lr: Option<f64>,
    /// Learning rate at the end of the schedule.
    pub min_lr: f64,
    /// Its course in between.
    pub schedule: ScheduleName,
    /// Length of the warm-up: steps, or a share of all steps.
    pub warmup: Warmup,
    /// Decoupled weight decay; biases and norms are exempt.
    pub weight_decay: f64,
    /// AdamW's decay rates of the two moments.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
    /// The optimizer.
    pub optimizer: OptimizerName,
    /// SGD's momentum.
    pub momentum: f64,
    /// Limit of the gradient's global L2 norm. None ("off"): not limited.
    #[serde(with = "off")]
    pub clip: Option<f64>,
    /// Share of a label that is spread over all classes, in [0, 1).
    pub label_smoothing: f64,
    /// The loss.
    pub loss: LossName,
    /// Weights of the classes in the loss: "balanced", "off" or a list.
    pub class_weights: ClassWeights,
    /// Decay per step of the moving average of the weights, in (0, 1). None ("off"): no average.
    #[serde(with = "off")]
    pub ema: Option<f64>,
    /// Stop after this many epochs without a better validation score. None ("off"): never.
    #[serde(with = "off")]
    pub patience: Option<u64>,
    /// A score counts as better only when it is better by more than this.
    pub min_delta: f64,
    /// Most validation windows after an epoch, as a share of those to train on, in (0, 1]; never fewer
    /// than 512, where there are so many.
    pub validation_share: f64,
    /// Save the last state this often, s. None ("off"): only at the end of epochs.
    #[serde(with = "off")]
    pub checkpoint_every_s: Option<f64>,
    /// Save the last state every so many steps. None ("off"): not by steps.
    #[serde(with = "off")]
    pub checkpoint_every_steps: Option<u64>,
    /// Storage of activations in mixed precision.
    pub amp: Amp,
    /// What is computed again in backward instead of being kept.
    pub recompute: Recompute,
    /// Seed of everything random.
    pub seed: u64,
    /// Progressive unfreezing: the head alone first, then one more layer every so many epochs.
    /// None ("off"): everything trains from the start.
    #[serde(with = "off")]
    pub unfreeze: Option<u64>,
    /// Threads that fill batches ahead of the step.
    pub workers: usize,
    /// Threads that compute on the CPU. None ("auto"): all cores.
    #[serde(with = "auto")]
    pub threads: Option<usize>,
    /// Checkpoint whose backbone is the starting point. None ("off"): random weights.
    #[serde(with = "off")]
    pub init: Option<PathBuf>,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            epochs: 30,
            max_steps: None,
            batch: None,
            accumulation: 1,
            lr: 1e-3,
            head_lr: None,
            min_lr: 1e-6,
            schedule: ScheduleName::Cosine,
            warmup: Warmup::Fraction(0.05),
            weight_decay: 0.05,
            betas: [0.9, 0.95],
            eps: 1e-8,
            optimizer: OptimizerName::AdamW,
            momentum: 0.9,
            clip: Some(1.0),
            label_smoothing: 0.0,
            loss: LossName::Auto,
            class_weights: ClassWeights::Balanced,
            ema: None,
            patience: Some(10),
            min_delta: 0.0,
            validation_share: 0.05,
            checkpoint_every_s: Some(600.0),
            checkpoint_every_steps: None,
            amp: Amp::Off,
            recompute: Recompute::None,
            seed: 1,
            unfreeze: None,
            workers: 2,
            threads: None,
            init: None,
        }
    }
}

/// `[device]`: what the run computes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSettings {
    /// Which device.
    pub device: DeviceName,
    /// Memory the run may take on it, as in "6GB". None ("auto"): what is free.
    #[serde(with = "auto")]
    pub memory: Option<Bytes>,
    /// Whose matrix product.
    pub gemm: Gemm,
    /// Preferences "op=device" that go before the built-in ones.
    pub route: Vec<Route>,
    /// Copies to a card pass through page-locked memory, so that they overlap with kernels.
    pub pinned: bool,
}

impl Default for DeviceSettings {
    fn default() -> Self {
        Self {
            device: DeviceName::Auto,
            memory: None,
            gemm: Gemm::Auto,
            route: Vec::new(),
            pinned: true,
        }
    }
}

/// `[run]`: where results go and how much is said.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// The profile these settings stand on. None ("off"): the defaults alone.
    #[serde(with = "off")]
    pub profile: Option<String>,
    /// The run's folder. None ("auto"): a new one under `runs/`, by time, model and target.
    #[serde(with = "auto")]
    pub dir: Option<PathBuf>,
    /// Name in reports. None ("auto"): the folder's.
    #[serde(with = "auto")]
    pub name: Option<String>,
    /// Print nothing but errors and the final line.
    pub quiet: bool,
    /// Print JSON lines on stdout, for programs.
    pub json: bool,
}
