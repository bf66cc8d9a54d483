//! `engine train`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::args::TrainArgs;
use crate::backend::Backend;
use crate::config::{self, Profile, Resolved, Settings};
use crate::console::{self, Console};
use crate::data::split::{Part, Split, Strata, by_fractions, k_fold};
use crate::data::window::Window;
use crate::metrics::Scores;
use crate::report::{Fold, Report};
use crate::train::dataset::{self, Dataset};
use crate::train::device::Found;
use crate::train::fit::{Ended, Fit, windows_of};
use crate::train::planner::plan_batch_up_to;
use crate::train::recipe::step_spec;
use crate::train::results::{self, Collected};
use crate::train::run_dir::{RunDir, RunPaths};
use crate::train::signal;
use crate::train::state::{About, Loaded};
use crate::train::validation::curves;
use crate::{Error, Result};

/// The device of the settings, and what there is to say about it.
///
/// # Errors
/// As [`Found::search`] and [`Found::open`].
pub fn device(settings: &Settings, console: &Console) -> Result<Arc<dyn Backend>> {
    opened(Found::search(&settings.device)?, settings, console)
}

fn opened(found: Found, settings: &Settings, console: &Console) -> Result<Arc<dyn Backend>> {
    let (backend, said) = found.open(settings)?;
    said.iter().for_each(|line| console.say(line));
    Ok(backend)
}

/// Refuses what a run that goes on cannot take: other data, model or seed, since subjects it was trained on
/// could then be those it is tested on (where the data lie may change), and, where nothing is left to
/// train, settings of the training.
fn check_changes(kept: &Settings, given: &Settings, paths: &RunPaths) -> Result<()> {
    let (kept_all, given_all) = (config::table_of(kept)?, config::table_of(given)?);
    let mut trains_otherwise = None;
    for section in ["data", "model", "train", "augment", "run"] {
        let [kept, given] =
            [&kept_all, &given_all].map(|t| t.get(section).and_then(toml::Value::as_table));
        let (Some(kept), Some(given)) = (kept, given) else { continue };
        for (key, was) in kept.iter().filter(|(key, was)| given.get(*key) != Some(*was)) {
            let field = format!("{section}.{key}");
            match (section, key.as_str()) {
                ("data", "dir" | "cache_dir") | ("train", "threads") => {}
                ("data" | "model", _) | ("train", "seed") | ("run", "dir" | "profile") => {
                    let problem = format!(
                        "the run has {was}: it keeps its data, its model, its seed and its folder"
                    );
                    let remedy = "leave the flag out, or begin a run of its own without --resume";
                    return Err(Error::input(format!("--resume with {field}"), problem, remedy));
                }
                ("train" | "augment", _) => trains_otherwise = Some(field),
                _ => {}
            }
        }
    }
    match trains_otherwise {
        Some(field) if has_finished(kept, paths)? => {
            let problem = "the run has finished and is only scored again: this changes nothing";
            let remedy = format!(
                "leave the flag out, or train on in a new run, with --init {}",
                paths.best().display()
            );
            Err(Error::input(format!("--resume with {field}"), problem, remedy))
        }
        _ => Ok(()),
    }
}

/// True where no fold of a run has a step left to train.
fn has_finished(settings: &Settings, paths: &RunPaths) -> Result<bool> {
    let parts = match settings.data.folds {
        0 => vec![paths.clone()],
        folds => (1..=folds).map(|number| paths.fold(number)).collect(),
    };
    for part in parts {
        if !part.last().exists() || !Loaded::open(&part.last())?.progress()?.finished {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A run that goes on: its settings with flags on top, and what its config.toml is to say then.
fn go_on(dir: &Path, args: &TrainArgs) -> Result<(Resolved, RunDir, Option<String>)> {
    let run = RunDir::resume(dir)?;
    let config = run.paths.config();
    let kept = config::resolve(Some(&config), &[], None)?;
    let flags = args.assignments()?;
    if args.wants_trace() && has_finished(&kept.settings, &run.paths)? {
        let problem = "the run has finished: it has no steps left to profile";
        return Err(Error::input("--profile", problem, "leave it out, or profile a new run"));
    }
    if flags.is_empty() {
        return Ok((kept, run, None));
    }
    let given = config::resolve(Some(&config), &flags, None)?;
    check_changes(&kept.settings, &given.settings, &run.paths)?;
    let before = std::fs::read_to_string(&config).map_err(Error::io(&config, "read"))?;
    let text = given.to_toml_over(&before)?;
    Ok((given, run, Some(text)))
}

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with settings, data, files or the training itself.
pub fn run(args: &TrainArgs, console: &Console) -> Result<()> {
    signal::install()?;
    let mut found = None;
    let (resolved, run, changed) = match &args.resume {
        Some(dir) => go_on(dir, args)?,
        None => {
            let flags = args.assignments()?;
            let file = args.settings.config.as_deref();
            // The profile is that of the device, which flags and file may name.
            let device = Found::search(&config::device(file, &flags)?)?;
            let resolved = config::resolve(file, &flags, Some(device.profile()))?;
            found = Some(device);
            check_paths(&resolved.settings)?;
            let s = &resolved.settings;
            let run = RunDir::create(s.run.dir.as_deref(), s.model.name.word(), &s.data.target)?;
            if let Err(error) = results::write_text(&run.paths.config(), &resolved.to_toml()?) {
                run.discard();
                return Err(error);
            }
            (resolved, run, None)
        }
    };
    let (resume, profiled) = (args.resume.is_some(), args.wants_trace());
    let session =
        Session { resolved: &resolved, paths: &run.paths, console, resume, changed, profiled };
    let ended = match console.log_to(&run.paths.log()).and_then(|()| session.run(found)) {
        Ok(ended) => ended,
        Err(error) => {
            // Nothing was trained: the mended command should not find its folder taken.
            if !resume && !session.has_begun() {
                run.discard();
            }
            return Err(error);
        }
    };
    if ended == Ended::Interrupted {
        let dir = run.paths.root().display();
        let text = format!("stopped and saved; go on with: engine train --resume {dir}");
        console.finish(&text, &json!({ "interrupted": true, "run": run.paths.root() }));
    }
    Ok(())
}

/// Wrong paths are reported before a run's folder is made.
fn check_paths(settings: &Settings) -> Result<()> {
    if let Some(dir) = settings.data.dir.as_ref().filter(|dir| !dir.is_dir()) {
        let problem =
            if dir.exists() { "is a file, not a folder" } else { "there is no such folder" };
        let remedy = "give --data a BIDS folder (one with participants.tsv)";
        return Err(Error::input(dir.display(), problem, remedy));
    }
    if let Some(path) = settings.train.init.as_ref() {
        if !path.exists() {
            let remedy = "give --init a checkpoint, such as RUN/checkpoints/best.safetensors";
            return Err(Error::input(path.display(), "there is no such checkpoint", remedy));
        }
        Loaded::open(path)?;
    }
    Ok(())
}

struct Session<'a> {
    resolved: &'a Resolved,
    paths: &'a RunPaths,
    console: &'a Console,
    resume: bool,
    /// What config.toml is to say of a run that goes on with other settings.
    changed: Option<String>,
    profiled: bool,
}

/// What one split gave.
struct Tested {
    scores: Scores,
    window_auroc: Option<f64>,
}

impl Session<'_> {
    fn settings(&self) -> &Settings {
        &self.resolved.settings
    }

    /// True once a step may have been taken.
    fn has_begun(&self) -> bool {
        self.paths.metrics().exists() || self.paths.fold(1).metrics().exists()
    }

    /// The device that was found, or that of the settings; says which it is, and the profile.
    fn backend(&self, found: Option<Found>) -> Result<Arc<dyn Backend>> {
        let settings = self.settings();
        let backend = match found {
            Some(found) => opened(found, settings, self.console)?,
            None => device(settings, self.console)?,
        };
        if let Some(profile) = settings.run.profile.as_deref().and_then(config::profile) {
            let Profile { name, machine, .. } = profile;
            let how = "--profile NAME, another flag or --set SECTION.NAME=VALUE replaces it";
            self.console.say(&format!("profile {name} ({machine}); {how}"));
        }
        Ok(backend)
    }

    fn run(&self, found: Option<Found>) -> Result<Ended> {
        let start = Instant::now();
        let settings = self.settings();
        let backend = self.backend(found)?;
        let data = match dataset::open(settings, self.console, signal::stop_flag()) {
            Err(_) if signal::stop_requested() => return Ok(Ended::Interrupted),
            other => other?,
        };
        let splits = self.splits(&data)?;
        let proofs = self.prove(&splits)?;
        let mut collected = Collected::default();
        let mut training = Vec::new();
        let mut folds = Vec::new();
        let mut shown = None;
        for (i, split) in splits.iter().enumerate() {
            let several = splits.len() > 1;
            let paths = if several { self.paths.fold(i + 1) } else { self.paths.clone() };
            paths.make()?;
            let lists = json!({
                "train": split.train, "validation": split.validation, "test": split.test
            });
            results::write_text(&paths.split(), &lists.to_string())?;
            let label = match several {
                true => format!("fold {} of {}", i + 1, splits.len()),
                false => "training".to_string(),
            };
            let train = windows_of(&data, split, Part::Train);
            let batch = self.batch(&paths, &backend, &data, &train)?;
            let device = (Arc::clone(&backend), batch);
            let mut fit =
                Fit::new(settings, &data, split, device, (paths.clone(), label), self.console)?;
            if i == 0 {
                self.describe(&fit, &backend, batch);
            }
            fit.profile(self.profiled);
            let begun = fit.begin(self.resume)?;
            if let Some(text) = &self.changed {
                results::write_text(&self.paths.config(), text)?;
            }
            if fit.run(begun)? == Ended::Interrupted {
                return Ok(Ended::Interrupted);
            }
            Loaded::open(&paths.best())?.restore(fit.step().params())?;
            let part = self.score(&fit, &data, split, &train, &mut collected)?;
            folds.push((split.train.len(), part));
            training.extend(train);
            if i + 1 < splits.len() {
                drop(fit);
                backend.trim()?;
            } else {
                let test = self.tested(&data, split);
                let channels = results::channel_map(fit.step(), fit.about(), &data, &test)?;
                shown = Some((channels, results::spectral_gain(fit.step(), fit.about())?, fit));
            }
        }
        let Some((channels, spectral, fit)) = shown else {
            return Err(Error::shape("train", "no split"));
        };
        let report = Report {
            facts: self.facts(&fit, &data, start.elapsed().as_secs_f64()),
            channels,
            spectral,
            split_proof: proofs,
            ..Report::default()
        };
        self.report(&data, fit.about(), (&collected, &training), folds, report)?;
        Ok(Ended::Finished)
    }

    /// Shows that no subject is in two parts, in the log and in the run's folder.
    fn prove(&self, splits: &[Split]) -> Result<String> {
        let mut proofs = String::new();
        for (i, split) in splits.iter().enumerate() {
            let proof = split.assert_disjoint()?;
            if splits.len() > 1 {
                proofs.push_str(&format!("fold {}\n", i + 1));
            }
            proofs.push_str(&format!("{proof:#}\n"));
            self.console.say(&format!("{proof}"));
        }
        results::write_text(&self.paths.root().join("split.txt"), &proofs)?;
        Ok(proofs)
    }

    /// Scores and predictions of all folds, added to what was found about the last one.
    fn report(
        &self,
        data: &Dataset,
        about: &About,
        (collected, training): (&Collected, &[Window]),
        folds: Vec<(usize, Tested)>,
        found: Report,
    ) -> Result<()> {
        let settings = self.settings();
        let baseline = results::baseline(data, training, &about.task)?;
        let seed = settings.train.seed;
        let (scores, window_scores) = results::scores(about, collected, &baseline, seed)?;
        self.write_predictions(data, about, collected)?;
        let curve_paths = if folds.len() > 1 { self.paths.fold(1) } else { self.paths.clone() };
        let mut report = Report {
            title: format!("{} from EEG with {}", title(data), settings.model.name),
            headline: String::new(),
            settings: self.resolved.to_toml()?,
            curves: curves(&curve_paths, None),
            subject_names: results::subjects(data),
            subjects: Some(collected.aggregated(about)?),
            windows: Some(collected.of_windows(&about.task)?),
            skipped: data.prepared.skipped.clone(),
            notes: data.prepared.notes.clone(),
            ..found
        };
        report.curves.loss_name = "loss".into();
        self.finish(report, folds, scores, window_scores, about)
    }

    /// The batch asked for, else the one the run has had, else what fits into memory.
    fn batch(
        &self,
        paths: &RunPaths,
        backend: &Arc<dyn Backend>,
        data: &Dataset,
        train: &[Window],
    ) -> Result<usize> {
        let settings = self.settings();
        let labels: Vec<f64> = train.iter().map(|w| data.label(w)).collect();
        if let Some(batch) = settings.train.batch {
            let most = (train.len() / settings.train.accumulation).max(1);
            let origin = self.resolved.origin("train.batch");
            if batch > most && matches!(origin, config::Origin::Flag(_)) {
                let problem = format!(
                    "{batch} x {} windows of a step are more than the {} there are to train on",
                    settings.train.accumulation,
                    train.len()
                );
                let remedy = format!("give {most} or less, or auto");
                return Err(Error::input(origin, problem, remedy));
            }
            return Ok(batch.min(most));
        }
        if self.resume && paths.last().exists() {
            return Ok(Loaded::open(&paths.last())?.progress()?.batch);
        }
        let spec = step_spec(settings, data, &labels, (0, backend.arch().machine))?;
        let arch = backend.arch();
        let most = train.len() / settings.train.accumulation.max(4);
        plan_batch_up_to(arch, arch.memory, &spec, most)
    }

    fn splits(&self, data: &Dataset) -> Result<Vec<Split>> {
        let settings = self.settings();
        let (subjects, labels) = data.labelled_subjects();
        let classes: Vec<u32> = labels.iter().map(|&l| l as u32).collect();
        let strata = match (data.target.by_recording, data.target.n_classes()) {
            (true, _) => Strata::None,
            (false, 0) => Strata::Values { values: &labels, bins: 4 },
            (false, _) => Strata::Classes(&classes),
        };
        let (val, test) = (settings.data.val_fraction, settings.data.test_fraction);
        if settings.data.folds > 0 {
            return k_fold(&subjects, strata, settings.data.folds, val, settings.train.seed);
        }
        let shares = [1.0 - val - test, val, test];
        Ok(vec![by_fractions(&subjects, strata, shares, settings.train.seed)?])
    }

    /// What is to be said where no subject was kept for testing.
    fn untested(&self) -> Option<String> {
        let data = &self.settings().data;
        (data.folds == 0 && data.test_fraction == 0.0).then(|| {
            "data.test_fraction is 0: scored are the validation subjects, which chose the \
             checkpoint, so that scores are better than they would be on other people"
                .to_string()
        })
    }

    /// Windows that are scored: the test subjects', or, without any, the validation subjects'.
    fn tested(&self, data: &Dataset, split: &Split) -> Vec<Window> {
        let part = if split.test.is_empty() { Part::Validation } else { Part::Test };
        windows_of(data, split, part)
    }

    fn score(
        &self,
        fit: &Fit<'_>,
        data: &Dataset,
        split: &Split,
        train: &[Window],
        collected: &mut Collected,
    ) -> Result<Tested> {
        let windows = self.tested(data, split);
        let mut own = Collected::default();
        own.add(fit.step(), fit.about(), data, &windows)?;
        let baseline = results::baseline(data, train, &fit.about().task)?;
        let (scores, _) =
            results::scores(fit.about(), &own, &baseline, self.settings().train.seed)?;
        let window_auroc = results::auroc(&own.of_windows(&fit.about().task)?);
        collected.windows.extend(own.windows);
        collected.subject.extend(own.subject);
        collected.truth.extend(own.truth);
        collected.output.extend(own.output);
        Ok(Tested { scores, window_auroc })
    }

    fn describe(&self, fit: &Fit<'_>, backend: &Arc<dyn Backend>, batch: usize) {
        let memory = backend.memory();
        self.console.say(&format!(
            "{} with {} parameters, batch {batch} x {}, {:.1} MB planned",
            self.settings().model.name,
            fit.step().params().count(),
            self.settings().train.accumulation,
            memory.peak() as f64 / 1e6,
        ));
    }

    fn facts(&self, fit: &Fit<'_>, data: &Dataset, seconds: f64) -> Vec<(String, String)> {
        let s = self.settings();
        let cache = &data.prepared.cache;
        let pair = |name: &str, value: String| (name.to_string(), value);
        let folder = self.paths.root().file_name().unwrap_or(self.paths.root().as_os_str());
        let name = s.run.name.clone().unwrap_or_else(|| folder.to_string_lossy().into_owned());
        vec![
            pair("Run", name),
            pair("Model", s.model.name.to_string()),
            pair("Parameters", fit.step().params().count().to_string()),
            pair("Data", data.prepared.name.clone()),
            pair("Recordings", data.n_recordings().to_string()),
            pair("Windows", format!("{} of {} s", data.windows.len(), s.data.window_s)),
            pair("Channels", cache.channels().len().to_string()),
            pair("Sampling rate", format!("{} Hz", cache.sample_rate())),
            pair("Device", fit.step().params().backend().arch().name.clone()),
            pair("Seed", s.train.seed.to_string()),
            pair("Time", console::time(seconds)),
        ]
    }

    fn write_predictions(&self, data: &Dataset, about: &About, all: &Collected) -> Result<()> {
        let path = |name: &str| self.paths.predictions(name);
        results::write_text(&path("subjects"), &results::subjects_csv(data, about, all))?;
        results::write_text(&path("windows"), &results::windows_csv(data, about, all))
    }

    fn finish(
        &self,
        mut report: Report,
        folds: Vec<(usize, Tested)>,
        scores: Scores,
        window_scores: Scores,
        about: &About,
    ) -> Result<()> {
        self.console.say(&scores.table());
        self.console.say(&window_scores.table());
        let aurocs: Vec<f64> = folds.iter().filter_map(|(_, part)| part.window_auroc).collect();
        if folds.len() > 1 {
            let last = folds.len();
            let text = "the curves are those of fold 1, what the model uses is that of fold";
            report.notes.push(format!("{text} {last}; scores and predictions are of all folds"));
            if aurocs.len() == folds.len() {
                let mean = aurocs.iter().sum::<f64>() / aurocs.len() as f64;
                let all: Vec<String> = aurocs.iter().map(|a| format!("{a:.3}")).collect();
                let text = format!("window AUROC by fold {}: mean {mean:.3}", all.join(", "));
                self.console.say(&text);
                report.notes.push(text);
            }
            report.folds = folds
                .into_iter()
                .enumerate()
                .map(|(i, (training_subjects, part))| Fold {
                    name: (i + 1).to_string(),
                    training_subjects,
                    scores: part.scores,
                })
                .collect();
        }
        let mut headline = scores.headline();
        let untested = self.untested();
        if let Some(text) = &untested {
            report.notes.push(text.clone());
            headline = format!("{headline}\n{text}");
        }
        report.curves.score_baseline = None;
        report.scores = Some(scores.clone());
        report.window_scores = Some(window_scores.clone());
        report.write(self.paths.report())?;
        let about_json = json!({
            "run": self.paths.root(),
            "scored": if untested.is_some() { "validation" } else { "test" },
            "scores": scores, "window_scores": window_scores,
            "task": about.task
        });
        let text = serde_json::to_string_pretty(&about_json)
            .map_err(|error| Error::shape("results", error))?;
        results::write_text(&self.paths.root().join("results.json"), &text)?;
        let path = self.paths.report();
        self.console.finish(&format!("{headline}\nreport {}", path.display()), &about_json);
        Ok(())
    }
}

fn title(data: &Dataset) -> String {
    let name = data.target.name();
    let mut letters = name.chars();
    letters.next().map_or(String::new(), |c| c.to_uppercase().chain(letters).collect())
}
