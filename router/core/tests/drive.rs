//! What driving a running primary promises: scale, pause, restart, each row of `scale.rs`, `pause.rs`
//! and `recycle.rs` on a table of its own; and a day whose events are known beforehand.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use croupier_core::Want;
use croupier_core::config::{Config, Limits, Policy, RestartPolicy, SLOTS_MAX, Surge};
use croupier_core::event::{
    Client, ExitStatus, Outcome, PauseFault, RecycleReason, Report, Scale, ScaleFault, SlotId,
    WorkerId,
};

use table::players::Habit;
use table::{MS, SEC, Table, busy_for, config, name, within};

fn reported(table: &Table, is_it: impl Fn(&Report) -> bool) -> usize {
    table.story.reports.iter().filter(|(_, report)| is_it(report)).count()
}

fn states(table: &Table) -> Vec<&'static str> {
    table.core.slots().map(|slot| slot.state).collect()
}

/// Everything that `croupier events` tells, in words: `fork 3`, `scaled 2 4`, `paused all`.
fn events(table: &Table) -> Vec<String> {
    table.story.reports.iter().filter_map(|(_, report)| event(report)).collect()
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the name says all of the others")]
fn event(report: &Report) -> Option<String> {
    let name = report.event_name()?;
    let slot =
        |slot: Option<SlotId>| slot.map_or_else(|| "all".to_owned(), |slot| format!("w{}", slot.0));
    let what = match *report {
        Report::Forked { worker, .. }
        | Report::Online { worker, .. }
        | Report::NotForked { worker, .. }
        | Report::Listens { worker, .. }
        | Report::Ready { worker, .. }
        | Report::Late { worker }
        | Report::Stole { worker, .. }
        | Report::Recovered { worker }
        | Report::Hung { worker, .. }
        | Report::Disconnected { worker, .. }
        | Report::Exited { worker, .. } => worker.0.to_string(),
        Report::ReloadBegan { generation, .. }
        | Report::ReloadDone { generation }
        | Report::ReloadFailed { generation, .. } => generation.0.to_string(),
        Report::Scaled { from, to } => format!("{from} {to}"),
        Report::Paused { slot: at } | Report::Resumed { slot: at } => slot(at),
        Report::SlotFailed { slot: at } => slot(Some(at)),
        _ => String::new(),
    };
    Some(format!("{name} {what}").trim_end().to_owned())
}

fn scaled(table: &Table) -> usize {
    reported(table, |report| matches!(report, Report::Scaled { .. }))
}

fn refused(table: &Table, why: ScaleFault) -> usize {
    reported(table, |report| *report == Report::ScaleRefused { why })
}

#[test]
fn more_slots_start_at_once_and_fewer_drain_from_the_top() {
    let mut table = Table::of(config(2, Policy::Least), Habit::blocking(4 * MS));
    table.start();
    busy_for(&mut table, 20 * MS);
    table.scale(Scale::To(4));
    table.run_for(MS);
    assert_eq!(states(&table), ["up", "up", "starting", "starting"]);
    table.start_within(SEC);
    busy_for(&mut table, 100 * MS);
    assert!(table.story.claims.iter().any(|(.., worker)| *worker == 4), "it serves");
    table.scale(Scale::Down(3));
    table.run_for(MS);
    assert_eq!(states(&table), ["up"]);
    assert_eq!(["draining"; 3], [2, 3, 4].map(|worker| name(&table, worker)));
    within(&mut table, SEC, |table| table.core.workers().count() == 1 && table.is_quiet());
    busy_for(&mut table, 50 * MS);
    table.run_for(20 * SEC);
    let story = &table.story;
    assert_eq!(story.served.len() as u64, table.connections, "{}", table.picture());
    assert_eq!(reported(&table, |r| matches!(r, Report::Died { .. })), 0);
    assert_eq!((table.core.poll_timeout(), scaled(&table)), (None, 2));
    table.scale(Scale::Up(2));
    table.start_within(SEC);
    assert_eq!(states(&table), ["up"; 3]);
    assert!(table.core.slots().all(|slot| slot.restarts == 0), "they have no past");
}

#[test]
fn what_is_no_number_of_slots_is_refused() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    let rows = [
        (Scale::To(0), ScaleFault::Zero),
        (Scale::Down(2), ScaleFault::Zero),
        (Scale::Down(u16::MAX), ScaleFault::Zero),
        (Scale::To(SLOTS_MAX + 1), ScaleFault::TooMany),
        (Scale::Up(u16::MAX), ScaleFault::TooMany),
    ];
    for (scale, why) in rows {
        let before = refused(&table, why);
        table.scale(scale);
        table.run_for(10 * MS);
        assert_eq!((refused(&table, why), states(&table).len()), (before + 1, 2), "{scale:?}");
    }
    table.scale(Scale::To(2));
    table.run_for(10 * MS);
    assert_eq!(scaled(&table), 0, "there are two already");
    table.stop(false);
    table.scale(Scale::Up(1));
    table.run_for(SEC);
    assert_eq!(refused(&table, ScaleFault::Stopping), 1);
}

#[test]
fn a_scale_never_takes_the_last_who_serves() {
    let base = config(3, Policy::Least);
    let restart = RestartPolicy { budget: 2, ..base.restart };
    let mut table = Table::of(Config { restart, ..base }, Habit::default());
    table.start();
    // Slot 0 fails, slot 1 is stopped by hand.
    table.habits = Box::new(|_, _, _| Habit {
        exits: Some((MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    table.exit(1, ExitStatus::Code(1), false);
    within(&mut table, 10 * SEC, |table| states(table)[0] == "failed");
    table.stop_slot(1);
    table.run_for(SEC);
    table.habits = Box::new(|_, _, _| Habit::default());
    table.scale(Scale::To(2));
    table.run_for(SEC);
    assert_eq!(refused(&table, ScaleFault::NobodyLeft), 1);
    assert_eq!(states(&table), ["failed", "down", "up"], "nothing has changed");
    // With as many as there are: what has failed is tried again, what is stopped stays so.
    table.scale(Scale::To(3));
    within(&mut table, SEC, |table| states(table) == ["up", "down", "up"]);
    table.scale(Scale::To(2));
    within(&mut table, SEC, |table| table.core.workers().count() == 1);
    assert_eq!(states(&table), ["up", "down"]);
    table.scale(Scale::Up(1));
    within(&mut table, SEC, |table| states(table) == ["up", "down", "up"]);
    assert_eq!(table.core.slots().nth(1).unwrap().want, Want::DownByHand);
}

#[test]
fn a_slot_that_comes_back_is_a_new_one() {
    let mut table = Table::of(config(3, Policy::Least), Habit::default());
    table.start();
    table.pause(Some(2));
    table.stop_slot(2);
    table.run_for(100 * MS);
    table.scale(Scale::To(2));
    table.run_for(100 * MS);
    for event in [table.core.slot_count(), table.core.wanted_count()] {
        assert_eq!(event, 2);
    }
    // Nobody there to be stopped, started, paused or restarted.
    table.stop_slot(2);
    table.start_slot(2);
    table.pause(Some(2));
    table.restart(2);
    table.run_for(SEC);
    assert_eq!((states(&table), table.core.workers().count()), (vec!["up"; 2], 2));
    table.scale(Scale::To(3));
    table.start_within(SEC);
    let slot = table.core.slots().nth(2).unwrap();
    assert_eq!((slot.want, slot.paused, slot.crashes), (Want::Up, false, 0));
}

/// `--max-draining` is twice the slots by itself; those that a scale takes away at once are not cut
/// for that. What the operator has set holds.
#[test]
fn many_slots_that_go_at_once_have_their_time() {
    for (max_draining, cut) in [(None, 0), (Some(3), 4)] {
        let config = Config { max_draining, ..config(8, Policy::Rr) };
        let mut table = Table::of(config, Habit::event_loop(4 * SEC));
        table.start();
        for _ in 0..8 {
            table.client(Client::Local);
            table.run_for(MS);
        }
        table.scale(Scale::To(1));
        table.run_for(100 * MS);
        assert_eq!(reported(&table, |r| matches!(r, Report::DrainCut { .. })), cut);
        within(&mut table, 8 * SEC, |table| table.core.workers().count() == 1 && table.is_quiet());
        assert_eq!(table.story.lost.len(), cut, "{max_draining:?}");
    }
}

#[test]
fn a_new_worker_does_not_wait_for_the_last_one_to_drain() {
    let mut table = Table::of(config(2, Policy::Rr), Habit::blocking(3 * SEC));
    table.start();
    for _ in 0..2 {
        table.client(Client::Local);
        table.run_for(MS);
    }
    table.scale(Scale::To(1));
    table.run_for(10 * MS);
    table.scale(Scale::To(2));
    table.start_within(SEC);
    assert_eq!((name(&table, 2), name(&table, 3)), ("draining", "ready"));
    within(&mut table, 5 * SEC, |table| name(table, 2) == "forgotten" && table.is_quiet());
    assert!(table.story.lost.is_empty());
}

/// A reload of three slots, scaled up and down at each moment of it.
#[test]
fn a_scale_in_the_middle_of_a_reload() {
    for rolling in [false, true] {
        for to in [1, 2, 5] {
            for moment in [1, 49, 51, 500, 1049, 1075, 1120, 1500, 2149, 2160] {
                let what = format!("to {to} at {moment} ms, rolling {rolling}");
                let mut table = Table::of(config(3, Policy::Least), Habit::blocking(MS));
                table.start();
                table.reload(rolling);
                busy_for(&mut table, moment * MS);
                table.scale(Scale::To(to));
                let over = |table: &Table| {
                    let ended = reported(table, |r| matches!(r, Report::ReloadOver { .. })) > 0;
                    ended && table.all_ready() && table.core.workers().count() == usize::from(to)
                };
                let begun = table.now;
                while !over(&table) {
                    busy_for(&mut table, 20 * MS);
                    assert!(table.now - begun < 20 * SEC, "{what}: {}", table.picture());
                }
                within(&mut table, SEC, Table::is_quiet);
                assert_eq!(reported(&table, |r| matches!(r, Report::ReloadFailed { .. })), 0);
                let mut generations = table.core.workers().map(|view| view.generation.0);
                assert!(generations.all(|g| g == 2), "{what}: {}", table.picture());
                assert!(table.story.lost.is_empty() && table.story.refused.is_empty(), "{what}");
            }
        }
    }
}

#[test]
fn the_first_all_ready_is_of_those_that_are_left() {
    let mut table = Table::new(config(2, Policy::Ip), 1);
    table.habits = Box::new(|slot, _, _| Habit {
        never_ready: slot.0 == 1,
        start: 5 * MS,
        ..Habit::default()
    });
    table.run_for(SEC);
    let client = Client::V4([10, 0, 0, 1]);
    table.client(client);
    table.run_for(SEC);
    assert!(table.story.served.is_empty(), "under ip nobody is let in before all are there");
    table.scale(Scale::To(1));
    within(&mut table, SEC, Table::is_quiet);
    assert_eq!(reported(&table, |r| *r == Report::AllReady), 1);
    assert_eq!(table.story.served.len(), 1);
}

/// Under `ip` the slots that come take their share of the clients, and nobody else moves; when they
/// go, their clients come back.
#[test]
fn under_ip_only_the_share_of_new_slots_moves() {
    let mut table = Table::of(config(4, Policy::Ip), Habit::default());
    table.start();
    let round = |table: &mut Table| -> BTreeMap<u8, u32> {
        let first = table.story.hand_offs.len();
        for host in 0..=255 {
            table.client(Client::V4([10, 0, 0, host]));
            table.run_for(MS);
        }
        within(table, SEC, Table::is_quiet);
        (0..=255).zip(table.story.hand_offs[first..].iter().map(|(.., worker)| *worker)).collect()
    };
    let before = round(&mut table);
    table.scale(Scale::To(5));
    table.start_within(SEC);
    let after = round(&mut table);
    let moved: Vec<u8> = (0..=255).filter(|host| before[host] != after[host]).collect();
    assert!(moved.iter().all(|host| after[host] == 5), "only to the new one");
    assert!((30..=75).contains(&moved.len()), "a fifth of 256: {}", moved.len());
    table.scale(Scale::To(4));
    within(&mut table, SEC, |table| table.core.workers().count() == 4);
    assert_eq!(round(&mut table), before, "they come back");
}

#[test]
fn under_reuseport_the_sockets_of_slots_that_go_are_emptied() {
    let mut table = Table::of(config(3, Policy::Reuseport), Habit::default());
    table.start();
    table.scale(Scale::To(1));
    table.run_for(20 * SEC);
    let adopted = |table: &Table| -> Vec<(u16, bool)> {
        table.story.adopted.iter().map(|(_, slot, adopt)| (slot.0, *adopt)).collect()
    };
    let mut emptied = adopted(&table);
    emptied.sort_unstable();
    assert_eq!(emptied, [(1, true), (2, true)]);
    table.scale(Scale::To(2));
    table.start_within(SEC);
    assert_eq!(adopted(&table)[2..], [(1, false)], "the new worker has it");
}

#[test]
fn what_depends_on_the_number_of_slots_follows_it() {
    let base = config(2, Policy::Least);
    let config = Config { max_surge: Surge::Percent(50), soak: Duration::ZERO, ..base };
    let mut table = Table::of(config, Habit { start: SEC, ..Habit::default() });
    table.start();
    let most = |table: &mut Table| {
        table.reload(false);
        let mut most = 0;
        // The first starts alone.
        table.run_for(1100 * MS);
        while table.core.reloading().is_some() {
            let starting = table.core.workers().filter(|view| view.state == "starting").count();
            most = most.max(starting);
            table.run_for(10 * MS);
        }
        most
    };
    assert_eq!(most(&mut table), 1);
    table.scale(Scale::To(8));
    table.start_within(5 * SEC);
    assert_eq!(most(&mut table), 4);
}

#[test]
fn while_all_are_paused_clients_wait_and_nobody_is_refused() {
    for policy in [Policy::Least, Policy::Rr, Policy::Ip] {
        let mut table = Table::of(config(2, policy), Habit::blocking(20 * MS));
        table.start();
        let client = |host| Client::V4([10, 0, 0, host]);
        for host in 0..40 {
            table.client(client(host));
        }
        table.run_for(30 * MS);
        table.pause(None);
        table.run_for(MS);
        let dealt = table.story.hand_offs.len();
        assert!(table.core.is_paused() && table.core.workers().all(|view| view.paused));
        for host in 0..100 {
            table.client(client(host));
        }
        // What was dealt is served; a worker that dies leaves its queue to others, for later.
        table.exit(1, ExitStatus::Signal(9), false);
        table.run_for(10 * SEC);
        assert_eq!(table.story.hand_offs.len(), dealt, "{policy:?}: nothing is dealt");
        assert_eq!(table.core.poll_timeout(), None, "{policy:?}: an idle primary does not wake up");
        let turns = table.story.turns;
        table.run_for(10 * SEC);
        assert_eq!(table.story.turns, turns, "{policy:?}: it sleeps");
        table.resume(None);
        within(&mut table, 20 * SEC, Table::is_quiet);
        let story = &table.story;
        assert_eq!((story.served.len() + story.lost.len(), story.refused.len()), (140, 0));
        assert!(story.lost.len() <= 1 && !table.core.is_paused(), "{policy:?}");
        let told = ["paused all", "resumed all"].map(|word| word.to_owned());
        assert!(told.iter().all(|word| events(&table).contains(word)));
    }
}

#[test]
fn the_clients_of_a_paused_slot_go_elsewhere_and_come_back() {
    let mut table = Table::of(config(3, Policy::Ip), Habit::default());
    table.start();
    let round = |table: &mut Table| -> Vec<u32> {
        let first = table.story.hand_offs.len();
        for host in 0..100 {
            table.client(Client::V4([10, 0, 0, host]));
            table.run_for(MS);
        }
        within(table, SEC, Table::is_quiet);
        table.story.hand_offs[first..].iter().map(|(.., worker)| *worker).collect()
    };
    let before = round(&mut table);
    table.pause(Some(1));
    table.run_for(MS);
    assert!(!table.core.is_paused());
    let meanwhile = round(&mut table);
    for (before, meanwhile) in before.iter().zip(&meanwhile) {
        assert!(*meanwhile != 2 && (*before == 2 || before == meanwhile));
    }
    // A pause outlives the worker.
    table.exit(2, ExitStatus::Signal(9), false);
    table.start_within(SEC);
    assert_eq!(round(&mut table), meanwhile);
    table.pause(Some(1));
    table.resume(Some(1));
    table.resume(Some(1));
    table.run_for(MS);
    let back: Vec<u32> = before.iter().map(|w| if *w == 2 { 4 } else { *w }).collect();
    assert_eq!(round(&mut table), back);
    let told = reported(&table, |r| matches!(r, Report::Paused { .. } | Report::Resumed { .. }));
    assert_eq!(told, 2, "what is so already is not told");
}

#[test]
fn each_slot_paused_by_itself_is_a_pause_of_all() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.pause(Some(0));
    table.pause(Some(1));
    table.run_for(MS);
    for _ in 0..10 {
        table.client(Client::Local);
    }
    table.run_for(5 * SEC);
    assert!(table.core.is_paused() && table.story.served.is_empty());
    let turns = table.story.turns;
    table.run_for(10 * SEC);
    assert_eq!((table.core.poll_timeout(), table.story.turns), (None, turns));
    table.resume(None);
    within(&mut table, SEC, Table::is_quiet);
    assert_eq!(table.story.served.len(), 10);
}

#[test]
fn one_slot_that_is_resumed_while_all_are_paused_waits_for_all() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.pause(Some(0));
    table.pause(None);
    table.resume(Some(0));
    table.client(Client::Local);
    table.run_for(SEC);
    assert!(table.story.served.is_empty());
    table.resume(None);
    within(&mut table, SEC, |table| table.story.served.len() == 1);
    assert!(table.core.slots().all(|slot| !slot.paused));
}

#[test]
fn reload_restart_and_scale_go_on_in_a_pause() {
    let mut table = Table::of(config(2, Policy::Least), Habit::blocking(MS));
    table.start();
    table.pause(None);
    for _ in 0..20 {
        table.client(Client::Local);
    }
    table.reload(false);
    within(&mut table, 10 * SEC, |table| {
        reported(table, |r| matches!(r, Report::ReloadOver { .. })) == 1
    });
    table.scale(Scale::Up(1));
    table.start_within(SEC);
    table.restart(0);
    within(&mut table, 5 * SEC, |table| name(table, 3) == "forgotten");
    table.run_for(SEC);
    assert!(table.core.workers().all(|view| view.paused && view.state == "ready"));
    assert!(table.story.hand_offs.is_empty());
    table.resume(None);
    within(&mut table, SEC, Table::is_quiet);
    assert_eq!(table.story.served.len(), 20);
}

#[test]
fn a_pause_is_no_wait_for_room() {
    let limits = Limits {
        max_queue_wait: Some(Duration::from_millis(200)),
        waiting_max: 100,
        ..Limits::NONE
    };
    let config = Config { limits, queue_limit: 1, ..config(1, Policy::Least) };
    let mut table = Table::of(config, Habit::blocking(20 * MS));
    table.start();
    for _ in 0..6 {
        table.client(Client::Local);
    }
    // Some wait in hand by now.
    table.run_for(70 * MS);
    assert!(table.core.held() > 0, "{}", table.picture());
    table.pause(None);
    for _ in 0..3 {
        table.client(Client::Local);
    }
    table.run_for(30 * SEC);
    assert_eq!((table.story.shed.len(), table.core.poll_timeout()), (0, None));
    table.resume(None);
    table.client(Client::Local);
    within(&mut table, 5 * SEC, Table::is_quiet);
    assert_eq!((table.story.shed.len(), table.story.served.len()), (0, 10));
}

#[test]
fn a_stop_ends_a_pause_and_serves_who_waits() {
    for slot in [None, Some(0)] {
        let mut table = Table::of(config(1, Policy::Least), Habit::blocking(MS));
        table.start();
        table.pause(slot);
        for _ in 0..50 {
            table.client(Client::Local);
        }
        table.run_for(SEC);
        table.stop(false);
        within(&mut table, 5 * SEC, |table| table.story.outcome.is_some());
        assert_eq!(table.story.outcome.map(|(_, outcome)| outcome), Some(Outcome::Stopped));
        assert_eq!((table.story.served.len(), table.story.refused.len()), (50, 0), "{slot:?}");
        table.pause(None);
    }
}

#[test]
fn where_workers_accept_by_themselves_nobody_can_be_paused() {
    for policy in [Policy::Shared, Policy::Reuseport] {
        let mut table = Table::of(config(2, policy), Habit::default());
        table.start();
        table.pause(None);
        table.pause(Some(0));
        table.run_for(MS);
        let why = PauseFault::ByThemselves;
        assert_eq!(reported(&table, |r| *r == Report::PauseRefused { why }), 2);
        assert!(!table.core.is_paused());
    }
}

#[test]
fn what_waits_at_a_paused_worker_that_is_late_is_taken_over() {
    let mut table = Table::of(config(2, Policy::Rr), Habit::default());
    table.start();
    if let Some(player) = table.room.players.get_mut(&1) {
        player.habit.stuck_until = u64::MAX;
    }
    for _ in 0..2 {
        table.client(Client::Local);
        table.run_for(MS);
    }
    table.pause(Some(0));
    within(&mut table, SEC, |table| table.story.served.len() == 2);
    assert_eq!(table.core.totals().stolen, 1);
}

#[test]
fn a_restart_replaces_one_worker_as_a_reload_would() {
    let mut table = Table::of(config(3, Policy::Least), Habit::blocking(4 * MS));
    table.start();
    busy_for(&mut table, 50 * MS);
    table.restart(1);
    busy_for(&mut table, 20 * MS);
    assert_eq!((name(&table, 2), name(&table, 4)), ("ready", "starting"), "the old one serves");
    busy_for(&mut table, 200 * MS);
    within(&mut table, SEC, |table| name(table, 2) == "forgotten" && table.is_quiet());
    assert_eq!(states(&table), ["up"; 3]);
    let story = &table.story;
    assert_eq!(story.served.len() as u64, table.connections, "nobody is lost");
    assert_eq!((story.most_beside, table.core.totals().recycled), (1, 0));
    let slot = table.core.slots().nth(1).unwrap();
    assert_eq!((slot.worker, slot.restarts), (Some(WorkerId(4)), 0));
}

#[test]
fn several_restarts_come_one_after_the_other_and_before_what_limits_ask_for() {
    let mut table = Table::of(config(4, Policy::Least), Habit::default());
    table.start();
    table.outgrows(1);
    table.run_for(MS);
    for slot in [3, 1] {
        table.restart(slot);
    }
    within(&mut table, 10 * SEC, |table| {
        table.all_ready() && [1, 2, 4].iter().all(|worker| name(table, *worker) == "forgotten")
    });
    let order: Vec<(u32, bool)> = table
        .story
        .reports
        .iter()
        .filter_map(|(_, report)| {
            let Report::RecycleBegan { worker, why, .. } = report else { return None };
            Some((worker.0, *why == RecycleReason::Asked))
        })
        .collect();
    assert_eq!(order, [(1, false), (2, true), (4, true)], "the first was under way");
    assert_eq!((table.story.most_beside, name(&table, 3)), (1, "ready"));
}

#[test]
fn a_restart_that_fails_leaves_the_old_one_and_is_not_tried_again() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| Habit {
        exits: Some((MS, ExitStatus::Code(1), false)),
        never_ready: true,
        ..Habit::default()
    });
    table.restart(0);
    table.run_for(120 * SEC);
    let failed = |report: &Report| {
        matches!(report, Report::RecycleFailed { by: WorkerId(3), slot: SlotId(0), wait: None, .. })
    };
    assert_eq!((reported(&table, failed), name(&table, 1)), (1, "ready"));
    assert_eq!(table.core.poll_timeout(), None);
    table.habits = Box::new(|_, _, _| Habit::default());
    table.restart(0);
    within(&mut table, 5 * SEC, |table| name(table, 1) == "forgotten" && table.all_ready());
}

/// What a restart does to a slot that has nobody, and what a reload and a stop do to a restart.
#[test]
fn restarts_of_slots_without_a_worker_and_of_slots_that_leave() {
    let base = config(2, Policy::Least);
    let restart = RestartPolicy { budget: 2, ..base.restart };
    let mut table = Table::of(Config { restart, ..base }, Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| Habit {
        exits: Some((MS, ExitStatus::Code(1), false)),
        ..Habit::default()
    });
    table.exit(2, ExitStatus::Code(1), false);
    within(&mut table, 10 * SEC, |table| states(table)[1] == "failed");
    table.habits = Box::new(|_, _, _| Habit::default());
    table.restart(1);
    within(&mut table, SEC, |table| states(table)[1] == "up");
    // A stopped one stays so.
    table.stop_slot(1);
    table.run_for(SEC);
    table.restart(1);
    table.run_for(SEC);
    assert_eq!(states(&table), ["up", "down"]);
    // A reload wins; whoever it replaces is asked for no more.
    table.restart(0);
    table.run_for(10 * MS);
    table.reload(false);
    within(&mut table, 10 * SEC, |table| {
        reported(table, |r| matches!(r, Report::ReloadOver { .. })) == 1
    });
    let workers = table.core.workers().map(|view| view.generation.0).collect::<Vec<_>>();
    table.run_for(10 * SEC);
    assert_eq!((workers, table.core.workers().count()), (vec![2], 1), "{}", table.picture());
    table.restart(0);
    table.run_for(10 * MS);
    table.stop(false);
    within(&mut table, 5 * SEC, |table| table.story.outcome.is_some());
}

/// Start, kill, reload, scale, pause, a failed reload, a slot stopped and started, stop: the events
/// are exactly these. The same day with real processes: `tests/system/events.rs`.
#[test]
fn a_day_and_its_events() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    let mut seen = 0;
    let mut news = |table: &mut Table| -> Vec<String> {
        table.run_for(5 * SEC);
        let all = events(table);
        let new = all[seen..].to_vec();
        seen = all.len();
        new
    };
    let up = |worker: u32| {
        ["fork", "online", "listening", "ready"].map(|word| format!("{word} {worker}"))
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let all = |parts: &[Vec<String>]| parts.concat();

    let start = news(&mut table);
    let by_worker = |worker: u32| -> Vec<String> {
        let of = |word: &&String| word.ends_with(&format!(" {worker}"));
        start.iter().filter(of).cloned().collect()
    };
    assert_eq!((by_worker(1), by_worker(2), start.len()), (up(1).into(), up(2).into(), 8));

    table.exit(2, ExitStatus::Signal(9), false);
    assert_eq!(news(&mut table), all(&[words(&["exit 2"]), up(3).into()]));

    table.reload(false);
    let expected = all(&[
        words(&["reload-started 2"]),
        up(4).into(),
        up(5).into(),
        words(&["reload-done 2", "disconnect 1", "disconnect 3", "exit 1", "exit 3"]),
    ]);
    assert_eq!(news(&mut table), expected);

    table.scale(Scale::To(3));
    assert_eq!(news(&mut table), all(&[words(&["scaled 2 3"]), up(6).into()]));
    table.scale(Scale::To(2));
    assert_eq!(news(&mut table), words(&["scaled 3 2", "disconnect 6", "exit 6"]));

    table.pause(None);
    table.resume(None);
    table.pause(Some(1));
    table.resume(Some(1));
    let expected = words(&["paused all", "resumed all", "paused w1", "resumed w1"]);
    assert_eq!(news(&mut table), expected);

    table.restart(0);
    let expected = all(&[up(7).into(), words(&["disconnect 4", "exit 4"])]);
    assert_eq!(news(&mut table), expected);

    table.habits = Box::new(|_, _, _| Habit {
        exits: Some((MS, ExitStatus::Code(1), false)),
        never_ready: true,
        ..Habit::default()
    });
    table.reload(false);
    let expected = ["reload-started 3", "fork 8", "online 8", "exit 8", "reload-failed 3"];
    assert_eq!(news(&mut table), words(&expected));
    table.habits = Box::new(|_, _, _| Habit::default());

    table.stop_slot(1);
    assert_eq!(news(&mut table), words(&["disconnect 5", "exit 5"]));
    table.start_slot(1);
    assert_eq!(news(&mut table), up(9));

    table.stop(false);
    let expected = ["stop", "disconnect 7", "disconnect 9", "exit 7", "exit 9"];
    assert_eq!(news(&mut table), words(&expected));
}

/// Nobody has more than one end, and everybody who has a process has one.
#[test]
fn a_worker_that_cannot_be_started_is_told_of_too() {
    let mut table = Table::of(config(1, Policy::Least), Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| Habit { spawn_fails: true, ..Habit::default() });
    table.exit(1, ExitStatus::Code(0), false);
    table.run_for(50 * MS);
    assert!(events(&table).contains(&"fork-failed 2".to_owned()), "{:?}", events(&table));
}
