//! `croupier-bench-worker`: the server behind every engine.
//!
//! Owns: its command line and how connections come to it. Promises: the same work for the same path
//! under every engine; each answer names this process. Never does: know of croupier: there it runs
//! by the preload, like any program.

mod blocking;
mod event_loop;
mod request;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use croupier_bench::adopt;
use croupier_bench::counts::Counts;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};

static COUNTS: Counts = Counts::new();
const BACKLOG: i32 = 4096;

/// The server that croupier-bench puts behind every engine.
#[derive(Debug, Parser)]
#[command(name = "croupier-bench-worker")]
struct Arguments {
    /// Where connections come from.
    #[arg(long, value_enum, default_value_t = From::Bind)]
    from: From,
    /// The port of 127.0.0.1, unless they come by standard input.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How they are served.
    #[arg(long, value_enum, default_value_t = Mode::Blocking)]
    mode: Mode,
    /// Where this process tells what it counted.
    #[arg(long)]
    counts: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    /// A listening socket of its own.
    Bind,
    /// One with SO_REUSEPORT.
    Reuseport,
    /// Standard input is a listening socket.
    Inherited,
    /// Standard input is a Unix socket that brings connections as descriptors.
    Descriptors,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// One connection after another; each is closed after its answer.
    Blocking,
    /// An event loop; what a request blocks, it blocks for all.
    Loop,
}

/// Where connections come from.
#[derive(Debug)]
enum Source {
    Listener(TcpListener),
    Channel(UnixStream),
}

impl Source {
    fn open(arguments: &Arguments) -> io::Result<Self> {
        match arguments.from {
            From::Bind => listen_on(arguments.port, false).map(Self::Listener),
            From::Reuseport => listen_on(arguments.port, true).map(Self::Listener),
            From::Inherited => {
                let socket = io::stdin().as_fd().try_clone_to_owned()?;
                Ok(Self::Listener(TcpListener::from(socket)))
            }
            From::Descriptors => {
                let socket = io::stdin().as_fd().try_clone_to_owned()?;
                Ok(Self::Channel(UnixStream::from(socket)))
            }
        }
    }

    fn next(&self) -> io::Result<TcpStream> {
        match self {
            Self::Listener(listener) => listener.accept().map(|(stream, _)| stream),
            Self::Channel(channel) => adopt::receive(channel),
        }
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Listener(listener) => listener.set_nonblocking(true),
            Self::Channel(channel) => channel.set_nonblocking(true),
        }
    }
}

/// A listener with the backlog that every engine's workers have.
fn listen_on(port: u16, reuseport: bool) -> io::Result<TcpListener> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if reuseport {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    let address = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(fd))
}

fn serve(arguments: &Arguments) -> io::Result<()> {
    let source = Source::open(arguments)?;
    COUNTS.announce(&arguments.counts)?;
    match arguments.mode {
        Mode::Blocking => blocking::serve(&source),
        Mode::Loop => event_loop::serve(source),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a worker that cannot serve")]
fn main() -> ExitCode {
    match serve(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("croupier-bench-worker: {error}");
            ExitCode::FAILURE
        }
    }
}
