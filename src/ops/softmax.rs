//! Softmax over the last axis.

use bytemuck::{Pod, Zeroable};

use super::plans::Held;
use super::{op, size};
use crate::Result;
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::parallel::for_rows;
use crate::backend::cpu::real::{Real, vectorised};
use crate::tape::{Tape, Var};

/// y = exp(x - max) / sum by rows. Input: x `[rows, cols]`; output: y.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Softmax {
    rows: u32,
    cols: u32,
}

op!(Softmax, "softmax", |op, arch, kernel| { Held::new(op.rows, op.cols).plan(kernel, arch, 2) });

impl HostKernel for Softmax {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (rows, cols) = (self.rows as usize, self.cols as usize);
        let x = io.input_n::<T>(0, rows * cols)?;
        for_rows(io.output_n::<T>(0, rows * cols)?, cols, 12 * cols, |first, y| {
            let x = &x[first * cols..][..y.len()];
            vectorised!({
                for (y, x) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
                    let top = x.iter().copied().fold(x[0], T::larger);
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - top).exp());
                    let scale = T::ONE / y.iter().copied().sum::<T>();
                    y.iter_mut().for_each(|y| *y *= scale);
                }
            });
        });
        Ok(())
    }
}

/// dx (+)= y * (dy - dot(dy, y)) by rows. Inputs: dy, y; output: dx.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct SoftmaxBackward {
    rows: u32,
    cols: u32,
    accumulate: u32,
}

op!(SoftmaxBackward, "softmax_backward", |op, arch, kernel| {
    Held::new(op.rows, op.cols).plan(kernel, arch, 1)
});

impl HostKernel for SoftmaxBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (rows, cols) = (self.rows as usize, self.cols as usize);
        let (dy, y) = (io.input_n::<T>(0, rows * cols)?, io.input_n::<T>(1, rows * cols)?);
        let add = self.accumulate != 0;
        for_rows(io.output_n::<T>(0, rows * cols)?, cols, 4 * cols, |first, dx| {
            let range = first * cols..first * cols + dx.len();
            let (dy, y) = (&dy[range.clone()], &y[range]);
            vectorised!({
                let pairs = dy.chunks_exact(cols).zip(y.chunks_exact(cols));
                for (dx, (dy, y)) in dx.chunks_exact_mut(cols).zip(pairs) {
                    let dot: T = dy.iter().zip(y).map(|(&a, &b)| a * b).sum();
                    for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
                        let grad = y * (dy - dot);
                        *dx = if add { *dx + grad } else { grad };
                    }
                }
            });
        });
        Ok(())
    }
}

/// Softmax of `x` over its last axis.
///
/// # Errors
/// As [`Tape::run`].
pub fn softmax(tape: &Tape<'_>, x: &Var) -> Result<Var> {
    let cols = x.shape().last();
    let (rows, cols) = (size(x.tensor().numel() / cols.max(1)), size(cols));
    let y = tape.empty(*x.shape(), x.dtype(), "softmax")?;
    tape.run(Softmax { rows, cols }, &[x.tensor()], &[&y])?;
    let (input, result) = (x.clone(), y.clone());
    Ok(tape.push(y, &[x], move |grads, dy| {
        let Some(to) = grads.target(&input)? else { return Ok(()) };
        let op = SoftmaxBackward { rows, cols, accumulate: to.accumulate.into() };
        grads.tape().run(op, &[&dy, &result], &[&to.tensor])
    }))
}
