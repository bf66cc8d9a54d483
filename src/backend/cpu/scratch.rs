//! Working memory of host kernels, one piece a thread, kept between launches so that a steady step
//! allocates nothing.

use std::cell::RefCell;

use super::real::Real;

thread_local! {
    static SCRATCH: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `n` elements of unspecified content. A nested call gets memory of its own.
pub fn scratch<T: Real, R>(n: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let mut memory = SCRATCH.take();
    let words = (n * size_of::<T>()).div_ceil(size_of::<f64>());
    if memory.len() < words {
        memory.resize(words, 0.0);
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut memory)[..n]);
    SCRATCH.set(memory);
    result
}
