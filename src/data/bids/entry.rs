//! One recording of a dataset, and its sidecars merged into it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::table::{Table, value};
use crate::Result;
use crate::data::format::{self, Decoded, label};
use crate::data::{Annotation, Channel, ChannelKind, Recording};

/// One recording of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Subject with its prefix, as participants.tsv has it: "sub-04".
    pub subject: String,
    /// Label of the session, without "ses-".
    pub session: Option<String>,
    /// Label of the task, without "task-".
    pub task: String,
    /// Label of the run, without "run-".
    pub run: Option<String>,
    /// The signal's file.
    pub path: PathBuf,
    /// eeg.json files that apply, the most general first.
    pub json: Vec<PathBuf>,
    /// The channels.tsv that applies.
    pub channels: Option<PathBuf>,
    /// The events.tsv that applies.
    pub events: Option<PathBuf>,
    /// What participants.tsv says of this recording, where it says to be careful.
    pub notes: Vec<String>,
}

/// What eeg.json says, inherited fields included.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sidecar {
    /// SamplingFrequency, Hz.
    pub sampling_hz: Option<f64>,
    /// PowerLineFrequency, Hz.
    pub power_line_hz: Option<f64>,
    /// RecordingDuration, seconds.
    pub duration_s: Option<f64>,
    /// EEGReference.
    pub reference: Option<String>,
    /// Files that could not be read.
    pub notes: Vec<String>,
}

/// The fields of a JSON file, or a sentence that says why there are none.
pub(super) fn json(path: &Path) -> Result<Map<String, Value>, String> {
    let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    let bytes = std::fs::read(path).map_err(|error| format!("{name} cannot be read: {error}"))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(format!("{name} is not a JSON object and was ignored")),
        Err(error) => Err(format!("{name} is not valid JSON and was ignored: {error}")),
    }
}

impl Entry {
    /// The recording with its sidecars merged: names, kinds and bad marks of channels.tsv, the
    /// marks of events.tsv, contradictions in the notes. The signal's file decides scales and
    /// rates. events.tsv replaces the file's own marks, except boundaries.
    ///
    /// # Errors
    /// As [`Recording::open`]. Sidecars that cannot be read are noted.
    pub fn read(&self) -> Result<Recording> {
        let mut decoded = format::decode(&self.path)?;
        decoded.recording.notes.extend(self.notes.iter().cloned());
        if let Some(path) = &self.channels {
            match Table::read(path) {
                Ok(table) => apply_channels(&table, &mut decoded),
                Err(error) => decoded.recording.notes.push(format!("channels.tsv: {error}")),
            }
        }
        if let Some(path) = &self.events {
            match Table::read(path) {
                Ok(table) => apply_events(&table, &mut decoded),
                Err(error) => decoded.recording.notes.push(format!("events.tsv: {error}")),
            }
        }
        let mut recording = decoded.recording;
        let sidecar = self.sidecar();
        sidecar.contradictions(&mut recording);
        recording.notes.extend(sidecar.notes);
        Ok(recording)
    }

    /// What eeg.json says.
    pub fn sidecar(&self) -> Sidecar {
        let (mut fields, mut notes) = (Map::new(), Vec::new());
        for path in &self.json {
            match json(path) {
                Ok(inner) => fields.extend(inner),
                Err(problem) => notes.push(problem),
            }
        }
        let number = |field: &str| match fields.get(field)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let positive = |field: &str| number(field).filter(|v| v.is_finite() && *v > 0.0);
        let text = fields.get("EEGReference").and_then(Value::as_str);
        Sidecar {
            sampling_hz: positive("SamplingFrequency"),
            power_line_hz: positive("PowerLineFrequency"),
            duration_s: positive("RecordingDuration"),
            reference: text.filter(|text| *text != "n/a").map(str::to_string),
            notes,
        }
    }
}

impl Sidecar {
    fn contradictions(&self, recording: &mut Recording) {
        let eeg = recording.channels.iter().find(|c| c.kind == ChannelKind::Eeg);
        if let (Some(said), Some(channel)) = (self.sampling_hz, eeg) {
            let rate = channel.sample_rate;
            if (said - rate).abs() > 1e-3 * rate {
                recording.notes.push(format!(
                    "eeg.json gives {said} Hz, the file {rate} Hz: the file's rate is used"
                ));
            }
        }
        let seconds = recording.duration_s();
        if let Some(said) = self.duration_s.filter(|said| (said - seconds).abs() > 1.0) {
            recording.notes.push(format!("eeg.json gives {said} s, the file holds {seconds} s"));
        }
    }
}

/// For each channel the row of channels.tsv that describes it: by name, then by position where
/// table and file are of one length.
fn match_rows(names: &[String], channels: &[Channel]) -> Vec<Option<usize>> {
    let by_name: HashMap<&str, usize> =
        names.iter().enumerate().map(|(row, name)| (name.as_str(), row)).collect();
    let mut rows: Vec<Option<usize>> =
        channels.iter().map(|c| by_name.get(c.name.as_str()).copied()).collect();
    if names.len() == channels.len() {
        let claimed: Vec<usize> = rows.iter().flatten().copied().collect();
        for (position, row) in rows.iter_mut().enumerate() {
            if row.is_none() && !claimed.contains(&position) {
                *row = Some(position);
            }
        }
    }
    rows
}

fn apply_channels(table: &Table, decoded: &mut Decoded) {
    let Decoded { recording, units, .. } = decoded;
    let notes = &mut recording.notes;
    notes.extend(table.notes.iter().cloned());
    let Some(column) = table.column("name") else {
        notes.push("channels.tsv has no column name and was ignored".to_string());
        return;
    };
    let name = |row: &Vec<String>| label::clean(row.get(column).map_or("", String::as_str));
    let mut names: Vec<String> = table.rows.iter().map(name).collect();
    label::number_duplicates(&mut names);
    let rows = match_rows(&names, &recording.channels);
    let mut renamed = 0;
    for ((channel, row), unit) in recording.channels.iter_mut().zip(&rows).zip(units.iter()) {
        let Some((name, cells)) = row.and_then(|r| Some((names.get(r)?, table.rows.get(r)?)))
        else {
            continue;
        };
        renamed += usize::from(channel.name != *name);
        channel.name.clone_from(name);
        if let Some(written) = value(cells, table.column("units")) {
            notes.extend(apply_unit(channel, written, unit));
        }
        if let Some(written) = value(cells, table.column("type")) {
            notes.extend(apply_type(channel, written, unit));
        }
        let status = value(cells, table.column("status"));
        channel.bad = status.is_some_and(|status| status.eq_ignore_ascii_case("bad"));
    }
    if renamed > 0 {
        notes.push(format!("{renamed} channels were named by their position in channels.tsv"));
    }
    let list = |names: Vec<&str>| {
        let more = if names.len() > 5 { ", ..." } else { "" };
        format!("{}{more}", names.iter().take(5).copied().collect::<Vec<_>>().join(", "))
    };
    let absent = names.iter().enumerate().filter(|(row, _)| !rows.contains(&Some(*row)));
    let absent: Vec<&str> = absent.map(|(_, name)| name.as_str()).collect();
    if !absent.is_empty() {
        let (count, list) = (absent.len(), list(absent));
        notes.push(format!("channels.tsv describes {count} channels the file lacks: {list}"));
    }
    let unknown = recording.channels.iter().zip(&rows).filter(|(_, row)| row.is_none());
    let unknown: Vec<&str> = unknown.map(|(channel, _)| channel.name.as_str()).collect();
    if !unknown.is_empty() {
        let (count, list) = (unknown.len(), list(unknown));
        notes.push(format!("channels.tsv does not describe {count} channels: {list}"));
    }
}

/// The file's unit decides the scale; channels.tsv decides where the file gives none.
fn apply_unit(channel: &mut Channel, written: &str, file_unit: &str) -> Option<String> {
    let said = label::microvolts(written);
    if file_unit.is_empty() && channel.unit.is_empty() {
        if let Some(factor) = said {
            channel.samples.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
            channel.unit = "uV".to_string();
        } else {
            channel.unit = written.to_string();
        }
        return None;
    }
    let agree = match (said, label::microvolts(file_unit)) {
        (Some(said), Some(file)) => said == file,
        (None, None) => written.eq_ignore_ascii_case(file_unit),
        _ => false,
    };
    (!agree && !file_unit.is_empty()).then(|| {
        format!(
            "\"{}\": channels.tsv gives the unit {written}, the file {file_unit}: the file's is used",
            channel.name
        )
    })
}

fn apply_type(channel: &mut Channel, written: &str, file_unit: &str) -> Option<String> {
    let kind = match written.to_uppercase().as_str() {
        "EEG" | "REF" => ChannelKind::Eeg,
        "EOG" | "VEOG" | "HEOG" | "EYEGAZE" => ChannelKind::Eog,
        "ECG" | "EKG" => ChannelKind::Ecg,
        "EMG" => ChannelKind::Emg,
        "TRIG" | "STIM" | "SYSCLOCK" => ChannelKind::Trigger,
        _ => ChannelKind::Misc,
    };
    if kind == ChannelKind::Eeg && file_unit == format::UNCALIBRATED {
        return Some(format!(
            "\"{}\": channels.tsv calls it {written}, but the file holds no calibration for it: \
             kept out of the EEG",
            channel.name
        ));
    }
    channel.kind = kind;
    None
}

fn apply_events(table: &Table, decoded: &mut Decoded) {
    let Decoded { recording, clock, .. } = decoded;
    let notes = &mut recording.notes;
    notes.extend(table.notes.iter().cloned());
    let Some(onset) = table.column("onset") else {
        notes.push("events.tsv has no column onset and was ignored".to_string());
        return;
    };
    let duration = table.column("duration");
    let names = ["trial_type", "value", "event_code"].map(|name| table.column(name));
    let seconds = |row: &[String], column: Option<usize>| -> Option<f64> {
        value(row, column)?.parse::<f64>().ok().filter(|v| v.is_finite())
    };
    let (mut marks, mut untimed) = (Vec::new(), 0);
    for row in &table.rows {
        let Some(onset) = seconds(row, Some(onset)) else {
            untimed += 1;
            continue;
        };
        let length_s = seconds(row, duration).unwrap_or(0.0).max(0.0);
        // BIDS counts from the first sample, not from the file's own zero.
        let (onset_s, duration_s) = clock.place(clock.start_s() + onset, length_s);
        let text = names.iter().find_map(|&column| value(row, column)).unwrap_or("event");
        marks.push(Annotation { onset_s, duration_s, text: text.to_string() });
    }
    if untimed > 0 {
        notes.push(format!("events.tsv: {untimed} rows have no onset and were left out"));
    }
    let own = recording.annotations.iter().filter(|a| a.text != "boundary").count();
    if own > 0 {
        notes.push(format!("events.tsv replaces the file's {own} marks"));
    }
    recording.annotations.retain(|a| a.text == "boundary");
    recording.annotations.extend(marks);
    recording.annotations.sort_by(|a, b| a.onset_s.total_cmp(&b.onset_s));
}
