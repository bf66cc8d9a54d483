//! Dropout (Srivastava et al. 2014), scaled in training so that inference does nothing.

use bytemuck::{Pod, Zeroable};

use super::philox::Mask;
use super::{op, plans, size};
use crate::Result;
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::parallel::for_rows;
use crate::backend::cpu::real::Real;
use crate::tape::{Tape, Var};

/// y (+)= x * mask / (1 - p). Inputs: x, rng; output: y. Its own gradient.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Dropout {
    /// Elements.
    pub n: u32,
    /// Which random op of the step.
    pub stream: u32,
    /// Probability of an element being dropped.
    pub probability: f32,
    /// Add to the output instead of overwriting it.
    pub accumulate: u32,
}

op!(Dropout, "dropout", |op, arch, kernel| plans::elements(kernel, op.n as usize));

impl HostKernel for Dropout {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.n as usize;
        let x = io.input_n::<T>(0, n)?;
        let state = io.input::<i32>(1)?;
        let mask = Mask { state, stream: self.stream, probability: self.probability };
        let add = self.accumulate != 0;
        for_rows(io.output_n::<T>(0, n)?, 1, 8, |first, y| {
            mask.apply(first, y, |done, y, factors| {
                let x = &x[first + done..][..y.len()];
                for ((y, &x), &factor) in y.iter_mut().zip(x).zip(factors) {
                    *y = if add { *y + x * factor } else { x * factor };
                }
            });
        });
        Ok(())
    }
}

/// Drops each element of `x` with `probability`; the identity outside training.
///
/// # Errors
/// As [`Tape::run`].
pub fn dropout(tape: &Tape<'_>, x: &Var, probability: f32) -> Result<Var> {
    let Some(rng) = tape.rng().filter(|_| tape.is_training() && probability > 0.0).cloned() else {
        return Ok(x.clone());
    };
    let op = Dropout {
        n: size(x.tensor().numel()),
        stream: tape.next_stream(),
        probability,
        accumulate: 0,
    };
    let y = tape.empty(*x.shape(), x.dtype(), "dropout")?;
    tape.run(op, &[x.tensor(), &rng], &[&y])?;
    let input = x.clone();
    Ok(tape.push(y, &[x], move |grads, dy| {
        let Some(to) = grads.target(&input)? else { return Ok(()) };
        let op = Dropout { accumulate: to.accumulate.into(), ..op };
        grads.tape().run(op, &[&dy, &rng], &[&to.tensor])
    }))
}
