//! What the primary says to a person: start, progress, ready, and why something went wrong.
//!
//! Owns the words, decides nothing. A line per event of supervision, none per connection.

use std::io;
use std::time::Duration;

use croupier_core::config::ReadyRule;
use croupier_core::event::{ExitStatus, Outcome, Report, WorkerId};

use log::Level;

use super::drive::{words_of_pause, words_of_resume};
use super::process;
use super::run::Primary;
use super::start::addresses;
use crate::config::ListenAddress;
use crate::diagnose;

/// How often progress is said until every worker is ready.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Last lines of a worker's output that a message repeats.
const LAST_LINES_SAID: usize = 10;

/// What has been said already.
#[derive(Debug)]
pub(super) struct Announcer {
    next_progress: Option<u64>,
    /// Everybody was ready, and that was said.
    said_ready: bool,
    /// The last failure to start a process at all.
    pub(super) start_failed: Option<io::Error>,
    /// The last worker that ended by itself, and how.
    last_exit: Option<(WorkerId, ExitStatus)>,
    bind_failed: Option<String>,
}

impl Announcer {
    pub(super) fn new(now: u64) -> Self {
        let next = now + u64::try_from(PROGRESS_EVERY.as_nanos()).unwrap_or(u64::MAX);
        Self {
            next_progress: Some(next),
            said_ready: false,
            start_failed: None,
            last_exit: None,
            bind_failed: None,
        }
    }

    /// When progress is due; `None` once everybody was ready.
    pub(super) const fn deadline(&self) -> Option<u64> {
        self.next_progress
    }

    pub(super) fn note_exit(&mut self, worker: WorkerId, status: ExitStatus) {
        self.last_exit = Some((worker, status));
    }

    /// A worker's bind(2) was refused: the program says so in its own words, this says whose fault
    /// it is. Once for each address.
    pub(super) fn bind_failed(
        &mut self,
        worker: WorkerId,
        address: &ListenAddress,
        error: &io::Error,
    ) {
        let again = io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO));
        let text = diagnose::bind_error(address, again).to_string();
        if self.bind_failed.as_ref() != Some(&text) {
            log::error!("worker {}: {text}", worker.0);
            self.bind_failed = Some(text);
        }
    }
}

/// `1 connection`, `2 connections`.
pub(super) fn plural(count: u32, noun: &str) -> String {
    plural_of(count.into(), noun)
}

/// [`plural`] of a larger count.
pub(super) fn plural_of(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// How a process ended, for people.
pub(super) fn how(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("exited with status {code}"),
        ExitStatus::Signal(number) => format!("was killed by {}", signal_name(number)),
        ExitStatus::Dumped(number) => {
            format!("was killed by {} and left a core dump", signal_name(number))
        }
        ExitStatus::OutOfMemory => "was killed for lack of memory (OOM)".to_owned(),
    }
}

/// `SIGSEGV`; realtime signals have no names.
pub(super) fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.to_string(),
        Err(_) => format!("signal {number}"),
    }
}

/// Reports that are no more than a sentence.
#[expect(clippy::too_many_lines, reason = "a table")]
fn sentence(report: Report) -> (Level, String) {
    match report {
        Report::WentToBackground { worker } => (
            Level::Error,
            format!(
                "worker {} exited with status 0 while processes that it started live on: the program went \
                 into the background. Tell it to stay in the foreground",
                worker.0
            ),
        ),
        Report::BackingOff { slot, wait, crashes } => (
            Level::Info,
            format!("slot {}: crash {crashes} in a row; next start in {wait:?}", slot.0),
        ),
        Report::SlotFailed { slot } => {
            (Level::Error, format!("slot {} used up its crash budget and stays down", slot.0))
        }
        Report::SlotDone { worker, slot, code, queued: _ } => (
            Level::Info,
            format!(
                "worker {} exited with status {code}, which --stop-exit-codes names: slot {1} stays \
                 down; croupier start {1} starts it",
                worker.0, slot.0
            ),
        ),
        Report::AllDone => (
            Level::Info,
            "every worker has exited with a status that --stop-exit-codes names: stopping".into(),
        ),
        Report::Recovered { worker } => (Level::Info, format!("worker {} claims again", worker.0)),
        Report::Stole { worker, count } => (
            Level::Info,
            format!(
                "took {} from worker {}, which is late",
                plural(count, "waiting connection"),
                worker.0
            ),
        ),
        Report::Salvaged { worker, count } => (
            Level::Info,
            format!("salvaged {} of worker {}", plural(count, "waiting connection"), worker.0),
        ),
        Report::NumbersDoNotFit { worker } => (
            Level::Warn,
            format!(
                "what worker {} counts does not fit what it was given; it will be replaced",
                worker.0
            ),
        ),
        Report::DrainCut { worker, active: Some(active), .. } => (
            Level::Warn,
            format!(
                "worker {} still held {} at the end of the --graceful-timeout",
                worker.0,
                plural(active, "connection")
            ),
        ),
        Report::DrainCut { worker, active: None, .. } => (
            Level::Warn,
            format!("worker {} did not end by itself within the --graceful-timeout", worker.0),
        ),
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
        | Report::AllReady
        | Report::Ready { .. }
        | Report::NotReadyInTime { .. }
        | Report::Died { .. }
        | Report::SlotStopped { .. }
        | Report::Late { .. }
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
        | Report::ReloadOver { .. }
        | Report::Hung { .. }
        | Report::RecycleBegan { .. }
        | Report::Recycled { .. }
        | Report::RecycleFailed { .. }
        | Report::NeedsMore { .. }
        | Report::ShedBegan { .. }
        | Report::ShedEnded { .. } => (Level::Debug, format!("{report:?}")),
    }
}

impl Primary {
    /// In a word; where addresses differ, each that there is, in their order.
    pub(super) fn policy(&self) -> String {
        let names: Vec<&str> =
            self.config.policies().into_iter().map(crate::config::policy_name).collect();
        names.join("+")
    }

    pub(super) fn announce_start(&self) {
        let workers = &self.config.workers;
        let why =
            if workers.why.is_empty() { String::new() } else { format!(" ({})", workers.why) };
        let plural = if workers.count == 1 { "worker" } else { "workers" };
        let file = &self.config.file;
        let by = if file.is_empty() { String::new() } else { format!(", by {file}") };
        self.say(&format!(
            "croupier {} (pid {}): starting {} {plural} of {}{why}{by}",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            workers.count,
            self.launcher.title(),
        ));
        for note in self.launcher.notes() {
            self.say(note);
        }
        if let Some(max) = &self.config.max_rss
            && !max.why.is_empty()
        {
            self.say(&format!("max-rss {}", max.why));
        }
        self.commands.announce(|text| self.say(text));
    }

    pub(super) fn say(&self, text: &str) {
        if let Some(output) = &self.output {
            output.say(text);
        }
    }

    /// Progress until everybody is ready.
    pub(super) fn announce(&mut self) {
        if self.announcer.next_progress.is_none_or(|at| self.now < at) {
            return;
        }
        self.announcer.next_progress = Some(self.later(PROGRESS_EVERY));
        let waiting = match self.config.core.ready {
            ReadyRule::Listen => "listen()",
            ReadyRule::Accept => "accept()",
            ReadyRule::Notify => "READY=1 (sd_notify)",
            ReadyRule::Start => "its start",
        };
        let probe = self.config.ready_probe.as_ref();
        let probe = probe.map_or_else(String::new, |probe| format!(" and an answer to {probe}"));
        let (ready, all) = (self.core.ready_count(), self.core.wanted_count());
        let text = format!("{ready} of {all} ready; waiting for {waiting}{probe}");
        self.say(&text);
        self.service.starting(&text);
    }

    /// A line of log for what the core reports.
    #[expect(clippy::too_many_lines, reason = "a table")]
    pub(super) fn report(&mut self, report: Report) {
        self.tell_of(report);
        self.tell_service(report);
        match report {
            // For the events only.
            Report::Forked { .. }
            | Report::Online { .. }
            | Report::NotForked { .. }
            | Report::Listens { .. }
            | Report::Disconnected { .. }
            | Report::Exited { .. }
            | Report::Stopping { .. } => {}
            Report::Scaled { from, to } => self.scaled(from, to),
            Report::ScaleRefused { why } => self.scale_refused(why),
            Report::PauseRefused { why } => self.pause_refused(why),
            Report::Paused { slot } => log::info!("{}", words_of_pause(slot)),
            Report::Resumed { slot } => log::info!("{}", words_of_resume(slot)),
            Report::AllReady => self.announce_ready(),
            Report::Ready { worker, .. } if self.is_successor(worker) => {
                self.note_cgroup(worker);
                self.report_reload(report);
            }
            Report::Ready { worker, slot, .. } => {
                self.note_cgroup(worker);
                if self.announcer.said_ready {
                    log::info!("worker {} took over slot {}", worker.0, slot.0);
                }
            }
            Report::NotReadyInTime { worker } => self.report_not_ready(worker),
            Report::Died { worker, status, queued } => self.report_death(worker, status, queued),
            Report::Late { .. } => log::debug!("{report:?}"),
            Report::SlotStopped { slot } => self.slot_stopped(slot),
            Report::Drained { worker } | Report::DrainCut { worker, .. }
                if self.hands.is_leaving(worker) =>
            {
                self.report_leaving(report);
            }
            // While everything stops, nobody wants to hear of each worker.
            Report::Drained { .. } | Report::DrainCut { .. } if self.core.is_stopping() => {
                let (level, text) = sentence(report);
                log::log!(level, "{text}");
            }
            Report::Drained { .. }
            | Report::DrainCut { .. }
            | Report::Drains { .. }
            | Report::ReloadBegan { .. }
            | Report::ReloadQueued
            | Report::ReloadRefused
            | Report::Parked { .. }
            | Report::Unparked { .. }
            | Report::Soaking { .. }
            | Report::ReloadDone { .. }
            | Report::ReloadFailed { .. }
            | Report::ReloadOver { .. } => self.report_reload(report),
            Report::Hung { .. }
            | Report::RecycleBegan { .. }
            | Report::Recycled { .. }
            | Report::RecycleFailed { .. }
            | Report::NeedsMore { .. }
            | Report::ShedBegan { .. }
            | Report::ShedEnded { .. } => self.report_limits(report),
            Report::WentToBackground { .. }
            | Report::BackingOff { .. }
            | Report::SlotFailed { .. }
            | Report::SlotDone { .. }
            | Report::AllDone
            | Report::Recovered { .. }
            | Report::Stole { .. }
            | Report::Salvaged { .. }
            | Report::NumbersDoNotFit { .. } => {
                let (level, text) = sentence(report);
                log::log!(level, "{text}");
            }
        }
    }

    fn announce_ready(&mut self) {
        self.announcer.next_progress = None;
        self.announcer.said_ready = true;
        let count = self.core.wanted_count();
        let plural = if count == 1 { "worker" } else { "workers" };
        self.say(&format!(
            "ready: {count} {plural} on {}, policy {}, adapter {}",
            addresses(&self.listeners),
            self.policy(),
            self.launcher.adapter(),
        ));
    }

    fn report_not_ready(&mut self, worker: WorkerId) {
        let Some(found) = self.workers.get(worker) else { return };
        let why = self.fault_of(worker).unwrap_or_else(|| {
            if let Some(forked) = &found.forked {
                let program = forked.program.display();
                return format!(
                    "{program} is not even executed yet: the disk that it is on, or this machine, is too slow"
                );
            }
            let family = process::family(found, &[]).pids;
            diagnose::why_not_ready(found.pid, &family).to_string()
        });
        log::error!("worker {} is not ready in time: {why}", worker.0);
        let slot = found.slot;
        self.hands.note_late(slot, worker, &why);
        self.note_not_ready(worker, &why);
        if !self.is_successor(worker) {
            self.repeat_last_lines(worker);
        }
    }

    fn report_death(&mut self, worker: WorkerId, status: ExitStatus, queued: u32) {
        let waiting = match queued {
            0 => String::new(),
            1 => "; the connection that waited for it goes to another".into(),
            many => format!("; the {many} connections that waited for it go to others"),
        };
        let advice = match status {
            ExitStatus::OutOfMemory => self.memory.advice(),
            ExitStatus::Code(_) | ExitStatus::Signal(_) | ExitStatus::Dumped(_) => String::new(),
        };
        log::warn!("worker {} {}{waiting}{advice}", worker.0, how(status));
        if !self.announcer.said_ready {
            self.repeat_last_lines(worker);
        }
    }

    fn repeat_last_lines(&self, worker: WorkerId) {
        let lines = self.last_lines(worker);
        if lines.is_empty() {
            return log::error!("worker {} printed nothing", worker.0);
        }
        log::error!("the last lines of worker {}:", worker.0);
        for line in lines {
            log::error!("  {line}");
        }
    }

    /// What a worker printed last.
    pub(super) fn last_lines(&self, worker: WorkerId) -> Vec<String> {
        let Some(output) = &self.output else { return Vec::new() };
        let lines = output.last_lines(worker.0);
        let skip = lines.len().saturating_sub(LAST_LINES_SAID);
        lines.into_iter().skip(skip).collect()
    }

    /// The last line, when it did not end as asked.
    pub(super) fn announce_end(&mut self, outcome: Outcome) -> Option<String> {
        self.service.stopping("the end");
        let last = self.announcer.last_exit.map(|(worker, status)| {
            format!("; the last one, worker {}, {}", worker.0, how(status))
        });
        let last = last.unwrap_or_default();
        let failed = self.announcer.start_failed.as_ref();
        let failed =
            failed.map(|error| format!("; it cannot be started: {error}")).unwrap_or_default();
        let text = match outcome {
            Outcome::Stopped | Outcome::Killed => return None,
            Outcome::NeverStarted => {
                format!("no worker of {} became ready{last}{failed}", self.launcher.title())
            }
            Outcome::AllFailed => {
                format!("every slot has failed{last}{failed}; --stay would keep trying")
            }
        };
        self.say(&text);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_is_one() {
        let worker = WorkerId(3);
        for (count, salvaged, stolen) in [
            (
                1,
                "salvaged 1 waiting connection of worker 3",
                "took 1 waiting connection from worker 3, which is late",
            ),
            (
                2,
                "salvaged 2 waiting connections of worker 3",
                "took 2 waiting connections from worker 3, which is late",
            ),
        ] {
            assert_eq!(sentence(Report::Salvaged { worker, count }).1, salvaged);
            assert_eq!(sentence(Report::Stole { worker, count }).1, stolen);
        }
    }
}
