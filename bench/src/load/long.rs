//! Connections that stay open: all are opened first, then some of them talk by a schedule.
//!
//! Owns: its connections and the clock. Promises: one thread; messages go out when they are due, also
//! when the last answer is still out; the schedule begins when all connections are open or have failed.
//! Never does: open a connection again that was lost.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::record::{Recorder, Timing};
use super::timer::Timer;
use super::{Common, LATE, Seen, socket};
use crate::data::{Errors, Schedule};
use crate::process::thread_cpu_ns;

const TIMER: Token = Token(usize::MAX);
const EVENTS: usize = 1024;
const HEAD_MAX: usize = 4096;
const MESSAGE: &[u8] = b"croupier-bench says hello 12345\n";
const PER_TURN: usize = 64;

/// A load of long-lived connections.
#[derive(Debug, Clone)]
pub struct LongLoad {
    /// What every generator is told. `length` is that of the talking.
    pub common: Common,
    /// How many connections.
    pub connections: usize,
    /// How many of them are opened per second.
    pub open_rate: f64,
    /// How many of them talk, evenly spread over the order of opening.
    pub chatty: usize,
    /// All that talk say one thing each, at the same moment, so often; else one after another.
    pub burst: bool,
    /// Messages of one connection per second.
    pub messages_per_second: f64,
    /// CPU time that the worker is to use for each message.
    pub cpu_us: u64,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    started: Duration,
    connected: bool,
    open: Option<u32>,
    head: Vec<u8>,
    sent: usize,
    output: VecDeque<u8>,
    /// Intended and real starts of messages that are out.
    out: VecDeque<(Duration, Duration)>,
    last_answer: Duration,
    messages: u64,
}

#[derive(Debug)]
struct Run<'a> {
    load: &'a LongLoad,
    request: Vec<u8>,
    poll: Poll,
    timer: Timer,
    begin: Instant,
    connections: Vec<Option<Connection>>,
    open: usize,
    errors: Errors,
    out_of_ports: u64,
    recorder: Recorder,
    schedule: Schedule,
    intended: u64,
    requests: u64,
}

impl LongLoad {
    /// Runs it on this thread.
    ///
    /// # Errors
    /// If the loop cannot be made. What happens to a connection is in what was seen.
    pub fn run(&self) -> io::Result<Seen> {
        let poll = Poll::new()?;
        let timer = Timer::new(poll.registry(), TIMER)?;
        let (host, cpu) = (self.common.target, self.cpu_us);
        let head = format!("GET /echo/{cpu} HTTP/1.1\r\nHost: {host}\r\n");
        let mut run = Run {
            request: format!("{head}Connection: Upgrade\r\nUpgrade: echo\r\n\r\n").into_bytes(),
            poll,
            timer,
            begin: Instant::now(),
            connections: Vec::new(),
            open: 0,
            errors: Errors::default(),
            out_of_ports: 0,
            recorder: Recorder::new(self.common.timeline, false),
            schedule: Schedule {
                sources: self.common.sources.min(socket::SOURCES_MAX),
                ..Schedule::default()
            },
            intended: 0,
            requests: 0,
            load: self,
        };
        run.open_all()?;
        run.begin = self.common.begin();
        let cpu = thread_cpu_ns()?;
        run.talk()?;
        let cpu_ns = thread_cpu_ns()?.saturating_sub(cpu);
        Ok(run.seen(cpu_ns))
    }

    /// When message `number` is due, and by which of those that talk.
    fn message(&self, number: u64) -> (Duration, usize) {
        let chatty = u64::try_from(self.chatty.max(1)).unwrap_or(1);
        let who = usize::try_from(number % chatty).unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 messages")]
        let at = if self.burst {
            // The first burst comes after one period, so that opening is over.
            (number / chatty + 1) as f64 / self.messages_per_second
        } else {
            number as f64 / (self.messages_per_second * chatty as f64)
        };
        (Duration::from_secs_f64(at), who * self.connections / self.chatty.max(1))
    }
}

impl Run<'_> {
    fn open_all(&mut self) -> io::Result<()> {
        let load = self.load;
        #[expect(clippy::cast_precision_loss, reason = "thousands of connections")]
        let due = |number: usize| Duration::from_secs_f64(number as f64 / load.open_rate);
        let last = due(load.connections) + load.common.patience;
        loop {
            let now = self.begin.elapsed();
            while self.connections.len() < load.connections && due(self.connections.len()) <= now {
                self.start()?;
            }
            let all = self.connections.len() == load.connections;
            let waiting = self.connections.iter().flatten().any(|c| c.open.is_none());
            if all && !waiting {
                break;
            }
            if now > last {
                self.give_up();
                break;
            }
            let next = if all { last } else { due(self.connections.len()) };
            self.turn(next.saturating_sub(now))?;
        }
        self.schedule.open_max = u64::try_from(self.open).unwrap_or(u64::MAX);
        Ok(())
    }

    fn start(&mut self) -> io::Result<()> {
        let key = self.connections.len();
        let sources = self.schedule.sources;
        let number = u32::try_from(key).unwrap_or(u32::MAX);
        let from = (sources > 0).then(|| socket::source(number % sources));
        let started = self.begin.elapsed();
        self.connections.push(None);
        let mut stream = match socket::start(self.load.common.target, from) {
            Ok(stream) => stream,
            Err(error) => {
                self.fail(key, &error);
                return Ok(());
            }
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(key), interest)?;
        let connection = Connection {
            stream,
            started,
            connected: false,
            open: None,
            head: Vec::new(),
            sent: 0,
            output: VecDeque::new(),
            out: VecDeque::new(),
            last_answer: Duration::ZERO,
            messages: 0,
        };
        if let Some(place) = self.connections.get_mut(key) {
            *place = Some(connection);
        }
        Ok(())
    }

    /// Those that are not open by now hang.
    fn give_up(&mut self) {
        for key in 0..self.connections.len() {
            let waits = self.connections.get(key).and_then(Option::as_ref);
            if waits.is_some_and(|connection| connection.open.is_none()) {
                self.fail(key, &ErrorKind::TimedOut.into());
            }
        }
    }

    fn talk(&mut self) -> io::Result<()> {
        let length = self.load.common.length;
        let last = length + self.load.common.patience;
        let mut number = 0;
        loop {
            let now = self.begin.elapsed();
            let mut more = false;
            for turn in 0..=PER_TURN {
                let (due, who) = self.load.message(number);
                if due > now || due >= length || self.load.chatty == 0 {
                    break;
                }
                if turn == PER_TURN {
                    more = true;
                    break;
                }
                number += 1;
                self.say(who, due);
            }
            let (due, _) = self.load.message(number);
            let over = due >= length || self.load.chatty == 0;
            let next = if over { length } else { due };
            if over && now >= length && !self.is_waiting() {
                return Ok(());
            }
            if now > last {
                return Ok(());
            }
            let next = if now >= length { last } else { next };
            self.turn(if more { Duration::ZERO } else { next.saturating_sub(now) })?;
        }
    }

    fn is_waiting(&self) -> bool {
        self.connections.iter().flatten().any(|connection| !connection.out.is_empty())
    }

    fn say(&mut self, who: usize, intended: Duration) {
        self.intended += 1;
        self.recorder.intend(intended);
        let started = self.begin.elapsed();
        let behind = started.saturating_sub(intended);
        self.schedule.late += u64::from(behind > LATE);
        let behind = u64::try_from(behind.as_nanos()).unwrap_or(u64::MAX);
        self.schedule.worst_ns = self.schedule.worst_ns.max(behind);
        let Some(Some(connection)) = self.connections.get_mut(who) else {
            // It was lost and counted when it was; what it would have said never starts.
            self.schedule.unstarted += 1;
            self.recorder.fail(intended);
            return;
        };
        connection.output.extend(MESSAGE);
        connection.out.push_back((intended, started));
        if let Err(error) = connection.flush() {
            self.fail(who, &error);
        }
    }

    /// Waits at most so long for events, and looks at them.
    fn turn(&mut self, wait: Duration) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let at_once = (wait < Duration::from_micros(1)).then_some(Duration::ZERO);
        if at_once.is_none() {
            self.timer.set(wait)?;
        }
        match self.poll.poll(&mut events, at_once) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for event in &events {
            let Token(key) = event.token();
            if event.token() != TIMER
                && let Err(error) = self.look_at(key)
            {
                self.fail(key, &error);
            }
        }
        Ok(())
    }

    fn look_at(&mut self, key: usize) -> io::Result<()> {
        let now = self.begin.elapsed();
        let Some(Some(connection)) = self.connections.get_mut(key) else { return Ok(()) };
        if connection.sent < self.request.len() {
            if !connection.send(&self.request)? {
                return Ok(());
            }
            if !connection.connected {
                connection.connected = true;
                self.recorder.connect(now.saturating_sub(connection.started));
            }
        }
        connection.flush()?;
        let mut buffer = [0; 4096];
        loop {
            match connection.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    let bytes = buffer.get(..n).unwrap_or_default();
                    let rest = if connection.open.is_some() {
                        bytes
                    } else {
                        let Some(rest) = connection.opened(bytes)? else { continue };
                        self.open += 1;
                        self.recorder.first_byte(now.saturating_sub(connection.started));
                        rest
                    };
                    for _ in rest.iter().filter(|byte| **byte == b'\n') {
                        let Some((intended, started)) = connection.out.pop_front() else { break };
                        // A client that waits for each answer would have begun only then.
                        let started = started.max(connection.last_answer);
                        connection.last_answer = now;
                        connection.messages += 1;
                        self.requests += 1;
                        let timing = Timing { intended, started, first_byte: now, done: now };
                        self.recorder.complete_message(timing);
                    }
                }
                Err(error) if waits(&error) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection is lost, and what it had asked with it: one failure.
    fn fail(&mut self, key: usize, error: &io::Error) {
        if socket::is_out_of_ports(error) {
            self.out_of_ports += 1;
        }
        socket::count(&mut self.errors, error);
        let Some(lost) = self.connections.get_mut(key).and_then(Option::take) else { return };
        self.open -= usize::from(lost.open.is_some());
        for (intended, _) in lost.out {
            self.recorder.fail(intended);
        }
    }

    fn seen(mut self, cpu_ns: u64) -> Seen {
        let mut per_worker: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for connection in self.connections.iter().flatten() {
            // An unanswered message is one that timed out.
            self.errors.timeout += u64::try_from(connection.out.len()).unwrap_or(u64::MAX);
            for (intended, _) in &connection.out {
                self.recorder.fail(*intended);
            }
            if let Some(worker) = connection.open {
                let counts = per_worker.entry(worker).or_default();
                counts.0 += 1;
                counts.1 += connection.messages;
            }
        }
        Seen {
            seconds: self.load.common.length.as_secs_f64(),
            intended: self.intended,
            connections: u64::try_from(self.open).unwrap_or(u64::MAX),
            requests: self.requests,
            errors: self.errors,
            out_of_ports: self.out_of_ports,
            timeline: self.recorder.timeline(),
            recorder: self.recorder,
            schedule: self.schedule,
            per_worker,
            cpu_ns,
        }
    }
}

impl Connection {
    fn send(&mut self, request: &[u8]) -> io::Result<bool> {
        while let Some(rest) = request.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(n) => self.sent += n,
                Err(error) if waits(&error) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let (front, _) = self.output.as_slices();
            match self.stream.write(front) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if waits(&error) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Once the answer that opens the connection is whole: what came after it.
    fn opened<'a>(&mut self, bytes: &'a [u8]) -> io::Result<Option<&'a [u8]>> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
            let bad = || io::Error::new(ErrorKind::InvalidData, "a head without end");
            return if self.head.len() > HEAD_MAX { Err(bad()) } else { Ok(None) };
        };
        let text = String::from_utf8_lossy(&self.head);
        if !text.starts_with("HTTP/1.1 101 ") {
            return Err(io::Error::new(ErrorKind::InvalidData, "not a status of 101"));
        }
        let named = text.lines().find_map(|line| line.strip_prefix("X-Worker: "));
        self.open = Some(named.and_then(|pid| pid.trim().parse().ok()).unwrap_or(0));
        Ok(Some(bytes.get(end + 4 - before..).unwrap_or_default()))
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}
