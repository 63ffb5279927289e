//! What each worker counts, and how it is asked.
//!
//! Owns: the counters in a worker, and the folder through which it tells them: a file named by its
//! pid, written when it listens and again at each SIGUSR2. Promises: a worker that serves pays one
//! relaxed addition and no system call; one that is blocked answers too, on a thread of its own.
//! Never does: guess for a worker that did not answer.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use signal_hook::iterator::Signals;

use crate::data::WorkerCount;

/// How long a worker may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_micros(500);

/// A worker's counters.
#[derive(Debug, Default)]
pub struct Counts {
    connections: AtomicU64,
    requests: AtomicU64,
}

impl Counts {
    /// For a static.
    #[must_use]
    pub const fn new() -> Self {
        Self { connections: AtomicU64::new(0), requests: AtomicU64::new(0) }
    }

    /// A connection was taken.
    pub fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer was given.
    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes this process' file now, and again at each SIGUSR2.
    ///
    /// # Errors
    /// If the folder cannot be written, or the signal not be caught.
    pub fn announce(&'static self, folder: &Path) -> io::Result<()> {
        let folder = folder.to_owned();
        let mut signals = Signals::new([Signal::SIGUSR2 as i32])?;
        // Only the thread below is interrupted, never the one that serves.
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR2);
        let (written, first) = std::sync::mpsc::channel();
        thread::Builder::new().name("counts".to_owned()).spawn(move || {
            let mut asked = 0;
            let done = self.write(&folder, asked);
            if written.send(done).is_err() {
                return;
            }
            for _ in &mut signals {
                asked += 1;
                // The harness sees that this worker's file does not change, and says so.
                self.write(&folder, asked).ok();
            }
        })?;
        blocked.thread_block()?;
        first.recv().map_err(io::Error::other)?
    }

    fn write(&self, folder: &Path, asked: u64) -> io::Result<()> {
        let pid = std::process::id();
        let connections = self.connections.load(Ordering::Relaxed);
        let requests = self.requests.load(Ordering::Relaxed);
        let partial = folder.join(format!(".{pid}"));
        fs::write(&partial, format!("{asked} {connections} {requests}\n"))?;
        fs::rename(partial, folder.join(pid.to_string()))
    }
}

/// The pids of workers that have announced themselves, in order.
///
/// # Errors
/// If the folder cannot be read.
pub fn announced(folder: &Path) -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// Forgets a worker that is gone.
pub fn forget(folder: &Path, pid: u32) {
    // It may never have announced itself.
    fs::remove_file(folder.join(pid.to_string())).ok();
}

/// Asks workers what they have counted since they began. Those that do not answer are left out.
#[must_use]
pub fn ask(folder: &Path, pids: &[u32]) -> Vec<WorkerCount> {
    let asked: Vec<(u32, u64)> = pids
        .iter()
        .filter_map(|pid| {
            let before = read(folder, *pid)?.0;
            let target = Pid::from_raw(i32::try_from(*pid).ok()?);
            kill(target, Signal::SIGUSR2).ok()?;
            Some((*pid, before))
        })
        .collect();
    let deadline = Instant::now() + ANSWER;
    asked
        .into_iter()
        .filter_map(|(pid, before)| {
            loop {
                let (now, count) = read(folder, pid)?;
                if now > before {
                    return Some(count);
                }
                if Instant::now() > deadline {
                    return None;
                }
                thread::sleep(LOOK);
            }
        })
        .collect()
}

fn read(folder: &Path, pid: u32) -> Option<(u64, WorkerCount)> {
    let text = fs::read_to_string(folder.join(pid.to_string())).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    let (asked, connections, requests) = (next()?, next()?, next()?);
    Some((asked, WorkerCount { pid, connections, requests }))
}

/// What was counted between two answers: workers that answered both times.
#[must_use]
pub fn between(before: &[WorkerCount], after: &[WorkerCount]) -> Vec<WorkerCount> {
    after
        .iter()
        .map(|now| {
            let then = before.iter().find(|then| then.pid == now.pid);
            let (connections, requests) = then.map_or((0, 0), |t| (t.connections, t.requests));
            WorkerCount {
                pid: now.pid,
                connections: now.connections.saturating_sub(connections),
                requests: now.requests.saturating_sub(requests),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_tells_what_it_counted() {
        static COUNTS: Counts = Counts::new();
        let folder = tempfile::tempdir().unwrap();
        COUNTS.announce(folder.path()).unwrap();
        let me = std::process::id();
        assert_eq!(announced(folder.path()).unwrap(), [me]);
        let before = ask(folder.path(), &[me]);
        assert_eq!(before, [WorkerCount { pid: me, connections: 0, requests: 0 }]);
        COUNTS.connection();
        COUNTS.request();
        COUNTS.request();
        let after = ask(folder.path(), &[me]);
        let expected = [WorkerCount { pid: me, connections: 1, requests: 2 }];
        assert_eq!(between(&before, &after), expected);
        forget(folder.path(), me);
        assert!(ask(folder.path(), &[me]).is_empty(), "nobody is guessed for");
    }
}
