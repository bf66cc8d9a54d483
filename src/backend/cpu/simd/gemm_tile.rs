//! The innermost part of an f32 matrix product: a tile of C held in registers over the whole sum.
//!
//! Every element of C is one chain of fused multiply-adds in the order of k, whatever the tile it
//! falls into, so that results do not depend on how C is cut.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::vectors::{Avx2, Avx512, Vectors};
use crate::backend::cpu::real::EXP2;

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
    /// From a tile's rows of A to the next one's.
    pub a_tile: usize,
    /// Fetched meanwhile with a tile, from here on.
    pub fetch: Fetch,
    pub then: Then,
}

/// Lines to fetch with each tile: of as many rows as it has, `rs` apart, `count` lines `step` apart; the
/// next tile's are `tile` further on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetch {
    pub from: *const f32,
    pub rs: usize,
    pub step: usize,
    pub count: usize,
    pub tile: usize,
}

/// What becomes of the sums of a tile. All but the first want whole vectors of columns.
#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    /// C = alpha sum + beta C.
    Scale,
    /// C = 2^sum.
    Power(Power<false>),
    /// As `Power`, and C's columns are added up, row by row, in `totals`.
    PowerTotals(Power<true>),
    /// C = factor sum.
    Slope(Slope),
}

/// Of [`Then::Power`] and [`Then::PowerTotals`]; element j of both belongs to C's column j.
#[derive(Debug, Clone, Copy)]
pub(super) struct Power<const TOTALS: bool> {
    /// What the sums begin with.
    pub start: *const f32,
    /// Only where TOTALS.
    pub totals: *mut f32,
}

/// Of [`Then::Slope`]; element j of `start` belongs to C's column j, `factor` lies as C does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slope {
    /// What the sums begin with.
    pub start: *const f32,
    pub factor: *const f32,
}

impl Then {
    /// The same for the part of C that begins `at` elements on, in column `j`.
    pub(super) fn from(self, at: usize, j: usize) -> Self {
        match self {
            Self::Scale => Self::Scale,
            Self::Power(power) => Self::Power(power.from(at, j)),
            Self::PowerTotals(power) => Self::PowerTotals(power.from(at, j)),
            Self::Slope(slope) => Self::Slope(slope.from(at, j)),
        }
    }
}

/// Asks for the line at this address, which may be none.
#[inline(always)]
pub(super) fn fetch<T>(from: *const T) {
    // SAFETY: a hint, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
}

/// The same number, of which the compiler knows nothing.
#[inline(always)]
fn opaque(mut x: usize) -> usize {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(reg) x, options(pure, nomem, nostack, preserves_flags)) };
    x
}

/// The body for each row of a tile, written out: a loop that the compiler leaves one would index the sums
/// at run time, and keep all of them in memory from their first term on.
macro_rules! each_row {
    ($rows:ident, $i:ident => $body:block) => {
        each_row!(@ $rows, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $rows:ident, $i:ident, $body:block, $($at:literal)*) => {
        $(if $at < $rows {
            let $i = $at;
            $body
        })*
    };
}

/// Rows of A whose addresses one instruction can hold: a base, and 0, 1 or 2 times the step of rows.
const GROUP: usize = 3;

/// Groups of the tallest tile.
const GROUPS: usize = 5;

/// The tile of `MR` rows and up to `NV` vectors of columns that begins at `p.a`, `p.b`, `p.c`;
/// `p.n` columns of it are real, more than `NV - 1` vectors' worth.
#[inline(always)]
unsafe fn tile<S: Vectors, F: Finish, const MR: usize, const NV: usize>(p: &Product, then: F) {
    // SAFETY: the caller compiled this for S's instructions; `Product` vouches for rows 0..MR of A
    // and C, rows 0..k of B, and columns 0..n, and the mask keeps the last vector within n.
    unsafe {
        let last = p.n - (NV - 1) * S::LANES;
        let whole = F::AT_HAND || last == S::LANES;
        let tail = (NV - 1) * S::LANES;
        // C is read or written only after the whole sum; by then it has come.
        if !F::AT_HAND {
            for i in 0..MR {
                let row = p.c.add(i * p.c_rs);
                (0..NV).step_by(16 / S::LANES).for_each(|v| S::expect(row.add(v * S::LANES)));
            }
        }
        let mut next = p.fetch.from;
        for _ in 0..p.fetch.count {
            (0..MR).for_each(|i| fetch(next.wrapping_add(i * p.fetch.rs)));
            next = next.wrapping_add(p.fetch.step);
        }
        let mut sums = [then.start::<S, NV>(); MR];
        // Left to itself, the compiler steps from row to row: a chain of additions as long as the
        // multiplications take.
        let mut b = p.b;
        let mut a = [p.a; GROUPS];
        for (i, a) in a.iter_mut().enumerate().take(MR.div_ceil(GROUP)) {
            *a = p.a.wrapping_add(opaque(i * GROUP * p.a_rs));
        }
        macro_rules! steps {
            ($load:expr) => {
                for _ in 0..p.k {
                    let mut row = [S::zero(); NV];
                    for (v, x) in row.iter_mut().enumerate().take(NV - 1) {
                        *x = S::load(b.add(v * S::LANES));
                    }
                    row[NV - 1] = $load(b.add(tail));
                    each_row!(MR, i => {
                        let x = S::splat(*a[i / GROUP].add(i % GROUP * p.a_rs));
                        for v in 0..NV {
                            sums[i][v] = S::fma(x, row[v], sums[i][v]);
                        }
                    });
                    for a in a.iter_mut().take(MR.div_ceil(GROUP)) {
                        *a = a.wrapping_add(p.a_cs);
                    }
                    b = b.wrapping_add(p.b_rs);
                }
            };
        }
        if whole {
            steps!(|from| S::load(from));
        } else {
            let mask = S::first(last);
            steps!(|from| S::load_some(mask, from));
        }
        then.store::<S, MR, NV>(p, &sums, (!whole).then(|| S::first(last)));
    }
}

/// What becomes of a tile's sums, on their way from registers to C.
trait Finish: Copy {
    /// C is working memory: in whole vectors of columns, and near.
    const AT_HAND: bool;

    /// What the sums of every row begin with.
    ///
    /// # Safety
    /// As for [`tile`].
    #[inline(always)]
    unsafe fn start<S: Vectors, const NV: usize>(self) -> [S::V; NV] {
        // SAFETY: as for `tile`.
        unsafe { [S::zero(); NV] }
    }

    /// Stores the sums of the tile at `p.c`; `mask` selects the last vector's columns where not all
    /// exist.
    ///
    /// # Safety
    /// As for [`tile`].
    unsafe fn store<S: Vectors, const MR: usize, const NV: usize>(
        self,
        p: &Product,
        sums: &[[S::V; NV]; MR],
        mask: Option<S::Mask>,
    );

    /// The same for the part of C that begins `at` elements on, in column `j`.
    fn from(self, at: usize, j: usize) -> Self;
}

/// [`Then::Scale`].
#[derive(Clone, Copy)]
struct Scale;

impl Finish for Scale {
    const AT_HAND: bool = false;
    #[inline(always)]
    unsafe fn store<S: Vectors, const MR: usize, const NV: usize>(
        self,
        p: &Product,
        sums: &[[S::V; NV]; MR],
        mask: Option<S::Mask>,
    ) {
        // SAFETY: as for `tile`.
        unsafe {
            let (alpha, beta) = (S::splat(p.alpha), S::splat(p.beta));
            each_row!(MR, i => {
                for (v, &sum) in sums[i].iter().enumerate() {
                    let to = p.c.add(i * p.c_rs + v * S::LANES);
                    let mask = mask.filter(|_| v == NV - 1);
                    let mut x = if p.alpha == 1.0 { sum } else { S::mul(alpha, sum) };
                    if p.beta != 0.0 {
                        let old = mask.map_or_else(|| S::load(to), |mask| S::load_some(mask, to));
                        x = S::fma(beta, old, x);
                    }
                    match mask {
                        Some(mask) => S::store_some(mask, to, x),
                        None => S::store(to, x),
                    }
                }
            });
        }
    }
    #[inline(always)]
    fn from(self, _at: usize, _j: usize) -> Self {
        self
    }
}

/// The first vectors of a row.
///
/// # Safety
/// As for [`tile`], and the row must have them.
#[inline(always)]
unsafe fn vectors_of<S: Vectors, const NV: usize>(row: *const f32) -> [S::V; NV] {
    // SAFETY: the caller's.
    unsafe {
        let mut all = [S::zero(); NV];
        for (v, x) in all.iter_mut().enumerate() {
            *x = S::load(row.add(v * S::LANES));
        }
        all
    }
}

impl<const TOTALS: bool> Finish for Power<TOTALS> {
    const AT_HAND: bool = true;
    #[inline(always)]
    unsafe fn start<S: Vectors, const NV: usize>(self) -> [S::V; NV] {
        // SAFETY: as for `tile`; `start` has an element for each column.
        unsafe { vectors_of::<S, NV>(self.start) }
    }
    #[inline(always)]
    unsafe fn store<S: Vectors, const MR: usize, const NV: usize>(
        self,
        p: &Product,
        sums: &[[S::V; NV]; MR],
        _mask: Option<S::Mask>,
    ) {
        // SAFETY: as for `tile`; `totals`, where there are any, have an element for each column.
        unsafe {
            let mut totals = [S::zero(); NV];
            if TOTALS {
                totals = vectors_of::<S, NV>(self.totals);
            }
            each_row!(MR, i => {
                for (v, &x) in sums[i].iter().enumerate() {
                    let x = power::<S>(x);
                    totals[v] = S::add(totals[v], x);
                    S::store(p.c.add(i * p.c_rs + v * S::LANES), x);
                }
            });
            if TOTALS {
                for (v, &total) in totals.iter().enumerate() {
                    S::store(self.totals.add(v * S::LANES), total);
                }
            }
        }
    }
    #[inline(always)]
    fn from(self, _at: usize, j: usize) -> Self {
        Self { start: self.start.wrapping_add(j), totals: self.totals.wrapping_add(j) }
    }
}

impl Finish for Slope {
    const AT_HAND: bool = true;
    #[inline(always)]
    unsafe fn start<S: Vectors, const NV: usize>(self) -> [S::V; NV] {
        // SAFETY: as for `tile`; `start` has an element for each column.
        unsafe { vectors_of::<S, NV>(self.start) }
    }
    #[inline(always)]
    unsafe fn store<S: Vectors, const MR: usize, const NV: usize>(
        self,
        p: &Product,
        sums: &[[S::V; NV]; MR],
        _mask: Option<S::Mask>,
    ) {
        // SAFETY: as for `tile`; `factor` has an element for each of C.
        unsafe {
            each_row!(MR, i => {
                for (v, &x) in sums[i].iter().enumerate() {
                    let at = i * p.c_rs + v * S::LANES;
                    S::store(p.c.add(at), S::mul(S::load(self.factor.add(at)), x));
                }
            });
        }
    }
    #[inline(always)]
    fn from(self, at: usize, j: usize) -> Self {
        Self { start: self.start.wrapping_add(j), factor: self.factor.wrapping_add(at) }
    }
}

/// 2^x, as [`Real::exp2`](crate::backend::cpu::real::Real::exp2) has it, bit for bit.
#[inline(always)]
unsafe fn power<S: Vectors>(x: S::V) -> S::V {
    // SAFETY: as for `tile`.
    unsafe {
        let x = S::max(S::splat(EXP2.least), x);
        let magic = S::splat(EXP2.magic);
        let shifted = S::add(x, magic);
        let r = S::sub(x, S::sub(shifted, magic));
        let [a, b, c, d, e, f] = EXP2.fit;
        let pair = |high, low| S::fma(S::splat(high), r, S::splat(low));
        let square = S::mul(r, r);
        let p = S::fma(pair(a, b), square, pair(c, d));
        let p = S::fma(p, square, pair(e, f));
        S::mul(p, S::to_exponent(shifted))
    }
}

/// All tiles of a product: rows in tiles of `$most`, columns, at most two vectors of them.
macro_rules! tiles {
    ($name:ident, $features:literal, $vectors:ty, $most:literal, [$($rows:literal)*]) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(p: &Product) {
            macro_rules! rows {
                ($then:expr) => {{
                    let (mut at, mut then) = (*p, $then);
                    // SAFETY: this function is compiled for the instructions it names, and the rows
                    // left and all columns lie within the product.
                    unsafe {
                        // No tile of less than half the rows, which cannot keep the multipliers busy,
                        // but two equal ones at the end. Packed rows are cut already.
                        let packed = p.a_tile != $most * p.a_rs;
                        loop {
                            let rows = match at.m {
                                rows if rows <= $most => rows,
                                rows if rows < $most + $most / 2 && !packed => rows.div_ceil(2),
                                _ => $most,
                            };
                            match (rows, p.n > <$vectors>::LANES) {
                                $(
                                    ($rows, true) => tile::<$vectors, _, $rows, 2>(&at, then),
                                    ($rows, false) => tile::<$vectors, _, $rows, 1>(&at, then),
                                )*
                                _ => unreachable!("tiles have 1 to {} rows", $most),
                            }
                            at.m -= rows;
                            if at.m == 0 {
                                break;
                            }
                            let step = if rows == $most { p.a_tile } else { rows * p.a_rs };
                            at.a = at.a.wrapping_add(step);
                            at.fetch.from = at.fetch.from.wrapping_add(p.fetch.tile);
                            at.c = at.c.wrapping_add(rows * p.c_rs);
                            then = then.from(rows * p.c_rs, 0);
                        }
                    }
                }};
            }
            match p.then {
                Then::Scale => rows!(Scale),
                Then::Power(power) => rows!(power),
                Then::PowerTotals(power) => rows!(power),
                Then::Slope(slope) => rows!(slope),
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

    /// Columns of the widest tile.
    pub(super) fn columns(self) -> usize {
        match self {
            Self::Avx512 => 32,
            Self::Avx2 => 16,
        }
    }

    /// Computes `p`.
    ///
    /// # Safety
    /// Every element of A, B and C must be in memory that may be read, and for C also written,
    /// with C overlapping neither A nor B; `p` must have at least one row and one column, and no more
    /// columns than a tile; `self` must come from [`Tiles::detect`].
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
