//! Workers' processes: starting them, hearing of their ends, burying their families.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use croupier_core::event::{Event, ExitStatus, Generation, ListenerId, SlotId, WorkerId};
use nix::sys::signal::Signal;

use super::disposal::Speaker;
use super::hunt::{self, Burial, Progress};
use super::page::SharedPage;
use super::process::{self, Ended, Forked};
use super::run::{BURIAL_WAIT, Primary};
use super::tokens::Source;
use super::worker::{Process, Worker, doorbell};

/// How long a killed family may take to go before it is given up: a process of another user, or one that
/// hangs in the kernel, must not keep the primary from ending.
const BURIAL_MAX: Duration = Duration::from_secs(5);

impl Primary {
    /// Forks. Whether the program runs is heard later ([`Self::hear_exec`]): an exec is a disk's time, and on
    /// a busy machine a scheduler's, for which clients would wait.
    pub(super) fn spawn(&mut self, slot: SlotId, worker: WorkerId, generation: Generation) {
        if let Err(error) = self.fork(slot, worker, generation) {
            self.note_not_started(slot, worker, error);
        }
    }

    fn note_not_started(&mut self, slot: SlotId, worker: WorkerId, error: io::Error) {
        log::error!("cannot start worker {} of {}: {error}", worker.0, self.launcher.title());
        let why = format!("worker {} cannot be started: {error}", worker.0);
        self.hands.note_why(slot, why);
        self.announcer.start_failed = Some(error);
        self.tell(Event::SpawnFailed { worker });
    }

    fn fork(&mut self, slot: SlotId, id: WorkerId, generation: Generation) -> io::Result<()> {
        // What was killed before it is not its end.
        self.memory.look(self.now);
        let page = SharedPage::new(id)?;
        let bell = doorbell()?;
        let token = super::start::random_token()?;
        let notify = self.launcher.notify_socket()?;
        let ask = self.questions.name().to_owned();
        let mut worker = Worker::new(id, slot, token, page, bell, self.now);
        let inherit = self.launcher.inheritance(&mut worker, &mut self.listeners)?;
        // Everything that can fail comes before the process: nobody would supervise it.
        let report = process::report_pipe()?;
        self.watch(&report.0, Source::Exec(id.0))?;
        self.watch(&worker.bell, Source::Bell)?;
        if let Some((socket, name)) = notify {
            self.watch(&socket, Source::Notify(id.0))?;
            worker.notify = Some((Arc::new(socket), name));
        }
        match self.launcher.start(&worker, generation, &ask, inherit, report) {
            Ok((pid, forked)) => {
                worker.pid = pid;
                worker.forked = Some(forked);
                worker.pidfd = self.watch_process(pid);
                self.workers.insert(worker);
                Ok(())
            }
            Err(error) => {
                self.retire_descriptors(worker);
                Err(error)
            }
        }
    }

    /// Whether a worker's program runs, if that is known by now and was not before. Everything else that
    /// comes of a worker is heard after this.
    pub(super) fn hear_exec(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(id) else { return };
        match worker.forked.as_ref().and_then(Forked::outcome) {
            None => {}
            Some(Ok(())) => {
                let listens = worker.listens();
                self.note_running(id, listens);
            }
            Some(Err(error)) => self.note_not_executed(id, error),
        }
    }

    fn note_not_executed(&mut self, id: WorkerId, error: io::Error) {
        let Some(forked) = self.take_forked(id) else { return };
        let error = self.launcher.why_not(&forked, error);
        // The child is nobody's now, and is reaped as such; it may have been stopped on its way out.
        let Some(gone) = self.workers.remove(id) else { return };
        process::signal_group(&gone, Signal::SIGKILL);
        self.burials = self.burials.saturating_sub(usize::from(gone.burying.is_some()));
        let slot = gone.slot;
        self.retire_descriptors(gone);
        self.note_not_started(slot, id, error);
    }

    /// The program of a worker that was forked runs, and listens there without having asked.
    fn note_running(&mut self, id: WorkerId, listens: Vec<ListenerId>) {
        let Some(forked) = self.take_forked(id) else { return };
        let Some(slot) = self.workers.get(id).map(|worker| worker.slot) else { return };
        if let (Some(output), Some((out, err))) = (&self.output, forked.output) {
            self.show_generations();
            output.attach(id.0, slot.0, forked.generation.0, out, err);
        }
        self.tell(Event::Spawned { worker: id });
        for listener in listens {
            self.tell(Event::Listening { worker: id, listener });
        }
    }

    /// Nothing more will be reported of its exec.
    fn take_forked(&mut self, id: WorkerId) -> Option<Forked> {
        let forked = self.workers.get_mut(id)?.forked.take()?;
        // A child that has not executed yet may have a copy.
        self.unwatch(&forked.report());
        Some(forked)
    }

    /// SIGCHLD says of every child that it ended, but its handler writes to a socket, which may fail for
    /// want of memory. A main process is worth a second witness.
    fn watch_process(&self, pid: u32) -> Option<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
        let opened = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let watched = opened.map_err(io::Error::from).and_then(|pidfd| {
            self.watch(&pidfd, Source::Ended)?;
            Ok(pidfd)
        });
        watched
            .inspect_err(|error| log::debug!("only SIGCHLD tells of process {pid:?}: {error}"))
            .ok()
    }

    /// SIGCHLD: somebody ended. Strangers (orphans of workers, and as PID 1 anybody's) are reaped too.
    pub(super) fn take_ended(&mut self) {
        self.ends_at = None;
        let mut last = None;
        // Bounded by the number of children; each is reaped before the next is asked for.
        loop {
            let Ended { pid, status } = match process::next_ended() {
                Ok(Some(ended)) if last != Some(ended.pid) => ended,
                Ok(None) => break,
                // It could not be told, or could not be reaped: no SIGCHLD will say it again.
                Ok(Some(_)) | Err(_) => {
                    self.note_missed_ends();
                    break;
                }
            };
            last = Some(pid);
            let forked = self.workers.iter().find(|w| w.pid == pid && w.forked.is_some());
            if let Some(id) = forked.map(|worker| worker.id) {
                self.hear_exec(id);
            }
            let main = self.workers.iter_mut().find(|w| w.pid == pid && w.is_running());
            if let Some(worker) = main {
                let status = self.memory.judge(worker, status, self.now);
                worker.process = Process::Zombie(status);
                let worker = worker.id;
                self.note_end(worker, status);
                let orphans = matches!(status, ExitStatus::Code(_)) && self.has_family(worker);
                // Of one that is killed, by us, the end says nothing.
                if self.workers.get(worker).is_none_or(|found| found.burying.is_none()) {
                    self.announcer.note_exit(worker, status);
                }
                self.tell(Event::Exited { worker, status, orphans });
                self.settle();
                self.last_call(worker);
            }
            process::reap(pid);
            if let Some(worker) = self.workers.iter_mut().find(|w| w.pid == pid)
                && let Process::Zombie(status) = worker.process
            {
                worker.process = Process::Reaped(status);
            }
            for burial in self.workers.iter_mut().filter_map(|worker| worker.burying.as_mut()) {
                burial.reaped(pid);
            }
        }
        self.look_at_burials();
    }

    /// Without any child there is nobody who could have ended.
    fn note_missed_ends(&mut self) {
        let gone = |worker: &Worker| matches!(worker.process, Process::Reaped(_));
        if !self.workers.iter().all(gone) {
            self.ends_at = Some(self.later(BURIAL_WAIT));
        }
    }

    fn has_family(&self, worker: WorkerId) -> bool {
        let mains = self.mains();
        let has = |worker: &Worker| !process::family(worker, &mains).pids.is_empty();
        self.workers.get(worker).is_some_and(has)
    }

    /// Before a main process is reaped its process group is killed, for the last time under a
    /// number that is certainly its own.
    fn last_call(&self, worker: WorkerId) {
        if let Some(worker) = self.workers.get(worker)
            && worker.burying.is_some()
        {
            process::signal_group(worker, Signal::SIGKILL);
        }
    }

    fn mains(&self) -> Vec<u32> {
        self.workers.iter().filter(|w| w.is_running()).map(|w| w.pid).collect()
    }

    pub(super) fn kill_family(&mut self, worker: WorkerId) {
        let wait = self.later(BURIAL_WAIT);
        let Some(found) = self.workers.get_mut(worker) else {
            return self.tell(Event::FamilyGone { worker });
        };
        if found.burying.is_none() {
            if self.burials == 0 {
                self.burial_at = wait;
            }
            self.burials += 1;
            found.burying = Some(Burial::new(self.now));
        }
        self.look_at_burials();
    }

    /// Families whose last process may have gone.
    pub(super) fn look_at_burials(&mut self) {
        if self.burials == 0 {
            return;
        }
        let due = self.burial_at <= self.now;
        if due {
            self.burial_at = self.later(BURIAL_WAIT);
        }
        let mains = self.mains();
        let (mut gone, now) = (Vec::new(), self.now);
        let mut budget = hunt::LOOKED_AT_PER_TURN_MAX;
        for worker in self.workers.iter_mut() {
            let Some(since) = worker.burying.as_ref().map(|burial| burial.since) else { continue };
            let left = match hunt::go_on(worker, &mains, due, &mut budget) {
                Progress::Killed(left) => left,
                Progress::Unfinished => {
                    // The next turn goes on; this one has other things to do.
                    self.burial_at = now + 1;
                    1
                }
            };
            let over = match worker.process {
                Process::Reaped(_) => left == 0,
                Process::Running | Process::Zombie(_) => false,
            };
            let patience = u64::try_from(BURIAL_MAX.as_nanos()).unwrap_or(u64::MAX);
            let given_up = !over && now.saturating_sub(since) > patience;
            if given_up {
                log::error!(
                    "{left} processes of worker {} (pid {}) cannot be killed: they belong to another user \
                     or hang in the kernel; they are left alone",
                    worker.id.0,
                    worker.pid
                );
            }
            if over || given_up {
                worker.burying = None;
                gone.push((worker.id, worker.is_running()));
            }
        }
        self.burials = self.burials.saturating_sub(gone.len());
        for (worker, unkillable) in gone {
            if unkillable {
                // Nobody will hear of its exec any more, if that is what hangs.
                self.note_running(worker, Vec::new());
                let status = ExitStatus::Signal(libc::SIGKILL);
                self.tell(Event::Exited { worker, status, orphans: false });
            }
            self.tell(Event::FamilyGone { worker });
        }
    }

    /// A message of sd_notify(3) waits. It is read by the rescue thread: a worker may have attached
    /// descriptors to it.
    pub(super) fn take_notification(&mut self, worker: u32) {
        if let Some(found) = self.workers.get(WorkerId(worker))
            && let Some((notify, _)) = &found.notify
        {
            self.rescue.read_notifications(worker, Arc::clone(notify));
        }
    }

    /// These said that a worker is ready. Anybody can send to an abstract name: who may ask for a worker
    /// may say it, and who is of its family, as which user ever.
    pub(super) fn hear_ready(&mut self, worker: WorkerId, speakers: &[Speaker]) {
        self.hear_exec(worker);
        let Some(found) = self.workers.get(worker) else { return };
        // The name can be read by everybody; of this worker nobody can speak yet.
        if found.forked.is_some() {
            return;
        }
        let may = |speaker: &&Speaker| {
            self.launcher.may_ask(speaker.uid) || process::belongs(speaker.pid, found)
        };
        if speakers.iter().any(|speaker| may(&speaker)) {
            self.tell(Event::SaidReady { worker });
        } else if let Some(Speaker { pid, uid }) = speakers.first() {
            self.complain(format_args!(
                "process {pid} (uid {uid}) said that worker {} is ready, and is none of its family",
                worker.0
            ));
        }
    }

    /// Drops what dead processes of pre-forkers had claimed. Once a second at most, and only when
    /// the loop is awake anyway.
    pub(super) fn drop_dead_lines(&mut self) {
        if self.meters.second_passed(self.now) {
            for worker in self.workers.iter_mut().filter(|worker| worker.page.attached) {
                worker.page.drop_dead_lines(process::exists);
            }
            self.close_dead_channels();
        }
    }

    /// A process that listened and was replaced within its worker (`while :; do server; done`, a
    /// reloader) leaves a channel that nobody reads. Others of the family may have inherited it.
    fn close_dead_channels(&mut self) {
        let last = self.looked_for_holders;
        let beyond = |worker: &&Worker| worker.is_running() && worker.id > last;
        let orphaned = |worker: &Worker| {
            let sockets = worker.orphaned_channels(process::exists);
            (!sockets.is_empty()).then_some((worker.id, sockets))
        };
        // One worker a second, in turn: it is a look through /proc.
        let Some((id, sockets)) = self.workers.iter().filter(beyond).find_map(orphaned) else {
            self.looked_for_holders = WorkerId(0);
            return;
        };
        self.looked_for_holders = id;
        let unheld = |worker| process::unheld(worker, &self.mains(), &sockets);
        for number in self.workers.get(id).map(unheld).unwrap_or_default() {
            self.close_channel(id, number);
        }
    }

    /// For a worker: page, doorbell.
    pub(super) fn seat_of(&self, worker: WorkerId) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        let worker = self.workers.get(worker)?;
        Some([worker.page.memfd(), worker.bell.as_fd()])
    }
}
