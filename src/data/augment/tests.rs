//! Each augmentation against what defines it, on random windows of odd sizes.

use super::{Augment, Settings, Workspace};
use crate::data::rng::Rng;

const CHANNELS: usize = 13;

fn window(time: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 0);
    (0..CHANNELS * time).map(|_| (0.3 + rng.normal()) as f32).collect()
}

fn augment(time: usize, set: impl Fn(&mut Settings)) -> Augment {
    let mut settings = Settings::default();
    set(&mut settings);
    let regions: Vec<Option<u32>> =
        (0..CHANNELS as u32).map(|c| (c != 4).then_some(c % 3)).collect();
    Augment::new(settings, CHANNELS, time, 100.0, &regions).unwrap()
}

fn run(augment: &Augment, x: &[f32], step: u64) -> Vec<f32> {
    let mut out = x.to_vec();
    augment.apply(&mut out, 42, step, 7, &mut Workspace::default()).unwrap();
    out
}

/// |DFT| of a row at bin `k`, by the sum itself.
fn magnitude(row: &[f32], k: usize) -> f64 {
    let step = std::f64::consts::TAU * k as f64 / row.len() as f64;
    let (mut re, mut im) = (0.0, 0.0);
    for (i, &x) in row.iter().enumerate() {
        re += f64::from(x) * (step * i as f64).cos();
        im += f64::from(x) * (step * i as f64).sin();
    }
    re.hypot(im)
}

#[test]
fn off_by_default() {
    let x = window(61, 1);
    let none = augment(61, |_| {});
    assert!(none.is_off());
    assert_eq!(run(&none, &x, 3), x);
    assert_eq!(none.mixup(&mut x.clone(), &mut [], 1, 2).unwrap(), None);
}

#[test]
fn repeats_by_seed_step_and_window_whatever_the_workspace_held() {
    let all = augment(50, |s| {
        (s.time_shift, s.time_reversal, s.sign_flip, s.amplitude_scale) = (0.5, 0.5, 0.5, 0.5);
        (s.fourier_surrogate, s.band_stop, s.channel_shuffle) = (0.5, 0.5, 0.5);
        (s.channel_dropout, s.time_masking, s.gaussian_noise) = (0.5, 0.5, 0.5);
    });
    let x = window(50, 2);
    let mut used = Workspace::default();
    let mut distinct = std::collections::BTreeSet::new();
    for (seed, step, index) in [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 3, 0)] {
        let (mut a, mut b) = (x.clone(), x.clone());
        all.apply(&mut a, seed, step, index, &mut used).unwrap();
        all.apply(&mut b, seed, step, index, &mut Workspace::default()).unwrap();
        assert_eq!(a, b);
        distinct.insert(a.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    }
    assert_eq!(distinct.len(), 5);
    assert!(all.apply(&mut [0.0; 3], 1, 1, 1, &mut used).is_err());
}

#[test]
fn probabilities_are_kept() {
    let flip = augment(3, |s| s.sign_flip = 0.3);
    let x = window(3, 3);
    let flips = (0..4000).filter(|&step| run(&flip, &x, step) != x).count();
    assert!((1080..1320).contains(&flips), "{flips}");
}

#[test]
fn simple_ones() {
    for time in [1, 2, 61, 200] {
        let x = window(time, 4);
        let reversed = run(&augment(time, |s| s.time_reversal = 1.0), &x, 1);
        let scaled = run(&augment(time, |s| s.amplitude_scale = 1.0), &x, 1);
        let shifted = run(&augment(time, |s| s.time_shift = 1.0), &x, 1);
        let factor = scaled[0] / x[0];
        assert!((0.8..=1.25).contains(&factor));
        let rows = x.chunks(time).zip(reversed.chunks(time)).zip(shifted.chunks(time));
        let mut shifts = Vec::new();
        for ((row, back), shift) in rows {
            assert!(row.iter().eq(back.iter().rev()));
            let by = (0..time).find(|&k| (0..time).all(|i| shift[(i + k) % time] == row[i]));
            shifts.push(by.expect("a circular shift"));
        }
        assert!(shifts.iter().all(|s| *s == shifts[0]), "one shift for all channels");
        assert!(shifts[0] <= 25 || shifts[0] + 25 >= time);
        assert!(x.iter().zip(&scaled).all(|(a, b)| (a * factor - b).abs() < 1e-5));
        let flipped = run(&augment(time, |s| s.sign_flip = 1.0), &x, 1);
        assert!(x.iter().zip(&flipped).all(|(a, b)| *a == -*b));
    }
}

#[test]
fn surrogates_keep_spectra_and_relations_between_channels() {
    for time in [60, 61] {
        let mut x = window(time, 5);
        // Channel 1 is twice channel 0: so must their surrogates be.
        for i in 0..time {
            x[time + i] = 2.0 * x[i];
        }
        let y = run(&augment(time, |s| s.fourier_surrogate = 1.0), &x, 1);
        assert!(x.iter().zip(&y).filter(|(a, b)| (*a - *b).abs() > 0.01).count() > x.len() / 2);
        for (before, after) in x.chunks(time).zip(y.chunks(time)) {
            for k in 0..=time / 2 {
                assert!((magnitude(before, k) - magnitude(after, k)).abs() < 1e-3, "{time} {k}");
            }
        }
        assert!((0..time).all(|i| (y[time + i] - 2.0 * y[i]).abs() < 1e-4));
    }
}

#[test]
fn a_band_is_removed_and_the_rest_kept() {
    for time in [200, 201] {
        let x = window(time, 6);
        for step in 0..20 {
            let y = run(&augment(time, |s| s.band_stop = 1.0), &x, step);
            let gone: Vec<usize> =
                (0..=time / 2).filter(|&k| magnitude(&y[..time], k) < 1e-3).collect();
            assert!((9..=11).contains(&gone.len()), "{gone:?}");
            assert!(gone.windows(2).all(|pair| pair[1] == pair[0] + 1), "{gone:?}");
            for k in (0..=time / 2).filter(|k| !gone.contains(k)) {
                let change = magnitude(&y[..time], k) - magnitude(&x[..time], k);
                assert!(change.abs() < 1e-3);
            }
        }
    }
}

#[test]
fn shuffling_stays_within_regions() {
    let time = 9;
    let x = window(time, 7);
    let shuffle = augment(time, |s| s.channel_shuffle = 1.0);
    let mut moved = 0;
    for step in 0..50 {
        let y = run(&shuffle, &x, step);
        let mut from = Vec::new();
        for (c, row) in y.chunks(time).enumerate() {
            let origin = x.chunks(time).position(|r| r == row).expect("a whole channel");
            assert!(origin % 3 == c % 3 && (c == 4) == (origin == 4), "{origin} -> {c}");
            moved += usize::from(origin != c);
            from.push(origin);
        }
        from.sort_unstable();
        assert_eq!(from, (0..CHANNELS).collect::<Vec<_>>());
    }
    assert!(moved > 300, "{moved}");
    let no_regions = Settings { channel_shuffle: 0.5, ..Settings::default() };
    assert!(Augment::new(no_regions, 4, 9, 100.0, &[]).is_err());
}

#[test]
fn dropout_masking_and_noise() {
    let time = 200;
    let x = window(time, 8);
    let dropout = augment(time, |s| s.channel_dropout = 1.0);
    let mask = augment(time, |s| s.time_masking = 1.0);
    let noise = augment(time, |s| s.gaussian_noise = 1.0);
    let (mut dropped, mut square) = (0, 0.0);
    for step in 0..200 {
        let y = run(&dropout, &x, step);
        for (before, after) in x.chunks(time).zip(y.chunks(time)) {
            let zero = after.iter().all(|v| *v == 0.0);
            assert!(zero || before == after);
            dropped += usize::from(zero);
        }
        let y = run(&mask, &x, step);
        for row in y.chunks(time) {
            let first = row.iter().position(|v| *v == 0.0).unwrap();
            assert!(row[first..first + 50].iter().all(|v| *v == 0.0));
            assert_eq!(row.iter().filter(|v| **v == 0.0).count(), 50);
        }
        let y = run(&noise, &x, step);
        square += x.iter().zip(&y).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    }
    assert!((dropped as f64 / (200 * CHANNELS) as f64 - 0.2).abs() < 0.03, "{dropped}");
    let std = (square / (200 * x.len()) as f64).sqrt();
    assert!((std - 0.1).abs() < 0.001, "{std}");
    let long = augment(20, |s| {
        s.time_masking = 1.0;
        s.time_masking_s = 9.0;
    });
    assert!(run(&long, &window(20, 1), 1).iter().all(|v| *v == 0.0));
}

#[test]
fn mixup_mixes_windows_and_labels_alike() {
    let (time, batch) = (5, 7);
    let mixing = augment(time, |s| {
        s.mixup = 1.0;
        s.mixup_alpha = 1.0;
    });
    let each = CHANNELS * time;
    let x: Vec<f32> = (0..batch as u64).flat_map(|w| window(time, 90 + w)).collect();
    let labels: Vec<f32> = (0..2 * batch).map(|i| i as f32).collect();
    let (mut y, mut mixed) = (x.clone(), labels.clone());
    let done = mixing.mixup(&mut y, &mut mixed, 3, 4).unwrap().unwrap();
    assert!((0.0..=1.0).contains(&done.lambda));
    assert_eq!(done.partner.iter().zip(0..).filter(|(p, i)| **p == *i).count(), 1, "the odd one");
    for (i, &partner) in done.partner.iter().enumerate() {
        let p = partner as usize;
        assert_eq!(done.partner[p] as usize, i);
        let blend = |own: f32, other: f32| done.lambda * own + (1.0 - done.lambda) * other;
        for k in 0..each {
            assert!((y[i * each + k] - blend(x[i * each + k], x[p * each + k])).abs() < 1e-5);
        }
        for k in 0..2 {
            assert!((mixed[2 * i + k] - blend(labels[2 * i + k], labels[2 * p + k])).abs() < 1e-5);
        }
    }
    let (mut again, mut labels_again) = (x.clone(), labels.clone());
    assert_eq!(mixing.mixup(&mut again, &mut labels_again, 3, 4).unwrap(), Some(done));
    assert_eq!(again, y);
    assert!(mixing.mixup(&mut again[1..], &mut [], 3, 4).is_err());
    assert!(mixing.mixup(&mut again, &mut [0.0; 3], 3, 4).is_err());
    assert!(mixing.mixup(&mut [], &mut [], 3, 4).is_ok());
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    type Spoil = fn(&mut Settings);
    let bad: [(&str, Spoil); 5] = [
        ("sign_flip", |s| s.sign_flip = 1.1),
        ("band_stop_hz", |s| s.band_stop_hz = f64::NAN),
        ("amplitude_scale_max", |s| s.amplitude_scale_max = 0.5),
        ("mixup_alpha", |s| s.mixup_alpha = 0.0),
        ("time_masking", |s| s.time_masking = -0.1),
    ];
    for (field, spoil) in bad {
        let mut settings = Settings::default();
        spoil(&mut settings);
        let message = settings.check().unwrap_err().to_string();
        assert!(message.contains(&format!("augment.{field}:")), "{message}");
    }
    let text = "sign_flip = 0.5\nband_stop = 0.25";
    let settings: Settings = toml::from_str(text).unwrap();
    assert_eq!(settings.band_stop, 0.25);
    assert!(toml::from_str::<Settings>("signflip = 0.5").is_err());
}
