//! Pointwise functions: fill, copy, add, scale, and the activations with their gradients.

use bytemuck::{Pod, Zeroable};

use super::{expect_same, op, plans, size};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::parallel::for_rows;
use crate::backend::cpu::real::{Real, normal_cdf, vectorised};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::{DType, Result};

/// Sets every element to one number. Output: x.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Fill {
    n: u32,
    value: f32,
}

impl Fill {
    /// `n` elements of `value`.
    pub fn new(n: usize, value: f32) -> Self {
        Self { n: size(n), value }
    }
}

op!(Fill, "fill", |op, arch, kernel| plans::elements(kernel, op.n as usize));

impl HostKernel for Fill {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        io.output_n::<T>(0, self.n as usize)?.fill(T::of(f64::from(self.value)));
        Ok(())
    }
}

/// y = scale * x, or y += scale * x. Input: x; output: y. Also converts between types.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Axpy {
    n: u32,
    scale: f32,
    accumulate: u32,
}

impl Axpy {
    /// y = scale * x for `n` elements.
    pub fn scaling(n: usize, scale: f32) -> Self {
        Self { n: size(n), scale, accumulate: 0 }
    }

    /// y += scale * x for `n` elements.
    pub fn adding(n: usize, scale: f32) -> Self {
        Self { n: size(n), scale, accumulate: 1 }
    }
}

op!(Axpy, "axpy", |op, arch, kernel| plans::elements(kernel, op.n as usize));

impl HostKernel for Axpy {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.n as usize;
        let (scale, add) = (T::of(f64::from(self.scale)), self.accumulate != 0);
        let (x, y) = (io.input_n::<T>(0, n)?, io.output_n::<T>(0, n)?);
        for_rows(y, 1, 1, |first, y| {
            let x = &x[first..first + y.len()];
            vectorised!({
                if add {
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y += scale * x);
                } else {
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = scale * x);
                }
            });
        });
        Ok(())
    }
}

/// Copies `x` to `y`, which may be of another float type.
///
/// # Errors
/// As [`Tape::run`].
pub fn copy(tape: &Tape<'_>, x: &Tensor, y: &Tensor) -> Result<()> {
    tape.run(Axpy { n: size(x.numel()), scale: 1.0, accumulate: 0 }, &[x], &[y])
}

/// Adds `x` to `y`.
///
/// # Errors
/// As [`Tape::run`].
pub fn add_into(tape: &Tape<'_>, x: &Tensor, y: &Tensor) -> Result<()> {
    tape.run(Axpy { n: size(x.numel()), scale: 1.0, accumulate: 1 }, &[x], &[y])
}

/// z = x + y, or z = x * y. Inputs: x, y; output: z.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Binary {
    n: u32,
    multiply: u32,
    accumulate: u32,
}

op!(Binary, "binary", |op, arch, kernel| plans::elements(kernel, op.n as usize));

impl HostKernel for Binary {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.n as usize;
        let (x, y) = (io.input_n::<T>(0, n)?, io.input_n::<T>(1, n)?);
        let (multiply, add) = (self.multiply != 0, self.accumulate != 0);
        for_rows(io.output_n::<T>(0, n)?, 1, 2, |first, z| {
            let (x, y) = (&x[first..first + z.len()], &y[first..first + z.len()]);
            vectorised!({
                for ((z, &x), &y) in z.iter_mut().zip(x).zip(y) {
                    let value = if multiply { x * y } else { x + y };
                    *z = if add { *z + value } else { value };
                }
            });
        });
        Ok(())
    }
}

/// x + y of equal shapes.
///
/// # Errors
/// [`crate::Error::Shape`] when the shapes differ.
pub fn add(tape: &Tape<'_>, x: &Var, y: &Var) -> Result<Var> {
    expect_same("add", x.dims(), y.dims())?;
    let z = tape.empty(*x.shape(), x.dtype(), "sum")?;
    let op = Binary { n: size(z.numel()), multiply: 0, accumulate: 0 };
    tape.run(op, &[x.tensor(), y.tensor()], &[&z])?;
    let (a, b) = (x.clone(), y.clone());
    Ok(tape.push(z, &[x, y], move |grads, dz| {
        grads.give(&a, dz.clone())?;
        grads.give(&b, dz)
    }))
}

/// x * y of equal shapes, element by element.
///
/// # Errors
/// [`crate::Error::Shape`] when the shapes differ.
pub fn mul(tape: &Tape<'_>, x: &Var, y: &Var) -> Result<Var> {
    expect_same("mul", x.dims(), y.dims())?;
    let n = size(x.tensor().numel());
    let z = tape.empty(*x.shape(), x.dtype(), "product")?;
    let op = Binary { n, multiply: 1, accumulate: 0 };
    tape.run(op, &[x.tensor(), y.tensor()], &[&z])?;
    let (a, b) = (x.clone(), y.clone());
    Ok(tape.push(z, &[x, y], move |grads, dz| {
        for (var, other) in [(&a, &b), (&b, &a)] {
            if let Some(to) = grads.target(var)? {
                let op = Binary { n, multiply: 1, accumulate: to.accumulate.into() };
                grads.tape().run(op, &[&dz, other.tensor()], &[&to.tensor])?;
            }
        }
        Ok(())
    }))
}

/// A function of one variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Function {
    /// max(x, 0)
    Relu = 0,
    /// x where positive, e^x - 1 elsewhere (Clevert et al. 2015, alpha 1)
    Elu = 1,
    /// x²
    Square = 2,
    /// ln(max(x, 1e-6)), as ShallowFBCSPNet takes the logarithm of a band's power
    Log = 3,
    /// x Φ(x), exact (Hendrycks and Gimpel 2016)
    Gelu = 4,
}

/// Below this, [`Function::Log`] is constant.
pub const LOG_FLOOR: f64 = 1e-6;

/// y = f(x). Input: x; output: y.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Unary {
    n: u32,
    function: u32,
}

op!(Unary, "unary", |op, arch, kernel| plans::elements(kernel, op.n as usize));

#[inline(always)]
fn value<T: Real>(function: u32, x: T) -> T {
    match function {
        0 => x.larger(T::ZERO),
        1 => {
            let below = x.smaller(T::ZERO).exp() - T::ONE;
            if x > T::ZERO { x } else { below }
        }
        2 => x * x,
        3 => x.larger(T::of(LOG_FLOOR)).ln(),
        _ => x * normal_cdf(x),
    }
}

#[inline(always)]
fn slope<T: Real>(function: u32, x: T) -> T {
    match function {
        0 => {
            if x > T::ZERO {
                T::ONE
            } else {
                T::ZERO
            }
        }
        1 => {
            let below = x.smaller(T::ZERO).exp();
            if x > T::ZERO { T::ONE } else { below }
        }
        2 => x + x,
        3 => {
            let inverse = T::ONE / x.larger(T::of(LOG_FLOOR));
            if x > T::of(LOG_FLOOR) { inverse } else { T::ZERO }
        }
        _ => x.gelu_slope(),
    }
}

/// Calls `$body` with the function's number as a constant, so that each loop has one branch-free
/// body.
macro_rules! per_function {
    ($function:expr, $f:ident => $body:expr) => {
        match $function {
            0 => {
                const F: u32 = 0;
                let $f = F;
                $body
            }
            1 => {
                const F: u32 = 1;
                let $f = F;
                $body
            }
            2 => {
                const F: u32 = 2;
                let $f = F;
                $body
            }
            3 => {
                const F: u32 = 3;
                let $f = F;
                $body
            }
            _ => {
                const F: u32 = 4;
                let $f = F;
                $body
            }
        }
    };
}

impl HostKernel for Unary {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.n as usize;
        let x = io.input_n::<T>(0, n)?;
        for_rows(io.output_n::<T>(0, n)?, 1, 8, |first, y| {
            let x = &x[first..first + y.len()];
            per_function!(self.function, f => vectorised!({
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = value(f, x));
            }));
        });
        Ok(())
    }
}

/// dx (+)= dy f'(x). Inputs: dy, x; output: dx.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct UnaryBackward {
    n: u32,
    function: u32,
    accumulate: u32,
}

op!(UnaryBackward, "unary_backward", |op, arch, kernel| { plans::elements(kernel, op.n as usize) });

impl HostKernel for UnaryBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.n as usize;
        let (dy, x) = (io.input_n::<T>(0, n)?, io.input_n::<T>(1, n)?);
        let add = self.accumulate != 0;
        for_rows(io.output_n::<T>(0, n)?, 1, 12, |first, dx| {
            let (dy, x) = (&dy[first..first + dx.len()], &x[first..first + dx.len()]);
            per_function!(self.function, f => vectorised!({
                for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                    let grad = dy * slope(f, x);
                    *dx = if add { *dx + grad } else { grad };
                }
            }));
        });
        Ok(())
    }
}

/// f(x), element by element.
///
/// # Errors
/// As [`Tape::run`].
pub fn apply(tape: &Tape<'_>, function: Function, x: &Var) -> Result<Var> {
    let (n, function) = (size(x.tensor().numel()), function as u32);
    let y = tape.empty(*x.shape(), x.dtype(), "activation")?;
    tape.run(Unary { n, function }, &[x.tensor()], &[&y])?;
    let input = x.clone();
    Ok(tape.push(y, &[x], move |grads, dy| {
        let Some(to) = grads.target(&input)? else { return Ok(()) };
        let op = UnaryBackward { n, function, accumulate: to.accumulate.into() };
        grads.tape().run(op, &[&dy, input.tensor()], &[&to.tensor])
    }))
}

/// dx = dy times the slope of the exact GELU at `x`.
///
/// # Errors
/// As [`Tape::run`].
pub fn gelu_backward(tape: &Tape<'_>, dy: &Tensor, x: &Tensor, dx: &Tensor) -> Result<()> {
    let op = UnaryBackward { n: size(x.numel()), function: Function::Gelu as u32, accumulate: 0 };
    tape.run(op, &[dy, x], &[dx])
}

/// The same values in another float type; the gradient comes back in the type of `x`.
///
/// # Errors
/// As [`Tape::run`].
pub fn cast(tape: &Tape<'_>, x: &Var, dtype: DType) -> Result<Var> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let y = tape.empty(*x.shape(), dtype, "cast")?;
    copy(tape, x.tensor(), &y)?;
    let input = x.clone();
    Ok(tape.push(y, &[x], move |grads, dy| {
        let Some(to) = grads.target(&input)? else { return Ok(()) };
        let op = Axpy { n: size(dy.numel()), scale: 1.0, accumulate: to.accumulate.into() };
        grads.tape().run(op, &[&dy], &[&to.tensor])
    }))
}

/// The same elements under another shape.
///
/// # Errors
/// [`crate::Error::Shape`] when the element counts differ.
pub fn reshape(tape: &Tape<'_>, x: &Var, shape: &[usize]) -> Result<Var> {
    if let Some(leaf) = x.reshaped_leaf(shape)? {
        return Ok(leaf);
    }
    let y = x.tensor().reshape(shape)?;
    let input = x.clone();
    Ok(tape.push(y, &[x], move |grads, dy| grads.give(&input, dy)))
}
