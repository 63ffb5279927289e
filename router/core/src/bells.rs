//! Doorbells: when which worker is to wake the primary.
//!
//! While nobody has room the primary sleeps, and a worker wakes it when its queue has gone down to
//! the low mark, or, where `--max-active` holds connections back, at its next close. The words are
//! written first and the counters read afterwards (`page.rs` of the shim: the rule of the doorbell),
//! so a claim in between is seen by one side or the other.

use alloc::collections::VecDeque;

use crate::dealer::{Dealer, Total};
use crate::event::{Action, Loads};
use crate::primary::Bells;
use crate::scheduler::{Ask, Origin};
use crate::seat::{Listens, Seat, Standing};
use crate::window::low_mark;
use crate::worker::{Bell, Worker};

impl Dealer {
    /// Nobody had room for what `ask` is about: sets the bells that are not set yet. True: some word
    /// was written, so the loads must be looked at once more before the primary may sleep.
    pub(crate) fn set_bells(&mut self, ask: Ask, actions: &mut VecDeque<Action>) -> bool {
        let (now, max_active) = (self.now, self.rules.max_active);
        let (mut written, mut full, mut large) = (false, 0_u32, 0_u32);
        let (pace, total_full) = (self.pace.size(), self.total == Total::Full);
        let (by_load, differ) = (ask.policy.by_load(), self.policies.differ());
        for (seat, worker) in self.seats.iter_mut().zip(&mut self.workers) {
            if !seat.listens.contains(ask.listener) {
                continue;
            }
            let window = ask.window(seat);
            let wanted = match ask.standing(seat.standing) {
                Standing::Away | Standing::Resting | Standing::Paused => continue,
                Standing::Finishing if ask.origin == Origin::Backlog => continue,
                Standing::Doubtful => at_next_claim(seat),
                Standing::Late if seat.room(window, max_active) > 0 => at_next_claim(seat),
                Standing::Finishing | Standing::Late | Standing::Fresh | Standing::Regular => {
                    when_there_is_room(seat, window, max_active)
                }
            };
            let wanted = Bell { on_close: wanted.on_close || total_full, ..wanted };
            let wanted = if differ { sooner(seat, worker.bell, wanted) } else { wanted };
            if by_load && seat.queued() >= u64::from(window) {
                worker.window.full(now);
                full += 1;
                large += u32::from(window >= pace);
            }
            if write(seat, worker, wanted, actions) {
                worker.bells = Bells::Written;
                written = true;
            }
        }
        self.some_bell |= written;
        if full > 0 && ask.origin == Origin::Backlog {
            self.pace.full(large * 2 >= full);
        }
        written
    }

    /// The words that were set are in the pages by now: who got a new one is looked at once more.
    /// Those whose word stayed as it was have been looked at since it was written.
    pub(crate) fn forget_loads_behind_new_bells(&mut self) {
        let long_ago = self.epoch.wrapping_sub(1);
        self.floor = None;
        for (seat, worker) in self.seats.iter_mut().zip(&mut self.workers) {
            let bells = core::mem::replace(&mut worker.bells, Bells::LookedAfter);
            if bells == Bells::Written {
                seat.epoch = long_ago;
            }
        }
    }

    /// Nobody waits any more: a bell that rang now would wake the primary for nothing.
    pub(crate) fn clear_bells(&mut self, actions: &mut VecDeque<Action>) {
        if !core::mem::take(&mut self.some_bell) {
            return;
        }
        for (seat, worker) in self.seats.iter_mut().zip(&mut self.workers) {
            match seat.standing {
                // Drain and start have their own bells.
                Standing::Away | Standing::Finishing | Standing::Doubtful => {
                    self.some_bell |= worker.bell.is_set();
                }
                Standing::Resting
                | Standing::Paused
                | Standing::Late
                | Standing::Fresh
                | Standing::Regular => {
                    if worker.bell.is_set() && !has_rung(seat, worker.bell) {
                        actions.push_back(Action::Ring {
                            worker: seat.id,
                            at_claim: 0,
                            on_close: false,
                        });
                    }
                    worker.bell = Bell::default();
                }
            }
        }
    }

    /// Whether the bell of somebody who serves one of these listeners is spent, as far as was looked.
    /// Where [`Dealer::set_bells`] writes none, one that is spent stays so, and says nothing.
    pub(crate) fn some_rang(&self, waits: impl Fn(&Listens) -> bool) -> bool {
        let mut all = self.seats.iter().zip(&self.workers);
        all.any(|(seat, worker)| {
            let written =
                !matches!(seat.standing, Standing::Away | Standing::Resting | Standing::Paused);
            written && worker.bell.is_set() && has_rung(seat, worker.bell) && waits(&seat.listens)
        })
    }

    /// What one worker's bell would say is not wanted any more.
    pub(crate) fn silence(&mut self, i: usize, actions: &mut VecDeque<Action>) {
        let Some((seat, worker)) = self.both(i) else { return };
        // Also when it seems to have rung: a claim just before the word was there did not ring.
        worker.bell = Bell::default();
        actions.push_back(Action::Ring { worker: seat.id, at_claim: 0, on_close: false });
    }

    /// After the bells were set: whether one of them may have rung already. Room above the low mark
    /// does not count: the bell will tell when there is enough for a batch.
    pub(crate) fn rang_meanwhile(&mut self, ask: Ask, loads: &impl Loads) -> bool {
        let max_active = self.rules.max_active;
        let (mut well, mut late) = (false, false);
        for i in 0..self.seats.len() {
            let standing = self.standing(i, ask, loads);
            let Some((seat, worker)) = self.both(i) else { continue };
            let window = ask.window(seat);
            let enough = seat.room(window, max_active) > 0
                && (seat.queued() <= u64::from(low_mark(window)) || has_rung(seat, worker.bell));
            match standing {
                Standing::Regular | Standing::Fresh if enough => return true,
                Standing::Regular | Standing::Fresh => well = true,
                Standing::Late => late |= enough,
                Standing::Away
                | Standing::Finishing
                | Standing::Resting
                | Standing::Paused
                | Standing::Doubtful => {}
            }
        }
        late && !well
    }

    /// Sets one worker's bell for a reason of its own (drain, probe).
    pub(crate) fn ring_one(
        &mut self,
        i: usize,
        at_claim: u64,
        on_close: bool,
        actions: &mut VecDeque<Action>,
    ) -> bool {
        let Some((seat, worker)) = self.both(i) else { return false };
        let written = write(seat, worker, bell(seat, at_claim, on_close), actions);
        self.some_bell |= written;
        written
    }
}

fn bell(seat: &Seat, at_claim: u64, on_close: bool) -> Bell {
    Bell { at_claim, on_close, closed_then: closed(seat) }
}

fn at_next_claim(seat: &Seat) -> Bell {
    bell(seat, seat.claimed + 1, false)
}

fn when_there_is_room(seat: &Seat, window: u16, max_active: Option<u32>) -> Bell {
    if max_active.is_some_and(|max| seat.load() >= u64::from(max)) {
        return bell(seat, 0, true);
    }
    // Passed over because it has far more than another, whose window is full: every close brings it
    // nearer to its turn.
    if seat.queued() < u64::from(window) && seat.queued() <= u64::from(low_mark(window)) {
        return bell(seat, 0, true);
    }
    // 0 would mean: do not ring.
    let mark = seat.sent.saturating_sub(u64::from(low_mark(window)));
    bell(seat, mark.max(1), false)
}

/// One bell for two listeners that wait for different things at one worker: whatever comes first rings it.
/// Each writing its own would undo the other's, and the one would sleep until the other is served.
fn sooner(seat: &Seat, known: Bell, wanted: Bell) -> Bell {
    if !known.is_set() || has_rung(seat, known) {
        return wanted;
    }
    let at_claim = match (known.at_claim, wanted.at_claim) {
        (0, other) | (other, 0) => other,
        (one, other) => one.min(other),
    };
    let closed_then = if known.on_close { known.closed_then } else { wanted.closed_then };
    Bell { at_claim, on_close: known.on_close || wanted.on_close, closed_then }
}

pub(crate) fn closed(seat: &Seat) -> u64 {
    seat.claimed.saturating_sub(seat.active())
}

/// Whether the worker has rung, so that the words in its page are 0 by now.
fn has_rung(seat: &Seat, bell: Bell) -> bool {
    let claimed = bell.at_claim != 0 && seat.claimed >= bell.at_claim;
    claimed || (bell.on_close && closed(seat) > bell.closed_then)
}

pub(crate) fn write(
    seat: &Seat,
    worker: &mut Worker,
    wanted: Bell,
    actions: &mut VecDeque<Action>,
) -> bool {
    let same = worker.bell.at_claim == wanted.at_claim && worker.bell.on_close == wanted.on_close;
    if same && !has_rung(seat, worker.bell) {
        return false;
    }
    worker.bell = wanted;
    actions.push_back(Action::Ring {
        worker: seat.id,
        at_claim: wanted.at_claim,
        on_close: wanted.on_close,
    });
    true
}
