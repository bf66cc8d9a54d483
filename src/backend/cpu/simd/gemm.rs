//! Matrix product of slices, through the `gemm` crate's kernels (AVX2, AVX-512, NEON, chosen at
//! run time).

use crate::backend::cpu::real::Real;

/// A matrix in a slice: element (i, j) is at `i * rs + j * cs`.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a, T> {
    /// The elements; (0, 0) is the first.
    pub data: &'a [T],
    /// Step between rows.
    pub rs: usize,
    /// Step between columns.
    pub cs: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A matrix whose (0, 0) is `data[0]`.
    pub fn new(data: &'a [T], rs: usize, cs: usize) -> Self {
        Self { data, rs, cs }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { data: self.data, rs: self.cs, cs: self.rs }
    }
}

/// `c = alpha * a * b + beta * c` on one thread; `c` is `[m, n]` with row step `c_rs` and column
/// step 1. With `beta` 0, what `c` held is not read.
///
/// # Panics
/// When a slice is too short for its matrix: a bug of the caller.
pub fn gemm<T: Real>(
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    beta: T,
    c: &mut [T],
    c_rs: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(c.len() > (m - 1) * c_rs + n - 1 && (m == 1 || c_rs >= n), "c is too short");
    if k == 0 {
        for row in c.chunks_mut(c_rs.max(n)).take(m) {
            row[..n]
                .iter_mut()
                .for_each(|x| *x = if beta == T::ZERO { T::ZERO } else { *x * beta });
        }
        return;
    }
    assert!(a.data.len() > (m - 1) * a.rs + (k - 1) * a.cs, "a is too short");
    assert!(b.data.len() > (k - 1) * b.rs + (n - 1) * b.cs, "b is too short");
    // SAFETY: the asserts above keep every element that the three (pointer, strides, extents)
    // triples reach inside the slices; `c` is exclusive, and its rows do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_rs as isize,
            beta != T::ZERO,
            a.data.as_ptr(),
            a.cs as isize,
            a.rs as isize,
            b.data.as_ptr(),
            b.cs as isize,
            b.rs as isize,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
