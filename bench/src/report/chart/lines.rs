//! A figure against the number of workers, one line for each engine.

use plotters::prelude::*;

use super::axis::{Scale, Tick, Unit, linear};
use super::{
    Area, ChartError, FAINT, Figure, GRID, INK, Look, Width, font, legend, legend_height, mark,
};

/// A measured place of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) workers: u32,
    /// Smallest, median, largest.
    pub(crate) spread: (f64, f64, f64),
}

/// One engine's line.
#[derive(Debug, Clone)]
pub(crate) struct Ray {
    pub(crate) name: String,
    pub(crate) look: Look,
    /// By rising number of workers.
    pub(crate) points: Vec<Point>,
}

/// Draws all lines into one chart; the axis of workers is logarithmic.
pub(crate) fn lines(
    label: &str,
    what: &str,
    unit: Unit,
    rays: &[Ray],
) -> Result<Figure, ChartError> {
    let names: Vec<&str> = rays.iter().map(|ray| ray.name.as_str()).collect();
    let body = |width| if width == Width::Wide { 340 } else { 290 };
    Figure::draw(
        label,
        |width| legend_height(&names, width) + body(width),
        |area, width| paint(area, width, what, unit, rays),
    )
}

fn paint(
    area: &Area<'_>,
    width: Width,
    what: &str,
    unit: Unit,
    rays: &[Ray],
) -> Result<(), ChartError> {
    let entries: Vec<_> = rays.iter().map(|ray| (ray.name.as_str(), ray.look)).collect();
    let top = legend(area, &entries, width)?;
    let points = || rays.iter().flat_map(|ray| &ray.points);
    let place = |workers: u32| f64::from(workers.max(1)).log2();
    let mut counts: Vec<u32> = points().map(|point| point.workers).collect();
    counts.sort_unstable();
    counts.dedup();
    let first = counts.first().map_or(0.0, |workers| place(*workers)) - 0.25;
    let last = counts.last().map_or(1.0, |workers| place(*workers)) + 0.25;
    let (end, ticks) = linear(points().map(|point| point.spread.2).fold(0.0, f64::max), 5, unit);

    let columns = counts.iter().map(|count| Tick { at: place(*count), label: count.to_string() });
    let columns = columns.collect();

    let (_, body) = area.split_vertically(top);
    let mut chart = ChartBuilder::on(&body)
        .margin_top(10)
        .margin_right(20)
        .margin_left(4)
        .x_label_area_size(40)
        .y_label_area_size(if width == Width::Wide { 78 } else { 66 })
        .build_cartesian_2d(Scale::new(first..last, columns), Scale::new(0.0..end, ticks))?;
    chart
        .configure_mesh()
        .x_labels(24)
        .y_labels(24)
        .bold_line_style(GRID.stroke_width(1))
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT.stroke_width(1))
        .label_style(font(11, FAINT))
        .x_desc(format!("workers; {what}"))
        .axis_desc_style(font(12, INK))
        .draw()?;
    for ray in rays {
        let line = ray.look.colour().stroke_width(2);
        let medians = ray.points.iter().map(|point| (place(point.workers), point.spread.1));
        chart.draw_series(LineSeries::new(medians, line))?;
        for point in &ray.points {
            let (low, mid, high) = point.spread;
            let x = place(point.workers);
            chart.draw_series(LineSeries::new([(x, low), (x, high)], line))?;
            mark(area, ray.look, chart.backend_coord(&(x, mid)), 4)?;
        }
    }
    Ok(())
}
