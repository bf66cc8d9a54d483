//! Convolution along time: temporal, spatial (kernel 1 over channels) and depthwise, by groups.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::{SLICES_HEADER, expect_same, op, size, stage};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::Real;
use crate::backend::cpu::scratch::scratch;
use crate::backend::cpu::simd::gemm::{Mat, gemm};
use crate::backend::{Arch, Plan};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Extents of one convolution; also the parameters of its kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Extents {
    batch: u32,
    groups: u32,
    /// Input channels of one group.
    inputs: u32,
    /// Output channels of one group.
    outputs: u32,
    time: u32,
    kernel: u32,
    stride: u32,
    padding: u32,
    time_out: u32,
    has_bias: u32,
    accumulate: u32,
}

/// y[b, o, t] = bias[o] + Σ w[o, i, k] x[b, i, t * stride + k - padding]. Inputs: x `[batch,
/// channels, time]`, w `[outputs, channels / groups, kernel]`, maybe bias `[outputs]`; output: y.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Conv1d(Extents);

/// Gradient of the input. Inputs: dy, w; output: dx.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Conv1dInput(Extents);

/// Gradient of the weight, added to. Inputs: dy, x; output: dw.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Conv1dWeight(Extents);

/// Gradient of the bias, added to. Input: dy; output: d_bias.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Conv1dBias(Extents);

/// Outputs and times of a tile of the kernels, and columns (inputs x taps) of one of the weight's.
const TILE: (u32, u32) = (64, 96);
const COLUMNS: u32 = 96;

op!(Conv1d, "conv1d", |op, arch, kernel| { op.0.tiles(kernel, op.0.outputs, op.0.time_out) });
op!(Conv1dInput, "conv1d_input", |op, arch, kernel| op.0.tiles(kernel, op.0.inputs, op.0.time));
op!(Conv1dWeight, "conv1d_weight", |op, arch, kernel| op.0.weight(arch, kernel));
op!(Conv1dBias, "conv1d_bias", |op, arch, kernel| {
    Plan::blocks(kernel, (op.0.groups * op.0.outputs) as usize, 256)
});

impl Extents {
    /// A block for every tile of `rows` channels by `times`, of every group and item.
    fn tiles(&self, kernel: &str, rows: u32, times: u32) -> Plan {
        let tiles = rows.div_ceil(TILE.0) as usize * times.div_ceil(TILE.1) as usize;
        Plan::blocks(kernel, tiles * self.groups as usize * self.batch as usize, 256)
    }

    /// Tiles of the weight along x, slices of the batch along y; then the sum over slices.
    fn weight(&self, arch: &Arch, kernel: &str) -> Plan {
        let tap_tiles = self.kernel.div_ceil(COLUMNS);
        let taps = self.kernel.div_ceil(tap_tiles.max(1)).max(1);
        let input_tiles = self.inputs.div_ceil((COLUMNS / taps).clamp(1, self.inputs.max(1)));
        let tiles = tap_tiles * input_tiles * self.outputs.div_ceil(TILE.0) * self.groups;
        let slices = (3 * arch.units).div_ceil(tiles.max(1)).clamp(1, self.batch.max(1));
        let weights = self.sizes().w;
        Plan::new(kernel, [tiles.max(1), slices, 1], 256)
            .then(stage(kernel, "end"), [size(weights.div_ceil(256)), 1, 1], 256)
            .workspace(4 * (SLICES_HEADER + slices as usize * weights))
    }

    /// Times t_out whose tap `k` lies within the input: (first, count, input sample of the first).
    fn span(&self, k: usize) -> (usize, usize, usize) {
        let (stride, padding) = (self.stride as usize, self.padding as usize);
        let first = padding.saturating_sub(k).div_ceil(stride);
        let end = (self.time as usize + padding).saturating_sub(k).div_ceil(stride);
        let end = end.min(self.time_out as usize);
        (first, end.saturating_sub(first), (first * stride + k).saturating_sub(padding))
    }

    fn sizes(&self) -> Sizes {
        let (groups, inputs, outputs) =
            (self.groups as usize, self.inputs as usize, self.outputs as usize);
        let (time, kernel, time_out) =
            (self.time as usize, self.kernel as usize, self.time_out as usize);
        Sizes {
            groups,
            inputs,
            outputs,
            time,
            kernel,
            time_out,
            stride: self.stride as usize,
            x: self.batch as usize * groups * inputs * time,
            y: self.batch as usize * groups * outputs * time_out,
            w: groups * outputs * inputs * kernel,
        }
    }
}

/// [`Extents`] as indices, with the sizes of the operands.
struct Sizes {
    groups: usize,
    inputs: usize,
    outputs: usize,
    time: usize,
    kernel: usize,
    time_out: usize,
    stride: usize,
    x: usize,
    y: usize,
    w: usize,
}

impl HostKernel for Conv1d {
    /// One product per tap: no unfolded copy of the input.
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let s = self.0.sizes();
        let (x, w) = (io.input_n::<T>(0, s.x)?, io.input_n::<T>(1, s.w)?);
        let bias = match self.0.has_bias {
            0 => None,
            _ => Some(io.input_n::<T>(2, s.groups * s.outputs)?),
        };
        let y = io.output_n::<T>(0, s.y)?;
        let block = s.outputs * s.time_out;
        y.par_chunks_mut(block).enumerate().for_each(|(i, y)| {
            let group = i % s.groups;
            for (o, row) in y.chunks_exact_mut(s.time_out).enumerate() {
                row.fill(bias.map_or(T::ZERO, |bias| bias[group * s.outputs + o]));
            }
            let x = &x[i * s.inputs * s.time..][..s.inputs * s.time];
            let w = &w[group * s.outputs * s.inputs * s.kernel..];
            for k in 0..s.kernel {
                let (first, count, at) = self.0.span(k);
                if count == 0 {
                    continue;
                }
                let a = Mat::new(&w[k..], s.inputs * s.kernel, s.kernel);
                let b = Mat::new(&x[at..], s.time, s.stride);
                let dims = (s.outputs, count, s.inputs);
                gemm(dims, T::ONE, a, b, T::ONE, &mut y[first..], s.time_out);
            }
        });
        Ok(())
    }
}

impl HostKernel for Conv1dInput {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let s = self.0.sizes();
        let (dy, w) = (io.input_n::<T>(0, s.y)?, io.input_n::<T>(1, s.w)?);
        let dx = io.output_n::<T>(0, s.x)?;
        let add = self.0.accumulate != 0;
        dx.par_chunks_mut(s.inputs * s.time).enumerate().for_each(|(i, dx)| {
            if !add {
                dx.fill(T::ZERO);
            }
            let dy = &dy[i * s.outputs * s.time_out..][..s.outputs * s.time_out];
            let w = &w[(i % s.groups) * s.outputs * s.inputs * s.kernel..];
            for k in 0..s.kernel {
                let (first, count, at) = self.0.span(k);
                if count == 0 {
                    continue;
                }
                let a = Mat::new(&w[k..], s.kernel, s.inputs * s.kernel);
                if s.stride == 1 {
                    let b = Mat::new(&dy[first..], s.time_out, 1);
                    let dims = (s.inputs, count, s.outputs);
                    gemm(dims, T::ONE, a, b, T::ONE, &mut dx[at..], s.time);
                    continue;
                }
                for (c, dx) in dx.chunks_exact_mut(s.time).enumerate() {
                    for (n, dx) in dx[at..].iter_mut().step_by(s.stride).take(count).enumerate() {
                        let terms = (0..s.outputs)
                            .map(|o| a.data[c * a.rs + o * a.cs] * dy[o * s.time_out + first + n]);
                        *dx += terms.sum::<T>();
                    }
                }
            }
        });
        Ok(())
    }
}

impl HostKernel for Conv1dWeight {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let s = self.0.sizes();
        let (dy, x) = (io.input_n::<T>(0, s.y)?, io.input_n::<T>(1, s.x)?);
        let dw = io.output_n::<T>(0, s.w)?;
        let (channels, taps) = (s.outputs * s.inputs, s.kernel);
        // A product for each tap, its result `[outputs, inputs]` put in place at the end. The
        // batch is summed in order.
        scratch(s.w, |sums: &mut [T]| {
            sums.par_chunks_mut(channels).enumerate().for_each(|(i, sum)| {
                let (group, k) = (i / taps, i % taps);
                let (first, count, at) = self.0.span(k);
                sum.fill(T::ZERO);
                for b in 0..self.0.batch as usize {
                    let item = b * s.groups + group;
                    if count == 0 {
                        continue;
                    }
                    let a = Mat::new(&dy[item * s.outputs * s.time_out + first..], s.time_out, 1);
                    let x = Mat::new(&x[item * s.inputs * s.time + at..], s.stride, s.time);
                    gemm((s.outputs, s.inputs, count), T::ONE, a, x, T::ONE, sum, s.inputs);
                }
            });
            for (group, dw) in dw.chunks_exact_mut(channels * taps).enumerate() {
                for (channel, dw) in dw.chunks_exact_mut(taps).enumerate() {
                    for (k, dw) in dw.iter_mut().enumerate() {
                        *dw += sums[(group * taps + k) * channels + channel];
                    }
                }
            }
        });
        Ok(())
    }
}

impl HostKernel for Conv1dBias {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let s = self.0.sizes();
        let dy = io.input_n::<T>(0, s.y)?;
        let d_bias = io.output_n::<T>(0, s.groups * s.outputs)?;
        let channels = d_bias.len();
        d_bias.par_iter_mut().enumerate().for_each(|(o, sum)| {
            let rows = dy.chunks_exact(s.time_out).skip(o).step_by(channels);
            *sum += rows.map(|row| row.iter().copied().sum::<T>()).sum::<T>();
        });
        Ok(())
    }
}

/// How a convolution walks.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// Samples between outputs.
    pub stride: usize,
    /// Zeros put before and after.
    pub padding: usize,
    /// Channels are cut into so many independent parts.
    pub groups: usize,
}

impl Default for Steps {
    fn default() -> Self {
        Self { stride: 1, padding: 0, groups: 1 }
    }
}

/// Convolves `x` `[batch, channels, time]` with `w` `[outputs, channels / groups, kernel]`.
///
/// # Errors
/// [`Error::Shape`] when operands do not fit or the kernel is longer than the input.
pub fn conv1d(tape: &Tape<'_>, x: &Var, w: &Var, bias: Option<&Var>, steps: Steps) -> Result<Var> {
    let (&[batch, channels, time], &[outputs, inputs, kernel]) = (x.dims(), w.dims()) else {
        return Err(Error::shape("conv1d", format!("x {} and w {}", x.shape(), w.shape())));
    };
    let Steps { stride, padding, groups } = steps;
    let fits = groups > 0
        && stride > 0
        && inputs * groups == channels
        && outputs % groups == 0
        && kernel > 0
        && kernel <= time + 2 * padding;
    if !fits {
        let problem = format!("x {} by w {} with {steps:?}", x.shape(), w.shape());
        return Err(Error::shape("conv1d", problem));
    }
    if let Some(bias) = bias {
        expect_same("conv1d", bias.dims(), &[outputs])?;
    }
    let time_out = (time + 2 * padding - kernel) / stride + 1;
    let extents = Extents {
        batch: size(batch),
        groups: size(groups),
        inputs: size(inputs),
        outputs: size(outputs / groups),
        time: size(time),
        kernel: size(kernel),
        stride: size(stride),
        padding: size(padding),
        time_out: size(time_out),
        has_bias: bias.is_some().into(),
        accumulate: 0,
    };
    let y = tape.empty([batch, outputs, time_out], x.dtype(), "conv1d")?;
    let mut operands = vec![x.tensor(), w.tensor()];
    operands.extend(bias.map(Var::tensor));
    tape.run(Conv1d(extents), &operands, &[&y])?;
    let (input, weight, shift) = (x.clone(), w.clone(), bias.cloned());
    let all: Vec<&Var> = [Some(x), Some(w), bias].into_iter().flatten().collect();
    Ok(tape.push(y, &all, move |grads, dy| {
        if let Some(shift) = &shift
            && let Some(to) = grads.sum_of(shift)?
        {
            grads.tape().run(Conv1dBias(extents), &[&dy], &[&to])?;
        }
        if let Some(to) = grads.sum_of(&weight)? {
            grads.tape().run(Conv1dWeight(extents), &[&dy, input.tensor()], &[&to])?;
        }
        if let Some(to) = grads.target(&input)? {
            let op = Conv1dInput(Extents { accumulate: to.accumulate.into(), ..extents });
            grads.tape().run(op, &[&dy, weight.tensor()], &[&to.tensor])?;
        }
        Ok(())
    }))
}
