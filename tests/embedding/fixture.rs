//! What the tests share: the library, installed once, and a model that the program trained.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The package.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of these tests.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("embedding").join(name);
    std::fs::create_dir_all(&folder).expect("a folder below target can be made");
    folder
}

/// Runs a command; its output, which must be that of a success.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}\n{}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything a command printed.
pub fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// True where a program can be started; says that the test is skipped where it cannot.
pub fn have(program: &str, package: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("skipped: no {program} (Debian: apt-get install {package})");
    }
    found
}

/// The program that cargo built for these tests.
pub fn engine() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.env("XDG_CACHE_HOME", folder("cache"));
    command
}

/// The prefix that `scripts/install` filled, once.
pub fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = folder("prefix");
        std::fs::remove_dir_all(&prefix).expect("an old one can be removed");
        // The profile's folder is above the one that cargo names for temporary files.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("below target");
        run(Command::new(root().join("scripts/install"))
            .env("PREFIX", &prefix)
            .env("CARGO_TARGET_DIR", target)
            .env_remove("DESTDIR"));
        prefix
    })
}

/// A run of the program on generated EEG, and one of the recordings.
pub struct Trained {
    pub run: PathBuf,
    pub recording: PathBuf,
    /// What `engine predict --windows` says of it: start, s, and the numbers of each window.
    pub expected: Vec<Vec<f64>>,
}

/// Trains a small model once.
pub fn trained() -> &'static Trained {
    static TRAINED: OnceLock<Trained> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let (data, runs) = (folder("data").join("eeg"), folder("runs"));
        let _ = std::fs::remove_dir_all(&data);
        let run_dir = runs.join("age");
        let _ = std::fs::remove_dir_all(&run_dir);
        run(engine().args(["data", "synth"]).arg(&data).args([
            "--subjects",
            "12",
            "--seconds",
            "12",
            "--channels",
            "19",
        ]));
        run(engine()
            .args(["train", "--quiet", "--target", "age", "--device", "cpu", "--epochs", "1"])
            .args(["--set", "model.d_model=16", "--set", "model.n_heads=2"])
            .args(["--set", "model.n_layers=1", "--batch", "8"])
            .arg("--data")
            .arg(&data)
            .arg("--run")
            .arg(&run_dir));
        let recording = recording_below(&data).expect("the generator wrote recordings");
        let expected = predicted(&run_dir, &recording);
        Trained { run: run_dir, recording, expected }
    })
}

fn recording_below(folder: &Path) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.flatten().map(|e| e.path()).collect();
    entries.sort();
    entries.iter().find_map(|path| match path.is_dir() {
        true => recording_below(path),
        false => path.extension().is_some_and(|e| e == "bdf").then(|| path.clone()),
    })
}

/// What the program predicts of a recording's windows.
fn predicted(run_dir: &Path, recording: &Path) -> Vec<Vec<f64>> {
    let csv = folder("runs").join("windows.csv");
    run(engine()
        .arg("predict")
        .arg(run_dir)
        .arg("--data")
        .arg(recording)
        .args(["--windows", "--device", "cpu", "--out"])
        .arg(&csv));
    let text = std::fs::read_to_string(csv).expect("the program wrote it");
    // subject,session,task,run,start_s,age,predicted
    let row = |line: &str| -> Vec<f64> {
        let fields: Vec<&str> = line.split(',').collect();
        [fields[4], fields[6]].iter().map(|f| f.parse().expect("a number")).collect()
    };
    let rows: Vec<Vec<f64>> = text.lines().skip(1).map(row).collect();
    assert!(rows.len() > 3, "{text}");
    rows
}

/// Compares lines of start and numbers, as the examples print them, with the program's.
pub fn expect_predictions(language: &str, printed: &str) {
    let expected = &trained().expected;
    let row = |line: &str| -> Vec<f64> {
        line.split_whitespace().map(|f| f.parse().expect("a number")).collect()
    };
    let found: Vec<Vec<f64>> = printed.lines().map(row).collect();
    assert_eq!(found.len(), expected.len(), "{language}:\n{printed}");
    let mut worst = 0.0f64;
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len(), "{language}:\n{printed}");
        for (found, expected) in found.iter().zip(expected) {
            worst = worst.max((found - expected).abs() / expected.abs().max(1.0));
        }
    }
    eprintln!("{language}: {} windows differ from the program's by {worst:.1e}", found.len());
    assert!(worst <= 1e-6, "{language} differs by {worst:e}");
}
