//! The rescue thread: every recvmsg on a duplicate of a worker's channel runs here.
//!
//! A worker can hold the lock of its receive end for as long as its memory takes to page in
//! (measured: 1.5 s with userfaultfd), and `MSG_DONTWAIT` does not help against that. So the loop
//! never receives; it asks this thread and keeps a deadline. Promises: only a worker whose job has
//! really begun is blamed for a missed deadline, never one that waited behind it; a stuck thread is
//! abandoned and a new one goes on with the same queue, at most [`ABANDONED_MAX`] times at once; no
//! connection is destroyed because descriptors ran out.
//! The loop's side of the disposal thread (`disposal.rs`) is here too: the loop knows one rescue.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use croupier_core::event::{ListenerId, Whose, WorkerId};
use croupier_wire::fdpass::{self, Received};
use croupier_wire::message::{HANDOFF_LEN, Handoff};

use super::channel::Channel;
use super::disposal::{Desk, Disposal, Heard};
use super::wake::wake;
use crate::sys;

/// How long a job may take before its worker counts as holding the lock on purpose.
pub(crate) const RESCUE_DEADLINE: Duration = Duration::from_millis(100);
/// Stuck threads that may exist at once; beyond it, take-backs fail at once.
pub(crate) const ABANDONED_MAX: usize = 8;

/// One queue of a worker.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    /// Whose connections those without a mark are, and those with one (`Handoff::mark`).
    by_mark: [ListenerId; 2],
    end: Arc<OwnedFd>,
}

impl Queue {
    pub(super) fn of(channel: &Channel) -> Self {
        Self { by_mark: channel.by_mark, end: channel.duplicate() }
    }

    fn listener_of(&self, handoff: &Handoff) -> ListenerId {
        let [loose, sticky] = self.by_mark;
        if handoff.mark == 0 { loose } else { sticky }
    }
}

/// A take-back, as asked.
#[derive(Debug, Clone)]
struct Order {
    serial: u64,
    worker: WorkerId,
    queues: Vec<Queue>,
    max: u32,
    whose: Whose,
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
    pub(crate) awaited: Awaited,
}

/// Whether the end of a take-back is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    Yes,
    /// It was given up: the core was told that it is stuck, and may have asked again.
    NoMore,
}

/// What a thread needs. All threads share one queue: a new one goes on where the stuck one is.
#[derive(Debug, Clone)]
struct Tools {
    inbox: Receiver<Order>,
    results: Sender<Taken>,
    waker: Arc<mio::Waker>,
}

/// A job that has no result yet.
#[derive(Debug)]
struct Pending {
    serial: u64,
    worker: WorkerId,
    /// When to look at it (nanoseconds, monotonic).
    deadline: u64,
}

/// The loop's side.
#[derive(Debug)]
pub(crate) struct Rescue {
    orders: Sender<Order>,
    tools: Tools,
    /// The thread's; `None`: none can be made now.
    desk: Option<Arc<Desk>>,
    results: Receiver<Taken>,
    /// Jobs under way, oldest first.
    pending: Vec<Pending>,
    next_serial: u64,
    /// The jobs that threads are stuck in.
    abandoned: Vec<u64>,
    disposal: Disposal,
}

impl Rescue {
    /// Starts the threads.
    ///
    /// # Errors
    /// EAGAIN: no thread can be made.
    pub(crate) fn start(waker: Arc<mio::Waker>) -> io::Result<Self> {
        let disposal = Disposal::start(Arc::clone(&waker))?;
        let (orders, inbox) = unbounded();
        let (results_to, results) = unbounded();
        let tools = Tools { inbox, results: results_to, waker };
        let desk = Some(hire(tools.clone())?);
        let (pending, abandoned) = (Vec::new(), Vec::new());
        Ok(Self { orders, tools, desk, results, pending, next_serial: 0, abandoned, disposal })
    }

    /// Asks for at most `max` connections out of `queues`, oldest first within each; of a queue that
    /// holds both kinds, without the marked ones, only those before the first of them. Returns whether
    /// the job was taken: not when too many threads are stuck.
    pub(crate) fn take_back(
        &mut self,
        worker: WorkerId,
        queues: Vec<Queue>,
        (max, whose): (u32, Whose),
        now_ns: u64,
    ) -> bool {
        if self.abandoned.len() >= ABANDONED_MAX {
            return false;
        }
        self.staff();
        self.next_serial += 1;
        let serial = self.next_serial;
        self.pending.push(Pending { serial, worker, deadline: after(now_ns, RESCUE_DEADLINE) });
        self.orders.send(Order { serial, worker, queues, max, whose }).is_ok()
    }

    /// Whether connections of this worker may be out of its queues and not here yet.
    pub(crate) fn is_taking(&self, worker: WorkerId) -> bool {
        self.pending.iter().any(|job| job.worker == worker)
    }

    /// Reads a worker's sd_notify(3) messages until there is none.
    pub(crate) fn read_notifications(&self, worker: u32, socket: Arc<OwnedFd>) {
        self.disposal.read_notifications(worker, socket);
    }

    /// Reads messages of a worker's process; returns whether they will be.
    pub(super) fn read_post(&self, number: u32, socket: Arc<OwnedFd>) -> bool {
        self.disposal.read_post(number, socket)
    }

    /// What was read.
    pub(super) fn heard(&self) -> Option<Heard> {
        self.disposal.heard()
    }

    /// Closes descriptors away from the loop.
    pub(crate) fn close(&self, descriptors: Vec<Arc<OwnedFd>>) {
        self.disposal.close(descriptors);
    }

    /// Closes an answered question. It was only peeked at: closed with the question unread, its
    /// sender would read ECONNRESET instead of the answer (unix(7)).
    pub(crate) fn dismiss(&self, client: OwnedFd) {
        self.disposal.dismiss(client);
    }

    /// A finished take-back. Results of jobs that were given up are still used: the connections in
    /// them are real.
    pub(crate) fn finished(&mut self) -> Option<Taken> {
        let mut taken = self.results.try_recv().ok()?;
        if self.abandoned.contains(&taken.serial) {
            taken.awaited = Awaited::NoMore;
        }
        self.pending.retain(|job| job.serial != taken.serial);
        self.abandoned.retain(|serial| *serial != taken.serial);
        Some(taken)
    }

    /// When to call [`Self::overdue`].
    pub(crate) fn deadline(&self) -> Option<u64> {
        let jobs = self.pending.iter().map(|job| job.deadline);
        jobs.chain(self.disposal.deadline()).min()
    }

    /// The worker whose job has missed its deadline. Its thread is left to itself; a new one does
    /// the jobs that waited behind it, each with its own deadline.
    pub(crate) fn overdue(&mut self, now_ns: u64) -> Option<WorkerId> {
        self.disposal.look(now_ns);
        if self.pending.iter().all(|job| now_ns < job.deadline) {
            return None;
        }
        let stuck = self.stuck(now_ns);
        self.staff();
        let begun = self.desk.as_ref().and_then(|desk| desk.at_work());
        for job in &mut self.pending {
            if stuck.is_some() || job.deadline <= now_ns {
                let since = begun.filter(|(serial, _)| *serial == job.serial);
                let since = since.map_or(now_ns, |(_, since)| since);
                // One that began in time and cannot be given up now is looked at again later.
                job.deadline = match after(since, RESCUE_DEADLINE) {
                    later if later > now_ns => later,
                    _ => after(now_ns, RESCUE_DEADLINE),
                };
            }
        }
        stuck
    }

    /// Gives up the job at work, if it has been at work for too long.
    fn stuck(&mut self, now_ns: u64) -> Option<WorkerId> {
        let desk = self.desk.as_ref()?;
        let (serial, since) = desk.at_work()?;
        let at = self.pending.iter().position(|job| job.serial == serial)?;
        if now_ns < after(since, RESCUE_DEADLINE) {
            return None;
        }
        // On a machine without a free CPU, or under a debugger, it is late through no worker's fault.
        if desk.is_runnable() || !desk.leave(serial) {
            return None;
        }
        self.desk = None;
        self.abandoned.push(serial);
        Some(self.pending.remove(at).worker)
    }

    /// Sees to it that there is a thread, unless too many are stuck.
    fn staff(&mut self) {
        if self.desk.is_some() || self.abandoned.len() > ABANDONED_MAX {
            return;
        }
        match hire(self.tools.clone()) {
            Ok(desk) => self.desk = Some(desk),
            Err(error) => log::error!("cannot start another rescue thread: {error}"),
        }
    }
}

/// The end of a span that begins at `start_ns`.
pub(super) fn after(start_ns: u64, span: Duration) -> u64 {
    start_ns.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}

fn hire(tools: Tools) -> io::Result<Arc<Desk>> {
    let desk = Arc::new(Desk::default());
    let own = Arc::clone(&desk);
    let work = move || {
        own.sit_down();
        for order in tools.inbox.iter() {
            own.begin(order.serial);
            let taken = take(&order);
            drop(order);
            let sent = tools.results.send(taken).is_ok();
            let goes_on = own.finish();
            if sent {
                wake(&tools.waker);
            }
            if !goes_on {
                return;
            }
        }
    };
    std::thread::Builder::new().name("rescue".into()).stack_size(256 * 1024).spawn(work)?;
    Ok(desk)
}

fn take(order: &Order) -> Taken {
    let (serial, worker) = (order.serial, order.worker);
    let mut taken =
        Taken { serial, worker, rescued: Vec::new(), lost: 0, empty: true, awaited: Awaited::Yes };
    for queue in &order.queues {
        loop {
            if taken.rescued.len() >= order.max as usize {
                taken.empty = false;
                return taken;
            }
            match receive(&queue.end, order.whose) {
                Step::Conn(conn, handoff) => {
                    let listener = queue.listener_of(&handoff);
                    taken.rescued.push(Rescued { listener, conn, handoff });
                }
                Step::Lost => taken.lost += 1,
                Step::Nothing => break,
                Step::Stays | Step::Failed => {
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
    /// It is of a client that sticks to this worker, and was not asked for.
    Stays,
    Failed,
}

/// Takes one message out. At EMFILE recvmsg destroys the connection (measured; no man page says so),
/// so a descriptor must be proved free first; but another thread may take that one before recvmsg
/// does. A peek makes a copy that nobody can take: if the message then comes without its connection,
/// the copy is it.
fn receive(queue: &OwnedFd, whose: Whose) -> Step {
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let (mut seen, mut copy) = ([0; HANDOFF_LEN], [None]);
    // What the peek says is not believed: with SO_PEEK_OFF a worker decides that.
    if fdpass::recv(queue.as_fd(), &mut seen, &mut copy, flags | libc::MSG_PEEK).is_err() {
        copy = [None];
    } else if whose == Whose::Loose && Handoff::decode(&seen).is_ok_and(|first| first.mark != 0) {
        return Step::Stays;
    }
    match sys::duplicate(queue) {
        Ok(spare) => drop(spare),
        Err(_) => return Step::Failed,
    }
    let (mut bytes, mut conn) = ([0; HANDOFF_LEN], [None]);
    let received = fdpass::recv(queue.as_fd(), &mut bytes, &mut conn, flags);
    let ([conn], [copy]) = (conn, copy);
    // A worker that lives may have claimed the message that was seen: then this is another one, and
    // its own descriptor is the only right one.
    let conn = conn.or_else(|| copy.filter(|_| bytes == seen));
    judge(received, &bytes, conn)
}

fn judge(received: io::Result<Received>, bytes: &[u8], conn: Option<OwnedFd>) -> Step {
    match received {
        Ok(Received::Message(len)) => match (conn, bytes.get(..len).map(Handoff::decode)) {
            (Some(conn), Some(Ok(handoff))) => Step::Conn(conn, handoff),
            (_, _) => Step::Lost,
        },
        Ok(Received::Ended) => Step::Nothing,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Step::Nothing,
        // Cut off: the message is gone and its descriptor closed, unless there is a copy.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTO | libc::EMFILE)) => {
            match (conn, Handoff::decode(bytes)) {
                (Some(conn), Ok(handoff)) => Step::Conn(conn, handoff),
                (_, _) => Step::Lost,
            }
        }
        Err(_) => Step::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::disposal::tests::{lingering, waker};
    use super::*;
    use crate::testing::wait_for;
    use croupier_wire::message::RawAddress;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::{PipeReader, Read};

    fn channel() -> (OwnedFd, Arc<OwnedFd>) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (send, receive) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        (send, Arc::new(receive))
    }

    fn handoff(handed_off_at: u64) -> Handoff {
        Handoff { nonblocking: false, mark: 0, handed_off_at, peer: RawAddress::NONE }
    }

    /// Queues a connection: the writing end of a pipe, so that its last close can be read.
    fn deal(send: &OwnedFd, handed_off_at: u64) -> PipeReader {
        let (reader, writer) = io::pipe().unwrap();
        let bytes = handoff(handed_off_at).encode();
        fdpass::send(send.as_fd(), &bytes, &[writer.as_fd()]).unwrap();
        reader
    }

    fn queues(queue: &Arc<OwnedFd>) -> Vec<Queue> {
        vec![Queue { by_mark: [ListenerId(3), ListenerId(4)], end: Arc::clone(queue) }]
    }

    fn order(queue: &Arc<OwnedFd>, max: u32, whose: Whose) -> Order {
        Order { serial: 1, worker: WorkerId(1), queues: queues(queue), max, whose }
    }

    fn start() -> (Rescue, mio::Poll) {
        let (poll, waker) = waker();
        (Rescue::start(waker).unwrap(), poll)
    }

    #[test]
    fn takes_the_oldest_and_leaves_no_copy() {
        let (send, queue) = channel();
        let mut readers = [deal(&send, 1), deal(&send, 2), deal(&send, 3)];
        let mut order = order(&queue, 2, Whose::All);
        let first = take(&order);
        let at: Vec<u64> = first.rescued.iter().map(|one| one.handoff.handed_off_at).collect();
        assert_eq!((at.as_slice(), first.lost, first.empty), ([1, 2].as_slice(), 0, false));
        order.max = 9;
        let second = take(&order);
        assert_eq!((second.rescued.len(), second.lost, second.empty), (1, 0, true));
        drop((first, second));
        for reader in &mut readers {
            assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "every copy is closed");
        }
    }

    /// Two listeners of the primary for one of the program: `:3` by load and `:4` by address.
    #[test]
    fn what_sticks_stays_unless_all_is_asked_for_and_goes_back_to_its_own_listener() {
        let (send, queue) = channel();
        let marked = |handed_off_at| {
            let (reader, writer) = io::pipe().unwrap();
            let bytes = Handoff { mark: 7, ..handoff(handed_off_at) }.encode();
            fdpass::send(send.as_fd(), &bytes, &[writer.as_fd()]).unwrap();
            reader
        };
        let _readers = [deal(&send, 1), marked(2), deal(&send, 3)];
        let at = |taken: &Taken| -> Vec<(u64, u16)> {
            let each = taken.rescued.iter();
            each.map(|one| (one.handoff.handed_off_at, one.listener.0)).collect()
        };
        let mut order = order(&queue, 9, Whose::Loose);
        let first = take(&order);
        assert_eq!((at(&first), first.empty), (vec![(1, 3)], false), "up to the first that stays");
        let again = take(&order);
        assert_eq!((at(&again), again.lost, again.empty), (vec![], 0, false));
        order.whose = Whose::All;
        let all = take(&order);
        assert_eq!((at(&all), all.empty), (vec![(2, 4), (3, 3)], true));
    }

    #[test]
    fn a_worker_cannot_hide_its_queue_by_a_peek_offset() {
        let (send, queue) = channel();
        let _readers = [deal(&send, 1), deal(&send, 2)];
        for offset in [10, 48, 4096] {
            sys::set_option(queue.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, &[offset]).unwrap();
            let _more = deal(&send, 3);
            let Step::Conn(_, found) = receive(&queue, Whose::All) else {
                panic!("two are queued")
            };
            assert!(found.handed_off_at > 0);
        }
    }

    #[test]
    fn a_message_cut_off_is_lost_only_without_its_own_copy() {
        let bytes = handoff(7).encode();
        let copy = || Some(OwnedFd::from(io::pipe().unwrap().0));
        for errno in [libc::EPROTO, libc::EMFILE] {
            let cut = || Err(io::Error::from_raw_os_error(errno));
            let kept = judge(cut(), &bytes, copy());
            assert!(matches!(kept, Step::Conn(_, found) if found.handed_off_at == 7));
            assert!(matches!(judge(cut(), &bytes, None), Step::Lost));
            assert!(matches!(judge(cut(), b"garbage", copy()), Step::Lost));
        }
        let full = Err(io::Error::from_raw_os_error(libc::EAGAIN));
        assert!(matches!(judge(full, &bytes, copy()), Step::Nothing));
    }

    #[test]
    fn only_the_worker_whose_job_is_stuck_is_blamed() {
        let (mut rescue, _poll) = start();
        let (send, queue) = channel();
        let (bad_send, bad_queue) = channel();
        let _readers = [deal(&send, 1), deal(&send, 2)];
        // Two descriptors are one too many: both are closed, and one of the closes waits.
        let (lingers, peer) = lingering();
        let other = io::pipe().unwrap().0;
        fdpass::send(bad_send.as_fd(), &handoff(9).encode(), &[lingers.as_fd(), other.as_fd()])
            .unwrap();
        drop(lingers);
        let start = sys::monotonic_ns();
        assert!(rescue.take_back(WorkerId(1), queues(&bad_queue), (9, Whose::All), start));
        assert!(rescue.take_back(WorkerId(2), queues(&queue), (9, Whose::All), start));
        let begun = |rescue: &Rescue| rescue.desk.as_ref().and_then(|desk| desk.at_work());
        let (_, since) = wait_for("the first job", || begun(&rescue));
        let asleep = |rescue: &Rescue| rescue.desk.as_ref().is_some_and(|desk| !desk.is_runnable());
        wait_for("the thread to be stuck", || asleep(&rescue).then_some(()));
        let due = after(since, RESCUE_DEADLINE);
        assert_eq!(rescue.overdue(due - 1), None);
        assert_eq!(rescue.overdue(due), Some(WorkerId(1)));
        // The second only waited: its time begins now.
        assert_eq!(rescue.overdue(due), None);
        assert!(rescue.pending.iter().all(|job| job.deadline == after(due, RESCUE_DEADLINE)));
        let taken = wait_for("the second job", || rescue.finished());
        assert_eq!(
            (taken.worker, taken.rescued.len(), taken.awaited),
            (WorkerId(2), 2, Awaited::Yes)
        );
        assert_eq!((rescue.abandoned.len(), rescue.deadline()), (1, None));
        drop(peer);
        let late = wait_for("the stuck job", || rescue.finished());
        assert_eq!((late.worker, late.lost, late.awaited), (WorkerId(1), 1, Awaited::NoMore));
        assert_eq!(rescue.abandoned.len(), 0);
    }

    #[test]
    fn a_close_that_blocks_holds_up_no_take_back() {
        let (mut rescue, _poll) = start();
        let (lingers, _peer) = lingering();
        rescue.close(vec![Arc::new(lingers)]);
        let (send, queue) = channel();
        let _reader = deal(&send, 1);
        assert!(rescue.take_back(
            WorkerId(1),
            queues(&queue),
            (1, Whose::All),
            sys::monotonic_ns()
        ));
        let taken = wait_for("the take-back", || rescue.finished());
        assert_eq!(taken.rescued.len(), 1);
        assert_eq!(rescue.overdue(u64::MAX), None);
    }
}
