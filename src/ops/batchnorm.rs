//! Batch normalisation of `[batch, channels, time]` over batch and time (Ioffe and Szegedy 2015).

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::{SLICES_HEADER, expect_same, op, size, stage};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::parallel::for_rows;
use crate::backend::cpu::real::{Real, vectorised};
use crate::backend::{Arch, Plan};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Extents; also the parameters of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Extents {
    batch: u32,
    channels: u32,
    time: u32,
    /// Statistics of this batch (1), or the running ones (0).
    training: u32,
    epsilon: f32,
    /// Share of this batch in the running statistics.
    momentum: f32,
    accumulate: u32,
}

/// Mean and 1 / deviation by channels. Input: x; outputs: mean, rstd `[channels]`, running mean,
/// running variance (unbiased; both updated in training).
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BatchNormStats(Extents);

/// y = (x - mean) * rstd * gamma + beta. Inputs: x, mean, rstd, gamma, beta; output: y.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BatchNorm(Extents);

/// Sums over each channel. Inputs: dy, x, mean, rstd; outputs: sums `[2, channels]` (of dy, and of
/// dy times the normalised x), dgamma, dbeta, the last two added to.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BatchNormSums(Extents);

/// Gradient of the input. Inputs: dy, x, mean, rstd, gamma, sums; output: dx.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BatchNormBackward(Extents);

op!(BatchNormStats, "batchnorm_stats", |op, arch, kernel| {
    if op.0.training == 0 {
        // The running statistics: only the last stage has something to do.
        return Route::Kernel(Plan::blocks(stage(kernel, "end"), op.0.ends(), 256));
    }
    op.0.by_channel(arch, kernel)
});
op!(BatchNorm, "batchnorm", |op, arch, kernel| Plan::elements(kernel, op.0.numel()));
op!(BatchNormSums, "batchnorm_sums", |op, arch, kernel| op.0.by_channel(arch, kernel));
op!(BatchNormBackward, "batchnorm_backward", |op, arch, kernel| {
    Plan::elements(kernel, op.0.numel())
});

impl Extents {
    /// A block for each channel and slice of the batch, then a thread for each channel.
    fn by_channel(&self, arch: &Arch, kernel: &str) -> Plan {
        let channels = self.channels.max(1);
        let slices = (4 * arch.units).div_ceil(channels).clamp(1, self.batch.clamp(1, 65_535));
        Plan::new(kernel, [channels, slices, 1], 256)
            .then(stage(kernel, "end"), [size(self.ends()), 1, 1], 256)
            .workspace(4 * (SLICES_HEADER + (3 * slices * channels) as usize))
    }

    /// Blocks of the last stage.
    fn ends(&self) -> usize {
        (self.channels.max(1) as usize).div_ceil(256)
    }

    fn dims(&self) -> (usize, usize, usize) {
        (self.batch as usize, self.channels as usize, self.time as usize)
    }

    fn numel(&self) -> usize {
        let (batch, channels, time) = self.dims();
        batch * channels * time
    }

    /// Rows `[time]` of channel `c`, one for each item.
    fn rows<'a, T>(&self, x: &'a [T], c: usize) -> impl Iterator<Item = &'a [T]> + use<'a, T> {
        let (_, channels, time) = self.dims();
        x.chunks_exact(time).skip(c).step_by(channels)
    }
}

impl HostKernel for BatchNormStats {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, channels, time) = self.0.dims();
        let x = io.input_n::<T>(0, self.0.numel())?;
        let (mean, rstd) = (io.output_n::<T>(0, channels)?, io.output_n::<T>(1, channels)?);
        let running_mean = io.output_n::<T>(2, channels)?;
        let running_var = io.output_n::<T>(3, channels)?;
        let epsilon = T::of(f64::from(self.0.epsilon));
        if self.0.training == 0 {
            mean.copy_from_slice(running_mean);
            let pairs = rstd.iter_mut().zip(running_var);
            pairs.for_each(|(r, v)| *r = T::ONE / (*v + epsilon).sqrt());
            return Ok(());
        }
        let count = (batch * time) as f64;
        let (n, unbiased) = (T::of(count), T::of(count / (count - 1.0).max(1.0)));
        let share = T::of(f64::from(self.0.momentum));
        let stats = mean.par_iter_mut().zip(rstd).zip(running_mean.par_iter_mut().zip(running_var));
        stats.enumerate().for_each(|(c, ((mean, rstd), (running_mean, running_var)))| {
            let sum: T = self.0.rows(x, c).map(|row| row.iter().copied().sum::<T>()).sum();
            let mu = sum / n;
            let squares = |row: &[T]| row.iter().map(|&x| (x - mu) * (x - mu)).sum::<T>();
            let variance = self.0.rows(x, c).map(squares).sum::<T>() / n;
            (*mean, *rstd) = (mu, T::ONE / (variance + epsilon).sqrt());
            // The update that a bad batch leads to is skipped; its statistics must be as well.
            if variance.wide().is_finite() {
                *running_mean += share * (mu - *running_mean);
                *running_var += share * (variance * unbiased - *running_var);
            }
        });
        Ok(())
    }
}

impl HostKernel for BatchNorm {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (_, channels, time) = self.0.dims();
        let x = io.input_n::<T>(0, self.0.numel())?;
        let (mean, rstd) = (io.input_n::<T>(1, channels)?, io.input_n::<T>(2, channels)?);
        let (gamma, beta) = (io.input_n::<T>(3, channels)?, io.input_n::<T>(4, channels)?);
        for_rows(io.output_n::<T>(0, x.len())?, time, 2 * time, |first, y| {
            for (i, y) in y.chunks_exact_mut(time).enumerate() {
                let (row, c) = (first + i, (first + i) % channels);
                let scale = rstd[c] * gamma[c];
                let shift = beta[c] - mean[c] * scale;
                let x = &x[row * time..][..time];
                vectorised!(y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * scale + shift));
            }
        });
        Ok(())
    }
}

impl HostKernel for BatchNormSums {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (_, channels, _) = self.0.dims();
        let n = self.0.numel();
        let (dy, x) = (io.input_n::<T>(0, n)?, io.input_n::<T>(1, n)?);
        let (mean, rstd) = (io.input_n::<T>(2, channels)?, io.input_n::<T>(3, channels)?);
        let (of_dy, of_dot) = io.output_n::<T>(0, 2 * channels)?.split_at_mut(channels);
        let dgamma = io.output_n::<T>(1, channels)?;
        let dbeta = io.output_n::<T>(2, channels)?;
        let sums = of_dy.par_iter_mut().zip(of_dot).zip(dgamma.par_iter_mut().zip(dbeta));
        sums.enumerate().for_each(|(c, ((of_dy, of_dot), (dgamma, dbeta)))| {
            let (mut sum, mut dot) = (T::ZERO, T::ZERO);
            for (dy, x) in self.0.rows(dy, c).zip(self.0.rows(x, c)) {
                sum += dy.iter().copied().sum::<T>();
                dot += dy.iter().zip(x).map(|(&g, &x)| g * (x - mean[c]) * rstd[c]).sum::<T>();
            }
            (*of_dy, *of_dot) = (sum, dot);
            *dgamma += dot;
            *dbeta += sum;
        });
        Ok(())
    }
}

impl HostKernel for BatchNormBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, channels, time) = self.0.dims();
        let n = self.0.numel();
        let (dy, x) = (io.input_n::<T>(0, n)?, io.input_n::<T>(1, n)?);
        let (mean, rstd) = (io.input_n::<T>(2, channels)?, io.input_n::<T>(3, channels)?);
        let gamma = io.input_n::<T>(4, channels)?;
        let (of_dy, of_dot) = io.input_n::<T>(5, 2 * channels)?.split_at(channels);
        // Fixed statistics do not depend on x: the two correction terms vanish.
        let live =
            if self.0.training != 0 { T::ONE / T::of((batch * time) as f64) } else { T::ZERO };
        let add = self.0.accumulate != 0;
        for_rows(io.output_n::<T>(0, n)?, time, 4 * time, |first, dx| {
            for (i, dx) in dx.chunks_exact_mut(time).enumerate() {
                let (row, c) = (first + i, (first + i) % channels);
                let (dy, x) = (&dy[row * time..][..time], &x[row * time..][..time]);
                let (shift, slope) = (of_dy[c] * live, of_dot[c] * live * rstd[c]);
                let (mean, scale) = (mean[c], gamma[c] * rstd[c]);
                vectorised!({
                    for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                        let grad = scale * (dy - shift - (x - mean) * slope);
                        *dx = if add { *dx + grad } else { grad };
                    }
                });
            }
        });
        Ok(())
    }
}

/// The learned and the running parameters of one normalisation, each `[channels]`.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Scale.
    pub gamma: Var,
    /// Shift.
    pub beta: Var,
    /// Running mean; updated by a training tape.
    pub running_mean: Tensor,
    /// Running unbiased variance; updated by a training tape.
    pub running_var: Tensor,
}

/// Normalises `x` `[batch, channels, time]` by channels.
///
/// # Errors
/// [`Error::Shape`] when operands do not fit.
pub fn batchnorm(
    tape: &Tape<'_>,
    x: &Var,
    norm: &Norm,
    epsilon: f32,
    momentum: f32,
) -> Result<Var> {
    let &[batch, channels, time] = x.dims() else {
        return Err(Error::shape("batchnorm", format!("x of shape {}", x.shape())));
    };
    expect_same("batchnorm", norm.gamma.dims(), &[channels])?;
    let extents = Extents {
        batch: size(batch),
        channels: size(channels),
        time: size(time),
        training: tape.is_training().into(),
        epsilon,
        momentum,
        accumulate: 0,
    };
    let stat_type = norm.gamma.dtype();
    let mean = tape.empty([channels], stat_type, "batchnorm.mean")?;
    let rstd = tape.empty([channels], stat_type, "batchnorm.rstd")?;
    let y = tape.empty(*x.shape(), x.dtype(), "batchnorm")?;
    let stats = [&mean, &rstd, &norm.running_mean, &norm.running_var];
    tape.run(BatchNormStats(extents), &[x.tensor()], &stats)?;
    let (gamma, beta) = (norm.gamma.tensor(), norm.beta.tensor());
    tape.run(BatchNorm(extents), &[x.tensor(), &mean, &rstd, gamma, beta], &[&y])?;
    let (input, norm) = (x.clone(), norm.clone());
    let operands = [x, &norm.gamma.clone(), &norm.beta.clone()];
    Ok(tape.push(y, &operands, move |grads, dy| {
        let tape_sums = grads.tape().empty([2, channels], stat_type, "grad.batchnorm")?;
        let mut params = Vec::with_capacity(2);
        for var in [&norm.gamma, &norm.beta] {
            params.push(match grads.sum_of(var)? {
                Some(tensor) => tensor,
                None => grads.tape().empty([channels], stat_type, "grad.unused")?,
            });
        }
        let x = input.tensor();
        let outputs = [&tape_sums, &params[0], &params[1]];
        grads.tape().run(BatchNormSums(extents), &[&dy, x, &mean, &rstd], &outputs)?;
        if let Some(to) = grads.target(&input)? {
            let op = BatchNormBackward(Extents { accumulate: to.accumulate.into(), ..extents });
            let inputs = [&dy, x, &mean, &rstd, norm.gamma.tensor(), &tape_sums];
            grads.tape().run(op, &inputs, &[&to.tensor])?;
        }
        Ok(())
    }))
}
