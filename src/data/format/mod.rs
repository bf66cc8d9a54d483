//! File formats, one file or folder each. A reader never panics on any bytes.
//!
//! # Layout
//! [`edf`] reads EDF, EDF+, BDF and BDF+ ([`edf_write`] writes them), [`brainvision`] BrainVision, [`eeglab`]
//! EEGLAB. `number` takes blocks of samples apart, `label` turns a file's labels and units into names,
//! kinds and scales, the same way for every format; `pointer` recognises signals that were never
//! downloaded; `clock` places times of a file with gaps on the samples in memory.

pub mod brainvision;
mod clock;
pub mod edf;
pub mod edf_write;
pub mod eeglab;
pub(crate) mod label;
mod number;
pub(crate) mod pointer;

use std::path::{Path, PathBuf};

use super::Recording;
use crate::{Error, Result};
pub(crate) use clock::Clock;

/// Extensions of the files that can be opened, lower case, each naming one recording.
pub const EXTENSIONS: &[&str] = &["edf", "bdf", "vhdr", "set"];

/// Stands for the unit of a signal whose calibration is missing from its file.
pub(crate) const UNCALIBRATED: &str = "digital steps";

/// A recording and what its file said that the recording in memory no longer shows.
pub(crate) struct Decoded {
    pub recording: Recording,
    /// Unit of each channel as its file writes it, "" where it gives none, [`UNCALIBRATED`].
    pub units: Vec<String>,
    /// From the file's time to the recording's.
    pub clock: Clock,
}

/// Reads a recording by the extension of its name.
pub(crate) fn decode(path: &Path) -> Result<Decoded> {
    pointer::check(path)?;
    if std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0) {
        let remedy = "copy the file again from where it was recorded";
        return Err(Error::input(path.display(), "is empty", remedy));
    }
    match extension(path).as_str() {
        "edf" | "bdf" => edf::Edf::open(path)?.decode(),
        "vhdr" => brainvision::decode(path),
        "set" => eeglab::decode(path),
        other => Err(Error::input(
            path.display(),
            match other {
                "" => "a file name without extension does not tell the format".to_string(),
                other => format!("no reader for '.{other}' files"),
            },
            format!("give one of: {}", supported()),
        )),
    }
}

/// The extension in lower case, "" where there is none.
pub(crate) fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The extensions for a message, as in ".edf, .bdf".
pub(crate) fn supported() -> String {
    EXTENSIONS.iter().map(|e| format!(".{e}")).collect::<Vec<_>>().join(", ")
}

/// Text of unknown encoding: UTF-8 where it is valid, else Latin-1. Blanks and NULs around it go.
pub(crate) fn text(bytes: &[u8]) -> String {
    let decoded = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|&b| char::from(b)).collect(),
    };
    decoded.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_string()
}

/// The file that a header names, in the header's folder; else the one that shares the header's
/// name, as when files were renamed without their contents.
pub(crate) fn companion(
    path: &Path,
    named: &str,
    extension: &str,
    notes: &mut Vec<String>,
) -> Option<PathBuf> {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let named = named.replace("$b", &stem);
    let file = named.rsplit(['/', '\\']).next().unwrap_or_default();
    let first = path.with_file_name(file);
    let present = |path: &Path| std::fs::symlink_metadata(path).is_ok();
    if !file.is_empty() && present(&first) {
        return Some(first);
    }
    let second = path.with_extension(extension);
    if !present(&second) {
        return None;
    }
    notes.push(format!("the header names {file}, which is not here: {stem}.{extension} was read"));
    Some(second)
}
