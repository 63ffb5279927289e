//! Nothing wakes up unless something happened.

use std::time::Duration;

use croupier_tests::{
    Client, Figure, Guard, figure, find_program, observe, skip, soak_or, wake_ups,
};

use crate::programs::one_at_a_time;

#[test]
fn an_idle_primary_does_not_wake_up() {
    let guard = Guard::new("idle");
    let port = guard.port();
    let mut args: Vec<std::ffi::OsString> = ["-w", "4", "--"].map(Into::into).into();
    args.extend(one_at_a_time(port));
    let croupier = guard.run(args).ready();
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    croupier.wait_status("nothing open", |status| (status.open() == (0, 0)).then_some(()));
    let window = Duration::from_secs(soak_or(5, 2));
    // What the last question about the status set off comes to its end first.
    observe(Duration::from_millis(300));
    let before = wake_ups(croupier.pid());
    observe(window);
    let turns = wake_ups(croupier.pid()) - before;
    figure(&Figure {
        item: "idle wake-ups",
        measured: format!("{turns} in {window:?}, all threads of the primary"),
        goal: "0",
        met: turns == 0,
    });
    croupier.stop_well();
}

/// A program that waits for an event of its own must not be woken either.
#[test]
fn idle_workers_do_not_wake_up() {
    let guard = Guard::new("idle-workers");
    let Some(node) = find_program("node") else {
        skip!("idle_workers_do_not_wake_up", "node is not installed")
    };
    let port = guard.port();
    let source = format!(
        "require('http').createServer((_, answer) => answer.end('x')).listen({port}, '127.0.0.1')"
    );
    let script = guard.write("server.js", &source);
    let croupier = guard.run(["-w".as_ref(), "2".as_ref(), node.as_path(), &script]).ready();
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    let pids: Vec<i32> = croupier.status().ready().filter_map(|worker| worker.pid).collect();
    observe(Duration::from_millis(500));
    let count = || pids.iter().map(|pid| wake_ups(*pid)).sum::<u64>();
    let before = count();
    observe(Duration::from_secs(1));
    let turns = count() - before;
    // Node's own timers may fire now and then; a spin would be tens of thousands.
    assert!(turns < 50, "{turns} wake-ups of idle workers in a second");
    croupier.stop_well();
}
