//! What croupier says when it cannot do what was asked: each message names what, on what, and what
//! to do. And which exit status goes with it.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use croupier_tests::{Finished, Guard, fixture, preload, skip};

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
        .expect_error(&[&address, "in use", &own_pid, "system"]);
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
    std::fs::set_permissions(guard.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    // The build folder may be root's alone: nobody runs a copy.
    let copy = guard.path("croupier");
    std::fs::copy(croupier_tests::croupier(), &copy).unwrap();
    std::fs::copy(preload(), guard.path("libcroupier_preload.so")).unwrap();
    let mut command = guard.command(copy);
    command.args(["run", "-l", ":81", "tail", "-f", "/dev/null"]).uid(65534).gid(65534);
    guard.finish(command).expect_code(1).expect_error(&[":81", "below 1024", "root", "--user"]);
}

#[test]
fn a_missing_preload_library_is_named() {
    let guard = Guard::new("trouble-preload");
    run_to_end(&guard, &["--preload-path", "/no/such/lib.so", "tail", "-f", "/dev/null"])
        .expect_code(1)
        .expect_error(&["/no/such/lib.so", "--preload-path"]);
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
        .expect_error(&[path, "nobody"]);
}

#[test]
fn workers_that_die_at_once_end_it_with_their_last_lines() {
    let guard = Guard::new("trouble-dies");
    let ended = run_to_end(&guard, &["-w", "1", "sh", "-c", "echo reason of $$ >&2; exit 3"]);
    ended.expect_code(1).expect_error(&["reason of", "3"]);
    let starts = ended.stderr.lines().filter(|line| line.contains("[w0] reason of")).count();
    assert_eq!(starts, 3, "three tries: {}", ended.stderr);
}

#[test]
fn a_program_that_never_listens_is_told_so() {
    let guard = Guard::new("trouble-never");
    run_to_end(&guard, &["-w", "1", "--ready-timeout", "300ms", "tail", "-f", "/dev/null"])
        .expect_code(1)
        .expect_error(&["never", "listen", "tail"]);
}

#[test]
fn a_program_that_goes_into_the_background_is_told_so() {
    let guard = Guard::new("trouble-background");
    let port = guard.port();
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("{server} & exit 0");
    run_to_end(&guard, &["-w", "1", "--ready-timeout", "1s", "sh", "-c", &script])
        .expect_code(1)
        .expect_error(&["background"]);
}

#[test]
fn another_address_than_the_declared_one_is_named() {
    let guard = Guard::new("trouble-elsewhere");
    let (declared, own) = (guard.port(), guard.port());
    let listen = format!("127.0.0.1:{declared}");
    let server = one_at_a_time(own);
    let server: Vec<&str> = server.iter().map(|word| word.to_str().unwrap()).collect();
    let mut words = vec!["-w", "1", "-l", &listen, "--ready-timeout", "500ms", "--"];
    words.extend(server);
    run_to_end(&guard, &words).expect_code(1).expect_error(&["no -l names", &format!(":{own}")]);
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
    run_to_end(&guard, &["-w", "1", program.to_str().unwrap(), &port])
        .expect_code(1)
        .expect_error(&["static", "--adapter listen-fds"]);
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
        .expect_error(&["setuid", "--adapter listen-fds"]);
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
        .expect_error(&["Go", "--adapter listen-fds"]);
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
        &format!("127.0.0.1:{port}"),
        "in use",
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
