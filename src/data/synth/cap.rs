//! The electrodes on one head, and the recording [`Scalp`] they pick up.

use super::head::{dot, unit};
use crate::data::montage::{Position, position};
use crate::data::rng::Rng;
use crate::{Error, Result};

/// Electrodes as they sit on one subject.
pub(super) struct Cap {
    /// Unit vectors, in channel order.
    pub(super) electrodes: Vec<[f64; 3]>,
    /// The potential is measured against the mean of these.
    reference: Vec<[f64; 3]>,
    /// The channel that is the reference itself, hence flat.
    pub(super) flat: Option<usize>,
}

impl Cap {
    /// Puts the cap on: slipped by a degree or two as a whole, each electrode by another.
    ///
    /// 129 channels are measured against Cz, the 10-20 sites against the linked earlobes.
    pub(super) fn new(names: &[String], rng: &mut Rng) -> Result<Self> {
        let slip = [0; 3].map(|_| 0.03 * rng.normal());
        let mut place = |name: &str| {
            let nominal = position(name).ok_or_else(|| {
                Error::input("synth", format!("no position for {name}"), "use known electrodes")
            })?;
            Ok(slipped(nominal, slip, rng))
        };
        let electrodes = names.iter().map(|n| place(n)).collect::<Result<Vec<_>>>()?;
        let is_geodesic = names.len() == 129;
        let flat = names.iter().position(|n| is_geodesic && n == "Cz");
        let reference = match flat {
            Some(cz) => vec![electrodes[cz]],
            None => vec![place("A1")?, place("A2")?],
        };
        Ok(Self { electrodes, reference, flat })
    }

    /// What the channels see of a source whose potential at a point of the scalp is `potential`.
    pub(super) fn topography(&self, potential: impl Fn([f64; 3]) -> f64) -> Vec<f32> {
        let common = self.reference.iter().map(|&r| potential(r)).sum::<f64>();
        let common = common / self.reference.len() as f64;
        self.electrodes.iter().map(|&e| (potential(e) - common) as f32).collect()
    }
}

fn slipped(nominal: Position, slip: [f64; 3], rng: &mut Rng) -> [f64; 3] {
    let [x, y, z] = nominal.map(f64::from);
    // A small rotation about `slip`, and a degree of the electrode's own.
    let turned = [
        x + slip[1] * z - slip[2] * y,
        y + slip[2] * x - slip[0] * z,
        z + slip[0] * y - slip[1] * x,
    ];
    unit(turned.map(|v| v + 0.015 * rng.normal()))
}

/// Angle between two unit vectors, radians.
pub(super) fn angle(a: [f64; 3], b: [f64; 3]) -> f64 {
    dot(a, b).clamp(-1.0, 1.0).acos()
}

/// Potentials at the channels, `[channels, time]`, µV.
pub(super) struct Scalp {
    pub(super) samples: Vec<f32>,
    /// Samples of one channel.
    pub(super) time: usize,
}

/// Sources mixed at once: their time courses and a channel's row stay in the first-level cache.
pub(super) const LANES: usize = 8;

impl Scalp {
    pub(super) fn new(channels: usize, time: usize) -> Self {
        Self { samples: vec![0.0; channels * time], time }
    }

    /// Adds `topography` (one value a channel) times `course` from sample `start` on; what lies
    /// behind the end is cut.
    pub(super) fn add(&mut self, topography: &[f32], start: usize, course: &[f32]) {
        for (row, &gain) in self.samples.chunks_exact_mut(self.time).zip(topography) {
            for (y, &x) in row.iter_mut().skip(start).zip(course) {
                *y += gain * x;
            }
        }
    }

    /// Adds `LANES` sources over the whole recording: the product of `gains`, `[channels, LANES]`,
    /// and `courses`, `[LANES, time or longer]`.
    pub(super) fn mix(&mut self, gains: &[[f32; LANES]], courses: &[Vec<f32>; LANES]) {
        // Blocks of time, so that the courses are read from the first-level cache by all channels.
        const BLOCK: usize = 512;
        for start in (0..self.time).step_by(BLOCK) {
            let end = (start + BLOCK).min(self.time);
            let [a, b, c, d, e, f, g, h] = courses.each_ref().map(|course| &course[start..end]);
            for (row, w) in self.samples.chunks_exact_mut(self.time).zip(gains) {
                for (t, y) in row[start..end].iter_mut().enumerate() {
                    *y += (w[0] * a[t] + w[1] * b[t])
                        + (w[2] * c[t] + w[3] * d[t])
                        + ((w[4] * e[t] + w[5] * f[t]) + (w[6] * g[t] + w[7] * h[t]));
                }
            }
        }
    }
}
