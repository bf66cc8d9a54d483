//! The page's words and tables.

use super::axis::{Axis, Frame, Mark, Panel};
use super::input::{Fold, Report, Skipped};
use super::page::Windows;
use super::svg::{Svg, count, escape, fixed, number};
use crate::metrics::{Baseline, Interval, Level, Metric, Outputs, Score, Scores, Task, Verdict};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The subject table lists at most so many: the worst predicted ones.
const LISTED_SUBJECTS: usize = 600;
/// So many skipped recordings are listed one by one.
const LISTED_SKIPPED: usize = 300;

pub(super) fn headline(text: &str, scores: Option<&Scores>) -> String {
    if text.is_empty() {
        return String::new();
    }
    let caution = scores
        .and_then(Scores::caution)
        .map_or(String::new(), |caution| format!("<p class=\"even\">{}</p>\n", escape(&caution)));
    format!("<p class=\"headline\">{}</p>\n{caution}", escape(text))
}

pub(super) fn facts(facts: &[(String, String)]) -> String {
    if facts.is_empty() {
        return String::new();
    }
    let mut html = "<dl class=\"facts\">\n".to_string();
    for (name, value) in facts {
        let _ = writeln!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    html + "</dl>\n"
}

/// Tables of scores by subject and by window.
pub(super) fn scores(report: &Report) -> String {
    let mut html = String::new();
    for scores in report.scores.iter().chain(&report.window_scores) {
        let title = match scores.level {
            Level::Subject if scores.samples > scores.subjects => "Scores by recording",
            Level::Subject => "Scores by subject",
            Level::Window => "Scores by window",
        };
        let table = score_table(scores);
        html += &match (scores.level, scores.primary()) {
            (Level::Window, Some(primary)) if report.scores.is_some() => format!(
                "<details>\n<summary>{title}: {}</summary>\n{table}</details>\n",
                escape(&super::page::brief(scores, primary.metric).unwrap_or_default())
            ),
            _ => super::page::section(title, &table),
        };
    }
    html
}

fn score_table(scores: &Scores) -> String {
    let baseline = scores.baseline.name();
    let percent = fixed(100.0 * scores.bootstrap.confidence, 0);
    let mut html = format!(
        "<div class=\"scroll\"><table>\n<thead><tr><th>score</th><th class=\"n\">value</th>\
         <th>{percent} % interval</th><th class=\"n\">{baseline}</th><th class=\"n\">better by</th>\
         <th>{percent} % interval</th><th>against zero</th><th></th></tr></thead>\n<tbody>\n"
    );
    for score in &scores.scores {
        let d = score.decimals();
        let value = |v: Option<f64>| v.map_or("–".into(), |v| fixed(v, d));
        let text = score.verdict_text(baseline);
        let _ = writeln!(
            html,
            "<tr><th class=\"nowrap\">{}</th><td class=\"n\"><b>{}</b></td><td class=\"i\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"i\">{}</td><td>{}</td>\
             <td class=\"verdict {}\">{}</td></tr>",
            escape(&scores.label(score.metric)),
            value(score.value),
            interval(score.interval, d),
            value(score.baseline),
            value(score.improvement),
            interval(score.improvement_interval, d),
            strip(score),
            verdict_class(score),
            escape(&text)
        );
    }
    let mut method = scores.method() + ". ";
    method += match scores.baseline {
        Baseline::Mean(_) => {
            "The mean predictor gives every subject the mean label of the training subjects; \
             correlations, which it has not, are held against zero."
        }
        Baseline::Frequencies(_) => {
            "The majority class is the training subjects' most frequent; for scores of \
             probabilities it predicts their class frequencies."
        }
    };
    if scores.level == Level::Window {
        method += " Windows of one subject are drawn together.";
    }
    let _ = writeln!(html, "</tbody>\n</table></div>\n<p class=\"small\">{}</p>", escape(&method));
    html
}

fn interval(interval: Option<Interval>, decimals: usize) -> String {
    interval.map_or("–".into(), |i| {
        format!("[{}, {}]", fixed(i.low, decimals), fixed(i.high, decimals))
    })
}

fn verdict_class(score: &Score) -> &'static str {
    match score.verdict() {
        _ if score.value.is_none() => "unknown",
        Verdict::Beats => "beats",
        Verdict::DoesNotBeat => "even",
        Verdict::Worse => "worse",
        Verdict::TooFew | Verdict::Unknown => "unknown",
    }
}

/// The improvement and its interval against zero, each row on its own scale.
fn strip(score: &Score) -> String {
    let (Some(value), Some(i)) = (score.improvement, score.improvement_interval) else {
        return String::new();
    };
    let mut svg = Svg::new(110.0, 18.0);
    let reach = i.low.abs().max(i.high.abs()).max(value.abs()).max(f64::MIN_POSITIVE);
    // Zero is in the middle only where the interval reaches below it.
    let zero = if i.low < 0.0 { 55.0 } else { 12.0 };
    let at = |v: f64| zero + v / reach * (104.0 - zero);
    let look = match verdict_class(score) {
        "beats" => ["whisker strong", "dot f1"],
        "worse" => ["series c2", "dot f2"],
        _ => ["axis", "dot muted"],
    };
    svg.line("axis", [zero, 2.0], [zero, 16.0]);
    svg.line(look[0], [at(i.low), 9.0], [at(i.high), 9.0]);
    svg.circle(look[1], [at(value), 9.0], 3.4, None);
    svg.finish("interval of the improvement against zero")
}

/// A table of the folds and their intervals beside each other.
pub(super) fn folds(folds: &[Fold]) -> String {
    let Some(first) = folds.first() else { return String::new() };
    let metrics: Vec<Metric> = first.scores.scores.iter().take(3).map(|s| s.metric).collect();
    let mut html = "<div class=\"scroll\"><table>\n<thead><tr><th>fold</th>\
                    <th class=\"n\">training subjects</th><th class=\"n\">held out</th>"
        .to_string();
    for (at, &metric) in metrics.iter().enumerate() {
        let _ = write!(html, "<th class=\"n\">{}</th>", escape(&first.scores.label(metric)));
        html += if at == 0 { "<th>interval</th><th></th>" } else { "" };
    }
    html += "</tr></thead>\n<tbody>\n";
    for fold in folds {
        let _ = write!(
            html,
            "<tr><th>{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td>",
            escape(&fold.name),
            count(fold.training_subjects),
            count(fold.scores.subjects)
        );
        for (at, &metric) in metrics.iter().enumerate() {
            html += &fold_cells(fold, metric, decimals(folds, metric), at == 0);
        }
        html += "</tr>\n";
    }
    html += "</tbody>\n<tfoot><tr><th>mean (SD)</th><td></td><td></td>";
    for (at, &metric) in metrics.iter().enumerate() {
        let _ = write!(html, "<td class=\"n\">{}</td>", mean_and_sd(folds, metric));
        html += if at == 0 { "<td></td><td></td>" } else { "" };
    }
    html += "</tr></tfoot>\n</table></div>\n";
    html += "<p class=\"small\">The SD over folds is not a standard error: the folds share \
             training subjects.</p>\n";
    html + &fold_figure(folds, metrics.first().copied())
}

/// Decimals for a column of the folds' scores.
fn decimals(folds: &[Fold], metric: Metric) -> usize {
    let of = |fold: &Fold| fold.scores.get(metric).map(Score::decimals);
    folds.iter().filter_map(of).min().unwrap_or(2)
}

fn fold_cells(fold: &Fold, metric: Metric, d: usize, with_interval: bool) -> String {
    let Some(score) = fold.scores.get(metric) else { return "<td></td>".into() };
    let value = score.value.map_or("–".into(), |v| fixed(v, d));
    let mut html = format!("<td class=\"n\">{value}</td>");
    if with_interval {
        let text = score.verdict_text(fold.scores.baseline.name());
        let _ = write!(
            html,
            "<td class=\"i\">{}</td><td class=\"verdict {}\">{}</td>",
            interval(score.interval, d),
            verdict_class(score),
            escape(&text)
        );
    }
    html
}

fn mean_and_sd(folds: &[Fold], metric: Metric) -> String {
    let values: Vec<f64> = folds.iter().filter_map(|f| f.scores.get(metric)?.value).collect();
    if values.is_empty() {
        return "–".into();
    }
    let decimals = decimals(folds, metric);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return fixed(mean, decimals);
    }
    let sd = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    format!("{} ({})", fixed(mean, decimals), fixed(sd, decimals))
}

/// Each fold's primary score with its interval, and the baseline's.
fn fold_figure(folds: &[Fold], metric: Option<Metric>) -> String {
    let (Some(metric), Some(first)) = (metric, folds.first()) else { return String::new() };
    let scores: Vec<&Score> = folds.iter().filter_map(|f| f.scores.get(metric)).collect();
    if scores.len() != folds.len() || scores.len() < 2 || scores.len() > 60 {
        return String::new();
    }
    let ends = |s: &&Score| {
        let interval = s.interval.map(|i| [i.low, i.high]);
        [s.value, s.baseline, interval.map(|i| i[0]), interval.map(|i| i[1])]
    };
    let values: Vec<f64> = scores.iter().flat_map(ends).flatten().collect();
    let legend = [
        (Mark::Dot("dot f1"), "held-out subjects, 95 % interval"),
        (Mark::Line("series c2"), first.scores.baseline.name()),
    ];
    let label = first.scores.label(metric);
    let frame =
        Frame { x_label: "fold", y_label: &label, legend: &legend, height: 240.0, square: false };
    let x = Axis::linear(0.5, scores.len() as f64 + 0.5);
    let mut panel = Panel::new(x, Axis::around(values.into_iter()), &frame);
    for (at, score) in scores.iter().enumerate() {
        let x = at as f64 + 1.0;
        if let Some(baseline) = score.baseline {
            panel.line("series c2", [x - 0.22, baseline], [x + 0.22, baseline]);
        }
        if let Some(i) = score.interval {
            panel.line("whisker strong", [x, i.low], [x, i.high]);
        }
        if let Some(value) = score.value {
            let at = panel.at([x, value]);
            panel.svg.circle("dot f1", at, 4.5, None);
        }
    }
    let svg = panel.svg.finish("Score of each fold");
    format!("<div class=\"figures\" style=\"margin-top:24px\"><figure>\n{svg}</figure></div>\n")
}

/// Split proof, skipped recordings, and each subject's prediction.
pub(super) fn data(report: &Report, windows: &Windows) -> String {
    let mut html = String::new();
    if !report.split_proof.trim().is_empty() {
        let _ = writeln!(
            html,
            "<h3>Split by subject</h3>\n<pre>{}</pre>",
            escape(report.split_proof.trim_end())
        );
    }
    html += &skipped(&report.skipped);
    html + &subjects(report, windows)
}

fn skipped(skipped: &[Skipped]) -> String {
    if skipped.is_empty() {
        return String::new();
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for recording in skipped {
        *reasons.entry(&recording.reason).or_default() += 1;
    }
    let recordings = if skipped.len() == 1 { "recording" } else { "recordings" };
    let mut html = format!("<details>\n<summary>{} {recordings} skipped", count(skipped.len()));
    if reasons.len() <= 4 {
        let list: Vec<String> =
            reasons.iter().map(|(reason, n)| format!("{} × {reason}", count(*n))).collect();
        let _ = write!(html, ": {}", escape(&list.join("; ")));
    }
    html += "</summary>\n<div class=\"scroll\"><table>\n<thead><tr><th>recording</th>\
             <th>reason</th></tr></thead>\n<tbody>\n";
    for recording in skipped.iter().take(LISTED_SKIPPED) {
        let _ = writeln!(
            html,
            "<tr><td class=\"path\">{}</td><td>{}</td></tr>",
            escape(&recording.path),
            escape(&recording.reason)
        );
    }
    html += "</tbody>\n</table></div>\n";
    if skipped.len() > LISTED_SKIPPED {
        let _ = writeln!(
            html,
            "<p class=\"small\">and {} more.</p>",
            count(skipped.len() - LISTED_SKIPPED)
        );
    }
    html + "</details>\n"
}

/// Every subject's prediction, the worst first.
fn subjects(report: &Report, windows: &Windows) -> String {
    let (Some(predictions), Some(scores)) = (&report.subjects, &report.scores) else {
        return String::new();
    };
    let mut rows: Vec<(f64, String)> = Vec::new();
    for (at, &subject) in predictions.subject().iter().enumerate() {
        let (error, cells) = match (predictions.outputs(), &scores.task) {
            (Outputs::Regression { truth, predicted }, _) => {
                let error = predicted[at] - truth[at];
                let cells = [truth[at], predicted[at], error].map(number);
                (error.abs(), cells)
            }
            (
                Outputs::Classification { truth, probability, classes },
                Task::Classification { classes: names, .. },
            ) => {
                let row = &probability[at * classes..(at + 1) * classes];
                let best = (1..*classes).fold(0, |b, k| if row[k] > row[b] { k } else { b });
                let name = |k: usize| names.get(k).map_or(String::new(), |n| escape(n));
                let of_truth = row[truth[at]];
                (1.0 - of_truth, [name(truth[at]), name(best), fixed(of_truth, 3)])
            }
            _ => return String::new(),
        };
        let [a, b, c] = cells;
        let n = windows.counts.get(at).copied().filter(|n| *n > 0);
        let n = n.map_or(String::new(), count);
        let name = escape(&report.subject(subject));
        rows.push((
            error,
            format!(
                "<tr><td>{name}</td><td class=\"n\">{a}</td><td class=\"n\">{b}</td>\
                 <td class=\"n\">{c}</td><td class=\"n\">{n}</td></tr>\n"
            ),
        ));
    }
    if rows.is_empty() {
        return String::new();
    }
    let (all, third) = match predictions.outputs() {
        Outputs::Regression { .. } => (rows.len(), "error"),
        Outputs::Classification { .. } => (rows.len(), "probability of the true class"),
    };
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    rows.truncate(LISTED_SUBJECTS);
    let which = if all > rows.len() {
        format!("The {} worst predictions of {}", count(rows.len()), count(all))
    } else {
        format!("All {} predictions, the worst first", count(all))
    };
    let body: String = rows.into_iter().map(|(_, row)| row).collect();
    format!(
        "<details class=\"long\">\n<summary>{which}</summary>\n<div class=\"scroll\"><table>\n<thead><tr>\
         <th>subject</th><th class=\"n\">true</th><th class=\"n\">predicted</th>\
         <th class=\"n\">{third}</th><th class=\"n\">windows</th></tr></thead>\n<tbody>\n{body}\
         </tbody>\n</table></div>\n</details>\n"
    )
}

pub(super) fn notes(notes: &[String]) -> String {
    if notes.is_empty() {
        return String::new();
    }
    let items: String = notes.iter().map(|note| format!("<li>{}</li>\n", escape(note))).collect();
    format!("<ul>\n{items}</ul>\n")
}

pub(super) fn settings(settings: &str) -> String {
    if settings.trim().is_empty() {
        return String::new();
    }
    format!(
        "<details>\n<summary>All settings of the run (TOML)</summary>\n<pre>{}</pre>\n</details>\n",
        escape(settings.trim_end())
    )
}
