//! Slots that the operator stops and starts, and workers that mean to end.

use std::ffi::OsString;
use std::net::Ipv4Addr;

use croupier_tests::{Client, Croupier, Guard, PATIENCE, Status, WorkerStatus, hammer, wait_until};

use crate::programs::one_at_a_time;

fn run<'guard>(guard: &'guard Guard, flags: &[&str], port: u16) -> Croupier<'guard> {
    let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
    args.push("--".into());
    args.extend(one_at_a_time(port));
    guard.run(args).ready()
}

/// The line of a slot that has nobody.
fn vacant(status: &Status, slot: u16) -> Option<&WorkerStatus> {
    status.workers.iter().find(|worker| worker.slot == slot && worker.id.is_none())
}

fn state(croupier: &Croupier<'_>, slot: u16) -> String {
    let status = croupier.status();
    let found = status.workers.iter().find(|worker| worker.slot == slot);
    found.map_or_else(|| "none".to_owned(), |worker| worker.state.clone())
}

const PATIENT: [&str; 4] = ["-w", "3", "--stall-after", "10s"];

#[test]
fn a_stopped_slot_finishes_what_it_has_and_stays_stopped() {
    let guard = Guard::new("slots-stop");
    let port = guard.port();
    let croupier = run(&guard, &[&PATIENT[..], &["--soak", "50ms"]].concat(), port);
    let client = Client::port(port);
    let fifo = guard.fifo("go");
    let held = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    let busy = croupier.wait_status("the blocker", |status| {
        status.ready().find(|worker| worker.active == Some(1)).cloned()
    });
    let slot = busy.slot.to_string();
    let stop = std::thread::scope(|scope| {
        let stop = scope.spawn(|| croupier.ask(&["stop", &slot]));
        croupier.wait_status("the drain", |status| vacant(status, busy.slot).map(|_| ()));
        let outcome = hammer(&client, 4, 40, |_| Some("/".to_owned()));
        assert_eq!(outcome.failures, []);
        assert!(outcome.replies.iter().all(|reply| reply.pid() != busy.pid));
        assert!(!stop.is_finished(), "it has not finished what it has");
        std::fs::write(&fifo, "").unwrap();
        stop.join().unwrap()
    });
    stop.expect_code(0);
    assert_eq!(held.reply().unwrap().pid(), busy.pid);
    let id = busy.id.unwrap();
    for line in [
        format!("slot {slot}: worker {id} drains and holds 1 connection"),
        format!("slot {slot}: worker {id} has ended"),
        format!("slot {slot} is stopped"),
    ] {
        assert!(stop.stdout.lines().any(|said| said == line), "{line:?} in {}", stop.stdout);
    }
    let check = croupier.ask(&["status", "--check"]);
    assert!(check.expect_code(0).stdout.contains("2 of 2 ready, 1 stopped"), "{check:?}");
    croupier.ask(&["wait", "ready", "--timeout", "5s"]).expect_code(0);
    assert_eq!(croupier.status().totals.refused, 0);

    // Over a reload, and over the crash of another.
    croupier.ask(&["reload"]).expect_code(0);
    assert_eq!(
        (state(&croupier, busy.slot).as_str(), croupier.status().ready().count()),
        ("down", 2)
    );
    let last = client.get("/exit?code=1").unwrap().pid();
    croupier.wait_status("the successor", |status| {
        let back = status.ready().count() == 2 && status.ready().all(|w| w.pid != last);
        back.then_some(())
    });
    assert_eq!(state(&croupier, busy.slot), "down");

    let again = croupier.ask(&["stop", &slot]);
    assert!(again.expect_code(0).stdout.contains("is stopped already"), "{again:?}");
    let start = croupier.ask(&["start", &format!("w{slot}")]);
    assert!(start.expect_code(0).stdout.contains(&format!("slot {slot}: worker ")), "{start:?}");
    let back = croupier.status().slot(busy.slot).unwrap().clone();
    assert_eq!((back.generation, back.restarts), (Some(2), Some(0)), "of the others' generation");
    let up = croupier.ask(&["start", &slot]);
    assert!(up.expect_code(0).stdout.contains("is up already"), "{up:?}");
    croupier.stop_well();
}

/// Whoever waits for a slot that is stopped meanwhile hears by whom: no worker of it has failed.
#[test]
fn a_stop_overtakes_who_waits_for_a_start() {
    let guard = Guard::new("slots-overtaken");
    let port = guard.port();
    let never = guard.fifo("never");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("[ $CROUPIER_SLOT = 0 ] || read x < {}; exec {server}", never.display());
    let croupier = guard.run(["-w", "1", "--", "sh", "-c", &script]).ready();
    let scale = std::thread::scope(|scope| {
        let asked = scope.spawn(|| croupier.ask(&["scale", "2"]));
        croupier.wait_status("the new slot", |status| {
            status.workers.iter().find(|worker| worker.slot == 1 && worker.state == "starting")?;
            Some(())
        });
        croupier.ask(&["stop", "1"]).expect_code(0);
        asked.join().unwrap()
    });
    scale.expect_code(1).expect_error(&["slot 1 was stopped meanwhile, by croupier stop"]);
    croupier.stop_well();
}

#[test]
fn when_all_slots_are_stopped_clients_wait() {
    let guard = Guard::new("slots-all");
    let port = guard.port();
    let croupier = run(&guard, &PATIENT, port);
    croupier.ask(&["stop", "0", "1", "w2", "1"]).expect_code(0);
    assert_eq!(guard.processes().len(), 1, "the primary alone");
    let client = Client::port(port);
    let waiting: Vec<_> = (0..20).map(|_| client.send("/").unwrap()).collect();
    let check = croupier.ask(&["status", "--check"]);
    assert!(check.expect_code(1).stdout.contains("0 of 0 ready, 3 stopped"), "{check:?}");
    let ready = croupier.ask(&["wait", "ready", "--timeout", "20s"]);
    ready.expect_code(1).expect_error(&["every slot is stopped", "croupier start"]);
    // A reload has nobody to show whether the new version holds, and does not say that it does.
    let reload = croupier.ask(&["reload"]);
    let stopped = "every slot is stopped: nobody has tried generation 2; croupier start SLOT does";
    assert!(reload.expect_code(0).stdout.contains(stopped), "{reload:?}");
    assert!(!reload.stdout.contains("watching") && !reload.stdout.contains("has a worker"));
    croupier
        .ask(&["restart"])
        .expect_code(1)
        .expect_error(&["every slot is stopped: there is nobody to restart; croupier start SLOT"]);
    croupier.ask(&["start", "1", "--no-wait"]).expect_code(0);
    croupier.ask(&["wait", "ready", "--timeout", "20s"]).expect_code(0);
    for pending in waiting {
        assert_eq!(pending.reply().unwrap().value("slot="), Some(1));
    }
    assert_eq!(croupier.status().slot(1).unwrap().generation, Some(2), "it tries the new version");
    assert_eq!(croupier.status().totals.refused, 0);
    croupier.stop_well();
}

#[test]
fn a_whole_stop_does_not_mind_stopped_slots() {
    let guard = Guard::new("slots-stop-all");
    let port = guard.port();
    for all in [false, true] {
        let croupier = run(&guard, &PATIENT, port);
        croupier.ask(if all { &["stop", "0", "1", "2"] } else { &["stop", "1"] }).expect_code(0);
        croupier.ask(&["stop"]).expect_code(0);
        croupier.finished(PATIENCE).expect_code(0);
    }
}

#[test]
fn a_start_that_fails_says_why_and_the_next_is_at_once() {
    let guard = Guard::new("slots-start");
    let port = guard.port();
    let broken = guard.path("broken");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("[ ! -e {} ] || exit 9; exec {server}", broken.display());
    let croupier =
        guard.run(["-w", "2", "--stall-after", "10s", "--", "sh", "-c", &script]).ready();
    croupier.ask(&["stop", "1"]).expect_code(0);
    std::fs::write(&broken, "").unwrap();
    let failed = croupier.ask(&["start", "1"]);
    failed.expect_code(1).expect_error(&[
        "slot 1: worker 3 exited with status 9; it is tried again, with longer and longer waits",
    ]);
    // Until the waits are longer than a test's.
    croupier.wait_for_line("slot 1: crash 6 in a row");
    assert_eq!(croupier.status().slot(0).map(|worker| worker.restarts), Some(Some(0)));
    let looping = croupier.status();
    let looping = looping.workers.iter().find(|worker| worker.slot == 1).unwrap();
    assert_eq!(looping.last_exit.as_deref(), Some("exit 9"), "{looping:?}");
    std::fs::remove_file(&broken).unwrap();
    croupier.ask(&["start", "1"]).expect_code(0);
    assert_eq!(croupier.status().ready().count(), 2);
    croupier.stop_well();
}

#[test]
fn slots_that_are_not_there_and_words_that_are_no_slots() {
    let guard = Guard::new("slots-usage");
    let port = guard.port();
    let croupier = run(&guard, &PATIENT, port);
    let strange = croupier.ask(&["stop", "1", "7"]);
    strange.expect_code(1).expect_error(&["there is no slot 7; the slots are 0 to 2"]);
    assert_eq!(croupier.status().ready().count(), 3, "nothing of it was done");
    croupier.ask(&["start", "3"]).expect_code(1).expect_error(&["there is no slot 3"]);
    croupier
        .ask(&["start"])
        .expect_code(2)
        .expect_error(&["croupier run COMMAND", "croupier unit -- COMMAND"]);
    croupier
        .ask(&["start", "app.js"])
        .expect_code(2)
        .expect_error(&["croupier run COMMAND", "croupier unit --"]);
    croupier.ask(&["stop", "web"]).expect_code(2).expect_error(&["-n web"]);
    croupier.ask(&["stop", "1", "--now"]).expect_code(2).expect_error(&["--now"]);
    guard.croupier(["start", "0", "-n", "nobody"]).expect_code(3);
    croupier.stop_well();
}

#[test]
fn under_ip_the_clients_of_a_stopped_slot_go_elsewhere_and_come_back() {
    let guard = Guard::new("slots-ip");
    let port = guard.port();
    let croupier = run(&guard, &[&PATIENT[..], &["-p", "ip"]].concat(), port);
    let places = || -> Vec<i32> {
        let slot = |i| {
            let client = Client::port(port).from(Ipv4Addr::new(127, 1, 2, i));
            client.get("/").unwrap().value("slot=").unwrap()
        };
        (1..40).map(slot).collect()
    };
    let before = places();
    assert!(before.contains(&1));
    croupier.ask(&["stop", "1"]).expect_code(0);
    for (before, without) in before.iter().zip(places()) {
        assert!(without != 1 && (*before == without || *before == 1));
    }
    croupier.ask(&["start", "1"]).expect_code(0);
    assert_eq!(places(), before);
    croupier.stop_well();
}

#[test]
fn under_shared_and_reuseport_a_stopped_slot_loses_nobody_who_waits() {
    let guard = Guard::new("slots-own");
    for policy in ["shared", "reuseport"] {
        let port = guard.port();
        let croupier = run(&guard, &[&PATIENT[..], &["-p", policy]].concat(), port);
        croupier.ask(&["stop", "1"]).expect_code(0);
        let outcome = hammer(&Client::port(port), 8, 60, |_| Some("/".to_owned()));
        assert_eq!(outcome.failures, [], "{policy}");
        croupier.ask(&["stop", "0", "2"]).expect_code(0);
        let client = Client::port(port);
        let waiting: Vec<_> = (0..10).map(|_| client.send("/").unwrap()).collect();
        croupier.ask(&["start", "0", "1", "2"]).expect_code(0);
        for pending in waiting {
            assert_eq!(pending.reply().unwrap().status, 200, "{policy}");
        }
        croupier.stop_well();
    }
}

#[test]
fn an_exit_that_is_meant_is_no_crash() {
    let guard = Guard::new("slots-meant");
    let port = guard.port();
    let flags = ["-w", "2", "--stall-after", "10s", "--stop-exit-codes", "0,3"];
    let croupier = run(&guard, &flags, port);
    let client = Client::port(port);
    let first = client.get("/exit?code=3").unwrap().value("slot=").unwrap();
    let slot = u16::try_from(first).unwrap();
    let down = croupier.wait_status("a slot down", |status| vacant(status, slot).cloned());
    assert_eq!((down.state.as_str(), down.last_exit.as_deref()), ("down", Some("exit 3")));
    croupier.wait_for_line("which --stop-exit-codes names");
    // Any other status is a crash as ever.
    let pid = client.get("/exit?code=4").unwrap().pid();
    croupier.wait_status("a successor", |status| {
        status.ready().find(|worker| worker.pid != pid).map(|_| ())
    });
    assert_eq!(state(&croupier, slot), "down");
    croupier.ask(&["start", &slot.to_string()]).expect_code(0);
    assert_eq!(croupier.status().ready().count(), 2);
    // When all have meant it, all is well.
    let mut croupier = croupier;
    wait_until(PATIENCE, "the end", || {
        drop(client.get("/exit?code=0"));
        croupier.exited().ok_or("it still runs")
    });
    croupier.finished(PATIENCE).expect_code(0);
}
