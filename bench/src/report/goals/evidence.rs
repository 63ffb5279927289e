//! What some cells say of one goal, and the verdict that they make.
//!
//! Promises: a part that was not measured is named, and no verdict is "met" without it; a bound that
//! some rounds hold and the median misses is "even". Never does: choose cells.

use super::super::units;
use super::super::view::{Cell, Measure, View, compare};
use super::super::words::{short, spoils, times};
use crate::data::WorkloadInfo;
use crate::stats::Spread;

/// What came of a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    /// What was measured holds; another part of the goal was not measured.
    Partly,
    /// The median misses the bound, but not every round does: these rounds cannot tell.
    Even,
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
            Self::Partly => "met in part",
            Self::Even => "even",
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
pub(super) enum Bound {
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

impl Bound {
    fn held(self, ratio: &Spread) -> Held {
        let any = self.holds(ratio.min) || self.holds(ratio.max);
        match (self.holds(ratio.median), any) {
            (true, _) => Held::Yes,
            (false, true) => Held::Sometimes,
            (false, false) => Held::No,
        }
    }
}

/// What some cells say of a goal.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    words: Vec<String>,
    /// Parts of the goal without a figure.
    lacking: Vec<String>,
    /// What stands beside it and is not judged.
    asides: Vec<String>,
    worst: Held,
}

/// How a bound held, the worse the greater.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    #[default]
    Yes,
    /// In some rounds.
    Sometimes,
    No,
}

impl Evidence {
    /// Adds one ratio of two engines; false if this run does not have it.
    pub(super) fn ratio(
        &mut self,
        view: &View<'_>,
        pair: (&str, &str),
        workload: &str,
        measure: Measure,
        bound: Bound,
    ) -> bool {
        let Some((words, ratio)) = compared(view, pair, workload, measure) else { return false };
        self.worst = self.worst.max(bound.held(&ratio));
        self.words.push(words);
        true
    }

    /// One engine beside several under one workload, in few words; what did not run is not there.
    pub(super) fn ratios(
        &mut self,
        view: &View<'_>,
        first: &str,
        rivals: &[&str],
        workload: &WorkloadInfo,
        measure: Measure,
        bound: Bound,
    ) {
        let Some(own) = view.cell(first, &workload.id) else { return };
        let mut cells = vec![own];
        let mut words = Vec::new();
        for rival in rivals.iter().filter_map(|rival| view.cell(rival, &workload.id)) {
            let Some(compared) = compare(own, rival, measure) else { continue };
            let held = bound.held(&compared.ratio);
            self.worst = self.worst.max(held);
            let verdict = match held {
                Held::Yes => "",
                Held::Sometimes => " (even)",
                Held::No => " (missed)",
            };
            words.push(format!("{} of {}{verdict}", short(&compared.ratio), rival.engine.name));
            cells.push(rival);
        }
        if !words.is_empty() {
            let (name, words) = (&workload.name, words.join(", "));
            self.words.push(format!("{name}, {}: {words}{}", measure.name(), spoiled(&cells)));
        }
    }

    /// The same of a ratio without which the goal is met in part only.
    pub(super) fn part(
        &mut self,
        view: &View<'_>,
        pair: (&str, &str),
        workload: &str,
        measure: Measure,
        bound: Bound,
    ) {
        if !self.ratio(view, pair, workload, measure, bound) {
            let name = |id: &str| {
                let engine = view.results.engines.iter().find(|engine| engine.id == id);
                engine.map_or_else(|| id.to_owned(), |engine| engine.name.clone())
            };
            self.lacks(format!("{} beside {} under {workload}", measure.name(), name(pair.1)));
        }
    }

    /// Adds one figure that is judged by itself.
    pub(super) fn figure(&mut self, cell: &Cell<'_>, words: &str, held: bool) {
        self.worst = self.worst.max(if held { Held::Yes } else { Held::No });
        self.words.push(format!("{}: {words}{}", cell.workload.name, spoiled(&[cell])));
    }

    /// Names a part of the goal that was not measured.
    pub(super) fn lacks(&mut self, what: String) {
        self.lacking.push(what);
    }

    /// Says something that is not judged.
    pub(super) fn aside(&mut self, words: Option<String>) {
        self.asides.extend(words);
    }

    pub(super) fn line(self, figure: &'static str, goal: &'static str) -> Line {
        let Self { mut words, lacking, asides, worst } = self;
        if words.is_empty() {
            let measured = "no cell of this run answers it".to_owned();
            return Line { figure, goal, measured, verdict: Verdict::NotMeasured };
        }
        let verdict = match worst {
            Held::No => Verdict::Missed,
            Held::Sometimes => Verdict::Even,
            Held::Yes if lacking.is_empty() => Verdict::Met,
            Held::Yes => Verdict::Partly,
        };
        words.extend(lacking.into_iter().map(|what| format!("not in this run: {what}")));
        words.extend(asides);
        Line { figure, goal, measured: words.join("; "), verdict }
    }
}

/// One ratio in words, and itself.
pub(super) fn compared(
    view: &View<'_>,
    (first, second): (&str, &str),
    workload: &str,
    measure: Measure,
) -> Option<(String, Spread)> {
    let (a, b) = (view.cell(first, workload)?, view.cell(second, workload)?);
    let compared = compare(a, b, measure)?;
    let words = format!(
        "{}: {} ({} to {} of {}){}",
        a.workload.name,
        times(&compared.ratio),
        measure.show(compared.first.median),
        measure.show(compared.second.median),
        b.engine.name,
        spoiled(&[a, b])
    );
    Some((words, compared.ratio))
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

/// How many of all went to the two workers that got most, in the round in the middle.
pub(super) fn two_busiest(cell: &Cell<'_>) -> Option<String> {
    let shares: Vec<f64> = cell
        .rounds
        .iter()
        .filter_map(|round| {
            let mut counts = round.counts();
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let of = |counts: &[u64]| super::super::view::as_f64(counts.iter().sum());
            let all = of(&counts);
            (all > 0.0).then(|| of(counts.get(..2).unwrap_or(&counts)) / all)
        })
        .collect();
    let share = crate::stats::median(&shares)?;
    Some(format!(
        "{}: the two busiest of {} workers got {}",
        cell.engine.name,
        cell.workload.workers,
        units::percent(share)
    ))
}
