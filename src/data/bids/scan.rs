//! Walks the folders of a dataset.

use std::fs;
use std::path::{Path, PathBuf};

use super::name::Name;
use super::{Entry, Participants, Skipped};
use crate::data::format::{EXTENSIONS, pointer};
use crate::{Error, Result};

const NO_SIGNAL: &str =
    "described by sidecars, but the signal is not here: it was never downloaded";
const UNAVAILABLE: &str = "participants.tsv marks this recording unavailable";
const CAUTION: &str = "participants.tsv marks this recording with caution";
const NOT_LISTED: &str = "the subject is not in participants.tsv";
const NO_EEG: &str = "the subject's folder holds no EEG";
const NO_TASK: &str = "its name has no task-, which tells recordings apart";
const NO_SUFFIX: &str = "its name is not of the form sub-X_task-T_eeg";
const OTHER_SUBJECT: &str = "its name begins with another subject than its folder";

/// Files beside a recording that are parts of it or describe it.
const COMPANIONS: &[&str] = &["json", "tsv", "eeg", "vmrk", "fdt", "txt", "md"];

/// What a dataset's folders hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub subjects: Vec<String>,
    pub recordings: Vec<Entry>,
    pub skipped: Vec<Skipped>,
}

impl Found {
    /// What a folder holds; None, and a word about it, where it cannot be listed.
    fn listed<T>(&mut self, folder: &Path, contents: Result<T>) -> Option<T> {
        let why = match contents {
            Ok(contents) => return Some(contents),
            Err(Error::Io { action, source, .. }) => format!("cannot {action} it: {source}"),
            Err(other) => other.to_string(),
        };
        self.skipped.push(Skipped { path: folder.to_path_buf(), why });
        None
    }
}

/// Whether a reason means that the signal can be fetched.
pub(super) fn never_downloaded(why: &str) -> bool {
    why.contains("never downloaded")
}

/// One file with a BIDS name.
struct Item {
    path: PathBuf,
    name: Name,
}

impl Item {
    fn is(&self, suffix: &str, extension: &str) -> bool {
        self.name.suffix == suffix && self.name.extension == extension
    }

    fn is_sidecar(&self) -> bool {
        self.is("eeg", "json") || self.is("channels", "tsv") || self.is("events", "tsv")
    }
}

pub(super) fn walk(root: &Path, participants: &Participants) -> Result<Found> {
    let mut found = Found::default();
    let top = sidecars(root)?;
    for folder in folders(root, "sub-")? {
        let subject = file_name(&folder);
        found.subjects.push(subject.clone());
        if !participants.contains(&subject) {
            found.skipped.push(Skipped { path: folder, why: NOT_LISTED.to_string() });
            continue;
        }
        visit_subject(&folder, &subject, &top, participants, &mut found);
    }
    let run = |entry: &Entry| {
        let run = entry.run.clone().unwrap_or_default();
        (run.parse::<u64>().unwrap_or(u64::MAX), run)
    };
    found.recordings.sort_by_cached_key(|e| {
        (e.subject.clone(), e.session.clone(), e.task.clone(), run(e), e.path.clone())
    });
    found.skipped.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// All eeg folders of one subject, `top` the sidecars of the dataset's folder. One that cannot be listed is
/// no reason to do without the others.
fn visit_subject(
    folder: &Path,
    subject: &str,
    top: &[Item],
    participants: &Participants,
    found: &mut Found,
) {
    let before = found.skipped.len();
    let Some(upper) = found.listed(folder, sidecars(folder)) else { return };
    let mut places = vec![(folder.join("eeg"), Vec::new())];
    for session in found.listed(folder, folders(folder, "ses-")).unwrap_or_default() {
        if let Some(items) = found.listed(&session, sidecars(&session)) {
            places.push((session.join("eeg"), items));
        }
    }
    places.retain(|(eeg, _)| eeg.is_dir());
    if places.is_empty() && found.skipped.len() == before {
        found.skipped.push(Skipped { path: folder.to_path_buf(), why: NO_EEG.to_string() });
    }
    for (eeg, session) in &places {
        let visited = visit(eeg, subject, &[top, &upper, session], participants, found);
        found.listed(eeg, visited);
    }
}

/// One eeg folder, `above` it the sidecars of the folders it lies in, the outermost first.
fn visit(
    folder: &Path,
    subject: &str,
    above: &[&[Item]],
    participants: &Participants,
    found: &mut Found,
) -> Result<()> {
    let here = sidecars(folder)?;
    let mut described = Vec::new();
    for path in list(folder)? {
        let extension = crate::data::format::extension(&path);
        if COMPANIONS.contains(&extension.as_str()) || file_name(&path).starts_with('.') {
            continue;
        }
        let name = Name::parse(&file_name(&path));
        described.extend(name.clone());
        match admit(&path, name, subject, participants) {
            Err(why) => found.skipped.push(Skipped { path, why }),
            Ok((name, task)) => {
                let mut levels: Vec<&[Item]> = above.to_vec();
                levels.push(&here);
                found.recordings.push(entry(path, subject, task, &name, &levels, participants));
            }
        }
    }
    // Sidecars whose recording is not there: a dataset fetched without its signals.
    let orphan = |item: &&Item| !described.iter().any(|name| item.name.applies_to(name));
    let mut orphans: Vec<&Item> =
        here.iter().filter(|i| i.name.get("task").is_some()).filter(orphan).collect();
    orphans.sort_by(|a, b| a.name.entities.cmp(&b.name.entities).then(b.path.cmp(&a.path)));
    orphans.dedup_by(|a, b| a.name.entities == b.name.entities);
    let skipped = orphans.iter().map(|i| (i.path.clone(), NO_SIGNAL.to_string()));
    found.skipped.extend(skipped.map(|(path, why)| Skipped { path, why }));
    Ok(())
}

/// The name and task of a recording that can be read, or why it cannot.
fn admit(
    path: &Path,
    name: Option<Name>,
    subject: &str,
    participants: &Participants,
) -> Result<(Name, String), String> {
    let name = name.filter(|name| name.suffix == "eeg").ok_or(NO_SUFFIX)?;
    if !EXTENSIONS.contains(&name.extension.as_str()) {
        return Err(format!("no reader for '.{}' files", name.extension));
    }
    if name.get("sub").map(|label| format!("sub-{label}")).as_deref() != Some(subject) {
        return Err(OTHER_SUBJECT.to_string());
    }
    let task = name.get("task").ok_or(NO_TASK)?.to_string();
    if availability(participants, subject, &task, name.get("run")) == Some("unavailable") {
        return Err(UNAVAILABLE.to_string());
    }
    let parts = ["eeg", "fdt"].map(|part| path.with_extension(part));
    let absent = std::iter::once(path).chain(parts.iter().map(PathBuf::as_path));
    if let Some(pointer) = absent.filter_map(pointer::find).next() {
        return Err(pointer.problem().to_string());
    }
    Ok((name, task))
}

/// What participants.tsv says of one recording in its columns of tasks, as HBN has them:
/// "RestingState", "contrastChangeDetection_1".
fn availability<'a>(
    participants: &'a Participants,
    subject: &str,
    task: &str,
    run: Option<&str>,
) -> Option<&'a str> {
    let of_run = run.map(|run| format!("{task}_{}", run.trim_start_matches('0')));
    let of_run = of_run.and_then(|column| participants.value(subject, &column));
    of_run.or_else(|| participants.value(subject, task))
}

fn entry(
    path: PathBuf,
    subject: &str,
    task: String,
    name: &Name,
    levels: &[&[Item]],
    participants: &Participants,
) -> Entry {
    let describing = |suffix: &str, extension: &str| -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for level in levels {
            let fits = |i: &&Item| i.is(suffix, extension) && i.name.applies_to(name);
            let mut items: Vec<&Item> = level.iter().filter(fits).collect();
            items.sort_by_key(|item| item.name.entities.len());
            paths.extend(items.iter().map(|item| item.path.clone()));
        }
        paths
    };
    let run = name.get("run").map(str::to_string);
    let caution = availability(participants, subject, &task, run.as_deref()) == Some("caution");
    Entry {
        subject: subject.to_string(),
        session: name.get("ses").map(str::to_string),
        task,
        run,
        json: describing("eeg", "json"),
        channels: describing("channels", "tsv").pop(),
        events: describing("events", "tsv").pop(),
        notes: if caution { vec![CAUTION.to_string()] } else { Vec::new() },
        path,
    }
}

/// The sidecars in one folder.
fn sidecars(folder: &Path) -> Result<Vec<Item>> {
    let item = |path: PathBuf| Name::parse(&file_name(&path)).map(|name| Item { path, name });
    Ok(list(folder)?.into_iter().filter_map(item).filter(Item::is_sidecar).collect())
}

fn folders(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut paths = list(folder)?;
    paths.retain(|path| file_name(path).starts_with(prefix) && path.is_dir());
    Ok(paths)
}

/// A folder's contents by name.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let items = fs::read_dir(folder).map_err(Error::io(folder, "list"))?;
    let paths: std::io::Result<Vec<PathBuf>> = items.map(|item| Ok(item?.path())).collect();
    let mut paths = paths.map_err(Error::io(folder, "list"))?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
