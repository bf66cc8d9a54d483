//! Where a step's time and memory go: a few updates of a training are run op by op, and told as a
//! table by op, one by layer, and a trace for <https://ui.perfetto.dev>.
//!
//! The format: "Trace Event Format" (Google, 2016): complete events ("X") that nest within a thread,
//! times in microseconds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::results::write_text;
use crate::Result;
use crate::backend::{Backend, Timed};
use crate::console::Console;

/// Steps before the first one that is profiled: they load kernels and touch memory for the first time.
const WARM_UP: u64 = 2;
/// Steps that are profiled, every other one.
const STEPS: usize = 3;

/// How the tape marks ops of the backward pass.
const BACKWARD: &str = " backward";
/// The layer of what belongs to none: gradients set to zero, copies of the weights.
const NO_LAYER: &str = "step";

/// Threads of the trace.
const DEVICE: u32 = 1;
const HOST: u32 = 2;

/// One profiled update.
#[derive(Debug)]
struct Profiled {
    step: u64,
    /// When the host began with it, had enqueued it, and knew that it was done; nanoseconds.
    host: [u64; 3],
    ops: Vec<Timed>,
}

/// Times some of a training's updates. They are updates as any other, bit for bit.
#[derive(Debug)]
pub struct Profiler {
    /// The trace's file; None: nothing is wanted, or all is told.
    path: Option<PathBuf>,
    device: String,
    start: Instant,
    warm_up: u64,
    seen: u64,
    begun: Option<u64>,
    steps: Vec<Profiled>,
}

impl Profiler {
    /// A profile of a training of `updates` updates on `device`, to be written to `path`, where one is
    /// wanted.
    pub fn new(path: Option<PathBuf>, device: &str, updates: u64) -> Self {
        Self {
            path,
            device: device.into(),
            start: Instant::now(),
            warm_up: WARM_UP.min(updates.saturating_sub(1)),
            seen: 0,
            begun: None,
            steps: Vec::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Before anything of the next update is enqueued.
    ///
    /// # Errors
    /// As [`Backend::timings`].
    pub fn begin(&mut self, backend: &dyn Backend) -> Result<()> {
        // Every other one: the one between keeps a card busy while ops are enqueued, which takes
        // the host longer than launching a recorded step.
        let wanted = self.seen >= self.warm_up && (self.seen - self.warm_up).is_multiple_of(2);
        self.seen += 1;
        if wanted && self.path.is_some() {
            backend.enter("windows");
            backend.timings(true)?;
            self.begun = Some(self.now());
        }
        Ok(())
    }

    /// After update number `step` was enqueued. Waits for it where it is profiled; after the last such
    /// update, writes and says what was found.
    ///
    /// # Errors
    /// As [`Backend::timings`] and [`Profiler::finish`].
    pub fn end(&mut self, backend: &dyn Backend, step: u64, console: &Console) -> Result<()> {
        let Some(begun) = self.begun.take() else { return Ok(()) };
        let enqueued = self.now();
        let ops = backend.timings(false)?.unwrap_or_default();
        backend.enter("");
        self.steps.push(Profiled { step, host: [begun, enqueued, self.now()], ops });
        if self.steps.len() < STEPS { Ok(()) } else { self.finish(console) }
    }

    /// Writes the trace and says where time and memory go, where that is wanted and was not done yet.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a file that cannot be written.
    pub fn finish(&mut self, console: &Console) -> Result<()> {
        let Some(path) = self.path.take().filter(|_| !self.steps.is_empty()) else { return Ok(()) };
        write_text(&path, &self.trace().to_string())?;
        let found = Sums::of(&self.steps);
        console.say(&found.text(&path));
        console.event("profile", &found.json(&path));
        Ok(())
    }

    /// The steps as a trace: on the device's thread steps, in them layers, in those ops; beside it the
    /// host's, and the memory in use.
    fn trace(&self) -> Value {
        let name = |tid: u32, name: &str| {
            let args = json!({ "name": name });
            json!({ "ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": args })
        };
        let mut events = vec![name(DEVICE, &self.device), name(HOST, "host")];
        for profiled in &self.steps {
            profiled.trace(&mut events);
        }
        json!({ "displayTimeUnit": "ms", "traceEvents": events })
    }
}

/// A span of `[begin, end]`, nanoseconds.
fn span(tid: u32, kind: &str, name: &str, [begin, end]: [u64; 2], args: Value) -> Value {
    let us = |ns: u64| ns as f64 / 1e3;
    json!({
        "ph": "X", "pid": 1, "tid": tid, "cat": kind, "name": name, "args": args,
        "ts": us(begin), "dur": us(end - begin)
    })
}

/// The layer of a scope, and whether it is the backward pass' part of it.
pub(super) fn layer_of(scope: &str) -> (&str, bool) {
    let (layer, backward) =
        scope.strip_suffix(BACKWARD).map_or((scope, false), |layer| (layer, true));
    (if layer.is_empty() { NO_LAYER } else { layer }, backward)
}

impl Profiled {
    /// Begin and end of each op on the host's clock, nanoseconds. The card's clock is another: the host
    /// knew of the last op's end right after it.
    fn spans(&self) -> Vec<[u64; 2]> {
        let ns = |ms: f64| (ms * 1e6).round().max(0.0) as u64;
        let ends = |op: &Timed| [ns(op.start_ms), ns(op.start_ms + op.ms)];
        let last = self.ops.last().map_or(0, |op| ends(op)[1]);
        let first = self.host[2].saturating_sub(last);
        self.ops.iter().map(|op| ends(op).map(|at| first + at)).collect()
    }

    fn trace(&self, events: &mut Vec<Value>) {
        let spans = self.spans();
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return };
        let step = format!("step {}", self.step);
        events.push(span(DEVICE, "step", &step, [first[0], last[1]], json!({})));
        let mut at = 0;
        for ops in self.ops.chunk_by(|a, b| a.scope == b.scope) {
            let within = &spans[at..at + ops.len()];
            at += ops.len();
            let (layer, backward) = layer_of(&ops[0].scope);
            let name = format!("{layer}{}", if backward { BACKWARD } else { "" });
            let all = [within[0][0], within[ops.len() - 1][1]];
            events.push(span(DEVICE, "layer", &name, all, json!({})));
            for (op, &span_of) in ops.iter().zip(within) {
                let args =
                    json!({ "layer": name, "operand_bytes": op.bytes, "bytes_in_use": op.live });
                events.push(span(DEVICE, "op", op.op, span_of, args));
                events.push(json!({
                    "ph": "C", "pid": 1, "tid": DEVICE, "name": "memory in use",
                    "ts": span_of[0] as f64 / 1e3, "args": { "bytes": op.live }
                }));
            }
        }
        let [begun, enqueued, done] = self.host;
        events.push(span(
            HOST,
            "host",
            &format!("fill and enqueue {step}"),
            [begun, enqueued],
            json!({}),
        ));
        events.push(span(HOST, "host", &format!("wait for {step}"), [enqueued, done], json!({})));
    }
}

/// What is known of one op, or of one layer, over all profiled steps.
#[derive(Debug, Default, Clone)]
struct Sum {
    runs: usize,
    ms: f64,
    backward_ms: f64,
    bytes: u64,
    /// Most bytes in use.
    live: u64,
}

impl Sum {
    fn add(&mut self, op: &Timed, backward: bool) {
        self.runs += 1;
        *(if backward { &mut self.backward_ms } else { &mut self.ms }) += op.ms;
        self.bytes += op.bytes;
        self.live = self.live.max(op.live);
    }

    fn total(&self) -> f64 {
        self.ms + self.backward_ms
    }

    /// GB/s at which operands passed.
    fn rate(&self) -> f64 {
        if self.total() > 0.0 { self.bytes as f64 / 1e6 / self.total() } else { 0.0 }
    }
}

/// Sums by op, the slowest first, and by layer, in the order of the model.
#[derive(Debug)]
struct Sums {
    steps: usize,
    ops: Vec<(String, Sum)>,
    layers: Vec<(String, Sum)>,
}

impl Sums {
    fn of(steps: &[Profiled]) -> Self {
        let mut ops: BTreeMap<&str, Sum> = BTreeMap::new();
        let mut layers: Vec<(String, Sum)> = Vec::new();
        for op in steps.iter().flat_map(|profiled| &profiled.ops) {
            let (layer, backward) = layer_of(&op.scope);
            ops.entry(op.op).or_default().add(op, backward);
            let at = layers.iter().position(|(name, _)| name == layer).unwrap_or_else(|| {
                layers.push((layer.into(), Sum::default()));
                layers.len() - 1
            });
            layers[at].1.add(op, backward);
        }
        let mut ops: Vec<(String, Sum)> =
            ops.into_iter().map(|(name, sum)| (name.into(), sum)).collect();
        ops.sort_by(|a, b| b.1.total().total_cmp(&a.1.total()));
        Self { steps: steps.len(), ops, layers }
    }

    fn total(&self) -> f64 {
        self.ops.iter().map(|(_, sum)| sum.total()).sum()
    }

    fn text(&self, path: &Path) -> String {
        let (n, total) = (self.steps as f64, self.total());
        let share = |ms: f64| if total > 0.0 { 100.0 * ms / total } else { 0.0 };
        let mut text = format!(
            "profile of {} steps, each {:.3} ms run op by op; {} opens in ui.perfetto.dev\n",
            self.steps,
            total / n,
            path.display()
        );
        let row = |text: &mut String, cells: [&str; 7]| {
            let [name, rest @ ..] = cells;
            let _ = write!(text, "  {name:<28}");
            rest.iter().for_each(|cell| {
                let _ = write!(text, "{cell:>13}");
            });
            text.push('\n');
        };
        let heading = ["ms", "share", "runs", "operands", "GB/s", "most in use"];
        let [ms, of_all, runs, operands, rate, live] = heading;
        row(&mut text, ["op", ms, of_all, runs, operands, rate, live]);
        let mb = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
        for (name, sum) in &self.ops {
            let cells = [
                format!("{:.3}", sum.total() / n),
                format!("{:.1} %", share(sum.total())),
                (sum.runs / self.steps).to_string(),
                mb(sum.bytes as f64 / n),
                format!("{:.1}", sum.rate()),
                mb(sum.live as f64),
            ];
            let [a, b, c, d, e, f] = cells.each_ref().map(String::as_str);
            row(&mut text, [name, a, b, c, d, e, f]);
        }
        row(&mut text, ["layer", ms, of_all, "forward", "backward", operands, live]);
        for (name, sum) in &self.layers {
            let cells = [
                format!("{:.3}", sum.total() / n),
                format!("{:.1} %", share(sum.total())),
                format!("{:.3}", sum.ms / n),
                format!("{:.3}", sum.backward_ms / n),
                mb(sum.bytes as f64 / n),
                mb(sum.live as f64),
            ];
            let [a, b, c, d, e, f] = cells.each_ref().map(String::as_str);
            row(&mut text, [name, a, b, c, d, e, f]);
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn json(&self, path: &Path) -> Value {
        let n = self.steps as f64;
        let list = |sums: &[(String, Sum)]| -> Vec<Value> {
            let one = |(name, sum): &(String, Sum)| {
                json!({
                    "name": name, "runs": sum.runs / self.steps, "forward_ms": sum.ms / n,
                    "backward_ms": sum.backward_ms / n, "operand_bytes": sum.bytes / self.steps as u64,
                    "most_bytes_in_use": sum.live
                })
            };
            sums.iter().map(one).collect()
        };
        json!({
            "steps": self.steps, "step_ms": self.total() / n, "trace": path,
            "ops": list(&self.ops), "layers": list(&self.layers)
        })
    }
}
