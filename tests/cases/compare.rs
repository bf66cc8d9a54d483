//! Runs a case of the table on any backend, and tells how far results are from each other.

use std::sync::Arc;

use engine::backend::Backend;
use engine::data::rng::Rng;
use engine::nn::params::{Builder, Params};
use engine::ops::philox;
use engine::{DType, Result, Tape, Tensor, Var};
use half::{bf16, f16};

use crate::cases::{Case, Draw};

/// Result of a case and the gradient of each differentiated operand, widened.
pub struct Outcome {
    pub output: Vec<f64>,
    pub grads: Vec<Vec<f64>>,
}

/// A tensor of `values` in `dtype`; rounded on the host, whatever the backend.
pub fn upload(params: &Params, shape: &[usize], values: &[f64], dtype: DType) -> Result<Tensor> {
    let backend = params.backend();
    match dtype {
        DType::F64 => backend.tensor(shape, values, "operand"),
        DType::F32 => backend.tensor(shape, &each(values, |x| x as f32), "operand"),
        DType::Bf16 => backend.tensor(shape, &each(values, bf16::from_f64), "operand"),
        DType::F16 => backend.tensor(shape, &each(values, f16::from_f64), "operand"),
        DType::I32 => backend.tensor(shape, &each(values, |x| x as i32), "operand"),
    }
}

fn each<T>(values: &[f64], f: impl Fn(f64) -> T) -> Vec<T> {
    values.iter().map(|&x| f(x)).collect()
}

/// The numbers of a tensor.
pub fn wide(params: &Params, x: &Tensor) -> Result<Vec<f64>> {
    let backend = params.backend();
    match x.dtype() {
        DType::F64 => backend.read::<f64>(x),
        DType::Bf16 => {
            let read = backend.read::<bf16>(x)?;
            Ok(read.into_iter().map(bf16::to_f64).collect())
        }
        DType::F16 => {
            let read = backend.read::<f16>(x)?;
            Ok(read.into_iter().map(f16::to_f64).collect())
        }
        _ => Ok(backend.read::<f32>(x)?.into_iter().map(f64::from).collect()),
    }
}

/// Types of a case's operands.
#[derive(Clone, Copy, PartialEq)]
pub enum Types {
    /// All floats in one.
    Uniform(DType),
    /// As in mixed precision: activations and weights of products in this one, every other parameter
    /// and every parameter's gradient in f32.
    Mixed(DType),
}

impl Types {
    pub fn of(self, draw: Draw) -> DType {
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
    pub fn main(self) -> DType {
        match self {
            Self::Uniform(dtype) | Self::Mixed(dtype) => dtype,
        }
    }

    /// As in reports: "mixed bf16".
    pub fn name(self) -> String {
        let mixed = if matches!(self, Self::Mixed(_)) { "mixed " } else { "" };
        format!("{mixed}{}", self.main().name())
    }
}

/// Fills memory that later allocations will get with NaN, so that an op that reads what it should
/// have written, or leaves something unwritten, shows.
pub fn poison(params: &Params) -> Result<()> {
    let backend = params.backend();
    drop(backend.tensor([1 << 19], &vec![f32::NAN; 1 << 19], "poison")?);
    Ok(())
}

/// The case's operands on a backend, and the gradients of those that have one.
pub fn operands(
    params: &Params,
    case: &Case,
    values: &[Vec<f64>],
    types: Types,
) -> Result<(Vec<Tensor>, Vec<Var>)> {
    let (mut leaves, mut vars) = (Vec::new(), Vec::new());
    for ((shape, draw), values) in case.operands.iter().zip(values) {
        let tensor = upload(params, shape, values, types.of(*draw))?;
        if !draw.differentiated() {
            vars.push(Var::constant(tensor));
            continue;
        }
        let zeros = vec![0.0; values.len()];
        let grad = upload(params, shape, &zeros, types.of_gradient(*draw))?;
        leaves.push(grad.clone());
        vars.push(Var::leaf(tensor, grad));
    }
    Ok((leaves, vars))
}

/// The case's result and gradients for these operands and this gradient of the result.
pub fn run(
    params: &Params,
    case: &Case,
    values: &[Vec<f64>],
    types: Types,
    dy: &[f64],
) -> Result<Outcome> {
    let rng = params.backend().tensor([4], &philox::state(11, 5), "rng")?;
    let (leaves, vars) = operands(params, case, values, types)?;
    poison(params)?;
    let tape = if case.training { Tape::training(params, Some(rng)) } else { Tape::frozen(params) };
    let output = (case.run)(&tape, &vars)?;
    let count = output.tensor().numel();
    let dy: Vec<f64> = dy.iter().copied().cycle().take(count).collect();
    let dy = upload(params, output.dims(), &dy, output.dtype())?;
    tape.backward_from(&output, dy)?;
    let grads = leaves.iter().map(|grad| wide(params, grad)).collect::<Result<_>>()?;
    Ok(Outcome { output: wide(params, output.tensor())?, grads })
}

/// Parameters of a model of none, on a backend.
pub fn params_on(backend: Arc<dyn Backend>) -> Params {
    Builder::default().build(backend, DType::F32, 0).expect("empty")
}

/// Random operands of a case, and a gradient of its result.
pub fn draw(case: &Case, rng: &mut Rng) -> (Vec<Vec<f64>>, Vec<f64>) {
    let draw = |(shape, draw): &(Vec<usize>, Draw)| draw.values(shape.iter().product(), rng);
    let values = case.operands.iter().map(draw).collect();
    (values, Draw::Normal.values(1 << 19, rng))
}

/// Norm of the difference relative to that of `b`.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-3)
}

/// Types and limits of the relative error that every backend keeps.
pub const PRECISIONS: [(Types, f64); 5] = [
    (Types::Uniform(DType::F32), 1e-5),
    (Types::Uniform(DType::Bf16), 1e-2),
    (Types::Uniform(DType::F16), 1e-2),
    (Types::Mixed(DType::Bf16), 1e-2),
    (Types::Mixed(DType::F16), 1e-2),
];

fn rounded(values: &[f64], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::Bf16 => each(values, |x| f64::from(bf16::from_f64(x))),
        DType::F16 => each(values, |x| f64::from(f16::from_f64(x))),
        _ => values.to_vec(),
    }
}

/// Runs a case on `device` in `types`, and on `reference` in f64 from the same, rounded, numbers. How
/// far the result and each gradient are off, by name.
pub fn errors(
    reference: &Params,
    device: &Params,
    case: &Case,
    types: Types,
    (values, dy): &(Vec<Vec<f64>>, Vec<f64>),
) -> Result<Vec<(String, f64)>> {
    let drawn = values.iter().zip(&case.operands);
    let values: Vec<Vec<f64>> =
        drawn.map(|(values, (_, draw))| rounded(values, types.of(*draw))).collect();
    let dy = rounded(dy, types.main());
    let exact = run(reference, case, &values, Types::Uniform(DType::F64), &dy)?;
    let found = run(device, case, &values, types, &dy)?;
    let mut errors = vec![("output".to_string(), distance(&found.output, &exact.output))];
    for (i, (found, exact)) in found.grads.iter().zip(&exact.grads).enumerate() {
        errors.push((format!("gradient {i}"), distance(found, exact)));
    }
    Ok(errors)
}
