//! What a reload promises that brings another configuration: what is in force when, and how many slots
//! there are afterwards.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod table;

use std::time::Duration;

use croupier_core::config::{Config, Limits, Policy};
use croupier_core::event::{Client, ExitStatus, Report, Scale, ScaleFault};

use table::players::{Habit, Honesty};
use table::{MS, SEC, Table, busy_for, config, name, within};

fn reported(table: &Table, is_it: impl Fn(&Report) -> bool) -> usize {
    table.story.reports.iter().filter(|(_, report)| is_it(report)).count()
}

fn over(table: &Table) -> usize {
    reported(table, |report| matches!(report, Report::ReloadOver { .. }))
}

fn failed(table: &Table) -> usize {
    reported(table, |report| matches!(report, Report::ReloadFailed { .. }))
}

fn scaled(table: &Table) -> Vec<(u16, u16)> {
    let of = |report: &Report| {
        if let Report::Scaled { from, to } = report { Some((*from, *to)) } else { None }
    };
    table.story.reports.iter().filter_map(|(_, report)| of(report)).collect()
}

/// Slot and generation of everybody who is ready.
fn ready(table: &Table) -> Vec<(u16, u32)> {
    let views = table.core.workers().filter(|view| view.state == "ready");
    let mut all: Vec<_> = views.map(|view| (view.slot.0, view.generation.0)).collect();
    all.sort_unstable();
    all
}

fn broken() -> Habit {
    Habit { never_ready: true, ..Habit::default() }
}

fn stuck() -> Habit {
    Habit { stuck_until: u64::MAX, ..Habit::default() }
}

fn hung(table: &Table) -> usize {
    reported(table, |report| matches!(report, Report::Hung { .. }))
}

fn hung_after(slots: u16, millis: u64) -> Config {
    let base = config(slots, Policy::Least);
    let limits = Limits { hung_timeout: Duration::from_millis(millis), ..base.limits };
    Config { limits, ..base }
}

/// What a reload brings is in force from its beginning, and not any more when it has failed.
#[test]
fn a_configuration_comes_with_a_reload_and_goes_when_that_fails() {
    let mut table = Table::of(config(2, Policy::Least), Habit::default());
    table.start();
    let given = Config {
        ready_timeout: Duration::from_secs(1),
        soak: Duration::from_millis(100),
        // What stays as it is.
        policy: Policy::Ip,
        ..config(2, Policy::Least)
    };
    let soaks = |table: &Table| -> Vec<Duration> {
        let reports = table.story.reports.iter();
        let of = |report: &Report| {
            if let Report::Soaking { wait, .. } = report { Some(*wait) } else { None }
        };
        reports.filter_map(|(_, report)| of(report)).collect()
    };
    table.reconfigure(given);
    table.habits = Box::new(|_, _, _| broken());
    table.reload(false);
    table.run_for(2 * SEC);
    assert_eq!(failed(&table), 1, "after one second, not after sixty");
    assert_eq!(soaks(&table), []);
    // The next one has what was in force before.
    table.habits = Box::new(|_, _, _| Habit::default());
    table.reload(false);
    table.run_for(5 * SEC);
    assert_eq!(soaks(&table), [Duration::from_secs(1); 2]);
    table.reconfigure(given);
    table.reload(false);
    table.run_for(5 * SEC);
    assert_eq!(soaks(&table).get(2..), Some([Duration::from_millis(100); 2].as_slice()));
    table.reload(false);
    table.run_for(5 * SEC);
    assert_eq!(soaks(&table).last(), Some(&Duration::from_millis(100)), "it stays in force");
}

/// A reload of three slots that brings another number of them, under load.
#[test]
fn the_number_of_slots_follows_when_the_reload_has_held() {
    for rolling in [false, true] {
        for to in [1, 2, 5] {
            let mut table = Table::of(config(3, Policy::Least), Habit::blocking(3 * MS));
            table.start();
            table.reconfigure(Config { slots: to, ..config(3, Policy::Least) });
            table.reload(rolling);
            let done =
                |table: &Table| reported(table, |r| matches!(r, Report::ReloadDone { .. })) == 1;
            while !done(&table) {
                assert_eq!((scaled(&table), table.core.slot_count()), (vec![], 3), "not before");
                busy_for(&mut table, MS);
            }
            assert_eq!(scaled(&table), [(3, to)]);
            let end = table.now + 10 * SEC;
            while over(&table) == 0 || !table.all_ready() {
                busy_for(&mut table, MS);
                assert!(table.now < end, "{}", table.picture());
            }
            within(&mut table, SEC, Table::is_quiet);
            let expected: Vec<_> = (0..to).map(|slot| (slot, 2)).collect();
            assert_eq!(ready(&table), expected, "rolling {rolling}");
            let forks = reported(&table, |r| matches!(r, Report::Forked { .. }));
            assert_eq!(forks, 3 + usize::from(to), "nobody was started only to leave");
            assert!(table.story.lost.is_empty() && table.story.refused.is_empty());
        }
    }
}

#[test]
fn a_reload_that_fails_changes_no_number() {
    for to in [1, 4] {
        let mut table = Table::of(config(2, Policy::Least), Habit::default());
        table.start();
        let given = Config { slots: to, ..config(2, Policy::Least) };
        let given = Config { ready_timeout: Duration::from_secs(1), ..given };
        table.reconfigure(given);
        table.habits = Box::new(|_, _, _| broken());
        table.reload(false);
        within(&mut table, 3 * SEC, |table| over(table) == 1);
        assert_eq!((failed(&table), scaled(&table), ready(&table).len()), (1, vec![], 2));
        // It was never in force: the same number is news to the next reload.
        table.habits = Box::new(|_, _, _| Habit::default());
        table.reconfigure(given);
        table.reload(false);
        within(&mut table, 10 * SEC, |table| over(table) == 2 && table.all_ready());
        assert_eq!((scaled(&table), ready(&table).len()), (vec![(2, to)], usize::from(to)));
    }
}

/// A scale by hand stays until the file says another number than it did.
#[test]
fn what_was_scaled_by_hand_stays_until_the_number_changes() {
    let base = config(2, Policy::Least);
    let mut table = Table::of(base, Habit::default());
    table.start();
    table.scale(Scale::To(4));
    table.start_within(SEC);
    let reload = |table: &mut Table, slots: u16| {
        let before = over(table);
        table.reconfigure(Config { slots, ..base });
        table.reload(false);
        within(table, 20 * SEC, |table| over(table) == before + 1 && table.all_ready());
        table.core.slot_count()
    };
    assert_eq!(reload(&mut table, 2), 4, "two as ever");
    assert_eq!(reload(&mut table, 3), 3, "three is new");
    table.scale(Scale::Up(2));
    table.start_within(SEC);
    assert_eq!(reload(&mut table, 3), 5);
    assert_eq!(reload(&mut table, 5), 5, "new, and there already");
    assert_eq!(scaled(&table), [(2, 4), (4, 3), (3, 5)]);
    // By hand while the reload is under way: the later word.
    table.reconfigure(Config { slots: 1, ..base });
    table.reload(false);
    table.run_for(200 * MS);
    table.scale(Scale::Down(1));
    within(&mut table, 20 * SEC, |table| over(table) == 5 && table.all_ready());
    assert_eq!((table.core.slot_count(), scaled(&table).len()), (4, 4));
    let last = table.core.workers().map(|view| view.generation.0).min();
    assert_eq!(last, Some(6), "everybody is new: {}", table.picture());
}

/// The slots that would stay are stopped by hand: nobody would serve. Later somebody would, and the same
/// number comes once more.
#[test]
fn a_number_that_leaves_nobody_is_refused_and_everybody_is_replaced() {
    for by_hand in [false, true] {
        let mut table = Table::of(config(3, Policy::Least), Habit::default());
        table.start();
        table.stop_slot(0);
        table.run_for(SEC);
        table.reconfigure(Config { slots: 1, ..config(3, Policy::Least) });
        table.reload(false);
        within(&mut table, 20 * SEC, |table| over(table) == 1);
        let refused = Report::ScaleRefused { why: ScaleFault::NobodyLeft };
        assert_eq!(reported(&table, |report| *report == refused), 1);
        assert_eq!((ready(&table), scaled(&table)), (vec![(1, 2), (2, 2)], vec![]));
        table.start_slot(0);
        table.start_within(SEC);
        if by_hand {
            // The later word.
            table.scale(Scale::To(2));
            table.run_for(SEC);
        }
        table.reconfigure(Config { slots: 1, ..config(3, Policy::Least) });
        table.reload(false);
        within(&mut table, 20 * SEC, |table| over(table) == 2 && table.all_ready());
        let (then, all) =
            if by_hand { ((3, 2), vec![(0, 3), (1, 3)]) } else { ((3, 1), vec![(0, 3)]) };
        assert_eq!((scaled(&table), ready(&table)), (vec![then], all));
    }
}

/// Limits that a reload brings hold at once for those who come, also where others wait already.
#[test]
fn limits_that_come_with_a_reload_hold_at_once() {
    let base = config(2, Policy::Least);
    let capped = |max_active, max_total| Config {
        max_active,
        limits: Limits { max_total, ..base.limits },
        ..base
    };
    for (tight, tight_open, wide, wide_open) in [
        (capped(Some(1), None), 2, capped(Some(3), None), 6),
        (capped(None, Some(3)), 3, capped(None, Some(5)), 5),
        (capped(Some(1), None), 2, capped(None, None), 8),
        (capped(None, Some(3)), 3, capped(None, None), 8),
    ] {
        let mut table = Table::of(tight, Habit::event_loop(100 * SEC));
        table.start();
        for _ in 0..8 {
            table.client(Client::Local);
        }
        table.run_for(SEC);
        assert_eq!(table.story.claims.len(), tight_open);
        table.reconfigure(wide);
        table.reload(false);
        table.run_for(10 * MS);
        assert_eq!(table.story.claims.len(), wide_open, "no close, no bell, and yet");
        // And back, for whoever comes next.
        within(&mut table, 200 * SEC, |table| over(table) == 1 && table.is_quiet());
        table.reconfigure(tight);
        table.reload(false);
        table.run_for(10 * MS);
        let before = table.story.claims.len();
        for _ in 0..8 {
            table.client(Client::Local);
        }
        // Before the first new worker is there.
        table.run_for(20 * MS);
        assert_eq!(table.story.claims.len() - before, tight_open);
    }
}

/// `max_queue_wait` comes while clients wait, and goes while some are in hand.
#[test]
fn a_wait_that_comes_with_a_reload_is_measured_and_one_that_goes_resets_nobody() {
    let base = Config { max_active: Some(1), ..config(1, Policy::Least) };
    let base = Config { limits: Limits { waiting_max: 10, ..base.limits }, ..base };
    let wait = Some(Duration::from_millis(400));
    // What the machine allows is not the file's to say.
    let limited =
        Config { limits: Limits { max_queue_wait: wait, waiting_max: 1, ..base.limits }, ..base };
    let mut table = Table::of(base, Habit::event_loop(20 * SEC));
    table.start();
    for _ in 0..6 {
        table.client(Client::Local);
    }
    table.run_for(SEC);
    assert_eq!(table.core.held(), 0, "they wait in the backlog");
    table.reconfigure(limited);
    table.reload(false);
    table.run_for(110 * MS);
    // One to the canary, which has room.
    assert_eq!(table.core.held(), 4, "taken in hand after a quarter");
    table.run_for(400 * MS);
    table.client(Client::Local);
    table.run_for(MS);
    assert_eq!(table.story.shed.len(), 1);
    within(&mut table, 60 * SEC, |table| over(table) == 1);
    let held = table.core.held();
    assert!(held > 0, "{}", table.picture());
    table.reconfigure(base);
    table.reload(false);
    table.run_for(MS);
    table.client(Client::Local);
    within(&mut table, 300 * SEC, Table::is_quiet);
    assert_eq!(table.story.shed.len(), 1, "nobody is any more");
    assert_eq!(reported(&table, |report| matches!(report, Report::ShedEnded { .. })), 1);
    assert_eq!(table.core.poll_timeout(), None);
}

/// `hung_timeout` comes or goes, with a reload that holds or not, while something is always queued for
/// workers that are well.
#[test]
fn a_time_for_the_hung_that_comes_or_goes_calls_nobody_hung_who_is_well() {
    for (before, brought, holds) in
        [(2000, 0, true), (2000, 0, false), (0, 2000, true), (0, 2000, false)]
    {
        let mut table = Table::of(hung_after(2, before), Habit::blocking(50 * MS));
        table.start();
        busy_for(&mut table, SEC);
        if !holds {
            table.habits = Box::new(|_, _, _| broken());
        }
        table.reconfigure(Config {
            ready_timeout: Duration::from_secs(1),
            ..hung_after(2, brought)
        });
        table.reload(false);
        busy_for(&mut table, 5 * SEC);
        assert_eq!((over(&table), failed(&table)), (1, usize::from(!holds)));
        assert_eq!(hung(&table), 0, "from {before} to {brought}: {}", table.picture());
    }
}

/// There will be no further hand-off that could make anybody look.
#[test]
fn who_is_stuck_already_is_found_when_a_reload_brings_the_time_for_it() {
    for before in [0, 100_000] {
        let mut table = Table::of(hung_after(1, before), stuck());
        table.start();
        for _ in 0..4 {
            table.client(Client::Local);
        }
        table.run_for(60 * SEC);
        assert_eq!(hung(&table), 0);
        table.habits = Box::new(|_, _, _| broken());
        table.reconfigure(hung_after(1, 1000));
        table.reload(false);
        let begun = table.now;
        within(&mut table, 2 * SEC, |table| hung(table) == 1);
        assert!(table.now - begun >= SEC, "what was before does not count");
    }
}

/// A new worker hangs, so the reload fails and its time is not in force any more: not even in the look
/// that found it, for whoever comes after it there.
#[test]
fn a_reload_that_fails_with_somebody_hung_takes_the_time_for_it_along() {
    let soak = Duration::from_secs(3);
    let mut table = Table::of(hung_after(2, 0), Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| stuck());
    table.reconfigure(Config { soak, ..hung_after(2, 500) });
    table.reload(false);
    within(&mut table, SEC, |table| name(table, 3) == "ready");
    // An old one, with a higher number than the new one.
    table.exit(2, ExitStatus::Signal(9), false);
    within(&mut table, SEC, |table| name(table, 4) == "ready");
    table.client(Client::Local);
    table.client(Client::Local);
    table.run_for(5 * SEC);
    assert_eq!((hung(&table), failed(&table)), (1, 1), "{}", table.picture());
    assert_eq!((name(&table, 1), name(&table, 4)), ("ready", "ready"));
    assert_eq!(table.story.served.len(), 2);
}

/// A reload that shortens a time is heeded by what waits for the long one, whether it holds or not.
#[test]
fn a_shorter_time_that_a_reload_brings_is_not_waited_for_as_long_as_the_one_before() {
    let base = config(2, Policy::Least);
    let long = Duration::from_secs(3600);
    let limits = Limits { max_queue_wait: Some(long), ..base.limits };
    let limits = Limits { waiting_max: 10, ..limits };
    let base = Config { stall_after: long, limits, ..base };
    let mut table = Table::of(base, stuck());
    table.start();
    for _ in 0..6 {
        table.client(Client::Local);
    }
    table.run_for(SEC);
    let late = |table: &Table| reported(table, |r| matches!(r, Report::Late { .. }));
    assert_eq!((late(&table), table.core.held()), (0, 0));
    table.habits = Box::new(|_, _, _| broken());
    let short = Duration::from_millis(400);
    let limits = Limits { max_queue_wait: Some(short), ..limits };
    table.reconfigure(Config { stall_after: short, limits, ..base });
    table.reload(false);
    table.run_for(110 * MS);
    assert_eq!((late(&table), table.core.held()), (0, 4), "taken in hand after a quarter");
    table.run_for(300 * MS);
    assert_eq!(late(&table), 2);
}

/// Looks at pages that may be untrue are as frequent as before when a reload that made them seldom has
/// failed.
#[test]
fn who_lies_is_found_out_after_a_reload_that_looked_away() {
    let base = config(2, Policy::Least);
    let lies = Habit { honesty: Honesty::ClaimsNothing, ..Habit::default() };
    let mut table = Table::of(base, lies);
    table.start();
    for _ in 0..2 {
        table.client(Client::Local);
    }
    table.run_for(MS);
    table.habits = Box::new(|_, _, _| broken());
    let stall_after = Duration::from_secs(3600);
    table.reconfigure(Config { stall_after, ready_timeout: Duration::from_secs(1), ..base });
    table.reload(false);
    within(&mut table, 2 * SEC, |table| failed(table) == 1);
    table.habits = Box::new(|_, _, _| Habit::default());
    let found = |table: &Table| reported(table, |r| matches!(r, Report::NumbersDoNotFit { .. }));
    within(&mut table, 20 * SEC, |table| found(table) == 2);
}

/// `max_rss` comes with a reload that fails: whoever had too much by it stays.
#[test]
fn memory_is_not_too_much_any_more_when_the_reload_that_said_so_has_failed() {
    let base = config(2, Policy::Least);
    let mut table = Table::of(base, Habit::default());
    table.start();
    table.habits = Box::new(|_, _, _| broken());
    table.reconfigure(Config { ready_timeout: Duration::from_secs(1), ..base });
    table.reload(false);
    table.run_for(100 * MS);
    table.outgrows(1);
    table.outgrows(2);
    within(&mut table, 3 * SEC, |table| over(table) == 1);
    table.habits = Box::new(|_, _, _| Habit::default());
    table.run_for(10 * SEC);
    let began = |table: &Table| reported(table, |r| matches!(r, Report::RecycleBegan { .. }));
    assert_eq!((failed(&table), began(&table)), (1, 0), "{}", table.picture());
    // Too much by the limit of before.
    table.outgrows(2);
    within(&mut table, SEC, |table| began(table) == 1 && name(table, 2) == "forgotten");
}

/// An old worker that crashes during a reload that fails comes back under what the reload brought. It
/// goes on under what was before.
#[test]
fn who_started_during_a_reload_that_failed_has_the_limits_of_before() {
    let limited = |max| {
        let base = config(2, Policy::Least);
        Config { limits: Limits { max_connections: max, ..base.limits }, ..base }
    };
    for (before, brought) in [(None, Some(5)), (Some(50), None)] {
        let mut table = Table::of(limited(before), Habit::default());
        table.start();
        table.habits = Box::new(|_, worker, _| match worker.0 {
            3 => broken(),
            // Not as fast as the time allows that the reload brings.
            4 => Habit { start: 3 * SEC, ..Habit::default() },
            _ => Habit::default(),
        });
        let ready_timeout = Duration::from_secs(1);
        table.reconfigure(Config { ready_timeout, ..limited(brought) });
        table.reload(false);
        table.run_for(500 * MS);
        table.exit(2, ExitStatus::Signal(9), false);
        within(&mut table, SEC, |table| failed(table) == 1);
        assert_eq!(name(&table, 4), "starting");
        within(&mut table, 4 * SEC, |table| name(table, 4) == "ready");
        let late = reported(&table, |r| matches!(r, Report::NotReadyInTime { .. }));
        assert_eq!(late, 1, "the new one, not the old one");
        busy_for(&mut table, 500 * MS);
        let began = |report: &Report| matches!(report, Report::RecycleBegan { worker, .. } if worker.0 == 4);
        let expected = usize::from(before.is_some());
        assert_eq!(reported(&table, began), expected, "{before:?}, {brought:?}");
    }
}
