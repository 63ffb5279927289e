//! Workers' processes: starting them, hearing of their ends, burying their families.

use std::os::fd::AsFd;
use std::sync::Arc;

use croupier_core::event::{Event, Generation, SlotId, WorkerId};
use nix::sys::signal::Signal;

use super::page::SharedPage;
use super::process::{self, Ended};
use super::run::Primary;
use super::tokens::Source;
use super::worker::{Process, Worker, doorbell};

impl Primary {
    pub(super) fn spawn(&mut self, slot: SlotId, worker: WorkerId, generation: Generation) {
        match self.try_spawn(slot, worker, generation) {
            Ok(()) => self.tell(Event::Spawned { worker }),
            Err(error) => {
                log::error!(
                    "cannot start worker {} of {}: {error}",
                    worker.0,
                    self.launcher.title()
                );
                self.announcer.start_failed = Some(error);
                self.tell(Event::SpawnFailed { worker });
            }
        }
    }

    fn try_spawn(
        &mut self,
        slot: SlotId,
        id: WorkerId,
        generation: Generation,
    ) -> std::io::Result<()> {
        let page = SharedPage::new(id)?;
        let bell = doorbell()?;
        let token = super::start::random_token()?;
        let notify = self.launcher.notify_socket(&token)?.map(Arc::new);
        let ask = self.questions.name().to_owned();
        let mut worker = Worker::new(id, slot, token, page, bell, self.now);
        let inherit = self.launcher.inheritance(&mut worker, &mut self.listeners)?;
        let started = self.launcher.start(&worker, generation, &ask, inherit)?;
        worker.pid = started.pid;
        self.watch(&worker.bell, Source::Bell)?;
        if let Some(notify) = notify {
            self.watch(notify.as_ref(), Source::Notify(id.0))?;
            worker.notify = Some(notify);
        }
        if let (Some(output), Some((out, err))) = (&self.output, started.output) {
            self.show_generations();
            output.attach(id.0, slot.0, generation.0, out, err);
        }
        let listens = worker.listens();
        self.workers.insert(worker);
        for listener in listens {
            self.tell(Event::Listening { worker: id, listener });
        }
        Ok(())
    }

    /// SIGCHLD: somebody ended. Strangers (orphans of workers, and as PID 1 anybody's) are reaped too.
    pub(super) fn take_ended(&mut self) {
        // Bounded by the number of children; each is reaped before the next is asked for.
        while let Some(Ended { pid, status }) = process::next_ended() {
            let main = self.workers.iter_mut().find(|w| w.pid == pid && w.is_running());
            if let Some(worker) = main {
                worker.process = Process::Zombie(status);
                let worker = worker.id;
                let orphans = self.has_family(worker);
                self.announcer.note_exit(worker, status);
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
        }
        self.look_at_burials();
    }

    fn has_family(&self, worker: WorkerId) -> bool {
        let mains = self.mains();
        self.workers.get(worker).is_some_and(|worker| !process::family(worker, &mains).is_empty())
    }

    /// Before a main process is reaped its process group is killed, for the last time under a
    /// number that is certainly its own.
    fn last_call(&self, worker: WorkerId) {
        if let Some(worker) = self.workers.get(worker)
            && worker.burying
        {
            process::signal_group(worker, Signal::SIGKILL);
        }
    }

    fn mains(&self) -> Vec<u32> {
        self.workers.iter().filter(|w| w.is_running()).map(|w| w.pid).collect()
    }

    pub(super) fn kill_family(&mut self, worker: WorkerId) {
        let mains = self.mains();
        let Some(found) = self.workers.get_mut(worker) else {
            return self.tell(Event::FamilyGone { worker });
        };
        self.burials += usize::from(!found.burying);
        found.burying = true;
        process::kill_family(found, &mains);
        self.look_at_burials();
    }

    /// Families whose last process may have gone.
    pub(super) fn look_at_burials(&mut self) {
        if self.burials == 0 {
            return;
        }
        let mains = self.mains();
        let mut gone = Vec::new();
        for worker in self.workers.iter_mut().filter(|worker| worker.burying) {
            let left = process::kill_family(worker, &mains);
            match worker.process {
                Process::Reaped(_) if left == 0 => {
                    worker.burying = false;
                    gone.push(worker.id);
                }
                Process::Running | Process::Zombie(_) | Process::Reaped(_) => {}
            }
        }
        self.burials = self.burials.saturating_sub(gone.len());
        for worker in gone {
            self.tell(Event::FamilyGone { worker });
        }
    }

    /// A message of sd_notify(3) waits. It is read by the rescue thread: a worker may have attached
    /// descriptors to it.
    pub(super) fn take_notification(&mut self, worker: u32) {
        if let Some(found) = self.workers.get(WorkerId(worker))
            && let Some(notify) = &found.notify
        {
            self.rescue.read_notifications(worker, Arc::clone(notify));
        }
    }

    /// Drops what dead processes of pre-forkers had claimed. Once a second at most, and only when
    /// the loop is awake anyway.
    pub(super) fn drop_dead_lines(&mut self) {
        if self.meters.second_passed(self.now) {
            for worker in self.workers.iter_mut().filter(|worker| worker.page.attached) {
                worker.page.drop_dead_lines(process::exists);
            }
        }
    }

    /// For a worker: page, doorbell.
    pub(super) fn seat_of(&self, worker: WorkerId) -> Option<[std::os::fd::BorrowedFd<'_>; 2]> {
        let worker = self.workers.get(worker)?;
        Some([worker.page.memfd(), worker.bell.as_fd()])
    }
}
