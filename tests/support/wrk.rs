//! wrk, run and read.

use std::process::Command;

use crate::{Guard, find_program};

/// What one run of wrk said.
#[derive(Debug, Clone, PartialEq)]
pub struct Wrk {
    /// Answers.
    pub requests: u64,
    /// Answers per second.
    pub rate: f64,
    /// Failures by kind: connect, read, write, timeout, and answers that were not 2xx or 3xx.
    pub errors: [u64; 5],
    /// 50th and 99th percentile of the latency in milliseconds, with `--latency`. Of a closed loop, so
    /// only good beside another run of the same.
    pub latency: Option<[f64; 2]>,
    /// What it printed.
    pub text: String,
}

impl Wrk {
    /// All failures together.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors.iter().sum()
    }

    fn parse(text: String) -> Option<Self> {
        let number = |before: &str, after: &str| -> Option<f64> {
            let rest = &text[text.find(before)? + before.len()..];
            let end = rest.find(after)?;
            rest.get(..end)?.trim().parse().ok()
        };
        let count = |before: &str| -> u64 {
            let Some(at) = text.find(before) else { return 0 };
            let digits = text[at + before.len()..].trim_start();
            digits.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("").parse().unwrap_or(0)
        };
        let requests = text.lines().find_map(|line| {
            line.trim().split_once(" requests in ").and_then(|(count, _)| count.parse().ok())
        })?;
        let rate = number("Requests/sec:", "\n")?;
        let kinds = ["connect ", "read ", "write ", "timeout "];
        let mut errors = [0; 5];
        if text.contains("Socket errors:") {
            for (to, kind) in errors.iter_mut().zip(kinds) {
                *to = count(kind);
            }
        }
        errors[4] = count("Non-2xx or 3xx responses:");
        let percentile = |share: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(share))?;
            // `850.00us`, `11.66ms`, `1.79s`
            let unit = line.trim().find(|c: char| c.is_ascii_alphabetic())?;
            let (value, unit) = line.trim().split_at_checked(unit)?;
            let in_ms = match unit {
                "us" => 0.001,
                "ms" => 1.0,
                "s" => 1000.0,
                _ => return None,
            };
            Some(value.parse::<f64>().ok()? * in_ms)
        };
        let latency = percentile("50%").zip(percentile("99%")).map(<[f64; 2]>::from);
        Some(Self { requests, rate, errors, latency, text })
    }
}

/// Runs wrk to its end. `None` where there is no wrk: the test is to be skipped by name.
///
/// # Panics
/// When wrk fails or prints what cannot be read.
#[must_use]
pub fn wrk(guard: &Guard, port: u16, path: &str, clients: u32, args: &[&str]) -> Option<Wrk> {
    let mut command: Command = guard.command(find_program("wrk")?);
    command.args(["-t", "1", "-c", &clients.to_string(), "--timeout", "15s"]).args(args);
    command.arg(format!("http://127.0.0.1:{port}{path}"));
    let output = command.output().expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(Wrk::parse(text.clone()).unwrap_or_else(|| {
        panic!("wrk said {text:?} {:?}", String::from_utf8_lossy(&output.stderr))
    }))
}
