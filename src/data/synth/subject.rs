//! Who is recorded: the parameters of one subject, drawn before any sample is.

use super::Settings;
use crate::data::rng::Rng;

/// Sex as participants.tsv writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sex {
    /// "F"
    Female,
    /// "M"
    Male,
}

/// One subject. Age and sex act on the recording only through the fields below them.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// `participant_id`: "sub-G0001" and on.
    pub id: String,
    /// Years.
    pub age: f64,
    /// Female with probability 0.36, as among those recorded in the Healthy Brain Network.
    pub sex: Sex,
    /// Edinburgh Handedness Questionnaire, -100 to 100; of no consequence for the signal. `None`
    /// for one in twenty: a real table has gaps.
    pub ehq_total: Option<f64>,
    /// Alpha peak, Hz: 10.1 - 4.2 exp(-age / 5.5), SD 0.8 Hz between subjects.
    pub alpha_peak_hz: f64,
    /// Root mean square of alpha over the posterior scalp with closed eyes, µV.
    pub alpha_uv: f64,
    /// Alpha with open eyes relative to closed, by amplitude.
    pub alpha_reactivity: f64,
    /// Exponent of the 1/f background: 1.9 - 0.5 (age - 5) / 16, SD 0.15 between subjects.
    pub exponent: f64,
    /// Amplitude density of the background at 10 Hz, µV/sqrt(Hz); falls 2.5 % a year.
    pub background_uv: f64,
    /// Root mean square of beta (about 20 Hz), µV; 15 % higher in females, SD 25 %.
    pub beta_uv: f64,
    /// Centre of beta, Hz.
    pub beta_peak_hz: f64,
    /// Beats a minute; falls with age.
    pub heart_rate: f64,
    /// Peak of the R wave at the electrode that sees most of it, µV.
    pub ecg_uv: f64,
    /// Blinks a minute with open eyes.
    pub blinks_per_minute: f64,
    /// Peak of the subject's typical blink at Fp1 and Fp2, µV.
    pub blink_uv: f64,
    /// Muscle bursts a minute; children move more.
    pub emg_per_minute: f64,
    /// Amplitude of the mains line, µV.
    pub line_uv: f64,
}

impl Subject {
    /// Subject `index` (from 0) of the dataset `settings` describe.
    pub fn new(settings: &Settings, index: usize) -> Self {
        let rng = &mut stream(settings.seed, index, Purpose::Subject);
        let [youngest, oldest] = settings.age_range;
        // Skewed to the young like the real label frame; two decimals, as it will be read back.
        let age = youngest + (oldest - youngest) * rng.uniform().powf(1.8);
        let age = (age * 100.0).round() / 100.0;
        let sex = if rng.uniform() < 0.36 { Sex::Female } else { Sex::Male };
        let has_ehq = rng.uniform() >= 0.05;
        let ehq_total = (100.0 - 60.0 * rng.normal().powi(2)).clamp(-100.0, 100.0);
        let beta_of_sex = if sex == Sex::Female { 1.15 } else { 1.0 };
        Self {
            id: format!("sub-G{:04}", index + 1),
            age,
            sex,
            ehq_total: has_ehq.then_some((ehq_total * 100.0).round() / 100.0),
            alpha_peak_hz: 10.1 - 4.2 * (-age / 5.5).exp() + 0.8 * normal(rng),
            alpha_uv: 9.0 * (0.35 * normal(rng)).exp(),
            alpha_reactivity: rng.range(0.3, 0.6),
            exponent: 1.9 - 0.5 * (age - 5.0) / 16.0 + 0.15 * normal(rng),
            background_uv: (0.25 * normal(rng) - 0.025 * (age - 12.0)).exp(),
            beta_uv: 1.6 * beta_of_sex * (0.25 * normal(rng)).exp(),
            beta_peak_hz: 20.0 + 1.5 * normal(rng),
            heart_rate: 98.0 - 1.5 * (age - 5.0) + 8.0 * normal(rng),
            ecg_uv: rng.range(2.0, 10.0),
            blinks_per_minute: rng.range(6.0, 22.0),
            blink_uv: rng.range(120.0, 240.0),
            emg_per_minute: rng.range(1.0, 4.0) + 3.0 * (-(age - 5.0) / 5.0).exp(),
            line_uv: rng.range(0.5, 4.0),
        }
    }
}

/// A normal number within 2.5 SD: a tail beyond it is no living subject.
fn normal(rng: &mut Rng) -> f64 {
    rng.normal().clamp(-2.5, 2.5)
}

/// What a stream of random numbers is for. Streams of one subject are independent, so a change in
/// how blinks are drawn leaves its brain as it was.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    Subject,
    Anatomy,
    Brain,
    Artifacts,
    Sensors,
}

/// The stream of one subject and purpose. Seed and subject are mixed by SplitMix64's finaliser
/// (Steele et al. 2014), since PCG's streams of neighbouring numbers resemble each other.
pub(super) fn stream(seed: u64, subject: usize, purpose: Purpose) -> Rng {
    let mix = |mut x: u64| {
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let key = mix(mix(seed) ^ (subject as u64 * 8 + purpose as u64));
    Rng::new(key, mix(key))
}
