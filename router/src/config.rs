//! What a run is to be: one validated [`RunConfig`].
//!
//! Owns: the types of the configuration, the parsers of single values, and the checks between
//! values. Promises: whoever holds a `RunConfig` need not doubt any of it; every refusal names the
//! flag, the value and what would be right. Never does: print, or change anything of the process.

use std::collections::hash_map::RandomState;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use croupier_core::config::{
    Config, ExitCodes, Limits, Policy, ProbeRule, ReadyRule, RestartPolicy,
};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};

use crate::cli::run::RunArgs;
use crate::name;

/// Most slots that one primary has.
pub const WORKERS_MAX: u16 = 1024;
/// Largest `--queue-limit`: what fits a channel's send buffer on hosts with large ones.
pub const QUEUE_LIMIT_MAX: u16 = 4096;

/// `--drain-timeout` where it is not given. What gunicorn's users have. At a reload nobody else counts
/// the seconds, and for ever, which is the default of `HAProxy` and nginx, piles up old generations.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest path of `--ready-probe`, in bytes.
const PROBE_PATH_MAX: usize = 1024;

/// Everything that `croupier run` was told, validated.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// The workers' argv, with `{slot}` and `{id}` still in it (see [`expand`]). Not empty.
    pub command: Vec<OsString>,
    /// Every `-l`, in order. Empty: whatever the program listens on.
    pub listen: Vec<ListenSpec>,
    /// How many workers, and why so many.
    pub workers: Workers,
    /// All that concerns dealing and supervision.
    pub core: Config,
    /// `--ready-probe`.
    pub ready_probe: Option<ReadyProbe>,
    /// `--adapter`.
    pub adapter: AdapterChoice,
    /// The wanted name; the primary may get `NAME-2` when it is taken.
    pub name: String,
    /// `--control`: the control socket's path instead of `<directory>/<name>.sock`.
    pub control: Option<PathBuf>,
    /// `--user` and `--group`, resolved. `None`: workers run as the primary does.
    pub ids: Option<Ids>,
    /// Smallest backlog of the listeners that the primary makes.
    pub backlog: u32,
    /// What asks a worker to end.
    pub stop_signal: Signal,
    /// How output and log lines look.
    pub log_format: LogFormat,
    /// Workers inherit stdout and stderr as they are.
    pub raw_output: bool,
    /// `--preload-path`: where `libcroupier_preload.so` is.
    pub preload_path: Option<PathBuf>,
    /// `--env`, with `{slot}` and `{id}` still in the values.
    pub env: Vec<(OsString, OsString)>,
    /// `--max-rss`.
    pub max_rss: Option<MaxRss>,
}

/// How much memory a worker may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxRss {
    /// Its family together.
    pub bytes: u64,
    /// For the first lines of output: how `auto` came to it; empty for a plain number.
    pub why: String,
}

/// `--max-rss` as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxRssArg {
    /// A share of what there is.
    Auto,
    /// This many.
    Bytes(u64),
}

/// `--shed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// The newest clients are reset.
    Reset,
}

/// One `-l`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenSpec {
    /// Where clients connect.
    pub public: ListenAddress,
    /// Whose listen() is dealt these clients, when that is another address.
    pub program: Option<ProgramAddress>,
}

/// An address that the primary listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP.
    Tcp {
        /// The address; port 0 = the kernel chooses.
        address: SocketAddr,
        /// IPv6 and IPv4 by one socket (`:PORT` and `[::]:PORT`).
        dual_stack: bool,
    },
    /// A Unix socket's path.
    Unix(PathBuf),
}

/// The address that the program itself listens on (`-l PUBLIC=PROGRAM`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramAddress {
    /// This port, on any address.
    Port(u16),
    /// Exactly this.
    Tcp(SocketAddr),
    /// This Unix path.
    Unix(PathBuf),
}

/// How many workers, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// Slots: 1 to [`WORKERS_MAX`].
    pub count: u16,
    /// For the first line of output: `auto: 4 CPUs`, `WEB_CONCURRENCY`, or empty for a plain `-w`.
    pub why: String,
    /// The number came from `WORKERS` or `WEB_CONCURRENCY`: workers must not multiply by it again.
    pub from_platform: bool,
}

/// `--adapter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterChoice {
    /// Look at the program.
    Auto,
    /// `LD_PRELOAD`.
    Preload,
    /// The program links `croupier-worker`.
    Shim,
    /// `LISTEN_FDS`; policies `shared` and `reuseport` only.
    ListenFds,
    /// The program receives descriptors by itself, on an inherited channel.
    Fd,
}

/// Who the workers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: Uid,
    /// Group.
    pub gid: Gid,
    /// Supplementary groups.
    pub groups: Vec<Gid>,
    /// `USER` and `LOGNAME`; `None` for a number without a name, or when only `--group` was given.
    pub user_name: Option<String>,
    /// `HOME`, as [`Self::user_name`].
    pub home: Option<PathBuf>,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: `[w2] line`.
    Text,
    /// One JSON object per line.
    Json,
}

/// `-w` as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkersArg {
    /// One for each CPU.
    Auto,
    /// This many.
    Count(u16),
    /// One for each CPU but these, at least 1.
    AllBut(u16),
    /// This many for each CPU.
    Times(u16),
}

/// `--ready-probe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyProbe {
    /// GET this path; the answer must be good.
    Http(String),
    /// Connect; the connection must not be reset.
    Tcp,
}

impl fmt::Display for ReadyProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(path) => write!(f, "GET {path}"),
            Self::Tcp => write!(f, "a connection"),
        }
    }
}

/// `--max-surge` as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surge {
    /// This many.
    Count(u16),
    /// This share of the workers.
    Percent(u8),
}

impl Surge {
    /// How many of `workers` that is: at least 1.
    #[must_use]
    pub fn of(self, workers: u16) -> u16 {
        let share = |percent| (u32::from(workers) * u32::from(percent)).div_ceil(100);
        let count = match self {
            Self::Count(count) => count,
            Self::Percent(percent) => u16::try_from(share(percent)).unwrap_or(u16::MAX),
        };
        count.max(1)
    }
}

/// Why a configuration is refused: usage errors all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that the parser could not judge alone.
    #[error("{flag} {value}: {why}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// Two settings that exclude each other.
    #[error("{0}")]
    Conflict(String),
}

impl ConfigError {
    fn value(flag: &'static str, value: impl fmt::Display, why: impl Into<String>) -> Self {
        Self::Value { flag, value: value.to_string(), why: why.into() }
    }
}

/// What the configuration takes from the world, so that tests can bring their own.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// CPUs that this process may use, by affinity and cgroup quota.
    pub cpus: u16,
    /// CPUs that the machine has online, to explain the number above.
    pub cpus_online: u16,
    /// `WORKERS`.
    pub workers: Option<String>,
    /// `WEB_CONCURRENCY`.
    pub web_concurrency: Option<String>,
    /// `NODE_CLUSTER_SCHED_POLICY`.
    pub node_sched_policy: Option<String>,
    /// The kernel's largest backlog.
    pub somaxconn: u32,
    /// Bytes of memory, by control group and machine.
    pub memory: Option<u64>,
}

impl Surroundings {
    /// Looks at the process and the machine.
    #[must_use]
    pub fn of_this_process() -> Self {
        let narrow = |count: usize| u16::try_from(count).unwrap_or(u16::MAX).max(1);
        // std counts the affinity mask and cuts it to the cgroup's CPU quota, v1 and v2.
        let cpus = std::thread::available_parallelism().map_or(1, |count| narrow(count.get()));
        let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN)
            .ok()
            .flatten()
            .and_then(|count| usize::try_from(count).ok())
            .map_or(cpus, narrow);
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            cpus,
            cpus_online: online,
            workers: var("WORKERS"),
            web_concurrency: var("WEB_CONCURRENCY"),
            node_sched_policy: var("NODE_CLUSTER_SCHED_POLICY"),
            somaxconn: std::fs::read_to_string("/proc/sys/net/core/somaxconn")
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(4096),
            memory: crate::memory::available(),
        }
    }
}

impl RunConfig {
    /// Checks what single values could not show, and fills in what was not given.
    ///
    /// # Errors
    /// [`ConfigError`]: a usage error, to be printed as it is.
    pub fn new(args: RunArgs, around: &Surroundings) -> Result<Self, ConfigError> {
        let mut listen = Vec::new();
        for one in args.listen.iter().flat_map(|value| value.split(',')) {
            let parsed = parse_listen(one).map_err(|why| ConfigError::value("-l", one, why))?;
            if listen.contains(&parsed) {
                return Err(ConfigError::value("-l", one, "given twice"));
            }
            listen.push(parsed);
        }
        let name = match &args.name {
            Some(name) => name.clone(),
            None => name::derive(&args.command),
        };
        let policy = choose_policy(&args, around, &listen)?;
        let workers = choose_workers(args.workers, around)?;
        let core = core_config(&args, policy, &workers, &name)?;
        let max_rss = choose_max_rss(args.max_rss, &workers, around)?;
        let mut env = Vec::new();
        for pair in args.env.iter().flat_map(|value| value.as_bytes().split(|b| *b == b'\n')) {
            env.push(parse_env(pair)?);
        }
        Ok(Self {
            command: args.command,
            listen,
            workers,
            core,
            ready_probe: args.ready_probe,
            adapter: args.adapter,
            name,
            control: args.control,
            ids: resolve_ids(args.user.as_deref(), args.group.as_deref())?,
            backlog: args.backlog.unwrap_or(around.somaxconn),
            stop_signal: args.stop_signal,
            log_format: args.log_format,
            raw_output: args.raw_output,
            preload_path: args.preload_path,
            env,
            max_rss,
        })
    }
}

fn core_config(
    args: &RunArgs,
    policy: Policy,
    workers: &Workers,
    name: &str,
) -> Result<Config, ConfigError> {
    if args.sticky_bound.is_some() && policy != Policy::Ip {
        return Err(ConfigError::Conflict(format!(
            "--sticky-bound limits sticky clients, and -p {} has none; add -p ip",
            policy_name(policy)
        )));
    }
    if args.ready_probe.is_some() {
        match policy {
            Policy::Least | Policy::Rr | Policy::Ip => {}
            Policy::Shared | Policy::Reuseport => {
                return Err(ConfigError::Conflict(format!(
                    "--ready-probe deals a connection to the new worker, and under -p {} workers \
                     accept by themselves; use -p least, rr or ip, or leave it out",
                    policy_name(policy)
                )));
            }
        }
    }
    let limits = choose_limits(args, policy)?;
    let ready = match (args.ready, args.adapter) {
        (Some(ready), _) => ready,
        // Nothing tells when a program listens on what it inherited.
        (None, AdapterChoice::ListenFds | AdapterChoice::Fd) => ReadyRule::Start,
        (None, AdapterChoice::Auto | AdapterChoice::Preload | AdapterChoice::Shim) => {
            ReadyRule::Listen
        }
    };
    Ok(Config {
        slots: workers.count,
        policy,
        queue_limit: args.queue_limit,
        max_active: args.max_active,
        limits,
        stall_after: args.stall_after,
        slow_start: args.slow_start,
        ready,
        ready_timeout: args.ready_timeout,
        ready_probe: match args.ready_probe {
            Some(ReadyProbe::Http(_) | ReadyProbe::Tcp) => ProbeRule::Answer,
            None => ProbeRule::None,
        },
        drain_timeout: args
            .drain_timeout
            .unwrap_or_else(|| args.graceful_timeout.max(DRAIN_TIMEOUT)),
        graceful_timeout: args.graceful_timeout,
        kill_after: args.kill_after,
        stop_signal_first: args.stop_signal_first,
        max_surge: args.max_surge.of(workers.count),
        soak: args.soak,
        max_draining: args.max_draining.unwrap_or_else(|| workers.count.saturating_mul(2)),
        sticky_bound: args.sticky_bound,
        sticky_key: sticky_key(args.sticky_seed.as_deref().unwrap_or(name)),
        restart: RestartPolicy {
            base: Duration::from_millis(100),
            max: Duration::from_secs(15),
            budget: 16,
            min_uptime: args.min_uptime,
            first_tries: 3,
            stay: args.stay,
        },
        stop_exit_codes: args
            .stop_exit_codes
            .iter()
            .fold(ExitCodes::default(), |codes, code| codes.with(*code)),
        // std's keys for hash maps are the kernel's random numbers.
        seed: RandomState::new().build_hasher().finish(),
    })
}

fn choose_limits(args: &RunArgs, policy: Policy) -> Result<Limits, ConfigError> {
    let hands_off = match policy {
        Policy::Least | Policy::Rr | Policy::Ip => true,
        Policy::Shared | Policy::Reuseport => false,
    };
    // Not so --max-lifetime and --max-rss: those need no dealing.
    let needs_dealing = [
        ("--hung-timeout", !args.hung_timeout.is_zero()),
        ("--max-connections", args.max_connections.is_some()),
        ("--max-total", args.max_total.is_some()),
        ("--max-queue-wait", args.max_queue_wait.is_some()),
    ];
    if let Some((flag, _)) = needs_dealing.iter().find(|(_, given)| *given && !hands_off) {
        return Err(ConfigError::Conflict(format!(
            "{flag} counts what is dealt, and -p {} deals nothing; use least, rr or ip",
            policy_name(policy)
        )));
    }
    if args.max_total.is_some() && args.adapter == AdapterChoice::Fd {
        return Err(ConfigError::Conflict(
            "--max-total needs to know what is closed, and --adapter fd does not tell; use --queue-limit"
                .into(),
        ));
    }
    let zero = |flag, why: &str| Err(ConfigError::value(flag, "0", why));
    if args.max_lifetime.is_some_and(|time| time.is_zero()) {
        return zero("--max-lifetime", "leave it away for workers that may live for ever");
    }
    if args.max_queue_wait.is_some_and(|time| time.is_zero()) {
        return zero("--max-queue-wait", "everybody would be reset; leave it away to let all wait");
    }
    match args.shed {
        Some(Shed::Reset) | None => {}
    }
    Ok(Limits {
        hung_timeout: args.hung_timeout,
        max_connections: args.max_connections,
        max_lifetime: args.max_lifetime,
        max_total: args.max_total,
        max_queue_wait: args.max_queue_wait,
        ..Limits::NONE
    })
}

/// The share of the memory that `--max-rss auto` gives to the workers, in percent: the rest is for the
/// primary, page cache and bursts.
const RSS_SHARE: u64 = 80;

fn choose_max_rss(
    given: Option<MaxRssArg>,
    workers: &Workers,
    around: &Surroundings,
) -> Result<Option<MaxRss>, ConfigError> {
    match (given, around.memory) {
        (None, _) => Ok(None),
        (Some(MaxRssArg::Bytes(bytes)), _) => Ok(Some(MaxRss { bytes, why: String::new() })),
        (Some(MaxRssArg::Auto), Some(memory)) => {
            // One more than there are slots: the one that starts beside the one that is too large.
            let bytes = memory / 100 * RSS_SHARE / (u64::from(workers.count) + 1);
            let why = format!(
                "auto: {} for each worker: {RSS_SHARE}% of {}, divided by {} workers and 1 that starts \
                 beside",
                bytes_text(bytes),
                bytes_text(memory),
                workers.count
            );
            Ok(Some(MaxRss { bytes, why }))
        }
        (Some(MaxRssArg::Auto), None) => Err(ConfigError::value(
            "--max-rss",
            "auto",
            "/proc/meminfo cannot be read; say how much, as in 512M",
        )),
    }
}

fn choose_policy(
    args: &RunArgs,
    around: &Surroundings,
    listen: &[ListenSpec],
) -> Result<Policy, ConfigError> {
    let policy = match (args.policy, args.adapter) {
        (Some(policy), _) => policy,
        // The only other one that listen-fds can serve must be asked for.
        (None, AdapterChoice::ListenFds) => Policy::Shared,
        (
            None,
            AdapterChoice::Auto | AdapterChoice::Preload | AdapterChoice::Shim | AdapterChoice::Fd,
        ) => match around.node_sched_policy.as_deref() {
            Some("none") => Policy::Shared,
            Some(_) | None => Policy::Least,
        },
    };
    let hands_off = match policy {
        Policy::Least | Policy::Rr | Policy::Ip => true,
        Policy::Shared | Policy::Reuseport => false,
    };
    if args.adapter == AdapterChoice::ListenFds {
        if hands_off {
            return Err(ConfigError::Conflict(format!(
                "--adapter listen-fds gives workers the listening socket itself, so -p {} cannot \
                 deal; use -p shared or -p reuseport",
                policy_name(policy)
            )));
        }
        if listen.is_empty() {
            return Err(ConfigError::Conflict(
                "--adapter listen-fds needs to know the address: add -l, as in -l :8080".into(),
            ));
        }
    }
    if args.adapter == AdapterChoice::Fd && (listen.len() != 1 || !hands_off) {
        return Err(ConfigError::Conflict(
            "--adapter fd gives each worker one channel: it needs exactly one -l, as in -l :8080, and \
             a policy that deals: least, rr or ip"
                .into(),
        ));
    }
    let unix = listen.iter().any(|spec| matches!(spec.public, ListenAddress::Unix(_)));
    if policy == Policy::Reuseport && unix {
        return Err(ConfigError::Conflict(
            "-p reuseport is for TCP: the kernel does not spread a Unix socket; use -p shared"
                .into(),
        ));
    }
    Ok(policy)
}

fn choose_workers(
    given: Option<WorkersArg>,
    around: &Surroundings,
) -> Result<Workers, ConfigError> {
    let platform = [("WORKERS", &around.workers), ("WEB_CONCURRENCY", &around.web_concurrency)]
        .into_iter()
        .find_map(|(name, value)| value.as_ref().map(|value| (name, value)));
    let (arg, variable) = match (given, platform) {
        (Some(arg), _) => (arg, None),
        (None, Some((name, value))) => {
            (parse_workers(value).map_err(|why| ConfigError::value(name, value, why))?, Some(name))
        }
        (None, None) => (WorkersArg::Auto, None),
    };
    let cpus = around.cpus;
    let plural = if cpus == 1 { "" } else { "s" };
    let of = if cpus < around.cpus_online {
        format!("{cpus} of {} CPUs, by affinity or CPU quota", around.cpus_online)
    } else {
        format!("{cpus} CPU{plural}")
    };
    let (count, why) = match arg {
        WorkersArg::Auto => (cpus, format!("auto: {of}")),
        WorkersArg::Count(count) => (count, String::new()),
        WorkersArg::AllBut(spare) => (cpus.saturating_sub(spare).max(1), format!("-{spare}: {of}")),
        WorkersArg::Times(factor) => (cpus.saturating_mul(factor), format!("{factor}x: {of}")),
    };
    let why = match (variable, why.is_empty()) {
        (None, _) => why,
        (Some(name), true) => format!("{name}={count}"),
        (Some(name), false) => format!("{name}, {why}"),
    };
    if count > WORKERS_MAX {
        let why = format!("{count} workers are more than croupier's limit of {WORKERS_MAX}");
        return Err(ConfigError::value(variable.unwrap_or("-w"), workers_text(arg), why));
    }
    Ok(Workers { count, why, from_platform: variable.is_some() })
}

fn workers_text(arg: WorkersArg) -> String {
    match arg {
        WorkersArg::Auto => "auto".into(),
        WorkersArg::Count(count) => count.to_string(),
        WorkersArg::AllBut(spare) => format!("-{spare}"),
        WorkersArg::Times(factor) => format!("{factor}x"),
    }
}

/// 128-bit FNV-1a of the seed. The key must be the same on every machine and in every release,
/// which std's hasher does not promise; it must keep the seed's entropy, which FNV does for seeds
/// up to 16 bytes and nearly for longer ones. That the key cannot be found out by clients is the
/// work of the keyed hash in the core, not of this one, so no cryptographic digest is needed.
fn sticky_key(seed: &str) -> [u64; 2] {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in seed.bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
    }
    let [low, high] = [hash, hash >> 64].map(|half| half & u128::from(u64::MAX));
    [high, low].map(|half| u64::try_from(half).unwrap_or(u64::MAX))
}

fn resolve_ids(user: Option<&str>, group: Option<&str>) -> Result<Option<Ids>, ConfigError> {
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    let found_user = user.map(find_user).transpose()?;
    let found_group = group.map(find_group).transpose()?;
    let current = (nix::unistd::getuid(), nix::unistd::getgid());
    let (uid, user_gid, account) = found_user.unwrap_or((current.0, current.1, None));
    let gid = found_group.unwrap_or(user_gid);
    if !geteuid().is_root() && (uid, gid) != current {
        let (flag, value) = if user.is_some() { ("--user", user) } else { ("--group", group) };
        let why = "only root can start workers as somebody else; run as root, or without it";
        return Err(ConfigError::value(flag, value.unwrap_or_default(), why));
    }
    let groups = account
        .as_ref()
        .and_then(|account| CString::new(account.name.as_bytes()).ok())
        .and_then(|name| getgrouplist(&name, gid).ok())
        .unwrap_or_else(|| vec![gid]);
    let (user_name, home) = account.map(|account| (account.name, account.dir)).unzip();
    Ok(Some(Ids { uid, gid, groups, user_name, home }))
}

fn find_user(text: &str) -> Result<(Uid, Gid, Option<User>), ConfigError> {
    let account = match text.parse::<u32>() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(text),
    };
    match (account, text.parse::<u32>()) {
        (Ok(Some(account)), _) => Ok((account.uid, account.gid, Some(account))),
        // A number needs no entry in the user database (containers).
        (Ok(None) | Err(_), Ok(number)) => Ok((Uid::from_raw(number), Gid::from_raw(number), None)),
        (Ok(None), Err(_)) => {
            Err(ConfigError::value("--user", text, "no such user; see getent passwd"))
        }
        (Err(error), Err(_)) => {
            Err(ConfigError::value("--user", text, format!("cannot look it up: {error}")))
        }
    }
}

fn find_group(text: &str) -> Result<Gid, ConfigError> {
    if let Ok(number) = text.parse::<u32>() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(ConfigError::value("--group", text, "no such group; see getent group")),
        Err(error) => {
            Err(ConfigError::value("--group", text, format!("cannot look it up: {error}")))
        }
    }
}

fn parse_env(pair: &[u8]) -> Result<(OsString, OsString), ConfigError> {
    let os = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    match pair.iter().position(|byte| *byte == b'=') {
        Some(at) if at > 0 => {
            let (name, value) = pair.split_at(at);
            Ok((os(name), os(value.get(1..).unwrap_or_default())))
        }
        Some(_) | None => Err(ConfigError::value(
            "--env",
            String::from_utf8_lossy(pair),
            "must be NAME=VALUE, as in --env MODE=fast",
        )),
    }
}

/// `template` with `{slot}` and `{id}` replaced.
#[must_use]
pub fn expand(template: &OsStr, slot: u16, id: u32) -> OsString {
    let mut out = Vec::with_capacity(template.len());
    let mut rest = template.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"{slot}") {
            out.extend_from_slice(slot.to_string().as_bytes());
            rest = after;
        } else if let Some(after) = rest.strip_prefix(b"{id}") {
            out.extend_from_slice(id.to_string().as_bytes());
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(out)
}

/// The word for a policy, as in `-p` and the status.
#[must_use]
pub const fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Least => "least",
        Policy::Rr => "rr",
        Policy::Ip => "ip",
        Policy::Shared => "shared",
        Policy::Reuseport => "reuseport",
    }
}

/// Parses `-p`.
///
/// # Errors
/// What the value should have been.
pub fn parse_policy(text: &str) -> Result<Policy, String> {
    const ALL: [Policy; 5] =
        [Policy::Least, Policy::Rr, Policy::Ip, Policy::Shared, Policy::Reuseport];
    if let Some(policy) = ALL.into_iter().find(|policy| policy_name(*policy) == text) {
        return Ok(policy);
    }
    let address = text.trim_start_matches(':');
    if address.parse::<u16>().is_ok() {
        return Err(format!("that is --policy; a port is -l :{address}"));
    }
    if parse_listen(text).is_ok() {
        return Err(format!("that is --policy; an address is -l {text}"));
    }
    Err("the policies are least, rr, ip, shared and reuseport".into())
}

/// Parses `-w`.
///
/// # Errors
/// What the value should have been.
pub fn parse_workers(text: &str) -> Result<WorkersArg, String> {
    let number = |digits: &str| match digits.parse::<u16>() {
        Ok(0) => Err("there must be at least 1 worker; for one per CPU say auto".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => {
            Err("say a number, auto (one per CPU), -N (all CPUs but N) or Nx (N per CPU)"
                .to_owned())
        }
    };
    if let "auto" | "max" = text {
        Ok(WorkersArg::Auto)
    } else if let Some(spare) = text.strip_prefix('-') {
        number(spare).map(WorkersArg::AllBut)
    } else if let Some(factor) = text.strip_suffix(['x', 'X']) {
        number(factor).map(WorkersArg::Times)
    } else {
        number(text).map(WorkersArg::Count)
    }
}

/// Parses one of `--stop-exit-codes`.
///
/// # Errors
/// What the value should have been.
pub fn parse_exit_code(text: &str) -> Result<u8, String> {
    text.trim().parse().map_err(|_| {
        "exit statuses are numbers from 0 to 255, as in 0,3; an end by a signal is always a crash"
            .into()
    })
}

/// Parses the number of a slot: `2`, or `w2` as the status shows it.
///
/// # Errors
/// What the value should have been.
pub fn parse_slot(text: &str) -> Result<u16, String> {
    text.strip_prefix('w').unwrap_or(text).parse().map_err(|_| {
        "a slot is a number, as in 2 or w2 (croupier status shows them); a name goes to -n, as in \
         -n web"
            .into()
    })
}

/// Parses `--max-surge`.
///
/// # Errors
/// What the value should have been.
pub fn parse_surge(text: &str) -> Result<Surge, String> {
    let why = "say how many workers, as in 2, or a share of them, from 1% to 100%";
    let surge = match text.strip_suffix('%') {
        Some(percent) => percent.parse().ok().filter(|p| (1..=100).contains(p)).map(Surge::Percent),
        None => text.parse().ok().filter(|count| *count > 0).map(Surge::Count),
    };
    surge.ok_or_else(|| why.to_owned())
}

/// Parses `--ready-probe`: `http:/PATH` (also `http:///PATH`) or `tcp`.
///
/// # Errors
/// What the value should have been.
pub fn parse_probe(text: &str) -> Result<ReadyProbe, String> {
    if text == "tcp" {
        return Ok(ReadyProbe::Tcp);
    }
    let Some(rest) = text.strip_prefix("http:") else {
        return Err("a probe is http:PATH, as in http:/healthz, or tcp".into());
    };
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err("the request goes to the new worker itself, so there is no host: say \
                    http:/healthz, with the path that is to be asked for"
            .into());
    }
    if path.len() > PROBE_PATH_MAX || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "a path has at most {PROBE_PATH_MAX} visible ASCII characters; write others as %20"
        ));
    }
    Ok(ReadyProbe::Http(path.to_owned()))
}

/// Parses one `-l`: `PUBLIC` or `PUBLIC=PROGRAM`.
///
/// # Errors
/// What the value should have been.
pub fn parse_listen(text: &str) -> Result<ListenSpec, String> {
    let (public, program) = match text.split_once('=') {
        Some((public, program)) => (public, Some(program)),
        None => (text, None),
    };
    let public = match parse_address(public)? {
        Parsed::Port(port) => any_address(port),
        Parsed::Tcp(address) => {
            let dual_stack = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            ListenAddress::Tcp { address, dual_stack }
        }
        Parsed::Unix(path) => ListenAddress::Unix(path),
    };
    let program = match program.map(parse_address).transpose()? {
        None => None,
        Some(Parsed::Port(0)) => return Err("the program's port cannot be 0".into()),
        Some(Parsed::Tcp(address)) if address.port() == 0 => {
            return Err("the program's port cannot be 0".into());
        }
        Some(Parsed::Port(port)) => Some(ProgramAddress::Port(port)),
        Some(Parsed::Tcp(address)) => Some(ProgramAddress::Tcp(address)),
        Some(Parsed::Unix(path)) => Some(ProgramAddress::Unix(path)),
    };
    Ok(ListenSpec { public, program })
}

const fn any_address(port: u16) -> ListenAddress {
    let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    ListenAddress::Tcp { address, dual_stack: true }
}

enum Parsed {
    Port(u16),
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Longest path of a Unix socket: `sun_path` less its terminating zero.
const UNIX_PATH_MAX: usize = 107;

fn parse_address(text: &str) -> Result<Parsed, String> {
    if let Some(path) = text.strip_prefix("unix:").or_else(|| text.contains('/').then_some(text)) {
        return match path.len() {
            0 => Err("the path of the Unix socket is missing, as in unix:/run/app.sock".into()),
            1..=UNIX_PATH_MAX => Ok(Parsed::Unix(PathBuf::from(path))),
            long => {
                Err(format!("{long} bytes are too long for a Unix socket's path ({UNIX_PATH_MAX})"))
            }
        };
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Parsed::Tcp(address));
    }
    let bare = text.strip_prefix(':').or_else(|| text.strip_prefix("*:")).unwrap_or(text);
    if !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit()) {
        return bare
            .parse()
            .map(Parsed::Port)
            .map_err(|_| format!("{bare} is no port; the largest is 65535"));
    }
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(Parsed::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
    }
    if text.parse::<IpAddr>().is_ok() {
        let hint =
            if text.contains(':') { format!("[{text}]:8080") } else { format!("{text}:8080") };
        return Err(format!("the port is missing, as in {hint}"));
    }
    Err("an address is :8080, 127.0.0.1:8080, [::1]:8080 or unix:/run/app.sock; names are not \
         looked up"
        .into())
}

/// Parses a time such as `100ms`, `8s`, `1m30s`, or `0`.
///
/// # Errors
/// What the value should have been.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text != "0" {
        return Err(format!("the unit is missing: {text}s or {text}ms?"));
    }
    humantime::parse_duration(text)
        .map_err(|_| "a time is a number with a unit, such as 100ms, 8s or 1m30s".into())
}

/// Parses `--max-rss`: `512M`, `2G`, a number of bytes, or `auto`.
///
/// # Errors
/// What the value should have been.
pub fn parse_max_rss(text: &str) -> Result<MaxRssArg, String> {
    if text == "auto" {
        return Ok(MaxRssArg::Auto);
    }
    let units = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    let upper = text.to_ascii_uppercase();
    let plain = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let (digits, shift) = units
        .into_iter()
        .find_map(|(unit, shift)| Some((plain.strip_suffix(unit)?, shift)))
        .unwrap_or((plain, 0));
    let number = digits.parse::<u64>().ok().filter(|number| *number > 0);
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .map(MaxRssArg::Bytes)
        .ok_or_else(|| "say how much memory, as in 512M or 2G, or auto".to_owned())
}

/// A number of bytes as people write it: `1.5G`.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let found = units.into_iter().find(|(shift, _)| bytes >> shift > 0);
    match found {
        Some((shift, unit)) => {
            let tenths = (bytes >> (shift - 10)) * 10 / 1024;
            format!("{}.{}{unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

/// Parses `--shed`.
///
/// # Errors
/// What the value should have been.
pub fn parse_shed(text: &str) -> Result<Shed, String> {
    if text == "reset" { Ok(Shed::Reset) } else { Err("clients can be shed by reset".into()) }
}

/// Parses `--sticky-bound` into thousandths.
///
/// # Errors
/// What the value should have been.
pub fn parse_bound(text: &str) -> Result<u32, String> {
    let why = "say how many times the average load a slot may have, from 1 to 1000, as in 1.25";
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if part.len() > 3 || !digits(part) || !digits(whole) {
        return Err(why.into());
    }
    let thousandths = format!("{whole}{part:0<3}").parse::<u32>().map_err(|_| why.to_owned())?;
    if (1_000..=1_000_000).contains(&thousandths) { Ok(thousandths) } else { Err(why.into()) }
}

/// Parses `--stop-signal`: `TERM`, `SIGTERM` or a number.
///
/// # Errors
/// What the value should have been.
pub fn parse_signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let named = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal = match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => named.parse().ok(),
    };
    match signal {
        Some(Signal::SIGKILL | Signal::SIGSTOP) => {
            Err("a program cannot finish anything on that signal; --kill-after does it later"
                .into())
        }
        Some(signal) => Ok(signal),
        None => Err("signals are named as in kill -l: TERM, QUIT, INT, USR2".into()),
    }
}

/// Parses `--name`.
///
/// # Errors
/// What the value should have been.
pub fn parse_name(text: &str) -> Result<String, String> {
    if name::is_valid(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "a name has 1 to {} letters, digits, dots, dashes and underscores, and begins with a \
             letter or digit",
            name::NAME_MAX
        ))
    }
}

/// The port that a worker is to listen on, if the listeners leave no doubt: for `PORT=`.
#[must_use]
pub fn program_port(spec: &ListenSpec) -> Option<u16> {
    match (&spec.program, &spec.public) {
        (Some(ProgramAddress::Port(port)), _) => Some(*port),
        (Some(ProgramAddress::Tcp(address)), _) => Some(address.port()),
        (Some(ProgramAddress::Unix(_)), _) | (None, ListenAddress::Unix(_)) => None,
        (None, ListenAddress::Tcp { address, .. }) => Some(address.port()),
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, dual_stack: true } => write!(f, ":{}", address.port()),
            Self::Tcp { address, dual_stack: false } => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", Path::display(path)),
        }
    }
}

impl fmt::Display for ProgramAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, ":{port}"),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", Path::display(path)),
        }
    }
}

impl fmt::Display for ListenSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.program {
            Some(program) => write!(f, "{}={program}", self.public),
            None => write!(f, "{}", self.public),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn around() -> Surroundings {
        Surroundings {
            cpus: 4,
            cpus_online: 4,
            workers: None,
            web_concurrency: None,
            node_sched_policy: None,
            somaxconn: 4096,
            memory: Some(8 << 30),
        }
    }

    fn config_in(around: &Surroundings, words: &[&str]) -> Result<RunConfig, String> {
        let line = Line::try_parse_from([&["run"], words].concat()).map_err(|e| e.to_string())?;
        RunConfig::new(line.args, around).map_err(|error| error.to_string())
    }

    fn config(words: &[&str]) -> RunConfig {
        config_in(&around(), words).unwrap()
    }

    fn refusal(words: &[&str]) -> String {
        config_in(&around(), words).unwrap_err()
    }

    fn tcp(address: &str, dual_stack: bool) -> ListenAddress {
        ListenAddress::Tcp { address: address.parse().unwrap(), dual_stack }
    }

    #[test]
    fn listen_addresses() {
        let public = |text| parse_listen(text).unwrap().public;
        assert_eq!(public(":80"), tcp("[::]:80", true));
        assert_eq!(public("8080"), tcp("[::]:8080", true));
        assert_eq!(public("*:80"), tcp("[::]:80", true));
        assert_eq!(public("[::]:80"), tcp("[::]:80", true));
        assert_eq!(public("[::1]:80"), tcp("[::1]:80", false));
        assert_eq!(public("0.0.0.0:80"), tcp("0.0.0.0:80", false));
        assert_eq!(public("localhost:80"), tcp("127.0.0.1:80", false));
        assert_eq!(public(":0"), tcp("[::]:0", true));
        assert_eq!(public("unix:a.sock"), ListenAddress::Unix("a.sock".into()));
        assert_eq!(public("/run/a.sock"), ListenAddress::Unix("/run/a.sock".into()));
    }

    #[test]
    fn programs_behind_addresses() {
        let program = |text| parse_listen(text).unwrap().program;
        assert_eq!(program(":80"), None);
        assert_eq!(program(":80=3000"), Some(ProgramAddress::Port(3000)));
        assert_eq!(program(":80=:3000"), Some(ProgramAddress::Port(3000)));
        let address = ProgramAddress::Tcp("127.0.0.1:3000".parse().unwrap());
        assert_eq!(program(":80=127.0.0.1:3000"), Some(address));
        let path = ProgramAddress::Unix("/run/a.sock".into());
        assert_eq!(program(":80=/run/a.sock"), Some(path));
        assert!(parse_listen(":80=0").is_err());
        for text in [":80=3000", "127.0.0.1:80", "unix:/run/a=unix:/run/b", "[::1]:80=[::1]:81"] {
            let spec = parse_listen(text).unwrap();
            assert_eq!(parse_listen(&spec.to_string()).unwrap(), spec, "{spec}");
        }
    }

    #[test]
    fn bad_addresses_say_what_is_wrong() {
        for (text, part) in [
            ("99999", "largest is 65535"),
            (":65536", "largest is 65535"),
            ("127.0.0.1", "the port is missing, as in 127.0.0.1:8080"),
            ("::1", "the port is missing, as in [::1]:8080"),
            ("example.org:80", "names are not looked up"),
            ("", "an address is"),
            (":", "an address is"),
            ("unix:", "path of the Unix socket is missing"),
        ] {
            let why = parse_listen(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
        let long = format!("/{}", "x".repeat(107));
        assert!(parse_listen(&long).unwrap_err().contains("too long"));
        assert!(refusal(&["-l", ":80", "-l", "80", "x"]).contains("given twice"));
    }

    #[test]
    fn probes() {
        let http = |path: &str| Ok(ReadyProbe::Http(path.to_owned()));
        assert_eq!(parse_probe("tcp"), Ok(ReadyProbe::Tcp));
        assert_eq!(parse_probe("http:/healthz"), http("/healthz"));
        assert_eq!(parse_probe("http:///healthz?deep=1"), http("/healthz?deep=1"));
        assert_eq!(parse_probe("http:/"), http("/"));
        for (text, part) in [
            ("/healthz", "http:PATH"),
            ("https:/x", "http:PATH"),
            ("http:", "there is no host"),
            ("http://", "there is no host"),
            ("http://example.org/up", "there is no host"),
            ("http:/a b", "visible ASCII"),
            ("http:/a\r\nX: y", "visible ASCII"),
            ("http:/ä", "visible ASCII"),
        ] {
            let why = parse_probe(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
        let long = format!("http:/{}", "x".repeat(PROBE_PATH_MAX));
        assert!(parse_probe(&long).is_err());
        assert!(config(&["--ready-probe", "tcp", "x"]).core.ready_probe == ProbeRule::Answer);
        for policy in ["shared", "reuseport"] {
            let why = refusal(&["--ready-probe", "tcp", "-p", policy, "-l", ":80", "x"]);
            assert!(why.contains("--ready-probe") && why.contains("accept by themselves"), "{why}");
        }
        let why = refusal(&["--ready-probe", "tcp", "--adapter", "listen-fds", "-l", ":80", "x"]);
        assert!(why.contains("-p shared"), "{why}");
    }

    #[test]
    fn a_replaced_worker_has_more_time_than_one_that_stops() {
        let times = |words: &[&str]| {
            let core = config(words).core;
            (core.drain_timeout.as_secs(), core.graceful_timeout.as_secs())
        };
        assert_eq!(times(&["x"]), (30, 8));
        assert_eq!(times(&["--graceful-timeout", "5m", "x"]), (300, 300));
        assert_eq!(times(&["--drain-timeout", "3s", "x"]), (3, 8));
        assert_eq!(times(&["--drain-timeout", "1h", "--graceful-timeout", "2s", "x"]), (3600, 2));
    }

    #[test]
    fn a_port_is_not_a_policy() {
        for (value, hint) in [
            ("8080", "that is --policy; a port is -l :8080"),
            (":8080", "that is --policy; a port is -l :8080"),
            ("127.0.0.1:80", "that is --policy; an address is -l 127.0.0.1:80"),
            ("fair", "the policies are least, rr, ip, shared and reuseport"),
        ] {
            let why = refusal(&["-p", value, "x"]);
            assert!(why.contains(hint), "{why}");
        }
        assert_eq!(config(&["-p", "ip", "x"]).core.policy, Policy::Ip);
        assert_eq!(config(&["x"]).core.policy, Policy::Least);
    }

    #[test]
    fn numbers_of_workers() {
        let count = |text: &str| config(&["-w", text, "x"]).workers.count;
        assert_eq!(
            (count("3"), count("auto"), count("-1"), count("-9"), count("2x")),
            (3, 4, 3, 1, 8)
        );
        assert_eq!(config(&["-i", "3", "x"]).workers.count, 3);
        assert_eq!(config(&["--instances", "max", "x"]).workers.count, 4);
        for bad in ["0", "-0", "0x", "x", "many", "65536", "1025", ""] {
            assert!(config_in(&around(), &["-w", bad, "x"]).is_err(), "{bad}");
        }
        assert_eq!(config(&["x"]).workers.why, "auto: 4 CPUs");
        let narrow = Surroundings { cpus: 1, ..around() };
        let workers = config_in(&narrow, &["x"]).unwrap().workers;
        assert_eq!(
            (workers.count, workers.why.as_str()),
            (1, "auto: 1 of 4 CPUs, by affinity or CPU quota")
        );
    }

    #[test]
    fn platform_variables_set_the_number_of_workers() {
        let both = Surroundings {
            workers: Some("3".into()),
            web_concurrency: Some("7".into()),
            ..around()
        };
        let workers = config_in(&both, &["x"]).unwrap().workers;
        assert_eq!((workers.count, workers.from_platform), (3, true));
        assert_eq!(workers.why, "WORKERS=3");
        let flag = config_in(&both, &["-w", "2", "x"]).unwrap().workers;
        assert_eq!((flag.count, flag.from_platform), (2, false));
        let bad = Surroundings { web_concurrency: Some("two".into()), ..around() };
        let why = config_in(&bad, &["x"]).unwrap_err();
        assert!(why.starts_with("WEB_CONCURRENCY two: "), "{why}");
        let node = Surroundings { node_sched_policy: Some("none".into()), ..around() };
        assert_eq!(config_in(&node, &["x"]).unwrap().core.policy, Policy::Shared);
        assert_eq!(config_in(&node, &["-p", "rr", "x"]).unwrap().core.policy, Policy::Rr);
    }

    #[test]
    fn the_first_positional_starts_the_command() {
        let command = |words: &[&str]| config(words).command;
        assert_eq!(
            command(&["-w", "2", "node", "-w", "9", "--", "x"]),
            ["node", "-w", "9", "--", "x"]
        );
        assert_eq!(command(&["-w", "2", "--", "node", "--help"]), ["node", "--help"]);
        assert!(refusal(&["--bogus", "node"]).contains("--bogus"));
        assert!(refusal(&["-w", "2"]).contains("COMMAND"));
    }

    #[test]
    fn listen_fds_needs_an_address_and_no_dealing() {
        let listen_fds = &["--adapter", "listen-fds"];
        let with = |more: &[&'static str]| [listen_fds.as_slice(), more].concat();
        assert!(refusal(&with(&["x"])).contains("add -l"));
        assert!(refusal(&with(&["-l", ":80", "-p", "rr", "x"])).contains("-p shared"));
        let config = config(&with(&["-l", ":80", "x"]));
        assert_eq!((config.core.policy, config.core.ready), (Policy::Shared, ReadyRule::Start));
        assert!(refusal(&["-p", "reuseport", "-l", "/a", "x"]).contains("-p shared"));
        assert!(refusal(&["--sticky-bound", "1.5", "x"]).contains("-p ip"));
    }

    #[test]
    fn memory_of_a_worker() {
        for (text, bytes) in [
            ("4096", 4096),
            ("512K", 512 << 10),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1GiB", 1 << 30),
            ("3MB", 3 << 20),
        ] {
            assert_eq!(parse_max_rss(text), Ok(MaxRssArg::Bytes(bytes)), "{text}");
        }
        for bad in ["0", "", "M", "-1M", "1.5G", "lots", "99999999999T"] {
            assert!(parse_max_rss(bad).unwrap_err().contains("as in 512M"), "{bad}");
        }
        let max = |words: &[&str]| config(words).max_rss;
        assert_eq!(max(&["x"]), None);
        assert_eq!(max(&["--max-rss", "1M", "x"]).unwrap().bytes, 1 << 20);
        let auto = max(&["-w", "3", "--max-rss", "auto", "x"]).unwrap();
        // 80 % of 8 GiB, for 3 workers and the one that starts beside.
        assert_eq!(auto.bytes, (8 << 30) / 100 * 80 / 4);
        assert!(auto.why.contains("1.5G for each worker: 80% of 8.0G"), "{}", auto.why);
        let blind = Surroundings { memory: None, ..around() };
        assert!(config_in(&blind, &["--max-rss", "auto", "x"]).unwrap_err().contains("512M"));
        for (bytes, text) in [(512, "512 bytes"), (1536, "1.5K"), (5 << 30, "5.0G")] {
            assert_eq!(bytes_text(bytes), text);
        }
    }

    #[test]
    fn limits_need_what_they_count() {
        for flag in
            ["--hung-timeout=1s", "--max-connections=5", "--max-total=5", "--max-queue-wait=1s"]
        {
            let why = refusal(&["-p", "shared", flag, "x"]);
            let name = flag.split('=').next().unwrap();
            assert!(why.contains(name) && why.contains("least, rr or ip"), "{why}");
            config(&[flag, "x"]);
        }
        config(&["-p", "shared", "--max-lifetime", "1h", "--max-rss", "1G", "x"]);
        let fd = ["--adapter", "fd", "-l", ":0", "--max-total", "5", "x"];
        assert!(refusal(&fd).contains("--adapter fd does not tell"));
        assert!(refusal(&["--max-lifetime", "0", "x"]).contains("leave it away"));
        assert!(refusal(&["--max-queue-wait", "0", "x"]).contains("leave it away"));
        assert!(refusal(&["--shed", "reset", "x"]).contains("--max-queue-wait"));
        assert!(refusal(&["--max-queue-wait", "1s", "--shed", "503", "x"]).contains("by reset"));
        let limits = config(&["--max-queue-wait", "1s", "--shed", "reset", "x"]).core.limits;
        assert_eq!(limits.max_queue_wait, Some(Duration::from_secs(1)));
        assert_eq!(config(&["x"]).core.limits, Limits::NONE);
    }

    #[test]
    fn times_bounds_and_signals() {
        assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert!(parse_duration("10").unwrap_err().contains("10s or 10ms"));
        assert!(parse_duration("-1s").is_err());
        assert_eq!(parse_bound("1.25"), Ok(1250));
        assert_eq!(parse_bound("2"), Ok(2000));
        for bad in ["0.9", "1.2345", "x", "", ".", "1e3", "1001", "-1", "1.-5"] {
            assert!(parse_bound(bad).is_err(), "{bad}");
        }
        for text in ["QUIT", "SIGQUIT", "quit", "3"] {
            assert_eq!(parse_signal(text), Ok(Signal::SIGQUIT), "{text}");
        }
        assert!(parse_signal("KILL").unwrap_err().contains("--kill-after"));
        assert!(parse_signal("WHAT").is_err());
    }

    #[test]
    fn exit_codes_and_slots() {
        let codes = config(&["--stop-exit-codes", "0,3, 255", "x"]).core.stop_exit_codes;
        let all: Vec<i32> = (-1..300).filter(|code| codes.contains(*code)).collect();
        assert_eq!(all, [0, 3, 255]);
        assert_eq!(config(&["x"]).core.stop_exit_codes, ExitCodes::default());
        for bad in ["256", "-1", "KILL", "", "1,,2"] {
            let why = refusal(&[&format!("--stop-exit-codes={bad}"), "x"]);
            assert!(why.contains("from 0 to 255"), "{bad}: {why}");
        }
        assert_eq!((parse_slot("7"), parse_slot("w0")), (Ok(7), Ok(0)));
        for bad in ["web", "w", "-1", "65536", "ww1"] {
            assert!(parse_slot(bad).unwrap_err().contains("-n web"), "{bad}");
        }
    }

    #[test]
    fn how_many_a_reload_starts_at_a_time() {
        for (text, workers, expected) in [
            ("25%", 4, 1),
            ("25%", 5, 2),
            ("1%", 1, 1),
            ("100%", 1024, 1024),
            ("3", 8, 3),
            ("3", 1, 3),
        ] {
            assert_eq!(parse_surge(text).unwrap().of(workers), expected, "{text} of {workers}");
        }
        for bad in ["0", "0%", "101%", "-1", "all", "%", "2.5"] {
            assert!(parse_surge(bad).unwrap_err().contains("as in 2"), "{bad}");
        }
        let core = config(&["-w", "8", "x"]).core;
        assert_eq!((core.max_surge, core.max_draining), (2, 16));
    }

    #[test]
    fn templates_and_variables() {
        let expanded = |text: &str| expand(OsStr::new(text), 3, 17);
        assert_eq!(expanded("port-{slot}-{id}-{slot}"), "port-3-17-3");
        assert_eq!(expanded("{{slot}} {x} {slot"), "{3} {x} {slot");
        let raw = OsStr::from_bytes(b"\xff{id}\xfe");
        assert_eq!(expand(raw, 0, 1).as_bytes(), b"\xff1\xfe");
        let config = config(&["-e", "A=b=c", "--env", "D=", "x"]);
        let pairs = [("A", "b=c"), ("D", "")].map(|(a, b)| (OsString::from(a), OsString::from(b)));
        assert_eq!(config.env, pairs);
        for bad in ["A", "=b", ""] {
            assert!(refusal(&["-e", bad, "x"]).contains("NAME=VALUE"), "{bad}");
        }
    }

    #[test]
    fn the_sticky_key_depends_on_seed_or_name_only() {
        let key = |words: &[&str]| config(words).core.sticky_key;
        assert_eq!(key(&["a.py"]), key(&["-w", "2", "a.py"]));
        assert_ne!(key(&["a.py"]), key(&["b.py"]));
        assert_eq!(key(&["--sticky-seed", "s", "a"]), key(&["--sticky-seed", "s", "b"]));
        // FNV-1a's published value for no bytes: the constants are right, and stay.
        assert_eq!(sticky_key(""), [0x6c62_272e_07bb_0142, 0x62b8_2175_6295_c58d]);
        assert_eq!(sticky_key("a"), [0xd228_cb69_6f1a_8caf, 0x7891_2b70_4e4a_8964]);
    }

    #[test]
    fn users_and_groups() {
        let ids = |user, group| resolve_ids(user, group);
        assert_eq!(ids(None, None).unwrap(), None);
        assert!(ids(Some("no-such-user"), None).unwrap_err().to_string().contains("no such user"));
        assert!(
            ids(None, Some("no-such-group")).unwrap_err().to_string().contains("no such group")
        );
        let own = nix::unistd::getuid().to_string();
        let found = ids(Some(&own), None).unwrap().unwrap();
        assert_eq!(found.uid, nix::unistd::getuid());
        if geteuid().is_root() {
            let strange = ids(Some("54321"), Some("7")).unwrap().unwrap();
            assert_eq!((strange.uid.as_raw(), strange.gid.as_raw()), (54321, 7));
            assert_eq!(
                (strange.groups.as_slice(), strange.user_name),
                ([Gid::from_raw(7)].as_slice(), None)
            );
        } else {
            assert!(ids(Some("root"), None).unwrap_err().to_string().contains("only root"));
        }
    }

    #[test]
    fn ports_for_programs() {
        let port = |text: &str| program_port(&parse_listen(text).unwrap());
        assert_eq!(port(":80"), Some(80));
        assert_eq!(port(":80=3000"), Some(3000));
        assert_eq!(port("/a"), None);
        assert_eq!(port(":80=/a"), None);
        assert_eq!(port("/a=81"), Some(81));
    }
}
