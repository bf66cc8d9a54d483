//! Generated EEG: a faithful dataset for the demo and for tests.
//!
//! [`write`] makes a BIDS folder of BDF+ files with the labels, the layout, the physiology and the
//! dirt of a developmental resting-state study, so it walks through the same readers as real data.
//!
//! # Layout
//! `subject` who -> `head`, `cap` the forward model -> `spectrum`, `brain` -> `artifacts` ->
//! `bids` the folder.
//!
//! # What a model can learn from it
//! Age, from three correlated traces: the alpha peak rises (10.1 - 4.2 exp(-age / 5.5) Hz, SD
//! 0.8 Hz between subjects), the 1/f exponent falls (1.9 to 1.4 from 5 to 21 years, SD 0.15), the
//! background weakens (2.5 % a year, SD 25 %). Sex, hardly: beta is 15 % higher in females, with
//! an SD of 25 % between subjects. Who it is, easily: every subject has sources, gains and
//! electrode places of its own, so a split by window leaks.
//!
//! Ridge regression on a subject's mean log spectrum, cross-validated by subject, explains 0.6 of
//! the variance of age among 1000 subjects (0.4 to 0.75 among 40, by the seed) and separates the
//! sexes with an AUC of 0.6 among 1000 (by chance only among 40).

mod artifacts;
mod bids;
mod brain;
mod cap;
mod head;
mod spectrum;
mod subject;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::montage::TEN_TWENTY;
use crate::{Error, Result};
use artifacts::Fault;
use cap::{Cap, Scalp};
use spectrum::Noise;
use subject::{Purpose, stream};
pub use subject::{Sex, Subject};

/// What to generate. Equal settings give equal bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Number of subjects, 1 to 9999.
    pub subjects: usize,
    /// Seconds with open eyes, and as many with closed eyes, 4 to 3600.
    pub seconds_per_condition: usize,
    /// Hz, 80 to 2000. Below 120 Hz the 60 Hz mains cannot be in the recording.
    pub sample_rate: usize,
    /// 129 (the geodesic net E1..E128 and Cz, its reference) or 19 (the 10-20 system against
    /// linked earlobes).
    pub n_channels: usize,
    /// Of everything random.
    pub seed: u64,
    /// Youngest and oldest, years, within 5 to 22.
    pub age_range: [f64; 2],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            subjects: 40,
            seconds_per_condition: 30,
            sample_rate: 100,
            n_channels: 129,
            seed: 1,
            age_range: [5.0, 22.0],
        }
    }
}

impl Settings {
    /// Channel names in file order.
    pub fn channel_names(&self) -> Vec<String> {
        if self.n_channels == TEN_TWENTY.len() {
            return TEN_TWENTY.map(String::from).to_vec();
        }
        (1..self.n_channels).map(|i| format!("E{i}")).chain(["Cz".to_string()]).collect()
    }

    /// The conditions in the order of the recording: open and closed eyes alternate in stretches
    /// of at most 20 s.
    fn blocks(&self) -> Vec<Block> {
        let total = self.seconds_per_condition * self.sample_rate;
        let pairs = self.seconds_per_condition.div_ceil(20);
        let mut start = 0;
        let mut blocks = Vec::with_capacity(2 * pairs);
        for pair in 0..pairs {
            let samples = (pair + 1) * total / pairs - pair * total / pairs;
            for eyes_closed in [false, true] {
                blocks.push(Block { start, samples, eyes_closed });
                start += samples;
            }
        }
        blocks
    }

    fn validate(&self) -> Result<()> {
        let refuse = |field: &str, problem: String, remedy: &str| {
            Err(Error::input(format!("synth.{field}"), problem, remedy))
        };
        if !(1..=9999).contains(&self.subjects) {
            let problem = format!("{} subjects", self.subjects);
            return refuse("subjects", problem, "choose 1 to 9999");
        }
        if !(4..=3600).contains(&self.seconds_per_condition) {
            let problem = format!("{} s", self.seconds_per_condition);
            return refuse("seconds_per_condition", problem, "choose 4 to 3600 seconds");
        }
        if !(80..=2000).contains(&self.sample_rate) {
            let problem = format!("{} Hz", self.sample_rate);
            return refuse("sample_rate", problem, "choose 80 to 2000 Hz");
        }
        if ![129, TEN_TWENTY.len()].contains(&self.n_channels) {
            let problem = format!("{} channels", self.n_channels);
            return refuse("n_channels", problem, "choose 129 (geodesic net) or 19 (10-20)");
        }
        let [youngest, oldest] = self.age_range;
        if !(5.0 <= youngest && youngest < oldest && oldest <= 22.0) {
            let problem = format!("{youngest} to {oldest} years");
            return refuse("age_range", problem, "choose a rising range within 5 to 22 years");
        }
        Ok(())
    }
}

/// A stretch of one condition.
#[derive(Debug, Clone, Copy)]
struct Block {
    start: usize,
    samples: usize,
    eyes_closed: bool,
}

/// What [`write`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Summary {
    /// Subjects generated by this call.
    pub written: usize,
    /// Subjects found whole from an earlier, interrupted call.
    pub kept: usize,
    /// Bytes of the recordings written by this call.
    pub bytes: u64,
    /// `false` where cancelled: the folder is no dataset yet, and the same call goes on with it.
    pub is_complete: bool,
}

/// Writes the dataset `settings` describe into `dir`, several subjects at once on rayon's threads;
/// the bytes do not depend on their number.
///
/// A subject's recording appears under its name only when it is whole, and
/// `dataset_description.json` only when all subjects are there. After an interruption the same
/// call goes on where it stopped. `progress(done, subjects)` is called after each subject, from
/// any thread. `cancel` is looked at many times per subject.
///
/// # Errors
/// [`Error::Input`] for settings out of range, and for a folder that holds anything else than a
/// dataset of these very settings. [`Error::Io`] from the system.
pub fn write(
    settings: &Settings,
    dir: &Path,
    progress: &(dyn Fn(usize, usize) + Sync),
    cancel: &AtomicBool,
) -> Result<Summary> {
    settings.validate()?;
    bids::claim(settings, dir)?;
    let subjects: Vec<Subject> =
        (0..settings.subjects).map(|i| Subject::new(settings, i)).collect();
    let done = AtomicUsize::new(0);
    let outcomes = subjects
        .par_iter()
        .enumerate()
        .map(|(index, subject)| {
            let bytes = if bids::has_recording(dir, &subject.id) {
                Some(0)
            } else if let Some(recording) = Generated::new(settings, index, subject, cancel)? {
                Some(bids::write_subject(settings, dir, subject, &recording)?)
            } else {
                None
            };
            if bytes.is_some() {
                progress(1 + done.fetch_add(1, Ordering::Relaxed), settings.subjects);
            }
            Ok(bytes)
        })
        .collect::<Result<Vec<Option<u64>>>>()?;
    let sizes: Vec<u64> = outcomes.iter().flatten().copied().collect();
    let is_complete = sizes.len() == settings.subjects;
    if is_complete {
        bids::write_dataset(settings, dir, &subjects)?;
    }
    let kept = sizes.iter().filter(|&&bytes| bytes == 0).count();
    let bytes = sizes.iter().sum();
    Ok(Summary { written: sizes.len() - kept, kept, bytes, is_complete })
}

/// One subject's recording in memory.
struct Generated {
    names: Vec<String>,
    blocks: Vec<Block>,
    faults: Vec<Option<Fault>>,
    /// `[channels, time]`, µV.
    scalp: Scalp,
}

impl Generated {
    /// `None` where cancelled.
    fn new(
        settings: &Settings,
        index: usize,
        subject: &Subject,
        cancel: &AtomicBool,
    ) -> Result<Option<Self>> {
        let of = |purpose| stream(settings.seed, index, purpose);
        let (mut anatomy, mut brain) = (of(Purpose::Anatomy), of(Purpose::Brain));
        let (mut body, mut sensors) = (of(Purpose::Artifacts), of(Purpose::Sensors));
        let rate = settings.sample_rate as f64;
        let names = settings.channel_names();
        let blocks = settings.blocks();
        let closed = eyes_closed(&blocks, rate);
        let cap = Cap::new(&names, &mut anatomy)?;
        let mut noise = Noise::new(closed.len(), rate);
        let mut scalp = Scalp::new(names.len(), closed.len());
        let rngs = (&mut anatomy, &mut brain);
        if cancel.load(Ordering::Relaxed)
            || !brain::add(subject, &cap, &closed, &mut noise, rngs, cancel, &mut scalp)
        {
            return Ok(None);
        }
        artifacts::add_body(subject, &cap, &closed, rate, &mut body, &mut scalp);
        let faults = artifacts::faults(&cap, &mut sensors);
        artifacts::add_electrodes(
            subject,
            &cap,
            &faults,
            rate,
            &mut noise,
            &mut sensors,
            &mut scalp,
        );
        Ok(Some(Self { names, blocks, faults, scalp }))
    }
}

/// 1 with closed eyes, 0 with open, `[time]`; alpha follows the lids within half a second.
fn eyes_closed(blocks: &[Block], rate: f64) -> Vec<f32> {
    let keep = (-1.0 / (0.4 * rate)).exp() as f32;
    let mut state = 0.0;
    let mut course = Vec::new();
    for block in blocks {
        let target = if block.eyes_closed { 1.0 } else { 0.0 };
        for _ in 0..block.samples {
            state = target + keep * (state - target);
            course.push(state);
        }
    }
    course
}
