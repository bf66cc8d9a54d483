//! Figures of predicted classes.

use super::axis::{Axis, Frame, Mark, Panel};
use super::input::Report;
use super::page::{Figure, brief};
use super::svg::{Svg, fixed, text_width};
use crate::metrics::{self, Metric, Outputs, Predictions, Scores, Task, calibration, roc_band};

/// Points at which the ROC band is drawn.
const BAND_POINTS: usize = 101;
/// Curves and rows that still can be told apart.
const MOST_CURVES: usize = 6;
const MOST_CLASSES: usize = 16;

/// ROC, confusion matrix, calibration, and the probabilities by class; none where the report has no
/// classification.
pub(super) fn figures(report: &Report) -> Vec<Figure> {
    let (Some(predictions), Some(scores)) = (&report.subjects, &report.scores) else {
        return Vec::new();
    };
    let (Outputs::Classification { truth, .. }, Task::Classification { classes, .. }) =
        (predictions.outputs(), &scores.task)
    else {
        return Vec::new();
    };
    if truth.is_empty() {
        return Vec::new();
    }
    let binary = classes.len() == 2;
    let figures = [
        if binary {
            roc(predictions, report.windows.as_ref(), &classes[1], scores)
        } else {
            roc_each(predictions, classes, scores)
        },
        confusion(classes, scores),
        reliability(predictions, classes),
        if binary { histogram(predictions, classes) } else { None },
    ];
    figures.into_iter().flatten().collect()
}

fn unit_axis() -> Axis {
    Axis::linear(0.0, 1.0)
}

fn roc(
    predictions: &Predictions,
    windows: Option<&Predictions>,
    positive: &str,
    scores: &Scores,
) -> Option<Figure> {
    let curve = metrics::roc(predictions, 1)?;
    let band = roc_band(predictions, 1, BAND_POINTS, &scores.bootstrap);
    let of_windows = windows.and_then(|w| metrics::roc(w, 1));
    let mut legend = vec![(Mark::Line("series c1"), "subjects")];
    if band.is_some() {
        legend.push((Mark::Box("band f1"), "its 95 % band"));
    }
    if of_windows.is_some() {
        legend.push((Mark::Line("series thin c2"), "windows"));
    }
    legend.push((Mark::Line("reference"), "chance"));
    let frame = Frame {
        x_label: "false positive rate",
        y_label: "true positive rate",
        legend: &legend,
        height: 352.0,
        square: true,
    };
    let mut panel = Panel::new(unit_axis(), unit_axis(), &frame);
    if let Some(band) = band {
        let edge = |end: fn(&metrics::Interval) -> f64| -> Vec<[f64; 2]> {
            let rates = band.false_positive_rate.iter().zip(&band.true_positive_rate);
            rates.map(|(x, interval)| [*x, end(interval)]).collect()
        };
        panel.band("band f1", &edge(|i| i.low), &edge(|i| i.high));
    }
    panel.line("reference", [0.0, 0.0], [1.0, 1.0]);
    if let Some(curve) = of_windows {
        panel.polyline("series thin c2", &sparse(&curve.points));
    }
    panel.polyline("series c1", &sparse(&curve.points));
    let caption = format!(
        "Positive class: {positive}. {}",
        brief(scores, Metric::Auroc).map(|text| text + " by subjects.").unwrap_or_default()
    );
    Some(Figure::new("ROC curve", panel.svg.finish("ROC curve"), caption))
}

fn roc_each(predictions: &Predictions, classes: &[String], scores: &Scores) -> Option<Figure> {
    const LOOK: [&str; MOST_CURVES] =
        ["series c1", "series c2", "series c3", "series c4", "series c5", "series c6"];
    let curves: Vec<_> = (0..classes.len().min(MOST_CURVES))
        .filter_map(|k| Some((k, metrics::roc(predictions, k)?)))
        .collect();
    if curves.is_empty() {
        return None;
    }
    let mut legend: Vec<_> =
        curves.iter().map(|(k, _)| (Mark::Line(LOOK[*k]), classes[*k].as_str())).collect();
    legend.push((Mark::Line("reference"), "chance"));
    let frame = Frame {
        x_label: "false positive rate",
        y_label: "true positive rate",
        legend: &legend,
        height: 352.0,
        square: true,
    };
    let mut panel = Panel::new(unit_axis(), unit_axis(), &frame);
    panel.line("reference", [0.0, 0.0], [1.0, 1.0]);
    for (k, curve) in &curves {
        panel.polyline(LOOK[*k], &sparse(&curve.points));
    }
    let mut caption = "Each class against the rest.".to_string();
    if classes.len() > MOST_CURVES {
        caption += &format!(" The first {MOST_CURVES} of {} classes.", classes.len());
    }
    if let Some(auroc) = brief(scores, Metric::Auroc) {
        caption += &format!(" {auroc}.");
    }
    Some(Figure::new("ROC curves", panel.svg.finish("ROC curves"), caption))
}

/// At most about 500 points of a staircase.
fn sparse(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let every = points.len().div_ceil(500).max(1);
    let mut kept: Vec<_> = points.iter().copied().step_by(every).collect();
    kept.extend(points.last());
    kept
}

fn confusion(classes: &[String], scores: &Scores) -> Option<Figure> {
    let n = classes.len();
    if n > MOST_CLASSES || scores.confusion.len() != n {
        return None;
    }
    let longest = classes.iter().map(|c| text_width(&short(c))).fold(0.0, f64::max);
    let left = 40.0 + longest;
    let side = (460.0 - left).min(320.0);
    let (cell, top) = (side / n as f64, 56.0);
    let left = left + (460.0 - left - side) / 2.0;
    let mut svg = Svg::new(480.0, top + side + 16.0);
    svg.text("label mid", [left + side / 2.0, 16.0], "predicted");
    svg.upright_text("label mid", [left - longest - 20.0, top + side / 2.0], "true");
    let slanted = classes.iter().any(|c| text_width(&short(c)) > cell - 4.0);
    for (t, row) in scores.confusion.iter().enumerate() {
        let total: u64 = row.iter().sum();
        let middle = top + (t as f64 + 0.5) * cell;
        svg.text("tick end", [left - 8.0, middle + 4.0], &short(&classes[t]));
        let across = [left + (t as f64 + 0.5) * cell, top - 10.0];
        let heading = if slanted { (t + 1).to_string() } else { short(&classes[t]) };
        svg.text("tick mid", across, &heading);
        for (p, &count) in row.iter().enumerate() {
            let share = count as f64 / total.max(1) as f64;
            let x = left + p as f64 * cell;
            svg.raw(&format!(
                "<rect class=\"cell f1\" style=\"fill-opacity:{:.2}\" x=\"{x:.1}\" y=\"{:.1}\" \
                 width=\"{cell:.1}\" height=\"{cell:.1}\"/>",
                0.04 + 0.55 * share,
                top + t as f64 * cell,
            ));
            let percent = fixed(100.0 * share, 0) + " %";
            if n <= 6 {
                let center = x + cell / 2.0;
                svg.text("big mid", [center, middle], &count.to_string());
                svg.text("tick mid ink", [center, middle + 18.0], &percent);
            } else {
                svg.text("tick mid ink", [x + cell / 2.0, middle + 4.0], &count.to_string());
            }
        }
    }
    let mut caption = "Counts, and shares of each row (the true class).".to_string();
    if slanted {
        caption += " Columns are numbered in the order of the rows.";
    }
    Some(Figure::new("Confusion matrix", svg.finish("Confusion matrix"), caption))
}

/// A class name cut to what a row of the matrix holds.
fn short(name: &str) -> String {
    if name.chars().count() <= 16 {
        return name.to_string();
    }
    name.chars().take(15).chain(['…']).collect()
}

/// Calibration of the positive class, or with more than two classes of the predicted class.
fn reliability(predictions: &Predictions, classes: &[String]) -> Option<Figure> {
    let (pooled, what) = if classes.len() == 2 {
        (predictions.clone(), format!("predicted probability of {}", classes[1]))
    } else {
        (confidence(predictions)?, "confidence in the predicted class".to_string())
    };
    let bins = (pooled.len() / 12).clamp(2, 10);
    let bins = calibration(&pooled, 1, bins);
    if pooled.len() < 10 {
        return None;
    }
    let legend = [
        (Mark::Dot("dot f1"), "bin of subjects, 95 % interval"),
        (Mark::Line("reference"), "perfect"),
    ];
    let frame = Frame {
        x_label: &what,
        y_label: "share that came true",
        legend: &legend,
        height: 352.0,
        square: true,
    };
    let mut panel = Panel::new(unit_axis(), unit_axis(), &frame);
    panel.line("reference", [0.0, 0.0], [1.0, 1.0]);
    let line: Vec<_> = bins.iter().map(|bin| [bin.predicted, bin.observed]).collect();
    for bin in &bins {
        let x = bin.predicted;
        panel.line("whisker strong", [x, bin.interval.low], [x, bin.interval.high]);
    }
    panel.polyline("series thin c1", &line);
    for (bin, point) in bins.iter().zip(&line) {
        let at = panel.at(*point);
        panel.svg.circle("dot f1", at, 4.0, Some(&format!("{} subjects", bin.count)));
    }
    let each = pooled.len() / bins.len().max(1);
    let caption = format!("{} bins of about {each}; Wilson intervals.", bins.len());
    Some(Figure::new("Calibration", panel.svg.finish("Calibration"), caption))
}

/// "The predicted class is right" against its probability.
fn confidence(predictions: &Predictions) -> Option<Predictions> {
    let Outputs::Classification { truth, probability, classes } = predictions.outputs() else {
        return None;
    };
    let (mut right, mut rows) = (Vec::new(), Vec::new());
    for (row, &label) in probability.chunks_exact(*classes).zip(truth) {
        let greatest = row.iter().copied().fold(0.0, f64::max);
        right.push(usize::from(row.get(label) == Some(&greatest)));
        rows.extend([1.0 - greatest, greatest]);
    }
    Predictions::classification(predictions.subject().to_vec(), right, rows, 2).ok()
}

/// Predicted probabilities, one class upwards and the other downwards.
fn histogram(predictions: &Predictions, classes: &[String]) -> Option<Figure> {
    const BINS: usize = 20;
    let Outputs::Classification { truth, probability, .. } = predictions.outputs() else {
        return None;
    };
    let mut counts = [[0usize; BINS]; 2];
    for (row, &label) in probability.chunks_exact(2).zip(truth) {
        let bin = ((row[1] * BINS as f64) as usize).min(BINS - 1);
        counts[label.min(1)][bin] += 1;
    }
    let most = counts.as_flattened().iter().copied().max()?.max(1) as f64 * 1.08;
    let legend = [
        (Mark::Box("bar f1"), format!("truly {}", classes[1])),
        (Mark::Box("bar f2"), format!("truly {}, downwards", classes[0])),
    ];
    let legend = legend.each_ref().map(|(mark, text)| match mark {
        Mark::Box(class) => (Mark::Box(class), text.as_str()),
        _ => (Mark::Box("bar"), text.as_str()),
    });
    let x_label = format!("predicted probability of {}", classes[1]);
    let frame = Frame {
        x_label: &x_label,
        y_label: "subjects",
        legend: &legend,
        height: 352.0,
        square: false,
    };
    let mut panel = Panel::new(unit_axis(), Axis::mirrored(most), &frame);
    for (class, look, sign) in [(1, "bar f1", 1.0), (0, "bar f2", -1.0)] {
        for (bin, &count) in counts[class].iter().enumerate().filter(|(_, count)| **count > 0) {
            let [x1, y1] = panel.at([bin as f64 / BINS as f64, 0.0]);
            let [x2, y2] = panel.at([(bin + 1) as f64 / BINS as f64, sign * count as f64]);
            panel.svg.rect(look, [x1 + 0.5, y1.min(y2)], [x2 - x1 - 1.0, (y2 - y1).abs()]);
        }
    }
    panel.across("axis", 0.0);
    let svg = panel.svg.finish("Predicted probabilities by true class");
    Some(Figure::new("Probabilities by true class", svg, String::new()))
}
