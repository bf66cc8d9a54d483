//! What the brain adds: a 1/f background, bursts of posterior alpha, frontocentral beta.
//!
//! Each is a set of dipoles at places of the subject's own, so that subjects differ in topography
//! as real ones do; courses are drawn in the frequency domain, eight at a time, and mixed.

use std::sync::atomic::{AtomicBool, Ordering};

use super::cap::{Cap, LANES, Scalp};
use super::head::{Head, unit};
use super::spectrum::Noise;
use super::subject::Subject;
use crate::data::rng::Rng;

/// Dipoles of the background, alpha and beta: multiples of [`LANES`].
const BACKGROUND: usize = 200;
const ALPHA: usize = 24;
const BETA: usize = 16;

/// Width (SD) of the alpha and beta peaks, Hz.
const ALPHA_WIDTH: f64 = 0.7;
const BETA_WIDTH: f64 = 3.0;

/// Below this the background stops rising, Hz.
const KNEE: f64 = 0.5;

/// Adds the subject's brain to `scalp`. `closed` is 1 where the eyes are closed, 0 where open,
/// `[time]`. `false` where cancelled.
pub(super) fn add(
    subject: &Subject,
    cap: &Cap,
    closed: &[f32],
    noise: &mut Noise,
    rngs: (&mut Rng, &mut Rng),
    cancel: &AtomicBool,
    scalp: &mut Scalp,
) -> bool {
    let (anatomy, rng) = rngs;
    let head = Head::new();
    let everywhere = |_: [f64; 3]| true;
    let posterior = |e: [f64; 3]| e[1] < -0.4 && e[2] > -0.4;

    let exponent = subject.exponent;
    let background = noise.shape(|f| {
        (10f64.powf(exponent) / (f.powf(exponent) + KNEE.powf(exponent))).min(1e6)
            * subject.background_uv.powi(2)
    });
    let gains = topographies(&head, cap, background_dipoles(anatomy), everywhere, 1.0);
    let mixer = &mut Mixer { noise, rng, cancel, scalp };
    if !mixer.run(&gains, &background, |_, _| ()) {
        return false;
    }

    let beta = mixer.noise.shape(|f| peak(f, subject.beta_peak_hz, BETA_WIDTH));
    let dipoles = rhythm_dipoles::<BETA>(anatomy, (20.0, 60.0), (20.0, 160.0));
    let gains = topographies(&head, cap, dipoles, everywhere, subject.beta_uv);
    if !mixer.run(&gains, &beta, |_, _| ()) {
        return false;
    }

    let alpha = mixer.noise.shape(|f| peak(f, subject.alpha_peak_hz, ALPHA_WIDTH));
    let envelope = alpha_envelope(subject, closed, mixer.noise, mixer.rng);
    let mut common = vec![0.0; mixer.noise.len()];
    mixer.noise.draw(&alpha, mixer.rng, &mut common);
    let dipoles = rhythm_dipoles::<ALPHA>(anatomy, (50.0, 95.0), (-150.0, -30.0));
    let gains = topographies(&head, cap, dipoles, posterior, subject.alpha_uv);
    // Half of the power is shared by all sources: alpha is coherent over the back of the head.
    mixer.run(&gains, &alpha, |t, x| {
        *x = std::f32::consts::FRAC_1_SQRT_2 * (*x + common[t]) * envelope.get(t).unwrap_or(&0.0);
    })
}

/// Gaussian peak of unit variance, unit²/Hz.
fn peak(f: f64, centre: f64, width: f64) -> f64 {
    (-((f - centre) / width).powi(2) / 2.0).exp() / (width * std::f64::consts::TAU.sqrt())
}

struct Mixer<'a> {
    noise: &'a mut Noise,
    rng: &'a mut Rng,
    cancel: &'a AtomicBool,
    scalp: &'a mut Scalp,
}

impl Mixer<'_> {
    /// Draws a course of `shape` for every source of `gains` (`[sources / LANES][channels]`),
    /// lets `modulate(t, &mut x)` change it, and mixes. `false` where cancelled.
    fn run(
        &mut self,
        gains: &[Vec<[f32; LANES]>],
        shape: &[f32],
        modulate: impl Fn(usize, &mut f32),
    ) -> bool {
        let mut courses: [Vec<f32>; LANES] = std::array::from_fn(|_| vec![0.0; self.noise.len()]);
        for gains in gains {
            if self.cancel.load(Ordering::Relaxed) {
                return false;
            }
            for course in &mut courses {
                self.noise.draw(shape, self.rng, course);
                course.iter_mut().enumerate().for_each(|(t, x)| modulate(t, x));
            }
            self.scalp.mix(gains, &courses);
        }
        true
    }
}

/// A dipole: place, and moment.
type Dipole = ([f64; 3], [f64; 3]);

/// Lead fields of `dipoles`, `[sources / LANES][channels]`, scaled so that together, with courses
/// of unit variance, they give `rms` over the electrodes `measured` picks.
fn topographies(
    head: &Head,
    cap: &Cap,
    dipoles: Vec<Dipole>,
    measured: impl Fn([f64; 3]) -> bool,
    rms: f64,
) -> Vec<Vec<[f32; LANES]>> {
    let fields: Vec<Vec<f32>> = dipoles
        .iter()
        .map(|&(place, moment)| cap.topography(|e| head.potential(place, moment, e)))
        .collect();
    let (mut power, mut count) = (0.0, 0.0);
    for (channel, _) in cap.electrodes.iter().enumerate().filter(|&(_, &e)| measured(e)) {
        power += fields.iter().map(|f| f64::from(f[channel]).powi(2)).sum::<f64>();
        count += 1.0;
    }
    let scale = if power > 0.0 { (rms / (power / count).sqrt()) as f32 } else { 0.0 };
    let channels = 0..cap.electrodes.len();
    let lanes = |sources: &[Vec<f32>]| {
        channels.clone().map(|c| std::array::from_fn(|s| scale * sources[s][c])).collect()
    };
    fields.chunks_exact(LANES).map(lanes).collect()
}

/// Spread over the brain above the ears' level by the golden angle, turned at random.
fn background_dipoles(rng: &mut Rng) -> Vec<Dipole> {
    let golden = std::f64::consts::PI * (3.0 - 5f64.sqrt());
    let turn = rng.range(0.0, std::f64::consts::TAU);
    (0..BACKGROUND)
        .map(|i| {
            let z = 1.0 - 1.45 * (i as f64 + rng.uniform()) / BACKGROUND as f64;
            let azimuth = turn + golden * i as f64;
            let flat = (1.0 - z * z).sqrt();
            dipole([flat * azimuth.cos(), flat * azimuth.sin(), z], 0.5, rng)
        })
        .collect()
}

/// `N` dipoles within ranges of inclination from the vertex and azimuth from the right, degrees.
fn rhythm_dipoles<const N: usize>(
    rng: &mut Rng,
    inclination: (f64, f64),
    azimuth: (f64, f64),
) -> Vec<Dipole> {
    (0..N)
        .map(|_| {
            let i = rng.range(inclination.0, inclination.1).to_radians();
            let a = rng.range(azimuth.0, azimuth.1).to_radians();
            dipole([i.sin() * a.cos(), i.sin() * a.sin(), i.cos()], 0.3, rng)
        })
        .collect()
}

/// Somewhere in the cortex below `direction`, mostly pointing outwards; strengths differ by
/// `spread` (SD of the logarithm).
fn dipole(direction: [f64; 3], spread: f64, rng: &mut Rng) -> Dipole {
    let depth = rng.range(0.6, 0.82);
    let tilted = direction.map(|x| x + 0.5 * rng.normal());
    let strength = (spread * rng.normal()).exp();
    (direction.map(|x| depth * x), unit(tilted).map(|x| strength * x))
}

/// Amplitude of alpha over time, `[time]`: bursts of about a second, weaker with open eyes; its
/// mean square with closed eyes is 1.
fn alpha_envelope(subject: &Subject, closed: &[f32], noise: &mut Noise, rng: &mut Rng) -> Vec<f32> {
    let slow = noise.shape(|f| if f < 0.6 { 1.0 / 0.6 } else { 0.0 });
    let mut course = vec![0.0; noise.len()];
    noise.draw(&slow, rng, &mut course);
    let mut burst: Vec<f32> =
        course[..closed.len()].iter().map(|&x| 0.2 + 0.8 / (1.0 + (-3.0 * x).exp())).collect();
    let power = burst.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / burst.len() as f64;
    let open = subject.alpha_reactivity as f32;
    for (b, &shut) in burst.iter_mut().zip(closed) {
        *b *= (open + (1.0 - open) * shut) / power.sqrt() as f32;
    }
    burst
}
