//! Tests of the run's folder: refusals, locks, and a metrics log torn at every byte.

use super::*;
use serde_json::json;
use std::process::{Command, Stdio};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn timestamps_are_dates() {
    for (seconds, text) in [
        (0, "19700101-000000"),
        (951_782_399, "20000228-235959"),
        (951_782_400, "20000229-000000"),
        (951_868_800, "20000301-000000"),
        (1_735_689_599, "20241231-235959"),
        (1_760_531_696, "20251015-123456"),
        (4_107_542_400, "21000301-000000"),
    ] {
        assert_eq!(timestamp(seconds), text);
    }
}

#[test]
fn new_runs_never_share_a_folder() {
    let folder = folder();
    let runs: Vec<RunDir> = (0..3)
        .map(|_| RunDir::create_under(folder.path(), "eegformer", "../p factor").expect("made"))
        .collect();
    for run in &runs {
        let name = run.paths.root().file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(name.contains("-eegformer----p-factor"), "{name}");
        assert_eq!(run.paths.root().parent(), Some(folder.path()));
        assert!(run.paths.checkpoints().is_dir());
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 3);
}

#[test]
fn an_earlier_run_is_not_overwritten() {
    let folder = folder();
    let dir = folder.path().join("deep/run");
    let refusal =
        |dir: &Path| RunDir::create(Some(dir), "m", "t").expect_err("refused").to_string();
    let run = RunDir::create(Some(&dir), "m", "t").expect("new");
    let error = RunDir::open(&dir).expect_err("no config yet").to_string();
    assert!(error.contains("config.toml"), "{error}");
    std::fs::write(run.paths.config(), "").expect("written");
    assert!(RunDir::resume(&dir).expect_err("held").to_string().contains("is training this run"));
    assert!(RunDir::open(&dir).is_ok(), "reading needs no lock");
    drop(run);
    assert!(refusal(&dir).contains("--resume"));
    assert!(refusal(folder.path()).contains("is not empty"));
    std::fs::write(folder.path().join("file"), "x").expect("written");
    assert!(refusal(&folder.path().join("file")).contains("cannot be made"));
    RunDir::resume(&dir).expect("free again");
    assert!(RunDir::resume(&folder.path().join("absent")).is_err());
}

#[cfg(target_os = "linux")]
#[test]
fn a_closed_folder_is_named_with_its_remedy() {
    let error = RunDir::create(Some(Path::new("/proc/run")), "m", "t").expect_err("closed");
    let error = error.to_string();
    assert!(error.contains("/proc/run") && error.contains("--run"), "{error}");
}

const CHILD: &str = "ENGINE_TEST_LOCK_CHILD";

/// Not a test of its own: takes a run and keeps it until it is killed.
#[test]
#[ignore = "started and killed by the test below"]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let _run = RunDir::resume(Path::new(&dir)).expect("held");
    println!("\nheld");
    std::thread::sleep(std::time::Duration::from_secs(30));
}

#[test]
fn a_killed_process_holds_nothing() {
    use std::io::BufRead;
    let folder = folder();
    std::fs::write(RunPaths::new(folder.path()).config(), "").expect("written");
    let mut child = Command::new(std::env::current_exe().expect("this test's program"))
        .args(["--exact", "train::run_dir::tests::child", "--ignored", "--nocapture"])
        .env(CHILD, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let lines = io::BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.map_while(|line| line.ok()).any(|line| line == "held"));
    let error = RunDir::resume(folder.path()).expect_err("held by the child").to_string();
    assert!(error.contains(&format!("process {} on ", child.id())), "{error}");
    child.kill().expect("killed");
    child.wait().expect("ended");
    RunDir::resume(folder.path()).expect("free after the kill");
}

#[test]
fn process_numbers_decide_without_system_locks() {
    let this = "process 5 on here";
    for (holder, live) in [
        ("", false),
        ("process 5 on here\n", false),
        ("process 4194999 on here", false),
        ("process 1 on here", true),
        ("process 4194999 on elsewhere", true),
        ("something else", true),
    ] {
        assert_eq!(may_live(holder, this), live, "{holder}");
    }
}

/// Steps of the log's lines.
fn steps(path: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(path).expect("read");
    let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
    text.lines().map(|line| step(line).expect("whole lines with a step")).collect()
}

#[test]
fn a_log_torn_at_any_byte_resumes_whole() {
    let folder = folder();
    let path = folder.path().join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).expect("made");
    for step in 1..=5_u64 {
        log.append(&json!({"step": step * 10, "loss": 1.0 / step as f64})).expect("appended");
    }
    let whole = std::fs::read(&path).expect("read");
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).expect("written");
        let complete = whole[..cut].iter().filter(|&&b| b == b'\n').count() as u64;
        let (mut log, _) = MetricsLog::resume(&path, 30, 1).expect("resumed");
        log.append(&json!({"step": 40})).expect("appended");
        let mut expected: Vec<u64> = (1..=complete.min(3)).map(|n| n * 10).collect();
        expected.push(40);
        assert_eq!(steps(&path), expected, "cut at {cut}");
    }
}

#[test]
fn resuming_drops_what_is_no_record_and_counts_it() {
    let folder = folder();
    let path = folder.path().join("metrics.jsonl");
    let (mut log, dropped) =
        MetricsLog::resume(&path, 7, 1).expect("a log that is absent is empty");
    assert_eq!(dropped, 0);
    log.append(&json!({"step": 7, "text": "line\nbreak"})).expect("appended");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes.extend(
        b"\0\0\0\xff\n{\"loss\": 1}\n{\"step\": -1}\n\n{\"step\": 7}\n{\"step\": 8}\n{\"st",
    );
    std::fs::write(&path, bytes).expect("written");
    let (_, dropped) = MetricsLog::resume(&path, 7, 1).expect("resumed");
    assert_eq!((dropped, steps(&path)), (5, vec![7, 7]));
}
