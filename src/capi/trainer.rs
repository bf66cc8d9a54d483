//! Training step by step, with the host's data and losses.

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::array::{EngineArray, read};
use super::context::{Context, ENGINE_LOG_INFO, EngineContext, Held, give, give_sized, sized};
use super::definition;
use super::handle::{self, Object};
use super::model::{EngineModelInfo, expect_windows, forward, info_of, required};
use super::status::{EngineStatus, Failure, Outcome, guard};
use crate::backend::Machine;
use crate::ops::loss::Pointwise;
use crate::optim::{Control, Rates, Rule};
use crate::train::early_stop::{Better, EarlyStop};
use crate::train::loss_scale::LossScale;
use crate::train::snapshot::Snapshot;
use crate::train::state::{About, Loaded, Progress};
use crate::train::step::{Objective, Step, StepSpec};
use crate::{DType, Error};

/// A model in training. Calls may come from any thread; those on one trainer take turns.
pub struct EngineTrainer;

/// Mean of (output - target)².
pub const ENGINE_LOSS_MSE: i32 = 0;
/// Mean of the Huber loss, linear from 1 on.
pub const ENGINE_LOSS_HUBER: i32 = 1;
/// Mean of |output - target|.
pub const ENGINE_LOSS_L1: i32 = 2;
/// Mean binary cross-entropy of a logit; targets are 0 and 1 (or between).
pub const ENGINE_LOSS_BCE: i32 = 3;
/// Mean cross-entropy of logits; targets are class numbers of ENGINE_I32.
pub const ENGINE_LOSS_CROSS_ENTROPY: i32 = 4;

/// AdamW (Loshchilov and Hutter 2019).
pub const ENGINE_ADAMW: i32 = 0;
/// Gradient descent with momentum.
pub const ENGINE_SGD: i32 = 1;

/// How a model is trained. Start from ENGINE_TRAINING_INIT: a member that is 0 has its default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EngineTraining {
    /// sizeof(engine_training) of the program.
    pub size: usize,
    /// Windows of one forward pass; 0: 16.
    pub batch: u32,
    /// Forward passes of one step; 0: 1. A step takes batch * accumulation windows.
    pub accumulation: u32,
    /// ENGINE_LOSS_MSE and so on.
    pub loss: i32,
    /// ENGINE_ADAMW or ENGINE_SGD.
    pub optimizer: i32,
    /// AdamW: decay of the first moment; 0: 0.9.
    pub beta1: f64,
    /// AdamW: decay of the second moment; 0: 0.95.
    pub beta2: f64,
    /// AdamW: added to the root of the second moment; 0: 1e-8.
    pub epsilon: f64,
    /// SGD: decay of the velocity.
    pub momentum: f64,
    /// Decay of the weights; 0: none.
    pub weight_decay: f64,
    /// The gradient's norm is clipped to this; 0: it is not.
    pub clip: f64,
    /// Of first weights and dropout.
    pub seed: u64,
    /// ENGINE_F32; on a card also ENGINE_BF16: mixed precision.
    pub compute: i32,
}

/// What one step found.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct EngineStep {
    /// sizeof(engine_step) of the program.
    pub size: usize,
    /// Steps done, this one included.
    pub step: u64,
    /// The loss before the update.
    pub loss: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
}

/// The host's loss: gets outputs `[batch, n_outputs]` of one forward pass (number `pass` of the step,
/// from 0), writes the gradient of the loss by each of them to `gradient`, and the loss to `loss`.
/// Anything but 0 ends the step with ENGINE_STATUS_CANCELLED, the weights as they were. It must not
/// call the trainer, throw or jump away.
pub type EngineLoss = Option<
    unsafe extern "C" fn(
        outputs: *const f32,
        batch: usize,
        n_outputs: usize,
        pass: usize,
        gradient: *mut f32,
        loss: *mut f64,
        user: *mut c_void,
    ) -> i32,
>;

struct State {
    step: Held<Step>,
    about: About,
    done: u64,
}

struct Trainer {
    context: Arc<Context>,
    training: EngineTraining,
    state: Mutex<State>,
}

impl Object for Trainer {
    const NAME: &'static str = "engine_trainer";
}

impl Trainer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next step gets besides data.
    fn control(&self, state: &State) -> Control {
        Control { step: state.done + 1, clip: self.training.clip, loss_scale: 1.0, average: 0.0 }
    }

    fn rates(&self, lr: f64) -> Rates {
        Rates { lr, decay: self.training.weight_decay, trained: true }
    }
}

/// Fills in defaults and checks the rest.
fn checked(mut t: EngineTraining) -> Outcome<EngineTraining> {
    let bad = |field: &str, problem: String, remedy: &str| {
        Err(Failure::argument(&format!("training.{field}"), problem, remedy))
    };
    if t.batch == 0 {
        t.batch = 16;
    }
    t.accumulation = t.accumulation.max(1);
    for (value, default) in [(&mut t.beta1, 0.9), (&mut t.beta2, 0.95), (&mut t.epsilon, 1e-8)] {
        if *value == 0.0 {
            *value = default;
        }
    }
    if t.batch > 1 << 20 || t.accumulation > 1 << 10 {
        let problem = format!("{} windows, {} passes", t.batch, t.accumulation);
        return bad("batch", problem, "give at most 2^20 windows and 2^10 passes");
    }
    for (field, value) in [("beta1", t.beta1), ("beta2", t.beta2), ("momentum", t.momentum)] {
        if !(0.0..1.0).contains(&value) {
            return bad(field, format!("is {value}"), "give 0 or more, and less than 1");
        }
    }
    for (field, value) in
        [("epsilon", t.epsilon), ("weight_decay", t.weight_decay), ("clip", t.clip)]
    {
        if !(value >= 0.0 && value.is_finite()) {
            return bad(field, format!("is {value}"), "give a number that is not negative");
        }
    }
    if !(ENGINE_LOSS_MSE..=ENGINE_LOSS_CROSS_ENTROPY).contains(&t.loss) {
        return bad("loss", format!("{} is unknown", t.loss), "give ENGINE_LOSS_MSE or the like");
    }
    if t.optimizer != ENGINE_ADAMW && t.optimizer != ENGINE_SGD {
        let problem = format!("{} is unknown", t.optimizer);
        return bad("optimizer", problem, "give ENGINE_ADAMW or ENGINE_SGD");
    }
    Ok(t)
}

fn spec_of(context: &Context, t: &EngineTraining, about: &About) -> Outcome<StepSpec> {
    let (_, _, outputs) = about.model.extents();
    let objective = match t.loss {
        ENGINE_LOSS_HUBER => Objective::Pointwise(Pointwise::Huber { delta: 1.0 }),
        ENGINE_LOSS_L1 => Objective::Pointwise(Pointwise::L1),
        ENGINE_LOSS_BCE => Objective::Pointwise(Pointwise::BceWithLogits { positive_weight: 1.0 }),
        ENGINE_LOSS_CROSS_ENTROPY => {
            Objective::CrossEntropy { weights: vec![1.0; outputs], smoothing: 0.0 }
        }
        _ => Objective::Pointwise(Pointwise::Mse),
    };
    let compute = match t.compute {
        super::array::ENGINE_F32 => None,
        super::array::ENGINE_BF16 if context.arch().machine != Machine::Cpu => Some(DType::Bf16),
        other => {
            let problem = format!("{other} on {}", context.arch().name);
            let remedy = "give ENGINE_F32, or ENGINE_BF16 on a card";
            return Err(Failure::argument("training.compute", problem, remedy));
        }
    };
    let rule = match t.optimizer {
        ENGINE_SGD => Rule::Sgd { momentum: t.momentum, nesterov: false },
        _ => Rule::AdamW { beta1: t.beta1, beta2: t.beta2, epsilon: t.epsilon },
    };
    Ok(StepSpec {
        model: about.model.clone(),
        batch: t.batch as usize,
        accumulation: t.accumulation as usize,
        eval_batch: t.batch as usize,
        objective,
        rule,
        average: false,
        dtype: DType::F32,
        compute,
        seed: t.seed,
    })
}

/// The classes that a loss wants of a model with so many outputs; 0: it wants numbers.
fn classes(loss: i32, outputs: usize) -> usize {
    match loss {
        ENGINE_LOSS_BCE if outputs == 1 => 2,
        ENGINE_LOSS_CROSS_ENTROPY => outputs,
        _ => 0,
    }
}

/// Allocates and records, after the planner has found that it fits.
fn build(context: Arc<Context>, training: EngineTraining, about: About) -> Outcome<Trainer> {
    let spec = spec_of(&context, &training, &about)?;
    let (_, _, outputs) = about.model.extents();
    if training.loss == ENGINE_LOSS_CROSS_ENTROPY && outputs < 2 {
        let remedy = "give num_classes 2 or more, or ENGINE_LOSS_BCE for one output";
        return Err(Failure::argument("training.loss", "cross-entropy of one output", remedy));
    }
    let arch = context.arch();
    Step::plan(arch, arch.memory, &spec)?;
    let step = {
        let _turn = context.turn();
        Step::new(context.backend(), spec)?
    };
    let step = Held::new(step, Arc::clone(&context));
    Ok(Trainer { context, training, state: Mutex::new(State { step, about, done: 0 }) })
}

/// # Safety
/// `training` is null or points to an engine_training whose `size` is right.
unsafe fn training_of(training: *const EngineTraining) -> Outcome<EngineTraining> {
    let least = offset_of!(EngineTraining, compute) + size_of::<i32>();
    // SAFETY: by this function's contract; its members may all be zero.
    checked(unsafe { sized(training, "training", least)? })
}

/// Defines a model and makes it ready for training. `definition` is JSON as engine_model_describe gives
/// it, of which only the model's name must be there:
/// `{"model": {"name": "eegformer", "n_channels": 19, "window": 200, "num_classes": 1, "d_model": 64}}`.
///
/// # Safety
/// `definition` is null or a text that ends with NUL; `training` is null or points to an
/// engine_training whose `size` is right; `out` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_trainer_new(
    context: *const EngineContext,
    definition: *const c_char,
    training: *const EngineTraining,
    out: *mut *mut EngineTrainer,
) -> EngineStatus {
    let make = || -> Outcome<usize> {
        let context = handle::find::<Context>(context)?;
        // SAFETY: by this function's contract.
        let (text, training) =
            unsafe { (required(definition, "definition")?, training_of(training)?) };
        let about = definition::parse(text, |outputs| classes(training.loss, outputs))?;
        Ok(handle::publish(build(context, training, about)?))
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { give(out, make) })
}

/// Loads a checkpoint to train on: one of engine_trainer_save goes on as if it had never stopped (given
/// the same `training` and data); of any other the weights are taken. `path` may also be the folder of a
/// run of `engine train`.
///
/// # Safety
/// As engine_trainer_new, with `path` for `definition`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_trainer_load(
    context: *const EngineContext,
    path: *const c_char,
    training: *const EngineTraining,
    out: *mut *mut EngineTrainer,
) -> EngineStatus {
    let make = || -> Outcome<usize> {
        let context = handle::find::<Context>(context)?;
        // SAFETY: by this function's contract.
        let (path, training) = unsafe { (required(path, "path")?, training_of(training)?) };
        let (file, _) = crate::train::inference::find(Path::new(path))?;
        let loaded = Loaded::open(&file)?;
        let about = loaded.about()?;
        let (_, _, outputs) = about.model.extents();
        definition::check(&about, classes(training.loss, outputs), path)?;
        let trainer = build(context, training, about)?;
        take_weights(&trainer, &loaded)?;
        Ok(handle::publish(trainer))
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { give(out, make) })
}

/// Goes on where a checkpoint stands, or starts from its weights.
fn take_weights(trainer: &Trainer, loaded: &Loaded) -> Outcome {
    let mut state = trainer.lock();
    let _turn = trainer.context.turn();
    let Ok(progress) = loaded.progress() else {
        return Ok(loaded.restore(state.step.params())?);
    };
    match loaded.resume(&state.step) {
        Ok(()) => state.done = progress.step,
        Err(error) => {
            loaded.restore(state.step.params())?;
            let text = format!("the optimizer starts anew: {error}");
            trainer.context.say(ENGINE_LOG_INFO, &text);
        }
    }
    Ok(())
}

/// Frees a trainer; null is nothing.
#[unsafe(no_mangle)]
pub extern "C" fn engine_trainer_free(trainer: *mut EngineTrainer) -> EngineStatus {
    handle::free::<Trainer>(trainer)
}

/// Tells about the model in training. `info->size` must be set (ENGINE_MODEL_INFO_INIT).
///
/// # Safety
/// `info` is null or points to as many writable bytes as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_trainer_get_info(
    trainer: *const EngineTrainer,
    info: *mut EngineModelInfo,
) -> EngineStatus {
    guard(|| {
        let trainer = handle::find::<Trainer>(trainer)?;
        let state = trainer.lock();
        // SAFETY: by this function's contract.
        unsafe {
            let found = info_of(&state.step, &state.about);
            give_sized(info, found, size_of::<EngineModelInfo>(), "info")
        }
    })
}

/// One step of training at learning rate `lr`: forward, backward, clip, update. `windows` are
/// `[batch * accumulation, n_channels, window]` of f32, `targets` `[batch * accumulation, n_outputs]` of
/// f32, or class numbers `[batch * accumulation]` of i32 for ENGINE_LOSS_CROSS_ENTROPY; both in the
/// host's memory. It waits for the step's results; `result` may be null.
///
/// # Safety
/// The arrays are null or engine_arrays whose pointers hold for their shapes, which nothing writes
/// meanwhile; `result` is null or points to as many writable bytes as its `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_trainer_step(
    trainer: *const EngineTrainer,
    windows: *const EngineArray,
    targets: *const EngineArray,
    lr: f64,
    result: *mut EngineStep,
) -> EngineStatus {
    guard(|| {
        let trainer = handle::find::<Trainer>(trainer)?;
        let mut state = trainer.lock();
        check_lr(lr)?;
        trainer.context.check_cancelled()?;
        let _turn = trainer.context.turn();
        // SAFETY: by this function's contract.
        unsafe {
            load_windows(&state, windows)?;
            load_targets(&trainer, &state, targets)?;
        }
        let control = trainer.control(&state);
        state.step.train(trainer.training.seed, control, |_| trainer.rates(lr))?;
        let (loss, grad_norm) = state.step.results_later()?.wait()?;
        // SAFETY: by this function's contract.
        unsafe { finish(&mut state, (loss, grad_norm), result) }
    })
}

fn check_lr(lr: f64) -> Outcome {
    if lr >= 0.0 && lr.is_finite() {
        return Ok(());
    }
    Err(Failure::argument("lr", format!("is {lr}"), "give a rate that is not negative"))
}

/// Counts a step whose numbers are finite, and tells about it.
///
/// # Safety
/// `result` is null or points to as many writable bytes as its `size` says.
unsafe fn finish(
    state: &mut State,
    (loss, grad_norm): (f64, f64),
    result: *mut EngineStep,
) -> Outcome {
    if !loss.is_finite() || !grad_norm.is_finite() {
        let tensor = if loss.is_finite() { "the gradient's norm" } else { "the loss" };
        return Err(Failure::from(Error::NotFinite {
            step: state.done + 1,
            tensor: tensor.into(),
            remedy: "check windows and targets for NaN, or lower the rate; the weights are as \
                     they were before this step"
                .into(),
        }));
    }
    state.done += 1;
    let found = EngineStep { size: 0, step: state.done, loss, grad_norm };
    if result.is_null() {
        return Ok(());
    }
    // SAFETY: by this function's contract.
    unsafe { give_sized(result, found, size_of::<EngineStep>(), "result") }
}

/// # Safety
/// As [`engine_trainer_step`].
unsafe fn load_windows(state: &State, windows: *const EngineArray) -> Outcome {
    // SAFETY: by this function's contract.
    let windows = unsafe { read(windows, "windows")? };
    let n = expect_windows(&state.step, &windows)?;
    if n != state.step.rows() {
        let problem = format!("are {n}, a step takes {}", state.step.rows());
        return Err(windows.refuse(problem, "give batch * accumulation windows"));
    }
    // SAFETY: by this function's contract.
    Ok(state.step.load_windows(unsafe { windows.floats()? })?)
}

/// # Safety
/// As [`engine_trainer_step`].
unsafe fn load_targets(trainer: &Trainer, state: &State, targets: *const EngineArray) -> Outcome {
    // SAFETY: by this function's contract.
    let targets = unsafe { read(targets, "targets")? };
    let (rows, (_, _, outputs)) = (state.step.rows(), state.about.model.extents());
    if trainer.training.loss != ENGINE_LOSS_CROSS_ENTROPY {
        let form = "targets are [batch * accumulation, n_outputs]";
        targets.shaped(&[rows, outputs], form)?;
        // SAFETY: by this function's contract.
        return Ok(state.step.load_targets(unsafe { targets.floats()? })?);
    }
    targets.shaped(&[rows], "targets are class numbers [batch * accumulation]")?;
    // SAFETY: by this function's contract.
    let labels = unsafe { targets.integers()? };
    let known = |label: &&i32| usize::try_from(**label).is_ok_and(|label| label < outputs);
    if let Some(label) = labels.iter().find(|label| !known(label)) {
        let remedy = "number the classes from 0";
        return Err(targets.refuse(format!("hold {label}, of {outputs} classes"), remedy));
    }
    let labels: Vec<f32> = labels.iter().map(|&label| label as f32).collect();
    Ok(state.step.load_targets(&labels)?)
}

/// One step with a loss of the host's, which is called once a forward pass; the loss and its gradient
/// are averaged over the passes. Ops run one by one, which takes longer than engine_trainer_step.
///
/// # Safety
/// As engine_trainer_step; `loss` is null or a function as engine_loss describes, which `user` fits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_trainer_step_with(
    trainer: *const EngineTrainer,
    windows: *const EngineArray,
    loss: EngineLoss,
    user: *mut c_void,
    lr: f64,
    result: *mut EngineStep,
) -> EngineStatus {
    guard(|| {
        let trainer = handle::find::<Trainer>(trainer)?;
        let mut state = trainer.lock();
        check_lr(lr)?;
        let Some(function) = loss else {
            return Err(Failure::argument("loss", "is null", "give a function"));
        };
        trainer.context.check_cancelled()?;
        let mut turn = Some(trainer.context.turn());
        // SAFETY: by this function's contract.
        unsafe { load_windows(&state, windows)? };
        let (_, _, outputs) = state.about.model.extents();
        let (mut pass, mut stopped) = (0, false);
        let gradient = |found: &[f32], slope: &mut [f32]| -> crate::Result<f64> {
            let (from, to) = (found.as_ptr(), slope.as_mut_ptr());
            let (batch, mut value) = (found.len() / outputs, f64::NAN);
            // The host may use the context's kernels meanwhile.
            turn = None;
            // SAFETY: the host's function; both arrays are [batch, outputs] and outlive the call.
            let status = unsafe { function(from, batch, outputs, pass, to, &mut value, user) };
            turn = Some(trainer.context.turn());
            pass += 1;
            stopped = status != 0;
            if stopped {
                Err(Error::shape("loss", "the host's loss ended the step"))
            } else {
                Ok(value)
            }
        };
        let control = trainer.control(&state);
        let found =
            state.step.train_with(trainer.training.seed, control, |_| trainer.rates(lr), gradient);
        if stopped {
            let problem = "stopped: the loss returned other than 0";
            let remedy = "return 0 from the loss to go on; the weights are as they were";
            return Err(Failure::with(EngineStatus::Cancelled, "loss", problem, remedy));
        }
        let loss = found?;
        let grad_norm = state.step.optimizer().norm(state.step.params())?;
        // SAFETY: by this function's contract.
        unsafe { finish(&mut state, (loss, grad_norm), result) }
    })
}

/// Outputs of windows by the present weights, without dropout: as engine_model_forward.
///
/// # Safety
/// As engine_model_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_trainer_forward(
    trainer: *const EngineTrainer,
    windows: *const EngineArray,
    outputs: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let trainer = handle::find::<Trainer>(trainer)?;
        let state = trainer.lock();
        // SAFETY: by this function's contract.
        unsafe { forward(&trainer.context, &state.step, windows, outputs) }
    })
}

/// Saves weights, what the model is, and the optimizer's state: a safetensors file that
/// engine_model_load, engine_trainer_load and `engine` read, and PyTorch the weights of. A file that is
/// there already survives until the new one is whole.
///
/// # Safety
/// `path` is null or a text that ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_trainer_save(
    trainer: *const EngineTrainer,
    path: *const c_char,
) -> EngineStatus {
    guard(|| {
        let trainer = handle::find::<Trainer>(trainer)?;
        // SAFETY: by this function's contract.
        let path = unsafe { required(path, "path")? };
        let state = trainer.lock();
        let _turn = trainer.context.turn();
        let progress = Progress {
            step: state.done,
            epoch: 0,
            step_in_epoch: state.done,
            loss_sum: 0.0,
            early_stop: EarlyStop::new(Better::Lower, None, 0.0),
            finished: false,
            batch: trainer.training.batch as usize,
            scale: LossScale::new(DType::F32),
        };
        let saved = Snapshot::take(&state.step)?.wait()?;
        Ok(saved.save_run(&state.about, &progress, Path::new(path))?)
    })
}
