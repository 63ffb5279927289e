//! The core: one entry for facts, one exit for requests.
//!
//! Owns everything that is known. The parts: [`Dealer`] (who has what, who is next), [`Ledger`]
//! (connections in hand), slots (who shall be there), and beside this file `life` (workers come and
//! go), `wants` (slots by hand), `scale`, `pause`, `reload`, `recycle`, `salvage` (queues of the dead and the leaving),
//! `late` (steal, probe), `audit`, `hung`, `admission`, `stop`.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use crate::admission::{Admission, Verdict};
use crate::config::{Config, Policy};
use crate::dealer::{Dealer, Note, Rules};
use crate::event::{
    Action, Arrival, ConnId, Event, ListenerId, Loads, Report, SendFailure, SlotId, WorkerId,
};
use crate::ledger::{Flight, HELD_MAX, Ledger};
use crate::pause::Rest;
use crate::policies::Policies;
use crate::recycle::Recycle;
use crate::reload::Reload;
use crate::restart::Dice;
use crate::scheduler::{Ask, Origin};
use crate::seat::{LISTENERS_MAX, Listens};
#[cfg(debug_assertions)]
use crate::seat::{Seat, Standing};
#[cfg(debug_assertions)]
use crate::slot::{Beside, SlotState, Want};
use crate::slot::{Slot, SlotInput};
use crate::sticky::Sticky;
use crate::stop::{Closing, Stop};
use crate::time::Now;
#[cfg(debug_assertions)]
use crate::worker::{State, Worker};

/// A worker for which the kernel would not queue more is left alone for so long.
const PAUSE: Duration = Duration::from_millis(20);

/// A listener that the primary has.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    pub(crate) named_by: NamedBy,
    /// Who had its last connection.
    pub(crate) last: WorkerId,
    /// Clients may wait in its backlog because nobody had room.
    pub(crate) waiting: bool,
    pub(crate) closing: Closing,
}

/// Who wants a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// `-l`: a worker must listen on it to be ready.
    Operator,
    /// A program.
    Worker,
}

/// Who has been ready since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Start {
    Nobody,
    /// Some worker has been ready.
    Somebody,
    /// Every slot has been up at the same time.
    Everybody,
}

/// Doorbells, and whether the loads were looked at since they were set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bells {
    LookedAfter,
    Written,
}

/// What [`Core::wants_accept`] chose.
#[derive(Debug, Clone, Copy)]
struct Pick {
    listener: ListenerId,
    worker: WorkerId,
    seat: usize,
}

/// See the crate.
#[derive(Debug, Clone)]
pub struct Core {
    pub(crate) config: Config,
    pub(crate) dealer: Dealer,
    pub(crate) ledger: Ledger,
    pub(crate) slots: Vec<Slot>,
    /// By [`ListenerId`].
    pub(crate) listeners: Vec<Option<Listener>>,
    pub(crate) actions: VecDeque<Action>,
    pub(crate) dice: Dice,
    pub(crate) stop: Stop,
    pub(crate) reload: Reload,
    pub(crate) recycle: Recycle,
    pub(crate) admission: Admission,
    pub(crate) started: Now,
    pub(crate) next_worker: u32,
    pub(crate) start: Start,
    /// Workers that are ready.
    pub(crate) ready: u32,
    /// When something queued may have become late.
    pub(crate) late_at: Option<Now>,
    /// When everybody's progress is to be looked at, as something is queued.
    pub(crate) hung_at: Option<Now>,
    /// Who is first asked about at the next look for late workers, by seat.
    pub(crate) suspects_from: usize,
    /// When to look again at what no event announces for certain.
    pub(crate) recheck: Recheck,
    /// The earliest of the deadlines that are neither `late_at` nor `hung_at`.
    pub(crate) deadline: Option<Now>,
    pick: Option<Pick>,
    pub(crate) bells: Bells,
    /// A bell was set for one worker: what it announces may have happened just before, so everything
    /// is to be looked at once more.
    look_again: Option<Now>,
    /// Queues of the dead, or connections in hand, wait for room.
    pub(crate) debts: bool,
    /// `ip`: leaving workers that go on getting the clients they have there, by id.
    pub(crate) keepers: Vec<WorkerId>,
}

/// A timer for what a doorbell announces, should the doorbell be lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recheck {
    pub(crate) at: Option<Now>,
    wait: Duration,
}

impl Recheck {
    const FIRST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_millis(320);

    /// Keeps the timer while `needed`; each time it has run out it waits twice as long.
    pub(crate) fn keep(&mut self, needed: bool, now: Now) {
        match self.at {
            _ if !needed => *self = Self::default(),
            Some(at) if now < at => {}
            Some(_) => {
                self.wait = (self.wait * 2).min(Self::LONGEST);
                self.at = Some(now.after(self.wait));
            }
            None => self.at = Some(now.after(self.wait)),
        }
    }
}

impl Default for Recheck {
    fn default() -> Self {
        Self { at: None, wait: Self::FIRST }
    }
}

impl Core {
    /// A core that wants every slot up; the first actions start the workers.
    #[must_use]
    pub fn new(config: Config, now: Now) -> Self {
        let mut core = Self {
            dealer: Dealer::new(Rules::new(&config), Policies::new(config.policy), now),
            ledger: Ledger::default(),
            slots: (0..config.slots.max(1)).map(|slot| Slot::new(SlotId(slot))).collect(),
            listeners: Vec::new(),
            actions: VecDeque::with_capacity(16),
            dice: Dice::new(config.seed),
            stop: Stop::No,
            reload: Reload::default(),
            recycle: Recycle::default(),
            admission: Admission::default(),
            started: now,
            next_worker: 1,
            start: Start::Nobody,
            ready: 0,
            late_at: None,
            hung_at: None,
            suspects_from: 0,
            recheck: Recheck::default(),
            deadline: None,
            pick: None,
            bells: Bells::LookedAfter,
            look_again: None,
            debts: false,
            keepers: Vec::new(),
            config,
        };
        for slot in &mut core.slots {
            slot.take(SlotInput::Raise { at: now });
        }
        core.start_due();
        core.find_deadline();
        core
    }

    /// Something happened. Actions follow: drain [`Self::poll_action`].
    pub fn handle(&mut self, event: Event, now: Now, loads: &impl Loads) {
        self.dealer.now = now;
        match event {
            Event::Accepted(arrival) => self.accepted(arrival, loads),
            Event::HandedOff { conn, worker } => self.handed_off(conn, worker),
            Event::Woke => self.woke(loads),
            Event::BacklogEmpty { listener } => self.backlog_empty(listener, loads),
            Event::HandOffFailed { .. }
            | Event::Refused { .. }
            | Event::ListenerOpened { .. }
            | Event::ListenerClosed { .. }
            | Event::Spawned { .. }
            | Event::SpawnFailed { .. }
            | Event::Listening { .. }
            | Event::Unlistened { .. }
            | Event::SaidReady { .. }
            | Event::Probed { .. }
            | Event::ProbeFailed { .. }
            | Event::CheckSent { .. }
            | Event::Checked { .. }
            | Event::TakenBack { .. }
            | Event::TakeBackDone { .. }
            | Event::TakeBackStuck { .. }
            | Event::Exited { .. }
            | Event::FamilyGone { .. }
            | Event::Misbehaved { .. }
            | Event::StartAsked { .. }
            | Event::StopSlotAsked { .. }
            | Event::ScaleAsked(_)
            | Event::PauseAsked { .. }
            | Event::ResumeAsked { .. }
            | Event::RestartAsked { .. }
            | Event::Outgrew { .. }
            | Event::ReloadAsked { .. }
            | Event::StopAsked { .. } => {
                self.rare(event);
                self.reconcile(loads);
            }
        }
        if !self.dealer.notes.is_empty() {
            self.take_notes(loads);
        }
        if self.deadline.is_some_and(|at| at <= now) {
            self.reconcile(loads);
        }
        #[cfg(debug_assertions)]
        self.check();
    }

    /// The next thing to do. Drain to `None`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Sleep until then at the latest; `None`: for ever, if nothing happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Now> {
        [self.deadline, self.late_at, self.hung_at].into_iter().flatten().min()
    }

    /// Whether a listener is to give way after each connection. Where a client's address decides, one
    /// worker's room lets in clients of all the others; those who wait for that room come in between.
    #[must_use]
    pub fn gives_way(&self, listener: ListenerId) -> bool {
        let policies = &self.dealer.policies;
        let by_load = |at| policies.of(at).by_load();
        let mut all = (0..).map(ListenerId).zip(&self.listeners);
        policies.mixed()
            && !by_load(listener)
            && all.any(|(at, known)| by_load(at) && known.as_ref().is_some_and(|l| l.waiting))
    }

    /// Whether one connection may be taken out of this listener's backlog now. Yes: the choice is
    /// made, and the next [`Event::Accepted`] of this listener uses it. No: doorbells may have been
    /// set; drain the actions and ask once more before the listener is disarmed.
    pub fn wants_accept(&mut self, listener: ListenerId, now: Now, loads: &impl Loads) -> bool {
        self.dealer.now = now;
        self.pick = None;
        self.admission.verdict = Verdict::Deal;
        let Some(ask) = self.ask(listener, Origin::Backlog) else { return false };
        if !self.accepts(ask.policy) {
            return false;
        }
        let again = core::mem::replace(&mut self.bells, Bells::LookedAfter) == Bells::Written;
        if again {
            self.dealer.forget_loads_behind_new_bells();
            self.looked_again();
        }
        let owed = self.debts;
        if self.debts && !self.spare_room(ask, loads) || !self.total_has_room(ask, loads) {
            if again {
                self.look_once_more();
            }
            return self.admits_beyond(listener);
        }
        let found = if again && self.is_waiting(listener) && !self.dealer.rang_meanwhile(ask, loads)
        {
            None
        } else if ask.policy == Policy::Ip {
            self.dealer.anybody(ask, loads).then_some(None)
        } else {
            self.dealer.choose(ask, loads).map(Some)
        };
        if !self.dealer.notes.is_empty() && self.take_notes(loads) {
            // Somebody was condemned for what was just read; it may be the very choice.
            return self.wants_accept(listener, now, loads);
        }
        let Some(seat) = found else {
            self.nobody_has_room(ask);
            if again && (owed || self.dealer.policies.differ()) {
                self.look_once_more();
            }
            return self.admits_beyond(listener);
        };
        self.pick = seat.and_then(|seat| {
            let worker = self.dealer.seats.get(seat)?.id;
            Some(Pick { listener, worker, seat })
        });
        if let Some(listener) = self.listener_mut(listener) {
            listener.waiting = false;
        }
        true
    }

    /// The second look found nobody. Where it made new bells necessary (what was just dealt out of hand
    /// did, or that another listener deals to whom this one passes over), nobody asks a third time.
    fn look_once_more(&mut self) {
        if self.bells == Bells::Written {
            self.look_again = Some(self.dealer.now.after(Duration::from_nanos(1)));
            self.find_deadline();
        }
    }

    pub(crate) fn listener_mut(&mut self, listener: ListenerId) -> Option<&mut Listener> {
        self.listeners.get_mut(usize::from(listener.0))?.as_mut()
    }

    pub(crate) fn listener(&self, listener: ListenerId) -> Option<&Listener> {
        self.listeners.get(usize::from(listener.0))?.as_ref()
    }

    fn is_waiting(&self, listener: ListenerId) -> bool {
        self.listener(listener).is_some_and(|listener| listener.waiting)
    }

    /// The question who may have a connection of a listener; `None` for a listener that is gone.
    fn ask(&self, listener: ListenerId, origin: Origin) -> Option<Ask> {
        self.listener(listener)?;
        Some(Ask { origin, ..self.ask_held(listener) })
    }

    /// The same for a connection in hand, whose listener may be closed by now.
    pub(crate) fn ask_held(&self, listener: ListenerId) -> Ask {
        let last = self.listener(listener).map_or(WorkerId(0), |listener| listener.last);
        let policies = &self.dealer.policies;
        let (policy, narrow) = (policies.of(listener), policies.by_load());
        Ask { listener, policy, last, origin: Origin::Held, narrow }
    }

    /// Under `ip` nobody is accepted before everybody is there: a client that came to the wrong
    /// slot would have to leave it again. Listeners that deal otherwise do not wait for that.
    fn accepts(&self, policy: Policy) -> bool {
        if !self.stop.deals() || self.dealer.rest == Rest::ByHand {
            return false;
        }
        policy != Policy::Ip || self.gate_opens().is_none_or(|at| at <= self.dealer.now)
    }

    /// When clients that stick are accepted at the latest, while they are not.
    pub(crate) fn gate_opens(&self) -> Option<Now> {
        let shut = self.dealer.policies.sticks() && self.start != Start::Everybody;
        shut.then(|| self.started.after(self.config.ready_timeout))
    }

    /// Places what the primary holds, then says whether there is room beyond that and beyond what
    /// take-backs will bring: who waits already goes first.
    fn spare_room(&mut self, ask: Ask, loads: &impl Loads) -> bool {
        self.settle_debts(loads);
        let waiting = self.admission.count_on(ask.listener);
        let owed = self.ledger.held_on(ask.listener)
            + u64::try_from(waiting).unwrap_or(u64::MAX)
            + u64::from(self.ledger.expected);
        if owed == 0 {
            return true;
        }
        let room = self.dealer.room(ask, loads);
        if room == 0 {
            self.nobody_has_room(ask);
        }
        room > owed
    }

    pub(crate) fn nobody_has_room(&mut self, ask: Ask) {
        if ask.origin == Origin::Backlog {
            self.begins_to_wait(ask.listener);
        }
        if self.dealer.set_bells(ask, &mut self.actions) {
            self.bells = Bells::Written;
        }
    }

    pub(crate) fn begins_to_wait(&mut self, listener: ListenerId) {
        let mut begins = false;
        if let Some(listener) = self.listener_mut(listener) {
            begins = !core::mem::replace(&mut listener.waiting, true);
        }
        self.ledger.totals.waits += u64::from(begins);
    }

    fn accepted(&mut self, arrival: Arrival, loads: &impl Loads) {
        self.ledger.totals.accepted += 1;
        let verdict = core::mem::take(&mut self.admission.verdict);
        if verdict != Verdict::Deal && self.accepted_beyond(arrival, verdict) {
            return;
        }
        self.dealer.pace.dealt();
        if !self.stop.deals() {
            return self.refuse(arrival);
        }
        let picked = self.pick.take().filter(|pick| pick.listener == arrival.listener);
        let seat = match picked {
            Some(Pick { worker, seat, .. }) => {
                let same = self.dealer.seats.get(seat).is_some_and(|seat| seat.id == worker);
                same.then_some(seat).or_else(|| self.seat_for(arrival, Origin::Backlog, loads))
            }
            None => self.seat_for(arrival, Origin::Backlog, loads),
        };
        match seat {
            Some(seat) => self.send(seat, arrival),
            None => self.hold(arrival),
        }
    }

    /// Who gets a connection whose client is known.
    pub(crate) fn seat_for(
        &mut self,
        arrival: Arrival,
        origin: Origin,
        loads: &impl Loads,
    ) -> Option<usize> {
        let ask = Ask { origin, ..self.ask_held(arrival.listener) }.for_one();
        if ask.policy == Policy::Ip
            && let Some(client) = Sticky::of(arrival.client, self.config.sticky_key)
        {
            let kept = self.kept(ask, client, loads);
            if let Some(seat) = kept.or_else(|| self.dealer.sticky(ask, client, loads)) {
                return Some(seat);
            }
        }
        self.dealer.choose(ask, loads)
    }

    /// Puts a connection on its way to a worker.
    pub(crate) fn send(&mut self, seat: usize, arrival: Arrival) {
        let Some(worker) = self.dealer.seats.get(seat).map(|seat| seat.id) else {
            return self.hold(arrival);
        };
        self.dealer.dealt(seat, arrival.listener);
        if let Some(listener) = self.listener_mut(arrival.listener) {
            listener.last = worker;
        }
        self.ledger.in_flight.push_back(Flight { arrival, worker });
        self.actions.push_back(Action::HandOff { conn: arrival.conn, worker });
    }

    /// Keeps a connection until somebody has room.
    fn hold(&mut self, arrival: Arrival) {
        if self.ledger.held.len() >= HELD_MAX {
            return self.refuse(arrival);
        }
        self.ledger.held.push_back(arrival);
        self.debts = true;
        self.find_deadline();
    }

    pub(crate) fn refuse(&mut self, arrival: Arrival) {
        self.ledger.refusing.push(arrival.conn);
        self.actions.push_back(Action::Refuse { conn: arrival.conn });
    }

    fn handed_off(&mut self, conn: ConnId, worker: WorkerId) {
        if self.ledger.land(conn, worker).is_none() {
            return;
        }
        self.ledger.totals.handed_off += 1;
        let now = self.dealer.now;
        let Some(i) = self.dealer.find(worker) else { return };
        if let Some(worker) = self.dealer.workers.get_mut(i) {
            // From "on the way" to "queued": what was sent stays the same.
            worker.in_flight = worker.in_flight.saturating_sub(1);
            worker.count_hand_off(now);
            if worker.is_spent() {
                self.spent(i);
            }
        }
        self.expect_lateness();
        self.expect_hung();
    }

    /// A turn of the loop begins.
    fn woke(&mut self, loads: &impl Loads) {
        self.dealer.new_turn();
        if self.dealer.doubtful > 0 {
            self.look_at_doubtful(loads);
        }
        if self.late_at.is_some_and(|at| at <= self.dealer.now) {
            self.look_for_late(loads);
        }
        if self.hung_at.is_some_and(|at| at <= self.dealer.now) {
            self.look_for_hung(loads);
        }
        if self.look_again.take().is_some() || self.debts {
            self.reconcile(loads);
        }
    }

    /// Sets one worker's bell for a reason of its own.
    pub(crate) fn ring_one(&mut self, i: usize, at_claim: u64, on_close: bool) {
        if self.dealer.ring_one(i, at_claim, on_close, &mut self.actions) {
            self.look_again = Some(self.dealer.now.after(Duration::from_nanos(1)));
        }
    }

    fn backlog_empty(&mut self, listener: ListenerId, loads: &impl Loads) {
        self.dealer.pace.empty();
        if let Some(listener) = self.listener_mut(listener) {
            listener.waiting = false;
        }
        self.took_all(listener);
        if self.stop != Stop::No {
            self.backlog_ended(listener);
            self.reconcile(loads);
        }
        let wait_still =
            self.debts || self.listeners.iter().flatten().any(|listener| listener.waiting);
        if !wait_still {
            self.dealer.clear_bells(&mut self.actions);
            self.bells = Bells::LookedAfter;
        } else if self.dealer.policies.differ() && self.some_rang() {
            // Whose clients are all dealt now had set a bell that has rung; those who wait still want theirs.
            self.look_again = Some(self.dealer.now.after(Duration::from_nanos(1)));
            self.find_deadline();
        }
    }

    /// Whether a bell that is spent is one that somebody still waits for.
    fn some_rang(&self) -> bool {
        let mut waits = Listens::default();
        for (id, listener) in (0..).map(ListenerId).zip(&self.listeners) {
            if listener.as_ref().is_some_and(|listener| listener.waiting) {
                waits.insert(id);
            }
        }
        // What waits in hand may be of any.
        self.dealer.some_rang(|listens| self.debts || listens.meets(&waits))
    }

    /// Everything that does not happen for every connection.
    fn rare(&mut self, event: Event) {
        match event {
            Event::HandOffFailed { conn, worker, why } => self.hand_off_failed(conn, worker, why),
            Event::Refused { conn } => self.refused(conn),
            Event::ListenerOpened { listener, declared, policy } => {
                self.listener_opened(listener, declared, policy);
            }
            Event::ListenerClosed { listener } => {
                if let Some(place) = self.listeners.get_mut(usize::from(listener.0)) {
                    *place = None;
                }
            }
            Event::Spawned { worker } => self.spawned(worker),
            Event::SpawnFailed { worker } => self.spawn_failed(worker),
            Event::Listening { worker, listener } => self.listening(worker, listener, true),
            Event::Unlistened { worker, listener } => self.listening(worker, listener, false),
            Event::SaidReady { worker } => self.said_ready(worker),
            Event::Probed { worker } => self.probed(worker),
            Event::ProbeFailed { worker } => self.probe_failed(worker),
            Event::CheckSent { worker } => self.check_sent(worker),
            Event::Checked { worker, passed } => self.checked(worker, passed),
            Event::TakenBack { worker, arrival } => self.taken_back(worker, arrival),
            Event::TakeBackDone { worker, removed: _, lost, empty } => {
                self.take_back_done(worker, lost, empty);
            }
            Event::TakeBackStuck { worker } => self.take_back_stuck(worker),
            Event::Exited { worker, status, orphans } => self.exited(worker, status, orphans),
            Event::FamilyGone { worker } => self.family_gone(worker),
            Event::Misbehaved { worker } => self.condemn(worker),
            Event::StartAsked { slot } => self.start_asked(slot),
            Event::StopSlotAsked { slot } => self.stop_slot_asked(slot),
            Event::ScaleAsked(scale) => self.scale_asked(scale),
            Event::PauseAsked { slot } => self.pause_asked(slot),
            Event::ResumeAsked { slot } => self.resume_asked(slot),
            Event::RestartAsked { slot } => self.restart_asked(slot),
            Event::Outgrew { worker, bytes } => self.outgrew(worker, bytes),
            Event::ReloadAsked { rolling } => self.reload_asked(rolling),
            Event::StopAsked { now } => self.stop_asked(now),
            Event::Accepted(_)
            | Event::HandedOff { .. }
            | Event::Woke
            | Event::BacklogEmpty { .. } => {}
        }
    }

    fn hand_off_failed(&mut self, conn: ConnId, worker: WorkerId, why: SendFailure) {
        let Some(arrival) = self.ledger.land(conn, worker) else { return };
        // First again: it has waited for longest.
        self.ledger.held.push_front(arrival);
        self.debts = true;
        let until = self.dealer.now.after(PAUSE);
        let by_hand = self.dealer.policies.by_hand();
        let Some(i) = self.dealer.find(worker) else { return };
        self.dealer.undealt(i);
        let Some((seat, who)) = self.dealer.both(i) else { return };
        // A worker that has just closed this listener did nothing wrong, and one that accepts by
        // itself has no channel to break.
        let listens = seat.listens.contains(arrival.listener);
        match why {
            SendFailure::Broken if listens && by_hand => self.condemn(worker),
            SendFailure::Broken | SendFailure::Full => {
                who.paused = Some(until);
                self.dealer.restand(i);
            }
        }
    }

    fn refused(&mut self, conn: ConnId) {
        if self.admission.is_shed(conn) {
            self.ledger.totals.shed += 1;
            return;
        }
        if let Some(at) = self.ledger.refusing.iter().position(|known| *known == conn) {
            self.ledger.refusing.swap_remove(at);
        } else if let Some(at) = self.ledger.held.iter().position(|held| held.conn == conn) {
            self.ledger.held.remove(at);
        } else if let Some(at) = self.ledger.in_flight.iter().position(|f| f.arrival.conn == conn) {
            let flight = self.ledger.in_flight.remove(at);
            if let Some(i) = flight.and_then(|flight| self.dealer.find(flight.worker)) {
                self.dealer.undealt(i);
            }
        } else if !self.admission.lost(conn) {
            return;
        }
        self.ledger.totals.refused += 1;
    }

    fn listener_opened(&mut self, listener: ListenerId, declared: bool, policy: Policy) {
        if listener.0 >= LISTENERS_MAX {
            return self.actions.push_back(Action::CloseListener { listener });
        }
        let place = usize::from(listener.0);
        if self.listeners.len() <= place {
            self.listeners.resize_with(place + 1, || None);
        }
        let named_by = if declared { NamedBy::Operator } else { NamedBy::Worker };
        let Some(entry) = self.listeners.get_mut(place) else { return };
        if let Some(known) = entry {
            known.named_by = named_by;
            return;
        }
        *entry =
            Some(Listener { named_by, last: WorkerId(0), waiting: false, closing: Closing::Open });
        self.dealer.set_policy(listener, policy);
        // The number is used again: nobody listens on this one yet.
        for seat in &mut self.dealer.seats {
            seat.listens.remove(listener);
        }
    }

    /// Acts on what dealing noticed. True: somebody was condemned.
    fn take_notes(&mut self, loads: &impl Loads) -> bool {
        let mut unfit = false;
        for note in core::mem::take(&mut self.dealer.notes) {
            match note {
                Note::Recovered(worker) => self.report(Report::Recovered { worker }),
                Note::Unfit(worker) => {
                    self.report(Report::NumbersDoNotFit { worker });
                    self.condemn(worker);
                    unfit = true;
                }
            }
        }
        if unfit {
            self.reconcile(loads);
        }
        unfit
    }

    pub(crate) fn report(&mut self, report: Report) {
        self.actions.push_back(Action::Report(report));
    }

    /// Looks at everything that may be due: workers, the stop, slots, connections in hand.
    pub(crate) fn reconcile(&mut self, loads: &impl Loads) {
        self.unpause();
        self.find_keepers();
        self.tend_workers(loads);
        if self.go_on_reloading(loads) {
            // Who was parked, or drains, gives back what waits for it at once.
            self.tend_workers(loads);
        }
        self.go_on_admitting();
        self.settle_debts(loads);
        self.go_on_recycling();
        self.go_on_stopping();
        self.start_due();
        self.adopt_due();
        let needed = self.needs_recheck();
        self.recheck.keep(needed, self.dealer.now);
        self.find_deadline();
    }

    fn unpause(&mut self) {
        let now = self.dealer.now;
        for i in 0..self.dealer.workers.len() {
            let Some(worker) = self.dealer.workers.get_mut(i) else { continue };
            if worker.paused.is_some_and(|until| until <= now) {
                worker.paused = None;
                self.dealer.restand(i);
            }
        }
    }

    /// The earliest deadline of all that has one, apart from lateness.
    pub(crate) fn find_deadline(&mut self) {
        let workers = self.dealer.workers.iter().flat_map(|worker| self.deadlines_of(worker));
        let slots = self.slots.iter().filter_map(|slot| self.deadline_of_slot(slot));
        let listeners =
            self.listeners.iter().flatten().filter_map(|listener| listener.closing.deadline());
        let gate = self.gate_opens().filter(|at| *at > self.dealer.now);
        let reload = self.reload.deadline();
        let admission = if self.is_paused() {
            self.admission.deadline_in_a_pause()
        } else {
            self.admission.deadline(self.config.limits.max_queue_wait, self.dealer.now)
        };
        let others = [
            self.recheck.at,
            self.look_again,
            self.stop.deadline(),
            gate,
            reload,
            self.recycle_deadline(),
            admission,
        ];
        self.deadline =
            workers.chain(slots).chain(listeners).chain(others.into_iter().flatten()).min();
    }

    /// Relations between the parts that hold after every event.
    #[cfg(debug_assertions)]
    fn check(&self) {
        let admission = self.admission.count() + self.admission.leaving();
        debug_assert!(
            self.ledger.balances(admission),
            "a connection is lost or doubled: {:?}",
            self.ledger
        );
        debug_assert_eq!(self.dealer.seats.len(), self.dealer.workers.len());
        for (seat, worker) in self.dealer.seats.iter().zip(&self.dealer.workers) {
            self.check_worker(seat, worker);
            let parked = matches!(worker.state, State::Parked { .. });
            debug_assert!(!parked || self.reload.is_under_way() || self.stop.is_under_way());
        }
        let mut sitting = self.slots.iter().flat_map(|slot| {
            let beside = match slot.beside {
                Beside::Nobody => None,
                Beside::Next { worker } | Beside::Last { worker } => Some(worker),
            };
            debug_assert!(
                beside.is_none() || self.reload.is_under_way() || self.recycle.is_starting(),
                "{slot:?} without a reload"
            );
            let down = slot.want != Want::Up;
            debug_assert!(!down || slot.state == SlotState::Down, "{slot:?} is not wanted");
            debug_assert!(!down || slot.beside == Beside::Nobody, "{slot:?} is not wanted");
            slot.state.worker().into_iter().chain(beside)
        });
        while let Some(worker) = sitting.next() {
            debug_assert!(self.dealer.find(worker).is_some(), "{worker:?} is gone");
            debug_assert!(sitting.clone().all(|other| other != worker), "{worker:?} has two slots");
        }
    }

    #[cfg(debug_assertions)]
    fn check_worker(&self, seat: &Seat, worker: &Worker) {
        debug_assert_eq!(seat.id, worker.id, "seats and workers are in one order");
        debug_assert_eq!(seat.sent, worker.sent(), "{worker:?}");
        debug_assert!(seat.claimed <= seat.sent, "{seat:?}");
        let flights = self.ledger.in_flight.iter().filter(|flight| flight.worker == worker.id);
        debug_assert_eq!(usize::try_from(worker.in_flight), Ok(flights.count()), "{worker:?}");
        let ready = matches!(worker.state, State::Ready { .. });
        let deals = !matches!(seat.standing, Standing::Away | Standing::Finishing);
        debug_assert_eq!(ready, deals, "{seat:?} of {worker:?}");
    }
}
