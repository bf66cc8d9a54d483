//! Matrix product of slices: own kernels for f32 on x86-64 with AVX2 or AVX-512, the `gemm`
//! crate's for f64 and other machines.

use std::any::TypeId;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::gemm_tile::{Product, Tiles};
use crate::backend::cpu::real::Real;
use crate::backend::cpu::scratch::scratch;

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

    /// Whether the slice holds all of `rows` by `cols`.
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || self.data.len() > (rows - 1) * self.rs + (cols - 1) * self.cs
    }
}

/// Columns of a panel of packed B: two AVX-512 vectors.
const PANEL: usize = 32;

/// Terms of a sum that are added before moving to the next rows: B's part of as many rows stays in
/// the second-level cache.
const DEPTH: usize = 256;

/// The right-hand side of a product, ready for many left-hand sides.
#[derive(Debug, Clone, Copy)]
pub enum Right<'a, T> {
    /// As it came.
    Plain(Mat<'a, T>),
    /// In panels of [`PANEL`] columns, each `[k, PANEL]`, zeros past the last column.
    Packed(&'a [T]),
}

/// Calls `f` with `b`, `[k, n]`, packed on all threads where the kernels here want it packed.
///
/// # Panics
/// When `b` is too short: a bug of the caller.
pub fn with_packed<T: Real, R>(
    (k, n): (usize, usize),
    b: Mat<'_, T>,
    f: impl FnOnce(Right<'_, T>) -> R,
) -> R {
    if !has_own_kernels::<T>() || k * n == 0 {
        return f(Right::Plain(b));
    }
    assert!(b.holds(k, n), "b is too short");
    scratch(n.div_ceil(PANEL) * PANEL * k, |packed: &mut [T]| {
        packed.par_chunks_mut(PANEL * k).enumerate().for_each(|(j, panel)| {
            pack_panel(panel, n - j * PANEL, &b.data[j * PANEL * b.cs..], b.rs, b.cs);
        });
        f(Right::Packed(packed))
    })
}

/// Packs the first columns, at most `n`, of a matrix with steps `rs` and `cs`.
fn pack_panel<T: Real>(panel: &mut [T], n: usize, b: &[T], rs: usize, cs: usize) {
    let n = n.min(PANEL);
    if n < PANEL {
        panel.fill(T::ZERO);
    }
    if cs == 1 {
        for (row, b) in panel.chunks_exact_mut(PANEL).zip(b.chunks(rs)) {
            row[..n].copy_from_slice(&b[..n]);
        }
        return;
    }
    // Sixteen terms at a time: they fill one cache line of each column.
    for (i, rows) in panel.chunks_mut(16 * PANEL).enumerate() {
        for j in 0..n {
            let column = &b[i * 16 * rs + j * cs..];
            for (to, from) in rows[j..].iter_mut().step_by(PANEL).zip(column.iter().step_by(rs)) {
                *to = *from;
            }
        }
    }
}

/// Whether products of `T` run on the kernels of this module.
fn has_own_kernels<T: Real>() -> bool {
    #[cfg(target_arch = "x86_64")]
    return TypeId::of::<T>() == TypeId::of::<f32>() && Tiles::detect().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Rows into which to cut C of `m` rows and `work` multiplications, to share it among threads.
pub fn rows_per_piece(m: usize, work: usize) -> usize {
    let tiles = m.div_ceil(14).max(1);
    // Some ten microseconds at least, and no more pieces than any desktop can use.
    let pieces = (work >> 20).clamp(1, 64);
    if pieces < tiles { tiles.div_ceil(pieces) * 14 } else { m.div_ceil(tiles) }
}

/// `c = alpha * a * b + beta * c` on one thread; `c` is `[m, n]` with row step `c_rs` and column
/// step 1. With `beta` 0, what `c` held is not read. Each element's sum has one order, whatever
/// part of a larger product this is.
///
/// # Panics
/// When a slice is too short for its matrix: a bug of the caller.
pub fn gemm<T: Real>(
    dims: (usize, usize, usize),
    alpha: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    beta: T,
    c: &mut [T],
    c_rs: usize,
) {
    gemm_with(dims, alpha, a, Right::Plain(b), beta, c, c_rs);
}

/// [`gemm`] with a right-hand side from [`with_packed`].
///
/// # Panics
/// When a slice is too short for its matrix: a bug of the caller.
pub fn gemm_with<T: Real>(
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: Mat<'_, T>,
    b: Right<'_, T>,
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
    assert!(a.holds(m, k), "a is too short");
    match b {
        Right::Plain(b) => assert!(b.holds(k, n), "b is too short"),
        Right::Packed(b) => assert!(b.len() >= n.div_ceil(PANEL) * PANEL * k, "b is too short"),
    }
    #[cfg(target_arch = "x86_64")]
    if TypeId::of::<T>() == TypeId::of::<f32>()
        && let Some(tiles) = Tiles::detect()
    {
        let (alpha, beta) = (alpha.wide() as f32, beta.wide() as f32);
        let a = Mat::new(bytemuck::cast_slice(a.data), a.rs, a.cs);
        let c: &mut [f32] = bytemuck::cast_slice_mut(c);
        let packed = |b: &[f32], c: &mut [f32]| {
            own_kernels(tiles, (m, n, k), (alpha, beta), a, (b, PANEL, PANEL * k), (c, c_rs));
        };
        return match b {
            Right::Packed(b) => packed(bytemuck::cast_slice(b), c),
            Right::Plain(b) => {
                let b = Mat::new(bytemuck::cast_slice(b.data), b.rs, b.cs);
                if b.cs == 1 {
                    let b = (b.data, b.rs, PANEL);
                    own_kernels(tiles, (m, n, k), (alpha, beta), a, b, (c, c_rs));
                } else {
                    scratch(n.div_ceil(PANEL) * PANEL * k, |memory: &mut [f32]| {
                        for (j, panel) in memory.chunks_exact_mut(PANEL * k).enumerate() {
                            let b_j = &b.data[j * PANEL * b.cs..];
                            pack_panel(panel, n - j * PANEL, b_j, b.rs, b.cs);
                        }
                        packed(memory, c);
                    });
                }
            }
        };
    }
    let Right::Plain(b) = b else { unreachable!("only own kernels take a packed B") };
    crate_gemm((m, n, k), alpha, a, b, beta, c, c_rs);
}

/// The product by tiles; panel j of `b` begins at `j * b_step`, with rows `b_rs` apart.
#[cfg(target_arch = "x86_64")]
fn own_kernels(
    tiles: Tiles,
    (m, n, k): (usize, usize, usize),
    (alpha, beta): (f32, f32),
    a: Mat<'_, f32>,
    (b, b_rs, b_step): (&[f32], usize, usize),
    (c, c_rs): (&mut [f32], usize),
) {
    let tall = m.div_ceil(m.div_ceil(tiles.rows()));
    // Down a column of a wide matrix every element is on another page: gather those first.
    let gather = a.rs == 1 && a.cs > 16 * tall;
    scratch(if gather { tall * DEPTH.min(k) } else { 0 }, |gathered: &mut [f32]| {
        for from in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - from);
            let beta = if from == 0 { beta } else { 1.0 };
            for i in (0..m).step_by(tall) {
                let rows = tall.min(m - i);
                let mut left = Mat { data: &a.data[i * a.rs + from * a.cs..], ..a };
                if gather {
                    let lines = gathered.chunks_exact_mut(rows).take(depth);
                    for (to, from) in lines.zip(left.data.chunks(a.cs)) {
                        to.copy_from_slice(&from[..rows]);
                    }
                    left = Mat::new(gathered, 1, rows);
                }
                for j in (0..n).step_by(PANEL) {
                    let product = Product {
                        m: rows,
                        n: PANEL.min(n - j),
                        k: depth,
                        alpha,
                        a: left.data.as_ptr(),
                        a_rs: left.rs,
                        a_cs: left.cs,
                        b: b[j / PANEL * b_step + from * b_rs..].as_ptr(),
                        b_rs,
                        beta,
                        c: c[i * c_rs + j..].as_mut_ptr(),
                        c_rs,
                    };
                    // SAFETY: the caller asserted that the three slices hold their matrices, of
                    // which this is a part; `c` is exclusive; `tiles` was detected.
                    unsafe { tiles.run(&product) };
                }
            }
        }
    });
}

/// The `gemm` crate's product, for slices that hold their matrices.
fn crate_gemm<T: Real>(
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    beta: T,
    c: &mut [T],
    c_rs: usize,
) {
    assert!(a.holds(m, k) && b.holds(k, n), "a or b is too short");
    assert!(c.len() > (m - 1) * c_rs + n - 1 && (m == 1 || c_rs >= n), "c is too short");
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
