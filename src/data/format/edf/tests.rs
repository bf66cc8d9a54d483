//! Files written byte by byte here, so that nothing of the reader is taken on trust.

use std::fmt::Display;

use proptest::prelude::*;

use super::Edf;
use crate::data::rng::Rng;
use crate::data::{ChannelKind, Recording};

/// One signal of a file to write.
#[derive(Clone)]
pub(crate) struct Source {
    pub label: &'static str,
    pub unit: &'static str,
    pub physical: (f64, f64),
    pub digital: (i32, i32),
    /// Bytes of each record.
    pub records: Vec<Vec<u8>>,
}

fn field(out: &mut Vec<u8>, width: usize, value: impl Display) {
    let mut bytes = value.to_string().into_bytes();
    assert!(bytes.len() <= width, "{value} is longer than {width}");
    bytes.resize(width, b' ');
    out.extend(bytes);
}

/// A whole file; `count` is what its header says about the number of records.
pub(crate) fn file(
    sources: &[Source],
    reserved: &str,
    bdf: bool,
    count: i64,
    record_s: f64,
) -> Vec<u8> {
    let mut out = Vec::new();
    if bdf {
        out.extend(b"\xffBIOSEMI");
    } else {
        field(&mut out, 8, "0");
    }
    field(&mut out, 80, "X F 01-JAN-2000 somebody");
    field(&mut out, 80, "Startdate 02-MAR-2002 X X X");
    field(&mut out, 8, "02.03.02");
    field(&mut out, 8, "13.59.01");
    field(&mut out, 8, 256 * (sources.len() + 1));
    field(&mut out, 44, reserved);
    field(&mut out, 8, count);
    field(&mut out, 8, record_s);
    field(&mut out, 4, sources.len());
    let width = if bdf { 3 } else { 2 };
    let samples = |s: &Source| s.records.first().map_or(0, Vec::len) / width;
    sources.iter().for_each(|s| field(&mut out, 16, s.label));
    sources.iter().for_each(|_| field(&mut out, 80, "AgAgCl electrode"));
    sources.iter().for_each(|s| field(&mut out, 8, s.unit));
    sources.iter().for_each(|s| field(&mut out, 8, s.physical.0));
    sources.iter().for_each(|s| field(&mut out, 8, s.physical.1));
    sources.iter().for_each(|s| field(&mut out, 8, s.digital.0));
    sources.iter().for_each(|s| field(&mut out, 8, s.digital.1));
    sources.iter().for_each(|_| field(&mut out, 80, "HP:0.1Hz LP:75Hz"));
    sources.iter().for_each(|s| field(&mut out, 8, samples(s)));
    sources.iter().for_each(|_| field(&mut out, 32, ""));
    for record in 0..sources.first().map_or(0, |s| s.records.len()) {
        sources.iter().for_each(|s| out.extend(&s.records[record]));
    }
    out
}

fn noise(rng: &mut Rng, samples: usize, width: usize) -> Vec<u8> {
    (0..samples * width).map(|_| rng.next_u32() as u8).collect()
}

pub(crate) fn eeg(label: &'static str, rng: &mut Rng, samples: usize, records: usize) -> Source {
    Source {
        label,
        unit: "uV",
        physical: (-3276.8, 3276.7),
        digital: (-32768, 32767),
        records: (0..records).map(|_| noise(rng, samples, 2)).collect(),
    }
}

pub(crate) fn annotations(lists: &[&[u8]], bytes: usize) -> Source {
    let padded = |list: &&[u8]| {
        let mut list = list.to_vec();
        assert!(list.len() <= bytes);
        list.resize(bytes, 0);
        list
    };
    Source {
        label: "EDF Annotations",
        unit: "",
        physical: (-1.0, 1.0),
        digital: (-32768, 32767),
        records: lists.iter().map(padded).collect(),
    }
}

fn read(bytes: Vec<u8>) -> Recording {
    Edf::from_bytes(bytes, "x.edf").unwrap().decode().unwrap().recording
}

fn error(bytes: Vec<u8>) -> String {
    match Edf::from_bytes(bytes, "x.edf").and_then(|edf| edf.decode().map(|_| ())) {
        Ok(()) => panic!("was accepted"),
        Err(error) => error.to_string(),
    }
}

fn plain(rng: &mut Rng) -> Vec<u8> {
    file(&[eeg("EEG Fp1", rng, 7, 3), eeg("EEG Cz", rng, 7, 3)], "", false, 3, 0.5)
}

fn expect_error(bytes: Vec<u8>, parts: &[&str]) {
    let message = error(bytes);
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(message.contains("remedy: ") && message.contains("x.edf"), "{message}");
}

fn overwrite(mut bytes: Vec<u8>, at: usize, width: usize, value: &str) -> Vec<u8> {
    let mut written = Vec::new();
    field(&mut written, width, value);
    bytes[at..at + width].copy_from_slice(&written);
    bytes
}

#[test]
fn header_fields() {
    let edf = Edf::from_bytes(plain(&mut Rng::new(11, 0)), "x.edf").unwrap();
    let header = edf.header();
    assert_eq!(header.patient, "X F 01-JAN-2000 somebody");
    assert_eq!(header.recording, "Startdate 02-MAR-2002 X X X");
    assert_eq!((header.start_date.as_str(), header.start_time.as_str()), ("02.03.02", "13.59.01"));
    assert_eq!((header.records, edf.records(), header.record_s), (Some(3), 3, 0.5));
    let signal = &header.signals[1];
    assert_eq!((signal.label.as_str(), signal.unit.as_str()), ("EEG Cz", "uV"));
    assert_eq!(signal.transducer, "AgAgCl electrode");
    assert_eq!(signal.prefilter, "HP:0.1Hz LP:75Hz");
    assert_eq!((signal.digital_min, signal.digital_max), (-32768, 32767));
    assert_eq!((signal.physical_min, signal.physical_max), (-3276.8, 3276.7));
    assert_eq!(header.sample_rate(signal), 14.0);
}

#[test]
fn samples_of_mixed_rates_units_and_polarity() {
    let mut rng = Rng::new(12, 0);
    let mut inverted = eeg("EEG Fp2", &mut rng, 11, 4);
    inverted.physical = (500.0, -500.0);
    let mut milli = eeg("ECG ECG", &mut rng, 3, 4);
    (milli.unit, milli.physical) = ("mV", (-2.5, 5.0));
    let mut micro = eeg("EOG left", &mut rng, 5, 4);
    micro.unit = "\u{b5}V";
    let mut other = eeg("Temp rectal", &mut rng, 1, 4);
    (other.unit, other.physical) = ("degC", (34.0, 40.2));
    let sources = [inverted, milli, micro, other];
    let recording = read(file(&sources, "", false, 4, 2.0));
    let kinds = [ChannelKind::Eeg, ChannelKind::Ecg, ChannelKind::Eog, ChannelKind::Misc];
    let names = ["Fp2", "ECG", "EOG left", "Temp rectal"];
    for (i, (channel, source)) in recording.channels.iter().zip(&sources).enumerate() {
        assert_eq!((channel.name.as_str(), channel.kind), (names[i], kinds[i]));
        assert_eq!(channel.unit, ["uV", "uV", "uV", "degC"][i]);
        let bytes = source.records.concat();
        assert_eq!(channel.sample_rate, bytes.len() as f64 / 4.0 / 2.0 / 2.0);
        let (low, high) = source.physical;
        let factor = if source.unit == "mV" { 1000.0 } else { 1.0 };
        let expect: Vec<f32> = bytes
            .chunks(2)
            .map(|b| (f64::from(i16::from_le_bytes([b[0], b[1]])) + 32768.0) / 65535.0)
            .map(|t| ((low * (1.0 - t) + high * t) * factor) as f32)
            .collect();
        let range = ((high - low).abs() * factor) as f32;
        assert_eq!(expect.len(), channel.samples.len());
        for (a, b) in expect.iter().zip(&channel.samples) {
            assert!((a - b).abs() <= 1e-6 * range, "{names:?} {i}: {a} {b}");
        }
    }
}

#[test]
fn bdf_is_24_bit_and_keeps_its_status_words() {
    let mut rng = Rng::new(13, 0);
    let mut status = eeg("Status", &mut rng, 9, 0);
    status.unit = "Boolean";
    status.physical = (-8388608.0, 8388607.0);
    status.digital = (-8388608, 8388607);
    status.records = (0..2).map(|_| noise(&mut rng, 9, 3)).collect();
    let bytes = status.records.concat();
    let recording = read(file(&[status], "24BIT", true, 2, 1.0));
    let channel = &recording.channels[0];
    assert_eq!((channel.kind, channel.unit.as_str()), (ChannelKind::Trigger, "Boolean"));
    let expect: Vec<f32> = bytes
        .chunks(3)
        .map(|b| i32::from(b[0]) | i32::from(b[1]) << 8 | i32::from(b[2]) << 16)
        .map(|v| if v >= 1 << 23 { v - (1 << 24) } else { v } as f32)
        .collect();
    assert_eq!(channel.samples, expect);
}

#[test]
fn an_uncalibrated_signal_is_no_eeg() {
    let mut source = eeg("EEG Fp1", &mut Rng::new(14, 0), 5, 1);
    source.physical = (0.0, 0.0);
    let first = i16::from_le_bytes([source.records[0][0], source.records[0][1]]);
    let recording = read(file(&[source], "", false, 1, 1.0));
    let channel = &recording.channels[0];
    assert_eq!((channel.kind, channel.unit.as_str()), (ChannelKind::Misc, ""));
    assert_eq!(channel.samples[0], f32::from(first));
    assert!(recording.notes[0].contains("empty physical range"), "{:?}", recording.notes);
}

#[test]
fn annotations_of_a_continuous_file_count_from_its_first_sample() {
    let mut rng = Rng::new(15, 0);
    let lists: [&[u8]; 2] = [
        b"+0.25\x14\x14\0+1.5\x150.125\x14eyes closed\x14blink\x14\0",
        b"+2.25\x14\x14\0+0.5\x14x\x14\0",
    ];
    let sources = [eeg("EEG Cz", &mut rng, 10, 2), annotations(&lists, 60)];
    let recording = read(file(&sources, "EDF+C", false, 2, 2.0));
    assert_eq!(recording.channels.len(), 1);
    let found: Vec<_> =
        recording.annotations.iter().map(|a| (a.onset_s, a.duration_s, a.text.as_str())).collect();
    assert_eq!(found, [(0.25, 0.0, "x"), (1.25, 0.125, "eyes closed"), (1.25, 0.125, "blink")]);
    assert!(recording.notes.is_empty(), "{:?}", recording.notes);
}

#[test]
fn gaps_of_an_interrupted_file() {
    let mut rng = Rng::new(16, 0);
    let lists: [&[u8]; 3] = [
        b"+0\x14\x14\0+1\x1520\x14long\x14\0",
        b"+2\x14\x14\0+7\x14in the gap\x14\0",
        b"+10\x14\x14\0+11.5\x14after\x14\0",
    ];
    let sources = [eeg("EEG Cz", &mut rng, 10, 3), annotations(&lists, 40)];
    let recording = read(file(&sources, "EDF+D", false, 3, 2.0));
    let mut found: Vec<_> =
        recording.annotations.iter().map(|a| (a.onset_s, a.duration_s, a.text.as_str())).collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.2.cmp(b.2)));
    let expect = [
        (1.0, 14.0, "long"),
        (4.0, 0.0, "boundary"),
        (4.0, 0.0, "in the gap"),
        (5.5, 0.0, "after"),
    ];
    assert_eq!(found, expect);
    let continuous = read(file(&sources, "EDF+C", false, 3, 2.0));
    assert!(continuous.notes[0].contains("jump 1 times"), "{:?}", continuous.notes);
    assert!(continuous.annotations.iter().all(|a| a.text != "boundary"));
}

#[test]
fn length_left_open_and_bytes_left_over() {
    let mut rng = Rng::new(17, 0);
    let mut bytes = file(&[eeg("EEG Cz", &mut rng, 6, 5)], "", false, -1, 1.0);
    bytes.extend([1, 2, 3]);
    let recording = read(bytes);
    assert_eq!(recording.channels[0].samples.len(), 30);
    assert!(recording.notes[0].contains("5 data records"), "{:?}", recording.notes);
    assert!(recording.notes[1].contains("3 bytes"), "{:?}", recording.notes);
}

#[test]
fn truncations_at_random_points() {
    let mut rng = Rng::new(18, 0);
    let whole = plain(&mut rng);
    for _ in 0..200 {
        let cut = rng.below(whole.len());
        let message = error(whole[..cut].to_vec());
        let expect = match cut {
            0..8 => "is not EDF or BDF",
            8..768 => "ends inside its header",
            _ => "promises 3 data records of 28 bytes",
        };
        assert!(message.contains(expect) && message.contains("remedy: "), "{cut}: {message}");
        if cut >= 768 {
            let held = format!("holds {} whole", (cut - 768) / 28);
            assert!(message.contains(&held), "{cut}: {message}");
        }
    }
}

#[test]
fn every_error_names_field_and_remedy() {
    let rng = &mut Rng::new(19, 0);
    expect_error(b"RIFF____WAVEfmt ".to_vec(), &["is not EDF or BDF", "RIFF____"]);
    expect_error(overwrite(plain(rng), 252, 4, "0"), &["number of signals: is 0"]);
    expect_error(overwrite(plain(rng), 252, 4, "-4"), &["number of signals: is -4"]);
    expect_error(
        overwrite(plain(rng), 252, 4, "9999"),
        &["bytes in header: is 768", "9999 signals take 2560000"],
    );
    let both = overwrite(overwrite(plain(rng), 252, 4, "9999"), 184, 8, "2560000");
    expect_error(both, &["ends inside its header", "of 2560000"]);
    expect_error(
        overwrite(plain(rng), 184, 8, "many"),
        &["\"many\", not a number", "bytes 184 to 191"],
    );
    expect_error(overwrite(plain(rng), 236, 8, "0"), &["number of data records: is 0"]);
    expect_error(
        overwrite(plain(rng), 236, 8, "99999999"),
        &["cut short", "holds 3 whole", "write 3"],
    );
    expect_error(overwrite(plain(rng), 244, 8, "0"), &["duration of a data record: is 0"]);
    expect_error(overwrite(plain(rng), 244, 8, "-1"), &["duration of a data record: is negative"]);
    expect_error(overwrite(plain(rng), 244, 8, "NaN"), &["duration of a data record", "\"NaN\""]);
    let per_signal = |i: usize| 256 + 2 * i;
    let digital_min = per_signal(16 + 80 + 8 + 8 + 8);
    expect_error(
        overwrite(plain(rng), digital_min, 8, "32767"),
        &["digital range of \"EEG Fp1\"", "32767 to 32767"],
    );
    let physical_max = per_signal(16 + 80 + 8 + 8);
    expect_error(
        overwrite(plain(rng), physical_max + 8, 8, "3276,7"),
        &["physical maximum of signal 2 \"EEG Cz\"", "\"3276,7\", not a number", "with a point"],
    );
    expect_error(overwrite(plain(rng), physical_max, 8, "1e308"), &["physical range", "beyond"]);
    let samples = per_signal(16 + 80 + 8 + 8 + 8 + 8 + 8 + 80);
    expect_error(overwrite(plain(rng), samples, 8, "-7"), &["samples per record of signal 1"]);
    let none = overwrite(overwrite(plain(rng), samples, 8, "0"), samples + 8, 8, "0");
    expect_error(none, &["every signal has 0 samples per record"]);
    let lists: [&[u8]; 1] = [b"+0\x14\x14\0"];
    let only = file(&[annotations(&lists, 20)], "EDF+C", false, 1, 0.0);
    expect_error(only, &["annotations only"]);
    let edf = Edf::from_bytes(plain(rng), "x.edf").unwrap();
    assert!(edf.physical(2).unwrap_err().to_string().contains("has no signal 2"));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Edf::from_bytes(bytes, "x.edf").and_then(|edf| edf.decode().map(|_| ()));
    }

    #[test]
    fn damaged_files_never_panic(
        seed in any::<u64>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..12),
        digits in any::<bool>(),
        cut in any::<proptest::sample::Index>(),
    ) {
        let rng = &mut Rng::new(seed, 0);
        let lists: [&[u8]; 3] = [b"+0\x14\x14\0+1\x14a\x14\0", b"+2\x14\x14\0", b"+9\x14\x14\0"];
        let sources = [eeg("EEG Cz", rng, 5, 3), annotations(&lists, 20), eeg("Fz", rng, 2, 3)];
        let mut bytes = file(&sources, "EDF+D", false, 3, 2.0);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            // Digits keep most fields readable, so that the damage reaches deeper.
            bytes[at] = if digits { b"0123456789-. +\x14\x15"[usize::from(byte) % 16] } else { byte };
        }
        if seed % 3 == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(edf) = Edf::from_bytes(bytes, "x.edf")
            && let Ok(decoded) = edf.decode()
        {
            for channel in decoded.recording.channels {
                prop_assert!(channel.samples.iter().all(|v| v.is_finite()));
                prop_assert!(channel.sample_rate > 0.0);
            }
        }
    }
}
