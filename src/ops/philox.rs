//! Philox 4x32-10 (Salmon et al. 2011): random numbers as a function of position, the same on
//! every backend.
//!
//! The step's random state is a tensor `[4]` of i32 in device memory: seed low, seed high, step
//! low, step high (bit patterns of u32). Element `i` of the op with stream `s` takes word `i % 4`
//! of the block with counter (i / 4, s, step low, step high) and key (seed low, seed high). Masks
//! are therefore never stored: the backward pass computes them again.

use crate::backend::cpu::real::{Real, vectorised};
pub use crate::backend::cpu::simd::philox::block;
use crate::backend::cpu::simd::philox::{BLOCKS, blocks};

/// Words of the step's random state.
pub const STATE_WORDS: usize = 4;

/// The random state of one step, to be uploaded before it runs.
pub fn state(seed: u64, step: u64) -> [i32; STATE_WORDS] {
    [seed as i32, (seed >> 32) as i32, step as i32, (step >> 32) as i32]
}

/// A word below this is dropped.
pub fn threshold(probability: f32) -> u32 {
    (f64::from(probability.clamp(0.0, 1.0)) * 4_294_967_296.0).min(4_294_967_295.0) as u32
}

/// What a mask is made of, besides the element's index.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    /// The step's random state.
    pub state: &'a [i32],
    /// Which random op of the step.
    pub stream: u32,
    /// Probability of an element being dropped.
    pub probability: f32,
}

/// Elements whose masks are computed at once.
const TILE: usize = 4 * BLOCKS;

impl Mask<'_> {
    /// Calls `f(piece, factors)` on consecutive pieces of `row`, which begins at element `first`
    /// of the tensor; a factor is 0 where dropped and 1 / (1 - p) elsewhere.
    #[inline(always)]
    pub fn apply<T: Real>(&self, first: usize, row: &mut [T], f: impl Fn(usize, &mut [T], &[T])) {
        let keep = T::of(1.0 / (1.0 - f64::from(self.probability)));
        let limit = threshold(self.probability);
        let word = |i: usize| self.state.get(i).copied().unwrap_or(0) as u32;
        let (key, step) = ([word(0), word(1)], [word(2), word(3)]);
        // `f` too: it is small, and called from here alone.
        vectorised!({
            let mut done = 0;
            let mut factors = [T::ZERO; TILE];
            while done < row.len() {
                let at = first + done;
                let skip = at % 4;
                let take = (TILE - skip).min(row.len() - done);
                let counter = [(at / 4) as u32, self.stream, step[0], step[1]];
                let mut words = [[0; 4]; BLOCKS];
                blocks(counter, key, &mut words);
                for (factor, &word) in factors.iter_mut().zip(words.as_flattened()) {
                    // A choice would become a branch that is often guessed wrong.
                    *factor = keep * T::of(f64::from(u8::from(word >= limit)));
                }
                f(done, &mut row[done..done + take], &factors[skip..skip + take]);
                done += take;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_do_not_depend_on_where_a_row_is_cut() {
        let words = state(0x1234_5678_9abc, 77);
        let mask = Mask { state: &words, stream: 5, probability: 0.3 };
        let factors = |first: usize, n: usize| {
            let mut row = vec![1.0f32; n];
            mask.apply(first, &mut row, |_, row, f| {
                row.iter_mut().zip(f).for_each(|(x, f)| *x *= f);
            });
            row
        };
        let whole = factors(0, 1003);
        let parts = [factors(0, 17), factors(17, 330), factors(347, 656)].concat();
        assert_eq!(whole, parts);
        let dropped = whole.iter().filter(|&&x| x == 0.0).count() as f64 / 1003.0;
        assert!((dropped - 0.3).abs() < 0.06, "{dropped}");
    }
}
