//! Which augmentations, how often, how strong.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Settings of [`super::Augment`]. Each augmentation has a probability, 0 by default, with which it
/// acts on a window (mixup: on a batch). They act in the order of these fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Circular shift along time.
    pub time_shift: f64,
    /// Largest shift to either side, s.
    pub time_shift_s: f64,
    /// Time reversed.
    pub time_reversal: f64,
    /// All signs changed.
    pub sign_flip: f64,
    /// All samples multiplied by one factor.
    pub amplitude_scale: f64,
    /// The factor lies between 1/this and this, uniform in its logarithm. Above 1.
    pub amplitude_scale_max: f64,
    /// Random Fourier phases, the same for all channels, which keeps spectra and the relations
    /// between channels (Schwabedal et al. 2018).
    pub fourier_surrogate: f64,
    /// Share of a full turn that phases are drawn from. In 0..=1.
    pub fourier_surrogate_strength: f64,
    /// A band removed, at a random place (Mohsenvand et al. 2020).
    pub band_stop: f64,
    /// Width of the band, Hz.
    pub band_stop_hz: f64,
    /// Channels of one region change places (Saeed et al. 2021). Needs regions.
    pub channel_shuffle: f64,
    /// Channels set to 0.
    pub channel_dropout: f64,
    /// Probability of each channel to be one of them.
    pub channel_dropout_share: f64,
    /// A stretch of time set to 0 in all channels.
    pub time_masking: f64,
    /// Its length, s.
    pub time_masking_s: f64,
    /// White normal noise added.
    pub gaussian_noise: f64,
    /// Its standard deviation, in the unit of the windows.
    pub gaussian_noise_std: f64,
    /// Pairs of windows and of their labels mixed (Zhang et al. 2018).
    pub mixup: f64,
    /// Both parameters of the Beta distribution that the weight is drawn from. Above 0.
    pub mixup_alpha: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            time_shift: 0.0,
            time_shift_s: 0.25,
            time_reversal: 0.0,
            sign_flip: 0.0,
            amplitude_scale: 0.0,
            amplitude_scale_max: 1.25,
            fourier_surrogate: 0.0,
            fourier_surrogate_strength: 1.0,
            band_stop: 0.0,
            band_stop_hz: 5.0,
            channel_shuffle: 0.0,
            channel_dropout: 0.0,
            channel_dropout_share: 0.2,
            time_masking: 0.0,
            time_masking_s: 0.5,
            gaussian_noise: 0.0,
            gaussian_noise_std: 0.1,
            mixup: 0.0,
            mixup_alpha: 0.2,
        }
    }
}

impl Settings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Input`] naming the first field out of its range.
    pub fn check(&self) -> Result<()> {
        self.wrong()
            .map_or(Ok(()), |(field, problem, remedy)| Err(Error::input(field, problem, remedy)))
    }

    /// The first field out of its range, dotted, what is wrong with it, and what helps.
    pub(crate) fn wrong(&self) -> Option<(&'static str, String, String)> {
        let shares = [
            ("augment.time_shift", self.time_shift),
            ("augment.time_reversal", self.time_reversal),
            ("augment.sign_flip", self.sign_flip),
            ("augment.amplitude_scale", self.amplitude_scale),
            ("augment.fourier_surrogate", self.fourier_surrogate),
            ("augment.fourier_surrogate_strength", self.fourier_surrogate_strength),
            ("augment.band_stop", self.band_stop),
            ("augment.channel_shuffle", self.channel_shuffle),
            ("augment.channel_dropout", self.channel_dropout),
            ("augment.channel_dropout_share", self.channel_dropout_share),
            ("augment.time_masking", self.time_masking),
            ("augment.gaussian_noise", self.gaussian_noise),
            ("augment.mixup", self.mixup),
        ];
        for (field, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                let remedy = "give a probability or share from 0 to 1";
                return Some((field, format!("{value} is out of range"), remedy.to_string()));
            }
        }
        let sizes = [
            ("augment.time_shift_s", self.time_shift_s, 0.0),
            ("augment.amplitude_scale_max", self.amplitude_scale_max, 1.0),
            ("augment.band_stop_hz", self.band_stop_hz, 0.0),
            ("augment.time_masking_s", self.time_masking_s, 0.0),
            ("augment.gaussian_noise_std", self.gaussian_noise_std, 0.0),
            ("augment.mixup_alpha", self.mixup_alpha, 1e-3),
        ];
        for (field, value, least) in sizes {
            if !(value >= least && value.is_finite()) {
                let remedy = format!("give a number of at least {least}");
                return Some((field, format!("{value} is out of range"), remedy));
            }
        }
        None
    }
}
