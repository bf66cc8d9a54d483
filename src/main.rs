//! The program `engine`.

use clap::Parser;
use engine::cli::args::{Cli, Command};
use engine::cli::console::Console;

fn main() {
    let cli = Cli::parse();
    if let Command::Train(args) = cli.command {
        let console = Console::new(args.output.quiet, args.output.json);
        match engine::cli::train::run(&args, &console) {
            Ok(_) => {}
            Err(error) => {
                console.error(&error);
                std::process::exit(i32::from(error.exit_code()));
            }
        }
    }
}
