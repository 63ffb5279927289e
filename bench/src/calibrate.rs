//! What the generators cost by themselves: the same plan against a server that does nothing.
//!
//! Owns: the null runs. Promises: their figures are in the results before any engine's; no engine can
//! show less. Never does: subtract anything from anybody.

use std::time::Duration;

use crate::data::{Calibration, Generator};
use crate::load::{Arrivals, Common, OpenLoad, RequestKind, WrkLoad};
use crate::measure::SampleError;
use crate::mock::Mock;
use crate::process::own_cpu;

const RATE: f64 = 4_000.0;
const CLIENTS: u32 = 128;

/// The open loop against the null server.
///
/// # Errors
/// If the server or the loop cannot be made.
pub fn open(length: Duration) -> Result<Calibration, SampleError> {
    let null = Mock::null()?;
    let load = OpenLoad {
        common: Common {
            target: null.address(),
            length,
            sources: 64,
            patience: Duration::from_secs(2),
            seed: 1,
            timeline: None,
            begun: None,
        },
        rate: RATE,
        arrivals: Arrivals::Random,
        kinds: vec![RequestKind { path: "/".to_owned(), weight: 1.0 }],
        open_max: 1_000,
        sticky: false,
    };
    let seen = load.run()?;
    Ok(Calibration {
        generator: Generator::Open,
        method: format!(
            "the open loop at {RATE} connections/s against a thread of the same process that accepts, \
             answers and closes"
        ),
        rate: per_second(seen.connections, seen.seconds),
        generator_share: share(Duration::from_nanos(seen.cpu_ns), seen.seconds),
        latency: Some(seen.recorder.latencies()?),
        wrk: None,
    })
}

/// wrk against the null server.
///
/// # Errors
/// If wrk is not there or fails.
pub fn wrk(length: Duration, cpus: &[u32]) -> Result<Calibration, SampleError> {
    let null = Mock::null()?;
    let load = WrkLoad {
        url: format!("http://{}/", null.address()),
        clients: CLIENTS,
        seconds: u32::try_from(length.as_secs().max(1)).unwrap_or(1),
        keep_alive: false,
        threads: 1,
        patience: Duration::from_secs(2),
        cpus: cpus.to_vec(),
    };
    let (_, before) = own_cpu()?;
    let wrk = load.run(|| {})?;
    let (_, after) = own_cpu()?;
    Ok(Calibration {
        generator: Generator::ClosedWrk,
        method: format!(
            "wrk -t1 -c{CLIENTS} against one thread that accepts, answers and closes: what one such \
             thread and wrk do together"
        ),
        rate: wrk.run.rate,
        generator_share: share(after.saturating_sub(before), wrk.seconds),
        latency: None,
        wrk: Some(wrk.run),
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds are far below 2^52")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn share(used: Duration, seconds: f64) -> f64 {
    used.as_secs_f64() / seconds
}
