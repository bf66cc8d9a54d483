//! Figures of the training itself: losses, the validation score, the learning rate.

use super::axis::{Axis, Frame, Mark, Panel};
use super::input::Curves;
use super::page::Figure;
use super::svg::number;

/// Bins a long curve is drawn with.
const BINS: usize = 240;

/// The figures there is data for.
pub(super) fn figures(curves: &Curves) -> Vec<Figure> {
    [losses(curves), score(curves), learning_rate(curves)].into_iter().flatten().collect()
}

fn losses(curves: &Curves) -> Option<Figure> {
    let (train, lost_train) = finite(&curves.train_loss);
    let (validation, lost_validation) = finite(&curves.validation_loss);
    if train.is_empty() && validation.is_empty() {
        return None;
    }
    let thin = Thinned::new(&train);
    let values = || thin.low.iter().chain(&thin.high).chain(&validation).map(|p| p[1]);
    let mut legend = Vec::new();
    if !train.is_empty() {
        legend.push((Mark::Line("series c1"), "training"));
    }
    if !validation.is_empty() {
        legend.push((Mark::Line("series c2"), "validation"));
    }
    legend.extend(chosen_mark(curves));
    let name = if curves.loss_name.is_empty() { "loss" } else { &curves.loss_name };
    let y = Axis::log_if_wide(values());
    let log = y.is_log();
    let frame =
        Frame { x_label: "step", y_label: name, legend: &legend, height: 410.0, square: false };
    let mut panel = Panel::new(steps(curves), y, &frame);
    panel.band("band f1", &thin.low, &thin.high);
    panel.polyline("series c1", &thin.mean);
    draw_chosen(&mut panel, curves);
    panel.polyline("series c2", &validation);
    dots(&mut panel, "dot f2", &validation);
    let mut caption = String::new();
    if thin.binned {
        caption += "Training: mean and range of neighbouring steps. ";
    }
    if log {
        caption += "Logarithmic axis. ";
    }
    if lost_train + lost_validation > 0 {
        caption +=
            &format!("{} points that are not finite are left out.", lost_train + lost_validation);
    }
    Some(Figure::new("Loss", panel.svg.finish("Loss by step"), caption).tall())
}

fn score(curves: &Curves) -> Option<Figure> {
    let (points, lost) = finite(&curves.validation_score);
    if points.is_empty() {
        return None;
    }
    let baseline = curves.score_baseline.filter(|b| b.is_finite());
    let mut legend = vec![(Mark::Line("series c2"), "validation subjects")];
    if baseline.is_some() {
        legend.push((Mark::Line("reference"), "baseline"));
    }
    legend.extend(chosen_mark(curves));
    let name = if curves.score_name.is_empty() { "score" } else { &curves.score_name };
    let y = Axis::around(points.iter().map(|p| p[1]).chain(baseline));
    let frame =
        Frame { x_label: "step", y_label: name, legend: &legend, height: 190.0, square: false };
    let mut panel = Panel::new(steps(curves), y, &frame);
    if let Some(baseline) = baseline {
        panel.across("reference", baseline);
    }
    draw_chosen(&mut panel, curves);
    panel.polyline("series c2", &points);
    dots(&mut panel, "dot f2", &points);
    let mut caption =
        "The checkpoint is chosen on these subjects, so its score here flatters it.".to_string();
    if lost > 0 {
        caption += &format!(" {lost} points that are not finite are left out.");
    }
    Some(Figure::new("Validation score", panel.svg.finish("Validation score by step"), caption))
}

fn learning_rate(curves: &Curves) -> Option<Figure> {
    let (points, _) = finite(&curves.learning_rate);
    if points.len() < 2 {
        return None;
    }
    let thin = Thinned::new(&points);
    let peak = points.iter().map(|p| p[1]).fold(0.0, f64::max);
    let frame = Frame {
        x_label: "step",
        y_label: "learning rate",
        legend: &[],
        height: 110.0,
        square: false,
    };
    let y = Axis::around(points.iter().map(|p| p[1]).chain([0.0]));
    let mut panel = Panel::new(steps(curves), y, &frame);
    panel.polyline("series c3", &thin.mean);
    let caption = format!("Peak {}.", number(peak));
    Some(Figure::new("Learning rate", panel.svg.finish("Learning rate by step"), caption))
}

fn chosen_mark(curves: &Curves) -> Option<(Mark, &'static str)> {
    curves.chosen_step.map(|_| (Mark::Line("chosen"), "kept checkpoint"))
}

fn draw_chosen(panel: &mut Panel, curves: &Curves) {
    if let Some(step) = curves.chosen_step {
        panel.up("chosen", step as f64);
    }
}

/// Dots where there are few enough to see them.
fn dots(panel: &mut Panel, class: &str, points: &[[f64; 2]]) {
    if points.len() <= 60 {
        for &point in points {
            let at = panel.at(point);
            panel.svg.circle(class, at, 2.5, None);
        }
    }
}

/// One axis for all figures, so that steps stand below each other.
fn steps(curves: &Curves) -> Axis {
    let all = [
        &curves.train_loss,
        &curves.validation_loss,
        &curves.validation_score,
        &curves.learning_rate,
    ];
    let steps = all.into_iter().flatten().map(|p| p[0]).filter(|s| s.is_finite());
    Axis::linear(0.0, steps.fold(1.0, f64::max))
}

/// The points whose step and value are finite, and how many were not.
fn finite(points: &[[f64; 2]]) -> (Vec<[f64; 2]>, usize) {
    let kept: Vec<_> = points.iter().copied().filter(|p| p.iter().all(|v| v.is_finite())).collect();
    let lost = points.len() - kept.len();
    (kept, lost)
}

/// A curve drawn with at most [`BINS`] points, and the range it covers within each.
struct Thinned {
    mean: Vec<[f64; 2]>,
    low: Vec<[f64; 2]>,
    high: Vec<[f64; 2]>,
    binned: bool,
}

impl Thinned {
    fn new(points: &[[f64; 2]]) -> Self {
        let binned = points.len() > BINS;
        let bins = points.len().min(BINS);
        let mut thin = Self { mean: Vec::new(), low: Vec::new(), high: Vec::new(), binned };
        for bin in 0..bins {
            let members = &points[bin * points.len() / bins..(bin + 1) * points.len() / bins];
            let n = members.len() as f64;
            let sum = |of: usize| members.iter().map(|p| p[of]).sum::<f64>() / n;
            let (x, values) = (sum(0), || members.iter().map(|p| p[1]));
            thin.mean.push([x, sum(1)]);
            thin.low.push([x, values().fold(f64::INFINITY, f64::min)]);
            thin.high.push([x, values().fold(f64::NEG_INFINITY, f64::max)]);
        }
        thin
    }
}
