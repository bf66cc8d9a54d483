//! Plain matrix products as a vendor's library wants them: column-major, with leading dimensions.

use crate::backend::Io;
use crate::ops::gemm::{ACCUMULATE, Gemm};
use crate::{DType, Error, Result};

/// One operand of a column-major product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Address of the first element.
    pub address: u64,
    /// Type.
    pub dtype: DType,
    /// The library is to transpose it.
    pub transposed: bool,
    /// Elements between columns.
    pub stride: usize,
    /// Elements between the matrices of a batch.
    pub batch_stride: usize,
}

/// C `[rows, cols]` = A B (+ C), column-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Rows of C.
    pub rows: usize,
    /// Columns of C.
    pub cols: usize,
    /// Length of the sums.
    pub inner: usize,
    /// Number of products.
    pub batch: usize,
    /// Left operand `[rows, inner]`.
    pub a: Matrix,
    /// Right operand `[inner, cols]`.
    pub b: Matrix,
    /// Result.
    pub c: Matrix,
    /// Add to what C holds.
    pub accumulate: bool,
}

impl Product {
    /// The column-major product that gives the row-major one of `op`: Cᵀ = Bᵀ Aᵀ. None for an
    /// operand without unit stride along either axis.
    ///
    /// # Errors
    /// [`Error::Shape`] when operands are missing.
    pub fn of(op: &Gemm, io: Io<'_>) -> Result<Option<Self>> {
        let ([a, b, ..], [c, ..]) = (io.inputs, io.outputs) else {
            return Err(Error::shape("gemm", "operands are missing"));
        };
        let (m, n, k) = (op.m as usize, op.n as usize, op.k as usize);
        // A row-major matrix is its transpose's column-major storage.
        let matrix = |address, dtype, (rs, cs, bs): (u32, u32, u32), rows: usize, cols: usize| {
            let (rs, cs) = (rs as usize, cs as usize);
            let (transposed, stride) = match (rs, cs) {
                (_, 1) => (false, rs.max(cols)),
                (1, _) => (true, cs.max(rows)),
                _ => return None,
            };
            Some(Matrix { address, dtype, transposed, stride, batch_stride: bs as usize })
        };
        let left = matrix(b.address, b.dtype, (op.b_rs, op.b_cs, op.b_bs), k, n);
        let right = matrix(a.address, a.dtype, (op.a_rs, op.a_cs, op.a_bs), m, k);
        let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
        Ok(Some(Self {
            rows: n,
            cols: m,
            inner: k,
            batch: op.batch as usize,
            a: left,
            b: right,
            c: Matrix {
                address: c.address,
                dtype: c.dtype,
                transposed: false,
                stride: n,
                batch_stride: m * n,
            },
            accumulate: op.flags & ACCUMULATE != 0,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Rng;
    use crate::tensor::{Shape, View};

    /// What a library does with a product, on the host.
    fn library(p: &Product, a: &[f64], b: &[f64], c: &mut [f64]) {
        let at = |x: &[f64], m: &Matrix, i: usize, row: usize, col: usize| {
            let (row, col) = if m.transposed { (col, row) } else { (row, col) };
            x[i * m.batch_stride + col * m.stride + row]
        };
        for i in 0..p.batch {
            for col in 0..p.cols {
                for row in 0..p.rows {
                    let terms =
                        (0..p.inner).map(|k| at(a, &p.a, i, row, k) * at(b, &p.b, i, k, col));
                    let to = &mut c[i * p.c.batch_stride + col * p.c.stride + row];
                    *to = terms.sum::<f64>() + if p.accumulate { *to } else { 0.0 };
                }
            }
        }
    }

    #[test]
    fn a_library_gives_the_row_major_product() {
        let mut rng = Rng::new(5, 1);
        for case in 0..200 {
            let (m, n, k) = (1 + rng.below(7), 1 + rng.below(7), 1 + rng.below(7));
            let (a_t, b_t, batch) = (case % 2 == 0, case % 3 == 0, 1 + rng.below(3));
            let flags = if case % 5 == 0 { ACCUMULATE } else { 0 };
            let dense = Gemm::dense((m, n, k), a_t, b_t, flags);
            let size = |n: usize| u32::try_from(n).expect("small");
            let op = Gemm { batch: size(batch), a_bs: size(m * k), b_bs: size(k * n), ..dense };
            let mut draw = |n: usize| (0..n).map(|_| rng.normal()).collect::<Vec<f64>>();
            let (a, b, mut c) = (draw(batch * m * k), draw(batch * k * n), draw(batch * m * n));
            let view = |n: usize| View {
                address: 0,
                shape: Shape::from([n]),
                strides: Shape::from([1]),
                dtype: DType::F32,
            };
            let inputs = [view(a.len()), view(b.len())];
            let outputs = [view(c.len())];
            let io = Io { inputs: &inputs, outputs: &outputs };
            let product = Product::of(&op, io).expect("operands").expect("unit strides");
            let before = c.clone();
            library(&product, &b, &a, &mut c);
            for i in 0..batch {
                for row in 0..m {
                    for col in 0..n {
                        let term = |l: usize| {
                            let x = a[i * m * k + row * op.a_rs as usize + l * op.a_cs as usize];
                            x * b[i * k * n + l * op.b_rs as usize + col * op.b_cs as usize]
                        };
                        let at = (i * m + row) * n + col;
                        let want = (0..k).map(term).sum::<f64>()
                            + if flags != 0 { before[at] } else { 0.0 };
                        assert!((c[at] - want).abs() < 1e-12, "{op:?}");
                    }
                }
            }
        }
    }
}
