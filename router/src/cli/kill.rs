//! `croupier kill`: a signal to the worker of a slot.

use clap::Args;
use nix::sys::signal::Signal;

use super::start::ask;
use super::{Exit, Which};
use crate::config::{parse_any_signal, parse_slot};
use crate::control::messages::Request;

const AFTER_HELP: &str = "\
The signal goes to the worker's process group, as a stop does. A worker that ends by it is replaced, as
one that crashed: what waits for it goes to others, what it serves is lost. To end one without a loss:
croupier restart SLOT, or croupier stop SLOT.

Exit status: 0 it was sent, 1 not, and why; 3 no such primary.

Examples:
  croupier kill 2
  croupier kill 2 KILL -n web
  croupier kill 0 USR1";

/// Send a signal to the worker of a slot.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct KillArgs {
    #[command(flatten)]
    which: Which,

    /// Which slot, as `croupier status` shows it: 2 or w2.
    #[arg(value_name = "SLOT", value_parser = parse_slot)]
    slot: u16,

    /// Which signal: TERM, SIGTERM or a number.
    #[arg(value_name = "SIGNAL", value_parser = parse_any_signal, default_value = "TERM")]
    signal: Signal,
}

pub(super) fn execute(args: &KillArgs, say: impl FnMut(&str)) -> Exit {
    let request = Request::Kill { slot: args.slot, signal: args.signal as i32 };
    ask(&args.which, request, true, say)
}
