//! Augmentation of windows `[channels, time]`. What happens to a window depends on the seed, the
//! step and the window alone, so a resumed run repeats it, on any number of threads.

mod moves;
mod noise;
mod settings;

use std::f32::consts::TAU;
use std::fmt;
use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

pub use moves::Moves;
pub use settings::Settings;

use super::rng::Rng;
use crate::{Error, Result};
use noise::{Ziggurat, beta};

/// Augments windows of one shape. Shared by threads; each brings its [`Workspace`].
#[derive(Clone)]
pub struct Augment {
    settings: Settings,
    channels: usize,
    time: usize,
    sample_rate: f64,
    /// Channels of each region, regions of one channel left out.
    regions: Vec<Vec<usize>>,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
    ziggurat: Ziggurat,
}

/// Buffers of one thread, kept from window to window.
#[derive(Debug, Default)]
pub struct Workspace {
    row: Vec<f32>,
    bins: Vec<Complex32>,
    /// By which each bin is multiplied.
    factors: Vec<Complex32>,
    scratch: Vec<Complex32>,
    moves: Moves,
}

/// What [`Augment::mixup`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixup {
    /// Weight of the window's own part; the partner's is `1 - lambda`.
    pub lambda: f32,
    /// The window each window was mixed with.
    pub partner: Vec<u32>,
}

impl fmt::Debug for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Augment")
            .field("settings", &self.settings)
            .field("channels", &self.channels)
            .field("time", &self.time)
            .finish_non_exhaustive()
    }
}

impl Augment {
    /// For windows of `channels` by `time` samples at `sample_rate` Hz. `regions` numbers the region
    /// of each channel (`None`: no region) and is needed for `channel_shuffle` alone.
    ///
    /// # Errors
    /// A setting out of range, an empty window, `channel_shuffle` without regions of two channels.
    pub fn new(
        settings: Settings,
        channels: usize,
        time: usize,
        sample_rate: f64,
        regions: &[Option<u32>],
    ) -> Result<Self> {
        settings.check()?;
        if channels == 0 || time == 0 || !(sample_rate > 0.0 && sample_rate.is_finite()) {
            let problem = format!("windows of [{channels}, {time}] at {sample_rate} Hz");
            return Err(Error::shape("augment", problem));
        }
        let mut groups = std::collections::BTreeMap::<u32, Vec<usize>>::new();
        for (channel, region) in regions.iter().take(channels).enumerate() {
            if let Some(region) = region {
                groups.entry(*region).or_default().push(channel);
            }
        }
        let regions: Vec<_> = groups.into_values().filter(|group| group.len() > 1).collect();
        if settings.channel_shuffle > 0.0 && regions.is_empty() {
            return Err(Error::input(
                "augment.channel_shuffle",
                "no region has two channels",
                "use channels of a known montage, or set it to 0",
            ));
        }
        let mut planner = RealFftPlanner::new();
        let (forward, inverse) = (planner.plan_fft_forward(time), planner.plan_fft_inverse(time));
        let ziggurat = Ziggurat::new();
        Ok(Self { settings, channels, time, sample_rate, regions, forward, inverse, ziggurat })
    }

    /// True where [`Self::apply`] changes nothing.
    pub fn is_off(&self) -> bool {
        let s = &self.settings;
        let all = [
            s.time_shift,
            s.time_reversal,
            s.sign_flip,
            s.amplitude_scale,
            s.fourier_surrogate,
            s.band_stop,
            s.channel_shuffle,
            s.channel_dropout,
            s.time_masking,
            s.gaussian_noise,
        ];
        all.iter().all(|p| *p == 0.0)
    }

    /// Augments one window in place, `[channels, time]`. `window` is the window's number in the
    /// dataset. Mixup is apart: [`Self::mixup`].
    ///
    /// # Errors
    /// A window of another shape.
    pub fn apply(
        &self,
        samples: &mut [f32],
        seed: u64,
        step: u64,
        window: u64,
        workspace: &mut Workspace,
    ) -> Result<()> {
        if samples.len() != self.channels * self.time {
            let problem =
                format!("{} samples, expected [{}, {}]", samples.len(), self.channels, self.time);
            return Err(Error::shape("augment", problem));
        }
        let s = &self.settings;
        let mut moves = std::mem::take(&mut workspace.moves);
        self.moves(seed, step, window, &mut moves);
        for row in samples.chunks_exact_mut(self.time) {
            row.rotate_right(moves.shift);
            if moves.reversed {
                row.reverse();
            }
        }
        if moves.factor != 1.0 {
            samples.iter_mut().for_each(|x| *x *= moves.factor);
        }
        let key = moves::key(seed, step, window);
        let surrogate = moves::draw(key, 5, s.fourier_surrogate);
        let band_stop = moves::draw(key, 6, s.band_stop);
        if surrogate.is_some() || band_stop.is_some() {
            self.spectral(samples, surrogate, band_stop, workspace);
        }
        self.place_rows(samples, &moves, workspace);
        workspace.moves = moves;
        if let Some(mut rng) = moves::draw(key, 10, s.gaussian_noise) {
            let std = s.gaussian_noise_std as f32;
            samples.iter_mut().for_each(|x| *x += std * self.ziggurat.draw(&mut rng) as f32);
        }
        Ok(())
    }

    fn samples_of(&self, seconds: f64) -> usize {
        (seconds * self.sample_rate).round() as usize
    }

    /// Puts channels where `moves` wants them, and blanks what it blanks.
    fn place_rows(&self, samples: &mut [f32], moves: &Moves, workspace: &mut Workspace) {
        let (start, length) = moves.mask;
        let stays = |(to, from): (usize, &Option<u32>)| *from == Some(to as u32);
        if moves.rows.iter().enumerate().all(stays) && length == 0 {
            return;
        }
        let before = &mut workspace.row;
        before.clear();
        before.extend_from_slice(samples);
        for (row, from) in samples.chunks_exact_mut(self.time).zip(&moves.rows) {
            match from {
                Some(from) => {
                    row.copy_from_slice(&before[*from as usize * self.time..][..self.time])
                }
                None => row.fill(0.0),
            }
            row[start..start + length].fill(0.0);
        }
    }

    /// Multiplies the spectrum of every channel by the same factors.
    fn spectral(
        &self,
        samples: &mut [f32],
        surrogate: Option<Rng>,
        band_stop: Option<Rng>,
        workspace: &mut Workspace,
    ) {
        let n_bins = self.time / 2 + 1;
        let Workspace { bins, factors, scratch, .. } = workspace;
        factors.clear();
        // The inverse transform is unnormalised.
        factors.resize(n_bins, Complex32::new(1.0 / self.time as f32, 0.0));
        // The constant, and the highest bin of an even length, are real and keep their phase.
        let turning = 1..self.time.div_ceil(2);
        if let Some(mut rng) = surrogate {
            let turn = TAU * self.settings.fourier_surrogate_strength as f32;
            for factor in &mut factors[turning] {
                *factor *= Complex32::from_polar(1.0, turn * rng.uniform() as f32);
            }
        }
        if let Some(mut rng) = band_stop {
            let hz_per_bin = self.sample_rate / self.time as f64;
            let width = self.settings.band_stop_hz.min(self.sample_rate / 2.0);
            let low = rng.range(0.0, self.sample_rate / 2.0 - width);
            let (first, last) = ((low / hz_per_bin).ceil(), ((low + width) / hz_per_bin).floor());
            let band = (first as usize).min(n_bins)..(last as usize + 1).min(n_bins);
            if let Some(band) = factors.get_mut(band) {
                band.fill(Complex32::default());
            }
        }
        bins.resize(n_bins, Complex32::default());
        let needed = self.forward.get_scratch_len().max(self.inverse.get_scratch_len());
        scratch.resize(needed, Complex32::default());
        for row in samples.chunks_exact_mut(self.time) {
            let done = self.forward.process_with_scratch(row, bins, scratch);
            debug_assert!(done.is_ok());
            bins.iter_mut().zip(factors.iter()).for_each(|(x, factor)| *x *= factor);
            // Real by theory; realfft refuses what rounding leaves of an imaginary part.
            bins[0].im = 0.0;
            if self.time.is_multiple_of(2) {
                bins[n_bins - 1].im = 0.0;
            }
            let done = self.inverse.process_with_scratch(bins, row, scratch);
            debug_assert!(done.is_ok());
        }
    }

    /// Mixes the windows of a batch `[batch, channels, time]` in pairs, and their labels
    /// `[batch, outputs]` in the same way: each becomes `lambda` times itself plus `1 - lambda`
    /// times its partner. Pairs, because a pair is mixed in place. The odd one out stays as it is.
    /// `None` where the step is not one that is mixed. For a loss over class numbers, which cannot
    /// be mixed, pass no labels and weigh the two losses by lambda.
    ///
    /// # Errors
    /// Lengths that are not whole numbers of windows.
    pub fn mixup(
        &self,
        samples: &mut [f32],
        labels: &mut [f32],
        seed: u64,
        step: u64,
    ) -> Result<Option<Mixup>> {
        let each = self.channels * self.time;
        let batch = samples.len() / each;
        if batch * each != samples.len() || !labels.len().is_multiple_of(batch.max(1)) {
            let problem = format!("{} samples, {} labels", samples.len(), labels.len());
            return Err(Error::shape("mixup", problem));
        }
        let mut rng = Rng::new(mix(mix(seed, step), u64::MAX), 11);
        if rng.uniform() >= self.settings.mixup {
            return Ok(None);
        }
        let lambda = beta(self.settings.mixup_alpha, &mut rng) as f32;
        let mut order: Vec<u32> = (0..batch as u32).collect();
        rng.shuffle(&mut order);
        let mut partner: Vec<u32> = (0..batch as u32).collect();
        let outputs = labels.len() / batch.max(1);
        for pair in order.chunks_exact(2) {
            let (a, b) = (pair[0].min(pair[1]) as usize, pair[0].max(pair[1]) as usize);
            partner.swap(a, b);
            blend(samples, a, b, each, lambda);
            blend(labels, a, b, outputs, lambda);
        }
        Ok(Some(Mixup { lambda, partner }))
    }
}

/// Mixes rows `a < b` of `each` values, in place.
fn blend(values: &mut [f32], a: usize, b: usize, each: usize, lambda: f32) {
    let (head, tail) = values.split_at_mut(b * each);
    for (x, y) in head[a * each..(a + 1) * each].iter_mut().zip(&mut tail[..each]) {
        let (own, other) = (*x, *y);
        *x = lambda * own + (1.0 - lambda) * other;
        *y = lambda * other + (1.0 - lambda) * own;
    }
}

/// Two words into one (the finaliser of SplitMix64, Steele et al. 2014).
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
