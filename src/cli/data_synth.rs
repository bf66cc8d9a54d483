//! `engine data synth`: generates a BIDS dataset.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::json;

use super::args::SynthArgs;
use super::text;
use crate::console::{Console, time};
use crate::data::synth::{self, Settings};
use crate::train::signal;
use crate::{Error, Result};

/// Generates the dataset, or what is missing of it after an interruption.
///
/// # Errors
/// As [`synth::write`], in terms of the flags.
pub fn run(args: &SynthArgs, console: &Console) -> Result<()> {
    signal::install()?;
    let settings = settings(args);
    let start = Instant::now();
    let progress = Mutex::new(console.progress("subjects", 0, settings.subjects as u64));
    let show = |done: usize, _: usize| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.update(done as u64, 0, None);
    };
    let written = synth::write(&settings, &args.dir, &show, signal::stop_flag());
    let progress = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    let summary = match written {
        Ok(summary) => summary,
        Err(error) => {
            drop(progress);
            return Err(in_flags(error));
        }
    };
    progress.finish();
    let (whole, all) = (summary.written + summary.kept, settings.subjects);
    let next = if summary.is_complete {
        format!("engine train --data {} --target age", text::shell_word(&args.dir))
    } else {
        command(args)
    };
    let kept = match summary.kept {
        0 => String::new(),
        kept => format!(" ({kept} of them from before)"),
    };
    let (size, took) = (text::bytes(summary.bytes), time(start.elapsed().as_secs_f64()));
    let line = if summary.is_complete {
        let subjects = text::count(all, "subject");
        format!("{}: {subjects}{kept}, {size} written in {took}\nnext: {next}", args.dir.display())
    } else {
        format!(
            "{}: stopped with {whole} of {} whole{kept}, {size} written in {took}\ngo on: {next}",
            args.dir.display(),
            text::count(all, "subject")
        )
    };
    let fields = json!({
        "dir": args.dir,
        "complete": summary.is_complete,
        "subjects": all,
        "written": summary.written,
        "kept": summary.kept,
        "bytes": summary.bytes,
        "seconds": start.elapsed().as_secs_f64(),
        "next": next,
    });
    console.finish(&line, &fields);
    Ok(())
}

fn settings(args: &SynthArgs) -> Settings {
    let usual = Settings::default();
    let ages = args.ages.as_deref().and_then(|ages| ages.try_into().ok());
    Settings {
        subjects: args.subjects.unwrap_or(usual.subjects),
        seconds_per_condition: args.seconds.unwrap_or(usual.seconds_per_condition),
        sample_rate: args.rate.unwrap_or(usual.sample_rate),
        n_channels: args.channels.unwrap_or(usual.n_channels),
        seed: args.seed.unwrap_or(usual.seed),
        age_range: ages.unwrap_or(usual.age_range),
    }
}

/// The command line that these arguments came from.
fn command(args: &SynthArgs) -> String {
    let mut line = format!("engine data synth {}", text::shell_word(&args.dir));
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            line.push_str(&format!(" --{name} {value}"));
        }
    };
    flag("subjects", args.subjects.map(|n| n.to_string()));
    flag("seconds", args.seconds.map(|n| n.to_string()));
    flag("rate", args.rate.map(|n| n.to_string()));
    flag("channels", args.channels.map(|n| n.to_string()));
    let ages = args.ages.as_ref();
    flag("ages", ages.map(|a| a.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")));
    flag("seed", args.seed.map(|n| n.to_string()));
    line
}

/// The generator names its fields; here they are flags.
fn in_flags(error: Error) -> Error {
    let Error::Input { place, problem, remedy } = error else { return error };
    let flag = match place.as_str() {
        "synth.subjects" => "--subjects",
        "synth.seconds_per_condition" => "--seconds",
        "synth.sample_rate" => "--rate",
        "synth.n_channels" => "--channels",
        "synth.age_range" => "--ages",
        other => other,
    };
    Error::input(flag, problem, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command, DataCommand};
    use clap::Parser;

    fn parse(line: &str) -> SynthArgs {
        match Cli::try_parse_from(line.split_whitespace()).expect("valid").command {
            Command::Data(DataCommand::Synth(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_to_go_on_is_the_command_given() {
        let line = "engine data synth some/dir --subjects 7 --seconds 11 --rate 130 --channels 19 \
                    --ages 6.5 17 --seed 88";
        let args = parse(line);
        let expected = Settings {
            subjects: 7,
            seconds_per_condition: 11,
            sample_rate: 130,
            n_channels: 19,
            seed: 88,
            age_range: [6.5, 17.0],
        };
        assert_eq!(settings(&args), expected);
        assert_eq!(command(&args), line);
        assert_eq!(settings(&parse("engine data synth d")), Settings::default());
        assert_eq!(command(&parse("engine data synth d")), "engine data synth d");
    }
}
