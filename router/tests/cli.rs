//! The command line of the built program, as far as no primary has to run: words and exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// Runs croupier with an empty runtime directory of its own.
fn croupier(runtime: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_croupier"));
    let variables = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_string_lossy().starts_with("CROUPIER_"));
    for name in variables {
        command.env_remove(name);
    }
    for name in ["WORKERS", "WEB_CONCURRENCY", "NODE_CLUSTER_SCHED_POLICY"] {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } =
        command.args(arguments).env("XDG_RUNTIME_DIR", runtime).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn refused(arguments: &[&str]) -> (i32, String) {
    let runtime = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = croupier(runtime.path(), arguments);
    assert_eq!(stdout, "", "{arguments:?}: errors go to stderr");
    assert!(stderr.ends_with('\n'), "{arguments:?}: {stderr:?}");
    (code, stderr)
}

#[test]
fn wrong_usage_is_2_and_says_what_is_right() {
    for (arguments, part) in [
        (["node", "x.js"].as_slice(), "did you mean croupier run node x.js"),
        (&["-w", "4", "node", "a b.js"], "did you mean croupier run -w 4 node 'a b.js'"),
        (&["python3", "-m", "http.server"], "did you mean croupier run python3 -m http.server"),
        (&["statsu"], "'status'"),
        (&["stauts", "-n", "x"], "'status'"),
        (&["sh"], "did you mean croupier run sh"),
        (&["run", "-p", "8080", "--", "x"], "that is --policy; a port is -l :8080"),
        (&["run", "-w", "zero", "x"], "say a number, auto"),
        (&["run", "-l", "127.0.0.1", "x"], "as in 127.0.0.1:8080"),
        (&["run", "--ready-timeout", "60", "x"], "60s or 60ms"),
        (&["run", "--user", "no-such-user-here", "x"], "no such user"),
        (&["run", "-n", "a/b", "x"], "a name has 1 to 40 letters"),
        (&["-w", "4", "x"], "-w belongs to a subcommand; did you mean croupier run"),
        (&["sh", "x"], "sh is no subcommand; did you mean croupier run"),
        (&["start"], "to start a croupier: croupier run COMMAND"),
        (&["run"], "COMMAND is missing: say what to run"),
        (&["run", "--nonsense", "x"], "--nonsense"),
        (&["wait"], "<ready|stopped>"),
        (&["wait", "ready", "--timeout", "5"], "5s or 5ms"),
        (&[], "Usage: croupier <COMMAND>"),
    ] {
        let (code, stderr) = refused(arguments);
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
}

/// What each flag takes is said by the one that was given something else.
#[test]
fn a_value_that_is_none_is_answered_with_what_would_be_one() {
    let long = format!("unix:/{}", "x".repeat(120));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "A=$B\n").unwrap();
    let file = file.to_str().unwrap();
    let large = folder.path().join("large");
    std::fs::write(&large, "#".repeat((1 << 20) + 1)).unwrap();
    let large = large.to_str().unwrap();
    for (flags, part) in [
        (["-p", "127.0.0.1:80"].as_slice(), "that is --policy; an address is -l 127.0.0.1:80"),
        (&["-p", "fair"], "the policies are least, rr, ip, shared and reuseport"),
        (&["-w", "0"], "there must be at least 1 worker; for one per CPU say auto"),
        (&["-w", "5000"], "5000 workers are more than croupier's limit of 1024"),
        (&["-l", ":80=0"], "the program's port cannot be 0"),
        (&["-l", "unix:"], "the path of the Unix socket is missing, as in unix:/run/app.sock"),
        (&["-l", &long], "bytes are too long for a Unix socket's path (107)"),
        (&["-l", ":99999"], "99999 is no port; the largest is 65535"),
        (&["-l", "example.org:80"], "an address is :8080, 127.0.0.1:8080, [::1]:8080 or unix:"),
        (&["--env", "A"], "must be NAME=VALUE, as in --env MODE=fast"),
        (&["--env-file", file], "a $ stands for itself only in single quotes"),
        (&["--env-file", large], "it has more than 1024 KiB"),
        (&["--chdir", file], "it is no folder"),
        (&["--umask", "9"], "a mask is an octal number of up to three digits, as in 022 or 077"),
        (&["--report", "10ms"], "at least 1s; 0 is off"),
        (&["--stop-exit-codes", "256"], "exit statuses are numbers from 0 to 255, as in 0,3"),
        (
            &["--max-surge", "0"],
            "say how many workers, as in 2, or a share of them, from 1% to 100%",
        ),
        (&["--ready-probe", "https:/x"], "a probe is http:PATH, as in http:/healthz, or tcp"),
        (&["--ready-probe", "http://host/up"], "so there is no host: say http:/healthz"),
        (&["--ready-probe", "http:/a b"], "a path has at most 1024 visible ASCII characters"),
        (&["--adapter", "magic"], "the adapters are auto, preload, shim, listen-fds and fd"),
        (&["--ready", "soon"], "a worker is ready at listen, accept, notify or start"),
        (&["--log-format", "xml"], "the formats are text and json"),
        (&["--stall-after", "5 parsecs"], "a time is a number with a unit, such as 100ms, 8s"),
        (&["--max-rss", "lots"], "say how much memory, as in 512M or 2G"),
        (&["--max-queue-wait", "1s", "--shed", "503"], "clients can be shed by reset"),
        (&["--sticky-bound", "0.5"], "say how many times the average load a slot may have"),
        (&["--stop-signal", "KILL"], "a program cannot finish anything on that signal"),
        (&["--stop-signal", "LOUD"], "signals are named as in kill -l: TERM, QUIT, INT, USR2"),
        (&["--group", "no-such-group-here"], "no such group; see getent group"),
        (&["--profile", "dev"], "profiles are part of a file, and there is no croupier.toml here"),
        (&["--max-lifetime", "0"], "leave it away for workers that may live for ever"),
        (&["--max-queue-wait", "0"], "everybody would be reset; leave it away to let all wait"),
    ] {
        let (code, stderr) = refused(&[&["run"], flags, &["x"]].concat());
        assert_eq!(code, 2, "{flags:?}: {stderr}");
        assert!(stderr.contains(part), "{flags:?}: {stderr}");
        let flag = flags[flags.len() - 2];
        let long = [("-p", "--policy"), ("-l", "--listen")];
        let long = long.iter().find(|(short, _)| *short == flag).map_or(flag, |(_, long)| *long);
        let names = stderr.contains(flag) || stderr.contains(long);
        assert!(names, "{flags:?}: it names the flag: {stderr}");
    }
}

/// Flags that are each well, and not together.
#[test]
fn flags_that_exclude_each_other_say_which_to_leave_out() {
    for (flags, part) in [
        (["--log-file", "/x", "--raw-output"].as_slice(), "leave one of them out"),
        (
            &["-p", "rr", "--sticky-bound", "2"],
            "limits sticky clients, and -p rr has none; use ip there",
        ),
        (&["-p", "shared", "--ready-probe", "tcp"], "under -p shared workers accept by themselves"),
        (&["-p", "shared", "--max-total", "5"], "--max-total counts what is dealt, and -p shared"),
        (
            &["-p", "shared", "--max-active", "5"],
            "--max-active counts what is dealt, and -p shared",
        ),
        (&["--adapter", "fd", "-l", ":0", "--max-total", "5"], "--adapter fd does not tell"),
        (
            &["--adapter", "fd", "-l", ":0", "--max-active", "5"],
            "--max-active needs to know what is closed, and --adapter fd does not tell; use --queue-limit",
        ),
        (&["--shed", "reset"], "how clients are turned away at --max-queue-wait; add that"),
        (
            &["--adapter", "listen-fds", "-p", "rr", "-l", ":0"],
            "so -p rr cannot deal; use -p shared",
        ),
        (&["--adapter", "listen-fds"], "needs to know the address: add -l, as in -l :8080"),
        (&["--adapter", "fd"], "gives each worker one channel: it needs exactly one -l"),
        (&["-p", "reuseport", "-l", "unix:/x"], "the kernel does not spread a Unix socket"),
    ] {
        let (code, stderr) = refused(&[&["run"], flags, &["x"]].concat());
        assert_eq!(code, 2, "{flags:?}: {stderr}");
        assert!(stderr.contains(part), "{flags:?}: {stderr}");
    }
}

#[test]
fn what_a_running_croupier_cannot_be_told_is_said_before_it_is_asked() {
    for (arguments, part) in [
        (
            ["stop", "web"].as_slice(),
            "a slot is a number, as in 2 or w2 (croupier status shows them)",
        ),
        (&["scale", "four"], "say how many workers, as in 4, or how many more or fewer"),
        (&["kill", "0", "LOUD"], "signals are named as in kill -l: TERM, QUIT, INT, USR2"),
        (&["status", "-n", "/web"], "an owner's primary is OWNER/NAME; a socket's path goes to"),
        (&["doctor", "-l", "nonsense"], "an address is :8080"),
    ] {
        let (code, stderr) = refused(arguments);
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
}

/// Somebody else, or another version, behind the control socket.
#[test]
fn an_answer_that_is_none_is_said_to_be_that() {
    const DONE: &str = "{\"reply\":\"done\"}\n";
    const STRANGE: &str = "it answered what was not asked; is it another version of croupier?";
    const GARBAGE: &str = "its answer is not understood (";
    let status = format!(
        "{{\"reply\":\"status\",\"schema\":1,\"pid\":1,\"name\":\"x\",\"version\":\"0\",\"policy\":\"rr\",\
         \"uptime_s\":0,\"listeners\":[],\"workers\":[],\"totals\":{{{}}}}}\n",
        [
            "accepted",
            "handed_off",
            "salvaged",
            "stolen",
            "refused",
            "waits",
            "messages_dropped",
            "longest_turn_us",
            "longest_wait_us"
        ]
        .map(|name| format!("\"{name}\":0"))
        .join(",")
    );
    let endless = "x".repeat((4 << 20) + 100);
    for (words, answer, part) in [
        (["status"].as_slice(), "", "it ended before it answered"),
        (&["status"], "rubbish\n", GARBAGE),
        (&["status"], &endless, "it does not end"),
        (&["status"], DONE, STRANGE),
        (&["events"], DONE, STRANGE),
        (&["reload"], &status, STRANGE),
        (&["reload"], "", "ended before the reload did"),
        (&["start", "0"], &status, STRANGE),
        (&["start", "0"], "", "ended meanwhile"),
        (&["stop"], &status, STRANGE),
        (&["logs"], &status, STRANGE),
        (&["logs"], "", "was killed"),
        (&["wait", "ready"], &status, STRANGE),
        (&["wait", "ready"], "", "ended before it was ready"),
        (&["wait", "stopped"], &status, GARBAGE),
    ] {
        let (code, stderr) = with_a_primary_that_answers(words, answer.as_bytes());
        assert_eq!(code, 1, "{words:?}: {stderr}");
        assert!(stderr.contains(part) && stderr.contains("(pid "), "{words:?}: {stderr}");
    }
}

/// It is no other version: it says why it will not.
#[test]
fn a_refusal_is_said_in_its_own_words() {
    const FULL: &str = "too many clients of the control socket; try again";
    let answer = format!("{{\"reply\":\"failed\",\"why\":\"{FULL}\"}}\n");
    for words in [["wait", "stopped"].as_slice(), &["wait", "ready"], &["status"], &["stop"]] {
        let (code, stderr) = with_a_primary_that_answers(words, answer.as_bytes());
        assert_eq!(code, 1, "{words:?}: {stderr}");
        assert!(stderr.ends_with(&format!(": {FULL}\n")), "{words:?}: {stderr}");
    }
}

fn with_a_primary_that_answers(words: &[&str], answer: &[u8]) -> (i32, String) {
    use std::io::{BufRead, BufReader, Write};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(&stream);
            reader.read_line(&mut String::new()).unwrap();
            // Whoever has read enough of it hangs up.
            drop((&stream).write_all(answer));
        });
        refused(&[words, &["--control", path.to_str().unwrap()]].concat())
    })
}

#[test]
fn no_such_primary_is_3() {
    let named = "croupier: no croupier named nobody-has-this-name is running";
    for (arguments, part) in [
        (["status", "-n", "nobody-has-this-name"].as_slice(), named),
        (&["status", "--check", "--name", "nobody-has-this-name"], named),
        (
            &["status", "--json", "-n", "root/nobody-has-this-name"],
            "nobody-has-this-name is running",
        ),
        (&["stop", "--now", "-n", "nobody-has-this-name"], named),
        (&["wait", "ready", "-n", "nobody-has-this-name", "--timeout", "50ms"], named),
        (
            &["status", "--control", "/no/such/croupier.sock"],
            "no croupier listens on /no/such/croupier.sock: No such file or directory",
        ),
    ] {
        let (code, stderr) = refused(arguments);
        assert_eq!(code, 3, "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
}

/// Nobody is there: that is what it waits for. It says so, for whoever has mistyped the name.
#[test]
fn whoever_waits_for_the_end_of_nobody_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let dead = folder.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let note = ": it has stopped, or never was";
    for (which, part) in [
        (["-n", "nobody-has-this-name"], "no croupier named nobody-has-this-name is running"),
        (["--control", "/no/such/croupier.sock"], "no croupier listens on /no/such/croupier.sock"),
        (["--control", dead.to_str().unwrap()], "Connection refused"),
    ] {
        let (code, stderr) = refused(&[&["wait", "stopped"][..], &which].concat());
        assert_eq!(code, 0, "{which:?}: {stderr}");
        assert!(stderr.contains(part) && stderr.contains(note), "{which:?}: {stderr}");
    }
    let (code, stderr) = refused(&["wait", "stopped", "--control", "/dev/null/x"]);
    assert_eq!(code, 3, "whether somebody is there is not known: {stderr}");
}

#[test]
fn help_is_complete() {
    let runtime = tempfile::tempdir().unwrap();
    let (code, help, _) = croupier(runtime.path(), &["run", "--help"]);
    assert_eq!(code, 0);
    for flag in [
        "--listen",
        "--bind",
        "--workers",
        "--instances",
        "--policy",
        "--adapter",
        "--name",
        "--control",
        "--user",
        "--group",
        "--env",
        "--backlog",
        "--queue-limit",
        "--max-active",
        "--stall-after",
        "--slow-start",
        "--ready",
        "--ready-timeout",
        "--ready-probe",
        "--drain-timeout",
        "--graceful-timeout",
        "--kill-after",
        "--stop-signal",
        "--stop-signal-first",
        "--sticky-bound",
        "--sticky-seed",
        "--log-format",
        "--raw-output",
        "--preload-path",
        "--stay",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
    for (line, text) in help.lines().enumerate() {
        assert!(text.chars().count() <= 100, "line {line} is wider than a terminal: {text}");
    }
    // Every flag has its variable.
    let flag = |line: &&str| line.starts_with("  -") || line.starts_with("      --");
    let flags = help.lines().filter(flag).count();
    let variables = help.matches("[env: CROUPIER_").count();
    assert_eq!(flags, variables + 1, "all but --help");
    for subcommand in ["ls", "status", "stop", "wait"] {
        let (code, help, _) = croupier(runtime.path(), &[subcommand, "--help"]);
        assert!(code == 0 && help.contains("Usage: croupier"), "{subcommand}");
    }
    assert_eq!(croupier(runtime.path(), &["--version"]).1, "croupier 0.1.0\n");
}

/// The folder that the service is to run in has a name that systemd's files cannot have.
#[test]
fn what_cannot_stand_in_a_unit_is_named() {
    use std::os::unix::ffi::OsStrExt;

    let folder = tempfile::tempdir().unwrap();
    for (name, part) in [
        (b"a\nb".as_slice(), "a\\nb\" cannot stand in a unit"),
        (b"a\xffb", "a unit is UTF-8, and this is not"),
    ] {
        let here = folder.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::create_dir(&here).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_croupier"));
        let output = command.args(["unit", "/bin/sh"]).current_dir(&here).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{part}: {output:?}");
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

#[test]
fn dead_sockets_are_not_listed() {
    let runtime = tempfile::tempdir().unwrap();
    let folder = runtime.path().join("croupier");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.join("dead-one.sock")).unwrap());
    std::fs::write(folder.join("file-only.sock"), "").unwrap();
    let (code, stdout, _) = croupier(runtime.path(), &["ls"]);
    // Others may run on this machine; these do not.
    assert!(code == 0 && !stdout.contains("dead-one") && !stdout.contains("file-only"), "{stdout}");
    let (code, _, stderr) = croupier(runtime.path(), &["status", "-n", "dead-one"]);
    assert_eq!(code, 3, "{stderr}");
}

#[test]
fn a_program_that_cannot_be_started() {
    let folder = tempfile::tempdir().unwrap();
    let executable = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = folder.path().join("plain.sh");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    let script = executable("script", "#!/no/such/interpreter\n");
    let data = executable("data", "data");
    let torn = executable("torn", "\x7fELF garbage");
    let ring = executable("ring", &format!("#!{}/ring\n", folder.path().display()));
    for (program, status, part) in [
        ("no-such-program-at-all", 127, "command not found in PATH"),
        ("./no/such/program", 127, "command not found"),
        (plain.to_str().unwrap(), 126, "permission denied; chmod +x "),
        (&script, 126, "its first line wants /no/such/interpreter"),
        (&script, 126, "which cannot be executed: there is no such program"),
        (&data, 126, "it is neither a binary nor a script with #! in its first line"),
        (&torn, 126, "cannot be executed: its ELF headers are broken: "),
        (&ring, 126, "its #! lines lead from script to script without end"),
        ("/", 126, "it is a directory"),
    ] {
        let (code, stderr) = refused(&["run", program]);
        assert_eq!(code, status, "{program}: {stderr}");
        assert!(stderr.contains(part), "{program}: {stderr}");
    }
    let (code, stderr) = refused(&["run", "--preload-path", "/no/such/dir/lib.so", "true"]);
    assert_eq!(code, 1, "{stderr}");
    let looked =
        "libcroupier_preload.so is missing: looked at /no/such/dir/lib.so; give its path with";
    assert!(stderr.contains(looked), "{stderr}");
}

#[test]
fn what_the_library_cannot_serve_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("s.c"), folder.path().join("server"));
    let go = "__attribute__((section(\".go.buildinfo\"))) int info = 1;";
    let built = |text: &str, flag: &str| {
        std::fs::write(&source, format!("{text} int main(void) {{ return 0; }}")).unwrap();
        let status = Command::new("cc").arg(flag).arg("-o").arg(&program).arg(&source).status();
        assert!(status.unwrap().success(), "{flag}");
    };
    let said = |obstacle: &str| {
        let (code, stderr) = refused(&["run", program.to_str().unwrap()]);
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains(obstacle), "{stderr}");
        let way = "so croupier cannot deal to it. If it takes a socket by LISTEN_FDS, use --adapter \
                   listen-fds with -l";
        assert!(stderr.contains(way), "{stderr}");
    };
    built("", "-static");
    said("it is statically linked and loads no preload library");
    built(go, "-g0");
    said("it is a Go program, which makes system calls without libc");
    built("", "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1");
    said("it is linked with musl, and the preload library with glibc");
    let mut foreign = std::fs::read(&program).unwrap();
    foreign[18] ^= 0xff;
    std::fs::write(&program, foreign).unwrap();
    said("it is for another processor than the preload library");
}
