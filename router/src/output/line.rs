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

#[derive(Serialize)]
struct WorkerLine<'a> {
    time: String,
    slot: u16,
    worker: u32,
    generation: u32,
    stream: &'static str,
    line: &'a str,
}

#[derive(Serialize)]
struct OwnLine<'a> {
    time: String,
    level: &'a str,
    message: &'a str,
}

/// How workers' lines look now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) format: LogFormat,
    pub(super) show_generation: bool,
}

/// Appends a worker's line. `text` has no newline.
pub(super) fn push_worker_line(to: &mut Vec<u8>, style: Style, source: Source, text: &[u8]) {
    let Source { worker, slot, generation, stream } = source;
    match style.format {
        LogFormat::Text => {
            let head = if style.show_generation {
                format!("[w{slot} g{generation}] ")
            } else {
                format!("[w{slot}] ")
            };
            to.extend_from_slice(head.as_bytes());
            to.extend_from_slice(text);
            to.push(b'\n');
        }
        LogFormat::Json => {
            let stream = match stream {
                Stream::Stdout => "stdout",
                Stream::Stderr => "stderr",
            };
            let line = String::from_utf8_lossy(text);
            let object =
                WorkerLine { time: wall_clock(), slot, worker, generation, stream, line: &line };
            push_json(to, &object);
        }
    }
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
            push_json(&mut line, &OwnLine { time: wall_clock(), level, message: text });
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
    let (level, head) = match record.level() {
        log::Level::Error => ("error", "croupier: error: "),
        log::Level::Warn => ("warn", "croupier: warning: "),
        log::Level::Info => ("info", "croupier: "),
        log::Level::Debug => ("debug", "croupier: debug: "),
        log::Level::Trace => ("trace", "croupier: trace: "),
    };
    let line = match format {
        LogFormat::Text => own(format, level, &format!("{head}{}", record.args())),
        LogFormat::Json => own(format, level, &record.args().to_string()),
    };
    to.write_all(&line)
}

/// The note at the place where lines are missing.
pub(super) fn gap(format: LogFormat, lines: u64) -> Vec<u8> {
    let plural = if lines == 1 { "line was" } else { "lines were" };
    let text = format!("{lines} {plural} dropped here: nobody read this output");
    match format {
        LogFormat::Text => own(format, "warn", &format!("croupier: warning: {text}")),
        LogFormat::Json => own(format, "warn", &text),
    }
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

#[expect(clippy::disallowed_methods, reason = "the time in a log line, and nothing else")]
pub(crate) fn wall_clock() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
