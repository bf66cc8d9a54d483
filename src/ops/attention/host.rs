//! Attention on the host's processor.

use std::f64::consts::{LN_2, LOG2_E};

use rayon::prelude::*;

use super::{Attention, AttentionBackward, Extents};
use crate::Result;
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::{Real, vectorised};
use crate::backend::cpu::scratch::scratch;
use crate::backend::cpu::simd::columns::{Columns, for_columns, for_columns2};
use crate::backend::cpu::simd::gemm::{COLUMNS, Mat, Then, gemm, gemm_then};
use crate::backend::cpu::simd::packing::copy_rows;
use crate::backend::cpu::simd::transpose::transpose;

// Scores are in units of ln 2, so that an exponential is a power of 2: queries are scaled so before they
// meet the keys.

/// Queries that are taken together: scores are kept transposed, `[keys, BLOCK]`, so that the
/// softmax runs down the columns, one query a vector lane, and so that they are at once the packed
/// right-hand side of the next product.
const BLOCK: usize = 32;

/// Where no score can be larger than this, by the lengths of queries and keys, powers of 2 need no
/// largest score taken from them first: their sums stay far from both ends of f32.
const SAFE: f64 = 30.0;

/// Queries whose gradients are worked out together.
const STRIPE: usize = 256;

/// Keys that are taken together there: whole tiles of every instruction set (6 and 14 rows), and their
/// scores of a stripe, twice, stay in the second-level cache.
const KEYS: usize = 42;

/// Transposes rows of `d` into columns of `to` `[d, columns]`; columns past the last row become zero.
fn to_columns<T: Real>((to, columns): (&mut [T], usize), from: &[T], d: usize) {
    let rows = from.len() / d;
    transpose((rows, d), (from, d), (to, columns));
    if rows < columns {
        to.chunks_exact_mut(columns).for_each(|row| row[rows..].fill(T::ZERO));
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
            let item = Item { qkv: item, extents: &self.0, scale };
            for_columns2((out, width, d), (lse, heads, 1), |h, out, lse| item.head(h, out, lse));
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

    /// Results of head `h`, whose columns `out` and `lse` are.
    fn head(&self, h: usize, mut out: Columns<'_, T>, mut lse: Columns<'_, T>) {
        let (_, time, heads, d) = self.extents.dims();
        let step = 3 * heads * d;
        scratch((3 * d + BLOCK) * time + 2 * d * BLOCK, |memory: &mut [T]| {
            let (queries, memory) = memory.split_at_mut(time * d);
            let (keys, memory) = memory.split_at_mut(time * d);
            let (values, memory) = memory.split_at_mut(time * d);
            let (p, memory) = memory.split_at_mut(time * BLOCK);
            let (q, y) = memory.split_at_mut(d * BLOCK);
            for (part, to) in [&mut *queries, keys, values].into_iter().enumerate() {
                copy_rows((to, d), (self.part(part, h, 0), step), d);
            }
            let scale = self.scale * T::of(LOG2_E);
            let longest = vectorised!(longest_row(keys, d));
            let (keys, values) = (Mat::new(keys, d, 1), Mat::new(values, d, 1));
            for (i, queries) in queries.chunks(BLOCK * d).enumerate() {
                let rows = queries.len() / d;
                let columns = rows.next_multiple_of(COLUMNS);
                to_columns((q, BLOCK), queries, d);
                vectorised!(q.iter_mut().for_each(|x| *x *= scale));
                let (mut sums, mut tops) = ([T::ZERO; BLOCK], [T::ZERO; BLOCK]);
                let dims = (time, columns, d);
                if longest * vectorised!(longest_column(q)) < T::of(SAFE * SAFE) {
                    let then = Then::Power { totals: Some(&mut sums) };
                    gemm_then(dims, keys, (q, &tops), p, BLOCK, then);
                } else {
                    gemm(dims, T::ONE, keys, Mat::new(q, BLOCK, 1), T::ZERO, p, BLOCK);
                    vectorised!(softmax_columns(p, &mut sums, &mut tops));
                }
                gemm(
                    (d, columns, time),
                    T::ONE,
                    values.t(),
                    Mat::new(p, BLOCK, 1),
                    T::ZERO,
                    y,
                    BLOCK,
                );
                vectorised!({
                    for j in 0..BLOCK {
                        tops[j] = tops[j] * T::of(LN_2) + sums[j].ln();
                        sums[j] = T::ONE / sums[j];
                    }
                    for row in y.chunks_exact_mut(BLOCK) {
                        row.iter_mut().zip(&sums).for_each(|(x, &inverse)| *x *= inverse);
                    }
                });
                transpose((d, rows), (y, BLOCK), (q, d));
                out.put(i * BLOCK, 1, &q[..rows * d]);
                lse.put(i * BLOCK, 1, &tops[..rows]);
            }
        });
    }
}

/// The largest squared length of a row of `d`.
#[inline(always)]
fn longest_row<T: Real>(x: &[T], d: usize) -> T {
    let length = |row: &[T]| row.iter().fold(T::ZERO, |sum, &x| x.fma(x, sum));
    x.chunks_exact(d).map(length).fold(T::ZERO, not_smaller)
}

/// The largest squared length of a column of `[head_dim, BLOCK]`.
#[inline(always)]
fn longest_column<T: Real>(x: &[T]) -> T {
    let mut lengths = [T::ZERO; BLOCK];
    for row in x.chunks_exact(BLOCK) {
        lengths.iter_mut().zip(row).for_each(|(sum, &x)| *sum = x.fma(x, *sum));
    }
    lengths.into_iter().fold(T::ZERO, not_smaller)
}

/// The larger one, or NaN where there is one.
#[inline(always)]
fn not_smaller<T: Real>(a: T, b: T) -> T {
    // a * 0 is 0, or NaN where a is no number.
    if a > b { a } else { b + a * T::ZERO }
}

/// Replaces each column of `p` `[time, BLOCK]` by its powers of 2 relative to its largest, `tops`;
/// gives their sums.
#[inline(always)]
fn softmax_columns<T: Real>(p: &mut [T], sums: &mut [T; BLOCK], tops: &mut [T; BLOCK]) {
    *tops = [T::of(f64::NEG_INFINITY); BLOCK];
    for row in p.chunks_exact(BLOCK) {
        for j in 0..BLOCK {
            tops[j] = tops[j].larger(row[j]);
        }
    }
    for row in p.chunks_exact_mut(BLOCK) {
        for j in 0..BLOCK {
            row[j] = (row[j] - tops[j]).exp2();
            sums[j] += row[j];
        }
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

/// A stripe of queries in the backward pass. Scores are `[keys, columns]`, as in the forward pass.
struct Stripe<'a, T> {
    rows: usize,
    /// `rows` rounded up to whole vectors; what is past the last row counts nothing.
    columns: usize,
    /// `[rows, head_dim]`
    q: &'a mut [T],
    /// Gradient of the result, `[rows, head_dim]`.
    g: &'a mut [T],
    /// `[head_dim, columns]`, scaled.
    q_t: &'a mut [T],
    /// `[head_dim, columns]`
    g_t: &'a mut [T],
    /// Gradient of Q, `[head_dim, columns]`.
    dq_t: &'a mut [T],
    /// Log-sum-exps in units of ln 2, negative, `[columns]`.
    minus_lse: &'a mut [T],
    /// Sums of result times gradient, negative, `[columns]`.
    minus_delta: &'a mut [T],
}

impl<'a, T: Real> Stripe<'a, T> {
    /// Elements of working memory for `rows` queries.
    fn size(rows: usize, d: usize) -> usize {
        2 * rows * d + (3 * d + 2) * rows.next_multiple_of(COLUMNS)
    }

    /// Queries `first ..` of head `h`; gives the memory that is left as well.
    fn load(
        item: &Item<'_, T>,
        after: &After<'_, T>,
        (h, first, rows): (usize, usize, usize),
        memory: &'a mut [T],
    ) -> (Self, &'a mut [T]) {
        let (_, _, heads, d) = item.extents.dims();
        let (width, columns) = (heads * d, rows.next_multiple_of(COLUMNS));
        let (q, memory) = memory.split_at_mut(rows * d);
        let (g, memory) = memory.split_at_mut(rows * d);
        let (q_t, memory) = memory.split_at_mut(d * columns);
        let (g_t, memory) = memory.split_at_mut(d * columns);
        let (dq_t, memory) = memory.split_at_mut(d * columns);
        let (minus_lse, memory) = memory.split_at_mut(columns);
        let (minus_delta, memory) = memory.split_at_mut(columns);
        copy_rows((q, d), (item.part(0, h, first), 3 * width), d);
        copy_rows((g, d), (&after.d_out[first * width + h * d..], width), d);
        to_columns((q_t, columns), q, d);
        to_columns((g_t, columns), g, d);
        let out = &mut dq_t[..rows * d];
        copy_rows((out, d), (&after.out[first * width + h * d..], width), d);
        let lses = after.lse[first * heads + h..].iter().step_by(heads);
        let scale = item.scale * T::of(LOG2_E);
        vectorised!({
            for (delta, (o, g)) in
                minus_delta.iter_mut().zip(out.chunks_exact(d).zip(g.chunks_exact(d)))
            {
                *delta = -dot(o, g);
            }
            minus_lse.iter_mut().zip(lses).for_each(|(to, from)| *to = *from * T::of(-LOG2_E));
            q_t.iter_mut().for_each(|x| *x *= scale);
        });
        // Whatever the memory held must not become a NaN.
        minus_lse[rows..].fill(T::ZERO);
        minus_delta[rows..].fill(T::ZERO);
        (Self { rows, columns, q, g, q_t, g_t, dq_t, minus_lse, minus_delta }, memory)
    }
}

/// Sum of products, eight sums side by side.
#[inline(always)]
fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::ZERO; 8];
    let (a, b) = (a.chunks(8), b.chunks(8));
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (&a, &b))| *sum = a.fma(b, *sum));
    }
    sums.into_iter().sum()
}

impl<T: Real> Item<'_, T> {
    /// Gradients of head `h`, whose rows in `d_head` are those of Q, K, V at each time in turn.
    fn head_backward(&self, h: usize, after: &After<'_, T>, mut d_head: Columns<'_, T>) {
        let (_, time, heads, d) = self.extents.dims();
        let step = 3 * heads * d;
        // Stripes of nearly equal length.
        let each = time.div_ceil(time.div_ceil(STRIPE)).next_multiple_of(COLUMNS);
        let block = KEYS * each;
        scratch(4 * time * d + Stripe::<T>::size(each, d) + 2 * block, |memory: &mut [T]| {
            let (keys, memory) = memory.split_at_mut(time * d);
            let (values, memory) = memory.split_at_mut(time * d);
            let (d_keys, memory) = memory.split_at_mut(time * d);
            let (d_values, memory) = memory.split_at_mut(time * d);
            copy_rows((keys, d), (self.part(1, h, 0), step), d);
            copy_rows((values, d), (self.part(2, h, 0), step), d);
            for first in (0..time).step_by(each) {
                let rows = each.min(time - first);
                let (mut stripe, memory) = Stripe::load(self, after, (h, first, rows), memory);
                let (p, ds) = memory.split_at_mut(block);
                let add = first > 0;
                for from in (0..time * d).step_by(KEYS * d) {
                    let part = from..(from + KEYS * d).min(time * d);
                    let to = (&mut d_keys[part.clone()], &mut d_values[part.clone()]);
                    let of = (&keys[part.clone()], &values[part]);
                    self.keys_backward(&mut stripe, of, to, (from > 0, add), (p, ds));
                }
                transpose((d, rows), (stripe.dq_t, stripe.columns), (stripe.q, d));
                d_head.put(3 * first, 3, stripe.q);
            }
            d_head.put(1, 3, d_keys);
            d_head.put(2, 3, d_values);
        });
    }

    /// What some keys and values give to the gradients of a stripe, and it to theirs; `add_q` and
    /// `add`: to what is there. `p`, `ds`: room for their scores.
    fn keys_backward(
        &self,
        stripe: &mut Stripe<'_, T>,
        (keys, values): (&[T], &[T]),
        (d_keys, d_values): (&mut [T], &mut [T]),
        (add_q, add): (bool, bool),
        (p, ds): (&mut [T], &mut [T]),
    ) {
        let (d, columns, rows) = (self.extents.head_dim as usize, stripe.columns, stripe.rows);
        let (count, beta) = (keys.len() / d, |add| if add { T::ONE } else { T::ZERO });
        let keys = Mat::new(keys, d, 1);
        let (dims, values) = ((count, columns, d), Mat::new(values, d, 1));
        let b = (&*stripe.q_t, &*stripe.minus_lse);
        gemm_then(dims, keys, b, p, columns, Then::Power { totals: None });
        let b = (&*stripe.g_t, &*stripe.minus_delta);
        gemm_then(dims, values, b, ds, columns, Then::Slope { factor: p });
        let (p, ds) = (Mat::new(p, columns, 1), Mat::new(ds, columns, 1));
        let (q, g) = (Mat::new(stripe.q, d, 1), Mat::new(stripe.g, d, 1));
        gemm((count, d, rows), T::ONE, p, g, beta(add), d_values, d);
        gemm((count, d, rows), self.scale, ds, q, beta(add), d_keys, d);
        let dims = (d, columns, count);
        gemm(dims, self.scale, keys.t(), ds, beta(add_q), stripe.dq_t, columns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{Cpu, Lent, LentMut};
    use crate::data::rng::Rng;

    /// Where scores could overflow, the largest is taken from them first.
    #[test]
    fn large_scores_match_f64() {
        let (batch, time, heads, d) = (2, 45, 3, 16);
        let mut rng = Rng::new(5, 0);
        let qkv: Vec<f32> =
            (0..batch * time * 3 * heads * d).map(|_| rng.normal() as f32).collect();
        let cpu = Cpu::new(2, 1 << 30).expect("starts");
        for scale in [1.0f32, 30.0] {
            let qkv: Vec<f32> = qkv.iter().map(|x| x * scale).collect();
            let wide: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
            let op = Attention::new(batch, time, heads, d);
            let (n, stats) = (batch * time * heads * d, batch * time * heads);
            let (mut out, mut lse) = (vec![0.0f32; n], vec![0.0f32; stats]);
            let outputs = &mut [LentMut::F32(&mut out), LentMut::F32(&mut lse)];
            cpu.run_lent(&op, &[Lent::F32(&qkv)], outputs).expect("runs");
            let (mut want, mut want_lse) = (vec![0.0f64; n], vec![0.0f64; stats]);
            let outputs = &mut [LentMut::F64(&mut want), LentMut::F64(&mut want_lse)];
            cpu.run_lent(&op, &[Lent::F64(&wide)], outputs).expect("runs");
            let worst = |found: &[f32], want: &[f64]| {
                let of = |(&x, &y): (&f32, &f64)| (f64::from(x) - y).abs() / (1.0 + y.abs());
                found.iter().zip(want).map(of).fold(0.0, f64::max)
            };
            // Scores of a thousand have an error of their own, which exponentials make relative.
            let allowed = if scale > 1.0 { 2e-3 } else { 1e-5 };
            assert!(worst(&out, &want) < allowed, "{scale}: {}", worst(&out, &want));
            assert!(worst(&lse, &want_lse) < allowed, "{scale}: {}", worst(&lse, &want_lse));
        }
    }
}
