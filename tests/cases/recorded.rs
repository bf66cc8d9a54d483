//! A case as a recorded step, whose ops a card may take together.

use engine::nn::params::Params;
use engine::ops::elementwise::Axpy;
use engine::ops::gemm::{After, linear};
use engine::ops::mlp::{Mlp, mlp as mlp_of};
use engine::ops::{layernorm, philox};
use engine::{Result, Tape, Var};

use crate::cases::Draw::{NearOne, Normal, Parameter, Weight};
use crate::cases::{Case, Draw};
use crate::compare::{Outcome, Types, operands, poison, upload, wide};

/// What lies between two attentions of a transformer layer, for chains of ops: the result is
/// `[rows, 3 width]`.
pub fn between_attentions(rows: usize, width: usize) -> Case {
    let d = width;
    let operands: [(&[usize], Draw); 14] = [
        (&[rows, d], Normal),
        (&[rows, d], Normal),
        (&[d, d], Weight),
        (&[d], Parameter),
        (&[d], NearOne),
        (&[d], Parameter),
        (&[4 * d, d], Weight),
        (&[4 * d], Parameter),
        (&[d, 4 * d], Weight),
        (&[d], Parameter),
        (&[d], NearOne),
        (&[d], Parameter),
        (&[3 * d, d], Weight),
        (&[3 * d], Parameter),
    ];
    let run = |tape: &Tape<'_>, v: &[Var]| {
        let (bias, residual) = (Some(&v[3]), Some(&v[1]));
        let after = After { bias, dropout: 0.3, residual, ..After::default() };
        let x = linear(tape, &v[0], &v[2], after)?;
        let normal = layernorm::layernorm(tape, &x, &v[4], &v[5], 1e-5)?;
        let mlp = Mlp { weight1: &v[6], bias1: &v[7], weight2: &v[8], bias2: &v[9], dropout: 0.2 };
        let x = mlp_of(tape, &normal, &mlp, &x)?;
        let normal = layernorm::layernorm(tape, &x, &v[10], &v[11], 1e-5)?;
        linear(tape, &normal, &v[12], After { bias: Some(&v[13]), ..After::default() })
    };
    Case {
        name: format!("between attentions {rows}x{width}"),
        operands: operands.map(|(shape, draw)| (shape.to_vec(), draw)).into(),
        training: true,
        run: Box::new(run),
    }
}

/// As [`compare::run`], as a recorded step whose result is `[rows, cols]`; and the names of the ops it was run as.
pub fn run(
    params: &Params,
    case: &Case,
    values: &[Vec<f64>],
    types: Types,
    dy: &[f64],
    shape: [usize; 2],
) -> Result<(Outcome, Vec<&'static str>)> {
    let backend = params.backend();
    let rng = backend.tensor([4], &philox::state(11, 5), "rng")?;
    let (leaves, vars) = operands(params, case, values, types)?;
    let count = shape[0] * shape[1];
    let dy: Vec<f64> = dy.iter().copied().cycle().take(count).collect();
    let dy = upload(params, &shape, &dy, types.main())?;
    let output = backend.empty(shape, types.main(), "output")?;
    poison(params)?;
    let replay = backend.record(&mut || {
        let tape = Tape::training(params, Some(rng.clone()));
        let y = (case.run)(&tape, &vars)?;
        backend.launch(Axpy::scaling(count, 1.0), &[y.tensor()], &[&output])?;
        tape.backward_from(&y, dy.clone())
    })?;
    let replay = replay.expect("cards record");
    backend.replay(&replay)?;
    let grads = leaves.iter().map(|grad| wide(params, grad)).collect::<Result<_>>()?;
    let outcome = Outcome { output: wide(params, &output)?, grads };
    backend.timings(true)?;
    backend.replay(&replay)?;
    let ops = backend.timings(false)?.unwrap_or_default();
    Ok((outcome, ops.into_iter().map(|timed| timed.op).collect()))
}
