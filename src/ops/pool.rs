//! Pooling along the last axis, and the mean over tokens.

use bytemuck::{Pod, Zeroable};

use super::{op, plans, size};
use crate::backend::Plan;
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::parallel::for_rows;
use crate::backend::cpu::real::{Real, vectorised};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// What a window of samples becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Its mean.
    Average = 0,
    /// Its largest sample.
    Max = 1,
}

/// y[r, t] = mean or maximum of x[r, t * stride ..][.. kernel]. Input: x `[rows, time]`; output: y
/// `[rows, time_out]`. Backward: inputs dy, x; output dx.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Pool {
    rows: u32,
    time: u32,
    time_out: u32,
    kernel: u32,
    stride: u32,
    kind: u32,
    accumulate: u32,
}

op!(Pool, "pool", |op, arch, kernel| { Plan::elements(kernel, (op.rows * op.time_out) as usize) });

impl HostKernel for Pool {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (rows, time) = (self.rows as usize, self.time as usize);
        let (out, kernel) = (self.time_out as usize, self.kernel as usize);
        let x = io.input_n::<T>(0, rows * time)?;
        let inverse = T::ONE / T::of(kernel as f64);
        for_rows(io.output_n::<T>(0, rows * out)?, out, out * kernel, |first, y| {
            for (i, y) in y.chunks_exact_mut(out).enumerate() {
                let x = &x[(first + i) * time..][..time];
                for (t, y) in y.iter_mut().enumerate() {
                    let span = &x[t * self.stride as usize..][..kernel];
                    *y = match self.kind {
                        0 => span.iter().copied().sum::<T>() * inverse,
                        _ => span.iter().copied().fold(span[0], T::larger),
                    };
                }
            }
        });
        Ok(())
    }
}

/// Gradient of [`Pool`]. Inputs: dy, x; output: dx. Of equal maxima the first gets the gradient.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct PoolBackward(Pool);

op!(PoolBackward, "pool_backward", |op, arch, kernel| {
    Plan::elements(kernel, (op.0.rows * op.0.time) as usize)
});

impl HostKernel for PoolBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let op = &self.0;
        let (rows, time) = (op.rows as usize, op.time as usize);
        let (out, kernel) = (op.time_out as usize, op.kernel as usize);
        let (dy, x) = (io.input_n::<T>(0, rows * out)?, io.input_n::<T>(1, rows * time)?);
        let inverse = T::ONE / T::of(kernel as f64);
        for_rows(io.output_n::<T>(0, rows * time)?, time, out * kernel, |first, dx| {
            for (i, dx) in dx.chunks_exact_mut(time).enumerate() {
                let row = first + i;
                let (x, dy) = (&x[row * time..][..time], &dy[row * out..][..out]);
                if op.accumulate == 0 {
                    dx.fill(T::ZERO);
                }
                for (t, &g) in dy.iter().enumerate() {
                    let at = t * op.stride as usize;
                    if op.kind == Kind::Average as u32 {
                        dx[at..at + kernel].iter_mut().for_each(|dx| *dx += g * inverse);
                        continue;
                    }
                    let span = &x[at..at + kernel];
                    let best = (1..kernel).fold(0, |b, k| if span[k] > span[b] { k } else { b });
                    dx[at + best] += g;
                }
            }
        });
        Ok(())
    }
}

/// Pools the last axis of `x` `[.., time]`; gives `[.., (time - kernel) / stride + 1]`.
///
/// # Errors
/// [`Error::Shape`] when the kernel is longer than the axis.
pub fn pool(tape: &Tape<'_>, x: &Var, kind: Kind, kernel: usize, stride: usize) -> Result<Var> {
    let time = x.shape().last();
    if kernel == 0 || stride == 0 || kernel > time {
        let problem = format!("a kernel of {kernel} and a stride of {stride} over {time} samples");
        return Err(Error::shape("pool", problem));
    }
    let time_out = (time - kernel) / stride + 1;
    let op = Pool {
        rows: size(x.tensor().numel() / time),
        time: size(time),
        time_out: size(time_out),
        kernel: size(kernel),
        stride: size(stride),
        kind: kind as u32,
        accumulate: 0,
    };
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(time_out);
    let y = tape.empty(shape.as_slice(), x.dtype(), "pool")?;
    tape.run(op, &[x.tensor()], &[&y])?;
    let input = x.clone();
    Ok(tape.push(y, &[x], move |grads, dy| {
        let Some(to) = grads.target(&input)? else { return Ok(()) };
        let op = PoolBackward(Pool { accumulate: to.accumulate.into(), ..op });
        grads.tape().run(op, &[&dy, input.tensor()], &[&to.tensor])
    }))
}

/// y[b, c] = mean over t of x[b, t, c], or the gradient dx[b, t, c] (+)= dy[b, c] / time. Forward:
/// input x `[batch, time, channels]`, output y `[batch, channels]`; backward: the reverse.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct MeanTime {
    batch: u32,
    time: u32,
    channels: u32,
    backward: u32,
    accumulate: u32,
}

op!(MeanTime, "mean_time", |op, arch, kernel| op.plan(kernel));

impl MeanTime {
    /// A block for a strip of 128 bytes of channels of one item; backward, for 32 samples of one
    /// item (`kernels/reduce.cu`).
    fn plan(&self, kernel: &str) -> Plan {
        let pieces = match self.backward {
            0 => (self.channels as usize).div_ceil(8 * plans::pack(kernel)),
            _ => (self.time as usize).div_ceil(32),
        };
        Plan::blocks(kernel, self.batch as usize * pieces, 256)
    }
}

impl HostKernel for MeanTime {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, time) = (self.batch as usize, self.time as usize);
        let channels = self.channels as usize;
        let inverse = T::ONE / T::of(time as f64);
        let item = time * channels;
        if self.backward != 0 {
            let dy = io.input_n::<T>(0, batch * channels)?;
            let add = self.accumulate != 0;
            for_rows(io.output_n::<T>(0, batch * item)?, channels, channels, |first, dx| {
                for (i, dx) in dx.chunks_exact_mut(channels).enumerate() {
                    let dy = &dy[(first + i) / time * channels..][..channels];
                    for (dx, &dy) in dx.iter_mut().zip(dy) {
                        *dx = if add { *dx + dy * inverse } else { dy * inverse };
                    }
                }
            });
            return Ok(());
        }
        let x = io.input_n::<T>(0, batch * item)?;
        for_rows(io.output_n::<T>(0, batch * channels)?, channels, item, |first, y| {
            for (i, y) in y.chunks_exact_mut(channels).enumerate() {
                let x = &x[(first + i) * item..][..item];
                y.fill(T::ZERO);
                vectorised!({
                    for row in x.chunks_exact(channels) {
                        y.iter_mut().zip(row).for_each(|(y, &x)| *y += x);
                    }
                    y.iter_mut().for_each(|y| *y *= inverse);
                });
            }
        });
        Ok(())
    }
}

/// Mean of `x` `[batch, time, channels]` over time.
///
/// # Errors
/// [`Error::Shape`] when `x` has not three axes.
pub fn mean_time(tape: &Tape<'_>, x: &Var) -> Result<Var> {
    let &[batch, time, channels] = x.dims() else {
        return Err(Error::shape("mean_time", format!("x of shape {}", x.shape())));
    };
    let (b, t, c) = (size(batch), size(time), size(channels));
    let op = MeanTime { batch: b, time: t, channels: c, backward: 0, accumulate: 0 };
    let y = tape.empty([batch, channels], x.dtype(), "mean")?;
    tape.run(op, &[x.tensor()], &[&y])?;
    let input = x.clone();
    Ok(tape.push(y, &[x], move |grads, dy| {
        let Some(to) = grads.target(&input)? else { return Ok(()) };
        let op = MeanTime { backward: 1, accumulate: to.accumulate.into(), ..op };
        grads.tape().run(op, &[&dy], &[&to.tensor])
    }))
}
