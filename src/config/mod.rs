//! Settings of a run: flag over file over profile over default.
//!
//! # Layout
//! `values` the types of single values -> `settings` the sections -> `layer` TOML tables that know
//! where each value was set -> `de` reads the merged table -> `explain` puts a refusal in words,
//! `validate` checks what the values mean together. `profiles/` holds the profiles' TOML.

mod de;
mod explain;
mod layer;
mod profiles;
mod settings;
mod validate;
mod values;

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use crate::error::{Error, Result};
use layer::Layer;

pub use layer::{Assignment, Origin};
pub use profiles::{PROFILES, Profile, profile};
pub use settings::{
    AugmentSettings, DataSettings, DeviceSettings, ModelSettings, RunSettings, Settings,
    TrainSettings,
};
pub use values::{
    Amp, BadChannels, Bytes, ClassWeights, DeviceName, Gemm, LossName, ModelName, Notch,
    OptimizerName, Recompute, Reference, Route, Scale, ScheduleName, Warmup,
};

/// Settings, and where each of them was set.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The settings in force.
    pub settings: Settings,
    layers: Layer,
}

/// The device that file and flags ask for. All else is checked by [`resolve`], which wants to know the
/// profile of that device.
///
/// # Errors
/// As [`resolve`], for what cannot be read.
pub fn device(file: Option<&Path>, flags: &[Assignment]) -> Result<DeviceSettings> {
    Ok(merged(file, flags, None)?.settings.device)
}

/// Merges the layers, reads the result and checks it.
///
/// The profile is the one that a flag names (`run.profile`), else the file, else
/// `fallback_profile`; "off" names none.
///
/// # Errors
/// [`Error::Input`] or [`Error::Io`] naming the file and line (or the flag), the field, the nearest
/// valid name and the remedy.
pub fn resolve(
    file: Option<&Path>,
    flags: &[Assignment],
    fallback_profile: Option<&str>,
) -> Result<Resolved> {
    let resolved = merged(file, flags, fallback_profile)?;
    validate::check(&resolved.settings).map_err(|wrong| {
        // Of two that do not go together, it is what the user gave that is to be looked at.
        let rank = |field: &str| resolved.origin(field).rank();
        let other = wrong.with.filter(|other| rank(other) > rank(wrong.field));
        let field = other.unwrap_or(wrong.field);
        let place = format!("{}, {field}", resolved.origin(field));
        Error::input(place, wrong.problem, wrong.remedy)
    })?;
    Ok(resolved)
}

/// The layers as settings, which may contradict each other.
fn merged(
    file: Option<&Path>,
    flags: &[Assignment],
    fallback_profile: Option<&str>,
) -> Result<Resolved> {
    let mut above = match file {
        Some(path) => Layer::from_text(path, &read(path)?)?,
        None => Layer::default(),
    };
    for flag in flags {
        above.put(Layer::from_assignment(flag));
    }
    let defaults = default_table()?;
    let mut layers = Layer::from_table(defaults.clone(), &Origin::Default);
    let named = match above.value("run.profile") {
        Some(name) => name.as_str().map(|name| (name, above.origin("run.profile").to_string())),
        None => fallback_profile.map(|name| (name, "the device's profile".to_string())),
    };
    if let Some((name, place)) = named.filter(|(name, _)| *name != "off") {
        layers.put(profiles::layer(name, &place)?);
    }
    layers.put(above);
    let settings = Settings::deserialize(de::Input(Value::Table(layers.table.clone())))
        .map_err(|error| explain::explain(&error, &layers, &defaults))?;
    Ok(Resolved { settings, layers })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        let remedy = if path.is_dir() {
            format!("name the file in it, as in {}", path.join("config.toml").display())
        } else {
            "give --config the path of a readable TOML file".to_string()
        };
        Error::input(path.display(), format!("cannot read the settings: {error}"), remedy)
    })
}

fn default_table() -> Result<Table> {
    table_of(&Settings::default())
}

/// The settings as a table, a section each.
///
/// # Errors
/// [`Error::Input`] for what TOML cannot hold, such as a path that is not UTF-8.
pub(crate) fn table_of(settings: &Settings) -> Result<Table> {
    Table::try_from(settings).map_err(|error| {
        let remedy = "keep whole numbers below 2^63 and paths in UTF-8";
        Error::input("settings", format!("cannot be written as TOML: {error}"), remedy)
    })
}

impl Resolved {
    /// Where the field of this dotted name ("train.lr") was set.
    pub fn origin(&self, field: &str) -> &Origin {
        self.layers.origin(field)
    }

    /// Every setting in force as TOML, each with its origin in a comment; read back as a file it
    /// gives the same settings.
    ///
    /// # Errors
    /// [`Error::Input`] for what TOML cannot hold, such as a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        write_toml(&self.settings, Some((&self.layers, "")))
    }

    /// As [`Self::to_toml`], for settings that were read from a file of the text `before` with something on
    /// top: what is as it was there keeps its comment, which says where it was set at first.
    ///
    /// # Errors
    /// As [`Self::to_toml`].
    pub fn to_toml_over(&self, before: &str) -> Result<String> {
        write_toml(&self.settings, Some((&self.layers, before)))
    }
}

impl Settings {
    /// Every setting as TOML, in the order of its documentation.
    ///
    /// # Errors
    /// [`Error::Input`] for what TOML cannot hold, such as a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        write_toml(self, None)
    }

    /// Checks what the settings mean together, as [`resolve`] has done already.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field and the remedy.
    pub fn validate(&self) -> Result<()> {
        validate::check(self)
            .map_err(|wrong| Error::input(wrong.field, wrong.problem, wrong.remedy))
    }
}

fn write_toml(settings: &Settings, layers: Option<(&Layer, &str)>) -> Result<String> {
    let table = table_of(settings)?;
    let mut text = String::new();
    for section in explain::sections() {
        let Some(Value::Table(values)) = table.get(&section) else { continue };
        let separator = if text.is_empty() { "" } else { "\n" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{separator}[{section}]");
        for name in explain::fields(&section) {
            let Some(value) = values.get(&name) else { continue };
            let _ = write!(text, "{name} = {value}");
            if let Some((layers, before)) = layers {
                let origin = layers.origin(&format!("{section}.{name}"));
                let kept = match origin {
                    Origin::File { line, .. } => before.lines().nth(line - 1),
                    _ => None,
                };
                let kept =
                    kept.and_then(|line| line.strip_prefix(&format!("{name} = {value}  # ")));
                let note = kept.map_or_else(|| origin.to_string(), str::to_string);
                let _ = write!(text, "  # {}", note.replace(char::is_control, " "));
            }
            text.push('\n');
        }
    }
    Ok(text)
}
