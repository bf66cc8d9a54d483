//! Geometry that several ops' plans share with their kernels.

use crate::backend::{Arch, Plan};

/// The kernel of a further stage: "column_sums_bf16" and "end" give "column_sums_end_bf16".
pub(super) fn stage(kernel: &str, what: &str) -> String {
    match kernel.rsplit_once('_') {
        Some((op, dtype)) => format!("{op}_{what}_{dtype}"),
        None => format!("{kernel}_{what}"),
    }
}

/// Elements that a kernel of this name moves at once: 16 bytes.
pub(super) fn pack(kernel: &str) -> usize {
    if kernel.ends_with("16") { 8 } else { 4 }
}

/// For `n` independent elements: 8 a thread (`kernels/elementwise.cu`).
pub(super) fn elements(kernel: &str, n: usize) -> Plan {
    Plan::blocks(kernel, n.div_ceil(8 * 256), 256)
}

/// Longest row that a part of a block holds (`NARROW_COLUMNS` of `kernels/rows.h`).
pub(super) const NARROW: usize = 1024;

/// Most lanes that hold a row of most kernels (`THREADS` of `kernels/rows.h`).
pub(super) const LANES: usize = 256;

/// Lanes that hold a row, `most` at most, as `by_width` of `kernels/rows.h`.
fn lanes(cols: usize, most: usize) -> usize {
    match cols {
        0..=64 => 4,
        65..=128 => 8,
        129..=256 => 16,
        257..=512 => 32,
        513..=NARROW => 64,
        1025..=4096 => LANES,
        _ => most,
    }
}

/// For rows that are held in registers (`kernels/rows.h`) of `most` lanes at most, `flight` of them at a
/// time: blocks of 128 threads, smaller ones where those would be too few for the machine.
pub(super) fn rows(
    kernel: &str,
    arch: &Arch,
    (rows, cols): (usize, usize),
    most: usize,
    flight: usize,
) -> Plan {
    let lanes = lanes(cols, most);
    let blocks = |threads: usize| rows.div_ceil((threads / lanes).max(1) * flight);
    let threads = if blocks(128) >= 2 * arch.units as usize { 128 } else { 64 };
    let threads = threads.max(lanes).max(arch.wave as usize);
    Plan::blocks(kernel, blocks(threads), threads as u32)
}

/// For rows that are held by whole blocks: as many blocks as run at once, which walk the rows.
pub(super) fn wide_rows(
    kernel: &str,
    arch: &Arch,
    (rows, cols): (usize, usize),
    most: usize,
) -> Plan {
    let threads = lanes(cols, most);
    Plan::blocks(kernel, rows.min(1024 / threads * arch.units.max(1) as usize), threads as u32)
}

/// Bytes before the partial sums of a workspace (`kernels/partials.h`).
pub(super) const PARTIALS_HEADER: usize = 256;

/// Adds the stage that adds up the columns of `partials` rows of `width` sums
/// (`kernels/partials.h`), and the workspace they lie in.
pub(super) fn add_partials(plan: Plan, kernel: &str, partials: usize, width: usize) -> Plan {
    let blocks = u32::try_from(width.div_ceil(8).max(1)).unwrap_or(u32::MAX);
    plan.then(stage(kernel, "end"), [blocks, 1, 1], 256)
        .workspace(PARTIALS_HEADER + partials * width * size_of::<f32>())
}

/// For sums over rows that are held in registers of `most` lanes at most, two sums a column: as many
/// blocks as run at once, which walk the rows, and a second stage.
pub(super) fn row_sums(
    kernel: &str,
    arch: &Arch,
    (rows, cols): (usize, usize),
    most: usize,
) -> Plan {
    let lanes = lanes(cols, most);
    // Threads hold their columns' sums besides the rows: a multiprocessor has registers for 512.
    let threads = lanes.max(128);
    let resident = 512 / threads * arch.units.max(1) as usize;
    let blocks = rows.div_ceil(threads / lanes).clamp(1, resident);
    add_partials(Plan::blocks(kernel, blocks, threads as u32), kernel, blocks, 2 * cols)
}

/// A product whose sums may be split.
pub(super) struct Split {
    pub(super) plan: Plan,
    pub(super) splits: u32,
    /// The kernel that puts the parts together.
    pub(super) end: String,
    pub(super) m: usize,
    pub(super) n: usize,
}

impl Split {
    /// The plan, the product's blocks having `shared` bytes of dynamic shared memory.
    pub(super) fn with(self, shared: usize) -> Plan {
        let plan = self.plan.shared(shared);
        if self.splits == 1 {
            return plan;
        }
        let cells = self.m * self.n;
        // A block of 256 threads takes 64 packs of 4 elements, or 64 sums of A's rows.
        let packs = cells.div_ceil(4) + self.m;
        let blocks = u32::try_from(packs.div_ceil(64)).unwrap_or(u32::MAX);
        let workspace = 256 + 4 * self.splits as usize * (cells + self.m);
        plan.then(self.end, [blocks, 1, 1], 256).workspace(workspace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Machine;

    #[test]
    fn stages_are_named_by_what_they_do_and_the_type() {
        assert_eq!(stage("layernorm_params_bf16", "end"), "layernorm_params_end_bf16");
        assert_eq!((pack("axpy_f16"), pack("axpy_bf16"), pack("axpy_f32")), (8, 8, 4));
    }

    #[test]
    fn blocks_are_whole_teams_and_many_at_a_batch_of_8() {
        for name in Arch::claimable() {
            let arch = Arch::claim(name).expect("in the table");
            for cols in [1, 64, 65, 128, 200, 256, 512, 768, 1024, 1025, 4096, 9999] {
                let cuda = matches!(arch.machine, Machine::Cuda { .. });
                let most = if cuda { 512 } else { LANES };
                let plans = [1, 2].map(|flight| rows("x_f32", &arch, (1600, cols), most, flight));
                for plan in plans.into_iter().chain([row_sums("x_f32", &arch, (1600, cols), most)])
                {
                    let stage = &plan.stages[0];
                    let block = stage.block as usize;
                    assert!(
                        block.is_multiple_of(lanes(cols, most))
                            && block.is_multiple_of(arch.wave as usize)
                    );
                    assert!(stage.grid[0] >= arch.units.min(50), "{name} {cols}: {stage:?}");
                }
            }
        }
    }
}
