//! The bytes behind the arena's addresses.

use std::fmt;
use std::slice;
use std::sync::{Mutex, PoisonError, RwLock};

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

use crate::backend::{Io, MAX_OPERANDS};
use crate::tensor::View;
use crate::{DType, Element, Error, Result};

struct Chunk {
    base: u64,
    memory: MmapMut,
}

/// Bytes of the larger pages of x86-64 and aarch64.
const LARGE_PAGE: usize = 2 << 20;

/// All memory of one CPU backend.
#[derive(Default)]
pub struct HostMemory {
    chunks: RwLock<Vec<Chunk>>,
    /// Held while references into the chunks exist.
    queue: Mutex<()>,
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostMemory")
    }
}

impl HostMemory {
    /// Allocates a zeroed chunk and returns its address. Untouched pages cost nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn grow(&self, bytes: usize) -> Result<u64> {
        let refused = || Error::OutOfMemory {
            what: "a chunk of host memory".into(),
            requested: bytes as u64,
            held: 0,
            capacity: 0,
            remedy: "close other programs or take a smaller batch".into(),
        };
        let mut memory = MmapMut::map_anon(bytes.max(1)).map_err(|_| refused())?;
        // A step walks over all of this with strides of kilobytes: small pages cost it a tenth of
        // its time. Where the system has no large ones, it says so, and nothing is lost.
        #[cfg(target_os = "linux")]
        if bytes >= LARGE_PAGE {
            let _ = memory.advise(Advice::HugePage);
        }
        let base = memory.as_mut_ptr() as u64;
        self.chunks.write().unwrap_or_else(PoisonError::into_inner).push(Chunk { base, memory });
        Ok(base)
    }

    /// Gives the chunk at this address back. Views into it are refused from then on.
    pub fn release(&self, base: u64) {
        let _alone = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.chunks.write().unwrap_or_else(PoisonError::into_inner).retain(|c| c.base != base);
    }

    /// Calls `f` with the operands' memory, alone: one caller at a time.
    ///
    /// # Errors
    /// [`Error::Shape`] when a view does not lie in this memory, is misaligned, or an output
    /// overlaps another operand; what `f` returns.
    pub fn with<R>(&self, io: Io<'_>, f: impl FnOnce(Operands<'_>) -> Result<R>) -> Result<R> {
        let _alone = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(io)?;
        f(Operands { inputs: io.inputs, outputs: io.outputs, taken: [false; MAX_OPERANDS] })
    }

    fn check(&self, io: Io<'_>) -> Result<()> {
        let bad = |problem: String| Err(Error::shape("operands", problem));
        if io.outputs.len() > MAX_OPERANDS {
            return bad(format!("{} outputs", io.outputs.len()));
        }
        let chunks = self.chunks.read().unwrap_or_else(PoisonError::into_inner);
        let range = |view: &View| view.address..view.address + view.span_bytes() as u64;
        for view in io.inputs.iter().chain(io.outputs) {
            let span = range(view);
            let inside = chunks.iter().any(|chunk| {
                span.start >= chunk.base && span.end <= chunk.base + chunk.memory.len() as u64
            });
            if !inside || span.start % view.dtype.size() as u64 != 0 {
                return bad(format!("{}{} is not of this device", view.dtype.name(), view.shape));
            }
        }
        for (i, output) in io.outputs.iter().enumerate() {
            let span = range(output);
            let touches = |other: &View| {
                let other = range(other);
                other.start < span.end && span.start < other.end
            };
            if io.inputs.iter().any(touches) || io.outputs[i + 1..].iter().any(touches) {
                return bad(format!("output {i} {} overlaps another operand", output.shape));
            }
        }
        Ok(())
    }
}

/// An array of the caller's that an op reads.
#[derive(Debug, Clone, Copy)]
pub enum Lent<'a> {
    /// Of f32.
    F32(&'a [f32]),
    /// Of f64.
    F64(&'a [f64]),
}

/// An array of the caller's that an op writes.
#[derive(Debug)]
pub enum LentMut<'a> {
    /// Of f32.
    F32(&'a mut [f32]),
    /// Of f64.
    F64(&'a mut [f64]),
}

fn flat(address: *const u8, n: usize, dtype: DType) -> View {
    View { address: address as u64, shape: [n].into(), strides: [1].into(), dtype }
}

/// Calls `f` with operands in the caller's own memory, which the borrows keep disjoint and alive.
///
/// # Errors
/// [`Error::Shape`] for too many operands; what `f` returns.
pub fn with_lent<R>(
    inputs: &[Lent<'_>],
    outputs: &mut [LentMut<'_>],
    f: impl FnOnce(Operands<'_>) -> Result<R>,
) -> Result<R> {
    let empty = flat(std::ptr::null(), 0, DType::F32);
    let (mut from, mut to) = ([empty; MAX_OPERANDS], [empty; MAX_OPERANDS]);
    if inputs.len() > MAX_OPERANDS || outputs.len() > MAX_OPERANDS {
        return Err(Error::shape("operands", "more than an op can have"));
    }
    for (view, lent) in from.iter_mut().zip(inputs) {
        *view = match lent {
            Lent::F32(x) => flat(x.as_ptr().cast(), x.len(), DType::F32),
            Lent::F64(x) => flat(x.as_ptr().cast(), x.len(), DType::F64),
        };
    }
    for (view, lent) in to.iter_mut().zip(outputs.iter_mut()) {
        *view = match lent {
            LentMut::F32(x) => flat(x.as_mut_ptr().cast(), x.len(), DType::F32),
            LentMut::F64(x) => flat(x.as_mut_ptr().cast(), x.len(), DType::F64),
        };
    }
    let (inputs, outputs) = (&from[..inputs.len()], &to[..outputs.len()]);
    f(Operands { inputs, outputs, taken: [false; MAX_OPERANDS] })
}

/// The memory of one launch's operands, checked to be disjoint where written.
pub struct Operands<'a> {
    inputs: &'a [View],
    outputs: &'a [View],
    taken: [bool; MAX_OPERANDS],
}

impl<'a> Operands<'a> {
    /// Views of the inputs.
    pub fn inputs(&self) -> &'a [View] {
        self.inputs
    }

    /// Views of the outputs.
    pub fn outputs(&self) -> &'a [View] {
        self.outputs
    }

    /// Elements of input `i` from its first to its last, gaps of a strided view included.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no such input or it has another type.
    pub fn input<T: Element>(&self, i: usize) -> Result<&'a [T]> {
        let view = typed::<T>(self.inputs, i, "input")?;
        let length = view.span_bytes() / size_of::<T>();
        // SAFETY: `HostMemory::check` saw that the range is aligned, lies in one live, initialised
        // chunk and is not written by this launch, and the queue lock keeps other launches out; or
        // `with_lent` holds the borrow it was made of. Every bit pattern is a value of `T` (Pod).
        Ok(unsafe { slice::from_raw_parts(view.address as *const T, length) })
    }

    /// Bytes of input `i`, whatever its type.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no such input.
    pub fn input_bytes(&self, i: usize) -> Result<&'a [u8]> {
        let view = self.inputs.get(i).ok_or_else(|| missing("input", i))?;
        // SAFETY: as for `input`; bytes have no alignment and no invalid patterns.
        Ok(unsafe { slice::from_raw_parts(view.address as *const u8, view.span_bytes()) })
    }

    /// Bytes of output `i`, for the first and only caller that asks.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no such output or it was taken before.
    pub fn output_bytes(&mut self, i: usize) -> Result<&'a mut [u8]> {
        let view = self.outputs.get(i).ok_or_else(|| missing("output", i))?;
        self.take(i)?;
        // SAFETY: as for `output`; bytes have no alignment and no invalid patterns.
        Ok(unsafe { slice::from_raw_parts_mut(view.address as *mut u8, view.span_bytes()) })
    }

    fn take(&mut self, i: usize) -> Result<()> {
        if std::mem::replace(&mut self.taken[i], true) {
            return Err(Error::shape("operands", format!("output {i} taken twice")));
        }
        Ok(())
    }

    /// Elements of output `i`, for the first and only caller that asks.
    ///
    /// # Errors
    /// [`Error::Shape`] as for inputs, and when it was taken before.
    pub fn output<T: Element>(&mut self, i: usize) -> Result<&'a mut [T]> {
        let view = typed::<T>(self.outputs, i, "output")?;
        self.take(i)?;
        let length = view.span_bytes() / size_of::<T>();
        // SAFETY: as for inputs; besides, `check` saw that no other operand overlaps it, and
        // `taken` that no second reference is made.
        Ok(unsafe { slice::from_raw_parts_mut(view.address as *mut T, length) })
    }
}

fn typed<'a, T: Element>(views: &'a [View], i: usize, side: &str) -> Result<&'a View> {
    match views.get(i) {
        Some(view) if view.dtype == T::DTYPE => Ok(view),
        Some(view) => Err(Error::shape(
            "operands",
            format!("{side} {i} is {}, expected {}", view.dtype.name(), T::DTYPE.name()),
        )),
        None => Err(missing(side, i)),
    }
}

fn missing(side: &str, i: usize) -> Error {
    Error::shape("operands", format!("{side} {i} is missing"))
}
