//! Cost against the number of vectors, drawn.

use std::path::Path;

use anyhow::{Result, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Point, Series};

/// Pixels.
const SIZE: (u32, u32) = (1080, 660);
/// Height of the legend above the charts.
const LEGEND: i32 = 34;
/// Where its lines are, and the tops of its texts.
const LEGEND_MIDDLE: i32 = 21;
const LEGEND_TEXT: i32 = 14;
/// Where a line begins and ends, and where its text begins.
const LEGEND_COLUMNS: [[i32; 3]; 2] = [[90, 114, 122], [330, 354, 362]];
const PRODUCT: RGBColor = RGBColor(0x1f, 0x5f, 0xb4);
const STANDARD: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
const FONT: &str = "sans-serif";

/// Columns and rows of the plot.
const OPERATIONS: [(&str, &str); 3] = [
    ("set_up", "set-up, until every vector can fire"),
    ("affinity_change", "affinity change of one of them"),
    ("mask_unmask", "mask and unmask of one of them"),
];
const UNITS: [(&str, &str); 2] =
    [("instructions", "instructions of the host service"), ("exits", "exits to the VMM")];

/// Draws the series into a file.
///
/// # Errors
/// When a series is missing or the file cannot be written.
pub(super) fn draw(series: &[Series], file: &Path) -> Result<()> {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (legend, charts) = root.split_vertically(LEGEND);
    draw_legend(&legend)?;
    let areas = charts.split_evenly((UNITS.len(), OPERATIONS.len()));
    let charts = UNITS.iter().flat_map(|unit| OPERATIONS.iter().map(move |name| (unit, name)));
    for (area, ((unit, what), (name, title))) in areas.iter().zip(charts) {
        let found = series.iter().find(|series| series.name == *name && series.unit == *unit);
        let points = found.map_or(&[][..], |series| &series.points);
        ensure!(!points.is_empty(), "no {unit} of {name} were counted; see above why");
        chart(area, title, what, points)?;
    }
    root.present()?;
    Ok(())
}

fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
    for ((label, colour, _), [left, right, text]) in SIDES.into_iter().zip(LEGEND_COLUMNS) {
        let line = [(left, LEGEND_MIDDLE), (right, LEGEND_MIDDLE)];
        area.draw(&PathElement::new(line, colour.stroke_width(2)))?;
        area.draw(&Text::new(label, (text, LEGEND_TEXT), (FONT, 14)))?;
    }
    Ok(())
}

/// One chart. Both axes are logarithmic.
fn chart(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    what: &str,
    points: &[Point],
) -> Result<()> {
    let heights =
        || points.iter().flat_map(|point| [point.value, point.standard]).flatten().map(height);
    let top = heights().fold(1.0, f64::max).ceil();
    let bottom = heights().fold(0.0, f64::min);
    let right = points.iter().map(|point| f64::from(point.vectors).log2()).fold(0.0, f64::max);
    let powers = (0..12).filter(|power| f64::from(*power) <= top - bottom).count();
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 15))
        .margin(10)
        .margin_right(18)
        .x_label_area_size(38)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..right, bottom..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("vectors")
        .x_labels(12)
        .x_label_formatter(&|x| format!("{:.0}", x.exp2()))
        .y_desc(what)
        .y_labels(powers)
        .y_label_formatter(&|y| power_of_ten(*y))
        .label_style((FONT, 11))
        .draw()?;
    for (_, colour, of) in SIDES {
        let line: Vec<_> = points
            .iter()
            .filter_map(|point| Some((f64::from(point.vectors).log2(), height(of(point)?))))
            .collect();
        chart.draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?;
        chart.draw_series(line.into_iter().map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    Ok(())
}

type Pick = fn(&Point) -> Option<f64>;

const SIDES: [(&str, RGBColor, Pick); 2] = [
    ("standard table, trapped", STANDARD, |point| point.standard),
    ("PV-MSI, table direct", PRODUCT, |point| point.value),
];

/// The label of a height.
fn power_of_ten(height: f64) -> String {
    let of = |unit: f64, suffix: &str| format!("{:.0}{suffix}", 10_f64.powf(height - unit));
    match height {
        _ if height <= ZERO => "0".to_owned(),
        _ if height >= 6.0 => of(6.0, " M"),
        _ if height >= 3.0 => of(3.0, " k"),
        _ => of(0.0, ""),
    }
}

/// Where zero is drawn.
const ZERO: f64 = -1.0;

/// How high a value is drawn.
fn height(value: f64) -> f64 {
    if value < 1.0 { ZERO } else { value.log10() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn labels_are_powers_of_ten() {
        let labels = [ZERO, 0.0, 2.0, 3.0, 5.0, 7.0].map(power_of_ten);
        assert_eq!(labels, ["0", "1", "100", "1 k", "100 k", "10 M"]);
        assert_eq!([0.0, 1.0, 1000.0].map(height), [ZERO, 0.0, 3.0]);
    }

    #[test]
    fn all_charts_are_drawn_and_a_missing_one_is_refused() {
        let point = |vectors, value| Point { vectors, value: Some(value), standard: Some(9.0) };
        let mut series: Vec<_> = UNITS
            .iter()
            .flat_map(|(unit, _)| OPERATIONS.iter().map(move |(name, _)| (name, unit)))
            .map(|(name, unit)| Series {
                name: (*name).to_owned(),
                unit: (*unit).to_owned(),
                points: vec![point(1, 0.0), point(2048, 1e6)],
            })
            .collect();
        let file = std::env::temp_dir().join(format!("pvmsi-plot-{}.svg", std::process::id()));
        draw(&series, &file).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        for (_, title) in OPERATIONS {
            assert_eq!(text.matches(title).count(), UNITS.len(), "{title}");
        }
        series.pop();
        assert!(draw(&series, &file).is_err());
        fs::remove_file(&file).unwrap();
    }
}
