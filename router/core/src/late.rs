//! Late workers: who is, and what is done about it.
//!
//! Late is normal for a saturated blocking server, so it is information, not an alarm. Connections
//! are stolen from a late worker only while another is idle, or quick enough to claim the next one at
//! once: one for each such worker, the oldest first. (Where all are busy but quick, what lies behind a
//! stuck one would else wait until clients become few.) A worker whose queue was emptied by stealing gets a probe, and connections again once it
//! claims it. Clients that stick to a late worker (`ip`) are dealt to it as ever, and never stolen. If all are late they are saturated, and their queues are left alone. On a host that is
//! out of CPU everybody looks late and moving connections helps nobody: who only lacks CPU is not.

use core::time::Duration;

use crate::event::{Loads, Report, TakeBackReason, Whose};
use crate::primary::Core;
use crate::seat::{ACTIVE_UNKNOWN, Standing};
use crate::time::Now;
use crate::worker::{Lateness, ReadyProbe, State};

/// How often the others are looked at for one that is idle while somebody is late.
const WATCH: Duration = Duration::from_millis(20);
/// Suspects about whom one look asks whether they lack CPU; the others wait for the next. Reading
/// /proc costs some 15 µs each.
const SUSPECTS_MAX: usize = 8;
/// A worker that claimed at once so recently will claim the next one at once too.
const PROMPT: Duration = Duration::from_millis(50);

impl Core {
    /// A connection was queued: it may become late, and its worker may say what is not so of it.
    pub(crate) fn expect_lateness(&mut self) {
        if self.late_at.is_none() && self.dealer.policies.by_hand() {
            self.late_at = Some(self.dealer.now.after(self.config.stall_after));
        }
    }

    /// Another `--stall-after` may be in force: nobody is looked at later than by this one.
    pub(crate) fn look_sooner(&mut self) {
        let (now, stall_after) = (self.dealer.now, self.config.stall_after);
        self.late_at = self.late_at.map(|at| at.min(now.after(stall_after)));
        for worker in &mut self.dealer.workers {
            worker.audit.look_sooner(stall_after, now);
        }
    }

    /// With one worker there is nobody to steal for.
    fn lateness_matters(&self) -> bool {
        self.ready >= 2 && self.dealer.policies.by_load()
    }

    /// The time at which something may have become late has come.
    pub(crate) fn look_for_late(&mut self, loads: &impl Loads) {
        let now = self.dealer.now;
        let overslept = self.late_at.is_some_and(|at| now.since(at) > self.config.stall_after / 2);
        self.late_at = None;
        if !self.dealer.policies.by_hand() {
            return;
        }
        if overslept {
            // The primary itself was held up, so all it sees is old: it suspects nobody this time.
            self.late_at = Some(now.after(WATCH));
            return;
        }
        let count = self.dealer.workers.len();
        let mut next = (0..count).filter_map(|i| self.audit(i, loads)).min();
        if !self.lateness_matters() {
            self.late_at = next;
            self.find_deadline();
            return;
        }
        let (first, mut suspects) = (self.suspects_from, 0);
        for i in (0..count).map(|step| (first + step) % count) {
            let before = suspects;
            let at = self.judge(i, &mut suspects, loads);
            if suspects == SUSPECTS_MAX && before < suspects {
                // Next time the others come first.
                self.suspects_from = (i + 1) % count;
            }
            next = match (next, at) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        self.steal(loads);
        self.late_at = next;
        self.find_deadline();
    }

    /// A probe's bell may have rung: what nobody deals to, nobody looks at.
    pub(crate) fn look_at_doubtful(&mut self, loads: &impl Loads) {
        for i in 0..self.dealer.seats.len() {
            let seat = self.dealer.seats.get(i);
            if seat.is_some_and(|seat| seat.standing == Standing::Doubtful) {
                self.dealer.look(i, loads);
            }
        }
    }

    /// Whether worker `i` is late; when it must be looked at again. Counts those of whom it was asked
    /// whether they lack CPU.
    fn judge(&mut self, i: usize, suspects: &mut usize, loads: &impl Loads) -> Option<Now> {
        let now = self.dealer.now;
        let stall_after = self.config.stall_after;
        if !matches!(self.dealer.workers.get(i)?.state, State::Ready { .. }) {
            return None;
        }
        self.dealer.look(i, loads);
        let (seat, worker) = self.dealer.both(i)?;
        match worker.lateness {
            Lateness::No | Lateness::Late => {}
            // A probe decides, and its bell wakes the primary.
            Lateness::Emptied | Lateness::Probed => return None,
        }
        let oldest = worker.oldest(seat.claimed)?;
        let becomes_late = oldest.after(stall_after);
        if now < becomes_late {
            return Some(becomes_late);
        }
        if worker.lateness == Lateness::No && *suspects >= SUSPECTS_MAX {
            // Before the kernel is asked: where all of 256 are suspects, asking about each is dear too.
            return Some(now.after(WATCH));
        }
        if loads.queued_exact(seat.id) == Some(0) {
            // It is about to count what it has claimed; whether it does, the audit sees.
            return Some(now.after(stall_after.max(WATCH)));
        }
        if worker.lateness == Lateness::No {
            *suspects += 1;
            if loads.lacks_cpu(seat.id) {
                return Some(now.after(WATCH));
            }
            worker.lateness = Lateness::Late;
            let worker = seat.id;
            self.report(Report::Late { worker });
            self.dealer.restand(i);
        }
        Some(now.after(WATCH))
    }

    /// Takes the oldest connections of late workers for those that are idle.
    fn steal(&mut self, loads: &impl Loads) {
        let mut willing = 0_u32;
        for i in 0..self.dealer.workers.len() {
            willing += u32::from(self.claims_soon(i));
        }
        let on_the_way = u32::try_from(self.ledger.held.len()).unwrap_or(u32::MAX);
        let mut wanted = willing
            .saturating_sub(on_the_way)
            .saturating_sub(self.ledger.expected)
            .min(self.ledger.room());
        // Oldest first over all victims: with few of them, looking for the oldest each time is cheap.
        let mut taken = alloc::vec![0_u32; self.dealer.workers.len()];
        while wanted > 0 {
            let Some(victim) = self.oldest_victim(&taken, loads) else { break };
            if let Some(count) = taken.get_mut(victim) {
                *count += 1;
            }
            wanted -= 1;
        }
        for (i, count) in taken.into_iter().enumerate() {
            if count > 0 {
                self.take_back(i, count, Whose::Loose, TakeBackReason::Steal);
            }
        }
    }

    /// Will claim at once what is stolen for it: it is idle, or quick.
    fn claims_soon(&self, i: usize) -> bool {
        let (Some(seat), Some(worker)) = (self.dealer.seats.get(i), self.dealer.workers.get(i))
        else {
            return false;
        };
        match seat.standing {
            Standing::Fresh | Standing::Regular => {}
            Standing::Away
            | Standing::Finishing
            | Standing::Resting
            | Standing::Paused
            | Standing::Doubtful
            | Standing::Late => return false,
        }
        let just_claimed = worker.prompt.is_some_and(|at| self.dealer.now.since(at) <= PROMPT);
        // In a saturated pool everybody has just claimed, but what had stood for long.
        let idle = seat.queued() == 0
            && match seat.active {
                0 => true,
                ACTIVE_UNKNOWN => worker.prompt.is_some() || worker.handed_off == 0,
                _ => false,
            };
        idle || just_claimed
    }

    /// The late worker whose oldest connection, apart from those already chosen, is the oldest.
    fn oldest_victim(&self, taken: &[u32], loads: &impl Loads) -> Option<usize> {
        let mut oldest: Option<(Now, usize)> = None;
        let all = self.dealer.seats.iter().zip(&self.dealer.workers).zip(taken).enumerate();
        for (i, ((seat, worker), taken)) in all {
            let free = worker.taking.is_none() && worker.take_after <= self.dealer.now;
            let waits = matches!(seat.standing, Standing::Late | Standing::Resting);
            if worker.lateness != Lateness::Late || !waits || !free {
                continue;
            }
            // It would take a look in vain each time, and with some of these none were left for others.
            if worker.yields_nothing == Some(worker.taken_back + seat.claimed) {
                continue;
            }
            if u64::from(*taken) >= seat.queued()
                || loads.queued_exact(seat.id).unwrap_or(0) <= *taken
            {
                continue;
            }
            let number = worker.taken_back + seat.claimed + u64::from(*taken);
            let since = worker.times.get(number);
            if oldest.is_none_or(|(other, _)| since < other) {
                oldest = Some((since, i));
            }
        }
        oldest.map(|(_, i)| i)
    }

    /// A steal ended.
    pub(crate) fn stole(&mut self, i: usize, count: u32, empty: bool) {
        let now = self.dealer.now;
        let Some((seat, worker)) = self.dealer.both(i) else { return };
        let id = seat.id;
        if empty && worker.lateness == Lateness::Late && worker.in_flight == 0 {
            worker.lateness = Lateness::Emptied;
            worker.probe = ReadyProbe::Due { after: now };
            self.dealer.restand(i);
            self.ask_probe(i);
        }
        if count > 0 {
            self.report(Report::Stole { worker: id, count });
        }
    }
}
