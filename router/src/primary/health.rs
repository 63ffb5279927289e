//! What the operator asked to be told or waited for by the clock: `--report` and `--stop-delay`.
//!
//! Owns the two times. Promises: without the flags there is no deadline and no wake-up; while a stop is
//! delayed the core knows nothing of it, so everything goes on as ever: dealing, restarts, reloads.

use std::time::Duration;

use crate::config::bytes_text;

use super::announce::plural;
use super::commands::Ending;
use super::rss::resident;
use super::run::Primary;

/// The two times.
#[derive(Debug)]
pub(super) struct Health {
    /// `--report`: how often in nanoseconds, when next, and what had been accepted at the last.
    report: Option<Every>,
    /// A stop was asked for: when it begins.
    stop_at: Option<u64>,
}

#[derive(Debug)]
struct Every {
    nanos: u64,
    at: u64,
    accepted: u64,
}

impl Every {
    fn new(every: Duration, now: u64, accepted: u64) -> Self {
        let nanos = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX);
        Self { nanos, at: now.saturating_add(nanos), accepted }
    }
}

impl Health {
    pub(super) fn new(now: u64, report: Option<Duration>) -> Self {
        Self { report: report.map(|every| Every::new(every, now, 0)), stop_at: None }
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        let report = self.report.as_ref().map(|every| every.at);
        report.into_iter().chain(self.stop_at).min()
    }

    /// The stop begins, or is another one.
    pub(super) const fn end_delay(&mut self) {
        self.stop_at = None;
    }
}

impl Primary {
    /// Whether it was asked to end, though it may still serve all that comes.
    pub(super) fn is_ending(&self) -> bool {
        self.commands.ending != Ending::No
            || self.health.stop_at.is_some()
            || self.core.is_stopping()
    }

    /// Puts a stop off by `--stop-delay`. Returns whether that is so: not if there is none, or if this is
    /// the second time that it is asked for.
    pub(super) fn delay_stop(&mut self, why: &str, again: &str) -> bool {
        let delay = self.config.care.stop_delay;
        if delay.is_zero() || self.is_ending() {
            return false;
        }
        self.health.stop_at = Some(self.later(delay));
        self.say(&format!(
            "stopping in {delay:?} ({why}): not ready from now on, and serving until then; {again} \
             ends the wait"
        ));
        let stands = self.stands();
        self.service.stopping(&stands);
        true
    }

    /// `--report` may be another one.
    pub(super) fn note_report(&mut self) {
        let (now, accepted) = (self.now, self.core.totals().accepted);
        let new = self.config.care.report.map(|every| Every::new(every, now, accepted));
        let nanos = |every: &Option<Every>| every.as_ref().map(|every| every.nanos);
        if nanos(&new) != nanos(&self.health.report) {
            self.health.report = new;
        }
    }

    /// Whatever of this is due.
    pub(super) fn look_at_health(&mut self) {
        if self.health.stop_at.is_some_and(|at| at <= self.now) {
            log::info!(
                "stopping (--stop-delay is over): {} connections to finish",
                self.connections_held()
            );
            self.begin_to_stop();
        }
        let accepted = self.core.totals().accepted;
        let now = self.now;
        if let Some(every) = &mut self.health.report
            && every.at <= now
        {
            let came = accepted.saturating_sub(every.accepted);
            let rate = came as f64 / Duration::from_nanos(every.nanos).as_secs_f64();
            every.accepted = accepted;
            // From now, not from when it was due: after a long turn, or a machine that slept, once.
            every.at = now.saturating_add(every.nanos);
            let line = self.health_line(rate);
            log::info!("{line}");
        }
    }

    fn health_line(&self, rate: f64) -> String {
        let (ready, all) = (self.core.ready_count(), self.core.wanted_count());
        let queued: u64 = self.workers.iter().filter_map(|w| w.queued_exact()).map(u64::from).sum();
        let active: Vec<u32> = self.workers.iter().filter_map(|w| w.page.load().active).collect();
        // Nothing counts under `shared` and `reuseport`.
        let active = if active.is_empty() {
            "unknown".to_owned()
        } else {
            active.into_iter().map(u64::from).sum::<u64>().to_string()
        };
        let bytes: u64 =
            self.workers.iter().filter(|w| w.is_executing()).filter_map(|w| resident(w.pid)).sum();
        let restarts: u32 =
            self.core.slots().map(|slot| slot.restarts).fold(0, u32::saturating_add);
        let late = u32::try_from(self.core.workers().filter(|view| view.late).count());
        format!(
            "health: {ready} of {all} workers ready, {} late; load: {queued} queued, {active} active; \
             {} accepted, {rate:.1}/s; rss {}; {}{}",
            late.unwrap_or(u32::MAX),
            self.core.totals().accepted,
            bytes_text(bytes),
            plural(restarts, "restart"),
            if self.is_ending() { ", stopping" } else { "" },
        )
    }
}
