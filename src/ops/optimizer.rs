//! Gradient norm, clipping and updates over the flat arrays of parameters.
//!
//! Every parameter begins on a multiple of [`BLOCK`] elements, and a table gives each block its
//! group. What changes from step to step is read from device memory, so that a recorded step stays
//! valid: `hyper` `[groups, 3]` holds a group's learning rate, weight decay and whether it is
//! trained (1) or frozen (0); `control` `[5]` holds the clipping norm (0: none), the inverse of the
//! loss scale, the decay of the averaged weights, and Adam's two bias corrections 1 - beta^step.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::{op, plans};
use crate::Result;
use crate::backend::cpu::host::{HostIo, HostKernel};
use crate::backend::cpu::real::{Real, vectorised};
use crate::backend::cpu::scratch::scratch;
use crate::backend::{Arch, Plan};

/// Elements that share a group; the alignment of parameters in the flat arrays.
pub const BLOCK: usize = 64;
/// Entries of one group in `hyper`.
pub const HYPER: usize = 3;
/// Entries of `control`.
pub const CONTROL: usize = 5;

/// Elements of one piece of work.
const PIECE: usize = 256 * BLOCK;

/// norm[0] = Euclidean norm of the gradients of trained groups, after undoing the loss scale;
/// norm[1] = what the update multiplies gradients by: the inverse loss scale times the clipping
/// factor min(1, clip / (norm + 1e-6)) of `torch.nn.utils.clip_grad_norm_`, or 0 when the norm is
/// not finite (the update then leaves everything as it was). Inputs: grads `[n]`, groups `[n /
/// BLOCK]` i32, hyper, control; output: norm `[2]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct GradNorm {
    /// Elements.
    pub n: u32,
}

op!(GradNorm, "grad_norm", |op, arch, kernel| {
    // 64 bytes a thread, and no more blocks than run at once (`kernels/optimizer.cu`).
    let each = 4 * 256 * plans::pack(kernel);
    let blocks = (op.n as usize).div_ceil(each).clamp(1, 8 * arch.units.max(1) as usize);
    let plan = Plan::blocks(kernel, blocks, 256).then(plans::stage(kernel, "end"), [1, 1, 1], 256);
    plan.workspace(plans::PARTIALS_HEADER + blocks * size_of::<f32>())
});

/// A thread moves 16 bytes of each array; of very many elements it takes several turns, so that
/// what each block reads first weighs less.
fn update_plan(arch: &Arch, kernel: &str, n: u32) -> Plan {
    let blocks = (n as usize).div_ceil(256 * plans::pack(kernel));
    Plan::blocks(kernel, blocks.min(16 * arch.units as usize), 256)
}

impl HostKernel for GradNorm {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.n as usize;
        let grads = io.input_n::<T>(0, n)?;
        let groups = io.input_n::<i32>(1, n / BLOCK)?;
        let (hyper, control) = (io.input::<T>(2)?, io.input_n::<T>(3, CONTROL)?);
        let trained = |group: i32| hyper[group as usize * HYPER + 2] != T::ZERO;
        let squares = scratch(n.div_ceil(PIECE), |sums: &mut [f64]| {
            let pieces = grads.par_chunks(PIECE).zip(groups.par_chunks(PIECE / BLOCK));
            sums.par_iter_mut().zip(pieces).for_each(|(sum, (grads, groups))| {
                *sum = 0.0;
                for (block, &group) in grads.chunks(BLOCK).zip(groups) {
                    if trained(group) {
                        let mut lanes = [T::ZERO; BLOCK];
                        lanes.iter_mut().zip(block).for_each(|(l, &g)| *l = g * g);
                        *sum += lanes.iter().copied().sum::<T>().wide();
                    }
                }
            });
            sums.iter().sum::<f64>()
        });
        let norm = squares.sqrt() * control[1].wide();
        let clip = control[0].wide();
        let factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let factor = if norm.is_finite() { factor * control[1].wide() } else { 0.0 };
        let out = io.output_n::<T>(0, 2)?;
        (out[0], out[1]) = (T::of(norm), T::of(factor));
        Ok(())
    }
}

/// Decoupled weight decay Adam (Loshchilov and Hutter 2019), as `torch.optim.AdamW`. Inputs:
/// grads, groups, hyper, control, norm; outputs: params, first and second moment `[n]`, and, where
/// kept, the averaged weights `[n]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct AdamW {
    /// Elements.
    pub n: u32,
    /// Unused: the doubles are aligned.
    pub pad: u32,
    /// Decay of the first moment. A double, because 1 - beta rounded from f32 is off by 1e-5.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

op!(AdamW, "adamw", |op, arch, kernel| update_plan(arch, kernel, op.n));

impl HostKernel for AdamW {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.n as usize;
        let grads = io.input_n::<T>(0, n)?;
        let update = Update::<T>::new(io, n)?;
        if update.factor == T::ZERO {
            return Ok(());
        }
        let params = io.output_n::<T>(0, n)?;
        let (first, second) = (io.output_n::<T>(1, n)?, io.output_n::<T>(2, n)?);
        let (beta1, beta2) = (T::of(self.beta1), T::of(self.beta2));
        let (rest1, rest2) = (T::of(1.0 - self.beta1), T::of(1.0 - self.beta2));
        let epsilon = T::of(self.epsilon);
        let (bias1, bias2) = (update.control[3], update.control[4].sqrt());
        let pieces = params.par_chunks_mut(PIECE).zip(grads.par_chunks(PIECE));
        let moments = first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE));
        let pieces = pieces.zip(moments).enumerate();
        pieces.for_each(|(i, ((p, g), (m, v)))| {
            vectorised!({
                let blocks = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
                let blocks = blocks.zip(m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK)));
                for (j, ((p, g), (m, v))) in blocks.enumerate() {
                    let Some((rate, decay)) = update.rates(i * (PIECE / BLOCK) + j) else {
                        continue;
                    };
                    let (keep, step) = (T::ONE - rate * decay, rate / bias1);
                    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                        let g = g * update.factor;
                        *m = *m * beta1 + g * rest1;
                        *v = *v * beta2 + g * g * rest2;
                        *p = *p * keep - step * *m / (v.sqrt() / bias2 + epsilon);
                    }
                }
            });
        });
        average(&update, params, io, 3)
    }
}

/// Gradient descent with momentum, as `torch.optim.SGD` (dampening 0). Inputs: grads, groups,
/// hyper, control, norm; outputs: params, velocity, and, where kept, the averaged weights.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Sgd {
    /// Elements.
    pub n: u32,
    /// Decay of the velocity.
    pub momentum: f32,
    /// Look ahead (Sutskever et al. 2013) where not 0.
    pub nesterov: u32,
}

op!(Sgd, "sgd", |op, arch, kernel| update_plan(arch, kernel, op.n));

impl HostKernel for Sgd {
    fn host_in<T: Real>(&self, io: &mut HostIo<'_>) -> Result<()> {
        let n = self.n as usize;
        let grads = io.input_n::<T>(0, n)?;
        let update = Update::<T>::new(io, n)?;
        if update.factor == T::ZERO {
            return Ok(());
        }
        let (params, velocity) = (io.output_n::<T>(0, n)?, io.output_n::<T>(1, n)?);
        let momentum = T::of(f64::from(self.momentum));
        let pieces = params.par_chunks_mut(PIECE).zip(grads.par_chunks(PIECE));
        let pieces = pieces.zip(velocity.par_chunks_mut(PIECE)).enumerate();
        pieces.for_each(|(i, ((p, g), v))| {
            let blocks = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(v.chunks_mut(BLOCK));
            for (j, ((p, g), v)) in blocks.enumerate() {
                let Some((rate, decay)) = update.rates(i * (PIECE / BLOCK) + j) else { continue };
                for ((p, &g), v) in p.iter_mut().zip(g).zip(v) {
                    let g = g * update.factor + decay * *p;
                    *v = *v * momentum + g;
                    let ahead = if self.nesterov != 0 { g + momentum * *v } else { *v };
                    *p -= rate * ahead;
                }
            }
        });
        average(&update, params, io, 2)
    }
}

/// What both updates read besides the gradients.
struct Update<'a, T> {
    groups: &'a [i32],
    hyper: &'a [T],
    control: &'a [T],
    factor: T,
}

impl<'a, T: Real> Update<'a, T> {
    fn new(io: &HostIo<'a>, n: usize) -> Result<Self> {
        Ok(Self {
            groups: io.input_n(1, n / BLOCK)?,
            hyper: io.input(2)?,
            control: io.input_n(3, CONTROL)?,
            factor: io.input_n::<T>(4, 2)?[1],
        })
    }

    /// Learning rate and weight decay of a block; None where frozen.
    #[inline(always)]
    fn rates(&self, block: usize) -> Option<(T, T)> {
        let at = self.groups[block] as usize * HYPER;
        (self.hyper[at + 2] != T::ZERO).then(|| (self.hyper[at], self.hyper[at + 1]))
    }
}

/// Moves the averaged weights, output `at` where there is one, towards the parameters.
fn average<T: Real>(
    update: &Update<'_, T>,
    params: &[T],
    io: &mut HostIo<'_>,
    at: usize,
) -> Result<()> {
    if io.outputs() <= at {
        return Ok(());
    }
    let mean = io.output_n::<T>(at, params.len())?;
    let share = T::ONE - update.control[2];
    let pieces = mean.par_chunks_mut(PIECE).zip(params.par_chunks(PIECE));
    pieces.for_each(|(mean, params)| {
        vectorised!(mean.iter_mut().zip(params).for_each(|(m, &p)| *m += share * (p - *m)));
    });
    Ok(())
}
