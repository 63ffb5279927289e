//! `croupier logs`, the log file and its rotation.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use croupier_tests::{Client, Guard, PATIENCE, find_program, hammer, skip, soak_or, wait_until};
use nix::sys::signal::Signal;

use crate::programs::one_at_a_time;

/// Prints what comes through a FIFO, until it is told to go.
const REPEAT: &str = "while :; do while read line; do echo \"$line\"; done < $1; done";

#[test]
fn last_lines_and_what_follows() {
    let guard = Guard::new("logs-follow");
    let feeds = [guard.fifo("feed0"), guard.fifo("feed1")];
    let pattern = guard.path("feed{slot}");
    let words = ["-w", "2", "--ready", "start", "sh", "-c", REPEAT, "repeat"];
    let croupier = guard.run(words.into_iter().chain([pattern.to_str().unwrap()])).ready();
    let say = |slot: usize, line: &str| {
        std::fs::write(&feeds[slot], format!("{line}\n")).unwrap();
        croupier.wait_for_line(&format!("[w{slot}] {line}"));
    };
    say(1, "first");
    say(0, "second");
    say(1, "third");
    let all = croupier.ask(&["logs"]);
    all.expect_code(0);
    assert_eq!(all.stdout, "[w1] first\n[w0] second\n[w1] third\n".trim_end());
    let one = croupier.ask(&["logs", "w1", "--lines", "1"]);
    assert_eq!((one.code, one.stdout.as_str()), (Some(0), "[w1] third"));
    let json = croupier.ask(&["logs", "0", "--json"]);
    let line: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&line["slot"], &line["msg"]), (&0.into(), &"second".into()));

    let mut command = guard.command(croupier_tests::croupier());
    command.args(["logs", "-f", "1", "--lines", "1", "-n", croupier.name()]);
    let follower = guard.start(command);
    follower.wait_for_line("[w1] third");
    say(0, "for the other");
    say(1, "fourth");
    follower.wait_for_line("[w1] fourth");
    assert_eq!(follower.stdout().all(), ["[w1] third", "[w1] fourth"]);

    croupier.ask(&["logs", "7"]).expect_code(1).expect_error(&["no slot 7", "0 to 1"]);
    croupier.ask(&["logs", "web"]).expect_code(2).expect_error(&["-n web"]);
    // Its reader leaves: so does it.
    let mut command = guard.command("sh");
    let ask = format!("'{}' logs -f -n {}", croupier_tests::croupier().display(), croupier.name());
    command.args(["-c", &format!("{ask} | head -n 1; echo over")]);
    let piped = guard.start(command);
    piped.wait_for_line("[w1] first");
    say(0, "into a pipe that nobody reads");
    say(0, "and again");
    piped.wait_for_line("over");
    piped.finished(PATIENCE).expect_code(0);

    croupier.stop_well();
    // The end of the primary is the end of its log.
    follower.finished(PATIENCE).expect_code(0);
    guard.croupier(["logs", "-n", "logs-follow-0"]).expect_code(3);
}

/// The last words of a worker that has ended are still there, with those of the next.
#[test]
fn ended_workers_are_shown_too() {
    let guard = Guard::new("logs-ended");
    let go = [guard.fifo("go1"), guard.fifo("go2")];
    let pattern = guard.path("go{id}");
    let script = format!("echo \"I am {{id}}\"; read x < {}; exit 1", pattern.display());
    let flags = ["-w", "1", "--ready", "start", "--min-uptime", "0", "sh", "-c", &script];
    let croupier = guard.run(flags).ready();
    croupier.wait_for_line("I am 1");
    std::fs::write(&go[0], "go\n").unwrap();
    croupier.wait_for_line("I am 2");
    assert_eq!(croupier.ask(&["logs"]).stdout, "[w0] I am 1\n[w0] I am 2");
    croupier.stop_well();
}

#[test]
fn with_raw_output_it_says_why_there_is_nothing() {
    let guard = Guard::new("logs-raw");
    let words =
        ["-w", "1", "--raw-output", "--ready", "start", "sh", "-c", "exec tail -f /dev/null"];
    let croupier = guard.run(words).ready();
    croupier.ask(&["logs"]).expect_code(1).expect_error(&[
        "with --raw-output its workers write to stdout and stderr by themselves, so",
    ]);
    croupier.stop_well();
    let log = guard.path("log");
    let both = ["run", "--raw-output", "--log-file", log.to_str().unwrap(), "true"];
    guard.croupier(both).expect_code(2).expect_error(&["--log-file", "--raw-output"]);
}

/// One that is stopped in the midst of a flood: clients are served, workers print on, and when it
/// reads again it hears how many lines it lacks.
#[test]
fn a_follower_that_does_not_read_slows_nobody() {
    let guard = Guard::new("logs-slow");
    let port = guard.port();
    let go = guard.fifo("go");
    let server = one_at_a_time(port).join(std::ffi::OsStr::new(" ")).into_string().unwrap();
    let flood = format!(
        "yes a line of a flood | head -n 100000; echo flooded; read x < {0}; echo more",
        go.display()
    );
    let start = guard.fifo("start");
    let script = format!("echo up; (read x < {}; {flood}) & exec {server}", start.display());
    let croupier = guard.run_with(["-w", "1", "sh", "-c", &script], |command| {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    });
    let croupier = croupier.ready();
    let mut command = guard.command(croupier_tests::croupier());
    command.args(["logs", "-f", "-n", croupier.name()]);
    let follower = guard.start(command);
    follower.wait_for_line("[w0] up");
    croupier_tests::stop_process(follower.pid());
    std::fs::write(&start, "go\n").unwrap();
    let outcome = hammer(&Client::port(port), 4, soak_or(2000, 300), |_| Some("/".to_owned()));
    assert_eq!(outcome.failures, []);
    wait_until(PATIENCE, "the end of the flood", || {
        let last = croupier.ask(&["logs", "--lines", "1"]).stdout;
        if last == "[w0] flooded" { Ok(()) } else { Err(last) }
    });
    follower.signal(Signal::SIGCONT);
    // Lines of the flood, "up" and "flooded", and those that it is told are missing.
    let (whole, missing) = wait_until(PATIENCE, "each line to be there or told", || {
        let lines = follower.stdout().all();
        let whole = lines.iter().filter(|line| line.starts_with("[w0] ")).count();
        let note = |line: &String| {
            line.strip_prefix("croupier: warning: ")?.split(' ').next()?.parse::<usize>().ok()
        };
        let missing: usize = lines.iter().filter_map(note).sum();
        if whole + missing >= 100_002 { Ok((whole, missing)) } else { Err((whole, missing)) }
    });
    assert!(whole + missing == 100_002 && missing > 0, "{whole} {missing}");
    std::fs::write(&go, "go\n").unwrap();
    follower.wait_for_line("[w0] more");
    croupier.stop_well();
    follower.finished(PATIENCE).expect_code(0);
}

/// The file of examples/, with other paths, and the real logrotate: every line of every worker is
/// there once and whole.
#[test]
fn a_rotation_loses_and_tears_no_line() {
    let guard = Guard::new("logs-rotate");
    let Some(logrotate) = find_program("logrotate") else {
        skip!("a_rotation_loses_and_tears_no_line", "logrotate is not installed")
    };
    let (log, pid_file, stop) =
        (guard.path("logs/web.log"), guard.path("web.pid"), guard.path("stop"));
    std::fs::create_dir(guard.path("logs")).unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/logrotate.conf");
    let config = std::fs::read_to_string(example).unwrap();
    let with_paths = config
        .replace("/var/log/croupier/web.log", log.to_str().unwrap())
        .replace("/run/croupier/web.pid", pid_file.to_str().unwrap());
    let config = guard.write("logrotate.conf", &with_paths);
    let script = format!(
        "i=0; while [ ! -e {stop} ]; do echo \"line $i of {{slot}} end\"; i=$((i+1)); \
         [ $((i % 50)) != 0 ] || sleep 0.01; done; echo \"last $i of {{slot}}\"; exec tail -f /dev/null",
        stop = stop.display()
    );
    let log_text = log.to_str().unwrap();
    let flags = ["-w", "2", "--log-file", log_text, "--ready", "start", "sh", "-c", &script];
    let croupier = guard.run(flags).ready();
    croupier.wait_for_line(&format!("output and log go to {log_text}"));
    std::fs::write(&pid_file, croupier.pid().to_string()).unwrap();
    let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    for _ in 0..2 {
        wait_until(PATIENCE, "something to rotate", || {
            let seen = text(&log);
            if seen.matches("line").count() > 700 { Ok(()) } else { Err(seen.len()) }
        });
        let mut command: Command = guard.command(&logrotate);
        command.arg("--force").arg("--state").arg(guard.path("state")).arg(&config);
        guard.finish(command).expect_code(0);
        wait_until(PATIENCE, "the new file to be written", || {
            let seen = text(&log);
            if seen.contains("line") { Ok(()) } else { Err(seen) }
        });
    }
    std::fs::write(&stop, "").unwrap();
    wait_until(PATIENCE, "the last lines", || {
        let seen = text(&log);
        if seen.matches("] last ").count() == 2 { Ok(()) } else { Err(seen.len()) }
    });
    // USR1 opens it again, and says so.
    croupier.signal(Signal::SIGUSR1);
    wait_until(PATIENCE, "what is said of it", || {
        let seen = text(&log);
        if seen.contains("again (asked by USR1)") { Ok(()) } else { Err(seen.len()) }
    });
    let ended = croupier.stop();
    ended.expect_code(0);
    assert!(!ended.stderr.contains("line") && ended.stdout.is_empty(), "{ended:?}");
    let unpacked = guard.finish({
        let mut command = guard.command("gzip");
        command.args(["-dc"]).arg(guard.path("logs/web.log.2.gz"));
        command
    });
    let all = unpacked.stdout + "\n" + &text(&guard.path("logs/web.log.1")) + &text(&log);
    every_line_is_there(&all);
}

/// Of two workers, once and whole.
fn every_line_is_there(all: &str) {
    // On a machine that lets the writing thread wait for 100 ms, lines are dropped, and told.
    let told = |line: &str| {
        line.strip_prefix("croupier: warning: ")?.split(' ').next()?.parse::<usize>().ok()
    };
    let told: usize = all.lines().filter_map(told).sum();
    let mut missing = 0;
    for slot in 0..2 {
        let head = format!("[w{slot}] ");
        let mut next = 0;
        for line in all.lines().filter_map(|line| line.strip_prefix(&head)) {
            let number: usize = line.split(' ').nth(1).unwrap().parse().unwrap();
            assert!(number >= next, "{line} twice, or after {next}");
            missing += number - next;
            next = number + 1;
            let whole =
                [format!("line {number} of {slot} end"), format!("last {number} of {slot}")];
            assert!(whole.iter().any(|whole| whole == line), "torn: {line:?}");
        }
        assert!(next > 500, "{next}");
    }
    assert!(missing <= told, "{missing} lines of workers are lost, and {told} of all are told");
    let strange = all.lines().find(|line| {
        !line.starts_with("[w") && !line.starts_with("croupier") && !line.starts_with("ready")
    });
    assert!(strange.is_none_or(|line| line.contains("called")), "{strange:?}");
}

/// /dev/full takes nothing, as a full disk.
#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let guard = Guard::new("logs-full");
    let port = guard.port();
    let server = one_at_a_time(port).join(std::ffi::OsStr::new(" ")).into_string().unwrap();
    let script = format!("yes lost | head -n 5000 & exec {server}");
    let flags = ["-w", "2", "--log-file", "/dev/full", "sh", "-c", &script];
    let croupier = guard.run(flags).ready();
    let outcome = hammer(&Client::port(port), 4, 200, |_| Some("/".to_owned()));
    assert_eq!(outcome.failures, []);
    let dropped = croupier.wait_status("the lines to be counted", |status| {
        (status.totals.lines_dropped >= 10_000).then_some(status.totals.lines_dropped)
    });
    // croupier's own few as well.
    assert!(dropped < 10_100, "{dropped}");
    // What workers print is there all the same.
    let last = croupier.ask(&["logs", "--lines", "1"]);
    let mut lines: Vec<&str> = last.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[w0] lost", "[w1] lost"], "{last:?}");
    croupier.stop_well();
}

#[test]
fn a_log_file_that_cannot_be_opened_is_named() {
    let guard = Guard::new("logs-cannot");
    let folder = guard.path("missing/log");
    let ended = guard.croupier(["run", "--log-file", folder.to_str().unwrap(), "sh", "-c", "exit"]);
    ended.expect_code(1).expect_error(&[folder.to_str().unwrap(), "No such file", "log file"]);
    // What ends it is said where somebody looks.
    let log = guard.path("log");
    let flags =
        ["run", "-w", "1", "--log-file", log.to_str().unwrap(), "sh", "-c", "echo no; exit 3"];
    let ended = guard.croupier(flags);
    ended.expect_code(1).expect_error(&[
        "became ready",
        "exited with status 3",
        log.to_str().unwrap(),
    ]);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("[w0] no\n") && text.contains("became ready"), "{text}");
}

#[test]
fn json_has_all_of_a_line_whatever_it_is() {
    const SOURCE: &str = r#"
import os, signal
os.write(1, b"bad \xff \"quoted\"\n")
os.write(1, b"\xc3\xa9" * 40000 + b"\n")
os.write(2, b"to stderr\n")
signal.pause()
"#;
    let guard = Guard::new("logs-json");
    let script = guard.write("say.py", SOURCE);
    let flags = ["-w", "1", "--log-format", "json", "--ready", "start", "python3"];
    let croupier = guard.run(flags.into_iter().chain([script.to_str().unwrap()])).ready();
    croupier.wait_for_line("to stderr");
    croupier.wait_for_line("\"continues\":true");
    wait_until(PATIENCE, "the end of the long line", || {
        let seen = croupier.stdout().count("é\"}");
        if seen == 1 { Ok(()) } else { Err(seen) }
    });
    let ended = croupier.stop();
    let lines: Vec<serde_json::Value> = ended
        .stdout
        .lines()
        .chain(ended.stderr.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of_worker = |line: &&serde_json::Value| line.get("slot").is_some();
    for line in &lines {
        assert!(line["time"].as_str().unwrap().ends_with('Z') && line["msg"].is_string(), "{line}");
        assert!(["info", "warn", "error"].contains(&line["level"].as_str().unwrap()), "{line}");
    }
    let said: Vec<&serde_json::Value> = lines.iter().filter(of_worker).collect();
    let msg = |line: &serde_json::Value| line["msg"].as_str().unwrap().to_owned();
    assert_eq!(msg(said[0]), "bad \u{fffd} \"quoted\"");
    let ids = ["slot", "worker", "generation", "stream"].map(|name| &said[0][name]);
    assert_eq!(ids, [&0.into(), &1.into(), &1.into(), &serde_json::Value::from("stdout")]);
    // Cut between two characters, and nothing of it is lost.
    assert_eq!(msg(said[1]) + &msg(said[2]), "é".repeat(40_000));
    assert_eq!((&said[1]["continues"], said[2].get("continues")), (&true.into(), None));
    assert!(said.iter().any(|line| line["stream"] == "stderr" && msg(line) == "to stderr"));
}

/// Neither a log file nor a client of `croupier logs -f` that has nothing to read wakes anybody up.
#[test]
fn a_follower_of_nothing_costs_nothing() {
    let guard = Guard::new("logs-idle");
    let log = guard.path("log");
    let flags = ["-w", "1", "--log-file", log.to_str().unwrap(), "--ready", "start", "tail", "-f"];
    let croupier = guard.run(flags.into_iter().chain(["/dev/null"])).ready();
    let mut command = guard.command(croupier_tests::croupier());
    command.args(["logs", "-f", "-n", croupier.name()]);
    let follower = guard.start(command);
    croupier.ask(&["logs"]).expect_code(0);
    croupier_tests::observe(Duration::from_millis(500));
    let before = croupier_tests::wake_ups(croupier.pid());
    croupier_tests::observe(Duration::from_secs(1));
    assert_eq!(croupier_tests::wake_ups(croupier.pid()) - before, 0);
    croupier.stop_well();
    follower.finished(PATIENCE).expect_code(0);
}
