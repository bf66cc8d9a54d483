//! Every op, forward and backward: f64 against central differences, every other precision against
//! f64.

mod cases;

use std::sync::Arc;

use cases::{Case, Draw};
use engine::backend::Backend;
use engine::backend::cpu::Cpu;
use engine::backend::gpu::cuda::{self, Cuda};
use engine::backend::gpu::driver::Driver;
use engine::backend::gpu::Gpu;
use engine::backend::route::with_wishes;
use engine::config::Gemm;
use engine::data::rng::Rng;
use engine::nn::params::{Builder, Params};
use engine::ops::philox;
use engine::{DType, Tape, Tensor, Var};
use half::{bf16, f16};

/// Result of a case and the gradient of each differentiated operand, widened.
struct Outcome {
    output: Vec<f64>,
    grads: Vec<Vec<f64>>,
}

/// A tensor of `values` in `dtype`; rounded on the host, whatever the backend.
fn upload(params: &Params, shape: &[usize], values: &[f64], dtype: DType) -> Tensor {
    let backend = params.backend();
    let tensor = match dtype {
        DType::F64 => backend.tensor(shape, values, "operand"),
        DType::F32 => backend.tensor(shape, &each(values, |x| x as f32), "operand"),
        DType::Bf16 => backend.tensor(shape, &each(values, bf16::from_f64), "operand"),
        DType::F16 => backend.tensor(shape, &each(values, f16::from_f64), "operand"),
        DType::I32 => backend.tensor(shape, &each(values, |x| x as i32), "operand"),
    };
    tensor.expect("fits")
}

fn each<T>(values: &[f64], f: impl Fn(f64) -> T) -> Vec<T> {
    values.iter().map(|&x| f(x)).collect()
}

/// The numbers of a tensor.
fn wide(params: &Params, x: &Tensor) -> Vec<f64> {
    let backend = params.backend();
    match x.dtype() {
        DType::F64 => backend.read::<f64>(x).expect("f64"),
        DType::Bf16 => {
            let read = backend.read::<bf16>(x).expect("bf16");
            read.into_iter().map(bf16::to_f64).collect()
        }
        DType::F16 => {
            let read = backend.read::<f16>(x).expect("f16");
            read.into_iter().map(f16::to_f64).collect()
        }
        _ => backend.read::<f32>(x).expect("f32").into_iter().map(f64::from).collect(),
    }
}

/// Types of a case's operands.
#[derive(Clone, Copy, PartialEq)]
enum Types {
    /// All floats in one.
    Uniform(DType),
    /// As in mixed precision: activations and weights of products in this one, every other parameter
    /// and every parameter's gradient in f32.
    Mixed(DType),
}

impl Types {
    fn of(self, draw: Draw) -> DType {
        match (draw, self) {
            (Draw::Label(_), _) => DType::I32,
            (_, Self::Uniform(DType::F64)) => DType::F64,
            (draw, _) if !draw.differentiated() => DType::F32,
            (Draw::Parameter | Draw::NearOne, Self::Mixed(_)) => DType::F32,
            (_, Self::Uniform(dtype) | Self::Mixed(dtype)) => dtype,
        }
    }

    /// Of the gradient of an operand.
    fn of_gradient(self, draw: Draw) -> DType {
        let parameter = matches!(draw, Draw::Parameter | Draw::NearOne | Draw::Weight);
        if parameter && matches!(self, Self::Mixed(_)) { DType::F32 } else { self.of(draw) }
    }

    /// Of the activations.
    fn main(self) -> DType {
        match self {
            Self::Uniform(dtype) | Self::Mixed(dtype) => dtype,
        }
    }
}

/// Fills memory that later allocations will get with NaN, so that an op that reads what it should
/// have written, or leaves something unwritten, shows.
fn poison(params: &Params) {
    let backend = params.backend();
    drop(backend.tensor([1 << 18], &vec![f32::NAN; 1 << 18], "poison").expect("fits"));
}

fn run(params: &Params, case: &Case, values: &[Vec<f64>], types: Types, dy: &[f64]) -> Outcome {
    let mut leaves = Vec::new();
    let state = philox::state(11, 5);
    let rng = params.backend().tensor([4], &state, "rng").expect("fits");
    let vars: Vec<Var> = case
        .operands
        .iter()
        .zip(values)
        .map(|((shape, draw), values)| {
            let tensor = upload(params, shape, values, types.of(*draw));
            if !draw.differentiated() {
                return Var::constant(tensor);
            }
            let zeros = vec![0.0; values.len()];
            let grad = upload(params, shape, &zeros, types.of_gradient(*draw));
            leaves.push(grad.clone());
            Var::leaf(tensor, grad)
        })
        .collect();
    poison(params);
    let tape = if case.training { Tape::training(params, Some(rng)) } else { Tape::frozen(params) };
    let output = (case.run)(&tape, &vars).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let count = output.tensor().numel();
    let dy = upload(params, output.dims(), &dy[..count], output.dtype());
    tape.backward_from(&output, dy).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    Outcome {
        output: wide(params, output.tensor()),
        grads: leaves.iter().map(|grad| wide(params, grad)).collect(),
    }
}

fn params_on(backend: Arc<dyn Backend>) -> Params {
    Builder::default().build(backend, DType::F32, 0).expect("empty")
}

fn params() -> Params {
    params_on(Arc::new(Cpu::new(2, 1 << 30).expect("starts")))
}

/// The cards that the table runs on: NVIDIA's where one is present, with its own kernels and with
/// those of sm_80.
fn cards() -> Vec<(String, Cuda)> {
    if !cuda::driver_is_present() {
        eprintln!("skipped: the table on CUDA (no NVIDIA driver)");
        return Vec::new();
    }
    let own = Cuda::open(0, None).unwrap_or_else(|error| panic!("{error}"));
    let mut cards = vec![(own.arch().name.clone(), own)];
    if cards[0].0 != "sm_80" {
        let older = Cuda::open(0, Some(80)).unwrap_or_else(|error| panic!("{error}"));
        cards.push((format!("{} as sm_80", cards[0].0), older));
    }
    cards
}

fn draw(case: &Case, rng: &mut Rng) -> (Vec<Vec<f64>>, Vec<f64>) {
    let draw = |(shape, draw): &(Vec<usize>, Draw)| draw.values(shape.iter().product(), rng);
    let values = case.operands.iter().map(draw).collect();
    (values, Draw::Normal.values(1 << 18, rng))
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-3)
}

/// Elements of an operand that are differenced numerically.
const PROBES: usize = 24;

#[test]
fn gradients_match_central_differences() {
    let params = params();
    let mut rng = Rng::new(2026, 1);
    for case in cases::table() {
        let (mut values, dy) = draw(&case, &mut rng);
        let exact = run(&params, &case, &values, Types::Uniform(DType::F64), &dy);
        let differentiated: Vec<usize> =
            (0..values.len()).filter(|&i| case.operands[i].1.differentiated()).collect();
        for (leaf, &operand) in differentiated.iter().enumerate() {
            let n = values[operand].len();
            let probes: Vec<usize> = if n <= PROBES {
                (0..n).collect()
            } else {
                (0..PROBES).map(|_| rng.below(n)).collect()
            };
            let mut numeric = Vec::new();
            for &at in &probes {
                let project = |shift: f64, values: &mut Vec<Vec<f64>>| {
                    let before = values[operand][at];
                    values[operand][at] = before + shift;
                    let output = run(&params, &case, values, Types::Uniform(DType::F64), &dy).output;
                    values[operand][at] = before;
                    output.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
                };
                let h = 1e-3;
                let near = project(h, &mut values) - project(-h, &mut values);
                let far = project(2.0 * h, &mut values) - project(-2.0 * h, &mut values);
                numeric.push((8.0 * near - far) / (12.0 * h));
            }
            let analytic: Vec<f64> = probes.iter().map(|&at| exact.grads[leaf][at]).collect();
            let error = distance(&analytic, &numeric);
            assert!(error < 1e-6, "{}: operand {operand} is off by {error:.1e}", case.name);
        }
    }
}

/// Types and limits of the relative error that every backend keeps.
const PRECISIONS: [(Types, f64); 5] = [
    (Types::Uniform(DType::F32), 1e-5),
    (Types::Uniform(DType::Bf16), 1e-2),
    (Types::Uniform(DType::F16), 1e-2),
    (Types::Mixed(DType::Bf16), 1e-2),
    (Types::Mixed(DType::F16), 1e-2),
];

/// Runs the table on `device` in all of `precisions`, against f64 on the CPU.
fn check_table(name: &str, device: &Params, precisions: &[(Types, f64)], seed: u64) {
    let reference = params();
    let mut rng = Rng::new(2026, seed);
    let mut failed = Vec::new();
    for case in cases::table() {
        let (values, dy) = draw(&case, &mut rng);
        for &(types, limit) in precisions {
            // Both start from the same, rounded, numbers.
            let round = |values: &[f64], dtype: DType| match dtype {
                DType::Bf16 => each(values, |x| f64::from(bf16::from_f64(x))),
                DType::F16 => each(values, |x| f64::from(f16::from_f64(x))),
                _ => values.to_vec(),
            };
            let drawn = values.iter().zip(&case.operands);
            let values: Vec<Vec<f64>> =
                drawn.map(|(values, (_, draw))| round(values, types.of(*draw))).collect();
            let dy = round(&dy, types.main());
            let exact = run(&reference, &case, &values, Types::Uniform(DType::F64), &dy);
            let found = run(device, &case, &values, types, &dy);
            let mut check = |what: &str, found: &[f64], exact: &[f64]| {
                let error = distance(found, exact);
                let mixed = if matches!(types, Types::Mixed(_)) { "mixed " } else { "" };
                let dtype = types.main().name();
                if error.is_nan() || error >= limit {
                    let case = &case.name;
                    failed.push(format!("{case} in {mixed}{dtype}: {what} off by {error:.1e}"));
                }
            };
            check("output", &found.output, &exact.output);
            for (i, (found, exact)) in found.grads.iter().zip(&exact.grads).enumerate() {
                check(&format!("gradient {i}"), found, exact);
            }
        }
    }
    assert!(failed.is_empty(), "on {name}:\n{}", failed.join("\n"));
}

#[test]
fn every_precision_matches_f64() {
    check_table("the CPU", &params(), &PRECISIONS, 2);
}

#[test]
fn cards_match_f64() {
    for (name, card) in cards() {
        let arch = card.arch().clone();
        check_table(&name, &params_on(Arc::new(Gpu::new(card, arch, 4 << 30))), &PRECISIONS, 3);
    }
}

/// Without the vendor's library.
#[test]
fn native_products_match_f64() {
    for (name, card) in cards() {
        let arch = with_wishes(card.arch(), Gemm::Native, &[]).expect("possible");
        check_table(&name, &params_on(Arc::new(Gpu::new(card, arch, 4 << 30))), &PRECISIONS, 4);
    }
}

#[test]
fn tf32_products_match_f64() {
    for (name, card) in cards() {
        let mut arch = card.arch().clone();
        arch.wishes.tf32 = true;
        let precisions = [(Types::Uniform(DType::F32), 1e-3)];
        check_table(&name, &params_on(Arc::new(Gpu::new(card, arch, 4 << 30))), &precisions, 5);
    }
}
