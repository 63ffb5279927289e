//! How much memory the workers have (`--max-rss`).
//!
//! Owns a thread that looks into /proc, so that the loop does not. Promises: without the flag there
//! is no thread and no timer; one look at a time, every [`SAMPLE_EVERY`]. Says what it found, decides
//! nothing: the core recycles.
//!
//! A worker is its family. One process counts with its resident memory; of several, each counts with
//! its proportional share, as what a pre-forker has loaded before the fork is there only once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use croupier_core::event::{Event, WorkerId};
use croupier_wire::message::CONTROL_VAR;
use nix::unistd::{SysconfVar, sysconf};
use procfs::process::Process as Proc;

use super::process::{children_of, hex, own_children};
use super::run::Primary;
use super::wake::wake;

/// Between two looks.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);

/// One worker, as the thread needs to know it.
#[derive(Debug)]
struct Subject {
    worker: WorkerId,
    main: u32,
    token: String,
}

/// The loop's side of the thread.
#[derive(Debug)]
pub(super) struct Sampler {
    limit: u64,
    orders: Sender<Vec<Subject>>,
    found: Receiver<Vec<(WorkerId, u64)>>,
    /// When the next look begins; `None` while one is under way.
    next_at: Option<u64>,
}

impl Sampler {
    /// Starts the thread. It ends when the sampler is dropped.
    ///
    /// # Errors
    /// EAGAIN: no thread to be had.
    pub(super) fn start(limit: u64, waker: Arc<mio::Waker>, now: u64) -> io::Result<Self> {
        let (orders, inbox) = unbounded::<Vec<Subject>>();
        let (outbox, found) = unbounded();
        std::thread::Builder::new().name("croupier-rss".into()).spawn(move || {
            for subjects in inbox {
                let sent = outbox.send(measure(&subjects)).is_ok();
                if sent {
                    wake(&waker);
                }
            }
        })?;
        Ok(Self { limit, orders, found, next_at: Some(after(now)) })
    }

    pub(super) const fn deadline(&self) -> Option<u64> {
        self.next_at
    }
}

impl Primary {
    /// The limit may have changed, and with `auto` the workers that share it.
    pub(super) fn note_max_rss(&mut self) {
        let slots = self.core.slot_count();
        self.config.max_rss = self.config.max_rss.take().map(|max| max.with_workers(slots));
        let limit = self.config.max_rss.as_ref().map(|max| max.bytes);
        match (&mut self.sampler, limit) {
            (Some(sampler), Some(bytes)) => sampler.limit = bytes,
            (sampler @ None, Some(bytes)) => {
                match Sampler::start(bytes, Arc::clone(&self.waker), self.now) {
                    Ok(started) => *sampler = Some(started),
                    Err(error) => log::error!(
                        "--max-rss has no effect: cannot start the thread that looks at memory: {error}"
                    ),
                }
            }
            (sampler, None) => *sampler = None,
        }
    }
}

fn after(now: u64) -> u64 {
    now.saturating_add(u64::try_from(SAMPLE_EVERY.as_nanos()).unwrap_or(u64::MAX))
}

impl Primary {
    /// Begins a look, if it is time for one.
    pub(super) fn sample_if_due(&mut self) {
        let Some(sampler) = &mut self.sampler else { return };
        if sampler.next_at.is_none_or(|at| self.now < at) {
            return;
        }
        let running = self.workers.iter().filter(|worker| worker.is_executing());
        let subjects = running.map(|worker| Subject {
            worker: worker.id,
            main: worker.pid,
            token: hex(&worker.token),
        });
        let sent = sampler.orders.send(subjects.collect()).is_ok();
        // The thread lives as long as the sampler.
        debug_assert!(sent, "the thread that looks at memory has ended");
        sampler.next_at = None;
    }

    /// What the thread found.
    pub(super) fn take_samples(&mut self) {
        let now = self.now;
        let Some(sampler) = &mut self.sampler else { return };
        let Ok(found) = sampler.found.try_recv() else { return };
        sampler.next_at = Some(after(now));
        let limit = sampler.limit;
        for (worker, bytes) in found.into_iter().filter(|(_, bytes)| *bytes > limit) {
            self.tell(Event::Outgrew { worker, bytes });
        }
    }
}

/// Processes of one family whose memory is counted.
const DEPTH_MAX: usize = 4096;

/// The memory of each worker's family. What cannot be read, as it has just ended, does not count.
fn measure(subjects: &[Subject]) -> Vec<(WorkerId, u64)> {
    let mut families: BTreeMap<u32, Vec<u32>> =
        subjects.iter().map(|subject| (subject.main, vec![subject.main])).collect();
    for pid in own_children() {
        let owner = if families.contains_key(&pid) { Some(pid) } else { owner(pid, subjects) };
        if let Some(family) = owner.and_then(|main| families.get_mut(&main)) {
            if owner != Some(pid) {
                family.push(pid);
            }
            descend(pid, family);
        }
    }
    let of = |subject: &Subject| {
        let family = families.get(&subject.main).map_or(&[][..], Vec::as_slice);
        let bytes = match family {
            [alone] => resident(*alone).unwrap_or(0),
            several => several.iter().filter_map(|pid| proportional(*pid)).sum(),
        };
        (subject.worker, bytes)
    };
    subjects.iter().map(of).collect()
}

/// Adds everything below a process, up to [`DEPTH_MAX`] in all; what is beyond does not count.
fn descend(root: u32, found: &mut Vec<u32>) {
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        for child in children_of(pid) {
            if found.len() < DEPTH_MAX {
                found.push(child);
                open.push(child);
            }
        }
    }
}

/// The worker of a process that lost its parent: by process group, or by what it inherited.
fn owner(pid: u32, subjects: &[Subject]) -> Option<u32> {
    let process = Proc::new(i32::try_from(pid).ok()?).ok()?;
    let group = u32::try_from(process.stat().ok()?.pgrp).ok()?;
    let token = || {
        let variables = process.environ().ok()?;
        Some(variables.get(&OsString::from(CONTROL_VAR))?.to_string_lossy().into_owned())
    };
    let by_group = subjects.iter().find(|subject| subject.main == group);
    let found = by_group.or_else(|| {
        let token = token()?;
        subjects.iter().find(|subject| token.starts_with(&subject.token))
    });
    found.map(|subject| subject.main)
}

/// Resident memory, shared pages whole.
pub(super) fn resident(pid: u32) -> Option<u64> {
    let statm = Proc::new(i32::try_from(pid).ok()?).ok()?.statm().ok()?;
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    Some(statm.resident * page)
}

/// Resident memory, each shared page divided among those who share it; where that may not be read,
/// the pages whole.
fn proportional(pid: u32) -> Option<u64> {
    let rollup = Proc::new(i32::try_from(pid).ok()?).and_then(|process| process.smaps_rollup());
    let maps = rollup.ok().map(|rollup| rollup.memory_map_rollup.0);
    let share = maps.and_then(|maps| maps.first()?.extension.map.get("Pss").copied());
    share.or_else(|| resident(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_alone_counts_whole_and_shares_are_smaller() {
        let own = std::process::id();
        let subject = Subject { worker: WorkerId(7), main: own, token: "none".into() };
        let [(worker, bytes)] = measure(&[subject])[..] else { panic!("one worker, one figure") };
        assert_eq!(worker, WorkerId(7));
        assert!(bytes > 100_000, "{bytes}");
        let (share, whole) = (proportional(own).unwrap(), resident(own).unwrap());
        assert!(share > 0 && share <= whole * 2, "{share} of {whole}");
    }

    #[test]
    fn who_is_gone_counts_nothing() {
        let subject = Subject { worker: WorkerId(1), main: u32::MAX, token: "none".into() };
        assert_eq!(measure(&[subject]), [(WorkerId(1), 0)]);
    }
}
