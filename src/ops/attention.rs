//! Multi-head scaled dot-product attention (Vaswani et al. 2017), with the softmax never stored:
//! the backward pass computes it again from the row's log-sum-exp (Dao et al. 2022).

mod plans;

use std::f64::consts::{LN_2, LOG2_E};

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::{op, size};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::{Real, vectorised};
use crate::backend::cpu::scratch::scratch;
use crate::backend::cpu::simd::columns::{Columns, for_columns};
use crate::backend::cpu::simd::gemm::{Mat, copy_row, gemm};
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

op!(Attention, "attention", |op, arch, kernel| op.0.plan(arch, kernel));
op!(AttentionBackward, "attention_backward", |op, arch, kernel| op.0.plan_backward(arch, kernel));

impl Attention {
    /// `heads` heads of `head_dim` channels over `batch` items of `time` tokens; all at least 1,
    /// `head_dim` at most [`MAX_HEAD_DIM`].
    pub fn new(batch: usize, time: usize, heads: usize, head_dim: usize) -> Self {
        Self(Extents::new(batch, time, heads, head_dim))
    }
}

impl AttentionBackward {
    /// Of [`Attention::new`] with the same extents.
    pub fn new(batch: usize, time: usize, heads: usize, head_dim: usize) -> Self {
        Self(Extents::new(batch, time, heads, head_dim))
    }
}

impl Extents {
    fn new(batch: usize, time: usize, heads: usize, head_dim: usize) -> Self {
        Self {
            batch: size(batch),
            time: size(time),
            heads: size(heads),
            head_dim: size(head_dim),
            scale: (1.0 / (head_dim as f64).sqrt()) as f32,
        }
    }

    fn dims(&self) -> (usize, usize, usize, usize) {
        (self.batch as usize, self.time as usize, self.heads as usize, self.head_dim as usize)
    }
}

// Scores are kept in units of ln 2, so that an exponential is a power of 2.

/// Queries of one piece of work, whole blocks.
const QUERIES: usize = 4 * BLOCK;

/// Queries that are taken together: scores are kept transposed, `[keys, BLOCK]`, so that the
/// softmax runs down the columns, one query a vector lane, and so that they are at once the packed
/// right-hand side of the next product.
const BLOCK: usize = 32;

/// Copies `d` columns of each row, `step` apart, to rows of `d`.
#[inline(always)]
fn gather<T: Real>(to: &mut [T], from: &[T], step: usize, d: usize) {
    for (to, from) in to.chunks_exact_mut(d).zip(from.chunks(step)) {
        copy_row(to, &from[..d]);
    }
}

/// Transposes rows of `d`, `step` apart, into columns of `to` `[d, BLOCK]`, scaled; columns past
/// the last row become zero.
#[inline(always)]
fn gather_transposed<T: Real>(to: &mut [T], from: &[T], step: usize, rows: usize, scale: T) {
    for (j, to) in to.chunks_exact_mut(BLOCK).enumerate() {
        let (real, rest) = to.split_at_mut(rows);
        for (to, from) in real.iter_mut().zip(from[j..].iter().step_by(step)) {
            *to = *from * scale;
        }
        rest.fill(T::ZERO);
    }
}

/// The inverse of [`gather_transposed`], column i scaled by `scales[i]`; `row(i)` is where it goes.
#[inline(always)]
fn scatter_transposed<'a, T: Real>(
    from: &[T],
    rows: impl Iterator<Item = &'a mut [T]>,
    scales: &[T; BLOCK],
) {
    for (i, row) in rows.enumerate() {
        for (to, from) in row.iter_mut().zip(from[i..].iter().step_by(BLOCK)) {
            *to = *from * scales[i];
        }
    }
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
                let item = Item { qkv: item, extents: &self.0, scale };
                scratch(2 * time * d + (time + 2 * d) * BLOCK, |memory: &mut [T]| {
                    (0..heads).for_each(|h| item.head(h, i * QUERIES, out, lse, memory));
                });
            });
        });
        Ok(())
    }
}

/// One item of the batch.
struct Item<'a, T> {
    /// `[time, 3, heads, head_dim]`
    qkv: &'a [T],
    extents: &'a Extents,
    scale: T,
}

impl<T: Real> Item<'_, T> {
    /// What follows the first element of Q, K or V (`part` 0, 1, 2) of head `h` at time `first`;
    /// its rows are `3 * heads * head_dim` apart.
    fn part(&self, part: usize, h: usize, first: usize) -> &[T] {
        let (_, _, heads, d) = self.extents.dims();
        &self.qkv[first * 3 * heads * d + (part * heads + h) * d..]
    }

    /// Results of head `h` for the queries from `first` on that `out` and `lse` have rows for.
    fn head(&self, h: usize, first: usize, out: &mut [T], lse: &mut [T], memory: &mut [T]) {
        let (_, time, heads, d) = self.extents.dims();
        let (width, step) = (heads * d, 3 * heads * d);
        let (keys, memory) = memory.split_at_mut(time * d);
        let (values, memory) = memory.split_at_mut(time * d);
        let (p, memory) = memory.split_at_mut(time * BLOCK);
        let (q, y) = memory.split_at_mut(d * BLOCK);
        gather(keys, self.part(1, h, 0), step, d);
        gather(values, self.part(2, h, 0), step, d);
        let (keys, values) = (Mat::new(keys, d, 1), Mat::new(values, d, 1));
        let blocks = out.chunks_mut(BLOCK * width).zip(lse.chunks_mut(BLOCK * heads));
        for (i, (out, lse)) in blocks.enumerate() {
            let rows = out.len() / width;
            let columns = columns(rows);
            vectorised!(gather_transposed(
                q,
                self.part(0, h, first + i * BLOCK),
                step,
                rows,
                self.scale * T::of(LOG2_E)
            ));
            gemm((time, columns, d), T::ONE, keys, Mat::new(q, BLOCK, 1), T::ZERO, p, BLOCK);
            let (mut sums, mut lses) = ([T::ZERO; BLOCK], [T::ZERO; BLOCK]);
            vectorised!(softmax_columns(p, &mut sums, &mut lses));
            let p = Mat::new(p, BLOCK, 1);
            gemm((d, columns, time), T::ONE, values.t(), p, T::ZERO, y, BLOCK);
            let to = out.chunks_mut(width).map(|row| &mut row[h * d..(h + 1) * d]);
            vectorised!(scatter_transposed(y, to, &sums));
            lse[h..].iter_mut().step_by(heads).zip(lses).for_each(|(to, x)| *to = x);
        }
    }
}

/// Columns of a block to compute for `rows` queries: whole vectors.
fn columns(rows: usize) -> usize {
    rows.next_multiple_of(16).min(BLOCK)
}

/// Replaces each column of `p` `[time, BLOCK]` by its powers of 2 relative to its largest; gives
/// the inverses of their sums, and the natural logarithm of the sum of powers.
#[inline(always)]
fn softmax_columns<T: Real>(p: &mut [T], inverses: &mut [T; BLOCK], lse: &mut [T; BLOCK]) {
    let mut tops = [T::of(f64::NEG_INFINITY); BLOCK];
    for row in p.chunks_exact(BLOCK) {
        for j in 0..BLOCK {
            tops[j] = tops[j].larger(row[j]);
        }
    }
    let mut sums = [T::ZERO; BLOCK];
    for row in p.chunks_exact_mut(BLOCK) {
        for j in 0..BLOCK {
            row[j] = (row[j] - tops[j]).exp2();
            sums[j] += row[j];
        }
    }
    for j in 0..BLOCK {
        inverses[j] = T::ONE / sums[j];
        lse[j] = tops[j] * T::of(LN_2) + sums[j].ln();
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
        let scale = T::of(f64::from(self.0.scale));
        let each = d_qkv.par_chunks_mut(time * 3 * width).enumerate();
        each.for_each(|(b, d_item)| {
            let item = Item {
                qkv: &qkv[b * time * 3 * width..][..time * 3 * width],
                extents: &self.0,
                scale,
            };
            let after = After {
                out: &out[b * time * width..][..time * width],
                d_out: &d_out[b * time * width..][..time * width],
                lse: &lse[b * time * heads..][..time * heads],
            };
            // Rows of all heads' Q, K and V at one time are rows of one matrix.
            for_columns(d_item, width, d, |h, d_head| item.head_backward(h, &after, d_head));
        });
        Ok(())
    }
}

/// What the forward pass of one item left, and the gradient of its result.
struct After<'a, T> {
    out: &'a [T],
    d_out: &'a [T],
    lse: &'a [T],
}

/// Working memory of one block of queries in the backward pass.
struct Block<'a, T> {
    /// `[time, BLOCK]`
    p: &'a mut [T],
    /// `[time, BLOCK]`
    ds: &'a mut [T],
    /// Q scaled and transposed, then dQ transposed, `[head_dim, BLOCK]`.
    q_t: &'a mut [T],
    /// Gradient of the result, transposed, `[head_dim, BLOCK]`.
    g_t: &'a mut [T],
}

impl<T: Real> Item<'_, T> {
    /// Gradients of head `h`, whose rows in `d_head` are those of Q, K, V at each time in turn.
    fn head_backward(&self, h: usize, after: &After<'_, T>, mut d_head: Columns<'_, T>) {
        let (_, time, heads, d) = self.extents.dims();
        let (width, step) = (heads * d, 3 * heads * d);
        scratch(4 * time * d + 2 * (time + d) * BLOCK, |memory: &mut [T]| {
            let (keys, memory) = memory.split_at_mut(time * d);
            let (values, memory) = memory.split_at_mut(time * d);
            let (d_keys, memory) = memory.split_at_mut(time * d);
            let (d_values, memory) = memory.split_at_mut(time * d);
            let (p, memory) = memory.split_at_mut(time * BLOCK);
            let (ds, memory) = memory.split_at_mut(time * BLOCK);
            let (q_t, g_t) = memory.split_at_mut(d * BLOCK);
            let mut block = Block { p, ds, q_t, g_t };
            gather(keys, self.part(1, h, 0), step, d);
            gather(values, self.part(2, h, 0), step, d);
            let (keys, values) = (Mat::new(keys, d, 1), Mat::new(values, d, 1));
            for first in (0..time).step_by(BLOCK) {
                let rows = BLOCK.min(time - first);
                self.scores_backward(h, (first, rows), after, (keys, values), &mut block);
                let beta = if first == 0 { T::ZERO } else { T::ONE };
                let (p, ds) = (Mat::new(block.p, BLOCK, 1), Mat::new(block.ds, BLOCK, 1));
                let q = Mat::new(self.part(0, h, first), step, 1);
                let g = Mat::new(&after.d_out[first * width + h * d..], width, 1);
                gemm((time, d, rows), self.scale, ds, q, beta, d_keys, d);
                gemm((time, d, rows), T::ONE, p, g, beta, d_values, d);
                let columns = columns(rows);
                gemm((d, columns, time), self.scale, keys.t(), ds, T::ZERO, block.q_t, BLOCK);
                for i in 0..rows {
                    let from = block.q_t[i..].iter().step_by(BLOCK);
                    let row = d_head.row((first + i) * 3);
                    row.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                }
            }
            let pairs = d_keys.chunks_exact(d).zip(d_values.chunks_exact(d));
            for (i, (d_key, d_value)) in pairs.enumerate() {
                copy_row(d_head.row(3 * i + 1), d_key);
                copy_row(d_head.row(3 * i + 2), d_value);
            }
        });
    }

    /// Probabilities of one block of queries, and gradients of the scores before `scale`.
    fn scores_backward(
        &self,
        h: usize,
        (first, rows): (usize, usize),
        after: &After<'_, T>,
        (keys, values): (Mat<'_, T>, Mat<'_, T>),
        block: &mut Block<'_, T>,
    ) {
        let (_, time, heads, d) = self.extents.dims();
        let (width, columns, scale) = (heads * d, columns(rows), self.scale);
        let at = first * width + h * d;
        let (q, g, o) = (self.part(0, h, first), &after.d_out[at..], after.out[at..].chunks(width));
        let (mut lse, mut delta) = ([T::ZERO; BLOCK], [T::ZERO; BLOCK]);
        vectorised!({
            gather_transposed(block.q_t, q, 3 * width, rows, scale * T::of(LOG2_E));
            gather_transposed(block.g_t, g, width, rows, T::ONE);
            for ((delta, o), g) in delta.iter_mut().zip(o).zip(g.chunks(width)).take(rows) {
                *delta = o[..d].iter().zip(&g[..d]).map(|(&o, &g)| o * g).sum();
            }
        });
        let from = after.lse[first * heads + h..].iter().step_by(heads);
        lse.iter_mut().zip(from).for_each(|(to, from)| *to = *from * T::of(LOG2_E));
        let (q_t, g_t) = (Mat::new(block.q_t, BLOCK, 1), Mat::new(block.g_t, BLOCK, 1));
        gemm((time, columns, d), T::ONE, keys, q_t, T::ZERO, block.p, BLOCK);
        gemm((time, columns, d), T::ONE, values, g_t, T::ZERO, block.ds, BLOCK);
        vectorised!({
            let pairs = block.p.chunks_exact_mut(BLOCK).zip(block.ds.chunks_exact_mut(BLOCK));
            for (p, ds) in pairs {
                for j in 0..BLOCK {
                    p[j] = (p[j] - lse[j]).exp2();
                    ds[j] = p[j] * (ds[j] - delta[j]);
                }
            }
        });
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
    let extents = Extents::new(batch, time, heads, d);
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
