//! The disposal thread: closes what a worker could have filled with descriptors whose close blocks,
//! and reads the messages that they may be attached to.
//!
//! Owns descriptors that the primary is done with. Closing a socket also closes every descriptor that
//! is queued on it, and a TCP socket with `SO_LINGER` makes its last close wait (socket(7)). Apart
//! from the rescue thread, so that such a close holds up no take-back, and no other worker is blamed
//! for it. Promises: the loop never closes or waits here; a thread that is stuck while others wait
//! is replaced, at most [`ABANDONED_MAX`] times at once, and what waited behind it goes on.

use std::cell::Cell;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, SendError, Sender, unbounded};
use croupier_wire::fdpass::{self, Received};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, RecvMsg, UnixCredentials, recvmsg};

use super::posts::{self, POSTS_MAX, Read};
use super::rescue::{ABANDONED_MAX, after};
use super::wake::wake;
use crate::config::WORKERS_MAX;
use crate::sys;

/// How long a close may hold up the ones behind it.
pub(crate) const DISPOSAL_DEADLINE: Duration = Duration::from_secs(1);
/// Chores that may wait.
pub(crate) const CHORES_MAX: usize = 4096;

/// What a thread works on, for the loop to see.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// The job's number; 0: none; [`Desk::LEFT`]: nobody waits for this thread any more.
    serial: AtomicU64,
    /// When it began (nanoseconds, monotonic).
    since: AtomicU64,
    /// The thread's number, as /proc shows it.
    thread: AtomicI32,
}

impl Desk {
    const LEFT: u64 = u64::MAX;

    /// The calling thread works here.
    pub(super) fn sit_down(&self) {
        self.thread.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
    }

    /// The thread runs, or would if it had a CPU, or if its tracer let it (strace(1), a debugger): it does not
    /// wait for any worker.
    pub(super) fn is_runnable(&self) -> bool {
        let thread = self.thread.load(Ordering::Relaxed);
        let stat = procfs::process::Process::myself()
            .and_then(|process| process.task_from_tid(thread))
            .and_then(|task| task.stat());
        stat.is_ok_and(|stat| matches!(stat.state, 'R' | 't'))
    }

    pub(super) fn begin(&self, serial: u64) {
        self.since.store(sys::monotonic_ns(), Ordering::Relaxed);
        self.serial.store(serial, Ordering::Release);
    }

    /// Returns whether the thread shall go on.
    pub(super) fn finish(&self) -> bool {
        self.serial.swap(0, Ordering::AcqRel) != Self::LEFT
    }

    /// The job and when it began.
    pub(super) fn at_work(&self) -> Option<(u64, u64)> {
        let serial = self.serial.load(Ordering::Acquire);
        let busy = serial != 0 && serial != Self::LEFT;
        busy.then(|| (serial, self.since.load(Ordering::Relaxed)))
    }

    /// The thread is left to itself and ends after this job; `false`: it has just finished it.
    pub(super) fn leave(&self, serial: u64) -> bool {
        let left =
            self.serial.compare_exchange(serial, Self::LEFT, Ordering::AcqRel, Ordering::Relaxed);
        left.is_ok()
    }
}

/// A process, as the kernel vouches for it (unix(7), `SCM_CREDENTIALS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Speaker {
    pub(super) pid: u32,
    pub(super) uid: u32,
}

/// What a worker's process said on a socket that only a thread may read.
#[derive(Debug)]
pub(super) enum Heard {
    /// By sd_notify(3); `ready`: who said `READY=1`.
    Notification { worker: u32, ready: Vec<Speaker> },
    /// By post.
    Post { number: u32, read: Read },
}

/// Work for the thread.
#[derive(Debug)]
enum Chore {
    Notifications(u32, Arc<OwnedFd>),
    Post(u32, Arc<OwnedFd>),
    Close(Vec<Arc<OwnedFd>>),
    Dismiss(OwnedFd),
}

/// What a thread needs. All threads share one queue: a new one goes on where the stuck one is.
#[derive(Debug, Clone)]
struct Tools {
    inbox: Receiver<Chore>,
    heard: Sender<Heard>,
    waker: Arc<mio::Waker>,
    abandoned: Arc<AtomicUsize>,
}

/// The loop's side.
#[derive(Debug)]
pub(super) struct Disposal {
    chores: Sender<Chore>,
    tools: Tools,
    heard: Receiver<Heard>,
    /// The thread's; `None`: none could be made yet.
    desk: Option<Arc<Desk>>,
    /// Messages asked for and not read yet. Only for them is it worth waking up: a close that
    /// waits has nobody who waits for it.
    owed: Cell<u32>,
    /// No thread could be made: not again before this.
    retry_at: u64,
}

impl Disposal {
    /// Starts the thread.
    ///
    /// # Errors
    /// EAGAIN: no thread can be made.
    pub(super) fn start(waker: Arc<mio::Waker>) -> io::Result<Self> {
        // Bounded by `give`: a channel that is bounded itself has room for all of them from the start,
        // 128 KiB that hardly anybody needs.
        let (chores, inbox) = unbounded();
        // One answer for each chore at most, and those are bounded.
        let (heard_to, heard) = unbounded();
        let tools = Tools { inbox, heard: heard_to, waker, abandoned: Arc::default() };
        let desk = Some(hire(tools.clone())?);
        Ok(Self { chores, tools, heard, desk, owed: Cell::new(0), retry_at: 0 })
    }

    pub(super) fn read_notifications(&self, worker: u32, socket: Arc<OwnedFd>) {
        self.owe(Chore::Notifications(worker, socket));
    }

    /// Returns whether it will be read.
    pub(super) fn read_post(&self, number: u32, socket: Arc<OwnedFd>) -> bool {
        self.owe(Chore::Post(number, socket))
    }

    fn owe(&self, chore: Chore) -> bool {
        let taken = self.give(chore);
        self.owed.set(self.owed.get().saturating_add(u32::from(taken)));
        taken
    }

    pub(super) fn heard(&self) -> Option<Heard> {
        let found = self.heard.try_recv().ok()?;
        self.owed.set(self.owed.get().saturating_sub(1));
        Some(found)
    }

    pub(super) fn close(&self, descriptors: Vec<Arc<OwnedFd>>) {
        self.give(Chore::Close(descriptors));
    }

    pub(super) fn dismiss(&self, client: OwnedFd) {
        self.give(Chore::Dismiss(client));
    }

    fn give(&self, chore: Chore) -> bool {
        // Of each post only one waits. Refused, what came would be read when the process says more, which
        // may be never.
        let max = match chore {
            Chore::Post(..) => CHORES_MAX + usize::from(WORKERS_MAX) * POSTS_MAX,
            Chore::Notifications(..) | Chore::Close(_) | Chore::Dismiss(_) => CHORES_MAX,
        };
        // Only the loop sends: there is no more in it than this by the time one more comes.
        let full = self.chores.len() >= max;
        let refused = if full { Err(SendError(chore)) } else { self.chores.send(chore) };
        let Err(SendError(chore)) = refused else { return true };
        log::error!("{CHORES_MAX} closes wait behind one that blocks: a worker's descriptors leak");
        // Thousands wait behind threads that all are stuck. To close here could stop all dealing for
        // as long as a worker likes; a descriptor less does not.
        match chore {
            Chore::Notifications(_, socket) | Chore::Post(_, socket) => leak(socket),
            Chore::Close(descriptors) => descriptors.into_iter().for_each(leak),
            Chore::Dismiss(client) => leak(Arc::new(client)),
        }
        false
    }

    /// When [`Self::look`] will have something to do.
    pub(super) fn deadline(&self) -> Option<u64> {
        if self.owed.get() == 0 || self.chores.is_empty() {
            return None;
        }
        let Some(desk) = &self.desk else { return Some(self.retry_at) };
        let since = desk.at_work().map_or_else(sys::monotonic_ns, |(_, since)| since);
        self.replaceable().then(|| after(since, DISPOSAL_DEADLINE))
    }

    fn replaceable(&self) -> bool {
        self.tools.abandoned.load(Ordering::Relaxed) < ABANDONED_MAX
    }

    /// Replaces a thread that is stuck while others wait.
    pub(super) fn look(&mut self, now_ns: u64) {
        if self.chores.is_empty() {
            return;
        }
        if let Some(desk) = &self.desk {
            let Some((serial, since)) = desk.at_work() else { return };
            let due = now_ns >= after(since, DISPOSAL_DEADLINE);
            if !due || !self.replaceable() || !desk.leave(serial) {
                return;
            }
            self.tools.abandoned.fetch_add(1, Ordering::Relaxed);
            self.desk = None;
            self.retry_at = now_ns;
            log::warn!("a worker's descriptor blocks at its close; another thread goes on");
        }
        if now_ns < self.retry_at {
            return;
        }
        match hire(self.tools.clone()) {
            Ok(desk) => self.desk = Some(desk),
            Err(error) => {
                log::error!("cannot start another disposal thread: {error}");
                self.retry_at = after(now_ns, DISPOSAL_DEADLINE);
            }
        }
    }
}

/// Only the last owner leaks; another owner of the same descriptor closes it in time.
fn leak(descriptor: Arc<OwnedFd>) {
    if let Some(last) = Arc::into_inner(descriptor) {
        log::debug!("descriptor {} is never closed", last.into_raw_fd());
    }
}

fn hire(tools: Tools) -> io::Result<Arc<Desk>> {
    let desk = Arc::new(Desk::default());
    let own = Arc::clone(&desk);
    let work = move || {
        for (serial, chore) in (1..).zip(tools.inbox.iter()) {
            own.begin(serial);
            let read = perform(chore);
            if !own.finish() {
                tools.abandoned.fetch_sub(1, Ordering::Relaxed);
                tell(&tools, read);
                return;
            }
            tell(&tools, read);
        }
    };
    std::thread::Builder::new().name("disposal".into()).stack_size(256 * 1024).spawn(work)?;
    Ok(desk)
}

fn tell(tools: &Tools, heard: Option<Heard>) {
    let Some(heard) = heard else { return };
    // Not sent: the primary is gone.
    if tools.heard.send(heard).is_ok() {
        wake(&tools.waker);
    }
}

fn perform(chore: Chore) -> Option<Heard> {
    match chore {
        Chore::Close(descriptors) => {
            drop(descriptors);
            None
        }
        Chore::Dismiss(client) => {
            read_away(&client);
            None
        }
        Chore::Notifications(worker, socket) => {
            Some(Heard::Notification { worker, ready: read_notifications(&socket) })
        }
        Chore::Post(number, socket) => Some(Heard::Post { number, read: posts::read(&socket) }),
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

/// Who says `READY=1`.
fn read_notifications(socket: &OwnedFd) -> Vec<Speaker> {
    let mut ready = Vec::new();
    for _ in 0..NOTIFICATIONS_MAX {
        let mut bytes = [0; 4096];
        // Room for the sender and for no descriptors: the kernel closes what came along, here, where
        // it may block.
        let mut control = nix::cmsg_space!(UnixCredentials);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = socket.as_raw_fd();
        let Ok(message) = recvmsg::<()>(fd, &mut parts, Some(&mut control), flags) else { break };
        let (speaker, len) = (speaker_of(&message), message.bytes);
        let text = bytes.get(..len).unwrap_or(&[]);
        if text.split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            ready.extend(speaker);
        }
    }
    ready
}

/// `None` also for a message that came with descriptors: nobody needs them here.
fn speaker_of(message: &RecvMsg<'_, '_, ()>) -> Option<Speaker> {
    message.cmsgs().ok()?.find_map(|part| {
        let ControlMessageOwned::ScmCredentials(who) = part else { return None };
        Some(Speaker { pid: u32::try_from(who.pid()).ok()?, uid: who.uid() })
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::net::UnixDatagram;

    use nix::sys::socket::{setsockopt, sockopt};

    use crate::testing::wait_for;

    /// A TCP socket whose last close waits until its peer (the second) is gone.
    pub(in crate::primary) fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        while client.write(&[0; 65536]).is_ok() {}
        sys::set_option(client.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &[1, 600]).unwrap();
        (client.into(), peer)
    }

    pub(in crate::primary) fn waker() -> (mio::Poll, Arc<mio::Waker>) {
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        (poll, Arc::new(waker))
    }

    #[test]
    fn what_waits_behind_a_close_that_blocks_goes_on() {
        let (_poll, waker) = waker();
        let mut disposal = Disposal::start(waker).unwrap();
        let (lingers, peer) = lingering();
        disposal.close(vec![Arc::new(lingers)]);
        let (_, since) = wait_for("the close to begin", || {
            disposal.desk.as_ref().and_then(|desk| desk.at_work())
        });
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        setsockopt(&ours, sockopt::PassCred, &true).unwrap();
        theirs.send(b"STATUS=up").unwrap();
        theirs.send(b"STATUS=up\nREADY=1").unwrap();
        disposal.read_notifications(7, Arc::new(ours.into()));
        let due = after(since, DISPOSAL_DEADLINE);
        assert_eq!(disposal.deadline(), Some(due));
        disposal.look(due - 1);
        assert_eq!(disposal.tools.abandoned.load(Ordering::Relaxed), 0);
        disposal.look(due);
        let heard = wait_for("the notification", || disposal.heard());
        let Heard::Notification { worker: 7, ready } = heard else { panic!("{heard:?}") };
        let (pid, uid) = (std::process::id(), nix::unistd::geteuid().as_raw());
        assert_eq!(ready, [Speaker { pid, uid }]);
        assert_eq!(disposal.tools.abandoned.load(Ordering::Relaxed), 1);
        assert_eq!(disposal.deadline(), None, "nothing waits, nothing wakes");
        drop(peer);
        let freed = || (disposal.tools.abandoned.load(Ordering::Relaxed) == 0).then_some(());
        wait_for("the stuck thread to end", freed);
    }

    #[test]
    fn a_thread_stuck_alone_is_left_in_peace() {
        let (_poll, waker) = waker();
        let mut disposal = Disposal::start(waker).unwrap();
        let (lingers, _peer) = lingering();
        disposal.close(vec![Arc::new(lingers)]);
        let (_, since) = wait_for("the close to begin", || {
            disposal.desk.as_ref().and_then(|desk| desk.at_work())
        });
        disposal.look(after(since, DISPOSAL_DEADLINE * 2));
        assert_eq!(disposal.tools.abandoned.load(Ordering::Relaxed), 0);
        assert_eq!(disposal.deadline(), None);
    }

    #[test]
    fn threads_are_replaced_up_to_the_maximum_and_the_queue_is_bounded() {
        let (_poll, waker) = waker();
        let mut disposal = Disposal::start(waker).unwrap();
        let mut peers = Vec::new();
        for _ in 0..ABANDONED_MAX + 3 {
            let (lingers, peer) = lingering();
            disposal.close(vec![Arc::new(lingers)]);
            peers.push(peer);
            wait_for("a close to begin", || disposal.desk.as_ref().and_then(|desk| desk.at_work()));
            disposal.look(u64::MAX);
        }
        assert_eq!(disposal.tools.abandoned.load(Ordering::Relaxed), ABANDONED_MAX);
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        let shared: Arc<OwnedFd> = Arc::new(ours.into());
        let given = (0..CHORES_MAX * 2)
            .take_while(|_| disposal.give(Chore::Close(vec![Arc::clone(&shared)])));
        assert!(given.count() < CHORES_MAX);
        assert!(!disposal.give(Chore::Close(vec![Arc::clone(&shared)])));
        assert!(
            disposal.read_post(1, Arc::clone(&shared)),
            "what is said by post is read some time"
        );
        drop(peers);
        let freed = || (disposal.tools.abandoned.load(Ordering::Relaxed) == 0).then_some(());
        wait_for("the stuck threads to end", freed);
        wait_for("the queue to empty", || disposal.chores.is_empty().then_some(()));
    }
}
