//! Scalp topographies: spherical spline interpolation (Perrin et al. 1989) seen from above, nose up.

use super::axis::{Axis, extent};
use super::colour::Colours;
use super::input::{ChannelMap, ChannelValue};
use super::page::Figure;
use super::svg::{Raster, Svg, count, number};
use std::f64::consts::{FRAC_PI_2, PI};
use std::fmt::Write;

/// Pixels of the interpolated image along each side.
const SIDE: usize = 96;
/// Electrodes are named in the figure up to this many.
const NAMED: usize = 32;
/// Electrodes further from the vertex than this (radians) are not drawn: the map would be neck.
const FURTHEST: f64 = 0.75 * PI;
const CENTER: [f64; 2] = [205.0, 205.0];
const RADIUS: f64 = 172.0;

/// An electrode on the flat map: angle from the vertex becomes distance from the centre.
struct Electrode<'a> {
    channel: &'a ChannelValue,
    unit: [f64; 3],
    polar: f64,
}

/// The map; `None` where no electrode has a place and a value.
pub(super) fn figure(map: &ChannelMap) -> Option<Figure> {
    let electrodes: Vec<Electrode<'_>> = map.channels.iter().filter_map(Electrode::new).collect();
    if electrodes.is_empty() {
        return None;
    }
    let left_out = map.channels.len() - electrodes.len();
    let edge = electrodes.iter().map(|e| e.polar + 0.05).fold(FRAC_PI_2, f64::max);
    let (low, high) = extent(electrodes.iter().map(|e| e.channel.value));
    let colours = Colours::new(low, high, 0.0);
    let mut svg = Svg::new(480.0, 392.0);
    if let Some(spline) = Spline::fit(&electrodes) {
        draw_field(&mut svg, &spline, edge, &colours);
    }
    draw_head(&mut svg, RADIUS * FRAC_PI_2 / edge);
    for electrode in &electrodes {
        let at = electrode.place(edge);
        let title = format!("{}: {}", electrode.channel.name, number(electrode.channel.value));
        svg.circle("electrode", at, if electrodes.len() > 64 { 1.8 } else { 2.6 }, Some(&title));
        if electrodes.len() <= NAMED {
            svg.text("electrode-name mid", [at[0], at[1] - 5.0], &electrode.channel.name);
        }
    }
    draw_bar(&mut svg, &colours, [416.0, 70.0], 270.0, &map.label);
    let title = if map.title.is_empty() { "Scalp map" } else { &map.title };
    let caption = caption(&electrodes, left_out, edge);
    Some(Figure::new(title, svg.finish(title), caption).tall())
}

impl<'a> Electrode<'a> {
    fn new(channel: &'a ChannelValue) -> Option<Self> {
        let length = channel.position.iter().map(|c| c * c).sum::<f64>().sqrt();
        if !(length.is_finite() && length > 1e-9 && channel.value.is_finite()) {
            return None;
        }
        let unit = channel.position.map(|c| c / length);
        let polar = unit[2].clamp(-1.0, 1.0).acos();
        (polar <= FURTHEST).then_some(Self { channel, unit, polar })
    }

    /// Pixels in the figure, where `edge` is the polar angle at the map's rim.
    fn place(&self, edge: f64) -> [f64; 2] {
        let across = self.unit[0].hypot(self.unit[1]);
        let distance = RADIUS * self.polar / edge;
        let direction =
            if across > 1e-9 { [self.unit[0] / across, self.unit[1] / across] } else { [0.0; 2] };
        [CENTER[0] + distance * direction[0], CENTER[1] - distance * direction[1]]
    }
}

fn caption(electrodes: &[Electrode<'_>], left_out: usize, edge: f64) -> String {
    let mut order: Vec<_> = electrodes.iter().map(|e| e.channel).collect();
    order.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()).then(a.name.cmp(&b.name)));
    let strongest: Vec<String> =
        order.iter().take(5).map(|c| format!("{} {}", c.name, number(c.value))).collect();
    let mut text = format!(
        "{} electrodes seen from above, nose up; spherical splines between them. Largest: {}.",
        count(electrodes.len()),
        strongest.join(", ")
    );
    if edge > FRAC_PI_2 + 0.06 {
        text += " The head's circle is the sphere's equator; what lies outside is below it.";
    }
    if left_out > 0 {
        text += &format!(" {left_out} channels without a usable position or value are left out.");
    }
    text
}

/// The head's circle, nose and ears.
fn draw_head(svg: &mut Svg, radius: f64) {
    let [x, y] = CENTER;
    let (w, top) = (radius * 0.13, y - radius * 0.985);
    let nose =
        format!("M{:.1} {top:.1}L{x:.1} {:.1}L{:.1} {top:.1}", x - w, y - radius * 1.12, x + w);
    svg.path("head", &nose);
    for side in [-1.0, 1.0] {
        let at = |dx: f64, dy: f64| format!("{:.1} {:.1}", x + side * radius * dx, y + radius * dy);
        let ear = format!(
            "M{}C{} {} {}S{} {}",
            at(0.985, -0.17),
            at(1.05, -0.26),
            at(1.10, -0.16),
            at(1.085, 0.0),
            at(1.07, 0.27),
            at(0.985, 0.19)
        );
        svg.path("head", &ear);
    }
    svg.circle("head", CENTER, radius, None);
}

/// The interpolated values as an image clipped to the disc, with contours.
fn draw_field(svg: &mut Svg, spline: &Spline, edge: f64, colours: &Colours) {
    let value = |column: f64, row: f64| {
        let (u, v) = (2.0 * column - 1.0, 1.0 - 2.0 * row);
        let polar = u.hypot(v) * edge;
        let azimuth = v.atan2(u);
        let sine = polar.sin();
        spline.at([sine * azimuth.cos(), sine * azimuth.sin(), polar.cos()])
    };
    let mut pixels = Vec::with_capacity(SIDE * SIDE);
    for row in 0..SIDE {
        for column in 0..SIDE {
            let center = |i: usize| (i as f64 + 0.5) / SIDE as f64;
            pixels.push(colours.shade(value(center(column), center(row))));
        }
    }
    let ([x, y], palette) = (CENTER, colours.palette());
    svg.raw(&format!(
        "<clipPath id=\"scalp\"><circle cx=\"{x}\" cy=\"{y}\" r=\"{RADIUS}\"/></clipPath>"
    ));
    let raster = Raster { width: SIDE, pixels: &pixels, palette: &palette };
    let corner = [x - RADIUS, y - RADIUS];
    svg.image(&raster, corner, [2.0 * RADIUS; 2], "clip-path=\"url(#scalp)\"");
    svg.path("contour", &contours(value, colours));
}

/// Lines of equal value at the ticks of the colour bar, by marching squares.
fn contours(value: impl Fn(f64, f64) -> f64, colours: &Colours) -> String {
    const CELLS: usize = 72;
    let corner = |i: usize| i as f64 / CELLS as f64;
    let rows: Vec<Vec<f64>> =
        (0..=CELLS).map(|r| (0..=CELLS).map(|c| value(corner(c), corner(r))).collect()).collect();
    let [low, high] = colours.shown();
    let mut data = String::new();
    for (level, _) in Axis::linear(low, high).ticks(7) {
        for r in 0..CELLS {
            for c in 0..CELLS {
                let middle = [corner(c), corner(r)].map(|v| 2.0 * v - 1.0);
                if middle[0].hypot(middle[1]) < 0.97 {
                    cell_contour(&rows, r, c, level, &mut data);
                }
            }
        }
    }
    data
}

/// The piece of one contour within one cell: crossings of its edges, joined in pairs.
fn cell_contour(rows: &[Vec<f64>], r: usize, c: usize, level: f64, data: &mut String) {
    let corners = [(r, c), (r, c + 1), (r + 1, c + 1), (r + 1, c)];
    let mut crossings = Vec::new();
    for side in 0..4 {
        let (a, b) = (corners[side], corners[(side + 1) % 4]);
        let (from, to) = (rows[a.0][a.1] - level, rows[b.0][b.1] - level);
        if (from < 0.0) != (to < 0.0) {
            let share = from / (from - to);
            let mix = |a: usize, b: usize| a as f64 + share * (b as f64 - a as f64);
            crossings.push([mix(a.1, b.1), mix(a.0, b.0)]);
        }
    }
    let cells = (rows.len() - 1) as f64;
    for pair in crossings.chunks_exact(2) {
        let pixel =
            |p: [f64; 2]| [0, 1].map(|axis| CENTER[axis] - RADIUS + 2.0 * RADIUS * p[axis] / cells);
        let ([x1, y1], [x2, y2]) = (pixel(pair[0]), pixel(pair[1]));
        let _ = write!(data, "M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}");
    }
}

/// A colour bar with ticks, its label written upwards.
pub(super) fn draw_bar(svg: &mut Svg, colours: &Colours, at: [f64; 2], height: f64, label: &str) {
    const BAR: f64 = 14.0;
    const STEPS: usize = 200;
    let [x, y] = at;
    let (palette, [low, high]) = (colours.palette(), colours.shown());
    let pixels: Vec<u8> = (0..=STEPS)
        .rev()
        .map(|i| colours.shade(low + (high - low) * i as f64 / STEPS as f64))
        .collect();
    svg.image(&Raster { width: 1, pixels: &pixels, palette: &palette }, at, [BAR, height], "");
    for (value, text) in Axis::linear(low, high).ticks(5) {
        let tick = y + height * (high - value) / (high - low);
        svg.line("axis", [x + BAR, tick], [x + BAR + 4.0, tick]);
        svg.text("tick start", [x + BAR + 7.0, tick + 4.0], &text);
    }
    svg.upright_text("label mid", [x - 8.0, y + height / 2.0], label);
}

/// An interpolating spline on the sphere.
struct Spline {
    centers: Vec<[f64; 3]>,
    weights: Vec<f64>,
    constant: f64,
    table: Vec<f64>,
}

/// Smoothing: enough that two electrodes at one place do not break the solution.
const SMOOTHING: f64 = 1e-5;
const TABLE: usize = 2048;

impl Spline {
    /// `None` where the equations have no solution.
    fn fit(electrodes: &[Electrode<'_>]) -> Option<Self> {
        let table: Vec<f64> =
            (0..=TABLE).map(|i| kernel(2.0 * i as f64 / TABLE as f64 - 1.0)).collect();
        let centers: Vec<[f64; 3]> = electrodes.iter().map(|e| e.unit).collect();
        let n = centers.len();
        // Rows of [G + λI, 1; 1ᵀ, 0] [weights; constant] = [values; 0].
        let mut rows: Vec<Vec<f64>> = Vec::with_capacity(n + 1);
        for (i, electrode) in electrodes.iter().enumerate() {
            let mut row: Vec<f64> =
                centers.iter().map(|c| lookup(&table, dot(centers[i], *c))).collect();
            row[i] += SMOOTHING;
            row.extend([1.0, electrode.channel.value]);
            rows.push(row);
        }
        let mut last = vec![1.0; n];
        last.extend([0.0, 0.0]);
        rows.push(last);
        let mut weights = solve(rows)?;
        let constant = weights.pop()?;
        Some(Self { centers, weights, constant, table })
    }

    fn at(&self, unit: [f64; 3]) -> f64 {
        let terms = self.centers.iter().zip(&self.weights);
        self.constant + terms.map(|(c, w)| w * lookup(&self.table, dot(unit, *c))).sum::<f64>()
    }
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// Perrin's g(x) with m = 4: sum of (2n + 1) / (n (n + 1))^m P_n(x) / 4π.
fn kernel(x: f64) -> f64 {
    let (mut before, mut legendre, mut sum) = (1.0, x, 0.0);
    for n in 1..=50 {
        let n = f64::from(n);
        sum += (2.0 * n + 1.0) / (n * (n + 1.0)).powi(4) * legendre;
        (before, legendre) = (legendre, ((2.0 * n + 1.0) * x * legendre - n * before) / (n + 1.0));
    }
    sum / (4.0 * PI)
}

fn lookup(table: &[f64], x: f64) -> f64 {
    let place = (x.clamp(-1.0, 1.0) + 1.0) / 2.0 * TABLE as f64;
    let below = (place as usize).min(TABLE - 1);
    table[below] + (place - below as f64) * (table[below + 1] - table[below])
}

/// Gauss's elimination with partial pivoting of rows `[coefficients.., right side]`.
fn solve(mut rows: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let n = rows.len();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        if rows[pivot][column].abs() < 1e-14 {
            return None;
        }
        rows.swap(column, pivot);
        let (done, rest) = rows.split_at_mut(column + 1);
        let pivot = &done[column];
        for row in rest {
            let factor = row[column] / pivot[column];
            for (value, above) in row[column..].iter_mut().zip(&pivot[column..]) {
                *value -= factor * above;
            }
        }
    }
    let mut solution = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| rows[i][j] * solution[j]).sum();
        solution[i] = (rows[i][n] - known) / rows[i][i];
    }
    Some(solution)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels() -> Vec<ChannelValue> {
        let positions = [
            [0.0, 0.0, 1.0],
            [0.6, 0.0, 0.8],
            [-0.6, 0.0, 0.8],
            [0.0, 0.8, 0.6],
            [0.0, -0.8, 0.6],
            [0.48, 0.64, 0.6],
            [-0.48, -0.64, 0.6],
        ];
        let values = [1.0, 2.0, -1.0, 0.5, 3.0, 2.5, -0.25];
        let channel = |(position, value)| ChannelValue { name: "E".into(), position, value };
        positions.into_iter().zip(values).map(channel).collect()
    }

    /// `_calc_g` of MNE 1.13.2 with stiffness 4 and 50 Legendre terms.
    #[test]
    fn kernel_matches_mne() {
        let expected = [
            (-1.0, -0.014636986154113418),
            (-0.3, -0.0045780048498205205),
            (0.25, 0.003597491089079786),
            (0.9, 0.013661634656488838),
            (1.0, 0.015260761697061108),
        ];
        for (x, g) in expected {
            assert!((kernel(x) - g).abs() < 1e-14, "{x}: {} {g}", kernel(x));
        }
    }

    /// `_make_interpolation_matrix` of MNE with alpha 1e-5, applied to the values.
    #[test]
    fn interpolation_matches_mne() {
        let channels = channels();
        let electrodes: Vec<_> = channels.iter().filter_map(Electrode::new).collect();
        let spline = Spline::fit(&electrodes).unwrap();
        let expected = [
            ([0.36, 0.48, 0.8], 1.64365463),
            ([-0.8, 0.6, 0.0], -3.49527846),
            ([0.0, -0.28, 0.96], 1.41438032),
        ];
        for (place, value) in expected {
            assert!(
                (spline.at(place) - value).abs() < 1e-5,
                "{} {value}",
                spline.at(place) - value
            );
        }
    }

    #[test]
    fn unusable_channels_are_left_out_and_doubled_ones_bear() {
        let mut map = ChannelMap { channels: channels(), ..ChannelMap::default() };
        map.channels.push(map.channels[3].clone());
        for (position, value) in
            [([0.0; 3], 1.0), ([f64::NAN, 0.0, 1.0], 1.0), ([0.0, 0.0, 1.0], f64::INFINITY)]
        {
            map.channels.push(ChannelValue { name: "bad".into(), position, value });
        }
        assert!(figure(&map).is_some());
        let one = ChannelMap { channels: channels()[..1].to_vec(), ..map.clone() };
        assert!(figure(&one).is_some());
        let none = ChannelMap { channels: map.channels.split_off(8), ..map };
        assert!(figure(&none).is_none());
    }

    /// Nose up, right ear right: the direction that mirrored maps get wrong.
    #[test]
    fn right_is_right_and_front_is_up() {
        let at = |position| {
            let channel = ChannelValue { name: "E".into(), position, value: 1.0 };
            Electrode::new(&channel).unwrap().place(FRAC_PI_2)
        };
        assert_eq!(at([0.0, 0.0, 2.0]), CENTER);
        assert!(at([1.0, 0.0, 1.0])[0] > CENTER[0] && at([0.0, 1.0, 1.0])[1] < CENTER[1]);
        let [x, y] = at([0.0, -1.0, 0.0]);
        assert!((x - CENTER[0]).abs() < 1e-9 && (y - CENTER[1] - RADIUS).abs() < 1e-9);
    }
}
