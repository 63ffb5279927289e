//! The benchmark's harness: that it runs, keeps what it measured and leaves nothing. No figure is
//! asserted here; `bench/tests` has what is known exactly.

use std::path::Path;

use croupier_tests::{Guard, PATIENCE, bench, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

fn results(folder: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(folder.join("results.json")).ok()?;
    // It is whole at every moment.
    Some(serde_json::from_str(&text).unwrap())
}

fn list<'a>(results: &'a Value, key: &str) -> &'a [Value] {
    results[key].as_array().unwrap()
}

/// Engine and workload of each, in order.
fn cells(results: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list(results, "samples")
        .iter()
        .map(|sample| (text(&sample["engine"]), text(&sample["workload"])))
        .collect()
}

#[test]
fn a_run_measures_every_cell_and_ends() {
    let guard = Guard::new("bench_runs");
    let out = guard.path("results");
    let mut command = guard.command(bench());
    command.args(["run", "--engines", "least,plain-reuseport,floor,node-rr"]);
    command.args(["--workloads", "short-paced,long-few", "--rounds", "1", "--seconds", "0.3"]);
    command.arg("--out").arg(&out);
    guard.start(command).finished(3 * PATIENCE).expect_code(0);
    let results = results(&out).unwrap();
    let seen = cells(&results);
    for workload in ["short-paced", "long-few"] {
        for engine in ["least", "plain-reuseport", "floor"] {
            let cell = (engine.to_owned(), workload.to_owned());
            assert!(seen.contains(&cell), "{cell:?}: {seen:?} {:?}", results["absent"]);
        }
    }
    for sample in list(&results, "samples") {
        assert!(sample["connections"].as_u64().unwrap() > 0, "{sample}");
        assert_eq!(sample["errors"]["refused"], 0, "{sample}");
        assert!(sample["latency"]["total"]["n"].as_u64().unwrap() > 0, "{sample}");
    }
    // A build for tests, which a soak has not, and an engine that has no such workload or is not installed: both
    // are said.
    let said = list(&results, "warnings").iter().any(|w| w["kind"] == "debug-build");
    assert_eq!(said, cfg!(debug_assertions), "{results}");
    assert!(list(&results, "absent").iter().any(|a| a["engine"] == "node-rr"), "{results}");
    assert!(results["plan"]["took_seconds"].is_number());
}

#[test]
fn an_interrupted_run_keeps_what_it_has_and_leaves_nothing() {
    let guard = Guard::new("bench_interrupted");
    let out = guard.path("results");
    let mut command = guard.command(bench());
    command.args(["run", "--engines", "plain-reuseport", "--workloads", "short-paced"]);
    command.args(["--rounds", "1000", "--seconds", "0.2"]).arg("--out").arg(&out);
    let running = guard.start(command);
    wait_until(2 * PATIENCE, "a first sample", || match results(&out) {
        Some(results) if !list(&results, "samples").is_empty() => Ok(()),
        seen => Err(seen),
    });
    running.signal(Signal::SIGINT);
    running.finished(PATIENCE).expect_code(0);
    let results = results(&out).unwrap();
    let measured = list(&results, "samples").len();
    let interrupted = list(&results, "absent")
        .iter()
        .filter(|absent| absent["why"]["reason"] == "interrupted")
        .count();
    assert!(measured > 0 && interrupted > 0, "{measured} {interrupted}");
    assert_eq!(measured + interrupted, 1000);
}
