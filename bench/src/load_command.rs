//! `croupier-bench load`: the generator by itself.
//!
//! Owns: its flags and the summary. Promises: percentiles are printed with the number of values that
//! they stand on, and the naive figure beside the honest one. Never does: start what it loads.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use clap::{Args, ValueEnum};
use croupier_bench::data::{Sample, WorkerCount};
use croupier_bench::load::{
    Arrivals, Common, LongLoad, OpenLoad, RequestKind, Seen, raise_descriptor_limit,
};
use croupier_bench::stats::Balance;

const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Where to: 127.0.0.1:8080.
    #[arg(value_name = "ADDR")]
    target: String,
    /// Starts per second (with --long: messages of each connection per second).
    #[arg(long, default_value_t = 1_000.0, value_parser = rate)]
    rate: f64,
    /// How long the schedule is.
    #[arg(long, default_value_t = 4.0, value_parser = super::seconds)]
    seconds: f64,
    /// How starts follow each other.
    #[arg(long, value_enum, default_value_t = ArrivalsArg::Random)]
    arrivals: ArrivalsArg,
    /// What is asked for; =WEIGHT when there are several.
    #[arg(long = "path", value_name = "PATH[=WEIGHT]", default_value = "/", value_parser = kind)]
    paths: Vec<RequestKind>,
    /// Source addresses of 127.0.0.0/8, at random; 0: the kernel's choice.
    #[arg(long, default_value_t = 0)]
    sources: u32,
    /// How long a client waits, in seconds.
    #[arg(long, default_value_t = 5.0, value_parser = super::seconds)]
    timeout: f64,
    /// Most connections at once.
    #[arg(long, default_value_t = 8_000, value_name = "N")]
    open_max: usize,
    /// So many connections of croupier-bench-worker's echo that stay open, instead of short ones.
    #[arg(long, value_name = "N")]
    long: Option<usize>,
    /// Of the schedule.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints a sample as it stands in results.json.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArrivalsArg {
    /// As independent clients come.
    Random,
    /// At equal distances.
    Even,
}

pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let valid = (0.01..=1_000_000.0).contains(&rate);
    if valid { Ok(rate) } else { Err("must be 0.01 to 1000000".to_owned()) }
}

fn kind(text: &str) -> Result<RequestKind, String> {
    let (path, weight) = text.rsplit_once('=').unwrap_or((text, "1"));
    let weight: f64 = weight.parse().map_err(|_| format!("{weight:?} is not a weight"))?;
    let plain = path.bytes().all(|byte| byte.is_ascii_graphic());
    if path.starts_with('/') && plain && weight > 0.0 && weight.is_finite() {
        Ok(RequestKind { path: path.to_owned(), weight })
    } else {
        Err("must be a path that begins with /, and a weight above 0".to_owned())
    }
}

pub(crate) fn run(arguments: &LoadArgs) -> Result<(), super::Failure> {
    let target: SocketAddr = arguments
        .target
        .to_socket_addrs()
        .map_err(|error| format!("{}: {error}", arguments.target))?
        .next()
        .ok_or_else(|| format!("{}: no address", arguments.target))?;
    raise_descriptor_limit()?;
    let common = Common {
        target,
        length: Duration::from_secs_f64(arguments.seconds),
        sources: if target.is_ipv4() && target.ip().is_loopback() { arguments.sources } else { 0 },
        patience: Duration::from_secs_f64(arguments.timeout),
        seed: arguments.seed,
        timeline: None,
        begun: None,
    };
    let seen = match arguments.long {
        Some(connections) => LongLoad {
            common,
            connections,
            open_rate: 4_000.0,
            chatty: connections,
            burst: false,
            messages_per_second: arguments.rate,
            cpu_us: 0,
        }
        .run()?,
        None => OpenLoad {
            common,
            rate: arguments.rate,
            arrivals: match arguments.arrivals {
                ArrivalsArg::Random => Arrivals::Random,
                ArrivalsArg::Even => Arrivals::Even,
            },
            kinds: arguments.paths.clone(),
            open_max: arguments.open_max,
            sticky: false,
        }
        .run()?,
    };
    if arguments.json { print_json(&seen) } else { print_text(&seen) }
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn print_json(seen: &Seen) -> Result<(), super::Failure> {
    let sample = Sample {
        engine: "load".to_owned(),
        workload: "load".to_owned(),
        seconds: seen.seconds,
        intended: seen.intended,
        connections: seen.connections,
        requests: seen.requests,
        errors: seen.errors,
        latency: Some(seen.recorder.latencies()?),
        per_worker: seen
            .per_worker
            .iter()
            .map(|(pid, (connections, requests))| WorkerCount {
                pid: *pid,
                connections: *connections,
                requests: *requests,
            })
            .collect(),
        schedule: Some(seen.schedule),
        ..Sample::default()
    };
    println!("{}", serde_json::to_string_pretty(&sample)?);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds are far below 2^52")]
fn print_text(seen: &Seen) -> Result<(), super::Failure> {
    let rate = seen.requests as f64 / seen.seconds;
    println!(
        "{} intended, {} answered ({rate:.0}/s), errors: {}",
        seen.intended, seen.requests, seen.errors
    );
    let (total, naive) = (seen.recorder.total(), seen.recorder.naive());
    println!("latency of {} answers, ms    from the intended start    naive", total.len());
    let ms = |ns: u64| ns as f64 / 1e6;
    for percentile in PERCENTILES {
        let of = |h: &hdrhistogram::Histogram<u64>| ms(h.value_at_percentile(percentile));
        println!("  p{percentile:<28} {:>20.3} {:>12.3}", of(total), of(naive));
    }
    println!("  {:<29} {:>20.3} {:>12.3}", "max", ms(total.max()), ms(naive.max()));
    println!(
        "schedule: {} starts over 1 ms late, the worst {:.1} ms; {} never made; at most {} open",
        seen.schedule.late,
        ms(seen.schedule.worst_ns),
        seen.schedule.unstarted,
        seen.schedule.open_max
    );
    let counts: Vec<u64> = seen.per_worker.values().map(|(connections, _)| *connections).collect();
    if let Some(balance) = Balance::of(&counts).filter(|_| counts.len() > 1) {
        println!(
            "{} workers: CV {:.3}, largest/smallest {:.2}, Jain {:.3}",
            counts.len(),
            balance.cv,
            balance.max_over_min,
            balance.jain
        );
    }
    Ok(())
}
