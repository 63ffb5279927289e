//! `croupier reload`: a new generation of workers, or the old one and the reason.

use clap::Args;

use super::{Exit, Which, code, not_answered, not_found, strange};
use crate::control::client::{ANSWER_WAIT, AskError, find};
use crate::control::messages::{Reply, Request};

const AFTER_HELP: &str = "\
The first new worker starts alone and is watched for the --soak of `croupier run`; then the others
start, at most --max-surge at a time. Old workers get no more connections once they are replaced,
but stay until all new ones are ready and have been watched; then they finish what they have and end,
at the latest after --drain-timeout; the connections that were cut then are counted.
If a new worker ends or is not ready in time, the old ones go on and the command fails.
While a reload is under way another one queues. Two that queue are one, and that is --rolling if
either of them is.

Exit status: 0 every worker is new, 1 not, and why; 3 no such primary.

Examples:
  croupier reload
  croupier reload -n web --rolling";

/// Replace all workers by new ones; if those fail, keep the old ones.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is one flag of the command line")]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    which: Which,

    /// End each old worker when its successor has been watched: for hosts without the memory for
    /// twice the workers. If it fails half-way, some workers are new and some are old.
    #[arg(long)]
    rolling: bool,

    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

pub(super) fn execute(args: &ReloadArgs, say: impl FnMut(&str)) -> Exit {
    let mut found = match find(&args.which.selector()) {
        Ok(found) => found,
        Err(error) => return not_found(&error),
    };
    let request = Request::Reload { rolling: args.rolling, wait: !args.no_wait };
    let answer = if args.no_wait {
        found.ask(request, Some(ANSWER_WAIT))
    } else {
        found.follow(request, say)
    };
    match answer {
        Ok(Reply::Done) => Exit::code(code::DONE),
        Ok(Reply::Failed { why }) => Exit::error(code::FAILED, format!("{found}: {why}")),
        Ok(Reply::Status(_) | Reply::Said { .. } | Reply::Event(_)) => strange(&found),
        Err(AskError::Gone) => {
            Exit::error(code::FAILED, format!("{found} ended before the reload did"))
        }
        Err(error) => not_answered(&found, &error),
    }
}
