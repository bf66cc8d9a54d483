//! Trained models: a checkpoint in, predictions out.

use std::ffi::c_char;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::array::{Array, EngineArray, read};
use super::buffer::give_text;
use super::context::{
    Context, Device, ENGINE_LOG_WARNING, EngineContext, Held, give, give_sized, text,
};
use super::handle::{self, Object};
use super::status::{EngineStatus, Failure, Outcome, guard};
use crate::DType;
use crate::config::Settings;
use crate::data::prepare::Progress;
use crate::metrics::Task;
use crate::train::inference::{self, Predictor};
use crate::train::results::interpreted;
use crate::train::state::About;
use crate::train::step::Step;

/// A trained model. Calls may come from any thread; those on one model take turns.
pub struct EngineModel;

/// What a model predicts of a recording's windows. It does not change.
pub struct EnginePredictions;

/// Facts about a model.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct EngineModelInfo {
    /// sizeof(engine_model_info) of the program.
    pub size: usize,
    /// Channels of a window.
    pub n_channels: usize,
    /// Samples of a window.
    pub window: usize,
    /// Outputs of a forward pass.
    pub n_outputs: usize,
    /// Numbers of a prediction: 1 where a number is predicted, else one a class.
    pub n_predictions: usize,
    /// Trained scalars.
    pub n_parameters: u64,
    /// Sampling rate of a window, Hz.
    pub sample_rate: f64,
    /// Other than 0: it predicts classes.
    pub is_classifier: i32,
    /// Other than 0: the settings of its run were found, so that recordings can be read as in it.
    pub reads_recordings: i32,
}

struct Model {
    context: Arc<Context>,
    predictor: Mutex<Held<Predictor>>,
    settings: Option<Settings>,
}

impl Object for Model {
    const NAME: &'static str = "engine_model";
}

impl Model {
    fn lock(&self) -> MutexGuard<'_, Held<Predictor>> {
        self.predictor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads a checkpoint that `engine train` or engine_trainer_save wrote: `path` is a run's folder (its
/// best weights are meant) or a file. `batch` windows are computed at a time; 0: 32. Results do not
/// depend on it.
///
/// # Safety
/// `path` is null or a text that ends with NUL; `out` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_model_load(
    context: *const EngineContext,
    path: *const c_char,
    batch: u32,
    out: *mut *mut EngineModel,
) -> EngineStatus {
    let make = || -> Outcome<usize> {
        let context = handle::find::<Context>(context)?;
        // SAFETY: by this function's contract.
        let path = unsafe { required(path, "path")? };
        if batch > 1 << 20 {
            return Err(Failure::argument("batch", format!("is {batch}"), "give 0 for 32"));
        }
        let (file, settings) = inference::find(Path::new(path))?;
        let predictor = {
            let _turn = context.turn();
            Predictor::open(context.backend(), &file, batch as usize)?
        };
        let predictor = Mutex::new(Held::new(predictor, Arc::clone(&context)));
        Ok(handle::publish(Model { context, predictor, settings }))
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { give(out, make) })
}

/// A text of the host's that must be there.
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn required<'a>(from: *const c_char, name: &str) -> Outcome<&'a str> {
    // SAFETY: by this function's contract.
    let found = unsafe { text(from, name)? };
    found.ok_or_else(|| Failure::argument(name, "is null", "give a text"))
}

/// Frees a model; null is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn engine_model_free(model: *mut EngineModel) -> EngineStatus {
    handle::free::<Model>(model)
}

/// Tells about a model. `info->size` must be set (ENGINE_MODEL_INFO_INIT).
///
/// # Safety
/// `info` is null or points to as many writable bytes as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_model_get_info(
    model: *const EngineModel,
    info: *mut EngineModelInfo,
) -> EngineStatus {
    guard(|| {
        let model = handle::find::<Model>(model)?;
        let predictor = model.lock();
        let mut found = info_of(&predictor.step, &predictor.about);
        found.reads_recordings = i32::from(model.settings.is_some());
        // SAFETY: by this function's contract.
        unsafe { give_sized(info, found, size_of::<EngineModelInfo>(), "info") }
    })
}

/// Facts about a model on a device.
pub(super) fn info_of(step: &Step, about: &About) -> EngineModelInfo {
    let (n_channels, window, n_outputs) = about.model.extents();
    EngineModelInfo {
        size: 0,
        n_channels,
        window,
        n_outputs,
        n_predictions: width(about),
        n_parameters: step.params().count() as u64,
        sample_rate: about.sample_rate,
        is_classifier: i32::from(matches!(about.task, Task::Classification { .. })),
        reads_recordings: 0,
    }
}

/// Numbers of one prediction.
fn width(about: &About) -> usize {
    match &about.task {
        Task::Regression { .. } => about.model.extents().2,
        Task::Classification { classes, .. } => classes.len(),
    }
}

/// What a model is, as JSON: its sizes, the names of its channels, what it predicts (name and unit, or
/// classes), how outputs become predictions. Free the text with engine_string_free.
///
/// # Safety
/// `out` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_model_describe(
    model: *const EngineModel,
    out: *mut *mut c_char,
) -> EngineStatus {
    guard(|| {
        let model = handle::find::<Model>(model)?;
        let json = serde_json::to_string_pretty(&model.lock().about);
        let json = json.map_err(|error| crate::Error::shape("describe", error))?;
        // SAFETY: by this function's contract.
        unsafe { give_text(out, &json) }
    })
}

/// Outputs `[n, n_outputs]` of windows `[n, n_channels, window]`, both f32: what the model computes,
/// before it becomes a prediction. Samples are scaled as in training (robustly, to about 1). On a card
/// both may lie in its memory (ENGINE_DEVICE): the work is then enqueued, not waited for.
///
/// # Safety
/// The arrays are null or engine_arrays whose pointers hold for their shapes; nothing else writes the
/// windows or uses the outputs meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_model_forward(
    model: *const EngineModel,
    windows: *const EngineArray,
    outputs: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let model = handle::find::<Model>(model)?;
        let predictor = model.lock();
        // SAFETY: by this function's contract.
        unsafe { forward(&model.context, &predictor.step, windows, outputs) }
    })
}

/// # Safety
/// As [`engine_model_forward`].
pub(super) unsafe fn forward(
    context: &Context,
    step: &Step,
    windows: *const EngineArray,
    outputs: *const EngineArray,
) -> Outcome {
    // SAFETY: by this function's contract.
    let (windows, outputs) = unsafe { (read(windows, "windows")?, read(outputs, "outputs")?) };
    let (_, _, width) = step.spec().model.extents();
    let n = expect_windows(step, &windows)?;
    outputs.shaped(&[n, width], "outputs are [n, n_outputs]")?;
    outputs.expect_type(DType::F32)?;
    super::array::expect_apart(&[windows], &[outputs])?;
    if windows.on_device || outputs.on_device {
        let Device::Card(_) = context.device else {
            return Err(windows.refuse("lies on a card, the model does not", "give ENGINE_HOST"));
        };
        if windows.on_device != outputs.on_device {
            let problem = "lie in different memories";
            return Err(windows.refuse(problem, "give windows and outputs the same memory"));
        }
        let _turn = context.turn();
        return Ok(step.evaluate_views(&windows.view, &outputs.view)?);
    }
    // SAFETY: by this function's contract; they do not overlap.
    let (windows, outputs) = unsafe { (windows.floats()?, outputs.floats_mut()?) };
    evaluate(context, step, windows, |first, found| {
        outputs[first..first + found.len()].copy_from_slice(found);
    })
}

/// The number of windows, whose shape must be the model's.
pub(super) fn expect_windows(step: &Step, windows: &Array) -> Outcome<usize> {
    let (channels, window, _) = step.spec().model.extents();
    let [n, ..] = windows.axes::<3>("windows are [n, n_channels, window]")?;
    windows.shaped(&[n, channels, window], "windows are [n, n_channels, window]")?;
    windows.expect_type(DType::F32)?;
    Ok(n)
}

/// Passes of the model between two questions whether to stop.
const PASSES: usize = 8;

/// Outputs of windows, piece by piece: `take` gets them with the place of their first.
fn evaluate(
    context: &Context,
    step: &Step,
    windows: &[f32],
    mut take: impl FnMut(usize, &[f32]),
) -> Outcome {
    let (channels, window, _) = step.spec().model.extents();
    let mut first = 0;
    for piece in windows.chunks(PASSES * step.spec().eval_batch.max(1) * channels * window) {
        context.check_cancelled()?;
        let found = {
            let _turn = context.turn();
            step.evaluate(piece)?
        };
        take(first, &found);
        first += found.len();
    }
    Ok(())
}

/// Predictions `[n, n_predictions]` of windows `[n, n_channels, window]` of f32: a number in its own
/// unit, or the classes' probabilities. `predictions` are f64 or f32; both lie in the host's memory.
///
/// # Safety
/// As engine_model_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_model_predict(
    model: *const EngineModel,
    windows: *const EngineArray,
    predictions: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let model = handle::find::<Model>(model)?;
        let predictor = model.lock();
        let Predictor { step, about, .. } = &**predictor;
        // SAFETY: by this function's contract.
        let (windows, to) =
            unsafe { (read(windows, "windows")?, read(predictions, "predictions")?) };
        let n = expect_windows(step, &windows)?;
        to.shaped(&[n, width(about)], "predictions are [n, n_predictions]")?;
        super::array::expect_apart(&[windows], &[to])?;
        // SAFETY: by this function's contract.
        let windows = unsafe { windows.floats()? };
        let mut raw = Vec::new();
        evaluate(&model.context, step, windows, |_, found| raw.extend_from_slice(found))?;
        // SAFETY: by this function's contract; it does not overlap the windows.
        unsafe { to.write_numbers(&interpreted(about, &raw)) }
    })
}

struct Predictions {
    starts: Vec<f64>,
    values: Vec<f64>,
    width: usize,
}

impl Object for Predictions {
    const NAME: &'static str = "engine_predictions";
}

/// Reads a recording (EDF, BDF, BrainVision, EEGLAB), filters, scales and cuts it as the model's run
/// did, and predicts each window: the numbers of `engine predict RUN --data FILE --windows`. The model
/// was loaded from a run's folder, or from a checkpoint in one.
///
/// # Safety
/// `path` is null or a text that ends with NUL; `out` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_model_predict_file(
    model: *const EngineModel,
    path: *const c_char,
    out: *mut *mut EnginePredictions,
) -> EngineStatus {
    let make = || -> Outcome<usize> {
        let model = handle::find::<Model>(model)?;
        // SAFETY: by this function's contract.
        let path = unsafe { required(path, "path")? };
        Ok(handle::publish(predict_file(&model, Path::new(path))?))
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { give(out, make) })
}

fn predict_file(model: &Model, path: &Path) -> Outcome<Predictions> {
    let predictor = model.lock();
    let context = &model.context;
    let Some(settings) = &model.settings else {
        let place = predictor.path.display().to_string();
        let problem = "lies in no run's folder, whose config.toml says how recordings are read";
        let remedy = "load the folder of the run, or keep config.toml beside checkpoints/";
        return Err(Failure::with(EngineStatus::Input, &place, problem, remedy));
    };
    let folder = context.cache()?;
    let cancel = AtomicBool::new(context.is_cancelled());
    let progress = |progress: Progress<'_>| {
        if let Progress::Rebuilding { path, reason } = progress {
            context.say(ENGINE_LOG_WARNING, &format!("{}: {reason}", path.display()));
        }
        if context.is_cancelled() {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let data = predictor.windows_of(settings, path, folder.path(), &progress, &cancel);
    if cancel.load(Ordering::Relaxed) {
        return Err(Failure::cancelled());
    }
    let data = data?;
    for recording in data.prepared.cache.recordings() {
        recording.notes.iter().for_each(|note| context.say(ENGINE_LOG_WARNING, note));
        for (channel, why) in &recording.bad {
            context.say(ENGINE_LOG_WARNING, &format!("channel {channel} is bad: {why}"));
        }
    }
    let values = {
        let _turn = context.turn();
        predictor.predict(&data)?.output
    };
    let rate = predictor.about.sample_rate;
    let starts = data.windows.iter().map(|window| f64::from(window.start) / rate).collect();
    Ok(Predictions { starts, values, width: width(&predictor.about) })
}

/// Frees predictions; null is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn engine_predictions_free(predictions: *mut EnginePredictions) -> EngineStatus {
    handle::free::<Predictions>(predictions)
}

/// The number of windows, and of numbers of each.
///
/// # Safety
/// `windows` and `width` are null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_predictions_extents(
    predictions: *const EnginePredictions,
    windows: *mut usize,
    width: *mut usize,
) -> EngineStatus {
    guard(|| {
        let found = handle::find::<Predictions>(predictions)?;
        if windows.is_null() || width.is_null() {
            let remedy = "point both to variables";
            return Err(Failure::argument("windows or width", "is null", remedy));
        }
        // SAFETY: not null, hence writable by this function's contract.
        unsafe {
            windows.write(found.starts.len());
            width.write(found.width);
        }
        Ok(())
    })
}

/// Copies predictions: `values` `[windows, width]`, `starts_s` `[windows]` (seconds from the first
/// sample) and `mean` `[width]` (over the windows); each may be null. f64 or f32, in the host's memory.
///
/// # Safety
/// The arrays are null or engine_arrays whose pointers hold for their shapes; nothing else uses them
/// meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_predictions_read(
    predictions: *const EnginePredictions,
    values: *const EngineArray,
    starts_s: *const EngineArray,
    mean: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let found = handle::find::<Predictions>(predictions)?;
        let (n, width) = (found.starts.len(), found.width);
        let mut means = vec![0.0; width];
        for row in found.values.chunks_exact(width.max(1)) {
            means.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
        }
        means.iter_mut().for_each(|mean| *mean /= n.max(1) as f64);
        let parts: [(_, &str, &[usize], &[f64]); 3] = [
            (values, "values", &[n, width], &found.values),
            (starts_s, "starts_s", &[n], &found.starts),
            (mean, "mean", &[width], &means),
        ];
        for (array, name, dims, numbers) in parts {
            // SAFETY: by this function's contract.
            if let Some(to) = unsafe { super::array::read_optional(array, name)? } {
                to.shaped(dims, "engine_predictions_extents gives the extents")?;
                // SAFETY: by this function's contract.
                unsafe { to.write_numbers(numbers)? };
            }
        }
        Ok(())
    })
}
