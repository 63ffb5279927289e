//! The subcommands against a running primary, and what workers find in their environment.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use croupier_tests::{Client, Guard, PATIENCE, skip, wait_until};

use crate::programs::one_at_a_time;

fn args(flags: &[&str], port: u16) -> Vec<OsString> {
    let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
    args.push("--".into());
    args.extend(one_at_a_time(port));
    args
}

/// What a worker prints at its start: its words, and some of its environment.
const SHOW: &str = r#"echo "shown $0 $*" port=$PORT wc=$WEB_CONCURRENCY tag=$TAG pre=$LD_PRELOAD; exec tail -f /dev/null"#;

#[test]
fn start_says_what_starts_and_ready_says_where() {
    let guard = Guard::new("cli-start");
    let port = guard.port();
    let croupier = guard.run(args(&["-w", "2"], port)).ready();
    // The line may come after the answer to `wait`: it goes through a pipe.
    croupier.wait_for_line("ready: ");
    let text = croupier.stdout().text() + &croupier.stderr().text();
    let starting = format!(
        "croupier {} (pid {}): starting 2 workers of ",
        env!("CARGO_PKG_VERSION"),
        croupier.pid()
    );
    assert!(text.contains(&starting), "{starting:?} in {text}");
    let address = format!("127.0.0.1:{port}");
    let ready = text.lines().find(|line| line.contains("ready") && line.contains(&address));
    let ready = ready.unwrap_or_else(|| panic!("one line says where: {text}"));
    for word in ["least", "preload"] {
        assert!(ready.contains(word), "{word:?} in {ready:?}");
    }
    croupier.stop_well();
}

#[test]
fn the_number_of_workers_comes_from_where_others_put_it() {
    let guard = Guard::new("cli-workers");
    for (name, value) in [("WORKERS", "3"), ("WEB_CONCURRENCY", "3"), ("CROUPIER_WORKERS", "3")] {
        let words = ["--ready", "start", "sh", "-c", SHOW, "zero"];
        let croupier = guard.run_with(words, |command| {
            command.env(name, value);
        });
        let line = croupier.wait_for_line("shown zero");
        croupier.wait_for_line("starting 3 workers");
        let concurrency = if name == "WEB_CONCURRENCY" { "wc=1" } else { "wc=" };
        assert!(line.contains(concurrency), "{name}: {line}");
        croupier.ready().stop_well();
    }
}

#[test]
fn workers_learn_who_they_are() {
    let guard = Guard::new("cli-words");
    let port = guard.port();
    let listen = format!("127.0.0.1:{port}");
    let words = [
        "-w",
        "2",
        "-l",
        &listen,
        "--env",
        "TAG=s{slot}i{id}",
        "--ready",
        "start",
        "sh",
        "-c",
        SHOW,
        "zero",
        "slot-{slot}",
        "id-{id}",
    ];
    let preloaded = Command::new("cc").arg("-print-file-name=libm.so.6").output().unwrap().stdout;
    let preloaded = String::from_utf8(preloaded).unwrap().trim().to_owned();
    let croupier = guard.run_with(words, |command| {
        command.env("LD_PRELOAD", &preloaded);
    });
    for (slot, id) in [(0, 1), (1, 2)] {
        let line = croupier.wait_for_line(&format!("shown zero slot-{slot} id-{id}"));
        assert!(line.starts_with(&format!("[w{slot}] ")), "{line}");
        assert!(line.contains(&format!("port={port} ")), "{line}");
        assert!(line.contains(&format!("tag=s{slot}i{id} ")), "{line}");
        let libraries = line.rsplit("pre=").next().unwrap();
        assert!(libraries.contains("libcroupier_preload.so"), "{line}");
        assert!(libraries.contains(&preloaded), "what was preloaded before is kept: {line}");
    }
    croupier.ready().stop_well();
}

/// A worker inherits its stdio and nothing else: no channel of another, no pipe, no listener.
#[test]
fn workers_inherit_nothing_but_stdio() {
    let guard = Guard::new("cli-inherit");
    let port = guard.port();
    let listen = format!("127.0.0.1:{port}");
    // 0, 1, 2, and the folder that is listed.
    let script = "echo descriptors $(ls /proc/self/fd | wc -l); exec tail -f /dev/null";
    let flags = ["-w", "3", "-l", &listen, "--ready", "start", "sh", "-c", script];
    let croupier = guard.run(flags);
    for slot in 0..3 {
        croupier.wait_for_line(&format!("[w{slot}] descriptors 4"));
    }
    croupier.ready().stop_well();
}

#[test]
fn node_cluster_sched_policy_none_means_shared() {
    let guard = Guard::new("cli-sched");
    let port = guard.port();
    let croupier = guard.run_with(args(&["-w", "1"], port), |command| {
        command.env("NODE_CLUSTER_SCHED_POLICY", "none");
    });
    let croupier = croupier.ready();
    assert_eq!(croupier.status().policy, "shared");
    croupier.stop_well();
}

#[test]
fn status_json_is_one_object() {
    let guard = Guard::new("cli-status");
    let port = guard.port();
    let croupier = guard.run(args(&["-w", "2"], port)).ready();
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    let status = croupier.wait_status("the close", |status| {
        (status.open() == (0, 0) && status.totals.handed_off == 1).then(|| status.clone())
    });
    assert_eq!(status.schema, 1);
    assert_eq!((status.pid, status.name.as_str()), (croupier.pid(), croupier.name()));
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(status.policy, "least");
    let [listener] = status.listeners.as_slice() else { panic!("{status:?}") };
    assert_eq!(listener.address, format!("127.0.0.1:{port}"));
    assert_eq!((listener.accepted, listener.queue_depth), (1, Some(0)));
    assert!(listener.backlog.unwrap() >= 128, "{listener:?}");
    let served = status.workers.iter().find(|worker| worker.handed_off == Some(1)).unwrap();
    assert_eq!((served.claimed, served.closed, served.generation), (Some(1), Some(1), Some(1)));
    assert!(served.rss_bytes.unwrap() > 100_000 && served.queued_p50_us.is_some(), "{served:?}");
    let other = status.workers.iter().find(|worker| worker.handed_off == Some(0)).unwrap();
    assert_eq!(other.queued_p99_us, None, "unknown is null: it served nobody");
    let sums = (status.totals.accepted, status.totals.salvaged, status.totals.refused);
    assert_eq!(sums, (1, 0, 0));
    croupier.stop_well();
}

#[test]
fn status_is_also_a_table() {
    let guard = Guard::new("cli-table");
    let port = guard.port();
    let croupier = guard.run(args(&["-w", "2"], port)).ready();
    let table = croupier.ask(&["status"]);
    table.expect_code(0);
    for part in [croupier.name(), &format!("127.0.0.1:{port}"), "least", "ready"] {
        assert!(table.stdout.contains(part), "{part:?} in\n{}", table.stdout);
    }
    croupier.ask(&["status", "--check"]).expect_code(0);
    let list = guard.croupier(["ls"]);
    list.expect_code(0);
    assert!(list.stdout.contains(croupier.name()), "{}", list.stdout);
    croupier.stop_well();
    guard.croupier(["status", "-n", "cli-table-0"]).expect_code(3);
}

#[test]
fn a_list_says_what_is_not_as_ever_just_as_the_status_does() {
    let guard = Guard::new("cli-states");
    let port = guard.port();
    let flags = ["-w", "2", "--soak", "60s", "-p", "rr", "--graceful-timeout", "20s"];
    let croupier = guard.run(args(&flags, port)).ready();
    let shows = |wanted: &str| {
        let list = guard.croupier(["ls"]);
        let row = list.stdout.lines().find(|line| line.starts_with(croupier.name())).unwrap();
        assert!(row.contains(&format!(" {wanted}  ")), "{wanted} in {row}");
        let status = croupier.ask(&["status"]).stdout;
        let first = status.lines().next().unwrap();
        let wanted = if wanted == "running" { "ready, croupier" } else { wanted };
        assert!(first.contains(wanted), "{wanted} in {first}");
    };
    shows("running");
    croupier.ask(&["pause"]).expect_code(0);
    shows("paused");
    croupier.ask(&["resume"]).expect_code(0);
    croupier.ask(&["pause", "0"]).expect_code(0);
    shows("1 paused");
    // The client of slot 1 keeps it draining.
    let fifo = guard.fifo("held");
    let held = Client::port(port).send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("held", |status| (status.open().1 == 1).then_some(()));
    croupier.ask(&["resume", "0"]).expect_code(0);
    croupier.ask(&["stop", "1", "--no-wait"]).expect_code(0);
    shows("1 stopped, 1 draining");
    croupier.ask(&["reload", "--no-wait"]).expect_code(0);
    shows("1 stopped, 1 draining, reloading");
    croupier.ask(&["stop", "--no-wait"]).expect_code(0);
    shows("stopping");
    std::fs::write(&fifo, "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    croupier.finished(PATIENCE).expect_code(0);
}

#[test]
fn wait_returns_when_it_is_so() {
    let guard = Guard::new("cli-wait");
    let port = guard.port();
    let go = guard.fifo("go");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("read x < {}; exec {server}", go.display());
    let croupier = guard.run(["-w", "1", "sh", "-c", &script]);
    croupier.wait_for_line("starting 1 worker");
    wait_until(PATIENCE, "a wait that is over too early", || {
        let waited = croupier.ask(&["wait", "ready", "--timeout", "100ms"]);
        if waited.code == Some(1) { Ok(()) } else { Err(waited) }
    });
    croupier
        .ask(&["wait", "ready", "--timeout", "50ms"])
        .expect_code(1)
        .expect_error(&[" is not ready in time: 0 of 1"]);
    croupier.ask(&["status", "--check"]).expect_code(1);
    std::fs::write(&go, "go\n").unwrap();
    croupier.ask(&["wait", "ready", "--timeout", "20s"]).expect_code(0);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| croupier.ask(&["wait", "stopped", "--timeout", "20s"]));
        croupier.ask(&["stop"]).expect_code(0);
        stopped.join().unwrap().expect_code(0);
    });
    croupier.finished(PATIENCE).expect_code(0);
}

#[test]
fn names_come_from_the_program_and_are_taken_once() {
    let guard = Guard::new("cli-names");
    let program = croupier_tests::croupier();
    let start = || {
        let port = guard.port().to_string();
        let mut command = guard.command(&program);
        command.args(["run", "-w", "1", "python3", "-m", "http.server", "--bind", "127.0.0.1"]);
        command.arg(port).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let mut children = Vec::new();
    for name in ["http.server", "http.server-2"] {
        children.push(start());
        wait_until(PATIENCE, name, || {
            let waited = guard.croupier(["wait", "ready", "-n", name, "--timeout", "20s"]);
            if waited.code == Some(0) { Ok(()) } else { Err(waited) }
        });
    }
    // Two run (and others may, of other users), so the one that is meant must be named.
    let which = guard.croupier(["status"]);
    which.expect_code(2).expect_error(&[
        "which one? say -n ",
        "-n http.server",
        "-n http.server-2",
    ]);
    let other = guard.croupier(["status", "-n", "http"]);
    other
        .expect_code(3)
        .expect_error(&["no croupier named http is running; there is ", "http.server"]);
    guard.croupier(["stop", "-n", "http.server"]).expect_code(0);
    assert_eq!(children[0].wait().unwrap().code(), Some(0));
    guard.croupier(["stop", "-n", "http.server-2"]).expect_code(0);
    assert_eq!(children[1].wait().unwrap().code(), Some(0));
}

#[test]
fn the_control_socket_is_its_owners_alone() {
    let guard = Guard::new("cli-control");
    let port = guard.port();
    let control = guard.path("own.control");
    let path = control.to_str().unwrap().to_owned();
    let croupier = guard.run(args(&["-w", "1", "--control", &path], port));
    let mode = wait_until(PATIENCE, "the control socket", || {
        std::fs::metadata(&control).map(|metadata| metadata.permissions().mode() & 0o777)
    });
    assert_eq!(mode, 0o600);
    croupier.signal(nix::sys::signal::Signal::SIGTERM);
    croupier.finished(PATIENCE).expect_code(0);
    assert!(!control.exists(), "removed at the end");
}

/// Everybody can read an abstract name: another user's word is none.
#[test]
fn notify_hears_nobody_else() {
    const SOURCE: &str = r#"
import os, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
name = os.environ["NOTIFY_SOCKET"]
if os.fork() == 0:
    # Another user's, with nothing that shows whose it was.
    os.setsid()
    os.setgid(65534)
    os.setuid(65534)
    os.execve(sys.executable, [sys.executable, "-c", f"""
import socket
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b'READY=1', chr(0) + {name[1:]!r})
"""], {"CROUPIER_TEST": os.environ.get("CROUPIER_TEST", "")})
open(sys.argv[2]).read()
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b"READY=1", "\0" + name[1:])
while True:
    server.accept()[0].close()
"#;
    if !nix::unistd::geteuid().is_root() {
        skip!("notify-stranger", "needs root");
    }
    let guard = Guard::new("cli-notify-who");
    let (port, go) = (guard.port().to_string(), guard.fifo("go"));
    let script = guard.write("notify.py", SOURCE);
    let flags = ["-w", "1", "--ready", "notify", "/usr/bin/python3"];
    let mut args: Vec<OsString> = flags.map(Into::into).into();
    args.extend([script.into(), port.into(), go.clone().into()]);
    let croupier = guard.run(args);
    croupier.wait_for_line("(uid 65534) said that worker 1 is ready, and is none of its family");
    croupier.ask(&["wait", "ready", "--timeout", "100ms"]).expect_code(1);
    std::fs::write(&go, "").unwrap();
    croupier.ready().stop_well();
}

/// sd_notify(3): the program says when it is ready.
#[test]
fn notify_is_ready_when_the_program_says_so() {
    const SOURCE: &str = r#"
import os, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listens", flush=True)
open(sys.argv[2]).read()
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
path = os.environ["NOTIFY_SOCKET"]
notify.connect("\0" + path[1:] if path[0] == "@" else path)
notify.send(b"READY=1")
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    client.close()
"#;
    let guard = Guard::new("cli-notify");
    let port = guard.port();
    let go = guard.fifo("go");
    let script = guard.write("notify.py", SOURCE);
    let (port_text, script, go_text) =
        (port.to_string(), script.to_str().unwrap(), go.to_str().unwrap());
    let flags = ["-w", "1", "--ready", "notify", "python3", script, &port_text, go_text];
    let croupier = guard.run(flags);
    croupier.wait_for_line("listens");
    croupier.ask(&["wait", "ready", "--timeout", "100ms"]).expect_code(1);
    std::fs::write(&go, "").unwrap();
    let croupier = croupier.ready();
    assert_eq!(Client::port(port).get("/").unwrap().body, "ok");
    croupier.stop_well();
}
