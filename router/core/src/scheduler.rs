//! Choosing: which of the workers that may have a connection gets it.
//!
//! | policy | a client's connection | one that the primary holds (taken back) |
//! |---|---|---|
//! | `least`, `shared`, `reuseport` | least load, next in turn among equals | the same |
//! | `rr` | next in turn | least load: it has waited already |
//! | `ip` | the client's slot, else the next by score | the same |
//!
//! Always: only workers that listen there and have room; late ones only if all are late.

use crate::config::Policy;
use crate::dealer::Dealer;
use crate::event::{ListenerId, Loads, WorkerId};
use crate::seat::{Seat, Standing};
use crate::sticky::Sticky;

/// For what a worker is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) listener: ListenerId,
    /// Who had the last connection of this listener.
    pub(crate) last: WorkerId,
    pub(crate) origin: Origin,
}

/// Where the connection is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In the backlog.
    Backlog,
    /// In the primary's hands.
    Held,
}

/// What a scan has found so far.
#[derive(Debug, Default)]
struct Scan {
    best: Option<(u64, usize)>,
    /// A fresh worker that has used up its share.
    fresh: Option<(u64, usize)>,
    late: Option<(u64, usize)>,
    /// Workers that are not late, with or without room.
    well: bool,
    /// Least load among those that are not fresh.
    least_settled: Option<u64>,
}

impl Scan {
    fn offer(place: &mut Option<(u64, usize)>, load: u64, i: usize) {
        if place.is_none_or(|(best, _)| load < best) {
            *place = Some((load, i));
        }
    }

    /// The choice: fresh workers beyond their share only when nobody else can take it, late ones
    /// only when all are late.
    fn choice(&self) -> Option<usize> {
        let late = if self.well { None } else { self.late };
        self.best.or(self.fresh).or(late).map(|(_, i)| i)
    }
}

impl Dealer {
    /// The worker for a connection by load or turn.
    pub(crate) fn choose(&mut self, ask: Ask, loads: &impl Loads) -> Option<usize> {
        match self.rules.policy {
            Policy::Rr if ask.origin == Origin::Backlog => self.next_in_turn(ask, loads),
            Policy::Rr | Policy::Least | Policy::Ip | Policy::Shared | Policy::Reuseport => {
                self.least(ask, loads)
            }
        }
    }

    /// What dealing may do with seat `i` for this question, after a look at its load.
    pub(crate) fn standing(&mut self, i: usize, ask: Ask, loads: &impl Loads) -> Standing {
        let Some(seat) = self.seats.get(i) else { return Standing::Away };
        if seat.standing == Standing::Away || !seat.listens.contains(ask.listener) {
            return Standing::Away;
        }
        self.look(i, loads);
        match self.seats.get(i).map_or(Standing::Away, |seat| seat.standing) {
            Standing::Finishing if ask.origin == Origin::Held => Standing::Regular,
            Standing::Finishing | Standing::Doubtful | Standing::Paused | Standing::Away => {
                Standing::Away
            }
            standing @ (Standing::Late | Standing::Fresh | Standing::Regular) => standing,
        }
    }

    fn least(&mut self, ask: Ask, loads: &impl Loads) -> Option<usize> {
        let count = self.seats.len();
        let mut scan = Scan::default();
        let mut i = self.behind(ask.last);
        // A fresh worker may be below the floor without its turn having come.
        let floor = match self.floor {
            Some((listener, floor)) if listener == ask.listener && self.fresh == 0 => floor,
            Some(_) | None => 0,
        };
        for _ in 0..count {
            if i >= count {
                i = 0;
            }
            let standing = self.standing(i, ask, loads);
            if standing != Standing::Away && self.offer(&mut scan, standing, i, floor) {
                return self.chosen(&scan, ask.listener);
            }
            i += 1;
        }
        // All were looked at.
        self.floor = scan.best.map(|(load, _)| (ask.listener, load));
        self.chosen(&scan, ask.listener)
    }

    fn chosen(&mut self, scan: &Scan, listener: ListenerId) -> Option<usize> {
        if self.fresh > 0 {
            self.settle_in_fresh(scan, listener);
        }
        scan.choice()
    }

    /// Adds a seat to a scan. True: with a load of `floor` or less, nothing better can come.
    fn offer(&self, scan: &mut Scan, standing: Standing, i: usize, floor: u64) -> bool {
        let Some(seat) = self.seats.get(i) else { return false };
        let load = seat.load();
        let has_room = seat.room(self.rules.max_active) > 0;
        match standing {
            Standing::Regular => {
                scan.well = true;
                scan.least_settled = Some(scan.least_settled.map_or(load, |least| least.min(load)));
                if has_room {
                    Scan::offer(&mut scan.best, load, i);
                }
                has_room && load <= floor
            }
            Standing::Fresh => {
                scan.well = true;
                let worker = self.workers.get(i);
                let may = worker.and_then(|w| w.fresh.as_ref()).is_none_or(|fresh| fresh.may());
                if has_room {
                    Scan::offer(if may { &mut scan.best } else { &mut scan.fresh }, load, i);
                }
                false
            }
            Standing::Late => {
                if has_room {
                    Scan::offer(&mut scan.late, load, i);
                }
                false
            }
            Standing::Away | Standing::Finishing | Standing::Paused | Standing::Doubtful => false,
        }
    }

    /// Fresh workers whose load has caught up with the least of the others are fresh no more.
    fn settle_in_fresh(&mut self, scan: &Scan, listener: ListenerId) {
        let Some(least) = scan.least_settled else { return };
        for i in 0..self.seats.len() {
            let caught_up = self.seats.get(i).is_some_and(|seat| {
                seat.standing == Standing::Fresh
                    && seat.listens.contains(listener)
                    && seat.load() >= least
            });
            if caught_up {
                self.settle_in(i);
            }
        }
    }

    fn next_in_turn(&mut self, ask: Ask, loads: &impl Loads) -> Option<usize> {
        let count = self.seats.len();
        let mut scan = Scan::default();
        let mut i = self.behind(ask.last);
        for _ in 0..count {
            if i >= count {
                i = 0;
            }
            let standing = self.standing(i, ask, loads);
            if standing != Standing::Away {
                self.offer(&mut scan, standing, i, 0);
                if scan.best.is_some() {
                    break;
                }
            }
            i += 1;
        }
        scan.choice()
    }

    /// Whether anybody has room: enough to know where the client decides who gets it.
    pub(crate) fn anybody(&mut self, ask: Ask, loads: &impl Loads) -> bool {
        self.next_in_turn(ask, loads).is_some()
    }

    /// Connections that could be dealt on this listener now.
    pub(crate) fn room(&mut self, ask: Ask, loads: &impl Loads) -> u64 {
        let (mut well, mut late) = (None, 0_u64);
        for i in 0..self.seats.len() {
            let standing = self.standing(i, ask, loads);
            let room = self.seats.get(i).map_or(0, |seat| seat.room(self.rules.max_active));
            match standing {
                Standing::Regular | Standing::Fresh => well = Some(well.unwrap_or(0) + room),
                Standing::Late => late += room,
                Standing::Away | Standing::Finishing | Standing::Paused | Standing::Doubtful => {}
            }
        }
        well.unwrap_or(late)
    }

    /// The worker for a client that sticks to its slot: the highest score among the slots that are
    /// up; if that one is full, the next.
    pub(crate) fn sticky(&mut self, ask: Ask, client: Sticky, loads: &impl Loads) -> Option<usize> {
        let cap = self.load_cap(ask, loads);
        let mut below = None;
        for _ in 0..self.seats.len() {
            let (score, i) = self.highest(ask, client, below)?;
            self.look(i, loads);
            let fits = |seat: &Seat| {
                seat.room(self.rules.max_active) > 0 && cap.is_none_or(|cap| seat.load() < cap)
            };
            if self.seats.get(i).is_some_and(fits) {
                return Some(i);
            }
            below = Some(score);
        }
        None
    }

    /// The seat with the highest score under `below`.
    fn highest(&self, ask: Ask, client: Sticky, below: Option<u64>) -> Option<(u64, usize)> {
        let mut best: Option<(u64, usize)> = None;
        for (i, (seat, salt)) in self.seats.iter().zip(&self.salts).enumerate() {
            let sits = match seat.standing {
                Standing::Late | Standing::Fresh | Standing::Regular => true,
                Standing::Finishing => ask.origin == Origin::Held,
                Standing::Away | Standing::Paused | Standing::Doubtful => false,
            };
            if !sits || !seat.listens.contains(ask.listener) {
                continue;
            }
            let score = client.score(*salt);
            if below.is_none_or(|below| score < below) && best.is_none_or(|(top, _)| score > top) {
                best = Some((score, i));
            }
        }
        best
    }

    /// `--sticky-bound`: the load that a worker must stay under to get one more. With a bound of at
    /// least 1 somebody always is.
    fn load_cap(&mut self, ask: Ask, loads: &impl Loads) -> Option<u64> {
        let bound = u64::from(self.rules.sticky_bound?.max(1000));
        let (mut total, mut count) = (1, 0);
        for i in 0..self.seats.len() {
            if self.standing(i, ask, loads) != Standing::Away {
                total += self.seats.get(i).map_or(0, Seat::load);
                count += 1;
            }
        }
        Some((bound * total).div_ceil(1000 * u64::max(count, 1)))
    }
}
