//! How workers' processes are looked after, and what the primary leaves and waits for.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use croupier_tests::{
    Client, Croupier, Guard, PATIENCE, children_of, descriptors, find_program, hammer,
    line_of_status, preload, skip, state_of, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

use crate::programs::one_at_a_time;

/// A worker that never listens and does nothing.
const IDLE: [&str; 4] = ["--ready", "start", "sleep", "infinity"];

fn idle<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [flags, &IDLE].concat()
}

/// A worker that says something of itself, by a shell, and then does nothing.
fn saying<'a>(flags: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [flags, &["--ready", "start", "sh", "-c", script]].concat()
}

/// Makes `command` what `launcher` executes in the end: its last arguments.
pub(crate) fn under(guard: &Guard, command: &mut Command, launcher: &[&str]) {
    let (name, args) = launcher.split_first().unwrap();
    let mut outer = guard.command(name);
    outer.args(args).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    *command = outer;
}

fn pid_of(croupier: &Croupier<'_>, slot: u16) -> i32 {
    croupier.status().slot(slot).and_then(|worker| worker.pid).unwrap()
}

#[test]
fn a_worker_has_stdio_and_nothing_that_others_opened() {
    let guard = Guard::new("care-fds");
    let file = fs::File::open("/etc/passwd").unwrap();
    // dup(2) clears close-on-exec: the primary inherits it.
    let left_open = nix::unistd::dup(&file).unwrap();
    let croupier = guard.run(idle(&["-w", "2", "-l", "127.0.0.1:0"])).ready();
    drop(left_open);
    let has_it = |pid: i32| {
        let all = descriptors(u32::try_from(pid).unwrap());
        all.values().any(|path| path == Path::new("/etc/passwd"))
    };
    assert!(has_it(croupier.pid()), "the primary was started with it");
    for slot in 0..2 {
        let all = descriptors(u32::try_from(pid_of(&croupier, slot)).unwrap());
        let numbers: Vec<i32> = all.keys().copied().collect();
        assert_eq!(numbers, [0, 1, 2], "{all:?}");
        assert_eq!(all[&0], Path::new("/dev/null"));
        assert!(all[&1].to_str().unwrap().starts_with("pipe:"), "{all:?}");
    }
    croupier.stop_well();
}

/// What workers that serve have open is their own: no socket and no pipe is in two of them.
#[test]
fn workers_that_serve_share_no_socket() {
    let guard = Guard::new("care-sockets");
    let port = guard.port();
    let mut args: Vec<std::ffi::OsString> = vec!["-w".into(), "3".into(), "--".into()];
    args.extend(one_at_a_time(port));
    let croupier = guard.run(args).ready();
    let mut seen: Vec<String> = Vec::new();
    for slot in 0..3 {
        let all = descriptors(u32::try_from(pid_of(&croupier, slot)).unwrap());
        let own = all.values().map(|path| path.to_string_lossy().into_owned());
        let own: Vec<String> =
            own.filter(|name| name.starts_with("socket:") || name.starts_with("pipe:")).collect();
        assert!(own.len() >= 3, "stdout, stderr and a channel at least: {all:?}");
        for name in own {
            assert!(!seen.contains(&name), "{name} is in two workers");
            seen.push(name);
        }
    }
    croupier.stop_well();
}

/// A parent that blocks and ignores signals, as supervisors, shells in the background and nohup do.
const DEAF: &str = "
import os, signal, sys
ignored = [signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, signal.SIGRTMIN + 3]
for one in ignored:
    signal.signal(one, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn signals_are_as_if_nobody_had_touched_them() {
    let guard = Guard::new("care-signals");
    let croupier = guard.run_with(idle(&["-w", "1"]), |command| {
        under(&guard, command, &["python3", "-c", DEAF]);
    });
    let croupier = croupier.ready();
    let worker = pid_of(&croupier, 0);
    for field in ["SigBlk", "SigIgn", "SigCgt"] {
        let mask = line_of_status(worker, field).unwrap();
        let mask = u64::from_str_radix(&mask, 16).unwrap();
        // 32 and 33 are libc's own, and no program can touch them.
        assert_eq!(mask & !(0b11 << 31), 0, "{field} of the worker: {mask:x}");
    }
    let own = getpgid(Some(Pid::from_raw(worker))).unwrap();
    assert_eq!(own, Pid::from_raw(worker), "a process group of its own");
    // CHLD was ignored and TERM was blocked, and both are heard.
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    croupier.wait_status("the next worker", |status| {
        status.slot(0).filter(|next| next.pid != Some(worker)).map(|_| ())
    });
    croupier.stop_well();
}

#[test]
fn workers_start_where_the_link_leads_now() {
    let guard = Guard::new("care-chdir");
    for version in ["one", "two"] {
        let script = format!("#!/bin/sh\necho {version} in $(pwd -P)\nexec sleep infinity\n");
        let path = guard.write(&format!("{version}/server"), &script);
        let mut mode = fs::metadata(&path).unwrap().permissions();
        mode.set_mode(0o755);
        fs::set_permissions(&path, mode).unwrap();
    }
    let current = guard.path("current");
    symlink("one", &current).unwrap();
    let flags = ["-w", "1", "--soak", "0", "--chdir", "current", "--ready", "start", "./server"];
    let croupier = guard.run(flags);
    croupier.wait_for_line(&format!("one in {}", guard.path("one").display()));
    let croupier = croupier.ready();
    fs::remove_file(&current).unwrap();
    symlink("two", &current).unwrap();
    croupier.ask(&["reload"]).expect_code(0);
    croupier.wait_for_line(&format!("two in {}", guard.path("two").display()));
    // A deployment that is not there: the old worker stays, and it is said what was missing.
    fs::remove_file(&current).unwrap();
    let failed = croupier.ask(&["reload"]);
    let named = format!("--chdir {}", current.display());
    failed.expect_code(1).expect_error(&[&named, "slot 0 cannot be started: "]);
    assert_eq!(croupier.status().ready().count(), 1);
    // The same for one slot alone, and for one that is started by hand.
    let failed = croupier.ask(&["restart", "0"]);
    let kept = "which was to take over, cannot be started; the old one stays";
    failed.expect_code(1).expect_error(&[kept]);
    croupier.ask(&["stop", "0"]).expect_code(0);
    let failed = croupier.ask(&["start", "0"]);
    failed.expect_code(1).expect_error(&[" cannot be started: ", &named]);
    croupier.stop_well();
}

#[test]
fn variables_come_from_files_and_flags_win() {
    let guard = Guard::new("care-env");
    guard.write("one.env", "# of the deployment\nA=1\nexport B='two words $5'\nC=from-one\n");
    guard.write("two.env", "C=from-two\nD=from-two\n");
    let files = ["--env-file", "one.env", "--env-file", "two.env", "--env", "D=flag", "-w", "1"];
    let script = "echo \"A=$A B=$B C=$C D=$D slot=$CROUPIER_SLOT\"; exec sleep infinity";
    let croupier = guard.run_with(saying(&files, script), |command| {
        command.env("A", "inherited");
    });
    croupier.wait_for_line("A=1 B=two words $5 C=from-two D=flag slot=0");
    croupier.ready().stop_well();
    guard.write("bad.env", "A=1\nPASSWORD=pa$word\n");
    let refused = guard.croupier(["run", "--env-file", "bad.env", "true"]);
    refused.expect_code(2).expect_error(&["--env-file bad.env: line 2: a $ stands for itself"]);
    assert!(!refused.stderr.contains("pa$word"), "{refused:?}");
}

/// Also where no config file is, and where the variables' file was empty at first.
#[test]
fn a_reload_reads_variables_again_and_what_is_wrong_changes_nothing() {
    let guard = Guard::new("care-env-reload");
    guard.write("app.env", "# nothing yet\n");
    let script = "echo \"A=$A of $CROUPIER_GENERATION\"; exec sleep infinity";
    let flags = ["--env-file", "app.env", "-w", "1", "--soak", "50ms"];
    let croupier = guard.run(saying(&flags, script)).ready();
    croupier.wait_for_line("A= of 1");
    guard.write("app.env", "A=two\n");
    let reload = croupier.ask(&["reload"]);
    let said = &reload.expect_code(0).stdout;
    let lines: Vec<&str> = said.lines().take(2).collect();
    assert_eq!(lines, ["generation 2 begins", "the variables of app.env have changed"], "{said}");
    croupier.wait_for_line("A=two of 2");
    guard.write("app.env", "A=three\nPASSWORD=pa$word\n");
    let wrong = "--env-file app.env: line 2: a $ stands for itself";
    let refused = croupier.ask(&["reload"]);
    refused.expect_code(1).expect_error(&["no reload, and nothing is changed", wrong]);
    croupier.signal(Signal::SIGHUP);
    croupier.wait_for_line(wrong);
    fs::remove_file(guard.path("app.env")).unwrap();
    let refused = croupier.ask(&["reload"]);
    refused.expect_code(1).expect_error(&["--env-file app.env: No such file"]);
    let status = croupier.status();
    assert_eq!(status.slot(0).unwrap().generation, Some(2), "{status:?}");
    assert!(!croupier.stderr().text().contains("pa$word"));
    guard.write("app.env", "A=three\n");
    croupier.ask(&["reload"]).expect_code(0);
    croupier.wait_for_line("A=three of 3");
    croupier.stop_well();
}

#[test]
fn the_mask_is_the_workers_alone() {
    let guard = Guard::new("care-umask");
    let pid_file = guard.path("c.pid");
    let flags = ["-w", "1", "--umask", "0077", "--pid-file", pid_file.to_str().unwrap()];
    let croupier = guard.run(saying(&flags, "echo mask $(umask); exec sleep infinity"));
    croupier.wait_for_line("mask 0077");
    let croupier = croupier.ready();
    assert_eq!(line_of_status(pid_of(&croupier, 0), "Umask").as_deref(), Some("0077"));
    let primary = line_of_status(croupier.pid(), "Umask");
    assert_eq!(primary, line_of_status(i32::try_from(std::process::id()).unwrap(), "Umask"));
    croupier.stop_well();
}

#[test]
fn another_user_brings_its_groups_and_none_of_roots() {
    let guard = Guard::new("care-groups");
    if !nix::unistd::geteuid().is_root() {
        skip!("care-groups", "only root may become somebody else");
    }
    let groups = |name: &str| {
        let mut command = guard.command("id");
        command.args(["-G", name]);
        guard.finish(command).stdout.trim().to_owned()
    };
    // Somebody with more than one group, if there is one; else it is at least not root's.
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let users = users.lines().filter_map(|line| line.split(':').next());
    let user =
        users.max_by_key(|name| groups(name).split(' ').count() * usize::from(*name != "root"));
    let user = user.unwrap();
    let expected = format!("groups {} home /", groups(user));
    let script = "echo groups $(id -G) home $HOME user $USER; exec sleep infinity";
    let library = guard.open_copy(&preload());
    let flags = ["-w", "1", "--user", user, "--preload-path", library.to_str().unwrap()];
    let croupier = guard.run(saying(&flags, script));
    let line = croupier.wait_for_line(&expected);
    assert!(line.ends_with(&format!("user {user}")), "{line}");
    croupier.ready().stop_well();
}

#[test]
fn a_program_that_the_user_may_not_execute_says_what_is_in_the_way() {
    let guard = Guard::new("care-closed");
    if !nix::unistd::geteuid().is_root() {
        skip!("care-closed", "only root may become somebody else");
    }
    let script = guard.write("closed/server", "#!/bin/sh\nexec sleep infinity\n");
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let library = guard.open_copy(&preload());
    mode(&script, 0o755);
    mode(&guard.path("closed"), 0o700);
    let library = ["--preload-path", library.to_str().unwrap()];
    let program = ["--ready", "start", script.to_str().unwrap()];
    let flags = [&["--user", "nobody"][..], &library, &program].concat();
    let closed = format!("user nobody may not pass {}", guard.path("closed").display());
    let ended = guard.run(flags).finished(PATIENCE);
    ended
        .expect_code(1)
        .expect_error(&[&closed, "; open it, or put the program where that user can"]);
    ended.expect_error(&["cannot start worker 1 of ", "; it cannot be started: "]);
}

#[test]
fn a_pid_file_says_who_runs_and_goes_with_it() {
    let guard = Guard::new("care-pidfile");
    let path = guard.path("c.pid");
    let text = path.to_str().unwrap();
    // What somebody left who is dead; its number is that of somebody who lives.
    fs::write(&path, "1\n").unwrap();
    let first = guard.run(idle(&["-w", "1", "--pid-file", text])).ready();
    let says = || fs::read_to_string(&path).unwrap();
    assert_eq!(says(), format!("{}\n", first.pid()));
    let second = guard.run(idle(&["-w", "1", "--pid-file", text])).finished(PATIENCE);
    let live = format!("--pid-file {text}: croupier (pid {}) runs with it", first.pid());
    second
        .expect_code(1)
        .expect_error(&[&live, " runs with it; stop that one first, or choose another"]);
    assert_eq!(says(), format!("{}\n", first.pid()));
    // It dies without a word, and the next one does not mind.
    let dead = first.pid();
    first.signal(Signal::SIGKILL);
    first.finished(PATIENCE);
    assert_eq!(says(), format!("{dead}\n"));
    let third = guard.run(idle(&["-w", "1", "--pid-file", text])).ready();
    assert_eq!(says(), format!("{}\n", third.pid()));
    third.wait_for_line(&format!("process {dead} left it behind; taken over"));
    third.stop_well();
    assert!(!path.exists());
    fs::write(&path, "my notes\n").unwrap();
    let refused = guard.run(idle(&["-w", "1", "--pid-file", text])).finished(PATIENCE);
    refused.expect_code(1).expect_error(&["it is no PID file and is left alone"]);
    let nowhere = ["run", "--pid-file", "/no/such/folder/pid", "tail", "-f", "/dev/null"];
    guard.croupier(nowhere).expect_code(1).expect_error(&[
        "--pid-file /no/such/folder/pid: No such file or directory",
        "; its folder must exist, and croupier may write there",
    ]);
    assert_eq!(says(), "my notes\n");
}

#[test]
fn a_delayed_stop_serves_on_and_says_that_it_will_go() {
    let guard = Guard::new("care-delay");
    let port = guard.port();
    let mut args: Vec<std::ffi::OsString> =
        ["-w", "2", "--stop-delay", "10m", "--"].iter().map(Into::into).collect();
    args.extend(one_at_a_time(port));
    let croupier = guard.run(args).ready();
    croupier.ask(&["status", "--check"]).expect_code(0);
    croupier.signal(Signal::SIGTERM);
    croupier.wait_for_line("stopping in 600s");
    let check = croupier.ask(&["status", "--check"]);
    check.expect_code(1);
    assert!(check.stdout.contains("2 of 2 ready, stopping"), "{check:?}");
    croupier.ask(&["wait", "ready", "--timeout", "10s"]).expect_code(1).expect_error(&["stopping"]);
    // It serves, and whoever dies is replaced.
    let client = Client::port(port);
    let victim = pid_of(&croupier, 0);
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    croupier.wait_status("the next worker of slot 0", |status| {
        assert!(status.stopping);
        status.slot(0).filter(|next| next.pid != Some(victim)).map(|_| ())
    });
    for _ in 0..4 {
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    // The second one ends the wait, and it is the graceful stop.
    let fifo = guard.fifo("go");
    let held = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("the blocker", |status| (status.open().1 == 1).then_some(()));
    croupier.signal(Signal::SIGTERM);
    wait_until(PATIENCE, "the listener to close", || match client.open() {
        Err(_) => Ok(()),
        Ok(_) => Err("it still listens"),
    });
    fs::write(&fifo, "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    croupier.finished(PATIENCE).expect_code(0);
}

#[test]
fn a_delayed_stop_comes_by_itself_and_by_two_interrupts() {
    let guard = Guard::new("care-delay-end");
    let croupier = guard.run(idle(&["-w", "1", "--stop-delay", "300ms"])).ready();
    croupier.ask(&["stop"]).expect_code(0);
    let ended = croupier.finished(PATIENCE);
    ended.expect_code(0).expect_error(&["stopping in 300ms (asked by croupier stop)"]);
    ended.expect_error(&["--stop-delay is over"]);
    let croupier = guard.run(idle(&["-w", "1", "--stop-delay", "10m"])).ready();
    croupier.signal(Signal::SIGINT);
    croupier.wait_for_line("Ctrl-C again to drain now");
    croupier.signal(Signal::SIGINT);
    croupier.wait_for_line("Ctrl-C again to stop at once");
    croupier.finished(PATIENCE).expect_code(0);
    let croupier = guard.run(idle(&["-w", "1", "--stop-delay", "10m"])).ready();
    croupier.signal(Signal::SIGTERM);
    croupier.wait_for_line("stopping in 600s");
    croupier.ask(&["stop", "--now"]).expect_code(0);
    croupier.finished(PATIENCE).expect_code(0);
}

#[test]
fn a_report_comes_again_and_again() {
    let guard = Guard::new("care-report");
    let croupier = guard.run(idle(&["-w", "2", "--report", "1s"])).ready();
    croupier.wait_for_line("health: 2 of 2 workers ready, 0 late; load: ");
    let worker = pid_of(&croupier, 1);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    let line = croupier.wait_for_line("; 1 restart");
    assert!(line.contains("; rss ") && line.contains("0 accepted, 0.0/s"), "{line}");
    croupier.stop_well();
}

#[test]
fn no_more_workers_than_the_memory_has_room_for() {
    let guard = Guard::new("care-memory");
    let few = guard.run(idle(&["--worker-memory", "900T"]));
    few.wait_for_line("starting 1 worker of sleep infinity (auto: room for 0 of 900.0T in 80% of ");
    few.ready().stop_well();
}

/// `unshare` runs its child as PID 1 of a namespace of its own, with its own /proc.
const NAMESPACE: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

fn has_namespaces(guard: &Guard) -> bool {
    let mut command = guard.command("unshare");
    command.args(&NAMESPACE[1..]).arg("true");
    find_program("unshare").is_some()
        && find_program("nsenter").is_some()
        && guard.finish(command).code == Some(0)
}

#[test]
fn pid_1_reaps_strangers_and_passes_the_end_on() {
    let guard = Guard::new("care-pid1");
    if !has_namespaces(&guard) {
        skip!("care-pid1", "no PID namespace can be made here");
    }
    let port = guard.port();
    let mut args: Vec<std::ffi::OsString> = vec!["-w".into(), "2".into(), "--".into()];
    args.extend(one_at_a_time(port));
    let croupier = guard.run_with(args, |command| under(&guard, command, &NAMESPACE));
    let croupier = croupier.ready();
    assert_eq!(croupier.status().pid, 1, "as it sees itself");
    let primary = wait_until(PATIENCE, "the primary", || {
        children_of(croupier.pid()).first().copied().ok_or("no child yet")
    });
    // Strangers: their parent leaves, so they are PID 1's, and they end, each in its own way.
    let fifo = guard.fifo("go");
    let script = format!(
        "for end in 'exit 7' 'kill -9 $$' 'kill -ABRT $$'; do \
         setsid sh -c \"read line < {}; $end\" & done",
        fifo.display()
    );
    let target = primary.to_string();
    let mut enter = guard.command("nsenter");
    enter.args(["-t", &target, "--pid", "--mount", "sh", "-c", &script]);
    let start = guard.start(enter);
    let is_shell = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sh\n")
    };
    let strangers = || children_of(primary).into_iter().filter(is_shell).collect::<Vec<i32>>();
    wait_until(PATIENCE, "three strangers", || {
        let found = strangers();
        if found.len() == 3 { Ok(()) } else { Err(found) }
    });
    wait_until(PATIENCE, "every stranger to be reaped", || {
        // Whoever reads, or will have opened it by the next time, goes on.
        drop(fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo));
        let left = strangers();
        let left: Vec<_> = left.into_iter().map(|pid| (pid, state_of(pid))).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    start.finished(PATIENCE);
    let status = croupier.status();
    assert!(status.workers.iter().all(|worker| worker.restarts == Some(0)), "{status:?}");
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    // What `docker stop` sends, while a client is being served.
    let fifo = guard.fifo("answer");
    let held = Client::port(port).send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("the blocker", |status| (status.open().1 == 1).then_some(()));
    kill(Pid::from_raw(primary), Signal::SIGTERM).unwrap();
    fs::write(&fifo, "").unwrap();
    assert_eq!(held.reply().unwrap().status, 200);
    croupier.finished(PATIENCE).expect_code(0);
}

/// No terminal, no home, no variables: as services are started.
#[test]
fn it_runs_with_an_empty_environment() {
    let guard = Guard::new("care-bare");
    let port = guard.port();
    let mut args: Vec<std::ffi::OsString> = vec!["-w".into(), "1".into(), "--".into()];
    args.extend(one_at_a_time(port));
    let runtime = format!("XDG_RUNTIME_DIR={}", guard.path("run").display());
    let croupier = guard.run_with(args, |command| {
        let mark = command
            .get_envs()
            .find(|(name, _)| *name == "CROUPIER_TEST")
            .and_then(|(_, value)| Some(format!("CROUPIER_TEST={}", value?.to_str()?)))
            .unwrap();
        under(&guard, command, &["setsid", "--wait", "env", "-i", &mark, &runtime]);
    });
    let croupier = croupier.ready();
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    croupier.ask(&["stop"]).expect_code(0);
    croupier.finished(PATIENCE).expect_code(0);
}

/// Some kernels let only privileged processes attach a filter to a socket: containers without root, and
/// services of other users, must not reset anybody for that.
#[test]
fn a_stop_without_any_capability_resets_nobody() {
    let guard = Guard::new("care-unprivileged");
    let Some(setpriv) = find_program("setpriv") else {
        skip!("care-unprivileged", "setpriv is not installed");
    };
    let root = nix::unistd::geteuid().is_root();
    for address in ["127.0.0.1", "[::1]", ""] {
        let port = guard.port();
        let program = guard.port();
        let listen = format!("{address}:{port}={program}");
        let mut args: Vec<std::ffi::OsString> =
            ["-w", "4", "-l", &listen, "--"].iter().map(Into::into).collect();
        args.extend(one_at_a_time(program));
        let croupier = guard.run_with(args, |command| {
            // Only root has something to lose.
            let without = "-net_raw,-net_admin";
            let flags = ["--bounding-set", without, "--inh-caps", without];
            if root {
                let launcher = [&[setpriv.to_str().unwrap()], &flags[..]].concat();
                under(&guard, command, &launcher);
            }
        });
        let croupier = croupier.ready();
        let host = if address.is_empty() { "127.0.0.1" } else { address };
        let client = Client::to(format!("{host}:{port}").parse::<std::net::SocketAddr>().unwrap());
        let client = client.patience(std::time::Duration::from_secs(10));
        let outcome = std::thread::scope(|scope| {
            let load =
                scope.spawn(|| hammer(&client, 64, usize::MAX, |_| Some("/slow?ms=5".to_owned())));
            croupier.wait_status("load", |status| (status.totals.handed_off > 300).then_some(()));
            croupier.signal(Signal::SIGTERM);
            croupier.finished(PATIENCE).expect_code(0);
            load.join().unwrap()
        });
        let torn: Vec<_> = outcome
            .failures
            .iter()
            .filter(|failure| !matches!(failure, croupier_tests::Failure::Connect(_)))
            .collect();
        assert!(torn.is_empty(), "{address}: {torn:?}");
    }
}
