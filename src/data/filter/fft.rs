//! Fast application of a FIR filter: overlap-save with real transforms in f64.

use std::fmt;
use std::sync::Arc;

use realfft::num_complex::Complex64;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use super::{Fir, pad_reflected};

/// A [`Fir`] made ready to run: its spectrum and its transforms. Shared by threads.
#[derive(Clone)]
pub struct Filter {
    half: usize,
    spectrum: Arc<[Complex64]>,
    forward: Arc<dyn RealToComplex<f64>>,
    inverse: Arc<dyn ComplexToReal<f64>>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({} taps, transforms of {})", 2 * self.half + 1, self.forward.len())
    }
}

/// Buffers that [`Filter::apply`] uses; one per thread, kept from channel to channel.
#[derive(Debug, Default)]
pub struct Workspace {
    padded: Vec<f64>,
    block: Vec<f64>,
    bins: Vec<Complex64>,
    scratch: Vec<Complex64>,
}

impl Filter {
    /// Plans the transforms. Blocks are four filter lengths long, where overlap-save costs the
    /// fewest operations a sample to within a few percent.
    pub fn new(fir: &Fir) -> Self {
        let taps = fir.taps();
        let length = (4 * taps.len()).next_power_of_two().max(1024);
        let mut planner = RealFftPlanner::new();
        let (forward, inverse) =
            (planner.plan_fft_forward(length), planner.plan_fft_inverse(length));
        let mut block = vec![0.0; length];
        // The inverse transform is unnormalised: the filter carries the factor.
        block.iter_mut().zip(taps).for_each(|(b, h)| *b = h / length as f64);
        let mut spectrum = forward.make_output_vec();
        // Lengths are the plan's own, so the transform cannot refuse them.
        let done = forward.process(&mut block, &mut spectrum);
        debug_assert!(done.is_ok());
        Self { half: taps.len() / 2, spectrum: spectrum.into(), forward, inverse }
    }

    /// Number of coefficients of the filter.
    pub fn taps(&self) -> usize {
        2 * self.half + 1
    }

    /// Filters `samples` in place with zero phase. Beyond both ends the samples are continued by
    /// odd reflection, repeatedly where they are fewer than the filter's half length.
    pub fn apply(&self, samples: &mut [f32], workspace: &mut Workspace) {
        let Workspace { padded, block, bins, scratch } = workspace;
        pad_reflected(samples, self.half, padded);
        let length = self.forward.len();
        block.resize(length, 0.0);
        bins.resize(self.spectrum.len(), Complex64::default());
        let scratch_len = self.forward.get_scratch_len().max(self.inverse.get_scratch_len());
        scratch.resize(scratch_len, Complex64::default());
        let fresh = length - 2 * self.half;
        for (out, start) in samples.chunks_mut(fresh).zip((0..).step_by(fresh)) {
            let from = &padded[start..padded.len().min(start + length)];
            block[..from.len()].copy_from_slice(from);
            block[from.len()..].fill(0.0);
            let done = self.forward.process_with_scratch(block, bins, scratch);
            debug_assert!(done.is_ok());
            bins.iter_mut().zip(self.spectrum.iter()).for_each(|(x, h)| *x *= h);
            // Both are real by theory; rounding may leave an imaginary part that realfft refuses.
            if let Some(first) = bins.first_mut() {
                first.im = 0.0;
            }
            if let Some(last) = bins.last_mut() {
                last.im = 0.0;
            }
            let done = self.inverse.process_with_scratch(bins, block, scratch);
            debug_assert!(done.is_ok());
            for (y, &x) in out.iter_mut().zip(&block[2 * self.half..]) {
                *y = x as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Filter, Fir, Workspace};
    use crate::data::filter::{harmonics, reflected};
    use crate::data::rng::Rng;

    fn direct(fir: &Fir, samples: &[f32]) -> Vec<f64> {
        let half = (fir.taps().len() / 2) as isize;
        (0..samples.len() as isize)
            .map(|i| {
                let taps = fir.taps().iter().zip(-half..);
                taps.map(|(h, k)| h * reflected(samples, i + k)).sum()
            })
            .collect()
    }

    #[test]
    fn equals_the_convolution_sum_for_odd_lengths() {
        let mut rng = Rng::new(11, 0);
        let mut workspace = Workspace::default();
        let band = Fir::band(100.0, Some(1.3), Some(31.0)).unwrap();
        let notch = Fir::notch(130.0, &harmonics(50.0, 130.0)).unwrap();
        for fir in [band, notch] {
            let filter = Filter::new(&fir);
            for n in [1, 2, 3, 17, 86, 1021, 1024, 5003] {
                let mut x: Vec<f32> =
                    (0..n).map(|_| (900.0 + 40.0 * rng.normal()) as f32).collect();
                let expected = direct(&fir, &x);
                filter.apply(&mut x, &mut workspace);
                for (got, want) in x.iter().zip(&expected) {
                    assert!((f64::from(*got) - want).abs() < 1e-3, "{n}: {got} {want}");
                }
            }
        }
    }

    proptest::proptest! {
        /// Zero phase: time has no direction. Filtering what is reversed reverses what is filtered.
        #[test]
        fn reversal_commutes_with_filtering(n in 1usize..3000, seed: u64, low in 0.2f64..8.0) {
            let mut rng = Rng::new(seed, 4);
            let filter = Filter::new(&Fir::band(128.0, Some(low), Some(low + 20.0)).unwrap());
            let mut x: Vec<f32> = (0..n).map(|_| (30.0 + 9.0 * rng.normal()) as f32).collect();
            let mut back: Vec<f32> = x.iter().rev().copied().collect();
            filter.apply(&mut x, &mut Workspace::default());
            filter.apply(&mut back, &mut Workspace::default());
            for (a, b) in x.iter().zip(back.iter().rev()) {
                proptest::prop_assert!((a - b).abs() < 1e-3, "{a} {b}");
            }
        }
    }

    /// `mne.filter.filter_data(x, 500, l, 50, pad="reflect_limited")`, MNE-Python 1.13.2, ends
    /// included.
    #[test]
    fn samples_equal_those_of_mne() {
        let signal: Vec<f64> = (0..3001)
            .map(|i| {
                let t = std::f64::consts::TAU * f64::from(i) / 500.0;
                50.0 * (10.0 * t).sin()
                    + 20.0 * (60.0 * t + 0.3).sin()
                    + 0.01 * f64::from(i)
                    + f64::from(i * 7919 % 1013) / 50.0
            })
            .collect();
        let cases: [(f64, &[(usize, f64)]); 2] = [
            (
                0.5,
                &[(1000, -1.06916743), (1500, -1.12697035), (1700, 0.93338896), (2000, 1.41172385)],
            ),
            (
                2.0,
                &[
                    (0, 0.0),
                    (1, 6.61820763),
                    (100, 2.02520915),
                    (1000, -0.892823105),
                    (1500, -1.10017939),
                    (2999, -9.06301659),
                    (3000, 0.0),
                ],
            ),
        ];
        for (low, expected) in cases {
            let mut x: Vec<f32> = signal.iter().map(|&v| v as f32).collect();
            let filter = Filter::new(&Fir::band(500.0, Some(low), Some(50.0)).unwrap());
            filter.apply(&mut x, &mut Workspace::default());
            for &(i, want) in expected {
                assert!((f64::from(x[i]) - want).abs() < 2e-5, "{low} {i}: {} {want}", x[i]);
            }
        }
    }

    /// Measured on sinusoids: the gain, the phase, and what becomes of an offset.
    #[test]
    fn sinusoids_keep_their_phase_and_offsets_vanish() {
        let (rate, n) = (500.0, 14_973usize);
        let fir = Fir::band(rate, Some(1.0), Some(40.0)).unwrap();
        let filter = Filter::new(&fir);
        for hz in [0.25, 0.9, 3.3, 10.0, 39.0, 46.0, 60.0] {
            let wave = |i: usize| (std::f64::consts::TAU * hz * i as f64 / rate + 0.7).sin();
            let mut x: Vec<f32> = (0..n).map(|i| (100.0 * wave(i) + 4000.0) as f32).collect();
            filter.apply(&mut x, &mut Workspace::default());
            let (mut sine, mut cosine, mut mean) = (0.0, 0.0, 0.0);
            // 20 s, a whole number of periods of each tone, away from the ends.
            let span = 2500..12_500;
            for i in span.clone() {
                let phase = std::f64::consts::TAU * hz * i as f64 / rate + 0.7;
                sine += f64::from(x[i]) * phase.sin() * 2.0 / span.len() as f64;
                cosine += f64::from(x[i]) * phase.cos() * 2.0 / span.len() as f64;
                mean += f64::from(x[i]) / span.len() as f64;
            }
            assert!((sine / 100.0 - fir.gain(hz)).abs() < 5e-4, "{hz} Hz: gain {sine}");
            assert!(cosine.abs() < 0.02, "{hz} Hz: quadrature {cosine}");
            assert!(mean.abs() < 0.002, "{hz} Hz: offset {mean}");
        }
    }
}
