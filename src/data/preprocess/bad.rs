//! Bad channels: finding and repairing them.

use super::robust::{centre_and_spread, z_scores};
use super::settings::{BadChannels, Settings};
use super::{Positions, Row};
use crate::data::ChannelKind;
use crate::{Error, Result};

/// Good channels an interpolated one is made from.
const NEIGHBOURS: usize = 6;
/// Channels needed for one of them to be an outlier.
const MIN_FOR_OUTLIERS: usize = 4;
/// Least spread of the log amplitudes, natural logarithm: see [`Settings::bad_z`].
const MIN_LOG_SPREAD: f64 = 0.223;

/// Marks what can be seen before filtering: flags, non-finite samples, constant channels.
///
/// # Errors
/// More than half of the channels have non-finite samples: names the first and its second.
pub(super) fn mark_raw(rows: &mut [Row], settings: &Settings, place: &str) -> Result<()> {
    let mut first: Option<(f64, String)> = None;
    let mut affected = 0;
    for row in rows.iter_mut() {
        if let Some(at) = row.samples.iter().position(|x| !is_sane(*x)) {
            let second = at as f64 / row.rate;
            if first.as_ref().is_none_or(|(earliest, _)| second < *earliest) {
                first = Some((second, row.name.clone()));
            }
            affected += 1;
            row.bad = Some(format!("not finite at {second:.3} s"));
            hold_last_finite(&mut row.samples);
        } else if row.flagged {
            row.bad = Some("marked bad".into());
        } else if is_constant(&row.samples) && !settings.recorded_reference.contains(&row.name) {
            row.bad = Some("flat".into());
        }
    }
    match first {
        Some((second, name)) if 2 * affected > rows.len() => Err(Error::input(
            place,
            format!(
                "channel {name} is not finite from {second:.3} s on, and so are {affected} of {} \
                 channels somewhere",
                rows.len()
            ),
            "cut or repair the recording, or leave it out",
        )),
        _ => Ok(()),
    }
}

fn is_constant(samples: &[f32]) -> bool {
    samples.windows(2).all(|pair| pair[0] == pair[1])
}

/// Finite, and no more than a megavolt, which no electrode gives: squares of it stay finite.
fn is_sane(x: f32) -> bool {
    x.abs() < 1e12
}

/// Replaces non-finite samples by the last finite one before them, or 0.
fn hold_last_finite(samples: &mut [f32]) {
    let mut last = 0.0;
    for x in samples {
        if is_sane(*x) {
            last = *x;
        } else {
            *x = last;
        }
    }
}

/// Marks EEG channels of outlying amplitude, after filtering.
pub(super) fn mark_outliers(rows: &mut [Row], settings: &Settings) {
    let mut scratch = Vec::new();
    let mut candidates = Vec::new();
    let mut logs = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        if row.kind != ChannelKind::Eeg || row.bad.is_some() {
            continue;
        }
        let (_, spread) = centre_and_spread(&row.samples, &mut scratch);
        if spread > 0.0 {
            candidates.push((i, spread));
            logs.push(spread.ln());
        }
    }
    if settings.bad_z == 0.0 || candidates.len() < MIN_FOR_OUTLIERS {
        return;
    }
    for ((i, spread), z) in candidates.into_iter().zip(z_scores(&logs, MIN_LOG_SPREAD)) {
        if z.abs() > settings.bad_z {
            rows[i].bad = Some(format!("amplitude {spread:.3} uV, robust z {z:+.1}"));
        }
    }
}

/// Refuses a recording with too many bad channels.
pub(super) fn check_count(rows: &[Row], settings: &Settings, place: &str) -> Result<()> {
    let mut bad = rows.iter().filter(|row| row.kept && row.bad.is_some());
    let count = bad.clone().count();
    let kept = rows.iter().filter(|row| row.kept).count();
    if count == kept || count as f64 > settings.max_bad_fraction * kept as f64 {
        let example = bad.next().map_or_else(String::new, |row| {
            format!(" (the first: {}, {})", row.name, row.bad.as_deref().unwrap_or_default())
        });
        return Err(Error::input(
            place,
            format!("{count} of {kept} channels are bad{example}"),
            "leave the recording out, or raise preprocess.max_bad_fraction",
        ));
    }
    Ok(())
}

/// Repairs bad channels as `settings.bad_channels` says. Returns one note for each that could not
/// be interpolated.
pub(super) fn repair(
    rows: &mut [Row],
    settings: &Settings,
    positions: Option<Positions<'_>>,
) -> Vec<String> {
    let mut notes = Vec::new();
    if settings.bad_channels == BadChannels::Keep {
        return notes;
    }
    let lookup = |name: &str| positions.and_then(|find| find(name));
    let good: Vec<(usize, [f32; 3])> = (rows.iter().enumerate())
        .filter(|(_, row)| row.kind == ChannelKind::Eeg && row.bad.is_none())
        .filter_map(|(i, row)| Some((i, lookup(&row.name)?)))
        .collect();
    for i in 0..rows.len() {
        if rows[i].bad.is_none() {
            continue;
        }
        rows[i].zeroed = true;
        rows[i].samples.fill(0.0);
        if settings.bad_channels == BadChannels::Zero || rows[i].kind != ChannelKind::Eeg {
            continue;
        }
        let Some(position) = lookup(&rows[i].name).filter(|_| !good.is_empty()) else {
            notes.push(format!("{} has no known position: set to 0", rows[i].name));
            continue;
        };
        let mut samples = std::mem::take(&mut rows[i].samples);
        for (from, weight) in weights(position, &good) {
            for (out, x) in samples.iter_mut().zip(&rows[from].samples) {
                *out += weight * x;
            }
        }
        rows[i].samples = samples;
        rows[i].zeroed = false;
    }
    notes
}

/// Weights 1/distance² of the nearest good channels, summing to 1. A channel at the very same place
/// takes it all.
fn weights(position: [f32; 3], good: &[(usize, [f32; 3])]) -> Vec<(usize, f32)> {
    let mut near: Vec<(f32, usize)> = good
        .iter()
        .map(|(i, other)| {
            let square = (0..3).map(|k| (position[k] - other[k]).powi(2)).sum::<f32>();
            (square, *i)
        })
        .collect();
    near.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    near.truncate(NEIGHBOURS);
    let closest = near.first().map_or(1.0, |n| n.0).max(f32::MIN_POSITIVE);
    // Relative to the closest one, so that no unit of length overflows.
    let raw: Vec<f32> = near.iter().map(|(square, _)| closest / square.max(closest)).collect();
    let sum: f32 = raw.iter().sum();
    near.iter().zip(raw).map(|((_, i), w)| (*i, w / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::weights;

    #[test]
    fn nearer_channels_weigh_more_in_any_unit() {
        for unit in [1e-3f32, 1.0, 90.0] {
            let good: Vec<(usize, [f32; 3])> =
                (0..9).map(|i| (i, [unit * (1.0 + i as f32), 0.0, 0.0])).collect();
            let w = weights([0.0; 3], &good);
            assert_eq!(w.len(), 6);
            assert!((w.iter().map(|w| w.1).sum::<f32>() - 1.0).abs() < 1e-6);
            assert!((w[1].1 / w[0].1 - 0.25).abs() < 1e-5);
            assert!((w[2].1 / w[0].1 - 1.0 / 9.0).abs() < 1e-5);
        }
        let w = weights([1.0, 2.0, 3.0], &[(4, [1.0, 2.0, 3.0]), (5, [1.0, 2.0, 4.0])]);
        assert!(w[0].1 > 0.999_999, "{w:?}");
    }
}
