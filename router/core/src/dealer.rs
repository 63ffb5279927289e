//! The dealer: who sits at the table, what each has, and who gets the next connection.
//!
//! Owns seats and workers (two lists in the same order, by worker id) and the snapshot of loads.
//! Promises: choosing does not allocate, reads a page at most once an epoch, and `least` stops at
//! the first load of 0. Never decides about processes: what it notices about a worker it leaves in
//! [`Dealer::notes`].

use alloc::vec::Vec;
use core::time::Duration;

use crate::by_id::find_by_id;
use crate::config::{Config, Policy};
use crate::event::{ListenerId, Loads, WorkerId};
use crate::pause::Rest;
use crate::policies::Policies;
use crate::seat::{ACTIVE_UNKNOWN, Seat, Standing};
use crate::sticky;
use crate::time::Now;
use crate::window::{Pace, Seen};
use crate::worker::{Lateness, State, Worker};

/// Largest number of queued connections of a worker on listeners where windows do not gate: under `ip`
/// they would make clients change their worker, and without hand-offs nobody knows what is queued.
pub(crate) const STICKY_QUEUE_MAX: u16 = 256;
/// Looks in a row at which a worker's numbers may not fit before it is replaced.
const MISFITS_MAX: u8 = 3;

/// Something that was noticed while dealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// A late worker claims again.
    Recovered(WorkerId),
    /// A worker's numbers contradict what the primary counted.
    Unfit(WorkerId),
}

/// What dealing needs to know of the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) max_active: Option<u32>,
    pub(crate) queue_limit: u16,
    pub(crate) stall_after: Duration,
    pub(crate) slow_start: Duration,
    pub(crate) sticky_bound: Option<u32>,
}

impl Rules {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            max_active: config.max_active,
            queue_limit: config.queue_limit.max(1),
            stall_after: config.stall_after,
            slow_start: config.slow_start,
            sticky_bound: config.sticky_bound,
        }
    }
}

/// Whether more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Open,
    /// Everything stops: workers that finish may have what the primary still holds.
    Last,
}

/// Whether one more connection may be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Total {
    Open,
    /// Only when another is closed, whoever closes it.
    Full,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Dealer {
    pub(crate) rules: Rules,
    pub(crate) policies: Policies,
    pub(crate) seats: Vec<Seat>,
    pub(crate) workers: Vec<Worker>,
    /// What each seat's slot adds to a sticky client's score, in the order of the seats.
    pub(crate) salts: Vec<u64>,
    pub(crate) now: Now,
    pub(crate) epoch: u32,
    /// The window of fast workers.
    pub(crate) pace: Pace,
    pub(crate) round: Round,
    /// The operator wants nobody to get anything.
    pub(crate) rest: Rest,
    /// Workers that are fresh.
    pub(crate) fresh: u32,
    /// Workers that must claim a probe before they get anything.
    pub(crate) doubtful: u32,
    pub(crate) notes: Vec<Note>,
    /// `--max-total`, when it was last looked at.
    pub(crate) total: Total,
    /// The least load of those that have room on a listener. In an epoch loads only grow, so the
    /// first seat that is this low is one of the lowest.
    pub(crate) floor: Option<(ListenerId, u64)>,
    /// Whether some worker's bell may be set: to look at each, for every connection that comes alone,
    /// costs a third of dealing it where there are 64.
    pub(crate) some_bell: bool,
}

impl Dealer {
    pub(crate) fn new(rules: Rules, policies: Policies, now: Now) -> Self {
        Self {
            rules,
            policies,
            seats: Vec::new(),
            workers: Vec::new(),
            salts: Vec::new(),
            now,
            epoch: 1,
            pace: Pace::new(rules.queue_limit, now),
            round: Round::Open,
            rest: Rest::No,
            fresh: 0,
            doubtful: 0,
            notes: Vec::new(),
            total: Total::Open,
            floor: None,
            some_bell: false,
        }
    }

    /// Ids only grow, so pushing keeps the order.
    pub(crate) fn seat(&mut self, worker: Worker) {
        self.salts.push(sticky::salt(worker.slot));
        self.seats.push(Seat::new(worker.id));
        self.workers.push(worker);
    }

    /// Connections whose hand-off times must be known: as many as may be queued.
    pub(crate) fn largest_window(&self) -> u16 {
        match (self.policies.by_load(), self.policies.mixed()) {
            (true, false) => self.rules.queue_limit,
            (true, true) => self.rules.queue_limit.max(STICKY_QUEUE_MAX),
            (false, _) => STICKY_QUEUE_MAX,
        }
    }

    /// A listener was opened, perhaps with a policy that the workers there are were not made for.
    pub(crate) fn set_policy(&mut self, listener: ListenerId, policy: Policy) {
        self.policies.set(listener, policy);
        let room = self.largest_window();
        for worker in &mut self.workers {
            worker.times.grow(room, worker.handed_off);
        }
        self.restand_all();
    }

    pub(crate) fn remove(&mut self, i: usize) {
        if i < self.seats.len() {
            debug_assert!(self.seats.get(i).is_some_and(|seat| seat.standing == Standing::Away));
            self.seats.remove(i);
            self.workers.remove(i);
            self.salts.remove(i);
            self.floor = None;
        }
    }

    pub(crate) fn find(&self, id: WorkerId) -> Option<usize> {
        find_by_id(&self.seats, id, |seat| seat.id)
    }

    pub(crate) fn both(&mut self, i: usize) -> Option<(&mut Seat, &mut Worker)> {
        Some((self.seats.get_mut(i)?, self.workers.get_mut(i)?))
    }

    /// A new snapshot: every page may be read once more.
    pub(crate) fn new_epoch(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.floor = None;
    }

    /// Works out what dealing may do with a worker, after anything that bears on it has changed.
    pub(crate) fn restand(&mut self, i: usize) {
        self.floor = None;
        let last_round = self.round == Round::Last;
        let by_load = self.policies.by_load();
        let rest = self.rest;
        let Some((seat, worker)) = self.both(i) else { return };
        let before = u32::from(seat.standing == Standing::Doubtful);
        seat.standing = match worker.state {
            State::Ready { .. } if rest == Rest::ByHand || worker.rest == Rest::ByHand => {
                Standing::Resting
            }
            State::Ready { .. } if worker.paused.is_some() => Standing::Paused,
            State::Ready { .. } => match worker.lateness {
                Lateness::Emptied | Lateness::Probed => Standing::Doubtful,
                Lateness::Late if by_load => Standing::Late,
                Lateness::Late | Lateness::No if worker.fresh.is_some() => Standing::Fresh,
                Lateness::Late | Lateness::No => Standing::Regular,
            },
            State::Finishing { .. } if last_round && worker.paused.is_none() => Standing::Finishing,
            State::Finishing { .. }
            | State::Starting { .. }
            | State::Parked { .. }
            | State::Signalled { .. }
            | State::Aborting { .. }
            | State::Killing { .. }
            | State::Dead => Standing::Away,
        };
        let after = u32::from(seat.standing == Standing::Doubtful);
        self.doubtful = (self.doubtful + after).saturating_sub(before);
    }

    pub(crate) fn restand_all(&mut self) {
        for i in 0..self.seats.len() {
            self.restand(i);
        }
    }

    /// Makes sure that a seat shows this epoch's load.
    pub(crate) fn look(&mut self, i: usize, loads: &impl Loads) {
        let Some(seat) = self.seats.get(i) else { return };
        if seat.epoch != self.epoch {
            self.read(i, loads);
        }
    }

    /// Reads a worker's page.
    fn read(&mut self, i: usize, loads: &impl Loads) {
        let (epoch, by_hand) = (self.epoch, self.policies.by_hand());
        let Some(seat) = self.seats.get_mut(i) else { return };
        seat.epoch = epoch;
        let load = loads.load(seat.id);
        // Where it is not known, it may have been busy.
        let active_before = if seat.active == ACTIVE_UNKNOWN { 1 } else { seat.active() };
        seat.active = load.active.unwrap_or(ACTIVE_UNKNOWN);
        if !by_hand {
            // It accepts by itself: what it claims was never sent.
            seat.claimed = seat.sent;
            return;
        }
        let before = seat.claimed;
        let fits = load.claimed <= seat.sent && load.claimed >= before;
        seat.claimed = load.claimed.min(seat.sent);
        if !fits || seat.misfits != 0 {
            self.weigh(i, fits, loads);
        }
        self.learn(i, before, active_before);
    }

    /// A worker's numbers may be off for a moment (they are read while it writes them, or while its
    /// queue is taken back), not at several looks in a row.
    fn weigh(&mut self, i: usize, fits: bool, loads: &impl Loads) {
        let Some((seat, worker)) = self.both(i) else { return };
        if fits {
            seat.misfits = 0;
            return;
        }
        if worker.taking.is_some() {
            return;
        }
        seat.misfits = seat.misfits.saturating_add(1);
        if seat.misfits < MISFITS_MAX {
            return;
        }
        seat.misfits = 0;
        let said = loads.load(seat.id).claimed;
        let exact = loads.queued_exact(seat.id);
        // With what the kernel says is queued, the claims are known.
        let truth = exact.map(|queued| seat.sent.saturating_sub(u64::from(queued)));
        if truth != Some(said) {
            let id = seat.id;
            self.notes.push(Note::Unfit(id));
        }
    }

    /// Draws conclusions from a new number of claims.
    fn learn(&mut self, i: usize, before: u64, active_before: u64) {
        let (now, pace) = (self.now, self.pace.size());
        let (by_load, stall_after) = (self.policies.by_load(), self.rules.stall_after);
        let Some((seat, worker)) = self.both(i) else { return };
        let claimed = seat.claimed;
        if claimed == before && seat.queued() == 0 {
            return;
        }
        if claimed > before {
            worker.note_claims(claimed, stall_after, now);
        }
        if by_load {
            let seen = Seen {
                oldest_then: worker.oldest(before),
                active: (active_before, seat.active()),
                queued: seat.queued(),
            };
            worker.window.seen(seat.window, seen, now);
            seat.window = worker.window.size(pace, now);
        }
        if worker.lateness != Lateness::No && claimed > before {
            let stands =
                worker.oldest(claimed).is_some_and(|oldest| now.since(oldest) > stall_after);
            if !stands {
                worker.lateness = Lateness::No;
                let id = seat.id;
                self.notes.push(Note::Recovered(id));
                self.restand(i);
            }
        }
    }

    /// A new turn of the loop: new loads, and perhaps other windows.
    pub(crate) fn new_turn(&mut self) {
        self.new_epoch();
        let now = self.now;
        if self.pace.turn(self.seats.len(), now) && self.policies.by_load() {
            let pace = self.pace.size();
            for (seat, worker) in self.seats.iter_mut().zip(&self.workers) {
                seat.window = worker.window.size(pace, now);
            }
        }
    }

    /// Where a round begins: behind the worker that had the last one.
    pub(crate) fn behind(&self, last: WorkerId) -> usize {
        match self.find(last) {
            Some(i) => i + 1,
            None => self.seats.partition_point(|seat| seat.id <= last),
        }
    }

    /// Workers that may be dealt to at all on this listener.
    pub(crate) fn eligible(&self, listener: ListenerId) -> u32 {
        let deals = |seat: &&Seat| match seat.standing {
            Standing::Late | Standing::Fresh | Standing::Regular => seat.listens.contains(listener),
            Standing::Away
            | Standing::Finishing
            | Standing::Resting
            | Standing::Paused
            | Standing::Doubtful => false,
        };
        u32::try_from(self.seats.iter().filter(deals).count()).unwrap_or(u32::MAX)
    }

    /// Counts a hand-off that is on its way to a seat.
    pub(crate) fn dealt(&mut self, i: usize, listener: ListenerId) {
        if self.fresh > 0 && self.policies.of(listener) == Policy::Least {
            self.share_out(i, listener);
        }
        let (now, pace) = (self.now, self.pace.size());
        let (by_load, loose) = (self.policies.by_load(), self.policies.of(listener).by_load());
        let Some((seat, worker)) = self.both(i) else { return };
        worker.in_flight += 1;
        if loose {
            worker.yields_nothing = None;
            if let Some(taking) = &mut worker.taking {
                taking.sees_all = false;
            }
        }
        seat.recount(worker.sent());
        if by_load {
            seat.window = worker.window.size(pace, now);
        }
    }

    /// A hand-off that was on its way to a seat did not happen.
    pub(crate) fn undealt(&mut self, i: usize) {
        if let Some((_, worker)) = self.both(i) {
            worker.in_flight = worker.in_flight.saturating_sub(1);
        }
        self.resent(i);
    }

    /// What was sent to a worker has changed, other than by dealing.
    pub(crate) fn resent(&mut self, i: usize) {
        self.floor = None;
        if let Some((seat, worker)) = self.both(i) {
            seat.recount(worker.sent());
        }
    }

    /// Every hand-off by load gives each fresh worker its part of the right to have one.
    fn share_out(&mut self, i: usize, listener: ListenerId) {
        let eligible = self.eligible(listener);
        let (slow_start, now) = (self.rules.slow_start, self.now);
        for (at, worker) in self.workers.iter_mut().enumerate() {
            if let Some(fresh) = &mut worker.fresh {
                fresh.earn(eligible, slow_start, now);
                if at == i {
                    fresh.spend();
                }
            }
        }
    }

    /// A fresh worker is like any other from now on.
    pub(crate) fn settle_in(&mut self, i: usize) {
        if let Some(worker) = self.workers.get_mut(i)
            && worker.fresh.take().is_some()
        {
            self.fresh = self.fresh.saturating_sub(1);
            self.restand(i);
        }
    }
}
