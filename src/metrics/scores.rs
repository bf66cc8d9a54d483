//! Every score beside the baseline's and the interval of the difference.

use super::{Bootstrap, Interval, Metric, Outputs, Predictions, Prepared, Task, classification};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// The predictor that knows the training labels and no EEG.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean of the training labels.
    Mean(f64),
    /// The share of each class among the training labels: the class predicted is the most frequent
    /// one, the probabilities are the shares.
    Frequencies(Vec<f64>),
}

impl Baseline {
    /// The mean predictor of these training labels.
    ///
    /// # Errors
    /// No label, or one that is not finite.
    pub fn mean(training_labels: &[f64]) -> Result<Self> {
        let mean = training_labels.iter().sum::<f64>() / training_labels.len() as f64;
        if !mean.is_finite() {
            return Err(Error::input(
                "training labels",
                format!("the mean of {} labels is not a number", training_labels.len()),
                "leave subjects without a label out of the training set",
            ));
        }
        Ok(Self::Mean(mean))
    }

    /// The majority class of these training labels.
    ///
    /// # Errors
    /// No label, or a class that is not below `classes`.
    pub fn majority(training_labels: &[usize], classes: usize) -> Result<Self> {
        let mut counts = vec![0.0; classes];
        for &class in training_labels {
            *counts.get_mut(class).ok_or_else(|| {
                Error::input(
                    "training labels",
                    format!("class {class} of {classes}"),
                    "number the classes from 0",
                )
            })? += 1.0;
        }
        if training_labels.is_empty() {
            return Err(Error::input(
                "training labels",
                "there are none",
                "give the training set at least one labelled subject",
            ));
        }
        let n = training_labels.len() as f64;
        Ok(Self::Frequencies(counts.iter().map(|count| count / n).collect()))
    }

    /// What the baseline is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mean(_) => "mean predictor",
            Self::Frequencies(_) => "majority class",
        }
    }

    /// The baseline's predictions of the same samples.
    fn predict(&self, predictions: &Predictions) -> Result<Predictions> {
        let (subject, n) = (predictions.subject().to_vec(), predictions.len());
        match (self, predictions.outputs()) {
            (Self::Mean(mean), Outputs::Regression { truth, .. }) => {
                Predictions::regression(subject, truth.clone(), vec![*mean; n])
            }
            (Self::Frequencies(shares), Outputs::Classification { truth, classes, .. }) => {
                let rows = shares.repeat(n);
                Predictions::classification(subject, truth.clone(), rows, *classes)
            }
            _ => Err(Error::shape("score", "the baseline is of the other kind of task")),
        }
    }
}

/// What one prediction stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// One prediction per subject (or per recording, where labels change within subjects).
    Subject,
    /// One prediction per window.
    Window,
}

/// What the interval of the improvement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is above zero.
    Beats,
    /// The interval holds zero.
    DoesNotBeat,
    /// The whole interval is below zero.
    Worse,
    /// The whole interval is on one side of zero, but of too few subjects to mean what it says.
    TooFew,
    /// There is no interval.
    Unknown,
}

/// One score beside the baseline's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Which.
    pub metric: Metric,
    /// The model's; `None` where the data does not define it (see [`Metric::needs`]).
    pub value: Option<f64>,
    /// Its bootstrap interval; `None` with fewer than two subjects (of a class), or where more than
    /// one in ten resamples leave the score undefined.
    pub interval: Option<Interval>,
    /// The baseline's; `None` for correlations, which a constant has not.
    pub baseline: Option<f64>,
    /// How much better than the baseline (than 0 for correlations), positive when better whichever
    /// way the metric points.
    pub improvement: Option<f64>,
    /// Interval of the improvement, model and baseline scored on the same resamples.
    pub improvement_interval: Option<Interval>,
    /// Too few subjects, or too few of a class, for a verdict.
    #[serde(default)]
    pub too_few: bool,
    /// Of too few subjects all resamples agree, as where all are predicted as one class.
    #[serde(default)]
    pub is_same: bool,
}

impl Score {
    /// What the interval of the improvement says.
    pub fn verdict(&self) -> Verdict {
        match self.improvement_interval {
            None => Verdict::Unknown,
            Some(Interval { low, high }) if low <= 0.0 && high >= 0.0 => Verdict::DoesNotBeat,
            // Too narrow as it is, an interval that holds zero says enough; another says nothing.
            Some(_) if self.too_few => Verdict::TooFew,
            Some(Interval { low, .. }) if low > 0.0 => Verdict::Beats,
            Some(_) => Verdict::Worse,
        }
    }

    /// The verdict in words, as in "beats the mean predictor".
    pub fn verdict_text(&self, baseline: &str) -> String {
        if self.value.is_none() {
            return format!("undefined: needs {}", self.metric.needs());
        }
        let text = match (self.verdict(), self.metric.is_correlation()) {
            (Verdict::Beats, true) => "above zero",
            (Verdict::DoesNotBeat, true) => "not above zero",
            (Verdict::Worse, true) => "below zero",
            (Verdict::Beats, false) => return format!("beats the {baseline}"),
            (Verdict::DoesNotBeat, false) => return format!("does not beat the {baseline}"),
            (Verdict::Worse, false) => return format!("worse than the {baseline}"),
            (Verdict::TooFew, _) => "too few subjects to tell",
            // One that was left out for being a point, see `score`.
            (Verdict::Unknown, _) if self.is_same => {
                "no interval: the few subjects give the same score however they are drawn"
            }
            (Verdict::Unknown, _) => "no interval: too few subjects, or too few of a class",
        };
        text.to_string()
    }

    /// Decimals that show two digits of the interval's half-width (of the value where there is no
    /// interval), at most 3; at least 2 of what has no unit and is read against 1.
    pub fn decimals(&self) -> usize {
        let width = match (self.interval, self.value) {
            (Some(i), _) if i.high > i.low => (i.high - i.low) / 2.0,
            (_, Some(value)) if value != 0.0 => value.abs() / 10.0,
            _ => 0.01,
        };
        let least = if matches!(self.metric, Metric::Mae | Metric::Rmse) { 0.0 } else { 2.0 };
        (1.0 - width.log10().floor()).clamp(least, 3.0) as usize
    }
}

/// The scores of one set of predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// What was predicted.
    pub task: Task,
    /// What one prediction stands for.
    pub level: Level,
    /// Number of predictions.
    pub samples: usize,
    /// Number of subjects they come from: what the bootstrap draws.
    pub subjects: usize,
    /// Number of subjects of the rarest class; None for a regression.
    #[serde(default)]
    pub fewest_of_class: Option<usize>,
    /// How the intervals were made.
    pub bootstrap: Bootstrap,
    /// What the scores are held against.
    pub baseline: Baseline,
    /// In the order of [`Metric::REGRESSION`] or [`Metric::CLASSIFICATION`].
    pub scores: Vec<Score>,
    /// Counts, `[true class, predicted class]`; empty for a regression.
    pub confusion: Vec<Vec<u64>>,
}

/// Scores `predictions` against `baseline`, with intervals.
///
/// # Errors
/// No prediction; a task, baseline and predictions of different kinds or numbers of classes;
/// bootstrap settings out of range.
pub fn score(
    task: &Task,
    level: Level,
    predictions: &Predictions,
    baseline: &Baseline,
    bootstrap: &Bootstrap,
) -> Result<Scores> {
    check(task, predictions, bootstrap)?;
    let constant = baseline.predict(predictions)?;
    let (model, reference) = (Prepared::new(predictions), Prepared::new(&constant));
    let resamples = bootstrap.map(predictions, |w| (model.values(w), reference.values(w)));
    let ones = vec![1.0; predictions.len()];
    let (values, baselines) = (model.values(&ones), reference.values(&ones));
    let (_, subjects) = predictions.compact_subjects();
    let fewest_of_class = predictions.fewest_of_class();
    let too_few = subjects < TOO_FEW_SUBJECTS || fewest_of_class.is_some_and(|n| n < TOO_FEW);
    // Where all of a few resamples agree, that is their number, not certainty.
    let honest = |i: Option<Interval>| i.filter(|i| !too_few || i.low < i.high);
    let scores = model.metrics().iter().enumerate().map(|(m, &metric)| {
        let pairs = || resamples.iter().map(|(model, reference)| (model[m], reference[m]));
        let better =
            bootstrap.interval(pairs().map(|(value, base)| improvement(metric, value, base)));
        Score {
            metric,
            value: values[m],
            interval: honest(bootstrap.interval(pairs().map(|(value, _)| value))),
            baseline: baselines[m],
            improvement: improvement(metric, values[m], baselines[m]),
            improvement_interval: honest(better),
            too_few,
            is_same: better.is_some() && honest(better).is_none(),
        }
    });
    Ok(Scores {
        task: task.clone(),
        level,
        samples: predictions.len(),
        subjects,
        fewest_of_class,
        bootstrap: *bootstrap,
        baseline: baseline.clone(),
        scores: scores.collect(),
        confusion: confusion(predictions),
    })
}

fn improvement(metric: Metric, value: Option<f64>, baseline: Option<f64>) -> Option<f64> {
    let baseline = if metric.is_correlation() { 0.0 } else { baseline? };
    Some(if metric.higher_is_better() { value? - baseline } else { baseline - value? })
}

fn check(task: &Task, predictions: &Predictions, bootstrap: &Bootstrap) -> Result<()> {
    if predictions.is_empty() {
        return Err(Error::input(
            "predictions",
            "there are none to score",
            "give the evaluated split at least one subject with a label",
        ));
    }
    if bootstrap.resamples == 0 || !(bootstrap.confidence > 0.0 && bootstrap.confidence < 1.0) {
        return Err(Error::input(
            "bootstrap",
            format!("{} resamples, confidence {}", bootstrap.resamples, bootstrap.confidence),
            "take at least one resample and a confidence between 0 and 1, such as 0.95",
        ));
    }
    match (task, predictions.outputs()) {
        (Task::Regression { .. }, Outputs::Regression { .. }) => Ok(()),
        (Task::Classification { classes: names, .. }, Outputs::Classification { classes, .. })
            if names.len() == *classes =>
        {
            Ok(())
        }
        _ => Err(Error::shape("score", "task and predictions are of different kinds or classes")),
    }
}

fn confusion(predictions: &Predictions) -> Vec<Vec<u64>> {
    let Outputs::Classification { truth, probability, classes } = predictions.outputs() else {
        return Vec::new();
    };
    let counts = classification::Prepared::new(truth, probability, *classes)
        .confusion(&vec![1.0; predictions.len()]);
    counts.chunks(*classes).map(|row| row.iter().map(|&n| n as u64).collect()).collect()
}

impl Scores {
    /// One score.
    pub fn get(&self, metric: Metric) -> Option<&Score> {
        self.scores.iter().find(|score| score.metric == metric)
    }

    /// The score a headline names: MAE, or balanced accuracy.
    pub fn primary(&self) -> Option<&Score> {
        self.scores.first()
    }

    /// The unit of `metric`: the label's for MAE and RMSE, else empty.
    pub fn unit(&self, metric: Metric) -> &str {
        match &self.task {
            Task::Regression { unit, .. } if matches!(metric, Metric::Mae | Metric::Rmse) => unit,
            _ => "",
        }
    }

    /// Name with unit or positive class, as in "MAE (y)" and "F1 of F".
    pub fn label(&self, metric: Metric) -> String {
        let (name, unit) = (metric.name(), self.unit(metric));
        match &self.task {
            Task::Classification { classes, .. } if classes.len() == 2 => match metric {
                Metric::F1 | Metric::AveragePrecision => format!("{name} of {}", classes[1]),
                _ => name.to_string(),
            },
            Task::Classification { .. } => match metric {
                Metric::Auroc | Metric::AveragePrecision | Metric::F1 => format!("{name} (macro)"),
                _ => name.to_string(),
            },
            Task::Regression { .. } if !unit.is_empty() => format!("{name} ({unit})"),
            Task::Regression { .. } => name.to_string(),
        }
    }

    /// One sentence, as in "MAE 1.9 y against 4.1 y for the mean predictor: better by 2.2
    /// [1.6, 2.7]; beats the mean predictor."
    pub fn headline(&self) -> String {
        let Some((score, value)) = self.primary().and_then(|s| Some((s, s.value?))) else {
            return format!("No score: it needs {}.", Metric::BalancedAccuracy.needs());
        };
        let (d, baseline) = (score.decimals(), self.baseline.name());
        let unit = match self.unit(score.metric) {
            "" => String::new(),
            unit => format!(" {unit}"),
        };
        let name = score.metric.name();
        let name = name[..1].to_uppercase() + &name[1..];
        let mut text = format!("{name} {value:.d$}{unit}");
        if let Some(reference) = score.baseline {
            let _ = write!(text, " against {reference:.d$}{unit} for the {baseline}");
        }
        if let Some(better) = score.improvement {
            let word = if better < 0.0 { "worse" } else { "better" };
            let _ = write!(text, ": {word} by {:.d$}{unit}", better.abs());
            if let Some(i) = score.improvement_interval {
                let ends = if better < 0.0 { [-i.high, -i.low] } else { [i.low, i.high] };
                let _ = write!(text, " [{}, {}]", fixed(ends[0], d), fixed(ends[1], d));
            }
        }
        text + "; " + &score.verdict_text(baseline) + "."
    }

    /// What was scored and how the intervals were made, as in "118 subjects; 95 % intervals from
    /// 2000 resamples of subjects (percentile bootstrap, seed 0)".
    pub fn method(&self) -> String {
        let what = match self.level {
            Level::Subject if self.samples == self.subjects => {
                format!("{} subjects", self.subjects)
            }
            Level::Subject => format!("{} recordings of {} subjects", self.samples, self.subjects),
            Level::Window => format!("{} windows of {} subjects", self.samples, self.subjects),
        };
        let Bootstrap { resamples, seed, confidence } = self.bootstrap;
        let drawn = match self.task {
            Task::Regression { .. } => "",
            Task::Classification { .. } => " class by class",
        };
        format!(
            "{what}; {} % intervals from {resamples} resamples of subjects{drawn} (percentile \
             bootstrap, seed {seed})",
            (confidence * 1000.0).round() / 10.0
        )
    }

    /// What the reader must be told before trusting the intervals.
    pub fn caution(&self) -> Option<String> {
        let n = self.subjects;
        let class = self.fewest_of_class.filter(|&n| n < TOO_FEW);
        let rare = class.map_or(String::new(), |n| format!(", {n} of the rarest class,"));
        if n < TOO_FEW_SUBJECTS || class.is_some() {
            return Some(format!(
                "{n} subjects{rare} are too few: scores and intervals say little. A \
                 cross-validation (--folds) scores every subject."
            ));
        }
        (n < FEW_SUBJECTS).then(|| {
            format!(
                "{n} subjects are few: percentile intervals of fewer than {FEW_SUBJECTS} are too \
                 narrow."
            )
        })
    }

    /// The scores as a table for the terminal, with a line on how they were made and one verdict
    /// per row.
    pub fn table(&self) -> String {
        let mut rows = vec![
            ["", "score", "interval", self.baseline.name(), "better by", "interval", ""]
                .map(String::from),
        ];
        for score in &self.scores {
            rows.push(self.row(score));
        }
        let widths: [usize; 7] = std::array::from_fn(|column| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        let level = match self.level {
            Level::Subject => "Subject level",
            Level::Window => "Window level",
        };
        let mut text = format!("{level}: {}\n", self.method());
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[column] - cell.chars().count());
                let left = column == 0 || column == 6;
                line += &if left { format!("{cell}{pad}  ") } else { format!("{pad}{cell}  ") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        if let Some(caution) = self.caution() {
            text += &format!("Caution: {caution}\n");
        }
        text
    }

    fn row(&self, score: &Score) -> [String; 7] {
        let d = score.decimals();
        let number = |v: Option<f64>| v.map_or("-".to_string(), |v| fixed(v, d));
        let interval = |i: Option<Interval>| {
            i.map_or("-".to_string(), |i| format!("[{}, {}]", fixed(i.low, d), fixed(i.high, d)))
        };
        [
            self.label(score.metric),
            number(score.value),
            interval(score.interval),
            number(score.baseline),
            number(score.improvement),
            interval(score.improvement_interval),
            score.verdict_text(self.baseline.name()),
        ]
    }
}

/// With `decimals` decimals, and no minus sign before a zero.
pub(crate) fn fixed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(digits) if digits.bytes().all(|b| b == b'0' || b == b'.') => digits.to_string(),
        _ => text,
    }
}

/// Below this many subjects the percentile interval's coverage is visibly short of its name.
const FEW_SUBJECTS: usize = 20;
/// Below this many subjects it is too short for a verdict.
const TOO_FEW_SUBJECTS: usize = 10;
/// As [`TOO_FEW_SUBJECTS`], of one class: n subjects can be drawn in binomial(2n - 1, n) different
/// ways, which is 3 for two of them and 126 for five.
const TOO_FEW: usize = 5;
