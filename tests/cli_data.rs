//! The program's commands about data and devices, as a user runs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const SIZE: [&str; 8] = ["--subjects", "7", "--seconds", "6", "--channels", "19", "--rate", "90"];

fn engine(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_engine")).args(args).output().expect("the program starts")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Standard output of a command that must succeed.
fn succeed(args: &[&str]) -> String {
    let output = engine(args);
    assert!(output.status.success(), "{args:?}: {}", err(&output));
    out(&output)
}

/// The one object that a command prints with --json.
fn one_object(args: &[&str]) -> Value {
    let text = succeed(args);
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

/// The command fails as the user's mistake, with these words on stderr and nothing on stdout.
fn refuse(args: &[&str], words: &[&str]) {
    let output = engine(args);
    let text = err(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert_eq!(out(&output), "");
    assert!(text.starts_with("error: ") && text.contains("\n  remedy: "), "{text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: {word} is not in {text}");
    }
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn synth(dir: &Path, more: &[&str]) -> String {
    let args = [&["data", "synth", text_of(dir)], SIZE.as_slice(), more].concat();
    succeed(&args)
}

fn recording_of(dir: &Path, subject: &str) -> PathBuf {
    dir.join(subject).join("eeg").join(format!("{subject}_task-RestingState_eeg.bdf"))
}

/// Every file below a folder with its bytes.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir).expect("a folder") {
        let path = item.expect("listed").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push((path.clone(), fs::read(&path).expect("read")));
        }
    }
    found.sort();
    found
}

fn test_data() -> Option<PathBuf> {
    let given = std::env::var_os("ENGINE_TEST_DATA").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let dir = given.unwrap_or(beside);
    if !dir.is_dir() {
        eprintln!("skipped: {} is not here", dir.display());
        return None;
    }
    Some(dir)
}

#[test]
fn a_generated_dataset_is_described_as_it_was_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("gen erated");
    let said = synth(&dir, &["--seed", "31", "--ages", "7", "15"]);
    assert!(said.contains("7 subjects"), "{said}");
    let next = format!("next: engine train --data '{}' --target age\n", dir.display());
    assert!(said.ends_with(&next), "{said}");

    let found = one_object(&["data", "info", text_of(&dir), "--json"]);
    assert_eq!((&found["kind"], &found["participants"]), (&"dataset".into(), &7.into()));
    assert_eq!(found["participants_with_recordings"], 7);
    let recordings = found["recordings"].as_array().expect("a list");
    assert_eq!(recordings.len(), 7);
    for recording in recordings {
        assert_eq!(recording["eeg_channels"], 19);
        assert_eq!(recording["rates_hz"], serde_json::json!([90.0]));
        assert_eq!(
            (&recording["seconds"], &recording["task"]),
            (&12.0.into(), &"RestingState".into())
        );
    }
    assert_eq!(found["seconds"], 84.0);
    let age = found["columns"].as_array().expect("a list").iter().find(|c| c["name"] == "age");
    let age = age.expect("a column");
    assert_eq!((&age["kind"], &age["missing"]), (&"numbers".into(), &0.into()));
    // Against the table itself, read here.
    let table = fs::read_to_string(dir.join("participants.tsv")).expect("written");
    let mut lines = table.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let at = lines.next().expect("a heading").iter().position(|name| *name == "age");
    let mut ages: Vec<f64> =
        lines.map(|row| row[at.expect("a column")].parse().expect("a number")).collect();
    ages.sort_by(f64::total_cmp);
    assert_eq!([&age["min"], &age["median"], &age["max"]], [ages[0], ages[3], ages[6]]);
    assert!(ages[0] >= 7.0 && ages[6] <= 15.0);

    let words = succeed(&["data", "info", text_of(&dir)]);
    for fact in ["7, 7 with recordings", "7, 1m24s in all", "19 EEG (7 recordings)", "90 Hz"] {
        assert!(words.contains(fact), "{fact}: {words}");
    }
    assert!(words.contains("Could be a --target") && words.contains("--target age"), "{words}");
}

#[test]
fn a_broken_recording_is_listed_and_refused_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("d");
    synth(&dir, &[]);
    let found = one_object(&["data", "info", text_of(&dir), "--json"]);
    let first = found["recordings"][0]["subject"].as_str().expect("a name").to_string();
    let path = recording_of(&dir, &first);
    let bytes = fs::read(&path).expect("read");
    let single = one_object(&["data", "info", text_of(&path), "--json"]);
    assert_eq!((&single["kind"], &single["seconds"]), (&"recording".into(), &12.0.into()));
    assert_eq!(single["channels"].as_array().map(Vec::len), Some(19));
    assert!(single["dataset"].as_str().is_some_and(|place| place.contains(&first)));
    assert_eq!(single["marks"].as_array().map(Vec::len), Some(3));

    fs::write(&path, &bytes[..bytes.len() * 2 / 3]).expect("written");
    refuse(&["data", "info", text_of(&path)], &[text_of(&path)]);
    let found = one_object(&["data", "info", text_of(&dir), "--json"]);
    assert_eq!(found["recordings"].as_array().map(Vec::len), Some(6));
    assert_eq!(found["participants_with_recordings"], 6);
    assert_eq!(found["skipped"][0]["path"], text_of(&path));
    let words = succeed(&["data", "info", text_of(&dir)]);
    assert!(words.contains("Skipped") && words.contains(&format!("{first}_task")), "{words}");
}

#[test]
fn wrong_paths_and_flags_end_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (absent, text, foreign) = (at("absent"), at("a.txt"), at("foreign"));
    fs::write(&text, "no EEG").expect("written");
    fs::create_dir(&foreign).expect("made");
    fs::write(foreign.join("thesis.tex"), "years of work").expect("written");
    let [absent, text, foreign] = [&absent, &text, &foreign].map(|path| text_of(path));
    refuse(&["data", "info", absent], &[absent, "no such file or folder", ".bdf"]);
    refuse(&["data", "info", text], &[text, "'.txt'", ".set"]);
    refuse(&["data", "info", foreign], &[foreign, "participants.tsv"]);
    refuse(&["data", "synth", foreign], &[foreign, "not empty"]);
    assert_eq!(contents(Path::new(foreign)).len(), 1);
    refuse(&["data", "synth", absent, "--rate", "7"], &["--rate", "7 Hz", "80 to 2000"]);
    refuse(&["data", "synth", absent, "--ages", "9", "3"], &["--ages", "9 to 3"]);
    assert!(!Path::new(absent).exists());
    refuse(&["devices", "--route", "fft=cpu"], &["--route fft=cpu", "spectral"]);
    refuse(&["devices", "--route", "gemm=npu"], &["gemm=npu", "cpu"]);
    refuse(&["devices", "--memory", "lots"], &["--memory", "6GB"]);
    let other = folder.path().join("other");
    synth(&other, &[]);
    let before = contents(&other);
    refuse(
        &["data", "synth", text_of(&other), "--subjects", "3"],
        &[text_of(&other), "other settings"],
    );
    assert_eq!(contents(&other), before);
}

/// Ctrl-C ends the work in order; the command it names goes on, and the bytes are those of a run
/// that was never stopped.
#[cfg(unix)]
#[test]
fn a_stopped_synth_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("stopped");
    let size = ["--subjects", "30", "--seconds", "20", "--seed", "5"];
    let args = [&["data", "synth", text_of(&dir)], size.as_slice()].concat();
    let child = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    let begun = || {
        contents(folder.path()).iter().any(|(path, _)| path.extension().is_some_and(|e| e == "bdf"))
    };
    while !begun() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
    let stopped = child.wait_with_output().expect("the program ends");
    let said = out(&stopped);
    assert_eq!(stopped.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped with") && said.contains("of 30 subjects"), "{said}");
    let go_on = format!("go on: engine {}\n", [&args[..], &[]].concat().join(" "));
    assert!(said.ends_with(&go_on), "{said}");
    assert!(!dir.join("dataset_description.json").exists());
    let said = succeed(&args);
    assert!(said.contains("of them from before") && said.contains("next: "), "{said}");
    let whole = folder.path().join("whole");
    succeed(&[&["data", "synth", text_of(&whole)], size.as_slice()].concat());
    let strip = |dir: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let below = |path: PathBuf| path.strip_prefix(dir).expect("below").to_path_buf();
        contents(dir).into_iter().map(|(path, bytes)| (below(path), bytes)).collect()
    };
    assert!(strip(&dir) == strip(&whole), "the bytes differ");
}

#[test]
fn devices_tell_the_truth_about_this_machine_and_this_build() {
    let found = one_object(&["devices", "--json", "--threads", "1", "--memory", "2GiB"]);
    assert_eq!(found["cpu"]["threads"], 1);
    assert_eq!(found["gpu_backends"], serde_json::json!([]));
    let routes = found["routes"].as_array().expect("a list");
    assert_eq!(routes[0]["archs"][0], found["in_use"]);
    let all_host = |table: &Value| {
        table["preferences"].as_array().expect("a list").iter().all(|p| p["choice"] == "host")
    };
    assert!(all_host(&routes[0]) && !routes[1..].iter().any(all_host));
    let of = |arch: &str, op: &str| {
        let table =
            routes.iter().find(|t| t["archs"].as_array().is_some_and(|a| a.contains(&arch.into())));
        let all = table.expect("a card")["preferences"].as_array().expect("a list");
        all.iter().find(|p| p["op"] == op).expect("an op")["choice"].clone()
    };
    assert_eq!(
        (of("gfx1010", "spectral"), of("gfx1010", "gemm")),
        ("host".into(), "kernel".into())
    );
    assert_eq!((of("sm_90", "spectral"), of("sm_90", "gemm")), ("kernel".into(), "blas".into()));
    let batches = found["batches"].as_array().expect("a list");
    assert_eq!(batches.len(), 6);
    for batch in batches {
        for place in ["cpu", "card"].into_iter().filter(|place| batch[*place]["batch"].is_u64()) {
            let bytes = batch[place]["bytes"].as_u64().expect("a number");
            assert!((1..=2 << 30).contains(&bytes), "{batch}");
        }
    }
    let words = succeed(&["devices", "--memory", "1GiB"]);
    assert!(words.contains("NVIDIA card"), "{words}");
    if let Ok(text) = fs::read_to_string("/proc/cpuinfo")
        && let Some(name) = text.lines().find_map(|line| line.strip_prefix("model name\t: "))
    {
        assert!(words.contains(name.trim()), "{words}");
    }
}

#[test]
fn real_datasets_are_described() {
    let Some(data) = test_data() else { return };
    let eegmat = data.join("eegmat");
    if eegmat.is_dir() {
        let words = succeed(&["data", "info", text_of(&eegmat)]);
        for fact in ["36, 36 with recordings", "F (27), M (9)", "numbers 16 to 26", "125 Hz (72"] {
            assert!(words.contains(fact), "{fact}: {words}");
        }
        let found = one_object(&["data", "info", text_of(&eegmat), "--json"]);
        assert_eq!(found["recordings"].as_array().map(Vec::len), Some(72));
        assert!(
            found["recordings"]
                .as_array()
                .is_some_and(|all| all.iter().all(|r| r["eeg_channels"] == 19))
        );
    }
    let hbn = data.join("hbn-meta");
    if hbn.is_dir() {
        let words = succeed(&["data", "info", text_of(&hbn)]);
        for fact in ["136, 0 with recordings", "never downloaded", "p_factor", "M (90), F (46)"] {
            assert!(words.contains(fact), "{fact}: {words}");
        }
    }
    let fixtures = data.join("fixtures");
    if fixtures.is_dir() {
        let words = succeed(&["data", "info", text_of(&fixtures.join("mixed-rates.edf"))]);
        assert!(words.contains("100 Hz, 12.8 Hz"), "{words}");
        let annexed = fixtures.join("eeglab-v73.set");
        refuse(&["data", "info", text_of(&annexed)], &[text_of(&annexed), ".fdt"]);
    }
}
