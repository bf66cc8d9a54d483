//! A matrix product block by block, so that what tiles read is near: A's rows in the second-level
//! cache, a panel of B in the first.

use super::gemm::Mat;
#[cfg(target_arch = "x86_64")]
use super::gemm_tile::{Fetch, Product, Then, Tiles};
#[cfg(target_arch = "x86_64")]
use super::packing::{LINE, pack_panel, pack_rows, tile_step};
use crate::backend::cpu::real::{Real, vectorised};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::scratch::scratch;

/// Terms of a sum that are added before moving on: B's part of as many rows and one panel stays in
/// the first-level cache while tiles of A pass by.
pub(super) const DEPTH: usize = 256;

/// Tiles of A's rows that pass by a panel of B: they stay in the second-level cache.
pub(super) const TILES: usize = 8;

/// The same where A is packed.
#[cfg(target_arch = "x86_64")]
const PACKED_TILES: usize = 48;

/// sums += the sums over k of each row of A.
pub(super) fn add_rows<T: Real>(a: Mat<'_, T>, k: usize, sums: &mut [T]) {
    if a.rs == 1 {
        vectorised!(for row in a.data.chunks(a.cs.max(1)).take(k) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
        });
        return;
    }
    for (sum, row) in sums.iter_mut().zip(a.data.chunks(a.rs.max(1))) {
        *sum += row.iter().step_by(a.cs.max(1)).take(k).copied().sum::<T>();
    }
}

/// Some rows of A as tiles read them.
#[cfg(target_arch = "x86_64")]
struct Left {
    at: *const f32,
    rs: usize,
    cs: usize,
    /// From a tile's rows to the next one's.
    tile: usize,
}

#[cfg(target_arch = "x86_64")]
impl Left {
    /// As they lie.
    fn plain(a: Mat<'_, f32>, tall: usize) -> Self {
        Self { at: a.data.as_ptr(), rs: a.rs, cs: a.cs, tile: tall * a.rs }
    }

    /// Packed into `to`, and added to `sums`, as by [`pack_rows`].
    fn packed(
        (to, tall): (&mut [f32], usize),
        a: Mat<'_, f32>,
        (rows, depth): (usize, usize),
        sums: Option<&mut [f32]>,
    ) -> Self {
        pack_rows((to, tall), a, (rows, depth), sums);
        Self { at: to.as_ptr(), rs: 1, cs: tall, tile: tile_step(tall, depth) }
    }

    /// A share of what follows these `rows`, with panel `panel` of `panels`: it comes from far, and the
    /// processor sees no pattern in what a tile reads.
    fn fetch_next(&self, (rows, depth): (usize, usize), panel: usize, panels: usize) -> Fetch {
        let lines = if self.cs == 1 { depth.div_ceil(LINE) } else { 0 };
        Fetch {
            from: self.at.wrapping_add(rows * self.rs + panel * LINE),
            rs: self.rs,
            step: panels * LINE,
            count: lines.saturating_sub(panel).div_ceil(panels),
            tile: self.tile,
        }
    }
}

/// `depth` rows of a panel of B, the next one or the first of the terms that follow: a share with each of
/// the tiles of `rows` rows.
#[cfg(target_arch = "x86_64")]
fn fetch_panel(from: *const f32, b_rs: usize, depth: usize, (rows, tall): (usize, usize)) -> Fetch {
    let count = depth.div_ceil(rows.next_multiple_of(tall));
    Fetch { from, rs: b_rs, step: tall * b_rs, count, tile: count * tall * b_rs }
}

/// `c = then(alpha a b + beta c)`; panel j of `b` begins at `j * b_step`, with rows `b_rs` apart. Adds the
/// sums of A's rows to `sums`, where there are any. The slices must hold their matrices, and `then` point
/// to what it needs: the caller has seen to that.
#[cfg(target_arch = "x86_64")]
pub(super) fn product(
    tiles: Tiles,
    (m, n, k): (usize, usize, usize),
    (alpha, beta): (f32, f32),
    (a, mut sums): (Mat<'_, f32>, Option<&mut [f32]>),
    (b, b_rs, b_step): (&[f32], usize, usize),
    (c, c_rs): (&mut [f32], usize),
    then: Then,
) {
    let (tall, wide, panels) = (tiles.rows(), tiles.columns(), n.div_ceil(tiles.columns()));
    // A whose rows lie far apart along k comes in pieces of a line: it is packed, a tile's rows together.
    let turned = a.rs == 1 && a.cs > 4 * LINE && n > wide;
    let block = if turned { PACKED_TILES } else { TILES } * tall;
    let packed = (block / tall).min(m.div_ceil(tall)) * tile_step(tall, DEPTH.min(k));
    let room = if turned { packed } else { 0 };
    // Rows of B far apart share few places of the first-level cache: a panel is copied before many pass.
    let gathered = turned && b_rs > 4 * LINE;
    let near = if gathered { wide * DEPTH.min(k) } else { 0 };
    if let (Some(sums), false) = (&mut sums, turned) {
        add_rows(a, k, sums);
    }
    scratch(near + room, |memory: &mut [f32]| {
        let (near, packed) = memory.split_at_mut(near);
        for from in (0..k).step_by(DEPTH) {
            let (depth, beta) = (DEPTH.min(k - from), if from == 0 { beta } else { 1.0 });
            for top in (0..m).step_by(block) {
                let rows = block.min(m - top);
                let part = Mat::new(&a.data[top * a.rs + from * a.cs..], a.rs, a.cs);
                let mut left = Left::plain(part, tall);
                if turned {
                    let sums = sums.as_deref_mut().map(|sums| &mut sums[top..top + rows]);
                    left = Left::packed((packed, tall), part, (rows, depth), sums);
                }
                for j in (0..n).step_by(wide) {
                    let (first, panel) = (top * c_rs + j, j / wide);
                    let mut fetch = left.fetch_next((rows, depth), panel, panels);
                    let mut right = (&b[panel * b_step + from * b_rs..], b_rs);
                    if gathered {
                        let step = if j + wide < n { wide } else { (depth * b_rs).wrapping_sub(j) };
                        let next = right.0.as_ptr().wrapping_add(step);
                        fetch = fetch_panel(next, b_rs, depth, (rows, tall));
                        pack_panel((&mut near[..wide * depth], wide), n - j, right.0, b_rs, 1);
                        right = (near, wide);
                    }
                    let part = Product {
                        m: rows,
                        n: wide.min(n - j),
                        k: depth,
                        alpha,
                        a: left.at,
                        a_rs: left.rs,
                        a_cs: left.cs,
                        a_tile: left.tile,
                        b: right.0.as_ptr(),
                        b_rs: right.1,
                        beta,
                        c: c[first..].as_mut_ptr(),
                        c_rs,
                        fetch,
                        then: then.from(first, j),
                    };
                    // SAFETY: the caller asserted that the three slices hold their matrices, of which
                    // this is a part, and so does what `then` points to; `packed` holds a block's
                    // tiles, `near` a panel; `c` is exclusive; `tiles` was detected.
                    unsafe { tiles.run(&part) };
                }
            }
        }
    });
}
