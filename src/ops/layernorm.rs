//! Layer normalisation over the last axis (Ba, Kiros and Hinton 2016).

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::plans::{Held, NARROW, stage};
use super::{expect_last, op, size};
use crate::Result;
use crate::backend::Machine;
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::parallel::{for_rows, for_rows3};
use crate::backend::cpu::real::{Real, vectorised};
use crate::tape::{Tape, Var};

/// y = (x - mean) * rstd * gamma + beta by rows. Inputs: x `[rows, cols]`, gamma, beta `[cols]`;
/// outputs: y, mean `[rows]`, rstd `[rows]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct LayerNorm {
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    epsilon: f32,
}

impl LayerNorm {
    /// `rows` rows of `cols`.
    pub fn new(rows: usize, cols: usize, epsilon: f32) -> Self {
        Self { rows: size(rows), cols: size(cols), epsilon }
    }
}

op!(LayerNorm, "layernorm", |op, arch, kernel| {
    let held = Held::long(arch, op.rows, op.cols);
    match op.cols as usize {
        ..=NARROW => held.plan(kernel, arch, 2),
        _ => held.walked(&stage(kernel, "wide"), arch),
    }
});

/// Lanes a row is summed in: as many partial sums as the widest vectors hold.
const LANES: usize = 16;

/// Sum of `f` over a row, in [`LANES`] partial sums.
#[inline(always)]
fn lane_sum<T: Real>(row: &[T], f: impl Fn(T) -> T) -> T {
    let mut sums = [T::ZERO; LANES];
    let pieces = row.chunks_exact(LANES);
    let rest = pieces.remainder();
    for piece in pieces {
        sums.iter_mut().zip(piece).for_each(|(s, &x)| *s += f(x));
    }
    sums.iter_mut().zip(rest).for_each(|(s, &x)| *s += f(x));
    sums.iter().copied().sum()
}

impl HostKernel for LayerNorm {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (rows, cols) = (self.rows as usize, self.cols as usize);
        let x = io.input_n::<T>(0, rows * cols)?;
        let (gamma, beta) = (io.input_n::<T>(1, cols)?, io.input_n::<T>(2, cols)?);
        let y = io.output_n::<T>(0, rows * cols)?;
        let (mean, rstd) = (io.output_n::<T>(1, rows)?, io.output_n::<T>(2, rows)?);
        let epsilon = T::of(f64::from(self.epsilon));
        let inverse = T::ONE / T::of(cols as f64);
        for_rows3((y, cols), (mean, 1), (rstd, 1), 4 * cols, |first, y, mean, rstd| {
            let x = &x[first * cols..][..y.len()];
            vectorised!({
                let stats = mean.iter_mut().zip(rstd.iter_mut());
                for ((y, x), (mean, rstd)) in
                    y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(stats)
                {
                    let mu = lane_sum(x, |x| x) * inverse;
                    let variance = lane_sum(x, |x| (x - mu) * (x - mu)) * inverse;
                    let scale = T::ONE / (variance + epsilon).sqrt();
                    (*mean, *rstd) = (mu, scale);
                    for (((y, &x), &g), &b) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                        *y = (x - mu) * scale * g + b;
                    }
                }
            });
        });
        Ok(())
    }
}

/// Gradients of [`LayerNorm`]. Inputs: dy, x, gamma, mean, rstd; output: dx.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct LayerNormBackward {
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    accumulate: u32,
}

op!(LayerNormBackward, "layernorm_backward", |op, arch, kernel| {
    Held::long(arch, op.rows, op.cols).plan(kernel, arch, 1)
});

impl HostKernel for LayerNormBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (rows, cols) = (self.rows as usize, self.cols as usize);
        let (dy, x) = (io.input_n::<T>(0, rows * cols)?, io.input_n::<T>(1, rows * cols)?);
        let gamma = io.input_n::<T>(2, cols)?;
        let stats = (io.input_n::<T>(3, rows)?, io.input_n::<T>(4, rows)?);
        let dx = io.output_n::<T>(0, rows * cols)?;
        input_gradient((dy, x, gamma), stats, self.accumulate != 0, dx);
        Ok(())
    }
}

/// dx of all rows.
fn input_gradient<T: Real>(
    (dy, x, gamma): (&[T], &[T], &[T]),
    (mean, rstd): (&[T], &[T]),
    add: bool,
    dx: &mut [T],
) {
    let cols = gamma.len();
    let inverse = T::ONE / T::of(cols as f64);
    for_rows(dx, cols, 8 * cols, |first, dx| {
        vectorised!({
            for (i, dx) in dx.chunks_exact_mut(cols).enumerate() {
                let row = first + i;
                let (dy, x) = (&dy[row * cols..][..cols], &x[row * cols..][..cols]);
                row_backward((dy, x, gamma), (mean[row], rstd[row]), inverse, add, dx);
            }
        });
    });
}

/// dx = rstd * (g - mean(g) - x̂ mean(g x̂)) with g = dy * gamma and x̂ the normalised row.
#[inline(always)]
fn row_backward<T: Real>(
    (dy, x, gamma): (&[T], &[T], &[T]),
    (mean, rstd): (T, T),
    inverse: T,
    add: bool,
    dx: &mut [T],
) {
    let (mut sum, mut dot) = ([T::ZERO; LANES], [T::ZERO; LANES]);
    let pieces = dy.chunks(LANES).zip(x.chunks(LANES)).zip(gamma.chunks(LANES));
    for ((dy, x), gamma) in pieces {
        let lanes = sum.iter_mut().zip(dot.iter_mut());
        for ((((sum, dot), &dy), &x), &gamma) in lanes.zip(dy).zip(x).zip(gamma) {
            let g = dy * gamma;
            *sum += g;
            *dot += g * (x - mean) * rstd;
        }
    }
    let sum: T = sum.iter().copied().sum::<T>() * inverse;
    let dot: T = dot.iter().copied().sum::<T>() * inverse;
    for (((dx, &dy), &x), &gamma) in dx.iter_mut().zip(dy).zip(x).zip(gamma) {
        let normal = (x - mean) * rstd;
        let grad = rstd * (dy * gamma - sum - normal * dot);
        *dx = if add { *dx + grad } else { grad };
    }
}

/// Gradients of the scale and shift. Inputs: dy, x, mean, rstd; outputs: dgamma, dbeta, both
/// added to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct LayerNormParams {
    rows: u32,
    cols: u32,
}

op!(LayerNormParams, "layernorm_params", |op, arch, kernel| {
    Held::long(arch, op.rows, op.cols).sums(kernel, arch)
});

/// Columns whose sums one piece of work keeps in registers.
const COLUMNS: usize = 32;

impl HostKernel for LayerNormParams {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (rows, cols) = (self.rows as usize, self.cols as usize);
        let (dy, x) = (io.input_n::<T>(0, rows * cols)?, io.input_n::<T>(1, rows * cols)?);
        let stats = (io.input_n::<T>(2, rows)?, io.input_n::<T>(3, rows)?);
        let (dgamma, dbeta) = (io.output_n::<T>(0, cols)?, io.output_n::<T>(1, cols)?);
        add_params_gradient((dy, x), stats, dgamma, dbeta);
        Ok(())
    }
}

/// Adds the gradients of scale and shift.
fn add_params_gradient<T: Real>(
    (dy, x): (&[T], &[T]),
    (mean, rstd): (&[T], &[T]),
    dgamma: &mut [T],
    dbeta: &mut [T],
) {
    let (rows, cols) = (mean.len(), dgamma.len());
    let columns = dgamma.par_chunks_mut(COLUMNS).zip(dbeta.par_chunks_mut(COLUMNS));
    columns.enumerate().for_each(|(i, (dgamma, dbeta))| {
        let (first, width) = (i * COLUMNS, dgamma.len());
        vectorised!({
            let (mut g, mut b) = ([T::ZERO; COLUMNS], [T::ZERO; COLUMNS]);
            for row in 0..rows {
                let at = row * cols + first;
                let (dy, x) = (&dy[at..at + width], &x[at..at + width]);
                let (mean, rstd) = (mean[row], rstd[row]);
                for (((g, b), &dy), &x) in g.iter_mut().zip(&mut b).zip(dy).zip(x) {
                    *g += dy * (x - mean) * rstd;
                    *b += dy;
                }
            }
            dgamma.iter_mut().zip(g).for_each(|(to, g)| *to += g);
            dbeta.iter_mut().zip(b).for_each(|(to, b)| *to += b);
        });
    });
}

/// [`LayerNormBackward`] and [`LayerNormParams`] in one pass over dy and x. Inputs: dy, x, gamma,
/// mean, rstd; outputs: dx, and dgamma and dbeta, which are added to.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct LayerNormBoth(LayerNormBackward);

impl LayerNormBoth {
    /// `rows` rows of `cols`; dx is overwritten.
    pub fn new(rows: usize, cols: usize) -> Self {
        Self(LayerNormBackward { rows: size(rows), cols: size(cols), accumulate: 0 })
    }
}

op!(LayerNormBoth, "layernorm_both", |op, arch, kernel| {
    Held::long(arch, op.0.rows, op.0.cols).sums(kernel, arch)
});

impl HostKernel for LayerNormBoth {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (rows, cols) = (self.0.rows as usize, self.0.cols as usize);
        let (dy, x) = (io.input_n::<T>(0, rows * cols)?, io.input_n::<T>(1, rows * cols)?);
        let gamma = io.input_n::<T>(2, cols)?;
        let stats = (io.input_n::<T>(3, rows)?, io.input_n::<T>(4, rows)?);
        let dx = io.output_n::<T>(0, rows * cols)?;
        let (dgamma, dbeta) = (io.output_n::<T>(1, cols)?, io.output_n::<T>(2, cols)?);
        add_params_gradient((dy, x), stats, dgamma, dbeta);
        input_gradient((dy, x, gamma), stats, self.0.accumulate != 0, dx);
        Ok(())
    }
}

/// Elements up to which a card with two lanes is better off with the two gradients apart.
const SMALL: usize = 1 << 21;

/// Whether the parameters' gradient goes beside the chain of a step: the next op waits for the input's
/// alone. Reading both operands twice costs nothing while they lie in a cache.
fn splits(tape: &Tape<'_>, elements: usize) -> bool {
    matches!(tape.backend().arch().machine, Machine::Cuda { .. }) && elements <= SMALL
}

/// Normalises the last axis of `x` `[.., cols]` with scale `gamma` and shift `beta` `[cols]`.
///
/// # Errors
/// [`crate::Error::Shape`] when operands do not fit.
pub fn layernorm(tape: &Tape<'_>, x: &Var, gamma: &Var, beta: &Var, epsilon: f32) -> Result<Var> {
    let cols = x.shape().last();
    expect_last("layernorm", gamma.dims(), cols)?;
    expect_last("layernorm", beta.dims(), cols)?;
    let count = x.tensor().numel() / cols.max(1);
    let (rows, cols) = (size(count), size(cols));
    let y = tape.empty(*x.shape(), x.dtype(), "layernorm")?;
    let stat_type = gamma.dtype().statistics();
    let mean = tape.empty([count], stat_type, "layernorm.mean")?;
    let rstd = tape.empty([count], stat_type, "layernorm.rstd")?;
    let op = LayerNorm { rows, cols, epsilon };
    tape.run(op, &[x.tensor(), gamma.tensor(), beta.tensor()], &[&y, &mean, &rstd])?;
    let (input, scale, shift) = (x.clone(), gamma.clone(), beta.clone());
    Ok(tape.push(y, &[x, gamma, beta], move |grads, dy| {
        let x = input.tensor();
        let (dgamma, dbeta) = (grads.sum_of(&scale)?, grads.sum_of(&shift)?);
        // A parameter that is the input as well has its gradient written by one op after the other.
        let apart = input.dims() != scale.dims();
        let dx = if apart { grads.target(&input)? } else { None };
        let together = !splits(grads.tape(), x.numel());
        match (&dx, &dgamma, &dbeta) {
            (Some(dx), Some(dgamma), Some(dbeta)) if together => {
                let op = LayerNormBackward { rows, cols, accumulate: dx.accumulate.into() };
                let inputs = [&dy, x, scale.tensor(), &mean, &rstd];
                let outputs = [&dx.tensor, dgamma, dbeta];
                return grads.tape().run(LayerNormBoth(op), &inputs, &outputs);
            }
            (_, Some(dgamma), Some(dbeta)) => {
                let op = LayerNormParams { rows, cols };
                grads.tape().run(op, &[&dy, x, &mean, &rstd], &[dgamma, dbeta])?;
            }
            _ => {}
        }
        let dx = if apart { dx } else { grads.target(&input)? };
        if let Some(to) = dx {
            let op = LayerNormBackward { rows, cols, accumulate: to.accumulate.into() };
            let inputs = [&dy, x, scale.tensor(), &mean, &rstd];
            grads.tape().run(op, &inputs, &[&to.tensor])?;
        }
        Ok(())
    }))
}
