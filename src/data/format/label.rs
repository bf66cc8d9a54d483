//! What a file's labels and units mean: names, kinds, and the scale to µV.

use std::collections::{HashMap, HashSet};

use crate::data::{Channel, ChannelKind};

/// Sites of the 10-05 system (Oostenveld & Praamstra 2001) without their number, and the
/// reference and ground sites beside them.
const SITES: &[&str] = &[
    "A", "AF", "AFF", "AFP", "C", "CB", "CCP", "CP", "CPP", "F", "FC", "FCC", "FFC", "FFT", "FP",
    "FT", "FTT", "I", "M", "N", "NFP", "O", "OI", "P", "PO", "POO", "PPO", "SP", "T", "TP", "TPP",
    "TTP",
];

/// References that recorders append to an electrode's name, as in "Fp1-REF".
const REFERENCES: &[&str] = &["REF", "LE", "AR", "AVG", "AV", "CAR", "G2", "GND", "0"];

/// Names and kinds of all channels of one file, by their labels, and notes of what was not
/// certain. Files that name no electrode ("Ch1", "Ch2") have their voltages taken for EEG.
pub(crate) fn identify(
    labels: &[String],
    units: &[String],
) -> (Vec<(String, ChannelKind)>, Vec<String>) {
    let mut names: Vec<String> = labels.iter().map(|label| clean(label)).collect();
    number_duplicates(&mut names);
    let mut kinds: Vec<Option<ChannelKind>> = labels.iter().map(|label| kind(label)).collect();
    eyes_of_a_sleep_montage(labels, &mut kinds);
    let nameless = !kinds.contains(&Some(ChannelKind::Eeg));
    let (mut guessed, mut odd) = (0, Vec::new());
    for (((kind, label), unit), name) in kinds.iter_mut().zip(labels).zip(units).zip(&names) {
        let volts = microvolts(unit).is_some();
        if nameless && kind.is_none() && volts && !is_auxiliary(label) {
            *kind = Some(ChannelKind::Eeg);
            guessed += 1;
        } else if *kind == Some(ChannelKind::Eeg) && !volts && !unit.is_empty() {
            *kind = Some(ChannelKind::Misc);
            odd.push(format!("{name} ({unit})"));
        }
    }
    let mut notes = Vec::new();
    if guessed > 0 {
        notes.push(format!("no label names an electrode: {guessed} voltages are taken for EEG"));
    }
    if !odd.is_empty() {
        notes.push(format!(
            "named like electrodes but no voltages, kept out of the EEG: {}",
            odd.join(", ")
        ));
    }
    let kinds = kinds.into_iter().map(|kind| kind.unwrap_or(ChannelKind::Misc));
    (names.into_iter().zip(kinds).collect(), notes)
}

/// A note where samples that were stored as floats are no numbers.
pub(crate) fn not_finite(channels: &[Channel]) -> Option<String> {
    let count = |c: &Channel| c.samples.iter().filter(|v| !v.is_finite()).count();
    let (total, names) = channels.iter().map(|c| (count(c), &c.name)).filter(|(n, _)| *n > 0).fold(
        (0, Vec::new()),
        |(total, mut names), (n, name)| {
            names.push(name.as_str());
            (total + n, names)
        },
    );
    (total > 0).then(|| format!("{total} samples are not finite, in: {}", names.join(", ")))
}

/// E1 and E2 are eye leads in sleep montages (AASM), electrodes in the nets that also have an E3.
fn eyes_of_a_sleep_montage(labels: &[String], kinds: &mut [Option<ChannelKind>]) {
    let site = |label: &String| clean(label).to_uppercase().split('-').next().map(str::to_string);
    if labels.iter().any(|label| site(label).as_deref() == Some("E3")) {
        return;
    }
    for (label, kind) in labels.iter().zip(kinds) {
        if matches!(site(label).as_deref(), Some("E1" | "E2")) {
            *kind = Some(ChannelKind::Eog);
        }
    }
}

/// The label without its type ("EEG Fp1" is "Fp1", "ECG ECG" is "ECG") and without blanks around.
pub(crate) fn clean(label: &str) -> String {
    let label = label.trim();
    match label.split_once(char::is_whitespace) {
        Some((kind, rest)) if kind.eq_ignore_ascii_case("EEG") => rest.trim().to_string(),
        Some((kind, rest)) if kind.eq_ignore_ascii_case(rest.trim()) => rest.trim().to_string(),
        _ => label.to_string(),
    }
}

/// Numbers the names that occur more than once "-1", "-2", ... in file order, around names that
/// are taken already; a channel without a name is called by its position, from 1.
pub(crate) fn number_duplicates(names: &mut [String]) {
    for (i, name) in names.iter_mut().enumerate().filter(|(_, name)| name.is_empty()) {
        *name = format!("channel {}", i + 1);
    }
    let mut count: HashMap<String, usize> = HashMap::new();
    for name in names.iter() {
        *count.entry(name.clone()).or_default() += 1;
    }
    let mut taken: HashSet<String> = count.keys().cloned().collect();
    let mut next: HashMap<String, usize> = HashMap::new();
    for name in names.iter_mut().filter(|name| count.get(*name).is_some_and(|&n| n > 1)) {
        let number = next.entry(name.clone()).or_insert(0);
        let unique = loop {
            *number += 1;
            let candidate = format!("{name}-{number}");
            if taken.insert(candidate.clone()) {
                break candidate;
            }
        };
        *name = unique;
    }
}

/// The kind that a label tells, None where it tells none.
pub(crate) fn kind(label: &str) -> Option<ChannelKind> {
    let upper = label.to_uppercase();
    let mut words = upper.split(|c: char| !c.is_ascii_alphanumeric());
    let any_word = |list: &[&str]| words.clone().any(|word| list.contains(&word));
    if any_word(&["STATUS", "STI", "STIM", "TRIG", "TRIGGER", "EVENT", "MARKER", "MARKERS"]) {
        Some(ChannelKind::Trigger)
    } else if upper.contains("EOG") || any_word(&["LOC", "ROC", "HEO", "VEO"]) {
        Some(ChannelKind::Eog)
    } else if upper.contains("ECG") || upper.contains("EKG") {
        Some(ChannelKind::Ecg)
    } else if upper.contains("EMG") || any_word(&["CHIN"]) {
        Some(ChannelKind::Emg)
    } else if words.next().is_some_and(|word| word.starts_with("EEG")) || is_electrode(&upper) {
        Some(ChannelKind::Eeg)
    } else {
        None
    }
}

/// "FP1", "E128", "A17", "AFF5H", "FP1-REF", "FP1-F7"; upper case.
fn is_electrode(upper: &str) -> bool {
    let upper = upper.trim();
    match upper.split_once('-') {
        Some((site, rest)) => is_site(site) && (REFERENCES.contains(&rest) || is_site(rest)),
        None => is_site(upper),
    }
}

fn is_site(upper: &str) -> bool {
    if let Some(midline) = upper.strip_suffix('Z') {
        return SITES.contains(&midline);
    }
    let half = upper.strip_suffix('H').unwrap_or(upper);
    let letters = half.trim_end_matches(|c: char| c.is_ascii_digit());
    let Some(Ok(number)) = half.get(letters.len()..).map(str::parse::<u32>) else {
        return false;
    };
    let biosemi = matches!(letters, "A" | "B" | "C" | "D" | "E" | "F" | "G" | "H" | "I");
    match letters {
        "E" => (1..=256).contains(&number),
        _ if biosemi => (1..=32).contains(&number),
        _ => SITES.contains(&letters) && (1..=10).contains(&number),
    }
}

/// Inputs of amplifiers that are never scalp EEG by default.
fn is_auxiliary(label: &str) -> bool {
    const STARTS: [&str; 14] = [
        "EXG", "GSR", "EDA", "RESP", "PLET", "PULSE", "TEMP", "ERG", "AUX", "ACC", "DC", "SPO2",
        "SAO2", "PHOTO",
    ];
    let upper = label.trim().to_uppercase();
    STARTS.iter().any(|start| upper.starts_with(start))
}

/// µV in one `unit`, None where it is not a voltage.
pub(crate) fn microvolts(unit: &str) -> Option<f64> {
    // MICRO SIGN and GREEK SMALL LETTER MU look the same and are both written.
    // U+FFFD is what is left of either where a program before us read it in the wrong encoding.
    let unit = unit.trim().replace(['\u{b5}', '\u{3bc}', '\u{fffd}'], "u");
    match unit.as_str() {
        "V" | "v" | "Volt" | "Volts" | "volt" | "volts" => Some(1e6),
        "mV" | "mv" | "millivolt" | "millivolts" => Some(1e3),
        "uV" | "uv" | "UV" | "microV" | "microvolt" | "microvolts" => Some(1.0),
        "nV" | "nv" | "nanovolt" | "nanovolts" => Some(1e-3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{ChannelKind, clean, identify, kind, microvolts, number_duplicates};

    #[test]
    fn kinds() {
        use ChannelKind::{Ecg, Eeg, Emg, Eog, Trigger};
        let cases = [
            ("EEG Fp1", Some(Eeg)),
            ("Fpz", Some(Eeg)),
            ("AFF5h", Some(Eeg)),
            ("E128", Some(Eeg)),
            ("E257", None),
            ("D32", Some(Eeg)),
            ("FP1-F7", Some(Eeg)),
            ("C3-REF", Some(Eeg)),
            ("VEOG", Some(Eog)),
            ("EOG left", Some(Eog)),
            ("ECG ECG", Some(Ecg)),
            ("EKG", Some(Ecg)),
            ("EMG chin", Some(Emg)),
            ("Status", Some(Trigger)),
            ("STI 014", Some(Trigger)),
            ("EXG1", None),
            ("Resp oro-nasal", None),
            ("3Hz +5/-5 V", None),
            ("", None),
        ];
        for (label, expect) in cases {
            assert_eq!(kind(label), expect, "{label}");
        }
    }

    #[test]
    fn names() {
        for (label, expect) in
            [("EEG Fp1", "Fp1"), ("ECG ECG", "ECG"), (" Cz ", "Cz"), ("EOG left", "EOG left")]
        {
            assert_eq!(clean(label), expect);
        }
        let mut names: Vec<String> =
            ["F1", "F2", "F1", "F1-2", "", "F1"].map(String::from).to_vec();
        number_duplicates(&mut names);
        assert_eq!(names, ["F1-1", "F2", "F1-3", "F1-2", "channel 5", "F1-4"]);
    }

    #[test]
    fn unknown_voltages_are_eeg_only_where_nothing_else_is() {
        let strings = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let (named, notes) = identify(&strings(&["Ch1", "Ch2", "AUX1"]), &strings(&["uV"; 3]));
        assert!(notes[0].contains("2 voltages are taken for EEG"), "{notes:?}");
        let kinds: Vec<_> = named.iter().map(|n| n.1).collect();
        assert_eq!(kinds, [ChannelKind::Eeg, ChannelKind::Eeg, ChannelKind::Misc]);
        let (named, notes) = identify(&strings(&["Ch1", "Cz"]), &strings(&["uV"; 2]));
        assert!(
            notes.is_empty() && named.iter().map(|n| n.1).eq([ChannelKind::Misc, ChannelKind::Eeg])
        );
        let (named, _) = identify(&strings(&["E1", "E2-M1", "C3"]), &strings(&["uV"; 3]));
        assert!(named.iter().take(2).all(|n| n.1 == ChannelKind::Eog));
        let (named, _) = identify(&strings(&["E1", "E2", "E3"]), &strings(&["uV"; 3]));
        assert!(named.iter().all(|n| n.1 == ChannelKind::Eeg));
        let (named, notes) = identify(&strings(&["Cz", "CP5"]), &strings(&["uV", "BS"]));
        assert_eq!(named[1].1, ChannelKind::Misc);
        assert!(notes[0].contains("CP5 (BS)"), "{notes:?}");
    }

    #[test]
    fn units() {
        for (unit, expect) in
            [("uV", Some(1.0)), ("\u{b5}V", Some(1.0)), ("\u{3bc}V", Some(1.0)), ("mV", Some(1e3))]
        {
            assert_eq!(microvolts(unit), expect, "{unit}");
        }
        assert_eq!(microvolts("V"), Some(1e6));
        assert_eq!(microvolts("Boolean"), None);
        assert_eq!(microvolts(""), None);
    }
}
