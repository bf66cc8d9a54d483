//! Matrix product of slices: own kernels for f32 on x86-64 with AVX2 or AVX-512, the `gemm`
//! crate's for f64 and other machines.

use std::any::TypeId;
#[cfg(target_arch = "x86_64")]
use std::ptr;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::gemm_blocks;
use super::gemm_blocks::{DEPTH, TILES, add_rows};
#[cfg(target_arch = "x86_64")]
use super::gemm_tile::{self, Power, Slope, Tiles};
use super::packing::pack_panel;
use crate::backend::cpu::real::{Real, vectorised};
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

/// [`gemm_then`] takes multiples of this many columns: whole vectors of every instruction set.
pub const COLUMNS: usize = 16;

/// Tiles' rows of an A that lies along its columns that are worth a piece of their own.
const TURNED_LEAST: usize = 16;

/// Rows of A from which on packing B pays where its rows are contiguous.
const TALL: usize = 64;

/// The right-hand side of a product, ready for many left-hand sides.
#[derive(Debug, Clone, Copy)]
pub enum Right<'a, T> {
    /// As it came.
    Plain(Mat<'a, T>),
    /// In panels of as many columns as a tile has, each `[k, columns]`, zeros past the last column.
    Packed(&'a [T]),
}

/// Calls `f` with the right-hand side of products `[m, n, k]`, packed on all threads where the kernels
/// here want it packed.
///
/// # Panics
/// When `b` is too short: a bug of the caller.
pub fn with_packed<T: Real, R>(
    (m, n, k): (usize, usize, usize),
    b: Mat<'_, T>,
    f: impl FnOnce(Right<'_, T>) -> R,
) -> R {
    let Some(panel) = panel::<T>().filter(|_| k * n > 0 && (b.cs != 1 || m >= TALL)) else {
        return f(Right::Plain(b));
    };
    assert!(b.holds(k, n), "b is too short");
    scratch(n.div_ceil(panel) * panel * k, |packed: &mut [T]| {
        packed.par_chunks_mut(panel * k).enumerate().for_each(|(j, to)| {
            pack_panel((to, panel), n - j * panel, &b.data[j * panel * b.cs..], b.rs, b.cs);
        });
        f(Right::Packed(packed))
    })
}

/// The tiles of this module, where products of `T` run on them.
#[cfg(target_arch = "x86_64")]
fn own_tiles<T: Real>() -> Option<Tiles> {
    if TypeId::of::<T>() == TypeId::of::<f32>() { Tiles::detect() } else { None }
}

/// Columns of a panel of packed B, where products of `T` run on the kernels of this module.
fn panel<T: Real>() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    return own_tiles::<T>().map(Tiles::columns);
    #[cfg(not(target_arch = "x86_64"))]
    return None;
}

/// Rows into which to cut a product, to share it among threads; `turned`: A lies along its columns. No
/// result depends on it.
pub fn rows_per_piece<T: Real>((m, n, k): (usize, usize, usize), turned: bool) -> usize {
    #[cfg(target_arch = "x86_64")]
    let tall = own_tiles::<T>().map_or(8, Tiles::rows);
    #[cfg(not(target_arch = "x86_64"))]
    let tall = 8;
    let threads = rayon::current_num_threads();
    // Each piece works through all of B: there are few, and as good as equal.
    if turned && (m * n * k) >> 19 >= threads {
        let each = (m.div_ceil(tall) / (TURNED_LEAST * threads)).max(1);
        return m.div_ceil(each * threads).next_multiple_of(2);
    }
    // As many rows as pass by a panel of B at a time, more where B is long and its part that is in the
    // second-level cache would come again for each; as many pieces for each thread; but some five
    // microseconds of work at least.
    let blocks = (k / DEPTH).clamp(1, 2);
    let pieces = m.div_ceil(blocks * TILES * tall).next_multiple_of(threads);
    m.div_ceil(pieces.min((m * n * k) >> 19).max(1)).next_multiple_of(tall).max(1)
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
    dims: (usize, usize, usize),
    alpha: T,
    a: Mat<'_, T>,
    b: Right<'_, T>,
    beta: T,
    c: &mut [T],
    c_rs: usize,
) {
    product(dims, (alpha, beta), (a, None), b, (c, c_rs));
}

/// `c = a * b + beta * c` as [`gemm_with`], of rows that follow each other; also adds A's rows, over k,
/// to `sums` `[m]`, each in the order of k: where A is packed, its elements are at hand.
///
/// # Panics
/// When a slice is too short: a bug of the caller.
pub fn gemm_sums<T: Real>(
    (m, n, k): (usize, usize, usize),
    a: Mat<'_, T>,
    b: Right<'_, T>,
    beta: T,
    c: &mut [T],
    sums: &mut [T],
) {
    assert!(sums.len() == m, "not a sum for each row");
    product((m, n, k), (T::ONE, beta), (a, Some(sums)), b, (c, n));
}

/// [`gemm_with`], or [`gemm_sums`] where there are sums.
fn product<T: Real>(
    (m, n, k): (usize, usize, usize),
    (alpha, beta): (T, T),
    (a, sums): (Mat<'_, T>, Option<&mut [T]>),
    b: Right<'_, T>,
    (c, c_rs): (&mut [T], usize),
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
        Right::Packed(b) => {
            let panel = panel::<T>().expect("only own kernels take a packed B");
            assert!(b.len() >= n.div_ceil(panel) * panel * k, "b is too short");
        }
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = own_tiles::<T>() {
        let (alpha, beta) = (alpha.wide() as f32, beta.wide() as f32);
        let a = Mat::new(bytemuck::cast_slice(a.data), a.rs, a.cs);
        let c: &mut [f32] = bytemuck::cast_slice_mut(c);
        let sums: Option<&mut [f32]> = sums.map(bytemuck::cast_slice_mut);
        let panel = tiles.columns();
        let then = gemm_tile::Then::Scale;
        let run = |b: &[f32], b_rs, b_step| {
            let (b, c) = ((b, b_rs, b_step), (&mut *c, c_rs));
            gemm_blocks::product(tiles, (m, n, k), (alpha, beta), (a, sums), b, c, then);
        };
        return match b {
            Right::Packed(b) => run(bytemuck::cast_slice(b), panel, panel * k),
            Right::Plain(b) if b.cs == 1 => run(bytemuck::cast_slice(b.data), b.rs, panel),
            Right::Plain(b) => scratch(n.div_ceil(panel) * panel * k, |memory: &mut [T]| {
                for (j, to) in memory.chunks_exact_mut(panel * k).enumerate() {
                    let b_j = &b.data[j * panel * b.cs..];
                    pack_panel((to, panel), n - j * panel, b_j, b.rs, b.cs);
                }
                run(bytemuck::cast_slice(memory), panel, panel * k);
            }),
        };
    }
    if let Some(sums) = sums {
        add_rows(a, k, sums);
    }
    let Right::Plain(b) = b else { unreachable!("only own kernels take a packed B") };
    crate_gemm((m, n, k), alpha, a, b, beta, c, c_rs);
}

/// What becomes of the sums of [`gemm_then`] before they are stored.
#[derive(Debug)]
pub enum Then<'a, T> {
    /// C = 2^sum.
    Power {
        /// `[n]`: C's columns are added to these, row by row.
        totals: Option<&'a mut [T]>,
    },
    /// C = factor sum.
    Slope {
        /// Lies as C does.
        factor: &'a [T],
    },
}

/// `c = then(start + a * b)` on one thread, for a short sum: what would be a pass over C happens while it
/// is in registers. `b` is `[k, n]` and `c` `[m, n]`, the rows of both `step` apart; `start` is `[n]`.
///
/// # Panics
/// When a slice is too short, `n` no multiple of [`COLUMNS`], or `k` above [`DEPTH`]: bugs of the
/// caller.
pub fn gemm_then<T: Real>(
    (m, n, k): (usize, usize, usize),
    a: Mat<'_, T>,
    (b, start): (&[T], &[T]),
    c: &mut [T],
    step: usize,
    mut then: Then<'_, T>,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.holds(m, k) && Mat::new(b, step, 1).holds(k, n), "a or b is too short");
    assert!(c.len() > (m - 1) * step + n - 1 && step >= n, "c is too short");
    assert!(
        n.is_multiple_of(COLUMNS) && (1..=DEPTH).contains(&k),
        "not for {n} columns, {k} terms"
    );
    let fits = match &then {
        Then::Power { totals } => totals.as_ref().is_none_or(|totals| totals.len() >= n),
        Then::Slope { factor } => factor.len() >= (m - 1) * step + n,
    };
    assert!(fits && start.len() >= n, "what belongs to the product is too short");
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = own_tiles::<T>() {
        let pointer = |x: &[T]| bytemuck::cast_slice::<T, f32>(x).as_ptr();
        let start = pointer(start);
        let then = match then {
            Then::Power { totals: None } => {
                gemm_tile::Then::Power(Power { start, totals: ptr::null_mut() })
            }
            Then::Power { totals: Some(totals) } => {
                let totals = bytemuck::cast_slice_mut::<T, f32>(totals).as_mut_ptr();
                gemm_tile::Then::PowerTotals(Power { start, totals })
            }
            Then::Slope { factor } => {
                gemm_tile::Then::Slope(Slope { start, factor: pointer(factor) })
            }
        };
        let a = Mat::new(bytemuck::cast_slice(a.data), a.rs, a.cs);
        let b = (bytemuck::cast_slice(b), step, tiles.columns());
        let c = (bytemuck::cast_slice_mut(c), step);
        return gemm_blocks::product(tiles, (m, n, k), (1.0, 0.0), (a, None), b, c, then);
    }
    gemm((m, n, k), T::ONE, a, Mat::new(b, step, 1), T::ZERO, c, step);
    vectorised!(for (i, row) in c.chunks_mut(step).take(m).enumerate() {
        let row = &mut row[..n];
        row.iter_mut().zip(start).for_each(|(x, &start)| *x += start);
        match &mut then {
            Then::Power { totals } => {
                row.iter_mut().for_each(|x| *x = x.exp2());
                if let Some(totals) = totals {
                    totals.iter_mut().zip(row).for_each(|(total, &mut x)| *total += x);
                }
            }
            Then::Slope { factor } => {
                row.iter_mut().zip(&factor[i * step..]).for_each(|(x, &f)| *x *= f);
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
        let per = rows_per_piece::<f32>((m, n, k), a.rs == 1);
        pool.install(|| {
            with_packed((m, n, k), b, |b| {
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

    #[test]
    fn what_follows_a_product_is_done_on_the_way() {
        let mut rng = Rng::new(47, 0);
        for (m, n, k) in [(1, 16, 1), (13, 32, 16), (42, 208, 16), (30, 48, 7)] {
            let step = n + 3;
            let (a, b) = (draw(&mut rng, m * k), draw(&mut rng, k * step));
            let (start, factor) = (draw(&mut rng, n), draw(&mut rng, m * step));
            let left = Mat::new(&a[..], k, 1);
            let mut plain = vec![0.0f32; m * step];
            gemm((m, n, k), 1.0, left, Mat::new(&b, step, 1), 0.0, &mut plain, step);
            let (mut powers, mut slopes) = (vec![7.0f32; m * step], vec![7.0f32; m * step]);
            let mut totals = vec![1.0f32; n];
            let then = Then::Power { totals: Some(&mut totals) };
            gemm_then((m, n, k), left, (&b, &start), &mut powers, step, then);
            let then = Then::Slope { factor: &factor };
            gemm_then((m, n, k), left, (&b, &start), &mut slopes, step, then);
            for j in 0..step {
                let mut total = 1.0;
                for at in (j..m * step).step_by(step) {
                    let (want_power, want_slope) = if j < n {
                        let x = f64::from(plain[at]) + f64::from(start[j]);
                        (x.exp2(), f64::from(factor[at]) * x)
                    } else {
                        (7.0, 7.0)
                    };
                    total += want_power;
                    let close = |found: f32, want: f64| {
                        (f64::from(found) - want).abs() <= 2e-6 * (1.0 + want.abs())
                    };
                    assert!(close(powers[at], want_power) && close(slopes[at], want_slope));
                }
                assert!(j >= n || (f64::from(totals[j]) - total).abs() < 1e-5 * total);
            }
        }
    }

    #[test]
    fn sums_of_rows_come_with_the_product() {
        let mut rng = Rng::new(47, 0);
        // Packed, with B gathered and not; too narrow to be packed.
        for (m, n, k) in [(128, 96, 600), (300, 40, 300), (65, 16, 70), (3, 5, 7)] {
            let (a, b) = (draw(&mut rng, m * k), draw(&mut rng, k * n));
            let right = Right::Plain(Mat::new(&b[..], n, 1));
            for a in [Mat::new(&a[..], 1, m), Mat::new(&a[..], k, 1)] {
                let (mut c, mut sums) = (vec![0.5; m * n], vec![2.0; m]);
                gemm_sums((m, n, k), a, right, 1.0, &mut c, &mut sums);
                let mut want = vec![0.5; m * n];
                gemm_with((m, n, k), 1.0, a, right, 1.0, &mut want, n);
                assert!(c == want, "{m} x {n} x {k}");
                for (i, &sum) in sums.iter().enumerate() {
                    let row = (0..k).map(|p| f64::from(a.data[i * a.rs + p * a.cs]));
                    let want = row.sum::<f64>() + 2.0;
                    assert!((f64::from(sum) - want).abs() < 1e-4, "{m} x {n} x {k}, row {i}");
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
            let run = |tiles: Tiles| {
                // One column more than the matrix has must stay as it was.
                let mut c = vec![7.0; m * (n + 1)];
                let (a, b) = (Mat::new(&a[..], k, 1), (&b[..], n, tiles.columns()));
                gemm_blocks::product(
                    tiles,
                    dims,
                    (1.0, 0.0),
                    (a, None),
                    b,
                    (&mut c, n + 1),
                    gemm_tile::Then::Scale,
                );
                c
            };
            let (wide, narrow) = (run(Tiles::Avx512), run(Tiles::Avx2));
            assert!(wide == narrow, "{dims:?}");
            assert!(wide.chunks(n + 1).all(|row| row[n] == 7.0), "{dims:?}: past the edge");
        }
    }
}
