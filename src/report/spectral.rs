//! What the model's spectral filters pass: gain over frequency, over all features and one by one.

use super::axis::{Axis, Frame, Mark, Panel, extent};
use super::colour::Colours;
use super::input::SpectralGain;
use super::page::Figure;
use super::scalp::draw_bar;
use super::svg::{Raster, Svg};
use crate::metrics::quantile;

/// The heat map has at most so many columns (frequencies) and rows (features).
const MOST_COLUMNS: usize = 200;
const MOST_ROWS: usize = 128;

/// The bands EEG is spoken of in, Hz.
const BANDS: [(&str, f64, f64); 5] =
    [("δ", 0.5, 4.0), ("θ", 4.0, 8.0), ("α", 8.0, 13.0), ("β", 13.0, 30.0), ("γ", 30.0, 80.0)];

/// Two figures; none where shapes do not fit or a number is not finite.
pub(super) fn figures(spectral: &SpectralGain) -> Vec<Figure> {
    let frequencies = &spectral.frequencies;
    let features = spectral.gain.len().checked_div(frequencies.len()).unwrap_or(0);
    let sound = frequencies.len() > 1
        && features * frequencies.len() == spectral.gain.len()
        && features > 0
        && frequencies.is_sorted_by(|a, b| a < b)
        && frequencies.iter().chain(&spectral.gain).all(|v| v.is_finite());
    if !sound {
        return Vec::new();
    }
    vec![summary(spectral, features), heat_map(spectral, features)]
}

fn summary(spectral: &SpectralGain, features: usize) -> Figure {
    let mut lines: [Vec<[f64; 2]>; 5] = Default::default();
    for (&frequency, row) in spectral.frequencies.iter().zip(spectral.gain.chunks_exact(features)) {
        let mut sorted = row.to_vec();
        sorted.sort_by(f64::total_cmp);
        for (line, q) in lines.iter_mut().zip([0.05, 0.25, 0.5, 0.75, 0.95]) {
            line.push([frequency, quantile(&sorted, q).unwrap_or(0.0)]);
        }
    }
    let [p5, p25, median, p75, p95] = lines;
    let legend = [
        (Mark::Line("series c1"), "median"),
        (Mark::Box("band f1 strong"), "25–75 %"),
        (Mark::Box("band f1"), "5–95 %"),
        (Mark::Line("reference"), "unchanged"),
    ];
    let frame = Frame {
        x_label: "frequency (Hz)",
        y_label: "|gain|",
        legend: &legend,
        height: 240.0,
        square: false,
    };
    let (low, high) = extent(p5.iter().chain(&p95).map(|p| p[1]));
    let room = (high - low).max(0.02) * 0.12;
    let ends = extent(spectral.frequencies.iter().copied());
    let y = Axis::around([low, high + room, 1.0].into_iter());
    let mut panel = Panel::new(Axis::linear(ends.0, ends.1), y, &frame);
    let top = panel.y.ends()[1];
    for (name, from, to) in BANDS {
        let (from, to) = (from.max(ends.0), to.min(ends.1));
        if to - from > 0.02 * (ends.1 - ends.0) {
            let at = panel.at([(from + to) / 2.0, top]);
            panel.svg.text("tick mid", [at[0], at[1] + 13.0], name);
            if from > ends.0 {
                panel.up("grid", from);
            }
        }
    }
    panel.band("band f1", &p5, &p95);
    panel.band("band f1 strong", &p25, &p75);
    panel.across("reference", 1.0);
    panel.polyline("series c1", &median);
    let caption =
        format!("Median and quantiles over {features} features; 1 passes a frequency unchanged.");
    Figure::new("Spectral gain", panel.svg.finish("Spectral gain by frequency"), caption)
}

fn heat_map(spectral: &SpectralGain, features: usize) -> Figure {
    let (low, high) = extent(spectral.gain.iter().copied());
    let colours = Colours::new(low, high, 1.0);
    let order = by_center(spectral, features);
    let frequencies = spectral.frequencies.len();
    let (columns, rows) = (frequencies.min(MOST_COLUMNS), features.min(MOST_ROWS));
    let mut pixels = Vec::with_capacity(columns * rows);
    for row in 0..rows {
        let members = &order[row * features / rows..(row + 1) * features / rows];
        for column in 0..columns {
            let (from, to) = (column * frequencies / columns, (column + 1) * frequencies / columns);
            let values = (from..to).flat_map(|f| members.iter().map(move |m| (f, m)));
            let sum: f64 = values.map(|(f, m)| spectral.gain[f * features + m]).sum();
            pixels.push(colours.shade(sum / ((to - from) * members.len()) as f64));
        }
    }
    let (left, top, width, height) = (58.0, 10.0, 330.0, 240.0);
    let mut svg = Svg::new(480.0, top + height + 44.0);
    let raster = Raster { width: columns, pixels: &pixels, palette: &colours.palette() };
    svg.image(&raster, [left, top], [width, height], "style=\"image-rendering:pixelated\"");
    let (first, last) = extent(spectral.frequencies.iter().copied());
    for (value, text) in Axis::linear(first, last).ticks(6) {
        let x = left + width * (value - first) / (last - first);
        svg.line("axis", [x, top + height], [x, top + height + 4.0]);
        svg.text("tick mid", [x, top + height + 17.0], &text);
    }
    svg.text("label mid", [left + width / 2.0, top + height + 36.0], "frequency (Hz)");
    svg.upright_text(
        "label mid",
        [left - 14.0, top + height / 2.0],
        "features, by centre frequency",
    );
    draw_bar(&mut svg, &colours, [left + width + 30.0, top + 20.0], height - 40.0, "|gain|");
    let caption = if rows < features || columns < frequencies {
        format!("{features} features at {frequencies} frequencies, neighbours averaged.")
    } else {
        format!("{features} features at {frequencies} frequencies.")
    };
    Figure::new("Spectral gain by feature", svg.finish("Spectral gain by feature"), caption)
}

/// Features by rising mean frequency of what they pass.
fn by_center(spectral: &SpectralGain, features: usize) -> Vec<usize> {
    let center: Vec<f64> = (0..features)
        .map(|m| {
            let gains = spectral.gain.iter().skip(m).step_by(features);
            let (mut weighted, mut total) = (0.0, 0.0);
            for (frequency, gain) in spectral.frequencies.iter().zip(gains) {
                weighted += frequency * gain.abs();
                total += gain.abs();
            }
            if total > 0.0 { weighted / total } else { 0.0 }
        })
        .collect();
    let mut order: Vec<usize> = (0..features).collect();
    order.sort_by(|&a, &b| center[a].total_cmp(&center[b]));
    order
}
