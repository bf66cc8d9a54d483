//! The training loop of one split: steps, validation, checkpoints, resuming.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::dataset::Dataset;
use super::early_stop::{Better, EarlyStop, Verdict};
use super::loader::{Batch, Loader, Source};
use super::loss_scale::LossScale;
use super::planner::plan_exactly;
use super::profile::Profiler;
use super::recipe::step_spec;
use super::resident::{Augmented, Resident};
use super::run_dir::{MetricsLog, RunPaths};
use super::saver::{Saver, Wanted, Written};
use super::schedule::Schedule;
use super::signal;
use super::state::{About, Loaded, Progress};
use super::step::{Results, Step};
use super::target::Standard;
use super::validation::thinned;
use crate::backend::Backend;
use crate::config::Settings;
use crate::console::{Console, Progress as Progressing};
use crate::data::augment::Augment;
use crate::data::montage;
use crate::data::sampler::{Balance, Sampler};
use crate::data::split::{Part as SplitPart, Split};
use crate::data::window::Window;
use crate::model::ModelConfig;
use crate::nn::params::Part;
use crate::optim::{Control, Rates};
use crate::report::EventWriter;
use crate::{Error, Result};

/// One training: a dataset, a split, a folder.
pub struct Fit<'a> {
    settings: &'a Settings,
    pub(super) data: &'a Dataset,
    console: &'a Console,
    paths: RunPaths,
    label: String,
    pub(super) source: Source<'a>,
    /// What of the validation windows is looked at after each epoch.
    pub(super) validation: Vec<Window>,
    pub(super) about: About,
    pub(super) step: Step,
    sampler: Sampler,
    schedule: Schedule,
    /// The recordings on the card, where they fit and batches can be made there.
    pub(super) resident: Option<Resident>,
    /// Writes checkpoints beside the steps.
    saver: Saver,
    /// Some steps are profiled.
    profiled: bool,
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
        let sizes = (batch.max(1), backend.arch().machine);
        let spec = step_spec(settings, data, &labels, sizes)?;
        backend.reserve(&plan_exactly(backend.arch(), backend.arch().memory, &spec)?)?;
        let step = Step::new(backend, spec)?;
        let validation =
            thinned(validation, (train.len(), t.validation_share), step.spec().eval_batch);
        let subjects: Vec<_> = train.iter().map(|w| data.recording(w).subject.clone()).collect();
        let is_class = data.target.n_classes() > 0;
        let balance = match (settings.data.balanced, is_class) {
            (false, _) => Balance::Windows,
            (true, true) => Balance::ClassesAndSubjects,
            (true, false) => Balance::Subjects,
        };
        let classes = is_class.then(|| labels.iter().map(|&l| l as u32).collect::<Vec<_>>());
        let classes = classes.as_deref();
        let sampler = Sampler::new(&numbered(&subjects), classes, balance, step.rows(), t.seed)?;
        let total = t.max_steps.unwrap_or(u64::MAX).min(sampler.batches() as u64 * t.epochs);
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
        let resident = resident(&step, data, &augment, train.iter().chain(&validation).copied())?;
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
            saver: Saver::default(),
            profiled: false,
        })
    }

    /// Times some steps of the training op by op, says where time and memory go, and writes a trace into
    /// the run's folder. The weights do not depend on it.
    pub fn profile(&mut self, on: bool) {
        self.profiled = on;
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

    /// Where the training begins: at the start, or where the folder's last checkpoint stands, whose state is
    /// taken then.
    ///
    /// # Errors
    /// [`Error::Input`] for a checkpoint of another model, or past the end that the settings give.
    pub fn begin(&self, resume: bool) -> Result<Progress> {
        let last = self.paths.last();
        if !resume || !last.exists() {
            self.start_from_init()?;
            return Ok(Progress {
                step: 0,
                epoch: 0,
                step_in_epoch: 0,
                loss_sum: 0.0,
                early_stop: self.first_progress(),
                finished: false,
                batch: self.step.spec().batch,
                scale: LossScale::new(self.step.params().compute_type()),
            });
        }
        let loaded = Loaded::open(&last)?;
        let progress = loaded.progress()?;
        loaded.resume(&self.step)?;
        let (step, total) = (progress.step, self.schedule.total());
        if !progress.finished && step > total {
            let problem = format!("stands after step {step}, its settings end it at {total}");
            let remedy = "give --epochs or --max-steps that end the run later";
            return Err(Error::input(last.display(), problem, remedy));
        }
        let stands = match progress.finished {
            true => format!("finished at step {step}, and is only scored again"),
            false => format!("going on after step {step}"),
        };
        self.console.say(&format!("{}: {stands}", self.label));
        Ok(progress)
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the training diverges; files that cannot be written; the device's.
    pub fn run(&mut self, mut progress: Progress) -> Result<Ended> {
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
            spent: Spent::default(),
            windows: 0,
            unread: VecDeque::with_capacity(2),
            last_loss: None,
            profiler: Profiler::new(
                self.profiled.then(|| self.paths.trace()),
                &self.step.params().backend().arch().name,
                total - progress.step,
            ),
        };
        let ended = self.epochs(&mut progress, &mut course)?;
        self.finish_saving(&mut course)?;
        course.profiler.finish(self.console)?;
        self.tell(&course);
        course.bar.finish();
        Ok(ended)
    }

    fn epochs(&mut self, progress: &mut Progress, course: &mut Course<'_>) -> Result<Ended> {
        let mut frozen = None;
        while !progress.finished {
            self.thaw(progress.epoch, &mut frozen)?;
            if self.pass(progress, course)? == Ended::Interrupted {
                self.save(progress, course, None)?;
                return Ok(Ended::Interrupted);
            }
            let verdict = self.end_epoch(progress, course)?;
            progress.finished |= progress.step >= self.schedule.total();
            self.save(progress, course, Some(verdict))?;
        }
        Ok(Ended::Finished)
    }

    /// Says how fast it went, and what of the time was not spent on steps.
    fn tell(&self, course: &Course<'_>) {
        let Spent { begun, validation, saving } = &course.spent;
        let seconds = begun.elapsed().as_secs_f64();
        let (validation, saving) = (validation.as_secs_f64(), saving.as_secs_f64());
        let (all, steps) = (course.windows as f64 / seconds, seconds - validation - saving);
        self.console.say(&format!(
            "{}: {} windows in {seconds:.2} s, {all:.0} a second; of that {steps:.2} s on steps, \
             {validation:.2} s on validation, {saving:.2} s waiting for checkpoints",
            self.label, course.windows
        ));
        let fields = json!({
            "run": self.label, "windows": course.windows, "seconds": seconds,
            "steps_s": steps, "validation_s": validation, "saving_s": saving
        });
        self.console.event("trained", &fields);
    }

    /// What is left of an epoch, or of the training.
    fn pass(&self, progress: &mut Progress, course: &mut Course<'_>) -> Result<Ended> {
        let (rows, backend) = (self.step.rows(), self.step.params().backend());
        let order = self.sampler.order(progress.epoch);
        let left = self.sampler.batches() as u64 - progress.step_in_epoch;
        let left = left.min(self.schedule.total() - progress.step) as usize;
        let order = &order[progress.step_in_epoch as usize * rows..][..left * rows];
        std::thread::scope(|scope| {
            let (first, threads) = ((rows, progress.step), self.settings.train.workers);
            let mut loader = Loader::start(scope, &self.source, order, first, threads)?;
            for _ in 0..left {
                course.profiler.begin(backend)?;
                loader.next(|batch| self.one_step(batch, progress, course))?;
                course.profiler.end(backend, progress.step, self.console)?;
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
                    self.save(progress, course, None)?;
                }
                self.check(self.saver.check()?)?;
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

    /// Begins to save the present state: within an epoch or, with its verdict, at the end of one. A state
    /// with weights that are no numbers is never saved: the run ends instead, as it does where a file cannot
    /// be written. Unless the training ends, an epoch's end waits for no other save: [`Saver::offer`].
    fn save(&self, now: &Progress, course: &mut Course<'_>, epoch: Option<Verdict>) -> Result<()> {
        let begun = Instant::now();
        let wanted = Wanted {
            about: self.about.clone(),
            progress: now.clone(),
            best: (epoch == Some(Verdict::Best)).then(|| self.paths.best()),
            last: self.paths.last(),
        };
        let (before, saves) = match epoch.is_none() || now.finished {
            true => (self.saver.begin(&self.step, wanted)?, true),
            false => self.saver.offer(&self.step, wanted)?,
        };
        course.saved = if saves { Instant::now() } else { course.saved };
        course.spent.saving += begun.elapsed();
        self.check(before)
    }

    /// Waits until what was saved is on the disk.
    fn finish_saving(&self, course: &mut Course<'_>) -> Result<()> {
        let begun = Instant::now();
        let written = self.saver.wait()?;
        course.spent.saving += begun.elapsed();
        self.check(written)
    }

    fn check(&self, written: Written) -> Result<()> {
        match written {
            Written::Whole => Ok(()),
            Written::NotFinite(step, tensor) => Err(self.diverged(step, tensor)),
        }
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

    pub(super) fn diverged(&self, step: u64, tensor: String) -> Error {
        // One that is being written may be the one to name.
        let _ = self.saver.wait();
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

    /// Validates and decides what follows.
    fn end_epoch(&self, progress: &mut Progress, course: &mut Course<'_>) -> Result<Verdict> {
        let begun = Instant::now();
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
        course.spent.validation += begun.elapsed();
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
        Ok(verdict)
    }
}

/// What a training carries from step to step besides its [`Progress`].
struct Course<'a> {
    metrics: MetricsLog,
    events: EventWriter,
    bar: Progressing<'a>,
    /// When the last state was saved.
    saved: Instant,
    spent: Spent,
    /// Windows seen by this process.
    windows: u64,
    /// Steps whose results were not read yet, by number.
    unread: VecDeque<(u64, Results)>,
    last_loss: Option<f64>,
    profiler: Profiler,
}

/// Where the time of a training went.
struct Spent {
    begun: Instant,
    validation: Duration,
    saving: Duration,
}

impl Default for Spent {
    fn default() -> Self {
        Self { begun: Instant::now(), validation: Duration::ZERO, saving: Duration::ZERO }
    }
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
    let (windows, rows) = (windows.collect::<Vec<_>>(), step.rows().max(step.spec().eval_batch));
    Resident::load(step.params().backend(), &data.prepared.cache, &windows, rows)
}

fn augmentation(settings: &Settings, data: &Dataset) -> Result<Augment> {
    let region = |name: &String| montage::region(name).map(|region| region as u32);
    let regions: Vec<Option<u32>> = data.channels().iter().map(region).collect();
    let rate = data.prepared.cache.sample_rate();
    let chosen = settings.augment.clone();
    Augment::new(chosen, data.channels().len(), data.length, rate, &regions)
}
