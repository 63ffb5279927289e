//! The tables of a report, as text in cells.
//!
//! Owns: which columns a workload's table has. Promises: columns that nobody has are left out; an
//! engine that did not run has a row that says so. Never does: HTML or Markdown.

use super::units;
use super::view::{Cell, Measure, Tally, View, compare};
use super::words::{lead, lost};
use crate::data::WorkloadInfo;
use crate::stats::{Balance, Spread, median};

/// Text in rows and columns. The first column is the engine's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// The head of each column, and what it means.
    pub(crate) columns: Vec<(String, &'static str)>,
    pub(crate) rows: Vec<Row>,
}

/// One engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) content: Content,
}

/// What stands beside an engine's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// One for each column.
    Figures(Vec<String>),
    /// It did not run: why.
    Absent(String),
}

/// What a figure that was not measured looks like.
const NONE: &str = "–";

type Show = fn(&Cell<'_>) -> Option<String>;

/// Every column that a table may have.
const COLUMNS: [(&str, &str, Show); 23] = [
    ("conn/s", "completed connections per second: median, smallest and largest round", |cell| {
        spread(cell, Measure::ConnectionRate)
    }),
    ("req/s", "answers per second: median, smallest and largest round", |cell| {
        let same = cell.rounds.iter().all(|r| r.sample.requests == r.sample.connections);
        if same { None } else { spread(cell, Measure::RequestRate) }
    }),
    ("p50", "latency from the intended start, all rounds together", |cell| total(cell, |t| t.p50)),
    ("p90", "latency from the intended start, all rounds together", |cell| total(cell, |t| t.p90)),
    ("p99", "latency from the intended start, all rounds together", |cell| total(cell, |t| t.p99)),
    ("p99.9", "latency from the intended start, all rounds together", |cell| {
        total(cell, |t| t.p999)
    }),
    ("cheap p99", "p99 of the cheap requests of a mixed load: what they waited for others", |c| {
        Some(units::nanos(c.pooled.as_ref()?.cheap?.p99))
    }),
    ("max", "largest latency of all rounds", |cell| total(cell, |t| t.max)),
    ("n", "latencies that the percentiles stand on", |cell| {
        Some(units::exact(cell.pooled.as_ref()?.total.n))
    }),
    (
        "naive p99",
        "p99 from the actual start: what a generator that forgets its schedule says",
        |c| Some(units::nanos(c.pooled.as_ref()?.naive?.p99)),
    ),
    ("connect p99", "actual start to connected", |cell| {
        Some(units::nanos(cell.pooled.as_ref()?.connect?.p99))
    }),
    ("first byte p99", "intended start to the first byte of the answer", |cell| {
        Some(units::nanos(cell.pooled.as_ref()?.first_byte?.p99))
    }),
    (
        "wrk p50",
        "median latency of the closed loop: omits the waiting of what was not sent",
        |cell| wrk(cell, 50.0),
    ),
    ("wrk p99", "p99 of the closed loop: omits the waiting of what was not sent", |cell| {
        wrk(cell, 99.0)
    }),
    ("CV", "coefficient of variation of connections over workers; 0 is even", |cell| {
        balance(cell, |balance| balance.cv)
    }),
    ("max/min", "connections of the busiest worker over those of the least busy", |cell| {
        balance(cell, |balance| balance.max_over_min)
    }),
    ("Jain", "Jain's index of fairness; 1 is even", |cell| balance(cell, |balance| balance.jain)),
    ("CPU/conn", "CPU of the primary or proxy for each connection", |cell| {
        let few = Measure::cost(cell.workload) != Measure::PrimaryCpu;
        if few { None } else { spread(cell, Measure::PrimaryCpu) }
    }),
    ("CPU/req", "CPU of the primary or proxy for each request", |cell| {
        let stay = Measure::cost(cell.workload) == Measure::RequestCpu;
        if stay { spread(cell, Measure::RequestCpu) } else { None }
    }),
    ("workers' CPU/conn", "CPU of all workers for each connection", |cell| {
        Some(units::nanos(cell.spread(Measure::WorkersCpu)?.median))
    }),
    ("RSS", "memory of the primary or proxy at the end of the load", |cell| {
        Some(units::bytes(cell.spread(Measure::PrimaryMemory)?.median))
    }),
    ("moved", "client addresses that more than one worker answered", |cell| {
        spread(cell, Measure::Moved)
    }),
    ("failed", "refused, reset, timed out, short or wrong answers, all rounds together", |cell| {
        Some(lost(cell).unwrap_or_else(|| "0".into()))
    }),
];

impl Table {
    /// With the first column and those of these heads only.
    pub(crate) fn only(mut self, heads: &[&str]) -> Self {
        let keep: Vec<bool> = (0..)
            .zip(&self.columns)
            .map(|(at, (head, _))| at == 0 || heads.contains(&head.as_str()))
            .collect();
        let mut kept = keep.iter();
        self.columns.retain(|_| kept.next() == Some(&true));
        for row in &mut self.rows {
            if let Content::Figures(figures) = &mut row.content {
                let mut kept = keep.iter();
                figures.retain(|_| kept.next() == Some(&true));
            }
        }
        self
    }

    /// The table of one workload.
    pub(crate) fn of_workload(view: &View<'_>, workload: &WorkloadInfo) -> Self {
        let cells = view.of_workload(&workload.id).iter().filter(|cell| cell.unplanned.is_none());
        let mut all: Vec<Vec<Option<String>>> = Vec::new();
        let mut heads: Vec<(String, &'static str)> = Vec::new();
        let lead = cells.clone().find_map(lead).unwrap_or(Measure::ConnectionRate);
        heads.push((
            format!("{} ×", lead.name()),
            "ratio to the baseline within each round: median, smallest and largest",
        ));
        heads.extend(COLUMNS.iter().map(|(head, about, _)| ((*head).to_owned(), *about)));
        for cell in cells.clone() {
            let mut row = vec![relative(view, cell, lead)];
            row.extend(COLUMNS.iter().map(
                |(_, _, show)| {
                    if cell.rounds.is_empty() { None } else { show(cell) }
                },
            ));
            all.push(row);
        }
        let used: Vec<bool> = (0..heads.len())
            .map(|at| all.iter().any(|row| row.get(at).is_some_and(Option::is_some)))
            .collect();
        let keep = |at: usize| used.get(at).copied().unwrap_or(false);
        let rows = cells.zip(all).map(|(cell, row)| Row {
            name: cell.engine.name.clone(),
            content: if cell.rounds.is_empty() {
                Content::Absent(if cell.absent.is_empty() {
                    "no sample: the run ended before".into()
                } else {
                    cell.absent.join("; ")
                })
            } else {
                let shown = row.into_iter().enumerate().filter(|(at, _)| keep(*at));
                Content::Figures(
                    shown.map(|(_, text)| text.unwrap_or_else(|| NONE.into())).collect(),
                )
            },
        });
        let rows = rows.collect();
        let columns = heads.into_iter().enumerate().filter(|(at, _)| keep(*at));
        Self { columns: columns.map(|(_, head)| head).collect(), rows }
    }
}

fn relative(view: &View<'_>, cell: &Cell<'_>, lead: Measure) -> Option<String> {
    let baseline = view.cell(view.baseline(cell.engine.worker), &cell.workload.id)?;
    if baseline.engine.id == cell.engine.id && !cell.rounds.is_empty() {
        return Some("baseline".into());
    }
    let ratio = compare(cell, baseline, lead)?.ratio;
    let [low, mid, high] = [ratio.min, ratio.median, ratio.max].map(units::plain);
    Some(if ratio.n < 2 { format!("{mid} ×") } else { format!("{mid} × ({low} to {high})") })
}

fn spread(cell: &Cell<'_>, measure: Measure) -> Option<String> {
    cell.spread(measure).map(|spread| range(&spread, measure))
}

/// `22.3 k/s (21.9 k/s to 22.6 k/s)`; of one round only the figure.
fn range(spread: &Spread, measure: Measure) -> String {
    let [low, mid, high] = [spread.min, spread.median, spread.max].map(|v| measure.show(v));
    if low == high { mid } else { format!("{mid} ({low} to {high})") }
}

fn total(cell: &Cell<'_>, of: impl Fn(&Tally) -> f64) -> Option<String> {
    Some(units::nanos(of(&cell.pooled.as_ref()?.total)))
}

fn wrk(cell: &Cell<'_>, percentile: f64) -> Option<String> {
    let values: Vec<f64> = cell
        .rounds
        .iter()
        .filter_map(|round| {
            let run = round.sample.wrk.as_ref()?;
            let (_, ns) = run.percentiles.iter().find(|(at, _)| (at - percentile).abs() < 1e-9)?;
            Some(super::view::as_f64(*ns))
        })
        .collect();
    median(&values).map(units::nanos)
}

fn balance(cell: &Cell<'_>, of: impl Fn(&Balance) -> f64) -> Option<String> {
    let values: Vec<f64> = cell
        .rounds
        .iter()
        .map(super::view::Round::counts)
        .filter(|counts| counts.len() > 1)
        .filter_map(|counts| Some(of(&Balance::of(&counts)?)))
        .collect();
    if !values.is_empty() && values.iter().all(|value| value.is_infinite()) {
        return Some("∞".into());
    }
    median(&values).map(units::plain)
}
