//! A run that was killed at any moment and resumed ends with the bytes of one that was not.
#![cfg(unix)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, bytes, rng, said};

/// Everything random and everything stateful.
const SETTINGS: &[&str] = &[
    "--quiet",
    "--batch",
    "8",
    "--epochs",
    "30",
    "model.dropout=0.3",
    "train.ema=0.9",
    "train.patience=5",
    "train.checkpoint_every_steps=3",
    "augment.time_shift=0.5",
    "augment.channel_dropout=0.5",
    "augment.gaussian_noise=0.3",
    "augment.mixup=0.5",
];

/// The files that must not depend on interruptions, and the metrics without what is of the time.
fn results(run: &Path, folds: usize) -> Vec<(String, Vec<u8>)> {
    let parts: Vec<String> = match folds {
        0 => vec![String::new()],
        n => (1..=n).map(|fold| format!("fold-{fold}/")).collect(),
    };
    let mut all = Vec::new();
    for part in &parts {
        for name in ["checkpoints/last.safetensors", "checkpoints/best.safetensors"] {
            all.push(format!("{part}{name}"));
        }
        all.push(format!("{part}metrics.jsonl"));
    }
    all.extend(["predictions/subjects.csv", "predictions/windows.csv"].map(String::from));
    all.into_iter().map(|name| (name.clone(), bytes(run.join(&name)))).collect()
}

fn assert_same(found: &[(String, Vec<u8>)], expected: &[(String, Vec<u8>)], what: &str) {
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(found == expected, "{what}: {name} differs");
    }
}

fn resume(bench: &Bench, run: &str) -> Command {
    bench.engine(&["train", "--resume", run, "--quiet"])
}

/// The command that goes on with `run`: as a user would, by whether it has its settings.
fn go_on(bench: &Bench, run: &str, settings: &[&str]) -> Command {
    match bench.path(run).join("config.toml").exists() {
        true => resume(bench, run),
        false => bench.train(run, settings),
    }
}

/// Kills `count` processes, each at a moment uniform over a whole run; runs are restarted from
/// nothing, cache included, as soon as they end.
fn kills_leave_no_trace(seed: u64, count: usize, folds: usize) {
    let bench = Bench::new(12);
    let word = folds.to_string();
    let settings = match folds {
        0 => SETTINGS.to_vec(),
        _ => [SETTINGS, &["--folds", &word]].concat(),
    };
    let start = Instant::now();
    let expected = results(&bench.trained("whole", &settings), folds);
    let duration = start.elapsed();
    let mut rng = rng(seed);
    let (mut kills, mut runs, mut unstarted) = (0, 0, 0);
    while kills < count {
        let run = format!("run-{runs}");
        // Preparing the data is part of what is interrupted.
        let _ = std::fs::remove_dir_all(bench.path("cache"));
        loop {
            let mut child = go_on(&bench, &run, &settings)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("started");
            let moment = duration.mul_f64(rng.uniform());
            let begun = Instant::now();
            // Some of a run's later moments come only if not every attempt is killed.
            while kills < count && begun.elapsed() < moment {
                if child.try_wait().expect("known").is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            if kills < count && child.try_wait().expect("known").is_none() {
                child.kill().expect("killed");
                child.wait().expect("ended");
                kills += 1;
                unstarted += usize::from(!bench.path(&run).join("config.toml").exists());
                continue;
            }
            let status = child.wait().expect("ended");
            assert!(status.success(), "{run} after {kills} kills: {status}");
            break;
        }
        assert_same(&results(&bench.path(&run), folds), &expected, &run);
        runs += 1;
    }
    eprintln!(
        "folds {folds}: {kills} kills over {runs} runs of {:.2} s, {unstarted} before config.toml: \
         all bytes equal",
        duration.as_secs_f64()
    );
}

fn kill_count(default: usize) -> usize {
    std::env::var("ENGINE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn sigkill_leaves_no_trace() {
    kills_leave_no_trace(1, kill_count(12), 0);
}

#[test]
fn sigkill_leaves_no_trace_in_a_cross_validation() {
    kills_leave_no_trace(2, kill_count(12).div_ceil(2), 3);
}

/// The polite signals, at any moment: status 130, a line that says how to go on, equal bytes.
#[test]
fn polite_signals_stop_with_130_and_can_be_gone_on_from() {
    let bench = Bench::new(12);
    let start = Instant::now();
    let expected = results(&bench.trained("whole", SETTINGS), 0);
    let duration = start.elapsed();
    let mut rng = rng(3);
    let mut stopped = 0;
    for (i, signal) in ["INT", "TERM", "INT", "TERM", "INT"].into_iter().enumerate() {
        let run = format!("run-{i}");
        let _ = std::fs::remove_dir_all(bench.path("cache"));
        let child = bench
            .train(&run, SETTINGS)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        // Before its handler is installed, a process dies of the signal itself.
        while !bench.path(&run).join("config.toml").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(duration.mul_f64(0.8 * rng.uniform()));
        let pid = child.id().to_string();
        Command::new("kill").args([&format!("-{signal}"), &pid]).status().expect("kill is there");
        let output = child.wait_with_output().expect("ended");
        let text = said(&output);
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(130), "{text}");
            assert!(text.contains(&format!("--resume {run}")), "{text}");
            stopped += 1;
            let output = resume(&bench, &run).output().expect("started");
            assert!(output.status.success(), "{}", said(&output));
        }
        assert_same(&results(&bench.path(&run), 0), &expected, &run);
    }
    assert!(stopped > 0, "no signal came before the end");
}

/// What a run goes on with is in its config.toml, and beside it where it was set; a run of which nothing is
/// left to train takes no such flag.
#[test]
fn settings_of_a_resumed_run_are_those_it_went_on_with() {
    let bench = Bench::new(12);
    let child = bench.train("run", SETTINGS).stdout(Stdio::null()).spawn().expect("started");
    stop_at_the_first_checkpoint(&bench, child);
    let config = |run: &str| String::from_utf8(bytes(bench.path(run).join("config.toml")));
    let before = config("run").expect("UTF-8");
    // Refused before a step is taken: nothing has changed.
    let flags = ["train", "--resume", "run", "--threads", "1", "--route", "spectral=gpu"];
    let refused = bench.engine(&[&flags[..], &["--memory", "1kB"]].concat()).output();
    assert_eq!(refused.expect("started").status.code(), Some(2));
    let flags = ["train", "--resume", "run", "--max-steps", "2", "--set", "train.warmup=0"];
    let short = bench.engine(&flags).output().expect("started");
    assert_eq!(short.status.code(), Some(2));
    assert!(said(&short).contains("its settings end it at 2"), "{}", said(&short));
    assert_eq!(config("run").expect("UTF-8"), before);
    let output =
        bench.engine(&["train", "--resume", "run", "--max-steps", "100", "--threads", "1"]);
    let output = { output }.output().expect("started");
    assert!(output.status.success(), "{}", said(&output));
    let after = config("run").expect("UTF-8");
    let changed = |line: &&str| !before.lines().any(|old| old == *line);
    let changed: Vec<&str> = after.lines().filter(changed).collect();
    assert_eq!(changed, ["max_steps = 100  # --max-steps", "threads = 1  # --threads"]);
    assert_eq!(after.lines().count(), before.lines().count());
}

fn stop_at_the_first_checkpoint(bench: &Bench, mut child: std::process::Child) {
    let last = bench.path("run/checkpoints/last.safetensors");
    while !last.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed or ended");
    child.wait().expect("ended");
}

/// Lines that a kill tore, or that lie past the checkpoint, are gone after the run went on.
#[test]
fn torn_and_stale_lines_of_metrics_are_dropped() {
    let bench = Bench::new(12);
    let expected = results(&bench.trained("whole", SETTINGS), 0);
    let more = [SETTINGS, &["--max-steps", "7"]].concat();
    // The same schedule, but ended by a signal that comes with the first checkpoint.
    let child =
        bench.train("run", &more[..SETTINGS.len()]).stdout(Stdio::null()).spawn().expect("started");
    stop_at_the_first_checkpoint(&bench, child);
    let path = bench.path("run/metrics.jsonl");
    let mut text = bytes(&path);
    text.extend(b"{\"kind\":\"step\",\"step\":999,\"epoch\":9,\"loss\":1.0}\n{\"kind\":\"st");
    std::fs::write(&path, text).expect("written");
    let output = resume(&bench, "run").output().expect("started");
    assert!(output.status.success(), "{}", said(&output));
    let found = results(&bench.path("run"), 0);
    assert_same(&found, &expected, "run");
    let lines = String::from_utf8(bytes(&path)).expect("UTF-8");
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("a whole line");
    }
}

/// A disk that fills up in mid-run: status 2 with path and remedy; the last state stays usable.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_nothing() {
    let bench = Bench::new(12);
    let expected = results(&bench.trained("whole", SETTINGS), 0);
    let disk = bench.path("disk");
    std::fs::create_dir(&disk).expect("made");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
        .arg(&disk)
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: a small disk cannot be mounted (not root)");
        return;
    }
    let result = std::panic::catch_unwind(|| fill_and_go_on(&bench, &disk));
    let found = result.as_ref().ok().map(|()| results(&disk.join("run"), 0));
    Command::new("umount").arg(&disk).status().expect("umount is there");
    result.expect("no failure");
    assert_same(&found.expect("results"), &expected, "the run on the full disk");
}

fn fill_and_go_on(bench: &Bench, disk: &Path) {
    let child = bench
        .train("disk/run", SETTINGS)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let last = disk.join("run/checkpoints/last.safetensors");
    while !last.exists() {
        std::thread::sleep(Duration::from_micros(200));
    }
    // Everything that is left, a page at a time.
    let ballast = disk.join("ballast");
    let mut file = std::fs::File::create(&ballast).expect("made");
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    drop(file);
    let output = child.wait_with_output().expect("ended");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("disk/run") && text.contains("remedy"), "{text}");
    assert!(text.contains("o space left"), "{text}");
    let again = resume(bench, "disk/run").output().expect("started");
    assert_eq!(again.status.code(), Some(2), "still full: {}", said(&again));
    std::fs::remove_file(&ballast).expect("freed");
    let output = resume(bench, "disk/run").output().expect("started");
    assert!(output.status.success(), "{}", said(&output));
}
