//! `croupier unit`: a systemd unit for what `croupier run` would do with these flags.
//!
//! Promises: judged by the same code as a run; every path is absolute, every word quoted as systemd
//! reads it (systemd.service(5), systemd.syntax(7)); nothing that the program may need is taken from
//! it. Never does: install, start or ask anything.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::unistd::geteuid;

use super::run::RunArgs;
use super::{Exit, code, subcommand};
use crate::adapter;
use crate::config::{
    ListenAddress, LoadError, Loaded, RunConfig, Setting, Source, Surroundings, load, user_name,
};

const AFTER_HELP: &str = "\
Takes what `croupier run` takes: put unit in its place. Nothing is installed or started. Run it where and as
whom the service is to run: that folder and, unless --user says otherwise, that user are its own.

Examples:
  croupier unit -l :80=3000 --user www-data -- node server.js
  croupier unit -w 4 -n web -- gunicorn -b :8000 app:app > /etc/systemd/system/web.service
  systemctl daemon-reload && systemctl enable --now web";

/// Where systemd looks for programs by itself (systemd.exec(5), `ExecSearchPath=`).
const OWN_PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Ports below this need a capability.
const FREE_PORT: u16 = 1024;
/// What is left to the end of the primary itself after all its own times.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// What the program can do without, whatever it is. Not here: what breaks some (`PrivateTmp=` hides Unix
/// sockets, `MemoryDenyWriteExecute=` stops every JIT, `ProtectHome=` and `ProtectSystem=strict` hide
/// or lock what it serves, `RestrictNamespaces=` and `SystemCallFilter=` stop browsers it may start).
const HARDENING: &str = "\
# What no server needs. More, if yours allows it: systemd-analyze security
NoNewPrivileges=yes
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
";

/// Print a systemd unit that runs this.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct UnitArgs {
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn execute(_: &UnitArgs, words: Vec<OsString>) -> Result<Exit, LoadError> {
    let loaded = load(|| subcommand("unit"), words, &Surroundings::of_this_process())?;
    let program = match adapter::resolve(&loaded.config) {
        Ok(resolved) => resolved.program,
        Err(error) => return Ok(Exit::error(error.exit_code(), error)),
    };
    let here = match Here::look(program) {
        Ok(here) => here,
        Err(error) => return Ok(Exit::error(code::FAILED, error)),
    };
    Ok(match unit(&loaded, &here) {
        Ok(text) => Exit::with(code::DONE, text),
        Err(why) => Exit::error(code::USAGE, why),
    })
}

/// What the unit takes from the process that prints it.
#[derive(Debug)]
struct Here {
    croupier: PathBuf,
    program: PathBuf,
    folder: PathBuf,
    /// Who it is now; `None`: root.
    user: Option<String>,
    path: OsString,
}

impl Here {
    fn look(program: PathBuf) -> Result<Self, String> {
        let cannot = |what: &str, error: std::io::Error| format!("cannot find out {what}: {error}");
        let uid = geteuid();
        let name = user_name(uid);
        Ok(Self {
            croupier: std::env::current_exe()
                .map_err(|error| cannot("where croupier is", error))?,
            program: std::path::absolute(program)
                .map_err(|error| cannot("where the program is", error))?,
            folder: std::env::current_dir()
                .map_err(|error| cannot("the working directory", error))?,
            user: (!uid.is_root()).then_some(name),
            path: std::env::var_os("PATH").unwrap_or_default(),
        })
    }
}

fn unit(loaded: &Loaded, here: &Here) -> Result<String, String> {
    let config = &loaded.config;
    let given = |name: &str| {
        let setting = loaded.settings.iter().find(|one| one.name == name)?;
        (setting.source != Source::Default).then(|| setting.values.first())?
    };
    let title: Vec<_> = config.command.iter().map(|word| word.to_string_lossy()).collect();
    let mut text = format!(
        "# Made by `croupier unit`. To install it as {0}.service:\n#   croupier unit … > \
         /etc/systemd/system/{0}.service\n#   systemctl daemon-reload && systemctl enable --now {0}\n\n",
        config.name
    );
    let mut line = |text_of_line: String| {
        text.push_str(&text_of_line);
        text.push('\n');
    };
    line("[Unit]".into());
    line(format!("Description={}", value(OsStr::new(&format!("croupier: {}", title.join(" "))))?));
    line("Wants=network-online.target\nAfter=network-online.target\n\n[Service]".into());
    line("Type=notify\nNotifyAccess=main".into());
    line(format!("ExecStart={}", start_line(loaded, here)?));
    let croupier = word(here.croupier.as_os_str())?;
    line(format!("ExecReload={croupier} reload -n {}", config.name));
    line(format!("WorkingDirectory={}", value(here.folder.as_os_str())?));
    let user = given("user").cloned().or_else(|| here.user.clone());
    match &user {
        Some(user) => line(format!("User={}", value(OsStr::new(user))?)),
        None => {
            line("# It runs as root; `croupier unit --user NAME` makes it somebody else.".into())
        }
    }
    if let Some(group) = given("group") {
        line(format!("Group={}", value(OsStr::new(group))?));
    }
    if user.is_some() {
        let low = |spec: &crate::config::ListenSpec| match &spec.public {
            ListenAddress::Tcp { address, .. } => (1..FREE_PORT).contains(&address.port()),
            ListenAddress::Unix(_) => false,
        };
        if config.listen.iter().any(low) {
            line("AmbientCapabilities=CAP_NET_BIND_SERVICE".into());
        } else if config.listen.is_empty() {
            line(format!("# If the program listens on a port below {FREE_PORT}:"));
            line("#AmbientCapabilities=CAP_NET_BIND_SERVICE".into());
        }
    }
    if !here.program.parent().is_some_and(|folder| OWN_PATH.iter().any(|own| folder == *own)) {
        // Its interpreter may be beside it, or anywhere else where the shell finds it.
        let mut assignment = OsString::from("PATH=");
        assignment.push(&here.path);
        line(format!("Environment={}", word(&assignment)?));
    }
    line(format!("TimeoutStartSec={}", seconds(config.core.ready_timeout + LAST_MOMENT)));
    line(format!("TimeoutStopSec={}", seconds(longest_stop(config))));
    line(
        "# The primary alone is asked to end, and ends its workers; what is left then is killed."
            .into(),
    );
    line("KillMode=mixed\nRestart=on-failure\nRestartSec=1s\nWatchdogSec=30s".into());
    line(
        "# A worker that was killed for lack of memory is replaced; no reason to end the others."
            .into(),
    );
    line("OOMPolicy=continue\nLimitNOFILE=65536:524288".into());
    text.push_str(HARDENING);
    text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
    Ok(text)
}

/// How long after TERM the last worker may be killed, and a moment.
fn longest_stop(config: &RunConfig) -> Duration {
    let core = &config.core;
    config.care.stop_delay + core.graceful_timeout + core.kill_after + LAST_MOMENT
}

fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

/// `croupier run` with what flags and variables said. What a file says stays there.
fn start_line(loaded: &Loaded, here: &Here) -> Result<String, String> {
    let config = &loaded.config;
    let mut words: Vec<OsString> = vec![here.croupier.clone().into(), "run".into()];
    words.extend(["--name".into(), OsString::from(&config.name)]);
    if let Some((path, profile)) = loaded.origin.file_and_profile() {
        let path = std::path::absolute(path).map_err(|error| error.to_string())?;
        words.extend(["--config".into(), path.into()]);
        words.extend(profile.into_iter().flat_map(|name| ["--profile".into(), name.into()]));
    }
    let said = |setting: &&Setting| match setting.source {
        Source::Flag | Source::Variable(_) => true,
        Source::File(_) | Source::Default => false,
    };
    for Setting { name, values, .. } in loaded.settings.iter().filter(said) {
        if ["name", "user", "group", "command"].contains(&name.as_str()) {
            continue;
        }
        for value in values {
            words.push(match (name.strip_prefix("env."), value.as_str()) {
                (Some(variable), _) => format!("--env={variable}={value}").into(),
                (None, "true") if is_switch(name) => format!("--{name}").into(),
                (None, "false") if is_switch(name) => continue,
                (None, _) => format!("--{name}={value}").into(),
            });
        }
    }
    words.push("--".into());
    words.push(here.program.clone().into());
    words.extend(config.command.iter().skip(1).cloned());
    let quoted: Result<Vec<String>, String> = words.iter().map(|one| word(one)).collect();
    Ok(quoted?.join(" "))
}

/// Whether a flag takes no value.
fn is_switch(name: &str) -> bool {
    let command = subcommand("unit");
    let found = command.get_arguments().find(|arg| arg.get_long() == Some(name));
    found.is_some_and(|arg| !arg.get_action().takes_values())
}

/// A word of a command line or assignment, as systemd reads it back.
fn word(text: &OsStr) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+{}[]".contains(c);
    let text = utf8(text)?;
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // Specifiers and variables.
            '%' | '$' => quoted.extend([c, c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let written = write!(quoted, "\\x{:02x}", u32::from(c));
                debug_assert!(written.is_ok(), "a String takes everything");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

/// A value that is the whole rest of its line.
fn value(text: &OsStr) -> Result<String, String> {
    let text = utf8(text)?;
    if text.chars().any(char::is_control) || text.ends_with('\\') {
        return Err(format!("{text:?} cannot stand in a unit"));
    }
    Ok(text.replace('%', "%%"))
}

fn utf8(text: &OsStr) -> Result<&str, String> {
    text.to_str()
        .ok_or_else(|| format!("{}: a unit is UTF-8, and this is not", Path::new(text).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_as_systemd_reads_them() {
        let quoted = |text: &str| word(OsStr::new(text)).unwrap();
        for plain in ["node", "-w", "--env=A=b", "/usr/bin/x", "{slot}", "[::]:80"] {
            assert_eq!(quoted(plain), plain);
        }
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted("a b"), "\"a b\"");
        assert_eq!(quoted("50%"), "\"50%%\"");
        assert_eq!(quoted("$HOME"), "\"$$HOME\"");
        assert_eq!(quoted(r#"say "hi" \ 'you'"#), r#""say \"hi\" \\ 'you'""#);
        assert_eq!(quoted("a\nb\x01"), "\"a\\nb\\x01\"");
        assert_eq!(quoted(";"), "\";\"");
        assert_eq!(quoted("naïve"), "\"naïve\"");
        let bytes = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff");
        assert!(word(bytes).unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn values_are_the_rest_of_their_line() {
        assert_eq!(value(OsStr::new("/srv/my app/50%")).unwrap(), "/srv/my app/50%%");
        assert!(value(OsStr::new("a\nUser=root")).is_err(), "no second line can be smuggled in");
        assert!(value(OsStr::new("a\\")).is_err(), "nor the next one swallowed");
    }

    fn printed(words: &[&str], user: Option<&str>) -> String {
        let words = [&["unit"], words].concat().into_iter().map(OsString::from).collect();
        let loaded = load(|| subcommand("unit"), words, &Surroundings::of_this_process()).unwrap();
        let here = Here {
            croupier: "/opt/croupier/bin/croupier".into(),
            program: "/usr/bin/node".into(),
            folder: "/srv/app".into(),
            user: user.map(str::to_owned),
            path: "/home/app/bin:/usr/bin".into(),
        };
        unit(&loaded, &here).unwrap()
    }

    #[test]
    fn flags_are_the_runs_and_times_are_theirs() {
        let flags = ["-w", "3", "-l", ":80=3000", "--env", "A=b c", "--stay", "-n", "web"];
        let times =
            ["--graceful-timeout", "20s", "--stop-delay", "1500ms", "--ready-timeout", "2m"];
        let text =
            printed(&[&flags[..], &times, &["--", "node", "a.js", "{slot}"]].concat(), Some("app"));
        let start = text.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
        assert!(
            start.starts_with("ExecStart=/opt/croupier/bin/croupier run --name web "),
            "{start}"
        );
        for part in [
            "--workers=3",
            "--listen=:80=3000",
            "\"--env=A=b c\"",
            "--stay ",
            "--stop-delay=1500ms",
        ] {
            assert!(start.contains(part), "{part}: {start}");
        }
        assert!(start.ends_with(" -- /usr/bin/node a.js {slot}"), "{start}");
        for line in [
            "ExecReload=/opt/croupier/bin/croupier reload -n web",
            "User=app",
            "WorkingDirectory=/srv/app",
            "AmbientCapabilities=CAP_NET_BIND_SERVICE",
            // 1.5 s + 20 s + 2 s + 5 s, rounded up.
            "TimeoutStopSec=29s",
            "TimeoutStartSec=125s",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        assert!(!text.contains("Environment=PATH"), "systemd finds it by itself: {text}");
    }

    #[test]
    fn what_is_not_needed_is_not_there() {
        let text = printed(&["-l", ":8080", "--", "node"], Some("app"));
        assert!(!text.contains("CAP_NET_BIND_SERVICE"), "{text}");
        let text = printed(&["--", "node"], Some("app"));
        assert!(text.contains("\n#AmbientCapabilities="), "nobody knows yet: {text}");
        let text = printed(&["--", "node"], None);
        assert!(!text.contains("\nUser=") && text.contains("# It runs as root"), "{text}");
        assert!(!text.contains("AmbientCapabilities"), "{text}");
    }
}
