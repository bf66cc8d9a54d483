//! The whole training step on the CPU, for each profile, beside PyTorch's eager step on the same
//! machine and threads.
//!
//! `cargo bench --bench step`. PyTorch runs when `ENGINE_PYTHON` names a Python that has it
//! (`benches/peers/requirements.txt`); `ENGINE_BENCH_THREADS` sets the threads of both (default 2).

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use engine::DType;
use engine::backend::Backend;
use engine::backend::cpu::Cpu;
use engine::data::rng::Rng;
use engine::model::{EegFormerConfig, ModelConfig};
use engine::ops::loss::Pointwise;
use engine::optim::{Control, Rates, Rule};
use engine::train::step::{Objective, Step, StepSpec};

const PROFILES: [(&str, usize, usize, usize); 2] = [("rx5600xt", 96, 6, 4), ("rtx3060", 128, 8, 6)];
const BATCH: usize = 8;

fn threads() -> usize {
    std::env::var("ENGINE_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

fn step(d_model: usize, n_heads: usize, n_layers: usize, cpu: Arc<Cpu>) -> Step {
    let model = EegFormerConfig { d_model, n_heads, n_layers, ..EegFormerConfig::default() };
    let (channels, window) = (model.n_channels, model.window);
    let spec = StepSpec {
        model: ModelConfig::EegFormer(model),
        batch: BATCH,
        accumulation: 1,
        eval_batch: 0,
        objective: Objective::Pointwise(Pointwise::Mse),
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
        average: false,
        dtype: DType::F32,
        compute: None,
        seed: 1,
    };
    let step = Step::new(cpu, spec).expect("builds");
    let mut rng = Rng::new(3, 0);
    let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>();
    step.load_windows(&draw(BATCH * channels * window)).expect("fits");
    step.load_targets(&draw(BATCH)).expect("fits");
    step
}

fn run(step: &Step, i: u64) {
    let control = Control { step: i, clip: 1.0, loss_scale: 1.0, average: 0.0 };
    let rates = |_| Rates { lr: 1e-3, decay: 0.01, trained: true };
    step.train(1, control, rates).expect("runs");
}

/// PyTorch's eager step, in a process that waits for its turns.
struct Peer {
    process: Child,
    turns: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Where there is a PyTorch: warm, when this returns.
    fn start(profile: &str) -> Option<Self> {
        let python = std::env::var("ENGINE_PYTHON").ok()?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/step_cpu.py");
        let mut process = Command::new(python)
            .args([script, "--turns", "--profile", profile, "--threads", &threads().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let (turns, answers) = (process.stdin.take()?, BufReader::new(process.stdout.take()?));
        let mut peer = Self { process, turns, answers };
        (peer.line()?.trim() == "ready").then_some(peer)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).ok()?;
        Some(line)
    }

    /// Milliseconds of each of some steps.
    fn turn(&mut self, steps: usize) -> Option<Vec<f64>> {
        writeln!(self.turns, "{steps}").ok()?;
        serde_json::from_str(&self.line()?).ok()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Turns of both, and steps in each.
const TURNS: usize = 20;
const STEPS: usize = 3;

/// Own steps and PyTorch's by turns: what else the machine does, and how fast it is just then, meets
/// both. The ratio is the median of the turns'.
fn compare(name: &str, step: &Step) {
    let mut peer = Peer::start(name);
    let (mut own, mut others, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        // OpenMP's threads spin for a while before they sleep.
        std::thread::sleep(Duration::from_millis(20));
        let turn: Vec<f64> = (0..STEPS)
            .map(|i| {
                let start = Instant::now();
                run(step, i as u64 + 1);
                black_box(step.loss().expect("reads"));
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        if let Some(other) = peer.as_mut().and_then(|peer| peer.turn(STEPS)) {
            ratios.push(middle(other.clone()) / middle(turn.clone()));
            others.extend(other);
        }
        own.extend(turn);
    }
    let own = middle(own);
    if ratios.len() < TURNS {
        return println!("step/{name}: engine {own:.1} ms; no PyTorch at ENGINE_PYTHON");
    }
    println!(
        "step/{name}: engine {own:.1} ms, PyTorch eager {:.1} ms, {:.2}x, {} threads",
        middle(others),
        middle(ratios),
        threads()
    );
}

/// Where the time goes, in milliseconds a step.
fn print_profile(cpu: &Cpu, step: &Step) {
    let runs = 10;
    run(step, 1);
    cpu.timings(true).expect("starts");
    (0..runs).for_each(|i| run(step, i + 1));
    let mut ops: BTreeMap<&str, (u64, f64)> = BTreeMap::new();
    for timed in cpu.timings(false).expect("runs").unwrap_or_default() {
        let (count, ms) = ops.entry(timed.op).or_default();
        (*count, *ms) = (*count + 1, *ms + timed.ms);
    }
    let mut ops: Vec<_> = ops.into_iter().collect();
    ops.sort_by(|(_, (_, a)), (_, (_, b))| b.total_cmp(a));
    for (name, (count, ms)) in ops {
        let each = ms / runs as f64;
        println!("  {name:<24} {:>4} runs {each:8.3} ms", count / runs);
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    for (name, d_model, n_heads, n_layers) in PROFILES {
        let cpu = Arc::new(Cpu::new(threads(), 8 << 30).expect("starts"));
        let step = step(d_model, n_heads, n_layers, Arc::clone(&cpu));
        print_profile(&cpu, &step);
        let mut i = 0;
        criterion.bench_function(&format!("step/{name}/batch {BATCH}"), |bencher| {
            bencher.iter(|| {
                i += 1;
                run(&step, i);
                black_box(step.loss().expect("reads"))
            });
        });
        compare(name, &step);
    }
    criterion.final_summary();
}
