//! What the status shows: read-only pictures of the core's state.

use crate::dealer::STICKY_QUEUE_MAX;
use crate::event::{Generation, RecycleReason, SlotId, WorkerId};
use crate::pause::Rest;
use crate::primary::{Core, Start};
use crate::slot::{SlotState, Want};
use crate::time::Now;
use crate::worker::{Lateness, State};

/// One worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts beside the state, each by itself")]
pub struct WorkerView {
    /// Its slot.
    pub slot: SlotId,
    /// Its id.
    pub worker: WorkerId,
    /// Its generation.
    pub generation: Generation,
    /// `starting`, `ready`, `parked`, `draining` or `killing`.
    pub state: &'static str,
    /// Connections that the kernel queued for it, those included that came back.
    pub handed_off: u64,
    /// Connections that came back out of its queue.
    pub taken_back: u64,
    /// How many queued connections it may have now.
    pub window: u16,
    /// The operator wants it to get no connections, or nobody to.
    pub paused: bool,
    /// Its oldest queued connection waits, or was stolen, because it does not claim.
    pub late: bool,
    /// Since when it is ready, if it is.
    pub ready_since: Option<Now>,
    /// It has had its time, and is to be replaced.
    pub recycle: Option<RecycleReason>,
}

/// One slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotView {
    /// Which.
    pub slot: SlotId,
    /// `down`, `backoff`, `starting`, `up` or `failed`.
    pub state: &'static str,
    /// Who sits there.
    pub worker: Option<WorkerId>,
    /// Workers started there after the first.
    pub restarts: u32,
    /// In backoff: when the next one starts.
    pub until: Option<Now>,
    /// What is wanted of it.
    pub want: Want,
    /// Crashes in a row.
    pub crashes: u32,
    /// The operator wants it to get no connections.
    pub paused: bool,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Connections accepted.
    pub accepted: u64,
    /// Hand-offs, second ones of a connection that came back included.
    pub handed_off: u64,
    /// Taken back from dead workers.
    pub salvaged: u64,
    /// Taken back from late workers.
    pub stolen: u64,
    /// Closed with a reset: nobody would ever have served them.
    pub refused: u64,
    /// Closed with a reset: others had waited for too long already.
    pub shed: u64,
    /// How often clients began to wait because nobody had room.
    pub waits: u64,
    /// Workers that were ended because they were hung.
    pub hung: u64,
    /// Workers that were replaced because they had had their time.
    pub recycled: u64,
    /// How often windows would have grown beyond `queue_limit`.
    pub capped: u64,
}

impl Core {
    /// Every worker that is not forgotten, by id.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView> {
        self.dealer.seats.iter().zip(&self.dealer.workers).map(|(seat, worker)| WorkerView {
            slot: worker.slot,
            worker: worker.id,
            generation: worker.generation,
            state: worker.state.name(),
            handed_off: worker.handed_off,
            taken_back: worker.taken_back,
            window: if self.dealer.policies.by_load() { seat.window } else { STICKY_QUEUE_MAX },
            paused: worker.rest == Rest::ByHand || self.dealer.rest == Rest::ByHand,
            late: worker.lateness != Lateness::No,
            ready_since: worker.state.ready_since(),
            recycle: worker.age.due,
        })
    }

    /// Every slot.
    pub fn slots(&self) -> impl Iterator<Item = SlotView> {
        self.slots.iter().filter(|slot| slot.exists()).map(|slot| SlotView {
            slot: slot.id,
            state: slot.state.name(),
            worker: slot.state.worker(),
            restarts: slot.starts.saturating_sub(1),
            until: match slot.state {
                SlotState::Backoff { until } => Some(until),
                SlotState::Down
                | SlotState::Starting { .. }
                | SlotState::Up { .. }
                | SlotState::Failed => None,
            },
            want: slot.want,
            crashes: slot.streak.crashes(),
            paused: slot.rest == Rest::ByHand,
        })
    }

    /// Counters since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals { capped: self.dealer.pace.capped(), ..self.ledger.totals }
    }

    /// Workers that are ready now.
    #[must_use]
    pub fn ready_count(&self) -> u16 {
        let ready = |worker: &&crate::worker::Worker| matches!(worker.state, State::Ready { .. });
        u16::try_from(self.dealer.workers.iter().filter(ready).count()).unwrap_or(u16::MAX)
    }

    /// Whether every slot has been ready at the same time, at least once.
    #[must_use]
    pub fn all_were_ready(&self) -> bool {
        self.start == Start::Everybody
    }

    /// Slots that there are, whatever is wanted of them.
    #[must_use]
    pub fn slot_count(&self) -> u16 {
        let there = self.slots.iter().filter(|slot| slot.exists());
        u16::try_from(there.count()).unwrap_or(u16::MAX)
    }

    /// Whether the operator wants nobody to get connections: all at once, or each slot that is to
    /// have a worker by itself.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        let mut wanted = self.slots.iter().filter(|slot| slot.want == Want::Up).peekable();
        let each = wanted.peek().is_some() && wanted.all(|slot| slot.rest == Rest::ByHand);
        each || self.dealer.rest == Rest::ByHand
    }

    /// Slots that are to have a worker.
    #[must_use]
    pub fn wanted_count(&self) -> u16 {
        let wanted = self.slots.iter().filter(|slot| slot.want == Want::Up);
        u16::try_from(wanted.count()).unwrap_or(u16::MAX)
    }

    /// Whether every slot that is to have a worker has one that is ready, and there is such a slot.
    #[must_use]
    pub fn all_up(&self) -> bool {
        let mut wanted = self.slots.iter().filter(|slot| slot.want == Want::Up).peekable();
        wanted.peek().is_some() && wanted.all(|slot| matches!(slot.state, SlotState::Up { .. }))
    }

    /// Whether everything ends.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_under_way()
    }

    /// The generation that a reload is starting.
    #[must_use]
    pub fn reloading(&self) -> Option<Generation> {
        self.reload.generation()
    }

    /// Connections that the primary holds because nobody has room for them.
    #[must_use]
    pub fn held(&self) -> usize {
        self.ledger.held.len() + self.admission.count()
    }
}
