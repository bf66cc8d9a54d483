//! A run's folder: what lies where, who holds it, and a metrics log that survives a kill.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::checkpoint_file::write_atomically;
use crate::error::{Error, Result};

/// The lock's file name.
const LOCK: &str = "lock";

/// Where the members of a run's folder lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPaths {
    root: PathBuf,
}

impl RunPaths {
    /// The members of the folder `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every setting in force.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// One JSON object a line; see [`MetricsLog`].
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The folder of TensorBoard's event files.
    pub fn events(&self) -> PathBuf {
        self.root.join("events")
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The checkpoint with the best validation score.
    pub fn best(&self) -> PathBuf {
        self.checkpoints().join("best.safetensors")
    }

    /// The latest state, from which the run resumes.
    pub fn last(&self) -> PathBuf {
        self.checkpoints().join("last.safetensors")
    }

    /// Predictions on a split ("validation", "test").
    pub fn predictions(&self, split: &str) -> PathBuf {
        self.root.join("predictions").join(format!("{split}.csv"))
    }

    /// Subjects of each part.
    pub fn split(&self) -> PathBuf {
        self.root.join("split.json")
    }

    /// The page that shows the run.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// Spans of a few profiled steps, for ui.perfetto.dev.
    pub fn trace(&self) -> PathBuf {
        self.root.join("trace.json")
    }

    /// What the console said.
    pub fn log(&self) -> PathBuf {
        self.root.join("log.txt")
    }

    /// The folder of one fold of a cross-validation, counted from 1, with the same members.
    pub fn fold(&self, number: usize) -> Self {
        Self::new(self.root.join(format!("fold-{number}")))
    }

    /// Makes the folder and those of its members.
    ///
    /// # Errors
    /// [`Error::Input`] where the folder cannot be written to.
    pub fn make(&self) -> Result<()> {
        for folder in
            [&self.root, &self.checkpoints(), &self.events(), &self.root.join("predictions")]
        {
            std::fs::create_dir_all(folder).map_err(|error| cannot_make(folder, &error))?;
        }
        Ok(())
    }
}

fn cannot_make(folder: &Path, error: &io::Error) -> Error {
    let problem = format!("the run's folder cannot be made: {error}");
    Error::input(folder.display(), problem, "give --run a folder that this user may write to")
}

/// A run's folder, held by this process: no other trains in it until this value is dropped.
#[derive(Debug)]
pub struct RunDir {
    /// Where its members lie.
    pub paths: RunPaths,
    /// The system releases the lock with the file, however the process ends.
    _lock: File,
}

impl RunDir {
    /// A folder for a new run: `dir`, or a new one `runs/TIME-MODEL-TARGET` (time in UTC).
    ///
    /// # Errors
    /// [`Error::Input`] where `dir` holds anything already, or cannot be written to.
    pub fn create(dir: Option<&Path>, model: &str, target: &str) -> Result<Self> {
        match dir {
            Some(dir) => Self::create_at(dir),
            None => Self::create_under(Path::new("runs"), model, target),
        }
    }

    fn create_at(dir: &Path) -> Result<Self> {
        if RunPaths::new(dir).config().exists() {
            let remedy =
                format!("go on with --resume {0}, or give --run another folder", dir.display());
            return Err(Error::input(dir.display(), "holds a run already", remedy));
        }
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(cannot_make(dir, &error)),
        };
        if entries.into_iter().flatten().flatten().any(|entry| !is_bare(&entry.path())) {
            let remedy = "give --run a new folder, or an empty one";
            return Err(Error::input(dir.display(), "is not empty", remedy));
        }
        std::fs::create_dir_all(dir).map_err(|error| cannot_make(dir, &error))?;
        Self::hold(RunPaths::new(dir))
    }

    fn create_under(runs: &Path, model: &str, target: &str) -> Result<Self> {
        std::fs::create_dir_all(runs).map_err(|error| cannot_make(runs, &error))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let name = format!("{}-{}-{}", timestamp(now), file_part(model), file_part(target));
        let mut number = 1;
        loop {
            let dir = match number {
                1 => runs.join(&name),
                _ => runs.join(format!("{name}-{number}")),
            };
            match std::fs::create_dir(&dir) {
                Ok(()) => return Self::hold(RunPaths::new(dir)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(cannot_make(&dir, &error)),
            }
        }
    }

    /// The folder of an earlier run, to go on with it.
    ///
    /// # Errors
    /// [`Error::Input`] where there is no run, another process holds it, or it cannot be written.
    pub fn resume(dir: &Path) -> Result<Self> {
        let paths = Self::open(dir)?;
        let lock = paths.root().join(LOCK);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(lock);
        opened.map_err(|error| {
            let remedy = "make it writable for this user, or go on with a copy that is";
            Error::input(dir.display(), format!("the run cannot be written to: {error}"), remedy)
        })?;
        Self::hold(paths)
    }

    /// The paths of an earlier run, to read them.
    ///
    /// # Errors
    /// [`Error::Input`] where there is no run.
    pub fn open(dir: &Path) -> Result<RunPaths> {
        let paths = RunPaths::new(dir);
        if paths.config().is_file() {
            return Ok(paths);
        }
        let problem =
            if dir.is_dir() { "is no run: it has no config.toml" } else { "is no folder" };
        let remedy = "name the folder of a run, as engine train printed it (runs/...)";
        Err(Error::input(dir.display(), problem, remedy))
    }

    /// Gives up a run that never began to train: removes what was made for it, so that the same
    /// command can be given again. What cannot be removed stays.
    pub fn discard(self) {
        let root = self.paths.root();
        let files = ["config.toml", "log.txt", "split.txt", "split.json", LOCK];
        let folds = (1..).map(|n| self.paths.fold(n)).take_while(|fold| fold.root().exists());
        let folds: Vec<RunPaths> = folds.collect();
        for part in folds.iter().chain([&self.paths]) {
            let (checkpoints, events) = (part.checkpoints(), part.events());
            for folder in [checkpoints, events, part.root().join("predictions")] {
                let _ = std::fs::remove_dir(folder);
            }
        }
        folds.iter().for_each(|fold| drop(std::fs::remove_dir(fold.root())));
        files.iter().for_each(|name| drop(std::fs::remove_file(root.join(name))));
        let _ = std::fs::remove_dir(root);
    }

    fn hold(paths: RunPaths) -> Result<Self> {
        let lock = take_lock(paths.root())?;
        paths.make()?;
        Ok(Self { paths, _lock: lock })
    }
}

/// True for what a process leaves that ended before it had written config.toml.
fn is_bare(path: &Path) -> bool {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(LOCK | "config.toml.tmp") => true,
        Some("checkpoints" | "events" | "predictions") => {
            std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
        }
        _ => false,
    }
}

/// Locks the folder for this process. The lock is the system's on an open file: one left by a
/// process that died, however it died, is no lock. Only where the file system has no locks does
/// the process number in the file decide.
fn take_lock(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| cannot_make(root, &error))?;
    let mut holder = String::new();
    let read = file.read_to_string(&mut holder);
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(held(root, &holder)),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            if read.is_err() || may_live(&holder, &this_process()) {
                return Err(held(root, &holder));
            }
        }
        Err(TryLockError::Error(error)) => return Err(Error::io(&path, "lock")(error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", this_process()))
        .map_err(|error| cannot_make(root, &error))?;
    Ok(file)
}

fn held(root: &Path, holder: &str) -> Error {
    let holder = match holder.trim() {
        "" => "another process",
        named => named,
    };
    let problem = format!("{holder} is training this run");
    let remedy = format!(
        "wait for it or end it; if there is no such process, delete {}",
        root.join(LOCK).display()
    );
    Error::input(root.display(), problem, remedy)
}

/// "process 1234 on node7".
fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "this machine" } else { host.trim() };
    format!("process {} on {host}", std::process::id())
}

/// Whether the process a lock names may still run: unknown on another machine, and on a system
/// without /proc.
fn may_live(holder: &str, this: &str) -> bool {
    let parts = |text: &str| {
        let rest = text.trim().strip_prefix("process ")?;
        let (pid, host) = rest.split_once(" on ")?;
        Some((pid.parse::<u32>().ok()?, host.to_string()))
    };
    match (parts(holder), parts(this)) {
        (Some((pid, host)), Some((own, here))) if host == here => {
            let proc = Path::new("/proc");
            pid != own && (!proc.join("self").exists() || proc.join(pid.to_string()).exists())
        }
        // An empty lock: its writer died between making and filling it.
        (None, _) => !holder.trim().is_empty(),
        _ => true,
    }
}

/// Letters, digits and dashes of a name, for a folder's.
fn file_part(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    name.chars().take(40).map(safe).collect()
}

/// Seconds since 1970 as YYYYMMDD-HHMMSS in UTC. Days to dates after Hinnant, "chrono-compatible
/// low-level date algorithms" (2013): years begin in March, so that the leap day comes last.
fn timestamp(seconds: u64) -> String {
    let (days, clock) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// `metrics.jsonl`: one JSON object a line, each with a "step". Lines are appended whole; what a
/// kill tears is dropped when the run resumes.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// An empty log.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        File::create(path).map_err(Error::io(path, "create"))?;
        Self::append_to(path)
    }

    /// The log of an earlier run, without torn lines and without lines past `step` of epoch
    /// `epoch`, from which the run goes on. A line of kind "epoch" comes at the end of its epoch:
    /// one of `epoch` is past that step, even where it has the same number. Returns how many lines
    /// were dropped.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Input`] where the file cannot be read or written.
    pub fn resume(path: &Path, step: u64, epoch: u64) -> Result<(Self, usize)> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(Error::io(path, "read"))?,
        };
        let lines = || bytes.split_inclusive(|&b| b == b'\n').filter(|line| *line != b"\n");
        let kept: Vec<&[u8]> = lines().filter(|line| belongs(line, step, epoch)).collect();
        let dropped = lines().count() - kept.len();
        if dropped > 0 || bytes.is_empty() {
            write_atomically(path, &mut |file| {
                kept.iter().try_for_each(|line| file.write_all(line))
            })?;
        }
        Ok((Self::append_to(path)?, dropped))
    }

    fn append_to(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io(path, "open"))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends one record, which must have a field "step".
    ///
    /// # Errors
    /// [`Error::Io`] where the line cannot be written; nothing of it is left then.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(record)
            .map_err(|error| Error::shape("metrics", format!("no JSON: {error}")))?;
        line.push(b'\n');
        let before = self.file.metadata().map_err(Error::io(&self.path, "append to"))?.len();
        self.file.write_all(&line).map_err(|error| {
            // Half a line would spoil the next one too; if this fails, resuming drops it.
            let _ = self.file.set_len(before);
            Error::io(&self.path, "append to")(error)
        })
    }
}

/// True for a whole line of a step up to `step`, and not of the end of an epoch from `epoch` on.
fn belongs(line: &[u8], step: u64, epoch: u64) -> bool {
    let Some(json) = line.strip_suffix(b"\n") else { return false };
    let Ok(record) = serde_json::from_slice::<serde_json::Value>(json) else { return false };
    let ends_epoch = record["kind"] == "epoch" && record["epoch"].as_u64() >= Some(epoch);
    record["step"].as_u64().is_some_and(|at| at <= step) && !ends_epoch
}

#[cfg(test)]
#[path = "run_dir_tests.rs"]
mod tests;
