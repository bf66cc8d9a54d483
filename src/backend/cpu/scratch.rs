//! Working memory of host kernels, kept by each thread between launches so that a steady step
//! allocates nothing.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

use super::real::Real;

/// A cache line, so that vectors in working memory do not straddle two.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([f64; 8]);

thread_local! {
    // Nested calls, also those of work that a thread takes on while it waits, use further pieces.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `n` elements of unspecified content, aligned to 64 bytes. A nested call gets
/// other memory.
pub fn scratch<T: Real, R>(n: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let mut memory = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = (n * size_of::<T>()).div_ceil(size_of::<Line>());
    if memory.len() < lines {
        memory.resize(lines, Line::zeroed());
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut memory)[..n]);
    FREE.with_borrow_mut(|free| free.push(memory));
    result
}
