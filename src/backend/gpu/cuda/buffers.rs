//! Memory of the host that a card copies to and from by itself.

use std::sync::{Arc, Mutex};

use cudarc::driver::{result, sys};

use super::facts::failed;
use crate::Result;
use crate::backend::gpu::staging::{self, lock};

pub(super) type HostBuffer = staging::HostBuffer<sys::CUevent>;
pub(super) type Resources = staging::Resources<sys::CUevent>;

/// With the context current.
pub(super) fn host_buffer(bytes: usize, pageable: bool) -> Result<HostBuffer> {
    let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
    let used = result::event::create(flags).map_err(|e| failed("an event", e))?;
    if pageable {
        return Ok(HostBuffer::pageable(bytes, used));
    }
    // SAFETY: called with the context current; freed by `free`.
    match unsafe { result::malloc_host(bytes, 0) } {
        Ok(base) => Ok(HostBuffer::pinned(base.cast(), bytes, used)),
        Err(error) => {
            // SAFETY: just made, and used by nobody.
            let _ = unsafe { result::event::destroy(used) };
            Err(failed("pinned memory of the host", error))
        }
    }
}

/// Gives it back; nothing uses it any more.
pub(super) fn free(buffer: HostBuffer) {
    // SAFETY: live handles, given back once.
    unsafe {
        let _ = result::event::destroy(buffer.used);
        if buffer.is_pinned() {
            let _ = result::free_host(buffer.base.cast());
        }
    }
}

/// A copy to the host that is under way. Dropping it gives its slot back.
#[derive(Debug)]
pub struct Read {
    pub(super) slot: Option<HostBuffer>,
    pub(super) bytes: usize,
    pub(super) resources: Arc<Mutex<Resources>>,
}

impl Drop for Read {
    fn drop(&mut self) {
        lock(&self.resources).free_reads.extend(self.slot.take());
    }
}
