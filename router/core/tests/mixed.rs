//! Listeners of different policies over the same workers: what each promises holds beside the others.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use croupier_core::config::{Config, Policy};
use croupier_core::event::{Client, ExitStatus, SlotId, TakeBackReason};

use table::players::Habit;
use table::{MS, SEC, Table, config, within};

const ALL: [Policy; 3] = [Policy::Rr, Policy::Ip, Policy::Least];
const TURNS: u16 = 0;
const STICKS: u16 = 1;
const LOADS: u16 = 2;

fn of(config: Config, habit: Habit) -> Table {
    let habit = Habit { listeners: vec![TURNS, STICKS, LOADS], ..habit };
    let mut table = Table::with(config, &ALL);
    table.habits = Box::new(move |_, _, _| habit.clone());
    table
}

fn host(number: u8) -> Client {
    Client::V4([10, 0, 0, number])
}

/// Who was given a connection, the last time that somebody was.
fn given(table: &Table, serial: u64) -> u32 {
    table.story.hand_offs.iter().rev().find(|(_, known, _)| *known == serial).unwrap().2
}

/// Who gets one more of these, that is served at once.
fn one(table: &mut Table, listener: u16, client: Client) -> u32 {
    let serial = table.client_on(listener, client);
    table.run_for(2 * MS);
    assert!(table.story.served.contains(&serial), "{}", table.picture());
    given(table, serial)
}

/// The same where one takes longer.
fn one_of(table: &mut Table, listener: u16, client: Client) -> u32 {
    let serial = table.client_on(listener, client);
    within(table, SEC, Table::is_quiet);
    given(table, serial)
}

fn slot_of(table: &Table, worker: u32) -> SlotId {
    table.core.workers().find(|view| view.worker.0 == worker).unwrap().slot
}

#[test]
fn a_turn_is_exact_and_clients_stick_whatever_the_others_do() {
    let mut table = of(config(4, Policy::Least), Habit::event_loop(MS));
    table.start();
    let mut homes = BTreeMap::new();
    let mut last = None;
    for round in 0..5_u8 {
        for number in 0..40 {
            let next = one(&mut table, TURNS, Client::Local);
            let expected = last.map_or(next, |last: u32| last % 4 + 1);
            assert_eq!(next, expected, "round {round}, host {number}");
            last = Some(next);
            let home = one(&mut table, STICKS, host(number));
            assert_eq!(*homes.entry(number).or_insert(home), home, "round {round}, host {number}");
            for _ in 0..number % 3 {
                one(&mut table, LOADS, host(number));
            }
        }
    }
    // A slot that goes down moves its clients, and only those, and gets them back.
    table.habits = Box::new(|_, _, _| Habit {
        start: SEC,
        listeners: vec![TURNS, STICKS, LOADS],
        ..Habit::event_loop(MS)
    });
    let slots: BTreeMap<u8, SlotId> =
        homes.iter().map(|(number, home)| (*number, slot_of(&table, *home))).collect();
    table.exit(2, ExitStatus::Signal(9), false);
    table.run_for(10 * MS);
    let mut moved = 0;
    for (number, home) in &homes {
        let now = one(&mut table, STICKS, host(*number));
        moved += u32::from(*home == 2);
        assert!(if *home == 2 { now != 2 } else { now == *home }, "host {number}: {home} to {now}");
    }
    assert!(moved > 0, "nobody was in slot 1: {homes:?}");
    table.start_within(5 * SEC);
    for (number, slot) in &slots {
        let now = one(&mut table, STICKS, host(*number));
        assert_eq!(slot_of(&table, now), *slot, "host {number}");
    }
}

/// The load is the worker's: what came to it by address, or in its turn, counts.
#[test]
fn least_counts_what_the_other_listeners_brought() {
    let mut table = of(config(4, Policy::Least), Habit::event_loop(MS));
    table.start();
    for number in 0..60 {
        let serial = table.client_on(if number % 4 == 0 { TURNS } else { STICKS }, host(number));
        let backlog = table.listeners.values_mut().flat_map(|backlog| &mut backlog.waiting);
        backlog.last().unwrap().service = Some(100 * SEC);
        table.run_for(2 * MS);
        given(&table, serial);
        let loads: BTreeMap<u32, usize> = table
            .room
            .players
            .values()
            .map(|player| (player.id.0, player.active.len() + player.queue.len()))
            .collect();
        let who = one(&mut table, LOADS, Client::Local);
        assert_eq!(loads[&who], *loads.values().min().unwrap(), "{number}: {who} of {loads:?}");
    }
    let most = table.room.players.values().map(|player| player.active.len()).max().unwrap();
    let least = table.room.players.values().map(|player| player.active.len()).min().unwrap();
    assert!(most > least + 3, "the addresses were spread too evenly to show anything");
}

#[test]
fn only_clients_that_stick_wait_for_everybody_at_the_start() {
    let config = Config { ready_timeout: Duration::from_secs(2), ..config(3, Policy::Least) };
    let mut table = Table::with(config, &ALL);
    table.habits = Box::new(|slot, _, _| Habit {
        start: if slot == SlotId(2) { SEC } else { 10 * MS },
        listeners: vec![TURNS, STICKS, LOADS],
        ..Habit::event_loop(MS)
    });
    let stuck: Vec<u64> = (0..10).map(|number| table.client_on(STICKS, host(number))).collect();
    table.run_for(100 * MS);
    for listener in [TURNS, LOADS] {
        one(&mut table, listener, host(1));
    }
    assert_eq!(table.listeners[&STICKS].accepted, 0);
    table.run_for(SEC);
    assert!(stuck.iter().all(|serial| table.story.served.contains(serial)), "{}", table.picture());
    table.run_for(SEC);
    assert_eq!(table.core.poll_timeout(), None, "an idle primary does not wake up");
}

/// Of a late worker's queue only those are stolen that stick to nobody; who sticks goes on to it.
#[test]
fn who_sticks_waits_for_a_late_worker_and_nobody_else_does() {
    let mut table = of(config(3, Policy::Least), Habit::event_loop(MS));
    table.start();
    let mine = (0..60).map(host).find(|client| one(&mut table, STICKS, *client) == 1).unwrap();
    table.room.players.get_mut(&1).unwrap().habit.stuck_until = table.now + 2 * SEC;
    // One of three has its turn there, and the first of those who stick comes behind it.
    let mut loose: Vec<u64> = (0..3).map(|_| table.client_on(TURNS, Client::Local)).collect();
    table.run_for(MS);
    assert!(loose.iter().any(|serial| given(&table, *serial) == 1), "{}", table.picture());
    let mut stuck = vec![table.client_on(STICKS, mine)];
    table.run_for(MS);
    for _ in 0..6 {
        loose.push(table.client_on(LOADS, Client::Local));
        loose.push(table.client_on(TURNS, Client::Local));
        table.run_for(MS);
    }
    // When it is late long since, and when its queue is as good as empty, too.
    for _ in 0..5 {
        table.run_for(150 * MS);
        stuck.push(table.client_on(STICKS, mine));
        loose.push(table.client_on(LOADS, Client::Local));
        loose.push(table.client_on(TURNS, Client::Local));
    }
    table.run_for(250 * MS);
    assert!(loose.iter().all(|serial| table.story.served.contains(serial)), "{}", table.picture());
    assert!(!stuck.iter().any(|serial| table.story.served.contains(serial)));
    let (queue, story) = (&table.room.players[&1].queue, &table.story);
    let waits = |serial: &u64| queue.iter().any(|conn| conn.serial == *serial);
    assert!(stuck.iter().all(waits), "{}", table.picture());
    assert!(!story.taken_back.iter().any(|(_, serial, ..)| stuck.contains(serial)));
    assert!(story.taken_back.iter().any(|(.., why)| *why == TakeBackReason::Steal));
    within(&mut table, 3 * SEC, Table::is_quiet);
    assert!(stuck.iter().all(|serial| given(&table, *serial) == 1));
    table.run_for(SEC);
    assert_eq!(table.core.poll_timeout(), None, "an idle primary does not wake up");
}

/// More late workers than looks before one is tried again, in whose queues the first sticks, and one that
/// has something to steal and is late last: it gets its look.
#[test]
fn what_can_be_stolen_is_not_kept_by_those_who_have_nothing() {
    for one_queue in [true, false] {
        let mut table = Table::with(config(9, Policy::Least), &ALL);
        table.one_queue = one_queue;
        table.habits = Box::new(|_, _, _| Habit {
            listeners: vec![TURNS, STICKS, LOADS],
            ..Habit::blocking(MS)
        });
        table.start();
        let mut homes = BTreeMap::new();
        for client in (0..250).map(host) {
            homes.entry(one_of(&mut table, STICKS, client)).or_insert(client);
        }
        assert_eq!(homes.len(), 9, "somebody has no client: {homes:?}");
        // Who serves on has all of its time for what is stolen, one look after the other.
        for worker in 1..=8 {
            table.room.players.get_mut(&worker).unwrap().habit.stuck_until = table.now + 100 * SEC;
        }
        for worker in 1..=7 {
            table.client_on(STICKS, homes[&worker]);
        }
        table.run_for(5 * MS);
        let loose: Vec<u64> = (0..3).map(|_| table.client_on(TURNS, Client::Local)).collect();
        table.run_for(5 * MS);
        let at_8: Vec<u64> =
            loose.iter().copied().filter(|serial| given(&table, *serial) == 8).collect();
        assert!(!at_8.is_empty(), "{}", table.picture());
        table.run_for(400 * MS);
        for serial in &at_8 {
            assert!(table.story.served.contains(serial), "{one_queue}: {}", table.picture());
        }
        let stolen: Vec<u64> =
            table.story.taken_back.iter().map(|(_, serial, ..)| *serial).collect();
        assert!(stolen.iter().all(|serial| loose.contains(serial)), "{stolen:?}");
    }
}

/// A worker that leaves keeps what sticks to it, and gives back what does not.
#[test]
fn who_leaves_keeps_what_sticks_and_gives_back_the_rest() {
    let config = Config {
        drain_timeout: Duration::from_secs(40),
        // Nothing is stolen meanwhile.
        stall_after: Duration::from_secs(100),
        ..config(2, Policy::Least)
    };
    let mut table = of(config, Habit::event_loop(MS));
    table.start();
    let mine = (0..60).map(host).find(|client| one(&mut table, STICKS, *client) == 1).unwrap();
    // Something of his is open there, so that he goes on to it.
    let open = table.client_on(STICKS, mine);
    table.listeners.get_mut(&STICKS).unwrap().waiting.back_mut().unwrap().service = Some(20 * SEC);
    table.run_for(5 * MS);
    assert_eq!(given(&table, open), 1);
    table.room.players.get_mut(&1).unwrap().habit.stuck_until = table.now + 3 * SEC;
    let loose = [table.client_on(TURNS, Client::Local), table.client_on(TURNS, Client::Local)];
    table.run_for(MS);
    let stuck = [table.client_on(STICKS, mine), table.client_on(STICKS, mine)];
    table.run_for(MS);
    assert!(loose.iter().any(|serial| given(&table, *serial) == 1), "{}", table.picture());
    table.reload(false);
    table.run_for(2 * SEC);
    assert!(loose.iter().all(|serial| table.story.served.contains(serial)), "{}", table.picture());
    assert!(!stuck.iter().any(|serial| table.story.served.contains(serial)));
    let taken = table.story.taken_back.iter();
    assert!(taken.clone().count() > 0, "the rest was given back");
    assert!(taken.clone().all(|(.., why)| *why == TakeBackReason::Drain));
    let later = table.client_on(STICKS, mine);
    table.run_for(2 * SEC);
    let all = stuck.iter().chain([&later]);
    assert!(all.clone().all(|serial| table.story.served.contains(serial)), "{}", table.picture());
    assert!(all.clone().all(|serial| given(&table, *serial) == 1));
    // At last it goes, and he to his slot's next worker.
    within(&mut table, 60 * SEC, |table| !table.room.players.contains_key(&1));
    let next = one(&mut table, STICKS, mine);
    assert_eq!(slot_of(&table, next), SlotId(0));
}

/// One bell for listeners whose windows differ, set by both: nobody sleeps for too long.
#[test]
fn a_full_worker_rings_for_each_listener_that_waits() {
    for limit in [1, 8] {
        let config = Config { queue_limit: limit, ..config(1, Policy::Least) };
        let mut table = of(config, Habit::blocking(MS));
        table.start();
        // As many as one worker may have that sticks, and more of everything.
        for number in 0..400_u16 {
            let number = u8::try_from(number % 251).unwrap();
            table.client_on(STICKS, host(number));
            table.client_on(if number % 2 == 0 { LOADS } else { TURNS }, host(number));
        }
        let (began, turns) = (table.now, table.story.turns);
        within(&mut table, 2 * SEC, Table::is_quiet);
        let took = table.now - began;
        assert!(took < 900 * MS, "{limit}: idle in between: {} ms for 800", took / MS);
        let turns = table.story.turns - turns;
        assert!(turns < 1700, "{limit}: {turns} wake-ups for 800 connections");
    }
}

/// An address that gives its workers more than they can serve leaves the others their part, whichever is
/// asked first: what sticks waits in the backlog too while nobody has room by load.
#[test]
fn a_busy_address_does_not_starve_another() {
    for listeners in
        [[Policy::Rr, Policy::Ip], [Policy::Ip, Policy::Rr], [Policy::Least, Policy::Ip]]
    {
        let mut table = Table::with(config(2, Policy::Least), &listeners);
        table.habits =
            Box::new(|_, _, _| Habit { listeners: vec![0, 1], ..Habit::blocking(5 * MS) });
        table.start();
        let sticks = u16::from(listeners[1] == Policy::Ip);
        let (mut singles, mut slowest) = (Vec::new(), 0);
        for round in 0..800_u32 {
            for number in 0..3 {
                let number = u8::try_from((round * 3 + number) % 251).unwrap();
                table.client_on(sticks, host(number));
            }
            if round % 100 == 50 {
                singles.push((table.client_on(1 - sticks, Client::Local), table.now));
            }
            table.run_for(5 * MS);
            for (serial, came) in &singles {
                if !table.story.served.contains(serial) {
                    slowest = slowest.max(table.now - came);
                }
            }
        }
        let served = singles.iter().filter(|(serial, _)| table.story.served.contains(serial));
        assert_eq!((singles.len(), served.count()), (8, 8), "{listeners:?}: {}", table.picture());
        assert!(slowest < 100 * MS, "{listeners:?}: one waited for {} ms", slowest / MS);
        let all = table.story.served.len();
        assert!(all > 1550, "{listeners:?}: two workers could serve 1600, and served {all}");
    }
}

/// Room at a worker that does nothing lets nobody in to the others.
#[test]
fn a_late_worker_opens_no_door_to_the_others() {
    let mut table = Table::with(config(3, Policy::Least), &[Policy::Rr, Policy::Ip]);
    table.habits = Box::new(|_, _, _| Habit { listeners: vec![0, 1], ..Habit::blocking(5 * MS) });
    table.start();
    let mut others: Vec<Client> = (0..60).map(host).collect();
    others.retain(|client| one_of(&mut table, STICKS, *client) != 1);
    table.room.players.get_mut(&1).unwrap().habit.stuck_until = table.now + 100 * SEC;
    // It is late, and what it had is stolen: nothing waits there any more.
    for _ in 0..6 {
        table.client_on(TURNS, Client::Local);
    }
    let served = table.story.served.len() + 6;
    table.run_for(300 * MS);
    assert_eq!(table.story.served.len(), served, "{}", table.picture());
    let mut singles = Vec::new();
    for round in 0..400 {
        for number in 0..3 {
            table.client_on(STICKS, others[(round * 3 + number) % others.len()]);
        }
        if round % 50 == 0 {
            singles.push(table.client_on(TURNS, Client::Local));
        }
        table.run_for(5 * MS);
        let waits = singles.iter().filter(|serial| !table.story.served.contains(serial)).count();
        assert!(waits < 2, "round {round}: {}", table.picture());
    }
}

/// Two that both want more than there is share it.
#[test]
fn two_busy_addresses_share_the_workers() {
    for listeners in [[Policy::Rr, Policy::Ip], [Policy::Ip, Policy::Rr], [Policy::Rr, Policy::Rr]]
    {
        let mut table = Table::with(config(2, Policy::Least), &listeners);
        table.habits =
            Box::new(|_, _, _| Habit { listeners: vec![0, 1], ..Habit::blocking(5 * MS) });
        table.start();
        let mut on = [Vec::new(), Vec::new()];
        for round in 0..800_u32 {
            for number in 0..3 {
                let number = u8::try_from((round * 3 + number) % 251).unwrap();
                on[0].push(table.client_on(0, host(number)));
                on[1].push(table.client_on(1, host(number)));
            }
            table.run_for(5 * MS);
        }
        let served =
            on.map(|all| all.iter().filter(|serial| table.story.served.contains(serial)).count());
        assert!(served.iter().all(|count| *count > 700), "{listeners:?}: {served:?} of 1600");
    }
}
