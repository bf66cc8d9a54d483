//! Memory-mapped files: the one place that asks for a mapping.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

/// Maps the whole of `file` for reading.
///
/// # Errors
/// What the operating system reports: an empty file, a file system without mappings, no memory.
pub fn map_file(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the caller's bytes change or vanish under the mapping only where another process
    // writes or truncates the file. The engine's caches are written under a temporary name, synced
    // and renamed once complete; no code of the engine opens one for writing after that. The
    // mapping is read as plain integers, of which every bit pattern is valid.
    unsafe { memmap2::Mmap::map(file) }
}
