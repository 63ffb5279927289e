//! Effects of flags that no other test is about: each fails when the flag is ignored.
//! `tests/flags` says which test is each flag's.

use std::ffi::OsString;
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Guard, PATIENCE, Pending, Status, hammer, observe, skip, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::one_at_a_time;

fn run<'guard>(guard: &'guard Guard, flags: &[&str], port: u16) -> Croupier<'guard> {
    let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
    args.push("--".into());
    args.extend(one_at_a_time(port));
    guard.run(args).ready()
}

/// A request that is answered when somebody opens the FIFO.
fn block(guard: &Guard, client: &Client, name: &str) -> Pending {
    client.send(&format!("/block?fifo={}", guard.fifo(name).display())).unwrap()
}

fn active(status: &Status, number: u64) -> Option<()> {
    (status.open() == (0, number)).then_some(())
}

#[test]
fn the_group_is_the_workers() {
    let guard = Guard::new("flags-group");
    if !nix::unistd::geteuid().is_root() {
        skip!("the_group_is_the_workers", "needs root");
    }
    let script = "echo group $(id -g) of $(id -u); exec tail -f /dev/null";
    let flags = ["-w", "1", "--group", "54321", "--ready", "start", "sh", "-c", script];
    let croupier = guard.run(flags);
    croupier.wait_for_line("group 54321 of 0");
    croupier.ready().stop_well();
}

#[test]
fn the_backlog_is_what_was_asked_for() {
    let guard = Guard::new("flags-backlog");
    let listen = format!("127.0.0.1:{}", guard.port());
    let flags = ["-w", "1", "--backlog", "37", "-l", &listen, "--ready", "start"];
    let command = ["tail", "-f", "/dev/null"];
    let croupier = guard.run(flags.into_iter().chain(command)).ready();
    assert_eq!(croupier.status().listeners[0].backlog, Some(37));
    croupier.stop_well();
}

#[test]
fn the_stop_signal_is_the_one_that_was_named() {
    let guard = Guard::new("flags-signal");
    let script = "trap 'echo asked by USR1; exit' USR1; tail -f /dev/null & echo here I am; wait";
    let flags = ["-w", "1", "--stop-signal", "USR1", "--ready", "start", "sh", "-c", script];
    let croupier = guard.run(flags);
    // By stdout: the first line on stderr has the command in it, and these words, before it runs.
    croupier.stdout().wait_for("here I am", PATIENCE).unwrap();
    croupier.signal(Signal::SIGTERM);
    let ended = croupier.finished(PATIENCE);
    ended.expect_code(0);
    assert!(ended.stdout.contains("asked by USR1"), "{ended:#?}");
}

/// Without the flag it would only be told after its connection, which it is asked to finish first.
#[test]
fn a_program_that_drains_itself_is_told_first() {
    const SOURCE: &str = r#"
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: print("told to end", flush=True))
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
client, _ = server.accept()
client.recv(4096)
print("serving", flush=True)
open(sys.argv[2]).read()
client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
client.close()
"#;
    let guard = Guard::new("flags-first");
    let (port, go) = (guard.port(), guard.fifo("go"));
    let script = guard.write("drains.py", SOURCE);
    let (script, port_text) = (script.to_str().unwrap(), port.to_string());
    let flags = ["-w", "1", "--stop-signal-first", "--graceful-timeout", "10m"];
    let command = ["python3", script, &port_text, go.to_str().unwrap()];
    let croupier = guard.run(flags.into_iter().chain(command)).ready();
    let pending = Client::port(port).send("/").unwrap();
    croupier.wait_for_line("serving");
    croupier.signal(Signal::SIGTERM);
    croupier.wait_for_line("told to end");
    std::fs::write(&go, "").unwrap();
    assert_eq!(pending.reply().unwrap().body, "ok");
    croupier.finished(PATIENCE).expect_code(0);
}

/// Two generations hold a connection each: with room for one, the older is ended.
#[test]
fn only_so_many_drain_at_a_time() {
    let guard = Guard::new("flags-draining");
    let port = guard.port();
    let flags =
        ["-w", "1", "--max-draining", "1", "--drain-timeout", "10m", "--soak", "0", "--kill-after"];
    let croupier = run(&guard, &[flags.as_slice(), &["100ms"]].concat(), port);
    let client = Client::port(port);
    let first = block(&guard, &client, "first");
    croupier.wait_status("the first", |status| active(status, 1));
    croupier.ask(&["reload", "--no-wait"]).expect_code(0);
    croupier.wait_status("generation 2", |status| {
        status.slot(0).filter(|worker| worker.generation == Some(2)).map(|_| ())
    });
    let second = block(&guard, &client, "second");
    croupier.wait_status("the second", |status| active(status, 2));
    let reload = std::thread::scope(|scope| {
        let asked = scope.spawn(|| croupier.ask(&["reload"]));
        assert!(first.reply().is_err(), "the oldest is ended");
        std::fs::write(guard.path("second"), "").unwrap();
        assert_eq!(second.reply().unwrap().status, 200);
        asked.join().unwrap()
    });
    // Nobody has reached the drain-timeout, and nobody is told so.
    for step in [
        "worker 1 still holds 1 connection and has to end, as more drain than --max-draining allows",
        "nobody is left to drain; 1 connection cut because of --max-draining",
    ] {
        assert!(reload.expect_code(0).stdout.contains(step), "{step}: {reload:?}");
    }
    croupier.wait_status("nobody else", |status| (status.workers.len() == 1).then_some(()));
    croupier.stop_well();
}

/// All clients have one address: without a bound all would wait for one slot.
#[test]
fn a_bound_sends_sticky_clients_elsewhere() {
    let guard = Guard::new("flags-bound");
    let port = guard.port();
    let flags = ["-w", "2", "-p", "ip", "--sticky-bound", "1.0", "--stall-after", "10m"];
    let croupier = run(&guard, &flags, port);
    let client = Client::port(port);
    let held = block(&guard, &client, "go");
    croupier.wait_status("the blocker", |status| active(status, 1));
    let other = client.get("/").unwrap().value("slot=");
    std::fs::write(guard.path("go"), "").unwrap();
    assert_ne!(held.reply().unwrap().value("slot="), other);
    croupier.stop_well();
}

/// With the default a worker that is idle would take over what waits for a blocked one.
#[test]
fn a_worker_is_late_only_after_its_time() {
    let guard = Guard::new("flags-stall");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "2", "-p", "rr", "--stall-after", "10m"], port);
    let client = Client::port(port);
    let held = block(&guard, &client, "go");
    croupier.wait_status("the blocker", |status| active(status, 1));
    client.get("/").unwrap();
    let waiting = client.send("/").unwrap();
    croupier.wait_status("one that waits", |status| (status.open() == (1, 1)).then_some(()));
    observe(Duration::from_millis(400));
    assert!(!waiting.answered(), "nobody took it over");
    assert_eq!(croupier.status().totals.stolen, 0);
    std::fs::write(guard.path("go"), "").unwrap();
    let slots = (held.reply().unwrap().value("slot="), waiting.reply().unwrap().value("slot="));
    assert_eq!(slots.0, slots.1);
    croupier.stop_well();
}

/// With the default a fresh worker would share with the other for ten seconds.
#[test]
fn without_a_slow_start_a_fresh_worker_gets_all_until_it_is_even() {
    const HOLDER: &str = r#"
import socket, sys
server, held = socket.create_server(("127.0.0.1", int(sys.argv[1]))), []
while True:
    held.append(server.accept()[0])
"#;
    let guard = Guard::new("flags-slow");
    let port = guard.port();
    let script = guard.write("holder.py", HOLDER);
    let (script, port_text) = (script.to_str().unwrap(), port.to_string());
    let flags = ["-w", "2", "--slow-start", "0", "--", "python3", script, &port_text];
    let croupier = guard.run(flags).ready();
    let client = Client::port(port);
    // One after another: a window that is full would decide, too.
    let hold = |count: u64| -> Vec<Pending> {
        let open = |_| {
            let before = croupier.status().open().1;
            let client = client.open().unwrap();
            croupier.wait_status("one more", |status| active(status, before + 1));
            client
        };
        (0..count).map(open).collect()
    };
    let held = hold(8);
    let each: Vec<_> = croupier.status().workers.iter().map(|worker| worker.active).collect();
    assert_eq!(each, [Some(4), Some(4)]);
    let victim = croupier.status().slot(1).cloned().unwrap();
    kill(Pid::from_raw(victim.pid.unwrap()), Signal::SIGKILL).unwrap();
    croupier.wait_status("its successor", |status| {
        status.slot(1).filter(|worker| worker.id > victim.id).map(|_| ())
    });
    let more = hold(4);
    assert_eq!(croupier.status().slot(1).and_then(|worker| worker.handed_off), Some(4));
    drop((held, more));
    croupier.stop_well();
}

#[test]
fn an_end_within_the_minimal_uptime_is_a_crash() {
    let guard = Guard::new("flags-uptime");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1", "--min-uptime", "1h"], port);
    // The first one is followed at once, the second is held against its slot.
    for _ in 0..2 {
        let id = croupier.wait_status("a worker", |status| status.slot(0).and_then(|one| one.id));
        observe(Duration::from_millis(1100));
        drop(Client::port(port).get("/exit?code=3"));
        croupier.wait_status("the next", |status| {
            status.slot(0).filter(|worker| worker.id > Some(id)).map(|_| ())
        });
    }
    croupier.wait_for_line("slot 0: crash 2 in a row");
    croupier.stop_well();
}

#[test]
fn windows_stay_within_the_queue_limit() {
    let guard = Guard::new("flags-queue");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "2", "--queue-limit", "1"], port);
    let outcome = hammer(&Client::port(port), 64, 2000, |_| Some("/".to_owned()));
    assert_eq!(outcome.failures, []);
    let windows: Vec<_> = croupier.status().workers.iter().map(|worker| worker.window).collect();
    assert_eq!(windows, [Some(1), Some(1)]);
    croupier.stop_well();
}

/// `ask` of the other tests says `-n`; here both ways are taken, with another primary beside.
#[test]
fn a_primary_is_found_by_its_name_and_by_its_socket() {
    let guard = Guard::new("flags-which");
    let socket = guard.path("own.control");
    let socket_text = socket.to_str().unwrap();
    let start = |name: &str, more: &[&str]| {
        let mut command = guard.command(croupier_tests::croupier());
        command.args(["run", "--name", name, "-w", "1", "--soak", "0"]).args(more).arg("--");
        command.args(one_at_a_time(guard.port()));
        guard.start(command)
    };
    let (one, other) = (start("which-one", &["--control", socket_text]), start("which-two", &[]));
    for (which, value) in [("--control", socket_text), ("--name", "which-two")] {
        let ask = |words: &[&str]| {
            let ended = guard.croupier([words, &[which, value]].concat());
            assert_eq!(ended.code, Some(0), "{words:?} {which}: {ended:?}");
            ended.stdout
        };
        wait_until(PATIENCE, "it answers", || {
            let ended = guard.croupier(["wait", "ready", which, value, "--timeout", "20s"]);
            if ended.code == Some(0) { Ok(()) } else { Err(ended) }
        });
        ask(&["reload"]);
        ask(&["logs"]);
        ask(&["stop", "0"]);
        ask(&["start", "0"]);
        let name = if which == "--name" { "which-two" } else { "which-one" };
        assert!(ask(&["status"]).contains(name));
        ask(&["stop"]);
        guard.croupier(["status", which, value]).expect_code(3);
    }
    for ended in [one.finished(PATIENCE), other.finished(PATIENCE)] {
        ended.expect_code(0);
    }
}

#[test]
fn a_stop_cuts_after_the_graceful_timeout() {
    let guard = Guard::new("flags-graceful");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1", "--graceful-timeout", "100ms"], port);
    let held = block(&guard, &Client::port(port), "never");
    croupier.wait_status("the blocker", |status| active(status, 1));
    let ended = croupier.stop();
    ended.expect_code(0);
    ended.expect_error(&["worker 1 still held 1 connection at the end of the --graceful-timeout"]);
    assert!(held.reply().is_err());
}

#[test]
fn the_kill_comes_as_late_as_was_said() {
    const STUBBORN: &str = "
import signal
for one in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(one, lambda *_: print('heard', flush=True))
print('here I am', flush=True)
while True:
    signal.pause()
";
    let guard = Guard::new("flags-kill");
    let script = guard.write("stubborn.py", STUBBORN);
    let flags = ["-w", "1", "--kill-after", "10m", "--ready", "start", "python3"];
    let croupier = guard.run(flags.into_iter().chain([script.to_str().unwrap()]));
    croupier.wait_for_line("here I am");
    croupier.signal(Signal::SIGINT);
    croupier.wait_for_line("heard");
    // The default is two seconds.
    observe(Duration::from_millis(2300));
    assert_eq!(guard.family(1).len(), 1, "it lives");
    croupier.signal(Signal::SIGINT);
    croupier.finished(PATIENCE).expect_code(130);
}

/// The first one starts alone; then as many as the flag says, where the default is one of four.
#[test]
fn a_reload_starts_as_many_at_a_time_as_was_said() {
    let guard = Guard::new("flags-surge");
    let port = guard.port();
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!(
        "[ $CROUPIER_WORKER_ID -le 5 ] || read go < {}; exec {server}",
        guard.fifo("never").display()
    );
    let flags = ["-w", "4", "--max-surge", "3", "--soak", "0", "sh", "-c", &script];
    let croupier = guard.run(flags).ready();
    croupier.ask(&["reload", "--no-wait"]).expect_code(0);
    croupier.wait_status("three that start", |status| {
        let starting = status.workers.iter().filter(|worker| worker.state == "starting").count();
        (starting == 3).then_some(())
    });
    croupier.stop_well();
}

/// Each command returns before that has happened which it would otherwise wait for.
#[test]
fn no_wait_does_not_wait() {
    let guard = Guard::new("flags-no-wait");
    let port = guard.port();
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let go = guard.fifo("start");
    let script =
        format!("[ $CROUPIER_WORKER_ID -le 2 ] || read go < {}; exec {server}", go.display());
    let croupier = guard.run(["-w", "2", "--stall-after", "10m", "sh", "-c", &script]).ready();
    croupier.ask(&["stop", "1"]).expect_code(0);
    croupier.ask(&["start", "1", "--no-wait"]).expect_code(0);
    std::fs::write(&go, "go\n").unwrap();
    croupier.wait_status("both", |status| (status.ready().count() == 2).then_some(()));
    let held = block(&guard, &Client::port(port), "go");
    croupier.wait_status("the blocker", |status| active(status, 1));
    croupier.ask(&["stop", "--no-wait"]).expect_code(0);
    std::fs::write(guard.path("go"), "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    croupier.finished(PATIENCE).expect_code(0);
}
