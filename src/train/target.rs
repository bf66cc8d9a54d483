//! What is learned: a column of participants.tsv, or which task a recording is of.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::data::bids::Participants;
use crate::data::cache::CachedRecording;
use crate::data::rng::Rng;
use crate::metrics::Task;
use crate::{Error, Result};

/// The word that stands for the recordings' BIDS task instead of a column.
pub const TASK: &str = "task";

/// Most classes a column of words may have.
const MOST_CLASSES: usize = 20;

/// Labels of recordings.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// What it is called and what kind it is.
    pub task: Task,
    /// Value or class number of each recording; None where there is no label.
    pub labels: Vec<Option<f64>>,
    /// The label belongs to the recording, not to the subject: predictions are aggregated by
    /// recording.
    pub by_recording: bool,
}

/// How numbers become what the model is trained on: z-scores over the training subjects.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Standard {
    /// Mean over the training subjects.
    pub mean: f64,
    /// Standard deviation over the training subjects.
    pub deviation: f64,
}

impl Standard {
    /// Of these values.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };
        Self { mean, deviation }
    }
}

impl Target {
    /// Labels by the column `name` of the participants, or by task.
    ///
    /// # Errors
    /// [`Error::Input`] for an unknown column (listing the columns), one without values, one class
    /// only, or words of too many kinds.
    pub fn new(
        name: &str,
        participants: &Participants,
        recordings: &[CachedRecording],
    ) -> Result<Self> {
        let known = participants.columns().iter().any(|column| column == name);
        if name == TASK && !known {
            let words = recordings.iter().map(|r| r.task.clone());
            return Self::classes(name, words.collect(), true);
        }
        if !known || name == "participant_id" {
            let columns = participants.columns().iter().filter(|c| *c != "participant_id");
            let list: Vec<&str> = columns.map(String::as_str).collect();
            let problem = "is no column of participants.tsv";
            let remedy = format!("choose one of {}, or task", list.join(", "));
            return Err(Error::input(format!("--target {name}"), problem, remedy));
        }
        let subjects: BTreeSet<&str> = recordings.iter().map(|r| r.subject.as_str()).collect();
        if let (Some(only), 1) = (subjects.first(), subjects.len()) {
            let problem =
                format!("one subject only ({only}) can be read: there is none to test on");
            return Err(Error::input(format!("--target {name}"), problem, "add subjects"));
        }
        let value = |r: &CachedRecording| participants.value(&r.subject, name).map(str::to_string);
        let words: Vec<Option<String>> = recordings.iter().map(value).collect();
        let numbers: Vec<Option<f64>> = words
            .iter()
            .map(|word| word.as_ref().and_then(|w| w.parse().ok()).filter(|x: &f64| x.is_finite()))
            .collect();
        let distinct: BTreeSet<&String> = words.iter().flatten().collect();
        let numeric = words.iter().zip(&numbers).all(|(word, x)| word.is_none() || x.is_some());
        if numeric && distinct.len() > 2 {
            let unit = if name == "age" { "y" } else { "" };
            let task = Task::Regression { name: name.into(), unit: unit.into() };
            return Ok(Self { task, labels: numbers, by_recording: false });
        }
        Self::classes(name, words, false)
    }

    fn classes(name: &str, words: Vec<Option<String>>, by_recording: bool) -> Result<Self> {
        let distinct: BTreeSet<&String> = words.iter().flatten().collect();
        let place = format!("--target {name}");
        let names: Vec<String> = distinct.into_iter().cloned().collect();
        match names.as_slice() {
            [] => {
                let problem = "is n/a for every recording that can be read";
                return Err(Error::input(place, problem, "choose a column that has values"));
            }
            [only] => {
                let problem = format!("has one class only, {only}, among the recordings read");
                let remedy = "choose another column, or read more subjects or tasks";
                return Err(Error::input(place, problem, remedy));
            }
            many if many.len() > MOST_CLASSES => {
                let problem = format!("has {} different words and is no number", many.len());
                let remedy = "choose a column of numbers or of a few classes";
                return Err(Error::input(place, problem, remedy));
            }
            _ => {}
        }
        let index: BTreeMap<&str, usize> =
            names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
        let labels = words
            .iter()
            .map(|word| word.as_ref().and_then(|word| index.get(word.as_str())).map(|&i| i as f64));
        let labels = labels.collect();
        let task = Task::Classification { name: name.into(), classes: names };
        Ok(Self { task, labels, by_recording })
    }

    /// Number of classes; 0 for a number.
    pub fn n_classes(&self) -> usize {
        match &self.task {
            Task::Regression { .. } => 0,
            Task::Classification { classes, .. } => classes.len(),
        }
    }

    /// Outputs the model needs: one logit for two classes.
    pub fn outputs(&self) -> usize {
        match self.n_classes() {
            0 | 2 => 1,
            n => n,
        }
    }

    /// Name of the target.
    pub fn name(&self) -> &str {
        match &self.task {
            Task::Regression { name, .. } | Task::Classification { name, .. } => name,
        }
    }

    /// Shuffles labels among subjects (among recordings where they belong to those), as a control.
    pub fn shuffle(&mut self, recordings: &[CachedRecording], seed: u64) {
        let mut rng = Rng::new(seed, 0x5348_5546);
        if self.by_recording {
            let mut labels: Vec<f64> = self.labels.iter().flatten().copied().collect();
            rng.shuffle(&mut labels);
            let mut next = labels.into_iter();
            self.labels.iter_mut().flatten().for_each(|to| *to = next.next().unwrap_or(*to));
            return;
        }
        let labelled = recordings.iter().zip(&self.labels);
        let by_subject: BTreeMap<&str, f64> =
            labelled.filter_map(|(r, l)| l.map(|l| (r.subject.as_str(), l))).collect();
        let mut values: Vec<f64> = by_subject.values().copied().collect();
        rng.shuffle(&mut values);
        let moved: BTreeMap<&str, f64> = by_subject.into_keys().zip(values).collect();
        for (recording, label) in recordings.iter().zip(&mut self.labels) {
            if label.is_some() {
                *label = moved.get(recording.subject.as_str()).copied();
            }
        }
    }
}
