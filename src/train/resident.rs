//! A dataset's samples in the memory of a card: batches are gathered there, and a step copies nothing
//! but a few words a window.

use std::sync::{Mutex, PoisonError};

use crate::backend::{Backend, Machine};
use crate::data::augment::{Augment, Moves};
use crate::data::cache::Cache;
use crate::data::window::Window;
use crate::ops::window::{HEAD, Source, describe, gather};
use crate::tensor::Tensor;
use crate::{DType, Error, Result};

/// Samples, in 16-bit words, that one copy takes to the card.
const PIECE: usize = 4 << 20;

/// Where a recording lies.
#[derive(Debug)]
struct Place {
    block: u32,
    scales: u32,
    stored: u32,
    /// Where each channel of a window lies among the stored ones.
    rows: Vec<u32>,
}

/// The recordings of a cache on a device.
#[derive(Debug)]
pub struct Resident {
    samples: Tensor,
    scales: Tensor,
    table: Tensor,
    /// By number of the recording; None: no window is of it.
    places: Vec<Option<Place>>,
    room: Mutex<Room>,
}

/// Memory of one batch, used again for the next.
#[derive(Debug, Default)]
struct Room {
    /// The table.
    words: Vec<i32>,
    moves: Moves,
}

/// The augmentation of a batch, and what its random numbers depend on.
#[derive(Debug, Clone, Copy)]
pub struct Augmented<'a> {
    /// Must be one of moves alone ([`Augment::only_moves`]).
    pub augment: &'a Augment,
    /// Of the run.
    pub seed: u64,
    /// Number of the update.
    pub step: u64,
    /// Number of each window in the dataset.
    pub numbers: &'a [u32],
}

impl Resident {
    /// Copies the recordings that `windows` are of, for batches of at most `rows` windows. None on the
    /// host's own processor, which reads the cache's file, and where they do not fit beside the step.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn load(
        backend: &dyn Backend,
        cache: &Cache,
        windows: &[Window],
        rows: usize,
    ) -> Result<Option<Self>> {
        if backend.arch().machine == Machine::Cpu {
            return Ok(None);
        }
        match Self::copy(backend, cache, windows, rows) {
            Ok(resident) => Ok(Some(resident)),
            Err(Error::OutOfMemory { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn copy(backend: &dyn Backend, cache: &Cache, windows: &[Window], rows: usize) -> Result<Self> {
        let mut used = vec![false; cache.recordings().len()];
        windows.iter().for_each(|window| used[window.recording as usize] = true);
        let (mut places, mut scales, mut total) = (Vec::new(), Vec::new(), 0);
        for (recording, &used) in used.iter().enumerate() {
            places.push(used.then(|| {
                let (block_scales, samples, rows) = cache.block(recording);
                // Whole tiles: every block begins at a multiple of 64 bytes.
                let place = Place {
                    block: (total / 32) as u32,
                    scales: scales.len() as u32,
                    stored: block_scales.len() as u32,
                    rows: rows.iter().map(|&row| row as u32).collect(),
                };
                scales.extend_from_slice(block_scales);
                total += samples.len();
                place
            }));
        }
        if total / 32 > u32::MAX as usize {
            let problem = format!("{total} samples are more than a table of windows can name");
            return Err(Error::shape("resident recordings", problem));
        }
        let words = HEAD + cache.channels().len();
        let table = backend.empty([rows.max(1), words], DType::I32, "table of windows")?;
        let samples = backend.empty([total.div_ceil(2).max(1)], DType::I32, "recordings")?;
        let scales = backend.tensor([scales.len()], &scales, "scales of recordings")?;
        for (recording, place) in places.iter().enumerate() {
            let Some(place) = place else { continue };
            let (_, block, _) = cache.block(recording);
            for (i, piece) in block.chunks(PIECE).enumerate() {
                let first = place.block as usize * 16 + i * PIECE / 2;
                let to = samples.narrow(first, piece.len() / 2)?;
                backend.upload(to.view(), bytemuck::cast_slice(piece))?;
            }
        }
        Ok(Self { samples, scales, table, places, room: Mutex::default() })
    }

    /// Bytes of the samples.
    pub fn bytes(&self) -> usize {
        4 * self.samples.numel()
    }

    /// Gathers windows into the first rows of `to` `[_, channels, time]`, as `Cache::fill_batch` and
    /// `Augment::apply` would fill it, bit for bit.
    ///
    /// # Errors
    /// [`Error::Shape`] for a window of a recording that was not loaded, or more windows than fit; the
    /// device's.
    pub fn fill(
        &self,
        backend: &dyn Backend,
        windows: &[Window],
        augmented: Option<Augmented<'_>>,
        to: &Tensor,
    ) -> Result<()> {
        let most = self.table.dims()[0];
        if windows.len() > most {
            let problem = format!("{} windows for a table of {most}", windows.len());
            return Err(Error::shape("resident recordings", problem));
        }
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let Room { words, moves } = &mut *room;
        words.clear();
        for (i, window) in windows.iter().enumerate() {
            let place = self.places.get(window.recording as usize).and_then(Option::as_ref);
            let Some(place) = place else {
                let problem = format!("recording {} was not loaded", window.recording);
                return Err(Error::shape("resident recordings", problem));
            };
            let mut source = Source {
                block: place.block,
                scales: place.scales,
                stored: place.stored,
                start: window.start,
                shift: 0,
                reversed: false,
                factor: 1.0,
                mask: (0, 0),
            };
            let Some(of) = augmented else {
                describe(words, &source, place.rows.iter().copied().map(Some));
                continue;
            };
            of.augment.moves(of.seed, of.step, u64::from(of.numbers[i]), moves);
            source.shift = moves.shift as u32;
            source.reversed = moves.reversed;
            source.factor = moves.factor;
            source.mask = (moves.mask.0 as u32, moves.mask.1 as u32);
            let rows = moves.rows.iter().map(|row| row.map(|row| place.rows[row as usize]));
            describe(words, &source, rows);
        }
        let table = self.table.narrow(0, windows.len())?;
        backend.write(&table, words)?;
        gather(backend, (&self.samples, &self.scales, &self.table), windows.len(), to)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::data::augment::{Settings, Workspace};
    use crate::data::cache::{Entry, Index, Writer, encode};
    use crate::data::preprocess::{self, Processed};
    use crate::data::rng::Rng;

    const CHANNELS: usize = 7;
    const TIME: usize = 45;

    /// A cache of three recordings, the second with more channels in another order.
    pub(in crate::train) fn cache() -> Cache {
        let mut rng = Rng::new(6, 6);
        let names =
            |order: &[usize]| -> Vec<String> { order.iter().map(|c| format!("C{c}")).collect() };
        let sets = vec![names(&[0, 1, 2, 3, 4, 5, 6]), names(&[8, 3, 1, 0, 2, 6, 7, 5, 4])];
        let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
        let mut recordings = Vec::new();
        for (i, n_samples) in [150, 301, 64].into_iter().enumerate() {
            let channels = sets[i % 2].clone();
            let samples = (0..channels.len() * n_samples).map(|_| rng.normal() as f32).collect();
            let (annotations, bad, notes) = (Vec::new(), Vec::new(), Vec::new());
            let sample_rate = 100.0;
            let block = encode(&Processed {
                channels,
                sample_rate,
                n_samples,
                samples,
                annotations,
                bad,
                notes,
            });
            recordings.push(Entry {
                subject: format!("{i}"),
                session: None,
                task: None,
                run: None,
                path: format!("{i}.edf").into(),
                channel_set: i % 2,
                n_samples,
                offset: writer.block(&block).unwrap(),
                xxh3: xxhash_rust::xxh3::xxh3_64(&block),
                annotations: Vec::new(),
                bad: Vec::new(),
                notes: Vec::new(),
            });
        }
        let index = Index {
            settings: preprocess::Settings::default(),
            channels: sets[0].clone(),
            sample_rate: 100.0,
            positions: 0,
            channel_sets: sets,
            recordings,
            skipped: Vec::new(),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), writer.finish(1, &index).unwrap().into_inner()).unwrap();
        Cache::open(file.path()).unwrap()
    }

    #[test]
    fn batches_are_those_of_the_host_bit_for_bit() {
        let cpu = Cpu::new(2, 64 << 20).unwrap();
        let backend: &dyn Backend = &cpu;
        let cache = cache();
        let window = |recording, start| Window { recording, start, event: 0 };
        let windows = [window(1, 256), window(0, 0), window(0, 105), window(1, 63), window(1, 17)];
        let numbers = [4, 9, 0, 2, 31];
        let resident = Resident::copy(backend, &cache, &windows, 6).unwrap();
        let to = backend.empty([8, CHANNELS, TIME], DType::F32, "windows").unwrap();
        let all = Settings {
            time_shift: 0.6,
            time_reversal: 0.5,
            sign_flip: 0.5,
            amplitude_scale: 0.7,
            channel_shuffle: 0.6,
            channel_dropout: 0.6,
            time_masking: 0.6,
            time_masking_s: 0.1,
            ..Settings::default()
        };
        let regions: Vec<Option<u32>> = (0..CHANNELS as u32).map(|c| Some(c % 2)).collect();
        for settings in [Settings::default(), all] {
            let augment = Augment::new(settings, CHANNELS, TIME, 100.0, &regions).unwrap();
            assert!(augment.only_moves());
            for step in 0..40 {
                let mut want = vec![0.0; windows.len() * CHANNELS * TIME];
                cache.fill_batch(&windows, &mut want).unwrap();
                for (window, &number) in want.chunks_exact_mut(CHANNELS * TIME).zip(&numbers) {
                    let workspace = &mut Workspace::default();
                    augment.apply(window, 3, step, u64::from(number), workspace).unwrap();
                }
                let (seed, numbers) = (3, numbers.as_slice());
                let augmented = Augmented { augment: &augment, seed, step, numbers };
                resident.fill(backend, &windows, Some(augmented), &to).unwrap();
                let found: Vec<f32> = backend.read(&to).unwrap();
                let same =
                    want.iter().zip(&found).all(|(a, b)| a.to_bits() == b.to_bits() || a == b);
                assert!(same, "step {step}");
            }
        }
        // The third recording was not loaded.
        assert!(resident.fill(backend, &[window(2, 0)], None, &to).is_err());
        let many = vec![window(0, 0); 7];
        assert!(resident.fill(backend, &many, None, &to).is_err());
    }
}
