//! The doorbell of a worker that has mapped no page (`--adapter fd`): the channels themselves.
//!
//! What such a worker receives gives room in a channel's send buffer, and with room for twice the queue
//! each claim of its last half is an edge of EPOLLOUT (unix(7), epoll(7)). Owns: when channels are
//! watched for that. Promises: only while the bell is set, so who is not waited for wakes nobody. Never
//! does: believe an edge; what was claimed is counted (`worker.rs`).

use std::io;
use std::os::fd::AsRawFd;

use croupier_core::event::WorkerId;
use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::rescue::Rescue;
use super::run::Primary;
use super::tokens::Source;
use super::worker::Worker;

impl Primary {
    /// Sets the doorbell of a worker, or with 0 and false takes it back.
    pub(super) fn ring(&mut self, id: WorkerId, at_claim: u64, on_close: bool) {
        self.bells_set |= at_claim != 0 || on_close;
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.page.ring(at_claim, on_close);
        if at_claim != 0 && !worker.page.attached {
            hear(worker, at_claim, self.poll.registry());
        } else {
            hear_no_more(worker, self.poll.registry());
        }
    }

    /// An edge: somebody has claimed, or the watch has just begun. The bell has rung when it was
    /// reached; like the words in a page it is then to be set again.
    pub(super) fn take_edge(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(id) {
            judge(worker, &self.rescue, self.poll.registry());
        }
    }
}

/// Ends the watch if what it was for has been claimed.
fn judge(worker: &mut Worker, rescue: &Rescue, registry: &Registry) {
    // What a take-back has read and not brought yet is in no queue, as if it were claimed. Ended by that,
    // the watch would be missing when the count falls back, for a bell that counts as set.
    if !rescue.is_taking(worker.id)
        && worker.heard_until.is_some_and(|at_claim| worker.claimed() >= at_claim)
    {
        hear_no_more(worker, registry);
    }
}

/// Watches for claims. What cannot be watched is looked at by the clock, as a bell that was lost.
fn hear(worker: &mut Worker, at_claim: u64, registry: &Registry) {
    worker.heard_until = Some(at_claim);
    for channel in worker.send_ends() {
        let token = Source::Room(worker.id.0).token();
        match registry.register(&mut SourceFd(&channel.as_raw_fd()), token, Interest::WRITABLE) {
            Ok(()) => {}
            // It was set before, for another claim.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => log::debug!("a channel of worker {} is not heard: {error}", worker.id.0),
        }
    }
}

/// Undoes [`hear`]; for a worker that is not heard, nothing.
pub(super) fn hear_no_more(worker: &mut Worker, registry: &Registry) {
    if worker.heard_until.take().is_none() {
        return;
    }
    for channel in worker.send_ends() {
        match registry.deregister(&mut SourceFd(&channel.as_raw_fd())) {
            Ok(()) => {}
            // Opened since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::debug!("a channel of worker {} was not heard: {error}", worker.id.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;
    use std::time::Duration;

    use croupier_core::event::{ListenerId, SlotId, Whose};
    use croupier_wire::message::{Handoff, RawAddress};
    use mio::{Events, Poll};

    use super::super::disposal::tests::waker;
    use super::super::page::SharedPage;
    use super::super::worker::doorbell;
    use super::*;
    use crate::sys;
    use crate::testing::wait_for;

    const DEPTH: u32 = 8;

    /// A worker without a page in whose channel `queued` connections wait, and its end of it. The channel
    /// is named after the worker, so each test has its own.
    fn worker(id: u32, queued: u32) -> (Worker, Arc<OwnedFd>) {
        super::super::channel::calibrate().unwrap();
        let (id, slot) = (WorkerId(id), SlotId(0));
        let page = SharedPage::new(id).unwrap();
        let mut worker = Worker::new(id, slot, [1; 16], page, doorbell().unwrap(), 0);
        worker.open_channel(ListenerId(0), 0, DEPTH, RawAddress::NONE).unwrap();
        let header =
            Handoff { nonblocking: false, mark: 0, handed_off_at: 0, peer: RawAddress::NONE };
        let conn = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..queued {
            worker.send(ListenerId(0), &header.encode(), conn.as_fd()).unwrap();
        }
        let end = worker.channel(1).unwrap().0.duplicate();
        (worker, end)
    }

    fn claim(end: &OwnedFd) {
        let mut byte = [0; 256];
        // The descriptor is not asked for, so the kernel closes it.
        let got = nix::sys::socket::recv(
            end.as_raw_fd(),
            &mut byte,
            nix::sys::socket::MsgFlags::MSG_DONTWAIT,
        );
        assert!(got.unwrap() > 0);
    }

    fn edges(poll: &mut Poll, wait: Duration) -> usize {
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, Some(wait)).unwrap();
        assert!(events.iter().all(|e| Source::from(e.token()) == Source::Room(31)));
        events.iter().count()
    }

    #[test]
    fn a_claim_of_who_has_no_page_wakes_the_primary_while_the_bell_is_set() {
        let mut poll = Poll::new().unwrap();
        let (mut worker, end) = worker(31, DEPTH);
        claim(&end);
        assert_eq!(edges(&mut poll, Duration::ZERO), 0, "no bell is set");

        hear(&mut worker, 5, poll.registry());
        // There is room for more than the queue, so the watch may begin with an edge.
        edges(&mut poll, Duration::ZERO);
        let mut heard = 0;
        for claimed in 2..=5 {
            claim(&end);
            assert_eq!(worker.claimed(), claimed);
            heard += edges(&mut poll, Duration::ZERO);
        }
        assert!(heard >= 1, "claims down to half of the queue are heard");
        claim(&end);
        assert_eq!(edges(&mut poll, Duration::from_secs(10)), 1, "each of the last ones is");

        hear(&mut worker, 7, poll.registry());
        hear_no_more(&mut worker, poll.registry());
        edges(&mut poll, Duration::ZERO);
        claim(&end);
        assert_eq!(edges(&mut poll, Duration::ZERO), 0, "nobody listens any more");
    }

    #[test]
    fn what_is_taken_back_does_not_end_a_watch_as_if_it_were_claimed() {
        let poll = Poll::new().unwrap();
        let (_loop, waker) = waker();
        let mut rescue = Rescue::start(waker).unwrap();
        let (mut worker, end) = worker(32, DEPTH);
        hear(&mut worker, 3, poll.registry());
        assert!(rescue.take_back(
            worker.id,
            worker.queues(),
            (DEPTH - 3, Whose::All),
            sys::monotonic_ns()
        ));
        wait_for("the thread", || (worker.queued_exact() == Some(3)).then_some(()));
        assert_eq!(worker.claimed(), u64::from(DEPTH - 3), "as it looks until it is brought");
        judge(&mut worker, &rescue, poll.registry());
        assert_eq!(worker.heard_until, Some(3));
        let taken = wait_for("what it has read", || rescue.finished());
        worker.note_taken(u32::try_from(taken.rescued.len()).unwrap());
        assert_eq!(worker.claimed(), 0);
        for left in (0..3).rev() {
            judge(&mut worker, &rescue, poll.registry());
            assert_eq!(worker.heard_until, Some(3), "{left}");
            claim(&end);
        }
        judge(&mut worker, &rescue, poll.registry());
        assert_eq!(worker.heard_until, None, "it has claimed what the watch was for");
    }
}
