//! Words for a refused setting: the place, the nearest valid name, the remedy.

use serde::Deserialize;
use toml::{Table, Value};

use super::de::{Input, ReadError, Refusal};
use super::layer::Layer;
use super::settings::{
    AugmentSettings, DataSettings, DeviceSettings, ModelSettings, RunSettings, Settings,
    TrainSettings,
};
use crate::error::Error;

/// The names of a settings struct's fields in order, asked of serde itself: a name that no field
/// can have is refused together with the list of those that exist.
fn fields_of<T: for<'de> Deserialize<'de>>() -> Vec<String> {
    let probe = Table::from_iter([(String::new(), Value::Boolean(false))]);
    match T::deserialize(Input(Value::Table(probe))) {
        Err(ReadError { refusal: Refusal::UnknownField(names), .. }) => names,
        _ => Vec::new(),
    }
}

/// Sections in order.
pub(super) fn sections() -> Vec<String> {
    fields_of::<Settings>()
}

/// The fields of a section in order.
pub(super) fn fields(section: &str) -> Vec<String> {
    match section {
        "data" => fields_of::<DataSettings>(),
        "model" => fields_of::<ModelSettings>(),
        "train" => fields_of::<TrainSettings>(),
        "augment" => fields_of::<AugmentSettings>(),
        "device" => fields_of::<DeviceSettings>(),
        "run" => fields_of::<RunSettings>(),
        _ => Vec::new(),
    }
}

/// The error a user sees for a refused value of the merged layers.
pub(super) fn explain(error: &ReadError, layers: &Layer, defaults: &Table) -> Error {
    let path = error.path();
    let place = format!("{}, {path}", layers.origin(&path));
    match &error.refusal {
        Refusal::UnknownField(names) => {
            let (section, name) = path.rsplit_once('.').unwrap_or(("", &path));
            let problem = match section {
                "" => format!("there is no section or field `{name}`"),
                _ => format!("[{section}] has no field `{name}`"),
            };
            Error::input(place, problem, right_name(section, name, names))
        }
        Refusal::UnknownChoice { word, choices } => {
            let meant = nearest(word, choices)
                .map_or(String::new(), |near| format!("did you mean \"{near}\"? "));
            let remedy = format!("{meant}choose one of {}", choices.join(", "));
            Error::input(place, format!("\"{word}\" is not a choice"), remedy)
        }
        Refusal::WrongType { found, expected } => {
            let example = path.rsplit_once('.').and_then(|(section, name)| {
                let usual = defaults.get(section)?.get(name)?;
                Some(format!(", as in {name} = {usual}"))
            });
            let expected = plain(expected);
            let problem = format!("{found} is not {expected}");
            Error::input(place, problem, format!("give {expected}{}", example.unwrap_or_default()))
        }
        Refusal::Other(problem) => {
            Error::input(place, problem, "see the fields in README.md, \"Settings\"")
        }
    }
}

/// How to say it right: the section that has such a field, or a name much like it.
fn right_name(section: &str, name: &str, names: &[String]) -> String {
    let listed = match section {
        "" => format!("the sections are {}", names.join(", ")),
        _ => format!("its fields are {}", names.join(", ")),
    };
    let home = sections().into_iter().find(|home| fields(home).iter().any(|field| field == name));
    if let Some(home) = home {
        return format!("write `{name}` under [{home}]");
    }
    if let Some(near) = nearest(name, names) {
        return format!("did you mean `{near}`? {listed}");
    }
    let elsewhere = sections().into_iter().find_map(|home| {
        let all = fields(&home);
        nearest(name, &all).map(|near| format!("did you mean `{near}` of [{home}]? {listed}"))
    });
    elsewhere.unwrap_or(listed)
}

/// serde's names of types in plain words.
fn plain(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" => "a whole number from 0",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a string" => "a text in quotes",
        "a sequence" => "a list in [ ]",
        "an array of length 2" => "a list of 2 numbers",
        expected if expected.starts_with("struct ") => "a section of fields",
        expected => expected,
    }
}

/// The most similar name, where it is similar enough to be meant.
pub(super) fn nearest<'a>(name: &str, names: &'a [String]) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    names
        .iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|&(edits, _)| edits <= limit)
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, candidate)| candidate.as_str())
}

/// Edits that make one text the other, a swap of neighbours counting once (optimal string
/// alignment); case is ignored.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = usize::from(a[i - 1] != b[j - 1]);
                let mut least =
                    (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [
            ("lr", "lr", 0),
            ("lr", "rl", 1),
            ("epoch", "epochs", 1),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn fields_come_from_the_structs() {
        assert_eq!(sections(), ["data", "model", "train", "augment", "device", "run"]);
        assert!(fields("train").contains(&"head_lr".to_string()));
        assert_eq!(fields("run"), ["profile", "dir", "name", "quiet", "json"]);
    }
}
