//! docs/weights.md, proved: a checkpoint of `engine train` in PyTorch gives the engine's outputs,
//! weights of PyTorch in the engine give PyTorch's, and `--init` takes them.
//!
//! Needs a Python with torch and safetensors in `ENGINE_PYTHON`; skipped, aloud, without.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use engine::DType;
use engine::backend::cpu::Cpu;
use engine::data::rng::Rng;
use engine::data::synth;
use engine::ops::loss::Pointwise;
use engine::optim::Rule;
use engine::train::checkpoint_file::{Checkpoint, Dtype};
use engine::train::state::Loaded;
use engine::train::step::{Objective, Step, StepSpec};

/// More than one batch of evaluation, and no multiple of it.
const WINDOWS: usize = 37;

/// The Python of `ENGINE_PYTHON`, where it has torch.
fn python() -> Option<PathBuf> {
    let Some(python) = std::env::var_os("ENGINE_PYTHON").map(PathBuf::from) else {
        eprintln!("skipped: ENGINE_PYTHON names no Python with torch and safetensors");
        return None;
    };
    let has = Command::new(&python).args(["-c", "import torch, safetensors"]).output();
    if has.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    eprintln!("skipped: {} has no torch or no safetensors", python.display());
    None
}

fn succeed(command: &mut Command) {
    let output = command.output().expect("starts");
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

fn check(python: &Path, command: &str, paths: &[&Path]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/weights_torch.py");
    succeed(Command::new(python).arg(script).arg(command).args(paths));
}

/// A small generated dataset.
fn dataset(dir: &Path) {
    let settings = synth::Settings {
        subjects: 13,
        seconds_per_condition: 7,
        n_channels: 19,
        seed: 5,
        ..synth::Settings::default()
    };
    let written = synth::write(&settings, dir, &|_, _| {}, &AtomicBool::new(false));
    assert!(written.expect("writes").is_complete);
}

/// A short training of the program; gives its best checkpoint.
fn train(root: &Path, run: &str, flags: &[&str]) -> PathBuf {
    let cache = format!("data.cache_dir={}", root.join("cache").display());
    let dir = root.join(run);
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.arg("train").arg("--data").arg(root.join("data")).arg("--run").arg(&dir);
    command.args(["--quiet", "--batch", "8", "--set", &cache, "--set", "model.d_model=24"]);
    command.args(["--set", "model.n_heads=3", "--set", "model.patch=5"]);
    succeed(command.args(flags));
    dir.join("checkpoints/best.safetensors")
}

/// The model a checkpoint describes, with the weights of another one.
fn model(described_by: &Path, weights: &Path) -> Step {
    let about = Loaded::open(described_by).and_then(|l| l.about()).expect("says its model");
    let spec = StepSpec {
        model: about.model,
        batch: 1,
        accumulation: 1,
        eval_batch: 8,
        objective: Objective::Pointwise(Pointwise::Mse),
        rule: Rule::Sgd { momentum: 0.0, nesterov: false },
        average: false,
        dtype: DType::F32,
        compute: None,
        seed: 2,
    };
    let step = Step::new(Arc::new(Cpu::new(1, 1 << 30).expect("starts")), spec).expect("builds");
    Loaded::open(weights).and_then(|l| l.restore(step.params())).expect("fits");
    step
}

/// Windows and the engine's outputs of them, for Python to compare.
fn write_pairs(step: &Step, path: &Path) {
    let (channels, time, outputs) = step.spec().model.extents();
    let mut rng = Rng::new(17, 0);
    let windows: Vec<f32> = (0..WINDOWS * channels * time).map(|_| rng.normal() as f32).collect();
    let found = step.evaluate(&windows).expect("evaluates");
    let mut pairs = Checkpoint::default();
    for (name, shape, values) in [
        ("windows", vec![WINDOWS, channels, time], &windows),
        ("outputs", vec![WINDOWS, outputs], &found),
    ] {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        pairs.insert(name, Dtype::F32, &shape, bytes).expect("holds");
    }
    pairs.save(path).expect("saves");
}

fn floats(pairs: &Checkpoint<'_>, name: &str) -> Vec<f32> {
    let words = pairs.tensors[name].bytes.chunks_exact(4);
    words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn round_trip(name: &str, target: &str) {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().expect("a folder");
    let root = root.path();
    dataset(&root.join("data"));
    let flags = ["--model", name, "--target", target];
    let first = train(root, "first", &[&flags[..], &["--max-steps", "7"]].concat());

    let step = model(&first, &first);
    let pairs = root.join("engine.safetensors");
    write_pairs(&step, &pairs);
    check(&python, "forward", &[&first, &pairs]);

    let (init, pairs) = (root.join("init.safetensors"), root.join("torch.safetensors"));
    check(&python, "make", &[&first, &init, &pairs]);
    let step = model(&first, &init);
    let pairs = Checkpoint::load(&pairs).expect("reads");
    let found = step.evaluate(&floats(&pairs, "windows")).expect("evaluates");
    let expected = floats(&pairs, "outputs");
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0f32, |most, x| most.max(x.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 2e-4 * largest, "{found} for {expected}");
    }

    let still = ["--lr", "1e-9", "--set", "train.min_lr=0", "--set", "train.weight_decay=0"];
    let start = ["--max-steps", "1", "--init", init.to_str().expect("UTF-8")];
    let tuned = train(root, "tuned", &[&flags[..], &still, &start].concat());
    check(&python, "kept", &[&init, &tuned]);
}

#[test]
fn the_transformer_walks_both_ways() {
    round_trip("eegformer", "age");
}

#[test]
fn the_convolutional_model_walks_both_ways() {
    round_trip("shallow", "sex");
}
