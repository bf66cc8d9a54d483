//! Every op, forward and backward: f64 against central differences, every other precision against
//! f64.

mod cases;

use std::sync::Arc;

use cases::{Case, Draw};
use engine::backend::Backend;
use engine::backend::cpu::Cpu;
use engine::data::rng::Rng;
use engine::nn::params::{Builder, Params};
use engine::ops::philox;
use engine::{DType, Tape, Tensor, Var};

/// Result of a case and the gradient of each differentiated operand, widened.
struct Outcome {
    output: Vec<f64>,
    grads: Vec<Vec<f64>>,
}

fn upload(params: &Params, shape: &[usize], values: &[f64], dtype: DType, draw: Draw) -> Tensor {
    let backend = params.backend();
    if let Draw::Label(_) = draw {
        let labels: Vec<i32> = values.iter().map(|&x| x as i32).collect();
        return backend.tensor(shape, &labels, "label").expect("fits");
    }
    let dtype = if draw.differentiated() || dtype == DType::F64 { dtype } else { DType::F32 };
    convert(params, &backend.tensor(shape, values, "wide").expect("fits"), dtype)
}

/// `x` in another float type, by way of the backend's own conversion.
fn convert(params: &Params, x: &Tensor, dtype: DType) -> Tensor {
    if x.dtype() == dtype {
        return x.clone();
    }
    let backend = params.backend();
    match (x.dtype(), dtype) {
        (DType::F64, _) => {
            let values = backend.read::<f64>(x).expect("f64");
            let narrow: Vec<f32> = values.iter().map(|&x| x as f32).collect();
            let single = backend.tensor(*x.shape(), &narrow, "single").expect("fits");
            convert(params, &single, dtype)
        }
        _ => {
            let tape = Tape::inference(params);
            let to = backend.empty(*x.shape(), dtype, "converted").expect("fits");
            engine::ops::elementwise::copy(&tape, x, &to).expect("converts");
            to
        }
    }
}

fn wide(params: &Params, x: &Tensor) -> Vec<f64> {
    match x.dtype() {
        DType::F64 => params.backend().read::<f64>(x).expect("f64"),
        _ => {
            let single = convert(params, x, DType::F32);
            let values = params.backend().read::<f32>(&single).expect("f32");
            values.into_iter().map(f64::from).collect()
        }
    }
}

/// Fills memory that later allocations will get with NaN, so that an op that reads what it should
/// have written, or leaves something unwritten, shows.
fn poison(params: &Params) {
    let backend = params.backend();
    drop(backend.tensor([1 << 18], &vec![f32::NAN; 1 << 18], "poison").expect("fits"));
}

fn run(params: &Params, case: &Case, values: &[Vec<f64>], dtype: DType, dy: &[f64]) -> Outcome {
    let mut leaves = Vec::new();
    let rng = params.backend().tensor([4], &philox::state(11, 5), "rng").expect("fits");
    let vars: Vec<Var> = case
        .operands
        .iter()
        .zip(values)
        .map(|((shape, draw), values)| {
            let tensor = upload(params, shape, values, dtype, *draw);
            if !draw.differentiated() {
                return Var::constant(tensor);
            }
            let grad = upload(params, shape, &vec![0.0; values.len()], dtype, *draw);
            leaves.push(grad.clone());
            Var::leaf(tensor, grad)
        })
        .collect();
    poison(params);
    let tape = if case.training { Tape::training(params, Some(rng)) } else { Tape::frozen(params) };
    let output = (case.run)(&tape, &vars).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let dy = upload(params, output.dims(), &dy[..output.tensor().numel()], dtype, Draw::Normal);
    tape.backward_from(&output, dy).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    Outcome {
        output: wide(params, output.tensor()),
        grads: leaves.iter().map(|grad| wide(params, grad)).collect(),
    }
}

fn params() -> Params {
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(2, 1 << 30).expect("starts"));
    Builder::default().build(cpu, DType::F32, 0).expect("empty")
}

fn draw(case: &Case, rng: &mut Rng) -> (Vec<Vec<f64>>, Vec<f64>) {
    let draw = |(shape, draw): &(Vec<usize>, Draw)| draw.values(shape.iter().product(), rng);
    let values = case.operands.iter().map(draw).collect();
    (values, Draw::Normal.values(1 << 14, rng))
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
        let exact = run(&params, &case, &values, DType::F64, &dy);
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
                    let output = run(&params, &case, values, DType::F64, &dy).output;
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

#[test]
fn every_precision_matches_f64() {
    let params = params();
    let mut rng = Rng::new(2026, 2);
    for case in cases::table() {
        let (values, dy) = draw(&case, &mut rng);
        for (dtype, limit) in [(DType::F32, 1e-5), (DType::Bf16, 1e-2), (DType::F16, 1e-2)] {
            // Both start from the same, rounded, numbers.
            let round = |values: &Vec<f64>| -> Vec<f64> {
                let one = |&x: &f64| match dtype {
                    DType::Bf16 => f64::from(half::bf16::from_f64(x)),
                    DType::F16 => f64::from(half::f16::from_f64(x)),
                    _ => x,
                };
                values.iter().map(one).collect()
            };
            let drawn = values.iter().zip(&case.operands);
            let values: Vec<Vec<f64>> = drawn
                .map(|(v, (_, d))| if d.differentiated() { round(v) } else { v.clone() })
                .collect();
            let dy = round(&dy);
            let exact = run(&params, &case, &values, DType::F64, &dy);
            let found = run(&params, &case, &values, dtype, &dy);
            let check = |what: &str, found: &[f64], exact: &[f64]| {
                let error = distance(found, exact);
                let name = &case.name;
                assert!(error < limit, "{name} in {}: {what} off by {error:.1e}", dtype.name());
            };
            check("output", &found.output, &exact.output);
            for (i, (found, exact)) in found.grads.iter().zip(&exact.grads).enumerate() {
                check(&format!("gradient {i}"), found, exact);
            }
        }
    }
}
