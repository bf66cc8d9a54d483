//! The arena: bookkeeping of device memory, the same on every backend.
//!
//! Same requests, same offsets: so the null backend, which has no memory, gives the exact peak of
//! a model and batch before anything runs. Two regions:
//! - **held**: what lives across steps (parameters, optimizer state, inputs, results);
//! - **step**: what one recorded step allocates and gives back. Every recording starts with the
//!   region empty and must end with it empty, so recordings share the same bytes.
//!
//! A region grows by chunks. A hole is chosen by best fit (lowest address among equals) before
//! fresh bytes are taken; holes that touch the fresh end are returned to it, so the layout does
//! not depend on how large the chunk was.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// Every block begins on this many bytes: a cache line pair, and what 128-bit loads and TMA want.
pub const ALIGN: usize = 256;

/// Least bytes a region asks of its backend at once when nothing was reserved for it, far from the
/// limit.
const CHUNK: usize = 32 << 20;
/// Near the limit, a region asks for no more than this share of what is left: the other one may need
/// the rest.
const SHARE: u64 = 8;
/// A chunk of the planner's, which is no memory.
const ENDLESS: usize = 1 << 46;

const REMEDY: &str = "take a smaller batch (`--batch auto` plans the largest that fits), more \
                      accumulation, or `--set train.recompute=layers`";

/// Rounds a request to whole blocks; a request of nothing still has an address of its own.
pub const fn rounded(bytes: usize) -> usize {
    (if bytes == 0 { 1 } else { bytes }).next_multiple_of(ALIGN)
}

/// Gives a chunk of at least so many bytes and returns its address.
pub type Grow<'a> = &'a dyn Fn(usize) -> Result<u64>;

/// Bytes of memory in use, by region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of the held region handed out now.
    pub held: u64,
    /// Highest end of the held region so far.
    pub held_peak: u64,
    /// Bytes of the step region handed out now.
    pub step: u64,
    /// Highest end of the step region so far, over all recordings.
    pub step_peak: u64,
}

impl MemoryUse {
    /// What is handed out now, of both regions.
    pub fn live(&self) -> u64 {
        self.held + self.step
    }

    /// What a device must have for this: both regions at their highest.
    pub fn peak(&self) -> u64 {
        self.held_peak + self.step_peak
    }
}

#[derive(Debug)]
struct Chunk {
    base: u64,
    capacity: usize,
    /// Bytes from `base` that were handed out and not returned to the fresh end.
    end: usize,
    /// Highest `end` so far.
    peak: usize,
    /// Offset -> length of the holes below `end`.
    holes: BTreeMap<usize, usize>,
}

impl Chunk {
    /// `room`: bytes the peak may still grow.
    fn take(&mut self, bytes: usize, room: u64) -> Option<u64> {
        let fitting = self.holes.iter().filter(|(_, length)| **length >= bytes);
        if let Some((&offset, &length)) =
            fitting.min_by_key(|(offset, length)| (**length, **offset))
        {
            self.holes.remove(&offset);
            if length > bytes {
                self.holes.insert(offset + bytes, length - bytes);
            }
            return Some(self.base + offset as u64);
        }
        let growth = (self.end + bytes).saturating_sub(self.peak) as u64;
        if self.capacity - self.end < bytes || growth > room {
            return None;
        }
        let offset = self.end;
        self.end += bytes;
        self.peak = self.peak.max(self.end);
        Some(self.base + offset as u64)
    }

    fn give(&mut self, address: u64, bytes: usize) {
        let (mut offset, mut length) = ((address - self.base) as usize, bytes);
        if let Some((&before, &size)) = self.holes.range(..offset).next_back()
            && before + size == offset
        {
            self.holes.remove(&before);
            offset = before;
            length += size;
        }
        if let Some(size) = self.holes.remove(&(offset + length)) {
            length += size;
        }
        if offset + length == self.end {
            self.end = offset;
        } else {
            self.holes.insert(offset, length);
        }
    }
}

#[derive(Debug, Default)]
struct Region {
    chunks: Vec<Chunk>,
    used: u64,
}

impl Region {
    fn peak(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.peak as u64).sum()
    }

    /// Bytes its backend gave it, used or not.
    fn capacity(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.capacity as u64).sum()
    }

    fn take(&mut self, bytes: usize, room: u64) -> Option<u64> {
        let address = self.chunks.iter_mut().find_map(|chunk| chunk.take(bytes, room))?;
        self.used += bytes as u64;
        Some(address)
    }

    fn add_chunk(&mut self, capacity: usize, grow: Grow<'_>) -> Result<()> {
        let base = grow(capacity)?;
        self.chunks.push(Chunk { base, capacity, end: 0, peak: 0, holes: BTreeMap::new() });
        Ok(())
    }
}

#[derive(Debug, Default)]
struct State {
    held: Region,
    step: Region,
    recording: bool,
    /// What was given back and is not to be used again yet; None where everything is.
    kept: Option<Vec<(u64, usize)>>,
}

impl State {
    fn give(&mut self, address: u64, bytes: usize, step: bool) {
        let region = if step { &mut self.step } else { &mut self.held };
        let owner = region
            .chunks
            .iter_mut()
            .find(|chunk| (chunk.base..chunk.base + chunk.capacity as u64).contains(&address));
        if let Some(chunk) = owner {
            chunk.give(address, bytes);
        }
    }
}

/// Deterministic allocator of device addresses.
#[derive(Debug)]
pub struct Arena {
    state: Mutex<State>,
    /// Bytes both regions together may reach.
    limit: u64,
    chunk: usize,
}

impl Arena {
    /// An arena that hands out at most `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limit, chunk: CHUNK })
    }

    /// An arena with one endless chunk a region: the planner's.
    pub(crate) fn endless(limit: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limit, chunk: ENDLESS })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the books half written: every change below is complete
        // before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes both regions together may reach.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What is in use, and the peaks so far.
    pub fn usage(&self) -> MemoryUse {
        let state = self.state();
        MemoryUse {
            held: state.held.used,
            held_peak: state.held.peak(),
            step: state.step.used,
            step_peak: state.step.peak(),
        }
    }

    /// Makes room for the planned peaks, in one chunk a region, taken before any other.
    ///
    /// # Errors
    /// What `grow` reports; [`Error::OutOfMemory`] when the plan passes the limit.
    pub fn reserve(&self, planned: &MemoryUse, grow: Grow<'_>) -> Result<()> {
        let mut state = self.state();
        if planned.peak() > self.limit {
            return Err(Error::OutOfMemory {
                what: "the planned step".into(),
                requested: planned.peak(),
                held: 0,
                capacity: self.limit,
                remedy: REMEDY.into(),
            });
        }
        let mut given = state.held.capacity() + state.step.capacity();
        let State { held, step, .. } = &mut *state;
        for (region, bytes) in [(held, planned.held_peak), (step, planned.step_peak)] {
            let present = region.chunks.iter().map(|chunk| chunk.capacity).max().unwrap_or(0);
            if bytes as usize > present {
                if given + bytes > self.limit {
                    return Err(Error::OutOfMemory {
                        what: "the planned step beside what is there already".into(),
                        requested: bytes,
                        held: given,
                        capacity: self.limit,
                        remedy: REMEDY.into(),
                    });
                }
                given += bytes;
                region.add_chunk(bytes as usize, grow)?;
                region.chunks.rotate_right(1);
            }
        }
        Ok(())
    }

    /// Allocates from the region in force.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming `what` when the limit is passed, or what `grow` reports.
    pub fn alloc(
        self: &Arc<Self>,
        bytes: usize,
        what: &dyn Display,
        grow: Grow<'_>,
    ) -> Result<super::Mem> {
        let size = rounded(bytes);
        let mut state = self.state();
        let held = state.held.peak() + state.step.peak();
        let room = self.limit.saturating_sub(held);
        let recording = state.recording;
        let growth = self.growth(&state, size).filter(|_| size as u64 <= room);
        let region = if recording { &mut state.step } else { &mut state.held };
        let mut address = region.take(size, room);
        if let Some(bytes) = growth.filter(|_| address.is_none()) {
            region.add_chunk(bytes, grow)?;
            address = region.take(size, room);
        }
        // Where the books had room, it is what the chunks hold besides that is in the way.
        let given = state.held.capacity() + state.step.capacity();
        let held = if size as u64 <= room { given } else { held };
        drop(state);
        match address {
            Some(address) => Ok(super::Mem::new(Arc::clone(self), address, size, recording)),
            None => Err(Error::OutOfMemory {
                what: what.to_string(),
                requested: size as u64,
                held,
                capacity: self.limit,
                remedy: REMEDY.into(),
            }),
        }
    }

    /// Bytes to ask for a block of `size`; None where the backend has given as much as the limit allows.
    /// What it gives counts, not what of it is used: that is what a device would be out of.
    fn growth(&self, state: &State, size: usize) -> Option<usize> {
        if self.chunk == ENDLESS {
            return Some(ENDLESS);
        }
        let given = state.held.capacity() + state.step.capacity();
        let left = self.limit.saturating_sub(given);
        let ample = (left / SHARE).min(self.chunk as u64) as usize;
        (size as u64 <= left).then(|| size.max(ample / ALIGN * ALIGN))
    }

    pub(super) fn free(&self, address: u64, bytes: usize, step: bool) {
        let mut state = self.state();
        let region = if step { &mut state.step } else { &mut state.held };
        region.used -= bytes as u64;
        match &mut state.kept {
            Some(kept) if step => kept.push((address, bytes)),
            _ => state.give(address, bytes, step),
        }
    }

    /// From here on, or until here, what a step gives back is not used again: ops may then be moved
    /// past each other.
    pub fn hold_back(&self, on: bool) {
        let mut state = self.state();
        let kept =
            if on && state.recording { state.kept.take().or(Some(Vec::new())) } else { None };
        let before = std::mem::replace(&mut state.kept, kept);
        if state.kept.is_none() {
            for (address, bytes) in before.unwrap_or_default() {
                state.give(address, bytes, true);
            }
        }
    }

    /// Gives back the chunks of which nothing is in use; `step` with those of the step region, which
    /// no recording may need any more.
    ///
    /// # Errors
    /// What `release` reports.
    pub fn trim(&self, step: bool, release: &dyn Fn(u64) -> Result<()>) -> Result<()> {
        let mut state = self.state();
        let step = step && !state.recording;
        let State { held, step: steps, .. } = &mut *state;
        let regions = std::iter::once(held).chain(step.then_some(steps));
        for region in regions {
            let (kept, empty) =
                std::mem::take(&mut region.chunks).into_iter().partition(|c| c.end > 0);
            region.chunks = kept;
            let empty: Vec<Chunk> = empty;
            empty.iter().try_for_each(|chunk| release(chunk.base))?;
        }
        Ok(())
    }

    /// True between [`Arena::begin_step`] and [`Arena::end_step`].
    pub fn is_recording(&self) -> bool {
        self.state().recording
    }

    /// Switches allocation to the step region.
    ///
    /// # Errors
    /// [`Error::Shape`] when a recording is under way.
    pub fn begin_step(&self) -> Result<()> {
        let mut state = self.state();
        if state.recording {
            return Err(Error::shape("record", "a step is being recorded already"));
        }
        state.recording = true;
        Ok(())
    }

    /// Switches back to the held region.
    ///
    /// # Errors
    /// [`Error::Shape`] when a tensor allocated in the step outlived it: its bytes would be
    /// overwritten by the next replay.
    pub fn end_step(&self) -> Result<()> {
        let mut state = self.state();
        state.recording = false;
        for (address, bytes) in state.kept.take().unwrap_or_default() {
            state.give(address, bytes, true);
        }
        if state.step.used != 0 {
            let problem = format!(
                "{} bytes allocated inside the recorded step outlived it; allocate results before \
                 recording and write into them",
                state.step.used
            );
            return Err(Error::shape("record", problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Rng;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn walk(arena: &Arc<Arena>, seed: u64) -> (Vec<u64>, MemoryUse) {
        let next = AtomicU64::new(1 << 20);
        let grow = |bytes: usize| Ok(next.fetch_add(bytes as u64, Ordering::Relaxed));
        let (mut rng, mut live, mut addresses) = (Rng::new(seed, 0), Vec::new(), Vec::new());
        for _ in 0..2_000 {
            if rng.uniform() < 0.55 || live.is_empty() {
                let mem = arena.alloc(1 + rng.below(9_000), &"x", &grow).expect("fits");
                let span = mem.address()..mem.address() + mem.bytes() as u64;
                assert!(live.iter().all(|other: &super::super::Mem| {
                    other.address() >= span.end
                        || other.address() + other.bytes() as u64 <= span.start
                }));
                addresses.push(mem.address());
                live.push(mem);
            } else {
                live.swap_remove(rng.below(live.len()));
            }
        }
        drop(live);
        (addresses, arena.usage())
    }

    #[test]
    fn blocks_never_overlap_and_repeat() {
        let (a, used) = walk(&Arena::endless(u64::MAX), 3);
        let (b, again) = walk(&Arena::endless(u64::MAX), 3);
        assert_eq!(a, b);
        assert_eq!(used, again);
        assert_eq!(used.held, 0);
        assert!(used.held_peak > 0);
    }

    #[test]
    fn a_reserved_chunk_of_the_planned_size_gives_the_planned_layout() {
        let endless = Arena::endless(u64::MAX);
        endless.begin_step().expect("free");
        let (planned, used) = walk(&endless, 9);
        endless.end_step().expect("empty");
        let real = Arena::new(u64::MAX);
        real.reserve(&used, &|_| Ok(1 << 20)).expect("grows");
        real.begin_step().expect("free");
        let (measured, real_use) = walk(&real, 9);
        assert_eq!(planned, measured);
        assert_eq!(used.step_peak, real_use.step_peak);
    }

    #[test]
    fn the_limit_holds_to_the_byte() {
        let grow = |_: usize| Ok(1 << 20);
        let arena = Arena::new(2 * ALIGN as u64);
        let first = arena.alloc(ALIGN + 1, &"first [257]", &grow).expect("fits exactly");
        let refused = arena.alloc(1, &"second [1]", &grow).expect_err("full");
        assert!(refused.to_string().contains("second [1]"), "{refused}");
        drop(first);
        arena.alloc(1, &"third", &grow).expect("room again");
    }

    /// What a backend is asked for stays within the limit, and no byte of the limit is out of reach.
    #[test]
    fn no_more_than_the_limit_is_asked_of_a_backend() {
        for round in 0..40 {
            let mut rng = Rng::new(11, round);
            let limit = (1 + rng.below(3 * CHUNK)) as u64;
            let (next, given) = (AtomicU64::new(1 << 20), AtomicU64::new(0));
            let grow = |bytes: usize| {
                given.fetch_add(bytes as u64, Ordering::Relaxed);
                Ok(next.fetch_add(bytes as u64, Ordering::Relaxed))
            };
            let arena = Arena::new(limit);
            let mut live = Vec::new();
            while let Ok(mem) = arena.alloc(1 + rng.below(CHUNK / 9), &"x", &grow) {
                live.push(mem);
            }
            while let Ok(mem) = arena.alloc(1, &"x", &grow) {
                live.push(mem);
            }
            let given = given.load(Ordering::Relaxed);
            assert!(given <= limit && limit - given < ALIGN as u64, "{given} of {limit}");
            assert!(limit - arena.usage().held < ALIGN as u64);
        }
    }

    /// A planned step that takes all of a limit leaves nothing, and is given all of it.
    #[test]
    fn a_reserved_limit_is_full() {
        let grow = |_: usize| Ok(1 << 20);
        let planned = MemoryUse { held_peak: 1 << 20, step_peak: 3 << 20, ..MemoryUse::default() };
        let arena = Arena::new(planned.peak());
        arena.reserve(&planned, &grow).expect("fits exactly");
        let held = arena.alloc(1 << 20, &"held", &grow).expect("was reserved");
        let refused = arena.alloc(1, &"resident", &grow).expect_err("full");
        assert!(refused.to_string().contains("resident"), "{refused}");
        arena.begin_step().expect("free");
        drop(arena.alloc(3 << 20, &"step", &grow).expect("was reserved"));
        arena.end_step().expect("empty");
        drop(held);
        // As before a larger fold, had nothing been given back.
        let more = MemoryUse { held_peak: 2 << 20, ..planned };
        assert!(arena.reserve(&more, &grow).is_err(), "both chunks would pass the limit");
    }

    #[test]
    fn only_what_is_empty_is_given_back() {
        let (next, given) = (AtomicU64::new(1 << 20), Mutex::new(Vec::new()));
        let grow = |bytes: usize| Ok(next.fetch_add(bytes as u64, Ordering::Relaxed));
        let release = |base| {
            given.lock().expect("whole").push(base);
            Ok(())
        };
        let arena = Arena::new(1 << 30);
        let kept = arena.alloc(CHUNK, &"kept", &grow).expect("fits");
        let dropped = arena.alloc(CHUNK, &"dropped", &grow).expect("fits");
        let base = dropped.address();
        arena.begin_step().expect("free");
        let in_step = arena.alloc(64, &"step", &grow).expect("fits").address();
        arena.end_step().expect("empty");
        drop(dropped);
        arena.trim(false, &release).expect("gives back");
        assert_eq!(*given.lock().expect("whole"), [base]);
        arena.trim(true, &release).expect("gives back");
        assert_eq!(*given.lock().expect("whole"), [base, in_step]);
        assert_eq!(arena.usage().peak(), kept.bytes() as u64);
        arena.alloc(64, &"again", &grow).expect("grows again");
    }

    #[test]
    fn what_outlives_a_step_is_reported() {
        let grow = |_: usize| Ok(1 << 20);
        let arena = Arena::new(1 << 30);
        arena.begin_step().expect("free");
        let leaked = arena.alloc(64, &"leak", &grow).expect("fits");
        assert!(arena.end_step().expect_err("leak").to_string().contains("outlived"));
        drop(leaked);
    }
}
