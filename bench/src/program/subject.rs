//! The user's program, running under one policy.
//!
//! Owns: its processes, and where it listens. Promises: it has answered a client when `start` returns;
//! nothing of it is left when it is dropped. Never does: change the program or its environment.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{Policy, Request};
use crate::load::{Arrivals, Common, OpenLoad, RequestKind};
use crate::process::{Guarded, Machine, ProcessError, cpu_ns, own_cpu, resident_bytes};

const READY: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// What is shown of the program's output when it fails.
const TAIL: u64 = 2048;

/// The program could not be measured under a policy.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// It, or croupier, could not be started or asked.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file of the harness, or /proc.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// It does not serve.
    #[error("{policy}: {what}; it said: {said}")]
    Failed {
        /// Under which policy.
        policy: &'static str,
        /// What did not happen.
        what: String,
        /// The end of its output.
        said: String,
    },
    /// croupier's status cannot be read.
    #[error("croupier status: {0}")]
    Status(String),
}

/// What is read of `croupier status --json`.
#[derive(Debug, Deserialize)]
struct Status {
    listeners: Vec<Listener>,
    workers: Vec<Worker>,
}

#[derive(Debug, Deserialize)]
struct Listener {
    address: String,
}

#[derive(Debug, Deserialize)]
struct Worker {
    pid: Option<u32>,
    claimed: Option<u64>,
}

/// The running program.
#[derive(Debug)]
pub(super) struct Subject {
    policy: Policy,
    croupier: std::path::PathBuf,
    name: String,
    target: SocketAddr,
    root: Guarded,
    log: File,
}

/// Counters at one moment.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) primary_ns: u64,
    pub(super) primary_bytes: u64,
    pub(super) workers_bytes: u64,
    workers: BTreeMap<u32, u64>,
    /// Connections that each worker took, where croupier counts them.
    claims: BTreeMap<u32, u64>,
    machine: Machine,
    own: Duration,
    children: Duration,
    at: Instant,
}

impl Subject {
    /// Starts it and waits until a client is answered. `target`: where it listens; `None`: asks croupier.
    pub(super) fn start(
        request: &Request,
        policy: Policy,
        target: Option<SocketAddr>,
        cpus: &[u32],
    ) -> Result<Self, SubjectError> {
        let io = |what| move |error| SubjectError::Io { what, error };
        let log = tempfile::tempfile().map_err(io("a file for the program's output"))?;
        let name = format!("bench-{}-{}", std::process::id(), policy.id());
        let command = command(request, policy, &name);
        let root = Guarded::logged(&command, cpus, Stdio::null(), &log)?;
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut subject = Self {
            policy,
            croupier: request.programs.croupier.clone(),
            name,
            target: target.unwrap_or(nowhere),
            root,
            log,
        };
        let deadline = Instant::now() + READY;
        if policy != Policy::Single {
            subject.wait_for_croupier(deadline)?;
        }
        if target.is_none() {
            subject.target = subject.listens()?;
        }
        while !subject.answers(&request.path)? {
            subject.still_there("no client was answered", deadline)?;
            thread::sleep(LOOK);
        }
        Ok(subject)
    }

    pub(super) const fn target(&self) -> SocketAddr {
        self.target
    }

    fn wait_for_croupier(&mut self, deadline: Instant) -> Result<(), SubjectError> {
        loop {
            let mut command = Command::new(&self.croupier);
            command.args(["wait", "ready", "-n", &self.name, "--timeout", "60s"]);
            match Guarded::piped(&command, &[])?.output() {
                Ok(_) => return Ok(()),
                // Its control socket appears a moment after the start.
                Err(error) => self.still_there(&format!("not ready ({error})"), deadline)?,
            }
            thread::sleep(LOOK);
        }
    }

    fn status(&self) -> Result<Status, SubjectError> {
        let mut command = Command::new(&self.croupier);
        command.args(["status", "-n", &self.name, "--json"]);
        let text = Guarded::piped(&command, &[])?.output()?;
        serde_json::from_str(&text).map_err(|error| SubjectError::Status(error.to_string()))
    }

    /// The first TCP address that it listens on, as a client of this machine names it.
    fn listens(&mut self) -> Result<SocketAddr, SubjectError> {
        let status = self.status()?;
        let all: Vec<String> = status.listeners.into_iter().map(|one| one.address).collect();
        let first = all.iter().find_map(|address| address.parse::<SocketAddr>().ok());
        match first {
            Some(address) => Ok(SocketAddr::new(reachable(address.ip()), address.port())),
            None => {
                let what = format!("it listens on no TCP port that is dealt ({})", all.join(", "));
                Err(self.failed(what))
            }
        }
    }

    /// One client.
    fn answers(&self, path: &str) -> Result<bool, SubjectError> {
        let load = OpenLoad {
            common: Common {
                target: self.target,
                length: Duration::from_millis(1),
                sources: 0,
                patience: Duration::from_secs(5),
                seed: 0,
                timeline: None,
                begun: None,
            },
            rate: 1_500.0,
            arrivals: Arrivals::Even,
            kinds: vec![RequestKind { path: path.to_owned(), weight: 1.0 }],
            open_max: 1,
            sticky: false,
        };
        let seen = load.run();
        Ok(seen.map_err(|error| SubjectError::Io { what: "a client", error })?.connections > 0)
    }

    fn still_there(&mut self, missing: &str, deadline: Instant) -> Result<(), SubjectError> {
        match self.root.ended()? {
            Some(how) => Err(self.failed(format!("{missing}: it ended ({how})"))),
            None if Instant::now() > deadline => {
                Err(self.failed(format!("{missing} within {} s", READY.as_secs())))
            }
            None => Ok(()),
        }
    }

    fn failed(&mut self, what: String) -> SubjectError {
        let said = self.last_words().unwrap_or_default();
        SubjectError::Failed { policy: self.policy.id(), what, said }
    }

    fn last_words(&mut self) -> io::Result<String> {
        let length = self.log.metadata()?.len();
        self.log.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        (&self.log).take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    pub(super) fn read(&self) -> Result<Reading, SubjectError> {
        let io = |error| SubjectError::Io { what: "/proc", error };
        let root = self.root.pid();
        let mut family = crate::process::family_of(root);
        family.retain(|pid| self.policy == Policy::Single || *pid != root);
        let mut claims = BTreeMap::new();
        if self.policy != Policy::Single {
            let counted = self.status()?.workers.into_iter();
            claims.extend(counted.filter_map(|worker| Some((worker.pid?, worker.claimed?))));
        }
        let (own, children) = own_cpu().map_err(io)?;
        Ok(Reading {
            primary_ns: if self.policy == Policy::Single { 0 } else { cpu_ns(root) },
            primary_bytes: if self.policy == Policy::Single { 0 } else { resident_bytes(root) },
            workers_bytes: family.iter().map(|pid| resident_bytes(*pid)).sum(),
            workers: family.into_iter().map(|pid| (pid, cpu_ns(pid))).collect(),
            claims,
            machine: Machine::look().map_err(io)?,
            own,
            children,
            at: Instant::now(),
        })
    }
}

impl Reading {
    pub(super) fn workers_since(&self, before: &Self) -> u64 {
        grown(&before.workers, &self.workers).values().sum()
    }

    pub(super) fn claims_since(&self, before: &Self) -> BTreeMap<u32, u64> {
        grown(&before.claims, &self.claims)
    }

    /// CPU time of children that have ended in between: wrk's.
    pub(super) fn children_since(&self, before: &Self) -> u64 {
        let time = self.children.saturating_sub(before.children);
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Share of the machine that neither `subject_ns` nor this process and its children used.
    pub(super) fn foreign_since(&self, before: &Self, subject_ns: u64) -> f64 {
        let ours = Duration::from_nanos(subject_ns)
            + self.own.saturating_sub(before.own)
            + self.children.saturating_sub(before.children);
        let wall = self.at.saturating_duration_since(before.at);
        self.machine.foreign_share(&before.machine, wall, ours)
    }
}

/// What was counted in between; what is new since counts from 0.
fn grown(before: &BTreeMap<u32, u64>, after: &BTreeMap<u32, u64>) -> BTreeMap<u32, u64> {
    let of = |pid: &u32| before.get(pid).copied().unwrap_or(0);
    after.iter().map(|(pid, now)| (*pid, now.saturating_sub(of(pid)))).collect()
}

/// The wildcard address is no place to connect to.
fn reachable(ip: IpAddr) -> IpAddr {
    // A listener on [::] takes IPv4 too, and 127.0.0.0/8 has many addresses for clients.
    if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip }
}

fn command(request: &Request, policy: Policy, name: &str) -> Command {
    let mut words = request.command.iter();
    let program = words.next().cloned().unwrap_or_default();
    if policy == Policy::Single {
        let mut command = Command::new(program);
        command.args(words);
        return command;
    }
    let mut command = Command::new(&request.programs.croupier);
    command.args(["run", "-w", &request.workers.to_string(), "--name", name]);
    command.args(["-p", policy.id()]).args(&request.run_flags).arg("--").arg(program).args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_connect_to_a_place() {
        let place = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(place("0.0.0.0"), "127.0.0.1");
        assert_eq!(place("::"), "127.0.0.1");
        assert_eq!(place("::1"), "::1");
        assert_eq!(place("127.0.0.9"), "127.0.0.9");
    }

    #[test]
    fn only_what_is_new_counts() {
        let before = BTreeMap::from([(1, 10), (2, 5)]);
        let after = BTreeMap::from([(1, 17), (3, 4)]);
        assert_eq!(grown(&before, &after), BTreeMap::from([(1, 7), (3, 4)]));
    }
}
