//! Scores of predicted numbers, each sample counted a given number of times.

use super::ascending;

/// Labels and predictions with their sort orders.
pub(super) struct Prepared<'a> {
    truth: &'a [f64],
    predicted: &'a [f64],
    by_truth: Vec<usize>,
    by_predicted: Vec<usize>,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(truth: &'a [f64], predicted: &'a [f64]) -> Self {
        Self {
            truth,
            predicted,
            by_truth: ascending(truth.iter().copied()),
            by_predicted: ascending(predicted.iter().copied()),
        }
    }

    /// In the order of [`super::Metric::REGRESSION`].
    pub(super) fn values(&self, weights: &[f64]) -> [Option<f64>; 6] {
        let total: f64 = weights.iter().sum();
        if total <= 0.0 {
            return [None; 6];
        }
        let (mut absolute, mut squared) = (0.0, 0.0);
        for ((y, p), w) in self.truth.iter().zip(self.predicted).zip(weights) {
            let error = p - y;
            absolute += w * error.abs();
            squared += w * error * error;
        }
        let moments = Moments::new(self.truth, self.predicted, weights, total);
        let rmse = (squared / total).sqrt();
        let truth_variance = moments.truth_variance();
        let r2 = truth_variance.map(|v| 1.0 - squared / total / v);
        let nrmse = truth_variance.map(|v| rmse / v.sqrt());
        let spearman = moments.correlation().and_then(|_| self.spearman(weights, total));
        [Some(absolute / total), Some(rmse), r2, moments.correlation(), spearman, nrmse]
    }

    fn spearman(&self, weights: &[f64], total: f64) -> Option<f64> {
        let truth = mid_ranks(self.truth, &self.by_truth, weights);
        let predicted = mid_ranks(self.predicted, &self.by_predicted, weights);
        Moments::new(&truth, &predicted, weights, total).correlation()
    }
}

/// Rank (from 1) of each value among the weighted sample; equal values share their mean rank.
fn mid_ranks(values: &[f64], order: &[usize], weights: &[f64]) -> Vec<f64> {
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0.0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let count: f64 = tied.iter().map(|&i| weights[i]).sum();
        for &i in tied {
            ranks[i] = before + (count + 1.0) / 2.0;
        }
        before += count;
    }
    ranks
}

/// Weighted means and central second moments, in two passes: the one-pass form loses the variance
/// of nearly equal numbers.
struct Moments {
    mean: [f64; 2],
    variance: [f64; 2],
    covariance: f64,
}

impl Moments {
    fn new(x: &[f64], y: &[f64], weights: &[f64], total: f64) -> Self {
        let mut mean = [0.0; 2];
        for ((a, b), w) in x.iter().zip(y).zip(weights) {
            mean[0] += w * a;
            mean[1] += w * b;
        }
        mean = mean.map(|sum| sum / total);
        let (mut variance, mut covariance) = ([0.0; 2], 0.0);
        for ((a, b), w) in x.iter().zip(y).zip(weights) {
            let (a, b) = (a - mean[0], b - mean[1]);
            variance[0] += w * a * a;
            variance[1] += w * b * b;
            covariance += w * a * b;
        }
        Self { mean, variance: variance.map(|sum| sum / total), covariance: covariance / total }
    }

    /// Population variance of the first; `None` where it is rounding noise.
    fn truth_variance(&self) -> Option<f64> {
        self.real_variance(0)
    }

    fn real_variance(&self, which: usize) -> Option<f64> {
        let noise = 1e-13 * self.mean[which].abs();
        (self.variance[which] > noise * noise).then_some(self.variance[which])
    }

    fn correlation(&self) -> Option<f64> {
        let scale = self.real_variance(0)?.sqrt() * self.real_variance(1)?.sqrt();
        Some((self.covariance / scale).clamp(-1.0, 1.0))
    }
}
