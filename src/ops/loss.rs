//! Losses, each one number: the mean over the batch as PyTorch defines it.

use bytemuck::{Pod, Zeroable};

use super::{expect_same, op, size};
use crate::backend::Plan;
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::Real;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::{DType, Error, Result};

/// A loss of one prediction and one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pointwise {
    /// (p - y)²
    Mse,
    /// |p - y|
    L1,
    /// Half the square within `delta`, linear beyond (Huber 1964; `torch.nn.HuberLoss`).
    Huber {
        /// Where it turns linear.
        delta: f32,
    },
    /// Binary cross-entropy of a logit; the positive class counts `positive_weight` times.
    BceWithLogits {
        /// Weight of the positive class.
        positive_weight: f32,
    },
}

/// loss = mean of a [`Pointwise`]. Inputs: p, y `[n]`; output: loss.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct PointLoss {
    n: u32,
    kind: u32,
    parameter: f32,
}

/// Gradient of [`PointLoss`]. Inputs: d_loss, p, y; output: dp.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct PointLossBackward {
    of: PointLoss,
    accumulate: u32,
}

op!(PointLoss, "point_loss", |_op, arch, kernel| Plan::blocks(kernel, 1, 512));
op!(PointLossBackward, "point_loss_backward", |op, arch, kernel| {
    Plan::blocks(kernel, (op.of.n as usize).div_ceil(256), 256)
});

impl PointLoss {
    fn new(n: usize, kind: Pointwise) -> Self {
        let (kind, parameter) = match kind {
            Pointwise::Mse => (0, 0.0),
            Pointwise::L1 => (1, 0.0),
            Pointwise::Huber { delta } => (2, delta),
            Pointwise::BceWithLogits { positive_weight } => (3, positive_weight),
        };
        Self { n: size(n), kind, parameter }
    }

    /// Loss and slope at one prediction.
    fn at<T: Real>(&self, p: T, y: T) -> (T, T) {
        let (e, parameter) = (p - y, T::of(f64::from(self.parameter)));
        let sign = if e > T::ZERO { T::ONE } else { -T::ONE };
        match self.kind {
            0 => (e * e, e + e),
            1 if e == T::ZERO => (T::ZERO, T::ZERO),
            1 => (e.magnitude(), sign),
            2 if e.magnitude() <= parameter => (T::of(0.5) * e * e, e),
            2 => {
                let half = T::of(0.5) * parameter;
                (parameter * (e.magnitude() - half), parameter * sign)
            }
            _ => {
                // ln(1 + e^-|p|) stays finite for any logit.
                let small = (-p.magnitude()).exp();
                let softplus = (T::ONE + small).ln();
                let weight = T::ONE + (parameter - T::ONE) * y;
                let loss = (T::ONE - y) * p + weight * (softplus + (-p).larger(T::ZERO));
                let sigmoid = if p >= T::ZERO { T::ONE } else { small } / (T::ONE + small);
                (loss, (T::ONE - y) - weight * (T::ONE - sigmoid))
            }
        }
    }
}

impl HostKernel for PointLoss {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.n as usize;
        let (p, y) = (io.input_n::<T>(0, n)?, io.input_n::<T>(1, n)?);
        let total: f64 = p.iter().zip(y).map(|(&p, &y)| self.at(p, y).0.wide()).sum();
        io.output_n::<T>(0, 1)?[0] = T::of(total / n.max(1) as f64);
        Ok(())
    }
}

impl HostKernel for PointLossBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.of.n as usize;
        let scale = io.input_n::<T>(0, 1)?[0] / T::of(n.max(1) as f64);
        let (p, y) = (io.input_n::<T>(1, n)?, io.input_n::<T>(2, n)?);
        for ((dp, &p), &y) in io.output_n::<T>(0, n)?.iter_mut().zip(p).zip(y) {
            let grad = scale * self.of.at(p, y).1;
            *dp = if self.accumulate != 0 { *dp + grad } else { grad };
        }
        Ok(())
    }
}

/// Mean `kind` loss of predictions and targets of equal shape.
///
/// # Errors
/// [`Error::Shape`] when the shapes differ.
pub fn pointwise(tape: &Tape<'_>, kind: Pointwise, p: &Var, y: &Tensor) -> Result<Var> {
    expect_same("loss", p.dims(), y.dims())?;
    let op = PointLoss::new(y.numel(), kind);
    let loss = tape.empty([1], p.dtype(), "loss")?;
    tape.run(op, &[p.tensor(), y], &[&loss])?;
    let (prediction, target) = (p.clone(), y.clone());
    Ok(tape.push(loss, &[p], move |grads, d_loss| {
        let Some(to) = grads.target(&prediction)? else { return Ok(()) };
        let op = PointLossBackward { of: op, accumulate: to.accumulate.into() };
        grads.tape().run(op, &[&d_loss, prediction.tensor(), &target], &[&to.tensor])
    }))
}

/// Cross-entropy of logits with label smoothing and class weights. Inputs: logits `[n, classes]`,
/// labels `[n]` i32, weights `[classes]`; output: loss. Backward: inputs d_loss, logits, labels,
/// weights; output d_logits.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct CrossEntropy {
    n: u32,
    classes: u32,
    smoothing: f32,
    accumulate: u32,
}

/// Gradient of [`CrossEntropy`].
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct CrossEntropyBackward(CrossEntropy);

op!(CrossEntropy, "cross_entropy", |_op, arch, kernel| Plan::blocks(kernel, 1, 512));
op!(CrossEntropyBackward, "cross_entropy_backward", |op, arch, kernel| {
    // A thread for a row of few classes, else a wave. Every block adds up the weights of all
    // labels, so there are not more than run at once.
    let lanes = if op.0.classes <= 16 { 1 } else { arch.wave.max(1) };
    let blocks = (op.0.n as usize).div_ceil((256 / lanes) as usize);
    Plan::blocks(kernel, blocks.min(2 * arch.units as usize), 256)
});

impl CrossEntropy {
    /// Weight of the true class and of class `c` in the loss of one row.
    fn shares<T: Real>(&self, weights: &[T], label: usize, c: usize) -> T {
        let smoothing = T::of(f64::from(self.smoothing));
        let spread = smoothing / T::of(f64::from(self.classes)) * weights[c];
        if c == label { (T::ONE - smoothing) * weights[c] + spread } else { spread }
    }

    fn label(&self, labels: &[i32], row: usize) -> Result<usize> {
        let label = usize::try_from(labels[row]).ok().filter(|&l| l < self.classes as usize);
        label.ok_or_else(|| {
            let problem = format!("label {} of {} classes", labels[row], self.classes);
            Error::shape("cross_entropy", problem)
        })
    }
}

/// log of the sum of exponentials.
fn log_sum_exp<T: Real>(row: &[T]) -> T {
    let top = row.iter().copied().fold(row[0], T::larger);
    top + row.iter().map(|&x| (x - top).exp()).sum::<T>().ln()
}

impl HostKernel for CrossEntropy {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (n, classes) = (self.n as usize, self.classes as usize);
        let logits = io.input_n::<T>(0, n * classes)?;
        let (labels, weights) = (io.input_n::<i32>(1, n)?, io.input_n::<T>(2, classes)?);
        let (mut total, mut mass) = (0.0, 0.0);
        for (i, row) in logits.chunks_exact(classes).enumerate() {
            let (lse, label) = (log_sum_exp(row), self.label(labels, i)?);
            let terms = row.iter().enumerate();
            let terms = terms.map(|(c, &x)| self.shares(weights, label, c) * (lse - x));
            total += terms.sum::<T>().wide();
            mass += weights[label].wide();
        }
        io.output_n::<T>(0, 1)?[0] = T::of(total / mass);
        Ok(())
    }
}

impl HostKernel for CrossEntropyBackward {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let (n, classes) = (self.0.n as usize, self.0.classes as usize);
        let d_loss = io.input_n::<T>(0, 1)?[0];
        let logits = io.input_n::<T>(1, n * classes)?;
        let (labels, weights) = (io.input_n::<i32>(2, n)?, io.input_n::<T>(3, classes)?);
        let mut mass = 0.0;
        for i in 0..n {
            mass += weights[self.0.label(labels, i)?].wide();
        }
        let scale = d_loss / T::of(mass);
        let d_logits = io.output_n::<T>(0, n * classes)?;
        let rows = d_logits.chunks_exact_mut(classes).zip(logits.chunks_exact(classes));
        for (i, (d, row)) in rows.enumerate() {
            let (lse, label) = (log_sum_exp(row), self.0.label(labels, i)?);
            let all: T = (0..classes).map(|c| self.0.shares(weights, label, c)).sum();
            for (c, (d, &x)) in d.iter_mut().zip(row).enumerate() {
                let grad = scale * (all * (x - lse).exp() - self.0.shares(weights, label, c));
                *d = if self.0.accumulate != 0 { *d + grad } else { grad };
            }
        }
        Ok(())
    }
}

/// Cross-entropy of `logits` `[n, classes]` and `labels` `[n]` (i32), weighted by the true class's
/// entry of `weights` `[classes]`, as `torch.nn.CrossEntropyLoss`.
///
/// # Errors
/// [`Error::Shape`] when operands do not fit, or a label is out of range.
pub fn cross_entropy(
    tape: &Tape<'_>,
    logits: &Var,
    labels: &Tensor,
    weights: &Tensor,
    smoothing: f32,
) -> Result<Var> {
    let &[n, classes] = logits.dims() else {
        return Err(Error::shape("cross_entropy", format!("logits of shape {}", logits.shape())));
    };
    expect_same("cross_entropy", labels.dims(), &[n])?;
    expect_same("cross_entropy", weights.dims(), &[classes])?;
    if labels.dtype() != DType::I32 {
        return Err(Error::shape("cross_entropy", format!("labels {labels:?}")));
    }
    let op = CrossEntropy { n: size(n), classes: size(classes), smoothing, accumulate: 0 };
    let loss = tape.empty([1], logits.dtype(), "loss")?;
    tape.run(op, &[logits.tensor(), labels, weights], &[&loss])?;
    let (input, labels, weights) = (logits.clone(), labels.clone(), weights.clone());
    Ok(tape.push(loss, &[logits], move |grads, d_loss| {
        let Some(to) = grads.target(&input)? else { return Ok(()) };
        let op = CrossEntropyBackward(CrossEntropy { accumulate: to.accumulate.into(), ..op });
        let inputs = [&d_loss, input.tensor(), &labels, &weights];
        grads.tape().run(op, &inputs, &[&to.tensor])
    }))
}
