//! What preprocessing does to a recording, as settings.

use serde::{Deserialize, Serialize};

use crate::data::ChannelKind;
use crate::{Error, Result};

/// Settings of [`super::preprocess`], in the order in which they act:
/// 1. `kinds`, `channels`: which channels are kept
/// 2. bad channels are found by flag, non-finite or constant samples
/// 3. `high_pass_hz`, `low_pass_hz`, `notch_hz`: zero-phase, each stretch between two "boundary"
///    annotations on its own
/// 4. `resample_hz`
/// 5. bad channels are found by amplitude (`bad_z`); too many (`max_bad_fraction`) refuse the
///    recording
/// 6. `bad_channels`: repair
/// 7. `reference`, over EEG channels
/// 8. `scale`, after subtracting each channel's median
/// 9. `clip`
///
/// A frequency, threshold or limit of 0 switches its step off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Kinds of channels kept: "eeg", "eog", "ecg", "emg", "trigger", "misc".
    pub kinds: Vec<String>,
    /// Names of the channels kept. Empty: all of `kinds`. A recording that lacks one is refused.
    pub channels: Vec<String>,
    /// Lower edge of the pass band, Hz.
    pub high_pass_hz: f64,
    /// Upper edge of the pass band, Hz. Left out, with a note, for recordings whose sample rate is
    /// not above twice this edge.
    pub low_pass_hz: f64,
    /// Mains frequency, 50 or 60 Hz; removed together with its harmonics below half the rate.
    pub notch_hz: f64,
    /// Sample rate of the result, Hz. Where off, all kept channels must share one rate.
    pub resample_hz: f64,
    /// What becomes of bad channels.
    pub bad_channels: BadChannels,
    /// A channel is bad where the logarithm of its robust standard deviation lies more than this
    /// many robust standard deviations from the channels' median. The spread is taken as at least
    /// ln 1.25, so that channels of nearly equal amplitude do not condemn each other.
    pub bad_z: f64,
    /// A recording with a larger share of bad channels is refused. In 0..=1.
    pub max_bad_fraction: f64,
    /// Names of electrodes the recording may have been referenced to: constant there is right, not
    /// bad. (Cz of the Healthy Brain Network's 129 channels.)
    pub recorded_reference: Vec<String>,
    /// What the EEG is referenced to.
    pub reference: Reference,
    /// Unit of the result.
    pub scale: Scale,
    /// Samples are limited to plus and minus this, in the unit of the result.
    pub clip: f32,
}

/// What becomes of bad channels. They never count in an average reference nor in a common scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadChannels {
    /// All samples 0.
    Zero,
    /// Mean of the six nearest good EEG channels, weighted by 1/distance²; 0 where the electrode's
    /// position is unknown.
    Interpolate,
    /// Samples as they are; non-finite ones repeat the last finite one.
    Keep,
}

/// What the EEG is referenced to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reference {
    /// As recorded.
    None,
    /// The mean of the good EEG channels.
    Average,
    /// The mean of the named channels, of any kind.
    Channels(Vec<String>),
}

/// Unit of the result. Each channel's median is subtracted first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Each channel by its own robust standard deviation (IQR / 1.349). A channel with less than
    /// 5 % of the median channel's takes the median, so that a flat one stays flat.
    Channel,
    /// All channels by the median channel's robust standard deviation.
    Recording,
    /// All channels by this many µV.
    Fixed(f32),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kinds: vec!["eeg".into()],
            channels: Vec::new(),
            high_pass_hz: 0.5,
            low_pass_hz: 45.0,
            notch_hz: 0.0,
            resample_hz: 100.0,
            bad_channels: BadChannels::Zero,
            bad_z: 5.0,
            max_bad_fraction: 0.5,
            recorded_reference: vec!["Cz".into()],
            reference: Reference::Average,
            scale: Scale::Channel,
            clip: 20.0,
        }
    }
}

impl Settings {
    /// Checks every field on its own, before any recording is read.
    ///
    /// # Errors
    /// The first field that makes no sense, by name.
    pub fn check(&self) -> Result<()> {
        let numbers = [
            ("high_pass_hz", self.high_pass_hz),
            ("low_pass_hz", self.low_pass_hz),
            ("notch_hz", self.notch_hz),
            ("resample_hz", self.resample_hz),
            ("bad_z", self.bad_z),
            ("clip", f64::from(self.clip)),
        ];
        for (field, value) in numbers {
            if !(value >= 0.0 && value.is_finite()) {
                return refuse(field, value, "give a number above 0, or 0 to switch the step off");
            }
        }
        if !(0.0..=1.0).contains(&self.max_bad_fraction) {
            return refuse("max_bad_fraction", self.max_bad_fraction, "give a share from 0 to 1");
        }
        if self.low_pass_hz > 0.0 && self.high_pass_hz >= self.low_pass_hz {
            return refuse("high_pass_hz", self.high_pass_hz, "it must be below low_pass_hz");
        }
        if let Scale::Fixed(uv) = self.scale
            && !(uv > 0.0 && uv.is_finite())
        {
            return refuse("scale", uv, "give the µV that become 1, as in { fixed = 10.0 }");
        }
        if matches!(&self.reference, Reference::Channels(names) if names.is_empty()) {
            return refuse("reference", "an empty list", "name channels, or give \"average\"");
        }
        self.kept_kinds().map(|_| ())
    }

    /// `kinds`, understood.
    pub(super) fn kept_kinds(&self) -> Result<Vec<ChannelKind>> {
        if self.kinds.is_empty() {
            return refuse("kinds", "an empty list", "give at least \"eeg\"");
        }
        self.kinds.iter().map(|name| kind_named(name)).collect()
    }
}

fn kind_named(name: &str) -> Result<ChannelKind> {
    match name.to_ascii_lowercase().as_str() {
        "eeg" => Ok(ChannelKind::Eeg),
        "eog" => Ok(ChannelKind::Eog),
        "ecg" => Ok(ChannelKind::Ecg),
        "emg" => Ok(ChannelKind::Emg),
        "trigger" => Ok(ChannelKind::Trigger),
        "misc" => Ok(ChannelKind::Misc),
        _ => refuse("kinds", format!("\"{name}\""), "use eeg, eog, ecg, emg, trigger or misc"),
    }
}

fn refuse<T>(field: &str, value: impl std::fmt::Display, remedy: &str) -> Result<T> {
    Err(Error::input(format!("preprocess.{field}"), format!("{value} makes no sense"), remedy))
}

#[cfg(test)]
mod tests {
    use super::{Reference, Scale, Settings};

    #[test]
    fn toml_round_trip_and_readable_forms() {
        let text = "
            kinds = ['eeg', 'eog']
            low_pass_hz = 40
            notch_hz = 60
            bad_channels = 'interpolate'
            reference = { channels = ['M1', 'M2'] }
            scale = { fixed = 10.0 }
        ";
        let settings: Settings = toml::from_str(text).unwrap();
        assert_eq!(settings.reference, Reference::Channels(vec!["M1".into(), "M2".into()]));
        assert_eq!(settings.scale, Scale::Fixed(10.0));
        assert_eq!(settings.high_pass_hz, 0.5);
        settings.check().unwrap();
        let again: Settings = toml::from_str(&toml::to_string(&settings).unwrap()).unwrap();
        assert_eq!(again, settings);
        assert!(toml::from_str::<Settings>("lowpass = 3").is_err());
        let average: Settings = toml::from_str("reference = 'average'").unwrap();
        assert_eq!(average, Settings::default());
    }

    #[test]
    fn nonsense_is_refused_by_field() {
        type Spoil = fn(&mut Settings);
        let bad: [(&str, Spoil); 9] = [
            ("kinds", |s| s.kinds = vec!["eegg".into()]),
            ("kinds", |s| s.kinds.clear()),
            ("high_pass_hz", |s| s.high_pass_hz = 46.0),
            ("low_pass_hz", |s| s.low_pass_hz = f64::NAN),
            ("resample_hz", |s| s.resample_hz = -1.0),
            ("max_bad_fraction", |s| s.max_bad_fraction = 1.5),
            ("scale", |s| s.scale = Scale::Fixed(0.0)),
            ("reference", |s| s.reference = Reference::Channels(Vec::new())),
            ("clip", |s| s.clip = f32::INFINITY),
        ];
        for (field, spoil) in bad {
            let mut settings = Settings::default();
            spoil(&mut settings);
            let message = settings.check().unwrap_err().to_string();
            assert!(message.contains(&format!("preprocess.{field}:")), "{message}");
        }
    }
}
