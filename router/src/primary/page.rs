//! The primary's side of a worker's page: makes the sealed memfd, reads counters, writes bells.
//!
//! Promises: whatever a worker writes, reading here never faults (the seals keep the memfd's
//! length) and never yields more than a number to be checked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use croupier_core::event::{Load, WorkerId};
use croupier_wire::page::{HEAD_DRAINING, MARKS_MAX, PAGE_LEN, PAGE_MAGIC, Page, WAITED_BUCKETS};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::sys::PageMap;

const _: () = assert!(croupier_core::MARKS as usize == MARKS_MAX);

/// A worker's page, as the primary holds it.
#[derive(Debug)]
pub(crate) struct SharedPage {
    map: PageMap,
    memfd: OwnedFd,
    /// A process of the worker has mapped it: before that, `active` is unknown.
    pub(crate) attached: bool,
    /// What dead processes had claimed and not closed.
    lost: u64,
}

impl SharedPage {
    /// A fresh page.
    ///
    /// # Errors
    /// EMFILE, ENOMEM; EINVAL where the kernel has no sealing.
    pub(crate) fn new(worker: WorkerId) -> io::Result<Self> {
        let memfd =
            memfd_create(c"croupier-page", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let len = libc::off_t::try_from(PAGE_LEN).map_err(io::Error::other)?;
        nix::unistd::ftruncate(&memfd, len)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals))?;
        let map = PageMap::new(memfd.as_fd())?;
        map.page().head.magic.store(PAGE_MAGIC, Ordering::Relaxed);
        map.page().head.worker.store(worker.0, Ordering::Relaxed);
        Ok(Self { map, memfd, attached: false, lost: 0 })
    }

    pub(crate) fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    fn page(&self) -> &Page {
        self.map.page()
    }

    /// What the worker says of itself: one cache line.
    pub(crate) fn load(&self) -> Load {
        let totals = &self.page().totals;
        let claimed = totals.claimed.load(Ordering::SeqCst);
        let closed = totals.closed.load(Ordering::SeqCst);
        let active = claimed.saturating_sub(closed).saturating_sub(self.lost);
        let active = u32::try_from(active).unwrap_or(u32::MAX);
        Load { claimed, active: self.attached.then_some(active) }
    }

    /// Whether a client with this mark has something open, as the worker says.
    pub(crate) fn holds(&self, mark: u16) -> bool {
        self.page().holds(mark)
    }

    /// Connections claimed and not closed, those of dead processes included: what clients lost or
    /// will lose, if nobody closes them any more.
    pub(crate) fn unclosed(&self) -> Option<u64> {
        let totals = &self.page().totals;
        let claimed = totals.claimed.load(Ordering::SeqCst);
        let closed = totals.closed.load(Ordering::SeqCst);
        self.attached.then(|| claimed.saturating_sub(closed))
    }

    /// What dead processes had open, of [`Self::unclosed`].
    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    pub(crate) fn closed(&self) -> u64 {
        self.page().totals.closed.load(Ordering::Relaxed)
    }

    /// The program wants its connections non-blocking.
    pub(crate) fn wants_nonblocking(&self) -> bool {
        self.page().totals.nonblocking.load(Ordering::Relaxed) != 0
    }

    /// Sets the doorbell words (page.rs of the shim: the rule of the doorbell).
    pub(crate) fn ring(&self, at_claim: u64, on_close: bool) {
        let bell = &self.page().bell;
        bell.ring_at.store(at_claim, Ordering::SeqCst);
        bell.ring_on_close.store(u32::from(on_close), Ordering::SeqCst);
    }

    /// Tells a worker that accepts from its own socket to look into its channel. Before it is sent:
    /// counted down before it was counted up, it would be looked for for ever.
    pub(crate) fn announce_mail(&self) {
        self.page().bell.mail.fetch_add(1, Ordering::SeqCst);
    }

    /// It was not sent after all.
    pub(crate) fn retract_mail(&self) {
        let mail = &self.page().bell.mail;
        let _ = mail.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1));
    }

    pub(crate) fn tell_draining(&self, draining: bool) {
        let flags = if draining { HEAD_DRAINING } else { 0 };
        self.page().head.flags.store(flags, Ordering::Relaxed);
    }

    /// Takes the share of dead processes off and frees their lines. One kill(2) per line in use; a
    /// worker that says that more are in use than there are costs a look at each.
    pub(crate) fn drop_dead_lines(&mut self, alive: impl Fn(u32) -> bool) {
        let mut lost = 0;
        for line in self.page().lines_in_use() {
            let pid = line.pid.load(Ordering::Acquire);
            if pid == 0 || alive(pid) {
                continue;
            }
            let claimed = line.claimed.swap(0, Ordering::Relaxed);
            let closed = line.closed.swap(0, Ordering::Relaxed);
            lost += claimed.saturating_sub(closed);
            line.pid.store(0, Ordering::Release);
        }
        self.lost = self.lost.saturating_add(lost);
    }

    /// Processes that have claimed something.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.page()
            .lines_in_use()
            .map(|line| line.pid.load(Ordering::Relaxed))
            .filter(|pid| *pid != 0)
    }

    /// The histogram of queued time: how many waited `2^i` to `2^(i+1)` µs.
    pub(crate) fn waited(&self) -> [u32; WAITED_BUCKETS] {
        let mut counts = [0; WAITED_BUCKETS];
        for (to, from) in counts.iter_mut().zip(&self.page().waited) {
            *to = from.load(Ordering::Relaxed);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_worker_cannot_cut_the_page() {
        let page = SharedPage::new(WorkerId(3)).unwrap();
        for len in [0, libc::off_t::try_from(PAGE_LEN).unwrap() * 2] {
            assert_eq!(nix::unistd::ftruncate(page.memfd(), len), Err(nix::errno::Errno::EPERM));
        }
        assert!(page.memfd().as_raw_fd() >= 0);
        assert_eq!(page.load(), Load { claimed: 0, active: None });
    }

    #[test]
    fn what_the_dead_held_is_not_active() {
        let mut page = SharedPage::new(WorkerId(3)).unwrap();
        page.attached = true;
        for pid in [10, 11] {
            let line = page.page().take_line(pid).unwrap();
            for _ in 0..3 {
                assert_eq!(
                    page.page().count_claim(Some(line), 5),
                    croupier_wire::page::Bell::Silent
                );
            }
            assert_eq!(page.page().count_close(Some(line)), croupier_wire::page::Bell::Silent);
        }
        assert_eq!(page.load().active, Some(4));
        page.drop_dead_lines(|pid| pid == 11);
        assert_eq!(page.load(), Load { claimed: 6, active: Some(2) });
        assert_eq!(page.pids().collect::<Vec<_>>(), [11]);
    }
}
