//! Runs of row-wise ops that one kernel takes rows through, one op after the other
//! (`kernels/cuda/chain.cu`).
//!
//! In a recorded step of few rows, an op whose result the next one reads row by row is joined to it.
//! Ops in between that only read what the chain left (gradients of weights) move behind it, if they
//! touch nothing that the rest of the chain does. So that they do not, memory given back along a chain
//! is not used again before its end: see [`holds_back`].

use bytemuck::{Pod, Zeroable};

use super::driver::{Launch, Operands};
use super::lanes::Touched;
use super::queue::words;
use crate::backend::route::{Choice, choose_op};
use crate::backend::{Arch, Io, Machine, Op, Plan, Stage};
use crate::ops::dropout::Dropout;
use crate::ops::gemm::{Gemm, SUMS};
use crate::ops::layernorm::{LayerNorm, LayerNormBackward};
use crate::ops::philox::threshold;
use crate::{DType, Result};

/// Most ops of one chain; `MAX_LINKS` of the kernel.
const MOST: usize = 8;
/// Ops in a row that may move behind a chain.
const SKIPPED: usize = 2;
/// Rows of a block.
const ROWS: u32 = 16;
/// Warps of a block.
const WARPS: u32 = 16;
/// Most weights of a product, which every block reads: from some 150 thousand on, 6.5 us by themselves.
const WEIGHTS: u32 = 1 << 17;
/// Widest row of an op that is no product.
const WIDEST: u32 = 512;
/// Bytes that a warp's weights pass through.
const TILES: u32 = 3 * 16 * 64 * 2;

/// What kind of op a link is, as the kernel numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gemm,
    LayerNorm,
    LayerNormBackward,
    Dropout,
}

/// An op that can be a part of a chain: it makes each row of its first result of the same row of its
/// first operand.
#[derive(Debug, Clone)]
pub struct Link {
    kind: Kind,
    dtype: DType,
    /// 0 where the op does not know.
    rows: u32,
    /// Elements of a row it reads, and of a row it leaves; of all rows where it does not know them.
    width: u32,
    leaves: u32,
    /// Addresses of its first operand and first result.
    reads: u64,
    writes: u64,
    params: [u32; 14],
    /// As the op alone would get them.
    pub operands: Operands,
}

/// A link as the kernel reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Packed {
    kind: u32,
    width: u32,
    /// Of a mask: words below it drop, and what stays is multiplied by `keep`.
    limit: u32,
    keep: f32,
    params: [u32; 14],
    operands: Operands,
}

/// Argument 0 of the kernel.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Chain {
    rows: u32,
    count: u32,
    pitches: [u32; 2],
    links: [Packed; MOST],
}

const _: () = assert!(size_of::<Packed>() == 184 && size_of::<Chain>() == 16 + MOST * 184);

/// Most rows at which a chain is faster than its ops: one block on each multiprocessor.
fn most_rows(arch: &Arch) -> u32 {
    ROWS * arch.units
}

impl Link {
    /// The op as a link; None where it cannot be one on this machine.
    pub fn of(op: &dyn Op, io: Io<'_>, arch: &Arch) -> Option<Self> {
        let on_matrix_units = matches!(arch.machine, Machine::Cuda { sm } if sm >= 80);
        let free = choose_op(op.name(), arch) != Choice::Host && !arch.wishes.wants_vendor();
        if !on_matrix_units || !free {
            return None;
        }
        let mut params = [0u32; 14];
        let bytes = op.params();
        bytemuck::bytes_of_mut(&mut params).get_mut(..bytes.len())?.copy_from_slice(bytes);
        let (kind, [rows, width, leaves]) = shape(op, bytes)?;
        let (first, result) = (io.inputs.first()?, io.outputs.first()?);
        let dtype = first.dtype;
        let halves = matches!(dtype, DType::Bf16 | DType::F16);
        // Vectors may be of another type: their kernels go by what they find.
        let matrices = io.inputs.iter().chain(io.outputs).filter(|view| view.shape.rank() > 1);
        let alike = matrices.clone().all(|view| view.dtype == dtype) && result.dtype == dtype;
        let lies = io.inputs.iter().chain(io.outputs).all(|view| view.address.is_multiple_of(16));
        if !halves || !alike || !lies || rows > most_rows(arch) {
            return None;
        }
        let (reads, writes) = (first.address, result.address);
        let operands = Operands::of(op.name(), io).ok()?;
        Some(Self { kind, dtype, rows, width, leaves, reads, writes, params, operands })
    }

    /// As `Mask` of `kernels/portable.h` derives them from the probability.
    fn mask(&self) -> (u32, f32) {
        let probability = match self.kind {
            Kind::Gemm => f32::from_bits(self.params[12]),
            Kind::Dropout => f32::from_bits(self.params[2]),
            _ => 0.0,
        };
        (threshold(probability), (1.0 / (1.0 - f64::from(probability))) as f32)
    }

    /// The link with the rows that it gets from the one before; None where it cannot follow that.
    fn after(&self, before: &Self) -> Option<Self> {
        let mut link = self.clone();
        if link.rows == 0 {
            let whole = before.rows.checked_mul(before.leaves) == Some(link.width);
            (link.rows, link.width, link.leaves) = (before.rows, before.leaves, before.leaves);
            whole.then_some(())?;
        }
        let fits = link.rows == before.rows && link.width == before.leaves;
        (fits && link.reads == before.writes && link.dtype == before.dtype).then_some(link)
    }
}

/// Kind of an op, its rows, and the elements of a row before and after.
fn shape(op: &dyn Op, params: &[u8]) -> Option<(Kind, [u32; 3])> {
    let narrow = |cols: u32| cols.is_multiple_of(8) && cols <= WIDEST;
    Some(match op.name() {
        "gemm" => {
            let g = bytemuck::pod_read_unaligned::<Gemm>(params);
            let dense = g.a_cs == 1 && g.a_rs == g.k && g.batch == 1 && g.flags & SUMS == 0;
            let right = (g.b_rs == 1 && g.b_cs.is_multiple_of(8))
                || (g.b_cs == 1 && g.b_rs.is_multiple_of(8));
            let whole = g.k.is_multiple_of(32) && g.n.is_multiple_of(16) && g.m > 0 && g.k > 0;
            let small = u64::from(g.k) * u64::from(g.n) <= WEIGHTS.into();
            (dense && right && whole && small).then_some((Kind::Gemm, [g.m, g.k, g.n]))?
        }
        "layernorm" => {
            let norm = bytemuck::pod_read_unaligned::<LayerNorm>(params);
            let (rows, cols) = (norm.rows, norm.cols);
            narrow(cols).then_some((Kind::LayerNorm, [rows, cols, cols]))?
        }
        "layernorm_backward" => {
            let norm = bytemuck::pod_read_unaligned::<LayerNormBackward>(params);
            let (rows, cols) = (norm.rows, norm.cols);
            narrow(cols).then_some((Kind::LayerNormBackward, [rows, cols, cols]))?
        }
        "dropout" => {
            let cells = bytemuck::pod_read_unaligned::<Dropout>(params).n;
            (Kind::Dropout, [0, cells, cells])
        }
        _ => return None,
    })
}

/// Whether memory that is given back once this op is enqueued must not be used again before the chain
/// ends: Some(true) from a link on, Some(false) from an op on that no chain goes past.
pub fn holds_back(op: &str, is_link: bool) -> Option<bool> {
    match op {
        _ if is_link => Some(true),
        "gemm" | "column_sums" | "layernorm_params" => None,
        _ => Some(false),
    }
}

/// A chain while it is put together.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its ops, by place in the list.
    pub ops: Vec<usize>,
    links: Vec<Link>,
}

impl Group {
    /// Widest row of each panel.
    fn widths(&self) -> [u32; 2] {
        let widest = |panel: usize| self.links.iter().skip(panel).step_by(2).map(|l| l.width).max();
        [0, 1].map(|panel| widest(panel).unwrap_or(0))
    }

    /// Elements between rows of each panel: 8 rows of 16 bytes then lie in different banks.
    fn pitches(&self) -> [u32; 2] {
        self.widths().map(|width| (width.div_ceil(8) | 1) * 8)
    }

    /// Bytes of shared memory of a block.
    fn shared(&self) -> u32 {
        WARPS * (TILES + ROWS * 20 * 4) + ROWS * self.pitches().iter().sum::<u32>() * 2
    }

    fn joined(&self, at: usize, link: &Link, arch: &Arch) -> Option<Self> {
        let mut group = self.clone();
        group.links.push(link.after(self.links.last()?)?);
        group.ops.push(at);
        (group.links.len() <= MOST && group.shared() <= arch.shared).then_some(group)
    }

    /// The launch that runs the chain; None for no links.
    ///
    /// # Errors
    /// What `function` returns, which finds a kernel.
    pub fn launch<F>(
        &self,
        function: impl FnOnce(&Stage) -> Result<F>,
    ) -> Result<Option<Launch<F>>> {
        let Some(first) = self.links.first() else { return Ok(None) };
        let mut chain: Chain = Zeroable::zeroed();
        (chain.rows, chain.count) = (first.rows, self.links.len() as u32);
        chain.pitches = self.pitches();
        for (to, link) in chain.links.iter_mut().zip(&self.links) {
            let &Link { kind, width, params, operands, .. } = link;
            let (limit, keep) = link.mask();
            *to = Packed { kind: kind as u32, width, limit, keep, params, operands };
        }
        let kernel = format!("chain_{}", first.dtype.name());
        let blocks = first.rows.div_ceil(ROWS) as usize;
        let plan = Plan::blocks(kernel, blocks, 32 * WARPS).shared(self.shared() as usize);
        let Some(stage) = plan.stages.into_iter().next() else { return Ok(None) };
        let params = words(bytemuck::bytes_of(&chain));
        let operands = Operands::zeroed();
        Ok(Some(Launch { function: function(&stage)?, stage, params, operands, maps: [].into() }))
    }
}

/// The ops of a list in an order that is as right as theirs, those that make a chain together.
pub fn groups(links: &[Option<Link>], touched: &[Touched], arch: &Arch) -> Vec<Group> {
    let mut taken = vec![false; links.len()];
    let mut groups = Vec::new();
    for at in 0..links.len() {
        if taken[at] {
            continue;
        }
        let alone = Group { ops: vec![at], links: links[at].iter().cloned().collect() };
        let begins = alone.links.first().is_some_and(|link| link.rows > 0);
        let group = if begins { extended(alone, links, touched, &taken, arch) } else { alone };
        group.ops.iter().for_each(|&op| taken[op] = true);
        groups.push(group);
    }
    groups
}

/// The chain that begins with a link.
fn extended(
    mut group: Group,
    links: &[Option<Link>],
    touched: &[Touched],
    taken: &[bool],
    arch: &Arch,
) -> Group {
    let mut skipped: Vec<usize> = Vec::new();
    let mut in_a_row = 0;
    for at in group.ops[0] + 1..links.len() {
        let in_the_way = |&before: &usize| touched[before].conflicts(&touched[at]);
        let joined = links[at]
            .as_ref()
            .filter(|_| !taken[at] && !skipped.iter().any(in_the_way))
            .and_then(|link| group.joined(at, link, arch));
        match joined {
            Some(joined) => (group, in_a_row) = (joined, 0),
            None if in_a_row == SKIPPED => break,
            None => {
                in_a_row += 1;
                skipped.push(at);
            }
        }
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gemm::{BIAS, GELU};
    use crate::tensor::{Shape, View};

    const ROWS: usize = 100;

    /// A matrix of so many columns at this address, in KiB.
    fn matrix(at: u64, cols: usize) -> View {
        let (shape, strides) = (Shape::from([ROWS, cols]), Shape::from([cols, 1]));
        View { address: at << 10, shape, strides, dtype: DType::Bf16 }
    }

    fn vector(at: u64) -> View {
        let (shape, strides) = (Shape::from([128]), Shape::from([1]));
        View { address: at << 10, shape, strides, dtype: DType::F32 }
    }

    struct Listed(Vec<Option<Link>>, Vec<Touched>);

    impl Listed {
        fn add(&mut self, op: &dyn Op, inputs: &[View], outputs: &[View]) {
            let arch = Arch::claim("sm_90").expect("in the table");
            let spans = |views: &[View]| {
                views.iter().map(|v| (v.address, v.address + v.span_bytes() as u64)).collect()
            };
            self.0.push(Link::of(op, Io { inputs, outputs }, &arch));
            let (reads, writes) = (spans(inputs), spans(outputs));
            self.1.push(Touched { reads, writes, first_lane: false });
        }

        fn groups(&self) -> Vec<Vec<usize>> {
            let arch = Arch::claim("sm_90").expect("in the table");
            groups(&self.0, &self.1, &arch).into_iter().map(|group| group.ops).collect()
        }
    }

    /// Norm, product, what only reads the norm's result, and a product of the product, which writes at
    /// `last`.
    fn layer(last: u64) -> Listed {
        let mut list = Listed(Vec::new(), Vec::new());
        let norm = LayerNorm::new(ROWS, 128, 1e-5);
        let (x, y, mean, rstd) = (matrix(0, 128), matrix(100, 128), vector(200), vector(204));
        list.add(&norm, &[x, vector(208), vector(212)], &[y, mean, rstd]);
        let product = Gemm::dense((ROWS, 512, 128), false, true, BIAS | GELU);
        let (z, before) = (matrix(300, 512), matrix(500, 512));
        list.add(&product, &[y, matrix(700, 128), vector(900)], &[z, before]);
        let gradient = Gemm::dense((128, 128, ROWS), true, false, 0);
        list.add(&gradient, &[y, x], &[matrix(1000, 128)]);
        let product = Gemm::dense((ROWS, 128, 512), false, false, 0);
        list.add(&product, &[z, matrix(1200, 128)], &[matrix(last, 128)]);
        list
    }

    #[test]
    fn what_goes_row_by_row_is_joined() {
        assert_eq!(layer(1500).groups(), [vec![0, 1, 3], vec![2]]);
    }

    #[test]
    fn nothing_is_moved_past_what_it_would_spoil() {
        // Over what the gradient reads, and over what it writes.
        assert_eq!(layer(0).groups(), [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(layer(1000).groups(), [vec![0, 1], vec![2], vec![3]]);
    }

    #[test]
    fn a_link_is_small_and_lies_well() {
        let of = |card: &str, (rows, n, k): (usize, usize, usize), at: u64| {
            let op = Gemm::dense((rows, n, k), false, true, 0);
            let mut result = matrix(300, n);
            result.address += at;
            let io = Io { inputs: &[matrix(0, k), matrix(100, k)], outputs: &[result] };
            Link::of(&op, io, &Arch::claim(card).expect("in the table")).is_some()
        };
        assert!(of("sm_90", (2112, 128, 128), 0) && of("sm_80", (100, 128, 128), 0));
        assert!(!of("sm_90", (2113, 128, 128), 0), "more rows than one block each");
        assert!(!of("sm_90", (100, 1024, 256), 0), "more weights than pay");
        assert!(!of("sm_90", (100, 128, 48), 0), "not whole steps of the kernel");
        assert!(!of("sm_90", (100, 128, 128), 8), "not on 16 bytes");
        assert!(!of("gfx1030", (100, 128, 128), 0), "no such kernel");
    }

    #[test]
    fn a_chain_knows_its_rows_and_panels() {
        let list = layer(1500);
        let arch = Arch::claim("sm_90").expect("in the table");
        let all = groups(&list.0, &list.1, &arch);
        assert_eq!(all[0].widths(), [512, 128]);
        assert_eq!(all[0].pitches(), [520, 136]);
        let launch = all[0].launch(|_| Ok(())).expect("found").expect("has links");
        assert_eq!((launch.stage.kernel.as_str(), launch.stage.grid), ("chain_bf16", [7, 1, 1]));
    }
}
