//! From a recording to samples a model can take: one rate, one reference, one scale.

mod bad;
mod robust;
mod settings;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use rayon::prelude::*;

pub use settings::{BadChannels, Reference, Scale, Settings};

use super::filter::{Filter, Fir, Workspace, harmonics};
use super::resample::Resampler;
use super::window::is_boundary;
use super::{Annotation, ChannelKind, Recording, names};
use crate::{Error, Result};
use robust::{centre_and_spread, quantile};

/// Where an electrode lies on the head, by channel name; any unit of length.
pub type Positions<'a> = &'a (dyn Fn(&str) -> Option<[f32; 3]> + Sync);

/// Share of the median channel's spread below which a channel is scaled by the median instead.
const SCALE_GUARD: f32 = 0.05;

/// A preprocessed recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Processed {
    /// Names, in file order.
    pub channels: Vec<String>,
    /// Samples per second, Hz, of every channel.
    pub sample_rate: f64,
    /// Samples of each channel.
    pub n_samples: usize,
    /// `[channels, time]`, in the unit [`Settings::scale`] says.
    pub samples: Vec<f32>,
    /// The recording's marks.
    pub annotations: Vec<Annotation>,
    /// Bad channels and why they are bad.
    pub bad: Vec<(String, String)>,
    /// What was done otherwise than the settings say, and why.
    pub notes: Vec<String>,
}

/// One channel on its way.
struct Row {
    name: String,
    kind: ChannelKind,
    rate: f64,
    flagged: bool,
    /// False for a channel that is here only to be the reference.
    kept: bool,
    /// Why the channel is bad.
    bad: Option<String>,
    /// Set to 0, to stay so.
    zeroed: bool,
    samples: Vec<f32>,
}

/// Preprocesses `recording` by `settings`; the order of the steps is [`Settings`]'s. Channels are
/// worked on in parallel; the result is the same for any number of threads. Takes the recording so
/// that its memory is freed on the way.
///
/// # Errors
/// No channel of the wanted kind or name, too many bad channels, mostly non-finite samples, rates
/// that differ with no common one set, fewer than two samples.
pub fn preprocess(
    recording: Recording,
    settings: &Settings,
    positions: Option<Positions<'_>>,
) -> Result<Processed> {
    settings.check()?;
    let place = recording.path.display().to_string();
    let annotations = recording.annotations.clone();
    let mut rows = select(recording, settings, &place)?;
    bad::mark_raw(&mut rows, settings, &place)?;
    let sample_rate = common_rate(&rows, settings, &place)?;
    let mut notes = filter_and_resample(&mut rows, settings, &annotations, &place)?;
    let n_samples = rows.iter().map(|row| row.samples.len()).min().unwrap_or(0);
    rows.iter_mut().for_each(|row| row.samples.truncate(n_samples));
    bad::mark_outliers(&mut rows, settings);
    bad::check_count(&rows, settings, &place)?;
    notes.extend(bad::repair(&mut rows, settings, positions));
    rereference(&mut rows, settings, &place)?;
    rows.retain(|row| row.kept);
    rescale(&mut rows, settings);

    let mut samples = Vec::with_capacity(rows.len() * n_samples);
    let mut processed = Processed {
        channels: Vec::with_capacity(rows.len()),
        sample_rate,
        n_samples,
        samples: Vec::new(),
        annotations,
        bad: Vec::new(),
        notes,
    };
    for row in rows {
        samples.extend_from_slice(&row.samples);
        if let Some(why) = row.bad {
            processed.bad.push((row.name.clone(), why));
        }
        processed.channels.push(row.name);
    }
    processed.samples = samples;
    Ok(processed)
}

fn select(recording: Recording, settings: &Settings, place: &str) -> Result<Vec<Row>> {
    let kinds = settings.kept_kinds()?;
    let references: &[String] = match &settings.reference {
        Reference::Channels(names) => names,
        _ => &[],
    };
    let total = recording.channels.len();
    let all: Vec<String> = recording.channels.iter().map(|channel| channel.name.clone()).collect();
    let mut rows = Vec::new();
    for channel in recording.channels {
        let listed = settings.channels.is_empty() || settings.channels.contains(&channel.name);
        let kept = listed && kinds.contains(&channel.kind);
        if !kept && !references.contains(&channel.name) {
            continue;
        }
        if channel.samples.len() < 2 {
            return Err(Error::input(
                place,
                format!("channel {} has {} samples", channel.name, channel.samples.len()),
                "the signal is missing or was cut off: fetch the file again or leave it out",
            ));
        }
        rows.push(Row {
            name: channel.name,
            kind: channel.kind,
            rate: channel.sample_rate,
            flagged: channel.bad,
            kept,
            bad: None,
            zeroed: false,
            samples: channel.samples,
        });
    }
    check_names(&rows, &all, settings, place)?;
    if !settings.channels.is_empty() {
        let place_of = |row: &Row| settings.channels.iter().position(|name| *name == row.name);
        rows.sort_by_key(|row| place_of(row).unwrap_or(usize::MAX));
    }
    if !rows.iter().any(|row| row.kept) {
        return Err(Error::input(
            place,
            format!("none of its {total} channels is of kind {}", settings.kinds.join(" or ")),
            "give the types in channels.tsv, or widen preprocess.kinds",
        ));
    }
    Ok(rows)
}

/// Refuses a file that lacks a channel which the settings name.
fn check_names(rows: &[Row], all: &[String], settings: &Settings, place: &str) -> Result<()> {
    let references: &[String] = match &settings.reference {
        Reference::Channels(names) => names,
        _ => &[],
    };
    // One that is listed and was not taken is of another kind.
    let taken = |name: &&String| rows.iter().any(|row| row.name == **name);
    let listed = |name: &&String| settings.channels.contains(name) || references.contains(name);
    let have: Vec<&str> =
        all.iter().filter(|name| taken(name) || !listed(name)).map(String::as_str).collect();
    for (wanted, field) in
        [(settings.channels.as_slice(), "data.channels"), (references, "data.reference")]
    {
        let Some(lacking) = names::lacking(wanted, &have) else { continue };
        let kinds = settings.kinds.join(" or ");
        let problem = format!("has no channel {lacking} of {field} (of kind {kinds})");
        let remedy = format!("name channels as the file does, in {field}");
        return Err(Error::input(place, problem, remedy));
    }
    Ok(())
}

fn common_rate(rows: &[Row], settings: &Settings, place: &str) -> Result<f64> {
    if settings.resample_hz > 0.0 {
        return Ok(settings.resample_hz);
    }
    let first = &rows[0];
    match rows.iter().find(|row| row.rate != first.rate) {
        None => Ok(first.rate),
        Some(other) => Err(Error::input(
            place,
            format!(
                "channels {} and {} have {} and {} samples a second",
                first.name, other.name, first.rate, other.rate
            ),
            "set data.resample_hz",
        )),
    }
}

/// What is done to all channels of one rate.
struct Chain {
    filter: Option<Filter>,
    resampler: Option<Resampler>,
    stretches: Vec<Range<usize>>,
}

fn filter_and_resample(
    rows: &mut [Row],
    settings: &Settings,
    annotations: &[Annotation],
    place: &str,
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    // Bits of a positive number order as the number does.
    let mut chains: BTreeMap<u64, Chain> = BTreeMap::new();
    for row in rows.iter() {
        if let Entry::Vacant(entry) = chains.entry(row.rate.to_bits()) {
            entry.insert(chain(row, settings, annotations, place, &mut notes)?);
        }
    }
    let buffers = || (Workspace::default(), Vec::new());
    rows.par_iter_mut().for_each_init(buffers, |(workspace, padded), row| {
        let Some(chain) = chains.get(&row.rate.to_bits()) else { return };
        if let Some(filter) = &chain.filter {
            for stretch in &chain.stretches {
                let end = stretch.end.min(row.samples.len());
                if let Some(samples) = row.samples.get_mut(stretch.start..end) {
                    filter.apply(samples, workspace);
                }
            }
        }
        if let Some(resampler) = &chain.resampler {
            row.samples = resampler.apply(&row.samples, padded);
        }
    });
    Ok(notes)
}

fn chain(
    row: &Row,
    settings: &Settings,
    annotations: &[Annotation],
    place: &str,
    notes: &mut Vec<String>,
) -> Result<Chain> {
    let (rate, n) = (row.rate, row.samples.len());
    let in_place = |error: Error| match error {
        Error::Input { place: what, problem, remedy } => {
            Error::input(place, format!("{what}: {problem}"), remedy)
        }
        other => other,
    };
    let fir = design(rate, settings, notes).map_err(in_place)?;
    if let Some(fir) = fir.as_ref().filter(|fir| fir.taps().len() > n) {
        notes.push(format!(
            "its {:.2} s are shorter than the filter's {:.2} s: the lowest frequencies are unsure",
            n as f64 / rate,
            fir.taps().len() as f64 / rate
        ));
    }
    let resampler = match settings.resample_hz {
        0.0 => None,
        to => Some(Resampler::new(rate, to).map_err(in_place)?).filter(|r| !r.is_identity()),
    };
    Ok(Chain {
        filter: fir.as_ref().map(Filter::new),
        resampler,
        stretches: stretches(annotations, rate, n),
    })
}

/// Band-pass and notch as one filter, where either is on and possible at this rate.
fn design(rate: f64, settings: &Settings, notes: &mut Vec<String>) -> Result<Option<Fir>> {
    let on = |hz: f64| (hz > 0.0).then_some(hz);
    let low_pass = on(settings.low_pass_hz).filter(|&hz| {
        let possible = 2.0 * hz < rate;
        if !possible {
            notes.push(format!("low-pass at {hz} Hz left out: the sample rate is {rate} Hz"));
        }
        possible
    });
    let high_pass = on(settings.high_pass_hz);
    let lines = harmonics(settings.notch_hz, rate);
    let band = match (high_pass, low_pass) {
        (None, None) => None,
        _ => Some(Fir::band(rate, high_pass, low_pass)?),
    };
    let notch = if lines.is_empty() { None } else { Some(Fir::notch(rate, &lines)?) };
    match (band, notch) {
        (Some(band), Some(notch)) => Ok(Some(band.then(&notch)?)),
        (band, notch) => Ok(band.or(notch)),
    }
}

/// The parts of `n` samples between boundaries.
fn stretches(annotations: &[Annotation], rate: f64, n: usize) -> Vec<Range<usize>> {
    let mut cuts: Vec<usize> = annotations
        .iter()
        .filter(|a| is_boundary(&a.text))
        .map(|a| (a.onset_s * rate).round().clamp(0.0, n as f64) as usize)
        .collect();
    cuts.extend([0, n]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| pair[0]..pair[1]).filter(|s| !s.is_empty()).collect()
}

/// Subtracts the reference from EEG channels, except those set to 0.
fn rereference(rows: &mut [Row], settings: &Settings, place: &str) -> Result<()> {
    let is_part = |row: &Row| match &settings.reference {
        Reference::None => false,
        Reference::Average => row.kept && row.kind == ChannelKind::Eeg && row.bad.is_none(),
        Reference::Channels(names) => names.contains(&row.name) && row.bad.is_none(),
    };
    let parts = rows.iter().filter(|row| is_part(row)).count();
    if parts == 0 {
        return match &settings.reference {
            Reference::Channels(names) => Err(Error::input(
                place,
                format!("its reference ({}) is bad", names.join(", ")),
                "leave the recording out, or choose another preprocess.reference",
            )),
            _ => Ok(()),
        };
    }
    let n = rows.first().map_or(0, |row| row.samples.len());
    let mut mean = vec![0.0f64; n];
    for row in rows.iter().filter(|row| is_part(row)) {
        mean.iter_mut().zip(&row.samples).for_each(|(m, &x)| *m += f64::from(x));
    }
    mean.iter_mut().for_each(|m| *m /= parts as f64);
    rows.par_iter_mut().filter(|row| row.kind == ChannelKind::Eeg && !row.zeroed).for_each(|row| {
        row.samples.iter_mut().zip(&mean).for_each(|(x, m)| *x = (f64::from(*x) - m) as f32);
    });
    Ok(())
}

/// Subtracts medians, divides by the scale, clips.
fn rescale(rows: &mut [Row], settings: &Settings) {
    let measured: Vec<(f32, f32)> = (rows.par_iter())
        .map_init(Vec::new, |scratch, row| centre_and_spread(&row.samples, scratch))
        .collect();
    let mut good: Vec<f32> = (rows.iter().zip(&measured))
        .filter(|(row, (_, spread))| row.bad.is_none() && *spread > 0.0)
        .map(|(_, (_, spread))| *spread)
        .collect();
    let typical = match quantile(&mut good, 0.5) as f32 {
        spread if spread > 0.0 => spread,
        _ => 1.0,
    };
    let limit = if settings.clip > 0.0 { settings.clip } else { f32::MAX };
    rows.par_iter_mut().zip(measured).for_each(|(row, (centre, spread))| {
        let unit = match settings.scale {
            Scale::Channel if spread >= SCALE_GUARD * typical => spread,
            Scale::Channel | Scale::Recording => typical,
            Scale::Fixed(uv) => uv,
        };
        let factor = 1.0 / unit;
        for x in &mut row.samples {
            *x = ((*x - centre) * factor).clamp(-limit, limit);
        }
    });
}
