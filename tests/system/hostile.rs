//! What the primary is protected from: hostile workers, and the end of its own descriptors.

use std::time::Duration;

use croupier_tests::{
    Client, Guard, PATIENCE, cpu_time, descriptors, find_program, hammer, observe, preload, skip,
    wait_until,
};

use crate::programs::one_at_a_time;

fn slash(_: usize) -> Option<String> {
    Some("/".to_owned())
}

/// One worker of two speaks rubbish to the control socket; the other serves on.
#[test]
fn a_worker_that_sends_rubbish_costs_nobody_else_anything() {
    const SOURCE: &str = r#"
import os, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
token, name = os.environ["CROUPIER_CONTROL"].split("@", 1)
good = b"q\x01\x02\x00\x00\x00\x00\x00" + bytes.fromhex(token) + bytes(424)
rubbish = {
    "1": (b"x" * 448, []),
    "3": (good[:2] + b"\x63" + good[3:], []),
    "4": (good[:3] + b"\xff\xff" + good[5:], []),
    "5": (good, [0, 1, 2]),
}.get(os.environ["CROUPIER_WORKER_ID"])
if rubbish:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect("\0" + name)
    socket.send_fds(s, [rubbish[0]], rubbish[1]) if rubbish[1] else s.send(rubbish[0])
    try:
        s.recv(4096)
    except OSError:
        pass
    s.close()
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    client.close()
"#;
    let guard = Guard::new("hostile-rubbish");
    let port = guard.port();
    let script = guard.write("hostile.py", SOURCE);
    let before = ["-w", "2", "python3", script.to_str().unwrap(), &port.to_string()];
    let croupier = guard.run(before);
    // A bad request costs its worker its life, and the slot goes on.
    croupier.wait_for_line("sent something that is no question");
    croupier.wait_status("the fourth in that slot, which sent descriptors", |status| {
        status.slot(0).filter(|worker| worker.id >= Some(5)).map(|_| ())
    });
    let croupier = croupier.ready();
    let outcome = hammer(&Client::port(port), 4, 100, slash);
    assert_eq!(outcome.failures, []);
    croupier.stop_well();
}

/// A stranger who knows neither token nor uid's worth gets nothing.
#[test]
fn a_stranger_at_the_control_socket_of_workers_gets_nothing() {
    const SOURCE: &str = r#"
import os, socket, sys
print("contact " + os.environ["CROUPIER_CONTROL"].split("@", 1)[1], flush=True)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    client.close()
"#;
    const STRANGER: &str = r#"
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(5)
s.connect("\0" + sys.argv[1])
s.send(b"q\x01\x03" + bytes(5) + b"t" * 16 + bytes(424))
data, fds, _, _ = socket.recv_fds(s, 4096, 8)
assert not fds, fds
assert not data or data[2] in (0, 4), data
"#;
    const MANY: &str = r#"
import socket, sys
for _ in range(20):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(5)
    try:
        s.connect("\0" + sys.argv[1])
        s.send(b"q\x01\x03" + bytes(5) + b"t" * 16 + bytes(424))
        s.recv(4096)
    except OSError:
        pass
    s.close()
"#;
    let guard = Guard::new("hostile-stranger");
    let port = guard.port();
    let script = guard.write("server.py", SOURCE);
    let flags = ["-w", "1", "python3", script.to_str().unwrap(), &port.to_string()];
    let croupier = guard.run(flags).ready();
    let line = croupier.wait_for_line("contact ");
    let mut stranger = guard.command("python3");
    let name = line.split("contact ").nth(1).unwrap();
    stranger.args(["-c", STRANGER, name]);
    let answer = guard.finish(stranger);
    assert!(answer.code == Some(0) || answer.stderr.contains("ConnectionResetError"), "{answer:?}");
    assert_eq!(Client::port(port).get("/").unwrap().body, "ok");
    // Strangers do not fill the log: ten lines a second, and how many were left out.
    wait_until(PATIENCE, "a line about lines", || {
        let mut stranger = guard.command("python3");
        stranger.args(["-c", MANY, name]);
        guard.finish(stranger);
        let said = croupier.stderr().all();
        let found = said.iter().find(|line| line.contains(" such lines were left out)"));
        found.map(|line| assert!(line.contains("asked with a token"), "{line}")).ok_or(said.len())
    });
    croupier.stop_well();
}

/// A program that gives up root by itself is no longer who it was started as.
#[test]
fn a_worker_that_changes_its_user_is_refused_with_the_flag_that_helps() {
    const SOURCE: &str = r#"
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for tries in range(200):
    try:
        socket.socket().bind(("127.0.0.1", int(sys.argv[1])))
    except PermissionError:
        pass
socket.create_server(("127.0.0.1", int(sys.argv[1])))
"#;
    let guard = Guard::new("hostile-setuid");
    if !nix::unistd::geteuid().is_root() {
        skip!("a_worker_that_changes_its_user_is_refused_with_the_flag_that_helps", "needs root");
    }
    let port = guard.port().to_string();
    let words = ["run", "-n", guard.name(), "-w", "1", "--", "python3", "-c", SOURCE, &port];
    let ended = guard.croupier(words);
    ended.expect_code(1).expect_error(&[
        " asked for worker 1 as uid 65534, which is refused; a program that changes its user by itself",
        "PermissionError",
    ]);
    // Ten lines a second, not one for each question.
    let said = ended.stderr.lines().filter(|line| line.contains(" as uid 65534")).count();
    assert!(said < 200, "{said} lines");
}

/// No descriptor left: clients are taken one at a time or wait, nothing spins, nobody is lost.
#[test]
fn running_out_of_descriptors_is_waited_out() {
    let guard = Guard::new("hostile-emfile");
    let Some(prlimit) = find_program("prlimit") else {
        skip!("running_out_of_descriptors_is_waited_out", "prlimit is not installed")
    };
    let port = guard.port();
    let mut args: Vec<std::ffi::OsString> = ["-w", "2", "--"].map(Into::into).into();
    args.extend(one_at_a_time(port));
    let croupier = guard.run(args).ready();
    let primary = u32::try_from(croupier.pid()).unwrap();
    let limit = |soft: usize| {
        let mut command = guard.command(&prlimit);
        command.arg(format!("--pid={primary}")).arg(format!("--nofile={soft}:"));
        guard.finish(command).expect_code(0);
    };
    // Below what is open already: the next accept(2) has no number to give.
    let starve = || {
        let mut lowest = i32::MAX;
        loop {
            let open = descriptors(primary);
            let free = (0..).find(|number| !open.contains_key(number)).unwrap();
            if free >= lowest {
                break;
            }
            limit(usize::try_from(free).unwrap());
            lowest = free;
        }
    };
    // What the last control client had open in the primary may be closed only after that look, and its
    // number is enough to serve everybody: then it has not run out, and is starved again.
    wait_until(PATIENCE, "accept to find no descriptor left", || {
        starve();
        let waiting: Vec<_> = (0..5).map(|_| Client::port(port).send("/").unwrap()).collect();
        let before = cpu_time(croupier.pid());
        observe(Duration::from_millis(500));
        let used = cpu_time(croupier.pid()).saturating_sub(before);
        assert!(used < Duration::from_millis(100), "it spins: {used:?} in half a second");
        limit(1024);
        for pending in waiting {
            assert_eq!(pending.reply().unwrap().status, 200);
        }
        let advice = croupier.status().advice;
        let said = advice.iter().find(|one| one.about == "open-files");
        let ran_out = said.is_some_and(|one| one.text.contains("accept found no descriptor left"));
        if ran_out { Ok(()) } else { Err(advice) }
    });
    croupier.stop_well();
}

/// The primary binds a port that only root may bind, and the workers run as nobody.
#[test]
fn workers_run_as_the_user_that_was_named() {
    const SOURCE: &str = r#"
import os, socket, sys
print(f"uid {os.getuid()} gid {os.getgid()} groups {os.getgroups()}", flush=True)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    client.close()
"#;
    let guard = Guard::new("hostile-user");
    if !nix::unistd::geteuid().is_root() {
        skip!("workers_run_as_the_user_that_was_named", "needs root");
    }
    if !std::path::Path::new("/usr/bin/python3").exists() {
        skip!("workers_run_as_the_user_that_was_named", "needs a python3 that nobody can run");
    }
    let (public, own) = ((600..1000).rev().find(free).unwrap(), guard.port());
    let library = guard.open_copy(&preload());
    let script = guard.write("server.py", SOURCE);
    let listen = format!("127.0.0.1:{public}={own}");
    let flags = [
        "-w",
        "2",
        "-l",
        &listen,
        "--user",
        "nobody",
        "--preload-path",
        library.to_str().unwrap(),
        "/usr/bin/python3",
        script.to_str().unwrap(),
        &own.to_string(),
    ];
    let croupier = guard.run(flags).ready();
    let line = croupier.wait_for_line("uid 65534");
    assert!(!line.contains("groups [0"), "root's groups are dropped: {line}");
    assert_eq!(hammer(&Client::port(public), 4, 40, slash).failures, []);
    croupier.stop_well();
}

fn free(port: &u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()
}
