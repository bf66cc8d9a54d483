//! The parameters of a model: named views of one flat array, their gradients in another.
//!
//! Trained parameters come first, each beginning on a block of [`BLOCK`] elements, so that one
//! launch updates all of them; buffers (running statistics) follow.

use std::collections::HashMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::backend::Backend;
use crate::data::rng::Rng;
use crate::ops::elementwise::Fill;
use crate::ops::optimizer::BLOCK;
use crate::tensor::{Shape, Tensor};
use crate::{DType, Element, Error, Result};

/// Zeros that are written to gradients at once.
const PIECE: usize = 1 << 20;

/// Index of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

/// First values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// One number.
    Constant(f32),
    /// Uniform in ± `bound`.
    Uniform {
        /// Largest magnitude.
        bound: f32,
    },
    /// Normal around 0.
    Normal {
        /// Standard deviation.
        deviation: f32,
    },
    /// Complex numbers (the last axis is real, imaginary) normally distributed around 1.
    ComplexOne {
        /// Standard deviation of either part.
        deviation: f32,
    },
}

impl Init {
    /// Uniform with the variance of `torch.nn.Linear` for `fan_in` inputs.
    pub fn fan_in(fan_in: usize) -> Self {
        Self::Uniform { bound: 1.0 / (fan_in.max(1) as f32).sqrt() }
    }

    /// Uniform after Glorot and Bengio (2010).
    pub fn glorot(fan_in: usize, fan_out: usize) -> Self {
        Self::Uniform { bound: (6.0 / (fan_in + fan_out).max(1) as f32).sqrt() }
    }

    fn value(self, rng: &mut Rng, i: usize) -> f64 {
        match self {
            Self::Constant(value) => f64::from(value),
            Self::Uniform { bound } => f64::from(bound) * (2.0 * rng.uniform() - 1.0),
            Self::Normal { deviation } => f64::from(deviation) * rng.normal(),
            Self::ComplexOne { deviation } => {
                f64::from(deviation) * rng.normal() + if i.is_multiple_of(2) { 1.0 } else { 0.0 }
            }
        }
    }
}

/// Which part of a model a parameter belongs to; learning rates and freezing go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// What turns windows into tokens.
    Embedding,
    /// Layer of the backbone, counted from the input.
    Layer(u16),
    /// What turns features into predictions.
    Head,
}

/// Description of one parameter.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Path, as in "layers.0.linear1.weight".
    pub name: String,
    /// Extents.
    pub shape: Shape,
    /// First values.
    pub init: Init,
    /// Part of the model.
    pub part: Part,
    /// Weight decay applies.
    pub decay: bool,
    /// Running statistics: saved with the model, not trained.
    pub buffer: bool,
}

/// Collects the parameters of a model while its layers are made.
#[derive(Debug)]
pub struct Builder {
    specs: Vec<Spec>,
    prefix: Vec<String>,
    part: Part,
}

impl Default for Builder {
    fn default() -> Self {
        Self { specs: Vec::new(), prefix: Vec::new(), part: Part::Embedding }
    }
}

impl Builder {
    /// Adds a trained parameter. Weight decay applies where it has two axes or more.
    pub fn param(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> ParamId {
        let shape = shape.into();
        self.add(name, shape, init, shape.rank() >= 2, false)
    }

    /// Adds a trained parameter without weight decay.
    pub fn undecayed(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> ParamId {
        self.add(name, shape.into(), init, false, false)
    }

    /// Adds a buffer.
    pub fn buffer(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> ParamId {
        self.add(name, shape.into(), init, false, true)
    }

    fn add(&mut self, name: &str, shape: Shape, init: Init, decay: bool, buffer: bool) -> ParamId {
        let mut path = self.prefix.clone();
        path.push(name.into());
        let name = path.join(".");
        self.specs.push(Spec { name, shape, init, part: self.part, decay, buffer });
        ParamId(self.specs.len() - 1)
    }

    /// Adds what `f` adds with `name` in front.
    pub fn scoped<R>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> R) -> R {
        self.prefix.push(name.into());
        let result = f(self);
        self.prefix.pop();
        result
    }

    /// What follows belongs to `part`.
    pub fn part(&mut self, part: Part) {
        self.part = part;
    }

    /// Descriptions so far.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Allocates and initialises. The first values of a parameter depend on `seed` and its name
    /// alone, not on what else the model has.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn build(self, backend: Arc<dyn Backend>, dtype: DType, seed: u64) -> Result<Params> {
        let params = self.place(backend, dtype)?;
        params.initialise(seed)?;
        Ok(params)
    }

    /// Allocates only: what the parameters hold is unspecified.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn place(self, backend: Arc<dyn Backend>, dtype: DType) -> Result<Params> {
        let mut offsets = vec![0; self.specs.len()];
        let mut end = 0;
        let mut place = |buffers: bool| {
            for (spec, offset) in self.specs.iter().zip(&mut offsets) {
                if spec.buffer == buffers {
                    *offset = end;
                    end += spec.shape.numel().next_multiple_of(BLOCK);
                }
            }
            end
        };
        let trained = place(false);
        let total = place(true);
        let values = backend.empty([total], dtype, "parameters")?;
        let grads = backend.empty([trained], dtype, "gradients")?;
        let index = self.specs.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        Ok(Params {
            backend,
            frozen: vec![false; self.specs.len()],
            specs: self.specs,
            offsets,
            index,
            values,
            grads,
            copy: None,
        })
    }
}

/// The parameters of a model in a backend's memory.
#[derive(Debug)]
pub struct Params {
    backend: Arc<dyn Backend>,
    specs: Vec<Spec>,
    offsets: Vec<usize>,
    frozen: Vec<bool>,
    index: HashMap<String, usize>,
    values: Tensor,
    grads: Tensor,
    /// All values in the type of mixed precision.
    copy: Option<Tensor>,
}

impl Params {
    fn initialise(&self, seed: u64) -> Result<()> {
        // A piece at a time: of a large model, arrays of all would take longer to touch than to draw.
        let mut values = Vec::new();
        for (spec, &offset) in self.specs.iter().zip(&self.offsets) {
            let mut rng = Rng::new(seed, xxh3_64(spec.name.as_bytes()) >> 1);
            let count = spec.shape.numel();
            values.clear();
            values.extend((0..count).map(|i| spec.init.value(&mut rng, i)));
            // Also what lies before the next one: norms and updates go over all.
            values.resize(count.next_multiple_of(BLOCK), 0.0);
            self.write_floats(&self.values.narrow(offset, values.len())?, &values)?;
        }
        let zeros = vec![0.0; self.grads.numel().min(PIECE)];
        for first in (0..self.grads.numel()).step_by(PIECE) {
            let count = PIECE.min(self.grads.numel() - first);
            self.write_floats(&self.grads.narrow(first, count)?, &zeros[..count])?;
        }
        Ok(())
    }

    /// Writes numbers to a tensor of the parameters' type.
    ///
    /// # Errors
    /// As [`Backend::upload`].
    pub fn write_floats(&self, to: &Tensor, values: &[f64]) -> Result<()> {
        let backend = self.backend();
        match to.dtype() {
            DType::F64 => backend.write(to, values),
            _ => {
                // The tables of rates are small and come with every step: they cost no heap.
                let mut few = [0.0f32; 256];
                let Some(few) = few.get_mut(..values.len()) else {
                    let many: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                    return backend.write(to, &many);
                };
                few.iter_mut().zip(values).for_each(|(to, &x)| *to = x as f32);
                backend.write(to, few)
            }
        }
    }

    /// The machine they live on.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// The machine they live on, shared.
    pub fn backend_arc(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Type of every parameter.
    pub fn dtype(&self) -> DType {
        self.values.dtype()
    }

    /// Descriptions, in the order they were added.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Every parameter.
    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.specs.len()).map(ParamId)
    }

    /// Description of one parameter.
    pub fn spec(&self, id: ParamId) -> &Spec {
        &self.specs[id.0]
    }

    /// The parameter of that name.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.index.get(name).copied().map(ParamId)
    }

    /// Number of trained scalars.
    pub fn count(&self) -> usize {
        self.specs.iter().filter(|s| !s.buffer).map(|s| s.shape.numel()).sum()
    }

    /// All values `[n]`: trained parameters first, then buffers.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The trained part of [`Params::values`].
    ///
    /// # Errors
    /// Never in practice: the range lies within the array.
    pub fn trained_values(&self) -> Result<Tensor> {
        self.values.narrow(0, self.grads.numel())
    }

    /// All gradients `[n]`.
    pub fn grads(&self) -> &Tensor {
        &self.grads
    }

    /// Sets all gradients to 0: backward passes add to them.
    ///
    /// # Errors
    /// As [`Backend::run`].
    pub fn zero_grads(&self, tape: &crate::Tape<'_>) -> Result<()> {
        tape.run(Fill::new(self.grads.numel(), 0.0), &[], &[&self.grads])
    }

    /// First element of a parameter in the flat arrays.
    pub fn offset(&self, id: ParamId) -> usize {
        self.offsets[id.0]
    }

    fn part_of(&self, flat: &Tensor, id: ParamId) -> Tensor {
        let (offset, shape) = (self.offsets[id.0], self.specs[id.0].shape);
        let part = flat.narrow(offset, shape.numel()).and_then(|part| part.reshape(shape));
        part.expect("offsets were placed within the array by `Builder::build`")
    }

    /// Keeps a copy of all values in `dtype` for [`Params::value_as`]; [`Params::enqueue_copy`] makes
    /// it that of the present values.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn keep_copy(&mut self, dtype: DType) -> Result<()> {
        if dtype != self.dtype() {
            let n = self.values.numel();
            self.copy = Some(self.backend().empty([n], dtype, "parameters.copy")?);
        }
        Ok(())
    }

    /// Type that activations have.
    pub fn compute_type(&self) -> DType {
        self.copy.as_ref().unwrap_or(&self.values).dtype()
    }

    /// Enqueues the copy of the present values, where one is kept.
    ///
    /// # Errors
    /// As [`Backend::run`].
    pub fn enqueue_copy(&self, tape: &crate::Tape<'_>) -> Result<()> {
        match &self.copy {
            Some(copy) => crate::ops::elementwise::copy(tape, &self.values, copy),
            None => Ok(()),
        }
    }

    /// Value of a parameter in `dtype`, where that is the copy's type; else the master's.
    pub fn value_as(&self, id: ParamId, dtype: DType) -> Tensor {
        match &self.copy {
            Some(copy) if copy.dtype() == dtype => self.part_of(copy, id),
            _ => self.value(id),
        }
    }

    /// Value of a parameter.
    pub fn value(&self, id: ParamId) -> Tensor {
        self.part_of(&self.values, id)
    }

    /// Gradient of a parameter; None for a buffer or a frozen one.
    pub fn grad(&self, id: ParamId) -> Option<Tensor> {
        let skip = self.specs[id.0].buffer || self.frozen[id.0];
        (!skip).then(|| self.part_of(&self.grads, id))
    }

    /// Freezes exactly the parameters for which `frozen` is true.
    pub fn freeze(&mut self, frozen: impl Fn(&Spec) -> bool) {
        let flags = self.specs.iter().map(frozen);
        self.frozen = flags.collect();
    }

    /// True when a parameter is frozen.
    pub fn is_frozen(&self, id: ParamId) -> bool {
        self.frozen[id.0]
    }

    /// The group of every block of the trained array, for `group_of` each parameter.
    pub fn block_groups(&self, group_of: impl Fn(&Spec) -> i32) -> Vec<i32> {
        let mut groups = vec![0; self.grads.numel() / BLOCK];
        for (spec, offset) in self.specs.iter().zip(&self.offsets).filter(|(s, _)| !s.buffer) {
            let blocks = spec.shape.numel().div_ceil(BLOCK);
            groups[offset / BLOCK..offset / BLOCK + blocks].fill(group_of(spec));
        }
        groups
    }

    /// Reads one parameter.
    ///
    /// # Errors
    /// As [`Backend::download`].
    pub fn read(&self, id: ParamId) -> Result<Vec<f32>> {
        self.read_floats(&self.value(id))
    }

    /// Reads a tensor of the parameters' type as f32.
    ///
    /// # Errors
    /// As [`Backend::download`].
    pub fn read_floats(&self, from: &Tensor) -> Result<Vec<f32>> {
        match from.dtype() {
            DType::F64 => {
                Ok(self.backend().read::<f64>(from)?.into_iter().map(|x| x as f32).collect())
            }
            _ => self.backend().read::<f32>(from),
        }
    }

    /// Overwrites one parameter.
    ///
    /// # Errors
    /// [`Error::Shape`] when the count differs.
    pub fn write<T: Element + Into<f64>>(&self, id: ParamId, values: &[T]) -> Result<()> {
        let to = self.value(id);
        if values.len() != to.numel() {
            let problem = format!("{} values for {} {to:?}", values.len(), self.specs[id.0].name);
            return Err(Error::shape("write", problem));
        }
        let wide: Vec<f64> = values.iter().map(|&x| x.into()).collect();
        self.write_floats(&to, &wide)
    }
}
