//! Commands and flags of `engine`, and their conversion into the top layer of settings.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use toml::Value;

use crate::config::{Amp, Assignment, DeviceName, Gemm, ModelName, PROFILES};
use crate::error::{Error, Result};

/// A native training engine for EEG models.
#[derive(Debug, Parser)]
#[command(
    name = "engine",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  engine train
  engine train --data DIR --target sex
  engine evaluate runs/20250131-120000-eegformer-sex
  engine devices

`engine COMMAND --help` tells more of each command."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model; with no argument on generated EEG, ending with a report
    Train(Box<TrainArgs>),
    /// Score a trained model on subjects of its test or validation split, or on other data
    Evaluate(EvaluateArgs),
    /// Predict the target of every subject of a dataset or recording
    Predict(PredictArgs),
    /// Look at, prepare or generate data
    #[command(subcommand)]
    Data(DataCommand),
    /// Say which devices were found, what is missing and how to mend it
    Devices(DevicesArgs),
}

/// Flags of the output.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// Print nothing but errors and the final line
    #[arg(long, short)]
    pub quiet: bool,
    /// Print JSON lines on stdout, one object per event
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// Flags of the device.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_parser = PossibleValuesParser::new(DeviceName::WORDS))]
    pub device: Option<String>,
    /// Memory that may be taken on the device, as in 6GB, or auto
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Whose matrix product: the vendor library's or the engine's own
    #[arg(long, value_parser = PossibleValuesParser::new(Gemm::WORDS))]
    pub gemm: Option<String>,
    /// Where one kind of operation runs, as in spectral=cpu; may be repeated
    #[arg(long, value_name = "OP=DEVICE", value_delimiter = ',')]
    pub route: Vec<String>,
    /// Threads that compute on the CPU, or auto for all cores
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub threads: Option<String>,
}

/// Where settings come from besides flags, and `--set` for those that have no flag.
#[derive(Debug, Clone, Args)]
pub struct SettingsArgs {
    /// File of settings (TOML); flags go before it, it goes before the profile
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Starting point for a machine; without it, the one that fits the device. Without a name (or
    /// with `trace`), `engine train` says where time and memory of some steps go, by op and layer,
    /// and writes trace.json for ui.perfetto.dev; may be given both ways
    #[arg(
        long,
        value_name = "NAME",
        num_args = 0..=1,
        default_missing_value = TRACE,
        value_parser = PossibleValuesParser::new(profile_words())
    )]
    pub profile: Vec<String>,
    /// Any field of the settings, as in train.weight_decay=0.01; may be repeated
    #[arg(long = "set", value_name = "SECTION.FIELD=VALUE")]
    pub set: Vec<String>,
}

/// The word of `--profile` that stands for a profile of the run itself.
const TRACE: &str = "trace";

fn profile_words() -> Vec<&'static str> {
    PROFILES.iter().map(|profile| profile.name).chain(["off", TRACE]).collect()
}

/// Flags of the data.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// BIDS folder of the recordings; without it, generated EEG
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Column of participants.tsv to learn, numeric or of classes: age, sex, p_factor
    #[arg(long, value_name = "COLUMN")]
    pub target: Option<String>,
    /// BIDS task to read, as in RestingState; may be repeated; without it, all
    #[arg(long = "task", value_name = "TASK", value_delimiter = ',')]
    pub tasks: Vec<String>,
}

/// `engine train`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  engine train
      a small model on generated EEG, with a report at the end
  engine train --data DIR --target sex
      classify the sex of the subjects of a BIDS folder
  engine train --data DIR --target age --model shallow --folds 5
      the convolutional model to beat, cross-validated over subjects
  engine train --config my.toml --lr 3e-4 --set train.ema=0.999
      settings of a file, two of them replaced
  engine train --data DIR --target sex --shuffle-labels
      the control: every score must fall to chance
  engine train --resume runs/20250131-120000-eegformer-sex
      go on with a run that was stopped
  engine train --profile rtx3060 --profile
      with the sizes for an RTX 3060, and a profile of some steps

A flag goes before the file, the file before the profile, the profile before the default; the run's
config.toml says of every value where it came from.")]
pub struct TrainArgs {
    /// Data
    #[command(flatten)]
    pub source: SourceArgs,
    /// Model to train
    #[arg(long, value_parser = PossibleValuesParser::new(ModelName::WORDS))]
    pub model: Option<String>,
    /// Windows per forward pass, or auto for what fits into memory
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub batch: Option<String>,
    /// Passes over the training windows
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub epochs: Option<i64>,
    /// Stop after this many optimizer steps
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_steps: Option<i64>,
    /// Peak learning rate
    #[arg(long, allow_negative_numbers = true)]
    pub lr: Option<f64>,
    /// Seed of everything random; the same seed gives the same run, bit for bit
    #[arg(long, allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Cross-validate over this many folds of subjects
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub folds: Option<i64>,
    /// Shuffle the labels among subjects, as a control
    #[arg(long)]
    pub shuffle_labels: bool,
    /// Mixed precision
    #[arg(long, value_parser = PossibleValuesParser::new(Amp::WORDS))]
    pub amp: Option<String>,
    /// Checkpoint whose backbone is the starting point (fine-tuning)
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// Folder of the new run; without it, one under runs/
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Go on with an earlier run, with its settings
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "run", "model", "init"])]
    pub resume: Option<PathBuf>,
    /// Settings
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Device
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Output
    #[command(flatten)]
    pub output: OutputArgs,
}

/// The part of the subjects that is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// Those that the model was trained on
    Train,
    /// Those that chose the checkpoint
    Validation,
    /// Those that were kept for the end
    Test,
    /// All of the dataset
    All,
}

/// `engine evaluate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  engine evaluate runs/20250131-120000-eegformer-sex
      the best checkpoint on the test subjects
  engine evaluate RUN --split validation --checkpoint last
  engine evaluate RUN --data OTHER --split all
      another dataset, none of which the model has seen")]
pub struct EvaluateArgs {
    /// Folder of the run
    pub run: PathBuf,
    /// Subjects to score
    #[arg(long, value_enum, default_value = "test")]
    pub split: Split,
    /// best, last, or a file
    #[arg(long, default_value = "best")]
    pub checkpoint: PathBuf,
    /// Another BIDS folder than the run's
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Device
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Output
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `engine predict`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  engine predict runs/20250131-120000-eegformer-age --data DIR
      one line per subject on stdout
  engine predict RUN --data recording.bdf --windows --out windows.csv
      one line per window of a single recording")]
pub struct PredictArgs {
    /// Folder of the run
    pub run: PathBuf,
    /// BIDS folder, or one recording
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// CSV file to write; without it, stdout
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// One line per window instead of per subject
    #[arg(long)]
    pub windows: bool,
    /// best, last, or a file
    #[arg(long, default_value = "best")]
    pub checkpoint: PathBuf,
    /// Device
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Output
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `engine data`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Say what a dataset or recording holds, and what of it is skipped and why
    #[command(after_help = "\
Examples:
  engine data info DIR
  engine data info DIR/sub-01/eeg/sub-01_task-RestingState_eeg.bdf")]
    Info {
        /// BIDS folder, or one recording
        path: PathBuf,
        /// Output
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Read, filter and resample a dataset into the cache that training reads
    Prepare(PrepareArgs),
    /// Generate a BIDS dataset of EEG with known effects of age and sex
    Synth(SynthArgs),
}

/// `engine data prepare`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  engine data prepare --data DIR
  engine data prepare --data DIR --task RestingState --set data.window_s=4.0")]
pub struct PrepareArgs {
    /// Data
    #[command(flatten)]
    pub source: SourceArgs,
    /// Settings
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Threads that read, or auto for all cores
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub threads: Option<String>,
    /// Output
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `engine data synth`; a flag that is absent leaves the generator's default.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  engine data synth DIR
  engine data synth DIR --subjects 200 --seconds 60 --rate 500 --seed 7")]
pub struct SynthArgs {
    /// Folder to write; absent or empty
    pub dir: PathBuf,
    /// Number of subjects
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub subjects: Option<usize>,
    /// Seconds with open eyes, and as many with closed eyes, per subject
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub seconds: Option<usize>,
    /// Sampling rate, Hz
    #[arg(long, value_name = "HZ", allow_negative_numbers = true)]
    pub rate: Option<usize>,
    /// Channels: 129 (geodesic net) or 19 (10-20 system)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub channels: Option<usize>,
    /// Youngest and oldest, years
    #[arg(long, num_args = 2, value_names = ["YOUNGEST", "OLDEST"])]
    pub ages: Option<Vec<f64>>,
    /// Seed; the same gives the same bytes
    #[arg(long)]
    pub seed: Option<u64>,
    /// Output
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `engine devices`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  engine devices
  engine devices --route spectral=gpu
      the table of preferences as it would be with this flag
  engine devices --report
      one file to send to us, with versions, facts, tests of the kernels; no private data")]
pub struct DevicesArgs {
    /// Write all that a maintainer needs into FILE
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "engine-devices.txt"
    )]
    pub report: Option<PathBuf>,
    /// Device
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Output
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Collects what flags say about fields.
#[derive(Default)]
struct Collected(Vec<Assignment>);

impl Collected {
    fn put<T: Into<Value>>(&mut self, flag: &str, field: &str, value: Option<T>) {
        self.0.extend(value.map(|value| Assignment::new(flag, field, value)));
    }

    /// A word, or a number where it reads as one.
    fn put_number(&mut self, flag: &str, field: &str, value: Option<&String>) {
        let value = value
            .map(|text| text.parse().map_or_else(|_| Value::String(text.clone()), Value::Integer));
        self.put(flag, field, value);
    }

    fn put_list(&mut self, flag: &str, field: &str, values: &[String]) {
        self.put(flag, field, (!values.is_empty()).then(|| values.to_vec()));
    }

    fn put_switch(&mut self, flag: &str, field: &str, on: bool) {
        self.put(flag, field, on.then_some(true));
    }

    fn put_path(&mut self, flag: &str, field: &str, path: Option<&PathBuf>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let Some(text) = path.to_str() else {
            let problem = format!("{} is not valid UTF-8", path.display());
            return Err(Error::input(flag, problem, "rename the folder or file"));
        };
        self.put(flag, field, Some(text));
        Ok(())
    }
}

impl SourceArgs {
    fn collect(&self, to: &mut Collected) -> Result<()> {
        to.put_path("--data", "data.dir", self.data.as_ref())?;
        to.put("--target", "data.target", self.target.clone());
        to.put_list("--task", "data.tasks", &self.tasks);
        Ok(())
    }
}

impl DeviceArgs {
    fn collect(&self, to: &mut Collected) {
        to.put("--device", "device.device", self.device.clone());
        to.put_number("--memory", "device.memory", self.memory.as_ref());
        to.put("--gemm", "device.gemm", self.gemm.clone());
        to.put_list("--route", "device.route", &self.route);
        to.put_number("--threads", "train.threads", self.threads.as_ref());
    }

    /// What these flags say about the settings.
    pub fn assignments(&self) -> Vec<Assignment> {
        let mut all = Collected::default();
        self.collect(&mut all);
        all.0
    }
}

impl SettingsArgs {
    /// True where time and memory of some steps are wanted.
    fn wants_trace(&self) -> bool {
        self.profile.iter().any(|word| word == TRACE)
    }

    /// The starting point that `--profile` names.
    fn starting_point(&self) -> Result<Option<&String>> {
        let mut named = self.profile.iter().filter(|word| *word != TRACE);
        let first = named.next();
        if let (Some(first), Some(second)) = (first, named.next()) {
            let problem = format!("names two starting points, {first} and {second}");
            return Err(Error::input("--profile", problem, "name one"));
        }
        Ok(first)
    }

    /// `--set` comes last: it goes before the other flags.
    fn collect(&self, to: &mut Collected) -> Result<()> {
        to.put("--profile", "run.profile", self.starting_point()?.cloned());
        for text in &self.set {
            to.0.push(Assignment::parse(text)?);
        }
        Ok(())
    }
}

impl OutputArgs {
    fn collect(&self, to: &mut Collected) {
        to.put_switch("--quiet", "run.quiet", self.quiet);
        to.put_switch("--json", "run.json", self.json);
    }
}

impl TrainArgs {
    /// True where time and memory of some steps are wanted, by op and layer.
    pub fn wants_trace(&self) -> bool {
        self.settings.wants_trace()
    }

    /// What the flags say about the settings: the top layer of
    /// [`resolve`](crate::config::resolve).
    ///
    /// # Errors
    /// [`Error::Input`] naming the flag for a malformed `--set` or a path that is not UTF-8.
    pub fn assignments(&self) -> Result<Vec<Assignment>> {
        let mut all = Collected::default();
        if let (Some(name), Some(_)) = (self.settings.starting_point()?, &self.resume) {
            let problem = format!("{name} cannot be had with --resume: a run keeps its settings");
            let remedy = "leave one of the two out; --profile alone profiles the steps";
            return Err(Error::input("--profile", problem, remedy));
        }
        self.source.collect(&mut all)?;
        all.put("--model", "model.name", self.model.clone());
        all.put_number("--batch", "train.batch", self.batch.as_ref());
        all.put("--epochs", "train.epochs", self.epochs);
        all.put("--max-steps", "train.max_steps", self.max_steps);
        all.put("--lr", "train.lr", self.lr);
        all.put("--seed", "train.seed", self.seed);
        all.put("--folds", "data.folds", self.folds);
        all.put_switch("--shuffle-labels", "data.shuffle_labels", self.shuffle_labels);
        all.put("--amp", "train.amp", self.amp.clone());
        all.put_path("--init", "train.init", self.init.as_ref())?;
        all.put_path("--run", "run.dir", self.run.as_ref())?;
        self.device.collect(&mut all);
        self.output.collect(&mut all);
        self.settings.collect(&mut all)?;
        Ok(all.0)
    }
}

impl PrepareArgs {
    /// What the flags say about the settings.
    ///
    /// # Errors
    /// As [`TrainArgs::assignments`].
    pub fn assignments(&self) -> Result<Vec<Assignment>> {
        if self.settings.wants_trace() {
            let problem = "names no starting point, and there are no steps to profile";
            let remedy = format!("name one of {}", profile_words().join(", "));
            return Err(Error::input("--profile", problem, remedy.replace(", trace", "")));
        }
        let mut all = Collected::default();
        self.source.collect(&mut all)?;
        all.put_number("--threads", "train.threads", self.threads.as_ref());
        self.output.collect(&mut all);
        self.settings.collect(&mut all)?;
        Ok(all.0)
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
