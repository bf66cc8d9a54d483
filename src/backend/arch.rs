//! Facts about machines, and how an op runs on one.

use super::route::Wishes;

/// The family of a machine, with what tells its members apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// The host's processor.
    Cpu,
    /// NVIDIA; compute capability times ten, as in 86 or 90.
    Cuda {
        /// Compute capability times ten.
        sm: u32,
    },
    /// AMD; the number of its gfx name, as in 0x1010.
    Hip {
        /// Digits of the gfx name read as hexadecimal: 0x1010, 0x90a.
        gfx: u32,
    },
}

/// Facts about a machine that plans depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arch {
    /// "sm_90", "gfx1010", "cpu avx512".
    pub name: String,
    /// Family and member.
    pub machine: Machine,
    /// Threads that run in lockstep; 1 on the CPU.
    pub wave: u32,
    /// Multiprocessors, compute units or threads.
    pub units: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of shared memory (LDS) a block may have.
    pub shared: u32,
    /// Matrix instructions for 16-bit types.
    pub matrix_cores: bool,
    /// bfloat16 conversion in hardware.
    pub bf16: bool,
    /// The vendor's matrix product is at hand.
    pub blas: bool,
    /// What the user asked for, over the routing table.
    pub wishes: Wishes,
}

/// Name, machine, wave, units, GiB, shared KiB, matrix cores, bf16.
type Card = (&'static str, Machine, u32, u32, u64, u32, bool, bool);

/// Cards that can be claimed by name.
const CARDS: &[Card] = &[
    ("sm_80", Machine::Cuda { sm: 80 }, 32, 108, 40, 163, true, true),
    ("sm_86", Machine::Cuda { sm: 86 }, 32, 28, 12, 99, true, true),
    ("sm_89", Machine::Cuda { sm: 89 }, 32, 128, 24, 99, true, true),
    ("sm_90", Machine::Cuda { sm: 90 }, 32, 132, 139, 227, true, true),
    ("sm_120", Machine::Cuda { sm: 120 }, 32, 170, 32, 99, true, true),
    ("gfx1010", Machine::Hip { gfx: 0x1010 }, 32, 36, 6, 64, false, false),
    ("gfx1030", Machine::Hip { gfx: 0x1030 }, 32, 60, 16, 64, false, false),
    ("gfx1100", Machine::Hip { gfx: 0x1100 }, 32, 96, 24, 64, true, true),
    ("gfx1201", Machine::Hip { gfx: 0x1201 }, 32, 64, 16, 64, true, true),
    ("gfx90a", Machine::Hip { gfx: 0x90a }, 64, 104, 64, 64, true, true),
    ("gfx942", Machine::Hip { gfx: 0x942 }, 64, 304, 192, 64, true, true),
];

impl Arch {
    /// The published facts of a card, by the name of its architecture ("sm_90", "gfx1010"); None
    /// for a name not in the table.
    pub fn claim(name: &str) -> Option<Self> {
        let card = CARDS.iter().find(|card| card.0 == name)?;
        let &(name, machine, wave, units, gib, shared_kib, matrix_cores, bf16) = card;
        Some(Self {
            name: name.into(),
            machine,
            wave,
            units,
            memory: gib << 30,
            shared: shared_kib << 10,
            matrix_cores,
            bf16,
            // As shipped, rocBLAS has no code for RDNA1.
            blas: !is_rdna1(machine),
            wishes: Wishes::default(),
        })
    }

    /// The names [`Arch::claim`] knows.
    pub fn claimable() -> impl Iterator<Item = &'static str> {
        CARDS.iter().map(|card| card.0)
    }

    /// True for RDNA1 (gfx101x): no matrix cores, no bf16, GPU FFT known to hang.
    pub fn is_rdna1(&self) -> bool {
        is_rdna1(self.machine)
    }

    /// True for RDNA of any generation (gfx10 and later): cards that may drive a display.
    pub fn is_rdna(&self) -> bool {
        matches!(self.machine, Machine::Hip { gfx } if gfx >= 0x1000)
    }
}

fn is_rdna1(machine: Machine) -> bool {
    matches!(machine, Machine::Hip { gfx } if gfx & 0xfff0 == 0x1010)
}

/// How one op runs on one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// A kernel of the engine's own.
    Kernel(Plan),
    /// The vendor's matrix product: cuBLAS or hipBLAS.
    Blas,
    /// [`crate::backend::Op::host`].
    Host,
}

/// How an op's kernels are launched: one or several stages in order, and bytes they share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Launches, in order. All get the op's parameters and operands.
    pub stages: Vec<Stage>,
    /// Bytes of device memory that live from the first stage to the last, uninitialised.
    pub workspace: usize,
    /// What runs instead where an operand does not lie as a [`Map`] needs it.
    pub otherwise: Option<Box<Plan>>,
}

/// One launch: which kernel, how many blocks of how many threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Name of the entry point.
    pub kernel: String,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Operands that the kernel reaches by a copy engine: arguments of its own, in this order.
    pub maps: Vec<Map>,
}

/// A dense matrix of 16-bit elements as Hopper's copy engine sees it, which moves boxes of 64 columns
/// (`kernels/cuda/tma.h`). It must lie on 16 bytes, and its rows must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// Which operand: inputs, then outputs.
    pub operand: usize,
    /// Rows.
    pub rows: u32,
    /// Elements of a row.
    pub cols: u32,
    /// Elements between rows.
    pub pitch: u32,
    /// Rows of a box.
    pub box_rows: u32,
    /// The kernel cannot do without. Where another one cannot be made it gets zeros, and goes by the
    /// operands.
    pub needed: bool,
}

impl Plan {
    /// One launch.
    pub fn new(kernel: impl Into<String>, grid: [u32; 3], block: u32) -> Self {
        Self::default().then(kernel, grid, block)
    }

    /// One launch of `blocks` blocks along x, at least one.
    pub fn blocks(kernel: impl Into<String>, blocks: usize, block: u32) -> Self {
        Self::new(kernel, [u32::try_from(blocks.max(1)).unwrap_or(u32::MAX), 1, 1], block)
    }

    /// For `n` independent elements: blocks of 256 threads that take 4 elements each.
    pub fn elements(kernel: impl Into<String>, n: usize) -> Self {
        Self::blocks(kernel, n.div_ceil(1024), 256)
    }

    /// For `rows` rows of `cols`: a wave for a short row, a block of 256 for a long one.
    pub fn rows(kernel: impl Into<String>, arch: &Arch, rows: usize, cols: usize) -> Self {
        let per_block = if cols <= 1024 { (256 / arch.wave.max(1)) as usize } else { 1 };
        Self::blocks(kernel, rows.div_ceil(per_block), 256)
    }

    /// One more launch after those there are.
    #[must_use]
    pub fn then(mut self, kernel: impl Into<String>, grid: [u32; 3], block: u32) -> Self {
        self.stages.push(Stage { kernel: kernel.into(), grid, block, shared: 0, maps: Vec::new() });
        self
    }

    /// Gives the last stage so many bytes of dynamic shared memory.
    #[must_use]
    pub fn shared(mut self, bytes: usize) -> Self {
        if let Some(stage) = self.stages.last_mut() {
            stage.shared = u32::try_from(bytes).unwrap_or(u32::MAX);
        }
        self
    }

    /// Gives the last stage's kernel these operands by maps as well.
    #[must_use]
    pub fn maps(mut self, maps: Vec<Map>) -> Self {
        if let Some(stage) = self.stages.last_mut() {
            stage.maps = maps;
        }
        self
    }

    /// Names what runs instead where a map that is needed cannot be made.
    #[must_use]
    pub fn or(mut self, otherwise: Self) -> Self {
        self.otherwise = Some(Box::new(otherwise));
        self
    }

    /// Asks for so many bytes of workspace.
    #[must_use]
    pub fn workspace(mut self, bytes: usize) -> Self {
        self.workspace = bytes;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claimed_cards_keep_their_facts() {
        let card = Arch::claim("gfx1010").expect("in the table");
        assert!(card.is_rdna1() && !card.matrix_cores && card.wave == 32);
        let rdna2 = Arch::claim("gfx1030").expect("in the table");
        assert!(card.is_rdna() && rdna2.is_rdna() && !rdna2.is_rdna1());
        let cdna = Arch::claim("gfx90a").expect("in the table");
        assert!(cdna.wave == 64 && !cdna.is_rdna());
        assert!(Arch::claim("sm_10").is_none());
    }
}
