//! The physiology, measured on the recordings by plain Fourier sums.

use std::f64::consts::TAU;
use std::sync::atomic::AtomicBool;

use super::artifacts::Fault;
use super::{Generated, Settings, Sex, Subject};

fn settings(age_range: [f64; 2], seed: u64) -> Settings {
    Settings { n_channels: 19, seconds_per_condition: 40, age_range, seed, ..Settings::default() }
}

fn recording(settings: &Settings, index: usize) -> (Subject, Generated) {
    let subject = Subject::new(settings, index);
    let made = Generated::new(settings, index, &subject, &AtomicBool::new(false));
    (subject, made.unwrap().unwrap())
}

/// A channel's samples under one condition, the first second of each block left out.
fn under(made: &Generated, name: &str, eyes_closed: bool, rate: usize) -> Vec<Vec<f64>> {
    let channel = made.names.iter().position(|n| n == name).unwrap();
    let row = &made.scalp.samples[channel * made.scalp.time..][..made.scalp.time];
    made.blocks
        .iter()
        .filter(|block| block.eyes_closed == eyes_closed)
        .map(|b| row[b.start + rate..b.start + b.samples].iter().map(|&x| x.into()).collect())
        .collect()
}

/// Welch's estimate at the frequencies given, unit²/Hz: Hann windows of 2 s, half overlapping.
fn welch(stretches: &[Vec<f64>], rate: usize, frequencies: &[f64]) -> Vec<f64> {
    let n = 2 * rate;
    let hann: Vec<f64> = (0..n).map(|t| (TAU * t as f64 / n as f64 / 2.0).sin().powi(2)).collect();
    let norm = rate as f64 * hann.iter().map(|w| w * w).sum::<f64>() / 2.0;
    let windows: Vec<&[f64]> = stretches.iter().flat_map(|s| s.windows(n).step_by(rate)).collect();
    let power = |f: &f64| {
        let of_window = |window: &&[f64]| {
            let (mut re, mut im) = (0.0, 0.0);
            for (t, x) in window.iter().enumerate() {
                let (s, c) = (TAU * f * t as f64 / rate as f64).sin_cos();
                (re, im) = (re + hann[t] * x * c, im + hann[t] * x * s);
            }
            (re * re + im * im) / norm
        };
        windows.iter().map(of_window).sum::<f64>() / windows.len() as f64
    };
    frequencies.iter().map(power).collect()
}

/// Channels without a fault among `names`.
fn good<'a>(made: &Generated, names: &[&'a str]) -> Vec<&'a str> {
    let is_good = |name: &&str| {
        let channel = made.names.iter().position(|n| n == name).unwrap();
        made.faults[channel].is_none()
    };
    names.iter().copied().filter(is_good).collect()
}

/// Spectrum averaged over the good ones among `names`.
fn spectrum(made: &Generated, names: &[&str], closed: bool, frequencies: &[f64]) -> Vec<f64> {
    let names = good(made, names);
    let mut mean = vec![0.0; frequencies.len()];
    for name in &names {
        let one = welch(&under(made, name, closed, 100), 100, frequencies);
        mean.iter_mut().zip(one).for_each(|(m, p)| *m += p / names.len() as f64);
    }
    mean
}

/// Slope of y over x by least squares.
fn slope(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len() as f64;
    let (mx, my) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
    let covariance: f64 = x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum();
    covariance / x.iter().map(|x| (x - mx).powi(2)).sum::<f64>()
}

fn correlation(x: &[f64], y: &[f64]) -> f64 {
    slope(x, y).abs().sqrt() * slope(y, x).abs().sqrt() * slope(x, y).signum()
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

const POSTERIOR: [&str; 4] = ["O1", "O2", "P3", "P4"];

/// Measured alpha peak, exponent and closed-to-open alpha power of a group of subjects.
fn measure(age_range: [f64; 2], n: usize, seed: u64) -> Vec<(Subject, f64, f64, f64)> {
    let settings = settings(age_range, seed);
    let band: Vec<f64> = (0..=40).map(|i| 5.5 + 0.2 * f64::from(i)).collect();
    // Off the rhythms and under the anti-aliasing filter's edge.
    let flanks: Vec<f64> = [2.0, 2.5, 3.0, 3.5, 4.0, 30.0, 32.0, 34.0, 36.0, 38.0].to_vec();
    (0..n)
        .map(|i| {
            let (subject, made) = recording(&settings, i);
            let closed = spectrum(&made, &POSTERIOR, true, &band);
            let open = spectrum(&made, &POSTERIOR, false, &band);
            // Centre of gravity around the maximum.
            let top = (0..band.len()).max_by(|&a, &b| closed[a].total_cmp(&closed[b])).unwrap();
            let near = top.saturating_sub(8)..(top + 9).min(band.len());
            let weight: f64 = closed[near.clone()].iter().sum();
            let peak = near.map(|k| band[k] * closed[k]).sum::<f64>() / weight;
            let quiet = spectrum(&made, &["P3", "P4", "Pz", "C4", "C3"], true, &flanks);
            let logs = |v: &[f64]| v.iter().map(|x| x.ln()).collect::<Vec<_>>();
            let exponent = -slope(&logs(&flanks), &logs(&quiet));
            let ratio = closed[top] / open[top];
            (subject, peak, exponent, ratio)
        })
        .collect()
}

#[test]
fn rhythms_and_background_age_as_documented() {
    let (young, old) = (measure([5.0, 6.5], 16, 21), measure([19.0, 22.0], 16, 22));
    let group = |g: &[(Subject, f64, f64, f64)], pick: fn(&(Subject, f64, f64, f64)) -> f64| {
        g.iter().map(pick).collect::<Vec<_>>()
    };
    // Expected from the formulas: 8.5 and 10.0 Hz; exponents 1.88 and 1.43.
    let (peak_young, peak_old) = (mean(&group(&young, |s| s.1)), mean(&group(&old, |s| s.1)));
    assert!((0.7..2.3).contains(&(peak_old - peak_young)), "{peak_young} {peak_old}");
    let (steep, flat) = (mean(&group(&young, |s| s.2)), mean(&group(&old, |s| s.2)));
    assert!((0.25..0.65).contains(&(steep - flat)), "{steep} {flat}");
    assert!((1.6..2.1).contains(&steep) && (1.15..1.65).contains(&flat), "{steep} {flat}");
    // Each subject's own parameters are found again.
    let all: Vec<_> = young.into_iter().chain(old).collect();
    let peaks = correlation(&group(&all, |s| s.1), &group(&all, |s| s.0.alpha_peak_hz));
    let exponents = correlation(&group(&all, |s| s.2), &group(&all, |s| s.0.exponent));
    assert!(peaks > 0.9 && exponents > 0.8, "{peaks} {exponents}");
    // Closing the eyes raises alpha in everyone, two- to tenfold in power.
    let ratios = group(&all, |s| s.3);
    assert!(ratios.iter().all(|&r| r > 1.2), "{ratios:?}");
    assert!((2.0..10.0).contains(&mean(&ratios)), "{}", mean(&ratios));
}

#[test]
fn the_label_frame_is_as_documented() {
    let settings = Settings { seed: 5, ..Settings::default() };
    let subjects: Vec<Subject> = (0..4000).map(|i| Subject::new(&settings, i)).collect();
    let ages: Vec<f64> = subjects.iter().map(|s| s.age).collect();
    assert!(ages.iter().all(|a| (5.0..=22.0).contains(a)));
    assert!((mean(&ages) - (5.0 + 17.0 / 2.8)).abs() < 0.3, "{}", mean(&ages));
    let female: Vec<f64> =
        subjects.iter().map(|s| f64::from(u8::from(s.sex == Sex::Female))).collect();
    assert!((mean(&female) - 0.36).abs() < 0.03, "{}", mean(&female));
    let beta: Vec<f64> = subjects.iter().map(|s| s.beta_uv.ln()).collect();
    assert!((slope(&female, &beta) - 1.15f64.ln()).abs() < 0.03);
    let off: Vec<f64> =
        subjects.iter().map(|s| s.alpha_peak_hz - (10.1 - 4.2 * (-s.age / 5.5).exp())).collect();
    let sd = (off.iter().map(|x| x * x).sum::<f64>() / 4000.0).sqrt();
    assert!((sd - 0.8).abs() < 0.05 && mean(&off).abs() < 0.05, "{sd}");
    // Handedness and age say nothing about each other; one in twenty is missing.
    let known: Vec<&Subject> = subjects.iter().filter(|s| s.ehq_total.is_some()).collect();
    assert!((3700..3900).contains(&known.len()), "{}", known.len());
}

#[test]
fn blinks_are_frontal_and_bad_channels_marked() {
    let settings = Settings { seconds_per_condition: 30, seed: 9, ..Settings::default() };
    let (mut bad, mut channels, mut ratios) = (0, 0, Vec::new());
    for i in 0..12 {
        let (subject, made) = recording(&settings, i);
        let peak = |name: &str| {
            let rows = under(&made, name, false, 100);
            let all: Vec<f64> = rows.concat();
            // Against the slow drift of the electrode.
            let deviation = |w: &[f64]| w[50] - (w[0] + w[100]) / 2.0;
            all.windows(101).map(deviation).fold(f64::MIN, f64::max)
        };
        // Fp1 and O1 of the geodesic net.
        if good(&made, &["E22", "E70"]).len() == 2 && subject.blinks_per_minute > 8.0 {
            let (front, back) = (peak("E22"), peak("E70"));
            assert!((80.0..450.0).contains(&front), "{front}");
            ratios.push(front / back);
        }
        bad += made.faults.iter().flatten().count();
        channels += made.faults.len();
        assert_eq!(made.faults[128], None, "the reference is never marked");
        let rms = |c: usize| {
            let row = &made.scalp.samples[c * made.scalp.time..][..made.scalp.time];
            (row.iter().map(|x| f64::from(x * x)).sum::<f64>() / row.len() as f64).sqrt()
        };
        assert_eq!(rms(128), 0.0, "the reference is flat");
        for (channel, fault) in made.faults.iter().enumerate().take(128) {
            let is_plausible = match fault {
                None => (2.0..200.0).contains(&rms(channel)),
                Some(Fault::Noisy) => rms(channel) > 30.0,
                Some(Fault::Dead) => rms(channel) < 3.0,
            };
            assert!(is_plausible, "{i} {channel} {fault:?}: {} µV", rms(channel));
        }
        assert!(made.scalp.samples.iter().all(|x| x.abs() < 8000.0), "within the file's range");
    }
    // Slow waves of a child are large everywhere, so not for each subject.
    assert!(ratios.len() > 6 && mean(&ratios) > 1.8, "{ratios:?}");
    let share = f64::from(bad as u32) / f64::from(channels as u32);
    assert!((0.01..0.03).contains(&share), "{share}");
}

#[test]
fn mains_is_there_where_the_sample_rate_can_hold_it() {
    let base = Settings { sample_rate: 250, n_channels: 19, seed: 3, ..Settings::default() };
    let ratios: Vec<f64> = (0..8)
        .map(|i| {
            let (_, made) = recording(&base, i);
            let power = welch(&under(&made, "Pz", false, 250), 250, &[57.0, 60.0, 63.0]);
            power[1] / (power[0] + power[2])
        })
        .collect();
    assert!(ratios.iter().all(|&r| r > 1.0) && mean(&ratios) > 5.0, "{ratios:?}");
    assert!(!super::artifacts::has_mains(100.0) && !super::artifacts::has_mains(120.0));
}
