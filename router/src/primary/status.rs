//! Counters, and the picture that `croupier status` shows.

use croupier_core::event::WorkerId;
use croupier_wire::page::WAITED_BUCKETS;
use hdrhistogram::Histogram;

use super::limits::reason_word;
use super::rss::resident;
use super::run::Primary;
use super::turns::Turns;
use super::worker::Worker;
use crate::control::messages::{ListenerStatus, SCHEMA, Status, Totals, WorkerState, WorkerStatus};
use crate::output::Output;

const SECOND: u64 = 1_000_000_000;
/// Largest wait that is told apart, in microseconds: one hour.
const WAIT_MAX_US: u64 = 3_600_000_000;

/// What the loop counts by itself.
#[derive(Debug)]
pub(super) struct Meters {
    started: u64,
    /// Microseconds from accept to hand-off, for connections that were not handed off in the turn
    /// that accepted them; those are in `at_once`.
    waited: Histogram<u64>,
    at_once: u64,
    pub(super) turns: Turns,
    pub(super) next_listener: usize,
    exhausted: u64,
    last_second: u64,
    questions: Vec<(WorkerId, u32)>,
    /// Complaints in the second that began at `complaining_since`, and those left out since the last.
    complaints: u32,
    complaining_since: u64,
    unsaid: u32,
}

/// Lines about questions that are none, in a second.
pub(super) const COMPLAINTS_PER_SECOND_MAX: u32 = 10;

/// What becomes of a complaint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complaint {
    /// It is written, after so many that were not.
    Said { unsaid: u32 },
    /// It is only counted.
    LeftOut,
}

impl Meters {
    #[expect(
        clippy::expect_used,
        reason = "2 digits between 1 µs and an hour is a valid histogram"
    )]
    pub(super) fn new(now: u64) -> Self {
        Self {
            started: now,
            waited: Histogram::new_with_max(WAIT_MAX_US, 2).expect("valid bounds"),
            at_once: 0,
            turns: Turns::new(now),
            next_listener: 0,
            exhausted: 0,
            last_second: now,
            questions: Vec::new(),
            complaints: 0,
            complaining_since: now,
            unsaid: 0,
        }
    }

    /// Counts a complaint.
    pub(super) fn complaint(&mut self, now: u64) -> Complaint {
        if now.saturating_sub(self.complaining_since) >= SECOND {
            (self.complaining_since, self.complaints) = (now, 0);
        }
        self.complaints = self.complaints.saturating_add(1);
        if self.complaints > COMPLAINTS_PER_SECOND_MAX {
            self.unsaid = self.unsaid.saturating_add(1);
            return Complaint::LeftOut;
        }
        Complaint::Said { unsaid: std::mem::take(&mut self.unsaid) }
    }

    /// One hand-off. A connection handed off in the turn that accepted it waited for nothing.
    pub(super) fn handed_off(&mut self, now: u64, accepted_at: u64) {
        if now <= accepted_at {
            self.at_once += 1;
        } else {
            self.waited.saturating_record((now - accepted_at) / 1000);
        }
    }

    /// Descriptors or memory ran out. Said once a burst.
    pub(super) fn note_exhausted(&mut self, error: &std::io::Error) {
        if self.exhausted.is_power_of_two() || self.exhausted == 0 {
            log::warn!(
                "accept: {error}; clients wait in the backlog. Raise the limit of open files (ulimit -n)"
            );
        }
        self.exhausted += 1;
    }

    /// Whether accept has found no descriptor or no memory.
    pub(super) const fn ran_out(&self) -> bool {
        self.exhausted > 0
    }

    /// True once a second at most.
    pub(super) fn second_passed(&mut self, now: u64) -> bool {
        let passed = now.saturating_sub(self.last_second) >= SECOND;
        if passed {
            self.last_second = now;
            self.questions.clear();
        }
        passed
    }

    /// Counts a worker's question; whether it has asked too many in this second.
    pub(super) fn too_many_questions(&mut self, worker: WorkerId, now: u64, max: u32) -> bool {
        self.second_passed(now);
        match self.questions.iter_mut().find(|(id, _)| *id == worker) {
            Some((_, count)) => {
                *count += 1;
                *count > max
            }
            None => {
                self.questions.push((worker, 1));
                false
            }
        }
    }

    fn accept_to_handoff(&self, quantile: f64) -> Option<u64> {
        let all = self.at_once + self.waited.len();
        if all == 0 {
            return None;
        }
        let waited_share = self.waited.len() as f64 / all as f64;
        if quantile <= 1.0 - waited_share {
            return Some(0);
        }
        Some(self.waited.value_at_quantile(1.0 - (1.0 - quantile) / waited_share))
    }
}

/// A quantile of the page's histogram, in microseconds: the upper edge of the bucket.
fn queued_quantile(buckets: &[u32; WAITED_BUCKETS], quantile: f64) -> Option<u64> {
    let mut histogram = Histogram::<u64>::new_with_max(WAIT_MAX_US, 2).ok()?;
    for (power, count) in buckets.iter().enumerate() {
        let upper = (2u64 << power.min(62)) - 1;
        histogram.saturating_record_n(upper.max(1), u64::from(*count));
    }
    (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile))
}

impl Primary {
    /// Everything, as of now.
    pub(super) fn status(&mut self) -> Status {
        for worker in self.workers.iter_mut().filter(|worker| worker.page.attached) {
            worker.page.drop_dead_lines(super::process::exists);
        }
        self.advise();
        let totals = self.core.totals();
        Status {
            schema: SCHEMA,
            pid: std::process::id(),
            name: self.commands.name(&self.config.name).to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policy: self.policy(),
            uptime_s: (self.now - self.meters.started) / SECOND,
            slots: self.core.slot_count(),
            paused: self.core.is_paused(),
            stopping: self.is_ending(),
            reloading: self.core.reloading().is_some(),
            listeners: self.listener_statuses(),
            workers: self.worker_statuses(),
            advice: self.adviser.given(),
            totals: Totals {
                accepted: totals.accepted,
                handed_off: totals.handed_off,
                salvaged: totals.salvaged,
                stolen: totals.stolen,
                refused: totals.refused,
                shed: totals.shed,
                waits: totals.waits,
                messages_dropped: self.posts.dropped,
                lines_dropped: self.output.as_ref().map_or(0, Output::dropped),
                hung: totals.hung,
                recycled: totals.recycled,
                accept_to_handoff_p50_us: self.meters.accept_to_handoff(0.5),
                accept_to_handoff_p99_us: self.meters.accept_to_handoff(0.99),
                longest_turn_us: self.meters.turns.longest_us(),
                longest_wait_us: self.meters.turns.longest_wait_us(),
            },
        }
    }

    fn listener_statuses(&self) -> Vec<ListenerStatus> {
        let one = |listener: &super::listener::Listener| {
            let depth = listener.backlog_depth();
            let asked = u32::try_from(listener.backlog).unwrap_or(0);
            ListenerStatus {
                address: listener.to_string(),
                policy: crate::config::policy_name(listener.policy).to_owned(),
                accepted: listener.accepted,
                backlog: depth.map_or(asked, |(_, limit)| limit),
                queue_depth: depth.map(|(waiting, _)| waiting),
            }
        };
        self.listeners.iter().map(|(_, listener)| one(listener)).collect()
    }

    fn worker_statuses(&self) -> Vec<WorkerStatus> {
        let slots: Vec<_> = self.core.slots().collect();
        let restarts = |slot| slots.iter().find(|s| s.slot == slot).map_or(0, |s| s.restarts);
        let mut all: Vec<WorkerStatus> = self
            .core
            .workers()
            .map(|view| {
                let shell = self.workers.get(view.worker);
                let load = shell.map(|shell| shell.page.load());
                let attached = shell.is_some_and(|shell| shell.page.attached);
                let waited = shell.map(|shell| shell.page.waited());
                let quantile = |q| waited.as_ref().and_then(|buckets| queued_quantile(buckets, q));
                WorkerStatus {
                    slot: view.slot.0,
                    id: Some(view.worker.0),
                    generation: Some(view.generation.0),
                    pid: shell.map(|shell| shell.pid),
                    state: state_named(view.state),
                    handed_off: Some(view.handed_off.saturating_sub(view.taken_back)),
                    claimed: load.filter(|_| attached).map(|load| load.claimed),
                    closed: shell.filter(|_| attached).map(|shell| shell.page.closed()),
                    queued: shell.and_then(Worker::queued_exact),
                    active: load.and_then(|load| load.active),
                    window: Some(view.window),
                    paused: view.paused,
                    late: view.late,
                    recycle: view.recycle.map(|why| reason_word(why).to_owned()),
                    restarts: restarts(view.slot),
                    last_exit: self.hands.last_exit(view.slot),
                    uptime_s: shell.map(|shell| (self.now - shell.started_ns) / SECOND),
                    rss_bytes: shell.and_then(|shell| resident(shell.pid)),
                    queued_p50_us: quantile(0.5),
                    queued_p99_us: quantile(0.99),
                }
            })
            .collect();
        all.extend(slots.iter().filter(|slot| slot.worker.is_none()).map(|slot| WorkerStatus {
            slot: slot.slot.0,
            id: None,
            generation: None,
            pid: None,
            state: state_named(slot.state),
            handed_off: None,
            claimed: None,
            closed: None,
            queued: None,
            active: None,
            window: None,
            paused: slot.paused,
            late: false,
            recycle: None,
            restarts: slot.restarts,
            last_exit: self.hands.last_exit(slot.slot),
            uptime_s: None,
            rss_bytes: None,
            queued_p50_us: None,
            queued_p99_us: None,
        }));
        all.sort_by_key(|worker| (worker.slot, worker.id));
        all
    }
}

fn state_named(name: &str) -> WorkerState {
    let all = [
        WorkerState::Starting,
        WorkerState::Ready,
        WorkerState::Parked,
        WorkerState::Draining,
        WorkerState::Killing,
        WorkerState::Backoff,
        WorkerState::Failed,
    ];
    all.into_iter().find(|state| state.name() == name).unwrap_or(WorkerState::Down)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_beyond_some_in_a_second_are_counted() {
        let mut meters = Meters::new(0);
        for _ in 0..COMPLAINTS_PER_SECOND_MAX {
            assert_eq!(meters.complaint(5), Complaint::Said { unsaid: 0 });
        }
        for _ in 0..7 {
            assert_eq!(meters.complaint(SECOND - 1), Complaint::LeftOut);
        }
        assert_eq!(meters.complaint(SECOND), Complaint::Said { unsaid: 7 });
        assert_eq!(meters.complaint(SECOND), Complaint::Said { unsaid: 0 });
    }
}
