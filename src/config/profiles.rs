//! Starting points for particular machines, as TOML.

use super::explain;
use super::layer::{Layer, Origin};
use crate::error::{Error, Result};

/// A named starting point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// As given to `--profile`.
    pub name: &'static str,
    /// The machine, in a few words.
    pub machine: &'static str,
    /// Its settings; the rest are defaults.
    pub toml: &'static str,
}

/// Every profile, from the smallest machine to the largest.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "cpu",
        machine: "two CPU cores, minutes",
        toml: include_str!("profiles/cpu.toml"),
    },
    Profile {
        name: "rx5600xt",
        machine: "AMD RX 5600 XT, 6 GB, RDNA1",
        toml: include_str!("profiles/rx5600xt.toml"),
    },
    Profile {
        name: "rx6800",
        machine: "AMD RX 6800, 16 GB, RDNA2",
        toml: include_str!("profiles/rx6800.toml"),
    },
    Profile {
        name: "rtx3060",
        machine: "NVIDIA RTX 3060, 12 GB",
        toml: include_str!("profiles/rtx3060.toml"),
    },
    Profile {
        name: "rtx4090",
        machine: "NVIDIA RTX 4090, 24 GB",
        toml: include_str!("profiles/rtx4090.toml"),
    },
    Profile {
        name: "h200",
        machine: "NVIDIA H200, 141 GB",
        toml: include_str!("profiles/h200.toml"),
    },
];

/// The profile of this name.
pub fn profile(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

/// The layer of a profile, which `place` asked for.
pub(super) fn layer(name: &str, place: &str) -> Result<Layer> {
    let Some(found) = profile(name) else {
        let names: Vec<String> = PROFILES.iter().map(|p| p.name.to_string()).collect();
        let meant = explain::nearest(name, &names)
            .map_or(String::new(), |near| format!("did you mean `{near}`? "));
        let remedy = format!("{meant}the profiles are {}", names.join(", "));
        return Err(Error::input(place, format!("there is no profile `{name}`"), remedy));
    };
    let origin = Origin::Profile(name.to_string());
    let text = format!("{}\n[run]\nprofile = \"{name}\"\n", found.toml);
    let table = Layer::from_text(format!("profile {name}").as_ref(), &text)?.table;
    Ok(Layer::from_table(table, &origin))
}
