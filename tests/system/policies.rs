//! The policies on real workers, and the addresses that can be dealt.

use std::ffi::OsString;

use croupier_tests::{
    Client, Croupier, Guard, PATIENCE, example, hammer, soak_or, stop_process, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::{one_at_a_time, two_ports};

fn run<'guard>(guard: &'guard Guard, flags: &[&str], port: u16) -> Croupier<'guard> {
    let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
    args.push("--".into());
    args.extend(one_at_a_time(port));
    guard.run(args).ready()
}

fn slash(_: usize) -> Option<String> {
    Some("/".to_owned())
}

#[test]
fn least_goes_round_a_busy_worker() {
    let guard = Guard::new("least");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "3", "-p", "least"], port);
    let client = Client::port(port);
    let fifo = guard.fifo("go");
    let busy = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("the blocker", |status| (status.open().1 == 1).then_some(()));
    let mut served: Vec<Option<i32>> = Vec::new();
    for _ in 0..20 {
        served.push(client.get("/").unwrap().pid());
        croupier.wait_status("its close", |status| (status.open() == (0, 1)).then_some(()));
    }
    std::fs::write(&fifo, "").unwrap();
    let busy = busy.reply().unwrap().pid();
    assert!(!served.contains(&busy), "the worker with a load was dealt to beside idle ones");
    served.sort_unstable();
    let first = served.iter().filter(|pid| **pid == served[0]).count();
    assert_eq!(first, 10, "the two idle ones in turn");
    croupier.stop_well();
}

#[test]
fn max_active_is_never_exceeded() {
    let guard = Guard::new("max-active");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "2", "--max-active", "1"], port);
    let outcome = hammer(&Client::port(port), 16, soak_or(2000, 300), slash);
    assert_eq!(outcome.failures, []);
    let fifos = [guard.fifo("a"), guard.fifo("b")];
    let path = |fifo: &std::path::PathBuf| format!("/block?fifo={}", fifo.display());
    let client = Client::port(port);
    let held: Vec<_> = fifos.iter().map(|fifo| client.send(&path(fifo)).unwrap()).collect();
    croupier.wait_status("both full", |status| (status.open() == (0, 2)).then_some(()));
    let behind: Vec<_> = (0..4).map(|_| client.send("/").unwrap()).collect();
    let status = croupier.status();
    assert_eq!(status.open(), (0, 2), "the others wait in the backlog: {status:?}");
    for fifo in &fifos {
        std::fs::write(fifo, "").unwrap();
    }
    for pending in held.into_iter().chain(behind) {
        assert_eq!(pending.reply().unwrap().status, 200);
    }
    croupier.stop_well();
}

#[test]
fn shared_and_reuseport_let_workers_accept_by_themselves() {
    let guard = Guard::new("own-accept");
    for policy in ["shared", "reuseport"] {
        let port = guard.port();
        let croupier = run(&guard, &["-w", "3", "-p", policy], port);
        assert_eq!(croupier.status().policy, policy);
        let outcome = hammer(&Client::port(port), 16, soak_or(3000, 400), slash);
        assert_eq!(outcome.failures, [], "{policy}");
        let mut pids: Vec<_> = outcome.replies.iter().map(croupier_tests::Reply::pid).collect();
        pids.sort_unstable();
        pids.dedup();
        assert!(pids.len() > 1, "{policy}: one worker served everybody: {pids:?}");
        croupier.stop_well();
    }
}

/// Plain SO_REUSEPORT resets what waits in a closed socket; here the primary keeps the socket.
#[test]
fn reuseport_loses_nobody_when_a_worker_is_replaced() {
    let guard = Guard::new("reuseport-replace");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "2", "-p", "reuseport"], port);
    let client = Client::port(port);
    let pid = |slot| croupier.status().slot(slot).unwrap().pid.unwrap();
    let (victim, other) = (Pid::from_raw(pid(0)), Pid::from_raw(pid(1)));
    for worker in [victim, other] {
        stop_process(worker.as_raw());
    }
    let waiting: Vec<_> = (0..40).map(|_| client.send("/").unwrap()).collect();
    kill(victim, Signal::SIGKILL).unwrap();
    kill(other, Signal::SIGCONT).unwrap();
    for pending in waiting {
        assert_eq!(pending.reply().unwrap().status, 200);
    }
    croupier.stop_well();
}

/// A slot that is down for longer than a second: its socket goes on getting clients.
#[test]
fn reuseport_empties_the_socket_of_a_slot_that_is_down() {
    let guard = Guard::new("reuseport-down");
    let port = guard.port();
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let (hold, go) = (guard.path("hold"), guard.fifo("go"));
    let script = format!(
        "if [ $CROUPIER_SLOT = 0 ] && [ -e {} ]; then read go < {}; fi; exec {server}",
        hold.display(),
        go.display()
    );
    let croupier = guard.run(["-w", "2", "-p", "reuseport", "--", "sh", "-c", &script]).ready();
    std::fs::write(&hold, "").unwrap();
    let lost = croupier.status().slot(0).unwrap().pid.unwrap();
    kill(Pid::from_raw(lost), Signal::SIGKILL).unwrap();
    croupier.wait_status("slot 0 down", |status| status.slot(0).is_none().then_some(()));
    let outcome = hammer(&Client::port(port), 8, 80, slash);
    assert_eq!(outcome.failures, [], "everybody is served by the other slot");
    std::fs::write(&go, "go\n").unwrap();
    croupier.wait_status("slot 0 up", |status| status.slot(0).map(|_| ()));
    assert_eq!(hammer(&Client::port(port), 8, 40, slash).failures, []);
    croupier.stop_well();
}

/// Ready by the first of two ports, a worker's next one listens on the second later.
#[test]
fn reuseport_sends_clients_to_what_a_ready_worker_listens_on_later() {
    let guard = Guard::new("reuseport-later");
    let [first, second] = std::array::from_fn(|_| guard.port());
    let (hold, go) = (guard.path("hold"), guard.fifo("go"));
    let mut words = ["-w", "2", "-p", "reuseport", "--"].map(str::to_owned).to_vec();
    words.extend(two_ports(&guard, [first, second]));
    words.extend([&hold, &go].map(|path| path.display().to_string()));
    let croupier = guard.run(words).ready();
    std::fs::write(&hold, "").unwrap();
    let lost = croupier.status().slot(0).unwrap().pid.unwrap();
    kill(Pid::from_raw(lost), Signal::SIGKILL).unwrap();
    croupier.wait_status("slot 0 ready again", |status| {
        let next = status.slot(0).filter(|worker| worker.pid != Some(lost))?;
        (next.state == "ready").then_some(())
    });
    std::fs::write(&go, "go\n").unwrap();
    wait_until(PATIENCE, "slot 0 to serve the second port", || {
        let slot = Client::port(second).get("/").unwrap().value("slot=");
        if slot == Some(0) { Ok(()) } else { Err(slot) }
    });
    croupier.stop_well();
}

#[test]
fn one_port_for_both_families_and_another_for_the_program() {
    let guard = Guard::new("dual-stack");
    let (public, own) = (guard.port(), guard.port());
    let croupier = run(&guard, &["-w", "2", "-l", &format!(":{public}={own}")], own);
    for address in [format!("127.0.0.1:{public}"), format!("[::1]:{public}")] {
        let reply = Client::to(address.parse().unwrap()).get("/").unwrap();
        assert_eq!(reply.status, 200, "{address}");
    }
    assert!(Client::port(own).get("/").is_err(), "the program's own port is nobody's");
    croupier.stop_well();
}

/// Two addresses for one listener of the program, which has no idea.
#[test]
fn several_addresses_are_dealt_to_one_listener_of_the_program() {
    let guard = Guard::new("two-for-one");
    let (first, second, own) = (guard.port(), guard.port(), guard.port());
    let flags = [
        "-w",
        "2",
        "--soak",
        "50ms",
        "-l",
        &format!("127.0.0.1:{first}={own}"),
        "-l",
        &format!("[::1]:{second}={own}"),
    ]
    .map(str::to_owned);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let croupier = run(&guard, &flags, own);
    let clients = [Client::port(first), Client::to(format!("[::1]:{second}").parse().unwrap())];
    let all_are_served = || {
        for client in &clients {
            let mut pids: Vec<_> = (0..8).map(|_| client.get("/").unwrap().pid()).collect();
            pids.sort_unstable();
            pids.dedup();
            assert_eq!(pids.len(), 2, "by both workers");
        }
    };
    all_are_served();
    let status = croupier.status();
    let accepted: Vec<u64> = status.listeners.iter().map(|listener| listener.accepted).collect();
    assert_eq!(accepted, [8; 2], "{status:?}");
    croupier.ask(&["reload"]).expect_code(0);
    all_are_served();
    croupier.stop_well();
}

/// A program that means two addresses by two listeners is given each its own clients.
#[test]
fn each_listener_of_a_program_has_the_clients_of_its_address() {
    const SOURCE: &str = r#"
import selectors, socket, sys
chosen = selectors.DefaultSelector()
for host in ("127.0.0.1", "127.0.0.2"):
    server = socket.create_server((host, int(sys.argv[1])))
    chosen.register(server, selectors.EVENT_READ, host)
while True:
    for key, _ in chosen.select():
        client, _ = key.fileobj.accept()
        client.recv(4096)
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(key.data)}\r\n\r\n{key.data}".encode())
        client.close()
"#;
    let guard = Guard::new("own-clients");
    let port = guard.port();
    let script = guard.write("two.py", SOURCE).into_os_string().into_string().unwrap();
    let [one, two] = ["127.0.0.1", "127.0.0.2"].map(|host| format!("{host}:{port}"));
    let port = port.to_string();
    let flags = ["-w", "2", "-l", &one, "-l", &two, "--", "python3", &script, &port];
    let croupier = guard.run(flags).ready();
    for address in [&one, &two] {
        let client = Client::to(address.parse().unwrap());
        for _ in 0..6 {
            let body = client.get("/").unwrap().body;
            assert!(address.starts_with(&format!("{body}:")), "{body} answers for {address}");
        }
    }
    croupier.stop_well();
}

#[test]
fn two_addresses_are_both_dealt() {
    const SOURCE: &str = r#"
import os, selectors, socket, sys
chosen = selectors.DefaultSelector()
for port in sys.argv[1:]:
    server = socket.create_server(("127.0.0.1", int(port)))
    server.setblocking(False)
    chosen.register(server, selectors.EVENT_READ)
while True:
    for key, _ in chosen.select():
        try:
            client, _ = key.fileobj.accept()
        except BlockingIOError:
            continue
        client.setblocking(True)
        client.recv(4096)
        body = f"pid={os.getpid()}\n"
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        client.close()
"#;
    let guard = Guard::new("two-listeners");
    let (a, b) = (guard.port(), guard.port());
    let script = guard.write("two.py", SOURCE).into_os_string().into_string().unwrap();
    let (first, second) = (format!("127.0.0.1:{a}"), format!("127.0.0.1:{b}"));
    let (a_text, b_text) = (a.to_string(), b.to_string());
    let flags = ["-w", "2", "-l", &first, "-l", &second, "python3", &script, &a_text, &b_text];
    let croupier = guard.run(flags).ready();
    for port in [a, b] {
        let outcome = hammer(&Client::port(port), 2, 20, slash);
        assert_eq!(outcome.failures, []);
    }
    let status = croupier.status();
    assert_eq!(status.listeners.len(), 2, "{status:?}");
    assert!(status.listeners.iter().all(|listener| listener.accepted == 20), "{status:?}");
    croupier.stop_well();
}

#[test]
fn unix_sockets_are_dealt_and_a_stale_file_is_no_obstacle() {
    const SOURCE: &str = r#"
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
while True:
    client, _ = server.accept()
    client.recv(4096)
    body = f"pid={os.getpid()}\n"
    client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    client.close()
"#;
    let guard = Guard::new("unix");
    let script = guard.write("unix.py", SOURCE).into_os_string().into_string().unwrap();
    let path = guard.path("app.sock");
    let text = path.to_str().unwrap();
    // Nobody listens on it any more: it may be replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listen = format!("unix:{text}");
    let croupier = guard.run(["-w", "2", "-l", &listen, "python3", &script, text]).ready();
    let outcome = hammer(&Client::unix(path.clone()), 4, 40, slash);
    assert_eq!(outcome.failures, []);
    let again =
        guard.croupier(["run", "--name", "second", "-l", &listen, "python3", &script, text]);
    again.expect_code(1).expect_error(&["app.sock", "in use"]);
    croupier.stop_well();
    assert!(!path.exists(), "the primary made it and removes it");
}

/// Programs with IP sockets trip over a peer without an IP address: Python's server over its log line,
/// Rust's accept over the family.
#[test]
fn clients_of_a_unix_path_are_served_by_programs_that_listen_on_a_port() {
    let guard = Guard::new("unix-port");
    let python = ["python3", "-m", "http.server", "--bind", "127.0.0.1"].map(OsString::from);
    let programs = [
        ("rust", vec![env!("CARGO_BIN_EXE_one-at-a-time").into()], "127.0.0.1:"),
        ("rust6", vec![env!("CARGO_BIN_EXE_one-at-a-time").into()], "[::1]:"),
        ("shim", vec![example("echo", "").into_os_string()], "127.0.0.1:"),
        ("python", python.to_vec(), ""),
    ];
    for (name, program, before) in programs {
        let (path, port) = (guard.path(format!("{name}.sock")), guard.port());
        let host = if before.is_empty() { "127.0.0.1:" } else { before };
        let listen = format!("unix:{}={host}{port}", path.display());
        let mut args: Vec<OsString> = ["-w", "2", "-l", &listen, "--"].map(OsString::from).into();
        args.extend(program);
        args.push(format!("{before}{port}").into());
        let croupier = guard.run(args).ready();
        assert_eq!(hammer(&Client::unix(path), 2, 10, slash).failures, [], "{name}");
        croupier.stop_well();
    }
}

/// A program that sets the umask that its argument says, and serves on a Unix path.
const MASKED: &str = r#"
import os, socket, sys
os.umask(int(sys.argv[2], 8))
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
while True:
    client, _ = server.accept()
    client.recv(4096)
    body = f"pid={os.getpid()}\n"
    client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    client.close()
"#;

#[test]
fn a_unix_socket_has_the_mode_that_its_program_means() {
    use std::os::unix::fs::PermissionsExt;
    let guard = Guard::new("unix-umask");
    let script = guard.write("masked.py", MASKED).into_os_string().into_string().unwrap();
    for (umask, mode) in [("077", 0o700), ("002", 0o775), ("000", 0o777)] {
        let path = guard.path(format!("app-{umask}.sock"));
        let croupier =
            guard.run(["-w", "2", "python3", &script, path.to_str().unwrap(), umask]).ready();
        let found = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "umask {umask}");
        assert_eq!(hammer(&Client::unix(path), 2, 10, slash).failures, []);
        croupier.stop_well();
    }
}

/// The kernel spreads only TCP over the sockets of one address: a path has one socket, for all.
#[test]
fn under_reuseport_a_unix_path_is_shared() {
    let guard = Guard::new("unix-reuseport");
    let script = guard.write("masked.py", MASKED).into_os_string().into_string().unwrap();
    let path = guard.path("app.sock");
    let flags = ["-p", "reuseport", "-w", "3", "python3", &script, path.to_str().unwrap(), "022"];
    let croupier = guard.run(flags).ready();
    assert_eq!(hammer(&Client::unix(path.clone()), 4, 40, slash).failures, []);
    croupier.ask(&["reload"]).expect_code(0);
    assert_eq!(hammer(&Client::unix(path), 4, 40, slash).failures, []);
    croupier.stop_well();
}

#[test]
fn a_port_of_the_programs_own_is_left_alone() {
    const SOURCE: &str = r#"
import socket, sys, threading
own = socket.create_server(("127.0.0.1", 0))
print(f"own port {own.getsockname()[1]}", flush=True)
dealt = socket.create_server(("127.0.0.1", int(sys.argv[1])))
def serve(server, text):
    while True:
        client, _ = server.accept()
        client.recv(4096)
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        client.close()
threading.Thread(target=serve, args=(own, "own"), daemon=True).start()
serve(dealt, "dealt")
"#;
    let guard = Guard::new("port-zero");
    let port = guard.port();
    let script = guard.write("own.py", SOURCE).into_os_string().into_string().unwrap();
    let croupier = guard.run(["-w", "1", "python3", &script, &port.to_string()]).ready();
    let line = croupier.wait_for_line("own port ");
    let own: u16 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(Client::port(own).get("/").unwrap().body, "own");
    assert_eq!(Client::port(port).get("/").unwrap().body, "dealt");
    assert_eq!(croupier.status().totals.handed_off, 1, "its own port is not dealt");
    croupier.stop_well();
}
