//! Multi-head scaled dot-product attention (Vaswani et al. 2017), with the softmax never stored:
//! the backward pass computes it again from the row's log-sum-exp (Dao et al. 2022).

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::{op, size};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::{Real, vectorised};
use crate::backend::cpu::scratch::scratch;
use crate::backend::cpu::simd::gemm::{Mat, gemm};
use crate::backend::{Arch, Machine, Plan, Route};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Largest head dimension the kernels are built for.
pub const MAX_HEAD_DIM: usize = 128;

/// Extents of one attention; also the parameters of both kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Extents {
    batch: u32,
    time: u32,
    heads: u32,
    head_dim: u32,
    scale: f32,
}

/// out = softmax(scale Q Kᵀ) V by heads. Input: qkv `[batch, time, 3, heads, head_dim]`; outputs:
/// out `[batch, time, heads, head_dim]`, lse `[batch, time, heads]`.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Attention(Extents);

/// Gradient of [`Attention`]. Inputs: d_out, qkv, out, lse; output: d_qkv.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct AttentionBackward(Extents);

op!(Attention, "attention", |op, arch, kernel| op.0.route(arch, kernel));
op!(AttentionBackward, "attention_backward", |op, arch, kernel| op.0.route(arch, kernel));

impl Extents {
    fn route(&self, arch: &Arch, kernel: &str) -> Route {
        if arch.machine == Machine::Cpu {
            return Route::Host;
        }
        // One block per 64 queries of one head; keys and values stream through shared memory.
        let grid = [self.time.div_ceil(64), self.heads, self.batch];
        let shared = 4 * 64 * self.head_dim * 2;
        Route::Kernel(Plan { kernel: kernel.into(), grid, block: 128, shared })
    }

    fn dims(&self) -> (usize, usize, usize, usize) {
        (self.batch as usize, self.time as usize, self.heads as usize, self.head_dim as usize)
    }
}

/// Queries of one piece of work: their scores stay in the second-level cache.
const QUERIES: usize = 128;

/// Q, K and V of one head within one item's `[time, 3, heads, head_dim]`.
fn head<T>(item: &[T], part: usize, h: usize, (heads, d): (usize, usize)) -> Mat<'_, T> {
    Mat::new(&item[(part * heads + h) * d..], 3 * heads * d, 1)
}

impl HostKernel for Attention {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, time, heads, d) = self.0.dims();
        let width = heads * d;
        let qkv = io.input_n::<T>(0, batch * time * 3 * width)?;
        let out = io.output_n::<T>(0, batch * time * width)?;
        let lse = io.output_n::<T>(1, batch * time * heads)?;
        let scale = T::of(f64::from(self.0.scale));
        let items = out.par_chunks_mut(time * width).zip(lse.par_chunks_mut(time * heads));
        items.zip(qkv.par_chunks(time * 3 * width)).for_each(|((out, lse), item)| {
            let pieces =
                out.par_chunks_mut(QUERIES * width).zip(lse.par_chunks_mut(QUERIES * heads));
            pieces.enumerate().for_each(|(i, (out, lse))| {
                let (first, rows) = (i * QUERIES, out.len() / width);
                scratch(rows * time, |p: &mut [T]| {
                    for h in 0..heads {
                        let q = head(&item[first * 3 * width..], 0, h, (heads, d));
                        let k = head(item, 1, h, (heads, d));
                        let v = head(item, 2, h, (heads, d));
                        gemm((rows, time, d), scale, q, k.t(), T::ZERO, p, time);
                        vectorised!(softmax_rows(p, time, &mut lse[h..], heads));
                        let p = Mat::new(p, time, 1);
                        gemm((rows, d, time), T::ONE, p, v, T::ZERO, &mut out[h * d..], width);
                    }
                });
            });
        });
        Ok(())
    }
}

/// Softmax of each row in place; the log-sum-exp of row i goes to `lse[i * step]`.
#[inline(always)]
fn softmax_rows<T: Real>(p: &mut [T], time: usize, lse: &mut [T], step: usize) {
    for (row, lse) in p.chunks_exact_mut(time).zip(lse.iter_mut().step_by(step)) {
        let mut tops = [row[0]; 16];
        let pieces = row.chunks_exact(16);
        let rest = pieces.remainder();
        for piece in pieces {
            tops.iter_mut().zip(piece).for_each(|(t, &x)| *t = t.larger(x));
        }
        tops.iter_mut().zip(rest).for_each(|(t, &x)| *t = t.larger(x));
        let top = tops.iter().copied().fold(tops[0], T::larger);
        let mut sums = [T::ZERO; 16];
        let mut pieces = row.chunks_exact_mut(16);
        for piece in &mut pieces {
            for (sum, x) in sums.iter_mut().zip(piece) {
                *x = (*x - top).exp();
                *sum += *x;
            }
        }
        for (sum, x) in sums.iter_mut().zip(pieces.into_remainder()) {
            *x = (*x - top).exp();
            *sum += *x;
        }
        let sum: T = sums.iter().copied().sum();
        let inverse = T::ONE / sum;
        row.iter_mut().for_each(|x| *x *= inverse);
        *lse = top + sum.ln();
    }
}

impl HostKernel for AttentionBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (batch, time, heads, d) = self.0.dims();
        let width = heads * d;
        let d_out = io.input_n::<T>(0, batch * time * width)?;
        let qkv = io.input_n::<T>(1, batch * time * 3 * width)?;
        let out = io.input_n::<T>(2, batch * time * width)?;
        let lse = io.input_n::<T>(3, batch * time * heads)?;
        let d_qkv = io.output_n::<T>(0, batch * time * 3 * width)?;
        let each = d_qkv.par_chunks_mut(time * 3 * width).enumerate();
        each.for_each(|(b, d_item)| {
            let item = Item {
                qkv: &qkv[b * time * 3 * width..][..time * 3 * width],
                out: &out[b * time * width..][..time * width],
                d_out: &d_out[b * time * width..][..time * width],
                lse: &lse[b * time * heads..][..time * heads],
            };
            let rows = time.min(QUERIES);
            scratch(2 * rows * time, |memory: &mut [T]| {
                let (p, ds) = memory.split_at_mut(rows * time);
                for h in 0..heads {
                    for first in (0..time).step_by(QUERIES) {
                        item.head_backward(&self.0, h, first, (p, ds), d_item);
                    }
                }
            });
        });
        Ok(())
    }
}

/// One item of the batch, with what its forward pass left.
struct Item<'a, T> {
    qkv: &'a [T],
    out: &'a [T],
    d_out: &'a [T],
    lse: &'a [T],
}

impl<T: Real> Item<'_, T> {
    /// Gradients that queries from `first` on contribute to head `h`.
    fn head_backward(
        &self,
        extents: &Extents,
        h: usize,
        first: usize,
        (p, ds): (&mut [T], &mut [T]),
        d_item: &mut [T],
    ) {
        let (_, time, heads, d) = extents.dims();
        let (width, step) = (heads * d, 3 * heads * d);
        let scale = T::of(f64::from(extents.scale));
        let rows = (time - first).min(QUERIES);
        let (p, ds) = (&mut p[..rows * time], &mut ds[..rows * time]);
        let q = head(&self.qkv[first * step..], 0, h, (heads, d));
        let k = head(self.qkv, 1, h, (heads, d));
        let v = head(self.qkv, 2, h, (heads, d));
        let at = first * width + h * d;
        let d_out = Mat::new(&self.d_out[at..], width, 1);
        gemm((rows, time, d), scale, q, k.t(), T::ZERO, p, time);
        gemm((rows, time, d), T::ONE, d_out, v.t(), T::ZERO, ds, time);
        vectorised!({
            let pairs = p.chunks_exact_mut(time).zip(ds.chunks_exact_mut(time));
            for (i, (p, ds)) in pairs.enumerate() {
                let lse = self.lse[(first + i) * heads + h];
                let row = at + i * width..at + i * width + d;
                let (o, g) = (&self.out[row.clone()], &self.d_out[row]);
                let delta: T = o.iter().zip(g).map(|(&o, &g)| o * g).sum();
                for (p, ds) in p.iter_mut().zip(ds) {
                    *p = (*p - lse).exp();
                    *ds = *p * (*ds - delta) * scale;
                }
            }
        });
        let (p, ds) = (Mat::new(p, time, 1), Mat::new(ds, time, 1));
        let beta = if first == 0 { T::ZERO } else { T::ONE };
        let part = |part: usize| (part * heads + h) * d;
        let dq = &mut d_item[first * step + part(0)..];
        gemm((rows, d, time), T::ONE, ds, k, T::ZERO, dq, step);
        gemm((time, d, rows), T::ONE, ds.t(), q, beta, &mut d_item[part(1)..], step);
        gemm((time, d, rows), T::ONE, p.t(), d_out, beta, &mut d_item[part(2)..], step);
    }
}

/// Attention of `qkv` `[batch, time, 3 * heads * head_dim]`, queries first, then keys, then values,
/// each head by head (as PyTorch's `in_proj` gives them); gives `[batch, time, heads * head_dim]`.
///
/// # Errors
/// [`Error::Shape`] when the last axis is not 3 * `heads` * head_dim, or head_dim is above
/// [`MAX_HEAD_DIM`].
pub fn attention(tape: &Tape<'_>, qkv: &Var, heads: usize) -> Result<Var> {
    let &[batch, time, packed] = qkv.dims() else {
        return Err(Error::shape("attention", format!("qkv of shape {}", qkv.shape())));
    };
    let d = packed / (3 * heads.max(1));
    if heads == 0 || d == 0 || d * 3 * heads != packed || d > MAX_HEAD_DIM {
        return Err(Error::shape("attention", format!("{packed} channels for {heads} heads")));
    }
    let extents = Extents {
        batch: size(batch),
        time: size(time),
        heads: size(heads),
        head_dim: size(d),
        scale: (1.0 / (d as f64).sqrt()) as f32,
    };
    let out = tape.empty([batch, time, heads * d], qkv.dtype(), "attention")?;
    let stat_type = if qkv.dtype().size() == 2 { crate::DType::F32 } else { qkv.dtype() };
    let lse = tape.empty([batch, time, heads], stat_type, "attention.lse")?;
    tape.run(Attention(extents), &[qkv.tensor()], &[&out, &lse])?;
    let (input, result) = (qkv.clone(), out.clone());
    Ok(tape.push(out, &[qkv], move |grads, d_out| {
        let op = AttentionBackward(extents);
        let inputs = [&d_out, input.tensor(), &result, &lse];
        let d_qkv = grads.tape().empty(*input.shape(), input.dtype(), "grad.qkv")?;
        grads.tape().run(op, &inputs, &[&d_qkv])?;
        grads.give(&input, d_qkv)
    }))
}
