//! `croupier start`: slots that are down, or wait before their next start, are started at once.

use clap::Args;

use super::{Exit, Which, code, not_answered, not_found, strange};
use crate::config::parse_slot;
use crate::control::client::{ANSWER_WAIT, AskError, find};
use crate::control::messages::{Reply, Request};

const AFTER_HELP: &str = "\
Starts slots of a croupier that runs: those that croupier stop SLOT has stopped, that ended with one
of --stop-exit-codes, that have failed, or that wait before their next start. Earlier crashes are
forgotten. It returns when they are ready. To start a croupier: croupier run COMMAND, or as a service
of systemd: croupier unit -- COMMAND.

Exit status: 0 they are up, 1 not, and why; 3 no such primary.

Examples:
  croupier start 2
  croupier start 0 1 -n web";

/// What `croupier start` without a slot, or with a program, is told.
const RUN_INSTEAD: &str = "croupier start SLOT… starts slots of a croupier that runs (croupier status \
                           shows them); to start a croupier: croupier run COMMAND, or as a \
                           service of systemd: croupier unit -- COMMAND";

/// Start slots that are stopped, have failed, or wait before their next start.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct StartArgs {
    #[command(flatten)]
    which: Which,

    /// Which slots, as `croupier status` shows them: 2 or w2.
    #[arg(value_name = "SLOT", value_parser = parse_start)]
    slots: Vec<u16>,

    /// Do not wait until they are ready.
    #[arg(long)]
    no_wait: bool,
}

fn parse_start(text: &str) -> Result<u16, String> {
    parse_slot(text).map_err(|why| format!("{why}; {RUN_INSTEAD}"))
}

pub(super) fn execute(args: StartArgs, say: impl FnMut(&str)) -> Exit {
    if args.slots.is_empty() {
        return Exit::error(code::USAGE, RUN_INSTEAD);
    }
    let slots = distinct(args.slots);
    ask(&args.which, Request::Start { slots, wait: !args.no_wait }, args.no_wait, say)
}

/// Each once: who asks twice means once.
pub(super) fn distinct(mut slots: Vec<u16>) -> Vec<u16> {
    slots.sort_unstable();
    slots.dedup();
    slots
}

/// Asks for something to be done with slots, and says how far it is.
pub(super) fn ask(
    which: &Which,
    request: Request,
    no_wait: bool,
    mut say: impl FnMut(&str),
) -> Exit {
    let mut found = match find(&which.selector()) {
        Ok(found) => found,
        Err(error) => return not_found(&error),
    };
    let within = no_wait.then_some(ANSWER_WAIT);
    match found.converse(request, within, &mut say) {
        Ok(Reply::Done) => Exit::code(code::DONE),
        Ok(Reply::Failed { why }) => Exit::error(code::FAILED, format!("{found}: {why}")),
        Ok(Reply::Status(_) | Reply::Said { .. } | Reply::Event(_)) => strange(&found),
        Err(AskError::Gone) => Exit::error(code::FAILED, format!("{found} ended meanwhile")),
        Err(error) => not_answered(&found, &error),
    }
}
