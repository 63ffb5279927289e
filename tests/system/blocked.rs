//! Workers that do not take what they were dealt: nobody waits behind them while another is idle.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Figure, Guard, PATIENCE, WorkerStatus, cpu_time, figure, hammer, observe,
    soak_or, stop_process, wake_ups,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::events::{follow_with, objects, of};
use crate::programs::one_at_a_time;

fn four(guard: &Guard, port: u16) -> Croupier<'_> {
    let mut args: Vec<OsString> =
        ["-w", "4", "--slow-start", "0", "--"].iter().map(Into::into).collect();
    args.extend(one_at_a_time(port));
    guard.run(args).ready()
}

fn claimed(croupier: &Croupier<'_>, slot: u16) -> u64 {
    croupier.status().slot(slot).and_then(|worker| worker.claimed).unwrap()
}

#[test]
fn nobody_waits_behind_a_stopped_worker() {
    let guard = Guard::new("blocked-stopped");
    let port = guard.port();
    let croupier = four(&guard, port);
    let client = Client::port(port);
    let stopped = Pid::from_raw(croupier.status().slot(1).unwrap().pid.unwrap());
    stop_process(stopped.as_raw());
    // They finish while it is still stopped, or never: that is the order this test is about.
    let run = hammer(&client, 8, soak_or(2000, 200), |_| Some("/".to_owned()));
    assert_eq!(run.failures, []);
    assert!(run.replies.iter().all(|reply| reply.pid() != Some(stopped.as_raw())));
    let stolen = croupier.status().totals.stolen;
    let before = claimed(&croupier, 1);
    kill(stopped, Signal::SIGCONT).unwrap();
    croupier.wait_status("work for the continued worker", |status| {
        let again = hammer(&client, 8, 40, |_| Some("/".to_owned()));
        assert_eq!(again.failures, []);
        (status.slot(1)?.claimed? > before).then_some(())
    });
    croupier.stop_well();
    figure(&Figure {
        item: "5 one of four stopped",
        measured: format!(
            "{} answers while it was stopped, slowest {:?}, {stolen} stolen",
            run.replies.len(),
            run.slowest
        ),
        goal: "all answered while it is stopped; work again afterwards",
        met: stolen >= 1,
    });
}

#[test]
fn nobody_waits_behind_a_busy_handler() {
    let guard = Guard::new("blocked-busy");
    let port = guard.port();
    let croupier = four(&guard, port);
    let client = Client::port(port);
    let done = guard.path("done");
    let busy = client.send(&format!("/spin?until={}", done.display())).unwrap();
    let run = hammer(&client, 8, soak_or(2000, 200), |_| Some("/".to_owned()));
    assert_eq!(run.failures, []);
    assert!(!busy.answered(), "its handler is still at it");
    std::fs::write(&done, "").unwrap();
    let served = busy.reply().unwrap();
    assert!(run.replies.iter().all(|reply| reply.pid() != served.pid()));
    let slot = u16::try_from(served.value("slot=").unwrap()).unwrap();
    let before = claimed(&croupier, slot);
    croupier.wait_status("work for the worker that was busy", |status| {
        assert_eq!(hammer(&client, 8, 40, |_| Some("/".to_owned())).failures, []);
        (status.slot(slot)?.claimed? > before).then_some(())
    });
    croupier.stop_well();
    figure(&Figure {
        item: "5 one of four busy",
        measured: format!("{} answers meanwhile, slowest {:?}", run.replies.len(), run.slowest),
        goal: "all answered while it is busy; work again afterwards",
        met: true,
    });
}

/// All are saturated, so lateness is normal: taking from one queue to fill another would only shuffle.
#[test]
fn a_saturated_pool_is_left_alone() {
    const WORKERS: usize = 4;
    let guard = Guard::new("blocked-saturated");
    let port = guard.port();
    let croupier = four(&guard, port);
    let client = Client::port(port);
    let handler_ms: u64 = soak_or(5000, 400);
    let path = format!("/slow?ms={handler_ms}");
    let finished = AtomicUsize::new(0);
    // Sent one after another, in this order; each answer takes the next rank.
    let waiting: Vec<_> = (0..4 * WORKERS)
        .map(|_| {
            let pending = client.send(&path).unwrap();
            observe(Duration::from_millis(10));
            pending
        })
        .collect();
    let (before, awake) = (cpu_time(croupier.pid()), wake_ups(croupier.pid()));
    let answers: Vec<_> = std::thread::scope(|scope| {
        let rank = |pending: croupier_tests::Pending| {
            let reply = pending.reply().unwrap();
            assert_eq!(reply.status, 200);
            let rank = finished.fetch_add(1, Ordering::SeqCst);
            (rank, reply.pid(), reply.value("number="))
        };
        let threads: Vec<_> =
            waiting.into_iter().map(|pending| scope.spawn(move || rank(pending))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let used = cpu_time(croupier.pid()).saturating_sub(before);
    let turns = wake_ups(croupier.pid()) - awake;
    let totals = croupier.status().totals;
    croupier.stop_well();
    // Whatever stands still for a while, each worker serves in the order of sending.
    let mut latest = BTreeMap::new();
    for (_, pid, number) in &answers {
        let before = latest.insert(*pid, *number);
        assert!(before.is_none_or(|before| before < *number), "{answers:?}");
    }
    // Four are served at a time, so ranks differ by up to one request of each worker without
    // anybody being overtaken; or by more, when one worker or client stands still.
    let off = |(sent, (rank, ..)): (usize, &(usize, _, _))| sent.abs_diff(*rank);
    let overtaken = answers.iter().enumerate().map(off).max().unwrap();
    figure(&Figure {
        item: "5 four of four blocked",
        measured: format!(
            "handlers of {handler_ms} ms, {} stolen, order off by at most {overtaken} over {WORKERS} \
             workers, primary {used:?} of processor time and {turns} wake-ups in 3 handler times",
            totals.stolen
        ),
        goal: "0 stolen, first come first served within 1 request of each worker, no spin",
        met: totals.stolen == 0
            && overtaken <= soak_or(WORKERS, usize::MAX)
            && used < Duration::from_millis(100)
            // It looks every 20 ms whether somebody has become idle; a spin would be thousands.
            && turns < 100 * (3 * handler_ms).div_ceil(1000) + 50,
    });
}

/// A minute is long enough for every timer of the primary to have fired.
#[test]
fn a_worker_that_is_blocked_for_long_delays_nobody_else() {
    const CLIENTS: usize = 8;
    let guard = Guard::new("blocked-long");
    let port = guard.port();
    let croupier = four(&guard, port);
    let client = Client::port(port);
    let time = Duration::from_secs(soak_or(60, 2));
    let during = |time: Duration| {
        let end = croupier_tests::now() + time;
        let path = |_| (croupier_tests::now() < end).then(|| "/slow?ms=2".to_owned());
        hammer(&client, CLIENTS, usize::MAX, path)
    };
    let baseline = during(time / 4);
    let stopped = Pid::from_raw(croupier.status().slot(1).unwrap().pid.unwrap());
    stop_process(stopped.as_raw());
    let run = during(time);
    let stolen = croupier.status().totals.stolen;
    let before = claimed(&croupier, 1);
    kill(stopped, Signal::SIGCONT).unwrap();
    croupier.wait_status("work for the continued worker", |status| {
        assert_eq!(hammer(&client, CLIENTS, 40, |_| Some("/".to_owned())).failures, []);
        (status.slot(1)?.claimed? > before).then_some(())
    });
    croupier.stop_well();
    assert_eq!((&baseline.failures, &run.failures), (&vec![], &vec![]));
    // Three do the work of four; beyond that only what lay in the blocked one's queue waited.
    let limit = baseline.slowest.max(Duration::from_millis(50)) * 2;
    let delayed = run.times.iter().filter(|time| **time > limit).count();
    // A host that stands still once delays each client once.
    let stalls = soak_or(0, 3 * u64::try_from(CLIENTS).unwrap());
    figure(&Figure {
        item: "replace 6 one of four blocked for long",
        measured: format!(
            "{time:?}, {} answers, {stolen} stolen, {delayed} answers over {limit:?}; p99 {:?}, \
             slowest {:?}, before that {:?}, {:?}",
            run.replies.len(),
            run.within(0.99),
            run.slowest,
            baseline.within(0.99),
            baseline.slowest
        ),
        goal: "its queue served by others, nobody else delayed, work again afterwards",
        met: stolen >= 1 && u64::try_from(delayed).unwrap() <= stolen + stalls,
    });
}

/// Who was said to be late, as `croupier events` tells it: how often, and how many of the workers. Each is
/// said to claim again before it can be late again, and before the end; nothing was taken from anybody.
fn suspected(told: &str) -> (usize, usize) {
    let (mut late, mut ever, mut times) = (BTreeSet::new(), BTreeSet::new(), 0);
    for event in objects(told) {
        let worker = of(&event, "worker").as_u64();
        match of(&event, "event").as_str().unwrap() {
            "late" => {
                assert!(late.insert(worker), "late twice in a row: {event}");
                ever.insert(worker);
                times += 1;
            }
            "recovered" => assert!(late.remove(&worker), "it was not late: {event}"),
            "stop" => assert!(late.is_empty(), "late to the end: {late:?}"),
            name => assert!(
                ["following", "disconnect", "exit"].contains(&name),
                "nothing else was to happen: {event}"
            ),
        }
    }
    assert!(late.is_empty(), "late and gone: {late:?}");
    (times, ever.len())
}

/// On a loaded host everybody looks late; taking from one to give to another would be no help.
#[test]
fn a_crowd_that_keeps_the_processors_busy_is_left_alone() {
    let workers = soak_or(64, 16);
    let guard = Guard::new("blocked-crowd");
    let port = guard.port();
    let count = workers.to_string();
    let mut args: Vec<OsString> =
        ["-w", &count, "--slow-start", "0", "--"].iter().map(Into::into).collect();
    args.extend(one_at_a_time(port));
    let croupier = guard.run(args).ready();
    let events = follow_with(&guard, &["--json", "-n", croupier.name()]);
    let client = Client::port(port);
    let mut looks = 0;
    let run = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            hammer(&client, 2 * workers, soak_or(20_000, 500), |_| Some("/burn?ms=4".to_owned()))
        });
        let mut before = BTreeSet::new();
        while !load.is_finished() {
            let status = croupier.status();
            // Called late while nothing waits for it: it has claimed, and the primary is yet to look.
            // At the next look, it has.
            let wrongly =
                |worker: &&WorkerStatus| worker.late == Some(true) && worker.queued == Some(0);
            let now: BTreeSet<_> = status.workers.iter().filter(wrongly).map(|w| w.id).collect();
            assert!(now.is_disjoint(&before), "late for longer than a turn: {status:?}");
            (before, looks) = (now, looks + 1);
        }
        load.join().unwrap()
    });
    let status = croupier
        .wait_status("nobody open", |status| (status.open() == (0, 0)).then(|| status.clone()));
    let late = status.workers.iter().filter(|worker| worker.late == Some(true)).count();
    croupier.stop_well();
    let (times, ever) = suspected(&events.finished(PATIENCE).expect_code(0).stdout);
    assert_eq!(run.failures, []);
    figure(&Figure {
        item: "replace 6 a crowd of busy workers",
        measured: format!(
            "{workers} workers that burn 4 ms, {} answers, {} stolen; {ever} workers were called late, \
             {times} times in all, each until it claimed again; nobody wrongly at two of {looks} looks \
             in a row, {late} afterwards; slowest {:?}",
            run.replies.len(),
            status.totals.stolen,
            run.slowest
        ),
        goal: "0 stolen, nobody called late for longer than a turn",
        met: status.totals.stolen == 0 && late == 0 && looks > 0,
    });
}
