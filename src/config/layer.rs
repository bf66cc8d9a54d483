//! Layers of settings as TOML tables, each value with its origin, and their merging.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::error::{Error, Result};

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The profile of this name.
    Profile(String),
    /// A line, counted from 1, of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line of the field's name.
        line: usize,
    },
    /// A flag, as the user wrote it.
    Flag(String),
}

impl Origin {
    /// Larger for what goes before what.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Profile(_) => 1,
            Self::File { .. } => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Profile(name) => write!(f, "profile {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One value given on the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// The flag, for messages: "--lr", "--set train.lr=0.1".
    pub flag: String,
    /// The field, dotted: "train.lr".
    pub field: String,
    /// Its value.
    pub value: Value,
}

impl Assignment {
    /// What `flag` says about `field`.
    pub fn new(flag: &str, field: &str, value: impl Into<Value>) -> Self {
        Self { flag: flag.to_string(), field: field.to_string(), value: value.into() }
    }

    /// Reads the argument of `--set`: "section.field=value", the value in TOML or a bare word.
    ///
    /// # Errors
    /// [`Error::Input`] where there is no "=" or no "." before it.
    pub fn parse(text: &str) -> Result<Self> {
        let place = format!("--set {text}");
        let fields = text.split_once('=').map(|(field, value)| (field.trim(), value.trim()));
        let Some((field, value)) = fields.filter(|(field, _)| {
            field.contains('.') && field.split('.').all(|key| !key.trim().is_empty())
        }) else {
            let remedy = "write --set section.field=value, as in --set train.lr=0.0005";
            return Err(Error::input(place, "is not of the form section.field=value", remedy));
        };
        let value = match format!("value = {value}").parse::<Table>() {
            Ok(mut table) if table.len() == 1 => {
                table.remove("value").unwrap_or(Value::String(value.to_string()))
            }
            _ => Value::String(value.to_string()),
        };
        Ok(Self { field: field.to_string(), value, flag: place })
    }
}

/// Values of one source, or of several merged, with the origin of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Layer {
    pub(super) table: Table,
    /// By dotted path, of tables and values alike.
    pub(super) origins: BTreeMap<String, Origin>,
}

impl Layer {
    /// All of `table` from one origin.
    pub(super) fn from_table(table: Table, origin: &Origin) -> Self {
        let mut origins = BTreeMap::new();
        mark(&table, "", origin, &mut origins);
        Self { table, origins }
    }

    /// Reads a file's text.
    pub(super) fn from_text(path: &Path, text: &str) -> Result<Self> {
        let refuse = |error: toml::de::Error| {
            let at = error.span().map_or(1, |span| line_of(text, span.start));
            let remedy = "mend the TOML at this line: sections as [train], fields as lr = 0.001, \
                          texts in double quotes";
            Error::input(format!("{}:{at}", path.display()), error.message().trim(), remedy)
        };
        let spanned = DeTable::parse(text).map_err(refuse)?;
        let mut origins = BTreeMap::new();
        mark_lines(spanned.get_ref(), "", path, text, &mut origins);
        Ok(Self { table: text.parse().map_err(refuse)?, origins })
    }

    /// One value of the command line.
    pub(super) fn from_assignment(given: &Assignment) -> Self {
        let mut value = given.value.clone();
        for key in given.field.split('.').rev() {
            value = Value::Table(Table::from_iter([(key.trim().to_string(), value)]));
        }
        let table = match value {
            Value::Table(table) => table,
            _ => Table::new(),
        };
        Self::from_table(table, &Origin::Flag(given.flag.clone()))
    }

    /// Puts `over` on top: tables merge, anything else is replaced.
    pub(super) fn put(&mut self, over: Self) {
        merge(&mut self.table, over.table);
        self.origins.extend(over.origins);
    }

    /// Where the value at a dotted path comes from, or the nearest table around it.
    pub(super) fn origin(&self, path: &str) -> &Origin {
        let mut at = path;
        loop {
            if let Some(origin) = self.origins.get(at) {
                return origin;
            }
            match at.rfind('.') {
                Some(end) => at = at.get(..end).unwrap_or(""),
                None => return &Origin::Default,
            }
        }
    }

    /// The value at a dotted path.
    pub(super) fn value(&self, path: &str) -> Option<&Value> {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        let first = self.table.get(first)?;
        rest.split('.').filter(|key| !key.is_empty()).try_fold(first, |at, key| at.get(key))
    }
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

fn mark(table: &Table, at: &str, origin: &Origin, origins: &mut BTreeMap<String, Origin>) {
    for (key, value) in table {
        let path = join(at, key);
        if let Value::Table(inner) = value {
            mark(inner, &path, origin, origins);
        }
        origins.insert(path, origin.clone());
    }
}

fn mark_lines(
    table: &DeTable<'_>,
    at: &str,
    file: &Path,
    text: &str,
    origins: &mut BTreeMap<String, Origin>,
) {
    for (key, value) in table {
        let path = join(at, key.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            mark_lines(inner, &path, file, text, origins);
        }
        let line = line_of(text, key.span().start);
        origins.insert(path, Origin::File { path: file.to_path_buf(), line });
    }
}

/// The line, counted from 1, of a byte of a text.
fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|&b| b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_read_as_toml_or_as_a_word() {
        let value = |text| Assignment::parse(text).map(|given| given.value).ok();
        assert_eq!(value("train.lr=1e-4"), Some(Value::Float(1e-4)));
        assert_eq!(value("train.epochs = 7"), Some(Value::Integer(7)));
        assert_eq!(value("data.target=sex"), Some(Value::String("sex".into())));
        assert_eq!(value("data.target=\"7\""), Some(Value::String("7".into())));
        assert_eq!(value("data.dir=/a=b"), Some(Value::String("/a=b".into())));
        assert_eq!(value("data.tasks=[\"A\"]"), Some(Value::Array(vec!["A".into()])));
        for text in ["", "lr=3", "train.lr", "=3", ".=1", "train.=1", "a..b=2"] {
            assert!(Assignment::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_value_cannot_smuggle_in_a_second_field() {
        let given = Assignment::parse("train.lr=1\nother = 2");
        assert_eq!(given.map(|g| g.value).ok(), Some(Value::String("1\nother = 2".into())));
    }

    #[test]
    fn the_top_layer_wins_and_leaves_its_origin() {
        let text = "# comment\n[train]\nlr = 1\n\n[augment.mask]\np = 0.5\nq = 1\n";
        let mut all = Layer::from_text(Path::new("a.toml"), text).expect("valid TOML");
        all.put(Layer::from_assignment(&Assignment::new("--x", "augment.mask.q", 2)));
        assert_eq!(all.value("augment.mask.q"), Some(&Value::Integer(2)));
        assert_eq!(all.value("augment.mask.p"), Some(&Value::Float(0.5)));
        assert_eq!(all.origin("augment.mask.p").to_string(), "a.toml:6");
        assert_eq!(all.origin("augment.mask.q").to_string(), "--x");
        assert_eq!(all.origin("train.lr").to_string(), "a.toml:3");
        assert_eq!(all.origin("model.patch"), &Origin::Default);
    }
}
