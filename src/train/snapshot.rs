//! A step's weights and optimizer state on their way to the host, and checkpoints made of them: the
//! copies are enqueued between two steps, so that training goes on while they are waited for,
//! checked and written.

use std::ops::Range;

use safetensors::Dtype;

use super::checkpoint_file::Checkpoint;
use super::step::Step;
use crate::backend::Later;
use crate::tensor::Tensor;
use crate::{DType, Error, Result};

/// Prefix of optimizer state.
pub(super) const OPTIMIZER: &str = "optimizer.";
/// The optimizer's array that holds averaged weights, as its own names them.
const AVERAGE: &str = "average";

/// One parameter in the flat array of all.
#[derive(Debug)]
struct Part {
    name: String,
    dims: Vec<usize>,
    first: usize,
    buffer: bool,
}

impl Part {
    fn range(&self) -> Range<usize> {
        self.first..self.first + self.dims.iter().product::<usize>()
    }
}

/// An array that is being copied.
struct Copying {
    name: String,
    dims: Vec<usize>,
    bytes: Later,
    dtype: DType,
}

impl Copying {
    fn of(step: &Step, name: String, tensor: &Tensor) -> Result<Self> {
        let backend = std::sync::Arc::clone(step.params().backend_arc());
        let (dims, dtype) = (tensor.dims().to_vec(), tensor.dtype());
        Ok(Self { name, dims, bytes: backend.download_later(tensor.view())?, dtype })
    }

    fn wait(self) -> Result<Array> {
        let values = floats(&self.bytes.wait()?, self.dtype);
        Ok(Array { name: self.name, dims: self.dims, values })
    }
}

/// Bytes of f32 or f64 numbers as f32; they need not lie at a number's address.
pub(super) fn floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

#[derive(Debug)]
struct Array {
    name: String,
    dims: Vec<usize>,
    values: Vec<f32>,
}

/// State between two steps, not waited for yet.
pub struct Snapshot {
    parts: Vec<Part>,
    weights: Copying,
    optimizer: Vec<Copying>,
}

impl Snapshot {
    /// Enqueues the copies: they are of the state after all that was enqueued before.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn take(step: &Step) -> Result<Self> {
        let params = step.params();
        let part = |id| {
            let spec = params.spec(id);
            let (name, dims) = (spec.name.clone(), spec.shape.dims().to_vec());
            Part { name, dims, first: params.offset(id), buffer: spec.buffer }
        };
        let copy = |(name, tensor): (&str, &Tensor)| Copying::of(step, name.into(), tensor);
        Ok(Self {
            parts: params.ids().map(part).collect(),
            weights: copy(("parameters", params.values()))?,
            optimizer: step.optimizer().arrays().map(copy).collect::<Result<_>>()?,
        })
    }

    /// Waits for the copies.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn wait(self) -> Result<Saved> {
        Ok(Saved {
            parts: self.parts,
            weights: self.weights.wait()?,
            optimizer: self.optimizer.into_iter().map(Copying::wait).collect::<Result<_>>()?,
        })
    }
}

/// State between two steps, in the host's memory.
#[derive(Debug)]
pub struct Saved {
    parts: Vec<Part>,
    weights: Array,
    optimizer: Vec<Array>,
}

impl Saved {
    /// Name of the first parameter that holds something that is not a finite number.
    pub fn find_not_finite(&self) -> Option<&str> {
        let values = |part: &Part| self.weights.values.get(part.range()).unwrap_or(&[]);
        let spoiled = |part: &&Part| values(part).iter().any(|x| !x.is_finite());
        self.parts.iter().find(spoiled).map(|part| part.name.as_str())
    }

    /// The weights to use, under their bare names: the averaged ones where the run keeps them.
    /// Buffers are always the parameters'.
    ///
    /// # Errors
    /// [`Error::Shape`]: never in practice.
    pub fn model(&self) -> Result<Checkpoint<'_>> {
        self.weights(self.optimizer.iter().find(|array| array.name == AVERAGE))
    }

    /// The present weights, and all of the optimizer.
    ///
    /// # Errors
    /// As [`Saved::model`].
    pub fn run(&self) -> Result<Checkpoint<'_>> {
        let mut checkpoint = self.weights(None)?;
        for array in &self.optimizer {
            let (name, bytes) = (format!("{OPTIMIZER}{}", array.name), bytes_of(&array.values));
            checkpoint.insert(&name, Dtype::F32, &array.dims, bytes)?;
        }
        Ok(checkpoint)
    }

    fn weights<'a>(&'a self, averaged: Option<&'a Array>) -> Result<Checkpoint<'a>> {
        let mut checkpoint = Checkpoint::default();
        for part in &self.parts {
            let from = averaged.filter(|_| !part.buffer).unwrap_or(&self.weights);
            let Some(values) = from.values.get(part.range()) else {
                return Err(Error::shape("checkpoint", format!("{} lies outside", part.name)));
            };
            checkpoint.insert(&part.name, Dtype::F32, &part.dims, bytes_of(values))?;
        }
        Ok(checkpoint)
    }
}

fn bytes_of(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}
