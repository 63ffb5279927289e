//! What croupier says when it cannot do what was asked: each message names what, on what, and what
//! to do. And which exit status goes with it.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use croupier_tests::{Finished, Guard, find_program, fixture, preload, skip};

use crate::programs::one_at_a_time;

/// `croupier run` with these words, to its end.
fn run_to_end(guard: &Guard, words: &[&str]) -> Finished {
    let mut all = vec!["run", "--name", guard.name()];
    all.extend(words);
    guard.croupier(all)
}

#[test]
fn usage_is_exit_2_with_a_hint() {
    let guard = Guard::new("trouble-usage");
    run_to_end(&guard, &["-p", "8080", "true"])
        .expect_code(2)
        .expect_error(&["that is --policy; a port is -l :8080"]);
    guard
        .croupier(["node", "x.js"])
        .expect_code(2)
        .expect_error(&["did you mean", "croupier run node x.js"]);
    run_to_end(&guard, &["-w", "many", "true"]).expect_code(2).expect_error(&["many", "--workers"]);
    run_to_end(&guard, &["--stall-after", "5 parsecs", "true"]).expect_code(2);
    run_to_end(&guard, &["-w", "2"]).expect_code(2).expect_error(&["COMMAND"]);
}

#[test]
fn a_program_that_cannot_be_run_is_126_or_127() {
    let guard = Guard::new("trouble-program");
    run_to_end(&guard, &["no-such-program-here"])
        .expect_code(127)
        .expect_error(&["no-such-program-here", "not found"]);
    let file = guard.write("data.txt", "data");
    run_to_end(&guard, &[file.to_str().unwrap()]).expect_code(126).expect_error(&["data.txt"]);
}

#[test]
fn an_address_in_use_names_its_holder() {
    let guard = Guard::new("trouble-in-use");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let own_pid = std::process::id().to_string();
    run_to_end(&guard, &["-l", &address, "tail", "-f", "/dev/null"])
        .expect_code(1)
        .expect_error(&[&address, "cannot listen on ", ": it is in use", &own_pid, "system"])
        .expect_error(&["; stop it or choose another port"]);
    drop(holder);
}

#[test]
fn a_low_port_without_permission_says_what_to_do() {
    let guard = Guard::new("trouble-low-port");
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if !nix::unistd::geteuid().is_root() || first.trim() == "0" {
        skip!("a_low_port_without_permission_says_what_to_do", "needs root and protected ports");
    }
    let runtime = guard.path("run");
    std::fs::set_permissions(&runtime, PermissionsExt::from_mode(0o777)).unwrap();
    let copy = guard.open_copy(&croupier_tests::croupier());
    guard.open_copy(&preload());
    let mut command = guard.command(copy);
    command.args(["run", "-l", ":81", "tail", "-f", "/dev/null"]).uid(65534).gid(65534);
    guard.finish(command).expect_code(1).expect_error(&[
        ":81",
        "below 1024",
        "are for root; start croupier as root with --user nobody, give it the right (setcap",
    ]);
    // And it cannot look at whose process has another port.
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let mut command = guard.command(guard.path("croupier"));
    command.args(["run", "-l", &taken, "tail", "-f", "/dev/null"]).uid(65534).gid(65534);
    guard
        .finish(command)
        .expect_code(1)
        .expect_error(&[&taken, " by a process of user root; stop"]);
    let mut command = guard.command(guard.path("croupier"));
    command.args(["run", "--user", "root", "true"]).uid(65534).gid(65534);
    guard.finish(command).expect_code(2).expect_error(&[
        "--user root: only root can start workers as somebody else; run as root, or",
    ]);
}

#[test]
fn an_address_of_another_croupier_names_the_way_to_it() {
    let guard = Guard::new("trouble-twice");
    let listen = format!("127.0.0.1:{}", guard.port());
    let server = ["-w", "1", "-l", &listen, "--ready", "start", "tail", "-f", "/dev/null"];
    let croupier = guard.run(server).ready();
    let pid = croupier.pid().to_string();
    guard.croupier([&["run"][..], &server].concat()).expect_code(1).expect_error(&[
        &listen,
        " by another croupier, ",
        &pid,
        "croupier ls shows it",
    ]);
    croupier.stop_well();
}

#[test]
fn a_missing_preload_library_is_named() {
    let guard = Guard::new("trouble-preload");
    run_to_end(&guard, &["--preload-path", "/no/such/lib.so", "tail", "-f", "/dev/null"])
        .expect_code(1)
        .expect_error(&[
            " is missing: looked at /no/such/lib.so; give its path with --preload-path",
        ]);
    // A program with the crate is dealt to all the same.
    let flags = ["--adapter", "shim", "--preload-path", "/no/such/lib.so", "-w", "1"];
    let croupier =
        guard.run([&flags[..], &["--ready", "start", "tail", "-f", "/dev/null"]].concat());
    croupier.wait_for_line("closed connections are not counted: libcroupier_preload.so is missing");
    croupier.ready().stop_well();
}

#[test]
fn a_preload_library_with_a_space_in_its_path_is_an_error() {
    let guard = Guard::new("trouble-space");
    std::fs::create_dir(guard.path("a folder")).unwrap();
    let library = guard.path("a folder/lib.so");
    std::fs::copy(preload(), &library).unwrap();
    let path = library.to_str().unwrap();
    run_to_end(&guard, &["--preload-path", path, "tail", "-f", "/dev/null"])
        .expect_code(1)
        .expect_error(&[path, " has a space or colon in its path, at which LD_PRELOAD splits"]);
}

#[test]
fn a_preload_library_that_the_user_cannot_read_is_an_error() {
    let guard = Guard::new("trouble-unreadable");
    if !nix::unistd::geteuid().is_root() {
        skip!("a_preload_library_that_the_user_cannot_read_is_an_error", "needs root");
    }
    std::fs::create_dir(guard.path("private")).unwrap();
    let library = guard.path("private/lib.so");
    std::fs::copy(preload(), &library).unwrap();
    std::fs::set_permissions(guard.path("private"), PermissionsExt::from_mode(0o700)).unwrap();
    let path = library.to_str().unwrap();
    run_to_end(&guard, &["--user", "nobody", "--preload-path", path, "tail", "-f", "/dev/null"])
        .expect_code(1)
        .expect_error(&[
            "user nobody cannot read ",
            path,
            " is closed to it. Copy it to where everybody",
        ])
        .expect_error(&["croupier run --preload-path /usr/local/lib/croupier/"]);
}

#[test]
fn workers_that_die_at_once_end_it_with_their_last_lines() {
    let guard = Guard::new("trouble-dies");
    let ended = run_to_end(&guard, &["-w", "1", "sh", "-c", "echo reason of $$ >&2; exit 3"]);
    ended
        .expect_code(1)
        .expect_error(&["reason of", "worker 3 exited with status 3"])
        .expect_error(&[
            "; exit 3 became ready; the last one",
            "; the last one, worker 3, exited with status 3",
            "the last lines of worker 3:",
        ]);
    let starts = ended.stderr.lines().filter(|line| line.contains("[w0] reason of")).count();
    assert_eq!(starts, 3, "three tries: {}", ended.stderr);
    run_to_end(&guard, &["-w", "1", "sh", "-c", "exit 4"])
        .expect_code(1)
        .expect_error(&["worker 3 printed nothing"]);
}

#[test]
fn a_program_that_never_listens_is_told_so() {
    let guard = Guard::new("trouble-never");
    run_to_end(&guard, &["-w", "1", "--ready-timeout", "300ms", "tail", "-f", "/dev/null"])
        .expect_code(1)
        .expect_error(&[
            "tail",
            "worker 1 is not ready in time: it runs and never listens; give it",
        ])
        .expect_error(&[
            "more time with --ready-timeout, or, if its workers are not meant to listen",
        ]);
}

#[test]
fn a_program_that_goes_into_the_background_is_told_so() {
    let guard = Guard::new("trouble-background");
    let port = guard.port();
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("{server} & exit 0");
    run_to_end(&guard, &["-w", "1", "--ready-timeout", "10s", "sh", "-c", &script])
        .expect_code(1)
        .expect_error(&[
            "exited with status 0 while processes that it started live on: the program",
        ])
        .expect_error(&["went into the background. Tell it to stay in the foreground"]);
}

#[test]
fn another_address_than_the_declared_one_is_named() {
    let guard = Guard::new("trouble-elsewhere");
    let (declared, own) = (guard.port(), guard.port());
    let listen = format!("127.0.0.1:{declared}");
    let server = one_at_a_time(own);
    let server: Vec<&str> = server.iter().map(|word| word.to_str().unwrap()).collect();
    let mut words = vec!["-w", "1", "-l", &listen, "--ready-timeout", "2s", "--"];
    words.extend(server);
    run_to_end(&guard, &words).expect_code(1).expect_error(&[
        &format!(" listens by itself on 127.0.0.1:{own}"),
        ", which no -l names; leave -l out to deal whatever it listens on",
    ]);
}

/// Two may bind one address with `SO_REUSEADDR` as long as neither listens; croupier does with all.
#[test]
fn an_address_that_is_taken_between_bind_and_listen_names_its_holder() {
    const SOURCE: &str = r#"
import socket, sys
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[1])))
print("bound", flush=True)
open(sys.argv[2]).read()
server.listen()
"#;
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
        sockopt,
    };
    use std::os::fd::AsRawFd;
    let guard = Guard::new("trouble-between");
    let (port, go) = (guard.port(), guard.fifo("go"));
    let holder = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let holder = holder.unwrap();
    setsockopt(&holder, sockopt::ReuseAddr, &true).unwrap();
    bind(holder.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
    let script = guard.write("late.py", SOURCE);
    let (script, number) = (script.to_str().unwrap(), port.to_string());
    let croupier = guard.run(["-w", "1", "python3", script, &number, go.to_str().unwrap()]);
    croupier.wait_for_line("[w0] bound");
    listen(&holder, Backlog::new(1).unwrap()).unwrap();
    std::fs::write(&go, "").unwrap();
    let own_pid = std::process::id().to_string();
    let said = croupier.wait_for_line(": cannot listen on ");
    let wanted = format!("worker 1: cannot listen on 127.0.0.1:{port}: it is in use by ");
    assert!(said.contains(&wanted) && said.contains(&own_pid), "{said}");
    croupier.stop();
}

/// What is not counted cannot be said to be cut, only that it took too long: here a client in a queue
/// that nobody reads.
#[test]
fn a_worker_that_counts_nothing_and_does_not_finish_is_named() {
    let guard = Guard::new("trouble-lingers");
    let port = guard.port();
    let listen = format!("127.0.0.1:{port}");
    let flags = ["-w", "1", "-l", &listen, "--adapter", "fd", "--ready", "start"];
    let ends = ["--graceful-timeout", "300ms", "--", "tail", "-f", "/dev/null"];
    let croupier = guard.run([&flags[..], &ends].concat()).ready();
    let waits = croupier_tests::Client::port(port).send("/").unwrap();
    croupier.wait_status("the client in the queue", |status| {
        (status.totals.handed_off == 1).then_some(())
    });
    croupier.signal(nix::sys::signal::Signal::SIGTERM);
    croupier.wait_for_line("worker 1 did not end by itself within the --graceful-timeout");
    croupier.finished(croupier_tests::PATIENCE).expect_code(0);
    assert!(waits.reply().is_err());
}

/// A program that cleans up what it does not know, croupier's second name of a socket too.
#[test]
fn a_socket_file_whose_both_names_are_removed_is_an_error() {
    const SOURCE: &str = r#"
import glob, os, socket, sys
for path in glob.glob(sys.argv[1] + "*"):
    os.unlink(path)
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
while True:
    server.accept()[0].close()
"#;
    let guard = Guard::new("trouble-removed");
    let path = guard.path("web.sock");
    let path = path.to_str().unwrap();
    let croupier = guard.run(["-w", "1", "--soak", "0", "python3", "-c", SOURCE, path]).ready();
    // Its successor removes both.
    croupier.ask(&["reload"]).expect_code(0);
    let said = croupier.wait_for_line(": restart to be reachable there");
    let both = format!("{path} was removed, and so was {path}.croupier-{}", croupier.pid());
    assert!(said.contains(&both), "{said}");
    croupier.stop_well();
}

const STATIC: &str = r#"
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1]))};
    if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 16))
        return 1;
    for (;;)
        close(accept(s, 0, 0));
}
"#;

#[test]
fn a_static_program_is_refused_with_the_way_out() {
    let guard = Guard::new("trouble-static");
    let program = fixture(&guard.write("static.c", STATIC), &guard.path("static"), &["-static"]);
    let port = guard.port().to_string();
    run_to_end(&guard, &["-w", "1", program.to_str().unwrap(), &port]).expect_code(1).expect_error(
        &["it is statically linked", "so croupier cannot deal to it. If it takes a socket"],
    );
}

#[test]
fn a_setuid_program_is_refused_with_the_reason() {
    let guard = Guard::new("trouble-setuid");
    if !nix::unistd::geteuid().is_root() {
        skip!("a_setuid_program_is_refused_with_the_reason", "needs root");
    }
    let program = fixture(&guard.write("plain.c", STATIC), &guard.path("plain"), &[]);
    // Setuid to one's own user changes nothing, and is no obstacle.
    std::os::unix::fs::chown(&program, Some(65534), None).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    let port = guard.port().to_string();
    run_to_end(&guard, &["-w", "1", program.to_str().unwrap(), &port])
        .expect_code(1)
        .expect_error(&["it is setuid, so the system ignores", "--adapter listen-fds"]);
    std::os::unix::fs::chown(&program, Some(0), Some(65534)).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o2755)).unwrap();
    run_to_end(&guard, &["-w", "1", program.to_str().unwrap(), &port])
        .expect_code(1)
        .expect_error(&["it is setgid, so the system ignores", "--adapter listen-fds"]);
}

/// Go makes its system calls itself: nothing that is preloaded sees them. Its linker leaves a section
/// of this name, by which everybody tells it.
#[test]
fn a_go_program_is_refused_with_the_reason() {
    let guard = Guard::new("trouble-go");
    let marked = format!(
        "__attribute__((section(\".go.buildinfo\"), used)) static const char info[32] = \"Go\";\n{STATIC}"
    );
    let program = fixture(&guard.write("go.c", &marked), &guard.path("goserver"), &[]);
    run_to_end(&guard, &["-w", "1", program.to_str().unwrap(), "1"])
        .expect_code(1)
        .expect_error(&["it is a Go program", "--adapter listen-fds"]);
}

#[test]
fn a_programs_own_address_in_use_names_its_holder_too() {
    let guard = Guard::new("trouble-program-in-use");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let server = one_at_a_time(port);
    let mut words = vec!["-w", "1", "--"];
    words.extend(server.iter().map(|word| word.to_str().unwrap()));
    let own_pid = std::process::id().to_string();
    run_to_end(&guard, &words).expect_code(1).expect_error(&[
        &format!("worker 1: cannot listen on 127.0.0.1:{port}: it is in use by "),
        &own_pid,
    ]);
    drop(holder);
}

#[test]
fn listen_fds_serves_a_static_program() {
    const SOURCE: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void)
{
    char *fds = getenv("LISTEN_FDS"), *pid = getenv("LISTEN_PID");
    if (!fds || atoi(fds) != 1 || !pid || atoi(pid) != getpid())
        return fprintf(stderr, "LISTEN_FDS=%s LISTEN_PID=%s\n", fds ? fds : "", pid ? pid : ""), 1;
    for (;;) {
        int c = accept(3, 0, 0);
        if (c < 0)
            continue;
        char in[4096], body[32], out[160];
        if (read(c, in, sizeof in) > 0) {
            int n = sprintf(body, "pid=%d\n", getpid());
            n = sprintf(out, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", n, body);
            if (write(c, out, n) != n)
                perror("write");
        }
        close(c);
    }
}
"#;
    let guard = Guard::new("listen-fds");
    let program = fixture(&guard.write("static.c", SOURCE), &guard.path("static"), &["-static"]);
    let program = program.to_str().unwrap();
    for policy in ["shared", "reuseport"] {
        let port = guard.port();
        let listen = format!("127.0.0.1:{port}");
        let flags = ["-w", "2", "-p", policy, "--adapter", "listen-fds", "-l", &listen, program];
        let croupier = guard.run(flags).ready();
        let client = croupier_tests::Client::port(port);
        let outcome = croupier_tests::hammer(&client, 8, 100, |_| Some("/".to_owned()));
        assert_eq!(outcome.failures, [], "{policy}");
        croupier.stop_well();
    }
    let refused = ["-w", "2", "-p", "least", "--adapter", "listen-fds", "-l", ":0", program];
    run_to_end(&guard, &refused).expect_code(2).expect_error(&["listen-fds", "shared"]);
}

/// What runs on without: each says what is then missing.
#[test]
fn a_control_socket_that_cannot_be_made_is_a_warning() {
    let guard = Guard::new("trouble-control");
    let file = guard.write("file", "not a socket");
    let taken = guard.path("taken");
    let listener = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    let absent = guard.path("no/such/folder");
    for (path, why) in [
        (&file, "there is a file that is no socket; remove it or choose another path"),
        (&taken, "another program listens on it"),
        (&absent, "; choose another place with --control PATH"),
    ] {
        let path = path.to_str().unwrap();
        let flags = ["--control", path, "-w", "1", "--ready", "start", "tail", "-f", "/dev/null"];
        let croupier = guard.run(flags);
        let line = croupier.wait_for_line("no control socket: ");
        assert!(line.contains(path) && line.contains(why), "{line}");
        assert!(line.contains("; status, stop and wait will not find this croupier"), "{line}");
        croupier.wait_for_line("ready: ");
        croupier.stop_well();
    }
    drop(listener);
}

#[test]
fn a_log_file_that_cannot_be_opened_is_an_error() {
    let guard = Guard::new("trouble-log");
    run_to_end(&guard, &["--log-file", "/no/such/folder/log", "tail", "-f", "/dev/null"])
        .expect_code(1)
        .expect_error(&["cannot open the log file /no/such/folder/log: No such file or directory"]);
    let log = guard.path("log");
    let log = log.to_str().unwrap();
    run_to_end(&guard, &["--log-file", log, "-w", "1", "sh", "-c", "exit 3"])
        .expect_code(1)
        .expect_error(&["no worker of sh -c exit 3 became ready", &format!("; {log} has the log")]);
}

/// Reload, restart and start wait for a worker that never listens, and say so; nobody misses it.
#[test]
fn a_worker_that_is_not_ready_in_time_is_named_by_whoever_waits() {
    let guard = Guard::new("trouble-late");
    let deaf = guard.path("deaf");
    let server = one_at_a_time(guard.port()).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("[ ! -e {} ] || exec tail -f /dev/null; exec {server}", deaf.display());
    let croupier =
        guard.run(["-w", "1", "--ready-timeout", "4s", "--", "sh", "-c", &script]).ready();
    croupier.ask(&["stop", "7"]).expect_code(1).expect_error(&["no slot 7; the only slot is 0"]);
    std::fs::write(&deaf, "").unwrap();
    let kept = "which was to take over, was not ready in time; the old one stays";
    croupier.ask(&["restart", "0"]).expect_code(1).expect_error(&[kept]);
    croupier.ask(&["stop", "0"]).expect_code(0);
    let late =
        ["slot 0: worker ", " was not ready in time: it runs and never listens; give it more"];
    croupier.ask(&["start", "0"]).expect_code(1).expect_error(&late);
    croupier.stop_well();
}

#[test]
fn a_croupier_that_stops_refuses_what_would_begin_something() {
    let guard = Guard::new("trouble-stopping");
    let port = guard.port();
    let mut args: Vec<OsString> =
        ["-w", "1", "--graceful-timeout", "10m", "--"].map(Into::into).into();
    args.extend(one_at_a_time(port));
    let croupier = guard.run(args).ready();
    let fifo = guard.fifo("go");
    let client = croupier_tests::Client::port(port);
    let held = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("the blocker", |status| (status.open() == (0, 1)).then_some(()));
    croupier.signal(nix::sys::signal::Signal::SIGTERM);
    croupier.wait_status("the stop", |status| status.stopping.then_some(()));
    for words in [&["reload"][..], &["scale", "2"], &["pause"], &["start", "0"], &["restart", "0"]]
    {
        croupier.ask(words).expect_code(1).expect_error(&["it is stopping"]);
    }
    croupier.ask(&["wait", "ready"]).expect_code(1).expect_error(&["it is stopping"]);
    std::fs::write(&fifo, "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    croupier.finished(croupier_tests::PATIENCE).expect_code(0);
}

/// A rotation that goes wrong takes nothing away from the log that there is.
#[test]
fn a_log_file_that_cannot_be_opened_again_is_said_in_the_old_one() {
    let guard = Guard::new("trouble-rotation");
    let (log, old) = (guard.path("log"), guard.path("log.1"));
    let flags = ["--log-file", log.to_str().unwrap(), "-w", "1", "--ready", "start"];
    let croupier = guard.run([&flags[..], &["tail", "-f", "/dev/null"]].concat()).ready();
    std::fs::rename(&log, &old).unwrap();
    std::fs::create_dir(&log).unwrap();
    croupier.signal(nix::sys::signal::Signal::SIGUSR1);
    croupier_tests::wait_until(croupier_tests::PATIENCE, "a word about it", || {
        let text = std::fs::read_to_string(&old).unwrap();
        let said = text.contains(" again: Is a directory (os error 21)")
            && text.contains("; lines go on to the file that was open");
        if said { Ok(()) } else { Err(text) }
    });
    croupier.stop_well();
    let text = std::fs::read_to_string(&old).unwrap();
    assert!(!text.contains("asked by USR1"), "nothing was opened: {text}");
}

#[test]
fn a_service_manager_that_cannot_be_notified_is_a_warning() {
    let guard = Guard::new("trouble-notify");
    let flags = ["-w", "1", "--ready", "start", "tail", "-f", "/dev/null"];
    let croupier = guard.run_with(flags, |command| {
        command.env("NOTIFY_SOCKET", "nonsense");
    });
    croupier.wait_for_line(
        "NOTIFY_SOCKET nonsense: neither a path nor an abstract name; nobody is notified",
    );
    croupier.ready().stop_well();
}

/// The socket says whose it is, when the mode of its file does not.
#[test]
fn a_croupier_of_another_user_is_not_driven() {
    let guard = Guard::new("trouble-owner");
    if !nix::unistd::geteuid().is_root() {
        skip!("a_croupier_of_another_user_is_not_driven", "needs root");
    }
    let socket = guard.path("control");
    let path = socket.to_str().unwrap();
    let flags = ["--control", path, "-w", "1", "--ready", "start", "tail", "-f", "/dev/null"];
    let croupier = guard.run(flags);
    croupier.wait_for_line("ready: ");
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    let mut command = guard.command(guard.open_copy(&croupier_tests::croupier()));
    command.args(["stop", "--control", path]).uid(65534).gid(65534);
    guard.finish(command).expect_code(1).expect_error(&["this primary belongs to another user"]);
    croupier.stop_well();
}

/// A script that has forgotten sudo must not go on at once.
#[test]
fn whoever_waits_for_the_end_of_roots_without_sudo_is_told_so() {
    const SCRIPT: &str = r#"
mount -t tmpfs none /run || exit 99
unset XDG_RUNTIME_DIR
ask() { setpriv --reuid=64913 --regid=64913 --clear-groups "$1" wait stopped -n "$2" 2>&1; echo "$? $2"; }
"$0" run --name strange-web -w 1 --ready start tail -f /dev/null >&2 &
for _ in 1 2 3 4 5 6 7 8; do "$0" wait ready -n strange-web >&2 && break; done
for which in strange-web root/strange-web 64913/strange-web strange; do ask "$1" $which; done
"$0" stop -n strange-web >&2 && wait
ask "$1" strange-web
"#;
    let guard = Guard::new("trouble-sudo");
    if !nix::unistd::geteuid().is_root() {
        skip!("trouble-sudo", "needs root");
    }
    let (Some(unshare), Some(_)) = (find_program("unshare"), find_program("setpriv")) else {
        skip!("trouble-sudo", "unshare or setpriv is not installed")
    };
    let copy = guard.open_copy(&croupier_tests::croupier());
    let mut command = guard.command(unshare);
    command.args(["-m", "sh", "-c", SCRIPT]).arg(croupier_tests::croupier()).arg(copy);
    let ended = guard.finish(command);
    if ended.code == Some(99) || ended.stderr.contains("unshare") {
        skip!("trouble-sudo", "no right to a mount namespace");
    }
    ended.expect_code(0);
    let foreign = "croupier: root/strange-web runs, and belongs to another user: wait as that one or as \
                   root. If you mean your own, say -n 64913/strange-web";
    let none = |name: &str| {
        format!("croupier: no croupier named {name} is running: it has stopped, or never was")
    };
    let said: Vec<&str> = ended.stdout.lines().collect();
    let wanted = [
        foreign,
        "3 strange-web",
        foreign,
        "3 root/strange-web",
        &none("64913/strange-web"),
        "0 64913/strange-web",
        &none("strange"),
        "0 strange",
        &none("strange-web"),
        "0 strange-web",
    ];
    assert_eq!(said, wanted, "{ended:?}");
}
