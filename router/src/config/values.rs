//! Single values: their types, their parsers, and how they are written.
//!
//! Promises: a parser judges a value alone, wherever it was written, and its error says what would
//! be right. Never does: compare two settings (that is `run`'s), or ask the machine.

use std::fmt;
use std::time::Duration;

use croupier_core::config::{Policy, ReadyRule, Surge};
use croupier_core::event::Scale;
use nix::sys::signal::Signal;

use super::parse_listen;
use crate::name;

/// Longest path of `--ready-probe`, in bytes.
pub(super) const PROBE_PATH_MAX: usize = 1024;

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

pub(super) fn workers_text(arg: WorkersArg) -> String {
    match arg {
        WorkersArg::Auto => "auto".into(),
        WorkersArg::Count(count) => count.to_string(),
        WorkersArg::AllBut(spare) => format!("-{spare}"),
        WorkersArg::Times(factor) => format!("{factor}x"),
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

/// Parses `--adapter`.
///
/// # Errors
/// What the value should have been.
pub fn parse_adapter(text: &str) -> Result<AdapterChoice, String> {
    match text {
        "auto" => Ok(AdapterChoice::Auto),
        "preload" => Ok(AdapterChoice::Preload),
        "shim" => Ok(AdapterChoice::Shim),
        "listen-fds" => Ok(AdapterChoice::ListenFds),
        "fd" => Ok(AdapterChoice::Fd),
        _ => Err("the adapters are auto, preload, shim, listen-fds and fd".into()),
    }
}

/// Parses `--ready`.
///
/// # Errors
/// What the value should have been.
pub fn parse_ready(text: &str) -> Result<ReadyRule, String> {
    match text {
        "listen" => Ok(ReadyRule::Listen),
        "accept" => Ok(ReadyRule::Accept),
        "notify" => Ok(ReadyRule::Notify),
        "start" => Ok(ReadyRule::Start),
        _ => Err("a worker is ready at listen, accept, notify or start".into()),
    }
}

/// Parses `--log-format`.
///
/// # Errors
/// What the value should have been.
pub fn parse_log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("the formats are text and json".into()),
    }
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
    let bytes = parse_bytes(text).map_err(|why| why + ", or auto")?;
    if bytes >= MAX_RSS_MIN {
        return Ok(MaxRssArg::Bytes(bytes));
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = if digits == text { " bytes" } else { "" };
    Err(format!("{text}{unit} is less than any program needs; {digits}M?"))
}

/// A smaller `--max-rss` has lost its unit.
const MAX_RSS_MIN: u64 = 1 << 20;

/// Parses a size: `512M`, `2G`, or a number of bytes.
///
/// # Errors
/// What the value should have been.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
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
        .ok_or_else(|| "say how much memory, as in 512M or 2G".to_owned())
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
    let signal = parse_any_signal(text)?;
    if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
        let why = "a program cannot finish anything on that signal; --kill-after does it later";
        return Err(why.into());
    }
    Ok(signal)
}

/// Parses a signal that is to be sent: `TERM`, `SIGTERM` or a number.
///
/// # Errors
/// What the value should have been.
pub fn parse_any_signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let named = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal = match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => named.parse().ok(),
    };
    signal.ok_or_else(|| "signals are named as in kill -l: TERM, QUIT, INT, USR2".into())
}

/// Parses what `croupier scale` is given: `4`, `+1`, `-1`.
///
/// # Errors
/// What the value should have been.
pub fn parse_scale(text: &str) -> Result<Scale, String> {
    let number = text.trim_start_matches(['+', '-']);
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let count = number.parse().ok().filter(|_| digits);
    let scale = match (text.strip_suffix(number), count) {
        (Some(""), Some(count)) => Some(Scale::To(count)),
        (Some("+"), Some(count)) => Some(Scale::Up(count)),
        (Some("-"), Some(count)) => Some(Scale::Down(count)),
        (Some(_) | None, _) => None,
    };
    let why = "say how many workers, as in 4, or how many more or fewer, as in +1 or -1";
    scale.ok_or_else(|| why.to_owned())
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
