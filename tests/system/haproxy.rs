//! HAProxy in front of two croupiers, with the configuration of examples/.

use std::sync::atomic::{AtomicBool, Ordering};

use croupier_tests::{
    Client, Croupier, Figure, Guard, PATIENCE, figure, find_program, hammer, skip, soak_or,
    wait_until,
};
use nix::sys::signal::Signal;

/// Two hosts, each with an address of its own.
fn start<'guard>(guard: &'guard Guard, address: &str) -> Croupier<'guard> {
    let server = env!("CARGO_BIN_EXE_one-at-a-time");
    guard.run(["-w", "2", "--", server, address]).ready()
}

#[test]
fn one_of_two_croupiers_stops_and_no_request_fails() {
    let guard = Guard::new("haproxy");
    let Some(haproxy) = find_program("haproxy") else {
        skip!("one_of_two_croupiers_stops_and_no_request_fails", "haproxy is not installed")
    };
    let (front, back) = (guard.port(), guard.port());
    let addresses = ["127.0.0.2", "127.0.0.3"].map(|ip| format!("{ip}:{back}"));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/haproxy.cfg");
    let config = std::fs::read_to_string(example)
        .unwrap()
        .replace("bind :80", &format!("bind 127.0.0.1:{front}"))
        .replace("192.0.2.1:8080", &addresses[0])
        .replace("192.0.2.2:8080", &addresses[1]);
    let config = guard.write("haproxy.cfg", &config);
    let [one, two] = addresses.each_ref().map(|address| start(&guard, address));
    let mut command = guard.command(haproxy);
    command.arg("-db").arg("-f").arg(config);
    let proxy = guard.start(command);
    let client = Client::port(front);
    wait_until(PATIENCE, "the proxy to serve", || client.get("/").map(drop));

    let total = soak_or(20_000, 2_000);
    let stopped = AtomicBool::new(false);
    let run = hammer(&client, 8, total, |number| {
        if number > total / 4 && !stopped.swap(true, Ordering::Relaxed) {
            one.signal(Signal::SIGTERM);
        }
        Some("/".to_owned())
    });
    let refused = run.replies.iter().filter(|reply| reply.status != 200).count();
    let status = two.status();
    figure(&Figure {
        item: "5 HAProxy, one of two stops",
        measured: format!(
            "{} answers, {} failures, {refused} not 200; the other was dealt {}",
            run.replies.len(),
            run.failures.len(),
            status.totals.handed_off
        ),
        goal: "0 failed requests",
        met: run.failures.is_empty() && refused == 0 && run.replies.len() == total,
    });
    one.finished(PATIENCE).expect_code(0);
    assert!(status.totals.handed_off > u64::try_from(total / 2).unwrap(), "{status:?}");

    // It comes back, and is used again.
    let one = start(&guard, &addresses[0]);
    wait_until(PATIENCE, "the first to be used again", || {
        let reply = client.get("/");
        let dealt = one.status().dealt().values().sum::<u64>();
        if dealt > 5 && reply.is_ok() { Ok(()) } else { Err((dealt, reply)) }
    });
    proxy.signal(Signal::SIGTERM);
    proxy.finished(PATIENCE);
    one.stop_well();
    two.stop_well();
}
