//! Workers' output: whole lines, to where they were meant, and never in the way of dealing.

use std::ffi::OsString;
use std::io::Read;
use std::process::Stdio;

use croupier_tests::{Client, Guard, PATIENCE, fixture, hammer, soak_or, wait_until};

use crate::programs::one_at_a_time;

#[test]
fn lines_keep_their_stream_and_are_never_torn() {
    const LINES: usize = 500;
    let guard = Guard::new("output-lines");
    let script = format!(
        "i=0; while [ $i -lt {LINES} ]; do echo \"out $i of {{slot}} {}\"; echo \"err $i of {{slot}}\" >&2; \
         i=$((i+1)); done; echo done; exec tail -f /dev/null",
        "x".repeat(200)
    );
    let croupier = guard.run(["-w", "4", "--ready", "start", "sh", "-c", &script]).ready();
    wait_until(PATIENCE, "everybody to be done", || match croupier.stdout().count("] done") {
        4 => Ok(()),
        count => Err(count),
    });
    wait_until(PATIENCE, "the last line of stderr", || {
        let last = croupier.stderr().count(&format!("err {} of", LINES - 1));
        if last == 4 { Ok(()) } else { Err(last) }
    });
    for slot in 0..4 {
        for (lines, stream) in [(croupier.stdout(), "out"), (croupier.stderr(), "err")] {
            let prefix = format!("[w{slot}] {stream} ");
            let own: Vec<String> =
                lines.all().into_iter().filter(|line| line.starts_with(&prefix)).collect();
            assert_eq!(own.len(), LINES, "{prefix}");
            for (number, line) in own.iter().enumerate() {
                let padding = if stream == "out" { 201 } else { 0 };
                let whole = format!("{prefix}{number} of {slot}");
                assert!(line.starts_with(&whole), "{whole:?}: {line:?}");
                assert_eq!(line.len(), whole.len() + padding, "{line:?}");
            }
        }
    }
    assert_eq!(croupier.stderr().count("[w0] out"), 0);
    croupier.stop_well();
}

/// Without a flush: C stdio and Python would keep their lines until they end.
#[test]
fn lines_appear_when_they_are_printed() {
    const SOURCE: &str = r#"
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("printed by C\n"); for (;;) pause(); }
"#;
    let guard = Guard::new("output-buffered");
    let program = fixture(&guard.write("print.c", SOURCE), &guard.path("print"), &[]);
    let croupier = guard.run(["-w", "1", "--ready", "start", program.to_str().unwrap()]);
    croupier.wait_for_line("[w0] printed by C");
    croupier.ready().stop_well();
    let script =
        guard.write("print.py", "import signal\nprint('printed by Python')\nsignal.pause()\n");
    let words = ["-w", "1", "--ready", "start", "python3", script.to_str().unwrap()];
    let croupier = guard.run(words);
    croupier.wait_for_line("[w0] printed by Python");
    croupier.ready().stop_well();
}

/// A pipe that nobody reads: its writer blocks, and the clients do not notice.
#[test]
fn a_blocked_stdout_never_stops_dealing() {
    let guard = Guard::new("output-blocked");
    let port = guard.port();
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    // Some hundred kilobytes a second from each worker, beside the server.
    let script = format!("yes a line that nobody ever reads | head -n 200000 & exec {server}");
    let mut command = guard.command(croupier_tests::croupier());
    command.args(["run", "--name", "blocked", "-w", "2", "sh", "-c", &script]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until(PATIENCE, "croupier wait ready", || {
        let waited = guard.croupier(["wait", "ready", "-n", "blocked", "--timeout", "20s"]);
        if waited.code == Some(0) { Ok(()) } else { Err(waited) }
    });
    let outcome = hammer(&Client::port(port), 8, soak_or(2000, 300), |_| Some("/".to_owned()));
    assert_eq!(outcome.failures, []);
    guard.croupier(["stop", "-n", "blocked"]).expect_code(0);
    // Only now does somebody read; the end comes without it, too.
    let status = wait_until(PATIENCE, "its end", || child.try_wait().unwrap().ok_or("running"));
    assert_eq!(status.code(), Some(0));
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("] a line that nobody ever reads\n"), "{}", text.len());
}

/// Who reads again hears, at that place, how much is missing and why: of stdout, and of a log that is a
/// pipe to another program.
#[test]
fn whoever_reads_again_hears_how_much_is_missing() {
    use std::io::{BufRead, BufReader};
    let guard = Guard::new("output-gap");
    let go = guard.fifo("go");
    let script =
        format!("yes a line for nobody | head -n 400000; cat {}; exec sleep inf", go.display());
    let flags = ["-w", "1", "--ready", "start"];
    for (log, why) in
        [(None, "nobody read this output"), (Some("log"), "the log file took too long")]
    {
        let mut command = guard.command(croupier_tests::croupier());
        command.args(["run", "-n", "gap"]).args(flags);
        // Opened for both: croupier opens a log only where somebody reads.
        let pipe = log.map(|name| {
            let path = guard.fifo(name);
            command.arg("--log-file").arg(&path);
            std::fs::File::options().read(true).write(true).open(path).unwrap()
        });
        command.args(["sh", "-c", &script]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let missing = wait_until(PATIENCE, "lines that are dropped", || {
            let status = guard.croupier(["status", "-n", "gap", "--json"]);
            let field = status.stdout.split("\"lines_dropped\":").nth(1);
            match field.and_then(|rest| rest.split([',', '}']).next()?.trim().parse::<u64>().ok()) {
                Some(count) if count > 0 => Ok(count),
                other => Err((other, status.stderr)),
            }
        });
        let stdout = child.stdout.take().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let from: Box<dyn Read> = match pipe {
                Some(pipe) => Box::new(pipe),
                None => Box::new(stdout),
            };
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let last = line.contains("after the gap");
                if line.contains(" dropped here: ") || last {
                    tell.send(line).unwrap();
                }
                if last {
                    return;
                }
            }
        });
        std::fs::write(&go, "after the gap\n").unwrap();
        let mut sum = 0;
        let last = loop {
            let line = told.recv_timeout(PATIENCE).unwrap();
            let Some((before, said)) = line.split_once(" lines were dropped here: ") else {
                break line;
            };
            assert_eq!(said, why);
            sum += before.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
        };
        assert!(sum >= missing, "{sum} of at least {missing}");
        assert!(last.contains("[w0] after the gap"), "{last}");
        reader.join().unwrap();
        guard.croupier(["stop", "-n", "gap"]).expect_code(0);
        wait_until(PATIENCE, "its end", || child.try_wait().unwrap().ok_or("running"));
        std::fs::remove_file(guard.path("log")).ok();
    }
}

#[test]
fn raw_output_passes_stdio_through() {
    let guard = Guard::new("output-raw");
    let words = [
        "-w",
        "1",
        "--raw-output",
        "--ready",
        "start",
        "sh",
        "-c",
        "echo raw $((40 + 2)); exec tail -f /dev/null",
    ];
    let croupier = guard.run(words);
    assert_eq!(croupier.wait_for_line("raw 42"), "raw 42");
    croupier.ready().stop_well();
}

#[test]
fn inherited_stdio_stays_blocking() {
    let guard = Guard::new("output-flags");
    let (read, write) = std::io::pipe().unwrap();
    let own = write.try_clone().unwrap();
    let port = guard.port();
    let mut args: Vec<OsString> = ["-w", "1", "--"].map(Into::into).into();
    args.extend(one_at_a_time(port));
    let croupier = guard.run_with(args, |command| {
        command.stdout(write);
    });
    let croupier = croupier.ready();
    let flags = nix::fcntl::fcntl(&own, nix::fcntl::FcntlArg::F_GETFL).unwrap();
    let flags = nix::fcntl::OFlag::from_bits_truncate(flags);
    assert!(!flags.contains(nix::fcntl::OFlag::O_NONBLOCK), "{flags:?}");
    croupier.stop_well();
    drop((read, own));
}

#[test]
fn json_log_is_one_object_a_line() {
    let guard = Guard::new("output-json");
    let script = "echo 'said \"so\"'; exec tail -f /dev/null";
    let words = ["-w", "1", "--log-format", "json", "--ready", "start", "sh", "-c", script];
    let croupier = guard.run(words);
    croupier.wait_for_line("said");
    let croupier = croupier.ready();
    let ended = croupier.stop();
    ended.expect_code(0);
    for line in ended.stdout.lines().chain(ended.stderr.lines()) {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        assert!(value.is_object(), "{line}");
    }
}
