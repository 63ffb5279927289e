//! `croupier doctor` on this machine, and on machines that lack something.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;

use croupier_tests::{Finished, Guard, croupier, find_program, fixture, skip};

use crate::cells::CpuCell;

/// One line of the table: its level, and all that is said.
fn finding(ended: &Finished, check: &str) -> (String, String) {
    let about = |line: &&str| line.get(6..).is_some_and(|rest| rest.starts_with(check));
    let line = ended.stdout.lines().find(about).unwrap();
    (line.get(..4).unwrap().trim().to_owned(), line.to_owned())
}

#[test]
fn a_machine_on_which_tests_run_is_well() {
    let guard = Guard::new("doctor-well");
    let port = guard.port();
    let listen = format!("127.0.0.1:{port}");
    let ended = guard.croupier(["doctor", "-l", &listen, "-l", "unix:app.sock"]);
    ended.expect_code(0);
    assert!(!ended.stdout.contains("fail"), "{}", ended.stdout);
    for check in
        ["kernel", "preload", "control socket", &format!("-l {listen}"), "-l unix:app.sock"]
    {
        assert_eq!(finding(&ended, check).0, "ok", "{}", ended.stdout);
    }
    assert!(finding(&ended, "preload").1.ends_with("libcroupier_preload.so loads"));
    assert!(finding(&ended, "control socket").1.contains(guard.path("run").to_str().unwrap()));
    // It has only looked: the address is as free as before, and no file is there.
    drop(TcpListener::bind(("127.0.0.1", port)).unwrap());
    assert!(!guard.path("app.sock").exists());

    let json = guard.croupier(["doctor", "--json"]);
    json.expect_code(0);
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&report["schema"], &report["ok"]), (&1.into(), &true.into()));
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.len() >= 10, "{report}");
    for finding in findings {
        assert!(["ok", "warn"].contains(&finding["level"].as_str().unwrap()), "{finding}");
        assert_eq!(finding["level"] == "ok", finding["advice"].is_null(), "{finding}");
    }
}

#[test]
fn what_fails_is_named_with_what_to_do() {
    let guard = Guard::new("doctor-fails");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let ended = guard.croupier(["doctor", "--listen", &listen]);
    ended.expect_code(1);
    let (level, line) = finding(&ended, &format!("-l {listen}"));
    assert!(level == "fail" && line.contains("it is in use by"), "{line}");
    assert!(ended.stdout.contains("\u{2192} croupier run will end with this"), "{}", ended.stdout);

    let missing = guard.path("nowhere");
    let ended = guard.croupier(["doctor", "--preload-path", missing.to_str().unwrap()]);
    ended.expect_code(1);
    let (level, line) = finding(&ended, "preload");
    assert!(level == "fail" && line.contains(missing.to_str().unwrap()), "{line}");
    let advice =
        "without it only --adapter shim, fd and listen-fds work; make install puts it beside";
    assert!(ended.stdout.contains(advice), "{}", ended.stdout);
    guard.croupier(["doctor", "-l", "nonsense"]).expect_code(2);
}

#[test]
fn a_low_limit_of_open_files_is_a_warning() {
    let guard = Guard::new("doctor-files");
    let mut command = guard.command("sh");
    command.args(["-c", "ulimit -n 150; exec \"$0\" doctor"]).arg(croupier());
    let ended = guard.finish(command);
    ended.expect_code(0);
    let (level, line) = finding(&ended, "open files");
    assert!(
        level == "warn" && line.contains("limit 150 (soft 150, which workers keep); "),
        "{line}"
    );
    assert!(ended.stdout.contains("raise it: ulimit -Hn, LimitNOFILE="), "{}", ended.stdout);
}

/// What the user runs already counts, thread by thread, and the limit is what is left of it.
#[test]
fn what_the_user_runs_is_taken_from_its_limit_of_processes() {
    const SOURCE: &str = "
import resource, subprocess, sys, threading
resource.setrlimit(resource.RLIMIT_NPROC, (60, 60))
for _ in range(4):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
subprocess.run([sys.argv[1], 'doctor'])
";
    let guard = Guard::new("doctor-tasks");
    if !nix::unistd::geteuid().is_root() {
        skip!("doctor-tasks", "only root can become somebody who runs nothing yet");
    }
    let copy = guard.open_copy(&croupier());
    let mut command = guard.command("/usr/bin/python3");
    command.args(["-c", SOURCE]).arg(copy).uid(64_914).gid(64_914);
    let ended = guard.finish(command);
    // Root's XDG_RUNTIME_DIR is not its; what it would get is said, and not made: the guard counts.
    assert!(
        finding(&ended, "control socket").1.contains("/tmp/croupier-64914"),
        "{}",
        ended.stdout
    );
    let (_, line) = finding(&ended, "processes");
    // Five of python's, and doctor itself.
    let room = "room for 54 processes and threads by RLIMIT_NPROC of the user";
    assert!(line.contains(room), "{line}");
}

/// A machine whose cat is of another kind than the library: so nothing is learned from it.
#[test]
fn a_machine_without_a_program_that_could_load_the_library() {
    const SCRIPT: &str = r#"
for cat in /usr/bin/cat /bin/cat; do mount --bind "$1" "$(readlink -f $cat)" || exit 99; done
exec "$2" doctor
"#;
    let guard = Guard::new("doctor-cat");
    let source = guard.write("cat.c", "int main(void) { return 0; }");
    let program = fixture(&source, &guard.path("cat"), &["-static"]);
    let mut command = guard.command("unshare");
    command.args(["-m", "sh", "-c", SCRIPT, "sh"]).arg(program).arg(croupier());
    let ended = guard.finish(command);
    if !nix::unistd::geteuid().is_root() || ended.code == Some(99) {
        skip!("doctor-cat", "no right to a mount namespace");
    }
    let (level, line) = finding(&ended, "preload");
    let why = "is there; no program here can load it: cat is static or of another libc";
    assert!(level == "warn" && line.contains(why), "{}", ended.stdout);
}

/// A container whose seccomp profile does not know memfd_create(2).
#[test]
fn a_system_call_that_is_forbidden_is_named() {
    const SOURCE: &str = r#"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_create, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    if (argc < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
        return 99;
    execv(argv[1], argv + 1);
    return 98;
}
"#;
    let guard = Guard::new("doctor-seccomp");
    let confine = fixture(&guard.write("confine.c", SOURCE), &guard.path("confine"), &[]);
    let confined = |words: &[&str]| {
        let mut command = guard.command(&confine);
        command.arg(croupier()).args(words);
        guard.finish(command)
    };
    let ended = confined(&["doctor"]);
    if ended.code == Some(99) {
        skip!("doctor-seccomp", "no right to set a seccomp filter");
    }
    ended.expect_code(1);
    let (level, line) = finding(&ended, "kernel");
    assert!(level == "fail" && line.contains("cannot seal shared memory"), "{line}");
    assert!(
        finding(&ended, "confinement").1.contains("a seccomp filter is on"),
        "{}",
        ended.stdout
    );
    let advice = "Linux 5.10 or later can; in a container look at its seccomp profile";
    assert!(ended.stdout.contains(advice), "{}", ended.stdout);
    // A start says the same, and does not try.
    let ended = confined(&["run", "-w", "1", "sh", "-c", "exit"]);
    ended.expect_code(1).expect_error(&[
        "this kernel cannot seal shared memory (memfd_create): ",
        "; croupier needs Linux 5.10 or later",
    ]);
}

/// A machine that has no program which could load the library: of another libc, or all static.
#[test]
fn where_nothing_can_load_the_library_that_is_a_warning() {
    let guard = Guard::new("doctor-static");
    let Some(unshare) = find_program("unshare") else {
        skip!("doctor-static", "unshare is not installed")
    };
    let source = guard.write("cat.c", "int main(void) { return 0; }");
    let cat = fixture(&source, &guard.path("cat"), &["-static"]);
    // Where /bin is a link to /usr/bin the second covers the first.
    let script = "for cat in /bin/cat /usr/bin/cat; do \
                  mount --bind \"$1\" $cat || exit 99; done; exec \"$0\" doctor";
    let mut command = guard.command(unshare);
    command.args(["-m", "sh", "-c", script]).arg(croupier()).arg(cat);
    let ended = guard.finish(command);
    if ended.code == Some(99) || ended.stderr.contains("unshare") {
        skip!("doctor-static", "no right to a mount namespace");
    }
    ended.expect_code(0);
    let (level, line) = finding(&ended, "preload");
    assert!(level == "warn" && line.contains("no program here can load it"), "{line}");
}

/// /tmp and /run are somebody else's.
#[test]
fn no_place_for_the_control_socket_is_a_warning() {
    let guard = Guard::new("doctor-control");
    let Some(unshare) = find_program("unshare") else {
        skip!("doctor-control", "unshare is not installed")
    };
    // The checkout may be somewhere in /tmp: its programs are reached by another way.
    let script = "mount --bind \"$(dirname \"$0\")\" /mnt && mount -t tmpfs -o ro none /tmp \
                  && mount -t tmpfs -o ro none /run || exit 99; \
                  unset XDG_RUNTIME_DIR; exec /mnt/croupier doctor";
    let mut command = guard.command(unshare);
    command.current_dir("/").args(["-m", "sh", "-c", script]).arg(croupier());
    let ended = guard.finish(command);
    if ended.code == Some(99) || ended.stderr.contains("unshare") {
        skip!("doctor-control", "no right to a mount namespace");
    }
    ended.expect_code(0);
    let (level, line) = finding(&ended, "control socket");
    assert!(level == "warn" && line.contains("set XDG_RUNTIME_DIR or --control"), "{line}");
    let advice = "croupier runs without it, but status, stop, reload and logs will not find it";
    assert!(ended.stdout.contains(advice), "{}", ended.stdout);
}

#[test]
fn a_part_of_a_cpu_is_a_warning() {
    let guard = Guard::new("doctor-quota");
    let cell = match CpuCell::new(&guard, 50) {
        Ok(cell) => cell,
        Err(why) => skip!("doctor-quota", "{why}"),
    };
    let mut command = guard.command("sh");
    command.args(["-c", &format!("{} && exec \"$0\" doctor", cell.enter())]).arg(croupier());
    let ended = guard.finish(command);
    ended.expect_code(0);
    let (level, line) = finding(&ended, "CPUs");
    assert!(level == "warn" && line.contains("quota 0.50 CPUs: -w auto starts 1"), "{line}");
    let advice =
        "the cgroup stops everything for a part of each 100 ms, and clients wait that long";
    assert!(ended.stdout.contains(advice), "{}", ended.stdout);
}
