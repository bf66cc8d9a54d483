//! The report and the event files as their readers see them.

use engine::data::rng::Rng;
use engine::metrics::{Baseline, Bootstrap, Level, Predictions, Task, score};
use engine::report::{
    ChannelMap, ChannelValue, Curves, EventWriter, Fold, Report, Skipped, SpectralGain,
};
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

/// Electrodes spread evenly over the sphere above `lowest` (Fibonacci lattice), names of a GSN net.
fn electrodes(n: usize, lowest: f64) -> Vec<(String, [f64; 3])> {
    (0..n)
        .map(|i| {
            let z = 1.0 - (1.0 - lowest) * (i as f64 + 0.5) / n as f64;
            let (r, a) = ((1.0 - z * z).sqrt(), i as f64 * 2.399_963);
            (format!("E{}", i + 1), [r * a.cos(), r * a.sin(), z])
        })
        .collect()
}

fn training(seed: u64, baseline: f64) -> Curves {
    let mut rng = Rng::new(seed, 9);
    let decay = |step: f64| 0.12 + 1.4 * (-step / 900.0).exp();
    let steps = |every: usize| (1..=6000).step_by(every).map(|s| s as f64);
    Curves {
        loss_name: "Huber loss (standardised age)".into(),
        train_loss: steps(1).map(|s| [s, decay(s) * (1.0 + 0.25 * rng.normal()).abs()]).collect(),
        validation_loss: steps(250).map(|s| [s, decay(s) + 0.1 + 1e-5 * s]).collect(),
        validation_score: steps(250).map(|s| [s, baseline * (0.45 + 0.5 * decay(s))]).collect(),
        score_name: "MAE (y)".into(),
        score_baseline: Some(baseline),
        learning_rate: steps(10)
            .map(|s| {
                [
                    s,
                    5e-4 * (s / 500.0).min(1.0) * (1.0 + (s / 6000.0 * std::f64::consts::PI).cos())
                        / 2.0,
                ]
            })
            .collect(),
        chosen_step: Some(4751),
    }
}

fn common(title: &str, seed: u64, channels: usize, features: usize) -> Report {
    let mut rng = Rng::new(seed, 1);
    let lowest = if channels > 64 { -0.45 } else { 0.0 };
    let channels = electrodes(channels, lowest)
        .into_iter()
        .map(|(name, p)| {
            let posterior = (-(p[1] + 0.8).powi(2) * 3.0 - p[0].powi(2)).exp();
            let frontal = (-(p[1] - 0.75).powi(2) * 6.0 - (p[0] - 0.3).powi(2) * 2.0).exp();
            let value = 0.31 * posterior + 0.1 * frontal + 0.015 * rng.normal();
            ChannelValue { name, position: p, value }
        })
        .collect();
    let frequencies: Vec<f64> = (0..=100).map(|i| i as f64 * 0.5).collect();
    let centers: Vec<f64> = (0..features).map(|_| rng.range(1.0, 45.0)).collect();
    let gain = frequencies
        .iter()
        .flat_map(|f| {
            let alpha = 0.35 * (-(f - 10.0f64).powi(2) / 9.0).exp();
            let own = |c: &f64| 1.0 + alpha + 0.4 * (-(f - c).powi(2) / 12.0).exp() - 0.004 * f;
            centers.iter().map(own).collect::<Vec<_>>()
        })
        .collect();
    Report {
        title: title.into(),
        facts: [
            ("model", "eeg-transformer, d_model 128, 8 heads, 6 layers"),
            ("parameters", "1 413 889"),
            ("data", "HBN-EEG R5, RestingState, 100 Hz, 2 s windows"),
            ("subjects", "training 1 402, validation 176, test 175"),
            ("device", "NVIDIA H200 (sm_90), bf16"),
            ("seed", "20"),
            ("time", "14 min 12 s, 31 840 windows/s"),
            ("version", "engine 0.1.0 (4a3bf4b)"),
        ]
        .map(|(a, b)| (a.to_string(), b.to_string()))
        .to_vec(),
        settings: "[model]\nd_model = 128\nn_heads = 8\n\n[data]\nfolder = \"<ds005505> & co\"\n"
            .into(),
        curves: training(seed, 4.1),
        channels: Some(ChannelMap {
            title: "Importance by channel ablation".into(),
            label: "rise of the MAE (y)".into(),
            channels,
        }),
        spectral: Some(SpectralGain { frequencies, gain }),
        split_proof: "training 1402 + validation 176 + test 175 = 1753 subjects, all distinct\n\
                      training ∩ validation = ∅, training ∩ test = ∅, validation ∩ test = ∅\n"
            .into(),
        skipped: (0..14)
            .map(|i| Skipped {
                path: format!("sub-NDAR{i:04}/eeg/sub-NDAR{i:04}_task-RestingState_eeg.set"),
                reason: ["git-annex pointer: the signal was never downloaded", "shorter than 4 s"]
                    [i % 2]
                    .into(),
            })
            .collect(),
        notes: vec!["The ECG channel is in mV and was left out.".into()],
        ..Report::default()
    }
}

/// `n` subjects of 24 windows; the prediction follows the label by `skill` in [0, 1].
fn regression(n: usize, skill: f64, seed: u64, channels: usize) -> Report {
    let mut rng = Rng::new(seed, 2);
    let (mut subject, mut truth, mut predicted) = (Vec::new(), Vec::new(), Vec::new());
    for s in 0..n {
        let age = ((5.0 + 17.0 * rng.uniform().powf(1.6)) * 1000.0).round() / 1000.0;
        let center = 10.5 + skill * (age - 10.5) + (0.4 + 1.6 * skill) * rng.normal();
        for _ in 0..24 {
            subject.push(s);
            truth.push(age);
            predicted.push(center + 1.5 * rng.normal());
        }
    }
    let windows = Predictions::regression(subject, truth.clone(), predicted).unwrap();
    let task = Task::Regression { name: "age".into(), unit: "y".into() };
    let baseline = Baseline::mean(&truth).unwrap();
    with_scores(common("Age from resting EEG", seed, channels, 128), task, windows, baseline, n)
}

fn classification(n: usize, classes: &[&str], skill: f64, seed: u64) -> Report {
    let mut rng = Rng::new(seed, 3);
    let k = classes.len();
    let (mut subject, mut truth, mut rows, mut labels) = (vec![], vec![], vec![], vec![]);
    for s in 0..n {
        let label = rng.below(k + 1) % k;
        labels.push(label);
        let lean: Vec<f64> = (0..k).map(|_| rng.normal()).collect();
        for _ in 0..24 {
            let logits: Vec<f64> = (0..k)
                .map(|c| lean[c] + 0.8 * rng.normal() + if c == label { skill } else { 0.0 })
                .collect();
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            subject.push(s);
            truth.push(label);
            rows.extend(logits.iter().map(|l| l.exp() / sum));
        }
    }
    let windows = Predictions::classification(subject, truth, rows, k).unwrap();
    let classes = classes.iter().map(|c| c.to_string()).collect();
    let task = Task::Classification { name: "sex".into(), classes };
    let baseline = Baseline::majority(&labels, k).unwrap();
    with_scores(common("Sex from resting EEG", seed, 19, 96), task, windows, baseline, n)
}

fn with_scores(
    mut report: Report,
    task: Task,
    windows: Predictions,
    baseline: Baseline,
    n: usize,
) -> Report {
    let settings = Bootstrap { resamples: 400, ..Bootstrap::default() };
    let subjects = windows.by_subject().unwrap();
    let of = |level, predictions| score(&task, level, predictions, &baseline, &settings).unwrap();
    report.scores = Some(of(Level::Subject, &subjects));
    report.window_scores = Some(of(Level::Window, &windows));
    report.subject_names = (0..n).map(|i| format!("sub-NDARAA{i:03}")).collect();
    report.subjects = Some(subjects);
    report.windows = Some(windows);
    report
}

fn cross_validated(mut report: Report) -> Report {
    for fold in 0..5u64 {
        let one = regression(40, 0.3 + 0.1 * fold as f64, 100 + fold, 19);
        report.folds.push(Fold {
            name: (fold + 1).to_string(),
            training_subjects: 160,
            scores: one.scores.unwrap(),
        });
    }
    report
}

fn samples() -> Vec<(&'static str, Report)> {
    vec![
        ("regression", cross_validated(regression(175, 0.7, 3, 128))),
        ("unlearnable", regression(36, 0.0, 4, 19)),
        ("large", regression(500, 0.8, 5, 128)),
        ("binary", classification(160, &["F", "M"], 1.2, 6)),
        (
            "multi",
            classification(150, &["rest, eyes open", "rest, eyes closed", "movie", "task"], 1.0, 7),
        ),
    ]
}

/// Tags and attributes as XML wants them, every element closed in order; the texts between them.
/// Style sheets are the only element whose content is not read.
fn check_markup(page: &str) -> Vec<String> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    let (mut open, mut texts) = (Vec::new(), Vec::new());
    while let Some(at) = rest.find('<') {
        texts.push(text_of(&rest[..at]));
        let end = rest[at..].find('>').expect("a closed tag") + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "before {:.80}", rest);
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag.trim_end_matches('/'), ""));
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()), "element {tag:?}");
        check_attributes(attributes.trim_end_matches('/'));
        if !tag.ends_with('/') {
            open.push(name.to_string());
        }
        if name == "style" {
            rest = &rest[rest.find("</style>").expect("the style's end")..];
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "left open: {open:?}");
    texts
}

fn text_of(raw: &str) -> String {
    assert!(!raw.contains('>') && !raw.contains('"'), "bare markup in {raw:?}");
    for (at, _) in raw.match_indices('&') {
        let entity = &raw[at..raw[at..].find(';').expect("an entity's end") + at + 1];
        assert!(["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"].contains(&entity), "{entity}");
    }
    let text = raw.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    text.replace("&#39;", "'").replace("&amp;", "&")
}

fn check_attributes(mut attributes: &str) {
    let mut seen = Vec::new();
    while !attributes.trim().is_empty() {
        let (name, value) = attributes.trim_start().split_once("=\"").expect("a quoted attribute");
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{name:?}");
        assert!(!name.starts_with("on") && !seen.contains(&name), "{name:?}");
        seen.push(name);
        let end = value.find('"').expect("the attribute's end");
        let value_is_external = name == "href" && !value.starts_with("data:image/png;base64,");
        assert!(!value_is_external && !value[..end].contains('<'), "{name}: {value:.60}");
        attributes = &value[end + 1..];
    }
}

/// `ENGINE_TEST_KEEP=folder` keeps the pages for eyes to judge.
#[test]
fn pages_are_small_well_formed_and_self_contained() {
    for (name, report) in samples() {
        let page = report.html();
        if let Ok(folder) = std::env::var("ENGINE_TEST_KEEP") {
            report.write(std::path::Path::new(&folder).join(format!("{name}.html"))).unwrap();
        }
        eprintln!("{name}: {} bytes", page.len());
        assert!(page.len() < 500_000, "{name}: {} bytes", page.len());
        assert_eq!(page, report.html(), "{name}: the same report, other bytes");
        let texts = check_markup(&page);
        for bad in ["NaN", "inf", "Infinity", "null"] {
            assert!(!texts.iter().any(|t| t.split_whitespace().any(|w| w == bad)), "{name}: {bad}");
        }
        assert!(!page.contains("NaN"), "{name}: NaN in an attribute");
        for outside in ["http:", "https:", "url(", "@import", "<script", "<iframe", "<link"] {
            let page = page.replace("http://www.w3.org/2000/svg", "").replace("url(#scalp)", "");
            assert!(!page.contains(outside), "{name}: {outside}");
        }
    }
}

#[test]
fn verdict_and_baseline_are_in_words() {
    let page = regression(36, 0.0, 4, 19).html();
    assert!(page.contains("does not beat the mean predictor"));
    let page = classification(160, &["F", "M"], 1.2, 6).html();
    assert!(page.contains("beats the majority class") && page.contains("95 % interval"));
}

#[test]
fn text_from_files_cannot_become_markup() {
    let evil = "</title></style><script>alert('x')</script><b a=\"'&\u{1}\u{ffff}";
    let mut report = cross_validated(classification(60, &[evil, "M"], 1.0, 8));
    report.title = evil.into();
    report.headline = evil.into();
    report.facts = vec![(evil.into(), evil.into())];
    report.settings = evil.into();
    report.split_proof = evil.into();
    report.notes = vec![evil.into()];
    report.subject_names = vec![evil.into(); 60];
    report.skipped = vec![Skipped { path: evil.into(), reason: evil.into() }];
    report.folds[0].name = evil.into();
    report.curves.loss_name = evil.into();
    report.curves.score_name = evil.into();
    let map = report.channels.as_mut().unwrap();
    (map.title, map.label) = (evil.into(), evil.into());
    map.channels.iter_mut().for_each(|c| c.name = evil.into());
    let page = report.html();
    let texts = check_markup(&page);
    assert!(!page.contains("<script") && !page.contains("<b a"));
    let shown = evil.replace(['\u{1}', '\u{ffff}'], "\u{fffd}");
    assert!(texts.iter().filter(|t| t.contains(&shown)).count() > 20);
}

/// Each part missing, empty or degenerate in turn.
#[test]
fn what_is_missing_is_left_out() {
    let page = Report::default().html();
    check_markup(&page);
    for absent in ["<section", "<svg", "<table", "<dl"] {
        assert!(!page.contains(absent), "{absent} in an empty report");
    }
    let full = || cross_validated(regression(40, 0.5, 9, 19));
    let nan = || vec![[1.0, f64::NAN], [2.0, f64::INFINITY], [f64::NAN, 1.0]];
    let edits: Vec<fn(&mut Report)> = vec![
        |r| r.scores = None,
        |r| r.subjects = None,
        |r| r.windows = None,
        |r| r.subject_names.clear(),
        |r| r.channels = Some(ChannelMap::default()),
        |r| r.spectral.as_mut().unwrap().gain.truncate(7),
        |r| r.spectral.as_mut().unwrap().gain[3] = f64::NAN,
        |r| r.spectral.as_mut().unwrap().frequencies.reverse(),
        |r| r.curves.train_loss.truncate(1),
        |r| r.curves.validation_loss.clear(),
        |r| r.curves.train_loss.iter_mut().for_each(|p| p[1] = 0.0),
        |r| r.folds.truncate(1),
        |r| r.curves.chosen_step = Some(u64::MAX),
        |r| r.subjects = Some(Predictions::regression(vec![], vec![], vec![]).unwrap()),
        |r| r.subjects = Some(Predictions::regression(vec![7], vec![3.0], vec![3.0]).unwrap()),
        |r| {
            let same = Predictions::regression(vec![1, 1, 2], vec![1e9; 3], vec![1e9; 3]);
            r.subjects = Some(same.unwrap());
        },
    ];
    for (at, edit) in edits.iter().enumerate() {
        let mut report = full();
        edit(&mut report);
        let page = report.html();
        check_markup(&page);
        assert!(!page.contains("NaN") && !page.contains("inf\""), "edit {at}");
    }
    let mut diverged = full();
    diverged.curves.train_loss.extend(nan());
    diverged.curves.validation_loss = nan();
    diverged.curves.learning_rate = nan();
    let page = diverged.html();
    check_markup(&page);
    assert!(page.contains("6 points that are not finite are left out") && !page.contains("NaN"));
    // One class only: no ROC curve, and the scores say why.
    let one = classification(30, &["F", "M"], 1.0, 11);
    let windows = one.windows.clone().unwrap();
    let engine::metrics::Outputs::Classification { probability, .. } = windows.outputs() else {
        unreachable!()
    };
    let subject = windows.subject().to_vec();
    let n = subject.len();
    let windows = Predictions::classification(subject, vec![0; n], probability.clone(), 2).unwrap();
    let task = Task::Classification { name: "sex".into(), classes: vec!["F".into(), "M".into()] };
    let baseline = Baseline::majority(&[0, 1, 0], 2).unwrap();
    let page = with_scores(Report::default(), task, windows, baseline, 30).html();
    check_markup(&page);
    assert!(page.contains("undefined: needs labels of at least two classes"));
    assert!(!page.contains("ROC curve") && page.contains("Confusion matrix"));
}

#[test]
fn a_page_is_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let report = regression(12, 0.5, 1, 19);
    report.write(&path).unwrap();
    report.write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), report.html());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let missing = folder.path().join("no such folder").join("report.html");
    let message = report.write(&missing).unwrap_err().to_string();
    assert!(message.contains("no such folder") && message.contains("cannot write"), "{message}");
}

#[test]
fn a_report_survives_json() {
    let report = cross_validated(regression(20, 0.5, 13, 19));
    let json = serde_json::to_string(&report).unwrap();
    let back: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(back.html(), report.html());
}
