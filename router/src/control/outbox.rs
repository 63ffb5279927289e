//! What is on its way to a client that reads a stream, as fast or as slowly as it likes.
//!
//! Owns the bytes that the client has not taken yet, at most what it was made for and one message, no more
//! than as many that it has taken, and the count of what found no room. Promises: nobody waits for the
//! client; at the place where something is missing it is told how much, before anything else. Never does:
//! know what the messages are.

use std::io::{self, Write};

/// Memory that a client keeps which has taken all.
const SPARE: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    /// Bytes that may wait; what comes beyond is missed, and counted.
    most: usize,
    unsent: Vec<u8>,
    written: usize,
    missed: u64,
}

/// Whether the client is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All of it is with the client.
    All,
    /// The client has to read first.
    Some,
    /// The client is gone.
    Gone,
}

impl Outbox {
    /// One in which so many bytes may wait.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { most, unsent: Vec::new(), written: 0, missed: 0 }
    }

    /// Queues one message, or counts it as missed; `note` makes the message that tells how many were.
    pub fn offer(&mut self, message: &[u8], note: impl FnOnce(u64) -> Vec<u8>) {
        // Once it is full, there must be room for more than the next message: else every second one
        // would be a note.
        let most = if self.missed == 0 { self.most } else { self.most / 2 };
        if self.waiting() > most {
            self.missed += 1;
            return;
        }
        if self.missed > 0 {
            let note = note(std::mem::take(&mut self.missed));
            self.unsent.extend_from_slice(&note);
        }
        self.unsent.extend_from_slice(message);
    }

    /// Queues what must not be missed: the last word. `note` as in [`Self::offer`].
    pub fn end(&mut self, message: &[u8], note: impl FnOnce(u64) -> Vec<u8>) {
        if self.missed > 0 {
            let note = note(std::mem::take(&mut self.missed));
            self.unsent.extend_from_slice(&note);
        }
        self.unsent.extend_from_slice(message);
    }

    /// Counts messages that are missing before all others.
    pub const fn miss(&mut self, count: u64) {
        self.missed += count;
    }

    /// Bytes that the client has not taken.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.unsent.len() - self.written
    }

    /// Sends what the client takes without waiting (`stream` is non-blocking).
    pub fn send(&mut self, stream: &mut impl Write) -> Sent {
        while let Some(rest) = self.unsent.get(self.written..).filter(|rest| !rest.is_empty()) {
            match stream.write(rest) {
                Ok(0) => return Sent::Gone,
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Moved is at most what was taken, however little a slow client takes at a time.
                    if self.written >= self.waiting() {
                        self.unsent.drain(..self.written);
                        self.written = 0;
                    }
                    return Sent::Some;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Sent::Gone,
            }
        }
        self.unsent.clear();
        self.unsent.shrink_to(SPARE);
        self.written = 0;
        Sent::All
    }

    /// [`Self::send`] to a client that follows, until it also knows what it missed.
    pub fn send_and_note(
        &mut self,
        stream: &mut impl Write,
        note: impl FnOnce(u64) -> Vec<u8>,
    ) -> Sent {
        match self.send(stream) {
            Sent::All if self.missed > 0 => {
                self.end(&[], note);
                self.send(stream)
            }
            sent @ (Sent::All | Sent::Some | Sent::Gone) => sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then nothing.
    struct Slow {
        took: Vec<u8>,
        room: usize,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room -= count;
            self.took.extend_from_slice(bytes.get(..count).unwrap_or_default());
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_slow_client_misses_is_told_where_it_is_missing() {
        const COUNT: u32 = 200_000;
        const MOST: usize = 64 << 10;
        let mut outbox = Outbox::new(MOST);
        let mut slow = Slow { took: Vec::new(), room: 0 };
        let note = |missed: u64| format!("missed {missed}\n").into_bytes();
        let mut moved = 0;
        for number in 0..COUNT {
            outbox.offer(format!("{number}\n").as_bytes(), note);
            assert!(outbox.waiting() <= MOST + 16);
            slow.room += usize::from(number % 3 == 0);
            let before = outbox.unsent.len();
            assert_ne!(outbox.send(&mut slow), Sent::Gone);
            assert!(outbox.unsent.len() <= 2 * (MOST + 16), "what was taken is let go");
            if outbox.unsent.len() < before {
                moved += outbox.unsent.len();
            }
        }
        assert!(moved > 0 && moved <= slow.took.len(), "{moved} bytes moved");
        outbox.end(b"end\n", note);
        slow.room = usize::MAX;
        assert_eq!(outbox.send(&mut slow), Sent::All);
        let text = String::from_utf8(slow.took).unwrap();
        let mut next = 0;
        for line in text.lines() {
            match line.strip_prefix("missed ") {
                Some(count) => next += count.parse::<u32>().unwrap(),
                None if line == "end" => assert_eq!(next, COUNT),
                None => {
                    assert_eq!(line.parse(), Ok(next));
                    next += 1;
                }
            }
        }
        assert!(text.ends_with("end\n") && text.contains("missed"));
    }
}
