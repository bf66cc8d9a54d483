//! Arithmetic that every host kernel is generic over: f32 with functions that vectorise, f64 with
//! the system's exact ones, so that f64 is a reference for f32 as well.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

use crate::Element;

/// f32 or f64.
pub trait Real:
    Element
    + Copy
    + PartialOrd
    + Sum
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + realfft::FftNum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Rounds to this type.
    fn of(value: f64) -> Self;
    /// Widens.
    fn wide(self) -> f64;
    /// e^self.
    fn exp(self) -> Self;
    /// 2^self for a softmax: up to 2^127, and what would be below 2^-126 becomes that in f32.
    fn exp2(self) -> Self;
    /// Natural logarithm of a positive number.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// Slope of the exact GELU x Φ(x).
    fn gelu_slope(self) -> Self;
    /// self * a + b, rounded once in f32.
    fn fma(self, a: Self, b: Self) -> Self;
    /// The larger one.
    fn larger(self, other: Self) -> Self;
    /// The smaller one.
    fn smaller(self, other: Self) -> Self;
    /// Magnitude.
    fn magnitude(self) -> Self;
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn of(value: f64) -> Self {
        value
    }
    fn wide(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn exp2(self) -> Self {
        f64::exp2(self)
    }
    fn ln(self) -> Self {
        f64::ln(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn gelu_slope(self) -> Self {
        normal_cdf(self) + self * normal_pdf(self)
    }
    fn fma(self, a: Self, b: Self) -> Self {
        self * a + b
    }
    fn larger(self, other: Self) -> Self {
        self.max(other)
    }
    fn smaller(self, other: Self) -> Self {
        self.min(other)
    }
    fn magnitude(self) -> Self {
        self.abs()
    }
}

/// What [`Real::exp2`] of f32 is made of.
#[derive(Debug)]
pub struct Exp2 {
    /// Exponents below become this one.
    pub least: f32,
    /// 1.5 * 2^23, which rounds what it is added to, and the bias of exponents: the low bits of the
    /// sum become those of 2^n.
    pub magic: f32,
    /// Coefficients of 2^r for r in [-1/2, 1/2], the highest power's first.
    pub fit: [f32; 6],
}

/// The only one. The fit's 0.693147 is no ln 2.
#[allow(clippy::approx_constant)]
pub const EXP2: Exp2 = Exp2 {
    least: -126.0,
    magic: 12_583_039.0,
    fit: [0.001_326_472_7, 0.009_671_513, 0.055_507_336, 0.240_222_42, 0.693_147, 1.0],
};

/// The coefficients below are minimax fits made for this file (Lawson's iteration on the relative
/// error, in f64): 3e-9 for `exp`, 9e-8 for `exp2`, 6e-9 for `ln`, 3e-8 for `erf`
/// before rounding to f32. That of `gelu_slope` has an absolute error of 1e-7.
impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as Self
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        // Past these, the result is 0 or infinity in f32; NaN passes through both.
        let x = if self < -87.3 { -87.3 } else { self };
        let x = if x > 88.7 { 88.7 } else { x };
        // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
        let magic = 12_582_912.0f32;
        let shifted = x.fma(std::f32::consts::LOG2_E, magic);
        let n = shifted - magic;
        let r = n.fma(-0.693_359_4, x);
        let r = n.fma(2.121_944_4e-4, r);
        let q = 0.001_381_461_3f32.fma(r, 0.008_368_71).fma(r, 0.041_668_39);
        let q = q.fma(r, 0.166_665_21).fma(r, 0.499_999_94);
        let p = q.fma(r * r, r) + 1.0;
        // 2^n in two factors: n reaches 128, one above the largest exponent.
        let k = (shifted.to_bits() as i32).wrapping_sub(magic.to_bits() as i32);
        let half = k >> 1;
        let low = Self::from_bits(((half + 127) as u32) << 23);
        let high = Self::from_bits(((k - half + 127) as u32) << 23);
        let scaled = p * low * high;
        if self < -87.3 { 0.0 } else { scaled }
    }

    #[inline(always)]
    fn exp2(self) -> Self {
        let x = if self < EXP2.least { EXP2.least } else { self };
        let shifted = x + EXP2.magic;
        let r = x - (shifted - EXP2.magic);
        // By pairs: a third of the time that one term after the other takes to come through.
        let [a, b, c, d, e, f] = EXP2.fit;
        let square = r * r;
        let p = a.fma(r, b).fma(square, c.fma(r, d)).fma(square, e.fma(r, f));
        p * Self::from_bits(shifted.to_bits() << 23)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        let bits = self.to_bits();
        // Exponent relative to sqrt(1/2), so that the mantissa lies in [sqrt(1/2), sqrt(2)).
        let k = (bits.wrapping_sub(0x3f35_04f3) as i32) >> 23;
        let t = Self::from_bits(bits.wrapping_sub((k << 23) as u32)) - 1.0;
        let p = (-0.078_596_92f32).fma(t, 0.128_817_92).fma(t, -0.131_287_9);
        let p = p.fma(t, 0.141_811_74).fma(t, -0.166_245_49).fma(t, 0.200_022_88);
        let p = p.fma(t, -0.250_008_1).fma(t, 0.333_333_16);
        let k = k as Self;
        let tail = (p * t).fma(t * t, k * -2.121_944_4e-4);
        k.fma(0.693_359_4, (t * t).fma(-0.5, tail) + t)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn erf(self) -> Self {
        let x = if self > 4.0 { 4.0 } else { self };
        let x = if x < -4.0 { -4.0 } else { x };
        let z = x * x;
        let p = 1.986_783_2e-6f32.fma(z, 2.845_666e-4).fma(z, 0.003_883_361_4);
        let p = p.fma(z, 0.053_101_797).fma(z, 0.193_545_43);
        let p = p.fma(z, std::f32::consts::FRAC_2_SQRT_PI);
        let q = 3.742_022e-5f32.fma(z, 0.001_185_576).fma(z, 0.015_207_284);
        let q = q.fma(z, 0.115_350_16).fma(z, 0.504_857_7).fma(z, 1.0);
        let y = x * p / q;
        let y = if y > 1.0 { 1.0 } else { y };
        if y < -1.0 { -1.0 } else { y }
    }

    #[inline(always)]
    fn gelu_slope(self) -> Self {
        // One fit instead of an error function and an exponential. It is odd around 1/2.
        let x = if self > 5.8 { 5.8 } else { self };
        let x = if x < -5.8 { -5.8 } else { x };
        let z = x * x;
        let p = 1.929_288_7e-7f32.fma(z, 3.595_591_3e-5).fma(z, 1.922_069_5e-5);
        let p = p.fma(z, 0.014_230_304).fma(z, -0.030_995_851).fma(z, 0.797_885_36);
        let q = 8.952_406e-6f32.fma(z, 1.920_363_7e-4).fma(z, 0.003_523_034_5);
        let q = q.fma(z, 0.040_980_212).fma(z, 0.294_494_03).fma(z, 1.0);
        x * p / q + 0.5
    }

    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        // One instruction inside `vectorised` on any x86-64 since 2013 and every aarch64; a library
        // call elsewhere.
        self.mul_add(a, b)
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if self < other { self } else { other }
    }
    #[inline(always)]
    fn magnitude(self) -> Self {
        self.abs()
    }
}

/// Runs an expression compiled for the widest vectors of this machine. It must be straight-line
/// loops over slices, with every callee marked `#[inline(always)]`, or nothing is gained.
///
/// A macro, because a closure that is called from one place only is always inlined there, and only
/// what is inlined gets the wider instructions.
macro_rules! vectorised {
    ($body:expr) => {{
        #[cfg(target_arch = "x86_64")]
        let result = match pulp::Arch::new() {
            pulp::Arch::V4(wide) => pulp::Simd::vectorize(wide, || $body),
            pulp::Arch::V3(wide) => pulp::Simd::vectorize(wide, || $body),
            _ => $body,
        };
        #[cfg(not(target_arch = "x86_64"))]
        let result = $body;
        result
    }};
}
pub(crate) use vectorised;

/// Standard normal distribution function, for the exact GELU.
#[inline(always)]
pub fn normal_cdf<T: Real>(x: T) -> T {
    let half = T::of(0.5);
    half * (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf() + half
}

/// Standard normal density.
#[inline(always)]
pub fn normal_pdf<T: Real>(x: T) -> T {
    (T::of(-0.5) * x * x).exp() * T::of(0.398_942_280_401_432_7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(from: f64, to: f64, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let at = |i: i32| (from + (to - from) * f64::from(i) / 200_003.0) as f32;
        let error = |x: f32| {
            let want = exact(f64::from(x));
            (f64::from(f(x)) - want).abs() / want.abs().max(1e-30)
        };
        (0..200_003).map(|i| error(at(i))).fold(0.0, f64::max)
    }

    #[test]
    fn f32_functions_are_within_a_few_units_of_the_last_place() {
        assert!(worst(-87.0, 88.0, Real::exp, f64::exp) < 2.5e-7);
        assert!(worst(-125.9, 127.0, Real::exp2, f64::exp2) < 3e-7);
        assert!(worst(1e-30, 2.0, |x| Real::exp(Real::ln(x)), |x| x) < 1e-5);
        assert!(worst(1.5, 1e6, Real::ln, f64::ln) < 2e-7);
        assert!(worst(1e-4, 6.0, Real::erf, libm::erf) < 6e-7);
        assert!(worst(-6.0, -1e-4, Real::erf, libm::erf) < 6e-7);
    }

    #[test]
    fn the_slope_of_a_gelu_is_near_the_exact_one() {
        let error = |x: f32| (f64::from(x.gelu_slope()) - f64::from(x).gelu_slope()).abs();
        let worst = (-100_000..=100_000).map(|i| error(i as f32 * 1e-4)).fold(0.0, f64::max);
        assert!(worst < 4e-7, "{worst}");
        assert!(Real::gelu_slope(f32::NAN).is_nan());
        assert_eq!(Real::gelu_slope(0.0f32), 0.5);
    }

    #[test]
    fn edges() {
        assert_eq!(Real::exp(-1e9f32), 0.0);
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(0.0f32), 1.0);
        assert!(Real::exp(f32::NAN).is_nan());
        assert_eq!(Real::ln(1.0f32), 0.0);
        assert_eq!(Real::exp2(0.0f32), 1.0);
        assert_eq!(Real::exp2(-17.0f32), 2f32.powi(-17));
        assert_eq!(Real::exp2(f32::NEG_INFINITY), f32::MIN_POSITIVE);
        assert!(Real::exp2(f32::NAN).is_nan());
    }
}
