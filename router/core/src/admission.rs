//! Admission: how many connections there may be at all, and who is turned away when clients wait for
//! too long.
//!
//! **`--max-total`** counts what was handed off and is not closed, and what the primary holds. At the
//! limit nobody has room: clients wait in the backlog, listeners are disarmed, and every worker that
//! serves something is asked to ring at its next close.
//!
//! **`--max-queue-wait T`** needs to know how long clients have waited, and whom to turn away. The
//! backlog tells neither: the kernel keeps no times there, and accept(2) gives the oldest first, while
//! the one to refuse is the newest. So the primary takes waiting clients into its own hands:
//!
//! ```text
//!   nobody has room        every T/4                        oldest has waited for T
//!   ────────────────▶ backlog ───────▶ in hand (in order) ─────────────────────────▶ who comes now
//!                        │               │ at most WAITING             until it has been dealt:
//!                        ▼               ▼                                           is reset
//!                     room: in hand first, then the backlog
//! ```
//!
//! A client's wait counts from when it is taken, so it is told up to a quarter of T too short. Who is in
//! hand when the oldest has waited for T is served in turn, however long that takes: at twice the load
//! that can be served, the last of them waits for twice T. When as many are in hand as may be, the rest
//! stays in the backlog and is not measured.
//!
//! Promises: clients of one listener are dealt in the order in which they came; whoever is reset came
//! when another had waited for T, and no connection that was taken is reset later, unless nobody will
//! ever serve it. A stop sheds nobody, nor does a pause, which does not count as waiting. Without the flags none of this costs more than a comparison.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use crate::bells::{closed, write};
use crate::config::Policy;
use crate::dealer::{Dealer, Total};
use crate::event::{Action, Arrival, ConnId, ListenerId, Loads, Report};
use crate::primary::{Bells, Core};
use crate::scheduler::{Ask, Origin};
use crate::seat::{Listens, Standing};
use crate::time::Now;
use crate::worker::{Bell, State};

/// A time without a reset that ends an episode: each is one line of log.
const QUIET: Duration = Duration::from_secs(10);

/// What becomes of the next connection that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Verdict {
    #[default]
    Deal,
    /// Nobody has room; it waits in hand.
    Keep(ListenerId),
    /// Others have waited for too long: it is reset.
    Shed(ListenerId),
}

/// The clients of one listener that wait in hand, oldest first, and since when.
#[derive(Debug, Clone)]
struct Line {
    listener: ListenerId,
    waiting: VecDeque<(Arrival, Now)>,
}

/// Clients are being reset.
#[derive(Debug, Clone, Copy)]
struct Episode {
    shed: u64,
    /// It ends then, if nobody else is.
    ends: Now,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission {
    pub(crate) verdict: Verdict,
    lines: Vec<Line>,
    /// All that is in `lines`.
    count: usize,
    /// Shed, and the shell has not said so yet.
    shedding: Vec<ConnId>,
    /// Listeners whose backlog is taken in hand now.
    taking: Listens,
    /// When that is done next.
    take_at: Option<Now>,
    /// A bell was set for those that wait in hand, and what it announces may have happened just
    /// before.
    look_at: Option<Now>,
    episode: Option<Episode>,
}

impl Admission {
    /// Clients that wait in hand.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Connections that will be gone when the shell says so.
    #[cfg(debug_assertions)]
    pub(crate) fn leaving(&self) -> usize {
        self.shedding.len()
    }

    pub(crate) fn count_on(&self, listener: ListenerId) -> usize {
        self.line(listener).map_or(0, |line| line.waiting.len())
    }

    fn line(&self, listener: ListenerId) -> Option<&Line> {
        self.lines.iter().find(|line| line.listener == listener)
    }

    /// Since when the oldest client of a listener waits in hand.
    fn oldest(&self, listener: ListenerId) -> Option<Now> {
        self.line(listener)?.waiting.front().map(|(_, since)| *since)
    }

    fn push(&mut self, arrival: Arrival, now: Now) {
        self.count += 1;
        let known = self.lines.iter_mut().find(|line| line.listener == arrival.listener);
        if let Some(line) = known {
            return line.waiting.push_back((arrival, now));
        }
        let waiting = VecDeque::from([(arrival, now)]);
        self.lines.push(Line { listener: arrival.listener, waiting });
    }

    fn pop(&mut self, at: usize) {
        let popped = self.lines.get_mut(at).and_then(|line| line.waiting.pop_front());
        self.count -= usize::from(popped.is_some());
    }

    /// The shell closed this one, as it was told to.
    pub(crate) fn is_shed(&mut self, conn: ConnId) -> bool {
        let at = self.shedding.iter().position(|known| *known == conn);
        at.map(|at| self.shedding.swap_remove(at)).is_some()
    }

    /// The shell had to close this one, though it was only to wait.
    pub(crate) fn lost(&mut self, conn: ConnId) -> bool {
        for line in &mut self.lines {
            if let Some(at) = line.waiting.iter().position(|(arrival, _)| arrival.conn == conn) {
                line.waiting.remove(at);
                self.count -= 1;
                return true;
            }
        }
        false
    }

    /// A pause has ended: it was no wait for room.
    pub(crate) fn begin_anew(&mut self, now: Now) {
        for (_, since) in self.lines.iter_mut().flat_map(|line| &mut line.waiting) {
            *since = now;
        }
    }

    /// When something of this is to be looked at while nobody gets anything.
    pub(crate) fn deadline_in_a_pause(&self) -> Option<Now> {
        self.episode.map(|episode| episode.ends)
    }

    /// When something of this is to be looked at.
    pub(crate) fn deadline(&self, wait: Option<Duration>, now: Now) -> Option<Now> {
        let fronts = self.lines.iter().filter_map(|line| line.waiting.front());
        let overdue = fronts.filter_map(|(_, since)| Some(since.after(wait?)));
        let overdue = overdue.filter(|at| *at > now);
        let others = [self.take_at, self.look_at, self.episode.map(|episode| episode.ends)];
        overdue.chain(others.into_iter().flatten()).min()
    }
}

impl Core {
    /// `--max-total`: whether one more client may be let in. If not, the next close rings.
    pub(crate) fn total_has_room(&mut self, ask: Ask, loads: &impl Loads) -> bool {
        let Some(max) = self.config.limits.max_total else { return true };
        let held = u64::try_from(self.ledger.held.len()).unwrap_or(u64::MAX);
        if self.dealer.total(loads) + held < u64::from(max) {
            self.dealer.total = Total::Open;
            return true;
        }
        self.dealer.total = Total::Full;
        self.begins_to_wait(ask.listener);
        if self.dealer.set_close_bells(&mut self.actions) {
            self.bells = Bells::Written;
        }
        false
    }

    /// `--max-queue-wait`: nobody has room for the next client of this listener. Whether it is taken
    /// all the same, to wait in hand or to be reset.
    pub(crate) fn admits_beyond(&mut self, listener: ListenerId) -> bool {
        let Some(wait) = self.config.limits.max_queue_wait else { return false };
        // With new bells, the loads are looked at once more first.
        if self.bells == Bells::Written || self.stop.is_under_way() || self.is_paused() {
            return false;
        }
        let now = self.dealer.now;
        let admission = &mut self.admission;
        if admission.oldest(listener).is_some_and(|since| since.after(wait) <= now) {
            admission.verdict = Verdict::Shed(listener);
            return true;
        }
        let most = usize::from(self.config.limits.waiting_max.max(1));
        if admission.taking.contains(listener) && admission.count < most {
            admission.verdict = Verdict::Keep(listener);
            return true;
        }
        let take_at = *admission.take_at.get_or_insert_with(|| now.after(look_every(wait)));
        self.wake_by(take_at);
        false
    }

    /// Another wait may be in force: nobody is taken in hand later than by this one.
    pub(crate) fn take_sooner(&mut self) {
        let Some(wait) = self.config.limits.max_queue_wait else { return };
        let at = self.dealer.now.after(look_every(wait));
        self.admission.take_at = self.admission.take_at.map(|known| known.min(at));
    }

    fn wake_by(&mut self, at: Now) {
        self.deadline = Some(self.deadline.map_or(at, |known| known.min(at)));
    }

    /// A connection was accepted though nobody has room.
    pub(crate) fn accepted_beyond(&mut self, arrival: Arrival, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Keep(listener) if listener == arrival.listener => self.keep(arrival),
            Verdict::Shed(listener) if listener == arrival.listener => self.shed(arrival),
            Verdict::Deal | Verdict::Keep(_) | Verdict::Shed(_) => return false,
        }
        true
    }

    fn keep(&mut self, arrival: Arrival) {
        let now = self.dealer.now;
        self.admission.push(arrival, now);
        self.debts = true;
        if let Some(wait) = self.config.limits.max_queue_wait {
            self.wake_by(now.after(look_every(wait)));
        }
    }

    fn shed(&mut self, arrival: Arrival) {
        let (conn, listener) = (arrival.conn, arrival.listener);
        self.admission.shedding.push(conn);
        self.actions.push_back(Action::Shed { conn });
        let ends = self.dealer.now.after(QUIET);
        if let Some(episode) = &mut self.admission.episode {
            episode.shed += 1;
            episode.ends = ends;
            return;
        }
        self.admission.episode = Some(Episode { shed: 1, ends });
        let waiting = u32::try_from(self.admission.count_on(listener)).unwrap_or(u32::MAX);
        self.report(Report::ShedBegan { listener, waiting });
        self.wake_by(ends);
    }

    /// The backlog of a listener is empty: all of it is dealt, or in hand.
    pub(crate) fn took_all(&mut self, listener: ListenerId) {
        self.admission.taking.remove(listener);
    }

    /// One step further with those that wait in hand.
    pub(crate) fn go_on_admitting(&mut self) {
        let now = self.dealer.now;
        if let Some(episode) = self.admission.episode
            && episode.ends <= now
        {
            self.admission.episode = None;
            self.report(Report::ShedEnded { shed: episode.shed });
        }
        // In a pause nobody is measured, and nobody is turned away; nor when a reload took the limit
        // away, where those in hand are served in their turn.
        let Some(wait) = self.config.limits.max_queue_wait.filter(|_| !self.is_paused()) else {
            self.admission.take_at = None;
            return;
        };
        let due = self.admission.take_at.is_some_and(|at| at <= now);
        if due {
            // Whoever came since the last time has waited for less than the time between.
            for listener in (0..).map(ListenerId).take(self.listeners.len()) {
                self.admission.taking.insert(listener);
            }
            self.admission.take_at = None;
        }
        if self.admission.count > 0 && self.admission.take_at.is_none() {
            self.admission.take_at = Some(now.after(look_every(wait)));
        }
    }

    /// Deals to those that wait in hand, the oldest of each listener first.
    pub(crate) fn place_waiting(&mut self, loads: &impl Loads) {
        self.admission.look_at = None;
        if self.admission.count == 0 {
            return;
        }
        let before = core::mem::replace(&mut self.bells, Bells::LookedAfter);
        for at in 0..self.admission.lines.len() {
            while let Some((arrival, _)) =
                self.admission.lines.get(at).and_then(|line| line.waiting.front().copied())
                && self.place_one(arrival, loads)
            {
                self.admission.pop(at);
            }
        }
        self.admission.lines.retain(|line| !line.waiting.is_empty());
        if self.bells == Bells::Written {
            let again = self.dealer.now.after(Duration::from_nanos(1));
            self.admission.look_at = Some(again);
            self.wake_by(again);
        } else {
            self.bells = before;
        }
    }

    /// All loads were read again since bells were set.
    pub(crate) fn looked_again(&mut self) {
        if self.admission.look_at.take().is_some() {
            self.find_deadline();
        }
    }

    /// Whether this one waits no more.
    fn place_one(&mut self, arrival: Arrival, loads: &impl Loads) -> bool {
        if self.is_hopeless(arrival.listener) {
            self.refuse(arrival);
            return true;
        }
        // To those that finish because everything stops, it is one that the primary holds.
        let stops = self.stop.is_under_way();
        let origin = if stops { Origin::Held } else { Origin::Backlog };
        let ask = Ask { origin, ..self.ask_held(arrival.listener) };
        if !self.total_has_room(ask, loads) {
            return false;
        }
        // In hand, too, who sticks waits while nobody has room by load.
        if ask.policy == Policy::Ip && ask.narrow && !self.dealer.anybody(ask, loads) {
            self.nobody_has_room(ask);
            return false;
        }
        let Some(seat) = self.seat_for(arrival, origin, loads) else {
            self.nobody_has_room(ask);
            return false;
        };
        self.dealer.pace.dealt();
        self.send(seat, arrival);
        true
    }
}

impl Dealer {
    /// Connections that were handed off and are not closed.
    fn total(&mut self, loads: &impl Loads) -> u64 {
        let mut total = 0;
        for i in 0..self.seats.len() {
            self.look(i, loads);
            let (Some(seat), Some(worker)) = (self.seats.get(i), self.workers.get(i)) else {
                break;
            };
            total += match worker.state {
                // What it had in hand ended with it.
                State::Dead => seat.queued(),
                State::Starting { .. }
                | State::Ready { .. }
                | State::Parked { .. }
                | State::Finishing { .. }
                | State::Signalled { .. }
                | State::Aborting { .. }
                | State::Killing { .. } => seat.load(),
            };
        }
        total
    }

    /// Every close makes room: whoever serves something is to ring at the next one, beside what it is
    /// to ring for already. True: some word was written.
    fn set_close_bells(&mut self, actions: &mut VecDeque<Action>) -> bool {
        let mut written = false;
        for (seat, worker) in self.seats.iter_mut().zip(&mut self.workers) {
            let rings = match worker.state {
                State::Ready { .. }
                | State::Parked { .. }
                | State::Signalled { .. }
                | State::Aborting { .. } => seat.load() > 0,
                // These have bells of their own for what they do next, and are looked at again.
                State::Starting { .. }
                | State::Finishing { .. }
                | State::Killing { .. }
                | State::Dead => false,
            };
            if !rings || seat.standing == Standing::Finishing {
                continue;
            }
            let known = worker.bell.at_claim;
            let at_claim = if seat.claimed < known { known } else { 0 };
            let wanted = Bell { at_claim, on_close: true, closed_then: closed(seat) };
            if write(seat, worker, wanted, actions) {
                worker.bells = Bells::Written;
                written = true;
            }
        }
        self.some_bell |= written;
        written
    }
}

/// How often waiting clients are taken in hand.
fn look_every(wait: Duration) -> Duration {
    (wait / 4).max(Duration::from_millis(1))
}
