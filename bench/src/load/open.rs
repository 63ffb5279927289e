//! The open loop of short connections: they start when they are due, whatever became of the others.
//!
//! Owns: its clients and the clock. Promises: one thread, no more than `open_max` connections at once
//! (what is due waits for room, and its latency counts from when it was due); an end, at the latest
//! `patience` after the schedule's. Never does: start anything over again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::client::{Client, Progress};
use super::record::{Recorder, Timing};
use super::schedule::Starts;
use super::timer::Timer;
use super::{Arrivals, Common, LATE, RequestKind, Seen, socket};
use crate::data::{Errors, Schedule};
use crate::process::thread_cpu_ns;

const TIMER: Token = Token(usize::MAX);
const EVENTS: usize = 256;
/// Starts in a row before answers are looked at again.
const STARTS_PER_TURN: usize = 32;

/// A load of short connections.
#[derive(Debug, Clone)]
pub struct OpenLoad {
    /// What every generator is told.
    pub common: Common,
    /// Mean starts per second.
    pub rate: f64,
    /// How they follow each other.
    pub arrivals: Arrivals,
    /// What is asked. Latencies of the first kind are kept apart as well.
    pub kinds: Vec<RequestKind>,
    /// Most connections at once.
    pub open_max: usize,
    /// Looks whether each source address is always answered by the same worker.
    pub sticky: bool,
}

impl OpenLoad {
    /// Runs it on this thread.
    ///
    /// # Errors
    /// If the loop cannot be made. What happens to a connection is in what was seen.
    pub fn run(&self) -> io::Result<Seen> {
        let cpu = thread_cpu_ns()?;
        let mut run = Run::new(self)?;
        run.until_done()?;
        let cpu_ns = thread_cpu_ns()?.saturating_sub(cpu);
        Ok(run.seen(cpu_ns))
    }

    fn requests(&self) -> Vec<Vec<u8>> {
        let request = |kind: &RequestKind| {
            let host = self.common.target;
            let path = &kind.path;
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
        };
        self.kinds.iter().map(request).collect()
    }
}

#[derive(Debug)]
struct Run<'a> {
    load: &'a OpenLoad,
    requests: Vec<Vec<u8>>,
    poll: Poll,
    timer: Timer,
    begin: Instant,
    starts: Starts,
    random: fastrand::Rng,
    clients: Slab<Client>,
    /// When a client's patience ends, in the order of starts.
    deadlines: VecDeque<(Duration, usize, u64)>,
    serial: u64,
    connections: u64,
    errors: Errors,
    out_of_ports: u64,
    recorder: Recorder,
    schedule: Schedule,
    intended: u64,
    per_worker: BTreeMap<u32, (u64, u64)>,
    by_source: BTreeMap<u32, BTreeSet<u32>>,
}

impl<'a> Run<'a> {
    fn new(load: &'a OpenLoad) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new(poll.registry(), TIMER)?;
        let seed = load.common.seed;
        let sources = load.common.sources.min(socket::SOURCES_MAX);
        Ok(Self {
            requests: load.requests(),
            poll,
            timer,
            starts: Starts::new(load.rate, load.arrivals, &load.kinds, seed),
            random: fastrand::Rng::with_seed(!seed),
            clients: Slab::new(),
            deadlines: VecDeque::new(),
            serial: 0,
            connections: 0,
            errors: Errors::default(),
            out_of_ports: 0,
            recorder: Recorder::new(load.common.timeline, load.kinds.len() > 1),
            schedule: Schedule { sources, ..Schedule::default() },
            intended: 0,
            per_worker: BTreeMap::new(),
            by_source: BTreeMap::new(),
            begin: load.common.begin(),
            load,
        })
    }

    fn until_done(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let last = self.load.common.length + self.load.common.patience;
        loop {
            let now = self.begin.elapsed();
            let more = self.start_due(now);
            self.expire(now);
            let wait = match self.next_wake(now) {
                None => return Ok(()),
                Some(_) if now > last => return Ok(()),
                Some(_) if more => Some(Duration::ZERO),
                Some(at) => {
                    self.timer.set(at.min(last).saturating_sub(now))?;
                    None
                }
            };
            match self.poll.poll(&mut events, wait) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                if event.token() != TIMER {
                    self.look_at(event.token().0);
                }
            }
        }
    }

    /// When something is to be done even if nothing happens. `None`: all is done.
    fn next_wake(&self, now: Duration) -> Option<Duration> {
        let (due, _) = self.starts.next();
        let start = (due < self.load.common.length).then(|| {
            // Without room, the next start waits for an end.
            if self.clients.len() < self.load.open_max { due } else { Duration::MAX }
        });
        let deadline = self.deadlines.front().map(|(at, ..)| *at);
        match (start, deadline) {
            (None, None) => None,
            (start, deadline) => {
                let first = start.unwrap_or(Duration::MAX).min(deadline.unwrap_or(Duration::MAX));
                Some(first.max(now))
            }
        }
    }

    /// True if more are due already.
    fn start_due(&mut self, now: Duration) -> bool {
        for _ in 0..STARTS_PER_TURN {
            let (due, kind) = self.starts.next();
            let full = self.clients.len() >= self.load.open_max;
            if due > now || due >= self.load.common.length || full {
                return false;
            }
            self.starts.advance();
            self.start(due, kind);
        }
        true
    }

    fn start(&mut self, intended: Duration, kind: usize) {
        let started = self.begin.elapsed();
        self.intended += 1;
        self.recorder.intend(intended);
        let behind = started.saturating_sub(intended);
        if behind > LATE {
            self.schedule.late += 1;
        }
        let behind = u64::try_from(behind.as_nanos()).unwrap_or(u64::MAX);
        self.schedule.worst_ns = self.schedule.worst_ns.max(behind);
        let sources = self.schedule.sources;
        let source = if sources == 0 { 0 } else { self.random.u32(..sources) };
        let from = (sources > 0).then(|| socket::source(source));
        match self.open(from) {
            Ok(stream) => {
                self.serial += 1;
                let mut client = Client::new(stream, intended, started);
                client.kind = kind;
                client.source = source;
                client.serial = self.serial;
                let key = self.clients.insert(client);
                debug_assert_ne!(key, TIMER.0, "a slab never grows so far");
                self.deadlines.push_back((started + self.load.common.patience, key, self.serial));
                self.register(key);
                let open = u64::try_from(self.clients.len()).unwrap_or(u64::MAX);
                self.schedule.open_max = self.schedule.open_max.max(open);
            }
            Err(error) => self.fail(intended, &error),
        }
    }

    fn open(&self, from: Option<std::net::Ipv4Addr>) -> io::Result<mio::net::TcpStream> {
        socket::start(self.load.common.target, from)
    }

    fn register(&mut self, key: usize) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut client.stream, Token(key), interest) {
            let intended = client.intended;
            drop(self.clients.remove(key));
            self.fail(intended, &error);
        }
    }

    fn fail(&mut self, intended: Duration, error: &io::Error) {
        if socket::is_out_of_ports(error) {
            self.out_of_ports += 1;
        }
        socket::count(&mut self.errors, error);
        self.recorder.fail(intended);
    }

    fn look_at(&mut self, key: usize) {
        let now = self.begin.elapsed();
        let Some(client) = self.clients.get_mut(key) else { return };
        let request = self.requests.get(client.kind).map(Vec::as_slice).unwrap_or_default();
        let looked = match client.send(request) {
            Ok(false) => return,
            Ok(true) => {
                if client.connected.is_none() {
                    client.connected = Some(now);
                    self.recorder.connect(now.saturating_sub(client.started));
                }
                client.receive(now)
            }
            Err(error) => Err(error),
        };
        match looked {
            Ok(Progress::Waits) => {}
            Ok(Progress::Answered(worker)) => self.complete(key, now, worker),
            Ok(Progress::AnsweredAndClosed(worker)) => {
                self.complete(key, now, worker);
                drop(self.clients.remove(key));
            }
            Ok(Progress::Closed) => drop(self.clients.remove(key)),
            Err(error) => {
                let intended = client.intended;
                drop(self.clients.remove(key));
                self.fail(intended, &error);
            }
        }
    }

    fn complete(&mut self, key: usize, done: Duration, worker: Option<u32>) {
        let Some(client) = self.clients.get(key) else { return };
        let first_byte = client.first_byte.unwrap_or(done);
        let (intended, started) = (client.intended, client.started);
        self.recorder.complete(Timing { intended, started, first_byte, done }, client.kind);
        self.connections += 1;
        let Some(worker) = worker else { return };
        let counts = self.per_worker.entry(worker).or_default();
        counts.0 += 1;
        counts.1 += 1;
        if self.load.sticky {
            self.by_source.entry(client.source).or_default().insert(worker);
        }
    }

    fn expire(&mut self, now: Duration) {
        while let Some((at, key, serial)) = self.deadlines.front().copied() {
            let current = self.clients.get(key).filter(|client| client.serial == serial);
            if current.is_some() && at > now {
                return;
            }
            self.deadlines.pop_front();
            let Some(client) = current else { continue };
            let (intended, answered) = (client.intended, client.answered);
            drop(self.clients.remove(key));
            if !answered {
                self.fail(intended, &io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn seen(mut self, cpu_ns: u64) -> Seen {
        let left: Vec<Duration> = self
            .clients
            .drain()
            .filter(|client| !client.answered)
            .map(|client| client.intended)
            .collect();
        for intended in left {
            self.fail(intended, &io::ErrorKind::TimedOut.into());
        }
        // What never started was due all the same.
        while self.starts.next().0 < self.load.common.length {
            let (due, _) = self.starts.next();
            self.starts.advance();
            self.intended += 1;
            self.schedule.unstarted += 1;
            self.recorder.intend(due);
        }
        if self.load.sticky {
            let moved = self.by_source.values().filter(|workers| workers.len() > 1).count();
            self.schedule.sources_moved = u32::try_from(moved).ok();
        }
        Seen {
            seconds: self.load.common.length.as_secs_f64(),
            intended: self.intended,
            connections: self.connections,
            requests: self.connections,
            errors: self.errors,
            out_of_ports: self.out_of_ports,
            timeline: self.recorder.timeline(),
            recorder: self.recorder,
            schedule: self.schedule,
            per_worker: self.per_worker,
            cpu_ns,
        }
    }
}
