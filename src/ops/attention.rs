//! Multi-head scaled dot-product attention (Vaswani et al. 2017), with the softmax never stored:
//! the backward pass computes it again from the row's log-sum-exp (Dao et al. 2022).

mod host;
mod plans;

use bytemuck::{Pod, Zeroable};

use super::{op, size};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Largest head dimension the kernels are built for.
pub const MAX_HEAD_DIM: usize = 128;

/// Extents of one attention; also the parameters of both kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Extents {
    batch: u32,
    time: u32,
    heads: u32,
    head_dim: u32,
    scale: f32,
}

/// out = softmax(scale Q Kᵀ) V by heads. Input: qkv `[batch, time, 3, heads, head_dim]`; outputs:
/// out `[batch, time, heads, head_dim]`, lse `[batch, time, heads]`.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Attention(Extents);

/// Gradient of [`Attention`]. Inputs: d_out, qkv, out, lse; output: d_qkv.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct AttentionBackward(Extents);

op!(Attention, "attention", |op, arch, kernel| op.0.plan(arch, kernel));
op!(AttentionBackward, "attention_backward", |op, arch, kernel| op.0.plan_backward(arch, kernel));

impl Attention {
    /// `heads` heads of `head_dim` channels over `batch` items of `time` tokens; all at least 1,
    /// `head_dim` at most [`MAX_HEAD_DIM`].
    pub fn new(batch: usize, time: usize, heads: usize, head_dim: usize) -> Self {
        Self(Extents::new(batch, time, heads, head_dim))
    }
}

impl AttentionBackward {
    /// Of [`Attention::new`] with the same extents.
    pub fn new(batch: usize, time: usize, heads: usize, head_dim: usize) -> Self {
        Self(Extents::new(batch, time, heads, head_dim))
    }
}

impl Extents {
    fn new(batch: usize, time: usize, heads: usize, head_dim: usize) -> Self {
        Self {
            batch: size(batch),
            time: size(time),
            heads: size(heads),
            head_dim: size(head_dim),
            scale: (1.0 / (head_dim as f64).sqrt()) as f32,
        }
    }

    fn dims(&self) -> (usize, usize, usize, usize) {
        (self.batch as usize, self.time as usize, self.heads as usize, self.head_dim as usize)
    }
}

/// Attention of `qkv` `[batch, time, 3 * heads * head_dim]`, queries first, then keys, then values,
/// each head by head (as PyTorch's `in_proj` gives them); gives `[batch, time, heads * head_dim]`.
///
/// # Errors
/// [`Error::Shape`] when the last axis is not 3 * `heads` * head_dim, or head_dim is above
/// [`MAX_HEAD_DIM`].
pub fn attention(tape: &Tape<'_>, qkv: &Var, heads: usize) -> Result<Var> {
    let &[batch, time, packed] = qkv.dims() else {
        return Err(Error::shape("attention", format!("qkv of shape {}", qkv.shape())));
    };
    let d = packed / (3 * heads.max(1));
    if heads == 0 || d == 0 || d * 3 * heads != packed || d > MAX_HEAD_DIM {
        return Err(Error::shape("attention", format!("{packed} channels for {heads} heads")));
    }
    let extents = Extents::new(batch, time, heads, d);
    let out = tape.empty([batch, time, heads * d], qkv.dtype(), "attention")?;
    let stat_type = if qkv.dtype().size() == 2 { crate::DType::F32 } else { qkv.dtype() };
    let lse = tape.empty([batch, time, heads], stat_type, "attention.lse")?;
    tape.run(Attention(extents), &[qkv.tensor()], &[&out, &lse])?;
    let (input, result) = (qkv.clone(), out.clone());
    Ok(tape.push(out, &[qkv], move |grads, d_out| {
        let op = AttentionBackward(extents);
        let inputs = [&d_out, input.tensor(), &result, &lse];
        let d_qkv = grads.tape().empty(*input.shape(), input.dtype(), "grad.qkv")?;
        grads.tape().run(op, &inputs, &[&d_qkv])?;
        grads.give(&input, d_qkv)
    }))
}
