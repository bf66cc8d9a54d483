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

struct Base<T>(*mut T);

// SAFETY: shared only to derive pointers to disjoint columns.
unsafe impl<T: Send> Sync for Base<T> {}

impl<T> Base<T> {
    /// Columns `j * width ..` of the matrix.
    ///
    /// # Safety
    /// The matrix must have `rows` rows of `cols`, of which these columns are handed out once.
    unsafe fn columns<'a>(
        &self,
        j: usize,
        width: usize,
        (rows, cols): (usize, usize),
    ) -> Columns<'a, T> {
        // SAFETY: the first row has these columns.
        let first = unsafe { self.0.add(j * width) };
        Columns { first, rows, row_step: cols, width, owner: PhantomData }
    }
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
    let fits =
        |n: usize, cols: usize, width: usize| n.is_multiple_of(cols) && cols.is_multiple_of(width);
    assert!(fits(a.len(), a_cols, a_width) && fits(b.len(), b_cols, b_width), "columns do not fit");
    assert!(a_cols / a_width == b_cols / b_width, "not as many columns");
    let (a_rows, b_rows) = (a.len() / a_cols, b.len() / b_cols);
    let bases = (Base(a.as_mut_ptr()), Base(b.as_mut_ptr()));
    (0..a_cols / a_width).into_par_iter().for_each(|j| {
        let (a, b) = &bases;
        // SAFETY: the asserts hold; each j comes once, and both matrices are borrowed until all are
        // done.
        unsafe {
            let a = a.columns(j, a_width, (a_rows, a_cols));
            f(j, a, b.columns(j, b_width, (b_rows, b_cols)));
        }
    });
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
    assert!(matrix.len().is_multiple_of(cols) && cols.is_multiple_of(width), "columns do not fit");
    let (rows, base) = (matrix.len() / cols, Base(matrix.as_mut_ptr()));
    (0..cols / width).into_par_iter().for_each(|j| {
        let base = &base;
        // SAFETY: the asserts hold; each j comes once, and `matrix` is borrowed until all are done.
        f(j, unsafe { base.columns(j, width, (rows, cols)) });
    });
}
