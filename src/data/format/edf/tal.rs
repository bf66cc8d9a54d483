//! Time-stamped annotation lists (TALs) of EDF+ and BDF+: `+onset[0x15 duration]0x14 text 0x14
//! ... 0x00`, in the samples of the annotation signals.

use crate::data::Annotation;
use crate::data::format::text;

/// One list: a time and the texts that belong to it.
#[derive(Debug, Clone, PartialEq)]
struct Tal {
    onset_s: f64,
    duration_s: f64,
    texts: Vec<String>,
}

/// What the annotation signals of a file say, in the file's time.
#[derive(Debug, Default)]
pub(super) struct Tals {
    /// Start of each data record, where its time-keeping list tells it.
    pub record_onsets_s: Vec<Option<f64>>,
    /// In file order.
    pub annotations: Vec<Annotation>,
    /// Lists that could not be read.
    pub malformed: usize,
}

impl Tals {
    /// Adds the annotation signals of one record, in file order.
    pub fn add_record<'a>(&mut self, blocks: impl Iterator<Item = &'a [u8]>) {
        let mut onset_s = None;
        for (signal, block) in blocks.enumerate() {
            let lists = block.split(|&b| b == 0).filter(|list| !list.is_empty());
            for (place, list) in lists.enumerate() {
                let Some(tal) = parse(list) else {
                    self.malformed += 1;
                    continue;
                };
                // The first list of a record keeps the time: its first text is empty.
                if signal == 0 && place == 0 && tal.texts.first().is_some_and(String::is_empty) {
                    onset_s = Some(tal.onset_s);
                }
                for text in tal.texts.into_iter().filter(|text| !text.is_empty()) {
                    let (onset_s, duration_s) = (tal.onset_s, tal.duration_s);
                    self.annotations.push(Annotation { onset_s, duration_s, text });
                }
            }
        }
        self.record_onsets_s.push(onset_s);
    }
}

fn parse(list: &[u8]) -> Option<Tal> {
    let mut parts = list.split(|&b| b == 0x14);
    let mut times = parts.next()?.split(|&b| b == 0x15);
    let onset = std::str::from_utf8(times.next()?).ok()?;
    if !onset.starts_with(['+', '-']) {
        return None;
    }
    let onset_s = onset.parse::<f64>().ok().filter(|v| v.is_finite())?;
    let duration_s = match times.next() {
        Some([]) | None => 0.0,
        Some(duration) => {
            let seconds = std::str::from_utf8(duration).ok()?.parse::<f64>().ok()?;
            Some(seconds).filter(|v| v.is_finite() && *v >= 0.0)?
        }
    };
    let mut texts: Vec<String> = parts.map(text).collect();
    // The separator after the last text opens no further one.
    if texts.pop()?.is_empty() && times.next().is_none() {
        Some(Tal { onset_s, duration_s, texts })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{Tals, parse};

    #[test]
    fn lists() {
        let tal = parse(b"+180\x14Lights off\x14Close door\x14").unwrap();
        assert_eq!((tal.onset_s, tal.duration_s), (180.0, 0.0));
        assert_eq!(tal.texts, ["Lights off", "Close door"]);
        let tal = parse("-0.065\x151.5\x14 \u{e9}v\u{e9}nement \x14".as_bytes()).unwrap();
        assert_eq!((tal.onset_s, tal.duration_s), (-0.065, 1.5));
        assert_eq!(tal.texts, ["\u{e9}v\u{e9}nement"]);
        for bad in ["180\x14x\x14", "+\x14x\x14", "+1e999\x14x\x14", "+1\x15-2\x14x\x14", "+1", ""]
        {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn records() {
        let mut tals = Tals::default();
        tals.add_record(
            [&b"+0.5\x14\x14\0+0.75\x14a\x14\0\0\0"[..], &b"+2\x14\x14\0"[..]].into_iter(),
        );
        tals.add_record([&b"\0\0\0"[..], &b"+3\x14b\x14\0junk\0"[..]].into_iter());
        assert_eq!(tals.record_onsets_s, [Some(0.5), None]);
        let found: Vec<_> = tals.annotations.iter().map(|a| (a.onset_s, a.text.as_str())).collect();
        assert_eq!(found, [(0.75, "a"), (3.0, "b")]);
        assert_eq!(tals.malformed, 1);
    }
}
