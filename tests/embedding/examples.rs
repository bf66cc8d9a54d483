//! The examples: they build by the documents' commands and give the program's numbers.

use std::path::Path;
use std::process::Command;

use crate::fixture::{expect_predictions, folder, have, prefix, root, run, trained};
use crate::linking::examples_in_c;

/// Runs the three programs of a language. `program` gives the command of one of them.
fn three(language: &str, program: impl Fn(&str) -> Command) {
    run(&mut program("kernels"));
    let checkpoint = folder("checkpoints").join(format!("{language}.safetensors"));
    let losses = run(program("train").arg(&checkpoint));
    expect_losses(language, &losses);
    run(crate::fixture::engine().arg("devices")); // The program itself still starts beside it.
    let fixture = trained();
    expect_predictions(
        language,
        &run(program("predict").arg(&fixture.run).arg(&fixture.recording)),
    );
}

/// The losses of examples/c/train.c by the engine's Rust functions: every language takes the same steps.
fn expect_losses(language: &str, printed: &str) {
    let found: Vec<f64> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("step ")?.split_once(" loss ")?.1.parse().ok())
        .collect();
    let expected = losses();
    assert_eq!(found.len(), expected.len(), "{language}:\n{printed}");
    for (found, expected) in found.iter().zip(&expected) {
        // sin, cosh and tanh are each language's own.
        let error = (found - expected).abs() / expected;
        assert!(error < 1e-4, "{language}: {found} is not {expected}");
    }
    eprintln!("{language}: losses {found:?}");
}

/// Numbers as `draw` of examples/c/check.h.
struct Draw(u32);

impl Draw {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / 8_388_608.0 - 1.0
    }
}

/// The losses that examples/c/train.c prints, in Rust.
fn losses() -> Vec<f64> {
    use engine::optim::{Control, Rates, Rule};
    use engine::train::step::{Objective, Step, StepSpec};
    let (batch, channels, window) = (8, 4, 32);
    let config = engine::model::EegFormerConfig {
        n_channels: channels,
        window,
        d_model: 16,
        n_heads: 2,
        n_layers: 1,
        patch: 4,
        ..Default::default()
    };
    let spec = StepSpec {
        model: engine::model::ModelConfig::EegFormer(config),
        batch,
        accumulation: 1,
        eval_batch: 0,
        objective: Objective::Pointwise(engine::ops::loss::Pointwise::Mse),
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 },
        average: false,
        dtype: engine::DType::F32,
        compute: None,
        seed: 7,
    };
    let cpu = engine::backend::cpu::Cpu::new(0, 1 << 30).expect("starts");
    let step = Step::new(std::sync::Arc::new(cpu), spec).expect("is built");
    let (mut draw, mut losses) = (Draw(5), Vec::new());
    for i in 0..60 {
        let (mut windows, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..batch {
            let strength = draw.next();
            targets.push(strength);
            for c in 0..channels {
                for t in 0..window {
                    let wave = if c == 0 { strength * (0.6 * t as f32).sin() } else { 0.0 };
                    windows.push(wave + 0.1 * draw.next());
                }
            }
        }
        step.load_windows(&windows).expect("fits");
        let control = Control { step: i + 1, clip: 1.0, loss_scale: 1.0, average: 0.0 };
        let rates = |_| Rates { lr: 3e-3, decay: 0.0, trained: true };
        let loss = if i < 40 {
            step.load_targets(&targets).expect("fits");
            step.train(7, control, rates).expect("trains");
            step.loss().expect("is there")
        } else {
            let log_cosh = |outputs: &[f32], gradient: &mut [f32]| {
                let n = outputs.len() as f64;
                let errors = outputs.iter().zip(&targets).map(|(o, t)| f64::from(o - t));
                let pairs = errors.zip(gradient).map(|(error, gradient)| {
                    *gradient = (error.tanh() / n) as f32;
                    error.cosh().ln() / n
                });
                Ok(pairs.sum())
            };
            step.train_with(7, control, rates, log_cosh).expect("trains")
        };
        if i % 10 == 9 {
            losses.push(loss);
        }
    }
    losses
}

#[test]
fn c() {
    for shared in [false, true] {
        let Some(programs) = examples_in_c(shared) else { return };
        let name = if shared { "C, libengine.so" } else { "C, libengine.a" };
        three(name, |program| Command::new(programs.join(program)));
    }
}

#[test]
fn cpp() {
    let Some(cmake) = cmake() else {
        eprintln!("skipped: no cmake (Debian: apt-get install cmake; pip install cmake)");
        return;
    };
    if !have("c++", "build-essential") {
        return;
    }
    let build = folder("cpp");
    run(Command::new(&cmake)
        .arg("-S")
        .arg(root().join("examples/cpp"))
        .arg("-B")
        .arg(&build)
        .arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display())));
    run(Command::new(&cmake).arg("--build").arg(&build));
    three("C++", |program| Command::new(build.join(program)));
}

/// cmake on the path, or beside the Python of the oracles.
fn cmake() -> Option<std::path::PathBuf> {
    let beside = std::env::var_os("ENGINE_PYTHON").and_then(|python| {
        Some(Path::new(&python).parent()?.join("cmake")).filter(|path| path.is_file())
    });
    let on_path = Command::new("cmake").arg("--version").output().is_ok().then(|| "cmake".into());
    on_path.or(beside)
}

/// An example in Rust, by the documents' command.
pub fn rust_example(name: &str) -> Command {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("below target");
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--release", "--example", name, "--"]);
    command.current_dir(root()).env("CARGO_TARGET_DIR", target);
    command
}

#[test]
fn rust() {
    run(&mut rust_example("custom_layer"));
    run(&mut rust_example("custom_op"));
    let fixture = trained();
    let mut command = rust_example("predict");
    let printed = run(command.arg(&fixture.run).arg(&fixture.recording));
    expect_predictions("Rust", &printed);
}

#[test]
fn python() {
    let python = std::env::var("ENGINE_PYTHON").unwrap_or_else(|_| "python3".into());
    let numpy = Command::new(&python).args(["-c", "import numpy, pip"]).output();
    if !numpy.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "skipped: no {python} with numpy and pip (Debian: apt-get install python3-numpy)"
        );
        return;
    }
    let site = folder("python-site");
    std::fs::remove_dir_all(&site).expect("an old one can be removed");
    let library = prefix().join("lib/libengine.so");
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--no-build-isolation", "--target"])
        .arg(&site)
        .arg(root().join("python"))
        .env("ENGINE_LIBRARY", library));
    let script = |path: std::path::PathBuf| {
        let mut command = Command::new(&python);
        command.arg("-W").arg("error").arg(path).env("PYTHONPATH", &site);
        command
    };
    three("Python", |name| script(root().join(format!("examples/python/{name}.py"))));
    eprint!("{}", run(&mut script(root().join("python/tests/test_arrays.py"))));
}
