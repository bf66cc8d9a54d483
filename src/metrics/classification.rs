//! Scores of predicted classes, each sample counted a given number of times.

use super::ascending;

/// Everything about labels and probabilities that no resample changes.
pub(super) struct Prepared<'a> {
    truth: &'a [usize],
    classes: usize,
    predicted: Vec<usize>,
    /// Classes that occur among the labels: what averages over classes range over.
    present: Vec<bool>,
    /// The second of two classes, each of more.
    ranked: Vec<Ranked>,
    /// Each sample's Brier score and negative log-likelihood.
    brier: Vec<f64>,
    log_loss: Vec<f64>,
}

/// Samples by descending probability of one class.
struct Ranked {
    order: Vec<usize>,
    /// Whether each sample of `order` is of the class.
    positive: Vec<bool>,
    /// Where in `order` each run of equal probabilities ends.
    ends: Vec<usize>,
}

impl Ranked {
    fn new(truth: &[usize], probability: Vec<f64>, class: usize) -> Self {
        let mut order = ascending(probability.iter().copied());
        order.reverse();
        let positive = order.iter().map(|&i| truth[i] == class).collect();
        let ends = order
            .chunk_by(|&a, &b| probability[a] == probability[b])
            .scan(0, |end, run| {
                *end += run.len();
                Some(*end)
            })
            .collect();
        Self { order, positive, ends }
    }

    /// AUROC and average precision of the class against the rest.
    fn scores(&self, weights: &[f64], total: f64) -> (Option<f64>, Option<f64>) {
        let (mut positive, mut negative, mut pairs, mut precision) = (0.0, 0.0, 0.0, 0.0);
        let mut start = 0;
        for &end in &self.ends {
            let mut tied = [0.0; 2];
            for (&i, &is_positive) in self.order[start..end].iter().zip(&self.positive[start..end])
            {
                tied[usize::from(is_positive)] += weights[i];
            }
            start = end;
            pairs += tied[0] * (positive + tied[1] / 2.0);
            positive += tied[1];
            negative += tied[0];
            if tied[1] > 0.0 {
                precision += tied[1] * positive / (positive + negative);
            }
        }
        let some = positive > 0.0;
        let auroc = (some && positive < total).then(|| pairs / (positive * negative));
        (auroc, some.then(|| precision / positive))
    }
}

impl<'a> Prepared<'a> {
    pub(super) fn new(truth: &'a [usize], probability: &'a [f64], classes: usize) -> Self {
        let mut present = vec![false; classes];
        for &class in truth {
            present[class] = true;
        }
        let first = if classes == 2 { 1 } else { 0 };
        let of_class = |k: usize| probability.iter().skip(k).step_by(classes).copied().collect();
        let ranked = (first..classes)
            .filter(|&k| present[k])
            .map(|k| Ranked::new(truth, of_class(k), k))
            .collect();
        let rows = || probability.chunks_exact(classes);
        Self {
            truth,
            classes,
            predicted: rows().map(argmax).collect(),
            present,
            ranked,
            brier: rows().zip(truth).map(|(row, &t)| brier(row, t)).collect(),
            log_loss: rows().zip(truth).map(|(row, &t)| -row[t].max(f64::EPSILON).ln()).collect(),
        }
    }

    /// In the order of [`super::Metric::CLASSIFICATION`].
    pub(super) fn values(&self, weights: &[f64]) -> [Option<f64>; 7] {
        let total: f64 = weights.iter().sum();
        if total <= 0.0 {
            return [None; 7];
        }
        let confusion = self.confusion(weights);
        let correct: f64 = (0..self.classes).map(|k| confusion[k * self.classes + k]).sum();
        let (auroc, precision) = self.ranking(weights, total);
        let mean_of = |values: &[f64]| {
            values.iter().zip(weights).map(|(value, w)| w * value).sum::<f64>() / total
        };
        [
            self.balanced_accuracy(&confusion),
            auroc,
            Some(correct / total),
            precision,
            self.f1(&confusion),
            Some(mean_of(&self.brier)),
            Some(mean_of(&self.log_loss)),
        ]
    }

    /// Weighted counts, `[true class, predicted class]`.
    pub(super) fn confusion(&self, weights: &[f64]) -> Vec<f64> {
        let mut counts = vec![0.0; self.classes * self.classes];
        for ((&t, &p), w) in self.truth.iter().zip(&self.predicted).zip(weights) {
            counts[t * self.classes + p] += w;
        }
        counts
    }

    /// `None` where fewer than two classes occur, or the resample lost one of them.
    fn balanced_accuracy(&self, confusion: &[f64]) -> Option<f64> {
        let mut recalls = Vec::new();
        for k in (0..self.classes).filter(|&k| self.present[k]) {
            let row = &confusion[k * self.classes..(k + 1) * self.classes];
            let count: f64 = row.iter().sum();
            if count == 0.0 {
                return None;
            }
            recalls.push(row[k] / count);
        }
        if recalls.len() < 2 { None } else { mean(&recalls) }
    }

    /// Classes neither labelled nor predicted do not count, as in scikit-learn.
    fn f1(&self, confusion: &[f64]) -> Option<f64> {
        let n = self.classes;
        let of = |k: usize| {
            let labelled: f64 = confusion[k * n..(k + 1) * n].iter().sum();
            let predicted: f64 = confusion.iter().skip(k).step_by(n).sum();
            let both = labelled + predicted;
            (both > 0.0).then(|| 2.0 * confusion[k * n + k] / both)
        };
        if n == 2 {
            return of(1);
        }
        mean(&(0..n).filter_map(of).collect::<Vec<_>>())
    }

    /// AUROC and average precision, averaged over the ranked classes.
    fn ranking(&self, weights: &[f64], total: f64) -> (Option<f64>, Option<f64>) {
        let (mut aurocs, mut precisions) = (Vec::new(), Vec::new());
        for ranked in &self.ranked {
            let (auroc, precision) = ranked.scores(weights, total);
            aurocs.push(auroc);
            precisions.push(precision);
        }
        let all = |values: Vec<Option<f64>>| {
            values.into_iter().collect::<Option<Vec<_>>>().and_then(|values| mean(&values))
        };
        (all(aurocs), all(precisions))
    }
}

/// Squared error of the second of two probabilities, or of all of more.
fn brier(row: &[f64], class: usize) -> f64 {
    let squared = |k: usize| (row[k] - f64::from(u8::from(k == class))).powi(2);
    if row.len() == 2 { squared(1) } else { (0..row.len()).map(squared).sum() }
}

/// Place of the greatest, the first of equals.
pub(super) fn argmax(row: &[f64]) -> usize {
    let mut best = 0;
    for (k, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = k;
        }
    }
    best
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
