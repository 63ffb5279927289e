//! Does what the core asks: one arm for each action.

use std::os::fd::AsFd;

use croupier_core::event::{
    Action, Arrival, ConnId, Event, ListenerId, Report, SignalKind, Whose, WorkerId,
};
use croupier_wire::message::Handoff;
use nix::sys::signal::Signal;

use super::accept::raw_peer;
use super::disposal::Heard;
use super::edges::hear_no_more;
use super::listener::Phase;
use super::rescue::{Awaited, Rescued};
use super::run::{Held, Primary};
use super::worker::Worker;
use super::{address, probe, process};

impl Primary {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::HandOff { conn, worker } => self.hand_off(conn, worker),
            Action::Ring { worker, at_claim, on_close } => self.ring(worker, at_claim, on_close),
            Action::Refuse { conn } | Action::Shed { conn } => self.refuse(conn),
            Action::TakeBack { worker, max, whose, why: _ } => self.take_back(worker, max, whose),
            Action::Probe { worker, listener } => {
                let done = self.send_probe(worker, listener);
                self.tell(if done {
                    Event::Probed { worker }
                } else {
                    Event::ProbeFailed { worker }
                });
            }
            Action::Check { worker, listener } => self.check(worker, listener),
            Action::Disconnect { worker } => self.disconnect(worker),
            Action::TellDraining { worker, draining } => {
                if let Some(worker) = self.workers.get(worker) {
                    worker.page.tell_draining(draining);
                }
            }
            Action::Signal { worker, signal } => self.send_signal(worker, signal),
            Action::Spawn { slot, worker, generation } => self.spawn(slot, worker, generation),
            Action::KillFamily { worker } => self.kill_family(worker),
            Action::Forget { worker } => self.forget(worker),
            Action::QuietListener { listener } => self.quiet(listener),
            Action::CloseListener { listener } => self.drop_listener(usize::from(listener.0)),
            Action::AdoptSockets { slot, adopt } => self.adopt(slot, adopt),
            Action::Finish(outcome) => self.outcome = Some(outcome),
            Action::Report(report) => {
                // Who listens once it is ready would else be left out of what was attached before.
                if matches!(report, Report::Ready { .. } | Report::Listens { .. }) {
                    self.steer();
                }
                self.report(report);
            }
        }
    }

    /// Closes with a reset: the client hears at once that nobody will serve it.
    fn refuse(&mut self, conn: ConnId) {
        let Some(held) = self.conns.try_remove(conn.0 as usize) else { return };
        let reset = [1, 0]; // struct linger: on, 0 seconds
        if let Err(error) =
            crate::sys::set_option(held.conn.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &reset)
        {
            log::debug!("a refused client hears an end of file, not a reset: {error}");
        }
        drop(held.conn);
        self.tell(Event::Refused { conn });
    }

    fn take_back(&mut self, worker: WorkerId, max: u32, whose: Whose) {
        let nothing = |empty| Event::TakeBackDone { worker, removed: 0, lost: 0, empty };
        let Some(found) = self.workers.get(worker) else { return self.tell(nothing(true)) };
        let queues = found.queues();
        if queues.is_empty() {
            return self.tell(nothing(true));
        }
        if !self.rescue.take_back(worker, queues, (max, whose), self.now) {
            self.tell(Event::TakeBackStuck { worker });
        }
    }

    /// Results of the rescue thread.
    pub(super) fn take_rescued(&mut self) {
        while let Some(taken) = self.rescue.finished() {
            let worker = taken.worker;
            let removed =
                u32::try_from(taken.rescued.len()).unwrap_or(u32::MAX).saturating_add(taken.lost);
            let mut empty = taken.empty;
            if let Some(worker) = self.workers.get_mut(worker) {
                worker.note_taken(removed);
                // The thread stops at what was asked for; what is left the kernel knows.
                empty |= worker.queued_exact() == Some(0);
            }
            for rescued in taken.rescued {
                let arrival = self.hold(rescued);
                self.tell(Event::TakenBack { worker, arrival });
            }
            // The end of one that was given up must not be taken for the end of the next.
            if taken.awaited == Awaited::Yes {
                self.tell(Event::TakeBackDone { worker, removed, lost: taken.lost, empty });
            }
            self.settle();
        }
        while let Some(heard) = self.rescue.heard() {
            match heard {
                Heard::Notification { worker, ready } => self.hear_ready(WorkerId(worker), &ready),
                Heard::Post { number, read } => self.take_messages(number, &read),
            }
        }
    }

    /// A take-back does not come to its end: the worker sees to that, if it lives.
    pub(super) fn note_stuck(&self, worker: WorkerId) {
        if self.workers.get(worker).is_some_and(Worker::is_running) {
            log::warn!("worker {} holds the lock of its channel; it will be replaced", worker.0);
        }
    }

    fn hold(&mut self, rescued: Rescued) -> Arrival {
        let Rescued { listener, conn, handoff } = rescued;
        // It has waited since then at least.
        let Handoff { nonblocking, mark: _, handed_off_at: accepted_at, peer } = handoff;
        let flags = if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
        let client = address::client(&peer);
        let key = self.conns.insert(Held { conn, listener, peer, accepted_at, flags });
        Arrival { conn: ConnId(u32::try_from(key).unwrap_or(u32::MAX)), listener, client }
    }

    fn send_probe(&mut self, worker: WorkerId, listener: ListenerId) -> bool {
        let Some(found) = self.workers.get_mut(worker) else { return false };
        let probe = match probe::make() {
            Ok(probe) => probe,
            Err(error) => {
                log::warn!("cannot make a connection to probe worker {} with: {error}", worker.0);
                return false;
            }
        };
        let header = Handoff {
            nonblocking: false,
            mark: 0,
            handed_off_at: self.now,
            peer: raw_peer(probe.peer),
        }
        .encode();
        let sent = found.send(listener, &header, probe.conn.as_fd()).is_ok();
        if sent {
            found.keep_probe(probe.client);
        }
        sent
    }

    fn send_signal(&self, worker: WorkerId, signal: SignalKind) {
        let Some(worker) = self.workers.get(worker) else { return };
        match signal {
            SignalKind::Stop => {
                process::signal_group(worker, self.stop_signal_of(worker.id));
                // A stopped process would only hear it when it is continued.
                process::signal_group(worker, Signal::SIGCONT);
            }
            SignalKind::Abort => {
                process::signal_main(worker, Signal::SIGABRT);
                // A stopped process would only hear it when it is continued.
                process::signal_main(worker, Signal::SIGCONT);
            }
        }
    }

    /// A program ends at the signal that it was started to end at.
    fn stop_signal_of(&self, worker: WorkerId) -> Signal {
        let generation = self.generation_of(worker);
        generation.map_or(self.config.stop_signal, |generation| {
            self.launcher.of(generation).config.stop_signal
        })
    }

    fn forget(&mut self, worker: WorkerId) {
        self.note_end_of_leaver(worker);
        self.forget_check(worker);
        self.close_posts(worker);
        let Some(gone) = self.workers.remove(worker) else { return };
        for key in 0..self.listeners.capacity() {
            if let Some(listener) = self.listeners.get_mut(key) {
                listener.reserved.retain(|known| *known != worker);
                // A program may remove its socket file on the way out: it is everybody's.
                listener.restore_path();
                self.drop_unreserved(key);
            }
        }
        self.retire_descriptors(gone);
    }

    /// Closes what belongs to a worker that is no more, or never was.
    pub(super) fn retire_descriptors(&self, mut gone: Worker) {
        self.unwatch(&gone.bell);
        hear_no_more(&mut gone, self.poll.registry());
        if let Some((notify, _)) = &gone.notify {
            self.unwatch(notify.as_ref());
        }
        self.rescue.close(gone.into_descriptors());
        self.show_generations();
    }

    fn quiet(&mut self, listener: ListenerId) {
        let key = usize::from(listener.0);
        match self.listeners.get_mut(key) {
            // Nobody has ever been told of it.
            Some(listener) if listener.phase == Phase::Bound => self.drop_listener(key),
            Some(listener) => listener.quiet(),
            None => {}
        }
    }
}
