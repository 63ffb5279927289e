//! How workers end, told apart; and ends that come again and again.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Figure, Guard, PATIENCE, cpu_time, figure, find_program, now, record_skip,
    skip, soak, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::one_at_a_time;

/// A server under a shell that sets limits first.
fn limited(limit: &str, port: u16) -> Vec<String> {
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("{limit}; exec {server}");
    ["-w", "1", "--stall-after", "10s", "--", "sh", "-c", &script].map(str::to_owned).into()
}

/// Ends the worker by a signal, by number, and returns how the status names it.
fn end_by(guard: &Guard, croupier: &Croupier<'_>, signal: &str) -> String {
    let victim = croupier.status().slot(0).unwrap().clone();
    let mut shell = guard.command("sh");
    shell.args(["-c", &format!("kill -{signal} {}", victim.pid.unwrap())]);
    guard.finish(shell).expect_code(0);
    croupier.wait_status("the successor", |status| {
        let next = status.slot(0).filter(|worker| worker.id > victim.id);
        next.map(|worker| worker.last_exit.clone().unwrap())
    })
}

/// Whether this machine writes core dumps for who may have them.
fn dumps(guard: &Guard) -> bool {
    let mut shell = guard.command("sh");
    shell.args(["-c", "ulimit -c unlimited; kill -ABRT $$"]);
    shell.stdout(Stdio::null()).stderr(Stdio::null());
    shell.status().unwrap().core_dumped()
}

#[test]
fn exits_signals_and_core_dumps_are_told_apart() {
    let guard = Guard::new("crash-ends");
    let port = guard.port();
    let croupier = guard.run(limited("ulimit -c 0", port)).ready();
    assert_eq!(croupier.status().slot(0).unwrap().last_exit, None, "null if none");
    let first = croupier.status().slot(0).unwrap().id;
    Client::port(port).get("/exit?code=7").unwrap();
    croupier.wait_status("exit 7", |status| {
        let next = status.slot(0).filter(|worker| worker.id > first)?;
        (next.last_exit.as_deref() == Some("exit 7")).then_some(())
    });
    croupier.wait_for_line("worker 1 exited with status 7");
    let ends = [("ABRT", "SIGABRT"), ("KILL", "SIGKILL"), ("TERM", "SIGTERM"), ("40", "signal 40")];
    for (signal, word) in ends {
        assert_eq!(end_by(&guard, &croupier, signal), word);
        croupier.wait_for_line(&format!("was killed by {word}"));
    }
    let table = croupier.ask(&["status"]);
    assert!(table.stdout.contains("LAST EXIT") && table.stdout.contains("signal 40"), "{table:?}");
    // What is asked to end says nothing about the program.
    croupier.ask(&["stop", "0"]).expect_code(0);
    let last = croupier.status().workers.first().unwrap().last_exit.clone();
    assert_eq!(last.as_deref(), Some("signal 40"));
    croupier.stop_well();

    if !dumps(&guard) {
        skip!("crash-core", "this machine writes no core dumps (kernel.core_pattern)");
    }
    let croupier = guard.run(limited("ulimit -c unlimited", port)).ready();
    assert_eq!(end_by(&guard, &croupier, "ABRT"), "SIGABRT (core dumped)");
    croupier.wait_for_line("was killed by SIGABRT and left a core dump");
    croupier.stop_well();
}

/// A slot whose program exits at once, while clients wait: it ends in Failed, costs nothing on the
/// way, and comes back when it is told to. In the small version before it has failed.
#[test]
fn a_crash_loop_is_cheap_and_a_start_ends_it() {
    let guard = Guard::new("crash-loop");
    let port = guard.port();
    let broken = guard.path("broken");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script =
        format!("[ $CROUPIER_SLOT = 1 ] || [ ! -e {} ] || exit 7; exec {server}", broken.display());
    let croupier =
        guard.run(["-w", "2", "--stall-after", "10s", "--", "sh", "-c", &script]).ready();
    fs::write(&broken, "").unwrap();
    let victim = croupier.status().slot(0).unwrap().clone();
    kill(Pid::from_raw(victim.pid.unwrap()), Signal::SIGKILL).unwrap();
    croupier.wait_for_line("slot 0: crash 2 in a row; next start in ");
    // The other worker is busy for as long as it takes, so that all the load waits.
    let client = Client::port(port).patience(Duration::from_secs(300));
    let fifo = guard.fifo("go");
    let held = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("the blocker", |status| (status.open().1 == 1).then_some(()));
    let waiting: Vec<_> = (0..64).map(|_| client.send("/").unwrap()).collect();

    let (until, patience) = if soak() {
        ("slot 0 used up its crash budget", Duration::from_secs(300))
    } else {
        ("slot 0: crash 5 in a row", Duration::from_secs(30))
    };
    let (begun, before) = (now(), cpu_time(croupier.pid()));
    // By its output: to ask for the status would be work, too.
    croupier.stderr().wait_for(until, patience).unwrap();
    let (time, cpu) = (begun.elapsed(), cpu_time(croupier.pid()) - before);
    let crashes = croupier.stderr().count("exited with status 7");
    let share = 100.0 * cpu.as_secs_f64() / time.as_secs_f64();
    if soak() {
        let status = croupier.status();
        let failed = status.workers.iter().find(|worker| worker.slot == 0).unwrap();
        assert_eq!(
            (failed.state.as_str(), failed.last_exit.as_deref()),
            ("failed", Some("exit 7"))
        );
        figure(&Figure {
            item: "replace 5 crash loop, 64 clients waiting",
            measured: format!(
                "{cpu:.1?} of CPU in {time:.1?} = {share:.3} %, {crashes} ends, then failed"
            ),
            goal: "< 1 % of one CPU, ends in Failed",
            met: share < 1.0 && cpu > Duration::ZERO,
        });
    }
    fs::remove_file(&broken).unwrap();
    let start = croupier.ask(&["start", "0"]);
    assert!(start.expect_code(0).stdout.contains("is ready"), "{start:?}");
    for pending in waiting {
        assert_eq!(pending.reply().unwrap().status, 200);
    }
    fs::write(&fifo, "").unwrap();
    assert_eq!(held.reply().unwrap().value("slot="), Some(1));
    croupier.stop_well();
}

/// `croupier run` under another command.
pub(crate) fn under(guard: &Guard, command: &mut Command, words: &[String]) {
    let (program, rest) = words.split_first().unwrap();
    let mut outer = guard.command(program);
    outer.args(rest).arg(command.get_program()).args(command.get_args());
    outer.stdout(Stdio::piped()).stderr(Stdio::piped());
    *command = outer;
}

/// The files of this process's own memory cgroup that count kills and name the limit, v2 or v1.
fn own_cgroup() -> Option<[PathBuf; 2]> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = path.trim_start_matches('/');
        let (mounts, files): (&[&str], _) = match controllers {
            "" => (&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], ["memory.events", "memory.max"]),
            "memory" => {
                (&["/sys/fs/cgroup/memory"], ["memory.oom_control", "memory.limit_in_bytes"])
            }
            _ => return None,
        };
        let folders = mounts.iter().map(|mount| Path::new(mount).join(path));
        let found = folders.map(|folder| files.map(|file| folder.join(file)));
        found.into_iter().find(|files| files.iter().all(|file| file.exists()))
    })
}

/// What the counter of the cgroup says is made up, in a mount namespace of the test's own: so each
/// order of counting and killing can be had, on any machine.
#[test]
fn a_kill_that_the_kernel_counted_is_an_oom_kill_and_no_other_is() {
    let guard = Guard::new("crash-counted");
    let Some([kills, limit]) = own_cgroup() else {
        skip!("crash-counted", "this process is in no memory cgroup");
    };
    let made_up = guard.write("kills", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
    let made_up_limit = guard.write("limit", "67108864\n");
    let script = format!(
        "mount --bind {} {} && mount --bind {} {} && exec \"$@\"",
        made_up.display(),
        kills.display(),
        made_up_limit.display(),
        limit.display()
    );
    let words = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", &script, "sh"];
    let words = words.map(str::to_owned);
    let mut trial = guard.command("true");
    under(&guard, &mut trial, &words);
    if find_program("unshare").is_none() || guard.finish(trial).code != Some(0) {
        skip!("crash-counted", "no right to a mount namespace");
    }
    let port = guard.port();
    let count = |kills: u64| {
        fs::write(&made_up, format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"))
            .unwrap();
    };
    let args = limited(":", port);
    let croupier = guard.run_with(args, |command| under(&guard, command, &words)).ready();
    assert_eq!(end_by(&guard, &croupier, "KILL"), "SIGKILL", "nothing was counted");
    count(4);
    assert_eq!(end_by(&guard, &croupier, "KILL"), "OOM kill");
    let line = croupier.wait_for_line("was killed for lack of memory (OOM)");
    assert!(line.contains("its cgroup may use 64 MiB"), "{line}");
    assert!(
        line.contains(": give it more, run fewer workers (-w), or find out what they"),
        "{line}"
    );
    assert_eq!(end_by(&guard, &croupier, "KILL"), "SIGKILL", "it was counted for the last one");
    count(5);
    assert_eq!(end_by(&guard, &croupier, "TERM"), "SIGTERM", "the kernel kills with KILL");
    croupier.stop_well();
}

/// A server that takes all the memory it can get when asked to.
const HUNGRY: &str = r#"
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = server.accept()
    request = client.recv(4096).split()
    if request[1] == b"/eat":
        eaten = []
        while True:
            eaten.append(bytearray(b"x") * (1 << 20))
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    client.close()
"#;

/// A cgroup with a limit, removed when it is dropped.
struct Cell {
    folder: PathBuf,
}

impl Cell {
    /// Below the cgroup of this process, or below the folder that `CROUPIER_TEST_CGROUP` names.
    fn new(guard: &Guard, limit: &str) -> Result<Self, String> {
        let named = std::env::var_os("CROUPIER_TEST_CGROUP").map(PathBuf::from);
        let own = || own_cgroup()?.first()?.parent().map(Path::to_owned);
        // The root of v2 has neither file.
        let parent = named.or_else(own).unwrap_or_else(|| PathBuf::from("/sys/fs/cgroup"));
        let v1 = parent.join("memory.limit_in_bytes").exists();
        let control = parent.join("cgroup.subtree_control");
        let passed_on = |text: String| text.split_whitespace().any(|name| name == "memory");
        let enabled = || fs::read_to_string(&control).is_ok_and(passed_on);
        // Only a cgroup without processes, or the root, may pass a controller on (cgroups(7)).
        let enable = || {
            // Never made: in a folder that is no cgroup it would be an ordinary file.
            let file = fs::OpenOptions::new().write(true).open(&control);
            file.and_then(|mut file| file.write_all(b"+memory"))
        };
        if !v1 && !enabled() && (enable().is_err() || !enabled()) {
            return Err(format!(
                "{} passes no memory controller on; CROUPIER_TEST_CGROUP may name a cgroup that does",
                parent.display()
            ));
        }
        let folder = parent.join(format!("croupier-test-{}-{}", guard.name(), std::process::id()));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let cell = Self { folder };
        let file = if v1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(cell.folder.join(file), limit).map_err(|error| format!("{file}: {error}"))?;
        // Where there is swap, memory ends later.
        let swap = if v1 { "memory.swappiness" } else { "memory.swap.max" };
        drop(fs::write(cell.folder.join(swap), "0"));
        Ok(cell)
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        wait_until(PATIENCE, "the cgroup to be empty", || {
            fs::remove_dir(&self.folder).map_err(|error| error.to_string())
        });
    }
}

#[test]
fn an_oom_kill_in_a_cgroup_is_named_as_such() {
    let guard = Guard::new("crash-oom");
    let cell = match Cell::new(&guard, "100663296") {
        Ok(cell) => cell,
        Err(why) => return record_skip("crash-oom", &why),
    };
    let port = guard.port();
    let program = guard.write("hungry.py", HUNGRY).into_os_string().into_string().unwrap();
    let port_text = port.to_string();
    let args = ["-w", "2", "--stall-after", "10s", "--", "python3", &program, &port_text];
    let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", cell.folder.display());
    let words = ["sh", "-c", &enter, "sh"].map(str::to_owned);
    let croupier = guard.run_with(args, |command| under(&guard, command, &words)).ready();
    let before = croupier.status();
    assert!(Client::port(port).get("/eat").is_err(), "what it had in its hands ends with it");
    let killed = croupier.wait_status("the successor", |status| {
        let new = |worker: &&croupier_tests::WorkerStatus| {
            before.workers.iter().all(|old| old.id != worker.id)
        };
        status.ready().find(new).cloned()
    });
    let line = croupier.wait_for_line("was killed for lack of memory (OOM)");
    let named = killed.last_exit.as_deref() == Some("OOM kill");
    figure(&Figure {
        item: "replace 5 OOM kill in a cgroup",
        measured: format!("last_exit {:?}; log: {line}", killed.last_exit),
        goal: "named as an OOM kill, with the limit",
        met: named && line.contains("its cgroup may use 96 MiB"),
    });
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    croupier.stop_well();
    drop(cell);
}
