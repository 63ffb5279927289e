//! Who this worker is, as its environment and its page say.
//!
//! **Owns** the process's [`Seat`], which every listener shares: a worker has one page. **Never**
//! talks to the primary except in [`Worker::ready`] and [`Worker::draining`], at the end of a channel,
//! and at the first [`Worker::is_draining`] of a process that does not listen.

use crate::claim::Seat;
use croupier_wire::control::Contact;
use croupier_wire::message::{GENERATION_VAR, Kind, Request, SLOT_VAR, Verdict, WORKER_VAR};
use croupier_wire::page::HEAD_DRAINING;
pub use croupier_wire::post::Post as Draining;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

/// The seat of this process, vacant until something is dealt to it or asks for its page.
pub(crate) static SEAT: Seat = Seat::vacant();

/// This process, or an ancestor of it, was started by a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    id: u32,
    slot: u32,
    generation: u32,
}

/// `None` outside croupier.
#[must_use]
pub fn worker() -> Option<Worker> {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    Some(Worker {
        id: number(WORKER_VAR)?,
        slot: number(SLOT_VAR)?,
        generation: number(GENERATION_VAR)?,
    })
}

impl Worker {
    /// Counts up from 1 for every worker ever started.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The numbered place, from 0; it outlives the worker.
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// Counts up with every reload.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Says that this worker is ready, for primaries that wait for it (`--ready notify`).
    ///
    /// # Errors
    /// `NotFound` without `CROUPIER_CONTROL`; else why the primary could not be asked, or refused.
    pub fn ready(&self) -> io::Result<()> {
        let contact = Contact::required()?;
        let (answer, _) = contact.ask(&Request::new(Kind::Ready, contact.token))?;
        match answer.verdict {
            Verdict::Refused => Err(io::Error::from_raw_os_error(answer.errno)),
            Verdict::Pass | Verdict::Done | Verdict::Dealt | Verdict::Socket => Ok(()),
        }
    }

    /// To hear of it when the primary drains this worker, without asking again and again: a descriptor
    /// for poll(2), and [`Draining::wait`]. By then nothing waits for this worker any more; under `ip`,
    /// clients with connections open here may still come.
    ///
    /// # Errors
    /// As [`Self::ready`]; `ENOSPC` when the worker's processes have too many of these.
    pub fn draining(&self) -> io::Result<Draining> {
        Draining::open(&Contact::required()?)
    }

    /// Whether the primary drains this worker: a moment to answer with `Connection: close`. False,
    /// too, when the primary cannot be asked.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        if SEAT.page().is_none() {
            attach();
        }
        SEAT.page().is_some_and(|page| page.head.flags.load(Ordering::Acquire) & HEAD_DRAINING != 0)
    }
}

/// Asks for the page. Without an answer the seat stays vacant, and the next question tries again.
fn attach() {
    if let Some(contact) = Contact::from_environment()
        && let Ok((_, [Some(page), Some(bell), ..])) =
            contact.ask(&Request::new(Kind::Attach, contact.token))
    {
        // A page of another version is as good as none.
        drop(sit(&page, bell));
    }
}

/// [`Seat::take`] of this process's seat.
pub(crate) fn sit(page: &OwnedFd, bell: OwnedFd) -> io::Result<()> {
    SEAT.know_libc();
    SEAT.take(page, bell)
}

/// A channel came to its end. With the primary, which is [`Seat::retire`]'s business; or alone, because
/// another process of this worker said Close: then accept(2) says what it says after shutdown(2).
///
/// # Errors
/// The errno for the program.
pub(crate) fn ended(channel: BorrowedFd<'_>) -> Result<(), i32> {
    let alive = |contact: Contact| contact.ask(&Request::new(Kind::Attach, contact.token)).is_ok();
    if Contact::from_environment().is_some_and(alive) {
        return Err(libc::EINVAL);
    }
    SEAT.retire(channel);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_croupier_there_is_no_worker_and_nothing_fails() {
        assert_eq!(worker(), None);
        let worker = Worker { id: 1, slot: 0, generation: 1 };
        assert_eq!(worker.ready().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(worker.draining().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!worker.is_draining());
    }
}
