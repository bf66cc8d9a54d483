//! Read-only maps of files.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a whole file for reading.
///
/// # Errors
/// What the system reports.
pub fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the engine never changes a finished file in place (caches and checkpoints are
    // written under another name and renamed). If some other program truncates it under us, reads
    // past its new end raise SIGBUS; they never yield a reference to freed memory.
    unsafe { Mmap::map(file) }
}
