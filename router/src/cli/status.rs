//! `croupier status`: how one primary stands, as a table or as JSON.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::Args;

use super::ls::{count_down, count_ready};
use super::table::{Align, Table, age, bytes, known, micros, number};
use super::{Exit, Which, code, not_answered, not_found, strange};
use crate::control::client::{ANSWER_WAIT, find};
use crate::control::messages::{Reply, Request, Status, WorkerState, WorkerStatus};

const AFTER_HELP: &str = "\
Columns: QUEUED handed off, not yet claimed; ACTIVE claimed, not yet closed (an estimate);
WINDOW how many may be queued now; WAIT p50 and p99 of the time from hand-off to claim.
A dash is unknown.

Examples:
  croupier status
  croupier status -n web --json | jq '.workers[].claimed'
  croupier status -n web --check || alert";

/// Show a primary, its listeners and its workers.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is one flag of the command line")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    which: Which,

    /// Print one JSON object; what is unknown is null.
    #[arg(long)]
    json: bool,

    /// Print one line; exit with 1 unless every wanted worker is ready, clients are let in, and no stop
    /// was asked for.
    #[arg(long, conflicts_with = "json")]
    check: bool,
}

pub(super) fn execute(args: &StatusArgs) -> Exit {
    let mut found = match find(&args.which.selector()) {
        Ok(found) => found,
        Err(error) => return not_found(&error),
    };
    let status = match found.ask(Request::Status, Some(ANSWER_WAIT)) {
        Ok(Reply::Status(status)) => status,
        Ok(Reply::Failed { why }) => return Exit::error(code::FAILED, why),
        Ok(Reply::Done | Reply::Said { .. } | Reply::Event(_)) => {
            return strange(&found);
        }
        Err(error) => return not_answered(&found, &error),
    };
    if args.json {
        let mut text = match serde_json::to_string_pretty(&*status) {
            Ok(text) => text,
            Err(error) => return Exit::error(code::FAILED, error),
        };
        text.push('\n');
        Exit::with(code::DONE, text)
    } else if args.check {
        check(&status)
    } else {
        Exit::with(code::DONE, render(&status))
    }
}

fn check(status: &Status) -> Exit {
    let (ready, wanted) = count_ready(status);
    // Whoever is paused does not serve, however ready.
    let good = wanted > 0 && ready == wanted && !status.paused && !status.stopping;
    let code = if good { code::DONE } else { code::FAILED };
    let state: String = state(status).iter().map(|word| format!(", {word}")).collect();
    Exit::with(code, format!("{}: {ready} of {wanted} ready{state}\n", status.name))
}

/// What is not as ever: `2 stopped`, which are not missed; `1 draining`; `paused`, `stopping`,
/// `reloading`: all of it.
pub(super) fn state(status: &Status) -> Vec<String> {
    let paused = status.workers.iter().filter(|one| one.paused).map(|one| one.slot);
    let paused = paused.collect::<BTreeSet<u16>>().len();
    let drains = |one: &&WorkerStatus| one.state == WorkerState::Draining;
    let counted = [
        (count_down(status), "stopped"),
        (if status.paused { 0 } else { paused }, "paused"),
        (status.workers.iter().filter(drains).count(), "draining"),
    ];
    let counted = counted.iter().filter(|(count, _)| *count > 0);
    let all =
        [(status.paused, "paused"), (status.reloading, "reloading"), (status.stopping, "stopping")];
    let all = all.iter().filter(|(is_so, _)| *is_so).map(|(_, word)| (*word).to_owned());
    counted.map(|(count, word)| format!("{count} {word}")).chain(all).collect()
}

fn render(status: &Status) -> String {
    let (ready, wanted) = count_ready(status);
    let mut text = String::new();
    let state: String = state(status).iter().map(|word| format!(", {word}")).collect();
    let written = writeln!(
        text,
        "{}  pid {}, up {}, policy {}, {ready} of {wanted} ready{state}, croupier {}",
        status.name,
        status.pid,
        age(status.uptime_s),
        status.policy,
        status.version
    );
    debug_assert!(written.is_ok(), "a String takes everything");
    text.push('\n');
    text.push_str(&listeners(status));
    text.push('\n');
    text.push_str(&workers(status));
    text.push('\n');
    text.push_str(&totals(status));
    for advice in &status.advice {
        text.push_str(&format!("advice: {}\n", advice.text));
    }
    text
}

fn listeners(status: &Status) -> String {
    if status.listeners.is_empty() {
        return "nothing listens yet\n".into();
    }
    let mut table = Table::new(&[
        ("LISTENS ON", Align::Left),
        ("POLICY", Align::Left),
        ("ACCEPTED", Align::Right),
        ("WAITING", Align::Right),
        ("BACKLOG", Align::Right),
    ]);
    for one in &status.listeners {
        table.row(vec![
            one.address.clone(),
            one.policy.clone(),
            number(one.accepted),
            known(one.queue_depth),
            number(one.backlog.into()),
        ]);
    }
    table.render("")
}

fn workers(status: &Status) -> String {
    let mut table = Table::new(&[
        ("SLOT", Align::Left),
        ("ID", Align::Right),
        ("GEN", Align::Right),
        ("PID", Align::Right),
        ("STATE", Align::Left),
        ("HANDED OFF", Align::Right),
        ("QUEUED", Align::Right),
        ("ACTIVE", Align::Right),
        ("WINDOW", Align::Right),
        ("WAIT p50", Align::Right),
        ("p99", Align::Right),
        ("RESTARTS", Align::Right),
        ("UP", Align::Right),
        ("RSS", Align::Right),
        ("LAST EXIT", Align::Left),
    ]);
    for one in &status.workers {
        table.row(worker(one));
    }
    table.render("")
}

fn worker(one: &WorkerStatus) -> Vec<String> {
    let late = if one.late { ", late" } else { "" };
    let paused = if one.paused { ", paused" } else { "" };
    let recycle = one.recycle.as_ref().map_or_else(String::new, |why| format!(", due: {why}"));
    vec![
        format!("w{}", one.slot),
        known(one.id),
        known(one.generation),
        one.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        format!("{}{paused}{late}{recycle}", one.state.name()),
        known(one.handed_off),
        known(one.queued),
        known(one.active),
        known(one.window),
        micros(one.queued_p50_us),
        micros(one.queued_p99_us),
        number(one.restarts.into()),
        one.uptime_s.map_or_else(|| "-".to_owned(), age),
        bytes(one.rss_bytes),
        one.last_exit.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

fn totals(status: &Status) -> String {
    let totals = status.totals;
    format!(
        "accepted {}, handed off {}, salvaged {}, stolen {}, refused {}, shed {}; nobody had room {} times\n\
         workers: {} hung, {} recycled\n\
         accept to hand-off: p50 {}, p99 {}\n",
        number(totals.accepted),
        number(totals.handed_off),
        number(totals.salvaged),
        number(totals.stolen),
        number(totals.refused),
        number(totals.shed),
        number(totals.waits),
        number(totals.hung),
        number(totals.recycled),
        held(totals.accept_to_handoff_p50_us),
        held(totals.accept_to_handoff_p99_us),
    )
}

/// What the loop hands off in the turn that accepted it has no time of its own: no clock is read in between.
fn held(us: Option<u64>) -> String {
    if us == Some(0) { "at once".into() } else { micros(us) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::messages::{Advice, ListenerStatus, SCHEMA, Totals};

    fn worker(slot: u16, state: WorkerState) -> WorkerStatus {
        WorkerStatus {
            slot,
            id: Some(u32::from(slot) + 1),
            generation: Some(1),
            pid: Some(4243),
            state,
            handed_off: Some(30_012),
            claimed: Some(30_010),
            closed: Some(30_001),
            queued: Some(2),
            active: Some(9),
            window: Some(16),
            paused: false,
            late: slot == 1,
            recycle: None,
            restarts: 0,
            last_exit: None,
            uptime_s: Some(11_520),
            rss_bytes: Some(23_592_960),
            queued_p50_us: Some(85),
            queued_p99_us: Some(12_345),
        }
    }

    fn vacant(slot: u16, state: WorkerState) -> WorkerStatus {
        WorkerStatus {
            id: None,
            generation: None,
            pid: None,
            handed_off: None,
            claimed: None,
            closed: None,
            queued: None,
            active: None,
            window: None,
            uptime_s: None,
            rss_bytes: None,
            queued_p50_us: None,
            queued_p99_us: None,
            ..worker(slot, state)
        }
    }

    fn status(workers: Vec<WorkerStatus>) -> Status {
        Status {
            schema: SCHEMA,
            pid: 4242,
            name: "web".into(),
            version: "0.1.0".into(),
            policy: "least".into(),
            uptime_s: 11_520,
            slots: 16,
            paused: false,
            stopping: false,
            reloading: false,
            listeners: vec![ListenerStatus {
                address: "[::]:8080".into(),
                policy: "least".into(),
                accepted: 120_034,
                backlog: 4096,
                queue_depth: Some(0),
            }],
            workers,
            advice: vec![Advice { about: "lag".into(), text: "do this".into() }],
            totals: Totals {
                accepted: 120_034,
                handed_off: 120_030,
                accept_to_handoff_p50_us: Some(0),
                accept_to_handoff_p99_us: Some(850),
                ..Totals::default()
            },
        }
    }

    #[test]
    fn a_table_for_people() {
        let status = status(vec![
            worker(0, WorkerState::Ready),
            worker(1, WorkerState::Ready),
            WorkerStatus { last_exit: Some("OOM kill".into()), ..vacant(10, WorkerState::Backoff) },
        ]);
        let wanted = "\
web  pid 4242, up 3h 12m, policy least, 2 of 3 ready, croupier 0.1.0

LISTENS ON  POLICY  ACCEPTED  WAITING  BACKLOG
[::]:8080   least    120,034        0    4,096

SLOT  ID  GEN   PID  STATE        HANDED OFF  QUEUED  ACTIVE  WINDOW  WAIT p50     p99  RESTARTS      UP    RSS  LAST EXIT
w0     1    1  4243  ready            30,012       2       9      16      85µs  12.3ms         0  3h 12m  22.5M  -
w1     2    1  4243  ready, late      30,012       2       9      16      85µs  12.3ms         0  3h 12m  22.5M  -
w10    -    -     -  backoff               -       -       -       -         -       -         0       -      -  OOM kill

accepted 120,034, handed off 120,030, salvaged 0, stolen 0, refused 0, shed 0; nobody had room 0 times
workers: 0 hung, 0 recycled
accept to hand-off: p50 at once, p99 850µs
advice: do this
";
        assert_eq!(render(&status), wanted, "\n{}", render(&status));
    }

    #[test]
    fn a_check_fails_from_the_moment_a_stop_was_asked_for() {
        let all = vec![worker(0, WorkerState::Ready), worker(1, WorkerState::Ready)];
        let exit = check(&Status { stopping: true, ..status(all) });
        assert_eq!(
            (exit.code, exit.stdout.as_str()),
            (code::FAILED, "web: 2 of 2 ready, stopping\n")
        );
    }

    #[test]
    fn a_check_fails_unless_all_wanted_are_ready() {
        let code = |workers| check(&status(workers)).code;
        let (ready, starting) = (WorkerState::Ready, WorkerState::Starting);
        assert_eq!(code(vec![worker(0, ready), worker(1, ready)]), code::DONE);
        assert_eq!(code(vec![worker(0, ready), worker(1, starting)]), code::FAILED);
        assert_eq!(code(vec![worker(0, ready), vacant(1, WorkerState::Failed)]), code::FAILED);
        // A slot that nobody wants is not missed; its successor beside an old worker counts once.
        assert_eq!(code(vec![worker(0, ready), vacant(1, WorkerState::Down)]), code::DONE);
        assert_eq!(code(vec![worker(0, WorkerState::Draining), worker(0, ready)]), code::DONE);
        assert_eq!(code(Vec::new()), code::FAILED);
        // One that was stopped by hand and has not ended yet; and nobody at all.
        let leaving = vec![worker(0, ready), vacant(1, WorkerState::Down)];
        let leaving = [leaving, vec![worker(1, WorkerState::Draining)]].concat();
        let exit = check(&status(leaving));
        assert_eq!(
            (exit.code, exit.stdout.as_str()),
            (code::DONE, "web: 1 of 1 ready, 1 stopped, 1 draining\n")
        );
        assert_eq!(code(vec![vacant(0, WorkerState::Down)]), code::FAILED);
        // One that drains in a slot that a scale took away.
        let gone = vec![worker(0, ready), worker(20, WorkerState::Draining)];
        assert_eq!(check(&status(gone)).stdout, "web: 1 of 1 ready, 1 draining\n");
    }

    #[test]
    fn a_pause_is_seen_and_of_all_is_no_readiness() {
        let ready = || worker(0, WorkerState::Ready);
        let one = WorkerStatus { paused: true, ..worker(1, WorkerState::Ready) };
        let exit = check(&status(vec![ready(), one.clone()]));
        let expected = (code::DONE, "web: 2 of 2 ready, 1 paused\n");
        assert_eq!((exit.code, exit.stdout.as_str()), expected);
        assert!(render(&status(vec![ready(), one])).contains("ready, paused, late"));
        let all = Status { paused: true, ..status(vec![ready()]) };
        let exit = check(&all);
        let expected = (code::FAILED, "web: 1 of 1 ready, paused\n");
        assert_eq!((exit.code, exit.stdout.as_str()), expected);
    }
}
