//! What an op's host function sees: its operands as slices.

use super::real::Real;
use super::simd::memory::Operands;
use crate::tensor::{Shape, View};
use crate::{DType, Element, Error, Result};

/// Operands of one launch on the host. 16-bit operands arrive widened to f32, so a host function
/// is written for f32 and f64 only.
pub struct HostIo<'a> {
    operands: Operands<'a>,
}

impl<'a> HostIo<'a> {
    pub(super) fn new(operands: Operands<'a>) -> Self {
        Self { operands }
    }

    /// The type to compute in: f64 when the first float operand is f64, else f32.
    pub fn real(&self) -> DType {
        let mut all = self.operands.inputs().iter().chain(self.operands.outputs());
        match all.find(|view| view.dtype.is_float()) {
            Some(view) if view.dtype == DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.operands.inputs().len()
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.operands.outputs().len()
    }

    /// View of input `i`.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is none.
    pub fn view(&self, i: usize) -> Result<&'a View> {
        let inputs = self.operands.inputs();
        inputs.get(i).ok_or_else(|| Error::shape("operands", format!("input {i} is missing")))
    }

    /// Shape of input `i`.
    ///
    /// # Errors
    /// As [`HostIo::view`].
    pub fn shape(&self, i: usize) -> Result<Shape> {
        Ok(self.view(i)?.shape)
    }

    /// Elements of input `i`.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is missing or of another type.
    pub fn input<T: Element>(&self, i: usize) -> Result<&'a [T]> {
        self.operands.input(i)
    }

    /// Elements of input `i`, which must be `n` of them.
    ///
    /// # Errors
    /// As [`HostIo::input`], and when the count differs.
    pub fn input_n<T: Element>(&self, i: usize, n: usize) -> Result<&'a [T]> {
        let slice = self.operands.input(i)?;
        if slice.len() != n {
            let problem = format!("input {i} has {} elements, expected {n}", slice.len());
            return Err(Error::shape("operands", problem));
        }
        Ok(slice)
    }

    /// Elements of output `i`; each output can be taken once.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is missing, of another type, or taken.
    pub fn output<T: Element>(&mut self, i: usize) -> Result<&'a mut [T]> {
        self.operands.output(i)
    }

    /// Elements of output `i`, which must be `n` of them.
    ///
    /// # Errors
    /// As [`HostIo::output`], and when the count differs.
    pub fn output_n<T: Element>(&mut self, i: usize, n: usize) -> Result<&'a mut [T]> {
        let slice = self.operands.output(i)?;
        if slice.len() != n {
            let problem = format!("output {i} has {} elements, expected {n}", slice.len());
            return Err(Error::shape("operands", problem));
        }
        Ok(slice)
    }
}

/// A host function generic over the compute type.
pub trait HostKernel {
    /// Runs in `T`.
    ///
    /// # Errors
    /// As [`crate::backend::Op::host`].
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()>;

    /// Chooses the type by the operands.
    ///
    /// # Errors
    /// As [`crate::backend::Op::host`].
    fn host_any(&self, io: &mut HostIo<'_>) -> Result<()> {
        match io.real() {
            DType::F64 => self.host_in::<f64>(io),
            _ => self.host_in::<f32>(io),
        }
    }
}
