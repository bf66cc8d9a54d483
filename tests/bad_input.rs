//! Whatever a user gets wrong: status 2, a message with place, problem and remedy, no panic, and a
//! folder in which the mended command works.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Bench, as_brainvision, as_edf, bytes, said};

/// Status 2, no panic, and all of `parts` on stderr.
fn refused(mut command: Command, parts: &[&str]) -> String {
    let output = command.output().expect("started");
    let text = said(&output);
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(output.status.code(), Some(2), "{command:?}\n{text}");
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(said.contains("error: "), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    said
}

/// As [`refused`] for a new run, which must leave nothing in the way.
fn train_refused(bench: &Bench, more: &[&str], parts: &[&str]) {
    refused(bench.train("refused", more), &[parts, &["remedy: "]].concat());
    assert!(!bench.path("refused").exists(), "{more:?} leaves a run");
}

fn train_all(bench: &Bench, run: &str, more: &[&str]) -> String {
    let quick = [&["--max-steps", "3", "--batch", "4"], more].concat();
    let output = bench.train(run, &quick).output().expect("started");
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

/// A change to a file's bytes.
type Damage = Box<dyn Fn(&mut Vec<u8>)>;

#[test]
fn folders_targets_and_settings() {
    let bench = Bench::new(10);
    bench.add_column("none", |_| "n/a".into());
    bench.add_column("same", |_| "x".into());
    train_refused(&bench, &["data.dir=absent"], &["absent", "no such folder"]);
    std::fs::create_dir(bench.path("empty")).expect("made");
    train_refused(&bench, &["data.dir=empty"], &["participants.tsv"]);
    train_refused(&bench, &["--target", "height"], &["height", "age", "sex", "ehq_total"]);
    train_refused(&bench, &["--target", "none"], &["none", "n/a"]);
    train_refused(&bench, &["--target", "same"], &["same", "one class"]);
    train_refused(&bench, &["--target", "task"], &["task", "RestingState"]);
    train_refused(&bench, &["--task", "Video"], &["Video", "RestingState"]);
    train_refused(&bench, &["data.window_s=100.0"], &["window"]);
    train_refused(&bench, &["--batch", "5000"], &["batch"]);
    train_refused(&bench, &["data.events=[\"foo\"]"], &["data.events", "called foo", "Eyes"]);
    train_refused(&bench, &["data.channels=[\"FP1\"]"], &["has no channel FP1 (there is Fp1:"]);
    train_refused(&bench, &["data.reference=[\"A1\"]"], &["has no channel A1", "data.reference"]);
    train_refused(&bench, &["--init", "absent"], &["absent", "no such checkpoint", "--init"]);
    std::fs::write(bench.path("file"), "x").expect("written");
    train_refused(&bench, &["data.cache_dir=file/x"], &["file/x", "set data.cache_dir"]);
    train_refused(&bench, &["--folds", "11"], &["11 folds"]);
    train_refused(&bench, &["--memory", "1MB"], &["out of memory", "batch"]);
    std::fs::write(bench.path("wrong.toml"), "[train]\nepoch = 3\n").expect("written");
    train_refused(&bench, &["--config", "wrong.toml"], &["wrong.toml:2", "epoch", "epochs"]);
    // What the defaults' 8 heads do not divide, the 4 of the device's profile do.
    let cpu = |set: &str| {
        let quick = ["--device", "cpu", "--run", "profiled", "--max-steps", "1", "--batch", "2"];
        bench.engine(&[&["train", "--data", "data", "--set", set], &quick[..]].concat())
    };
    refused(cpu("model.n_heads=7"), &["--set model.n_heads=7, model.n_heads", "d_model 64"]);
    let output = cpu("model.d_model=60").output().expect("started");
    assert!(output.status.success(), "{}", said(&output));
    // The mended command, in the folder that was refused.
    train_all(&bench, "refused", &["--target", "sex"]);
}

#[test]
fn folders_that_cannot_be_written() {
    let bench = Bench::new(10);
    let report = bench.engine(&["devices", "--report", "absent/report.txt"]);
    refused(report, &["absent/report.txt", "cannot be written", "--report"]);
    std::fs::write(bench.path("file"), "x").expect("written");
    refused(bench.train("file/run", &[]), &["file/run", "remedy"]);
    refused(bench.train("file", &[]), &["file", "remedy"]);
    if Path::new("/proc").is_dir() {
        refused(bench.train("/proc/run", &[]), &["/proc/run", "remedy"]);
    }
    let mut command = bench.train("refused", &[]);
    command.env("XDG_CACHE_HOME", bench.path("file"));
    refused(command, &["file", "cannot"]);
    assert!(!bench.path("refused").exists());
    assert_eq!(bytes(bench.path("file")), b"x");
    refused(bench.engine(&["train", "--resume", "data"]), &["data", "is no run", "remedy"]);
    refused(bench.engine(&["train", "--resume", "absent"]), &["absent", "remedy"]);
    let filled = bench.trained("filled", &["--max-steps", "3", "--batch", "4"]);
    refused(bench.train("filled", &[]), &["holds a run already", "--resume"]);
    assert!(filled.join("report.html").exists());
    let report = bytes(filled.join("report.html"));
    for (flags, what) in [
        (["--seed", "99"], "train.seed"),
        (["--target", "sex"], "data.target"),
        (["--folds", "2"], "data.folds"),
        (["--set", "data.test_fraction=0.3"], "data.test_fraction"),
        (["--set", "model.n_layers=3"], "model.n_layers"),
    ] {
        let command = bench.engine(&[&["train", "--resume", "filled"], &flags[..]].concat());
        refused(command, &[what, "keeps its data", "remedy"]);
    }
    for (flags, what) in [
        (["--epochs", "50"], "train.epochs"),
        (["--batch", "8"], "train.batch"),
        (["--set", "augment.sign_flip=0.5"], "augment.sign_flip"),
    ] {
        let command = bench.engine(&[&["train", "--resume", "filled"], &flags[..]].concat());
        refused(command, &[what, "has finished", "--init filled/checkpoints/best.safetensors"]);
    }
    let profile = bench.engine(&["train", "--resume", "filled", "--profile"]);
    refused(profile, &["--profile", "has finished", "no steps"]);
    assert_eq!(bytes(filled.join("report.html")), report);
    refused(bench.train("crowd", &["--threads", "1000"]), &["train.threads", "256", "remedy"]);
}

/// One recording of ten is spoilt, by a function that gives the path it then has; all others are
/// good. It is left out aloud, listed and counted, and the run is a good one. Alone, it is an error
/// where it `cannot_be_read`.
fn spoilt(bench: &Bench, spoil: impl Fn(&Path) -> PathBuf, reason: &str, cannot_be_read: bool) {
    let path = spoil(&bench.recordings()[4]);
    let text = train_all(bench, "run", &[]);
    let name = path.file_name().expect("a name").to_string_lossy().to_string();
    let line = text.lines().find(|line| line.contains("skipped") && line.contains(&name));
    let line = line.unwrap_or_else(|| panic!("{name} is not named: {text}"));
    assert!(line.contains(reason), "no {reason:?} in {line}");
    assert!(text.contains("9 recordings (1 skipped)"), "{text}");
    let page = String::from_utf8(bytes(bench.path("run/report.html"))).expect("UTF-8");
    assert!(page.contains(&name), "the report lists it");
    assert!(!text.contains("NaN"), "{text}");
    if cannot_be_read {
        let alone = bench.engine(&["data", "info", &path.display().to_string()]);
        refused(alone, &[&name, reason, "remedy: "]);
    }
}

/// Changes a file where it lies.
fn changed(change: impl Fn(&mut Vec<u8>)) -> impl Fn(&Path) -> PathBuf {
    move |path| {
        let mut all = bytes(path);
        change(&mut all);
        std::fs::write(path, all).expect("written");
        path.to_path_buf()
    }
}

fn field(at: usize, text: &str) -> impl Fn(&mut Vec<u8>) {
    move |all| all[at..at + text.len()].copy_from_slice(text.as_bytes())
}

#[test]
fn a_damaged_header_or_a_truncated_file_is_skipped_with_its_reason() {
    let cut = |share: f64| {
        changed(move |all| {
            let length = (all.len() as f64 * share) as usize;
            all.truncate(length);
        })
    };
    spoilt(&Bench::new(10), changed(|all| all.truncate(700)), "header", true);
    spoilt(&Bench::new(10), changed(Vec::clear), "empty", true);
    spoilt(&Bench::new(10), changed(field(252, "0   ")), "signals", true);
    spoilt(&Bench::new(10), changed(field(184, "99999   ")), "99999", true);
    spoilt(&Bench::new(10), changed(field(236, "900     ")), "900", true);
    spoilt(&Bench::new(10), |path| cut(0.6)(&as_edf(path, 19)), "cut short", true);
    spoilt(&Bench::new(10), |path| cut(0.6)(path), "cut short", true);
}

#[test]
fn a_recording_without_a_usable_signal_is_skipped_with_its_reason() {
    let flat = |path: &Path| {
        flatten(path);
        path.to_path_buf()
    };
    spoilt(&Bench::new(10), flat, "channels are bad", false);
    let all_nan = |path: &Path| {
        as_brainvision(path, |rows| rows.iter_mut().for_each(|row| row.fill(f32::NAN)))
    };
    spoilt(&Bench::new(10), all_nan, "not finite", false);
    spoilt(&Bench::with_channels(10, 129), |path| as_edf(path, 6), "lacks", false);
}

/// A few numbers that are none: their channel is repaired and said to be bad, the recording stays.
#[test]
fn a_channel_with_numbers_that_are_none_is_repaired() {
    let bench = Bench::new(10);
    let path = as_brainvision(&bench.recordings()[4], |rows| {
        rows[3][100..400].fill(f32::NAN);
        rows[7][5] = f32::INFINITY;
    });
    let text = train_all(&bench, "run", &[]);
    assert!(text.contains("10 recordings,") && !text.contains("skipped"), "{text}");
    let metrics = String::from_utf8(bytes(bench.path("run/metrics.jsonl"))).expect("UTF-8");
    assert!(metrics.lines().count() > 3 && !metrics.contains("null"), "{metrics}");
    let info = bench.engine(&["data", "info", &path.display().to_string()]);
    let info = said(&{ info }.output().expect("started"));
    assert!(info.contains("301 samples are not finite"), "{info}");
}

#[test]
fn nothing_but_numbers_that_are_none_is_an_error() {
    let bench = Bench::new(10);
    for path in bench.recordings() {
        as_brainvision(&path, |rows| rows.iter_mut().for_each(|row| row.fill(f32::NAN)));
    }
    train_refused(&bench, &[], &["none of 10 recordings", "not finite", "_eeg.vhdr"]);
}

/// Sets every sample to the same number.
fn flatten(path: &Path) {
    let mut all = bytes(path);
    let start: usize =
        std::str::from_utf8(&all[184..192]).expect("ASCII").trim().parse().expect("a number");
    all[start..].fill(0);
    std::fs::write(path, all).expect("written");
}

#[test]
fn nothing_but_spoilt_recordings_is_an_error() {
    let bench = Bench::new(10);
    for path in bench.recordings() {
        std::fs::write(&path, &bytes(&path)[..700]).expect("cut");
    }
    train_refused(&bench, &[], &["none of 10 recordings", "_eeg.bdf"]);
}

#[test]
fn one_subject_cannot_be_split() {
    let bench = Bench::new(10);
    for path in &bench.recordings()[1..] {
        let subject = path.parent().and_then(Path::parent).expect("a folder");
        std::fs::remove_dir_all(subject).expect("removed");
    }
    train_refused(&bench, &[], &["one subject only", "add subjects"]);
    train_refused(&bench, &["--target", "sex"], &["--target sex", "one subject only"]);
}

/// Mounts a small disk on a folder, or makes it one that nobody can write to; false where this user
/// cannot mount.
fn read_only(dir: &Path, yes: bool) -> bool {
    let options = if yes { "remount,ro" } else { "size=64m" };
    let args = ["-t", "tmpfs", "-o", options, "none", &dir.display().to_string()];
    Command::new("mount").args(args).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_run_folder_that_became_read_only_loses_nothing() {
    let bench = Bench::new(10);
    let disk = bench.path("disk");
    std::fs::create_dir(&disk).expect("made");
    if !read_only(&disk, false) {
        return eprintln!("skipped: this user cannot mount");
    }
    let result = std::panic::catch_unwind(|| {
        let quick = ["--max-steps", "3", "--batch", "4"];
        let run = bench.trained("disk/run", &quick);
        let files = ["checkpoints/last.safetensors", "metrics.jsonl", "results.json"];
        let before = files.map(|file| bytes(run.join(file)));
        assert!(read_only(&disk, true), "remounted");
        refused(bench.train("disk/other", &[]), &["disk/other", "remedy: "]);
        refused(bench.engine(&["train", "--resume", "disk/run"]), &["disk/run", "with a copy"]);
        let out = ["predict", "disk/run", "--data", "data", "--out", "disk/all.csv"];
        refused(bench.engine(&out), &["disk/all.csv", "remedy: give --out"]);
        assert!(files.map(|file| bytes(run.join(file))) == before);
        // What reads only, works.
        let output = bench.engine(&["predict", "disk/run", "--data", "data"]).output();
        assert!(output.expect("started").status.success());
    });
    Command::new("umount").arg(&disk).status().expect("umount is there");
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Without a label and too short is one recording that is left out, not two.
#[test]
fn each_skipped_recording_is_counted_once() {
    let bench = Bench::new(10);
    bench.add_column("some", |i| if i == 3 { "n/a".into() } else { (i * i % 11).to_string() });
    let text = train_all(&bench, "run", &["--target", "some"]);
    assert!(text.contains(": 9 recordings (1 skipped)"), "{text}");
    let page = String::from_utf8(bytes(bench.path("run/report.html"))).expect("UTF-8");
    assert!(page.contains("n/a for"), "the report lists it");
    let short = |rows: &mut [Vec<f32>]| rows.iter_mut().for_each(|row| row.truncate(80));
    as_brainvision(&bench.recordings()[3], short);
    let text = train_all(&bench, "short", &["--target", "some"]);
    assert!(text.contains(": 9 recordings (1 skipped)"), "{text}");
}

/// A subject's folder that this user may not look into is left out aloud.
#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_listed_is_skipped() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(4);
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed");
    };
    let recordings = bench.recordings();
    let closed = recordings[1].ancestors().nth(2).expect("a folder");
    mode(bench.folder.path(), 0o755);
    mode(closed, 0);
    let info = bench.engine(&["data", "info", "data"]);
    let output = if std::fs::read_dir(closed).is_err() {
        { info }.output().expect("started")
    } else {
        // This user may look into everything: nobody may not.
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let mut nobody = Command::new("setpriv");
        nobody.args(user).arg(info.get_program()).args(info.get_args());
        match nobody.current_dir(bench.folder.path()).output() {
            Ok(output) if !said(&output).contains("setpriv:") => output,
            _ => return eprintln!("skipped: this user cannot become another one"),
        }
    };
    mode(closed, 0o755);
    let text = said(&output);
    assert!(
        output.status.success() && text.contains("cannot list it: Permission denied"),
        "{text}"
    );
    assert!(text.contains("4, 3 with recordings"), "{text}");
}

fn damaged(good: &Path, to: &Path, damage: impl Fn(&mut Vec<u8>)) {
    let mut all = bytes(good);
    damage(&mut all);
    std::fs::write(to, all).expect("written");
}

#[test]
fn damaged_and_foreign_checkpoints() {
    let bench = Bench::new(10);
    let quick = ["--max-steps", "3", "--batch", "4"];
    let run = bench.trained("run", &quick);
    let other = bench.trained("other", &[&quick[..], &["data.window_s=2.0"]].concat());
    let shallow = ["--model", "shallow", "model.shallow_pool=40", "model.shallow_filters=4"];
    let shallow = bench.trained("shallow", &[&quick[..], &shallow].concat());
    let best = |run: &PathBuf| run.join("checkpoints/best.safetensors").display().to_string();
    let of = |file: &str| bench.engine(&["evaluate", "run", "--checkpoint", file]);
    refused(of(&best(&other)), &["windows of 200 samples", "remedy"]);
    refused(of("absent.safetensors"), &["absent.safetensors", "remedy: give best, last, or"]);
    let classes = bench.trained("classes", &[&quick[..], &["--target", "sex"]].concat());
    let text = refused(of(&best(&classes)), &["predicts sex (F, M), the data have age (a number)"]);
    assert!(!text.contains("Regression"), "{text}");
    let out = bench.engine(&["predict", "run", "--data", "data", "--out", "data"]);
    refused(out, &["data: is a folder", "give --out a file"]);
    let renamed = as_brainvision(&bench.recordings()[4], |_| {});
    let header = std::fs::read_to_string(&renamed).expect("read").replace("=Fp1,", "=FP1,");
    std::fs::write(&renamed, header).expect("written");
    let predict = ["predict", "run", "--data", &renamed.display().to_string()];
    refused(
        bench.engine(&predict),
        &["_eeg.vhdr: has no EEG channel Fp1 (there is FP1: upper and lower case", "named alike"],
    );
    train_refused(&bench, &["--init", &best(&shallow)], &["no tensor that fits"]);
    let (good, last) =
        (run.join("checkpoints/best.safetensors"), run.join("checkpoints/last.safetensors"));
    let kept = bytes(&last);
    let n = bytes(&good).len();
    let file = bench.path("bad.safetensors");
    let name = file.display().to_string();
    let mut damages: Vec<Damage> = Vec::new();
    for length in [0, 5, 8, 100, n / 2, n - 1] {
        damages.push(Box::new(move |all| all.truncate(length)));
    }
    let mut rng = common::rng(5);
    // The header's length, its text, and the numbers.
    for at in [0, 3, 7, 8, 20, 60 + rng.below(600), n - 2000, n - 1, n - 1 - rng.below(n / 2)] {
        let bit = rng.below(8);
        damages.push(Box::new(move |all| all[at] ^= 1 << bit));
    }
    for damage in &damages {
        damaged(&good, &file, damage);
        refused(of(&name), &["bad.safetensors", "remedy"]);
    }
    for damage in [&damages[4], &damages[12]] {
        damaged(&good, &file, damage);
        train_refused(&bench, &["--init", &name], &["bad.safetensors"]);
        damaged(&last, &last, damage);
        let resume = bench.engine(&["train", "--resume", "run"]);
        refused(resume, &["last.safetensors", "remedy"]);
        std::fs::write(&last, &kept).expect("mended");
    }
    // A run whose last state is another model's.
    std::fs::copy(shallow.join("checkpoints/last.safetensors"), &last).expect("copied");
    let resume = bench.engine(&["train", "--resume", "run"]);
    refused(resume, &["last.safetensors", "remedy"]);
    std::fs::write(&last, &kept).expect("mended");
    let output = bench.engine(&["train", "--resume", "run"]).output().expect("started");
    assert!(output.status.success(), "{}", said(&output));
}

/// Divergence: status 3 with step, tensor and what is left; nothing saved is not a number.
#[test]
fn divergence_stops_with_the_last_good_checkpoint() {
    let bench = Bench::new(10);
    for (i, more) in [
        &["--lr", "1e30", "train.clip=off", "train.warmup=0"][..],
        &["--lr", "1e38", "train.clip=off", "train.optimizer=sgd", "train.warmup=0"],
    ]
    .into_iter()
    .enumerate()
    {
        let run = format!("run-{i}");
        let more = [more, &["--batch", "4", "train.checkpoint_every_steps=1"]].concat();
        let output = bench.train(&run, &more).output().expect("started");
        let text = said(&output);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains("error: step ") && text.contains("is not finite"), "{text}");
        assert!(text.contains("checkpoint") && text.contains("remedy"), "{text}");
        let last = bench.path(&run).join("checkpoints/last.safetensors");
        if last.exists() {
            assert!(text.contains("last.safetensors"), "{text}");
            let all = bytes(&last);
            let file = safetensors::SafeTensors::deserialize(&all).expect("whole");
            for (name, tensor) in file.tensors() {
                let numbers = tensor.data().chunks_exact(4);
                let finite = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite();
                assert!(
                    name.starts_with("optimizer.") || numbers.into_iter().all(finite),
                    "{name}"
                );
            }
        }
    }
}
