//! Tensors on disk: safetensors files, written so that a crash, a full disk or a kill at any
//! moment leaves the earlier file whole.
//!
//! Format: <https://github.com/huggingface/safetensors#format>: the header's length (u64, little
//! endian), a JSON header padded to 8 bytes, then the tensors' bytes, C order, little endian.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

pub use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Error, Result};

/// The header's key for the metadata; no tensor may have this name.
const METADATA_KEY: &str = "__metadata__";
/// The longest header that is read, bytes, as in the format's own reader.
const LONGEST_HEADER: u64 = 100_000_000;
/// As many names as a message lists of each kind of difference.
const NAMES_SHOWN: usize = 6;

/// One tensor's type, shape and bytes (C order, little endian).
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Product of the shape times the element's size, bytes.
    pub bytes: Cow<'a, [u8]>,
}

/// Named tensors with metadata. Equal checkpoints have equal files, byte for byte.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checkpoint<'a> {
    /// Texts by name.
    pub metadata: BTreeMap<String, String>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, StoredTensor<'a>>,
}

impl<'a> Checkpoint<'a> {
    /// Adds a tensor under a name that must be new.
    ///
    /// # Errors
    /// [`Error::Shape`] where the bytes are not as many as shape and dtype say, or the name is
    /// taken.
    pub fn insert(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<()> {
        let bytes = bytes.into();
        if size_of(dtype, shape) != Some(bytes.len()) {
            let problem = format!("{name} {dtype} {shape:?} does not hold {} bytes", bytes.len());
            return Err(Error::shape("checkpoint", problem));
        }
        if name == METADATA_KEY || self.tensors.contains_key(name) {
            return Err(Error::shape("checkpoint", format!("the name {name} is taken")));
        }
        self.tensors.insert(name.to_string(), StoredTensor { dtype, shape: shape.to_vec(), bytes });
        Ok(())
    }

    /// Writes the file: to a temporary neighbour (`PATH.tmp`), through to the disk, then renamed.
    ///
    /// # Errors
    /// [`Error::Input`] naming the path and the remedy; the file that was there before is whole,
    /// and the temporary one removed.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (header, order) = self.header()?;
        write_atomically(path, &mut |file| {
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            order.iter().try_for_each(|tensor| file.write_all(&tensor.bytes))
        })
    }

    /// The header, and the tensors in the file's order: larger elements first, so that each is
    /// aligned to its element, then by name.
    fn header(&self) -> Result<(Vec<u8>, Vec<&StoredTensor<'a>>)> {
        let mut order: Vec<_> = self.tensors.iter().collect();
        order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.bitsize()));
        let mut entries = serde_json::Map::new();
        let json = |error: serde_json::Error| Error::shape("checkpoint", error);
        if !self.metadata.is_empty() {
            entries.insert(
                METADATA_KEY.to_string(),
                serde_json::to_value(&self.metadata).map_err(json)?,
            );
        }
        let mut offset = 0;
        for (name, tensor) in &order {
            let end = offset + tensor.bytes.len();
            let info = TensorInfo {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                data_offsets: (offset, end),
            };
            entries.insert((*name).clone(), serde_json::to_value(&info).map_err(json)?);
            offset = end;
        }
        let mut header = serde_json::to_vec(&entries).map_err(json)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok((header, order.into_iter().map(|(_, tensor)| tensor).collect()))
    }

    /// Reads a file. Its bytes are not trusted: every length is checked against the file's.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read; [`Error::Input`] where it is no whole safetensors
    /// file.
    pub fn load(path: &Path) -> Result<Checkpoint<'static>> {
        let mut file = File::open(path).map_err(Error::io(path, "open the checkpoint"))?;
        let about = file.metadata().map_err(Error::io(path, "read the checkpoint"))?;
        if !about.is_file() {
            let remedy = "name a .safetensors file, such as checkpoints/best.safetensors of a run";
            return Err(Error::input(path.display(), "is not a file", remedy));
        }
        let header = read_header(path, &mut file, about.len())?;
        let mut found = Checkpoint {
            metadata: header.metadata().clone().unwrap_or_default().into_iter().collect(),
            tensors: BTreeMap::new(),
        };
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            // Its length was checked against the file's: this cannot ask for more than that.
            let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
            file.read_exact(&mut bytes).map_err(Error::io(path, "read the checkpoint"))?;
            let (dtype, shape) = (info.dtype, info.shape.clone());
            found.tensors.insert(name, StoredTensor { dtype, shape, bytes: bytes.into() });
        }
        Ok(found)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and the names it does have.
    pub fn tensor(&self, path: &Path, name: &str) -> Result<&StoredTensor<'a>> {
        self.tensors.get(name).ok_or_else(|| {
            let names = listed(&self.tensors.keys().cloned().collect::<Vec<_>>());
            let problem = format!("has no tensor `{name}`; it holds {names}");
            Error::input(path.display(), problem, "name a checkpoint written by engine train")
        })
    }

    /// Holds the file against a model's tensors: each must be there with its dtype and shape, and
    /// no other.
    ///
    /// # Errors
    /// [`Error::Input`] listing the names that are missing, too many, or of another shape.
    pub fn expect_model<'m>(
        &self,
        path: &Path,
        model: impl IntoIterator<Item = (&'m str, Dtype, &'m [usize])>,
    ) -> Result<()> {
        let mut others: BTreeSet<&str> = self.tensors.keys().map(String::as_str).collect();
        let (mut missing, mut different) = (Vec::new(), Vec::new());
        for (name, dtype, shape) in model {
            others.remove(name);
            match self.tensors.get(name) {
                None => missing.push(format!("{name} {dtype} {shape:?}")),
                Some(stored) if stored.dtype == dtype && stored.shape == shape => {}
                Some(stored) => different.push(format!(
                    "{name} is {} {:?} here and {dtype} {shape:?} in the model",
                    stored.dtype, stored.shape
                )),
            }
        }
        let others: Vec<String> = others.into_iter().map(str::to_string).collect();
        let problems: Vec<String> =
            [("missing", missing), ("not in the model", others), ("of another shape", different)]
                .into_iter()
                .filter(|(_, names)| !names.is_empty())
                .map(|(what, names)| format!("{} {what}: {}", names.len(), listed(&names)))
                .collect();
        if problems.is_empty() {
            return Ok(());
        }
        let problem = format!("holds another model's tensors\n  {}", problems.join("\n  "));
        let remedy = "use the settings it was trained with (config.toml of its run), or another \
                      checkpoint";
        Err(Error::input(path.display(), problem, remedy))
    }
}

/// The first few names, and how many more there are.
fn listed(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_SHOWN).map(String::as_str).collect();
    match names.len() {
        0 => "none".to_string(),
        n if n > NAMES_SHOWN => format!("{} and {} more", shown.join(", "), n - NAMES_SHOWN),
        _ => shown.join(", "),
    }
}

/// Bytes of a tensor; none where they cannot be counted.
fn size_of(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Reads and checks the header: what it declares is exactly as long as the rest of the file.
fn read_header(path: &Path, file: &mut File, file_length: u64) -> Result<Metadata> {
    let refuse = |problem: String| {
        let remedy = "use another checkpoint: last.safetensors and best.safetensors of a run are \
                      always written whole, so this file was damaged or cut when it was copied";
        Error::input(path.display(), problem, remedy)
    };
    let mut length = [0; 8];
    if file_length < 8 {
        return Err(refuse(format!("is no safetensors file: it has {file_length} bytes")));
    }
    file.read_exact(&mut length).map_err(Error::io(path, "read the checkpoint"))?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > file_length - 8 {
        let problem = format!(
            "is no safetensors file, or cut short: a header of {length} bytes in a file of {file_length}"
        );
        return Err(refuse(problem));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(Error::io(path, "read the checkpoint"))?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| refuse(format!("has a damaged header: {error}")))?;
    let (declared, present) = (header.data_len() as u64, file_length - 8 - length);
    if declared != present {
        let problem = format!("is cut short or damaged: {present} of {declared} bytes of tensors");
        return Err(refuse(problem));
    }
    Ok(header)
}

/// Writes a file whole or not at all: into `PATH.tmp`, through to the disk, then renamed over
/// `path`, and the folder's entry through to the disk.
///
/// # Errors
/// [`Error::Input`] naming the path, the system's reason and a remedy. What was at `path` before
/// is untouched and the temporary file is removed.
pub fn write_atomically(
    path: &Path,
    write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let temporary = temporary_for(path);
    let written = File::create(&temporary).and_then(|file| {
        let mut buffered = BufWriter::with_capacity(1 << 20, file);
        write(&mut buffered)?;
        let file = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    });
    if let Err(error) = written {
        // The first error is the one to report; a temporary file that was never made stays so.
        let _ = std::fs::remove_file(&temporary);
        return Err(write_error(path, &error));
    }
    sync_folder_of(path).map_err(|error| write_error(path, &error))
}

fn temporary_for(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Writes a folder's entries through to the disk, where the file system can.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn write_error(path: &Path, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "free space on that disk, or give --run a folder on another one"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "give --run a folder that this user may write to"
        }
        io::ErrorKind::NotFound => "make the folder it is to stand in",
        _ => "look into that disk, or give --run a folder on another one",
    };
    let problem = format!("cannot be written: {error}; the file there before, if any, is whole");
    Error::input(path.display(), problem, remedy)
}

#[cfg(test)]
#[path = "checkpoint_file_tests.rs"]
mod tests;
