//! What a reload says, in the log and to `croupier reload`: each step, what the old workers still
//! hold, and why it failed.
//!
//! Owns the words, decides nothing. Whoever waits for a reload hears its steps from its beginning,
//! and its end when nobody who leaves because of it is left.

use croupier_core::event::{
    CutReason, ExitStatus, Fault, Generation, ListenerId, RecycleReason, ReloadFault, Report,
    SlotId, WorkerId,
};

use super::announce::{how, plural, plural_of};
use super::hands::Goal;
use super::run::Primary;
use super::worker::Worker;
use crate::control::messages::Reply;

/// What a reload's end depends on.
#[derive(Debug, Default)]
pub(super) struct Replacing {
    /// Connections that were open when their worker ended, because it had no more time.
    cut: u64,
    /// The same, because too many drained.
    crowded_out: u64,
    /// The same of workers that ended by themselves, with connections open.
    dropped: u64,
    /// Workers of which nobody knows what they had open when they ended.
    uncounted: u32,
    /// Workers that drain while others go on.
    leavers: Vec<Leaver>,
    /// Slots that it brought.
    added: Vec<SlotId>,
    /// A worker that is recycled, or restarted, and by which word.
    alone: Option<(WorkerId, &'static str)>,
    /// Why the last worker that was not ready in time was not.
    not_ready: Option<(WorkerId, String)>,
}

impl Replacing {
    /// What clients have lost, in words.
    fn lost(&self) -> String {
        let connections = |count| plural_of(count, "connection");
        let mut lost = Vec::new();
        let known = self.cut + self.crowded_out + self.dropped;
        if self.uncounted > 0 && known == 0 {
            return "how many connections were cut is unknown".to_owned();
        }
        if self.cut > 0 || self.crowded_out == 0 {
            lost.push(format!("{} cut at the drain-timeout", connections(self.cut)));
        }
        if self.crowded_out > 0 {
            lost.push(format!("{} cut because of --max-draining", connections(self.crowded_out)));
        }
        if self.dropped > 0 {
            let dropped = connections(self.dropped);
            lost.push(format!("{dropped} by programs that ended with them open"));
        }
        if self.uncounted > 0 {
            let whose = plural(self.uncounted, "worker");
            lost.push(format!("an unknown number of connections of {whose}"));
        }
        lost.join(", ")
    }
}

/// That a worker is told to end, in words.
pub(super) fn words_of_cut(worker: WorkerId, active: Option<u32>, why: CutReason) -> String {
    let held = active.map_or_else(
        || "may hold connections".to_owned(),
        |active| format!("holds {}", plural(active, "connection")),
    );
    let why = match why {
        CutReason::Time => "has no more time",
        CutReason::Crowd => "has to end, as more drain than --max-draining allows",
    };
    format!("worker {} still {held} and {why}", worker.0)
}

/// A worker on its way out.
#[derive(Debug, Clone, Copy)]
struct Leaver {
    worker: WorkerId,
    /// It was told to end with connections open.
    cut: Option<CutReason>,
    /// Connections of processes that had died before: nobody cut those.
    lost: u64,
    /// What it leaves because of: the word before its lines of log.
    because_of: &'static str,
}

/// The word before the lines of log about a reload.
const RELOAD: &str = "reload";

impl Primary {
    /// A step of a reload, and what bears on one.
    pub(super) fn report_reload(&mut self, report: Report) {
        match report {
            Report::ReloadBegan { generation, rolling } => self.reload_began(generation, rolling),
            Report::ReloadQueued => {
                let text = "a reload is under way; the next one comes after it";
                log::info!("{text}");
                self.commands.queue_says(text, self.poll.registry());
            }
            Report::ReloadRefused => self.refuse_reloads(),
            Report::Ready { worker, slot, .. } => {
                self.step(&format!("slot {}: worker {} is ready", slot.0, worker.0));
            }
            Report::Parked { worker, by, slot } => self.step(&format!(
                "slot {}: worker {} takes over; worker {} is parked and holds {}",
                slot.0,
                by.0,
                worker.0,
                self.held_by(worker)
            )),
            Report::Unparked { worker, slot } => {
                self.step(&format!("slot {}: worker {} serves again", slot.0, worker.0));
            }
            Report::Soaking { ready, wait } => {
                let workers = plural(ready.into(), "new worker");
                self.step(&format!("watching {workers} for {wait:?}"));
            }
            Report::ReloadDone { generation } => self.reload_done(generation),
            Report::Drains { worker, slot } => self.leaves(worker, slot),
            Report::Drained { worker } => {
                self.step_of_leaver(worker, &format!("worker {} has ended", worker.0));
            }
            Report::DrainCut { worker, active, why } => self.is_cut(worker, active, why),
            Report::ReloadFailed { generation, why, kept } => {
                self.reload_failed(generation, why, kept);
            }
            Report::ReloadOver { generation } => self.reload_over(generation),
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
            | Report::NotReadyInTime { .. }
            | Report::WentToBackground { .. }
            | Report::Died { .. }
            | Report::BackingOff { .. }
            | Report::SlotFailed { .. }
            | Report::SlotStopped { .. }
            | Report::SlotDone { .. }
            | Report::AllDone
            | Report::Late { .. }
            | Report::Recovered { .. }
            | Report::Stole { .. }
            | Report::Salvaged { .. }
            | Report::NumbersDoNotFit { .. }
            | Report::Hung { .. }
            | Report::RecycleBegan { .. }
            | Report::Recycled { .. }
            | Report::RecycleFailed { .. }
            | Report::NeedsMore { .. }
            | Report::ShedBegan { .. }
            | Report::ShedEnded { .. } => {}
        }
    }

    pub(super) fn step(&mut self, text: &str) {
        self.step_of(RELOAD, text);
    }

    /// A step of this. Whoever waits for a reload hears it in any case: it is over when nobody leaves.
    fn step_of(&mut self, what: &str, text: &str) {
        log::info!("{what}: {text}");
        self.commands.reload_says(text, self.poll.registry());
    }

    /// The same of a worker that leaves.
    fn step_of_leaver(&mut self, worker: WorkerId, text: &str) {
        let leaver = self.replacing.leavers.iter().find(|leaver| leaver.worker == worker);
        let what = leaver.map_or(RELOAD, |leaver| leaver.because_of);
        self.step_of(what, text);
    }

    /// The worker that will be the next to drain is replaced alone.
    pub(super) fn note_recycled(&mut self, worker: WorkerId) {
        let view = self.core.workers().find(|view| view.worker == worker);
        let by_hand = view.is_some_and(|view| view.recycle == Some(RecycleReason::Asked));
        self.replacing.alone = Some((worker, if by_hand { "restart" } else { "recycle" }));
    }

    /// The new version is in force, also for those who are started later.
    fn reload_done(&mut self, generation: Generation) {
        self.version_holds(generation);
        let number = generation.0;
        let text = if self.core.wanted_count() == 0 {
            format!(
                "every slot is stopped: nobody has tried generation {number}; croupier start SLOT does"
            )
        } else {
            format!("every slot has a worker of generation {number}")
        };
        self.step(&text);
    }

    /// A worker begins to drain while others go on.
    fn leaves(&mut self, worker: WorkerId, slot: SlotId) {
        let lost = self.workers.get(worker).map_or(0, |found| found.page.lost());
        let alone = self.replacing.alone.take_if(|(known, _)| *known == worker);
        let because_of = alone.map_or(RELOAD, |(_, word)| word);
        self.replacing.leavers.push(Leaver { worker, cut: None, lost, because_of });
        let held = self.held_by(worker);
        let text = format!("slot {}: worker {} drains and holds {held}", slot.0, worker.0);
        self.step_of(because_of, &text);
    }

    /// It has no more time.
    fn is_cut(&mut self, worker: WorkerId, active: Option<u32>, why: CutReason) {
        let leavers = &mut self.replacing.leavers;
        for leaver in leavers.iter_mut().filter(|leaver| leaver.worker == worker) {
            leaver.cut.get_or_insert(why);
        }
        self.step_of_leaver(worker, &words_of_cut(worker, active, why));
    }

    fn reload_over(&mut self, generation: Generation) {
        self.version_is_over();
        // Whoever is not forgotten yet is dead: its numbers are final.
        while let Some(leaver) = self.replacing.leavers.first().copied() {
            self.note_end_of_leaver(leaver.worker);
        }
        let lost = self.replacing.lost();
        self.step(&format!("nobody is left to drain; {lost}"));
        for (client, failed) in self.commands.reload_over(generation) {
            let reply = match failed {
                Some(why) => Some(Reply::Failed { why }),
                // Those that came with another number of workers start only now.
                None => self.wait_for(client, Goal::Up, self.replacing.added.clone(), true),
            };
            if let Some(reply) = reply {
                self.commands.reply_to(client, &reply, self.poll.registry());
            }
        }
    }

    /// There is another number of slots.
    pub(super) fn note_scale(&mut self, from: u16, to: u16) {
        // In a reload it comes after the word that every slot, of those that there were, is new.
        let text = format!("now {} instead of {from}", plural(to.into(), "slot"));
        log::info!("{text}");
        self.commands.reload_says(&text, self.poll.registry());
        self.replacing.added.retain(|slot| slot.0 < to);
    }

    /// It is the reload that brings this number: whoever waits for it waits for the slots that come, and
    /// hears what becomes of the workers of those that go.
    pub(super) fn note_slots_of_reload(&mut self, from: u16, to: u16) {
        self.replacing.added.extend((from..to).map(SlotId));
        let goes = |worker: &&Worker| (to..from).contains(&worker.slot.0);
        let there: Vec<_> = self.workers.iter().filter(goes).map(|w| (w.id, w.slot)).collect();
        for (worker, slot) in there {
            // One that left before has been told of, by whoever made it leave.
            if self.is_draining(worker) && !self.is_known_to_leave(worker) {
                self.leaves(worker, slot);
            }
        }
    }

    fn is_known_to_leave(&self, worker: WorkerId) -> bool {
        self.hands.is_leaving(worker)
            || self.replacing.leavers.iter().any(|leaver| leaver.worker == worker)
    }

    /// A worker that drained has ended: what it had open, by its page, its clients have lost.
    pub(super) fn note_end_of_leaver(&mut self, worker: WorkerId) {
        let leavers = &mut self.replacing.leavers;
        let Some(at) = leavers.iter().position(|leaver| leaver.worker == worker) else { return };
        let leaver = leavers.remove(at);
        let Some(found) = self.workers.get(worker) else { return };
        let Some(unclosed) = found.page.unclosed() else {
            self.replacing.uncounted += 1;
            return;
        };
        let open = unclosed.saturating_sub(leaver.lost);
        if open == 0 {
            return;
        }
        let count = match leaver.cut {
            Some(CutReason::Time) => &mut self.replacing.cut,
            Some(CutReason::Crowd) => &mut self.replacing.crowded_out,
            None => &mut self.replacing.dropped,
        };
        *count = count.saturating_add(open);
        let open = plural_of(open, "connection");
        self.step_of(leaver.because_of, &format!("worker {} ended with {open} open", worker.0));
    }

    fn reload_began(&mut self, generation: Generation, rolling: bool) {
        // Those of an earlier reload that still drain count for whoever waits for both.
        if self.replacing.leavers.is_empty() {
            self.replacing = Replacing::default();
        }
        self.replacing.added.clear();
        self.commands.reload_began(generation);
        let rolling = if rolling { ", rolling" } else { "" };
        self.step(&format!("generation {} begins{rolling}", generation.0));
        self.version_begins(generation);
    }

    fn refuse_reloads(&mut self) {
        let why = "it is stopping: no reload";
        log::info!("{why}");
        self.commands.reload_refused(why, self.poll.registry());
    }

    fn reload_failed(&mut self, generation: Generation, why: ReloadFault, kept: u16) {
        let (reason, lines) = match why {
            ReloadFault::Stopped => {
                self.refuse_reloads();
                ("it is stopping".to_owned(), Vec::new())
            }
            ReloadFault::Worker { worker, slot, was_ready, fault } => {
                let reason = self.reason(worker, slot, was_ready, fault);
                self.tell_of_with(Report::ReloadFailed { generation, why, kept }, Some(&reason));
                (reason, self.last_lines(worker))
            }
        };
        let outcome = match (why, kept) {
            (ReloadFault::Stopped, _) => String::new(),
            (ReloadFault::Worker { .. }, 0) => "; the old workers go on".to_owned(),
            (ReloadFault::Worker { .. }, kept) => format!(
                "; the generations are mixed: {} of generation {}, the others go on with the old",
                if kept == 1 {
                    "1 slot keeps its worker".to_owned()
                } else {
                    format!("{kept} slots keep their workers")
                },
                generation.0
            ),
        };
        let text = format!("the reload failed: {reason}{outcome}");
        log::error!("{text}");
        if !lines.is_empty() {
            self.step("the last lines of the worker that failed:");
            for line in lines {
                self.step(&format!("  {line}"));
            }
        }
        self.commands.reload_failed(generation, &text);
        self.version_fails(generation, kept);
    }

    fn reason(&mut self, worker: WorkerId, slot: SlotId, was_ready: bool, fault: Fault) -> String {
        let who = format!("worker {} of slot {}", worker.0, slot.0);
        let when = if was_ready { "while it was being watched" } else { "before it was ready" };
        match fault {
            Fault::NotStarted => {
                let why = self.announcer.start_failed.as_ref();
                let why = why.map_or_else(String::new, |error| format!(": {error}"));
                format!("{who} cannot be started{why}")
            }
            Fault::NotReady => {
                let known = self.replacing.not_ready.take().filter(|(id, _)| *id == worker);
                let why = known.map_or_else(String::new, |(_, why)| format!(": {why}"));
                let limit = self.config.core.ready_timeout;
                format!("{who} was not ready within {limit:?}{why}")
            }
            Fault::Ended(ExitStatus::Code(0)) if !was_ready => {
                format!("{who} {} {when}: it must stay in the foreground", how(ExitStatus::Code(0)))
            }
            Fault::Ended(status) => format!("{who} {} {when}", how(status)),
            Fault::Broken => format!("{who} broke what it must keep to {when}"),
            Fault::Hung => format!("{who} hung {when}"),
        }
    }

    /// Remembers why a worker is not ready, while its process can be looked at.
    pub(super) fn note_not_ready(&mut self, worker: WorkerId, why: &str) {
        let missing = self.missing(worker);
        let why = if missing.is_empty() {
            why.to_owned()
        } else {
            format!("it does not listen on {}, as the old worker does", missing.join(", "))
        };
        self.replacing.not_ready = Some((worker, why));
    }

    /// The addresses that an old worker listens on and this one does not, if it listens at all.
    fn missing(&self, worker: WorkerId) -> Vec<String> {
        let Some(new) = self.workers.get(worker) else { return Vec::new() };
        let listens = new.listens();
        // By now the core may have given the reload up; the worker's own number stays.
        let generation = self.generation_of(worker);
        let is_old = |view: &croupier_core::WorkerView| {
            view.ready_since.is_some() && Some(view.generation) != generation
        };
        let old = self
            .core
            .workers()
            .filter(is_old)
            .max_by_key(|view| view.slot == new.slot)
            .and_then(|view| self.workers.get(view.worker));
        if listens.is_empty() {
            return Vec::new();
        }
        let wanted: Vec<ListenerId> = old.map(Worker::listens).unwrap_or_default();
        let missing = wanted.into_iter().filter(|listener| !listens.contains(listener));
        missing
            .filter_map(|listener| self.listeners.get(usize::from(listener.0)))
            .map(ToString::to_string)
            .collect()
    }

    pub(super) fn generation_of(&self, worker: WorkerId) -> Option<Generation> {
        self.core.workers().find(|view| view.worker == worker).map(|view| view.generation)
    }

    /// Whether a worker was started to replace one that is still there.
    pub(super) fn is_successor(&self, worker: WorkerId) -> bool {
        let own = self.generation_of(worker);
        self.core.workers().any(|view| Some(view.generation) < own)
    }

    /// What a worker has, for people.
    pub(super) fn held_by(&self, worker: WorkerId) -> String {
        let Some(found) = self.workers.get(worker) else { return "nothing".to_owned() };
        match found.page.load().active {
            Some(active) => {
                let queued = found.queued_exact().unwrap_or(0);
                plural(active.saturating_add(queued), "connection")
            }
            None => "an unknown number of connections".to_owned(),
        }
    }

    /// Whether lines of workers must say of which generation they are.
    pub(super) fn show_generations(&self) {
        let mut generations = self.core.workers().map(|view| view.generation);
        let first = generations.next();
        let several = generations.any(|generation| Some(generation) != first);
        if let Some(output) = &self.output {
            output.set_show_generation(several);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_and_why() {
        let lost = |cut, crowded_out, dropped, uncounted| {
            Replacing { cut, crowded_out, dropped, uncounted, ..Replacing::default() }.lost()
        };
        assert_eq!(lost(0, 0, 0, 0), "0 connections cut at the drain-timeout");
        assert_eq!(lost(1, 0, 0, 0), "1 connection cut at the drain-timeout");
        assert_eq!(lost(0, 2, 0, 0), "2 connections cut because of --max-draining");
        assert_eq!(lost(0, 0, 0, 2), "how many connections were cut is unknown");
        assert_eq!(
            lost(3, 1, 2, 0),
            "3 connections cut at the drain-timeout, 1 connection cut because of --max-draining, 2 connections \
             by programs that ended with them open"
        );
        assert_eq!(
            lost(0, 0, 1, 1),
            "0 connections cut at the drain-timeout, 1 connection by programs that ended with them open, an \
             unknown number of connections of 1 worker"
        );
        assert!(lost(1, 0, 0, 2).ends_with(", an unknown number of connections of 2 workers"));
    }
}
