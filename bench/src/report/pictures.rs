//! Which charts a run has.
//!
//! Owns: what is drawn, with which engines in one chart, and its caption. Promises: at most seven
//! engines with a line in one chart, croupier's default in each; an engine looks the same everywhere.
//! Never does: draw, or write HTML.

use super::chart::{
    ChartError, Dot, Figure, Hand, Lane, Point, Ray, Tail, Unit, bars, dots, lines, percentiles,
    timeline,
};
use super::names::{engine, workload};
use super::units;
use super::view::{Cell, Measure, View, as_f64};
use crate::data::{self, EngineKind, Generator, WorkerKind, WorkloadInfo};
use crate::stats::{Balance, median};

/// A chart and what stands above it.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) caption: String,
    pub(crate) figure: Figure,
}

/// Lines in one chart beyond which nobody can follow one.
const LINES_MAX: usize = 7;

/// Engines that are drawn into one chart, and what they have in common.
fn groups<'a, 'b>(cells: &'a [Cell<'b>]) -> Vec<(&'static str, Vec<&'a Cell<'b>>)> {
    let (node, others): (Vec<_>, Vec<_>) = cells
        .iter()
        .filter(|cell| !cell.rounds.is_empty())
        .partition(|cell| cell.engine.worker == WorkerKind::Node);
    let mut found = Vec::new();
    if others.len() <= LINES_MAX {
        found.push(("", others));
    } else {
        let (dealt, mut rest): (Vec<_>, Vec<_>) = others.into_iter().partition(|cell| {
            matches!(cell.engine.kind, EngineKind::Croupier | EngineKind::Kernel)
        });
        let default = dealt.iter().find(|cell| cell.engine.id == engine::LEAST);
        rest.splice(0..0, default.copied());
        found.push(("croupier's policies and the kernel", dealt));
        found.push(("croupier and the rest", rest));
    }
    found.push(("with Node workers", node));
    found
}

fn titled(title: &str, group: &str) -> String {
    if group.is_empty() { title.to_owned() } else { format!("{title}: {group}") }
}

/// All charts of one workload.
pub(crate) fn of_workload(
    view: &View<'_>,
    workload: &WorkloadInfo,
) -> Result<Vec<Picture>, ChartError> {
    let cells = view.of_workload(&workload.id);
    let mut pictures = Vec::new();
    for figure in &workload.figures {
        match figure {
            data::Figure::ConnectionRate => {
                pictures.extend(spreads(cells, Measure::ConnectionRate, workload)?);
            }
            data::Figure::RequestRate => {
                pictures.extend(spreads(cells, Measure::RequestRate, workload)?);
            }
            data::Figure::Latency => pictures.extend(latencies(cells, workload)?),
            data::Figure::Balance => pictures.extend(balances(cells, workload)?),
            data::Figure::Cpu => {
                pictures.extend(spreads(cells, Measure::cost(workload), workload)?);
            }
            data::Figure::Timeline => pictures.extend(courses(cells, workload)?),
            // Both stand in the table: a chart of few bytes or of zeros shows nothing.
            data::Figure::Memory | data::Figure::Errors => {}
        }
    }
    Ok(pictures)
}

fn spreads(
    cells: &[Cell<'_>],
    measure: Measure,
    workload: &WorkloadInfo,
) -> Result<Option<Picture>, ChartError> {
    // An engine that has none by nature (no primary, no CPU of it) is not shown as missing.
    let all: Vec<Dot> = cells
        .iter()
        .filter(|cell| !cell.rounds.is_empty())
        .filter(|cell| measure != Measure::cost(workload) || cell.engine.has_primary)
        .map(|cell| Dot {
            name: cell.engine.name.clone(),
            look: cell.look,
            spread: cell.spread(measure).map(|s| (s.min, s.median, s.max)),
        })
        .collect();
    if all.iter().all(|dot| dot.spread.is_none()) {
        return Ok(None);
    }
    let caption = format!("{}: median round, and the smallest to the largest", measure.name());
    let label = format!("{}, {}", workload.name, measure.name());
    let figure = dots(&label, measure.name(), measure.unit(), &all)?;
    Ok(Some(Picture { caption, figure }))
}

fn latencies(cells: &[Cell<'_>], workload: &WorkloadInfo) -> Result<Vec<Picture>, ChartError> {
    let mut pictures = Vec::new();
    for (group, members) in groups(cells) {
        let tails: Vec<Tail> = members
            .iter()
            .filter_map(|cell| {
                let points = cell.pooled.as_ref()?.curve.clone();
                Some(Tail { name: cell.engine.name.clone(), look: cell.look, points })
            })
            .collect();
        if tails.is_empty() {
            continue;
        }
        let label = format!("{}, latency by percentile", workload.name);
        let from = match workload.generator {
            Generator::ClosedWrk => "closed loop",
            Generator::Open | Generator::LongLived => "from the intended start",
        };
        let caption = titled(&format!("Latency by percentile, {from}, all rounds together"), group);
        pictures.push(Picture { caption, figure: percentiles(&label, &tails)? });
    }
    Ok(pictures)
}

fn balances(cells: &[Cell<'_>], workload: &WorkloadInfo) -> Result<Option<Picture>, ChartError> {
    let hands: Vec<Hand> = cells
        .iter()
        .filter_map(|cell| {
            let round = cell.typical(Measure::Unevenness)?;
            let counts = round.counts();
            if counts.len() < 2 {
                return None;
            }
            let balances: Vec<f64> =
                cell.values(Measure::Unevenness).into_iter().map(|(_, cv)| cv).collect();
            let jain = Balance::of(&counts).map(|balance| balance.jain);
            let words = match (median(&balances), jain) {
                (Some(cv), Some(jain)) => {
                    format!("CV {}, Jain {}", units::plain(cv), units::plain(jain))
                }
                _ => "nothing served".into(),
            };
            Some(Hand { name: cell.engine.name.clone(), look: cell.look, counts, words })
        })
        .collect();
    if hands.is_empty() {
        return Ok(None);
    }
    let label = format!("{}, connections of each worker", workload.name);
    let caption = "Connections of each worker, in the round in the middle".to_owned();
    Ok(Some(Picture { caption, figure: bars(&label, &hands)? }))
}

fn courses(cells: &[Cell<'_>], workload: &WorkloadInfo) -> Result<Vec<Picture>, ChartError> {
    let course = |value: fn(&data::TimelinePoint) -> f64| -> Vec<Lane> {
        cells
            .iter()
            .filter_map(|cell| {
                let round = cell.typical(Measure::Max)?;
                let sample = round.sample;
                if sample.timeline.is_empty() {
                    return None;
                }
                let points = sample.timeline.iter().map(|p| (seconds(p.at_ms), value(p)));
                let events = sample.events.iter().map(|event| {
                    (seconds(event.at_ms), seconds(event.until_ms.unwrap_or(event.at_ms)))
                });
                Some(Lane {
                    name: cell.engine.name.clone(),
                    look: cell.look,
                    points: points.collect(),
                    events: events.collect(),
                })
            })
            .collect()
    };
    let mut pictures = Vec::new();
    let slowest = course(|point| as_f64(point.max_ns));
    if !slowest.is_empty() {
        let label = format!("{}, largest latency over time", workload.name);
        pictures.push(Picture {
            caption: "Largest latency by intended start, in the round in the middle".into(),
            figure: timeline(&label, Unit::Nanos, &slowest)?,
        });
    }
    let failed = course(|point| as_f64(point.errors));
    if failed.iter().any(|lane| lane.points.iter().any(|(_, errors)| *errors > 0.0)) {
        let failing: Vec<Lane> = failed
            .into_iter()
            .filter(|lane| lane.points.iter().any(|(_, errors)| *errors > 0.0))
            .collect();
        let label = format!("{}, failed requests over time", workload.name);
        pictures.push(Picture {
            caption: "Failed requests by intended start (only engines that have any)".into(),
            figure: timeline(&label, Unit::Count, &failing)?,
        });
    }
    Ok(pictures)
}

fn seconds(ms: u64) -> f64 {
    as_f64(ms) / 1000.0
}

/// A family of workloads that differ in the number of workers, and its charts.
#[derive(Debug)]
pub(crate) struct Scaling {
    pub(crate) family: String,
    pub(crate) pictures: Vec<Picture>,
}

/// Rate and cost against the number of workers, for each family that has at least two.
pub(crate) fn scaling(view: &View<'_>) -> Result<Vec<Scaling>, ChartError> {
    let mut families: Vec<&str> = Vec::new();
    for workload in &view.results.workloads {
        if !families.contains(&workload.family.as_str()) {
            families.push(&workload.family);
        }
    }
    let mut found = Vec::new();
    for family in families {
        let mut members: Vec<&WorkloadInfo> =
            view.results.workloads.iter().filter(|workload| workload.family == family).collect();
        members.sort_by_key(|workload| workload.workers);
        members.dedup_by_key(|workload| workload.workers);
        if members.len() < 2 {
            continue;
        }
        let mut pictures = Vec::new();
        for measure in [Measure::ConnectionRate, Measure::PrimaryCpu, Measure::PrimaryMemory] {
            pictures.extend(against_workers(view, family, &members, measure)?);
        }
        found.push(Scaling { family: family.to_owned(), pictures });
    }
    Ok(found)
}

fn against_workers(
    view: &View<'_>,
    family: &str,
    members: &[&WorkloadInfo],
    measure: Measure,
) -> Result<Option<Picture>, ChartError> {
    let rays: Vec<Ray> = view
        .results
        .engines
        .iter()
        .zip(&view.looks)
        .filter_map(|(engine, look)| {
            let points: Vec<Point> = members
                .iter()
                .filter_map(|workload| {
                    let spread = view.cell(&engine.id, &workload.id)?.spread(measure)?;
                    Some(Point {
                        workers: workload.workers,
                        spread: (spread.min, spread.median, spread.max),
                    })
                })
                .collect();
            (points.len() > 1).then(|| Ray { name: engine.name.clone(), look: *look, points })
        })
        .collect();
    if rays.is_empty() {
        return Ok(None);
    }
    let label = format!("{family}, {} against the number of workers", measure.name());
    let figure = lines(&label, measure.name(), measure.unit(), &rays)?;
    let caption = format!("{} against the number of workers", measure.name());
    Ok(Some(Picture { caption, figure }))
}

/// The chart for a README: the latencies of the workload that the run is most about; where none was
/// measured, the rates.
pub(crate) fn emblem(view: &View<'_>) -> Result<Option<Picture>, ChartError> {
    let named = [workload::TAIL_70, workload::SHORT];
    let first = named
        .iter()
        .find_map(|id| view.results.workloads.iter().find(|workload| workload.id == *id));
    for workload in first.into_iter().chain(&view.results.workloads) {
        let pictures = of_workload(view, workload)?;
        if let Some(mut picture) = pictures.into_iter().next() {
            picture.caption = format!("{}. {}", workload.name, picture.caption);
            return Ok(Some(picture));
        }
    }
    Ok(None)
}
