//! From settings to windows: BIDS folder (or generated EEG), cache, windows, labels.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::config::{self, DataSettings, Notch, Settings};
use crate::console::Console;
use crate::data::bids;
use crate::data::cache::{self, Cache, CachedRecording};
use crate::data::montage;
use crate::data::prepare::{Progress, Source, prepare};
use crate::data::preprocess;
use crate::data::synth;
use crate::data::window::{Window, Windowing};
use crate::report::Skipped;
use crate::{Error, Result};

use super::target::Target;

/// The dataset of `engine train` without `--data`: enough subjects for an interval that means
/// something, short enough to be made and learned in minutes on two cores.
pub const DEMO: synth::Settings = synth::Settings {
    subjects: 400,
    seconds_per_condition: 6,
    sample_rate: 100,
    n_channels: 129,
    seed: 1,
    age_range: [5.0, 22.0],
};

/// Recordings ready to be cut.
pub struct Prepared {
    /// Name of the dataset.
    pub name: String,
    /// Preprocessed recordings.
    pub cache: Cache,
    /// The participants' table.
    pub participants: bids::Participants,
    /// Left out so far, and why.
    pub skipped: Vec<Skipped>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Windows with labels.
pub struct Dataset {
    /// What they are cut from.
    pub prepared: Prepared,
    /// Samples of a window.
    pub length: usize,
    /// Windows of labelled recordings.
    pub windows: Vec<Window>,
    /// Labels by recording.
    pub target: Target,
}

impl Dataset {
    /// The recording a window is of.
    pub fn recording(&self, window: &Window) -> &CachedRecording {
        &self.prepared.cache.recordings()[window.recording as usize]
    }

    /// Label of a window's recording; windows without are not in the list.
    pub fn label(&self, window: &Window) -> f64 {
        self.target.labels[window.recording as usize].unwrap_or(f64::NAN)
    }

    /// Subjects of labelled recordings with their label, one entry a recording.
    pub fn labelled_subjects(&self) -> (Vec<String>, Vec<f64>) {
        let recordings = self.prepared.cache.recordings();
        let mut used = vec![false; recordings.len()];
        self.windows.iter().for_each(|w| used[w.recording as usize] = true);
        let all = recordings.iter().zip(&self.target.labels).zip(used);
        all.filter(|(_, used)| *used)
            .filter_map(|((r, label), _)| label.map(|label| (r.subject.clone(), label)))
            .unzip()
    }

    /// How many recordings windows are cut from.
    pub fn n_recordings(&self) -> usize {
        recordings_of(&self.windows)
    }

    /// Channels of a window.
    pub fn channels(&self) -> &[String] {
        self.prepared.cache.channels()
    }
}

/// Where caches and generated data go when nothing is said.
pub fn cache_root(settings: &DataSettings) -> PathBuf {
    if let Some(dir) = &settings.cache_dir {
        return dir.clone();
    }
    let home = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    home.map_or_else(|| PathBuf::from(".engine-cache"), |home| home.join("engine"))
}

/// The BIDS folder of the settings; made first where the data are generated.
///
/// # Errors
/// What the generator reports; [`Error::Input`] when it was interrupted.
fn folder(settings: &DataSettings, console: &Console, cancel: &AtomicBool) -> Result<PathBuf> {
    if let Some(dir) = &settings.dir {
        return Ok(dir.clone());
    }
    let name = format!("generated-{}x{}s", DEMO.subjects, 2 * DEMO.seconds_per_condition);
    let dir = cache_root(settings).join(name);
    if !dir.join("dataset_description.json").exists() {
        console.say(&format!("generating EEG of {} subjects in {}", DEMO.subjects, dir.display()));
        std::fs::create_dir_all(&dir).map_err(cache::refused(&dir, "make the folder of"))?;
    }
    let summary = synth::write(&DEMO, &dir, &|_, _| {}, cancel)?;
    if !summary.is_complete {
        let problem = "the generation of EEG was interrupted";
        return Err(Error::input(dir.display(), problem, "run the same command again"));
    }
    Ok(dir)
}

/// Preprocessing as the settings ask for it; `power_line` is what the sidecars say, Hz.
pub fn preprocessing(data: &DataSettings, power_line: Option<f64>) -> preprocess::Settings {
    let high = data.high_hz.unwrap_or(0.0);
    let notch_hz = match data.notch_hz {
        Notch::Off => 0.0,
        Notch::Hz(hz) => hz,
        // A line above the pass band is gone already.
        Notch::Auto => power_line.filter(|hz| high == 0.0 || *hz < high + 5.0).unwrap_or(0.0),
    };
    preprocess::Settings {
        channels: data.channels.clone(),
        high_pass_hz: data.low_hz.unwrap_or(0.0),
        low_pass_hz: high,
        notch_hz,
        resample_hz: data.resample_hz.unwrap_or(0.0),
        bad_channels: match data.bad_channels {
            config::BadChannels::Interpolate => preprocess::BadChannels::Interpolate,
            config::BadChannels::Zero => preprocess::BadChannels::Zero,
            config::BadChannels::Keep => preprocess::BadChannels::Keep,
        },
        reference: match &data.reference {
            config::Reference::Recorded => preprocess::Reference::None,
            config::Reference::Average => preprocess::Reference::Average,
            config::Reference::Channels(names) => preprocess::Reference::Channels(names.clone()),
        },
        scale: match data.scale {
            config::Scale::Channel => preprocess::Scale::Channel,
            config::Scale::Recording => preprocess::Scale::Recording,
            config::Scale::Fixed => preprocess::Scale::Fixed(10.0),
        },
        clip: data.clip.unwrap_or(0.0) as f32,
        ..preprocess::Settings::default()
    }
}

/// How recordings are cut, by the settings.
pub fn windowing(data: &DataSettings) -> Windowing {
    if data.events.is_empty() {
        return Windowing::Sliding { length_s: data.window_s, stride_s: data.stride_s };
    }
    Windowing::Events {
        texts: data.events.clone(),
        tmin_s: data.event_offset_s,
        tmax_s: data.event_offset_s + data.window_s,
    }
}

/// Reads the dataset's folder and prepares the cache, or opens it.
///
/// # Errors
/// As [`bids::Dataset::open`] and [`prepare`].
pub fn prepared(settings: &Settings, console: &Console, cancel: &AtomicBool) -> Result<Prepared> {
    let data = &settings.data;
    let dir = folder(data, console, cancel)?;
    let dataset = bids::Dataset::open(&dir)?;
    let wanted = |entry: &&bids::Entry| data.tasks.is_empty() || data.tasks.contains(&entry.task);
    let entries: Vec<&bids::Entry> = dataset.recordings.iter().filter(wanted).collect();
    if entries.is_empty() {
        let mut tasks: Vec<&str> = dataset.recordings.iter().map(|e| e.task.as_str()).collect();
        tasks.sort_unstable();
        tasks.dedup();
        let problem = format!("no recording is of task {}", data.tasks.join(" or "));
        let remedy = format!("the tasks there are: {}", tasks.join(", "));
        return Err(Error::input(dir.display(), problem, remedy));
    }
    let power_line = entries.first().and_then(|entry| entry.sidecar().power_line_hz);
    let sources: Vec<Source> = entries.iter().map(|entry| source(entry)).collect();
    let read = |source: &Source| match entries.iter().find(|e| e.path == source.path) {
        Some(entry) => entry.read(),
        None => crate::data::Recording::open(&source.path),
    };
    let bar = std::sync::Mutex::new(console.progress("preparing", 0, sources.len() as u64));
    let report = |progress: Progress<'_>| match progress {
        Progress::Reused { path } => console.say(&format!("cache {}", path.display())),
        Progress::Rebuilding { path, reason } => {
            console.say(&format!("cache {} {reason}: made again", path.display()));
        }
        Progress::Recording { done, .. } => {
            if let Ok(mut bar) = bar.lock() {
                bar.update(done as u64, 0, None);
            }
        }
    };
    let preprocessing = preprocessing(data, power_line);
    let position = |name: &str| montage::position(name);
    let folder = cache_root(data).join("windows");
    let positions: preprocess::Positions<'_> = &position;
    let cache =
        prepare(&sources, &read, &preprocessing, Some(positions), &folder, &report, cancel)?;
    let unread = dataset.skipped.iter().map(|s| (s.path.clone(), s.why.clone()));
    let refused = cache.skipped().iter().map(|s| (s.path.clone(), s.reason.clone()));
    let skipped = unread.chain(refused);
    let skipped =
        skipped.map(|(path, reason)| Skipped { path: path.display().to_string(), reason });
    Ok(Prepared {
        name: dataset.name.clone(),
        skipped: skipped.collect(),
        participants: dataset.participants,
        notes: dataset.notes,
        cache,
    })
}

fn source(entry: &bids::Entry) -> Source {
    let mut companions: Vec<PathBuf> = entry.json.clone();
    companions.extend(entry.channels.clone());
    companions.extend(entry.events.clone());
    for extension in ["fdt", "eeg", "vmrk"] {
        let beside = entry.path.with_extension(extension);
        if beside.exists() {
            companions.push(beside);
        }
    }
    Source {
        subject: entry.subject.clone(),
        session: entry.session.clone(),
        task: Some(entry.task.clone()),
        run: entry.run.clone(),
        path: entry.path.clone(),
        companions,
    }
}

/// Prepares, labels and cuts.
///
/// # Errors
/// As [`prepared`], [`Target::new`] and [`Windowing::cut`].
pub fn open(settings: &Settings, console: &Console, cancel: &AtomicBool) -> Result<Dataset> {
    let mut prepared = prepared(settings, console, cancel)?;
    let recordings = prepared.cache.recordings();
    let mut target = Target::new(&settings.data.target, &prepared.participants, recordings)?;
    if settings.data.shuffle_labels {
        target.shuffle(recordings, settings.train.seed);
        prepared.notes.push("labels were shuffled: every score should fall to chance".into());
    }
    let cut =
        windowing(&settings.data).cut(&prepared.cache.extents(), prepared.cache.sample_rate())?;
    for (recording, why) in &cut.skipped {
        let path = recordings[*recording].path.display().to_string();
        prepared.skipped.push(Skipped { path, reason: why.clone() });
    }
    for (i, (recording, label)) in recordings.iter().zip(&target.labels).enumerate() {
        // One that gives no window is skipped already.
        if label.is_none() && cut.skipped.iter().all(|(skipped, _)| *skipped != i) {
            let reason = format!("{} is n/a for {}", target.name(), recording.subject);
            let path = recording.path.display().to_string();
            prepared.skipped.push(Skipped { path, reason });
        }
    }
    let labelled = |w: &Window| target.labels[w.recording as usize].is_some();
    let windows: Vec<Window> = cut.windows.into_iter().filter(labelled).collect();
    if windows.is_empty() {
        let problem = "no labelled recording gives a window";
        let remedy = "see the skipped recordings, choose another --target or shorter windows";
        return Err(Error::input("--data", problem, remedy));
    }
    summarise(&prepared, &windows, cut.length, &target, console);
    Ok(Dataset { length: cut.length, windows, target, prepared })
}

/// How many recordings these windows, in the order of recordings, are of.
fn recordings_of(windows: &[Window]) -> usize {
    windows.chunk_by(|a, b| a.recording == b.recording).count()
}

/// Says what there is and what was left out.
fn summarise(
    prepared: &Prepared,
    windows: &[Window],
    length: usize,
    target: &Target,
    console: &Console,
) {
    let cache = &prepared.cache;
    let skipped = match prepared.skipped.len() {
        0 => String::new(),
        n => format!(" ({n} skipped)"),
    };
    console.say(&format!(
        "{}: {} recordings{skipped}, {} windows of {} channels x {length} samples at {} Hz, target {}",
        prepared.name,
        recordings_of(windows),
        windows.len(),
        cache.channels().len(),
        cache.sample_rate(),
        target.name(),
    ));
    const SHOWN: usize = 8;
    for skipped in prepared.skipped.iter().take(SHOWN) {
        console.warn(&format!("skipped {}: {}", skipped.path, skipped.reason));
    }
    if prepared.skipped.len() > SHOWN {
        let more = prepared.skipped.len() - SHOWN;
        console.warn(&format!("skipped {more} more recordings; the report lists all"));
    }
}
