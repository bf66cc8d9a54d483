//! `engine data info` of a single recording: channels, amplitudes, marks.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value, json};

use super::data_info::{row, section};
use super::text;
use crate::Result;
use crate::console::{Console, time};
use crate::data::bids::Dataset;
use crate::data::{Channel, ChannelKind, Recording};

/// Different marks that are shown; --json has them all.
const MOST_MARKS: usize = 12;

/// Says what one recording holds, with its sidecars where it lies in a BIDS dataset.
///
/// # Errors
/// As [`Recording::open`].
pub fn run(path: &Path, console: &Console) -> Result<()> {
    let (recording, place) = open(path)?;
    let amplitudes: Vec<Amplitude> = recording.channels.par_iter().map(Amplitude::of).collect();
    let words = words(&recording, place.as_deref(), &amplitudes);
    console.finish(words.trim_end(), &json(&recording, place.as_deref(), &amplitudes));
    Ok(())
}

/// The recording, and what the dataset around it calls it.
fn open(path: &Path) -> Result<(Recording, Option<String>)> {
    let Some((dataset, path_there)) = dataset_of(path) else {
        return Ok((Recording::open(path)?, None));
    };
    if let Some(entry) = dataset.recordings.iter().find(|entry| entry.path == path_there) {
        let place = format!("{} of task {} in {}", entry.subject, entry.task, dataset.name);
        return Ok((entry.read()?, Some(place)));
    }
    let mut recording = Recording::open(path)?;
    if let Some(skipped) = dataset.skipped.iter().find(|skipped| skipped.path == path_there) {
        recording.notes.push(format!("the dataset around it passes it over: {}", skipped.why));
    }
    Ok((recording, None))
}

/// The BIDS dataset that a recording lies in, and the recording's path there.
fn dataset_of(path: &Path) -> Option<(Dataset, PathBuf)> {
    // Symbolic links of the file itself are git-annex's: only the folder is resolved.
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = parent.canonicalize().ok()?;
    let root = folder.ancestors().take(4).find(|f| f.join("participants.tsv").is_file())?;
    Some((Dataset::scan(root).ok()?, folder.join(path.file_name()?)))
}

/// Distribution of a channel's samples, in its unit.
struct Amplitude {
    /// Lower quartile, median, upper quartile; None without any finite sample.
    quartiles: Option<[f32; 3]>,
    /// All samples are equal.
    flat: bool,
    /// Samples that are no numbers.
    not_finite: usize,
}

impl Amplitude {
    fn of(channel: &Channel) -> Self {
        let mut values: Vec<f32> =
            channel.samples.iter().copied().filter(|v| v.is_finite()).collect();
        let not_finite = channel.samples.len() - values.len();
        let Some(last) = values.len().checked_sub(1) else {
            return Self { quartiles: None, flat: false, not_finite };
        };
        let mut at = |share: f64| {
            let rank = (share * last as f64).round() as usize;
            *values.select_nth_unstable_by(rank, f32::total_cmp).1
        };
        let quartiles = [at(0.25), at(0.5), at(0.75)];
        let flat = at(0.0) == at(1.0);
        Self { quartiles: Some(quartiles), flat, not_finite }
    }
}

fn kind(kind: ChannelKind) -> &'static str {
    match kind {
        ChannelKind::Eeg => "EEG",
        ChannelKind::Eog => "EOG",
        ChannelKind::Ecg => "ECG",
        ChannelKind::Emg => "EMG",
        ChannelKind::Trigger => "trigger",
        ChannelKind::Misc => "other",
    }
}

fn words(recording: &Recording, place: Option<&str>, amplitudes: &[Amplitude]) -> String {
    let mut out = String::new();
    let kinds = text::tally(recording.channels.iter().map(|c| kind(c.kind)));
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let rates = text::tally(recording.channels.iter().map(|c| hz(c.sample_rate)));
    let rates: Vec<&str> = rates.iter().map(|(rate, _)| rate.as_str()).collect();
    let seconds = recording.duration_s();
    let duration = match seconds < 60.0 {
        true => format!("{} s", text::number(seconds)),
        false => format!("{} ({} s)", time(seconds), text::number(seconds)),
    };
    let mut head = vec![
        row(["duration", &duration]),
        row(["channels", &kinds.join(", ")]),
        row(["rate", &rates.join(", ")]),
    ];
    if let Some(place) = place {
        head.insert(0, row(["dataset", place]));
    }
    if let Some(typical) = typical(recording, amplitudes) {
        head.push(row(["amplitude", &typical]));
    }
    section(&mut out, &recording.path.display().to_string(), &head);
    let heading = ["name", "kind", "unit", "rate", "quartile", "median", "quartile", ""];
    let mut rows = vec![heading.map(str::to_string).to_vec()];
    for (channel, amplitude) in recording.channels.iter().zip(amplitudes) {
        rows.push(channel_row(channel, amplitude));
    }
    section(&mut out, "Channels", &rows);
    section(&mut out, "Marks", &mark_rows(recording));
    let notes: Vec<Vec<String>> = recording.notes.iter().map(|n| vec![n.clone()]).collect();
    section(&mut out, "Notes", &notes);
    out
}

fn hz(rate: f64) -> String {
    format!("{} Hz", text::number(rate))
}

/// The middle half of a typical EEG channel: the median over channels of their interquartile range.
fn typical(recording: &Recording, amplitudes: &[Amplitude]) -> Option<String> {
    let eeg = recording.channels.iter().zip(amplitudes);
    let eeg = eeg.filter(|(c, _)| c.kind == ChannelKind::Eeg && c.unit == "uV");
    let mut ranges: Vec<f32> =
        eeg.filter_map(|(_, a)| a.quartiles.map(|[lower, _, upper]| upper - lower)).collect();
    ranges.sort_by(f32::total_cmp);
    let median = ranges.get(ranges.len() / 2)?;
    let [least, most] = [ranges.first()?, ranges.last()?].map(|r| text::number(f64::from(*r)));
    let median = text::number(f64::from(*median));
    Some(format!("between quartiles {median} µV ({least} to {most} over EEG channels)"))
}

fn channel_row(channel: &Channel, amplitude: &Amplitude) -> Vec<String> {
    let unit = if channel.unit == "uV" { "µV" } else { &channel.unit };
    let quartiles = match amplitude.quartiles {
        Some(quartiles) => quartiles.map(|q| text::number(f64::from(q))),
        None => ["-", "-", "-"].map(str::to_string),
    };
    let mut remarks = Vec::new();
    if channel.bad {
        remarks.push("bad".to_string());
    }
    if amplitude.flat {
        remarks.push("flat".to_string());
    }
    if amplitude.not_finite > 0 {
        remarks.push(format!("{} samples are no numbers", amplitude.not_finite));
    }
    let [lower, median, upper] = quartiles;
    vec![
        channel.name.clone(),
        kind(channel.kind).to_string(),
        unit.to_string(),
        hz(channel.sample_rate),
        lower,
        median,
        upper,
        remarks.join(", "),
    ]
}

fn mark_rows(recording: &Recording) -> Vec<Vec<String>> {
    let texts = text::tally(recording.annotations.iter().map(|a| a.text.as_str()));
    let line = |(text, n): &(&str, usize)| {
        let of = || recording.annotations.iter().filter(|a| a.text == *text);
        let first = of().next().map_or(0.0, |a| a.onset_s);
        let seconds: f64 = of().map(|a| a.duration_s).sum();
        let lasting = match seconds > 0.0 {
            true => format!(", {} s in all", text::number(seconds)),
            false => String::new(),
        };
        vec![
            format!("{n} x"),
            text.to_string(),
            format!("first at {} s{lasting}", text::number(first)),
        ]
    };
    let mut rows: Vec<Vec<String>> = texts.iter().take(MOST_MARKS).map(line).collect();
    if texts.len() > MOST_MARKS {
        let more = format!("{} more; --json has them all", texts.len() - MOST_MARKS);
        rows.push(row(["", &more]));
    }
    rows
}

fn json(recording: &Recording, place: Option<&str>, amplitudes: &[Amplitude]) -> Value {
    let channel = |(channel, amplitude): (&Channel, &Amplitude)| {
        json!({
            "name": channel.name,
            "kind": kind(channel.kind),
            "unit": channel.unit,
            "rate_hz": channel.sample_rate,
            "samples": channel.samples.len(),
            "bad": channel.bad,
            "flat": amplitude.flat,
            "not_finite": amplitude.not_finite,
            "quartiles": amplitude.quartiles,
        })
    };
    let mark = |a: &crate::data::Annotation| json!({ "onset_s": a.onset_s, "duration_s": a.duration_s, "text": a.text });
    json!({
        "kind": "recording",
        "path": recording.path,
        "dataset": place,
        "seconds": recording.duration_s(),
        "channels": recording.channels.iter().zip(amplitudes).map(channel).collect::<Vec<_>>(),
        "marks": recording.annotations.iter().map(mark).collect::<Vec<_>>(),
        "notes": recording.notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Rng;

    #[test]
    fn quartiles_are_ranks_of_the_sorted_samples() {
        let mut rng = Rng::new(12, 0);
        for n in [1, 2, 5, 101, 4001] {
            let mut samples: Vec<f32> = (0..n).map(|_| rng.normal() as f32 * 20.0).collect();
            let mut channel = Channel {
                name: "Pz".to_string(),
                kind: ChannelKind::Eeg,
                unit: "uV".to_string(),
                bad: false,
                sample_rate: 100.0,
                samples: samples.clone(),
            };
            channel.samples.insert(n / 2, f32::NAN);
            let found = Amplitude::of(&channel);
            samples.sort_by(f32::total_cmp);
            let rank = |share: f64| samples[(share * (n - 1) as f64).round() as usize];
            assert_eq!(found.quartiles, Some([rank(0.25), rank(0.5), rank(0.75)]));
            assert_eq!((found.not_finite, found.flat), (1, n == 1));
            channel.samples = vec![f32::NAN; 3];
            assert_eq!(Amplitude::of(&channel).quartiles, None);
        }
    }
}
