//! Arrays of the caller's: what an engine_array must be, checked before anything follows its pointer.

use std::ffi::c_void;

use super::status::{Failure, Outcome};
use crate::DType;
use crate::backend::cpu::{Lent, LentMut};
use crate::tensor::{MAX_RANK, Shape, View};

/// Type of an array's elements.
pub type EngineDtype = i32;
/// IEEE 754 binary32.
pub const ENGINE_F32: i32 = 0;
/// IEEE 754 binary64; on the CPU only.
pub const ENGINE_F64: i32 = 1;
/// bfloat16; in a card's memory only.
pub const ENGINE_BF16: i32 = 2;
/// IEEE 754 binary16; in a card's memory only.
pub const ENGINE_F16: i32 = 3;
/// 32-bit integers: labels.
pub const ENGINE_I32: i32 = 4;

/// Where an array lies.
pub type EngineMemory = i32;
/// In the host's memory.
pub const ENGINE_HOST: i32 = 0;
/// In the memory of the context's card.
pub const ENGINE_DEVICE: i32 = 1;

/// Most axes of an array.
pub const ENGINE_MAX_RANK: usize = 5;

/// An array of the caller's: dense, row-major, aligned to its elements. The engine keeps no pointer to
/// it after the call (on a card: after the work that the call enqueued).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EngineArray {
    /// First element.
    pub data: *mut c_void,
    /// Extents, outermost first; those from `rank` on are not looked at.
    pub shape: [usize; ENGINE_MAX_RANK],
    /// Number of axes, at most ENGINE_MAX_RANK.
    pub rank: u32,
    /// ENGINE_F32 and so on.
    pub dtype: EngineDtype,
    /// ENGINE_HOST or ENGINE_DEVICE.
    pub memory: EngineMemory,
}

const _: () = assert!(ENGINE_MAX_RANK == MAX_RANK);

/// An array that was checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Array {
    pub(super) view: View,
    pub(super) on_device: bool,
    name: &'static str,
}

/// Reads and checks an array.
///
/// # Safety
/// `array` is null or points to an engine_array.
pub(super) unsafe fn read(array: *const EngineArray, name: &'static str) -> Outcome<Array> {
    // SAFETY: by this function's contract.
    match unsafe { read_optional(array, name)? } {
        Some(array) => Ok(array),
        None => Err(Failure::argument(name, "is null", "point it to an engine_array")),
    }
}

/// [`read`] of an array that may be left out.
///
/// # Safety
/// As [`read`].
pub(super) unsafe fn read_optional(
    array: *const EngineArray,
    name: &'static str,
) -> Outcome<Option<Array>> {
    if array.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, hence an engine_array, by this function's contract.
    let array = unsafe { array.read_unaligned() };
    let bad = |problem: String, remedy: &str| Err(Failure::argument(name, problem, remedy));
    let dtype = match array.dtype {
        ENGINE_F32 => DType::F32,
        ENGINE_F64 => DType::F64,
        ENGINE_BF16 => DType::Bf16,
        ENGINE_F16 => DType::F16,
        ENGINE_I32 => DType::I32,
        other => return bad(format!("dtype {other} is unknown"), "give ENGINE_F32 or the like"),
    };
    if array.memory != ENGINE_HOST && array.memory != ENGINE_DEVICE {
        let problem = format!("memory {} is unknown", array.memory);
        return bad(problem, "give ENGINE_HOST or ENGINE_DEVICE");
    }
    let rank = array.rank as usize;
    if rank > ENGINE_MAX_RANK {
        return bad(format!("has {rank} axes"), "give at most ENGINE_MAX_RANK (5)");
    }
    let dims = &array.shape[..rank];
    let count = dims.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
    let Some(count) = count.filter(|&n| u32::try_from(n).is_ok()) else {
        let remedy = "give at most 2^32 - 1 elements; split larger arrays";
        return bad(format!("of shape {dims:?} is too large"), remedy);
    };
    if count == 0 {
        return bad(
            format!("of shape {dims:?} is empty"),
            "give every axis an extent of 1 or more",
        );
    }
    let address = array.data.expose_provenance();
    if array.data.is_null() {
        return bad("data is null".into(), "let it point to the first element");
    }
    if !address.is_multiple_of(dtype.size()) {
        let remedy = "align the array to the size of its elements";
        return bad(format!("data ({address:#x}) is not aligned to {}", dtype.name()), remedy);
    }
    if address.checked_add(count * dtype.size()).is_none() {
        return bad("reaches past the end of memory".into(), "check shape and pointer");
    }
    let shape = Shape::from(dims);
    let view = View { address: address as u64, shape, strides: shape.row_major(), dtype };
    Ok(Some(Array { view, on_device: array.memory == ENGINE_DEVICE, name }))
}

impl Array {
    /// Memory of the engine's own.
    pub(super) fn own(
        address: u64,
        dims: &[usize],
        dtype: DType,
        on_device: bool,
        name: &'static str,
    ) -> Self {
        let shape = Shape::from(dims);
        let view = View { address, shape, strides: shape.row_major(), dtype };
        Self { view, on_device, name }
    }

    pub(super) fn dims(&self) -> &[usize] {
        self.view.shape.dims()
    }

    /// The axes, which must be `N`; `form` says what is expected in words.
    pub(super) fn axes<const N: usize>(&self, form: &str) -> Outcome<[usize; N]> {
        let found = self.dims().try_into();
        found.map_err(|_| self.refuse(format!("has shape {:?}", self.dims()), form))
    }

    pub(super) fn shaped(&self, dims: &[usize], form: &str) -> Outcome {
        if self.dims() == dims {
            return Ok(());
        }
        let problem = format!("has shape {:?}, expected {dims:?}", self.dims());
        Err(self.refuse(problem, form))
    }

    pub(super) fn expect_type(&self, dtype: DType) -> Outcome {
        if self.view.dtype == dtype {
            return Ok(());
        }
        let problem = format!("is {}, expected {}", self.view.dtype.name(), dtype.name());
        Err(self.refuse(problem, "convert it, or give the type that engine.h names"))
    }

    pub(super) fn expect_host(&self) -> Outcome {
        if self.on_device {
            let remedy = "give an array in the host's memory (ENGINE_HOST)";
            return Err(self.refuse("lies in a card's memory", remedy));
        }
        Ok(())
    }

    pub(super) fn refuse(&self, problem: impl ToString, remedy: &str) -> Failure {
        Failure::argument(self.name, problem, remedy)
    }

    fn range(&self) -> std::ops::Range<u64> {
        self.view.address..self.view.address + self.view.span_bytes() as u64
    }

    /// The elements, to read.
    ///
    /// # Safety
    /// The array lies in the host's memory, and nothing writes it while the slice lives.
    pub(super) unsafe fn lent<'a>(&self) -> Outcome<Lent<'a>> {
        let (at, n) = (self.view.address as usize, self.view.shape.numel());
        self.expect_host()?;
        match self.view.dtype {
            // SAFETY: `read` saw that the address is aligned and not null; that `n` elements can be
            // read there is the host's word; all bit patterns are values.
            DType::F32 => Ok(Lent::F32(unsafe { slice(at, n) })),
            // SAFETY: as above.
            DType::F64 => Ok(Lent::F64(unsafe { slice(at, n) })),
            _ => Err(self.wrong_type()),
        }
    }

    /// The elements, to write.
    ///
    /// # Safety
    /// As [`Array::lent`], and nothing else reads or writes them.
    pub(super) unsafe fn lent_mut<'a>(&self) -> Outcome<LentMut<'a>> {
        let (at, n) = (self.view.address as usize, self.view.shape.numel());
        self.expect_host()?;
        match self.view.dtype {
            // SAFETY: as for `lent`; `expect_apart` saw that no other array overlaps it.
            DType::F32 => Ok(LentMut::F32(unsafe { slice_mut(at, n) })),
            // SAFETY: as above.
            DType::F64 => Ok(LentMut::F64(unsafe { slice_mut(at, n) })),
            _ => Err(self.wrong_type()),
        }
    }

    /// f32 elements, to read.
    ///
    /// # Safety
    /// As [`Array::lent`].
    pub(super) unsafe fn floats<'a>(&self) -> Outcome<&'a [f32]> {
        self.expect_host()?;
        self.expect_type(DType::F32)?;
        // SAFETY: as for `lent`.
        Ok(unsafe { slice(self.view.address as usize, self.view.shape.numel()) })
    }

    /// f32 elements, to write.
    ///
    /// # Safety
    /// As [`Array::lent_mut`].
    pub(super) unsafe fn floats_mut<'a>(&self) -> Outcome<&'a mut [f32]> {
        self.expect_type(DType::F32)?;
        // SAFETY: as for `lent_mut`.
        match unsafe { self.lent_mut()? } {
            LentMut::F32(x) => Ok(x),
            LentMut::F64(_) => Err(self.wrong_type()),
        }
    }

    /// Writes as many numbers as it has elements, as f64 or f32.
    ///
    /// # Safety
    /// As [`Array::lent_mut`].
    pub(super) unsafe fn write_numbers(&self, numbers: &[f64]) -> Outcome {
        // SAFETY: as for `lent_mut`.
        match unsafe { self.lent_mut()? } {
            LentMut::F64(to) => to.iter_mut().zip(numbers).for_each(|(to, &x)| *to = x),
            LentMut::F32(to) => to.iter_mut().zip(numbers).for_each(|(to, &x)| *to = x as f32),
        }
        Ok(())
    }

    /// Whole numbers, to read.
    ///
    /// # Safety
    /// As [`Array::lent`].
    pub(super) unsafe fn integers<'a>(&self) -> Outcome<&'a [i32]> {
        self.expect_host()?;
        self.expect_type(DType::I32)?;
        // SAFETY: as for `lent`.
        Ok(unsafe { slice(self.view.address as usize, self.view.shape.numel()) })
    }

    /// All bytes, to read.
    ///
    /// # Safety
    /// As [`Array::lent`].
    pub(super) unsafe fn bytes<'a>(&self) -> &'a [u8] {
        // SAFETY: as for `lent`; bytes have no alignment.
        unsafe { slice(self.view.address as usize, self.view.span_bytes()) }
    }

    /// All bytes, to write.
    ///
    /// # Safety
    /// As [`Array::lent_mut`].
    pub(super) unsafe fn bytes_mut<'a>(&self) -> &'a mut [u8] {
        // SAFETY: as for `lent_mut`; bytes have no alignment and no invalid patterns.
        unsafe { slice_mut(self.view.address as usize, self.view.span_bytes()) }
    }

    fn wrong_type(&self) -> Failure {
        let problem = format!("is {} on the CPU", self.view.dtype.name());
        self.refuse(problem, "give f32 or f64; 16-bit types are for arrays of a card")
    }
}

/// # Safety
/// `at` is aligned, and `n` elements can be read there while the slice lives.
unsafe fn slice<'a, T>(at: usize, n: usize) -> &'a [T] {
    // SAFETY: by this function's contract.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(at), n) }
}

/// # Safety
/// As [`slice`], and nothing else uses them.
unsafe fn slice_mut<'a, T>(at: usize, n: usize) -> &'a mut [T] {
    // SAFETY: by this function's contract.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(at), n) }
}

/// Refuses outputs that overlap an input or each other.
pub(super) fn expect_apart(inputs: &[Array], outputs: &[Array]) -> Outcome {
    for (i, output) in outputs.iter().enumerate() {
        let own = output.range();
        for other in inputs.iter().chain(&outputs[i + 1..]) {
            let range = other.range();
            if range.start < own.end && own.start < range.end {
                let problem = format!("overlaps {}", other.name);
                return Err(output.refuse(problem, "give results memory of their own"));
            }
        }
    }
    Ok(())
}
