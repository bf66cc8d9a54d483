//! Geometry that several ops' plans share with their kernels.

use crate::backend::{Arch, Machine, Plan};

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

/// Threads of the largest block of most kernels (`THREADS` of `kernels/rows.h`).
const THREADS: usize = 256;

/// Rows that are held in the registers of some lanes each (`kernels/rows.h`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    rows: usize,
    cols: usize,
    lanes: usize,
}

impl Held {
    /// By no more lanes than most kernels' blocks have.
    pub(super) fn new(rows: u32, cols: u32) -> Self {
        Self::by(rows, cols, THREADS)
    }

    /// By as many as `LONG` of `kernels/norm.cu`.
    pub(super) fn long(arch: &Arch, rows: u32, cols: u32) -> Self {
        let cuda = matches!(arch.machine, Machine::Cuda { .. });
        Self::by(rows, cols, if cuda { 512 } else { THREADS })
    }

    /// As `by_width` of `kernels/rows.h`, `most` lanes at most.
    fn by(rows: u32, cols: u32, most: usize) -> Self {
        let (rows, cols) = (rows as usize, cols as usize);
        let lanes = match cols {
            0..=64 => 4,
            65..=128 => 8,
            129..=256 => 16,
            257..=512 => 32,
            513..=NARROW => 64,
            1025..=4096 => THREADS,
            _ => most,
        };
        Self { rows, cols, lanes }
    }

    /// `flight` rows at a time: blocks of 128 threads, smaller ones where those would be too few for the
    /// machine.
    pub(super) fn plan(self, kernel: &str, arch: &Arch, flight: usize) -> Plan {
        let blocks = |threads: usize| self.rows.div_ceil((threads / self.lanes).max(1) * flight);
        let threads = if blocks(128) >= 2 * arch.units as usize { 128 } else { 64 };
        let threads = threads.max(self.lanes).max(arch.wave as usize);
        Plan::blocks(kernel, blocks(threads), threads as u32)
    }

    /// Of rows beyond [`NARROW`], whole blocks: as many as run at once, which walk the rows.
    pub(super) fn walked(self, kernel: &str, arch: &Arch) -> Plan {
        let blocks = self.rows.min(resident(arch, 1024, self.lanes));
        Plan::blocks(kernel, blocks, self.lanes as u32)
    }

    /// For sums over the rows, two a column: as many blocks as run at once, which walk the rows, and a
    /// second stage.
    pub(super) fn sums(self, kernel: &str, arch: &Arch) -> Plan {
        let threads = self.lanes.max(128);
        // Threads hold their columns' sums besides the rows: a multiprocessor has registers for 512.
        let most = resident(arch, 512, threads);
        let blocks = self.rows.div_ceil(threads / self.lanes).clamp(1, most);
        add_partials(Plan::blocks(kernel, blocks, threads as u32), kernel, blocks, 2 * self.cols)
    }
}

/// Blocks of `threads` that run at once where a multiprocessor has room for `room` threads.
fn resident(arch: &Arch, room: usize, threads: usize) -> usize {
    room / threads * arch.units.max(1) as usize
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
                let held = Held::long(&arch, 1600, cols);
                // Where a block fills a multiprocessor there is one for each.
                let least = if held.lanes > THREADS { arch.units.min(50) } else { 50 };
                let plans = [1, 2].map(|flight| held.plan("x_f32", &arch, flight));
                for plan in plans.into_iter().chain([held.sums("x_f32", &arch)]) {
                    let stage = &plan.stages[0];
                    let block = stage.block as usize;
                    assert!(
                        block.is_multiple_of(held.lanes)
                            && block.is_multiple_of(arch.wave as usize)
                    );
                    assert!(stage.grid[0] >= least, "{name} {cols}: {stage:?}");
                }
            }
        }
    }
}
