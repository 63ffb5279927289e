//! How it all ends: nobody is reset, everybody is answered, nothing is left.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use croupier_tests::{
    Client, Failure, Figure, Guard, PATIENCE, cpu_time, figure, hammer, now, observe, skip,
    soak_or, wait_until, wrk,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::one_at_a_time;

fn args(flags: &[&str], command: Vec<OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
    args.push("--".into());
    args.extend(command);
    args
}

/// Whether a client came too late: its connection was never accepted, and it was told at once.
fn too_late(failure: &Failure) -> bool {
    matches!(failure, Failure::Connect(_))
}

#[test]
fn term_under_load_answers_every_accepted_connection() {
    let guard = Guard::new("stop-load");
    let rounds = soak_or(20, 3);
    let mut answers = 0;
    for _ in 0..rounds {
        let port = guard.port();
        let croupier = guard.run(args(&["-w", "4"], one_at_a_time(port))).ready();
        let client = Client::port(port).patience(Duration::from_secs(10));
        let outcome = std::thread::scope(|scope| {
            let load =
                scope.spawn(|| hammer(&client, 64, usize::MAX, |_| Some("/slow?ms=20".to_owned())));
            croupier.wait_status("load", |status| (status.totals.handed_off > 100).then_some(()));
            croupier.signal(Signal::SIGTERM);
            let ended = croupier.finished(PATIENCE);
            ended.expect_code(0);
            let left = guard.processes();
            assert_eq!(left, [], "the primary has gone and these live");
            load.join().unwrap()
        });
        let torn: Vec<_> = outcome.failures.iter().filter(|failure| !too_late(failure)).collect();
        assert!(torn.is_empty(), "{torn:?}");
        answers += outcome.replies.len();
    }
    figure(&Figure {
        item: "7 TERM under load",
        measured: format!("{rounds} rounds, 64 clients: {answers} whole answers, 0 torn or reset"),
        goal: "every accepted connection answered whole, no resets, exit 0",
        met: true,
    });
}

#[test]
fn term_under_wrk_resets_nobody() {
    let guard = Guard::new("stop-wrk");
    let rounds = soak_or(20, 2);
    let mut requests = 0;
    for _ in 0..rounds {
        let port = guard.port();
        let croupier = guard.run(args(&["-w", "4"], one_at_a_time(port))).ready();
        let run = std::thread::scope(|scope| {
            let load = scope.spawn(|| wrk(&guard, port, "/slow?ms=20", 64, &["-d", "2s"]));
            croupier.wait_status("load", |status| (status.totals.handed_off > 100).then_some(()));
            croupier.signal(Signal::SIGTERM);
            croupier.finished(PATIENCE).expect_code(0);
            load.join().unwrap()
        });
        let Some(run) = run else { skip!("term_under_wrk_resets_nobody", "wrk is not installed") };
        // wrk connects without waiting, so whom the closed port refuses it counts as a write error.
        let [_, read, _, timeout, status] = run.errors;
        assert_eq!([read, timeout, status], [0; 3], "{}", run.text);
        requests += run.requests;
    }
    figure(&Figure {
        item: "7 TERM under wrk -c 64",
        measured: format!("{rounds} rounds: {requests} answers, 0 read errors, 0 timeouts"),
        goal: "no resets in 20 rounds",
        met: true,
    });
}

#[test]
fn a_server_in_the_background_of_a_shell_goes_too() {
    let guard = Guard::new("stop-shell");
    let port = guard.port();
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("{server} & wait");
    let croupier = guard.run(["-w", "2", "--", "sh", "-c", &script]).ready();
    let client = Client::port(port);
    let fifo = guard.fifo("go");
    let held = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("the blocker", |status| (status.open().1 == 1).then_some(()));
    croupier.signal(Signal::SIGTERM);
    wait_until(PATIENCE, "the listener to close", || match client.open() {
        Err(failure) if too_late(&failure) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(!held.answered(), "it is still being served");
    std::fs::write(&fifo, "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    croupier.finished(PATIENCE).expect_code(0);
    assert_eq!(guard.processes(), []);
}

#[test]
fn what_is_queued_when_the_stop_comes_is_served() {
    let guard = Guard::new("stop-queued");
    let port = guard.port();
    let croupier = guard.run(args(&["-w", "2"], one_at_a_time(port))).ready();
    let client = Client::port(port);
    let fifos = [guard.fifo("a"), guard.fifo("b")];
    let held: Vec<_> = fifos
        .iter()
        .map(|fifo| client.send(&format!("/block?fifo={}", fifo.display())).unwrap())
        .collect();
    croupier.wait_status("both blocked", |status| (status.open().1 == 2).then_some(()));
    // Some of these are queued for a worker, the others wait in the backlog.
    let behind: Vec<_> = (0..20).map(|_| client.send("/").unwrap()).collect();
    croupier.signal(Signal::SIGTERM);
    for fifo in &fifos {
        std::fs::write(fifo, "").unwrap();
    }
    for pending in held.into_iter().chain(behind) {
        assert_eq!(pending.reply().unwrap().status, 200);
    }
    croupier.finished(PATIENCE).expect_code(0);
}

#[test]
fn the_first_int_says_what_it_waits_for_and_the_second_kills() {
    let guard = Guard::new("stop-int");
    let port = guard.port();
    let croupier = guard.run(args(&["-w", "3"], one_at_a_time(port))).ready();
    let client = Client::port(port);
    let fifo = guard.fifo("never");
    let path = format!("/block?fifo={}", fifo.display());
    let held: Vec<_> = (0..3).map(|_| client.send(&path).unwrap()).collect();
    croupier.wait_status("three blocked", |status| (status.open().1 == 3).then_some(()));
    croupier.signal(Signal::SIGINT);
    croupier.wait_for_line("draining 3 connections, Ctrl-C again to stop at once");
    assert!(held.iter().all(|pending| !pending.answered()));
    croupier.signal(Signal::SIGINT);
    let ended = croupier.finished(PATIENCE);
    ended.expect_code(130);
    assert_eq!(guard.processes(), []);
}

#[test]
fn quit_and_int_stop_like_term() {
    let guard = Guard::new("stop-signals");
    for signal in [Signal::SIGQUIT, Signal::SIGINT] {
        let port = guard.port();
        let croupier = guard.run(args(&["-w", "1"], one_at_a_time(port))).ready();
        croupier.signal(signal);
        croupier.finished(PATIENCE).expect_code(0);
    }
}

#[test]
fn a_vanished_terminal_stops_it() {
    const TERMINAL: &str = r#"
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
seen = b""
while b"ready" not in seen.replace(b"starting", b""):
    seen += os.read(terminal, 4096)
os.close(terminal)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"#;
    let guard = Guard::new("stop-hup");
    let port = guard.port();
    let script = guard.write("terminal.py", TERMINAL);
    let mut command = guard.command("python3");
    command.arg(script).arg(croupier_tests::croupier()).args(["run", "-w", "1"]);
    command.args(args(&[], one_at_a_time(port)));
    guard.finish(command).expect_code(0);
    assert_eq!(guard.processes(), []);
}

#[test]
fn a_worker_that_ignores_the_signal_is_killed() {
    const STUBBORN: &str = "
import signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
while True:
    server.accept()[0].close()
";
    let guard = Guard::new("stop-stubborn");
    let port = guard.port().to_string();
    let script = guard.write("stubborn.py", STUBBORN).into_os_string().into_string().unwrap();
    let flags = ["-w", "2", "--kill-after", "300ms", "--", "python3", &script, &port];
    let croupier = guard.run(flags).ready();
    croupier.stop_well();
    assert_eq!(guard.processes(), []);
}

#[test]
fn stop_waits_and_stop_now_does_not() {
    let guard = Guard::new("stop-cli");
    for now in [false, true] {
        let port = guard.port();
        let croupier = guard.run(args(&["-w", "2"], one_at_a_time(port))).ready();
        let fifo = guard.fifo(if now { "never" } else { "go" });
        let held = Client::port(port).send(&format!("/block?fifo={}", fifo.display())).unwrap();
        croupier.wait_status("the blocker", |status| (status.open().1 == 1).then_some(()));
        if now {
            croupier.ask(&["stop", "--now"]).expect_code(0);
            assert!(held.reply().is_err());
        } else {
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| croupier.ask(&["stop"]));
                croupier.wait_for_line("stopping");
                assert!(!held.answered());
                std::fs::write(&fifo, "").unwrap();
                assert_eq!(held.reply().unwrap().status, 200);
                asked.join().unwrap().expect_code(0);
            });
        }
        let ended = croupier.finished(PATIENCE);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(guard.processes(), []);
    }
}

/// The primary is gone without a word: workers finish what they hold and go, and nothing spins.
#[test]
fn workers_outlive_a_killed_primary_only_as_long_as_their_clients() {
    let guard = Guard::new("stop-killed");
    let port = guard.port();
    let croupier = guard.run(args(&["-w", "3"], one_at_a_time(port))).ready();
    let client = Client::port(port);
    let fifo = guard.fifo("go");
    let held = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    let busy = croupier.wait_status("the blocker", |status| {
        status.ready().find(|worker| worker.active == Some(1)).and_then(|worker| worker.pid)
    });
    croupier.signal(Signal::SIGKILL);
    let killed = croupier.finished_alone();
    let (mut idle_gone, mut left) = (Duration::MAX, Vec::new());
    wait_until(PATIENCE, "the idle workers to go", || {
        left = guard.processes();
        if left.iter().all(|process| process.pid == busy) {
            idle_gone = idle_gone.min(killed.elapsed());
            Ok(())
        } else {
            Err(left.clone())
        }
    });
    assert_eq!(left.len(), 1, "the worker that serves somebody lives: {left:?}");
    let before = cpu_time(busy);
    observe(Duration::from_millis(300));
    let used = cpu_time(busy).saturating_sub(before);
    assert!(used < Duration::from_millis(100), "it spins: {used:?} in 300 ms");
    std::fs::write(&fifo, "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    let finished = now();
    wait_until(PATIENCE, "the last worker to go", || {
        let left = guard.processes();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let busy_gone = finished.elapsed();
    let most = soak_or(Duration::from_secs(1), PATIENCE);
    figure(&Figure {
        item: "7 primary SIGKILLed",
        measured: format!(
            "idle workers gone after {idle_gone:?}, the busy one {busy_gone:?} after its answer, \
             processor time while waiting {used:?}"
        ),
        goal: "what they hold is finished, then they go within 1 s; nothing spins",
        met: idle_gone < most && busy_gone < most,
    });
}

#[test]
fn it_runs_where_others_would_stumble() {
    let guard = Guard::new("stop-stumble");
    let port = guard.port();
    let program = croupier_tests::croupier();
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    // A parent that ignores SIGCHLD, stdin closed, a session without a terminal.
    let script = format!(
        "trap '' CHLD; exec setsid -w {} run --name stumble -w 2 -- {server} <&-",
        program.display()
    );
    let mut command = guard.command("sh");
    command.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = command.spawn().unwrap();
    wait_until(PATIENCE, "croupier wait ready", || {
        let waited = guard.croupier(["wait", "ready", "-n", "stumble", "--timeout", "20s"]);
        if waited.code == Some(0) { Ok(()) } else { Err(waited) }
    });
    let client = Client::port(port);
    assert_eq!(hammer(&client, 4, 40, |_| Some("/".to_owned())).failures, []);
    // SIGCHLD ignored must not hide a death.
    let status = guard.croupier(["status", "--json", "-n", "stumble"]);
    let status: croupier_tests::Status = serde_json::from_str(&status.stdout).unwrap();
    kill(Pid::from_raw(status.slot(0).unwrap().pid.unwrap()), Signal::SIGKILL).unwrap();
    wait_until(PATIENCE, "a successor", || {
        let text = guard.croupier(["status", "--json", "-n", "stumble"]).stdout;
        let now: croupier_tests::Status = serde_json::from_str(&text).unwrap();
        let new = now.slot(0).is_some_and(|worker| worker.id > status.slot(0).unwrap().id);
        if new { Ok(()) } else { Err(text) }
    });
    guard.croupier(["stop", "-n", "stumble"]).expect_code(0);
    let output = wait_until(PATIENCE, "its end", || match shell.try_wait().unwrap() {
        Some(status) => Ok(status),
        None => Err("still running"),
    });
    drop((shell.stdout.take(), shell.stderr.take()));
    assert_eq!(output.code(), Some(0));
}

#[test]
fn stop_without_a_primary_is_exit_3() {
    let guard = Guard::new("stop-nobody");
    guard.croupier(["stop", "-n", "nobody"]).expect_code(3).expect_error(&["nobody"]);
}
