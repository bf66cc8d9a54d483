//! What a driver keeps of the host's memory, and where uploads lie in it on their way to a card. The few words that every step brings
//! share a buffer: were each to take one of its own, the host would wait for the step before to end
//! as soon as there are more of them than buffers, and the card would have nothing to do meanwhile.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of one buffer.
pub(super) const BUFFER: usize = 16 << 20;
/// Least bytes of a slot of `Driver::begin_read`.
pub(super) const READ: usize = 256;
/// Buffers in turn: the host fills one while the card reads another.
pub(super) const BUFFERS: usize = 3;
/// Uploads begin at multiples of this.
const ALIGN: usize = 256;

/// A place for one upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Which buffer.
    pub buffer: usize,
    /// Where in it.
    pub offset: usize,
    /// What was copied from the buffer before must have been: it is filled from its start again.
    pub anew: bool,
}

/// Fills buffers in turn.
#[derive(Debug, Default)]
pub(super) struct Ring {
    buffer: usize,
    filled: usize,
    begun: bool,
}

impl Ring {
    /// The place of the next upload, of at most [`BUFFER`] bytes.
    pub fn place(&mut self, bytes: usize) -> Place {
        let anew = !self.begun || self.filled + bytes > BUFFER;
        if anew {
            self.buffer = if self.begun { (self.buffer + 1) % BUFFERS } else { 0 };
            (self.filled, self.begun) = (0, true);
        }
        let offset = self.filled;
        self.filled = (offset + bytes).next_multiple_of(ALIGN);
        Place { buffer: self.buffer, offset, anew }
    }
}

/// Memory of the host that copies pass through; `E` is the driver's handle of an event.
#[derive(Debug)]
pub(super) struct HostBuffer<E> {
    pub base: *mut u8,
    pub bytes: usize,
    /// Where `base` is, if it is not pinned.
    pageable: Vec<u8>,
    /// Recorded after the copy that used it last.
    pub used: E,
}

// SAFETY: plain memory and an event, which any thread may use; used under the lock of their owner, or read
// after the event.
unsafe impl<E> Send for HostBuffer<E> {}
// SAFETY: as above.
unsafe impl<E> Sync for HostBuffer<E> {}

impl<E> HostBuffer<E> {
    /// Memory that the driver pinned, which the caller gives back.
    pub fn pinned(base: *mut u8, bytes: usize, used: E) -> Self {
        Self { base, bytes, pageable: Vec::new(), used }
    }

    /// Ordinary memory.
    pub fn pageable(bytes: usize, used: E) -> Self {
        let mut pageable = vec![0; bytes];
        Self { base: pageable.as_mut_ptr(), bytes, pageable, used }
    }

    /// True where the driver pinned it.
    pub fn is_pinned(&self) -> bool {
        self.pageable.is_empty()
    }
}

/// What grows while a driver is in use.
#[derive(Debug)]
pub(super) struct Resources<E> {
    /// Addresses on the card.
    pub chunks: Vec<u64>,
    pub staging: Vec<HostBuffer<E>>,
    /// Buffers of uploads to come are not pinned.
    pub pageable: bool,
    pub ring: Ring,
    /// Slots of finished reads, to be used again.
    pub free_reads: Vec<HostBuffer<E>>,
}

impl<E> Default for Resources<E> {
    fn default() -> Self {
        let (chunks, staging, free_reads) = (Vec::new(), Vec::new(), Vec::new());
        Self { chunks, staging, pageable: false, ring: Ring::default(), free_reads }
    }
}

impl<E> Resources<E> {
    /// The smallest free slot that holds so many bytes.
    pub fn slot_for(&mut self, bytes: usize) -> Option<HostBuffer<E>> {
        let fitting = self.free_reads.iter().enumerate().filter(|(_, slot)| slot.bytes >= bytes);
        let (at, _) = fitting.min_by_key(|(_, slot)| slot.bytes)?;
        Some(self.free_reads.swap_remove(at))
    }

    /// All buffers, to be given back.
    pub fn take_buffers(&mut self) -> impl Iterator<Item = HostBuffer<E>> + use<E> {
        let staging = std::mem::take(&mut self.staging);
        staging.into_iter().chain(std::mem::take(&mut self.free_reads))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Rng;

    /// No upload overwrites one that may not have been copied yet.
    #[test]
    fn what_is_on_its_way_is_not_overwritten() {
        let (mut ring, mut rng) = (Ring::default(), Rng::new(2, 2));
        let mut ends = [0; BUFFERS];
        let (mut waits, mut last) = (0, BUFFERS - 1);
        for _ in 0..10_000 {
            let bytes =
                if rng.uniform() < 0.05 { rng.below(BUFFER) + 1 } else { 1 + rng.below(9000) };
            let Place { buffer, offset, anew } = ring.place(bytes);
            assert!(offset % ALIGN == 0 && offset + bytes <= BUFFER);
            if anew {
                assert_eq!(buffer, (last + 1) % BUFFERS);
                ends[buffer] = 0;
                waits += 1;
            }
            assert!(offset >= ends[buffer]);
            (ends[buffer], last) = (offset + bytes, buffer);
        }
        assert!(waits < 1000, "{waits}");
    }
}
