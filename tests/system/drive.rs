//! Driving a running primary: scale, pause, resume, restart, kill, and the signals that mean the same.

use std::ffi::OsString;
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Figure, Guard, PATIENCE, Status, WorkerStatus, descriptors, field_of_status,
    figure, hammer, observe, soak_or, wake_ups,
};
use nix::sys::signal::Signal;

use crate::programs::one_at_a_time;

fn run<'guard>(guard: &'guard Guard, flags: &[&str], port: u16) -> Croupier<'guard> {
    let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
    args.push("--".into());
    args.extend(one_at_a_time(port));
    guard.run(args).ready()
}

fn of_slot(status: &Status, slot: u16) -> Vec<&WorkerStatus> {
    status.workers.iter().filter(|worker| worker.slot == slot).collect()
}

fn ready(status: &Status, count: usize) -> Option<()> {
    let all = status.slots == count && status.workers.len() == count;
    (all && status.ready().count() == count).then_some(())
}

#[test]
fn more_workers_and_fewer_under_load() {
    let guard = Guard::new("drive-scale");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "2", "--slow-start", "0"], port);
    let client = Client::port(port);
    let path = |n: usize| (n < 2000).then(|| "/slow?ms=2".to_owned());
    let outcome = std::thread::scope(|scope| {
        let load = scope.spawn(|| hammer(&client, 8, 2000, path));
        let up = croupier.ask(&["scale", "4"]);
        up.expect_code(0);
        for part in ["4 slots instead of 2\n", "slot 2: worker 3 is ready", "slot 3: worker 4 is"] {
            assert!(up.stdout.contains(part), "{up:?}");
        }
        let down = croupier.ask(&["scale", "-3"]);
        down.expect_code(0);
        for part in ["1 slot instead of 4\n", "slot 1 is gone", "slot 3 is gone"] {
            assert!(down.stdout.contains(part), "{down:?}");
        }
        croupier.ask(&["scale", "+1"]).expect_code(0);
        load.join().unwrap()
    });
    assert_eq!((outcome.failures.as_slice(), outcome.replies.len()), ([].as_slice(), 2000));
    let workers: std::collections::BTreeSet<_> =
        outcome.replies.iter().map(croupier_tests::Reply::pid).collect();
    assert!(workers.len() >= 4, "the new ones have served: {workers:?}");
    let status = croupier.wait_status("two workers", |s| ready(s, 2).map(|()| s.clone()));
    assert_eq!(status.ready().map(|worker| worker.slot).collect::<Vec<_>>(), [0, 1]);
    croupier.stop_well();
}

#[test]
fn numbers_that_are_none_are_refused_and_signals_scale_too() {
    let guard = Guard::new("drive-numbers");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1"], port);
    for (by, why) in [
        ("0", "croupier pause lets clients wait, croupier stop ends everything"),
        ("-1", "that leaves no slot"),
        ("1025", "at most 1024 slots"),
        ("+65535", "at most 1024 slots"),
    ] {
        croupier.ask(&["scale", by]).expect_code(1).expect_error(&[why]);
    }
    croupier.ask(&["scale", "many"]).expect_code(2).expect_error(&["as in +1 or -1"]);
    croupier.ask(&["scale"]).expect_code(2);
    let same = croupier.ask(&["scale", "1"]);
    assert!(same.expect_code(0).stdout.contains("there are 1 slot already"), "{same:?}");
    croupier.signal(Signal::SIGTTOU);
    croupier.wait_for_line("no scale: that leaves no slot");
    for count in 2..=3 {
        croupier.signal(Signal::SIGTTIN);
        croupier.wait_status("one more", |status| ready(status, count));
    }
    croupier.signal(Signal::SIGTTOU);
    croupier.wait_status("one fewer", |status| ready(status, 2));
    // The last one that serves is never taken.
    croupier.ask(&["stop", "0"]).expect_code(0);
    croupier.ask(&["scale", "1"]).expect_code(1).expect_error(&[
        "none of the slots that would stay is up, so nobody would serve; croupier status shows why",
    ]);
    croupier
        .ask(&["scale", "1025"])
        .expect_code(1)
        .expect_error(&["a croupier has at most 1024 slots"]);
    croupier.ask(&["stop", "7"]).expect_code(1).expect_error(&["the slots are 0 to 1"]);
    croupier.stop_well();
}

#[test]
fn under_reuseport_nobody_is_lost_by_a_scale() {
    let guard = Guard::new("drive-reuseport");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "4", "-p", "reuseport"], port);
    let client = Client::port(port);
    let path = |n: usize| (n < 300).then(|| "/slow?ms=2".to_owned());
    // In rest: what this program has in hand when it is told to end would end with it.
    croupier.ask(&["scale", "2"]).expect_code(0);
    // The share of the slots that are gone is dealt by the primary.
    let outcome = hammer(&client, 8, 300, path);
    assert_eq!((outcome.failures.as_slice(), outcome.replies.len()), ([].as_slice(), 300));
    let outcome = std::thread::scope(|scope| {
        let load = scope.spawn(|| hammer(&client, 8, 300, path));
        croupier.ask(&["scale", "3"]).expect_code(0);
        load.join().unwrap()
    });
    assert_eq!((outcome.failures.as_slice(), outcome.replies.len()), ([].as_slice(), 300));
    croupier.wait_status("three workers", |status| ready(status, 3));
    croupier.ask(&["pause"]).expect_code(1).expect_error(&[
        "under policy reuseport workers accept by themselves; croupier stop SLOT… makes clients wait",
    ]);
    croupier.stop_well();
}

#[test]
fn in_a_pause_clients_wait_and_the_primary_sleeps() {
    let guard = Guard::new("drive-pause");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "2", "--max-queue-wait", "200ms"], port);
    let client = Client::port(port);
    let fifo = guard.fifo("go");
    let held = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("the blocker", |status| (status.open() == (0, 1)).then_some(()));
    let pause = croupier.ask(&["pause"]);
    assert!(pause.expect_code(0).stdout.contains("1 connection not yet closed"), "{pause:?}");
    let waiting: Vec<_> = (0..30).map(|_| client.send("/").unwrap()).collect();
    let check = croupier.ask(&["status", "--check"]);
    assert!(check.expect_code(1).stdout.contains("2 of 2 ready, paused"), "{check:?}");
    let wait = croupier.ask(&["wait", "ready", "--timeout", "20s"]);
    wait.expect_code(1).expect_error(&["it is paused: clients wait until croupier resume"]);
    // What is open goes on.
    std::fs::write(&fifo, "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    croupier.wait_status("nothing open", |status| (status.open() == (0, 0)).then_some(()));
    observe(Duration::from_millis(300));
    let before = wake_ups(croupier.pid());
    observe(Duration::from_secs(1));
    assert_eq!(wake_ups(croupier.pid()) - before, 0, "nobody is asked for room");
    let status = croupier.status();
    assert!(status.paused && status.workers.iter().all(|worker| worker.paused));
    assert!(waiting.iter().all(|pending| !pending.answered()));
    croupier.ask(&["resume"]).expect_code(0);
    for pending in waiting {
        assert_eq!(pending.reply().unwrap().status, 200);
    }
    let totals = croupier.status().totals;
    assert_eq!((totals.refused, totals.shed), (0, 0));
    croupier.ask(&["status", "--check"]).expect_code(0);
    croupier.stop_well();
}

#[test]
fn a_pause_by_signal_and_its_ends() {
    let guard = Guard::new("drive-winch");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1", "--soak", "0"], port);
    let client = Client::port(port);
    croupier.signal(Signal::SIGWINCH);
    croupier.wait_status("the pause", |status| status.paused.then_some(()));
    let waits = client.send("/").unwrap();
    let old = croupier.status().slot(0).unwrap().pid;
    croupier.signal(Signal::SIGHUP);
    assert_eq!(waits.reply().unwrap().status, 200);
    croupier.wait_status("the reload", |status| {
        status.slot(0).filter(|worker| worker.pid != old && status.workers.len() == 1).map(|_| ())
    });
    assert!(!croupier.status().paused);
    // One by command outlives a reload; a stop serves who waits.
    croupier.ask(&["pause"]).expect_code(0);
    croupier.signal(Signal::SIGWINCH);
    croupier.signal(Signal::SIGHUP);
    croupier.wait_status("another reload", |status| {
        status.slot(0).filter(|worker| worker.generation == Some(3)).map(|_| ())
    });
    let waits: Vec<_> = (0..10).map(|_| client.send("/").unwrap()).collect();
    assert!(croupier.status().paused);
    croupier.signal(Signal::SIGTERM);
    for pending in waits {
        assert_eq!(pending.reply().unwrap().status, 200);
    }
    croupier.finished(PATIENCE).expect_code(0);
}

#[test]
fn the_clients_of_a_paused_slot_go_to_others() {
    let guard = Guard::new("drive-pause-slot");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "3"], port);
    let client = Client::port(port);
    croupier.ask(&["pause", "1", "w2"]).expect_code(0);
    let outcome = hammer(&client, 4, 60, |n| (n < 60).then(|| "/".to_owned()));
    assert_eq!(outcome.failures, []);
    assert!(outcome.replies.iter().all(|reply| reply.value("slot=") == Some(0)));
    let check = croupier.ask(&["status", "--check"]);
    assert!(check.expect_code(0).stdout.contains("3 of 3 ready, 2 paused"), "{check:?}");
    assert!(croupier.ask(&["status"]).stdout.contains("ready, paused"));
    croupier.ask(&["pause", "3"]).expect_code(1).expect_error(&["there is no slot 3"]);
    croupier.ask(&["resume", "1"]).expect_code(0);
    croupier.ask(&["pause"]).expect_code(0);
    let resume = croupier.ask(&["resume", "2"]);
    assert!(resume.expect_code(0).stdout.contains("all are paused still"), "{resume:?}");
    croupier.ask(&["resume"]).expect_code(0);
    let outcome = hammer(&client, 6, 120, |n| (n < 120).then(|| "/slow?ms=2".to_owned()));
    let slots: std::collections::BTreeSet<_> =
        outcome.replies.iter().map(|reply| reply.value("slot=")).collect();
    assert_eq!((slots.len(), outcome.failures.len()), (3, 0));
    croupier.stop_well();
}

#[test]
fn a_restart_replaces_one_worker_without_a_loss() {
    let guard = Guard::new("drive-restart");
    let port = guard.port();
    let marker = guard.path("broken");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script =
        format!("[ -e {} ] && {{ echo no config; exit 3; }}; exec {server}", marker.display());
    let croupier = guard.run(["-w", "2", "--", "sh", "-c", &script]).ready();
    let client = Client::port(port);
    let fifo = guard.fifo("go");
    let held = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    let busy = croupier.wait_status("the blocker", |status| {
        status.ready().find(|worker| worker.active == Some(1)).cloned()
    });
    let slot = busy.slot.to_string();
    let restart = std::thread::scope(|scope| {
        let restart = scope.spawn(|| croupier.ask(&["restart", &slot]));
        croupier.wait_status("the new one", |status| {
            of_slot(status, busy.slot)
                .iter()
                .find(|w| w.state == "ready" && w.id != busy.id)
                .map(|_| ())
        });
        assert!(!restart.is_finished(), "the old one has not ended");
        assert_eq!(hammer(&client, 2, 20, |n| (n < 20).then(|| "/".to_owned())).failures, []);
        std::fs::write(&fifo, "").unwrap();
        restart.join().unwrap()
    });
    assert_eq!(held.reply().unwrap().pid(), busy.pid);
    let said = format!("slot {slot}: worker 3 instead of worker {}", busy.id.unwrap());
    assert!(restart.expect_code(0).stdout.contains(&said), "{restart:?}");
    croupier.wait_for_line(&format!("restart: slot {slot}: worker {} drains", busy.id.unwrap()));

    // It does not hold: the old one stays, the command says why.
    std::fs::write(&marker, "").unwrap();
    let failed = croupier.ask(&["restart", "0"]);
    failed.expect_code(1).expect_error(&["exited with status 3", "the old one stays", "no config"]);
    std::fs::remove_file(&marker).unwrap();
    croupier.ask(&["restart"]).expect_code(0);
    let ids: Vec<_> = croupier.status().ready().filter_map(|worker| worker.id).collect();
    assert!(ids.iter().all(|id| *id > 4), "each has a new one: {ids:?}");
    assert_eq!(croupier.status().totals.recycled, 0);
    croupier.ask(&["stop", "1"]).expect_code(0);
    croupier
        .ask(&["restart", "1"])
        .expect_code(1)
        .expect_error(&["slot 1 is stopped; croupier start 1 starts it"]);
    croupier.ask(&["restart", "0", "--no-wait"]).expect_code(0);
    croupier.stop_well();
}

#[test]
fn a_signal_for_one_worker() {
    let guard = Guard::new("drive-kill");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "2"], port);
    let pid = |slot: u16| croupier.status().slot(slot).and_then(|worker| worker.pid);
    let (first, second) = (pid(0), pid(1));
    let stopped = croupier.ask(&["kill", "0", "STOP"]);
    assert!(stopped.expect_code(0).stdout.contains("slot 0: SIGSTOP to worker 1"), "{stopped:?}");
    croupier_tests::wait_until(PATIENCE, "it to stop", || {
        match croupier_tests::state_of(first.unwrap()) {
            Some('T') => Ok(()),
            other => Err(other),
        }
    });
    croupier.ask(&["kill", "w0", "9"]).expect_code(0);
    croupier.wait_status("the next one", |status| {
        status.slot(0).filter(|worker| worker.pid != first).map(|_| ())
    });
    let last = croupier.status().slot(0).and_then(|worker| worker.last_exit.clone());
    assert_eq!(last.as_deref(), Some("SIGKILL"));
    croupier.ask(&["kill", "1"]).expect_code(0);
    croupier.wait_status("the next one", |status| {
        status.slot(1).filter(|worker| worker.pid != second).map(|_| ())
    });
    croupier.ask(&["stop", "1"]).expect_code(0);
    croupier.ask(&["kill", "1"]).expect_code(1).expect_error(&["slot 1 has no worker now"]);
    croupier.ask(&["kill", "2"]).expect_code(1).expect_error(&["there is no slot 2"]);
    croupier.ask(&["kill", "0", "LOUD"]).expect_code(2).expect_error(&["as in kill -l"]);
    croupier.ask(&["kill"]).expect_code(2);
    croupier.stop_well();
}

/// Runs a program behind the foreground of a terminal that stops whoever writes from there.
const BEHIND: &str = r#"
import os, pty, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    mode = termios.tcgetattr(0)
    mode[3] |= termios.TOSTOP
    termios.tcsetattr(0, termios.TCSANOW, mode)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.execv(sys.argv[1], sys.argv[1:])
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    while said := os.read(terminal, 65536):
        os.write(1, said)
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// To write from behind the foreground brings TTOU, which is also how one asks for a worker less.
#[test]
fn what_it_prints_from_behind_a_terminal_is_no_scale() {
    let guard = Guard::new("drive-terminal");
    let script = "for i in 1 2 3 4; do echo line $i; done; exec tail -f /dev/null";
    let flags = ["-w", "2", "--ready", "start", "sh", "-c", script];
    let croupier = guard.run_with(flags, |command| {
        crate::care::under(&guard, command, &["python3", "-c", BEHIND]);
    });
    let croupier = croupier.ready();
    for slot in 0..2 {
        croupier.wait_for_line(&format!("[w{slot}] line 4"));
    }
    let status = croupier.status();
    assert_eq!((status.slots, status.ready().count()), (2, 2));
    let primary = nix::unistd::Pid::from_raw(status.pid);
    nix::sys::signal::kill(primary, Signal::SIGTTOU).unwrap();
    croupier.wait_status("one worker", |status| ready(status, 1));
    croupier.ask(&["stop"]).expect_code(0);
    croupier.finished(PATIENCE).expect_code(0);
}

/// Of two primaries the one is driven that is named, by its name or by its socket.
#[test]
fn the_primary_that_is_named_is_driven() {
    let guard = Guard::new("drive-which");
    let socket = guard.path("own.control");
    let socket = socket.to_str().unwrap();
    let (here, there) = (guard.port(), guard.port());
    let mut args: Vec<OsString> = ["-w", "1", "--control", socket, "--"].map(Into::into).into();
    args.extend(one_at_a_time(here));
    let own = guard.run(args);
    let named = run(&guard, &["-w", "1"], there);
    guard.croupier(["wait", "ready", "--control", socket]).expect_code(0);
    let of = |which: [&str; 2]| -> Status {
        let answer = guard.croupier([&["status", "--json"][..], &which].concat());
        serde_json::from_str(&answer.expect_code(0).stdout).unwrap()
    };
    let ways = [["--control", socket], ["--name", named.name()]];
    for (which, other) in [(ways[0], ways[1]), (ways[1], ways[0])] {
        let before = of(other);
        let events = crate::events::follow_with(&guard, &[&["--json"][..], &which].concat());
        let ask = |words: &[&str]| guard.croupier([words, &which].concat());
        ask(&["pause"]).expect_code(0);
        assert!(of(which).paused && !of(other).paused);
        for command in [&["resume"][..], &["scale", "2"], &["restart", "0"], &["kill", "1", "KILL"]]
        {
            ask(command).expect_code(0);
        }
        events.wait_for_line("SIGKILL");
        assert_eq!((of(which).slots, of(which).paused), (2, false));
        let pids = |status: &Status| status.workers.iter().map(|w| w.pid).collect::<Vec<_>>();
        assert_eq!(pids(&of(other)), pids(&before), "nobody else is touched");
        guard.croupier([&["wait", "ready"][..], &which].concat()).expect_code(0);
        events.signal(Signal::SIGTERM);
        events.finished(PATIENCE);
    }
    own.stop_well();
    named.stop_well();
}

#[test]
fn without_a_wait_the_answer_comes_at_once() {
    let guard = Guard::new("drive-no-wait");
    let port = guard.port();
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let go = guard.fifo("start");
    let script =
        format!("[ $CROUPIER_WORKER_ID -le 1 ] || read go < {}; exec {server}", go.display());
    let croupier = guard.run(["-w", "1", "sh", "-c", &script]).ready();
    let starting = |status: &Status| {
        status.workers.iter().any(|worker| worker.state == "starting").then_some(())
    };
    for command in [["restart", "0", "--no-wait"], ["scale", "+1", "--no-wait"]] {
        croupier.ask(&command).expect_code(0);
        croupier.wait_status("one that starts", starting);
        std::fs::write(&go, "go\n").unwrap();
        croupier.wait_status("the new one", |status| {
            let all = status.workers.iter().all(|worker| worker.state == "ready");
            (all && status.workers.iter().all(|worker| worker.id != Some(1))).then_some(())
        });
    }
    croupier.stop_well();
}

/// Descriptors and memory of the primary after many rounds of everything are as they were.
#[test]
fn nothing_is_left_of_reloads_scales_and_restarts() {
    let guard = Guard::new("drive-leaks");
    let port = guard.port();
    let rounds = soak_or(100, 3);
    let croupier = run(&guard, &["-w", "2", "--soak", "0", "--max-surge", "100%"], port);
    let client = Client::port(port);
    let round = || {
        croupier.ask(&["reload"]).expect_code(0);
        croupier.ask(&["scale", "4"]).expect_code(0);
        croupier.ask(&["pause"]).expect_code(0);
        croupier.ask(&["resume"]).expect_code(0);
        croupier.ask(&["scale", "2"]).expect_code(0);
        croupier.ask(&["restart", "1"]).expect_code(0);
        assert_eq!(hammer(&client, 4, 20, |n| (n < 20).then(|| "/".to_owned())).failures, []);
    };
    let primary = u32::try_from(croupier.pid()).unwrap();
    let seen = || {
        croupier.wait_status("rest", |status| ready(status, 2));
        let rss = field_of_status(croupier.pid(), "VmRSS").unwrap();
        (descriptors(primary).len(), rss)
    };
    // The first round brings in what is needed once: stacks of threads, buffers, pages of code.
    round();
    let (open, before) = seen();
    for _ in 0..rounds {
        round();
    }
    // A worker's descriptors are closed by another thread, a moment later.
    croupier_tests::wait_until(PATIENCE, "as many descriptors as before", || match seen().0 {
        count if count <= open => Ok(()),
        count => Err((count, open)),
    });
    let (_, after) = seen();
    let grown = after.saturating_sub(before);
    figure(&Figure {
        item: "operate 6 descriptors and memory",
        measured: format!(
            "{rounds} reloads, scales up and down, restarts, pauses: {open} descriptors before and \
             after, RSS {before} KiB before, {after} KiB after"
        ),
        goal: "descriptors as before, RSS within 512 KiB",
        met: grown <= 512,
    });
    croupier.stop_well();
}
