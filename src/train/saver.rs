//! Checkpoints written beside the training. What a checkpoint holds is copied between two steps; a
//! thread of its own waits for the copies, looks for what is no number, and writes and syncs the
//! files, one checkpoint at a time and each in the order asked for. Where an epoch takes less time than
//! that, a checkpoint of its end is put off or left out, so that the training does not wait.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
#[derive(Default)]
pub struct Saver {
    writing: Mutex<Option<JoinHandle<Result<Written>>>>,
    /// The best so far, found while another state was being written.
    next: Mutex<Option<(Snapshot, Wanted)>>,
}

impl Saver {
    /// Begins to write the state after what was enqueued so far; waits first for the writes before, and
    /// begins nothing where one failed.
    ///
    /// # Errors
    /// As [`Saver::wait`], and [`Error::Device`].
    pub fn begin(&self, step: &Step, wanted: Wanted) -> Result<Written> {
        let before = self.wait()?;
        if before == Written::Whole {
            self.start(Snapshot::take(step)?, wanted)?;
        }
        Ok(before)
    }

    /// As [`Saver::begin`], without waiting: while another state is being written, the best so far is
    /// kept to be written next, in the place of one that was the best before it, and any other is left
    /// out. True where it is written or will be.
    ///
    /// # Errors
    /// As [`Saver::begin`].
    pub fn offer(&self, step: &Step, wanted: Wanted) -> Result<(Written, bool)> {
        let before = self.check()?;
        let busy = lock(&self.writing).is_some();
        if before != Written::Whole || busy && wanted.best.is_none() {
            return Ok((before, false));
        }
        let snapshot = Snapshot::take(step)?;
        match busy {
            true => *lock(&self.next) = Some((snapshot, wanted)),
            false => self.start(snapshot, wanted)?,
        }
        Ok((before, true))
    }

    fn start(&self, snapshot: Snapshot, wanted: Wanted) -> Result<()> {
        let thread =
            Builder::new().name("checkpoint".into()).spawn(move || write(snapshot, &wanted));
        let thread = thread.map_err(|error| {
            let problem = format!("no thread could be started to write it: {error}");
            let remedy = "raise the limit on this user's threads (ulimit -u)";
            Error::input("the checkpoint", problem, remedy)
        })?;
        *lock(&self.writing) = Some(thread);
        Ok(())
    }

    /// How the last write ended, where it has; begins the one that was put off.
    ///
    /// # Errors
    /// As [`Saver::wait`].
    pub fn check(&self) -> Result<Written> {
        let ended = lock(&self.writing).take_if(|thread| thread.is_finished());
        ended.map_or(Ok(Written::Whole), |thread| self.after(thread))
    }

    /// Waits for the writes that were begun or put off, and says how they ended; each is told of once.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that cannot be written; [`Error::Device`].
    pub fn wait(&self) -> Result<Written> {
        loop {
            // Not held while the thread is waited for: the next one goes to the same place.
            let Some(thread) = lock(&self.writing).take() else { return Ok(Written::Whole) };
            let written = self.after(thread)?;
            if written != Written::Whole {
                return Ok(written);
            }
        }
    }

    /// How a write ended. Where it went well what was put off begins, else nothing of it is left.
    fn after(&self, thread: JoinHandle<Result<Written>>) -> Result<Written> {
        let lost = |_| Err(Error::shape("checkpoint", "its thread ended before it was written"));
        let written = thread.join().unwrap_or_else(lost);
        let next = lock(&self.next).take();
        if let (Ok(Written::Whole), Some((snapshot, wanted))) = (&written, next) {
            self.start(snapshot, wanted)?;
        }
        written
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Saver {
    fn drop(&mut self) {
        // Whoever drops it without asking has another error to report.
        let _ = self.wait();
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, mpsc};

    use super::*;
    use crate::DType;
    use crate::backend::cpu::Cpu;
    use crate::metrics::Task;
    use crate::model::{EegFormerConfig, ModelConfig};
    use crate::ops::loss::Pointwise;
    use crate::optim::Rule;
    use crate::train::early_stop::{Better, EarlyStop};
    use crate::train::loss_scale::LossScale;
    use crate::train::state::Loaded;
    use crate::train::step::{Objective, StepSpec};

    fn small_step() -> Step {
        let model = ModelConfig::EegFormer(EegFormerConfig {
            n_channels: 2,
            window: 5,
            d_model: 8,
            n_heads: 1,
            n_layers: 1,
            ..EegFormerConfig::default()
        });
        let spec = StepSpec {
            model,
            batch: 1,
            accumulation: 1,
            eval_batch: 1,
            objective: Objective::Pointwise(Pointwise::Mse),
            rule: Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 },
            average: false,
            dtype: DType::F32,
            compute: None,
            seed: 1,
        };
        Step::new(Arc::new(Cpu::new(1, u64::MAX).expect("a thread")), spec).expect("fits")
    }

    fn wanted(folder: &Path, step: u64, best: bool) -> Wanted {
        let about = About {
            model: ModelConfig::EegFormer(EegFormerConfig::default()),
            task: Task::Regression { name: "age".into(), unit: "y".into() },
            standard: None,
            channels: Vec::new(),
            sample_rate: 100.0,
            by_recording: false,
        };
        let progress = Progress {
            step,
            epoch: step,
            step_in_epoch: 0,
            loss_sum: 0.0,
            early_stop: EarlyStop::new(Better::Lower, None, 0.0),
            finished: false,
            batch: 1,
            scale: LossScale::new(DType::F32),
        };
        let best = best.then(|| folder.join("best"));
        Wanted { about, progress, best, last: folder.join("last") }
    }

    /// A write that ends when it is told how.
    fn busy(saver: &Saver) -> mpsc::Sender<Written> {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || Ok(told.recv().expect("told")));
        *lock(&saver.writing) = Some(thread);
        tell
    }

    #[test]
    fn the_end_of_an_epoch_waits_for_no_write_and_the_best_is_kept() {
        let (step, folder) = (small_step(), tempfile::tempdir().expect("a folder"));
        let (saver, folder) = (Saver::default(), folder.path());
        let tell = busy(&saver);
        for (number, best, kept) in
            [(1, false, false), (2, true, true), (3, true, true), (4, false, false)]
        {
            let said = saver.offer(&step, wanted(folder, number, best)).expect("offered");
            assert_eq!(said, (Written::Whole, kept), "epoch {number}");
        }
        assert!(!folder.join("last").exists());
        tell.send(Written::Whole).expect("waiting");
        assert_eq!(saver.wait().expect("written"), Written::Whole);
        assert!(folder.join("best").exists());
        let last = Loaded::open(&folder.join("last")).expect("whole");
        assert_eq!(last.progress().expect("there").step, 3);
        let said = saver.offer(&step, wanted(folder, 5, false)).expect("offered");
        assert_eq!(said, (Written::Whole, true), "nothing is being written");
    }

    #[test]
    fn what_was_put_off_goes_with_the_write_that_failed() {
        let (step, folder) = (small_step(), tempfile::tempdir().expect("a folder"));
        let (saver, folder) = (Saver::default(), folder.path());
        let tell = busy(&saver);
        saver.offer(&step, wanted(folder, 2, true)).expect("offered");
        let failed = Written::NotFinite(1, "head.weight".into());
        tell.send(failed.clone()).expect("waiting");
        assert_eq!(saver.wait().expect("told"), failed);
        assert_eq!(saver.wait().expect("nothing left"), Written::Whole);
        assert!(!folder.join("best").exists() && !folder.join("last").exists());
    }
}
