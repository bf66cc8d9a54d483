//! Ops that run on the host in the middle of a card's work.
//!
//! What such an op reads is copied to pinned memory as soon as the work that wrote it is enqueued, so
//! that the copy is over, or under way, when the op's turn comes; the host waits for these copies
//! alone. Results go back through pinned memory in queue order, and nobody waits for them.

use std::sync::{Arc, Mutex, PoisonError};

use super::driver::Driver;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Io, Op};
use crate::tensor::{Tensor, View};
use crate::{Error, Result};

/// An op for the host, with its operands' places on the card and on the host.
#[derive(Debug)]
pub(super) struct HostWork {
    op: Box<dyn Op>,
    /// On the card: inputs, then outputs.
    pub(super) views: Box<[View]>,
    inputs: usize,
    /// The same in the host's memory.
    copies: Vec<Tensor>,
}

/// Copies to the host that are under way, one a view; None where the view is not read.
pub(super) type Reads<D> = Vec<Option<<D as Driver>::Read>>;

/// The processor that the ops run on, started when the first one is met.
#[derive(Debug, Default)]
pub(super) struct Host(Mutex<Option<Arc<Cpu>>>);

impl Host {
    fn cpu(&self) -> Result<Arc<Cpu>> {
        let mut cpu = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cpu) = cpu.as_ref() {
            return Ok(Arc::clone(cpu));
        }
        Ok(Arc::clone(cpu.insert(Arc::new(Cpu::new(0, u64::MAX)?))))
    }

    pub(super) fn work(&self, op: Box<dyn Op>, io: Io<'_>) -> Result<HostWork> {
        let views: Box<[View]> = [io.inputs, io.outputs].concat().into();
        if let Some(view) = views.iter().find(|view| !view.is_contiguous()) {
            let problem = format!("an operand {} with gaps, for the host", view.shape);
            return Err(Error::shape(op.name(), problem));
        }
        let cpu = self.cpu()?;
        let backend: &dyn Backend = cpu.as_ref();
        let copy = |view: &View| backend.empty(view.shape, view.dtype, "host copy");
        let copies = views.iter().map(copy).collect::<Result<_>>()?;
        Ok(HostWork { op, views, inputs: io.inputs.len(), copies })
    }

    /// Waits for the operands, runs the op and enqueues the copies of its results.
    pub(super) fn finish<D: Driver>(
        &self,
        driver: &D,
        work: &HostWork,
        reads: Reads<D>,
    ) -> Result<()> {
        let cpu = self.cpu()?;
        for (read, copy) in reads.iter().zip(&work.copies) {
            if let Some(read) = read {
                cpu.upload(copy.view(), &driver.end_read(read)?)?;
            }
        }
        let views: Vec<View> = work.copies.iter().map(|copy| *copy.view()).collect();
        let (inputs, outputs) = views.split_at(work.inputs);
        cpu.run_ref(work.op.as_ref(), Io { inputs, outputs })?;
        let mut buffer = Vec::new();
        for (view, copy) in work.views.iter().zip(&work.copies).skip(work.inputs) {
            buffer.resize(view.span_bytes(), 0);
            cpu.download(copy.view(), &mut buffer)?;
            driver.upload(view.address, &buffer)?;
        }
        Ok(())
    }
}

impl HostWork {
    /// True where the op needs what `view` holds.
    pub(super) fn reads(&self, view: usize) -> bool {
        view < self.inputs || self.op.reads_outputs()
    }

    /// Enqueues the copies of every operand that is read.
    pub(super) fn read_all<D: Driver>(&self, driver: &D) -> Result<Reads<D>> {
        let read = |(i, view): (usize, &View)| {
            let wanted = self.reads(i);
            wanted.then(|| driver.begin_read(view.address, view.span_bytes())).transpose()
        };
        self.views.iter().enumerate().map(read).collect()
    }
}

/// Bytes of the card's memory, from the first to behind the last.
pub type Span = (u64, u64);

pub(super) fn span(view: &View) -> Span {
    (view.address, view.address + view.span_bytes() as u64)
}

/// True where two stretches of memory share a byte.
pub(super) fn meet(a: Span, b: Span) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// After which of the stretches before `at` the bytes can be read: the last that writes some of them;
/// None where none does. What is alive is not overwritten, so they stay as they are until `at`.
pub(super) fn last_writer(writes: &[Vec<Span>], at: usize, bytes: Span) -> Option<usize> {
    (0..at).rev().find(|&stretch| writes[stretch].iter().any(|&span| meet(span, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_read_after_their_last_writer() {
        let writes = [vec![(0, 8)], vec![(8, 16), (32, 40)], vec![(4, 12)], vec![(0, 64)]];
        for (bytes, stretch) in
            [((0, 4), Some(0)), ((0, 5), Some(2)), ((12, 16), Some(1)), ((16, 32), None)]
        {
            assert_eq!(last_writer(&writes, 3, bytes), stretch, "{bytes:?}");
        }
        assert_eq!(last_writer(&writes, 0, (0, 64)), None);
    }
}
