//! `croupier events`: what happens, line by line, as it happens.

use clap::Args;

use super::{Exit, Which, code, not_answered, not_found, strange};
use crate::control::client::{AskError, find};
use crate::control::messages::{Happening, Reply};

const AFTER_HELP: &str = "\
The first line, following, says that from here on no event is missed. Then, as they happen: fork,
online, listening, ready, late, stolen, recovered, hung, disconnect, exit, fork-failed, slot-failed,
reload-started, reload-done, reload-failed, scaled, paused, resumed, stop. Each has the next number;
a reader that is too slow is told by a line, missed, how many it did not get.

Exit status: 0 the primary has stopped, 1 it ended otherwise; 3 no such primary.

Examples:
  croupier events -n web
  croupier events --json | while read -r event; do ./hook \"$event\"; done";

/// Show what happens, as it happens.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    which: Which,

    /// Print each event as one JSON object; what is unknown is null.
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &EventsArgs, mut say: impl FnMut(&str)) -> Exit {
    let mut found = match find(&args.which.selector()) {
        Ok(found) => found,
        Err(error) => return not_found(&error),
    };
    let mut stops = false;
    let end = found.listen(|event| {
        stops |= event.event == "stop";
        if args.json {
            // These types have string keys and no failing parts.
            say(&serde_json::to_string(event).unwrap_or_default());
        } else {
            say(&line(event));
        }
    });
    match end {
        Err(AskError::Gone) if stops => Exit::code(code::DONE),
        Err(AskError::Gone) => Exit::error(code::FAILED, format!("{found} ended without a stop")),
        Ok(Reply::Failed { why }) => Exit::error(code::FAILED, format!("{found}: {why}")),
        Ok(Reply::Done | Reply::Status(_) | Reply::Said { .. } | Reply::Event(_)) => {
            strange(&found)
        }
        Err(error) => not_answered(&found, &error),
    }
}

/// `2026-01-02T03:04:05.678Z     17 exit           w1 worker 3 gen 2 pid 4243: SIGKILL`.
fn line(event: &Happening) -> String {
    let seq = event.seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
    let mut words = Vec::new();
    let number = |name: &str, value: Option<u32>| value.map(|value| format!("{name} {value}"));
    words.extend(event.slot.map(|slot| format!("w{slot}")));
    words.extend(number("worker", event.worker));
    words.extend(number("gen", event.generation));
    words.extend(number("pid", event.pid));
    if let (Some(from), Some(to)) = (event.from, event.to) {
        words.push(format!("from {from} to {to}"));
    }
    words.extend(event.address.as_ref().map(|address| format!("on {address}")));
    words.extend(event.after_ms.map(|after| format!("after {after}ms")));
    words.extend(event.count.map(|count| count.to_string()));
    words.extend((event.rolling == Some(true)).then(|| "rolling".to_owned()));
    words.extend((event.now == Some(true)).then(|| "now".to_owned()));
    let why = event.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    let text = format!("{} {seq:>6} {:<14} {}{why}", event.time, event.event, words.join(" "));
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_people() {
        let time = || "2026-01-02T03:04:05.678Z".to_owned();
        let exit = Happening {
            seq: Some(17),
            time: time(),
            event: "exit".into(),
            worker: Some(3),
            slot: Some(1),
            generation: Some(2),
            pid: Some(4243),
            why: Some("SIGKILL".into()),
            ..Happening::default()
        };
        let expected =
            "2026-01-02T03:04:05.678Z     17 exit           w1 worker 3 gen 2 pid 4243: SIGKILL";
        assert_eq!(line(&exit), expected);
        let scaled = Happening {
            seq: Some(18),
            time: time(),
            event: "scaled".into(),
            from: Some(2),
            to: Some(4),
            ..Happening::default()
        };
        assert_eq!(line(&scaled), "2026-01-02T03:04:05.678Z     18 scaled         from 2 to 4");
        let missed = line(&Happening::missed(5, time()));
        assert_eq!(missed, "2026-01-02T03:04:05.678Z      - missed         5");
        let paused = Happening { seq: Some(1), event: "paused".into(), ..Happening::default() };
        assert_eq!(line(&paused).trim(), "1 paused");
    }
}
