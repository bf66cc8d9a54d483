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
const DEPTH: usize = 512;

/// Terms of a sum between the one that is computed and the one whose operands are fetched: what memory
/// takes to answer.
const AHEAD: usize = 16;

/// The right-hand side of a product, ready for many left-hand sides.
#[derive(Debug, Clone, Copy)]
pub enum Right<'a, T> {
    /// As it came.
    Plain(Mat<'a, T>),
    /// In panels of [`PANEL`] columns, each `[k, PANEL]`, zeros past the last column.
    Packed(&'a [T]),
}

/// Calls `f` with `b`, `[k, n]`, packed on all threads where the kernels here want it packed: where
/// its rows are not contiguous.
///
/// # Panics
/// When `b` is too short: a bug of the caller.
pub fn with_packed<T: Real, R>(
    (k, n): (usize, usize),
    b: Mat<'_, T>,
    f: impl FnOnce(Right<'_, T>) -> R,
) -> R {
    if !has_own_kernels::<T>() || k * n == 0 || b.cs == 1 {
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
            copy_row(row, &b[..n]);
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

/// Copies to the first elements of `to`, whole panels' rows without a call.
#[inline(always)]
pub fn copy_row<T: Copy>(to: &mut [T], from: &[T]) {
    fn copy<T: Copy, const N: usize>(to: &mut [T], from: &[T]) {
        if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
            *to = *from;
        }
    }
    match from.len() {
        16 => copy::<T, 16>(to, from),
        32 => copy::<T, 32>(to, from),
        n => to[..n].copy_from_slice(from),
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
    // Some five microseconds at least, and no more pieces than any desktop can use.
    let pieces = (work >> 19).clamp(1, 128);
    let count = tiles.div_ceil(tiles.div_ceil(pieces));
    // An even number of nearly equal pieces: of seven, two threads would do four and three.
    m.div_ceil(if count > 1 { count.next_multiple_of(2) } else { 1 }).max(1)
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
    let panels = n.div_ceil(PANEL);
    for from in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - from);
        for i in (0..m).step_by(tall) {
            for j in (0..n).step_by(PANEL) {
                let at = a.data[i * a.rs + from * a.cs..].as_ptr();
                // Lying along k, A is fetched a tile of rows ahead, a share with every panel; lying along
                // its rows, some terms ahead, as B is by the first tile that sees it.
                let (a_ahead, a_step) = if a.cs == 1 && depth > AHEAD {
                    let step = (tall * a.rs).div_ceil(panels * depth).min(16);
                    (at.wrapping_add(tall * a.rs + j / PANEL * depth * step), step)
                } else if a.rs == 1 && depth > AHEAD {
                    (at.wrapping_add(AHEAD * a.cs), a.cs)
                } else {
                    (at, 0)
                };
                let product = Product {
                    m: tall.min(m - i),
                    n: PANEL.min(n - j),
                    k: depth,
                    b_ahead: if i == 0 && depth > AHEAD { AHEAD * b_rs } else { 0 },
                    a_ahead,
                    a_step,
                    alpha,
                    a: at,
                    a_rs: a.rs,
                    a_cs: a.cs,
                    b: b[j / PANEL * b_step + from * b_rs..].as_ptr(),
                    b_rs,
                    beta: if from == 0 { beta } else { 1.0 },
                    c: c[i * c_rs + j..].as_mut_ptr(),
                    c_rs,
                };
                // SAFETY: the caller asserted that the three slices hold their matrices, of which
                // this is a part; `c` is exclusive; `tiles` was detected.
                unsafe { tiles.run(&product) };
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Rng;

    fn draw(rng: &mut Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    /// The product cut as the op cuts it, on this many threads.
    fn on_threads(
        threads: usize,
        (m, n, k): (usize, usize, usize),
        (a, b): (Mat<'_, f32>, Mat<'_, f32>),
        mut c: Vec<f32>,
    ) -> Vec<f32> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("starts");
        let per = rows_per_piece(m, m * n * k);
        pool.install(|| {
            with_packed((k, n), b, |b| {
                c.par_chunks_mut(per * n).enumerate().for_each(|(i, c)| {
                    let a = Mat::new(&a.data[i * per * a.rs..], a.rs, a.cs);
                    gemm_with((c.len() / n, n, k), 0.5, a, b, 1.0, c, n);
                });
            });
        });
        c
    }

    #[test]
    fn every_cut_gives_the_same_bytes_and_the_product() {
        let mut rng = Rng::new(41, 0);
        for dims in [(1, 1, 1), (13, 33, 5), (97, 200, 31), (301, 47, 1030), (130, 129, 513)] {
            let (m, n, k) = dims;
            let (a, b) = (draw(&mut rng, m * k), draw(&mut rng, k * n));
            let c = draw(&mut rng, m * n);
            for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
                let left = if a_t { Mat::new(&a, 1, m) } else { Mat::new(&a, k, 1) };
                let right = if b_t { Mat::new(&b, 1, k) } else { Mat::new(&b, n, 1) };
                let found = on_threads(1, dims, (left, right), c.clone());
                for threads in [2, 3, 5] {
                    assert!(found == on_threads(threads, dims, (left, right), c.clone()));
                }
                let mut whole = c.clone();
                gemm(dims, 0.5, left, right, 1.0, &mut whole, n);
                assert!(found == whole, "{dims:?}: in one piece");
                for (at, found) in found.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let terms = (0..k).map(|p| {
                        let a = a[i * left.rs + p * left.cs];
                        f64::from(a) * f64::from(b[p * right.rs + j * right.cs])
                    });
                    let want = 0.5 * terms.sum::<f64>() + f64::from(c[at]);
                    let error = (f64::from(*found) - want).abs();
                    assert!(error < 1e-6 * (k as f64).sqrt() * 8.0, "{dims:?} at {i}, {j}");
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_instruction_sets_agree() {
        if !is_x86_feature_detected!("avx512f") {
            eprintln!("skipped: no AVX-512 here");
            return;
        }
        let mut rng = Rng::new(43, 0);
        for dims in [(1, 1, 3), (7, 9, 20), (29, 71, 600), (64, 16, 200)] {
            let (m, n, k) = dims;
            let (a, b) = (draw(&mut rng, m * k), draw(&mut rng, k * n));
            let run = |tiles| {
                // One column more than the matrix has must stay as it was.
                let mut c = vec![7.0; m * (n + 1)];
                let (a, b) = (Mat::new(&a[..], k, 1), (&b[..], n, PANEL));
                own_kernels(tiles, dims, (1.0, 0.0), a, b, (&mut c, n + 1));
                c
            };
            let (wide, narrow) = (run(Tiles::Avx512), run(Tiles::Avx2));
            assert!(wide == narrow, "{dims:?}");
            assert!(wide.chunks(n + 1).all(|row| row[n] == 7.0), "{dims:?}: past the edge");
        }
    }
}
