//! Draining well: clients that keep their connections, workers that are told, sticky clients, and new
//! workers that must answer before the old ones leave.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use croupier_tests::{
    Client, Croupier, Figure, Finished, Guard, PATIENCE, Status, deps, example, figure, hammer,
    rust_library, skip, soak_or, wait_until, wrk,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};

use crate::reload::did_not_hold;

/// A client that keeps its connection.
struct Kept(TcpStream);

impl Kept {
    fn new(port: u16) -> Self {
        Self::from(Ipv4Addr::LOCALHOST, port)
    }

    fn from(address: Ipv4Addr, port: u16) -> Self {
        use std::os::fd::AsRawFd;
        let fd =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((address, 0)))).unwrap();
        let to = SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], port)));
        connect(fd.as_raw_fd(), &to).unwrap();
        let stream = TcpStream::from(fd);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// The answer's head and body; the connection stays open.
    fn get(&mut self, path: &str) -> String {
        write!(self.0, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        loop {
            let mut part = [0; 4096];
            let count = self.0.read(&mut part).unwrap();
            assert!(count > 0, "closed inside an answer: {text:?}");
            text.push_str(std::str::from_utf8(part.get(..count).unwrap()).unwrap());
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            if body.len() == length.unwrap().parse::<usize>().unwrap() {
                return text;
            }
        }
    }

    /// Whether the server has ended it; waits for that, or for the patience.
    fn is_cut(&mut self) -> bool {
        match self.0.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn pids(status: &Status) -> Vec<i32> {
    let mut pids: Vec<i32> = status.ready().filter_map(|worker| worker.pid).collect();
    pids.sort_unstable();
    pids
}

fn words(flags: &[&str]) -> Vec<OsString> {
    flags.iter().map(Into::into).collect()
}

// ---- keep-alive

/// Reloads under clients that keep their connections: nobody loses a request.
fn reloads_with_keep_alive(guard: &Guard, what: &str, args: Vec<OsString>, port: u16) {
    let rounds = soak_or(100, 3);
    let croupier = guard.run(args).ready();
    let run = std::thread::scope(|scope| {
        let reloads = scope.spawn(|| {
            let mut last = String::new();
            for round in 0..rounds {
                let reload = croupier.ask(&["reload"]);
                assert_eq!(reload.code, Some(0), "reload {round}: {reload:#?}");
                assert!(reload.stdout.contains("; 0 connections cut"), "{round}: {reload:#?}");
                last = reload.stdout;
            }
            last
        });
        let mut sum = (0, [0; 5]);
        while !reloads.is_finished() {
            let run = wrk(guard, port, "/", 32, &["-d", "2s"])?;
            sum.0 += run.requests;
            sum.1.iter_mut().zip(run.errors).for_each(|(sum, errors)| *sum += errors);
        }
        reloads.join().unwrap();
        Some(sum)
    });
    let Some((requests, errors)) = run else {
        skip!("reloads_with_keep_alive", "wrk is not installed")
    };
    let status = croupier.status();
    let generation = Some(rounds + 1);
    assert!(status.workers.iter().all(|worker| worker.generation == generation), "{status:?}");
    figure(&Figure {
        item: &format!("replace 1 reload with keep-alive, {what}"),
        measured: format!("{rounds} reloads, {requests} answers, failures {errors:?}"),
        goal: "0 failed requests, 0 connections cut",
        met: errors == [0; 5] && requests > 100,
    });
    croupier.stop_well();
}

const QUICK: [&str; 6] = ["-w", "2", "--soak", "100ms", "--stall-after", "10s"];

#[test]
fn keep_alive_clients_of_the_axum_example_notice_no_reload() {
    let guard = Guard::new("keep-axum");
    let port = guard.port();
    let mut args = words(&QUICK);
    args.extend(words(&["--drain-timeout", "20s", "--"]));
    args.extend([example("axum", "axum").into(), format!("127.0.0.1:{port}").into()]);
    reloads_with_keep_alive(&guard, "shim (axum)", args, port);
}

/// An event loop that polls `croupier_draining_fd` with its sockets, and says goodbye once that is
/// readable. Clients that are silent for half a second after that are let go.
const TOLD: &str = r#"
import ctypes, os, selectors, socket, sys, time
library = ctypes.CDLL(sys.argv[2])
told = library.croupier_draining_fd()
assert told >= 0
poll = selectors.DefaultSelector()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
listener.setblocking(False)
poll.register(listener, selectors.EVENT_READ)
poll.register(told, selectors.EVENT_READ)
clients, leaves = {}, None
def close(client):
    poll.unregister(client)
    clients.pop(client)
    client.close()
while leaves is None or time.monotonic() < leaves or clients:
    for key, _ in poll.select(0.1 if leaves else None):
        if key.fileobj == told:
            poll.unregister(told)
            leaves = time.monotonic() + 0.5
            print("told", flush=True)
        elif key.fileobj is listener:
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                continue
            clients[client] = b""
            poll.register(client, selectors.EVENT_READ)
        else:
            client = key.fileobj
            try:
                got = client.recv(4096)
            except ConnectionError:
                got = b""
            clients[client] += got
            if not got:
                close(client)
            elif clients[client].endswith(b"\r\n\r\n"):
                clients[client] = b""
                goodbye = b"Connection: close\r\n" if leaves else b""
                body = b"generation=%s\n" % os.environ["CROUPIER_GENERATION"].encode()
                client.sendall(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (goodbye, len(body), body))
                if leaves:
                    close(client)
    if leaves and time.monotonic() >= leaves:
        for client in list(clients):
            close(client)
"#;

fn told(guard: &Guard, port: u16) -> Vec<OsString> {
    let script = guard.write("told.py", TOLD);
    let words: [OsString; 4] =
        ["python3".into(), script.into(), port.to_string().into(), rust_library().into()];
    words.into()
}

#[test]
fn keep_alive_clients_of_a_program_that_is_told_notice_no_reload() {
    let guard = Guard::new("keep-told");
    let port = guard.port();
    let mut args = words(&QUICK);
    args.extend(words(&["--drain-timeout", "20s", "--"]));
    args.extend(told(&guard, port));
    reloads_with_keep_alive(&guard, "told by a descriptor (C API)", args, port);
}

#[test]
fn an_idle_client_of_a_program_that_is_told_is_let_go_and_not_cut() {
    let guard = Guard::new("keep-idle");
    let port = guard.port();
    let mut args = words(&["-w", "1", "--soak", "0", "--drain-timeout", "60s", "--"]);
    args.extend(told(&guard, port));
    let croupier = guard.run(args).ready();
    let mut client = Kept::new(port);
    assert!(client.get("/").contains("generation=1"));
    let reload = croupier.ask(&["reload"]);
    reload.expect_code(0);
    assert!(reload.stdout.contains("worker 1 drains and holds 1 connection"), "{reload:?}");
    assert!(reload.stdout.contains("; 0 connections cut at the drain-timeout"), "{reload:?}");
    assert!(client.is_cut());
    croupier.wait_for_line("told");
    assert_eq!(croupier.status().totals.messages_dropped, 0);
    croupier.stop_well();
}

/// HTTP/1.1 with connections that stay open, by a program that knows of nothing.
const KEEPS: &str = r#"
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = f"generation={os.environ['CROUPIER_GENERATION']} slot={os.environ['CROUPIER_SLOT']}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

fn keeps<'guard>(guard: &'guard Guard, port: u16, flags: &[&str]) -> Croupier<'guard> {
    let script = guard.write("keeps.py", KEEPS);
    let mut args = words(flags);
    args.extend(["--".into(), "python3".into(), script.into(), port.to_string().into()]);
    guard.run(args).ready()
}

fn active(status: &Status) -> u64 {
    status.open().1
}

#[test]
fn what_a_reload_says_was_cut_is_what_clients_lost() {
    let guard = Guard::new("keep-cut");
    let port = guard.port();
    let flags = ["-w", "2", "--soak", "0", "--drain-timeout", "5s", "--graceful-timeout", "1s"];
    let croupier = keeps(&guard, port, &flags);
    let mut clients: Vec<Kept> = (0..8).map(|_| Kept::new(port)).collect();
    for client in &mut clients {
        assert!(client.get("/").contains("generation=1"));
    }
    croupier.wait_status("eight open", |status| (active(status) == 8).then_some(()));
    let reload = std::thread::scope(|scope| {
        let asked = scope.spawn(|| croupier.ask(&["reload"]));
        croupier.wait_status("drains", |status| {
            status.workers.iter().any(|worker| worker.state == "draining").then_some(())
        });
        // They are still served, and three of them leave in time.
        for client in &mut clients {
            assert!(client.get("/").contains("generation=1"));
        }
        clients.truncate(5);
        asked.join().unwrap()
    });
    reload.expect_code(0);
    let cut = clients.iter_mut().filter_map(|client| client.is_cut().then_some(())).count();
    assert_eq!(cut, 5);
    let said = reload.stdout.lines().last().unwrap();
    assert_eq!(said, "nobody is left to drain; 5 connections cut at the drain-timeout");
    figure(&Figure {
        item: "replace 1 keep-alive, a program that is not told",
        measured: format!("8 idle, 3 left in time; clients lost {cut}, reload said: {said}"),
        goal: "the number that reload says is the number of lost connections",
        met: true,
    });
    croupier.stop_well();
}

#[test]
fn a_stop_does_not_wait_for_the_drain_timeout() {
    let guard = Guard::new("keep-stop");
    let port = guard.port();
    let flags = ["-w", "1", "--soak", "0", "--drain-timeout", "1h", "--graceful-timeout", "300ms"];
    let croupier = keeps(&guard, port, &flags);
    let mut client = Kept::new(port);
    client.get("/");
    croupier.ask(&["reload", "--no-wait"]).expect_code(0);
    croupier.wait_status("drains", |status| {
        status.workers.iter().any(|worker| worker.state == "draining").then_some(())
    });
    croupier.stop_well();
    assert!(client.is_cut());
}

// ---- sticky clients

#[test]
fn an_address_with_a_connection_open_at_the_old_worker_stays_there_until_it_is_closed() {
    let guard = Guard::new("keep-sticky");
    let port = guard.port();
    let flags = ["-w", "2", "-p", "ip", "--soak", "0", "--drain-timeout", "1h"];
    let croupier = keeps(&guard, port, &flags);
    let (home, away) = (Ipv4Addr::new(127, 0, 0, 5), Ipv4Addr::new(127, 0, 0, 9));
    let mut held = Kept::from(home, port);
    assert!(held.get("/").contains("generation=1"));
    let ask = |from: Ipv4Addr| Client::port(port).from(from).get("/").unwrap().body;
    let slot = ask(home);
    let reload = std::thread::scope(|scope| {
        let asked = scope.spawn(|| croupier.ask(&["reload"]));
        croupier.wait_status("one drains, the other has gone", |status| {
            let states: Vec<&str> = status.workers.iter().map(|w| &*w.state).collect();
            (states.len() == 3 && states.contains(&"draining")).then_some(())
        });
        for _ in 0..soak_or(500, 20) {
            assert_eq!(ask(home), slot, "it has more open there");
            assert!(ask(away).contains("generation=2"));
        }
        assert!(!asked.is_finished());
        drop(held);
        asked.join().unwrap()
    });
    reload.expect_code(0);
    assert!(reload.stdout.contains("; 0 connections cut"), "{reload:?}");
    assert_eq!(ask(home), slot.replace("generation=1", "generation=2"), "the slot is the same");
    croupier.stop_well();
}

#[test]
fn many_addresses_come_and_go_during_a_drain_and_nothing_grows() {
    let guard = Guard::new("keep-many");
    let port = guard.port();
    let flags = ["-w", "1", "-p", "ip", "--soak", "0", "--drain-timeout", "1h"];
    let croupier = keeps(&guard, port, &flags);
    let mut held = Kept::from(Ipv4Addr::new(127, 9, 9, 9), port);
    held.get("/");
    croupier.ask(&["reload", "--no-wait"]).expect_code(0);
    croupier.wait_status("it drains", |status| {
        status.workers.iter().any(|worker| worker.state == "draining").then_some(())
    });
    let rss = || croupier_tests::field_of_status(croupier.pid(), "VmRSS").unwrap();
    let before = rss();
    let many = soak_or(20_000, 300);
    let mut strays = 0;
    for number in 0..many {
        let [.., a, b] = u32::to_be_bytes(number);
        let reply = Client::port(port).from(Ipv4Addr::new(127, 7, a, b.max(1))).get("/").unwrap();
        strays += u32::from(reply.body.contains("generation=1"));
    }
    let grown = rss().saturating_sub(before);
    // One open address in 16,383 places.
    assert!(strays <= 2, "{strays} of {many} went to the old worker");
    figure(&Figure {
        item: "replace 1 ip, addresses during a drain",
        measured: format!("{many} addresses: primary grew by {grown} KiB, {strays} strayed"),
        goal: "no growth with addresses",
        met: grown < 512,
    });
    drop(held);
    croupier.stop_well();
}

// ---- ready-probe

/// A server whose health is a word in a file.
const HEALTH: &str = r#"
import os, signal, socket, sys
health = open(sys.argv[1]).read().strip()
if health == "slot-2":
    health = "503" if os.environ["CROUPIER_SLOT"] == "2" else "200"
listener = socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=128)
probes = 0
while True:
    client, peer = listener.accept()
    request = client.recv(4096)
    if request.startswith(b"GET /healthz "):
        assert b"User-Agent: croupier\r\n" in request and peer[0] == "127.0.0.1", request
        probes += 1
        if health == "mute":
            signal.pause()
        if health == "slow":
            health = "200" if probes > 1 else "slow"
        code = {"slow": "503", "hangs-up": ""}.get(health, health)
        if health == "flood":
            try:
                while True:
                    client.sendall(b"HTTP/1.1 100 Continue\r\n" + b"x" * 4096)
            except OSError:
                pass
        elif code:
            client.sendall(f"HTTP/1.1 {code} x\r\nContent-Length: 0\r\n\r\n".encode())
    elif health == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    elif request:
        body = f"generation={os.environ['CROUPIER_GENERATION']}\n"
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    client.close()
"#;

struct Clinic<'guard> {
    guard: &'guard Guard,
    port: u16,
    croupier: Croupier<'guard>,
}

impl<'guard> Clinic<'guard> {
    fn args(guard: &Guard, port: u16, health: &str, flags: &[&str]) -> Vec<OsString> {
        let program = guard.write("health.py", HEALTH);
        let health = guard.write("health", health);
        let mut args = words(&["--stall-after", "10s", "--soak", "200ms"]);
        args.extend(words(flags));
        args.extend(["--".into(), "python3".into(), program.into(), health.into()]);
        args.push(port.to_string().into());
        args
    }

    fn new(guard: &'guard Guard, flags: &[&str]) -> Self {
        let port = guard.port();
        let croupier = guard.run(Self::args(guard, port, "200", flags)).ready();
        Self { guard, port, croupier }
    }

    /// A reload to a program of this health, while somebody asks all the time.
    fn reload(&self, health: &str) -> (Finished, Vec<String>) {
        self.guard.write("health", health);
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| self.croupier.ask(&["reload"]));
            let client = Client::port(self.port);
            let outcome =
                hammer(&client, 2, usize::MAX, |_| (!asked.is_finished()).then(|| "/".to_owned()));
            assert_eq!(outcome.failures, [], "{health}: somebody noticed");
            let bodies = outcome.replies.into_iter().map(|reply| reply.body).collect();
            (asked.join().unwrap(), bodies)
        })
    }
}

#[test]
fn a_version_that_fails_its_probe_leaves_the_old_one_serving() {
    let guard = Guard::new("probe-bad");
    let flags = ["-w", "4", "--max-surge", "3", "--ready-timeout", "4s"];
    let clinic = Clinic::new(&guard, &[&flags[..], &["--ready-probe", "http:/healthz"]].concat());
    let old = pids(&clinic.croupier.status());
    let processes = guard.processes().len();
    for (what, health, reason) in [
        ("fails its probe", "503", "was not ready within 4s: it answered 503 to GET /healthz"),
        (
            "slot 2 of 4 fails its probe",
            "slot-2",
            "of slot 2 was not ready within 4s: it answered 503 to GET /healthz",
        ),
        (
            "never answers its probe",
            "mute",
            "was not ready within 4s: it has not answered GET /healthz",
        ),
        ("floods its probe", "flood", "it answered GET /healthz with 4096 bytes and no status"),
    ] {
        let (reload, bodies) = clinic.reload(health);
        reload.expect_code(1).expect_error(&[reason, "old workers go on"]);
        let only_old = bodies.iter().all(|body| body.contains("generation=1"));
        // Of the new ones that answer as they should, some served until the one failed.
        assert!(only_old || health == "slot-2", "{health}");
        assert_eq!(pids(&clinic.croupier.status()), old, "{health}");
        wait_until(PATIENCE, "nobody new to be left", || {
            let left = guard.processes().len();
            if left == processes { Ok(()) } else { Err(left) }
        });
        did_not_hold(what, &reload, &bodies, 0);
    }
    clinic.croupier.stop_well();
}

#[test]
fn a_version_that_answers_its_probe_replaces_the_old_one() {
    let guard = Guard::new("probe-good");
    let flags = ["-w", "2", "--ready-probe", "http:/healthz"];
    let clinic = Clinic::new(&guard, &flags);
    let old = pids(&clinic.croupier.status());
    for health in ["204", "302", "slow"] {
        let (reload, _) = clinic.reload(health);
        reload.expect_code(0);
    }
    assert!(pids(&clinic.croupier.status()).iter().all(|pid| !old.contains(pid)));
    clinic.croupier.stop_well();
}

#[test]
fn a_program_that_never_answers_its_probe_does_not_start() {
    let guard = Guard::new("probe-start");
    let port = guard.port();
    let flags = ["-w", "1", "--ready-timeout", "4s", "--ready-probe", "http:///healthz"];
    let croupier = guard.run(Clinic::args(&guard, port, "500", &flags));
    let ended = croupier.finished(PATIENCE);
    ended.expect_code(1).expect_error(&[
        "worker 1 is not ready in time: it answered 500 to GET /healthz",
        "became ready",
    ]);
}

#[test]
fn a_tcp_probe_takes_a_connection_that_is_not_reset() {
    let guard = Guard::new("probe-tcp");
    let flags = ["-w", "2", "--ready-timeout", "4s", "--ready-probe", "tcp"];
    let clinic = Clinic::new(&guard, &flags);
    let (reload, _) = clinic.reload("reset");
    reload.expect_code(1).expect_error(&["was not ready within 4s: it reset a connection"]);
    let (reload, _) = clinic.reload("200");
    reload.expect_code(0);
    clinic.croupier.stop_well();
}

#[test]
fn a_slot_that_crashed_is_probed_too_and_the_fd_adapter_can_be() {
    let guard = Guard::new("probe-restart");
    let clinic = Clinic::new(&guard, &["-w", "2", "--ready-probe", "http:/healthz"]);
    guard.write("health", "slow");
    let victim = clinic.croupier.status().slot(1).unwrap().pid.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim), nix::sys::signal::SIGKILL).unwrap();
    clinic.croupier.wait_for_line("is not ready yet: it answered 503 to GET /healthz");
    clinic.croupier.wait_status("its successor", |status| {
        status.slot(1).filter(|worker| worker.pid != Some(victim)).map(|_| ())
    });
    clinic.croupier.stop_well();

    let port = guard.port();
    let address = format!("127.0.0.1:{port}");
    let mut args = words(&["-w", "1", "--adapter", "fd", "-l", &address]);
    args.extend(words(&["--ready-probe", "http:/any"]));
    args.extend(["--".into(), example("bare", "").into()]);
    let croupier = guard.run(args).ready();
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    croupier.stop_well();
}

/// An application that raises when it is imported: gunicorn listens before that, and gives up after.
#[test]
fn gunicorn_with_an_application_that_raises_leaves_the_old_one_serving() {
    let Some(gunicorn) = deps("venv/bin/gunicorn") else {
        skip!("gunicorn_with_an_application_that_raises", "tests/.deps is not there; `make deps`")
    };
    const GOOD: &str = "
import os
def app(environ, start):
    start('200 OK', [('Content-Type', 'text/plain')])
    return [f\"generation={os.environ['CROUPIER_GENERATION']}\\n\".encode()]
";
    let guard = Guard::new("probe-gunicorn");
    let ready: [&[&str]; 2] = [&["--ready", "accept"], &["--ready-probe", "http:/"]];
    for ready in ready {
        let port = guard.port();
        guard.write("app.py", GOOD);
        let mut args = words(&["-w", "2", "--soak", "1s", "--stall-after", "10s"]);
        args.extend(words(ready));
        args.extend(words(&["--env", "PYTHONDONTWRITEBYTECODE=1", "--"]));
        args.extend([gunicorn.clone().into(), "-b".into(), format!("127.0.0.1:{port}").into()]);
        args.push("app:app".into());
        let home = guard.path("home");
        let at_home = |command: &mut std::process::Command| {
            command.env("HOME", home);
        };
        let croupier = guard.run_with(args, at_home).ready();
        let old = pids(&croupier.status());
        let processes = guard.processes().len();
        guard.write("app.py", "raise RuntimeError('no such setting')\n");
        let (reload, bodies) = std::thread::scope(|scope| {
            let asked = scope.spawn(|| croupier.ask(&["reload"]));
            let client = Client::port(port);
            let outcome =
                hammer(&client, 2, usize::MAX, |_| (!asked.is_finished()).then(|| "/".to_owned()));
            assert_eq!(outcome.failures, [], "somebody noticed");
            let bodies = outcome.replies.into_iter().map(|reply| reply.body).collect::<Vec<_>>();
            (asked.join().unwrap(), bodies)
        });
        reload.expect_code(1).expect_error(&["before it was ready", "old workers go on"]);
        assert!(reload.stdout.contains("RuntimeError: no such setting"), "{reload:?}");
        assert!(bodies.iter().all(|body| body.contains("generation=1")));
        assert_eq!(pids(&croupier.status()), old);
        wait_until(PATIENCE, "nobody new to be left", || {
            let left = guard.processes().len();
            if left == processes { Ok(()) } else { Err(left) }
        });
        let what = format!("gunicorn raises at import, {}", ready.join(" "));
        did_not_hold(&what, &reload, &bodies, 0);
        croupier.stop_well();
    }
}

// ---- the post

/// What a process can do with its post. The first word after the port says what, for worker 1 only.
const POSTS: &str = r#"
import array, os, socket, sys
token, name = os.environ["CROUPIER_CONTROL"].split("@", 1)
def post():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect("\0" + name)
    s.send(b"q\x01\x08" + bytes(5) + bytes.fromhex(token) + bytes(424))
    answer, fds, _, _ = socket.recv_fds(s, 4096, 4)
    s.close()
    return answer[2], [socket.socket(fileno=fd) for fd in fds]
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
READY, DISCONNECT = b"m\x01\x01\0", b"m\x01\x02\0"
deed = sys.argv[2] if os.environ["CROUPIER_WORKER_ID"] == "1" else "nothing"
verdict, mine = post()
assert verdict == 1 and len(mine) == 1, (verdict, mine)
if deed == "garbage":
    mine[0].send(b"nonsense")
elif deed == "long":
    mine[0].send(b"m" * 5000)
elif deed == "upside-down":
    mine[0].send(DISCONNECT)
elif deed == "descriptors":
    socket.send_fds(mine[0], [READY], [0, 1, 2])
elif deed == "flood":
    try:
        while True:
            mine[0].send(READY)
    except OSError:
        pass
elif deed == "many":
    while verdict == 1:
        verdict, more = post()
        mine += more
    print("posts", len(mine), "then", verdict, flush=True)
    print("said", mine[0].send(READY), flush=True)
else:
    mine[0].send(READY)
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    client.close()
"#;

#[test]
fn a_message_makes_ready_and_nonsense_costs_its_worker_alone() {
    let guard = Guard::new("posts");
    let script = guard.write("posts.py", POSTS);
    for deed in ["garbage", "long", "upside-down", "descriptors", "flood", "many"] {
        let port = guard.port();
        let mut args = words(&["-w", "2", "--stall-after", "10s", "--ready", "notify", "--"]);
        args.extend(["python3".into(), script.clone().into(), port.to_string().into()]);
        args.push(deed.into());
        let croupier = guard.run(args).ready();
        if deed == "many" {
            croupier.wait_for_line("posts 16 then 4");
        } else {
            croupier.wait_status("another worker in that slot", |status| {
                status.slot(0).filter(|worker| worker.id > Some(2)).map(|_| ())
            });
            match deed {
                "garbage" => drop(croupier.wait_for_line("worker 1 sent what is no message")),
                "flood" => drop(croupier.wait_for_line("worker 1 floods its post")),
                _ => {}
            }
        }
        assert_eq!(croupier.status().slot(1).unwrap().id, Some(2), "{deed}: nobody else");
        let outcome = hammer(&Client::port(port), 2, 20, |_| Some("/".to_owned()));
        assert_eq!(outcome.failures, [], "{deed}");
        // Nobody reads what it is told when it drains; nobody waits for that.
        croupier.ask(&["reload"]).expect_code(0);
        croupier.stop_well();
    }
}
