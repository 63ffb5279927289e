//! Workers killed at random moments: what was queued is served by others, nothing of them is left.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Failure, Figure, Guard, PATIENCE, Status, WorkerStatus, descriptors, figure,
    fixture, hammer, observe, soak_or, stop_process, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::one_at_a_time;

/// Kept waiting in front of the workers, so that every queue is full.
const CLIENTS: usize = 64;
/// A worker that lived this long did not crash at its start: killing it costs no backoff.
const SETTLED_S: f64 = 2.0;

/// So few kills tell nothing of how many of them leave a queue: it goes on until one did, at most so often.
const FEW: usize = 20;

/// Small numbers with no pattern, from a printed seed.
struct Random(u64);

impl Random {
    #[expect(clippy::print_stdout, reason = "shown when the test fails: how to run it again")]
    fn new() -> Self {
        let seed = std::env::var("SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| u64::from(std::process::id()));
        println!("replay with SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

fn kill_process(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// Every slot ready, and the workers among them that have been so for a while.
fn settled(status: &Status, workers: usize) -> Option<Vec<WorkerStatus>> {
    if status.ready().count() < workers {
        return None;
    }
    let old = status.ready().filter(|worker| worker.uptime_s >= Some(SETTLED_S));
    let old: Vec<WorkerStatus> = old.cloned().collect();
    (!old.is_empty()).then_some(old)
}

struct Run {
    kills: usize,
    /// Kills after which at least one connection was salvaged.
    salvaging: usize,
    answers: usize,
    failures: Vec<Failure>,
    slowest: Duration,
    refused: u64,
}

/// Kills `kills` workers, one at a time and at random moments, under load.
fn kill_under_load(guard: &Guard, croupier: &Croupier<'_>, port: u16, kills: usize) -> Run {
    let over = AtomicBool::new(false);
    let client = Client::port(port);
    let path = |_| (!over.load(Ordering::Relaxed)).then(|| "/slow?ms=4".to_owned());
    let mut random = Random::new();
    let workers = croupier.status().workers.len();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| hammer(&client, CLIENTS, usize::MAX, path));
        let ended = Ended(&over);
        let (mut salvaging, mut killed) = (0, 0);
        while killed < kills || salvaging == 0 && killed < FEW {
            killed += 1;
            let old = croupier.wait_status("settled workers", |status| settled(status, workers));
            let victim = old.get(random.below(old.len())).unwrap();
            let before = croupier.status().totals.salvaged;
            observe(Duration::from_micros(u64::try_from(random.below(8000)).unwrap()));
            kill_process(victim.pid.unwrap());
            let after = croupier.wait_status("a successor", |status| {
                let successor = status.slot(victim.slot).filter(|worker| worker.id > victim.id);
                successor.map(|_| status.totals.salvaged)
            });
            salvaging += usize::from(after > before);
            let left = guard.family(victim.id.unwrap());
            assert!(left.is_empty(), "of the killed {victim:?} these live: {left:?}");
        }
        drop(ended);
        let outcome = load.join().unwrap();
        Run {
            kills: killed,
            salvaging,
            answers: outcome.replies.len(),
            failures: outcome.failures,
            slowest: outcome.slowest,
            refused: croupier.status().totals.refused,
        }
    })
}

/// Ends the load also when an assertion fails, so that the test reports it and does not hang.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn report(item: &str, run: &Run) {
    let Run { kills, salvaging, answers, failures, slowest, refused } = run;
    let hung = failures.iter().filter(|failure| matches!(failure, Failure::Hung(_))).count();
    figure(&Figure {
        item,
        measured: format!(
            "{kills} kills, {answers} answers, {} failed, {hung} hung, {salvaging} kills with a \
             salvage, {refused} refused, slowest {slowest:?}",
            failures.len()
        ),
        goal: soak_or(
            "failed <= kills, 0 hung, 0 refused, salvages in half the kills",
            "failed <= kills, 0 hung, 0 refused, a salvage",
        ),
        met: failures.len() <= *kills
            && hung == 0
            && *refused == 0
            && *salvaging >= soak_or(kills.div_ceil(2), 1),
    });
}

fn args(workers: &str, command: Vec<OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> =
        ["-w", workers, "--slow-start", "0", "--"].iter().map(Into::into).collect();
    args.extend(command);
    args
}

#[test]
fn queued_connections_survive_their_worker() {
    let guard = Guard::new("kill");
    let port = guard.port();
    let croupier = guard.run(args("4", one_at_a_time(port))).ready();
    let run = kill_under_load(&guard, &croupier, port, soak_or(200, 6));
    croupier.stop_well();
    report("4 kill", &run);
}

#[test]
fn a_shell_that_is_killed_takes_its_server_along() {
    let guard = Guard::new("kill-shell");
    let port = guard.port();
    let server = one_at_a_time(port).join(&OsString::from(" "));
    let server = format!("{}; true", server.into_string().unwrap());
    let croupier = guard.run(args("2", vec!["sh".into(), "-c".into(), server.into()])).ready();
    let run = kill_under_load(&guard, &croupier, port, soak_or(50, 3));
    croupier.stop_well();
    report("4 kill, sh -c 'server; true'", &run);
}

/// Between two kills: so short that a slot is killed again before it has settled.
const APART: Duration = Duration::from_millis(50);

/// A worker that was alive when it was killed, and what it had in its hands then.
struct Killed {
    id: u64,
    /// Connections among its descriptors: those it had accepted and not closed.
    held: usize,
}

/// The sockets among the descriptors of a process. To look up in /proc/net/tcp which of them are clients'
/// takes up to seconds, in which the stopped worker's queue would be stolen instead of salvaged.
fn sockets(pid: i32) -> usize {
    let all = descriptors(u32::try_from(pid).unwrap());
    all.values().filter(|what| what.to_string_lossy().starts_with("socket:")).count()
}

/// Kills a ready worker that was not killed before. It is stopped first, so that what it holds can be
/// read: what it has not accepted by then, it never will. `idle`: the sockets of a worker without any.
fn kill_one(
    croupier: &Croupier<'_>,
    idle: usize,
    random: &mut Random,
    before: &[Killed],
) -> Killed {
    let alive = croupier.wait_status("a victim", |status| {
        let was_killed =
            |worker: &&WorkerStatus| before.iter().any(|one| Some(one.id) == id_of(worker));
        let alive = status.ready().filter(|worker| !was_killed(worker));
        let alive: Vec<WorkerStatus> = alive.cloned().collect();
        (!alive.is_empty()).then_some(alive)
    });
    let victim = alive.get(random.below(alive.len())).unwrap();
    let pid = victim.pid.unwrap();
    stop_process(pid);
    let held = sockets(pid).checked_sub(idle).unwrap();
    kill_process(pid);
    Killed { id: id_of(victim).unwrap(), held }
}

fn id_of(worker: &WorkerStatus) -> Option<u64> {
    worker.id.map(u64::from)
}

/// What the workers wrote down, against what the clients saw.
#[derive(Debug, Default)]
struct Books {
    /// Requests that failed, and that a killed worker had written down as its last.
    in_hand: usize,
    /// Requests that failed and that nobody had written down.
    unwritten: usize,
    /// Killed workers that held a connection, and had answered the last that they wrote down: between
    /// accept(2) and the line, or between the answer and close(2).
    between: usize,
    /// What cannot be.
    wrong: Vec<String>,
}

impl Books {
    fn new(paper: &str, failed: &[usize], killed: &[Killed]) -> Self {
        let mut books = Self::default();
        let mut taken: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        let mut last: BTreeMap<u64, usize> = BTreeMap::new();
        for line in paper.lines() {
            let (number, worker) = line.split_once(' ').unwrap();
            let (number, worker) = (number.parse().unwrap(), worker.parse().unwrap());
            taken.entry(number).or_default().push(worker);
            last.insert(worker, number);
        }
        let twice = taken.iter().filter(|(_, by)| by.len() > 1);
        books.wrong.extend(twice.map(|(number, by)| format!("{number} was taken by {by:?}")));
        let failed: BTreeSet<usize> = failed.iter().copied().collect();
        for number in &failed {
            let Some(by) = taken.get(number).and_then(|by| by.first()) else {
                books.unwritten += 1;
                continue;
            };
            let held = killed.iter().any(|one| one.id == *by && one.held > 0);
            if held && last.get(by) == Some(number) {
                books.in_hand += 1;
            } else {
                books.wrong.push(format!("{number} failed, which {by} did not hold when it died"));
            }
        }
        let between = killed.iter().filter(|one| {
            one.held > 0 && last.get(&one.id).is_none_or(|number| !failed.contains(number))
        });
        books.between = between.count();
        books
    }

    /// No request failed but in the hands of a killed worker.
    fn balance(&self) -> bool {
        self.wrong.is_empty() && self.unwritten <= self.between
    }
}

/// Kills far faster than workers settle, so with `--min-uptime 0` only deaths before ready are crashes.
fn kill_without_pause(workers: &str) {
    let guard = Guard::new("kill-many");
    let port = guard.port();
    let kills = soak_or(1000, 20);
    let mut all: Vec<OsString> = vec!["--min-uptime".into(), "0".into()];
    all.extend(args(workers, one_at_a_time(port)));
    let croupier = guard.run(all).ready();
    let own = croupier.status().ready().map(|w| sockets(w.pid.unwrap())).collect::<BTreeSet<_>>();
    assert_eq!(own.len(), 1, "workers that serve nobody have as many sockets: {own:?}");
    let idle = own.into_iter().sum();
    let over = AtomicBool::new(false);
    let client = Client::port(port);
    let paper = guard.path("taken");
    let path = |number: usize| {
        let take = || format!("/take?ms=1&n={number}&in={}", paper.display());
        (!over.load(Ordering::Relaxed)).then(take)
    };
    let mut random = Random::new();
    let (run, killed) = std::thread::scope(|scope| {
        let load = scope.spawn(|| hammer(&client, CLIENTS, usize::MAX, path));
        let ended = Ended(&over);
        let mut killed = Vec::new();
        for _ in 0..kills {
            observe(APART);
            killed.push(kill_one(&croupier, idle, &mut random, &killed));
        }
        drop(ended);
        (load.join().unwrap(), killed)
    });
    let totals = croupier.wait_status("nobody unanswered", |status| {
        (status.open() == (0, 0)).then_some(status.totals)
    });
    croupier.stop_well();
    let books = Books::new(&std::fs::read_to_string(&paper).unwrap(), &run.failed, &killed);
    let hung = run.failures.iter().filter(|failure| matches!(failure, Failure::Hung(_))).count();
    figure(&Figure {
        item: &format!("replace 3 kills {APART:?} apart, -w {workers}"),
        measured: format!(
            "{kills} kills of living workers, {} answers, {} failed: {} that a killed worker had written \
             down, {} of {} that one may have held unwritten, {} others; {hung} hung, {} salvaged, \
             {} refused, slowest {:?}",
            run.replies.len(),
            run.failures.len(),
            books.in_hand,
            books.unwritten,
            books.between,
            books.wrong.len(),
            totals.salvaged,
            totals.refused,
            run.slowest
        ),
        goal: "none failed but in the hands of the killed (what was queued is not lost), 0 hung, 0 refused",
        met: books.balance()
            && hung == 0
            && totals.refused == 0
            && totals.salvaged > 0
            && run.replies.len() > kills,
    });
}

#[test]
fn kills_in_quick_succession_lose_nothing_that_was_queued() {
    kill_without_pause("4");
}

#[test]
fn the_only_worker_may_be_killed_again_and_again() {
    kill_without_pause("1");
}

/// Listens, forks two children that accept, and waits for them: killed, it leaves them behind.
const PREFORK: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    int on = 1, s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1])),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 128))
        return perror("listen"), 1;
    for (int i = 0; i < 2; i++)
        if (fork() == 0)
            for (;;) {
                int c = accept(s, 0, 0);
                if (c < 0)
                    return perror("accept"), 1;
                char in[4096], body[32], out[160];
                if (read(c, in, sizeof in) > 0) {
                    if (strstr(in, "/slow"))
                        poll(0, 0, 4);
                    int n = sprintf(body, "pid=%d\n", getpid());
                    n = sprintf(out, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", n, body);
                    if (write(c, out, n) != n)
                        perror("write");
                }
                close(c);
            }
    while (wait(0) > 0)
        ;
    return 0;
}
"#;

#[test]
fn a_pre_fork_master_that_is_killed_takes_its_children_along() {
    let guard = Guard::new("kill-prefork");
    let port = guard.port();
    let program = fixture(&guard.write("prefork.c", PREFORK), &guard.path("prefork"), &[]);
    let command = vec![program.into_os_string(), port.to_string().into()];
    let croupier = guard.run(args("2", command)).ready();
    let mut run = kill_under_load(&guard, &croupier, port, soak_or(50, 3));
    croupier.stop_well();
    // Two children: each kill may catch two connections in their hands.
    let in_hand = run.kills.min(run.failures.len());
    run.failures.drain(..in_hand);
    report("4 kill, pre-fork master", &run);
}

#[test]
fn the_only_worker_leaves_its_queue_to_its_successor() {
    let guard = Guard::new("kill-only");
    let port = guard.port();
    let croupier = guard.run(args("1", one_at_a_time(port))).ready();
    let client = Client::port(port);
    let fifo = guard.fifo("never");
    let in_hand = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    let first = croupier.wait_status("the blocker in its hands", |status| {
        status.slot(0).filter(|worker| worker.active == Some(1)).cloned()
    });
    let waiting: Vec<_> = (0..10).map(|_| client.send("/").unwrap()).collect();
    croupier.wait_status("a full queue", |status| (status.open().0 > 0).then_some(()));
    kill_process(first.pid.unwrap());
    assert!(in_hand.reply().is_err(), "what a dead process held cannot be saved");
    for pending in waiting {
        let reply = pending.reply().unwrap();
        assert_ne!(reply.pid(), first.pid, "{reply:?}");
    }
    // As many as its window was then: "the 2 connections … go to others", "the connection … goes to another".
    let line = croupier.wait_for_line("worker 1 was killed by SIGKILL");
    assert!(line.contains(" that waited for it go"), "{line}");
    let totals = croupier.status().totals;
    assert!(totals.salvaged >= 1, "{totals:?}");
    croupier.stop_well();
}

#[test]
fn a_worker_that_leaves_by_itself_is_replaced() {
    let guard = Guard::new("kill-exit");
    let port = guard.port();
    let croupier = guard.run(args("2", one_at_a_time(port))).ready();
    let client = Client::port(port);
    let last = client.get("/exit?code=7").unwrap().pid();
    croupier.wait_status("two other workers", |status| {
        (status.ready().count() == 2 && status.ready().all(|worker| worker.pid != last))
            .then_some(())
    });
    wait_until(PATIENCE, "a line that says so", || {
        let text = croupier.stderr().text();
        if text.contains("status 7") || text.contains("exited with 7") { Ok(()) } else { Err(text) }
    });
    assert_eq!(client.get("/").unwrap().status, 200);
    croupier.stop_well();
}
