//! BrainVision: a text header (.vhdr), a text file of markers (.vmrk), and the samples (.eeg).
//!
//! Brain Products' "BrainVision Core Data Format 1.0". INT_16, INT_32 and IEEE_FLOAT_32,
//! multiplexed and vectorized.

use std::collections::HashMap;
use std::path::Path;

use super::number::Number;
use super::{Clock, Decoded, companion, label, pointer, text};
use crate::data::{Annotation, Channel, Recording};
use crate::{Error, Result};

/// What a .vhdr file says.
#[derive(Debug, Clone, PartialEq)]
struct Header {
    data_file: String,
    marker_file: Option<String>,
    number: Number,
    big_endian: bool,
    vectorized: bool,
    /// Hz.
    sample_rate: f64,
    /// Samples of each channel, where the header says it.
    points: Option<usize>,
    channels: Vec<Info>,
}

/// One channel of the header.
#[derive(Debug, Clone, PartialEq)]
struct Info {
    label: String,
    /// Units of one step.
    resolution: f64,
    unit: String,
}

/// Reads the recording whose header is at `path` (.vhdr). Voltages become µV.
///
/// # Errors
/// A file cannot be read, the header lacks a field or contradicts itself or the samples' file, or
/// the samples are stored as text.
pub fn read(path: &Path) -> Result<Recording> {
    Ok(decode(path)?.recording)
}

pub(crate) fn decode(path: &Path) -> Result<Decoded> {
    pointer::check(path)?;
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let header = Header::parse(&bytes, path)?;
    let mut notes = Vec::new();
    let data = companion(path, &header.data_file, "eeg", &mut notes);
    let Some(data) = data else {
        return Err(Error::input(
            place(path, "DataFile"),
            format!("names {}, which is not beside the header", header.data_file),
            "put the file there, or correct DataFile= if it was renamed",
        ));
    };
    pointer::check(&data)?;
    let bytes = std::fs::read(&data).map_err(Error::io(&data, "read"))?;
    let points = header.points(&bytes, path, &data, &mut notes)?;
    let labels: Vec<String> = header.channels.iter().map(|c| c.label.clone()).collect();
    let units: Vec<String> = header.channels.iter().map(|c| c.unit.clone()).collect();
    let (named, guesses) = label::identify(&labels, &units);
    notes.extend(guesses);
    let factors = header.channels.iter().map(|info| label::microvolts(&info.unit));
    let scales: Vec<f64> = factors
        .zip(&header.channels)
        .map(|(factor, info)| info.resolution * factor.unwrap_or(1.0))
        .collect();
    let channels: Vec<Channel> = header
        .samples(&bytes, points, &scales)
        .into_iter()
        .zip(named)
        .zip(&header.channels)
        .map(|((samples, (name, kind)), info)| {
            let volts = label::microvolts(&info.unit).is_some();
            let unit = if volts { "uV" } else { info.unit.as_str() }.to_string();
            let sample_rate = header.sample_rate;
            Channel { name, kind, unit, bad: false, sample_rate, samples }
        })
        .collect();
    notes.extend(label::not_finite(&channels));
    let annotations = markers(path, &header, &mut notes)?;
    let recording = Recording { path: path.to_path_buf(), channels, annotations, notes };
    Ok(Decoded { recording, units, clock: Clock::default() })
}

fn place(path: &Path, field: &str) -> String {
    format!("{}: {field}", path.display())
}

impl Header {
    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let text = text(bytes);
        let first = text.lines().next().unwrap_or_default().replace(' ', "");
        if !first.contains("BrainVisionDataExchangeHeaderFile") {
            return Err(Error::input(
                path.display(),
                "is not a BrainVision header: its first line does not say so",
                "give the .vhdr file as the recorder wrote it",
            ));
        }
        let fields = Fields::new(&text, path);
        fields.only("Common Infos", "DataFormat", "BINARY", "export the data as binary")?;
        fields.only("Common Infos", "DataType", "TIMEDOMAIN", "export it in the time domain")?;
        let written = fields.get("Binary Infos", "BinaryFormat").unwrap_or("INT_16");
        let number = match written.to_uppercase().as_str() {
            "INT_16" => Number::I16,
            "INT_32" => Number::I32,
            "IEEE_FLOAT_32" => Number::F32,
            _ => {
                return Err(Error::input(
                    place(path, "BinaryFormat"),
                    format!("is {written}"),
                    "export the data as INT_16, INT_32 or IEEE_FLOAT_32",
                ));
            }
        };
        let orientation = fields.get("Common Infos", "DataOrientation").unwrap_or("MULTIPLEXED");
        let big = fields.get("Binary Infos", "UseBigEndianOrder");
        let interval_us: f64 = fields.number("SamplingInterval")?;
        if !(interval_us.is_finite() && interval_us > 0.0) {
            return Err(Error::input(
                place(path, "SamplingInterval"),
                format!("is {interval_us}"),
                "write the microseconds between two samples",
            ));
        }
        let points = fields.get("Common Infos", "DataPoints").and_then(|n| n.parse().ok());
        let named = |key| fields.get("Common Infos", key).map(str::to_string);
        Ok(Self {
            data_file: named("DataFile").unwrap_or_default(),
            marker_file: named("MarkerFile").filter(|name| !name.is_empty()),
            number,
            big_endian: big.is_some_and(|value| value.eq_ignore_ascii_case("YES")),
            vectorized: orientation.eq_ignore_ascii_case("VECTORIZED"),
            sample_rate: 1e6 / interval_us,
            points: points.filter(|&n| n > 0),
            channels: fields.channels()?,
        })
    }

    /// Samples of each channel, checked against the bytes there are.
    fn points(
        &self,
        bytes: &[u8],
        path: &Path,
        data: &Path,
        notes: &mut Vec<String>,
    ) -> Result<usize> {
        let frame = self.channels.len() * self.number.bytes();
        let whole = bytes.len() / frame.max(1);
        let points = self.points.unwrap_or(whole);
        if points > whole || points == 0 {
            return Err(Error::input(
                data.display(),
                match self.points {
                    Some(points) => format!(
                        "is cut short: {} promises {points} samples of {} channels, the file \
                         holds {whole}",
                        path.display(),
                        self.channels.len()
                    ),
                    None => "holds no sample of every channel".to_string(),
                },
                "copy the file again from where it was recorded; if this is all there is, \
                 correct DataPoints= in the header",
            ));
        }
        let rest = bytes.len() - points * frame;
        if rest > 0 {
            notes.push(format!("{rest} bytes after the last sample were not read"));
        }
        Ok(points)
    }

    fn samples(&self, bytes: &[u8], points: usize, scales: &[f64]) -> Vec<Vec<f32>> {
        let size = points * self.channels.len() * self.number.bytes();
        let bytes = bytes.get(..size).unwrap_or_default();
        match self.vectorized {
            true => self.number.vectorized(bytes, self.big_endian, scales, points),
            false => self.number.multiplexed(bytes, self.big_endian, scales),
        }
    }
}

/// Sections of a header or marker file; keys in lower case. The free text of \[Comment\] is left
/// out.
fn sections(text: &str) -> HashMap<String, Vec<(String, String)>> {
    let mut sections: HashMap<String, Vec<(String, String)>> = HashMap::new();
    let mut current = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            current = name.to_lowercase();
        } else if current == "comment" || line.starts_with(';') {
            continue;
        } else if let Some((key, value)) = line.split_once('=') {
            let pair = (key.trim().to_lowercase(), value.trim().to_string());
            sections.entry(current.clone()).or_default().push(pair);
        }
    }
    sections
}

struct Fields<'a> {
    /// By "section/key", both in lower case.
    values: HashMap<String, String>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    fn new(text: &str, path: &'a Path) -> Self {
        let mut values = HashMap::new();
        for (section, pairs) in sections(text) {
            for (key, value) in pairs {
                values.entry(format!("{section}/{key}")).or_insert(value);
            }
        }
        Self { values, path }
    }

    fn get(&self, section: &str, key: &str) -> Option<&str> {
        self.values.get(&format!("{section}/{key}").to_lowercase()).map(String::as_str)
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Result<T> {
        let written = self.get("Common Infos", key).unwrap_or_default();
        written.parse().map_err(|_| {
            let problem = match written {
                "" => "is missing from [Common Infos]".to_string(),
                _ => format!("is \"{}\", not a number", written.escape_debug()),
            };
            Error::input(place(self.path, key), problem, format!("write {key}=... as a number"))
        })
    }

    fn only(&self, section: &str, key: &str, expect: &str, remedy: &str) -> Result<()> {
        match self.get(section, key) {
            Some(value) if !value.eq_ignore_ascii_case(expect) => {
                Err(Error::input(place(self.path, key), format!("is {value}"), remedy))
            }
            _ => Ok(()),
        }
    }

    /// `Ch1=Fp1,,0.5,µV`: name, reference, resolution (1 where empty), unit (µV where empty).
    fn channels(&self) -> Result<Vec<Info>> {
        let promised: usize = self.number("NumberOfChannels")?;
        let mut infos = Vec::new();
        while let Some(written) = self.get("Channel Infos", &format!("Ch{}", infos.len() + 1)) {
            let mut parts = written.split(',').map(|part| part.trim().replace("\\1", ","));
            let label = parts.next().unwrap_or_default();
            let resolution = parts.nth(1).filter(|r| !r.is_empty()).unwrap_or("1".to_string());
            let unit = parts.next().filter(|u| !u.is_empty()).unwrap_or("\u{b5}V".to_string());
            // Beyond this bound a file's largest sample would not be finite in f32 and µV.
            let usable = |r: &f64| r.is_finite() && *r != 0.0 && r.abs() <= 1e15;
            let Some(resolution) = resolution.parse().ok().filter(usable) else {
                return Err(Error::input(
                    place(self.path, &format!("Ch{}", infos.len() + 1)),
                    format!("its resolution is \"{}\"", resolution.escape_debug()),
                    "write the units of one step as the third part of Ch...=",
                ));
            };
            infos.push(Info { label, resolution, unit });
        }
        if infos.len() != promised || infos.is_empty() {
            return Err(Error::input(
                place(self.path, "NumberOfChannels"),
                format!("is {promised}, but [Channel Infos] describes {}", infos.len()),
                "correct the count, or the list Ch1=, Ch2=, ...",
            ));
        }
        Ok(infos)
    }
}

/// `Mk2=Stimulus,S253,487,1,0`: type, description, position (from 1), size, channel.
fn markers(path: &Path, header: &Header, notes: &mut Vec<String>) -> Result<Vec<Annotation>> {
    let Some(named) = &header.marker_file else { return Ok(Vec::new()) };
    let Some(file) = companion(path, named, "vmrk", notes) else {
        notes.push(format!("the marker file {named} is not here: the recording has no marks"));
        return Ok(Vec::new());
    };
    pointer::check(&file)?;
    let bytes = std::fs::read(&file).map_err(Error::io(&file, "read"))?;
    let sections = sections(&text(&bytes));
    let (mut marks, mut malformed) = (Vec::new(), 0);
    for (key, value) in sections.get("marker infos").into_iter().flatten() {
        if !key.starts_with("mk") {
            continue;
        }
        let parts: Vec<&str> = value.split(',').map(str::trim).collect();
        let part = |i: usize| parts.get(i).copied().unwrap_or_default();
        let Some(position) = part(2).parse::<u64>().ok().filter(|&p| p > 0) else {
            malformed += 1;
            continue;
        };
        let points = part(3).parse::<u64>().unwrap_or(0);
        let mut mark = Annotation {
            onset_s: (position - 1) as f64 / header.sample_rate,
            duration_s: points as f64 / header.sample_rate,
            text: [part(0), part(1)].join("/").trim_end_matches('/').replace("\\1", ","),
        };
        if part(0).eq_ignore_ascii_case("New Segment") {
            // The first segment begins with the recording; before any other, time was lost.
            if position == 1 {
                continue;
            }
            (mark.text, mark.duration_s) = ("boundary".to_string(), 0.0);
        }
        marks.push(mark);
    }
    if malformed > 0 {
        notes.push(format!("{malformed} markers have no position and were left out"));
    }
    marks.sort_by(|a, b| a.onset_s.total_cmp(&b.onset_s));
    Ok(marks)
}

#[cfg(test)]
mod tests;
