//! One figure for each engine: the median as a mark, smallest to largest round as a line.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::axis::{Unit, linear};
use super::{Area, ChartError, FAINT, Figure, GRID, INK, Look, Width, fitted, mark, write};

/// One engine's figure.
#[derive(Debug, Clone)]
pub(crate) struct Dot {
    pub(crate) name: String,
    pub(crate) look: Look,
    /// Smallest, median, largest; None where nothing was measured.
    pub(crate) spread: Option<(f64, f64, f64)>,
}

const BOTTOM: i32 = 40;

const fn row(width: Width) -> i32 {
    match width {
        Width::Wide => 26,
        Width::Narrow => 42,
    }
}

/// Draws one row for each engine. `what` stands under the axis.
pub(crate) fn dots(label: &str, what: &str, unit: Unit, all: &[Dot]) -> Result<Figure, ChartError> {
    let rows = u32::try_from(all.len()).unwrap_or(u32::MAX);
    Figure::draw(
        label,
        |width| rows.saturating_mul(row(width).unsigned_abs()) + BOTTOM.unsigned_abs() + 8,
        |area, width| paint(area, width, what, unit, all),
    )
}

fn paint(
    area: &Area<'_>,
    width: Width,
    what: &str,
    unit: Unit,
    all: &[Dot],
) -> Result<(), ChartError> {
    let pixels = i32::try_from(width.pixels()).unwrap_or(i32::MAX);
    // Names left of the rows where there is room, else above them; values at the right.
    let (left, right) = if width == Width::Wide { (240, 128) } else { (14, 30) };
    let max = all.iter().filter_map(|dot| dot.spread).map(|(_, _, high)| high).fold(0.0, f64::max);
    let (end, ticks) = linear(max, if width == Width::Wide { 6 } else { 4 }, unit);
    let height = row(width) * i32::try_from(all.len()).unwrap_or(i32::MAX) + 8;
    let place = |value: f64| -> i32 {
        let x = RangedCoordf64::from(0.0..end);
        x.map(&value.clamp(0.0, end), (left, pixels - right))
    };
    for tick in &ticks {
        let x = place(tick.at);
        area.draw(&PathElement::new(vec![(x, 4), (x, height)], GRID.stroke_width(1)))?;
        write(area, &tick.label, (x, height + 5), 11, FAINT, (HPos::Center, VPos::Top))?;
    }
    let middle = (left + pixels - right) / 2;
    write(area, what, (middle, height + 22), 12, INK, (HPos::Center, VPos::Top))?;
    let mut top = 4;
    for dot in all {
        let y = if width == Width::Wide { top + row(width) / 2 } else { top + row(width) - 12 };
        let value = dot.spread.map_or_else(|| "not measured".into(), |(_, mid, _)| unit.show(mid));
        if width == Width::Wide {
            let name = fitted(&dot.name, 12, left - 24);
            write(area, &name, (left - 14, y), 12, INK, (HPos::Right, VPos::Center))?;
            write(area, &value, (pixels - 4, y), 12, INK, (HPos::Right, VPos::Center))?;
        } else {
            let name = fitted(&dot.name, 12, pixels - 120);
            write(area, &name, (4, top + 11), 12, INK, (HPos::Left, VPos::Center))?;
            write(area, &value, (pixels - 4, top + 11), 12, INK, (HPos::Right, VPos::Center))?;
        }
        if let Some((low, mid, high)) = dot.spread {
            let line = dot.look.colour().stroke_width(3);
            area.draw(&PathElement::new(vec![(place(low), y), (place(high), y)], line))?;
            for end in [place(low), place(high)] {
                let cap = dot.look.colour().stroke_width(2);
                area.draw(&PathElement::new(vec![(end, y - 4), (end, y + 4)], cap))?;
            }
            mark(area, dot.look, (place(mid), y), 4)?;
        }
        top += row(width);
    }
    Ok(())
}
