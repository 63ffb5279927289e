//! The core's configuration: already validated; nothing in here can be wrong.

use core::time::Duration;

/// How connections are dealt (README, "Policies").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The worker with the least load; among equals the next in turn.
    Least,
    /// The next worker in turn.
    Rr,
    /// The client's address chooses the slot.
    Ip,
    /// No hand-off: workers share the listening socket.
    Shared,
    /// No hand-off: each slot has its own `SO_REUSEPORT` socket.
    Reuseport,
}

impl Policy {
    /// Whether connections pass through the primary.
    #[must_use]
    pub const fn by_hand(self) -> bool {
        match self {
            Self::Least | Self::Rr | Self::Ip => true,
            Self::Shared | Self::Reuseport => false,
        }
    }

    /// Whether any worker will do: windows adapt, late workers come last, and stealing makes sense.
    #[must_use]
    pub const fn by_load(self) -> bool {
        match self {
            Self::Least | Self::Rr => true,
            Self::Ip | Self::Shared | Self::Reuseport => false,
        }
    }
}

/// When a worker counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyRule {
    /// It listens: on every declared listener, or, with none declared, on any.
    Listen,
    /// It listens and has claimed a probe connection.
    Accept,
    /// It said so.
    Notify,
    /// It runs (workers that never listen).
    Start,
}

/// What a worker must do beyond [`ReadyRule`] before it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeRule {
    /// Nothing.
    None,
    /// Answer a request of the primary's (`--ready-probe`).
    Answer,
}

/// Slots that a primary may have.
pub const SLOTS_MAX: u16 = 1024;

/// How many new workers a reload starts at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surge {
    /// This many.
    Count(u16),
    /// This share of the slots, in percent.
    Percent(u8),
}

impl Surge {
    /// How many that is with so many slots: at least 1.
    #[must_use]
    pub fn of(self, slots: u16) -> u16 {
        let share = |percent| (u32::from(slots) * u32::from(percent)).div_ceil(100);
        let count = match self {
            Self::Count(count) => count,
            Self::Percent(percent) => u16::try_from(share(percent)).unwrap_or(u16::MAX),
        };
        count.max(1)
    }
}

/// When and how often a slot's next worker starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Second wait in a row (the first restart is at once); doubles from there.
    pub base: Duration,
    /// Longest wait.
    pub max: Duration,
    /// Crashes in a row that a slot may have before it fails.
    pub budget: u32,
    /// An exit this soon after ready, or before it, is a crash.
    pub min_uptime: Duration,
    /// Nobody ready since the start: this many failed starts end the primary.
    pub first_tries: u32,
    /// Never end because all slots failed; keep trying at `max`.
    pub stay: bool,
}

/// A set of exit statuses, 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExitCodes {
    bits: [u64; 4],
}

impl ExitCodes {
    /// The set with one more.
    #[must_use]
    pub fn with(mut self, code: u8) -> Self {
        if let Some(word) = self.bits.get_mut(usize::from(code / 64)) {
            *word |= 1 << (code % 64);
        }
        self
    }

    /// Whether exit(2) with this status is among them.
    #[must_use]
    pub fn contains(&self, status: i32) -> bool {
        let Ok(code) = u8::try_from(status) else { return false };
        self.bits.get(usize::from(code / 64)).is_some_and(|word| word & (1 << (code % 64)) != 0)
    }
}

/// When a worker has had its time, and how many clients are let in. All off by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A worker for which something is queued, and that claims and closes nothing for so long, is
    /// hung: it is ended and replaced. Zero: nobody is suspected.
    pub hung_timeout: Duration,
    /// Connections after which a worker is replaced, less up to a tenth of them.
    pub max_connections: Option<u64>,
    /// Time from ready after which a worker is replaced, less up to a tenth of it.
    pub max_lifetime: Option<Duration>,
    /// Connections of all workers together, and what the primary holds of them.
    pub max_total: Option<u32>,
    /// Clients that come when others have waited for so long are reset.
    pub max_queue_wait: Option<Duration>,
    /// With `max_queue_wait`: clients that wait in the primary's hands at most. At least 1.
    pub waiting_max: u16,
}

impl Limits {
    /// Nothing is limited.
    pub const NONE: Self = Self {
        hung_timeout: Duration::ZERO,
        max_connections: None,
        max_lifetime: None,
        max_total: None,
        max_queue_wait: None,
        waiting_max: 1,
    };
}

/// Everything the core must know before its first event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// How many slots there are at the start, and after a reload that brings another number than the
    /// last one did. At least 1.
    pub slots: u16,
    /// How to deal on listeners that were not opened yet. Each has its own, which
    /// [`Event::ListenerOpened`](crate::event::Event::ListenerOpened) brings: either all of them deal, or
    /// all are of this policy.
    pub policy: Policy,
    /// Largest window: queued connections a worker may have. At least 1.
    pub queue_limit: u16,
    /// Largest number of active connections of a worker.
    pub max_active: Option<u32>,
    /// Hung workers, recycling, admission.
    pub limits: Limits,
    /// A queued connection older than this makes its worker late.
    pub stall_after: Duration,
    /// How long a fresh worker's share rises. Zero: off.
    pub slow_start: Duration,
    /// When a worker is ready.
    pub ready: ReadyRule,
    /// A worker that is not ready by then is killed.
    pub ready_timeout: Duration,
    /// A worker is ready only when it has answered a request of the primary's, too.
    pub ready_probe: ProbeRule,
    /// How long a worker that drains while others go on may finish its connections before the
    /// stop-signal comes anyway.
    pub drain_timeout: Duration,
    /// The same while everything stops.
    pub graceful_timeout: Duration,
    /// How long after the stop-signal KILL comes.
    pub kill_after: Duration,
    /// Send the stop-signal first: the program drains itself.
    pub stop_signal_first: bool,
    /// A reload starts at most this many new workers at a time.
    pub max_surge: Surge,
    /// How long the first new workers of a reload, and at its end all of them, are watched before the
    /// reload goes on. Zero: not at all.
    pub soak: Duration,
    /// Replaced workers that may finish their connections at the same time; beyond it the oldest is
    /// told to end. `None`: twice as many as there are slots.
    pub max_draining: Option<u16>,
    /// `ip`: a slot takes at most this many thousandths of the average load (1250 = 1.25 ×).
    pub sticky_bound: Option<u32>,
    /// `ip`: the key of the hash, the same over restarts of the primary.
    pub sticky_key: [u64; 2],
    /// Restarts.
    pub restart: RestartPolicy,
    /// A worker that exits with one of these means it: its slot stays down.
    pub stop_exit_codes: ExitCodes,
    /// Seed of the jitter.
    pub seed: u64,
}
