//! ROC curves with their band, and calibration.

use super::{Bootstrap, Interval, Outputs, Predictions, ascending};

/// One class against the rest, at every threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Roc {
    /// `[false positive rate, true positive rate]` by falling threshold, from [0, 0] to [1, 1].
    pub points: Vec<[f64; 2]>,
}

/// Pointwise interval of the true positive rate at equally spaced false positive rates.
#[derive(Debug, Clone, PartialEq)]
pub struct RocBand {
    /// False positive rates, 0 to 1.
    pub false_positive_rate: Vec<f64>,
    /// Intervals of the true positive rate there.
    pub true_positive_rate: Vec<Interval>,
}

/// Predictions of similar probability, and how often the class came true among them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationBin {
    /// Number of predictions.
    pub count: usize,
    /// Their mean probability.
    pub predicted: f64,
    /// Share of them that are of the class.
    pub observed: f64,
    /// 95 % interval of that share (Wilson 1927).
    pub interval: Interval,
}

/// One class's labels and probabilities, by falling probability.
struct Ranked {
    truth: Vec<bool>,
    probability: Vec<f64>,
    order: Vec<usize>,
}

impl Ranked {
    fn new(predictions: &Predictions, class: usize) -> Option<Self> {
        let Outputs::Classification { truth, probability, classes } = predictions.outputs() else {
            return None;
        };
        if class >= *classes {
            return None;
        }
        let probability: Vec<f64> =
            probability.iter().skip(class).step_by(*classes).copied().collect();
        let mut order = ascending(probability.iter().copied());
        order.reverse();
        Some(Self { truth: truth.iter().map(|&t| t == class).collect(), probability, order })
    }

    fn curve(&self, weights: &[f64]) -> Option<Vec<[f64; 2]>> {
        let (mut counts, mut points) = ([0.0; 2], vec![[0.0; 2]]);
        for tied in self.order.chunk_by(|&a, &b| self.probability[a] == self.probability[b]) {
            for &i in tied {
                counts[usize::from(self.truth[i])] += weights[i];
            }
            if points.last() != Some(&counts) {
                points.push(counts);
            }
        }
        (counts[0] > 0.0 && counts[1] > 0.0)
            .then(|| points.iter().map(|p| [p[0] / counts[0], p[1] / counts[1]]).collect())
    }
}

/// The ROC curve of `class` against the rest; `None` for a regression and where all labels or none
/// are of the class.
pub fn roc(predictions: &Predictions, class: usize) -> Option<Roc> {
    let points = Ranked::new(predictions, class)?.curve(&vec![1.0; predictions.len()])?;
    Some(Roc { points })
}

/// The ROC curve's pointwise bootstrap band (vertical averaging, Fawcett 2006) at `grid` false
/// positive rates; `None` as for [`roc`] and [`Bootstrap`] intervals.
pub fn roc_band(
    predictions: &Predictions,
    class: usize,
    grid: usize,
    bootstrap: &Bootstrap,
) -> Option<RocBand> {
    let ranked = Ranked::new(predictions, class)?;
    let last = grid.checked_sub(1).filter(|&last| last > 0)?;
    let rates: Vec<f64> = (0..grid).map(|i| i as f64 / last as f64).collect();
    let curves = bootstrap
        .map(predictions, |weights| ranked.curve(weights).map(|curve| rates_at(&curve, &rates)));
    let intervals = (0..grid)
        .map(|at| bootstrap.interval(curves.iter().map(|c| c.as_ref().map(|c| c[at]))))
        .collect::<Option<Vec<_>>>()?;
    Some(RocBand { false_positive_rate: rates, true_positive_rate: intervals })
}

/// The true positive rate at each of ascending `rates`: on a rising edge, its upper end.
fn rates_at(curve: &[[f64; 2]], rates: &[f64]) -> Vec<f64> {
    let mut next = 0;
    let at = |&rate: &f64| {
        while next < curve.len() && curve[next][0] <= rate {
            next += 1;
        }
        let before = curve[next.saturating_sub(1)];
        match curve.get(next) {
            Some(after) => {
                let share = (rate - before[0]) / (after[0] - before[0]);
                before[1] + share * (after[1] - before[1])
            }
            None => before[1],
        }
    };
    rates.iter().map(at).collect()
}

/// Calibration of `class` in at most `bins` bins of equal count, by rising probability; empty for a
/// regression. The intervals take predictions as independent: give one per subject.
pub fn calibration(predictions: &Predictions, class: usize, bins: usize) -> Vec<CalibrationBin> {
    let Some(mut ranked) = Ranked::new(predictions, class) else { return Vec::new() };
    ranked.order.reverse();
    let n = ranked.order.len();
    let bins = bins.clamp(1, n.max(1));
    let bin = |b: usize| {
        let members = &ranked.order[b * n / bins..(b + 1) * n / bins];
        let count = members.len() as f64;
        let hits = members.iter().filter(|&&i| ranked.truth[i]).count() as f64;
        let predicted = members.iter().map(|&i| ranked.probability[i]).sum::<f64>() / count;
        let interval = wilson(hits, count);
        CalibrationBin { count: members.len(), predicted, observed: hits / count, interval }
    };
    (0..bins).map(bin).filter(|b| b.count > 0).collect()
}

/// Wilson's 95 % score interval of a proportion.
fn wilson(hits: f64, count: f64) -> Interval {
    let z = 1.959_963_984_540_054_f64;
    let (share, z2) = (hits / count, z * z);
    let center = (share + z2 / (2.0 * count)) / (1.0 + z2 / count);
    let half = z * (share * (1.0 - share) / count + z2 / (4.0 * count * count)).sqrt()
        / (1.0 + z2 / count);
    Interval { low: (center - half).max(0.0), high: (center + half).min(1.0) }
}
