//! An engine that runs.
//!
//! Owns: its processes, its folder and its ports. Promises: it serves when `start` returns: every worker
//! has announced itself and a client got its answer; nothing of it is left when it is dropped. Never
//! does: tune an engine.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::command::{self, From};
use super::{Engine, Launch, Programs, proxy};
use crate::counts;
use crate::load::{Arrivals, Common, OpenLoad, RequestKind};
use crate::process::{Guarded, ProcessError, family_of};

const READY: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(2);
/// Ports that workers and engines listen on: below those that the kernel gives to clients.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// What is shown of an engine's output when it fails.
const TAIL: usize = 2048;
const NODE_SCRIPT: &str = include_str!("../../node/server.js");

/// An engine that could not be started, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file or socket of the harness.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// It is not ready in time, or ended.
    #[error("{engine}: {what}; it said: {said}")]
    Failed {
        /// The engine's id.
        engine: String,
        /// What did not happen.
        what: String,
        /// The end of its output.
        said: String,
    },
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> EngineError {
    move |error| EngineError::Io { what, error }
}

/// How a worker serves. Node's is always an event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// One connection after another; each is closed after its answer.
    OneByOne,
    /// An event loop; what a request blocks, it blocks for all.
    EventLoop,
}

/// What an engine is started with.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The programs.
    pub programs: &'a Programs,
    /// How many workers.
    pub workers: u32,
    /// How workers in Rust serve.
    pub serving: Serving,
    /// Proxies choose by the client's address.
    pub sticky: bool,
    /// CPUs of the engine and its workers; empty: all.
    pub cpus: &'a [u32],
}

/// A running engine.
#[derive(Debug)]
pub struct Running {
    id: String,
    /// croupier's name.
    name: String,
    croupier: PathBuf,
    address: SocketAddr,
    expected: usize,
    /// Whoever deals, or starts the workers.
    root: Option<Guarded>,
    deals: bool,
    /// Workers that were started here, with what they were started by.
    workers: Vec<(Guarded, Command)>,
    shared: Option<OwnedFd>,
    cpus: Vec<u32>,
    log: File,
    // Dropped last: the processes above have their files in it.
    folder: TempDir,
}

impl Running {
    /// Starts an engine and waits until it serves.
    ///
    /// # Errors
    /// If something is missing, or it does not serve in time.
    pub fn start(engine: &Engine, setup: &Setup<'_>) -> Result<Self, EngineError> {
        let folder = tempfile::Builder::new()
            .prefix("croupier-bench-")
            .tempdir()
            .map_err(io_error("a folder for the engine"))?;
        fs::create_dir(folder.path().join("counts")).map_err(io_error("a folder for counts"))?;
        // nginx's workers run as another user, and so does whoever is told to.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), open).map_err(io_error("the folder's mode"))?;
        let log = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(folder.path().join("log"))
            .map_err(io_error("the engine's log"))?;
        let proxied = matches!(engine.launch, Launch::Haproxy | Launch::Nginx);
        let behind = if proxied { usize::try_from(setup.workers).unwrap_or(0) } else { 0 };
        // All at once, so that no two are the same: a worker takes a moment to listen on its own.
        let ports = free_ports(1 + behind)?;
        let (port, behind) = ports.split_first().map_or((0, &[][..]), |(own, rest)| (*own, rest));
        let single = matches!(engine.launch, Launch::Single | Launch::NodeSingle);
        let mut running = Self {
            id: engine.info.id.clone(),
            name: format!("bench-{}-{port}", std::process::id()),
            croupier: setup.programs.croupier.clone(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            expected: if single { 1 } else { usize::try_from(setup.workers).unwrap_or(1) },
            root: None,
            deals: engine.info.has_primary,
            workers: Vec::new(),
            shared: None,
            cpus: setup.cpus.to_vec(),
            log,
            folder,
        };
        running.launch(engine, setup, port, behind)?;
        running.wait_ready(engine.is_croupier())?;
        Ok(running)
    }

    fn launch(
        &mut self,
        engine: &Engine,
        setup: &Setup<'_>,
        port: u16,
        behind: &[u16],
    ) -> Result<(), EngineError> {
        let counts = self.counts();
        let worker = |from, port| {
            command::worker(&setup.programs.worker, from, port, setup.serving, &counts)
        };
        match engine.launch {
            Launch::Croupier(flags) => {
                let program = worker(From::Bind, port);
                let (programs, name) = (setup.programs, &self.name.clone());
                self.root(&command::croupier(programs, setup, name, port, flags, &program))
            }
            Launch::CroupierNode(flags) => {
                let program = command::node(&self.node_script()?, port, &counts, "alone", 1);
                let (programs, name) = (setup.programs, &self.name.clone());
                self.root(&command::croupier(programs, setup, name, port, flags, &program))
            }
            Launch::Single => self.worker(worker(From::Bind, port)),
            Launch::Reuseport => {
                (0..setup.workers).try_for_each(|_| self.worker(worker(From::Reuseport, port)))
            }
            Launch::Shared => {
                self.shared = Some(listen_on(port).map_err(io_error("a listening socket"))?);
                (0..setup.workers).try_for_each(|_| self.worker(worker(From::Inherited, port)))
            }
            Launch::Floor => {
                let mut command = Command::new(&setup.programs.bench);
                command.args(["floor", "--port", &port.to_string()]);
                command.args(["--workers", &setup.workers.to_string()]);
                command.arg("--worker").arg(&setup.programs.worker).arg("--counts").arg(&counts);
                if setup.serving == Serving::EventLoop {
                    command.arg("--event-loop");
                }
                self.root(&command)
            }
            Launch::Haproxy | Launch::Nginx => {
                self.launch_proxy(engine.launch, setup, port, behind)
            }
            Launch::NodeCluster(policy) => {
                let script = self.node_script()?;
                self.root(&command::node(&script, port, &counts, policy, setup.workers))
            }
            Launch::NodeSingle => {
                self.worker(command::node(&self.node_script()?, port, &counts, "alone", 1))
            }
        }
    }

    fn launch_proxy(
        &mut self,
        launch: Launch,
        setup: &Setup<'_>,
        port: u16,
        behind: &[u16],
    ) -> Result<(), EngineError> {
        let counts = self.counts();
        for own in behind {
            let program = &setup.programs.worker;
            self.worker(command::worker(program, From::Bind, *own, setup.serving, &counts))?;
        }
        // Before the proxy looks: a worker that does not listen yet counts as down.
        self.wait_for_workers()?;
        let path = self.folder.path().join("conf");
        let mut command;
        let text = if launch == Launch::Nginx {
            command = Command::new("nginx");
            command.arg("-p").arg(self.folder.path()).arg("-c").arg(&path);
            proxy::nginx(port, behind, setup.sticky, self.folder.path())
        } else {
            command = Command::new("haproxy");
            command.args(["-db", "-f"]).arg(&path);
            proxy::haproxy(port, behind, setup.sticky)
        };
        fs::write(&path, text).map_err(io_error("the proxy's configuration"))?;
        self.root(&command)
    }

    fn counts(&self) -> PathBuf {
        self.folder.path().join("counts")
    }

    fn node_script(&self) -> Result<PathBuf, EngineError> {
        let path = self.folder.path().join("server.js");
        fs::write(&path, NODE_SCRIPT).map_err(io_error("the Node program"))?;
        Ok(path)
    }

    fn root(&mut self, command: &Command) -> Result<(), EngineError> {
        self.root = Some(Guarded::logged(command, &self.cpus, Stdio::null(), &self.log)?);
        Ok(())
    }

    fn worker(&mut self, command: Command) -> Result<(), EngineError> {
        let input = match &self.shared {
            None => Stdio::null(),
            Some(socket) => {
                Stdio::from(socket.try_clone().map_err(io_error("the listening socket"))?)
            }
        };
        self.workers.push((Guarded::logged(&command, &self.cpus, input, &self.log)?, command));
        Ok(())
    }

    fn wait_ready(&mut self, croupier: bool) -> Result<(), EngineError> {
        let deadline = Instant::now() + READY;
        self.wait_for_workers()?;
        if croupier {
            self.wait_for_croupier(deadline)?;
        }
        while self.probe()? == 0 {
            self.still_there("no client was answered", deadline)?;
            thread::sleep(LOOK);
        }
        if let Some(root) = &mut self.root {
            root.look_at_family();
        }
        Ok(())
    }

    fn wait_for_workers(&mut self) -> Result<(), EngineError> {
        let deadline = Instant::now() + READY;
        while self.announced().len() < self.expected {
            self.still_there("not all workers listen", deadline)?;
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Its control socket appears a moment after the start, so "no such primary" may be early.
    fn wait_for_croupier(&mut self, deadline: Instant) -> Result<(), EngineError> {
        loop {
            let mut command = Command::new(&self.croupier);
            command.args(["wait", "ready", "-n", &self.name, "--timeout", "60s"]);
            match Guarded::piped(&command, &self.cpus)?.output() {
                Ok(_) => return Ok(()),
                Err(error) => self.still_there(&format!("not ready ({error})"), deadline)?,
            }
            thread::sleep(LOOK);
        }
    }

    /// One client; how many were answered.
    fn probe(&self) -> Result<u64, EngineError> {
        let (sender, _) = std::sync::mpsc::channel();
        let load = OpenLoad {
            common: Common {
                target: self.address,
                length: Duration::from_millis(1),
                sources: 0,
                patience: Duration::from_secs(2),
                seed: 0,
                timeline: None,
                begun: Some(sender),
            },
            rate: 1_500.0,
            arrivals: Arrivals::Even,
            kinds: vec![RequestKind { path: "/".to_owned(), weight: 1.0 }],
            open_max: 1,
            sticky: false,
        };
        Ok(load.run().map_err(io_error("a first client"))?.connections)
    }

    /// An error once the time is up or a process of it has ended.
    fn still_there(&mut self, missing: &str, deadline: Instant) -> Result<(), EngineError> {
        let mut ended = None;
        let workers = self.workers.iter_mut().map(|(worker, _)| worker);
        for child in self.root.iter_mut().chain(workers) {
            ended = ended.or(child.ended()?);
        }
        match ended {
            Some(how) => Err(self.failed(format!("{missing}: a process of it ended ({how})"))),
            None if Instant::now() > deadline => {
                Err(self.failed(format!("{missing} within {} s", READY.as_secs())))
            }
            None => Ok(()),
        }
    }

    /// An error about this engine, with the end of its output.
    #[must_use]
    pub fn failed(&self, what: String) -> EngineError {
        let said = fs::read(self.folder.path().join("log")).unwrap_or_default();
        let tail = said.get(said.len().saturating_sub(TAIL)..).unwrap_or_default();
        let said = String::from_utf8_lossy(tail).trim().to_owned();
        EngineError::Failed { engine: self.id.clone(), what, said }
    }

    /// Whether all that was started is still there.
    ///
    /// # Errors
    /// What has ended, and its last words.
    pub fn check(&mut self) -> Result<(), EngineError> {
        let Some(root) = &mut self.root else { return Ok(()) };
        match root.ended()? {
            None => Ok(()),
            Some(how) => Err(self.failed(format!("died under load ({how})"))),
        }
    }

    /// Where clients connect.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Pids of workers that live.
    #[must_use]
    pub fn announced(&self) -> Vec<u32> {
        let folder = self.counts();
        let all = counts::announced(&folder).unwrap_or_default();
        all.into_iter().filter(|pid| is_alive(*pid)).collect()
    }

    /// What each worker has counted so far.
    #[must_use]
    pub fn ask(&self) -> Vec<crate::data::WorkerCount> {
        counts::ask(&self.counts(), &self.announced())
    }

    /// Pids of the primary or proxy, the main process first; empty where there is none.
    #[must_use]
    pub fn dealers(&self) -> Vec<u32> {
        let Some(root) = self.root.as_ref().filter(|_| self.deals) else { return Vec::new() };
        let workers = self.announced();
        family_of(root.pid()).into_iter().filter(|pid| !workers.contains(pid)).collect()
    }

    /// Kills a worker and starts it again where nobody else does. The one that is killed.
    ///
    /// # Errors
    /// If it cannot be started again.
    pub fn kill_worker(&mut self, number: usize) -> Result<Option<u32>, EngineError> {
        let count = self.workers.len();
        if count > 0 {
            let Some(at) = number.checked_rem(count) else { return Ok(None) };
            let (mut worker, command) = self.workers.remove(at);
            let pid = worker.pid();
            worker.signal(Signal::SIGKILL);
            worker.stop();
            counts::forget(&self.counts(), pid);
            self.worker(command)?;
            return Ok(Some(pid));
        }
        let alive = self.announced();
        let Some(at) = number.checked_rem(alive.len()) else { return Ok(None) };
        let Some(pid) = alive.get(at).copied() else { return Ok(None) };
        if let Ok(raw) = i32::try_from(pid) {
            // It may have ended by itself.
            kill(Pid::from_raw(raw), Signal::SIGKILL).ok();
        }
        Ok(Some(pid))
    }

    /// `croupier reload`, to its end.
    ///
    /// # Errors
    /// If it fails.
    pub fn reload(&self) -> Result<(), EngineError> {
        let mut command = Command::new(&self.croupier);
        command.args(["reload", "-n", &self.name]);
        Ok(Guarded::piped(&command, &self.cpus)?.output().map(drop)?)
    }

    /// Replaces workers that were started here one after another: a new one first, then TERM to the old.
    ///
    /// # Errors
    /// If a new one does not start.
    pub fn replace_workers(&mut self) -> Result<(), EngineError> {
        for _ in 0..self.workers.len() {
            let (mut old, command) = self.workers.remove(0);
            self.worker(command)?;
            let new = self.workers.last().map(|(worker, _)| worker.pid());
            let deadline = Instant::now() + READY;
            while !self.announced().iter().any(|pid| Some(*pid) == new) {
                self.still_there("a new worker does not listen", deadline)?;
                thread::sleep(LOOK);
            }
            let pid = old.pid();
            old.stop();
            counts::forget(&self.counts(), pid);
        }
        Ok(())
    }

    /// Ends it: the dealer first, so that it does not start again what ends.
    pub fn stop(&mut self) {
        if let Some(mut root) = self.root.take() {
            root.stop();
        }
        // All at once: each would else wait for the one before.
        for (worker, _) in &self.workers {
            worker.signal(Signal::SIGTERM);
        }
        self.workers.clear();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = i32::try_from(pid).ok().and_then(|pid| procfs::process::Process::new(pid).ok());
    stat.and_then(|process| process.stat().ok()).is_some_and(|stat| stat.state != 'Z')
}

/// Different ports that nobody listens on now.
fn free_ports(count: usize) -> Result<Vec<u16>, EngineError> {
    let mut random = fastrand::Rng::new();
    let mut held = Vec::new();
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..1_000 + 4 * count {
        let port = random.u16(PORTS);
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
            // Held until all are found.
            Ok(listener) => held.push((port, listener)),
            Err(error) => last = error,
        }
        if held.len() == count {
            return Ok(held.into_iter().map(|(port, _)| port).collect());
        }
    }
    Err(EngineError::Io { what: "a free port", error: last })
}

fn listen_on(port: u16) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    let address = std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
    listen(&fd, Backlog::new(4096)?)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_however_many() {
        let ports = free_ports(1_500).unwrap();
        let distinct: std::collections::BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!((ports.len(), distinct.len()), (1_500, 1_500));
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }
}
