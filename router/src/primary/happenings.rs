//! `croupier events`: what happens, told to whoever follows.
//!
//! Owns the number of the last event. Promises: events are told in the order in which the core reports
//! them; each has the next number, whether somebody follows or not; without a follower an event costs
//! no more than counting it. Never waits for a follower: that is the control server's promise.

use std::time::Duration;

use croupier_core::event::{ReloadFault, Report, SlotId, WorkerId};

use super::hands::word;
use super::run::Primary;
use crate::control::messages::{Happening, Reply};
use crate::control::server::{ClientId, FOLLOWERS_MAX};
use crate::output::{wall_clock, written};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Happenings {
    /// The number of the last event.
    last: u64,
}

impl Primary {
    /// `croupier events`.
    pub(super) fn follow(&mut self, client: ClientId) -> Option<Reply> {
        // What has happened in this turn comes before.
        self.settle();
        if !self.commands.follow(client) {
            let why = format!("{FOLLOWERS_MAX} clients follow its events already");
            return Some(Reply::Failed { why });
        }
        let begin = Happening {
            seq: Some(self.happenings.last),
            time: written(wall_clock()),
            event: "following".into(),
            pid: Some(std::process::id()),
            ..Happening::default()
        };
        self.commands.tell_one(client, begin, self.poll.registry());
        None
    }

    /// Tells of a report, if it is an event.
    pub(super) fn tell_of(&mut self, report: Report) {
        if let Report::ReloadFailed { why: ReloadFault::Worker { .. }, .. } = report {
            // Its words are found, and then told, once.
            return;
        }
        self.tell_of_with(report, None);
    }

    /// [`Self::tell_of`] with a reason in words.
    pub(super) fn tell_of_with(&mut self, report: Report, why: Option<&str>) {
        let Some(name) = report.event_name() else { return };
        self.happenings.last += 1;
        if !self.commands.is_followed() {
            return;
        }
        let mut event = self.happening(report);
        event.seq = Some(self.happenings.last);
        event.time = written(wall_clock());
        event.event = name.to_owned();
        if let Some(why) = why {
            event.why = Some(why.to_owned());
        }
        self.commands.tell_followers(event, self.poll.registry());
    }

    #[expect(clippy::too_many_lines, reason = "a table")]
    fn happening(&self, report: Report) -> Happening {
        match report {
            Report::Forked { worker, .. }
            | Report::Online { worker, .. }
            | Report::Late { worker }
            | Report::Recovered { worker }
            | Report::Hung { worker, .. }
            | Report::Disconnected { worker, .. } => self.of_worker(worker),
            Report::Listens { worker, listener } => {
                let at = self.listeners.get(usize::from(listener.0));
                Happening { address: at.map(ToString::to_string), ..self.of_worker(worker) }
            }
            Report::Ready { worker, after, .. } => {
                Happening { after_ms: Some(millis(after)), ..self.of_worker(worker) }
            }
            Report::Stole { worker, count } => {
                Happening { count: Some(count.into()), ..self.of_worker(worker) }
            }
            Report::Exited { worker, status, .. } => {
                Happening { why: Some(word(status)), ..self.of_worker(worker) }
            }
            Report::NotForked { worker, slot, generation } => Happening {
                worker: Some(worker.0),
                slot: Some(slot.0),
                generation: Some(generation.0),
                why: self.announcer.start_failed.as_ref().map(ToString::to_string),
                ..Happening::default()
            },
            Report::SlotFailed { slot } => of_slot(Some(slot)),
            Report::Paused { slot } | Report::Resumed { slot } => of_slot(slot),
            Report::Scaled { from, to } => {
                Happening { from: Some(from), to: Some(to), ..Happening::default() }
            }
            Report::Stopping { now } => Happening { now: Some(now), ..Happening::default() },
            Report::ReloadBegan { generation, rolling } => Happening {
                generation: Some(generation.0),
                rolling: Some(rolling),
                ..Happening::default()
            },
            Report::ReloadDone { generation } => {
                Happening { generation: Some(generation.0), ..Happening::default() }
            }
            Report::ReloadFailed { generation, why, .. } => Happening {
                generation: Some(generation.0),
                why: (why == ReloadFault::Stopped).then(|| "it is stopping".to_owned()),
                ..Happening::default()
            },
            // No events.
            Report::ScaleRefused { .. }
            | Report::PauseRefused { .. }
            | Report::AllReady
            | Report::NotReadyInTime { .. }
            | Report::WentToBackground { .. }
            | Report::Died { .. }
            | Report::BackingOff { .. }
            | Report::SlotStopped { .. }
            | Report::SlotDone { .. }
            | Report::AllDone
            | Report::Salvaged { .. }
            | Report::RecycleBegan { .. }
            | Report::Recycled { .. }
            | Report::RecycleFailed { .. }
            | Report::NeedsMore { .. }
            | Report::ShedBegan { .. }
            | Report::ShedEnded { .. }
            | Report::NumbersDoNotFit { .. }
            | Report::DrainCut { .. }
            | Report::Drained { .. }
            | Report::Drains { .. }
            | Report::ReloadQueued
            | Report::ReloadRefused
            | Report::Parked { .. }
            | Report::Unparked { .. }
            | Report::Soaking { .. }
            | Report::ReloadOver { .. } => Happening::default(),
        }
    }

    fn of_worker(&self, worker: WorkerId) -> Happening {
        let view = self.core.workers().find(|view| view.worker == worker);
        let pid = self.workers.get(worker).map(|found| found.pid);
        Happening {
            worker: Some(worker.0),
            slot: view.map(|view| view.slot.0),
            generation: view.map(|view| view.generation.0),
            pid,
            ..Happening::default()
        }
    }
}

fn of_slot(slot: Option<SlotId>) -> Happening {
    Happening { slot: slot.map(|slot| slot.0), ..Happening::default() }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
