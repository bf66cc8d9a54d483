//! Every op, forward and backward: f64 against central differences, every other precision against
//! f64.

mod cases;
#[path = "cases/compare.rs"]
mod compare;

use std::sync::Arc;

use cases::Case;
use compare::{Outcome, PRECISIONS, distance, draw, errors};
use engine::DType;
use engine::backend::Backend;
use engine::backend::cpu::Cpu;
use engine::data::rng::Rng;
use engine::nn::params::{Builder, Params};

fn params() -> Params {
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(2, 1 << 30).expect("starts"));
    Builder::default().build(cpu, DType::F32, 0).expect("empty")
}

fn run(params: &Params, case: &Case, values: &[Vec<f64>], dy: &[f64]) -> Outcome {
    let outcome = compare::run(params, case, values, DType::F64, dy);
    outcome.unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

/// Elements of an operand that are differenced numerically.
const PROBES: usize = 24;

#[test]
fn gradients_match_central_differences() {
    let params = params();
    let mut rng = Rng::new(2026, 1);
    for case in cases::table() {
        let (mut values, dy) = draw(&case, &mut rng);
        let exact = run(&params, &case, &values, &dy);
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
                    let output = run(&params, &case, values, &dy).output;
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
        for (dtype, limit) in PRECISIONS {
            let errors = errors(&params, &params, &case, dtype, &mut rng);
            for (what, error) in errors.unwrap_or_else(|error| panic!("{}: {error}", case.name)) {
                let name = &case.name;
                assert!(error < limit, "{name} in {}: {what} off by {error:.1e}", dtype.name());
            }
        }
    }
}
