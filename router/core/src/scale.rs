//! Scale: another number of slots, while everything goes on.
//!
//! Owns which slots there are. The highest ones go, new ones come at the end, so that under `ip` only
//! the share of those that come or go moves. A slot that goes is left as one that is stopped by hand;
//! one that comes is started as one that is started by hand.
//!
//! | asked | while | then |
//! |---|---|---|
//! | fewer | a slot that goes is up | its worker drains; under `reuseport` the primary empties its socket from then on |
//! | | it starts, waits, or has failed; is stopped by hand | nobody is there, and the slot is gone with its past |
//! | | everybody who serves would go, and nobody who stays is ready | refused: a scale never takes the last one who serves |
//! | | a reload, a restart | those go on without the slots that go |
//! | | a reload brings another number of slots | it is this one that counts; what a reload itself asks for comes when it has held |
//! | more | | new slots start at once, under the generation that holds; a reload has them in their turn |
//! | | the last worker of such a slot still drains | the new one does not wait for it |
//! | any | a slot that stays has failed | it is tried again: the operator wants so many |
//! | | a slot that stays is stopped by hand | it stays so, and counts |
//! | | all are paused | new workers are paused too |
//! | | to 0, to more than may be, while everything stops | refused |
//!
//! What depends on the number of slots follows it: the share of `--max-surge`, `--max-draining`.

use crate::config::SLOTS_MAX;
use crate::event::{Report, Scale, ScaleFault, SlotId};
use crate::pause::Rest;
use crate::primary::Core;
use crate::slot::{Slot, SlotInput, SlotState, Sockets, Want};
use crate::worker::{State, Worker};

impl Core {
    pub(crate) fn scale_asked(&mut self, scale: Scale) {
        let from = self.slot_count();
        let to = match scale {
            Scale::To(to) => to,
            Scale::Up(more) => from.saturating_add(more),
            Scale::Down(fewer) => from.saturating_sub(fewer),
        };
        if let Some(why) = self.scale_fault(to) {
            return self.report(Report::ScaleRefused { why });
        }
        self.reload.forget_slots();
        self.scale_to(to);
    }

    /// Another number of slots, one that [`Self::scale_fault`] has nothing against.
    pub(crate) fn scale_to(&mut self, to: u16) {
        let from = self.slot_count();
        if from != to {
            self.report(Report::Scaled { from, to });
        }
        for at in usize::from(to)..self.slots.len() {
            self.take_slot_away(at);
        }
        for at in 0..to {
            self.want_slot(at);
        }
        self.recount();
    }

    pub(crate) fn scale_fault(&self, to: u16) -> Option<ScaleFault> {
        let serves = |slot: &Slot| matches!(slot.state, SlotState::Up { .. });
        let (stay, go) = self.slots.split_at(self.slots.len().min(usize::from(to)));
        if self.stop.is_under_way() {
            Some(ScaleFault::Stopping)
        } else if to == 0 {
            Some(ScaleFault::Zero)
        } else if to > SLOTS_MAX {
            Some(ScaleFault::TooMany)
        } else if go.iter().any(serves) && !stay.iter().any(serves) {
            Some(ScaleFault::NobodyLeft)
        } else {
            None
        }
    }

    fn take_slot_away(&mut self, at: usize) {
        let Some(slot) = self.slots.get_mut(at).filter(|slot| slot.exists()) else { return };
        slot.want = Want::Gone;
        slot.rest = Rest::No;
        self.vacate(at, None);
    }

    /// One of the slots that there are to be: new, or tried again if it has failed.
    fn want_slot(&mut self, at: u16) {
        let (id, now) = (SlotId(at), self.dealer.now);
        let failed = match self.slots.get(usize::from(at)) {
            Some(slot) if slot.exists() => slot.state == SlotState::Failed,
            Some(_) | None => {
                // Its place may be known: then the primary may still empty its socket.
                let sockets = self.slots.get(usize::from(at)).map_or(Sockets::Own, |s| s.sockets);
                let generation = self.reload.held;
                let mut slot = Slot { sockets, generation, ..Slot::new(id) };
                slot.take(SlotInput::Raise { at: now });
                match self.slots.get_mut(usize::from(at)) {
                    Some(place) => *place = slot,
                    None => self.slots.push(slot),
                }
                false
            }
        };
        if failed {
            self.start_asked(id);
        }
    }

    /// New workers that a reload starts at a time.
    pub(crate) fn max_surge(&self) -> u16 {
        self.config.max_surge.of(self.slot_count())
    }

    /// Workers that may drain at the same time. By itself the limit cuts nobody only because a scale
    /// takes many slots away at once.
    pub(crate) fn max_draining(&self) -> u16 {
        let gone = |worker: &&Worker| {
            let slot = self.slots.get(usize::from(worker.slot.0));
            matches!(worker.state, State::Finishing { .. }) && !slot.is_some_and(Slot::exists)
        };
        let by_scale = || u16::try_from(self.dealer.workers.iter().filter(gone).count());
        let own = || self.slot_count().saturating_mul(2).saturating_add(by_scale().unwrap_or(0));
        self.config.max_draining.unwrap_or_else(own).max(1)
    }
}
