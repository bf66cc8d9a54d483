//! EEGLAB datasets: a MAT file (.set), the signal inside it or in an .fdt file beside it.
//!
//! Delorme & Makeig 2004; fields as `eeg_checkset` describes them, under `EEG` or, as EEGLAB has
//! written them since 2021, at the root. Signals are in µV by EEGLAB's convention.
//!
//! # Layout
//! `mat5` reads MAT files up to version 7, `mat73` and `hdf5` those of 7.3, `value` is what they
//! hold; here is what EEGLAB means by it.

mod hdf5;
mod mat5;
mod mat73;
#[cfg(test)]
mod tests;
mod value;

use std::path::Path;

use super::number::Number;
use super::{Clock, Decoded, companion, label, pointer};
use crate::data::{Annotation, Channel, ChannelKind, Recording};
use crate::{Error, Result};
use mat5::Mat;
use value::{Array, Value};

/// Variables and fields that are read; a file holds many more.
const FIELDS: &[&str] =
    &["EEG", "data", "datfile", "nbchan", "pnts", "trials", "srate", "chanlocs", "event"];

/// What EEGLAB takes every signal to be in.
const UNIT: &str = "uV";

/// Reads an EEGLAB dataset (.set). The trials of an epoched dataset follow each other, with a
/// "boundary" between them.
///
/// # Errors
/// A file cannot be read, is no EEGLAB dataset, lacks a field, or its signal is not there or cut
/// short.
pub fn read(path: &Path) -> Result<Recording> {
    Ok(decode(path)?.recording)
}

pub(crate) fn decode(path: &Path) -> Result<Decoded> {
    pointer::check(path)?;
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let damaged = |problem: String| {
        let remedy = "copy the file again; a dataset can be saved anew with EEGLAB's pop_saveset";
        Error::input(path.display(), problem, remedy)
    };
    let mut notes = Vec::new();
    let mat;
    let mut variables = if hdf5::is_hdf5(&bytes) {
        mat73::variables(&bytes, FIELDS).map_err(damaged)?
    } else {
        mat = Mat::open(&bytes).map_err(damaged)?;
        let (variables, unreadable) = mat.variables();
        if unreadable > 0 {
            notes.push(format!("{unreadable} variables of the file could not be read"));
        }
        variables
    };
    let root = match variables.iter().position(|(name, _)| name == "EEG") {
        Some(place) => variables.swap_remove(place).1,
        None => {
            let (names, values) = variables.into_iter().unzip();
            Value::Struct(names, vec![values])
        }
    };
    Dataset { root, path, notes }.decode()
}

/// The fields of one dataset.
struct Dataset<'a> {
    root: Value<'a>,
    path: &'a Path,
    notes: Vec<String>,
}

/// Channels, moments of all trials together, and trials.
#[derive(Debug, Clone, Copy)]
struct Shape {
    channels: usize,
    points: usize,
    trials: usize,
}

impl Dataset<'_> {
    fn decode(mut self) -> Result<Decoded> {
        let sample_rate = self.number("srate")?;
        if !(sample_rate.is_finite() && sample_rate > 0.0) {
            return Err(self.bad_field(
                "srate",
                format!("is {sample_rate}"),
                "set EEG.srate in Hz",
            ));
        }
        let (samples, shape) = self.signal()?;
        let (labels, types) = self.locations(shape.channels);
        let units = vec![UNIT.to_string(); shape.channels];
        let (named, guesses) = label::identify(&labels, &units);
        self.notes.extend(guesses);
        let channels: Vec<Channel> = samples
            .into_iter()
            .zip(named.into_iter().zip(types))
            .map(|(samples, ((name, guess), kind))| Channel {
                name,
                kind: kind.unwrap_or(guess),
                unit: UNIT.to_string(),
                bad: false,
                sample_rate,
                samples,
            })
            .collect();
        self.notes.extend(label::not_finite(&channels));
        let annotations = self.events(sample_rate, shape);
        let path = self.path.to_path_buf();
        let recording = Recording { path, channels, annotations, notes: self.notes };
        Ok(Decoded { recording, units, clock: Clock::default() })
    }

    fn bad_field(&self, field: &str, problem: String, remedy: &str) -> Error {
        Error::input(format!("{}: {field}", self.path.display()), problem, remedy)
    }

    fn number(&self, field: &str) -> Result<f64> {
        self.root.field(field).and_then(Value::number).ok_or_else(|| {
            let problem = "is missing or not a number".to_string();
            self.bad_field(
                field,
                problem,
                "check the dataset with EEGLAB's eeg_checkset and save it",
            )
        })
    }

    /// A count of at least 1.
    fn count(&self, field: &str) -> Result<usize> {
        let value = self.number(field)?;
        if (1.0..2f64.powi(48)).contains(&value) {
            return Ok(value as usize);
        }
        let remedy = "check the dataset with EEGLAB's eeg_checkset and save it";
        Err(self.bad_field(field, format!("is {value}"), remedy))
    }

    fn signal(&mut self) -> Result<(Vec<Vec<f32>>, Shape)> {
        match self.root.field("data") {
            Some(Value::Numbers(array)) => {
                let shape = self.embedded(array)?;
                let size = shape.channels * shape.points * array.number.bytes();
                let bytes = array.bytes.get(..size).unwrap_or_default();
                let scales = vec![1.0; shape.channels];
                Ok((array.number.multiplexed(bytes, array.big_endian, &scales), shape))
            }
            Some(Value::Text(_)) => self.beside(),
            _ => Err(self.bad_field(
                "data",
                "is missing or neither numbers nor the name of an .fdt file".to_string(),
                "check the dataset with EEGLAB's eeg_checkset and save it",
            )),
        }
    }

    fn embedded(&self, array: &Array<'_>) -> Result<Shape> {
        let trials: usize = array.dims.iter().skip(2).product();
        let (channels, points) = match array.dims.as_slice() {
            [channels, points, ..] => (*channels, points.saturating_mul(trials)),
            _ => (0, 0),
        };
        if channels == 0 || points == 0 {
            let remedy = "save the dataset with its signal";
            return Err(self.bad_field("data", "is empty".to_string(), remedy));
        }
        match self.count("nbchan") {
            Ok(said) if said != channels => Err(self.bad_field(
                "nbchan",
                format!("is {said}, but data holds {channels} channels"),
                "check the dataset with EEGLAB's eeg_checkset and save it",
            )),
            _ => Ok(Shape { channels, points, trials }),
        }
    }

    /// The .fdt file: f32, little endian, all channels of a moment side by side.
    fn beside(&mut self) -> Result<(Vec<Vec<f32>>, Shape)> {
        let (channels, points) = (self.count("nbchan")?, self.count("pnts")?);
        let trials = self.count("trials").unwrap_or(1);
        let named = self.root.field("data").and_then(Value::text);
        let named = named.filter(|name| name.to_lowercase().ends_with(".fdt"));
        let named = named.or_else(|| self.root.field("datfile").and_then(Value::text));
        let named = named.unwrap_or_default();
        let Some(file) = companion(self.path, &named, "fdt", &mut self.notes) else {
            return Err(self.bad_field(
                "data",
                format!("names the signal's file {named}, which is not beside the .set"),
                "put the .fdt file there; under the name of the .set it is found too",
            ));
        };
        pointer::check(&file)?;
        let bytes = std::fs::read(&file).map_err(Error::io(&file, "read"))?;
        let all = points.checked_mul(trials).and_then(|n| n.checked_mul(channels));
        let size = all.and_then(|n| n.checked_mul(Number::F32.bytes()));
        let Some(signal) = size.and_then(|size| bytes.get(..size)) else {
            return Err(Error::input(
                file.display(),
                format!(
                    "is cut short: {} promises {channels} channels of {points} samples in \
                     {trials} trials, the file holds {} bytes",
                    self.path.display(),
                    bytes.len()
                ),
                "copy the file again from where it was saved",
            ));
        };
        if bytes.len() > signal.len() {
            let rest = bytes.len() - signal.len();
            self.notes.push(format!("{rest} bytes after the last sample were not read"));
        }
        let samples = Number::F32.multiplexed(signal, false, &vec![1.0; channels]);
        Ok((samples, Shape { channels, points: points * trials, trials }))
    }

    /// Labels, and kinds where the dataset gives them, from chanlocs.
    fn locations(&mut self, channels: usize) -> (Vec<String>, Vec<Option<ChannelKind>>) {
        let unnamed = || (vec![String::new(); channels], vec![None; channels]);
        let Some(locations) = self.root.field("chanlocs").filter(|l| l.len() > 0) else {
            self.notes.push("the dataset does not name its channels".to_string());
            return unnamed();
        };
        if locations.len() != channels {
            let count = locations.len();
            self.notes.push(format!("chanlocs names {count} of {channels} channels: not used"));
            return unnamed();
        }
        let text = |field: &str| -> Vec<String> {
            let values = locations.elements(field).into_iter();
            values.map(|value| value.and_then(Value::text).unwrap_or_default()).collect()
        };
        let kinds = text("type").into_iter().map(|written| match written.to_uppercase().as_str() {
            "EEG" => Some(ChannelKind::Eeg),
            "EOG" | "VEOG" | "HEOG" | "EYE" => Some(ChannelKind::Eog),
            "ECG" | "EKG" => Some(ChannelKind::Ecg),
            "EMG" => Some(ChannelKind::Emg),
            "MISC" | "GSR" | "EDA" | "RESP" | "PPG" | "AUX" => Some(ChannelKind::Misc),
            "TRIG" | "STIM" | "TRIGGER" => Some(ChannelKind::Trigger),
            _ => None,
        });
        (text("labels"), kinds.collect())
    }

    fn events(&mut self, sample_rate: f64, shape: Shape) -> Vec<Annotation> {
        let empty = Value::Other;
        let events = self.root.field("event").unwrap_or(&empty);
        let (types, latencies) = (events.elements("type"), events.elements("latency"));
        let durations = events.elements("duration");
        let (mut marks, mut unplaced) = (Vec::new(), 0);
        for (place, kind) in types.iter().enumerate() {
            let number = |of: &[Option<&Value<'_>>]| {
                of.get(place).copied().flatten()?.number().filter(|v| v.is_finite())
            };
            let Some(latency) = number(&latencies) else {
                unplaced += 1;
                continue;
            };
            // Latencies count samples from 1.
            let onset_s = (latency - 1.0) / sample_rate;
            let text = kind.and_then(Value::text).unwrap_or_else(|| "event".to_string());
            let duration_s = number(&durations).unwrap_or(0.0).max(0.0) / sample_rate;
            // -99 marks a boundary where the types of events are numbers.
            if text != "boundary" && text != "-99" {
                marks.push(Annotation { onset_s, duration_s, text });
            } else if onset_s > 0.0 {
                let text = "boundary".to_string();
                marks.push(Annotation { onset_s, duration_s: 0.0, text });
            }
        }
        if unplaced > 0 {
            self.notes.push(format!("{unplaced} events have no latency and were left out"));
        }
        if shape.trials > 1 {
            self.notes.push(format!("the dataset is cut into {} trials", shape.trials));
            let length_s = (shape.points / shape.trials) as f64 / sample_rate;
            marks.extend((1..shape.trials).map(|trial| Annotation {
                onset_s: trial as f64 * length_s,
                duration_s: 0.0,
                text: "boundary".to_string(),
            }));
        }
        marks.sort_by(|a, b| a.onset_s.total_cmp(&b.onset_s));
        marks
    }
}
