//! EDF, EDF+, BDF and BDF+ files.
//!
//! # Layout
//! `header` reads the ASCII header, `tal` the annotations; here are the samples, and what becomes
//! of a file in memory.

mod header;
mod tal;
#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub use header::{Header, Signal, Variant};

use super::{Clock, Decoded, label, pointer};
use crate::data::{Annotation, Channel, ChannelKind, Recording};
use crate::{Error, Result};

/// An open EDF or BDF file, its header checked and all its bytes in memory.
#[derive(Debug, Clone)]
pub struct Edf {
    path: PathBuf,
    header: Header,
    bytes: Vec<u8>,
    /// Data records that the file holds.
    records: usize,
    notes: Vec<String>,
}

/// Reads an EDF, EDF+, BDF or BDF+ file. Voltages become µV; each channel keeps its own rate.
///
/// # Errors
/// As [`Edf::open`]; and where the file holds annotations only.
pub fn read(path: &Path) -> Result<Recording> {
    Ok(Edf::open(path)?.decode()?.recording)
}

impl Edf {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, is no EDF or BDF, contradicts itself, or holds fewer data records
    /// than its header promises.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        pointer::check(path)?;
        Self::from_bytes(std::fs::read(path).map_err(Error::io(path, "read"))?, path)
    }

    /// As [`Edf::open`], for bytes in memory; `path` names them in messages.
    pub fn from_bytes(bytes: Vec<u8>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let header = Header::parse(&bytes, &path)?;
        let record_bytes = header.record_bytes();
        let stored = bytes.len().saturating_sub(header.header_bytes);
        let Some(whole) = stored.checked_div(record_bytes) else {
            return Err(Error::input(
                path.display(),
                "every signal has 0 samples per record",
                "correct the samples per record in its header",
            ));
        };
        let mut notes = Vec::new();
        let promised = header.records.and_then(|n| usize::try_from(n).ok());
        let records = match promised {
            Some(promised) if promised > whole => return Err(truncated(&path, &header, whole)),
            Some(promised) => promised,
            None if whole == 0 => return Err(truncated(&path, &header, whole)),
            None => {
                notes.push(format!(
                    "the header leaves the length open; the file holds {whole} data records"
                ));
                whole
            }
        };
        let rest = stored - records * record_bytes;
        if rest > 0 {
            notes.push(format!("{rest} bytes after the last data record were not read"));
        }
        Ok(Self { path, header, bytes, records, notes })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Data records that the file holds.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Digital values of a signal, by its position in the header.
    ///
    /// # Errors
    /// There is no such signal.
    pub fn digital(&self, signal: usize) -> Result<Vec<i32>> {
        self.signal(signal)?;
        let mut values = Vec::with_capacity(self.samples_of(signal));
        self.each_value(signal, |value| values.push(value));
        Ok(values)
    }

    /// Physical values of a signal in the file's own unit, by its position in the header.
    /// The digital values where the signal was never calibrated (an empty physical range).
    ///
    /// # Errors
    /// There is no such signal.
    pub fn physical(&self, signal: usize) -> Result<Vec<f64>> {
        let scale = Scale::of(self.signal(signal)?);
        let mut values = Vec::with_capacity(self.samples_of(signal));
        self.each_value(signal, |value| values.push(scale.apply(value)));
        Ok(values)
    }

    /// Annotations by onset, seconds from the first sample in memory; the gaps of an interrupted
    /// recording are marked "boundary".
    pub fn annotations(&self) -> Vec<Annotation> {
        self.timeline().annotations
    }

    fn signal(&self, signal: usize) -> Result<&Signal> {
        self.header.signals.get(signal).ok_or_else(|| {
            Error::input(
                self.path.display(),
                format!("has no signal {signal}"),
                format!("ask for 0 to {}", self.header.signals.len() - 1),
            )
        })
    }

    fn samples_of(&self, signal: usize) -> usize {
        self.header.signals.get(signal).map_or(0, |s| s.samples_per_record) * self.records
    }

    /// The bytes of one signal, a slice for each data record.
    fn blocks(&self, signal: usize) -> impl Iterator<Item = &[u8]> {
        let bytes = self.header.variant.sample_bytes();
        let before = self.header.signals.iter().take(signal);
        let start = before.map(|s| s.samples_per_record).sum::<usize>() * bytes;
        let samples = self.header.signals.get(signal).map_or(0, |s| s.samples_per_record);
        let end = start + samples * bytes;
        let data = self.bytes.get(self.header.header_bytes..).unwrap_or_default();
        let records = data.chunks_exact(self.header.record_bytes()).take(self.records);
        records.map(move |record| record.get(start..end).unwrap_or_default())
    }

    fn each_value(&self, signal: usize, mut put: impl FnMut(i32)) {
        for block in self.blocks(signal) {
            if self.header.variant.bdf {
                for &[a, b, c] in block.as_chunks::<3>().0 {
                    put(i32::from_le_bytes([0, a, b, c]) >> 8);
                }
            } else {
                for &pair in block.as_chunks::<2>().0 {
                    put(i32::from(i16::from_le_bytes(pair)));
                }
            }
        }
    }

    /// The recording in memory.
    pub(crate) fn decode(&self) -> Result<Decoded> {
        let signals = &self.header.signals;
        let mut notes = self.notes.clone();
        let (empty, kept): (Vec<usize>, Vec<usize>) = (0..signals.len())
            .filter(|&i| signals.get(i).is_some_and(|s| !s.is_annotations()))
            .partition(|&i| self.samples_of(i) == 0);
        if kept.is_empty() {
            return Err(Error::input(
                self.path.display(),
                "holds annotations only, no signal",
                "open the recording that they belong to",
            ));
        }
        for signal in empty.iter().filter_map(|&i| signals.get(i)) {
            notes.push(format!("\"{}\" has 0 samples per record and was left out", signal.label));
        }
        let of = |field: fn(&Signal) -> &String| -> Vec<String> {
            kept.iter().filter_map(|&i| signals.get(i)).map(|s| field(s).clone()).collect()
        };
        let (labels, mut units) = (of(|s| &s.label), of(|s| &s.unit));
        let (named, guesses) = label::identify(&labels, &units);
        notes.extend(guesses);
        let channels: Vec<Channel> = kept
            .par_iter()
            .zip(named)
            .filter_map(|(&i, (name, kind))| Some(self.channel(i, signals.get(i)?, name, kind)))
            .collect();
        for ((channel, unit), i) in channels.iter().zip(&mut units).zip(&kept) {
            if signals.get(*i).is_some_and(|s| s.gain().is_none()) {
                *unit = super::UNCALIBRATED.to_string();
                notes.push(format!(
                    "\"{}\" has an empty physical range: its values are the digital ones",
                    channel.name
                ));
            }
        }
        let Timeline { annotations, clock, notes: timing } = self.timeline();
        notes.extend(timing);
        let recording = Recording { path: self.path.clone(), channels, annotations, notes };
        Ok(Decoded { recording, units, clock })
    }

    fn channel(&self, i: usize, signal: &Signal, name: String, kind: ChannelKind) -> Channel {
        let mut scale = Scale::of(signal);
        let mut channel = Channel {
            name,
            kind,
            unit: signal.unit.clone(),
            bad: false,
            sample_rate: self.header.sample_rate(signal),
            samples: Vec::with_capacity(self.samples_of(i)),
        };
        if signal.gain().is_none() {
            // Digital steps are no voltage, so no model may take them for one.
            channel.unit = String::new();
            channel.kind = if kind == ChannelKind::Trigger { kind } else { ChannelKind::Misc };
        } else if let Some(factor) = label::microvolts(&signal.unit) {
            scale = scale.times(factor);
            channel.unit = "uV".to_string();
        }
        self.each_value(i, |value| channel.samples.push(scale.apply(value) as f32));
        channel
    }

    fn timeline(&self) -> Timeline {
        let signals = self.header.signals.iter().enumerate();
        let lists: Vec<usize> =
            signals.filter(|(_, s)| s.is_annotations()).map(|(i, _)| i).collect();
        let mut blocks: Vec<_> = lists.iter().map(|&i| self.blocks(i)).collect();
        let mut tals = tal::Tals::default();
        for _ in 0..if lists.is_empty() { 0 } else { self.records } {
            tals.add_record(blocks.iter_mut().filter_map(Iterator::next));
        }
        Timeline::new(tals, &self.header)
    }
}

/// When things happened, on the samples in memory.
struct Timeline {
    annotations: Vec<Annotation>,
    clock: Clock,
    notes: Vec<String>,
}

impl Timeline {
    fn new(tals: tal::Tals, header: &Header) -> Self {
        let mut notes = Vec::new();
        if tals.malformed > 0 {
            notes.push(format!("{} annotations could not be read", tals.malformed));
        }
        let length_s = header.record_s;
        let fastest = header.signals.iter().filter(|s| !s.is_annotations());
        let fastest = fastest.map(|s| s.samples_per_record).max().unwrap_or(1).max(1);
        let tolerance_s = 0.5 * length_s / fastest as f64;
        let start_s = tals.record_onsets_s.first().copied().flatten().unwrap_or(0.0);
        let mut onsets_s = Vec::with_capacity(tals.record_onsets_s.len());
        let (mut next_s, mut untimed) = (start_s, 0);
        for onset_s in &tals.record_onsets_s {
            untimed += usize::from(onset_s.is_none());
            onsets_s.push(onset_s.unwrap_or(next_s));
            next_s = onset_s.unwrap_or(next_s) + length_s;
        }
        let mut clock = Clock::from_records(&onsets_s, length_s, tolerance_s);
        let gaps = clock.boundaries_s().count();
        if header.variant.discontinuous && untimed > 0 {
            notes
                .push(format!("{untimed} data records do not tell their time: taken to follow on"));
        } else if !header.variant.discontinuous && gaps > 0 {
            notes.push(format!(
                "the header declares no interruption, but the times of its records jump {gaps} \
                 times: taken as continuous"
            ));
        }
        if !header.variant.discontinuous {
            clock =
                Clock::from_records(onsets_s.get(..1).unwrap_or_default(), length_s, tolerance_s);
        }
        let mut annotations: Vec<Annotation> = tals.annotations;
        for mark in &mut annotations {
            (mark.onset_s, mark.duration_s) = clock.place(mark.onset_s, mark.duration_s);
        }
        let gap = |onset_s| Annotation { onset_s, duration_s: 0.0, text: "boundary".to_string() };
        annotations.extend(clock.boundaries_s().map(gap));
        annotations.sort_by(|a, b| a.onset_s.total_cmp(&b.onset_s));
        Self { annotations, clock, notes }
    }
}

/// Digital to physical, in f64: `gain * (digital - digital_min) + physical_min`.
#[derive(Debug, Clone, Copy)]
struct Scale {
    gain: f64,
    digital_min: f64,
    physical_min: f64,
}

impl Scale {
    fn of(signal: &Signal) -> Self {
        match signal.gain() {
            Some(gain) => Self {
                gain,
                digital_min: f64::from(signal.digital_min),
                physical_min: signal.physical_min,
            },
            None => Self { gain: 1.0, digital_min: 0.0, physical_min: 0.0 },
        }
    }

    fn times(self, factor: f64) -> Self {
        Self { gain: self.gain * factor, physical_min: self.physical_min * factor, ..self }
    }

    fn apply(self, digital: i32) -> f64 {
        self.gain * (f64::from(digital) - self.digital_min) + self.physical_min
    }
}

fn truncated(path: &Path, header: &Header, whole: usize) -> Error {
    let promise = match header.records {
        Some(records) => format!("promises {records} data records"),
        None => "leaves the number of data records open".to_string(),
    };
    let remedy = match whole {
        0 => "copy the file again from where it was recorded".to_string(),
        _ => format!(
            "copy the file again from where it was recorded; if this is all there is, write \
             {whole} into bytes 236 to 243"
        ),
    };
    Error::input(
        path.display(),
        format!(
            "is cut short: the header {promise} of {} bytes, the file holds {whole} whole ones",
            header.record_bytes()
        ),
        remedy,
    )
}
