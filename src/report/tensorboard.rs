//! TensorBoard event files: scalars in the TFRecord framing (`tensorflow/core/lib/io/
//! record_writer.h`), the few fields of `event.proto` and `summary.proto` encoded by hand.

use crate::{Error, Result};
use crc::{CRC_32_ISCSI, Crc, Table};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

static CRC32C: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);

/// Writes scalars to an event file. Every call is one write to the file, so a reader, or a crash,
/// finds whole records.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// A new event file in `folder`, which is created where it does not exist.
    ///
    /// # Errors
    /// [`Error::Io`] where folder or file cannot be written.
    pub fn create(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
        let seconds = wall_time() as u64;
        let mut attempt = 0;
        loop {
            let name = format!(
                "events.out.tfevents.{seconds:010}.engine.{}.{attempt}",
                std::process::id()
            );
            let path = folder.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut writer = Self { path, file };
                    writer.event(0, &Payload::Version)?;
                    return Ok(writer);
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => attempt += 1,
                Err(e) => return Err(Error::io(&path, "create")(e)),
            }
        }
    }

    /// Goes on in the newest event file of `folder` (a new one where there is none). A record cut
    /// short by a crash is dropped. TensorBoard is told to forget scalars of `step` and later, which
    /// will be written again: give the first step of the resumed run.
    ///
    /// # Errors
    /// [`Error::Io`] where folder or file cannot be read or written.
    pub fn resume(folder: impl AsRef<Path>, step: u64) -> Result<Self> {
        let folder = folder.as_ref();
        let mut writer = match newest(folder)? {
            Some((path, file)) => Self { path, file },
            None => Self::create(folder)?,
        };
        writer.event(step, &Payload::SessionStart)?;
        Ok(writer)
    }

    /// The file written to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `(tag, value)` pairs at `step`, as in `[("loss/train", 0.7)]`, stamped with the
    /// present time.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.event(step, &Payload::Scalars(values))
    }

    fn event(&mut self, step: u64, payload: &Payload<'_>) -> Result<()> {
        let record = frame(&encode(wall_time(), step, payload));
        self.file.write_all(&record).map_err(Error::io(&self.path, "write"))
    }
}

enum Payload<'a> {
    Version,
    SessionStart,
    Scalars(&'a [(&'a str, f64)]),
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

const VERSION: &str = "brain.Event:2";

/// The message `Event`: wall_time = 1 (double), step = 2 (int64), file_version = 3 (string),
/// summary = 5 (Summary), session_log = 7 (SessionLog).
fn encode(wall_time: f64, step: u64, payload: &Payload<'_>) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(wall_time.to_le_bytes());
    event.push(2 << 3);
    varint(step, &mut event);
    match payload {
        Payload::Version => field(3, VERSION.as_bytes(), &mut event),
        // SessionLog: status = 1 (enum), where START = 1.
        Payload::SessionStart => field(7, &[1 << 3, 1], &mut event),
        Payload::Scalars(values) => {
            let mut summary = Vec::new();
            for (tag, value) in *values {
                // Summary.Value: tag = 1 (string), simple_value = 2 (float).
                let mut message = Vec::new();
                field(1, tag.as_bytes(), &mut message);
                message.push(2 << 3 | 5);
                message.extend((*value as f32).to_le_bytes());
                field(1, &message, &mut summary);
            }
            field(5, &summary, &mut event);
        }
    }
    event
}

/// A length-delimited field.
fn field(number: u8, bytes: &[u8], to: &mut Vec<u8>) {
    to.push(number << 3 | 2);
    varint(bytes.len() as u64, to);
    to.extend(bytes);
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Length, its masked CRC, the data, its masked CRC.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and offset so that a CRC of data holding CRCs stays sound.
fn masked_crc(data: &[u8]) -> u32 {
    CRC32C.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The last event file of `folder` by name (names begin with the time), cut after its last whole
/// record and placed at its end; `None` where there is none that is ours to continue.
fn newest(folder: &Path) -> Result<Option<(PathBuf, File)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(folder, "list")(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io(folder, "list"))?.file_name();
        if name.to_string_lossy().starts_with("events.out.tfevents.") {
            names.push(name);
        }
    }
    let Some(name) = names.into_iter().max() else { return Ok(None) };
    let path = folder.join(name);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(Error::io(&path, "open for writing"))?;
    let whole = whole_records(&file).map_err(Error::io(&path, "read"))?;
    if whole == 0 {
        return Ok(None);
    }
    file.set_len(whole).map_err(Error::io(&path, "cut the broken end of"))?;
    file.seek(SeekFrom::End(0)).map_err(Error::io(&path, "seek in"))?;
    Ok(Some((path, file)))
}

/// Bytes up to the end of the last record whose checksums hold, counted from the start.
fn whole_records(file: &File) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let (mut whole, mut header, mut data) = (0u64, [0u8; 12], Vec::new());
    loop {
        let body = match read_whole(&mut reader, &mut header)? {
            true => u64::from_le_bytes(header[..8].try_into().unwrap_or_default()),
            false => return Ok(whole),
        };
        let end = whole.checked_add(16).and_then(|n| n.checked_add(body));
        let (Some(end), true) = (end, header[8..] == masked_crc(&header[..8]).to_le_bytes()) else {
            return Ok(whole);
        };
        if end > length {
            return Ok(whole);
        }
        data.resize(body as usize + 4, 0);
        let (message, crc) = match read_whole(&mut reader, &mut data)? {
            true => data.split_at(body as usize),
            false => return Ok(whole),
        };
        if crc != masked_crc(message).to_le_bytes() {
            return Ok(whole);
        }
        whole = end;
    }
}

/// Fills `buffer`; false where the file ends before.
fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4: thirty-two bytes of zeros, of ones, ascending.
    #[test]
    fn crc32c_matches_the_rfc() {
        assert_eq!(CRC32C.checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(CRC32C.checksum(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(CRC32C.checksum(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn varints_match_the_protobuf_specification() {
        let encoded = |value| {
            let mut bytes = Vec::new();
            varint(value, &mut bytes);
            bytes
        };
        assert_eq!(encoded(1), [1]);
        assert_eq!(encoded(150), [0x96, 0x01]);
        assert_eq!(encoded(u64::MAX).len(), 10);
    }

    #[test]
    fn resume_cuts_a_broken_record_and_goes_on_in_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        writer.scalars(1, &[("loss", 0.5)]).unwrap();
        let path = writer.path().to_path_buf();
        drop(writer);
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..28 {
            let mut broken = whole.clone();
            broken.extend(&frame(&encode(1.0, 2, &Payload::Scalars(&[("loss", 0.25)])))[..cut]);
            std::fs::write(&path, &broken).unwrap();
            let writer = EventWriter::resume(folder.path(), 2).unwrap();
            assert_eq!(writer.path(), path);
            let now = std::fs::read(&path).unwrap();
            assert!(now.starts_with(&whole));
            let start = frame(&encode(1.0, 2, &Payload::SessionStart)).len();
            assert_eq!(now.len(), whole.len() + start);
        }
    }

    #[test]
    fn resume_leaves_a_foreign_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("events.out.tfevents.0000000001.other");
        std::fs::write(&foreign, b"not a record at all").unwrap();
        let writer = EventWriter::resume(folder.path(), 1).unwrap();
        assert_ne!(writer.path(), foreign);
        assert_eq!(std::fs::read(&foreign).unwrap(), b"not a record at all");
        assert!(EventWriter::resume(folder.path().join("new"), 1).is_ok());
    }
}
