//! Order statistics that artefacts do not move.

/// IQR of a normal distribution of unit variance.
const IQR_OF_NORMAL: f64 = 1.349;
/// Median absolute deviation of a normal distribution of unit variance.
const MAD_OF_NORMAL: f64 = 0.6745;

/// Median and robust standard deviation (IQR / 1.349) of `samples`; `scratch` is overwritten.
/// (0, 0) for no samples.
pub(super) fn centre_and_spread(samples: &[f32], scratch: &mut Vec<f32>) -> (f32, f32) {
    scratch.clear();
    scratch.extend_from_slice(samples);
    let median = quantile(scratch, 0.5);
    let iqr = quantile(scratch, 0.75) - quantile(scratch, 0.25);
    (median as f32, (iqr / IQR_OF_NORMAL) as f32)
}

/// Quantile with linear interpolation between order statistics (type 7 of Hyndman and Fan 1996,
/// NumPy's default). Reorders `values`. 0 for no values.
pub(super) fn quantile(values: &mut [f32], share: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let position = share * last as f64;
    let (_, low, above) = values.select_nth_unstable_by(position as usize, f32::total_cmp);
    let low = f64::from(*low);
    let next = above.iter().copied().min_by(f32::total_cmp).map_or(low, f64::from);
    low + (next - low) * position.fract()
}

/// Robust z of each value: distance from the median in robust standard deviations (MAD / 0.6745),
/// the latter taken as at least `floor`.
pub(super) fn z_scores(values: &[f32], floor: f64) -> Vec<f64> {
    let median = quantile(&mut values.to_vec(), 0.5);
    let mut distances: Vec<f32> =
        values.iter().map(|&v| (f64::from(v) - median).abs() as f32).collect();
    let spread = (quantile(&mut distances, 0.5) / MAD_OF_NORMAL).max(floor);
    values.iter().map(|&v| (f64::from(v) - median) / spread).collect()
}

#[cfg(test)]
mod tests {
    use super::{centre_and_spread, quantile, z_scores};
    use crate::data::rng::Rng;

    #[test]
    fn quantiles_equal_sorting_and_interpolating() {
        let mut rng = Rng::new(3, 9);
        for n in 1..60usize {
            let mut values: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
            let mut sorted = values.clone();
            sorted.sort_by(f32::total_cmp);
            for share in [0.0, 0.25, 0.5, 0.75, 0.9, 1.0] {
                let at = share * (n - 1) as f64;
                let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
                let expected = f64::from(low) + (f64::from(high) - f64::from(low)) * at.fract();
                assert!((quantile(&mut values, share) - expected).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn outliers_do_not_move_centre_and_spread() {
        let mut rng = Rng::new(4, 9);
        let mut x: Vec<f32> = (0..40_001).map(|_| (7.0 + 12.0 * rng.normal()) as f32).collect();
        x[..400].fill(1e6);
        let (centre, spread) = centre_and_spread(&x, &mut Vec::new());
        assert!((centre - 7.0).abs() < 0.6 && (spread - 12.0).abs() < 0.6, "{centre} {spread}");
        let z = z_scores(&[1.0, 1.1, 0.9, 1.05, 0.95, 9.0], 0.0);
        assert!(z[5] > 50.0 && z[..5].iter().all(|z| z.abs() < 2.0), "{z:?}");
        assert_eq!(z_scores(&[2.0, 2.0, 2.5], 0.25), [0.0, 0.0, 2.0]);
    }
}
