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

/// Memory of the host that copies pass through.
#[derive(Debug)]
pub(super) struct HostBuffer {
    pub(super) base: *mut u8,
    pub(super) bytes: usize,
    /// Where `base` is, if it is not pinned.
    pageable: Vec<u8>,
    /// Recorded after the copy that used it last.
    pub(super) used: sys::CUevent,
}

// SAFETY: plain memory and an event, used under the lock of their owner.
unsafe impl Send for HostBuffer {}

impl HostBuffer {
    /// With the context current.
    pub(super) fn new(bytes: usize, pageable: bool) -> Result<Self> {
        let mut memory = vec![0; if pageable { bytes } else { 0 }];
        let base = if pageable {
            memory.as_mut_ptr()
        } else {
            // SAFETY: called with the context current; freed by `free`.
            let base = unsafe { result::malloc_host(bytes, 0) };
            base.map_err(|e| failed("pinned memory of the host", e))?.cast()
        };
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let used = result::event::create(flags).map_err(|e| failed("an event", e))?;
        Ok(Self { base, bytes, pageable: memory, used })
    }

    /// Gives it back; nothing uses it any more.
    pub(super) fn free(self) {
        // SAFETY: live handles, given back once.
        unsafe {
            let _ = result::event::destroy(self.used);
            if self.pageable.is_empty() {
                let _ = result::free_host(self.base.cast());
            }
        }
    }
}

/// What grows while the driver is in use.
#[derive(Debug, Default)]
pub(super) struct Resources {
    pub(super) chunks: Vec<sys::CUdeviceptr>,
    pub(super) staging: Vec<HostBuffer>,
    /// Buffers of uploads to come are not pinned.
    pub(super) pageable: bool,
    pub(super) ring: Ring,
    /// Slots of finished reads, to be used again.
    pub(super) free_reads: Vec<HostBuffer>,
}

impl Resources {
    /// The smallest free slot that holds so many bytes.
    pub(super) fn slot_for(&mut self, bytes: usize) -> Option<HostBuffer> {
        let fitting = self.free_reads.iter().enumerate().filter(|(_, slot)| slot.bytes >= bytes);
        let (at, _) = fitting.min_by_key(|(_, slot)| slot.bytes)?;
        Some(self.free_reads.swap_remove(at))
    }
}

/// A copy to the host that is under way. Dropping it gives its slot back.
#[derive(Debug)]
pub struct Read {
    pub(super) slot: Option<HostBuffer>,
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
