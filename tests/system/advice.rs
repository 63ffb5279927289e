//! Advice: each piece is provoked here, and alone; one run provokes none, and for each there is a run that
//! comes close to provoking it.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Guard, PATIENCE, find_program, now, skip, stop_process, wait_until, wrk,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::crash::under;
use crate::programs::one_at_a_time;

fn run<'guard>(guard: &'guard Guard, flags: &[&str], port: u16) -> Croupier<'guard> {
    let mut args: Vec<std::ffi::OsString> = flags.iter().map(Into::into).collect();
    args.push("--".into());
    args.extend(one_at_a_time(port));
    guard.run(args).ready()
}

/// What the advice in the status is about; each piece is in the log and in the text as well, once.
fn given(croupier: &Croupier<'_>) -> Vec<String> {
    let advice = croupier.status().advice;
    let text = croupier.ask(&["status"]).stdout;
    for one in &advice {
        assert_eq!(text.matches(&format!("advice: {}", one.text)).count(), 1, "{text}");
        croupier.wait_for_line(&format!("advice: {}", one.text));
        assert_eq!(croupier.stderr().count(&one.text), 1);
    }
    assert_eq!(croupier.stderr().count("advice: "), advice.len());
    advice.into_iter().map(|one| one.about).collect()
}

fn find(croupier: &Croupier<'_>, about: &str) -> String {
    croupier.wait_status(about, |status| {
        status.advice.iter().find(|one| one.about == about).map(|one| one.text.clone())
    })
}

fn wait_for(croupier: &Croupier<'_>, about: &str) -> String {
    let text = find(croupier, about);
    assert_eq!(given(croupier), [about]);
    text
}

/// The same of load that was to bring this. A machine that stands still for a second makes the worker
/// lag as well, but then a client waited for as long.
fn expect_given(croupier: &Croupier<'_>, slowest: Duration, expected: &[&str]) {
    let mut given = given(croupier);
    given.retain(|about| about != "lag" || slowest < Duration::from_secs(1));
    assert_eq!(given, expected, "slowest {slowest:?}");
}

/// So many requests, each from the address that `from` gives; returns how long the slowest took.
fn ask(port: u16, count: u32, from: impl Fn(u32) -> Ipv4Addr + Sync) -> Duration {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let from = &from;
                scope.spawn(move || {
                    let times = (thread..count).step_by(4).map(|number| {
                        let asked = now();
                        Client::port(port).from(from(number)).get("/").unwrap();
                        asked.elapsed()
                    });
                    times.max().unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    })
}

#[test]
fn nothing_is_said_when_all_is_well() {
    let guard = Guard::new("advice-none");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1", "-p", "ip"], port);
    // Twice as many as a look at addresses takes.
    let slowest = ask(port, 2100, |number| Ipv4Addr::from(0x7f01_0000 + number));
    expect_given(&croupier, slowest, &[]);
    croupier.stop_well();
}

#[test]
fn clients_behind_a_proxy() {
    let guard = Guard::new("advice-proxy");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1", "-p", "ip"], port);
    let often = Ipv4Addr::new(127, 9, 8, 7);
    let other = |number| Ipv4Addr::from(0x7f01_0000 + number);
    let slowest = ask(port, 1100, |number| if number % 4 == 0 { other(number) } else { often });
    let text = find(&croupier, "proxy");
    expect_given(&croupier, slowest, &["proxy"]);
    assert!(text.contains("127.9.8.7: clients seem to be behind a proxy"), "{text}");
    croupier.stop_well();

    // Only sticky clients suffer from it.
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1"], port);
    let slowest = ask(port, 1100, |_| often);
    expect_given(&croupier, slowest, &[]);
    croupier.stop_well();
}

/// Under `ip` clients wait where `--max-queue-wait` does not count, unless `--max-active` holds them back.
#[test]
fn a_queue_wait_that_counts_nothing() {
    let guard = Guard::new("advice-queue-wait");
    for (flags, said) in [
        (&["-p", "ip", "--max-queue-wait", "1s"][..], true),
        (&["-p", "ip", "--max-queue-wait", "1s", "--max-active", "1"], false),
        (&["-p", "least", "--max-queue-wait", "1s"], false),
        (&["-p", "ip"], false),
    ] {
        let port = guard.port();
        let check = [&["check", "-w", "1"], flags, &["--", "true"]].concat();
        let check = guard.croupier(check);
        let text =
            "advice: --max-queue-wait 1s does not count how long clients of an ip address wait";
        assert_eq!(check.expect_code(0).stdout.contains(text), said, "{flags:?}: {check:?}");
        let croupier = run(&guard, &[&["-w", "1"], flags].concat(), port);
        let expected: &[&str] = if said { &["queue-wait"] } else { &[] };
        assert_eq!(given(&croupier), expected, "{flags:?}");
        croupier.stop_well();
    }
    // One address is enough.
    let listen = |policy: &str, port| {
        format!("[[listen]]\naddress = \"127.0.0.1:{port}\"\npolicy = \"{policy}\"\n")
    };
    let addresses = listen("least", guard.port()) + &listen("ip", guard.port());
    guard.write(
        "croupier.toml",
        &format!("command = [\"true\"]\nmax-queue-wait = \"2s\"\n{addresses}"),
    );
    let json = guard.croupier(["check", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json.expect_code(0).stdout).unwrap();
    let advice = report["advice"].as_array().unwrap();
    let [advice] = &advice[..] else { panic!("{report}") };
    assert!(advice.as_str().unwrap().contains("with --max-active they wait where it counts"));
}

#[test]
fn a_backlog_that_overflows() {
    let guard = Guard::new("advice-backlog");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1", "--queue-limit", "1", "--backlog", "1"], port);
    // The kernel takes the larger of the two, and the program asks for 128: all must be held.
    let pid = croupier.status().slot(0).unwrap().pid.unwrap();
    stop_process(pid);
    let client = Client::port(port).patience(Duration::from_millis(200));
    let limit = croupier.status().listeners.first().unwrap().backlog.unwrap();
    // That many wait is no overflow.
    let mut held: Vec<_> = (0..limit / 2).map(|_| client.open().unwrap()).collect();
    assert_eq!(given(&croupier), [""; 0]);
    let refused = (0..limit + 20).find_map(|_| match client.open() {
        Ok(open) => {
            held.push(open);
            None
        }
        Err(failure) => Some(failure),
    });
    assert!(refused.is_some(), "{} of {limit} are held", held.len());
    let text = wait_for(&croupier, "backlog");
    assert!(text.contains(&format!("127.0.0.1:{port} overflows: ")), "{text}");
    assert!(text.contains(&format!("Its limit is {limit} (--backlog, at most ")), "{text}");
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    drop(held);
    croupier.stop_well();
}

/// Where the kernel's own limit is what is full. It has one for each network namespace.
#[test]
fn a_backlog_that_overflows_at_the_kernels_limit() {
    const NAME: &str = "a_backlog_that_overflows_at_the_kernels_limit";
    /// Connects until somebody has to try again, and holds all of them until its stdin ends.
    const FILL: &str = "
import socket, sys
held = []
try:
    for _ in range(64):
        held.append(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 0.3))
except TimeoutError:
    print('full', flush=True)
sys.stdin.read()
";
    const NARROW: &str =
        "ip link set lo up && echo 8 > /proc/sys/net/core/somaxconn || exit 99; exec \"$@\"";
    let guard = Guard::new("advice-kernel");
    let launcher = ["unshare", "-n", "sh", "-c", NARROW, "sh"].map(str::to_owned);
    let mut trial: Vec<&str> = launcher.iter().map(String::as_str).collect();
    trial.push("true");
    let mut command = guard.command(trial[0]);
    command.args(&trial[1..]);
    if ["unshare", "nsenter", "ip"].into_iter().any(|name| find_program(name).is_none())
        || guard.finish(command).code != Some(0)
    {
        skip!(NAME, "needs root, a network namespace and its sysctl");
    }
    let port = guard.port();
    let mut args: Vec<std::ffi::OsString> =
        ["-w", "1", "--queue-limit", "1", "--"].map(Into::into).into();
    args.extend(one_at_a_time(port));
    let croupier = guard.run_with(args, |command| under(&guard, command, &launcher)).ready();
    let pid = croupier.status().slot(0).unwrap().pid.unwrap();
    stop_process(pid);
    let mut fill = guard.command("nsenter");
    fill.args(["-t", &croupier.pid().to_string(), "-n", "python3", "-c", FILL, &port.to_string()]);
    let mut fill = fill.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(fill.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "full\n");
    let text = wait_for(&croupier, "backlog");
    let limit = "Its limit is 8, the kernel's (net.core.somaxconn); more workers would empty it";
    assert!(text.contains(limit), "{text}");
    drop(fill.stdin.take());
    fill.wait().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    croupier.stop_well();
}

#[test]
fn a_low_limit_of_open_files() {
    let guard = Guard::new("advice-files");
    let limited = |limit: u64| {
        let mut args: Vec<std::ffi::OsString> = ["-w", "1", "--"].map(Into::into).into();
        args.extend(one_at_a_time(guard.port()));
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let limited = ["sh", "-c", &script, "sh"].map(str::to_owned);
        guard.run_with(args, |command| under(&guard, command, &limited)).ready()
    };
    let croupier = limited(150);
    let text = wait_for(&croupier, "open-files");
    assert!(
        text.contains("the limit of open files is 150 (ulimit") && text.contains(" may need "),
        "{text}"
    );
    croupier.stop_well();

    // What it says may be needed is enough, and one fewer is not.
    let (_, need) = text.split_once("may need ").unwrap();
    let need: u64 = need.split(';').next().unwrap().parse().unwrap();
    let croupier = limited(need - 1);
    wait_for(&croupier, "open-files");
    croupier.stop_well();
    let croupier = limited(need);
    assert_eq!(given(&croupier), [""; 0]);
    croupier.stop_well();
}

#[test]
fn a_backlog_that_the_kernel_cuts() {
    let guard = Guard::new("advice-somaxconn");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1", "--backlog", "1000000"], port);
    let text = wait_for(&croupier, "somaxconn");
    assert!(text.contains(", until sysctl net.core.somaxconn=1000000"), "{text}");
    croupier.stop_well();

    // As much as it allows is not cut.
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let croupier = run(&guard, &["-w", "1", "--backlog", most.trim()], guard.port());
    assert_eq!(given(&croupier), [""; 0]);
    croupier.stop_well();
}

#[test]
fn a_queue_limit_that_is_too_low() {
    let guard = Guard::new("advice-queue");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1", "--queue-limit", "1"], port);
    let text = wait_until(PATIENCE, "advice about the queue limit", || {
        let Some(_) = wrk(&guard, port, "/", 32, &["-d", "1s"]) else { return Ok(None) };
        let advice = croupier.status().advice;
        let found = advice.iter().find(|one| one.about == "queue-limit");
        found.map(|one| Some(one.text.clone())).ok_or(advice)
    });
    let Some(text) = text else { skip!("a_queue_limit_that_is_too_low", "wrk is not installed") };
    assert!(text.contains("--queue-limit 1 is reached again and again: clients"), "{text}");
    croupier.stop_well();

    // The same load with the default.
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1"], port);
    wrk(&guard, port, "/", 32, &["-d", "1s"]).unwrap();
    // A machine that stands still for a second may bring another piece, of a worker that lags.
    let given = given(&croupier);
    assert!(!given.iter().any(|about| about == "queue-limit"), "{given:?}");
    croupier.stop_well();
}

#[test]
fn more_workers_than_help() {
    let guard = Guard::new("advice-workers");
    let port = guard.port();
    let cpus = std::thread::available_parallelism().unwrap().get();
    let workers = (cpus * 2 + 1).to_string();
    let croupier = run(&guard, &["-w", &workers], port);
    let text = wait_for(&croupier, "workers");
    assert!(text.contains(&format!("{workers} workers are more than twice the {cpus} ")), "{text}");
    croupier.stop_well();
    let twice = (cpus * 2).to_string();
    let port = guard.port();
    let croupier = run(&guard, &["-w", &twice], port);
    assert_eq!(given(&croupier), [""; 0]);
    // It is the number now that counts, however it came to be.
    croupier.ask(&["scale", "+1"]).expect_code(0);
    let text = wait_for(&croupier, "workers");
    assert!(text.contains(&format!("{workers} workers are more than twice the {cpus} ")), "{text}");
    croupier.stop_well();
}

#[test]
fn a_worker_whose_event_loop_lags() {
    let guard = Guard::new("advice-lag");
    let port = guard.port();
    let croupier = run(&guard, &["-w", "1"], port);
    let pid = croupier.status().slot(0).unwrap().pid.unwrap();
    stop_process(pid);
    let waits = Client::port(port).send("/").unwrap();
    croupier.wait_status("it to be handed over", |status| (status.open().0 == 1).then_some(()));
    let since = now();
    wait_until(PATIENCE, "more than a second", || {
        let waited = since.elapsed();
        if waited.as_millis() > 1100 { Ok(()) } else { Err(waited) }
    });
    assert_eq!(given(&croupier), [""; 0]);
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    assert_eq!(waits.reply().unwrap().status, 200);
    let text = wait_for(&croupier, "lag");
    assert!(
        text.starts_with("worker 1 let a connection that was handed to it wait for over"),
        "{text}"
    );
    croupier.stop_well();
}
