//! A trained model on data: what `engine predict` runs, and what programs that embed the engine call.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::dataset::{self, Dataset, Prepared};
use super::recipe::EVAL_BATCH;
use super::results::{self, Collected};
use super::run_dir::{RunDir, RunPaths};
use super::state::{About, Loaded};
use super::step::{Objective, Step, StepSpec};
use super::target::Target;
use crate::backend::{Backend, MemoryUse};
use crate::config::{self, Settings};
use crate::data::prepare::Progress;
use crate::data::{ChannelKind, Recording, bids, montage, names, prepare, preprocess};
use crate::ops::loss::Pointwise;
use crate::optim::Rule;
use crate::{DType, Error, Result};

/// A checkpoint's model on a device, ready to predict.
pub struct Predictor {
    /// The model.
    pub step: Step,
    /// What it predicts, and of which windows.
    pub about: About,
    /// The checkpoint.
    pub path: PathBuf,
}

impl Predictor {
    /// Reads a checkpoint. `batch` windows are computed at a time; 0: the number of
    /// `engine predict`. Results do not depend on it.
    ///
    /// # Errors
    /// As [`Loaded::open`], [`Loaded::about`] and [`Step::new`].
    pub fn open(backend: Arc<dyn Backend>, path: &Path, batch: usize) -> Result<Self> {
        let loaded = Loaded::open(path)?;
        let about = loaded.about()?;
        let (_, _, outputs) = about.model.extents();
        let mut spec = StepSpec {
            model: about.model.clone(),
            batch: 1,
            accumulation: 1,
            eval_batch: if batch == 0 { EVAL_BATCH } else { batch },
            objective: match outputs {
                1 => Objective::Pointwise(Pointwise::Mse),
                n => Objective::CrossEntropy { weights: vec![1.0; n], smoothing: 0.0 },
            },
            rule: Rule::Sgd { momentum: 0.0, nesterov: false },
            average: false,
            dtype: DType::F32,
            compute: None,
            seed: 0,
        };
        // Where others have a part of the memory, pieces of it are asked for one by one.
        if backend.memory().peak() == 0 {
            backend.reserve(&plan(&backend, &mut spec, batch == 0)?)?;
        }
        let step = Step::new(backend, spec)?;
        loaded.restore(step.params())?;
        Ok(Self { step, about, path: path.to_path_buf() })
    }

    /// Reads one recording with the run's settings and cuts it into windows. The cache that is
    /// made of it goes to `folder`.
    ///
    /// # Errors
    /// As [`Recording::open`] and [`prepare::prepare`]; [`Error::Input`] where the windows are not
    /// the model's.
    pub fn windows_of(
        &self,
        settings: &Settings,
        recording: &Path,
        folder: &Path,
        progress: &(dyn Fn(Progress<'_>) + Sync),
        cancel: &AtomicBool,
    ) -> Result<Dataset> {
        let prepared = single(settings, &self.about, recording, folder, progress, cancel)?;
        self.cut(settings, prepared)
    }

    /// All windows, labels where the data happen to have them.
    ///
    /// # Errors
    /// As [`crate::data::window::Windowing::cut`]; [`Error::Input`] where the windows are not the
    /// model's.
    pub fn cut(&self, settings: &Settings, prepared: Prepared) -> Result<Dataset> {
        let about = &self.about;
        let recordings = prepared.cache.recordings();
        let known = Target::new(&settings.data.target, &prepared.participants, recordings)
            .ok()
            .filter(|target| target.task == about.task);
        let target = known.unwrap_or_else(|| Target {
            task: about.task.clone(),
            labels: vec![None; recordings.len()],
            by_recording: about.by_recording,
        });
        let cut = dataset::windowing(&settings.data)
            .cut(&prepared.cache.extents(), prepared.cache.sample_rate())?;
        let data = Dataset { length: cut.length, windows: cut.windows, target, prepared };
        results::check_windows(about, &data, &self.path)?;
        Ok(data)
    }

    /// Predictions of all windows.
    ///
    /// # Errors
    /// As [`Step::evaluate`].
    pub fn predict(&self, data: &Dataset) -> Result<Collected> {
        let mut collected = Collected::default();
        collected.add(&self.step, &self.about, data, &data.windows)?;
        Ok(collected)
    }
}

/// The memory of a step; where the batch is free, with as many windows as fit.
fn plan(backend: &Arc<dyn Backend>, spec: &mut StepSpec, free: bool) -> Result<MemoryUse> {
    let arch = backend.arch();
    loop {
        match Step::plan(arch, arch.memory, spec) {
            Err(Error::OutOfMemory { .. }) if free && spec.eval_batch > 1 => spec.eval_batch /= 2,
            other => return other,
        }
    }
}

/// The checkpoint a word ("best", "last") or path names. A cross-validation keeps one for each fold.
///
/// # Errors
/// [`Error::Input`] for a word where the run is a cross-validation, and where there is no such file.
pub fn checkpoint(paths: &RunPaths, name: &Path) -> Result<PathBuf> {
    let path = match name.to_str() {
        Some("best") => paths.best(),
        Some("last") => paths.last(),
        _ => name.to_path_buf(),
    };
    if path != name && !path.exists() && paths.fold(1).root().is_dir() {
        let problem = "is a cross-validation: each fold has a model of its own";
        let remedy = format!("name one, as in --checkpoint {}", paths.fold(1).best().display());
        return Err(Error::input(paths.root().display(), problem, remedy));
    }
    if !path.exists() {
        let remedy = "give best, last, or a file such as RUN/checkpoints/best.safetensors; a run has \
                      them once an epoch is done";
        return Err(Error::input(path.display(), "there is no such checkpoint", remedy));
    }
    Ok(path)
}

/// The checkpoint that a path stands for, and the settings of its run: `path` is a run's folder (its
/// best checkpoint is meant) or a checkpoint. A checkpoint that lies in no run's folder has no
/// settings.
///
/// # Errors
/// [`Error::Input`] for a folder that is no run, and for damaged settings.
pub fn find(path: &Path) -> Result<(PathBuf, Option<Settings>)> {
    let settings = |run: &RunPaths| -> Result<Settings> {
        Ok(config::resolve(Some(&run.config()), &[], None)?.settings)
    };
    if path.is_dir() {
        let run = RunDir::open(path)?;
        return Ok((checkpoint(&run, Path::new("best"))?, Some(settings(&run)?)));
    }
    // RUN/checkpoints/best.safetensors, RUN/fold-1/checkpoints/best.safetensors
    let runs = path.ancestors().skip(1).take(3).map(RunPaths::new);
    let run = runs.into_iter().find(|run| run.config().is_file());
    Ok((path.to_path_buf(), run.map(|run| settings(&run)).transpose()?))
}

/// One recording as a dataset of its own.
fn single(
    settings: &Settings,
    about: &About,
    path: &Path,
    folder: &Path,
    progress: &(dyn Fn(Progress<'_>) + Sync),
    cancel: &AtomicBool,
) -> Result<Prepared> {
    let mut preprocessing = dataset::preprocessing(&settings.data, None);
    preprocessing.channels = about.channels.clone();
    let subject = path.file_stem().map_or("recording".into(), |s| s.to_string_lossy().to_string());
    let source = prepare::Source { subject, path: path.into(), ..prepare::Source::default() };
    // A file that cannot be read is reported as such, not as one of many that were skipped.
    let recording = Recording::open(path)?;
    let eeg = recording.channels.iter().filter(|channel| channel.kind == ChannelKind::Eeg);
    let eeg: Vec<&str> = eeg.map(|channel| channel.name.as_str()).collect();
    if let Some(lacking) = names::lacking(&about.channels, &eeg) {
        let problem = format!("has no EEG channel {lacking}, which the model takes");
        let remedy = "give a recording with the channels the model was trained on, named alike";
        return Err(Error::input(path.display(), problem, remedy));
    }
    let position = |name: &str| montage::position(name);
    let positions: preprocess::Positions<'_> = &position;
    let cache = prepare::prepare(
        &[source],
        &|_| Ok(recording.clone()),
        &preprocessing,
        Some(positions),
        folder,
        progress,
        cancel,
    )?;
    Ok(Prepared {
        name: path.display().to_string(),
        cache,
        participants: bids::Participants::default(),
        skipped: Vec::new(),
        notes: Vec::new(),
    })
}
