//! The report and the event files as their readers see them.

use engine::report::EventWriter;
use std::process::Command;

/// A Python with the `tensorboard` package: `ENGINE_TEST_PYTHON`, else `python3`.
fn python_with_tensorboard() -> Option<String> {
    let python = std::env::var("ENGINE_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python).args(["-c", "import tensorboard"]).output();
    found.is_ok_and(|output| output.status.success()).then_some(python)
}

const READ_EVENTS: &str = r#"
import sys, json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
tags = events.Tags()["scalars"]
print(json.dumps({t: [[e.step, e.value] for e in events.Scalars(t)] for t in sorted(tags)}))
"#;

#[test]
fn tensorboard_reads_the_events_of_a_resumed_run() {
    let Some(python) = python_with_tensorboard() else {
        eprintln!("skipped: no Python with the tensorboard package (set ENGINE_TEST_PYTHON)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let value = |step: u64| (step as f64 * 0.37).sin() * 3.0;
    let mut writer = EventWriter::create(folder.path()).unwrap();
    for step in 1..=300 {
        writer.scalars(step, &[("loss/train", value(step)), ("µ", -1.0)]).unwrap();
    }
    drop(writer);
    // Went on from the checkpoint of step 250: 251 to 300 are written anew.
    let mut writer = EventWriter::resume(folder.path(), 251).unwrap();
    for step in 251..=400 {
        writer.scalars(step, &[("loss/train", value(step) + 100.0)]).unwrap();
    }
    let output =
        Command::new(python).args(["-c", READ_EVENTS]).arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let tags: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let loss = tags["loss/train"].as_array().unwrap();
    assert_eq!(loss.len(), 400, "{said}");
    for (at, point) in loss.iter().enumerate() {
        let step = at as u64 + 1;
        let expected = (value(step) + if step > 250 { 100.0 } else { 0.0 }) as f32;
        assert_eq!(point[0].as_u64().unwrap(), step);
        assert_eq!(point[1].as_f64().unwrap() as f32, expected);
    }
    assert_eq!(tags["µ"].as_array().unwrap().len(), 250);
}
