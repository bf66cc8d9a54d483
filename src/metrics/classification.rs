//! Scores of predicted classes, each sample counted a given number of times.

use super::ascending;

/// Labels and probabilities with their sort orders.
pub(super) struct Prepared<'a> {
    truth: &'a [usize],
    probability: &'a [f64],
    classes: usize,
    predicted: Vec<usize>,
    /// Classes that occur among the labels: what averages over classes range over.
    present: Vec<bool>,
    /// Class and samples by descending probability of it: of the second of two, of each of more.
    ranked: Vec<(usize, Vec<usize>)>,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(truth: &'a [usize], probability: &'a [f64], classes: usize) -> Self {
        let mut present = vec![false; classes];
        for &class in truth {
            present[class] = true;
        }
        let first = if classes == 2 { 1 } else { 0 };
        let ranked = (first..classes)
            .filter(|&k| present[k])
            .map(|k| {
                let mut order = ascending(probability.iter().skip(k).step_by(classes).copied());
                order.reverse();
                (k, order)
            })
            .collect();
        let predicted = probability.chunks_exact(classes).map(argmax).collect();
        Self { truth, probability, classes, predicted, present, ranked }
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
        let (brier, log_loss) = self.probabilistic(weights);
        [
            self.balanced_accuracy(&confusion),
            auroc,
            Some(correct / total),
            precision,
            self.f1(&confusion),
            Some(brier / total),
            Some(log_loss / total),
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
        for (class, order) in &self.ranked {
            let (auroc, precision) = self.rank_one(*class, order, weights, total);
            aurocs.push(auroc);
            precisions.push(precision);
        }
        let all = |values: Vec<Option<f64>>| {
            values.into_iter().collect::<Option<Vec<_>>>().and_then(|values| mean(&values))
        };
        (all(aurocs), all(precisions))
    }

    /// AUROC and average precision of one class against the rest.
    fn rank_one(
        &self,
        class: usize,
        order: &[usize],
        weights: &[f64],
        total: f64,
    ) -> (Option<f64>, Option<f64>) {
        let (mut positive, mut negative, mut pairs, mut precision) = (0.0, 0.0, 0.0, 0.0);
        let p = |i: usize| self.probability[i * self.classes + class];
        let mut at = 0;
        while at < order.len() {
            let (mut tied_positive, mut tied_negative) = (0.0, 0.0);
            let value = p(order[at]);
            while at < order.len() && p(order[at]) == value {
                let i = order[at];
                if self.truth[i] == class {
                    tied_positive += weights[i];
                } else {
                    tied_negative += weights[i];
                }
                at += 1;
            }
            pairs += tied_negative * (positive + tied_positive / 2.0);
            positive += tied_positive;
            negative += tied_negative;
            if tied_positive > 0.0 {
                precision += tied_positive * positive / (positive + negative);
            }
        }
        let some = positive > 0.0;
        let auroc = (some && positive < total).then(|| pairs / (positive * negative));
        (auroc, some.then(|| precision / positive))
    }

    /// Weighted sums of the Brier score and of the negative log-likelihood.
    fn probabilistic(&self, weights: &[f64]) -> (f64, f64) {
        let (mut brier, mut log_loss) = (0.0, 0.0);
        let rows = self.probability.chunks_exact(self.classes);
        for ((row, &t), w) in rows.zip(self.truth).zip(weights) {
            let squared = |k: usize| (row[k] - f64::from(u8::from(k == t))).powi(2);
            brier +=
                w * if row.len() == 2 { squared(1) } else { (0..row.len()).map(squared).sum() };
            log_loss -= w * row[t].max(f64::EPSILON).ln();
        }
        (brier, log_loss)
    }
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
