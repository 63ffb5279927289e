//! What is wanted of a slot: started and stopped by hand, or down because its worker meant to end.
//!
//! Owns the slots' wants. The operator edits the want; who sits there leaves by the way of workers.
//! What was stopped stays stopped, over crashes and reloads, until the operator starts it.
//!
//! | asked | while | then |
//! |---|---|---|
//! | stop | it is up | down at once, and its worker drains |
//! | | it is starting | its worker is killed: it holds nothing |
//! | | it waits before the next start, or has failed | down |
//! | | a reload is starting its next worker | that one is killed, who sits there drains; the reload goes on without the slot |
//! | | a worker that has had its time is being replaced | the same, without a reload |
//! | | a reload has parked its last worker | both drain; the reload goes on without the slot |
//! | | it is down | nothing |
//! | start | it is down | it starts at once, with a fresh record, even while its last worker drains |
//! | | it waits before the next start, or has failed | the same |
//! | | it is starting or up | nothing |
//! | either | everything stops | nothing: the stop wins |
//!
//! An exit with one of `--stop-exit-codes` is meant: the slot goes down as if by hand, and when all
//! slots are down that way everything ends well. A new worker of a reload is not believed that:
//! whatever its status, it did not hold, and the old one goes on.

use crate::event::{ExitStatus, Report, SlotId, WorkerId};
use crate::primary::Core;
use crate::slot::{Beside, Slot, SlotInput, SlotState, Sockets, Want};
use crate::worker::Input;

impl Core {
    pub(crate) fn start_asked(&mut self, slot: SlotId) {
        if self.stop.is_under_way() {
            return;
        }
        let (now, held, new) = (self.dealer.now, self.reload.held, self.reload.generation());
        let found = self.slots.get_mut(usize::from(slot.0));
        let Some(slot) = found.filter(|slot| slot.exists()) else { return };
        slot.want = Want::Up;
        match slot.state {
            // It may be tried again after a crash, of which whoever asks now is not to be told.
            SlotState::Starting { .. } => return slot.streak.lived(),
            SlotState::Up { .. } => return,
            SlotState::Backoff { .. } | SlotState::Failed => {}
            SlotState::Down => {
                // No restart: nobody ended by himself and was replaced.
                slot.starts = slot.starts.saturating_sub(1);
                // Reloads have passed it by; the one that is under way has not held yet.
                slot.generation =
                    if new == Some(slot.generation) { held } else { slot.generation.max(held) };
            }
        }
        slot.streak.lived();
        slot.take(SlotInput::Withdraw);
        slot.take(SlotInput::Raise { at: now });
    }

    pub(crate) fn stop_slot_asked(&mut self, slot: SlotId) {
        if self.stop.is_under_way() {
            return;
        }
        let at = usize::from(slot.0);
        let found = self.slots.get_mut(at);
        let Some(found) = found.filter(|slot| slot.exists()) else { return };
        let before = core::mem::replace(&mut found.want, Want::DownByHand);
        if before == Want::Up {
            self.report(Report::SlotStopped { slot });
            self.vacate(at, None);
            self.recount();
        }
    }

    /// The status of a worker that has ended in its place and means its slot to stay down.
    pub(crate) fn ends_for_good(&self, i: usize, status: ExitStatus) -> Option<i32> {
        let code = match status {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(_) | ExitStatus::Dumped(_) | ExitStatus::OutOfMemory => return None,
        };
        let worker = self.dealer.workers.get(i)?;
        let slot = self.slots.get(usize::from(worker.slot.0))?;
        let sits = slot.state.worker() == Some(worker.id) && !self.reload.started(worker);
        (sits && self.config.stop_exit_codes.contains(code)).then_some(code)
    }

    /// The worker has ended, and its slot goes down with it.
    pub(crate) fn slot_done(&mut self, i: usize, code: i32, queued: u32) {
        let Some(worker) = self.dealer.workers.get(i) else { return };
        let (id, slot) = (worker.id, worker.slot);
        let at = usize::from(slot.0);
        let Some(found) = self.slots.get_mut(at) else { return };
        found.want = Want::DownByExit;
        self.report(Report::SlotDone { worker: id, slot, code, queued });
        self.vacate(at, Some(id));
    }

    /// Whether the operator holds a slot down.
    pub(crate) fn is_held_down(&self) -> bool {
        self.slots.iter().any(|slot| slot.want == Want::DownByHand)
    }

    /// Every worker has ended and meant it.
    pub(crate) fn all_done(&mut self) {
        if !self.stop.is_under_way() {
            self.report(Report::AllDone);
            self.begin_to_stop();
        }
    }

    /// Everybody in a slot leaves it, apart from the one that has `ended` already.
    pub(crate) fn vacate(&mut self, at: usize, ended: Option<WorkerId>) {
        let now = self.dealer.now;
        if let Some(Slot { beside: Beside::Next { worker }, .. }) = self.slots.get(at)
            && self.recycle.starts(*worker)
        {
            self.drop_recycling();
        }
        let Some(slot) = self.slots.get_mut(at) else { return };
        let (sits, beside) = (slot.state, core::mem::replace(&mut slot.beside, Beside::Nobody));
        if matches!(sits, SlotState::Up { .. }) && slot.sockets == Sockets::Own {
            slot.sockets = Sockets::Left { since: now };
        }
        slot.take(SlotInput::Withdraw);
        match beside {
            Beside::Nobody => {}
            Beside::Next { worker } => self.condemn(worker),
            Beside::Last { worker } => self.take_leave(worker),
        }
        match sits {
            SlotState::Down | SlotState::Backoff { .. } | SlotState::Failed => {}
            SlotState::Starting { worker } | SlotState::Up { worker } if ended == Some(worker) => {}
            SlotState::Starting { worker } => self.condemn(worker),
            SlotState::Up { worker } => self.take_leave(worker),
        }
        self.reload_goes_without(beside);
        self.debts = true;
    }

    /// A worker finishes what it has, and ends.
    fn take_leave(&mut self, worker: WorkerId) {
        let deadline = self.dealer.now.after(self.config.drain_timeout);
        if let Some(i) = self.dealer.find(worker) {
            self.keep_clients(i);
            self.enter(i, Input::Drain { deadline });
        }
    }
}
