//! Runs a case of the table on any backend, and tells how far results are from each other.

use engine::data::rng::Rng;
use engine::nn::params::Params;
use engine::ops::philox;
use engine::{DType, Result, Tape, Tensor, Var};

use crate::cases::{Case, Draw};

/// Result of a case and the gradient of each differentiated operand, widened.
pub struct Outcome {
    pub output: Vec<f64>,
    pub grads: Vec<Vec<f64>>,
}

fn upload(
    params: &Params,
    shape: &[usize],
    values: &[f64],
    dtype: DType,
    draw: Draw,
) -> Result<Tensor> {
    let backend = params.backend();
    if let Draw::Label(_) = draw {
        let labels: Vec<i32> = values.iter().map(|&x| x as i32).collect();
        return backend.tensor(shape, &labels, "label");
    }
    let dtype = if draw.differentiated() || dtype == DType::F64 { dtype } else { DType::F32 };
    convert(params, &backend.tensor(shape, values, "wide")?, dtype)
}

/// `x` in another float type, by way of the backend's own conversion.
fn convert(params: &Params, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let backend = params.backend();
    if x.dtype() == DType::F64 {
        let values = backend.read::<f64>(x)?;
        let narrow: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        let single = backend.tensor(*x.shape(), &narrow, "single")?;
        return convert(params, &single, dtype);
    }
    let tape = Tape::inference(params);
    let to = backend.empty(*x.shape(), dtype, "converted")?;
    engine::ops::elementwise::copy(&tape, x, &to)?;
    Ok(to)
}

fn wide(params: &Params, x: &Tensor) -> Result<Vec<f64>> {
    if x.dtype() == DType::F64 {
        return params.backend().read::<f64>(x);
    }
    let single = convert(params, x, DType::F32)?;
    Ok(params.backend().read::<f32>(&single)?.into_iter().map(f64::from).collect())
}

/// Fills memory that later allocations will get with NaN, so that an op that reads what it should
/// have written, or leaves something unwritten, shows.
fn poison(params: &Params) -> Result<()> {
    let backend = params.backend();
    drop(backend.tensor([1 << 18], &vec![f32::NAN; 1 << 18], "poison")?);
    Ok(())
}

/// The case's result and gradients for these operands and this gradient of the result.
pub fn run(
    params: &Params,
    case: &Case,
    values: &[Vec<f64>],
    dtype: DType,
    dy: &[f64],
) -> Result<Outcome> {
    let mut leaves = Vec::new();
    let mut vars = Vec::new();
    let rng = params.backend().tensor([4], &philox::state(11, 5), "rng")?;
    for ((shape, draw), values) in case.operands.iter().zip(values) {
        let tensor = upload(params, shape, values, dtype, *draw)?;
        if !draw.differentiated() {
            vars.push(Var::constant(tensor));
            continue;
        }
        let grad = upload(params, shape, &vec![0.0; values.len()], dtype, *draw)?;
        leaves.push(grad.clone());
        vars.push(Var::leaf(tensor, grad));
    }
    poison(params)?;
    let tape = if case.training { Tape::training(params, Some(rng)) } else { Tape::frozen(params) };
    let output = (case.run)(&tape, &vars)?;
    let dy = upload(params, output.dims(), &dy[..output.tensor().numel()], dtype, Draw::Normal)?;
    tape.backward_from(&output, dy)?;
    let grads = leaves.iter().map(|grad| wide(params, grad)).collect::<Result<_>>()?;
    Ok(Outcome { output: wide(params, output.tensor())?, grads })
}

/// Random operands of a case, and a gradient of its result.
pub fn draw(case: &Case, rng: &mut Rng) -> (Vec<Vec<f64>>, Vec<f64>) {
    let draw = |(shape, draw): &(Vec<usize>, Draw)| draw.values(shape.iter().product(), rng);
    let values = case.operands.iter().map(draw).collect();
    (values, Draw::Normal.values(1 << 14, rng))
}

/// Norm of the difference relative to that of `b`.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-3)
}

fn rounded(values: &[f64], dtype: DType) -> Vec<f64> {
    let one = |&x: &f64| match dtype {
        DType::Bf16 => f64::from(half::bf16::from_f64(x)),
        DType::F16 => f64::from(half::f16::from_f64(x)),
        _ => x,
    };
    values.iter().map(one).collect()
}

/// Runs a case in `dtype` on `found` and in f64 on `exact`, from the same, rounded, numbers. How far
/// the result and each gradient are off, by name.
pub fn errors(
    exact: &Params,
    found: &Params,
    case: &Case,
    dtype: DType,
    rng: &mut Rng,
) -> Result<Vec<(String, f64)>> {
    let (values, dy) = draw(case, rng);
    let operands = values.iter().zip(&case.operands);
    let values: Vec<Vec<f64>> = operands
        .map(|(v, (_, d))| if d.differentiated() { rounded(v, dtype) } else { v.clone() })
        .collect();
    let dy = rounded(&dy, dtype);
    let exact = run(exact, case, &values, DType::F64, &dy)?;
    let found = run(found, case, &values, dtype, &dy)?;
    let mut errors = vec![("output".to_string(), distance(&found.output, &exact.output))];
    for (i, (found, exact)) in found.grads.iter().zip(&exact.grads).enumerate() {
        errors.push((format!("gradient {i}"), distance(found, exact)));
    }
    Ok(errors)
}

/// The precisions that every op has, each with how far it may be off.
pub const PRECISIONS: [(DType, f64); 3] =
    [(DType::F32, 1e-5), (DType::Bf16, 1e-2), (DType::F16, 1e-2)];
