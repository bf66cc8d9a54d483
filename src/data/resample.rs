//! Resampling from any rate to any rate: a polyphase filter, zero-phase, without aliasing.
//!
//! Output sample `m` stands at time `m / to`. The kernel is a sinc with a Kaiser window (80 dB): flat
//! to 90 % of the lower of the two Nyquist frequencies, stopped from 100 % of it, so nothing folds.

use std::f64::consts::PI;

use super::filter::{pad_reflected, sinc};
use crate::{Error, Result};

/// Stop-band attenuation the kernel is designed for, dB.
const ATTENUATION_DB: f64 = 80.0;
/// Share of the lower Nyquist frequency taken by the transition band.
const TRANSITION: f64 = 0.1;
/// How far the ratio of the rates may be off: 0.36 ms after an hour.
const RATIO_TOLERANCE: f64 = 1e-7;
/// Most kernel positions kept: 52 MB at equal rates. No pair of real sample rates comes near.
const MAX_PHASES: u64 = 1 << 16;

/// Resamples from one rate to another. Made once, used for every channel, shared by threads.
#[derive(Debug, Clone)]
pub struct Resampler {
    /// `to / from = up / down`, in lowest terms.
    up: u64,
    down: u64,
    /// Input samples the kernel reaches to either side.
    half: usize,
    /// `[up, 2 * half + 1]`: the kernel sampled at each of the `up` positions between two input
    /// samples.
    phases: Vec<f64>,
}

impl Resampler {
    /// A resampler between rates in Hz.
    ///
    /// # Errors
    /// Rates that are not positive, further apart than 1000 to 1 downwards or 1 to 16 upwards, or
    /// without a usable common fraction.
    pub fn new(from: f64, to: f64) -> Result<Self> {
        let ratio = to / from;
        let plausible = from > 0.0 && to > 0.0 && (1e-3..=16.0).contains(&ratio);
        let (up, down) = if plausible { as_fraction(ratio) } else { (0, 0) };
        if up == 0 || up > MAX_PHASES {
            return Err(Error::input(
                "resampling",
                format!("from {from} Hz to {to} Hz is not possible"),
                "check the recording's sample rate; choose a round rate near it or below",
            ));
        }
        if up == down {
            return Ok(Self { up, down, half: 0, phases: vec![1.0] });
        }
        // In cycles per input sample.
        let nyquist = 0.5 * ratio.min(1.0);
        let width = TRANSITION * nyquist;
        let length = (ATTENUATION_DB - 7.95) / (2.285 * 2.0 * PI * width);
        let half = (length / 2.0).ceil() as usize;
        let cutoff = 2.0 * (nyquist - width / 2.0);
        let taps = 2 * half + 1;
        let mut phases = Vec::with_capacity(up as usize * taps);
        for phase in 0..up {
            let shift = phase as f64 / up as f64;
            let row = phases.len();
            phases.extend((0..taps).map(|j| kernel(j as f64 - half as f64 - shift, half, cutoff)));
            // Unit gain at 0 Hz for each phase, or an offset would come out as a tone.
            let sum: f64 = phases[row..].iter().sum();
            phases[row..].iter_mut().for_each(|h| *h /= sum);
        }
        Ok(Self { up, down, half, phases })
    }

    /// Number of output samples for `n` input samples: `round(n * to / from)`.
    pub fn output_len(&self, n: usize) -> usize {
        let (n, up, down) = (n as u128, u128::from(self.up), u128::from(self.down));
        ((2 * n * up + down) / (2 * down)) as usize
    }

    /// True where the rates are equal and [`Self::apply`] copies.
    pub fn is_identity(&self) -> bool {
        self.up == self.down
    }

    /// Resampled copy of `samples`. `padded` is a buffer to keep from channel to channel. Beyond
    /// both ends the samples are continued by odd reflection.
    pub fn apply(&self, samples: &[f32], padded: &mut Vec<f64>) -> Vec<f32> {
        if self.is_identity() {
            return samples.to_vec();
        }
        // The last output may stand half an output period after the last input.
        let pad = self.half + self.down.div_ceil(self.up) as usize + 1;
        pad_reflected(samples, pad, padded);
        let taps = 2 * self.half + 1;
        (0..self.output_len(samples.len()) as u64)
            .map(|m| {
                let position = m * self.down;
                let (whole, phase) = ((position / self.up) as usize, position % self.up);
                let start = whole + pad - self.half;
                let kernel = &self.phases[phase as usize * taps..][..taps];
                dot(&padded[start..start + taps], kernel) as f32
            })
            .collect()
    }
}

/// The windowed sinc at `t` input samples from its centre.
fn kernel(t: f64, half: usize, cutoff: f64) -> f64 {
    let beta = 0.1102 * (ATTENUATION_DB - 8.7);
    let edge = 1.0 - (t / (half as f64 + 1.0)).powi(2);
    if edge <= 0.0 {
        return 0.0;
    }
    bessel_i0(beta * edge.sqrt()) * cutoff * sinc(cutoff * t)
}

/// Modified Bessel function of the first kind, order 0, by its power series.
fn bessel_i0(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let (mut sum, mut term) = (1.0, 1.0);
    for k in 1..64 {
        term *= quarter / f64::from(k * k);
        sum += term;
    }
    sum
}

/// Inner product with eight running sums, which the compiler turns into vector instructions.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for k in 0..8 {
            sums[k] += x[k] * y[k];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

/// The first convergent of the continued fraction of `x` within [`RATIO_TOLERANCE`] of it.
fn as_fraction(x: f64) -> (u64, u64) {
    let (mut p, mut p_before, mut q, mut q_before) = (x.floor(), 1.0, 1.0, 0.0);
    let mut rest = x;
    for _ in 0..40 {
        if ((p / q - x) / x).abs() <= RATIO_TOLERANCE {
            break;
        }
        rest = 1.0 / (rest - rest.floor());
        let a = rest.floor();
        (p, p_before) = (a * p + p_before, p);
        (q, q_before) = (a * q + q_before, q);
    }
    (p as u64, q as u64)
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::{Resampler, as_fraction};
    use crate::data::rng::Rng;

    fn tone(hz: f64, rate: f64, n: usize) -> Vec<f32> {
        (0..n).map(|i| (TAU * hz * i as f64 / rate + 0.4).sin() as f32).collect()
    }

    const RATES: [(f64, f64); 8] = [
        (500.0, 100.0),
        (512.0, 100.0),
        (125.0, 100.0),
        (250.0, 128.0),
        (100.0, 250.0),
        (256.410_256_41, 100.0),
        (499.97, 128.0),
        (1000.0, 99.0),
    ];

    #[test]
    fn fractions() {
        assert_eq!(as_fraction(0.2), (1, 5));
        assert_eq!(as_fraction(100.0 / 512.0), (25, 128));
        assert_eq!(as_fraction(128.0 / 250.0), (64, 125));
        assert_eq!(as_fraction(1.0 + 1e-9), (1, 1));
        assert_eq!(as_fraction(2.5), (5, 2));
        let mut rng = Rng::new(5, 5);
        for _ in 0..500 {
            let x = 10f64.powf(rng.range(-3.0, 1.2));
            let (p, q) = as_fraction(x);
            assert!(((p as f64 / q as f64 - x) / x).abs() <= 1e-7, "{x}");
            assert!(p < 1 << 17, "{x}: {p}/{q}");
        }
    }

    #[test]
    fn tones_below_the_band_edge_are_reproduced_in_phase() {
        for (from, to) in RATES {
            let resampler = Resampler::new(from, to).unwrap();
            let n = 4001;
            for share in [0.02, 0.3, 0.87] {
                let hz = share * from.min(to) / 2.0;
                let out = resampler.apply(&tone(hz, from, n), &mut Vec::new());
                assert_eq!(out.len(), (n as f64 * to / from).round() as usize);
                let expected = tone(hz, to, out.len());
                let margin = out.len() / 5;
                for i in margin..out.len() - margin {
                    let error = (out[i] - expected[i]).abs();
                    assert!(error < 1.2e-3, "{from}->{to} {hz} Hz at {i}: {error}");
                }
            }
        }
    }

    /// Tones above the new Nyquist frequency must vanish: below -60 dB, wherever they would fold to.
    #[test]
    fn nothing_folds() {
        for (from, to) in RATES.into_iter().filter(|(from, to)| from > to) {
            let resampler = Resampler::new(from, to).unwrap();
            for share in [1.001, 1.05, 1.31, 1.8] {
                let hz = share * to / 2.0;
                if hz >= from / 2.0 {
                    continue;
                }
                let out = resampler.apply(&tone(hz, from, 6007), &mut Vec::new());
                let middle = &out[out.len() / 4..out.len() * 3 / 4];
                let peak = middle.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let db = 20.0 * f64::from(peak).log10();
                assert!(db < -60.0, "{from}->{to}, {hz} Hz: {db} dB");
            }
        }
    }

    #[test]
    fn offsets_stay_and_odd_lengths_work() {
        for (from, to) in RATES {
            let resampler = Resampler::new(from, to).unwrap();
            for n in [1usize, 2, 3, 7, 41, 997] {
                let out = resampler.apply(&vec![-312.5; n], &mut Vec::new());
                assert_eq!(out.len(), (n as f64 * to / from).round() as usize, "{from} {to} {n}");
                assert!(out.iter().all(|v| (v + 312.5).abs() < 1e-3), "{from} {to} {n}");
            }
        }
        let same = Resampler::new(100.0, 100.0).unwrap();
        assert!(same.is_identity());
        assert_eq!(same.apply(&[1.0, 5.0], &mut Vec::new()), [1.0, 5.0]);
        for (from, to) in
            [(0.0, 1.0), (f64::NAN, 1.0), (1.0, -1.0), (1e9, 1.0), (f64::INFINITY, 1.0)]
        {
            assert!(Resampler::new(from, to).is_err());
        }
    }
}
