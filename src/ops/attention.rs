//! Multi-head scaled dot-product attention (Vaswani et al. 2017), with the softmax never stored:
//! the backward pass computes it again from the row's log-sum-exp (Dao et al. 2022).

mod host;

use bytemuck::{Pod, Zeroable};

use super::{op, size};
use crate::backend::{Arch, Machine, Plan};
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

/// Head dimensions that kernels on multiply-add units are built for; others use the next larger.
const PLAIN_DIMS: [u32; 5] = [8, 16, 32, 64, 128];
/// The same of kernels on matrix units, whose products are 16 deep.
const MATRIX_DIMS: [u32; 4] = [16, 32, 64, 128];

/// True where the kernels of `kernels/cuda/attention*.cu` run.
fn on_matrix_units(arch: &Arch, dtype: &str) -> bool {
    matches!(arch.machine, Machine::Cuda { sm } if sm >= 80) && matches!(dtype, "bf16" | "f16")
}

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

    fn plan(&self, arch: &Arch, kernel: &str) -> Plan {
        let dtype = kernel.trim_start_matches("attention_");
        if on_matrix_units(arch, dtype) { self.on_matrices(arch, dtype) } else { self.plain(dtype) }
    }

    fn plan_backward(&self, arch: &Arch, kernel: &str) -> Plan {
        let dtype = kernel.trim_start_matches("attention_backward_");
        if !on_matrix_units(arch, dtype) {
            return self.plain_backward(dtype);
        }
        self.whole_backward(arch, dtype).unwrap_or_else(|| self.backward_on_matrices(arch, dtype))
    }

    /// The head dimension of a kernel for this one, and of its rows in shared memory.
    fn built_for(&self, dims: &[u32]) -> (u32, usize) {
        let d = dims.iter().copied().find(|&d| d >= self.head_dim).unwrap_or(128);
        (d, d as usize)
    }

    /// 64 queries of one head a block; keys and values stream through shared memory.
    fn plain(&self, dtype: &str) -> Plan {
        let (d, row) = self.built_for(&PLAIN_DIMS);
        let columns = if d == 128 { 32 } else { 64 };
        let tiles = if d >= 64 { 1 } else { 2 };
        let shared = 4 * ((64 + tiles * columns) * (row + 4) + columns * 68);
        let grid = [self.time.div_ceil(64), self.heads, self.batch];
        Plan::new(format!("attention_d{d}_{dtype}"), grid, 128).shared(shared)
    }

    /// Blocks of keys, then as many blocks of queries; tiles of the other side stream.
    fn plain_backward(&self, dtype: &str) -> Plan {
        let (d, row) = self.built_for(&PLAIN_DIMS);
        let (rows, columns) = match d {
            128 => (32, 16),
            32 => (64, 64),
            _ => (64, 32),
        };
        let shared =
            4 * (2 * (rows + columns) * (row + 4) + columns * (rows + 4) + 2 * rows.max(columns));
        let grid = [2 * self.time.div_ceil(size(rows)), self.heads, self.batch];
        Plan::new(format!("attention_backward_d{d}_{dtype}"), grid, 128).shared(shared)
    }

    /// A head's strips of 16 queries in as few blocks as hold them, two strips a warp where
    /// registers allow it, or in more blocks of less where those leave units of the card idle.
    fn on_matrices(&self, arch: &Arch, dtype: &str) -> Plan {
        let (d, row) = self.built_for(&MATRIX_DIMS);
        let (strips, per_warp) = (self.time.div_ceil(16), if d == 128 { 1 } else { 2 });
        let heads = u64::from(self.heads) * u64::from(self.batch);
        let fewest = strips.div_ceil(8 * per_warp);
        let wanted = u64::from(2 * arch.units).div_ceil(heads.max(1));
        let blocks = u64::from(strips).min(wanted).max(u64::from(fewest));
        let blocks = strips.div_ceil(strips.div_ceil(size(blocks as usize)));
        let each = strips.div_ceil(blocks);
        let spread = blocks > fewest && each <= 8;
        let warps = if spread { each } else { each.div_ceil(per_warp) };
        let keys = (4096 / row).max(64);
        let rows = if self.time as usize <= keys { 16 * strips as usize } else { 2 * keys };
        let grid = [blocks, self.heads, self.batch];
        Plan::new(format!("attention_mma{d}_{dtype}"), grid, 32 * warps).shared(4 * rows * row)
    }

    /// The gradient with one block for each head: None where it does not fit shared memory or long
    /// heads are too few for the card.
    fn whole_backward(&self, arch: &Arch, dtype: &str) -> Option<Plan> {
        let strips = self.time.div_ceil(16);
        let shared = strips as usize * 16 * 140;
        let heads = u64::from(self.heads) * u64::from(self.batch);
        let fills = self.time <= 256 || heads >= u64::from(arch.units);
        if self.head_dim > 16 || shared > arch.shared as usize || !fills {
            return None;
        }
        // Two strips of keys a warp, in as many rounds as 16 warps need.
        let warps = strips.div_ceil(strips.div_ceil(32)).div_ceil(2);
        let grid = [1, self.heads, self.batch];
        let kernel = format!("attention_backward_whole16_{dtype}");
        Some(Plan::new(kernel, grid, 32 * warps).shared(shared))
    }

    /// Blocks of keys, then as many blocks of queries; smaller blocks where they are few.
    fn backward_on_matrices(&self, arch: &Arch, dtype: &str) -> Plan {
        let (d, row) = self.built_for(&MATRIX_DIMS);
        let per_warp = if d <= 32 { 2 } else { 1 };
        let half = |warps: u32| self.time.div_ceil(16 * per_warp * warps);
        let heads = u64::from(self.heads) * u64::from(self.batch);
        let fills = |warps: u32| 2 * heads * u64::from(half(warps)) >= u64::from(2 * arch.units);
        let warps = [4, 2].into_iter().find(|&warps| fills(warps)).unwrap_or(1);
        let tile = match d {
            16 => 128,
            128 => 32,
            _ => 64,
        };
        let values = if d == 128 { 32 * row * warps as usize } else { 0 };
        let grid = [2 * half(warps), self.heads, self.batch];
        Plan::new(format!("attention_backward_mma{d}_{dtype}"), grid, 32 * warps)
            .shared(2 * tile * (4 * row + 12) + values)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_hold_every_strip_and_fit_the_card() {
        for name in ["sm_80", "sm_86", "sm_90", "gfx1010", "gfx90a"] {
            let arch = Arch::claim(name).expect("in the table");
            for (batch, time, heads, head_dim) in [
                (1, 1, 1, 1),
                (8, 200, 8, 16),
                (1024, 200, 8, 16),
                (2, 1000, 3, 13),
                (64, 1000, 8, 16),
            ]
            .into_iter()
            .chain([
                (3, 257, 2, 24),
                (1, 8192, 16, 128),
                (5, 2048, 3, 100),
                (4, 777, 9, 64),
            ]) {
                let of = Extents { batch, time, heads, head_dim, scale: 0.25 };
                for dtype in ["f32", "bf16"] {
                    let strips = time.div_ceil(16);
                    let plan = of.plan(&arch, &format!("attention_{dtype}"));
                    let stage = &plan.stages[0];
                    let warps = stage.block / 32;
                    let each = strips.div_ceil(stage.grid[0]);
                    let hold = if head_dim > 64 { warps } else { 2 * warps };
                    let enough = if stage.kernel.contains("mma") {
                        each <= hold && warps <= 8 && (stage.grid[0] - 1) * each < strips
                    } else {
                        4 * stage.grid[0] >= strips
                    };
                    assert!(enough && stage.shared <= arch.shared, "{name} {of:?} {stage:?}");
                    let plan = of.plan_backward(&arch, &format!("attention_backward_{dtype}"));
                    let stage = &plan.stages[0];
                    let tidy = stage.kernel.contains("whole") == (stage.grid[0] == 1);
                    let fits = stage.shared <= arch.shared && stage.block <= 32 * strips.max(4);
                    assert!(tidy && fits, "{name} {of:?} {stage:?}");
                }
            }
        }
    }
}
