//! One recording in memory, whatever file format it came from.

use std::path::{Path, PathBuf};

use super::format;
use crate::Result;

/// What a channel measures. Only [`ChannelKind::Eeg`] channels reach a model by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Scalp EEG, the reference electrode included.
    Eeg,
    /// Eye movement.
    Eog,
    /// Heart.
    Ecg,
    /// Muscle.
    Emg,
    /// Triggers and status words.
    Trigger,
    /// Anything else.
    Misc,
}

/// One channel of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Channel {
    /// Name, unique within the recording: prefixes such as "EEG " removed, blanks trimmed,
    /// duplicates numbered "-1", "-2".
    pub name: String,
    /// What it measures, by channels.tsv where there is one, else by its label.
    pub kind: ChannelKind,
    /// Unit of the samples in memory: "uV" for every voltage (mV and V are converted), else the
    /// file's own.
    pub unit: String,
    /// Marked bad in channels.tsv.
    pub bad: bool,
    /// Samples per second of this channel in the file, Hz.
    pub sample_rate: f64,
    /// Samples, in `unit`. All channels have the same length where they have the same rate.
    pub samples: Vec<f32>,
}

/// Something marked in time.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotation {
    /// Seconds from the first sample in memory.
    pub onset_s: f64,
    /// Seconds; 0 for a point in time.
    pub duration_s: f64,
    /// The file's words, as in "eyes closed" or "boundary".
    pub text: String,
}

/// One recording in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// The file it was read from.
    pub path: PathBuf,
    /// Channels in file order, annotation channels excluded.
    pub channels: Vec<Channel>,
    /// Marks, by onset. Gaps of a discontinuous file appear as "boundary".
    pub annotations: Vec<Annotation>,
    /// What a reader had to decide or pass over, one sentence each, for the run's log.
    pub notes: Vec<String>,
}

impl Recording {
    /// Reads a recording; the extension of its name tells the format
    /// ([`format::EXTENSIONS`]).
    ///
    /// # Errors
    /// The file cannot be read, no reader knows its extension, its signal was never downloaded
    /// (a git-annex or git-lfs pointer), or it is not what its format asks for.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(format::decode(path.as_ref())?.recording)
    }

    /// The channel of that name.
    pub fn channel(&self, name: &str) -> Option<&Channel> {
        self.channels.iter().find(|channel| channel.name == name)
    }

    /// Length in seconds: that of the longest channel.
    pub fn duration_s(&self) -> f64 {
        let seconds = self.channels.iter().map(|c| c.samples.len() as f64 / c.sample_rate);
        seconds.fold(0.0, f64::max)
    }
}
