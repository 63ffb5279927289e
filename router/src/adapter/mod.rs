//! The ways a program becomes a worker, and which one serves this program.
//!
//! Owns: finding the program, judging whether the preload library can serve it, finding that
//! library, the variables that a worker gets. Promises: what cannot work is refused before anything
//! starts, with the reason and what to do instead. Never does: start anything.

pub mod preload;
pub mod program;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use croupier_wire::message::{CONTROL_VAR, GENERATION_VAR, SLOT_VAR, WORKER_VAR};

use crate::cli::code;
use crate::config::{AdapterChoice, Ids, RunConfig, expand, program_port};
use preload::PreloadError;
use program::{Obstacle, ProgramError};

/// Told to workers whose stdout is a pipe of croupier's: the preload library makes C stdio
/// line-buffered.
pub const LINE_BUFFERED_VAR: &str = "CROUPIER_LINE_BUFFERED";

/// Variables by which a service manager or another croupier speaks to this process, and to it
/// alone: they are taken out of workers' environments.
pub const OWN_VARS: [&str; 6] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// How a program becomes a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adapter {
    /// The preload library takes over bind, listen and accept.
    Preload,
    /// The program asks by itself, through `croupier-worker`.
    Shim,
    /// The program takes a listening socket by `LISTEN_FDS`.
    ListenFds,
    /// The program inherits its channel and receives descriptors by itself.
    Fd,
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preload => "preload",
            Self::Shim => "shim",
            Self::ListenFds => "listen-fds",
            Self::Fd => "fd",
        })
    }
}

/// What is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The file to execute.
    pub program: PathBuf,
    /// Its argv, with `{slot}` and `{id}` still in it.
    pub argv: Vec<OsString>,
    /// How it becomes a worker.
    pub adapter: Adapter,
    /// The library for `LD_PRELOAD`.
    pub preload: Option<PathBuf>,
    /// What a person may want to know; one sentence each.
    pub notes: Vec<String>,
}

/// Why a program cannot be a worker.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It cannot be executed at all.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// It runs, but the preload library would not be loaded, or not be called.
    #[error(
        "{}: {obstacle}, so croupier cannot deal to it. If it takes a socket by LISTEN_FDS, use \
         --adapter listen-fds with -l and -p shared or -p reuseport; if it links croupier-worker, \
         use --adapter shim",
        program.display()
    )]
    Obstacle {
        /// The program, behind all `#!` lines.
        program: PathBuf,
        /// What is in the way.
        obstacle: Obstacle,
    },
    /// The preload library cannot be used.
    #[error(transparent)]
    Preload(#[from] PreloadError),
}

impl ResolveError {
    /// The exit code, as shells have it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Program(ProgramError::NotFound { .. }) => code::NOT_FOUND,
            Self::Program(
                ProgramError::NotExecutable { .. } | ProgramError::Interpreter { .. },
            ) => code::NOT_EXECUTABLE,
            Self::Obstacle { .. } | Self::Preload(_) => code::FAILED,
        }
    }
}

/// Finds the program of a run and the way to make it a worker.
///
/// # Errors
/// [`ResolveError`].
pub fn resolve(config: &RunConfig) -> Result<Resolved, ResolveError> {
    let word = config.command.first().map(OsString::as_os_str).unwrap_or_default();
    let search = given(config, "PATH").or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    // A path that is not absolute is meant from where the workers start.
    let path = match &config.care.folder {
        Some(folder) if word.as_bytes().contains(&b'/') => folder.join(word).into_os_string(),
        Some(_) | None => word.to_owned(),
    };
    let found = program::find(&path, &search)?;
    let binary = program::binary_of(&found, &search)?;
    let mut notes = Vec::new();
    let (adapter, preload) = match config.adapter {
        AdapterChoice::Auto | AdapterChoice::Preload => {
            if let Some(obstacle) = binary.obstacle(config.ids.as_ref()) {
                return Err(ResolveError::Obstacle { program: binary.path, obstacle });
            }
            (Adapter::Preload, Some(library(config)?))
        }
        // The library only rides along here, to count closed connections.
        AdapterChoice::Shim => match (binary.obstacle(config.ids.as_ref()), library(config)) {
            (None, Ok(library)) => (Adapter::Shim, Some(library)),
            (Some(_), _) => (Adapter::Shim, None),
            (None, Err(error)) => {
                notes.push(format!("closed connections are not counted: {error}"));
                (Adapter::Shim, None)
            }
        },
        AdapterChoice::ListenFds => (Adapter::ListenFds, None),
        AdapterChoice::Fd => (Adapter::Fd, None),
    };
    Ok(Resolved { program: found, argv: config.command.clone(), adapter, preload, notes })
}

/// After execve(2) said EACCES: the file or folder that keeps the workers' user from the program, or from
/// the interpreter that its first line wants.
#[must_use]
pub fn closed_to(program: &Path, ids: &Ids) -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let binary = program::binary_of(program, &search).ok().map(|binary| binary.path);
    let files = [Some(program.to_owned()), binary];
    files.into_iter().flatten().find_map(|file| {
        let file = std::fs::canonicalize(&file).unwrap_or(file);
        preload::barrier_on_the_way(&file, 0o1, Some(ids))
    })
}

/// Which worker an environment is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its slot.
    pub slot: u16,
    /// Its id.
    pub worker: u32,
    /// Its generation.
    pub generation: u32,
    /// The value of `CROUPIER_CONTROL`.
    pub control: String,
}

/// The variables of one worker, to be set over the primary's own (less [`OWN_VARS`]).
#[must_use]
pub fn spawn_env(
    config: &RunConfig,
    resolved: &Resolved,
    place: &Place,
) -> Vec<(OsString, OsString)> {
    spawn_env_over(config, resolved, place, |name| std::env::var_os(name))
}

fn spawn_env_over(
    config: &RunConfig,
    resolved: &Resolved,
    place: &Place,
    inherited: impl Fn(&str) -> Option<OsString>,
) -> Vec<(OsString, OsString)> {
    let mut set: Vec<(OsString, OsString)> = Vec::new();
    let mut put = |name: &OsStr, value: OsString| set.push((name.to_owned(), value));
    if let Some(ids) = &config.ids {
        if let Some(home) = &ids.home {
            put("HOME".as_ref(), home.into());
        }
        if let Some(name) = &ids.user_name {
            put("USER".as_ref(), name.into());
            put("LOGNAME".as_ref(), name.into());
        }
    }
    if config.workers.from_platform.is_some() {
        put("WEB_CONCURRENCY".as_ref(), "1".into());
    }
    for (name, value) in defaults(config, place) {
        if inherited(name).is_none() {
            put(name.as_ref(), value);
        }
    }
    if !config.raw_output {
        put(LINE_BUFFERED_VAR.as_ref(), "1".into());
    }
    for (name, value) in &config.care.variables {
        put(name, value.clone());
    }
    for (name, value) in &config.env {
        put(name, expand(value, place.slot, place.worker));
    }
    // Last, so that nothing above can take these away.
    put(CONTROL_VAR.as_ref(), OsString::from(&place.control));
    put(WORKER_VAR.as_ref(), place.worker.to_string().into());
    put(SLOT_VAR.as_ref(), place.slot.to_string().into());
    put(GENERATION_VAR.as_ref(), place.generation.to_string().into());
    if let Some(library) = &resolved.preload {
        let kept = given(config, "LD_PRELOAD").or_else(|| inherited("LD_PRELOAD"));
        put("LD_PRELOAD".as_ref(), preload::value(library.as_os_str(), kept.as_deref()));
    }
    set
}

/// Variables that a worker gets unless they are set already.
fn defaults(config: &RunConfig, place: &Place) -> Vec<(&'static str, OsString)> {
    // PM2's name for the slot; programs use it to run a cron job in one worker only.
    let mut defaults = vec![("NODE_APP_INSTANCE", place.slot.to_string().into())];
    if let [only] = config.listen.as_slice()
        && let Some(port) = program_port(only).filter(|port| *port != 0)
    {
        defaults.push(("PORT", port.to_string().into()));
    }
    if !config.raw_output {
        defaults.push(("PYTHONUNBUFFERED", "1".into()));
    }
    defaults
}

/// The last `--env NAME=`, else what the last `--env-file` has.
fn given(config: &RunConfig, name: &str) -> Option<OsString> {
    let named = |pair: &&(OsString, OsString)| pair.0 == OsStr::new(name);
    let all = config.env.iter().rev().chain(config.care.variables.iter().rev());
    all.into_iter().find(named).map(|(_, value)| value.clone())
}

fn library(config: &RunConfig) -> Result<PathBuf, PreloadError> {
    preload::library(config.preload_path.as_deref(), config.ids.as_ref())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::run::RunArgs;
    use crate::config::Surroundings;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn config(words: &[&str], web_concurrency: Option<&str>) -> RunConfig {
        let line = Line::try_parse_from([&["run"], words].concat()).unwrap();
        let around = Surroundings {
            cpus: 2,
            cpus_online: 2,
            workers: None,
            web_concurrency: web_concurrency.map(str::to_owned),
            node_sched_policy: None,
            memory: None,
            somaxconn: 128,
            inherited: Ok(Vec::new()),
        };
        RunConfig::new(line.args, &around).unwrap()
    }

    fn variables(config: &RunConfig, inherited: &[(&str, &str)], wanted: &str) -> Option<String> {
        let resolved = Resolved {
            program: "/bin/true".into(),
            argv: config.command.clone(),
            adapter: Adapter::Preload,
            preload: Some("/lib/p.so".into()),
            notes: Vec::new(),
        };
        let place = Place { slot: 2, worker: 7, generation: 3, control: "t@n".into() };
        let set = spawn_env_over(config, &resolved, &place, |name| {
            inherited.iter().find(|pair| pair.0 == name).map(|pair| pair.1.into())
        });
        // The last one counts, as with Command::env.
        let last = set.iter().rev().find(|pair| pair.0 == wanted);
        last.map(|pair| pair.1.to_string_lossy().into_owned())
    }

    #[test]
    fn workers_learn_who_they_are() {
        let config = config(&["-e", "TAG=w{slot}.{id}", "x"], None);
        let get = |name| variables(&config, &[], name).unwrap();
        assert_eq!(get(CONTROL_VAR), "t@n");
        assert_eq!(
            (get(WORKER_VAR), get(SLOT_VAR), get(GENERATION_VAR)),
            ("7".into(), "2".into(), "3".into())
        );
        assert_eq!((get("TAG"), get("NODE_APP_INSTANCE")), ("w2.7".into(), "2".into()));
        assert_eq!((get("PYTHONUNBUFFERED"), get(LINE_BUFFERED_VAR)), ("1".into(), "1".into()));
        assert_eq!(get("LD_PRELOAD"), "/lib/p.so");
    }

    #[test]
    fn what_is_set_stays() {
        let config = config(&["-l", ":80=3000", "x"], None);
        let inherited = [("PORT", "9"), ("PYTHONUNBUFFERED", ""), ("LD_PRELOAD", "/je.so")];
        assert_eq!(variables(&config, &inherited, "PORT"), None);
        assert_eq!(variables(&config, &inherited, "PYTHONUNBUFFERED"), None);
        assert_eq!(variables(&config, &inherited, "LD_PRELOAD").unwrap(), "/lib/p.so:/je.so");
        assert_eq!(variables(&config, &[], "PORT").unwrap(), "3000");
        assert_eq!(variables(&config, &[], "WEB_CONCURRENCY"), None);
    }

    #[test]
    fn given_variables_win() {
        let words =
            ["-l", ":80", "-e", "PORT=1", "-e", "LD_PRELOAD=/a.so", "-e", "CROUPIER_SLOT=9", "x"];
        let config = config(&words, Some("3"));
        let inherited = [("LD_PRELOAD", "/je.so"), ("WEB_CONCURRENCY", "3")];
        let get = |name| variables(&config, &inherited, name).unwrap();
        assert_eq!((get("PORT"), get("WEB_CONCURRENCY")), ("1".into(), "1".into()));
        assert_eq!((get("LD_PRELOAD"), get(SLOT_VAR)), ("/lib/p.so:/a.so".into(), "2".into()));
    }

    #[test]
    fn only_one_address_gives_a_port() {
        for (words, port) in [
            (["-l", ":80", "-l", ":81", "x"].as_slice(), None),
            (&["-l", ":0", "x"], None),
            (&["-l", "/a", "x"], None),
            (&["x"], None),
            (&["-l", "127.0.0.1:80", "x"], Some("80".to_owned())),
        ] {
            assert_eq!(variables(&config(words, None), &[], "PORT"), port, "{words:?}");
        }
    }

    #[test]
    fn what_cannot_be_started_has_the_exit_code_of_shells() {
        let code = |words: &[&str]| resolve(&config(words, None)).unwrap_err().exit_code();
        assert_eq!(code(&["no-such-program-anywhere"]), 127);
        assert_eq!(code(&["/no/such/program"]), 127);
        assert_eq!(code(&["/etc/passwd"]), 126);
        assert_eq!(code(&["/etc"]), 126);
        assert_eq!(code(&["--preload-path", "/no/such/lib.so", "true"]), 1);
        assert_eq!(code(&["-e", "PATH=/no", "true"]), 127);
    }
}
