//! The program's command line.
//!
//! # Layout
//! [`args`] the commands and their flags, which become the top layer of settings -> one file per
//! command: [`train`], [`evaluate`] (and predict), [`data_info`] (with [`columns`] and
//! [`recording_info`]), [`data_prepare`], [`data_synth`], [`devices`] (with `amd` and `device_report`) ->
//! [`text`] numbers and tables in words.

mod amd;
pub mod args;
pub mod columns;
pub mod data_info;
pub mod data_prepare;
pub mod data_synth;
mod device_report;
pub mod devices;
pub mod evaluate;
pub mod recording_info;
pub mod text;
pub mod train;

use std::process::ExitCode;

use crate::Result;
use crate::console::Console;
use crate::train::signal;
use args::{Cli, Command, DataCommand, OutputArgs};

/// Runs one command; its errors go to the console. Exits with 0, [`crate::Error::exit_code`], or
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
        Command::Train(args) => train::run(args, console),
        Command::Evaluate(args) => evaluate::run(args, console),
        Command::Predict(args) => evaluate::predict(args, console),
        Command::Data(DataCommand::Info { path, .. }) => data_info::run(path, console),
        Command::Data(DataCommand::Prepare(args)) => data_prepare::run(args, console),
        Command::Data(DataCommand::Synth(args)) => data_synth::run(args, console),
        Command::Devices(args) => devices::run(args, console),
    }
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
