//! The rescue thread: every recvmsg on a duplicate of a worker's channel runs here.
//!
//! A worker can hold the lock of its receive end for as long as its memory takes to page in
//! (measured: 1.5 s with userfaultfd), and `MSG_DONTWAIT` does not help against that. So the loop
//! never receives; it asks this thread and keeps a deadline. A thread that misses it is abandoned,
//! and a new one started, at most [`ABANDONED_MAX`] times at once.
//! It also closes what a worker could have filled with descriptors whose close blocks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use croupier_core::event::{ListenerId, WorkerId};
use croupier_wire::fdpass::{self, Received};
use croupier_wire::message::{HANDOFF_LEN, Handoff};

use crate::sys;

/// How long a job may take before its worker counts as holding the lock on purpose.
pub(crate) const RESCUE_DEADLINE: Duration = Duration::from_millis(100);
/// Stuck threads that may exist at once; beyond it, take-backs fail at once.
pub(crate) const ABANDONED_MAX: usize = 8;

/// The queues of one worker, by listener.
type Queues = Vec<(ListenerId, Arc<OwnedFd>)>;

/// A take-back, as asked.
#[derive(Debug, Clone)]
struct Order {
    serial: u64,
    worker: WorkerId,
    queues: Queues,
    max: u32,
}

/// Work for the thread.
#[derive(Debug)]
enum Job {
    TakeBack(Order),
    Notifications(u32, Arc<OwnedFd>),
    Close(Vec<Arc<OwnedFd>>),
    Dismiss(OwnedFd),
}

/// One connection out of a queue.
#[derive(Debug)]
pub(crate) struct Rescued {
    pub(crate) listener: ListenerId,
    pub(crate) conn: OwnedFd,
    pub(crate) handoff: Handoff,
}

/// What a take-back came to.
#[derive(Debug)]
pub(crate) struct Taken {
    serial: u64,
    pub(crate) worker: WorkerId,
    pub(crate) rescued: Vec<Rescued>,
    /// Messages that had no usable descriptor.
    pub(crate) lost: u32,
    /// Every queue was found empty.
    pub(crate) empty: bool,
}

/// One thread. Dismissed, it does nothing after the job that it is stuck in.
#[derive(Debug)]
struct Crew {
    jobs: Sender<Job>,
    dismissed: Arc<AtomicBool>,
}

/// The loop's side.
#[derive(Debug)]
pub(crate) struct Rescue {
    crew: Crew,
    results: Receiver<Taken>,
    results_to: Sender<Taken>,
    notified: Receiver<(u32, bool)>,
    notified_to: Sender<(u32, bool)>,
    waker: Arc<mio::Waker>,
    /// Jobs under way, oldest first, with their deadlines (ns).
    pending: Vec<(Order, u64)>,
    next_serial: u64,
    abandoned: usize,
}

impl Rescue {
    /// Starts the thread.
    ///
    /// # Errors
    /// EAGAIN: no thread can be made.
    pub(crate) fn start(waker: Arc<mio::Waker>) -> io::Result<Self> {
        let (results_to, results) = unbounded();
        let (notified_to, notified) = unbounded();
        let crew = hire(results_to.clone(), notified_to.clone(), Arc::clone(&waker))?;
        Ok(Self {
            crew,
            results,
            results_to,
            notified,
            notified_to,
            waker,
            pending: Vec::new(),
            next_serial: 0,
            abandoned: 0,
        })
    }

    /// Asks for at most `max` connections out of `queues`, oldest first within each. Returns whether
    /// the job was taken: not when too many threads are stuck.
    pub(crate) fn take_back(
        &mut self,
        worker: WorkerId,
        queues: Queues,
        max: u32,
        now_ns: u64,
    ) -> bool {
        if self.abandoned >= ABANDONED_MAX {
            return false;
        }
        self.next_serial += 1;
        let order = Order { serial: self.next_serial, worker, queues, max };
        self.pending.push((order.clone(), deadline_from(now_ns)));
        self.crew.jobs.send(Job::TakeBack(order)).is_ok()
    }

    /// Reads a worker's sd_notify(3) messages until there is none.
    pub(crate) fn read_notifications(&self, worker: u32, socket: Arc<OwnedFd>) {
        drop(self.crew.jobs.send(Job::Notifications(worker, socket)));
    }

    /// A worker notified: its id, and whether it said `READY=1`.
    pub(crate) fn notified(&self) -> Option<(u32, bool)> {
        self.notified.try_recv().ok()
    }

    /// Closes descriptors away from the loop.
    pub(crate) fn close(&self, descriptors: Vec<Arc<OwnedFd>>) {
        // Without a thread they are closed here: late is better than leaked.
        drop(self.crew.jobs.send(Job::Close(descriptors)));
    }

    /// Closes an answered question. It was only peeked at: closed with the question unread, its
    /// sender would read ECONNRESET instead of the answer (unix(7)).
    pub(crate) fn dismiss(&self, client: OwnedFd) {
        drop(self.crew.jobs.send(Job::Dismiss(client)));
    }

    /// A finished take-back. Results of jobs that were given up are still used: the connections in
    /// them are real.
    pub(crate) fn finished(&mut self) -> Option<Taken> {
        let taken = self.results.try_recv().ok()?;
        let before = self.pending.len();
        self.pending.retain(|(order, _)| order.serial != taken.serial);
        if self.pending.len() == before {
            self.abandoned = self.abandoned.saturating_sub(1);
        }
        Some(taken)
    }

    /// When the oldest job's deadline is.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.pending.first().map(|(_, deadline)| *deadline)
    }

    /// The worker whose job has missed its deadline. Its thread is left to itself; a new one does
    /// the jobs that waited behind it.
    pub(crate) fn overdue(&mut self, now_ns: u64) -> Option<WorkerId> {
        if self.pending.first().is_none_or(|(_, deadline)| now_ns < *deadline) {
            return None;
        }
        let (stuck, _) = self.pending.remove(0);
        self.abandoned += 1;
        self.crew.dismissed.store(true, Ordering::Relaxed);
        match hire(self.results_to.clone(), self.notified_to.clone(), Arc::clone(&self.waker)) {
            Ok(crew) => self.crew = crew,
            Err(error) => log::error!("cannot start another rescue thread: {error}"),
        }
        for (order, deadline) in &mut self.pending {
            *deadline = deadline_from(now_ns);
            if self.crew.jobs.send(Job::TakeBack(order.clone())).is_err() {
                log::error!("no rescue thread for worker {}", order.worker.0);
            }
        }
        Some(stuck.worker)
    }
}

fn deadline_from(now_ns: u64) -> u64 {
    now_ns.saturating_add(u64::try_from(RESCUE_DEADLINE.as_nanos()).unwrap_or(u64::MAX))
}

fn hire(
    results: Sender<Taken>,
    notified: Sender<(u32, bool)>,
    waker: Arc<mio::Waker>,
) -> io::Result<Crew> {
    let (jobs, inbox) = unbounded();
    let dismissed = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&dismissed);
    let work = move || {
        for job in inbox {
            match job {
                Job::Close(descriptors) => drop(descriptors),
                Job::Dismiss(client) => read_away(&client),
                Job::Notifications(worker, socket) => {
                    let ready = read_notifications(&socket);
                    if notified.send((worker, ready)).is_err() || waker.wake().is_err() {
                        return;
                    }
                }
                Job::TakeBack(_) if stop.load(Ordering::Relaxed) => {}
                Job::TakeBack(order) => {
                    let taken = take(&order);
                    drop(order);
                    if results.send(taken).is_err() {
                        return;
                    }
                    if let Err(error) = waker.wake() {
                        log::error!("the rescue thread cannot wake the loop: {error}");
                    }
                }
            }
        }
    };
    std::thread::Builder::new().name("rescue".into()).stack_size(256 * 1024).spawn(work)?;
    Ok(Crew { jobs, dismissed })
}

fn take(order: &Order) -> Taken {
    let (serial, worker) = (order.serial, order.worker);
    let mut taken = Taken { serial, worker, rescued: Vec::new(), lost: 0, empty: true };
    for (listener, queue) in &order.queues {
        loop {
            if taken.rescued.len() >= order.max as usize {
                taken.empty = false;
                return taken;
            }
            match receive(queue) {
                Step::Conn(conn, handoff) => {
                    taken.rescued.push(Rescued { listener: *listener, conn, handoff });
                }
                Step::Lost => taken.lost += 1,
                Step::Nothing => break,
                Step::Failed => {
                    taken.empty = false;
                    break;
                }
            }
        }
    }
    taken
}

enum Step {
    Conn(OwnedFd, Handoff),
    Lost,
    Nothing,
    Failed,
}

fn receive(queue: &OwnedFd) -> Step {
    // At EMFILE recvmsg destroys the connection (measured; no man page says so): prove that a
    // descriptor is free first, and leave the queue alone if not.
    match sys::duplicate(queue) {
        Ok(spare) => drop(spare),
        Err(_) => return Step::Failed,
    }
    let mut bytes = [0; HANDOFF_LEN];
    let mut conn = [None];
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    match fdpass::recv(queue.as_fd(), &mut bytes, &mut conn, flags) {
        Ok(Received::Message(len)) => match (conn, bytes.get(..len).map(Handoff::decode)) {
            ([Some(conn)], Some(Ok(handoff))) => Step::Conn(conn, handoff),
            ([_], _) => Step::Lost,
        },
        Ok(Received::Ended) => Step::Nothing,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Step::Nothing,
        // Cut off: the message is gone, its descriptor closed.
        Err(error) if error.raw_os_error() == Some(libc::EPROTO) => Step::Lost,
        Err(_) => Step::Failed,
    }
}

/// Messages taken out of an answered question's socket before it is closed: one was asked for.
const DISMISSED_MAX: usize = 4;

fn read_away(client: &OwnedFd) {
    for _ in 0..DISMISSED_MAX {
        // No room for descriptors: the kernel closes what came along, here, where it may block.
        match fdpass::recv(client.as_fd(), &mut [0; 1], &mut [], libc::MSG_DONTWAIT) {
            Ok(Received::Message(_)) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPROTO) => {}
            Ok(Received::Ended) | Err(_) => return,
        }
    }
}

/// sd_notify(3) messages read in one go.
const NOTIFICATIONS_MAX: usize = 64;

fn read_notifications(socket: &OwnedFd) -> bool {
    let mut ready = false;
    for _ in 0..NOTIFICATIONS_MAX {
        let mut bytes = [0; 4096];
        // No room for descriptors: the kernel closes what came along, here, where it may block.
        match fdpass::recv(socket.as_fd(), &mut bytes, &mut [], libc::MSG_DONTWAIT) {
            Ok(Received::Message(len)) => {
                let text = bytes.get(..len).unwrap_or(&[]);
                ready |= text.split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
            }
            Ok(Received::Ended) | Err(_) => break,
        }
    }
    ready
}
