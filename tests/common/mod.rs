//! What the tests of the program share: a small generated dataset and the program's runs on it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;

use engine::data::Recording;
use engine::data::format::edf_write::{self, Contents, Encoding, Signal};
use engine::data::rng::Rng;
use engine::data::synth;

/// Settings of a model that trains within a second.
const TINY: &[&str] = &[
    "model.d_model=16",
    "model.n_heads=2",
    "model.n_layers=1",
    "model.patch=20",
    "data.window_s=1.0",
    "data.stride_s=1.0",
    "train.warmup=2",
];

/// A folder with a dataset `data`, a cache and runs.
pub struct Bench {
    pub folder: tempfile::TempDir,
}

impl Bench {
    /// Generated EEG of `subjects` with 19 channels, 8 s each.
    pub fn new(subjects: usize) -> Self {
        Self::with_channels(subjects, 19)
    }

    /// As [`Self::new`] with 19 or 129 channels.
    pub fn with_channels(subjects: usize, n_channels: usize) -> Self {
        let bench = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        let settings = synth::Settings {
            subjects,
            seconds_per_condition: 4,
            sample_rate: 100,
            n_channels,
            seed: 7,
            age_range: [5.0, 22.0],
        };
        let made = synth::write(&settings, &bench.data(), &|_, _| {}, &AtomicBool::new(false))
            .expect("generated");
        assert!(made.is_complete);
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// Recordings, by subject.
    pub fn recordings(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(self.data())
            .expect("listed")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir() && path.join("eeg").is_dir())
            .map(|subject| {
                let name = subject.file_name().expect("a name").to_string_lossy().to_string();
                subject.join(format!("eeg/{name}_task-RestingState_eeg.bdf"))
            })
            .collect();
        found.sort();
        found
    }

    /// Adds a column to participants.tsv; `value` gives it from the subject's place in the table.
    pub fn add_column(&self, name: &str, value: impl Fn(usize) -> String) {
        let path = self.data().join("participants.tsv");
        let text = fs::read_to_string(&path).expect("read");
        let mut lines = text.lines();
        let mut table = format!("{}\t{name}\n", lines.next().expect("a header"));
        for (i, line) in lines.enumerate() {
            table.push_str(&format!("{line}\t{}\n", value(i)));
        }
        fs::write(path, table).expect("written");
    }

    /// The program with this bench's cache.
    pub fn engine(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command
            .args(args)
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("TERM", "dumb")
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// `engine train` of a tiny model in the folder `run`; words with a "." before "=" are settings.
    pub fn train(&self, run: &str, more: &[&str]) -> Command {
        let mut args = vec!["train", "--data", "data", "--run", run];
        let mut settings: Vec<&str> = TINY.to_vec();
        for word in more {
            let is_setting = word.split_once('=').is_some_and(|(name, _)| name.contains('.'));
            if is_setting { settings.push(word) } else { args.push(word) }
        }
        settings.iter().for_each(|setting| args.extend(["--set", setting]));
        self.engine(&args)
    }

    /// As [`Self::train`], to its end, which must be a good one.
    pub fn trained(&self, run: &str, more: &[&str]) -> PathBuf {
        let output = self.train(run, more).output().expect("started");
        assert!(output.status.success(), "{run}: {}", said(&output));
        self.path(run)
    }
}

/// Everything an ended program said.
pub fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Bytes of a file.
pub fn bytes(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Loudly scaled copies: multiplies the samples of a BDF+ file by `factor`, by its header.
pub fn scale_physical_range(path: &Path, factor: f64) {
    let mut all = bytes(path);
    let count: usize = text(&all, 252, 4).parse().expect("a number");
    for signal in 0..count - 1 {
        for at in [256 + 104 * count + 8 * signal, 256 + 112 * count + 8 * signal] {
            let value: f64 = text(&all, at, 8).parse().expect("a number");
            let scaled = format!("{:<8.8}", format!("{}", value * factor));
            all[at..at + 8].copy_from_slice(scaled.as_bytes());
        }
    }
    fs::write(path, all).expect("written");
}

/// Replaces a recording by an EDF+ file of its first `channels` channels; gives its path.
pub fn as_edf(path: &Path, channels: usize) -> PathBuf {
    let recording = Recording::open(path).expect("read");
    let signal = |c: &'_ engine::data::Channel| -> (String, Vec<f32>, f64) {
        (c.name.clone(), c.samples.clone(), c.sample_rate)
    };
    let all: Vec<_> = recording.channels.iter().take(channels).map(signal).collect();
    let signals: Vec<Signal<'_>> = all
        .iter()
        .map(|(label, samples, sample_rate)| Signal {
            label,
            transducer: "",
            unit: "uV",
            prefilter: "",
            physical_range: (-1000.0, 1000.0),
            sample_rate: *sample_rate,
            samples,
        })
        .collect();
    let contents = Contents {
        encoding: Encoding::Edf,
        record_s: 1.0,
        equipment: "test",
        signals: &signals,
        annotations: &[],
    };
    let to = path.with_extension("edf");
    let _ = edf_write::write(&to, &contents).expect("written");
    fs::remove_file(path).expect("removed");
    to
}

/// Replaces a recording by a BrainVision file of 32-bit floats, its samples `[channel][time]`
/// changed; gives the header's path.
pub fn as_brainvision(path: &Path, change: impl FnOnce(&mut [Vec<f32>])) -> PathBuf {
    let recording = Recording::open(path).expect("read");
    let mut rows: Vec<Vec<f32>> = recording.channels.iter().map(|c| c.samples.clone()).collect();
    change(&mut rows);
    let to = path.with_extension("vhdr");
    let stem = to.file_stem().expect("a name").to_string_lossy().to_string();
    let interval_us = 1e6 / recording.channels[0].sample_rate;
    let mut header = format!(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nDataFile={stem}.eeg\n\
         DataFormat=BINARY\nDataOrientation=VECTORIZED\nNumberOfChannels={}\n\
         SamplingInterval={interval_us}\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n\
         [Channel Infos]\n",
        rows.len()
    );
    for (i, channel) in recording.channels.iter().enumerate() {
        header.push_str(&format!("Ch{}={},,1,uV\n", i + 1, channel.name));
    }
    let samples: Vec<u8> = rows.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    fs::write(path.with_extension("eeg"), samples).expect("written");
    fs::write(&to, header).expect("written");
    fs::remove_file(path).expect("removed");
    to
}

fn text(all: &[u8], at: usize, n: usize) -> &str {
    std::str::from_utf8(&all[at..at + n]).expect("ASCII").trim()
}

/// A seeded source of randomness.
pub fn rng(seed: u64) -> Rng {
    Rng::new(seed, 0x7465_7374)
}
