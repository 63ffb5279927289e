//! From a validated configuration to a running loop, and back to an exit code.
//!
//! Owns how a worker is started ([`Launcher`]). Every failure before the first worker starts is
//! fatal and said in one line.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use croupier_core::Core;
use croupier_core::config::{Policy, ReadyRule};
use croupier_core::event::{Event, Generation, Outcome, WorkerId};
use croupier_core::time::Now;
use mio::{Poll, Waker};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, setsockopt, socket, sockopt,
};
use signal_hook::consts::signal::{
    SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook_mio::v1_0::Signals;
use slab::Slab;

use super::adopt::Adoption;
use super::advice::Adviser;
use super::alarm::Alarm;
use super::announce::Announcer;
use super::check::Checks;
use super::commands::{Commands, Ending};
use super::drive::Driving;
use super::features::{self, Feature};
use super::hands::Hands;
use super::happenings::Happenings;
use super::health::Health;
use super::listener::{Listener, Origin, Phase};
use super::memory::Memory;
use super::pid_file::{PidFile, PidFileError};
use super::posts::Posts;
use super::process::{self, Forked, hex};
use super::questions::Questions;
use super::replace::Replacing;
use super::rescue::Rescue;
use super::rss::Sampler;
use super::run::{BELL_WAIT, Primary};
use super::service::Service;
use super::socket_file::Rights;
use super::status::Meters;
use super::tokens::{CONTROL_BASE, Source};
use super::versions::Versions;
use super::watch::{WatchError, Watcher};
use super::worker::{Worker, Workers};
use super::{accept, address, channel};
use crate::adapter::{self, Adapter, Resolved};
use crate::config::{IP_QUEUE_MAX, ListenAddress, Loaded, MaxRss, RunConfig, expand};
use crate::control::place::Place;
use crate::control::server::ControlServer;
use crate::diagnose;
use crate::output::{LogFile, Output};
use crate::sys::{self, ChildSetup, INHERIT_MAX};

/// What means something; `commands` says what.
const SIGNALS: [i32; 10] =
    [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH];
/// With `--max-queue-wait`: clients that wait in the primary's hands.
const WAITING_MAX: u16 = 1024;
/// Descriptors for which there is room from the start: those of 256 workers, and every queue in hand.
const TABLE: u64 = 16_384;

/// Why the primary did not start. Each says what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program cannot be run as a worker.
    #[error(transparent)]
    Program(#[from] adapter::ResolveError),
    /// Files cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// An `-l` cannot be bound.
    #[error(transparent)]
    Bind(#[from] diagnose::BindError),
    /// `--pid-file` cannot be had.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// The kernel lacks something.
    #[error("this kernel cannot {what}: {source}; croupier needs Linux 5.10 or later")]
    Kernel {
        /// What is missing.
        what: &'static str,
        /// How it said so.
        source: io::Error,
    },
    /// `--log-file` cannot be written.
    #[error(
        "cannot open the log file {}: {source}; its folder must be there, and this user must be \
         allowed to write it",
        path.display()
    )]
    LogFile {
        /// `--log-file`.
        path: PathBuf,
        /// What open(2) said.
        source: io::Error,
    },
    /// With `--log-file`: it did not end as asked, and a terminal shall hear of it too.
    #[error("{why}; {} has the log", log.display())]
    Ended {
        /// As the log says it.
        why: String,
        /// `--log-file`.
        log: PathBuf,
    },
    /// A system call that should not fail did.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

impl StartError {
    /// What the process exits with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Program(error) => error.exit_code(),
            Self::Bind(_)
            | Self::Watch(_)
            | Self::PidFile(_)
            | Self::LogFile { .. }
            | Self::Ended { .. }
            | Self::Kernel { .. }
            | Self::System { .. } => crate::cli::code::FAILED,
        }
    }
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Runs a primary until it has ended; returns the exit code.
///
/// # Errors
/// [`StartError`]: it did not start.
pub fn run(loaded: Loaded) -> Result<u8, StartError> {
    sys::forget_the_parent().map_err(cannot("close what the parent left open"))?;
    let resolved = adapter::resolve(&loaded.config)?;
    check_kernel()?;
    let nofile = raise_nofile().map_err(cannot("read the limit of open files"))?;
    if let Err(error) = sys::widen_descriptor_table(TABLE) {
        log::debug!("the table of descriptors grows while clients are dealt: {error}");
    }
    let mut primary = assemble(loaded, resolved, nofile)?;
    primary._pid_file = primary.config.care.pid_file.as_deref().map(PidFile::write).transpose()?;
    primary.declare()?;
    primary.announce_start();
    let outcome = primary.run().map_err(cannot("wait for events"))?;
    let why = primary.announce_end(outcome);
    let code = primary.exit_code(outcome);
    if let Some(output) = primary.output.take() {
        output.finish();
    }
    match (why, primary.config.log_file.take()) {
        (Some(why), Some(log)) => Err(StartError::Ended { why, log }),
        (Some(_) | None, _) => Ok(code),
    }
}

/// Takes over stdout and stderr, or opens the log file, and says on stderr once where all else is.
fn open_output(config: &RunConfig) -> Result<Output, StartError> {
    let file = config.log_file.as_ref().map(|path| {
        LogFile::open(path).map_err(|source| StartError::LogFile { path: path.clone(), source })
    });
    let file = file.transpose()?;
    if let Some(file) = &file {
        let text = format!("croupier: output and log go to {}\n", file.path().display());
        // Nobody there to read it: then nobody need know.
        drop(io::stderr().write_all(text.as_bytes()));
    }
    Output::start(config.log_format, file).map_err(cannot("take over the output"))
}

fn start_watcher(config: &RunConfig, waker: &Arc<Waker>) -> Result<Option<Watcher>, StartError> {
    if config.watch.is_empty() {
        return Ok(None);
    }
    Ok(Some(Watcher::start(&config.watch, Arc::clone(waker))?))
}

fn start_sampler(
    config: &RunConfig,
    waker: &Arc<Waker>,
    now: u64,
) -> Result<Option<Sampler>, StartError> {
    let start = |max: &MaxRss| Sampler::start(max.bytes, Arc::clone(waker), now);
    let sampler = config.max_rss.as_ref().map(start).transpose();
    sampler.map_err(cannot("start the thread that looks at memory"))
}

fn assemble(
    loaded: Loaded,
    resolved: Resolved,
    nofile: libc::rlimit,
) -> Result<Primary, StartError> {
    let Loaded { config, settings, origin } = loaded;
    features::subreaper().map_err(|source| StartError::Kernel { what: features::ADOPT, source })?;
    let poll = Poll::new().map_err(cannot("make an epoll"))?;
    let registry = poll.registry();
    let waker = Waker::new(registry, Source::Rescue.token()).map_err(cannot("make a waker"))?;
    let waker = Arc::new(waker);
    let signals = take_signals(registry)?;
    let output = open_output(&config)?;
    let secret = random_token().map_err(cannot("get random bytes"))?;
    let questions =
        Questions::open(&hex(&secret)).map_err(cannot("open the workers' control socket"))?;
    let place = Place::take(&config.name, config.control.as_deref());
    let commands = Commands::new(place, |path| ControlServer::bind(path, registry, CONTROL_BASE));
    let now = sys::monotonic_ns();
    let sampler = start_sampler(&config, &waker, now)?;
    let watcher = start_watcher(&config, &waker)?;
    let mut core = config.core;
    core.limits.waiting_max = waiting_max(nofile.rlim_max);
    let primary = Primary {
        core: Core::new(core, Now(now)),
        now,
        listeners: Slab::new(),
        workers: Workers::default(),
        conns: Slab::with_capacity(accept::ACCEPTS_PER_TURN_MAX),
        reserve: accept::reserve(),
        adoption: Adoption::new(Arc::clone(&waker)),
        rescue: Rescue::start(Arc::clone(&waker)).map_err(cannot("start the rescue thread"))?,
        waker,
        questions,
        checks: Checks::default(),
        posts: Posts::default(),
        signals,
        commands,
        launcher: Launcher::new(&config, resolved, nofile),
        output: Some(output),
        announcer: Announcer::new(now),
        replacing: Replacing::default(),
        versions: Versions::new(origin, settings),
        watcher,
        hands: Hands::new(config.workers.count),
        driving: Driving::default(),
        happenings: Happenings::default(),
        service: Service::of_this_process(now),
        health: Health::new(now, config.care.report),
        _pid_file: None,
        memory: Memory::of_this_process(now),
        meters: Meters::new(now),
        adviser: Adviser::new(now, nofile.rlim_max),
        sampler,
        outcome: None,
        bells_set: false,
        burials: 0,
        burial_at: 0,
        looked_for_holders: WorkerId(0),
        again_at: None,
        ends_at: None,
        bell_wait: BELL_WAIT,
        alarm: Alarm::new().map_err(cannot("make a timer"))?,
        poll,
        config,
    };
    primary
        .watch(&primary.alarm.timer().as_raw_fd(), Source::Alarm)
        .map_err(cannot("watch the timer"))?;
    primary
        .watch(&primary.questions.socket().as_raw_fd(), Source::Questions)
        .map_err(cannot("watch the workers' control socket"))?;
    Ok(primary)
}

fn take_signals(registry: &mio::Registry) -> Result<Signals, StartError> {
    let mut signals = Signals::new(SIGNALS).map_err(cannot("take signals"))?;
    registry
        .register(&mut signals, Source::Signals.token(), mio::Interest::READABLE)
        .map_err(cannot("watch signals"))?;
    Ok(signals)
}

/// Clients that may wait in hand: each is a descriptor, and most of those are for others.
fn waiting_max(descriptors: u64) -> u16 {
    u16::try_from(descriptors / 4).unwrap_or(u16::MAX).clamp(1, WAITING_MAX)
}

/// By feature, not by version: each by using it.
fn check_kernel() -> Result<(), StartError> {
    let [a, b, c, d, ..] = random_token().map_err(cannot("get random bytes"))?;
    channel::name_after([a, b, c, d]);
    for Feature { what, try_it } in features::AT_START {
        try_it().map_err(|source| match source.raw_os_error() {
            // Not the kernel's age: this machine has nothing left to give now.
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                StartError::System { what, source }
            }
            _ => StartError::Kernel { what, source },
        })?;
    }
    Ok(())
}

/// Raises the soft limit of open files to the hard one: also the number of descriptors in flight is
/// bounded by it (unix(7), `ETOOMANYREFS`). Returns what it was, for the workers.
fn raise_nofile() -> io::Result<libc::rlimit> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(libc::rlimit { rlim_cur: soft, rlim_max: hard })
}

/// 128 bits nobody can guess.
///
/// # Errors
/// No /dev/urandom.
pub(super) fn random_token() -> io::Result<[u8; 16]> {
    let mut token = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut token)?;
    Ok(token)
}

impl Primary {
    /// Opens every `-l`. Clients may connect from now on; they wait in the backlog.
    fn declare(&mut self) -> Result<(), StartError> {
        let backlog = i32::try_from(self.config.backlog).unwrap_or(i32::MAX);
        for (place, spec) in self.config.listen.clone().into_iter().enumerate() {
            let policy = self.config.policy_of(&spec);
            let address = spec.public;
            let failed = |error: io::Error| diagnose::bind_error(&address, error);
            let key = match spec.inherited {
                Some(number) => self.take_listener(address.clone(), policy, number),
                None => self.make_listener(address.clone(), policy, Rights::Own),
            };
            let key = key.map_err(&failed)?;
            debug_assert_eq!(key, place, "by its key a listener knows its -l");
            let Some(listener) = self.listeners.get_mut(key) else { continue };
            listener.origin = Origin::Declared;
            let id = listener.id;
            // Under `reuseport` each slot's own socket listens, at its first listen(); that the address is
            // wanted is true from now on.
            if policy != Policy::Reuseport {
                listener.listen(backlog).map_err(&failed)?;
            }
            self.tell(Event::ListenerOpened { listener: id, declared: true, policy });
            self.arm(key);
        }
        // Port 0 has become a number, which workers hear as PORT.
        let bound = self
            .listeners
            .iter()
            .filter(|(_, l)| l.origin == Origin::Declared)
            .map(|(_, l)| l.bound());
        let bound: Vec<ListenAddress> = bound.collect();
        self.launcher.know_addresses(bound);
        Ok(())
    }

    fn exit_code(&self, outcome: Outcome) -> u8 {
        match outcome {
            Outcome::Stopped => 0,
            Outcome::Killed if self.commands.ending == Ending::Killed => 0,
            Outcome::Killed => 130,
            Outcome::NeverStarted | Outcome::AllFailed => 1,
        }
    }
}

/// How workers are started.
#[derive(Debug)]
pub(super) struct Launcher {
    first: Launch,
    /// By the generation that began with it, where a reload read another.
    later: BTreeMap<u32, Launch>,
    nofile: libc::rlimit,
    /// Of all listeners, where none deals.
    policy: Policy,
    ready: ReadyRule,
    uids: [u32; 3],
    queue_depth: u32,
    raw_output: bool,
}

/// What the workers of a generation are.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) resolved: Resolved,
    pub(super) config: Box<RunConfig>,
}

impl Launcher {
    fn new(config: &RunConfig, resolved: Resolved, nofile: libc::rlimit) -> Self {
        let own = nix::unistd::geteuid().as_raw();
        let worker = config.ids.as_ref().map_or(own, |ids| ids.uid.as_raw());
        let depth = u32::from(config.core.queue_limit);
        Self {
            first: Launch { resolved, config: Box::new(config.clone()) },
            later: BTreeMap::new(),
            nofile,
            policy: config.core.policy,
            ready: config.core.ready,
            uids: [own, worker, 0],
            queue_depth: if config.policies().contains(&Policy::Ip) {
                depth.max(IP_QUEUE_MAX)
            } else {
                depth
            },
            raw_output: config.raw_output,
        }
    }

    /// What a worker of this generation is: also one that crashes while a later one is being tried.
    pub(super) fn of(&self, generation: Generation) -> &Launch {
        self.later.range(..=generation.0).next_back().map_or(&self.first, |(_, launch)| launch)
    }

    fn latest(&self) -> &Launch {
        self.later.values().next_back().unwrap_or(&self.first)
    }

    /// From this generation on. What the primary listens on is what it is.
    pub(super) fn begin(&mut self, generation: Generation, mut launch: Launch) {
        launch.config.listen.clone_from(&self.first.config.listen);
        self.later.insert(generation.0, launch);
    }

    /// This generation did not hold, and nobody of it is left.
    pub(super) fn forget(&mut self, generation: Generation) {
        self.later.remove(&generation.0);
    }

    /// Nobody is of an earlier generation than this any more.
    pub(super) fn forget_before(&mut self, generation: Generation) {
        let kept = self.later.split_off(&generation.0.saturating_add(1));
        if let Some((_, last)) = std::mem::replace(&mut self.later, kept).pop_last() {
            self.first = last;
        }
    }

    /// The addresses that `-l` came to.
    fn know_addresses(&mut self, bound: Vec<ListenAddress>) {
        for (spec, address) in self.first.config.listen.iter_mut().zip(bound) {
            spec.public = address;
        }
    }

    /// What is run, for people.
    pub(super) fn title(&self) -> String {
        let command = &self.latest().config.command;
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    /// What a person may want to know of how the program was understood.
    pub(super) fn notes(&self) -> &[String] {
        &self.latest().resolved.notes
    }

    pub(super) fn adapter(&self) -> Adapter {
        self.first.resolved.adapter
    }

    /// Whether a process of this user may speak for a worker.
    pub(super) fn may_ask(&self, uid: u32) -> bool {
        self.uids.contains(&uid)
    }

    /// Connections that a channel must have room for.
    pub(super) const fn queue_depth(&self) -> u32 {
        self.queue_depth
    }

    /// `--ready notify`: a datagram socket of its own for each worker (sd_notify(3)), and its name. The
    /// name is not the token: everybody can read the abstract names.
    pub(super) fn notify_socket(&self) -> io::Result<Option<(OwnedFd, String)>> {
        if self.ready != ReadyRule::Notify {
            return Ok(None);
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        let name = format!("croupier-notify/{}/{}", std::process::id(), hex(&random_token()?));
        // Everybody can read the name; who speaks, the kernel says.
        setsockopt(&socket, sockopt::PassCred, &true)?;
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        Ok(Some((socket, name)))
    }

    /// What a worker inherits, because it will not ask for it: with `listen-fds` the sockets of every
    /// `-l`, with `fd` the channel of the one.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub(super) fn inheritance(
        &self,
        worker: &mut Worker,
        listeners: &mut Slab<Listener>,
    ) -> io::Result<Vec<OwnedFd>> {
        let backlog = i32::try_from(self.first.config.backlog).unwrap_or(i32::MAX);
        let mut inherit = Vec::new();
        let declared = listeners.iter_mut().filter(|(_, l)| l.origin == Origin::Declared);
        for (_, listener) in declared.take(INHERIT_MAX) {
            match self.adapter() {
                Adapter::Preload | Adapter::Shim => {}
                Adapter::Fd => {
                    let address = address::raw(&listener.bound());
                    let number = worker.open_channel(listener.id, 0, self.queue_depth, address)?;
                    let (channel, _) = worker.channel(number).ok_or(io::ErrorKind::NotFound)?;
                    inherit.push(sys::duplicate(channel.receive_end())?);
                }
                Adapter::ListenFds => {
                    worker.note_socket(listener.id);
                    inherit.push(match self.policy {
                        Policy::Reuseport => {
                            sys::duplicate(listener.slot_socket(worker.slot, backlog)?)?
                        }
                        Policy::Least | Policy::Rr | Policy::Ip | Policy::Shared => {
                            listener.shared_socket()?
                        }
                    });
                }
            }
        }
        Ok(inherit)
    }

    /// Forks one worker.
    ///
    /// # Errors
    /// fork(2)'s errno, EMFILE and the like.
    pub(super) fn start(
        &self,
        worker: &Worker,
        generation: Generation,
        ask: &str,
        inherit: Vec<OwnedFd>,
        report: (PipeReader, PipeWriter),
    ) -> io::Result<(u32, Forked)> {
        let Launch { resolved, config } = self.of(generation);
        let (slot, token, id) = (worker.slot, &worker.token, worker.id);
        let place = adapter::Place {
            slot: slot.0,
            worker: id.0,
            generation: generation.0,
            control: format!("{}@{ask}", hex(token)),
        };
        let mut environment = adapter::spawn_env(config, resolved, &place);
        if let Some((_, name)) = &worker.notify {
            environment.push(("NOTIFY_SOCKET".into(), format!("@{name}").into()));
        }
        let mut arguments: Vec<OsString> =
            resolved.argv.iter().map(|word| expand(word, slot.0, id.0)).collect();
        let mut program = resolved.program.clone();
        match resolved.adapter {
            Adapter::Preload | Adapter::Shim => {}
            Adapter::Fd => environment.push((CHANNEL_VAR.into(), FIRST_INHERITED.into())),
            Adapter::ListenFds => {
                environment.push(("LISTEN_FDS".into(), inherit.len().to_string().into()));
                (program, arguments) = with_listen_pid(program, arguments);
            }
        }
        let handed = !self.policy.by_hand();
        let silent = self.ready == ReadyRule::Start
            && config.listen.is_empty()
            && matches!(resolved.adapter, Adapter::Preload | Adapter::Shim);
        let setup = ChildSetup {
            nofile: self.nofile,
            ids: config.ids.as_ref().map(|ids| {
                let groups = ids.groups.iter().map(|group| group.as_raw()).collect();
                (ids.uid.as_raw(), ids.gid.as_raw(), groups)
            }),
            // Without a channel nothing else tells the worker that the primary is gone: under these policies,
            // and where it was said that the program never listens.
            death_signal: (handed || silent).then_some(config.stop_signal as i32),
            inherit: inherit.iter().map(AsRawFd::as_raw_fd).collect(),
            umask: config.care.umask,
            folder: config.care.folder.as_deref().map(c_path).transpose()?,
        };
        let raw_output = self.raw_output;
        let start =
            process::Start { program, arguments, environment, setup, raw_output, generation };
        process::start(start, report)
    }

    /// Why a child could not become its program, for people.
    pub(super) fn why_not(&self, forked: &Forked, error: io::Error) -> io::Error {
        why_not_started(&self.of(forked.generation).config, error, &forked.program)
    }
}

/// Says of an errno that the child came to where it was: execve(2) and chdir(2) have the same.
fn why_not_started(config: &RunConfig, error: io::Error, program: &Path) -> io::Error {
    if let Some(folder) = config.care.folder.as_ref().filter(|folder| !folder.is_dir()) {
        let text = format!("--chdir {}: {error}", folder.display());
        return io::Error::new(error.kind(), text);
    }
    if error.kind() == io::ErrorKind::PermissionDenied
        && let Some(ids) = &config.ids
        && let Some(barrier) = adapter::closed_to(program, ids)
    {
        let user = ids.user_name.clone().unwrap_or_else(|| ids.uid.to_string());
        let text = format!(
            "user {user} may not pass {}; open it, or put the program where that user can",
            barrier.display()
        );
        return io::Error::new(error.kind(), text);
    }
    error
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Where a worker of `--adapter fd` finds its channel.
const CHANNEL_VAR: &str = "CROUPIER_CHANNEL_FD";
/// The number of the first inherited descriptor ([`ChildSetup::inherit`]).
const FIRST_INHERITED: &str = "3";

/// `LISTEN_PID` must be the program's own number, which only the child knows (sd_listen_fds(3)).
fn with_listen_pid(program: PathBuf, arguments: Vec<OsString>) -> (PathBuf, Vec<OsString>) {
    let script = "LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut wrapped: Vec<OsString> = ["sh", "-c", script].map(OsString::from).into();
    wrapped.push(program.into());
    wrapped.extend(arguments.into_iter().skip(1));
    ("/bin/sh".into(), wrapped)
}

/// For messages: where clients connect.
pub(super) fn addresses(listeners: &Slab<Listener>) -> String {
    let open = listeners.iter().filter(|(_, listener)| listener.phase != Phase::Bound);
    let all: Vec<String> = open.map(|(_, listener)| listener.to_string()).collect();
    if all.is_empty() { "no address".into() } else { all.join(", ") }
}
