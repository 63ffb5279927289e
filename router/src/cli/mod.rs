//! The command line: one file a subcommand.
//!
//! Owns: the top of the parser, exit codes, wrong-usage hints. Promises: every error names what, on
//! what, and what to do. Never does: print (that is `main`'s), or read flags elsewhere.

mod bench;
mod check;
mod completions;
mod doctor;
mod events;
mod kill;
mod logs;
mod ls;
mod man;
mod pause;
mod reload;
mod restart;
pub mod run;
mod scale;
mod start;
mod status;
mod stop;
mod table;
mod unit;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::adapter::program;
use crate::config::{LoadError, Loaded, Surroundings, load, parse_name};
use crate::control::client::{AskError, FindError, Found, Selector};

/// Exit codes (README, "Exit codes").
pub mod code {
    /// All went well.
    pub const DONE: u8 = 0;
    /// The system, a worker or a timeout stood in the way.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// No such primary runs.
    pub const NO_SUCH_PRIMARY: u8 = 3;
    /// The program cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// There is no such program.
    pub const NOT_FOUND: u8 = 127;
    /// A second INT.
    pub const INTERRUPTED: u8 = 130;
}

/// How the process ends, and what it says before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit code.
    pub code: u8,
    /// For stdout, newlines included.
    pub stdout: String,
    /// For stderr, newlines included.
    pub stderr: String,
}

impl Exit {
    const fn code(code: u8) -> Self {
        Self { code, stdout: String::new(), stderr: String::new() }
    }

    const fn with(code: u8, stdout: String) -> Self {
        Self { code, stdout, stderr: String::new() }
    }

    fn error(code: u8, why: impl std::fmt::Display) -> Self {
        Self { code, stdout: String::new(), stderr: format!("croupier: {why}\n") }
    }
}

const AFTER_HELP: &str = "\
Examples:
  croupier run -w 4 -- python3 -m http.server 8000
  croupier run -l :80=3000 --user nobody node app.js
  croupier check -w 4 -- node server.js
  croupier ls
  croupier status -n app
  croupier reload -n app
  croupier stop 2 -n app && croupier start 2 -n app
  croupier stop -n app && croupier wait stopped -n app --timeout 30s

Exit status: 0 done, 1 failed, 2 usage, 3 no such primary, 126 not executable, 127 not found,
130 second Ctrl-C.";

/// Deals TCP connections to worker processes, so that a server uses every CPU.
#[derive(Debug, Parser)]
#[command(
    name = "croupier",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = AFTER_HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Check(Box<check::CheckArgs>),
    Unit(Box<unit::UnitArgs>),
    Bench(bench::BenchArgs),
    Ls(ls::LsArgs),
    Doctor(doctor::DoctorArgs),
    Logs(logs::LogsArgs),
    Status(status::StatusArgs),
    Events(events::EventsArgs),
    Reload(reload::ReloadArgs),
    Restart(restart::RestartArgs),
    Scale(scale::ScaleArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Kill(kill::KillArgs),
    Start(start::StartArgs),
    Stop(stop::StopArgs),
    Wait(wait::WaitArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Which primary.
#[derive(Debug, Clone, Args)]
struct Which {
    /// The primary's name, as `croupier ls` shows it. Not needed when exactly one runs.
    #[arg(short, long, value_name = "NAME", env = "CROUPIER_NAME", value_parser = parse_selector)]
    name: Option<String>,

    /// The path of its control socket, when it was started with --control; wins over a name.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl Which {
    fn selector(&self) -> Selector {
        Selector { name: self.name.clone(), control: self.control.clone() }
    }
}

fn parse_selector(text: &str) -> Result<String, String> {
    let (owner, name) = text.split_once('/').unwrap_or(("-", text));
    if owner.is_empty() {
        return Err("an owner's primary is OWNER/NAME; a socket's path goes to --control".into());
    }
    parse_name(name).map(|_| text.to_owned())
}

/// Parses the command line and does what it says. `run` is handed a valid configuration; its error
/// is an exit code and a sentence. `say` is handed what is to be printed before the end, line by line.
pub fn execute(
    arguments: impl IntoIterator<Item = OsString>,
    run: impl FnOnce(Loaded) -> Result<u8, (u8, String)>,
    say: impl FnMut(&str),
) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refused(&arguments, &error),
    };
    // The subcommand and what follows it: there are no flags before it.
    let words: Vec<OsString> = arguments.iter().skip(1).cloned().collect();
    match cli.command {
        Command::Run(_) => {
            match load(|| subcommand("run"), words, &Surroundings::of_this_process()) {
                Ok(loaded) => match run(loaded) {
                    Ok(code) => Exit::code(code),
                    Err((code, why)) => Exit::error(code, why),
                },
                Err(error) => not_loaded(&arguments, &error),
            }
        }
        Command::Check(args) => {
            check::execute(&args, words).unwrap_or_else(|error| not_loaded(&arguments, &error))
        }
        Command::Unit(args) => {
            unit::execute(&args, words).unwrap_or_else(|error| not_loaded(&arguments, &error))
        }
        Command::Bench(args) => bench::execute(&args, words),
        Command::Ls(args) => ls::execute(&args),
        Command::Doctor(args) => doctor::execute(&args),
        Command::Logs(args) => logs::execute(&args, say),
        Command::Status(args) => status::execute(&args),
        Command::Events(args) => events::execute(&args, say),
        Command::Reload(args) => reload::execute(&args, say),
        Command::Restart(args) => restart::execute(args, say),
        Command::Scale(args) => scale::execute(&args, say),
        Command::Pause(args) => pause::pause(args, say),
        Command::Resume(args) => pause::resume(args, say),
        Command::Kill(args) => kill::execute(&args, say),
        Command::Start(args) => start::execute(args, say),
        Command::Stop(args) => stop::execute(args, say),
        Command::Wait(args) => wait::execute(&args),
        Command::Completions(args) => completions::execute(&args),
        Command::Man(args) => man::execute(&args),
    }
}

/// The whole command line: what the parser, `--help` and all that is made from them are made of.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// The definition of one subcommand, to be parsed by itself.
fn subcommand(name: &str) -> clap::Command {
    let command = command();
    let found = command.find_subcommand(name).cloned().unwrap_or_default();
    found.bin_name(format!("croupier {name}"))
}

fn not_loaded(arguments: &[OsString], error: &LoadError) -> Exit {
    match error {
        LoadError::Usage(error) => refused(arguments, error),
        LoadError::Config(error) => Exit::error(code::USAGE, error),
    }
}

fn refused(arguments: &[OsString], error: &clap::Error) -> Exit {
    let rendered = error.render().to_string();
    let mut text = match rendered.strip_prefix("error:") {
        Some(rest) => format!("croupier:{rest}"),
        None => rendered,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let kind = error.kind();
    if matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Exit::with(code::DONE, text);
    }
    if matches!(kind, ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument)
        && let Some(hint) = forgotten_run(arguments, error)
    {
        return Exit::error(code::USAGE, hint);
    }
    Exit { code: code::USAGE, stdout: String::new(), stderr: text }
}

/// `croupier node x.js` and `croupier -w 4 node x.js`: the hint, unless it looks like a mistyped
/// subcommand, for which clap has a better one.
fn forgotten_run(arguments: &[OsString], error: &clap::Error) -> Option<String> {
    let rest = arguments.get(1..)?;
    let first = rest.first()?;
    let shown = first.to_string_lossy();
    if Cli::command().get_subcommands().any(|one| shown == one.get_name()) {
        return None;
    }
    let similar = error.get(ContextKind::SuggestedSubcommand).is_some();
    let search = std::env::var_os("PATH").unwrap_or_default();
    if similar && program::find(first, &search).is_err() {
        return None;
    }
    let words: Vec<String> = rest.iter().map(|word| quoted(&word.to_string_lossy())).collect();
    let what = if shown.starts_with('-') { "belongs to a subcommand" } else { "is no subcommand" };
    Some(format!("{shown} {what}; did you mean croupier run {}", words.join(" ")))
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+{}[]".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn not_found(error: &FindError) -> Exit {
    let code = match error {
        FindError::NoneRunning | FindError::NoSuch { .. } | FindError::NoSocket { .. } => {
            code::NO_SUCH_PRIMARY
        }
        FindError::Ambiguous(_) => code::USAGE,
    };
    Exit::error(code, error)
}

fn not_answered(found: &Found, error: &AskError) -> Exit {
    Exit::error(code::FAILED, format!("{found}: {error}"))
}

/// An answer to another question.
fn strange(found: &Found) -> Exit {
    let why = "it answered what was not asked; is it another version of croupier?";
    Exit::error(code::FAILED, format!("{found}: {why}"))
}

#[cfg(test)]
mod tests;
