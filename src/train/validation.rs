//! The model on windows it does not learn from, and the curves of a run.

use super::dataset::Dataset;
use super::fit::Fit;
use super::run_dir::RunPaths;
use super::step::Step;
use crate::Result;
use crate::data::window::Window;
use crate::report::Curves;

/// Evaluation passes whose windows are read from the cache at once.
const PASSES: usize = 8;

/// Windows that are validated after an epoch where there are so many, whatever part of the training's
/// they are.
const LEAST: usize = 512;

/// What of the validation windows is looked at after each epoch: `share` of the number of windows to
/// train on, in whole evaluation passes, spread evenly. A window costs a third of a training step's; all
/// of a fifth of the subjects would be a twelfth of a run's time.
pub(super) fn thinned(
    windows: Vec<Window>,
    (trained, share): (usize, f64),
    eval_batch: usize,
) -> Vec<Window> {
    let wanted = LEAST.max((share * trained as f64).ceil() as usize);
    let (all, kept) = (windows.len(), wanted.next_multiple_of(eval_batch.max(1)));
    if kept >= all {
        return windows;
    }
    (0..kept).map(|i| windows[(2 * i + 1) * all / (2 * kept)]).collect()
}

impl Fit<'_> {
    /// Outputs `[windows, outputs]` with the present (averaged) weights.
    fn outputs(&self, windows: &[Window]) -> Result<Vec<f32>> {
        let params = self.step.params();
        let found = || match &self.resident {
            Some(resident) => self.step.evaluate_from(windows.len(), &mut |rows, to| {
                resident.fill(params.backend(), &windows[rows], None, to)
            }),
            None => outputs(&self.step, self.data, windows),
        };
        let Some(average) = self.step.optimizer().average() else { return found() };
        let values = params.trained_values()?;
        let present = params.read_floats(&values)?;
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
        params.write_floats(&values, &wide(params.read_floats(average)?))?;
        let found = found();
        params.write_floats(&values, &wide(present))?;
        found
    }

    /// Mean loss over the validation windows: squared error of the z-score, or log loss with the
    /// classes' weights evened out.
    pub(super) fn validation_loss(&self, step: u64) -> Result<f64> {
        let outputs = self.outputs(&self.validation)?;
        if outputs.iter().any(|x| !x.is_finite()) {
            return Err(self.diverged(step, "an output for a validation window".into()));
        }
        let width = self.data.target.outputs();
        let classes = self.data.target.n_classes();
        let (mut sums, mut counts) = (vec![0.0; classes.max(1)], vec![0.0; classes.max(1)]);
        for (window, row) in self.validation.iter().zip(outputs.chunks_exact(width)) {
            let label = self.data.label(window);
            let class = if classes == 0 { 0 } else { label as usize };
            let loss = match self.about.standard {
                Some(_) => f64::from(row[0] - self.source.target_of(label)).powi(2),
                None => -probabilities(row, classes)[class].max(1e-12).ln(),
            };
            sums[class] += loss;
            counts[class] += 1.0;
        }
        let present = counts.iter().filter(|&&n| n > 0.0).count() as f64;
        let means = sums.iter().zip(&counts).filter(|(_, n)| **n > 0.0).map(|(s, n)| s / n);
        Ok(means.sum::<f64>() / present)
    }
}

/// Probabilities of the classes from a row of logits: one logit is that of the second of two.
pub fn probabilities(row: &[f32], classes: usize) -> Vec<f64> {
    if classes == 2 && row.len() == 1 {
        let positive = 1.0 / (1.0 + (-f64::from(row[0])).exp());
        return vec![1.0 - positive, positive];
    }
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let all: Vec<f64> = row.iter().map(|&x| f64::from(x - top).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.into_iter().map(|x| x / sum).collect()
}

/// Outputs `[windows, outputs]` of a model.
///
/// # Errors
/// As [`Step::evaluate`].
pub fn outputs(step: &Step, data: &Dataset, windows: &[Window]) -> Result<Vec<f32>> {
    let (channels, length, _) = step.spec().model.extents();
    let mut all = Vec::new();
    let mut buffer = Vec::new();
    for piece in windows.chunks(PASSES * step.spec().eval_batch.max(1)) {
        buffer.resize(piece.len() * channels * length, 0.0);
        data.prepared.cache.fill_batch(piece, &mut buffer)?;
        all.extend(step.evaluate(&buffer)?);
    }
    Ok(all)
}

/// Curves of a run from its metrics.
pub fn curves(paths: &RunPaths, step_of_best: Option<u64>) -> Curves {
    let text = std::fs::read_to_string(paths.metrics()).unwrap_or_default();
    let mut curves = Curves { chosen_step: step_of_best, ..Curves::default() };
    for line in text.lines() {
        let Ok(record) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let at = |name: &str| Some([record["step"].as_f64()?, record[name].as_f64()?]);
        if record["kind"] == "step" {
            curves.train_loss.extend(at("loss"));
            curves.learning_rate.extend(at("lr"));
        } else {
            curves.validation_loss.extend(at("validation_loss"));
            if record["best"] == true {
                curves.chosen_step = record["step"].as_u64();
            }
        }
    }
    curves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(n: u32) -> Vec<Window> {
        (0..n).map(|i| Window { recording: i / 100, start: 10 * i, event: 0 }).collect()
    }

    #[test]
    fn validation_is_thinned_evenly_and_in_whole_passes() {
        let kept = thinned(windows(5000), (8000, 0.1), 96);
        assert_eq!(kept.len(), 864);
        let of = |recording| kept.iter().filter(|w| w.recording == recording).count();
        assert!((0..50).all(|recording| (17..=18).contains(&of(recording))));
        assert!(kept.is_sorted_by_key(|w| w.start));
        for (n, trained, share) in [(1, 100, 0.1), (500, 100, 0.1), (5000, 5000, 1.0)] {
            assert_eq!(thinned(windows(n), (trained, share), 256), windows(n));
        }
        assert_eq!(thinned(windows(600), (100, 0.1), 256).len(), 512);
    }
}
