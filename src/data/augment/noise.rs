//! Normal and Beta random numbers, fast enough to draw one for every sample of a window.

use crate::data::rng::Rng;

const LAYERS: usize = 128;
/// Where the tail begins, and the area of each layer (Marsaglia and Tsang 2000, for 128 layers).
const TAIL: f64 = 3.442_619_855_899;
const AREA: f64 = 9.912_563_035_262_17e-3;

/// The ziggurat of Marsaglia and Tsang (2000): the normal density cut into 128 layers of equal area.
#[derive(Debug, Clone)]
pub(super) struct Ziggurat {
    /// Right edge of each layer, from the lowest up; `x[0]` is that of a rectangle with the area of
    /// the lowest layer and its tail.
    x: [f64; LAYERS + 1],
    /// Density at each edge.
    y: [f64; LAYERS + 1],
}

fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp()
}

impl Ziggurat {
    pub(super) fn new() -> Self {
        let mut x = [0.0; LAYERS + 1];
        x[0] = AREA / density(TAIL);
        x[1] = TAIL;
        for i in 2..LAYERS {
            x[i] = (-2.0 * (AREA / x[i - 1] + density(x[i - 1])).ln()).sqrt();
        }
        Self { x, y: x.map(density) }
    }

    /// A standard normal number.
    pub(super) fn draw(&self, rng: &mut Rng) -> f64 {
        loop {
            let bits = rng.next_u64();
            let layer = (bits & 127) as usize;
            let sign = if bits & 128 == 0 { 1.0 } else { -1.0 };
            let x = (bits >> 11) as f64 / (1u64 << 53) as f64 * self.x[layer];
            if x < self.x[layer + 1] {
                return sign * x;
            }
            if layer == 0 {
                return sign * tail(rng);
            }
            let y = self.y[layer] + rng.uniform() * (self.y[layer + 1] - self.y[layer]);
            if y < density(x) {
                return sign * x;
            }
        }
    }
}

/// A normal number beyond [`TAIL`] (Marsaglia 1964).
fn tail(rng: &mut Rng) -> f64 {
    loop {
        let x = -(1.0 - rng.uniform()).ln() / TAIL;
        let y = -(1.0 - rng.uniform()).ln();
        if 2.0 * y > x * x {
            return TAIL + x;
        }
    }
}

/// A number from Beta(alpha, alpha).
pub(super) fn beta(alpha: f64, rng: &mut Rng) -> f64 {
    let (a, b) = (log_gamma_variate(alpha, rng), log_gamma_variate(alpha, rng));
    1.0 / (1.0 + (b - a).exp())
}

/// Logarithm of a number from Gamma(shape, 1) (Marsaglia and Tsang 2000b); a logarithm, since for a
/// small shape the number itself underflows.
fn log_gamma_variate(shape: f64, rng: &mut Rng) -> f64 {
    if shape < 1.0 {
        let boost = (1.0 - rng.uniform()).ln() / shape;
        return log_gamma_variate(shape + 1.0, rng) + boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.uniform()).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
            return (d * v).ln();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{TAIL, Ziggurat, beta};
    use crate::data::rng::Rng;

    #[test]
    fn the_ziggurat_is_normal() {
        let (ziggurat, mut rng) = (Ziggurat::new(), Rng::new(17, 2));
        let n = 400_000;
        let x: Vec<f64> = (0..n).map(|_| ziggurat.draw(&mut rng)).collect();
        let moment = |k: i32| x.iter().map(|x| x.powi(k)).sum::<f64>() / f64::from(n);
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01, "{}", moment(2));
        assert!(moment(3).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.08, "{}", moment(4));
        // Shares beyond 0.5, 1, 2, 3 and the tail's edge, from tables of the normal distribution.
        for (edge, share) in [
            (0.5, 0.617_075),
            (1.0, 0.317_311),
            (2.0, 0.045_500),
            (3.0, 0.002_700),
            (TAIL, 0.000_576),
        ] {
            let found = x.iter().filter(|x| x.abs() > edge).count() as f64 / f64::from(n);
            let tolerance = 4.5 * (share * (1.0 - share) / f64::from(n)).sqrt();
            assert!((found - share).abs() < tolerance, "{edge}: {found} against {share}");
        }
    }

    #[test]
    fn beta_moments() {
        for alpha in [0.05, 0.2, 1.0, 4.0] {
            let mut rng = Rng::new(3, 3);
            let x: Vec<f64> = (0..100_000).map(|_| beta(alpha, &mut rng)).collect();
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let expected = 0.25 / (2.0 * alpha + 1.0);
            assert!((mean - 0.5).abs() < 0.01, "{alpha}: {mean}");
            assert!((variance - expected).abs() < 0.01 * expected.max(0.1), "{alpha}: {variance}");
            assert!(x.iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }
}
