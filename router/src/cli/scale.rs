//! `croupier scale`: another number of workers, while everything goes on.

use clap::Args;
use croupier_core::event::Scale;

use super::start::ask;
use super::{Exit, Which};
use crate::config::parse_scale;
use crate::control::messages::Request;

const AFTER_HELP: &str = "\
New slots come at the end and start at once; the highest ones go, and their workers finish what they
have, at most for the --drain-timeout of `croupier run`. It returns when those that come are ready
and those that go have ended. Slots that have failed are tried again; those that were stopped by hand
stay so, and count. The number is not kept over a restart of croupier: that is -w.
The signals TTIN and TTOU mean +1 and -1.

Exit status: 0 it is so, 1 not, and why; 3 no such primary.

Examples:
  croupier scale 8
  croupier scale +2 -n web
  croupier scale -1 --no-wait";

/// Have more workers, or fewer.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ScaleArgs {
    #[command(flatten)]
    which: Which,

    /// How many workers, or how many more or fewer.
    #[arg(value_name = "N|+N|-N", value_parser = parse_scale, allow_negative_numbers = true)]
    by: Scale,

    /// Do not wait until they are ready, or gone.
    #[arg(long)]
    no_wait: bool,
}

pub(super) fn execute(args: &ScaleArgs, say: impl FnMut(&str)) -> Exit {
    let request = Request::Scale { by: args.by.into(), wait: !args.no_wait };
    ask(&args.which, request, args.no_wait, say)
}
