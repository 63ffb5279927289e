//! What one connection costs in the core: no allocation, and as few looks at pages as can be.

use std::cell::Cell;

use croupier_core::Core;
use croupier_core::config::Policy;
use croupier_core::event::{
    Action, Arrival, Client, ConnId, Event, ListenerId, Load, Loads, WorkerId,
};
use croupier_core::time::Now;

use crate::table::{MS, SEC, config};

const ON: ListenerId = ListenerId(0);

/// Pages that count how often they are read.
struct Pages {
    claimed: Vec<Cell<u64>>,
    active: u32,
    reads: Cell<u64>,
}

impl Loads for Pages {
    fn load(&self, worker: WorkerId) -> Load {
        self.reads.set(self.reads.get() + 1);
        let claimed = self.claimed.get(worker.0 as usize).map_or(0, Cell::get);
        Load { claimed, active: Some(self.active) }
    }

    fn queued_exact(&self, _: WorkerId) -> Option<u32> {
        None
    }

    fn lacks_cpu(&self, _: WorkerId) -> bool {
        false
    }
}

struct Dealt {
    core: Core,
    pages: Pages,
    now: u64,
}

impl Dealt {
    /// Workers that are ready, each with `active` connections.
    fn new(slots: u16, policy: Policy, active: u32) -> Self {
        let now = SEC;
        let mut core = Core::new(config(slots, policy), Now(now));
        let claimed = vec![Cell::new(0); usize::from(slots) + 1];
        let pages = Pages { claimed, active, reads: Cell::new(0) };
        core.handle(
            Event::ListenerOpened { listener: ON, declared: true, policy },
            Now(now),
            &pages,
        );
        for worker in (1..=u32::from(slots)).map(WorkerId) {
            core.handle(Event::Spawned { worker }, Now(now), &pages);
            core.handle(Event::Listening { worker, listener: ON }, Now(now), &pages);
        }
        while core.poll_action().is_some() {}
        assert_eq!(core.ready_count(), slots);
        Self { core, pages, now }
    }

    fn turn(&mut self) {
        self.now += MS / 10;
        self.core.handle(Event::Woke, Now(self.now), &self.pages);
    }

    /// One connection, as the shell deals it, claimed at once.
    fn one(&mut self, host: u8) -> bool {
        if !self.core.wants_accept(ON, Now(self.now), &self.pages) {
            while self.core.poll_action().is_some() {}
            return false;
        }
        let client = Client::V4([10, 0, 0, host]);
        let arrival = Arrival { conn: ConnId(7), listener: ON, client };
        self.core.handle(Event::Accepted(arrival), Now(self.now), &self.pages);
        while let Some(action) = self.core.poll_action() {
            if let Action::HandOff { conn, worker } = action {
                self.core.handle(Event::HandedOff { conn, worker }, Now(self.now), &self.pages);
                let claimed = &self.pages.claimed[worker.0 as usize];
                claimed.set(claimed.get() + 1);
            }
        }
        true
    }
}

#[test]
fn dealing_does_not_allocate() {
    for policy in [Policy::Least, Policy::Rr, Policy::Ip] {
        let mut dealt = Dealt::new(8, policy, 3);
        let round = |dealt: &mut Dealt| {
            let mut count = 0;
            for turn in 0..200_u8 {
                dealt.turn();
                for _ in 0..5 {
                    count += u32::from(dealt.one(turn));
                }
            }
            count
        };
        // The first round finds how large the queues of actions get.
        round(&mut dealt);
        let mut count = 0;
        let memory = allocation_counter::measure(|| count = round(&mut dealt));
        assert!(count > 900, "{count} dealt");
        assert_eq!(memory.count_total, 0, "{policy:?}: {memory:?}");
    }
}

#[test]
fn with_an_idle_worker_least_reads_one_page() {
    let mut dealt = Dealt::new(256, Policy::Least, 0);
    for host in 0..100 {
        dealt.turn();
        let before = dealt.pages.reads.get();
        assert!(dealt.one(host));
        assert_eq!(dealt.pages.reads.get() - before, 1);
    }
}

#[test]
fn without_one_least_reads_each_page_once_a_turn() {
    let mut dealt = Dealt::new(256, Policy::Least, 2);
    for _ in 0..10 {
        dealt.turn();
        let before = dealt.pages.reads.get();
        for host in 0..64 {
            assert!(dealt.one(host));
        }
        assert_eq!(dealt.pages.reads.get() - before, 256);
    }
}

/// Before the primary sleeps, everything is read once more, and no more than that.
#[test]
fn a_full_table_is_read_twice_before_it_sleeps() {
    let mut dealt = Dealt::new(64, Policy::Least, 0);
    dealt.turn();
    for _ in 0..64 {
        assert!(dealt.core.wants_accept(ON, Now(dealt.now), &dealt.pages));
        let arrival = Arrival { conn: ConnId(7), listener: ON, client: Client::Local };
        dealt.core.handle(Event::Accepted(arrival), Now(dealt.now), &dealt.pages);
        while let Some(action) = dealt.core.poll_action() {
            if let Action::HandOff { conn, worker } = action {
                dealt.core.handle(Event::HandedOff { conn, worker }, Now(dealt.now), &dealt.pages);
            }
        }
    }
    let before = dealt.pages.reads.get();
    assert!(!dealt.one(0));
    assert!(!dealt.one(0));
    assert!(!dealt.one(0));
    assert_eq!(dealt.pages.reads.get() - before, 64);
}
