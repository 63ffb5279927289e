//! Under a service manager: what it is told, the sockets it opened, and the unit that `croupier unit`
//! prints for it.

use std::ffi::OsString;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use croupier_tests::{Client, Croupier, Guard, PATIENCE, find_program, preload, skip, wait_until};
use nix::sys::signal::Signal;

use crate::care::under;
use crate::programs::one_at_a_time;

fn args(flags: &[&str], command: Vec<OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = flags.iter().map(Into::into).collect();
    args.push("--".into());
    args.extend(command);
    args
}

fn next_message(manager: &UnixDatagram) -> Option<String> {
    let mut buffer = [0; 1024];
    let len = manager.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(buffer.get(..len)?).into_owned())
}

/// What the manager hears, message by message, until `last` is in one.
fn hear(manager: &UnixDatagram, last: &str) -> Vec<String> {
    manager.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut all: Vec<String> = Vec::new();
    wait_until(PATIENCE, &format!("the manager to hear {last}"), || {
        all.extend(next_message(manager));
        if all.last().is_some_and(|text| text.contains(last)) { Ok(()) } else { Err(all.clone()) }
    });
    all
}

#[test]
fn the_manager_hears_how_it_goes_and_workers_hear_nothing_of_it() {
    let guard = Guard::new("service-notify");
    let port = guard.port();
    let path = guard.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let script = format!(
        "echo socket=$NOTIFY_SOCKET watchdog=$WATCHDOG_USEC pid=$WATCHDOG_PID.; exec {}",
        one_at_a_time(port).join(&OsString::from(" ")).to_str().unwrap()
    );
    let command = ["sh", "-c", &script].map(OsString::from).to_vec();
    let croupier = guard.run_with(args(&["-w", "2", "--soak", "0"], command), |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    });
    croupier.wait_for_line("socket= watchdog= pid=.");
    let heard = hear(&manager, "READY=1\n");
    let ready = heard.last().unwrap();
    assert!(ready.contains(&format!("MAINPID={}\n", croupier.pid())), "{ready}");
    assert!(ready.contains(&format!("STATUS=2 of 2 ready on 127.0.0.1:{port}")), "{ready}");
    for _ in 0..3 {
        hear(&manager, "WATCHDOG=1\n");
    }
    croupier.signal(Signal::SIGHUP);
    let reloading = hear(&manager, "RELOADING=1\n");
    let reloading = reloading.last().unwrap();
    let usec = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(usec.is_some_and(|usec| usec.parse::<u64>().is_ok()), "{reloading}");
    let after = hear(&manager, "READY=1\n");
    assert!(!after.last().unwrap().contains("MAINPID"), "{after:?}");
    croupier.signal(Signal::SIGTERM);
    let stopping = hear(&manager, "STOPPING=1\n");
    assert!(stopping.last().unwrap().contains(", stopping"), "{stopping:?}");
    croupier.finished(PATIENCE).expect_code(0);
}

#[test]
fn a_watchdog_of_somebody_else_is_not_fed() {
    let guard = Guard::new("service-watchdog");
    let path = guard.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let idle = ["-w", "1", "--ready", "start", "sleep", "infinity"];
    let croupier = guard.run_with(idle, |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    });
    let mut heard = hear(&manager, "READY=1\n");
    // Long for a watchdog of a millisecond.
    croupier.ready().stop_well();
    heard.extend(hear(&manager, "STATUS="));
    manager.set_nonblocking(true).unwrap();
    heard.extend(std::iter::from_fn(|| next_message(&manager)));
    assert!(!heard.iter().any(|text| text.contains("WATCHDOG")), "{heard:?}");
}

/// Gives the program behind it the descriptors of its first argument as 3, 4, …, as systemd does.
const ACTIVATE: &str = "
import os, sys
# Out of the way first: the numbers may overlap.
copies = [os.dup(int(one)) for one in sys.argv[1].split(',')]
for at, one in enumerate(copies):
    os.dup2(one, 3 + at)
    os.set_inheritable(3 + at, True)
os.environ['LISTEN_FDS'] = str(len(copies))
os.environ['LISTEN_PID'] = str(os.getpid())
os.environ['LISTEN_FDNAMES'] = ':'.join(sys.argv[2].split(','))
os.execv(sys.argv[3], sys.argv[3:])
";

const UNIX_SERVER: &str = r#"
import os, socket, sys
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
while True:
    client, _ = server.accept()
    client.sendall(b"hello\n")
    client.close()
"#;

/// `croupier run` with these sockets, as a service manager starts it; the test keeps its own.
fn activated<'guard>(
    guard: &'guard Guard,
    sockets: &[(&str, &dyn AsFd)],
    args: Vec<OsString>,
) -> Croupier<'guard> {
    // dup(2) clears close-on-exec.
    let handed: Vec<OwnedFd> =
        sockets.iter().map(|(_, socket)| nix::unistd::dup(socket.as_fd()).unwrap()).collect();
    let numbers: Vec<String> = handed.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
    guard.run_with(args, |command| {
        let launcher = ["python3", "-c", ACTIVATE, &numbers.join(","), &names.join(",")];
        under(guard, command, &launcher);
    })
}

#[test]
fn sockets_of_the_manager_are_dealt_from_and_outlive_a_stop() {
    let guard = Guard::new("service-activate");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = Client::port(port);
    let start = || {
        // Without -l: what was brought along is what is listened on.
        let args = args(&["-w", "2"], one_at_a_time(port));
        activated(&guard, &[("web.socket", &listener)], args).ready()
    };
    let first = start();
    let status = first.status();
    assert_eq!(status.listeners.len(), 1);
    assert_eq!(status.listeners[0].address, format!("127.0.0.1:{port}"));
    for _ in 0..6 {
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    first.wait_status("dealt to both", |status| {
        status.dealt().values().all(|dealt| *dealt == 3).then_some(())
    });
    // Who comes while it stops, and after, waits for the next one: nobody is refused or reset.
    let fifo = guard.fifo("go");
    let held = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    first.wait_status("the blocker", |status| (status.open().1 == 1).then_some(()));
    first.signal(Signal::SIGTERM);
    first.wait_status("its stop", |status| status.stopping.then_some(()));
    let during = client.send("/").unwrap();
    std::fs::write(&fifo, "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    first.finished(PATIENCE).expect_code(0);
    let after = client.send("/").unwrap();
    let second = start();
    for waiting in [during, after] {
        assert_eq!(waiting.reply().unwrap().status, 200);
    }
    second.stop_well();
}

#[test]
fn sockets_go_to_the_flag_that_names_them() {
    let guard = Guard::new("service-match");
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let path = guard.path("api.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let program = guard.port();
    let tcp = format!(":{port}={program}");
    let flags = args(&["-w", "1", "-l", &tcp], one_at_a_time(program));
    let croupier = activated(&guard, &[("web.socket", &listener)], flags).ready();
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    croupier.stop_well();
    // As its kind does, it removes the file before it binds; the file is the manager's.
    let script = guard.write("unix.py", UNIX_SERVER);
    let text = path.to_str().unwrap();
    let command = ["python3", script.to_str().unwrap(), text].map(OsString::from).to_vec();
    let flags = args(&["-w", "2", "-l", text], command);
    let croupier = activated(&guard, &[("api.socket", &unix)], flags).ready();
    for _ in 0..4 {
        let mut answer = String::new();
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello\n");
    }
    croupier.stop_well();
    drop(std::os::unix::net::UnixStream::connect(&path).unwrap());
    let folder = std::fs::read_dir(guard.path("")).unwrap().flatten();
    let left: Vec<_> =
        folder.filter(|e| e.file_name().to_string_lossy().contains(".sock.")).collect();
    assert!(left.is_empty(), "{left:?}");
    // One that nobody would serve, and one that cannot be dealt from.
    let args = || args(&["-w", "1", "-l", ":1"], one_at_a_time(program));
    let refused = activated(&guard, &[("web.socket", &listener)], args()).finished(PATIENCE);
    let named = format!("LISTEN_FDS brings web.socket (:{port}), which no -l names");
    refused.expect_code(2).expect_error(&[&named, &format!("Add -l :{port}")]);
    let datagrams = UnixDatagram::unbound().unwrap();
    let refused = activated(&guard, &[("log.socket", &datagrams)], args()).finished(PATIENCE);
    refused.expect_code(2).expect_error(&[
        "LISTEN_FDS: descriptor 3 (log.socket) is a socket for messages",
        "; croupier takes stream sockets that listen: ListenStream= with Accept=no",
    ]);
    let (one_end, other_end) = std::os::unix::net::UnixStream::pair().unwrap();
    let refused = activated(&guard, &[("a.socket", &one_end)], args()).finished(PATIENCE);
    refused.expect_code(2).expect_error(&["LISTEN_FDS: descriptor 3 (a.socket) does not listen; "]);
    drop(other_end);
    let file = std::fs::File::open("/dev/null").unwrap();
    let refused = activated(&guard, &[("x", &file)], args()).finished(PATIENCE);
    refused.expect_code(2).expect_error(&["LISTEN_FDS: descriptor 3 (x) is no socket: "]);
    let abstract_name = std::os::unix::net::SocketAddr::from_abstract_name(guard.name()).unwrap();
    let nameless = UnixListener::bind_addr(&abstract_name).unwrap();
    let refused = activated(&guard, &[("x", &nameless)], args()).finished(PATIENCE);
    refused.expect_code(2).expect_error(&["(x) has an abstract name, not a path; "]);
}

#[test]
fn sockets_that_are_announced_and_not_there_are_an_error() {
    let guard = Guard::new("service-absent");
    let mut command = guard.command("sh");
    let script = "export LISTEN_PID=$$ LISTEN_FDS=some; exec \"$0\" run true";
    command.args(["-c", script]).arg(croupier_tests::croupier());
    guard
        .finish(command)
        .expect_code(2)
        .expect_error(&["LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES: "]);
    let mut command = guard.command("python3");
    let script = "
import os, sys
for number in range(3, 260):
    os.dup2(0, number)
os.environ.update(LISTEN_FDS='257', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], [sys.argv[1], 'run', 'true'])
";
    command.args(["-c", script]).arg(croupier_tests::croupier());
    guard.finish(command).expect_code(2).expect_error(&["LISTEN_FDS: more than 256 sockets"]);
}

/// systemd itself judges it, and says nothing about it; it may about other units of this machine.
#[test]
fn a_unit_is_one_that_systemd_takes() {
    let guard = Guard::new("service-unit");
    let Some(analyze) = find_program("systemd-analyze") else {
        skip!("service-unit", "systemd-analyze is not installed");
    };
    let program = guard.write("my app/50% of $it", "#!/bin/sh\nexec sleep infinity\n");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, open).unwrap();
    let program = program.to_str().unwrap();
    let flags = ["unit", "-n", "web", "-w", "2", "-l", ":80=3000", "--env", "A=b \"c\" %d $e\\"];
    let words =
        [&flags[..], &["--stop-delay", "5s", "--", program, "a;b", ";", "it's {slot}"]].concat();
    let printed = guard.croupier(&words);
    printed.expect_code(0);
    let unit = guard.write("units/web.service", &printed.stdout);
    let verdict = || {
        let mut verify = guard.command(&analyze);
        verify.arg("verify").arg("--man=no").arg(&unit);
        let said = guard.finish(verify).stderr;
        said.lines().filter(|line| line.contains("web.service")).map(str::to_owned).collect()
    };
    let good: Vec<String> = verdict();
    assert_eq!(good, [""; 0], "{}", printed.stdout);
    guard.write("units/web.service", &format!("{}\n[Service]\nBogus=1\n", printed.stdout));
    let bad: Vec<String> = verdict();
    assert!(bad.iter().any(|line| line.contains("Bogus")), "what is wrong is said: {bad:?}");
    // As root there is no other user to run as unless one is named.
    if nix::unistd::geteuid().is_root() {
        assert!(printed.stdout.contains("# It runs as root"), "{}", printed.stdout);
        let library = guard.open_copy(&preload());
        let flags = ["--user", "nobody", "--preload-path", library.to_str().unwrap()];
        let words = [&["unit", "-l", ":80"][..], &flags, &["sleep", "9"]].concat();
        let named = guard.croupier(words);
        assert!(named.stdout.contains("\nUser=nobody\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"));
        assert!(!named.stdout.contains("--user"), "{}", named.stdout);
    }
    guard.croupier(["unit", "--bogus", "true"]).expect_code(2);
    guard.croupier(["unit", "no-such-program-here"]).expect_code(127);
}
