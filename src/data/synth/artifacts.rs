//! What is not brain: blinks, muscle, heart, drift, mains, and electrodes that are bad.

use std::f64::consts::{FRAC_PI_2, PI, TAU};

use super::cap::{Cap, Scalp, angle};
use super::head::{dot, unit};
use super::spectrum::Noise;
use super::subject::Subject;
use crate::data::rng::Rng;

/// Mains frequency, Hz.
pub(super) const MAINS_HZ: f64 = 60.0;

/// Why a channel is bad, as channels.tsv words it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A dry electrode: large noise and drift over a weakened signal.
    Noisy,
    /// A broken lead: next to nothing arrives.
    Dead,
}

impl Fault {
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Noisy => "noisy: high impedance",
            Self::Dead => "flat: no contact",
        }
    }
}

/// The fault of each channel; one in fifty has one, the reference never.
pub(super) fn faults(cap: &Cap, rng: &mut Rng) -> Vec<Option<Fault>> {
    (0..cap.electrodes.len())
        .map(|channel| {
            let (is_bad, is_noisy) = (rng.uniform() < 0.02, rng.uniform() < 0.6);
            (is_bad && Some(channel) != cap.flat).then_some(if is_noisy {
                Fault::Noisy
            } else {
                Fault::Dead
            })
        })
        .collect()
}

/// Adds blinks, muscle bursts and the heart. `closed` is 1 where the eyes are closed, `[time]`.
pub(super) fn add_body(
    subject: &Subject,
    cap: &Cap,
    closed: &[f32],
    rate: f64,
    rng: &mut Rng,
    scalp: &mut Scalp,
) {
    add_blinks(subject, cap, closed, rate, rng, scalp);
    add_muscle(subject, cap, rate, rng, scalp);
    add_heart(subject, cap, rate, rng, scalp);
}

/// Lids sliding over the eyes' standing potential: positive on the forehead, negative below the
/// eyes. 100 to 300 µV at Fp1 and Fp2, 0.3 s.
fn add_blinks(
    subject: &Subject,
    cap: &Cap,
    closed: &[f32],
    rate: f64,
    rng: &mut Rng,
    scalp: &mut Scalp,
) {
    let at_fp1 = lids([-0.309, 0.951, 0.0]);
    let topography = cap.topography(|e| lids(e) / at_fp1);
    let wave: Vec<f32> = (0..(0.3 * rate).ceil() as usize)
        .map(|i| {
            let t = i as f64 / rate;
            // The lid closes in 0.1 s and opens in 0.2.
            let phase = if t < 0.1 { t / 0.1 } else { 1.0 - (t - 0.1) / 0.2 };
            (phase.max(0.0) * FRAC_PI_2).sin().powi(2) as f32
        })
        .collect();
    for start in arrivals(subject.blinks_per_minute, scalp.time, rate, rng) {
        let size = (subject.blink_uv * (0.15 * rng.normal()).exp()).clamp(100.0, 300.0) as f32;
        // Closed lids flutter, seldom.
        let is_kept = rng.uniform() < if closed[start] > 0.5 { 0.1 } else { 1.0 };
        if is_kept {
            let wave: Vec<f32> = wave.iter().map(|x| size * x).collect();
            scalp.add(&topography, start, &wave);
        }
    }
}

/// Potential of both eyes at a point of the scalp, up to a factor: dipoles upwards and forwards,
/// as wide as an eye.
fn lids(point: [f64; 3]) -> f64 {
    let of_eye = |x: f64| {
        let gap = [point[0] - x, point[1] - 0.87, point[2] + 0.38];
        (0.4 * gap[1] + 0.9 * gap[2]) / (dot(gap, gap) + 0.09).powf(1.5)
    };
    of_eye(-0.33) + of_eye(0.33)
}

/// Temporal and frontal muscle: bursts of high-frequency noise at a few neighbouring electrodes.
fn add_muscle(subject: &Subject, cap: &Cap, rate: f64, rng: &mut Rng, scalp: &mut Scalp) {
    for start in arrivals(subject.emg_per_minute, scalp.time, rate, rng) {
        let azimuth = if rng.uniform() < 0.7 {
            // Either temple.
            rng.range(-15.0, 30.0) + if rng.uniform() < 0.5 { 0.0 } else { 165.0 }
        } else {
            rng.range(60.0, 120.0)
        };
        let (azimuth, inclination) = (azimuth.to_radians(), rng.range(80.0, 105.0).to_radians());
        let centre = [
            inclination.sin() * azimuth.cos(),
            inclination.sin() * azimuth.sin(),
            inclination.cos(),
        ];
        let size = rng.range(8.0, 35.0);
        let spread = rng.range(12.0, 30.0).to_radians();
        let topography = cap.topography(|e| size * (-(angle(e, centre) / spread).powi(2)).exp());
        let n = (rng.range(0.3, 2.0) * rate) as usize;
        let mut before = rng.normal();
        let wave: Vec<f32> = (0..n)
            .map(|i| {
                let now = rng.normal();
                // The difference of white noise leaves its upper half.
                let x = (now - before) * std::f64::consts::FRAC_1_SQRT_2;
                before = now;
                (x * (PI * (i as f64 + 0.5) / n as f64).sin()) as f32
            })
            .collect();
        scalp.add(&topography, start, &wave);
    }
}

/// The heart's QRS and T waves, along an axis to the lower left.
fn add_heart(subject: &Subject, cap: &Cap, rate: f64, rng: &mut Rng, scalp: &mut Scalp) {
    let axis = unit([-0.6, 0.2 + 0.2 * rng.normal(), -0.7]);
    let topography = of_peak(cap.topography(|e| dot(e, axis)));
    // Amplitude, delay and width (s) of Q, R, S and T.
    let waves =
        [(-0.1, -0.035, 0.010), (1.0, 0.0, 0.012), (-0.25, 0.035, 0.012), (0.25, 0.26, 0.045)];
    let mut course = vec![0.0f32; scalp.time];
    let mut beat = rng.range(0.0, 0.8);
    while beat < scalp.time as f64 / rate {
        let first = ((beat - 0.1) * rate).max(0.0) as usize;
        let beyond = ((beat + 0.45) * rate) as usize;
        for (t, y) in course.iter_mut().enumerate().take(beyond).skip(first) {
            let since = t as f64 / rate - beat;
            let shape = |(a, delay, width)| {
                let u: f64 = (since - delay) / width;
                let a: f64 = a;
                a * (-0.5 * u * u).exp()
            };
            *y += (subject.ecg_uv * waves.map(shape).iter().sum::<f64>()) as f32;
        }
        beat += (60.0 / subject.heart_rate * (1.0 + 0.04 * rng.normal())).max(0.3);
    }
    scalp.add(&topography, 0, &course);
}

/// Turns the scalp into channels: the electrodes' gains and faults, amplifier noise, drift, mains.
/// The reference channel stays exactly 0.
pub(super) fn add_electrodes(
    subject: &Subject,
    cap: &Cap,
    faults: &[Option<Fault>],
    rate: f64,
    noise: &mut Noise,
    rng: &mut Rng,
    scalp: &mut Scalp,
) {
    // Amplifier: 0.6 µV over 60 Hz. Drift: sweat and movement of the electrode, below 0.2 Hz.
    let amplifier = noise.shape(|_| 0.006);
    let drift = noise.shape(|f| (-(f / 0.1).powi(2)).exp() / (0.05 * PI.sqrt()));
    let mut course = vec![0.0; noise.len()];
    let phase = rng.range(0.0, TAU);
    let time = scalp.time;
    for (channel, row) in scalp.samples.chunks_exact_mut(time).enumerate() {
        let gain = (0.08 * rng.normal()).exp();
        let drift_uv = 6.0 * (0.5 * rng.normal()).exp();
        let line_uv = subject.line_uv * (0.5 * rng.normal()).exp();
        let lag = phase + 0.2 * rng.normal();
        if Some(channel) == cap.flat {
            continue;
        }
        let (gain, white, slow, line) = match faults.get(channel).copied().flatten() {
            None => (gain, 1.0, drift_uv, line_uv),
            Some(Fault::Noisy) => (0.5 * gain, 80.0, 15.0 * drift_uv, 10.0 * line_uv),
            Some(Fault::Dead) => (0.01 * gain, 0.5, 0.0, 0.1 * line_uv),
        };
        let shape: Vec<f32> = (amplifier.iter().zip(&drift))
            .map(|(&a, &d)| (a * white as f32).hypot(d * slow as f32))
            .collect();
        noise.draw(&shape, rng, &mut course);
        for (y, x) in row.iter_mut().zip(&course) {
            *y = *y * gain as f32 + x;
        }
        if has_mains(rate) {
            for (t, y) in row.iter_mut().enumerate() {
                *y += (line * (TAU * MAINS_HZ * t as f64 / rate + lag).sin()) as f32;
            }
        }
    }
}

/// Whether mains passes the anti-aliasing filter of a recording at `rate` Hz.
pub(super) fn has_mains(rate: f64) -> bool {
    MAINS_HZ < rate / 2.0
}

/// Scaled so that the largest deviation is 1.
fn of_peak(topography: Vec<f32>) -> Vec<f32> {
    let peak = topography.iter().fold(0f32, |m, x| m.max(x.abs()));
    topography.into_iter().map(|x| x / peak.max(f32::MIN_POSITIVE)).collect()
}

/// Samples at which a Poisson process of `per_minute` events fires.
fn arrivals(per_minute: f64, time: usize, rate: f64, rng: &mut Rng) -> Vec<usize> {
    let mut found = Vec::new();
    let mut t = 0.0;
    loop {
        t -= (1.0 - rng.uniform()).ln() * 60.0 / per_minute;
        let sample = (t * rate) as usize;
        if sample >= time {
            return found;
        }
        found.push(sample);
    }
}
