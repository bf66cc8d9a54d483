//! The first pass over a dataset, the cache it makes, and what is read from it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use engine::data::Recording;
use engine::data::cache::Cache;
use engine::data::prepare::{Progress, Source, prepare};
use engine::data::preprocess::{BadChannels, Reference, Scale, Settings, preprocess};
use engine::data::rng::Rng;
use engine::data::split::{Part, Strata, by_fractions};
use engine::data::window::{Window, Windowing};
use engine::{Error, Result};

use super::{boundary, recording, row};

const RATE: f64 = 100.0;

/// A dataset of files that hold nothing but a number; [`Dataset::read`] makes the recordings.
struct Dataset {
    dir: tempfile::TempDir,
    sources: Vec<Source>,
    reads: AtomicUsize,
    /// Readers at work, and the most there were.
    together: Mutex<(usize, usize)>,
}

impl Dataset {
    fn new(recordings: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let sources = (0..recordings).map(|i| {
            let path = dir.path().join(format!("data/{i}.set"));
            fs::write(&path, format!("{i}")).unwrap();
            Source {
                subject: format!("{:02}", i / 2),
                task: Some("rest".into()),
                run: Some(format!("{}", i % 2 + 1)),
                path,
                ..Source::default()
            }
        });
        let sources = sources.collect();
        Self { dir, sources, reads: 0.into(), together: Mutex::new((0, 0)) }
    }

    fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Recordings of odd lengths. Number 3 has six channels, 5 an additional one, 7 another order, 9
    /// cannot be read.
    fn read(&self, source: &Source) -> Result<Recording> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        {
            let mut together = self.together.lock().unwrap();
            together.0 += 1;
            together.1 = together.1.max(together.0);
        }
        std::thread::sleep(Duration::from_millis(1));
        let text = fs::read_to_string(&source.path).map_err(Error::io(&source.path, "read"))?;
        let i: u64 = text.trim().parse().unwrap();
        let channels = match i {
            3 => 6,
            5 => 12,
            _ => 11,
        };
        let mut raw = recording(channels, 700 + 37 * i as usize, RATE, i);
        raw.path = source.path.clone();
        raw.annotations = vec![boundary(1.0 + 0.1 * i as f64)];
        if i == 7 {
            raw.channels.reverse();
        }
        self.together.lock().unwrap().0 -= 1;
        if i == 9 {
            return Err(Error::input(source.path.display(), "is a git-annex pointer", "fetch it"));
        }
        Ok(raw)
    }

    /// The cache, and the lines a user would see.
    fn prepare(&self, settings: &Settings) -> Result<(Cache, Vec<String>)> {
        let lines = Mutex::new(Vec::new());
        let progress = |progress: Progress<'_>| {
            let line = match progress {
                Progress::Reused { .. } => "reused".to_owned(),
                Progress::Rebuilding { reason, .. } => format!("rebuilding: {reason}"),
                Progress::Recording { skipped: Some(why), .. } => format!("skipped: {why}"),
                Progress::Recording { done, total, .. } => {
                    assert!(done >= 1 && done <= total);
                    return;
                }
            };
            lines.lock().unwrap().push(line);
        };
        let read = |source: &Source| self.read(source);
        let (dir, never) = (self.cache_dir(), AtomicBool::new(false));
        let cache = prepare(&self.sources, &read, settings, None, &dir, &progress, &never)?;
        Ok((cache, lines.into_inner().unwrap()))
    }

    /// As above, on a pool of its own.
    fn prepare_on(&self, threads: usize) -> Cache {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| self.prepare(&Settings::default())).unwrap().0
    }

    /// Files read since the last call.
    fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::Relaxed)
    }

    fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.cache_dir()) else { return Vec::new() };
        entries.map(|e| e.unwrap().path()).collect()
    }
}

fn index_offset(file: &[u8]) -> usize {
    u64::from_le_bytes(file[32..40].try_into().unwrap()) as usize
}

/// Random windows against preprocessing done afresh, within half a step of the quantisation.
fn assert_close(cache: &Cache, data: &Dataset, settings: &Settings) {
    let channels = cache.channels().len();
    for (r, cached) in cache.recordings().iter().enumerate() {
        let source = data.sources.iter().find(|s| s.path == cached.path).unwrap();
        let expected = preprocess(data.read(source).unwrap(), settings, None).unwrap();
        assert_eq!(cached.n_samples, expected.n_samples);
        let mut rng = Rng::new(r as u64, 8);
        for _ in 0..20 {
            let time = 1 + rng.below(cached.n_samples);
            let start = rng.below(cached.n_samples - time + 1);
            let mut out = vec![f32::NAN; channels * time];
            cache.read_window(r, start, &mut out).unwrap();
            for (name, out) in cache.channels().iter().zip(out.chunks(time)) {
                let row = row(&expected, name);
                let peak = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                for (x, want) in out.iter().zip(&row[start..]) {
                    assert!((x - want).abs() <= 1.01 * peak / 65534.0, "{name} {x} {want}");
                }
            }
        }
    }
}

#[test]
fn the_cache_returns_what_was_preprocessed() {
    let data = Dataset::new(12);
    let settings = Settings::default();
    let (cache, lines) = data.prepare(&settings).unwrap();
    assert_eq!(data.reads(), 12);
    assert_eq!(cache.sample_rate(), RATE);
    let names: Vec<String> = (1..12).map(|c| format!("E{c}")).collect();
    assert_eq!(cache.channels(), names);
    assert_eq!(cache.recordings().len(), 10);
    assert_eq!(cache.recordings()[0].run.as_deref(), Some("1"));
    let reasons: Vec<&str> = cache.skipped().iter().map(|s| s.reason.as_str()).collect();
    let lacking = "lacks 5 of the 11 channels that most recordings have (E7, E8, E9, ...)";
    assert_eq!(reasons, [lacking, "is a git-annex pointer"]);
    assert_eq!(lines, ["skipped: is a git-annex pointer"]);
    assert_close(&cache, &data, &settings);
    cache.verify().unwrap();
    let mark = &cache.recordings()[1].annotations[0];
    assert_eq!((mark.onset_s, mark.duration_s, mark.text.as_str()), (1.1, 0.0, "boundary"));
    // The second time nothing is read, and what was skipped is still known.
    data.reads();
    let (again, lines) = data.prepare(&settings).unwrap();
    assert_eq!((data.reads(), lines), (0, vec!["reused".to_owned()]));
    assert_eq!(again.skipped(), cache.skipped());
    assert_eq!(again.recordings(), cache.recordings());
}

#[test]
fn bytes_do_not_depend_on_threads_and_few_recordings_are_held() {
    let data = Dataset::new(23);
    let mut files = Vec::new();
    for threads in [1, 2, 5] {
        *data.together.lock().unwrap() = (0, 0);
        let cache = data.prepare_on(threads);
        assert!(data.together.lock().unwrap().1 <= threads);
        files.push(fs::read(cache.path()).unwrap());
        fs::remove_file(cache.path()).unwrap();
    }
    assert!(files[0] == files[1] && files[1] == files[2]);
}

#[test]
fn any_change_of_files_or_settings_makes_a_new_cache() {
    let mut data = Dataset::new(4);
    let companion = data.dir.path().join("data/channels.tsv");
    fs::write(&companion, "name\n").unwrap();
    data.sources[1].companions.push(companion.clone());
    let settings = Settings::default();
    let reads = |data: &Dataset, settings: &Settings| {
        data.prepare(settings).unwrap();
        data.reads()
    };
    assert_eq!(reads(&data, &settings), 4);
    let changed = [
        Settings { notch_hz: 50.0, ..settings.clone() },
        Settings { clip: 19.0, ..settings.clone() },
        Settings { scale: Scale::Recording, ..settings.clone() },
        Settings { reference: Reference::None, ..settings.clone() },
    ];
    for changed in &changed {
        assert_eq!(reads(&data, changed), 4, "{changed:?}");
    }
    assert_eq!(reads(&data, &settings), 0, "the first cache is still there");
    let later = SystemTime::now() + Duration::from_secs(5);
    fs::File::options().write(true).open(&companion).unwrap().set_modified(later).unwrap();
    assert_eq!(reads(&data, &settings), 4, "a companion's time");
    fs::write(&data.sources[2].path, "2 ").unwrap();
    assert_eq!(reads(&data, &settings), 4, "a file's size");
    data.sources[0].subject = "99".into();
    assert_eq!(reads(&data, &settings), 4, "a subject");
    // A dataset that moved as a whole keeps its cache.
    let moved = data.dir.path().join("moved");
    fs::rename(data.dir.path().join("data"), &moved).unwrap();
    for source in &mut data.sources {
        source.path = moved.join(source.path.file_name().unwrap());
        let companions = source.companions.iter();
        source.companions = companions.map(|c| moved.join(c.file_name().unwrap())).collect();
    }
    assert_eq!(reads(&data, &settings), 0, "moved");
}

/// Every way of cutting a file off or spoiling its frame.
fn spoiled(whole: &[u8]) -> Vec<Vec<u8>> {
    let (index, end) = (index_offset(whole), whole.len());
    let cuts = [0, 1, 7, 8, 63, 64, 65, 79, 80, 81, index / 2, index - 1, index, index + 1]
        .into_iter()
        .chain([(index + end) / 2, end - 17, end - 16, end - 15, end - 8, end - 1]);
    let mut files: Vec<Vec<u8>> = cuts.map(|n| whole[..n].to_vec()).collect();
    files.push([whole, b"x"].concat());
    for at in (0..64).chain([index, (index + end) / 2, end - 17]).chain(end - 16..end) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << (at % 8);
        files.push(bytes);
    }
    // Written but for its header, which comes last.
    let mut no_header = whole.to_vec();
    no_header[..64].fill(0);
    files.push(no_header);
    files
}

#[test]
fn damaged_caches_are_noticed_said_and_made_again() {
    let data = Dataset::new(5);
    let settings = Settings::default();
    let (cache, _) = data.prepare(&settings).unwrap();
    let (path, whole) = (cache.path().to_path_buf(), fs::read(cache.path()).unwrap());
    drop(cache);
    data.reads();
    for (i, bytes) in spoiled(&whole).into_iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        assert!(Cache::open(&path).is_err(), "{i}");
        if i % 7 != 0 {
            continue;
        }
        let (_, lines) = data.prepare(&settings).unwrap();
        assert_eq!(data.reads(), 5);
        assert!(lines[0].starts_with("rebuilding: "), "{lines:?}");
        assert!(fs::read(&path).unwrap() == whole);
    }
    // Samples are checked on demand.
    let mut bytes = whole.clone();
    bytes[index_offset(&whole) / 2] ^= 16;
    fs::write(&path, bytes).unwrap();
    let message = Cache::open(&path).unwrap().verify().unwrap_err().to_string();
    assert!(message.contains("samples of") && message.contains("changed"), "{message}");
    // A whole cache under the name of another.
    let other = Settings { clip: 7.0, ..settings };
    let wrong = data.prepare(&other).unwrap().0.path().to_path_buf();
    data.reads();
    fs::write(&wrong, &whole).unwrap();
    let (_, lines) = data.prepare(&other).unwrap();
    assert_eq!((data.reads(), lines[0].contains("is of other files or settings")), (5, true));
}

#[test]
fn electrode_positions_count_where_they_are_used() {
    let data = Dataset::new(2);
    let run = |settings: &Settings, shift: f32| {
        let place = move |name: &str| Some([name.len() as f32, shift, 0.0]);
        let read = |source: &Source| data.read(source);
        let (dir, never) = (data.cache_dir(), AtomicBool::new(false));
        prepare(&data.sources, &read, settings, Some(&place), &dir, &|_| {}, &never).unwrap();
        data.reads()
    };
    let interpolate = Settings { bad_channels: BadChannels::Interpolate, ..Settings::default() };
    assert_eq!([1.0, 1.0, 2.0].map(|shift| run(&interpolate, shift)), [2, 0, 2]);
    assert_eq!([1.0, 2.0].map(|shift| run(&Settings::default(), shift)), [2, 0]);
}

#[test]
fn interrupted_and_failing_runs_leave_nothing_behind() {
    let data = Dataset::new(12);
    let settings = Settings::default();
    let (dir, cancel, go_on) = (data.cache_dir(), AtomicBool::new(false), AtomicBool::new(false));
    let stop_after_three = |progress: Progress<'_>| {
        if matches!(progress, Progress::Recording { done: 3.., .. }) {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let read = |source: &Source| data.read(source);
    let error = prepare(&data.sources, &read, &settings, None, &dir, &stop_after_three, &cancel);
    let message = error.unwrap_err().to_string();
    assert!(message.contains("of 12 recordings") && data.files().is_empty(), "{message}");

    let broken = |source: &Source| -> Result<Recording> {
        Err(Error::input(source.path.display(), "is empty", "fetch it"))
    };
    let error = prepare(&data.sources, &broken, &settings, None, &dir, &|_| {}, &go_on);
    let message = error.unwrap_err().to_string();
    assert!(message.contains("none of 12 recordings can be used"), "{message}");
    assert!(message.contains("0.set: is empty") && data.files().is_empty(), "{message}");
    assert!(prepare(&[], &broken, &settings, None, &dir, &|_| {}, &go_on).is_err());

    let file = data.dir.path().join("file");
    fs::write(&file, "").unwrap();
    for dir in [file.clone(), file.join("below")] {
        let error = prepare(&data.sources, &read, &settings, None, &dir, &|_| {}, &go_on);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("file") && message.contains("set data.cache_dir"), "{message}");
    }
    // What a killed run left is cleared away; what a running one holds is not.
    let (dead, alive) = (dir.join("x.1.partial"), dir.join("y.2.partial"));
    fs::write(&dead, "half").unwrap();
    let held = fs::File::create(&alive).unwrap();
    held.lock().unwrap();
    data.prepare(&settings).unwrap();
    assert!(!dead.exists() && alive.exists());
    assert_eq!(data.files().len(), 2);
}

#[test]
fn batches_equal_single_windows_and_bad_requests_are_refused() {
    let data = Dataset::new(8);
    let (cache, _) = data.prepare(&Settings::default()).unwrap();
    let channels = cache.channels().len();
    let mut rng = Rng::new(2, 2);
    for (batch, time) in [(1, 200), (3, 1), (7, 64), (33, 131)] {
        let draw = |_| {
            let recording = rng.below(cache.recordings().len());
            let room = cache.recordings()[recording].n_samples - time + 1;
            Window { recording: recording as u32, start: rng.below(room) as u32, event: 0 }
        };
        let mut windows: Vec<Window> = (0..batch).map(draw).collect();
        let mut all = vec![f32::NAN; batch * channels * time];
        cache.fill_batch(&windows, &mut all).unwrap();
        for (window, got) in windows.iter().zip(all.chunks(channels * time)) {
            let mut one = vec![f32::NAN; channels * time];
            cache.read_window(window.recording as usize, window.start as usize, &mut one).unwrap();
            assert_eq!(one, got);
        }
        assert!(cache.fill_batch(&windows, &mut all[1..]).is_err());
        windows[batch / 2] = Window { recording: 99, start: 0, event: 0 };
        assert!(cache.fill_batch(&windows, &mut all).is_err());
    }
    let n = cache.recordings()[0].n_samples;
    let mut out = vec![0.0; 10 * channels];
    assert!(cache.read_window(0, n - 10, &mut out).is_ok());
    for (recording, start) in [(0, n - 9), (0, usize::MAX), (usize::MAX, 0)] {
        assert!(cache.read_window(recording, start, &mut out).is_err());
    }
    assert!(cache.read_window(0, 0, &mut out[1..]).is_err());
    assert!(cache.read_window(0, 0, &mut []).is_err());
    assert!(cache.fill_batch(&[], &mut []).is_ok());
    assert!(cache.fill_batch(&[], &mut out).is_err());
}

#[test]
fn no_window_of_a_subject_is_in_two_parts() {
    let data = Dataset::new(24);
    let (cache, _) = data.prepare(&Settings::default()).unwrap();
    let cut = Windowing::Sliding { length_s: 2.0, stride_s: 1.0 };
    let windows = cut.cut(&cache.extents(), cache.sample_rate()).unwrap();
    assert!(windows.dropped > 0, "each recording has a boundary");
    let subjects: Vec<String> = cache.recordings().iter().map(|r| r.subject.clone()).collect();
    let split = by_fractions(&subjects, Strata::None, [0.6, 0.2, 0.2], 5).unwrap();
    assert_eq!(
        split.assert_disjoint().unwrap().to_string(),
        "split by subject: 7 training, 3 validation, 2 test; no subject is in two parts"
    );
    let mut parts: [BTreeSet<&str>; 3] = Default::default();
    for window in &windows.windows {
        let recording = &cache.recordings()[window.recording as usize];
        let part = split.part_of(&recording.subject).expect("every subject has a part");
        parts[part as usize].insert(&recording.subject);
        let mut out = vec![0.0; cache.channels().len() * windows.length];
        cache.read_window(window.recording as usize, window.start as usize, &mut out).unwrap();
    }
    assert_eq!(parts[Part::Train as usize].len(), 7);
    assert_eq!(parts.iter().map(BTreeSet::len).sum::<usize>(), 12);
    assert_eq!(parts.iter().flatten().collect::<BTreeSet<_>>().len(), 12);
}
