//! Choosing: which of the workers that may have a connection gets it.
//!
//! | policy | a client's connection | one that the primary holds (taken back) |
//! |---|---|---|
//! | `least`, `shared`, `reuseport` | least load, next in turn among equals | the same |
//! | `rr` | next in turn | least load: it has waited already |
//! | `ip` | the client's slot, else the next by score | the same |
//!
//! The policy is the listener's, the turn of `rr` too; the load is the worker's, whichever listener it
//! comes from. Always: only workers that listen there and have room; late ones only if all are late,
//! except to clients that stick to one, as long as it lives.

use crate::config::Policy;
use crate::dealer::{Dealer, STICKY_QUEUE_MAX};
use crate::event::{ListenerId, Loads, WorkerId};
use crate::seat::{Seat, Standing};
use crate::sticky::Sticky;

/// How much more than the least loaded, whose window is full, the chosen worker may have. Where
/// connections are short a full window is the larger load, and this never matters.
const SKEW: u64 = 16;

/// For what a worker is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) listener: ListenerId,
    /// How the listener's clients are dealt.
    pub(crate) policy: Policy,
    /// Who had the last connection of this listener.
    pub(crate) last: WorkerId,
    pub(crate) origin: Origin,
    /// Some listener deals by load: what nobody has room for by load waits where it is.
    pub(crate) narrow: bool,
}

impl Ask {
    /// The window that a worker has here. A queue is one for all listeners: if what sticks were let in
    /// until 256 wait, a listener that deals by load would find a window that is never open. Once it
    /// is let in, it goes to its own worker, up to 256 ([`Ask::for_one`]).
    pub(crate) fn window(self, seat: &Seat) -> u16 {
        if self.narrow || self.policy.by_load() { seat.window } else { STICKY_QUEUE_MAX }
    }

    /// The same about one connection, whose client may stick to a worker.
    pub(crate) fn for_one(self) -> Self {
        Self { narrow: false, ..self }
    }

    /// How many more a worker may have of these now.
    pub(crate) fn room(self, seat: &Seat, max_active: Option<u32>) -> u64 {
        seat.room(self.window(seat), max_active)
    }

    /// What a worker's standing means here. A new worker is not spared where it is its turn; and who
    /// sticks to a late one waits for it, as he would if no other listener dealt by load. Room at a late
    /// one does not let in clients of all the others, though.
    pub(crate) fn standing(self, standing: Standing) -> Standing {
        match (standing, self.policy) {
            (Standing::Fresh, Policy::Rr | Policy::Ip) => Standing::Regular,
            (Standing::Late | Standing::Doubtful, Policy::Ip) if !self.narrow => Standing::Regular,
            (other, _) => other,
        }
    }
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
        match ask.policy {
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
        let standing = self.seats.get(i).map_or(Standing::Away, |seat| seat.standing);
        match ask.standing(standing) {
            Standing::Finishing if ask.origin == Origin::Held => Standing::Regular,
            Standing::Finishing
            | Standing::Doubtful
            | Standing::Resting
            | Standing::Paused
            | Standing::Away => Standing::Away,
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
            if standing != Standing::Away && self.offer(&mut scan, ask, standing, i, floor) {
                return self.chosen(&scan, ask);
            }
            i += 1;
        }
        // All were looked at.
        let least = scan.best.map(|(load, _)| scan.least_settled.unwrap_or(load).min(load));
        self.floor = least.map(|load| (ask.listener, load));
        if ask.origin == Origin::Backlog && Self::is_lopsided(&scan) {
            return None;
        }
        self.chosen(&scan, ask)
    }

    /// Whether whoever has room has far more than somebody whose window is merely full: then clients
    /// wait for that one's bell. Without this, connections that stay open pile up at the worker that
    /// happens to be on the CPU. A worker that does not claim is late soon, and waited for no more.
    fn is_lopsided(scan: &Scan) -> bool {
        // While a fresh worker is held back the shares are not settled anyway.
        match (scan.best, scan.least_settled, scan.fresh) {
            (Some((load, _)), Some(least), None) => load > least + SKEW,
            (None, _, _) | (_, None, _) | (_, _, Some(_)) => false,
        }
    }

    fn chosen(&mut self, scan: &Scan, ask: Ask) -> Option<usize> {
        if self.fresh > 0 && ask.policy == Policy::Least {
            self.settle_in_fresh(scan, ask.listener);
        }
        scan.choice()
    }

    /// Adds a seat to a scan. True: with a load of `floor` or less, nothing better can come.
    fn offer(&self, scan: &mut Scan, ask: Ask, standing: Standing, i: usize, floor: u64) -> bool {
        let Some(seat) = self.seats.get(i) else { return false };
        let load = seat.load();
        let has_room = ask.room(seat, self.rules.max_active) > 0;
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
            Standing::Away
            | Standing::Finishing
            | Standing::Resting
            | Standing::Paused
            | Standing::Doubtful => false,
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
                self.offer(&mut scan, ask, standing, i, 0);
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
            let room = self.seats.get(i).map_or(0, |seat| ask.room(seat, self.rules.max_active));
            match standing {
                Standing::Regular | Standing::Fresh => well = Some(well.unwrap_or(0) + room),
                Standing::Late => late += room,
                Standing::Away
                | Standing::Finishing
                | Standing::Resting
                | Standing::Paused
                | Standing::Doubtful => {}
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
                ask.room(seat, self.rules.max_active) > 0 && cap.is_none_or(|cap| seat.load() < cap)
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
            let sits = match ask.standing(seat.standing) {
                Standing::Late | Standing::Fresh | Standing::Regular => true,
                Standing::Finishing => ask.origin == Origin::Held,
                Standing::Away | Standing::Resting | Standing::Paused | Standing::Doubtful => false,
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

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use core::time::Duration;

    use super::*;
    use crate::dealer::{Round, Rules};
    use crate::event::{Generation, Load, SlotId};
    use crate::policies::Policies;
    use crate::time::Now;
    use crate::worker::{Fresh, Lateness, State, Worker};

    const ON: ListenerId = ListenerId(0);

    /// What a worker is, what it has, and how much it may have queued.
    type Row = (Is, u64, u16);
    /// Who is asked for what, after whom, of which table, and who gets it.
    type Case<'a> = (Policy, Origin, u32, &'a [Row], Option<u32>);

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Is {
        Well,
        Late,
        Doubtful,
        Fresh,
        Paused,
        Parked,
        Finishing,
        Killing,
    }

    struct Empty;

    impl Loads for Empty {
        fn load(&self, _: WorkerId) -> Load {
            Load { claimed: 0, active: Some(0) }
        }

        fn queued_exact(&self, _: WorkerId) -> Option<u32> {
            None
        }

        fn lacks_cpu(&self, _: WorkerId) -> bool {
            false
        }
    }

    /// A table in the last round, so that those that finish have a standing.
    fn dealer(policy: Policy, rows: &[Row]) -> Dealer {
        let rules = Rules {
            max_active: None,
            queue_limit: 64,
            stall_after: Duration::from_millis(100),
            slow_start: Duration::from_secs(10),
            sticky_bound: None,
        };
        let now = Now(1);
        let mut dealer = Dealer::new(rules, Policies::new(policy), now);
        dealer.round = Round::Last;
        for ((is, load, window), number) in rows.iter().zip(1_u16..) {
            let (id, slot) = (WorkerId(u32::from(number)), SlotId(number - 1));
            let mut worker = Worker::new(id, slot, Generation(1), now, 64, now);
            worker.handed_off = *load;
            worker.state = match is {
                Is::Parked => State::Parked { since: now },
                Is::Finishing => State::Finishing { deadline: now },
                Is::Killing => State::Killing { since: now },
                Is::Well | Is::Late | Is::Doubtful | Is::Fresh | Is::Paused => {
                    State::Ready { since: now }
                }
            };
            match is {
                Is::Late => worker.lateness = Lateness::Late,
                Is::Doubtful => worker.lateness = Lateness::Probed,
                Is::Paused => worker.paused = Some(now),
                Is::Fresh => {
                    worker.fresh = Some(Fresh::new(now));
                    dealer.fresh += 1;
                }
                Is::Well | Is::Parked | Is::Finishing | Is::Killing => {}
            }
            dealer.seat(worker);
            let i = dealer.seats.len() - 1;
            dealer.seats[i].listens.insert(ON);
            dealer.seats[i].window = *window;
            // As if just looked at.
            dealer.seats[i].epoch = dealer.epoch;
            dealer.resent(i);
            dealer.restand(i);
        }
        dealer
    }

    /// As on one of two listeners, the other of which deals as `beside`.
    fn chosen_beside(
        beside: Policy,
        (policy, origin, last): (Policy, Origin, u32),
        rows: &[Row],
    ) -> Option<u32> {
        let ask = Ask { listener: ON, policy, last: WorkerId(last), origin, narrow: false };
        let mut dealer = dealer(beside, rows);
        dealer.set_policy(ListenerId(1), beside);
        dealer.set_policy(ON, policy);
        let i = dealer.choose(ask, &Empty)?;
        Some(dealer.seats[i].id.0)
    }

    fn chosen(policy: Policy, origin: Origin, last: u32, rows: &[Row]) -> Option<u32> {
        chosen_beside(policy, (policy, origin, last), rows)
    }

    #[test]
    fn who_gets_it() {
        use Is::{Doubtful, Finishing, Fresh, Killing, Late, Parked, Paused, Well};
        use Origin::{Backlog, Held};
        use Policy::{Least, Rr};
        #[rustfmt::skip]
        let table: [Case<'_>; 22] = [
            // The least load; among equals the next in turn.
            (Least, Backlog, 0, &[(Well, 2, 8), (Well, 1, 8), (Well, 3, 8)],          Some(2)),
            (Least, Backlog, 0, &[(Well, 1, 8), (Well, 1, 8), (Well, 1, 8)],          Some(1)),
            (Least, Backlog, 1, &[(Well, 1, 8), (Well, 1, 8), (Well, 1, 8)],          Some(2)),
            (Least, Backlog, 3, &[(Well, 1, 8), (Well, 1, 8), (Well, 1, 8)],          Some(1)),
            (Least, Backlog, 2, &[(Well, 0, 8), (Well, 0, 8), (Well, 4, 8)],          Some(1)),
            // The next in turn, whatever it has.
            (Rr,    Backlog, 1, &[(Well, 0, 8), (Well, 5, 8), (Well, 0, 8)],          Some(2)),
            (Rr,    Held,    1, &[(Well, 1, 8), (Well, 5, 8), (Well, 0, 8)],          Some(3)),
            // Only with room.
            (Least, Backlog, 0, &[(Well, 1, 1), (Well, 2, 8)],                        Some(2)),
            (Rr,    Backlog, 0, &[(Well, 1, 1), (Well, 2, 8)],                        Some(2)),
            (Least, Backlog, 0, &[(Well, 1, 1), (Well, 2, 2)],                        None),
            // Late ones only if all are late.
            (Least, Backlog, 0, &[(Late, 0, 8), (Well, 5, 8)],                        Some(2)),
            (Rr,    Backlog, 0, &[(Late, 0, 8), (Well, 5, 8)],                        Some(2)),
            (Least, Backlog, 0, &[(Late, 0, 8), (Well, 5, 5)],                        None),
            (Least, Backlog, 0, &[(Late, 2, 8), (Late, 1, 8)],                        Some(2)),
            // Doubtful, paused, parked, dying ones never.
            (Least, Backlog, 0, &[(Doubtful, 0, 8), (Paused, 0, 8)],                  None),
            (Least, Backlog, 0, &[(Parked, 0, 8), (Killing, 0, 8)],                   None),
            (Least, Held,    0, &[(Parked, 0, 8), (Killing, 0, 8), (Doubtful, 0, 8)], None),
            // Those that finish only what the primary holds.
            (Least, Backlog, 0, &[(Finishing, 0, 8)],                                 None),
            (Least, Held,    0, &[(Finishing, 1, 8), (Finishing, 0, 8)],              Some(2)),
            // Fresh ones beyond their share only if nobody else can take it.
            (Least, Backlog, 0, &[(Fresh, 0, 8), (Well, 5, 8)],                       Some(2)),
            (Least, Backlog, 0, &[(Fresh, 0, 8), (Well, 5, 5)],                       Some(1)),
            (Least, Backlog, 0, &[],                                                  None),
        ];
        for (policy, origin, last, rows, expected) in table {
            assert_eq!(
                chosen(policy, origin, last, rows),
                expected,
                "{policy:?} {origin:?} {last} {rows:?}"
            );
        }
    }

    /// What another listener's policy makes of a worker (late, fresh, doubtful, a narrow window) is
    /// nothing to clients that stick to it, and being fresh nothing to those whose turn it is.
    #[test]
    fn who_gets_it_beside_a_listener_of_another_policy() {
        use Is::{Doubtful, Fresh, Late, Paused, Well};
        use Origin::{Backlog, Held};
        use Policy::{Ip, Least, Rr};
        #[rustfmt::skip]
        let table: [(Policy, Case<'_>); 12] = [
            // A window of 1 that is full is none here.
            (Least, (Ip,    Backlog, 0, &[(Well, 1, 1), (Well, 3, 1)],              Some(1))),
            (Ip,    (Least, Backlog, 0, &[(Well, 1, 1), (Well, 3, 1)],              None)),
            (Ip,    (Rr,    Backlog, 0, &[(Well, 1, 1), (Well, 3, 8)],              Some(2))),
            // Late, doubtful and fresh are like any other.
            (Rr,    (Ip,    Backlog, 0, &[(Late, 0, 1), (Well, 5, 1)],              Some(1))),
            (Rr,    (Ip,    Held,    0, &[(Doubtful, 0, 1), (Well, 5, 1)],          Some(1))),
            (Least, (Ip,    Backlog, 0, &[(Fresh, 0, 1), (Well, 5, 1)],             Some(1))),
            (Least, (Ip,    Backlog, 0, &[(Paused, 0, 1), (Doubtful, 5, 1)],        Some(2))),
            // … where the other listener deals.
            (Ip,    (Rr,    Backlog, 0, &[(Late, 0, 8), (Well, 5, 8)],              Some(2))),
            (Ip,    (Least, Backlog, 0, &[(Doubtful, 0, 8), (Well, 5, 8)],          Some(2))),
            // A turn is a turn.
            (Least, (Rr,    Backlog, 0, &[(Fresh, 0, 8), (Well, 0, 8)],             Some(1))),
            (Least, (Rr,    Backlog, 1, &[(Well, 0, 8), (Fresh, 9, 16)],            Some(2))),
            (Rr,    (Least, Backlog, 0, &[(Fresh, 0, 8), (Well, 5, 5)],             Some(1))),
        ];
        for (beside, (policy, origin, last, rows, expected)) in table {
            assert_eq!(
                chosen_beside(beside, (policy, origin, last), rows),
                expected,
                "{policy:?} beside {beside:?} {origin:?} {last} {rows:?}"
            );
        }
    }

    #[test]
    fn room_counts_late_ones_only_if_all_are_late() {
        let policy = Policy::Least;
        let ask =
            Ask { listener: ON, policy, last: WorkerId(0), origin: Origin::Backlog, narrow: false };
        let room = |rows: &[Row]| dealer(Policy::Least, rows).room(ask, &Empty);
        assert_eq!(room(&[(Is::Well, 2, 8), (Is::Late, 0, 8), (Is::Well, 1, 4)]), 9);
        assert_eq!(room(&[(Is::Late, 1, 8), (Is::Late, 0, 8)]), 15);
        assert_eq!(room(&[(Is::Well, 8, 8), (Is::Late, 0, 8)]), 0);
    }

    #[test]
    fn a_sticky_client_goes_down_the_order_of_its_scores() {
        let policy = Policy::Ip;
        let ask =
            Ask { listener: ON, policy, last: WorkerId(0), origin: Origin::Backlog, narrow: false };
        let client = Sticky::of(crate::event::Client::V4([10, 1, 2, 3]), [1, 2]).unwrap();
        let mut rows = [(Is::Well, 0, 4); 6];
        let mut order = Vec::new();
        for _ in 0..6 {
            let i = dealer(Policy::Ip, &rows).sticky(ask, client, &Empty).unwrap();
            order.push(i);
            rows[i].1 = u64::from(STICKY_QUEUE_MAX);
        }
        assert_eq!(dealer(Policy::Ip, &rows).sticky(ask, client, &Empty), None);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    }
}
