//! From flags to a [`RunConfig`]: what was not given is filled in, and settings are held against
//! each other.
//!
//! Owns: every rule that takes two settings, or a setting and the machine. Never does: parse.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use croupier_core::config::{
    Config, ExitCodes, Limits, Policy, ProbeRule, ReadyRule, RestartPolicy,
};
use nix::sys::signal::Signal;

use super::ids::resolve_ids;
use super::inherited;
use super::template::parse_env;
use super::values::workers_text;
use super::{
    AdapterChoice, Care, ConfigError, Ids, ListenAddress, ListenSpec, LogFormat, MaxRssArg,
    ReadyProbe, Shed, Surroundings, WORKERS_MAX, WorkersArg, bytes_text, parse_listen,
    parse_workers, policy_name,
};
use crate::cli::run::RunArgs;
use crate::name;

/// Queued connections that one worker may have under `ip`, where a window would make clients move.
pub const IP_QUEUE_MAX: u32 = 256;
/// `--drain-timeout` where it is not given. What gunicorn's users have. At a reload nobody else counts
/// the seconds, and for ever, which is the default of `HAProxy` and nginx, piles up old generations.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// `--log-file`: where output and log go instead of stdout and stderr.
    pub log_file: Option<PathBuf>,
    /// Workers inherit stdout and stderr as they are.
    pub raw_output: bool,
    /// `--preload-path`: where `libcroupier_preload.so` is.
    pub preload_path: Option<PathBuf>,
    /// `--env`, with `{slot}` and `{id}` still in the values.
    pub env: Vec<(OsString, OsString)>,
    /// `--max-rss`.
    pub max_rss: Option<MaxRss>,
    /// `--watch`, and with it the file.
    pub watch: Vec<PathBuf>,
    /// The file, and its profile, that had a say; empty without one.
    pub file: String,
    /// Processes, and what is done by the clock.
    pub care: Care,
    /// What the machine has, for advice.
    pub machine: Machine,
}

/// What a run can be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// CPUs that this process may use.
    pub cpus: u16,
    /// The kernel's largest backlog (`net.core.somaxconn`).
    pub somaxconn: u32,
}

/// How much memory a worker may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxRss {
    /// Its family together.
    pub bytes: u64,
    /// For the first lines of output: how `auto` came to it; empty for a plain number.
    pub why: String,
    /// `auto`: the memory that is shared out.
    memory: Option<u64>,
}

impl MaxRss {
    /// The share that `auto` gives each of `workers`.
    fn share(memory: u64, workers: u16) -> Self {
        // One more than there are slots: the one that starts beside the one that is too large.
        let bytes = memory / 100 * RSS_SHARE / (u64::from(workers) + 1);
        let why = format!(
            "auto: {} for each worker: {RSS_SHARE}% of {}, divided by {workers} workers and 1 that \
             starts beside",
            bytes_text(bytes),
            bytes_text(memory),
        );
        Self { bytes, why, memory: Some(memory) }
    }

    /// The same with another number of workers.
    #[must_use]
    pub fn with_workers(self, workers: u16) -> Self {
        match self.memory {
            Some(memory) => Self::share(memory, workers),
            None => self,
        }
    }
}

/// How many workers, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// Slots: 1 to [`WORKERS_MAX`].
    pub count: u16,
    /// For the first line of output: `auto: 4 CPUs`, `WEB_CONCURRENCY`, or empty for a plain `-w`.
    pub why: String,
    /// The number came from `WORKERS` or `WEB_CONCURRENCY`: workers must not multiply by it again.
    pub from_platform: Option<&'static str>,
}

impl RunConfig {
    /// Checks what single values could not show, and fills in what was not given.
    ///
    /// # Errors
    /// [`ConfigError`]: a usage error, to be printed as it is.
    pub fn new(args: RunArgs, around: &Surroundings) -> Result<Self, ConfigError> {
        if args.command.is_empty() {
            return Err(ConfigError::Conflict(
                "COMMAND is missing: say what to run, as in croupier run -w 4 -- node server.js, or \
                 command = [\"node\", \"server.js\"] in croupier.toml"
                    .into(),
            ));
        }
        let mut listen = Vec::new();
        for (value, place) in args.listen.iter().zip(0..) {
            let own = args.from_file.policies.get(place).and_then(Option::as_ref);
            for one in value.split(',') {
                let parsed = parse_listen(one).map_err(|why| ConfigError::value("-l", one, why))?;
                if listen.iter().any(|known: &ListenSpec| known.is_same(&parsed)) {
                    return Err(ConfigError::value("-l", one, "given twice"));
                }
                listen.push(ListenSpec { policy: own.map(|(policy, _)| *policy), ..parsed });
            }
        }
        inherited::assign(&mut listen, &around.inherited)?;
        let name = match &args.name {
            Some(name) => name.clone(),
            None => name::derive(&args.command),
        };
        let policy = choose_policy(&args, around, &listen)?;
        let in_file = args.from_file.workers;
        let workers = choose_workers(args.workers, in_file, args.worker_memory, around)?;
        let policies = policies_of(&listen, policy);
        let core = core_config(&args, (policy, &policies), &listen, &workers, &name)?;
        let max_rss = choose_max_rss(args.max_rss, &workers, around)?;
        let care = Care::new(&args)?;
        if args.raw_output && args.log_file.is_some() {
            return Err(ConfigError::Conflict(
                "--log-file takes the lines that workers write through croupier, and with \
                 --raw-output they write to stdout by themselves; leave one of them out"
                    .into(),
            ));
        }
        let mut env = args.from_file.env.clone();
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
            log_file: args.log_file,
            raw_output: args.raw_output,
            preload_path: args.preload_path,
            env,
            max_rss,
            watch: args.watch,
            file: String::new(),
            care,
            machine: Machine { cpus: around.cpus, somaxconn: around.somaxconn },
        })
    }
}

impl RunConfig {
    /// How clients of an address are dealt.
    #[must_use]
    pub fn policy_of(&self, spec: &ListenSpec) -> Policy {
        spec.policy_or(self.core.policy)
    }

    /// Each policy that there is, once, in the order of the addresses.
    #[must_use]
    pub fn policies(&self) -> Vec<Policy> {
        policies_of(&self.listen, self.core.policy)
    }

    /// Advice, where `--max-queue-wait` does not see those who wait: under `ip` they do so at their worker,
    /// not in the primary's hands, unless `--max-active` leaves no room there.
    #[must_use]
    pub fn uncounted_wait(&self) -> Option<String> {
        let limit = self.core.limits.max_queue_wait?;
        let sticky = self.policies().contains(&Policy::Ip);
        (sticky && self.core.max_active.is_none()).then(|| {
            format!(
                "--max-queue-wait {limit:?} does not count how long clients of an ip address wait at their \
                 worker, where up to {IP_QUEUE_MAX} may wait; with \
                 --max-active they wait where it counts (1 for workers that serve one client at a time)"
            )
        })
    }

    /// What a setting that was not given has come to, by its flag's name; `None`: nothing.
    #[must_use]
    pub fn chosen(&self, name: &str) -> Option<String> {
        let ready = |rule| match rule {
            ReadyRule::Listen => "listen",
            ReadyRule::Accept => "accept",
            ReadyRule::Notify => "notify",
            ReadyRule::Start => "start",
        };
        match name {
            "workers" if self.workers.why.is_empty() => Some(self.workers.count.to_string()),
            "workers" => Some(format!("{} ({})", self.workers.count, self.workers.why)),
            "policy" => Some(policy_name(self.core.policy).into()),
            "name" => Some(self.name.clone()),
            "backlog" => Some(self.backlog.to_string()),
            "ready" => Some(ready(self.core.ready).into()),
            "drain-timeout" => Some(format!("{:?}", self.core.drain_timeout)),
            "max-draining" => {
                let twice = || self.workers.count.saturating_mul(2);
                Some(self.core.max_draining.unwrap_or_else(twice).to_string())
            }
            "max-rss" => self.max_rss.as_ref().map(|max| bytes_text(max.bytes)),
            _ => None,
        }
    }
}

/// Each policy of `listen` once, where `default` is that of those without their own.
fn policies_of(listen: &[ListenSpec], default: Policy) -> Vec<Policy> {
    let mut policies = Vec::new();
    for policy in listen.iter().map(|spec| spec.policy_or(default)) {
        if !policies.contains(&policy) {
            policies.push(policy);
        }
    }
    if policies.is_empty() { vec![default] } else { policies }
}

fn core_config(
    args: &RunArgs,
    (policy, policies): (Policy, &[Policy]),
    listen: &[ListenSpec],
    workers: &Workers,
    name: &str,
) -> Result<Config, ConfigError> {
    if args.sticky_bound.is_some() && !policies.contains(&Policy::Ip) {
        return Err(ConfigError::Conflict(format!(
            "--sticky-bound limits sticky clients, and {} has none; use ip there",
            who_said(args, listen, policy)
        )));
    }
    if args.ready_probe.is_some() && !policy.by_hand() {
        return Err(ConfigError::Conflict(format!(
            "--ready-probe deals a connection to the new worker, and under -p {} workers accept by \
             themselves; use -p least, rr or ip, or leave it out",
            policy_name(policy)
        )));
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
        max_surge: args.max_surge,
        soak: args.soak,
        max_draining: args.max_draining,
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
    let hands_off = policy.by_hand();
    // Not so --max-lifetime and --max-rss: those need no dealing.
    let needs_dealing = [
        ("--hung-timeout", !args.hung_timeout.is_zero()),
        ("--max-active", args.max_active.is_some()),
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
    let needs_closes =
        [("--max-active", args.max_active.is_some()), ("--max-total", args.max_total.is_some())];
    if let Some((flag, _)) = needs_closes.iter().find(|(_, given)| *given)
        && args.adapter == AdapterChoice::Fd
    {
        return Err(ConfigError::Conflict(format!(
            "{flag} needs to know what is closed, and --adapter fd does not tell; use --queue-limit"
        )));
    }
    let zero = |flag, why: &str| Err(ConfigError::value(flag, "0", why));
    if args.max_lifetime.is_some_and(|time| time.is_zero()) {
        return zero("--max-lifetime", "leave it away for workers that may live for ever");
    }
    if args.max_queue_wait.is_some_and(|time| time.is_zero()) {
        return zero("--max-queue-wait", "everybody would be reset; leave it away to let all wait");
    }
    match (args.shed, args.max_queue_wait) {
        (Some(Shed::Reset), None) => {
            return Err(ConfigError::Conflict(
                "--shed says how clients are turned away at --max-queue-wait; add that, or leave it out"
                    .into(),
            ));
        }
        (Some(Shed::Reset), Some(_)) | (None, _) => {}
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
        (Some(MaxRssArg::Bytes(bytes)), _) => {
            Ok(Some(MaxRss { bytes, why: String::new(), memory: None }))
        }
        (Some(MaxRssArg::Auto), Some(memory)) => Ok(Some(MaxRss::share(memory, workers.count))),
        (Some(MaxRssArg::Auto), None) => Err(ConfigError::value(
            "--max-rss",
            "auto",
            "/proc/meminfo cannot be read; say how much, as in 512M",
        )),
    }
}

/// Who said that this policy is to be: the file's line for an address, where every address has its own.
fn who_said(args: &RunArgs, listen: &[ListenSpec], policy: Policy) -> String {
    let name = policy_name(policy);
    let own = listen.iter().all(|spec| spec.policy.is_some());
    let mut places = args.from_file.policies.iter().flatten();
    match places.find(|(known, _)| *known == policy) {
        Some((_, place)) if own => format!("policy {name} ({place})"),
        Some(_) | None => format!("-p {name}"),
    }
}

/// A policy for those that have none, where all have one, would be in force nowhere.
fn refuse_policy_of_nobody(args: &RunArgs, listen: &[ListenSpec]) -> Result<(), ConfigError> {
    let Some(policy) = args.policy else { return Ok(()) };
    if listen.is_empty() || listen.iter().any(|spec| spec.policy.is_none()) {
        return Ok(());
    }
    let lines: Vec<String> =
        args.from_file.policies.iter().flatten().map(|(_, place)| place.to_string()).collect();
    Err(ConfigError::Conflict(format!(
        "-p {} is for addresses without a policy of their own, and each has one ({}); leave it out, or \
         change those lines",
        policy_name(policy),
        lines.join(", ")
    )))
}

/// The policy of addresses that have none of their own; where all have, the first one's.
fn default_policy(args: &RunArgs, around: &Surroundings, listen: &[ListenSpec]) -> Policy {
    if let Some(first) = listen.first().and_then(|spec| spec.policy)
        && listen.iter().all(|spec| spec.policy.is_some())
    {
        return first;
    }
    match (args.policy, args.adapter) {
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
    }
}

/// Either all addresses are dealt, or all have the same policy. What workers take by themselves is not
/// counted, taken back, paused or drained through the primary, and what it does not know of some
/// addresses it cannot promise of the worker.
fn refuse_two_kinds(
    args: &RunArgs,
    default: Policy,
    listen: &[ListenSpec],
) -> Result<(), ConfigError> {
    let Some((first, rest)) = listen.split_first() else { return Ok(()) };
    let of = |spec: &ListenSpec| spec.policy_or(default);
    let differs =
        |spec: &&ListenSpec| of(spec) != of(first) && !(of(spec).by_hand() && of(first).by_hand());
    let Some(other) = rest.iter().find(differs) else { return Ok(()) };
    let place = |spec: &ListenSpec| {
        let at = listen.iter().position(|known| known.is_same(spec))?;
        args.from_file.policies.get(at)?.as_ref().map(|(_, place)| place.to_string())
    };
    // The one with a line of its own is the one to look at.
    let (one, two) = if place(other).is_some() { (other, first) } else { (first, other) };
    let whose = place(two).unwrap_or_else(|| "which has no policy of its own".into());
    Err(ConfigError::File {
        place: place(one).unwrap_or_default(),
        why: format!(
            "policy {} for {}, but {} for {} ({whose}): where workers accept by themselves they do so on \
             all addresses alike, as nothing that they take there can be counted or taken back; give both \
             least, rr or ip, or run two croupiers",
            policy_name(of(one)),
            one.public,
            policy_name(of(two)),
            two.public
        ),
    })
}

fn choose_policy(
    args: &RunArgs,
    around: &Surroundings,
    listen: &[ListenSpec],
) -> Result<Policy, ConfigError> {
    refuse_policy_of_nobody(args, listen)?;
    let policy = default_policy(args, around, listen);
    refuse_two_kinds(args, policy, listen)?;
    let hands_off = policy.by_hand();
    if args.adapter == AdapterChoice::ListenFds {
        if hands_off {
            return Err(ConfigError::Conflict(format!(
                "--adapter listen-fds gives workers the listening socket itself, so {} cannot \
                 deal; use -p shared or -p reuseport",
                who_said(args, listen, policy)
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
    if !hands_off && args.adapter != AdapterChoice::ListenFds {
        refuse_shared_programs(policy, listen)?;
    }
    let unix = listen.iter().any(|spec| matches!(spec.public, ListenAddress::Unix(_)));
    if policy == Policy::Reuseport && unix {
        return Err(ConfigError::Conflict(
            "-p reuseport is for TCP: the kernel does not spread a Unix socket; use -p shared"
                .into(),
        ));
    }
    if policy == Policy::Reuseport && listen.iter().any(|spec| spec.inherited.is_some()) {
        return Err(ConfigError::Conflict(
            "-p reuseport makes a socket for each slot, and LISTEN_FDS brings one for all; use -p shared, \
             or let croupier open the address itself"
                .into(),
        ));
    }
    Ok(policy)
}

/// Where nobody deals, a listener of the program is one socket, and so one `-l`.
fn refuse_shared_programs(policy: Policy, listen: &[ListenSpec]) -> Result<(), ConfigError> {
    for (at, one) in listen.iter().enumerate() {
        let named = |other: &&ListenSpec| one.program.is_some() || other.program.is_some();
        let mut others = listen.iter().skip(at + 1).filter(named);
        if let Some(other) = others.find(|other| one.shares_program(other)) {
            return Err(ConfigError::Conflict(format!(
                "-l {one} and -l {other} are for one listener of the program, which under -p {} has the \
                 socket itself; use -p least, rr or ip, or one -l for all addresses, as in -l :80=8080",
                policy_name(policy)
            )));
        }
    }
    Ok(())
}

/// The share of the memory that workers of `--worker-memory` may fill, in percent.
const WORKER_MEMORY_SHARE: u64 = 80;

/// How many workers the CPUs allow, or the memory if that is less, and which it was.
fn room(each: Option<u64>, around: &Surroundings) -> Result<(u16, String), ConfigError> {
    let cpus = around.cpus;
    let plural = if cpus == 1 { "" } else { "s" };
    let of = if cpus < around.cpus_online {
        format!("{cpus} of {} CPUs, by affinity or CPU quota", around.cpus_online)
    } else {
        format!("{cpus} CPU{plural}")
    };
    let Some(each) = each else { return Ok((cpus, of)) };
    let Some(memory) = around.memory else {
        return Err(ConfigError::value(
            "--worker-memory",
            bytes_text(each),
            "how much there is cannot be read; say how many workers with -w",
        ));
    };
    let fit = u16::try_from(memory / 100 * WORKER_MEMORY_SHARE / each).unwrap_or(u16::MAX);
    if fit >= cpus {
        return Ok((cpus, of));
    }
    let why = format!(
        "room for {fit} of {} in {WORKER_MEMORY_SHARE}% of {}",
        bytes_text(each),
        bytes_text(memory)
    );
    Ok((fit.max(1), why))
}

fn choose_workers(
    given: Option<WorkersArg>,
    in_file: bool,
    each: Option<u64>,
    around: &Surroundings,
) -> Result<Workers, ConfigError> {
    let platform = [("WORKERS", &around.workers), ("WEB_CONCURRENCY", &around.web_concurrency)]
        .into_iter()
        .find_map(|(name, value)| value.as_ref().map(|value| (name, value)));
    let (arg, variable) = match (given, platform) {
        // The environment goes before a file.
        (given, Some((name, value))) if given.is_none() || in_file => {
            (parse_workers(value).map_err(|why| ConfigError::value(name, value, why))?, Some(name))
        }
        (given, _) => (given.unwrap_or(WorkersArg::Auto), None),
    };
    let (cpus, of) = room(each, around)?;
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
    Ok(Workers { count, why, from_platform: variable })
}

/// 128-bit FNV-1a of the seed. The key must be the same on every machine and in every release,
/// which std's hasher does not promise; it must keep the seed's entropy, which FNV does for seeds
/// up to 16 bytes and nearly for longer ones. That the key cannot be found out by clients is the
/// work of the keyed hash in the core, not of this one, so no cryptographic digest is needed.
pub(super) fn sticky_key(seed: &str) -> [u64; 2] {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in seed.bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
    }
    let [low, high] = [hash, hash >> 64].map(|half| half & u128::from(u64::MAX));
    [high, low].map(|half| u64::try_from(half).unwrap_or(u64::MAX))
}
