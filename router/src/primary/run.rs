//! The loop.
//!
//! Owns everything that lives as long as the primary. Promises: time is read once per turn; each
//! turn's work is bounded; it sleeps until something happens or the earliest deadline, and has no
//! deadline when nothing is under way.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use croupier_core::Core;
use croupier_core::event::{Event, ListenerId, Outcome, WorkerId};
use croupier_core::time::Now;
use croupier_wire::message::{PEER_MAX, RawAddress};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use signal_hook_mio::v1_0::Signals;
use slab::Slab;

use super::advice::Adviser;
use super::alarm::Alarm;
use super::announce::Announcer;
use super::check::Checks;
use super::commands::Commands;
use super::drive::Driving;
use super::hands::Hands;
use super::happenings::Happenings;
use super::health::Health;
use super::listener::{Listener, Watch};
use super::memory::Memory;
use super::pid_file::PidFile;
use super::posts::Posts;
use super::questions::Questions;
use super::replace::Replacing;
use super::rescue::Rescue;
use super::rss::Sampler;
use super::service::Service;
use super::start::Launcher;
use super::status::Meters;
use super::tokens::Source;
use super::turns::Work;
use super::versions::Versions;
use super::watch::Watcher;
use super::worker::Workers;
use crate::config::RunConfig;
use crate::output::Output;
use crate::sys;

/// Readiness events taken in one turn.
const EVENTS_MAX: usize = 256;
/// Wait before accepting again after descriptors or memory ran out: no edge announces that.
pub(super) const EXHAUSTED_WAIT: Duration = Duration::from_millis(50);
/// First wait for a doorbell that may have been lost (a program that closes every descriptor); it
/// doubles up to [`BELL_WAIT_MAX`] while nothing changes.
pub(super) const BELL_WAIT: Duration = Duration::from_millis(20);
const BELL_WAIT_MAX: Duration = Duration::from_millis(320);
/// How often what a killed family left behind is looked for, when no SIGCHLD says so.
pub(super) const BURIAL_WAIT: Duration = Duration::from_millis(50);

/// An accepted connection that the primary holds: its only owner.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) conn: OwnedFd,
    pub(super) listener: ListenerId,
    pub(super) peer: RawAddress<PEER_MAX>,
    /// Of one that came back out of a queue: when it was handed off there.
    pub(super) accepted_at: u64,
    /// What accept4(2) set on it.
    pub(super) flags: i32,
}

/// The whole process.
pub(super) struct Primary {
    pub(super) config: RunConfig,
    pub(super) core: Core,
    pub(super) poll: Poll,
    /// For threads that have found something.
    pub(super) waker: Arc<mio::Waker>,
    pub(super) alarm: Alarm,
    /// `CLOCK_MONOTONIC` at the start of this turn, nanoseconds.
    pub(super) now: u64,
    pub(super) listeners: Slab<Listener>,
    pub(super) workers: Workers,
    pub(super) conns: Slab<Held>,
    /// Given up for one accept when descriptors have run out, so that dealing goes on one by one.
    pub(super) reserve: Option<OwnedFd>,
    pub(super) adoption: super::adopt::Adoption,
    pub(super) questions: Questions,
    pub(super) checks: Checks,
    pub(super) posts: Posts,
    pub(super) rescue: Rescue,
    pub(super) signals: Signals,
    pub(super) commands: Commands,
    pub(super) launcher: Launcher,
    pub(super) output: Option<Output>,
    pub(super) announcer: Announcer,
    pub(super) replacing: Replacing,
    pub(super) versions: Versions,
    /// `--watch`.
    pub(super) watcher: Option<Watcher>,
    pub(super) hands: Hands,
    pub(super) driving: Driving,
    pub(super) happenings: Happenings,
    pub(super) service: Service,
    pub(super) health: Health,
    /// `--pid-file`: it goes when the primary does.
    pub(super) _pid_file: Option<PidFile>,
    pub(super) memory: Memory,
    pub(super) meters: Meters,
    pub(super) adviser: Adviser,
    /// `--max-rss`.
    pub(super) sampler: Option<Sampler>,
    pub(super) outcome: Option<Outcome>,
    /// Workers whose families are being buried.
    pub(super) burials: usize,
    /// When they are looked at again, should no SIGCHLD come.
    pub(super) burial_at: u64,
    /// Of this worker's family the holders of a channel were looked for last.
    pub(super) looked_for_holders: WorkerId,
    /// When questions are looked at again: descriptors had run out, or a turn was not enough.
    pub(super) again_at: Option<u64>,
    /// waitid(2) failed, somebody may have ended unnoticed: when it is asked again.
    pub(super) ends_at: Option<u64>,
    /// Doorbells are set, because nobody had room when it was last asked.
    pub(super) bells_set: bool,
    pub(super) bell_wait: Duration,
}

impl Primary {
    /// Runs until the core says how it ended.
    ///
    /// # Errors
    /// Only a broken poll: nothing else ends the loop.
    pub(super) fn run(&mut self) -> io::Result<Outcome> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        self.settle();
        loop {
            if let Some(outcome) = self.outcome {
                return Ok(outcome);
            }
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(()) | Err(_) => {}
            }
            self.now = sys::monotonic_ns();
            self.meters.turns.began(work_of(&events));
            self.drop_dead_lines();
            self.tell(Event::Woke);
            for event in &events {
                self.dispatch(Source::from(event.token()));
            }
            self.look_at_deadlines();
            self.settle();
            self.accept_all();
            self.look_at_hands();
            self.announce();
            self.advise_if_due();
            self.meters.turns.ended(self.now);
        }
    }

    fn dispatch(&mut self, source: Source) {
        match source {
            Source::Signals => self.take_signals(),
            Source::Rescue => {
                self.take_rescued();
                self.take_samples();
                self.take_changes();
            }
            Source::Questions => self.take_questions(),
            Source::Question(key) => self.take_question(key),
            Source::Listener(key) => {
                if let Some(listener) = self.listeners.get_mut(key) {
                    listener.pending = true;
                }
            }
            Source::Bell => {}
            Source::Room(worker) => self.take_edge(WorkerId(worker)),
            Source::Alarm => self.alarm.rang(),
            Source::Check(worker) => self.take_answer(worker),
            Source::Post(number) => self.read_post(number),
            Source::Ended => self.take_ended(),
            Source::Exec(worker) => self.hear_exec(WorkerId(worker)),
            Source::Notify(worker) => self.take_notification(worker),
            Source::Control(token) => self.take_commands(token),
        }
    }

    /// Tells the core a fact. Its actions wait for [`Self::settle`].
    pub(super) fn tell(&mut self, event: Event) {
        self.core.handle(event, Now(self.now), &self.workers);
    }

    /// Does what the core wants until it wants nothing more.
    pub(super) fn settle(&mut self) {
        while let Some(action) = self.core.poll_action() {
            self.perform(action);
        }
    }

    /// How long the loop may sleep: not at all, or until something happens; a deadline happens by the
    /// alarm.
    fn timeout(&mut self) -> Option<Duration> {
        if self.more_to_accept() {
            return Some(Duration::ZERO);
        }
        let core = self.core.poll_timeout().map(|Now(at)| at);
        let retries = self.listeners.iter().filter_map(|(_, listener)| listener.retry_at).min();
        let bell = self.clients_wait().then(|| self.later(self.bell_wait));
        let burial = (self.burials > 0).then_some(self.burial_at);
        let sampler = self.sampler.as_ref().and_then(Sampler::deadline);
        let rescue = self.rescue.deadline();
        let own = [self.again_at, self.ends_at, rescue, self.announcer.deadline(), sampler];
        let asked_for = [self.service.deadline(), self.health.deadline()];
        let all = [core, retries, bell, burial].into_iter().chain(own).chain(asked_for);
        let earliest = all.flatten().min()?;
        if self.alarm.ring_by(earliest) {
            return None;
        }
        // Without the alarm it is epoll_wait that keeps the time: dearer, and as good.
        Some(Duration::from_nanos(earliest.saturating_sub(self.now)))
    }

    /// Brings the next look at what could not be done forward to `at`.
    pub(super) fn look_again_by(&mut self, at: Option<u64>) {
        self.again_at = self.again_at.into_iter().chain(at).min();
    }

    fn look_at_deadlines(&mut self) {
        while let Some(worker) = self.rescue.overdue(self.now) {
            self.note_stuck(worker);
            self.tell(Event::TakeBackStuck { worker });
        }
        let now = self.now;
        for (_, listener) in &mut self.listeners {
            if listener.retry_at.is_some_and(|at| at <= now) {
                listener.retry_at = None;
                listener.pending = true;
            }
        }
        if self.burials > 0 && self.burial_at <= now {
            self.look_at_burials();
        }
        if self.ends_at.is_some_and(|at| at <= now) {
            self.take_ended();
        }
        if self.again_at.is_some_and(|at| at <= now) {
            self.again_at = None;
            self.watch_put_off();
            self.take_questions();
            self.go_on_with_commands();
        }
        self.sample_if_due();
        self.service.live(now);
        self.look_at_health();
        if self.clients_wait() {
            self.bell_wait = (self.bell_wait * 2).min(BELL_WAIT_MAX);
        }
    }

    /// Nobody had room: clients wait in the backlog of a disarmed listener, or in the primary's hands,
    /// and a doorbell is due.
    fn clients_wait(&self) -> bool {
        let backlog = |listener: &Listener| listener.pending && listener.watch == Watch::Disarmed;
        // In a pause for the operator's word.
        if self.core.is_paused() {
            return false;
        }
        !self.conns.is_empty()
            || self.bells_set && self.listeners.iter().any(|(_, listener)| backlog(listener))
    }

    /// This turn's time plus `wait`.
    pub(super) fn later(&self, wait: Duration) -> u64 {
        self.now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Registers a descriptor for reading, edge-triggered.
    pub(super) fn watch(&self, fd: &impl AsRawFd, source: Source) -> io::Result<()> {
        self.poll.registry().register(
            &mut SourceFd(&fd.as_raw_fd()),
            source.token(),
            Interest::READABLE,
        )
    }

    /// [`Self::watch`] for what is watched already.
    pub(super) fn watch_again(&self, fd: &impl AsRawFd, source: Source) -> io::Result<()> {
        self.poll.registry().reregister(
            &mut SourceFd(&fd.as_raw_fd()),
            source.token(),
            Interest::READABLE,
        )
    }

    /// Undoes [`Self::watch`]. Before the descriptor is closed, or handed to somebody who keeps it open.
    pub(super) fn unwatch(&self, fd: &impl AsRawFd) {
        if let Err(error) = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd())) {
            log::debug!("descriptor {} was not watched: {error}", fd.as_raw_fd());
        }
    }
}

/// What these events make of a turn.
fn work_of(events: &Events) -> Work {
    let deals = |event: &mio::event::Event| match Source::from(event.token()) {
        Source::Listener(_) | Source::Bell | Source::Room(_) => true,
        Source::Signals
        | Source::Rescue
        | Source::Questions
        | Source::Question(_)
        | Source::Alarm
        | Source::Check(_)
        | Source::Post(_)
        | Source::Ended
        | Source::Exec(_)
        | Source::Notify(_)
        | Source::Control(_) => false,
    };
    if events.iter().all(deals) { Work::Deal } else { Work::Rare }
}
