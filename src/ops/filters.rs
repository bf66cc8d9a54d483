//! A temporal filter bank followed by a spatial one, as one convolution.
//!
//! ShallowFBCSPNet (Schirrmeister et al. 2017) filters every channel in time by the same bank and
//! then mixes channels, with nothing between. The two linear maps are one convolution over
//! channels and time whose weight is their product: computing that product first saves the
//! intermediate `[batch, filters, channels, time]`, 40 times the input, and half the arithmetic.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::{op, size, stage};
use crate::backend::Plan;
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::Real;
use crate::backend::cpu::simd::gemm::{Mat, gemm};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Extents; also the parameters of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Extents {
    outputs: u32,
    filters: u32,
    channels: u32,
    kernel: u32,
}

/// w[o, c, k] = Σ_f space[o, f, c] time[f, k]; b[o] = Σ_fc space[o, f, c] bias[f]. Inputs: time
/// `[filters, kernel]`, bias `[filters]`, space `[outputs, filters, channels]`; outputs: w
/// `[outputs, channels, kernel]`, b `[outputs]`.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Compose(Extents);

/// Gradients of [`Compose`], all added to. Inputs: dw, db, time, bias, space; outputs: d_time,
/// d_bias, d_space.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct ComposeBackward(Extents);

op!(Compose, "compose_filters", |op, arch, kernel| {
    let (outputs, _, channels, taps) = op.0.dims();
    // Elements of w, one a thread; then a block for each bias.
    Plan::blocks(kernel, (outputs * channels * taps).div_ceil(256) + outputs, 256)
});
op!(ComposeBackward, "compose_filters_backward", |op, arch, kernel| {
    let (outputs, filters, _, taps) = op.0.dims();
    // A block for each output and filter; then their parts of d_time and d_bias are added up.
    let parts = filters * (taps + 1);
    Plan::blocks(kernel, outputs * filters, 256)
        .then(stage(kernel, "end"), [size(parts.div_ceil(256)), 1, 1], 256)
        .workspace(4 * outputs * parts)
});

impl Extents {
    fn dims(&self) -> (usize, usize, usize, usize) {
        let Self { outputs, filters, channels, kernel } = *self;
        (outputs as usize, filters as usize, channels as usize, kernel as usize)
    }
}

impl HostKernel for Compose {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (outputs, filters, channels, taps) = self.0.dims();
        let time = io.input_n::<T>(0, filters * taps)?;
        let bias = io.input_n::<T>(1, filters)?;
        let space = io.input_n::<T>(2, outputs * filters * channels)?;
        let w = io.output_n::<T>(0, outputs * channels * taps)?;
        let b = io.output_n::<T>(1, outputs)?;
        let each = w.par_chunks_mut(channels * taps).zip(b);
        each.zip(space.par_chunks(filters * channels)).for_each(|((w, b), space)| {
            let mix = Mat::new(space, channels, 1).t();
            let bank = Mat::new(time, taps, 1);
            gemm((channels, taps, filters), T::ONE, mix, bank, T::ZERO, w, taps);
            let rows = space.chunks_exact(channels).zip(bias);
            *b = rows.map(|(row, &bias)| row.iter().copied().sum::<T>() * bias).sum();
        });
        Ok(())
    }
}

impl HostKernel for ComposeBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (outputs, filters, channels, taps) = self.0.dims();
        let (dw, db) =
            (io.input_n::<T>(0, outputs * channels * taps)?, io.input_n::<T>(1, outputs)?);
        let (time, bias) = (io.input_n::<T>(2, filters * taps)?, io.input_n::<T>(3, filters)?);
        let space = io.input_n::<T>(4, outputs * filters * channels)?;
        let d_time = io.output_n::<T>(0, filters * taps)?;
        let d_bias = io.output_n::<T>(1, filters)?;
        let d_space = io.output_n::<T>(2, space.len())?;
        d_space.par_chunks_mut(filters * channels).enumerate().for_each(|(o, d_space)| {
            let dw = Mat::new(&dw[o * channels * taps..], taps, 1);
            let dims = (filters, channels, taps);
            gemm(dims, T::ONE, Mat::new(time, taps, 1), dw.t(), T::ONE, d_space, channels);
            for (row, &bias) in d_space.chunks_exact_mut(channels).zip(bias) {
                row.iter_mut().for_each(|x| *x += db[o] * bias);
            }
        });
        for o in 0..outputs {
            let mix = &space[o * filters * channels..][..filters * channels];
            let dw = Mat::new(&dw[o * channels * taps..], taps, 1);
            let dims = (filters, taps, channels);
            gemm(dims, T::ONE, Mat::new(mix, channels, 1), dw, T::ONE, d_time, taps);
            for (d_bias, row) in d_bias.iter_mut().zip(mix.chunks_exact(channels)) {
                *d_bias += row.iter().copied().sum::<T>() * db[o];
            }
        }
        Ok(())
    }
}

/// Weight `[outputs, channels, kernel]` of the convolution that filters in time by `time`
/// `[filters, kernel]` with `bias` `[filters]` and then mixes by `space` `[outputs, filters,
/// channels]`, and its bias `[outputs]`.
///
/// # Errors
/// [`Error::Shape`] when operands do not fit.
pub fn compose(tape: &Tape<'_>, time: &Var, bias: &Var, space: &Var) -> Result<(Var, Var)> {
    let (&[filters, kernel], &[outputs, inner, channels]) = (time.dims(), space.dims()) else {
        let problem = format!("time {} and space {}", time.shape(), space.shape());
        return Err(Error::shape("compose_filters", problem));
    };
    if inner != filters || bias.dims() != [filters] {
        let problem = format!("time {} and space {}", time.shape(), space.shape());
        return Err(Error::shape("compose_filters", problem));
    }
    let extents = Extents {
        outputs: size(outputs),
        filters: size(filters),
        channels: size(channels),
        kernel: size(kernel),
    };
    // Weight and bias share one tensor, so that one node gets both gradients.
    let n = outputs * channels * kernel;
    let both = tape.empty([n + outputs], time.dtype(), "filters")?;
    let w = both.narrow(0, n)?.reshape([outputs, channels, kernel])?;
    let b = both.narrow(n, outputs)?;
    let operands = [time.tensor(), bias.tensor(), space.tensor()];
    tape.run(Compose(extents), &operands, &[&w, &b])?;
    let saved = [time.clone(), bias.clone(), space.clone()];
    let node = tape.push(both, &[time, bias, space], move |grads, d| {
        let (dw, db) = (d.narrow(0, n)?, d.narrow(n, outputs)?);
        let mut targets = Vec::with_capacity(3);
        for var in &saved {
            let fresh = grads.sum_of(var)?;
            targets.push(match fresh {
                Some(tensor) => tensor,
                None => grads.tape().empty(*var.shape(), var.dtype(), "grad.unused")?,
            });
        }
        let inputs = [&dw, &db, saved[0].tensor(), saved[1].tensor(), saved[2].tensor()];
        let outputs = [&targets[0], &targets[1], &targets[2]];
        grads.tape().run(ComposeBackward(extents), &inputs, &outputs)
    });
    Ok((slice(tape, &node, 0, w)?, slice(tape, &node, n, b)?))
}

/// `part`, which begins at element `start` of `whole` `[n]`, as a value of its own.
fn slice(tape: &Tape<'_>, whole: &Var, start: usize, part: crate::Tensor) -> Result<Var> {
    let (source, count) = (whole.clone(), part.numel());
    Ok(tape.push(part, &[whole], move |grads, d| {
        let Some(to) = grads.sum_of(&source)? else { return Ok(()) };
        let to = to.narrow(start, count)?.reshape(*d.shape())?;
        super::elementwise::add_into(grads.tape(), &d, &to)
    }))
}
