//! Every sequence of a few inputs on two slots.
//!
//! The core checks itself after each event (`Core::check`, in debug builds); this checks, from
//! outside, that each connection is in exactly one place and that nothing is asked of a worker that
//! cannot do it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::struct_excessive_bools,
    reason = "a test fails by panicking"
)]

#[path = "table/dice.rs"]
#[expect(dead_code, reason = "shared with the other tests")]
mod dice;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use croupier_core::Core;
use croupier_core::config::{
    Config, ExitCodes, Limits, Policy, ProbeRule, ReadyRule, RestartPolicy, Surge,
};
use croupier_core::event::{
    Action, Arrival, Client, ConnId, Event, ExitStatus, ListenerId, Load, Loads, Report, Scale,
    SignalKind, SlotId, WorkerId,
};
use croupier_core::time::Now;

/// Inputs in a sequence.
const DEPTH: u32 = 6;
const ON: ListenerId = ListenerId(0);

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Client,
    /// The worker of this slot does its next thing: listens, claims, or closes.
    Works(u16),
    /// Its process ends.
    Ends(u16),
    /// Everything that was asked of others is done: kills, take-backs.
    Answers,
    /// The core's next deadline comes.
    Time,
    Reload,
    /// The oldest worker of this slot that runs has too much memory.
    Outgrows(u16),
    Stop,
    /// The operator stops and starts this slot.
    StopSlot(u16),
    StartSlot(u16),
    /// One slot more or fewer.
    Grow,
    Shrink,
    /// The operator pauses this slot, or all, and ends every pause.
    PauseSlot(u16),
    PauseAll,
    Resume,
    RestartSlot(u16),
    /// Messages that came too late, about workers and connections of the past.
    Stale,
}

/// All but those that only limits bring about.
const ALL: [Input; 10] = [
    Input::Client,
    Input::Works(0),
    Input::Works(1),
    Input::Ends(0),
    Input::Ends(1),
    Input::Answers,
    Input::Time,
    Input::Reload,
    Input::Stop,
    Input::Stale,
];

/// The same inputs where slots are stopped and started by hand, without what has little to do with it.
const BY_HAND: [Input; 11] = [
    Input::Outgrows(0),
    Input::Works(0),
    Input::Works(1),
    Input::Ends(0),
    Input::Answers,
    Input::Time,
    Input::Reload,
    Input::Stop,
    Input::StopSlot(0),
    Input::StartSlot(0),
    Input::StopSlot(1),
];

/// What the operator does to a running primary, and what others do meanwhile.
const DRIVEN: [Input; 12] = [
    Input::Client,
    Input::Works(0),
    Input::Works(1),
    Input::Ends(1),
    Input::Answers,
    Input::Time,
    Input::Reload,
    Input::Grow,
    Input::Shrink,
    Input::PauseAll,
    Input::Resume,
    Input::RestartSlot(1),
];

/// The same of single slots.
const DRIVEN_ONE: [Input; 12] = [
    Input::Client,
    Input::Works(0),
    Input::Works(1),
    Input::Answers,
    Input::Time,
    Input::Shrink,
    Input::PauseSlot(0),
    Input::PauseSlot(1),
    Input::Resume,
    Input::StopSlot(1),
    Input::RestartSlot(0),
    Input::Stop,
];

const WITH_LIMITS: [Input; 11] = [
    Input::Client,
    Input::Works(0),
    Input::Works(1),
    Input::Ends(0),
    Input::Ends(1),
    Input::Outgrows(0),
    Input::Outgrows(1),
    Input::Answers,
    Input::Time,
    Input::Reload,
    Input::Stop,
];

/// What was asked of others and is not done yet.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Gone(WorkerId),
    Taken(WorkerId, u32),
}

#[derive(Debug, Clone, Default)]
struct Worker {
    slot: u16,
    generation: u32,
    listens: bool,
    ended: bool,
    condemned: bool,
    drains: bool,
    aborting: bool,
    queue: VecDeque<u32>,
    claimed: u64,
    active: u32,
}

#[derive(Debug, Clone, Default)]
struct Workers(BTreeMap<u32, Worker>);

impl Loads for Workers {
    fn load(&self, worker: WorkerId) -> Load {
        let worker = self.0.get(&worker.0);
        worker.map(|w| Load { claimed: w.claimed, active: Some(w.active) }).unwrap_or_default()
    }

    fn queued_exact(&self, worker: WorkerId) -> Option<u32> {
        self.0.get(&worker.0).map(|worker| u32::try_from(worker.queue.len()).unwrap())
    }

    fn lacks_cpu(&self, _: WorkerId) -> bool {
        false
    }
}

#[derive(Debug, Clone)]
struct Puppet {
    core: Core,
    limits: Limits,
    now: u64,
    workers: Workers,
    /// Connections in the shell's hands.
    held: Vec<u32>,
    next_conn: u32,
    answers: Vec<Answer>,
    /// The operator wants nobody there (by slot; scales make more of them).
    down: [bool; DEPTH as usize + 3],
    finished: bool,
    /// Workers whose end was reported.
    told_ends: BTreeSet<u32>,
    /// Somebody had too much memory.
    outgrown: bool,
    reloaded: bool,
    /// Who is stopped by hand drains beside the one that is started by hand.
    by_hand: bool,
}

impl Puppet {
    fn new(policy: Policy) -> Self {
        Self::limited(policy, Limits::NONE)
    }

    fn limited(policy: Policy, limits: Limits) -> Self {
        let config = Config {
            slots: 2,
            policy,
            queue_limit: 4,
            max_active: None,
            limits,
            stall_after: Duration::from_millis(100),
            slow_start: Duration::from_secs(10),
            ready: ReadyRule::Listen,
            ready_timeout: Duration::from_secs(5),
            ready_probe: ProbeRule::None,
            drain_timeout: Duration::from_secs(1),
            graceful_timeout: Duration::from_secs(1),
            kill_after: Duration::from_secs(1),
            stop_signal_first: false,
            max_surge: Surge::Count(1),
            soak: Duration::from_secs(1),
            max_draining: Some(16),
            sticky_bound: None,
            sticky_key: [3, 4],
            restart: RestartPolicy {
                base: Duration::from_millis(100),
                max: Duration::from_secs(1),
                budget: 3,
                min_uptime: Duration::from_secs(1),
                first_tries: 2,
                stay: false,
            },
            stop_exit_codes: ExitCodes::default(),
            seed: 1,
        };
        let mut puppet = Self {
            core: Core::new(config, Now(1)),
            limits,
            now: 1,
            workers: Workers::default(),
            held: Vec::new(),
            next_conn: 0,
            answers: Vec::new(),
            down: [false; DEPTH as usize + 3],
            finished: false,
            told_ends: BTreeSet::new(),
            outgrown: false,
            reloaded: false,
            by_hand: false,
        };
        puppet.settle();
        puppet.tell(Event::ListenerOpened { listener: ON, declared: true, policy });
        puppet
    }

    fn tell(&mut self, event: Event) {
        self.core.handle(event, Now(self.now), &self.workers);
        self.settle();
    }

    fn settle(&mut self) {
        let mut count = 0;
        while let Some(action) = self.core.poll_action() {
            count += 1;
            assert!(count < 100, "no end of actions");
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Spawn { slot, worker, generation } => {
                let generation = generation.0;
                assert!(!self.down[usize::from(slot.0)], "{slot:?} is to stay down");
                // One that even KILL does not end is waited for, but not for ever; one that drains
                // does not stand in the way of the next.
                let lives = |w: &&Worker| !w.ended && !w.condemned && !w.aborting;
                let sits = |w: &&Worker| {
                    w.slot == slot.0 && w.generation == generation && lives(w) && !w.drains
                };
                self.reloaded |= generation > 1;
                let most = usize::from(self.outgrown && self.core.reloading().is_none());
                assert!(
                    self.workers.0.values().filter(sits).count() <= most,
                    "{slot:?} has a worker"
                );
                if self.core.reloading().is_none() && !self.reloaded && !self.by_hand {
                    let all = self.workers.0.values().filter(lives).count();
                    assert!(all < 2 + most, "more than one beside those of the slots");
                }
                let new = Worker { slot: slot.0, generation, ..Worker::default() };
                self.workers.0.insert(worker.0, new);
                self.tell(Event::Spawned { worker });
            }
            Action::HandOff { conn, worker } => {
                self.release(conn.0);
                let worker = self.workers.0.get_mut(&worker.0).expect("it is not forgotten");
                assert!(worker.listens && !worker.condemned && worker.queue.len() < 256);
                assert!(!worker.aborting);
                worker.queue.push_back(conn.0);
                let worker = self.id_of(conn);
                self.tell(Event::HandedOff { conn, worker });
            }
            Action::Refuse { conn } | Action::Shed { conn } => {
                self.release(conn.0);
                self.tell(Event::Refused { conn });
            }
            Action::Signal { worker, signal: SignalKind::Abort } => {
                if let Some(worker) = self.workers.0.get_mut(&worker.0) {
                    worker.aborting = true;
                }
            }
            Action::KillFamily { worker } => {
                if let Some(worker) = self.workers.0.get_mut(&worker.0) {
                    worker.condemned = true;
                }
                self.answers.push(Answer::Gone(worker));
            }
            Action::TakeBack { worker, max, .. } => self.answers.push(Answer::Taken(worker, max)),
            Action::Forget { worker } => {
                let gone = self.workers.0.remove(&worker.0).expect("forgotten once");
                assert!(gone.ended);
            }
            Action::QuietListener { listener } => self.tell(Event::BacklogEmpty { listener }),
            Action::CloseListener { listener } => self.tell(Event::ListenerClosed { listener }),
            Action::Probe { worker, .. } => self.tell(Event::ProbeFailed { worker }),
            Action::Check { worker, .. } => self.tell(Event::Checked { worker, passed: false }),
            Action::Finish(_) => {
                assert!(!self.finished, "finished twice");
                self.finished = true;
            }
            Action::TellDraining { worker, draining } => {
                if let Some(worker) = self.workers.0.get_mut(&worker.0) {
                    worker.drains = draining;
                }
            }
            Action::Report(report) => self.hear(report),
            Action::Ring { .. }
            | Action::Disconnect { .. }
            | Action::Signal { signal: SignalKind::Stop, .. }
            | Action::AdoptSockets { .. } => {}
        }
    }

    fn hear(&mut self, report: Report) {
        if let Report::Scaled { to, .. } = report {
            self.down[usize::from(to)..].fill(false);
        } else if let Report::Exited { worker, .. } = report {
            assert!(self.told_ends.insert(worker.0), "the end of {worker:?} is told twice");
        }
    }

    fn id_of(&self, conn: ConnId) -> WorkerId {
        let owner = self.workers.0.iter().find(|(_, worker)| worker.queue.contains(&conn.0));
        WorkerId(*owner.expect("it was just queued").0)
    }

    fn release(&mut self, conn: u32) {
        let at = self.held.iter().position(|held| *held == conn);
        self.held.swap_remove(at.unwrap_or_else(|| panic!("{conn} is not held")));
    }

    fn in_slot(&mut self, slot: u16) -> Option<(u32, &mut Worker)> {
        let mut in_slot = self.workers.0.iter_mut().filter(|(_, w)| w.slot == slot && !w.ended);
        in_slot.next_back().map(|(id, worker)| (*id, worker))
    }

    fn step(&mut self, input: Input) {
        self.now += 1_000_000;
        self.tell(Event::Woke);
        match input {
            Input::Client => self.client(),
            Input::Works(slot) => self.works(slot),
            Input::Ends(slot) => self.ends(slot),
            Input::Answers => {
                for answer in std::mem::take(&mut self.answers) {
                    self.answer(answer);
                }
            }
            Input::Time => {
                let next = self.core.poll_timeout().map_or(self.now + 1_000_000_000, |Now(at)| at);
                self.now = self.now.max(next);
                self.tell(Event::Woke);
            }
            Input::Reload => {
                self.reloaded = true;
                self.tell(Event::ReloadAsked { rolling: self.now.is_multiple_of(2) });
            }
            Input::Outgrows(slot) => {
                self.outgrown = true;
                let lives = |(_, w): &(&u32, &Worker)| w.slot == slot && !w.ended && !w.condemned;
                let id = self.workers.0.iter().find(lives).map_or(0, |(id, _)| *id);
                self.tell(Event::Outgrew { worker: WorkerId(id), bytes: 1 << 30 });
            }
            Input::Stop => self.tell(Event::StopAsked { now: false }),
            Input::StopSlot(slot) => {
                self.by_hand = true;
                self.tell(Event::StopSlotAsked { slot: SlotId(slot) });
                // One that a scale took away does not hear it, and comes back as a new one.
                self.down[usize::from(slot)] = slot < self.core.slot_count();
            }
            Input::StartSlot(slot) => {
                self.down[usize::from(slot)] = false;
                self.tell(Event::StartAsked { slot: SlotId(slot) });
            }
            Input::Grow => self.drive(Event::ScaleAsked(Scale::Up(1))),
            Input::Shrink => self.drive(Event::ScaleAsked(Scale::Down(1))),
            Input::PauseSlot(slot) => self.drive(Event::PauseAsked { slot: Some(SlotId(slot)) }),
            Input::PauseAll => self.drive(Event::PauseAsked { slot: None }),
            Input::Resume => self.drive(Event::ResumeAsked { slot: None }),
            Input::RestartSlot(slot) => self.drive(Event::RestartAsked { slot: SlotId(slot) }),
            Input::Stale => self.stale(),
        }
    }

    /// More workers than slots may be there for a while.
    fn drive(&mut self, event: Event) {
        (self.by_hand, self.outgrown) = (true, true);
        self.tell(event);
        let (slots, wanted) = (self.core.slot_count(), self.core.wanted_count());
        assert!(slots >= 1 && wanted <= slots);
    }

    fn client(&mut self) {
        if !self.core.wants_accept(ON, Now(self.now), &self.workers) {
            self.settle();
            if !self.core.wants_accept(ON, Now(self.now), &self.workers) {
                return;
            }
        }
        let conn = self.next_conn;
        self.next_conn += 1;
        self.held.push(conn);
        let client = Client::V4([10, 0, 0, u8::try_from(conn).unwrap()]);
        self.tell(Event::Accepted(Arrival { conn: ConnId(conn), listener: ON, client }));
        let may_wait = self.limits.max_queue_wait.is_some() || !self.answers.is_empty();
        assert!(!self.core.is_paused(), "accepted in a pause");
        assert!(self.held.is_empty() || may_wait, "accepted, but not dealt");
    }

    fn works(&mut self, slot: u16) {
        let Some((id, worker)) = self.in_slot(slot) else { return };
        if !worker.listens {
            worker.listens = true;
            return self.tell(Event::Listening { worker: WorkerId(id), listener: ON });
        }
        if worker.queue.pop_front().is_some() {
            worker.claimed += 1;
            worker.active += 1;
        } else {
            worker.active = worker.active.saturating_sub(1);
        }
        self.tell(Event::Woke);
    }

    fn ends(&mut self, slot: u16) {
        let Some((id, worker)) = self.in_slot(slot) else { return };
        worker.ended = true;
        let status = ExitStatus::Signal(9);
        self.tell(Event::Exited { worker: WorkerId(id), status, orphans: false });
    }

    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Gone(worker) => {
                if let Some(gone) = self.workers.0.get_mut(&worker.0)
                    && !std::mem::replace(&mut gone.ended, true)
                {
                    let status = ExitStatus::Signal(9);
                    self.tell(Event::Exited { worker, status, orphans: false });
                }
                self.tell(Event::FamilyGone { worker });
            }
            Answer::Taken(worker, max) => {
                let from = self.workers.0.get_mut(&worker.0).expect("not forgotten meanwhile");
                let count = from.queue.len().min(max as usize);
                let taken: Vec<u32> = from.queue.drain(..count).collect();
                let empty = from.queue.is_empty();
                for conn in &taken {
                    self.held.push(*conn);
                    let arrival =
                        Arrival { conn: ConnId(*conn), listener: ON, client: Client::Local };
                    self.core.handle(
                        Event::TakenBack { worker, arrival },
                        Now(self.now),
                        &self.workers,
                    );
                }
                let removed = u32::try_from(taken.len()).unwrap();
                self.tell(Event::TakeBackDone { worker, removed, lost: 0, empty });
            }
        }
    }

    /// Nothing of this is true (any more), and nothing of it may change anything.
    fn stale(&mut self) {
        let before: Vec<_> = self.core.workers().collect();
        for worker in [WorkerId(0), WorkerId(999)] {
            let status = ExitStatus::Code(0);
            for event in [
                Event::Spawned { worker },
                Event::SpawnFailed { worker },
                Event::Listening { worker, listener: ON },
                Event::Unlistened { worker, listener: ON },
                Event::SaidReady { worker },
                Event::Probed { worker },
                Event::ProbeFailed { worker },
                Event::TakeBackDone { worker, removed: 1, lost: 1, empty: true },
                Event::TakeBackStuck { worker },
                Event::Exited { worker, status, orphans: true },
                Event::FamilyGone { worker },
                Event::Misbehaved { worker },
                Event::Outgrew { worker, bytes: 1 },
                Event::HandedOff { conn: ConnId(7777), worker },
                Event::HandOffFailed {
                    conn: ConnId(7777),
                    worker,
                    why: croupier_core::event::SendFailure::Broken,
                },
                Event::Refused { conn: ConnId(7777) },
                Event::BacklogEmpty { listener: ListenerId(99) },
                Event::ListenerClosed { listener: ListenerId(99) },
            ] {
                self.tell(event);
            }
        }
        assert_eq!(before, self.core.workers().collect::<Vec<_>>());
    }

    fn explore(&self, inputs: &[Input], depth: u32, path: &mut Vec<Input>, count: &mut u64) {
        for &input in inputs {
            let mut next = self.clone();
            path.push(input);
            let told = std::panic::AssertUnwindSafe(|| next.step(input));
            if std::panic::catch_unwind(told).is_err() {
                panic!("after {path:?}");
            }
            *count += 1;
            if depth > 1 && !next.finished {
                next.explore(inputs, depth - 1, path, count);
            }
            path.pop();
        }
    }
}

fn every_sequence(policy: Policy) {
    let mut count = 0;
    Puppet::new(policy).explore(&ALL, DEPTH, &mut Vec::new(), &mut count);
    assert!(count > 300_000, "{count} steps");
}

#[test]
fn all_short_sequences_on_two_slots_under_least() {
    every_sequence(Policy::Least);
}

/// The same, from a reload whose first new worker has taken over, with connections everywhere.
#[test]
fn all_short_sequences_from_the_middle_of_a_reload() {
    for rolling in [false, true] {
        let mut puppet = Puppet::new(Policy::Least);
        let begin = [Input::Works(0), Input::Works(1), Input::Client, Input::Client, Input::Client];
        for input in begin {
            puppet.step(input);
        }
        puppet.tell(Event::ReloadAsked { rolling });
        // The newest worker of a slot is the one that works.
        puppet.step(Input::Works(0));
        let states: Vec<_> = puppet.core.workers().map(|worker| worker.state).collect();
        assert_eq!(states, ["parked", "ready", "ready"], "worker 3 took over from worker 1");
        let mut count = 0;
        puppet.explore(&ALL, DEPTH - 1, &mut Vec::new(), &mut count);
        assert!(count > 40_000, "{count} steps");
    }
}

/// Slots stopped and started by hand, from the start, from a table with connections, and from the
/// middle of a reload.
#[test]
fn all_short_sequences_of_slots_by_hand() {
    let busy = [Input::Works(0), Input::Works(1), Input::Client, Input::Client, Input::Client];
    let reload = [Input::Reload, Input::Works(0)];
    for before in [&[][..], &busy[..], &[&busy[..], &reload[..]].concat()[..]] {
        let mut puppet = Puppet::new(Policy::Least);
        for input in before {
            puppet.step(*input);
        }
        let mut count = 0;
        puppet.explore(&BY_HAND, DEPTH - 1, &mut Vec::new(), &mut count);
        assert!(count > 40_000, "{count} steps");
    }
}

/// Another number of slots, pauses, and restarts by hand: from the start, from a table with
/// connections, from the middle of a reload, of a pause, and of a restart.
#[test]
fn all_short_sequences_of_a_driven_primary() {
    let busy = [Input::Works(0), Input::Works(1), Input::Client, Input::Client, Input::Client];
    let middles: [&[Input]; 5] = [
        &[],
        &[Input::Reload, Input::Works(0)],
        &[Input::PauseAll],
        &[Input::RestartSlot(1), Input::Works(1)],
        &[Input::Grow, Input::Shrink],
    ];
    for inputs in [&DRIVEN, &DRIVEN_ONE] {
        for middle in middles {
            let mut puppet = Puppet::new(Policy::Least);
            for input in busy.iter().chain(middle) {
                puppet.step(*input);
            }
            let mut count = 0;
            puppet.explore(inputs, DEPTH - 2, &mut Vec::new(), &mut count);
            assert!(count > 10_000, "{count} steps after {middle:?}");
        }
        let mut count = 0;
        Puppet::new(Policy::Ip).explore(inputs, DEPTH - 2, &mut Vec::new(), &mut count);
        assert!(count > 10_000, "{count} steps from the start");
    }
}

/// The same, from the middle of a recycling: the new worker is being started, or has taken over while
/// the old one holds a connection.
#[test]
fn all_short_sequences_from_the_middle_of_a_recycling() {
    for took_over in [false, true] {
        let mut puppet = Puppet::new(Policy::Least);
        for input in [Input::Works(0), Input::Works(1), Input::Client, Input::Client, Input::Client]
        {
            puppet.step(input);
        }
        // The newest worker of a slot is the one that works: before it, the old one claims.
        puppet.step(Input::Works(0));
        puppet.step(Input::Outgrows(0));
        if took_over {
            puppet.step(Input::Works(0));
        }
        let states: Vec<_> = puppet.core.workers().map(|worker| worker.state).collect();
        let expected =
            if took_over { ["draining", "ready", "ready"] } else { ["ready", "ready", "starting"] };
        assert_eq!(states, expected);
        let mut count = 0;
        puppet.explore(&WITH_LIMITS, DEPTH - 1, &mut Vec::new(), &mut count);
        assert!(count > 40_000, "{count} steps");
    }
}

/// The same, from a worker that has claimed nothing for nearly as long as it may, with few let in.
#[test]
fn all_short_sequences_with_hung_workers_and_admission() {
    let limits = Limits {
        hung_timeout: Duration::from_millis(400),
        max_connections: Some(3),
        max_total: Some(2),
        max_queue_wait: Some(Duration::from_millis(200)),
        waiting_max: 2,
        ..Limits::NONE
    };
    let mut puppet = Puppet::limited(Policy::Least, limits);
    // It may be given few enough to be recycled here.
    puppet.outgrown = true;
    for input in [Input::Works(0), Input::Works(1), Input::Client, Input::Client, Input::Client] {
        puppet.step(input);
    }
    let mut count = 0;
    puppet.explore(&WITH_LIMITS, DEPTH - 1, &mut Vec::new(), &mut count);
    assert!(count > 40_000, "{count} steps");
    // Nothing but time: whoever does not claim is hung, and everybody is replaced.
    for _ in 0..40 {
        puppet.step(Input::Time);
        puppet.step(Input::Answers);
    }
    assert!(puppet.core.totals().hung >= 2, "{:?}", puppet.core.totals());
}

/// The same, from two workers that are ready and have a queue.
#[test]
fn all_short_sequences_from_a_busy_table() {
    let mut puppet = Puppet::new(Policy::Rr);
    for input in [Input::Works(0), Input::Works(1), Input::Client, Input::Client, Input::Client] {
        puppet.step(input);
    }
    let mut count = 0;
    puppet.explore(&ALL, DEPTH - 1, &mut Vec::new(), &mut count);
    assert!(count > 40_000, "{count} steps");
}

#[test]
fn random_long_sequences_under_every_policy() {
    let mut dice = dice::Dice::new(11);
    for policy in [Policy::Least, Policy::Rr, Policy::Ip, Policy::Shared, Policy::Reuseport] {
        for _ in 0..300 {
            let mut puppet = Puppet::new(policy);
            for _ in 0..60 {
                let sets = [&ALL[..], &ALL, &ALL, &BY_HAND, &DRIVEN, &DRIVEN_ONE];
                let inputs = sets[usize::try_from(dice.below(6)).unwrap()];
                let count = u64::try_from(inputs.len()).unwrap();
                let pick = inputs[usize::try_from(dice.below(count)).unwrap()];
                // A stop ends the game soon; most games go on.
                if !puppet.finished && (pick != Input::Stop || dice.permille(100)) {
                    puppet.step(pick);
                }
            }
        }
    }
}

/// Whatever it is told, in whatever order, it does not panic and does not ask without end.
#[test]
fn arbitrary_events_do_no_harm() {
    let mut dice = dice::Dice::new(5);
    for round in 0..400 {
        let policy = [Policy::Least, Policy::Rr, Policy::Ip, Policy::Shared][round % 4];
        let mut core = Puppet::new(policy).core;
        let mut now = 0;
        for _ in 0..200 {
            now += dice.below(200_000_000);
            let event = any_event(policy, &mut dice);
            let loads = Lies(dice.next());
            core.handle(event, Now(now), &loads);
            let mut count = 0;
            while core.poll_action().is_some() {
                count += 1;
                assert!(count < 2000);
            }
            if dice.permille(500) {
                core.wants_accept(ListenerId(0), Now(now), &loads);
            }
        }
        assert!(core.slots().all(|slot| slot.slot.0 < core.slot_count()));
    }
}

/// Pages full of anything.
struct Lies(u64);

impl Loads for Lies {
    fn load(&self, worker: WorkerId) -> Load {
        let mut dice = dice::Dice::new(self.0 ^ u64::from(worker.0));
        let claimed = if dice.permille(300) { dice.next() } else { dice.below(4) };
        Load { claimed, active: dice.permille(700).then(|| u32::try_from(dice.below(5)).unwrap()) }
    }

    fn queued_exact(&self, worker: WorkerId) -> Option<u32> {
        let mut dice = dice::Dice::new(self.0.wrapping_add(u64::from(worker.0)));
        dice.permille(800).then(|| u32::try_from(dice.below(3)).unwrap())
    }

    fn lacks_cpu(&self, _: WorkerId) -> bool {
        false
    }
}

fn any_event(of: Policy, dice: &mut dice::Dice) -> Event {
    let worker = WorkerId(u32::try_from(dice.below(5)).unwrap());
    let conn = ConnId(u32::try_from(dice.below(4)).unwrap());
    let listener = ListenerId(u16::try_from(dice.below(300)).unwrap() % 3 * 100);
    let arrival = Arrival { conn, listener, client: Client::V4([1, 2, 3, 4]) };
    let status = ExitStatus::Code(0);
    let orphans = dice.permille(500);
    let count = u32::try_from(dice.below(3)).unwrap();
    let slot = SlotId(u16::try_from(dice.below(4)).unwrap());
    match dice.below(39) {
        0 | 1 => Event::Woke,
        2..=4 => Event::Accepted(arrival),
        5 => Event::HandedOff { conn, worker },
        6 => Event::HandOffFailed { conn, worker, why: croupier_core::event::SendFailure::Full },
        7 => Event::HandOffFailed { conn, worker, why: croupier_core::event::SendFailure::Broken },
        8 => Event::Refused { conn },
        9 => Event::BacklogEmpty { listener },
        10 => {
            // Either all deal, or none does.
            let dealt = [Policy::Least, Policy::Rr, Policy::Ip][count as usize];
            let policy = if of.by_hand() { dealt } else { of };
            Event::ListenerOpened { listener, declared: orphans, policy }
        }
        11 => Event::ListenerClosed { listener },
        12 => Event::Spawned { worker },
        13 => Event::SpawnFailed { worker },
        14..=16 => Event::Listening { worker, listener },
        17 => Event::Unlistened { worker, listener },
        18 => Event::SaidReady { worker },
        19 => Event::Probed { worker },
        20 => Event::TakenBack { worker, arrival },
        21 => Event::TakeBackDone { worker, removed: count, lost: count, empty: orphans },
        22 => Event::TakeBackStuck { worker },
        23 => Event::Exited { worker, status, orphans },
        24 => Event::FamilyGone { worker },
        25 => Event::ReloadAsked { rolling: orphans },
        26 => Event::StartAsked { slot },
        27 => Event::StopSlotAsked { slot },
        28 => Event::CheckSent { worker },
        29 => Event::Checked { worker, passed: orphans },
        30 => Event::Outgrew { worker, bytes: dice.next() },
        31 => Event::ScaleAsked(Scale::To(u16::try_from(dice.below(5)).unwrap())),
        32 => Event::ScaleAsked(if orphans { Scale::Up(1) } else { Scale::Down(1) }),
        33 => Event::PauseAsked { slot: orphans.then_some(slot) },
        34 | 35 => Event::ResumeAsked { slot: orphans.then_some(slot) },
        36 => Event::RestartAsked { slot },
        _ if dice.permille(100) => Event::StopAsked { now: orphans },
        _ => Event::Misbehaved { worker },
    }
}
