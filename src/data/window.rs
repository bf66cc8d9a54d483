//! Windows: the stretches of recordings that a model sees, by time or around events.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Annotation;
use super::names::few;
use crate::{Error, Result};

/// How recordings are cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Windowing {
    /// One window every `stride_s` seconds from the start on, each `length_s` seconds long.
    Sliding {
        /// Seconds.
        length_s: f64,
        /// Seconds; equal to `length_s` for windows side by side.
        stride_s: f64,
    },
    /// One window around each matching annotation, from `tmin_s` to `tmax_s` after its onset.
    Events {
        /// Texts to match, ignoring case. A trailing `*` matches any ending. The place of the text
        /// in this list becomes [`Window::event`].
        texts: Vec<String>,
        /// Seconds from the onset to the first sample; negative for before.
        tmin_s: f64,
        /// Seconds from the onset to the end, exclusive.
        tmax_s: f64,
    },
}

/// A stretch of one recording. Its length is [`Windows::length`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Window {
    /// Index of the recording.
    pub recording: u32,
    /// First sample.
    pub start: u32,
    /// Index of the text that matched; 0 for sliding windows.
    pub event: u32,
}

/// What windowing needs to know of a recording.
#[derive(Debug, Clone, Copy)]
pub struct Extent<'a> {
    /// For messages: the file's name.
    pub name: &'a str,
    /// Samples.
    pub n_samples: usize,
    /// Marks, in seconds from the first sample.
    pub annotations: &'a [Annotation],
}

/// All windows of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    /// Samples of each window.
    pub length: usize,
    /// By recording, then by time (sliding) or annotation.
    pub windows: Vec<Window>,
    /// Recordings that give no window: index, and why.
    pub skipped: Vec<(usize, String)>,
    /// Windows dropped because they cross a boundary or reach beyond the recording.
    pub dropped: usize,
}

/// True for the mark of a cut in the recording: the word "boundary", in any case, alone or beside
/// others. Such a mark is a point in time. Its duration, where it has one, tells how much was cut
/// out (EEGLAB), and is not in memory.
pub fn is_boundary(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|word| word.eq_ignore_ascii_case("boundary"))
}

impl Windowing {
    /// Samples of a window at `sample_rate` Hz.
    ///
    /// # Errors
    /// Lengths or strides that are not at least one sample; no text to match.
    pub fn length(&self, sample_rate: f64) -> Result<usize> {
        let (field, seconds) = match self {
            Self::Sliding { length_s, stride_s } => {
                at_least_one_sample("data.stride_s", *stride_s, sample_rate)?;
                ("data.window_s", *length_s)
            }
            Self::Events { texts, .. } if texts.is_empty() => {
                let remedy = "list the annotation texts to cut around";
                return Err(Error::input("data.events", "is empty", remedy));
            }
            Self::Events { tmin_s, tmax_s, .. } => ("data.window_s", tmax_s - tmin_s),
        };
        at_least_one_sample(field, seconds, sample_rate)?;
        Ok((seconds * sample_rate).round() as usize)
    }

    /// Cuts every recording. A window that has a boundary strictly inside is dropped.
    ///
    /// # Errors
    /// Settings that make no sense, or no window in any recording: names the window's length and
    /// the longest recording.
    pub fn cut(&self, recordings: &[Extent<'_>], sample_rate: f64) -> Result<Windows> {
        let length = self.length(sample_rate)?;
        let mut all = Windows { length, windows: Vec::new(), skipped: Vec::new(), dropped: 0 };
        for (index, extent) in recordings.iter().enumerate() {
            let before = all.windows.len();
            let boundaries = boundaries(extent.annotations, sample_rate);
            let candidates = self.candidates(extent, length, sample_rate);
            let found = candidates.len();
            for (start, event) in candidates {
                let inside = usize::try_from(start).is_ok_and(|s| s + length <= extent.n_samples);
                let cut = boundaries
                    .iter()
                    .any(|&b| b > start as f64 + 0.5 && b < start as f64 + length as f64 - 0.5);
                match (u32::try_from(start), u32::try_from(index)) {
                    (Ok(start), Ok(recording)) if inside && !cut => {
                        all.windows.push(Window { recording, start, event });
                    }
                    _ => all.dropped += 1,
                }
            }
            if all.windows.len() == before {
                all.skipped.push((index, why_none(extent, length, sample_rate, found)));
            }
        }
        if all.windows.is_empty() {
            let texts = match self {
                Self::Sliding { .. } => None,
                Self::Events { texts, .. } => Some(texts.as_slice()),
            };
            return Err(nothing_left(texts, recordings, &all, sample_rate));
        }
        Ok(all)
    }

    /// First samples and events of the windows before any is dropped.
    fn candidates(&self, extent: &Extent<'_>, length: usize, rate: f64) -> Vec<(i64, u32)> {
        match self {
            Self::Sliding { stride_s, .. } => {
                let Some(room) = extent.n_samples.checked_sub(length) else { return Vec::new() };
                // Multiplied, not added up, so that a stride of a fraction of a sample stays true.
                (0u32..)
                    .map(|k| (f64::from(k) * stride_s * rate).round() as i64)
                    .take_while(|&start| start <= room as i64)
                    .map(|start| (start, 0))
                    .collect()
            }
            Self::Events { texts, tmin_s, .. } => (extent.annotations.iter())
                .filter(|a| a.onset_s.is_finite())
                .filter_map(|a| {
                    let event = texts.iter().position(|t| matches(t, &a.text))?;
                    Some((((a.onset_s + tmin_s) * rate).round() as i64, event as u32))
                })
                .collect(),
        }
    }
}

fn at_least_one_sample(field: &str, seconds: f64, rate: f64) -> Result<()> {
    if (1.0..4e9).contains(&(seconds * rate).round()) {
        return Ok(());
    }
    let problem = format!("{seconds} s at {rate} Hz is not at least one sample");
    Err(Error::input(field, problem, "give seconds, as in 2.0"))
}

fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.trim().to_lowercase(), text.trim().to_lowercase());
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => text == pattern,
    }
}

/// Boundaries in samples.
fn boundaries(annotations: &[Annotation], rate: f64) -> Vec<f64> {
    let marks = annotations.iter().filter(|a| is_boundary(&a.text));
    marks.map(|a| a.onset_s * rate).collect()
}

fn why_none(extent: &Extent<'_>, length: usize, rate: f64, found: usize) -> String {
    let (have, need) = (extent.n_samples as f64 / rate, length as f64 / rate);
    if extent.n_samples < length {
        format!("{have:.2} s long, shorter than a window of {need} s")
    } else if found == 0 {
        format!("none of its {} annotations matches", extent.annotations.len())
    } else {
        format!("all {found} windows cross a boundary or reach beyond its {have:.2} s")
    }
}

fn nothing_left(
    texts: Option<&[String]>,
    recordings: &[Extent<'_>],
    all: &Windows,
    rate: f64,
) -> Error {
    if let Some(texts) = texts.filter(|_| all.dropped == 0) {
        let known = recordings.iter().flat_map(|extent| extent.annotations);
        let known: BTreeSet<&str> = known.map(|a| a.text.trim()).collect();
        let known: Vec<&str> = known.into_iter().collect();
        let problem = format!("no event is called {}", texts.join(" or "));
        let remedy = match known.is_empty() {
            true => "leave data.events out: the recordings have no events".to_string(),
            false => format!("the recordings have {}", few(&known)),
        };
        return Error::input("data.events", problem, remedy);
    }
    let longest = recordings.iter().max_by_key(|extent| extent.n_samples);
    let longest = longest.map_or_else(
        || "there is no recording".to_owned(),
        |e| format!("the longest recording, {}, has {:.2} s", e.name, e.n_samples as f64 / rate),
    );
    let reason = all.skipped.first().map_or_else(String::new, |(i, why)| {
        format!("; {}: {why}", recordings.get(*i).map_or("the first", |e| e.name))
    });
    Error::input(
        "data.window_s",
        format!("no window of {} s anywhere: {longest}{reason}", all.length as f64 / rate),
        "choose a shorter data.window_s, or other data.events or data.event_offset_s",
    )
}

#[cfg(test)]
mod tests {
    use super::{Extent, Windowing, is_boundary};
    use crate::data::Annotation;

    fn mark(onset_s: f64, duration_s: f64, text: &str) -> Annotation {
        Annotation { onset_s, duration_s, text: text.into() }
    }

    #[test]
    fn boundaries_by_word() {
        for text in ["boundary", "Boundary", "BAD boundary", "EDGE_boundary", "boundary, cut"] {
            assert!(is_boundary(text), "{text}");
        }
        assert!(!is_boundary("boundaryless") && !is_boundary("eyes closed") && !is_boundary(""));
    }

    #[test]
    fn sliding_windows_keep_to_the_recording_and_its_stretches() {
        let rates = [100.0, 128.0, 33.3];
        for rate in rates {
            let marks = [mark(7.31, 3.0, "boundary"), mark(2.0, 0.0, "blink")];
            let n = (12.4 * rate) as usize;
            let extent = Extent { name: "a", n_samples: n, annotations: &marks };
            let cut = Windowing::Sliding { length_s: 2.0, stride_s: 0.7 };
            let all = cut.cut(&[extent], rate).unwrap();
            assert_eq!(all.length, (2.0 * rate).round() as usize);
            let mut expected = Vec::new();
            let mut k = 0;
            while (k as f64 * 0.7 * rate).round() as usize + all.length <= n {
                let start = (k as f64 * 0.7 * rate).round();
                if !(start < 7.31 * rate - 0.5 && start + all.length as f64 > 7.31 * rate + 0.5) {
                    expected.push(start as u32);
                }
                k += 1;
            }
            let starts: Vec<u32> = all.windows.iter().map(|w| w.start).collect();
            assert_eq!(starts, expected, "{rate}");
            assert!(all.dropped == 3 && all.skipped.is_empty(), "{rate} {}", all.dropped);
        }
    }

    #[test]
    fn a_boundary_between_two_windows_drops_neither() {
        let marks = [mark(2.0, 0.0, "boundary"), mark(0.0, 0.0, "boundary")];
        let extent = Extent { name: "a", n_samples: 400, annotations: &marks };
        let cut = Windowing::Sliding { length_s: 2.0, stride_s: 2.0 };
        assert_eq!(cut.cut(&[extent], 100.0).unwrap().windows.len(), 2);
    }

    #[test]
    fn events_by_text() {
        let marks = [
            mark(0.1, 0.0, "Left"),
            mark(1.0, 0.0, "right_go"),
            mark(2.507, 0.0, " left "),
            mark(3.0, 0.0, "other"),
            mark(4.95, 0.0, "left"),
        ];
        let extent = Extent { name: "a", n_samples: 503, annotations: &marks };
        let texts = vec!["left".into(), "right*".into()];
        let cut = Windowing::Events { texts, tmin_s: -0.2, tmax_s: 0.5 };
        let all = cut.cut(&[extent], 100.0).unwrap();
        assert_eq!(all.length, 70);
        let found: Vec<(u32, u32)> = all.windows.iter().map(|w| (w.start, w.event)).collect();
        assert_eq!(found, [(80, 1), (231, 0)]);
        assert_eq!(all.dropped, 2);
    }

    #[test]
    fn short_recordings_are_skipped_and_all_short_is_an_error() {
        let extents = [
            Extent { name: "short.bdf", n_samples: 150, annotations: &[] },
            Extent { name: "long.bdf", n_samples: 399, annotations: &[] },
        ];
        let cut = Windowing::Sliding { length_s: 2.0, stride_s: 2.0 };
        let all = cut.cut(&extents, 100.0).unwrap();
        assert_eq!(all.windows.len(), 1);
        assert_eq!(all.skipped.len(), 1);
        assert!(all.skipped[0].1.contains("1.50 s long"), "{:?}", all.skipped);
        let cut = Windowing::Sliding { length_s: 4.0, stride_s: 2.0 };
        let message = cut.cut(&extents, 100.0).unwrap_err().to_string();
        assert!(message.contains("window of 4 s") && message.contains("long.bdf, has 3.99 s"));
        assert!(cut.cut(&[], 100.0).is_err());
        for (length_s, stride_s) in [(0.0, 1.0), (1.0, 0.0), (f64::NAN, 1.0), (1.0, f64::INFINITY)]
        {
            assert!(Windowing::Sliding { length_s, stride_s }.cut(&extents, 100.0).is_err());
        }
    }
}
