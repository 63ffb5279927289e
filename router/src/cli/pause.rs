//! `croupier pause` and `croupier resume`: nobody, or a slot, gets connections for a while.

use clap::Args;

use super::start::{ask, distinct};
use super::{Exit, Which};
use crate::config::parse_slot;
use crate::control::messages::Request;

const AFTER_PAUSE: &str = "\
Without SLOT nobody gets new connections and nobody is refused: clients wait in the backlog, say while
a database migrates. What is open goes on. With SLOT the clients of these slots go to the others.
A pause outlives the workers, also over crashes and reloads, until croupier resume; a stop ends it and
serves first who waits. While all are paused status --check is 1.
The signal WINCH pauses all, unless croupier is in the foreground of a terminal, whose window may
change its size; HUP ends that, and reloads.

Exit status: 0 it is so, 1 not, and why; 3 no such primary.

Examples:
  croupier pause && ./migrate && croupier resume
  croupier pause 2 -n web";

const AFTER_RESUME: &str = "\
Without SLOT every pause ends, of all and of single slots.

Exit status: 0 it is so, 1 not, and why; 3 no such primary.

Examples:
  croupier resume
  croupier resume 2 -n web";

/// Let new clients wait; what is open goes on.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_PAUSE)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    which: Which,

    /// Only these slots, as `croupier status` shows them: 2 or w2.
    #[arg(value_name = "SLOT", value_parser = parse_slot)]
    slots: Vec<u16>,
}

/// Let clients in again.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_RESUME)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    which: Which,

    /// Only these slots, as `croupier status` shows them: 2 or w2.
    #[arg(value_name = "SLOT", value_parser = parse_slot)]
    slots: Vec<u16>,
}

pub(super) fn pause(args: PauseArgs, say: impl FnMut(&str)) -> Exit {
    ask(&args.which, Request::Pause { slots: distinct(args.slots) }, true, say)
}

pub(super) fn resume(args: ResumeArgs, say: impl FnMut(&str)) -> Exit {
    ask(&args.which, Request::Resume { slots: distinct(args.slots) }, true, say)
}
