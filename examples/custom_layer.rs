//! A layer of one's own, and the loop that trains it: a gated unit learns a product of its inputs.

use engine::backend::{Backend, cpu::Cpu};
use engine::data::rng::Rng;
use engine::nn::layers::Linear;
use engine::nn::params::Builder;
use engine::ops::{elementwise, gemm::After, loss};
use engine::optim::{Control, Optimizer, Rates, Rule};
use engine::{DType, Result, Tape, Var};
use std::sync::Arc;

/// out(value(x) * gelu(gate(x))), Shazeer's GEGLU (2020): `[batch, inputs]` to `[batch, 1]`.
struct Geglu {
    value: Linear,
    gate: Linear,
    out: Linear,
}

impl Geglu {
    fn new(builder: &mut Builder, inputs: usize, width: usize) -> Self {
        Self {
            value: Linear::new(builder, "value", inputs, width),
            gate: Linear::new(builder, "gate", inputs, width),
            out: Linear::new(builder, "out", width, 1),
        }
    }

    fn forward(&self, tape: &Tape<'_>, x: &Var) -> Result<Var> {
        let gate = self.gate.forward_with(tape, x, After { gelu: true, ..After::default() })?;
        let gated = elementwise::mul(tape, &self.value.forward(tape, x)?, &gate)?;
        self.out.forward(tape, &gated)
    }
}

fn main() -> Result<()> {
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::new(1, 64 << 20)?);
    let mut builder = Builder::default();
    let model = Geglu::new(&mut builder, 2, 16);
    let params = builder.build(Arc::clone(&cpu), DType::F32, 1)?;
    let rule = Rule::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8 };
    let optimizer = Optimizer::new(&params, rule, 0, false)?;
    let (mut rng, mut last) = (Rng::new(1, 0), f32::NAN);
    for step in 1..=400 {
        let x: Vec<f32> = (0..64).map(|_| rng.normal() as f32).collect();
        let products: Vec<f32> = x.chunks_exact(2).map(|pair| pair[0] * pair[1]).collect();
        let tape = Tape::training(&params, None);
        params.zero_grads(&tape)?;
        let y = model.forward(&tape, &Var::constant(cpu.tensor([32, 2], &x, "x")?))?;
        let targets = cpu.tensor([32, 1], &products, "targets")?;
        let loss = loss::pointwise(&tape, loss::Pointwise::Mse, &y, &targets)?;
        tape.backward(&loss, 1.0)?;
        let control = Control { step, clip: 1.0, loss_scale: 1.0, average: 0.0 };
        optimizer.prepare(&params, control, |_| Rates { lr: 0.01, decay: 0.0, trained: true })?;
        optimizer.enqueue(&tape)?;
        last = cpu.read::<f32>(loss.tensor())?[0];
    }
    assert!(last < 0.05, "it did not learn: the loss is {last}");
    Ok(())
}
