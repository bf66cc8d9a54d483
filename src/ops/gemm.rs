//! Matrix products with what usually follows them: bias, GELU, dropout, residual.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::dropout::Dropout;
use super::philox::Mask;
use super::{expect_last, expect_same, op, plans, size};
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::{Real, normal_cdf, vectorised};
use crate::backend::cpu::simd::gemm::{
    Mat, gemm, gemm_sums, gemm_with, rows_per_piece, with_packed,
};
use crate::backend::{Arch, Plan, measured};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::{DType, Error, Result};

/// Adds a row `[n]` to every row of the product.
pub const BIAS: u32 = 1;
/// Keeps the sum before the activation in a second output and applies the exact GELU.
pub const GELU: u32 = 2;
/// Drops elements.
pub const DROPOUT: u32 = 4;
/// Adds a matrix `[m, n]` at the end.
pub const RESIDUAL: u32 = 8;
/// Adds to what the output holds. Not together with a GELU.
pub const ACCUMULATE: u32 = 16;
/// Gives the sums of A's rows, over k, as well: the gradient of a bias. One product only.
pub const SUMS: u32 = 32;
/// Adds to the sums instead of overwriting them.
pub const SUMS_ACCUMULATE: u32 = 64;
/// Multiplies the product by the slope of the GELU at a matrix `[m, n]`.
pub const GELU_SLOPE: u32 = 128;

/// C = epilogue(A B) for each of `batch` products. Inputs: a, b, then those the flags ask for, in
/// the order bias, rng, residual, sum before a GELU. Outputs: c, then the sum before the GELU, or
/// the sums of A's rows `[m]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Gemm {
    /// Rows of C.
    pub m: u32,
    /// Columns of C.
    pub n: u32,
    /// Length of the sums.
    pub k: u32,
    /// Number of products.
    pub batch: u32,
    /// Elements between rows of A.
    pub a_rs: u32,
    /// Elements between columns of A.
    pub a_cs: u32,
    /// Elements between the A of one product and the next.
    pub a_bs: u32,
    /// Elements between rows of B.
    pub b_rs: u32,
    /// Elements between columns of B.
    pub b_cs: u32,
    /// Elements between the B of one product and the next.
    pub b_bs: u32,
    /// [`BIAS`] and the like.
    pub flags: u32,
    /// Which random op of the step.
    pub stream: u32,
    /// Probability of an element being dropped.
    pub probability: f32,
}

impl Gemm {
    /// One dense product: A is `[m, k]`, or `[k, m]` where transposed; B is `[k, n]`, or `[n, k]`.
    pub fn dense((m, n, k): (usize, usize, usize), a_t: bool, b_t: bool, flags: u32) -> Self {
        let steps = |transposed: bool, rows: usize, cols: usize| {
            if transposed { (1, size(rows)) } else { (size(cols), 1) }
        };
        let ((a_rs, a_cs), (b_rs, b_cs)) = (steps(a_t, m, k), steps(b_t, k, n));
        let (m, n, k) = (size(m), size(n), size(k));
        Self {
            m,
            n,
            k,
            batch: 1,
            a_rs,
            a_cs,
            a_bs: 0,
            b_rs,
            b_cs,
            b_bs: 0,
            flags,
            stream: 0,
            probability: 0.0,
        }
    }

    /// True for what a vendor's library computes, nothing following the product, unless the engine was
    /// measured to be faster and the user has no wish.
    fn suits_vendor(&self, arch: &Arch, dtype: DType) -> bool {
        let measured = || {
            let dims = [self.m, self.n, self.k];
            measured::vendor_is_faster(arch, self.layout()?, dtype, dims)
        };
        self.flags & !ACCUMULATE == 0 && (arch.wishes.wants_vendor() || measured().unwrap_or(true))
    }
}

op!(Gemm, "gemm", |op, arch, kernel| op.plan(arch, kernel), vendor = Gemm::suits_vendor);

/// Multiplications above which one product is shared among threads.
const SHARED_WORK: usize = 8_000_000;

/// Optional operands of one launch.
struct Epilogue<'a, T> {
    bias: Option<&'a [T]>,
    mask: Option<Mask<'a>>,
    residual: Option<&'a [T]>,
    /// Where the slope of a GELU is taken.
    slope_at: Option<&'a [T]>,
}

impl<'a, T: Real> Epilogue<'a, T> {
    fn new(op: &Gemm, io: &HostIo<'a>) -> Result<Self> {
        let (n, total) = (op.n as usize, (op.batch * op.m * op.n) as usize);
        let mut next = 2;
        let mut take = |flag: u32| {
            let index = (op.flags & flag != 0).then_some(next);
            next += usize::from(index.is_some());
            index
        };
        let (bias, rng, residual) = (take(BIAS), take(DROPOUT), take(RESIDUAL));
        let slope_at = take(GELU_SLOPE);
        Ok(Self {
            bias: bias.map(|i| io.input_n(i, n)).transpose()?,
            mask: rng.map(|i| io.input::<i32>(i)).transpose()?.map(|state| Mask {
                state,
                stream: op.stream,
                probability: op.probability,
            }),
            residual: residual.map(|i| io.input_n(i, total)).transpose()?,
            slope_at: slope_at.map(|i| io.input_n(i, total)).transpose()?,
        })
    }

    /// Finishes `c`, whole rows of `n` that begin at element `first` of the output.
    fn finish(&self, n: usize, first: usize, c: &mut [T], before_gelu: Option<&mut [T]>) {
        match (self.bias, before_gelu) {
            (Some(bias), Some(before)) => vectorised!({
                for (c, before) in c.chunks_exact_mut(n).zip(before.chunks_exact_mut(n)) {
                    for ((c, before), &b) in c.iter_mut().zip(before).zip(bias) {
                        *before = *c + b;
                        *c = *before * normal_cdf(*before);
                    }
                }
            }),
            (Some(bias), None) => vectorised!({
                for row in c.chunks_exact_mut(n) {
                    row.iter_mut().zip(bias).for_each(|(c, &b)| *c += b);
                }
            }),
            (None, Some(before)) => vectorised!({
                for (c, before) in c.iter_mut().zip(before) {
                    *before = *c;
                    *c = *c * normal_cdf(*c);
                }
            }),
            (None, None) => {}
        }
        if let Some(at) = self.slope_at {
            let at = &at[first..first + c.len()];
            vectorised!(c.iter_mut().zip(at).for_each(|(c, &x)| *c *= x.gelu_slope()));
        }
        if let Some(mask) = &self.mask {
            mask.apply(first, c, |_, c, factors| {
                c.iter_mut().zip(factors).for_each(|(c, &factor)| *c *= factor);
            });
        }
        if let Some(residual) = self.residual {
            let residual = &residual[first..first + c.len()];
            vectorised!(c.iter_mut().zip(residual).for_each(|(c, &r)| *c += r));
        }
    }
}

impl HostKernel for Gemm {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (m, n, k) = (self.m as usize, self.n as usize, self.k as usize);
        let epilogue = Epilogue::<T>::new(self, io)?;
        let (a, b) = (io.input::<T>(0)?, io.input::<T>(1)?);
        let c = io.output_n::<T>(0, self.batch as usize * m * n)?;
        let mut before = match self.flags & GELU {
            0 => None,
            _ => Some(io.output_n::<T>(1, c.len())?),
        };
        if m == 0 || n == 0 {
            return Ok(());
        }
        let sums = match self.flags & SUMS {
            0 => None,
            _ => Some(io.output_n::<T>(1, m)?),
        };
        let beta = if self.flags & ACCUMULATE != 0 { T::ONE } else { T::ZERO };
        let left = |batch: usize, row: usize| {
            let first = batch * self.a_bs as usize + row * self.a_rs as usize;
            Mat::new(&a[first..], self.a_rs as usize, self.a_cs as usize)
        };
        let right = |batch: usize| {
            Mat::new(&b[batch * self.b_bs as usize..], self.b_rs as usize, self.b_cs as usize)
        };
        if let Some(sums) = sums {
            if self.flags & SUMS_ACCUMULATE == 0 {
                sums.fill(T::ZERO);
            }
            with_sums((m, n, k), left(0, 0), right(0), beta, c, sums);
            epilogue.finish(n, 0, c, None);
            return Ok(());
        }
        // Many small products are shared out whole.
        if self.batch > 1 && before.is_none() && m * n * k < SHARED_WORK {
            c.par_chunks_mut(m * n).enumerate().for_each(|(i, c)| {
                gemm((m, n, k), T::ONE, left(i, 0), right(i), beta, c, n);
                epilogue.finish(n, i * m * n, c, None);
            });
            return Ok(());
        }
        let per = rows_per_piece::<T>((m, n, k), self.a_rs == 1);
        for (batch, c) in c.chunks_mut(m * n).enumerate() {
            with_packed((m, n, k), right(batch), |right| {
                let piece = |i: usize, c: &mut [T], before: Option<&mut [T]>| {
                    let row = i * per;
                    gemm_with((c.len() / n, n, k), T::ONE, left(batch, row), right, beta, c, n);
                    epilogue.finish(n, (batch * m + row) * n, c, before);
                };
                let pieces = c.par_chunks_mut(per * n).enumerate();
                match before.as_deref_mut() {
                    None => pieces.for_each(|(i, c)| piece(i, c, None)),
                    Some(before) => pieces
                        .zip(before[batch * m * n..][..m * n].par_chunks_mut(per * n))
                        .for_each(|((i, c), before)| piece(i, c, Some(before))),
                }
            });
        }
        Ok(())
    }
}

/// c = a b + beta c, of a single product, and sums += the sums over k of each row of A.
fn with_sums<T: Real>(
    (m, n, k): (usize, usize, usize),
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    beta: T,
    c: &mut [T],
    sums: &mut [T],
) {
    let per = rows_per_piece::<T>((m, n, k), a.rs == 1);
    with_packed((m, n, k), b, |b| {
        let pieces = c.par_chunks_mut(per * n).zip(sums.par_chunks_mut(per)).enumerate();
        pieces.for_each(|(i, (c, sums))| {
            let a = Mat::new(&a.data[i * per * a.rs..], a.rs, a.cs);
            gemm_sums((sums.len(), n, k), a, b, beta, c, sums);
        });
    });
}

/// sums += the sums of the columns of x, whose `rows` rows are `step` apart. Columns, not rows, are
/// shared out: no partial sums to store, one order of addition.
fn add_columns<T: Real>(x: &[T], step: usize, rows: usize, sums: &mut [T]) {
    // Long pieces of a row: what is far away then comes as a stream.
    const MOST: usize = 256;
    let each = (sums.len() / 2).next_multiple_of(64).clamp(64, MOST);
    sums.par_chunks_mut(each).enumerate().for_each(|(i, sums)| {
        let first = i * each;
        vectorised!({
            let mut total = [T::ZERO; MOST];
            for row in x.chunks(step).take(rows) {
                let row = &row[first..first + sums.len()];
                total.iter_mut().zip(row).for_each(|(t, &x)| *t += x);
            }
            sums.iter_mut().zip(total).for_each(|(s, t)| *s += t);
        });
    });
}

/// sums (+)= the columns' sums of a matrix `[rows, cols]`: the gradient of a bias. Input: x;
/// output: sums `[cols]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct ColumnSums {
    /// Rows of x.
    pub rows: u32,
    /// Columns of x.
    pub cols: u32,
    /// Add to the output instead of overwriting it.
    pub accumulate: u32,
}

op!(ColumnSums, "column_sums", |op, arch, kernel| { op.plan(arch, kernel) });

impl ColumnSums {
    /// Strips of columns, cut into ranges of rows that fill the machine; a second stage adds up
    /// what several ranges found (`kernels/reduce.cu`).
    fn plan(&self, arch: &Arch, kernel: &str) -> Plan {
        let (rows, cols, pack) = (self.rows as usize, self.cols as usize, plans::pack(kernel));
        let lanes = match cols.div_ceil(pack) {
            0..=8 => 8,
            9..=16 => 16,
            _ => 32,
        };
        let strips = cols.div_ceil(lanes * pack).max(1);
        // A thread has 4 rows at least.
        let most = rows.div_ceil(4 * 256 / lanes).max(1);
        let ranges = (4 * arch.units as usize).div_ceil(strips).clamp(1, most);
        let plan = Plan::new(kernel, [size(strips), size(ranges), 1], 256);
        if ranges == 1 { plan } else { plans::add_partials(plan, kernel, ranges, cols) }
    }
}

impl HostKernel for ColumnSums {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (rows, cols) = (self.rows as usize, self.cols as usize);
        let x = io.input_n::<T>(0, rows * cols)?;
        let sums = io.output_n::<T>(0, cols)?;
        if self.accumulate == 0 {
            sums.fill(T::ZERO);
        }
        add_columns(x, cols, rows, sums);
        Ok(())
    }
}

/// What follows a linear layer's product.
#[derive(Debug, Clone, Default)]
pub struct After<'a> {
    /// `[out]`, added to every row.
    pub bias: Option<&'a Var>,
    /// Applies the exact GELU.
    pub gelu: bool,
    /// Drops elements with this probability, in training.
    pub dropout: f32,
    /// `[.., out]`, added last.
    pub residual: Option<&'a Var>,
}

/// x Wᵀ with `x` `[.., in]` and `weight` `[out, in]`, then [`After`]; gives `[.., out]`.
///
/// # Errors
/// [`Error::Shape`] when operands do not fit, or GELU is asked for together with dropout or a
/// residual.
pub fn linear(tape: &Tape<'_>, x: &Var, weight: &Var, after: After<'_>) -> Result<Var> {
    let [out, inner] = *weight.dims() else {
        return Err(Error::shape("linear", format!("a weight of shape {}", weight.shape())));
    };
    expect_last("linear", x.dims(), inner)?;
    if after.gelu && (after.dropout > 0.0 || after.residual.is_some()) {
        return Err(Error::shape("linear", "GELU cannot be followed by dropout or a residual"));
    }
    let rows = x.tensor().numel() / inner;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(out);
    if let Some(bias) = after.bias {
        expect_same("linear", bias.dims(), &[out])?;
    }
    if let Some(residual) = after.residual {
        expect_same("linear", residual.dims(), &shape)?;
    }
    let y = tape.empty(shape.as_slice(), x.dtype(), "linear")?;
    let before =
        if after.gelu { Some(tape.empty(shape.as_slice(), x.dtype(), "pre_gelu")?) } else { None };
    let rng = tape.rng().filter(|_| tape.is_training() && after.dropout > 0.0).cloned();
    let mut op = Gemm::dense((rows, out, inner), false, true, 0);
    let mut inputs = vec![x.tensor(), weight.tensor()];
    let mut outputs = vec![&y];
    for (present, flag, tensor) in [
        (after.bias.is_some(), BIAS, after.bias.map(Var::tensor)),
        (after.gelu, GELU, None),
        (rng.is_some(), DROPOUT, rng.as_ref()),
        (after.residual.is_some(), RESIDUAL, after.residual.map(Var::tensor)),
    ] {
        op.flags |= if present { flag } else { 0 };
        inputs.extend(tensor);
    }
    if rng.is_some() {
        op.stream = tape.next_stream();
        op.probability = after.dropout;
    }
    outputs.extend(before.as_ref());
    tape.run(op, &inputs, &outputs)?;

    let saved = Saved {
        x: x.clone(),
        weight: weight.clone(),
        bias: after.bias.cloned(),
        residual: after.residual.cloned(),
        rng,
        before,
        op,
    };
    let operands: Vec<&Var> =
        [Some(x), Some(weight), after.bias, after.residual].into_iter().flatten().collect();
    Ok(tape.push(y, &operands, move |grads, dy| saved.backward(grads, dy)))
}

/// What a linear layer's gradient needs.
struct Saved {
    x: Var,
    weight: Var,
    bias: Option<Var>,
    residual: Option<Var>,
    rng: Option<Tensor>,
    before: Option<Tensor>,
    op: Gemm,
}

impl Saved {
    fn backward(self, grads: &mut crate::tape::Grads<'_, '_>, dy: Tensor) -> Result<()> {
        let (rows, out, inner) = (self.op.m as usize, self.op.n as usize, self.op.k as usize);
        let mut dz = dy.clone();
        if let Some(before) = &self.before {
            dz = grads.tape().empty(*dy.shape(), dy.dtype(), "grad.pre_gelu")?;
            super::elementwise::gelu_backward(grads.tape(), &dy, before, &dz)?;
        }
        if let Some(rng) = &self.rng {
            dz = grads.tape().empty(*dy.shape(), dy.dtype(), "grad.dropout")?;
            let Gemm { stream, probability, .. } = self.op;
            let op = Dropout { n: size(dy.numel()), stream, probability, accumulate: 0 };
            grads.tape().run(op, &[&dy, rng], &[&dz])?;
        }
        if let Some(residual) = &self.residual {
            grads.give(residual, dy)?;
        } else {
            drop(dy);
        }
        weight_gradients(grads, &dz, &self.x, &self.weight, self.bias.as_ref())?;
        if let Some(to) = grads.target(&self.x)? {
            let flags = if to.accumulate { ACCUMULATE } else { 0 };
            let op = Gemm::dense((rows, inner, out), false, false, flags);
            grads.tape().run(op, &[&dz, self.weight.tensor()], &[&to.tensor])?;
        }
        Ok(())
    }
}

/// Adds the gradients of a linear layer's weight and bias, from that of its result: one pass over
/// `dz` for both.
pub(super) fn weight_gradients(
    grads: &mut crate::tape::Grads<'_, '_>,
    dz: &Tensor,
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
) -> Result<()> {
    let (out, inner) = (weight.dims()[0], weight.dims()[1]);
    let rows = dz.numel() / out.max(1);
    let for_bias = bias.map(|bias| grads.target(bias)).transpose()?.flatten();
    let Some(for_weight) = grads.target(weight)? else {
        if let Some(to) = for_bias {
            let accumulate = to.accumulate.into();
            let op = ColumnSums { rows: size(rows), cols: size(out), accumulate };
            grads.tape().run(op, &[dz], &[&to.tensor])?;
        }
        return Ok(());
    };
    let mut flags = if for_weight.accumulate { ACCUMULATE } else { 0 };
    let mut outputs = vec![&for_weight.tensor];
    if let Some(to) = &for_bias {
        flags |= if to.accumulate { SUMS | SUMS_ACCUMULATE } else { SUMS };
        outputs.push(&to.tensor);
    }
    let op = Gemm::dense((out, inner, rows), true, false, flags);
    grads.tape().run(op, &[dz, x.tensor()], &outputs)
}

/// A B for each of a batch of matrices `[batch, m, k]` and `[batch, k, n]`, either transposed.
///
/// # Errors
/// [`Error::Shape`] when operands do not fit.
pub fn matmul(tape: &Tape<'_>, a: &Var, b: &Var, a_t: bool, b_t: bool) -> Result<Var> {
    let (&[batch, a0, a1], &[b_batch, b0, b1]) = (a.dims(), b.dims()) else {
        return Err(Error::shape("matmul", format!("{} by {}", a.shape(), b.shape())));
    };
    let (m, k) = if a_t { (a1, a0) } else { (a0, a1) };
    let (inner, n) = if b_t { (b1, b0) } else { (b0, b1) };
    if inner != k || b_batch != batch {
        return Err(Error::shape("matmul", format!("{} by {}", a.shape(), b.shape())));
    }
    let product = move |dims, a_t, b_t, flags| {
        let (m, n, k): (usize, usize, usize) = dims;
        let dense = Gemm::dense(dims, a_t, b_t, flags);
        Gemm { batch: size(batch), a_bs: size(m * k), b_bs: size(k * n), ..dense }
    };
    let c = tape.empty([batch, m, n], a.dtype(), "matmul")?;
    tape.run(product((m, n, k), a_t, b_t, 0), &[a.tensor(), b.tensor()], &[&c])?;
    let (left, right) = (a.clone(), b.clone());
    Ok(tape.push(c, &[a, b], move |grads, dc| {
        let flags = |accumulate: bool| if accumulate { ACCUMULATE } else { 0 };
        if let Some(to) = grads.target(&left)? {
            // dA = dC Bᵀ, or its transpose B dCᵀ where A came transposed.
            let flags = flags(to.accumulate);
            let b = right.tensor();
            if a_t {
                let op = product((k, m, n), b_t, true, flags);
                grads.tape().run(op, &[b, &dc], &[&to.tensor])?;
            } else {
                let op = product((m, k, n), false, !b_t, flags);
                grads.tape().run(op, &[&dc, b], &[&to.tensor])?;
            }
        }
        if let Some(to) = grads.target(&right)? {
            let flags = flags(to.accumulate);
            let a = left.tensor();
            if b_t {
                let op = product((n, k, m), true, a_t, flags);
                grads.tape().run(op, &[&dc, a], &[&to.tensor])?;
            } else {
                let op = product((k, n, m), !a_t, false, flags);
                grads.tape().run(op, &[a, &dc], &[&to.tensor])?;
            }
        }
        Ok(())
    }))
}
