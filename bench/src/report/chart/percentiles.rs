//! Latency by percentile on the HDR scale.

use plotters::prelude::*;

use super::axis::{Scale, Unit, decades, quantile_place, quantile_ticks};
use super::{
    Area, ChartError, FAINT, Figure, GRID, INK, Look, Width, font, legend, legend_height, mark,
};

/// One engine's latencies.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    pub(crate) name: String,
    pub(crate) look: Look,
    /// Quantile (0 to 1) and latency in nanoseconds, rising.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws all tails into one chart; those without a point are left out of it, not of the legend.
pub(crate) fn percentiles(label: &str, tails: &[Tail]) -> Result<Figure, ChartError> {
    let names: Vec<&str> = tails.iter().map(|tail| tail.name.as_str()).collect();
    let body = |width| if width == Width::Wide { 380 } else { 300 };
    Figure::draw(
        label,
        |width| legend_height(&names, width) + body(width),
        |area, width| paint(area, width, tails),
    )
}

fn paint(area: &Area<'_>, width: Width, tails: &[Tail]) -> Result<(), ChartError> {
    let entries: Vec<_> = tails.iter().map(|tail| (tail.name.as_str(), tail.look)).collect();
    let top = legend(area, &entries, width)?;
    let points = || tails.iter().flat_map(|tail| &tail.points);
    let end = points().map(|(quantile, _)| quantile_place(*quantile)).fold(2.0, f64::max);
    // The luckiest twentieth would take half of the picture.
    let most = points().filter(|(quantile, nanos)| *quantile >= 0.05 && *nanos > 0.0);
    let low = most.map(|(_, nanos)| *nanos).fold(f64::NAN, f64::min);
    let high = points().map(|(_, nanos)| *nanos).fold(f64::NAN, f64::max);
    let (first, last, rows) = decades(low, high, Unit::Nanos);
    let mut columns = quantile_ticks(end);
    if width == Width::Narrow
        && let Some(first) = columns.first_mut()
    {
        // It would touch p50.
        first.label.clear();
    }

    let (_, body) = area.split_vertically(top);
    let mut chart = ChartBuilder::on(&body)
        .margin_top(8)
        .margin_right(if width == Width::Wide { 28 } else { 16 })
        .margin_left(4)
        .x_label_area_size(40)
        .y_label_area_size(if width == Width::Wide { 70 } else { 58 })
        .build_cartesian_2d(Scale::new(0.0..end, columns.clone()), Scale::new(first..last, rows))?;
    chart
        .configure_mesh()
        .x_labels(24)
        .y_labels(24)
        .bold_line_style(GRID.stroke_width(1))
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT.stroke_width(1))
        .label_style(font(11, FAINT))
        .x_desc("percentile of requests")
        .axis_desc_style(font(12, INK))
        .draw()?;
    for tail in tails {
        let places = tail
            .points
            .iter()
            .filter(|(_, nanos)| *nanos > 0.0)
            .map(|(quantile, nanos)| (quantile_place(*quantile).min(end), nanos.log10()));
        chart.draw_series(LineSeries::new(places, tail.look.colour().stroke_width(2)))?;
    }
    for tail in tails {
        for at in columns.iter().skip(1) {
            let Some((_, nanos)) =
                tail.points.iter().find(|(quantile, _)| quantile_place(*quantile) >= at.at - 1e-9)
            else {
                continue;
            };
            if nanos.log10() >= first {
                mark(area, tail.look, chart.backend_coord(&(at.at, nanos.log10())), 3)?;
            }
        }
    }
    Ok(())
}
