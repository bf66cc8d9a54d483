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

use super::plans::{PARTIALS_HEADER, stage};
use super::{op, size};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::Real;
use crate::backend::cpu::scratch::scratch;
use crate::backend::{Arch, Machine, Plan};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Extents of one block, and how its length is taken apart.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Extents {
    batch: u32,
    time: u32,
    channels: u32,
    /// Add to y or dx instead of overwriting it (gradients only).
    accumulate: u32,
    /// Radices of the GPU's transform; 0 where `time` is not a product of those it has.
    passes: u32,
    /// The radices less 1, 4 bits each, the first in the lowest.
    radices: u32,
}

/// y = irfft(rfft(x) * gain). Inputs: x `[batch, time, channels]`, gain `[time / 2 + 1, channels,
/// 2]` (real, imaginary); output: y. With the conjugate gain it is the gradient of the input.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Spectral {
    of: Extents,
    conjugate: u32,
}

/// Both gradients. Inputs: dy, x, gain; outputs: d_gain, added to, and maybe dx.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct SpectralGrad {
    of: Extents,
    with_input: u32,
}

impl Spectral {
    /// `batch` items of `time` samples and `channels` channels. All three are at least 1.
    pub fn new(batch: usize, time: usize, channels: usize) -> Self {
        Self { of: Extents::new(batch, time, channels), conjugate: 0 }
    }
}

impl SpectralGrad {
    /// Both gradients of [`Spectral::new`] of the same extents.
    pub fn new(batch: usize, time: usize, channels: usize) -> Self {
        Self { of: Extents::new(batch, time, channels), with_input: 1 }
    }
}

op!(
    Spectral,
    "spectral",
    |op, arch, kernel| {
        let of = &op.of;
        match of.pairs(arch, |pairs| of.bytes(of.time() * pairs)) {
            Some(pairs) => {
                let grid = of.grid(pairs, 8 * arch.units);
                let shared = of.bytes(of.time() * pairs as usize);
                Plan::new(kernel, grid, of.block(pairs, 256)).shared(shared)
            }
            None => {
                let grid = of.grid(of.narrow(), 2 * arch.units);
                Plan::new(stage(kernel, "any"), grid, 256).workspace(of.buffers(grid, 2))
            }
        }
    },
    vendor = |_, _, _| false,
    overwrites = |op| op.of.accumulate == 0
);

op!(SpectralGrad, "spectral_grad", |op, arch, kernel| {
    let of = &op.of;
    let bins = of.time() / 2 + 1;
    // x and dy side by side, and the sums of products, 4 numbers a bin and pair.
    let bytes = |pairs: usize| of.bytes(2 * (of.time() + bins) * pairs);
    let extent = bins * of.channels as usize * 2;
    let sums = |slices: u32| PARTIALS_HEADER + 4 * (slices as usize * extent).next_multiple_of(4);
    let wide = of.wide(arch, bytes);
    let plan = match wide.map(|wide| wide.0).or_else(|| of.pairs(arch, bytes)) {
        Some(pairs) => {
            let (blocks, most) = wide.map_or((2, 256), |wide| (wide.1, 512 / wide.1));
            let grid = of.grid(pairs, blocks * arch.units);
            Plan::new(kernel, grid, of.block(pairs, most))
                .shared(bytes(pairs as usize))
                .workspace(sums(grid[1]))
        }
        None => {
            let grid = of.grid(of.narrow(), 2 * arch.units);
            let bytes = sums(grid[1]) + of.buffers(grid, 3);
            Plan::new(stage(kernel, "any"), grid, 256).workspace(bytes)
        }
    };
    plan.then(stage(kernel, "end"), [size(extent.div_ceil(256)), 1, 1], 256)
});

/// Channel pairs of a block: more than these bring no longer stretches of memory.
const WIDEST: u32 = 16;

impl Extents {
    fn new(batch: usize, time: usize, channels: usize) -> Self {
        let radices = radices(time);
        let packed = radices.iter().rev().fold(0, |all, radix| (all << 4) | (radix - 1));
        Self {
            batch: size(batch),
            time: size(time),
            channels: size(channels),
            accumulate: 0,
            passes: size(radices.len()),
            radices: packed,
        }
    }

    fn time(&self) -> usize {
        self.time as usize
    }

    /// Shared memory for so many complex numbers, the roots of unity and the places of bins.
    fn bytes(&self, numbers: usize) -> usize {
        8 * numbers + 10 * self.time()
    }

    /// Channel pairs of a block, if the length can be transformed in shared memory, of which a
    /// block of so many pairs needs `bytes`: as many as leave room for three blocks, or 48 KiB
    /// where that is more, and blocks for all units.
    fn pairs(&self, arch: &Arch, bytes: impl Fn(usize) -> usize) -> Option<u32> {
        if self.passes == 0 || bytes(1) > arch.shared as usize {
            return None;
        }
        let budget = (arch.shared / 3).max((48 << 10).min(arch.shared)) as usize;
        let mut pairs = self.channels.div_ceil(2).next_power_of_two().min(WIDEST);
        while pairs > 1 && bytes(pairs as usize) > budget {
            pairs /= 2;
        }
        while pairs > 4 && self.groups(pairs) * self.batch < 2 * arch.units {
            pairs /= 2;
        }
        Some(pairs)
    }

    /// Channel pairs of a block, and blocks on a unit, for gradients on NVIDIA cards: rather two blocks than
    /// three, or one, than stretches of memory shorter than 64 bytes. On an H200 `[64, 1024, 256]` in
    /// f32 took 544 us with 2 pairs, 309 with 8; `[256, 200, 128]` 125 with 8, 98 with 16.
    fn wide(&self, arch: &Arch, bytes: impl Fn(usize) -> usize) -> Option<(u32, u32)> {
        let nvidia = matches!(arch.machine, Machine::Cuda { .. }) && self.passes > 0;
        let all = self.channels.div_ceil(2).next_power_of_two();
        let fits = |&(pairs, blocks): &(u32, u32)| {
            let room = if blocks == 1 { arch.shared } else { arch.shared / 5 * 2 };
            let filled = self.groups(pairs) * self.batch >= arch.units;
            pairs <= all && filled && bytes(pairs as usize) <= room as usize
        };
        [(16, 2), (8, 2), (8, 1)].into_iter().filter(|_| nvidia).find(fits)
    }

    /// Channel pairs of a block that works in global memory.
    fn narrow(&self) -> u32 {
        self.channels.div_ceil(2).clamp(1, 2)
    }

    fn groups(&self, pairs: u32) -> u32 {
        self.channels.div_ceil(2 * pairs).max(1)
    }

    /// Groups of channels along x, slices of the batch along y: about `blocks` in all.
    fn grid(&self, pairs: u32, blocks: u32) -> [u32; 3] {
        let groups = self.groups(pairs);
        let slices = blocks.div_ceil(groups).clamp(1, self.batch.max(1));
        let items = self.batch.div_ceil(slices).max(1);
        [groups, self.batch.div_ceil(items).clamp(1, 65_535), 1]
    }

    /// Threads: one for 8 numbers of a column.
    fn block(&self, pairs: u32, most: u32) -> u32 {
        (pairs * self.time.div_ceil(8)).next_power_of_two().clamp(64, most)
    }

    /// Workspace for the roots and `count` columns of every block.
    fn buffers(&self, grid: [u32; 3], count: usize) -> usize {
        let blocks = grid[0] as usize * grid[1] as usize;
        8 * blocks * self.time() * (1 + count * self.narrow() as usize)
    }

    fn dims(&self) -> (usize, usize, usize, usize) {
        let time = self.time as usize;
        (self.batch as usize, time, self.channels as usize, time / 2 + 1)
    }
}

/// The radices whose product is `time`, in the order of the passes of the GPU's transform, which has
/// butterflies of 1, 4, 5, 8, 16 for the first, of 2, 3, 4, 5, 8 for the last and of 2, 3, 4, 5, 7, 8
/// for up to six between; none for a length that they do not make up.
fn radices(time: usize) -> Vec<u32> {
    let (mut left, mut found) = (time.max(1), Vec::new());
    for odd in [7, 5, 3] {
        while left.is_multiple_of(odd) {
            found.push(size(odd));
            left /= odd;
        }
    }
    if !left.is_power_of_two() {
        return Vec::new();
    }
    let twos = left.trailing_zeros();
    let (head, eights): (&[u32], u32) = match twos % 3 {
        0 => (&[], twos / 3),
        1 if twos == 1 => (&[2], 0),
        // 16 is for the first pass; something must be left for the last.
        1 if twos == 4 && found.iter().all(|&r| r == 7) => (&[4, 4], 0),
        1 => (&[16], (twos - 4) / 3),
        _ => (&[4], twos / 3),
    };
    found.extend(head);
    found.extend(std::iter::repeat_n(8, eights as usize));
    found.sort_unstable_by(|a, b| b.cmp(a));
    let first = found.iter().position(|r| matches!(r, 4 | 5 | 8 | 16));
    let first = first.map_or(1, |at| found.remove(at));
    let (first, last) = match found.iter().rposition(|&r| r != 7) {
        Some(at) => (first, found.remove(at)),
        None if first > 1 => (1, first),
        None => return Vec::new(),
    };
    found.insert(0, first);
    found.push(last);
    if found.len() > 8 { Vec::new() } else { found }
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
        let (batch, time, channels, bins) = self.of.dims();
        let x = io.input_n::<T>(0, batch * time * channels)?;
        let gain = io.input_n::<T>(1, bins * channels * 2)?;
        filter(&self.of, (x, gain), self.conjugate != 0, io.output_n(0, x.len())?)
    }
}

impl HostKernel for SpectralGrad {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, time, channels, bins) = self.of.dims();
        let item = time * channels;
        let (dy, x) = (io.input_n::<T>(0, batch * item)?, io.input_n::<T>(1, batch * item)?);
        gain_gradient(&self.of, (dy, x), io.output_n::<T>(0, bins * channels * 2)?)?;
        if self.with_input == 0 {
            return Ok(());
        }
        // The filter is a circulant matrix; its transpose has the conjugate spectrum.
        let gain = io.input_n::<T>(2, bins * channels * 2)?;
        filter(&self.of, (dy, gain), true, io.output_n(1, dy.len())?)
    }
}

/// d_gain += Σ over items of conj(rfft(x)) * rfft(dy), weighted as bins stand for the spectrum.
fn gain_gradient<T: Real>(of: &Extents, (dy, x): (&[T], &[T]), d_gain: &mut [T]) -> Result<()> {
    let (_, time, channels, bins) = of.dims();
    let item = time * channels;
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
            // Inner bins stand for two of the full spectrum; the first, and the last of an even
            // length, are real and stand for one.
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
    let of = Extents::new(batch, time, channels);
    let y = tape.empty(*x.shape(), x.dtype(), "spectral")?;
    tape.run(Spectral { of, conjugate: 0 }, &[x.tensor(), gain.tensor()], &[&y])?;
    let (input, gains) = (x.clone(), gain.clone());
    Ok(tape.push(y, &[x, gain], move |grads, dy| {
        let (d_gain, dx) = (grads.sum_of(&gains)?, grads.target(&input)?);
        let accumulate = dx.as_ref().is_some_and(|to| to.accumulate).into();
        let of = Extents { accumulate, ..of };
        match (&d_gain, &dx) {
            (Some(d_gain), dx) => {
                let op = SpectralGrad { of, with_input: dx.is_some().into() };
                let inputs = [&dy, input.tensor(), gains.tensor()];
                let mut outputs = vec![d_gain];
                outputs.extend(dx.as_ref().map(|to| &to.tensor));
                grads.tape().run(op, &inputs, &outputs)
            }
            (None, Some(to)) => {
                let op = Spectral { of, conjugate: 1 };
                grads.tape().run(op, &[&dy, gains.tensor()], &[&to.tensor])
            }
            (None, None) => Ok(()),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn radices_make_up_the_length() {
        // From 4374 = 2 * 3^7 on there are lengths of more passes.
        for time in 1..4374 {
            let found = radices(time);
            let mut rest = time;
            for p in [2, 3, 5, 7] {
                while rest.is_multiple_of(p) {
                    rest /= p;
                }
            }
            if found.is_empty() {
                let sevens = std::iter::successors(Some(1), |n| Some(7 * n)).take(6);
                let known = rest > 1 || sevens.into_iter().any(|n| n == time);
                assert!(known, "{time} is a product of small primes");
                continue;
            }
            assert_eq!(found.iter().map(|&r| r as usize).product::<usize>(), time);
            let [first, between @ .., last] = found.as_slice() else { panic!("{time}: {found:?}") };
            assert!(between.len() <= 6 && [1, 4, 5, 8, 16].contains(first), "{time}: {found:?}");
            assert!([2, 3, 4, 5, 8].contains(last), "{time}: {found:?}");
            assert!(between.iter().all(|r| [2, 3, 4, 5, 7, 8].contains(r)), "{time}: {found:?}");
        }
    }

    #[test]
    fn kernels_can_find_the_pairs_of_a_plan_again() {
        for channels in 1..300_u32 {
            let of = Extents::new(3, 200, channels as usize);
            for pairs in [1, 2, 4, 8, 16] {
                let grid = of.grid(pairs, 64);
                // As `columns` of kernels/spectral.cu.
                let mut found = 1;
                while found * grid[0] < channels.div_ceil(2) {
                    found *= 2;
                }
                assert!(found <= pairs, "{channels} channels by {pairs}: {found}");
                assert_eq!(of.groups(found), grid[0], "{channels} channels by {pairs}");
            }
        }
    }

    #[test]
    fn plans_fit_their_machines() {
        for name in Arch::claimable() {
            let Some(arch) = Arch::claim(name) else { continue };
            for (time, channels) in
                [(1, 1), (33, 7), (200, 128), (1024, 256), (4096, 3), (30_000, 64)]
            {
                for op in [SpectralGrad { of: Extents::new(64, time, channels), with_input: 1 }] {
                    let route = crate::backend::Op::plan(&op, &arch, crate::DType::F32);
                    let crate::backend::Route::Kernel(plan) = route else { continue };
                    for stage in &plan.stages {
                        // What a multiprocessor of NVIDIA's has registers for.
                        let most = if name.starts_with("sm_") { 512 } else { 256 };
                        assert!(
                            stage.shared <= arch.shared && stage.block <= most,
                            "{name} {stage:?}"
                        );
                    }
                }
            }
        }
    }
}
