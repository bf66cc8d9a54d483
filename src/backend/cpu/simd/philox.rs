//! Blocks of Philox 4x32-10 (Salmon et al. 2011), many at a time.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256i, _mm256_add_epi64, _mm256_blend_epi32, _mm256_mul_epu32, _mm256_permute2x128_si256,
    _mm256_set1_epi64x, _mm256_setr_epi64x, _mm256_slli_epi64, _mm256_srli_epi64,
    _mm256_storeu_si256, _mm256_unpackhi_epi64, _mm256_unpacklo_epi64, _mm256_xor_si256,
};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One block: four words.
#[inline(always)]
pub fn block(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..ROUNDS {
        let p0 = u64::from(c0) * u64::from(MULTIPLIERS[0]);
        let p1 = u64::from(c2) * u64::from(MULTIPLIERS[1]);
        (c0, c2) = ((p1 >> 32) as u32 ^ c1 ^ k0, (p0 >> 32) as u32 ^ c3 ^ k1);
        (c1, c3) = (p1 as u32, p0 as u32);
        k0 = k0.wrapping_add(KEY_STEPS[0]);
        k1 = k1.wrapping_add(KEY_STEPS[1]);
    }
    [c0, c1, c2, c3]
}

/// Blocks that [`blocks`] fills.
pub const BLOCKS: usize = 64;

/// Consecutive blocks, the first of them with this counter; only its first word counts on.
pub fn blocks([first, c1, c2, c3]: [u32; 4], key: [u32; 2], to: &mut [[u32; 4]; BLOCKS]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 is there.
        return unsafe { blocks_avx2([first, c1, c2, c3], key, to) };
    }
    for (i, to) in to.iter_mut().enumerate() {
        *to = block([first.wrapping_add(i as u32), c1, c2, c3], key);
    }
}

/// [`blocks`], four of them in a vector: the low halves of its 64-bit lanes are words, what is above
/// them is arbitrary. So the products need no words moved about.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn blocks_avx2(counter: [u32; 4], key: [u32; 2], to: &mut [[u32; 4]; BLOCKS]) {
    // As many vectors of blocks as stay in registers: they hide each other's latencies.
    const SIDE: usize = 2;
    let all = |x: u32| _mm256_set1_epi64x(i64::from(x));
    let [m0, m1] = MULTIPLIERS.map(all);
    let mut keys = [[all(0); 2]; ROUNDS];
    for (i, round) in keys.iter_mut().enumerate() {
        for (key, (&first, step)) in round.iter_mut().zip(key.iter().zip(KEY_STEPS)) {
            *key = all(first.wrapping_add(step.wrapping_mul(i as u32)));
        }
    }
    let mut next = _mm256_add_epi64(all(counter[0]), _mm256_setr_epi64x(0, 1, 2, 3));
    for to in to.as_chunks_mut::<{ 4 * SIDE }>().0 {
        let [mut c0, mut c1, mut c2, mut c3] = counter.map(|c| [all(c); SIDE]);
        for c in &mut c0 {
            *c = next;
            next = _mm256_add_epi64(next, all(4));
        }
        for &[k0, k1] in &keys {
            for i in 0..SIDE {
                let p0 = _mm256_mul_epu32(c0[i], m0);
                let p1 = _mm256_mul_epu32(c2[i], m1);
                let high =
                    |p, c, k| _mm256_xor_si256(_mm256_srli_epi64::<32>(p), _mm256_xor_si256(c, k));
                (c0[i], c2[i]) = (high(p1, c1[i], k0), high(p0, c3[i], k1));
                (c1[i], c3[i]) = (p1, p0);
            }
        }
        for (i, to) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            in_order([c0[i], c1[i], c2[i], c3[i]], to);
        }
    }
}

/// Four blocks from the low halves of the lanes of their words.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn in_order([c0, c1, c2, c3]: [__m256i; 4], to: &mut [[u32; 4]; 4]) {
    let pair = |low, high| _mm256_blend_epi32::<0b1010_1010>(low, _mm256_slli_epi64::<32>(high));
    let (a, b) = (pair(c0, c1), pair(c2, c3));
    let (even, odd) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let (first, last): (*mut [u32; 4], _) = (to.as_mut_ptr(), to[2..].as_mut_ptr());
    // SAFETY: two blocks are 32 bytes, and there are two at each.
    unsafe {
        _mm256_storeu_si256(first.cast(), _mm256_permute2x128_si256::<0x20>(even, odd));
        _mm256_storeu_si256(last.cast(), _mm256_permute2x128_si256::<0x31>(even, odd));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution for philox4x32-10.
    #[test]
    fn known_answers() {
        let zeros = block([0; 4], [0; 2]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = block([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn many_blocks_are_one_by_one() {
        let (key, [c1, c2, c3]) = ([0x9234_5678, 0xfedc_ba98], [7, u32::MAX - 3, 0x8000_0001]);
        for first in [0, 1, 0x7fff_fff8, u32::MAX - 5] {
            let mut found = [[0; 4]; BLOCKS];
            blocks([first, c1, c2, c3], key, &mut found);
            let want =
                std::array::from_fn(|i| block([first.wrapping_add(i as u32), c1, c2, c3], key));
            assert_eq!(found, want);
        }
    }
}
