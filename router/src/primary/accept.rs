//! The way of one connection: out of a backlog, into a worker's channel.
//!
//! Per connection: accept4, sendmsg, close, and the core's decision between them. No allocation (the
//! slab keeps its size), no log line, no clock.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use croupier_core::config::Policy;
use croupier_core::event::{Arrival, ConnId, Event, ListenerId, SendFailure, WorkerId};
use croupier_core::time::Now;
use croupier_wire::message::{Handoff, PEER_MAX, RawAddress};

use super::address;
use super::listener::{Accepted, Listener, Watch};
use super::run::{BELL_WAIT, EXHAUSTED_WAIT, Held, Primary};
use super::tokens::Source;
use crate::config::ListenAddress;

/// Connections accepted from one listener before the others, and the rest of the loop, have a turn.
pub(crate) const ACCEPTS_PER_TURN_MAX: usize = 64;

enum Step {
    Next,
    /// Nothing more now; an edge, a bell or a timer will come.
    Stop,
}

impl Primary {
    /// Accepts from every listener that may have clients, each up to its share of the turn.
    pub(super) fn accept_all(&mut self) {
        let first = self.meters.next_listener;
        for step in 0..self.listeners.capacity() {
            let key = (first + step) % self.listeners.capacity().max(1);
            let Some(listener) = self.listeners.get(key) else { continue };
            if listener.pending && listener.retry_at.is_none() && listener.deals() {
                let before = listener.accepted;
                self.accept_some(key);
                if self.listeners.get(key).is_some_and(|listener| listener.accepted != before) {
                    // Who had the last one is asked last: room for one alone, again and again, would
                    // else be the same listener's.
                    self.meters.next_listener = key + 1;
                }
            }
        }
        self.deal_adopted();
    }

    /// Whether a listener was left with its share used up: the loop must not sleep.
    pub(super) fn more_to_accept(&self) -> bool {
        let more = |l: &Listener| l.watch == Watch::Armed && l.pending && l.retry_at.is_none();
        self.listeners.iter().any(|(_, listener)| more(listener)) || self.more_is_adopted()
    }

    fn accept_some(&mut self, key: usize) {
        // An edge, a bell or a timer says that somebody waits: at first that is believed.
        let mut waiting = 1;
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            if waiting == 0 {
                let Some(listener) = self.listeners.get(key) else { return };
                waiting = listener.waiting();
                if waiting == 0 {
                    return self.note_empty(key);
                }
            }
            waiting -= 1;
            match self.accept_one(key) {
                Step::Next => {}
                Step::Stop => return,
            }
            if self.listeners.get(key).is_some_and(|listener| self.core.gives_way(listener.id)) {
                break;
            }
        }
        // The share is used up: `pending` stays, and an armed listener makes the next wait zero.
        self.arm(key);
    }

    fn accept_one(&mut self, key: usize) -> Step {
        let Some(listener) = self.listeners.get(key) else { return Step::Stop };
        let id = listener.id;
        if !self.has_room(id) {
            self.disarm(key);
            return Step::Stop;
        }
        let Some(listener) = self.listeners.get_mut(key) else { return Step::Stop };
        match listener.accept() {
            Accepted::Conn(conn, peer) => {
                listener.accepted += 1;
                let flags = listener.accept_flags;
                self.deal(Held { conn, listener: id, peer, accepted_at: self.now, flags });
                Step::Next
            }
            Accepted::Empty => {
                self.note_empty(key);
                Step::Stop
            }
            Accepted::Skipped => Step::Next,
            Accepted::Exhausted(error) => self.accept_with_reserve(key, &error),
            Accepted::Broken(error) => {
                log::error!("listener {listener} is broken and will be closed: {error}");
                self.drop_listener(key);
                Step::Stop
            }
        }
    }

    /// Nobody waits in this backlog any more; the next client is an edge.
    fn note_empty(&mut self, key: usize) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        listener.pending = false;
        let listener = listener.id;
        self.arm(key);
        self.tell(Event::BacklogEmpty { listener });
        self.settle();
    }

    /// Whether somebody can take one more. When nobody can, the core has the doorbells set first and
    /// looks once more: a claim in between would ring nobody.
    fn has_room(&mut self, listener: ListenerId) -> bool {
        let now = Now(self.now);
        if self.core.wants_accept(listener, now, &self.workers) {
            self.bells_set = false;
            self.bell_wait = BELL_WAIT;
            return true;
        }
        self.settle();
        self.core.wants_accept(listener, now, &self.workers)
    }

    /// Gives one connection to the core and does what it says.
    pub(super) fn deal(&mut self, held: Held) {
        let client = address::client(&held.peer);
        let listener = held.listener;
        let key = self.conns.insert(held);
        let conn = ConnId(u32::try_from(key).unwrap_or(u32::MAX));
        self.tell(Event::Accepted(Arrival { conn, listener, client }));
        self.settle();
    }

    /// Sends a held connection; the outcome goes back to the core.
    pub(super) fn hand_off(&mut self, conn: ConnId, worker: WorkerId) {
        let Some(held) = self.conns.try_remove(conn.0 as usize) else { return };
        let header = Handoff {
            nonblocking: held.flags & libc::SOCK_NONBLOCK != 0,
            mark: self.mark_of(held.listener, &held.peer),
            // Not since the accept: that it waited here, or in the queue of another, is no worker's fault.
            handed_off_at: self.now,
            peer: held.peer,
        };
        let Some(target) = self.workers.get_mut(worker) else {
            return self.keep(conn, held, worker, SendFailure::Broken);
        };
        // Read now: once it has the connection the worker writes to this line, from another CPU.
        let flags = if target.page.wants_nonblocking() { libc::SOCK_NONBLOCK } else { 0 };
        let by_mail = self.config.core.policy == Policy::Reuseport;
        if by_mail {
            target.page.announce_mail();
        }
        match target.send(held.listener, &header.encode(), held.conn.as_fd()) {
            Ok(()) => {
                // Closed at once: a copy kept here would delay the FIN that the worker sends.
                drop(held.conn);
                self.meters.handed_off(self.now, held.accepted_at);
                if flags != held.flags
                    && let Some(listener) = self.listeners.get_mut(usize::from(held.listener.0))
                {
                    listener.accept_flags = flags;
                }
                self.tell(Event::HandedOff { conn, worker });
                if by_mail {
                    self.wake_for_mail(held.listener, worker);
                }
            }
            Err(error) => {
                if by_mail {
                    target.page.retract_mail();
                }
                let why = match error.raw_os_error() {
                    Some(
                        libc::EAGAIN
                        | libc::EINTR
                        | libc::ENOBUFS
                        | libc::ENOMEM
                        | libc::ETOOMANYREFS,
                    ) => SendFailure::Full,
                    _ => SendFailure::Broken,
                };
                // Only who is dealt to by its channel alone is condemned for it.
                let condemned = why == SendFailure::Broken && self.config.core.policy.by_hand();
                if condemned {
                    log::warn!(
                        "worker {} broke its channel ({error}); it will be replaced",
                        worker.0
                    );
                }
                self.keep(conn, held, worker, why);
            }
        }
    }

    /// What a worker notes of a sticky client while it serves it: a second hash for each connection,
    /// and only under `ip`.
    fn mark_of(&mut self, listener: ListenerId, peer: &RawAddress<PEER_MAX>) -> u16 {
        let listener = self.listeners.get(usize::from(listener.0));
        if listener.is_some_and(|listener| listener.policy == Policy::Ip) {
            let client = address::client(peer);
            self.adviser.crowd.count(client);
            croupier_core::mark(client, self.config.core.sticky_key)
        } else {
            0
        }
    }

    /// Back into the slab, under the same number: the slab hands out the last freed key first.
    fn keep(&mut self, conn: ConnId, held: Held, worker: WorkerId, why: SendFailure) {
        let key = self.conns.insert(held);
        debug_assert_eq!(key, conn.0 as usize, "nothing was inserted in between");
        self.tell(Event::HandOffFailed { conn, worker, why });
    }

    /// EMFILE and its kin. With the reserve descriptor given up there is room for one connection,
    /// which is dealt and closed at once; then the reserve is taken again. Without: wait.
    fn accept_with_reserve(&mut self, key: usize, error: &std::io::Error) -> Step {
        self.meters.note_exhausted(error);
        let had_reserve = self.reserve.take().is_some();
        let Some(listener) = self.listeners.get_mut(key) else { return Step::Stop };
        if had_reserve && let Accepted::Conn(conn, peer) = listener.accept() {
            listener.accepted += 1;
            let (listener, flags) = (listener.id, listener.accept_flags);
            self.deal(Held { conn, listener, peer, accepted_at: self.now, flags });
            self.reserve = reserve();
            if self.reserve.is_some() {
                return Step::Next;
            }
        }
        self.reserve = self.reserve.take().or_else(reserve);
        let wait = self.later(EXHAUSTED_WAIT);
        if let Some(listener) = self.listeners.get_mut(key) {
            listener.retry_at = Some(wait);
        }
        Step::Stop
    }

    /// Starts watching a listener. An edge comes at once if clients wait.
    pub(super) fn arm(&mut self, key: usize) {
        let Some(listener) = self.listeners.get(key) else { return };
        if listener.watch == Watch::Armed || !listener.deals() {
            return;
        }
        let fd = listener.socket().as_raw_fd();
        let watched = match self.watch(&fd, Source::Listener(key)) {
            // It could not be disarmed before. To change it is an edge as well, if clients wait.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                self.watch_again(&fd, Source::Listener(key))
            }
            watched => watched,
        };
        match watched {
            Ok(()) => {
                if let Some(listener) = self.listeners.get_mut(key) {
                    listener.watch = Watch::Armed;
                }
            }
            Err(error) => {
                log::error!("cannot watch {listener}: {error}");
                let wait = self.later(EXHAUSTED_WAIT);
                if let Some(listener) = self.listeners.get_mut(key) {
                    listener.retry_at = Some(wait);
                }
            }
        }
    }

    /// Stops watching: armed, every new client would wake the primary though nobody has room.
    fn disarm(&mut self, key: usize) {
        let Some(listener) = self.listeners.get(key) else { return };
        if listener.watch == Watch::Armed {
            self.unwatch(&listener.socket().as_raw_fd());
        }
        if let Some(listener) = self.listeners.get_mut(key) {
            listener.watch = Watch::Disarmed;
            listener.pending = true;
        }
    }

    /// Closes a listener's socket and tells the core.
    pub(super) fn drop_listener(&mut self, key: usize) {
        if !self.listeners.contains(key) {
            return;
        }
        self.disarm(key);
        let listener = self.listeners.remove(key);
        self.adoption.end(|_, of| of == listener.id);
        self.tell(Event::ListenerClosed { listener: listener.id });
    }
}

/// A descriptor to give up when there is none left.
pub(super) fn reserve() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

/// The address of a dealt connection's client in the kernel's bytes, for connections made here.
pub(super) fn raw_peer(peer: std::net::SocketAddr) -> RawAddress<PEER_MAX> {
    address::raw(&ListenAddress::Tcp { address: peer, dual_stack: false })
}
