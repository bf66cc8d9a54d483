//! Facts about machines, and how an op runs on one.

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
        })
    }

    /// The names [`Arch::claim`] knows.
    pub fn claimable() -> impl Iterator<Item = &'static str> {
        CARDS.iter().map(|card| card.0)
    }

    /// True for RDNA1 (gfx101x): no matrix cores, no bf16, GPU FFT known to hang.
    pub fn is_rdna1(&self) -> bool {
        matches!(self.machine, Machine::Hip { gfx } if gfx & 0xfff0 == 0x1010)
    }
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

/// A launch: which kernel, how many blocks of how many threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Name of the entry point.
    pub kernel: String,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Route {
    /// For ops whose threads each take some of `n` independent elements, 4 at a time.
    pub fn elements(arch: &Arch, kernel: &str, n: usize) -> Self {
        let block = 256;
        Self::one_axis(arch, kernel, n.div_ceil(4 * block as usize), block)
    }

    /// For ops that reduce within each of `rows` rows of `cols`: a wave for a short row, a block
    /// for a long one.
    pub fn rows(arch: &Arch, kernel: &str, rows: usize, cols: usize) -> Self {
        let block = 256u32;
        let per_block = if cols <= 1024 { (block / arch.wave.max(1)) as usize } else { 1 };
        Self::one_axis(arch, kernel, rows.div_ceil(per_block), block)
    }

    /// `blocks` blocks along x.
    pub fn one_axis(arch: &Arch, kernel: &str, blocks: usize, block: u32) -> Self {
        if arch.machine == Machine::Cpu {
            return Self::Host;
        }
        let grid = [u32::try_from(blocks.max(1)).unwrap_or(u32::MAX), 1, 1];
        Self::Kernel(Plan { kernel: kernel.into(), grid, block, shared: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claimed_cards_keep_their_facts() {
        let card = Arch::claim("gfx1010").expect("in the table");
        assert!(card.is_rdna1() && !card.matrix_cores && card.wave == 32);
        assert!(!Arch::claim("gfx1030").expect("in the table").is_rdna1());
        assert_eq!(Arch::claim("gfx90a").expect("in the table").wave, 64);
        assert!(Arch::claim("sm_10").is_none());
    }
}
