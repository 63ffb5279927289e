//! The thread that reads the workers' pipes and makes lines of what comes.
//!
//! Owns: the pipes' read ends, unfinished lines, each worker's last lines (`tails`), the clients of
//! `croupier logs` (`readers`). Promises: reads in turn, a bounded piece from each, so that one that
//! talks without end does not silence the others; with nothing to read it sleeps. Never does: write to
//! stdout or stderr (`sink`), or wait for a reader.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use slab::Slab;

use super::line::{End, Line, Source, Stream, Style, cut_at, push_worker_line, wall_clock};
use super::readers::{READERS_MAX, Readers, Wanted};
use super::sink::{Batch, Feed};
use super::tails::Tails;
use super::{LAST_LINES, LINE_MAX};
use crate::config::LogFormat;

/// Bytes that one pipe may give in one turn.
const CHUNK: usize = 16 << 10;
/// Turns of one pipe that a drain takes: a pipe holds 64 KiB, and its writer may still write.
const DRAIN_TURNS_MAX: usize = 64;

const WAKER: Token = Token(usize::MAX);
/// Below it are pipes: there are never so many.
const READERS: usize = usize::MAX - 1 - READERS_MAX;

/// What the primary wants of the collector.
#[derive(Debug)]
pub(super) enum Command {
    Attach(Pipe),
    LastLines { worker: u32, answer: Sender<Vec<String>> },
    Show { client: UnixStream, wanted: Wanted },
    Finish,
}

/// The read end of a worker's stdout or stderr.
#[derive(Debug)]
pub(super) struct Pipe {
    source: Source,
    fd: OwnedFd,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// It is in `Collector::readable`.
    listed: bool,
}

impl Pipe {
    pub(super) const fn new(
        worker: u32,
        slot: u16,
        generation: u32,
        stream: Stream,
        fd: OwnedFd,
    ) -> Self {
        let source = Source { worker, slot, generation, stream };
        Self { source, fd, partial: Vec::new(), listed: false }
    }
}

enum ReadOutcome {
    More,
    Empty,
    Ended,
}

#[derive(Debug)]
pub(super) struct Collector {
    format: LogFormat,
    poll: Poll,
    inbox: Receiver<Command>,
    out: Feed,
    err: Feed,
    show_generation: Arc<AtomicBool>,
    pipes: Slab<Pipe>,
    /// Pipes that have not said yet that they are empty: epoll, edge-triggered, will not name them
    /// again.
    readable: VecDeque<usize>,
    tails: Tails,
    readers: Readers,
}

impl Collector {
    pub(super) fn new(
        format: LogFormat,
        inbox: Receiver<Command>,
        out: Feed,
        err: Feed,
        show_generation: Arc<AtomicBool>,
    ) -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let collector = Self {
            format,
            poll,
            inbox,
            out,
            err,
            show_generation,
            pipes: Slab::new(),
            readable: VecDeque::new(),
            tails: Tails::default(),
            readers: Readers::new(READERS),
        };
        Ok((collector, waker))
    }

    /// Works until [`Command::Finish`], or until the [`super::Output`] is gone.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let wait = if self.readable.is_empty() { None } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut events, wait) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("cannot watch the workers' output any more: {error}");
                    return self.finish();
                }
            }
            for token in events.iter().map(mio::event::Event::token).filter(|t| *t != WAKER) {
                if self.readers.owns(token) {
                    self.readers.ready(token, self.poll.registry());
                } else {
                    self.list(token.0);
                }
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(Command::Attach(pipe)) => self.attach(pipe),
                    Ok(Command::LastLines { worker, answer }) => {
                        self.drain(|pipe| pipe.source.worker == worker);
                        // Nobody waits any more: then nobody needs it.
                        drop(answer.try_send(self.tails.texts(worker, LAST_LINES)));
                    }
                    Ok(Command::Show { client, wanted }) => {
                        // What is in the pipes now was said before anybody asked.
                        self.drain(|_| true);
                        let registry = self.poll.registry();
                        self.readers.admit(client, wanted, &self.tails, registry);
                    }
                    Ok(Command::Finish) | Err(TryRecvError::Disconnected) => return self.finish(),
                    Err(TryRecvError::Empty) => break,
                }
            }
            for _ in 0..self.readable.len() {
                let Some(key) = self.readable.pop_front() else { break };
                if let Some(pipe) = self.pipes.get_mut(key) {
                    pipe.listed = false;
                }
                match self.read(key) {
                    ReadOutcome::More => self.list(key),
                    ReadOutcome::Empty => {}
                    ReadOutcome::Ended => self.detach(key),
                }
            }
            self.readers.send_all(self.poll.registry());
        }
    }

    fn list(&mut self, key: usize) {
        if let Some(pipe) = self.pipes.get_mut(key).filter(|pipe| !pipe.listed) {
            pipe.listed = true;
            self.readable.push_back(key);
        }
    }

    fn attach(&mut self, pipe: Pipe) {
        let Source { worker, slot, .. } = pipe.source;
        // Only this end: the ends of a pipe are two open files, the worker's stays blocking.
        let non_blocking = fcntl(&pipe.fd, FcntlArg::F_GETFL).and_then(|flags| {
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            fcntl(&pipe.fd, FcntlArg::F_SETFL(flags))
        });
        let fd = pipe.fd.as_raw_fd();
        let key = self.pipes.insert(pipe);
        let watched = non_blocking.map_err(io::Error::from).and_then(|_| {
            self.poll.registry().register(&mut SourceFd(&fd), Token(key), Interest::READABLE)
        });
        if let Err(error) = watched {
            log::error!("the output of w{slot} is lost: cannot watch its pipe: {error}");
            self.pipes.remove(key);
            return;
        }
        self.tails.opened(worker, slot);
        self.list(key);
    }

    /// The last writer is gone.
    fn detach(&mut self, key: usize) {
        let Some(mut pipe) = self.pipes.try_remove(key) else { return };
        let rest = std::mem::take(&mut pipe.partial);
        if !rest.is_empty() {
            let mut batch = Vec::new();
            let line =
                Line { source: pipe.source, time: wall_clock(), text: &rest, end: End::Whole };
            self.push_line(&mut batch, line);
            self.send(pipe.source.stream, batch);
        }
        // The descriptor goes with `pipe`, and out of epoll with it: nobody else has it.
        self.tails.closed(pipe.source.worker);
    }

    fn read(&mut self, key: usize) -> ReadOutcome {
        let Some(pipe) = self.pipes.get_mut(key) else { return ReadOutcome::Empty };
        let mut chunk = [0; CHUNK];
        let got = match nix::unistd::read(&pipe.fd, &mut chunk) {
            Ok(0) => return ReadOutcome::Ended,
            Ok(got) => chunk.get(..got).unwrap_or_default(),
            Err(Errno::EAGAIN) => return ReadOutcome::Empty,
            Err(Errno::EINTR) => return ReadOutcome::More,
            Err(_) => return ReadOutcome::Ended,
        };
        let (source, time) = (pipe.source, wall_clock());
        let mut partial = std::mem::take(&mut pipe.partial);
        let mut batch = Vec::with_capacity(got.len() + 256);
        for piece in got.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                Some(_) | None => (piece, false),
            };
            partial.extend_from_slice(text);
            while partial.len() > LINE_MAX {
                let rest = partial.split_off(cut_at(&partial, LINE_MAX));
                let end = End::Continues;
                self.push_line(&mut batch, Line { source, time, text: &partial, end });
                partial = rest;
            }
            if complete {
                let end = End::Whole;
                self.push_line(&mut batch, Line { source, time, text: &partial, end });
                partial.clear();
            }
        }
        if partial.is_empty() {
            // Do not keep 64 KiB for each worker that once said a long line.
            partial = Vec::new();
        }
        if let Some(pipe) = self.pipes.get_mut(key) {
            pipe.partial = partial;
        }
        self.send(source.stream, batch);
        ReadOutcome::More
    }

    fn push_line(&mut self, batch: &mut Vec<u8>, line: Line<'_>) {
        let show_generation = self.show_generation.load(Ordering::Relaxed);
        push_worker_line(batch, Style { format: self.format, show_generation }, line);
        self.tails.push(line, show_generation);
        if !self.readers.is_empty() {
            self.readers.push(line, show_generation);
        }
    }

    fn send(&self, stream: Stream, batch: Vec<u8>) {
        if batch.is_empty() {
            return;
        }
        match stream {
            Stream::Stdout => self.out.send(Batch::of(batch)),
            Stream::Stderr => self.err.send(Batch::of(batch)),
        }
    }

    /// Reads what these pipes hold now.
    fn drain(&mut self, which: impl Fn(&Pipe) -> bool) {
        let keys: Vec<usize> =
            self.pipes.iter().filter(|(_, pipe)| which(pipe)).map(|(key, _)| key).collect();
        for key in keys {
            for _ in 0..DRAIN_TURNS_MAX {
                match self.read(key) {
                    ReadOutcome::More => {}
                    ReadOutcome::Empty => break,
                    ReadOutcome::Ended => {
                        self.detach(key);
                        break;
                    }
                }
            }
        }
    }

    fn finish(mut self) {
        self.drain(|_| true);
        let left: Vec<usize> = self.pipes.iter().map(|(key, _)| key).collect();
        for key in left {
            self.detach(key);
        }
        self.readers.finish(self.poll.registry());
        self.out.close();
        self.err.close();
    }
}
