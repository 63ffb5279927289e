//! Connections that stay open, as those of WebSockets: what they do to a worker that is new.

use croupier_tests::{
    Client, Croupier, Figure, Guard, Pending, Status, figure, fixture, now, soak_or, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::capacity::HOLDER;

const WORKERS: usize = 4;
/// Over which the share of the new worker is measured.
const WINDOW: Duration = Duration::from_secs(1);

/// What was dealt at a moment: to the new worker, and to all.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    new: u64,
    all: u64,
}

/// Clients that hold a connection each and come back when they have lost it.
struct Crowd {
    client: Client,
    held: VecDeque<Pending>,
}

impl Crowd {
    fn new(port: u16, count: usize) -> Self {
        let client = Client::port(port);
        let held = (0..count).map(|_| client.open().unwrap()).collect();
        Self { client, held }
    }

    /// Who has lost the connection connects again; returns how many.
    fn come_back(&mut self) -> usize {
        let before = self.held.len();
        self.held.retain(|one| !one.answered());
        let lost = before - self.held.len();
        self.held.extend((0..lost).map(|_| self.client.open().unwrap()));
        lost
    }

    /// The `count` that have been there for longest go, as many others come.
    fn change(&mut self, count: usize) {
        drop(self.held.drain(..count.min(self.held.len())));
        self.held.extend((0..count).map(|_| self.client.open().unwrap()));
    }
}

fn sample(status: &Status, slot: u16) -> Sample {
    let new = status.slot(slot).and_then(|worker| worker.handed_off).unwrap_or(0);
    Sample { at: now(), new, all: status.totals.handed_off }
}

/// The largest part, of what was dealt within any second, that went to the new worker, in percent; and
/// of how many seconds it is the largest. Seconds in which hardly anybody came say nothing, and neither
/// does a gap of far more than a second between two looks, in which the worker did not stay new.
fn largest_part(samples: &[Sample]) -> (u64, usize) {
    let (mut largest, mut seconds) = (0, 0);
    for (index, from) in samples.iter().enumerate() {
        let later = samples.get(index..).unwrap_or(&[]);
        let Some(to) = later.iter().find(|to| to.at - from.at >= WINDOW) else { continue };
        let (new, all) = (to.new - from.new, to.all - from.all);
        if all >= 100 && to.at - from.at < WINDOW * 3 / 2 {
            largest = largest.max(new * 100 / all);
            seconds += 1;
        }
    }
    (largest, seconds)
}

fn active(croupier: &Croupier<'_>) -> Vec<u64> {
    let mut all: Vec<u64> = croupier.status().ready().filter_map(|worker| worker.active).collect();
    all.sort_unstable();
    all
}

/// Nobody holds a tenth more or less than the fair share.
fn balanced(active: &[u64], fair: u64) -> bool {
    let within = |count: &u64| (fair * 9 / 10..=fair * 11 / 10).contains(count);
    active.len() == WORKERS && active.iter().all(within)
}

#[test]
fn a_new_worker_is_not_flooded_and_balance_comes_back() {
    let guard = Guard::new("longlived");
    let count: usize = soak_or(2000, 400);
    let port = guard.port();
    let program = fixture(&guard.write("holder.c", HOLDER), &guard.path("holder"), &[]);
    let program = program.into_os_string().into_string().unwrap();
    let slow_start = soak_or("10s", "2s");
    let args = ["-w", "4", "--slow-start", slow_start, "--stall-after", "10s", "--"];
    let croupier = guard.run(args.into_iter().chain([program.as_str(), &port.to_string()])).ready();
    let mut crowd = Crowd::new(port, count);
    let wanted = u64::try_from(count).unwrap();
    croupier.wait_status("all of them held", |status| (status.open() == (0, wanted)).then_some(()));
    let before = active(&croupier);

    let victim = croupier.status().slot(1).cloned().unwrap();
    kill(Pid::from_raw(victim.pid.unwrap()), Signal::SIGKILL).unwrap();
    croupier.wait_status("its successor", |status| {
        status.slot(1).filter(|worker| worker.id > victim.id).map(|_| ())
    });
    let online = now();
    let mut samples = vec![sample(&croupier.status(), 1)];
    let lost = wait_until(croupier_tests::PATIENCE, "clients that lost theirs", || {
        let lost = crowd.come_back();
        if lost > 0 { Ok(lost) } else { Err(lost) }
    });
    samples.push(sample(&croupier.status(), 1));
    // Each time one in fifty changes.
    let fair = wanted / u64::try_from(WORKERS).unwrap();
    let (mut changed, mut back) = (0, None);
    // It goes on for some seconds, so that there are any to look at.
    while back.is_none() || online.elapsed() < 2 * WINDOW {
        assert!(back.is_some() || changed <= count, "no balance: {:?}", croupier.status());
        crowd.come_back();
        crowd.change(count / 50);
        changed += count / 50;
        samples.push(sample(&croupier.status(), 1));
        if back.is_none() && balanced(&active(&croupier), fair) {
            back = Some(changed);
        }
    }
    let after = active(&croupier);
    let (part, seconds) = largest_part(&samples);
    let fair_part = 100 / u64::try_from(WORKERS).unwrap();
    drop(crowd);
    croupier.wait_status("all gone", |status| (status.open() == (0, 0)).then_some(()));
    croupier.stop_well();
    figure(&Figure {
        item: "replace 7 long-lived connections",
        measured: format!(
            "{count} held as {before:?}; {lost} lost their worker and came back; balance was back when \
             {} had come and gone; after {changed} held as {after:?}; the new worker's part of any of \
             {seconds} seconds: at most {part} %",
            back.unwrap()
        ),
        goal: "at most twice the fair share of 25 %; all within 10 % of it before every client has come \
               and gone once",
        met: seconds > 0 && part <= 2 * fair_part,
    });
}
