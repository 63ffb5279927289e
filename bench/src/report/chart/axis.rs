//! Where ticks stand and what they say.
//!
//! Promises: ticks are round numbers with a unit, few enough not to touch. Never does: draw.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;

use crate::report::units;

/// A place on an axis, in the axis's own coordinate, and its words.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) at: f64,
    pub(super) label: String,
}

/// An axis from one end to the other with its own ticks.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    range: Range<f64>,
    ticks: Vec<Tick>,
}

impl Scale {
    pub(super) const fn new(range: Range<f64>, ticks: Vec<Tick>) -> Self {
        Self { range, ticks }
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.iter().map(|tick| tick.at).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Scale {
    fn format_ext(&self, value: &f64) -> String {
        let near = self.ticks.iter().find(|tick| (tick.at - value).abs() < 1e-9);
        near.map_or_else(String::new, |tick| tick.label.clone())
    }
}

/// What an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds, shown as ns, µs, ms or s.
    Nanos,
    /// A plain count, shown with k and M.
    Count,
    /// So many in a second.
    PerSecond,
    /// Bytes.
    Bytes,
    /// A number without a unit.
    Plain,
    /// A share of 1, shown in percent.
    Share,
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Nanos => units::nanos(value),
            Self::Count => units::count(value),
            Self::PerSecond => format!("{}/s", units::count(value)),
            Self::Bytes => units::bytes(value),
            Self::Plain => units::plain(value),
            Self::Share => units::percent(value),
        }
    }
}

/// The step of 1, 2 or 5 times a power of ten that cuts `span` into at most `parts`.
fn step(span: f64, parts: u32) -> f64 {
    let raw = span / f64::from(parts.max(1));
    if !raw.is_finite() || raw <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= raw * 0.999_999);
    factor.unwrap_or(10.0) * power
}

/// From 0 to just above `max`: the end of the axis and its ticks.
pub(super) fn linear(max: f64, parts: u32, unit: Unit) -> (f64, Vec<Tick>) {
    let max = if max.is_finite() && max > 0.0 { max } else { 1.0 };
    // Bytes are read by powers of 1024, so that is where they are round.
    let base = if unit == Unit::Bytes { 1024f64.powf(max.log2().div_euclid(10.0)) } else { 1.0 };
    let step = step(max / base, parts) * base;
    let mut ticks = Vec::new();
    for number in 0..=parts {
        let at = f64::from(number) * step;
        ticks.push(Tick { at, label: unit.show(at) });
        if at >= max {
            break;
        }
    }
    (ticks.last().map_or(max, |tick| tick.at).max(max), ticks)
}

/// Powers of ten around `low ..= high`, in log10: both ends of the axis and its ticks.
pub(super) fn decades(low: f64, high: f64, unit: Unit) -> (f64, f64, Vec<Tick>) {
    let low = if low.is_finite() && low > 0.0 { low } else { 1.0 };
    let high = if high.is_finite() && high > low { high } else { low * 10.0 };
    let (first, last) = (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0));
    let mut ticks = Vec::new();
    let mut power = first;
    // A u64 has 20 digits, so this ends soon.
    while power <= last && ticks.len() < 24 {
        ticks.push(Tick { at: power, label: unit.show(10f64.powf(power)) });
        power += 1.0;
    }
    (first, last, ticks)
}

/// The HDR scale: a quantile's place is log10(1 / (1 - quantile)), so each nine takes the same room.
pub(super) fn quantile_place(quantile: f64) -> f64 {
    let rest = (1.0 - quantile.clamp(0.0, 1.0)).max(1e-9);
    -rest.log10()
}

/// 0 %, 50 %, 90 %, 99 %, … up to `end`, which is a place.
pub(super) fn quantile_ticks(end: f64) -> Vec<Tick> {
    let mut ticks = vec![
        Tick { at: 0.0, label: "min".into() },
        Tick { at: quantile_place(0.5), label: "p50".into() },
        Tick { at: 1.0, label: "p90".into() },
    ];
    for nines in 2..=9u8 {
        let at = f64::from(nines);
        if at > end {
            break;
        }
        let digits = "9".repeat(usize::from(nines) - 2);
        let label = if nines == 2 { "p99".into() } else { format!("p99.{digits}") };
        ticks.push(Tick { at, label });
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_takes_the_same_room() {
        let places = [0.0, 0.9, 0.99, 0.999, 0.9999].map(quantile_place);
        for (nines, place) in (0u8..).zip(places) {
            assert!((place - f64::from(nines)).abs() < 1e-9, "{nines}: {place}");
        }
        assert!((quantile_place(0.5) - 2f64.log10()).abs() < 1e-12);
        // The maximum has a place too, and nonsense does not leave the axis.
        assert!(quantile_place(1.0) <= 9.0 && quantile_place(7.0) <= 9.0);
        assert!(quantile_place(-3.0).abs() < 1e-12);
        let labels: Vec<_> = quantile_ticks(4.2).into_iter().map(|tick| tick.label).collect();
        assert_eq!(labels, ["min", "p50", "p90", "p99", "p99.9", "p99.99"]);
    }

    #[test]
    fn linear_ticks_are_round_and_cover_the_data() {
        let (end, ticks) = linear(23_400.0, 5, Unit::PerSecond);
        let labels: Vec<_> = ticks.iter().map(|tick| tick.label.as_str()).collect();
        assert_eq!(labels, ["0/s", "5 k/s", "10 k/s", "15 k/s", "20 k/s", "25 k/s"]);
        assert!((end - 25_000.0).abs() < 1e-9);
        let (_, ticks) = linear(78.2 * 1024.0 * 1024.0, 5, Unit::Bytes);
        let labels: Vec<_> = ticks.iter().map(|tick| tick.label.as_str()).collect();
        assert_eq!(labels, ["0 B", "20 MiB", "40 MiB", "60 MiB", "80 MiB"]);
        for max in [0.0, f64::NAN, -1.0, 1e-7, 3.0, 7e12] {
            let (end, ticks) = linear(max, 4, Unit::Count);
            assert!(end.is_finite() && end > 0.0, "{max}: {end}");
            assert!(
                (max.is_nan() || max <= end) && (2..=5).contains(&ticks.len()),
                "{max}: {ticks:?}"
            );
        }
    }

    #[test]
    fn decades_enclose_the_data() {
        let (low, high, ticks) = decades(1.8e5, 5.2e7, Unit::Nanos);
        assert!((low - 5.0).abs() < 1e-12 && (high - 8.0).abs() < 1e-12);
        let labels: Vec<_> = ticks.iter().map(|tick| tick.label.as_str()).collect();
        assert_eq!(labels, ["100 µs", "1 ms", "10 ms", "100 ms"]);
        // One value, none, and what is no number.
        for (a, b) in [(5.0, 5.0), (0.0, 0.0), (f64::NAN, f64::INFINITY)] {
            let (low, high, ticks) = decades(a, b, Unit::Nanos);
            assert!(high > low && ticks.len() >= 2, "{a} {b}");
        }
    }
}
