//! The percentile bootstrap over subjects (Efron and Tibshirani 1993, chapter 13).
//!
//! Windows of one subject are not independent, so what is drawn with replacement is subjects, each
//! with all of its samples: a cluster bootstrap where there are many samples to a subject, the
//! ordinary one where there is one.

use std::collections::{BTreeMap, BTreeSet};

use super::{Outputs, Predictions};
use crate::data::rng::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How intervals are made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Number of resamples.
    pub resamples: usize,
    /// Seed; equal seeds give equal intervals, whatever the number of threads.
    pub seed: u64,
    /// Coverage, as in 0.95.
    pub confidence: f64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 2000, seed: 0, confidence: 0.95 }
    }
}

/// An interval, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// An interval is given only where at least this share of the resamples has the score: below it,
/// the class or spread that it needs hangs on a subject or two.
const DEFINED_SHARE: f64 = 0.9;

impl Bootstrap {
    /// Calls `statistic` with the samples' weights of every resample: how often each sample's
    /// subject was drawn. Results are in the order of the resamples; there are none where there
    /// are fewer than two subjects, or fewer than two of a class: nothing tells their spread.
    pub(super) fn map<T: Send>(
        &self,
        predictions: &Predictions,
        statistic: impl Fn(&[f64]) -> T + Sync,
    ) -> Vec<T> {
        let (subject, subjects) = predictions.compact_subjects();
        let Some(strata) = strata(predictions, &subject, subjects) else { return Vec::new() };
        let buffers = || (vec![0u32; subjects], vec![0.0; subject.len()]);
        (0..self.resamples as u64)
            .into_par_iter()
            .map_init(buffers, |(drawn, weights), resample| {
                let mut rng = Rng::new(self.seed, resample);
                drawn.fill(0);
                for stratum in &strata {
                    for _ in stratum {
                        drawn[stratum[rng.below(stratum.len())]] += 1;
                    }
                }
                for (weight, &s) in weights.iter_mut().zip(&subject) {
                    *weight = f64::from(drawn[s]);
                }
                statistic(weights)
            })
            .collect()
    }

    /// The percentile interval of a statistic's values over the resamples; `None` where fewer than
    /// nine in ten have one, or there are none.
    pub(super) fn interval(&self, values: impl Iterator<Item = Option<f64>>) -> Option<Interval> {
        let mut values: Vec<f64> = values.flatten().filter(|v| v.is_finite()).collect();
        if values.is_empty() || (values.len() as f64) < DEFINED_SHARE * self.resamples as f64 {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let tail = (1.0 - self.confidence) / 2.0;
        Some(Interval { low: quantile(&values, tail)?, high: quantile(&values, 1.0 - tail)? })
    }
}

/// Groups of subjects that are drawn apart: by the classes that they have samples of; one group for
/// a regression. `None` with fewer than two subjects, or fewer than two with samples of a class.
fn strata(
    predictions: &Predictions,
    subject: &[usize],
    subjects: usize,
) -> Option<Vec<Vec<usize>>> {
    let mut classes = vec![BTreeSet::new(); subjects];
    if let Outputs::Classification { truth, .. } = predictions.outputs() {
        for (&s, &class) in subject.iter().zip(truth) {
            classes[s].insert(class);
        }
    }
    let mut of_class: BTreeMap<usize, usize> = BTreeMap::new();
    for &class in classes.iter().flatten() {
        *of_class.entry(class).or_default() += 1;
    }
    let mut strata: BTreeMap<&BTreeSet<usize>, Vec<usize>> = BTreeMap::new();
    for (s, classes) in classes.iter().enumerate() {
        strata.entry(classes).or_default().push(s);
    }
    (subjects >= 2 && of_class.values().all(|&n| n >= 2)).then(|| strata.into_values().collect())
}

/// Quantile `q` in [0, 1] of ascending `sorted`, interpolated linearly (type 7 of Hyndman and Fan
/// 1996, numpy's default); `None` of nothing.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = q.clamp(0.0, 1.0) * last as f64;
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    Some(sorted[below] + (place - below as f64) * (sorted[above] - sorted[below]))
}
