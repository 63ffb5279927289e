//! What a reload promises, each decision of `reload.rs` on a table of its own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod table;

use std::time::Duration;

use croupier_core::config::{Config, Policy, ReadyRule, Surge};
use croupier_core::event::{
    Client, CutReason, Event, ExitStatus, Fault, Generation, ListenerId, Outcome, ReloadFault,
    Report, SlotId, WorkerId,
};

use table::players::Habit;
use table::{MS, SEC, Table, busy_for, config, name, within};

const NEW: Generation = Generation(2);

fn at(table: &Table, is_it: impl Fn(&Report) -> bool) -> Vec<u64> {
    table.story.reports.iter().filter(|(_, report)| is_it(report)).map(|(at, _)| *at).collect()
}

fn reported(table: &Table, is_it: impl Fn(&Report) -> bool) -> usize {
    at(table, is_it).len()
}

fn done(table: &Table) -> bool {
    reported(table, |r| *r == Report::ReloadDone { generation: NEW }) == 1
}

fn over(table: &Table) -> bool {
    reported(table, |r| *r == Report::ReloadOver { generation: NEW }) == 1
}

fn failure(table: &Table) -> Option<(ReloadFault, u16)> {
    let mut failures = table.story.reports.iter().filter_map(|(_, report)| {
        if let Report::ReloadFailed { why, kept, .. } = report { Some((*why, *kept)) } else { None }
    });
    let first = failures.next();
    assert_eq!(failures.next(), None, "failed twice");
    first
}

/// Slot, worker, generation and state of everybody who lives.
fn everybody(table: &Table) -> Vec<(u16, u32, u32, &'static str)> {
    let views = table.core.workers();
    views.map(|view| (view.slot.0, view.worker.0, view.generation.0, view.state)).collect()
}

#[test]
fn a_reload_replaces_everybody_and_loses_nobody() {
    let config = Config { max_surge: Surge::Count(2), ..config(4, Policy::Least) };
    let mut table = Table::of(config, Habit::blocking(3 * MS));
    table.start();
    busy_for(&mut table, 100 * MS);
    let begun = table.now;
    table.reload(false);
    while !over(&table) {
        busy_for(&mut table, 20 * MS);
        assert!(table.now - begun < 10 * SEC, "{}", table.picture());
    }
    within(&mut table, SEC, Table::is_quiet);
    assert_eq!(
        everybody(&table),
        [(0, 5, 2, "ready"), (1, 6, 2, "ready"), (2, 7, 2, "ready"), (3, 8, 2, "ready")]
    );
    assert!(table.story.lost.is_empty() && table.story.refused.is_empty());
    assert_eq!(table.story.kills.len(), 4, "only what is left of those that ended");
    assert_eq!(reported(&table, |r| matches!(r, Report::Drained { .. })), 4);
    let restarts: Vec<u32> = table.core.slots().map(|slot| slot.restarts).collect();
    assert_eq!(restarts, [0; 4], "a reload is no restart");
    // 50 ms to start, 1 s of soak, two rounds of 50 ms, 1 s of soak.
    let took = at(&table, |r| *r == Report::ReloadDone { generation: NEW })[0] - begun;
    assert!((2150 * MS..2250 * MS).contains(&took), "{} ms", took / MS);
}

#[test]
fn nobody_else_starts_before_the_canary_has_held_and_nobody_drains_before_all_have() {
    let mut table = Table::of(config(3, Policy::Least), Habit::default());
    table.start();
    table.reload(false);
    table.run_for(900 * MS);
    assert_eq!(
        everybody(&table),
        [(0, 1, 1, "parked"), (1, 2, 1, "ready"), (2, 3, 1, "ready"), (0, 4, 2, "ready")]
    );
    within(&mut table, SEC, |table| name(table, 6) == "ready");
    table.run_for(900 * MS);
    for old in [1, 2, 3] {
        assert_eq!(name(&table, old), "parked");
    }
    assert!(table.story.signals.is_empty());
    within(&mut table, SEC, done);
    assert_eq!(table.core.ready_count(), 3);
}

#[test]
fn surge_limits_how_many_start_at_a_time() {
    for surge in [1, 2, 5] {
        let config = Config { max_surge: Surge::Count(surge), ..config(6, Policy::Least) };
        let mut table = Table::of(config, Habit::default());
        table.start();
        table.reload(false);
        let mut most = 0;
        while !over(&table) {
            let starting = everybody(&table).iter().filter(|(.., s)| *s == "starting").count();
            most = most.max(starting);
            table.run_for(5 * MS);
        }
        assert_eq!(most, usize::from(surge));
    }
}

#[test]
fn a_parked_worker_gives_its_queue_back_and_finishes_what_it_has() {
    let mut table = Table::of(config(1, Policy::Least), Habit::blocking(300 * MS));
    table.start();
    for _ in 0..2 {
        table.client(Client::Local);
        table.run_for(2 * MS);
    }
    assert_eq!((table.room.players[&1].active.len(), table.room.players[&1].queue.len()), (1, 1));
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 1) == "parked");
    table.run_for(5 * MS);
    assert_eq!(table.room.players[&1].queue.len(), 0);
    assert_eq!((table.room.players[&1].active.len(), table.room.players[&2].active.len()), (1, 1));
    within(&mut table, 5 * SEC, over);
    assert_eq!((table.story.served.len(), table.story.lost.len()), (2, 0));
}

#[test]
fn an_old_worker_that_does_not_finish_is_cut_at_the_drain_timeout() {
    let config = Config { drain_timeout: Duration::from_secs(3), ..config(1, Policy::Least) };
    let mut table = Table::of(config, Habit::event_loop(100 * SEC));
    table.start();
    table.client(Client::Local);
    table.run_for(MS);
    table.reload(false);
    within(&mut table, 3 * SEC, done);
    let decided = table.now;
    within(&mut table, 5 * SEC, over);
    assert!((3 * SEC..3 * SEC + 50 * MS).contains(&(table.now - decided)));
    let cut = Report::DrainCut { worker: WorkerId(1), active: Some(1), why: CutReason::Time };
    assert_eq!(reported(&table, |r| *r == cut), 1);
}

/// Each way in which the worker of one slot does not hold, with the canary and with a later one.
#[test]
fn any_failure_brings_the_old_generation_back() {
    let crash = ExitStatus::Code(3);
    let exits = |after| Some((after, crash, false));
    let failures = [
        (
            Habit { exits: exits(0), never_ready: true, ..Habit::default() },
            false,
            Fault::Ended(crash),
        ),
        (Habit { never_ready: true, ..Habit::default() }, false, Fault::NotReady),
        (Habit { exits: exits(500 * MS), ..Habit::default() }, true, Fault::Ended(crash)),
        (
            Habit { exits: Some((MS, ExitStatus::Code(0), true)), ..Habit::default() },
            true,
            Fault::Ended(ExitStatus::Code(0)),
        ),
        (Habit { spawn_fails: true, ..Habit::default() }, false, Fault::NotStarted),
    ];
    for (habit, was_ready, fault) in failures {
        for slot in [0, 2] {
            let what = format!("slot {slot}, {habit:?}");
            let config = Config {
                ready_timeout: Duration::from_secs(2),
                max_surge: Surge::Count(2),
                ..config(4, Policy::Least)
            };
            let mut table = Table::of(config, Habit::blocking(3 * MS));
            table.start();
            let bad = habit.clone();
            table.habits =
                Box::new(
                    move |at, _, _| {
                        if at.0 == slot { bad.clone() } else { Habit::blocking(3 * MS) }
                    },
                );
            table.reload(false);
            let begun = table.now;
            while !over(&table) {
                busy_for(&mut table, 20 * MS);
                assert!(table.now - begun < 20 * SEC, "{what}: {}", table.picture());
            }
            within(&mut table, SEC, Table::is_quiet);
            let worker = failure(&table).unwrap();
            let (ReloadFault::Worker { worker, slot: at, was_ready: was, fault: said }, kept) =
                worker
            else {
                panic!("{what}: {worker:?}");
            };
            assert_eq!((at.0, was, said, kept), (slot, was_ready, fault, 0), "{what}, {worker:?}");
            let old: Vec<_> = (0..4).map(|at| (at, u32::from(at) + 1, 1, "ready")).collect();
            assert_eq!(everybody(&table), old, "{what}");
            let states: Vec<_> =
                table.core.slots().map(|slot| (slot.state, slot.restarts)).collect();
            assert_eq!(states, [("up", 0); 4], "{what}");
            assert!(table.story.lost.len() <= 1, "{what}: what the dying one had in its hands");
            assert!(table.story.refused.is_empty(), "{what}");
            assert!(!done(&table), "{what}");
        }
    }
}

#[test]
fn a_new_worker_must_listen_on_all_that_the_old_one_does() {
    for rule in [ReadyRule::Listen, ReadyRule::Notify, ReadyRule::Start] {
        let config = Config {
            ready: rule,
            ready_timeout: Duration::from_secs(2),
            ..config(1, Policy::Least)
        };
        let habit = |listeners| Habit { listeners, says_ready: true, ..Habit::default() };
        let mut table = Table::of(config, habit(vec![0, 1]));
        // The second one is the program's own idea.
        table.tell(Event::ListenerOpened {
            listener: ListenerId(1),
            declared: false,
            policy: Policy::Least,
        });
        table.start();
        // With `start` it is ready before it listens.
        table.run_for(100 * MS);
        table.habits = Box::new(move |_, _, _| habit(vec![0]));
        table.reload(false);
        within(&mut table, 5 * SEC, over);
        let fault = ReloadFault::Worker {
            worker: WorkerId(2),
            slot: SlotId(0),
            was_ready: false,
            fault: Fault::NotReady,
        };
        assert_eq!(failure(&table), Some((fault, 0)), "{rule:?}");
        assert_eq!(everybody(&table), [(0, 1, 1, "ready")], "{rule:?}");
    }
}

#[test]
fn where_the_slot_has_nobody_any_other_old_worker_shows_what_to_listen_on() {
    let config = Config { ready_timeout: Duration::from_secs(2), ..config(2, Policy::Least) };
    let habit = |listeners| Habit { listeners, ..Habit::default() };
    let mut table = Table::of(config, habit(vec![0, 1]));
    table.tell(Event::ListenerOpened {
        listener: ListenerId(1),
        declared: false,
        policy: Policy::Least,
    });
    table.start();
    table.habits = Box::new(move |_, _, _| Habit { start: 100 * SEC, ..habit(vec![0, 1]) });
    table.exit(1, ExitStatus::Code(1), false);
    table.run_for(10 * MS);
    table.habits = Box::new(move |_, _, _| habit(vec![0]));
    table.reload(false);
    within(&mut table, 5 * SEC, |table| failure(table).is_some());
}

#[test]
fn a_parked_worker_that_ends_is_not_missed() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 1) == "parked");
    table.exit(1, ExitStatus::Signal(11), false);
    within(&mut table, 5 * SEC, over);
    assert!(done(&table));
    assert_eq!(everybody(&table), [(0, 3, 2, "ready"), (1, 4, 2, "ready")]);
    assert_eq!(reported(&table, |r| matches!(r, Report::Died { .. })), 1);
}

#[test]
fn when_the_parked_one_is_gone_a_failure_leaves_the_new_one_where_it_is() {
    let mut table = Table::new(config(2, Policy::Least), 1);
    table.habits = Box::new(|_, worker, _| Habit {
        exits: (worker.0 == 4).then_some((10 * MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    table.start();
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 1) == "parked");
    table.exit(1, ExitStatus::Signal(11), false);
    within(&mut table, 5 * SEC, over);
    let (_, kept) = failure(&table).unwrap();
    assert_eq!(kept, 1);
    assert_eq!(everybody(&table), [(1, 2, 1, "ready"), (0, 3, 2, "ready")]);
    // It is restarted under the number that it has.
    table.exit(3, ExitStatus::Code(1), false);
    table.start_within(5 * SEC);
    assert_eq!(everybody(&table)[1].2, 2);
}

#[test]
fn an_old_worker_that_crashes_before_its_turn_is_restarted_under_the_old_number() {
    let mut table = Table::of(config(3, Policy::Least), Habit::default());
    table.start();
    table.reload(false);
    table.run_for(10 * MS);
    table.exit(3, ExitStatus::Signal(6), false);
    table.run_for(100 * MS);
    let restarted = everybody(&table).into_iter().find(|(_, worker, ..)| *worker == 5).unwrap();
    assert_eq!(restarted, (2, 5, 1, "ready"));
    within(&mut table, 5 * SEC, over);
    assert!(done(&table));
    assert!(everybody(&table).iter().all(|(.., generation, _)| *generation == 2));
}

#[test]
fn an_old_worker_that_crashes_while_its_next_one_starts_is_not_restarted() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| Habit { start: 2 * SEC, ..Habit::default() });
    table.reload(false);
    table.run_for(10 * MS);
    table.exit(1, ExitStatus::Signal(6), false);
    table.run_for(SEC);
    assert_eq!(everybody(&table), [(1, 2, 1, "ready"), (0, 3, 2, "starting")]);
    within(&mut table, 20 * SEC, over);
    assert!(done(&table));
}

#[test]
fn slots_that_have_nobody_go_first_and_a_new_worker_is_a_fresh_record() {
    let base = config(3, Policy::Least);
    let restart = croupier_core::config::RestartPolicy { budget: 4, ..base.restart };
    for failed in [false, true] {
        let mut table = Table::new(Config { restart, ..base }, 1);
        table.habits = Box::new(|slot, _, _| Habit {
            exits: (slot.0 == 2).then_some((10 * MS, ExitStatus::Code(1), false)),
            ..Habit::default()
        });
        let state = if failed { "failed" } else { "backoff" };
        within(&mut table, 5 * SEC, |table| {
            let slot = table.core.slots().nth(2).unwrap();
            let next = table.core.workers().last().unwrap().worker.0;
            slot.state == state && table.core.ready_count() == 2 && next >= 2
        });
        table.habits = Box::new(|_, _, _| Habit::default());
        let newest = table.core.workers().last().unwrap().worker.0;
        table.reload(false);
        table.run_for(10 * MS);
        let first = everybody(&table).into_iter().find(|(.., generation, _)| *generation == 2);
        assert_eq!(first.unwrap().0, 2, "newest was {newest}: {}", table.picture());
        within(&mut table, 10 * SEC, over);
        assert!(done(&table));
        let states: Vec<_> = table.core.slots().map(|slot| slot.state).collect();
        assert_eq!(states, ["up"; 3]);
        // The first crash of a fresh record costs no wait.
        let last = everybody(&table).into_iter().find(|(slot, ..)| *slot == 2).unwrap().1;
        table.exit(last, ExitStatus::Code(1), false);
        table.start_within(200 * MS);
    }
}

#[test]
fn a_reload_rescues_slots_that_have_all_failed_meanwhile() {
    let base = config(2, Policy::Least);
    let restart = croupier_core::config::RestartPolicy { budget: 1, ..base.restart };
    for holds in [true, false] {
        let mut table = Table::of(Config { restart, ..base }, Habit::default());
        table.start();
        let exits = (!holds).then_some((3 * SEC, ExitStatus::Code(1), false));
        table.habits = Box::new(move |_, _, _| Habit {
            start: 2 * SEC,
            exits,
            never_ready: !holds,
            ..Habit::default()
        });
        table.reload(false);
        table.run_for(10 * MS);
        // Younger than min-uptime: crashes, and the budget is one.
        table.exit(1, ExitStatus::Code(1), false);
        table.exit(2, ExitStatus::Code(1), false);
        table.run_for(SEC);
        assert_eq!(table.story.outcome, None);
        if holds {
            within(&mut table, 20 * SEC, over);
            assert_eq!(everybody(&table), [(0, 3, 2, "ready"), (1, 4, 2, "ready")]);
        } else {
            within(&mut table, 20 * SEC, |table| table.story.outcome.is_some());
            assert_eq!(table.story.outcome.unwrap().1, Outcome::AllFailed);
        }
    }
}

#[test]
fn two_requests_that_queue_are_one() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    for _ in 0..4 {
        table.reload(false);
        table.run_for(10 * MS);
    }
    assert_eq!(reported(&table, |r| *r == Report::ReloadQueued), 3);
    within(&mut table, 20 * SEC, |table| {
        reported(table, |r| *r == Report::ReloadOver { generation: Generation(3) }) == 1
    });
    table.run_for(10 * SEC);
    assert_eq!(reported(&table, |r| matches!(r, Report::ReloadBegan { .. })), 2);
    assert_eq!(everybody(&table), [(0, 5, 3, "ready"), (1, 6, 3, "ready")]);
    assert_eq!(table.core.poll_timeout(), None);
}

/// A host that has no memory for two generations has none when somebody asks without `--rolling`, too.
#[test]
fn of_requests_that_queue_one_that_rolls_is_enough() {
    for (asked, rolls) in [
        ([true, false], true),
        ([false, true], true),
        ([true, true], true),
        ([false, false], false),
    ] {
        let mut table = Table::of(config(2, Policy::Least), Habit::default());
        table.start();
        table.reload(false);
        for rolling in asked {
            table.reload(rolling);
        }
        let began = Report::ReloadBegan { generation: Generation(3), rolling: rolls };
        within(&mut table, 20 * SEC, |table| reported(table, |r| *r == began) == 1);
        assert_eq!(reported(&table, |r| matches!(r, Report::ReloadBegan { .. })), 2, "{asked:?}");
    }
}

#[test]
fn a_queued_request_begins_after_a_failure_too() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.habits = Box::new(|_, worker, _| Habit {
        exits: (worker.0 == 3).then_some((500 * MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    table.reload(false);
    table.reload(false);
    within(&mut table, 20 * SEC, |table| {
        reported(table, |r| *r == Report::ReloadDone { generation: Generation(3) }) == 1
    });
    assert!(failure(&table).is_some());
    within(&mut table, 5 * SEC, |table| table.room.players.len() == 2);
    assert!(everybody(&table).iter().all(|(.., generation, _)| *generation == 3));
}

#[test]
fn where_every_slot_is_stopped_nobody_is_watched_and_the_next_start_tries_it() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.stop_slot(0);
    table.stop_slot(1);
    within(&mut table, SEC, |table| everybody(table).is_empty());
    table.reload(false);
    table.run_for(MS);
    assert!(done(&table) && over(&table), "at once");
    assert_eq!(reported(&table, |r| matches!(r, Report::Soaking { .. })), 0);
    table.start_slot(1);
    within(&mut table, SEC, |table| everybody(table) == [(1, 3, 2, "ready")]);
}

#[test]
fn a_stop_wins_at_every_moment_of_a_reload() {
    for moment in [0, 20, 60, 500, 1055, 1080, 1500, 2150] {
        for now in [false, true] {
            let mut table = Table::of(config(2, Policy::Least), Habit::blocking(MS));
            table.start();
            table.reload(false);
            busy_for(&mut table, moment * MS + 1);
            let queued = table.now;
            table.reload(false);
            table.stop(now);
            within(&mut table, 5 * SEC, |table| table.story.outcome.is_some());
            let wanted = if now { Outcome::Killed } else { Outcome::Stopped };
            assert_eq!(table.story.outcome.unwrap().1, wanted, "{moment} ms");
            assert!(table.room.players.is_empty(), "{moment} ms");
            if !now {
                assert!(table.story.lost.is_empty(), "{moment} ms: {:?}", table.story.lost);
                assert!(table.now - queued < SEC, "{moment} ms");
            }
            let began = reported(&table, |r| matches!(r, Report::ReloadBegan { .. }));
            let ended = reported(&table, |r| matches!(r, Report::ReloadFailed { .. }))
                + reported(&table, |r| matches!(r, Report::ReloadDone { .. }));
            assert_eq!(began, ended, "{moment} ms: each has one end");
        }
    }
}

#[test]
fn while_everything_stops_a_reload_is_refused() {
    let mut table = Table::of(config(1, Policy::Least), Habit::event_loop(SEC));
    table.start();
    table.client(Client::Local);
    table.run_for(MS);
    table.stop(false);
    table.run_for(50 * MS);
    table.reload(false);
    table.run_for(50 * MS);
    assert_eq!(reported(&table, |r| *r == Report::ReloadRefused), 1);
    assert_eq!(everybody(&table), [(0, 1, 1, "draining")]);
}

#[test]
fn rolling_never_has_more_than_the_surge_beside_the_old() {
    let config = Config { max_surge: Surge::Count(2), ..config(5, Policy::Least) };
    let mut table = Table::of(config, Habit::blocking(3 * MS));
    table.start();
    table.reload(true);
    let mut most = 0;
    let begun = table.now;
    while !over(&table) {
        busy_for(&mut table, 10 * MS);
        most = most.max(table.room.players.values().filter(|player| player.is_running()).count());
        assert!(table.core.ready_count() >= 5);
        assert!(table.now - begun < 20 * SEC, "{}", table.picture());
    }
    assert_eq!(most, 7);
    assert!(done(&table) && table.story.lost.is_empty());
    assert!(everybody(&table).iter().all(|(.., generation, _)| *generation == 2));
}

#[test]
fn a_rolling_reload_that_fails_leaves_a_mixed_generation_and_says_so() {
    let config = Config { max_surge: Surge::Count(1), ..config(4, Policy::Least) };
    let mut table = Table::of(config, Habit::default());
    table.start();
    table.habits = Box::new(|slot, _, _| Habit {
        exits: (slot.0 == 2).then_some((500 * MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    table.reload(true);
    within(&mut table, 10 * SEC, over);
    assert_eq!(failure(&table).unwrap().1, 2);
    table.run_for(SEC);
    assert_eq!(
        everybody(&table),
        [(2, 3, 1, "ready"), (3, 4, 1, "ready"), (0, 5, 2, "ready"), (1, 6, 2, "ready")]
    );
}

#[test]
fn no_more_drain_than_may() {
    let config = Config {
        max_draining: Some(3),
        soak: Duration::ZERO,
        drain_timeout: Duration::from_secs(1000),
        ..config(2, Policy::Least)
    };
    let mut table = Table::of(config, Habit::event_loop(900 * SEC));
    table.start();
    for generation in 2..6 {
        // One client for each worker.
        for _ in 0..2 {
            table.client(Client::Local);
            table.run_for(MS);
        }
        table.reload(false);
        within(&mut table, 5 * SEC, |table| {
            reported(table, |r| *r == Report::ReloadDone { generation: Generation(generation) })
                == 1
        });
        table.run_for(100 * MS);
        let draining: Vec<u32> = everybody(&table)
            .iter()
            .filter(|(.., state)| *state == "draining")
            .map(|(_, worker, ..)| *worker)
            .collect();
        let newest = 2 * (generation - 1);
        let oldest = newest.saturating_sub(2).max(1);
        assert_eq!(draining, (oldest..=newest).collect::<Vec<_>>(), "the oldest went");
    }
    assert_eq!(table.story.lost.len(), 5);
    assert_eq!(
        reported(&table, |r| matches!(
            r,
            Report::DrainCut { active: Some(1), why: CutReason::Crowd, .. }
        )),
        5
    );
}

#[test]
fn without_hand_offs_the_old_are_told_to_end_once_the_new_hold() {
    for policy in [Policy::Shared, Policy::Reuseport] {
        let mut table = Table::of(config(2, policy), Habit::default());
        table.start();
        table.reload(false);
        table.run_for(2 * SEC);
        assert!(table.story.signals.is_empty(), "{policy:?}");
        within(&mut table, 2 * SEC, over);
        assert_eq!(table.story.signals.len(), 2, "{policy:?}");
        assert!(table.story.adopted.is_empty(), "{policy:?}");
        assert_eq!(everybody(&table), [(0, 3, 2, "ready"), (1, 4, 2, "ready")], "{policy:?}");
    }
}

#[test]
fn sticky_clients_stay_with_their_slots() {
    let mut table = Table::of(config(4, Policy::Ip), Habit::default());
    table.start();
    let slots = |table: &mut Table| -> Vec<u16> {
        let first = table.story.hand_offs.len();
        for host in 0..40 {
            table.client(Client::V4([10, 0, 0, host]));
            table.run_for(MS);
        }
        table.story.hand_offs[first..]
            .iter()
            .map(|(_, _, worker)| table.room.players[worker].slot.0)
            .collect()
    };
    let before = slots(&mut table);
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 1) == "parked");
    assert_eq!(slots(&mut table), before, "in the middle");
    within(&mut table, 10 * SEC, over);
    assert_eq!(slots(&mut table), before, "afterwards");
}

#[test]
fn a_worker_that_comes_back_is_no_stranger() {
    let config = Config { slow_start: Duration::from_secs(10), ..config(2, Policy::Least) };
    let mut table = Table::of(config, Habit::event_loop(50 * MS));
    table.start();
    busy_for(&mut table, 50 * MS);
    table.habits = Box::new(|_, _, _| Habit {
        exits: Some((300 * MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    table.reload(false);
    within(&mut table, SEC, over);
    assert!(failure(&table).is_some());
    within(&mut table, SEC, Table::is_quiet);
    let first = table.story.hand_offs.len();
    busy_for(&mut table, 100 * MS);
    let new = &table.story.hand_offs[first..];
    let to_the_first = new.iter().filter(|(_, _, worker)| *worker == 1).count();
    assert!((45..=55).contains(&to_the_first), "its whole share: {to_the_first} of {}", new.len());
}
