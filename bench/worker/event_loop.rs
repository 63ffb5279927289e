//! An event loop, as in Node or nginx: many connections at once, and whatever blocks blocks all.
//!
//! Owns: connections that stay open: keep-alive and echo. Promises: takes all that is offered before
//! it serves, as libuv does; answers in order. Never does: more than one thing at a time.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::blocking::passes;
use super::request::{Replies, Request, Work, burn};
use super::{COUNTS, Source};

const SOURCE: Token = Token(usize::MAX);
const EVENTS: usize = 1024;
/// What a client may send without being answered.
const INPUT_MAX: usize = 64 * 1024;

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Echoes lines, each after so much CPU time.
    echo: Option<Duration>,
    closing: bool,
}

pub(crate) fn serve(source: Source) -> io::Result<()> {
    source.set_nonblocking()?;
    let fd = match &source {
        Source::Listener(listener) => listener.as_raw_fd(),
        Source::Channel(channel) => channel.as_raw_fd(),
    };
    let mut poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&fd), SOURCE, Interest::READABLE)?;
    let mut events = Events::with_capacity(EVENTS);
    let mut connections: Slab<Connection> = Slab::new();
    let replies = Replies::new();
    loop {
        match poll.poll(&mut events, None) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        for event in &events {
            let Token(key) = event.token();
            if event.token() == SOURCE {
                if !take_all(&source, &poll, &mut connections)? {
                    return Ok(());
                }
            } else if let Some(connection) = connections.get_mut(key)
                && !connection.turn(&replies).unwrap_or(false)
            {
                drop(connections.remove(key));
            }
        }
    }
}

/// False when no more will ever come.
fn take_all(source: &Source, poll: &Poll, connections: &mut Slab<Connection>) -> io::Result<bool> {
    loop {
        let stream = match source.next() {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) if passes(&error) => continue,
            Err(_) if matches!(source, Source::Channel(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        COUNTS.connection();
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let entry = connections.vacant_entry();
        let mut stream = TcpStream::from_std(stream);
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(entry.key()), interest)?;
        entry.insert(Connection {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            echo: None,
            closing: false,
        });
    }
}

impl Connection {
    /// Reads, works, answers. False when it is over.
    fn turn(&mut self, replies: &Replies) -> io::Result<bool> {
        self.flush()?;
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.input.extend_from_slice(buffer.get(..n).unwrap_or_default());
                    self.work(replies)?;
                    self.flush()?;
                    if self.closing && self.output.is_empty() {
                        return Ok(false);
                    }
                    // A short read has emptied the socket; the next bytes are an event.
                    if self.input.len() > INPUT_MAX || n < buffer.len() {
                        return Ok(self.input.len() <= INPUT_MAX);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn work(&mut self, replies: &Replies) -> io::Result<()> {
        while self.echo.is_none() && !self.closing {
            let Some(request) = Request::parse(&self.input) else { return Ok(()) };
            drop(self.input.drain(..request.length));
            request.work.perform()?;
            self.output.extend_from_slice(replies.of(&request));
            COUNTS.request();
            match request.work {
                Work::Echo(microseconds) => self.echo = Some(Duration::from_micros(microseconds)),
                Work::Unknown => self.closing = true,
                Work::Trivial | Work::Cpu(_) | Work::Wait(_) => self.closing = !request.keep_alive,
            }
        }
        let Some(each) = self.echo else { return Ok(()) };
        let Some(end) = self.input.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        for byte in self.input.drain(..=end) {
            self.output.push(byte);
            if byte == b'\n' {
                if !each.is_zero() {
                    burn(each)?;
                }
                COUNTS.request();
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
