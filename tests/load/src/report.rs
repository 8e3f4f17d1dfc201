//! What a run has shown, as one line of JSON.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, api::Failure, check::Verdict, process::Cost};

/// The longest latency that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(600);

/// The result of one run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// A name for the server, chosen by whoever ran it.
    pub label: String,
    /// When the run ended, in seconds since 1970.
    pub time: u64,
    /// When the measured part began, in seconds since 1970; it took `seconds`.
    #[serde(default)]
    pub began: f64,
    /// The scenario's parameters.
    pub parameters: Value,
    /// How many replicas were asked.
    pub replicas: usize,
    /// How many operations were done.
    pub operations: u64,
    /// What an operation is.
    pub operation: String,
    /// How long the measured part took, in seconds.
    pub seconds: f64,
    /// Operations a second.
    pub rate: f64,
    /// How often an operation failed, by the reason.
    pub failures: BTreeMap<String, u64>,
    /// How many requests were sent again, set-up included.
    #[serde(default)]
    pub retried: u64,
    /// Latencies by name (`send`, `delivery`, …).
    pub latencies: BTreeMap<String, Latency>,
    /// How late the load generator itself was, whatever the server did: timers served after their time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalls: Option<Latency>,
    /// What the named processes used.
    pub processes: BTreeMap<String, Cost>,
    /// Whether everything was right.
    pub check: Verdict,
}

/// A distribution of latencies, in milliseconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// The mean.
    pub mean: f64,
    /// The greatest.
    pub max: f64,
    /// Percentiles: `50`, `90`, `99`, `99.9`.
    pub percentiles: BTreeMap<String, f64>,
    /// The curve: (percentile, milliseconds), denser towards the end.
    pub curve: Vec<(f64, f64)>,
}

/// Collects latencies; microseconds with three digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// Collects nothing yet.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new() -> Result<Self, Error> {
        let longest = u64::try_from(LONGEST.as_micros()).unwrap_or(u64::MAX);
        let histogram = Histogram::new_with_bounds(1, longest, 3);
        Ok(Self(histogram.map_err(|error| Error::server("a histogram", error))?))
    }

    /// Takes in one latency.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// Takes in all that another one has.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so this cannot fail.
        let _ = self.0.add(&other.0);
    }

    /// How many were taken in.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The distribution.
    #[allow(clippy::cast_precision_loss)]
    pub fn summary(&self) -> Latency {
        let ms = |micros: u64| micros as f64 / 1e3;
        let percentiles = [50.0, 90.0, 99.0, 99.9];
        Latency {
            count: self.0.len(),
            mean: self.0.mean() / 1e3,
            max: ms(self.0.max()),
            percentiles: percentiles
                .iter()
                .map(|p| (p.to_string(), ms(self.0.value_at_percentile(*p))))
                .collect(),
            curve: self
                .0
                .iter_quantiles(5)
                .map(|step| (step.quantile() * 100.0, ms(step.value_iterated_to())))
                .collect(),
        }
    }
}

/// Counts failures by their reason.
pub fn count_failures(failures: &[Failure]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for failure in failures {
        *counts.entry(failure.0.clone()).or_default() += 1;
    }
    counts
}

/// Seconds since 1970.
pub fn now() -> u64 {
    since_1970().as_secs()
}

/// The time since 1970 began.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Report {
    /// Appends the line to a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append_to(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::File { path: path.display().to_string(), source };
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        let line = serde_json::to_string(self).map_err(|error| failed(error.into()))?;
        writeln!(file, "{line}").map_err(failed)
    }

    /// The line.
    ///
    /// # Errors
    /// A figure is none.
    pub fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|error| Error::server("the result as JSON", error))
    }

    /// Reads all lines of a file.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no report.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, Error> {
        let failed = |source| Error::File { path: path.display().to_string(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| serde_json::from_str(line).map_err(|error| failed(error.into()))).collect()
    }

    /// The result in words, for a terminal.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{} on {}: {} × {} in {:.1} s, {:.1} a second\n",
            self.scenario, self.label, self.operations, self.operation, self.seconds, self.rate
        );
        for (name, latency) in &self.latencies {
            text += &format!("  {name:<12} {:>8} ×  ", latency.count);
            for (percentile, ms) in &latency.percentiles {
                text += &format!("p{percentile} {ms:.1}  ");
            }
            text += &format!("max {:.1} ms\n", latency.max);
        }
        for (name, cost) in &self.processes {
            text += &format!(
                "  {name:<12} {:.3} CPU-ms an operation, {:.0} in all; {:.1} MiB, {:+.1} in the run\n",
                cost.cpu_ms_per_operation,
                cost.cpu_ms,
                mib(cost.memory_kib),
                signed_mib(cost.memory_growth_kib),
            );
        }
        if let Some(stalls) = &self.stalls {
            let p99 = stalls.percentiles.get("99").copied().unwrap_or_default();
            text += &format!("  this generator itself was late by p99 {p99:.1}  max {:.1} ms\n", stalls.max);
        }
        if self.retried > 0 {
            text += &format!("  sent again {} ×\n", self.retried);
        }
        for (failure, count) in &self.failures {
            text += &format!("  failed {count} ×: {failure}\n");
        }
        text + &self.check.to_text()
    }
}

#[allow(clippy::cast_precision_loss)]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[allow(clippy::cast_precision_loss)]
fn signed_mib(kib: i64) -> f64 {
    kib as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::new().unwrap();
        (1..=1000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        let summary = latencies.summary();
        assert_eq!(summary.count, 1000);
        let close = |one: f64, other: f64| (one - other).abs() / other < 0.002;
        assert!(close(summary.percentiles["50"], 500.0), "{summary:?}");
        assert!(close(summary.percentiles["99"], 990.0), "{summary:?}");
        assert!(close(summary.max, 1000.0), "{summary:?}");
    }
}
