//! `-p ip`: a client address keeps its worker, and only those of a lost worker move.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use croupier_tests::{Client, Figure, Guard, figure, soak_or};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::one_at_a_time;

type Places = BTreeMap<Ipv4Addr, i32>;

/// Which slot serves each address; every answer of one address must come from one slot.
fn places(port: u16, addresses: &[Ipv4Addr], times: usize) -> Places {
    let slot = |address: Ipv4Addr| {
        let client = Client::port(port).from(address);
        let first = client.get("/").unwrap().value("slot=").unwrap();
        for _ in 1..times {
            let again = client.get("/").unwrap().value("slot=").unwrap();
            assert_eq!(again, first, "{address} was dealt to two slots");
        }
        first
    };
    addresses.iter().map(|address| (*address, slot(*address))).collect()
}

#[test]
fn addresses_keep_their_worker_and_come_back_to_its_successor() {
    let guard = Guard::new("sticky");
    let port = guard.port();
    let mut args: Vec<std::ffi::OsString> = ["-w", "4", "-p", "ip", "--"].map(Into::into).into();
    args.extend(one_at_a_time(port));
    let croupier = guard.run(args).ready();
    let addresses: Vec<Ipv4Addr> =
        (1..=200).map(|i| Ipv4Addr::new(127, i / 7, 3 * (i % 50), i)).collect();
    let times = soak_or(10, 3);
    let before = places(port, &addresses, times);
    let used: std::collections::BTreeSet<i32> = before.values().copied().collect();
    assert_eq!(used.len(), 4, "200 addresses over 4 slots: {before:?}");

    let lost = croupier.status().slot(2).unwrap().clone();
    kill(Pid::from_raw(lost.pid.unwrap()), Signal::SIGKILL).unwrap();
    croupier.wait_status("the successor", |status| {
        status.slot(2).filter(|worker| worker.id > lost.id).map(|_| ())
    });
    let after = places(port, &addresses, times);
    assert_eq!(before, after, "after the restart everybody is back");
    croupier.stop_well();

    let (moved, back) = one_slot_down(&guard);
    figure(&Figure {
        item: "3 ip",
        measured: format!(
            "{} addresses x {times}: each kept its worker; slot down: {moved}; restarted: {back}",
            addresses.len()
        ),
        goal: "each keeps its worker; only the lost worker's move; after its restart they are back",
        met: true,
    });
}

/// Holds one slot down: its program waits at its start until a file appears.
fn one_slot_down(guard: &Guard) -> (String, String) {
    let port = guard.port();
    let server = one_at_a_time(port).join(&std::ffi::OsString::from(" "));
    let server = server.into_string().unwrap();
    let (hold, go) = (guard.path("hold"), guard.fifo("go"));
    let script = format!(
        "if [ $CROUPIER_SLOT = 2 ] && [ -e {} ]; then read go < {}; fi; exec {server}",
        hold.display(),
        go.display()
    );
    let croupier = guard.run(["-w", "4", "-p", "ip", "--", "sh", "-c", &script]).ready();
    let addresses: Vec<Ipv4Addr> = (1..=200).map(|i| Ipv4Addr::new(127, 1, i / 16, i)).collect();
    let before = places(port, &addresses, 1);
    std::fs::write(&hold, "").unwrap();
    let lost = croupier.status().slot(2).unwrap().clone();
    kill(Pid::from_raw(lost.pid.unwrap()), Signal::SIGKILL).unwrap();
    croupier.wait_status("slot 2 down", |status| status.slot(2).is_none().then_some(()));
    let during = places(port, &addresses, 2);
    let mut moved = 0;
    for (address, slot) in &before {
        let now = during.get(address).unwrap();
        if *slot == 2 {
            assert_ne!(*now, 2, "{address}: slot 2 is down");
            moved += 1;
        } else {
            assert_eq!(now, slot, "{address} moved although its worker lives");
        }
    }
    std::fs::write(&go, "go\n").unwrap();
    croupier.wait_status("slot 2 up", |status| status.slot(2).map(|_| ()));
    assert_eq!(places(port, &addresses, 2), before, "everybody is back");
    croupier.stop_well();
    (format!("{moved} of 200 moved, all of them its own"), "200 of 200 back".to_owned())
}

#[test]
fn a_restarted_primary_keeps_everyones_slot() {
    let guard = Guard::new("sticky-restart");
    let addresses: Vec<Ipv4Addr> = (1..=40).map(|i| Ipv4Addr::new(127, 2, 0, i)).collect();
    let place = |seed: &str| {
        let port = guard.port();
        let mut args: Vec<std::ffi::OsString> =
            ["-w", "4", "-p", "ip", "--sticky-seed", seed, "--"].map(Into::into).into();
        args.extend(one_at_a_time(port));
        let croupier = guard.run(args).ready();
        let places = places(port, &addresses, 1);
        croupier.stop_well();
        places
    };
    let first = place("blue");
    assert_eq!(place("blue"), first);
    assert_ne!(place("green"), first, "the seed decides");
}
