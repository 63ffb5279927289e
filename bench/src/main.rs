//! `croupier-bench`: arguments in, exit code out.
//!
//! Owns: the command line and the last word to the terminal. Promises: 0 done, 1 it could not be
//! done, 2 called wrongly. Never does: measure.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use croupier_bench::engine::{FloorArgs, Programs, run_floor};
use croupier_bench::run::{Preset, Request};

mod load_command;
mod program_command;
mod report_command;

/// Measures croupier beside SO_REUSEPORT, a shared socket, proxies and Node's cluster.
#[derive(Debug, Parser)]
#[command(name = "croupier-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compares engines under workloads, round after round.
    Run(RunArgs),
    /// The load generator by itself.
    Load(load_command::LoadArgs),
    /// Compares croupier's policies for a program of your own.
    Program(program_command::ProgramArgs),
    /// Makes report.html, CSV and HDR logs of results.json.
    Report(report_command::ReportArgs),
    /// The loop of the engine `floor`.
    #[command(hide = true)]
    Floor(FloorArgs),
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is one flag of the command line")]
struct RunArgs {
    /// Only these engines, under every workload.
    #[arg(long, value_delimiter = ',', value_name = "ID,…")]
    engines: Vec<String>,
    /// Only these workloads; the name of a family stands for all of it.
    #[arg(long, value_delimiter = ',', value_name = "ID,…")]
    workloads: Vec<String>,
    /// About two minutes: 5 engines, 3 workloads, 2 rounds of 2 s.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// All engines under all workloads: 5 rounds of 2 s, about 55 minutes.
    #[arg(long)]
    full: bool,
    /// Rounds of each engine under each workload.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Length of each load.
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<f64>,
    /// Folder for results.json and what is made of it.
    #[arg(long, value_name = "DIR", default_value = "croupier-bench-results")]
    out: PathBuf,
    /// The croupier to measure, instead of the one beside this program.
    #[arg(long, value_name = "PATH")]
    croupier: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let valid = (0.2..=3600.0).contains(&seconds);
    if valid { Ok(seconds) } else { Err("must be 0.2 to 3600".to_owned()) }
}

type Failure = Box<dyn std::error::Error>;

#[expect(clippy::print_stderr, reason = "the only place that speaks to the terminal on failure")]
fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(arguments) => run(arguments),
        Command::Load(arguments) => load_command::run(&arguments),
        Command::Program(arguments) => program_command::run(arguments),
        Command::Report(arguments) => report_command::run(&arguments),
        Command::Floor(arguments) => run_floor(&arguments),
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
fn run(arguments: RunArgs) -> Result<(), Failure> {
    let preset = match (arguments.quick, arguments.full) {
        (true, _) => Preset::Quick,
        (_, true) => Preset::Full,
        (false, false) => Preset::Bench,
    };
    let request = Request {
        preset,
        engines: arguments.engines,
        workloads: arguments.workloads,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        out: arguments.out,
        programs: Programs::beside(arguments.croupier)?,
        command: std::env::args().collect(),
    };
    let results = request.run()?;
    let (measured, absent) = (results.samples.len(), results.absent.len());
    println!("{}: {measured} samples, {absent} not run", request.out.display());
    if measured == 0 {
        return Err("nothing could be measured; results.json says why".into());
    }
    let written = croupier_bench::report::write(&request.out, None)?;
    println!("\n{}\n\n{}", written.conclusion, written.page.display());
    Ok(())
}
