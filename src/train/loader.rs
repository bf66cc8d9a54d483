//! Batches, filled ahead of the step by threads of their own. What a batch holds follows from the
//! seed, the step and the windows alone, so it is the same whichever thread fills it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope};

use super::dataset::Dataset;
use super::target::Standard;
use crate::data::augment::{Augment, Workspace};
use crate::data::window::Window;
use crate::{Error, Result};

/// Windows `[rows, channels, time]` and targets `[rows, outputs]` (class numbers `[rows]`) of one
/// update.
#[derive(Debug, Default)]
pub struct Batch {
    /// The windows, augmented; none where they are gathered on a card.
    pub windows: Vec<f32>,
    /// What the model is trained to give for them.
    pub targets: Vec<f32>,
    /// Where the windows lie.
    pub chosen: Vec<Window>,
    /// Their numbers among the training windows.
    pub numbers: Vec<u32>,
}

/// What the batches of a run are made from.
pub struct Source<'a> {
    /// The dataset.
    pub data: &'a Dataset,
    /// The training windows.
    pub windows: Vec<Window>,
    /// What is done to a window before it is learned from.
    pub augment: Augment,
    /// How numbers become z-scores; None for classes.
    pub standard: Option<Standard>,
    /// Share of a label that is spread over the classes.
    pub smoothing: f64,
    /// Seed of the augmentation.
    pub seed: u64,
    /// Windows are gathered, and augmented, on a card that holds the recordings.
    pub on_card: bool,
}

/// Memory of one thread, used again for the next batch.
#[derive(Default)]
struct Room {
    augment: Workspace,
}

impl Source<'_> {
    /// What the model is trained to give for a label.
    pub fn target_of(&self, label: f64) -> f32 {
        match self.standard {
            Some(Standard { mean, deviation }) => ((label - mean) / deviation) as f32,
            None if self.data.target.n_classes() == 2 => {
                (label * (1.0 - self.smoothing) + 0.5 * self.smoothing) as f32
            }
            None => label as f32,
        }
    }

    /// Fills the batch of step `step`, counted from 0, with the training windows of these numbers.
    fn fill(&self, numbers: &[u32], step: u64, batch: &mut Batch, room: &mut Room) -> Result<()> {
        let chosen = &mut batch.chosen;
        chosen.clear();
        chosen.extend(numbers.iter().map(|&i| self.windows[i as usize]));
        batch.numbers.clear();
        batch.numbers.extend_from_slice(numbers);
        batch.targets.clear();
        batch.targets.extend(chosen.iter().map(|w| self.target_of(self.data.label(w))));
        if self.on_card {
            return Ok(());
        }
        let each = self.data.channels().len() * self.data.length;
        batch.windows.resize(numbers.len() * each, 0.0);
        self.data.prepared.cache.fill_batch(chosen, &mut batch.windows)?;
        if !self.augment.is_off() {
            for (window, &number) in batch.windows.chunks_exact_mut(each).zip(numbers) {
                let number = u64::from(number);
                self.augment.apply(window, self.seed, step, number, &mut room.augment)?;
            }
        }
        if self.data.target.n_classes() <= 2 {
            self.augment.mixup(&mut batch.windows, &mut batch.targets, self.seed, step)?;
        }
        Ok(())
    }
}

/// A thread that fills every n-th batch: full ones come from it, used ones go back.
struct Worker {
    full: Receiver<Result<Batch>>,
    used: SyncSender<Batch>,
}

/// The batches of one epoch, in their order.
pub struct Loader<'a> {
    workers: Vec<Worker>,
    next: usize,
    source: &'a Source<'a>,
    order: &'a [u32],
    rows: usize,
    step: u64,
    /// Filled on the caller's thread where there are no others.
    own: Batch,
}

impl<'a> Loader<'a> {
    /// Starts `threads` threads on `order`, whose first `rows` are the batch of step `step`. They
    /// end with the last batch, or when the loader is dropped. Where windows are gathered on a card, a
    /// batch is a few words, and none are started.
    ///
    /// # Errors
    /// [`Error::Input`] where the system starts no more threads.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        source: &'a Source<'a>,
        order: &'a [u32],
        (rows, step): (usize, u64),
        threads: usize,
    ) -> Result<Self>
    where
        'a: 'scope,
    {
        let own = Batch::default();
        if source.on_card {
            return Ok(Self { workers: Vec::new(), next: 0, source, order, rows, step, own });
        }
        let threads = threads.min(order.len() / rows.max(1)).max(1);
        // One batch is filled while another is used.
        let each = if threads == 1 { 2 } else { 1 };
        let mut workers = Vec::with_capacity(threads);
        for first in 0..threads {
            let (send_full, full) = sync_channel(each);
            let (used, take_used) = sync_channel(each);
            for _ in 0..each {
                // The channel has room for them all.
                let _ = used.send(Batch::default());
            }
            let work = move || {
                let mut room = Room::default();
                for i in (first..order.len() / rows).step_by(threads) {
                    let Ok(mut batch) = take_used.recv() else { return };
                    let numbers = &order[i * rows..(i + 1) * rows];
                    let done = source.fill(numbers, step + i as u64, &mut batch, &mut room);
                    if send_full.send(done.map(|()| batch)).is_err() {
                        return;
                    }
                }
            };
            let started = Builder::new().name(format!("loader-{first}")).spawn_scoped(scope, work);
            started.map_err(|error| {
                let remedy = "lower it, or raise the limit on this user's threads (ulimit -u)";
                Error::input(
                    "train.workers",
                    format!("no thread could be started: {error}"),
                    remedy,
                )
            })?;
            workers.push(Worker { full, used });
        }
        Ok(Self { workers, next: 0, source, order, rows, step, own })
    }

    /// Waits for the next batch, calls `take` on it and hands its memory back.
    ///
    /// # Errors
    /// What filling the batch, or `take`, reports.
    pub fn next(&mut self, take: impl FnOnce(&Batch) -> Result<()>) -> Result<()> {
        let i = self.next;
        self.next += 1;
        if self.workers.is_empty() {
            let Some(numbers) = self.order.get(i * self.rows..(i + 1) * self.rows) else {
                return Err(Error::shape("loader", "no batch is left"));
            };
            self.source.fill(numbers, self.step + i as u64, &mut self.own, &mut Room::default())?;
            return take(&self.own);
        }
        let worker = &self.workers[i % self.workers.len()];
        let ended = |_| Error::shape("loader", "its thread ended before its last batch");
        let batch = worker.full.recv().map_err(ended)??;
        take(&batch)?;
        // A thread that has filled its last batch takes none.
        let _ = worker.used.send(batch);
        Ok(())
    }
}
