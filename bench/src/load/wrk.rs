//! wrk, run and read.
//!
//! Owns: its command line and its words. Promises: its whole output is kept; what cannot be read is an
//! error, not a zero. Never does: correct its latencies.

use std::process::Command;
use std::time::Duration;

use crate::data::{Errors, WrkRun};
use crate::process::{Guarded, ProcessError};

/// One run of wrk.
#[derive(Debug, Clone)]
pub struct WrkLoad {
    /// Where to: `http://127.0.0.1:8080/`.
    pub url: String,
    /// Clients; each asks again when it has its answer.
    pub clients: u32,
    /// Whole seconds.
    pub seconds: u32,
    /// Connections stay open over requests; else every request has its own.
    pub keep_alive: bool,
    /// Its threads; each has some of the clients.
    pub threads: u32,
    /// How long a client waits before wrk counts a time-out.
    pub patience: Duration,
    /// CPUs that it may use; empty: all.
    pub cpus: Vec<u32>,
}

/// What it said.
#[derive(Debug, Clone, PartialEq)]
pub struct Wrk {
    /// Whole answers.
    pub requests: u64,
    /// How long it measured, by its own clock.
    pub seconds: f64,
    /// Failures by kind: what it calls connect is `refused`, read and write are `reset`, an answer with another
    /// status than 2xx or 3xx is `other`.
    pub errors: Errors,
    /// For `results.json`.
    pub run: WrkRun,
}

/// wrk could not be run, or not be read.
#[derive(Debug, thiserror::Error)]
pub enum WrkError {
    /// It could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It said something else than a result.
    #[error("wrk: its output cannot be read: {0:?}")]
    Unread(String),
}

impl WrkLoad {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("-t{}", self.threads.clamp(1, self.clients.max(1))),
            format!("-c{}", self.clients),
            format!("-d{}s", self.seconds),
            "--timeout".to_owned(),
            format!("{}s", self.patience.as_secs().max(1)),
            "--latency".to_owned(),
        ];
        if !self.keep_alive {
            arguments.extend(["-H".to_owned(), "Connection: close".to_owned()]);
        }
        arguments.push(self.url.clone());
        arguments
    }

    /// Runs it to its end. `meanwhile` is called on this thread while it runs.
    ///
    /// # Errors
    /// If it cannot be run, or says something else than a result.
    pub fn run(&self, meanwhile: impl FnOnce()) -> Result<Wrk, WrkError> {
        let arguments = self.arguments();
        let mut command = Command::new("wrk");
        command.args(&arguments);
        let running = Guarded::piped(&command, &self.cpus)?;
        meanwhile();
        let output = running.output()?;
        let words = std::iter::once("wrk".to_owned()).chain(arguments).collect();
        Wrk::parse(words, &output).ok_or(WrkError::Unread(output))
    }
}

impl Wrk {
    fn parse(command: Vec<String>, output: &str) -> Option<Self> {
        let (requests, seconds) = output.lines().find_map(|line| {
            let (requests, rest) = line.trim().split_once(" requests in ")?;
            Some((requests.parse().ok()?, seconds_of(rest.split(',').next()?)?))
        })?;
        let rate = after(output, "Requests/sec:")?.parse().ok()?;
        let count = |name: &str| {
            let errors = output.lines().find(|line| line.contains("Socket errors:"));
            let word = errors.and_then(|line| after(line, name))?;
            word.trim_end_matches(',').parse::<u64>().ok()
        };
        let of = |name| count(name).unwrap_or(0);
        let bad = after(output, "Non-2xx or 3xx responses:").and_then(|n| n.parse().ok());
        let errors = Errors {
            refused: of("connect "),
            reset: of("read ") + of("write "),
            timeout: of("timeout "),
            short: 0,
            other: bad.unwrap_or(0),
        };
        let percentiles = output
            .lines()
            .filter_map(|line| {
                let (share, value) = line.trim().split_once('%')?;
                let seconds = seconds_of(value.trim())?;
                Some((share.parse().ok()?, nanoseconds(seconds)))
            })
            .collect();
        let run = WrkRun { command, output: output.to_owned(), rate, percentiles };
        Some(Self { requests, seconds, errors, run })
    }
}

/// The word behind some words.
fn after<'a>(text: &'a str, words: &str) -> Option<&'a str> {
    text.split_once(words)?.1.split_whitespace().next()
}

/// `1.50ms` and the like, in seconds.
fn seconds_of(text: &str) -> Option<f64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a latency: positive, at most hours"
)]
fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
Running 4s test @ http://127.0.0.1:8080/
  1 threads and 128 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     5.51ms    1.02ms  21.92ms   89.11%
    Req/Sec    21.02k     1.10k   23.10k    75.00%
  Latency Distribution
     50%    5.39ms
     75%  810.00us
     90%    6.20ms
     99%    1.02s
  84000 requests in 4.01s, 6.49MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:  20947.63
Transfer/sec:      1.62MB
";

    #[test]
    fn its_words_are_read() {
        let wrk = Wrk::parse(vec!["wrk".to_owned()], OUTPUT).unwrap();
        assert_eq!(wrk.requests, 84_000);
        assert!((wrk.seconds - 4.01).abs() < 1e-9);
        let errors = Errors { refused: 1, reset: 5, timeout: 4, short: 0, other: 5 };
        assert_eq!(wrk.errors, errors);
        let percentiles =
            [(50.0, 5_390_000), (75.0, 810_000), (90.0, 6_200_000), (99.0, 1_020_000_000)];
        assert_eq!(wrk.run.percentiles, percentiles);
        assert!((wrk.run.rate - 20_947.63).abs() < 1e-9);
        assert_eq!(wrk.run.output, OUTPUT);
    }

    #[test]
    fn no_result_is_an_error() {
        assert_eq!(Wrk::parse(Vec::new(), "unable to connect to 127.0.0.1:1\n"), None);
    }
}
