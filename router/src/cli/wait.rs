//! `croupier wait`: for scripts that need a primary to be ready, or gone.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use nix::poll::{PollTimeout, poll};

use super::ls::ready;
use super::{Exit, Which, code, not_answered, not_found, strange};
use crate::config::{parse_duration, user_name};
use crate::control::client::{
    ANSWER_WAIT, AskError, FindError, Found, Selector, find, of_another_user,
};
use crate::control::messages::{Awaited, Reply, Request};

/// How long `wait ready` looks for a primary that is just being started.
const APPEAR_WAIT: Duration = Duration::from_secs(2);
/// How often it looks.
const APPEAR_STEP_MS: u16 = 20;

const AFTER_HELP: &str = "\
`wait ready` also waits up to 2s for the primary to appear, so it may follow `croupier run … &`.
`wait stopped` is done when there is no such primary, so it may follow `croupier stop`; it says so, should
the name be wrong. One of that name that is another user's, as root's is when sudo was forgotten, is an
error.

Exit status: 0 it is so, 1 it is not so in time or cannot be any more, 3 no such primary (ready), or
only another user's (stopped).

Examples:
  croupier run --name web node app.js &
  croupier wait ready -n web --timeout 30s && curl localhost:3000";

/// Wait until a primary is ready or has stopped.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct WaitArgs {
    /// ready: every wanted worker is ready. stopped: the primary and its workers have ended.
    #[arg(value_enum, value_name = "ready|stopped", hide_possible_values = true)]
    awaited: For,

    #[command(flatten)]
    which: Which,

    /// Give up after this time (default: never).
    #[arg(long, value_name = "T", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum For {
    /// Every wanted worker is ready.
    Ready,
    /// The primary and its workers have ended.
    Stopped,
}

pub(super) fn execute(args: &WaitArgs) -> Exit {
    let deadline = args.timeout.map(|timeout| now() + timeout);
    let selector = args.which.selector();
    let found = match args.awaited {
        For::Ready => find_soon(&selector, args.timeout),
        For::Stopped => find(&selector),
    };
    let mut found = match found {
        Ok(found) => found,
        Err(error) if matches!(args.awaited, For::Stopped) && nobody_is_there(&error) => {
            return nobody(&selector, &error);
        }
        Err(error) => return not_found(&error),
    };
    let left = deadline.map(|deadline| deadline.saturating_duration_since(now()));
    match args.awaited {
        For::Ready => wait_ready(&mut found, left),
        For::Stopped => match found.wait_for_end(left) {
            Ok(()) => Exit::code(code::DONE),
            Err(AskError::TimedOut) => Exit::error(code::FAILED, format!("{found} still runs")),
            Err(error) => not_answered(&found, &error),
        },
    }
}

/// Nobody is there whom this user could ask.
fn nobody(selector: &Selector, error: &FindError) -> Exit {
    match of_another_user(selector) {
        Some(other) => Exit::error(
            code::NO_SUCH_PRIMARY,
            format!(
                "{other} runs, and belongs to another user: wait as that one or as root. If you mean your \
                 own, say -n {}",
                own(selector)
            ),
        ),
        None => Exit::error(code::DONE, gone(error)),
    }
}

/// This user's own of that name, so that nobody else's is meant.
fn own(selector: &Selector) -> String {
    let name = selector.name.as_deref().unwrap_or_default();
    let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
    format!("{}/{name}", user_name(nix::unistd::geteuid()))
}

/// In words, for whoever has mistyped the name.
fn gone(error: &FindError) -> String {
    match error {
        FindError::NoneRunning => "no croupier is running: it has stopped, or never was".to_owned(),
        FindError::NoSuch { name, others } => {
            let others = match others.as_slice() {
                [] => String::new(),
                some => format!(" (there is {})", some.join(", ")),
            };
            format!("no croupier named {name} is running{others}: it has stopped, or never was")
        }
        FindError::NoSocket { .. } | FindError::Ambiguous(_) => {
            format!("{error}: it has stopped, or never was")
        }
    }
}

/// What `wait stopped` waits for. A socket that may not be asked may be a living primary's.
fn nobody_is_there(error: &FindError) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    match error {
        FindError::NoneRunning | FindError::NoSuch { .. } => true,
        FindError::NoSocket { error, .. } => {
            matches!(error.kind(), ConnectionRefused | NotFound)
        }
        FindError::Ambiguous(_) => false,
    }
}

fn wait_ready(found: &mut Found, left: Option<Duration>) -> Exit {
    match found.ask(Request::Wait { r#for: Awaited::Ready }, left) {
        Ok(Reply::Done) => Exit::code(code::DONE),
        Ok(Reply::Failed { why }) => Exit::error(code::FAILED, format!("{found}: {why}")),
        Ok(Reply::Status(_) | Reply::Said { .. } | Reply::Event(_)) => strange(found),
        Err(AskError::Gone) => {
            Exit::error(code::FAILED, format!("{found} ended before it was ready"))
        }
        Err(AskError::TimedOut) => Exit::error(code::FAILED, not_ready(found)),
        Err(error) => not_answered(found, &error),
    }
}

/// The sentence for a timeout, with numbers if the primary still gives some.
fn not_ready(found: &Found) -> String {
    let status = found.again().ok().and_then(|mut again| {
        match again.ask(Request::Status, Some(ANSWER_WAIT)) {
            Ok(Reply::Status(status)) => Some(status),
            Ok(Reply::Done | Reply::Said { .. } | Reply::Event(_) | Reply::Failed { .. })
            | Err(_) => None,
        }
    });
    match status {
        Some(status) => format!("{found} is not ready in time: {} ready", ready(&status)),
        None => format!("{found} is not ready in time"),
    }
}

fn find_soon(selector: &Selector, timeout: Option<Duration>) -> Result<Found, FindError> {
    let deadline = now() + timeout.unwrap_or(APPEAR_WAIT).min(APPEAR_WAIT);
    loop {
        match find(selector) {
            Err(FindError::NoneRunning | FindError::NoSuch { .. } | FindError::NoSocket { .. })
                if now() < deadline =>
            {
                // poll(2) of nothing; EINTR only shortens the step.
                let _slept = poll(&mut [], PollTimeout::from(APPEAR_STEP_MS));
            }
            other => return other,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the command line has no loop; it waits by itself")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_gone_is_said_in_one_sentence() {
        let named = |others: &[&str]| {
            let others = others.iter().map(ToString::to_string).collect();
            gone(&FindError::NoSuch { name: "wbe".into(), others })
        };
        let none = gone(&FindError::NoneRunning);
        assert_eq!(none, "no croupier is running: it has stopped, or never was");
        let alone = "no croupier named wbe is running: it has stopped, or never was";
        assert_eq!(named(&[]), alone);
        let others =
            "no croupier named wbe is running (there is web, api): it has stopped, or never was";
        assert_eq!(named(&["web", "api"]), others);
    }
}
