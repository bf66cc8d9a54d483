//! What a model said, beside what was true, and by which subject.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Labels and model outputs of `samples` windows, recordings or subjects. Every number is finite,
/// every class index and probability is in range: the constructors check it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Predictions {
    subject: Vec<usize>,
    outputs: Outputs,
}

/// Labels and outputs by kind of task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outputs {
    /// Numbers in the label's unit.
    Regression {
        /// Labels, `[samples]`.
        truth: Vec<f64>,
        /// Predictions, `[samples]`.
        predicted: Vec<f64>,
    },
    /// Classes.
    Classification {
        /// Label's class, `[samples]`.
        truth: Vec<usize>,
        /// Predicted probabilities, `[samples, classes]`, rows summing to 1.
        probability: Vec<f64>,
        /// Number of classes.
        classes: usize,
    },
}

#[derive(Deserialize)]
struct Unchecked {
    subject: Vec<usize>,
    outputs: Outputs,
}

impl TryFrom<Unchecked> for Predictions {
    type Error = Error;

    fn try_from(raw: Unchecked) -> Result<Self> {
        match raw.outputs {
            Outputs::Regression { truth, predicted } => {
                Self::regression(raw.subject, truth, predicted)
            }
            Outputs::Classification { truth, probability, classes } => {
                Self::classification(raw.subject, truth, probability, classes)
            }
        }
    }
}

/// Rows of a softmax in half precision miss 1 by less than this.
const PROBABILITY_SUM_TOLERANCE: f64 = 0.02;

impl Predictions {
    /// Predictions of numbers. `subject[i]` tells whose sample i is (any numbering); `truth` and
    /// `predicted` are `[samples]` in the label's unit.
    ///
    /// # Errors
    /// Lengths that differ ([`Error::Shape`]); a label or prediction that is not finite.
    pub fn regression(subject: Vec<usize>, truth: Vec<f64>, predicted: Vec<f64>) -> Result<Self> {
        if subject.len() != truth.len() || truth.len() != predicted.len() {
            let lengths = (subject.len(), truth.len(), predicted.len());
            return Err(Error::shape(
                "predictions",
                format!("subjects, labels, predictions have lengths {lengths:?}"),
            ));
        }
        require_finite("label", &truth, &subject, 1)?;
        require_finite("prediction", &predicted, &subject, 1)?;
        Ok(Self { subject, outputs: Outputs::Regression { truth, predicted } })
    }

    /// Predictions of classes. `probability` is `[samples, classes]`, row by row.
    ///
    /// # Errors
    /// Fewer than two classes or lengths that differ ([`Error::Shape`]); a class out of range; a
    /// probability that is not finite or not in [0, 1]; a row that does not sum to 1.
    pub fn classification(
        subject: Vec<usize>,
        truth: Vec<usize>,
        probability: Vec<f64>,
        classes: usize,
    ) -> Result<Self> {
        let expected = truth.len().checked_mul(classes);
        if classes < 2 || subject.len() != truth.len() || expected != Some(probability.len()) {
            return Err(Error::shape(
                "predictions",
                format!(
                    "{} subjects, {} labels, {} probabilities for {classes} classes",
                    subject.len(),
                    truth.len(),
                    probability.len()
                ),
            ));
        }
        require_finite("probability", &probability, &subject, classes)?;
        for (i, row) in probability.chunks_exact(classes).enumerate() {
            let sum: f64 = row.iter().sum();
            if truth[i] >= classes
                || row.iter().any(|p| !(0.0..=1.0).contains(p))
                || (sum - 1.0).abs() > PROBABILITY_SUM_TOLERANCE
            {
                return Err(Error::input(
                    format!("prediction {i} (subject {})", subject[i]),
                    format!("class {} with probabilities {row:?}", truth[i]),
                    format!("give a class below {classes} and a softmax row that sums to 1"),
                ));
            }
        }
        Ok(Self { subject, outputs: Outputs::Classification { truth, probability, classes } })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.subject.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.subject.is_empty()
    }

    /// Whose each sample is, `[samples]`.
    pub fn subject(&self) -> &[usize] {
        &self.subject
    }

    /// Labels and outputs.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// Each sample's subject renumbered 0..n in ascending order, and n.
    pub(super) fn compact_subjects(&self) -> (Vec<usize>, usize) {
        let mut distinct = self.subject.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let compact = self.subject.iter().map(|s| distinct.partition_point(|d| d < s)).collect();
        (compact, distinct.len())
    }

    /// Number of subjects with samples of the class that fewest have, among those that come up;
    /// `None` for a regression.
    pub(super) fn fewest_of_class(&self) -> Option<usize> {
        let Outputs::Classification { truth, .. } = &self.outputs else { return None };
        let mut members: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (&class, &subject) in truth.iter().zip(&self.subject) {
            members.entry(class).or_default().insert(subject);
        }
        members.values().map(BTreeSet::len).min()
    }

    /// One prediction per subject, by ascending subject: the mean of its windows' values, or of
    /// their probabilities.
    ///
    /// # Errors
    /// A subject whose windows carry different labels (a label that changes within the subject,
    /// such as rest against task, wants [`Predictions::aggregate`] by recording).
    pub fn by_subject(&self) -> Result<Self> {
        self.aggregate(&self.subject)
    }

    /// One prediction per group (a recording, say), by ascending group: `group[i]` is sample i's.
    /// The bootstrap still draws whole subjects.
    ///
    /// # Errors
    /// `group` of another length; a group with windows of two subjects or two labels.
    pub fn aggregate(&self, group: &[usize]) -> Result<Self> {
        if group.len() != self.len() {
            let problem = format!("{} groups for {} samples", group.len(), self.len());
            return Err(Error::shape("aggregate", problem));
        }
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (sample, &g) in group.iter().enumerate() {
            members.entry(g).or_default().push(sample);
        }
        for (g, samples) in &members {
            let first = samples[0];
            if let Some(&other) = samples.iter().find(|&&i| !self.belong_together(first, i)) {
                return Err(Error::input(
                    format!("group {g} of the predictions"),
                    format!(
                        "windows {first} (subject {}) and {other} (subject {}) differ in subject \
                         or label",
                        self.subject[first], self.subject[other]
                    ),
                    "aggregate by recording where the label changes within a subject",
                ));
            }
        }
        let subject = members.values().map(|m| self.subject[m[0]]).collect();
        let outputs = self.outputs.mean(members.values());
        Ok(Self { subject, outputs })
    }

    fn belong_together(&self, a: usize, b: usize) -> bool {
        let same_label = match &self.outputs {
            Outputs::Regression { truth, .. } => {
                let scale = truth[a].abs().max(truth[b].abs());
                (truth[a] - truth[b]).abs() <= 1e-6 * scale
            }
            Outputs::Classification { truth, .. } => truth[a] == truth[b],
        };
        same_label && self.subject[a] == self.subject[b]
    }
}

impl Outputs {
    /// The mean output of each group of samples, with the label of its first.
    fn mean<'a>(&self, groups: impl Iterator<Item = &'a Vec<usize>>) -> Self {
        match self {
            Self::Regression { truth, predicted } => {
                let mean =
                    |m: &Vec<usize>| m.iter().map(|&i| predicted[i]).sum::<f64>() / m.len() as f64;
                let (truth, predicted) = groups.map(|m| (truth[m[0]], mean(m))).unzip();
                Self::Regression { truth, predicted }
            }
            Self::Classification { truth, probability, classes } => {
                let (mut labels, mut means) = (Vec::new(), Vec::new());
                for m in groups {
                    labels.push(truth[m[0]]);
                    for k in 0..*classes {
                        let sum: f64 = m.iter().map(|&i| probability[i * classes + k]).sum();
                        means.push(sum / m.len() as f64);
                    }
                }
                Self::Classification { truth: labels, probability: means, classes: *classes }
            }
        }
    }
}

/// Refuses the first non-finite number of `values`, which has `per_sample` numbers per sample.
fn require_finite(what: &str, values: &[f64], subject: &[usize], per_sample: usize) -> Result<()> {
    let Some(at) = values.iter().position(|v| !v.is_finite()) else { return Ok(()) };
    let sample = at / per_sample;
    Err(Error::input(
        format!("{what} of sample {sample} (subject {})", subject[sample]),
        format!("{} is not a finite number", values[at]),
        "leave samples without a label out; predictions that are not finite mean that the \
         training diverged: go on from the last good checkpoint with a lower learning rate",
    ))
}
