//! Datasets written to a temporary folder, one trap each.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Dataset, Entry};
use crate::data::format::edf::tests::{annotations, eeg, file};
use crate::data::rng::Rng;
use crate::data::{ChannelKind, Recording};

struct Tree(tempfile::TempDir);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            tree.write(path, text.as_bytes());
        }
        tree
    }

    fn write(&self, path: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn signal(&self, path: &str, seed: u64) {
        let rng = &mut Rng::new(seed, 1);
        let mut heart = eeg("ECG ECG", rng, 8, 3);
        heart.unit = "mV";
        let sources = [eeg("EEG Fp1", rng, 8, 3), eeg("EEG X1", rng, 8, 3), heart];
        self.write(path, &file(&sources, "", false, 3, 0.5));
    }

    fn open(&self) -> Dataset {
        Dataset::open(self.0.path()).unwrap()
    }

    fn error(&self) -> String {
        let message = Dataset::open(self.0.path()).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("remedy: "), "{message}");
        message
    }
}

fn labels(entry: &Entry) -> String {
    let session = entry.session.as_deref().unwrap_or("-");
    format!("{} {session} {} {}", entry.subject, entry.task, entry.run.as_deref().unwrap_or("-"))
}

fn noted(recording: &Recording, part: &str) -> bool {
    recording.notes.iter().any(|note| note.contains(part))
}

const TABLE: &str = "participant_id\tage\tsex\nsub-02\tn/a\tF\nsub-01\t7.5\tM\nsub-03\t8\tF\n";

#[test]
fn recordings_are_found_and_sorted() {
    let tree = Tree::new(&[
        ("participants.tsv", TABLE),
        ("dataset_description.json", r#"{"Name": "Some EEG"}"#),
    ]);
    for (i, path) in [
        "sub-02/ses-b/eeg/sub-02_ses-b_task-rest_run-10_eeg.edf",
        "sub-02/ses-b/eeg/sub-02_ses-b_task-rest_run-9_eeg.edf",
        "sub-02/ses-a/eeg/sub-02_ses-a_task-video_eeg.EDF",
        "sub-01/eeg/sub-01_task-rest_eeg.edf",
    ]
    .iter()
    .enumerate()
    {
        tree.signal(path, i as u64);
    }
    let dataset = tree.open();
    assert_eq!(dataset.name, "Some EEG");
    let found: Vec<String> = dataset.recordings.iter().map(labels).collect();
    let expect = ["sub-01 - rest -", "sub-02 a video -", "sub-02 b rest 9", "sub-02 b rest 10"];
    assert_eq!(found, expect);
    assert!(dataset.skipped.is_empty(), "{:?}", dataset.skipped);
    assert!(dataset.notes[0].starts_with("1 of the 3 subjects"), "{:?}", dataset.notes);
    let people = &dataset.participants;
    assert_eq!(people.columns(), ["participant_id", "age", "sex"]);
    assert_eq!(people.subjects(), ["sub-02", "sub-01", "sub-03"]);
    assert_eq!(people.value("sub-01", "age"), Some("7.5"));
    assert_eq!(people.value("sub-02", "age"), None);
    assert_eq!(people.value("sub-04", "age"), None);
    assert_eq!(people.value("sub-01", "iq"), None);
}

#[test]
fn every_reason_to_skip() {
    let tree = Tree::new(&[
        (
            "participants.tsv",
            "participant_id\trest\tvideo_1\tvideo_2\nsub-1\tavailable\tunavailable\tcaution\nsub-2\t\t\t\n",
        ),
        ("sub-1/eeg/sub-1_task-odd_eeg.edf", "/annex/objects/MD5E-s100--0.edf\n"),
        ("sub-1/eeg/sub-1_task-lfs_eeg.edf", "version https://git-lfs.github.com/spec/v1\n"),
        ("sub-1/eeg/sub-1_task-cnt_eeg.cnt", "x"),
        ("sub-1/eeg/sub-1_task-gone_eeg.json", "{}"),
        ("sub-1/eeg/sub-1_task-gone_channels.tsv", "name\n"),
        ("sub-2/anat/x.nii", ""),
    ]);
    for (i, path) in [
        "sub-1/eeg/sub-1_task-rest_eeg.edf",
        "sub-1/eeg/sub-1_task-video_run-1_eeg.edf",
        "sub-1/eeg/sub-1_task-video_run-2_eeg.edf",
        "sub-1/eeg/sub-1_eeg.edf",
        "sub-1/eeg/sub-1_task-rest.edf",
        "sub-1/eeg/sub-2_task-rest_eeg.edf",
        "sub-9/eeg/sub-9_task-rest_eeg.edf",
    ]
    .iter()
    .enumerate()
    {
        tree.signal(path, i as u64);
    }
    let dataset = tree.open();
    let found: Vec<String> = dataset.recordings.iter().map(labels).collect();
    assert_eq!(found, ["sub-1 - rest -", "sub-1 - video 2"]);
    assert!(noted(&dataset.recordings[1].read().unwrap(), "with caution"));
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let skipped: Vec<(String, &str)> =
        dataset.skipped.iter().map(|s| (name(&s.path), s.why.as_str())).collect();
    let expect = [
        ("sub-1_eeg.edf", "no task-"),
        ("sub-1_task-cnt_eeg.cnt", "no reader for '.cnt'"),
        ("sub-1_task-gone_eeg.json", "never downloaded"),
        ("sub-1_task-lfs_eeg.edf", "git-lfs"),
        ("sub-1_task-odd_eeg.edf", "git-annex"),
        ("sub-1_task-rest.edf", "not of the form"),
        ("sub-1_task-video_run-1_eeg.edf", "unavailable"),
        ("sub-2_task-rest_eeg.edf", "another subject"),
        ("sub-2", "holds no EEG"),
        ("sub-9", "not in participants.tsv"),
    ];
    assert_eq!(skipped.len(), expect.len(), "{skipped:?}");
    for ((name, why), (file, part)) in skipped.iter().zip(expect) {
        assert!(name == file && why.contains(part), "{name}: {why}; expected {file}: {part}");
    }
}

#[test]
fn sidecars_are_inherited_and_merged() {
    let tree = Tree::new(&[
        ("participants.tsv", TABLE),
        (
            "task-rest_eeg.json",
            r#"{"PowerLineFrequency": 60, "SamplingFrequency": 500, "EEGReference": "Cz"}"#,
        ),
        ("sub-01/sub-01_eeg.json", r#"{"PowerLineFrequency": "n/a", "RecordingDuration": 9}"#),
        ("sub-01/eeg/sub-01_task-rest_eeg.json", r#"{"SamplingFrequency": 16.0}"#),
        (
            "task-rest_channels.tsv",
            "name\ttype\tunits\tstatus\nECG ECG\tECG\tmV\tgood\nEEG Fp1\tEEG\tmV\tbad\nX1\tMISC\tn/a\tn/a\n",
        ),
        (
            "sub-01/eeg/sub-01_task-rest_events.tsv",
            "onset\tduration\ttrial_type\tvalue\r\n1.25\tn/a\tn/a\t17\r\n0.5\t0.25\tblink\t3\r\nn/a\t1\tx\t4\r\n1\t0\tn/a\tn/a\r\n",
        ),
    ]);
    tree.signal("sub-01/eeg/sub-01_task-rest_eeg.edf", 5);
    let dataset = tree.open();
    let entry = &dataset.recordings[0];
    let sidecar = entry.sidecar();
    assert_eq!((sidecar.sampling_hz, sidecar.power_line_hz), (Some(16.0), None));
    assert_eq!((sidecar.duration_s, sidecar.reference.as_deref()), (Some(9.0), Some("Cz")));
    let recording = entry.read().unwrap();
    let found: Vec<_> = recording
        .channels
        .iter()
        .map(|c| (c.name.as_str(), c.kind, c.bad, c.unit.as_str()))
        .collect();
    let expect = [
        ("Fp1", ChannelKind::Eeg, true, "uV"),
        ("X1", ChannelKind::Misc, false, "uV"),
        ("ECG", ChannelKind::Ecg, false, "uV"),
    ];
    assert_eq!(found, expect);
    let marks: Vec<_> =
        recording.annotations.iter().map(|a| (a.onset_s, a.duration_s, a.text.as_str())).collect();
    assert_eq!(marks, [(0.5, 0.25, "blink"), (1.0, 0.0, "event"), (1.25, 0.0, "17")]);
    assert!(noted(&recording, "\"Fp1\": channels.tsv gives the unit mV, the file uV"));
    assert!(!noted(&recording, "\"ECG\""), "{:?}", recording.notes);
    assert!(noted(&recording, "1 rows have no onset"));
    assert!(noted(&recording, "gives 9 s, the file holds 1.5 s"));
    assert!(!noted(&recording, "Hz"), "{:?}", recording.notes);
}

#[test]
fn contradictions_are_noted() {
    let tree = Tree::new(&[
        ("participants.tsv", TABLE),
        ("sub-01/eeg/sub-01_task-a_eeg.json", r#"{"SamplingFrequency": 500}"#),
        ("sub-01/eeg/sub-01_task-a_channels.tsv", "name\ttype\nE1\tEEG\nE2\tEOG\nFp1\tEEG\n"),
        ("sub-01/eeg/sub-01_task-b_eeg.json", "{\"SamplingFrequency\": "),
        ("sub-01/eeg/sub-01_task-b_channels.tsv", "name\ttype\nFp1\tEEG\nOz\tEEG\n"),
        ("sub-01/eeg/sub-01_task-b_events.tsv", "time\n3\n"),
    ]);
    tree.signal("sub-01/eeg/sub-01_task-a_eeg.edf", 5);
    tree.signal("sub-01/eeg/sub-01_task-b_eeg.edf", 6);
    let dataset = tree.open();
    let first = dataset.recordings[0].read().unwrap();
    assert!(noted(&first, "gives 500 Hz, the file 16 Hz"), "{:?}", first.notes);
    // "Fp1" is the table's third row, so that of the others only the second is at its place.
    let names: Vec<&str> = first.channels.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["Fp1", "E2", "ECG"]);
    assert_eq!(first.channels[1].kind, ChannelKind::Eog);
    assert!(noted(&first, "1 channels were named by their position"));
    let second = dataset.recordings[1].read().unwrap();
    for part in [
        "describes 1 channels the file lacks: Oz",
        "does not describe 2 channels: X1, ECG",
        "not valid JSON",
        "no column onset",
    ] {
        assert!(noted(&second, part), "{part}: {:?}", second.notes);
    }
}

#[test]
fn events_fall_into_the_right_side_of_a_gap() {
    let tree = Tree::new(&[
        ("participants.tsv", TABLE),
        ("sub-01/eeg/sub-01_task-a_events.tsv", "onset\tduration\ttrial_type\n1\t0\ta\n11\t1\tb\n"),
    ]);
    let lists: [&[u8]; 2] = [b"+0.5\x14\x14\0+1\x14own\x14\0", b"+10.5\x14\x14\0"];
    let sources = [eeg("EEG Cz", &mut Rng::new(3, 3), 10, 2), annotations(&lists, 40)];
    tree.write("sub-01/eeg/sub-01_task-a_eeg.edf", &file(&sources, "EDF+D", false, 2, 2.0));
    let recording = tree.open().recordings[0].read().unwrap();
    let marks: Vec<_> =
        recording.annotations.iter().map(|a| (a.onset_s, a.duration_s, a.text.as_str())).collect();
    assert_eq!(marks, [(1.0, 0.0, "a"), (2.0, 0.0, "boundary"), (3.0, 1.0, "b")]);
    assert!(noted(&recording, "replaces the file's 1 marks"));
}

#[test]
fn units_of_a_file_without_units_come_from_the_table() {
    let tree = Tree::new(&[
        ("participants.tsv", TABLE),
        ("sub-01/eeg/sub-01_task-a_channels.tsv", "name\ttype\tunits\nCz\tEEG\tmV\nFz\tEEG\tV\n"),
    ]);
    let rng = &mut Rng::new(8, 8);
    let mut blank = eeg("Cz", rng, 6, 1);
    blank.unit = "";
    let mut raw = eeg("Fz", rng, 6, 1);
    raw.physical = (0.0, 0.0);
    let sources = [blank, raw];
    tree.write("sub-01/eeg/sub-01_task-a_eeg.edf", &file(&sources, "", false, 1, 1.0));
    let entry = &tree.open().recordings[0];
    let (alone, merged) = (Recording::open(&entry.path).unwrap(), entry.read().unwrap());
    assert_eq!((alone.channels[0].unit.as_str(), merged.channels[0].unit.as_str()), ("", "uV"));
    for (a, b) in alone.channels[0].samples.iter().zip(&merged.channels[0].samples) {
        assert!((a * 1000.0 - b).abs() <= 1e-6 * b.abs(), "{a} {b}");
    }
    assert_eq!(merged.channels[1].kind, ChannelKind::Misc);
    assert!(noted(&merged, "no calibration"), "{:?}", merged.notes);
}

#[test]
fn folders_that_are_no_dataset() {
    let tree = Tree::new(&[]);
    let at = |path: &str| Dataset::open(tree.0.path().join(path)).unwrap_err().to_string();
    assert!(at("nowhere").contains("no such folder"));
    let plain = tree.write("plain.txt", b"x");
    assert!(at("plain.txt").contains("is not a folder"));
    fs::remove_file(plain).unwrap();
    assert!(tree.error().contains("found 0 folders and 0 files"));
    tree.signal("a.edf", 1);
    tree.write("sub-1/eeg/x", b"");
    let message = tree.error();
    assert!(message.contains("1 folders (sub-1) and 1 files, 1 of them recordings"), "{message}");
    assert!(message.contains("write a participants.tsv"), "{message}");
    tree.write("inner/participants.tsv", b"participant_id\n");
    assert!(tree.error().contains("inner: give that folder"));
    let message = at("inner");
    assert!(message.contains("no sub- folders"), "{message}");
    fs::create_dir_all(tree.0.path().join("inner/sub-1/eeg")).unwrap();
    let message = at("inner/sub-1/eeg");
    assert!(message.contains("inner: give that folder"), "{message}");
    tree.write("participants.tsv", b"subject\tage\n1\t2\n");
    let message = tree.error();
    assert!(message.contains("no column participant_id, but: subject, age"), "{message}");
}

#[test]
fn nothing_downloaded() {
    let tree = Tree::new(&[
        ("participants.tsv", "participant_id\nsub-1\nsub-1\n1\n\t\nsub-2\n"),
        ("sub-1/eeg/sub-1_task-a_eeg.edf", "/annex/objects/MD5E-s100--0.edf\n"),
        ("sub-2/eeg/sub-2_task-a_eeg.bdf", "/annex/objects/MD5E-s101--0.bdf\n"),
    ]);
    let message = tree.error();
    assert!(message.contains("2 passed over: the signal was never downloaded"), "{message}");
    assert!(message.contains("datalad get"), "{message}");
    let dataset = Dataset::scan(tree.0.path()).unwrap();
    assert_eq!(dataset.skipped_by_reason().len(), 1);
    assert_eq!(dataset.skipped.len(), 2);
    assert_eq!(dataset.participants.subjects(), ["sub-1", "sub-2"]);
    assert!(dataset.notes.iter().any(|n| n.contains("listed more than once")));
}
