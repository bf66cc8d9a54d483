//! Reverse-mode differentiation: one closure per node, run backwards.
//!
//! The tape knows no op. A function that computes something pushes the result together with a
//! closure that turns the result's gradient into its operands' gradients; adding an op adds a file
//! under `ops/` and changes nothing here.

use std::cell::{Cell, RefCell};

use crate::backend::{Backend, Op};
use crate::nn::params::{ParamId, Params};
use crate::ops::elementwise::{self, Fill};
use crate::tensor::{Shape, Tensor};
use crate::{DType, Error, Result};

/// Where a value came from, hence where its gradient goes.
#[derive(Debug, Clone)]
enum Source {
    /// Has no gradient.
    Constant,
    /// Computed by a node of the tape.
    Node(usize),
    /// A parameter: its gradient is added to this tensor.
    Leaf(Tensor),
}

/// A tensor on a tape.
#[derive(Debug, Clone)]
pub struct Var {
    tensor: Tensor,
    source: Source,
}

impl Var {
    /// A value without gradient.
    pub fn constant(tensor: Tensor) -> Self {
        Self { tensor, source: Source::Constant }
    }

    /// A value whose gradient is added to `grad`.
    pub fn leaf(tensor: Tensor, grad: Tensor) -> Self {
        Self { tensor, source: Source::Leaf(grad) }
    }

    /// The value.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Extents of the value.
    pub fn shape(&self) -> &Shape {
        self.tensor.shape()
    }

    /// Extents of the value as a slice.
    pub fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// Element type of the value.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// A parameter under another shape, whose gradient still goes where it did; None for a value
    /// that is no parameter.
    ///
    /// # Errors
    /// [`Error::Shape`] when the element counts differ.
    pub fn reshaped_leaf(&self, shape: &[usize]) -> Result<Option<Self>> {
        let Source::Leaf(grad) = &self.source else { return Ok(None) };
        Ok(Some(Self::leaf(self.tensor.reshape(shape)?, grad.reshape(shape)?)))
    }

    /// True when a gradient flows into this value.
    pub fn needs_grad(&self) -> bool {
        !matches!(self.source, Source::Constant)
    }
}

type Backward<'s> = Box<dyn FnOnce(&mut Grads<'_, 's>, Tensor) -> Result<()> + 's>;

/// A record of what was computed, for one forward and one backward pass.
pub struct Tape<'s> {
    params: &'s Params,
    /// What to do on the way back, and the scope it was pushed in.
    nodes: RefCell<Vec<Option<(Backward<'s>, String)>>>,
    recording: Cell<bool>,
    training: bool,
    rng: Option<Tensor>,
    streams: Cell<u32>,
    scope: RefCell<String>,
}

impl<'s> Tape<'s> {
    /// A tape for inference: nothing is recorded, dropout is off, statistics are frozen.
    pub fn inference(params: &'s Params) -> Self {
        Self {
            params,
            nodes: RefCell::default(),
            recording: Cell::new(false),
            training: false,
            rng: None,
            streams: Cell::new(0),
            scope: RefCell::default(),
        }
    }

    /// A tape that records. `rng` is the step's random state `[4]` i32 (see `ops::philox`);
    /// without it dropout is off.
    pub fn training(params: &'s Params, rng: Option<Tensor>) -> Self {
        Self { recording: Cell::new(true), training: true, rng, ..Self::inference(params) }
    }

    /// A tape that records as for training, with layers that behave as in inference.
    pub fn frozen(params: &'s Params) -> Self {
        Self { recording: Cell::new(true), ..Self::inference(params) }
    }

    /// The machine everything runs on.
    pub fn backend(&self) -> &'s dyn Backend {
        self.params.backend()
    }

    /// True when layers should behave as in training.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// The random state, where dropout is on.
    pub fn rng(&self) -> Option<&Tensor> {
        self.rng.as_ref()
    }

    /// Random ops from here on are numbered from `first`: for several passes in one step.
    pub fn streams_from(&self, first: u32) {
        self.streams.set(first);
    }

    /// A number no other random op of this step has.
    pub fn next_stream(&self) -> u32 {
        let stream = self.streams.get();
        self.streams.set(stream + 1);
        stream
    }

    /// Runs `f` with `name` added to the path that tensors are named by.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn scoped<R>(&self, name: &str, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let length = self.scope.borrow().len();
        {
            let mut scope = self.scope.borrow_mut();
            if !scope.is_empty() {
                scope.push('.');
            }
            scope.push_str(name);
        }
        self.backend().enter(&self.scope.borrow());
        let result = f();
        self.scope.borrow_mut().truncate(length);
        self.backend().enter(&self.scope.borrow());
        result
    }

    /// An uninitialised tensor named by the scope and `name`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn empty(&self, shape: impl Into<Shape>, dtype: DType, name: &str) -> Result<Tensor> {
        let scope = self.scope.borrow();
        let name = if scope.is_empty() { name.to_string() } else { format!("{scope}.{name}") };
        self.backend().empty(shape, dtype, &name)
    }

    /// Runs an op.
    ///
    /// # Errors
    /// As [`Backend::run`].
    pub fn run(
        &self,
        op: impl Op + 'static,
        inputs: &[&Tensor],
        outputs: &[&Tensor],
    ) -> Result<()> {
        self.backend().launch(op, inputs, outputs)
    }

    /// A parameter as a leaf; a buffer or frozen parameter as a constant.
    pub fn param(&self, id: ParamId) -> Var {
        let value = self.params.value(id);
        match self.params.grad(id) {
            Some(grad) if self.recording.get() => Var::leaf(value, grad),
            _ => Var::constant(value),
        }
    }

    /// A weight matrix in the type that is computed in: the copy that mixed precision keeps beside
    /// the master weights. Its gradient is the master's, in the master's type.
    pub fn weight(&self, id: ParamId, dtype: DType) -> Var {
        let value = self.params.value_as(id, dtype);
        match self.params.grad(id) {
            Some(grad) if self.recording.get() => Var::leaf(value, grad),
            _ => Var::constant(value),
        }
    }

    /// The parameters in use.
    pub fn params(&self) -> &'s Params {
        self.params
    }

    /// Puts a result on the tape. `backward` is kept only if one of `operands` has a gradient.
    pub fn push(
        &self,
        tensor: Tensor,
        operands: &[&Var],
        backward: impl FnOnce(&mut Grads<'_, 's>, Tensor) -> Result<()> + 's,
    ) -> Var {
        if !self.recording.get() || !operands.iter().any(|var| var.needs_grad()) {
            return Var::constant(tensor);
        }
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(Some((Box::new(backward), self.scope.borrow().clone())));
        Var { tensor, source: Source::Node(nodes.len() - 1) }
    }

    /// Adds d(scale * loss)/dp to the gradient of every parameter the loss depends on.
    ///
    /// # Errors
    /// As the backward functions of the ops; [`Error::Shape`] when `loss` is not one number.
    pub fn backward(&self, loss: &Var, scale: f32) -> Result<()> {
        if loss.tensor.numel() != 1 {
            return Err(Error::shape("backward", format!("a loss of shape {}", loss.shape())));
        }
        let seed = self.empty(*loss.shape(), loss.dtype(), "grad.loss")?;
        self.run(Fill::new(seed.numel(), scale), &[], &[&seed])?;
        self.backward_from(loss, seed)
    }

    /// [`Tape::backward`] from any result and its gradient.
    ///
    /// # Errors
    /// As [`Tape::backward`].
    pub fn backward_from(&self, result: &Var, grad: Tensor) -> Result<()> {
        let Source::Node(last) = result.source else { return Ok(()) };
        let mut slots: Vec<Option<Tensor>> = vec![None; last + 1];
        slots[last] = Some(grad);
        let mut grads = Grads { tape: self, slots };
        for i in (0..=last).rev() {
            let closure = self.nodes.borrow_mut()[i].take();
            if let (Some(grad), Some((closure, scope))) = (grads.slots[i].take(), closure) {
                self.backend().enter(&format!("{scope} backward"));
                self.scope.replace(scope);
                closure(&mut grads, grad)?;
            }
        }
        self.scope.borrow_mut().clear();
        self.backend().enter("");
        Ok(())
    }

    /// Computes `f(x)` without keeping what its backward pass needs, and computes it again there:
    /// memory for time. Dropout inside repeats its masks.
    ///
    /// # Errors
    /// As `f`.
    pub fn checkpoint(
        &self,
        x: &Var,
        f: impl Fn(&Tape<'s>, &Var) -> Result<Var> + 's,
    ) -> Result<Var> {
        if !self.recording.get() {
            return f(self, x);
        }
        let first_stream = self.streams.get();
        self.recording.set(false);
        let result = f(self, &Var::constant(x.tensor.clone()));
        self.recording.set(true);
        let tensor = result?.tensor;
        let scope = self.scope.borrow().clone();
        let (input, rng, training) = (x.clone(), self.rng.clone(), self.training);
        let params = self.params;
        // The node is kept even where `x` has no gradient: parameters inside `f` have.
        let backward = move |grads: &mut Grads<'_, 's>, grad: Tensor| {
            let again = Tape { training, ..Tape::training(params, rng) };
            again.streams.set(first_stream);
            again.scope.replace(scope);
            let wants = grads.wants(&input);
            let inner = if wants {
                let sink = again.empty(*input.shape(), input.dtype(), "grad.recomputed")?;
                again.run(Fill::new(sink.numel(), 0.0), &[], &[&sink])?;
                Var::leaf(input.tensor.clone(), sink)
            } else {
                Var::constant(input.tensor.clone())
            };
            let result = f(&again, &inner)?;
            again.backward_from(&result, grad)?;
            if let Source::Leaf(sink) = inner.source {
                grads.give(&input, sink)?;
            }
            Ok(())
        };
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(Some((Box::new(backward), self.scope.borrow().clone())));
        Ok(Var { tensor, source: Source::Node(nodes.len() - 1) })
    }
}

/// Gradients on their way back.
pub struct Grads<'t, 's> {
    tape: &'t Tape<'s>,
    slots: Vec<Option<Tensor>>,
}

/// Where an op writes an operand's gradient.
pub struct Target {
    /// The tensor to write.
    pub tensor: Tensor,
    /// Add to what it holds instead of overwriting it.
    pub accumulate: bool,
}

impl<'s> Grads<'_, 's> {
    /// The tape being run back.
    pub fn tape(&self) -> &Tape<'s> {
        self.tape
    }

    /// True when the gradient of `var` is needed.
    pub fn wants(&self, var: &Var) -> bool {
        var.needs_grad()
    }

    /// Where to write the gradient of `var`; None when it is not needed. The caller must enqueue
    /// the op that writes it before asking for anything else.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn target(&mut self, var: &Var) -> Result<Option<Target>> {
        let i = match &var.source {
            Source::Constant => return Ok(None),
            Source::Leaf(grad) => {
                return Ok(Some(Target { tensor: grad.clone(), accumulate: true }));
            }
            Source::Node(i) => *i,
        };
        let present = self.slots[i].take();
        let accumulate = present.is_some();
        let tensor = match present {
            Some(tensor) if tensor.is_unique() => tensor,
            Some(shared) => {
                let own = self.tape.empty(*shared.shape(), shared.dtype(), "grad.copy")?;
                elementwise::copy(self.tape, &shared, &own)?;
                own
            }
            None => self.tape.empty(*var.shape(), var.dtype(), "grad")?,
        };
        self.slots[i] = Some(tensor.clone());
        Ok(Some(Target { tensor, accumulate }))
    }

    /// [`Grads::target`] for ops that always add: a fresh gradient is set to 0 first.
    ///
    /// # Errors
    /// As [`Grads::target`].
    pub fn sum_of(&mut self, var: &Var) -> Result<Option<Tensor>> {
        let Some(target) = self.target(var)? else { return Ok(None) };
        if !target.accumulate {
            let fill = Fill::new(target.tensor.numel(), 0.0);
            self.tape.run(fill, &[], &[&target.tensor])?;
        }
        Ok(Some(target.tensor))
    }

    /// Adds a finished gradient of `var`'s size, which may share memory with other gradients.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn give(&mut self, var: &Var, grad: Tensor) -> Result<()> {
        let grad = grad.reshape(*var.shape())?;
        if let Source::Node(i) = var.source
            && self.slots[i].is_none()
        {
            self.slots[i] = Some(grad);
            return Ok(());
        }
        let tape = self.tape;
        match self.target(var)? {
            Some(target) => elementwise::add_into(tape, &grad, &target.tensor),
            None => Ok(()),
        }
    }
}
