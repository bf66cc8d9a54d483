//! The training loop of one split: steps, validation, checkpoints, resuming.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::dataset::Dataset;
use super::early_stop::{Better, EarlyStop, Verdict};
use super::loader::{Batch, Loader, Source};
use super::loss_scale::LossScale;
use super::recipe::{EVAL_BATCH, step_spec};
use super::resident::{Augmented, Resident};
use super::run_dir::{MetricsLog, RunPaths};
use super::schedule::Schedule;
use super::signal;
use super::state::{About, Loaded, Progress, save_model, save_run};
use super::step::{Results, Step};
use super::target::Standard;
use crate::backend::Backend;
use crate::config::Settings;
use crate::console::{Console, Progress as Progressing};
use crate::data::augment::{self, Augment};
use crate::data::montage;
use crate::data::sampler::{Balance, Sampler};
use crate::data::split::{Part as SplitPart, Split};
use crate::data::window::Window;
use crate::model::ModelConfig;
use crate::nn::params::Part;
use crate::optim::{Control, Rates};
use crate::report::{Curves, EventWriter};
use crate::{Error, Result};

/// One training: a dataset, a split, a folder.
pub struct Fit<'a> {
    settings: &'a Settings,
    data: &'a Dataset,
    console: &'a Console,
    paths: RunPaths,
    label: String,
    source: Source<'a>,
    validation: Vec<Window>,
    about: About,
    step: Step,
    sampler: Sampler,
    schedule: Schedule,
    /// The recordings on the card, where they fit and batches can be made there.
    resident: Option<Resident>,
}

/// How a training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps done, or stopped early.
    Finished,
    /// Ctrl-C or SIGTERM: saved, to be resumed.
    Interrupted,
}

/// Windows of the subjects of one part of a split.
pub fn windows_of(data: &Dataset, split: &Split, part: SplitPart) -> Vec<Window> {
    let belongs = |w: &&Window| split.part_of(&data.recording(w).subject) == Some(part);
    data.windows.iter().filter(belongs).copied().collect()
}

/// Random numbers of one index among a dataset's windows.
fn numbered<T: Ord + Clone>(values: &[T]) -> Vec<u32> {
    let mut distinct = values.to_vec();
    distinct.sort();
    distinct.dedup();
    values.iter().map(|v| distinct.binary_search(v).map_or(0, |i| i as u32)).collect()
}

impl<'a> Fit<'a> {
    /// Builds the model on `backend` and everything around it. `batch` is the planned one.
    ///
    /// # Errors
    /// [`Error::Input`] for settings that do not fit the data; [`Error::OutOfMemory`].
    pub fn new(
        settings: &'a Settings,
        data: &'a Dataset,
        split: &Split,
        (backend, batch): (Arc<dyn Backend>, usize),
        (paths, label): (RunPaths, String),
        console: &'a Console,
    ) -> Result<Self> {
        let train = windows_of(data, split, SplitPart::Train);
        let validation = windows_of(data, split, SplitPart::Validation);
        let labels: Vec<f64> = train.iter().map(|w| data.label(w)).collect();
        let t = &settings.train;
        // The longest schedule there can be is known only with the number of batches.
        let rows = (batch * t.accumulation).min(train.len()).max(1);
        let batch = if rows < batch * t.accumulation { rows / t.accumulation } else { batch };
        let machine = backend.arch().machine;
        let spec = step_spec(settings, data, &labels, (batch.max(1), machine))?;
        let planned = Step::plan(backend.arch(), backend.arch().memory, &spec)?;
        backend.reserve(&planned)?;
        let step = Step::new(backend, spec)?;
        let subjects: Vec<String> =
            train.iter().map(|w| data.recording(w).subject.clone()).collect();
        let is_class = data.target.n_classes() > 0;
        let classes: Vec<u32> = labels.iter().map(|&l| l as u32).collect();
        let balance = match (settings.data.balanced, is_class) {
            (false, _) => Balance::Windows,
            (true, true) => Balance::ClassesAndSubjects,
            (true, false) => Balance::Subjects,
        };
        let classes = is_class.then_some(classes.as_slice());
        let sampler = Sampler::new(&numbered(&subjects), classes, balance, step.rows(), t.seed)?;
        let total = sampler.batches() as u64 * t.epochs;
        let total = t.max_steps.map_or(total, |most| most.min(total));
        let standard = (!is_class).then(|| standard(data, &train));
        let about = About {
            model: step.spec().model.clone(),
            task: data.target.task.clone(),
            standard,
            channels: data.channels().to_vec(),
            sample_rate: data.prepared.cache.sample_rate(),
            by_recording: data.target.by_recording,
        };
        let augment = augmentation(settings, data)?;
        let all = train.iter().chain(&validation).copied();
        let resident = resident(&step, data, &augment, all)?;
        let source = Source {
            data,
            windows: train,
            augment,
            on_card: resident.is_some(),
            standard,
            smoothing: t.label_smoothing,
            seed: t.seed,
        };
        let schedule = Schedule::from_settings(t, total)?;
        Ok(Self {
            settings,
            data,
            console,
            paths,
            label,
            source,
            validation,
            about,
            step,
            sampler,
            schedule,
            resident,
        })
    }

    fn start_from_init(&self) -> Result<()> {
        let Some(path) = &self.settings.train.init else { return Ok(()) };
        let params = self.step.params();
        let is_head = |id| params.spec(id).part == Part::Head;
        let left = Loaded::open(path)?.initialise(params, is_head)?;
        self.step.optimizer().restart_average(params)?;
        let list = left.join(", ");
        self.console.say(&format!("weights of {}; fresh: {list}", path.display()));
        Ok(())
    }

    /// The model and its recorded step.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// What the model is.
    pub fn about(&self) -> &About {
        &self.about
    }

    fn first_progress(&self) -> EarlyStop {
        let t = &self.settings.train;
        EarlyStop::new(Better::Lower, t.patience, t.min_delta)
    }

    /// Trains from the start, or from where the folder's last checkpoint stands.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the training diverges; files that cannot be written; the device's.
    pub fn run(&mut self, resume: bool) -> Result<Ended> {
        let last = self.paths.last();
        let mut progress = Progress {
            step: 0,
            epoch: 0,
            step_in_epoch: 0,
            loss_sum: 0.0,
            early_stop: self.first_progress(),
            finished: false,
            batch: self.step.spec().batch,
            scale: LossScale::new(self.step.params().compute_type()),
        };
        if resume && last.exists() {
            let loaded = Loaded::open(&last)?;
            progress = loaded.progress()?;
            loaded.resume(&self.step)?;
            if !progress.finished {
                let at = format!("{}: going on after step {}", self.label, progress.step);
                self.console.say(&at);
            }
        } else {
            self.start_from_init()?;
        }
        if progress.finished {
            return Ok(Ended::Finished);
        }
        let (metrics, events) = self.logs(&progress)?;
        let total = self.schedule.total();
        let mut course = Course {
            metrics,
            events,
            bar: self.console.progress(&self.label, progress.step, total),
            saved: Instant::now(),
            windows: 0,
            unread: VecDeque::with_capacity(2),
            last_loss: None,
        };
        let mut frozen = None;
        while !progress.finished {
            self.thaw(progress.epoch, &mut frozen)?;
            if self.pass(&mut progress, &mut course)? == Ended::Interrupted {
                course.bar.finish();
                self.save(&progress)?;
                return Ok(Ended::Interrupted);
            }
            self.end_epoch(&mut progress, &mut course)?;
            progress.finished |= progress.step >= total;
            self.save(&progress)?;
            course.saved = Instant::now();
        }
        course.bar.finish();
        Ok(Ended::Finished)
    }

    /// What is left of an epoch, or of the training.
    fn pass(&self, progress: &mut Progress, course: &mut Course<'_>) -> Result<Ended> {
        let rows = self.step.rows();
        let order = self.sampler.order(progress.epoch);
        let left = self.sampler.batches() as u64 - progress.step_in_epoch;
        let left = left.min(self.schedule.total() - progress.step) as usize;
        let order = &order[progress.step_in_epoch as usize * rows..][..left * rows];
        std::thread::scope(|scope| {
            let (first, threads) = ((rows, progress.step), self.settings.train.workers);
            let mut loader = Loader::start(scope, &self.source, order, first, threads)?;
            for _ in 0..left {
                loader.next(|batch| self.one_step(batch, progress, course))?;
                course.windows += rows as u64;
                // The results of a step are read once the next one is under way.
                let stop = signal::stop_requested();
                let save = self.save_is_due(progress, course.saved);
                self.settle(progress, course, usize::from(!stop && !save))?;
                course.bar.update(progress.step, course.windows, course.last_loss);
                if stop {
                    return Ok(Ended::Interrupted);
                }
                if save {
                    self.save(progress)?;
                    course.saved = Instant::now();
                }
            }
            self.settle(progress, course, 0)?;
            Ok(Ended::Finished)
        })
    }

    /// The metrics and events, without what an interrupted run wrote past its last save.
    fn logs(&self, progress: &Progress) -> Result<(MetricsLog, EventWriter)> {
        let (metrics, events) = (self.paths.metrics(), self.paths.events());
        if progress.step == 0 {
            return Ok((MetricsLog::create(&metrics)?, EventWriter::create(events)?));
        }
        let (log, _) = MetricsLog::resume(&metrics, progress.step, progress.epoch)?;
        Ok((log, EventWriter::resume(events, progress.step + 1)?))
    }

    /// Saves the last state, which is never one with weights that are no numbers.
    fn save(&self, progress: &Progress) -> Result<()> {
        if let Some(tensor) = self.step.find_not_finite()? {
            return Err(self.diverged(progress.step, tensor));
        }
        save_run(&self.step, &self.about, progress, &self.paths.last())
    }

    fn save_is_due(&self, progress: &Progress, saved: Instant) -> bool {
        let t = &self.settings.train;
        t.checkpoint_every_s.is_some_and(|s| saved.elapsed().as_secs_f64() >= s)
            || t.checkpoint_every_steps.is_some_and(|n| n > 0 && progress.step.is_multiple_of(n))
    }

    /// Progressive unfreezing: in epoch e the head and the last e / n layers learn.
    fn thaw(&mut self, epoch: u64, frozen: &mut Option<u64>) -> Result<()> {
        let Some(every) = self.settings.train.unfreeze.filter(|&n| n > 0) else { return Ok(()) };
        let layers = match &self.about.model {
            ModelConfig::EegFormer(config) => config.n_layers as u64,
            ModelConfig::Shallow(_) => 0,
        };
        let thawed = (epoch / every).min(layers + 1);
        if *frozen == Some(thawed) {
            return Ok(());
        }
        *frozen = Some(thawed);
        self.step.freeze(|part| match part {
            Part::Head => false,
            Part::Layer(i) => u64::from(i) + thawed < layers,
            Part::Embedding => thawed <= layers,
        })
    }

    /// Reads results until at most `left` steps have theirs unread.
    fn settle(&self, progress: &mut Progress, course: &mut Course<'_>, left: usize) -> Result<()> {
        while course.unread.len() > left {
            let Some((step, results)) = course.unread.pop_front() else { break };
            let (loss, norm) = results.wait()?;
            if !loss.is_finite() || !norm.is_finite() {
                // f16 overflowed: the update was left out, the scale was too large.
                if progress.scale.observe(step, false) {
                    continue;
                }
                let found = self.step.find_not_finite()?;
                let tensor = found.unwrap_or_else(|| format!("the loss ({loss})"));
                return Err(self.diverged(step, tensor));
            }
            progress.scale.observe(step, true);
            progress.loss_sum += loss;
            course.last_loss = Some(loss);
            self.record(course, (step, progress.epoch), loss, norm)?;
        }
        Ok(())
    }

    /// Enqueues the next update.
    fn one_step(
        &self,
        batch: &Batch,
        progress: &mut Progress,
        course: &mut Course<'_>,
    ) -> Result<()> {
        let (step, t) = (progress.step, &self.settings.train);
        match &self.resident {
            Some(resident) => {
                let (augment, numbers) = (&self.source.augment, batch.numbers.as_slice());
                let augmented = Augmented { augment, seed: t.seed, step, numbers };
                let augmented = (!augment.is_off()).then_some(augmented);
                let backend = self.step.params().backend();
                resident.fill(backend, &batch.chosen, augmented, self.step.windows())?;
            }
            None => self.step.load_windows(&batch.windows)?,
        }
        self.step.load_targets(&batch.targets)?;
        let head_lr = t.head_lr.unwrap_or(t.lr);
        let frozen = |part| {
            self.step.params().ids().any(|id| {
                self.step.params().spec(id).part == part && self.step.params().is_frozen(id)
            })
        };
        let rates = |part: Part| {
            let peak = if part == Part::Head { head_lr } else { t.lr };
            let lr = self.schedule.lr(peak, step);
            Rates { lr, decay: t.weight_decay, trained: t.unfreeze.is_none() || !frozen(part) }
        };
        let control = Control {
            step: step + 1,
            clip: t.clip.unwrap_or(0.0),
            loss_scale: progress.scale.at(step + 1),
            // Young averages follow faster, or the random first weights would weigh for long.
            average: t.ema.map_or(0.0, |d| d.min((1.0 + step as f64) / (10.0 + step as f64))),
        };
        self.step.train(t.seed, control, rates)?;
        course.unread.push_back((step + 1, self.step.results_later()?));
        progress.step += 1;
        progress.step_in_epoch += 1;
        Ok(())
    }

    fn diverged(&self, step: u64, tensor: String) -> Error {
        let last = self.paths.last();
        let kept = match last.exists() {
            true => format!("the last good checkpoint is {}", last.display()),
            false => "no checkpoint was saved yet".into(),
        };
        Error::NotFinite {
            step,
            tensor,
            remedy: format!(
                "{kept}; start again in another folder with a lower --lr or --set train.clip=1.0, \
                 or with --init from that checkpoint"
            ),
        }
    }

    fn record(
        &self,
        course: &mut Course<'_>,
        (step, epoch): (u64, u64),
        loss: f64,
        norm: f64,
    ) -> Result<()> {
        let lr = self.schedule.lr(self.settings.train.lr, step - 1);
        course.metrics.append(&json!({
            "kind": "step", "step": step, "epoch": epoch, "loss": loss, "grad_norm": norm, "lr": lr
        }))?;
        let all = [("train/loss", loss), ("train/grad_norm", norm), ("train/lr", lr)];
        course.events.scalars(step, &all)
    }

    fn end_epoch(&self, progress: &mut Progress, course: &mut Course<'_>) -> Result<()> {
        let loss = progress.loss_sum / progress.step_in_epoch.max(1) as f64;
        let validation = match self.validation.is_empty() {
            // Without validation subjects the latest weights are the ones kept.
            true => None,
            false => Some(self.validation_loss(progress.step)?),
        };
        let verdict = match validation {
            Some(score) => progress.early_stop.update(progress.epoch, score),
            None => Verdict::Best,
        };
        if verdict == Verdict::Best {
            if let Some(tensor) = self.step.find_not_finite()? {
                return Err(self.diverged(progress.step, tensor));
            }
            save_model(&self.step, &self.about, &self.paths.best())?;
        }
        let (step, epoch) = (progress.step, progress.epoch);
        course.metrics.append(&json!({
            "kind": "epoch", "step": step, "epoch": epoch, "train_loss": loss,
            "validation_loss": validation, "best": verdict == Verdict::Best
        }))?;
        if let Some(validation) = validation {
            course.events.scalars(step, &[("validation/loss", validation)])?;
        }
        self.console.event(
            "epoch",
            &json!({
                "run": self.label, "epoch": epoch + 1, "step": step, "train_loss": loss,
                "validation_loss": validation
            }),
        );
        progress.finished = verdict == Verdict::Stop;
        if progress.finished {
            let best = progress.early_stop.best().map_or(0, |best| best.epoch + 1);
            let text = format!("{}: no better since epoch {best}: stopped early", self.label);
            self.console.say(&text);
        }
        progress.epoch += 1;
        progress.step_in_epoch = 0;
        progress.loss_sum = 0.0;
        Ok(())
    }

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
    fn validation_loss(&self, step: u64) -> Result<f64> {
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

/// What a training carries from step to step besides its [`Progress`].
struct Course<'a> {
    metrics: MetricsLog,
    events: EventWriter,
    bar: Progressing<'a>,
    /// When the last state was saved.
    saved: Instant,
    /// Windows seen by this process.
    windows: u64,
    /// Steps whose results were not read yet, by number.
    unread: VecDeque<(u64, Results)>,
    last_loss: Option<f64>,
}

/// How labels become z-scores: by the mean and the deviation over subjects.
fn standard(data: &Dataset, train: &[Window]) -> Standard {
    let by_subject: std::collections::BTreeMap<&str, f64> =
        train.iter().map(|w| (data.recording(w).subject.as_str(), data.label(w))).collect();
    Standard::of(&by_subject.into_values().collect::<Vec<_>>())
}

/// The recordings of these windows on the step's device, where batches can be made there.
fn resident(
    step: &Step,
    data: &Dataset,
    augment: &Augment,
    windows: impl Iterator<Item = Window>,
) -> Result<Option<Resident>> {
    if !augment.only_moves() {
        return Ok(None);
    }
    let (windows, rows) = (windows.collect::<Vec<_>>(), step.rows().max(EVAL_BATCH));
    Resident::load(step.params().backend(), &data.prepared.cache, &windows, rows)
}

fn augmentation(settings: &Settings, data: &Dataset) -> Result<Augment> {
    let table = toml::Value::Table(settings.augment.clone());
    let chosen: augment::Settings = table.try_into().map_err(|error: toml::de::Error| {
        let remedy = "see the section [augment] of the documentation";
        Error::input("augment", error.message(), remedy)
    })?;
    let region = |name: &String| montage::region(name).map(|region| region as u32);
    let regions: Vec<Option<u32>> = data.channels().iter().map(region).collect();
    let rate = data.prepared.cache.sample_rate();
    Augment::new(chosen, data.channels().len(), data.length, rate, &regions)
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
    for piece in windows.chunks(8 * EVAL_BATCH) {
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
