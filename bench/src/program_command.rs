//! `croupier-bench program`: what `croupier bench` runs.
//!
//! Owns: its flags, and the words to the terminal. Never does: measure or advise.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use croupier_bench::engine::Programs;
use croupier_bench::environment::own_cpus;
use croupier_bench::program::{Policy, Request};
use croupier_bench::report;

/// Compares croupier's policies for a program of yours, and recommends one.
///
/// Starts the program under each policy in turn, asks it as fast as it can take and at a steady
/// rate, and prints a table, a recommendation with its reasons, and what makes it doubtful.
#[derive(Debug, Args)]
#[command(after_help = "Example: croupier bench --url /slow-page -- python3 -m http.server 8000")]
pub(crate) struct ProgramArgs {
    /// What clients ask for. Choose a page that costs what yours usually cost.
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = path)]
    url: String,
    /// Workers under croupier; by itself one for each CPU, two at least.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    workers: Option<u32>,
    /// What is compared.
    #[arg(
        short,
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "least,rr,ip,shared,reuseport,single"
    )]
    policies: Vec<Policy>,
    /// Rounds, in each of which every policy runs once.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of each load.
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = super::seconds)]
    seconds: f64,
    /// Connections per second of the steady load, instead of 0.6 of the peak.
    #[arg(long, value_name = "R", value_parser = super::load_command::rate)]
    rate: Option<f64>,
    /// A flag for croupier run (repeatable), as in --run-flag=--adapter=shim.
    #[arg(long = "run-flag", value_name = "FLAG", allow_hyphen_values = true)]
    run_flags: Vec<OsString>,
    /// Keeps results.json, report.html and the rest in this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The croupier to use, instead of the one beside this program.
    #[arg(long, value_name = "PATH")]
    croupier: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn path(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.starts_with('/') && plain {
        Ok(text.to_owned())
    } else {
        Err("must be a path that begins with /; host and port are the program's own".to_owned())
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the answer of the command")]
pub(crate) fn run(arguments: ProgramArgs) -> Result<(), super::Failure> {
    let cpus = u32::try_from(own_cpus().len()).unwrap_or(2);
    let mut policies = arguments.policies;
    let mut seen = Vec::new();
    policies.retain(|policy| {
        !seen.contains(policy) && {
            seen.push(*policy);
            true
        }
    });
    let request = Request {
        command: arguments.command,
        path: arguments.url,
        workers: arguments.workers.unwrap_or_else(|| cpus.max(2)),
        policies,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        rate: arguments.rate,
        run_flags: arguments.run_flags,
        programs: Programs::beside(arguments.croupier)?,
        words: std::env::args().collect(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    croupier_bench::run::stop_on_signals(&stop)?;
    let results = request.run(&stop, |line| eprintln!("{line}"))?;
    println!("{}", report::advice(&results).trim_end());
    if let Some(folder) = &arguments.out {
        std::fs::create_dir_all(folder)?;
        results.write(folder)?;
        println!("\n{}", report::write(folder, None)?.page.display());
    }
    Ok(())
}
