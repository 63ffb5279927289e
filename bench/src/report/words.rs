//! The summary in words: where croupier wins, where it loses, and what it costs.
//!
//! Owns: when rounds are enough to say that one engine is ahead. Promises: every sentence is computed
//! from the samples, wins and losses by the same rule, and says which warnings spoil it. Never does:
//! leave out a comparison because it is unwelcome.

use super::units;
use super::view::{Better, Cell, Measure, View, as_f64, compare};
use crate::data::{EngineKind, Figure, Warning, WorkerKind, WorkloadInfo};

/// How one engine stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Ahead,
    Behind,
    /// The rounds do not tell them apart.
    Even,
}

/// One engine beside another in one figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    pub(crate) standing: Standing,
    /// How many times better, above 1 when ahead; infinite against one that answered nothing.
    pub(crate) advantage: f64,
    /// The rival, its figure and the ratio.
    pub(crate) words: String,
}

/// All findings of one workload and figure that have the same standing, as a sentence.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sentence {
    pub(crate) workload: String,
    pub(crate) standing: Standing,
    pub(crate) advantage: f64,
    pub(crate) text: String,
    pub(crate) measure: Measure,
    /// About the figure that the workload is most about.
    pub(crate) leading: bool,
    /// Names of the warnings that spoil it.
    pub(crate) spoiled: Vec<&'static str>,
}

/// What a run says.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) ahead: Vec<Sentence>,
    pub(crate) behind: Vec<Sentence>,
    pub(crate) even: Vec<Sentence>,
    /// Where another policy of croupier's is better than the default.
    pub(crate) policies: Vec<Sentence>,
    pub(crate) costs: Vec<String>,
    /// Beside the baseline only, in the figures that workloads are most about.
    beside_baseline: Vec<Sentence>,
}

/// What is ahead by less than this is not worth a word: 3 %.
const WORTH: f64 = 1.03;
/// Of fewer than three rounds, only what is ahead by 10 % is believed.
const WORTH_OF_FEW: f64 = 1.1;
/// CVs that differ by less than this are the same for all purposes.
const UNEVEN: f64 = 0.02;
/// Failures fewer than this are luck.
const FAILURES: u64 = 5;

/// Judges ratios of rounds, given so that above 1 is good: it takes all rounds on one side (of five
/// or more, all but one) and a median that is worth a word.
fn judge(advantages: &[f64]) -> (Standing, f64) {
    let Some(median) = crate::stats::median(advantages) else { return (Standing::Even, 1.0) };
    let n = advantages.len();
    let above = advantages.iter().filter(|one| **one > 1.0).count();
    let below = advantages.iter().filter(|one| **one < 1.0).count();
    let enough = if n >= 5 { n - 1 } else { n };
    let worth = if n < 3 { WORTH_OF_FEW } else { WORTH };
    if above >= enough && median >= worth {
        (Standing::Ahead, median)
    } else if below >= enough && median <= 1.0 / worth {
        (Standing::Behind, median)
    } else {
        (Standing::Even, median)
    }
}

/// How `first` stands to `second` in `measure`; `None` where it was not measured for both.
pub(crate) fn finding(first: &Cell<'_>, second: &Cell<'_>, measure: Measure) -> Option<Finding> {
    let rival = &second.engine.name;
    if first.rounds.is_empty() || second.rounds.is_empty() {
        return None;
    }
    match (first.all_failed(), second.all_failed()) {
        (true, true) => return None,
        (false, true) => {
            let words = format!("{rival} (answered nothing: {})", second.errors());
            return Some(Finding { standing: Standing::Ahead, advantage: f64::INFINITY, words });
        }
        (true, false) => {
            let words = format!("{rival} (which answered, while this one did not)");
            return Some(Finding { standing: Standing::Behind, advantage: 0.0, words });
        }
        (false, false) => {}
    }
    match measure {
        Measure::FailedShare => failures(first, second),
        Measure::Moved => moved(first, second),
        Measure::Unevenness => evenness(first, second),
        Measure::ConnectionRate
        | Measure::RequestRate
        | Measure::P99
        | Measure::CheapP99
        | Measure::Max
        | Measure::PrimaryCpu
        | Measure::RequestCpu
        | Measure::WorkersCpu
        | Measure::PrimaryMemory => ratio(first, second, measure),
    }
}

fn ratio(first: &Cell<'_>, second: &Cell<'_>, measure: Measure) -> Option<Finding> {
    let compared = compare(first, second, measure)?;
    let pairs = crate::stats::ratios(&first.values(measure), &second.values(measure));
    let advantages: Vec<f64> = pairs
        .iter()
        .map(|ratio| match measure.better() {
            Better::Higher => *ratio,
            Better::Lower => 1.0 / ratio.max(1e-9),
        })
        .collect();
    let (standing, advantage) = judge(&advantages);
    let words = format!(
        "{} ({}; {})",
        second.engine.name,
        measure.show(compared.second.median),
        short(&compared.ratio)
    );
    Some(Finding { standing, advantage, words })
}

/// `1.08 ×, 1.05 to 1.11`.
pub(crate) fn short(ratio: &crate::stats::Spread) -> String {
    let median = units::plain(ratio.median);
    if ratio.n == 1 {
        return format!("{median} ×, one round");
    }
    format!("{median} ×, {} to {}", units::plain(ratio.min), units::plain(ratio.max))
}

/// `1.08 ×, 1.05 to 1.11 over 5 rounds`.
pub(crate) fn times(ratio: &crate::stats::Spread) -> String {
    match ratio.n {
        1 => short(ratio),
        n => format!("{} over {n} rounds", short(ratio)),
    }
}

/// Failures are counted, not divided: most engines have none.
fn failures(first: &Cell<'_>, second: &Cell<'_>) -> Option<Finding> {
    let (a, b) = (first.errors().total(), second.errors().total());
    let (share_a, share_b) =
        (first.spread(Measure::FailedShare)?.mean, second.spread(Measure::FailedShare)?.mean);
    let standing = if a.max(b) < FAILURES || share_a.max(share_b) < 2.0 * share_a.min(share_b) {
        Standing::Even
    } else if share_a < share_b {
        Standing::Ahead
    } else {
        Standing::Behind
    };
    let words =
        format!("{} ({} failed, {})", second.engine.name, units::exact(b), units::percent(share_b));
    let advantage = (share_b + 1e-6) / (share_a + 1e-6);
    Some(Finding { standing, advantage, words })
}

/// Addresses that moved are counted, not divided: with a good policy none does.
fn moved(first: &Cell<'_>, second: &Cell<'_>) -> Option<Finding> {
    let (a, b) = (first.spread(Measure::Moved)?, second.spread(Measure::Moved)?);
    let standing = if a.max < b.min {
        Standing::Ahead
    } else if b.max < a.min {
        Standing::Behind
    } else {
        Standing::Even
    };
    let words = format!("{} ({} moved)", second.engine.name, units::plain(b.median));
    Some(Finding { standing, advantage: (b.median + 0.01) / (a.median + 0.01), words })
}

/// CVs are subtracted, not divided: the best is 0.
fn evenness(first: &Cell<'_>, second: &Cell<'_>) -> Option<Finding> {
    let (a, b) = (first.spread(Measure::Unevenness)?, second.spread(Measure::Unevenness)?);
    let standing = if a.max < b.min && a.median + UNEVEN <= b.median {
        Standing::Ahead
    } else if b.max < a.min && b.median + UNEVEN <= a.median {
        Standing::Behind
    } else {
        Standing::Even
    };
    let words = format!("{} (CV {})", second.engine.name, units::plain(b.median));
    let advantage = (b.median + UNEVEN) / (a.median + UNEVEN);
    Some(Finding { standing, advantage, words })
}

/// The figures of a workload that say who is ahead. CPU and memory are costs, and stand apart.
pub(crate) fn measures(workload: &WorkloadInfo) -> Vec<Measure> {
    let mut found = Vec::new();
    if workload.id == super::names::workload::STICKY {
        found.push(Measure::Moved);
    }
    for figure in &workload.figures {
        let measure = Measure::leading(*figure);
        let cost = matches!(figure, Figure::Cpu | Figure::Memory);
        if !cost && !found.contains(&measure) {
            found.push(measure);
        }
        if measure == Measure::P99 && !found.contains(&Measure::CheapP99) {
            found.push(Measure::CheapP99);
        }
    }
    found
}

/// The figure that a workload is most about, of those that this cell has.
pub(crate) fn lead(cell: &Cell<'_>) -> Option<Measure> {
    let all = measures(cell.workload);
    let had = all.iter().find(|measure| cell.spread(**measure).is_some());
    had.or_else(|| all.first()).copied()
}

impl Summary {
    pub(crate) fn of(view: &View<'_>) -> Self {
        let mut summary = Self::default();
        let workers = [WorkerKind::Rust, WorkerKind::Node, WorkerKind::Own];
        // A conclusion of three lines is about one worker program.
        let first = workers.into_iter().find(|worker| view.croupier(*worker).is_some());
        for worker in workers {
            for workload in &view.results.workloads {
                let Some(own) = view.subject(workload, worker) else { continue };
                let Some(cell) = view.cell(&own.id, &workload.id) else { continue };
                let rivals: Vec<&Cell<'_>> = view
                    .of_workload(&workload.id)
                    .iter()
                    .filter(|rival| rival.engine.worker == worker && rival.engine.id != own.id)
                    .collect();
                let lead = lead(cell);
                for measure in measures(workload) {
                    let leading = lead == Some(measure);
                    summary.add(cell, &rivals, (measure, leading));
                    let base = rivals.iter().copied();
                    let base = base.filter(|rival| rival.engine.id == view.baseline(worker));
                    for standing in [Standing::Ahead, Standing::Behind] {
                        let found = sentence(cell, base.clone(), (measure, leading), standing);
                        summary
                            .beside_baseline
                            .extend(found.filter(|_| leading && first == Some(worker)));
                    }
                }
            }
        }
        // Elsewhere sentences keep the order of the plan, which a reader knows; here the clearest counts.
        // What clients feel comes before to whom it was dealt.
        summary.beside_baseline.sort_by(|a, b| {
            let dealt =
                |one: &Sentence| [Measure::Unevenness, Measure::Moved].contains(&one.measure);
            let far = distance(b.advantage).total_cmp(&distance(a.advantage));
            dealt(a).cmp(&dealt(b)).then(far)
        });
        summary.costs = costs(view);
        summary
    }

    fn add(&mut self, own: &Cell<'_>, rivals: &[&Cell<'_>], measure: (Measure, bool)) {
        let others = |croupiers: bool| {
            rivals.iter().copied().filter(move |rival| match rival.engine.kind {
                EngineKind::Croupier => croupiers,
                EngineKind::Kernel
                | EngineKind::Single
                | EngineKind::Proxy
                | EngineKind::NodeCluster => !croupiers,
                // The floor is no choice that anybody has: it stands with the costs.
                EngineKind::Floor | EngineKind::Mock => false,
            })
        };
        for standing in [Standing::Ahead, Standing::Behind, Standing::Even] {
            if let Some(sentence) = sentence(own, others(false), measure, standing) {
                match standing {
                    Standing::Ahead => self.ahead.push(sentence),
                    Standing::Behind => self.behind.push(sentence),
                    Standing::Even => self.even.push(sentence),
                }
            }
        }
        self.policies.extend(sentence(own, others(true), measure, Standing::Behind));
    }

    /// Three lines for a README: where the default is furthest ahead of the baseline, where furthest
    /// behind, and what it costs.
    pub(crate) fn conclusion(&self) -> [String; 3] {
        let of = |standing: Standing| {
            self.beside_baseline.iter().filter(move |one| one.standing == standing).take(2)
        };
        let joined = |texts: Vec<String>| {
            if texts.is_empty() {
                "Nowhere that these rounds can tell.".to_owned()
            } else {
                texts.join(" ")
            }
        };
        let ahead = joined(of(Standing::Ahead).map(Sentence::whole).collect());
        let mut worst: Vec<&Sentence> = of(Standing::Behind).collect();
        if worst.is_empty() {
            // Losses in other figures, to others, or to another policy are losses all the same.
            worst.extend(self.behind.iter().take(1).chain(self.policies.iter().take(1)));
        }
        let behind = joined(worst.into_iter().map(Sentence::whole).collect());
        let cost = self.costs.first().map_or("Not measured in this run.", String::as_str);
        [
            format!("**Ahead.** {ahead}"),
            format!("**Behind.** {behind}"),
            format!("**Cost.** {cost}"),
        ]
    }
}

/// How far from equal, whichever way.
fn distance(advantage: f64) -> f64 {
    if advantage >= 1.0 { advantage } else { 1.0 / advantage.max(1e-9) }
}

impl Sentence {
    /// With what spoils it.
    pub(crate) fn whole(&self) -> String {
        if self.spoiled.is_empty() {
            return self.text.clone();
        }
        format!("{} (Spoiled by: {}.)", self.text, self.spoiled.join(", "))
    }
}

fn sentence<'a, 'b: 'a>(
    own: &Cell<'_>,
    rivals: impl Iterator<Item = &'a Cell<'b>>,
    (measure, leading): (Measure, bool),
    standing: Standing,
) -> Option<Sentence> {
    let found: Vec<(Finding, &Cell<'_>)> = rivals
        .filter_map(|rival| Some((finding(own, rival, measure)?, rival)))
        .filter(|(finding, _)| finding.standing == standing)
        .collect();
    if found.is_empty() {
        return None;
    }
    let mut spoiled: Vec<&'static str> = spoils(own);
    for (_, rival) in &found {
        for name in spoils(rival) {
            if !spoiled.contains(&name) {
                spoiled.push(name);
            }
        }
    }
    let names: Vec<&str> = found.iter().map(|(finding, _)| finding.words.as_str()).collect();
    let value = own.spread(measure).map_or_else(
        || "no answer".to_owned(),
        |spread| match measure {
            Measure::FailedShare => format!(
                "{} failed, {}",
                units::exact(own.errors().total()),
                units::percent(spread.mean)
            ),
            Measure::Unevenness => format!("CV {}", units::plain(spread.median)),
            Measure::ConnectionRate
            | Measure::RequestRate
            | Measure::P99
            | Measure::CheapP99
            | Measure::Max
            | Measure::Moved
            | Measure::PrimaryCpu
            | Measure::RequestCpu
            | Measure::WorkersCpu
            | Measure::PrimaryMemory => measure.show(spread.median),
        },
    );
    let stands = match standing {
        Standing::Ahead => "is ahead of",
        Standing::Behind => "is behind",
        Standing::Even => "cannot be told from",
    };
    let text = format!(
        "{}, {}: {} ({value}) {stands} {}.",
        own.workload.name,
        measure.name(),
        own.engine.name,
        names.join("; ")
    );
    let advantage = found.first().map_or(1.0, |(finding, _)| finding.advantage);
    Some(Sentence {
        workload: own.workload.id.clone(),
        standing,
        advantage,
        text,
        measure,
        leading,
        spoiled,
    })
}

/// One row of the overview: a workload, and how the default stands in the figure that it is most about.
#[derive(Debug)]
pub(crate) struct Standings<'a> {
    pub(crate) workload: &'a WorkloadInfo,
    pub(crate) measure: Measure,
    /// croupier, with the policy that the workload is about, and its figure.
    pub(crate) engine: &'a str,
    pub(crate) own: String,
    /// For each rival of the overview.
    pub(crate) rivals: Vec<Option<Finding>>,
}

/// The default beside every engine that is no croupier, workload by workload: their names, and a row
/// for each workload. `None` where croupier has no cell with this worker.
pub(crate) fn overview<'a>(
    view: &View<'a>,
    worker: WorkerKind,
) -> Option<(Vec<&'a str>, Vec<Standings<'a>>)> {
    view.croupier(worker)?;
    let rivals: Vec<_> = view
        .results
        .engines
        .iter()
        .filter(|engine| engine.worker == worker && engine.kind != EngineKind::Croupier)
        .collect();
    let mut rows = Vec::new();
    for workload in &view.results.workloads {
        let own = view.subject(workload, worker)?;
        let Some(cell) = view.cell(&own.id, &workload.id) else { continue };
        let Some(measure) = lead(cell).filter(|_| !cell.rounds.is_empty()) else { continue };
        let beside = rivals.iter().map(|rival| {
            view.cell(&rival.id, &workload.id).and_then(|rival| finding(cell, rival, measure))
        });
        let value = cell.spread(measure);
        rows.push(Standings {
            workload,
            measure,
            engine: &own.name,
            own: value.map_or_else(|| "no answer".into(), |s| measure.show(s.median)),
            rivals: beside.collect(),
        });
    }
    (!rows.is_empty()).then(|| (rivals.iter().map(|rival| rival.name.as_str()).collect(), rows))
}

/// Names of the warnings that make a comparison of this cell doubtful. Those that hold for the whole
/// machine, and so for everybody, stand once at the head of the report.
pub(crate) fn spoils(cell: &Cell<'_>) -> Vec<&'static str> {
    let doubtful = |warning: &&&Warning| match warning {
        Warning::GeneratorBusy { .. }
        | Warning::ScheduleSlipped { .. }
        | Warning::FewSamples { .. }
        | Warning::Outliers { .. }
        | Warning::DebugBuild
        | Warning::Foreign { .. }
        | Warning::Overloaded { .. }
        | Warning::Miscounted { .. }
        | Warning::OutOfPorts { .. }
        | Warning::Lost { .. } => true,
        Warning::SharedCores { .. }
        | Warning::FewRounds { .. }
        | Warning::Governor { .. }
        | Warning::DirtyTree
        | Warning::VirtualMachine => false,
    };
    cell.warnings.iter().filter(doubtful).map(|warning| warning.name()).collect()
}

/// What dealing costs the machine, and beside whom.
fn costs(view: &View<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for worker in [WorkerKind::Rust, WorkerKind::Node, WorkerKind::Own] {
        let Some(own) = view.croupier(worker) else { continue };
        for workload in &view.results.workloads {
            if !workload.figures.contains(&Figure::Cpu) {
                continue;
            }
            let Some(cell) = view.cell(&own.id, &workload.id) else { continue };
            let measure = Measure::cost(workload);
            let each = if measure == Measure::RequestCpu { "request" } else { "connection" };
            let Some(cpu) = cell.spread(measure) else { continue };
            let mut beside = Vec::new();
            for rival in view.of_workload(&workload.id) {
                let other = rival.engine.id != own.id
                    && rival.engine.worker == worker
                    && rival.engine.kind != EngineKind::Croupier;
                if !other {
                    continue;
                }
                if let Some(compared) = compare(cell, rival, measure) {
                    beside.push(format!(
                        "{} × that of {} ({})",
                        units::plain(compared.ratio.median),
                        rival.engine.name,
                        units::nanos(compared.second.median)
                    ));
                }
            }
            let memory = cell
                .spread(Measure::PrimaryMemory)
                .map_or_else(String::new, |m| format!(", and {} of memory", units::bytes(m.max)));
            let beside =
                if beside.is_empty() { String::new() } else { format!(": {}", beside.join(", ")) };
            lines.push(format!(
                "{}: the primary of {} takes {} of CPU for each {each}{memory}{beside}. Workers that accept by \
                 themselves have no such process.",
                workload.name,
                own.name,
                units::nanos(cpu.median),
            ));
        }
    }
    lines
}

/// How much of the clients' side was lost, for a line of words.
pub(crate) fn lost(cell: &Cell<'_>) -> Option<String> {
    let errors = cell.errors();
    if errors.total() == 0 {
        return None;
    }
    let intended: u64 = cell
        .rounds
        .iter()
        .map(|round| {
            let seen = round.sample.requests.saturating_add(round.sample.errors.total());
            round.sample.intended.max(seen)
        })
        .fold(0, u64::saturating_add);
    let share = as_f64(errors.total()) / as_f64(intended.max(1));
    Some(format!("{errors} ({})", units::percent(share)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_all_rounds_or_all_but_one_of_five() {
        let standing = |values: &[f64]| judge(values).0;
        assert_eq!(standing(&[1.10, 1.08, 1.12, 1.09, 0.97]), Standing::Ahead);
        assert_eq!(standing(&[1.10, 1.08, 1.12, 0.95, 0.97]), Standing::Even);
        assert_eq!(standing(&[1.10, 1.08, 0.99]), Standing::Even);
        assert_eq!(standing(&[0.80, 0.85, 0.90]), Standing::Behind);
        assert_eq!(standing(&[1.01, 1.01, 1.02, 1.01, 1.02]), Standing::Even, "not worth a word");
        assert_eq!(standing(&[1.08]), Standing::Even, "one round must show more");
        assert_eq!(standing(&[1.5]), Standing::Ahead);
        assert_eq!(standing(&[]), Standing::Even);
    }

    /// The laws of the made-up engines say who must win what.
    #[test]
    fn wins_and_losses_are_those_of_the_data() {
        let results = super::super::synthetic::whole(1, 5);
        let summary = Summary::of(&View::new(&results));
        let said = |list: &[Sentence], workload: &str, words: &[&str]| {
            let mut of = list.iter().filter(|one| one.workload == workload);
            of.any(|one| words.iter().all(|word| one.text.contains(word)))
        };
        let rate = "connections/s: croupier least (";
        assert!(said(&summary.ahead, "short", &[rate, "is ahead of", "haproxy tcp leastconn ("]));
        assert!(said(&summary.behind, "short", &[rate, "is behind SO_REUSEPORT ("]));
        assert!(!said(&summary.ahead, "short", &[rate, "SO_REUSEPORT"]));
        assert!(said(&summary.ahead, "tail-70", &["p99 latency", "SO_REUSEPORT ("]));
        assert!(said(&summary.policies, "tail-70", &["p99 latency", "croupier shared ("]));
        assert!(said(&summary.ahead, "kill", &["failed", "one process ("]));
        // The subject of the sticky load is the policy that is made for it.
        assert!(said(&summary.behind, "sticky", &["moved", "croupier ip ("]));
        // haproxy's outlier is named with the sentence that it spoils.
        let spoiled = summary.ahead.iter().find(|one| one.workload == "short" && one.leading);
        assert!(spoiled.is_some_and(|one| one.spoiled.contains(&"outliers")), "{spoiled:?}");
        let [ahead, behind, cost] = summary.conclusion();
        let dealt = |one: &Sentence| [Measure::Unevenness, Measure::Moved].contains(&one.measure);
        let all = &summary.beside_baseline;
        assert!(all.iter().any(dealt), "{all:?}");
        assert!(all.iter().skip_while(|one| !dealt(one)).all(dealt), "latencies first: {all:?}");
        assert!(ahead.contains("SO_REUSEPORT") && behind.contains("is behind SO_REUSEPORT"));
        assert!(cost.contains("of CPU for each connection"), "{cost}");
    }

    #[test]
    fn one_that_answers_nothing_loses() {
        let mut results = super::super::synthetic::whole(1, 3);
        for sample in results.samples.iter_mut().filter(|sample| sample.engine == "least") {
            (sample.connections, sample.requests, sample.latency) = (0, 0, None);
            sample.errors.refused = 100;
        }
        let summary = Summary::of(&View::new(&results));
        let of_rust = |one: &&Sentence| one.text.contains("croupier least (");
        assert_eq!(summary.ahead.iter().filter(of_rust).count(), 0);
        assert!(summary.behind.iter().any(|one| one.text.contains("which answered")));
    }

    #[test]
    fn where_connections_stay_open_a_request_is_what_costs() {
        let mut results = super::super::synthetic::whole(1, 3);
        for workload in results.workloads.iter_mut().filter(|one| one.id == "keepalive") {
            workload.figures.push(Figure::Cpu);
        }
        // 64 connections and all the requests in them.
        for sample in results.samples.iter_mut().filter(|one| one.workload == "keepalive") {
            sample.connections = 64;
        }
        let costs = Summary::of(&View::new(&results)).costs;
        let keep = costs.iter().find(|one| one.starts_with("Keep-alive: ")).unwrap();
        assert!(keep.contains("of CPU for each request"), "{keep}");
        assert!(costs.iter().any(|one| one.contains("of CPU for each connection")), "{costs:?}");
        let view = View::new(&results);
        let workload = results.workloads.iter().find(|one| one.id == "keepalive").unwrap();
        let table = super::super::table::Table::of_workload(&view, workload);
        let heads: Vec<&str> = table.columns.iter().map(|(head, _)| head.as_str()).collect();
        assert!(heads.contains(&"CPU/req") && !heads.contains(&"CPU/conn"), "{heads:?}");
    }

    #[test]
    fn a_conclusion_does_not_hide_a_smaller_loss() {
        let mut results = super::super::synthetic::whole(1, 5);
        // Only what it wins from the baseline is left, and another policy is better still.
        results.workloads.retain(|workload| workload.id == "tail-70");
        let summary = Summary::of(&View::new(&results));
        assert!(summary.behind.iter().all(|one| !one.leading), "{:?}", summary.behind);
        let [_, behind, _] = summary.conclusion();
        assert!(behind.contains("croupier shared ("), "{behind}");
    }
}
