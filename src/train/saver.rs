//! Checkpoints written beside the training. What a checkpoint holds is copied between two steps; a
//! thread of its own waits for the copies, looks for what is no number, and writes and syncs the
//! files, one checkpoint at a time and each in the order asked for.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::snapshot::Snapshot;
use super::state::{About, Progress};
use super::step::Step;
use crate::{Error, Result};

/// What is to be written of one state.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What the model is.
    pub about: About,
    /// Where the run stands.
    pub progress: Progress,
    /// Weights to use go here, before the rest, where they are the best so far.
    pub best: Option<PathBuf>,
    /// Everything needed to go on.
    pub last: PathBuf,
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The files are on the disk, or nothing was being written.
    Whole,
    /// Nothing was written: this tensor, after that step, holds something that is no number.
    NotFinite(u64, String),
}

/// Writes checkpoints on a thread. Dropping it waits for what is being written.
#[derive(Debug, Default)]
pub struct Saver {
    writing: Mutex<Option<JoinHandle<Result<Written>>>>,
}

impl Saver {
    /// Begins to write the state after what was enqueued so far; waits first for the write before, and
    /// begins nothing where that one failed.
    ///
    /// # Errors
    /// As [`Saver::wait`], and [`Error::Device`].
    pub fn begin(&self, step: &Step, wanted: Wanted) -> Result<Written> {
        let before = self.wait()?;
        if before != Written::Whole {
            return Ok(before);
        }
        let snapshot = Snapshot::take(step)?;
        let thread =
            Builder::new().name("checkpoint".into()).spawn(move || write(snapshot, &wanted));
        let thread = thread.map_err(|error| {
            let problem = format!("no thread could be started to write it: {error}");
            let remedy = "raise the limit on this user's threads (ulimit -u)";
            Error::input("the checkpoint", problem, remedy)
        })?;
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Written::Whole)
    }

    /// How the last write ended, where it has.
    ///
    /// # Errors
    /// As [`Saver::wait`].
    pub fn check(&self) -> Result<Written> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match writing.take_if(|thread| thread.is_finished()) {
            Some(thread) => ended(thread),
            None => Ok(Written::Whole),
        }
    }

    /// Waits for the last write, and says how it ended; each is told of once.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that cannot be written; [`Error::Device`].
    pub fn wait(&self) -> Result<Written> {
        let thread = self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.map_or(Ok(Written::Whole), ended)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // Whoever drops it without asking has another error to report.
        let _ = self.wait();
    }
}

fn ended(thread: JoinHandle<Result<Written>>) -> Result<Written> {
    let lost = |_| Err(Error::shape("checkpoint", "its thread ended before it was written"));
    thread.join().unwrap_or_else(lost)
}

fn write(snapshot: Snapshot, wanted: &Wanted) -> Result<Written> {
    let saved = snapshot.wait()?;
    if let Some(tensor) = saved.find_not_finite() {
        return Ok(Written::NotFinite(wanted.progress.step, tensor.into()));
    }
    if let Some(best) = &wanted.best {
        saved.save_model(&wanted.about, best)?;
    }
    // Last: a run goes on from here only where the best of before is on the disk.
    saved.save_run(&wanted.about, &wanted.progress, &wanted.last)?;
    Ok(Written::Whole)
}
