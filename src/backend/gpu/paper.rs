//! A card of paper, for tests: it computes nothing, has exactly so much memory, refuses addresses that
//! are not of it, and a clock that goes on by a millisecond a launch.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::blas::Product;
use super::driver::{Driver, Launch};
use crate::backend::Arch;
use crate::{Error, Result};

/// The card.
#[derive(Debug)]
pub struct Paper {
    arch: Arch,
    bytes: u64,
    /// Address and bytes of what was taken.
    taken: Mutex<BTreeMap<u64, u64>>,
    clock: AtomicU64,
}

impl Paper {
    /// A card of that kind with so many bytes.
    pub fn new(arch: Arch, bytes: u64) -> Self {
        Self { arch, bytes, taken: Mutex::default(), clock: AtomicU64::new(0) }
    }

    fn pieces(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> u64 {
        self.pieces().values().sum()
    }

    fn check(&self, address: u64, bytes: u64) -> Result<()> {
        let pieces = self.pieces();
        let piece = pieces.range(..=address).next_back();
        match piece.is_some_and(|(base, size)| address + bytes <= base + size) {
            true => Ok(()),
            false => Err(Error::shape("paper", format!("{bytes} bytes at {address:#x}"))),
        }
    }

    fn pass(&self) {
        self.clock.fetch_add(1, Relaxed);
    }
}

impl Driver for Paper {
    type Function = ();
    type Graph = ();
    type Event = u64;
    type Read = usize;

    fn arch(&self) -> &Arch {
        &self.arch
    }

    fn memory(&self) -> Result<(u64, u64)> {
        Ok((self.bytes - self.taken(), self.bytes))
    }

    fn use_pinned(&self, _pinned: bool) {}

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let (bytes, held) = (bytes as u64, self.taken());
        if held + bytes > self.bytes {
            return Err(Error::OutOfMemory {
                what: "a sheet of paper".into(),
                requested: bytes,
                held,
                capacity: self.bytes,
                remedy: "none: the engine's books were wrong".into(),
            });
        }
        let mut pieces = self.pieces();
        let end = pieces.last_key_value().map_or(1 << 40, |(base, size)| base + size);
        // A gap, so that what runs over an end is seen.
        let base = (end + 4096).next_multiple_of(1 << 21);
        pieces.insert(base, bytes);
        Ok(base)
    }

    fn free(&self, address: u64) -> Result<()> {
        let known = self.pieces().remove(&address);
        known.map(drop).ok_or_else(|| Error::shape("paper", "was given back before"))
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.check(to, from.len() as u64)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        self.check(from, to.len() as u64)
    }

    fn begin_read(&self, from: u64, bytes: usize) -> Result<usize> {
        self.check(from, bytes as u64)?;
        Ok(bytes)
    }

    fn end_read(&self, read: &usize) -> Result<Vec<u8>> {
        Ok(vec![0; *read])
    }

    fn function(&self, _name: &str, _shared: u32) -> Result<Option<()>> {
        Ok(Some(()))
    }

    fn launch(&self, launch: &Launch<()>) -> Result<()> {
        let operands = &launch.operands;
        let addresses = &operands.at[..operands.count as usize];
        addresses.iter().try_for_each(|&address| self.check(address, 1))?;
        if operands.workspace > 0 {
            self.check(operands.workspace, 1)?;
        }
        self.pass();
        Ok(())
    }

    fn product(&self, _product: &Product) -> Result<()> {
        self.pass();
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn begin_capture(&self) -> Result<bool> {
        Ok(true)
    }

    fn end_capture(&self) -> Result<()> {
        Ok(())
    }

    fn launch_graph(&self, (): &()) -> Result<()> {
        self.pass();
        Ok(())
    }

    fn stamp(&self) -> Result<u64> {
        Ok(self.clock.load(Relaxed))
    }

    fn lanes(&self) -> usize {
        4
    }

    fn elapsed(&self, from: &u64, to: &u64) -> Result<f64> {
        Ok(to.saturating_sub(*from) as f64)
    }
}
