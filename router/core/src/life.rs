//! Workers come and go: start, ready, exit, restart.
//!
//! Owns the consequences of entering a state, in one place ([`Core::enter`]), and the account of
//! crashes. A worker that ends without having been asked to is a crash if it was not ready, or not
//! for long; its slot starts the next one when nobody of the old family is left.

use core::time::Duration;

use crate::config::{Policy, ReadyRule};
use crate::event::{
    Action, ExitStatus, Fault, Generation, ListenerId, Loads, Outcome, Report, SignalKind, WorkerId,
};
use crate::hung::Watch;
use crate::pause::Rest;
use crate::primary::{Core, NamedBy, Start};
use crate::recycle::Age;
use crate::restart::Verdict;
use crate::slot::{Beside, Slot, SlotInput, SlotState, Sockets, Want};
use crate::time::Now;
use crate::worker::{Fresh, Input, Lateness, ReadyProbe, State, Word, Worker};

/// A slot's next worker waits for the family of the last to be gone, but no longer than this: a
/// process that even KILL cannot end must not keep the slot down.
const FAMILY_WAIT: Duration = Duration::from_secs(1);
/// Between two tries to probe a starting worker.
const PROBE_WAIT: Duration = Duration::from_millis(100);
/// `reuseport`: the sockets of a slot that is down for longer are emptied by the primary.
const ADOPT_AFTER: Duration = Duration::from_secs(1);

impl Core {
    /// Starts every worker whose time has come.
    pub(crate) fn start_due(&mut self) {
        if !self.stop.starts_workers() {
            return;
        }
        let now = self.dealer.now;
        for at in 0..self.slots.len() {
            let due = self.slots.get(at).is_some_and(|slot| match slot.state {
                SlotState::Backoff { until } => {
                    until <= now && self.family_wait(slot).is_none() && !awaits_next(slot)
                }
                SlotState::Down
                | SlotState::Starting { .. }
                | SlotState::Up { .. }
                | SlotState::Failed => false,
            });
            if due {
                self.start_worker(at);
            }
        }
    }

    fn start_worker(&mut self, at: usize) {
        let Some(generation) = self.slots.get(at).map(|slot| slot.generation) else { return };
        let Some(worker) = self.spawn(at, generation) else { return };
        if let Some(slot) = self.slots.get_mut(at) {
            slot.starts = slot.starts.saturating_add(1);
            slot.take(SlotInput::Start { worker });
        }
    }

    /// Asks for a process for a slot.
    pub(crate) fn spawn(&mut self, at: usize, generation: Generation) -> Option<WorkerId> {
        let (id, now) = (WorkerId(self.next_worker), self.dealer.now);
        let slot = self.slots.get(at)?.id;
        self.next_worker = self.next_worker.saturating_add(1);
        let deadline = now.after(self.config.ready_timeout);
        let room = self.dealer.largest_window();
        let mut worker = Worker::new(id, slot, generation, deadline, room, now);
        worker.age = Age::new(&self.config.limits, &mut self.dice);
        worker.rest = self.slots.get(at).map_or(Rest::No, |slot| slot.rest);
        self.dealer.seat(worker);
        self.actions.push_back(Action::Spawn { slot, worker: id, generation });
        Some(id)
    }

    /// Until when a slot waits for the family of its last worker.
    pub(crate) fn family_wait(&self, slot: &Slot) -> Option<Now> {
        let now = self.dealer.now;
        let ends = self.dealer.workers.iter().filter(|worker| worker.slot == slot.id);
        ends.filter_map(|worker| match worker.state {
            State::Killing { since } => Some(since.after(FAMILY_WAIT)).filter(|at| *at > now),
            State::Starting { .. }
            | State::Ready { .. }
            | State::Parked { .. }
            | State::Finishing { .. }
            | State::Signalled { .. }
            | State::Aborting { .. }
            | State::Dead => None,
        })
        .max()
    }

    pub(crate) fn deadline_of_slot(&self, slot: &Slot) -> Option<Now> {
        let adopt = match slot.sockets {
            Sockets::Left { since } => Some(since.after(ADOPT_AFTER)),
            Sockets::Own | Sockets::Adopted => None,
        };
        let start = match slot.state {
            SlotState::Backoff { until } if self.stop.starts_workers() && !awaits_next(slot) => {
                Some(self.family_wait(slot).map_or(until, |wait| wait.max(until)))
            }
            SlotState::Backoff { .. }
            | SlotState::Down
            | SlotState::Starting { .. }
            | SlotState::Up { .. }
            | SlotState::Failed => None,
        };
        match (adopt, start) {
            (Some(adopt), Some(start)) => Some(adopt.min(start)),
            (one, other) => one.or(other),
        }
    }

    /// Everything about one worker that has a time.
    pub(crate) fn deadlines_of(&self, worker: &Worker) -> impl Iterator<Item = Now> + use<> {
        let probe = match worker.probe {
            ReadyProbe::Due { after } if worker.needs_probe() && after > self.dealer.now => {
                Some(after)
            }
            ReadyProbe::Due { .. } | ReadyProbe::Asked | ReadyProbe::Queued => None,
        };
        let take = Some(worker.take_after).filter(|after| *after > self.dealer.now);
        let age = worker.age.deadline(worker.state).filter(|_| !self.stop.is_under_way());
        let own = [worker.state.deadline(), worker.paused, probe, take, age];
        own.into_iter().chain([self.next_check(worker), self.keep_ends(worker)]).flatten()
    }

    /// Feeds an input to a worker's state and does what follows from the state it enters.
    pub(crate) fn enter(&mut self, i: usize, input: Input) {
        let now = self.dealer.now;
        let Some(worker) = self.dealer.workers.get_mut(i) else { return };
        let (id, before) = (worker.id, worker.state);
        let after = before.next(input, now);
        if after == before {
            return;
        }
        worker.state = after;
        match after {
            State::Starting { .. } | State::Dead => {}
            // Room of its own matters to nobody now.
            State::Parked { .. } => self.dealer.silence(i, &mut self.actions),
            State::Ready { .. } => self.became_ready(i, before),
            // Only its deadline has moved.
            State::Finishing { .. } if matches!(before, State::Finishing { .. }) => {}
            State::Signalled { .. } if matches!(before, State::Signalled { .. }) => {}
            State::Finishing { .. } => {
                let slot = worker.slot;
                self.report(Report::Disconnected { worker: id, slot });
                self.actions.push_back(Action::TellDraining { worker: id, draining: true });
            }
            State::Signalled { .. } => {
                self.dealer.silence(i, &mut self.actions);
                self.actions.push_back(Action::Signal { worker: id, signal: SignalKind::Stop });
            }
            State::Aborting { .. } => {
                self.dealer.silence(i, &mut self.actions);
                self.actions.push_back(Action::Signal { worker: id, signal: SignalKind::Abort });
                self.dealer.settle_in(i);
                self.leave_slot(i, before, Blame::ByAge);
                self.debts = true;
            }
            State::Killing { .. } => {
                self.actions.push_back(Action::KillFamily { worker: id });
                self.dealer.settle_in(i);
                self.leave_slot(i, before, Blame::ByAge);
                self.debts = true;
            }
        }
        self.dealer.restand(i);
        self.find_keepers();
        self.recount();
    }

    /// How many are ready; whether all are.
    pub(crate) fn recount(&mut self) {
        self.ready = u32::from(self.ready_count());
        if self.start != Start::Everybody && self.all_up() {
            self.start = Start::Everybody;
            self.report(Report::AllReady);
        }
        if self.ready == 0 {
            self.late_at = None;
        }
    }

    fn became_ready(&mut self, i: usize, before: State) {
        let now = self.dealer.now;
        self.start = self.start.max(Start::Somebody);
        self.debts = true;
        // One that was parked has warm caches.
        let fresh = matches!(before, State::Starting { .. }) && self.starts_slowly(i);
        let Some((seat, worker)) = self.dealer.both(i) else { return };
        // A probe of `--ready accept` and its claim are no hand-off and no lateness.
        worker.lateness = Lateness::No;
        if fresh {
            worker.fresh = Some(Fresh::new(now));
        }
        worker.watch = Watch::default();
        let (id, slot, after) = (seat.id, worker.slot, now.since(worker.started));
        if matches!(before, State::Starting { .. }) {
            worker.age.begin(&self.config.limits, &mut self.dice, now);
        }
        self.dealer.fresh += u32::from(fresh);
        if !matches!(before, State::Starting { .. }) {
            return;
        }
        self.report(Report::Ready { worker: id, slot, after });
        let took_over = self.takes_over(i);
        if let Some(slot) = self.slots.get_mut(usize::from(slot.0)) {
            if !took_over {
                slot.take(SlotInput::Ready { worker: id });
            }
            if core::mem::replace(&mut slot.sockets, Sockets::Own) == Sockets::Adopted {
                self.actions.push_back(Action::AdoptSockets { slot: slot.id, adopt: false });
            }
        }
    }

    /// Beside others that have served already, a new worker is not flooded. At the very first start
    /// there is nobody beside it.
    fn starts_slowly(&self, i: usize) -> bool {
        let others = self.dealer.workers.iter().enumerate().filter(|(at, _)| *at != i);
        self.dealer.policies.least()
            && !self.config.slow_start.is_zero()
            && self.dealer.workers.get(i).is_some_and(|worker| worker.fresh.is_none())
            && others
                .filter(|(_, other)| matches!(other.state, State::Ready { .. }))
                .any(|(_, other)| other.handed_off > 0)
    }

    /// The slot of a worker that is over: when does the next one start?
    fn leave_slot(&mut self, i: usize, before: State, blame: Blame) {
        let now = self.dealer.now;
        self.reload_loses(i, !matches!(before, State::Starting { .. }));
        self.recycle_loses(i);
        let Some((seat, worker)) = self.dealer.both(i) else { return };
        let (id, at, listened) = (seat.id, usize::from(worker.slot.0), !seat.listens.is_empty());
        let policy = self.config.restart;
        let Some(slot) = self.slots.get_mut(at) else { return };
        let up = matches!(slot.state, SlotState::Up { .. });
        let leaves = if slot.state.worker() == Some(id) { up || listened } else { listened && !up };
        match slot.sockets {
            Sockets::Own if leaves => slot.sockets = Sockets::Left { since: now },
            // What it listened on was not emptied while it was on its way.
            Sockets::Adopted => {
                self.actions.push_back(Action::AdoptSockets { slot: slot.id, adopt: true });
            }
            Sockets::Own | Sockets::Left { .. } => {}
        }
        if slot.state.worker() != Some(id) {
            return;
        }
        let lived = match (before, blame) {
            (State::Ready { since } | State::Parked { since }, Blame::ByAge) => {
                now.since(since) > policy.min_uptime
            }
            (
                State::Starting { .. }
                | State::Finishing { .. }
                | State::Signalled { .. }
                | State::Aborting { .. }
                | State::Killing { .. }
                | State::Dead
                | State::Ready { .. }
                | State::Parked { .. },
                Blame::ByAge | Blame::Surely,
            ) => false,
        };
        if lived {
            slot.streak.lived();
            return slot.take(SlotInput::Lost { worker: id, until: now });
        }
        match slot.streak.crashed(&policy, &mut self.dice) {
            Verdict::Wait(wait) => {
                slot.take(SlotInput::Lost { worker: id, until: now.after(wait) });
                let (slot, crashes) = (slot.id, slot.streak.crashes());
                if !wait.is_zero() {
                    self.report(Report::BackingOff { slot, wait, crashes });
                }
            }
            Verdict::Fail => {
                slot.take(SlotInput::UsedUp { worker: id });
                let slot = slot.id;
                self.report(Report::SlotFailed { slot });
            }
        }
        self.look_for_the_end();
    }

    /// Whether starting is hopeless: nobody was ever ready and it was tried often enough, or every
    /// slot is given up. While the operator holds a slot down it is his to say what comes next.
    pub(crate) fn look_for_the_end(&mut self) {
        let starts = self.reload.is_under_way() || self.recycle.is_starting();
        if starts || self.is_held_down() {
            return;
        }
        let wanted = || self.slots.iter().filter(|slot| slot.want == Want::Up);
        if wanted().next().is_none() {
            return self.all_done();
        }
        let crashes = |slot: &Slot| slot.streak.crashes();
        let most = wanted().map(crashes).max().unwrap_or(0);
        let least = wanted().map(crashes).min().unwrap_or(0);
        let never = self.start == Start::Nobody;
        let hopeless = never && least > 0 && most >= self.config.restart.first_tries.max(1);
        let failed = wanted().all(|slot| slot.state == SlotState::Failed);
        if hopeless || (failed && never) {
            self.end(Outcome::NeverStarted);
        } else if failed {
            self.end(Outcome::AllFailed);
        }
    }

    /// Kills a worker, and replaces it.
    pub(crate) fn condemn(&mut self, worker: WorkerId) {
        if let Some(i) = self.dealer.find(worker) {
            self.enter(i, Input::Condemned);
        }
    }

    pub(crate) fn spawned(&mut self, worker: WorkerId) {
        let known = self.dealer.find(worker).and_then(|i| self.dealer.workers.get(i));
        if let Some((slot, generation)) = known.map(|worker| (worker.slot, worker.generation)) {
            self.report(Report::Forked { worker, slot, generation });
            self.report(Report::Online { worker, slot });
        }
        if self.config.ready == ReadyRule::Start {
            self.said_ready(worker);
        }
    }

    pub(crate) fn spawn_failed(&mut self, worker: WorkerId) {
        let Some(i) = self.dealer.find(worker) else { return };
        let Some(found) = self.dealer.workers.get(i) else { return };
        let (before, slot, generation) = (found.state, found.slot, found.generation);
        match before {
            State::Starting { .. } => {
                self.report(Report::NotForked { worker, slot, generation });
                self.blame(i, Fault::NotStarted);
                self.leave_slot(i, before, Blame::ByAge);
            }
            // It was to be killed before its program ran.
            State::Killing { .. } => self.report(Report::NotForked { worker, slot, generation }),
            // Nobody is said to be ready before it runs; where it was, it is gone all the same.
            State::Ready { .. }
            | State::Parked { .. }
            | State::Finishing { .. }
            | State::Signalled { .. }
            | State::Aborting { .. } => {
                self.report(Report::NotForked { worker, slot, generation });
                self.blame(i, Fault::NotStarted);
                return self.enter(i, Input::Ended);
            }
            State::Dead => return,
        }
        self.dealer.remove(i);
    }

    pub(crate) fn listening(&mut self, worker: WorkerId, listener: ListenerId, listens: bool) {
        let Some(i) = self.dealer.find(worker) else { return };
        self.dealer.floor = None;
        let more = self.dealer.seats.get(i).is_some_and(|seat| !seat.listens.contains(listener));
        if listens && more {
            self.report(Report::Listens { worker, listener });
        }
        if let Some(seat) = self.dealer.seats.get_mut(i) {
            if listens {
                seat.listens.insert(listener);
            } else {
                seat.listens.remove(listener);
            }
        }
        self.debts |= listens && !self.ledger.held.is_empty();
        if !listens && let Some(worker) = self.dealer.workers.get_mut(i) {
            // What was asked there may be answered by whoever gets what waited there.
            worker.check = worker.check.again(self.dealer.now);
        }
    }

    pub(crate) fn said_ready(&mut self, worker: WorkerId) {
        if let Some(worker) = self.dealer.find(worker).and_then(|i| self.dealer.workers.get_mut(i))
        {
            worker.word = Word::Given;
        }
    }

    /// Notes what is wrong with a worker that will be over at once.
    fn blame(&mut self, i: usize, fault: Fault) {
        if let Some(worker) = self.dealer.workers.get_mut(i) {
            worker.fault = fault;
        }
    }

    /// Whether a starting worker listens on all that it must.
    fn listens_enough(&self, i: usize) -> bool {
        let Some(seat) = self.dealer.seats.get(i) else { return false };
        let mut declared = self.listeners.iter().zip(0..).filter_map(|(listener, number)| {
            listener
                .as_ref()
                .filter(|listener| listener.named_by == NamedBy::Operator)
                .map(|_| ListenerId(number))
        });
        !seat.listens.is_empty() && declared.all(|listener| seat.listens.contains(listener))
    }

    /// Whether a worker listens on all that the one listens on that it is to replace.
    fn replaces_all(&self, i: usize) -> bool {
        let needed = self.must_listen(i);
        self.dealer.seats.get(i).is_some_and(|seat| seat.listens.covers(&needed))
    }

    /// A starting worker: ready, or too late?
    pub(crate) fn tend_starting(&mut self, i: usize, deadline: Now, loads: &impl Loads) {
        let now = self.dealer.now;
        let Some(worker) = self.dealer.workers.get(i) else { return };
        let (id, said_ready) = (worker.id, worker.word == Word::Given);
        let listens = self.listens_enough(i);
        let is_ready = said_ready
            || match self.config.ready {
                ReadyRule::Listen => listens,
                ReadyRule::Accept if !self.dealer.policies.by_hand() => listens,
                ReadyRule::Accept => listens && loads.load(id).claimed > 0,
                // It says so, or it runs: both are events.
                ReadyRule::Notify | ReadyRule::Start => false,
            };
        if is_ready && self.replaces_all(i) && self.has_passed(i, loads) {
            return self.enter(i, Input::BecameReady);
        }
        if now >= deadline {
            self.blame(i, Fault::NotReady);
            self.report(Report::NotReadyInTime { worker: id });
            return self.enter(i, Input::Condemned);
        }
        if self.config.ready != ReadyRule::Accept || !listens {
            return;
        }
        self.probe_if_due(i);
    }

    pub(crate) fn probe_if_due(&mut self, i: usize) {
        let Some(worker) = self.dealer.workers.get(i) else { return };
        match worker.probe {
            ReadyProbe::Due { after } if after <= self.dealer.now => self.ask_probe(i),
            ReadyProbe::Due { .. } | ReadyProbe::Asked | ReadyProbe::Queued => {}
        }
    }

    /// Asks for a probe to be queued for a worker.
    pub(crate) fn ask_probe(&mut self, i: usize) {
        let Some((seat, worker)) = self.dealer.both(i) else { return };
        if let Some(listener) = seat.listens.first() {
            worker.probe = ReadyProbe::Asked;
            let worker = seat.id;
            self.actions.push_back(Action::Probe { worker, listener });
        }
    }

    pub(crate) fn probed(&mut self, worker: WorkerId) {
        let now = self.dealer.now;
        let Some(i) = self.dealer.find(worker) else { return };
        let Some(worker) = self.dealer.workers.get_mut(i) else { return };
        worker.count_hand_off(now);
        worker.probe = ReadyProbe::Queued;
        if worker.lateness == Lateness::Emptied {
            worker.lateness = Lateness::Probed;
        }
        self.dealer.resent(i);
        let next_claim = self.dealer.seats.get(i).map_or(1, |seat| seat.claimed + 1);
        self.ring_one(i, next_claim, false);
    }

    pub(crate) fn probe_failed(&mut self, worker: WorkerId) {
        let after = self.dealer.now.after(PROBE_WAIT);
        if let Some(worker) = self.dealer.find(worker).and_then(|i| self.dealer.workers.get_mut(i))
        {
            worker.probe = ReadyProbe::Due { after };
        }
    }

    pub(crate) fn exited(&mut self, worker: WorkerId, status: ExitStatus, orphans: bool) {
        let Some(i) = self.dealer.find(worker) else { return };
        let Some((seat, who)) = self.dealer.both(i) else { return };
        let queued = u32::try_from(seat.queued()).unwrap_or(u32::MAX);
        let before = who.state;
        who.fault = Fault::Ended(status);
        let (slot, told) = (who.slot, core::mem::replace(&mut who.ended, true));
        if !told {
            self.report(Report::Exited { worker, slot, status });
        }
        let code = self.ends_for_good(i, status);
        match before {
            State::Starting { .. } | State::Ready { .. } | State::Parked { .. } => {
                let in_background = status == ExitStatus::Code(0) && orphans;
                if let Some(code) = code.filter(|_| !in_background) {
                    self.slot_done(i, code, queued);
                } else if in_background {
                    // Never a good end, however long it ran: the program does not stay where it can
                    // be looked after.
                    self.leave_slot(i, before, Blame::Surely);
                    self.report(Report::WentToBackground { worker });
                } else {
                    self.report(Report::Died { worker, status, queued });
                }
            }
            State::Finishing { .. } | State::Signalled { .. } => {
                self.report(Report::Drained { worker })
            }
            State::Aborting { .. } => self.report(Report::Died { worker, status, queued }),
            State::Killing { .. } | State::Dead => return,
        }
        if let Some(i) = self.dealer.find(worker) {
            self.enter(i, Input::Ended);
        }
        if code.is_some() {
            self.look_for_the_end();
        }
    }

    pub(crate) fn family_gone(&mut self, worker: WorkerId) {
        if let Some(i) = self.dealer.find(worker) {
            self.enter(i, Input::FamilyGone);
            self.debts = true;
        }
    }

    /// `reuseport`: empties the sockets of slots that are down for long.
    pub(crate) fn adopt_due(&mut self) {
        if self.config.policy != Policy::Reuseport || self.stop.is_under_way() {
            for slot in &mut self.slots {
                slot.sockets = Sockets::Own;
            }
            return;
        }
        let now = self.dealer.now;
        for slot in &mut self.slots {
            if let Sockets::Left { since } = slot.sockets
                && since.after(ADOPT_AFTER) <= now
            {
                slot.sockets = Sockets::Adopted;
                self.actions.push_back(Action::AdoptSockets { slot: slot.id, adopt: true });
            }
        }
    }
}

/// A reload is starting the slot's next worker: that one is waited for.
fn awaits_next(slot: &Slot) -> bool {
    matches!(slot.beside, Beside::Next { .. })
}

/// Whether an end counts as a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    /// If it came before ready, or soon after.
    ByAge,
    /// In any case.
    Surely,
}
