//! Writes EDF+ (16 bits) and BDF+ (24 bits) files.
//!
//! Specification: Kemp & Olivan 2003, "European data format 'plus' (EDF+)", and the edfplus.info
//! text of it; BDF+ is the same layout with 3-byte samples and the BioSemi identification bytes.
//! Every file is continuous (`EDF+C`, `BDF+C`) and anonymous: the patient, the start date and the
//! technician are `X`, the start is 01.01.85 00.00.00, the specification's date for "withheld".

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::data::Annotation;
use crate::{Error, Result};

/// Bytes of a sample in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// EDF+: two's complement, 16 bits.
    Edf,
    /// BDF+: two's complement, 24 bits.
    Bdf,
}

impl Encoding {
    fn sample_bytes(self) -> usize {
        match self {
            Self::Edf => 2,
            Self::Bdf => 3,
        }
    }

    /// The whole digital range, used by every signal.
    fn digital(self) -> (i32, i32) {
        match self {
            Self::Edf => (-32_768, 32_767),
            Self::Bdf => (-8_388_608, 8_388_607),
        }
    }

    fn version(self) -> [u8; 8] {
        match self {
            Self::Edf => *b"0       ",
            Self::Bdf => *b"\xffBIOSEMI",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Edf => "EDF",
            Self::Bdf => "BDF",
        }
    }
}

/// One channel to be written.
#[derive(Debug, Clone, Copy)]
pub struct Signal<'a> {
    /// At most 16 printable ASCII characters.
    pub label: &'a str,
    /// At most 80 printable ASCII characters, as in "AgCl electrode".
    pub transducer: &'a str,
    /// At most 8 printable ASCII characters: "uV", not "µV".
    pub unit: &'a str,
    /// At most 80 printable ASCII characters, as in "HP:0.1Hz LP:100Hz".
    pub prefilter: &'a str,
    /// Values, in `unit`, of the lowest and the highest digital number. Rounded to what 8 header
    /// characters hold; samples are scaled by the rounded numbers.
    pub physical_range: (f64, f64),
    /// Hz.
    pub sample_rate: f64,
    /// `[time]`, in `unit`. Beyond the physical range they saturate, and are counted.
    pub samples: &'a [f32],
}

/// Everything one file says.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// EDF+ or BDF+.
    pub encoding: Encoding,
    /// Length of a data record, s. Every signal must fill whole records with whole samples.
    pub record_s: f64,
    /// What recorded (or generated) it: the last word of the recording field, blanks become "_".
    pub equipment: &'a str,
    /// In file order; the annotation signal is added behind them.
    pub signals: &'a [Signal<'a>],
    /// Marks; each is stored in the record its onset lies in.
    pub annotations: &'a [Annotation],
}

/// What [`write`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Written {
    /// Size of the file.
    pub bytes: u64,
    /// Samples that lay outside their signal's physical range and were saturated.
    pub saturated: u64,
}

/// Writes `contents` to `path`, replacing what is there only when the new file is whole.
///
/// # Errors
/// [`Error::Input`] naming the file and the field for anything the format cannot hold: a label
/// too long, a character outside printable ASCII, an empty physical range, a sample that is not a
/// number, signals that do not fill the same whole number of records. [`Error::Io`] from the
/// system; then no file is left behind.
pub fn write(path: &Path, contents: &Contents<'_>) -> Result<Written> {
    let layout = Layout::new(path, contents)?;
    let header = header(path, contents, &layout)?;
    let record_bytes = contents.encoding.sample_bytes()
        * (layout.per_record.iter().sum::<usize>() + layout.annotation_samples);
    let mut saturated = 0;
    replace(path, |file| {
        file.write_all(&header)?;
        let mut record = Vec::with_capacity(record_bytes);
        for index in 0..layout.records {
            record.clear();
            for ((signal, &n), scale) in
                contents.signals.iter().zip(&layout.per_record).zip(&layout.scales)
            {
                let samples = &signal.samples[index * n..(index + 1) * n];
                saturated += encode(contents.encoding, scale, samples, &mut record);
            }
            record.extend_from_slice(&layout.annotations[index]);
            record.resize(record_bytes, 0);
            file.write_all(&record)?;
        }
        Ok(())
    })?;
    let bytes = header.len() as u64 + record_bytes as u64 * layout.records as u64;
    Ok(Written { bytes, saturated })
}

/// Writes a file beside `path` and renames it there, so `path` is either whole or as it was.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let partial = partial_path(path)?;
    let outcome = File::create(&partial).and_then(|file| {
        let mut file = BufWriter::with_capacity(1 << 18, file);
        write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()?;
        fs::rename(&partial, path)
    });
    outcome.map_err(|source| {
        // The partial file may not exist; the write's own error is the one to report.
        let _ = fs::remove_file(&partial);
        Error::io(path, "write")(source)
    })
}

/// Ending of the files [`replace`] writes before it renames them.
pub(crate) const PARTIAL: &str = ".partial";

fn partial_path(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        Error::input(path.display(), "does not end in a file name", "give the path of a file")
    })?;
    let name = format!(".{}.{}{PARTIAL}", name.to_string_lossy(), std::process::id());
    Ok(path.with_file_name(name))
}

/// From a signal's unit to its digital numbers, by the header's rounded figures.
struct Scale {
    min: f64,
    max: f64,
    min_text: String,
    max_text: String,
}

/// How the samples and annotations fall into records.
struct Layout {
    records: usize,
    record_text: String,
    /// Samples of each signal in one record.
    per_record: Vec<usize>,
    scales: Vec<Scale>,
    /// Time-stamped annotation lists (TALs) of each record.
    annotations: Vec<Vec<u8>>,
    /// Samples the annotation signal takes in one record.
    annotation_samples: usize,
}

impl Layout {
    fn new(path: &Path, contents: &Contents<'_>) -> Result<Self> {
        let place = path.display();
        let record_text = number(contents.record_s)
            .filter(|text| text.parse() == Ok(contents.record_s) && contents.record_s > 0.0)
            .ok_or_else(|| {
                let problem = format!("a record of {} s cannot be written", contents.record_s);
                Error::input(&place, problem, "choose a positive length of at most 8 characters")
            })?;
        let mut records = None;
        let mut per_record = Vec::with_capacity(contents.signals.len());
        for signal in contents.signals {
            let n = samples_per_record(path, contents.record_s, signal)?;
            let held = signal.samples.len() / n;
            if held == 0 || held * n != signal.samples.len() || *records.get_or_insert(held) != held
            {
                return Err(Error::input(
                    format!("{place}: signal {:?}", signal.label),
                    format!(
                        "{} samples at {} Hz do not fill the same whole number of {record_text} s \
                         records as the other signals",
                        signal.samples.len(),
                        signal.sample_rate
                    ),
                    "cut or pad the signals, or choose another record length",
                ));
            }
            per_record.push(n);
        }
        let records = records.filter(|&n| n <= 99_999_999).ok_or_else(|| {
            Error::input(
                &place,
                "no signals, or more than 99999999 records",
                "give at least one signal, or longer records",
            )
        })?;
        let scales = contents.signals.iter().map(|s| scale(path, s)).collect::<Result<Vec<_>>>()?;
        let annotations = annotation_lists(path, contents, records)?;
        let longest = annotations.iter().map(Vec::len).max().unwrap_or(0);
        let annotation_samples = longest.div_ceil(contents.encoding.sample_bytes());
        Ok(Self { records, record_text, per_record, scales, annotations, annotation_samples })
    }
}

fn samples_per_record(path: &Path, record_s: f64, signal: &Signal<'_>) -> Result<usize> {
    let exact = signal.sample_rate * record_s;
    let n = exact.round();
    if !(1.0..=99_999_999.0).contains(&n) || (exact - n).abs() > 1e-6 * n {
        return Err(Error::input(
            format!("{}: signal {:?}", path.display(), signal.label),
            format!("{} Hz is not a whole number of samples in {record_s} s", signal.sample_rate),
            "choose a record length that holds whole samples of every signal",
        ));
    }
    Ok(n as usize)
}

fn scale(path: &Path, signal: &Signal<'_>) -> Result<Scale> {
    let place = || format!("{}: signal {:?}", path.display(), signal.label);
    if signal.label.ends_with("F Annotations") {
        let remedy = "give the signal another label";
        return Err(Error::input(place(), "the label is kept for annotations", remedy));
    }
    let (low, high) = signal.physical_range;
    let unusable = || {
        let problem = format!("the physical range {low} to {high} cannot be written");
        Error::input(place(), problem, "give a rising range of numbers that fit 8 characters")
    };
    let (min_text, max_text) = number(low).zip(number(high)).ok_or_else(unusable)?;
    let (Ok(min), Ok(max)) = (min_text.parse::<f64>(), max_text.parse::<f64>()) else {
        return Err(unusable());
    };
    if min >= max {
        return Err(unusable());
    }
    if let Some(at) = signal.samples.iter().position(|x| !x.is_finite()) {
        return Err(Error::input(
            place(),
            format!("sample {at} is {}", signal.samples[at]),
            "interpolate or cut what is not a number before writing",
        ));
    }
    Ok(Scale { min, max, min_text, max_text })
}

/// Appends the digital numbers of `samples`; returns how many were saturated.
fn encode(encoding: Encoding, scale: &Scale, samples: &[f32], record: &mut Vec<u8>) -> u64 {
    let (lowest, highest) = encoding.digital();
    let span = f64::from(highest - lowest);
    let gain = span / (scale.max - scale.min);
    let bytes = encoding.sample_bytes();
    let mut saturated = 0;
    for &x in samples {
        let steps = (f64::from(x) - scale.min) * gain + 0.5;
        // A value at either limit is exact to within half a step: only what is beyond counts.
        saturated += u64::from(!(0.0..span + 1.0).contains(&steps));
        let digital = lowest + steps.clamp(0.0, span) as i32;
        record.extend_from_slice(&digital.to_le_bytes()[..bytes]);
    }
    saturated
}

/// The annotation signal's bytes of each record: the record's own start, then its annotations.
fn annotation_lists(path: &Path, contents: &Contents<'_>, records: usize) -> Result<Vec<Vec<u8>>> {
    let mut lists: Vec<Vec<u8>> = (0..records)
        .map(|i| format!("{}\x14\x14\0", seconds(i as f64 * contents.record_s)).into_bytes())
        .collect();
    for mark in contents.annotations {
        let place = || format!("{}: annotation {:?}", path.display(), mark.text);
        if mark.text.chars().any(char::is_control) {
            let remedy = "remove the control characters from its text";
            return Err(Error::input(place(), "holds control characters", remedy));
        }
        let duration = mark.duration_s;
        // A thousand million seconds: what lies beyond is an error of the caller's.
        if !(mark.onset_s.abs() <= 1e9 && (0.0..=1e9).contains(&duration)) {
            let problem = format!("onset {} s, duration {duration} s", mark.onset_s);
            let remedy = "give finite times below 1e9 s, duration at least 0";
            return Err(Error::input(place(), problem, remedy));
        }
        let record = ((mark.onset_s / contents.record_s).max(0.0) as usize).min(records - 1);
        let list = &mut lists[record];
        list.extend_from_slice(seconds(mark.onset_s).as_bytes());
        if duration > 0.0 {
            // A duration carries no sign.
            list.push(0x15);
            list.extend_from_slice(&seconds(duration).as_bytes()[1..]);
        }
        list.push(0x14);
        list.extend_from_slice(mark.text.as_bytes());
        list.extend_from_slice(b"\x14\0");
    }
    Ok(lists)
}

/// Signed decimal seconds, to the microsecond.
fn seconds(x: f64) -> String {
    // Adding 0 turns -0 into 0.
    format!("{:+}", (x * 1e6).round() / 1e6 + 0.0)
}

/// `x` in at most 8 characters with as many decimals as fit; `None` where they cannot hold it.
fn number(x: f64) -> Option<String> {
    if !x.is_finite() {
        return None;
    }
    let exact = format!("{}", x + 0.0);
    if exact.len() <= 8 {
        return Some(exact);
    }
    let text = (0..=6).rev().map(|d| format!("{x:.d$}")).find(|text| text.len() <= 8)?;
    let kept: f64 = text.parse().ok()?;
    // Whoever reads the file uses the rounded figure; it must only not be another range.
    ((kept - x).abs() <= 1e-3 * x.abs()).then_some(text)
}

/// The file's header: 256 bytes, and 256 for each signal, field by field over all signals.
fn header(path: &Path, contents: &Contents<'_>, layout: &Layout) -> Result<Vec<u8>> {
    let name = contents.encoding.name();
    let n_signals = contents.signals.len() + 1;
    if n_signals > 9999 {
        let problem = format!("{} signals, but the header counts to 9998", n_signals - 1);
        return Err(Error::input(path.display(), problem, "write several files"));
    }
    let mut h = Fields { path, signal: None, bytes: contents.encoding.version().to_vec() };
    h.field("patient", 80, "X X X X")?;
    let equipment = contents.equipment.trim().replace(' ', "_");
    let equipment = if equipment.is_empty() { "X" } else { &equipment };
    h.field("equipment", 80, &format!("Startdate X X X {equipment}"))?;
    h.field("start date", 8, "01.01.85")?;
    h.field("start time", 8, "00.00.00")?;
    h.field("header bytes", 8, &(256 * (n_signals + 1)).to_string())?;
    h.field("reserved", 44, &format!("{name}+C"))?;
    h.field("records", 8, &layout.records.to_string())?;
    h.field("record length", 8, &layout.record_text)?;
    h.field("signals", 4, &n_signals.to_string())?;
    let (lowest, highest) = contents.encoding.digital();
    let (signals, scales) = (contents.signals, &layout.scales);
    h.column("label", 16, signals, |i| signals[i].label, &format!("{name} Annotations"))?;
    h.column("transducer", 80, signals, |i| signals[i].transducer, "")?;
    h.column("unit", 8, signals, |i| signals[i].unit, "")?;
    h.column("physical minimum", 8, signals, |i| scales[i].min_text.as_str(), "-1")?;
    h.column("physical maximum", 8, signals, |i| scales[i].max_text.as_str(), "1")?;
    let (lowest, highest) = (lowest.to_string(), highest.to_string());
    h.column("digital minimum", 8, signals, |_| lowest.as_str(), &lowest)?;
    h.column("digital maximum", 8, signals, |_| highest.as_str(), &highest)?;
    h.column("prefilter", 80, signals, |i| signals[i].prefilter, "")?;
    let per_record: Vec<String> = layout.per_record.iter().map(usize::to_string).collect();
    let own = layout.annotation_samples.to_string();
    h.column("samples", 8, signals, |i| per_record[i].as_str(), &own)?;
    h.column("reserved", 32, signals, |_| "", "")?;
    Ok(h.bytes)
}

/// Appends fixed-width header fields and names the signal in its errors.
struct Fields<'a> {
    path: &'a Path,
    signal: Option<&'a str>,
    bytes: Vec<u8>,
}

impl<'a> Fields<'a> {
    fn field(&mut self, name: &str, width: usize, text: &str) -> Result<()> {
        let printable = text.bytes().all(|b| (32..127).contains(&b));
        if !printable || text.len() > width {
            let signal = self.signal.map(|s| format!(", signal {s:?}")).unwrap_or_default();
            return Err(Error::input(
                format!("{}{signal}, field {name}", self.path.display()),
                format!("{text:?} is not {width} or fewer printable ASCII characters"),
                "shorten it, and write uV for µV",
            ));
        }
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.resize(self.bytes.len() + width - text.len(), b' ');
        Ok(())
    }

    /// One field of every signal, then of the annotation signal.
    fn column<'b>(
        &mut self,
        name: &str,
        width: usize,
        signals: &[Signal<'a>],
        value: impl Fn(usize) -> &'b str,
        of_annotations: &str,
    ) -> Result<()> {
        for (i, signal) in signals.iter().enumerate() {
            self.signal = Some(signal.label);
            self.field(name, width, value(i))?;
        }
        self.signal = None;
        self.field(name, width, of_annotations)
    }
}
