//! Hung workers, recycling, admission: each promise on a table of its own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod table;

use std::time::Duration;

use croupier_core::config::{Config, Limits, Policy};
use croupier_core::event::{
    Client, ExitStatus, Fault, RecycleReason, ReloadFault, Report, SignalKind,
};

use table::players::{Habit, Honesty};
use table::{MS, SEC, Table, busy_for, config, name, within};

fn reported(table: &Table, is_it: impl Fn(&Report) -> bool) -> usize {
    table.story.reports.iter().filter(|(_, report)| is_it(report)).count()
}

fn at(table: &Table, is_it: impl Fn(&Report) -> bool) -> Vec<u64> {
    table.story.reports.iter().filter(|(_, report)| is_it(report)).map(|(at, _)| *at).collect()
}

fn limited(slots: u16, limits: Limits) -> Config {
    Config { limits, ..config(slots, Policy::Least) }
}

fn hung_after(slots: u16, millis: u64) -> Config {
    limited(slots, Limits { hung_timeout: Duration::from_millis(millis), ..Limits::NONE })
}

/// Nobody claims anything from now on.
fn stick(table: &mut Table, worker: u32) {
    table.room.players.get_mut(&worker).unwrap().habit.stuck_until = u64::MAX;
}

fn clients(table: &mut Table, count: usize) {
    for _ in 0..count {
        table.client(Client::Local);
    }
}

fn hung(table: &Table) -> usize {
    reported(table, |report| matches!(report, Report::Hung { .. }))
}

// ---- hung

#[test]
fn a_worker_alone_that_does_not_claim_is_replaced_at_once() {
    let mut table = Table::of(hung_after(1, 1000), Habit::default());
    table.start();
    stick(&mut table, 1);
    table.room.players.get_mut(&1).unwrap().habit.stubborn = true;
    let begun = table.now;
    clients(&mut table, 3);
    within(&mut table, 3 * SEC, |table| hung(table) == 1);
    let took = table.now - begun;
    assert!((SEC..1600 * MS).contains(&took), "{} ms", took / MS);
    assert_eq!(table.story.signals, [(table.now, 1, SignalKind::Abort)]);
    assert_eq!((name(&table, 1), name(&table, 2)), ("killing", "starting"), "in one turn");
    // What was queued is taken back when the next one serves, long before the old one is killed.
    within(&mut table, SEC, |table| table.story.served.len() == 3);
    assert!(table.story.kills.is_empty());
    within(&mut table, 3 * SEC, |table| name(table, 1) == "forgotten");
    let killed = table.story.kills[0].0 - begun - took;
    assert!((2 * SEC..2100 * MS).contains(&killed), "kill_after, {} ms", killed / MS);
    let totals = table.core.totals();
    assert_eq!((totals.hung, totals.salvaged), (1, 1), "one was queued, two waited");
}

/// Stopped between recvmsg(2) and its count: the kernel's queue is empty, and it owes one all the same.
#[test]
fn a_worker_that_took_one_and_does_not_come_to_count_it_hangs() {
    let config = Config { stall_after: Duration::from_secs(10), ..hung_after(2, 1000) };
    let mut table = Table::of(config, Habit::default());
    let honesty = |worker| if worker == 1 { Honesty::ClaimsNothing } else { Honesty::Honest };
    table.habits =
        Box::new(move |_, worker, _| Habit { honesty: honesty(worker.0), ..Habit::default() });
    table.start();
    clients(&mut table, 2);
    within(&mut table, 100 * MS, |table| table.story.served.len() == 2);
    let begun = table.now;
    within(&mut table, 3 * SEC, |table| hung(table) == 1);
    assert!(table.now - begun >= 900 * MS);
    within(&mut table, SEC, |table| name(table, 1) != "ready" && name(table, 2) == "ready");
}

#[test]
fn a_hung_worker_among_others_lost_its_queue_long_before() {
    let mut table = Table::of(hung_after(3, 2000), Habit::default());
    table.start();
    stick(&mut table, 2);
    let begun = table.now;
    busy_for(&mut table, 500 * MS);
    within(&mut table, 50 * MS, Table::is_quiet);
    assert_eq!((hung(&table), table.story.probes.len()), (0, 1));
    within(&mut table, 3 * SEC, |table| hung(table) == 1);
    assert!(table.now - begun >= 2 * SEC);
    let silent =
        |report: &Report| matches!(report, Report::Hung { worker, queued: 1, .. } if worker.0 == 2);
    assert_eq!(reported(&table, silent), 1, "the probe");
    within(&mut table, SEC, |table| name(table, 2) == "forgotten" && table.all_ready());
    assert!(table.story.lost.is_empty());
}

#[test]
fn slow_is_not_hung() {
    // One connection a second, always some waiting; and one that takes for ever, nothing waiting.
    for (service, count) in [(900 * MS, 6), (100 * SEC, 1)] {
        let mut table = Table::of(hung_after(1, 1000), Habit::blocking(service));
        table.start();
        clients(&mut table, count);
        table.run_for(5 * SEC);
        assert_eq!(hung(&table), 0, "{}", table.picture());
    }
}

#[test]
fn nothing_queued_no_timer() {
    let mut table = Table::of(hung_after(2, 1000), Habit::event_loop(100 * SEC));
    table.start();
    clients(&mut table, 10);
    table.run_for(2 * SEC);
    assert_eq!(table.core.poll_timeout(), None, "they are served, however long that takes");
}

#[test]
fn a_primary_that_slept_suspects_nobody() {
    let mut table = Table::of(hung_after(1, 1000), Habit::default());
    table.start();
    stick(&mut table, 1);
    clients(&mut table, 1);
    table.run_for(500 * MS);
    table.asleep_until = table.now + 5 * SEC;
    table.run_for(5 * SEC + 900 * MS);
    assert_eq!(hung(&table), 0);
    within(&mut table, SEC, |table| hung(table) == 1);
}

#[test]
fn one_that_drains_or_is_parked_is_not_judged() {
    let config = Config { drain_timeout: Duration::from_secs(3), ..hung_after(1, 500) };
    let mut table = Table::of(config, Habit::default());
    table.start();
    stick(&mut table, 1);
    clients(&mut table, 1);
    table.run_for(300 * MS);
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 1) == "parked");
    table.run_for(900 * MS);
    assert_eq!((name(&table, 1), hung(&table)), ("parked", 0));
    within(&mut table, 2 * SEC, |table| name(table, 1) == "draining");
    within(&mut table, 8 * SEC, |table| name(table, 1) == "forgotten");
    assert_eq!((hung(&table), table.story.served.len()), (0, 1));
}

#[test]
fn a_new_worker_that_hangs_while_it_is_watched_fails_the_reload() {
    let config = Config { soak: Duration::from_secs(3), ..hung_after(2, 500) };
    let mut table = Table::of(config, Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| Habit { stuck_until: u64::MAX, ..Habit::default() });
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 3) == "ready");
    busy_for(&mut table, 1500 * MS);
    let fails = |report: &Report| {
        let why = if let Report::ReloadFailed { why, .. } = report { Some(*why) } else { None };
        let hung =
            |why| matches!(why, ReloadFault::Worker { fault: Fault::Hung, was_ready: true, .. });
        why.is_some_and(hung)
    };
    assert_eq!(reported(&table, fails), 1, "{}", table.picture());
    within(&mut table, 5 * SEC, |table| name(table, 3) == "forgotten" && table.is_quiet());
    assert_eq!((name(&table, 1), name(&table, 2)), ("ready", "ready"));
}

#[test]
fn a_stop_waits_for_no_hung_worker_longer_than_for_its_kill() {
    let mut table = Table::of(hung_after(2, 500), Habit { stubborn: true, ..Habit::default() });
    table.start();
    stick(&mut table, 1);
    clients(&mut table, 4);
    within(&mut table, 2 * SEC, |table| hung(table) == 1);
    table.stop(false);
    within(&mut table, 5 * SEC, |table| table.story.outcome.is_some());
    assert_eq!(table.story.served.len(), 4);
}

// ---- recycling

fn recycled(table: &Table) -> usize {
    reported(table, |report| matches!(report, Report::Recycled { .. }))
}

fn by_connections(slots: u16, max: u64) -> Config {
    limited(slots, Limits { max_connections: Some(max), ..Limits::NONE })
}

#[test]
fn workers_that_were_given_enough_are_replaced_one_at_a_time() {
    let mut table = Table::of(by_connections(4, 50), Habit::blocking(2 * MS));
    table.start();
    busy_for(&mut table, 2 * SEC);
    within(&mut table, SEC, Table::is_quiet);
    let totals = table.core.totals();
    assert!(totals.recycled >= 8, "{totals:?}");
    assert_eq!(table.story.most_beside, 1);
    assert!(table.story.lost.is_empty() && table.story.refused.is_empty());
    assert_eq!(table.story.served.len(), 2000);
    assert!(table.core.slots().all(|slot| slot.restarts == 0), "that is no restart");
    let early = |report: &Report| matches!(report, Report::RecycleBegan { why: RecycleReason::Connections(given), .. } if *given < 45);
    assert_eq!(reported(&table, early), 0);
}

#[test]
fn lifetimes_end_apart_and_an_idle_primary_wakes_only_for_them() {
    let limits = Limits { max_lifetime: Some(Duration::from_secs(100)), ..Limits::NONE };
    let mut table = Table::of(limited(4, limits), Habit::default());
    table.start();
    let turns = table.story.turns;
    table.run_for(89 * SEC);
    assert_eq!((recycled(&table), table.story.turns), (0, turns));
    table.run_for(12 * SEC);
    let ends = at(&table, |report| matches!(report, Report::RecycleBegan { .. }));
    assert_eq!((ends.len(), recycled(&table)), (4, 4));
    assert!(ends[3] - ends[0] > 500 * MS, "spread over ten seconds: {ends:?}");
}

#[test]
fn two_that_are_due_at_once_go_one_after_the_other() {
    let mut table = Table::of(config(2, Policy::Least), Habit::blocking(400 * MS));
    table.start();
    clients(&mut table, 2);
    table.run_for(10 * MS);
    table.outgrows(1);
    table.outgrows(2);
    table.run_for(20 * MS);
    let states = |table: &Table| [1, 2, 3, 4].map(|worker| name(table, worker));
    assert_eq!(states(&table), ["ready", "ready", "starting", "forgotten"]);
    table.run_for(60 * MS);
    // It drains, as it has a connection; the other one waits until it has gone.
    assert_eq!(states(&table), ["draining", "ready", "ready", "forgotten"]);
    within(&mut table, SEC, |table| name(table, 1) == "forgotten");
    assert_eq!(name(&table, 4), "starting");
    within(&mut table, SEC, |table| recycled(table) == 2);
    within(&mut table, SEC, |table| name(table, 2) == "forgotten");
    assert_eq!(table.story.most_beside, 1);
    assert_eq!((table.story.served.len(), table.story.lost.len()), (2, 0));
    table.run_for(10 * SEC);
    assert_eq!(recycled(&table), 2);
}

#[test]
fn a_new_one_that_does_not_hold_leaves_the_old_one_and_waits_double() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    let dies = Habit {
        exits: Some((0, ExitStatus::Code(3), false)),
        never_ready: true,
        ..Habit::default()
    };
    table.habits = Box::new(move |_, _, _| dies.clone());
    table.outgrows(1);
    table.run_for(9 * SEC);
    let failures = at(&table, |report| {
        let crash = Fault::Ended(ExitStatus::Code(3));
        matches!(report, Report::RecycleFailed { fault, .. } if *fault == crash)
    });
    // 1, 2, 4 s, each up to a fifth off.
    assert!((3..=4).contains(&failures.len()), "{failures:?}");
    assert!(failures[2] - failures[1] > (failures[1] - failures[0]) * 5 / 4, "{failures:?}");
    assert_eq!((name(&table, 1), name(&table, 2)), ("ready", "ready"));
    table.habits = Box::new(|_, _, _| Habit::default());
    within(&mut table, 10 * SEC, |table| recycled(table) == 1);
    let crashes = reported(&table, |report| matches!(report, Report::BackingOff { .. }));
    assert_eq!(crashes, 0, "the slot has a clean record");
}

fn needs_more(table: &Table) -> Vec<u16> {
    let slot = |(_, report): &(u64, Report)| {
        if let Report::NeedsMore { slot, .. } = report { Some(slot.0) } else { None }
    };
    table.story.reports.iter().filter_map(slot).collect()
}

/// The shell looks every two seconds; `is_large` says who has too much memory.
fn with_looks(table: &mut Table, seconds: u64, is_large: impl Fn(&Table, u32) -> bool) {
    for _ in 0..seconds / 2 {
        table.run_for(2 * SEC);
        let all: Vec<u32> = table.core.workers().map(|view| view.worker.0).collect();
        for worker in all {
            if is_large(table, worker) {
                table.outgrows(worker);
            }
        }
    }
}

#[test]
fn where_every_worker_needs_more_memory_it_is_said_once_and_the_wait_doubles() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    with_looks(&mut table, 300, |_, _| true);
    assert_eq!(needs_more(&table), [0, 1], "once for each slot");
    let mut began: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
    for (at, report) in &table.story.reports {
        if let Report::RecycleBegan { slot, .. } = report {
            began[usize::from(slot.0)].push(*at);
        }
    }
    for starts in began {
        // At once, then after 1, 2, 4, … 60 s, each up to a fifth off and found by the next look.
        assert!((8..=12).contains(&starts.len()), "{starts:?}");
        let waits: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits[5] > 3 * waits[2], "{waits:?}");
        assert!(waits.iter().all(|wait| *wait < 80 * SEC), "{waits:?}");
        assert!(waits[7] > 48 * SEC, "{waits:?}");
    }
    // A reload brings another program, or another limit: it is news again.
    table.reload(false);
    let over = |table: &Table| reported(table, |r| matches!(r, Report::ReloadOver { .. })) == 1;
    within(&mut table, 10 * SEC, over);
    with_looks(&mut table, 20, |_, _| true);
    assert_eq!(needs_more(&table), [0, 1, 0, 1]);
    assert_eq!(table.story.most_beside, 1 + 1, "one beside each in the reload");
}

#[test]
fn a_slot_that_waits_holds_up_no_other_and_who_leaks_never_waits() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    // Slot 0 needs too much; the worker of slot 1 leaks, for ten seconds each time.
    with_looks(&mut table, 200, |table, worker| {
        let view = table.core.workers().find(|view| view.worker.0 == worker).unwrap();
        let since = view.ready_since.map_or(table.now, |at| at.0);
        view.slot.0 == 0 || table.now - since >= 8 * SEC
    });
    let of = |wanted: u16| {
        reported(&table, |r| matches!(r, Report::RecycleBegan { slot, .. } if slot.0 == wanted))
    };
    assert_eq!(needs_more(&table), [0]);
    assert!(of(0) < 12 && of(1) >= 18, "{} and {}", of(0), of(1));
}

#[test]
fn what_a_worker_has_while_it_starts_is_not_held_against_it() {
    let mut table = Table::of(config(1, Policy::Least), Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| Habit { start: SEC, ..Habit::default() });
    table.outgrows(1);
    table.run_for(500 * MS);
    assert_eq!(name(&table, 2), "starting");
    table.outgrows(2);
    within(&mut table, SEC, |table| recycled(table) == 1);
    table.run_for(30 * SEC);
    assert_eq!((recycled(&table), needs_more(&table)), (1, vec![]));
}

#[test]
fn a_new_one_that_cannot_be_started_or_never_listens_is_the_same() {
    for (habit, fault) in [
        (Habit { spawn_fails: true, ..Habit::default() }, Fault::NotStarted),
        (Habit { never_ready: true, ..Habit::default() }, Fault::NotReady),
    ] {
        let config = Config { ready_timeout: Duration::from_secs(2), ..config(1, Policy::Least) };
        let mut table = Table::of(config, Habit::default());
        table.start();
        table.habits = Box::new(move |_, _, _| habit.clone());
        table.outgrows(1);
        let failed = |report: &Report| matches!(report, Report::RecycleFailed { fault: why, .. } if *why == fault);
        within(&mut table, 3 * SEC, |table| reported(table, failed) == 1);
        clients(&mut table, 1);
        within(&mut table, SEC, |table| table.story.served.len() == 1);
        assert_eq!(name(&table, 1), "ready");
    }
}

#[test]
fn the_old_one_may_die_meanwhile() {
    let mut table = Table::of(config(1, Policy::Least), Habit::default());
    table.start();
    table.outgrows(1);
    table.run_for(10 * MS);
    table.exit(1, ExitStatus::Signal(9), false);
    table.start_within(SEC);
    let all: Vec<_> = table.core.workers().map(|view| (view.worker.0, view.state)).collect();
    assert_eq!(all, [(2, "ready")], "the slot waited for the one that was being started");
    // Both: the slot restarts as ever.
    table.run_for(6 * SEC);
    table.outgrows(2);
    table.run_for(10 * MS);
    table.exit(2, ExitStatus::Signal(9), false);
    table.exit(3, ExitStatus::Signal(9), false);
    table.start_within(5 * SEC);
    table.outgrows(4);
    within(&mut table, 5 * SEC, |table| recycled(table) == 1);
}

#[test]
fn a_reload_wins_over_a_recycling() {
    for taken_over in [false, true] {
        let mut table = Table::of(config(2, Policy::Least), Habit::blocking(300 * MS));
        table.start();
        clients(&mut table, 2);
        table.run_for(MS);
        table.outgrows(1);
        let state = if taken_over { "ready" } else { "starting" };
        within(&mut table, SEC, |table| name(table, 3) == state);
        table.reload(false);
        table.run_for(5 * MS);
        assert_eq!(name(&table, 3), if taken_over { "ready" } else { "forgotten" });
        let over = |table: &Table| reported(table, |r| matches!(r, Report::ReloadOver { .. })) == 1;
        within(&mut table, 6 * SEC, over);
        assert!(table.all_ready());
        assert!(table.core.workers().all(|view| view.generation.0 == 2 && view.recycle.is_none()));
        assert_eq!((table.story.served.len(), table.story.lost.len()), (2, 0));
        assert_eq!(recycled(&table), usize::from(taken_over));
    }
}

#[test]
fn what_is_due_during_a_reload_waits_for_its_end() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 3) == "ready");
    // An old one, which goes anyway, and a new one.
    table.outgrows(2);
    table.outgrows(3);
    let over = |table: &Table| reported(table, |r| matches!(r, Report::ReloadOver { .. })) == 1;
    while !over(&table) {
        assert_eq!(reported(&table, |r| matches!(r, Report::RecycleBegan { .. })), 0);
        table.run_for(5 * MS);
    }
    within(&mut table, SEC, |table| recycled(table) == 1);
    within(&mut table, SEC, |table| name(table, 3) == "forgotten");
    table.run_for(5 * SEC);
    assert_eq!(recycled(&table), 1);
}

#[test]
fn a_reload_that_fails_gives_those_that_were_due_their_turn() {
    let config = Config { soak: Duration::from_secs(2), ..config(1, Policy::Least) };
    let mut table = Table::of(config, Habit::default());
    table.start();
    table.outgrows(1);
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 1) == "parked");
    let new = table.core.workers().last().unwrap().worker.0;
    table.exit(new, ExitStatus::Code(1), false);
    within(&mut table, SEC, |table| recycled(table) == 1);
    within(&mut table, SEC, |table| name(table, 1) == "forgotten");
    assert!(table.all_ready());
}

#[test]
fn a_stop_during_a_recycling_ends_everybody() {
    for moment in [10 * MS, 60 * MS] {
        let mut table = Table::of(config(2, Policy::Least), Habit::blocking(200 * MS));
        table.start();
        clients(&mut table, 4);
        table.run_for(MS);
        table.outgrows(1);
        table.run_for(moment);
        table.stop(false);
        within(&mut table, 3 * SEC, |table| table.story.outcome.is_some());
        assert_eq!((table.story.served.len(), table.story.lost.len()), (4, 0), "at {moment}");
        assert!(table.room.players.is_empty());
        let failed = reported(&table, |report| matches!(report, Report::RecycleFailed { .. }));
        assert_eq!(failed, 0, "nobody is to blame");
    }
}

#[test]
fn the_new_one_must_listen_on_all_that_the_old_one_listens_on() {
    let config = Config { ready_timeout: Duration::from_secs(1), ..config(1, Policy::Least) };
    let mut table = Table::of(config, Habit::default());
    table.start();
    let listener = croupier_core::event::ListenerId(3);
    let policy = Policy::Least;
    table.tell(croupier_core::event::Event::ListenerOpened { listener, declared: false, policy });
    let worker = croupier_core::event::WorkerId(1);
    table.tell(croupier_core::event::Event::Listening { worker, listener });
    table.run_for(MS);
    table.outgrows(1);
    within(&mut table, 2 * SEC, |table| {
        reported(table, |r| matches!(r, Report::RecycleFailed { fault: Fault::NotReady, .. })) == 1
    });
    assert_eq!(name(&table, 1), "ready");
}

// ---- admission

fn total(slots: u16, max: u32) -> Config {
    limited(slots, Limits { max_total: Some(max), ..Limits::NONE })
}

#[test]
fn beyond_the_total_clients_wait_and_each_close_lets_one_in() {
    let mut table = Table::of(total(3, 4), Habit::event_loop(300 * MS));
    table.start();
    clients(&mut table, 7);
    table.run_for(20 * MS);
    assert_eq!(table.listeners[&0].waiting.len(), 3);
    assert!(!table.listeners[&0].armed);
    // Nothing happens until somebody closes.
    let turns = table.story.turns;
    table.run_for(19 * MS);
    assert!(table.story.turns - turns <= 2);
    table.run_for(300 * MS);
    assert_eq!((table.story.served.len(), table.listeners[&0].waiting.len()), (4, 0));
    table.run_for(400 * MS);
    assert_eq!(table.story.served.len(), 7);
    assert_eq!(table.core.poll_timeout(), None);
}

#[test]
fn a_lost_doorbell_only_delays() {
    let habit = Habit { bell_lost: true, ..Habit::event_loop(100 * MS) };
    let mut table = Table::of(total(2, 2), habit);
    table.start();
    clients(&mut table, 4);
    within(&mut table, 2 * SEC, |table| table.story.served.len() == 4);
}

#[test]
fn connections_of_the_dead_and_the_draining_count_as_long_as_they_are_open() {
    let mut table = Table::of(total(2, 2), Habit::event_loop(2 * SEC));
    table.start();
    clients(&mut table, 3);
    table.run_for(10 * MS);
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 1) == "parked");
    assert_eq!(table.listeners[&0].waiting.len(), 1, "the parked one still serves");
    table.exit(1, ExitStatus::Signal(9), false);
    within(&mut table, 100 * MS, |table| table.listeners[&0].waiting.is_empty());
    assert_eq!(table.story.lost.len(), 1);
}

fn waiting(slots: u16, millis: u64, most: u16) -> Config {
    let limits = Limits {
        max_queue_wait: Some(Duration::from_millis(millis)),
        waiting_max: most,
        ..Limits::NONE
    };
    Config { queue_limit: 1, ..limited(slots, limits) }
}

#[test]
fn who_comes_when_others_have_waited_for_too_long_is_reset() {
    let mut table = Table::of(waiting(1, 1000, 16), Habit::blocking(1500 * MS));
    table.start();
    // One is served, one is queued, three wait.
    clients(&mut table, 5);
    table.run_for(600 * MS);
    assert_eq!(table.core.held(), 3, "taken in hand");
    assert!(table.story.shed.is_empty());
    table.run_for(700 * MS);
    let late = table.client(Client::Local);
    let later = table.client(Client::Local);
    table.run_for(MS);
    assert_eq!(table.story.shed.iter().copied().collect::<Vec<_>>(), [late, later], "at once");
    within(&mut table, 20 * SEC, |table| table.story.served.len() == 5);
    assert_eq!(table.core.totals().shed, 2);
    let episodes = [
        reported(&table, |report| matches!(report, Report::ShedBegan { waiting: 3, .. })),
        reported(&table, |report| matches!(report, Report::ShedEnded { shed: 2 })),
    ];
    table.run_for(20 * SEC);
    assert_eq!(episodes[0], 1);
    assert_eq!(reported(&table, |report| matches!(report, Report::ShedEnded { shed: 2 })), 1);
    assert_eq!(table.core.poll_timeout(), None);
    // In the order in which they came.
    let served: Vec<u64> = table.story.claims.iter().map(|(_, serial, _)| *serial).collect();
    assert_eq!(served, [1, 2, 3, 4, 5]);
    // There is room again.
    let again = table.client(Client::Local);
    table.run_for(2 * SEC);
    assert!(table.story.served.contains(&again));
}

#[test]
fn nobody_waits_for_much_longer_than_that_under_any_load() {
    // 100 a second are served, 200 come; 4 workers, one a little slow.
    let mut table = Table::of(waiting(4, 400, 1024), Habit::blocking(40 * MS));
    table.start();
    for _ in 0..2000 {
        table.client(Client::Local);
        table.run_for(5 * MS);
    }
    within(&mut table, 3 * SEC, Table::is_quiet);
    let story = &table.story;
    assert!((800..1200).contains(&story.shed.len()), "{}", story.shed.len());
    let first = story.claims[0].1;
    let mut longest = 0;
    for (claimed, serial, _) in &story.claims {
        // One every 5 ms.
        let came = story.claims[0].0 + (serial - first) * 5 * MS;
        longest = longest.max(claimed.saturating_sub(came));
    }
    // Who came last before the first was reset waits for all that came in 400 ms, at half the pace.
    assert!((400 * MS..900 * MS).contains(&longest), "{} ms", longest / MS);
    assert_eq!(
        reported(&table, |report| matches!(report, Report::ShedBegan { .. })),
        1,
        "one line"
    );
}

#[test]
fn what_does_not_fit_in_hand_waits_in_the_backlog() {
    let mut table = Table::of(waiting(1, 1000, 2), Habit::blocking(300 * MS));
    table.start();
    clients(&mut table, 8);
    table.run_for(550 * MS);
    // One is served, one is being served, one is queued.
    assert_eq!((table.core.held(), table.listeners[&0].waiting.len()), (2, 3));
    within(&mut table, 3 * SEC, |table| table.story.served.len() == 8);
    assert!(table.story.shed.is_empty(), "nobody in hand waited for as long as that");
}

/// Every claim comes just before the word that would have made it ring.
#[test]
fn no_bell_for_those_in_hand_is_trusted() {
    let mut table = Table::of(waiting(1, 2000, 16), Habit::event_loop(200 * MS));
    table.start();
    table.room.players.get_mut(&1).unwrap().habit.stuck_until = table.now + 600 * MS;
    clients(&mut table, 9);
    table.run_for(590 * MS);
    assert_eq!((table.core.held(), table.listeners[&0].armed), (8, true));
    table.race_permille = 1000;
    table.run_for(12 * MS);
    assert_eq!(table.core.held(), 0, "dealt in one go: {}", table.picture());
}

#[test]
fn a_stop_sheds_nobody_and_serves_who_waits() {
    let mut table = Table::of(waiting(1, 200, 16), Habit::blocking(400 * MS));
    table.start();
    clients(&mut table, 6);
    table.run_for(150 * MS);
    assert_eq!(table.core.held(), 4);
    table.stop(false);
    within(&mut table, 9 * SEC, |table| table.story.outcome.is_some());
    assert_eq!((table.story.served.len(), table.story.shed.len()), (6, 0));
}

#[test]
fn when_nobody_is_there_clients_are_reset_too() {
    let mut table = Table::of(waiting(1, 500, 16), Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| Habit { start: 3 * SEC, ..Habit::default() });
    table.exit(1, ExitStatus::Signal(9), false);
    table.run_for(10 * MS);
    let first = table.client(Client::Local);
    table.run_for(SEC);
    let second = table.client(Client::Local);
    table.run_for(3 * SEC);
    assert!(table.story.served.contains(&first) && table.story.shed.contains(&second));
}

#[test]
fn total_and_waiting_work_together() {
    let limits = Limits {
        max_total: Some(2),
        max_queue_wait: Some(Duration::from_millis(500)),
        waiting_max: 16,
        ..Limits::NONE
    };
    let mut table = Table::of(limited(2, limits), Habit::event_loop(2 * SEC));
    table.start();
    clients(&mut table, 3);
    table.run_for(700 * MS);
    assert_eq!(table.core.held(), 1);
    let late = table.client(Client::Local);
    table.run_for(10 * MS);
    assert!(table.story.shed.contains(&late));
    within(&mut table, 5 * SEC, |table| table.story.served.len() == 3);
}
