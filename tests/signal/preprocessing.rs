//! A recording before and after preprocessing.

use engine::data::preprocess::{BadChannels, Processed, Reference, Scale, Settings, preprocess};
use engine::data::rng::Rng;
use engine::data::{Annotation, ChannelKind, Recording};

use super::{boundary, channel, recording, row};

/// Median and IQR / 1.349 by sorting.
fn robust(row: &[f32]) -> (f32, f32) {
    let mut sorted = row.to_vec();
    sorted.sort_by(f32::total_cmp);
    let at = |share: f64| sorted[(share * (sorted.len() - 1) as f64).round() as usize];
    (at(0.5), (at(0.75) - at(0.25)) / 1.349)
}

fn refusal(recording: Recording, settings: &Settings) -> String {
    preprocess(recording, settings, None).unwrap_err().to_string()
}

#[test]
fn hbn_like_recordings_come_out_in_robust_units_and_cz_does_not_blow_up() {
    let mut raw = recording(129, 6007, 500.0, 3);
    raw.channels[128].name = "Cz".into();
    raw.channels[128].samples.fill(0.0);
    for scale in [Scale::Channel, Scale::Recording] {
        for reference in [Reference::Average, Reference::None] {
            let settings = Settings { scale, reference: reference.clone(), ..Settings::default() };
            let done = preprocess(raw.clone(), &settings, None).unwrap();
            assert_eq!((done.channels.len(), done.sample_rate, done.n_samples), (129, 100.0, 1201));
            assert!(done.bad.is_empty(), "{:?}", done.bad);
            assert!(done.samples.iter().all(|x| x.abs() <= 20.0));
            for name in &done.channels {
                let (median, spread) = robust(row(&done, name));
                assert!(median.abs() < 0.02 && spread < 1.5, "{name}: {median} {spread}");
                if name == "Cz" && reference == Reference::None {
                    assert!(row(&done, name).iter().all(|x| *x == 0.0));
                } else if scale == Scale::Channel && name != "Cz" {
                    assert!((spread - 1.0).abs() < 0.02, "{name}: {spread}");
                }
            }
        }
    }
    let strict = Settings { recorded_reference: Vec::new(), ..Settings::default() };
    let done = preprocess(raw, &strict, None).unwrap();
    assert_eq!(done.bad, [("Cz".to_owned(), "flat".to_owned())]);
    assert!(row(&done, "Cz").iter().all(|x| *x == 0.0));
}

#[test]
fn bad_channels_are_found_by_every_criterion_and_set_to_zero() {
    let mut raw = recording(20, 3001, 250.0, 4);
    raw.channels[2].bad = true;
    raw.channels[5].samples[777] = f32::NAN;
    raw.channels[6].samples[0] = f32::INFINITY;
    raw.channels[9].samples.fill(312.5);
    raw.channels[11].samples.iter_mut().for_each(|x| *x *= 40.0);
    raw.channels[13].samples.iter_mut().for_each(|x| *x = (*x - 100.0) * 1e-3);
    let done = preprocess(raw, &Settings::default(), None).unwrap();
    let found: Vec<&str> = done.bad.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(found, ["E3", "E6", "E7", "E10", "E12", "E14"]);
    assert!(done.bad[1].1.contains("not finite at 3.108 s"), "{:?}", done.bad);
    assert!(done.bad[4].1.contains("robust z +"), "{:?}", done.bad);
    for name in &done.channels {
        let zero = row(&done, name).iter().all(|x| *x == 0.0);
        assert_eq!(zero, found.contains(&name.as_str()), "{name}");
    }
    assert!(done.samples.iter().all(|x| x.is_finite()));
}

#[test]
fn kept_bad_channels_are_finite_and_hidden_from_the_others() {
    let mut marked = recording(12, 2000, 200.0, 5);
    marked.channels[4].bad = true;
    let mut spoiled = marked.clone();
    spoiled.channels[4].samples.iter_mut().for_each(|x| *x = *x * 1e5 + 7.0);
    spoiled.channels[4].samples[9] = f32::NEG_INFINITY;
    let settings = Settings { bad_channels: BadChannels::Keep, ..Settings::default() };
    let (a, b) = (preprocess(marked, &settings, None), preprocess(spoiled, &settings, None));
    let (a, b) = (a.unwrap(), b.unwrap());
    for name in a.channels.iter().filter(|name| *name != "E5") {
        assert_eq!(row(&a, name), row(&b, name));
    }
    assert!(row(&b, "E5").iter().all(|x| x.is_finite()));
    assert_ne!(row(&a, "E5"), row(&b, "E5"));
}

#[test]
fn mostly_non_finite_recordings_are_refused_with_channel_and_second() {
    let mut raw = recording(7, 1000, 100.0, 6);
    for (c, at) in [(0, 400), (3, 250), (4, 251), (6, 999)] {
        raw.channels[c].samples[at] = f32::NAN;
    }
    let message = refusal(raw, &Settings::default());
    assert!(message.contains("a.set: channel E4 is not finite from 2.500 s on"), "{message}");
    assert!(message.contains("4 of 7 channels"), "{message}");
    let mut raw = recording(7, 1000, 100.0, 6);
    raw.channels[..4].iter_mut().for_each(|c| c.bad = true);
    let message = refusal(raw, &Settings::default());
    assert!(message.contains("4 of 7 channels are bad (the first: E1, marked bad)"), "{message}");
}

#[test]
fn interpolation_weighs_by_inverse_square_distance() {
    let mut raw = recording(4, 1500, 100.0, 7);
    raw.channels[1].bad = true;
    raw.channels[3].bad = true;
    let settings = Settings {
        bad_channels: BadChannels::Interpolate,
        reference: Reference::None,
        scale: Scale::Fixed(1.0),
        clip: 0.0,
        ..Settings::default()
    };
    // E1 and E3 lie 1 and 3 from E2: weights 0.9 and 0.1. E4 lies nowhere.
    let place = |name: &str| match name {
        "E1" => Some([0.0, 0.0, 0.0]),
        "E2" => Some([1.0, 0.0, 0.0]),
        "E3" => Some([1.0, 3.0, 0.0]),
        _ => None,
    };
    let done = preprocess(raw, &settings, Some(&place)).unwrap();
    let expected = row(&done, "E1").iter().zip(row(&done, "E3")).map(|(a, b)| 0.9 * a + 0.1 * b);
    // Medians are subtracted after interpolating: the difference is one constant.
    let shifts: Vec<f32> = row(&done, "E2").iter().zip(expected).map(|(a, b)| a - b).collect();
    assert!(shifts.iter().all(|d| (d - shifts[0]).abs() < 1e-3));
    assert!(row(&done, "E4").iter().all(|x| *x == 0.0));
    assert_eq!(done.notes, ["E4 has no known position: set to 0"]);
}

fn only_reference(reference: Reference) -> Settings {
    Settings {
        high_pass_hz: 0.0,
        low_pass_hz: 0.0,
        resample_hz: 0.0,
        scale: Scale::Fixed(1.0),
        clip: 0.0,
        reference,
        ..Settings::default()
    }
}

#[test]
fn references_subtract_what_they_say() {
    let named = |names: &[&str]| {
        only_reference(Reference::Channels(names.iter().map(|n| (*n).to_owned()).collect()))
    };
    let mut raw = recording(9, 801, 100.0, 8);
    raw.channels[8].kind = ChannelKind::Misc;
    raw.channels[8].name = "M1".into();
    let average = preprocess(raw.clone(), &only_reference(Reference::Average), None).unwrap();
    assert_eq!(average.channels.len(), 8, "M1 is no EEG channel");
    let sum =
        |done: &Processed, t: usize| -> f32 { done.channels.iter().map(|c| row(done, c)[t]).sum() };
    assert!((0..801).all(|t| (sum(&average, t) - sum(&average, 0)).abs() < 0.01));

    let done = preprocess(raw.clone(), &named(&["M1", "E2"]), None).unwrap();
    assert_eq!(done.channels.len(), 8);
    let (m1, e2, e5) = (&raw.channels[8], &raw.channels[1], &raw.channels[4]);
    let expected = |t: usize| e5.samples[t] - 0.5 * (m1.samples[t] + e2.samples[t]);
    let shift = |t: usize| expected(t) - row(&done, "E5")[t];
    assert!((0..801).all(|t| (shift(t) - shift(0)).abs() < 0.01));

    let message = refusal(raw.clone(), &named(&["A1"]));
    assert!(message.contains("has no channel A1"), "{message}");
    raw.channels[8].bad = true;
    assert!(refusal(raw, &named(&["M1"])).contains("(M1) is bad"));
}

#[test]
fn channels_come_in_the_order_of_the_settings_and_a_missing_one_is_named() {
    let raw = recording(6, 4000, 200.0, 9);
    let only = |names: &[&str]| Settings {
        channels: names.iter().map(|name| name.to_string()).collect(),
        ..Settings::default()
    };
    let done = preprocess(raw.clone(), &only(&["E5", "E1", "E3"]), None).unwrap();
    assert_eq!(done.channels, ["E5", "E1", "E3"]);
    let all = preprocess(raw.clone(), &Settings::default(), None).unwrap();
    // Of another reference, but of the same channel.
    let at = |name| robust(row(&all, name)).1 / robust(row(&done, name)).1;
    assert!(["E5", "E1", "E3"].iter().all(|name| (0.5..2.0).contains(&at(name))));
    let message = refusal(raw, &only(&["e5", "E1", "X1"]));
    for part in ["has no channel e5, X1 (there is E5: upper", "of data.channels", "remedy"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_step_at_a_boundary_does_not_ring() {
    let smooth = recording(6, 4000, 200.0, 9);
    let mut raw = smooth.clone();
    for (channel, step) in raw.channels.iter_mut().zip([3e4, -1e4, 7e3, 2e3, -5e4, 1e3]) {
        channel.samples[2000..].iter_mut().for_each(|x| *x += step);
    }
    let settings = Settings { resample_hz: 0.0, clip: 0.0, ..Settings::default() };
    let with = |mut raw: Recording, marks: Vec<Annotation>| {
        raw.annotations = marks;
        preprocess(raw, &settings, None).unwrap().samples
    };
    let worst =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    let expected = with(smooth, vec![boundary(10.0)]);
    assert!(worst(&expected, &with(raw.clone(), vec![boundary(10.0)])) < 0.01);
    assert!(worst(&expected, &with(raw, Vec::new())) > 10.0);
}

#[test]
fn mixed_rates_need_a_common_one() {
    let mut raw = recording(5, 1000, 100.0, 10);
    raw.channels.push(channel("slow", 500, 50.0, &mut Rng::new(1, 2)));
    let done = preprocess(raw.clone(), &Settings::default(), None).unwrap();
    assert_eq!((done.channels.len(), done.n_samples), (6, 1000));
    assert!(
        done.notes.iter().any(|n| n.contains("low-pass at 45 Hz left out")),
        "{:?}",
        done.notes
    );
    let keep_rate = Settings { resample_hz: 0.0, ..Settings::default() };
    let message = refusal(raw, &keep_rate);
    assert!(message.contains("E1 and slow have 100 and 50 samples"), "{message}");
}

#[test]
fn tiny_and_empty_recordings() {
    let settings = Settings::default();
    let done = preprocess(recording(5, 100, 100.0, 11), &settings, None).unwrap();
    assert!(done.notes[0].contains("shorter than the filter's 6.61 s"), "{:?}", done.notes);
    assert!(done.samples.iter().all(|x| x.is_finite()));
    for n in [2, 3, 7] {
        if let Ok(done) = preprocess(recording(5, n, 500.0, 11), &settings, None) {
            assert!(done.samples.iter().all(|x| x.is_finite()));
        }
    }
    for n in [0, 1] {
        let message = refusal(recording(5, n, 100.0, 1), &settings);
        assert!(message.contains(&format!("E1 has {n} samples")), "{message}");
    }
    let mut raw = recording(2, 500, 100.0, 1);
    raw.channels.iter_mut().for_each(|c| c.kind = ChannelKind::Ecg);
    assert!(refusal(raw, &settings).contains("none of its 2 channels is of kind eeg"));
    let wanted = Settings { channels: vec!["E9".into()], ..settings.clone() };
    assert!(refusal(recording(3, 500, 100.0, 1), &wanted).contains("no channel E9"));
    for rate in [0.0, -5.0, f64::NAN, f64::INFINITY, 1e-300] {
        assert!(preprocess(recording(3, 500, rate, 1), &settings, None).is_err());
    }
}

#[test]
fn the_result_is_the_same_on_any_number_of_threads() {
    let mut raw = recording(31, 3333, 250.0, 12);
    raw.annotations = vec![boundary(4.4)];
    let settings = Settings { notch_hz: 50.0, ..Settings::default() };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let done = pool.install(|| preprocess(raw.clone(), &settings, None)).unwrap();
        done.samples.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    assert!(run(1) == run(3));
}
