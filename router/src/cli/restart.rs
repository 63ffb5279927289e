//! `croupier restart`: a new worker in a slot, as a reload of that slot alone.

use clap::Args;

use super::start::{ask, distinct};
use super::{Exit, Which};
use crate::config::parse_slot;
use crate::control::messages::Request;

const AFTER_HELP: &str = "\
A new worker starts beside the old one; when it is ready it takes over, and the old one finishes what
it has and ends, at the latest after the --drain-timeout of `croupier run`. If the new one ends or is
not ready in time, the old one goes on and the command fails. Several slots have their turns one after
the other, each when the last old worker has ended. A reload that is under way, or asked for
meanwhile, goes first.
Without SLOT: every slot; croupier reload does that with a watch over the new ones.

Exit status: 0 the workers are new, 1 not, and why; 3 no such primary.

Examples:
  croupier restart 2
  croupier restart 0 1 -n web";

/// Replace the workers of some slots by new ones.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct RestartArgs {
    #[command(flatten)]
    which: Which,

    /// Which slots, as `croupier status` shows them: 2 or w2.
    #[arg(value_name = "SLOT", value_parser = parse_slot)]
    slots: Vec<u16>,

    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

pub(super) fn execute(args: RestartArgs, say: impl FnMut(&str)) -> Exit {
    let slots = distinct(args.slots);
    ask(&args.which, Request::Restart { slots, wait: !args.no_wait }, args.no_wait, say)
}
