//! The first pass over a dataset: every recording is read, preprocessed and written to the cache.
//! Later runs with the same files and settings open that cache at once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::Recording;
use super::cache::{Cache, Entry, Index, Partial, Skipped, TILE, VERSION, Writer};
use super::cache::{encode, refused, remove_abandoned};
use super::preprocess::{BadChannels, Positions, Processed, Settings, preprocess};
use crate::{Error, Result};

/// Recordings in memory at once, at most: a raw one may take 100 MB.
const MAX_WORKERS: usize = 16;
/// Recordings a worker prepares before their blocks, a tenth of a raw one each, are written.
const BLOCKS_PER_WORKER: usize = 4;

/// One recording to prepare.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Subject label; recordings of equal subject never part in a split.
    pub subject: String,
    /// Session label, where there is one.
    pub session: Option<String>,
    /// Task label, where there is one.
    pub task: Option<String>,
    /// Run label, where there is one.
    pub run: Option<String>,
    /// The file to read.
    pub path: PathBuf,
    /// Other files whose change makes the cache stale: channels.tsv, events.tsv, `.fdt`, `.eeg`.
    pub companions: Vec<PathBuf>,
}

/// What [`prepare`] reports, from several threads.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// There is a cache for these files and settings.
    Reused {
        /// The cache.
        path: &'a Path,
    },
    /// There is one, but it cannot be used and is made anew.
    Rebuilding {
        /// The cache.
        path: &'a Path,
        /// What is wrong with it.
        reason: &'a str,
    },
    /// One more recording is done.
    Recording {
        /// Recordings done so far, this one included.
        done: usize,
        /// Recordings in all.
        total: usize,
        /// This one.
        source: &'a Source,
        /// Why it is skipped, where it is.
        skipped: Option<&'a str>,
    },
}

/// A recording on its way into the file.
struct Prepared {
    block: Vec<u8>,
    processed: Processed,
}

/// Makes or opens the cache of `sources` under `settings` in the folder `dir`. `read` reads one
/// recording; it is called from several threads. The file's bytes do not depend on their number,
/// and at most 16 recordings are in memory at once.
///
/// A recording that cannot be read or used is skipped with its reason, now and in every later run
/// ([`Cache::skipped`]). The channels of the cache are the set of names that most recordings share
/// (of equally frequent sets the larger one), in the order of the first such recording: recordings
/// that lack one of them are skipped, additional channels are left out. (They do count in an
/// average reference; name the channels in [`Settings::channels`] to prevent that.)
///
/// # Errors
/// Settings that make no sense, no usable recording, a folder that cannot be written, a full disk,
/// `cancel` set. The unfinished file is removed.
pub fn prepare(
    sources: &[Source],
    read: &(dyn Fn(&Source) -> Result<Recording> + Sync),
    settings: &Settings,
    positions: Option<Positions<'_>>,
    dir: &Path,
    progress: &(dyn Fn(Progress<'_>) + Sync),
    cancel: &AtomicBool,
) -> Result<Cache> {
    settings.check()?;
    let positions = positions.filter(|_| settings.bad_channels == BadChannels::Interpolate);
    let key = key(sources, settings)?;
    let target = dir.join(format!("{key:032x}.eegcache"));
    if target.exists() {
        let reason = match Cache::open(&target) {
            Ok(cache) if cache.key() != key => "is of other files or settings".into(),
            Ok(cache) if cache.positions() != checksum(cache.channel_sets(), positions) => {
                "was made with other electrode positions".into()
            }
            Ok(cache) => {
                progress(Progress::Reused { path: cache.path() });
                return Ok(cache);
            }
            Err(error) => first_line(&error),
        };
        progress(Progress::Rebuilding { path: &target, reason: &reason });
    }
    fs::create_dir_all(dir).map_err(refused(dir, "make the folder of"))?;
    remove_abandoned(dir);
    let (partial, file) = Partial::create(&target)?;
    let job = Job { sources, read, settings, positions, progress, cancel, done: 0.into() };
    let written = Writer::new(file).map_err(Failed::Write).and_then(|writer| job.run(writer, key));
    let file = match written {
        Ok(file) => file,
        Err(Failed::Write(source)) => return Err(refused(partial.path(), "write")(source)),
        Err(Failed::Other(error)) => return Err(error),
    };
    partial.keep(&file, &target)?;
    drop(file);
    Cache::open(&target)
}

/// What stops a job; a write error does not know its file yet.
enum Failed {
    Write(io::Error),
    Other(Error),
}

struct Job<'a> {
    sources: &'a [Source],
    read: &'a (dyn Fn(&Source) -> Result<Recording> + Sync),
    settings: &'a Settings,
    positions: Option<Positions<'a>>,
    progress: &'a (dyn Fn(Progress<'_>) + Sync),
    cancel: &'a AtomicBool,
    done: AtomicUsize,
}

type Slot = Mutex<Option<Result<Prepared, String>>>;

impl Job<'_> {
    fn run<W>(&self, mut writer: Writer<io::BufWriter<W>>, key: u128) -> Result<W, Failed>
    where
        W: io::Write + io::Seek,
    {
        let workers = rayon::current_num_threads().clamp(1, MAX_WORKERS);
        let mut collected = Collected::default();
        for sources in self.sources.chunks(workers * BLOCKS_PER_WORKER) {
            let slots = self.prepare_some(sources, workers);
            if self.cancel.load(Ordering::Relaxed) {
                let (done, total) = (self.done.load(Ordering::Relaxed), self.sources.len());
                return Err(Failed::Other(Error::input(
                    "preparing the data",
                    format!("interrupted after {done} of {total} recordings"),
                    "start again; the unfinished cache was removed",
                )));
            }
            for (source, slot) in sources.iter().zip(slots) {
                let result = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
                match result.unwrap_or_else(|| Err("was not prepared".into())) {
                    Ok(prepared) => {
                        let offset = writer.block(&prepared.block).map_err(Failed::Write)?;
                        collected.add(source, prepared, offset);
                    }
                    Err(reason) => collected.skip(source, reason),
                }
            }
        }
        let index = collected.into_index(self).map_err(Failed::Other)?;
        let out = writer.finish(key, &index).map_err(Failed::Write)?;
        out.into_inner().map_err(|e| Failed::Write(e.into_error()))
    }

    /// Prepares `sources` on plain threads, one recording each at a time: were they tasks of the
    /// pool that works on channels, a waiting thread could take up further recordings without bound.
    fn prepare_some(&self, sources: &[Source], workers: usize) -> Vec<Slot> {
        let slots: Vec<Slot> = sources.iter().map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..workers.min(sources.len()) {
                scope.spawn(|| {
                    while let Some((source, slot)) = {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        sources.get(i).zip(slots.get(i))
                    } {
                        if self.cancel.load(Ordering::Relaxed) {
                            return;
                        }
                        let result = self.prepare_one(source);
                        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
                        (self.progress)(Progress::Recording {
                            done,
                            total: self.sources.len(),
                            source,
                            skipped: result.as_ref().err().map(String::as_str),
                        });
                        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                    }
                });
            }
        });
        slots
    }

    fn prepare_one(&self, source: &Source) -> Result<Prepared, String> {
        let recording = (self.read)(source).map_err(|e| self.reason(source, &e))?;
        let processed = preprocess(recording, self.settings, self.positions)
            .map_err(|e| self.reason(source, &e))?;
        let block = encode(&processed);
        Ok(Prepared { block, processed: Processed { samples: Vec::new(), ..processed } })
    }

    /// The error in one line, without the path that stands beside it anyway.
    fn reason(&self, source: &Source, error: &Error) -> String {
        let line = first_line(error);
        let path = format!("{}: ", source.path.display());
        line.strip_prefix(&path).map_or(line.clone(), str::to_owned)
    }
}

fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Recordings as they come, and what they have in common.
#[derive(Default)]
struct Collected {
    channel_sets: Vec<Vec<String>>,
    /// Sample rate beside each entry.
    entries: Vec<(f64, Entry)>,
    /// With the number of entries before each, to keep the order of the sources.
    skipped: Vec<(usize, Skipped)>,
}

impl Collected {
    fn skip(&mut self, source: &Source, reason: String) {
        let skipped =
            Skipped { subject: source.subject.clone(), path: source.path.clone(), reason };
        self.skipped.push((self.entries.len(), skipped));
    }

    fn add(&mut self, source: &Source, prepared: Prepared, offset: u64) {
        let Prepared { block, processed } = prepared;
        let known = self.channel_sets.iter().position(|set| *set == processed.channels);
        let channel_set = known.unwrap_or_else(|| {
            self.channel_sets.push(processed.channels);
            self.channel_sets.len() - 1
        });
        let marks = processed.annotations.into_iter().filter(|a| a.onset_s.is_finite());
        let entry = Entry {
            subject: source.subject.clone(),
            session: source.session.clone(),
            task: source.task.clone(),
            run: source.run.clone(),
            path: source.path.clone(),
            channel_set,
            n_samples: processed.n_samples,
            offset,
            xxh3: xxh3_64(&block),
            // JSON has no infinities.
            annotations: marks
                .map(|a| {
                    (a.onset_s, if a.duration_s.is_finite() { a.duration_s } else { 0.0 }, a.text)
                })
                .collect(),
            bad: processed.bad,
            notes: processed.notes,
        };
        self.entries.push((processed.sample_rate, entry));
    }

    /// Settles channels and rate by majority and skips what does not fit.
    fn into_index(self, job: &Job<'_>) -> Result<Index> {
        let Some((channels, sample_rate)) = self.majority() else {
            return Err(self.none_usable(job));
        };
        let mut skipped = self.skipped;
        let mut recordings = Vec::new();
        for (i, (rate, entry)) in self.entries.into_iter().enumerate() {
            match misfit(&channels, sample_rate, &self.channel_sets[entry.channel_set], rate) {
                None => recordings.push(entry),
                Some(reason) => {
                    let skip = Skipped { subject: entry.subject, path: entry.path, reason };
                    skipped.push((i, skip));
                }
            }
        }
        skipped.sort_by_key(|(before, _)| *before);
        Ok(Index {
            settings: job.settings.clone(),
            positions: checksum(&self.channel_sets, job.positions),
            channels,
            sample_rate,
            channel_sets: self.channel_sets,
            recordings,
            skipped: skipped.into_iter().map(|(_, skip)| skip).collect(),
        })
    }

    /// Channels, in order, and rate that most recordings have.
    fn majority(&self) -> Option<(Vec<String>, f64)> {
        // Sets that differ in order only count together. Value: how many, and the first of them.
        let mut counts: BTreeMap<(u64, Vec<&str>), (usize, usize)> = BTreeMap::new();
        for (i, (rate, entry)) in self.entries.iter().enumerate() {
            let mut names: Vec<&str> =
                self.channel_sets[entry.channel_set].iter().map(String::as_str).collect();
            names.sort_unstable();
            counts.entry((rate.to_bits(), names)).or_insert((0, i)).0 += 1;
        }
        let best = counts.iter().max_by_key(|((_, names), (count, first))| {
            (*count, names.len(), std::cmp::Reverse(*first))
        });
        let (_, (_, first)) = best?;
        let (rate, entry) = &self.entries[*first];
        Some((self.channel_sets[entry.channel_set].clone(), *rate))
    }

    fn none_usable(&self, job: &Job<'_>) -> Error {
        let first = self.skipped.first().map_or_else(String::new, |(_, s)| {
            format!("; the first, {}: {}", s.path.display(), s.reason)
        });
        Error::input(
            "data",
            format!("none of {} recordings can be used{first}", job.sources.len()),
            "check the folder, the task and the names of channels, and that the signals were downloaded",
        )
    }
}

/// Why a recording does not fit in, if it does not.
fn misfit(channels: &[String], rate: f64, its: &[String], its_rate: f64) -> Option<String> {
    if its_rate != rate {
        let remedy = "set data.resample_hz";
        return Some(format!("has {its_rate} samples a second, most have {rate}: {remedy}"));
    }
    let lacks: Vec<&str> =
        channels.iter().filter(|c| !its.contains(c)).map(String::as_str).collect();
    if lacks.is_empty() {
        return None;
    }
    let some = lacks.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    let more = if lacks.len() > 3 { ", ..." } else { "" };
    Some(format!(
        "lacks {} of the {} channels that most recordings have ({some}{more})",
        lacks.len(),
        channels.len()
    ))
}

/// Checksum of where all these channels lie.
fn checksum(sets: &[Vec<String>], positions: Option<Positions<'_>>) -> u64 {
    let Some(find) = positions else { return 0 };
    let mut hash = Xxh3::new();
    for name in sets.iter().flatten() {
        for x in find(name).unwrap_or([f32::NAN; 3]) {
            hash.update(&x.to_le_bytes());
        }
    }
    hash.digest().max(1)
}

/// Identifies files and settings. Paths count from the folder that holds all sources, so that a
/// dataset that moved keeps its cache.
fn key(sources: &[Source], settings: &Settings) -> Result<u128> {
    let json = serde_json::to_string(settings).map_err(|e| {
        Error::input("preprocess", format!("cannot be written down: {e}"), "correct the settings")
    })?;
    let root = common_folder(sources);
    let mut hash = Xxh3::new();
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(&VERSION.to_le_bytes());
    field(&(TILE as u32).to_le_bytes());
    field(json.as_bytes());
    for source in sources {
        field(source.subject.as_bytes());
        for label in [&source.session, &source.task, &source.run] {
            field(label.as_deref().unwrap_or("\0").as_bytes());
        }
        field(&(source.companions.len() as u64).to_le_bytes());
        for path in std::iter::once(&source.path).chain(&source.companions) {
            let relative = path.strip_prefix(&root).unwrap_or(path);
            field(relative.as_os_str().as_encoded_bytes());
            let (length, modified) = match fs::metadata(path) {
                Ok(data) => (data.len(), data.modified().ok()),
                Err(_) => (u64::MAX, None),
            };
            let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            field(&length.to_le_bytes());
            field(&since.map_or(0, |d| d.as_nanos()).to_le_bytes());
        }
    }
    Ok(hash.digest128())
}

fn common_folder(sources: &[Source]) -> PathBuf {
    let mut paths = sources.iter().map(|source| source.path.as_path());
    let mut root = paths.next().and_then(Path::parent).unwrap_or(Path::new("")).to_path_buf();
    for path in paths {
        while !path.starts_with(&root) && root.pop() {}
    }
    root
}
