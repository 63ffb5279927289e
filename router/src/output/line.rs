//! How one line looks, as text and as JSON.
//!
//! Promises: every result is whole lines, the last newline included. Never does: I/O, but for the
//! wall clock of JSON's `time`.

use std::io::{self, Write};
use std::time::SystemTime;

use serde::Serialize;

use crate::config::LogFormat;

/// Which of a worker's two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// Who says something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) worker: u32,
    pub(super) slot: u16,
    pub(super) generation: u32,
    pub(super) stream: Stream,
}

/// What a worker said, without the newline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) source: Source,
    pub(super) time: SystemTime,
    pub(super) text: &'a [u8],
    pub(super) end: End,
}

/// How a line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Where its worker ended it.
    Whole,
    /// It was too long: the next line of this stream goes on with it.
    Continues,
    /// It was too long to be kept; the rest is not here.
    Cut,
}

#[derive(Serialize)]
struct WorkerLine<'a> {
    time: String,
    level: &'static str,
    slot: u16,
    worker: u32,
    generation: u32,
    stream: &'static str,
    msg: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    continues: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<bool>,
}

#[derive(Serialize)]
struct OwnLine<'a> {
    time: String,
    level: &'a str,
    msg: &'a str,
}

/// How workers' lines look now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) format: LogFormat,
    pub(super) show_generation: bool,
}

/// Appends a worker's line and a newline.
pub(super) fn push_worker_line(to: &mut Vec<u8>, style: Style, line: Line<'_>) {
    let Source { worker, slot, generation, stream } = line.source;
    match style.format {
        LogFormat::Text => {
            let head = if style.show_generation {
                format!("[w{slot} g{generation}] ")
            } else {
                format!("[w{slot}] ")
            };
            to.extend_from_slice(head.as_bytes());
            to.extend_from_slice(line.text);
            if line.end == End::Cut {
                to.extend_from_slice(" …".as_bytes());
            }
            to.push(b'\n');
        }
        LogFormat::Json => {
            let stream = match stream {
                Stream::Stdout => "stdout",
                Stream::Stderr => "stderr",
            };
            // What a worker says is a string, whatever it is: nobody knows its own level, if it has
            // one, and `stream` is no level: many programs log everything to stderr.
            let object = WorkerLine {
                time: written(line.time),
                level: "info",
                slot,
                worker,
                generation,
                stream,
                msg: &String::from_utf8_lossy(line.text),
                continues: (line.end == End::Continues).then_some(true),
                cut: (line.end == End::Cut).then_some(true),
            };
            push_json(to, &object);
        }
    }
}

/// Where to cut `text` so that the first piece has at most `most` bytes and, if it is UTF-8, no character
/// is torn.
pub(super) fn cut_at(text: &[u8], most: usize) -> usize {
    let begins = |at: &usize| text.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80);
    (most.saturating_sub(3)..=most).rev().find(begins).unwrap_or(most)
}

/// A line of the primary's own.
pub(super) fn own(format: LogFormat, level: &str, text: &str) -> Vec<u8> {
    let mut line = Vec::with_capacity(text.len() + 1);
    match format {
        LogFormat::Text => {
            line.extend_from_slice(text.as_bytes());
            line.push(b'\n');
        }
        LogFormat::Json => {
            push_json(&mut line, &OwnLine { time: written(wall_clock()), level, msg: text });
        }
    }
    line
}

/// A record of the `log` macros: `croupier: …`, with the level where it matters.
pub(super) fn write_record(
    to: &mut impl Write,
    format: LogFormat,
    record: &log::Record<'_>,
) -> io::Result<()> {
    to.write_all(&own_of_level(format, record.level(), &record.args().to_string()))
}

/// A line as the `log` macros write it.
pub(super) fn own_of_level(format: LogFormat, level: log::Level, text: &str) -> Vec<u8> {
    let (level, head) = match level {
        log::Level::Error => ("error", "croupier: error: "),
        log::Level::Warn => ("warn", "croupier: warning: "),
        log::Level::Info => ("info", "croupier: "),
        log::Level::Debug => ("debug", "croupier: debug: "),
        log::Level::Trace => ("trace", "croupier: trace: "),
    };
    match format {
        LogFormat::Text => own(format, level, &format!("{head}{text}")),
        LogFormat::Json => own(format, level, text),
    }
}

/// The note at the place where lines are missing.
pub(super) fn gap(format: LogFormat, lines: u64, why: &str) -> Vec<u8> {
    let plural = if lines == 1 { "line was" } else { "lines were" };
    let text = format!("{lines} {plural} dropped here: {why}");
    own_of_level(format, log::Level::Warn, &text)
}

fn push_json(to: &mut Vec<u8>, object: &impl Serialize) {
    let before = to.len();
    // Strings and numbers always serialize; if not, better no line than half of one.
    if serde_json::to_writer(&mut *to, object).is_err() {
        to.truncate(before);
        return;
    }
    to.push(b'\n');
}

/// A moment, as every line and event has it.
pub(crate) fn written(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

#[expect(clippy::disallowed_methods, reason = "the time in a log line, and nothing else")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_is_torn() {
        for (text, most, at) in [
            ("abcdef", 4, 4),
            ("abcé", 4, 3),
            ("abcé", 5, 5),
            ("ab\u{1f600}x", 5, 2),
            ("ab\u{1f600}x", 6, 6),
        ] {
            assert_eq!(cut_at(text.as_bytes(), most), at, "{text} {most}");
        }
        // Not UTF-8: then anywhere.
        assert_eq!(cut_at(&[0x80; 10], 7), 7);
    }
}
