//! Claims: taking dealt connections out of a channel, and saying so on the page.
//!
//! **Owns** a process's [`Seat`]: its mapping of the worker's page, the doorbell, its line.
//! **Promises** that a claim costs one recvmsg(2) in the ordinary case, and a look at the limit of
//! descriptors at most once a millisecond; that a process without a free one gets `EMFILE` and the
//! connection stays queued (recvmsg(2) destroys it, silently); that the doorbell is never written into a
//! file of the program's. The one exception: descriptors that ran out since the last look, or, where one
//! is left, another process that takes at the same moment, cost one connection; that is `EMFILE`, too.
//! **Never** allocates, locks, or blocks other than as the channel's own `O_NONBLOCK` says.

use croupier_wire::fdpass::{Received, check};
use croupier_wire::memory::{map_page, map_wiped_on_fork, stat};
use croupier_wire::message::{HANDOFF_LEN, Handoff};
use croupier_wire::page::{Bell, HEAD_GONE, Line, Page};
use croupier_wire::room::soft_limit;
use croupier_wire::take::Taker;
use libc::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, Ordering::SeqCst};

/// Where the doorbell goes, out of the way of programs that count on small numbers (select(2)).
const BELL_NUMBER: i32 = 1000;

/// What a claim gave.
#[derive(Debug)]
#[must_use]
pub enum Claim {
    /// A connection.
    Taken(OwnedFd, Handoff),
    /// None: the errno for the program (`EAGAIN`, `EINTR`, `EMFILE`, …).
    Empty(i32),
    /// The primary is gone: see [`Seat::retire`].
    Ended,
}

/// A process's place at its worker's page. May be `static`; vacant until [`Seat::take`].
#[derive(Debug)]
pub struct Seat {
    page: AtomicPtr<Page>,
    own: AtomicPtr<Own>,
    bell: AtomicI32,
    /// libc's word on whether this process has one thread only; null: not known.
    alone: AtomicPtr<AtomicU8>,
}

/// What is true of one process only. The kernel zeroes it in a forked child (`MADV_WIPEONFORK`).
#[derive(Debug)]
#[repr(C)]
struct Own {
    line: AtomicPtr<Line>,
    /// Not 0: the page has no line left for us.
    lineless: AtomicI32,
    taker: Taker,
    /// A `GONE_…` value.
    gone: AtomicI32,
}

/// [`Own::gone`]: the primary is; we leave when nothing is active.
const GONE_FINISHING: i32 = 1;
/// [`Own::gone`]: `SIGTERM` was sent.
const GONE_TOLD: i32 = 2;

impl Seat {
    /// A seat that nobody sits on.
    #[must_use]
    pub const fn vacant() -> Self {
        let null = std::ptr::null_mut();
        Self {
            page: AtomicPtr::new(null),
            own: AtomicPtr::new(null.cast()),
            bell: AtomicI32::new(-1),
            alone: AtomicPtr::new(null.cast()),
        }
    }

    /// Finds out where libc says that this process has one thread only: glibc 2.32 and later do. Until then,
    /// and with another libc, there may be more. dlsym(3) may lock and allocate, so this is not for hooks.
    pub fn know_libc(&self) {
        // SAFETY: the name is a C string.
        let alone = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
        self.alone.store(alone.cast(), SeqCst);
    }

    /// Sits down at the page that an answer of the primary brought. Does nothing when seated: the
    /// page of a worker is one.
    ///
    /// # Errors
    /// `EPROTO` when `page` is not a sealed page of this version; the errno of what else failed.
    pub fn take(&self, page: &OwnedFd, bell: OwnedFd) -> io::Result<()> {
        if self.page().is_some() {
            return Ok(());
        }
        let mapped = map_page(page)?;
        let own = map_wiped_on_fork(size_of::<Own>())?.cast::<Own>();
        let number = bell.into_raw_fd();
        let high = [BELL_NUMBER.min(soft_limit() - 64), 3].into_iter().find_map(|from| {
            // SAFETY: duplicates a descriptor.
            check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, from) }).ok()
        });
        if high.is_some() {
            // SAFETY: it was `bell`, and its duplicate takes its place.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
        self.bell.store(high.unwrap_or(number), SeqCst);
        self.own.store(own, SeqCst);
        // Last: whoever sees the page may use all of it. Of two threads at once, one mapping is lost.
        self.page.store(mapped.as_ptr(), SeqCst);
        Ok(())
    }

    /// The page, once seated.
    #[must_use]
    pub fn page(&self) -> Option<&Page> {
        // SAFETY: null, or a mapping that is never unmapped.
        unsafe { self.page.load(SeqCst).as_ref() }
    }

    /// Whether `number` is the doorbell: not the program's to close.
    #[must_use]
    pub fn holds(&self, number: c_int) -> bool {
        number >= 0 && self.bell.load(SeqCst) == number && is_anonymous(number)
    }

    /// The doorbell's number, -1 for none.
    #[must_use]
    pub fn bell(&self) -> c_int {
        self.bell.load(SeqCst)
    }

    /// Takes the next connection out of `channel`. `flags` as accept4(2): `SOCK_CLOEXEC`,
    /// `SOCK_NONBLOCK`.
    pub fn claim(&self, channel: BorrowedFd<'_>, flags: c_int) -> Claim {
        let (Some(page), Some(own)) = (self.page(), self.own()) else {
            return Claim::Empty(libc::EINVAL);
        };
        let cloexec = if flags & libc::SOCK_CLOEXEC != 0 { libc::MSG_CMSG_CLOEXEC } else { 0 };
        let (mut bytes, mut fd) = ([0; HANDOFF_LEN], [None]);
        let alone = self.is_alone();
        let received = match own.taker.take(channel, &mut bytes, &mut fd, cloexec, alone) {
            Ok((Received::Ended, _)) => return Claim::Ended,
            Ok((Received::Message(len), now)) => {
                Handoff::decode(bytes.get(..len).unwrap_or(&[])).map(|handoff| (handoff, now))
            }
            Err(error) => return Claim::Empty(error.raw_os_error().unwrap_or(libc::EPROTO)),
        };
        let (Ok((handoff, now)), [Some(fd)]) = (received, fd) else {
            return Claim::Empty(libc::EPROTO);
        };
        let wanted = flags & libc::SOCK_NONBLOCK;
        if handoff.nonblocking != (wanted != 0) {
            // SAFETY: sets the flags of our own socket; SOCK_NONBLOCK is O_NONBLOCK (accept4(2)).
            drop(check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, wanted) }));
        }
        let hint = wanted.unsigned_abs();
        if page.totals.nonblocking.load(SeqCst) != hint {
            page.totals.nonblocking.store(hint, SeqCst);
        }
        own.taker.took(fd.as_raw_fd());
        let waited = now.saturating_sub(handoff.handed_off_at) / 1000;
        self.ring(page.count_claim(own.line(page), waited));
        Claim::Taken(fd, handoff)
    }

    /// Takes a connection that was dealt to a worker beside those that it accepts from its own socket,
    /// out of `channel`, which is non-blocking: of two threads that see it, one comes too late. Without
    /// mail that costs one read of memory.
    pub fn take_mail(&self, channel: BorrowedFd<'_>, flags: c_int) -> Option<(OwnedFd, Handoff)> {
        let mail = &self.page()?.bell.mail;
        if mail.load(SeqCst) == 0 {
            return None;
        }
        match self.claim(channel, flags) {
            Claim::Taken(fd, handoff) => {
                // What is left is in other channels, of other listeners and processes.
                let _ = mail.fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1));
                Some((fd, handoff))
            }
            Claim::Empty(_) | Claim::Ended => None,
        }
    }

    /// Counts the close of a claimed connection.
    pub fn count_close(&self) {
        if let (Some(page), Some(own)) = (self.page(), self.own()) {
            self.ring(page.count_close(own.line(page)));
            leave_if_idle(page, own);
        }
    }

    /// The primary is gone: puts an inert socket over `channel`, on which accept() sleeps or would
    /// block but never fails (servers spin or crash on every errno), and sends `SIGTERM` to this
    /// process group as soon as nothing is active in the worker.
    pub fn retire(&self, channel: BorrowedFd<'_>) {
        let flags = |command| {
            // SAFETY: asks for flags.
            check(unsafe { libc::fcntl(channel.as_raw_fd(), command) }).unwrap_or(0)
        };
        let nonblocking = flags(libc::F_GETFL) & libc::O_NONBLOCK;
        let cloexec = if flags(libc::F_GETFD) != 0 { libc::O_CLOEXEC } else { 0 };
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | nonblocking;
        let mut ends = [-1; 2];
        // SAFETY: `ends` has room for two. The other end stays open for good: closed, it would be EOF.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } == 0 {
            let [inert, _kept] = ends;
            // Not libc's dup3: the preload hooks that one, as the program's own.
            // SAFETY: both are open; the channel has nothing more to give.
            unsafe { libc::syscall(libc::SYS_dup3, inert, channel.as_raw_fd(), cloexec) };
            // SAFETY: made above; the duplicate stays.
            drop(unsafe { OwnedFd::from_raw_fd(inert) });
        }
        if let Some(page) = self.page() {
            page.head.flags.fetch_or(HEAD_GONE, SeqCst);
            self.follow();
        }
    }

    /// Takes part in the end of the primary that another process of this worker has seen.
    pub fn follow(&self) {
        if let (Some(page), Some(own)) = (self.page(), self.own())
            && page.head.flags.load(SeqCst) & HEAD_GONE != 0
        {
            let _ = own.gone.compare_exchange(0, GONE_FINISHING, SeqCst, SeqCst);
            leave_if_idle(page, own);
        }
    }

    fn own(&self) -> Option<&Own> {
        // SAFETY: null, or a mapping that is never unmapped.
        unsafe { self.own.load(SeqCst).as_ref() }
    }

    fn ring(&self, bell: Bell) {
        let (number, one) = (self.bell.load(SeqCst), 1_u64);
        if bell == Bell::Ring && is_anonymous(number) {
            // SAFETY: eight bytes. Lost (full, closed) is no harm: the primary looks on a timer, too.
            unsafe { libc::write(number, (&raw const one).cast(), size_of_val(&one)) };
        }
    }

    /// Whether no other thread can open anything while this one sleeps.
    fn is_alone(&self) -> bool {
        // SAFETY: null, or a `char` of libc's that lives as long as the process.
        unsafe { self.alone.load(SeqCst).as_ref() }.is_some_and(|one| one.load(SeqCst) != 0)
    }
}

impl Own {
    /// This process's line, taken at its first claim; `None` when the page has no more.
    fn line<'page>(&self, page: &'page Page) -> Option<&'page Line> {
        let known = self.line.load(SeqCst);
        if known.is_null() && self.lineless.load(SeqCst) == 0 {
            let Some(line) = page.take_line(std::process::id()) else {
                self.lineless.store(1, SeqCst);
                return None;
            };
            let taken = (&raw const *line).cast_mut();
            let null = std::ptr::null_mut();
            let Err(other) = self.line.compare_exchange(null, taken, SeqCst, SeqCst) else {
                return Some(line);
            };
            // Another thread was quicker: one line a process.
            line.pid.store(0, SeqCst);
            // SAFETY: a line of the same page.
            return unsafe { other.as_ref() };
        }
        // SAFETY: null, or a line of the page, which is never unmapped.
        unsafe { known.as_ref() }
    }
}

/// After the primary's end: tells the process group to go once nothing is active in the worker.
fn leave_if_idle(page: &Page, own: &Own) {
    // Connections of processes that died are closed, whatever their line says.
    let busy = |line: &Line| match i32::try_from(line.pid.load(SeqCst)) {
        Err(_) | Ok(0) => false,
        Ok(pid) => {
            let closed = line.closed.load(SeqCst);
            // SAFETY: signal 0 only asks whether there is such a process; EPERM is a yes.
            let alive = || check(unsafe { libc::kill(pid, 0) });
            line.claimed.load(SeqCst) > closed
                && alive().map_or_else(|e| e.raw_os_error() != Some(libc::ESRCH), |_| true)
        }
    };
    if own.gone.load(SeqCst) == GONE_FINISHING
        && !page.lines_in_use().any(busy)
        && own.gone.compare_exchange(GONE_FINISHING, GONE_TOLD, SeqCst, SeqCst).is_ok()
    {
        // SAFETY: a signal to our own process group, which the primary made for the worker.
        unsafe { libc::kill(0, libc::SIGTERM) };
    }
}

/// Whether `number` still can be an eventfd of ours: a program that closed everything may have a
/// file of its own there by now, and those have a type.
fn is_anonymous(number: c_int) -> bool {
    number >= 0 && stat(number).is_some_and(|found| found.st_mode & libc::S_IFMT == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use croupier_wire::page::{PAGE_LEN, PAGE_MAGIC, WAITED_BUCKETS};
    use croupier_wire::room::monotonic;

    const SEALS: c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    use croupier_wire::fdpass;
    use croupier_wire::message::RawAddress;
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;

    /// A worker's place and the primary's side of it.
    struct Table {
        seat: Seat,
        bell: OwnedFd,
        primary: OwnedFd,
        channel: OwnedFd,
    }

    fn own(number: c_int) -> OwnedFd {
        assert!(number >= 0, "{}", io::Error::last_os_error());
        // SAFETY: callers pass what a system call has just made.
        unsafe { OwnedFd::from_raw_fd(number) }
    }

    fn memfd(len: i64, seals: c_int) -> OwnedFd {
        // SAFETY: the name is a C string.
        let fd = own(unsafe {
            libc::memfd_create(c"page".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        });
        // SAFETY: our own file.
        check(unsafe { libc::ftruncate(fd.as_raw_fd(), len) }).unwrap();
        // SAFETY: one word at the start.
        unsafe { libc::pwrite(fd.as_raw_fd(), PAGE_MAGIC.to_le_bytes().as_ptr().cast(), 4, 0) };
        // SAFETY: our own file.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }).unwrap();
        fd
    }

    fn eventfd() -> io::Result<OwnedFd> {
        // SAFETY: makes a descriptor.
        let number = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: made in the line above, ours alone.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }

    fn table(channel_flags: c_int) -> Table {
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | channel_flags;
        // SAFETY: `ends` has room for two.
        check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }).unwrap();
        let [primary, channel] = ends.map(own);
        let bell = eventfd().unwrap();
        let seat = Seat::vacant();
        let page = memfd(i64::try_from(PAGE_LEN).unwrap(), SEALS);
        seat.take(&page, bell.try_clone().unwrap()).unwrap();
        Table { seat, bell, primary, channel }
    }

    impl Table {
        fn deal(&self, handoff: &Handoff) {
            let card = eventfd().unwrap();
            fdpass::send(self.primary.as_fd(), &handoff.encode(), &[card.as_fd()]).unwrap();
        }

        fn claim(&self, flags: c_int) -> Claim {
            self.seat.claim(self.channel.as_fd(), flags)
        }

        fn rung(&self) -> bool {
            let mut count = [0_u8; 8];
            // SAFETY: eight bytes of ours.
            unsafe { libc::read(self.bell.as_raw_fd(), count.as_mut_ptr().cast(), 8) == 8 }
        }

        fn page(&self) -> &Page {
            self.seat.page().unwrap()
        }
    }

    fn handoff() -> Handoff {
        Handoff { nonblocking: true, mark: 0, handed_off_at: monotonic(), peer: RawAddress::NONE }
    }

    fn errno(claim: Claim) -> i32 {
        match claim {
            Claim::Empty(errno) => errno,
            other @ (Claim::Taken(..) | Claim::Ended) => panic!("{other:?}"),
        }
    }

    #[test]
    fn mail_of_another_channel_is_left_to_be_found_there() {
        let table = table(libc::SOCK_NONBLOCK);
        let mail = &table.page().bell.mail;
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: `ends` has room for two.
        check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }).unwrap();
        let [_other_primary, other] = ends.map(own);
        table.deal(&Handoff {
            nonblocking: false,
            mark: 0,
            handed_off_at: 1,
            peer: RawAddress::NONE,
        });
        assert!(table.seat.take_mail(table.channel.as_fd(), 0).is_none(), "not announced");
        mail.fetch_add(1, SeqCst);
        assert!(table.seat.take_mail(other.as_fd(), 0).is_none(), "not there");
        assert!(table.seat.take_mail(table.channel.as_fd(), 0).is_some());
        assert_eq!(mail.load(SeqCst), 0, "there is no more to look for");
    }

    #[test]
    fn a_claim_is_counted_and_rings_when_asked() {
        let table = table(libc::SOCK_NONBLOCK);
        assert_eq!(errno(table.claim(0)), libc::EAGAIN);
        table.page().bell.ring_at.store(2, SeqCst);
        for claims in 1..=3 {
            table.deal(&Handoff { handed_off_at: monotonic() - 5_000_000, ..handoff() });
            assert!(matches!(table.claim(0), Claim::Taken(..)));
            assert_eq!(table.rung(), claims == 2, "claim {claims}");
        }
        let lines: Vec<_> = table.page().lines.iter().filter(|l| l.pid.load(SeqCst) != 0).collect();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].pid.load(SeqCst), std::process::id());
        table.page().bell.ring_on_close.store(1, SeqCst);
        table.seat.count_close();
        assert!(table.rung());
        assert_eq!((lines[0].claimed.load(SeqCst), lines[0].closed.load(SeqCst)), (3, 1));
        let waited: Vec<_> = table.page().waited.iter().map(|n| n.load(SeqCst)).collect();
        assert_eq!(waited[12..WAITED_BUCKETS].iter().sum::<u32>(), 3, "5 ms are over 4096 us");
    }

    #[test]
    fn the_flags_of_accept4_are_met_whatever_the_primary_set() {
        for (travelled, flags) in
            [(true, 0), (true, libc::SOCK_NONBLOCK), (false, 0), (false, libc::SOCK_NONBLOCK)]
        {
            let table = table(libc::SOCK_NONBLOCK);
            let card = eventfd().unwrap();
            let status = if travelled { libc::O_NONBLOCK } else { 0 };
            // SAFETY: our own descriptor.
            check(unsafe { libc::fcntl(card.as_raw_fd(), libc::F_SETFL, status) }).unwrap();
            let message = Handoff { nonblocking: travelled, ..handoff() }.encode();
            fdpass::send(table.primary.as_fd(), &message, &[card.as_fd()]).unwrap();
            let Claim::Taken(fd, _) = table.claim(flags | libc::SOCK_CLOEXEC) else {
                panic!("nothing claimed")
            };
            // SAFETY: asks for flags.
            let got = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }).unwrap();
            assert_eq!(got & libc::O_NONBLOCK, flags, "travelled {travelled}, wanted {flags}");
            // SAFETY: asks for flags.
            assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
            assert_eq!(table.page().totals.nonblocking.load(SeqCst), flags.unsigned_abs());
        }
    }

    #[test]
    fn nonsense_is_closed_and_an_error() {
        let table = table(libc::SOCK_NONBLOCK);
        let (mut reader, writer) = io::pipe().unwrap();
        fdpass::send(table.primary.as_fd(), b"nonsense", &[writer.as_fd()]).unwrap();
        drop(writer);
        assert_eq!(errno(table.claim(0)), libc::EPROTO);
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "the descriptor was closed");
        fdpass::send(table.primary.as_fd(), &handoff().encode(), &[]).unwrap();
        assert_eq!(errno(table.claim(0)), libc::EPROTO, "a message without a descriptor");
        assert_eq!(table.page().totals.claimed.load(SeqCst), 0);
    }

    #[test]
    fn the_doorbell_is_never_a_file_of_the_programs() {
        let table = table(libc::SOCK_NONBLOCK);
        let number = table.seat.bell.load(SeqCst);
        assert!(table.seat.holds(number) && number >= BELL_NUMBER, "{number}");
        let mut file = std::fs::File::from(memfd(0, 0));
        file.set_len(0).unwrap();
        // SAFETY: what a program does that closed everything and opened a file.
        check(unsafe { libc::dup2(file.as_raw_fd(), number) }).unwrap();
        table.page().bell.ring_at.store(1, SeqCst);
        table.deal(&handoff());
        assert!(matches!(table.claim(0), Claim::Taken(..)));
        assert_eq!(file.seek(io::SeekFrom::End(0)).unwrap(), 0);
    }

    #[test]
    fn a_page_that_could_shrink_is_refused() {
        let errno = |page| {
            let error = Seat::vacant().take(&page, eventfd().unwrap()).unwrap_err();
            error.raw_os_error()
        };
        let len = i64::try_from(PAGE_LEN).unwrap();
        assert_eq!(errno(memfd(len, libc::F_SEAL_GROW)), Some(libc::EPROTO));
        assert_eq!(errno(memfd(len - 1, SEALS)), Some(libc::EPROTO));
        assert_eq!(Seat::vacant().claim(eventfd().unwrap().as_fd(), 0).errno(), libc::EINVAL);
    }

    impl Claim {
        fn errno(self) -> i32 {
            errno(self)
        }
    }

    #[test]
    fn at_the_end_of_the_primary_accept_would_block_for_ever() {
        let mut table = table(libc::SOCK_NONBLOCK);
        table.deal(&handoff());
        let claimed = table.claim(0);
        table.primary = eventfd().unwrap();
        assert!(matches!(table.claim(0), Claim::Ended));
        // One connection is active, so nobody is told to go: this is the test's own process group.
        table.seat.retire(table.channel.as_fd());
        assert_eq!(errno(table.claim(0)), libc::EAGAIN);
        drop(claimed);
    }
}
