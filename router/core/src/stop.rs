//! The end: asked for, or come to.
//!
//! ```text
//!         StopAsked          listeners closed,        nobody left
//!   No ────────────▶ Closing ───────────────▶ Draining ──────────▶ Over (Finish)
//!    │                  │    all in hand dealt   │                   ▲
//!    │ hopeless         │ StopAsked again        │                   │
//!    └──────────────────┴────────────▶ Killing ◀─┘ ──────────────────┘
//! ```
//!
//! Closing a listener without a reset (dealing.md 7; plain closing resets somebody in 20 rounds of
//! 20): filter, accept to the end, rest 10 ms, accept to the end again, close. Meanwhile connections
//! are dealt as ever.

use core::time::Duration;

use crate::dealer::Round;
use crate::event::{Action, ListenerId, Outcome, Report};
use crate::primary::Core;
use crate::slot::SlotInput;
use crate::time::Now;
use crate::worker::{Input, State};

/// Between the first and the second emptying of a listener's backlog: handshakes that had begun
/// before the filter end in this time.
const REST: Duration = Duration::from_millis(10);
/// After everybody was killed: processes that even KILL cannot end are not waited for.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// How far one listener is with closing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It is not.
    Open,
    /// New clients are dropped; the backlog is being emptied.
    Quiet,
    /// Empty; clients in the middle of their handshake may still arrive.
    Resting { until: Now },
    /// Being emptied for the second time.
    Again,
    /// The shell was told to close it.
    Told,
}

impl Closing {
    pub(crate) fn deadline(self) -> Option<Now> {
        match self {
            Self::Resting { until } => Some(until),
            Self::Open | Self::Quiet | Self::Again | Self::Told => None,
        }
    }
}

/// How far everything is with ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It is not.
    No,
    /// Listeners are being closed; what they had is dealt.
    Closing { deadline: Now },
    /// Workers finish.
    Draining { deadline: Now },
    /// Workers are being killed.
    Killing { outcome: Outcome, until: Now },
    /// `Finish` was said.
    Over,
}

impl Stop {
    /// New clients are taken.
    pub(crate) fn deals(self) -> bool {
        match self {
            Self::No | Self::Closing { .. } => true,
            Self::Draining { .. } | Self::Killing { .. } | Self::Over => false,
        }
    }

    pub(crate) fn starts_workers(self) -> bool {
        self == Self::No
    }

    pub(crate) fn is_under_way(self) -> bool {
        self != Self::No
    }

    /// Nothing is worth saving any more.
    pub(crate) fn kills(self) -> bool {
        match self {
            Self::Killing { .. } | Self::Over => true,
            Self::No | Self::Closing { .. } | Self::Draining { .. } => false,
        }
    }

    pub(crate) fn deadline(self) -> Option<Now> {
        match self {
            Self::Closing { deadline } => Some(deadline),
            Self::Killing { until, .. } => Some(until),
            // Each worker has its own from here.
            Self::No | Self::Draining { .. } | Self::Over => None,
        }
    }
}

impl Core {
    pub(crate) fn stop_asked(&mut self, at_once: bool) {
        match self.stop {
            Stop::No if !at_once => self.begin_to_stop(),
            Stop::No | Stop::Closing { .. } | Stop::Draining { .. } => self.end(Outcome::Killed),
            Stop::Killing { until, .. } => {
                self.stop = Stop::Killing { outcome: Outcome::Killed, until }
            }
            Stop::Over => {}
        }
    }

    pub(crate) fn begin_to_stop(&mut self) {
        let deadline = self.dealer.now.after(self.config.graceful_timeout);
        self.report(Report::Stopping { now: false });
        self.stop = Stop::Closing { deadline };
        // Whoever waits for the end of a pause is served before the end of everything.
        self.end_pauses();
        self.end_reloads();
        self.debts = true;
        self.withdraw_slots();
        for i in 0..self.dealer.workers.len() {
            if matches!(
                self.dealer.workers.get(i).map(|worker| worker.state),
                Some(State::Starting { .. })
            ) {
                self.enter(i, Input::Condemned);
            }
        }
        let filter = self.dealer.policies.by_hand();
        self.for_listeners(|closing, listener| match (*closing, filter) {
            (Closing::Open, true) => {
                *closing = Closing::Quiet;
                Some(Action::QuietListener { listener })
            }
            // Others hold this socket too: a filter would drop their clients.
            (Closing::Open, false) => {
                *closing = Closing::Told;
                Some(Action::CloseListener { listener })
            }
            (Closing::Quiet | Closing::Resting { .. } | Closing::Again | Closing::Told, _) => None,
        });
    }

    /// Ends without waiting for anything.
    pub(crate) fn end(&mut self, outcome: Outcome) {
        if self.stop.kills() {
            return;
        }
        if self.stop == Stop::No {
            self.report(Report::Stopping { now: true });
        }
        let until = self.dealer.now.after(LAST_WAIT);
        self.stop = Stop::Killing { outcome, until };
        self.end_reloads();
        self.debts = true;
        self.withdraw_slots();
        self.close_all();
        for i in 0..self.dealer.workers.len() {
            self.enter(i, Input::Condemned);
        }
    }

    fn withdraw_slots(&mut self) {
        for slot in &mut self.slots {
            slot.take(SlotInput::Withdraw);
        }
    }

    fn close_all(&mut self) {
        self.for_listeners(|closing, listener| {
            let told = core::mem::replace(closing, Closing::Told) == Closing::Told;
            (!told).then_some(Action::CloseListener { listener })
        });
    }

    fn for_listeners(&mut self, mut next: impl FnMut(&mut Closing, ListenerId) -> Option<Action>) {
        for (listener, number) in self.listeners.iter_mut().zip(0..) {
            if let Some(listener) = listener
                && let Some(action) = next(&mut listener.closing, ListenerId(number))
            {
                self.actions.push_back(action);
            }
        }
    }

    /// accept(2) found nothing more on a listener that closes.
    pub(crate) fn backlog_ended(&mut self, listener: ListenerId) {
        let until = self.dealer.now.after(REST);
        let Some(known) = self.listener_mut(listener) else { return };
        match known.closing {
            Closing::Quiet => known.closing = Closing::Resting { until },
            Closing::Again => {
                known.closing = Closing::Told;
                self.actions.push_back(Action::CloseListener { listener });
            }
            Closing::Open | Closing::Resting { .. } | Closing::Told => {}
        }
    }

    /// One step further with the end, where its time has come.
    pub(crate) fn go_on_stopping(&mut self) {
        match self.stop {
            Stop::No | Stop::Over => {}
            Stop::Closing { deadline } => self.go_on_closing(deadline),
            Stop::Draining { .. } => {
                if self.dealer.workers.is_empty() && !self.owes() && self.ledger.refusing.is_empty()
                {
                    self.finish(Outcome::Stopped);
                }
            }
            Stop::Killing { outcome, until } => {
                let late = until <= self.dealer.now;
                if late || (self.dealer.workers.is_empty() && self.ledger.in_flight.is_empty()) {
                    self.finish(outcome);
                }
            }
        }
    }

    fn go_on_closing(&mut self, deadline: Now) {
        let now = self.dealer.now;
        if deadline <= now || self.ready == 0 {
            // Nobody can serve who still waits.
            self.close_all();
        }
        self.for_listeners(|closing, listener| match *closing {
            Closing::Resting { until } if until <= now => {
                // Asking for quiet once more makes the shell look into the backlog again.
                *closing = Closing::Again;
                Some(Action::QuietListener { listener })
            }
            Closing::Open
            | Closing::Quiet
            | Closing::Resting { .. }
            | Closing::Again
            | Closing::Told => None,
        });
        let closed =
            self.listeners.iter().flatten().all(|listener| listener.closing == Closing::Told);
        let in_hand =
            !self.ledger.held.is_empty() || self.admission.count() > 0 || self.ledger.expected > 0;
        if closed && (!in_hand || deadline <= now) {
            self.drain_all(deadline);
        }
    }

    /// No more clients will come: everybody finishes what he has.
    fn drain_all(&mut self, deadline: Now) {
        let deadline = deadline.max(self.dealer.now);
        self.stop = Stop::Draining { deadline };
        self.dealer.round = Round::Last;
        let kill_at = deadline.after(self.config.kill_after);
        for i in 0..self.dealer.workers.len() {
            // One that left already has no more time than the others.
            let told = self.dealer.workers.get(i).is_some_and(|worker| worker.state.was_told());
            let input = if told { Input::Told { kill_at } } else { Input::Drain { deadline } };
            self.enter(i, input);
        }
        self.dealer.restand_all();
        self.debts = true;
        // The workers are looked at at once, not at their first bell.
        self.deadline = Some(self.dealer.now);
    }

    fn finish(&mut self, outcome: Outcome) {
        self.stop = Stop::Over;
        self.actions.push_back(Action::Finish(outcome));
    }
}
