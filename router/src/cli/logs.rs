//! `croupier logs`: what the workers of a primary printed, and what they print.

use clap::Args;

use super::{Exit, Which, code, not_answered, not_found, strange};
use crate::config::parse_slot;
use crate::control::client::{ANSWER_WAIT, AskError, find};
use crate::control::messages::{Reply, Request};
use crate::output::KEPT_LINES_MAX;

const AFTER_HELP: &str = "\
The lines of all workers come in the order in which croupier read them, those of workers that have
ended too (the last 32). It keeps at most 500 lines and 64 KiB of each, whatever becomes of its own
stdout. A reader that is too slow for -f is told how many lines are missing, and slows nobody.

Exit status: 0 done, or the primary has ended; 1 there is nothing to show, and why; 3 no such primary.

Examples:
  croupier logs
  croupier logs 2 --lines 100
  croupier logs -f -n web | grep -i error
  croupier logs -f --json | jq 'select(.stream == \"stderr\")'";

/// Show what workers printed last, and with -f what they print.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is one flag of the command line")]
pub(super) struct LogsArgs {
    #[command(flatten)]
    which: Which,

    /// Only of this slot. Default: of all.
    #[arg(value_name = "SLOT", value_parser = parse_slot)]
    slot: Option<u16>,

    /// Go on with what workers print, until croupier ends.
    #[arg(short, long)]
    follow: bool,

    /// How many of the last lines of each worker.
    #[arg(
        long,
        value_name = "N",
        default_value = "20",
        value_parser = clap::value_parser!(u32).range(0..=KEPT_LINES_MAX as i64)
    )]
    lines: u32,

    /// Each line as a JSON object, as --log-format json of `croupier run` writes it.
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &LogsArgs, say: impl FnMut(&str)) -> Exit {
    let mut found = match find(&args.which.selector()) {
        Ok(found) => found,
        Err(error) => return not_found(&error),
    };
    // As with tail and cat: when the reader of this pipe goes (`| head`), so does this.
    crate::sys::end_with_the_reader();
    let LogsArgs { slot, lines, follow, json, .. } = *args;
    let within = (!follow).then_some(ANSWER_WAIT);
    match found.converse(Request::Logs { slot, lines, follow, json }, within, say) {
        Ok(Reply::Done) => Exit::code(code::DONE),
        Ok(Reply::Failed { why }) => Exit::error(code::FAILED, format!("{found}: {why}")),
        Ok(Reply::Status(_) | Reply::Said { .. } | Reply::Event(_)) => strange(&found),
        Err(AskError::Gone) => Exit::error(code::FAILED, format!("{found} was killed")),
        Err(error) => not_answered(&found, &error),
    }
}
