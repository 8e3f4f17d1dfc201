//! Pictures of results: latency curves and CPU time, each as PNG and SVG.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use plotters::{
    coord::{CoordTranslate, Shift},
    prelude::*,
    style::{
        FontStyle, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::{Error, report::Report};

/// Where Debian's package `fonts-dejavu-core` has the font of the PNG pictures.
pub const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const SIZE: (u32, u32) = (960, 540);

mod ladder;

/// Draws for each scenario the latencies (over percentiles, of the last run of each label) and the CPU time of an operation; and
/// throughput and latency over the number of replicas, where results tell of several.
///
/// Returns the files.
///
/// # Errors
/// The font or the folder is missing; there is nothing to draw.
pub fn draw(reports: &[Report], folder: &Path, font: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| Error::File { path, source }
    };
    let bytes: &'static [u8] = Box::leak(fs::read(font).map_err(failed(font))?.into_boxed_slice());
    register_font("sans-serif", FontStyle::Normal, bytes)
        .map_err(|_| Error::Plot(format!("{} is no font", font.display())))?;
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let mut scenarios: BTreeMap<&str, BTreeMap<String, &Report>> = BTreeMap::new();
    for report in reports {
        let label = format!("{}, {} replica(s)", report.label, report.replicas);
        scenarios.entry(&report.scenario).or_default().insert(label, report);
    }
    if scenarios.is_empty() {
        return Err(Error::Plot("there are no results".to_owned()));
    }
    let mut files = Vec::new();
    for (scenario, runs) in scenarios {
        let path = |kind: &str, extension: &str| folder.join(format!("{scenario}-{kind}.{extension}"));
        let (png, svg) = (path("latency", "png"), path("latency", "svg"));
        bitmap(&png, |area| latency(area, scenario, &runs))?;
        latency(&SVGBackend::new(&svg, SIZE).into_drawing_area(), scenario, &runs)?;
        files.extend([png, svg]);
        if runs.values().any(|report| !report.processes.is_empty()) {
            let (png, svg) = (path("cpu", "png"), path("cpu", "svg"));
            bitmap(&png, |area| cpu(area, scenario, &runs))?;
            cpu(&SVGBackend::new(&svg, SIZE).into_drawing_area(), scenario, &runs)?;
            files.extend([png, svg]);
        }
    }
    for (scenario, steps) in ladder::ladders(reports) {
        let path = |extension: &str| folder.join(format!("{scenario}-replicas.{extension}"));
        let (png, svg) = (path("png"), path("svg"));
        bitmap(&png, |area| ladder::draw(area, scenario, &steps))?;
        ladder::draw(&SVGBackend::new(&svg, SIZE).into_drawing_area(), scenario, &steps)?;
        files.extend([png, svg]);
    }
    Ok(files)
}

/// Draws into memory and writes a PNG.
fn bitmap(
    path: &Path,
    draw: impl FnOnce(&DrawingArea<BitMapBackend<'_>, Shift>) -> Result<(), Error>,
) -> Result<(), Error> {
    let (width, height) = SIZE;
    let mut picture = image::RgbImage::new(width, height);
    draw(&BitMapBackend::with_buffer(&mut picture, SIZE).into_drawing_area())?;
    picture.save(path).map_err(plot_error)
}

fn plot_error(error: impl std::fmt::Display) -> Error {
    Error::Plot(error.to_string())
}

/// How many nines a percentile has: 90 is 1, 99 is 2, 99.9 is 3. The scale on which the tail of a latency can be seen.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile.min(99.9999) / 100.0).log10()
}

fn latency<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    scenario: &str,
    runs: &BTreeMap<String, &Report>,
) -> Result<(), Error> {
    let curves: Vec<(String, Vec<(f64, f64)>)> = runs
        .iter()
        .flat_map(|(label, report)| {
            report.latencies.iter().map(move |(name, latency)| {
                let points = latency.curve.iter().map(|(percentile, ms)| (nines(*percentile), ms.max(0.01)));
                (format!("{label}: {name}"), points.collect())
            })
        })
        .collect();
    let all = || curves.iter().flat_map(|(_, points)| points);
    let slowest = all().map(|(_, ms)| *ms).fold(0.1, f64::max);
    let fastest = all().map(|(_, ms)| *ms).fold(slowest, f64::min);
    area.fill(&WHITE).map_err(plot_error)?;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{scenario}: latency"), ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..4.0, (fastest / 1.5..slowest * 1.5).log_scale())
        .map_err(plot_error)?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("milliseconds")
        .x_labels(5)
        .x_label_formatter(&|nines| format!("{}", 100.0 * (1.0 - 10_f64.powf(-nines))))
        .y_label_formatter(&|ms| format!("{ms}"))
        .draw()
        .map_err(plot_error)?;
    for (index, (name, points)) in curves.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
        chart
            .draw_series(line)
            .map_err(plot_error)?
            .label(name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    legend(&mut chart)?;
    area.present().map_err(plot_error)
}

fn cpu<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    scenario: &str,
    runs: &BTreeMap<String, &Report>,
) -> Result<(), Error> {
    let names: Vec<&String> = runs.keys().collect();
    let mut processes: Vec<&String> = runs.values().flat_map(|report| report.processes.keys()).collect();
    processes.sort_unstable();
    processes.dedup();
    let total =
        |report: &&Report| report.processes.values().map(|cost| cost.cpu_ms_per_operation).sum::<f64>();
    let highest = runs.values().map(total).fold(0.001, f64::max);
    let operation = runs.values().next().map_or("operation", |report| &report.operation);
    area.fill(&WHITE).map_err(plot_error)?;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{scenario}: CPU time of one {operation}"), ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(-0.5..as_f64(names.len()) - 0.5, 0.0..highest * 1.2)
        .map_err(plot_error)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_desc("CPU milliseconds")
        .disable_x_axis()
        .draw()
        .map_err(plot_error)?;
    let mut floors = vec![0.0; names.len()];
    for (number, process) in processes.iter().enumerate() {
        let color = Palette99::pick(number).mix(0.8);
        let bars = runs.values().zip(&mut floors).enumerate().map(|(index, (report, floor))| {
            let cost = report.processes.get(*process).map_or(0.0, |cost| cost.cpu_ms_per_operation);
            let (low, high) = (*floor, *floor + cost);
            *floor = high;
            let middle = as_f64(index);
            Rectangle::new([(middle - 0.3, low), (middle + 0.3, high)], color.filled())
        });
        chart
            .draw_series(bars)
            .map_err(plot_error)?
            .label(process.as_str())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.filled()));
    }
    let style = ("sans-serif", 14).into_font().into_text_style(area);
    let below = style.pos(Pos::new(HPos::Center, VPos::Top));
    let labels = names.iter().enumerate().map(|(index, name)| {
        EmptyElement::at((as_f64(index), 0.0)) + Text::new((*name).clone(), (0, 8), below.clone())
    });
    for label in labels {
        chart.plotting_area().draw(&label).map_err(plot_error)?;
    }
    legend(&mut chart)?;
    area.present().map_err(plot_error)
}

#[allow(clippy::cast_precision_loss)]
fn as_f64(number: usize) -> f64 {
    number as f64
}

fn legend<'a, DB: DrawingBackend + 'a, CT: CoordTranslate>(
    chart: &mut ChartContext<'a, DB, CT>,
) -> Result<(), Error> {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(plot_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_spread_by_nines() {
        assert!(nines(0.0).abs() < 1e-9);
        assert!((nines(90.0) - 1.0).abs() < 1e-9);
        assert!((nines(99.9) - 3.0).abs() < 1e-9);
        assert!(nines(100.0).is_finite());
    }
}
