//! The floor: accept4 + sendmsg + close, in turn, and nothing else.
//!
//! Owns: the loop that a hand-off cannot do less than. Promises: takes all that waits at each wake-up,
//! as croupier does; passfd sends; a worker whose channel is full (some 280 connections) loses its
//! turn, and holds up nobody behind it. Never does: count, watch or choose.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;

use clap::Args;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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
        mine.set_nonblocking(true)?;
        channels.push(mine);
    }
    Ok(deal(&listener, &channels)?)
}

/// What it accepts must block in the worker's read, so the listener is std's: mio's makes connections that
/// do not, and the flag travels with the descriptor.
fn deal(listener: &TcpListener, channels: &[UnixStream]) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let fd = listener.as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
    let mut events = Events::with_capacity(1);
    let mut turn = 0;
    loop {
        match poll.poll(&mut events, None) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        loop {
            match listener.accept() {
                Ok((connection, _)) => {
                    hand_off(channels, &mut turn, connection.as_raw_fd())?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// To the next in turn that has room; where nobody has, once the next one has.
fn hand_off(channels: &[UnixStream], turn: &mut usize, connection: RawFd) -> io::Result<()> {
    loop {
        for _ in 0..channels.len() {
            let Some(channel) = channels.get(*turn) else { return Ok(()) };
            *turn = (*turn + 1) % channels.len();
            match channel.send_fd(connection) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let Some(channel) = channels.get(*turn) else { return Ok(()) };
        let room = PollFd::new(channel.as_fd(), PollFlags::POLLOUT);
        poll(&mut [room], PollTimeout::NONE)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use passfd::FdPassingExt;

    #[test]
    fn who_is_full_loses_a_turn_and_holds_up_nobody() {
        let pairs: Vec<_> = (0..2).map(|_| UnixStream::pair().unwrap()).collect();
        let (mine, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        for channel in &mine {
            channel.set_nonblocking(true).unwrap();
        }
        let something = tempfile::tempfile().unwrap();
        let fd = something.as_raw_fd();
        let mut full = 0;
        while mine[0].send_fd(fd).is_ok() {
            full += 1;
        }
        assert!(full > 100, "a channel holds hundreds: {full}");
        let mut turn = 0;
        for _ in 0..3 {
            hand_off(&mine, &mut turn, fd).unwrap();
        }
        theirs[1].set_nonblocking(true).unwrap();
        let received = std::iter::from_fn(|| crate::adopt::receive(&theirs[1]).ok()).count();
        assert_eq!(received, 3, "all went to the one with room");
        assert_eq!(turn, 0);
    }
}
