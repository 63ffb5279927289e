//! `[[listen]] policy`: addresses of one program that are dealt differently.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use croupier_tests::{Client, Guard, PATIENCE, Status, stop_process, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::{one_at_a_time, two_ports};

/// A file for these words, with one `[[listen]]` for each address, program's port and policy.
fn file(guard: &Guard, words: &[String], listens: &[(u16, u16, &str)], more: &str) {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    let mut text = format!("command = [{}]\n{more}", words.join(", "));
    for (public, own, policy) in listens {
        text += &format!("[[listen]]\naddress = \"127.0.0.1:{public}\"\nprogram = \"{own}\"\n");
        if !policy.is_empty() {
            text += &format!("policy = \"{policy}\"\n");
        }
    }
    guard.write("croupier.toml", &text);
}

fn server(port: u16) -> Vec<String> {
    one_at_a_time(port).into_iter().map(|word| word.into_string().unwrap()).collect()
}

fn policies(status: &Status) -> BTreeMap<String, String> {
    let each = status.listeners.iter();
    each.map(|listener| (listener.address.clone(), listener.policy.clone())).collect()
}

/// Three addresses for one listener of the program, and so one queue of each worker: the turn goes on
/// exactly, whatever is dealt in between, and addresses keep their worker.
#[test]
fn a_turn_and_clients_that_stick_do_not_disturb_each_other() {
    let guard = Guard::new("mixed");
    let [own, turns, sticks, rest] = std::array::from_fn(|_| guard.port());
    let listens = [(turns, own, "rr"), (sticks, own, "ip"), (rest, own, "")];
    file(&guard, &server(own), &listens, "workers = 4\n");
    let croupier = guard.run::<&str>([]).ready();
    let status = croupier.status();
    let expected = listens.map(|(port, _, policy)| {
        let policy = if policy.is_empty() { "least" } else { policy };
        (format!("127.0.0.1:{port}"), policy.to_owned())
    });
    assert_eq!(policies(&status), BTreeMap::from(expected));
    assert_eq!(status.policy, "rr+ip+least");
    let addresses: Vec<Ipv4Addr> = (1..=24).map(|i| Ipv4Addr::new(127, 3, i % 5, i)).collect();
    let slot = |client: Client| client.get("/").unwrap().value("slot=").unwrap();
    let mut turn: Option<i32> = None;
    let mut places = BTreeMap::new();
    for round in 0..3 {
        for address in &addresses {
            let next = slot(Client::port(turns));
            let expected = turn.map_or(next, |last| (last + 1) % 4);
            assert_eq!(next, expected, "the turn is the listener's own, round {round}");
            turn = Some(next);
            let place = slot(Client::port(sticks).from(*address));
            let known = *places.entry(*address).or_insert(place);
            assert_eq!(place, known, "{address} was dealt to two slots, round {round}");
            slot(Client::port(rest));
        }
    }
    let mut used: Vec<i32> = places.into_values().collect();
    used.sort_unstable();
    used.dedup();
    assert!(used.len() > 1, "24 addresses over 4 slots: {used:?}");
    croupier.stop_well();
}

/// A worker that stands still: who is dealt by load is served by another, who sticks to it waits.
#[test]
fn what_waits_for_a_late_worker_is_stolen_from_one_address_and_stays_at_the_other() {
    let guard = Guard::new("mixed-late");
    let [loads, sticks] = std::array::from_fn(|_| guard.port());
    let words = two_ports(&guard, [loads, sticks]);
    let listens = [(loads, loads, "least"), (sticks, sticks, "ip")];
    // Long enough that what sticks is there before something is stolen.
    file(&guard, &words, &listens, "workers = 2\nstall-after = \"6s\"\n");
    let croupier = guard.run::<&str>([]).ready();
    let slot = |client: &Client| client.get("/").unwrap().value("slot=").unwrap();
    let home = |client: &Client| slot(client) == 0;
    let mut hosts = (1..=200).map(|i| Client::port(sticks).from(Ipv4Addr::new(127, 4, 0, i)));
    let stuck = hosts.find(home).expect("one of 200 addresses belongs to slot 0");

    let victim = croupier.status().slot(0).unwrap().pid.unwrap();
    stop_process(victim);
    let queued = |count: u32| {
        croupier.wait_status("so many are queued", |status| {
            status.slot(0).filter(|worker| worker.queued == Some(count.into())).map(|_| ())
        });
    };
    // With nothing to do, each has one of two, and one is where nothing is done.
    let loose: Vec<_> = (0..2).map(|_| Client::port(loads).send("/").unwrap()).collect();
    queued(1);
    let waits: Vec<_> = (0..3).map(|_| stuck.send("/").unwrap()).collect();
    queued(4);
    for pending in loose {
        assert_eq!(pending.reply().unwrap().value("slot="), Some(1));
    }
    queued(3);
    assert_eq!(croupier.status().totals.stolen, 1);
    // Dealt by load, all are served, though one worker stands: those that came to it are stolen.
    for _ in 0..20 {
        assert_eq!(slot(&Client::port(loads)), 1);
    }
    let status = croupier.status();
    assert_eq!(status.slot(0).unwrap().queued, Some(3), "{status:?}");
    // Also who comes now, when it is known to be late.
    croupier.wait_status("it is late", |status| {
        status.slot(0).filter(|worker| worker.late == Some(true)).map(|_| ())
    });
    let last = stuck.send("/").unwrap();
    croupier.wait_status("it waits there too", |status| {
        status.slot(0).filter(|worker| worker.queued == Some(4)).map(|_| ())
    });
    // Only what sticks is left there; more of the others changes nothing.
    for _ in 0..20 {
        assert_eq!(slot(&Client::port(loads)), 1);
    }
    assert_eq!(croupier.status().totals.stolen, 1);
    queued(4);
    kill(Pid::from_raw(victim), Signal::SIGCONT).unwrap();
    for pending in waits.into_iter().chain([last]) {
        assert_eq!(pending.reply().unwrap().value("slot="), Some(0));
    }
    croupier.stop_well();
}

/// What a dead worker leaves in the one queue of two addresses goes to the others as it came: by load, or
/// where its address belongs.
#[test]
fn what_the_dead_leave_is_dealt_as_its_address_is() {
    let guard = Guard::new("mixed-dead");
    let [own, loads, sticks] = std::array::from_fn(|_| guard.port());
    let (go, hold) = (guard.fifo("go"), guard.path("hold"));
    let script = format!(
        "if [ $CROUPIER_SLOT = 0 -a -e {} ]; then read go < {}; fi; exec {}",
        hold.display(),
        go.display(),
        server(own).join(" ")
    );
    let words = ["sh".to_owned(), "-c".to_owned(), script];
    // Nothing is stolen meanwhile.
    let more = "workers = 3\nstall-after = \"60s\"\n";
    file(&guard, &words, &[(loads, own, "least"), (sticks, own, "ip")], more);
    let croupier = guard.run::<&str>([]).ready();
    let slot = |client: &Client| client.get("/").unwrap().value("slot=").unwrap();
    let mut hosts = (1..=200).map(|i| Client::port(sticks).from(Ipv4Addr::new(127, 6, 0, i)));
    let stuck = hosts.find(|client| slot(client) == 0).expect("one of 200 belongs to slot 0");

    std::fs::write(&hold, "").unwrap();
    let victim = croupier.status().slot(0).unwrap().pid.unwrap();
    stop_process(victim);
    let queued = |count: u64| {
        croupier.wait_status("so many are queued", |status| {
            status.slot(0).filter(|worker| worker.queued == Some(count)).map(|_| ())
        });
    };
    let loose: Vec<_> = (0..3).map(|_| Client::port(loads).send("/").unwrap()).collect();
    queued(1);
    let waits: Vec<_> = (0..8).map(|_| stuck.send("/").unwrap()).collect();
    queued(9);
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    for pending in loose {
        assert_ne!(pending.reply().unwrap().value("slot="), Some(0));
    }
    let mut places: Vec<Option<i32>> =
        waits.into_iter().map(|pending| pending.reply().unwrap().value("slot=")).collect();
    places.dedup();
    assert_eq!(places.len(), 1, "of one address, with its slot down: {places:?}");
    assert_ne!(places, [Some(0)]);
    assert_eq!(croupier.status().totals.salvaged, 9);
    std::fs::write(&go, "go\n").unwrap();
    croupier.wait_status("slot 0 is back", |status| {
        status.slot(0).filter(|worker| worker.pid != Some(victim)).map(|_| ())
    });
    croupier.stop_well();
}

/// Clients that stick wait until every slot is there, the others do not.
#[test]
fn only_the_address_that_sticks_waits_for_everybody_at_the_start() {
    let guard = Guard::new("mixed-start");
    let [own, loads, sticks] = std::array::from_fn(|_| guard.port());
    let go = guard.fifo("go");
    let script = format!(
        "if [ $CROUPIER_SLOT = 1 ]; then read go < {}; fi; exec {}",
        go.display(),
        server(own).join(" ")
    );
    let words = ["sh".to_owned(), "-c".to_owned(), script];
    file(&guard, &words, &[(loads, own, ""), (sticks, own, "ip")], "workers = 2\n");
    let croupier = guard.run::<&str>([]);
    wait_until(PATIENCE, "it answers", || {
        let asked = croupier.ask(&["status"]);
        if asked.code == Some(0) { Ok(()) } else { Err(asked.stderr) }
    });
    croupier.wait_status("slot 0", |status| status.slot(0).map(|_| ()));
    let waits: Vec<_> = (1..=8)
        .map(|i| Client::port(sticks).from(Ipv4Addr::new(127, 5, 0, i)).send("/").unwrap())
        .collect();
    for _ in 0..5 {
        assert_eq!(Client::port(loads).get("/").unwrap().value("slot="), Some(0));
    }
    let status = croupier.status();
    let accepted = |port: u16| {
        let address = format!("127.0.0.1:{port}");
        status.listeners.iter().find(|listener| listener.address == address).unwrap().accepted
    };
    assert_eq!((accepted(loads), accepted(sticks)), (5, 0));
    std::fs::write(&go, "go\n").unwrap();
    for pending in waits {
        assert_eq!(pending.reply().unwrap().status, 200);
    }
    croupier.stop_well();
}

#[test]
fn check_names_the_line_of_each_and_a_reload_changes_none() {
    let guard = Guard::new("mixed-reload");
    let [own, loads, sticks] = std::array::from_fn(|_| guard.port());
    let is = |policy: &str| {
        let listens = [(loads, own, "least"), (sticks, own, policy)];
        file(&guard, &server(own), &listens, "workers = 1\n");
    };
    is("ip");
    let said = guard.croupier(["check"]);
    let line = said.expect_code(0).stdout.lines().find(|line| line.contains(&sticks.to_string()));
    let known = said.stdout.lines().find(|line| line.starts_with("policy.127.0.0.1"));
    assert!(line.is_some() && known.is_some(), "{}", said.stdout);
    let named = format!("policy.127.0.0.1:{sticks}");
    let row = said.stdout.lines().find(|line| line.starts_with(&named)).unwrap_or_default();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells, [named.as_str(), "ip", "no", "croupier.toml:10"], "{}", said.stdout);
    let croupier = guard.run::<&str>([]).ready();
    for (policy, now) in [("rr", "rr"), ("", "not given")] {
        is(policy);
        let wanted = format!("{named} cannot change while croupier runs: it was ip, and is {now}");
        croupier.ask(&["reload"]).expect_code(1).expect_error(&[
            "no reload",
            "croupier.toml",
            &wanted,
        ]);
        wait_until(PATIENCE, "it is in the log", || {
            let count = croupier.stderr().count(&wanted);
            if count == 1 { Ok(()) } else { Err(count) }
        });
    }
    is("ip");
    croupier.ask(&["reload"]).expect_code(0);
    croupier.stop_well();
}
