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

#[test]
fn no_such_primary_is_3() {
    for arguments in [
        ["status", "-n", "nobody-has-this-name"].as_slice(),
        &["status", "--check", "--name", "nobody-has-this-name"],
        &["status", "--json", "-n", "root/nobody-has-this-name"],
        &["stop", "--now", "-n", "nobody-has-this-name"],
        &["wait", "stopped", "-n", "nobody-has-this-name"],
        &["wait", "ready", "-n", "nobody-has-this-name", "--timeout", "50ms"],
        &["status", "--control", "/no/such/croupier.sock"],
    ] {
        let (code, stderr) = refused(arguments);
        assert_eq!(code, 3, "{arguments:?}: {stderr}");
    }
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
    let plain = folder.path().join("plain.sh");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (program, status, part) in [
        ("no-such-program-at-all", 127, "command not found in PATH"),
        ("./no/such/program", 127, "command not found"),
        (plain.to_str().unwrap(), 126, "chmod +x"),
        (script.to_str().unwrap(), 126, "its first line wants /no/such/interpreter"),
        ("/", 126, "it is a directory"),
    ] {
        let (code, stderr) = refused(&["run", program]);
        assert_eq!(code, status, "{program}: {stderr}");
        assert!(stderr.contains(part), "{program}: {stderr}");
    }
    let (code, stderr) = refused(&["run", "--preload-path", "/no/such/dir/lib.so", "true"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("libcroupier_preload.so is missing"), "{stderr}");
}

#[test]
fn what_the_library_cannot_serve_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("s.c"), folder.path().join("server"));
    std::fs::write(&source, "int main(void) { return 0; }").unwrap();
    let built = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).status();
    assert!(built.unwrap().success());
    let (code, stderr) = refused(&["run", program.to_str().unwrap()]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("it is statically linked"), "{stderr}");
    assert!(stderr.contains("--adapter listen-fds"), "{stderr}");
}
