//! `croupier bench`: which policy suits a program.
//!
//! Owns: finding the program that measures. Promises: it becomes that program, with the words as they
//! were given. Never does: measure; a primary has no business with that.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use super::{Exit, code};
use crate::adapter::program;

/// The program that measures.
const MEASURES: &str = "croupier-bench";

const AFTER_HELP: &str = "\
Examples:
  croupier bench -- python3 -m http.server 8000
  croupier bench --url /search?q=x -w 8 --policies least,reuseport -- node app.js";

/// Compares the policies for a program of yours, and recommends one.
///
/// croupier bench [--url PATH] [flags] -- COMMAND starts COMMAND under each policy in turn, asks it for
/// PATH as fast as it can take and at a steady rate, and prints a table, a recommendation with its
/// reasons, and what makes it doubtful. It runs `croupier-bench program`, whose flags
/// `croupier bench --help` lists.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = AFTER_HELP)]
pub(super) struct BenchArgs {
    /// Flags and COMMAND, for croupier-bench.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORDS")]
    words: Vec<OsString>,
}

/// `words` are all that follow `croupier`: the parser takes a `--` out of its own.
pub(super) fn execute(_: &BenchArgs, words: Vec<OsString>) -> Exit {
    let own = std::env::current_exe();
    let beside = own.as_ref().ok().map(|own| own.with_file_name(MEASURES));
    let Some(found) = beside.filter(|path| path.is_file()).or_else(in_path) else {
        return Exit::error(
            code::NOT_FOUND,
            format!(
                "{MEASURES}, which measures, is neither beside croupier nor in PATH: `make install` \
                 of croupier's sources installs it, `cargo build --release -p {MEASURES}` builds it"
            ),
        );
    };
    let mut command = Command::new(&found);
    command.arg("program");
    if let Ok(own) = own {
        command.arg("--croupier").arg(own);
    }
    command.args(words.into_iter().skip(1));
    // Only if it fails does it come back.
    let error = command.exec();
    Exit::error(code::NOT_EXECUTABLE, format!("cannot execute {}: {error}", found.display()))
}

fn in_path() -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    program::find(OsStr::new(MEASURES), &search).ok()
}
