//! The feed-forward half of a transformer layer: two linear layers with a GELU between, as one op
//! on the tape, because its gradient has fewer passes than theirs.

use super::dropout::Dropout;
use super::gemm::{ACCUMULATE, BIAS, DROPOUT, GELU, GELU_SLOPE, Gemm, RESIDUAL, weight_gradients};
use super::{expect_last, expect_same, size};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Parameters of a [`mlp`].
#[derive(Debug)]
pub struct Mlp<'a> {
    /// `[hidden, width]`
    pub weight1: &'a Var,
    /// `[hidden]`
    pub bias1: &'a Var,
    /// `[width, hidden]`
    pub weight2: &'a Var,
    /// `[width]`
    pub bias2: &'a Var,
    /// Drops elements of the result with this probability, in training.
    pub dropout: f32,
}

/// residual + dropout(W2 gelu(W1 x + b1) + b2) for `x` and `residual` `[.., width]`. As two linear
/// layers, but the slope of the GELU is multiplied into the product that gives the hidden gradient.
///
/// # Errors
/// [`Error::Shape`] when operands do not fit.
pub fn mlp(tape: &Tape<'_>, x: &Var, mlp: &Mlp<'_>, residual: &Var) -> Result<Var> {
    let (&[hidden, width], &[out, inner]) = (mlp.weight1.dims(), mlp.weight2.dims()) else {
        return Err(Error::shape("mlp", "weights that are no matrices"));
    };
    expect_last("mlp", x.dims(), width)?;
    expect_same("mlp", &[out, inner], &[width, hidden])?;
    expect_same("mlp", mlp.bias1.dims(), &[hidden])?;
    expect_same("mlp", mlp.bias2.dims(), &[width])?;
    expect_same("mlp", residual.dims(), x.dims())?;
    let rows = x.tensor().numel() / width;
    let before = tape.empty([rows, hidden], x.dtype(), "pre_gelu")?;
    let after = tape.empty([rows, hidden], x.dtype(), "hidden")?;
    let op = Gemm::dense((rows, hidden, width), false, true, BIAS | GELU);
    let inputs = [x.tensor(), mlp.weight1.tensor(), mlp.bias1.tensor()];
    tape.run(op, &inputs, &[&after, &before])?;
    let y = tape.empty(*x.shape(), x.dtype(), "mlp")?;
    let rng = tape.rng().filter(|_| tape.is_training() && mlp.dropout > 0.0).cloned();
    let mut op = Gemm::dense((rows, width, hidden), false, true, BIAS | RESIDUAL);
    let mut inputs = vec![&after, mlp.weight2.tensor(), mlp.bias2.tensor()];
    if let Some(rng) = &rng {
        op.flags |= DROPOUT;
        op.stream = tape.next_stream();
        op.probability = mlp.dropout;
        inputs.push(rng);
    }
    inputs.push(residual.tensor());
    tape.run(op, &inputs, &[&y])?;
    let vars = [x, mlp.weight1, mlp.bias1, mlp.weight2, mlp.bias2, residual];
    let saved = vars.map(Var::clone);
    Ok(tape.push(y, &vars, move |grads, dy| {
        let [x, weight1, bias1, weight2, bias2, residual] = &saved;
        let dz = match &rng {
            Some(rng) => {
                let dz = grads.tape().empty(*dy.shape(), dy.dtype(), "grad.dropout")?;
                let (n, stream) = (size(dy.numel()), op.stream);
                let mask = Dropout { n, stream, probability: op.probability, accumulate: 0 };
                grads.tape().run(mask, &[&dy, rng], &[&dz])?;
                dz
            }
            None => dy.clone(),
        };
        grads.give(residual, dy)?;
        let after = Var::constant(after);
        weight_gradients(grads, &dz, &after, weight2, Some(bias2))?;
        drop(after);
        let d_hidden = grads.tape().empty([rows, hidden], dz.dtype(), "grad.pre_gelu")?;
        let op = Gemm::dense((rows, hidden, width), false, false, GELU_SLOPE);
        grads.tape().run(op, &[&dz, weight2.tensor(), &before], &[&d_hidden])?;
        drop((dz, before));
        weight_gradients(grads, &d_hidden, x, weight1, Some(bias1))?;
        if let Some(to) = grads.target(x)? {
            let flags = if to.accumulate { ACCUMULATE } else { 0 };
            let op = Gemm::dense((rows, width, hidden), false, false, flags);
            grads.tape().run(op, &[&d_hidden, weight1.tensor()], &[&to.tensor])?;
        }
        Ok(())
    }))
}
