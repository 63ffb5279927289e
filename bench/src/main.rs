//! `croupier-bench`: arguments in, exit code out.
//!
//! Owns: the command line and the last word to the terminal. Promises: 0 done, 1 it could not be
//! done, 2 called wrongly. Never does: measure.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures croupier beside SO_REUSEPORT, a shared socket, proxies and Node's cluster.
#[derive(Debug, Parser)]
#[command(name = "croupier-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says what results.json of a folder holds.
    Report {
        /// The folder that `run --out` wrote.
        folder: PathBuf,
    },
}

#[expect(clippy::print_stderr, reason = "the only place that speaks to the terminal on failure")]
fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Report { folder } => report(&folder),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("croupier-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn report(folder: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let results = croupier_bench::data::Results::read(folder)?;
    for sample in &results.samples {
        println!(
            "{} {} round {}: {:.0} connections/s, errors: {}",
            sample.workload,
            sample.engine,
            sample.round + 1,
            sample.connection_rate(),
            sample.errors
        );
    }
    Ok(())
}
