//! What slots by hand promise, each row of `wants.rs` on a table of its own, and exits that are meant.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod table;

use std::time::Duration;

use croupier_core::Want;
use croupier_core::config::{Config, ExitCodes, Policy, RestartPolicy, Surge};
use croupier_core::event::{
    Client, CutReason, ExitStatus, Generation, Outcome, ReloadFault, Report, SlotId, WorkerId,
};

use table::players::Habit;
use table::{MS, SEC, Table, busy_for, config, name, within};

const NEW: Generation = Generation(2);

fn reported(table: &Table, is_it: impl Fn(&Report) -> bool) -> usize {
    table.story.reports.iter().filter(|(_, report)| is_it(report)).count()
}

fn outcome(table: &Table) -> Option<Outcome> {
    table.story.outcome.map(|(_, outcome)| outcome)
}

fn states(table: &Table) -> Vec<&'static str> {
    table.core.slots().map(|slot| slot.state).collect()
}

/// Slot, worker, generation and state of everybody who lives.
fn everybody(table: &Table) -> Vec<(u16, u32, u32, &'static str)> {
    let views = table.core.workers();
    views.map(|view| (view.slot.0, view.worker.0, view.generation.0, view.state)).collect()
}

/// Budget and tries so small that a test sees their end.
fn short_tempered(slots: u16) -> Config {
    let base = config(slots, Policy::Least);
    Config { restart: RestartPolicy { budget: 3, ..base.restart }, ..base }
}

fn meant(slots: u16, codes: &[u8]) -> Config {
    let stop_exit_codes = codes.iter().fold(ExitCodes::default(), |all, code| all.with(*code));
    Config { stop_exit_codes, ..short_tempered(slots) }
}

#[test]
fn a_stopped_slot_drains_and_the_others_take_its_clients() {
    let mut table = Table::of(config(3, Policy::Least), Habit::blocking(4 * MS));
    table.start();
    for _ in 0..60 {
        table.client(Client::Local);
    }
    table.run_for(10 * MS);
    assert!(!table.room.players[&2].queue.is_empty());
    table.stop_slot(1);
    table.run_for(MS);
    assert_eq!((states(&table)[1], name(&table, 2)), ("down", "draining"));
    within(&mut table, SEC, |table| name(table, 2) == "forgotten" && table.is_quiet());
    assert_eq!((table.story.served.len(), table.story.lost.len()), (60, 0));
    assert_eq!(reported(&table, |r| *r == Report::SlotStopped { slot: SlotId(1) }), 1);
    assert_eq!(reported(&table, |r| matches!(r, Report::Died { .. })), 0);
    busy_for(&mut table, 100 * MS);
    table.run_for(20 * SEC);
    assert_eq!(states(&table), ["up", "down", "up"], "it stays stopped");
    assert_eq!(table.core.poll_timeout(), None);
    let slot = table.core.slots().nth(1).unwrap();
    assert_eq!((slot.want, slot.restarts, slot.crashes), (Want::DownByHand, 0, 0));
    table.stop_slot(1);
    table.run_for(SEC);
    assert_eq!(reported(&table, |r| matches!(r, Report::SlotStopped { .. })), 1, "it was down");
}

#[test]
fn what_is_not_done_at_the_drain_timeout_is_cut() {
    let config = Config { drain_timeout: Duration::from_secs(3), ..config(2, Policy::Least) };
    let mut table = Table::of(config, Habit::event_loop(100 * SEC));
    table.start();
    for _ in 0..2 {
        table.client(Client::Local);
        table.run_for(MS);
    }
    table.stop_slot(0);
    table.run_for(2900 * MS);
    assert_eq!(name(&table, 1), "draining");
    table.run_for(200 * MS);
    let cut = Report::DrainCut { worker: WorkerId(1), active: Some(1), why: CutReason::Time };
    assert_eq!(reported(&table, |r| *r == cut), 1);
    assert_eq!((name(&table, 1), name(&table, 2)), ("forgotten", "ready"));
}

#[test]
fn a_starting_slot_that_is_stopped_is_not_tried_again() {
    let mut table = Table::of(config(2, Policy::Least), Habit { start: SEC, ..Habit::default() });
    table.run_for(100 * MS);
    table.stop_slot(1);
    table.run_for(100 * MS);
    assert_eq!((states(&table)[1], name(&table, 2)), ("down", "forgotten"));
    within(&mut table, 2 * SEC, Table::all_ready);
    assert_eq!(reported(&table, |r| *r == Report::AllReady), 1, "all that are wanted");
    table.run_for(20 * SEC);
    assert_eq!(table.core.workers().count(), 1);
}

/// A slot that waits before its next start, or has failed: stopped it is not tried again; started it
/// is tried at once, and its crashes are forgotten.
#[test]
fn stop_and_start_of_slots_in_backoff_and_failed() {
    for state in ["backoff", "failed"] {
        for stopped_before in [false, true] {
            let mut table = Table::new(short_tempered(2), 1);
            table.habits = Box::new(|slot, _, _| Habit {
                exits: (slot.0 == 1).then_some((MS, ExitStatus::Code(1), false)),
                ..Habit::default()
            });
            within(&mut table, 10 * SEC, |table| states(table) == ["up", state]);
            if stopped_before {
                table.stop_slot(1);
                table.run_for(30 * SEC);
                assert_eq!(states(&table), ["up", "down"], "{state}");
            }
            table.habits = Box::new(|_, _, _| Habit::default());
            let asked = table.now;
            table.start_slot(1);
            within(&mut table, 500 * MS, |table| states(table) == ["up", "up"]);
            assert!(table.now - asked < 60 * MS, "at once: {} ms", (table.now - asked) / MS);
            assert_eq!(table.core.slots().nth(1).unwrap().crashes, 0);
            // The first crash of a fresh record costs no wait.
            let last = table.core.workers().last().unwrap().worker.0;
            table.exit(last, ExitStatus::Code(1), false);
            table.start_within(200 * MS);
        }
    }
}

#[test]
fn a_start_of_what_is_up_or_starting_changes_nothing() {
    let mut table = Table::of(config(2, Policy::Least), Habit { start: SEC, ..Habit::default() });
    table.run_for(100 * MS);
    table.start_slot(0);
    table.start_slot(7);
    within(&mut table, 2 * SEC, Table::all_ready);
    table.start_slot(0);
    table.stop_slot(7);
    table.run_for(SEC);
    assert_eq!(everybody(&table), [(0, 1, 1, "ready"), (1, 2, 1, "ready")]);
}

/// The next try is under way: what became of the one before is no answer to this.
#[test]
fn a_start_of_what_is_tried_again_forgets_the_crash() {
    let mut table = Table::of(config(1, Policy::Least), Habit { start: SEC, ..Habit::default() });
    table.start();
    let crashes = |table: &Table| table.core.slots().next().unwrap().crashes;
    table.exit(1, ExitStatus::Code(1), false);
    table.run_for(100 * MS);
    assert_eq!((states(&table), crashes(&table)), (vec!["starting"], 1));
    table.start_slot(0);
    table.run_for(MS);
    assert_eq!((states(&table), crashes(&table)), (vec!["starting"], 0));
    within(&mut table, 2 * SEC, Table::all_ready);
    assert_eq!(everybody(&table), [(0, 2, 1, "ready")]);
}

#[test]
fn a_start_does_not_wait_for_the_last_worker_to_drain() {
    let mut table = Table::of(config(1, Policy::Least), Habit::blocking(2 * SEC));
    table.start();
    table.client(Client::Local);
    table.run_for(MS);
    table.stop_slot(0);
    table.run_for(100 * MS);
    table.start_slot(0);
    table.start_within(SEC);
    assert_eq!(everybody(&table), [(0, 1, 1, "draining"), (0, 2, 1, "ready")]);
    table.client_taking(MS);
    within(&mut table, 5 * SEC, |table| name(table, 1) == "forgotten" && table.is_quiet());
    assert_eq!((table.story.served.len(), table.story.lost.len()), (2, 0));
    assert_eq!(table.core.slots().next().unwrap().restarts, 0, "nobody ended by himself");
}

#[test]
fn when_all_are_stopped_clients_wait_and_nobody_is_refused() {
    for policy in [Policy::Least, Policy::Rr, Policy::Ip] {
        let mut table = Table::of(config(2, policy), Habit::blocking(MS));
        table.start();
        for slot in [0, 1] {
            table.stop_slot(slot);
        }
        table.run_for(SEC);
        for host in 0..100 {
            table.client(Client::V4([10, 0, 0, host]));
        }
        table.run_for(10 * SEC);
        assert_eq!((table.core.wanted_count(), table.core.all_up()), (0, false));
        assert_eq!((outcome(&table), table.story.served.len()), (None, 0), "{policy:?}");
        assert_eq!(table.core.poll_timeout(), None, "{policy:?}: an idle primary does not wake up");
        table.start_slot(1);
        within(&mut table, 5 * SEC, Table::is_quiet);
        assert_eq!((table.story.served.len(), table.story.refused.len()), (100, 0), "{policy:?}");
        assert!(table.core.all_up());
    }
}

#[test]
fn what_waits_for_the_last_worker_waits_for_the_next() {
    let config = Config { drain_timeout: Duration::from_secs(1), ..config(1, Policy::Least) };
    let mut table = Table::of(config, Habit { stuck_until: u64::MAX, ..Habit::default() });
    table.start();
    for _ in 0..5 {
        table.client(Client::Local);
    }
    table.run_for(10 * MS);
    table.stop_slot(0);
    table.run_for(10 * SEC);
    assert_eq!((table.story.lost.len(), table.story.refused.len()), (0, 0));
    table.habits = Box::new(|_, _, _| Habit::default());
    table.start_slot(0);
    within(&mut table, SEC, Table::is_quiet);
    assert_eq!(table.story.served.len(), 5);
}

#[test]
fn a_reload_passes_stopped_slots_by() {
    let mut table = Table::of(config(3, Policy::Least), Habit::default());
    table.start();
    table.stop_slot(0);
    table.run_for(100 * MS);
    table.reload(false);
    within(&mut table, 10 * SEC, |table| {
        reported(table, |r| *r == Report::ReloadOver { generation: NEW }) == 1
    });
    assert_eq!(reported(&table, |r| *r == Report::ReloadDone { generation: NEW }), 1);
    assert_eq!(everybody(&table), [(1, 4, 2, "ready"), (2, 5, 2, "ready")]);
    table.start_slot(0);
    table.start_within(SEC);
    assert_eq!(everybody(&table)[2], (0, 6, 2, "ready"), "what the others run");
}

#[test]
fn after_a_reload_that_failed_a_start_has_the_old_number() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.stop_slot(1);
    table.run_for(100 * MS);
    table.habits = Box::new(|_, _, _| Habit {
        exits: Some((MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    table.reload(false);
    within(&mut table, 5 * SEC, |table| {
        reported(table, |r| matches!(r, Report::ReloadFailed { .. })) == 1
    });
    table.run_for(SEC);
    assert_eq!(everybody(&table), [(0, 1, 1, "ready")]);
    table.habits = Box::new(|_, _, _| Habit::default());
    table.start_slot(1);
    table.start_within(SEC);
    assert_eq!(everybody(&table)[1].2, 1);
}

/// A reload of three slots: one stopped at each moment of it. Canary starts at 0, is ready at 50 ms,
/// watched until 1050 ms; the next are ready at 1100 and 1150; done at 2150.
#[test]
fn a_slot_stopped_in_the_middle_of_a_reload_leaves_with_both_its_workers() {
    for rolling in [false, true] {
        for slot in 0..3 {
            for moment in [1, 49, 51, 500, 1049, 1075, 1120, 1500, 2149, 2160] {
                let what = format!("slot {slot} at {moment} ms, rolling {rolling}");
                let mut table = Table::of(config(3, Policy::Least), Habit::blocking(MS));
                table.start();
                table.reload(rolling);
                busy_for(&mut table, moment * MS);
                table.stop_slot(slot);
                let begun = table.now;
                while reported(&table, |r| matches!(r, Report::ReloadOver { .. })) == 0 {
                    busy_for(&mut table, 20 * MS);
                    assert!(table.now - begun < 20 * SEC, "{what}: {}", table.picture());
                }
                let left = |table: &Table| everybody(table).len();
                within(&mut table, SEC, |table| table.is_quiet() && left(table) == 2);
                assert_eq!(reported(&table, |r| matches!(r, Report::ReloadFailed { .. })), 0);
                assert!(
                    everybody(&table).iter().all(|(at, _, generation, state)| *at != slot
                        && *generation == 2
                        && *state == "ready"),
                    "{what}: {}",
                    table.picture()
                );
                assert!(table.story.lost.is_empty() && table.story.refused.is_empty(), "{what}");
            }
        }
    }
}

#[test]
fn when_the_canary_is_stopped_another_slot_has_one_alone() {
    for moment in [20, 500] {
        let config = Config { max_surge: Surge::Count(3), ..config(4, Policy::Least) };
        let mut table = Table::of(config, Habit::default());
        table.start();
        table.reload(false);
        table.run_for(moment * MS);
        table.stop_slot(0);
        table.run_for(900 * MS);
        let new: Vec<_> = everybody(&table).into_iter().filter(|(.., g, _)| *g == 2).collect();
        assert_eq!(new, [(1, 6, 2, "ready")], "{moment} ms: the others wait until it has held");
        within(&mut table, 5 * SEC, |table| {
            reported(table, |r| *r == Report::ReloadDone { generation: NEW }) == 1
        });
    }
}

#[test]
fn a_reload_of_which_every_slot_is_stopped_ends() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.reload(false);
    table.run_for(500 * MS);
    for slot in [0, 1] {
        table.stop_slot(slot);
    }
    within(&mut table, 5 * SEC, |table| {
        reported(table, |r| *r == Report::ReloadOver { generation: NEW }) == 1
    });
    table.run_for(5 * SEC);
    assert_eq!((outcome(&table), table.core.workers().count()), (None, 0));
    assert_eq!(table.core.poll_timeout(), None);
}

#[test]
fn a_slot_started_in_the_middle_of_a_reload_has_its_turn() {
    for moment in [20, 500, 1080] {
        let mut table = Table::of(config(3, Policy::Least), Habit::default());
        table.start();
        table.stop_slot(2);
        table.run_for(100 * MS);
        table.reload(false);
        table.run_for(moment * MS);
        table.start_slot(2);
        within(&mut table, 10 * SEC, |table| {
            reported(table, |r| *r == Report::ReloadOver { generation: NEW }) == 1
        });
        assert_eq!(reported(&table, |r| matches!(r, Report::ReloadFailed { .. })), 0);
        assert_eq!(states(&table), ["up"; 3], "{moment} ms");
        assert!(everybody(&table).iter().all(|(.., g, _)| *g == 2), "{moment} ms");
    }
}

/// The one that was killed goes first, also when it is the reload that starts the next.
#[test]
fn a_slot_stopped_and_started_at_once_waits_for_those_who_are_being_killed() {
    // The canary has held at 1050 ms; now two start at a time.
    let config = Config { max_surge: Surge::Count(2), ..config(3, Policy::Least) };
    let mut table = Table::of(config, Habit::default());
    table.start();
    table.reload(false);
    table.run_for(1070 * MS);
    assert_eq!(everybody(&table)[4..], [(1, 5, 2, "starting"), (2, 6, 2, "starting")]);
    table.stop_slot(1);
    table.start_slot(1);
    within(&mut table, 10 * SEC, |table| {
        reported(table, |r| *r == Report::ReloadOver { generation: NEW }) == 1
    });
    assert_eq!(reported(&table, |r| *r == Report::ReloadDone { generation: NEW }), 1);
    assert_eq!(table.core.ready_count(), 3);
}

#[test]
fn a_stopped_and_started_canary_is_not_taken_for_a_new_worker() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.reload(false);
    table.run_for(500 * MS);
    table.stop_slot(0);
    table.run_for(10 * MS);
    table.habits = Box::new(|slot, _, _| Habit {
        exits: (slot.0 == 0).then_some((MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    table.start_slot(0);
    table.run_for(60 * MS);
    assert_eq!(reported(&table, |r| matches!(r, Report::ReloadFailed { .. })), 0, "it was old");
    assert_eq!(table.core.slots().next().unwrap().crashes, 1);
}

#[test]
fn a_whole_stop_ends_what_was_stopped_and_what_still_drains() {
    for now in [false, true] {
        let mut table = Table::of(config(3, Policy::Least), Habit::event_loop(2 * SEC));
        table.start();
        for _ in 0..3 {
            table.client(Client::Local);
            table.run_for(MS);
        }
        table.stop_slot(0);
        table.run_for(5 * SEC);
        table.client(Client::Local);
        table.run_for(10 * MS);
        table.stop_slot(1);
        table.run_for(10 * MS);
        table.stop(now);
        table.start_slot(0);
        table.stop_slot(2);
        within(&mut table, 15 * SEC, |table| table.story.outcome.is_some());
        let wanted = if now { Outcome::Killed } else { Outcome::Stopped };
        assert_eq!(outcome(&table), Some(wanted));
        assert!(table.room.players.is_empty());
        assert!(now || table.story.lost.is_empty());
        assert_eq!(reported(&table, |r| matches!(r, Report::Ready { .. })), 3, "the stop wins");
    }
}

#[test]
fn a_stop_with_all_slots_stopped_ends_at_once() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    for slot in [0, 1] {
        table.stop_slot(slot);
    }
    table.run_for(SEC);
    table.client(Client::Local);
    table.stop(false);
    within(&mut table, 100 * MS, |table| outcome(table) == Some(Outcome::Stopped));
    assert_eq!(table.story.refused.len(), 1, "nobody will ever serve it");
}

/// While the operator holds a slot down, that the others have failed is not the end.
#[test]
fn an_operator_at_work_keeps_the_primary() {
    for ready_before in [false, true] {
        let mut table = Table::new(short_tempered(2), 1);
        let crash = Habit { exits: Some((0, ExitStatus::Code(1), false)), ..Habit::default() };
        if ready_before {
            table.start();
        } else {
            table.run_for(10 * MS);
        }
        table.stop_slot(1);
        table.habits = Box::new(move |_, _, _| crash.clone());
        table.exit(1, ExitStatus::Code(1), false);
        within(&mut table, 20 * SEC, |table| states(table) == ["failed", "down"]);
        table.run_for(10 * SEC);
        assert_eq!(outcome(&table), None);
        table.habits = Box::new(|_, _, _| Habit::default());
        table.start_slot(0);
        table.start_within(SEC);
        // Started again, the other is like any: now there is nobody who could save it.
        table.habits = Box::new(|_, _, _| Habit {
            exits: Some((0, ExitStatus::Code(1), false)),
            ..Habit::default()
        });
        table.start_slot(1);
        let serving = table.core.workers().next().unwrap().worker.0;
        table.exit(serving, ExitStatus::Code(1), false);
        within(&mut table, 20 * SEC, |table| outcome(table) == Some(Outcome::AllFailed));
    }
}

#[test]
fn under_ip_the_clients_of_a_stopped_slot_go_elsewhere_and_come_back() {
    let mut table = Table::of(config(4, Policy::Ip), Habit::default());
    table.start();
    let slots = |table: &mut Table| -> Vec<u16> {
        let first = table.story.hand_offs.len();
        for host in 0..60 {
            table.client(Client::V4([10, 0, 0, host]));
            table.run_for(MS);
        }
        let new = &table.story.hand_offs[first..];
        new.iter().map(|(_, _, worker)| table.room.players[worker].slot.0).collect()
    };
    let before = slots(&mut table);
    table.stop_slot(2);
    table.run_for(100 * MS);
    let without = slots(&mut table);
    for (before, without) in before.iter().zip(&without) {
        assert!(*without != 2 && (before == without || *before == 2));
    }
    table.start_slot(2);
    table.start_within(SEC);
    assert_eq!(slots(&mut table), before);
}

#[test]
fn under_ip_the_gate_opens_when_all_that_are_wanted_are_up() {
    let mut table = Table::new(config(3, Policy::Ip), 1);
    table.habits = Box::new(|slot, _, _| Habit { never_ready: slot.0 == 1, ..Habit::default() });
    table.client(Client::V4([10, 0, 0, 1]));
    table.run_for(SEC);
    assert_eq!(table.story.hand_offs.len(), 0);
    table.stop_slot(1);
    within(&mut table, 100 * MS, |table| table.story.served.len() == 1);
}

#[test]
fn under_reuseport_the_sockets_of_a_stopped_slot_are_adopted() {
    let mut table = Table::of(config(2, Policy::Reuseport), Habit::default());
    table.start();
    table.stop_slot(1);
    let stopped = table.now;
    table.run_for(5 * SEC);
    assert_eq!(table.story.adopted, [(stopped + SEC, SlotId(1), true)]);
    table.start_slot(1);
    table.start_within(SEC);
    assert_eq!(table.story.adopted.len(), 2);
    assert!(matches!(table.story.adopted[1], (_, SlotId(1), false)));
}

/// Which ends are meant: status, orphans, what becomes of the slot.
#[test]
fn only_exits_with_these_statuses_are_meant() {
    let rows = [
        (ExitStatus::Code(3), false, "down"),
        (ExitStatus::Code(3), true, "down"),
        (ExitStatus::Code(0), false, "down"),
        // It went into the background: it has not ended.
        (ExitStatus::Code(0), true, "starting"),
        (ExitStatus::Code(4), false, "starting"),
        (ExitStatus::Signal(3), false, "starting"),
        (ExitStatus::Dumped(3), false, "starting"),
        (ExitStatus::OutOfMemory, false, "starting"),
    ];
    for (status, orphans, expected) in rows {
        let mut table = Table::of(meant(2, &[0, 3]), Habit::default());
        table.start();
        table.exit(2, status, orphans);
        table.run_for(20 * MS);
        assert_eq!(states(&table), ["up", expected], "{status:?}, orphans {orphans}");
        let down = expected == "down";
        let done = |r: &Report| matches!(r, Report::SlotDone { worker: WorkerId(2), .. });
        assert_eq!(reported(&table, done), usize::from(down), "{status:?}");
        let slot = table.core.slots().nth(1).unwrap();
        assert_eq!(slot.want == Want::DownByExit, down, "{status:?}");
        assert!(!down || slot.crashes == 0, "{status:?}");
        table.run_for(5 * SEC);
        assert_eq!(states(&table)[1], if down { "down" } else { "up" }, "{status:?}");
        table.start_slot(1);
        within(&mut table, SEC, |table| states(table) == ["up"; 2]);
    }
}

#[test]
fn the_queue_of_one_that_meant_to_end_is_dealt_to_others() {
    let mut table = Table::of(meant(3, &[3]), Habit::blocking(4 * MS));
    table.start();
    for _ in 0..60 {
        table.client(Client::Local);
    }
    table.run_for(10 * MS);
    table.exit(2, ExitStatus::Code(3), false);
    within(&mut table, SEC, Table::is_quiet);
    assert!(table.story.lost.len() <= 1 && table.core.totals().salvaged > 0);
}

/// How each of two slots ends, and how the primary does.
#[test]
fn when_nobody_is_wanted_any_more() {
    let (good, bad) = (ExitStatus::Code(3), ExitStatus::Code(1));
    let rows = [
        (good, good, false, Some(Outcome::Stopped)),
        (good, bad, false, Some(Outcome::AllFailed)),
        (bad, good, false, Some(Outcome::AllFailed)),
        (good, good, true, None),
    ];
    for (first, second, by_hand, expected) in rows {
        let mut table = Table::of(meant(2, &[3]), Habit::default());
        table.start();
        if by_hand {
            table.stop_slot(0);
        }
        table.habits = Box::new(move |slot, _, _| {
            let status = if slot.0 == 0 { first } else { second };
            Habit { exits: Some((0, status, false)), ..Habit::default() }
        });
        table.exit(1, first, false);
        table.exit(2, second, false);
        table.run_for(20 * SEC);
        assert_eq!(outcome(&table), expected, "{first:?}, {second:?}, by hand {by_hand}");
        let all_done = reported(&table, |r| *r == Report::AllDone);
        assert_eq!(all_done, usize::from(expected == Some(Outcome::Stopped)));
        if expected.is_none() {
            table.habits = Box::new(|_, _, _| Habit::default());
            table.start_slot(1);
            table.start_within(SEC);
        }
    }
}

#[test]
fn workers_that_end_for_good_before_they_are_ready_are_no_failed_start() {
    let habit = Habit {
        exits: Some((0, ExitStatus::Code(0), false)),
        never_ready: true,
        ..Habit::default()
    };
    let mut table = Table::of(meant(3, &[0]), habit);
    within(&mut table, SEC, |table| outcome(table) == Some(Outcome::Stopped));
    assert_eq!(reported(&table, |r| matches!(r, Report::SlotDone { .. })), 3);
}

/// A new worker of a reload is not believed that it means it.
#[test]
fn a_new_worker_that_exits_has_not_held_whatever_its_status() {
    for after in [0, 300] {
        let mut table = Table::of(meant(2, &[3]), Habit::default());
        table.start();
        table.habits = Box::new(move |_, _, _| Habit {
            exits: Some((after * MS, ExitStatus::Code(3), false)),
            never_ready: after == 0,
            ..Habit::default()
        });
        table.reload(false);
        table.run_for(3 * SEC);
        let failed = |r: &Report| {
            matches!(r, Report::ReloadFailed { why: ReloadFault::Worker { .. }, kept: 0, .. })
        };
        assert_eq!(reported(&table, failed), 1);
        assert_eq!(everybody(&table), [(0, 1, 1, "ready"), (1, 2, 1, "ready")]);
    }
}

/// An old worker that means to end takes the next one of its slot along, and the reload goes on.
#[test]
fn an_old_worker_that_ends_for_good_during_a_reload() {
    for moment in [20, 500, 1080] {
        let mut table = Table::of(meant(3, &[3]), Habit::default());
        table.start();
        table.reload(false);
        table.run_for(moment * MS);
        // Slot 0 is being replaced at 20 ms and has been later; slot 1 is at 1080.
        let (victim, slot) = if moment == 20 { (1, 0) } else { (2, 1) };
        table.exit(victim, ExitStatus::Code(3), false);
        within(&mut table, 10 * SEC, |table| {
            reported(table, |r| *r == Report::ReloadOver { generation: NEW }) == 1
        });
        assert_eq!(reported(&table, |r| *r == Report::ReloadDone { generation: NEW }), 1);
        assert_eq!(states(&table)[slot], "down", "{moment} ms");
        assert_eq!(table.core.ready_count(), 2, "{moment} ms");
    }
}

/// All old workers end for good while nobody new is ready: the reload is over, and so is everything.
#[test]
fn when_all_end_for_good_during_a_reload_everything_ends() {
    let mut table = Table::of(meant(2, &[3]), Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| Habit { start: 10 * SEC, ..Habit::default() });
    table.reload(false);
    table.run_for(20 * MS);
    for worker in [1, 2] {
        table.exit(worker, ExitStatus::Code(3), false);
    }
    within(&mut table, 5 * SEC, |table| outcome(table) == Some(Outcome::Stopped));
}
