//! The goals that croupier set itself, line by line, beside what was measured.
//!
//! Owns: every goal of the design and which cells answer it. Promises: no line is left out: what a run
//! does not measure says so, and where it is measured instead; a verdict is by the median of ratios
//! made within rounds. Never does: round a miss into a hit.

use super::names::{engine, workload};
use super::units;
use super::view::{Cell, Measure, View, as_f64, compare};
use super::words::{spoils, times};

/// What came of a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// This run has no figure for it.
    NotMeasured,
    /// Another command measures it.
    Elsewhere,
}

impl Verdict {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotMeasured => "not in this run",
            Self::Elsewhere => "measured elsewhere",
        }
    }
}

/// One goal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) figure: &'static str,
    pub(crate) goal: &'static str,
    /// What was measured; or where it is measured, or what is missing.
    pub(crate) measured: String,
    pub(crate) verdict: Verdict,
}

/// A bound of a ratio.
#[derive(Debug, Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

/// What some cells say of a goal.
#[derive(Debug, Clone, Default)]
struct Evidence {
    words: Vec<String>,
    missed: bool,
}

impl Evidence {
    /// Adds one ratio of two engines.
    fn ratio(
        &mut self,
        view: &View<'_>,
        (first, second): (&str, &str),
        workload: &str,
        measure: Measure,
        bound: Bound,
    ) {
        let (Some(a), Some(b)) = (view.cell(first, workload), view.cell(second, workload)) else {
            return;
        };
        let Some(compared) = compare(a, b, measure) else { return };
        let held = bound.holds(compared.ratio.median);
        self.missed |= !held;
        self.words.push(format!(
            "{}: {} ({} to {} of {}){}",
            a.workload.name,
            times(&compared.ratio),
            measure.show(compared.first.median),
            measure.show(compared.second.median),
            b.engine.name,
            spoiled(&[a, b])
        ));
    }

    /// Adds one figure that is judged by itself.
    fn figure(&mut self, cell: &Cell<'_>, words: &str, held: bool) {
        self.missed |= !held;
        self.words.push(format!("{}: {words}{}", cell.workload.name, spoiled(&[cell])));
    }

    fn line(self, figure: &'static str, goal: &'static str) -> Line {
        let (verdict, measured) = match (self.words.is_empty(), self.missed) {
            (true, _) => (Verdict::NotMeasured, "no cell of this run answers it".to_owned()),
            (false, true) => (Verdict::Missed, self.words.join("; ")),
            (false, false) => (Verdict::Met, self.words.join("; ")),
        };
        Line { figure, goal, measured, verdict }
    }
}

fn spoiled(cells: &[&Cell<'_>]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in cells.iter().flat_map(|cell| spoils(cell)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() { String::new() } else { format!(" [{}]", names.join(", ")) }
}

fn elsewhere(figure: &'static str, goal: &'static str, place: &str) -> Line {
    Line { figure, goal, measured: place.into(), verdict: Verdict::Elsewhere }
}

/// Every line of the design's table of goals, in its order.
pub(crate) fn design(view: &View<'_>) -> Vec<Line> {
    vec![
        saturated(view),
        unsaturated(view),
        beside_node(view),
        rate(view),
        beside_proxies(view),
        heavy_tail(view),
        blocked(view),
        turn(view),
        many_workers(view),
        memory(view),
        elsewhere(
            "idle primary",
            "no wake-ups while nothing happens",
            "context switches over an idle window: the end-to-end test `idle`, `make soak`",
        ),
        kills(view),
        reloads(view),
    ]
}

/// What the design's table does not say but the benchmark was made to show.
pub(crate) fn beyond(view: &View<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut even = Evidence::default();
    for id in [workload::LONG_FEW, workload::LONG_MANY] {
        let (Some(own), Some(shared)) =
            (view.cell(engine::LEAST, id), view.cell(engine::SHARED, id))
        else {
            continue;
        };
        let cvs = (own.spread(Measure::Unevenness), shared.spread(Measure::Unevenness));
        let (Some(a), Some(b)) = cvs else { continue };
        let words = format!(
            "CV {} beside {} of {}",
            units::plain(a.median),
            units::plain(b.median),
            shared.engine.name
        );
        even.figure(own, &words, a.median <= 0.2 * b.median);
    }
    lines.push(even.line("long-lived connections, CV over workers beside `shared`", "≤ 0.2 ×"));
    let mut node = Evidence::default();
    let pair = (engine::NODE_CROUPIER, engine::NODE_RR);
    node.ratio(view, pair, workload::SHORT, Measure::ConnectionRate, Bound::AtLeast(1.5));
    lines.push(node.line("Node workers, connections/s beside Node's own rr", "≥ 1.5 ×"));
    lines
}

fn saturated(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    let pair = (engine::LEAST, engine::FLOOR);
    found.ratio(view, pair, workload::SHORT, Measure::PrimaryCpu, Bound::AtMost(0.6));
    found.line("primary CPU per connection, workers saturated", "≤ 0.6 × the plain loop")
}

fn unsaturated(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    let pair = (engine::LEAST, engine::FLOOR);
    found.ratio(view, pair, workload::SHORT_PACED, Measure::PrimaryCpu, Bound::AtMost(1.1));
    found.line("the same, workers not saturated", "≤ 1.1 × the plain loop")
}

fn beside_node(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    let pair = (engine::NODE_CROUPIER, engine::NODE_RR);
    found.ratio(view, pair, workload::SHORT, Measure::PrimaryCpu, Bound::AtMost(0.125));
    found.ratio(view, pair, workload::SHORT_PACED, Measure::PrimaryCpu, Bound::AtMost(0.25));
    found.line("the same beside Node's primary", "≤ 1/8 saturated, ≤ 1/4 unsaturated")
}

fn rate(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    let pair = (engine::LEAST, engine::PLAIN_REUSEPORT);
    for one in &view.results.workloads {
        let counted = one.id == workload::SHORT || one.family == workload::WORKERS;
        if !counted || one.workers < 2 {
            continue;
        }
        let bound = Bound::AtLeast(if one.workers <= 8 { 1.0 } else { 0.9 });
        found.ratio(view, pair, &one.id, Measure::ConnectionRate, bound);
    }
    found.line(
        "connections/s, trivial work, beside SO_REUSEPORT workers without a hand-off",
        "≥ 1.0 × with 2 to 8 workers, ≥ 0.9 × beyond",
    )
}

fn beside_proxies(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    for proxy in [engine::HAPROXY, engine::NGINX] {
        let pair = (engine::LEAST, proxy);
        found.ratio(view, pair, workload::SHORT, Measure::ConnectionRate, Bound::AtLeast(1.5));
        found.ratio(view, pair, workload::SHORT, Measure::PrimaryCpu, Bound::AtMost(0.15));
    }
    found.line(
        "beside haproxy (tcp, leastconn) and nginx stream in front of the same workers",
        "≥ 1.5 × their rate, ≤ 0.15 × their CPU",
    )
}

fn heavy_tail(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    for (rival, bound) in [
        ((engine::LEAST, engine::PLAIN_REUSEPORT), 0.6),
        ((engine::LEAST, engine::RR), 0.6),
        ((engine::LEAST_ONE, engine::SHARED), 1.15),
    ] {
        found.ratio(view, rival, workload::TAIL_70, Measure::P99, Bound::AtMost(bound));
    }
    if let Some(of_cheap) = cheap_tail(view) {
        found.words.push(of_cheap);
    }
    found.line(
        "heavy tail (1 % at 50 ms, blocking workers, load 0.7), p99",
        "≤ 0.6 × SO_REUSEPORT and rr; ≤ 1.15 × shared with `--max-active 1`",
    )
}

/// The same of the cheap requests alone. It is said, not judged: the goal was set for all of them.
fn cheap_tail(view: &View<'_>) -> Option<String> {
    let own = view.cell(engine::LEAST, workload::TAIL_70)?;
    let base = view.cell(engine::PLAIN_REUSEPORT, workload::TAIL_70)?;
    let compared = compare(own, base, Measure::CheapP99)?;
    Some(format!(
        "of the 99 % cheap requests alone {} ({} to {} of {})",
        times(&compared.ratio),
        units::nanos(compared.first.median),
        units::nanos(compared.second.median),
        base.engine.name
    ))
}

/// A client that waits longer than this while a worker is blocked was not helped: `--stall-after` and 50 ms.
pub(crate) const STALL_BOUND_NS: u64 = 150_000_000;

fn blocked(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    for id in [engine::LEAST, engine::PLAIN_REUSEPORT] {
        let Some(cell) = view.cell(id, workload::STALL) else { continue };
        let Some(pooled) = &cell.pooled else { continue };
        let waited = pooled.beyond(STALL_BOUND_NS).saturating_add(cell.errors().total());
        let stalls: usize = cell.rounds.iter().map(|round| round.sample.events.len()).sum();
        let words = format!(
            "{}: {} of {} clients waited longer than 150 ms over {stalls} blocked workers",
            cell.engine.name,
            units::exact(waited),
            units::exact(pooled.total.n)
        );
        // What the blocked worker has in hand (the request that blocks it) waits with it.
        let in_hand = u64::try_from(stalls).unwrap_or(u64::MAX);
        found.figure(cell, &words, id != engine::LEAST || waited <= in_hand);
    }
    found.line(
        "one worker of four blocked",
        "no unclaimed connection waits longer than stall-after + 50 ms while another worker is idle: only the client in hand",
    )
}

fn turn(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    if let Some(cell) = view.cell(engine::RR, workload::SHORT_PACED) {
        let worst = cell
            .rounds
            .iter()
            .map(super::view::Round::counts)
            .filter_map(|counts| Some(counts.iter().max()? - counts.iter().min()?))
            .max();
        if let Some(worst) = worst {
            let words = format!("largest − smallest is {worst} in the worst round");
            found.figure(cell, &words, worst <= 1);
        }
    }
    found.line("spread, `rr`, idle workers", "largest − smallest ≤ 1")
}

fn many_workers(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    for one in &view.results.workloads {
        if one.family == workload::WORKERS && one.workers == 256 {
            let pair = (engine::LEAST, engine::FLOOR);
            found.ratio(view, pair, &one.id, Measure::PrimaryCpu, Bound::AtMost(1.25));
        }
    }
    found.line("cost at 256 workers, relative to the plain loop at 256", "≤ 1.25 ×")
}

fn memory(view: &View<'_>) -> Line {
    let mut found = Evidence::default();
    let largest = view
        .all()
        .filter(|cell| cell.engine.id == engine::LEAST)
        .filter_map(|cell| Some((cell.spread(Measure::PrimaryMemory)?.max, cell)))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((bytes, cell)) = largest {
        let words = format!("{}, the largest of all cells", units::bytes(bytes));
        found.figure(cell, &words, bytes <= as_f64(8_000_000));
    }
    found.line("primary memory", "≤ 8 MB RSS")
}

/// The bench shows a kill's cost to clients; that nothing queued is lost takes books that only the tests keep.
fn kills(view: &View<'_>) -> Line {
    let place = "the end-to-end test `kill`, `make soak`";
    let mut line = elsewhere("queued connections lost over 1,000 SIGKILLs", "0", place);
    if let Some(cell) = view.cell(engine::LEAST, workload::KILL).filter(|c| !c.rounds.is_empty()) {
        line.measured = format!(
            "{place}; here, with what was in a dying worker's hands: {} failed",
            cell.errors()
        );
    }
    line
}

fn reloads(view: &View<'_>) -> Line {
    let place = "200 reloads: the end-to-end test `reload`, `make soak`";
    let goal = "0";
    let figure = "failed requests over 200 reloads under load";
    let Some(cell) = view.cell(engine::LEAST, workload::RELOAD).filter(|c| !c.rounds.is_empty())
    else {
        return elsewhere(figure, goal, place);
    };
    let errors = cell.errors();
    let verdict = if errors.total() == 0 { Verdict::Elsewhere } else { Verdict::Missed };
    Line { figure, goal, measured: format!("{place}; in this run: {errors} failed"), verdict }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &[Line], figure: &str) -> Verdict {
        let mut found = lines.iter().filter(|line| line.figure.contains(figure));
        found.next().unwrap_or_else(|| panic!("no line about {figure}")).verdict
    }

    #[test]
    fn verdicts_are_those_of_the_data() {
        let mut results = super::super::synthetic::whole(1, 5);
        let lines = design(&View::new(&results));
        assert_eq!(lines.len(), 13, "every line of the design's table");
        // 5 µs beside 12; 20 k/s beside 21.5; 20 k/s beside 12 and 5 µs beside 70.
        assert_eq!(verdict(&lines, "workers saturated"), Verdict::Met);
        assert_eq!(verdict(&lines, "beside SO_REUSEPORT workers"), Verdict::Missed);
        assert_eq!(verdict(&lines, "beside haproxy"), Verdict::Met);
        assert_eq!(verdict(&lines, "primary memory"), Verdict::Met);
        assert_eq!(verdict(&lines, "idle primary"), Verdict::Elsewhere);
        assert_eq!(verdict(&lines, "over 200 reloads"), Verdict::Elsewhere);

        // One failure in a reload, one MB too much, one connection too many.
        for sample in results.samples.iter_mut().filter(|sample| sample.engine != "floor") {
            match sample.workload.as_str() {
                "reload" => sample.errors.reset += 1,
                "cpu" => sample.memory.as_mut().unwrap().primary_bytes = Some(9_000_000),
                "short-paced" => sample.per_worker[0].connections += 2,
                _ => {}
            }
        }
        let lines = design(&View::new(&results));
        assert_eq!(verdict(&lines, "over 200 reloads"), Verdict::Missed);
        assert_eq!(verdict(&lines, "primary memory"), Verdict::Missed);
        assert_eq!(verdict(&lines, "spread, `rr`"), Verdict::Missed);
    }

    #[test]
    fn what_was_not_run_is_not_met() {
        let results = super::super::synthetic::empty(5);
        let view = View::new(&results);
        let lines: Vec<Line> = design(&view).into_iter().chain(beyond(&view)).collect();
        for line in lines {
            let open = matches!(line.verdict, Verdict::NotMeasured | Verdict::Elsewhere);
            assert!(open && !line.measured.is_empty(), "{line:?}");
        }
    }
}
