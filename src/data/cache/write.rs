//! Writing a cache: under a temporary name, synced, then renamed, so that a file of the final name
//! is always whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::layout::{ALIGN, FOOTER, HEADER, Header, Index, footer};
use crate::{Error, Result};

/// Ending of unfinished files.
const PARTIAL: &str = "partial";

/// Writes the parts of a cache file in order.
pub(crate) struct Writer<W: Write + Seek> {
    out: W,
    offset: u64,
}

impl<W: Write + Seek> Writer<W> {
    /// Leaves room for the header.
    pub(crate) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&[0; HEADER])?;
        Ok(Self { out, offset: HEADER as u64 })
    }

    /// Appends a recording's block; returns its offset.
    pub(crate) fn block(&mut self, block: &[u8]) -> io::Result<u64> {
        let offset = self.offset;
        let fill = block.len().next_multiple_of(ALIGN) - block.len();
        self.out.write_all(block)?;
        self.out.write_all(&[0; ALIGN][..fill])?;
        self.offset += (block.len() + fill) as u64;
        Ok(offset)
    }

    /// Writes index, footer and header, flushes, and gives the output back.
    pub(crate) fn finish(mut self, key: u128, index: &Index) -> io::Result<W> {
        let json = serde_json::to_vec(index)?;
        let header = Header {
            key,
            index_offset: self.offset,
            index_len: json.len() as u64,
            index_xxh3: xxh3_64(&json),
        };
        self.out.write_all(&json)?;
        self.out.write_all(&footer(self.offset + (json.len() + FOOTER) as u64))?;
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header.to_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// For `map_err` where the folder of caches refuses: what cannot be done to `path`, and what helps.
pub(crate) fn refused(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |error| {
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space on that disk, or set data.cache_dir to a folder on another one"
            }
            _ => "set data.cache_dir to a folder that this user may write to",
        };
        Error::input(path, format!("cannot {action} the cache: {error}"), remedy)
    }
}

/// A file that is deleted when dropped, unless it was [`Self::keep`]t.
pub(crate) struct Partial {
    path: PathBuf,
    kept: bool,
}

impl Partial {
    /// Creates `<target>.<process>.partial` and locks it, so that others can tell it from an
    /// abandoned one.
    pub(crate) fn create(target: &Path) -> Result<(Self, BufWriter<File>)> {
        let path = target.with_extension(format!("{}.{PARTIAL}", std::process::id()));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(refused(&path, "create"))?;
        let partial = Self { path, kept: false };
        // A file system without locks only loses the tidying up of abandoned files.
        let _ = file.try_lock();
        Ok((partial, BufWriter::with_capacity(1 << 20, file)))
    }

    /// Makes the file durable and gives it its final name.
    pub(crate) fn keep(mut self, file: &File, target: &Path) -> Result<()> {
        file.sync_all().map_err(refused(&self.path, "finish writing"))?;
        fs::rename(&self.path, target).map_err(Error::io(target, "rename the finished file to"))?;
        self.kept = true;
        if let Some(parent) = target.parent()
            && let Ok(folder) = File::open(parent)
        {
            // Not every system can sync a folder; the rename itself has succeeded.
            let _ = folder.sync_all();
        }
        Ok(())
    }

    /// Where it is written.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Deletes unfinished files that no running process holds. Returns how many there were.
pub(crate) fn remove_abandoned(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| path.extension().is_some_and(|e| e == PARTIAL))
        .filter(|path| {
            let Ok(file) = File::open(path) else { return false };
            !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
                && fs::remove_file(path).is_ok()
        })
        .count()
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor, Seek, SeekFrom, Write};

    use super::Writer;

    /// A disk with room for `left` more bytes.
    struct Full {
        inner: Cursor<Vec<u8>>,
        left: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.len() > self.left {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.left -= bytes.len();
            self.inner.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Full {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.inner.seek(to)
        }
    }

    #[test]
    fn a_full_disk_is_reported_wherever_it_strikes() {
        let blocks = [vec![1u8; 100], vec![2u8; 64], vec![3u8; 1000]];
        let run = |left: usize| -> io::Result<u64> {
            let mut writer = Writer::new(Full { inner: Cursor::default(), left })?;
            for block in &blocks {
                assert_eq!(writer.block(block)? % 64, 0);
            }
            Ok(writer.offset)
        };
        let needed = run(1 << 20).unwrap() as usize;
        assert_eq!(needed, 64 + 128 + 64 + 1024);
        for left in [0, 63, 64, 150, 191, 192, 255, 256, needed - 1] {
            assert_eq!(run(left).unwrap_err().kind(), io::ErrorKind::StorageFull, "{left}");
        }
    }
}
