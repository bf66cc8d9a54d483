//! Windows out of recordings that lie on the device.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::{op, size};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::Real;
use crate::backend::{Backend, Plan};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Samples of one channel that lie side by side, as in the cache's files.
pub const TILE: usize = 64;

/// Words of a window's description before those of its channels.
pub const HEAD: usize = 9;

/// Windows `[rows, channels, time]`, each described by [`HEAD`] + channels words ([`describe`]).
/// Inputs: samples, 16-bit, two a word, in blocks `[tiles, stored channels, TILE]`; scales, one a stored
/// channel of every block; descriptions `[rows, words]`. Output: the windows.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct WindowGather {
    rows: u32,
    channels: u32,
    time: u32,
}

/// Channels of a block of threads (`kernels/window.cu`).
const CHANNELS: usize = 16;

op!(WindowGather, "window_gather", |op, arch, kernel| {
    let blocks = op.rows as usize * (op.channels as usize).div_ceil(CHANNELS);
    Plan::blocks(kernel, blocks, 256)
});

/// One window: where it lies and what is done to it on the way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Source {
    /// First sample of the block, in units of 32 samples (64 bytes).
    pub block: u32,
    /// First scale of the block.
    pub scales: u32,
    /// Channels of the block.
    pub stored: u32,
    /// First sample of the window in its recording.
    pub start: u32,
    /// Samples by which it is turned to the right, circularly; below its length.
    pub shift: u32,
    /// Time runs backwards, after the shift.
    pub reversed: bool,
    /// Every sample is multiplied by this.
    pub factor: f32,
    /// First sample, and number of samples, set to 0 in the end.
    pub mask: (u32, u32),
}

/// Appends a window's description. `rows` gives each channel's place in the block; None: zeros.
pub fn describe(words: &mut Vec<i32>, source: &Source, rows: impl Iterator<Item = Option<u32>>) {
    let s = source;
    let head: [u32; HEAD] = [
        s.block,
        s.scales,
        s.stored,
        s.start,
        s.shift,
        s.reversed.into(),
        s.factor.to_bits(),
        s.mask.0,
        s.mask.1,
    ];
    words.extend(head.map(|word| word as i32));
    words.extend(rows.map(|row| row.map_or(-1, |row| row as i32)));
}

/// Gathers the windows that the first rows of `table` describe into the first of `windows`
/// `[_, channels, time]`.
///
/// # Errors
/// [`Error::Shape`] when shapes do not fit each other; the device's.
pub fn gather(
    backend: &dyn Backend,
    (samples, scales, table): (&Tensor, &Tensor, &Tensor),
    rows: usize,
    windows: &Tensor,
) -> Result<()> {
    let (&[all, channels, time], &[described, words]) = (windows.dims(), table.dims()) else {
        return Err(Error::shape("window_gather", "windows or descriptions of another rank"));
    };
    if rows > all || rows > described || words != HEAD + channels {
        let problem = format!("{rows} of {described} descriptions for {}", windows.shape());
        return Err(Error::shape("window_gather", problem));
    }
    if rows == 0 {
        return Ok(());
    }
    let op = WindowGather { rows: size(rows), channels: size(channels), time: size(time) };
    let windows = windows.narrow(0, rows)?;
    backend.launch(op, &[samples, scales, table], &[&windows])
}

impl HostKernel for WindowGather {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (rows, channels, time) =
            (self.rows as usize, self.channels as usize, self.time as usize);
        let samples: &[i16] = bytemuck::cast_slice(io.input::<i32>(0)?);
        let scales = io.input::<T>(1)?;
        let words = HEAD + channels;
        let table = &io.input::<i32>(2)?[..rows * words];
        let windows = io.output_n::<T>(0, rows * channels * time)?;
        let each = windows.par_chunks_mut(channels * time).zip(table.par_chunks(words));
        each.for_each(|(window, words)| {
            let head: [usize; HEAD] = std::array::from_fn(|i| words[i] as u32 as usize);
            let [block, scale, stored, start, shift, reversed, _, mask, masked] = head;
            let factor = T::of(f64::from(f32::from_bits(words[6] as u32)));
            for (out, &row) in window.chunks_exact_mut(time).zip(&words[HEAD..]) {
                let Ok(row) = usize::try_from(row) else {
                    out.fill(T::ZERO);
                    continue;
                };
                for (t, out) in out.iter_mut().enumerate() {
                    let turned = if reversed != 0 { time - 1 - t } else { t };
                    let at = start + (turned + time - shift) % time;
                    let code = samples[32 * block + (at / TILE * stored + row) * TILE + at % TILE];
                    let value = T::of(f64::from(code)) * scales[scale + row] * factor;
                    *out = if t >= mask && t - mask < masked { T::ZERO } else { value };
                }
            }
        });
        Ok(())
    }
}
