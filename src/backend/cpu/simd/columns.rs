//! Threads that write different columns of one matrix.

use std::marker::PhantomData;

use rayon::prelude::*;

/// Some neighbouring columns of a row-major matrix, to write.
#[derive(Debug)]
pub struct Columns<'a, T> {
    first: *mut T,
    rows: usize,
    row_step: usize,
    width: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut` access to elements that nothing else can reach while it lives.
unsafe impl<T: Send> Send for Columns<'_, T> {}

impl<T> Columns<'_, T> {
    /// These columns of row `i`.
    ///
    /// # Panics
    /// When there is no such row: a bug of the caller.
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: row i is within the matrix, and no other `Columns` holds these columns of it.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(i * self.row_step), self.width) }
    }
}

impl<T: Copy> Columns<'_, T> {
    /// Writes the rows of `from` to row `first` and those that follow it, each `step` further on.
    ///
    /// # Panics
    /// When there are no such rows: a bug of the caller.
    pub fn put(&mut self, first: usize, step: usize, from: &[T]) {
        // Loops of their own, or the compiler makes one call for every length of it.
        match self.width {
            16 => self.put_whole::<16>(first, step, from),
            32 => self.put_whole::<32>(first, step, from),
            width => {
                for (i, from) in from.chunks_exact(width).enumerate() {
                    self.row(first + i * step).copy_from_slice(from);
                }
            }
        }
    }

    fn put_whole<const N: usize>(&mut self, first: usize, step: usize, from: &[T]) {
        for (i, from) in from.as_chunks::<N>().0.iter().enumerate() {
            if let Some(to) = self.row(first + i * step).first_chunk_mut() {
                *to = *from;
            }
        }
    }
}

/// A matrix whose columns are handed out in groups of `width`.
struct Groups<T> {
    first: *mut T,
    rows: usize,
    cols: usize,
    width: usize,
}

// SAFETY: shared only to derive pointers to disjoint columns.
unsafe impl<T: Send> Sync for Groups<T> {}

impl<T> Groups<T> {
    /// # Panics
    /// When `width` does not divide `cols`, or `cols` the matrix: a bug of the caller.
    fn new(matrix: &mut [T], cols: usize, width: usize) -> Self {
        let fits = matrix.len().is_multiple_of(cols) && cols.is_multiple_of(width);
        assert!(fits, "columns do not fit");
        Self { first: matrix.as_mut_ptr(), rows: matrix.len() / cols, cols, width }
    }

    fn count(&self) -> usize {
        self.cols / self.width
    }

    /// Group `j`.
    ///
    /// # Safety
    /// There must be such a group, not handed out before, and the matrix must stay borrowed.
    unsafe fn columns<'a>(&self, j: usize) -> Columns<'a, T> {
        // SAFETY: the first row has these columns.
        let first = unsafe { self.first.add(j * self.width) };
        let (rows, row_step, width) = (self.rows, self.cols, self.width);
        Columns { first, rows, row_step, width, owner: PhantomData }
    }
}

/// Calls `f(j, columns)` for each group `j` of `width` columns of a matrix with rows of `cols`.
///
/// # Panics
/// When `width` does not divide `cols`, or `cols` the matrix: a bug of the caller.
pub fn for_columns<T: Send>(
    matrix: &mut [T],
    cols: usize,
    width: usize,
    f: impl Fn(usize, Columns<'_, T>) + Sync,
) {
    if matrix.is_empty() {
        return;
    }
    let groups = &Groups::new(matrix, cols, width);
    // SAFETY: each j comes once, and `matrix` is borrowed until all are done.
    (0..groups.count()).into_par_iter().for_each(|j| f(j, unsafe { groups.columns(j) }));
}

/// [`for_columns`] of two matrices with as many groups of columns.
///
/// # Panics
/// As there, or where there are not as many groups.
pub fn for_columns2<A: Send, B: Send>(
    (a, a_cols, a_width): (&mut [A], usize, usize),
    (b, b_cols, b_width): (&mut [B], usize, usize),
    f: impl Fn(usize, Columns<'_, A>, Columns<'_, B>) + Sync,
) {
    if a.is_empty() || b.is_empty() {
        return;
    }
    let (a, b) = (&Groups::new(a, a_cols, a_width), &Groups::new(b, b_cols, b_width));
    assert!(a.count() == b.count(), "not as many columns");
    (0..a.count()).into_par_iter().for_each(|j| {
        // SAFETY: each j comes once, and both matrices are borrowed until all are done.
        f(j, unsafe { a.columns(j) }, unsafe { b.columns(j) });
    });
}
