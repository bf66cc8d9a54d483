//! The program's command line.
//!
//! # Layout
//! [`args`] the commands and their flags, which become the top layer of settings -> one file per
//! command: [`data_info`] (with [`columns`] and [`recording_info`]), [`data_synth`], [`devices`] ->
//! [`console`] what the user sees of it, [`text`] numbers and tables in words.

pub mod args;
pub mod columns;
pub mod console;
pub mod data_info;
pub mod data_synth;
pub mod devices;
pub mod recording_info;
pub mod text;

use std::process::ExitCode;

use crate::train::signal;
use crate::{Error, Result};
use args::{Cli, Command, DataCommand, OutputArgs};
use console::Console;

/// Runs one command; its errors go to the console. Exits with 0, [`Error::exit_code`], or
/// [`signal::EXIT_INTERRUPTED`] after an orderly stop that the user asked for.
pub fn run(cli: Cli) -> ExitCode {
    let output = output(&cli.command);
    let console = Console::new(output.quiet, output.json);
    match dispatch(&cli.command, &console) {
        Ok(()) if signal::stop_requested() => ExitCode::from(signal::EXIT_INTERRUPTED),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(command: &Command, console: &Console) -> Result<()> {
    match command {
        Command::Train(_) => not_built("engine train"),
        Command::Evaluate(_) => not_built("engine evaluate"),
        Command::Predict(_) => not_built("engine predict"),
        Command::Data(DataCommand::Info { path, .. }) => data_info::run(path, console),
        Command::Data(DataCommand::Prepare(_)) => not_built("engine data prepare"),
        Command::Data(DataCommand::Synth(args)) => data_synth::run(args, console),
        Command::Devices(args) => devices::run(args, console),
    }
}

fn not_built(command: &str) -> Result<()> {
    let remedy = "`engine data` and `engine devices` are here";
    Err(Error::input(command, "not built into this program", remedy))
}

fn output(command: &Command) -> &OutputArgs {
    match command {
        Command::Train(args) => &args.output,
        Command::Evaluate(args) => &args.output,
        Command::Predict(args) => &args.output,
        Command::Data(DataCommand::Info { output, .. }) => output,
        Command::Data(DataCommand::Prepare(args)) => &args.output,
        Command::Data(DataCommand::Synth(args)) => &args.output,
        Command::Devices(args) => &args.output,
    }
}
