//! A backend without a machine: it hands out addresses and notes launches. The planner asks it
//! for the exact memory peak of a model and batch, tests ask it how a card would be driven.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use super::gpu::chain::{self, Link};
use super::{Arch, Arena, Backend, Io, Mem, MemoryUse, Op, Replay, Route};
use crate::tensor::View;
use crate::{Error, Result};

/// One noted launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Name of the op.
    pub op: &'static str,
    /// How it would run.
    pub route: Route,
    /// Operands.
    pub inputs: Vec<View>,
    /// Results.
    pub outputs: Vec<View>,
}

/// The backend without a machine.
#[derive(Debug)]
pub struct Null {
    arch: Arch,
    arena: Arc<Arena>,
    log: Mutex<Vec<Launch>>,
}

impl Null {
    /// Pretends to be `arch`, with `limit` bytes of memory.
    pub fn new(arch: Arch, limit: u64) -> Self {
        Self { arch, arena: Arena::endless(limit), log: Mutex::default() }
    }

    /// Takes the launches noted so far.
    pub fn take_log(&self) -> Vec<Launch> {
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Far apart and far from zero, so that no address is valid by accident.
const HELD_BASE: u64 = 1 << 46;
const STEP_BASE: u64 = 1 << 47;

impl Backend for Null {
    fn arch(&self) -> &Arch {
        &self.arch
    }

    fn alloc(&self, bytes: usize, what: &dyn Display) -> Result<Mem> {
        let recording = self.arena.is_recording();
        let base = if recording { STEP_BASE } else { HELD_BASE };
        self.arena.alloc(bytes, what, &|_| Ok(base))
    }

    fn upload(&self, to: &View, from: &[u8]) -> Result<()> {
        check_copy("upload", to, from.len())
    }

    fn download(&self, from: &View, to: &mut [u8]) -> Result<()> {
        check_copy("download", from, to.len())?;
        to.fill(0);
        Ok(())
    }

    fn run(&self, op: Box<dyn Op>, io: Io<'_>) -> Result<()> {
        let is_link = || Link::of(op.as_ref(), io, &self.arch).is_some();
        if let Some(holds) = chain::holds_back(op.name(), self.arena.is_recording() && is_link()) {
            self.arena.hold_back(holds);
        }
        let float = io.inputs.iter().chain(io.outputs).find(|view| view.dtype.is_float());
        let route = op.plan(&self.arch, float.map_or(crate::DType::F32, |view| view.dtype));
        if let Route::Kernel(plan) = &route
            && plan.workspace > 0
        {
            // Given back at once: what is enqueued later may use the same bytes.
            let what = format_args!("workspace of {} u8[{}]", op.name(), plan.workspace);
            drop(self.alloc(plan.workspace, &what)?);
        }
        let launch = Launch {
            op: op.name(),
            route,
            inputs: io.inputs.to_vec(),
            outputs: io.outputs.to_vec(),
        };
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(launch);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Replay>> {
        self.arena.begin_step()?;
        let done = step();
        let ended = self.arena.end_step();
        done.and(ended)?;
        Ok(Some(Replay(Box::new(()))))
    }

    fn replay(&self, _replay: &Replay) -> Result<()> {
        Ok(())
    }

    fn reserve(&self, _planned: &MemoryUse) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        self.arena.usage()
    }
}

/// Checks a copy between the host and a contiguous view.
pub(super) fn check_copy(what: &'static str, view: &View, bytes: usize) -> Result<()> {
    if !view.is_contiguous() || view.span_bytes() != bytes {
        let problem = format!("{bytes} bytes for {}{}", view.dtype.name(), view.shape);
        return Err(Error::shape(what, problem));
    }
    Ok(())
}
