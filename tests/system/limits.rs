//! Workers that hang or have had their time, and clients that are more than may be let in.

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Failure, Figure, Guard, PATIENCE, Pending, field_of_status, figure, hammer,
    now, observe, soak_or, state_of, stop_process, wait_until,
};

use crate::programs::one_at_a_time;

fn run<'guard>(guard: &'guard Guard, port: u16, flags: &[&str]) -> Croupier<'guard> {
    let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
    args.push("--".into());
    args.extend(one_at_a_time(port));
    guard.run(args).ready()
}

fn pid_of(croupier: &Croupier<'_>, slot: u16) -> i32 {
    croupier.status().slot(slot).and_then(|worker| worker.pid).unwrap()
}

/// A client whose handler blocks until the FIFO of this name is opened.
fn blocked(guard: &Guard, client: &Client, name: &str) -> Pending {
    let fifo = guard.fifo(name);
    client.send(&format!("/block?fifo={}", fifo.display())).unwrap()
}

fn release(guard: &Guard, name: &str) {
    std::fs::write(guard.path(name), "").unwrap();
}

// ---- hung

#[test]
fn a_stopped_worker_is_replaced_and_others_answer_its_clients() {
    let guard = Guard::new("limits-stopped");
    let port = guard.port();
    let croupier = run(&guard, port, &["-w", "3", "--hung-timeout", "1s", "--slow-start", "0"]);
    let client = Client::port(port);
    let stopped = pid_of(&croupier, 1);
    stop_process(stopped);
    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            hammer(&client, 4, usize::MAX, |_| {
                (!over.load(Ordering::SeqCst)).then(|| "/".to_owned())
            })
        });
        croupier.wait_status("the stopped worker replaced", |status| {
            let new = status.slot(1)?.pid? != stopped;
            (status.totals.hung == 1 && new && state_of(stopped).is_none()).then_some(())
        });
        over.store(true, Ordering::SeqCst);
        asking.join().unwrap()
    });
    assert_eq!(outcome.failures, []);
    assert!(outcome.replies.iter().all(|reply| reply.pid() != Some(stopped)));
    let said = croupier.wait_for_line("hangs: in");
    assert!(said.contains(&format!("(pid {stopped})")), "{said}");
    assert!(said.contains("s it has taken and closed nothing, "), "{said}");
    assert!(
        said.contains("; it gets SIGABRT, KILL ") && said.contains("its next worker"),
        "{said}"
    );
    // It was continued to hear of it, and could have left a core.
    croupier.wait_for_line("was killed by SIGABRT");
    figure(&Figure {
        item: "replace 6 a stopped worker, --hung-timeout 1s",
        measured: format!("{} answers, slowest {:?}", outcome.replies.len(), outcome.slowest),
        goal: "replaced; 0 failed",
        met: croupier.status().ready().count() == 3,
    });
    croupier.stop_well();
}

/// What a worker did not do before a shorter time was in force is not held against it by that time; from
/// then on it has that time, during the reload too.
#[test]
fn a_shorter_time_for_the_hung_counts_from_the_reload_that_brings_it() {
    let guard = Guard::new("limits-hung-reload");
    let port = guard.port();
    let gate = guard.fifo("gate");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    // The new ones are not ready before the gate opens: until then the old one is judged.
    let gated =
        format!("[ $CROUPIER_GENERATION = 1 ] || read x < {}; exec {server}", gate.display());
    let config = |time: &str| {
        let lines = format!(
            "command = [\"sh\", \"-c\", \"{gated}\"]\nworkers = 1\nsoak = \"0\"\nhung-timeout = \"{time}\"\n"
        );
        guard.write("croupier.toml", &lines);
    };
    config("1h");
    let croupier = guard.run::<&str>([]).ready();
    let client = Client::port(port);
    let old = pid_of(&croupier, 0);
    let stuck = blocked(&guard, &client, "never");
    croupier.wait_status("the blocker", |status| (status.open() == (0, 1)).then_some(()));
    // One in its queue, one still in the backlog: more is not handed to somebody that slow.
    let waits: Vec<Pending> = (0..2).map(|_| client.send("/").unwrap()).collect();
    croupier.wait_status("one behind it", |status| (status.open() == (1, 1)).then_some(()));
    // Longer than the time that comes.
    observe(Duration::from_millis(1500));
    assert_eq!(croupier.status().totals.hung, 0);

    config("1s");
    let asked = now();
    croupier.ask(&["reload", "--no-wait"]).expect_code(0);
    croupier.wait_status("its end", |status| (status.totals.hung == 1).then_some(()));
    assert!(asked.elapsed() >= Duration::from_secs(1), "judged for what was before: {asked:?}");
    croupier.wait_for_line(&format!("(pid {old}) hangs: in "));
    assert!(stuck.reply().is_err());
    std::fs::write(&gate, "go\n").unwrap();
    for waiting in waits {
        assert!(waiting.reply().unwrap().pid() != Some(old));
    }
    croupier.wait_for_line("nobody is left to drain");

    // Those that serve, one for longer than the others wait, are left alone; one that is stuck is not.
    let new = pid_of(&croupier, 0);
    let outcome = hammer(&client, 4, 80, |_| Some("/slow?ms=20".to_owned()));
    assert_eq!(outcome.failures, []);
    assert_eq!((croupier.status().totals.hung, pid_of(&croupier, 0)), (1, new));
    stop_process(new);
    let waits = client.send("/").unwrap();
    croupier.wait_status("its end, too", |status| (status.totals.hung == 2).then_some(()));
    // Its successor has to come through the gate, like all of its generation.
    std::fs::write(&gate, "go\n").unwrap();
    assert!(waits.reply().unwrap().pid() != Some(new));
    croupier.stop_well();
}

#[test]
fn a_busy_loop_alone_is_ended_and_who_waited_for_it_is_served() {
    let guard = Guard::new("limits-spin");
    let port = guard.port();
    let croupier = run(&guard, port, &["-w", "1", "--hung-timeout", "500ms"]);
    let client = Client::port(port);
    let old = pid_of(&croupier, 0);
    let spins = client.send(&format!("/spin?until={}", guard.path("never").display())).unwrap();
    croupier.wait_status("the busy loop", |status| (status.open().1 == 1).then_some(()));
    let waits: Vec<Pending> = (0..3).map(|_| client.send("/").unwrap()).collect();
    for waiting in waits {
        let reply = waiting.reply().unwrap();
        assert!(reply.pid() != Some(old), "{reply:?}");
    }
    assert!(spins.reply().is_err(), "what it had in hand ends with it");
    assert_eq!(croupier.status().totals.hung, 1);
    croupier.stop_well();
}

#[test]
fn a_worker_that_serves_one_long_request_is_not_hung() {
    let guard = Guard::new("limits-long");
    let port = guard.port();
    let croupier = run(&guard, port, &["-w", "1", "--hung-timeout", "300ms"]);
    let client = Client::port(port);
    let long = blocked(&guard, &client, "go");
    croupier.wait_status("the long one", |status| (status.open().1 == 1).then_some(()));
    observe(Duration::from_millis(1000));
    release(&guard, "go");
    assert_eq!(long.reply().unwrap().status, 200);
    assert_eq!(croupier.status().totals.hung, 0);
    croupier.stop_well();
}

// ---- recycling

#[test]
fn every_worker_is_replaced_in_turn_under_load_and_nobody_notices() {
    const WORKERS: usize = 3;
    let guard = Guard::new("limits-connections");
    let port = guard.port();
    let flags = ["-w", "3", "--max-connections", "50", "--stall-after", "10s"];
    let croupier = run(&guard, port, &flags);
    let client = Client::port(port);
    let wanted: u64 = soak_or(60, 6);
    let (over, most) = (AtomicBool::new(false), AtomicUsize::new(0));
    let outcome = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            hammer(&client, 8, usize::MAX, |_| {
                (!over.load(Ordering::SeqCst)).then(|| "/".to_owned())
            })
        });
        wait_until(PATIENCE * 4, "workers to be recycled", || {
            let status = croupier.status();
            most.fetch_max(status.workers.len(), Ordering::SeqCst);
            let generations = status.workers.iter().all(|worker| worker.generation == Some(1));
            assert!(generations, "a recycling is no reload: {status:?}");
            if status.totals.recycled >= wanted { Ok(()) } else { Err(Box::new(status)) }
        });
        over.store(true, Ordering::SeqCst);
        asking.join().unwrap()
    });
    assert_eq!(outcome.failures, []);
    let status = croupier.status();
    let first = status.workers.iter().filter_map(|worker| worker.id).filter(|id| *id <= 3).count();
    assert_eq!(first, 0, "each of the first ones is gone: {status:?}");
    assert!(status.workers.iter().all(|worker| worker.restarts == Some(0)), "{status:?}");
    croupier.wait_for_line("connections (--max-connections); worker");
    let most = most.into_inner();
    figure(&Figure {
        item: "replace 1 recycling, --max-connections 50 under load",
        measured: format!(
            "{} recycled, {} answers, {} failed, at most {} workers in {WORKERS} slots, slowest {:?}",
            status.totals.recycled,
            outcome.replies.len(),
            outcome.failures.len(),
            most,
            outcome.slowest
        ),
        goal: "0 failed; never more than one extra worker",
        met: most <= WORKERS + 1,
    });
    croupier.stop_well();
}

#[test]
fn lifetimes_end() {
    let guard = Guard::new("limits-lifetime");
    let port = guard.port();
    let croupier = run(&guard, port, &["-w", "2", "--max-lifetime", "1s", "-p", "shared"]);
    let client = Client::port(port);
    croupier.wait_status("both replaced", |status| {
        assert_eq!(client.get("/").unwrap().status, 200);
        (status.totals.recycled >= 2).then_some(())
    });
    croupier.wait_for_line("(--max-lifetime); worker");
    // It is no reload.
    croupier.wait_for_line("recycle: slot 0: worker ");
    assert_eq!(croupier.stderr().count("reload: "), 0);
    croupier.stop_well();
}

/// Keeps 12 MB of every request. Answers who it is.
const LEAKS: &str = r#"
import os, socket, sys
kept = []
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = listener.accept()
    client.recv(4096)
    kept.append(b"x" * (12 << 20))
    body = f"pid={os.getpid()}\n"
    client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    client.close()
"#;

#[test]
fn a_worker_that_leaks_is_replaced() {
    let guard = Guard::new("limits-rss");
    let port = guard.port();
    let script = guard.write("leaks.py", LEAKS);
    let mut args: Vec<OsString> =
        ["-w", "2", "--max-rss", "80M", "--slow-start", "0", "--", "python3"]
            .iter()
            .map(Into::into)
            .collect();
    args.extend([script.into(), port.to_string().into()]);
    let croupier = guard.run(args).ready();
    let client = Client::port(port);
    // Both leak about 100 MB.
    let run = hammer(&client, 1, 18, |_| Some("/".to_owned()));
    assert_eq!(run.failures, []);
    let status = croupier.status();
    let large = status.ready().filter(|worker| worker.rss_bytes > Some(80 << 20)).count();
    assert!(large > 0 || status.totals.recycled > 0, "{status:?}");
    croupier.wait_status("those that are too large replaced", |status| {
        let fits = |worker: &croupier_tests::WorkerStatus| worker.rss_bytes <= Some(80 << 20);
        (status.totals.recycled > 0 && status.workers.iter().all(fits)).then_some(())
    });
    let said = croupier.wait_for_line("of memory (--max-rss 80.0M)");
    assert!(said.contains("starts beside it"), "{said}");
    assert_eq!(client.get("/").unwrap().status, 200);
    croupier.stop_well();
}

/// A limit below what the program needs: it is said, with what to do, and does not go on at full speed.
#[test]
fn a_limit_below_what_every_worker_needs_is_named() {
    let guard = Guard::new("limits-low");
    let port = guard.port();
    let script = guard.write("server.py", LEAKS);
    let args: [OsString; 7] = [
        "-w".into(),
        "1".into(),
        "--max-rss=3M".into(),
        "--".into(),
        "python3".into(),
        script.into(),
        port.to_string().into(),
    ];
    let croupier = guard.run(args).ready();
    let said = croupier.wait_for_line("as soon as it has taken over, and --max-rss is 3.0M");
    assert!(said.contains("slot 0: worker ") && said.contains("M of memory"), "{said}");
    assert!(said.ends_with("in 60s; raise --max-rss above what a worker needs"), "{said}");
    croupier.wait_status("three in a row", |status| (status.totals.recycled >= 3).then_some(()));
    let warned = croupier.stderr().count("raise --max-rss");
    assert_eq!(warned, 1);
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    croupier.stop_well();
}

/// A family that is large only together, and whose memory from before the fork is there once.
const FAMILY: &str = r#"
import os, socket, sys, threading
shared = bytearray(os.urandom(1 << 20) * 64)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
for _ in range(3):
    if os.fork() == 0:
        grown = bytearray(os.urandom(1 << 20) * int(sys.argv[2]))
        while True:
            client, _ = listener.accept()
            client.recv(4096)
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            client.close()
threading.Event().wait()
"#;

#[test]
fn a_family_counts_together_and_what_it_shares_counts_once() {
    let guard = Guard::new("limits-family");
    let script = guard.write("family.py", FAMILY);
    // 64 MB shared by four; 4 or 60 MB more in each of three.
    for (grown, recycles) in [("4", false), ("60", true)] {
        let port = guard.port();
        let args: [OsString; 9] = [
            "-w".into(),
            "1".into(),
            "--max-rss".into(),
            "200M".into(),
            "--".into(),
            "python3".into(),
            script.clone().into(),
            port.to_string().into(),
            grown.into(),
        ];
        let croupier = guard.run(args).ready();
        if recycles {
            croupier.wait_for_line("of memory (--max-rss 200.0M)");
        } else {
            // Two looks at least.
            observe(Duration::from_millis(4500));
            assert_eq!(croupier.status().totals.recycled, 0);
        }
        assert_eq!(Client::port(port).get("/").unwrap().body, "ok");
        croupier.stop_well();
    }
}

#[test]
fn a_new_worker_that_does_not_hold_leaves_the_old_one() {
    let guard = Guard::new("limits-retry");
    let port = guard.port();
    let flag = guard.path("broken");
    let program: Vec<String> =
        one_at_a_time(port).into_iter().map(|word| word.into_string().unwrap()).collect();
    let script = format!("test ! -e {} || exit 3; exec {}", flag.display(), program.join(" "));
    let args = ["-w", "1", "--max-lifetime", "300ms", "--", "sh", "-c", &script];
    let croupier = guard.run(args).ready();
    std::fs::write(&flag, "").unwrap();
    let client = Client::port(port);
    for _ in 0..2 {
        let said = croupier.wait_for_line("which was to take over, exited with status 3");
        assert!(said.contains("the old one stays. Tried again in"), "{said}");
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    let due = croupier.wait_status("why it is to go", |status| status.slot(0)?.recycle.clone());
    assert_eq!(due, "lifetime");
    let before = croupier.status().totals.recycled;
    std::fs::remove_file(&flag).unwrap();
    croupier.wait_status("a new one", |status| (status.totals.recycled > before).then_some(()));
    croupier.stop_well();
}

// ---- admission

#[test]
fn the_fifth_of_four_waits_and_is_served_after() {
    let guard = Guard::new("limits-total");
    let port = guard.port();
    let flags = ["-w", "6", "--max-total", "4", "--stall-after", "10s"];
    let croupier = run(&guard, port, &flags);
    let client = Client::port(port);
    let names = ["a", "b", "c", "d"];
    let mut held: Vec<Pending> = Vec::new();
    for name in names {
        held.push(blocked(&guard, &client, name));
        let count = u64::try_from(held.len()).unwrap();
        croupier.wait_status("a blocker", |status| (status.open() == (0, count)).then_some(()));
    }
    let fifth = client.send("/").unwrap();
    croupier.wait_status("it in the backlog", |status| {
        (status.listeners[0].queue_depth == Some(1)).then_some(())
    });
    observe(Duration::from_millis(200));
    assert!(!fifth.answered(), "two workers are idle, but four is all");
    assert_eq!(croupier.status().open(), (0, 4));
    release(&guard, "a");
    assert_eq!(fifth.reply().unwrap().status, 200);
    for name in ["b", "c", "d"] {
        release(&guard, name);
    }
    for held in held {
        assert_eq!(held.reply().unwrap().status, 200);
    }
    assert_eq!(hammer(&client, 8, 100, |_| Some("/".to_owned())).failures, []);
    croupier.stop_well();
}

#[test]
fn who_comes_when_others_waited_for_too_long_is_reset_and_counted() {
    let guard = Guard::new("limits-shed");
    let port = guard.port();
    let flags = [
        "-w",
        "1",
        "--queue-limit",
        "1",
        "--max-queue-wait",
        "2s",
        "--shed",
        "reset",
        "--stall-after",
        "10s",
    ];
    let croupier = run(&guard, port, &flags);
    let client = Client::port(port);
    let served = blocked(&guard, &client, "go");
    croupier.wait_status("the blocker", |status| (status.open() == (0, 1)).then_some(()));
    let queued = client.send("/").unwrap();
    let waits: Vec<Pending> = (0..3).map(|_| client.send("/").unwrap()).collect();
    // They are taken out of the backlog, into the primary's hands.
    croupier.wait_status("them in hand", |status| {
        (status.totals.accepted == 5 && status.listeners[0].queue_depth == Some(0)).then_some(())
    });
    observe(Duration::from_millis(2100));
    for _ in 0..3 {
        assert_eq!(client.get("/").unwrap_err(), Failure::Reset);
    }
    assert_eq!(croupier.status().totals.shed, 3);
    croupier.wait_for_line("have waited for 2s (--max-queue-wait), 3 in hand");
    let lines = croupier.stderr().text().matches("who comes now is reset").count();
    assert_eq!(lines, 1, "one line an episode");
    release(&guard, "go");
    for pending in [served, queued].into_iter().chain(waits) {
        assert_eq!(pending.reply().unwrap().status, 200);
    }
    assert_eq!(client.get("/").unwrap().status, 200, "there is room again");
    let totals = croupier.status().totals;
    assert_eq!((totals.shed, totals.refused), (3, 0));
    assert_eq!(totals.accepted, totals.handed_off + totals.shed);
    croupier.stop_well();
}

/// More than can be served in time: who was there first is, the others hear so at once.
#[test]
fn overload_is_shed_and_the_rest_is_served_in_time() {
    let guard = Guard::new("limits-overload");
    let port = guard.port();
    let flags = ["-w", "2", "--max-queue-wait", "300ms", "--queue-limit", "1"];
    let croupier = run(&guard, port, &flags);
    let client = Client::port(port);
    // Handlers of 20 ms: 100 a second; 64 clients would wait for 600 ms each.
    let total = soak_or(4000, 600);
    let run = hammer(&client, 64, total, |_| Some("/slow?ms=20".to_owned()));
    let status = croupier.status();
    let resets = run.failures.iter().filter(|failure| **failure == Failure::Reset).count();
    assert_eq!(resets, run.failures.len(), "nothing but resets: {:?}", run.failures);
    assert_eq!(u64::try_from(resets).unwrap(), status.totals.shed);
    assert_eq!(
        status.totals.accepted,
        status.totals.handed_off - status.totals.stolen + status.totals.shed
    );
    let rss = field_of_status(croupier.pid(), "VmRSS").unwrap();
    figure(&Figure {
        item: "replace admission, --max-queue-wait 300ms",
        measured: format!(
            "{} served, {resets} reset, slowest answer {:?}; primary {rss} KiB",
            run.replies.len(),
            run.slowest
        ),
        goal: "the first 64 are served; some are reset; slowest under 1 s",
        met: resets > 0
            && run.replies.len() >= 64
            && run.slowest < Duration::from_secs(soak_or(1, 10)),
    });
    croupier.stop_well();
}
