//! The page: one HTML file with everything inside it, that needs no network and runs no script.

use super::input::Report;
use super::sections;
use super::svg::{escape, fixed};
use super::{classification, curves, regression, scalp, spectral};
use crate::metrics::{Metric, Outputs, Scores, quantile};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// One drawn figure: SVG, and plain text around it.
pub(super) struct Figure {
    title: String,
    svg: String,
    caption: String,
    tall: bool,
}

impl Figure {
    pub(super) fn new(title: &str, svg: String, caption: String) -> Self {
        Self { title: title.to_string(), svg, caption, tall: false }
    }

    /// Beside it there is room for two others, one above the other.
    pub(super) fn tall(self) -> Self {
        Self { tall: true, ..self }
    }

    fn html(&self) -> String {
        let class = if self.tall { " class=\"tall\"" } else { "" };
        let caption = match self.caption.trim() {
            "" => String::new(),
            text => format!("<figcaption>{}</figcaption>\n", escape(text)),
        };
        format!(
            "<figure{class}>\n<h3>{}</h3>\n{}{caption}</figure>\n",
            escape(&self.title),
            self.svg
        )
    }
}

/// The spread of each subject's window predictions.
pub(super) struct Windows {
    /// 10 % and 90 % quantile per subject prediction; `None` for fewer than three windows.
    pub(super) ranges: Vec<Option<[f64; 2]>>,
    /// Number of windows per subject prediction.
    pub(super) counts: Vec<usize>,
}

impl Windows {
    /// In the order of the report's subject predictions; all empty where a subject has several.
    fn of(report: &Report) -> Self {
        let subjects = report.subjects.as_ref().map_or(&[][..], |p| p.subject());
        let mut members: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        let mut distinct = subjects.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        if let (Some(windows), true) = (&report.windows, distinct.len() == subjects.len()) {
            let output = |sample: usize| match windows.outputs() {
                Outputs::Regression { predicted, .. } => predicted[sample],
                Outputs::Classification { probability, classes, .. } => {
                    probability[sample * classes + classes - 1]
                }
            };
            for (sample, &subject) in windows.subject().iter().enumerate() {
                members.entry(subject).or_default().push(output(sample));
            }
        }
        let range = |subject: &usize| {
            let values = members.get_mut(subject)?;
            values.sort_by(f64::total_cmp);
            (values.len() > 2).then(|| Some([quantile(values, 0.1)?, quantile(values, 0.9)?]))?
        };
        let ranges = subjects.iter().map(range).collect();
        let counts = subjects.iter().map(|s| members.get(s).map_or(0, Vec::len)).collect();
        Self { ranges, counts }
    }
}

/// Name, value and interval of one score, as in "MAE 1.93 y [1.71, 2.18]".
pub(super) fn brief(scores: &Scores, metric: Metric) -> Option<String> {
    let score = scores.get(metric)?;
    let (d, unit) = (score.decimals(), scores.unit(metric));
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    let interval = score
        .interval
        .map(|i| format!(" [{}, {}]", fixed(i.low, d), fixed(i.high, d)))
        .unwrap_or_default();
    Some(format!("{} {}{unit}{interval}", metric.name(), fixed(score.value?, d)))
}

const STYLE: &str = include_str!("style.css");

impl Report {
    /// The page's text. Equal reports give equal bytes.
    pub fn html(&self) -> String {
        let windows = Windows::of(self);
        let title = if self.title.is_empty() { "Training report" } else { &self.title };
        let headline = match (&self.scores, self.headline.as_str()) {
            (Some(scores), "") => {
                scores.headline().replace("[-", "[\u{2212}").replace(" -", " \u{2212}")
            }
            (_, given) => given.to_string(),
        };
        let mut results = regression::figures(self, &windows);
        results.extend(classification::figures(self));
        let mut model: Vec<Figure> = self.channels.iter().filter_map(scalp::figure).collect();
        model.extend(self.spectral.iter().flat_map(spectral::figures));
        let body = [
            format!("<h1>{}</h1>\n", escape(title)),
            sections::headline(&headline, self.scores.as_ref()),
            sections::facts(&self.facts),
            sections::scores(self),
            section("Predictions", &figures(&results)),
            section("Folds", &sections::folds(&self.folds)),
            section("What the model uses", &figures(&model)),
            section("Training", &figures(&curves::figures(&self.curves))),
            section("Data", &sections::data(self, &windows)),
            section("Notes", &sections::notes(&self.notes)),
            section("Settings", &sections::settings(&self.settings)),
        ]
        .concat();
        let title = escape(title);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             style-src 'unsafe-inline'; img-src data:\"/>\n<title>{title}</title>\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
        )
    }

    /// Writes the page to `path`: whole, or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), self.html().as_bytes())
    }

    /// Name of a subject that predictions call by number.
    pub(super) fn subject(&self, number: usize) -> String {
        self.subject_names.get(number).cloned().unwrap_or_else(|| format!("subject {number}"))
    }
}

/// Writes beside `path` first, then renames: a reader never finds half a page.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(Error::input(
            path.display(),
            "is not the name of a file",
            "give a file such as report.html",
        ));
    };
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.part", std::process::id()));
    let beside = path.with_file_name(beside);
    let write = || {
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|source| {
        // The error that is told is the first one; the leftover may be missing anyway.
        let _ = std::fs::remove_file(&beside);
        Error::io(path, "write")(source)
    })
}

/// A titled section; nothing where it would be empty.
pub(super) fn section(title: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{}</h2>\n{content}</section>\n", escape(title))
}

fn figures(figures: &[Figure]) -> String {
    if figures.is_empty() {
        return String::new();
    }
    let drawn: String = figures.iter().map(Figure::html).collect();
    format!("<div class=\"figures\">\n{drawn}</div>\n")
}
