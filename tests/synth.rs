//! Generated datasets: the files by a parser of the test's own, the physiology by plain Fourier
//! sums, repeatability, resuming, and MNE's and edfio's reading of the same folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use engine::data::Annotation;
use engine::data::format::edf_write::{self, Contents, Encoding, Signal};
use engine::data::montage;
use engine::data::rng::Rng;
use engine::data::synth::{self, Settings, Sex, Subject};

/// What the test's own reading of the specification finds in a file.
struct Parsed {
    labels: Vec<String>,
    units: Vec<String>,
    rates: Vec<f64>,
    /// `[signal][time]`, physical values; the annotation signal is taken out.
    samples: Vec<Vec<f64>>,
    /// Onset, duration, text; the records' own starts are taken out.
    marks: Vec<(f64, f64, String)>,
    record_starts: Vec<f64>,
    /// Physical value of one digital step, per signal.
    steps: Vec<f64>,
}

fn parse(path: &Path) -> Parsed {
    let bytes = fs::read(path).unwrap();
    let width = match &bytes[..8] {
        b"0       " => 2,
        b"\xffBIOSEMI" => 3,
        other => panic!("version {other:?}"),
    };
    assert!(bytes[1..256].iter().all(|b| (32..127).contains(b)));
    let text = |from: usize, n: usize| {
        std::str::from_utf8(&bytes[from..from + n]).unwrap().trim_end().to_string()
    };
    let name = if width == 2 { "EDF" } else { "BDF" };
    assert_eq!(text(8, 80), "X X X X");
    assert!(text(88, 80).starts_with("Startdate X X X "), "{}", text(88, 80));
    assert_eq!(text(168, 16), "01.01.8500.00.00");
    assert_eq!(text(192, 44), format!("{name}+C"));
    let number = |from, n| text(from, n).parse::<f64>().unwrap();
    let (header, records) = (number(184, 8) as usize, number(236, 8) as usize);
    let (record_s, count) = (number(244, 8), number(252, 4) as usize);
    assert_eq!(header, 256 * (count + 1));
    let column = |before: usize, n: usize| -> Vec<String> {
        (0..count).map(|i| text(256 + before * count + i * n, n)).collect()
    };
    let numbers =
        |before, n| -> Vec<f64> { column(before, n).iter().map(|s| s.parse().unwrap()).collect() };
    let (labels, units) = (column(0, 16), column(96, 8));
    let (pmin, pmax) = (numbers(104, 8), numbers(112, 8));
    let (dmin, dmax) = (numbers(120, 8), numbers(128, 8));
    let per_record: Vec<usize> = numbers(216, 8).iter().map(|&x| x as usize).collect();
    assert_eq!(labels[count - 1], format!("{name} Annotations"));
    assert_eq!(bytes.len(), header + records * width * per_record.iter().sum::<usize>());

    let mut parsed = Parsed {
        labels: labels[..count - 1].to_vec(),
        units: units[..count - 1].to_vec(),
        rates: per_record[..count - 1].iter().map(|&n| n as f64 / record_s).collect(),
        samples: vec![Vec::new(); count - 1],
        marks: Vec::new(),
        record_starts: Vec::new(),
        steps: (0..count - 1).map(|i| (pmax[i] - pmin[i]) / (dmax[i] - dmin[i])).collect(),
    };
    let mut at = header;
    for _ in 0..records {
        for i in 0..count - 1 {
            for _ in 0..per_record[i] {
                let mut digital = i32::from(bytes[at + width - 1] as i8);
                for b in bytes[at..at + width - 1].iter().rev() {
                    digital = digital << 8 | i32::from(*b);
                }
                let physical = pmin[i] + (f64::from(digital) - dmin[i]) * parsed.steps[i];
                parsed.samples[i].push(physical);
                at += width;
            }
        }
        let end = at + width * per_record[count - 1];
        parse_marks(&bytes[at..end], &mut parsed);
        at = end;
    }
    parsed
}

fn parse_marks(bytes: &[u8], parsed: &mut Parsed) {
    let lists = bytes.split(|&b| b == 0).filter(|list| !list.is_empty());
    for (i, list) in lists.enumerate() {
        let list = std::str::from_utf8(list).unwrap().strip_suffix('\x14').unwrap();
        let (times, text) = list.split_once('\x14').unwrap();
        assert!(times.starts_with(['+', '-']));
        let (onset, duration) = times.split_once('\x15').unwrap_or((times, "0"));
        let (onset, duration) = (onset.parse().unwrap(), duration.parse().unwrap());
        if i == 0 {
            assert_eq!(text, "", "the first list of a record gives its start");
            parsed.record_starts.push(onset);
        } else {
            parsed.marks.push((onset, duration, text.to_string()));
        }
    }
}

fn signal<'a>(label: &'a str, rate: f64, range: (f64, f64), samples: &'a [f32]) -> Signal<'a> {
    Signal {
        label,
        transducer: "AgCl",
        unit: "uV",
        prefilter: "HP:0.1Hz",
        physical_range: range,
        sample_rate: rate,
        samples,
    }
}

#[test]
fn files_follow_the_specification() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(31, 7);
    let mut draw = |n: usize, sd: f64| (0..n).map(|_| (sd * rng.normal()) as f32).collect();
    // 7 records of 0.5 s at rates that differ.
    let (a, b, c): (Vec<f32>, Vec<f32>, Vec<f32>) =
        (draw(7 * 64, 40.0), draw(7 * 125, 0.01), draw(7, 1e4));
    let signals = [
        signal("E1", 128.0, (-327.68, 327.67), &a),
        signal("a label of 16 ch", 250.0, (-0.0654321, 0.0654321), &b),
        signal("slow", 2.0, (-123456.789, 123456.789), &c),
    ];
    let mark = |onset_s, duration_s, text: &str| Annotation {
        onset_s,
        duration_s,
        text: text.to_string(),
    };
    let marks = [
        mark(-0.25, 0.0, "before"),
        mark(1.75, 12.5, "Augen zu, Größe 3 µV"),
        mark(99.0, 0.125, "behind the end"),
    ];
    for encoding in [Encoding::Edf, Encoding::Bdf] {
        let path = dir.path().join("file.edf");
        let contents = Contents {
            encoding,
            record_s: 0.5,
            equipment: "a box",
            signals: &signals,
            annotations: &marks,
        };
        let written = edf_write::write(&path, &contents).unwrap();
        assert_eq!((written.bytes, written.saturated), (fs::metadata(&path).unwrap().len(), 0));
        let parsed = parse(&path);
        assert_eq!(parsed.labels, ["E1", "a label of 16 ch", "slow"]);
        assert_eq!((&parsed.units[0][..], &parsed.rates[..]), ("uV", &[128.0, 250.0, 2.0][..]));
        assert_eq!(parsed.record_starts, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]);
        for (i, samples) in [&a, &b, &c].iter().enumerate() {
            assert_eq!(parsed.samples[i].len(), samples.len());
            for (x, y) in samples.iter().zip(&parsed.samples[i]) {
                assert!((f64::from(*x) - y).abs() <= 0.5001 * parsed.steps[i], "{x} {y}");
            }
        }
        let mut found = parsed.marks;
        found.sort_by(|x, y| x.0.total_cmp(&y.0));
        let expected = marks.iter().map(|m| (m.onset_s, m.duration_s, m.text.clone()));
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}

#[test]
fn samples_out_of_range_saturate_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.bdf");
    let samples = [-200.0, 50.0, 100.0, 100.1, 3e38, -100.0];
    let contents = Contents {
        encoding: Encoding::Bdf,
        record_s: 1.0,
        equipment: "",
        signals: &[signal("E1", 3.0, (-100.0, 100.0), &samples)],
        annotations: &[],
    };
    assert_eq!(edf_write::write(&path, &contents).unwrap().saturated, 3);
    let got = &parse(&path).samples[0];
    for (x, y) in got.iter().zip([-100.0, 50.0, 100.0, 100.0, 100.0, -100.0]) {
        assert!((x - y).abs() < 1e-4, "{got:?}");
    }
}

#[test]
fn what_the_format_cannot_hold_is_refused_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.edf");
    let mut rng = Rng::new(2, 2);
    let samples: Vec<f32> = (0..20).map(|_| rng.normal() as f32).collect();
    let mut broken = samples.clone();
    broken[13] = f32::NAN;
    let good = signal("E1", 10.0, (-5.0, 5.0), &samples);
    let mark = |text: &str, duration_s| Annotation { onset_s: 0.5, duration_s, text: text.into() };
    let cases: Vec<(&str, Vec<Signal<'_>>, f64, Vec<Annotation>)> = vec![
        ("field label", vec![Signal { label: "seventeen letters", ..good }], 1.0, vec![]),
        ("kept for", vec![Signal { label: "EDF Annotations", ..good }], 1.0, vec![]),
        ("uV for µV", vec![Signal { unit: "µV", ..good }], 1.0, vec![]),
        ("field prefilter", vec![Signal { prefilter: "a\nb", ..good }], 1.0, vec![]),
        ("sample 13", vec![Signal { samples: &broken, ..good }], 1.0, vec![]),
        ("physical range", vec![Signal { physical_range: (1.0, 1.0), ..good }], 1.0, vec![]),
        ("physical range", vec![Signal { physical_range: (0.0, 1e9), ..good }], 1.0, vec![]),
        ("physical range", vec![Signal { physical_range: (0.0, f64::NAN), ..good }], 1.0, vec![]),
        ("whole number", vec![good], 0.75, vec![]),
        ("whole number", vec![good], 1.5, vec![]),
        ("whole number", vec![good, Signal { samples: &samples[..10], ..good }], 1.0, vec![]),
        ("whole number", vec![Signal { samples: &[], ..good }], 1.0, vec![]),
        ("cannot be written", vec![good], 1.0 / 3.0, vec![]),
        ("cannot be written", vec![good], -1.0, vec![]),
        ("no signals", vec![], 1.0, vec![]),
        ("control characters", vec![good], 1.0, vec![mark("a\x14b", 0.0)]),
        ("finite times", vec![good], 1.0, vec![mark("a", f64::INFINITY)]),
        ("finite times", vec![good], 1.0, vec![mark("a", -1.0)]),
    ];
    for (expected, signals, record_s, annotations) in cases {
        let contents = Contents {
            encoding: Encoding::Edf,
            record_s,
            equipment: "box",
            signals: &signals,
            annotations: &annotations,
        };
        let error = edf_write::write(&path, &contents).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("file.edf"), "{expected}: {error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let missing = dir.path().join("none").join("file.edf");
    let contents = Contents {
        encoding: Encoding::Edf,
        record_s: 1.0,
        equipment: "box",
        signals: &[good],
        annotations: &[],
    };
    assert_eq!(edf_write::write(&missing, &contents).unwrap_err().exit_code(), 2);
}

/// Every file of a folder and its bytes.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_path_buf();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn on_threads<T: Send>(n: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(work)
}

fn generate(settings: &Settings, dir: &Path) -> synth::Summary {
    synth::write(settings, dir, &|_, _| (), &AtomicBool::new(false)).unwrap()
}

fn small(seed: u64) -> Settings {
    Settings {
        subjects: 7,
        seconds_per_condition: 9,
        n_channels: 19,
        sample_rate: 125,
        seed,
        ..Settings::default()
    }
}

fn bdf(dir: &Path, id: &str) -> PathBuf {
    dir.join(id).join("eeg").join(format!("{id}_task-RestingState_eeg.bdf"))
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let trees = [1, 2, 5].map(|n| {
        let out = dir.path().join(n.to_string());
        assert!(on_threads(n, || generate(&small(3), &out)).is_complete);
        tree(&out)
    });
    assert_eq!(trees[0].len(), 7 * 4 + 5);
    assert!(trees[0] == trees[1] && trees[0] == trees[2]);
    let other = dir.path().join("other");
    let _ = generate(&small(4), &other);
    assert_ne!(tree(&other), trees[0]);
}

#[test]
fn an_interrupted_call_is_taken_up_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    let settings = small(8);
    let first = generate(&settings, &whole);
    assert_eq!((first.written, first.kept, first.is_complete), (7, 0, true));

    let cancel = AtomicBool::new(false);
    let stop = |done: usize, of: usize| {
        assert_eq!(of, 7);
        cancel.store(done >= 3, Ordering::Relaxed);
    };
    let half = on_threads(1, || synth::write(&settings, &broken, &stop, &cancel).unwrap());
    assert_eq!((half.written, half.kept, half.is_complete), (3, 0, false));
    assert!(!broken.join("dataset_description.json").exists());
    assert!(!broken.join("participants.tsv").exists());
    for id in (1..=7).map(|i| format!("sub-G{i:04}")) {
        // What bears the name of a recording is whole.
        let (there, wanted) = (bdf(&broken, &id), bdf(&whole, &id));
        assert!(!there.exists() || fs::read(there).unwrap() == fs::read(wanted).unwrap());
    }

    // As a killed process leaves it: sidecars and half a recording under a temporary name.
    let folder = broken.join("sub-G0005").join("eeg");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(".sub-G0005_task-RestingState_eeg.bdf.123.partial"), b"half").unwrap();

    let calls = AtomicUsize::new(0);
    let count = |_: usize, _: usize| {
        calls.fetch_add(1, Ordering::Relaxed);
    };
    let rest = synth::write(&settings, &broken, &count, &AtomicBool::new(false)).unwrap();
    assert_eq!((rest.written, rest.kept, rest.is_complete), (4, 3, true));
    assert_eq!(calls.load(Ordering::Relaxed), 7);
    assert!(tree(&whole) == tree(&broken));
    assert_eq!(generate(&settings, &broken).kept, 7);
}

#[test]
fn foreign_folders_and_senseless_settings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let go = |settings: &Settings, out: &Path| {
        synth::write(settings, out, &|_, _| (), &AtomicBool::new(false)).map(|_| ())
    };
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "years of work").unwrap();
    let error = go(&small(1), &foreign).unwrap_err().to_string();
    assert!(error.contains("foreign") && error.contains("not empty"), "{error}");
    assert_eq!(tree(&foreign).len(), 1);

    let ours = dir.path().join("ours");
    go(&Settings { subjects: 1, ..small(1) }, &ours).unwrap();
    let error = go(&small(1), &ours).unwrap_err().to_string();
    assert!(error.contains("other settings"), "{error}");

    let base = small(1);
    let senseless = [
        ("subjects", Settings { subjects: 0, ..base.clone() }),
        ("seconds_per_condition", Settings { seconds_per_condition: 3, ..base.clone() }),
        ("sample_rate", Settings { sample_rate: 50, ..base.clone() }),
        ("n_channels", Settings { n_channels: 64, ..base.clone() }),
        ("age_range", Settings { age_range: [9.0, 8.0], ..base.clone() }),
        ("age_range", Settings { age_range: [f64::NAN, 8.0], ..base }),
    ];
    for (field, settings) in senseless {
        let error = go(&settings, &dir.path().join("new")).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("remedy"), "{error}");
    }
    assert!(!dir.path().join("new").exists());
}

#[test]
fn the_folder_is_bids_and_says_what_the_files_hold() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        subjects: 5,
        seconds_per_condition: 25,
        sample_rate: 250,
        seed: 77,
        ..Settings::default()
    };
    let summary = generate(&settings, dir.path());
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let json = |name: &str| serde_json::from_str::<serde_json::Value>(&read(name)).unwrap();
    assert_eq!(json("dataset_description.json")["BIDSVersion"], "1.9.0");
    assert!(read("README").contains("No person was recorded"));
    assert_eq!(json("participants.json")["age"]["Units"], "years");

    let participants = read("participants.tsv");
    let mut rows = participants.lines();
    assert_eq!(rows.next(), Some("participant_id\tage\tsex\tehq_total"));
    for (i, row) in rows.enumerate() {
        let (subject, cells) = (Subject::new(&settings, i), row.split('\t').collect::<Vec<_>>());
        assert_eq!((cells[0], cells[1].parse()), (&subject.id[..], Ok(subject.age)));
        assert_eq!(cells[2] == "F", subject.sex == Sex::Female);
    }
    let mut bytes = 0;
    for id in (1..=5).map(|i| format!("sub-G{i:04}")) {
        let (path, parsed) = (bdf(dir.path(), &id), parse(&bdf(dir.path(), &id)));
        bytes += fs::metadata(&path).unwrap().len();
        let stem = format!("{id}/eeg/{id}_task-RestingState");
        let sidecar = json(&format!("{stem}_eeg.json"));
        assert_eq!(
            (&sidecar["SamplingFrequency"], &sidecar["PowerLineFrequency"]),
            (&250.into(), &60.0.into())
        );
        assert_eq!((parsed.labels.len(), &parsed.rates[128]), (129, &250.0));
        assert_eq!((&parsed.labels[0][..], &parsed.labels[128][..]), ("E1", "Cz"));
        assert!(parsed.samples[128].iter().all(|x| x.abs() < 1e-3), "the reference is flat");
        let channels = read(&format!("{stem}_channels.tsv"));
        let names = channels.lines().skip(1).map(|row| row.split('\t').next().unwrap());
        assert!(names.eq(parsed.labels.iter().map(String::as_str)));
        let events = read(&format!("{stem}_events.tsv"));
        let found: Vec<_> = events
            .lines()
            .skip(1)
            .map(|row| {
                let c: Vec<&str> = row.split('\t').collect();
                (c[0].parse().unwrap(), c[1].parse().unwrap(), c[3].to_string())
            })
            .collect();
        assert_eq!(found, parsed.marks);
        let onsets: Vec<f64> = found.iter().map(|mark| mark.0).collect();
        assert_eq!(onsets, [0.0, 0.0, 12.5, 25.0, 37.5]);
    }
    assert_eq!(bytes, summary.bytes);
}

fn write_mixed(path: &Path) {
    let mut rng = Rng::new(17, 1);
    let mut draw = |n: usize| (0..n).map(|_| 30.0 * rng.normal() as f32).collect::<Vec<_>>();
    let (fast, slow) = (draw(500 * 3), draw(4 * 3));
    let contents = Contents {
        encoding: Encoding::Edf,
        record_s: 2.0,
        equipment: "test",
        signals: &[
            signal("fast", 250.0, (-300.0, 300.0), &fast),
            signal("slow", 2.0, (-200.5, 200.25), &slow),
        ],
        annotations: &[
            Annotation { onset_s: 0.5, duration_s: 0.0, text: "early".into() },
            Annotation { onset_s: 1.25, duration_s: 0.75, text: "Größe µ".into() },
        ],
    };
    assert_eq!(edf_write::write(path, &contents).unwrap().saturated, 0);
}

#[test]
fn mne_and_edfio_read_the_same() {
    let Ok(python) = std::env::var("ENGINE_PYTHON") else {
        return eprintln!("skipped: mne_and_edfio_read_the_same (ENGINE_PYTHON is not set)");
    };
    let dir = tempfile::tempdir().unwrap();
    let (out, list) = (dir.path().join("data"), dir.path().join("positions.json"));
    let settings = Settings { subjects: 3, seconds_per_condition: 21, ..Settings::default() };
    let _ = generate(&settings, &out);
    let rows = ["Fp", "AF", "F", "FC", "FT", "C", "T", "CP", "TP", "P", "PO", "O", "I"];
    let sites = rows.iter().flat_map(|row| {
        (1..=10).map(|i| i.to_string()).chain(["z".into()]).map(move |c| format!("{row}{c}"))
    });
    let places: BTreeMap<String, montage::Position> = (1..=128)
        .map(|i| format!("E{i}"))
        .chain(sites)
        .filter_map(|name| Some((name.clone(), montage::position(&name)?)))
        .collect();
    fs::write(&list, serde_json::to_string(&places).unwrap()).unwrap();
    let mixed = dir.path().join("mixed.edf");
    write_mixed(&mixed);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("synth_mne.py");
    let ran = std::process::Command::new(&python).arg(script).args([&out, &mixed, &list]).output();
    let ran = ran.unwrap_or_else(|e| panic!("ENGINE_PYTHON={python}: {e}"));
    let said = String::from_utf8_lossy(&ran.stdout);
    if ran.status.code() == Some(77) {
        return eprintln!("skipped: mne_and_edfio_read_the_same ({})", said.trim());
    }
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    eprintln!("{said}");
}
