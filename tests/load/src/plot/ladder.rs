//! What more replicas bring: throughput and latencies over their number.

use std::collections::{BTreeMap, BTreeSet};

use plotters::{coord::Shift, prelude::*};

use super::{as_f64, legend, plot_error};
use crate::{Error, report::Report};

/// The latencies that are drawn.
const PERCENTILES: [&str; 3] = ["50", "90", "99"];

/// The last result of each label and number of replicas.
pub(super) type Steps<'a> = BTreeMap<&'a str, BTreeMap<usize, &'a Report>>;

/// The scenarios of which there are results with different numbers of replicas.
pub(super) fn ladders(reports: &[Report]) -> BTreeMap<&str, Steps<'_>> {
    let mut ladders: BTreeMap<&str, Steps<'_>> = BTreeMap::new();
    for report in reports {
        let steps = ladders.entry(&report.scenario).or_default().entry(&report.label).or_default();
        steps.insert(report.replicas, report);
    }
    ladders.retain(|_, labels| {
        labels.retain(|_, steps| steps.len() > 1);
        !labels.is_empty()
    });
    ladders
}

/// Draws throughput on the left, latencies on the right.
pub(super) fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    scenario: &str,
    labels: &Steps<'_>,
) -> Result<(), Error> {
    area.fill(&WHITE).map_err(plot_error)?;
    let throughput: Vec<Line> = labels
        .iter()
        .map(|(label, steps)| ((*label).to_owned(), points(steps, |report| Some(report.rate))))
        .collect();
    let latency = |name: &str, percentile: &str, report: &Report| {
        report.latencies.get(name)?.percentiles.get(percentile).copied()
    };
    let mut latencies = Vec::new();
    for (label, steps) in labels {
        let names: BTreeSet<&String> = steps.values().flat_map(|report| report.latencies.keys()).collect();
        for (name, percentile) in names.iter().flat_map(|name| PERCENTILES.map(|p| (name, p))) {
            let points = points(steps, |report| latency(name, percentile, report));
            latencies.push((format!("{label}: {name} p{percentile}"), points));
        }
    }
    let operation = labels.values().flat_map(BTreeMap::values).next().map_or("", |report| &report.operation);
    let (left, right) = area.split_horizontally((50).percent_width());
    lines(&left, &format!("{scenario}: throughput"), &format!("{operation} × a second"), &throughput)?;
    lines(&right, &format!("{scenario}: latency"), "milliseconds", &latencies)?;
    area.present().map_err(plot_error)
}

/// A name, and (replicas, value).
type Line = (String, Vec<(f64, f64)>);

fn points(steps: &BTreeMap<usize, &Report>, value: impl Fn(&Report) -> Option<f64>) -> Vec<(f64, f64)> {
    steps.iter().filter_map(|(replicas, report)| Some((as_f64(*replicas), value(report)?))).collect()
}

fn lines<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    title: &str,
    unit: &str,
    lines: &[Line],
) -> Result<(), Error> {
    let all = || lines.iter().flat_map(|(_, points)| points);
    let most = all().map(|(replicas, _)| *replicas).fold(1.0, f64::max);
    let highest = all().map(|(_, value)| *value).fold(0.001, f64::max);
    // Room for the names above the curves.
    let room = 1.15 + 0.06 * as_f64(lines.len());
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(62)
        .build_cartesian_2d(0.5..most + 0.5, 0.0..highest * room)
        .map_err(plot_error)?;
    chart
        .configure_mesh()
        .x_desc("replicas")
        .y_desc(unit)
        .x_labels(9)
        .x_label_formatter(&|replicas| {
            if replicas.fract().abs() < 1e-6 { format!("{replicas:.0}") } else { String::new() }
        })
        .draw()
        .map_err(plot_error)?;
    for (index, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(4))
            .map_err(plot_error)?
            .label(name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    legend(&mut chart)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Verdict;

    fn report(label: &str, replicas: usize, rate: f64) -> Report {
        Report {
            scenario: "send".to_owned(),
            label: label.to_owned(),
            time: 0,
            began: 0.0,
            parameters: json!({}),
            replicas,
            operations: 1,
            operation: "event".to_owned(),
            seconds: 1.0,
            rate,
            failures: BTreeMap::new(),
            retried: 0,
            latencies: BTreeMap::new(),
            stalls: None,
            processes: BTreeMap::new(),
            check: Verdict::default(),
        }
    }

    #[test]
    fn a_ladder_has_the_last_result_of_each_step() {
        let reports = [report("a", 1, 5.0), report("a", 1, 7.0), report("a", 2, 9.0), report("b", 4, 1.0)];
        let ladders = ladders(&reports);
        assert_eq!(ladders["send"].keys().collect::<Vec<_>>(), [&"a"]);
        assert_eq!(points(&ladders["send"]["a"], |report| Some(report.rate)), [(1.0, 7.0), (2.0, 9.0)]);
    }
}
