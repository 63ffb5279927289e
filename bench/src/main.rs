//! `croupier-bench`: arguments in, exit code out.
//!
//! Owns: the command line and the last word to the terminal. Promises: 0 done, 1 it could not be
//! done, 2 called wrongly. Never does: measure.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use croupier_bench::report;

/// Measures croupier beside SO_REUSEPORT, a shared socket, proxies and Node's cluster.
#[derive(Debug, Parser)]
#[command(name = "croupier-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Report(ReportArgs),
}

/// Makes report.html, CSV and HDR logs of results.json, beside it.
#[derive(Debug, Args)]
struct ReportArgs {
    /// The folder that `run --out` wrote.
    folder: PathBuf,

    /// Prints all tables as Markdown, and writes no file.
    #[arg(long, conflicts_with = "publish")]
    markdown: bool,

    /// Writes the tables into DIR/README.md and the chart to DIR/chart.svg, and the conclusion into the
    /// --readme, each between its markers.
    #[arg(long, value_name = "DIR")]
    publish: Option<PathBuf>,

    /// The document that gets the conclusion.
    #[arg(long, value_name = "FILE", default_value = "README.md", requires = "publish")]
    readme: PathBuf,
}

#[expect(clippy::print_stderr, reason = "the only place that speaks to the terminal on failure")]
fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Report(arguments) => report(&arguments),
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
fn report(arguments: &ReportArgs) -> Result<(), Box<dyn std::error::Error>> {
    let folder = &arguments.folder;
    if arguments.markdown {
        print!("{}", report::markdown(folder)?);
        return Ok(());
    }
    if let Some(bench) = &arguments.publish {
        return Ok(report::publish(folder, bench, &arguments.readme)?);
    }
    let written = report::write(folder)?;
    println!("{}\n\n{}", written.conclusion, written.page.display());
    Ok(())
}
