//! What the primary knows of each worker: its process, its page, its channels.
//!
//! Owns every descriptor that belongs to a worker. Promises: reading a load costs one cache line of
//! the worker's page and no system call (a worker without a page costs one per channel).

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use croupier_core::event::{ExitStatus, ListenerId, Load, Loads, SlotId, WorkerId};
use croupier_core::find_by_id;
use croupier_wire::message::{ADDRESS_MAX, HANDOFF_LEN, RawAddress};

use super::channel::Channel;
use super::hunt::Burial;
use super::page::SharedPage;
use super::process::{self, Forked};
use super::rescue::Queue;

/// Channels that one worker may have open.
pub(crate) const CHANNELS_MAX: usize = 64;
/// Sockets of one worker of which is remembered what they were bound to.
const BOUND_MAX: usize = 64;
/// Probes whose client end is kept open at once, per worker.
const PROBES_MAX: usize = 4;

/// CPU time in which a worker that is not stuck in a request would have claimed, nanoseconds.
const CPU_ENOUGH_NS: u64 = 10_000_000;

/// Where the process stands. The core has its own, richer idea of the worker; this is only what
/// waitpid(2) and kill(2) need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    /// It runs, as far as we know; its number and its process group are its own.
    Running,
    /// It ended and is not reaped: its number and its process group are still its own.
    Zombie(ExitStatus),
    /// Reaped: its number may be somebody else's by now.
    Reaped(ExitStatus),
}

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) slot: SlotId,
    /// Main process and process group.
    pub(crate) pid: u32,
    pub(crate) process: Process,
    /// It is not known yet whether its program runs.
    pub(crate) forked: Option<Forked>,
    /// Readable once the main process has ended.
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) token: [u8; 16],
    pub(crate) page: SharedPage,
    pub(crate) bell: OwnedFd,
    pub(crate) started_ns: u64,
    /// The family is being killed; the core waits to hear that nobody is left.
    pub(crate) burying: Option<Burial>,
    /// Folders of cgroups of its own, if it is not in the primary's.
    pub(crate) cgroups: Vec<PathBuf>,
    /// It was told that it may leave; processes that ask for their post later hear it then.
    pub(crate) dismissed: bool,
    /// `--ready notify`: where the worker's sd_notify(3) arrives, and its abstract name.
    pub(crate) notify: Option<(Arc<OwnedFd>, String)>,
    channels: Vec<(Channel, RawAddress<ADDRESS_MAX>)>,
    sockets: Vec<ListenerId>,
    /// By `SO_COOKIE` of the program's own socket, which stays unbound; the latest are at the end.
    bound: Vec<(u64, RawAddress<ADDRESS_MAX>)>,
    next_channel: u32,
    sent: u64,
    taken: u64,
    probes: Vec<std::net::TcpStream>,
    next_send: usize,
    /// Its channels are watched, in place of a page's doorbell, until it has claimed so many.
    pub(crate) heard_until: Option<u64>,
    suspicion: Cell<Option<Suspicion>>,
}

/// A worker that was runnable and did not claim when it was last looked at.
#[derive(Debug, Clone, Copy)]
struct Suspicion {
    pid: u32,
    claimed: u64,
    cpu_ns: u64,
}

impl Worker {
    /// A worker whose process is still to be started.
    pub(crate) fn new(
        id: WorkerId,
        slot: SlotId,
        token: [u8; 16],
        page: SharedPage,
        bell: OwnedFd,
        started_ns: u64,
    ) -> Self {
        Self {
            id,
            slot,
            pid: 0,
            pidfd: None,
            process: Process::Running,
            forked: None,
            token,
            page,
            bell,
            started_ns,
            burying: None,
            cgroups: Vec::new(),
            dismissed: false,
            notify: None,
            channels: Vec::new(),
            sockets: Vec::new(),
            bound: Vec::new(),
            next_channel: 1,
            sent: 0,
            taken: 0,
            probes: Vec::new(),
            next_send: 0,
            heard_until: None,
            suspicion: Cell::new(None),
        }
    }

    /// Opens one more channel for `listener`; `address` is what getsockname(2) will answer.
    ///
    /// # Errors
    /// `EMFILE` and the like; `ENOSPC` beyond [`CHANNELS_MAX`].
    pub(crate) fn open_channel(
        &mut self,
        listener: ListenerId,
        owner: u32,
        depth: u32,
        address: RawAddress<ADDRESS_MAX>,
    ) -> io::Result<u32> {
        // A program may close and listen again as often as it likes.
        self.channels.retain(|(channel, _)| !channel.closed || channel.queued() != Some(0));
        if self.channels.len() >= CHANNELS_MAX {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let number = self.next_channel;
        let channel = Channel::open(self.id, number, listener, owner, depth)?;
        self.next_channel += 1;
        // Most programs listen once; to push alone would make room for four.
        self.channels.reserve_exact(1);
        self.channels.push((channel, address));
        Ok(number)
    }

    /// The clients of these listeners come on this channel, too.
    pub(crate) fn share_channel(
        &mut self,
        number: u32,
        also: Vec<ListenerId>,
        by_mark: [ListenerId; 2],
    ) {
        let found = self.channels.iter_mut().find(|(channel, _)| channel.number == number);
        if let Some((channel, _)) = found {
            (channel.also, channel.by_mark) = (also, by_mark);
        }
    }

    /// The worker has the listening socket itself (`shared`, `reuseport`). A program may listen again
    /// as often as it likes.
    pub(crate) fn note_socket(&mut self, listener: ListenerId) {
        if !self.sockets.contains(&listener) {
            self.sockets.push(listener);
        }
    }

    /// The program's bind(2) of the socket with this `SO_COOKIE` was granted.
    pub(crate) fn note_bound(&mut self, cookie: u64, address: RawAddress<ADDRESS_MAX>) {
        self.bound.retain(|(known, _)| *known != cookie);
        if self.bound.len() >= BOUND_MAX {
            self.bound.remove(0);
        }
        self.bound.push((cookie, address));
    }

    /// What the program bound the socket with this `SO_COOKIE` to.
    pub(crate) fn bound_to(&self, cookie: u64) -> Option<RawAddress<ADDRESS_MAX>> {
        self.bound.iter().find(|(known, _)| *known == cookie).map(|(_, address)| *address)
    }

    /// Every listener that it listens on.
    pub(crate) fn listens(&self) -> Vec<ListenerId> {
        let channels = self.channels.iter().filter(|(channel, _)| !channel.closed);
        let mut all = self.sockets.clone();
        for (channel, _) in channels {
            all.push(channel.listener);
            all.extend(&channel.also);
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(crate) fn channel(&self, number: u32) -> Option<(&Channel, &RawAddress<ADDRESS_MAX>)> {
        let found = self.channels.iter().find(|(channel, _)| channel.number == number);
        found.map(|(channel, address)| (channel, address))
    }

    /// The program closed its listening descriptor. Returns the listeners for which it was the last.
    pub(crate) fn close_channel(&mut self, number: u32) -> Vec<ListenerId> {
        // Who closes what it does not have, again and again, costs no more than this look.
        let open = |(channel, _): &&mut (Channel, _)| channel.number == number && !channel.closed;
        let Some((channel, _)) = self.channels.iter_mut().find(open) else { return Vec::new() };
        channel.closed = true;
        let mut served = vec![channel.listener];
        served.extend(&channel.also);
        served.retain(|listener| !self.listens_on(*listener));
        served
    }

    /// Whether the program has an open listening descriptor for `listener`.
    pub(crate) fn listens_on(&self, listener: ListenerId) -> bool {
        self.sockets.contains(&listener)
            || self.channels.iter().any(|(channel, _)| channel.serves(listener))
    }

    /// Its main process has not ended.
    pub(crate) fn is_running(&self) -> bool {
        self.process == Process::Running
    }

    /// What its main process says of itself is the program's, not a copy of the primary's.
    pub(crate) fn is_executing(&self) -> bool {
        self.is_running() && self.forked.is_none()
    }

    /// Whether process `pid` itself has one for this very address.
    pub(crate) fn process_listens_on(&self, address: &RawAddress<ADDRESS_MAX>, pid: u32) -> bool {
        self.channels.iter().any(|(c, at)| at == address && c.owner == pid && !c.closed)
    }

    /// Open channels whose owner has gone, with the inode to look for among the rest of the family.
    pub(crate) fn orphaned_channels(&self, alive: impl Fn(u32) -> bool) -> Vec<(u32, u64)> {
        let open =
            self.channels.iter().filter(|(c, _)| !c.closed && c.owner != 0 && !alive(c.owner));
        open.filter_map(|(channel, _)| Some((channel.number, channel.inode()?))).collect()
    }

    /// What is queued on one channel, for the rescue thread.
    pub(crate) fn queue_of(&self, number: u32) -> Option<Queue> {
        let (channel, _) = self.channels.iter().find(|(channel, _)| channel.number == number)?;
        (channel.queued() != Some(0)).then(|| Queue::of(channel))
    }

    /// Sends on a channel for `listener`; of several (one per process of a pre-forker) the shortest
    /// queue, in turn.
    ///
    /// # Errors
    /// The errno of sendmsg(2); `EPIPE` when there is no channel.
    pub(crate) fn send(
        &mut self,
        listener: ListenerId,
        header: &[u8; HANDOFF_LEN],
        conn: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let at =
            self.shortest(listener).ok_or_else(|| io::Error::from_raw_os_error(libc::EPIPE))?;
        let (channel, _) = self.channels.get(at).ok_or(io::ErrorKind::NotFound)?;
        channel.send(header, conn)?;
        self.next_send = at + 1;
        self.sent += 1;
        Ok(())
    }

    /// The open channel of `listener` with the fewest queued connections, beginning behind the last
    /// one used. With one channel, as nearly all workers have, that is no system call.
    fn shortest(&self, listener: ListenerId) -> Option<usize> {
        let count = self.channels.len();
        let turn = (0..count).map(|step| (self.next_send + step) % count);
        let mut open = turn.filter(|at| {
            let channel = self.channels.get(*at).map(|(channel, _)| channel);
            channel.is_some_and(|channel| channel.serves(listener))
        });
        let first = open.next()?;
        let Some(second) = open.next() else { return Some(first) };
        let queued = |at: &usize| self.channels.get(*at).and_then(|(channel, _)| channel.queued());
        [first, second].into_iter().chain(open).min_by_key(queued)
    }

    /// Connections came back out of the queues.
    pub(crate) fn note_taken(&mut self, removed: u32) {
        self.taken += u64::from(removed);
    }

    /// Keeps a probe's client end open while the worker may read from the other.
    pub(crate) fn keep_probe(&mut self, client: std::net::TcpStream) {
        if self.probes.len() >= PROBES_MAX {
            self.probes.remove(0);
        }
        self.probes.push(client);
    }

    /// Duplicates of the receive ends that may hold something.
    pub(crate) fn queues(&self) -> Vec<Queue> {
        let used = self.channels.iter().filter(|(channel, _)| channel.queued() != Some(0));
        used.map(|(channel, _)| Queue::of(channel)).collect()
    }

    /// Everything whose close the worker could make block.
    pub(crate) fn into_descriptors(self) -> Vec<Arc<OwnedFd>> {
        let receive = self.channels.iter().map(|(channel, _)| channel.duplicate());
        receive.chain(self.notify.map(|(socket, _)| socket)).collect()
    }

    /// Exact number of queued connections: one ioctl(2) per channel.
    pub(crate) fn queued_exact(&self) -> Option<u32> {
        self.channels.iter().map(|(channel, _)| channel.queued()).sum()
    }

    /// Whether it is runnable and has had too little CPU, since it was first asked about, to have come
    /// to its next claim. A worker that sleeps or is stopped lacks something else.
    fn lacks_cpu(&self) -> bool {
        let mut pids = self.page.pids();
        // Behind a wrapper it is not the main process that claims.
        let pid = match (pids.next(), pids.next()) {
            (Some(only), None) => only,
            (Some(_) | None, _) => self.pid,
        };
        let Some((true, cpu_ns)) = process::cpu_of(pid) else {
            self.suspicion.set(None);
            return false;
        };
        let claimed = self.claimed();
        match self.suspicion.get() {
            Some(then) if then.pid == pid && then.claimed == claimed => {
                cpu_ns.saturating_sub(then.cpu_ns) < CPU_ENOUGH_NS
            }
            Some(_) | None => {
                self.suspicion.set(Some(Suspicion { pid, claimed, cpu_ns }));
                true
            }
        }
    }

    /// Connections claimed since it started.
    pub(crate) fn claimed(&self) -> u64 {
        self.load().claimed
    }

    /// The primary's ends of its channels.
    pub(crate) fn send_ends(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.channels.iter().map(|(channel, _)| channel.send_end())
    }

    fn load(&self) -> Load {
        if self.page.attached || self.sent == self.taken {
            return self.page.load();
        }
        let queued = u64::from(self.queued_exact().unwrap_or(0));
        Load { claimed: self.sent.saturating_sub(self.taken).saturating_sub(queued), active: None }
    }
}

/// All workers that are not forgotten, by id.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    // Ids only grow, so pushing keeps the order.
    sorted: Vec<Worker>,
}

impl Workers {
    pub(crate) fn insert(&mut self, worker: Worker) {
        debug_assert!(self.sorted.last().is_none_or(|last| last.id < worker.id), "ids only grow");
        self.sorted.push(worker);
    }

    pub(crate) fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        let at = self.find(id)?;
        Some(self.sorted.remove(at))
    }

    pub(crate) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.sorted.get(self.find(id)?)
    }

    pub(crate) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        let at = self.find(id)?;
        self.sorted.get_mut(at)
    }

    fn find(&self, id: WorkerId) -> Option<usize> {
        find_by_id(&self.sorted, id, |worker| worker.id)
    }

    pub(crate) fn by_token(&self, token: &[u8; 16]) -> Option<WorkerId> {
        self.sorted.iter().find(|worker| worker.token == *token).map(|worker| worker.id)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Worker> {
        self.sorted.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Worker> {
        self.sorted.iter_mut()
    }
}

impl Loads for Workers {
    fn load(&self, worker: WorkerId) -> Load {
        self.get(worker).map(Worker::load).unwrap_or_default()
    }

    fn queued_exact(&self, worker: WorkerId) -> Option<u32> {
        self.get(worker)?.queued_exact()
    }

    fn lacks_cpu(&self, worker: WorkerId) -> bool {
        self.get(worker).is_some_and(Worker::lacks_cpu)
    }

    fn holds(&self, worker: WorkerId, mark: u16) -> bool {
        self.get(worker).is_some_and(|worker| worker.page.attached && worker.page.holds(mark))
    }
}

/// The doorbell: an eventfd. Registered edge-triggered, so it is never read: every write is an edge.
///
/// # Errors
/// EMFILE and the like.
pub(crate) fn doorbell() -> io::Result<OwnedFd> {
    use nix::sys::eventfd::{EfdFlags, EventFd};
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    bell.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channels are named after the worker, so each test has its own.
    fn worker(id: u32) -> Worker {
        let (id, slot) = (WorkerId(id), SlotId(0));
        Worker::new(id, slot, [1; 16], SharedPage::new(id).unwrap(), doorbell().unwrap(), 0)
    }

    #[test]
    fn a_socket_that_is_listened_on_again_and_again_is_known_once() {
        let mut worker = worker(41);
        for _ in 0..1000 {
            worker.note_socket(ListenerId(3));
        }
        assert_eq!(worker.sockets.len(), 1);
        assert_eq!(worker.listens(), [ListenerId(3)]);
    }

    #[test]
    fn a_close_names_once_what_nobody_of_the_worker_listens_on_any_more() {
        let mut worker = worker(42);
        let shared = worker.open_channel(ListenerId(0), 1, 8, RawAddress::NONE).unwrap();
        worker.share_channel(shared, vec![ListenerId(1), ListenerId(2)], [ListenerId(0); 2]);
        let other = worker.open_channel(ListenerId(2), 1, 8, RawAddress::NONE).unwrap();
        assert_eq!(worker.close_channel(other + 1), [], "there is no such channel");
        assert_eq!(worker.listens().len(), 3);
        assert_eq!(worker.close_channel(shared), [ListenerId(0), ListenerId(1)]);
        assert_eq!(worker.close_channel(shared), [], "it is closed already");
        assert_eq!(worker.close_channel(other), [ListenerId(2)]);
        assert_eq!(worker.listens(), []);
    }
}
