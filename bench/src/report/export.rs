//! Tables and histograms for other programs: CSV and HDR logs.
//!
//! Promises: every sample has its line, also one in which all failed; quoting is the csv library's,
//! and what a spreadsheet would take for a formula is none. Never does: round.

use std::time::Duration;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::view::{Round, View};
use super::{ReportError, export_error};
use crate::stats::Balance;

const ROUND_HEAD: [&str; 34] = [
    "engine",
    "workload",
    "round",
    "workers",
    "seconds",
    "intended",
    "connections",
    "requests",
    "connections_per_second",
    "requests_per_second",
    "refused",
    "reset",
    "timed_out",
    "short",
    "other_errors",
    "latency_n",
    "latency_p50_ns",
    "latency_p90_ns",
    "latency_p99_ns",
    "latency_p999_ns",
    "latency_max_ns",
    "cv",
    "max_over_min",
    "jain",
    "primary_cpu_ns",
    "primary_cpu_ns_per_connection",
    "workers_cpu_ns",
    "generator_cpu_ns",
    "foreign_share",
    "primary_bytes",
    "workers_bytes",
    "wrk_rate",
    "late_starts",
    "warnings",
];

/// One line for each engine, workload and round.
pub(crate) fn rounds(view: &View<'_>) -> Result<String, ReportError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(ROUND_HEAD).map_err(export_error)?;
    for cell in view.all() {
        for round in &cell.rounds {
            let mut record = vec![inert(&cell.engine.id), inert(&cell.workload.id)];
            record.extend(figures(round));
            record.extend(costs(round));
            writer.write_record(record).map_err(export_error)?;
        }
    }
    finish(writer)
}

fn figures(round: &Round<'_>) -> Vec<String> {
    let sample = round.sample;
    let mut record = vec![
        // As people count rounds everywhere else in the report.
        sample.round.saturating_add(1).to_string(),
        sample.workers.to_string(),
        sample.seconds.to_string(),
        sample.intended.to_string(),
        sample.connections.to_string(),
        sample.requests.to_string(),
        sample.connection_rate().to_string(),
        sample.request_rate().to_string(),
    ];
    record.extend(sample.errors.by_kind().map(|(_, count)| count.to_string()));
    match round.total {
        Some(total) => {
            record.push(total.n.to_string());
            let places = [total.p50, total.p90, total.p99, total.p999, total.max];
            record.extend(places.map(|ns| ns.to_string()));
        }
        None => record.extend(std::iter::repeat_n(String::new(), 6)),
    }
    record
}

fn costs(round: &Round<'_>) -> Vec<String> {
    let sample = round.sample;
    let known = |value: Option<String>| value.unwrap_or_default();
    let balance = Balance::of(&round.counts());
    let cpu = sample.cpu.as_ref();
    let memory = sample.memory.as_ref();
    let names: Vec<&str> = sample.warnings.iter().map(crate::data::Warning::name).collect();
    vec![
        known(balance.map(|b| b.cv.to_string())),
        known(balance.map(|b| b.max_over_min.to_string())),
        known(balance.map(|b| b.jain.to_string())),
        known(cpu.and_then(|cpu| cpu.primary_ns).map(|ns| ns.to_string())),
        known(sample.primary_ns_per_connection().map(|ns| ns.to_string())),
        known(cpu.map(|cpu| cpu.workers_ns.to_string())),
        known(cpu.map(|cpu| cpu.generator_ns.to_string())),
        known(cpu.map(|cpu| cpu.foreign_share.to_string())),
        known(memory.and_then(|memory| memory.primary_bytes).map(|bytes| bytes.to_string())),
        known(memory.map(|memory| memory.workers_bytes.to_string())),
        known(sample.wrk.as_ref().map(|run| run.rate.to_string())),
        known(sample.schedule.map(|schedule| schedule.late.to_string())),
        names.join("; "),
    ]
}

/// Latencies by percentile of each cell, all rounds together.
pub(crate) fn percentiles(view: &View<'_>) -> Result<String, ReportError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer
        .write_record(["engine", "workload", "percentile", "latency_ns", "n"])
        .map_err(export_error)?;
    for cell in view.all() {
        let Some(pooled) = &cell.pooled else { continue };
        for (quantile, ns) in &pooled.curve {
            let record = [
                inert(&cell.engine.id),
                inert(&cell.workload.id),
                format!("{:.7}", quantile * 100.0),
                format!("{ns:.0}"),
                pooled.total.n.to_string(),
            ];
            writer.write_record(record).map_err(export_error)?;
        }
    }
    finish(writer)
}

/// The histograms as HdrHistogram's own tools read them: a line for each round, tagged
/// `engine/workload/round`. A log has times; the rounds stand at their place in the run, one after
/// another.
pub(crate) fn hdr_log(view: &View<'_>) -> Result<Vec<u8>, ReportError> {
    let mut log = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .with_max_value_divisor(1e6)
        .add_comment("latency from the intended start; values in ns, maxima of lines in ms")
        .begin_log_with(&mut log, &mut serializer)
        .map_err(export_error)?;
    let mut start = Duration::ZERO;
    for sample in &view.results.samples {
        let length = Duration::try_from_secs_f64(sample.seconds).unwrap_or_default();
        // What cannot be decoded is named at the head of the report.
        if let Some(Ok(histogram)) = sample.latency.as_ref().map(|l| l.total.decode()) {
            let tag = format!("{}/{}/{}", sample.engine, sample.workload, sample.round + 1);
            let tag: String = tag.chars().map(tame).collect();
            writer
                .write_histogram(&histogram, start, length, Tag::new(&tag))
                .map_err(|error| ReportError::Export(format!("{error:?}")))?;
        }
        start = start.saturating_add(length);
    }
    Ok(log)
}

/// A tag may not have what separates its line.
fn tame(c: char) -> char {
    if c.is_ascii_alphanumeric() || "-_./".contains(c) { c } else { '_' }
}

/// Spreadsheets run what begins like a formula.
fn inert(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        format!("'{text}")
    } else {
        text.to_owned()
    }
}

fn finish(writer: csv::Writer<Vec<u8>>) -> Result<String, ReportError> {
    let bytes = writer.into_inner().map_err(export_error)?;
    String::from_utf8(bytes).map_err(export_error)
}
