//! Connections that have to change hands: queues of the dead and of those that drain, and what the
//! primary holds.
//!
//! A dead worker's queue stays in the kernel and is dealt from before any listener, as the others
//! have room. Promises: one take-back at a time per worker, never more than can be held, and a dead
//! worker is forgotten only when its queue is empty.

use core::time::Duration;

use crate::dealer::Round;
use crate::event::{
    Action, Arrival, CutReason, ListenerId, Loads, Report, TakeBackReason, Whose, WorkerId,
};
use crate::primary::Core;
use crate::seat::{LISTENERS_MAX, Listens, Standing};
use crate::time::Now;
use crate::worker::{Farewell, Input, ReadyProbe, State, Taking, Worker};

/// Before a take-back that got stuck, or got nothing out of a queue that is not empty, is tried again.
const TAKE_AGAIN: Duration = Duration::from_millis(100);

impl Core {
    /// Looks at every worker whose state may move by itself.
    pub(crate) fn tend_workers(&mut self, loads: &impl Loads) {
        for i in 0..self.dealer.workers.len() {
            let Some(worker) = self.dealer.workers.get(i) else { return };
            match worker.state {
                State::Starting { deadline } => self.tend_starting(i, deadline, loads),
                State::Finishing { deadline } => self.tend_finishing(i, deadline, loads),
                State::Signalled { kill_at } | State::Aborting { kill_at }
                    if kill_at <= self.dealer.now =>
                {
                    self.enter(i, Input::Condemned);
                }
                State::Ready { .. } if worker.needs_probe() => self.probe_if_due(i),
                State::Parked { .. } => self.tend_parked(i, TakeBackReason::Drain, loads),
                State::Aborting { .. } => self.tend_parked(i, TakeBackReason::Death, loads),
                State::Ready { .. }
                | State::Signalled { .. }
                | State::Killing { .. }
                | State::Dead => {}
            }
        }
    }

    /// A parked worker, or one that aborts: its queue is taken back if others can have it. What it has
    /// claimed is its own affair.
    fn tend_parked(&mut self, i: usize, why: TakeBackReason, loads: &impl Loads) {
        self.dealer.look(i, loads);
        let (Some(seat), Some(worker)) = (self.dealer.seats.get(i), self.dealer.workers.get(i))
        else {
            return;
        };
        let (said, listens) = (seat.queued(), seat.listens);
        let busy = worker.taking.is_some() || worker.in_flight > 0;
        let queued = loads.queued_exact(seat.id).map_or(said, u64::from);
        if !busy
            && queued > 0
            && self.others_serve(&listens)
            && let Some(whose) = self.gives(i)
        {
            let most = self.ledger.room();
            self.take_back(i, most, whose, why);
        }
    }

    /// A draining worker: gives its queue back if others can have it, finishes what is active, and
    /// is then told to end.
    fn tend_finishing(&mut self, i: usize, deadline: Now, loads: &impl Loads) {
        let Some(worker) = self.dealer.workers.get(i) else { return };
        let (id, busy) = (worker.id, worker.taking.is_some() || worker.in_flight > 0);
        let now = self.dealer.now;
        if deadline <= now {
            return self.cut(i, CutReason::Time, loads);
        }
        self.dealer.look(i, loads);
        let Some(seat) = self.dealer.seats.get(i) else { return };
        let (said, sent, listens) = (seat.queued(), seat.sent, seat.listens);
        let queued = loads.queued_exact(id).map_or(said, u64::from);
        // Last: what was claimed after this was read would look like nothing at all, neither queued
        // nor active, and its worker would be told to end with it in its hands.
        let active = loads.load(id).active;
        if busy {
            return;
        }
        if queued > 0
            && self.others_serve(&listens)
            && let Some(whose) = self.gives(i)
            && (whose == Whose::All || self.may_take(i))
        {
            let most = self.ledger.room();
            return self.take_back(i, most, whose, TakeBackReason::Drain);
        }
        // The page may lag behind the kernel: what was claimed a moment ago is not counted yet.
        if queued > 0 || said > 0 {
            self.audit(i, loads);
            let drains = self.dealer.workers.get(i).is_some_and(|worker| worker.state.lives());
            // One that says that it has claimed them would ring at once, again and again.
            if !drains || said == 0 {
                return;
            }
            // What others leave behind waits for its room, and has its bell set for that: two that set
            // one bell to different claims would wake each other without end.
            if self.dealer.round == Round::Open || !self.owes() {
                self.ring_one(i, sent.max(1), false);
            }
            return;
        }
        // While everything stops, this worker may be the one that gets what others leave behind.
        if self.stop.is_under_way() && (self.owes() || self.others_have_queues()) {
            return;
        }
        self.dismiss(i);
        // A program that accepts by itself goes on doing so until it is told to end.
        let drains_itself = self.config.stop_signal_first || !self.dealer.policies.by_hand();
        match active {
            Some(0) => self.tell_to_end(i, now),
            Some(_) if !drains_itself => {
                self.ring_one(i, 0, true);
            }
            // It finishes what it has after the signal, in the time that it has for that.
            Some(_) | None => self.tell_to_end(i, deadline),
        }
    }

    /// Tells a draining worker, once, that nothing waits for it and nothing more will come.
    fn dismiss(&mut self, i: usize) {
        let Some(worker) = self.dealer.workers.get_mut(i) else { return };
        if core::mem::replace(&mut worker.farewell, Farewell::Said) == Farewell::NotYet {
            self.actions.push_back(Action::Disconnect { worker: worker.id });
        }
    }

    /// A draining worker has no more time for what it serves.
    pub(crate) fn cut(&mut self, i: usize, why: CutReason, loads: &impl Loads) {
        let Some(worker) = self.dealer.workers.get(i).map(|worker| worker.id) else { return };
        let active = loads.load(worker).active;
        self.report(Report::DrainCut { worker, active, why });
        self.tell_to_end(i, self.dealer.now);
    }

    /// Sends the stop-signal; KILL comes `kill_after` later than `from`.
    fn tell_to_end(&mut self, i: usize, from: Now) {
        let kill_at = from.after(self.config.kill_after);
        self.enter(i, Input::Told { kill_at });
    }

    /// Whether a worker that finishes has connections that it did not claim yet: should it die, they
    /// are for those that still live.
    fn others_have_queues(&self) -> bool {
        let finishes = |seat: &crate::seat::Seat| seat.standing == Standing::Finishing;
        self.dealer.seats.iter().any(|seat| finishes(seat) && seat.queued() > 0)
    }

    /// Whether a worker that does not drain serves one of these listeners.
    fn others_serve(&self, listens: &Listens) -> bool {
        self.dealer.seats.iter().any(|seat| match seat.standing {
            Standing::Late | Standing::Fresh | Standing::Regular | Standing::Paused => {
                seat.listens.meets(listens)
            }
            // What waits for the one that leaves would wait in hand for the end of the pause.
            Standing::Resting => false,
            Standing::Away | Standing::Finishing | Standing::Doubtful => false,
        })
    }

    /// Whether anybody serves this listener, or will, for what the primary holds.
    fn is_served(&self, listener: ListenerId) -> bool {
        self.dealer
            .seats
            .iter()
            .any(|seat| seat.standing != Standing::Away && seat.listens.contains(listener))
    }

    /// Connections that have no worker yet.
    pub(crate) fn owes(&self) -> bool {
        let orphans = |worker: &Worker| match worker.state {
            State::Aborting { .. } | State::Killing { .. } | State::Dead => true,
            State::Starting { .. }
            | State::Ready { .. }
            | State::Parked { .. }
            | State::Finishing { .. }
            | State::Signalled { .. } => false,
        };
        !self.ledger.held.is_empty()
            || self.admission.count() > 0
            || !self.ledger.in_flight.is_empty()
            || self.ledger.expected > 0
            || self.dealer.workers.iter().any(orphans)
    }

    /// Places what the primary holds, then sends for what the dead have left.
    pub(crate) fn settle_debts(&mut self, loads: &impl Loads) {
        self.place_held(loads);
        self.place_waiting(loads);
        let mut i = 0;
        while let Some(worker) = self.dealer.workers.get(i) {
            let id = worker.id;
            if matches!(worker.state, State::Dead) {
                self.salvage(i, loads);
            }
            // A worker that was forgotten is no longer here; the next one is in its place.
            if self.dealer.seats.get(i).is_some_and(|seat| seat.id == id) {
                i += 1;
            }
        }
        // A bell may be the only word of these; each wake-up looks at them.
        let moves_by_itself = |worker: &Worker| match worker.state {
            State::Killing { .. } | State::Dead | State::Finishing { .. } => true,
            State::Starting { .. } => worker.probe == ReadyProbe::Queued,
            State::Parked { .. } | State::Aborting { .. } => self.gives_back(worker),
            State::Ready { .. } | State::Signalled { .. } => false,
        };
        self.debts = !self.ledger.held.is_empty()
            || self.admission.count() > 0
            || self.ledger.expected > 0
            || self.dealer.workers.iter().any(moves_by_itself);
    }

    /// Whether something may still be in a parked worker's queue, as far as was looked.
    fn gives_back(&self, worker: &Worker) -> bool {
        let Some(i) = self.dealer.find(worker.id) else { return false };
        self.gives(i).is_some() && self.dealer.seats.get(i).is_some_and(|seat| seat.queued() > 0)
    }

    fn place_held(&mut self, loads: &impl Loads) {
        let mut full = Listens::default();
        for _ in 0..self.ledger.held.len() {
            let Some(arrival) = self.ledger.held.pop_front() else { return };
            if self.is_hopeless(arrival.listener) {
                self.refuse(arrival);
                continue;
            }
            let known_full = full.contains(arrival.listener);
            let seat = if known_full {
                None
            } else {
                self.seat_for(arrival, crate::scheduler::Origin::Held, loads)
            };
            match seat {
                Some(seat) => self.send(seat, arrival),
                None => {
                    full.insert(arrival.listener);
                    self.ledger.held.push_back(arrival);
                    if !known_full {
                        let ask = self.ask_held(arrival.listener);
                        self.nobody_has_room(ask);
                    }
                }
            }
        }
    }

    /// Whether nobody will ever serve this listener again.
    pub(crate) fn is_hopeless(&self, listener: ListenerId) -> bool {
        if self.is_served(listener) {
            return false;
        }
        self.stop.is_under_way() || self.listener(listener).is_none()
    }

    /// The queue of a dead worker.
    fn salvage(&mut self, i: usize, loads: &impl Loads) {
        let now = self.dealer.now;
        let Some((seat, worker)) = self.dealer.both(i) else { return };
        let (id, listens) = (seat.id, seat.listens);
        if worker.taking.is_some() || worker.in_flight > 0 {
            return;
        }
        let waits = worker.take_after > now;
        if self.stop.kills() || loads.queued_exact(id) == Some(0) {
            return self.forget(i);
        }
        if waits {
            return;
        }
        let most = if self.stop.is_under_way() && !self.others_may_finish() {
            // Nobody is left: they come back to be refused.
            u64::from(self.ledger.room())
        } else {
            let owed = u64::from(self.ledger.expected)
                + u64::try_from(self.ledger.held.len()).unwrap_or(0);
            self.room_for(&listens, loads).saturating_sub(owed)
        };
        let most = u32::try_from(most).unwrap_or(u32::MAX).min(self.ledger.room());
        self.take_back(i, most, Whose::All, TakeBackReason::Death);
    }

    /// Whether anybody may get what the primary holds while everything stops.
    fn others_may_finish(&self) -> bool {
        self.dealer.seats.iter().any(|seat| seat.standing != Standing::Away)
    }

    /// Whether anybody may get something without a word of the operator's.
    fn somebody_may_get(&self) -> bool {
        let away = |standing| matches!(standing, Standing::Away | Standing::Resting);
        self.dealer.seats.iter().any(|seat| !away(seat.standing))
    }

    /// How many connections of a dead worker could be dealt now.
    fn room_for(&mut self, listens: &Listens, loads: &impl Loads) -> u64 {
        let mut most = 0;
        for listener in (0..LISTENERS_MAX).map(ListenerId) {
            let wanted = listens.contains(listener)
                || (listens.is_empty() && self.listener(listener).is_some());
            if wanted {
                let ask = self.ask_held(listener);
                let room = self.dealer.room(ask, loads);
                if room == 0 {
                    self.nobody_has_room(ask);
                }
                most = most.max(room);
            }
        }
        most
    }

    /// Not where the last try got nothing a moment ago.
    fn may_take(&self, i: usize) -> bool {
        self.dealer.workers.get(i).is_some_and(|worker| worker.take_after <= self.dealer.now)
    }

    pub(crate) fn take_back(&mut self, i: usize, max: u32, whose: Whose, why: TakeBackReason) {
        let now = self.dealer.now;
        let Some(worker) = self.dealer.workers.get_mut(i) else { return };
        if max == 0 || worker.taking.is_some() || worker.take_after > now {
            return;
        }
        let sees_all = worker.in_flight == 0;
        worker.taking = Some(Taking { why, max, got: 0, sees_all });
        self.ledger.expected += max;
        self.actions.push_back(Action::TakeBack { worker: worker.id, max, whose, why });
    }

    /// A connection came back. It is dealt again, whoever it came from: even a worker that the core
    /// has forgotten (a take-back that had been given up may still deliver).
    pub(crate) fn taken_back(&mut self, worker: WorkerId, arrival: Arrival) {
        self.ledger.taken_back += 1;
        self.ledger.held.push_back(arrival);
        self.debts = true;
        let Some(i) = self.dealer.find(worker) else {
            self.ledger.totals.salvaged += 1;
            return;
        };
        if let Some(worker) = self.dealer.workers.get_mut(i) {
            worker.taken_back += 1;
        }
        self.dealer.resent(i);
        let Some(worker) = self.dealer.workers.get_mut(i) else { return };
        let why = match &mut worker.taking {
            Some(taking) => {
                if taking.got < taking.max {
                    taking.got += 1;
                    self.ledger.expected = self.ledger.expected.saturating_sub(1);
                }
                taking.why
            }
            None if worker.state.lives() => TakeBackReason::Steal,
            None => TakeBackReason::Death,
        };
        match why {
            TakeBackReason::Death => self.ledger.totals.salvaged += 1,
            TakeBackReason::Steal => self.ledger.totals.stolen += 1,
            TakeBackReason::Drain => {}
        }
    }

    pub(crate) fn take_back_done(&mut self, worker: WorkerId, lost: u32, empty: bool) {
        let again = self.dealer.now.after(TAKE_AGAIN);
        let Some(i) = self.dealer.find(worker) else { return };
        if let Some(who) = self.dealer.workers.get_mut(i) {
            who.taken_back += u64::from(lost);
        }
        self.dealer.resent(i);
        // Where nothing sticks it has failed, as for want of a descriptor, and is tried again.
        let mixed = self.dealer.policies.mixed();
        let Some((seat, who)) = self.dealer.both(i) else { return };
        let head = who.taken_back + seat.claimed;
        let Some(taking) = who.taking.take() else { return };
        self.ledger.expected = self.ledger.expected.saturating_sub(taking.max - taking.got);
        if taking.got == 0 && lost == 0 && !empty {
            who.take_after = again;
            if mixed && taking.why == TakeBackReason::Steal && taking.sees_all {
                who.yields_nothing = Some(head);
            }
        }
        let count = taking.got;
        let dead = who.state == State::Dead && who.in_flight == 0;
        match taking.why {
            TakeBackReason::Death if count > 0 => self.report(Report::Salvaged { worker, count }),
            TakeBackReason::Steal => self.stole(i, count, empty),
            TakeBackReason::Death | TakeBackReason::Drain => {}
        }
        if dead && empty {
            self.forget(i);
        }
    }

    /// The rescue did not come back in time. A living worker holds the lock of its queue: it is
    /// killed, which frees the lock. A dead one's is tried again.
    pub(crate) fn take_back_stuck(&mut self, worker: WorkerId) {
        let again = self.dealer.now.after(TAKE_AGAIN);
        let Some(i) = self.dealer.find(worker) else { return };
        let Some(who) = self.dealer.workers.get_mut(i) else { return };
        let Some(taking) = who.taking.take() else { return };
        who.take_after = again;
        self.ledger.expected = self.ledger.expected.saturating_sub(taking.max - taking.got);
        self.condemn(worker);
    }

    /// A worker is over, and nothing of it is left.
    pub(crate) fn forget(&mut self, i: usize) {
        let Some(worker) = self.dealer.workers.get(i) else { return };
        let id = worker.id;
        if let Some(taking) = worker.taking {
            self.ledger.expected = self.ledger.expected.saturating_sub(taking.max - taking.got);
        }
        self.actions.push_back(Action::Forget { worker: id });
        self.dealer.remove(i);
    }

    /// Whether something is under way that a lost doorbell would leave lying.
    pub(crate) fn needs_recheck(&self) -> bool {
        let servers = self.somebody_may_get();
        let waits = self.dealer.workers.iter().any(|worker| match worker.state {
            State::Finishing { .. } => true,
            State::Starting { .. } => worker.probe == ReadyProbe::Queued,
            State::Dead => servers,
            State::Parked { .. } | State::Aborting { .. } => self.gives_back(worker),
            State::Ready { .. } | State::Signalled { .. } | State::Killing { .. } => false,
        });
        let holds = !self.ledger.held.is_empty() || self.admission.count() > 0;
        waits || (servers && holds)
    }
}
