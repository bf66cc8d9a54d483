//! Which kernel computes a product on which card, in how many tiles and splits.

use super::gemm::{
    ACCUMULATE, BIAS, DROPOUT, GELU, GELU_SLOPE, Gemm, RESIDUAL, SUMS, SUMS_ACCUMULATE,
};
use super::plans;
use crate::backend::{Arch, Machine, Map, Plan};

/// From this length on, sums over k are split among blocks where tiles are few.
const LONG_K: u32 = 1024;
/// Least length of one block's share of k.
const LEAST_SHARE: u32 = 128;
/// Up to this length a quarter of the card's blocks beats splits, each of which leaves all of C in f32.
const WHOLE_K: u32 = 4096;
const HOPPER: Machine = Machine::Cuda { sm: 90 };
/// Of kernels for f32 that round what they multiply.
const TF32: &str = "tf32";
/// Up to this length one block's sum is no slower than splits and their end (`kernels/cuda/gemm_small.cu`).
const SHORT_K: u32 = 2048;
/// What a multiprocessor fetches of an operand (rows or columns times k) while a tile's launch ends, one of
/// 64 columns leaves, and while it does with a GELU, a mask or a matrix to be put together with.
const SETTING_UP: u64 = 56_000;
const LEAVING: u64 = 4_000;
const FINISHING: u64 = 50_000;

impl Gemm {
    pub(super) fn plan(&self, arch: &Arch, kernel: &str) -> Plan {
        let dtype = kernel.trim_start_matches("gemm_");
        let has_matrix_units = matches!(arch.machine, Machine::Cuda { sm } if sm >= 80);
        // What matrix units take of it.
        let taken = match dtype {
            "f32" => arch.wishes.tf32.then_some(TF32),
            _ => Some(dtype),
        };
        let taken = taken.filter(|_| has_matrix_units);
        // Of these kernels the tn ones alone sum the rows of A.
        let on_rdna = arch.is_rdna() && (self.flags & SUMS == 0 || self.layout() == Some("tn"));
        match (self.layout(), taken) {
            (Some(layout), Some(TF32)) => self.copied(arch, &format!("gemm_{layout}"), TF32),
            (Some(layout), Some(halves)) => self.tiled(arch, layout, halves),
            (Some(layout), None) if on_rdna => self.on_rdna(arch, layout, dtype),
            _ => self.plain_tiles(arch, dtype),
        }
    }

    /// Blocks of two waves, 64 x 64 elements each (`kernels/hip/gemm.hip`).
    fn on_rdna(&self, arch: &Arch, layout: &str, dtype: &str) -> Plan {
        let (kernel, tiles) = (format!("gemm_{layout}_rdna_{dtype}"), self.m.div_ceil(64));
        self.split(arch, &kernel, tiles * self.n.div_ceil(64), 64, dtype).with(0)
    }

    /// Which way round the operands lie, in the words of the matrix kernels.
    pub(super) fn layout(&self) -> Option<&'static str> {
        match (self.a_cs == 1, self.b_cs == 1) {
            (true, false) if self.b_rs == 1 => Some("nt"),
            (true, true) => Some("nn"),
            (false, true) if self.a_rs == 1 => Some("tn"),
            _ => None,
        }
    }

    /// On the copy engine where there is one and the product suits it, else as its threads copy.
    fn tiled(&self, arch: &Arch, layout: &str, dtype: &str) -> Plan {
        let kernel = format!("gemm_{layout}");
        let copied = self.copied(arch, &kernel, dtype);
        match self.cut(arch, layout) {
            Some(cut) => self.on_copy_engine(arch, &kernel, dtype, cut, copied),
            None => copied,
        }
    }

    /// Tiles of 128 x 128 where they fill the card, else of 64 x 64, of 64 x 32 where those are few.
    fn copied(&self, arch: &Arch, kernel: &str, dtype: &str) -> Plan {
        let tiles = |tile: u32| self.m.div_ceil(tile) * self.n.div_ceil(tile) * self.batch;
        let small = self.m.div_ceil(64) * self.n.div_ceil(32);
        // Sums that are worth splitting: putting them together is a kernel more, and passes over C in f32.
        let long = self.k >= LONG_K && self.batch == 1 && (self.k > WHOLE_K || small < arch.units);
        let wide = self.m > 64 && self.n > 64;
        if arch.machine == HOPPER && dtype != TF32 && wide && (2 * tiles(128) >= arch.units || long)
        {
            let (kernel, blocks) = (format!("{kernel}_wgmma_{dtype}"), tiles(128) / self.batch);
            return self.split(arch, &kernel, blocks, 256, dtype).with(99_328);
        }
        let (tile, blocks, threads, shared) = if wide && (tiles(128) >= arch.units || long) {
            (128, tiles(128) / self.batch, 256, 73_728)
        } else if tiles(64) >= 2 * arch.units || long || dtype == TF32 {
            (64, tiles(64) / self.batch, 128, 32_768)
        } else {
            (32, small, 128, 49_152)
        };
        self.split(arch, &format!("{kernel}_{tile}_{dtype}"), blocks, threads, dtype).with(shared)
    }

    fn plain_tiles(&self, arch: &Arch, dtype: &str) -> Plan {
        let tiles = |tile: u32| self.m.div_ceil(tile) * self.n.div_ceil(tile);
        let nvidia = matches!(arch.machine, Machine::Cuda { .. });
        let (kernel, blocks) = match nvidia && tiles(128) * self.batch >= arch.units {
            true => ("gemm_large", tiles(128)),
            false => ("gemm", tiles(64)),
        };
        self.split(arch, &format!("{kernel}_{dtype}"), blocks, 256, dtype).with(0)
    }

    /// `blocks` tiles a product, k split among several blocks where it is long and there are few.
    fn split(
        &self,
        arch: &Arch,
        kernel: &str,
        blocks: u32,
        threads: u32,
        dtype: &str,
    ) -> plans::Split {
        let few = self.batch == 1 && self.k >= LONG_K && blocks < arch.units;
        let splits = match few {
            true => (2 * arch.units / blocks).clamp(1, self.k.div_ceil(LEAST_SHARE)),
            false => 1,
        };
        let plan = Plan::new(kernel, [blocks, splits, self.batch], threads);
        let end = format!("gemm_end_{}", if dtype == TF32 { "f32" } else { dtype });
        plans::Split { plan, splits, end, m: self.m as usize, n: self.n as usize }
    }
}

/// Tiles of a kernel on the copy engine, and how many a multiprocessor gets.
#[derive(Debug, Clone, Copy)]
struct Cut {
    rows: u32,
    columns: u32,
    rounds: u32,
    /// In rows or columns of an operand that are fetched, times k.
    cost: u64,
}

/// For the copy engine of Hopper.
impl Gemm {
    /// Elements between what lies side by side along k, or along m and n.
    fn pitches(&self, layout: &str) -> [u32; 2] {
        let a = if layout == "tn" { self.a_cs } else { self.a_rs };
        [a, if layout == "nt" { self.b_cs } else { self.b_rs }]
    }

    /// True for products that one of its kernels could take.
    fn fits_copy_engine(&self, arch: &Arch, layout: &str) -> bool {
        let lie = self.pitches(layout).into_iter().chain([self.n]).all(|n| n.is_multiple_of(8));
        let wide = self.m > 64 && self.n > 64 && self.k > 0;
        arch.machine == HOPPER && lie && wide && self.batch == 1
    }

    /// How the kernel that is fastest cuts C; None where none of the copy engine's is.
    fn cut(&self, arch: &Arch, layout: &str) -> Option<Cut> {
        if !self.fits_copy_engine(arch, layout) {
            return None;
        }
        let (small, large) = (self.small(arch, layout), self.large(arch));
        small.into_iter().chain(large).min_by_key(|cut| cut.cost)
    }

    /// What it takes till the last of `rounds` tiles on one multiprocessor has left.
    fn cost(&self, rows: u32, columns: u32, rounds: u32) -> u64 {
        let plain = self.flags & !(BIAS | SUMS | SUMS_ACCUMULATE) == 0;
        let leaving = if plain { LEAVING } else { FINISHING };
        u64::from(rounds * (rows + columns)) * u64::from(self.k) + u64::from(columns / 64) * leaving
    }

    /// One tile a block, all blocks at once (`kernels/cuda/gemm_small.cu`).
    fn small(&self, arch: &Arch, layout: &str) -> Option<Cut> {
        let sums = self.flags & SUMS != 0 && layout != "tn";
        // Tiles and how many of them find room on a multiprocessor.
        let tiles = [(64, 3), (128, 2)].into_iter().take(if layout == "tn" { 1 } else { 2 });
        let cuts = tiles.filter_map(|(columns, most)| {
            let blocks = self.m.div_ceil(64) * self.n.div_ceil(columns);
            let rounds = blocks.div_ceil(arch.units);
            let cost = self.cost(64, columns, rounds);
            (rounds <= most).then_some(Cut { rows: 64, columns, rounds, cost })
        });
        cuts.min_by_key(|cut| cut.cost).filter(|_| !sums && self.k <= SHORT_K)
    }

    /// Blocks that stay for many tiles (`kernels/cuda/gemm_tma.cu`).
    fn large(&self, arch: &Arch) -> Option<Cut> {
        let tiles = u64::from(self.m.div_ceil(128)) * u64::from(self.n.div_ceil(128));
        // Few long sums are better split.
        let least = u64::from(arch.units.div_ceil(4)) * u64::from(self.k.div_ceil(WHOLE_K));
        if tiles < least || self.flags & SUMS != 0 {
            return None;
        }
        // Blocks are pairs, one above the other. They stay and take tile after tile: the last round may
        // find few.
        let pairs = |columns: u32| self.m.div_ceil(256) * self.n.div_ceil(columns);
        let rounds = |columns: u32| pairs(columns).div_ceil(arch.units / 2);
        // What C is put together with has no room beside 256 columns.
        let brings = self.flags & (RESIDUAL | ACCUMULATE | GELU_SLOPE) != 0;
        let widths = [256, 192, 128].into_iter().skip(usize::from(brings));
        // A tile costs its columns, and what keeps the products waiting between tiles.
        let columns = widths.min_by_key(|&columns| rounds(columns) * (columns + 16))?;
        let cost = self.cost(128, columns, rounds(columns)) + SETTING_UP;
        Some(Cut { rows: 128, columns, rounds: rounds(columns), cost })
    }

    /// The kernel's plan; `other` is for operands that the copy engine cannot take.
    fn on_copy_engine(
        &self,
        arch: &Arch,
        kernel: &str,
        dtype: &str,
        cut: Cut,
        other: Plan,
    ) -> Plan {
        let columns = cut.columns;
        let plan = if cut.rows == 64 {
            let grid = [self.n.div_ceil(columns), self.m.div_ceil(64), 1];
            // With fewer buffers than k fills, three blocks fit where there are as many.
            let room = if cut.rounds > 2 { 75 << 10 } else { 113 << 10 };
            let ones = if self.layout() == Some("tn") { 1024 } else { 0 };
            let (buffer, rest) = ((64 + columns) * 128 + 16, 16_384 + ones + 32);
            let buffers = self.k.div_ceil(64).min((room - rest) / buffer);
            let shared = (rest + buffers * buffer) as usize;
            Plan::new(format!("{kernel}_small_{columns}_{dtype}"), grid, 160).shared(shared)
        } else {
            let blocks = 2 * self.m.div_ceil(256) * self.n.div_ceil(columns);
            let grid = [blocks.min(arch.units / 2 * 2), 1, 1];
            Plan::new(format!("{kernel}_tma_{columns}_{dtype}"), grid, 384).shared(232_448)
        };
        plan.maps(self.maps()).or(other)
    }

    /// A, B, C, and the matrix beside C that the kernel reads or writes.
    fn maps(&self) -> Vec<Map> {
        let layout = self.layout().unwrap_or_default();
        let [a_pitch, b_pitch] = self.pitches(layout);
        let (m, n, k) = (self.m, self.n, self.k);
        let read = |operand, (rows, cols): (u32, u32), pitch| Map {
            operand,
            rows,
            cols,
            pitch,
            box_rows: 64,
            needed: true,
        };
        let (a, b) = match layout {
            "nt" => ((m, k), (n, k)),
            "nn" => ((m, k), (k, n)),
            _ => ((k, m), (k, n)),
        };
        let has = |flag: u32| usize::from(self.flags & flag != 0);
        let residual = 2 + has(BIAS) + has(DROPOUT);
        let c = residual + has(RESIDUAL) + has(GELU_SLOPE);
        let beside = match (has(GELU), has(RESIDUAL), has(GELU_SLOPE)) {
            (1, ..) => c + 1,
            (_, 1, _) => residual,
            (.., 1) => c - 1,
            _ => c,
        };
        let like_c =
            |operand| Map { operand, rows: m, cols: n, pitch: n, box_rows: 16, needed: false };
        vec![read(0, a, a_pitch), read(1, b, b_pitch), like_c(c), like_c(beside)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Stage;

    fn stage(plan: Plan) -> Stage {
        plan.stages.into_iter().next().expect("a plan has a stage")
    }

    fn named(gemm: &Gemm, card: &str) -> String {
        stage(gemm.plan(&Arch::claim(card).expect("in the table"), "gemm_bf16")).kernel
    }

    #[test]
    fn the_copy_engine_gets_what_it_can_take() {
        let chosen = |dims, flags| named(&Gemm::dense(dims, false, true, flags), "sm_90");
        for (dims, flags, kernel) in [
            ((4096, 4096, 4096), 0, "gemm_nt_tma_256_bf16"),
            ((3072, 3072, 3072), BIAS, "gemm_nt_tma_192_bf16"),
            ((51_200, 128, 512), BIAS | DROPOUT | RESIDUAL, "gemm_nt_tma_128_bf16"),
            ((6400, 384, 128), BIAS, "gemm_nt_tma_192_bf16"),
            ((6400, 1024, 256), BIAS | GELU, "gemm_nt_tma_256_bf16"),
            // All tiles at once.
            ((1600, 1024, 256), BIAS | GELU, "gemm_nt_small_128_bf16"),
            ((1600, 256, 1024), BIAS | DROPOUT | RESIDUAL, "gemm_nt_small_64_bf16"),
            ((1600, 768, 256), BIAS, "gemm_nt_small_64_bf16"),
            ((1600, 384, 128), BIAS, "gemm_nt_small_128_bf16"),
            ((6400, 128, 512), 0, "gemm_nt_small_128_bf16"),
            ((6400, 128, 512), BIAS | DROPOUT | RESIDUAL, "gemm_nt_small_64_bf16"),
            ((256, 256, 256), 0, "gemm_nt_small_64_bf16"),
            // Rows that are not on 16 bytes, sums of rows, one row of tiles, few and long sums.
            ((4096, 4096, 4092), 0, "gemm_nt_wgmma_bf16"),
            ((4096, 4092, 4096), 0, "gemm_nt_wgmma_bf16"),
            ((4096, 4096, 4096), SUMS, "gemm_nt_wgmma_bf16"),
            ((256, 256, 65_536), 0, "gemm_nt_wgmma_bf16"),
            ((256, 256, 256), SUMS, "gemm_nt_32_bf16"),
        ] {
            assert_eq!(chosen(dims, flags), kernel, "{dims:?} {flags}");
        }
        let gemm = Gemm { batch: 2, ..Gemm::dense((4096, 4096, 4096), false, true, 0) };
        assert_eq!(named(&gemm, "sm_90"), "gemm_nt_wgmma_bf16");
        let gemm = Gemm::dense((4096, 4096, 4096), false, true, 0);
        assert_eq!(named(&gemm, "sm_120"), "gemm_nt_128_bf16");
    }

    #[test]
    fn f32_is_rounded_only_on_request_and_where_the_card_can() {
        let gemm = Gemm::dense((8192, 512, 128), false, true, BIAS);
        for (card, tf32, kernel) in [
            ("sm_90", false, "gemm_large_f32"),
            ("sm_90", true, "gemm_nt_128_tf32"),
            ("sm_86", true, "gemm_nt_128_tf32"),
            ("gfx1010", true, "gemm_nt_rdna_f32"),
        ] {
            let mut arch = Arch::claim(card).expect("in the table");
            arch.wishes.tf32 = tf32;
            assert_eq!(stage(gemm.plan(&arch, "gemm_f32")).kernel, kernel, "{card} {tf32}");
        }
        let mut arch = Arch::claim("sm_90").expect("in the table");
        arch.wishes.tf32 = true;
        let split = Gemm::dense((128, 128, 65_536), true, false, SUMS).plan(&arch, "gemm_f32");
        let stages: Vec<&str> = split.stages.iter().map(|stage| stage.kernel.as_str()).collect();
        assert_eq!(stages, ["gemm_tn_128_tf32", "gemm_end_f32"]);
    }

    #[test]
    fn gradients_of_weights_are_split_where_the_sums_are_long() {
        for (rows, kernel) in [(1600, "gemm_tn_small_64_bf16"), (6400, "gemm_tn_wgmma_bf16")] {
            let gemm = Gemm::dense((1024, 256, rows), true, false, SUMS | ACCUMULATE);
            assert_eq!(named(&gemm, "sm_90"), kernel);
        }
    }

    #[test]
    fn buffers_of_small_tiles_leave_room_for_as_many_blocks() {
        let hopper = Arch::claim("sm_90").expect("in the table");
        for (dims, grid, blocks) in [
            ((1600, 1024, 256), [8, 25, 1], 2),
            ((1600, 256, 1024), [4, 25, 1], 2),
            ((1600, 768, 256), [12, 25, 1], 3),
        ] {
            let gemm = Gemm::dense(dims, false, true, BIAS);
            let stage = stage(gemm.plan(&hopper, "gemm_bf16"));
            assert_eq!(stage.grid, grid, "{dims:?}");
            // Each block takes 1 KiB besides.
            assert!(blocks * (stage.shared + 1024) <= 228 << 10, "{stage:?}");
        }
    }

    #[test]
    fn maps_are_of_the_operands_that_flags_add() {
        let hopper = Arch::claim("sm_90").expect("in the table");
        let beside = |flags| {
            let plan = Gemm::dense((4096, 4096, 64), true, false, flags).plan(&hopper, "gemm_f16");
            let other = plan.otherwise.as_deref().expect("for operands elsewhere").clone();
            assert_eq!(stage(other).kernel, "gemm_tn_wgmma_f16");
            let maps = stage(plan).maps;
            let [a, b, c, beside] = maps[..] else { panic!("{maps:?}") };
            assert_eq!((a.rows, a.cols, b.rows, b.cols), (64, 4096, 64, 4096));
            assert_eq!((c.rows, c.cols, c.pitch), (4096, 4096, 4096));
            (c.operand, beside.operand)
        };
        assert_eq!(beside(0), (2, 2));
        assert_eq!(beside(ACCUMULATE), (2, 2));
        assert_eq!(beside(BIAS | GELU), (3, 4));
        assert_eq!(beside(BIAS | DROPOUT | RESIDUAL), (5, 4));
        assert_eq!(beside(GELU_SLOPE), (3, 2));
    }
}
