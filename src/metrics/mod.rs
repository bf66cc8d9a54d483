//! Scores and their uncertainty.
//!
//! # Layout
//! [`Predictions`] (of windows, then [`aggregated`](Predictions::aggregate) to subjects) ->
//! `regression`, `classification` (one weighted pass per resample) -> [`Bootstrap`] (subjects
//! drawn with replacement) -> [`Scores`] (every score beside its baseline and interval).
//! `curve` holds what figures need: ROC with its band, calibration.
//!
//! Nothing here returns NaN: a score that does not exist for the data at hand (the AUROC of one
//! class, the correlation of constant predictions) is `None`, and non-finite input is an error.

mod bootstrap;
mod classification;
mod curve;
mod predictions;
mod regression;
mod scores;
#[cfg(test)]
mod tests;

pub use bootstrap::{Bootstrap, Interval, quantile};
pub use curve::{CalibrationBin, Roc, RocBand, calibration, roc, roc_band};
pub use predictions::{Outputs, Predictions};
pub(crate) use scores::fixed;
pub use scores::{Baseline, Level, Score, Scores, Verdict, score};

use serde::{Deserialize, Serialize};

/// What is predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// A number.
    Regression {
        /// The label's name, as in "age".
        name: String,
        /// Its unit, as in "y"; empty where it has none.
        unit: String,
    },
    /// One of several classes.
    Classification {
        /// The label's name, as in "sex".
        name: String,
        /// Name of each class, in the order of the model's outputs. With two classes, the second
        /// is the positive one.
        classes: Vec<String>,
    },
}

/// One score. Definitions are those of scikit-learn and scipy unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean absolute error, in the label's unit.
    Mae,
    /// Root of the mean squared error, in the label's unit.
    Rmse,
    /// Coefficient of determination, 1 - SS_res / SS_tot.
    R2,
    /// Pearson's correlation of label and prediction.
    Pearson,
    /// Spearman's rank correlation, ties at their mid-rank.
    Spearman,
    /// RMSE / population standard deviation of the labels: the EEG Foundation Challenge's metric.
    Nrmse,
    /// Share of correct classes.
    Accuracy,
    /// Mean recall over the classes present among the labels.
    BalancedAccuracy,
    /// Area under the ROC curve, ties counted half; one against the rest and averaged over the
    /// classes where there are more than two.
    Auroc,
    /// Area under the precision-recall steps; averaged over the classes where more than two.
    AveragePrecision,
    /// F1 of the second of two classes; averaged over the classes where there are more.
    F1,
    /// Brier score: the mean of (p - y)² of the second of two classes; with more classes the
    /// squared differences are summed over them (Brier 1950).
    Brier,
    /// Mean negative log-likelihood, nats.
    LogLoss,
}

impl Metric {
    /// The scores of a regression, in the order they are reported.
    pub const REGRESSION: [Self; 6] =
        [Self::Mae, Self::Rmse, Self::R2, Self::Pearson, Self::Spearman, Self::Nrmse];
    /// The scores of a classification, in the order they are reported.
    pub const CLASSIFICATION: [Self; 7] = [
        Self::BalancedAccuracy,
        Self::Auroc,
        Self::Accuracy,
        Self::AveragePrecision,
        Self::F1,
        Self::Brier,
        Self::LogLoss,
    ];

    /// The usual name, as in "AUROC".
    pub fn name(self) -> &'static str {
        match self {
            Self::Mae => "MAE",
            Self::Rmse => "RMSE",
            Self::R2 => "R²",
            Self::Pearson => "Pearson r",
            Self::Spearman => "Spearman ρ",
            Self::Nrmse => "NRMSE",
            Self::Accuracy => "accuracy",
            Self::BalancedAccuracy => "balanced accuracy",
            Self::Auroc => "AUROC",
            Self::AveragePrecision => "average precision",
            Self::F1 => "F1",
            Self::Brier => "Brier score",
            Self::LogLoss => "log loss",
        }
    }

    /// Name in file and tag names, as in "balanced_accuracy".
    pub fn key(self) -> &'static str {
        match self {
            Self::Mae => "mae",
            Self::Rmse => "rmse",
            Self::R2 => "r2",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
            Self::Nrmse => "nrmse",
            Self::Accuracy => "accuracy",
            Self::BalancedAccuracy => "balanced_accuracy",
            Self::Auroc => "auroc",
            Self::AveragePrecision => "average_precision",
            Self::F1 => "f1",
            Self::Brier => "brier",
            Self::LogLoss => "log_loss",
        }
    }

    /// Whether more is better (else less is).
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Self::Mae | Self::Rmse | Self::Nrmse | Self::Brier | Self::LogLoss)
    }

    /// Whether the score is a correlation: a constant predictor has none, so it is held against 0.
    pub fn is_correlation(self) -> bool {
        matches!(self, Self::Pearson | Self::Spearman)
    }

    /// What the data must offer for the score to exist, as in "labels of at least two classes".
    pub fn needs(self) -> &'static str {
        match self {
            Self::R2 | Self::Nrmse => "labels that differ",
            Self::Pearson | Self::Spearman => "labels and predictions that differ",
            Self::BalancedAccuracy | Self::Auroc => "labels of at least two classes",
            Self::AveragePrecision | Self::F1 => "labels of the positive class",
            _ => "at least one prediction",
        }
    }

    /// This score of `predictions`, every sample counting once; `None` where it does not exist
    /// (see [`Metric::needs`]) or belongs to the other kind of task.
    pub fn of(self, predictions: &Predictions) -> Option<f64> {
        let prepared = Prepared::new(predictions);
        let place = prepared.metrics().iter().position(|&metric| metric == self)?;
        prepared.values(&vec![1.0; predictions.len()]).get(place).copied().flatten()
    }
}

/// Predictions sorted once, so that every resample is scored in linear time.
enum Prepared<'a> {
    Regression(regression::Prepared<'a>),
    Classification(classification::Prepared<'a>),
}

impl<'a> Prepared<'a> {
    fn new(predictions: &'a Predictions) -> Self {
        match predictions.outputs() {
            Outputs::Regression { truth, predicted } => {
                Self::Regression(regression::Prepared::new(truth, predicted))
            }
            Outputs::Classification { truth, probability, classes } => {
                Self::Classification(classification::Prepared::new(truth, probability, *classes))
            }
        }
    }

    fn metrics(&self) -> &'static [Metric] {
        match self {
            Self::Regression(_) => &Metric::REGRESSION,
            Self::Classification(_) => &Metric::CLASSIFICATION,
        }
    }

    /// Every score, in the order of `metrics`, sample i counted `weights[i]` times.
    fn values(&self, weights: &[f64]) -> Vec<Option<f64>> {
        match self {
            Self::Regression(prepared) => prepared.values(weights).to_vec(),
            Self::Classification(prepared) => prepared.values(weights).to_vec(),
        }
    }
}

/// Positions of `values` in ascending order; equal values keep their order.
fn ascending(values: impl Iterator<Item = f64>) -> Vec<usize> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    order
}
