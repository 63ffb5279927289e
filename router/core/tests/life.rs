//! What supervision promises: start, ready, death, drain, stop, each on a table of its own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod table;

use std::time::Duration;

use croupier_core::config::{Config, Policy, ReadyRule, RestartPolicy};
use croupier_core::event::{
    Client, CutReason, Event, ExitStatus, ListenerId, Outcome, Report, SlotId, TakeBackReason,
    WorkerId,
};

use table::players::Habit;
use table::{MS, SEC, Table, US, config, name};

fn reported(table: &Table, is_it: impl Fn(&Report) -> bool) -> usize {
    table.story.reports.iter().filter(|(_, report)| is_it(report)).count()
}

fn outcome(table: &Table) -> Option<Outcome> {
    table.story.outcome.map(|(_, outcome)| outcome)
}

#[test]
fn all_slots_start_and_all_ready_is_said_once() {
    let mut table = Table::of(config(4, Policy::Least), Habit::default());
    assert_eq!(table.core.ready_count(), 0);
    table.start();
    assert!(table.core.all_were_ready());
    assert_eq!(reported(&table, |r| *r == Report::AllReady), 1);
    assert_eq!(reported(&table, |r| matches!(r, Report::Ready { .. })), 4);
    table.exit(2, ExitStatus::Code(1), false);
    table.start_within(SEC);
    assert_eq!(reported(&table, |r| *r == Report::AllReady), 1);
    let slots: Vec<_> = table.core.slots().map(|slot| (slot.state, slot.restarts)).collect();
    assert_eq!(slots, [("up", 0), ("up", 1), ("up", 0), ("up", 0)]);
}

#[test]
fn listen_needs_every_declared_listener() {
    let mut table = Table::of(config(1, Policy::Least), Habit::default());
    table.open(1);
    table.run_for(SEC);
    assert_eq!(name(&table, 1), "starting");
    table.tell(Event::Listening { worker: WorkerId(1), listener: ListenerId(1) });
    table.run_for(MS);
    assert_eq!(name(&table, 1), "ready");
}

#[test]
fn each_ready_rule() {
    let rules = [
        (ReadyRule::Listen, Habit::default(), true),
        (ReadyRule::Listen, Habit { never_ready: true, ..Habit::default() }, false),
        (
            ReadyRule::Listen,
            Habit { listeners: vec![], says_ready: true, ..Habit::default() },
            true,
        ),
        (ReadyRule::Notify, Habit::default(), false),
        (ReadyRule::Notify, Habit { says_ready: true, ..Habit::default() }, true),
        (ReadyRule::Start, Habit { never_ready: true, ..Habit::default() }, true),
        (ReadyRule::Accept, Habit::default(), true),
        (ReadyRule::Accept, Habit { stuck_until: u64::MAX, ..Habit::default() }, false),
        (ReadyRule::Accept, Habit { bell_lost: true, ..Habit::default() }, true),
    ];
    for (ready, habit, expected) in rules {
        let what = format!("{ready:?} with {habit:?}");
        let mut table = Table::of(Config { ready, ..config(1, Policy::Least) }, habit);
        table.run_for(2 * SEC);
        assert_eq!(name(&table, 1) == "ready", expected, "{what}: {}", table.picture());
        if ready == ReadyRule::Accept {
            assert_eq!(table.story.probes.len(), 1, "{what}");
        }
    }
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed_and_tried_again() {
    let config = Config { ready_timeout: Duration::from_secs(2), ..config(2, Policy::Least) };
    let mut table = Table::new(config, 1);
    table.habits = Box::new(|slot, worker, _| Habit {
        never_ready: slot == SlotId(1) && worker.0 < 4,
        ..Habit::default()
    });
    table.run_for(2 * SEC + 500 * MS);
    assert_eq!(reported(&table, |r| *r == Report::NotReadyInTime { worker: WorkerId(2) }), 1);
    assert_eq!(table.story.kills.iter().map(|(_, worker)| *worker).collect::<Vec<_>>(), [2]);
    assert_eq!(reported(&table, |r| matches!(r, Report::Died { .. })), 0, "it was told to");
    table.start_within(3 * SEC);
}

#[test]
fn a_dead_workers_queue_goes_to_the_others() {
    let mut table = Table::of(config(3, Policy::Least), Habit::blocking(4 * MS));
    table.start();
    for _ in 0..60 {
        table.client(Client::Local);
    }
    table.run_for(10 * MS);
    let queued = table.room.players[&2].queue.len();
    assert!(queued > 0);
    table.exit(2, ExitStatus::Signal(9), false);
    assert!(table.run_until(SEC, Table::is_quiet), "{}", table.picture());
    let lost = table.story.lost.len();
    assert!(lost <= 1, "only what was in its hands: {lost}");
    assert_eq!(table.story.served.len() + lost, 60);
    assert_eq!(table.core.totals().salvaged, u64::try_from(queued).unwrap());
    let queued = u32::try_from(queued).unwrap();
    let died = Report::Died { worker: WorkerId(2), status: ExitStatus::Signal(9), queued };
    assert_eq!(reported(&table, |r| *r == died), 1);
    assert_eq!(reported(&table, |r| matches!(r, Report::Salvaged { .. })), 1);
    assert_eq!(name(&table, 2), "forgotten");
}

#[test]
fn with_one_worker_the_successor_serves_the_queue() {
    let mut table = Table::of(config(1, Policy::Least), Habit::blocking(4 * MS));
    table.start();
    for _ in 0..10 {
        table.client(Client::Local);
    }
    table.run_for(10 * MS);
    table.exit(1, ExitStatus::Signal(9), false);
    assert!(table.run_until(SEC, Table::is_quiet), "{}", table.picture());
    assert_eq!((table.story.served.len(), table.story.lost.len()), (9, 1));
    assert!(table.core.totals().salvaged >= 1);
}

#[test]
fn the_family_is_killed_before_its_queue_is_touched() {
    let mut table = Table::of(config(2, Policy::Least), Habit::blocking(50 * MS));
    table.start();
    for _ in 0..4 {
        table.client(Client::Local);
    }
    table.run_for(5 * MS);
    table.exit(1, ExitStatus::Signal(9), true);
    table.run_for(300 * MS);
    let (killed, _) = table.story.kills[0];
    let salvage = table.story.taken_back.iter().find(|(_, _, from, _)| *from == 1).unwrap();
    assert!(salvage.0 > killed + MS, "the family takes 1 ms to die");
    assert_eq!(salvage.3, TakeBackReason::Death);
    let successor = table.core.workers().find(|worker| worker.slot == SlotId(0)).unwrap();
    assert_eq!(successor.worker, WorkerId(3), "{}", table.picture());
}

#[test]
fn going_to_the_background_is_an_error_that_says_so() {
    let config = Config {
        restart: RestartPolicy { first_tries: 3, ..config(1, Policy::Least).restart },
        ..config(1, Policy::Least)
    };
    let habit = Habit {
        never_ready: true,
        exits: Some((MS, ExitStatus::Code(0), true)),
        ..Habit::default()
    };
    let mut table = Table::of(config, habit);
    table.run_for(5 * SEC);
    assert_eq!(reported(&table, |r| matches!(r, Report::WentToBackground { .. })), 3);
    assert_eq!(outcome(&table), Some(Outcome::NeverStarted));
}

#[test]
fn nobody_ever_ready_ends_it_after_the_first_tries() {
    let habit = Habit {
        never_ready: true,
        exits: Some((5 * MS, ExitStatus::Code(3), false)),
        ..Habit::default()
    };
    let mut table = Table::of(config(4, Policy::Least), habit);
    table.run_for(10 * SEC);
    assert_eq!(outcome(&table), Some(Outcome::NeverStarted));
    let (at, _) = table.story.outcome.unwrap();
    assert!(at < 2 * SEC, "{} ms", at / MS);
    // Rounds, not deaths, are counted.
    let died = reported(&table, |r| matches!(r, Report::Died { .. }));
    assert!((9..=12).contains(&died), "{died} deaths");
    assert!(table.room.players.is_empty());
}

#[test]
fn a_program_that_cannot_be_started_ends_it_too() {
    let mut table =
        Table::of(config(2, Policy::Least), Habit { spawn_fails: true, ..Habit::default() });
    table.run_for(5 * SEC);
    assert_eq!(outcome(&table), Some(Outcome::NeverStarted));
}

#[test]
fn one_that_cannot_be_executed_is_gone_whatever_was_said_of_it() {
    let mut table = Table::new(config(1, Policy::Least), 1);
    table.habits = Box::new(|_, worker, _| Habit {
        spawn_fails: worker.0 == 1,
        exec: 50 * MS,
        ..Habit::default()
    });
    table.run_for(10 * MS);
    table.tell(Event::SaidReady { worker: WorkerId(1) });
    table.run_for(20 * MS);
    assert_eq!(table.core.ready_count(), 1, "somebody said so");
    table.run_for(5 * SEC);
    let not_forked = |r: &Report| matches!(r, Report::NotForked { worker: WorkerId(1), .. });
    assert_eq!(reported(&table, not_forked), 1);
    let next = table.core.workers().map(|view| (view.worker, view.state)).collect::<Vec<_>>();
    assert_eq!(next, [(WorkerId(2), "ready")], "its slot has another");
}

#[test]
fn one_slow_starter_is_not_condemned_for_another() {
    let mut table = Table::new(config(2, Policy::Least), 1);
    table.habits = Box::new(|slot, _, _| match slot.0 {
        0 => Habit {
            never_ready: true,
            exits: Some((MS, ExitStatus::Code(1), false)),
            ..Habit::default()
        },
        _ => Habit { start: 5 * SEC, ..Habit::default() },
    });
    table.run_for(7 * SEC);
    assert_eq!(outcome(&table), None);
    assert_eq!(table.core.ready_count(), 1, "{}", table.picture());
}

#[test]
fn crashes_wait_ever_longer_and_a_long_life_forgives() {
    let mut table = Table::new(config(1, Policy::Least), 1);
    table.habits = Box::new(|_, worker, _| Habit {
        exits: (worker.0 <= 5).then_some((10 * MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    assert!(table.run_until(20 * SEC, |table| name(table, 6) == "ready"), "{}", table.picture());
    let waits: Vec<u128> = table
        .story
        .reports
        .iter()
        .filter_map(|(_, report)| {
            if let Report::BackingOff { wait, .. } = report { Some(wait.as_millis()) } else { None }
        })
        .collect();
    // The first restart is at once, and is not worth a word.
    assert_eq!(waits.len(), 4, "{waits:?}");
    for (wait, middle) in waits.iter().zip([100, 200, 400, 800]) {
        assert!((middle * 8 / 10..=middle * 12 / 10).contains(wait), "{waits:?}");
    }
    table.run_for(2 * SEC);
    let before = table.now;
    table.exit(6, ExitStatus::Signal(6), false);
    assert!(table.run_until(SEC, |table| name(table, 7) == "ready"));
    assert!(table.now - before < 60 * MS, "at once, apart from its 50 ms to start");
}

#[test]
fn a_slot_that_uses_up_its_budget_fails_alone() {
    let base = config(2, Policy::Least);
    let config = Config { restart: RestartPolicy { budget: 4, ..base.restart }, ..base };
    let mut table = Table::new(config, 1);
    table.habits = Box::new(|slot, _, _| Habit {
        exits: (slot.0 == 1).then_some((10 * MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    table.run_for(10 * SEC);
    assert_eq!(reported(&table, |r| *r == Report::SlotFailed { slot: SlotId(1) }), 1);
    let states: Vec<_> = table.core.slots().map(|slot| slot.state).collect();
    assert_eq!(states, ["up", "failed"]);
    assert_eq!(outcome(&table), None);
    table.client(Client::Local);
    table.run_for(10 * MS);
    assert_eq!(table.story.served.len(), 1);
}

#[test]
fn all_slots_failed_ends_it_unless_it_shall_stay() {
    for stay in [false, true] {
        let base = config(2, Policy::Least);
        let config = Config { restart: RestartPolicy { budget: 3, stay, ..base.restart }, ..base };
        let habit =
            Habit { exits: Some((10 * MS, ExitStatus::Code(1), false)), ..Habit::default() };
        let mut table = Table::of(config, habit);
        table.run_for(60 * SEC);
        assert_eq!(outcome(&table), (!stay).then_some(Outcome::AllFailed));
        if !stay {
            assert!(table.listeners.is_empty(), "listeners are closed");
        }
    }
}

/// Clients come all the time while it stops: each that was accepted is answered whole.
#[test]
fn stop_resets_nobody_who_was_in_the_backlog() {
    for habit in [Habit::blocking(20 * MS), Habit::event_loop(20 * MS)] {
        let mut table = Table::of(config(4, Policy::Least), habit);
        table.start();
        for _ in 0..64 {
            table.client(Client::Local);
        }
        table.run_for(30 * MS);
        table.stop(false);
        // A handshake that had begun before the filter ends a little later.
        table.run_for(5 * MS);
        for _ in 0..3 {
            table.client(Client::Local);
        }
        assert!(table.run_until(3 * SEC, |table| outcome(table).is_some()), "{}", table.picture());
        assert_eq!(outcome(&table), Some(Outcome::Stopped));
        assert_eq!((table.story.served.len(), table.story.refused.len()), (67, 0));
        assert!(table.story.lost.is_empty());
        assert_eq!(table.story.signals.len(), 4);
        assert_eq!(reported(&table, |r| matches!(r, Report::Drained { .. })), 4);
        let (at, _) = table.story.outcome.unwrap();
        assert!(at < 2 * SEC, "no timeout was needed");
    }
}

#[test]
fn stop_waits_for_the_second_look_before_it_closes() {
    let mut table = Table::of(config(1, Policy::Least), Habit::default());
    table.start();
    let asked = table.now;
    table.stop(false);
    assert!(table.run_until(SEC, |table| table.listeners.is_empty()));
    assert!((10 * MS..12 * MS).contains(&(table.now - asked)), "{} us", (table.now - asked) / US);
}

#[test]
fn drain_waits_for_active_connections_up_to_the_timeout() {
    let config = Config { graceful_timeout: Duration::from_secs(3), ..config(2, Policy::Least) };
    let mut table = Table::new(config, 1);
    table.habits =
        Box::new(|slot, _, _| Habit::event_loop(if slot.0 == 0 { SEC } else { 100 * SEC }));
    table.start();
    table.client(Client::Local);
    table.client(Client::Local);
    table.run_for(MS);
    let asked = table.now;
    table.stop(false);
    assert!(table.run_until(20 * SEC, |table| outcome(table).is_some()), "{}", table.picture());
    let signal =
        |worker| table.story.signals.iter().find(|(_, w, _)| *w == worker).unwrap().0 - asked;
    assert!(signal(1) < SEC + 50 * MS, "as soon as it has none");
    assert!((3 * SEC..3 * SEC + 50 * MS).contains(&signal(2)), "{} ms", signal(2) / MS);
    assert_eq!(
        reported(&table, |r| *r
            == Report::DrainCut { worker: WorkerId(2), active: Some(1), why: CutReason::Time }),
        1
    );
    assert_eq!((table.story.served.len(), table.story.lost.len()), (1, 1));
}

#[test]
fn stop_signal_first_lets_the_program_drain_itself() {
    let config = Config { stop_signal_first: true, ..config(1, Policy::Least) };
    let mut table = Table::of(config, Habit::event_loop(100 * SEC));
    table.start();
    table.client(Client::Local);
    table.run_for(MS);
    let asked = table.now;
    table.stop(false);
    assert!(table.run_until(SEC, |table| !table.story.signals.is_empty()));
    assert!(table.now - asked < 50 * MS);
}

#[test]
fn a_stubborn_worker_is_killed_in_the_end() {
    let habit = Habit { stubborn: true, ..Habit::default() };
    let mut table = Table::of(config(2, Policy::Least), habit);
    table.start();
    let asked = table.now;
    table.stop(false);
    assert!(table.run_until(20 * SEC, |table| outcome(table).is_some()), "{}", table.picture());
    assert!((2 * SEC..2 * SEC + 100 * MS).contains(&(table.now - asked)));
    assert_eq!(outcome(&table), Some(Outcome::Stopped));
}

#[test]
fn a_second_request_kills_at_once() {
    for twice in [false, true] {
        let mut table = Table::of(config(3, Policy::Least), Habit::event_loop(100 * SEC));
        table.start();
        for _ in 0..10 {
            table.client(Client::Local);
        }
        table.run_for(MS);
        table.stop(!twice);
        if twice {
            table.run_for(100 * MS);
            table.stop(false);
        }
        let asked = table.now;
        assert!(table.run_until(SEC, |table| outcome(table).is_some()), "{}", table.picture());
        assert_eq!(outcome(&table), Some(Outcome::Killed));
        assert!(table.now - asked < 10 * MS);
        assert!(table.room.players.is_empty());
    }
}

#[test]
fn a_worker_that_dies_while_all_stops_leaves_its_queue_to_those_that_finish() {
    let mut table = Table::new(config(2, Policy::Least), 1);
    table.habits = Box::new(|slot, _, _| Habit::blocking(if slot.0 == 0 { SEC } else { 20 * MS }));
    table.start();
    for _ in 0..4 {
        table.client(Client::Local);
    }
    table.run_for(5 * MS);
    table.stop(false);
    // As soon as somebody has room it is seen that the backlog is empty.
    table.run_for(60 * MS);
    assert_eq!(name(&table, 1), "draining");
    assert_eq!(table.room.players[&1].queue.len(), 1);
    table.exit(1, ExitStatus::Signal(9), false);
    assert!(table.run_until(3 * SEC, |table| outcome(table).is_some()), "{}", table.picture());
    assert_eq!(
        (table.story.served.len(), table.story.lost.len(), table.story.refused.len()),
        (3, 1, 0)
    );
}

#[test]
fn when_the_last_dies_while_all_stops_what_is_left_is_refused() {
    let mut table = Table::of(config(1, Policy::Least), Habit::blocking(100 * MS));
    table.start();
    for _ in 0..2 {
        table.client(Client::Local);
    }
    table.run_for(5 * MS);
    table.stop(false);
    table.run_for(30 * MS);
    table.exit(1, ExitStatus::Signal(9), false);
    assert!(table.run_until(SEC, |table| outcome(table).is_some()), "{}", table.picture());
    assert_eq!((table.story.lost.len(), table.story.refused.len()), (1, 1));
    assert_eq!(table.core.totals().refused, 1);
    assert_eq!(outcome(&table), Some(Outcome::Stopped));
}

#[test]
fn stop_while_starting_kills_the_starters() {
    let mut table =
        Table::of(config(3, Policy::Least), Habit { start: 30 * SEC, ..Habit::default() });
    table.run_for(SEC);
    table.stop(false);
    assert!(table.run_until(SEC, |table| outcome(table).is_some()), "{}", table.picture());
    assert_eq!(outcome(&table), Some(Outcome::Stopped));
}

#[test]
fn a_worker_that_holds_the_lock_of_its_queue_is_killed_and_nothing_is_lost() {
    let mut table = Table::new(config(2, Policy::Least), 1);
    table.habits = Box::new(|slot, worker, _| Habit {
        holds_lock: slot.0 == 0 && worker.0 == 1,
        stuck_until: if slot.0 == 0 && worker.0 == 1 { u64::MAX } else { 0 },
        ..Habit::event_loop(MS)
    });
    table.start();
    for _ in 0..3 {
        table.client(Client::Local);
        table.run_for(2 * MS);
    }
    assert!(table.run_until(2 * SEC, Table::is_quiet), "{}", table.picture());
    assert_eq!(table.story.kills.iter().map(|(_, worker)| *worker).collect::<Vec<_>>(), [1]);
    assert_eq!(table.story.served.len(), 3);
}

#[test]
fn a_worker_that_misbehaves_is_replaced() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.tell(Event::Misbehaved { worker: WorkerId(2) });
    table.start_within(SEC);
    assert_eq!(name(&table, 2), "forgotten");
    assert_eq!(name(&table, 3), "ready");
}

#[test]
fn a_closed_listener_of_the_program_gets_nothing_more() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.tell(Event::Unlistened { worker: WorkerId(1), listener: ListenerId(0) });
    table.room.players.get_mut(&1).unwrap().listens.clear();
    for _ in 0..6 {
        table.client(Client::Local);
        table.run_for(MS);
    }
    assert!(table.story.hand_offs.iter().all(|(_, _, to)| *to == 2));
    assert!(table.story.kills.is_empty());
}

#[test]
fn reuseport_sockets_of_a_slot_that_is_down_are_adopted_after_a_second() {
    let mut table = Table::of(config(2, Policy::Reuseport), Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| Habit { start: 3 * SEC, ..Habit::default() });
    let died = table.now;
    table.exit(2, ExitStatus::Signal(9), false);
    table.start_within(10 * SEC);
    let adopted: Vec<_> = table
        .story
        .adopted
        .iter()
        .map(|(at, slot, on)| ((at - died) / (10 * MS), slot.0, *on))
        .collect();
    assert_eq!(adopted, [(100, 1, true), (300, 1, false)]);
}

/// A next worker that listens and is not ready yet accepts for itself; if it never comes to that, the
/// primary goes on.
#[test]
fn reuseport_sockets_are_adopted_again_when_the_next_worker_dies_before_it_is_ready() {
    let notify = Config { ready: ReadyRule::Notify, ..config(2, Policy::Reuseport) };
    let mut table = Table::of(notify, Habit { says_ready: true, ..Habit::default() });
    table.start();
    table.habits = Box::new(|_, _, _| Habit::default());
    let died = table.now;
    table.exit(2, ExitStatus::Signal(9), false);
    table.run_for(2 * SEC);
    assert_eq!(table.story.adopted, [(died + SEC, SlotId(1), true)]);
    table.exit(3, ExitStatus::Signal(9), false);
    table.run_for(10 * MS);
    let again: Vec<_> = table.story.adopted.iter().map(|(_, slot, on)| (slot.0, *on)).collect();
    assert_eq!(again, [(1, true), (1, true)]);
    table.habits = Box::new(|_, _, _| Habit { says_ready: true, ..Habit::default() });
    table.exit(4, ExitStatus::Signal(9), false);
    table.start_within(10 * SEC);
    assert!(matches!(table.story.adopted.last(), Some((_, SlotId(1), false))));
}

/// Also what was never served has clients, once it listens.
#[test]
fn reuseport_sockets_of_a_worker_that_was_never_ready_are_adopted() {
    let notify = Config { ready: ReadyRule::Notify, ..config(2, Policy::Reuseport) };
    let mut table = Table::of(notify, Habit { says_ready: true, ..Habit::default() });
    table.habits = Box::new(|slot, _, _| Habit {
        says_ready: slot == SlotId(1),
        exits: (slot != SlotId(1)).then_some((200 * MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    let began = table.now;
    table.run_for(2 * SEC);
    assert_eq!(table.story.adopted[0], (began + 1250 * MS, SlotId(0), true));
}

#[test]
fn a_restart_within_a_second_adopts_nothing() {
    let mut table = Table::of(config(2, Policy::Reuseport), Habit::default());
    table.start();
    table.exit(2, ExitStatus::Signal(9), false);
    table.start_within(10 * SEC);
    table.run_for(3 * SEC);
    assert!(table.story.adopted.is_empty());
    assert_eq!(table.core.poll_timeout(), None);
}

#[test]
fn shared_and_reuseport_stop_by_signal() {
    for policy in [Policy::Shared, Policy::Reuseport] {
        let mut table = Table::of(config(2, policy), Habit::default());
        table.start();
        let asked = table.now;
        table.stop(false);
        assert!(table.run_until(SEC, |table| outcome(table).is_some()), "{}", table.picture());
        assert!(table.now - asked < 20 * MS);
        assert_eq!(table.story.signals.len(), 2);
    }
}
