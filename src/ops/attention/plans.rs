//! Which kernels attention runs on, and how they are launched.

use super::Extents;
use crate::backend::{Arch, Machine, Plan};
use crate::ops::size;

/// Head dimensions that kernels on multiply-add units are built for; others use the next larger.
const PLAIN_DIMS: [u32; 5] = [8, 16, 32, 64, 128];
/// Head dimensions of the kernels for RDNA, forward and backward.
const RDNA_DIMS: [u32; 3] = [16, 32, 64];
const RDNA_BACKWARD_DIMS: [u32; 2] = [16, 32];
/// Those of kernels on matrix units, whose products are 16 deep.
const MATRIX_DIMS: [u32; 4] = [16, 32, 64, 128];

/// True where the kernels of `kernels/cuda/attention*.cu` run.
fn on_matrix_units(arch: &Arch, dtype: &str) -> bool {
    matches!(arch.machine, Machine::Cuda { sm } if sm >= 80) && matches!(dtype, "bf16" | "f16")
}

/// True where the kernels of `kernels/hip/attention.hip` run: on RDNA, for heads they are built for.
fn on_rdna(arch: &Arch, dtype: &str, dims: &[u32], head_dim: u32) -> bool {
    arch.is_rdna() && matches!(dtype, "f32" | "f16") && dims.contains(&head_dim)
}

impl Extents {
    pub(super) fn plan(&self, arch: &Arch, kernel: &str) -> Plan {
        let dtype = kernel.trim_start_matches("attention_");
        if self.on_warpgroups(arch, dtype) {
            self.by_warpgroups(arch, dtype)
        } else if on_matrix_units(arch, dtype) {
            self.on_matrices(arch, dtype)
        } else if on_rdna(arch, dtype, &RDNA_DIMS, self.head_dim) {
            self.by_rows("attention", dtype, 1)
        } else {
            self.plain(dtype)
        }
    }

    pub(super) fn plan_backward(&self, arch: &Arch, kernel: &str) -> Plan {
        let dtype = kernel.trim_start_matches("attention_backward_");
        if self.on_warpgroups(arch, dtype) {
            return self.backward_by_warpgroups(dtype);
        }
        if on_rdna(arch, dtype, &RDNA_BACKWARD_DIMS, self.head_dim) {
            return self.by_rows("attention_backward", dtype, 2);
        }
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

    /// A lane for each row of a head, `sides` times: of queries, or of keys and then of queries.
    fn by_rows(&self, name: &str, dtype: &str, sides: u32) -> Plan {
        let grid = [sides * self.time.div_ceil(32), self.heads, self.batch];
        Plan::new(format!("{name}_rdna_d{}_{dtype}", self.head_dim), grid, 32)
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

    /// True where the kernels of `kernels/cuda/attention_wgmma*.cu` run: on Hopper, where rows of heads
    /// and blocks of queries are not mostly padding.
    fn on_warpgroups(&self, arch: &Arch, dtype: &str) -> bool {
        arch.machine == (Machine::Cuda { sm: 90 })
            && matches!(dtype, "bf16" | "f16")
            && self.head_dim > 32
            && self.time >= 128
    }

    /// Blocks of 128 queries; with head dimensions up to 64 of 192, which take a sixth less time a row
    /// where the card is full, unless too many of their rows would be past the last.
    fn by_warpgroups(&self, arch: &Arch, dtype: &str) -> Plan {
        let blocks = |teams: u32| self.time.div_ceil(64 * teams);
        let heads = u64::from(self.heads) * u64::from(self.batch);
        let full = u64::from(blocks(3)) * heads >= u64::from(2 * arch.units);
        let (d, teams, shared) = match self.head_dim {
            0..=64 if full && 5 * 3 * blocks(3) <= 6 * 2 * blocks(2) => (64, 3, 156_800),
            0..=64 => (64, 2, 148_608),
            _ => (128, 2, 164_928),
        };
        let grid = [blocks(teams), self.heads, self.batch];
        Plan::new(format!("attention_wgmma{d}x{teams}_{dtype}"), grid, 128 * (teams + 1))
            .shared(shared)
    }

    /// What is known of each query, then blocks of 128 keys and as many of 128 queries.
    fn backward_by_warpgroups(&self, dtype: &str) -> Plan {
        let blocks = self.time.div_ceil(128);
        let (d, shared) = if self.head_dim <= 64 { (64, 169_024) } else { (128, 199_744) };
        // Two numbers a query.
        let queries = blocks as usize * 128 * self.heads as usize;
        let workspace = queries * self.batch as usize * 2 * size_of::<f32>();
        let first = [size(queries / (256 / (d / 8))), 1, self.batch];
        Plan::new(format!("attention_backward_statistics{d}_{dtype}"), first, 256)
            .then(
                format!("attention_backward_wgmma{d}_{dtype}"),
                [2 * blocks, self.heads, self.batch],
                384,
            )
            .shared(shared)
            .workspace(workspace)
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warpgroups_take_long_wide_heads_on_hopper() {
        let kernel = |name: &str, (batch, time, heads, head_dim): (u32, u32, u32, u32)| {
            let arch = Arch::claim(name).expect("in the table");
            let of = Extents { batch, time, heads, head_dim, scale: 0.25 };
            let plan = of.plan_backward(&arch, "attention_backward_f16");
            let rows = 128 * time.div_ceil(128);
            let two = plan.stages.len() == 2;
            assert_eq!(plan.workspace, if two { (batch * heads * rows * 8) as usize } else { 0 });
            let lanes = if head_dim <= 64 { 8 } else { 16 };
            assert!(!two || plan.stages[0].grid[0] * 256 == rows * heads * lanes, "{plan:?}");
            (of.plan(&arch, "attention_f16").stages[0].kernel.clone(), two)
        };
        for (name, extents, forward, two) in [
            ("sm_90", (4, 2048, 16, 64), "attention_wgmma64x3_f16", true),
            ("sm_90", (32, 200, 16, 64), "attention_wgmma64x2_f16", true),
            ("sm_90", (1, 1000, 4, 40), "attention_wgmma64x2_f16", true),
            ("sm_90", (1, 8192, 16, 128), "attention_wgmma128x2_f16", true),
            ("sm_90", (1, 128, 1, 65), "attention_wgmma128x2_f16", true),
            ("sm_90", (64, 127, 16, 64), "attention_mma64_f16", false),
            ("sm_90", (4, 2048, 16, 32), "attention_mma32_f16", false),
            ("sm_80", (4, 2048, 16, 64), "attention_mma64_f16", false),
            ("sm_120", (4, 2048, 16, 64), "attention_mma64_f16", false),
        ] {
            assert_eq!(kernel(name, extents), (forward.to_string(), two), "{name} {extents:?}");
        }
    }

    #[test]
    fn rdna_takes_the_heads_it_is_built_for() {
        for (name, dtype, head_dim, forward, backward) in [
            ("gfx1010", "f32", 16, "attention_rdna_d16_f32", "attention_backward_rdna_d16_f32"),
            ("gfx1010", "f16", 32, "attention_rdna_d32_f16", "attention_backward_rdna_d32_f16"),
            ("gfx1030", "f32", 64, "attention_rdna_d64_f32", "attention_backward_d64_f32"),
            ("gfx1100", "bf16", 16, "attention_d16_bf16", "attention_backward_d16_bf16"),
            ("gfx1010", "f32", 15, "attention_d16_f32", "attention_backward_d16_f32"),
            ("gfx90a", "f32", 16, "attention_d16_f32", "attention_backward_d16_f32"),
        ] {
            let arch = Arch::claim(name).expect("in the table");
            let of = Extents { batch: 2, time: 200, heads: 3, head_dim, scale: 0.25 };
            let plan = of.plan(&arch, &format!("attention_{dtype}"));
            assert_eq!(plan.stages[0].kernel, forward, "{name}");
            let plan = of.plan_backward(&arch, &format!("attention_backward_{dtype}"));
            assert_eq!(plan.stages[0].kernel, backward, "{name}");
        }
    }

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
                    let enough = if stage.kernel.contains("wgmma") {
                        // A warpgroup loads, each other one has four strips.
                        let hold = warps - 4;
                        time >= 128 && each <= hold && (stage.grid[0] - 1) * hold < strips
                    } else if stage.kernel.contains("mma") {
                        each <= hold && warps <= 8 && (stage.grid[0] - 1) * each < strips
                    } else if stage.kernel.contains("rdna") {
                        stage.block == 32 && 2 * stage.grid[0] >= strips
                    } else {
                        4 * stage.grid[0] >= strips
                    };
                    assert!(enough && stage.shared <= arch.shared, "{name} {of:?} {stage:?}");
                    let plan = of.plan_backward(&arch, &format!("attention_backward_{dtype}"));
                    let stage = plan.stages.last().expect("at least one");
                    let tidy = stage.kernel.contains("whole") == (stage.grid[0] == 1);
                    let fits = stage.shared <= arch.shared && stage.block <= 32 * strips.max(4);
                    assert!(tidy && fits, "{name} {of:?} {stage:?}");
                }
            }
        }
    }
}
