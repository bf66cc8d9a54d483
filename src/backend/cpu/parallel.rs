//! Splitting rows over threads. How rows are cut depends on the shape alone, never on the number
//! of threads, so that results repeat bit for bit on any number of them.

use rayon::prelude::*;

/// Elementary operations worth handing to another thread: some ten microseconds.
const GRAIN: usize = 32_768;

/// Rows of `cost` operations each that make one piece of work, when there are `rows` of them.
pub fn rows_per_piece(rows: usize, cost: usize) -> usize {
    // No more than 64 pieces: enough for any desktop, little overhead for any shape.
    GRAIN.div_ceil(cost.max(1)).max(rows.div_ceil(64)).max(1)
}

/// Calls `f(first_row, rows)` on pieces of `out`, a matrix with rows of `cols`.
pub fn for_rows<T: Send>(
    out: &mut [T],
    cols: usize,
    cost: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if out.is_empty() || cols == 0 {
        return;
    }
    let per = rows_per_piece(out.len() / cols, cost);
    if per * cols >= out.len() {
        return f(0, out);
    }
    out.par_chunks_mut(per * cols).enumerate().for_each(|(i, piece)| f(i * per, piece));
}

/// [`for_rows`] over two matrices of as many rows.
pub fn for_rows2<A: Send, B: Send>(
    (a, a_cols): (&mut [A], usize),
    (b, b_cols): (&mut [B], usize),
    cost: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    if a.is_empty() || a_cols == 0 || b_cols == 0 {
        return;
    }
    let per = rows_per_piece(a.len() / a_cols, cost);
    if per * a_cols >= a.len() {
        return f(0, a, b);
    }
    let pieces = a.par_chunks_mut(per * a_cols).zip(b.par_chunks_mut(per * b_cols));
    pieces.enumerate().for_each(|(i, (a, b))| f(i * per, a, b));
}

/// [`for_rows`] over three matrices of as many rows.
pub fn for_rows3<A: Send, B: Send, C: Send>(
    (a, a_cols): (&mut [A], usize),
    (b, b_cols): (&mut [B], usize),
    (c, c_cols): (&mut [C], usize),
    cost: usize,
    f: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
) {
    if a.is_empty() || a_cols == 0 || b_cols == 0 || c_cols == 0 {
        return;
    }
    let per = rows_per_piece(a.len() / a_cols, cost);
    if per * a_cols >= a.len() {
        return f(0, a, b, c);
    }
    let pieces = a.par_chunks_mut(per * a_cols);
    let pieces = pieces.zip(b.par_chunks_mut(per * b_cols)).zip(c.par_chunks_mut(per * c_cols));
    pieces.enumerate().for_each(|(i, ((a, b), c))| f(i * per, a, b, c));
}
