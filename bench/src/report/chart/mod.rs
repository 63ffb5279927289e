//! Charts: plain numbers in, SVG out.
//!
//! Owns: sizes, the palette and how it turns in the dark, text and marks that all charts share.
//! Promises: each chart is drawn twice, wide and narrow, so that its text is readable on a telephone
//! too; colours can be told apart by the colour-blind, and by shape without any colour; whatever a
//! name contains is escaped. Never does: decide what is drawn, or read results.

mod axis;
mod bars;
mod dots;
mod lines;
mod percentiles;
mod timeline;

use std::io;

use maud::{Escaper, Markup, PreEscaped, html};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(crate) use axis::Unit;
pub(crate) use bars::{Hand, bars};
pub(crate) use dots::{Dot, dots};
pub(crate) use lines::{Point, Ray, lines};
pub(crate) use percentiles::{Tail, percentiles};
pub(crate) use timeline::{Lane, timeline};

use std::fmt::Write as _;

/// A chart could not be drawn. Drawing into memory does not fail, so this is a defect here.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw a chart: {0}")]
pub struct ChartError(String);

impl From<DrawingAreaErrorKind<io::Error>> for ChartError {
    fn from(error: DrawingAreaErrorKind<io::Error>) -> Self {
        Self(error.to_string())
    }
}

/// For which width a chart is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// From 760 pixels on.
    Wide,
    /// A telephone.
    Narrow,
}

impl Width {
    const fn pixels(self) -> u32 {
        match self {
            Self::Wide => 880,
            Self::Narrow => 336,
        }
    }

    const fn class(self) -> &'static str {
        match self {
            Self::Wide => "chart wide",
            Self::Narrow => "chart narrow",
        }
    }
}

/// The shape by which a series is known without its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
    Ring,
}

/// How a series looks: colour and shape together are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    colour: usize,
    shape: usize,
}

/// Light and dark variant of each colour. After Okabe and Ito, darkened where white paper needs it; on
/// both grounds each has a contrast of 3:1 or more.
const PALETTE: [(RGBColor, &str); 7] = [
    (RGBColor(0x00, 0x72, 0xB2), "#4DB2F2"),
    (RGBColor(0xD5, 0x5E, 0x00), "#FF9142"),
    (RGBColor(0x00, 0x8F, 0x68), "#2FCFA0"),
    (RGBColor(0xA9, 0x3C, 0x86), "#E79BCB"),
    (RGBColor(0x9A, 0x7B, 0x00), "#E8CC3A"),
    (RGBColor(0x5B, 0x5F, 0xC7), "#A9ACFF"),
    (RGBColor(0x6B, 0x70, 0x75), "#B4BAC0"),
];
const SHAPES: [Shape; 5] =
    [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Diamond, Shape::Ring];

const INK: RGBColor = RGBColor(0x1F, 0x23, 0x28);
const FAINT: RGBColor = RGBColor(0x59, 0x60, 0x69);
const GRID: RGBColor = RGBColor(0xD5, 0xDA, 0xDF);
const SHADE: RGBColor = RGBColor(0xF1, 0xE0, 0xD0);
const NEUTRALS: [(RGBColor, &str); 4] =
    [(INK, "#E6EDF3"), (FAINT, "#A0A9B3"), (GRID, "#363D46"), (SHADE, "#4A3423")];

impl Look {
    /// Of the `n`-th series. The first seven differ in colour and, next to each other, in shape; those
    /// beyond never have the first one's colour, since it is drawn among them too.
    pub(crate) const fn of(n: usize) -> Self {
        match n.checked_sub(PALETTE.len()) {
            None => Self { colour: n, shape: n % SHAPES.len() },
            Some(beyond) => {
                let cycle = PALETTE.len() - 1;
                Self {
                    colour: 1 + beyond % cycle,
                    shape: (beyond + 3 + beyond / cycle) % SHAPES.len(),
                }
            }
        }
    }

    fn colour(self) -> RGBColor {
        PALETTE.get(self.colour).map_or(INK, |(light, _)| *light)
    }

    fn shape(self) -> Shape {
        SHAPES.get(self.shape).copied().unwrap_or(Shape::Ring)
    }
}

/// Rules that turn every chart below `scope` for a dark ground. A rule wins over the attributes that
/// the charts are drawn with.
pub(crate) fn dark_rules(scope: &str) -> String {
    let mut css = String::new();
    for (light, dark) in PALETTE.iter().chain(&NEUTRALS) {
        let hex = hex(*light);
        let written = write!(
            css,
            "{scope} [fill=\"{hex}\"]{{fill:{dark}}}{scope} [stroke=\"{hex}\"]{{stroke:{dark}}}"
        );
        debug_assert!(written.is_ok(), "a String takes everything");
    }
    css
}

fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

/// One chart in both widths.
#[derive(Debug)]
pub(crate) struct Figure {
    label: String,
    wide: String,
    narrow: String,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Figure {
    /// Draws both widths. `label` is what a screen reader says.
    fn draw(
        label: &str,
        height: impl Fn(Width) -> u32,
        paint: impl Fn(&Area<'_>, Width) -> Result<(), ChartError>,
    ) -> Result<Self, ChartError> {
        let one = |width: Width| -> Result<String, ChartError> {
            let mut text = String::new();
            {
                let backend =
                    SVGBackend::with_string(&mut text, (width.pixels(), height(width).max(40)));
                let area = backend.into_drawing_area();
                paint(&area, width)?;
                area.present()?;
            }
            Ok(text)
        };
        Ok(Self { label: label.into(), wide: one(Width::Wide)?, narrow: one(Width::Narrow)? })
    }

    /// Both widths for a page, whose style shows one of them.
    pub(crate) fn inline(&self) -> Markup {
        html! {
            (PreEscaped(self.opened(Width::Wide)))
            (PreEscaped(self.opened(Width::Narrow)))
        }
    }

    /// The wide one as a file of its own, which turns dark by itself.
    pub(crate) fn standalone(&self) -> String {
        let (head, rest) = self.opened_parts(Width::Wide);
        let style = format!(
            "<style>svg{{background:#ffffff}}@media(prefers-color-scheme:dark){{svg{{background:#0d1117}}{}}}</style>",
            dark_rules("")
        );
        format!("{head}\n{style}\n{rest}")
    }

    fn opened(&self, width: Width) -> String {
        let (head, rest) = self.opened_parts(width);
        format!("{head}{rest}")
    }

    fn opened_parts(&self, width: Width) -> (String, &str) {
        let svg = match width {
            Width::Wide => &self.wide,
            Width::Narrow => &self.narrow,
        };
        // The library writes the opening tag itself, on a line of its own.
        let (open, rest) = svg.split_once('\n').unwrap_or((svg, ""));
        let mut label = String::new();
        let written = Escaper::new(&mut label).write_str(&self.label);
        debug_assert!(written.is_ok(), "a String takes everything");
        let named =
            format!("<svg class=\"{}\" role=\"img\" aria-label=\"{label}\" ", width.class());
        (open.replacen("<svg ", &named, 1), rest)
    }
}

/// How wide a text of `size` pixels is, about: the reader's font is not known here.
fn text_width(text: &str, size: i32) -> i32 {
    let letters = text.chars().fold(0_i32, |sum, letter| {
        let hundredths = if letter.is_uppercase() || letter == '_' { 76 } else { 58 };
        sum.saturating_add(hundredths)
    });
    letters.saturating_mul(size) / 100
}

/// Cuts a text that does not fit into `room` pixels; an ellipsis says so.
fn fitted(text: &str, size: i32, room: i32) -> String {
    if text_width(text, size) <= room {
        return text.to_owned();
    }
    let mut short: String = text.to_owned();
    while text_width(&short, size) + size > room && short.pop().is_some() {}
    short.trim_end().to_owned() + "…"
}

/// A font of so many pixels. The library takes a size that its SVG divides by 1.24.
fn font(pixels: i32, colour: RGBColor) -> TextStyle<'static> {
    ("system-ui, sans-serif", f64::from(pixels) * 1.24).into_font().color(&colour)
}

fn write(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    pixels: i32,
    colour: RGBColor,
    (horizontal, vertical): (HPos, VPos),
) -> Result<(), ChartError> {
    let style = font(pixels, colour).pos(Pos::new(horizontal, vertical));
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

/// The mark of a series at a place in pixels.
fn mark(area: &Area<'_>, look: Look, (x, y): (i32, i32), r: i32) -> Result<(), ChartError> {
    let filled = look.colour().filled();
    match look.shape() {
        Shape::Circle => area.draw(&Circle::new((x, y), r, filled))?,
        Shape::Ring => area.draw(&Circle::new((x, y), r, look.colour().stroke_width(2)))?,
        Shape::Square => area.draw(&Rectangle::new([(x - r, y - r), (x + r, y + r)], filled))?,
        Shape::Triangle => area.draw(&Polygon::new(
            vec![(x, y - r - 1), (x + r + 1, y + r), (x - r - 1, y + r)],
            filled,
        ))?,
        Shape::Diamond => area.draw(&Polygon::new(
            vec![(x, y - r - 2), (x + r + 2, y), (x, y + r + 2), (x - r - 2, y)],
            filled,
        ))?,
    }
    Ok(())
}

/// Where each entry of a legend stands, and how high the legend is.
fn legend_places(names: &[&str], width: i32) -> (Vec<(i32, i32)>, i32) {
    const ROW: i32 = 20;
    let (mut x, mut y) = (8, 4);
    let mut places = Vec::new();
    for name in names {
        let needs = 26 + text_width(name, 12) + 14;
        if x > 8 && x + needs > width {
            x = 8;
            y += ROW;
        }
        places.push((x, y));
        x += needs;
    }
    (places, if names.is_empty() { 0 } else { y + ROW })
}

/// A legend along the top. The charts below it begin at the height of `legend_places`.
fn legend(area: &Area<'_>, entries: &[(&str, Look)], width: Width) -> Result<i32, ChartError> {
    let names: Vec<&str> = entries.iter().map(|(name, _)| *name).collect();
    let pixels = i32::try_from(width.pixels()).unwrap_or(i32::MAX);
    let (places, height) = legend_places(&names, pixels);
    for ((name, look), (x, y)) in entries.iter().zip(places) {
        let line = look.colour().stroke_width(2);
        area.draw(&PathElement::new(vec![(x, y + 8), (x + 20, y + 8)], line))?;
        mark(area, *look, (x + 10, y + 8), 3)?;
        let name = fitted(name, 12, pixels - x - 34);
        write(area, &name, (x + 26, y + 8), 12, INK, (HPos::Left, VPos::Center))?;
    }
    Ok(height)
}

fn legend_height(names: &[&str], width: Width) -> u32 {
    let (_, height) = legend_places(names, i32::try_from(width.pixels()).unwrap_or(i32::MAX));
    height.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_in_the_picture_and_in_its_label() {
        let rude = "<script>alert(1)</script> & \"'";
        let figure = Figure::draw(
            rude,
            |_| 60,
            |area, width| legend(area, &[(rude, Look::of(0))], width).map(drop),
        )
        .unwrap();
        for text in [figure.inline().into_string(), figure.standalone()] {
            assert!(!text.contains("<script"), "{text}");
            assert!(text.contains("&lt;script&gt;"), "{text}");
            assert!(text.contains("role=\"img\" aria-label=\"&lt;script"), "{text}");
        }
    }

    #[test]
    fn looks_differ_by_colour_or_shape() {
        let looks: Vec<_> = (0..19).map(Look::of).collect();
        for (at, one) in looks.iter().enumerate() {
            assert!(!looks[at + 1..].contains(one), "{at}: {one:?} twice");
        }
        let colours = |looks: &[Look]| {
            let mut colours: Vec<_> = looks.iter().map(|look| look.colour).collect();
            colours.sort_unstable();
            colours.dedup();
            colours.len()
        };
        assert_eq!(colours(&looks[..7]), 7);
        // The first is drawn among those beyond the seventh.
        assert_eq!(colours(&looks[7..13]), 6);
        assert!(looks[7..].iter().all(|look| look.colour != looks[0].colour));
    }

    /// WCAG's relative luminance.
    fn luminance(hex: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    fn contrast(one: &str, other: &str) -> f64 {
        let (a, b) = (luminance(one), luminance(other));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn every_colour_stands_out_on_both_grounds() {
        for (light, dark) in PALETTE {
            let light = hex(light);
            assert!(contrast(&light, "#FFFFFF") >= 3.0, "{light} on white");
            assert!(contrast(dark, "#0D1117") >= 3.0, "{dark} on black");
        }
        for (light, dark) in [NEUTRALS[0], NEUTRALS[1]] {
            assert!(contrast(&hex(light), "#FFFFFF") >= 4.5, "text {} on white", hex(light));
            assert!(contrast(dark, "#0D1117") >= 4.5, "text {dark} on black");
        }
    }

    #[test]
    fn a_legend_wraps_and_what_is_too_long_is_cut() {
        let names = [
            "one",
            "a rather long name of an engine, too long for two",
            "another long name of one more engine here",
        ];
        let (places, height) = legend_places(&names, 336);
        assert_eq!(places.iter().map(|(_, y)| *y).collect::<Vec<_>>(), [4, 24, 44]);
        assert_eq!(height, 64);
        assert_eq!(legend_places(&[], 336).1, 0);
        let cut = fitted(&"x".repeat(200), 12, 100);
        assert!(cut.ends_with('…') && text_width(&cut, 12) <= 100, "{cut}");
        assert_eq!(fitted("short", 12, 100), "short");
    }
}
