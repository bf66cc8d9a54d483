//! Backends: an ordered queue and the memory it touches. A backend knows nothing of layers or
//! gradients; an op is data that says how it runs on which machine.
//!
//! # Layout
//! [`Backend`] and [`Op`], the traits; [`arch`], facts about machines; [`route`], what is preferred
//! on which and why; [`measured`], matrix products that were timed both ways; [`arena`], the books of
//! memory; [`null`], launches nothing and counts everything; [`cpu`], the reference; [`gpu`], cards.

pub mod arch;
pub mod arena;
pub mod cpu;
pub mod gpu;
pub mod measured;
pub mod null;
pub mod route;

use std::any::Any;
use std::fmt::{Debug, Display};
use std::sync::Arc;

pub use arch::{Arch, Machine, Map, Plan, Route, Stage};
pub use arena::{Arena, MemoryUse};
pub use cpu::host::HostIo;

use crate::tensor::{Shape, Tensor, View};
use crate::{DType, Element, Error, Result};

/// Most operands an op has on either side.
pub const MAX_OPERANDS: usize = 10;

/// A block of a backend's memory; the last clone dropped returns it in queue order.
#[derive(Debug, Clone)]
pub struct Mem(Arc<Block>);

#[derive(Debug)]
struct Block {
    arena: Arc<Arena>,
    address: u64,
    bytes: usize,
    step: bool,
}

impl Mem {
    fn new(arena: Arc<Arena>, address: u64, bytes: usize, step: bool) -> Self {
        Self(Arc::new(Block { arena, address, bytes, step }))
    }

    /// Address in the backend's address space.
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// Size, rounded up to whole blocks.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// True when this is the only clone.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.free(self.address, self.bytes, self.step);
    }
}

/// Operands of one launch. Outputs may be read as well (accumulation, in-place updates), but an
/// output never overlaps an input or another output.
#[derive(Debug, Clone, Copy)]
pub struct Io<'a> {
    /// Read only.
    pub inputs: &'a [View],
    /// Written, or read and written.
    pub outputs: &'a [View],
}

/// One primitive as plain data.
pub trait Op: Debug + Send + Sync {
    /// As in kernel names and profiles: "layernorm_backward".
    fn name(&self) -> &'static str;

    /// The `#[repr(C)]` struct that is the kernel's argument 0.
    fn params(&self) -> &[u8];

    /// The reference: what the CPU runs, and what every other backend is compared with.
    ///
    /// # Errors
    /// [`Error::Shape`] when the operands do not fit the parameters.
    fn host(&self, io: &mut HostIo<'_>) -> Result<()>;

    /// True where the outputs hold operands as well. False only saves their copies where the op runs
    /// on the host for a card.
    fn reads_outputs(&self) -> bool {
        true
    }

    /// How this op runs on `arch` with operands of `dtype`. A pure function: testable with no
    /// device.
    fn plan(&self, arch: &Arch, dtype: DType) -> Route;
}

/// A step that was recorded and can be run again; made and understood by one backend.
pub struct Replay(pub(crate) Box<dyn Any + Send + Sync>);

impl Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replay")
    }
}

/// Time and memory of one op on the device.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// Name of the op.
    pub op: &'static str,
    /// Layer that enqueued it: "layers.3.mlp", "layers.3.mlp backward".
    pub scope: String,
    /// When it began, milliseconds after the first op that was timed.
    pub start_ms: f64,
    /// Milliseconds.
    pub ms: f64,
    /// Bytes of its operands: those it reads and those it writes.
    pub bytes: u64,
    /// Bytes of the device's memory that held something while it ran.
    pub live: u64,
}

/// Bytes of an op's operands.
fn operand_bytes(io: Io<'_>) -> u64 {
    io.inputs.iter().chain(io.outputs).map(|view| view.span_bytes() as u64).sum()
}

/// Bytes that are on their way to the host.
pub struct Later(Box<dyn FnOnce() -> Result<Vec<u8>> + Send>);

impl Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later")
    }
}

impl Later {
    /// Bytes that `wait` gives.
    pub fn new(wait: impl FnOnce() -> Result<Vec<u8>> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// Waits for the bytes.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn wait(self) -> Result<Vec<u8>> {
        self.0()
    }
}

/// An ordered queue and the memory it touches.
pub trait Backend: Debug + Send + Sync {
    /// Facts about the machine.
    fn arch(&self) -> &Arch;

    /// Memory from the arena, uninitialised. `what` names the tensor and its shape in errors.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn alloc(&self, bytes: usize, what: &dyn Display) -> Result<Mem>;

    /// Copies `from` to the contiguous view `to`, in queue order.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes differ; [`Error::Device`].
    fn upload(&self, to: &View, from: &[u8]) -> Result<()>;

    /// Waits for the queue and copies the contiguous view `from`.
    ///
    /// # Errors
    /// As [`Backend::upload`].
    fn download(&self, from: &View, to: &mut [u8]) -> Result<()>;

    /// Enqueues a copy of the contiguous view `from`; wait on what it returns.
    ///
    /// # Errors
    /// As [`Backend::upload`].
    fn download_later(self: Arc<Self>, from: &View) -> Result<Later> {
        let mut bytes = vec![0; from.span_bytes()];
        self.download(from, &mut bytes)?;
        Ok(Later::new(move || Ok(bytes)))
    }

    /// Enqueues one op; while a step is recorded, notes it instead.
    ///
    /// # Errors
    /// [`Error::Shape`] for operands that do not fit; [`Error::Device`].
    fn run(&self, op: Box<dyn Op>, io: Io<'_>) -> Result<()>;

    /// Waits until everything enqueued is done.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn sync(&self) -> Result<()>;

    /// Calls `step` once, noting its ops without running them. Memory it allocates must be given
    /// back before it returns. None: this backend cannot record.
    ///
    /// # Errors
    /// What `step` returns; [`Error::Shape`] when its memory outlives it.
    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Replay>>;

    /// Enqueues a recorded step.
    ///
    /// # Errors
    /// As [`Backend::run`].
    fn replay(&self, replay: &Replay) -> Result<()>;

    /// Makes room for exactly what the planner found, in one piece a region.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn reserve(&self, planned: &MemoryUse) -> Result<()>;

    /// Gives memory that nothing uses back to the machine: between phases of a run.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn trim(&self) -> Result<()> {
        Ok(())
    }

    /// Memory in use and its peaks.
    fn memory(&self) -> MemoryUse;

    /// What is enqueued from here on belongs to this layer, as profiles name it.
    fn enter(&self, _scope: &str) {}

    /// Starts timing every op (replays then run op by op), or stops, waits, and gives what was timed
    /// since; None where nothing was.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn timings(&self, _on: bool) -> Result<Option<Vec<Timed>>> {
        Ok(None)
    }
}

/// What every caller of a backend wants, in terms of tensors.
impl dyn Backend + '_ {
    /// An uninitialised dense tensor; `name` appears in out-of-memory errors.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn empty(&self, shape: impl Into<Shape>, dtype: DType, name: &str) -> Result<Tensor> {
        let shape = shape.into();
        let bytes = shape.numel() * dtype.size();
        let mem = self.alloc(bytes, &format_args!("{name} {}{shape}", dtype.name()))?;
        Ok(Tensor::new(mem, shape, dtype))
    }

    /// A dense tensor holding `values`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Shape`] when the counts differ.
    pub fn tensor<T: Element>(
        &self,
        shape: impl Into<Shape>,
        values: &[T],
        name: &str,
    ) -> Result<Tensor> {
        let tensor = self.empty(shape, T::DTYPE, name)?;
        self.write(&tensor, values)?;
        Ok(tensor)
    }

    /// Copies `values` to a contiguous tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] when type or count differ.
    pub fn write<T: Element>(&self, to: &Tensor, values: &[T]) -> Result<()> {
        if to.dtype() != T::DTYPE {
            let problem = format!("{} values for {to:?}", T::DTYPE.name());
            return Err(Error::shape("write", problem));
        }
        self.upload(to.view(), bytemuck::cast_slice(values))
    }

    /// Waits, and copies a contiguous tensor to the host.
    ///
    /// # Errors
    /// [`Error::Shape`] when the type differs.
    pub fn read<T: Element>(&self, from: &Tensor) -> Result<Vec<T>> {
        if from.dtype() != T::DTYPE {
            return Err(Error::shape("read", format!("{from:?} as {}", T::DTYPE.name())));
        }
        let mut values = vec![T::zeroed(); from.numel()];
        self.download(from.view(), bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Runs `op` on tensors.
    ///
    /// # Errors
    /// As [`Backend::run`].
    pub fn launch(
        &self,
        op: impl Op + 'static,
        inputs: &[&Tensor],
        outputs: &[&Tensor],
    ) -> Result<()> {
        let views: Vec<View> = inputs.iter().chain(outputs).map(|t| *t.view()).collect();
        let (inputs, outputs) = views.split_at(inputs.len());
        self.run(Box::new(op), Io { inputs, outputs })
    }
}
