//! The readers on real recordings: against committed figures of other people's readers
//! (readers_expected.tsv), and against those readers themselves, sample by sample, where a Python
//! that has them can be found ($ENGINE_PYTHON, else python3; see readers_oracle.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use engine::data::bids::Dataset;
use engine::data::format::edf::Edf;
use engine::data::rng::Rng;
use engine::data::{Annotation, ChannelKind, Recording};

fn data(below: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("ENGINE_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
    };
    let path = root.join(below);
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

fn oracle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers_oracle.py")
}

fn python() -> Option<String> {
    let python = std::env::var("ENGINE_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let output = Command::new(&python).arg(oracle()).arg("libraries").output().ok();
    let found = output.filter(|o| o.status.success()).map(|o| o.stdout).unwrap_or_default();
    let found = String::from_utf8_lossy(&found).trim().to_string();
    if found.is_empty() {
        eprintln!("skipped: {python} imports none of edfio, pyedflib, mne (set ENGINE_PYTHON)");
        return None;
    }
    eprintln!("{python} has {found}");
    Some(python)
}

fn is_edf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "edf" || e == "bdf")
}

/// Whether `a` is `b` to 1e-6, of `range` for values near 0.
fn close(a: f64, b: f64, range: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs().max(range)
}

fn same_marks(ours: &[Annotation], theirs: &[(f64, f64, String)], place: &str) {
    assert_eq!(ours.len(), theirs.len(), "{place}: {ours:?} {theirs:?}");
    for (a, (onset, duration, text)) in ours.iter().zip(theirs) {
        let times = (a.onset_s - onset).abs() < 1e-6 && (a.duration_s - duration).abs() < 1e-6;
        assert!(times && a.text == *text, "{place}: {a:?}, expected {onset} {duration} {text}");
    }
}

/// Checksum that Python's zlib.crc32 also gives.
fn crc32(values: impl Iterator<Item = i32>) -> String {
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let mut digest = crc.digest();
    values.for_each(|value| digest.update(&value.to_le_bytes()));
    format!("{:08x}", digest.finalize())
}

/// Signals `first..first + count` as they stand in the file: digital values where the format has
/// them, and physical ones in the file's unit.
fn signals(path: &Path, first: usize, count: usize) -> (String, Vec<f64>) {
    if is_edf(path) {
        let edf = Edf::open(path).unwrap();
        let digital = (first..first + count).flat_map(|i| edf.digital(i).unwrap());
        let physical = (first..first + count).flat_map(|i| edf.physical(i).unwrap());
        return (crc32(digital), physical.collect());
    }
    let recording = Recording::open(path).unwrap();
    let channels = &recording.channels[first..first + count];
    let values = channels.iter().flat_map(|c| c.samples.iter().map(|&v| f64::from(v)));
    ("-".to_string(), values.collect())
}

#[test]
fn committed_figures() {
    let Some(root) = data("") else { return };
    let mut marks: BTreeMap<&str, Vec<(f64, f64, String)>> = BTreeMap::new();
    let table = include_str!("readers_expected.tsv");
    let mut lines = 0;
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let cells: Vec<&str> = line.split('\t').collect();
        let number = |i: usize| cells[i].parse::<f64>().unwrap();
        let of_file = marks.entry(cells[0]).or_default();
        if cells[1] == "annotation" {
            of_file.push((number(2), number(3), cells[4].to_string()));
            continue;
        }
        let path = root.join(cells[0]);
        let (first, count) = (number(2) as usize, number(3) as usize);
        let (crc, values) = signals(&path, first, count);
        assert_eq!(crc, cells[6], "{line}");
        assert_eq!(values.len(), count * number(5) as usize, "{line}");
        let squares = values.iter().map(|v| v * v).sum::<f64>();
        let size = (squares * values.len() as f64).sqrt();
        assert!((values.iter().sum::<f64>() - number(7)).abs() <= 1e-7 * size, "{line}");
        assert!((squares - number(8)).abs() <= 1e-6 * squares, "{line}: {squares}");
        let range = (squares / values.len() as f64).sqrt();
        assert!(close(values[0], number(9), range), "{line}: {}", values[0]);
        assert!(close(values[values.len() - 1], number(10), range), "{line}");
        let recording = Recording::open(&path).unwrap();
        assert_eq!(recording.channels[first].sample_rate, number(4), "{line}");
        lines += 1;
    }
    for (file, theirs) in &marks {
        let ours = Recording::open(root.join(file)).unwrap().annotations;
        same_marks(&ours, theirs, file);
    }
    assert!(lines > 70 && marks.len() > 70);
}

#[derive(serde::Deserialize)]
struct Dumped {
    path: PathBuf,
    reader: String,
    #[serde(default)]
    refused: String,
    #[serde(default)]
    annotations: Vec<(f64, f64, String)>,
    #[serde(default)]
    signals: Vec<DumpedSignal>,
}

#[derive(serde::Deserialize)]
struct DumpedSignal {
    label: String,
    rate: f64,
    values: String,
}

/// The recordings below a folder whose extension is one of `extensions`.
fn recordings(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(recordings(&path, extensions));
        } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Calls `check` with every line that the oracle dumps and a way to read its values.
fn against_oracle(paths: &[PathBuf], mut check: impl FnMut(&Dumped, &dyn Fn(&str) -> Vec<f64>)) {
    let Some(python) = python() else { return };
    for some in paths.chunks(8) {
        let out = tempfile::tempdir().unwrap();
        let mut command = Command::new(&python);
        command.arg(oracle()).arg("dump").arg(out.path()).args(some);
        assert!(command.status().unwrap().success());
        let values = |name: &str| {
            let bytes = std::fs::read(out.path().join(name)).unwrap();
            bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
        };
        for line in std::fs::read_to_string(out.path().join("index.jsonl")).unwrap().lines() {
            let dumped: Dumped = serde_json::from_str(line).unwrap();
            if dumped.refused.is_empty() {
                check(&dumped, &values);
            } else {
                eprintln!("skipped: {line}");
            }
        }
    }
}

#[test]
fn every_edf_sample() {
    let Some(root) = data("") else { return };
    let mut compared = 0;
    against_oracle(&recordings(&root, &["edf", "bdf"]), |theirs, values| {
        let place = format!("{} by {}", theirs.path.display(), theirs.reader);
        let edf = Edf::open(&theirs.path).unwrap();
        let recording = Recording::open(&theirs.path).unwrap();
        let header: Vec<_> = edf.header().signals.iter().enumerate().collect();
        let header: Vec<_> = header.iter().filter(|(_, s)| !s.is_annotations()).collect();
        assert_eq!(header.len(), theirs.signals.len(), "{place}");
        assert_eq!(recording.channels.len(), theirs.signals.len(), "{place}");
        for ((&(i, signal), channel), other) in
            header.into_iter().zip(&recording.channels).zip(&theirs.signals)
        {
            assert_eq!(
                (signal.label.as_str(), channel.sample_rate),
                (other.label.as_str(), other.rate)
            );
            let (ours, theirs) = (edf.physical(i).unwrap(), values(&other.values));
            let range = (signal.physical_max - signal.physical_min).abs();
            assert_eq!(ours.len(), theirs.len(), "{place}");
            assert_eq!(channel.samples.len(), theirs.len(), "{place}");
            let factor = match signal.unit.as_str() {
                "mV" => 1e3,
                "V" => 1e6,
                _ => 1.0,
            };
            for ((a, &b), &stored) in ours.iter().zip(&theirs).zip(&channel.samples) {
                assert!((a - b).abs() <= 1e-12 * (b.abs() + range), "{place} {i}: {a} {b}");
                assert!(close(f64::from(stored), b * factor, range * factor), "{place} {i}");
            }
            compared += ours.len();
        }
        same_marks(&recording.annotations, &theirs.annotations, &place);
    });
    eprintln!("{compared} samples compared");
}

#[test]
fn every_brainvision_and_eeglab_sample() {
    let Some(root) = data("fixtures") else { return };
    let mut compared = 0;
    let paths: Vec<PathBuf> = recordings(&root, &["vhdr", "set"]);
    against_oracle(&paths, |theirs, values| {
        let place = format!("{} by {}", theirs.path.display(), theirs.reader);
        let recording = Recording::open(&theirs.path).unwrap();
        assert_eq!(recording.channels.len(), theirs.signals.len(), "{place}");
        for (channel, other) in recording.channels.iter().zip(&theirs.signals) {
            let theirs = values(&other.values);
            let largest = theirs.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            assert_eq!((channel.sample_rate, channel.samples.len()), (other.rate, theirs.len()));
            for (&a, &b) in channel.samples.iter().zip(&theirs) {
                assert!(close(f64::from(a), b, largest), "{place} {}: {a} {b}", channel.name);
            }
            if !other.label.starts_with("EEG 0") {
                assert_eq!(channel.name, other.label, "{place}");
            }
            compared += theirs.len();
        }
        same_marks(&recording.annotations, &theirs.annotations, &place);
    });
    eprintln!("{compared} samples compared");
}

#[test]
fn matlab_73_files_of_h5py() {
    let Some(python) = python() else { return };
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(&python);
    if !command.arg(oracle()).arg("write73").arg(out.path()).arg("73").status().unwrap().success() {
        eprintln!("skipped: {python} has no h5py");
        return;
    }
    for name in ["contiguous", "deflated", "checked"] {
        let path = out.path().join(name).with_extension("set");
        let recording = Recording::open(&path).unwrap();
        let bytes = std::fs::read(path.with_extension("f64")).unwrap();
        let expect: Vec<f32> = bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32)
            .collect();
        assert_eq!(recording.channels.len(), 7);
        for (i, channel) in recording.channels.iter().enumerate() {
            let expect: Vec<f32> = expect.iter().skip(i).step_by(7).copied().collect();
            assert_eq!(channel.samples, expect, "{name} {i}");
            assert_eq!(
                (channel.name.as_str(), channel.sample_rate),
                (&*format!("E{}", i + 1), 250.0)
            );
            assert_eq!(channel.kind, ChannelKind::Eeg);
        }
        let marks: Vec<_> =
            (0..40).map(|i| (f64::from(i) * 0.1, 0.0, format!("mark {i}"))).collect();
        same_marks(&recording.annotations, &marks, name);
        let whole = std::fs::read(&path).unwrap();
        damaged_copies(&whole, whole.len(), &path);
    }
}

/// Cuts and changes a file's bytes below `reach`: errors are fine, a panic is not.
fn damaged_copies(whole: &[u8], reach: usize, path: &Path) {
    let mut rng = Rng::new(0x5eed, whole.len() as u64);
    for _ in 0..20 {
        std::fs::write(path, &whole[..rng.below(whole.len())]).unwrap();
        let message = Recording::open(path).unwrap_err().to_string();
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(message.contains(&*name) && message.contains("remedy: "), "{message}");
    }
    for round in 0..100 {
        let mut bytes = whole.to_vec();
        for _ in 0..1 + round % 8 {
            bytes[rng.below(reach)] = rng.next_u32() as u8;
        }
        std::fs::write(path, &bytes).unwrap();
        let _ = Recording::open(path);
    }
}

#[test]
fn matlab_73_file_of_matlab() {
    let Some(root) = data("fixtures") else { return };
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("eeglab-v73.set");
    std::fs::copy(root.join("eeglab-v73.set"), &set).unwrap();
    let message = Recording::open(&set).unwrap_err().to_string();
    assert!(message.contains("test_raw.fdt, which is not beside the .set"), "{message}");
    std::fs::copy(root.join("eeglab_data.fdt"), set.with_extension("fdt")).unwrap();
    let (v73, v5) = (Recording::open(&set), Recording::open(root.join("eeglab_data.set")));
    let (v73, v5) = (v73.unwrap(), v5.unwrap());
    // The same recording, saved without the electrodes' names.
    assert_eq!((v73.channels.len(), v73.annotations), (v5.channels.len(), v5.annotations));
    for (a, b) in v73.channels.iter().zip(&v5.channels) {
        assert_eq!((a.sample_rate, &a.samples), (b.sample_rate, &b.samples));
    }
    let whole = std::fs::read(root.join("eeglab-v73.set")).unwrap();
    damaged_copies(&whole, 8192, &set);
}

#[test]
fn names_and_kinds_of_the_fixtures() {
    let Some(root) = data("fixtures") else { return };
    let open = |name: &str| Recording::open(root.join(name)).unwrap();
    let count =
        |recording: &Recording, kind| recording.channels.iter().filter(|c| c.kind == kind).count();
    let biosemi = open("biosemi-73ch.bdf");
    assert_eq!(count(&biosemi, ChannelKind::Eeg), 66);
    assert_eq!(count(&biosemi, ChannelKind::Eog), 3);
    assert_eq!(count(&biosemi, ChannelKind::Misc), 3);
    assert_eq!(biosemi.channel("Status").unwrap().kind, ChannelKind::Trigger);
    let duplicates = open("duplicate-labels.edf");
    let names: Vec<&str> = duplicates.channels.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["F1-Ref-1", "F2-Ref", "F1-Ref-2"]);
    let mixed = open("mixed-rates.edf");
    assert_eq!(mixed.channels[0].samples.len(), 11_000);
    assert_eq!(mixed.channels[1].samples.len(), 1_408);
    assert_eq!((mixed.channels[0].unit.as_str(), mixed.duration_s()), ("uV", 110.0));
    let clinical = open("clinical-139ch.edf");
    assert_eq!(count(&clinical, ChannelKind::Eeg), 136);
    assert_eq!(clinical.annotations.len(), 5);
    let arithmetic = open("eegmat-500hz.edf");
    assert_eq!((arithmetic.channels[0].name.as_str(), arithmetic.duration_s()), ("Fp1", 60.0));
    assert_eq!(count(&arithmetic, ChannelKind::Ecg), 1);
    let eeglab = open("eeglab_data.set");
    assert_eq!((count(&eeglab, ChannelKind::Eeg), count(&eeglab, ChannelKind::Eog)), (30, 2));
    let brainvision = open("test.vhdr");
    assert_eq!(count(&brainvision, ChannelKind::Eeg), 26);
    assert!(brainvision.notes[0].contains("CP5 (BS), CP6 (\u{b5}S)"), "{:?}", brainvision.notes);
}

#[test]
fn real_files_cut_or_damaged() {
    let Some(root) = data("fixtures") else { return };
    let dir = tempfile::tempdir().unwrap();
    let names =
        ["duplicate-labels.edf", "biosemi-73ch.bdf", "mixed-rates.edf", "eeglab-2021-layout.set"];
    for name in names {
        let whole = std::fs::read(root.join(name)).unwrap();
        damaged_copies(&whole, 2000, &dir.path().join(name));
    }
    let unknown = dir.path().join("a.mp3");
    let message = Recording::open(&unknown).unwrap_err().to_string();
    assert!(
        message.contains("no reader for '.mp3'") && message.contains(".edf, .bdf, .vhdr, .set"),
        "{message}"
    );
    let message = Recording::open(dir.path().join("gone.edf")).unwrap_err().to_string();
    assert!(message.contains("gone.edf: cannot read"), "{message}");
}

#[test]
fn the_arithmetic_dataset() {
    let Some(root) = data("eegmat") else { return };
    let dataset = Dataset::open(&root).unwrap();
    assert!(dataset.name.starts_with("EEG during mental arithmetic"), "{}", dataset.name);
    assert_eq!(dataset.participants.subjects().len(), 36);
    assert_eq!(dataset.participants.value("sub-00", "sex"), Some("F"));
    assert_eq!((dataset.recordings.len(), dataset.skipped.len()), (72, 0));
    assert!(dataset.notes.is_empty(), "{:?}", dataset.notes);
    let tasks = |task: &str| dataset.recordings.iter().filter(|e| e.task == task).count();
    assert_eq!((tasks("rest"), tasks("arithmetic")), (36, 36));
    for entry in &dataset.recordings {
        assert_eq!(entry.sidecar().power_line_hz, Some(50.0));
        let recording = entry.read().unwrap();
        assert!(recording.notes.is_empty(), "{:?}", recording.notes);
        let kinds = |kind| recording.channels.iter().filter(|c| c.kind == kind).count();
        assert_eq!((kinds(ChannelKind::Eeg), kinds(ChannelKind::Misc)), (19, 1));
        // Stored in mV: tens to hundreds of µV when read rightly, fractions of 1 otherwise.
        let heart = recording.channel("ECG").unwrap();
        let largest = heart.samples.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(heart.unit == "uV" && (30.0..3000.0).contains(&largest), "{largest}");
        assert_eq!(recording.channel("A2-A1").unwrap().kind, ChannelKind::Misc);
    }
}

#[test]
fn a_dataset_without_its_signals() {
    let Some(root) = data("hbn-meta") else { return };
    let message = Dataset::open(&root).unwrap_err().to_string();
    assert!(message.contains("never downloaded") && message.contains("datalad get"), "{message}");
    let dataset = Dataset::scan(&root).unwrap();
    assert_eq!(dataset.participants.subjects().len(), 136);
    assert_eq!(dataset.participants.value("sub-NDARAC904DMU", "age"), Some("11.3386"));
    let named: Vec<String> = dataset.skipped.iter().map(|s| s.path.display().to_string()).collect();
    assert_eq!(named.len(), 4, "{named:?}");
    assert!(dataset.notes[0].starts_with("134 of the 136 subjects"), "{:?}", dataset.notes);
}
