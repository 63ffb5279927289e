//! The program: parse, validate, run, exit code.
//!
//! The only file that prints; everything else says what is to be printed, or logs.

use std::io::Write;
use std::process::ExitCode;

use croupier::config::Loaded;
use croupier::{cli, primary};

fn main() -> ExitCode {
    let exit = cli::execute(std::env::args_os(), run, say);
    // A reader that left (`croupier ls | head -1`) is no reason to fail, and there is nobody to tell.
    drop(std::io::stdout().write_all(exit.stdout.as_bytes()));
    drop(std::io::stdout().flush());
    drop(std::io::stderr().write_all(exit.stderr.as_bytes()));
    ExitCode::from(exit.code)
}

/// A line while a command is under way.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    drop(writeln!(stdout, "{line}"));
    drop(stdout.flush());
}

fn run(loaded: Loaded) -> Result<u8, (u8, String)> {
    primary::run(loaded).map_err(|error| (error.exit_code(), error.to_string()))
}
