//! `croupier run`: the one definition of its flags, from which the parser, `--help` and the
//! environment names come.
//!
//! Owns: [`RunArgs`]. Promises: what it yields went through the parsers of `config`. Never does:
//! start anything.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::FalseyValueParser;
use croupier_core::config::{Policy, ReadyRule};
use nix::sys::signal::Signal;

use crate::config::{
    AdapterChoice, LogFormat, MaxRssArg, Place, QUEUE_LIMIT_MAX, ReadyProbe, Shed, Surge,
    WorkersArg, parse_adapter, parse_bound, parse_bytes, parse_duration, parse_exit_code,
    parse_log_format, parse_max_rss, parse_name, parse_policy, parse_probe, parse_ready,
    parse_shed, parse_signal, parse_surge, parse_umask, parse_workers,
};

const AFTER_HELP: &str = "\
Examples:
  croupier run -w 4 -- python3 -m http.server 8000    four processes behind one port
  croupier run -l :80=3000 --user nobody node app.js  clients on 80, the program on 3000
  croupier run -p ip node chat.js                     one client address, one worker
  croupier run -w 2x -l :8080 ./server --tag {slot}   two per CPU, each knows its slot

Signals: TERM, INT, QUIT and HUP from a vanished terminal stop gracefully; a second INT stops at
once; USR2, and HUP otherwise, reload. Exit status: 0 stopped, 1 failed, 2 usage, 126 not executable, 127 not found, 130 second INT.
Every flag has a variable, shown as [env: …]; the flag wins over it.";

/// The groups of `--help`.
pub mod heading {
    /// What runs, as whom, and what becomes of it.
    pub const WORKERS: &str = "Workers";
    /// Where clients come from, and who gets them.
    pub const DEALING: &str = "Dealing";
    /// Bounds on workers and clients.
    pub const LIMITS: &str = "Limits";
    /// When a worker counts.
    pub const READINESS: &str = "Readiness";
    /// Replacing workers while others serve.
    pub const RELOADING: &str = "Reloading";
    /// Ending.
    pub const STOPPING: &str = "Stopping";
    /// The primary itself: its name, output, files.
    pub const OPERATION: &str = "Operation";

    /// Every group.
    pub const ALL: [&str; 7] =
        [WORKERS, DEALING, LIMITS, READINESS, RELOADING, STOPPING, OPERATION];
}

/// Start workers and deal connections to them.
///
/// Starts WORKERS copies of COMMAND, listens in their place and hands each accepted connection to
/// the least loaded of them. COMMAND is an unmodified server: what it listens on is what is dealt.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is one flag of the command line")]
pub struct RunArgs {
    /// Listen on ADDR and deal to whoever listens on PROGRAM (default: on ADDR). Repeatable.
    ///
    /// ADDR is :8080 (IPv4 and IPv6), 127.0.0.1:8080, [::1]:8080 or unix:/run/app.sock. Without
    /// -l, every fixed port and Unix path that the program listens on is dealt; with it, only
    /// these. In the variable, several are separated by commas.
    #[arg(
        short,
        long,
        value_name = "ADDR[=PROGRAM]",
        env = "CROUPIER_LISTEN",
        short_alias = 'b',
        visible_alias = "bind",
        help_heading = heading::DEALING
    )]
    pub listen: Vec<String>,

    /// How many workers: N, auto (one per CPU), -N (all CPUs but N) or Nx (N per CPU).
    ///
    /// Default auto: CPUs by affinity and cgroup quota, since more workers than CPUs only take
    /// turns. WORKERS and WEB_CONCURRENCY are honoured too; workers then get WEB_CONCURRENCY=1.
    #[arg(
        short,
        long,
        value_name = "N",
        env = "CROUPIER_WORKERS",
        short_alias = 'i',
        visible_alias = "instances",
        allow_hyphen_values = true,
        value_parser = parse_workers,
        help_heading = heading::WORKERS
    )]
    pub workers: Option<WorkersArg>,

    /// Memory that a worker needs, as in 150M: auto starts no more than fit into 80% of the memory.
    ///
    /// Of the cgroup's limit, or the machine's. It also bounds -N and Nx; a plain -w N stays N.
    #[arg(long, value_name = "BYTES", env = "CROUPIER_WORKER_MEMORY", value_parser = parse_bytes, help_heading = heading::WORKERS)]
    pub worker_memory: Option<u64>,

    /// Who gets the next connection: least, rr, ip, shared or reuseport.
    ///
    /// least (default): the worker with the fewest connections, in turn among equals. rr: in turn.
    /// ip: a client address keeps its worker. shared, reuseport: no dealing, workers accept by
    /// themselves from one socket, or from one SO_REUSEPORT socket each. With
    /// NODE_CLUSTER_SCHED_POLICY=none the default is shared. An address may have a policy of its own
    /// in croupier.toml: [[listen]] with address and policy.
    #[arg(
        short,
        long,
        value_name = "POLICY",
        env = "CROUPIER_POLICY",
        value_parser = parse_policy,
        help_heading = heading::DEALING
    )]
    pub policy: Option<Policy>,

    /// How the program becomes a worker: auto, preload, shim, listen-fds or fd.
    ///
    /// auto looks at the program. preload: any dynamically linked program. shim: it links
    /// croupier-worker. listen-fds: static programs and Go; they take the socket by LISTEN_FDS,
    /// and the policy is shared or reuseport. fd: it receives connections over a Unix socket by itself.
    #[arg(
        long,
        value_name = "ADAPTER",
        env = "CROUPIER_ADAPTER",
        default_value = "auto",
        value_parser = parse_adapter,
        help_heading = heading::WORKERS
    )]
    pub adapter: AdapterChoice,

    /// Name for `croupier ls`, `status` and `stop`. Default: the command's, or its script's.
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "CROUPIER_NAME",
        value_parser = parse_name,
        help_heading = heading::OPERATION
    )]
    pub name: Option<String>,

    /// Path of the control socket, instead of NAME.sock in the runtime directory.
    #[arg(
        long,
        value_name = "PATH",
        env = "CROUPIER_CONTROL_PATH",
        help_heading = heading::OPERATION
    )]
    pub control: Option<PathBuf>,

    /// Write the primary's process number to this file; removed at the end.
    ///
    /// A file that a dead croupier left is taken over; one of a living croupier is an error.
    #[arg(long, value_name = "PATH", env = "CROUPIER_PID_FILE", help_heading = heading::OPERATION)]
    pub pid_file: Option<PathBuf>,

    /// Start workers as this user (name or number). The primary still binds low ports.
    #[arg(
        long,
        value_name = "USER",
        env = "CROUPIER_USER",
        help_heading = heading::WORKERS
    )]
    pub user: Option<String>,

    /// Start workers with this group. Default: the user's.
    #[arg(
        long,
        value_name = "GROUP",
        env = "CROUPIER_GROUP",
        help_heading = heading::WORKERS
    )]
    pub group: Option<String>,

    /// Set a variable for the workers; {slot} and {id} are replaced in VALUE. Repeatable.
    #[arg(
        short,
        long,
        value_name = "NAME=VALUE",
        env = "CROUPIER_ENV",
        help_heading = heading::WORKERS
    )]
    pub env: Vec<OsString>,

    /// Read variables for the workers from a file, as dotenv does; --env wins over it. Repeatable.
    ///
    /// NAME=VALUE lines, # comments, quotes, `export`. ${NAME} is replaced outside single quotes; a
    /// $ that is to stay goes into single quotes.
    #[arg(long, value_name = "PATH", env = "CROUPIER_ENV_FILE", help_heading = heading::WORKERS)]
    pub env_file: Vec<PathBuf>,

    /// Start workers in this folder, looked up anew for each: it may be a link that deployments move.
    ///
    /// A COMMAND with a slash that is not absolute is meant from there. croupier itself stays.
    #[arg(long, value_name = "DIR", env = "CROUPIER_CHDIR", help_heading = heading::WORKERS)]
    pub chdir: Option<PathBuf>,

    /// What files of the workers may be, as umask(1) has it: 027. Default: as croupier's own.
    #[arg(long, value_name = "OCTAL", env = "CROUPIER_UMASK", value_parser = parse_umask, help_heading = heading::WORKERS)]
    pub umask: Option<u32>,

    /// Smallest listen(2) backlog. Default: the kernel's limit, as many programs ask for 5.
    #[arg(
        long,
        value_name = "N",
        env = "CROUPIER_BACKLOG",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        help_heading = heading::DEALING
    )]
    pub backlog: Option<u32>,

    /// Most connections that wait for one worker after the hand-off.
    ///
    /// The real number adapts below it: 1 for slow blocking servers, 8 to 32 for event loops.
    #[arg(
        long,
        value_name = "N",
        env = "CROUPIER_QUEUE_LIMIT",
        default_value = "64",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(QUEUE_LIMIT_MAX)),
        help_heading = heading::DEALING
    )]
    pub queue_limit: u16,

    /// Most connections that one worker serves at a time. Default: no limit.
    #[arg(
        long,
        value_name = "N",
        env = "CROUPIER_MAX_ACTIVE",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = heading::DEALING
    )]
    pub max_active: Option<u32>,

    /// Most connections of all workers together; beyond it clients wait in the backlog.
    #[arg(
        long,
        value_name = "N",
        env = "CROUPIER_MAX_TOTAL",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = heading::LIMITS
    )]
    pub max_total: Option<u32>,

    /// When clients have waited for this long, those that come then are reset, until there is room.
    ///
    /// Default: clients wait as long as they like. Waiting clients are dealt in the order in which
    /// they came; who is reset is always the newest.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_MAX_QUEUE_WAIT",
        value_parser = parse_duration,
        help_heading = heading::LIMITS
    )]
    pub max_queue_wait: Option<Duration>,

    /// How clients are turned away at --max-queue-wait: reset (the default, and all there is).
    #[arg(
        long,
        value_name = "HOW",
        env = "CROUPIER_SHED",
        value_parser = parse_shed,
        help_heading = heading::LIMITS
    )]
    pub shed: Option<Shed>,

    /// A worker that leaves a connection waiting for this long is late; idle ones may take over.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_STALL_AFTER",
        default_value = "100ms",
        value_parser = parse_duration,
        help_heading = heading::DEALING
    )]
    pub stall_after: Duration,

    /// A worker that takes and closes nothing for this long, though something waits for it, is hung:
    /// ABRT, KILL after --kill-after, and a new one at once. 0: off.
    ///
    /// Off by default: a handler that blocks its worker for a long download is not hung. What
    /// waits for such a worker is taken over by idle ones long before (--stall-after).
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_HUNG_TIMEOUT",
        default_value = "0",
        value_parser = parse_duration,
        help_heading = heading::LIMITS
    )]
    pub hung_timeout: Duration,

    /// Replace a worker that was given N connections. Default: never.
    ///
    /// Each worker's own limit is up to 10% lower, so that they do not go together. A new worker
    /// is started and ready before the old one drains; only one is replaced at a time.
    #[arg(
        long,
        value_name = "N",
        env = "CROUPIER_MAX_CONNECTIONS",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = heading::LIMITS
    )]
    pub max_connections: Option<u64>,

    /// Replace a worker that has been ready for T, less up to 10%. Default: never.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_MAX_LIFETIME",
        value_parser = parse_duration,
        help_heading = heading::LIMITS
    )]
    pub max_lifetime: Option<Duration>,

    /// Replace a worker that has more memory than this: 512M, 2G, or auto. Default: never.
    ///
    /// It and its descendants count together, every 2s. auto: 80% of the memory that the cgroup or
    /// the machine has, divided by the workers and one more, which starts beside.
    #[arg(
        long,
        value_name = "BYTES",
        env = "CROUPIER_MAX_RSS",
        value_parser = parse_max_rss,
        help_heading = heading::LIMITS
    )]
    pub max_rss: Option<MaxRssArg>,

    /// How long the share of a fresh worker rises, so that cold caches are not flooded. 0: off.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_SLOW_START",
        default_value = "10s",
        value_parser = parse_duration,
        help_heading = heading::DEALING
    )]
    pub slow_start: Duration,

    /// When a worker is ready: listen, accept, notify or start.
    ///
    /// listen (default): it listens. accept: it asked for a connection, for servers that listen
    /// before the application is loaded. notify: it says so. start: at once, for workers that
    /// never listen (the default with --adapter listen-fds).
    #[arg(
        long,
        value_name = "WHEN",
        env = "CROUPIER_READY",
        value_parser = parse_ready,
        help_heading = heading::READINESS
    )]
    pub ready: Option<ReadyRule>,

    /// A worker that is not ready by then is killed. Long, because big applications load slowly.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_READY_TIMEOUT",
        default_value = "60s",
        value_parser = parse_duration,
        help_heading = heading::READINESS
    )]
    pub ready_timeout: Duration,

    /// A worker that ends this soon after it was ready has crashed, which restarts make rarer.
    ///
    /// After 16 crashes in a row a slot has failed. 0: only what ends before it is ready crashes.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_MIN_UPTIME",
        default_value = "1s",
        value_parser = parse_duration,
        help_heading = heading::WORKERS
    )]
    pub min_uptime: Duration,

    /// A worker is ready only when it has answered: http:PATH, as in http:/healthz, or tcp.
    ///
    /// http: the primary itself sends GET PATH to each new worker, which must answer with a status
    /// of 200 to 399; else it is asked again until --ready-timeout. tcp: the worker takes a
    /// connection and does not reset it. After what --ready asks for, at a start as at a reload.
    #[arg(
        long,
        value_name = "PROBE",
        env = "CROUPIER_READY_PROBE",
        value_parser = parse_probe,
        help_heading = heading::READINESS
    )]
    pub ready_probe: Option<ReadyProbe>,

    /// How long a replaced worker may finish its connections. Default: 30s, or --graceful-timeout
    /// if that is longer.
    ///
    /// Nobody waits behind it with a KILL, as somebody does behind a stop.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_DRAIN_TIMEOUT",
        value_parser = parse_duration,
        help_heading = heading::RELOADING
    )]
    pub drain_timeout: Option<Duration>,

    /// How long a worker may finish its connections at a stop. Under 10s, when Docker kills.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_GRACEFUL_TIMEOUT",
        default_value = "8s",
        value_parser = parse_duration,
        help_heading = heading::STOPPING
    )]
    pub graceful_timeout: Duration,

    /// How long to serve on after a stop was asked for, with `status --check` false already.
    ///
    /// For load balancers that must see it first; no preStop sleep is needed. A second TERM or INT,
    /// or `croupier stop`, ends the wait.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_STOP_DELAY",
        default_value = "0",
        value_parser = parse_duration, help_heading = heading::STOPPING)]
    pub stop_delay: Duration,

    /// How long after the stop signal KILL comes.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_KILL_AFTER",
        default_value = "2s",
        value_parser = parse_duration,
        help_heading = heading::STOPPING
    )]
    pub kill_after: Duration,

    /// The signal that asks a worker to end.
    #[arg(
        long,
        value_name = "SIG",
        env = "CROUPIER_STOP_SIGNAL",
        default_value = "TERM",
        value_parser = parse_signal,
        help_heading = heading::STOPPING
    )]
    pub stop_signal: Signal,

    /// Send the stop signal before waiting for connections: the program drains itself.
    #[arg(
        long,
        env = "CROUPIER_STOP_SIGNAL_FIRST",
        value_parser = FalseyValueParser::new(),
        help_heading = heading::STOPPING
    )]
    pub stop_signal_first: bool,

    /// A reload starts at most so many new workers at a time: N, or P% of the workers.
    ///
    /// The first one always starts alone. Starting is work, and the old workers still serve.
    #[arg(
        long,
        value_name = "N|P%",
        env = "CROUPIER_MAX_SURGE",
        default_value = "25%",
        value_parser = parse_surge,
        help_heading = heading::RELOADING
    )]
    pub max_surge: Surge,

    /// How long a reload watches the first new worker, and at its end all of them. 0: not at all.
    #[arg(
        long,
        value_name = "T",
        env = "CROUPIER_SOAK",
        default_value = "1s",
        value_parser = parse_duration,
        help_heading = heading::RELOADING
    )]
    pub soak: Duration,

    /// Most replaced workers that finish their connections at a time; beyond it the oldest is ended.
    ///
    /// Default: twice the workers. It matters when reloads come faster than long connections end.
    #[arg(
        long,
        value_name = "N",
        env = "CROUPIER_MAX_DRAINING",
        value_parser = clap::value_parser!(u16).range(1..),
        help_heading = heading::RELOADING
    )]
    pub max_draining: Option<u16>,

    /// With -p ip: a slot takes at most F times the average load; above it clients go elsewhere.
    #[arg(
        long,
        value_name = "F",
        env = "CROUPIER_STICKY_BOUND",
        value_parser = parse_bound,
        help_heading = heading::DEALING
    )]
    pub sticky_bound: Option<u32>,

    /// With -p ip: what the choice of slots depends on. Default: the name, so restarts keep it.
    #[arg(
        long,
        value_name = "TEXT",
        env = "CROUPIER_STICKY_SEED",
        hide_env_values = true,
        help_heading = heading::DEALING
    )]
    pub sticky_seed: Option<String>,

    /// How output and log look: text or json (one object per line).
    #[arg(
        long,
        value_name = "FORMAT",
        env = "CROUPIER_LOG_FORMAT",
        default_value = "text",
        value_parser = parse_log_format,
        help_heading = heading::OPERATION
    )]
    pub log_format: LogFormat,

    /// Log a line about workers, load, memory and restarts this often. Default: never.
    #[arg(long, value_name = "T", env = "CROUPIER_REPORT", value_parser = parse_duration, help_heading = heading::OPERATION)]
    pub report: Option<Duration>,

    /// Write output and log to this file, instead of stdout and stderr; USR1 opens it again.
    ///
    /// For logrotate, which moves the file and sends USR1 (examples/logrotate.conf). A full disk
    /// costs lines, which are counted, and never stops the dealing.
    #[arg(
        long,
        value_name = "PATH",
        env = "CROUPIER_LOG_FILE",
        help_heading = heading::OPERATION
    )]
    pub log_file: Option<PathBuf>,

    /// Let workers write to stdout and stderr themselves, without the [w2] in front.
    #[arg(
        long,
        env = "CROUPIER_RAW_OUTPUT",
        value_parser = FalseyValueParser::new(),
        help_heading = heading::OPERATION
    )]
    pub raw_output: bool,

    /// Exit statuses that a worker means: its slot stays down until `croupier start SLOT`.
    ///
    /// Not a crash: it is not restarted, and when the workers of all slots have ended so, croupier
    /// ends with status 0. Several are separated by commas, as in 0,3. Default: none, every exit
    /// is a reason to start the next worker.
    #[arg(
        long,
        value_name = "N,…",
        env = "CROUPIER_STOP_EXIT_CODES",
        value_delimiter = ',',
        value_parser = parse_exit_code,
        help_heading = heading::WORKERS
    )]
    pub stop_exit_codes: Vec<u8>,

    /// Keep trying when every worker has failed, instead of leaving with status 1, once one was ready.
    ///
    /// Before anybody was ever ready three tries are all, as without it.
    #[arg(
        long,
        env = "CROUPIER_STAY",
        value_parser = FalseyValueParser::new(),
        help_heading = heading::WORKERS
    )]
    pub stay: bool,

    /// Where libcroupier_preload.so is, if not beside croupier or in ../lib/croupier.
    #[arg(
        long,
        value_name = "PATH",
        env = "CROUPIER_PRELOAD_PATH",
        help_heading = heading::WORKERS
    )]
    pub preload_path: Option<PathBuf>,

    /// Reload when something in PATH changes, for development. PATH: a file or a folder with all below it;
    /// default: the working directory. Repeatable.
    ///
    /// A reload can only succeed or change nothing. .git, node_modules, target, __pycache__, venv and
    /// editors' temporary files are not looked at; the config file is.
    #[arg(
        long,
        value_name = "PATH",
        env = "CROUPIER_WATCH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ".",
        help_heading = heading::RELOADING
    )]
    pub watch: Vec<PathBuf>,

    /// Read settings from this file. Default: croupier.toml, where it is in the working directory.
    ///
    /// Its keys are these flags' names. A flag, or its variable, wins over the file. A reload reads
    /// it again. /dev/null: no file.
    #[arg(
        short,
        long,
        value_name = "PATH",
        env = "CROUPIER_CONFIG",
        help_heading = heading::OPERATION
    )]
    pub config: Option<PathBuf>,

    /// Take the settings of [profile.NAME] of the file over its others.
    #[arg(
        long,
        value_name = "NAME",
        env = "CROUPIER_PROFILE",
        help_heading = heading::OPERATION
    )]
    pub profile: Option<String>,

    /// The program to run and its arguments; {slot} and {id} are replaced in them.
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,

    /// What only a file can say.
    #[arg(skip)]
    pub from_file: FromFile,
}

/// What a file says that its flag does not show.
#[derive(Debug, Clone, Default)]
pub struct FromFile {
    /// `[env]`, before what the flags say.
    pub env: Vec<(OsString, OsString)>,
    /// `workers` stands in the file: a platform's variable wins over it.
    pub workers: bool,
    /// The policy of each `listen` that has its own, where the file's are in force.
    pub policies: Vec<Option<(Policy, Place)>>,
}
