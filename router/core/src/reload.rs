//! Reload: a new generation of workers beside the old, and the old one back if it does not hold.
//!
//! ```text
//!   ReloadAsked       first ready      soaked        all ready        soaked
//!  ────────────▶ Fill{1} ────────▶ Soak ──────▶ Fill{rest} ──────▶ Soak ──────▶ done: the old drain
//!                   │               │               │               │
//!                   └───────────────┴── a new worker fails ─────────┘
//!                                       the old are unparked, the new drain
//! ```
//!
//! The first new worker is the canary. When a new worker is ready it takes over its slot, and the
//! old one is parked: no hand-offs, its queue is taken back, what it serves it goes on serving.
//! Nothing of the old generation ends before all of the new one is ready and has been watched, so
//! a program that does not hold costs nobody a connection. With `rolling` each batch is a small
//! reload of its own: its old workers drain, and have gone, before the next batch starts.
//!
//! What happens in between, decided once:
//!
//! | meanwhile | then |
//! |---|---|
//! | a new worker ends, breaks a rule, or is not ready in time | the reload fails. A time-out is never success |
//! | an old worker that was not replaced yet crashes | it is restarted as ever, under the old number, unless its next one is being started: the slot waits for that one |
//! | a parked worker ends | nothing: its slot is served. If the reload then fails, the slot keeps its new worker, as a restart would run the same files |
//! | a new worker ends after the reload failed | nothing: it was draining |
//! | a slot is in backoff or failed | its turn comes first, as it has nothing to lose; a new worker that gets ready is a fresh record |
//! | all slots fail | the primary ends only when the reload has failed too |
//! | another reload is asked for | it queues; two that queue are one, and that is rolling if either is |
//! | a slot is stopped by hand, a scale takes it away, or its old worker ends for good | both its workers leave; the reload goes on without it |
//! | every slot is stopped by hand | it holds at once: there is nobody to show whether it does. Whoever is started then is of its generation |
//! | a slot is started by hand, or a scale adds it | it starts under the old number, and has its turn |
//! | it brings another number of slots | a reload that fails changes no number. Those that are too many are not replaced, and leave when it has held; those that are missing start then, under the new number |
//! | that number would leave nobody who serves | it is refused, and who was to leave is replaced like the others; the next reload that brings it tries again |
//! | it brings the number that it brought last | what was scaled by hand since then stays |
//! | a scale by hand while it brings another number | the operator's word is the later one |
//! | a stop | it wins: the reload fails, new workers that are not ready are killed, everybody else drains |

use core::time::Duration;

use crate::config::{Config, Limits};
use crate::dealer::{Rules, Total};
use crate::event::{Action, CutReason, Generation, Loads, ReloadFault, Report, WorkerId};
use crate::primary::Core;
use crate::seat::Listens;
use crate::slot::{Beside, SlotInput, SlotState, Sockets};
use crate::time::Now;
use crate::worker::{Input, State, Worker};

/// Reloads: at most one under way, at most one queued.
#[derive(Debug, Clone)]
pub(crate) struct Reload {
    pub(crate) way: Way,
    /// The next one, and whether it drains as it goes.
    next: Option<bool>,
    /// The last number that was given to a generation, whether it held or not.
    last: Generation,
    /// The last generation that held: of the workers that the operator starts by hand.
    pub(crate) held: Generation,
    /// The last reload that was decided, while somebody of it may still be leaving.
    decided: Option<Generation>,
    /// What the next one that begins is to be run with.
    config: Option<Config>,
    /// What was in force before the one that is under way.
    before: Option<Config>,
    /// How many slots there are to be when the one that is under way has held, if it says so.
    slots: Option<u16>,
    /// The number that was refused when it was brought: it is news once more.
    refused: Option<u16>,
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Nothing,
    Fill {
        generation: Generation,
        rolling: bool,
        /// Workers that may still be started in this batch.
        left: u16,
    },
    Soak {
        generation: Generation,
        rolling: bool,
        until: Now,
    },
}

impl Default for Reload {
    fn default() -> Self {
        Self {
            way: Way::Nothing,
            next: None,
            last: Generation(1),
            held: Generation(1),
            decided: None,
            config: None,
            before: None,
            slots: None,
            refused: None,
        }
    }
}

impl Reload {
    /// The generation that is being started.
    pub(crate) fn generation(&self) -> Option<Generation> {
        match self.way {
            Way::Nothing => None,
            Way::Fill { generation, .. } | Way::Soak { generation, .. } => Some(generation),
        }
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.generation().is_some()
    }

    /// Whether this worker was started by the reload that is under way.
    pub(crate) fn started(&self, worker: &Worker) -> bool {
        self.generation() == Some(worker.generation)
    }

    /// The operator has said how many slots there are to be: what a file says comes before that.
    pub(crate) fn forget_slots(&mut self) {
        (self.slots, self.refused) = (None, None);
    }

    /// Whether this slot goes when the reload has held.
    fn takes_away(&self, at: usize) -> bool {
        self.slots.is_some_and(|to| at >= usize::from(to))
    }

    pub(crate) fn deadline(&self) -> Option<Now> {
        match self.way {
            Way::Soak { until, .. } => Some(until),
            Way::Nothing | Way::Fill { .. } => None,
        }
    }
}

impl Core {
    pub(crate) fn reload_asked(&mut self, rolling: bool) {
        if self.stop.is_under_way() {
            return self.report(Report::ReloadRefused);
        }
        if self.reload.is_under_way() {
            // Two that queue are one. Who asks for rolling has no memory for two generations, and has none
            // because somebody else asks without it.
            self.reload.next = Some(rolling || self.reload.next.unwrap_or(false));
            return self.report(Report::ReloadQueued);
        }
        self.begin_to_reload(rolling);
    }

    /// The next reload that begins takes this configuration with it: it is in force from then on for
    /// everybody, and not any more when that reload fails. Another number of slots than the last
    /// configuration had is there when the reload has held. What the workers that there are were made
    /// for stays: policy, the largest window, when they are ready, the key of `ip`; and what the
    /// machine allows.
    pub fn reconfigure_at_reload(&mut self, config: Config) {
        self.reload.config = Some(config);
    }

    fn adopt(&mut self, new: Config) {
        let Config { policy, queue_limit, ready, sticky_key, seed, .. } = self.config;
        let hung_timeout = self.config.limits.hung_timeout;
        let limits = Limits { waiting_max: self.config.limits.waiting_max, ..new.limits };
        self.config = Config { policy, queue_limit, ready, sticky_key, seed, limits, ..new };
        self.dealer.rules = Rules::new(&self.config);
        // Who was full may have room now, and the other way round.
        self.dealer.total = Total::Open;
        self.dealer.new_epoch();
        // Timers that were set for the times of before.
        if self.config.limits.hung_timeout != hung_timeout {
            self.judge_anew();
        }
        self.look_sooner();
        self.take_sooner();
    }

    fn begin_to_reload(&mut self, rolling: bool) {
        if let Some(new) = self.reload.config.take() {
            let news = new.slots != self.config.slots || self.reload.refused == Some(new.slots);
            self.reload.slots = news.then_some(new.slots);
            self.reload.before = Some(self.config);
            self.adopt(new);
        }
        let generation = Generation(self.reload.last.0.saturating_add(1));
        self.reload.last = generation;
        self.drop_recycling();
        self.forget_needs();
        self.reload.way = Way::Fill { generation, rolling, left: 1 };
        self.report(Report::ReloadBegan { generation, rolling });
    }

    /// As many steps further with the reload as can be done now. True: something was done.
    pub(crate) fn go_on_reloading(&mut self, loads: &impl Loads) -> bool {
        let mut moved = false;
        // Each step starts a worker or enters another state, and neither goes on for ever.
        while self.reload_step() {
            moved = true;
        }
        self.limit_draining(loads);
        if let Some(generation) = self.reload.decided
            && self.leaving().next().is_none()
        {
            self.reload.decided = None;
            self.report(Report::ReloadOver { generation });
        }
        moved
    }

    fn reload_step(&mut self) -> bool {
        if self.stop.is_under_way() {
            return false;
        }
        match self.reload.way {
            Way::Nothing => {
                let Some(rolling) = self.reload.next.take() else { return false };
                self.begin_to_reload(rolling);
                true
            }
            Way::Fill { generation, rolling, left } => self.fill(generation, rolling, left),
            Way::Soak { generation, rolling, until } if until <= self.dealer.now => {
                self.soaked(generation, rolling);
                true
            }
            Way::Soak { .. } => false,
        }
    }

    /// Starts the next worker of a batch, or ends the batch.
    fn fill(&mut self, generation: Generation, rolling: bool, left: u16) -> bool {
        let starting =
            self.slots.iter().filter(|slot| matches!(slot.beside, Beside::Next { .. })).count();
        let next = self.next_to_replace(generation).filter(|_| left > 0);
        let Some(at) = next else {
            if starting == 0 {
                self.begin_to_soak(generation, rolling);
            }
            return starting == 0;
        };
        // A host without the memory for two generations: the last batch's old ones go first.
        let memory = !rolling || self.leaving().next().is_none();
        if starting >= usize::from(self.max_surge()) || !memory {
            return false;
        }
        // One of this generation may have been killed a moment ago, because the slot was stopped.
        let vacant = self.slots.get(at).filter(|slot| slot.state.worker().is_none());
        if vacant.is_some_and(|slot| self.family_wait(slot).is_some()) {
            return false;
        }
        self.reload.way = Way::Fill { generation, rolling, left: left - 1 };
        self.start_next(at, generation);
        true
    }

    /// The slot whose turn it is: first those that nobody serves, then by number.
    fn next_to_replace(&self, generation: Generation) -> Option<usize> {
        let waits = |at: &usize| {
            self.slots.get(*at).is_some_and(|slot| {
                slot.beside == Beside::Nobody
                    && slot.state != SlotState::Down
                    && !self.is_of(slot.state.worker(), generation)
                    && !self.reload.takes_away(*at)
            })
        };
        let lost = |at: &usize| {
            self.slots.get(*at).is_some_and(|slot| match slot.state {
                SlotState::Backoff { .. } | SlotState::Failed => true,
                SlotState::Down | SlotState::Starting { .. } | SlotState::Up { .. } => false,
            })
        };
        let mut waiting = (0..self.slots.len()).filter(waits);
        let first = waiting.next()?;
        if lost(&first) { Some(first) } else { waiting.find(lost).or(Some(first)) }
    }

    fn is_of(&self, worker: Option<WorkerId>, generation: Generation) -> bool {
        worker
            .and_then(|worker| self.dealer.find(worker))
            .and_then(|i| self.dealer.workers.get(i))
            .is_some_and(|worker| worker.generation == generation)
    }

    fn start_next(&mut self, at: usize, generation: Generation) {
        let Some(worker) = self.spawn(at, generation) else { return };
        if let Some(slot) = self.slots.get_mut(at) {
            slot.beside = Beside::Next { worker };
        }
    }

    fn begin_to_soak(&mut self, generation: Generation, rolling: bool) {
        let new = |slot: &&crate::slot::Slot| self.is_of(slot.state.worker(), generation);
        let ready = u16::try_from(self.slots.iter().filter(new).count()).unwrap_or(u16::MAX);
        // Where every slot is stopped there is nobody to watch.
        let wait = if ready == 0 { Duration::ZERO } else { self.config.soak };
        self.reload.way = Way::Soak { generation, rolling, until: self.dealer.now.after(wait) };
        if !wait.is_zero() {
            self.report(Report::Soaking { ready, wait });
        }
    }

    /// The new workers that there are have held.
    fn soaked(&mut self, generation: Generation, rolling: bool) {
        let done = self.next_to_replace(generation).is_none();
        if done && let Some(why) = self.reload.slots.and_then(|to| self.scale_fault(to)) {
            self.reload.refused = self.reload.slots.take();
            self.report(Report::ScaleRefused { why });
            self.reload.way = Way::Fill { generation, rolling, left: 1 };
            return;
        }
        if done {
            self.reload.way = Way::Nothing;
            self.reload.decided = Some(generation);
            self.reload.held = generation;
            self.reload.before = None;
            self.report(Report::ReloadDone { generation });
            if let Some(to) = self.reload.slots.take() {
                self.reload.refused = None;
                self.scale_to(to);
            }
        } else {
            let left = if rolling { self.max_surge() } else { u16::MAX };
            self.reload.way = Way::Fill { generation, rolling, left };
        }
        if done || rolling {
            for at in 0..self.slots.len() {
                self.let_go(at);
            }
        }
        if done {
            self.look_for_the_end();
        }
    }

    /// A slot is not wanted any more, and who was `beside` it leaves: the reload goes on without it.
    /// What the slot was to show, another one shows: with no new worker left there is a new canary.
    pub(crate) fn reload_goes_without(&mut self, beside: Beside) {
        let (generation, rolling) = match self.reload.way {
            Way::Nothing => return,
            Way::Fill { generation, rolling, .. } | Way::Soak { generation, rolling, .. } => {
                (generation, rolling)
            }
        };
        let new = |slot: &crate::slot::Slot| {
            matches!(slot.beside, Beside::Next { .. })
                || self.is_of(slot.state.worker(), generation)
        };
        let any = self.slots.iter().any(new);
        let gives_back = u16::from(matches!(beside, Beside::Next { .. }));
        match &mut self.reload.way {
            way if !any => *way = Way::Fill { generation, rolling, left: 1 },
            Way::Fill { left, .. } => *left = left.saturating_add(gives_back),
            Way::Nothing | Way::Soak { .. } => {}
        }
    }

    /// The parked worker of a slot drains: it will not be needed again.
    fn let_go(&mut self, at: usize) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        if let Beside::Last { worker } = slot.beside {
            slot.beside = Beside::Nobody;
            self.drain(worker);
        }
    }

    pub(crate) fn drain(&mut self, worker: WorkerId) {
        let Some(i) = self.dealer.find(worker) else { return };
        let Some(slot) = self.dealer.workers.get(i).map(|worker| worker.slot) else { return };
        if self.dealer.workers.get(i).is_some_and(|worker| worker.state.lives()) {
            self.report(Report::Drains { worker, slot });
        }
        let deadline = self.dealer.now.after(self.config.drain_timeout);
        self.keep_clients(i);
        self.enter(i, Input::Drain { deadline });
        self.debts = true;
    }

    /// What a new worker must listen on: all that the old one of its slot listens on. Where there is
    /// none, any other old one shows it, as all run the same program.
    pub(crate) fn must_listen(&self, i: usize) -> Listens {
        let Some(new) = self.dealer.workers.get(i) else { return Listens::default() };
        if let Some(listens) = self.recycle_must_listen(new.id) {
            return listens;
        }
        if !self.reload.started(new) {
            return Listens::default();
        }
        let serves = |worker: &Worker| match worker.state {
            State::Ready { .. } | State::Parked { .. } => worker.generation != new.generation,
            State::Starting { .. }
            | State::Finishing { .. }
            | State::Signalled { .. }
            | State::Aborting { .. }
            | State::Killing { .. }
            | State::Dead => false,
        };
        let both = self.dealer.seats.iter().zip(&self.dealer.workers);
        let mut old = both.filter(|(_, worker)| serves(worker));
        let any = old.clone().next();
        let own = old.find(|(_, worker)| worker.slot == new.slot);
        own.or(any).map(|(seat, _)| seat.listens).unwrap_or_default()
    }

    /// A worker that the reload started is ready: it takes over its slot. False: the worker is none
    /// of the reload's.
    pub(crate) fn takes_over(&mut self, i: usize) -> bool {
        let Some(new) = self.dealer.workers.get(i) else { return false };
        let (id, at, generation) = (new.id, usize::from(new.slot.0), new.generation);
        let Some(slot) = self.slots.get_mut(at) else { return false };
        if slot.beside != (Beside::Next { worker: id }) {
            return false;
        }
        let last = slot.state.worker();
        slot.beside = Beside::Nobody;
        slot.generation = generation;
        slot.streak.lived();
        slot.take(SlotInput::Replace { worker: id });
        if self.recycled(id, last) {
            return true;
        }
        if let Some(last) = last {
            self.set_aside(at, last, id);
        }
        true
    }

    /// The worker that sat in a slot makes way for `by`.
    fn set_aside(&mut self, at: usize, last: WorkerId, by: WorkerId) {
        let Some(i) = self.dealer.find(last) else { return };
        let Some(worker) = self.dealer.workers.get(i) else { return };
        match worker.state {
            State::Ready { .. } => {
                let Some(slot) = self.slots.get_mut(at) else { return };
                slot.beside = Beside::Last { worker: last };
                let slot = slot.id;
                self.report(Report::Parked { worker: last, by, slot });
                self.enter(i, Input::Park);
                self.debts = true;
            }
            // It is not needed any more, and nothing is in its hands.
            State::Starting { .. } => self.enter(i, Input::Condemned),
            State::Parked { .. }
            | State::Finishing { .. }
            | State::Signalled { .. }
            | State::Aborting { .. }
            | State::Killing { .. }
            | State::Dead => {}
        }
    }

    /// A worker is over. If the reload stands or falls with it, it falls.
    pub(crate) fn reload_loses(&mut self, i: usize, was_ready: bool) {
        let Some(worker) = self.dealer.workers.get(i) else { return };
        let (id, fault, at) = (worker.id, worker.fault, worker.slot);
        let Some(slot) = self.slots.get_mut(usize::from(at.0)) else { return };
        if slot.beside == (Beside::Last { worker: id }) {
            slot.beside = Beside::Nobody;
            return;
        }
        let is_next = slot.beside == (Beside::Next { worker: id });
        if is_next {
            slot.beside = Beside::Nobody;
        }
        let is_new = is_next || slot.state.worker() == Some(id);
        let Some(worker) = self.dealer.workers.get(i) else { return };
        if is_new && self.reload.started(worker) {
            self.fail_reload(ReloadFault::Worker { worker: id, slot: at, was_ready, fault });
        }
    }

    /// The old generation comes back, the new one leaves.
    pub(crate) fn fail_reload(&mut self, why: ReloadFault) {
        let Some(generation) = self.reload.generation() else { return };
        self.reload.way = Way::Nothing;
        self.reload.slots = None;
        self.reload.decided = Some(generation);
        if let Some(before) = self.reload.before.take() {
            self.adopt(before);
            self.measure_anew();
            self.give_time_anew();
        }
        let stops = why == ReloadFault::Stopped;
        if stops {
            self.reload.next = None;
        }
        let kept = self.slots.iter().filter(|slot| match slot.beside {
            Beside::Nobody => self.is_of(slot.state.worker(), generation),
            Beside::Next { .. } | Beside::Last { .. } => false,
        });
        let kept = u16::try_from(kept.count()).unwrap_or(u16::MAX);
        self.report(Report::ReloadFailed { generation, why, kept });
        for at in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(at) else { continue };
            match core::mem::replace(&mut slot.beside, Beside::Nobody) {
                Beside::Nobody => {}
                Beside::Next { worker } => self.condemn(worker),
                // While everything stops both serve until there is nothing more to serve.
                Beside::Last { .. } if stops => {}
                Beside::Last { worker } => self.put_back(at, worker),
            }
        }
        self.debts = true;
        if !stops {
            self.look_for_the_end();
        }
    }

    /// Whoever started while a reload was under way that has failed has the time for it that is in force
    /// again.
    fn give_time_anew(&mut self) {
        let ready_timeout = self.config.ready_timeout;
        for worker in &mut self.dealer.workers {
            if let State::Starting { deadline } = &mut worker.state {
                *deadline = worker.started.after(ready_timeout);
            }
        }
    }

    /// A stop: it wins, and nobody waits for reloads any more.
    pub(crate) fn end_reloads(&mut self) {
        self.fail_reload(ReloadFault::Stopped);
        self.drop_recycling();
        if let Some(generation) = self.reload.decided.take() {
            self.report(Report::ReloadOver { generation });
        }
    }

    /// A parked worker serves its slot again.
    fn put_back(&mut self, at: usize, last: WorkerId) {
        let Some(i) = self.dealer.find(last) else { return };
        let Some(generation) = self.dealer.workers.get(i).map(|worker| worker.generation) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(at) else { return };
        let new = slot.state.worker();
        slot.generation = generation;
        if core::mem::replace(&mut slot.sockets, Sockets::Own) == Sockets::Adopted {
            self.actions.push_back(Action::AdoptSockets { slot: slot.id, adopt: false });
        }
        slot.take(SlotInput::Replace { worker: last });
        let slot = slot.id;
        self.report(Report::Unparked { worker: last, slot });
        self.enter(i, Input::Unpark);
        if let Some(new) = new {
            self.drain(new);
        }
    }

    /// Workers that are on their way out.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = &Worker> {
        self.dealer.workers.iter().filter(|worker| match worker.state {
            State::Finishing { .. }
            | State::Signalled { .. }
            | State::Aborting { .. }
            | State::Killing { .. } => true,
            State::Starting { .. } | State::Ready { .. } | State::Parked { .. } | State::Dead => {
                false
            }
        })
    }

    /// `--max-draining`: beyond it, the oldest is told to end.
    fn limit_draining(&mut self, loads: &impl Loads) {
        if self.stop.is_under_way() {
            return;
        }
        let finishing = |worker: &&Worker| matches!(worker.state, State::Finishing { .. });
        let count = self.dealer.workers.iter().filter(finishing).count();
        for _ in usize::from(self.max_draining())..count {
            // By id, so the first is the oldest.
            let oldest =
                self.dealer.workers.iter().position(|w| matches!(w.state, State::Finishing { .. }));
            if let Some(i) = oldest {
                self.cut(i, CutReason::Crowd, loads);
            }
        }
    }
}
