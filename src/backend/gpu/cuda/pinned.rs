//! Memory of the host that a card copies to and from by itself, and what else a driver keeps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use super::facts::failed;
use crate::Result;
use crate::backend::gpu::staging::Ring;

/// Least bytes of a slot of `Driver::begin_read`.
pub(super) const READ: usize = 256;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pinned memory of the host.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) base: *mut u8,
    pub(super) bytes: usize,
    /// Recorded after the copy that used it last.
    pub(super) used: sys::CUevent,
}

// SAFETY: plain memory and an event, used under the lock of their owner.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(bytes: usize) -> Result<Self> {
        // SAFETY: called with the context current; freed in `Resources::drop`.
        let base = unsafe { result::malloc_host(bytes, 0) };
        let base = base.map_err(|e| failed("pinned memory of the host", e))?.cast();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let used = result::event::create(flags).map_err(|e| failed("an event", e))?;
        Ok(Self { base, bytes, used })
    }
}

/// What grows while the driver is in use.
#[derive(Debug, Default)]
pub(super) struct Resources {
    pub(super) chunks: Vec<sys::CUdeviceptr>,
    pub(super) staging: Vec<Pinned>,
    pub(super) ring: Ring,
    /// Slots of finished reads, to be used again.
    pub(super) free_reads: Vec<Pinned>,
}

impl Resources {
    /// The smallest free slot that holds so many bytes.
    pub(super) fn slot_for(&mut self, bytes: usize) -> Option<Pinned> {
        let fitting = self.free_reads.iter().enumerate().filter(|(_, slot)| slot.bytes >= bytes);
        let (at, _) = fitting.min_by_key(|(_, slot)| slot.bytes)?;
        Some(self.free_reads.swap_remove(at))
    }
}

/// A copy to the host that is under way. Dropping it gives its slot back.
#[derive(Debug)]
pub struct Read {
    pub(super) slot: Option<Pinned>,
    pub(super) bytes: usize,
    pub(super) resources: Arc<Mutex<Resources>>,
}
// SAFETY: the slot is only read after its event, by one caller at a time.
unsafe impl Sync for Read {}

impl Drop for Read {
    fn drop(&mut self) {
        lock(&self.resources).free_reads.extend(self.slot.take());
    }
}
