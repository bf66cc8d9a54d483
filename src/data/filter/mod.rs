//! Zero-phase filters: high-pass, low-pass, band-pass, mains notch.
//!
//! Windowed-sinc FIR filters with a Hamming window whose transition bands follow Widmann, Schröger
//! and Maess (2015) and MNE-Python's defaults, so that "0.5-50 Hz" means here what it means there:
//! pass-band ripple below 0.02 dB, stop band below -53 dB. A symmetric filter applied with its
//! delay removed has zero phase.

mod design;
mod fft;

pub(in crate::data) use design::sinc;
pub use design::{Fir, harmonics};
pub use fft::{Filter, Workspace};

/// Value of `samples` continued beyond both ends by odd reflection (point symmetry about the first
/// and last sample), repeated as often as needed, so that a recording shorter than the filter is
/// still continued without a step. `i` counts from the first sample and may be negative.
pub(super) fn reflected(samples: &[f32], i: isize) -> f64 {
    let (Some(&first), Some(&last)) = (samples.first(), samples.last()) else { return 0.0 };
    let span = samples.len() as isize - 1;
    if span == 0 {
        return f64::from(first);
    }
    let (turn, within) = (i.div_euclid(2 * span), i.rem_euclid(2 * span));
    let (first, last) = (f64::from(first), f64::from(last));
    let base = if within <= span {
        f64::from(samples[within as usize])
    } else {
        2.0 * last - f64::from(samples[(2 * span - within) as usize])
    };
    base + turn as f64 * 2.0 * (last - first)
}

/// `samples` with `pad` reflected samples before and after, in `out`.
pub(super) fn pad_reflected(samples: &[f32], pad: usize, out: &mut Vec<f64>) {
    let n = samples.len() as isize;
    out.clear();
    out.extend((-(pad as isize)..0).map(|i| reflected(samples, i)));
    out.extend(samples.iter().map(|&x| f64::from(x)));
    out.extend((n..n + pad as isize).map(|i| reflected(samples, i)));
}

#[cfg(test)]
mod tests {
    use super::{pad_reflected, reflected};

    #[test]
    fn a_line_is_continued_as_a_line() {
        let line: Vec<f32> = (0..5).map(|i| 3.0 + 0.5 * i as f32).collect();
        for i in -23..31 {
            assert!((reflected(&line, i) - (3.0 + 0.5 * i as f64)).abs() < 1e-12, "{i}");
        }
    }

    #[test]
    fn one_turn_is_the_textbook_reflection() {
        let x = [4.0f32, -1.0, 7.5, 2.0];
        let mut padded = Vec::new();
        pad_reflected(&x, 3, &mut padded);
        let expected = [6.0, 0.5, 9.0, 4.0, -1.0, 7.5, 2.0, -3.5, 5.0, 0.0];
        assert_eq!(padded, expected);
        pad_reflected(&[2.5], 2, &mut padded);
        assert_eq!(padded, [2.5; 5]);
        pad_reflected(&[], 2, &mut padded);
        assert_eq!(padded, [0.0; 4]);
    }
}
