//! Axes with round ticks, and the panel every plot is drawn in.

use super::svg::{Svg, fixed, text_width};

/// Data interval and the pixels it is drawn over (y axes run from high to low pixels).
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    mirrored: bool,
    pixels: [f64; 2],
}

impl Axis {
    /// Linear, from `low` to `high`; an empty interval is widened.
    pub(super) fn linear(low: f64, high: f64) -> Self {
        let (low, high) = if low <= high { (low, high) } else { (high, low) };
        let spread = if high - low > 1e-12 * high.abs().max(low.abs()) {
            0.0
        } else {
            0.5 * high.abs().max(1e-3)
        };
        let (low, high) = (low - spread, high + spread);
        Self { low, high, log: false, mirrored: false, pixels: [0.0, 1.0] }
    }

    /// Linear over all of `values`, with a margin, rounded outwards to ticks.
    pub(super) fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = extent(values);
        let mut axis = Self::linear(low, high);
        let step = round_step((axis.high - axis.low) / 5.0) / 2.0;
        axis.low = (axis.low / step - 0.02).floor() * step;
        axis.high = (axis.high / step + 0.02).ceil() * step;
        axis
    }

    /// For positive quantities: logarithmic where they span more than a factor of 20, else
    /// [`Axis::around`].
    pub(super) fn log_if_wide(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (low, high) = extent(values.clone());
        if low > 0.0 && high / low > 20.0 {
            let (low, high) = (low / 1.15, high * 1.15);
            return Self { log: true, ..Self::linear(low, high) };
        }
        Self::around(values)
    }

    /// Counts upwards and downwards from zero, labelled without sign.
    pub(super) fn mirrored(most: f64) -> Self {
        Self { mirrored: true, ..Self::linear(-most, most) }
    }

    pub(super) fn is_log(&self) -> bool {
        self.log
    }

    pub(super) fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// Pixel of `value`; values beyond the ends stay at them.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.pixels[0] + share.clamp(0.0, 1.0) * (self.pixels[1] - self.pixels[0])
    }

    /// Round values within the ends, with their labels: about `wanted` of them.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        if self.log {
            return self.log_ticks(wanted);
        }
        let step = round_step((self.high - self.low) / wanted.max(1) as f64);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let first = (self.low / step - 1e-6).ceil() as i64;
        let last = (self.high / step + 1e-6).floor() as i64;
        let shown = |v: f64| if self.mirrored { v.abs() } else { v };
        let values = (first..=last).map(|i| i as f64 * step);
        values.map(|v| (v, label(shown(v), step, decimals))).collect()
    }

    fn log_ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        let decades = (self.high / self.low).log10();
        let multiples: &[f64] =
            if decades < wanted as f64 / 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = (decades / wanted as f64).ceil().max(1.0) as i32;
        let mut ticks = Vec::new();
        for exponent in self.low.log10().floor() as i32..=self.high.log10().ceil() as i32 {
            for multiple in multiples {
                let value = multiple * 10f64.powi(exponent);
                if value >= self.low && value <= self.high && exponent % every == 0 {
                    let decimals = (-exponent).max(0) as usize;
                    ticks.push((value, label(value, value, decimals)));
                }
            }
        }
        ticks
    }
}

/// Least and greatest finite value; 0 to 1 where there is none.
pub(super) fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values.filter(|v| v.is_finite()) {
        low = low.min(value);
        high = high.max(value);
    }
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// The round number (1, 2 or 5 times a power of ten) next above `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.log10().floor());
    let multiple = [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * decade >= step * 0.999);
    multiple.unwrap_or(10.0) * decade
}

/// A tick's label: thousands as k, millions as M, tiny values as powers of ten.
fn label(value: f64, step: f64, decimals: usize) -> String {
    let scaled = |unit: f64, letter: &str| {
        let decimals = usize::from(step < unit) + usize::from(step < unit / 10.0);
        let text = fixed(value / unit, decimals);
        let text =
            if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        format!("{text}{letter}")
    };
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 1e6 && step >= 1e4 => scaled(1e6, "M"),
        size if size >= 1e4 && step >= 1e2 => scaled(1e3, "k"),
        _ if decimals > 3 => format!("{value:.0e}").replace('-', "\u{2212}"),
        _ => fixed(value, decimals),
    }
}

/// A plot's frame with axes, grid and legend; drawn into through [`Panel::at`].
pub(super) struct Panel {
    pub(super) svg: Svg,
    pub(super) x: Axis,
    pub(super) y: Axis,
}

/// How a legend entry is drawn: the class of a line, of a dot, or of a filled box.
pub(super) enum Mark {
    Line(&'static str),
    Dot(&'static str),
    Box(&'static str),
}

/// What stands around a plot.
pub(super) struct Frame<'a> {
    pub(super) x_label: &'a str,
    pub(super) y_label: &'a str,
    pub(super) legend: &'a [(Mark, &'a str)],
    /// Height of the plotting area, pixels of 480 across.
    pub(super) height: f64,
    /// As wide as high, with a grid both ways.
    pub(super) square: bool,
}

const WIDTH: f64 = 480.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 20.0;
const BOTTOM: f64 = 44.0;
const LEGEND_ROW: f64 = 19.0;

impl Panel {
    pub(super) fn new(mut x: Axis, mut y: Axis, frame: &Frame<'_>) -> Self {
        let entries = legend_places(frame.legend);
        let rows = entries.last().map_or(0.0, |place| place[1] + 1.0);
        let top = 10.0 + rows * LEGEND_ROW;
        let spare = if frame.square { (WIDTH - LEFT - RIGHT - frame.height).max(0.0) } else { 0.0 };
        let (left, right) = (LEFT + spare / 2.0, WIDTH - RIGHT - spare / 2.0);
        let bottom = top + frame.height;
        let mut svg = Svg::new(WIDTH, bottom + BOTTOM);
        x.pixels = [left, right];
        y.pixels = [bottom, top];
        for (value, text) in y.ticks((frame.height / 48.0) as usize) {
            let at = y.at(value);
            svg.line("grid", [left, at], [right, at]);
            svg.text("tick end", [left - 7.0, at + 4.0], &text);
        }
        for (value, text) in x.ticks(if frame.square { 5 } else { 7 }) {
            let at = x.at(value);
            if frame.square {
                svg.line("grid", [at, top], [at, bottom]);
            }
            svg.line("axis", [at, bottom], [at, bottom + 4.0]);
            svg.text("tick mid", [at, bottom + 17.0], &text);
        }
        svg.line("axis", [left, bottom], [right, bottom]);
        svg.text("label mid", [(left + right) / 2.0, bottom + 36.0], frame.x_label);
        svg.upright_text("label mid", [left - 44.0, (top + bottom) / 2.0], frame.y_label);
        for ((mark, text), [px, row]) in frame.legend.iter().zip(&entries) {
            let (px, py) = (LEFT + px, 10.0 + row * LEGEND_ROW);
            match mark {
                Mark::Line(class) => svg.line(class, [px, py], [px + 18.0, py]),
                Mark::Dot(class) => svg.circle(class, [px + 9.0, py], 4.0, None),
                Mark::Box(class) => svg.rect(class, [px + 2.0, py - 5.0], [14.0, 10.0]),
            }
            svg.text("tick start", [px + 24.0, py + 4.0], text);
        }
        Self { svg, x, y }
    }

    /// Pixels of a data point.
    pub(super) fn at(&self, point: [f64; 2]) -> [f64; 2] {
        [self.x.at(point[0]), self.y.at(point[1])]
    }

    pub(super) fn line(&mut self, class: &str, from: [f64; 2], to: [f64; 2]) {
        let (from, to) = (self.at(from), self.at(to));
        self.svg.line(class, from, to);
    }

    pub(super) fn polyline(&mut self, class: &str, points: &[[f64; 2]]) {
        let points: Vec<_> = points.iter().map(|&p| self.at(p)).collect();
        self.svg.polyline(class, &points);
    }

    pub(super) fn band(&mut self, class: &str, low: &[[f64; 2]], high: &[[f64; 2]]) {
        let pixels = |points: &[[f64; 2]]| points.iter().map(|&p| self.at(p)).collect::<Vec<_>>();
        let (low, high) = (pixels(low), pixels(high));
        self.svg.band(class, &low, &high);
    }

    /// A horizontal line across the plot.
    pub(super) fn across(&mut self, class: &str, y: f64) {
        let [low, high] = self.x.ends();
        self.line(class, [low, y], [high, y]);
    }

    /// A vertical line from bottom to top.
    pub(super) fn up(&mut self, class: &str, x: f64) {
        let [low, high] = self.y.ends();
        self.line(class, [x, low], [x, high]);
    }
}

/// Offset from the left and row of each legend entry, broken into rows that fit.
fn legend_places(legend: &[(Mark, &str)]) -> Vec<[f64; 2]> {
    let room = WIDTH - LEFT - RIGHT;
    let (mut x, mut row, mut places) = (0.0, 0.0, Vec::new());
    for (_, text) in legend {
        let width = 24.0 + text_width(text) + 16.0;
        if x > 0.0 && x + width - 16.0 > room {
            (x, row) = (0.0, row + 1.0);
        }
        places.push([x, row]);
        x += width;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks(5).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(labels(&Axis::linear(0.0, 1.0)), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&Axis::linear(5.3, 21.7)), ["10", "15", "20"]);
        assert_eq!(labels(&Axis::linear(0.0, 12_500.0)), ["0", "5000", "10k"]);
        assert_eq!(
            labels(&Axis::linear(-0.02, 0.03)),
            ["\u{2212}0.02", "\u{2212}0.01", "0", "0.01", "0.02", "0.03"]
        );
    }

    #[test]
    fn wide_positive_values_get_a_log_axis() {
        let wide = Axis::log_if_wide([0.01, 3.0, 40.0].into_iter());
        assert!(wide.is_log());
        assert_eq!(labels(&wide), ["0.01", "0.1", "1", "10"]);
        assert!(!Axis::log_if_wide([0.0, 40.0].into_iter()).is_log());
        assert!(!Axis::log_if_wide([1.0, 3.0].into_iter()).is_log());
    }

    #[test]
    fn degenerate_extents_still_draw() {
        for axis in [
            Axis::around([].into_iter()),
            Axis::around([f64::NAN, 2.0].into_iter()),
            Axis::linear(0.0, 0.0),
            Axis::around([-7.5e9; 3].into_iter()),
        ] {
            let [low, high] = axis.ends();
            assert!(low < high && axis.at((low + high) / 2.0).is_finite());
            assert!(!axis.ticks(5).is_empty());
        }
    }
}
