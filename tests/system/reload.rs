//! Reloads: everybody is new and nobody noticed, or the old go on and the reason is on the screen.

use std::ffi::OsString;
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Figure, Finished, Guard, PATIENCE, Status, example, figure, find_program,
    hammer, skip, soak_or, wait_until, wrk,
};
use nix::sys::signal::Signal;

/// A server whose version is a word in a file, `good` in all other slots with a slot's number behind it
/// (`crashes@2`). It announces nothing; croupier sees it listen.
///
/// usage: version.py FILE PORT [PORT]
const VERSION: &str = r#"
import os, select, socket, sys, threading, time
version, _, slot = open(sys.argv[1]).read().strip().partition("@")
if slot and os.environ["CROUPIER_SLOT"] != slot:
    version = "good"
ports = [int(port) for port in sys.argv[2:]]
if version == "crashes":
    print("cannot read the configuration", flush=True)
    sys.exit(3)
if version == "leaves":
    sys.exit(0)
if version == "rubbish":
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as primary:
        primary.connect("\0" + os.environ["CROUPIER_CONTROL"].split("@", 1)[1])
        primary.send(b"no question")
    threading.Event().wait()
if version == "silent":
    threading.Event().wait()
if version == "one-port":
    ports = ports[:1]
left = 3 if version == "short" else -1
listeners = [socket.create_server(("127.0.0.1", port)) for port in ports]
while True:
    for ready in select.select(listeners, [], [])[0]:
        client, _ = ready.accept()
        request = client.recv(4096).split()
        if request[1:] and request[1].startswith(b"/block?fifo="):
            open(request[1][12:].decode()).close()
        body = f"pid={os.getpid()} generation={os.environ['CROUPIER_GENERATION']} {version}\n"
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        client.close()
        left -= 1
        # Between two connections: what it had in its hands would end with it, and be nobody's fault.
        if left == 0:
            os._exit(4)
"#;

/// A croupier whose program is of the version that a file says.
struct Stage<'guard> {
    guard: &'guard Guard,
    port: u16,
    croupier: Croupier<'guard>,
}

impl<'guard> Stage<'guard> {
    fn new(guard: &'guard Guard, flags: &[&str]) -> Self {
        let (port, other) = (guard.port(), guard.port());
        let program = guard.write("version.py", VERSION);
        let version = guard.write("version", "good");
        let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
        args.extend(["--".into(), "python3".into(), program.into(), version.into()]);
        args.extend([port.to_string().into(), other.to_string().into()]);
        let stage = Self { guard, port, croupier: guard.run(args).ready() };
        // Ready is the first listener, a reload asks for all that the old ones have.
        stage
            .croupier
            .wait_status("both ports", |status| (status.listeners.len() == 2).then_some(()));
        stage
    }

    fn becomes(&self, version: &str) {
        self.guard.write("version", version);
    }

    fn generations(&self) -> Vec<u32> {
        let mut all: Vec<u32> =
            self.croupier.status().workers.iter().filter_map(|worker| worker.generation).collect();
        all.sort_unstable();
        all
    }
}

fn pids(status: &Status) -> Vec<i32> {
    let mut pids: Vec<i32> = status.ready().filter_map(|worker| worker.pid).collect();
    pids.sort_unstable();
    pids
}

/// The median of one percentile over all runs, and the worst.
fn over_all_runs(latency: &[[f64; 2]], which: usize) -> String {
    let mut all: Vec<f64> = latency.iter().filter_map(|run| run.get(which)).copied().collect();
    all.sort_unstable_by(f64::total_cmp);
    let median = all.get(all.len() / 2).copied().unwrap_or_default();
    format!("{median:.2} ms (at worst {:.2})", all.last().copied().unwrap_or_default())
}

/// Reloads under wrk: every reload succeeds, and wrk sees none of them.
fn reloads_under_load(guard: &Guard, what: &str, args: Vec<OsString>, port: u16) {
    const LOAD: [&str; 5] = ["-d", "2s", "--latency", "-H", "Connection: close"];
    let (rounds, clients) = (soak_or(200, 5), soak_or(64, 32));
    let croupier = guard.run(args).ready();
    let Some(calm) = wrk(guard, port, "/", clients, &LOAD) else {
        skip!("reloads_under_load", "wrk is not installed")
    };
    assert_eq!(calm.failed(), 0, "before any reload: {calm:?}");
    let old = pids(&croupier.status());
    let run = std::thread::scope(|scope| {
        let reloads = scope.spawn(|| {
            for round in 0..rounds {
                let reload = croupier.ask(&["reload"]);
                assert_eq!(reload.code, Some(0), "reload {round}: {reload:#?}");
            }
        });
        let (mut requests, mut failures, mut latency) = (0, [0; 5], Vec::new());
        while !reloads.is_finished() {
            let run = wrk(guard, port, "/", clients, &LOAD).unwrap();
            requests += run.requests;
            failures.iter_mut().zip(run.errors).for_each(|(sum, errors)| *sum += errors);
            latency.push(run.latency.unwrap());
        }
        reloads.join().unwrap();
        (requests, failures, latency)
    });
    let (requests, errors, latency) = run;
    let [p50, p99] = [0, 1].map(|which| over_all_runs(&latency, which));
    let [calm_p50, calm_p99] = calm.latency.unwrap();
    let status = croupier.status();
    assert!(
        status.workers.iter().all(|worker| worker.generation == Some(rounds + 1)),
        "{status:?}"
    );
    assert!(pids(&status).iter().all(|pid| !old.contains(pid)));
    assert_eq!(status.totals.refused, 0);
    figure(&Figure {
        item: &format!("replace 1 reload under load, {what}"),
        measured: format!(
            "{rounds} reloads, {requests} answers, failures {errors:?}; in {} runs of 2 s p50 {p50}, p99 \
             {p99}; without a reload {calm_p50:.2}, {calm_p99:.2} ms",
            latency.len()
        ),
        goal: "0 failed requests, 0 resets",
        met: errors == [0; 5] && requests > 100,
    });
    croupier.stop_well();
}

const QUICK: [&str; 4] = ["-w", "2", "--soak", "100ms"];

#[test]
fn reloads_of_an_unmodified_server_fail_no_request() {
    let guard = Guard::new("reload-python");
    let port = guard.port();
    let folder = guard.path("www");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("index.html"), "hello").unwrap();
    let mut args: Vec<OsString> = QUICK.iter().map(Into::into).collect();
    // Its log of requests is nothing to read here.
    let script = format!(
        "exec python3 -m http.server --bind 127.0.0.1 -d {} {port} 2>/dev/null",
        folder.display()
    );
    args.extend(["--".into(), "sh".into(), "-c".into(), script.into()]);
    reloads_under_load(&guard, "preload (python)", args, port);
}

#[test]
fn reloads_of_a_node_server_fail_no_request() {
    let guard = Guard::new("reload-node");
    let Some(node) = find_program("node") else {
        skip!("reloads_of_a_node_server_fail_no_request", "node is not installed")
    };
    let port = guard.port();
    let source = format!(
        "require('http').createServer((_, answer) => answer.end('x')).listen({port}, '127.0.0.1')"
    );
    let script = guard.write("server.js", &source);
    let mut args: Vec<OsString> = QUICK.iter().map(Into::into).collect();
    args.extend(["--".into(), node.into(), script.into()]);
    reloads_under_load(&guard, "preload (node)", args, port);
}

#[test]
fn reloads_of_a_shim_worker_fail_no_request() {
    let guard = Guard::new("reload-shim");
    let port = guard.port();
    let mut args: Vec<OsString> = QUICK.iter().map(Into::into).collect();
    let address = format!("127.0.0.1:{port}");
    args.extend(["--adapter".into(), "shim".into(), "--".into()]);
    args.extend([example("echo", "").into(), address.into()]);
    reloads_under_load(&guard, "shim (echo)", args, port);
}

/// Asks all the time, while `croupier reload` runs.
fn reload_while_asking(stage: &Stage<'_>) -> (Finished, Vec<String>) {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| stage.croupier.ask(&["reload"]));
        let client = Client::port(stage.port);
        let outcome =
            hammer(&client, 4, usize::MAX, |_| (!asked.is_finished()).then(|| "/".to_owned()));
        assert_eq!(outcome.failures, [], "somebody noticed");
        assert!(!outcome.replies.is_empty());
        (asked.join().unwrap(), outcome.replies.into_iter().map(|reply| reply.body).collect())
    })
}

/// Reloads to this version while somebody asks: it fails for these reasons, the old workers serve as
/// before, and nobody is left of the new. The answers that clients got.
fn fails(stage: &Stage<'_>, what: &str, version: &str, parts: &[&str]) -> Vec<String> {
    let old = pids(&stage.croupier.status());
    let processes = stage.guard.processes().len();
    stage.becomes(version);
    let (reload, bodies) = reload_while_asking(stage);
    reload.expect_code(1).expect_error(parts);
    assert_eq!(
        reload.stdout.contains("cannot read the configuration"),
        version.starts_with("crashes"),
        "{reload:?}"
    );
    assert_eq!(pids(&stage.croupier.status()), old, "{version}");
    assert_eq!(stage.generations(), [1; 4], "{version}");
    let after = hammer(&Client::port(stage.port), 4, 40, |_| Some("/".to_owned()));
    assert_eq!(after.failures, [], "{version}");
    let after: Vec<String> = after.replies.into_iter().map(|reply| reply.body).collect();
    assert!(all_are_old(&after), "{version}: {after:?}");
    did_not_hold(what, &reload, &bodies, stage.guard.processes().len() - processes);
    bodies
}

/// The row of the table for a version that did not hold, while somebody asked and never failed.
pub(crate) fn did_not_hold(what: &str, reload: &Finished, bodies: &[String], left: usize) {
    let old = bodies.iter().filter(|body| body.contains("generation=1")).count();
    let reason = reload.stderr.split_once("the reload failed: ").map(|(_, reason)| reason.trim());
    figure(&Figure {
        item: &format!("replace 2 {what}"),
        measured: format!(
            "exit {}, {old} requests answered by the old generation, {} by new workers before the \
             failure, 0 failed, {left} processes left: {}",
            reload.code.unwrap_or(-1),
            bodies.len() - old,
            reason.unwrap_or("no reason").replace(['\n', '\t'], " ")
        ),
        goal: "exit 1 with the reason, the old serve throughout, 0 failed, nobody left",
        met: reload.code == Some(1) && reason.is_some() && old > 0 && left == 0,
    });
}

fn all_are_old(bodies: &[String]) -> bool {
    bodies.iter().all(|body| body.contains("generation=1 good"))
}

#[test]
fn a_version_that_does_not_hold_leaves_the_old_one_serving() {
    let guard = Guard::new("reload-bad");
    let stage = Stage::new(&guard, &["-w", "4", "--soak", "1s", "--max-surge", "3"]);
    let crashes = fails(
        &stage,
        "crashes at start",
        "crashes",
        &["exited with status 3 before it was ready", "old workers go on"],
    );
    assert!(all_are_old(&crashes), "{crashes:?}");
    let short = fails(
        &stage,
        "dies while it is watched",
        "short",
        &["exited with status 4 while it was being watched"],
    );
    let served = short.iter().filter(|body| body.contains("generation=3 short")).count();
    assert_eq!(served, 3, "{short:?}");
    fails(
        &stage,
        "leaves for the background",
        "leaves",
        &["exited with status 0 before it was ready: it must stay in the foreground"],
    );
    fails(
        &stage,
        "breaks the rules",
        "rubbish",
        &[" broke what it must keep to before it was ready", "old workers"],
    );
    stage.becomes("better");
    let (reload, _) = reload_while_asking(&stage);
    reload.expect_code(0);
    // Numbers of generations that failed are not used again.
    assert_eq!(stage.generations(), [6; 4]);
    let reply = Client::port(stage.port).get("/").unwrap();
    assert!(reply.body.contains("generation=6 better"), "{reply:?}");
    stage.croupier.stop_well();
}

/// New workers of other slots hold, and serve, before the one that does not: they leave with it.
#[test]
fn a_version_that_does_not_hold_in_slot_2_of_4_leaves_the_old_one_serving() {
    let guard = Guard::new("reload-bad-slot");
    let flags = ["-w", "4", "--soak", "500ms", "--max-surge", "3", "--ready-timeout", "4s"];
    let stage = Stage::new(&guard, &flags);
    let late = "of slot 2 was not ready within 4s";
    for (what, version, parts) in [
        (
            "crashes at start",
            "crashes@2",
            &["of slot 2 exited with status 3 before it was ready"][..],
        ),
        ("never listens", "silent@2", &[late]),
        ("listens on one of two ports", "one-port@2", &[late, "does not listen on 127.0.0.1:"]),
        (
            "dies while it is watched",
            "short@2",
            &["of slot 2 exited with status 4 while it was being watched"],
        ),
    ] {
        let bodies = fails(&stage, &format!("slot 2 of 4 {what}"), version, parts);
        let canary = bodies.iter().filter(|body| !body.contains("generation=1 ")).count();
        assert!(canary > 0, "the first new worker served while it was watched: {bodies:?}");
        let short = bodies.iter().filter(|body| body.contains(" short")).count();
        assert_eq!(short, if version == "short@2" { 3 } else { 0 }, "{bodies:?}");
    }
    stage.croupier.stop_well();
}

/// By hand, too, and nobody is told how an earlier worker ended.
#[test]
fn a_start_that_breaks_the_rules_says_so() {
    let guard = Guard::new("reload-rubbish");
    let stage = Stage::new(&guard, &["-w", "2", "--soak", "0"]);
    let kept = ", which was to take over, broke what it must keep to; the old one stays";
    stage.becomes("crashes");
    stage.croupier.ask(&["restart", "0"]).expect_code(1).expect_error(&["exited with status 3"]);
    stage.becomes("rubbish");
    stage.croupier.ask(&["restart", "0"]).expect_code(1).expect_error(&[kept]);
    stage.croupier.ask(&["stop", "0"]).expect_code(0);
    let start = stage.croupier.ask(&["start", "0"]);
    start
        .expect_code(1)
        .expect_error(&["slot 0: its worker was killed, and the log says why; it is"]);
    stage.croupier.wait_for_line("sent something that is no question");
    stage.croupier.stop_well();
}

#[test]
fn a_version_that_is_not_ready_in_time_leaves_the_old_one_serving() {
    let guard = Guard::new("reload-never");
    let stage = Stage::new(&guard, &["-w", "4", "--ready-timeout", "4s"]);
    let late = "was not ready within 4s";
    let silent = fails(&stage, "never listens", "silent", &[late]);
    assert!(all_are_old(&silent), "{silent:?}");
    let reasons = [late, "does not listen on 127.0.0.1:"];
    let one_port = fails(&stage, "listens on one of two ports", "one-port", &reasons);
    assert!(all_are_old(&one_port), "{one_port:?}");
    stage.croupier.stop_well();
}

#[test]
fn it_says_each_step_and_what_the_old_workers_hold() {
    let guard = Guard::new("reload-steps");
    let stage = Stage::new(&guard, &["-w", "1", "--soak", "100ms"]);
    let fifo = guard.fifo("go");
    let held = Client::port(stage.port).send(&format!("/block?fifo={}", fifo.display())).unwrap();
    stage.croupier.wait_status("the blocker", |status| (status.open().1 == 1).then_some(()));
    let reload = std::thread::scope(|scope| {
        let asked = scope.spawn(|| stage.croupier.ask(&["reload"]));
        stage.croupier.wait_status("two generations", |status| {
            let states: Vec<_> = status.workers.iter().map(|w| (w.generation, &*w.state)).collect();
            (states == [(Some(1), "draining"), (Some(2), "ready")]).then_some(())
        });
        assert!(!held.answered() && !asked.is_finished());
        let other = Client::port(stage.port).get("/").unwrap();
        assert!(other.body.contains("generation=2"), "{other:?}");
        std::fs::write(&fifo, "").unwrap();
        assert!(held.reply().unwrap().body.contains("generation=1"));
        asked.join().unwrap()
    });
    reload.expect_code(0);
    let steps = [
        "generation 2 begins",
        "slot 0: worker 2 is ready",
        "slot 0: worker 2 takes over; worker 1 is parked and holds 1 connection",
        "watching 1 new worker for 100ms",
        "every slot has a worker of generation 2",
        "slot 0: worker 1 drains and holds 1 connection",
        "worker 1 has ended",
        "nobody is left to drain; 0 connections cut at the drain-timeout",
    ];
    assert_eq!(reload.stdout.lines().collect::<Vec<_>>(), steps, "{reload:?}");
    stage.croupier.stop_well();
}

#[test]
fn what_is_cut_at_the_drain_timeout_is_counted() {
    let guard = Guard::new("reload-cut");
    let flags = ["-w", "1", "--soak", "0", "--drain-timeout", "300ms", "--kill-after", "200ms"];
    let stage = Stage::new(&guard, &flags);
    let fifo = guard.fifo("never");
    let held = Client::port(stage.port).send(&format!("/block?fifo={}", fifo.display())).unwrap();
    stage.croupier.wait_status("the blocker", |status| (status.open().1 == 1).then_some(()));
    let reload = stage.croupier.ask(&["reload"]);
    reload.expect_code(0);
    for step in [
        "worker 1 still holds 1 connection and has no more time",
        "; 1 connection cut at the drain",
    ] {
        assert!(reload.stdout.contains(step), "{step}: {reload:?}");
    }
    assert!(held.reply().is_err());
    stage.croupier.stop_well();
}

/// In a drain a slot has two workers to wait for, and who waits for that hears so.
#[test]
fn a_scale_during_the_drain_waits_for_its_slots_alone_and_says_for_whom() {
    let guard = Guard::new("reload-scale");
    let flags = ["-w", "2", "--soak", "0", "--slow-start", "0", "--drain-timeout", "10m"];
    let stage = Stage::new(&guard, &flags);
    let mut held = Vec::new();
    for (open, name) in [(1, "one"), (2, "two")] {
        let path = format!("/block?fifo={}", guard.fifo(name).display());
        held.push(Client::port(stage.port).send(&path).unwrap());
        stage.croupier.wait_status("a blocker", |s| (s.open() == (0, open)).then_some(()));
    }
    let status = stage.croupier.status();
    let of_slot_1 = status.ready().position(|worker| worker.slot == 1).unwrap();
    assert!(status.ready().all(|worker| worker.active == Some(1)), "{status:?}");
    stage.croupier.ask(&["reload", "--no-wait"]).expect_code(0);
    stage.croupier.wait_status("two that drain", |status| {
        (status.workers.iter().filter(|worker| worker.state == "draining").count() == 2)
            .then_some(())
    });
    let scaled = std::thread::scope(|scope| {
        let asked = scope.spawn(|| stage.croupier.ask(&["scale", "-1"]));
        stage.croupier.wait_status("one slot", |status| (status.slots == 1).then_some(()));
        // Whoever does not want to wait does not.
        stage.croupier.ask(&["scale", "+0", "--no-wait"]).expect_code(0);
        assert!(!asked.is_finished());
        // The first blocker took the first slot; that of slot 1 is all that it waits for.
        let name = ["one", "two"][of_slot_1];
        std::fs::write(guard.path(name), "").unwrap();
        assert_eq!(held.remove(of_slot_1).reply().unwrap().status, 200);
        asked.join().unwrap()
    });
    let said = &scaled.expect_code(0).stdout;
    let line = said.lines().find(|line| line.starts_with("slot 1: worker 2 drains and holds 1"));
    assert!(line.is_some(), "{said}");
    assert_eq!(stage.croupier.status().open().1, 1, "the other still drains");
    std::fs::write(guard.path("one"), "").unwrap();
    assert_eq!(held.remove(0).reply().unwrap().status, 200);
    stage.croupier.wait_for_line("nobody is left to drain");
    stage.croupier.stop_well();
}

#[test]
fn signals_reload_too() {
    let guard = Guard::new("reload-signals");
    let stage = Stage::new(&guard, &["-w", "2", "--soak", "100ms"]);
    for (signal, generation) in [(Signal::SIGUSR2, 2), (Signal::SIGHUP, 3)] {
        stage.croupier.signal(signal);
        stage.croupier.wait_status("the next generation", |status| {
            let all: Vec<_> = status.workers.iter().map(|worker| worker.generation).collect();
            (all == [Some(generation); 2]).then_some(())
        });
    }
    stage.croupier.stop_well();
}

#[test]
fn two_requests_that_come_during_a_reload_are_one() {
    let guard = Guard::new("reload-twice");
    let stage = Stage::new(&guard, &["-w", "2", "--soak", "300ms"]);
    stage.croupier.ask(&["reload", "--no-wait"]).expect_code(0);
    stage.croupier.wait_for_line("generation 2 begins");
    let both = std::thread::scope(|scope| {
        // They are one, and that is rolling as one of them is, whichever comes first.
        let asked = [&["reload"][..], &["reload", "--rolling"]]
            .map(|words| scope.spawn(|| stage.croupier.ask(words)));
        asked.map(|asked| asked.join().unwrap())
    });
    for reload in both {
        reload.expect_code(0);
        assert!(reload.stdout.contains("a reload is under way"), "{reload:?}");
        assert!(reload.stdout.contains("generation 3 begins, rolling"), "{reload:?}");
        assert!(reload.stdout.contains("every slot has a worker of generation 3"), "{reload:?}");
    }
    assert_eq!(stage.generations(), [3; 2]);
    stage.croupier.stop_well();
}

#[test]
fn a_rolling_reload_replaces_one_after_another() {
    let guard = Guard::new("reload-rolling");
    let stage = Stage::new(&guard, &["-w", "3", "--soak", "100ms", "--max-surge", "1"]);
    let reload = stage.croupier.ask(&["reload", "--rolling"]);
    reload.expect_code(0);
    let order: Vec<&str> = reload
        .stdout
        .lines()
        .filter(|line| line.contains("takes over") || line.contains("has ended"))
        .map(|line| if line.contains("ended") { "ended" } else { "takes over" })
        .collect();
    assert_eq!(order, ["takes over", "ended"].repeat(3), "{reload:?}");
    assert_eq!(stage.generations(), [2; 3]);
    stage.becomes("crashes@2");
    let failed = stage.croupier.ask(&["reload", "--rolling"]);
    failed.expect_code(1).expect_error(&["generations are mixed: 2 slots keep their workers"]);
    assert_eq!(stage.generations(), [2, 3, 3]);
    stage.croupier.stop_well();
}

#[test]
fn a_stop_during_a_reload_wins() {
    let guard = Guard::new("reload-stop");
    // In the soak of the canary, and while the canary starts.
    for version in ["good", "silent"] {
        let stage = Stage::new(&guard, &["-w", "2", "--soak", "1h"]);
        stage.becomes(version);
        let failed = std::thread::scope(|scope| {
            let asked = scope.spawn(|| stage.croupier.ask(&["reload"]));
            let line = if version == "good" { "watching 1 new worker" } else { "2 begins" };
            stage.croupier.wait_for_line(line);
            stage.croupier.signal(Signal::SIGTERM);
            asked.join().unwrap()
        });
        failed.expect_code(1).expect_error(&["the reload failed: it is stopping"]);
        stage.croupier.finished(PATIENCE).expect_code(0);
        assert_eq!(guard.processes(), [], "{version}");
    }
}

#[test]
fn a_reload_brings_a_crash_looping_slot_back() {
    let guard = Guard::new("reload-crashes");
    let stage = Stage::new(&guard, &["-w", "3", "--soak", "100ms"]);
    stage.becomes("crashes@2");
    let victim = stage.croupier.status().slot(2).unwrap().pid.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    stage.croupier.wait_status("a crash loop", |status| {
        status.workers.iter().find(|worker| worker.state == "backoff").map(|_| ())
    });
    stage.becomes("better");
    let reload = stage.croupier.ask(&["reload"]);
    reload.expect_code(0);
    // It has nothing to lose, so it goes first.
    let first = reload.stdout.lines().find(|line| line.starts_with("slot ")).unwrap().to_owned();
    assert!(first.starts_with("slot 2:"), "{reload:?}");
    assert_eq!(stage.generations(), [2; 3]);
    stage.croupier.stop_well();
}

#[test]
fn lines_of_workers_say_the_generation_while_two_live() {
    let guard = Guard::new("reload-prefix");
    let port = guard.port();
    let program = "import os, socket, sys
server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
print('up', flush=True)
while True:
    server.accept()[0].close()
";
    let script = guard.write("up.py", program).into_os_string().into_string().unwrap();
    let flags = ["-w", "1", "--soak", "100ms", "--", "python3", &script, &port.to_string()];
    let croupier = guard.run(flags).ready();
    croupier.wait_for_line("[w0] up");
    croupier.ask(&["reload"]).expect_code(0);
    let lines = croupier.stdout().all();
    assert!(lines.iter().any(|line| line.contains("up") && !line.contains("[w0]")), "{lines:?}");
    croupier.stop_well();
}

#[test]
fn shared_and_reuseport_lose_only_what_the_signal_ends() {
    let guard = Guard::new("reload-shared");
    for policy in ["shared", "reuseport"] {
        let port = guard.port();
        let mut args: Vec<OsString> = ["-p", policy].iter().map(Into::into).collect();
        args.extend(QUICK.iter().map(Into::into));
        args.push("--".into());
        args.extend(crate::programs::one_at_a_time(port));
        let croupier = guard.run(args).ready();
        let failures = std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                for _ in 0..3 {
                    // No figure where nobody counts.
                    let reload = croupier.ask(&["reload"]);
                    let last = "nobody is left to drain; how many connections were cut is unknown";
                    assert_eq!(reload.expect_code(0).stdout.lines().last(), Some(last), "{policy}");
                }
            });
            let client = Client::port(port);
            let outcome =
                hammer(&client, 8, usize::MAX, |_| (!asked.is_finished()).then(|| "/".to_owned()));
            asked.join().unwrap();
            outcome.failures
        });
        // A worker that accepts by itself is told to end by a signal, and this one knows no better
        // than to die of it with what it has just accepted.
        assert!(failures.len() <= 6, "{policy}: {failures:?}");
        wait_until(PATIENCE, "the old to go", || {
            let count = croupier.status().workers.len();
            if count == 2 { Ok(()) } else { Err(count) }
        });
        croupier.stop_well();
    }
}

/// How long a reload that is asked for takes at least: the test that the soak is real.
#[test]
fn the_soak_passes_before_the_old_end() {
    let guard = Guard::new("reload-soak");
    let stage = Stage::new(&guard, &["-w", "1", "--soak", "700ms"]);
    let begun = croupier_tests::now();
    stage.croupier.ask(&["reload"]).expect_code(0);
    assert!(begun.elapsed() >= Duration::from_millis(700));
    stage.croupier.stop_well();
}
