//! Transposes of small matrices.

use std::any::TypeId;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
    _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

use crate::backend::cpu::real::Real;

/// `to[j, i] = from[i, j]` for a matrix `[rows, cols]`; rows of `from` and `to` are as far apart as
/// the numbers beside them say.
///
/// # Panics
/// When a slice is too short: a bug of the caller.
pub fn transpose<T: Real>(
    (rows, cols): (usize, usize),
    (from, from_step): (&[T], usize),
    (to, to_step): (&mut [T], usize),
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(from.len() >= (rows - 1) * from_step + cols, "from is too short");
    assert!(to.len() >= (cols - 1) * to_step + rows, "to is too short");
    let mut whole = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if TypeId::of::<T>() == TypeId::of::<f32>() && is_x86_feature_detected!("avx2") {
        whole = (rows / 8 * 8, cols / 8 * 8);
        let (from, to) = (bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to));
        // SAFETY: AVX2 is there, and the asserts keep these blocks inside the slices.
        unsafe { blocks(whole, (from, from_step), (to, to_step)) };
    }
    for i in 0..rows {
        let first = if i < whole.0 { whole.1 } else { 0 };
        for j in first..cols {
            to[j * to_step + i] = from[i * from_step + j];
        }
    }
}

/// [`transpose`] of blocks of 8 x 8.
///
/// # Safety
/// AVX2 must be there, `rows` and `cols` multiples of 8, and the slices as long as there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn blocks(
    (rows, cols): (usize, usize),
    (from, from_step): (&[f32], usize),
    (to, to_step): (&mut [f32], usize),
) {
    for i in (0..rows).step_by(8) {
        for j in (0..cols).step_by(8) {
            // SAFETY: the block lies inside both matrices.
            unsafe {
                let from = from.as_ptr().add(i * from_step + j);
                let to = to.as_mut_ptr().add(j * to_step + i);
                let row = |r: usize| _mm256_loadu_ps(from.add(r * from_step));
                let block = block([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)]);
                for (c, column) in block.into_iter().enumerate() {
                    _mm256_storeu_ps(to.add(c * to_step), column);
                }
            }
        }
    }
}

/// The columns of eight rows: pairs of neighbours, then fours, then halves are exchanged.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn block(x: [__m256; 8]) -> [__m256; 8] {
    let low = |i: usize| _mm256_unpacklo_ps(x[i], x[i + 1]);
    let high = |i: usize| _mm256_unpackhi_ps(x[i], x[i + 1]);
    let (a, b, c, d) = (low(0), high(0), low(2), high(2));
    let (e, f, g, h) = (low(4), high(4), low(6), high(6));
    let first = |a, b| _mm256_shuffle_ps::<0x44>(a, b);
    let last = |a, b| _mm256_shuffle_ps::<0xee>(a, b);
    let top = [first(a, c), last(a, c), first(b, d), last(b, d)];
    let bottom = [first(e, g), last(e, g), first(f, h), last(f, h)];
    let left = |i: usize| _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]);
    let right = |i: usize| _mm256_permute2f128_ps::<0x31>(top[i], bottom[i]);
    [left(0), left(1), left(2), left(3), right(0), right(1), right(2), right(3)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_moves_and_nothing_else_is_written() {
        for (rows, cols) in [(0, 3), (1, 1), (7, 9), (8, 8), (25, 16), (42, 31)] {
            let (from_step, to_step) = (cols + 3, rows + 2);
            let from: Vec<f32> = (0..(rows * from_step).max(1)).map(|i| i as f32).collect();
            let mut to = vec![-1.0f32; cols * to_step + 1];
            transpose((rows, cols), (&from, from_step), (&mut to, to_step));
            for (at, &found) in to.iter().enumerate() {
                let (j, i) = (at / to_step, at % to_step);
                let inside = j < cols && i < rows;
                let want = if inside { from[i * from_step + j] } else { -1.0 };
                assert!(found == want, "{rows} x {cols}: {j}, {i}");
            }
        }
    }
}
