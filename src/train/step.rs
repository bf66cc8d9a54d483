//! One training step as a recording: forward, backward, clip and update, replayed for each batch.

use std::ops::Range;
use std::sync::Arc;

use super::snapshot::floats;
use crate::backend::{Backend, Io, Later, MemoryUse, Replay};
use crate::model::{Model, ModelConfig};
use crate::nn::params::{Builder, Params, Part};
use crate::ops::elementwise::{Axpy, Fill};
use crate::ops::loss::{Pointwise, cross_entropy, pointwise};
use crate::ops::philox;
use crate::optim::{Control, Optimizer, Rates, Rule};
use crate::tensor::{Shape, Tensor, View};
use crate::{DType, Error, Result, Tape, Var};

/// What the model is trained for.
#[derive(Debug, Clone, PartialEq)]
pub enum Objective {
    /// A loss of one output and one number, for each output.
    Pointwise(Pointwise),
    /// Classes, one output each, with class weights.
    CrossEntropy {
        /// Weight of each class.
        weights: Vec<f32>,
        /// Share of the label spread over all classes.
        smoothing: f32,
    },
}

/// Everything that fixes a step's launches and memory.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSpec {
    /// The model.
    pub model: ModelConfig,
    /// Windows of one forward pass.
    pub batch: usize,
    /// Forward passes of one update.
    pub accumulation: usize,
    /// Windows of one evaluation pass; 0 for none.
    pub eval_batch: usize,
    /// The loss.
    pub objective: Objective,
    /// The update.
    pub rule: Rule,
    /// Keep averaged weights.
    pub average: bool,
    /// Type of parameters, their gradients and the loss: f32, or f64 for checks.
    pub dtype: DType,
    /// Mixed precision: the type of activations and of the weights in products, bf16 or f16. None:
    /// `dtype`.
    pub compute: Option<DType>,
    /// Seed of the first weights.
    pub seed: u64,
}

/// A model on a device with its recorded step.
pub struct Step {
    spec: StepSpec,
    model: Box<dyn Model>,
    params: Params,
    optimizer: Optimizer,
    windows: Tensor,
    targets: Tensor,
    weights: Option<Tensor>,
    rng: Tensor,
    loss: Tensor,
    /// What the loss is multiplied by before the backward pass, where f16 needs it.
    loss_scale: Option<Tensor>,
    train: Option<Replay>,
    eval: Option<Evaluation>,
}

/// What one update found, on its way to the host.
#[derive(Debug)]
pub struct Results {
    loss: Later,
    norm: Later,
    dtype: DType,
}

impl Results {
    /// Waits for the loss and the gradient's norm before clipping.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn wait(self) -> Result<(f64, f64)> {
        let first = |later: Later| -> Result<f64> {
            let bytes = later.wait()?;
            Ok(match self.dtype {
                DType::F64 => bytes.first_chunk().map_or(f64::NAN, |b| f64::from_le_bytes(*b)),
                _ => bytes.first_chunk().map_or(f64::NAN, |b| f32::from_le_bytes(*b).into()),
            })
        };
        Ok((first(self.loss)?, first(self.norm)?))
    }
}

/// A recorded forward pass.
struct Evaluation {
    windows: Tensor,
    outputs: Tensor,
    replay: Option<Replay>,
}

impl Step {
    /// Allocates and records.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Input`] for a model that cannot be built.
    pub fn new(backend: Arc<dyn Backend>, spec: StepSpec) -> Result<Self> {
        let mut builder = Builder::default();
        let model = spec.model.build(&mut builder)?;
        let params = builder.build(backend, spec.dtype, spec.seed)?;
        Self::with(model, params, spec)
    }

    fn with(model: Box<dyn Model>, mut params: Params, spec: StepSpec) -> Result<Self> {
        if let Some(compute) = spec.compute.filter(|_| spec.model.has_mixed_precision()) {
            params.keep_copy(compute)?;
        }
        let optimizer = Optimizer::new(&params, spec.rule, model.layers(), spec.average)?;
        let (channels, window, outputs) = spec.model.extents();
        let backend = params.backend();
        let rows = spec.batch * spec.accumulation;
        let windows = backend.empty([rows, channels, window], spec.dtype, "windows")?;
        let (targets, weights) = match &spec.objective {
            Objective::Pointwise(_) => {
                (backend.empty([rows, outputs], spec.dtype, "targets")?, None)
            }
            Objective::CrossEntropy { weights, .. } => {
                let table = backend.empty([outputs], spec.dtype, "class_weights")?;
                let wide: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
                params.write_floats(&table, &wide)?;
                (backend.empty([rows], DType::I32, "labels")?, Some(table))
            }
        };
        let rng = backend.empty([philox::STATE_WORDS], DType::I32, "rng")?;
        let loss = backend.empty([1], spec.dtype, "loss")?;
        let loss_scale = match params.compute_type() {
            DType::F16 => Some(backend.empty([1], spec.dtype, "loss_scale")?),
            _ => None,
        };
        let eval = match spec.eval_batch {
            0 => None,
            n => {
                let windows = backend.empty([n, channels, window], spec.dtype, "eval.windows")?;
                // Of the first pass there may be fewer than fit: the rest is computed all the same.
                backend.launch(Fill::new(windows.numel(), 0.0), &[], &[&windows])?;
                let outputs = backend.empty([n, outputs], spec.dtype, "eval.outputs")?;
                Some(Evaluation { windows, outputs, replay: None })
            }
        };
        let mut step = Self {
            spec,
            model,
            params,
            optimizer,
            windows,
            targets,
            weights,
            rng,
            loss,
            loss_scale,
            train: None,
            eval,
        };
        step.record()?;
        Ok(step)
    }

    /// The exact memory a step of this kind needs, found without a device.
    ///
    /// # Errors
    /// As [`Step::new`].
    pub fn plan(arch: &crate::backend::Arch, limit: u64, spec: &StepSpec) -> Result<MemoryUse> {
        let null = Arc::new(crate::backend::null::Null::new(arch.clone(), limit));
        let mut builder = Builder::default();
        let model = spec.model.build(&mut builder)?;
        // First values take longer to draw than all the rest takes to plan.
        let params = builder.place(Arc::clone(&null) as Arc<dyn Backend>, spec.dtype)?;
        Self::with(model, params, spec.clone())?;
        Ok(null.memory())
    }

    /// Records again: after parameters were frozen or thawed.
    ///
    /// # Errors
    /// As [`Step::new`].
    pub fn record(&mut self) -> Result<()> {
        self.train = self.params.backend().record(&mut || self.enqueue_training())?;
        if let Some(eval) = &self.eval {
            let replay = self.params.backend().record(&mut || self.enqueue_evaluation(eval))?;
            if let Some(eval) = &mut self.eval {
                eval.replay = replay;
            }
        }
        Ok(())
    }

    fn enqueue_training(&self) -> Result<()> {
        let tape = Tape::inference(&self.params);
        let grads = self.params.grads();
        tape.run(Fill::new(grads.numel(), 0.0), &[], &[grads])?;
        tape.run(Fill::new(1, 0.0), &[], &[&self.loss])?;
        self.params.enqueue_copy(&tape)?;
        let (batch, passes) = (self.spec.batch, self.spec.accumulation);
        let share = 1.0 / passes as f32;
        let mut stream = 0;
        for pass in 0..passes {
            let tape = Tape::training(&self.params, Some(self.rng.clone()));
            tape.streams_from(stream);
            let windows = Var::constant(self.windows.narrow(pass * batch, batch)?);
            let targets = self.targets.narrow(pass * batch, batch)?;
            let outputs = self.model.forward(&tape, &windows)?;
            let loss = tape.scoped("loss", || self.loss_of(&tape, &outputs, &targets))?;
            tape.run(Axpy::adding(1, share), &[loss.tensor()], &[&self.loss])?;
            match &self.loss_scale {
                Some(scale) => {
                    let seed = tape.empty([1], loss.dtype(), "grad.loss")?;
                    tape.run(Axpy::scaling(1, share), &[scale], &[&seed])?;
                    tape.backward_from(&loss, seed)?;
                }
                None => tape.backward(&loss, share)?,
            }
            stream = tape.next_stream();
        }
        self.optimizer.enqueue(&tape)
    }

    fn loss_of(&self, tape: &Tape<'_>, outputs: &Var, targets: &Tensor) -> Result<Var> {
        match (&self.spec.objective, &self.weights) {
            (Objective::Pointwise(kind), _) => pointwise(tape, *kind, outputs, targets),
            (Objective::CrossEntropy { smoothing, .. }, Some(weights)) => {
                cross_entropy(tape, outputs, targets, weights, *smoothing)
            }
            (Objective::CrossEntropy { .. }, None) => Err(Error::shape("loss", "no class weights")),
        }
    }

    fn enqueue_evaluation(&self, eval: &Evaluation) -> Result<()> {
        let tape = Tape::inference(&self.params);
        self.params.enqueue_copy(&tape)?;
        let outputs = self.model.forward(&tape, &Var::constant(eval.windows.clone()))?;
        crate::ops::elementwise::copy(&tape, outputs.tensor(), &eval.outputs)
    }

    /// Parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Freezes the parameters of the parts for which `frozen` is true, and records again.
    ///
    /// # Errors
    /// As [`Step::new`].
    pub fn freeze(&mut self, frozen: impl Fn(Part) -> bool) -> Result<()> {
        self.params.freeze(|spec| frozen(spec.part));
        self.record()
    }

    /// Optimizer with its state.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// What fixed this step.
    pub fn spec(&self) -> &StepSpec {
        &self.spec
    }

    /// Windows of one update.
    pub fn rows(&self) -> usize {
        self.spec.batch * self.spec.accumulation
    }

    /// Copies windows `[rows, channels, time]` to the device.
    ///
    /// # Errors
    /// [`Error::Shape`] when the count differs.
    pub fn load_windows(&self, windows: &[f32]) -> Result<()> {
        self.upload(&self.windows, windows)
    }

    /// Where [`Step::load_windows`] copies to, for those who fill it on the device.
    pub fn windows(&self) -> &Tensor {
        &self.windows
    }

    fn upload(&self, to: &Tensor, values: &[f32]) -> Result<()> {
        match to.dtype() {
            DType::F32 => self.params.backend().write(to, values),
            _ => {
                let wide: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
                self.params.write_floats(to, &wide)
            }
        }
    }

    /// Copies targets `[rows, outputs]` (class numbers `[rows]` for cross-entropy) to the device.
    ///
    /// # Errors
    /// [`Error::Shape`] when the count differs.
    pub fn load_targets(&self, targets: &[f32]) -> Result<()> {
        match self.targets.dtype() {
            DType::I32 => {
                let labels: Vec<i32> = targets.iter().map(|&x| x as i32).collect();
                self.params.backend().write(&self.targets, &labels)
            }
            _ => self.upload(&self.targets, targets),
        }
    }

    /// Runs one update on what was loaded. Random masks follow (`seed`, `control.step`).
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn train(&self, seed: u64, control: Control, rates: impl Fn(Part) -> Rates) -> Result<()> {
        let backend = self.params.backend();
        backend.write(&self.rng, &philox::state(seed, control.step))?;
        if let Some(scale) = &self.loss_scale {
            self.params.write_floats(scale, &[control.loss_scale])?;
        }
        self.optimizer.prepare(&self.params, control, rates)?;
        match &self.train {
            Some(replay) => backend.replay(replay),
            None => self.enqueue_training(),
        }
    }

    /// Runs one update with a loss of the caller's: `gradient` gets the outputs `[batch, outputs]` of
    /// each forward pass, writes the loss's gradient by them and gives the loss; what it gives is
    /// averaged over the passes. Nothing is recorded: ops run one by one.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::OutOfMemory`], and what `gradient` gives.
    pub fn train_with(
        &self,
        seed: u64,
        control: Control,
        rates: impl Fn(Part) -> Rates,
        mut gradient: impl FnMut(&[f32], &mut [f32]) -> Result<f64>,
    ) -> Result<f64> {
        let backend = self.params.backend();
        backend.write(&self.rng, &philox::state(seed, control.step))?;
        self.optimizer.prepare(&self.params, control, rates)?;
        let tape = Tape::inference(&self.params);
        let grads = self.params.grads();
        tape.run(Fill::new(grads.numel(), 0.0), &[], &[grads])?;
        self.params.enqueue_copy(&tape)?;
        let (batch, passes) = (self.spec.batch, self.spec.accumulation);
        let (mut stream, mut total) = (0, 0.0);
        for pass in 0..passes {
            let tape = Tape::training(&self.params, Some(self.rng.clone()));
            tape.streams_from(stream);
            let windows = Var::constant(self.windows.narrow(pass * batch, batch)?);
            let outputs = self.model.forward(&tape, &windows)?;
            let found = self.params.read_floats(outputs.tensor())?;
            let mut slope = vec![0.0f32; found.len()];
            total += gradient(&found, &mut slope)? / passes as f64;
            let scale = control.loss_scale / passes as f64;
            let slope: Vec<f64> = slope.iter().map(|&g| f64::from(g) * scale).collect();
            let seed = tape.empty(*outputs.shape(), outputs.dtype(), "grad.outputs")?;
            self.params.write_floats(&seed, &slope)?;
            tape.backward_from(&outputs, seed)?;
            stream = tape.next_stream();
        }
        self.optimizer.enqueue(&tape)?;
        Ok(total)
    }

    /// Loss of the last update; waits for it.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn loss(&self) -> Result<f64> {
        match self.loss.dtype() {
            DType::F64 => Ok(self.params.backend().read::<f64>(&self.loss)?[0]),
            _ => Ok(f64::from(self.params.read_floats(&self.loss)?[0])),
        }
    }

    /// Loss and gradient norm of the last update, to be waited for when they are wanted.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn results_later(&self) -> Result<Results> {
        let later =
            |from: &Tensor| Arc::clone(self.params.backend_arc()).download_later(from.view());
        let (loss, norm) = (later(&self.loss)?, later(self.optimizer.norm_tensor())?);
        Ok(Results { loss, norm, dtype: self.spec.dtype })
    }

    /// Outputs `[n, outputs]` of windows `[n, channels, time]`, for any n.
    ///
    /// # Errors
    /// [`Error::Shape`] when this step was made without evaluation.
    pub fn evaluate(&self, windows: &[f32]) -> Result<Vec<f32>> {
        let Some(eval) = &self.eval else {
            return Err(Error::shape("evaluate", "the step was made without evaluation"));
        };
        let (channels, window, _) = self.spec.model.extents();
        let width = channels * window;
        let mut padded = vec![0.0; eval.windows.numel()];
        self.evaluate_from(windows.len() / width.max(1), &mut |rows, _| {
            let piece = &windows[rows.start * width..rows.end * width];
            padded[..piece.len()].copy_from_slice(piece);
            self.upload(&eval.windows, &padded)
        })
    }

    /// Outputs `[n, outputs]` of n windows, which `fill` puts on the device: those of a range of numbers,
    /// into the first rows of a tensor `[_, channels, time]`.
    ///
    /// # Errors
    /// As [`Step::evaluate`].
    pub fn evaluate_from(
        &self,
        n: usize,
        fill: &mut dyn FnMut(Range<usize>, &Tensor) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let Some(eval) = &self.eval else {
            return Err(Error::shape("evaluate", "the step was made without evaluation"));
        };
        let (_, _, outputs) = self.spec.model.extents();
        let mut all = Vec::with_capacity(n * outputs);
        // What a pass gives is read once the next one is under way.
        let mut unread: Option<(usize, Later)> = None;
        let mut read = |(rows, later): (usize, Later)| -> Result<()> {
            let found = floats(&later.wait()?, eval.outputs.dtype());
            all.extend_from_slice(&found[..rows * outputs]);
            Ok(())
        };
        for first in (0..n).step_by(eval.windows.dims()[0]) {
            let rows = first..n.min(first + eval.windows.dims()[0]);
            fill(rows.clone(), &eval.windows)?;
            match &eval.replay {
                Some(replay) => self.params.backend().replay(replay)?,
                None => self.enqueue_evaluation(eval)?,
            }
            let later =
                Arc::clone(self.params.backend_arc()).download_later(eval.outputs.view())?;
            unread.replace((rows.len(), later)).map_or(Ok(()), &mut read)?;
        }
        unread.map_or(Ok(()), &mut read)?;
        Ok(all)
    }

    /// Outputs of windows `[n, channels, time]` that lie in the device's own memory, written to
    /// `outputs` `[n, outputs]` there; enqueued, not waited for. Both are contiguous and f32, or
    /// `windows` of a 16-bit type.
    ///
    /// # Errors
    /// [`Error::Shape`] when the extents are not the model's, or this step was made without
    /// evaluation.
    pub fn evaluate_views(&self, windows: &View, outputs: &View) -> Result<()> {
        let Some(eval) = &self.eval else {
            return Err(Error::shape("evaluate", "the step was made without evaluation"));
        };
        let (channels, window, width) = self.spec.model.extents();
        let n = windows.shape.dims().first().copied().unwrap_or(0);
        if windows.shape.dims() != [n, channels, window] || outputs.shape.dims() != [n, width] {
            let problem = format!("windows {} and outputs {}", windows.shape, outputs.shape);
            return Err(Error::shape("evaluate", problem));
        }
        let backend = self.params.backend();
        let copy = |from: View, to: View| -> Result<()> {
            let op = Box::new(Axpy::scaling(from.shape.numel(), 1.0));
            backend.run(op, Io { inputs: &[from], outputs: &[to] })
        };
        let part = |view: &View, first: usize, rows: usize| -> View {
            let each = view.shape.numel() / n.max(1);
            let skip = (first * each * view.dtype.size()) as u64;
            let shape = Shape::from([rows, each]);
            View {
                address: view.address + skip,
                shape,
                strides: shape.row_major(),
                dtype: view.dtype,
            }
        };
        let most = eval.windows.dims()[0];
        for first in (0..n).step_by(most) {
            let rows = usize::min(most, n - first);
            copy(part(windows, first, rows), *eval.windows.narrow(0, rows)?.view())?;
            match &eval.replay {
                Some(replay) => backend.replay(replay)?,
                None => self.enqueue_evaluation(eval)?,
            }
            copy(*eval.outputs.narrow(0, rows)?.view(), part(outputs, first, rows))?;
        }
        Ok(())
    }

    /// Name of the first parameter or gradient that is not finite, if any.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn find_not_finite(&self) -> Result<Option<String>> {
        for id in self.params.ids() {
            let name = &self.params.spec(id).name;
            if self.params.read(id)?.iter().any(|x| !x.is_finite()) {
                return Ok(Some(name.clone()));
            }
            if let Some(grad) = self.params.grad(id)
                && self.params.read_floats(&grad)?.iter().any(|x| !x.is_finite())
            {
                return Ok(Some(format!("gradient of {name}")));
            }
        }
        Ok(None)
    }
}
