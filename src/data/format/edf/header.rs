//! The ASCII header: one fixed block, then one block per field over all signals.

use std::fmt::Display;
use std::path::Path;

use crate::data::format::text;
use crate::{Error, Result};

/// Bytes of the fixed block, and of the header for each signal.
pub(super) const BLOCK: usize = 256;

/// Physical values beyond it in any unit are a damaged header; below it every sample, in µV and
/// outside the declared range too, is finite in f32.
const LARGEST: f64 = 1e15;

/// Which member of the family a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// Samples are 24 bit (BDF) instead of 16 bit (EDF).
    pub bdf: bool,
    /// The header declares EDF+ or BDF+.
    pub plus: bool,
    /// The header declares an interrupted recording (EDF+D, BDF+D).
    pub discontinuous: bool,
}

impl Variant {
    /// Bytes of one sample: 2 or 3.
    pub fn sample_bytes(self) -> usize {
        if self.bdf { 3 } else { 2 }
    }
}

/// One signal of the header.
#[derive(Debug, Clone, PartialEq)]
pub struct Signal {
    /// Label as written, as in "EEG Fp1".
    pub label: String,
    /// Transducer type, as in "AgAgCl electrode".
    pub transducer: String,
    /// Physical dimension as written, as in "uV".
    pub unit: String,
    /// Physical value of `digital_min`. Above `physical_max` where polarity is inverted.
    pub physical_min: f64,
    /// Physical value of `digital_max`.
    pub physical_max: f64,
    /// Smallest digital value.
    pub digital_min: i32,
    /// Largest digital value.
    pub digital_max: i32,
    /// Filters that were on while recording, as in "HP:0.1Hz LP:75Hz".
    pub prefilter: String,
    /// Samples in each data record.
    pub samples_per_record: usize,
    /// Reserved field; BioSemi writes the electrode's range there.
    pub reserved: String,
}

impl Signal {
    /// Holds annotations (TALs), not samples.
    pub fn is_annotations(&self) -> bool {
        self.label == "EDF Annotations" || self.label == "BDF Annotations"
    }

    /// Physical units of one digital step; None where the physical range is empty, that is, the
    /// signal was never calibrated.
    pub fn gain(&self) -> Option<f64> {
        let range = self.physical_max - self.physical_min;
        let steps = f64::from(self.digital_max) - f64::from(self.digital_min);
        (range != 0.0).then(|| range / steps)
    }
}

/// Everything the header says.
///
/// Kemp et al. 1992 (EDF), Kemp & Olivan 2003 (EDF+), BioSemi's description of BDF.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Member of the family.
    pub variant: Variant,
    /// Local patient identification.
    pub patient: String,
    /// Local recording identification.
    pub recording: String,
    /// Start date as written, "dd.mm.yy".
    pub start_date: String,
    /// Start time as written, "hh.mm.ss".
    pub start_time: String,
    /// Length of the header in bytes.
    pub header_bytes: usize,
    /// Reserved field: "EDF+C", "EDF+D", "24BIT", ...
    pub reserved: String,
    /// Data records as written; None for -1, a recording whose length was not yet known.
    pub records: Option<u64>,
    /// Duration of one data record in seconds.
    pub record_s: f64,
    /// Signals in file order, annotation signals included.
    pub signals: Vec<Signal>,
}

impl Header {
    /// Reads the header at the start of `bytes`. `path` is for messages.
    ///
    /// # Errors
    /// The file is no EDF or BDF, ends inside the header, or a field is not what the
    /// specification asks for; the message names the field.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let variant = family(bytes, path)?;
        let mut fields = Fields { bytes, at: 8, path };
        let (patient, recording) = (fields.text(80)?, fields.text(80)?);
        let (start_date, start_time) = (fields.text(8)?, fields.text(8)?);
        let header_bytes = fields.integer(8, "number of bytes in header")?;
        let reserved = fields.text(44)?;
        let records = fields.integer(8, "number of data records")?;
        let record_s = fields.number(8, "duration of a data record")?;
        let count = fields.integer(4, "number of signals")?;
        let count = signal_count(count, header_bytes, bytes.len(), path)?;
        let signals = fields.signals(count, variant)?;
        let header = Self {
            variant: Variant {
                plus: reserved.starts_with("EDF+") || reserved.starts_with("BDF+"),
                discontinuous: reserved.starts_with("EDF+D") || reserved.starts_with("BDF+D"),
                ..variant
            },
            patient,
            recording,
            start_date,
            start_time,
            header_bytes: BLOCK * (count + 1),
            reserved,
            records: record_count(records, path)?,
            record_s,
            signals,
        };
        header.check_duration(path)?;
        Ok(header)
    }

    /// Bytes of one data record.
    pub fn record_bytes(&self) -> usize {
        let samples: usize = self.signals.iter().map(|s| s.samples_per_record).sum();
        samples * self.variant.sample_bytes()
    }

    /// Samples per second of a signal, Hz.
    pub fn sample_rate(&self, signal: &Signal) -> f64 {
        signal.samples_per_record as f64 / self.record_s
    }

    fn check_duration(&self, path: &Path) -> Result<()> {
        let sampled = self.signals.iter().any(|s| !s.is_annotations() && s.samples_per_record > 0);
        let problem = if self.record_s < 0.0 {
            "is negative"
        } else if self.record_s == 0.0 && sampled {
            "is 0, so that the signals have no sampling rate"
        } else {
            return Ok(());
        };
        Err(Error::input(
            place(path, "duration of a data record"),
            problem,
            "write the seconds of one record into bytes 244 to 251",
        ))
    }
}

fn place(path: &Path, field: &str) -> String {
    format!("{}: {field}", path.display())
}

fn family(bytes: &[u8], path: &Path) -> Result<Variant> {
    let plain = Variant { bdf: false, plus: false, discontinuous: false };
    let start = bytes.get(..8).unwrap_or(bytes);
    let variant = if start.first() == Some(&0xff) && start.get(1..8) == Some(b"BIOSEMI") {
        Variant { bdf: true, ..plain }
    } else if start.len() == 8 && text(start) == "0" {
        plain
    } else {
        return Err(Error::input(
            path.display(),
            format!("is not EDF or BDF: it begins with \"{}\"", start.escape_ascii()),
            "check what wrote it; an EDF begins with \"0       \", a BDF with 0xff \"BIOSEMI\"",
        ));
    };
    if bytes.len() < BLOCK {
        return Err(ends_inside_header(path, bytes.len(), BLOCK));
    }
    Ok(variant)
}

fn ends_inside_header(path: &Path, bytes: usize, header: usize) -> Error {
    Error::input(
        path.display(),
        format!("ends inside its header: {bytes} bytes of {header}"),
        "copy the file again from where it was recorded",
    )
}

/// Checks the count against the header's own length and the file's, before anything is sized by
/// it.
fn signal_count(count: i64, header_bytes: i64, file: usize, path: &Path) -> Result<usize> {
    let count = match usize::try_from(count) {
        Ok(count) if count > 0 => count,
        _ => {
            return Err(Error::input(
                place(path, "number of signals"),
                format!("is {count}"),
                "a recording has at least one signal: check what wrote the file",
            ));
        }
    };
    let expected = BLOCK * (count + 1);
    if usize::try_from(header_bytes) != Ok(expected) {
        return Err(Error::input(
            place(path, "number of bytes in header"),
            format!("is {header_bytes}, but {count} signals take {expected}"),
            "one of the two fields is wrong: correct bytes 184 to 191 or 252 to 255",
        ));
    }
    if file < expected {
        return Err(ends_inside_header(path, file, expected));
    }
    Ok(count)
}

fn record_count(records: i64, path: &Path) -> Result<Option<u64>> {
    match records {
        -1 => Ok(None),
        1.. => Ok(Some(records.unsigned_abs())),
        _ => Err(Error::input(
            place(path, "number of data records"),
            format!("is {records}"),
            "write the count into bytes 236 to 243, or -1 to read what the file holds",
        )),
    }
}

/// A cursor over the header's fields.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    fn take(&mut self, width: usize) -> Result<&'a [u8]> {
        let end = self.at + width;
        let field = self.bytes.get(self.at..end);
        self.at = end;
        field.ok_or_else(|| ends_inside_header(self.path, self.bytes.len(), end))
    }

    fn text(&mut self, width: usize) -> Result<String> {
        Ok(text(self.take(width)?))
    }

    fn number(&mut self, width: usize, name: impl Display) -> Result<f64> {
        let at = self.at;
        let written = self.text(width)?;
        let value = written.parse::<f64>().ok().filter(|v| v.is_finite());
        value.ok_or_else(|| self.not_a_number(at, width, name, &written))
    }

    fn integer(&mut self, width: usize, name: impl Display) -> Result<i64> {
        let at = self.at;
        let written = self.text(width)?;
        // Some writers put a point into integer fields, as in "-32768.".
        let value = written.strip_suffix('.').unwrap_or(&written).parse::<i64>().ok();
        value.ok_or_else(|| self.not_a_number(at, width, name, &written))
    }

    fn not_a_number(&self, at: usize, width: usize, name: impl Display, written: &str) -> Error {
        Error::input(
            format!("{}: {name}", self.path.display()),
            format!("is \"{}\", not a number", written.escape_debug()),
            format!(
                "correct bytes {at} to {}; decimals are written with a point",
                at + width.saturating_sub(1)
            ),
        )
    }

    /// Reads one field of every signal.
    fn column<T>(
        &mut self,
        count: usize,
        mut read: impl FnMut(&mut Self, usize) -> Result<T>,
    ) -> Result<Vec<T>> {
        (0..count).map(|i| read(self, i)).collect()
    }

    fn signals(&mut self, count: usize, variant: Variant) -> Result<Vec<Signal>> {
        let labels = self.column(count, |f, _| f.text(16))?;
        let name =
            |i: usize| format!("signal {} \"{}\"", i + 1, labels.get(i).map_or("", String::as_str));
        let mut transducers = self.column(count, |f, _| f.text(80))?.into_iter();
        let mut units = self.column(count, |f, _| f.text(8))?.into_iter();
        let physical_min =
            self.column(count, |f, i| f.number(8, format!("physical minimum of {}", name(i))))?;
        let physical_max =
            self.column(count, |f, i| f.number(8, format!("physical maximum of {}", name(i))))?;
        let digital_min =
            self.column(count, |f, i| f.integer(8, format!("digital minimum of {}", name(i))))?;
        let digital_max =
            self.column(count, |f, i| f.integer(8, format!("digital maximum of {}", name(i))))?;
        let mut prefilters = self.column(count, |f, _| f.text(80))?.into_iter();
        let samples =
            self.column(count, |f, i| f.integer(8, format!("samples per record of {}", name(i))))?;
        let mut reserved = self.column(count, |f, _| f.text(32))?.into_iter();
        let mut ranges = physical_min
            .into_iter()
            .zip(physical_max)
            .zip(digital_min.into_iter().zip(digital_max));
        let names: Vec<String> = (0..count).map(name).collect();
        let mut signals = Vec::with_capacity(count);
        for ((label, name), samples) in labels.into_iter().zip(&names).zip(samples) {
            let ((physical_min, physical_max), digital) = ranges.next().unwrap_or_default();
            let mut signal = Signal {
                label,
                transducer: transducers.next().unwrap_or_default(),
                unit: units.next().unwrap_or_default(),
                physical_min,
                physical_max,
                digital_min: 0,
                digital_max: 0,
                prefilter: prefilters.next().unwrap_or_default(),
                samples_per_record: self.samples_per_record(samples, name)?,
                reserved: reserved.next().unwrap_or_default(),
            };
            (signal.digital_min, signal.digital_max) = self.digital(digital, &signal, variant)?;
            self.check_physical(&signal)?;
            signals.push(signal);
        }
        Ok(signals)
    }

    fn samples_per_record(&self, samples: i64, name: &str) -> Result<usize> {
        // Eight digits at most, so that sums over 9999 signals stay far from overflowing.
        usize::try_from(samples).ok().filter(|&n| n <= 99_999_999).ok_or_else(|| {
            Error::input(
                place(self.path, &format!("samples per record of {name}")),
                format!("is {samples}"),
                "a signal has 1 sample per record or more: check what wrote the file",
            )
        })
    }

    fn check_physical(&self, signal: &Signal) -> Result<()> {
        let (min, max) = (signal.physical_min, signal.physical_max);
        if min.abs() <= LARGEST && max.abs() <= LARGEST {
            return Ok(());
        }
        Err(Error::input(
            place(self.path, &format!("physical range of \"{}\"", signal.label)),
            format!("{min:e} to {max:e} is beyond every measurement"),
            "correct the physical minimum and maximum of this signal",
        ))
    }

    fn digital(&self, range: (i64, i64), signal: &Signal, variant: Variant) -> Result<(i32, i32)> {
        let bits = variant.sample_bytes() * 8;
        let (min, max) = range;
        let wide = 1_i64 << 31;
        let fits = (-wide..wide).contains(&min) && (-wide..wide).contains(&max);
        // Annotation signals are not scaled, so their range is of no consequence.
        if fits && (min < max || signal.is_annotations()) {
            return Ok((min as i32, max as i32));
        }
        Err(Error::input(
            place(self.path, &format!("digital range of \"{}\"", signal.label)),
            format!("{min} to {max} is not an ascending range of {bits} bit values"),
            "correct the digital minimum and maximum of this signal; a descending scale belongs \
             into the physical range",
        ))
    }
}
