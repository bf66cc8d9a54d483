//! `engine evaluate` and `engine predict`: a trained model on data.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{EvaluateArgs, PredictArgs, Split as Part};
use super::train::device;
use crate::config::{self, Amp, Assignment, Settings};
use crate::console::Console;
use crate::data::window::Window;
use crate::metrics::Task;
use crate::train::dataset::{self, Dataset};
use crate::train::inference::{Predictor, checkpoint};
use crate::train::results::{self, Collected};
use crate::train::run_dir::{RunDir, RunPaths};
use crate::train::signal;
use crate::train::state::About;
use crate::train::target::Target;
use crate::{Error, Result};

/// A run's settings with other data and device.
fn settings_of(paths: &RunPaths, data: Option<&PathBuf>, flags: &[Assignment]) -> Result<Settings> {
    let mut all = flags.to_vec();
    if let Some(dir) = data {
        let Some(text) = dir.to_str() else {
            let problem = "is not valid UTF-8";
            return Err(Error::input(dir.display(), problem, "rename the folder"));
        };
        all.push(Assignment::new("--data", "data.dir", text));
    }
    let mut settings = config::resolve(Some(&paths.config()), &all, None)?.settings;
    // Scores are computed in f32, whatever the model was trained in and this device has.
    settings.train.amp = Amp::Off;
    Ok(settings)
}

/// Runs `engine evaluate`.
///
/// # Errors
/// Whatever is wrong with the run, the checkpoint or the data.
pub fn run(args: &EvaluateArgs, console: &Console) -> Result<()> {
    let paths = RunDir::open(&args.run)?;
    let settings = settings_of(&paths, args.data.as_ref(), &args.device.assignments())?;
    let path = checkpoint(&paths, &args.checkpoint)?;
    let Predictor { step, about, .. } = Predictor::open(device(&settings, console)?, &path, 0)?;
    let data = dataset::open(&settings, console, signal::stop_flag())?;
    results::check_windows(&about, &data, &path)?;
    check_task(&about, &data.target, &path)?;
    let (windows, training) = parts(args, &paths, &path, &data)?;
    let mut collected = Collected::default();
    collected.add(&step, &about, &data, &windows)?;
    let reference = if training.is_empty() { &windows } else { &training };
    let baseline = results::baseline(&data, reference, &about.task)?;
    let (scores, window_scores) =
        results::scores(&about, &collected, &baseline, settings.train.seed)?;
    console.say(&scores.table());
    console.say(&window_scores.table());
    let fields = json!({ "scores": scores, "window_scores": window_scores });
    console.finish(&scores.headline(), &fields);
    Ok(())
}

fn check_task(about: &About, target: &Target, path: &Path) -> Result<()> {
    if about.task == target.task {
        return Ok(());
    }
    let problem = format!("predicts {}, the data have {}", words(&about.task), words(&target.task));
    let remedy = "give a checkpoint of this run, or data with the target that it predicts";
    Err(Error::input(path.display(), problem, remedy))
}

/// What is predicted, as in "sex (F, M)".
fn words(task: &Task) -> String {
    match task {
        Task::Regression { name, .. } => format!("{name} (a number)"),
        Task::Classification { name, classes } => format!("{name} ({})", classes.join(", ")),
    }
}

/// Windows to score, and those of the training subjects where the data are the run's own.
fn parts(
    args: &EvaluateArgs,
    paths: &RunPaths,
    checkpoint: &Path,
    data: &Dataset,
) -> Result<(Vec<Window>, Vec<Window>)> {
    if args.split == Part::All {
        return Ok((data.windows.clone(), Vec::new()));
    }
    if args.data.is_some() {
        let problem = "the run's split is of its own data";
        return Err(Error::input("--split", problem, "give --split all with --data"));
    }
    // A fold's model has the split of its fold, whose folder it lies in.
    let folder = checkpoint.parent().and_then(Path::parent).map(RunPaths::new);
    let path = folder.map(|folder| folder.split()).filter(|path| path.exists());
    let path = path.unwrap_or_else(|| paths.split());
    if !path.exists() {
        let problem = "is not there: the checkpoint does not say which subjects it was tested on";
        let remedy = "name a checkpoint inside its run's folder, or use --split all";
        return Err(Error::input(path.display(), problem, remedy));
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    let lists: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| Error::input(path.display(), error, "train again, or use --split all"))?;
    let of = |part: &str| -> Vec<Window> {
        let names: Vec<&str> =
            lists[part].as_array().into_iter().flatten().filter_map(|n| n.as_str()).collect();
        let belongs = |w: &&Window| names.contains(&data.recording(w).subject.as_str());
        data.windows.iter().filter(belongs).copied().collect()
    };
    let part = match args.split {
        Part::Train => "train",
        Part::Validation => "validation",
        _ => "test",
    };
    let windows = of(part);
    if windows.is_empty() {
        let problem = format!("the {part} part of the run's split has no window");
        return Err(Error::input("--split", problem, "choose another part, or all"));
    }
    Ok((windows, of("train")))
}

/// Runs `engine predict`.
///
/// # Errors
/// Whatever is wrong with the run, the checkpoint or the data.
pub fn predict(args: &PredictArgs, console: &Console) -> Result<()> {
    let paths = RunDir::open(&args.run)?;
    if let Some(out) = args.out.as_ref().filter(|out| out.is_dir()) {
        let remedy = format!("give --out a file, as in {}", out.join("predictions.csv").display());
        return Err(Error::input(out.display(), "is a folder", remedy));
    }
    let is_folder = args.data.is_dir();
    let dir = is_folder.then_some(&args.data);
    let settings = settings_of(&paths, dir, &args.device.assignments())?;
    let path = checkpoint(&paths, &args.checkpoint)?;
    let model = Predictor::open(device(&settings, console)?, &path, 0)?;
    let data = match is_folder {
        true => {
            model.cut(&settings, dataset::prepared(&settings, console, signal::stop_flag())?)?
        }
        false => {
            let folder = dataset::cache_root(&settings.data).join("windows");
            model.windows_of(&settings, &args.data, &folder, &|_| {}, signal::stop_flag())?
        }
    };
    let (about, collected) = (&model.about, model.predict(&data)?);
    let csv = match args.windows {
        true => results::windows_csv(&data, about, &collected),
        false => results::subjects_csv(&data, about, &collected),
    };
    let n = data.windows.len();
    match &args.out {
        Some(out) => {
            results::write_text(out, &csv).map_err(|error| match error {
                Error::Input { place, problem, .. } => {
                    let remedy =
                        "give --out a file in a folder that is there and can be written to";
                    Error::input(place, problem, remedy)
                }
                other => other,
            })?;
            let text = format!("{n} windows predicted: {}", out.display());
            console.finish(&text, &json!({ "windows": n, "out": out }));
        }
        None => console.finish(csv.trim_end(), &json!({ "windows": n, "csv": csv })),
    }
    Ok(())
}
