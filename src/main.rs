//! The program `engine`.

use clap::Parser;
use engine::cli::args::{Cli, Command};
use engine::cli::console::Console;
use engine::train::signal::EXIT_INTERRUPTED;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (console, ended) = match Cli::parse().command {
        Command::Train(args) => {
            let console = Console::new(args.output.quiet, args.output.json);
            let ended = engine::cli::train::run(&args, &console);
            (console, ended)
        }
        Command::Evaluate(args) => {
            let console = Console::new(args.output.quiet, args.output.json);
            let ended = engine::cli::evaluate::run(&args, &console).map(|()| true);
            (console, ended)
        }
        Command::Predict(args) => {
            let console = Console::new(args.output.quiet, args.output.json);
            let ended = engine::cli::evaluate::predict(&args, &console).map(|()| true);
            (console, ended)
        }
        _ => return ExitCode::FAILURE,
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => {
            console.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
