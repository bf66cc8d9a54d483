//! The program `engine`.

use std::process::ExitCode;

use clap::Parser;
use engine::cli;

fn main() -> ExitCode {
    cli::run(cli::args::Cli::parse())
}
