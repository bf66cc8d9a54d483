//! MAT files written element by element here, in every layout that EEGLAB has used.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;

use super::value::Value;
use super::{mat73, read};
use crate::data::rng::Rng;
use crate::data::{ChannelKind, Recording};

/// A variable to write.
#[derive(Clone)]
enum Var {
    F64(Vec<usize>, Vec<f64>),
    F32(Vec<usize>, Vec<f32>),
    Text(String),
    /// Fields of each element.
    Struct(Vec<&'static str>, Vec<Vec<Var>>),
}

fn scalar(value: f64) -> Var {
    Var::F64(vec![1, 1], vec![value])
}

fn words(text: &str) -> Var {
    Var::Text(text.to_string())
}

fn element(kind: u32, payload: &[u8], big: bool) -> Vec<u8> {
    let word = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
    let mut out = Vec::new();
    if (1..=4).contains(&payload.len()) && kind != 14 {
        out.extend(word((payload.len() as u32) << 16 | kind));
        out.extend(payload);
        out.resize(8, 0);
        return out;
    }
    out.extend(word(kind));
    out.extend(word(payload.len() as u32));
    out.extend(payload);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

fn matrix(name: &str, var: &Var, big: bool) -> Vec<u8> {
    let word = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
    let (class, dims) = match var {
        Var::F64(dims, _) => (6, dims.clone()),
        Var::F32(dims, _) => (7, dims.clone()),
        Var::Text(text) => (4, vec![1, text.encode_utf16().count()]),
        Var::Struct(_, elements) => (2, vec![1, elements.len()]),
    };
    let mut out = element(6, &[word(class), word(0)].concat(), big);
    let dims: Vec<u8> = dims.iter().flat_map(|&n| word(n as u32)).collect();
    out.extend(element(5, &dims, big));
    out.extend(element(1, name.as_bytes(), big));
    match var {
        Var::F64(_, values) => {
            let bytes = |v: &f64| if big { v.to_be_bytes() } else { v.to_le_bytes() };
            out.extend(element(9, &values.iter().flat_map(bytes).collect::<Vec<u8>>(), big));
        }
        Var::F32(_, values) => {
            let bytes = |v: &f32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
            out.extend(element(7, &values.iter().flat_map(bytes).collect::<Vec<u8>>(), big));
        }
        Var::Text(text) => {
            let bytes = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
            out.extend(element(4, &text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>(), big));
        }
        Var::Struct(fields, elements) => {
            out.extend(element(5, &word(32), big));
            let mut names = Vec::new();
            for field in fields {
                names.extend(field.as_bytes());
                names.resize(names.len().next_multiple_of(32), 0);
            }
            out.extend(element(1, &names, big));
            elements.iter().flatten().for_each(|var| out.extend(matrix("", var, big)));
        }
    }
    element(14, &out, big)
}

fn mat(variables: &[(&str, Var)], compressed: bool, big: bool) -> Vec<u8> {
    let mut out = b"MATLAB 5.0 MAT-file, written by a test".to_vec();
    out.resize(124, b' ');
    out.extend(if big { b"\x01\x00MI" } else { b"\x00\x01IM" });
    for (name, var) in variables {
        let plain = matrix(name, var, big);
        if compressed {
            let mut encoder =
                flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&plain).unwrap();
            let bytes = encoder.finish().unwrap();
            let word = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
            out.extend([word(15), word(bytes.len() as u32)].concat());
            out.extend(bytes);
        } else {
            out.extend(plain);
        }
    }
    out
}

type Fields = Vec<(&'static str, Var)>;

/// Five channels of 12 samples at 50 Hz, embedded as f32, and the samples.
fn fields(seed: u64) -> (Fields, Vec<f32>) {
    let mut rng = Rng::new(seed, 0);
    let samples: Vec<f32> = (0..60).map(|_| rng.range(-90.0, 90.0) as f32).collect();
    let place = |label: &str, kind: &str| vec![words(label), words(kind)];
    let event = |kind, latency, duration| vec![kind, scalar(latency), scalar(duration)];
    let fields = vec![
        ("setname", words("some set")),
        ("nbchan", scalar(5.0)),
        ("pnts", scalar(12.0)),
        ("trials", scalar(1.0)),
        ("srate", scalar(50.0)),
        ("data", Var::F32(vec![5, 12], samples.clone())),
        (
            "chanlocs",
            Var::Struct(
                vec!["labels", "type"],
                vec![
                    place("E1", ""),
                    place("E3", "EEG"),
                    place("heart", "ECG"),
                    place("E1", ""),
                    place("\u{fc}", ""),
                ],
            ),
        ),
        (
            "event",
            Var::Struct(
                vec!["type", "latency", "duration"],
                vec![
                    event(words("boundary"), 0.5, f64::NAN),
                    event(words("resting_start"), 3.5, 5.0),
                    event(scalar(17.0), 2.0, f64::NAN),
                    event(words("boundary"), 6.5, 1000.0),
                    event(words("lost"), f64::NAN, 0.0),
                ],
            ),
        ),
    ];
    (fields, samples)
}

fn under_eeg(fields: &Fields) -> Fields {
    let (names, values) = fields.iter().cloned().unzip();
    vec![("ALLEEG", scalar(1.0)), ("EEG", Var::Struct(names, vec![values]))]
}

fn with(mut fields: Fields, name: &'static str, var: Option<Var>) -> Fields {
    fields.retain(|(field, _)| *field != name);
    fields.extend(var.map(|var| (name, var)));
    fields
}

struct Files(tempfile::TempDir);

impl Files {
    fn new(bytes: &[u8]) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        fs::write(files.path(), bytes).unwrap();
        files
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("x.set")
    }

    fn read(&self) -> Recording {
        read(&self.path()).unwrap()
    }

    fn error(&self) -> String {
        let message = read(&self.path()).unwrap_err().to_string();
        assert!(message.contains("remedy: ") && message.contains("x."), "{message}");
        message
    }
}

fn check(recording: &Recording, samples: &[f32]) {
    assert_eq!(recording.channels.len(), 5);
    for (i, channel) in recording.channels.iter().enumerate() {
        let expect: Vec<f32> = samples.iter().skip(i).step_by(5).copied().collect();
        assert_eq!(channel.samples, expect);
        assert_eq!((channel.sample_rate, channel.unit.as_str()), (50.0, "uV"));
    }
}

#[test]
fn every_layout() {
    for case in 0..8_u64 {
        let (compressed, big, root) = (case & 1 > 0, case & 2 > 0, case & 4 > 0);
        let (fields, samples) = fields(case);
        let variables = if root { fields } else { under_eeg(&fields) };
        let recording = Files::new(&mat(&variables, compressed, big)).read();
        check(&recording, &samples);
        let names: Vec<&str> = recording.channels.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["E1-1", "E3", "heart", "E1-2", "\u{fc}"]);
        let kinds: Vec<_> = recording.channels.iter().map(|c| c.kind).collect();
        use ChannelKind::{Ecg, Eeg, Misc};
        assert_eq!(kinds, [Eeg, Eeg, Ecg, Eeg, Misc]);
        let marks: Vec<_> = recording
            .annotations
            .iter()
            .map(|a| (a.onset_s, a.duration_s, a.text.as_str()))
            .collect();
        let expect = [(0.02, 0.0, "17"), (0.05, 0.1, "resting_start"), (0.11, 0.0, "boundary")];
        assert_eq!(marks, expect);
        assert_eq!(recording.notes, ["1 events have no latency and were left out"]);
    }
}

#[test]
fn a_signal_beside_the_dataset() {
    let (fields, samples) = fields(9);
    let fields = with(fields, "data", Some(words("renamed since.fdt")));
    let files = Files::new(&mat(&under_eeg(&fields), true, false));
    assert!(
        files.error().contains("names the signal's file renamed since.fdt, which is not beside")
    );
    let fdt = files.path().with_extension("fdt");
    let bytes: Vec<u8> = samples.iter().flat_map(|v| v.to_le_bytes()).collect();
    fs::write(&fdt, &bytes).unwrap();
    let recording = files.read();
    check(&recording, &samples);
    assert!(recording.notes[0].contains("renamed since.fdt"), "{:?}", recording.notes);
    fs::write(&fdt, &bytes[..bytes.len() - 1]).unwrap();
    let message = files.error();
    assert!(message.contains("promises 5 channels of 12 samples") && message.contains("239 bytes"));
    fs::write(&fdt, "/annex/objects/MD5E-s1--2.fdt\n").unwrap();
    assert!(files.error().contains("never downloaded"));
}

#[test]
fn trials_follow_each_other() {
    let mut rng = Rng::new(10, 0);
    let samples: Vec<f64> = (0..2 * 3 * 4).map(|_| rng.normal()).collect();
    let fields = vec![
        ("srate", scalar(2.0)),
        ("data", Var::F64(vec![2, 3, 4], samples.clone())),
        ("chanlocs", Var::F64(vec![0, 0], vec![])),
    ];
    let recording = Files::new(&mat(&fields, false, false)).read();
    let expect: Vec<f32> = samples.iter().step_by(2).map(|&v| v as f32).collect();
    assert_eq!(recording.channels[0].samples, expect);
    assert_eq!(recording.channels[1].name, "channel 2");
    assert_eq!(recording.channels[1].kind, ChannelKind::Eeg);
    let gaps: Vec<f64> = recording.annotations.iter().map(|a| a.onset_s).collect();
    assert_eq!(gaps, [1.5, 3.0, 4.5]);
    assert!(recording.notes.iter().any(|n| n.contains("4 trials")), "{:?}", recording.notes);
}

#[test]
fn every_error() {
    let (fields, _) = fields(11);
    let error = |fields: Fields| Files::new(&mat(&under_eeg(&fields), true, false)).error();
    let cases = [
        (with(fields.clone(), "srate", None), "srate: is missing"),
        (with(fields.clone(), "srate", Some(scalar(0.0))), "srate: is 0"),
        (with(fields.clone(), "data", None), "data: is missing"),
        (with(fields.clone(), "data", Some(Var::F64(vec![0, 0], vec![]))), "data: is empty"),
        (with(fields.clone(), "nbchan", Some(scalar(6.0))), "nbchan: is 6, but data holds 5"),
        (
            with(with(fields.clone(), "data", Some(words("x.fdt"))), "pnts", Some(scalar(-1.0))),
            "pnts: is -1",
        ),
    ];
    for (fields, part) in cases {
        let message = error(fields);
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(Files::new(b"not a MAT file").error().contains("not a MAT file of level 5"));
    let whole = mat(&under_eeg(&fields), true, false);
    assert!(Files::new(&whole[..whole.len() - 9]).error().contains("is cut short"));
    let mut broken = whole;
    let place = broken.len() - 20;
    broken[place] ^= 0x55;
    assert!(Files::new(&broken).error().contains("inflated"));
    let chanlocs =
        with(fields, "chanlocs", Some(Var::Struct(vec!["labels"], vec![vec![words("Cz")]])));
    let recording = Files::new(&mat(&chanlocs, false, false)).read();
    assert!(recording.notes[0].contains("names 1 of 5 channels"), "{:?}", recording.notes);
}

#[test]
fn nesting_without_end() {
    let mut var = scalar(1.0);
    for _ in 0..200 {
        var = Var::Struct(vec!["inner"], vec![vec![var]]);
    }
    let (mut fields, samples) = fields(12);
    fields.push(("etc", var));
    let recording = Files::new(&mat(&fields, false, false)).read();
    check(&recording, &samples);
}

/// EEGLAB's time axis, which MATLAB stored in deflated chunks: milliseconds at 128 Hz.
#[test]
fn chunks_of_matlab() {
    let root = match std::env::var_os("ENGINE_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
    };
    let path = root.join("fixtures/eeglab-v73.set");
    let Ok(bytes) = fs::read(&path) else {
        eprintln!("skipped: {} is not here", path.display());
        return;
    };
    let variables = mat73::variables(&bytes, &["EEG", "times"]).unwrap();
    let Some(Value::Numbers(times)) = variables[0].1.field("times") else {
        panic!("no numbers: {variables:?}");
    };
    assert_eq!(times.dims, [1, 30504]);
    let values = times.number.values(&times.bytes, times.big_endian);
    assert_eq!(values.len(), 30504);
    for (i, value) in values.iter().enumerate() {
        assert!((value - i as f64 * 1000.0 / 128.0).abs() < 1e-6, "{i}: {value}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn damaged_files_never_panic(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..12),
        root in any::<bool>(),
        small in any::<bool>(),
    ) {
        let (fields, _) = fields(13);
        let mut bytes = mat(&if root { fields } else { under_eeg(&fields) }, false, false);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = if small { byte % 20 } else { byte };
        }
        let _ = read(&Files::new(&bytes).path());
    }
}
