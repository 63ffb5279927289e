//! Workers without processes: habits that real servers have.

use std::collections::{BTreeSet, VecDeque};

use croupier_core::event::{
    Client, ExitStatus, Generation, ListenerId, Load, SlotId, TakeBackReason, Whose, WorkerId,
};

use super::{MS, US};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conn {
    pub(crate) serial: u64,
    pub(crate) client: Client,
    pub(crate) listener: ListenerId,
    /// How long its request takes, if not what the worker usually needs.
    pub(crate) service: Option<u64>,
    /// When its client connected.
    pub(crate) came: u64,
}

/// How a worker takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// One after another: claims the next when the last is closed.
    Blocking,
    /// Claims whatever is queued, serves all at the same time.
    EventLoop,
}

/// What a worker's page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Honesty {
    Honest,
    /// No page: claims are known from the kernel's count, active is not.
    NoPage,
    /// Says that it claimed more than it was given.
    ClaimsTooMany,
    /// Its counter goes backwards.
    GoesBack,
    /// Says that it claimed nothing.
    ClaimsNothing,
    /// After so many claims it counts none any more, and leaves one connection in its queue.
    HidesBehindOne {
        after: u64,
    },
    /// Says that it has claimed all that it was given, and is in no hurry to.
    ClaimsAll,
}

/// What a worker is like.
#[derive(Debug, Clone)]
pub(crate) struct Habit {
    pub(crate) style: Style,
    pub(crate) service: u64,
    /// Between something new in its queue and the claim.
    pub(crate) latency: u64,
    /// From spawn to listen.
    pub(crate) start: u64,
    pub(crate) listeners: Vec<u16>,
    pub(crate) honesty: Honesty,
    /// Never listens.
    pub(crate) never_ready: bool,
    pub(crate) says_ready: bool,
    pub(crate) spawn_fails: bool,
    /// From fork to exec.
    pub(crate) exec: u64,
    /// Exits this long after its start, with this status, leaving a family or not.
    pub(crate) exits: Option<(u64, ExitStatus, bool)>,
    /// Claims nothing before then.
    pub(crate) stuck_until: u64,
    /// What keeps it is the lack of a CPU.
    pub(crate) lacks_cpu: bool,
    /// The stop-signal is ignored.
    pub(crate) stubborn: bool,
    /// It has closed the doorbell's descriptor.
    pub(crate) bell_lost: bool,
    /// A page fault of its own making holds its queue's lock.
    pub(crate) holds_lock: bool,
    /// So many requests of `--ready-probe` it answers badly before it answers well.
    pub(crate) bad_answers: u32,
}

impl Default for Habit {
    fn default() -> Self {
        Self {
            style: Style::Blocking,
            service: 45 * US,
            latency: 10 * US,
            start: 50 * MS,
            listeners: vec![0],
            honesty: Honesty::Honest,
            never_ready: false,
            says_ready: false,
            spawn_fails: false,
            exec: 300 * US,
            exits: None,
            stuck_until: 0,
            lacks_cpu: false,
            stubborn: false,
            bell_lost: false,
            holds_lock: false,
            bad_answers: 0,
        }
    }
}

impl Habit {
    pub(crate) fn blocking(service: u64) -> Self {
        Self { service, ..Self::default() }
    }

    pub(crate) fn event_loop(service: u64) -> Self {
        Self { style: Style::EventLoop, service, ..Self::default() }
    }

    pub(crate) fn honest(&self) -> bool {
        match self.honesty {
            Honesty::Honest => true,
            Honesty::NoPage
            | Honesty::ClaimsTooMany
            | Honesty::GoesBack
            | Honesty::ClaimsNothing
            | Honesty::HidesBehindOne { .. }
            | Honesty::ClaimsAll => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Running,
    /// The main process ended, its children live.
    Orphans,
    Zombie,
    Gone,
}

/// What a process did when it had the CPU.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    pub(crate) listens: Vec<u16>,
    pub(crate) says_ready: bool,
    /// Claimed connections and how long each will take.
    pub(crate) claimed: Vec<(Conn, u64)>,
    pub(crate) rings: bool,
    pub(crate) exits: Option<(ExitStatus, bool)>,
    pub(crate) wake_at: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Player {
    pub(crate) id: WorkerId,
    pub(crate) slot: SlotId,
    pub(crate) generation: Generation,
    pub(crate) habit: Habit,
    pub(crate) process: Process,
    /// Its program runs, as the core knows.
    pub(crate) executes: bool,
    pub(crate) queue: VecDeque<Conn>,
    pub(crate) active: Vec<Conn>,
    pub(crate) listens: BTreeSet<u16>,
    pub(crate) sent: u64,
    pub(crate) taken: u64,
    pub(crate) claimed: u64,
    pub(crate) closed: u64,
    pub(crate) ring_at: u64,
    pub(crate) ring_on_close: bool,
    pub(crate) draining: bool,
    pub(crate) drains_since: Option<u64>,
    /// It has answered the request that makes it ready.
    pub(crate) was_checked: bool,
    pub(crate) nudged: bool,
    /// The core may think of it as ready.
    pub(crate) was_ready: bool,
    /// The core wants it dead.
    pub(crate) condemned: bool,
    /// It was told to abort.
    pub(crate) aborting: bool,
    /// Its page has always said what is so.
    pub(crate) reliable: bool,
    pub(crate) taking: (Whose, TakeBackReason),
    pub(crate) born: Option<u64>,
}

impl Player {
    pub(crate) fn new(id: WorkerId, slot: SlotId, generation: Generation, habit: Habit) -> Self {
        Self {
            id,
            slot,
            generation,
            reliable: habit.honest(),
            habit,
            process: Process::Running,
            executes: false,
            queue: VecDeque::new(),
            active: Vec::new(),
            listens: BTreeSet::new(),
            sent: 0,
            taken: 0,
            claimed: 0,
            closed: 0,
            ring_at: 0,
            ring_on_close: false,
            draining: false,
            drains_since: None,
            was_checked: false,
            nudged: true,
            was_ready: false,
            condemned: false,
            aborting: false,
            taking: (Whose::All, TakeBackReason::Death),
            born: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process == Process::Running
    }

    /// What its page says.
    pub(crate) fn load(&self) -> Load {
        let active = Some(u32::try_from(self.active.len()).unwrap());
        match self.habit.honesty {
            Honesty::Honest => Load { claimed: self.claimed, active },
            Honesty::NoPage => {
                let queued = u64::try_from(self.queue.len()).unwrap();
                Load { claimed: (self.sent - self.taken).saturating_sub(queued), active: None }
            }
            Honesty::ClaimsTooMany => Load { claimed: self.claimed + 1_000_000, active },
            // The lie changes with every claim: up, then down.
            Honesty::GoesBack => {
                Load { claimed: self.claimed.saturating_sub(2 * (self.claimed % 4)), active }
            }
            Honesty::ClaimsNothing => Load { claimed: 0, active },
            Honesty::HidesBehindOne { after } => Load { claimed: self.claimed.min(after), active },
            Honesty::ClaimsAll => Load { claimed: self.sent - self.taken, active: Some(0) },
        }
    }

    /// Claims that it makes now, it does not count.
    pub(crate) fn hides(&self) -> bool {
        match self.habit.honesty {
            Honesty::HidesBehindOne { after } => self.claimed >= after,
            Honesty::Honest
            | Honesty::NoPage
            | Honesty::ClaimsTooMany
            | Honesty::GoesBack
            | Honesty::ClaimsNothing
            | Honesty::ClaimsAll => false,
        }
    }

    fn is_stuck(&self, now: u64) -> bool {
        self.habit.stuck_until > now
    }

    /// It has the CPU.
    pub(crate) fn act(&mut self, now: u64) -> Deeds {
        let mut deeds = Deeds::default();
        match self.process {
            Process::Running | Process::Orphans => {}
            Process::Zombie | Process::Gone => return deeds,
        }
        let born = *self.born.get_or_insert_with(|| {
            if !self.habit.never_ready {
                deeds.listens.clone_from(&self.habit.listeners);
                deeds.says_ready = self.habit.says_ready;
            }
            now
        });
        if let (Some((after, status, orphans)), Process::Running) = (self.habit.exits, self.process)
        {
            if now >= born + after {
                deeds.exits = Some((status, orphans));
                return deeds;
            }
            deeds.wake_at = Some(born + after);
        }
        if self.is_stuck(now) {
            deeds.wake_at =
                [deeds.wake_at, Some(self.habit.stuck_until)].into_iter().flatten().min();
            return deeds;
        }
        loop {
            let busy = self.habit.style == Style::Blocking && !self.active.is_empty();
            if busy {
                return deeds;
            }
            if self.hides() && self.queue.len() == 1 {
                return deeds;
            }
            let Some(conn) = self.queue.pop_front() else { return deeds };
            self.claimed += 1;
            if self.ring_at != 0 && self.load().claimed >= self.ring_at {
                self.ring_at = 0;
                deeds.rings = true;
            }
            let service = conn.service.unwrap_or(self.habit.service).max(1);
            self.active.push(conn.clone());
            deeds.claimed.push((conn, service));
        }
    }
}
