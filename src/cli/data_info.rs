//! `engine data info`: what a dataset or recording holds, and what of it is skipped and why.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde_json::{Value, json};

use super::columns::{Column, Kind};
use super::{recording_info, text};
use crate::console::{Console, Mode, time};
use crate::data::bids::{Dataset, Entry, Skipped};
use crate::data::{ChannelKind, Recording, format};
use crate::train::signal;
use crate::{Error, Result};

/// Recordings in memory at once, at most: one may take 100 MB.
const MAX_READERS: usize = 16;
/// Lines of a list that are shown; --json has them all.
const MOST_LINES: usize = 10;

/// Says what lies at `path`: a BIDS folder or one recording.
///
/// # Errors
/// [`Error::Input`] or [`Error::Io`] naming the path: there is none, it is neither, it cannot be
/// read. What a dataset holds beside its good recordings is reported instead.
pub fn run(path: &Path, console: &Console) -> Result<()> {
    if fs::symlink_metadata(path).is_err() {
        let remedy = format!("give a BIDS folder, or a recording ({})", format::supported());
        return Err(Error::input(path.display(), "no such file or folder", remedy));
    }
    if !path.is_dir() {
        return recording_info::run(path, console);
    }
    let dataset = Dataset::scan(path)?;
    signal::install()?;
    let signals = read_all(&dataset.recordings, console)?;
    let report = Report::new(&dataset, &signals);
    console.finish(report.words().trim_end(), &report.json());
    Ok(())
}

/// What is kept of one recording.
struct Facts<'a> {
    entry: &'a Entry,
    seconds: f64,
    /// EEG channels.
    channels: usize,
    bad: usize,
    /// Sampling rates of the EEG channels, Hz, each once.
    rates: Vec<f64>,
    mains: Option<f64>,
    reference: Option<String>,
    notes: Vec<String>,
}

impl<'a> Facts<'a> {
    fn of(entry: &'a Entry, recording: Recording) -> Self {
        let eeg = || recording.channels.iter().filter(|c| c.kind == ChannelKind::Eeg);
        let mut rates: Vec<f64> = eeg().map(|c| c.sample_rate).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let sidecar = entry.sidecar();
        Self {
            entry,
            seconds: recording.duration_s(),
            channels: eeg().count(),
            bad: eeg().filter(|c| c.bad).count(),
            rates,
            mains: sidecar.power_line_hz,
            reference: sidecar.reference,
            notes: recording.notes,
        }
    }
}

/// What reading every recording found.
#[derive(Default)]
struct Signals<'a> {
    read: Vec<Facts<'a>>,
    failed: Vec<Skipped>,
    /// Recordings that were not reached before the user stopped it.
    unread: usize,
}

/// Reads every recording whole: only so is it known that it can be read.
fn read_all<'a>(entries: &'a [Entry], console: &Console) -> Result<Signals<'a>> {
    let readers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(readers).build();
    let pool = pool.map_err(|error| Error::Device {
        device: "cpu".to_string(),
        problem: format!("{readers} threads cannot be started: {error}"),
        remedy: "raise the limit of processes (ulimit -u)".to_string(),
    })?;
    // The answer in JSON is one object.
    let shown = console.mode() != Mode::Json && entries.len() > 1;
    let bar = shown.then(|| console.progress("reading recordings", 0, entries.len() as u64));
    let (bar, done) = (Mutex::new(bar), AtomicUsize::new(0));
    let read = |entry: &'a Entry| {
        if signal::stop_requested() {
            return None;
        }
        let found = entry.read().map(|recording| Facts::of(entry, recording));
        let done = 1 + done.fetch_add(1, Ordering::Relaxed);
        if let Some(bar) = &mut *bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.update(done as u64, 0, None);
        }
        Some(found)
    };
    let found: Vec<Option<Result<Facts<'a>>>> =
        pool.install(|| entries.par_iter().map(read).collect());
    if let Some(bar) = bar.into_inner().unwrap_or_else(PoisonError::into_inner) {
        bar.finish();
    }
    let mut signals = Signals::default();
    for (entry, outcome) in entries.iter().zip(found) {
        match outcome {
            None => signals.unread += 1,
            Some(Ok(facts)) => signals.read.push(facts),
            Some(Err(error)) => signals
                .failed
                .push(Skipped { path: entry.path.clone(), why: why(&error, &entry.path) }),
        }
    }
    Ok(signals)
}

/// An error's problem without the path that is listed beside it.
fn why(error: &Error, path: &Path) -> String {
    match error {
        Error::Input { place, problem, .. } if *place == path.display().to_string() => {
            problem.clone()
        }
        Error::Io { path: of, action, source } if of == path => {
            format!("cannot {action}: {source}")
        }
        other => other.to_string().lines().next().unwrap_or_default().to_string(),
    }
}

/// One task of a dataset.
struct Task<'a> {
    name: &'a str,
    recordings: usize,
    subjects: usize,
    seconds: f64,
}

/// All that is said about a dataset.
struct Report<'a> {
    dataset: &'a Dataset,
    signals: &'a Signals<'a>,
    with_recordings: usize,
    columns: Vec<Column>,
    /// Columns that could be learned, by the subjects that have recordings.
    targets: Vec<Column>,
    tasks: Vec<Task<'a>>,
    skipped: Vec<&'a Skipped>,
    notes: Vec<(String, usize)>,
}

impl<'a> Report<'a> {
    fn new(dataset: &'a Dataset, signals: &'a Signals<'a>) -> Self {
        let participants = &dataset.participants;
        let failed: BTreeSet<&Path> = signals.failed.iter().map(|s| s.path.as_path()).collect();
        let readable = dataset.recordings.iter().filter(|e| !failed.contains(e.path.as_path()));
        let recorded: BTreeSet<&str> = readable.map(|e| e.subject.as_str()).collect();
        let column = |name: &String, only: bool| {
            let subjects = participants.subjects().iter();
            let subjects = subjects.filter(|s| !only || recorded.contains(s.as_str()));
            Column::of(name, subjects.map(|s| participants.value(s, name)))
        };
        let names: Vec<&String> =
            participants.columns().iter().filter(|name| *name != "participant_id").collect();
        // Where no signal is there, the table still says what its subjects could be asked.
        let only = !recorded.is_empty();
        let targets = names.iter().map(|name| column(name, only)).filter(Column::is_target);
        let notes = dataset.notes.iter().chain(signals.read.iter().flat_map(|f| &f.notes)).cloned();
        let mut skipped: Vec<&Skipped> = dataset.skipped.iter().chain(&signals.failed).collect();
        skipped.sort_by(|a, b| a.path.cmp(&b.path));
        Self {
            dataset,
            signals,
            with_recordings: recorded.len(),
            columns: names.iter().map(|name| column(name, false)).collect(),
            targets: targets.collect(),
            tasks: tasks(&signals.read),
            skipped,
            notes: text::tally(notes),
        }
    }

    fn seconds(&self) -> f64 {
        self.signals.read.iter().map(|facts| facts.seconds).sum()
    }

    fn reasons(&self) -> Vec<(&str, usize)> {
        text::tally(self.skipped.iter().map(|skipped| skipped.why.as_str()))
    }

    /// Each different number of channels, rate, mains frequency and reference with its recordings.
    fn shapes(&self) -> [(&'static str, Vec<(String, usize)>); 4] {
        let tally = |value: &dyn Fn(&Facts<'_>) -> Vec<String>| {
            text::tally(self.signals.read.iter().flat_map(value))
        };
        let hz = |rate: &f64| format!("{} Hz", text::number(*rate));
        [
            ("channels", tally(&|f| vec![format!("{} EEG", f.channels)])),
            ("rate", tally(&|f| f.rates.iter().map(hz).collect())),
            ("mains", tally(&|f| f.mains.iter().map(hz).collect())),
            ("reference", tally(&|f| f.reference.iter().cloned().collect())),
        ]
    }

    fn words(&self) -> String {
        let mut out = String::new();
        let participants = self.dataset.participants.subjects().len();
        let mut head = vec![
            row(["folder", &self.dataset.root.display().to_string()]),
            row([
                "participants",
                &format!("{participants}, {} with recordings", self.with_recordings),
            ]),
            row([
                "recordings",
                &format!("{}, {} in all", self.signals.read.len(), time(self.seconds())),
            ]),
        ];
        if self.signals.unread > 0 {
            let unread = format!("stopped with {} not looked at", self.signals.unread);
            head.push(row(["", &unread]));
        }
        section(&mut out, &self.dataset.name, &head);
        section(&mut out, "Columns of participants.tsv", &self.column_rows());
        let task = |task: &Task<'_>| {
            let subjects = text::count(task.subjects, "subject");
            let recordings = text::count(task.recordings, "recording");
            row([task.name, &format!("{recordings} of {subjects}, {}", time(task.seconds))])
        };
        section(&mut out, "Tasks", &self.tasks.iter().map(task).collect::<Vec<_>>());
        let shape = |(what, counts): &(&str, Vec<(String, usize)>)| {
            let each =
                counts.iter().map(|(v, n)| format!("{v} ({})", text::count(*n, "recording")));
            (!counts.is_empty()).then(|| row([*what, &each.collect::<Vec<_>>().join(", ")]))
        };
        let mut shapes: Vec<Vec<String>> = self.shapes().iter().filter_map(shape).collect();
        let bad: usize = self.signals.read.iter().map(|facts| facts.bad).sum();
        if bad > 0 {
            let all: usize = self.signals.read.iter().map(|facts| facts.channels).sum();
            shapes.push(row(["marked bad", &format!("{bad} of {all} EEG channels")]));
        }
        section(&mut out, "Signals", &shapes);
        section(&mut out, "Skipped", &self.skipped_rows());
        section(&mut out, "Notes", &self.note_rows());
        section(&mut out, "Could be a --target", &self.target_rows());
        out
    }

    fn column_rows(&self) -> Vec<Vec<String>> {
        let (tasks, columns): (Vec<_>, Vec<_>) =
            self.columns.iter().partition(|c| c.kind == Kind::Availability);
        let missing = |column: &Column| match column.missing {
            0 => String::new(),
            n => format!("; {n} n/a"),
        };
        let mut rows: Vec<Vec<String>> = columns
            .iter()
            .map(|c| row([&c.name, &format!("{}{}", c.words(), missing(c))]))
            .collect();
        if let Some(first) = tasks.first() {
            let name = match tasks.len() {
                1 => first.name.clone(),
                n => format!("{}, {} more", first.name, n - 1),
            };
            rows.push(row([&name, &first.words()]));
        }
        rows
    }

    /// Reasons with their numbers; below a reason its paths, where they are few.
    fn skipped_rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for (why, count) in self.reasons() {
            rows.push(vec![count.to_string(), why.to_string()]);
            let of_it = self.skipped.iter().filter(|s| s.why == why);
            let shown = if self.skipped.len() > MOST_LINES { 1 } else { count };
            for skipped in of_it.take(shown) {
                let path = skipped.path.strip_prefix(&self.dataset.root);
                let path = path.unwrap_or(&skipped.path).display();
                let first = if shown < count { "the first: " } else { "" };
                rows.push(vec![String::new(), format!("  {first}{path}")]);
            }
        }
        rows
    }

    fn note_rows(&self) -> Vec<Vec<String>> {
        let shown = self.notes.iter().take(MOST_LINES);
        let mut rows: Vec<Vec<String>> =
            shown.map(|(note, n)| vec![format!("{n} x"), note.clone()]).collect();
        if self.notes.len() > MOST_LINES {
            let more = format!("{} more; --json has them all", self.notes.len() - MOST_LINES);
            rows.push(row(["", &more]));
        }
        rows
    }

    fn target_rows(&self) -> Vec<Vec<String>> {
        let row_of = |column: &Column| {
            let subjects = text::count(column.present, "subject");
            let kind = match &column.kind {
                Kind::Classes(classes) => format!("{} classes", classes.len()),
                _ => "numbers".to_string(),
            };
            row([&column.name, &format!("{kind}, {subjects}")])
        };
        let mut rows: Vec<Vec<String>> = self.targets.iter().map(row_of).collect();
        if let (Some(first), true) = (self.targets.first(), self.with_recordings > 0) {
            let dir = text::shell_word(&self.dataset.root);
            let name = text::shell_word(first.name.as_ref());
            rows.push(row(["", &format!("engine train --data {dir} --target {name}")]));
        }
        rows
    }

    fn json(&self) -> Value {
        let task = |task: &Task<'_>| {
            json!({
                "task": task.name,
                "recordings": task.recordings,
                "subjects": task.subjects,
                "seconds": task.seconds,
            })
        };
        let recording = |facts: &Facts<'_>| {
            json!({
                "path": facts.entry.path,
                "subject": facts.entry.subject,
                "session": facts.entry.session,
                "task": facts.entry.task,
                "run": facts.entry.run,
                "seconds": facts.seconds,
                "eeg_channels": facts.channels,
                "bad_channels": facts.bad,
                "rates_hz": facts.rates,
                "mains_hz": facts.mains,
                "reference": facts.reference,
                "notes": facts.notes,
            })
        };
        let skipped = |s: &&Skipped| json!({ "path": s.path, "why": s.why });
        let reason = |(why, n): (&str, usize)| json!({ "why": why, "count": n });
        json!({
            "kind": "dataset",
            "name": self.dataset.name,
            "dir": self.dataset.root,
            "participants": self.dataset.participants.subjects().len(),
            "participants_with_recordings": self.with_recordings,
            "columns": self.columns.iter().map(Column::json).collect::<Vec<_>>(),
            "targets": self.targets.iter().map(|c| &c.name).collect::<Vec<_>>(),
            "tasks": self.tasks.iter().map(task).collect::<Vec<_>>(),
            "seconds": self.seconds(),
            "recordings": self.signals.read.iter().map(recording).collect::<Vec<_>>(),
            "not_looked_at": self.signals.unread,
            "skipped": self.skipped.iter().map(skipped).collect::<Vec<_>>(),
            "skipped_by_reason": self.reasons().into_iter().map(reason).collect::<Vec<_>>(),
            "notes": self.dataset.notes,
        })
    }
}

fn tasks<'a>(read: &[Facts<'a>]) -> Vec<Task<'a>> {
    let names: BTreeSet<&'a str> = read.iter().map(|facts| facts.entry.task.as_str()).collect();
    let task = |name: &'a str| {
        let of = || read.iter().filter(|facts| facts.entry.task == name);
        let subjects: BTreeSet<&str> = of().map(|facts| facts.entry.subject.as_str()).collect();
        Task {
            name,
            recordings: of().count(),
            subjects: subjects.len(),
            seconds: of().map(|facts| facts.seconds).sum(),
        }
    };
    names.into_iter().map(task).collect()
}

/// A row of two cells.
pub(super) fn row(cells: [&str; 2]) -> Vec<String> {
    cells.map(str::to_string).to_vec()
}

/// A heading and its rows, with an empty line before all but the first; nothing without rows.
pub(super) fn section(out: &mut String, heading: &str, rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    let separator = if out.is_empty() { "" } else { "\n" };
    // Writing to a String cannot fail.
    let _ = write!(out, "{separator}{heading}\n{}", text::table(rows));
}
