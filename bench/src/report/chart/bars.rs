//! How evenly each engine dealt: one bar for each worker, in proportion to an even share.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::{Area, ChartError, FAINT, Figure, GRID, INK, Look, Width, fitted, write};

/// What the workers of one engine got.
#[derive(Debug, Clone)]
pub(crate) struct Hand {
    pub(crate) name: String,
    pub(crate) look: Look,
    /// Connections of each worker.
    pub(crate) counts: Vec<u64>,
    /// Stands beside the bars.
    pub(crate) words: String,
}

const BODY: i32 = 46;
const BOTTOM: i32 = 34;

const fn row(width: Width) -> i32 {
    match width {
        Width::Wide => BODY + 14,
        Width::Narrow => BODY + 44,
    }
}

/// Draws one row of bars for each engine, all to one scale; the line is an even share.
pub(crate) fn bars(label: &str, hands: &[Hand]) -> Result<Figure, ChartError> {
    let rows = u32::try_from(hands.len()).unwrap_or(u32::MAX);
    Figure::draw(
        label,
        |width| rows.saturating_mul(row(width).unsigned_abs()) + BOTTOM.unsigned_abs(),
        |area, width| paint(area, width, hands),
    )
}

/// Each count as a share of an even one, largest first. Nothing counted: nothing.
fn shares(counts: &[u64]) -> Vec<f64> {
    let total: u64 = counts.iter().fold(0, |sum, count| sum.saturating_add(*count));
    if total == 0 {
        return vec![0.0; counts.len()];
    }
    let mut sorted = counts.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let workers = u32::try_from(counts.len()).map_or(f64::NAN, f64::from);
    sorted.iter().map(|count| as_f64(*count) * workers / as_f64(total)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a picture needs no 53 bits")]
const fn as_f64(value: u64) -> f64 {
    value as f64
}

fn paint(area: &Area<'_>, width: Width, hands: &[Hand]) -> Result<(), ChartError> {
    let pixels = i32::try_from(width.pixels()).unwrap_or(i32::MAX);
    let (left, right) = if width == Width::Wide { (240, 216) } else { (14, 14) };
    let all: Vec<Vec<f64>> = hands.iter().map(|hand| shares(&hand.counts)).collect();
    let max = all.iter().flatten().copied().fold(1.5, f64::max);
    let scale = RangedCoordf64::from(0.0..max);
    let mut top = 4;
    for (hand, shares) in hands.iter().zip(&all) {
        let base = top + row(width) - 8;
        let height = |share: f64| base - scale.map(&share, (0, BODY));
        let even = PathElement::new(
            vec![(left, height(1.0)), (pixels - right, height(1.0))],
            FAINT.stroke_width(1),
        );
        let workers = i32::try_from(shares.len()).unwrap_or(i32::MAX).max(1);
        let room = pixels - right - left;
        let gap = i32::from(room / workers > 6) * 2;
        for (number, share) in (0..workers).zip(shares) {
            let x = left + room * number / workers;
            let end = left + room * (number + 1) / workers - gap;
            let bar = [(x, height(*share)), (end.max(x + 1), base)];
            area.draw(&Rectangle::new(bar, hand.look.colour().filled()))?;
        }
        area.draw(&PathElement::new(vec![(left, base), (pixels - right, base)], GRID))?;
        area.draw(&even)?;
        if width == Width::Wide {
            let y = base - BODY / 2;
            let name = fitted(&hand.name, 12, left - 24);
            write(area, &name, (left - 14, y), 12, INK, (HPos::Right, VPos::Center))?;
            let words = fitted(&hand.words, 12, right - 20);
            write(area, &words, (pixels - right + 14, y), 12, INK, (HPos::Left, VPos::Center))?;
        } else {
            let name = fitted(&hand.name, 12, pixels - 16);
            write(area, &name, (8, top + 9), 12, INK, (HPos::Left, VPos::Center))?;
            let words = fitted(&hand.words, 11, pixels - 16);
            write(area, &words, (8, top + 25), 11, FAINT, (HPos::Left, VPos::Center))?;
        }
        top += row(width);
    }
    let what = "workers, busiest first; the line is an even share";
    let middle = (left + pixels - right) / 2;
    write(area, what, (middle, top + 6), 12, INK, (HPos::Center, VPos::Top))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_an_even_one() {
        assert_eq!(shares(&[10, 30, 20]), [1.5, 1.0, 0.5]);
        assert_eq!(shares(&[0, 0]), [0.0, 0.0]);
        assert_eq!(shares(&[u64::MAX, 0]).first().copied(), Some(2.0));
        assert!(shares(&[]).is_empty());
    }
}
