//! Noise of a given power spectrum: independent Gaussian Fourier coefficients, shaped and
//! transformed back (Timmer & König 1995).

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner};

use crate::data::rng::Rng;

/// Draws stretches of noise of one length and sample rate.
pub(super) struct Noise {
    inverse: Arc<dyn ComplexToReal<f32>>,
    rate: f64,
    spectrum: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
}

impl Noise {
    /// For stretches of at least `n` samples at `rate` Hz.
    pub(super) fn new(n: usize, rate: f64) -> Self {
        let length = smooth_length(n);
        let inverse = RealFftPlanner::new().plan_fft_inverse(length);
        let (spectrum, scratch) = (inverse.make_input_vec(), inverse.make_scratch_vec());
        Self { inverse, rate, spectrum, scratch }
    }

    /// Length of a stretch: `n` of [`Noise::new`], or slightly more so that it factorises.
    pub(super) fn len(&self) -> usize {
        self.inverse.len()
    }

    /// Amplitude densities at the frequencies of a stretch, for [`Noise::draw`].
    /// `density(f)` is the one-sided power spectral density at `f` Hz, in unit² per Hz.
    pub(super) fn shape(&self, density: impl Fn(f64) -> f64) -> Vec<f32> {
        let n = self.len() as f64;
        let corner = 0.45 * self.rate;
        (0..self.spectrum.len())
            .map(|k| {
                let f = k as f64 * self.rate / n;
                // The recording amplifier's anti-aliasing filter.
                let rolloff = 1.0 / (1.0 + (f / corner).powi(20));
                (density(f) * rolloff * self.rate / (4.0 * n)).sqrt() as f32
            })
            .collect()
    }

    /// Fills `out` (`len()` samples) with noise of `shape`; the mean is 0. A frequency of no
    /// power draws no random numbers.
    pub(super) fn draw(&mut self, shape: &[f32], rng: &mut Rng, out: &mut [f32]) {
        let (first, last) = (0, self.spectrum.len() - 1);
        for (k, (bin, &amplitude)) in self.spectrum.iter_mut().zip(shape).enumerate() {
            // The mean and the Nyquist frequency have no phase; a recording needs neither.
            let is_empty = amplitude < 1e-9 || k == first || k == last;
            *bin = if is_empty { Complex::default() } else { gaussian(rng) * amplitude };
        }
        let done = self.inverse.process_with_scratch(&mut self.spectrum, out, &mut self.scratch);
        debug_assert!(done.is_ok(), "lengths come from the plan itself");
    }
}

/// Complex normal number, each part of variance 1: both halves of Box and Muller's pair.
fn gaussian(rng: &mut Rng) -> Complex<f32> {
    let (a, b) = (rng.next_u32(), rng.next_u32());
    let uniform = (f64::from(a) + 1.0) / 4_294_967_296.0;
    let radius = (-2.0 * uniform.ln()).sqrt() as f32;
    let angle = b as f32 * (std::f32::consts::TAU / 4_294_967_296.0);
    let (sine, cosine) = angle.sin_cos();
    Complex::new(radius * cosine, radius * sine)
}

/// The least even number from `n` on with no prime factor above 5.
fn smooth_length(n: usize) -> usize {
    let is_smooth = |mut m: usize| {
        for p in [2, 3, 5] {
            while m.is_multiple_of(p) {
                m /= p;
            }
        }
        m == 1
    };
    (n.max(2)..).find(|&m| m % 2 == 0 && is_smooth(m)).unwrap_or(n)
}

#[cfg(test)]
mod tests {
    use super::{Noise, smooth_length};
    use crate::data::rng::Rng;

    #[test]
    fn variance_is_the_integral_of_the_density() {
        let mut noise = Noise::new(5987, 125.0);
        assert_eq!((noise.len(), smooth_length(7)), (6000, 8));
        // 3 unit²/Hz from 5 to 15 Hz: variance 30.
        let shape = noise.shape(|f| if (5.0..15.0).contains(&f) { 3.0 } else { 0.0 });
        let (mut rng, mut out) = (Rng::new(5, 9), vec![0.0; 6000]);
        let mut power = 0.0;
        for _ in 0..40 {
            noise.draw(&shape, &mut rng, &mut out);
            power += out.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 6000.0 / 40.0;
        }
        assert!((power - 30.0).abs() < 1.0, "{power}");
    }
}
