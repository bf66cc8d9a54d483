//! Every op, forward and backward: f64 against central differences, every other precision against
//! f64.

mod cases;
#[path = "cases/compare.rs"]
mod compare;
#[path = "cases/recorded.rs"]
mod recorded;

use std::sync::Arc;

use cases::Case;
use compare::{Outcome, PRECISIONS, Types, distance, draw, errors, params_on};
use engine::DType;
use engine::backend::cpu::Cpu;
use engine::backend::gpu::Gpu;
use engine::backend::gpu::cuda::{self, Cuda};
use engine::backend::gpu::driver::Driver;
use engine::backend::route::with_wishes;
use engine::config::Gemm;
use engine::data::rng::Rng;
use engine::nn::params::Params;

fn run(params: &Params, case: &Case, values: &[Vec<f64>], dy: &[f64]) -> Outcome {
    let outcome = compare::run(params, case, values, Types::Uniform(DType::F64), dy);
    outcome.unwrap_or_else(|error| panic!("{}: {error}", case.name))
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

/// Runs cases on `device` in all of `precisions`, against f64 on the CPU.
fn check(name: &str, cases: Vec<Case>, device: &Params, precisions: &[(Types, f64)], seed: u64) {
    let reference = params();
    let mut rng = Rng::new(2026, seed);
    let mut failed = Vec::new();
    for case in cases {
        let drawn = draw(&case, &mut rng);
        for &(types, limit) in precisions {
            let what = format!("{} in {}", case.name, types.name());
            let errors = errors(&reference, device, &case, types, &drawn);
            for (part, error) in errors.unwrap_or_else(|error| panic!("{what}: {error}")) {
                if error.is_nan() || error >= limit {
                    failed.push(format!("{what}: {part} off by {error:.1e}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "on {name}:\n{}", failed.join("\n"));
}

#[test]
fn every_precision_matches_f64() {
    check("the CPU", cases::table(), &params(), &PRECISIONS, 2);
}

#[test]
fn cards_match_f64() {
    for (name, card) in cards() {
        let arch = card.arch().clone();
        let device = params_on(Arc::new(Gpu::new(card, arch, 4 << 30)));
        check(&name, cases::table(), &device, &PRECISIONS, 3);
    }
}

/// Without the vendor's library.
#[test]
fn native_products_match_f64() {
    for (name, card) in cards() {
        let arch = with_wishes(card.arch(), Gemm::Native, &[]).expect("possible");
        let device = params_on(Arc::new(Gpu::new(card, arch, 4 << 30)));
        let cases = cases::table().into_iter().chain(cases::that_fill_cards());
        check(&name, cases.collect(), &device, &PRECISIONS, 4);
    }
}

#[test]
fn tf32_products_match_f64() {
    for gemm in [Gemm::Auto, Gemm::Native] {
        for (name, card) in cards() {
            let mut arch = with_wishes(card.arch(), gemm, &[]).expect("possible");
            arch.wishes.tf32 = true;
            let precisions = [(Types::Uniform(DType::F32), 1e-3)];
            let device = params_on(Arc::new(Gpu::new(card, arch, 4 << 30)));
            // The slope of a GELU whose sum is of a thousand rounded terms is as uncertain as that sum.
            let filling = cases::that_fill_cards().into_iter();
            let filling = filling.filter(|case| !case.name.starts_with("linear gelu"));
            let cases = cases::table().into_iter().chain(filling);
            check(&name, cases.collect(), &device, &precisions, 5);
        }
    }
}

/// Ops that a card's recording takes together give what each of them gives alone, but for the order of
/// sums.
#[test]
fn chains_match_their_ops() {
    let mut rng = Rng::new(2026, 6);
    for (name, card) in cards() {
        let arch = card.arch().clone();
        let device = params_on(Arc::new(Gpu::new(card, arch, 4 << 30)));
        for (rows, width) in [(1600, 128), (111, 96), (16, 32), (777, 256), (5, 64)] {
            let case = recorded::between_attentions(rows, width);
            let (values, dy) = draw(&case, &mut rng);
            for types in [Types::Mixed(DType::Bf16), Types::Mixed(DType::F16)] {
                let what = format!("{} in {} on {name}", case.name, types.name());
                let alone = compare::run(&device, &case, &values, types, &dy).expect("runs");
                let shape = [rows, 3 * width];
                let recorded = recorded::run(&device, &case, &values, types, &dy, shape);
                let (together, ops) = recorded.unwrap_or_else(|error| panic!("{what}: {error}"));
                let chains = ops.iter().filter(|op| **op == "chain").count();
                assert!(chains >= 2, "{what}: {ops:?}");
                let off = distance(&together.output, &alone.output);
                assert!(off < 2e-3, "{what}: output off by {off:.1e}");
                for (i, (a, b)) in together.grads.iter().zip(&alone.grads).enumerate() {
                    let off = distance(a, b);
                    assert!(off < 4e-3, "{what}: gradient {i} off by {off:.1e}");
                }
            }
        }
    }
}
