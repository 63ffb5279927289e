//! How workers leave, and how new ones show that they can serve: `check.rs`, `keep.rs`, and the two
//! time-outs, each decision on a table of its own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod table;

use std::time::Duration;

use croupier_core::config::{Config, Policy, ProbeRule, ReadyRule};
use croupier_core::event::{
    Action, Client, Event, Fault, ListenerId, Load, Loads, ReloadFault, Report, WorkerId,
};
use croupier_core::time::Now;

use table::players::{Habit, Honesty};
use table::{MS, SEC, Table, config, within};

fn reported(table: &Table, is_it: impl Fn(&Report) -> bool) -> usize {
    table.story.reports.iter().filter(|(_, report)| is_it(report)).count()
}

fn over(table: &Table) -> bool {
    reported(table, |r| matches!(r, Report::ReloadOver { .. })) > 0
}

fn ended(table: &Table) -> bool {
    table.story.outcome.is_some()
}

fn state(table: &Table, worker: u32) -> &'static str {
    table.core.workers().find(|view| view.worker.0 == worker).map_or("forgotten", |view| view.state)
}

/// A client whose connection stays open for so long.
fn stays(table: &mut Table, client: Client, service: u64) -> u64 {
    let serial = table.client(client);
    table.listeners.get_mut(&0).unwrap().waiting.back_mut().unwrap().service = Some(service);
    table.run_for(MS);
    serial
}

fn dealt_to(table: &Table, serial: u64) -> u32 {
    table.story.hand_offs.iter().rev().find(|(_, conn, _)| *conn == serial).unwrap().2
}

/// A new connection of a client: who gets it?
fn asks(table: &mut Table, client: Client) -> u32 {
    let serial = table.client(client);
    table.run_for(MS);
    dealt_to(table, serial)
}

// ---- the two time-outs

#[test]
fn a_stop_takes_its_own_time_from_those_that_leave_already() {
    for stop_signal_first in [false, true] {
        let config = Config {
            drain_timeout: Duration::from_secs(1000),
            graceful_timeout: Duration::from_secs(3),
            kill_after: Duration::from_secs(1),
            soak: Duration::ZERO,
            stop_signal_first,
            ..config(1, Policy::Least)
        };
        let stubborn = Habit { stubborn: true, ..Habit::event_loop(2000 * SEC) };
        let mut table = Table::of(config, stubborn);
        table.start();
        table.client(Client::Local);
        table.run_for(MS);
        table.reload(false);
        within(&mut table, SEC, |table| state(table, 1) == "draining");
        table.run_for(20 * SEC);
        assert_eq!(state(&table, 1), "draining", "it has its drain-timeout");
        let asked = table.now;
        table.stop(false);
        within(&mut table, 20 * SEC, ended);
        let took = table.now - asked;
        assert!((4 * SEC..4 * SEC + 100 * MS).contains(&took), "{} ms", took / MS);
    }
}

#[test]
fn the_graceful_timeout_does_not_bound_a_reload() {
    let config = Config {
        drain_timeout: Duration::from_secs(30),
        graceful_timeout: Duration::from_secs(1),
        soak: Duration::ZERO,
        ..config(1, Policy::Least)
    };
    let mut table = Table::of(config, Habit::event_loop(20 * SEC));
    table.start();
    table.client(Client::Local);
    table.run_for(MS);
    table.reload(false);
    within(&mut table, 25 * SEC, over);
    assert_eq!((table.story.served.len(), table.story.lost.len()), (1, 0));
    assert_eq!(reported(&table, |r| matches!(r, Report::DrainCut { .. })), 0);
}

// ---- disconnect

#[test]
fn a_worker_is_told_to_leave_once_nothing_waits_for_it() {
    let config = Config { soak: Duration::ZERO, ..config(1, Policy::Least) };
    let mut table = Table::of(config, Habit::blocking(300 * MS));
    table.start();
    for _ in 0..2 {
        table.client(Client::Local);
        table.run_for(2 * MS);
    }
    table.reload(false);
    within(&mut table, 5 * SEC, over);
    let told: Vec<u32> = table.story.dismissed.iter().map(|(_, worker)| *worker).collect();
    assert_eq!(told, [1]);
    let (told_at, _) = table.story.dismissed[0];
    let (signal_at, ..) = table.story.signals[0];
    assert!(told_at < signal_at, "it hears of it while it still serves");

    // At a stop what waits is served before its worker hears that it may go.
    for _ in 0..6 {
        table.client(Client::Local);
    }
    table.run_for(10 * MS);
    let last = table.connections;
    table.stop(false);
    while !ended(&table) {
        // Whatever happens meanwhile, it is looked at again.
        table.tell(Event::Woke);
        table.run_for(5 * MS);
        assert!(table.now < 60 * SEC, "{}", table.picture());
    }
    let (told_at, _) = table.story.dismissed[1];
    let claimed_at = table.story.claims.iter().find(|(_, serial, _)| *serial == last).unwrap().0;
    assert!(told_at >= claimed_at, "told at {told_at}, last claim at {claimed_at}");
    assert_eq!((table.story.served.len(), table.story.refused.len()), (8, 0));
}

// ---- ready-probe

fn probed(slots: u16) -> Config {
    Config {
        ready_probe: ProbeRule::Answer,
        ready_timeout: Duration::from_secs(5),
        ..config(slots, Policy::Least)
    }
}

#[test]
fn nobody_is_ready_before_it_has_answered() {
    let mut table = Table::of(probed(2), Habit { bad_answers: 3, ..Habit::default() });
    table.client(Client::Local);
    table.start();
    assert_eq!(table.story.checks.len(), 8, "three bad answers and a good one, each");
    // 50 ms to start, then 100, 200 and 400 ms between the requests.
    let of_one: Vec<u64> =
        table.story.checks.iter().filter(|(_, w)| *w == 1).map(|(at, _)| at / MS).collect();
    let waits: Vec<u64> = of_one.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits, [100, 200, 400]);
    table.run_for(SEC);
    assert_eq!(table.story.served.len(), 1, "it waited in the backlog");
    assert!(table.core.poll_timeout().is_none(), "nobody is asked any more");
}

#[test]
fn whoever_never_answers_well_is_not_ready_in_time() {
    let mut table = Table::of(probed(1), Habit { bad_answers: u32::MAX, ..Habit::default() });
    within(&mut table, 60 * SEC, ended);
    assert_eq!(reported(&table, |r| matches!(r, Report::NotReadyInTime { .. })), 3);
    // At 0, 0.1, 0.3, 0.7, 1.5, 3.1 s, each time.
    assert_eq!(table.story.checks.len(), 3 * 6);
}

#[test]
fn a_request_that_is_not_claimed_is_not_followed_by_another() {
    let mut table = Table::of(probed(1), Habit { latency: 3 * SEC, ..Habit::default() });
    within(&mut table, 10 * SEC, Table::all_ready);
    assert_eq!(table.story.checks.len(), 1);
}

#[test]
fn a_reload_to_a_version_that_fails_its_probe_leaves_the_old_one() {
    for slot in [0, 2] {
        let mut table = Table::of(probed(4), Habit::blocking(3 * MS));
        table.start();
        table.habits = Box::new(move |at, _, _| {
            let bad_answers = if at.0 == slot { u32::MAX } else { 0 };
            Habit { bad_answers, ..Habit::blocking(3 * MS) }
        });
        table.reload(false);
        let end = table.now + 20 * SEC;
        while !over(&table) {
            assert!(table.now < end, "{}", table.picture());
            table.client(Client::Local);
            table.run_for(MS);
        }
        let failed = table.story.reports.iter().find_map(|(_, report)| {
            if let Report::ReloadFailed { why, .. } = report { Some(*why) } else { None }
        });
        assert!(
            matches!(
                failed,
                Some(ReloadFault::Worker { slot: at, was_ready: false, fault: Fault::NotReady, .. })
                    if at.0 == slot
            ),
            "{failed:?}"
        );
        within(&mut table, SEC, Table::is_quiet);
        let left: Vec<u32> = table.core.workers().map(|view| view.worker.0).collect();
        assert_eq!(left, [1, 2, 3, 4]);
        assert!(table.story.lost.is_empty() && table.story.refused.is_empty());
    }
}

#[test]
fn an_answer_counts_only_while_it_is_awaited() {
    let mut table = Table::of(probed(1), Habit { latency: SEC, ..Habit::default() });
    let passed = Event::Checked { worker: WorkerId(1), passed: true };
    table.tell(passed);
    table.run_for(60 * MS);
    // Asked by now; then the listener goes, and with it what was asked there.
    assert_eq!(table.story.checks.len(), 1);
    table.room.players.get_mut(&1).unwrap().listens.clear();
    table.tell(Event::Unlistened { worker: WorkerId(1), listener: ListenerId(0) });
    table.tell(passed);
    table.room.players.get_mut(&1).unwrap().listens.insert(0);
    table.tell(Event::Listening { worker: WorkerId(1), listener: ListenerId(0) });
    table.run_for(MS);
    assert_eq!(state(&table, 1), "starting");
}

#[test]
fn a_probe_comes_after_all_else_that_ready_asks_for() {
    let base = probed(1);
    for ready in [ReadyRule::Accept, ReadyRule::Notify, ReadyRule::Start] {
        let habit = Habit { says_ready: true, bad_answers: 1, ..Habit::default() };
        let mut table = Table::of(Config { ready, ..base }, habit);
        table.start();
        assert_eq!(table.story.checks.len(), 2, "{ready:?}");
        assert_eq!(table.story.probes.len(), usize::from(ready == ReadyRule::Accept), "{ready:?}");
    }
}

// ---- sticky clients of those that leave

const HOME: Client = Client::V4([10, 0, 0, 1]);

fn sticky(slots: u16) -> Config {
    Config { drain_timeout: Duration::from_secs(40), ..config(slots, Policy::Ip) }
}

#[test]
fn a_client_goes_on_to_the_leaving_worker_that_has_it_and_others_do_not() {
    let mut table = Table::of(sticky(1), Habit::event_loop(5 * MS));
    table.start();
    let held = stays(&mut table, HOME, 20 * SEC);
    table.reload(false);
    within(&mut table, 5 * SEC, |table| state(table, 1) == "parked");
    assert_eq!(asks(&mut table, HOME), 1, "parked");
    assert_eq!(asks(&mut table, Client::V4([10, 0, 0, 2])), 2, "nothing of it is open there");
    within(&mut table, 5 * SEC, |table| state(table, 1) == "draining");
    assert_eq!(asks(&mut table, HOME), 1, "draining");
    assert_eq!(asks(&mut table, Client::Local), 2, "no address, no home");
    within(&mut table, 25 * SEC, |table| table.story.served.contains(&held));
    within(&mut table, SEC, over);
    assert_eq!(asks(&mut table, HOME), 2, "it is done");
    assert!(table.story.lost.is_empty() && table.story.taken_back.is_empty());
}

#[test]
fn all_come_back_when_the_reload_fails() {
    let mut table = Table::of(sticky(2), Habit::event_loop(5 * MS));
    table.start();
    stays(&mut table, HOME, 100 * SEC);
    let old = asks(&mut table, HOME);
    table.habits =
        Box::new(|slot, _, _| Habit { never_ready: slot.0 == 1, ..Habit::event_loop(5 * MS) });
    table.config.ready_timeout = Duration::from_secs(60);
    table.reload(false);
    for _ in 0..60 {
        table.run_for(SEC);
        assert_eq!(asks(&mut table, HOME), old, "at {} s", table.now / SEC);
    }
    within(&mut table, 10 * SEC, over);
    assert_eq!(asks(&mut table, HOME), old);
}

#[test]
fn a_draining_worker_keeps_clients_for_three_quarters_of_its_time() {
    let mut table = Table::of(sticky(1), Habit::event_loop(5 * MS));
    table.start();
    stays(&mut table, HOME, 1000 * SEC);
    table.reload(false);
    within(&mut table, 5 * SEC, |table| state(table, 1) == "draining");
    let since = table.now;
    table.run_for(29 * SEC);
    assert_eq!(asks(&mut table, HOME), 1);
    table.run_for(since + 30 * SEC + 10 * MS - table.now);
    assert_eq!(asks(&mut table, HOME), 2, "what comes now could not be finished");
    within(&mut table, 15 * SEC, over);
    assert_eq!(table.story.lost.len(), 1, "only what was open for so long");
}

#[test]
fn a_client_that_never_leaves_does_not_keep_a_worker_for_ever() {
    let mut table = Table::of(sticky(1), Habit::event_loop(30 * MS));
    table.start();
    table.reload(false);
    let end = table.now + 60 * SEC;
    while !over(&table) {
        // There is always one open.
        table.client(HOME);
        table.run_for(10 * MS);
        assert!(table.now < end, "{}", table.picture());
    }
    assert!(table.story.lost.is_empty() && table.story.kept > 1000, "{}", table.story.kept);
}

#[test]
fn where_a_page_does_not_say_or_nobody_has_room_the_hash_decides() {
    let mut table =
        Table::of(Config { max_active: Some(1), ..sticky(1) }, Habit::event_loop(5 * MS));
    table.start();
    stays(&mut table, HOME, 100 * SEC);
    table.reload(false);
    within(&mut table, 5 * SEC, |table| state(table, 1) == "parked");
    assert_eq!(asks(&mut table, HOME), 2, "worker 1 serves as many as it may");

    let mut table =
        Table::of(sticky(1), Habit { honesty: Honesty::NoPage, ..Habit::event_loop(5 * MS) });
    table.start();
    stays(&mut table, HOME, 100 * SEC);
    table.reload(false);
    within(&mut table, 5 * SEC, |table| state(table, 1) == "parked");
    assert_eq!(asks(&mut table, HOME), 2, "nobody knows");
}

#[test]
fn a_stop_keeps_nobody() {
    let mut table = Table::of(sticky(1), Habit::event_loop(5 * MS));
    table.start();
    stays(&mut table, HOME, 3 * SEC);
    table.reload(false);
    within(&mut table, 5 * SEC, |table| state(table, 1) == "draining");
    table.stop(false);
    within(&mut table, 10 * SEC, ended);
    assert!(table.story.lost.is_empty() && table.story.refused.is_empty());
}

/// Pages and queues that move while the core reads them: one queued connection is claimed before
/// the `after`th reading.
struct Moving<'a> {
    room: &'a table::Room,
    worker: WorkerId,
    after: u32,
    readings: std::cell::Cell<u32>,
}

impl Moving<'_> {
    fn has_claimed(&self) -> bool {
        self.readings.set(self.readings.get() + 1);
        self.readings.get() > self.after
    }
}

impl Loads for Moving<'_> {
    fn load(&self, worker: WorkerId) -> Load {
        let load = self.room.load(worker);
        if worker != self.worker || !self.has_claimed() {
            return load;
        }
        Load { claimed: load.claimed + 1, active: load.active.map(|active| active + 1) }
    }

    fn queued_exact(&self, worker: WorkerId) -> Option<u32> {
        let queued = self.room.queued_exact(worker)?;
        Some(queued - u32::from(worker == self.worker && self.has_claimed()))
    }

    fn lacks_cpu(&self, worker: WorkerId) -> bool {
        self.room.lacks_cpu(worker)
    }

    fn holds(&self, worker: WorkerId, mark: u16) -> bool {
        self.room.holds(worker, mark)
    }
}

/// Whatever is read before the claim, and whatever after it.
#[test]
fn a_worker_that_claims_while_it_is_looked_at_is_not_told_to_end() {
    let mut ends = 0;
    for after in 0..12 {
        let habit = Habit { latency: 5 * SEC, ..Habit::default() };
        // With room beside what is queued, so that the stop finds the backlog empty.
        let mut table = Table::of(config(1, Policy::Ip), habit);
        table.start();
        table.client(Client::Local);
        table.run_for(10 * MS);
        table.stop(false);
        let drains = |table: &Table| state(table, 1) == "draining";
        assert!(table.run_until(4 * SEC, drains), "{}", table.picture());
        let worker = WorkerId(1);
        let loads = Moving { room: &table.room, worker, after, readings: std::cell::Cell::new(0) };
        let (mut core, mut now) = (table.core.clone(), Now(table.now));
        for _ in 0..6 {
            now = Now(now.0 + 400 * MS);
            core.handle(Event::Woke, now, &loads);
            while let Some(action) = core.poll_action() {
                let told = matches!(action, Action::Signal { .. } | Action::KillFamily { .. });
                assert!(!told, "after {after} readings: {action:?}");
            }
        }
        ends += u32::from(loads.readings.get() > after);
    }
    assert_eq!(ends, 12, "each has claimed while it was looked at");
}

/// Its bell has rung by its own word, whenever it is set: the loop must not set it again and again.
#[test]
fn a_draining_worker_that_says_it_has_claimed_everything_keeps_nobody_busy() {
    let habit = Habit { latency: 5 * SEC, honesty: Honesty::ClaimsAll, ..Habit::default() };
    let mut table = Table::of(config(1, Policy::Ip), habit);
    table.start();
    table.client(Client::Local);
    table.run_for(MS);
    table.stop(false);
    let turns = table.story.turns;
    // Virtual time of a loop that spins passes by nanoseconds.
    let over = |table: &Table| table.story.outcome.is_some() || table.story.turns > turns + 500;
    assert!(table.run_until(15 * SEC, over), "{}", table.picture());
    assert!(table.story.turns <= turns + 500, "it spins: {}", table.picture());
    let unfit = Report::NumbersDoNotFit { worker: WorkerId(1) };
    assert_eq!(reported(&table, |report| *report == unfit), 1, "{:?}", table.story.reports);
}
