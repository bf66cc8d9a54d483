//! Whose matrix product is faster, the vendor's or the engine's: products that were measured on cards, one
//! record for each architecture.

use std::sync::OnceLock;

use super::{Arch, Machine};
use crate::DType;

/// What `cargo bench --bench cuda -- products` printed, by compute capability.
const RECORDS: &[(u32, &str)] = &[(90, include_str!("../../benches/record/h200/gemm.tsv"))];

/// A product that was measured both ways.
#[derive(Debug, PartialEq)]
struct Measured {
    sm: u32,
    /// "nt", "nn", "tn".
    layout: &'static str,
    /// "bf16" for both types of 16 bits, "f32", or "tf32" where f32 is rounded.
    dtype: &'static str,
    /// m, n, k.
    dims: [u32; 3],
    own_us: f64,
    vendor_us: f64,
}

/// A line of a record; None for what is none: the header.
fn parse(sm: u32, line: &'static str) -> Option<Measured> {
    let mut fields = line.split('\t');
    let (layout, dtype) = (fields.next()?, fields.next()?);
    let mut number = || fields.next()?.parse::<f64>().ok();
    let dims = [number()? as u32, number()? as u32, number()? as u32];
    Some(Measured { sm, layout, dtype, dims, own_us: number()?, vendor_us: number()? })
}

fn table() -> &'static [Measured] {
    static TABLE: OnceLock<Vec<Measured>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let lines = |&(sm, text): &(u32, &'static str)| text.lines().map(move |line| (sm, line));
        RECORDS.iter().flat_map(lines).filter_map(|(sm, line)| parse(sm, line)).collect()
    })
}

/// True where products were measured on cards like this one.
pub fn covers(arch: &Arch) -> bool {
    matches!(arch.machine, Machine::Cuda { sm } if RECORDS.iter().any(|&(card, _)| card == sm))
}

/// Whether the vendor's library had the measured product that is most like this one in less time; None
/// where none was measured on such cards. `layout` says which operands are transposed: "nt"; `dims` are m,
/// n, k.
pub fn vendor_is_faster(arch: &Arch, layout: &str, dtype: DType, dims: [u32; 3]) -> Option<bool> {
    let Machine::Cuda { sm: card } = arch.machine else { return None };
    let kind = match dtype {
        DType::F32 if arch.wishes.tf32 => "tf32",
        DType::F32 => "f32",
        _ => "bf16",
    };
    let alike = |row: &&Measured| (row.sm, row.layout, row.dtype) == (card, layout, kind);
    // How many times longer or shorter it is, over all three lengths.
    let off = |row: &Measured| -> f64 {
        let lengths = row.dims.into_iter().zip(dims);
        lengths.map(|(a, b)| (f64::from(a) / f64::from(b.max(1))).ln().abs()).sum()
    };
    let nearest = table().iter().filter(alike).min_by(|a, b| off(a).total_cmp(&off(b)))?;
    Some(nearest.vendor_us < nearest.own_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole() {
        for &(sm, text) in RECORDS {
            let rows = table().iter().filter(|row| row.sm == sm).count();
            // All lines but the header.
            assert_eq!(rows, text.lines().count() - 1, "sm_{sm}");
        }
        for row in table() {
            assert!(row.own_us > 0.0 && row.vendor_us > 0.0 && !row.dims.contains(&0), "{row:?}");
            let same = |other: &&Measured| {
                (other.sm, other.layout, other.dtype, other.dims)
                    == (row.sm, row.layout, row.dtype, row.dims)
            };
            assert_eq!(table().iter().filter(same).count(), 1, "{row:?}");
        }
    }

    #[test]
    fn the_nearest_measured_product_decides() {
        for row in table() {
            let mut arch = Arch::claim(&format!("sm_{}", row.sm)).expect("in the table");
            arch.wishes.tf32 = row.dtype == "tf32";
            let dtype = if row.dtype == "bf16" { DType::F16 } else { DType::F32 };
            for off in [0, 1] {
                let dims = row.dims.map(|x| x + off);
                let found = vendor_is_faster(&arch, row.layout, dtype, dims);
                assert_eq!(found, Some(row.vendor_us < row.own_us), "{row:?} {off}");
            }
        }
        for unknown in ["sm_80", "gfx1010"] {
            let arch = Arch::claim(unknown).expect("in the table");
            let found = vendor_is_faster(&arch, "nt", DType::F32, [512, 512, 512]);
            assert_eq!(found, None, "{unknown}");
            assert!(!covers(&arch));
        }
    }
}
