//! Slots by hand: `croupier start SLOT` and `croupier stop SLOT`, who waits for them, and how the
//! last worker of each slot ended.
//!
//! Owns the words and the waiting clients, decides nothing. A client waits until each of its slots
//! is up, or gone, or it is known why that will not be.

use croupier_core::event::{Event, ExitStatus, Report, SlotId, WorkerId};
use croupier_core::{SlotView, Want};

use super::announce::{how, signal_name};
use super::replace::words_of_cut;
use super::run::Primary;
use crate::control::messages::Reply;
use crate::control::server::ClientId;

/// What has to do with slots by hand.
#[derive(Debug)]
pub(super) struct Hands {
    waiters: Vec<Waiter>,
    /// Workers that leave because their slot was stopped.
    leaving: Vec<WorkerId>,
    slots: Vec<Ended>,
}

/// How the last worker of a slot ended that was not asked to.
#[derive(Debug, Clone, Default)]
struct Ended {
    /// In a word.
    how: Option<String>,
    /// In a sentence.
    why: Option<String>,
}

/// A client that waits.
#[derive(Debug)]
struct Waiter {
    client: ClientId,
    goal: Goal,
    /// Those that are not there yet.
    slots: Vec<SlotId>,
    failed: Option<String>,
}

/// What a client wants of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Up,
    Gone,
    /// Also as a slot.
    Removed,
    /// Another worker than this one, and this one gone.
    Restarted(WorkerId),
}

/// How far a slot is.
enum Far {
    NotYet,
    There(String),
    Never(String),
}

impl Hands {
    pub(super) fn new(slots: u16) -> Self {
        let slots = vec![Ended::default(); usize::from(slots)];
        Self { waiters: Vec::new(), leaving: Vec::new(), slots }
    }

    /// For the status.
    pub(super) fn last_exit(&self, slot: SlotId) -> Option<String> {
        self.slots.get(usize::from(slot.0))?.how.clone()
    }

    fn why(&self, slot: SlotId) -> &str {
        let ended = self.slots.get(usize::from(slot.0));
        ended
            .and_then(|ended| ended.why.as_deref())
            .unwrap_or("its worker was killed, and the log says why")
    }

    /// Why a slot has no worker, in a sentence.
    pub(super) fn note_why(&mut self, slot: SlotId, why: String) {
        if let Some(ended) = self.slots.get_mut(usize::from(slot.0)) {
            ended.why = Some(why);
        }
    }

    /// A worker was not ready in time, and will be killed.
    pub(super) fn note_late(&mut self, slot: SlotId, worker: WorkerId, why: &str) {
        if let Some(ended) = self.slots.get_mut(usize::from(slot.0)) {
            ended.how = Some("not ready in time".into());
            ended.why = Some(format!("worker {} was not ready in time: {why}", worker.0));
        }
    }

    /// There are so many slots now; those that went have no past.
    pub(super) fn resize(&mut self, slots: u16) {
        self.slots.resize_with(usize::from(slots), Ended::default);
    }

    /// Nobody will take over a slot that was to be restarted.
    pub(super) fn fail_restart(&mut self, slot: SlotId, why: &str) {
        for waiter in &mut self.waiters {
            if matches!(waiter.goal, Goal::Restarted(_)) && waiter.slots.contains(&slot) {
                waiter.failed.get_or_insert_with(|| why.to_owned());
                waiter.slots.clear();
            }
        }
    }

    /// Whether a worker leaves because its slot was stopped.
    pub(super) fn is_leaving(&self, worker: WorkerId) -> bool {
        self.leaving.contains(&worker)
    }
}

/// How a process ended, in a word.
pub(super) fn word(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("exit {code}"),
        ExitStatus::Signal(number) => signal_name(number),
        ExitStatus::Dumped(number) => format!("{} (core dumped)", signal_name(number)),
        ExitStatus::OutOfMemory => "OOM kill".to_owned(),
    }
}

impl Primary {
    /// A main process ended. What was asked to end is not worth remembering.
    pub(super) fn note_end(&mut self, worker: WorkerId, status: ExitStatus) {
        let view = self.core.workers().find(|view| view.worker == worker);
        let Some(view) = view.filter(|_| !self.core.is_stopping()) else { return };
        // Else it was killed by the primary, which has said why; or it drained.
        let by_itself = ["starting", "ready", "parked"].contains(&view.state);
        if by_itself && let Some(ended) = self.hands.slots.get_mut(usize::from(view.slot.0)) {
            ended.how = Some(word(status));
            ended.why = Some(format!("worker {} {}", worker.0, how(status)));
        }
    }

    /// `croupier start SLOT…`.
    pub(super) fn start_slots(
        &mut self,
        client: ClientId,
        slots: &[u16],
        wait: bool,
    ) -> Option<Reply> {
        if let Some(why) = self.refusal(slots) {
            return Some(Reply::Failed { why });
        }
        let mut asked = Vec::new();
        for slot in slots.iter().copied().map(SlotId) {
            if self.slot(slot).is_some_and(|view| view.state == "up") {
                self.say_of(client, slot, "is up already");
                continue;
            }
            log::info!("slot {}: start (asked by croupier start)", slot.0);
            // What became of an earlier one is no answer to this.
            if let Some(ended) = self.hands.slots.get_mut(usize::from(slot.0)) {
                ended.why = None;
            }
            self.tell(Event::StartAsked { slot });
            asked.push(slot);
        }
        self.wait_for(client, Goal::Up, asked, wait)
    }

    /// `croupier stop SLOT…`.
    pub(super) fn stop_slots(
        &mut self,
        client: ClientId,
        slots: &[u16],
        wait: bool,
    ) -> Option<Reply> {
        if let Some(why) = self.refusal(slots) {
            return Some(Reply::Failed { why });
        }
        let mut asked = Vec::new();
        for slot in slots.iter().copied().map(SlotId) {
            if self.slot(slot).is_some_and(|view| view.want != Want::Up) {
                self.say_of(client, slot, "is stopped already");
            }
            log::info!("slot {}: stop (asked by croupier stop)", slot.0);
            // Also one that is down by its own exit: now it is the operator who holds it down.
            self.tell(Event::StopSlotAsked { slot });
            asked.push(slot);
        }
        let answer = self.wait_for(client, Goal::Gone, asked, wait);
        self.settle();
        answer
    }

    fn slot(&self, slot: SlotId) -> Option<SlotView> {
        self.core.slots().nth(usize::from(slot.0))
    }

    /// Why nothing can be done with these slots.
    pub(super) fn refusal(&self, slots: &[u16]) -> Option<String> {
        if self.core.is_stopping() {
            return Some("it is stopping".into());
        }
        self.no_such_slot(slots)
    }

    /// Which of these slots there are not.
    pub(super) fn no_such_slot(&self, slots: &[u16]) -> Option<String> {
        let count = self.core.slot_count();
        let strange = slots.iter().find(|slot| **slot >= count);
        let there = match count {
            1 => "the only slot is 0".to_owned(),
            _ => format!("the slots are 0 to {}", count - 1),
        };
        strange.map(|slot| format!("there is no slot {slot}; {there}"))
    }

    pub(super) fn wait_for(
        &mut self,
        client: ClientId,
        goal: Goal,
        slots: Vec<SlotId>,
        wait: bool,
    ) -> Option<Reply> {
        if !wait || slots.is_empty() {
            return Some(Reply::Done);
        }
        let commands = &self.commands;
        self.hands.waiters.retain(|waiter| commands.has(waiter.client));
        self.hands.waiters.push(Waiter { client, goal, slots, failed: None });
        None
    }

    fn say_of(&mut self, client: ClientId, slot: SlotId, text: &str) {
        let text = format!("slot {} {text}", slot.0);
        self.commands.say_to(client, &text, self.poll.registry());
    }

    /// Tells those who wait for a slot to be gone.
    fn tell_waiters(&mut self, slot: SlotId, text: &str) {
        for waiter in &self.hands.waiters {
            if matches!(waiter.goal, Goal::Gone | Goal::Removed) && waiter.slots.contains(&slot) {
                self.commands.say_to(waiter.client, text, self.poll.registry());
            }
        }
    }

    /// A slot goes down by hand.
    pub(super) fn slot_stopped(&mut self, slot: SlotId) {
        self.hands.leaving.retain(|worker| self.workers.get(*worker).is_some());
        let there: Vec<WorkerId> =
            self.workers.iter().filter(|w| w.slot == slot).map(|w| w.id).collect();
        for worker in there {
            if !self.is_draining(worker) {
                continue;
            }
            if !self.hands.is_leaving(worker) {
                self.hands.leaving.push(worker);
            }
            let held = self.held_by(worker);
            let text = format!("slot {}: worker {} drains and holds {held}", slot.0, worker.0);
            log::info!("{text}");
            self.tell_waiters(slot, &text);
        }
    }

    /// Whether a process of a slot is left.
    fn has_anybody(&self, slot: SlotId) -> bool {
        self.workers
            .iter()
            .any(|worker| worker.slot == slot && (worker.is_running() || worker.burying.is_some()))
    }

    /// Who drains in a slot, in words.
    pub(super) fn leaving_of(&self, slot: SlotId) -> Vec<String> {
        let there = self.workers.iter().filter(|worker| worker.slot == slot);
        let drains = there.filter(|worker| self.is_draining(worker.id));
        let words = |worker: &super::worker::Worker| {
            let held = self.held_by(worker.id);
            format!("slot {}: worker {} drains and holds {held}", slot.0, worker.id.0)
        };
        drains.map(words).collect()
    }

    pub(super) fn is_draining(&self, worker: WorkerId) -> bool {
        self.core.workers().any(|view| view.worker == worker && view.state == "draining")
    }

    /// What becomes of a worker whose slot was stopped.
    pub(super) fn report_leaving(&mut self, report: Report) {
        let (worker, text) = if let Report::DrainCut { worker, active, why } = report {
            (worker, words_of_cut(worker, active, why))
        } else if let Report::Drained { worker } = report {
            self.hands.leaving.retain(|leaving| *leaving != worker);
            (worker, format!("worker {} has ended", worker.0))
        } else {
            return;
        };
        let Some(slot) = self.workers.get(worker).map(|worker| worker.slot) else { return };
        let text = format!("slot {}: {text}", slot.0);
        log::info!("{text}");
        self.tell_waiters(slot, &text);
    }

    /// What `wait ready` is to hear, if it is known.
    pub(super) fn is_ready(&self) -> Option<Reply> {
        if self.is_ending() {
            return Some(Reply::Failed { why: "it is stopping".into() });
        }
        if self.core.is_paused() {
            let why = "it is paused: clients wait until croupier resume";
            return Some(Reply::Failed { why: why.into() });
        }
        if self.core.all_up() {
            return Some(Reply::Done);
        }
        let none = self.core.wanted_count() == 0;
        none.then(|| Reply::Failed {
            why: "every slot is stopped; croupier start SLOT starts one".into(),
        })
    }

    /// Once a turn: whoever waits for slots hears how far they are.
    pub(super) fn look_at_hands(&mut self) {
        if self.commands.awaits_ready()
            && let Some(reply) = self.is_ready()
        {
            self.commands.end_wait(&reply, self.poll.registry());
        }
        if self.hands.waiters.is_empty() {
            return;
        }
        let views: Vec<SlotView> = self.core.slots().collect();
        let mut waiters = std::mem::take(&mut self.hands.waiters);
        for Waiter { client, goal, slots, failed } in &mut waiters {
            slots.retain(|slot| {
                match self.far(*goal, *slot, views.get(usize::from(slot.0))) {
                    Far::NotYet => return true,
                    Far::There(text) => {
                        self.commands.say_to(*client, &text, self.poll.registry());
                    }
                    Far::Never(why) => {
                        failed.get_or_insert(why);
                    }
                }
                false
            });
        }
        let over: Vec<Waiter> = waiters.extract_if(.., |waiter| waiter.slots.is_empty()).collect();
        let mut answered = Vec::new();
        for Waiter { client, failed, .. } in over {
            // A client that waits for several things is answered with the last of them, or the first
            // that fails.
            let waits = waiters.iter().any(|waiter| waiter.client == client);
            if answered.contains(&client) || failed.is_none() && waits {
                continue;
            }
            answered.push(client);
            waiters.retain(|waiter| waiter.client != client);
            let reply = failed.map_or(Reply::Done, |why| Reply::Failed { why });
            self.commands.reply_to(client, &reply, self.poll.registry());
        }
        self.hands.waiters = waiters;
    }

    /// Why nobody will come to a slot that somebody waits for.
    fn why_stopped(&self, slot: SlotId, want: Want) -> String {
        match want {
            Want::DownByHand => format!("slot {} was stopped meanwhile, by croupier stop", slot.0),
            Want::Up | Want::DownByExit | Want::Gone => {
                format!("slot {} is stopped: {}", slot.0, self.hands.why(slot))
            }
        }
    }

    fn far(&self, goal: Goal, slot: SlotId, view: Option<&SlotView>) -> Far {
        let Some(view) = view else {
            return match goal {
                Goal::Gone | Goal::Removed if self.has_anybody(slot) => Far::NotYet,
                Goal::Gone | Goal::Removed => Far::There(format!("slot {} is gone", slot.0)),
                Goal::Up | Goal::Restarted(_) => {
                    Far::Never(format!("slot {} was taken away by a scale", slot.0))
                }
            };
        };
        match goal {
            Goal::Removed => Far::Never(format!("slot {} is there again", slot.0)),
            Goal::Up | Goal::Restarted(_) if view.want != Want::Up => {
                Far::Never(self.why_stopped(slot, view.want))
            }
            Goal::Restarted(_) if self.core.is_stopping() => Far::Never("it is stopping".into()),
            Goal::Restarted(old) => self.has_replaced(slot, old).map_or(Far::NotYet, Far::There),
            Goal::Up if self.core.is_stopping() => Far::Never("it is stopping".into()),
            Goal::Up => match (view.state, view.worker) {
                ("up", Some(worker)) => {
                    Far::There(format!("slot {}: worker {} is ready", slot.0, worker.0))
                }
                ("failed", _) => Far::Never(format!("slot {}: {}", slot.0, self.hands.why(slot))),
                _ if view.crashes > 0 => Far::Never(format!(
                    "slot {}: {}; it is tried again, with longer and longer waits",
                    slot.0,
                    self.hands.why(slot)
                )),
                _ => Far::NotYet,
            },
            Goal::Gone if view.want == Want::Up => {
                Far::Never(format!("slot {} was started again", slot.0))
            }
            Goal::Gone => {
                if self.has_anybody(slot) {
                    Far::NotYet
                } else {
                    Far::There(format!("slot {} is stopped", slot.0))
                }
            }
        }
    }
}
