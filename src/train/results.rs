//! From a trained model to predictions, scores and the report.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::checkpoint_file::write_atomically;
use super::dataset::Dataset;
use super::state::About;
use super::step::Step;
use super::validation::{outputs, probabilities};
use crate::data::window::Window;
use crate::data::{montage, names};
use crate::metrics::{Baseline, Bootstrap, Level, Outputs, Predictions, Scores, Task, score};
use crate::model::ModelConfig;
use crate::report::{ChannelMap, ChannelValue, SpectralGain};
use crate::{Error, Result};

/// Predictions of windows, with what each is of. Several folds may be appended.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    /// The windows.
    pub windows: Vec<Window>,
    /// Index of each window's subject in [`subjects`].
    pub subject: Vec<usize>,
    /// Label of each window.
    pub truth: Vec<f64>,
    /// Value in the label's unit, or probabilities of the classes, of each window.
    pub output: Vec<f64>,
}

/// Distinct subjects of a dataset, sorted.
pub fn subjects(data: &Dataset) -> Vec<String> {
    let mut all: Vec<String> =
        data.prepared.cache.recordings().iter().map(|r| r.subject.clone()).collect();
    all.sort();
    all.dedup();
    all
}

/// Model outputs as values in the label's unit, or as probabilities.
pub fn interpreted(about: &About, raw: &[f32]) -> Vec<f64> {
    match (&about.task, about.standard) {
        (Task::Regression { .. }, Some(standard)) => {
            raw.iter().map(|&x| f64::from(x) * standard.deviation + standard.mean).collect()
        }
        (Task::Regression { .. }, None) => raw.iter().map(|&x| f64::from(x)).collect(),
        (Task::Classification { classes, .. }, _) => {
            let width = if classes.len() == 2 { 1 } else { classes.len() };
            raw.chunks_exact(width).flat_map(|row| probabilities(row, classes.len())).collect()
        }
    }
}

impl Collected {
    /// Adds the model's predictions of `windows`.
    ///
    /// # Errors
    /// As [`Step::evaluate`].
    pub fn add(
        &mut self,
        step: &Step,
        about: &About,
        data: &Dataset,
        windows: &[Window],
    ) -> Result<()> {
        let names = subjects(data);
        let raw = outputs(step, data, windows)?;
        self.output.extend(interpreted(about, &raw));
        for window in windows {
            let name = &data.recording(window).subject;
            self.subject.push(names.binary_search(name).unwrap_or(0));
            self.truth.push(data.label(window));
            self.windows.push(*window);
        }
        Ok(())
    }

    /// As predictions of windows.
    ///
    /// # Errors
    /// [`Error::Input`] for outputs that are not finite.
    pub fn of_windows(&self, task: &Task) -> Result<Predictions> {
        match task {
            Task::Regression { .. } => Predictions::regression(
                self.subject.clone(),
                self.truth.clone(),
                self.output.clone(),
            ),
            Task::Classification { classes, .. } => Predictions::classification(
                self.subject.clone(),
                self.truth.iter().map(|&t| t as usize).collect(),
                self.output.clone(),
                classes.len(),
            ),
        }
    }

    /// As one prediction a subject, or a recording where labels belong to those.
    ///
    /// # Errors
    /// As [`Collected::of_windows`].
    pub fn aggregated(&self, about: &About) -> Result<Predictions> {
        let windows = self.of_windows(&about.task)?;
        if !about.by_recording {
            return windows.by_subject();
        }
        let group: Vec<usize> = self.windows.iter().map(|w| w.recording as usize).collect();
        windows.aggregate(&group)
    }
}

/// The baseline that knows the training labels: one label a subject, or a recording.
///
/// # Errors
/// [`Error::Input`] when there is no label.
pub fn baseline(data: &Dataset, training: &[Window], task: &Task) -> Result<Baseline> {
    let mut labels: BTreeMap<(&str, u32), f64> = BTreeMap::new();
    for window in training {
        let recording = if data.target.by_recording { window.recording } else { 0 };
        labels.insert((&data.recording(window).subject, recording), data.label(window));
    }
    let labels: Vec<f64> = labels.into_values().collect();
    match task {
        Task::Regression { .. } => Baseline::mean(&labels),
        Task::Classification { classes, .. } => {
            let numbers: Vec<usize> = labels.iter().map(|&l| l as usize).collect();
            Baseline::majority(&numbers, classes.len())
        }
    }
}

/// Scores of subjects (or recordings) and of windows.
///
/// # Errors
/// As [`score`].
pub fn scores(
    about: &About,
    collected: &Collected,
    baseline: &Baseline,
    seed: u64,
) -> Result<(Scores, Scores)> {
    let bootstrap = Bootstrap { seed, ..Bootstrap::default() };
    let subjects = collected.aggregated(about)?;
    let windows = collected.of_windows(&about.task)?;
    Ok((
        score(&about.task, Level::Subject, &subjects, baseline, &bootstrap)?,
        score(&about.task, Level::Window, &windows, baseline, &bootstrap)?,
    ))
}

/// A CSV field, quoted where it must be.
fn field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_string(),
    }
}

/// Columns of a prediction.
fn prediction_header(task: &Task) -> String {
    match task {
        Task::Regression { name, .. } => format!("{},predicted", field(name)),
        Task::Classification { name, classes } => {
            let columns = classes.iter().map(|class| field(&format!("p({class})")));
            let columns: Vec<String> = columns.collect();
            format!("{},predicted,{}", field(name), columns.join(","))
        }
    }
}

/// One row's label and prediction. A label that is not known is left empty.
fn prediction_fields(task: &Task, truth: f64, output: &[f64]) -> String {
    match task {
        Task::Regression { .. } => {
            let truth = if truth.is_finite() { truth.to_string() } else { String::new() };
            format!("{truth},{}", output[0])
        }
        Task::Classification { classes, .. } => {
            let name = |i: usize| classes.get(i).map_or(String::new(), |class| field(class));
            let truth = if truth.is_finite() { name(truth as usize) } else { String::new() };
            let best = (1..output.len()).fold(0, |b, i| if output[i] > output[b] { i } else { b });
            let all: Vec<String> = output.iter().map(ToString::to_string).collect();
            format!("{truth},{},{}", name(best), all.join(","))
        }
    }
}

/// Rows of windows as CSV.
pub fn windows_csv(data: &Dataset, about: &About, collected: &Collected) -> String {
    let mut text = format!("subject,session,task,run,start_s,{}\n", prediction_header(&about.task));
    let width = collected.output.len() / collected.windows.len().max(1);
    let rows = collected.windows.iter().zip(&collected.truth);
    for ((window, &truth), output) in rows.zip(collected.output.chunks_exact(width.max(1))) {
        let r = data.recording(window);
        let part = |part: &Option<String>| field(part.as_deref().unwrap_or(""));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{},{},{},{},{},{}",
            field(&r.subject),
            part(&r.session),
            part(&r.task),
            part(&r.run),
            f64::from(window.start) / about.sample_rate,
            prediction_fields(&about.task, truth, output)
        );
    }
    text
}

/// Rows of subjects (or recordings) as CSV: means over their windows.
pub fn subjects_csv(data: &Dataset, about: &About, collected: &Collected) -> String {
    let by_recording = about.by_recording;
    let head = if by_recording { "subject,task,run" } else { "subject" };
    let mut text = format!("{head},windows,{}\n", prediction_header(&about.task));
    let width = (collected.output.len() / collected.windows.len().max(1)).max(1);
    let mut groups: BTreeMap<String, (f64, Vec<f64>, usize)> = BTreeMap::new();
    let rows = collected.windows.iter().zip(&collected.truth);
    for ((window, &truth), output) in rows.zip(collected.output.chunks_exact(width)) {
        let r = data.recording(window);
        let mut name = field(&r.subject);
        if by_recording {
            let part = |part: &Option<String>| field(part.as_deref().unwrap_or(""));
            let _ = write!(name, ",{},{}", part(&r.task), part(&r.run));
        }
        let group = groups.entry(name).or_insert_with(|| (truth, vec![0.0; width], 0));
        group.1.iter_mut().zip(output).for_each(|(sum, x)| *sum += x);
        group.2 += 1;
    }
    for (name, (truth, sums, n)) in groups {
        let means: Vec<f64> = sums.iter().map(|sum| sum / n as f64).collect();
        let fields = prediction_fields(&about.task, truth, &means);
        let _ = writeln!(text, "{name},{n},{fields}");
    }
    text
}

/// Writes a text file whole or not at all.
///
/// # Errors
/// [`Error::Input`] naming the path.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, &mut |file| file.write_all(text.as_bytes()))
}

/// Windows whose channels are silenced one by one: enough for a map, few enough to be quick.
const ABLATED_WINDOWS: usize = 48;

/// How much the loss over some windows rises when a channel is silenced; None where positions are
/// not known.
///
/// # Errors
/// As [`Step::evaluate`].
pub fn channel_map(
    step: &Step,
    about: &About,
    data: &Dataset,
    windows: &[Window],
) -> Result<Option<ChannelMap>> {
    let Some(positions) = montage::positions(&about.channels) else { return Ok(None) };
    if windows.is_empty() {
        return Ok(None);
    }
    let stride = windows.len().div_ceil(ABLATED_WINDOWS);
    let chosen: Vec<Window> = windows.iter().step_by(stride).copied().collect();
    let (channels, length) = (about.channels.len(), data.length);
    let mut samples = vec![0.0; chosen.len() * channels * length];
    data.prepared.cache.fill_batch(&chosen, &mut samples)?;
    let labels: Vec<f64> = chosen.iter().map(|w| data.label(w)).collect();
    let whole = mean_loss(about, &labels, &step.evaluate(&samples)?);
    let mut values = Vec::with_capacity(channels);
    // As many channels at once as fill an evaluation pass: a large one mostly empty for each channel of a
    // geodesic net would take longer than a short training.
    let at_once = (step.spec().eval_batch / chosen.len()).max(1);
    let mut silenced = Vec::with_capacity(at_once * samples.len());
    for first in (0..channels).step_by(at_once) {
        let some = first..channels.min(first + at_once);
        silenced.clear();
        for c in some.clone() {
            let begin = silenced.len();
            silenced.extend_from_slice(&samples);
            for window in silenced[begin..].chunks_exact_mut(channels * length) {
                window[c * length..(c + 1) * length].fill(0.0);
            }
        }
        let raw = step.evaluate(&silenced)?;
        for (c, raw) in some.clone().zip(raw.chunks_exact(raw.len() / some.len())) {
            values.push(ChannelValue {
                name: about.channels[c].clone(),
                position: positions[c].map(f64::from),
                value: mean_loss(about, &labels, raw) - whole,
            });
        }
    }
    let label = match about.task {
        Task::Regression { .. } => "rise of the squared error (z-score)",
        Task::Classification { .. } => "rise of the log loss",
    };
    Ok(Some(ChannelMap {
        title: "Importance by silencing a channel".into(),
        label: label.into(),
        channels: values,
    }))
}

fn mean_loss(about: &About, labels: &[f64], raw: &[f32]) -> f64 {
    let width = raw.len() / labels.len().max(1);
    let rows = labels.iter().zip(raw.chunks_exact(width.max(1)));
    let losses = rows.map(|(&label, row)| match (&about.task, about.standard) {
        (Task::Classification { classes, .. }, _) => {
            -probabilities(row, classes.len())[label as usize].max(1e-12).ln()
        }
        (_, Some(standard)) => {
            (f64::from(row[0]) - (label - standard.mean) / standard.deviation).powi(2)
        }
        _ => (f64::from(row[0]) - label).powi(2),
    });
    losses.sum::<f64>() / labels.len().max(1) as f64
}

/// Magnitude of the first spectral block's gain; None for a model without.
///
/// # Errors
/// As [`crate::backend::Backend::download`].
pub fn spectral_gain(step: &Step, about: &About) -> Result<Option<SpectralGain>> {
    let ModelConfig::EegFormer(config) = &about.model else { return Ok(None) };
    let Some(id) = step.params().find("spectral.0.gain") else { return Ok(None) };
    let parts = step.params().read(id)?;
    let gain = parts.chunks_exact(2).map(|c| f64::from(c[0]).hypot(f64::from(c[1]))).collect();
    let tokens = config.tokens();
    let rate = about.sample_rate / config.patch as f64;
    let frequencies = (0..=tokens / 2).map(|f| f as f64 * rate / tokens as f64).collect();
    Ok(Some(SpectralGain { frequencies, gain }))
}

/// AUROC of a binary task over these predictions, for per-fold means.
pub fn auroc(predictions: &Predictions) -> Option<f64> {
    match predictions.outputs() {
        Outputs::Classification { .. } => crate::metrics::Metric::Auroc.of(predictions),
        Outputs::Regression { .. } => None,
    }
}

/// How the channels of data differ from those that a model takes; None where they do not.
fn other_channels(takes: &[String], have: &[String]) -> Option<String> {
    let words = |names: &[String], of: &[String]| {
        names::lacking(names, &of.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let differ = match (words(takes, have), words(have, takes)) {
        (Some(lacking), Some(more)) => format!("the data lack {lacking}, and have {more}"),
        (Some(lacking), None) => format!("the data lack {lacking}"),
        (None, Some(more)) => format!("the data also have {more}"),
        (None, None) => {
            let (ours, theirs) = takes.iter().zip(have).find(|(ours, theirs)| ours != theirs)?;
            format!("the data have them in another order, {theirs} where it takes {ours}")
        }
    };
    Some(format!("takes {} channels: {differ}", takes.len()))
}

/// Refuses a model whose windows are not the dataset's.
///
/// # Errors
/// [`Error::Input`] naming the first difference.
pub fn check_windows(about: &About, data: &Dataset, checkpoint: &Path) -> Result<()> {
    let (_, window, _) = about.model.extents();
    let place = checkpoint.display();
    if let Some(problem) = other_channels(&about.channels, data.channels()) {
        let remedy =
            "give data with the channels the model was trained on, named and ordered alike";
        return Err(Error::input(place, problem, remedy));
    }
    if data.length != window {
        let problem = format!("takes windows of {window} samples, the data give {}", data.length);
        return Err(Error::input(place, problem, "use the settings of the model's run"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::other_channels;

    #[test]
    fn other_channels_are_named() {
        let owned = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let words = |takes: &str, have: &str| other_channels(&owned(takes), &owned(have));
        assert_eq!(words("Fz Cz", "Fz Cz"), None);
        for (takes, have, parts) in [
            ("Fz Cz Pz", "Fz Cz Oz", &["takes 3 channels", "lack Pz,", "have Oz"][..]),
            ("Fz Cz", "FZ Cz", &["lack Fz (there is FZ: upper and lower case count)"]),
            ("Fz Cz", "Fz Cz Oz", &["also have Oz"]),
            ("Fz Cz Pz", "Fz Pz Cz", &["another order, Pz where it takes Cz"]),
        ] {
            let text = words(takes, have).expect("different");
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
