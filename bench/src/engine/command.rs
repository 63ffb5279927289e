//! Command lines of workers, of croupier and of Node.

use std::path::Path;
use std::process::Command;

use super::Programs;
use super::running::{Serving, Setup};

/// By this variable the end-to-end tests find all that they have started.
const KEPT: &str = "CROUPIER_TEST";

/// How a worker gets its connections: `--from` of croupier-bench-worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Bind,
    Reuseport,
    Inherited,
    Descriptors,
}

impl From {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Reuseport => "reuseport",
            Self::Inherited => "inherited",
            Self::Descriptors => "descriptors",
        }
    }
}

pub(super) fn worker(
    program: &Path,
    from: From,
    port: u16,
    serving: Serving,
    counts: &Path,
) -> Command {
    let mut command = Command::new(program);
    command.args(["--from", from.word(), "--port", &port.to_string()]);
    command.args(["--mode", if serving == Serving::EventLoop { "loop" } else { "blocking" }]);
    command.arg("--counts").arg(counts);
    command
}

/// `croupier run … -- PROGRAM`.
pub(super) fn croupier(
    programs: &Programs,
    setup: &Setup<'_>,
    name: &str,
    port: u16,
    flags: &[&str],
    program: &Command,
) -> Command {
    let mut command = Command::new(&programs.croupier);
    // Flags of the caller's shell would measure another croupier than the one that is named.
    let flags_of = |name: &str| name.starts_with("CROUPIER_") && name != KEPT;
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(flags_of)) {
        command.env_remove(name);
    }
    command.args(["run", "-w", &setup.workers.to_string(), "--name", name]);
    command.args(["-l", &format!("127.0.0.1:{port}")]).args(flags);
    // A worker that is killed soon after its start is the load's doing, not a crash at the start.
    command.args(["--min-uptime", "50ms", "--soak", "200ms"]);
    command.arg("--").arg(program.get_program()).args(program.get_args());
    command
}

pub(super) fn node(script: &Path, port: u16, counts: &Path, how: &str, workers: u32) -> Command {
    let mut command = Command::new("node");
    command.arg(script).arg(port.to_string()).arg(counts).args([how, &workers.to_string()]);
    command
}
