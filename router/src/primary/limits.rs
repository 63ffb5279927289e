//! What is said of hung workers, of recycling, and of clients that are turned away.
//!
//! Owns the words, decides nothing.

use std::time::Duration;

use croupier_core::event::{Fault, RecycleReason, Report, SlotId, WorkerId};
use log::Level;

use super::announce::how;
use super::run::Primary;
use crate::config::bytes_text;

impl Primary {
    /// A line of log for a report of `hung`, `recycle` or `admission`.
    pub(super) fn report_limits(&mut self, report: Report) {
        if let Report::RecycleFailed { by, slot, fault, wait: None } = report {
            let why = words_of_failure(by, slot, fault);
            let lines = self.last_lines(by);
            let lines = lines.into_iter().map(|line| format!("\n  {line}")).collect::<String>();
            self.restart_failed(slot, &format!("{why}{lines}"));
        }
        if let Report::Recycled { worker, .. } = report {
            self.note_recycled(worker);
        }
        if let Some((level, text)) = self.words_of_limits(report) {
            log::log!(level, "{text}");
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table")]
    fn words_of_limits(&self, report: Report) -> Option<(Level, String)> {
        match report {
            Report::Hung { worker, slot, silent, queued } => {
                Some((Level::Error, self.words_of_hung(worker, slot, silent, queued)))
            }
            Report::RecycleBegan { worker, by, slot, why } => {
                let why = self.why_recycled(why);
                let (slot, worker, by) = (slot.0, worker.0, by.0);
                let text =
                    format!("slot {slot}: worker {worker} {why}; worker {by} starts beside it");
                Some((Level::Info, text))
            }
            Report::Recycled { worker, by, slot } => {
                let text =
                    format!("slot {}: worker {} takes over from worker {}", slot.0, by.0, worker.0);
                Some((Level::Info, text))
            }
            Report::RecycleFailed { by, slot, fault, wait } => {
                let again = wait.map(|wait| format!(". Tried again in {wait:.1?}"));
                Some((Level::Error, words_of_failure(by, slot, fault) + &again.unwrap_or_default()))
            }
            Report::NeedsMore { worker, slot, bytes, longest } => {
                let limit = self.config.max_rss.as_ref().map_or(0, |max| max.bytes);
                let text = format!(
                    "slot {}: worker {} has {} of memory as soon as it has taken over, and --max-rss is {}: \
                     every worker will, and it is replaced again and again, ever more rarely, down to once \
                     in {longest:?}; raise --max-rss above what a worker needs",
                    slot.0,
                    worker.0,
                    bytes_text(bytes),
                    bytes_text(limit)
                );
                Some((Level::Warn, text))
            }
            Report::ShedBegan { listener, waiting } => {
                let at = self.listeners.get(usize::from(listener.0));
                let text = format!(
                    "clients of {} have waited for {:?} (--max-queue-wait), {waiting} in hand; who comes now is \
                     reset",
                    at.map_or_else(|| "a listener".to_owned(), ToString::to_string),
                    self.config.core.limits.max_queue_wait.unwrap_or_default()
                );
                Some((Level::Warn, text))
            }
            Report::ShedEnded { shed } => {
                let clients = if shed == 1 { "client was" } else { "clients were" };
                Some((Level::Warn, format!("nobody is reset any more; {shed} {clients}")))
            }
            // Others say those.
            Report::Forked { .. }
            | Report::Online { .. }
            | Report::NotForked { .. }
            | Report::Listens { .. }
            | Report::Disconnected { .. }
            | Report::Exited { .. }
            | Report::Scaled { .. }
            | Report::ScaleRefused { .. }
            | Report::Paused { .. }
            | Report::PauseRefused { .. }
            | Report::Resumed { .. }
            | Report::Stopping { .. }
            | Report::SlotStopped { .. }
            | Report::SlotDone { .. }
            | Report::AllDone
            | Report::Ready { .. }
            | Report::AllReady
            | Report::NotReadyInTime { .. }
            | Report::WentToBackground { .. }
            | Report::Died { .. }
            | Report::BackingOff { .. }
            | Report::SlotFailed { .. }
            | Report::Late { .. }
            | Report::Recovered { .. }
            | Report::Stole { .. }
            | Report::Salvaged { .. }
            | Report::NumbersDoNotFit { .. }
            | Report::DrainCut { .. }
            | Report::Drained { .. }
            | Report::Drains { .. }
            | Report::ReloadBegan { .. }
            | Report::ReloadQueued
            | Report::ReloadRefused
            | Report::Parked { .. }
            | Report::Unparked { .. }
            | Report::Soaking { .. }
            | Report::ReloadDone { .. }
            | Report::ReloadFailed { .. }
            | Report::ReloadOver { .. } => None,
        }
    }

    fn words_of_hung(
        &self,
        worker: WorkerId,
        slot: SlotId,
        silent: Duration,
        queued: u32,
    ) -> String {
        let pid = self.workers.get(worker).map_or(0, |worker| worker.pid);
        format!(
            "worker {} (pid {pid}) hangs: in {silent:.1?} it has taken and closed nothing, {}; it gets \
             SIGABRT, KILL {:?} later, and slot {} its next worker",
            worker.0,
            what_waits(queued),
            self.config.core.kill_after,
            slot.0
        )
    }

    fn why_recycled(&self, why: RecycleReason) -> String {
        match why {
            RecycleReason::Asked => "is to be replaced".to_owned(),
            RecycleReason::Connections(given) => {
                format!("was given {given} connections (--max-connections)")
            }
            RecycleReason::Lifetime(own) => format!("has served for {own:.1?} (--max-lifetime)"),
            RecycleReason::Memory(bytes) => {
                let limit = self.config.max_rss.as_ref().map_or(0, |max| max.bytes);
                format!("has {} of memory (--max-rss {})", bytes_text(bytes), bytes_text(limit))
            }
        }
    }
}

fn words_of_failure(by: WorkerId, slot: SlotId, fault: Fault) -> String {
    let what = what_happened(fault);
    format!("slot {}: worker {}, which was to take over, {what}; the old one stays", slot.0, by.0)
}

fn what_waits(queued: u32) -> String {
    match queued {
        0 => "while others served what had waited for it".to_owned(),
        1 => "while 1 connection waits for it".to_owned(),
        many => format!("while {many} connections wait for it"),
    }
}

fn what_happened(fault: Fault) -> String {
    match fault {
        Fault::NotStarted => "cannot be started".to_owned(),
        Fault::NotReady => "was not ready in time".to_owned(),
        Fault::Ended(status) => how(status),
        Fault::Broken => "broke what it must keep to".to_owned(),
        Fault::Hung => "hung".to_owned(),
    }
}

/// The word for a reason, in the status.
pub(super) fn reason_word(why: RecycleReason) -> &'static str {
    match why {
        RecycleReason::Asked => "restart",
        RecycleReason::Connections(_) => "connections",
        RecycleReason::Lifetime(_) => "lifetime",
        RecycleReason::Memory(_) => "memory",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_hung_worker() {
        assert_eq!(what_waits(1), "while 1 connection waits for it");
        assert_eq!(what_waits(2), "while 2 connections wait for it");
        assert!(what_waits(0) == "while others served what had waited for it");
    }
}
