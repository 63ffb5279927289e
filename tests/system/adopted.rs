//! `reuseport`: what becomes of the clients that wait at the socket of a slot that is down, and of the
//! workers and the primary meanwhile.

use std::path::Path;
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Guard, PATIENCE, Pending, example, hammer, observe, stop_process,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than a slot is down before the primary sees to its socket.
const ADOPTED_BY: Duration = Duration::from_millis(1500);

/// A server of one client at a time that says READY by hand. `listen` is how it comes to its socket.
/// In slot 0, once the file `hold` exists, it waits twice for a writer of `go` before that.
fn notifier(listen: &str) -> String {
    format!(
        r#"
import os, socket, sys
port, hold, go = int(sys.argv[1]), sys.argv[2], sys.argv[3]
server = {listen}
if os.environ["CROUPIER_SLOT"] == "0" and os.path.exists(hold):
    print("listens", flush=True)
    open(go).read()
    print("blocks:", os.get_blocking(server.fileno()), flush=True)
    os.set_blocking(server.fileno(), True)
    open(go).read()
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b"READY=1", "\0" + os.environ["NOTIFY_SOCKET"][1:])
{SERVE}"#
    )
}

/// How all of them serve.
const SERVE: &str = r#"
while True:
    client, _ = server.accept()
    if client.recv(4096):
        body = f"pid={os.getpid()} slot={os.environ['CROUPIER_SLOT']}\n"
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    client.close()
"#;

const OWN_LISTEN: &str = r#"socket.create_server(("127.0.0.1", port))"#;
const INHERITED: &str = "socket.socket(fileno=3)";

fn slash(_: usize) -> Option<String> {
    Some("/".to_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn pid_of(croupier: &Croupier<'_>, slot: u16) -> Pid {
    Pid::from_raw(croupier.status().slot(slot).unwrap().pid.unwrap())
}

/// Clients that wait, some of them at slot 0.
fn wait_at(croupier: &Croupier<'_>, port: u16) -> Vec<Pending> {
    let workers = [pid_of(croupier, 0), pid_of(croupier, 1)];
    for worker in workers {
        stop_process(worker.as_raw());
    }
    let waiting = (0..40).map(|_| Client::port(port).send("/").unwrap()).collect();
    kill(workers[1], Signal::SIGCONT).unwrap();
    waiting
}

/// The primary must not accept from the socket of a worker that is on its way: the two share
/// `O_NONBLOCK`. One that takes its time to be ready found it set, and whoever took it away stopped the
/// primary for good.
#[test]
fn a_next_worker_that_listens_long_before_it_is_ready_has_its_socket_for_itself() {
    let guard = Guard::new("adopted-slow-ready");
    let port = guard.port();
    let script = guard.write("notifier.py", &notifier(OWN_LISTEN));
    let (hold, go) = (guard.path("hold"), guard.fifo("go"));
    let number = port.to_string();
    let flags = ["-w", "2", "-p", "reuseport", "--ready", "notify", "python3"];
    let arguments = [text(&script), &number, text(&hold), text(&go)];
    let croupier = guard.run(flags.into_iter().chain(arguments)).ready();
    std::fs::write(&hold, "").unwrap();
    kill(pid_of(&croupier, 0), Signal::SIGKILL).unwrap();
    croupier.wait_for_line("listens");
    observe(ADOPTED_BY);
    std::fs::write(&go, "").unwrap();
    assert!(croupier.wait_for_line("blocks:").ends_with("True"), "its flags are its own");
    // Whatever it sets, the primary answers, and clients are not kept waiting for it.
    let outcome = hammer(&Client::port(port), 8, 40, slash);
    assert_eq!(outcome.failures, []);
    assert!(outcome.replies.iter().all(|reply| reply.value("slot=") == Some(1)));
    assert_eq!(croupier.status().ready().count(), 1);
    std::fs::write(&go, "").unwrap();
    let back = croupier.wait_status("slot 0", |status| status.slot(0).cloned());
    assert_eq!(back.restarts, Some(1), "the first one that was started there");
    assert_eq!(hammer(&Client::port(port), 8, 40, slash).failures, []);
    croupier.stop_well();
}

/// The open file is also somebody else's, who keeps it from the primary.
#[test]
fn a_process_that_keeps_the_socket_of_a_slot_blocking_stops_nobody() {
    const SERVER: &str = r#"
import os, socket, sys
port, hold, go, fence = int(sys.argv[1]), *sys.argv[2:]
slot, first = os.environ["CROUPIER_SLOT"], not os.path.exists(sys.argv[2])
if slot == "0" and not first:
    open(go).read()
server = socket.create_server(("127.0.0.1", port))
if slot == "0" and first:
    passed = socket.socket(socket.AF_UNIX)
    passed.connect(fence)
    socket.send_fds(passed, [b"x"], [server.fileno()])
"#;
    const FENCE: &str = r#"
import os, socket, sys
waits = socket.socket(socket.AF_UNIX)
waits.bind(sys.argv[1])
waits.listen()
print("waits", flush=True)
(stolen,) = socket.recv_fds(waits.accept()[0], 1, 1)[1]
print("has it", flush=True)
while not os.path.exists(sys.argv[2]):
    for _ in range(1000):
        os.set_blocking(stolen, True)
"#;
    let guard = Guard::new("adopted-fence");
    let port = guard.port();
    let [hold, enough, path] = ["hold", "enough", "fence.sock"].map(|name| guard.path(name));
    let go = guard.fifo("go");
    let mut command = guard.command("python3");
    command.arg(guard.write("fence.py", FENCE)).args([&path, &enough]);
    let fence = guard.start(command);
    fence.wait_for_line("waits");
    let (script, number) =
        (guard.write("server.py", &format!("{SERVER}{SERVE}")), port.to_string());
    let arguments = [text(&script), &number, text(&hold), text(&go), text(&path)];
    let flags = ["-w", "2", "-p", "reuseport", "python3"];
    let croupier = guard.run(flags.into_iter().chain(arguments)).ready();
    fence.wait_for_line("has it");
    let waiting = wait_at(&croupier, port);
    std::fs::write(&hold, "").unwrap();
    kill(pid_of(&croupier, 0), Signal::SIGKILL).unwrap();
    for pending in waiting {
        assert_eq!(pending.reply().unwrap().value("slot="), Some(1));
    }
    assert_eq!(croupier.status().ready().count(), 1);
    std::fs::write(&enough, "").unwrap();
    assert_eq!(fence.finished(PATIENCE).code, Some(0));
    std::fs::write(&go, "").unwrap();
    croupier.wait_status("slot 0", |status| status.slot(0).map(|_| ()));
    croupier.stop_well();
}

/// A shell that waits in slot 0 for a writer of `go`, once `hold` exists, before it becomes `server`.
fn held_before(hold: &Path, go: &Path, server: &str) -> String {
    let (hold, go) = (hold.display(), go.display());
    format!("if [ $CROUPIER_SLOT = 0 ] && [ -e {hold} ]; then read go < {go}; fi; exec {server}")
}

/// Programs that are workers by the crate look for what is dealt to them beside, too.
#[test]
fn workers_by_the_crate_get_what_waits_at_a_slot_that_is_down() {
    let guard = Guard::new("adopted-crate");
    for (name, feature) in [("echo", ""), ("axum", "axum")] {
        let port = guard.port();
        let server = format!("{} 127.0.0.1:{port}", example(name, feature).display());
        let (hold, go) = (guard.path(format!("{name}.hold")), guard.fifo(&format!("{name}.go")));
        let script = held_before(&hold, &go, &server);
        let flags = ["-w", "2", "-p", "reuseport", "--adapter", "shim", "--", "sh", "-c", &script];
        let croupier = guard.run(flags).ready();
        let waiting = wait_at(&croupier, port);
        std::fs::write(&hold, "").unwrap();
        kill(pid_of(&croupier, 0), Signal::SIGKILL).unwrap();
        for pending in waiting {
            assert_eq!(pending.reply().unwrap().status, 200, "{name}");
        }
        let status = croupier.status();
        assert!(status.dealt()[&1] > 0, "some waited at slot 0: {status:?}");
        assert_eq!(status.open().0, 0, "nothing is left queued: {status:?}");
        std::fs::write(&go, "go\n").unwrap();
        croupier.wait_status("slot 0 up", |status| status.slot(0).map(|_| ()));
        croupier.stop_well();
    }
}

/// Nobody can be dealt to there: what waits at a slot waits for its next worker, and nobody else does.
#[test]
fn under_listen_fds_what_waits_at_a_stopped_slot_waits_for_its_next_worker() {
    let guard = Guard::new("adopted-listen-fds");
    let port = guard.port();
    let script = guard.write("notifier.py", &notifier(INHERITED));
    let (hold, go) = (guard.path("hold"), guard.fifo("go"));
    let (listen, number) = (format!("127.0.0.1:{port}"), port.to_string());
    let adapter = ["--adapter", "listen-fds", "-l", &listen, "--ready", "notify", "python3"];
    let flags = ["-w", "2", "-p", "reuseport"].into_iter().chain(adapter);
    let arguments = [text(&script), &number, text(&hold), text(&go)];
    let croupier = guard.run(flags.chain(arguments)).ready();
    let waiting = wait_at(&croupier, port);
    croupier.ask(&["stop", "0"]).expect_code(0);
    observe(ADOPTED_BY);
    let outcome = hammer(&Client::port(port), 8, 40, slash);
    assert_eq!(outcome.failures, []);
    assert!(outcome.replies.iter().all(|reply| reply.value("slot=") == Some(1)));
    assert_eq!(croupier.status().totals.accepted, 0, "nobody is taken who cannot be dealt");
    // The next worker is slow to be ready.
    std::fs::write(&hold, "").unwrap();
    croupier.ask(&["start", "0", "--no-wait"]).expect_code(0);
    croupier.wait_for_line("listens");
    assert_eq!(croupier.status().ready().count(), 1);
    std::fs::write(&go, "").unwrap();
    assert!(croupier.wait_for_line("blocks:").ends_with("True"));
    std::fs::write(&go, "").unwrap();
    let mut slots: Vec<_> =
        waiting.into_iter().map(|one| one.reply().unwrap().value("slot=")).collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots, [Some(0), Some(1)], "some had waited at slot 0");
    assert_eq!(croupier.stderr().count("broke its channel"), 0);
    croupier.stop_well();
}
