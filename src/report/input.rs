//! What a report is made of. Plain data: the trainer fills it, the page draws it.

use crate::metrics::{Predictions, Scores};
use serde::{Deserialize, Serialize};

/// Everything a run has to show. What is empty or `None` is left out of the page.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The page's title, as in "Age from resting EEG".
    pub title: String,
    /// The result in one sentence; where empty, that of `scores` ([`Scores::headline`]).
    pub headline: String,
    /// Name and value of each fact about the run: model, parameters, data, device, seed, time.
    pub facts: Vec<(String, String)>,
    /// The run's settings, as TOML.
    pub settings: String,
    /// Losses, scores and learning rate over training.
    pub curves: Curves,
    /// Scores of one prediction per subject (or recording).
    pub scores: Option<Scores>,
    /// Scores of one prediction per window.
    pub window_scores: Option<Scores>,
    /// Names of the subjects that predictions refer to by number.
    pub subject_names: Vec<String>,
    /// The predictions behind `scores`.
    pub subjects: Option<Predictions>,
    /// The predictions behind `window_scores`.
    pub windows: Option<Predictions>,
    /// A value per channel, drawn on the scalp.
    pub channels: Option<ChannelMap>,
    /// What the model's spectral filters pass.
    pub spectral: Option<SpectralGain>,
    /// The folds of a cross-validation.
    pub folds: Vec<Fold>,
    /// Proof that no subject is in two splits: counts and lists, as plain text.
    pub split_proof: String,
    /// Recordings that were left out.
    pub skipped: Vec<Skipped>,
    /// Anything the reader should know.
    pub notes: Vec<String>,
}

/// Quantities over training as `[step, value]`, by rising step. Values that are not finite are left
/// out of the figures, and their number is told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Curves {
    /// What the loss is, as in "Huber loss of the standardised age"; "loss" where empty.
    pub loss_name: String,
    /// Training loss.
    pub train_loss: Vec<[f64; 2]>,
    /// Validation loss.
    pub validation_loss: Vec<[f64; 2]>,
    /// The validation score that chose the checkpoint.
    pub validation_score: Vec<[f64; 2]>,
    /// Its name with unit, as in "MAE (y)".
    pub score_name: String,
    /// The baseline's score on the validation subjects, drawn as a line.
    pub score_baseline: Option<f64>,
    /// Learning rate.
    pub learning_rate: Vec<[f64; 2]>,
    /// Step of the checkpoint that was kept.
    pub chosen_step: Option<u64>,
}

/// A value at each electrode.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelMap {
    /// What is shown, as in "Importance by channel ablation".
    pub title: String,
    /// The values' name with unit, as in "rise of the MAE (y)".
    pub label: String,
    /// The electrodes.
    pub channels: Vec<ChannelValue>,
}

/// One electrode of a [`ChannelMap`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChannelValue {
    /// The channel's name.
    pub name: String,
    /// Where it is on the unit sphere: x to the right ear, y to the nose, z to the vertex. Other
    /// lengths are scaled to 1; a position that is zero or not finite leaves the channel out.
    pub position: [f64; 3],
    /// Its value.
    pub value: f64,
}

/// Magnitude of learnt spectral filters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpectralGain {
    /// Frequencies, Hz, `[frequencies]`, rising.
    pub frequencies: Vec<f64>,
    /// Magnitude of the gain, `[frequencies, d_model]`; 1 passes a frequency unchanged.
    pub gain: Vec<f64>,
}

/// A recording that was left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its file.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// One fold of a cross-validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    /// Its name, as in "1".
    pub name: String,
    /// Number of training subjects.
    pub training_subjects: usize,
    /// Scores of its held-out subjects.
    pub scores: Scores,
}
