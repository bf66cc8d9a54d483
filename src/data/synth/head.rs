//! The forward model: a current dipole in a head of three concentric spheres.
//!
//! In each shell the potential is a sum of `A r^n + B r^-(n+1)` times a Legendre function; the
//! boundary conditions (potential and normal current continuous, no current into air) give the
//! scalp's share of every order n in closed form (de Munck & Peters 1993). Lengths are in head
//! radii, conductivities relative to brain and scalp.

/// Outer radius of brain and skull; the scalp's is 1 (Rush & Driscoll 1968: 8, 8.5, 9.2 cm).
const RADII: [f64; 2] = [0.87, 0.92];
/// Conductivity of the skull relative to brain and scalp (Oostendorp et al. 2000: 1/15 to 1/80;
/// the lower end is nearer to children's).
const SKULL: f64 = 1.0 / 25.0;
/// Orders summed. A source at 0.85 leaves 0.85^60 < 1e-4 of the first order.
const ORDERS: usize = 60;

/// Potentials on the scalp of dipoles in the brain, by [`Head::potential`].
pub(super) struct Head {
    /// Of each order n from 1: potential on the scalp per unit of the infinite medium's.
    transfer: [f64; ORDERS],
}

impl Head {
    pub(super) fn new() -> Self {
        Self::with_skull(SKULL)
    }

    fn with_skull(skull: f64) -> Self {
        let mut transfer = [0.0; ORDERS];
        for (n, order) in (1..=ORDERS).zip(&mut transfer) {
            *order = transfer_of_order(n as f64, skull);
        }
        Self { transfer }
    }

    /// Potential at `electrode` (a unit vector) of a dipole of `moment` at `source` (shorter than
    /// the brain's radius), up to a constant factor common to all.
    pub(super) fn potential(&self, source: [f64; 3], moment: [f64; 3], electrode: [f64; 3]) -> f64 {
        let depth = dot(source, source).sqrt().max(1e-9);
        let axis = source.map(|x| x / depth);
        let radial = dot(moment, axis);
        let cosine = dot(axis, electrode).clamp(-1.0, 1.0);
        // moment . (electrode's part across the axis): sin(angle) times the tangential moment.
        let across = dot(moment, electrode) - radial * cosine;
        let (mut p_before, mut p, mut slope_before, mut slope) = (1.0, cosine, 0.0, 1.0);
        let mut power = 1.0;
        let mut sum = 0.0;
        for (n, transfer) in (1..=ORDERS).map(|n| n as f64).zip(&self.transfer) {
            sum += transfer * power * (n * radial * p + across * slope);
            power *= depth;
            // Legendre polynomials and their derivatives, by Bonnet's recursion.
            let next = ((2.0 * n + 1.0) * cosine * p - n * p_before) / (n + 1.0);
            let next_slope = slope_before + (2.0 * n + 1.0) * p;
            (p_before, p, slope_before, slope) = (p, next, slope, next_slope);
        }
        sum
    }
}

/// Walks from the air inwards: the outer shell's (A, B) without normal current, then through each
/// boundary; B in the brain is the source.
fn transfer_of_order(n: f64, skull: f64) -> f64 {
    let (mut a, mut b) = (n + 1.0, n);
    let scalp = a + b;
    for (radius, outside, inside) in [(RADII[1], 1.0, skull), (RADII[0], skull, 1.0)] {
        let (rise, fall) = (radius.powf(n), radius.powf(-n - 1.0));
        let potential = a * rise + b * fall;
        // Radius times the normal current, which is continuous as well.
        let current = outside * (n * a * rise - (n + 1.0) * b * fall) / inside;
        a = ((n + 1.0) * potential + current) / ((2.0 * n + 1.0) * rise);
        b = (n * potential - current) / ((2.0 * n + 1.0) * fall);
    }
    scalp / b
}

pub(super) fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// `v` at length 1; straight up where it has none.
pub(super) fn unit(v: [f64; 3]) -> [f64; 3] {
    let length = dot(v, v).sqrt();
    if length > 0.0 { v.map(|x| x / length) } else { [0.0, 0.0, 1.0] }
}

#[cfg(test)]
mod tests {
    use super::{Head, dot, unit};
    use crate::data::rng::Rng;

    /// Neumann's function of the unit ball with the observer on its surface: the closed form the
    /// series must equal when skull and brain conduct alike.
    fn neumann(observer: [f64; 3], source: [f64; 3]) -> f64 {
        let gap = [0, 1, 2].map(|i| observer[i] - source[i]);
        let distance = dot(gap, gap).sqrt();
        2.0 / distance - ((1.0 - dot(observer, source) + distance) / 2.0).ln()
    }

    fn random(rng: &mut Rng) -> [f64; 3] {
        [0; 3].map(|_| rng.normal())
    }

    #[test]
    fn a_homogeneous_head_matches_the_closed_form() {
        let (head, mut rng) = (Head::with_skull(1.0), Rng::new(11, 1));
        for _ in 0..50 {
            let depth = rng.range(0.1, 0.75);
            let source = unit(random(&mut rng)).map(|x| depth * x);
            let (moment, electrode) = (random(&mut rng), unit(random(&mut rng)));
            let step = 1e-5;
            let shifted = |sign: f64| {
                neumann(electrode, [0, 1, 2].map(|i| source[i] + sign * step * moment[i]))
            };
            let expected = (shifted(1.0) - shifted(-1.0)) / (2.0 * step);
            let got = head.potential(source, moment, electrode);
            assert!((got - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{got} {expected}");
        }
    }

    #[test]
    fn the_skull_spreads_and_weakens() {
        let (skull, none) = (Head::new(), Head::with_skull(1.0));
        let (source, moment) = ([0.0, 0.0, 0.8], [0.0, 0.0, 1.0]);
        let at = |head: &Head, degrees: f64| {
            let a = degrees.to_radians();
            head.potential(source, moment, [a.sin(), 0.0, a.cos()])
        };
        assert!(at(&skull, 0.0) < 0.5 * at(&none, 0.0));
        assert!(at(&skull, 30.0) / at(&skull, 0.0) > 2.0 * at(&none, 30.0) / at(&none, 0.0));
    }
}
