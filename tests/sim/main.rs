//! The simulator: seeded tables at which everything goes wrong, then nothing does any more.
//!
//! Each seed makes up a configuration, workers with good and bad habits, clients, and faults. While
//! it plays, the table checks conservation and that no worker gets what it may not have; stale
//! messages are injected all the time. Then the faults stop, and within a bound of virtual time
//! everything must be ready, served and silent (*liveness*: safety alone would be satisfied by a
//! primary that does nothing). At last it is stopped, and must end.
//!
//! `SIM_SEED=7` replays one seed; `SIM_SEEDS` (default 200, in a soak 10,000) and `SIM_STEPS` (default
//! 250) set the size.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a game fails by panicking, and says how to replay it"
)]

// One table for the simulator and for the tests beside the core.
#[path = "../../router/core/tests/table/mod.rs"]
mod table;

mod hot_path;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use croupier_core::config::{
    Config, ExitCodes, Limits, Policy, ProbeRule, ReadyRule, RestartPolicy, Surge,
};
use croupier_core::event::{
    Client, ConnId, Event, ExitStatus, ListenerId, Outcome, RecycleReason, Report, Scale,
    SendFailure, WorkerId,
};

use croupier_tests::{Figure, figure, soak_or};

use table::dice::Dice;
use table::players::{Habit, Honesty, Style};
use table::{MS, SEC, Table, US, config};

/// Virtual time in which everything must be well again: the longest backoff, and the time that a
/// few hundred queued connections take.
const WELL_WITHIN: u64 = 60 * SEC;
/// More slots than a day ever has.
const SLOTS_OF_A_DAY: u16 = 16;

#[test]
fn everything_goes_wrong_and_then_right() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let steps = number("SIM_STEPS").unwrap_or(250);
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or_else(|| soak_or(10_000, 200)),
    };
    let mut sum = Sum::default();
    for seed in seeds {
        let mut game = Game::new(seed);
        let played = std::panic::catch_unwind(AssertUnwindSafe(|| game.play(steps)));
        if let Err(panic) = played {
            println!(
                "\nseed {seed}, step {}, {} ms: {:?}",
                game.step,
                game.table.now / MS,
                game.doing
            );
            println!("{}", game.table.picture());
            println!(
                "replay: SIM_SEED={seed} SIM_STEPS={steps} cargo test -p croupier-tests --test sim"
            );
            std::panic::resume_unwind(panic);
        }
        sum.add(&game);
    }
    println!("{sum:?}");
    sum.check();
    figure(&Figure {
        item: "replace 9 simulator",
        measured: format!("{sum:?}"),
        goal: "every seed: nothing lost, nothing dealt wrongly, all well again",
        // A seed that fails ends the test above.
        met: sum.seeds > 0,
    });
}

/// Eight hours of everything, with a rest after each: nothing of what has happened is kept.
#[test]
fn eight_hours_leave_no_state_behind() {
    let seeds = soak_or(20, 2);
    let mut figures = Vec::new();
    for seed in 0..seeds {
        let mut dice = Dice::new(seed);
        let config = Config {
            slots: 4,
            // Nobody ends for good, nor by the clock: a rest is a rest.
            stop_exit_codes: ExitCodes::default(),
            limits: Limits { max_lifetime: None, ..any_limits(&mut dice) },
            ..any_config(&mut dice)
        };
        let mut game = Game::at(config, dice);
        let mut kept = Vec::new();
        for hour in 1..=8 {
            game.hour(hour);
            let core = &game.table.core;
            let all = (core.workers().count(), core.slot_count(), core.held());
            assert_eq!(all, (4, 4, 0), "seed {seed}, hour {hour}: {}", game.table.picture());
            // Longer numbers are not more of them.
            let text = format!("{core:?}");
            kept.push(text.chars().filter(|c| !c.is_ascii_digit()).count());
        }
        println!("seed {seed}: {kept:?}");
        let (first, last) = (kept[0], kept[7]);
        assert!(last <= first + first / 10, "seed {seed}: what the core knows grows: {kept:?}");
        let events = game.table.story.reports.iter();
        let events = events.filter(|(_, report)| report.event_name().is_some()).count();
        figures.push((events, first, last));
        game.stop();
    }
    let events: usize = figures.iter().map(|(events, ..)| events).sum();
    assert!(events > 1000, "a quiet day: {figures:?}");
    figure(&Figure {
        item: "operate 6 a day in the simulator",
        measured: format!(
            "{seeds} days of 8 hours, {events} events; what the core knows at rest, in characters of text \
             without digits, after the first and the last hour: {:?}",
            figures.iter().map(|(_, first, last)| (first, last)).collect::<Vec<_>>()
        ),
        goal: "as much at the end as after the first hour, within 10 %",
        // A day that is worse ends the test above.
        met: true,
    });
}

/// What happened over all seeds: a simulator in which nothing happens proves nothing.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    /// Games whose listeners deal by load and by address.
    mixed: u64,
    served: u64,
    lost: u64,
    salvaged: u64,
    stolen: u64,
    waits: u64,
    kills: u64,
    probes: u64,
    /// Reloads that replaced everybody, and that did not.
    reloads: [u64; 2],
    /// Scales that happened, and that were refused.
    scales: [u64; 2],
    /// Pauses of all or of a slot, and ends of them.
    pauses: [u64; 2],
    /// Restarts by hand that began.
    restarts: u64,
    /// Slots that were stopped by hand, and that went down because their worker meant to end.
    down: [u64; 2],
    /// Games that were over because everybody had ended for good.
    all_done: u64,
    /// Requests that new workers had to answer.
    checks: u64,
    /// Connections that followed their client's others to a worker that left.
    kept: u64,
    hung: u64,
    /// Recyclings that ended well, and that did not.
    recycled: [u64; 2],
    shed: u64,
}

impl Sum {
    fn add(&mut self, game: &Game) {
        let (story, totals) = (&game.table.story, game.table.core.totals());
        self.seeds += 1;
        let sticks =
            |game: &Game, listener: u16| game.table.policy_of(ListenerId(listener)) == Policy::Ip;
        let sticky = game.listeners.iter().filter(|listener| sticks(game, **listener)).count();
        self.mixed += u64::from(sticky > 0 && sticky < game.listeners.len());
        self.served += story.served.len() as u64;
        self.lost += story.lost.len() as u64;
        self.salvaged += totals.salvaged;
        self.stolen += totals.stolen;
        self.waits += totals.waits;
        self.kills += story.kills.len() as u64;
        self.probes += story.probes.len() as u64;
        self.checks += story.checks.len() as u64;
        self.kept += story.kept;
        let reported = |is_it: fn(&Report) -> bool| {
            story.reports.iter().filter(|(_, report)| is_it(report)).count() as u64
        };
        let began = reported(|report| matches!(report, Report::ReloadBegan { .. }));
        let ends = [
            reported(|report| matches!(report, Report::ReloadDone { .. })),
            reported(|report| matches!(report, Report::ReloadFailed { .. })),
        ];
        self.hung += totals.hung;
        self.recycled[0] += totals.recycled;
        self.recycled[1] += reported(|report| matches!(report, Report::RecycleFailed { .. }));
        self.shed += totals.shed;
        assert_eq!(began, ends[0] + ends[1], "each reload has one end");
        self.reloads = [self.reloads[0] + ends[0], self.reloads[1] + ends[1]];
        self.scales[0] += reported(|report| matches!(report, Report::Scaled { .. }));
        self.scales[1] += reported(|report| matches!(report, Report::ScaleRefused { .. }));
        self.pauses[0] += reported(|report| matches!(report, Report::Paused { .. }));
        self.pauses[1] += reported(|report| matches!(report, Report::Resumed { .. }));
        self.restarts += reported(|report| {
            matches!(report, Report::RecycleBegan { why: RecycleReason::Asked, .. })
        });
        self.down[0] += reported(|report| matches!(report, Report::SlotStopped { .. }));
        self.down[1] += reported(|report| matches!(report, Report::SlotDone { .. }));
        self.all_done += reported(|report| *report == Report::AllDone);
    }

    fn check(&self) {
        if self.seeds >= 100 {
            let least = self.seeds;
            for count in [self.served, self.salvaged, self.waits, self.kills] {
                assert!(count > least, "too quiet a game: {self:?}");
            }
            let driven = self.scales.into_iter().chain(self.pauses).chain([self.restarts]);
            let few = self.reloads.into_iter().chain(self.down).chain(driven).min().unwrap();
            assert!(self.stolen > 10 && self.probes > 10 && self.lost > 10, "{self:?}");
            assert!(self.mixed > least / 8, "{self:?}");
            assert!(few > 10 && self.checks > 10 && self.kept > 10, "{self:?}");
            let [recycled, not] = self.recycled;
            assert!(recycled > 50 && not > 10 && self.hung > 10 && self.shed > 10, "{self:?}");
        }
    }
}

/// What the game did last.
#[derive(Debug, Clone, Copy)]
enum Move {
    Wait,
    Clients(u64),
    Kill,
    Stick,
    FullKernel,
    Oversleep,
    Slow,
    Stale,
    Misbehave,
    Outgrow,
    Close,
    Reload(bool),
    StopSlot,
    StartSlot,
    Scale(Scale),
    Pause,
    Resume,
    RestartSlot,
    Recover,
    Stop,
}

struct Game {
    table: Table,
    dice: Dice,
    /// What every worker listens on.
    listeners: Vec<u16>,
    step: u64,
    doing: Move,
}

fn any_limits(dice: &mut Dice) -> Limits {
    let millis = |dice: &mut Dice, least, most| Duration::from_millis(dice.between(least, most));
    Limits {
        hung_timeout: if dice.permille(400) { millis(dice, 300, 3000) } else { Duration::ZERO },
        max_connections: dice.permille(300).then(|| dice.between(5, 200)),
        max_lifetime: dice.permille(200).then(|| millis(dice, 2000, 20_000)),
        max_total: dice.permille(300).then(|| u32::try_from(dice.between(1, 40)).unwrap()),
        max_queue_wait: dice.permille(300).then(|| millis(dice, 20, 1000)),
        waiting_max: u16::try_from(dice.between(1, 100)).unwrap(),
    }
}

fn any_policy(dice: &mut Dice) -> Policy {
    let policies = [Policy::Least, Policy::Least, Policy::Rr, Policy::Ip];
    policies[usize::try_from(dice.below(4)).unwrap()]
}

fn any_config(dice: &mut Dice) -> Config {
    let policy = any_policy(dice);
    let slots = u16::try_from(dice.between(1, 6)).unwrap();
    let base = config(slots, policy);
    Config {
        queue_limit: u16::try_from(dice.between(1, 64)).unwrap(),
        max_active: dice.permille(300).then(|| u32::try_from(dice.between(1, 8)).unwrap()),
        limits: any_limits(dice),
        slow_start: Duration::from_secs(dice.below(3) * 5),
        ready: if dice.permille(250) { ReadyRule::Accept } else { ReadyRule::Listen },
        ready_timeout: Duration::from_secs(3),
        ready_probe: if dice.permille(300) { ProbeRule::Answer } else { ProbeRule::None },
        drain_timeout: Duration::from_secs(4),
        graceful_timeout: Duration::from_secs(4),
        kill_after: Duration::from_secs(1),
        stop_signal_first: dice.permille(200),
        max_surge: if dice.permille(300) {
            Surge::Percent(u8::try_from(dice.between(1, 100)).unwrap())
        } else {
            Surge::Count(u16::try_from(dice.between(1, 4)).unwrap())
        },
        soak: Duration::from_millis(dice.below(3) * 400),
        max_draining: dice.permille(700).then(|| u16::try_from(dice.between(1, 12)).unwrap()),
        sticky_bound: dice.permille(300).then_some(1250),
        // Hopeless cases have tests of their own; here everybody gets another chance.
        restart: RestartPolicy { budget: u32::MAX, first_tries: u32::MAX, ..base.restart },
        stop_exit_codes: ExitCodes::default().with(5),
        seed: dice.next(),
        ..base
    }
}

fn any_habit(dice: &mut Dice, well: bool) -> Habit {
    let style = if dice.permille(500) { Style::Blocking } else { Style::EventLoop };
    let service = match dice.below(4) {
        0 => 45 * US,
        1 => dice.between(100, 900) * US,
        2 => dice.between(1, 20) * MS,
        _ => dice.between(20, 300) * MS,
    };
    let start = dice.between(1, 400) * MS;
    let honesty = if dice.permille(150) { Honesty::NoPage } else { Honesty::Honest };
    // A slow disk: some are past their ready-timeout before they execute.
    let exec = if dice.permille(60) { dice.between(1, 5000) * MS } else { 300 * US };
    let habit = Habit { style, service, start, honesty, exec, ..Habit::default() };
    if well {
        return habit;
    }
    let after = dice.between(0, 3000) * MS;
    match dice.below(18) {
        0 => Habit { never_ready: true, ..habit },
        1 => Habit { exits: Some((after, ExitStatus::Code(1), false)), ..habit },
        2 => Habit { exits: Some((after, ExitStatus::Code(0), dice.permille(500))), ..habit },
        3 => Habit { stuck_until: dice.between(2, 20) * SEC, ..habit },
        4 => Habit { honesty: Honesty::ClaimsTooMany, ..habit },
        5 => Habit { honesty: Honesty::GoesBack, ..habit },
        6 => Habit { honesty: Honesty::ClaimsNothing, ..habit },
        7 => Habit { bell_lost: true, ..habit },
        8 => Habit { stubborn: true, ..habit },
        9 => Habit { holds_lock: true, stuck_until: dice.between(2, 20) * SEC, ..habit },
        10 => Habit { spawn_fails: true, ..habit },
        11 => Habit { exits: Some((after, ExitStatus::Code(5), dice.permille(200))), ..habit },
        13 => {
            let after = dice.between(0, 60);
            Habit { honesty: Honesty::HidesBehindOne { after }, ..habit }
        }
        14 => Habit { honesty: Honesty::ClaimsAll, ..habit },
        12 => Habit { bad_answers: u32::try_from(dice.between(1, 20)).unwrap(), ..habit },
        _ => habit,
    }
}

impl Game {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let config = any_config(&mut dice);
        Self::at(config, dice)
    }

    fn at(config: Config, mut dice: Dice) -> Self {
        let mut table = Table::new(config, dice.next());
        table.race_permille = dice.below(3) * 100;
        table.one_queue = dice.permille(500);
        let wild = dice.permille(800);
        // Each with its own policy, whatever the first one has.
        let others =
            if dice.permille(600) { u16::try_from(dice.between(1, 2)).unwrap() } else { 0 };
        for listener in 1..=others {
            let policy = any_policy(&mut dice);
            table.open_as(listener, Some(policy));
        }
        let listeners: Vec<u16> = (0..=others).collect();
        let known = listeners.clone();
        table.habits = Box::new(move |_, _, dice| {
            let listeners = known.clone();
            Habit { listeners, ..any_habit(dice, !wild) }
        });
        Self { table, dice, listeners, step: 0, doing: Move::Wait }
    }

    fn play(&mut self, steps: u64) {
        for step in 0..steps {
            self.step = step;
            self.turn();
            if self.all_done() {
                return;
            }
            assert!(self.table.story.outcome.is_none(), "it ended: {:?}", self.table.story.outcome);
        }
        // What has just happened, and what was just asked for, is known after this.
        self.table.asleep_until = self.table.now;
        self.table.run_for(MS);
        if self.all_done() {
            return;
        }
        self.recover();
        self.stop();
    }

    /// An hour of moves, and a rest with as many slots as at the start.
    fn hour(&mut self, hour: u64) {
        let known = self.listeners.clone();
        self.table.habits = Box::new(move |_, _, dice| {
            let listeners = known.clone();
            Habit { listeners, ..any_habit(dice, false) }
        });
        let end = hour * 3600 * SEC;
        while self.table.now < end {
            self.step += 1;
            self.turn();
            let pause = self.dice.below(4 * SEC);
            self.table.run_for(pause);
        }
        self.table.asleep_until = self.table.now;
        for slot in 0..SLOTS_OF_A_DAY {
            self.table.start_slot(slot);
        }
        // First as many as there ever are: the places of those that go are kept.
        for slots in [SLOTS_OF_A_DAY, 4] {
            self.recover();
            self.table.scale(Scale::To(slots));
            self.table.run_for(MS);
        }
        self.recover();
        // Time for whoever drains.
        self.table.run_for(60 * SEC);
    }

    /// Everybody has ended for good: so does the game, and well.
    fn all_done(&mut self) -> bool {
        if !self.table.story.reports.iter().any(|(_, report)| *report == Report::AllDone) {
            return false;
        }
        assert_eq!(self.table.down.len(), usize::from(self.table.config.slots));
        let over = |table: &Table| table.story.outcome.is_some();
        assert!(self.table.run_until(15 * SEC, over), "it does not end");
        assert_eq!(self.table.story.outcome.map(|(_, outcome)| outcome), Some(Outcome::Stopped));
        assert!(self.table.room.players.is_empty(), "somebody is left");
        true
    }

    /// One move of the game, and some time.
    fn turn(&mut self) {
        self.doing = self.any_move();
        match self.doing {
            Move::Wait | Move::Recover | Move::Stop => {}
            Move::Clients(count) => self.clients(count),
            Move::Kill => {
                if let Some(worker) = self.any_worker() {
                    let orphans = self.dice.permille(200);
                    self.table.exit(worker, ExitStatus::Signal(9), orphans);
                }
            }
            Move::Stick => {
                let until = self.table.now + self.dice.between(50, 3000) * MS;
                let lacks_cpu = self.dice.permille(300);
                if let Some(worker) = self.any_worker()
                    && let Some(player) = self.table.room.players.get_mut(&worker)
                {
                    player.habit.stuck_until = until;
                    player.habit.lacks_cpu = lacks_cpu;
                }
            }
            Move::FullKernel => {
                self.table.full_permille = self.dice.below(2) * self.dice.below(1000)
            }
            Move::Oversleep => {
                self.table.asleep_until = self.table.now + self.dice.between(10, 400) * MS;
            }
            Move::Slow => {
                let service = self.dice.between(1, 100) * MS;
                if let Some(worker) = self.any_worker()
                    && let Some(player) = self.table.room.players.get_mut(&worker)
                {
                    player.habit.service = service;
                }
            }
            Move::Stale => self.stale(),
            Move::Misbehave => {
                if let Some(worker) = self.any_worker() {
                    self.table.tell(Event::Misbehaved { worker: WorkerId(worker) });
                }
            }
            Move::Outgrow => {
                if let Some(worker) = self.any_worker() {
                    self.table.outgrows(worker);
                }
            }
            Move::Close => self.close(),
            Move::Reload(rolling) => self.reload(rolling),
            Move::StopSlot => {
                let slot = self.any_slot();
                self.table.stop_slot(slot);
            }
            Move::StartSlot => {
                let slot = self.any_slot();
                self.table.start_slot(slot);
            }
            Move::Scale(_) | Move::Pause | Move::Resume | Move::RestartSlot => self.drive(),
        }
        let pause = match self.dice.below(4) {
            0 => self.dice.below(100 * US),
            1 => self.dice.below(2 * MS),
            2 => self.dice.below(30 * MS),
            _ => self.dice.below(200 * MS),
        };
        self.table.run_for(pause);
    }

    /// A reload, sometimes with another configuration.
    fn reload(&mut self, rolling: bool) {
        if self.dice.permille(300) {
            let new = self.another_config();
            // Whoever was given a limit has it still when a reload takes it away.
            self.table.outgrow |= new.limits.max_connections.is_some();
            self.table.reconfigure(new);
        }
        self.table.reload(rolling);
    }

    /// A move of the operator's.
    fn drive(&mut self) {
        let slot = self.any_slot();
        let many = self.dice.permille(500);
        if let Move::Scale(scale) = self.doing {
            self.table.scale(scale);
        } else if let Move::Pause = self.doing {
            self.table.pause((!many).then_some(slot));
        } else if let Move::Resume = self.doing {
            self.table.resume((!many).then_some(slot));
        } else {
            self.table.restart(slot);
        }
    }

    fn any_move(&mut self) -> Move {
        match self.dice.below(106) {
            0..=54 => Move::Clients(self.dice.between(1, 3)),
            55..=62 => Move::Clients(self.dice.between(10, 100)),
            63..=68 => Move::Kill,
            69..=73 => Move::Stick,
            74..=77 => Move::FullKernel,
            78..=79 => Move::Oversleep,
            80..=83 => Move::Slow,
            84..=91 => Move::Stale,
            92 => Move::Outgrow,
            93 => Move::Misbehave,
            94 => Move::Close,
            95..=96 => Move::Reload(self.dice.permille(300)),
            97 => Move::StopSlot,
            98..=99 => Move::StartSlot,
            100 => Move::Scale(match self.dice.below(3) {
                0 => Scale::Up(1),
                1 => Scale::Down(1),
                _ => Scale::To(u16::try_from(self.dice.below(7)).unwrap()),
            }),
            101 => Move::Pause,
            102..=104 => Move::Resume,
            _ => Move::RestartSlot,
        }
    }

    /// What a file may say at a reload.
    fn another_config(&mut self) -> Config {
        let other = any_config(&mut self.dice);
        let now = self.table.config;
        Config {
            // As often as not the number that it was, so that what was scaled by hand stays.
            slots: if self.dice.permille(500) { other.slots } else { 4 },
            max_active: other.max_active,
            limits: Limits { max_lifetime: now.limits.max_lifetime, ..other.limits },
            slow_start: other.slow_start,
            graceful_timeout: Duration::from_secs(self.dice.between(1, 4)),
            kill_after: Duration::from_millis(self.dice.between(200, 1000)),
            stop_signal_first: other.stop_signal_first,
            max_surge: other.max_surge,
            soak: other.soak,
            max_draining: other.max_draining,
            ..now
        }
    }

    fn clients(&mut self, count: u64) {
        for _ in 0..count {
            let host = u8::try_from(self.dice.below(32)).unwrap();
            let client = match self.dice.below(3) {
                0 => Client::Local,
                1 => Client::V4([10, 0, 0, host]),
                _ => Client::V6([0x20, 1, 0, 0, 0, 0, 0, host, 0, 0, 0, 0, 0, 0, 0, 1]),
            };
            let listener = self.any_listener();
            self.table.client_on(listener, client);
        }
    }

    fn any_listener(&mut self) -> u16 {
        self.listeners[usize::try_from(self.dice.below(self.listeners.len() as u64)).unwrap()]
    }

    /// Now and then one that there is not.
    fn any_slot(&mut self) -> u16 {
        u16::try_from(self.dice.below(u64::from(self.table.config.slots) + 1)).unwrap()
    }

    fn any_worker(&mut self) -> Option<u32> {
        let running: Vec<u32> =
            self.table.room.players.values().filter(|p| p.is_running()).map(|p| p.id.0).collect();
        let at = usize::try_from(self.dice.below(running.len() as u64)).unwrap();
        running.get(at).copied()
    }

    /// Messages about workers that are forgotten, and doubles of answers that were given.
    fn stale(&mut self) {
        let living: Vec<u32> = self.table.room.players.keys().copied().collect();
        let newest = living.last().copied().unwrap_or(0);
        let id = u32::try_from(self.dice.below(u64::from(newest) + 1)).unwrap();
        let worker = WorkerId(id);
        if living.contains(&id) {
            // Of the living only what changes nothing when it is said twice.
            return self.table.tell(Event::Woke);
        }
        let conn = ConnId(1_000_000);
        let status = ExitStatus::Signal(9);
        let all = [
            Event::HandedOff { conn, worker },
            Event::HandOffFailed { conn, worker, why: SendFailure::Full },
            Event::HandOffFailed { conn, worker, why: SendFailure::Broken },
            Event::Refused { conn },
            Event::BacklogEmpty { listener: ListenerId(9) },
            Event::ListenerClosed { listener: ListenerId(9) },
            Event::SpawnFailed { worker },
            Event::Spawned { worker },
            Event::Listening { worker, listener: ListenerId(0) },
            Event::Unlistened { worker, listener: ListenerId(0) },
            Event::SaidReady { worker },
            Event::Probed { worker },
            Event::ProbeFailed { worker },
            Event::CheckSent { worker },
            Event::Checked { worker, passed: true },
            Event::TakeBackDone { worker, removed: 3, lost: 0, empty: false },
            Event::TakeBackStuck { worker },
            Event::Exited { worker, status, orphans: false },
            Event::FamilyGone { worker },
            Event::Misbehaved { worker },
            Event::Outgrew { worker, bytes: 7 },
        ];
        let at = usize::try_from(self.dice.below(all.len() as u64)).unwrap();
        self.table.tell(all[at]);
    }

    /// A program closes its listener, and opens it again after a while.
    fn close(&mut self) {
        let Some(worker) = self.any_worker() else { return };
        let number = self.any_listener();
        let Some(player) = self.table.room.players.get_mut(&worker) else { return };
        let (worker, listener) = (player.id, ListenerId(number));
        if player.listens.remove(&number) {
            self.table.tell(Event::Unlistened { worker, listener });
            let pause = self.dice.below(50 * MS);
            self.table.run_for(pause);
            if let Some(player) = self.table.room.players.get_mut(&worker.0)
                && player.is_running()
            {
                player.listens.insert(number);
                self.table.tell(Event::Listening { worker, listener });
            }
        }
    }

    /// Faults stop: everything must become ready, served and silent.
    fn recover(&mut self) {
        self.doing = Move::Recover;
        self.table.resume(None);
        self.table.full_permille = 0;
        // What is stopped stays stopped, but somebody must be there.
        let down: Vec<u16> = self.table.down.iter().copied().collect();
        let some_stay = self.dice.permille(400);
        for (at, slot) in down.iter().enumerate() {
            if at == 0 || !(some_stay && self.dice.permille(500)) {
                self.table.start_slot(*slot);
            }
        }
        let known = self.listeners.clone();
        self.table.habits = Box::new(move |_, _, dice| Habit {
            // Slow enough to matter, fast enough for the bound.
            service: dice.between(1, 5) * MS,
            listeners: known.clone(),
            ..Habit::default()
        });
        let workers: Vec<u32> = self.table.room.players.keys().copied().collect();
        for worker in workers {
            if let Some(player) = self.table.room.players.get_mut(&worker) {
                let start = player.habit.start;
                let listeners = self.listeners.clone();
                player.habit = Habit { start, listeners, service: 5 * MS, ..Habit::default() };
            }
            self.table.kick(worker);
        }
        // Silent for good: a worker that lied before may still be found out and replaced. A lifetime
        // goes on ending.
        let mortal = self.table.config.limits.max_lifetime.is_some();
        let well = |table: &Table| {
            table.all_ready()
                && table.is_quiet()
                && (mortal || table.core.poll_timeout().is_none())
                && table.core.reloading().is_none()
        };
        for _ in 0..5 {
            let in_time = self.table.run_until(WELL_WITHIN, well);
            let (core, at) = (&self.table.core, self.table.now);
            let (timer, reloads) = (core.poll_timeout(), core.reloading());
            assert!(in_time, "it does not recover: at {at}, timer {timer:?}, reload {reloads:?}");
            self.table.run_for(SEC);
        }
        if mortal {
            assert!(self.table.run_until(WELL_WITHIN, well), "it does not recover");
            return;
        }
        assert!(
            well(&self.table),
            "it does not come to rest: {:?}",
            self.table.core.poll_timeout()
        );
        let turns = self.table.story.turns;
        self.table.run_for(5 * SEC);
        assert_eq!(self.table.story.turns, turns, "an idle primary wakes up");
        assert!(self.table.story.refused.is_empty(), "nobody may be refused before the end");
        let ended = self.table.story.served.len() + self.table.story.lost.len();
        let story = &self.table.story;
        let own = story.probes.len() + story.checks.len();
        let made = usize::try_from(self.table.connections).unwrap() - own;
        assert!(ended <= made);
    }

    fn stop(&mut self) {
        self.doing = Move::Stop;
        self.clients(40);
        if self.dice.permille(300) {
            self.table.reload(false);
            let moment = self.dice.below(1500 * MS);
            self.table.run_for(moment);
        }
        self.table.stop(false);
        if self.dice.permille(300)
            && let Some(worker) = self.any_worker()
        {
            self.table.run_for(5 * MS);
            self.table.exit(worker, ExitStatus::Signal(9), false);
        }
        let over = |table: &Table| table.story.outcome.is_some();
        assert!(self.table.run_until(15 * SEC, over), "it does not end");
        let (_, outcome) = self.table.story.outcome.unwrap();
        assert_eq!(outcome, Outcome::Stopped);
        assert!(self.table.room.players.is_empty(), "somebody is left");
    }
}
