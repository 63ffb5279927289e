//! What the start says while it lasts, and what becomes of slots that fail later.

use std::ffi::OsString;

use croupier_tests::{Client, Guard, PATIENCE, wait_until};

use crate::programs::one_at_a_time;

#[test]
#[ignore = "ten seconds of waiting; `make soak` runs it"]
fn a_slow_start_says_every_ten_seconds_what_it_waits_for() {
    let guard = Guard::new("start-slow");
    let port = guard.port();
    let go = guard.fifo("go");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("[ $CROUPIER_SLOT = 0 ] || read x < {}; exec {server}", go.display());
    let croupier = guard.run(["-w", "2", "sh", "-c", &script]);
    croupier.wait_for_line("1 of 2 ready; waiting for listen()");
    std::fs::write(&go, "go\n").unwrap();
    croupier.ready().stop_well();
}

/// All slots Failed after they had served: listeners closed, exit 1.
#[test]
#[ignore = "minutes of backoff; `make soak` runs it"]
fn all_slots_failed_later_is_exit_1() {
    let guard = Guard::new("start-fail-later");
    let port = guard.port();
    let broken = guard.path("broken");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!(
        "[ ! -e {} ] || {{ echo cannot go on >&2; exit 9; }}; exec {server}",
        broken.display()
    );
    let croupier = guard.run(["-w", "1", "sh", "-c", &script]).ready();
    std::fs::write(&broken, "").unwrap();
    drop(Client::port(port).get("/exit?code=1"));
    // Sixteen crashes in a row with backoffs up to 15 s.
    let ended = croupier.finished(PATIENCE * 15);
    let words = ["every slot has failed", "cannot go on", "--stay would keep trying"];
    ended.expect_code(1).expect_error(&words);
}

/// What it needs is gone for longer than a slot is tried, and comes back.
#[test]
#[ignore = "minutes of backoff; `make soak` runs it"]
fn with_stay_a_slot_that_crashes_for_long_is_not_given_up() {
    let guard = Guard::new("start-stay");
    let port = guard.port();
    let broken = guard.path("broken");
    let server = one_at_a_time(port).join(&OsString::from(" ")).into_string().unwrap();
    let script = format!("[ ! -e {} ] || exit 9; exec {server}", broken.display());
    let croupier = guard.run(["-w", "1", "--stay", "sh", "-c", &script]).ready();
    std::fs::write(&broken, "").unwrap();
    drop(Client::port(port).get("/exit?code=1"));
    // One more than without the flag would end it.
    wait_until(PATIENCE * 15, "its seventeenth crash", || {
        let crashes = croupier.stderr().count(" in a row; next start in ");
        if croupier.stderr().count("crash 17 in a row") == 1 { Ok(()) } else { Err(crashes) }
    });
    std::fs::remove_file(&broken).unwrap();
    let reply = Client::port(port).get("/").unwrap();
    assert_eq!(reply.status, 200, "who came meanwhile waited for it");
    croupier.stop_well();
}
