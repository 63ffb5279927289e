//! Pauses: the operator wants a slot, or all, to get no connections for a while.
//!
//! Owns the wish; who serves what goes on serving it. Nobody is refused: clients of all wait in the
//! backlog, those of one slot go to the others (under `ip` too, and come back). A pause outlives the
//! worker of its slot; one of all is there for workers that come later as well.
//!
//! | asked | while | then |
//! |---|---|---|
//! | pause | what waits for the worker already | it is claimed as ever, or stolen if the worker is late |
//! | | clients wait in hand (`--max-queue-wait`, salvaged ones) | they go on waiting; the pause does not count as waiting, and nobody is turned away |
//! | | a reload, a restart, a crash | they go on: new workers get ready, and nothing |
//! | | a worker is parked or drains | what waits for it stays there, unless somebody who is not paused can have it |
//! | | workers accept by themselves (`shared`, `reuseport`) | refused |
//! | resume | one slot, while all are paused | its own pause ends, that of all does not |
//! | | all | every pause ends |
//! | either | it is so already | nothing |
//! | a stop | | it ends the pauses: whoever waits is served first |

use crate::event::{PauseFault, Report, SlotId};
use crate::primary::Core;

/// Whether nothing is to be dealt to somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    No,
    /// Until the operator says otherwise.
    ByHand,
}

impl Core {
    pub(crate) fn pause_asked(&mut self, slot: Option<SlotId>) {
        let refused = if self.stop.is_under_way() {
            Some(PauseFault::Stopping)
        } else {
            (!self.dealer.policies.by_hand()).then_some(PauseFault::ByThemselves)
        };
        if let Some(why) = refused {
            return self.report(Report::PauseRefused { why });
        }
        if self.set_rest(slot, Rest::ByHand) {
            self.report(Report::Paused { slot });
            // Nobody's room is waited for now.
            if self.is_paused() {
                self.dealer.clear_bells(&mut self.actions);
            }
        }
    }

    pub(crate) fn resume_asked(&mut self, slot: Option<SlotId>) {
        let was_paused = self.is_paused();
        let mut changed = self.set_rest(slot, Rest::No);
        if slot.is_none() {
            for at in 0..self.slots.len() {
                changed |= self.set_rest(self.slots.get(at).map(|slot| slot.id), Rest::No);
            }
        }
        if !changed {
            return;
        }
        self.report(Report::Resumed { slot });
        if was_paused && !self.is_paused() {
            self.admission.begin_anew(self.dealer.now);
        }
        self.debts = true;
    }

    /// A stop: nobody is to wait any more for the operator's word.
    pub(crate) fn end_pauses(&mut self) {
        self.dealer.rest = Rest::No;
        for slot in &mut self.slots {
            slot.rest = Rest::No;
        }
        for worker in &mut self.dealer.workers {
            worker.rest = Rest::No;
        }
        self.dealer.restand_all();
    }

    /// Whether that changed anything.
    fn set_rest(&mut self, slot: Option<SlotId>, rest: Rest) -> bool {
        let place = match slot {
            None => Some(&mut self.dealer.rest),
            Some(SlotId(at)) => {
                let slot = self.slots.get_mut(usize::from(at)).filter(|slot| slot.exists());
                slot.map(|slot| &mut slot.rest)
            }
        };
        let Some(place) = place else { return false };
        if core::mem::replace(place, rest) == rest {
            return false;
        }
        for worker in self.dealer.workers.iter_mut().filter(|worker| Some(worker.slot) == slot) {
            worker.rest = rest;
        }
        self.dealer.restand_all();
        true
    }
}
