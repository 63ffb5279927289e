//! A table to play at: a shell without sockets, workers without processes, a clock that is a number.
//!
//! Owns everything that the core must not: connections (each with a serial number, so that a lost or
//! doubled one is found), queues, pages, doorbells, the rescue's delays. Does what the primary's
//! loop does, in the same order. Checks at every step what must hold at every step; a violation is
//! a panic that says when it happened.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a table fails its test by panicking"
)]
#![allow(clippy::struct_excessive_bools, reason = "habits are independent of each other")]

pub(crate) mod dice;
pub(crate) mod players;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use croupier_core::Core;
use croupier_core::config::{
    Config, ExitCodes, Limits, Policy, ProbeRule, ReadyRule, RestartPolicy, Surge,
};
use croupier_core::event::{
    Action, Arrival, Client, ConnId, Event, ExitStatus, Generation, ListenerId, Load, Loads,
    Outcome, Report, Scale, SendFailure, SignalKind, SlotId, TakeBackReason, Whose, WorkerId,
};
use croupier_core::time::Now;

use self::dice::Dice;
use self::players::{Conn, Habit, Honesty, Player, Process};

pub(crate) const US: u64 = 1_000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SEC: u64 = 1_000_000_000;

/// Actions that one event may lead to. All connections in hand may be placed or refused, and every
/// worker may get a few words.
const ACTIONS_MAX: usize = 1200;
/// Turns of the loop in which the clock does not move.
const TURNS_AT_ONCE_MAX: u32 = 1000;
/// Connections accepted from one listener in a turn, as in the shell.
const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Cost of a rescue, and how long it may take at most.
const RESCUE: u64 = 50 * US;
const RESCUE_DEADLINE: u64 = 100 * MS;

pub(crate) fn config(slots: u16, policy: Policy) -> Config {
    Config {
        slots,
        policy,
        queue_limit: 64,
        max_active: None,
        limits: Limits::NONE,
        stall_after: Duration::from_millis(100),
        slow_start: Duration::ZERO,
        ready: ReadyRule::Listen,
        ready_timeout: Duration::from_secs(60),
        ready_probe: ProbeRule::None,
        drain_timeout: Duration::from_secs(8),
        graceful_timeout: Duration::from_secs(8),
        kill_after: Duration::from_secs(2),
        stop_signal_first: false,
        max_surge: Surge::Count(1),
        soak: Duration::from_secs(1),
        max_draining: Some(16),
        sticky_bound: None,
        sticky_key: [1, 2],
        restart: RestartPolicy {
            base: Duration::from_millis(100),
            max: Duration::from_secs(15),
            budget: 16,
            min_uptime: Duration::from_secs(1),
            first_tries: 3,
            stay: false,
        },
        stop_exit_codes: ExitCodes::default(),
        seed: 1,
    }
}

/// What happens at a time of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A forked child runs its program, or cannot.
    Exec(u32),
    /// A worker's process does its next thing.
    Player(u32),
    /// One of a worker's connections is served.
    Served { worker: u32, serial: u64 },
    /// The rescue of a worker's queue has ended.
    Rescued { worker: u32, max: u32, serial: u64 },
    /// The rescue is given up.
    RescueOverdue { worker: u32, serial: u64 },
    /// KILL has done its work on the main process.
    Killed(u32),
    /// … and on everybody else.
    Buried(u32),
    /// Nothing: an hour strikes for a test.
    Strike,
}

#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// How its clients are dealt; `None`: as the configuration says.
    pub(crate) policy: Option<Policy>,
    pub(crate) waiting: VecDeque<Conn>,
    pub(crate) armed: bool,
    pub(crate) pending: bool,
    pub(crate) accepted: u64,
}

/// The shell's half: what the core may read.
#[derive(Debug, Default)]
pub(crate) struct Room {
    pub(crate) players: BTreeMap<u32, Player>,
    key: [u64; 2],
    /// How clients of each listener are dealt, also when it is closed.
    policies: BTreeMap<u16, Policy>,
}

impl Room {
    fn mark(&self, client: Client) -> u16 {
        croupier_core::mark(client, self.key)
    }

    /// Whether a connection's client sticks to its worker.
    pub(crate) fn sticks(&self, conn: &Conn) -> bool {
        self.policies.get(&conn.listener.0) == Some(&Policy::Ip)
    }
}

impl Loads for Room {
    fn load(&self, worker: WorkerId) -> Load {
        self.players.get(&worker.0).map(Player::load).unwrap_or_default()
    }

    fn queued_exact(&self, worker: WorkerId) -> Option<u32> {
        self.players.get(&worker.0).map(|player| u32::try_from(player.queue.len()).unwrap())
    }

    fn lacks_cpu(&self, worker: WorkerId) -> bool {
        self.players.get(&worker.0).is_some_and(|player| player.habit.lacks_cpu)
    }

    fn holds(&self, worker: WorkerId, mark: u16) -> bool {
        let Some(player) = self.players.get(&worker.0) else { return false };
        let noted = |conn: &&Conn| self.sticks(conn) && self.mark(conn.client) == mark;
        let open = player.active.iter().any(|conn| noted(&conn));
        open && mark != 0 && player.habit.honesty != Honesty::NoPage
    }
}

/// What a test wants to know afterwards.
#[derive(Debug, Default)]
pub(crate) struct Story {
    pub(crate) reports: Vec<(u64, Report)>,
    /// Every hand-off: when, which connection, to which worker.
    pub(crate) hand_offs: Vec<(u64, u64, u32)>,
    /// Every claim: when, which connection, by which worker.
    pub(crate) claims: Vec<(u64, u64, u32)>,
    pub(crate) taken_back: Vec<(u64, u64, u32, TakeBackReason)>,
    pub(crate) served: BTreeSet<u64>,
    pub(crate) refused: BTreeSet<u64>,
    /// Turned away because others had waited for too long: when, which.
    pub(crate) shed: BTreeSet<u64>,
    pub(crate) shed_at: Vec<(u64, u64)>,
    /// Most workers beside one for each slot, those that end because they hang not counted.
    pub(crate) most_beside: usize,
    /// In a worker's hands when it died.
    pub(crate) lost: BTreeSet<u64>,
    pub(crate) signals: Vec<(u64, u32, SignalKind)>,
    pub(crate) kills: Vec<(u64, u32)>,
    pub(crate) probes: Vec<(u64, u32)>,
    /// Requests that a starting worker had to answer.
    pub(crate) checks: Vec<(u64, u32)>,
    /// Workers that were told that nothing more comes.
    pub(crate) dismissed: Vec<(u64, u32)>,
    /// Connections dealt to a worker that leaves, because their client has more there.
    pub(crate) kept: u64,
    pub(crate) adopted: Vec<(u64, SlotId, bool)>,
    pub(crate) turns: u64,
    pub(crate) outcome: Option<(u64, Outcome)>,
}

type Habits = Box<dyn FnMut(SlotId, WorkerId, &mut Dice) -> Habit>;

pub(crate) struct Table {
    pub(crate) core: Core,
    pub(crate) config: Config,
    pub(crate) now: u64,
    pub(crate) room: Room,
    pub(crate) listeners: BTreeMap<u16, Backlog>,
    pub(crate) story: Story,
    pub(crate) dice: Dice,
    /// What kind of worker sits down next.
    pub(crate) habits: Habits,
    /// Chance, in thousandths, that a send finds no room in the kernel.
    pub(crate) full_permille: u64,
    /// When a send last found no room.
    full_at: u64,
    /// Chance, in thousandths, that a worker runs just before its doorbell is set.
    pub(crate) race_permille: u64,
    /// All listeners are for one of the program's: what may be taken back stands behind what may not.
    pub(crate) one_queue: bool,
    /// The process does not run: nothing happens in it until then.
    pub(crate) asleep_until: u64,
    pub(crate) connections: u64,
    /// Connections that the shell holds, by `ConnId`.
    conns: Vec<Option<(Conn, ListenerId)>>,
    free: Vec<u32>,
    due: BinaryHeap<Reverse<(u64, u64, Due)>>,
    order: u64,
    inbox: VecDeque<Event>,
    awake: bool,
    turns_at_once: (u64, u32),
    taking: BTreeMap<u32, u64>,
    /// The listener that was accepted from last.
    last_accepted: u16,
    bells_set: bool,
    bell_at: Option<u64>,
    stopping: bool,
    forgotten: BTreeSet<u32>,
    /// Workers whose program could not be executed: they are forgotten already.
    never_ran: BTreeSet<u32>,
    /// Somebody was said to have too much memory.
    pub(crate) outgrow: bool,
    /// A page did not say what was so, and a connection from then may be left.
    misled: bool,
    probe_serials: BTreeSet<u64>,
    /// Slots that the operator stopped, or whose worker ended for good.
    pub(crate) down: BTreeSet<u16>,
    /// The answers that are awaited: by the connection, of whom.
    check_serials: BTreeMap<u64, u32>,
    /// What the next reload brings, and what goes back in force when it fails.
    next_config: Option<Config>,
    config_before: Option<Config>,
    /// More than `max_total`, as that was more, or nothing, a moment ago.
    too_many: usize,
}

impl Table {
    pub(crate) fn new(config: Config, seed: u64) -> Self {
        let start = SEC;
        let mut table = Self {
            core: Core::new(config, Now(start)),
            config,
            now: start,
            room: Room { key: config.sticky_key, ..Room::default() },
            listeners: BTreeMap::new(),
            story: Story::default(),
            dice: Dice::new(seed),
            habits: Box::new(|_, _, _| Habit::default()),
            full_permille: 0,
            full_at: 0,
            race_permille: 0,
            one_queue: false,
            asleep_until: 0,
            connections: 0,
            conns: Vec::new(),
            free: Vec::new(),
            due: BinaryHeap::new(),
            order: 0,
            inbox: VecDeque::new(),
            awake: true,
            turns_at_once: (0, 0),
            taking: BTreeMap::new(),
            last_accepted: u16::MAX,
            bells_set: false,
            bell_at: None,
            stopping: false,
            forgotten: BTreeSet::new(),
            never_ran: BTreeSet::new(),
            outgrow: false,
            misled: false,
            probe_serials: BTreeSet::new(),
            down: BTreeSet::new(),
            check_serials: BTreeMap::new(),
            next_config: None,
            config_before: None,
            too_many: 0,
        };
        table.open(0);
        table
    }

    /// With listeners of these policies.
    pub(crate) fn with(config: Config, policies: &[Policy]) -> Self {
        let mut table = Self::new(config, 1);
        // The first one opens when the loop first turns.
        table.inbox.clear();
        for (policy, listener) in policies.iter().zip(0..) {
            table.open_as(listener, Some(*policy));
        }
        table
    }

    /// Workers of one kind.
    pub(crate) fn of(config: Config, habit: Habit) -> Self {
        let mut table = Self::new(config, 1);
        table.habits = Box::new(move |_, _, _| habit.clone());
        table
    }

    /// A declared listener.
    pub(crate) fn open(&mut self, listener: u16) {
        self.open_as(listener, None);
    }

    pub(crate) fn open_as(&mut self, listener: u16, policy: Option<Policy>) {
        self.listeners.insert(listener, Backlog { policy, armed: true, ..Backlog::default() });
        let policy = policy.unwrap_or(self.config.policy);
        self.room.policies.insert(listener, policy);
        let listener = ListenerId(listener);
        self.inbox.push_back(Event::ListenerOpened { listener, declared: true, policy });
        self.awake = true;
    }

    /// How clients of a listener are dealt, also when it is closed.
    pub(crate) fn policy_of(&self, listener: ListenerId) -> Policy {
        self.room.policies.get(&listener.0).copied().unwrap_or(self.config.policy)
    }

    /// A client connects.
    pub(crate) fn client(&mut self, client: Client) -> u64 {
        self.client_on(0, client)
    }

    pub(crate) fn client_on(&mut self, listener: u16, client: Client) -> u64 {
        self.connections += 1;
        let serial = self.connections;
        let came = self.now;
        let conn = Conn { serial, client, listener: ListenerId(listener), service: None, came };
        let Some(backlog) = self.listeners.get_mut(&listener) else {
            // Nobody listens: the kernel refuses, the primary never hears of it.
            self.story.refused.insert(serial);
            return serial;
        };
        backlog.waiting.push_back(conn);
        if backlog.armed {
            backlog.pending = true;
            self.awake = true;
        }
        serial
    }

    /// A client whose request takes this long.
    pub(crate) fn client_taking(&mut self, service: u64) -> u64 {
        let serial = self.client(Client::Local);
        if let Some(conn) = self.listeners.get_mut(&0).and_then(|b| b.waiting.back_mut()) {
            conn.service = Some(service);
        }
        serial
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.inbox.push_back(event);
        self.awake = true;
    }

    pub(crate) fn strike_at(&mut self, at: u64) {
        self.schedule(at, Due::Strike);
    }

    fn schedule(&mut self, at: u64, due: Due) {
        self.order += 1;
        self.due.push(Reverse((at.max(self.now), self.order, due)));
    }

    /// Lets time pass.
    pub(crate) fn run_for(&mut self, ns: u64) {
        let end = self.now + ns;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until something is so; whether it came to be within `limit`.
    pub(crate) fn run_until(&mut self, limit: u64, mut is_so: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if is_so(self) {
                return true;
            }
            if !self.step(end) {
                self.now = end;
                return is_so(self);
            }
        }
    }

    pub(crate) fn all_ready(&self) -> bool {
        usize::from(self.core.ready_count()) == usize::from(self.config.slots) - self.down.len()
    }

    pub(crate) fn start(&mut self) {
        assert!(self.run_until(10 * SEC, Self::all_ready), "not ready: {}", self.picture());
    }

    pub(crate) fn start_within(&mut self, limit: u64) {
        // Whoever has just died is known to be dead after this.
        self.run_for(MS);
        assert!(self.run_until(limit, Self::all_ready), "not ready: {}", self.picture());
    }

    /// Lets a worker's process run.
    pub(crate) fn kick(&mut self, worker: u32) {
        self.schedule(self.now, Due::Player(worker));
    }

    /// Nothing of any connection is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.listeners.values().all(|backlog| backlog.waiting.is_empty())
            && self.conns.iter().all(Option::is_none)
            && self.room.players.values().all(|player| {
                player.active.is_empty()
                    && player.queue.iter().all(|conn| self.probe_serials.contains(&conn.serial))
            })
    }

    /// One thing that happens before `end`. False: nothing more does.
    fn step(&mut self, end: u64) -> bool {
        if self.story.outcome.is_some() {
            return false;
        }
        if self.awake && self.asleep_until <= self.now {
            self.turn();
            return true;
        }
        let timer = if self.awake {
            Some(self.asleep_until)
        } else {
            let core = self.core.poll_timeout().map(|Now(at)| at);
            [core, self.bell_at].into_iter().flatten().min().map(|at| at.max(self.asleep_until))
        };
        let event = self.due.peek().map(|Reverse((at, _, _))| *at);
        let next = [timer, event].into_iter().flatten().min();
        let Some(next) = next.filter(|at| *at <= end) else { return false };
        if next > self.now {
            self.now = next;
        }
        if event.is_some_and(|at| at <= self.now) {
            if let Some(Reverse((_, _, due))) = self.due.pop() {
                self.happen(due);
            }
        } else {
            self.awake = true;
        }
        true
    }

    /// One turn of the primary's loop.
    fn turn(&mut self) {
        self.awake = false;
        self.story.turns += 1;
        let (at, count) = self.turns_at_once;
        self.turns_at_once = if at == self.now { (at, count + 1) } else { (self.now, 0) };
        assert!(count < TURNS_AT_ONCE_MAX, "the loop spins at {}: {:?}", self.now, self.picture());
        self.handle(Event::Woke);
        while let Some(event) = self.inbox.pop_front() {
            // The shell tells all that a rescue brought before it acts again.
            let more_to_tell = matches!(event, Event::TakenBack { .. });
            self.handle(event);
            if !more_to_tell {
                self.settle();
            }
        }
        self.settle();
        let mut keys: Vec<u16> = self.listeners.keys().copied().collect();
        // Who had the last one is asked last, as in the shell.
        let first = keys.iter().position(|key| *key > self.last_accepted).unwrap_or(0);
        keys.rotate_left(first);
        for key in keys {
            let before = self.listeners.get(&key).map(|backlog| backlog.accepted);
            self.accept_some(key);
            if self.listeners.get(&key).map(|backlog| backlog.accepted) != before {
                self.last_accepted = key;
            }
        }
        self.settle();
        self.check_bells();
        let clients_wait = self.bells_set
            && !self.core.is_paused()
            && self.listeners.values().any(|b| b.pending && !b.armed);
        self.bell_at = clients_wait.then(|| self.now + 20 * MS);
        // It looks at every connection; a lost one stays lost, so some turns are enough.
        let quiet = self.is_quiet();
        self.misled = !self.room.players.values().all(|p| p.reliable) || self.misled && !quiet;
        if self.story.turns.is_multiple_of(8) || quiet {
            self.check();
        }
    }

    /// Tells the core; counts what it wants done.
    fn handle(&mut self, event: Event) {
        self.core.handle(event, Now(self.now), &self.room);
        if self.stopping {
            return;
        }
        if let Event::StopSlotAsked { slot: SlotId(slot) } = event
            && slot < self.config.slots
        {
            self.down.insert(slot);
        } else if let Event::StartAsked { slot: SlotId(slot) } = event {
            self.down.remove(&slot);
        }
    }

    fn settle(&mut self) {
        let mut actions = 0;
        while let Some(action) = self.core.poll_action() {
            actions += 1;
            assert!(actions < ACTIONS_MAX, "{} at {}: no end of actions", actions, self.now);
            self.perform(action);
        }
    }

    fn has_room(&mut self, key: u16) -> bool {
        let listener = ListenerId(key);
        if self.core.wants_accept(listener, Now(self.now), &self.room) {
            self.bells_set = false;
            return true;
        }
        self.settle();
        self.core.wants_accept(listener, Now(self.now), &self.room)
    }

    fn accept_some(&mut self, key: u16) {
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            if !self.listeners.get(&key).is_some_and(|backlog| backlog.pending) {
                return;
            }
            if !self.has_room(key) {
                if let Some(backlog) = self.listeners.get_mut(&key) {
                    backlog.armed = false;
                }
                return;
            }
            let Some(backlog) = self.listeners.get_mut(&key) else { return };
            if let Some(conn) = backlog.waiting.pop_front() {
                backlog.accepted += 1;
                let client = conn.client;
                let conn = self.keep(conn, ListenerId(key));
                self.handle(Event::Accepted(Arrival { conn, listener: ListenerId(key), client }));
            } else {
                backlog.pending = false;
                backlog.armed = true;
                self.handle(Event::BacklogEmpty { listener: ListenerId(key) });
            }
            self.settle();
            if self.core.gives_way(ListenerId(key)) {
                break;
            }
        }
        if let Some(backlog) = self.listeners.get_mut(&key) {
            backlog.armed = true;
            self.awake |= backlog.pending;
        }
    }

    fn keep(&mut self, conn: Conn, listener: ListenerId) -> ConnId {
        let key = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            u32::try_from(self.conns.len() - 1).unwrap()
        });
        self.conns[key as usize] = Some((conn, listener));
        ConnId(key)
    }

    fn release(&mut self, conn: ConnId) -> (Conn, ListenerId) {
        let held = self.conns.get_mut(conn.0 as usize).and_then(Option::take);
        self.free.push(conn.0);
        held.unwrap_or_else(|| panic!("{conn:?} is not held at {}", self.now))
    }

    #[allow(clippy::too_many_lines, clippy::cognitive_complexity, reason = "one arm an action")]
    fn perform(&mut self, action: Action) {
        match action {
            Action::HandOff { conn, worker } => self.hand_off(conn, worker),
            Action::Refuse { conn } => {
                let (gone, _) = self.release(conn);
                assert!(self.stopping || self.listeners.is_empty(), "refused at {}", self.now);
                self.end_of(&gone, |story| &mut story.refused);
                self.handle(Event::Refused { conn });
            }
            Action::Shed { conn } => {
                let (gone, listener) = self.release(conn);
                self.check_shed(&gone, listener);
                self.story.shed_at.push((self.now, gone.serial));
                self.end_of(&gone, |story| &mut story.shed);
                self.handle(Event::Refused { conn });
            }
            Action::Ring { worker, at_claim, on_close } => {
                self.bells_set |= at_claim != 0 || on_close;
                // The race that the doorbell's rule is about: a claim just before the word is there.
                if self.dice.permille(self.race_permille) {
                    self.play(worker.0);
                }
                if let Some(player) = self.room.players.get_mut(&worker.0) {
                    player.ring_at = at_claim;
                    player.ring_on_close = on_close;
                }
            }
            Action::TakeBack { worker, max, whose, why } => {
                self.take_back(worker, max, whose, why);
            }
            Action::Probe { worker, listener } => {
                self.connections += 1;
                let serial = self.connections;
                self.probe_serials.insert(serial);
                self.story.probes.push((self.now, worker.0));
                let (client, came) = (Client::Local, self.now);
                let probe = Conn { serial, client, listener, service: Some(US), came };
                let sent = self.room.players.get_mut(&worker.0).is_some_and(|player| {
                    let listens = player.listens.contains(&listener.0);
                    if listens {
                        player.queue.push_back(probe);
                        player.sent += 1;
                    }
                    listens
                });
                self.nudge(worker.0);
                self.handle(if sent {
                    Event::Probed { worker }
                } else {
                    Event::ProbeFailed { worker }
                });
            }
            Action::Check { worker, listener } => self.ask_check(worker, listener),
            Action::Disconnect { worker } => {
                let twice = self.story.dismissed.iter().any(|(_, who)| *who == worker.0);
                assert!(!twice, "{worker:?} was told twice at {}", self.now);
                let player = self.room.players.get(&worker.0).expect("it is not forgotten");
                assert!(player.draining, "{worker:?} does not drain at {}", self.now);
                self.story.dismissed.push((self.now, worker.0));
            }
            Action::TellDraining { worker, draining } => {
                let now = self.now;
                if let Some(player) = self.room.players.get_mut(&worker.0) {
                    player.draining = draining;
                    player.drains_since = Some(now);
                }
            }
            Action::Signal { worker, signal } => {
                self.story.signals.push((self.now, worker.0, signal));
                if let Some(player) = self.room.players.get_mut(&worker.0) {
                    player.aborting |= signal == SignalKind::Abort;
                }
                if self.room.players.get(&worker.0).is_some_and(|player| !player.habit.stubborn) {
                    self.schedule(self.now + MS, Due::Killed(worker.0));
                }
            }
            Action::Spawn { slot, worker, generation } => self.spawn(slot, worker, generation),
            Action::KillFamily { worker } => {
                self.story.kills.push((self.now, worker.0));
                if let Some(player) = self.room.players.get_mut(&worker.0) {
                    player.condemned = true;
                    self.schedule(self.now + 100 * US, Due::Killed(worker.0));
                    self.schedule(self.now + MS, Due::Buried(worker.0));
                } else {
                    self.handle(Event::FamilyGone { worker });
                }
            }
            Action::Forget { worker } => {
                let gone = self.room.players.remove(&worker.0);
                if self.never_ran.remove(&worker.0) {
                    return;
                }
                let gone = gone.unwrap_or_else(|| panic!("{worker:?} was forgotten twice"));
                assert!(!gone.is_running(), "{worker:?} is forgotten but runs");
                assert!(
                    self.stopping || gone.queue.is_empty(),
                    "{worker:?} is forgotten with {} queued at {}",
                    gone.queue.len(),
                    self.now
                );
                for conn in &gone.queue {
                    self.end_of(conn, |story| &mut story.refused);
                }
                self.forgotten.insert(worker.0);
            }
            Action::QuietListener { listener } => {
                if let Some(backlog) = self.listeners.get_mut(&listener.0) {
                    backlog.pending = true;
                    self.awake = true;
                }
            }
            Action::CloseListener { listener } => {
                if let Some(backlog) = self.listeners.remove(&listener.0) {
                    for conn in backlog.waiting {
                        self.end_of(&conn, |story| &mut story.refused);
                    }
                    self.handle(Event::ListenerClosed { listener });
                }
            }
            Action::AdoptSockets { slot, adopt } => {
                self.story.adopted.push((self.now, slot, adopt))
            }
            Action::Finish(outcome) => {
                assert!(self.story.outcome.is_none(), "finished twice");
                self.story.outcome = Some((self.now, outcome));
            }
            Action::Report(report) => {
                if let Report::SlotDone { slot, .. } = report {
                    self.down.insert(slot.0);
                }
                if let Report::Scaled { to, .. } = report {
                    self.config.slots = to;
                    self.down.retain(|slot| *slot < to);
                }
                self.note_config(report);
                self.check_hung(report);
                self.stopping |= report == Report::AllDone;
                self.story.reports.push((self.now, report));
            }
        }
    }

    /// What is in force, as far as an outsider can tell.
    fn note_config(&mut self, report: Report) {
        let slots = self.config.slots;
        if let Report::ReloadBegan { .. } = report {
            let next = self.next_config.take();
            self.config_before = next.map(|next| std::mem::replace(&mut self.config, next));
        } else if let Report::ReloadFailed { .. } = report {
            self.config = self.config_before.take().unwrap_or(self.config);
        } else {
            return;
        }
        self.config.slots = slots;
        self.too_many = self.open_at_workers() + self.in_hand();
    }

    /// Among them what no kernel would queue, or was taken back: let in already, and dealt later.
    fn in_hand(&self) -> usize {
        self.conns.iter().flatten().count()
    }

    fn open_at_workers(&self) -> usize {
        self.room.players.values().map(|player| player.queue.len() + player.active.len()).sum()
    }

    /// The request of `--ready-probe`, on its way to a worker that starts.
    fn ask_check(&mut self, worker: WorkerId, listener: ListenerId) {
        // What was asked at a listener that was closed since is not awaited any more.
        self.check_serials.retain(|_, who| *who != worker.0);
        self.connections += 1;
        let serial = self.connections;
        self.story.checks.push((self.now, worker.0));
        let came = self.now;
        let request = Conn { serial, came, client: Client::Local, listener, service: Some(US) };
        self.probe_serials.insert(serial);
        match self.room.players.get_mut(&worker.0) {
            Some(player) if player.listens.contains(&listener.0) => {
                player.queue.push_back(request);
                player.sent += 1;
                self.check_serials.insert(serial, worker.0);
                self.nudge(worker.0);
                self.handle(Event::CheckSent { worker });
            }
            Some(_) | None => self.handle(Event::Checked { worker, passed: false }),
        }
    }

    /// The request was served: by the worker that it was for, or by one that got it from the dead.
    fn answer_check(&mut self, serial: u64, by: u32) {
        let Some(worker) = self.check_serials.remove(&serial) else { return };
        let passed = self.room.players.get_mut(&by).is_some_and(|player| {
            let bad = player.habit.bad_answers;
            player.habit.bad_answers = bad.saturating_sub(1);
            bad == 0
        });
        if let Some(player) = self.room.players.get_mut(&worker) {
            player.was_checked |= passed;
            // It is asked when all else is there.
            player.was_ready |= passed;
        }
        self.tell(Event::Checked { worker: WorkerId(worker), passed });
    }

    /// Workers that leave and must keep this client, as far as an outsider can tell.
    fn keepers_of(&self, client: Client, listener: ListenerId) -> Vec<u32> {
        let mark = self.room.mark(client);
        let (now, max_active) = (self.now, self.config.max_active);
        let keep_for = u64::try_from(self.config.drain_timeout.as_nanos()).unwrap() / 4 * 3;
        let states: BTreeMap<u32, &str> =
            self.core.workers().map(|view| (view.worker.0, view.state)).collect();
        let keeps = |player: &&Player| {
            let state = states.get(&player.id.0).copied().unwrap_or("");
            let leaves = match player.drains_since {
                None => state == "parked",
                // The very moment of the end may be seen either way.
                Some(since) => state == "draining" && now + MS < since + keep_for,
            };
            let told = self.story.signals.iter().any(|(_, who, _)| *who == player.id.0);
            let load = player.queue.len() + player.active.len();
            let room = player.queue.len() < 250 && max_active.is_none_or(|max| load < max as usize);
            // Of one that lies the core may think that it has no room.
            let lies = !player.habit.honest();
            let listens = player.listens.contains(&listener.0);
            leaves && !told && room && !lies && player.is_running() && listens
        };
        let all = self.room.players.values().filter(keeps);
        all.filter(|p| self.room.holds(p.id, mark)).map(|p| p.id.0).collect()
    }

    /// A client that has something open at a worker that leaves goes on to it.
    fn check_kept(&mut self, (client, listener): (Client, ListenerId), worker: u32) {
        // A worker that plays while the loop decides, or a kernel that is full, blurs what was known.
        let blurred = self.race_permille > 0 || self.now < self.full_at + 50 * MS;
        if self.policy_of(listener) != Policy::Ip || self.stopping {
            return;
        }
        let keepers = self.keepers_of(client, listener);
        let right = keepers.is_empty() || keepers.contains(&worker);
        assert!(
            blurred || right,
            "{client:?} has connections open at {keepers:?} and is dealt to {worker} at {}: {}",
            self.now,
            self.picture()
        );
        self.story.kept += u64::from(keepers.contains(&worker));
    }

    fn hand_off(&mut self, conn: ConnId, worker: WorkerId) {
        let (held, listener) = self.release(conn);
        let sticks = self.policy_of(listener) == Policy::Ip;
        let kept = sticks && self.room.holds(worker, self.room.mark(held.client));
        self.check_kept((held.client, listener), worker.0);
        let full = self.dice.permille(self.full_permille);
        if full {
            self.full_at = self.now;
        }
        let limit = if sticks { 256 } else { usize::from(self.config.queue_limit) };
        let (max_active, stopping, now) = (self.config.max_active, self.stopping, self.now);
        let why = match self.room.players.get_mut(&worker.0) {
            None => panic!("{conn:?} is handed to {worker:?}, which is forgotten, at {now}"),
            Some(player) if !player.listens.contains(&listener.0) => SendFailure::Broken,
            Some(_) if full => SendFailure::Full,
            // The kernel's own bound, for whoever says that nothing is queued.
            Some(player) if !player.habit.honest() && player.queue.len() >= 2 * limit => {
                SendFailure::Full
            }
            Some(player) => {
                assert!(!player.condemned, "handed to {worker:?}, which is to die, at {now}");
                assert!(player.was_ready, "handed to {worker:?} before it was ready, at {now}");
                assert!(
                    stopping || kept || !player.draining,
                    "handed to {worker:?}, which drains, at {now}"
                );
                let probes = &self.probe_serials;
                let theirs = player.queue.iter().filter(|conn| !probes.contains(&conn.serial));
                let queued = theirs.count();
                // Who says that it has claimed everything gets a window more, until it is found out.
                let limit = if player.habit.honest() { limit } else { 4 * limit };
                assert!(queued <= limit, "{worker:?} has {queued} queued");
                assert!(!player.aborting, "handed to {worker:?}, which hangs, at {now}");
                if let (Some(max), true) = (max_active, player.habit.honest()) {
                    let load = player.queue.len() + player.active.len();
                    assert!(load < max as usize, "{worker:?} has load {load} of {max} at {now}");
                }
                self.story.hand_offs.push((now, held.serial, worker.0));
                player.queue.push_back(held);
                player.sent += 1;
                self.nudge(worker.0);
                return self.handle(Event::HandedOff { conn, worker });
            }
        };
        self.free.retain(|key| *key != conn.0);
        self.conns[conn.0 as usize] = Some((held, listener));
        self.handle(Event::HandOffFailed { conn, worker, why });
    }

    fn take_back(&mut self, worker: WorkerId, max: u32, whose: Whose, why: TakeBackReason) {
        let gone = Event::TakeBackDone { worker, removed: 0, lost: 0, empty: true };
        let Some(player) = self.room.players.get_mut(&worker.0) else { return self.handle(gone) };
        assert!(
            !self.taking.contains_key(&worker.0),
            "two take-backs of {worker:?} at {}",
            self.now
        );
        assert!(max > 0 && max <= 256, "a take-back of {max}");
        if why == TakeBackReason::Steal {
            assert!(!player.queue.is_empty(), "a steal from an empty queue at {}", self.now);
        }
        player.taking = (whose, why);
        self.order += 1;
        let serial = self.order;
        let holds_lock = player.habit.holds_lock && player.is_running();
        self.taking.insert(worker.0, serial);
        if holds_lock {
            self.schedule(
                self.now + RESCUE_DEADLINE,
                Due::RescueOverdue { worker: worker.0, serial },
            );
        } else {
            self.schedule(self.now + RESCUE, Due::Rescued { worker: worker.0, max, serial });
        }
    }

    fn spawn(&mut self, slot: SlotId, worker: WorkerId, generation: Generation) {
        // A start and its revocation may come out together: then KILL follows.
        let revoked = self.core.workers().any(|w| w.worker == worker && w.state == "killing");
        let down = self.down.contains(&slot.0);
        assert!(!down || revoked, "slot {} is to stay down at {}", slot.0, self.now);
        // Two generations may be in one slot, two workers of one generation only while one drains,
        // hangs, or has had its time.
        let limits = self.config.limits;
        let recycles = limits.max_connections.is_some() || limits.max_lifetime.is_some();
        let recycles = recycles || self.outgrow;
        let occupied = self.room.players.values().filter(|player| {
            player.slot == slot
                && player.generation == generation
                && player.is_running()
                && !player.aborting
                && !player.draining
        });
        let most = usize::from(recycles);
        assert!(occupied.count() <= most, "slot {} is started twice at {}", slot.0, self.now);
        let habit = (self.habits)(slot, worker, &mut self.dice);
        let (fails, exec_at) = (habit.spawn_fails, self.now + habit.exec);
        let up_at = exec_at.max(self.now + habit.start);
        self.room.players.insert(worker.0, Player::new(worker, slot, generation, habit));
        self.schedule(exec_at, Due::Exec(worker.0));
        if !fails {
            self.schedule(up_at, Due::Player(worker.0));
        }
        let here = self.room.players.values().filter(|p| p.is_running() && !p.aborting).count();
        let beside = here.saturating_sub(usize::from(self.config.slots));
        self.story.most_beside = self.story.most_beside.max(beside);
    }

    /// What came of a fork is heard before everything else that comes of the worker.
    fn hear_exec(&mut self, worker: u32) {
        if let Some(player) = self.room.players.get_mut(&worker)
            && !std::mem::replace(&mut player.executes, true)
        {
            self.tell(Event::Spawned { worker: WorkerId(worker) });
        }
    }

    fn exec(&mut self, worker: u32) {
        let fails = |player: &Player| player.habit.spawn_fails && player.is_running();
        if self.room.players.get(&worker).is_some_and(fails) {
            self.room.players.remove(&worker);
            self.never_ran.insert(worker);
            return self.tell(Event::SpawnFailed { worker: WorkerId(worker) });
        }
        self.hear_exec(worker);
    }

    /// Something is new for a worker: it will look at its queue.
    fn nudge(&mut self, worker: u32) {
        let at = self.now;
        if let Some(player) = self.room.players.get_mut(&worker)
            && !player.nudged
        {
            player.nudged = true;
            let after = player.habit.latency;
            self.schedule(at + after, Due::Player(worker));
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Exec(worker) => self.exec(worker),
            Due::Player(worker) => self.play(worker),
            Due::Served { worker, serial } => {
                let Some(player) = self.room.players.get_mut(&worker) else { return };
                if let Some(at) = player.active.iter().position(|conn| conn.serial == serial) {
                    let conn = player.active.swap_remove(at);
                    player.closed += 1;
                    let rings = std::mem::take(&mut player.ring_on_close);
                    self.awake |= rings && !player.habit.bell_lost;
                    self.answer_check(serial, worker);
                    self.end_of(&conn, |story| &mut story.served);
                    self.nudge(worker);
                }
            }
            Due::Rescued { worker, max, serial } => self.rescued(worker, max, serial),
            Due::RescueOverdue { worker, serial } => {
                if self.taking.get(&worker) == Some(&serial) {
                    self.taking.remove(&worker);
                    self.tell(Event::TakeBackStuck { worker: WorkerId(worker) });
                    // The results arrive all the same, when KILL has freed the lock.
                    self.schedule(self.now + 5 * MS, Due::Rescued { worker, max: 1, serial });
                }
            }
            Due::Killed(worker) => self.exit(worker, ExitStatus::Signal(9), false),
            Due::Buried(worker) => {
                if let Some(player) = self.room.players.get_mut(&worker) {
                    player.process = Process::Gone;
                    // What the dead master's children had in hand.
                    for conn in std::mem::take(&mut player.active) {
                        self.end_of(&conn, |story| &mut story.lost);
                    }
                    self.tell(Event::FamilyGone { worker: WorkerId(worker) });
                }
            }
            Due::Strike => {}
        }
    }

    fn rescued(&mut self, worker: u32, max: u32, serial: u64) {
        let id = WorkerId(worker);
        let given_up = self.taking.get(&worker) != Some(&serial);
        if !given_up {
            self.taking.remove(&worker);
        }
        let (policies, one_queue) = (self.room.policies.clone(), self.one_queue);
        let (mut conns, empty, why) = match self.room.players.get_mut(&worker) {
            None => (VecDeque::new(), true, TakeBackReason::Death),
            Some(player) => {
                let (whose, why) = player.taking;
                let stays = |conn: &Conn| {
                    whose == Whose::Loose && policies.get(&conn.listener.0) == Some(&Policy::Ip)
                };
                let mut conns = VecDeque::new();
                for conn in std::mem::take(&mut player.queue) {
                    let behind = one_queue && !player.queue.is_empty();
                    let taken = conns.len() < max as usize && !behind && !stays(&conn);
                    if taken { &mut conns } else { &mut player.queue }.push_back(conn);
                }
                player.taken += u64::try_from(conns.len()).unwrap();
                (conns, player.queue.is_empty(), why)
            }
        };
        let removed = u32::try_from(conns.len()).unwrap();
        while let Some(conn) = conns.pop_front() {
            self.story.taken_back.push((self.now, conn.serial, worker, why));
            let (client, listener) = (conn.client, conn.listener);
            let conn = self.keep(conn, listener);
            self.tell(Event::TakenBack { worker: id, arrival: Arrival { conn, listener, client } });
        }
        // The end of one that was given up must not be taken for the end of the next.
        if !given_up {
            self.tell(Event::TakeBackDone { worker: id, removed, lost: 0, empty });
        }
    }

    /// The main process of a worker ends.
    pub(crate) fn exit(&mut self, worker: u32, status: ExitStatus, orphans: bool) {
        let Some(player) = self.room.players.get_mut(&worker) else { return };
        if !player.is_running() {
            return;
        }
        self.hear_exec(worker);
        let Some(player) = self.room.players.get_mut(&worker) else { return };
        player.process = if orphans { Process::Orphans } else { Process::Zombie };
        let in_hand: Vec<Conn> = player.active.drain(..).collect();
        for conn in in_hand {
            self.end_of(&conn, |story| &mut story.lost);
        }
        self.tell(Event::Exited { worker: WorkerId(worker), status, orphans });
    }

    /// Writes the end of a connection down; a second end is a bug of somebody's.
    fn end_of(&mut self, conn: &Conn, place: impl FnOnce(&mut Story) -> &mut BTreeSet<u64>) {
        if !self.probe_serials.contains(&conn.serial) {
            let fresh = place(&mut self.story).insert(conn.serial);
            assert!(fresh, "connection {} ended twice at {}", conn.serial, self.now);
        }
    }

    /// What a worker's process does next.
    fn play(&mut self, worker: u32) {
        let now = self.now;
        self.hear_exec(worker);
        let Some(player) = self.room.players.get_mut(&worker) else { return };
        player.nudged = false;
        let mut events = Vec::new();
        let mut wake = None;
        let deeds = player.act(now);
        for listener in deeds.listens {
            player.listens.insert(listener);
            let event =
                Event::Listening { worker: WorkerId(worker), listener: ListenerId(listener) };
            events.push(event);
        }
        let unprobed = self.config.ready_probe == ProbeRule::None || player.was_checked;
        let listens = player.listens.contains(&0) || self.config.ready != ReadyRule::Listen;
        player.was_ready |= listens && unprobed;
        if deeds.says_ready {
            player.was_ready |= unprobed;
            events.push(Event::SaidReady { worker: WorkerId(worker) });
        }
        wake = deeds.wake_at.or(wake);
        let rings = deeds.rings && !player.habit.bell_lost;
        for (conn, service) in deeds.claimed {
            if !self.probe_serials.contains(&conn.serial) {
                self.story.claims.push((now, conn.serial, worker));
            }
            self.schedule(now + service, Due::Served { worker, serial: conn.serial });
        }
        self.awake |= rings;
        if let Some(at) = wake {
            self.schedule(at, Due::Player(worker));
        }
        if let Some((status, orphans)) = deeds.exits {
            self.exit(worker, status, orphans);
        }
        for event in events {
            self.tell(event);
        }
    }

    /// Before it sleeps with clients in the backlog: no worker may have passed its mark unheard.
    fn check_bells(&self) {
        // What a full kernel or a rescue holds back goes on by a timer or by the rescue's end.
        let sticks = self.room.policies.values().any(|policy| *policy == Policy::Ip);
        let shut = sticks && !self.core.all_were_ready();
        // At the total a close is waited for, and no claim.
        let full = self.config.limits.max_total.is_some();
        // Room is kept for what the dying leave, and their end wakes the primary.
        let heirs = self.core.workers().any(|worker| worker.state == "killing");
        let other_reasons =
            shut || full || heirs || self.now < self.full_at + 50 * MS || !self.taking.is_empty();
        let looks_again = self.core.poll_timeout().is_some_and(|Now(at)| at <= self.now + US);
        if self.awake
            || looks_again
            || other_reasons
            || self.listeners.values().all(|backlog| backlog.armed)
        {
            return;
        }
        // One that starts has rung for what it was asked before; now its answer is awaited.
        let asked = |id: u32| self.check_serials.values().any(|who| *who == id);
        // Nobody waits for the bell of one that is paused.
        let paused: Vec<u32> =
            self.core.workers().filter(|view| view.paused).map(|view| view.worker.0).collect();
        let alive = |player: &&Player| {
            let well = player.is_running() && !player.condemned && !asked(player.id.0);
            let well = well && !paused.contains(&player.id.0);
            well && player.listens.contains(&0)
        };
        // After one that was lost the shell looks, within 320 ms, whatever the turn was about.
        let heard = |player: &&Player| player.habit.honest() && !player.habit.bell_lost;
        for player in self.room.players.values().filter(alive).filter(heard) {
            assert!(
                player.ring_at == 0 || player.claimed < player.ring_at,
                "worker {} has passed its mark at {} and will not ring: {}",
                player.id.0,
                self.now,
                self.picture()
            );
        }
    }

    /// What must hold after every turn.
    fn check(&mut self) {
        let mut seen = BTreeMap::new();
        let mut place = |serial: u64, at: &'static str| {
            if !self.probe_serials.contains(&serial)
                && let Some(other) = seen.insert(serial, at)
            {
                panic!("connection {serial} is {other} and {at} at {}", self.now);
            }
        };
        self.listeners.values().flat_map(|b| &b.waiting).for_each(|c| place(c.serial, "waiting"));
        self.conns.iter().flatten().for_each(|(c, _)| place(c.serial, "held"));
        for player in self.room.players.values() {
            player.queue.iter().for_each(|c| place(c.serial, "queued"));
            player.active.iter().for_each(|c| place(c.serial, "active"));
        }
        let story = &self.story;
        let ended = story.served.len() + story.refused.len() + story.shed.len() + story.lost.len();
        let made = usize::try_from(self.connections).unwrap() - self.probe_serials.len();
        assert_eq!(seen.len() + ended, made, "connections are missing at {}", self.now);
        let totals = self.core.totals();
        let in_hand = self.conns.iter().flatten().count() as u64;
        let accepted: u64 = totals.accepted + self.story.taken_back.len() as u64;
        let gone = totals.handed_off + totals.refused + totals.shed;
        assert!(
            accepted >= gone && accepted - gone <= in_hand + 300,
            "{totals:?} with {in_hand} in hand"
        );
        assert_eq!(totals.shed, self.story.shed.len() as u64);
        self.check_total();
    }

    /// `max_total`: what workers have, and what is on its way to them.
    fn check_total(&mut self) {
        let Some(max) = self.config.limits.max_total else { return };
        if self.misled {
            return;
        }
        let open = self.open_at_workers();
        self.too_many = self.too_many.min(open + self.in_hand());
        let max = self.too_many.max(max as usize);
        // Probes are made by the primary, and let in nobody.
        let most = max + self.probe_serials.len().min(self.room.players.len());
        assert!(open <= most, "{open} open at {}: {}", self.now, self.picture());
    }

    /// Whoever is reset came when others of the same listener had waited for long, and still do.
    fn check_shed(&self, gone: &Conn, listener: ListenerId) {
        let wait = self.config.limits.max_queue_wait.expect("nobody else is shed");
        let wait = u64::try_from(wait.as_nanos()).unwrap();
        assert!(!self.stopping, "shed while it stops");
        let held = self.conns.iter().flatten().filter(|(_, on)| *on == listener);
        let oldest = held.map(|(conn, _)| (conn.came, conn.serial)).min();
        let (came, serial) = oldest.expect("somebody waits");
        assert!(self.now - came >= wait, "{gone:?} is shed after {} ms", (self.now - came) / MS);
        assert!(serial < gone.serial, "an older one is shed: {gone:?}");
    }

    /// Whoever is called hung was silent for the time that is in force, and there is one.
    fn check_hung(&self, report: Report) {
        let Report::Hung { worker, silent, .. } = report else { return };
        let limit = self.config.limits.hung_timeout;
        assert!(
            !limit.is_zero() && silent >= limit,
            "{worker:?} is called hung at {} after {silent:?} of {limit:?}: {}",
            self.now,
            self.picture()
        );
    }

    /// The operator stops it.
    pub(crate) fn stop(&mut self, now: bool) {
        self.stopping = true;
        self.tell(Event::StopAsked { now });
    }

    /// The operator wants nobody in a slot.
    pub(crate) fn stop_slot(&mut self, slot: u16) {
        self.tell(Event::StopSlotAsked { slot: SlotId(slot) });
    }

    /// The operator wants a worker in a slot.
    pub(crate) fn start_slot(&mut self, slot: u16) {
        self.tell(Event::StartAsked { slot: SlotId(slot) });
    }

    /// The operator wants another number of slots.
    pub(crate) fn scale(&mut self, scale: Scale) {
        self.tell(Event::ScaleAsked(scale));
    }

    /// The operator wants a slot, or all, to get nothing.
    pub(crate) fn pause(&mut self, slot: Option<u16>) {
        self.tell(Event::PauseAsked { slot: slot.map(SlotId) });
    }

    pub(crate) fn resume(&mut self, slot: Option<u16>) {
        self.tell(Event::ResumeAsked { slot: slot.map(SlotId) });
    }

    /// The operator wants a new worker in a slot.
    pub(crate) fn restart(&mut self, slot: u16) {
        self.outgrow = true;
        self.tell(Event::RestartAsked { slot: SlotId(slot) });
    }

    /// The next reload brings this.
    pub(crate) fn reconfigure(&mut self, new: Config) {
        let Config { policy, queue_limit, ready, sticky_key, seed, .. } = self.config;
        let limits = Limits { waiting_max: self.config.limits.waiting_max, ..new.limits };
        let fixed = Config { policy, queue_limit, ready, sticky_key, seed, limits, ..new };
        self.next_config = Some(fixed);
        self.core.reconfigure_at_reload(new);
    }

    /// The operator wants a new generation.
    pub(crate) fn reload(&mut self, rolling: bool) {
        self.tell(Event::ReloadAsked { rolling });
    }

    /// The shell finds that a worker has too much memory.
    pub(crate) fn outgrows(&mut self, worker: u32) {
        self.outgrow = true;
        self.tell(Event::Outgrew { worker: WorkerId(worker), bytes: 1 << 30 });
    }

    /// For messages.
    pub(crate) fn picture(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("\n  at {} ms, {:?}", self.now / MS, self.core.totals());
        let (limits, held) = (self.config.limits, self.core.held());
        write!(text, "\n  {held} held, max_active {:?}, {limits:?}", self.config.max_active)
            .unwrap();
        for slot in self.core.slots() {
            write!(text, "\n  {slot:?}").unwrap();
        }
        for worker in self.core.workers() {
            write!(text, "\n  {worker:?}").unwrap();
        }
        for player in self.room.players.values() {
            let (queued, active) = (player.queue.len(), player.active.len());
            write!(
                text,
                "\n  worker {} {:?}: {queued} queued, {active} active, {:?}, bell {} {}",
                player.id.0, player.process, player.habit, player.ring_at, player.ring_on_close
            )
            .unwrap();
        }
        for (listener, backlog) in &self.listeners {
            let (waiting, armed, pending) = (backlog.waiting.len(), backlog.armed, backlog.pending);
            let policy = self.policy_of(ListenerId(*listener));
            write!(
                text,
                "\n  listener {listener}, {policy:?}: {waiting} wait, armed {armed}, pending {pending}"
            )
            .unwrap();
        }
        text
    }
}

/// The state of a worker, in a word.
pub(crate) fn name(table: &Table, worker: u32) -> &'static str {
    table.core.workers().find(|view| view.worker.0 == worker).map_or("forgotten", |view| view.state)
}

/// It becomes so within `limit` nanoseconds.
#[track_caller]
pub(crate) fn within(table: &mut Table, limit: u64, is_so: impl Fn(&Table) -> bool) {
    assert!(table.run_until(limit, is_so), "{}", table.picture());
}

/// Clients all the time, while `ns` nanoseconds pass.
pub(crate) fn busy_for(table: &mut Table, ns: u64) {
    let end = table.now + ns;
    while table.now < end {
        table.client(Client::Local);
        table.run_for(MS);
    }
}
