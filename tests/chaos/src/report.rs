//! What a drill has shown: a line of JSON, and a line of a table.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use keystead_load::check::Verdict;
use serde::{Deserialize, Serialize};

use crate::Result;

/// The result of one drill.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// The drill.
    pub drill: String,
    /// A name for the server, chosen by whoever ran it.
    pub label: String,
    /// When it ended, in seconds since 1970.
    pub time: u64,
    /// Acknowledged messages.
    pub acknowledged: usize,
    /// Whether everything was right: each acknowledged message at each reader once, in one order.
    pub check: Verdict,
    /// How long the fault was on.
    pub fault_seconds: f64,
    /// From the fault's end until every replica was ready and had acknowledged a message; `None` if that did not come to pass.
    pub recovery_seconds: Option<f64>,
    /// The longest time without an acknowledgement, of all clients at all replicas together.
    pub longest_gap_seconds: f64,
    /// From the fault's beginning until a replica no longer said that it is ready; `None` if all did throughout.
    pub unready_after_seconds: Option<f64>,
    /// From the fault's end to the last failure that a sender saw; negative if it was before.
    pub last_failure_seconds: Option<f64>,
    /// What clients were told other than 200, and how often; `sync:` stands before what readers were told.
    pub failures: BTreeMap<String, u64>,
    /// More that was measured.
    pub notes: Vec<String>,
    /// What was wrong, beside the check.
    pub defects: Vec<String>,
}

impl Report {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.check.is_clean()
            && self.check.checked
            && self.defects.is_empty()
            && self.recovery_seconds.is_some()
    }

    /// Appends the line to a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append_to(&self, path: &Path) -> Result<()> {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        Ok(writeln!(file, "{}", serde_json::to_string(self)?)?)
    }

    /// Reads all lines of a file.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no report.
    pub fn read_all(path: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path)?;
        Ok(text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?)
    }

    /// What is not in the table.
    pub fn details(&self) -> String {
        let mut text = String::new();
        for example in self.defects.iter().chain(&self.check.examples) {
            text += &format!("  WRONG: {example}\n");
        }
        for note in &self.notes {
            text += &format!("  {note}\n");
        }
        text
    }
}

/// A table of drills, in Markdown.
pub fn table(reports: &[Report]) -> String {
    let mut text = String::from(
        "| drill | acknowledged | deliveries | lost | doubled | reordered | late | fault s | recovery s | longest gap s \
         | not ready after s | last error s | errors that clients saw |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let optional = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    for report in reports {
        let failures: Vec<_> =
            report.failures.iter().map(|(failure, count)| format!("{failure} × {count}")).collect();
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {:.1} | {} | {:.1} | {} | {} | {} |\n",
            report.drill,
            report.acknowledged,
            report.check.deliveries,
            report.check.lost,
            report.check.doubled,
            report.check.reordered,
            report.check.late,
            report.fault_seconds,
            optional(report.recovery_seconds),
            report.longest_gap_seconds,
            optional(report.unready_after_seconds),
            optional(report.last_failure_seconds),
            if failures.is_empty() { "none".to_owned() } else { failures.join(", ") },
        );
    }
    text
}
