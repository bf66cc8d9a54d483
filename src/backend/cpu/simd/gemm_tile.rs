//! The innermost part of an f32 matrix product: a tile of C held in registers over the whole sum.
//!
//! Every element of C is one chain of fused multiply-adds in the order of k, whatever the tile it
//! falls into, so that results do not depend on how C is cut.

use std::arch::x86_64::{
    __m256, __m256i, __m512, __mmask16, _MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch,
    _mm256_cmpgt_epi32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_maskload_ps, _mm256_maskstore_ps,
    _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps,
    _mm256_storeu_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

/// One product C = alpha A B + beta C with B's rows contiguous, as pointers: element (i, p) of A
/// at `a + i * a_rs + p * a_cs`, (p, j) of B at `b + p * b_rs + j`, (i, j) of C at
/// `c + i * c_rs + j`. With `beta` 0, C is not read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f32,
    pub a: *const f32,
    pub a_rs: usize,
    pub a_cs: usize,
    pub b: *const f32,
    pub b_rs: usize,
    pub beta: f32,
    pub c: *mut f32,
    pub c_rs: usize,
    /// Floats from a row of B to the one that is fetched while it is used; 0: none.
    pub b_ahead: usize,
    /// What is fetched of A meanwhile, a line a term of the sum, and the step from one to the next.
    pub a_ahead: *const f32,
    pub a_step: usize,
}

/// The vector instructions that a tile needs.
trait Vectors {
    type V: Copy;
    type Mask: Copy;
    const LANES: usize;
    unsafe fn zero() -> Self::V;
    /// Fetches the line that will be written.
    unsafe fn expect(to: *const f32);
    /// Fetches a line that will be read.
    #[inline(always)]
    unsafe fn fetch(from: *const f32) {
        // SAFETY: a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// Selects the first `n` of the lanes.
    unsafe fn first(n: usize) -> Self::Mask;
    unsafe fn load_some(mask: Self::Mask, from: *const f32) -> Self::V;
    unsafe fn store_some(mask: Self::Mask, to: *mut f32, v: Self::V);
}

struct Avx512;

// SAFETY (every block below): called only from functions compiled for AVX-512F, on pointers that
// `Product` vouches for; masked-out lanes are not accessed.
impl Vectors for Avx512 {
    type V = __m512;
    type Mask = __mmask16;
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn expect(to: *const f32) {
        // SAFETY: a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(to.cast()) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn first(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }
    #[inline(always)]
    unsafe fn load_some(mask: __mmask16, from: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
    #[inline(always)]
    unsafe fn store_some(mask: __mmask16, to: *mut f32, v: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(to, mask, v) }
    }
}

struct Avx2;

// SAFETY (every block below): called only from functions compiled for AVX2 and FMA, on pointers
// that `Product` vouches for; masked-out lanes are not accessed.
impl Vectors for Avx2 {
    type V = __m256;
    type Mask = __m256i;
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn expect(to: *const f32) {
        // SAFETY: a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(to.cast()) }
    }
    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn first(n: usize) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes)
        }
    }
    #[inline(always)]
    unsafe fn load_some(mask: __m256i, from: *const f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_maskload_ps(from, mask) }
    }
    #[inline(always)]
    unsafe fn store_some(mask: __m256i, to: *mut f32, v: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_maskstore_ps(to, mask, v) }
    }
}

/// The tile of `MR` rows and up to `NV` vectors of columns that begins at `p.a`, `p.b`, `p.c`;
/// `p.n` columns of it are real, more than `NV - 1` vectors' worth.
#[inline(always)]
unsafe fn tile<S: Vectors, const MR: usize, const NV: usize>(p: &Product) {
    // SAFETY: the caller compiled this for S's instructions; `Product` vouches for rows 0..MR of A
    // and C, rows 0..k of B, and columns 0..n, and the mask keeps the last vector within n.
    unsafe {
        let last = p.n - (NV - 1) * S::LANES;
        let (whole, mask) = (last == S::LANES, S::first(last));
        let tail = (NV - 1) * S::LANES;
        // C is read or written only after the whole sum; by then it has come.
        for i in 0..MR {
            let row = p.c.add(i * p.c_rs);
            (0..NV).step_by(16 / S::LANES).for_each(|v| S::expect(row.add(v * S::LANES)));
        }
        let mut sums = [[S::zero(); NV]; MR];
        let (mut a, mut b) = (p.a, p.b);
        let mut a_ahead = p.a_ahead;
        macro_rules! steps {
            ($load:expr) => {
                for _ in 0..p.k {
                    let mut row = [S::zero(); NV];
                    for (v, x) in row.iter_mut().enumerate().take(NV - 1) {
                        *x = S::load(b.add(v * S::LANES));
                    }
                    row[NV - 1] = $load(b.add(tail));
                    for i in 0..MR {
                        let x = S::splat(*a.add(i * p.a_rs));
                        for v in 0..NV {
                            sums[i][v] = S::fma(x, row[v], sums[i][v]);
                        }
                    }
                    // A line of each comes from far where the matrices do not fit the caches: the
                    // processor sees no pattern in strides of kilobytes.
                    S::fetch(a_ahead);
                    S::fetch(b.wrapping_add(p.b_ahead));
                    if NV * S::LANES > 16 {
                        S::fetch(b.wrapping_add(p.b_ahead + 16));
                    }
                    a_ahead = a_ahead.wrapping_add(p.a_step);
                    a = a.wrapping_add(p.a_cs);
                    b = b.wrapping_add(p.b_rs);
                }
            };
        }
        if whole {
            steps!(|from| S::load(from));
        } else {
            steps!(|from| S::load_some(mask, from));
        }
        let (alpha, beta) = (S::splat(p.alpha), S::splat(p.beta));
        for (i, row) in sums.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                let to = p.c.add(i * p.c_rs + v * S::LANES);
                let some = v == NV - 1 && !whole;
                let mut x = if p.alpha == 1.0 { sum } else { S::mul(alpha, sum) };
                if p.beta != 0.0 {
                    let old = if some { S::load_some(mask, to) } else { S::load(to) };
                    x = S::fma(beta, old, x);
                }
                if some {
                    S::store_some(mask, to, x);
                } else {
                    S::store(to, x);
                }
            }
        }
    }
}

/// All tiles of a product: rows in nearly equal tiles of at most `$most`, columns by two vectors.
macro_rules! tiles {
    ($name:ident, $features:literal, $vectors:ty, $most:literal, [$($rows:literal)*]) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(p: &Product) {
            let tall = p.m.div_ceil(p.m.div_ceil($most));
            let wide = 2 * <$vectors>::LANES;
            let mut i = 0;
            while i < p.m {
                let rows = tall.min(p.m - i);
                let mut j = 0;
                while j < p.n {
                    let n = wide.min(p.n - j);
                    // SAFETY: this function is compiled for the instructions it names, and rows
                    // i..i + rows and columns j..j + n lie within the product.
                    unsafe {
                        let at = Product {
                            n,
                            a: p.a.add(i * p.a_rs),
                            b: p.b.add(j),
                            c: p.c.add(i * p.c_rs + j),
                            ..*p
                        };
                        match (rows, n > <$vectors>::LANES) {
                            $(
                                ($rows, true) => tile::<$vectors, $rows, 2>(&at),
                                ($rows, false) => tile::<$vectors, $rows, 1>(&at),
                            )*
                            _ => unreachable!("tiles have 1 to {} rows", $most),
                        }
                    }
                    j += wide;
                }
                i += rows;
            }
        }
    };
}

tiles!(tiles_avx512, "avx512f", Avx512, 14, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
tiles!(tiles_avx2, "avx2,fma", Avx2, 6, [1 2 3 4 5 6]);

/// The tile code for this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tiles {
    Avx512,
    Avx2,
}

impl Tiles {
    /// The best this machine has, if it has any.
    pub(super) fn detect() -> Option<Self> {
        if is_x86_feature_detected!("avx512f") {
            Some(Self::Avx512)
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            Some(Self::Avx2)
        } else {
            None
        }
    }

    /// Rows of the tallest tile.
    pub(super) fn rows(self) -> usize {
        match self {
            Self::Avx512 => 14,
            Self::Avx2 => 6,
        }
    }

    /// Computes `p`.
    ///
    /// # Safety
    /// Every element of A, B and C must be in memory that may be read, and for C also written,
    /// with C overlapping neither A nor B; `self` must come from [`Tiles::detect`].
    pub(super) unsafe fn run(self, p: &Product) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Self::Avx512 => tiles_avx512(p),
                Self::Avx2 => tiles_avx2(p),
            }
        }
    }
}
