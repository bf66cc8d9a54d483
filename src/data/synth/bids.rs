//! The folder a generated dataset lives in, by BIDS 1.9 (Pernet et al. 2019 for EEG).

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::artifacts::{Fault, MAINS_HZ, has_mains};
use super::{Generated, Settings, Sex, Subject};
use crate::data::Annotation;
use crate::data::format::edf_write::{self, Contents, Encoding, PARTIAL, Signal};
use crate::{Error, Result};

const TASK: &str = "RestingState";

/// Part of the settings file: raised whenever the same settings would give other bytes.
const GENERATOR: u32 = 1;

/// Makes `dir` a folder of these settings, or recognises it as one.
pub(super) fn claim(settings: &Settings, dir: &Path) -> Result<()> {
    let marker = dir.join("code").join("synth.json");
    let text = pretty(&json!({ "generator": GENERATOR, "settings": settings }));
    if fs::read_to_string(&marker).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(Error::io(dir, "create the folder"))?;
    if fs::read_dir(dir).map_err(Error::io(dir, "list"))?.next().is_some() {
        let problem = if marker.exists() {
            "holds EEG generated with other settings"
        } else {
            "is not empty, and not a dataset generated earlier"
        };
        let remedy = "name a new folder, or remove this one";
        return Err(Error::input(dir.display(), problem, remedy));
    }
    let code = dir.join("code");
    fs::create_dir_all(&code).map_err(Error::io(&code, "create the folder"))?;
    replace(&marker, &text)
}

fn eeg_folder(dir: &Path, id: &str) -> PathBuf {
    dir.join(id).join("eeg")
}

fn file_of(dir: &Path, id: &str, ending: &str) -> PathBuf {
    eeg_folder(dir, id).join(format!("{id}_task-{TASK}_{ending}"))
}

/// The recording is renamed into place after all its sidecars, so where it is, they are.
pub(super) fn has_recording(dir: &Path, id: &str) -> bool {
    file_of(dir, id, "eeg.bdf").is_file()
}

/// Writes one subject's folder; returns the size of its recording.
pub(super) fn write_subject(
    settings: &Settings,
    dir: &Path,
    subject: &Subject,
    recording: &Generated,
) -> Result<u64> {
    let folder = eeg_folder(dir, &subject.id);
    fs::create_dir_all(&folder).map_err(Error::io(&folder, "create the folder"))?;
    remove_partial(&folder)?;
    let marks = marks(settings, recording);
    replace(&file_of(dir, &subject.id, "channels.tsv"), &channels_tsv(settings, recording))?;
    replace(&file_of(dir, &subject.id, "events.tsv"), &events_tsv(settings, &marks))?;
    replace(&file_of(dir, &subject.id, "eeg.json"), &eeg_json(settings))?;
    let signals: Vec<Signal<'_>> = recording
        .names
        .iter()
        .zip(recording.scalp.samples.chunks_exact(recording.scalp.time))
        .map(|(label, samples)| Signal {
            label,
            transducer: "generated",
            unit: "uV",
            prefilter: "",
            // A step of 2^-10 µV; drift on a bad electrode stays well within.
            physical_range: (-8192.0, 8191.999),
            sample_rate: settings.sample_rate as f64,
            samples,
        })
        .collect();
    let contents = Contents {
        encoding: Encoding::Bdf,
        record_s: 1.0,
        equipment: "engine synth",
        signals: &signals,
        annotations: &marks,
    };
    let written = edf_write::write(&file_of(dir, &subject.id, "eeg.bdf"), &contents)?;
    Ok(written.bytes)
}

/// Removes what a killed process left unfinished.
fn remove_partial(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        if path.to_string_lossy().ends_with(PARTIAL) {
            fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
        }
    }
    Ok(())
}

/// Files of the whole dataset; its description comes last and says that all is there.
pub(super) fn write_dataset(settings: &Settings, dir: &Path, subjects: &[Subject]) -> Result<()> {
    replace(&dir.join("README"), &readme(settings))?;
    replace(&dir.join("participants.json"), &participants_json())?;
    replace(&dir.join("participants.tsv"), &participants_tsv(subjects))?;
    let description = json!({
        "Name": "Generated resting-state EEG",
        "BIDSVersion": "1.9.0",
        "DatasetType": "raw",
        "License": "CC0",
        "GeneratedBy": [{
            "Name": "engine synth",
            "Version": env!("CARGO_PKG_VERSION"),
            "Description": "No person was recorded: see README and code/synth.json",
        }],
    });
    replace(&dir.join("dataset_description.json"), &pretty(&description))
}

fn replace(path: &Path, text: &str) -> Result<()> {
    edf_write::replace(path, |file| file.write_all(text.as_bytes()))
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// The conditions as marks, in the words of the Healthy Brain Network's events.
fn marks(settings: &Settings, recording: &Generated) -> Vec<Annotation> {
    let seconds = |samples: usize| samples as f64 / settings.sample_rate as f64;
    let mark = |start, samples, text: &str| Annotation {
        onset_s: seconds(start),
        duration_s: seconds(samples),
        text: text.to_string(),
    };
    let start = mark(0, 0, "resting_start");
    let blocks = recording.blocks.iter().map(|block| {
        let eyes = if block.eyes_closed { "Close" } else { "Open" };
        mark(block.start, block.samples, &format!("instructed_to{eyes}Eyes"))
    });
    std::iter::once(start).chain(blocks).collect()
}

fn events_tsv(settings: &Settings, marks: &[Annotation]) -> String {
    let mut text = String::from("onset\tduration\tsample\tvalue\tevent_code\n");
    for mark in marks {
        let code = match mark.text.as_str() {
            "resting_start" => 90,
            "instructed_toOpenEyes" => 20,
            _ => 30,
        };
        let sample = (mark.onset_s * settings.sample_rate as f64).round();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}\t{}\t{sample}\t{}\t{code}",
            mark.onset_s, mark.duration_s, mark.text
        );
    }
    text
}

fn reference(settings: &Settings) -> &'static str {
    if settings.n_channels == 129 { "Cz" } else { "linked earlobes" }
}

fn channels_tsv(settings: &Settings, recording: &Generated) -> String {
    let mut text = String::from(
        "name\ttype\tunits\tsampling_frequency\treference\tstatus\tstatus_description\n",
    );
    for (name, fault) in recording.names.iter().zip(&recording.faults) {
        let status = if fault.is_some() { "bad" } else { "good" };
        let _ = writeln!(
            text,
            "{name}\tEEG\tuV\t{}\t{}\t{status}\t{}",
            settings.sample_rate,
            reference(settings),
            fault.map_or("n/a", Fault::description)
        );
    }
    text
}

fn eeg_json(settings: &Settings) -> String {
    let corner = 0.45 * settings.sample_rate as f64;
    pretty(&json!({
        "TaskName": TASK,
        "TaskDescription": "Open and closed eyes in turn, at rest",
        "Manufacturer": "generated",
        "EEGReference": reference(settings),
        "EEGPlacementScheme": placement(settings),
        "EEGChannelCount": settings.n_channels,
        "SamplingFrequency": settings.sample_rate,
        "PowerLineFrequency": MAINS_HZ,
        "RecordingType": "continuous",
        "RecordingDuration": 2 * settings.seconds_per_condition,
        "HardwareFilters": { "anti-aliasing": { "half-amplitude cutoff (Hz)": corner } },
        "SoftwareFilters": "n/a",
    }))
}

fn placement(settings: &Settings) -> &'static str {
    if settings.n_channels == 129 { "geodesic net, 128 channels and Cz" } else { "10-20" }
}

fn participants_tsv(subjects: &[Subject]) -> String {
    let mut text = String::from("participant_id\tage\tsex\tehq_total\n");
    for subject in subjects {
        let sex = match subject.sex {
            Sex::Female => "F",
            Sex::Male => "M",
        };
        let ehq = subject.ehq_total.map_or("n/a".to_string(), |x| x.to_string());
        let _ = writeln!(text, "{}\t{}\t{sex}\t{ehq}", subject.id, subject.age);
    }
    text
}

fn participants_json() -> String {
    pretty(&json!({
        "age": { "Description": "Age", "Units": "years" },
        "sex": { "Description": "Sex", "Levels": { "F": "female", "M": "male" } },
        "ehq_total": {
            "LongName": "Handedness",
            "Description": "Edinburgh Handedness Questionnaire, 100 for fully right-handed, \
                            -100 for fully left-handed; has no effect on the signal",
        },
    }))
}

fn readme(settings: &Settings) -> String {
    let mains = if has_mains(settings.sample_rate as f64) {
        "60 Hz mains (0.5 to 4 µV)".to_string()
    } else {
        format!("no mains: 60 Hz is not below half of {} Hz", settings.sample_rate)
    };
    format!(
        "\
Generated resting-state EEG
===========================
No person was recorded. `engine` computed every sample from the settings in code/synth.json;
the same settings give the same bytes.

{subjects} subjects, {channels} channels ({placement}; reference: {reference}), {rate} Hz, {seconds} s with open and
{seconds} s with closed eyes in turn (events.tsv, and annotations in the files).

What depends on age (skewed to the young, as in the studies this imitates):
- the alpha peak, 10.1 - 4.2 exp(-age / 5.5) Hz, SD 0.8 Hz between subjects;
- the exponent of the 1/f background, 1.9 - 0.5 (age - 5) / 16, SD 0.15;
- the background's amplitude, 2.5 % less a year, SD 25 %;
- heart rate, and how often muscles twitch.
What depends on sex (64 % male): beta, around 20 Hz, has 15 % more amplitude in females, SD 25 %.
That is weak by intent. ehq_total (handedness) has no effect at all.

How a recording is made: 200 background, 24 posterior alpha and 16 frontocentral beta dipoles, at
places of the subject's own, in a head of three spheres (brain, skull, scalp); noise shaped in
frequency; alpha in bursts, weaker with open eyes. Then electrode gains, amplifier noise, drift,
blinks (100 to 300 µV at the forehead, 0.3 s), muscle bursts, the heart, {mains};
one channel in fifty is bad, and marked so in channels.tsv.

What it lacks: saccades, event-related responses, sleep, pathology, real anatomy. A model that does
well here has shown that it trains, not that it understands brains.
",
        subjects = settings.subjects,
        channels = settings.n_channels,
        placement = placement(settings),
        reference = reference(settings),
        rate = settings.sample_rate,
        seconds = settings.seconds_per_condition,
    )
}
