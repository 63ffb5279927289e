//! Latencies as they are recorded.
//!
//! Owns: the histograms and the course. Promises: three significant digits from 1 µs to 2 minutes;
//! what is longer counts as 2 minutes. Never does: read a clock.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::data::{self, HistogramError, Latencies, TimelinePoint};

const LOWEST_NS: u64 = 1_000;
const LARGEST_NS: u64 = 120_000_000_000;
const DIGITS: u8 = 3;

/// When things happened to one request, since the load began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub(super) intended: Duration,
    /// When the client really began; for a client that waits for its last answer before it asks again.
    pub(super) started: Duration,
    pub(super) first_byte: Duration,
    pub(super) done: Duration,
}

/// Histograms of latencies.
#[derive(Debug, Clone)]
pub struct Recorder {
    total: Histogram<u64>,
    naive: Histogram<u64>,
    connect: Histogram<u64>,
    first_byte: Histogram<u64>,
    /// Total latencies of the first kind of request alone, where there are more.
    first_kind: Option<Histogram<u64>>,
    course: Option<Course>,
}

#[derive(Debug, Clone)]
struct Course {
    step: Duration,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Default)]
struct Step {
    intended: u64,
    errors: u64,
    latencies: Vec<u64>,
}

fn empty() -> Histogram<u64> {
    // These bounds are right for any build, so the other arm is never taken.
    Histogram::new_with_bounds(LOWEST_NS, LARGEST_NS, DIGITS)
        .unwrap_or_else(|_| unreachable!("{LOWEST_NS} to {LARGEST_NS} is a range"))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn add(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(nanoseconds(time).clamp(LOWEST_NS, LARGEST_NS));
}

impl Recorder {
    pub(super) fn new(timeline: Option<Duration>, several_kinds: bool) -> Self {
        Self {
            total: empty(),
            naive: empty(),
            connect: empty(),
            first_byte: empty(),
            first_kind: several_kinds.then(empty),
            course: timeline.map(|step| Course { step, steps: Vec::new() }),
        }
    }

    pub(super) fn intend(&mut self, at: Duration) {
        if let Some(step) = self.step(at) {
            step.intended += 1;
        }
    }

    pub(super) fn fail(&mut self, intended: Duration) {
        if let Some(step) = self.step(intended) {
            step.errors += 1;
        }
    }

    pub(super) fn connect(&mut self, time: Duration) {
        add(&mut self.connect, time);
    }

    pub(super) fn first_byte(&mut self, time: Duration) {
        add(&mut self.first_byte, time);
    }

    pub(super) fn complete(&mut self, timing: Timing, kind: usize) {
        let total = timing.done.saturating_sub(timing.intended);
        add(&mut self.total, total);
        add(&mut self.naive, timing.done.saturating_sub(timing.started));
        add(&mut self.first_byte, timing.first_byte.saturating_sub(timing.intended));
        if kind == 0
            && let Some(first) = &mut self.first_kind
        {
            add(first, total);
        }
        if let Some(step) = self.step(timing.intended) {
            step.latencies.push(nanoseconds(total));
        }
    }

    /// A message in a connection that is open: it has no first byte of its own.
    pub(super) fn complete_message(&mut self, timing: Timing) {
        let total = timing.done.saturating_sub(timing.intended);
        add(&mut self.total, total);
        add(&mut self.naive, timing.done.saturating_sub(timing.started));
        if let Some(step) = self.step(timing.intended) {
            step.latencies.push(nanoseconds(total));
        }
    }

    fn step(&mut self, at: Duration) -> Option<&mut Step> {
        let course = self.course.as_mut()?;
        let number = usize::try_from(at.as_nanos() / course.step.as_nanos()).ok()?;
        if number >= course.steps.len() {
            course.steps.resize(number + 1, Step::default());
        }
        course.steps.get_mut(number)
    }

    /// For `results.json`.
    ///
    /// # Errors
    /// See [`data::Histogram::encode`].
    pub fn latencies(&self) -> Result<Latencies, HistogramError> {
        Ok(Latencies {
            total: data::Histogram::encode(&self.total)?,
            naive: data::Histogram::encode(&self.naive)?,
            connect: data::Histogram::encode(&self.connect)?,
            first_byte: data::Histogram::encode(&self.first_byte)?,
            first_kind: self.first_kind.as_ref().map(data::Histogram::encode).transpose()?,
        })
    }

    /// Intended start to completion.
    #[must_use]
    pub const fn total(&self) -> &Histogram<u64> {
        &self.total
    }

    /// Actual start to completion.
    #[must_use]
    pub const fn naive(&self) -> &Histogram<u64> {
        &self.naive
    }

    pub(super) fn timeline(&self) -> Vec<TimelinePoint> {
        let Some(course) = &self.course else { return Vec::new() };
        let step_ms = u64::try_from(course.step.as_millis()).unwrap_or(u64::MAX);
        (0_u64..).zip(&course.steps).map(|(n, step)| step.point(n * step_ms, step_ms)).collect()
    }
}

impl Step {
    fn point(&self, at_ms: u64, step_ms: u64) -> TimelinePoint {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        // The smallest value that at least so many of a hundred do not exceed.
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or(0)
        };
        TimelinePoint {
            at_ms,
            step_ms,
            intended: self.intended,
            completed: u64::try_from(sorted.len()).unwrap_or(u64::MAX),
            errors: self.errors,
            p50_ns: at(50),
            p99_ns: at(99),
            max_ns: at(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn what_waited_for_its_start_counts_from_the_intended_one() {
        let mut recorder = Recorder::new(Some(ms(100)), false);
        // A client that asks every 10 ms, of a server that answers in 1 ms but stops once for a
        // second: 100 starts wait, and a generator that forgets them sees one slow answer.
        for n in 0..100 {
            let intended = ms(10 * n);
            let started = if n == 0 { intended } else { ms(1000) };
            let done = ms(1001);
            recorder.intend(intended);
            recorder.complete(Timing { intended, started, first_byte: done, done }, 0);
        }
        let near = |value: u64, wanted: u64| value.abs_diff(wanted) <= wanted / 500;
        assert!(near(recorder.naive().value_at_percentile(90.0), 1_000_000));
        assert!(near(recorder.total().value_at_percentile(50.0), 501_000_000));
        assert!(near(recorder.total().value_at_percentile(90.0), 901_000_000));
        let course = recorder.timeline();
        assert_eq!(course.len(), 10);
        assert_eq!((course[0].intended, course[0].completed), (10, 10));
        assert_eq!(course[0].max_ns, 1_001_000_000);
        assert_eq!(course[9].p50_ns, 51_000_000);
    }

    #[test]
    fn three_digits_are_kept() {
        let mut recorder = Recorder::new(None, true);
        for n in 1..=10_000_u64 {
            let done = Duration::from_micros(n);
            let timing = Timing {
                intended: Duration::ZERO,
                started: Duration::ZERO,
                first_byte: done,
                done,
            };
            recorder.complete(timing, usize::from(n > 5000));
        }
        for (percentile, wanted) in [(50.0, 5_000_000), (90.0, 9_000_000), (99.9, 9_990_000_u64)] {
            let value = recorder.total().value_at_percentile(percentile);
            assert!(value.abs_diff(wanted) <= wanted / 1000, "p{percentile}: {value}");
        }
        let latencies = recorder.latencies().unwrap();
        assert_eq!(latencies.total.n, 10_000);
        assert_eq!(latencies.first_kind.unwrap().n, 5_000);
    }
}
