//! A worker: its state, and what the core counts about it.
//!
//! ```text
//!             BecameReady          Drain               Told
//!   Starting ────────────▶ Ready ─────────▶ Finishing ──────────▶ Signalled
//!      │                  Park│▲Unpark  ▲        │                    │
//!      │                      ▼│        │Drain   │                    │
//!      │                     Parked ────┘        │                    │
//!      │                       │                 │                    │
//!      └───────────────┬───────┴─────────────────┴────────────────────┘
//!                      │ Condemned, Ended
//!                      ▼            FamilyGone
//!                   Killing ──────────────────▶ Dead ──▶ forgotten, once its queue is empty
//!
//!   Ready ── Hung ──▶ Aborting ── Condemned, Ended ──▶ Killing
//! ```
//!
//! *Finishing* and *Signalled* are the two halves of draining; *Aborting* has SIGABRT and some time to
//! leave a core. Late, paused and fresh are facts
//! beside the state: see [`Standing`](crate::seat::Standing).

use core::time::Duration;

use crate::audit::Audit;
use crate::check::Check;
use crate::event::{Fault, Generation, SlotId, TakeBackReason, WorkerId};
use crate::hung::Watch;
use crate::pause::Rest;
use crate::primary::Bells;
use crate::recycle::Age;
use crate::time::Now;
use crate::window::{Times, Window};

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its process was asked for; it is not ready yet.
    Starting { deadline: Now },
    /// It gets connections.
    Ready { since: Now },
    /// It gets none, but stays.
    Parked { since: Now },
    /// It drains: finishes what it has.
    Finishing { deadline: Now },
    /// It drains: it was told to end.
    Signalled { kill_at: Now },
    /// It is hung: it was told to abort.
    Aborting { kill_at: Now },
    /// KILL is on its way to the whole family.
    Killing { since: Now },
    /// No process is left; its queue may not be empty.
    Dead,
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    BecameReady,
    Park,
    Unpark,
    Drain {
        deadline: Now,
    },
    /// The stop-signal was sent.
    Told {
        kill_at: Now,
    },
    /// It is hung; SIGABRT was sent.
    Hung {
        kill_at: Now,
    },
    /// It is to be killed: not ready in time, broken, lying, too slow to end.
    Condemned,
    /// Its main process ended.
    Ended,
    FamilyGone,
}

impl State {
    /// The state after `input`, at `now`.
    #[must_use]
    pub(crate) fn next(self, input: Input, now: Now) -> Self {
        use Input::{BecameReady, Condemned, Drain, Ended, FamilyGone, Hung, Park, Told, Unpark};
        use State::{Aborting, Dead, Finishing, Killing, Parked, Ready, Signalled, Starting};
        match (self, input) {
            (Starting { .. }, BecameReady) | (Parked { .. }, Unpark) => Ready { since: now },
            (Ready { .. }, Park) => Parked { since: now },
            (Ready { .. } | Parked { .. }, Drain { deadline }) => Finishing { deadline },
            // A second deadline can only bring the first one nearer.
            (Finishing { deadline }, Drain { deadline: other }) => {
                Finishing { deadline: deadline.min(other) }
            }
            (Signalled { kill_at }, Told { kill_at: other }) => {
                Signalled { kill_at: kill_at.min(other) }
            }
            (Finishing { .. }, Told { kill_at }) => Signalled { kill_at },
            (Ready { .. }, Hung { kill_at }) => Aborting { kill_at },
            (
                Starting { .. }
                | Ready { .. }
                | Parked { .. }
                | Finishing { .. }
                | Signalled { .. }
                | Aborting { .. },
                Condemned | Ended,
            ) => Killing { since: now },
            (Killing { .. }, FamilyGone) => Dead,
            // Stale, or already so; each was considered:
            (
                Starting { .. },
                Park | Unpark | Drain { .. } | Told { .. } | Hung { .. } | FamilyGone,
            )
            | (Ready { .. }, BecameReady | Unpark | Told { .. } | FamilyGone)
            | (Parked { .. }, BecameReady | Park | Told { .. } | Hung { .. } | FamilyGone)
            | (Finishing { .. }, BecameReady | Park | Unpark | Hung { .. } | FamilyGone)
            | (
                Signalled { .. },
                BecameReady | Park | Unpark | Drain { .. } | Hung { .. } | FamilyGone,
            )
            | (
                Aborting { .. },
                BecameReady | Park | Unpark | Drain { .. } | Told { .. } | Hung { .. } | FamilyGone,
            )
            | (
                Killing { .. },
                BecameReady
                | Park
                | Unpark
                | Drain { .. }
                | Told { .. }
                | Hung { .. }
                | Condemned
                | Ended,
            )
            | (
                Dead,
                BecameReady
                | Park
                | Unpark
                | Drain { .. }
                | Told { .. }
                | Hung { .. }
                | Condemned
                | Ended
                | FamilyGone,
            ) => self,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Ready { .. } => "ready",
            Self::Parked { .. } => "parked",
            Self::Finishing { .. } | Self::Signalled { .. } => "draining",
            Self::Aborting { .. } | Self::Killing { .. } | Self::Dead => "killing",
        }
    }

    pub(crate) fn ready_since(self) -> Option<Now> {
        match self {
            Self::Ready { since } => Some(since),
            Self::Starting { .. }
            | Self::Parked { .. }
            | Self::Finishing { .. }
            | Self::Signalled { .. }
            | Self::Aborting { .. }
            | Self::Killing { .. }
            | Self::Dead => None,
        }
    }

    /// Its process may run.
    pub(crate) fn lives(self) -> bool {
        match self {
            Self::Starting { .. }
            | Self::Ready { .. }
            | Self::Parked { .. }
            | Self::Finishing { .. }
            | Self::Signalled { .. }
            | Self::Aborting { .. } => true,
            Self::Killing { .. } | Self::Dead => false,
        }
    }

    /// It drains and was sent the stop-signal.
    pub(crate) fn was_told(self) -> bool {
        match self {
            Self::Signalled { .. } => true,
            Self::Starting { .. }
            | Self::Ready { .. }
            | Self::Parked { .. }
            | Self::Finishing { .. }
            | Self::Aborting { .. }
            | Self::Killing { .. }
            | Self::Dead => false,
        }
    }

    /// The deadline that this state carries.
    pub(crate) fn deadline(self) -> Option<Now> {
        match self {
            Self::Starting { deadline } | Self::Finishing { deadline } => Some(deadline),
            Self::Signalled { kill_at } | Self::Aborting { kill_at } => Some(kill_at),
            Self::Ready { .. } | Self::Parked { .. } | Self::Killing { .. } | Self::Dead => None,
        }
    }
}

/// Whether a worker is late, and what it takes to believe it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lateness {
    No,
    /// Its oldest queued connection waits for longer than it may.
    Late,
    /// Its queue was emptied by stealing; it gets a probe.
    Emptied,
    /// A probe is in its queue. Claiming it proves the worker well.
    Probed,
}

/// A take-back that is under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taking {
    pub(crate) why: TakeBackReason,
    /// At most so many connections will come.
    pub(crate) max: u32,
    /// So many have come.
    pub(crate) got: u32,
    /// Nothing that may be stolen was on its way to the queue meanwhile.
    pub(crate) sees_all: bool,
}

/// A worker that became ready beside others that already had connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fresh {
    pub(crate) since: Now,
    /// Parts of a hand-off that it has saved up; [`Fresh::ONE`] is a whole one.
    tokens: u32,
}

impl Fresh {
    pub(crate) const ONE: u32 = 1 << 20;

    pub(crate) fn new(now: Now) -> Self {
        Self { since: now, tokens: 0 }
    }

    /// Somebody among `eligible` got a connection: its share of that, rising to twice the fair one.
    pub(crate) fn earn(&mut self, eligible: u32, slow_start: Duration, now: Now) {
        let whole = u64::try_from(slow_start.as_micros()).unwrap_or(u64::MAX).max(1);
        let past = u64::try_from(now.since(self.since).as_micros()).unwrap_or(u64::MAX).min(whole);
        let one = u64::from(Self::ONE);
        let rising = one + one * past / whole;
        let share = u32::try_from(rising / u64::from(eligible.max(1))).unwrap_or(Self::ONE);
        // Never two saved up: a burst of one.
        self.tokens = self.tokens.saturating_add(share).min(Self::ONE.saturating_add(share));
    }

    pub(crate) fn may(&self) -> bool {
        self.tokens >= Self::ONE
    }

    pub(crate) fn spend(&mut self) {
        self.tokens = self.tokens.saturating_sub(Self::ONE);
    }
}

/// The doorbell words as they were last written to the worker's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bell {
    pub(crate) at_claim: u64,
    pub(crate) on_close: bool,
    /// Closes seen when it was written: more of them mean that `on_close` has rung.
    pub(crate) closed_then: u64,
}

impl Bell {
    pub(crate) fn is_set(self) -> bool {
        self.at_claim != 0 || self.on_close
    }
}

/// One worker, as far as it is not in its [`Seat`](crate::seat::Seat).
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) slot: SlotId,
    pub(crate) generation: Generation,
    pub(crate) state: State,
    pub(crate) started: Now,
    /// The kernel queued so many for it, probes included.
    pub(crate) handed_off: u64,
    /// So many came out of its queue again, lost ones included.
    pub(crate) taken_back: u64,
    /// Hand-offs asked for and not yet answered.
    pub(crate) in_flight: u32,
    pub(crate) times: Times,
    pub(crate) window: Window,
    pub(crate) lateness: Lateness,
    pub(crate) fresh: Option<Fresh>,
    /// The kernel would not take more for it: not before then.
    pub(crate) paused: Option<Now>,
    /// The operator wants its slot to get nothing.
    pub(crate) rest: Rest,
    /// The end of its main process was told.
    pub(crate) ended: bool,
    pub(crate) bell: Bell,
    pub(crate) bells: Bells,
    pub(crate) taking: Option<Taking>,
    /// Do not try to take back before then: the last try got stuck, or got nothing.
    pub(crate) take_after: Now,
    /// The number of the first in its queue, when a steal got nothing and nothing that may be stolen has
    /// come since: what sticks to it is in the way, until it is claimed.
    pub(crate) yields_nothing: Option<u64>,
    /// When it was last seen to have claimed at once what it was given; `None`: its last claims were
    /// slow, or it has claimed nothing.
    pub(crate) prompt: Option<Now>,
    pub(crate) audit: Audit,
    /// The probe that shows whether it accepts (`--ready accept`).
    pub(crate) probe: ReadyProbe,
    /// The request that it must answer before it is ready (`--ready-probe`).
    pub(crate) check: Check,
    /// Clients with something open here keep coming until then, while it drains (`ip`).
    pub(crate) keeps_until: Now,
    pub(crate) farewell: Farewell,
    pub(crate) word: Word,
    /// What was last seen of its progress.
    pub(crate) watch: Watch,
    pub(crate) age: Age,
    /// What is known to be wrong with it, should it be over soon.
    pub(crate) fault: Fault,
}

/// How far `--ready accept` is with a starting worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadyProbe {
    /// Not asked for yet; not before then.
    Due { after: Now },
    /// Asked for.
    Asked,
    /// In its queue.
    Queued,
}

/// Whether a worker that drains was told that it may leave, as nothing more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    NotYet,
    Said,
}

/// Whether a worker said that it is ready, or need not say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    NotYet,
    Given,
}

impl Worker {
    pub(crate) fn new(
        id: WorkerId,
        slot: SlotId,
        generation: Generation,
        deadline: Now,
        room: u16,
        now: Now,
    ) -> Self {
        Self {
            id,
            slot,
            generation,
            state: State::Starting { deadline },
            started: now,
            handed_off: 0,
            taken_back: 0,
            in_flight: 0,
            times: Times::new(room),
            window: Window::new(),
            lateness: Lateness::No,
            fresh: None,
            paused: None,
            rest: Rest::No,
            ended: false,
            bell: Bell::default(),
            bells: Bells::LookedAfter,
            taking: None,
            take_after: now,
            yields_nothing: None,
            prompt: None,
            audit: Audit::default(),
            probe: ReadyProbe::Due { after: now },
            check: Check::Due { after: now, tries: 0 },
            keeps_until: now,
            farewell: Farewell::NotYet,
            word: Word::NotYet,
            watch: Watch::default(),
            age: Age::default(),
            fault: Fault::Broken,
        }
    }

    /// When the oldest of the connections that were not `claimed` was handed off, if one is queued.
    pub(crate) fn oldest(&self, claimed: u64) -> Option<Now> {
        let number = self.taken_back.saturating_add(claimed);
        (number < self.handed_off).then(|| self.times.get(number))
    }

    /// A probe is what shows whether it is well.
    pub(crate) fn needs_probe(&self) -> bool {
        match self.state {
            State::Starting { .. } => true,
            State::Ready { .. } => self.lateness == Lateness::Emptied,
            State::Parked { .. }
            | State::Finishing { .. }
            | State::Signalled { .. }
            | State::Aborting { .. }
            | State::Killing { .. }
            | State::Dead => false,
        }
    }

    /// Handed off or on the way, less what was taken back.
    pub(crate) fn sent(&self) -> u64 {
        (self.handed_off + u64::from(self.in_flight)).saturating_sub(self.taken_back)
    }

    /// Notes that it has claimed, `claimed` in all. How long the last of them stood is known to be
    /// no more than the time until now.
    pub(crate) fn note_claims(&mut self, claimed: u64, stall_after: Duration, now: Now) {
        let last = (self.taken_back + claimed).checked_sub(1).map(|number| self.times.get(number));
        let at_once = last.is_some_and(|since| now.since(since) <= stall_after / 2);
        self.prompt = at_once.then_some(now);
    }

    /// Notes that the kernel queued one more for it.
    pub(crate) fn count_hand_off(&mut self, now: Now) {
        self.times.set(self.handed_off, now);
        self.handed_off += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn every_state_and_input() {
        use Input::{BecameReady, Condemned, Drain, Ended, FamilyGone, Park, Unpark};
        use State::{Aborting, Dead, Finishing, Killing, Parked, Ready, Signalled, Starting};
        let now = Now(7);
        let (d, k) = (Now(20), Now(30));
        let drain = Drain { deadline: d };
        let told = Input::Told { kill_at: k };
        let hung = Input::Hung { kill_at: k };
        let aborting = Aborting { kill_at: Now(12) };
        let starting = Starting { deadline: Now(9) };
        let ready = Ready { since: Now(1) };
        let parked = Parked { since: Now(2) };
        let finishing = Finishing { deadline: Now(10) };
        let signalled = Signalled { kill_at: Now(11) };
        let killing = Killing { since: Now(3) };
        let killed = Killing { since: now };
        #[rustfmt::skip]
        let table = [
            (starting,  BecameReady, Ready { since: now }),
            (starting,  Park,        starting),
            (starting,  Unpark,      starting),
            (starting,  drain,       starting),
            (starting,  hung,        starting),
            (starting,  told,        starting),
            (starting,  Condemned,   killed),
            (starting,  Ended,       killed),
            (starting,  FamilyGone,  starting),
            (ready,     BecameReady, ready),
            (ready,     Park,        Parked { since: now }),
            (ready,     Unpark,      ready),
            (ready,     drain,       Finishing { deadline: d }),
            (ready,     hung,        Aborting { kill_at: k }),
            (ready,     told,        ready),
            (ready,     Condemned,   killed),
            (ready,     Ended,       killed),
            (ready,     FamilyGone,  ready),
            (parked,    BecameReady, parked),
            (parked,    Park,        parked),
            (parked,    Unpark,      Ready { since: now }),
            (parked,    drain,       Finishing { deadline: d }),
            (parked,    hung,        parked),
            (parked,    told,        parked),
            (parked,    Condemned,   killed),
            (parked,    Ended,       killed),
            (parked,    FamilyGone,  parked),
            (finishing, BecameReady, finishing),
            (finishing, Park,        finishing),
            (finishing, Unpark,      finishing),
            (finishing, drain,       finishing),
            (finishing, Drain { deadline: Now(8) }, Finishing { deadline: Now(8) }),
            (finishing, hung,        finishing),
            (finishing, told,        Signalled { kill_at: k }),
            (finishing, Condemned,   killed),
            (finishing, Ended,       killed),
            (finishing, FamilyGone,  finishing),
            (signalled, BecameReady, signalled),
            (signalled, Park,        signalled),
            (signalled, Unpark,      signalled),
            (signalled, drain,       signalled),
            (signalled, hung,        signalled),
            (signalled, told,        signalled),
            (signalled, Input::Told { kill_at: Now(9) }, Signalled { kill_at: Now(9) }),
            (signalled, Condemned,   killed),
            (signalled, Ended,       killed),
            (signalled, FamilyGone,  signalled),
            (aborting,  BecameReady, aborting),
            (aborting,  Park,        aborting),
            (aborting,  Unpark,      aborting),
            (aborting,  drain,       aborting),
            (aborting,  hung,        aborting),
            (aborting,  told,        aborting),
            (aborting,  Condemned,   killed),
            (aborting,  Ended,       killed),
            (aborting,  FamilyGone,  aborting),
            (killing,   BecameReady, killing),
            (killing,   Park,        killing),
            (killing,   Unpark,      killing),
            (killing,   drain,       killing),
            (killing,   hung,        killing),
            (killing,   told,        killing),
            (killing,   Condemned,   killing),
            (killing,   Ended,       killing),
            (killing,   FamilyGone,  Dead),
            (Dead,      BecameReady, Dead),
            (Dead,      Park,        Dead),
            (Dead,      Unpark,      Dead),
            (Dead,      drain,       Dead),
            (Dead,      hung,        Dead),
            (Dead,      told,        Dead),
            (Dead,      Condemned,   Dead),
            (Dead,      Ended,       Dead),
            (Dead,      FamilyGone,  Dead),
        ];
        for (state, input, expected) in table {
            assert_eq!(state.next(input, now), expected, "{state:?} with {input:?}");
        }
    }

    #[test]
    fn a_fresh_worker_earns_at_most_twice_its_share() {
        let slow_start = Duration::from_secs(10);
        for (second, least, most) in [(0, 24, 26), (5, 36, 38), (10, 49, 51), (100, 49, 51)] {
            let mut fresh = Fresh::new(Now(0));
            let now = Now(second * 1_000_000_000);
            let mut got = 0;
            for _ in 0..100 {
                fresh.earn(4, slow_start, now);
                if fresh.may() {
                    fresh.spend();
                    got += 1;
                }
            }
            assert!((least..=most).contains(&got), "{got} of 100 after {second} s");
        }
    }
}
