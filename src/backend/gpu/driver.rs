//! What a maker's driver must do. Everything above it, the [`super::Gpu`] queue, is shared.

use std::fmt::Debug;

use bytemuck::{Pod, Zeroable};

use super::blas::Product;
use crate::backend::{Arch, Io, Map, Stage};
use crate::tensor::View;
use crate::{DType, Error, Result};

/// Most operands of a kernel; `MAX_AT` of `kernels/params.h`.
pub const MAX_AT: usize = 12;

/// Argument 1 of every kernel, as `kernels/portable.h` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Operands {
    /// Addresses of the inputs, then of the outputs.
    pub at: [u64; MAX_AT],
    /// Address of the plan's workspace.
    pub workspace: u64,
    /// Type of operand i in bits 2i and 2i + 1: f32, bf16, f16, i32.
    pub kinds: u32,
    /// Number of operands.
    pub count: u32,
}

/// A float operand's tag in [`Operands::kinds`]; None for a type no kernel takes.
fn kind(dtype: DType) -> Option<u32> {
    match dtype {
        DType::F32 => Some(0),
        DType::Bf16 => Some(1),
        DType::F16 => Some(2),
        DType::I32 => Some(3),
        DType::F64 => None,
    }
}

impl Operands {
    /// Operands of the op of that name, with no workspace.
    ///
    /// # Errors
    /// [`Error::Shape`] for more than a kernel has, or of a type that no kernel takes.
    pub fn of(op: &'static str, io: Io<'_>) -> Result<Self> {
        let count = io.inputs.len() + io.outputs.len();
        if count > MAX_AT {
            return Err(Error::shape(op, format!("{count} operands")));
        }
        let mut operands = Self { at: [0; MAX_AT], workspace: 0, kinds: 0, count: count as u32 };
        for (i, view) in io.inputs.iter().chain(io.outputs).enumerate() {
            let Some(kind) = kind(view.dtype) else {
                let problem =
                    format!("operand {i} is {}: cards have no such kernels", view.dtype.name());
                return Err(Error::shape(op, problem));
            };
            operands.at[i] = view.address;
            operands.kinds |= kind << (2 * i);
        }
        Ok(operands)
    }
}

/// One kernel launch, ready to be enqueued.
#[derive(Debug, Clone)]
pub struct Launch<F> {
    /// The driver's handle of the entry point.
    pub function: F,
    /// Geometry.
    pub stage: Stage,
    /// The op's parameter struct, in words so that it is aligned.
    pub params: Box<[u64]>,
    /// Argument 1.
    pub operands: Operands,
    /// The arguments after it, one for each of the stage's maps.
    pub maps: Box<[Option<Mapped>]>,
}

/// An operand for a copy engine; None in [`Launch::maps`] is a map of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Address of the first element.
    pub address: u64,
    /// One of the 16-bit types.
    pub dtype: DType,
    /// What the plan says of it.
    pub map: Map,
}

impl Mapped {
    /// The operand of a map, where the copy engine can take it.
    pub(super) fn of(map: Map, io: Io<'_>) -> Option<Self> {
        let &View { address, dtype, .. } = io.inputs.iter().chain(io.outputs).nth(map.operand)?;
        let lies =
            address.is_multiple_of(16) && (map.pitch as usize * dtype.size()).is_multiple_of(16);
        let halves = matches!(dtype, DType::Bf16 | DType::F16);
        (lies && halves).then_some(Self { address, dtype, map })
    }
}

/// One card of one maker: its memory and one ordered queue.
///
/// Addresses are the card's. Calls may come from any thread, one at a time.
pub trait Driver: Debug + Send + Sync + Sized + 'static {
    /// Handle of a kernel.
    type Function: Debug + Copy + Send + Sync;
    /// A recorded stretch of the queue.
    type Graph: Debug + Send + Sync;
    /// A moment in the queue.
    type Event: Debug + Send + Sync;
    /// A copy to the host that is under way.
    type Read: Debug + Send + Sync;

    /// Facts about the card.
    fn arch(&self) -> &Arch;

    /// Free and total bytes of the card's memory.
    ///
    /// # Errors
    /// [`crate::Error::Device`], as all below.
    fn memory(&self) -> Result<(u64, u64)>;

    /// Memory, uninitialised, kept until the driver is dropped.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Gives back memory of [`Driver::alloc`], which no work uses any more; waits for the queue.
    ///
    /// # Errors
    /// As above.
    fn free(&self, address: u64) -> Result<()>;

    /// Whether uploads to come pass through pinned memory, so that they overlap with kernels.
    fn use_pinned(&self, pinned: bool);

    /// Copies to the card, in queue order; `from` may be overwritten on return.
    ///
    /// # Errors
    /// As above.
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;

    /// Waits for the queue and copies from the card.
    ///
    /// # Errors
    /// As above.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Enqueues a copy from the card.
    ///
    /// # Errors
    /// As above.
    fn begin_read(&self, from: u64, bytes: usize) -> Result<Self::Read>;

    /// Waits for a copy.
    ///
    /// # Errors
    /// As above.
    fn end_read(&self, read: &Self::Read) -> Result<Vec<u8>>;

    /// The kernel of that name; None where the program has none for this card.
    ///
    /// # Errors
    /// As above.
    fn function(&self, name: &str, shared: u32) -> Result<Option<Self::Function>>;

    /// Enqueues a kernel.
    ///
    /// # Errors
    /// As above.
    fn launch(&self, launch: &Launch<Self::Function>) -> Result<()>;

    /// Enqueues a product of the vendor's library. Only called where `arch().blas`.
    ///
    /// # Errors
    /// As above.
    fn product(&self, product: &Product) -> Result<()>;

    /// Waits for the queue.
    ///
    /// # Errors
    /// As above.
    fn sync(&self) -> Result<()>;

    /// From here on work is recorded, not run; false where the driver cannot.
    ///
    /// # Errors
    /// As above.
    fn begin_capture(&self) -> Result<bool>;

    /// Ends the recording.
    ///
    /// # Errors
    /// As above.
    fn end_capture(&self) -> Result<Self::Graph>;

    /// Enqueues what was recorded.
    ///
    /// # Errors
    /// As above.
    fn launch_graph(&self, graph: &Self::Graph) -> Result<()>;

    /// Marks this moment of the queue.
    ///
    /// # Errors
    /// As above.
    fn stamp(&self) -> Result<Self::Event>;

    /// Queues that a recording may spread over.
    fn lanes(&self) -> usize {
        1
    }

    /// What is enqueued from here on goes to this queue; 0 is the one everything else uses. While a
    /// recording is under way only.
    ///
    /// # Errors
    /// As above.
    fn choose_lane(&self, _lane: usize) -> Result<()> {
        Ok(())
    }

    /// What is enqueued from here on, in the chosen queue, waits for this moment of another one.
    ///
    /// # Errors
    /// As above.
    fn wait_for(&self, _event: &Self::Event) -> Result<()> {
        Ok(())
    }

    /// Milliseconds between two moments, once both have passed; waits for the second.
    ///
    /// # Errors
    /// As above.
    fn elapsed(&self, from: &Self::Event, to: &Self::Event) -> Result<f64>;
}
