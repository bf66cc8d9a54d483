//! Augmentations that move, scale or blank samples and make no new ones: a few numbers a window, which
//! the host applies itself or hands to a device that gathers the window.

use super::{Augment, mix};
use crate::data::rng::Rng;

/// What happens to one window: shift, reversal and factor before its spectrum is touched; order of
/// channels, dropped ones and the mask after it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moves {
    /// Samples by which the window is turned to the right, circularly; below its length.
    pub shift: usize,
    /// Time runs backwards, after the shift.
    pub reversed: bool,
    /// Every sample is multiplied by this: sign and amplitude.
    pub factor: f32,
    /// The channel that each channel's samples come from; None: it is dropped.
    pub rows: Vec<Option<u32>>,
    /// First sample, and number of samples, that are set to 0 in all channels.
    pub mask: (usize, usize),
}

/// The random numbers of one augmentation (`stream`) of a window, where it acts. Each has a stream of its
/// own: switching one on changes no other.
pub(super) fn draw(key: u64, stream: u64, probability: f64) -> Option<Rng> {
    let mut rng = Rng::new(mix(key, stream), stream);
    (rng.uniform() < probability).then_some(rng)
}

/// The key of a window's draws.
pub(super) fn key(seed: u64, step: u64, window: u64) -> u64 {
    mix(mix(seed, step), window)
}

impl Augment {
    /// True where [`Augment::moves`] tells all that [`Augment::apply`] and [`Augment::mixup`] do.
    pub fn only_moves(&self) -> bool {
        let s = &self.settings;
        [s.fourier_surrogate, s.band_stop, s.gaussian_noise, s.mixup].iter().all(|p| *p == 0.0)
    }

    /// What happens to a window; arguments as those of [`Augment::apply`].
    pub fn moves(&self, seed: u64, step: u64, window: u64, moves: &mut Moves) {
        let (s, key) = (&self.settings, key(seed, step, window));
        moves.shift = draw(key, 1, s.time_shift).map_or(0, |mut rng| {
            let most = self.samples_of(s.time_shift_s).min(self.time - 1);
            match rng.below(2 * most + 1) {
                by if by <= most => by,
                by => self.time - (by - most),
            }
        });
        moves.reversed = draw(key, 2, s.time_reversal).is_some();
        moves.factor = if draw(key, 3, s.sign_flip).is_some() { -1.0 } else { 1.0 };
        if let Some(mut rng) = draw(key, 4, s.amplitude_scale) {
            moves.factor *= s.amplitude_scale_max.powf(rng.range(-1.0, 1.0)) as f32;
        }
        moves.rows.clear();
        moves.rows.extend((0..self.channels as u32).map(Some));
        if let Some(mut rng) = draw(key, 7, s.channel_shuffle) {
            for region in &self.regions {
                for i in (1..region.len()).rev() {
                    moves.rows.swap(region[i], region[rng.below(i + 1)]);
                }
            }
        }
        if let Some(mut rng) = draw(key, 8, s.channel_dropout) {
            for row in &mut moves.rows {
                if rng.uniform() < s.channel_dropout_share {
                    *row = None;
                }
            }
        }
        moves.mask = draw(key, 9, s.time_masking).map_or((0, 0), |mut rng| {
            let length = self.samples_of(s.time_masking_s).min(self.time);
            (rng.below(self.time - length + 1), length)
        });
    }
}
