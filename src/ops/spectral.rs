//! The spectral block: real FFT along time, a learned complex gain per frequency and channel, and
//! back (Rao et al. 2021, "Global Filter Networks", in one dimension).

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;
use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use super::{op, size};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::Real;
use crate::backend::cpu::scratch::scratch;
use crate::backend::{Arch, Plan};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Extents of one block; also the parameters of its kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Extents {
    batch: u32,
    time: u32,
    channels: u32,
    /// Add to the output instead of overwriting it (gradients only).
    accumulate: u32,
}

/// y = irfft(rfft(x) * gain). Inputs: x `[batch, time, channels]`, gain `[time / 2 + 1, channels,
/// 2]` (real, imaginary); output: y.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Spectral(Extents);

/// Gradient of the input. Inputs: dy, gain; output: dx.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct SpectralBackward(Extents);

/// Gradient of the gain, added to. Inputs: dy, x; output: d_gain.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct SpectralGain(Extents);

op!(Spectral, "spectral", |op, arch, kernel| op.0.plan(arch, kernel));
op!(SpectralBackward, "spectral_backward", |op, arch, kernel| op.0.plan(arch, kernel));
op!(SpectralGain, "spectral_gain", |op, arch, kernel| op.0.plan(arch, kernel));

impl Extents {
    fn plan(&self, arch: &Arch, kernel: &str) -> Plan {
        let grid = [self.channels.div_ceil(32), self.batch, 1];
        Plan::new(kernel, grid, 256).shared((self.time * 32 * 8).min(arch.shared) as usize)
    }

    fn dims(&self) -> (usize, usize, usize, usize) {
        let time = self.time as usize;
        (self.batch as usize, time, self.channels as usize, time / 2 + 1)
    }
}

/// Transforms of one length with their working memory.
struct Transform<T: Real> {
    forward: Arc<dyn RealToComplex<T>>,
    inverse: Arc<dyn ComplexToReal<T>>,
    signal: Vec<T>,
    spectrum: Vec<Complex<T>>,
    other: Vec<Complex<T>>,
    work: Vec<Complex<T>>,
}

impl<T: Real> Transform<T> {
    fn new(time: usize) -> Self {
        let mut planner = RealFftPlanner::new();
        let forward = planner.plan_fft_forward(time);
        let inverse = planner.plan_fft_inverse(time);
        let work = forward.get_scratch_len().max(inverse.get_scratch_len());
        let zero = Complex::new(T::ZERO, T::ZERO);
        Self {
            signal: vec![T::ZERO; time],
            spectrum: vec![zero; time / 2 + 1],
            other: vec![zero; time / 2 + 1],
            work: vec![zero; work],
            forward,
            inverse,
        }
    }

    /// Spectrum of one channel of `item` `[time, channels]`, left in `self.spectrum`.
    fn analyse(&mut self, item: &[T], channel: usize, channels: usize) -> Result<()> {
        let column = item[channel..].iter().step_by(channels);
        self.signal.iter_mut().zip(column).for_each(|(to, &x)| *to = x);
        let length = self.forward.get_scratch_len();
        self.forward
            .process_with_scratch(&mut self.signal, &mut self.spectrum, &mut self.work[..length])
            .map_err(|error| Error::shape("spectral", error))
    }

    /// Signal of `self.spectrum`, left in `self.signal`, scaled as the inverse transform.
    fn synthesise(&mut self) -> Result<()> {
        // A real signal has a real mean and, of even length, a real last bin; as in torch.fft,
        // what the gain put into their imaginary parts is left out.
        self.spectrum[0].im = T::ZERO;
        if self.signal.len().is_multiple_of(2)
            && let Some(last) = self.spectrum.last_mut()
        {
            last.im = T::ZERO;
        }
        let length = self.inverse.get_scratch_len();
        self.inverse
            .process_with_scratch(&mut self.spectrum, &mut self.signal, &mut self.work[..length])
            .map_err(|error| Error::shape("spectral", error))?;
        let scale = T::ONE / T::of(self.signal.len() as f64);
        self.signal.iter_mut().for_each(|x| *x *= scale);
        Ok(())
    }
}

thread_local! {
    /// One transform per (type, length), planned at first use.
    static TRANSFORMS: RefCell<HashMap<(TypeId, usize), Box<dyn Any>>> = RefCell::default();
}

/// Calls `f` with this thread's transform of length `time`. `f` must not come back here.
fn with_transform<T: Real>(
    time: usize,
    f: impl FnOnce(&mut Transform<T>) -> Result<()>,
) -> Result<()> {
    TRANSFORMS.with_borrow_mut(|all| {
        let kept = all
            .entry((TypeId::of::<T>(), time))
            .or_insert_with(|| Box::new(Transform::<T>::new(time)));
        match kept.downcast_mut() {
            Some(transform) => f(transform),
            None => Err(Error::shape("spectral", "a transform of another type")),
        }
    })
}

/// y[b] (+)= the filtered item x[b], with the gain or its conjugate.
fn filter<T: Real>(
    extents: &Extents,
    (x, gain): (&[T], &[T]),
    conjugate: bool,
    y: &mut [T],
) -> Result<()> {
    let (_, time, channels, _) = extents.dims();
    let add = extents.accumulate != 0;
    let sign = if conjugate { -T::ONE } else { T::ONE };
    let items = y.par_chunks_mut(time * channels).zip(x.par_chunks(time * channels));
    items.try_for_each(|(y, x)| {
        with_transform::<T>(time, |transform| {
            for c in 0..channels {
                transform.analyse(x, c, channels)?;
                let gains = gain.chunks_exact(2 * channels).map(|row| (row[2 * c], row[2 * c + 1]));
                for (bin, (re, im)) in transform.spectrum.iter_mut().zip(gains) {
                    *bin = *bin * Complex::new(re, sign * im);
                }
                transform.synthesise()?;
                let column = y[c..].iter_mut().step_by(channels);
                for (y, &value) in column.zip(&transform.signal) {
                    *y = if add { *y + value } else { value };
                }
            }
            Ok(())
        })
    })
}

impl HostKernel for Spectral {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, time, channels, bins) = self.0.dims();
        let x = io.input_n::<T>(0, batch * time * channels)?;
        let gain = io.input_n::<T>(1, bins * channels * 2)?;
        filter(&self.0, (x, gain), false, io.output_n(0, x.len())?)
    }
}

impl HostKernel for SpectralBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, time, channels, bins) = self.0.dims();
        let dy = io.input_n::<T>(0, batch * time * channels)?;
        let gain = io.input_n::<T>(1, bins * channels * 2)?;
        // The filter is a circulant matrix; its transpose has the conjugate spectrum.
        filter(&self.0, (dy, gain), true, io.output_n(0, dy.len())?)
    }
}

impl HostKernel for SpectralGain {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, time, channels, bins) = self.0.dims();
        let item = time * channels;
        let (dy, x) = (io.input_n::<T>(0, batch * item)?, io.input_n::<T>(1, batch * item)?);
        let d_gain = io.output_n::<T>(0, bins * channels * 2)?;
        let n = T::of(time as f64);
        scratch(channels * bins * 2, |sums: &mut [T]| {
            sums.par_chunks_mut(bins * 2).enumerate().try_for_each(|(c, sums)| {
                sums.fill(T::ZERO);
                with_transform::<T>(time, |transform| {
                    for (x, dy) in x.chunks_exact(item).zip(dy.chunks_exact(item)) {
                        transform.analyse(x, c, channels)?;
                        std::mem::swap(&mut transform.spectrum, &mut transform.other);
                        transform.analyse(dy, c, channels)?;
                        let bins = transform.other.iter().zip(&transform.spectrum);
                        for (sum, (x, dy)) in sums.chunks_exact_mut(2).zip(bins) {
                            let product = x.conj() * dy;
                            sum[0] += product.re;
                            sum[1] += product.im;
                        }
                    }
                    Ok(())
                })
            })?;
            for (f, row) in d_gain.chunks_exact_mut(2 * channels).enumerate() {
                // Inner bins stand for two of the full spectrum; the first, and the last of an
                // even length, are real and stand for one.
                let edge = f == 0 || 2 * f == time;
                let (re, im) =
                    if edge { (T::ONE / n, T::ZERO) } else { (T::of(2.0) / n, T::of(2.0) / n) };
                for (c, pair) in row.chunks_exact_mut(2).enumerate() {
                    pair[0] += re * sums[(c * bins + f) * 2];
                    pair[1] += im * sums[(c * bins + f) * 2 + 1];
                }
            }
            Ok(())
        })
    }
}

/// Filters `x` `[batch, time, channels]` along time by `gain` `[time / 2 + 1, channels, 2]`.
///
/// # Errors
/// [`Error::Shape`] when the gain does not fit.
pub fn spectral(tape: &Tape<'_>, x: &Var, gain: &Var) -> Result<Var> {
    let &[batch, time, channels] = x.dims() else {
        return Err(Error::shape("spectral", format!("x of shape {}", x.shape())));
    };
    if gain.dims() != [time / 2 + 1, channels, 2] || time == 0 {
        let problem = format!("a gain of shape {} for x of shape {}", gain.shape(), x.shape());
        return Err(Error::shape("spectral", problem));
    }
    let extents =
        Extents { batch: size(batch), time: size(time), channels: size(channels), accumulate: 0 };
    let y = tape.empty(*x.shape(), x.dtype(), "spectral")?;
    tape.run(Spectral(extents), &[x.tensor(), gain.tensor()], &[&y])?;
    let (input, gains) = (x.clone(), gain.clone());
    Ok(tape.push(y, &[x, gain], move |grads, dy| {
        if let Some(to) = grads.sum_of(&gains)? {
            grads.tape().run(SpectralGain(extents), &[&dy, input.tensor()], &[&to])?;
        }
        if let Some(to) = grads.target(&input)? {
            let op = SpectralBackward(Extents { accumulate: to.accumulate.into(), ..extents });
            grads.tape().run(op, &[&dy, gains.tensor()], &[&to.tensor])?;
        }
        Ok(())
    }))
}
