//! What happened when: one lane for each engine, all with the same axes.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::axis::{Scale, Tick, Unit, decades, linear};
use super::{Area, ChartError, FAINT, Figure, GRID, INK, Look, SHADE, Width, fitted, font, write};

/// One engine's course.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    pub(crate) name: String,
    pub(crate) look: Look,
    /// Seconds since the start of the measurement, and the value then. A value of 0: nothing.
    pub(crate) points: Vec<(f64, f64)>,
    /// Disturbances: when each began and ended, in seconds. Equal: a moment.
    pub(crate) events: Vec<(f64, f64)>,
}

const BOTTOM: u32 = 40;

const fn row(width: Width) -> u32 {
    match width {
        Width::Wide => 104,
        Width::Narrow => 112,
    }
}

/// Draws one lane for each engine on a logarithmic axis of values.
pub(crate) fn timeline(label: &str, unit: Unit, lanes: &[Lane]) -> Result<Figure, ChartError> {
    let rows = u32::try_from(lanes.len()).unwrap_or(u32::MAX);
    Figure::draw(
        label,
        |width| rows.saturating_mul(row(width)) + BOTTOM,
        |area, width| paint(area, width, unit, lanes),
    )
}

fn paint(area: &Area<'_>, width: Width, unit: Unit, lanes: &[Lane]) -> Result<(), ChartError> {
    let pixels = i32::try_from(width.pixels()).unwrap_or(i32::MAX);
    let points = || lanes.iter().flat_map(|lane| &lane.points);
    let low = points().map(|(_, value)| *value).filter(|v| *v > 0.0).fold(f64::NAN, f64::min);
    let high = points().map(|(_, value)| *value).fold(f64::NAN, f64::max);
    let (bottom, top, rows) = decades(low, high, unit);
    // Every second decade is named where there are many: lanes are low.
    let step = if rows.len() > 4 { 2 } else { 1 };
    let rows: Vec<Tick> = rows.into_iter().step_by(step).collect();
    let last = points().map(|(at, _)| *at).fold(0.0, f64::max);
    let (_, seconds) = linear(last, if width == Width::Wide { 10 } else { 5 }, Unit::Count);
    let end = if last > 0.0 { last } else { 1.0 };

    let mut rest = area.clone();
    let lane_height = i32::try_from(row(width)).unwrap_or(0);
    let mut y = 0;
    for lane in lanes {
        let (here, below) = rest.split_vertically(lane_height);
        rest = below;
        write(
            area,
            &fitted(&lane.name, 12, pixels - 16),
            (8, y + 9),
            12,
            INK,
            (HPos::Left, VPos::Center),
        )?;
        let mut chart = ChartBuilder::on(&here)
            .margin_top(26)
            .margin_bottom(6)
            .margin_right(16)
            .margin_left(4)
            .y_label_area_size(if width == Width::Wide { 70 } else { 58 })
            .build_cartesian_2d(
                Scale::new(0.0..end, seconds.clone()),
                Scale::new(bottom..top, rows.clone()),
            )?;
        chart.draw_series(lane.events.iter().map(|(from, to)| {
            let to = to.max(from + end / 400.0).min(end);
            Rectangle::new([(from.min(end), bottom), (to, top)], SHADE.filled())
        }))?;
        chart
            .configure_mesh()
            .x_labels(24)
            .y_labels(24)
            .bold_line_style(GRID.stroke_width(1))
            .light_line_style(TRANSPARENT)
            .axis_style(FAINT.stroke_width(1))
            .label_style(font(11, FAINT))
            .draw()?;
        // A gap in the data is a gap in the line.
        for run in lane.points.split(|(_, value)| *value <= 0.0) {
            let places = run.iter().map(|(at, value)| (*at, value.log10()));
            chart.draw_series(LineSeries::new(places, lane.look.colour().stroke_width(2)))?;
        }
        y += lane_height;
        if y == lane_height * i32::try_from(lanes.len()).unwrap_or(0) {
            for tick in seconds.iter().filter(|tick| tick.at <= end) {
                let (x, _) = chart.backend_coord(&(tick.at, bottom));
                write(area, &tick.label, (x, y), 11, FAINT, (HPos::Center, VPos::Top))?;
            }
        }
    }
    write(
        area,
        "seconds; shaded: disturbed",
        (pixels / 2, y + 18),
        12,
        INK,
        (HPos::Center, VPos::Top),
    )
}
