//! What `engine train` promises: it learns what is there and nothing else, repeats itself to the
//! byte, and leaves a complete run.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{Bench, bytes, said, scale_physical_range};
use serde_json::Value;

const QUICK: &[&str] = &["--quiet", "--batch", "8", "--epochs", "2"];

fn text(path: impl AsRef<Path>) -> String {
    String::from_utf8(bytes(path)).expect("UTF-8")
}

fn checkpoints(run: &Path) -> [Vec<u8>; 2] {
    ["last", "best"].map(|name| bytes(run.join(format!("checkpoints/{name}.safetensors"))))
}

fn results(run: &Path) -> Value {
    serde_json::from_str(&text(run.join("results.json"))).expect("JSON")
}

/// Balanced accuracy of the windows, computed from the predictions themselves.
fn balanced_accuracy(run: &Path) -> f64 {
    let table = text(run.join("predictions/windows.csv"));
    let rows: Vec<(String, String)> = table
        .lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            (fields[5].to_string(), fields[6].to_string())
        })
        .collect();
    let classes: BTreeSet<&String> = rows.iter().map(|(truth, _)| truth).collect();
    let recalls = classes.iter().map(|class| {
        let of: Vec<_> = rows.iter().filter(|(truth, _)| truth == *class).collect();
        of.iter().filter(|(truth, found)| truth == found).count() as f64 / of.len() as f64
    });
    recalls.sum::<f64>() / classes.len() as f64
}

/// Without test subjects it is the validation subjects that are scored, and this is said.
#[test]
fn scores_of_validation_subjects_are_called_so() {
    let bench = Bench::new(12);
    let said_by = |run: &str, share: &str| {
        let output = bench.train(run, &[QUICK, &[share]].concat()).output().expect("started");
        assert!(output.status.success(), "{}", said(&output));
        let page = text(bench.path(run).join("report.html"));
        let words = "scored are the validation subjects";
        let found = [said(&output), page].map(|text| text.contains(words));
        (found, results(&bench.path(run))["scored"].as_str().expect("a word").to_string())
    };
    assert_eq!(said_by("none", "data.test_fraction=0"), ([true; 2], "validation".to_string()));
    assert_eq!(said_by("some", "data.test_fraction=0.2"), ([false; 2], "test".to_string()));
}

/// A class that every other subject's loudness tells: it is learned; shuffled, it is not.
#[test]
fn what_is_there_is_learned_and_what_is_shuffled_is_not() {
    let bench = Bench::new(24);
    bench.add_column("loud", |i| if i % 2 == 0 { "yes" } else { "no" }.into());
    for path in bench.recordings().iter().step_by(2) {
        scale_physical_range(path, 3.0);
    }
    let more = [
        "--quiet",
        "--batch",
        "16",
        "--epochs",
        "24",
        "--target",
        "loud",
        "--folds",
        "3",
        "data.scale=fixed",
        "train.lr=0.003",
        "model.dropout=0.0",
        "train.ema=off",
    ];
    let learned = balanced_accuracy(&bench.trained("true", &more));
    let shuffled = bench.trained("shuffled", &[&more[..], &["--shuffle-labels"]].concat());
    let chance = balanced_accuracy(&shuffled);
    eprintln!("balanced accuracy {learned:.3}, with shuffled labels {chance:.3}");
    assert!(learned > 0.7, "{learned}");
    assert!(chance < 0.75 && chance < learned - 0.15, "{chance}");
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let bench = Bench::new(10);
    let run = |name: &str, more: &[&str]| bench.trained(name, &[QUICK, more].concat());
    let first = checkpoints(&run("first", &["--threads", "1"]));
    assert!(first == checkpoints(&run("again", &["--threads", "1"])), "the same command");
    assert!(first == checkpoints(&run("two", &["--threads", "2"])), "two threads");
    assert!(first != checkpoints(&run("seed", &["--seed", "2"])), "another seed");
    // Batches that differ if a thread takes another's, with what is drawn for a window and a batch.
    let drawn = ["augment.gaussian_noise=0.5", "augment.time_shift=0.5", "augment.mixup=0.5"];
    let workers = |n: &str| {
        let count = format!("train.workers={n}");
        checkpoints(&run(&format!("workers-{n}"), &[&drawn[..], &[count.as_str()]].concat()))
    };
    let one = workers("1");
    assert!(one == workers("2") && one == workers("3") && one == workers("64"), "loader threads");
    let recomputed = checkpoints(&run("recomputed", &["train.recompute=layers"]));
    let weights = |all: &[u8]| {
        let file = safetensors::SafeTensors::deserialize(all).expect("whole");
        let mut tensors: Vec<(String, Vec<u8>)> =
            file.tensors().into_iter().map(|(name, t)| (name, t.data().to_vec())).collect();
        tensors.sort();
        tensors
    };
    for (kept, again) in first.iter().zip(&recomputed) {
        assert!(weights(kept) == weights(again), "recomputed activations");
    }
}

#[test]
fn a_run_is_complete() {
    let bench = Bench::new(12);
    let run = bench.trained("run", QUICK);
    text(run.join("config.toml")).parse::<toml::Table>().expect("TOML");
    for line in text(run.join("metrics.jsonl")).lines() {
        serde_json::from_str::<Value>(line).expect("JSON");
    }
    let split: Value = serde_json::from_str(&text(run.join("split.json"))).expect("JSON");
    let mut seen = BTreeSet::new();
    for part in ["train", "validation", "test"] {
        for name in split[part].as_array().expect("a list") {
            assert!(seen.insert(name.to_string()), "{name} twice");
        }
    }
    assert_eq!(seen.len(), 12);
    assert!(text(run.join("split.txt")).contains("no subject is in two parts"));
    let tested = split["test"].as_array().expect("a list").len();
    assert_eq!(text(run.join("predictions/subjects.csv")).lines().count(), 1 + tested);
    assert_eq!(text(run.join("predictions/windows.csv")).lines().count(), 1 + 8 * tested);
    assert!(text(run.join("report.html")).contains("</html>"));
    assert!(results(&run)["scores"].is_object());
    let events = std::fs::read_dir(run.join("events")).expect("listed").next();
    let all = bytes(events.expect("a file").expect("listed").path());
    let (mut at, mut records) = (0, 0);
    while at < all.len() {
        let length = u64::from_le_bytes(all[at..at + 8].try_into().expect("8 bytes"));
        at += 8 + 4 + length as usize + 4;
        records += 1;
    }
    assert!(at == all.len() && records > 3, "whole records: {records}");
    let again = bench.engine(&["train", "--config", "run/config.toml", "--run", "again"]).output();
    assert!(again.expect("started").status.success());
    assert!(checkpoints(&run) == checkpoints(&bench.path("again")), "config.toml is the run");
}

#[test]
fn quiet_says_little_and_json_says_it_in_json() {
    let bench = Bench::new(10);
    let output = bench.train("quiet", QUICK).output().expect("started");
    assert!(output.stderr.is_empty(), "{}", said(&output));
    let json = [&["--json"], &QUICK[1..]].concat();
    let output = bench.train("json", &json).output().expect("started");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let events: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(events.last().expect("lines")["event"], "finished");
    assert!(events.iter().any(|event| event["event"] == "epoch"));
}

#[test]
fn every_kind_of_training_ends() {
    let bench = Bench::new(18);
    bench.add_column("third", |i| ["a", "b", "c"][i % 3].into());
    let run = |name: &str, more: &[&str]| bench.trained(name, &[QUICK, more].concat());
    let folds = run("folds", &["--folds", "3"]);
    assert_eq!(text(folds.join("predictions/subjects.csv")).lines().count(), 1 + 18);
    // A fold's model is scored again on the subjects that its fold tested.
    let best = |fold: usize| format!("folds/fold-{fold}/checkpoints/best.safetensors");
    let mut tested = BTreeSet::new();
    for fold in 1..=3 {
        let name = best(fold);
        let more = ["evaluate", "folds", "--checkpoint", name.as_str(), "--json"];
        let output = bench.engine(&more).output().expect("started");
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("\"subjects\":6"), "{}", said(&output));
        tested.insert(text(folds.join(format!("fold-{fold}/split.json"))));
    }
    assert_eq!(tested.len(), 3);
    std::fs::copy(bench.path(&best(1)), bench.path("moved.safetensors")).expect("copied");
    let more = ["evaluate", "folds", "--checkpoint", "moved.safetensors"];
    let output = bench.engine(&more).output().expect("started");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(
        said(&output).contains("remedy: name a checkpoint inside its run"),
        "{}",
        said(&output)
    );
    let classes = run("classes", &["--target", "third"]);
    let table = text(classes.join("predictions/subjects.csv"));
    assert!(table.starts_with("subject,windows,third,predicted,p(a),p(b),p(c)"), "{table}");
    run("sgd", &["train.optimizer=sgd", "--lr", "0.01"]);
    run("unfreeze", &["train.unfreeze=1"]);
    run("shallow", &["--model", "shallow", "model.shallow_pool=40", "model.shallow_filters=4"]);
    let init = folds.join("fold-1/checkpoints/best.safetensors").display().to_string();
    run("tuned", &["--init", &init, "--target", "sex"]);
}

/// The recordings' task as the target: labels belong to recordings, of which subjects have two.
#[test]
fn tasks_are_a_target() {
    let bench = Bench::new(10);
    for path in bench.recordings() {
        let eeg = path.parent().expect("a folder");
        for entry in std::fs::read_dir(eeg).expect("listed") {
            let path = entry.expect("listed").path();
            let name = path.file_name().expect("a name").to_string_lossy().to_string();
            std::fs::copy(&path, eeg.join(name.replace("RestingState", "Video"))).expect("copied");
        }
        let copy = path.display().to_string().replace("task-RestingState", "task-Video");
        scale_physical_range(Path::new(&copy), 2.0);
    }
    let run = bench.trained("run", &[QUICK, &["--target", "task"]].concat());
    let table = text(run.join("predictions/subjects.csv"));
    assert!(table.starts_with("subject,task,run,windows,task,predicted"), "{table}");
}
