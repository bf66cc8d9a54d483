//! Figures of predicted numbers.

use super::axis::{Axis, Frame, Mark, Panel, extent};
use super::input::Report;
use super::page::{Figure, Windows};
use super::svg::{fixed, number};
use crate::metrics::{Baseline, Metric, Outputs, Scores, Task};

/// Whiskers of window predictions are drawn up to this many subjects.
const WHISKERS: usize = 400;
/// Subjects are named under the pointer up to this many.
const NAMED: usize = 1000;

/// Predicted against true, and the errors' histogram; none where the report has no regression.
pub(super) fn figures(report: &Report, windows: &Windows) -> Vec<Figure> {
    let (Some(predictions), Some(scores)) = (&report.subjects, &report.scores) else {
        return Vec::new();
    };
    let (Outputs::Regression { truth, predicted }, Task::Regression { name, unit }) =
        (predictions.outputs(), &scores.task)
    else {
        return Vec::new();
    };
    if truth.is_empty() {
        return Vec::new();
    }
    let unit = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
    let points: Vec<[f64; 2]> = truth.iter().zip(predicted).map(|(t, p)| [*t, *p]).collect();
    let names: Vec<String> = predictions.subject().iter().map(|&s| report.subject(s)).collect();
    vec![scatter(name, &unit, &points, &names, windows, scores), residuals(name, &unit, &points)]
}

fn scatter(
    name: &str,
    unit: &str,
    points: &[[f64; 2]],
    names: &[String],
    windows: &Windows,
    scores: &Scores,
) -> Figure {
    let whiskers = windows.ranges.iter().any(Option::is_some) && points.len() <= WHISKERS;
    let mut legend = vec![(Mark::Dot("dot f1"), "subject")];
    if whiskers {
        legend.push((Mark::Line("whisker"), "its windows, 10–90 %"));
    }
    legend.push((Mark::Line("reference solid"), "identity"));
    let mean = if let Baseline::Mean(mean) = scores.baseline { Some(mean) } else { None };
    if mean.is_some() {
        legend.push((Mark::Line("reference c2"), "mean predictor"));
    }
    let (low, high) = extent(points.iter().flatten().copied());
    let (x_label, y_label) = (format!("true {name}{unit}"), format!("predicted {name}{unit}"));
    let frame = Frame {
        x_label: &x_label,
        y_label: &y_label,
        legend: &legend,
        height: 352.0,
        square: true,
    };
    let axis = || Axis::around([low, high].into_iter());
    let mut panel = Panel::new(axis(), axis(), &frame);
    let [low, high] = panel.x.ends();
    if whiskers {
        for (point, range) in points.iter().zip(&windows.ranges) {
            if let Some([bottom, top]) = range {
                panel.line("whisker", [point[0], *bottom], [point[0], *top]);
            }
        }
    }
    panel.line("reference solid", [low, low], [high, high]);
    if let Some(mean) = mean {
        panel.across("reference c2", mean);
    }
    let radius = if points.len() > 400 { 2.4 } else { 3.4 };
    for (point, subject) in points.iter().zip(names) {
        let title = format!("{subject}: {} → {}", number(point[0]), number(point[1]));
        let title = (points.len() <= NAMED).then_some(title.as_str());
        let at = panel.at(*point);
        panel.svg.circle("dot f1 many", at, radius, title);
    }
    let caption = [Metric::Mae, Metric::Pearson, Metric::R2]
        .iter()
        .filter_map(|&metric| super::page::brief(scores, metric))
        .collect::<Vec<_>>()
        .join("; ");
    let label = format!("Predicted against true {name}");
    Figure::new("Predicted against true", panel.svg.finish(&label), caption)
}

fn residuals(name: &str, unit: &str, points: &[[f64; 2]]) -> Figure {
    let errors: Vec<f64> = points.iter().map(|[truth, predicted]| predicted - truth).collect();
    let n = errors.len() as f64;
    let mean = errors.iter().sum::<f64>() / n;
    let sd = (errors.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / n).sqrt();
    let axis = Axis::around(errors.iter().copied().chain([0.0]));
    let [low, high] = axis.ends();
    let bins = ((2.0 * n.sqrt()) as usize).clamp(5, 40);
    let width = (high - low) / bins as f64;
    let mut counts = vec![0usize; bins];
    for error in &errors {
        counts[(((error - low) / width) as usize).min(bins - 1)] += 1;
    }
    let top = counts.iter().copied().max().unwrap_or(0) as f64;
    let legend =
        [(Mark::Line("reference solid"), "no error"), (Mark::Line("reference c2"), "mean error")];
    let x_label = format!("predicted − true {name}{unit}");
    let frame = Frame {
        x_label: &x_label,
        y_label: "subjects",
        legend: &legend,
        height: 352.0,
        square: false,
    };
    let mut panel = Panel::new(axis, Axis::linear(0.0, top * 1.08), &frame);
    for (bin, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let left = low + bin as f64 * width;
        let [x1, y1] = panel.at([left, count as f64]);
        let [x2, y2] = panel.at([left + width, 0.0]);
        panel.svg.rect("bar f1", [x1 + 0.5, y1], [x2 - x1 - 1.0, y2 - y1]);
    }
    panel.up("reference solid", 0.0);
    panel.up("reference c2", mean);
    let slope = slope(points);
    let mut caption = format!("Mean error {}, SD {}.", fixed(mean, 2), number(sd));
    if let Some(slope) = slope {
        caption += &format!(
            " Predictions rise by {} per unit of the label; below 1 they are drawn towards the mean.",
            fixed(slope, 2)
        );
    }
    Figure::new("Errors", panel.svg.finish("Histogram of the errors"), caption)
}

/// Least-squares slope of predicted on true.
fn slope(points: &[[f64; 2]]) -> Option<f64> {
    let n = points.len() as f64;
    let mean = [0, 1].map(|of| points.iter().map(|p| p[of]).sum::<f64>() / n);
    let spread: f64 = points.iter().map(|p| (p[0] - mean[0]).powi(2)).sum();
    let shared: f64 = points.iter().map(|p| (p[0] - mean[0]) * (p[1] - mean[1])).sum();
    (spread > 0.0).then(|| shared / spread)
}
