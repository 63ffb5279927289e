//! The listener, the examples and the C API as real processes under a small primary, each with and
//! without the preload library.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use croupier_wire::message::{CONTROL_VAR, Kind};
use croupier_wire::page::{HEAD_DRAINING, PAGE_MAGIC};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use support::{Event, GENERATION, Mode, Policy, Primary, SLOT, WORKER_ID, Worker};
use support::{eventually, everything, example, get, preload};

/// What is in the worker's process beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Preload,
}

/// Each body twice: alone, and with the preload library in the process.
macro_rules! both {
    ($($name:ident)*) => {$(
        mod $name {
            #[test]
            fn alone() {
                super::$name(super::Beside::Nothing);
            }
            #[test]
            fn preloaded() {
                super::$name(super::Beside::Preload);
            }
        }
    )*};
}

both! {
    echo_is_a_worker
    threads_accept_on_one_listener
    blocking_is_the_listeners_own_word
    a_listener_ends_with_its_last_clone
    a_descriptor_alone_ends_untold
    other_addresses_are_the_programs_own
    an_address_is_free_again_afterwards
    no_descriptor_is_no_loss
    a_pool_claims_only_for_a_waiting_thread
    a_shared_socket_is_accepted_on
    the_primary_dies
    a_primary_of_another_version_is_named
    one_channel_ends
    a_worker_knows_itself
    axum_is_a_worker
    axum_without_a_primary_waits_and_does_not_spin
    axum_on_a_closed_channel_does_not_spin
    c_echo_is_a_worker
    a_forked_child_in_c_goes_on
}

fn start(primary: &Primary, beside: Beside, mut command: Command) -> Worker {
    if beside == Beside::Preload {
        command.env("LD_PRELOAD", preload());
    }
    Worker::start(primary.adopt(&mut command))
}

fn player(primary: &Primary, beside: Beside, part: &str) -> Worker {
    let mut command = example("test-player");
    command.args([part, &primary.address.to_string()]);
    start(primary, beside, command)
}

fn finishes(mut worker: Worker) {
    assert_eq!(worker.line(), "done");
    let status = worker.ended();
    assert!(status.success(), "{status}");
}

/// The byte that players write when they have a connection.
fn x(mut client: &TcpStream) {
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

fn listens_on(primary: &Primary, name: &str) -> Command {
    let mut command = example(name);
    command.arg(primary.address.to_string());
    command
}

fn a_primary_of_another_version_is_named(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    primary.page().head.magic.store(PAGE_MAGIC - 1, Ordering::SeqCst);
    let worker = player(&primary, beside, "versions");
    let wanted = "croupier's primary and this program's croupier-worker are of different versions; after an \
                  upgrade stop croupier and start it again, else build the program with the crate of its version";
    assert_eq!(worker.line(), wanted);
    finishes(worker);
}

fn echo_is_a_worker(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = start(&primary, beside, listens_on(&primary, "echo"));
    let bind = primary.asked(Kind::Bind);
    let options: Vec<_> = bind.options().iter().map(|o| (o.level, o.name, o.value)).collect();
    assert_eq!(options, [(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)]);
    assert_eq!(primary.asked(Kind::Listen).backlog, 128);
    let channel = primary.channel();
    for served in 1..=12 {
        let answer = get(primary.client(&channel));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains(&format!("\r\n\r\nworker {WORKER_ID}\nGET / HTTP/1.1\r\n")),
            "{answer}"
        );
        assert_eq!(primary.claimed(), served);
    }
    eventually("all are closed", || primary.closed() == 12);
    let lines = primary.page().lines.iter();
    let own: Vec<_> = lines.filter(|line| line.pid.load(Ordering::SeqCst) != 0).collect();
    let [line] = own[..] else { panic!("{} lines for one process", own.len()) };
    assert_eq!(line.pid.load(Ordering::SeqCst), worker.id());
    assert_eq!(line.claimed.load(Ordering::SeqCst), 12);
    assert!(!primary.kinds().contains(&Kind::Listen), "one listener asks once");
}

fn threads_accept_on_one_listener(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = player(&primary, beside, "crowd");
    let channel = primary.channel();
    let clients: Vec<_> = (0..4).map(|_| primary.client(&channel)).collect();
    clients.iter().for_each(x);
    finishes(worker);
    assert_eq!(primary.claimed(), 4);
    primary.asked(Kind::Close);
}

fn blocking_is_the_listeners_own_word(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = player(&primary, beside, "nonblocking");
    let channel = primary.channel();
    assert_eq!(worker.line(), "empty");
    let mut client = primary.deal(&channel, Mode::Nonblocking);
    assert_eq!(worker.line(), "reading");
    client.write_all(b"y").unwrap();
    x(&client);
    finishes(worker);
}

fn a_listener_ends_with_its_last_clone(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = player(&primary, beside, "clones");
    let channel = primary.channel();
    let before = primary.kinds();
    x(&primary.client(&channel));
    finishes(worker);
    let after = primary.kinds();
    assert!(!before.contains(&Kind::Close));
    let told: Vec<_> = after.into_iter().filter(|kind| *kind != Kind::Attach).collect();
    assert_eq!(told, [Kind::Close, Kind::Ready]);
}

fn a_descriptor_alone_ends_untold(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = player(&primary, beside, "keeper");
    finishes(worker);
    let kinds = primary.kinds();
    assert!(kinds.contains(&Kind::Ready));
    assert!(!kinds.contains(&Kind::Close), "{kinds:?}");
}

fn other_addresses_are_the_programs_own(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = player(&primary, beside, "beside");
    let channel = primary.channel();
    x(&primary.client(&channel));
    finishes(worker);
    assert_eq!(primary.claimed(), 1);
}

fn an_address_is_free_again_afterwards(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = player(&primary, beside, "again");
    let first = primary.channel();
    assert_eq!(primary.asked(Kind::Close).channel, first.number);
    x(&primary.client(&primary.channel()));
    finishes(worker);
}

fn no_descriptor_is_no_loss(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = player(&primary, beside, "crowded-out");
    let channel = primary.channel();
    x(&primary.client(&channel));
    let clients: Vec<_> = (0..3).map(|_| primary.client(&channel)).collect();
    let mut claimed = 1;
    loop {
        claimed += 1;
        match worker.line().as_str() {
            "one more" => {}
            "room again" => break,
            other => panic!("{other}"),
        }
    }
    let (served, queued) = clients.split_at(claimed - 1);
    served.iter().for_each(x);
    finishes(worker);
    assert_eq!(primary.claimed(), u64::try_from(claimed).unwrap());
    assert!(!queued.is_empty());
    assert_eq!(channel.queued(), queued.len());
}

fn a_pool_claims_only_for_a_waiting_thread(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let mut command = listens_on(&primary, "pool");
    command.arg("2");
    let _worker = start(&primary, beside, command);
    let channel = primary.channel();
    let mut clients: Vec<_> = (0..4).map(|_| primary.client(&channel)).collect();
    eventually("both threads are busy", || primary.claimed() == 2);
    // A thread that claimed ahead would have done so by the time one client was served.
    let last = clients.pop().unwrap();
    assert!(get(clients.remove(0)).ends_with(&format!("worker {WORKER_ID}\n")));
    eventually("the free thread takes the third", || primary.claimed() == 3);
    assert_eq!(channel.queued(), 1);
    for client in clients {
        get(client);
    }
    get(last);
    assert_eq!(primary.claimed(), 4);
}

fn a_shared_socket_is_accepted_on(beside: Beside) {
    let primary = Primary::start(Policy::Share);
    let _worker = start(&primary, beside, listens_on(&primary, "echo"));
    primary.asked(Kind::Listen);
    for _ in 0..3 {
        let client = TcpStream::connect(primary.address).unwrap();
        client.set_read_timeout(Some(support::DEADLINE)).unwrap();
        assert!(get(client).contains(&format!("worker {WORKER_ID}\n")));
    }
}

fn the_primary_dies(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let mut worker = start(&primary, beside, listens_on(&primary, "echo"));
    let channel = primary.channel();
    let first = primary.client(&channel);
    let queued = primary.client(&channel);
    primary.die(vec![channel]);
    // What was dealt is served, in order, and then the worker goes.
    assert!(get(first).contains("200 OK"));
    assert!(get(queued).contains("200 OK"));
    assert_eq!(worker.ended().signal(), Some(libc::SIGTERM));
}

fn one_channel_ends(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = player(&primary, beside, "over");
    drop(primary.channel());
    finishes(worker);
}

fn a_worker_knows_itself(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let mut worker = player(&primary, beside, "who");
    assert_eq!(worker.line(), format!("{WORKER_ID} {SLOT} {GENERATION}"));
    assert_eq!(worker.line(), "false");
    primary.asked(Kind::Ready);
    primary.page().head.flags.store(HEAD_DRAINING, Ordering::SeqCst);
    worker.tell(b"\n");
    assert_eq!(worker.line(), "true");
    finishes(worker);
}

#[test]
fn a_worker_is_told_that_it_drains() {
    let (primary, beside) = (Primary::start(Policy::Deal), Beside::Nothing);
    let worker = player(&primary, beside, "told");
    let post = primary.post();
    assert_eq!(worker.line(), "false");
    let message = croupier_wire::post::Message::Disconnect.encode();
    croupier_wire::fdpass::send(std::os::fd::AsFd::as_fd(&post), &message, &[]).unwrap();
    assert_eq!(worker.line(), "true");
    finishes(worker);
    // A primary that is gone deals nothing more, either.
    let worker = player(&primary, beside, "told");
    let post = primary.post();
    assert_eq!(worker.line(), "false");
    drop(post);
    assert_eq!(worker.line(), "true");
    finishes(worker);
}

#[test]
fn a_gone_primary_is_named() {
    let mut command = example("test-player");
    command.args(["unreachable", "127.0.0.1:9"]);
    command.env(CONTROL_VAR, format!("{}@croupier-test/nobody", "00".repeat(16)));
    finishes(Worker::start(&mut command));
}

#[test]
fn outside_croupier_the_examples_serve_alone() {
    for name in ["echo", "pool"] {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = example(name);
        let _worker = Worker::start(command.arg(free.to_string()));
        let mut client = None;
        eventually("it listens", || {
            client = TcpStream::connect(free).ok();
            client.is_some()
        });
        assert!(get(client.unwrap()).contains("\r\n\r\nworker 0\n"));
    }
}

#[test]
fn a_bare_worker_needs_only_its_channel() {
    let primary = Primary::start(Policy::Deal);
    let channel = primary.make_channel();
    let inherited = channel.receiving_end();
    support::inheritable(&inherited);
    let mut command = example("bare");
    command.env("CROUPIER_CHANNEL_FD", inherited.as_raw_fd().to_string());
    let mut worker = Worker::start(primary.adopt(&mut command));
    drop(inherited);
    for _ in 0..3 {
        assert!(get(primary.client(&channel)).ends_with(&format!("worker {WORKER_ID}\n")));
    }
    primary.die(vec![channel]);
    assert!(worker.ended().success());
}

fn axum_is_a_worker(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let _worker = start(&primary, beside, listens_on(&primary, "axum"));
    let channel = primary.channel();
    for served in 1..=12 {
        assert!(get(primary.client(&channel)).ends_with(&format!("worker {WORKER_ID}\n")));
        assert_eq!(primary.claimed(), served);
    }
    // The primary may set O_NONBLOCK itself from now on, and then does.
    assert_ne!(primary.page().totals.nonblocking.load(Ordering::SeqCst), 0);
    let hinted = primary.deal(&channel, Mode::Nonblocking);
    assert!(get(hinted).ends_with(&format!("worker {WORKER_ID}\n")));
    let clients: Vec<_> = (0..20).map(|_| primary.client(&channel)).collect();
    for client in clients {
        assert!(get(client).starts_with("HTTP/1.1 200 OK"));
    }
    eventually("all are closed", || primary.closed() == 33);
}

fn axum_without_a_primary_waits_and_does_not_spin(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let mut command = Command::new("sh");
    // With SIGTERM ignored, what the signal would end goes on; it must do so asleep.
    command.args(["-c", "trap '' TERM; exec \"$@\"", "sh"]);
    command.arg(example("axum").get_program()).arg(primary.address.to_string());
    let worker = start(&primary, beside, command);
    let channel = primary.channel();
    let queued = primary.client(&channel);
    primary.die(vec![channel]);
    assert!(get(queued).ends_with(&format!("worker {WORKER_ID}\n")));
    support::sleeps(worker.id());
}
fn axum_on_a_closed_channel_does_not_spin(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let worker = start(&primary, beside, listens_on(&primary, "axum"));
    let channel = primary.channel();
    assert!(get(primary.client(&channel)).starts_with("HTTP/1.1 200 OK"));
    drop(channel);
    primary.asked(Kind::Attach);
    support::sleeps(worker.id());
}

/// The C library and a C program against it.
fn c_program(source: &Path, name: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = everything();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-I"]);
    cc.arg(package.join("include")).arg(source).arg("-o").arg(&program);
    cc.arg("-L").arg(folder).arg("-lcroupier_worker");
    cc.arg(format!("-Wl,-rpath,{}", folder.display()));
    let status = cc.status().unwrap();
    assert!(status.success(), "{cc:?}: {status}");
    program
}

fn c_echo(name: &str) -> PathBuf {
    c_program(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/c/echo.c"), name)
}

/// An inline program: `name` must be unique among the tests, which run at the same time.
fn c_inline(name: &str, body: &str) -> Command {
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.c"));
    let head = "#include <croupier.h>\n#include <arpa/inet.h>\n#include <errno.h>\n\
        #include <fcntl.h>\n#include <netinet/in.h>\n#include <stdio.h>\n#include <stdlib.h>\n\
        #include <sys/wait.h>\n#include <unistd.h>\n\
        #define CHECK(c) do { if (!(c)) { fprintf(stderr, \"%s: errno %d\\n\", #c, errno); exit(1); } } while (0)\n\
        int main(int argc, char **argv) { (void)argc; (void)argv; setvbuf(stdout, NULL, _IOLBF, 0);\n";
    std::fs::write(&source, format!("{head}{body}\nputs(\"done\"); return 0; }}\n")).unwrap();
    Command::new(c_program(&source, name))
}

fn c_echo_is_a_worker(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let mut command = Command::new(c_echo(&format!("c-echo-{}", beside as u8)));
    command.arg(primary.address.to_string());
    let mut worker = start(&primary, beside, command);
    let channel = primary.channel();
    for served in 1..=12 {
        let answer = get(primary.client(&channel));
        assert!(
            answer.contains(&format!("\r\n\r\nworker {WORKER_ID}\nGET / HTTP/1.1\r\n")),
            "{answer}"
        );
        assert_eq!(primary.claimed(), served);
    }
    eventually("all are closed", || primary.closed() == 12);
    primary.die(vec![channel]);
    assert_eq!(worker.ended().signal(), Some(libc::SIGTERM));
}

fn a_forked_child_in_c_goes_on(beside: Beside) {
    let primary = Primary::start(Policy::Deal);
    let body = r#"
        int listener = croupier_listen(argv[1], 5);
        CHECK(listener >= 0);
        struct sockaddr_in peer, same;
        socklen_t length = sizeof peer;
        int first = croupier_accept(listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK);
        CHECK(first >= 0 && length == sizeof peer);
        CHECK(getpeername(first, (struct sockaddr *)&same, &length) == 0);
        CHECK(peer.sin_family == AF_INET && peer.sin_port == same.sin_port);
        CHECK(peer.sin_addr.s_addr == same.sin_addr.s_addr);
        CHECK((fcntl(first, F_GETFL) & O_NONBLOCK) && !(fcntl(first, F_GETFD) & FD_CLOEXEC));
        CHECK(write(first, "x", 1) == 1);
        pid_t child = fork();
        if (child == 0) {
            length = 4;
            int second = croupier_accept(listener, (struct sockaddr *)&peer, &length, SOCK_CLOEXEC);
            CHECK(second >= 0 && length == sizeof peer);
            CHECK(!(fcntl(second, F_GETFL) & O_NONBLOCK) && (fcntl(second, F_GETFD) & FD_CLOEXEC));
            CHECK(write(second, "x", 1) == 1);
            CHECK(close(second) == 0);
            _exit(0);
        }
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK(close(first) == 0);
        CHECK(croupier_ready() == 0);
        CHECK(croupier_close(listener) == 0);
        CHECK(croupier_worker_id() == 7 && croupier_slot() == 3 && croupier_generation() == 2);
    "#;
    let mut command = c_inline(&format!("c-fork-{}", beside as u8), body);
    command.arg(primary.address.to_string());
    let worker = start(&primary, beside, command);
    let channel = primary.channel();
    x(&primary.client(&channel));
    x(&primary.client(&channel));
    finishes(worker);
    assert_eq!((primary.claimed(), primary.closed()), (2, 2));
    let lines = primary.page().lines.iter();
    assert_eq!(lines.filter(|line| line.pid.load(Ordering::SeqCst) != 0).count(), 2);
    primary.asked(Kind::Ready);
    primary.asked(Kind::Close);
}

#[test]
fn c_outside_croupier_is_libc() {
    let body = r#"
        CHECK(croupier_listen(NULL, 5) == -1 && errno == EINVAL);
        CHECK(croupier_listen("nonsense", 5) == -1 && errno == EINVAL);
        CHECK(croupier_listen("127.0.0.1:http", 5) == -1 && errno == EINVAL);
        CHECK(croupier_listen("192.0.2.1:0", 5) == -1 && errno == EADDRNOTAVAIL);
        CHECK(croupier_worker_id() == -1 && croupier_slot() == -1 && croupier_generation() == -1);
        CHECK(croupier_ready() == -1 && errno == ENOENT);
        CHECK(croupier_is_draining() == 0);
        CHECK(croupier_draining_fd() == -1 && errno == ENOENT);
        CHECK(croupier_accept(-1, NULL, NULL, 0) == -1 && errno == EBADF);
        int listener = croupier_listen(":0", 5);
        CHECK(listener >= 0 && (fcntl(listener, F_GETFD) & FD_CLOEXEC));
        CHECK(croupier_accept(listener, NULL, NULL, 0x40000000) == -1 && errno == EINVAL);
        CHECK(fcntl(listener, F_SETFL, O_NONBLOCK) == 0);
        CHECK(croupier_accept(listener, NULL, NULL, 0) == -1 && errno == EAGAIN);
        struct sockaddr_in6 own;
        socklen_t length = sizeof own;
        CHECK(getsockname(listener, (struct sockaddr *)&own, &length) == 0);
        int client = socket(AF_INET6, SOCK_STREAM, 0);
        own.sin6_addr = in6addr_loopback;
        if (own.sin6_family == AF_INET6)
            CHECK(connect(client, (struct sockaddr *)&own, length) == 0);
        else
            CHECK(close(client) == 0 && (client = socket(AF_INET, SOCK_STREAM, 0)) >= 0
                && connect(client, (struct sockaddr *)&own, length) == 0);
        CHECK(fcntl(listener, F_SETFL, 0) == 0);
        int accepted = croupier_accept(listener, NULL, NULL, SOCK_CLOEXEC);
        CHECK(accepted >= 0);
        CHECK(croupier_close(listener) == 0);
        CHECK(croupier_close(listener) == -1 && errno == EBADF);
        CHECK(setenv("CROUPIER_CONTROL", "00000000000000000000000000000000@croupier-test/nobody", 1) == 0);
        CHECK(croupier_listen("127.0.0.1:9", 5) == -1 && errno == ECONNREFUSED);
        CHECK((listener = croupier_listen("127.0.0.1:0", 5)) >= 0);
    "#;
    finishes(Worker::start(&mut c_inline("c-outside", body)));
}

#[test]
fn the_library_exports_what_the_header_declares() {
    let folder = everything();
    let library = folder.join("libcroupier_worker.so");
    let listed =
        Command::new("nm").args(["-D", "--defined-only"]).arg(library).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    let mut exported: Vec<_> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .filter(|name| name.starts_with("croupier_"))
        .collect();
    let header = include_str!("../include/croupier.h");
    let mut declared: Vec<_> = header
        .lines()
        .filter_map(|line| line.strip_prefix("int ")?.split_once('('))
        .map(|(name, _)| name)
        .collect();
    exported.sort_unstable();
    declared.sort_unstable();
    assert!(declared.len() > 5, "{declared:?}");
    assert_eq!(exported, declared);
}

/// A worker asks in this order and no other: what the primary and the preload library rely on.
#[test]
fn a_listener_asks_bind_listen_close() {
    let primary = Primary::start(Policy::Deal);
    let worker = player(&primary, Beside::Nothing, "again");
    let mut asked = Vec::new();
    let mut channels = Vec::new();
    while channels.len() < 2 {
        match primary.next() {
            Event::Asked(request) => asked.push(request.kind),
            Event::Opened(channel) => channels.push(channel),
            Event::Posted(_) => panic!("nobody asked for one"),
        }
    }
    x(&primary.client(&channels[1]));
    finishes(worker);
    use Kind::{Bind, Close, Listen};
    assert_eq!(asked, [Bind, Listen, Bind, Close, Bind, Listen]);
    assert_eq!(primary.asked(Close).channel, channels[1].number);
}
