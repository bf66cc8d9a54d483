//! Where electrodes sit on the head.
//!
//! Positions are unit vectors: x to the right ear, y to the nose, z up. The 10-10 system
//! (Chatrian et al. 1985; Oostenveld & Praamstra 2001) is laid on the sphere so that its outer
//! ring Fpz-T7-Oz-T8 is the equator, the usual frame of scalp topographies: 10 % of an arc
//! through Cz is 22.5 degrees, 10 % of the ring is 18 degrees, and the sites of a transverse row
//! divide the circle through its two ring sites and its midline site. The 128-channel geodesic
//! net is the manufacturer's nominal layout in whole degrees.
//!
//! The net's own list of 10-10 equivalences (Luu & Ferree 2000) holds to 7 degrees for most
//! sites here, 13 for P3, P4 and Fz, and 15 for T7 and T8: the net has electrodes near those
//! sites, not at them.

/// Unit vector: x right, y front, z up.
pub type Position = [f32; 3];

/// Scalp areas, for shuffling channels among neighbours and for averages by area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Region {
    /// Nasion to the F row.
    Frontal,
    /// FC to CP rows.
    Central,
    /// FT to TP columns, earlobes and mastoids.
    Temporal,
    /// P row.
    Parietal,
    /// PO row to the inion.
    Occipital,
}

/// Position of a 10-20 or 10-10 site or of `E1`..`E128` of the 128-channel geodesic net
/// (`E129` is Cz), whatever the case of its letters. The older T3, T4, T5, T6 are T7, T8, P7, P8;
/// the earlobes A1, A2 stand at T9, T10, the mastoids M1, M2 at TP9, TP10. `None` for other names.
///
/// Names of other nets can collide with these: ask [`positions`] about a whole recording.
pub fn position(name: &str) -> Option<Position> {
    match geodesic_number(name) {
        Some(129) => Some(CZ),
        Some(n) => GEODESIC.get(n.checked_sub(1)?).map(|&(inclination, azimuth)| {
            polar(f64::from(inclination), f64::from(azimuth)).map(|x| x as f32)
        }),
        None => ten_ten(name).map(|(position, _)| position.map(|x| x as f32)),
    }
}

/// Positions of a recording's channels, in their order; `None` where a name is unknown or where
/// the names are another net's (the 32- and 64-channel geodesic nets number their electrodes from
/// E1 as well, at other places).
pub fn positions(names: &[String]) -> Option<Vec<Position>> {
    let numbers: Vec<usize> = names.iter().filter_map(|name| geodesic_number(name)).collect();
    let highest = numbers.iter().copied().max().unwrap_or(0);
    let is_smaller_net = highest == numbers.len() && matches!(highest, 32 | 33 | 64 | 65);
    if is_smaller_net {
        return None;
    }
    names.iter().map(|name| position(name)).collect()
}

/// Scalp area of a channel: by its row for a 10-10 name, by its nearest 10-20 site for a geodesic
/// name.
pub fn region(name: &str) -> Option<Region> {
    if geodesic_number(name).is_none() {
        return ten_ten(name).map(|(_, region)| region);
    }
    let here = position(name)?;
    let distance = |site: &str| {
        position(site).map_or(f32::INFINITY, |p| (0..3).map(|i| (p[i] - here[i]).powi(2)).sum())
    };
    let nearest = TEN_TWENTY.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
    ten_ten(nearest).map(|(_, region)| region)
}

/// Azimuthal equidistant projection about the vertex: the equator (Fpz, T7, Oz, T8) falls on the
/// unit circle, x to the right, y to the front.
pub fn project(position: Position) -> [f32; 2] {
    let [x, y, z] = position;
    let radius = x.hypot(y);
    if radius == 0.0 {
        return [0.0, 0.0];
    }
    let inclination = radius.atan2(z) / std::f32::consts::FRAC_PI_2;
    [x / radius * inclination, y / radius * inclination]
}

/// The 19 scalp sites of the 10-20 system, front to back.
pub const TEN_TWENTY: [&str; 19] = [
    "Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "T7", "C3", "Cz", "C4", "T8", "P7", "P3", "Pz",
    "P4", "P8", "O1", "O2",
];

const CZ: Position = [0.0, 0.0, 1.0];

/// 10 % of the way from nasion over the vertex to inion, degrees.
const STEP: f64 = 22.5;

/// Unit vector at `inclination` degrees from the vertex, `azimuth` degrees from x towards y.
fn polar(inclination: f64, azimuth: f64) -> [f64; 3] {
    let (i, a) = (inclination.to_radians(), azimuth.to_radians());
    [i.sin() * a.cos(), i.sin() * a.sin(), i.cos()]
}

fn geodesic_number(name: &str) -> Option<usize> {
    let digits = name.strip_prefix(['E', 'e'])?;
    if digits.starts_with(['0', '+']) {
        return None;
    }
    digits.parse().ok()
}

/// Transverse rows: name near the midline, name at the ring, inclination of the midline site to
/// the front, azimuth of the left ring site, area near the midline and at the ring.
const ROWS: [(&str, &str, f64, f64, Region, Region); 7] = [
    ("AF", "AF", 3.0 * STEP, 126.0, Region::Frontal, Region::Frontal),
    ("F", "F", 2.0 * STEP, 144.0, Region::Frontal, Region::Frontal),
    ("FC", "FT", STEP, 162.0, Region::Central, Region::Temporal),
    ("C", "T", 0.0, 180.0, Region::Central, Region::Temporal),
    ("CP", "TP", -STEP, 198.0, Region::Central, Region::Temporal),
    ("P", "P", -2.0 * STEP, 216.0, Region::Parietal, Region::Parietal),
    ("PO", "PO", -3.0 * STEP, 234.0, Region::Occipital, Region::Occipital),
];

fn ten_ten(name: &str) -> Option<([f64; 3], Region)> {
    let name = name.to_ascii_uppercase();
    let name = match name.as_str() {
        "T3" => "T7",
        "T4" => "T8",
        "T5" => "P7",
        "T6" => "P8",
        "A1" => "T9",
        "A2" => "T10",
        "M1" => "TP9",
        "M2" => "TP10",
        "O9" => "I1",
        "O10" => "I2",
        other => other,
    };
    let (row, column) = name.split_at(name.find(|c: char| c.is_ascii_digit() || c == 'Z')?);
    // 0 for the midline, odd to the left, even to the right: 10 % of the row each.
    let column: u32 = match column {
        "Z" => 0,
        digits if digits.starts_with('0') => return None,
        digits => digits.parse().ok().filter(|n| (1..=10).contains(n))?,
    };
    let side = if column.is_multiple_of(2) { 1.0 } else { -1.0 };
    let ([x, y, z], region) = match row {
        "FP" | "N" | "O" | "I" => end_site(row, column)?,
        _ => row_site(row, column.div_ceil(2))?,
    };
    Some(([side * x.abs(), y, z], region))
}

/// Sites of the frontal and the occipital pole: on the ring, or 10 % below it.
fn end_site(row: &str, column: u32) -> Option<([f64; 3], Region)> {
    let inclination = if matches!(row, "FP" | "O") { 4.0 * STEP } else { 5.0 * STEP };
    let (azimuth, region) = if matches!(row, "FP" | "N") {
        (90.0, Region::Frontal)
    } else {
        (270.0, Region::Occipital)
    };
    match column {
        0 => {
            let [_, y, z] = polar(inclination, azimuth);
            Some(([0.0, y, z], region))
        }
        1 | 2 => Some((polar(inclination, azimuth - 18.0), region)),
        _ => None,
    }
}

/// A site of a transverse row, `column` steps from the midline: 4 is the ring, 5 lies below it.
fn row_site(row: &str, column: u32) -> Option<([f64; 3], Region)> {
    let &(_, _, front, azimuth, inner, outer) =
        ROWS.iter().find(|(near, far, ..)| row == if column < 4 { *near } else { *far })?;
    let middle = [0.0, front.to_radians().sin(), front.to_radians().cos()];
    let position = match column {
        0 => middle,
        5 => polar(5.0 * STEP, azimuth),
        _ => on_row(middle, polar(4.0 * STEP, azimuth), f64::from(column) / 4.0),
    };
    Some((position, if column < 4 { inner } else { outer }))
}

/// The point `fraction` of the way from `middle` to `ring` along the circle through `ring`,
/// `middle` and the mirror image of `ring` (Oostenveld & Praamstra 2001).
fn on_row(middle: [f64; 3], ring: [f64; 3], fraction: f64) -> [f64; 3] {
    let half_width = ring[0].abs();
    let (dy, dz) = (ring[1] - middle[1], ring[2] - middle[2]);
    let depth = dy.hypot(dz);
    // In the circle's plane `middle` is (0, 0), the ring sites are (+-half_width, depth).
    let radius = (half_width.powi(2) + depth.powi(2)) / (2.0 * depth);
    let angle = fraction * half_width.atan2(radius - depth);
    let along = radius * (1.0 - angle.cos()) / depth;
    [radius * angle.sin(), middle[1] + along * dy, middle[2] + along * dz]
}

/// The 128-channel geodesic net (HydroCel): inclination from Cz and azimuth from the right ear
/// towards the nose, degrees, for E1 to E128.
#[rustfmt::skip]
const GEODESIC: [(u8, i16); 128] = [
    (108, 44), (88, 52), (70, 63), (57, 68), (41, 75), (26, 90), (13, 128), (99, 62), (83, 73),
    (70, 78), (58, 90), (41, 105), (28, 127), (96, 82), (82, 90), (71, 90), (103, 90), (70, 102),
    (57, 112), (47, 127), (96, 98), (83, 107), (70, 117), (60, 127), (99, 118), (88, 128),
    (70, 136), (56, 143), (41, 150), (27, 165), (14, -161), (108, 136), (93, 147), (72, 156),
    (54, 167), (41, 177), (28, -159), (114, 151), (97, 173), (74, 180), (57, -173), (47, -159),
    (127, 160), (117, 169), (95, -166), (73, -163), (60, -156), (141, 159), (134, 176),
    (92, -149), (71, -145), (56, -142), (40, -136), (27, -124), (14, -90), (130, -158),
    (112, -150), (90, -136), (70, -129), (54, -124), (40, -113), (46, -90), (129, -141),
    (110, -133), (89, -123), (70, -115), (55, -104), (125, -121), (109, -115), (88, -108),
    (69, -99), (59, -90), (124, -104), (107, -98), (87, -90), (69, -81), (55, -76), (40, -67),
    (27, -56), (14, -19), (122, -90), (107, -82), (88, -72), (70, -65), (54, -56), (40, -44),
    (28, -21), (124, -76), (109, -65), (89, -57), (70, -51), (56, -38), (47, -21), (125, -59),
    (110, -47), (90, -44), (71, -35), (60, -24), (129, -39), (112, -30), (92, -31), (73, -17),
    (57, -7), (41, 3), (27, 15), (13, 52), (130, -22), (95, -14), (74, 0), (54, 13), (41, 30),
    (28, 53), (134, 4), (117, 11), (97, 7), (72, 24), (56, 37), (47, 53), (141, 21), (127, 20),
    (114, 29), (93, 33), (70, 44), (60, 53), (120, 36), (131, 61), (131, 119), (120, 144),
];

#[cfg(test)]
mod tests {
    use super::{Position, Region, TEN_TWENTY, position, positions, project, region};

    fn degrees(a: Position, b: Position) -> f32 {
        (0..3).map(|i| a[i] * b[i]).sum::<f32>().clamp(-1.0, 1.0).acos().to_degrees()
    }

    fn known(name: &str) -> Position {
        position(name).unwrap_or_else(|| panic!("{name} has no position"))
    }

    /// Inclination and azimuth in whole degrees as cap makers print them (their ring is at 92).
    #[test]
    fn ten_ten_sites_lie_where_cap_makers_print_them() {
        let printed = [
            ("Fp1", -92, -72),
            ("F3", -60, -51),
            ("p4", 60, -51),
            ("C3", -46, 0),
            ("O2", 92, -72),
            ("FC1", -32, -45),
            ("AF4", 74, 65),
            ("PO3", -74, 65),
            ("CP6", 72, -21),
            ("FT9", -115, -18),
            ("TP10", 115, -18),
            ("POz", 69, -90),
            ("Iz", 115, -90),
        ];
        for (name, inclination, azimuth) in printed {
            let (i, a) = (f32::to_radians(inclination as f32), f32::to_radians(azimuth as f32));
            let expected = [i.sin() * a.cos(), i.sin() * a.sin(), i.cos()];
            let off = degrees(known(name), expected);
            assert!(off < 4.0, "{name}: {off} degrees off");
        }
        assert_eq!(known("T3"), known("t7"));
        assert_eq!(known("T6"), known("P8"));
    }

    #[test]
    fn the_net_is_symmetric_and_agrees_with_its_equivalences() {
        let pairs = [
            ("E22", "Fp1", 8.0),
            ("E9", "Fp2", 8.0),
            ("E24", "F3", 8.0),
            ("E124", "F4", 8.0),
            ("E36", "C3", 8.0),
            ("E104", "C4", 8.0),
            ("E52", "P3", 13.0),
            ("E92", "P4", 13.0),
            ("E70", "O1", 8.0),
            ("E83", "O2", 8.0),
            ("E11", "Fz", 14.0),
            ("E62", "Pz", 8.0),
            ("E75", "Oz", 8.0),
            ("E45", "T7", 16.0),
            ("E108", "T8", 16.0),
            ("E129", "Cz", 0.1),
        ];
        for (net, ten, limit) in pairs {
            let off = degrees(known(net), known(ten));
            assert!(off < limit, "{net} {ten}: {off} degrees");
        }
        let all: Vec<Position> = (1..=128).map(|i| known(&format!("E{i}"))).collect();
        for (i, p) in all.iter().enumerate() {
            let mirrored = [-p[0], p[1], p[2]];
            let nearest = all.iter().map(|&q| degrees(mirrored, q)).fold(f32::MAX, f32::min);
            assert!(nearest < 1.5, "E{} has no mirror image within {nearest}", i + 1);
            let others = all.iter().enumerate().filter(|&(j, _)| j != i);
            let gap = others.map(|(_, &q)| degrees(*p, q)).fold(f32::MAX, f32::min);
            assert!((8.0..25.0).contains(&gap), "E{}: neighbour at {gap}", i + 1);
        }
    }

    #[test]
    fn unknown_names_and_other_nets_have_none() {
        for name in ["", "E0", "E130", "E-1", "E01", "EX", "Q3", "Fp3", "F11", "F03", "Zz", "µ1"] {
            assert_eq!(position(name), None, "{name:?}");
            assert_eq!(region(name), None, "{name:?}");
        }
        let names = |n: usize| (1..=n).map(|i| format!("E{i}")).collect::<Vec<_>>();
        assert!(positions(&names(128)).is_some_and(|p| p.len() == 128));
        assert!(positions(&names(64)).is_none() && positions(&names(32)).is_none());
        assert!(positions(&["E22".into(), "Fz".into()]).is_some());
        assert!(positions(&["Fp1".into(), "ECG".into()]).is_none());
    }

    #[test]
    fn regions_follow_the_rows() {
        let of = |name| region(name);
        assert_eq!(of("FP2"), Some(Region::Frontal));
        assert_eq!(of("FC5"), Some(Region::Central));
        assert_eq!(of("TP7"), Some(Region::Temporal));
        assert_eq!(of("CPz"), Some(Region::Central));
        assert_eq!(of("PO8"), Some(Region::Occipital));
        assert_eq!((of("E11"), of("E75")), (Some(Region::Frontal), Some(Region::Occipital)));
        assert_eq!((of("E45"), of("E62")), (Some(Region::Temporal), Some(Region::Parietal)));
        assert_eq!((of("E129"), of("E55")), (Some(Region::Central), Some(Region::Central)));
        assert!(TEN_TWENTY.iter().all(|name| region(name).is_some()));
    }

    #[test]
    fn projection_keeps_angles_from_the_vertex() {
        assert_eq!(project(known("Cz")), [0.0, 0.0]);
        for (name, expected) in [("T8", [1.0, 0.0]), ("Fpz", [0.0, 1.0]), ("Pz", [0.0, -0.5])] {
            let [x, y] = project(known(name));
            let off = (x - expected[0]).hypot(y - expected[1]);
            assert!(off < 1e-5, "{name}: {x} {y}");
        }
        // Below the equator lies outside the circle.
        let [x, y] = project(known("Iz"));
        assert!((x.hypot(y) - 1.25).abs() < 1e-5);
    }
}
