//! Memory of a context for the host's arrays, copies, and texts that the host frees.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

use super::array::{Array, EngineArray, expect_apart, read};
use super::context::{Context, Device, EngineContext, give};
use super::handle::{self, Object};
use super::status::{EngineStatus, Failure, Outcome, guard};
use crate::backend::{Backend, Mem};

/// Memory of a context. Make it with engine_buffer_new.
pub struct EngineBuffer;

struct Buffer {
    memory: Mem,
    // Dropped after the memory, which is its.
    _backend: Arc<dyn Backend>,
}

impl Object for Buffer {
    const NAME: &'static str = "engine_buffer";
}

/// Takes `bytes` of a context's memory, for arrays: a card's (ENGINE_DEVICE) where the context has one,
/// else the host's, aligned to 256 bytes. What it holds is unspecified.
///
/// # Safety
/// `out` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_buffer_new(
    context: *const EngineContext,
    bytes: usize,
    out: *mut *mut EngineBuffer,
) -> EngineStatus {
    let make = || -> Outcome<usize> {
        let context = handle::find::<Context>(context)?;
        let backend = context.backend();
        if bytes == 0 || bytes > 1 << 46 {
            let remedy = "give the size of the array in bytes";
            return Err(Failure::argument("bytes", format!("is {bytes}"), remedy));
        }
        let _turn = context.turn();
        let memory = backend.alloc(bytes, &"a buffer of the host's")?;
        Ok(handle::publish(Buffer { memory, _backend: backend }))
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { give(out, make) })
}

/// Where a buffer lies: the first byte, for `data` of an engine_array.
///
/// # Safety
/// `out` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_buffer_data(
    buffer: *const EngineBuffer,
    out: *mut *mut c_void,
) -> EngineStatus {
    let make = || Ok(handle::find::<Buffer>(buffer)?.memory.address() as usize);
    // SAFETY: by this function's contract.
    guard(|| unsafe { give(out, make) })
}

/// Gives a buffer's memory back; null is nothing. On a card, work that was enqueued on the context
/// before may still use it.
#[unsafe(no_mangle)]
pub extern "C" fn engine_buffer_free(buffer: *mut EngineBuffer) -> EngineStatus {
    handle::free::<Buffer>(buffer)
}

/// Copies an array to another of the same shape and type, between the host's and the card's memory in
/// any direction, in the order of the context's work. It waits, but where both are the card's.
///
/// # Safety
/// The arrays are null or engine_arrays whose pointers hold for their shapes; nothing else writes
/// `from` or uses `to` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_copy(
    context: *const EngineContext,
    from: *const EngineArray,
    to: *const EngineArray,
) -> EngineStatus {
    guard(|| {
        let context = handle::find::<Context>(context)?;
        // SAFETY: by this function's contract.
        let (from, to) = unsafe { (read(from, "from")?, read(to, "to")?) };
        to.shaped(from.dims(), "it has the shape of from")?;
        to.expect_type(from.view.dtype)?;
        expect_apart(&[from], &[to])?;
        // SAFETY: by this function's contract.
        unsafe { copy(&context, &from, &to) }
    })
}

/// # Safety
/// As [`engine_copy`].
unsafe fn copy(context: &Context, from: &Array, to: &Array) -> Outcome {
    let card = match &context.device {
        Device::Card(card) => card,
        Device::Cpu(_) => {
            from.expect_host()?;
            to.expect_host()?;
            // SAFETY: host arrays of one size that do not overlap, by `expect_apart`.
            unsafe { to.bytes_mut().copy_from_slice(from.bytes()) };
            return Ok(());
        }
    };
    let _turn = context.turn();
    match (from.on_device, to.on_device) {
        // SAFETY: the host's array, which nothing writes meanwhile.
        (false, true) => Ok(card.upload(&to.view, unsafe { from.bytes() })?),
        // SAFETY: the host's array, which nothing else uses meanwhile.
        (true, false) => Ok(card.download(&from.view, unsafe { to.bytes_mut() })?),
        (true, true) => {
            let n = from.view.shape.numel();
            let op = Box::new(crate::ops::elementwise::Axpy::scaling(n, 1.0));
            if !from.view.dtype.is_float() {
                let remedy = "copy integers by way of the host";
                return Err(from.refuse("is i32, both in the card's memory", remedy));
            }
            let io = crate::backend::Io { inputs: &[from.view], outputs: &[to.view] };
            Ok(card.run(op, io)?)
        }
        (false, false) => {
            let remedy = "give one of them memory = ENGINE_DEVICE, or use memcpy";
            Err(from.refuse("lies in the host's memory, as does to", remedy))
        }
    }
}

/// Hands a text to the host, which frees it by engine_string_free.
///
/// # Safety
/// `out` is null or may be written to.
pub(super) unsafe fn give_text(out: *mut *mut c_char, text: &str) -> Outcome {
    if out.is_null() {
        return Err(Failure::argument("out", "is null", "point it to a variable for the text"));
    }
    let text = CString::new(text.replace('\0', "?")).unwrap_or_default();
    // SAFETY: not null, hence writable by this function's contract.
    unsafe { out.write(text.into_raw()) };
    Ok(())
}

/// Frees a text that the engine gave by a parameter `char **`; null is nothing. Constant texts and
/// those of engine_last_error are not freed.
///
/// # Safety
/// `text` is null or came from such a parameter, and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engine_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: made by `give_text` with `into_raw`, by this function's contract.
        drop(unsafe { CString::from_raw(text) });
    }
}
