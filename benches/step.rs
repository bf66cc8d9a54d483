//! The whole training step on the CPU, for each profile, beside PyTorch's eager step on the same
//! machine and threads.
//!
//! `cargo bench --bench step`. PyTorch runs when `ENGINE_PYTHON` names a Python that has it
//! (`benches/peers/requirements.txt`); `ENGINE_BENCH_THREADS` sets the threads of both (default 2).

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::Command;
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

/// Median milliseconds of PyTorch's eager step, where there is a PyTorch.
fn peer(profile: &str) -> Option<f64> {
    let python = std::env::var("ENGINE_PYTHON").ok()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/step_cpu.py");
    let threads = threads().to_string();
    let out = Command::new(python)
        .args([script, "--threads", &threads, "--profile", profile])
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let line = text.lines().rfind(|line| line.starts_with('{'))?;
    serde_json::from_str::<serde_json::Value>(line).ok()?.get("median_ms")?.as_f64()
}

fn median(step: &Step, runs: u64) -> f64 {
    let mut times: Vec<Duration> = (0..runs)
        .map(|i| {
            let start = Instant::now();
            run(step, i + 1);
            black_box(step.loss().expect("reads"));
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
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
        let before = median(&step, 15);
        match peer(name) {
            Some(peer) => {
                // Before and after the peer, so that a machine that slows down shows.
                let own = 0.5 * (before + median(&step, 15));
                println!(
                    "step/{name}: engine {own:.1} ms, PyTorch eager {peer:.1} ms, {:.2}x, {} threads",
                    peer / own,
                    threads()
                );
            }
            None => println!("step/{name}: engine {before:.1} ms; no PyTorch at ENGINE_PYTHON"),
        }
    }
    criterion.final_summary();
}
