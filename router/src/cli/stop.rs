//! `croupier stop`: ends one primary and waits until it has ended.

use clap::Args;

use super::{Exit, Which, code, not_answered, not_found};
use crate::control::client::{ANSWER_WAIT, AskError, find};
use crate::control::messages::{Reply, Request};

const AFTER_HELP: &str = "\
Listeners close first, without a reset; then workers finish their connections, at most for the
--graceful-timeout of `croupier run`. The command returns when all have ended.

Examples:
  croupier stop
  croupier stop -n web --now";

/// Stop a primary and its workers, gracefully unless --now.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct StopArgs {
    #[command(flatten)]
    which: Which,

    /// Kill the workers without waiting for their connections.
    #[arg(long)]
    now: bool,
}

pub(super) fn execute(args: &StopArgs) -> Exit {
    let mut found = match find(&args.which.selector()) {
        Ok(found) => found,
        Err(error) => return not_found(&error),
    };
    match found.ask(Request::Stop { now: args.now }, Some(ANSWER_WAIT)) {
        // Gone: with --now it may be faster than its answer.
        Ok(Reply::Done) | Err(AskError::Gone) => {}
        Ok(Reply::Failed { why }) => return Exit::error(code::FAILED, why),
        Ok(Reply::Status(_) | Reply::Said { .. }) => {
            return Exit::error(code::FAILED, format!("{found}: it answered with a status"));
        }
        Err(error) => return not_answered(&found, &error),
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
