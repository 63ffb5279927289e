//! Clients of `croupier logs`: connections that the control socket has handed over.
//!
//! Owns them, and what is on its way to each ([`Outbox`]). Promises: a reader that does not read
//! misses lines, is told how many, and holds up nobody: neither the workers' output, nor another
//! reader; at most [`READERS_MAX`]. Never does: touch the loop, which has forgotten them.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use slab::Slab;

use std::os::fd::AsRawFd;

use super::line::{Line, Style, push_worker_line};
use super::tails::Tails;
use crate::config::LogFormat;
use crate::control::messages::Reply;
use crate::control::outbox::{Outbox, Sent};

/// Clients of `croupier logs` at a time.
pub const READERS_MAX: usize = 16;
/// Bytes of lines that wait for one that does not read them.
const UNREAD_MAX: usize = 256 << 10;
/// Bytes of last lines that one of them gets; of more, the oldest are missing.
const HISTORY_MAX: usize = 1 << 20;

/// What a client of `croupier logs` wants to see.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Only of this slot.
    pub slot: Option<u16>,
    /// So many of the last lines of each worker.
    pub lines: usize,
    /// And what follows.
    pub follow: bool,
    /// How they look.
    pub format: LogFormat,
}

#[derive(Debug)]
struct Reader {
    stream: UnixStream,
    wanted: Wanted,
    outbox: Outbox,
    /// It has had its last word.
    ended: bool,
}

#[derive(Debug)]
pub(super) struct Readers {
    all: Slab<Reader>,
    base: usize,
}

impl Readers {
    /// Tokens from `base` on are theirs.
    pub(super) fn new(base: usize) -> Self {
        Self { all: Slab::new(), base }
    }

    pub(super) fn owns(&self, token: Token) -> bool {
        (self.base..self.base + READERS_MAX).contains(&token.0)
    }

    /// Nobody: then nobody need make a line for them.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// A new one gets the last lines at once.
    pub(super) fn admit(
        &mut self,
        stream: UnixStream,
        wanted: Wanted,
        tails: &Tails,
        registry: &Registry,
    ) {
        let mut outbox = Outbox::new(UNREAD_MAX);
        if self.all.len() >= READERS_MAX {
            let why = format!("{READERS_MAX} clients read the logs already; end one and try again");
            return refuse(stream, &mut outbox, why);
        }
        let key = self.all.vacant_key();
        let watched = stream.set_nonblocking(true).and_then(|()| {
            let both = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut SourceFd(&stream.as_raw_fd()), Token(self.base + key), both)
        });
        if let Err(error) = watched {
            return refuse(stream, &mut outbox, format!("cannot watch this client: {error}"));
        }
        push_history(&mut outbox, wanted, tails);
        let ended = !wanted.follow;
        if ended {
            outbox.end(Reply::Done.to_line().as_bytes(), |missed| note(wanted.format, missed));
        }
        self.all.insert(Reader { stream, wanted, outbox, ended });
        self.send(key, registry);
    }

    /// A line that follows.
    pub(super) fn push(&mut self, line: Line<'_>, show_generation: bool) {
        for (_, reader) in &mut self.all {
            let Wanted { slot, format, .. } = reader.wanted;
            if !reader.ended && slot.is_none_or(|slot| slot == line.source.slot) {
                let message = said(line, Style { format, show_generation });
                reader.outbox.offer(&message, |missed| note(format, missed));
            }
        }
    }

    /// Sends what was pushed.
    pub(super) fn send_all(&mut self, registry: &Registry) {
        for key in 0..self.all.capacity() {
            if self.all.get(key).is_some_and(|reader| reader.outbox.waiting() > 0) {
                self.send(key, registry);
            }
        }
    }

    /// One of them can read more, or has left.
    pub(super) fn ready(&mut self, token: Token, registry: &Registry) {
        let key = token.0 - self.base;
        let Some(reader) = self.all.get_mut(key) else { return };
        match reader.stream.read(&mut [0; 64]) {
            // It has asked, and has no more to say.
            Ok(_) => self.remove(key, registry),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.send(key, registry),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.send(key, registry),
            Err(_) => self.remove(key, registry),
        }
    }

    /// The workers' output has ended.
    pub(super) fn finish(&mut self, registry: &Registry) {
        for (_, reader) in &mut self.all {
            let format = reader.wanted.format;
            if !reader.ended {
                reader.ended = true;
                reader.outbox.end(Reply::Done.to_line().as_bytes(), |missed| note(format, missed));
            }
        }
        self.send_all(registry);
    }

    fn send(&mut self, key: usize, registry: &Registry) {
        let Some(reader) = self.all.get_mut(key) else { return };
        let format = reader.wanted.format;
        match reader.outbox.send_and_note(&mut reader.stream, |missed| note(format, missed)) {
            Sent::Some => {}
            Sent::All if !reader.ended => {}
            Sent::All | Sent::Gone => self.remove(key, registry),
        }
    }

    fn remove(&mut self, key: usize, registry: &Registry) {
        if let Some(reader) = self.all.try_remove(key) {
            // Closing it takes it out of epoll as well.
            drop(registry.deregister(&mut SourceFd(&reader.stream.as_raw_fd())));
        }
    }
}

fn refuse(mut stream: UnixStream, outbox: &mut Outbox, why: String) {
    outbox.end(Reply::Failed { why }.to_line().as_bytes(), |_| Vec::new());
    // If it does not take even this, it is told nothing; nobody waits for it.
    if stream.set_nonblocking(true).is_ok() {
        outbox.send(&mut stream);
    }
}

/// The newest that have room, oldest first.
fn push_history(outbox: &mut Outbox, wanted: Wanted, tails: &Tails) {
    let lines = tails.last(wanted.slot, wanted.lines);
    let mut messages = Vec::new();
    let mut bytes = 0;
    for kept in lines.iter().rev() {
        let style = Style { format: wanted.format, show_generation: kept.show_generation };
        let message = said(kept.line(), style);
        bytes += message.len();
        if bytes > HISTORY_MAX {
            break;
        }
        messages.push(message);
    }
    let missing = lines.len() - messages.len();
    outbox.miss(u64::try_from(missing).unwrap_or(u64::MAX));
    messages.reverse();
    outbox.end(&messages.concat(), |missed| note(wanted.format, missed));
}

fn said(line: Line<'_>, style: Style) -> Vec<u8> {
    let mut text = Vec::new();
    push_worker_line(&mut text, style, line);
    wrap(&text)
}

/// What a reader is told where lines are missing.
fn note(format: LogFormat, missed: u64) -> Vec<u8> {
    let plural = if missed == 1 { "line is" } else { "lines are" };
    let text = format!("{missed} {plural} missing here: they came faster than they were read");
    wrap(&super::line::own_of_level(format, log::Level::Warn, &text))
}

fn wrap(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line).trim_end_matches('\n').to_owned();
    Reply::Said { text }.to_line().into_bytes()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeWriter, Write};

    use super::super::Output;
    use super::*;

    struct Bench {
        output: Output,
        workers: Vec<PipeWriter>,
    }

    impl Bench {
        /// Workers 1, 2, … in slots 0, 1, …, whose log goes nowhere.
        fn new(workers: u16) -> Self {
            let null = || std::fs::File::options().write(true).open("/dev/null").unwrap().into();
            let output = Output::start_on(LogFormat::Text, null(), null()).unwrap();
            let attach = |slot: u16| {
                let (read, write) = io::pipe().unwrap();
                let err = io::pipe().unwrap().0;
                output.attach(u32::from(slot) + 1, slot, 1, read.into(), err.into());
                write
            };
            let workers = (0..workers).map(attach).collect();
            Self { output, workers }
        }

        fn say(&mut self, slot: usize, text: &str) {
            writeln!(self.workers[slot], "{text}").unwrap();
            // Comes back when the line has been read.
            drop(self.output.last_lines(u32::try_from(slot).unwrap() + 1));
        }

        fn reader(&self, wanted: Wanted) -> BufReader<UnixStream> {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
            self.output.show(theirs, wanted);
            BufReader::new(ours)
        }
    }

    const ALL: Wanted = Wanted { slot: None, lines: 100, follow: false, format: LogFormat::Text };

    fn next(reader: &mut BufReader<UnixStream>) -> Reply {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn said(text: &str) -> Reply {
        Reply::Said { text: text.to_owned() }
    }

    fn rest(mut reader: BufReader<UnixStream>) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            replies.push(next(&mut reader));
            if replies.last() == Some(&Reply::Done) {
                return replies;
            }
        }
    }

    #[test]
    fn last_lines_and_what_follows_in_order() {
        let mut bench = Bench::new(2);
        for (slot, text) in [(0, "a"), (1, "b"), (0, "c"), (1, "d"), (1, "e")] {
            bench.say(slot, text);
        }
        let lines = ["[w0] a", "[w1] b", "[w0] c", "[w1] d", "[w1] e"].map(said);
        assert_eq!(rest(bench.reader(ALL)), [lines.as_slice(), &[Reply::Done]].concat());
        let few = Wanted { lines: 2, ..ALL };
        let kept = ["[w0] a", "[w0] c", "[w1] d", "[w1] e"].map(said);
        assert_eq!(rest(bench.reader(few)), [kept.as_slice(), &[Reply::Done]].concat());
        let mut follower = bench.reader(Wanted { slot: Some(1), lines: 1, follow: true, ..ALL });
        assert_eq!(next(&mut follower), said("[w1] e"));
        bench.say(0, "not of its slot");
        bench.output.set_show_generation(true);
        bench.say(1, "two\u{7}lines");
        assert_eq!(next(&mut follower), said("[w1 g1] two\u{7}lines"));
        bench.output.finish();
        assert_eq!(next(&mut follower), Reply::Done);
    }

    #[test]
    fn json_lines_are_objects() {
        let mut bench = Bench::new(1);
        bench.say(0, "say \"hi\"");
        let replies = rest(bench.reader(Wanted { format: LogFormat::Json, ..ALL }));
        let Reply::Said { text } = &replies[0] else { panic!("{replies:?}") };
        let line: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!((&line["msg"], &line["worker"]), (&"say \"hi\"".into(), &1.into()));
        assert_eq!((&line["level"], line.get("cut")), (&"info".into(), None));
    }

    /// It reads nothing while 4 MB are said: the worker is not held up, another reader misses
    /// nothing, and it hears how many lines it lacks.
    #[test]
    fn a_slow_reader_misses_lines_and_nobody_else_does() {
        const LINES: usize = 40_000;
        let mut bench = Bench::new(1);
        let follow = Wanted { lines: 0, follow: true, ..ALL };
        let slow = bench.reader(follow);
        let mut quick = bench.reader(follow);
        // They are there before the first line is.
        drop(bench.output.last_lines(1));
        let (read, has_read) = crossbeam_channel::unbounded();
        let quick = std::thread::spawn(move || {
            (0..LINES).all(|number| match next(&mut quick) {
                Reply::Said { text } => {
                    if number % 500 == 499 {
                        read.send(()).unwrap();
                    }
                    text.starts_with(&format!("[w0] {number} "))
                }
                Reply::Done | Reply::Event(_) | Reply::Status(_) | Reply::Failed { .. } => false,
            })
        });
        let padding = "x".repeat(90);
        for number in 0..LINES {
            writeln!(bench.workers[0], "{number} {padding}").unwrap();
            if number % 500 == 499 {
                // Lines do not come faster than the quick one reads.
                has_read.recv().unwrap();
            }
        }
        let quick_has_all = quick.join().unwrap();
        let reading = std::thread::spawn(move || {
            let (mut slow, mut whole, mut missing) = (slow, 0, 0);
            while let Reply::Said { text } = next(&mut slow) {
                match text.strip_prefix("croupier: warning: ") {
                    Some(note) => {
                        let (count, why) = note.split_once(' ').unwrap();
                        assert!(
                            why.ends_with(" missing here: they came faster than they were read")
                        );
                        missing += count.parse::<usize>().unwrap();
                    }
                    None if text == "[w0] end" => break,
                    None => whole += 1,
                }
            }
            (whole, missing)
        });
        let mut ends = 0;
        while !reading.is_finished() {
            // It may still be full at the first attempts.
            bench.say(0, "end");
            ends += 1;
        }
        let (whole, missing) = reading.join().unwrap();
        assert!(missing > 0, "it took all");
        assert!((LINES..LINES + ends).contains(&(whole + missing)), "{whole} {missing} {ends}");
        assert!(quick_has_all);
    }

    #[test]
    fn readers_are_counted_and_a_place_is_free_when_one_leaves() {
        let mut bench = Bench::new(1);
        let follow = Wanted { follow: true, ..ALL };
        let mut all: Vec<_> = (0..READERS_MAX).map(|_| bench.reader(follow)).collect();
        let refused = next(&mut bench.reader(follow));
        assert!(
            matches!(&refused, Reply::Failed { why } if why.starts_with("16 clients read the logs already; end one")),
            "{refused:?}"
        );
        drop(all.pop());
        bench.say(0, "hello");
        let mut last = bench.reader(Wanted { follow: false, ..ALL });
        assert_eq!(next(&mut last), said("[w0] hello"));
        for reader in &mut all {
            assert_eq!(next(reader), said("[w0] hello"));
        }
    }
}
