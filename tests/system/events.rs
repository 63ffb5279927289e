//! `croupier events`: a day whose events are known beforehand, and readers that are slow, many, or gone.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use croupier_tests::{Croupier, Guard, PATIENCE, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::programs::one_at_a_time;

fn follow<'guard>(
    guard: &'guard Guard,
    croupier: &Croupier<'_>,
    flags: &[&str],
) -> Croupier<'guard> {
    follow_with(guard, &[flags, &["-n", croupier.name()]].concat())
}

/// `croupier events` with these flags, when it follows.
pub(crate) fn follow_with<'guard>(guard: &'guard Guard, flags: &[&str]) -> Croupier<'guard> {
    let mut command = guard.command(croupier_tests::croupier());
    command.arg("events").args(flags);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let events = guard.start(command);
    events.wait_for_line("following");
    events
}

pub(crate) fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn of<'v>(event: &'v Value, field: &str) -> &'v Value {
    event.get(field).unwrap_or(&Value::Null)
}

/// `exit w1`, `scaled 2 3`: what must be so on every machine.
fn words(event: &Value) -> String {
    let name = of(event, "event").as_str().unwrap();
    let slot = of(event, "slot").as_u64().map(|slot| format!("w{slot}"));
    let scale = of(event, "from").as_u64().map(|from| format!("{from} {}", of(event, "to")));
    let what = slot.or(scale).unwrap_or_default();
    format!("{name} {what}").trim_end().to_owned()
}

fn up(slot: u16) -> Vec<String> {
    ["fork", "online", "listening", "ready"].map(|word| format!("{word} w{slot}")).into()
}

/// Start, kill, reload, scale, pause, a slot stopped and started, a restart, a reload that fails, stop.
/// Returns what was told, and who was killed.
fn a_day(guard: &Guard, port: u16) -> (Vec<Value>, Option<i32>) {
    // Every worker waits for a line before it listens, so that nobody is ahead of the reader.
    let fifo = guard.fifo("go");
    let mut go = File::options().read(true).write(true).open(&fifo).unwrap();
    let marker = guard.path("broken");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!(
        "read line < {}; [ -e {} ] && exit 3; exec {server}",
        fifo.display(),
        marker.display()
    );
    let croupier = guard.run(["-w", "2", "--soak", "50ms", "--", "sh", "-c", &script]);
    wait_until(PATIENCE, "two workers that start", || {
        let answer = croupier.ask(&["status", "--json"]);
        let starting = answer.stdout.matches("\"starting\"").count();
        if starting == 2 { Ok(()) } else { Err(answer) }
    });
    let events = follow(guard, &croupier, &["--json"]);
    go.write_all("go\n".repeat(50).as_bytes()).unwrap();
    croupier.ask(&["wait", "ready", "--timeout", "30s"]).expect_code(0);
    let old = croupier.status().slot(1).unwrap().pid;
    croupier.ask(&["kill", "1", "KILL"]).expect_code(0);
    croupier.wait_status("the next one", |status| {
        status.slot(1).filter(|worker| worker.pid != old).map(|_| ())
    });
    for command in [
        &["reload"][..],
        &["scale", "3"],
        &["scale", "2"],
        &["pause"],
        &["resume"],
        &["pause", "0"],
        &["resume", "0"],
        &["stop", "1"],
        &["start", "1"],
        &["restart", "0"],
    ] {
        croupier.ask(command).expect_code(0);
    }
    std::fs::write(&marker, "").unwrap();
    croupier.ask(&["reload"]).expect_code(1);
    croupier.ask(&["stop"]).expect_code(0);
    croupier.finished(PATIENCE).expect_code(0);
    let end = events.finished(PATIENCE);
    (objects(&end.expect_code(0).stdout), old)
}

/// What comes after the first two workers are ready; `exit` alone is that of either.
fn expected() -> Vec<String> {
    let lines = |text: &[&str]| text.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    [
        lines(&["exit w1"]),
        up(1),
        lines(&["reload-started"]),
        up(0),
        up(1),
        lines(&["reload-done", "disconnect w0", "disconnect w1", "exit", "exit"]),
        lines(&["scaled 2 3"]),
        up(2),
        lines(&["scaled 3 2", "disconnect w2", "exit w2"]),
        lines(&["paused", "resumed", "paused w0", "resumed w0", "disconnect w1", "exit w1"]),
        up(1),
        up(0),
        lines(&["disconnect w0", "exit w0", "reload-started", "fork w0", "online w0", "exit w0"]),
        // The older worker is that of slot 1.
        lines(&["reload-failed", "stop", "disconnect w1", "disconnect w0", "exit", "exit"]),
    ]
    .concat()
}

/// The same day without processes: `router/core/tests/drive.rs`.
#[test]
fn a_day_and_its_events() {
    let guard = Guard::new("events-day");
    let port = guard.port();
    let (all, killed) = a_day(&guard, port);
    let (begin, day) = all.split_first().unwrap();
    let seq = |event: &Value| of(event, "seq").as_u64();
    assert_eq!((words(begin).as_str(), seq(begin)), ("following", Some(4)));
    assert!(day.iter().zip(5..).all(|(event, number)| seq(event) == Some(number)));
    let told: Vec<String> = day.iter().map(words).collect();
    let (start, rest) = told.split_at(4);
    let mut start = start.to_vec();
    start.sort_unstable();
    assert_eq!(start, ["listening w0", "listening w1", "ready w0", "ready w1"]);
    let same = |(told, expected): (&String, &String)| {
        told == expected || expected == "exit" && told.starts_with("exit w")
    };
    let expected = expected();
    assert!(
        rest.len() == expected.len() && rest.iter().zip(&expected).all(same),
        "{rest:#?} and not {expected:#?}"
    );

    let find = |name: &str| day.iter().find(|event| of(event, "event") == name).unwrap();
    let text = |name: &str, field: &str| of(find(name), field).as_str().unwrap().to_owned();
    assert_eq!(text("exit", "why"), "SIGKILL");
    assert_eq!(of(find("exit"), "pid").as_i64(), killed.map(i64::from));
    assert_eq!(text("listening", "address"), format!("127.0.0.1:{port}"));
    assert_eq!(of(find("reload-started"), "rolling"), &Value::Bool(false));
    assert!(text("reload-failed", "why").contains("exited with status 3"));
    assert_eq!(of(find("stop"), "now"), &Value::Bool(false));
    assert!(of(find("ready"), "after_ms").is_u64() && of(find("fork"), "generation").is_u64());
    let time = text("stop", "time");
    assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
}

#[test]
fn a_reader_that_stands_still_is_told_what_it_missed_and_holds_up_nobody() {
    let guard = Guard::new("events-slow");
    let port = guard.port();
    let mut args: Vec<OsString> = ["-w", "2", "--"].map(Into::into).into();
    args.extend(one_at_a_time(port));
    let croupier = guard.run(args).ready();
    let slow = follow(&guard, &croupier, &["--json"]);
    let quick = follow(&guard, &croupier, &[]);
    croupier_tests::stop_process(slow.pid());
    // More than the socket's buffer and the primary's own hold.
    let rounds = 2000;
    let socket = guard.path("run").join("croupier").join(format!("{}.sock", croupier.name()));
    for _ in 0..rounds / 2 {
        for request in ["pause", "resume"] {
            let mut stream = UnixStream::connect(&socket).unwrap();
            writeln!(stream, "{{\"request\":\"{request}\",\"slots\":[]}}").unwrap();
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
        }
    }
    let last = quick.wait_for_line(&format!("{:>6} resumed", 8 + rounds));
    assert!(last.contains("resumed"), "{last}");
    kill(Pid::from_raw(slow.pid()), Signal::SIGCONT).unwrap();
    slow.wait_for_line("\"missed\"");
    croupier.ask(&["stop"]).expect_code(0);
    croupier.finished(PATIENCE).expect_code(0);
    quick.finished(PATIENCE).expect_code(0);
    let end = slow.finished(PATIENCE);
    let told = objects(&end.expect_code(0).stdout);
    let missed = told.iter().filter(|event| of(event, "event") == "missed");
    let missed: u64 = missed.filter_map(|event| of(event, "count").as_u64()).sum();
    let seqs: Vec<u64> =
        told.iter().skip(1).filter_map(|event| of(event, "seq").as_u64()).collect();
    assert!(missed > 0 && seqs.is_sorted(), "{missed} missed");
    let (first, last) = (seqs.first().unwrap(), seqs.last().unwrap());
    assert_eq!(seqs.len() as u64 + missed, last - first + 1, "each is told or counted");
}

#[test]
fn a_primary_that_is_killed_ends_the_events_with_an_error() {
    let guard = Guard::new("events-killed");
    let port = guard.port();
    let mut args: Vec<OsString> = ["-w", "1", "--"].map(Into::into).into();
    args.extend(one_at_a_time(port));
    let croupier = guard.run(args).ready();
    let all: Vec<_> = (0..16).map(|_| follow(&guard, &croupier, &[])).collect();
    let more = croupier.ask(&["events"]);
    more.expect_code(1).expect_error(&["16 clients follow its events already"]);
    croupier.signal(Signal::SIGKILL);
    croupier.finished_alone();
    for events in all {
        events.finished(PATIENCE).expect_code(1).expect_error(&["ended without a stop"]);
    }
    wait_until(PATIENCE, "the workers to go", || match guard.processes() {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
    guard.croupier(["events", "-n", "nobody"]).expect_code(3);
}
