//! `croupier stop`: ends one primary, or stops slots of it, and waits until that has happened.

use clap::Args;

use super::start::{ask, distinct};
use super::{Exit, Which, code, not_answered, not_found, strange};
use crate::config::parse_slot;
use crate::control::client::{ANSWER_WAIT, AskError, find};
use crate::control::messages::{Reply, Request};

const AFTER_HELP: &str = "\
Listeners close first, without a reset; then workers finish their connections, at most for the
--graceful-timeout of `croupier run`. The command returns when all have ended.

With SLOT only the workers of these slots finish their connections and end; the others go on. A slot
that was stopped stays so, over crashes and reloads, until croupier start SLOT. When all are stopped
clients wait.

Examples:
  croupier stop
  croupier stop -n web --now
  croupier stop 2 3 -n web";

/// Stop a primary and its workers, gracefully unless --now; or only some slots.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is one flag of the command line")]
pub(super) struct StopArgs {
    #[command(flatten)]
    which: Which,

    /// Only these slots, as `croupier status` shows them: 2 or w2.
    #[arg(value_name = "SLOT", value_parser = parse_slot, conflicts_with = "now")]
    slots: Vec<u16>,

    /// Kill the workers without waiting for their connections.
    #[arg(long)]
    now: bool,

    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

pub(super) fn execute(args: StopArgs, say: impl FnMut(&str)) -> Exit {
    if !args.slots.is_empty() {
        let slots = distinct(args.slots);
        let request = Request::StopSlots { slots, wait: !args.no_wait };
        return ask(&args.which, request, args.no_wait, say);
    }
    let mut found = match find(&args.which.selector()) {
        Ok(found) => found,
        Err(error) => return not_found(&error),
    };
    match found.ask(Request::Stop { now: args.now }, Some(ANSWER_WAIT)) {
        // Gone: with --now it may be faster than its answer.
        Ok(Reply::Done) | Err(AskError::Gone) => {}
        Ok(Reply::Failed { why }) => return Exit::error(code::FAILED, why),
        Ok(Reply::Status(_) | Reply::Said { .. } | Reply::Event(_)) => {
            return strange(&found);
        }
        Err(error) => return not_answered(&found, &error),
    }
    if args.no_wait {
        return Exit::code(code::DONE);
    }
    // On a connection of its own: the primary may drop clients that it has answered.
    let Ok(mut again) = found.again() else { return Exit::code(code::DONE) };
    if again.pid != found.pid {
        return Exit::code(code::DONE);
    }
    match again.wait_for_end(None) {
        Ok(()) => Exit::code(code::DONE),
        Err(error) => not_answered(&found, &error),
    }
}
