//! The memory-mapped cache of a dataset's preprocessed samples. [`super::prepare`] writes it; here
//! it is opened and windows are read from it, in microseconds and without allocating.

mod layout;
mod write;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

pub(crate) use layout::{Entry, Index, TILE, VERSION, encode};
pub(crate) use write::{Partial, Writer, refused, remove_abandoned};

use super::Annotation;
use super::window::{Extent, Window};
use crate::backend::cpu::simd::map::map_file;
use crate::{Error, Result};

/// Windows a thread must have before another thread is worth waking.
const WINDOWS_PER_TASK: usize = 4;

/// A recording that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Subject label.
    pub subject: String,
    /// The file.
    pub path: PathBuf,
    /// Why, in one line.
    pub reason: String,
}

/// A recording of the cache.
#[derive(Debug, Clone, PartialEq)]
pub struct CachedRecording {
    /// Subject label.
    pub subject: String,
    /// Session label, where there is one.
    pub session: Option<String>,
    /// Task label, where there is one.
    pub task: Option<String>,
    /// Run label, where there is one.
    pub run: Option<String>,
    /// The file it was read from.
    pub path: PathBuf,
    /// Samples of each channel.
    pub n_samples: usize,
    /// Marks, in seconds from the first sample.
    pub annotations: Vec<Annotation>,
    /// Bad channels and why.
    pub bad: Vec<(String, String)>,
    /// What preprocessing did otherwise than its settings say.
    pub notes: Vec<String>,
}

/// Where a recording's numbers lie.
#[derive(Debug)]
struct Place {
    block: Range<usize>,
    xxh3: u64,
    /// Channels in the block.
    stored: usize,
    /// Index into [`Cache::rows`].
    channel_set: usize,
}

/// An open cache. Shared by threads.
#[derive(Debug)]
pub struct Cache {
    map: Mmap,
    path: PathBuf,
    key: u128,
    positions: u64,
    channel_sets: Vec<Vec<String>>,
    channels: Vec<String>,
    sample_rate: f64,
    recordings: Vec<CachedRecording>,
    places: Vec<Place>,
    /// For each channel set, where each of `channels` lies in it.
    rows: Vec<Vec<usize>>,
    skipped: Vec<Skipped>,
}

impl Cache {
    /// Opens a cache file and checks all of it but the samples ([`Self::verify`] does those).
    ///
    /// # Errors
    /// A file that cannot be read or mapped, or is not a whole cache of this engine's version.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let damaged = |problem: &str| {
            Error::input(path.display(), problem, "delete it: it is made again when it is needed")
        };
        let length = file.metadata().map_err(Error::io(path, "read"))?.len();
        if length == 0 {
            return Err(damaged("is cut off: it is empty"));
        }
        let map = map_file(&file).map_err(Error::io(path, "map"))?;
        let header = layout::Header::of_file(&map).map_err(damaged)?;
        let start = header.index_offset as usize;
        let json = &map[start..start + header.index_len as usize];
        if xxh3_64(json) != header.index_xxh3 {
            return Err(damaged("has a damaged index"));
        }
        let index: Index = serde_json::from_slice(json)
            .map_err(|e| damaged(&format!("has an index that does not parse: {e}")))?;
        Self::assemble(map, path, header.key, start, index).map_err(damaged)
    }

    fn assemble(
        map: Mmap,
        path: &Path,
        key: u128,
        end: usize,
        index: Index,
    ) -> Result<Self, &'static str> {
        // A set that lacks a channel belongs to skipped recordings only: it gets no rows.
        let rows: Vec<Vec<usize>> = (index.channel_sets.iter())
            .map(|set| index.channels.iter().map(|c| set.iter().position(|s| s == c)).collect())
            .map(|rows: Option<Vec<usize>>| rows.unwrap_or_default())
            .collect();
        let mut places = Vec::with_capacity(index.recordings.len());
        let mut recordings = Vec::with_capacity(index.recordings.len());
        for entry in index.recordings {
            let place = Self::place(&entry, &index.channel_sets, end);
            let place = place.ok_or("has an index that points outside its samples")?;
            if rows[place.channel_set].len() != index.channels.len() || index.channels.is_empty() {
                return Err("has an index whose recordings lack channels");
            }
            places.push(place);
            recordings.push(entry.into());
        }
        Ok(Self {
            map,
            path: path.to_path_buf(),
            key,
            positions: index.positions,
            channel_sets: index.channel_sets,
            channels: index.channels,
            sample_rate: index.sample_rate,
            recordings,
            places,
            rows,
            skipped: index.skipped,
        })
    }

    fn place(entry: &Entry, sets: &[Vec<String>], end: usize) -> Option<Place> {
        let stored = sets.get(entry.channel_set)?.len();
        let start = usize::try_from(entry.offset).ok()?;
        let stop = start.checked_add(layout::block_len(stored, entry.n_samples)?)?;
        let sound = start >= layout::HEADER && start % layout::ALIGN == 0 && stop <= end;
        let channel_set = entry.channel_set;
        sound.then_some(Place { block: start..stop, xxh3: entry.xxh3, stored, channel_set })
    }

    /// Compares every recording's samples with their checksum. Reads the whole file.
    ///
    /// # Errors
    /// The first recording whose bytes changed.
    pub fn verify(&self) -> Result<()> {
        let changed = |place: &Place| xxh3_64(&self.map[place.block.clone()]) != place.xxh3;
        match self.places.par_iter().position_first(changed) {
            None => Ok(()),
            Some(i) => Err(Error::input(
                self.path.display(),
                format!("the samples of {} changed", self.recordings[i].path.display()),
                "delete the cache: it is made again when it is needed",
            )),
        }
    }

    /// The cache file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the channels, in the order of every window.
    pub fn channels(&self) -> &[String] {
        &self.channels
    }

    /// Samples per second, Hz.
    pub fn sample_rate(&self) -> f64 {
        self.sample_rate
    }

    /// The recordings, in the order of the sources.
    pub fn recordings(&self) -> &[CachedRecording] {
        &self.recordings
    }

    /// Recordings that could not be used, in the order of the sources.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// What [`super::window::Windowing::cut`] takes.
    pub fn extents(&self) -> Vec<Extent<'_>> {
        (self.recordings.iter())
            .map(|r| Extent {
                name: r.path.to_str().unwrap_or("a recording"),
                n_samples: r.n_samples,
                annotations: &r.annotations,
            })
            .collect()
    }

    /// Reads the window of recording `recording` that begins at sample `start` into `out`,
    /// `[channels, time]`; its length gives the number of samples. Does not allocate.
    ///
    /// # Errors
    /// No such recording, a window that reaches beyond it, an `out` that is not a whole number of
    /// samples for each channel.
    pub fn read_window(&self, recording: usize, start: usize, out: &mut [f32]) -> Result<()> {
        let time = self.check(recording, start, out.len())?;
        self.gather(recording, start, time, out);
        Ok(())
    }

    /// Reads windows into `out`, `[windows, channels, time]`, on several threads where there are
    /// enough windows for that.
    ///
    /// # Errors
    /// As [`Self::read_window`], before anything is read.
    pub fn fill_batch(&self, windows: &[Window], out: &mut [f32]) -> Result<()> {
        let Some(each) = out.len().checked_div(windows.len()) else {
            return if out.is_empty() { Ok(()) } else { Err(wrong_size(out.len(), 0, 0)) };
        };
        if each * windows.len() != out.len() {
            return Err(wrong_size(out.len(), windows.len(), self.channels.len()));
        }
        let mut time = 0;
        for window in windows {
            time = self.check(window.recording as usize, window.start as usize, each)?;
        }
        let read = |(window, out): (&Window, &mut [f32])| {
            self.gather(window.recording as usize, window.start as usize, time, out);
        };
        if windows.len() < 2 * WINDOWS_PER_TASK {
            windows.iter().zip(out.chunks_exact_mut(each)).for_each(read);
        } else {
            let pairs = windows.par_iter().zip(out.par_chunks_exact_mut(each));
            pairs.with_min_len(WINDOWS_PER_TASK).for_each(read);
        }
        Ok(())
    }

    /// A recording's numbers as they lie in the file: the scale of each stored channel, the samples
    /// `[tiles, stored channels, TILE]`, and where each of [`Self::channels`] lies among the stored.
    pub(crate) fn block(&self, recording: usize) -> (&[f32], &[i16], &[usize]) {
        let place = &self.places[recording];
        // The block begins at a multiple of 64 bytes of a page-aligned mapping.
        let (scales, samples) =
            self.map[place.block.clone()].split_at(layout::scales_len(place.stored));
        let scales = &bytemuck::cast_slice(scales)[..place.stored];
        (scales, bytemuck::cast_slice(samples), &self.rows[place.channel_set])
    }

    /// Samples of a window whose `[channels, time]` has `len` values.
    fn check(&self, recording: usize, start: usize, len: usize) -> Result<usize> {
        let time = len / self.channels.len().max(1);
        if time == 0 || time * self.channels.len() != len {
            return Err(wrong_size(len, 1, self.channels.len()));
        }
        let n_samples = self.recordings.get(recording).map_or(0, |r| r.n_samples);
        if start.checked_add(time).is_none_or(|end| end > n_samples) {
            let problem = format!(
                "samples {start} + {time} of recording {recording}, which has {n_samples}; there \
                 are {} recordings",
                self.recordings.len()
            );
            return Err(Error::shape("read_window", problem));
        }
        Ok(time)
    }

    /// [`Self::read_window`] once its arguments are checked.
    fn gather(&self, recording: usize, start: usize, time: usize, out: &mut [f32]) {
        let (scales, samples, rows) = self.block(recording);
        let tile_len = TILE * scales.len();
        let mut done = 0;
        while done < time {
            let at = start + done;
            let within = at % TILE;
            let count = (TILE - within).min(time - done);
            let tile = &samples[at / TILE * tile_len..][..tile_len];
            for (out, &row) in out.chunks_exact_mut(time).zip(rows) {
                let codes = &tile[row * TILE + within..][..count];
                dequantize(codes, scales[row], &mut out[done..done + count]);
            }
            done += count;
        }
    }

    pub(crate) fn key(&self) -> u128 {
        self.key
    }

    pub(crate) fn positions(&self) -> u64 {
        self.positions
    }

    pub(crate) fn channel_sets(&self) -> &[Vec<String>] {
        &self.channel_sets
    }
}

/// In groups of eight, one vector register of codes, with a short remainder: a window's rows are too
/// short for the long prologue the compiler gives a loop of unknown length.
fn dequantize(codes: &[i16], scale: f32, out: &mut [f32]) {
    let (code_groups, code_rest) = codes.as_chunks::<8>();
    let (out_groups, out_rest) = out.as_chunks_mut::<8>();
    for (x, code) in out_groups.iter_mut().zip(code_groups) {
        *x = code.map(|code| f32::from(code) * scale);
    }
    for (x, &code) in out_rest.iter_mut().zip(code_rest) {
        *x = f32::from(code) * scale;
    }
}

fn wrong_size(len: usize, windows: usize, channels: usize) -> Error {
    Error::shape(
        "read_window",
        format!("{len} values are not [{windows} windows, {channels} channels, time]"),
    )
}

impl From<Entry> for CachedRecording {
    fn from(entry: Entry) -> Self {
        let annotations = entry.annotations.into_iter();
        Self {
            subject: entry.subject,
            session: entry.session,
            task: entry.task,
            run: entry.run,
            path: entry.path,
            n_samples: entry.n_samples,
            annotations: annotations
                .map(|(onset_s, duration_s, text)| Annotation { onset_s, duration_s, text })
                .collect(),
            bad: entry.bad,
            notes: entry.notes,
        }
    }
}

#[cfg(test)]
mod tests;
