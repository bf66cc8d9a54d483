//! Filter design: sums of windowed-sinc low-passes, one for each transition band.

use std::f64::consts::{PI, TAU};

use crate::{Error, Result};

/// Length of a Hamming-windowed filter times its transition width, in units of the sample period
/// (Widmann et al. 2015, table 1).
const HAMMING_LENGTH: f64 = 3.3;

/// A symmetric FIR filter of odd length: linear phase, zero phase once its delay is removed.
#[derive(Debug, Clone, PartialEq)]
pub struct Fir {
    taps: Vec<f64>,
    sample_rate: f64,
}

impl Fir {
    /// High-pass and low-pass in one. `high_pass_hz` and `low_pass_hz` are the edges of the pass
    /// band; either may be `None`. Transition bands lie outside it, as MNE-Python chooses them:
    /// `min(max(0.25 f, 2), f)` below the high-pass edge and `min(max(0.25 f, 2), nyquist - f)`
    /// above the low-pass edge, in Hz.
    ///
    /// # Errors
    /// An edge at or below 0 Hz, at or above the Nyquist frequency, edges in the wrong order, no
    /// edge at all, a sample rate that is not positive.
    pub fn band(
        sample_rate: f64,
        high_pass_hz: Option<f64>,
        low_pass_hz: Option<f64>,
    ) -> Result<Self> {
        check_rate(sample_rate)?;
        let nyquist = sample_rate / 2.0;
        for (name, edge) in [("high-pass", high_pass_hz), ("low-pass", low_pass_hz)] {
            if let Some(hz) = edge.filter(|hz| !(*hz > 0.0 && *hz < nyquist)) {
                return Err(Error::input(
                    format!("{name} edge"),
                    format!("{hz} Hz is not between 0 and {nyquist} Hz, half the sample rate"),
                    "choose an edge below half the sample rate, or switch this filter off",
                ));
            }
        }
        let low = low_pass_hz.map(|hz| {
            let width = (0.25 * hz).max(2.0).min(nyquist - hz);
            low_pass(sample_rate, hz + width / 2.0, width)
        });
        let below = high_pass_hz.map(|hz| {
            let width = (0.25 * hz).max(2.0).min(hz);
            low_pass(sample_rate, hz - width / 2.0, width)
        });
        let taps = match (below, low) {
            (Some(below), Some(low)) => {
                if high_pass_hz >= low_pass_hz {
                    return Err(Error::input(
                        "filter edges",
                        format!("high-pass {high_pass_hz:?} Hz is not below {low_pass_hz:?} Hz"),
                        "the high-pass edge must be the lower one",
                    ));
                }
                add(low, &below, -1.0)
            }
            (Some(below), None) => add(vec![1.0], &below, -1.0),
            (None, Some(low)) => low,
            (None, None) => {
                return Err(Error::input("filter", "has no edge", "give at least one edge"));
            }
        };
        Ok(Self { taps, sample_rate })
    }

    /// Band-stop around each of `lines_hz` (see [`harmonics`]): stop band f/200 wide, transition
    /// bands of 0.5 Hz, MNE-Python's defaults.
    ///
    /// # Errors
    /// No line, a line too near 0 Hz or the Nyquist frequency, a sample rate that is not positive.
    pub fn notch(sample_rate: f64, lines_hz: &[f64]) -> Result<Self> {
        check_rate(sample_rate)?;
        let mut taps = vec![1.0];
        for &line in lines_hz {
            let half = notch_half_width(line);
            if !(line - half > 0.0 && line + half < sample_rate / 2.0) {
                return Err(Error::input(
                    "notch",
                    format!("{line} Hz is too near 0 Hz or {} Hz", sample_rate / 2.0),
                    "give the mains frequency, 50 or 60 Hz, or switch the notch off",
                ));
            }
            let centre = half - NOTCH_TRANSITION_HZ / 2.0;
            let above = low_pass(sample_rate, line + centre, NOTCH_TRANSITION_HZ);
            let below = low_pass(sample_rate, line - centre, NOTCH_TRANSITION_HZ);
            taps = add(add(taps, &above, -1.0), &below, 1.0);
        }
        if lines_hz.is_empty() {
            return Err(Error::input("notch", "has no line", "give the mains frequency"));
        }
        Ok(Self { taps, sample_rate })
    }

    /// This filter followed by `other`, as one filter. Both are for the same sample rate.
    ///
    /// # Errors
    /// Sample rates that differ.
    pub fn then(&self, other: &Self) -> Result<Self> {
        if self.sample_rate != other.sample_rate {
            let problem = format!("{} Hz against {} Hz", self.sample_rate, other.sample_rate);
            return Err(Error::shape("filter cascade", problem));
        }
        let mut taps = vec![0.0; self.taps.len() + other.taps.len() - 1];
        for (i, a) in self.taps.iter().enumerate() {
            for (out, b) in taps[i..].iter_mut().zip(&other.taps) {
                *out += a * b;
            }
        }
        Ok(Self { taps, sample_rate: self.sample_rate })
    }

    /// Coefficients, an odd number, symmetric about the middle one.
    pub fn taps(&self) -> &[f64] {
        &self.taps
    }

    /// Samples per second the filter is designed for.
    pub fn sample_rate(&self) -> f64 {
        self.sample_rate
    }

    /// Gain at `frequency_hz`, with its sign: the frequency response is real at zero phase.
    pub fn gain(&self, frequency_hz: f64) -> f64 {
        let middle = self.taps.len() / 2;
        let step = TAU * frequency_hz / self.sample_rate;
        let side = self.taps[middle + 1..].iter().zip(1..);
        let tail: f64 = side.map(|(h, k)| h * (step * f64::from(k)).cos()).sum();
        self.taps[middle] + 2.0 * tail
    }
}

/// Transition width on either side of a notch, Hz.
const NOTCH_TRANSITION_HZ: f64 = 0.5;

/// From a notch's centre to where the gain is 1 again, Hz.
fn notch_half_width(line_hz: f64) -> f64 {
    line_hz / 400.0 + NOTCH_TRANSITION_HZ
}

/// `line_hz` and its multiples that a notch can remove below half of `sample_rate`. Empty where the
/// mains frequency itself lies above.
pub fn harmonics(line_hz: f64, sample_rate: f64) -> Vec<f64> {
    if !(line_hz > 1.0 && sample_rate.is_finite()) {
        return Vec::new();
    }
    (1..)
        .map(|k| line_hz * f64::from(k))
        .take_while(|&f| f + notch_half_width(f) < sample_rate / 2.0)
        .collect()
}

fn check_rate(sample_rate: f64) -> Result<()> {
    if sample_rate.is_finite() && sample_rate > 0.0 {
        return Ok(());
    }
    Err(Error::input(
        "sample rate",
        format!("{sample_rate} Hz is not a positive number"),
        "check the sample rate in the recording's header",
    ))
}

/// Hamming-windowed sinc of unit gain at 0 Hz, half gain at `cutoff_hz`.
fn low_pass(sample_rate: f64, cutoff_hz: f64, transition_hz: f64) -> Vec<f64> {
    let length = (HAMMING_LENGTH * sample_rate / transition_hz).round() as usize | 1;
    let middle = (length / 2) as f64;
    let cutoff = 2.0 * cutoff_hz / sample_rate;
    let mut taps: Vec<f64> = (0..length)
        .map(|i| {
            let t = i as f64 - middle;
            let window = 0.54 + 0.46 * (PI * t / middle.max(1.0)).cos();
            window * cutoff * sinc(cutoff * t)
        })
        .collect();
    let sum: f64 = taps.iter().sum();
    taps.iter_mut().for_each(|h| *h /= sum);
    taps
}

/// sin(πx) / (πx).
pub(in crate::data) fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) }
}

/// `a + factor * b`, both centred on their middle tap.
fn add(mut a: Vec<f64>, b: &[f64], factor: f64) -> Vec<f64> {
    if a.len() < b.len() {
        let mut wide = vec![0.0; b.len()];
        let offset = (b.len() - a.len()) / 2;
        wide[offset..offset + a.len()].copy_from_slice(&a);
        a = wide;
    }
    let offset = (a.len() - b.len()) / 2;
    for (out, x) in a[offset..].iter_mut().zip(b) {
        *out += factor * x;
    }
    a
}

#[cfg(test)]
mod tests {
    use super::{Fir, harmonics};

    /// Taps and gains printed by `mne.filter.create_filter(None, rate, l, h, phase="zero",
    /// fir_design="firwin")` of MNE-Python 1.13.2: centre tap, the next, the seventh, then gains at
    /// 0, 0.2, 0.5, 1, 10, 40, 45, 50, 56.25 and 60 Hz.
    type Expected = (f64, Option<f64>, Option<f64>, usize, [f64; 3], [f64; 10]);
    const MNE: [Expected; 5] = [
        (
            500.0,
            Some(0.5),
            Some(50.0),
            3301,
            [0.22375450340034378, 0.20539218978121682, -0.04405642115917492],
            [
                0.0,
                0.322580588,
                0.996242399,
                1.001527966,
                0.998389945,
                0.998205252,
                1.000176703,
                0.996150442,
                0.499144393,
                0.080372245,
            ],
        ),
        (
            500.0,
            Some(0.5),
            None,
            3301,
            [0.9989951297110371, -0.0010048677981634062, -0.0010047482455411863],
            [
                0.0,
                0.322595557,
                0.996334817,
                1.001881716,
                1.000009963,
                1.000013572,
                0.999986378,
                1.000013658,
                0.999963835,
                1.000013706,
            ],
        ),
        (
            500.0,
            None,
            Some(50.0),
            133,
            [0.2247593736893067, 0.20639705757938023, -0.04305167291363374],
            [
                1.0,
                0.999985031,
                0.999907581,
                0.999646251,
                0.998379982,
                0.99819168,
                1.000190325,
                0.996136783,
                0.499180558,
                0.080358539,
            ],
        ),
        (
            125.0,
            Some(1.0),
            Some(40.0),
            413,
            [0.7112404007279985, 0.2355899946017518, -0.012241970668510072],
            [
                0.0,
                0.074534681,
                0.496809383,
                0.995722823,
                0.998374491,
                0.993572914,
                0.499564273,
                0.005522347,
                0.001803397,
                0.001494468,
            ],
        ),
        (
            250.0,
            Some(0.1),
            Some(100.0),
            8251,
            [0.8983444573786835, 0.09695601246386752, 0.022732915516254726],
            [
                0.0,
                1.001879488,
                1.000836745,
                0.99989147,
                0.997866688,
                0.997632448,
                1.00020703,
                0.998055451,
                0.99823521,
                1.000414292,
            ],
        ),
    ];

    #[test]
    fn band_filters_are_those_of_mne() {
        let probes = [0.0, 0.2, 0.5, 1.0, 10.0, 40.0, 45.0, 50.0, 56.25, 60.0];
        for (rate, low, high, length, taps, gains) in MNE {
            let fir = Fir::band(rate, low, high).unwrap();
            assert_eq!(fir.taps().len(), length, "{rate} {low:?} {high:?}");
            let middle = length / 2;
            for (offset, tap) in [0, 1, 7].into_iter().zip(taps) {
                assert!((fir.taps()[middle + offset] - tap).abs() < 1e-12, "{low:?} {high:?}");
                assert_eq!(fir.taps()[middle + offset], fir.taps()[middle - offset]);
            }
            for (hz, gain) in probes.into_iter().zip(gains) {
                let ours = fir.gain(hz).abs();
                assert!((ours - gain).abs() < 2e-9, "{hz} Hz: {ours} against {gain}");
            }
        }
    }

    #[test]
    fn notches_are_those_of_mne() {
        // mne.filter.notch_filter's defaults, same version: lines, length, centre tap, third tap,
        // gains at f-3, f-1, f-0.5, f, f+0.5, f+3.
        let fir = Fir::notch(500.0, &harmonics(60.0, 500.0)).unwrap();
        assert_eq!(harmonics(60.0, 500.0), [60.0, 120.0, 180.0, 240.0]);
        assert_eq!(fir.taps().len(), 3301);
        assert!((fir.taps()[1650] - 0.9799859147987424).abs() < 1e-12);
        assert!((fir.taps()[1653] - 0.004284233019846387).abs() < 1e-12);
        let probes = [57.0, 59.0, 59.5, 60.0, 60.5, 63.0, 120.0];
        let gains =
            [1.00045742, 0.99815574, 0.81978502, 0.00143644, 0.81982903, 1.00047825, 0.00108193];
        for (hz, gain) in probes.into_iter().zip(gains) {
            assert!((fir.gain(hz).abs() - gain).abs() < 1e-8, "{hz}: {}", fir.gain(hz));
        }
        let fir = Fir::notch(125.0, &harmonics(50.0, 125.0)).unwrap();
        assert_eq!(fir.taps().len(), 825);
        assert!((fir.gain(50.0).abs() - 0.00164574).abs() < 1e-8);
        assert!((fir.gain(49.5) - 0.87573551).abs() < 1e-8);
    }

    #[test]
    fn edges_outside_the_band_are_refused() {
        for (low, high) in [
            (Some(0.0), None),
            (Some(-1.0), None),
            (None, Some(50.0)),
            (None, Some(f64::NAN)),
            (Some(30.0), Some(20.0)),
            (None, None),
        ] {
            assert!(Fir::band(100.0, low, high).is_err(), "{low:?} {high:?}");
        }
        assert!(Fir::band(0.0, Some(1.0), None).is_err());
        assert!(Fir::notch(100.0, &[50.0]).is_err());
        assert!(Fir::notch(100.0, &[]).is_err());
        assert!(harmonics(60.0, 100.0).is_empty());
        assert!(harmonics(0.0, 100.0).is_empty());
    }

    #[test]
    fn a_cascade_multiplies_gains() {
        let (band, notch) =
            (Fir::band(250.0, Some(1.0), Some(70.0)), Fir::notch(250.0, &[50.0, 100.0]));
        let (band, notch) = (band.unwrap(), notch.unwrap());
        let both = band.then(&notch).unwrap();
        for hz in [0.3, 1.0, 13.7, 49.6, 50.0, 71.0, 99.9] {
            assert!((both.gain(hz) - band.gain(hz) * notch.gain(hz)).abs() < 1e-12);
        }
        assert!(both.then(&Fir::band(100.0, Some(1.0), None).unwrap()).is_err());
    }
}
