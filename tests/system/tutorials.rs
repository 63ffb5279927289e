//! What the well-known tutorials on clustering show, with croupier instead of a cluster module.
//!
//! | the tutorials show | here, or |
//! |---|---|
//! | a worker that dies is replaced | `a_worker_that_dies_is_replaced_while_others_serve` |
//! | a graceful shutdown by TERM, with a deadline | `term_lets_a_request_finish_and_cuts_at_the_deadline` |
//! | a restart without downtime, by HUP and USR2 | `hup_and_usr2_bring_a_new_version_without_a_failed_request` |
//! | as many workers as WORKERS says | `cli.rs`, `the_number_of_workers_comes_from_where_others_put_it` |
//! | as many as the container has CPUs | `as_many_workers_as_the_cgroup_has_cpus` |
//! | a crash loop is seen and ends | `crash.rs`, `a_crash_loop_is_cheap_and_a_start_ends_it`; `troubles.rs` |
//! | a worker with too much memory is replaced | `limits.rs`, `a_worker_that_leaks_is_replaced` |
//! | one that does not respond is replaced | `limits.rs`, `a_busy_loop_alone_is_ended_and_who_waited_for_it_is_served` |
//! | a counter and sessions in Redis | `a_counter_and_sessions_in_redis_are_everybodys` |
//! | sticky sessions | `sessions_in_memory_stay_with_their_worker_under_ip`; `sticky.rs` |
//! | autocannon and wrk, one process against many | `one_process_against_many` |

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use croupier_tests::{
    Client, Croupier, Figure, Guard, PATIENCE, deps, figure, find_program, hammer, skip, soak_or,
    wait_until, wrk,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cells::CpuCell;
use crate::programs::one_at_a_time;

/// A server as the tutorials have it: Node's http, without the cluster module.
const SERVER: &str = r#"
const fs = require("fs"), http = require("http");
const version = fs.existsSync("version") ? fs.readFileSync("version", "utf8") : "1";
const sessions = new Map();
http.createServer((request, response) => {
  if (request.url === "/slow") {
    fs.readFile(process.env.GATE, () => response.end("slow"));
  } else if (request.url.startsWith("/visit/")) {
    const visits = (sessions.get(request.url) || 0) + 1;
    sessions.set(request.url, visits);
    response.end(`visits=${visits} pid=${process.pid}`);
  } else {
    response.end(`version=${version} pid=${process.pid}`);
  }
}).listen(Number(process.env.SERVER_PORT), "127.0.0.1");
"#;

fn node<'guard>(guard: &'guard Guard, flags: &[&str], port: u16) -> Option<Croupier<'guard>> {
    find_program("node")?;
    let script = guard.write("server.js", SERVER);
    let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
    args.extend(["--".into(), "node".into(), script.into()]);
    let gate = guard.path("gate");
    let started = guard.run_with(args, |command| {
        command.env("SERVER_PORT", port.to_string()).env("GATE", gate);
    });
    Some(started.ready())
}

#[test]
fn a_worker_that_dies_is_replaced_while_others_serve() {
    let guard = Guard::new("tutorial-restart");
    let port = guard.port();
    let Some(croupier) = node(&guard, &["-w", "2"], port) else {
        skip!("a_worker_that_dies_is_replaced_while_others_serve", "node is not installed")
    };
    let victim = croupier.status().slot(0).unwrap().pid.unwrap();
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let run = hammer(&Client::port(port), 2, 50, |_| Some("/".to_owned()));
    assert_eq!(run.failures, []);
    croupier.wait_status("its successor", |status| {
        status.slot(0).filter(|worker| worker.pid != Some(victim)).map(drop)
    });
    let pids: BTreeSet<Option<i32>> =
        (0..8).map(|_| Client::port(port).get("/").unwrap().pid()).collect();
    assert!(pids.len() == 2 && !pids.contains(&Some(victim)), "{pids:?}");
    croupier.stop_well();
}

#[test]
fn term_lets_a_request_finish_and_cuts_at_the_deadline() {
    let guard = Guard::new("tutorial-graceful");
    let gate = guard.fifo("gate");
    for finishes in [true, false] {
        let port = guard.port();
        let deadline = if finishes { "20s" } else { "300ms" };
        let Some(croupier) = node(&guard, &["-w", "1", "--graceful-timeout", deadline], port)
        else {
            skip!("term_lets_a_request_finish_and_cuts_at_the_deadline", "node is not installed")
        };
        let slow = Client::port(port).send("/slow").unwrap();
        croupier.wait_status("the slow one", |status| (status.open().1 == 1).then_some(()));
        croupier.signal(Signal::SIGTERM);
        // The listener goes first: nobody is let in who would not be served.
        wait_until(PATIENCE, "new clients to be refused", || match Client::port(port).open() {
            Ok(_) => Err("let in"),
            Err(_) => Ok(()),
        });
        if finishes {
            std::fs::write(&gate, "open").unwrap();
            assert_eq!(slow.reply().unwrap().status, 200);
        } else {
            assert!(slow.reply().is_err());
        }
        croupier.finished(PATIENCE).expect_code(0);
    }
}

#[test]
fn hup_and_usr2_bring_a_new_version_without_a_failed_request() {
    let guard = Guard::new("tutorial-reload");
    let port = guard.port();
    let Some(croupier) = node(&guard, &["-w", "2", "--soak", "0"], port) else {
        skip!("hup_and_usr2_bring_a_new_version_without_a_failed_request", "node is not installed")
    };
    let client = Client::port(port);
    assert_eq!(client.get("/").unwrap().value("version="), Some(1));
    for (signal, version) in [(Signal::SIGHUP, 2), (Signal::SIGUSR2, 3)] {
        guard.write("version", &version.to_string());
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let going = || !done.load(std::sync::atomic::Ordering::Relaxed);
                hammer(&client, 2, usize::MAX, |_| going().then(|| "/".to_owned()))
            });
            croupier.signal(signal);
            let all_new = croupier.wait_status("the new version", |status| {
                let new = status.workers.iter().all(|worker| worker.generation == Some(version));
                Some(status.workers.len()).filter(|_| new)
            });
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            let run = load.join().unwrap();
            assert_eq!((run.failures, all_new), (Vec::new(), 2));
        });
        let version = i32::try_from(version).unwrap();
        assert_eq!(client.get("/").unwrap().value("version="), Some(version));
    }
    croupier.stop_well();
}

#[test]
fn as_many_workers_as_the_cgroup_has_cpus() {
    let guard = Guard::new("tutorial-cgroup");
    let cell = match CpuCell::new(&guard, 100) {
        Ok(cell) => cell,
        Err(why) => skip!("tutorial-cgroup", "{why}"),
    };
    let enter = format!("{} && exec \"$@\"", cell.enter());
    let words = ["sh", "-c", &enter, "sh"].map(str::to_owned);
    let port = guard.port();
    let croupier = guard.run_with(one_at_a_time(port), |command| {
        crate::crash::under(&guard, command, &words);
    });
    let croupier = croupier.ready();
    let online = std::thread::available_parallelism().unwrap().get();
    let line = croupier.wait_for_line("starting 1 worker of ");
    assert!(online == 1 || line.contains("(auto: 1 of"), "{line}");
    assert_eq!(croupier.status().workers.len(), 1);
    croupier.stop_well();
}

/// In memory each worker counts for itself; a client that stays with its worker does not notice.
#[test]
fn sessions_in_memory_stay_with_their_worker_under_ip() {
    let guard = Guard::new("tutorial-sticky");
    let port = guard.port();
    let Some(croupier) = node(&guard, &["-w", "2", "-p", "ip"], port) else {
        skip!("sessions_in_memory_stay_with_their_worker_under_ip", "node is not installed")
    };
    let mut pids = BTreeSet::new();
    for visit in 1..=4 {
        for host in 1..=12 {
            let client = Client::port(port).from(Ipv4Addr::new(127, 0, 7, host));
            let reply = client.get(&format!("/visit/{host}")).unwrap();
            assert_eq!(reply.value("visits="), Some(visit), "{reply:?}");
            pids.insert(reply.pid());
        }
    }
    assert_eq!(pids.len(), 2, "both workers have clients");
    croupier.stop_well();
}

/// Express with its sessions in Redis, and a counter beside them.
const SHARED: &str = r#"
const express = require("express"), session = require("express-session");
const { createClient } = require("redis"), { RedisStore } = require("connect-redis");
(async () => {
  const client = createClient({ socket: { path: process.env.REDIS_SOCKET } });
  await client.connect();
  const app = express();
  app.use(session({ store: new RedisStore({ client }), secret: "s", resave: false, saveUninitialized: false }));
  app.get("/count", async (request, response) =>
    response.send(`count=${await client.incr("count")} pid=${process.pid}`));
  app.get("/visit", (request, response) => {
    request.session.visits = (request.session.visits || 0) + 1;
    response.send(`visits=${request.session.visits} pid=${process.pid}`);
  });
  app.listen(Number(process.env.SERVER_PORT), "127.0.0.1");
})();
"#;

#[test]
fn a_counter_and_sessions_in_redis_are_everybodys() {
    const NAME: &str = "a_counter_and_sessions_in_redis_are_everybodys";
    let guard = Guard::new("tutorial-redis");
    let (Some(redis), Some(_)) = (find_program("redis-server"), find_program("node")) else {
        skip!(NAME, "redis-server or node is not installed")
    };
    let Some(_) = deps("node/node_modules/connect-redis") else {
        skip!(NAME, "tests/.deps has no connect-redis; run `make deps`")
    };
    let modules = deps("node/node_modules").unwrap();
    let socket = guard.path("redis.sock");
    let mut command = guard.command(redis);
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.arg("--unixsocket").arg(&socket);
    let redis = guard.start(command);
    wait_until(PATIENCE, "Redis to listen", || {
        std::os::unix::net::UnixStream::connect(&socket).map(drop)
    });
    let script = guard.write("shared.js", SHARED);
    let port = guard.port();
    let words: [OsString; 5] =
        ["-w".into(), "4".into(), "--".into(), "node".into(), script.into_os_string()];
    let croupier = guard.run_with(words, |command| {
        command.env("SERVER_PORT", port.to_string()).env("REDIS_SOCKET", &socket);
        command.env("NODE_PATH", modules);
    });
    let croupier = croupier.ready();
    let client = Client::port(port);
    let run = hammer(&client, 4, 40, |_| Some("/count".to_owned()));
    assert_eq!(run.failures, []);
    let counts: BTreeSet<i32> = run.replies.iter().filter_map(|r| r.value("count=")).collect();
    assert_eq!(counts, (1..=40).collect(), "each number once, over all workers");
    let pids: BTreeSet<Option<i32>> = run.replies.iter().map(croupier_tests::Reply::pid).collect();
    assert_eq!(pids.len(), 4, "{pids:?}");

    // A session goes along with its cookie, whoever serves it.
    let first = client.get("/visit").unwrap();
    let cookie = first.head.lines().find_map(|line| line.strip_prefix("Set-Cookie: "));
    let cookie = cookie.unwrap().split(';').next().unwrap();
    let mut served = BTreeSet::from([first.pid()]);
    for visit in 2..=9 {
        let mut pending = client.open().unwrap();
        let head = "GET /visit HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        pending.say(format!("{head}Cookie: {cookie}\r\n\r\n").as_bytes()).unwrap();
        let reply = pending.reply().unwrap();
        assert_eq!(reply.value("visits="), Some(visit), "{reply:?}");
        served.insert(reply.pid());
    }
    assert!(served.len() > 1, "one session, several workers: {served:?}");
    assert_eq!(client.get("/visit").unwrap().value("visits="), Some(1), "without it a new one");
    croupier.stop_well();
    redis.signal(Signal::SIGTERM);
    redis.finished(PATIENCE).expect_code(0);
}

/// Answers and failures, as autocannon counts them.
fn autocannon(guard: &Guard, program: &PathBuf, port: u16) -> (u64, u64) {
    let mut command = guard.command("node");
    command.arg(program).args(["--json", "-c", "32", "-d", soak_or("5", "1")]);
    command.args(["-H", "Connection: close", &format!("http://127.0.0.1:{port}/")]);
    let ended = guard.finish(command);
    ended.expect_code(0);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let count = |name: &str| report.get(name).and_then(serde_json::Value::as_u64).unwrap();
    (count("2xx"), count("errors") + count("timeouts") + count("non2xx"))
}

/// The comparison that each tutorial ends with. How much faster depends on the machine; that nobody
/// fails and every worker takes part does not.
#[test]
fn one_process_against_many() {
    const NAME: &str = "one_process_against_many";
    let guard = Guard::new("tutorial-load");
    let Some(cannon) = deps("node/node_modules/autocannon/autocannon.js") else {
        skip!(NAME, "tests/.deps has no autocannon; run `make deps`")
    };
    if find_program("wrk").is_none() {
        skip!(NAME, "wrk is not installed")
    }
    let (mut measured, mut met) = (Vec::new(), true);
    for workers in [1_usize, 4] {
        let port = guard.port();
        let Some(croupier) = node(&guard, &["-w", &workers.to_string()], port) else {
            skip!(NAME, "node is not installed")
        };
        let (answers, failed) = autocannon(&guard, &cannon, port);
        let run =
            wrk(&guard, port, "/", 32, &["-d", soak_or("5s", "1s"), "-H", "Connection: close"]);
        let run = run.unwrap();
        let status = croupier.status();
        let used = status.dealt().values().filter(|dealt| **dealt > 0).count();
        let errors = failed + run.failed();
        met &= errors == 0 && answers > 0 && used == workers;
        measured.push(format!(
            "{workers} workers, {used} used: autocannon {answers} answers, wrk {:.0}/s, {errors} errors",
            run.rate
        ));
        croupier.stop_well();
    }
    figure(&Figure {
        item: "5 one process against many",
        measured: measured.join("; "),
        goal: "0 errors, every worker used",
        met,
    });
}
