//! Copies of rows and of pieces of matrices, laid out as the tiles of a product read them.

#[cfg(target_arch = "x86_64")]
use super::gemm::Mat;
#[cfg(target_arch = "x86_64")]
use super::gemm_tile;
use crate::backend::cpu::real::{Real, vectorised};

/// Rows between the one that is copied and the one that is fetched: what memory takes to answer.
const AHEAD: usize = 16;

/// Floats of a cache line.
#[cfg(target_arch = "x86_64")]
pub(super) const LINE: usize = 16;

/// Packs the first columns, at most `n`, of a matrix with steps `rs` and `cs`, into rows of `wide`.
pub(super) fn pack_panel<T: Real>(
    (to, wide): (&mut [T], usize),
    n: usize,
    b: &[T],
    rs: usize,
    cs: usize,
) {
    let n = n.min(wide);
    if n < wide {
        to.fill(T::ZERO);
    }
    if cs == 1 {
        return copy_rows((to, wide), (b, rs), n);
    }
    // Sixteen terms at a time: they fill one cache line of each column.
    for (i, rows) in to.chunks_mut(16 * wide).enumerate() {
        for j in 0..n {
            let column = &b[i * 16 * rs + j * cs..];
            fetch(column, 32 * rs);
            for (to, from) in rows[j..].iter_mut().step_by(wide).zip(column.iter().step_by(rs)) {
                *to = *from;
            }
        }
    }
}

/// Asks for the line of element `at`, which may lie past the end, to be fetched from memory.
#[inline(always)]
fn fetch<T>(x: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    gemm_tile::fetch(x.as_ptr().wrapping_add(at));
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, at);
}

/// Copies the first `n` elements of each row of `from` to the rows of `to`, as many as those are; rows are
/// as far apart as the numbers beside them say. What is to come is fetched meanwhile: where rows are
/// kilobytes apart, the processor sees no pattern.
pub fn copy_rows<T: Copy>(
    (to, to_step): (&mut [T], usize),
    (from, from_step): (&[T], usize),
    n: usize,
) {
    // Loops of their own, or the compiler makes one call for every length of it.
    fn whole<T: Copy, const N: usize>(
        (to, to_step): (&mut [T], usize),
        (from, from_step): (&[T], usize),
    ) {
        for (i, to) in to.chunks_exact_mut(to_step).enumerate() {
            fetch(from, (i + AHEAD) * from_step);
            if let (Some(to), Some(from)) =
                (to.first_chunk_mut::<N>(), from[i * from_step..].first_chunk())
            {
                *to = *from;
            }
        }
    }
    match n {
        16 => whole::<T, 16>((to, to_step), (from, from_step)),
        32 => whole::<T, 32>((to, to_step), (from, from_step)),
        _ => {
            for (i, to) in to.chunks_exact_mut(to_step).enumerate() {
                fetch(from, (i + AHEAD) * from_step);
                to[..n].copy_from_slice(&from[i * from_step..][..n]);
            }
        }
    }
}

/// From one packed tile of `depth` terms of `tall` rows to the next. A line more than they take: many
/// tiles are written side by side, and powers of 2 apart they would share few places of the cache.
#[cfg(target_arch = "x86_64")]
pub(super) fn tile_step(tall: usize, depth: usize) -> usize {
    (tall * depth).next_multiple_of(2 * LINE) + LINE
}

/// Packs `rows` rows, `depth` terms of each, of a matrix that lies along its rows, into tiles
/// `[depth, tall]`, [`tile_step`] apart; adds the rows to `sums`, where there are any.
#[cfg(target_arch = "x86_64")]
pub(super) fn pack_rows(
    (to, tall): (&mut [f32], usize),
    a: Mat<'_, f32>,
    dims: (usize, usize),
    sums: Option<&mut [f32]>,
) {
    let sums = sums.unwrap_or_default();
    // Whole tiles' lines are moved without a call.
    match tall {
        6 => vectorised!(pack_tiles::<6>(to, a, dims, sums)),
        _ => vectorised!(pack_tiles::<14>(to, a, dims, sums)),
    }
}

/// [`pack_rows`] for tiles of `N` rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn pack_tiles<const N: usize>(
    to: &mut [f32],
    a: Mat<'_, f32>,
    (rows, depth): (usize, usize),
    sums: &mut [f32],
) {
    let step = tile_step(N, depth);
    let ahead = (1024 / rows.max(1)).clamp(2, AHEAD);
    for (k, from) in a.data.chunks(a.cs).take(depth).enumerate() {
        (0..rows).step_by(LINE).for_each(|i| fetch(a.data, (k + ahead) * a.cs + i));
        let from = &from[..rows];
        sums.iter_mut().zip(from).for_each(|(sum, &x)| *sum += x);
        let (whole, rest) = from.as_chunks::<N>();
        for (i, from) in whole.iter().enumerate() {
            if let Some(to) = to[i * step + k * N..].first_chunk_mut() {
                *to = *from;
            }
        }
        if !rest.is_empty() {
            to[rows / N * step + k * N..][..rest.len()].copy_from_slice(rest);
        }
    }
}
