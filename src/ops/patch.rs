//! From windows to tokens: time is cut into patches, each with all channels.

use bytemuck::{Pod, Zeroable};

use super::{op, plans, size};
use crate::backend::Plan;
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::parallel::for_rows;
use crate::backend::cpu::real::Real;
use crate::tape::{Tape, Var};
use crate::{DType, Error, Result};

/// tokens[b, t, c * patch + k] = window[b, c, t * patch + k], or back. Samples past the last whole
/// patch are left out (their gradient is 0). Input and output: window `[batch, channels, time]`
/// and tokens `[batch, time / patch, channels * patch]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Patchify {
    batch: u32,
    channels: u32,
    time: u32,
    patch: u32,
    backward: u32,
    accumulate: u32,
}

op!(Patchify, "patchify", |op, arch, kernel| op.plan(kernel));

impl Patchify {
    /// Short patches go through tiles of 64 channels and about 64 samples, else elements are moved
    /// one by one (`kernels/patch.cu`).
    fn plan(&self, kernel: &str) -> Plan {
        let (batch, channels) = (self.batch as usize, self.channels as usize);
        let (time, patch) = (self.time as usize, self.patch.max(1) as usize);
        if self.backward != 0 || patch >= 32 {
            return plans::elements(kernel, batch * channels * time);
        }
        let tiles = channels.div_ceil(64) * (time / patch).div_ceil(64 / patch);
        Plan::blocks(kernel, batch * tiles, 256)
    }
}

impl HostKernel for Patchify {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, channels) = (self.batch as usize, self.channels as usize);
        let (time, patch) = (self.time as usize, self.patch as usize);
        let (n, width) = (time / patch, channels * patch);
        let add = self.accumulate != 0;
        if self.backward != 0 {
            let dy = io.input_n::<T>(0, batch * n * width)?;
            let dx = io.output_n::<T>(0, batch * channels * time)?;
            for_rows(dx, time, time, |first, dx| {
                for (i, dx) in dx.chunks_exact_mut(time).enumerate() {
                    let (b, c) = ((first + i) / channels, (first + i) % channels);
                    for (s, dx) in dx.iter_mut().enumerate() {
                        let at = (b * n + s / patch) * width + c * patch + s % patch;
                        let grad = if s / patch < n { dy[at] } else { T::ZERO };
                        *dx = if add { *dx + grad } else { grad };
                    }
                }
            });
            return Ok(());
        }
        let x = io.input_n::<T>(0, batch * channels * time)?;
        for_rows(io.output_n::<T>(0, batch * n * width)?, width, width, |first, mut y| {
            let mut token = first;
            while !y.is_empty() {
                // Tokens of one item, as many as fill a cache line of each channel.
                let (b, t) = (token / n, token % n);
                let count = (16 / patch).max(1).min(n - t).min(y.len() / width);
                let (tokens, rest) = std::mem::take(&mut y).split_at_mut(count * width);
                for c in 0..channels {
                    let at = (b * channels + c) * time + t * patch;
                    let samples = x[at..at + count * patch].chunks_exact(patch);
                    for (token, samples) in tokens.chunks_exact_mut(width).zip(samples) {
                        copy_row(&mut token[c * patch..(c + 1) * patch], samples);
                    }
                }
                token += count;
                y = rest;
            }
        });
        Ok(())
    }
}

/// Copies a patch, without a call where it is one sample.
#[inline(always)]
fn copy_row<T: Copy>(to: &mut [T], from: &[T]) {
    if let ([to], [from]) = (&mut *to, from) {
        *to = *from;
    } else {
        to.copy_from_slice(from);
    }
}

/// Tokens `[batch, time / patch, channels * patch]` of type `dtype`, of windows `[batch, channels,
/// time]`.
///
/// # Errors
/// [`Error::Shape`] when `x` has not three axes or is shorter than a patch.
pub fn patchify(tape: &Tape<'_>, x: &Var, patch: usize, dtype: DType) -> Result<Var> {
    let &[batch, channels, time] = x.dims() else {
        return Err(Error::shape("patchify", format!("a window batch of shape {}", x.shape())));
    };
    if patch == 0 || patch > time {
        return Err(Error::shape("patchify", format!("patches of {patch} of {time} samples")));
    }
    let op = Patchify {
        batch: size(batch),
        channels: size(channels),
        time: size(time),
        patch: size(patch),
        backward: 0,
        accumulate: 0,
    };
    let y = tape.empty([batch, time / patch, channels * patch], dtype, "patches")?;
    tape.run(op, &[x.tensor()], &[&y])?;
    let input = x.clone();
    Ok(tape.push(y, &[x], move |grads, dy| {
        let Some(to) = grads.target(&input)? else { return Ok(()) };
        let op = Patchify { backward: 1, accumulate: to.accumulate.into(), ..op };
        grads.tape().run(op, &[&dy], &[&to.tensor])
    }))
}
