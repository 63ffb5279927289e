//! What dealing promises (README, "Policies"), each on a table of its own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use croupier_core::config::{Config, Policy};
use croupier_core::event::{Client, Report, SlotId, TakeBackReason, WorkerId};

use table::players::{Habit, Honesty, Style};
use table::{MS, SEC, Table, US, config};

fn counts(table: &Table) -> Vec<u64> {
    table.core.workers().map(|worker| worker.handed_off).collect()
}

fn windows(table: &Table) -> Vec<u16> {
    table.core.workers().map(|worker| worker.window).collect()
}

/// Clients that come back as soon as they are served, for this long.
fn saturate(table: &mut Table, clients: usize, time: u64) -> usize {
    let (end, before) = (table.now + time, table.story.served.len());
    while table.now < end {
        let gone = table.story.served.len() + table.story.lost.len() + table.story.refused.len();
        for _ in 0..clients.saturating_sub(usize::try_from(table.connections).unwrap() - gone) {
            table.client(Client::Local);
        }
        let left = end - table.now;
        table.run_until(left, |table| {
            table.story.served.len() + table.story.lost.len() + table.story.refused.len() > gone
        });
    }
    table.story.served.len() - before
}

fn spread(counts: &[u64]) -> u64 {
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

#[test]
fn one_after_another_they_take_turns() {
    for policy in [Policy::Least, Policy::Rr] {
        let mut table = Table::of(config(3, policy), Habit::default());
        table.start();
        for _ in 0..12 {
            table.client(Client::Local);
            table.run_for(MS);
        }
        assert_eq!(counts(&table), [4, 4, 4], "{policy:?}");
        assert_eq!(table.story.served.len(), 12);
    }
}

#[test]
fn rr_among_idle_workers_never_differs_by_more_than_one() {
    let mut table = Table::of(config(5, Policy::Rr), Habit::event_loop(3 * MS));
    table.start();
    for _ in 0..503 {
        table.client(Client::Local);
        let pause = table.dice.between(50 * US, 2 * MS);
        table.run_for(pause);
        assert!(spread(&counts(&table)) <= 1, "{:?}", counts(&table));
    }
}

/// After every hand-off: nobody who could have had it was less loaded when the loads were last read.
#[test]
fn least_never_picks_more_than_the_least_load() {
    let mut table = Table::of(config(6, Policy::Least), Habit::event_loop(20 * MS));
    table.start();
    for round in 0..2000_u64 {
        let service = if round % 7 == 0 { 200 * MS } else { table.dice.between(MS, 30 * MS) };
        let loads: BTreeMap<u32, usize> = table
            .room
            .players
            .values()
            .map(|player| (player.id.0, player.queue.len() + player.active.len()))
            .collect();
        let before = table.story.hand_offs.len();
        table.client_taking(service);
        table.run_until(MS, |table| table.story.hand_offs.len() > before);
        let (_, _, to) = *table.story.hand_offs.last().unwrap();
        let least = loads.values().min().unwrap();
        assert!(loads[&to] <= *least, "round {round}: worker {to} of {loads:?}");
        table.run_for(500 * US);
    }
}

#[test]
fn equal_loads_are_exact_round_robin_also_under_least() {
    let mut table = Table::of(config(4, Policy::Least), Habit::event_loop(3600 * SEC));
    table.start();
    // Long connections: loads grow together.
    for _ in 0..400 {
        table.client(Client::Local);
        table.run_for(MS);
        assert!(spread(&counts(&table)) <= 1);
    }
    assert_eq!(counts(&table), [100; 4]);
}

/// Windows are 1 at first, so whoever is on the CPU has room and the others do not; connections that
/// stay open must not pile up there.
#[test]
fn open_connections_spread_although_one_worker_claims_faster() {
    let mut table = Table::of(config(4, Policy::Least), Habit::default());
    table.habits = Box::new(|slot, _, _| Habit {
        latency: if slot == SlotId(0) { 10 * US } else { 2 * MS },
        ..Habit::event_loop(3600 * SEC)
    });
    table.start();
    for _ in 0..2000 {
        table.client(Client::Local);
        table.run_for(100 * US);
    }
    table.run_for(5 * SEC);
    let counts = counts(&table);
    assert_eq!(counts.iter().sum::<u64>(), 2000);
    assert!(spread(&counts) <= 32, "{counts:?}");
}

#[test]
fn two_listeners_take_turns_each() {
    let habit = Habit { listeners: vec![0, 1], ..Habit::default() };
    let mut table = Table::of(config(2, Policy::Rr), habit);
    table.open(1);
    table.start();
    // Turns that were shared would give one listener to one worker for ever.
    for _ in 0..10 {
        table.client_on(0, Client::Local);
        table.run_for(MS);
        table.client_on(1, Client::Local);
        table.run_for(MS);
    }
    let on_first: Vec<u32> =
        table.story.hand_offs.iter().step_by(2).map(|(_, _, to)| *to).collect();
    assert_eq!(on_first.iter().filter(|to| **to == 1).count(), 5);
}

#[test]
fn a_worker_gets_only_what_it_listens_on() {
    let mut table = Table::new(config(2, Policy::Least), 1);
    table.habits = Box::new(|slot, _, _| Habit {
        listeners: if slot == SlotId(0) { vec![0] } else { vec![0, 1] },
        ..Habit::default()
    });
    table.run_for(SEC);
    table.listeners.insert(1, table::Backlog { armed: true, ..table::Backlog::default() });
    table.tell(croupier_core::event::Event::ListenerOpened {
        listener: croupier_core::event::ListenerId(1),
        declared: false,
        policy: Policy::Least,
    });
    table.tell(croupier_core::event::Event::Listening {
        worker: WorkerId(2),
        listener: croupier_core::event::ListenerId(1),
    });
    for _ in 0..10 {
        table.client_on(1, Client::Local);
        table.run_for(MS);
    }
    assert!(table.story.hand_offs.iter().all(|(_, _, to)| *to == 2), "{:?}", table.story.hand_offs);
}

#[test]
fn windows_stay_at_one_for_slow_blocking_workers() {
    for policy in [Policy::Least, Policy::Rr] {
        let mut table = Table::of(config(4, policy), Habit::blocking(20 * MS));
        table.start();
        let served = saturate(&mut table, 64, 5 * SEC);
        assert_eq!(windows(&table), [1; 4], "{policy:?}");
        assert!(served >= 980, "a window of 1 loses nothing: {served} of 1000");
    }
}

#[test]
fn windows_grow_for_fast_workers_and_stay_below_what_stands() {
    // 45 µs a connection, and 10 between two.
    let mut table = Table::of(config(2, Policy::Least), Habit::blocking(45 * US));
    table.start();
    saturate(&mut table, 64, SEC);
    let turns = table.story.turns;
    let served = saturate(&mut table, 64, SEC);
    let windows = windows(&table);
    assert!(windows.iter().all(|window| (8..=32).contains(window)), "{windows:?}");
    assert!(served > 36_000, "{served} of 36,363: nobody starves");
    let turns = table.story.turns - turns;
    assert!(turns * 4 < u64::try_from(served).unwrap(), "{turns} turns for {served} connections");
}

#[test]
fn windows_come_back_when_a_worker_turns_slow() {
    let mut table = Table::of(config(2, Policy::Least), Habit::blocking(45 * US));
    table.start();
    saturate(&mut table, 64, SEC);
    assert!(windows(&table).iter().all(|window| *window > 4));
    for player in table.room.players.values_mut() {
        player.habit.service = 20 * MS;
    }
    saturate(&mut table, 64, 2 * SEC);
    assert_eq!(windows(&table), [1, 1]);
}

#[test]
fn an_unneeded_window_shrinks_again() {
    let mut table = Table::of(config(2, Policy::Least), Habit::blocking(45 * US));
    table.start();
    saturate(&mut table, 64, SEC);
    for _ in 0..20 {
        table.client(Client::Local);
        table.run_for(60 * MS);
    }
    assert_eq!(windows(&table), [1, 1]);
}

/// A lost doorbell costs time, never a connection.
#[test]
fn a_lost_doorbell_is_replaced_by_a_timer() {
    let habit = Habit { bell_lost: true, ..Habit::blocking(5 * MS) };
    let mut table = Table::of(config(2, Policy::Least), habit);
    table.start();
    for _ in 0..40 {
        table.client(Client::Local);
    }
    assert!(table.run_until(2 * SEC, Table::is_quiet), "{}", table.picture());
}

/// A claim in the moment in which the bell is set is seen by one side or the other: the table checks
/// before every sleep that nobody has passed his mark unheard.
#[test]
fn no_wake_up_is_lost_between_the_last_look_and_the_bell() {
    for habit in [Habit::blocking(300 * US), Habit::event_loop(2 * MS)] {
        let mut table = Table::of(config(3, Policy::Least), habit);
        table.start();
        table.race_permille = 500;
        let served = saturate(&mut table, 40, SEC);
        assert!(served > 1000);
    }
}

#[test]
fn max_active_holds_and_the_bell_rings_at_a_close() {
    for (style, policy) in [
        (Style::Blocking, Policy::Least),
        (Style::EventLoop, Policy::Least),
        (Style::EventLoop, Policy::Ip),
    ] {
        let config = Config { max_active: Some(3), ..config(2, policy) };
        let habit = Habit { style, service: 5 * MS, ..Habit::default() };
        let mut table = Table::of(config, habit);
        table.start();
        // The table itself checks that nobody ever has more than three.
        for i in 0..100 {
            table.client(Client::V4([10, 0, 0, i]));
        }
        // Six at a time take 17 rounds of 5 ms; blocking ones, two at a time, 50.
        assert!(table.run_until(260 * MS, Table::is_quiet), "{}", table.picture());
        assert_eq!(table.story.served.len(), 100);
    }
}

#[test]
fn nobody_waits_in_a_queue_while_another_worker_is_idle() {
    let mut table = Table::new(config(4, Policy::Least), 1);
    table.habits = Box::new(|slot, _, _| Habit {
        stuck_until: if slot == SlotId(2) { 5 * SEC } else { 0 },
        ..Habit::event_loop(2 * MS)
    });
    table.start();
    for _ in 0..200 {
        table.client(Client::Local);
        table.run_for(7 * MS);
    }
    let made = table.connections - u64::try_from(table.story.probes.len()).unwrap();
    assert_eq!(u64::try_from(table.story.served.len()).unwrap(), made, "{}", table.picture());
    let waited: Vec<u64> = table
        .story
        .taken_back
        .iter()
        .filter(|(_, _, _, why)| *why == TakeBackReason::Steal)
        .map(|(at, serial, from, _)| {
            let sent = table.story.hand_offs.iter().find(|(_, s, to)| s == serial && to == from);
            at - sent.unwrap().0
        })
        .collect();
    assert!(!waited.is_empty());
    assert!(waited.iter().all(|wait| *wait <= 150 * MS), "{waited:?}");
    assert!(table.core.totals().stolen >= 1);
    // The stuck one got a probe, and nothing after it until it claimed.
    assert_eq!(table.story.probes.len(), 1);
    let (probed, _) = table.story.probes[0];
    let after = table.story.hand_offs.iter().filter(|(at, _, to)| *to == 3 && *at > probed);
    assert_eq!(after.clone().filter(|(at, _, _)| *at < 5 * SEC).count(), 0);
    // Unblocked, it works again.
    let late = |table: &Table| table.core.workers().any(|worker| worker.late);
    assert!(late(&table));
    table.run_for(5 * SEC);
    assert!(!late(&table), "{}", table.picture());
    let before = counts(&table)[2];
    for _ in 0..8 {
        table.client(Client::Local);
        table.run_for(5 * MS);
    }
    assert_eq!(counts(&table)[2], before + 2);
    assert!(
        table.story.reports.iter().any(|(_, r)| *r == Report::Recovered { worker: WorkerId(3) })
    );
}

/// The others are never idle, but quick: what lies behind the stuck one must not wait for them to be.
#[test]
fn nobody_waits_behind_a_stuck_worker_while_the_others_are_busy_but_quick() {
    let mut table = Table::new(config(4, Policy::Least), 1);
    table.habits = Box::new(|slot, _, _| Habit {
        stuck_until: if slot == SlotId(2) { 60 * SEC } else { 0 },
        ..Habit::blocking(2 * MS)
    });
    table.start();
    // More than three can serve, for two seconds.
    for _ in 0..2000 {
        table.client(Client::Local);
        table.client(Client::Local);
        table.run_for(MS);
    }
    let held: Vec<u64> = table
        .story
        .hand_offs
        .iter()
        .filter(|(at, serial, to)| {
            *to == 3
                && *at + 150 * MS < table.now
                && !table.story.taken_back.iter().any(|(_, back, _, _)| back == serial)
        })
        .map(|(_, serial, _)| *serial)
        .collect();
    assert_eq!(held, [], "{}", table.picture());
    assert!(table.core.totals().stolen >= 1);
}

#[test]
fn who_only_lacks_cpu_is_not_late() {
    let mut table = Table::new(config(2, Policy::Least), 1);
    table.habits = Box::new(|slot, _, _| Habit {
        stuck_until: if slot == SlotId(1) { 60 * SEC } else { 0 },
        lacks_cpu: slot == SlotId(1),
        ..Habit::event_loop(MS)
    });
    table.start();
    table.client(Client::Local);
    table.client(Client::Local);
    table.run_for(SEC);
    assert!(table.core.workers().all(|worker| !worker.late), "{}", table.picture());
    assert_eq!(table.core.totals().stolen, 0);
    // It has a CPU and still does not claim.
    table.room.players.get_mut(&2).unwrap().habit.lacks_cpu = false;
    table.run_for(50 * MS);
    assert_eq!(table.core.totals().stolen, 1, "{}", table.picture());
}

/// Four of four blocked with long requests: lateness is normal there.
#[test]
fn a_saturated_blocking_pool_sees_no_steal() {
    for honesty in [Honesty::Honest, Honesty::NoPage] {
        let habit = Habit { honesty, ..Habit::blocking(5 * SEC) };
        let mut table = Table::of(config(4, Policy::Least), habit);
        table.start();
        for _ in 0..60 {
            table.client(Client::Local);
            table.run_for(10 * MS);
        }
        let turns = table.story.turns;
        assert!(table.run_until(120 * SEC, Table::is_quiet), "{}", table.picture());
        assert_eq!(table.core.totals().stolen, 0, "{honesty:?}");
        assert!(table.story.probes.is_empty());
        // First come, first served, within one request of each worker.
        let order: Vec<u64> = table.story.claims.iter().map(|(_, serial, _)| *serial).collect();
        for (place, serial) in order.iter().enumerate() {
            let place = u64::try_from(place).unwrap() + 1;
            assert!(place.abs_diff(*serial) <= 4, "connection {serial} was number {place}");
        }
        // 75 seconds with a look each 20 ms at most.
        let turns = table.story.turns - turns;
        assert!(turns < 75 * 60, "it spins: {turns} turns");
    }
}

#[test]
fn all_late_and_one_recovers() {
    let habit = Habit { stuck_until: 4 * SEC, ..Habit::event_loop(MS) };
    let mut table = Table::of(config(3, Policy::Least), habit);
    table.start();
    for _ in 0..30 {
        table.client(Client::Local);
    }
    table.run_for(2 * SEC);
    assert!(table.core.workers().all(|worker| worker.late), "{}", table.picture());
    assert_eq!(table.core.totals().stolen, 0);
    // One of them wakes up: it gets what waits, also in the queues of the others.
    table.room.players.get_mut(&2).unwrap().habit.stuck_until = 0;
    table.strike_at(table.now);
    table.kick(2);
    assert!(
        table.run_until(SEC, |table| table.story.served.len() == 30),
        "{} served; {}",
        table.story.served.len(),
        table.picture()
    );
    assert!(table.core.totals().stolen >= 2);
}

#[test]
fn a_primary_that_overslept_suspects_nobody() {
    let mut table = Table::of(config(3, Policy::Least), Habit::event_loop(MS));
    table.start();
    for player in table.room.players.values_mut() {
        player.habit.latency = 300 * MS;
    }
    table.client(Client::Local);
    table.client(Client::Local);
    table.run_for(MS);
    table.asleep_until = table.now + 250 * MS;
    table.run_for(250 * MS);
    let late = table.story.reports.iter().filter(|(_, r)| matches!(r, Report::Late { .. })).count();
    assert_eq!(late, 0);
}

#[test]
fn ip_keeps_clients_moves_only_those_of_a_dead_slot_and_gives_them_back() {
    let mut table = Table::of(config(4, Policy::Ip), Habit::event_loop(MS));
    table.start();
    let all = |table: &mut Table| -> BTreeMap<u8, SlotId> {
        let mut slots = BTreeMap::new();
        for host in 0..200_u8 {
            let serial = table.client(Client::V4([127, 0, 1, host]));
            table.run_for(MS);
            let (_, _, to) =
                *table.story.hand_offs.iter().rev().find(|(_, s, _)| *s == serial).unwrap();
            let slot = table.core.workers().find(|worker| worker.worker.0 == to).unwrap().slot;
            slots.insert(host, slot);
        }
        slots
    };
    let first = all(&mut table);
    for _ in 0..3 {
        assert_eq!(all(&mut table), first);
    }
    assert!((0..4).all(|slot| first.values().filter(|s| s.0 == slot).count() > 25), "{first:?}");
    // Its successor needs a minute.
    table.habits = Box::new(|_, _, _| Habit { start: 30 * SEC, ..Habit::event_loop(MS) });
    table.exit(2, croupier_core::event::ExitStatus::Signal(11), false);
    table.run_for(MS);
    let without = all(&mut table);
    for (host, slot) in &first {
        if *slot == SlotId(1) {
            assert_ne!(without[host], SlotId(1));
        } else {
            assert_eq!(without[host], *slot, "client {host} moved for nothing");
        }
    }
    table.start_within(40 * SEC);
    assert_eq!(all(&mut table), first);
}

#[test]
fn ip_accepts_nobody_before_all_are_ready_or_the_time_is_over() {
    let config = Config { ready_timeout: Duration::from_secs(2), ..config(3, Policy::Ip) };
    for last_start in [SEC, 3600 * SEC] {
        let mut table = Table::new(config, 1);
        table.habits = Box::new(move |slot, _, _| Habit {
            start: if slot == SlotId(2) { last_start } else { 10 * MS },
            ..Habit::event_loop(MS)
        });
        table.run_for(100 * MS);
        let opened = table.now;
        table.client(Client::V4([10, 1, 1, 1]));
        assert!(
            table.run_until(10 * SEC, |table| !table.story.hand_offs.is_empty()),
            "{}",
            table.picture()
        );
        let waited = table.story.hand_offs[0].0 - opened;
        let expected = last_start.min(2 * SEC) - 100 * MS;
        assert!(waited.abs_diff(expected) < 50 * MS, "{} ms", waited / MS);
    }
}

#[test]
fn ip_by_64_and_mapped_addresses_go_together() {
    let mut table = Table::of(config(8, Policy::Ip), Habit::event_loop(MS));
    table.start();
    let mut to = |client| {
        table.client(client);
        table.run_for(MS);
        table.story.hand_offs.last().unwrap().2
    };
    for net in 0..20 {
        let v6 = |host| Client::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, net, 1, 2, 3, 4, 5, 6, 7, host]);
        assert_eq!(to(v6(1)), to(v6(200)));
        let mapped = Client::V6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, net]);
        assert_eq!(to(mapped), to(Client::V4([10, 0, 0, net])));
    }
}

#[test]
fn ip_a_full_slot_sends_its_clients_to_the_next() {
    let mut table = Table::of(config(3, Policy::Ip), Habit::event_loop(MS));
    table.start();
    let client = Client::V4([10, 9, 8, 7]);
    table.client(client);
    table.run_for(MS);
    let (_, _, own) = table.story.hand_offs[0];
    table.room.players.get_mut(&own).unwrap().habit.stuck_until = u64::MAX;
    for _ in 0..300 {
        table.client(client);
    }
    table.run_for(10 * MS);
    let own_count = table.story.hand_offs.iter().filter(|(_, _, to)| *to == own).count();
    assert_eq!(own_count, 257);
    let others: std::collections::BTreeSet<u32> =
        table.story.hand_offs.iter().map(|(_, _, to)| *to).filter(|to| *to != own).collect();
    assert_eq!(others.len(), 1, "the next by score, not anybody: {others:?}");
}

#[test]
fn ip_with_a_bound_no_slot_goes_over_it() {
    let config = Config { sticky_bound: Some(1250), ..config(4, Policy::Ip) };
    let mut table = Table::of(config, Habit::event_loop(3600 * SEC));
    table.start();
    // All from one address: without the bound one worker would have them all.
    for n in 1..=400_u64 {
        table.client(Client::V4([10, 0, 0, 1]));
        table.run_for(MS);
        let most = *counts(&table).iter().max().unwrap();
        assert!(most <= (1250 * n).div_ceil(4000), "{most} of {n}");
    }
    assert_eq!(*counts(&table).iter().max().unwrap(), 125);
}

#[test]
fn a_fresh_worker_never_gets_more_than_twice_its_share_in_any_second() {
    let config = Config { slow_start: Duration::from_secs(10), ..config(4, Policy::Least) };
    let mut table = Table::of(config, Habit::event_loop(3600 * SEC));
    table.start();
    for _ in 0..1600 {
        table.client(Client::Local);
        table.run_for(MS / 2);
    }
    table.run_for(2 * SEC);
    table.exit(1, croupier_core::event::ExitStatus::Signal(9), false);
    table.start_within(5 * SEC);
    let since = table.story.hand_offs.len();
    for _ in 0..2000 {
        table.client(Client::Local);
        table.run_for(10 * MS);
    }
    let hand_offs = &table.story.hand_offs[since..];
    let mut first_second = 0;
    for start in 0..hand_offs.len() {
        let begin = hand_offs[start].0;
        let second: Vec<_> =
            hand_offs[start..].iter().take_while(|(at, ..)| at - begin < SEC).collect();
        let its = second.iter().filter(|(_, _, to)| *to == 5).count();
        // One more than twice its share: a hand-off is whole.
        assert!(its <= 2 * second.len() / 4 + 1, "{its} of {}", second.len());
        if start == 0 {
            first_second = its;
        }
    }
    assert!(
        (20..=30).contains(&first_second),
        "the share begins at the fair one: {first_second} of 100"
    );
    let last: Vec<_> = hand_offs.iter().rev().take(200).collect();
    let its = last.iter().filter(|(_, _, to)| *to == 5).count();
    assert!((90..=101).contains(&its), "and rises to twice that while it has less: {its} of 200");
}

#[test]
fn a_fresh_worker_is_not_limited_when_the_others_are_full_or_idle() {
    let config = Config {
        slow_start: Duration::from_secs(10),
        max_active: Some(10),
        ..config(2, Policy::Least)
    };
    let mut table = Table::of(config, Habit::event_loop(3600 * SEC));
    table.start();
    for _ in 0..20 {
        table.client(Client::Local);
        table.run_for(MS);
    }
    table.run_for(2 * SEC);
    table.exit(1, croupier_core::event::ExitStatus::Signal(9), false);
    table.start_within(5 * SEC);
    let before = table.now;
    for _ in 0..10 {
        table.client(Client::Local);
    }
    table.run_for(10 * MS);
    let its = table.story.hand_offs.iter().filter(|(at, _, to)| *to == 3 && *at >= before).count();
    assert_eq!(its, 10, "{}", table.picture());
}

#[test]
fn a_full_kernel_queue_is_waited_for_without_a_spin() {
    let mut table = Table::of(config(3, Policy::Least), Habit::event_loop(MS));
    table.start();
    table.full_permille = 1000;
    for _ in 0..50 {
        table.client(Client::Local);
    }
    let turns = table.story.turns;
    table.run_for(SEC);
    let turns = table.story.turns - turns;
    assert!(turns < 200, "{turns} turns in a second");
    table.full_permille = 0;
    assert!(table.run_until(SEC, Table::is_quiet), "{}", table.picture());
    assert_eq!(table.story.served.len(), 50);
}

#[test]
fn an_idle_core_has_no_timer() {
    for policy in [Policy::Least, Policy::Rr, Policy::Ip] {
        let mut table = Table::of(config(4, policy), Habit::event_loop(MS));
        table.start();
        for i in 0..100 {
            table.client(Client::V4([10, 0, 0, i]));
        }
        table.run_for(SEC);
        assert!(table.is_quiet());
        assert_eq!(table.core.poll_timeout(), None, "{policy:?}");
        let turns = table.story.turns;
        table.run_for(5 * SEC);
        assert_eq!(table.story.turns, turns, "{policy:?}: an idle primary makes no wake-ups");
    }
}

#[test]
fn numbers_that_do_not_fit_cost_the_worker_its_place() {
    for honesty in [Honesty::ClaimsTooMany, Honesty::GoesBack, Honesty::ClaimsNothing] {
        let mut table = Table::new(config(3, Policy::Least), 1);
        table.habits = Box::new(move |_, worker, _| Habit {
            honesty: if worker == WorkerId(2) { honesty } else { Honesty::Honest },
            ..Habit::event_loop(MS)
        });
        table.start();
        for _ in 0..600 {
            table.client(Client::Local);
            table.run_for(10 * MS);
        }
        let unfit = Report::NumbersDoNotFit { worker: WorkerId(2) };
        assert!(table.story.reports.iter().any(|(_, report)| *report == unfit), "{honesty:?}");
        let kills: Vec<u32> = table.story.kills.iter().map(|(_, worker)| *worker).collect();
        assert_eq!(kills, [2], "{honesty:?}: it and nobody else");
        table.run_for(SEC);
        assert!(table.all_ready() && table.is_quiet(), "{}", table.picture());
    }
}

/// A table that is saturated for a while, where one worker is of this honesty.
fn with_liar(config: Config, liar: u32, honesty: Honesty, service: u64) -> Table {
    let mut table = Table::new(config, 1);
    table.habits = Box::new(move |_, worker, _| Habit {
        honesty: if worker == WorkerId(liar) { honesty } else { Honesty::Honest },
        ..Habit::blocking(service)
    });
    table.start();
    for _ in 0..3000 {
        let waiting = table.listeners.values().map(|backlog| backlog.waiting.len()).sum::<usize>();
        for host in waiting..100 {
            table.client(Client::V4([10, 0, 0, u8::try_from(host).unwrap()]));
        }
        table.run_for(2 * MS);
    }
    table
}

fn expect_found_out(mut table: Table, liar: u32, what: &str) {
    let unfit = Report::NumbersDoNotFit { worker: WorkerId(liar) };
    let found = table.story.reports.iter().any(|(_, report)| *report == unfit);
    assert!(found, "{what}, worker {liar}: {}", table.picture());
    let kills: Vec<u32> = table.story.kills.iter().map(|(_, worker)| *worker).collect();
    assert_eq!(kills, [liar], "{what}: it and nobody else");
    table.run_for(60 * SEC);
    assert!(table.all_ready() && table.is_quiet(), "{what}: {}", table.picture());
}

/// It takes what comes, counts nothing of it, and always leaves one connection where it is: that one
/// must not hide the others.
#[test]
fn claims_hidden_behind_one_queued_connection_are_found_out() {
    let policies = [(Policy::Least, 3), (Policy::Rr, 3), (Policy::Ip, 3), (Policy::Least, 1)];
    for (policy, slots) in policies {
        let hides = Honesty::HidesBehindOne { after: 500 };
        // Quick, so that its window is wider than the one that it leaves.
        let table = with_liar(config(slots, policy), 1, hides, 100 * US);
        expect_found_out(table, 1, &format!("{policy:?} over {slots}"));
    }
}

/// It looks idle, so everything would go to it, and wait there.
#[test]
fn who_says_that_it_has_claimed_everything_is_found_out() {
    for slots in [1, 3] {
        let table = with_liar(config(slots, Policy::Least), 1, Honesty::ClaimsAll, 20 * MS);
        expect_found_out(table, 1, &format!("{slots} slots"));
    }
}

/// A worker that has no CPU between its recvmsg and its count is no liar.
#[test]
fn a_count_that_lags_is_waited_for() {
    let lag = Honesty::HidesBehindOne { after: 30 };
    let mut table = Table::of(config(2, Policy::Least), Habit { honesty: lag, ..Habit::default() });
    table.start();
    for _ in 0..100 {
        table.client(Client::Local);
    }
    table.run_for(2 * SEC);
    assert!(table.room.players.values().any(|player| player.hides()), "{}", table.picture());
    for player in table.room.players.values_mut() {
        player.habit.honesty = Honesty::Honest;
    }
    for worker in [1, 2] {
        table.kick(worker);
    }
    table.run_for(10 * SEC);
    assert_eq!(table.story.kills, [], "{:?}", table.story.reports);
    assert!(table.is_quiet(), "{}", table.picture());
}
