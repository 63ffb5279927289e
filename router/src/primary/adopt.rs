//! Adoption: the `reuseport` sockets of slots that are down, and what waits there.
//!
//! Every process that was ever given such a socket has the same open file, so each can take its
//! `O_NONBLOCK` away, and a client that poll(2) has seen can be another's by the time of accept(2),
//! which has no flag as recvmsg(2) has `MSG_DONTWAIT`. So nobody can accept here and be sure not to wait.
//! Each socket has a thread of its own that may. Promises: the loop never accepts on such a socket; the
//! file's flags are its workers' and are left alone; who holds a thread up holds up only what waits at
//! his own slot's address, where there is one thread at most; a client that was accepted is dealt, however
//! late.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use croupier_core::event::{ListenerId, SlotId, WorkerId};
use croupier_wire::message::{PEER_MAX, RawAddress};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::probe;
use super::run::{Held, Primary};
use super::wake::wake;
use crate::adapter::Adapter;
use crate::sys;

/// Connections that the primary holds for others before it stops emptying sockets, and that the threads
/// may have accepted beside.
const HELD_PAUSE: usize = 64;
/// How long a thread waits when accept(2) fails, milliseconds: descriptors or memory ran out, or the
/// socket was shut down.
const FAILED_WAIT: u16 = 100;

/// The sockets that are being emptied.
#[derive(Debug)]
pub(super) struct Adoption {
    adopted: Vec<Adopted>,
    found: Receiver<Found>,
    finds: Sender<Found>,
    waker: Arc<mio::Waker>,
}

/// One socket.
#[derive(Debug)]
struct Adopted {
    slot: SlotId,
    listener: ListenerId,
    /// `None`: its thread was told to end.
    stop: Option<PipeWriter>,
    /// The thread has ended.
    over: Arc<AtomicBool>,
    /// To be emptied again once the thread has ended.
    again: Option<OwnedFd>,
}

/// A client that waited there.
#[derive(Debug)]
struct Found {
    conn: OwnedFd,
    peer: RawAddress<PEER_MAX>,
    listener: ListenerId,
}

impl Adopted {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Adoption {
    pub(super) fn new(waker: Arc<mio::Waker>) -> Self {
        let (finds, found) = bounded(HELD_PAUSE);
        Self { adopted: Vec::new(), found, finds, waker }
    }

    /// Empties the socket of a slot from now on.
    ///
    /// # Errors
    /// EAGAIN: no thread can be made; EMFILE.
    fn begin(&mut self, slot: SlotId, listener: ListenerId, socket: OwnedFd) -> io::Result<()> {
        self.adopted.retain(|one| !one.is_over() || one.again.is_some());
        let is_it = |one: &&mut Adopted| one.slot == slot && one.listener == listener;
        match self.adopted.iter_mut().find(is_it) {
            Some(one) if one.stop.is_some() => Ok(()),
            Some(one) => {
                one.again = Some(socket);
                Ok(())
            }
            None => self.start(slot, listener, socket),
        }
    }

    fn start(&mut self, slot: SlotId, listener: ListenerId, socket: OwnedFd) -> io::Result<()> {
        let (ended, stop) = io::pipe()?;
        let over = Arc::new(AtomicBool::new(false));
        let (own, finds, waker) = (over.clone(), self.finds.clone(), self.waker.clone());
        let work = move || {
            empty(&socket, &ended, &waker, |conn, peer| {
                finds.send(Found { conn, peer, listener }).is_ok()
            });
            own.store(true, Ordering::Release);
            wake(&waker);
        };
        thread::Builder::new().name("adopt".into()).stack_size(128 * 1024).spawn(work)?;
        self.adopted.push(Adopted { slot, listener, stop: Some(stop), over, again: None });
        Ok(())
    }

    /// Stops emptying the sockets that `ends` says yes to.
    pub(super) fn end(&mut self, ends: impl Fn(SlotId, ListenerId) -> bool) {
        for one in self.adopted.iter_mut().filter(|one| ends(one.slot, one.listener)) {
            (one.stop, one.again) = (None, None);
        }
        self.adopted.retain(|one| !one.is_over());
    }

    /// Begins again where a thread had to end first.
    fn go_on(&mut self) {
        if !self.adopted.iter().any(Adopted::is_over) {
            return;
        }
        for one in self.adopted.extract_if(.., |one| one.is_over()).collect::<Vec<_>>() {
            if let Some(socket) = one.again
                && let Err(error) = self.start(one.slot, one.listener, socket)
            {
                complain(one.slot, &error);
            }
        }
    }
}

fn complain(slot: SlotId, error: &io::Error) {
    log::warn!("cannot empty the socket of slot {}: {error}", slot.0);
}

/// Accepts until `stop` has no other end or `give` takes nothing more.
fn empty(
    socket: &OwnedFd,
    stop: &PipeReader,
    waker: &mio::Waker,
    give: impl Fn(OwnedFd, RawAddress<PEER_MAX>) -> bool,
) {
    let ended = || PollFd::new(stop.as_fd(), PollFlags::POLLIN);
    loop {
        let mut ready = [ended(), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::NONE).is_err() {
            continue;
        }
        let [ended_now, _] = &ready;
        if ended_now.any() != Some(false) {
            return;
        }
        match sys::accept4(socket.as_fd(), 0) {
            Ok((conn, peer)) => {
                if !give(conn, peer) {
                    return;
                }
                wake(waker);
            }
            // Somebody else took it.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                // What this wait comes to the next one says.
                let _ = poll(&mut [ended()], PollTimeout::from(FAILED_WAIT));
            }
        }
    }
}

impl Primary {
    /// Begins or ends emptying the `reuseport` sockets of a slot.
    pub(super) fn adopt(&mut self, slot: SlotId, adopt: bool) {
        self.steer();
        if !adopt {
            return self.adoption.end(|owner, _| owner == slot);
        }
        // Nobody could be given what comes out: these have no channel. It waits for the slot's next worker.
        if self.launcher.adapter() == Adapter::ListenFds {
            return;
        }
        let mut found = Vec::new();
        for (_, listener) in &self.listeners {
            // Its next worker listens, and will accept once it is ready.
            let comes = |state: &str| ["starting", "ready", "parked"].contains(&state);
            if self.listening(listener.id, comes).contains(&slot) {
                continue;
            }
            let sockets = listener.slots().filter(|(owner, _)| *owner == slot);
            found.extend(sockets.map(|(_, socket)| (listener.id, sys::duplicate(socket))));
        }
        for (listener, socket) in found {
            let begun = socket.and_then(|socket| self.adoption.begin(slot, listener, socket));
            if let Err(error) = begun {
                complain(slot, &error);
            }
        }
    }

    /// Deals what the threads have accepted.
    pub(super) fn deal_adopted(&mut self) {
        self.adoption.go_on();
        while self.conns.len() < HELD_PAUSE
            && let Ok(Found { conn, peer, listener }) = self.adoption.found.try_recv()
        {
            self.deal(Held { conn, listener, peer, accepted_at: self.now, flags: 0 });
        }
    }

    /// Whether [`Self::deal_adopted`] left something that can be dealt.
    pub(super) fn more_is_adopted(&self) -> bool {
        self.conns.len() < HELD_PAUSE && !self.adoption.found.is_empty()
    }

    /// The slots with a worker that listens there, and is in a state that `is` says yes to.
    fn listening(&self, listener: ListenerId, is: impl Fn(&str) -> bool) -> Vec<SlotId> {
        let views = self.core.workers().filter(|view| is(view.state));
        let listens = views.filter(|view| {
            self.workers.get(view.worker).is_some_and(|worker| worker.listens_on(listener))
        });
        let mut slots: Vec<SlotId> = listens.map(|view| view.slot).collect();
        slots.sort_unstable();
        slots
    }

    /// `reuseport`: new clients go only to slots that are served, wherever a slot is not.
    pub(super) fn steer(&self) {
        for (_, listener) in self.listeners.iter().filter(|(_, one)| one.slots().count() > 1) {
            let served = self.listening(listener.id, |state| state == "ready");
            listener.steer(|slot| served.binary_search(&slot).is_ok());
        }
    }

    /// A worker under `reuseport` polls its own socket, not its channel: a connection to exactly that
    /// socket makes it look. What it then accepts is half-closed, as a probe is.
    pub(super) fn wake_for_mail(&mut self, listener: ListenerId, worker: WorkerId) {
        let Some(target) = self.workers.get_mut(worker) else { return };
        // It rings when it takes this: then the next can be sent.
        target.page.ring(target.page.load().claimed + 1, false);
        let Some(listener) = self.listeners.get(usize::from(listener.0)) else { return };
        listener.steer(|slot| slot == target.slot);
        match probe::knock(&listener.bound()) {
            Ok(client) => target.keep_probe(client),
            Err(error) => log::warn!("cannot wake worker {} at {listener}: {error}", worker.0),
        }
        self.steer();
    }
}

#[cfg(test)]
mod tests {
    use super::super::disposal::tests::waker;
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    /// Takes out what was found until that is `count` clients.
    fn take(adoption: &mut Adoption, count: usize) {
        let mut found = 0;
        for _ in 0..1000 {
            adoption.go_on();
            found += usize::from(adoption.found.recv_timeout(Duration::from_millis(10)).is_ok());
            if found == count {
                return;
            }
        }
        panic!("{found} of {count} clients came");
    }

    #[test]
    fn a_socket_that_is_adopted_again_loses_nobody() {
        let (_poll, waker) = waker();
        let mut adoption = Adoption::new(waker);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let begin = |adoption: &mut Adoption| {
            let socket = sys::duplicate(&listener).unwrap();
            adoption.begin(SlotId(0), ListenerId(0), socket).unwrap();
        };
        begin(&mut adoption);
        // More than there is room for: the thread has one in hand that it cannot give.
        let clients = HELD_PAUSE + 8;
        let _clients: Vec<_> = (0..clients).map(|_| TcpStream::connect(address).unwrap()).collect();
        adoption.end(|slot, _| slot == SlotId(0));
        begin(&mut adoption);
        take(&mut adoption, clients);
        let _last = TcpStream::connect(address).unwrap();
        take(&mut adoption, 1);
        assert_eq!(adoption.adopted.len(), 1, "one thread");
        adoption.end(|_, _| true);
    }
}
