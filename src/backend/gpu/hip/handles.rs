//! What the driver's calls give: handles that free themselves while the stream is there.

use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex};

use super::super::staging::{self, lock};
use super::library::Library;
use super::sys::{self, hipError_t, hipEvent_t, hipStream_t};
use crate::Result;

/// One card's stream. Handles made beside it keep it alive.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) library: &'static Library,
    pub(super) device: c_int,
    pub(super) stream: hipStream_t,
    /// The stream was made here, and is destroyed here.
    pub(super) owned: bool,
}

// SAFETY: HIP handles may be used from any thread that has chosen their card; every use below goes
// through `Context::enter`, which does.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Context {}

impl Context {
    /// Chooses the card for this thread.
    pub(super) fn enter(&self) -> Result<&HipCalls> {
        // SAFETY: a card that was counted.
        let code = unsafe { self.library.runtime.hipSetDevice(self.device) };
        self.check("choosing the card", code)?;
        Ok(&self.library.runtime)
    }

    /// The runtime's calls for giving something back, which is tried whatever state the card is in.
    pub(super) fn leave(&self) -> &HipCalls {
        // SAFETY: as above.
        unsafe { self.library.runtime.hipSetDevice(self.device) };
        &self.library.runtime
    }

    pub(super) fn check(&self, what: &str, code: hipError_t) -> Result<()> {
        self.library.check(what, code)
    }
}

pub(super) type HipCalls = sys::runtime::HipLib;

impl Drop for Context {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: made in `Hip::open_on`; nothing that uses it outlives this.
            unsafe { self.leave().hipStreamDestroy(self.stream) };
        }
    }
}

pub(super) type HostBuffer = staging::HostBuffer<hipEvent_t>;
pub(super) type Resources = staging::Resources<hipEvent_t>;

/// `context` has been entered.
pub(super) fn host_buffer(context: &Context, bytes: usize, pageable: bool) -> Result<HostBuffer> {
    let hip = &context.library.runtime;
    let mut base: *mut c_void = std::ptr::null_mut();
    let mut used = std::ptr::null_mut();
    // SAFETY: both write one handle; freed by `free`.
    unsafe {
        if !pageable {
            let code = hip.hipHostMalloc(&mut base, bytes, sys::hipHostMallocDefault);
            context.check("pinned memory of the host", code)?;
        }
        let code = hip.hipEventCreateWithFlags(&mut used, sys::hipEventDisableTiming);
        if code != sys::hipSuccess as hipError_t && !pageable {
            hip.hipHostFree(base);
        }
        context.check("an event", code)?;
    }
    Ok(match pageable {
        true => HostBuffer::pageable(bytes, used),
        false => HostBuffer::pinned(base.cast(), bytes, used),
    })
}

/// Gives it back; nothing uses it any more.
pub(super) fn free(buffer: &HostBuffer, hip: &HipCalls) {
    // SAFETY: live handles, given back once.
    unsafe {
        hip.hipEventDestroy(buffer.used);
        if buffer.is_pinned() {
            hip.hipHostFree(buffer.base.cast());
        }
    }
}

/// A loaded image, and the kernels it is known to hold; empty: any.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) context: Arc<Context>,
    pub(super) handle: sys::hipModule_t,
    pub(super) kernels: &'static [&'static str],
}
// SAFETY: a handle of the card; see `Context`.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: a live handle, unloaded once.
        unsafe { self.context.leave().hipModuleUnload(self.handle) };
    }
}

/// A recorded graph.
#[derive(Debug)]
pub struct Graph {
    pub(super) context: Arc<Context>,
    pub(super) exec: sys::hipGraphExec_t,
}
// SAFETY: see `Context`.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let hip = self.context.leave();
        // SAFETY: live handles; the graph may still be running, so it is waited for.
        unsafe {
            hip.hipStreamSynchronize(self.context.stream);
            hip.hipGraphExecDestroy(self.exec);
        }
    }
}

/// A moment in the queue.
#[derive(Debug)]
pub struct Event {
    pub(super) context: Arc<Context>,
    pub(super) event: hipEvent_t,
}
// SAFETY: see `Context`.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: a live event, destroyed once.
        unsafe { self.context.leave().hipEventDestroy(self.event) };
    }
}

/// A copy to the host that is under way. Its slot is used again once it is dropped.
#[derive(Debug)]
pub struct Read {
    pub(super) slot: Option<HostBuffer>,
    pub(super) bytes: usize,
    pub(super) resources: Arc<Mutex<Resources>>,
    // Dropped after the slot has gone back.
    pub(super) _context: Arc<Context>,
}

impl Drop for Read {
    fn drop(&mut self) {
        lock(&self.resources).free_reads.extend(self.slot.take());
    }
}

/// A kernel's handle.
#[derive(Debug, Clone, Copy)]
pub struct Function(pub(super) sys::hipFunction_t);
// SAFETY: see `Context`.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}
