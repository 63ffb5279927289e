//! Addresses: where clients connect, and what the program itself listens on.
//!
//! Owns: `-l` as it is written. Promises: what is displayed parses to the same again. Never does:
//! look up names, or open anything.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use croupier_core::config::Policy;

/// One `-l`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenSpec {
    /// Where clients connect.
    pub public: ListenAddress,
    /// Whose listen() is dealt these clients, when that is another address.
    pub program: Option<ProgramAddress>,
    /// How its clients are dealt, when that is not `-p`'s word (`[[listen]] policy`).
    pub policy: Option<Policy>,
    /// The descriptor that the service manager opened for it.
    pub inherited: Option<i32>,
}

impl ListenSpec {
    /// How its clients are dealt, where `default` is for those without a word of their own.
    pub(super) fn policy_or(&self, default: Policy) -> Policy {
        self.policy.unwrap_or(default)
    }

    /// Whether it was given before.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.public, &self.program) == (&other.public, &other.program)
    }

    /// Whether one listener of the program would be for both.
    pub(super) fn shares_program(&self, other: &Self) -> bool {
        let of = |spec: &Self| match (&spec.program, &spec.public) {
            (Some(program), _) => program.clone(),
            (None, ListenAddress::Tcp { address, .. }) => ProgramAddress::Port(address.port()),
            (None, ListenAddress::Unix(path)) => ProgramAddress::Unix(path.clone()),
        };
        match (of(self), of(other)) {
            (ProgramAddress::Port(one), ProgramAddress::Tcp(two))
            | (ProgramAddress::Tcp(two), ProgramAddress::Port(one)) => one == two.port(),
            (one, two) => one == two,
        }
    }
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
    Ok(ListenSpec { public, program, policy: None, inherited: None })
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
