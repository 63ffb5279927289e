//! Recycling: a worker that has had its time is replaced, as in a reload of its slot alone.
//!
//! ```text
//!                  due                  new one ready            old one forgotten
//!   Nothing ────────────────▶ Starting ──────────────▶ Leaving ────────────────────▶ Nothing
//!      ▲                         │
//!      └── new one does not hold ┘ the old one stays; again after a wait that doubles
//! ```
//!
//! Due is who was given `--max-connections`, has been ready for `--max-lifetime`, or has more memory
//! than `--max-rss` (the shell says that). Each worker's own limit is up to a tenth lower, by the dice,
//! so that workers that started together are not due together. Promises: never more than one worker
//! beside those of the slots, because the next recycling waits until the last old one has gone; the
//! old one serves until the new one is ready.
//!
//! | meanwhile | then |
//! |---|---|
//! | two are due | the older worker goes first, the other when that has ended |
//! | the operator asks for it (`restart`) | it is due, before all others and whatever failed before |
//! | a reload is under way, or its old workers still leave | it waits; whom the reload replaces is due no more |
//! | a reload is asked for | it wins: a new worker that is not ready is killed; an old one drains on |
//! | a reload that brought other limits fails | nobody is due by those: who started meanwhile has the limits of before; what memory is too much the shell says again |
//! | a stop, also of this slot alone | the same |
//! | a worker has too much memory while it starts | what that takes it may give back: it is judged once it is ready |
//! | one that took over has too much memory at once | its program needs more than the limit: its slot waits as if the new one had not held, and the log says once what to do |
//! | the new one ends, or is not ready in time | the old one stays |
//! | the old one ends | its slot waits for the new one |
//! | both end | the slot restarts as ever |

use core::time::Duration;

use crate::config::Limits;
use crate::event::{RecycleReason, Report, SlotId, WorkerId};
use crate::primary::Core;
use crate::restart::Dice;
use crate::seat::Listens;
use crate::slot::{Beside, SlotState};
use crate::time::Now;
use crate::worker::{State, Worker};

/// Wait before a recycling that failed is tried again; it doubles up to [`RETRY_LONGEST`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// Who has too much memory this soon after it took over did not leak it, but needs it. Two looks of the
/// shell, and some time for those.
const AT_ONCE: Duration = Duration::from_secs(5);

fn doubled(failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
    RETRY_FIRST.saturating_mul(factor).min(RETRY_LONGEST)
}

/// Workers of a slot, in a row, that had too much memory at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    in_a_row: u32,
    /// Nobody is recycled for its memory before then.
    not_before: Now,
    /// It was said what to do.
    told: bool,
}

impl Default for Needs {
    fn default() -> Self {
        Self { in_a_row: 0, not_before: Now(0), told: false }
    }
}

/// How old a worker may get, and whether it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Age {
    /// Connections that it may be given.
    connections: u64,
    /// When its lifetime ends, and how long that was.
    ends: Option<(Now, Duration)>,
    /// The limits that these are parts of: of connections, and of its lifetime.
    parts_of: (Option<u64>, Option<Duration>),
    /// Until when too much memory is what the program needs: of one that took over in a recycling.
    too_soon: Option<Now>,
    /// It is to be replaced.
    pub(crate) due: Option<RecycleReason>,
}

impl Default for Age {
    /// It may get as old as it likes.
    fn default() -> Self {
        Self {
            connections: u64::MAX,
            ends: None,
            parts_of: (None, None),
            too_soon: None,
            due: None,
        }
    }
}

impl Age {
    pub(crate) fn new(limits: &Limits, dice: &mut Dice) -> Self {
        let connections =
            limits.max_connections.map_or(u64::MAX, |max| (max - dice.up_to(max / 10)).max(1));
        let parts_of = (limits.max_connections, limits.max_lifetime);
        Self { connections, parts_of, ..Self::default() }
    }

    /// The worker is ready: its lifetime begins.
    pub(crate) fn begin(&mut self, limits: &Limits, dice: &mut Dice, now: Now) {
        self.parts_of.1 = limits.max_lifetime;
        self.ends = limits.max_lifetime.map(|max| {
            let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
            let own = Duration::from_nanos(nanos - dice.up_to(nanos / 10));
            (now.after(own), own)
        });
    }

    /// Whether `given` connections are as many as it may be given. Asked at every hand-off.
    pub(crate) fn is_spent(&self, given: u64) -> bool {
        given >= self.connections && self.due.is_none()
    }

    /// When its lifetime will end.
    pub(crate) fn deadline(&self, state: State) -> Option<Now> {
        let serves = matches!(state, State::Ready { .. }) && self.due.is_none();
        self.ends.filter(|_| serves).map(|(at, _)| at)
    }
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Nothing,
    /// `new` starts beside `old`.
    Starting {
        new: WorkerId,
        old: WorkerId,
    },
    /// `old` drains.
    Leaving {
        old: WorkerId,
    },
}

/// Recyclings: at most one under way.
#[derive(Debug, Clone)]
pub(crate) struct Recycle {
    way: Way,
    /// New workers in a row that did not hold.
    failures: u32,
    not_before: Now,
}

impl Default for Recycle {
    fn default() -> Self {
        Self { way: Way::Nothing, failures: 0, not_before: Now(0) }
    }
}

impl Recycle {
    /// Whether a new worker is being started.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self.way, Way::Starting { .. })
    }

    /// Whether this is the new worker that is being started.
    pub(crate) fn starts(&self, worker: WorkerId) -> bool {
        matches!(self.way, Way::Starting { new, .. } if new == worker)
    }
}

impl Core {
    /// A worker was given as many connections as it may have.
    pub(crate) fn spent(&mut self, i: usize) {
        if let Some(worker) = self.dealer.workers.get_mut(i) {
            let given = worker.handed_off.saturating_sub(worker.taken_back);
            worker.age.due = Some(RecycleReason::Connections(given));
            self.deadline = Some(self.dealer.now);
        }
    }

    /// A worker has more memory than it may have.
    pub(crate) fn outgrew(&mut self, id: WorkerId, bytes: u64) {
        let now = self.dealer.now;
        let Some(i) = self.dealer.find(id) else { return };
        let Some(worker) = self.dealer.workers.get_mut(i) else { return };
        let starts = matches!(worker.state, State::Starting { .. });
        if starts || worker.age.due.is_some() {
            return;
        }
        worker.age.due = Some(RecycleReason::Memory(bytes));
        let (slot, Some(too_soon)) = (worker.slot, worker.age.too_soon) else { return };
        let Some(needs) = self.slots.get_mut(usize::from(slot.0)).map(|slot| &mut slot.needs)
        else {
            return;
        };
        if now > too_soon {
            needs.in_a_row = 0;
            return;
        }
        // Another one would need as much. Without a wait, replacing it would never end.
        let wait = self.dice.spread(doubled(needs.in_a_row));
        needs.in_a_row = needs.in_a_row.saturating_add(1);
        needs.not_before = now.after(wait);
        if !core::mem::replace(&mut needs.told, true) {
            self.report(Report::NeedsMore { worker: id, slot, bytes, longest: RETRY_LONGEST });
        }
    }

    /// A reload brings another program, or another limit: what the one before needed says nothing of it.
    pub(crate) fn forget_needs(&mut self) {
        for slot in &mut self.slots {
            slot.needs = Needs::default();
        }
    }

    /// A reload has failed, and its limits are not in force any more. Whoever started meanwhile gets those
    /// of before; who has too much memory by the one of before is found again.
    pub(crate) fn measure_anew(&mut self) {
        let limits = self.config.limits;
        for worker in &mut self.dealer.workers {
            if matches!(worker.age.due, Some(RecycleReason::Memory(_))) {
                worker.age.due = None;
            }
            if worker.age.parts_of == (limits.max_connections, limits.max_lifetime) {
                continue;
            }
            let asked = worker.age.due.filter(|due| *due == RecycleReason::Asked);
            worker.age = Age { due: asked, ..Age::new(&limits, &mut self.dice) };
            if let State::Ready { since } | State::Parked { since } = worker.state {
                worker.age.begin(&limits, &mut self.dice, since);
            }
        }
    }

    /// One step further with recycling, where its time has come.
    pub(crate) fn go_on_recycling(&mut self) {
        if self.stop.is_under_way() {
            return;
        }
        let now = self.dealer.now;
        for worker in &mut self.dealer.workers {
            if worker.age.deadline(worker.state).is_some_and(|at| at <= now) {
                worker.age.due = worker.age.ends.map(|(_, own)| RecycleReason::Lifetime(own));
            }
        }
        if let Way::Leaving { old } = self.recycle.way
            && self.dealer.find(old).is_none()
        {
            self.recycle.way = Way::Nothing;
        }
        let free = self.recycle.way == Way::Nothing && !self.reload.is_under_way();
        if free
            && let Some(i) = self.next_due()
            && self.leaving().next().is_none()
        {
            self.recycle(i);
        }
    }

    /// The operator wants a new worker in a slot.
    pub(crate) fn restart_asked(&mut self, slot: SlotId) {
        if self.stop.is_under_way() {
            return;
        }
        let Some(found) = self.slots.get(usize::from(slot.0)) else { return };
        match found.state {
            SlotState::Up { worker } => {
                if let Some(i) = self.dealer.find(worker)
                    && let Some(worker) = self.dealer.workers.get_mut(i)
                {
                    worker.age.due = Some(RecycleReason::Asked);
                }
            }
            // There is no old one: the next one starts at once.
            SlotState::Backoff { .. } | SlotState::Failed => self.start_asked(slot),
            // A new one is on its way; or nobody is wanted.
            SlotState::Starting { .. } | SlotState::Down => {}
        }
    }

    fn is_asked_for(&self, i: usize) -> bool {
        self.dealer
            .workers
            .get(i)
            .is_some_and(|worker| worker.age.due == Some(RecycleReason::Asked))
    }

    /// The oldest worker that is due now; first those that the operator asked for.
    fn next_due(&self) -> Option<usize> {
        let now = self.dealer.now;
        let is_due = |i: &usize| self.may_be_recycled(*i) && self.recycled_from(*i) <= now;
        let mut due = (0..self.dealer.workers.len()).filter(is_due);
        let first = due.next()?;
        if self.is_asked_for(first) {
            return Some(first);
        }
        due.find(|i| self.is_asked_for(*i)).or(Some(first))
    }

    /// When the turn of a worker that is due may come: what failed before is not tried again at once.
    fn recycled_from(&self, i: usize) -> Now {
        let Some(worker) = self.dealer.workers.get(i) else { return Now(0) };
        let failed = self.recycle.not_before;
        match worker.age.due {
            Some(RecycleReason::Asked) => Now(0),
            Some(RecycleReason::Memory(_)) => {
                let slot = self.slots.get(usize::from(worker.slot.0));
                slot.map_or(failed, |slot| failed.max(slot.needs.not_before))
            }
            Some(RecycleReason::Connections(_) | RecycleReason::Lifetime(_)) | None => failed,
        }
    }

    fn may_be_recycled(&self, i: usize) -> bool {
        self.dealer.workers.get(i).is_some_and(|worker| {
            let slot = self.slots.get(usize::from(worker.slot.0));
            worker.age.due.is_some()
                && matches!(worker.state, State::Ready { .. })
                && slot.is_some_and(|slot| {
                    slot.state == SlotState::Up { worker: worker.id }
                        && slot.beside == Beside::Nobody
                })
        })
    }

    fn recycle(&mut self, i: usize) {
        let Some(worker) = self.dealer.workers.get(i) else { return };
        let (old, at, due) = (worker.id, usize::from(worker.slot.0), worker.age.due);
        let Some(slot) = self.slots.get(at) else { return };
        let (slot, generation) = (slot.id, slot.generation);
        let (Some(why), Some(new)) = (due, self.spawn(at, generation)) else { return };
        if let Some(slot) = self.slots.get_mut(at) {
            slot.beside = Beside::Next { worker: new };
        }
        self.recycle.way = Way::Starting { new, old };
        self.report(Report::RecycleBegan { worker: old, by: new, slot, why });
    }

    /// When somebody who is due and has to wait is replaced.
    pub(crate) fn recycle_deadline(&self) -> Option<Now> {
        if self.recycle.way != Way::Nothing || self.stop.is_under_way() {
            return None;
        }
        (0..self.dealer.workers.len())
            .filter(|i| self.may_be_recycled(*i))
            .map(|i| self.recycled_from(i))
            .filter(|at| *at > self.dealer.now)
            .min()
    }

    /// What the new worker of a recycling must listen on: all that the old one listens on.
    pub(crate) fn recycle_must_listen(&self, new: WorkerId) -> Option<Listens> {
        let Way::Starting { new: known, old } = self.recycle.way else { return None };
        let i = self.dealer.find(old).filter(|_| known == new)?;
        self.dealer.seats.get(i).map(|seat| seat.listens)
    }

    /// A new worker has taken over the slot of `last`. Whether that was a recycling; then the old one
    /// drains.
    pub(crate) fn recycled(&mut self, by: WorkerId, last: Option<WorkerId>) -> bool {
        let Way::Starting { new, old } = self.recycle.way else { return false };
        if new != by {
            return false;
        }
        self.recycle = Recycle::default();
        let too_soon = self.dealer.now.after(AT_ONCE);
        if let Some(worker) = self.dealer.find(by).and_then(|i| self.dealer.workers.get_mut(i)) {
            worker.age.too_soon = Some(too_soon);
        }
        if last == Some(old)
            && let Some(i) = self.dealer.find(old)
            && let Some(slot) = self.dealer.workers.get(i).map(|worker| worker.slot)
        {
            let limits = !self.is_asked_for(i);
            // Room of its own matters to nobody now.
            self.dealer.silence(i, &mut self.actions);
            self.recycle.way = Way::Leaving { old };
            self.ledger.totals.recycled += u64::from(limits);
            self.report(Report::Recycled { worker: old, by, slot });
            self.drain(old);
        }
        // Without the old one, the new one is only a restart that came early.
        true
    }

    /// A worker is over. If it is the new one of a recycling, the old one stays.
    pub(crate) fn recycle_loses(&mut self, i: usize) {
        let Way::Starting { new, old } = self.recycle.way else { return };
        let Some(worker) = self.dealer.workers.get(i).filter(|worker| worker.id == new) else {
            return;
        };
        let (slot, fault) = (worker.slot, worker.fault);
        if let Some(i) = self.dealer.find(old).filter(|i| self.is_asked_for(*i)) {
            // The operator hears of it, and may ask again.
            if let Some(worker) = self.dealer.workers.get_mut(i) {
                worker.age.due = None;
            }
            self.recycle.way = Way::Nothing;
            self.report(Report::RecycleFailed { by: new, slot, fault, wait: None });
            return self.look_for_the_end();
        }
        let wait = self.dice.spread(doubled(self.recycle.failures));
        self.recycle = Recycle {
            way: Way::Nothing,
            failures: self.recycle.failures.saturating_add(1),
            not_before: self.dealer.now.after(wait),
        };
        self.report(Report::RecycleFailed { by: new, slot, fault, wait: Some(wait) });
        self.look_for_the_end();
    }

    /// A reload or a stop wins: a new worker that is not ready goes.
    pub(crate) fn drop_recycling(&mut self) {
        let Way::Starting { new, .. } = core::mem::replace(&mut self.recycle.way, Way::Nothing)
        else {
            return;
        };
        for slot in &mut self.slots {
            if slot.beside == (Beside::Next { worker: new }) {
                slot.beside = Beside::Nobody;
            }
        }
        self.condemn(new);
    }
}

impl Worker {
    /// Whether it was just given the last connection that it may have.
    pub(crate) fn is_spent(&self) -> bool {
        self.age.is_spent(self.handed_off.saturating_sub(self.taken_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_has_limits_of_its_own_up_to_a_tenth_lower() {
        let limits = Limits {
            max_connections: Some(1000),
            max_lifetime: Some(Duration::from_secs(100)),
            ..Limits::NONE
        };
        let mut dice = Dice::new(3);
        let mut seen = alloc::vec::Vec::new();
        for _ in 0..200 {
            let mut age = Age::new(&limits, &mut dice);
            age.begin(&limits, &mut dice, Now(0));
            assert!((900..=1000).contains(&age.connections), "{age:?}");
            let (Now(at), own) = age.ends.unwrap();
            assert!((90..=100).contains(&own.as_secs()) && u128::from(at) == own.as_nanos());
            seen.push(age.connections);
        }
        assert!(seen.iter().any(|own| *own < 920) && seen.iter().any(|own| *own > 980), "{seen:?}");
        let few = Limits { max_connections: Some(1), ..Limits::NONE };
        assert_eq!(Age::new(&few, &mut dice).connections, 1);
    }

    #[test]
    fn without_limits_no_dice_are_thrown() {
        let (mut dice, mut other) = (Dice::new(3), Dice::new(3));
        let mut age = Age::new(&Limits::NONE, &mut dice);
        age.begin(&Limits::NONE, &mut dice, Now(5));
        assert!(!age.is_spent(u64::MAX - 1));
        assert_eq!(age.deadline(State::Ready { since: Now(5) }), None);
        assert_eq!(dice.up_to(1000), other.up_to(1000));
    }
}
