//! What `engine train --profile` promises: a table of time and memory by op and layer, a trace that
//! Perfetto can show, and the weights of a run without it.

mod common;

use std::collections::BTreeMap;

use common::{Bench, bytes, said};
use serde_json::Value;

const QUICK: &[&str] = &["--batch", "8", "--epochs", "2", "model.n_layers=2"];

/// A span: thread, kind, name, begin and end in nanoseconds.
#[derive(Debug, Clone, PartialEq)]
struct Span {
    tid: u64,
    kind: String,
    name: String,
    begin: u64,
    end: u64,
    args: Value,
}

fn spans(trace: &Value) -> Vec<Span> {
    let ns = |value: &Value| (value.as_f64().expect("a number") * 1e3).round() as u64;
    let word = |value: &Value| value.as_str().expect("a text").to_string();
    let all = trace["traceEvents"].as_array().expect("a list").iter();
    all.filter(|event| event["ph"] == "X")
        .map(|event| Span {
            tid: event["tid"].as_u64().expect("a number"),
            kind: word(&event["cat"]),
            name: word(&event["name"]),
            begin: ns(&event["ts"]),
            end: ns(&event["ts"]) + ns(&event["dur"]),
            args: event["args"].clone(),
        })
        .collect()
}

/// Spans of one thread lie inside each other or apart, as the format wants it.
fn assert_nested(spans: &[Span]) {
    let mut by_thread: BTreeMap<u64, Vec<&Span>> = BTreeMap::new();
    spans.iter().for_each(|span| by_thread.entry(span.tid).or_default().push(span));
    for mut all in by_thread.into_values() {
        all.sort_by_key(|span| (span.begin, std::cmp::Reverse(span.end)));
        let mut open: Vec<&Span> = Vec::new();
        for span in all {
            while open.last().is_some_and(|outer| outer.end <= span.begin) {
                open.pop();
            }
            if let Some(outer) = open.last() {
                assert!(span.end <= outer.end, "{span:?} crosses the end of {outer:?}");
            }
            open.push(span);
        }
    }
}

/// Spans of one kind do not overlap, though two may touch.
fn assert_apart(spans: &[&Span]) {
    for pair in spans.windows(2) {
        assert!(pair[0].end <= pair[1].begin, "{:?} overlaps {:?}", pair[0], pair[1]);
    }
}

#[test]
fn a_trace_nests_and_names_layers() {
    let bench = Bench::new(10);
    let more = [QUICK, &["--profile"]].concat();
    let output = bench.train("run", &more).output().expect("started");
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for word in ["profile of 3 steps", "trace.json", "layers.1.mlp", "attention", "GB/s"] {
        assert!(text.contains(word), "no {word}: {text}");
    }
    let trace: Value = serde_json::from_slice(&bytes(bench.path("run/trace.json"))).expect("JSON");
    let all = spans(&trace);
    assert_nested(&all);
    let of = |kind: &str| all.iter().filter(|span| span.kind == kind).collect::<Vec<_>>();
    let (steps, layers, ops, host) = (of("step"), of("layer"), of("op"), of("host"));
    [&steps, &layers, &ops, &host].into_iter().for_each(|spans| assert_apart(spans));
    assert_eq!((steps.len(), host.len()), (3, 6));
    for name in ["patch_embed", "layers.0.self_attn", "layers.1.mlp", "layers.1.self_attn backward"]
    {
        assert!(layers.iter().any(|span| span.name == name), "no {name}");
    }
    // Every op lies in a span of its layer, and every layer in a step's.
    let inside = |outer: &[&Span], inner: &Span| {
        outer.iter().any(|o| o.begin <= inner.begin && inner.end <= o.end)
    };
    for op in &ops {
        let own: Vec<&Span> = layers
            .iter()
            .copied()
            .filter(|layer| op.args["layer"] == layer.name.as_str())
            .collect();
        assert!(inside(&own, op), "{op:?}");
        assert!(op.args["bytes_in_use"].as_u64() > Some(0), "{op:?}");
    }
    assert!(layers.iter().all(|layer| inside(&steps, layer)));
    assert!(
        ops.iter().any(|op| op.name == "attention" && op.args["layer"] == "layers.1.self_attn")
    );
    // The ops' times make up most of a step, and the host took at least as long.
    let sum = |spans: &[&Span]| spans.iter().map(|span| span.end - span.begin).sum::<u64>();
    let (step, op, host) = (sum(&steps), sum(&ops), sum(&host));
    assert!(op <= step && step <= host, "ops {op} ns, steps {step} ns, host {host} ns");
    assert!(2 * op > step, "ops {op} ns of steps' {step} ns");
}

#[test]
fn a_profile_changes_no_weight() {
    let bench = Bench::new(10);
    let run = |name: &str, more: &[&str]| {
        let run = bench.trained(name, &[QUICK, &["--quiet"], more].concat());
        (bytes(run.join("checkpoints/last.safetensors")), run.join("trace.json").exists())
    };
    let (plain, no_trace) = run("plain", &[]);
    let (profiled, trace) = run("profiled", &["--profile"]);
    assert!(plain == profiled && !no_trace && trace);
    // One step is all there is to profile.
    let (_, trace) = run("short", &["--profile", "--max-steps", "1", "train.warmup=0"]);
    assert!(trace);
}

#[test]
fn a_profile_is_an_event_in_json() {
    let bench = Bench::new(10);
    let more = [QUICK, &["--profile", "--profile", "cpu", "--json"]].concat();
    let output = bench.train("run", &more).output().expect("started");
    assert!(output.status.success(), "{}", said(&output));
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let mut events = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let profile = events.find(|event| event["event"] == "profile").expect("one");
    assert_eq!(profile["steps"], 3);
    let sum = |list: &str| -> f64 {
        let all = profile[list].as_array().expect("a list").iter();
        all.map(|one| one["forward_ms"].as_f64().unwrap() + one["backward_ms"].as_f64().unwrap())
            .sum()
    };
    let whole = profile["step_ms"].as_f64().expect("a number");
    for list in ["ops", "layers"] {
        assert!((sum(list) - whole).abs() < 1e-6 * whole, "{list}: {} of {whole}", sum(list));
    }
    let optimizer = profile["layers"].as_array().expect("a list").last().expect("some");
    assert_eq!(optimizer["name"], "optimizer");
}
