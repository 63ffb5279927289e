//! The floor: accept4 + sendmsg + close, in turn, and nothing else.
//!
//! Owns: the loop that a hand-off cannot do less than. Promises: takes all that waits at each wake-up,
//! as croupier does; passfd sends. Never does: count, watch or choose.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;

use clap::Args;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};
use passfd::FdPassingExt;

use super::Serving;
use super::command::{self, From};
use crate::process::Guarded;

/// Arguments of the hidden subcommand.
#[derive(Debug, Args)]
pub struct FloorArgs {
    /// Where to listen, on 127.0.0.1.
    #[arg(long)]
    port: u16,
    /// How many workers.
    #[arg(long)]
    workers: u32,
    /// The worker program.
    #[arg(long)]
    worker: PathBuf,
    /// Where workers tell what they counted.
    #[arg(long)]
    counts: PathBuf,
    /// Workers are event loops.
    #[arg(long)]
    event_loop: bool,
}

/// Runs until TERM.
///
/// # Errors
/// If it cannot listen, or a worker not be started.
pub fn run_floor(arguments: &FloorArgs) -> Result<(), Box<dyn std::error::Error>> {
    let listener = listen_on(arguments.port)?;
    let log = File::options().append(true).open("/dev/stderr")?;
    let serving = if arguments.event_loop { Serving::EventLoop } else { Serving::OneByOne };
    let mut channels = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..arguments.workers {
        let (mine, theirs) = UnixStream::pair()?;
        let (program, counts) = (&arguments.worker, &arguments.counts);
        let command = command::worker(program, From::Descriptors, 0, serving, counts);
        let input = Stdio::from(OwnedFd::from(theirs));
        workers.push(Guarded::logged(&command, &[], input, &log)?);
        channels.push(mine);
    }
    Ok(deal(&listener, &channels)?)
}

/// A worker whose channel is full blocks it: the floor knows no windows. What it accepts must block in the
/// worker's read, so the listener is std's: mio's makes connections that do not, and the flag travels
/// with the descriptor.
fn deal(listener: &TcpListener, channels: &[UnixStream]) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let fd = listener.as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
    let mut events = Events::with_capacity(1);
    let mut turn = channels.iter().cycle();
    loop {
        match poll.poll(&mut events, None) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        loop {
            match listener.accept() {
                Ok((connection, _)) => {
                    let Some(channel) = turn.next() else { return Ok(()) };
                    channel.send_fd(connection.as_raw_fd())?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn listen_on(port: u16) -> io::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    let address = std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
    listen(&fd, Backlog::new(4096)?)?;
    Ok(TcpListener::from(fd))
}
