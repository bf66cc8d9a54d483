//! BIDS datasets: who took part, which recordings there are, and what their sidecars say.
//!
//! Follows the Brain Imaging Data Structure 1.10 for EEG (Pernet et al. 2019): sidecars are
//! inherited from the folders above, `n/a` is a missing value everywhere.
//!
//! # Layout
//! [`Dataset`] walks the folders, `name` reads file names, `entry` merges a recording with its
//! sidecars, `participants` and `table` read the tables.

mod entry;
mod name;
mod participants;
mod scan;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

pub use entry::{Entry, Sidecar};
pub use participants::Participants;

use super::format::{extension, pointer, supported};
use crate::{Error, Result};

/// A recording or subject that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file or folder.
    pub path: PathBuf,
    /// Why, in words that are the same for every path of the same case.
    pub why: String,
}

/// A BIDS dataset.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Its folder.
    pub root: PathBuf,
    /// Name in dataset_description.json, else the folder's.
    pub name: String,
    /// participants.tsv.
    pub participants: Participants,
    /// Recordings that can be read, by subject, session, task and run.
    pub recordings: Vec<Entry>,
    /// What was passed over, by path.
    pub skipped: Vec<Skipped>,
    /// What else is worth a line in the log.
    pub notes: Vec<String>,
}

impl Dataset {
    /// Opens the dataset at `root`, without reading any signal.
    ///
    /// # Errors
    /// As [`Dataset::scan`]; and where there is no recording that could be read.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let dataset = Self::scan(root)?;
        if dataset.recordings.is_empty() {
            return Err(dataset.nothing_to_read());
        }
        Ok(dataset)
    }

    /// As [`Dataset::open`], for a look at a dataset whose signals may all be absent.
    ///
    /// # Errors
    /// There is no such folder, or it holds no participants.tsv that can be read.
    pub fn scan(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        if !root.is_dir() {
            let problem = match fs::symlink_metadata(root) {
                Ok(_) => "is not a folder",
                Err(_) => "no such folder",
            };
            let remedy = "give the folder that holds participants.tsv";
            return Err(Error::input(root.display(), problem, remedy));
        }
        let table = root.join("participants.tsv");
        if fs::symlink_metadata(&table).is_err() {
            return Err(not_a_dataset(root)?);
        }
        let participants = Participants::read(&table)?;
        let mut notes = participants.notes().to_vec();
        let name = name_of(root, &mut notes);
        let found = scan::walk(root, &participants)?;
        let present: HashSet<&str> = found.subjects.iter().map(String::as_str).collect();
        let absent = participants.subjects().iter().filter(|s| !present.contains(s.as_str()));
        match absent.count() {
            0 => {}
            absent => notes.push(format!(
                "{absent} of the {} subjects of participants.tsv have no folder here",
                participants.subjects().len()
            )),
        }
        let scan::Found { recordings, skipped, .. } = found;
        Ok(Self { root: root.to_path_buf(), name, participants, recordings, skipped, notes })
    }

    /// How many paths were passed over for each reason, the most frequent first.
    pub fn skipped_by_reason(&self) -> Vec<(&str, usize)> {
        let mut reasons: Vec<(&str, usize)> = Vec::new();
        for skipped in &self.skipped {
            match reasons.iter_mut().find(|(why, _)| *why == skipped.why) {
                Some((_, count)) => *count += 1,
                None => reasons.push((&skipped.why, 1)),
            }
        }
        reasons.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        reasons
    }

    fn nothing_to_read(&self) -> Error {
        let root = self.root.display();
        let reasons = self.skipped_by_reason();
        let listed: Vec<String> =
            reasons.iter().map(|(why, count)| format!("{count} passed over: {why}")).collect();
        let remedy = match reasons.first() {
            Some((why, _)) if scan::never_downloaded(why) => {
                format!("get the signals with: datalad get -d {root} {root}/sub-*")
            }
            Some(_) => "see the reasons; `participants.tsv` and the folders must agree".to_string(),
            None => format!(
                "recordings are expected as sub-X/[ses-Y/]eeg/sub-X_task-T_eeg with one of {}",
                supported()
            ),
        };
        let listed =
            if listed.is_empty() { "no sub- folders".to_string() } else { listed.join("; ") };
        Error::input(root, format!("holds no recording that can be read ({listed})"), remedy)
    }
}

fn name_of(root: &Path, notes: &mut Vec<String>) -> String {
    let path = root.join("dataset_description.json");
    let named = match entry::json(&path) {
        Ok(fields) => fields.get("Name").and_then(|name| name.as_str().map(str::to_string)),
        Err(problem) => {
            notes.push(problem);
            None
        }
    };
    let folder = || root.canonicalize().ok()?.file_name().map(|n| n.to_string_lossy().into_owned());
    named.filter(|name| !name.trim().is_empty()).or_else(folder).unwrap_or_default()
}

/// What a folder without participants.tsv is instead, and where to look.
fn not_a_dataset(root: &Path) -> Result<Error> {
    let mut folders = Vec::new();
    let mut signals = 0;
    let mut files = 0;
    for item in fs::read_dir(root).map_err(Error::io(root, "list"))? {
        let path = item.map_err(Error::io(root, "list"))?.path();
        if path.is_dir() {
            folders.push(path);
        } else {
            files += 1;
            let known = super::format::EXTENSIONS.contains(&extension(&path).as_str());
            signals += usize::from(known || pointer::find(&path).is_some());
        }
    }
    folders.sort();
    let name = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let names: Vec<String> = folders.iter().filter_map(name).collect();
    let subjects = names.iter().filter(|name| name.starts_with("sub-")).count();
    let inner = folders.iter().find(|folder| folder.join("participants.tsv").exists());
    let above = root.canonicalize().ok();
    let above = above.iter().flat_map(|p| p.ancestors().skip(1).take(4));
    let mut above = above.filter(|folder| folder.join("participants.tsv").exists());
    let remedy = if let Some(folder) = inner.map(PathBuf::as_path).or_else(|| above.next()) {
        format!("a dataset lies at {}: give that folder", folder.display())
    } else if subjects > 0 {
        "write a participants.tsv beside the sub- folders, with a column participant_id".to_string()
    } else {
        "give the folder of a BIDS dataset, which holds participants.tsv and sub- folders"
            .to_string()
    };
    let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    let more = if names.len() > 5 { ", ..." } else { "" };
    let listed = if names.is_empty() { String::new() } else { format!(" ({shown}{more})") };
    Ok(Error::input(
        root.display(),
        format!(
            "has no participants.tsv; found {} folders{listed} and {files} files, {signals} of \
             them recordings",
            names.len(),
        ),
        remedy,
    ))
}
