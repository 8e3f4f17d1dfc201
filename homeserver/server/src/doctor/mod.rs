//! `keystead doctor`: looks at a running deployment from beside it, and says in plain words what is wrong and what to do.
//!
//! It changes nothing but a test object at the place of the media, which it removes again. Each part first finds out how things stand and
//! then judges that, in a function without any input or output.

mod config;
mod database;
mod outside;
mod replicas;
mod storage;

use std::{collections::BTreeSet, path::Path};

use clap::Args;
use keystead_store::Store;
use serde::Serialize;

use crate::{
    app,
    config::{ConfigError, Settings, reader::Environment},
    telemetry::metrics::Metrics,
};

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
    /// Where clients reach the server: look at it from here, its TLS and what it publishes there, too
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// How many replicas there should be
    #[arg(long, value_name = "NUMBER")]
    replicas: Option<usize>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// It works, and will bring trouble.
    Warning,
    /// Something does not work, or what was acknowledged may be lost.
    Error,
}

/// Something that is wrong.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// What it is called: `area.problem`, one of [`NAMES`].
    pub(crate) name: &'static str,
    pub(crate) severity: Severity,
    /// What is wrong, in a sentence.
    pub(crate) finding: String,
    /// What to do about it.
    pub(crate) advice: String,
}

impl Finding {
    fn error(name: &'static str, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, severity: Severity::Error, finding: finding.into(), advice: advice.into() }
    }

    fn warning(name: &'static str, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(name, finding, advice) }
    }
}

/// The names of all findings; `docs/operations/doctor.md` lists them, which a test compares.
pub const NAMES: &[&str] = &[
    "config.base_url",
    "config.invalid",
    "config.log_filter",
    "config.password_hashing",
    "config.password_policy",
    "config.plain_http",
    "config.rate_limits",
    "config.registration_open",
    "config.secret_file",
    "config.server_name",
    "database.autovacuum",
    "database.collation",
    "database.connections",
    "database.durability",
    "database.encoding",
    "database.functions",
    "database.indexes",
    "database.long_transaction",
    "database.missing",
    "database.newer_schema",
    "database.notifications",
    "database.pooler",
    "database.read_only",
    "database.schema",
    "database.unreachable",
    "database.version",
    "database.wraparound",
    "disk.space",
    "jobs.overdue",
    "keys.master",
    "keys.signing",
    "media.lost",
    "media.place",
    "media.unusable",
    "outside.certificate",
    "outside.other_server",
    "outside.tls",
    "outside.unreachable",
    "outside.well_known",
    "replicas.behind",
    "replicas.clock",
    "replicas.gone",
    "replicas.hints",
    "replicas.number",
    "replicas.settings",
    "replicas.signing_key",
    "replicas.version",
    "to_device.dead",
    "to_device.full",
];

/// What a look came to.
#[derive(Debug, Default, Serialize)]
struct Report {
    findings: Vec<Finding>,
    /// What was looked at.
    looked_at: BTreeSet<&'static str>,
}

impl Report {
    fn add(&mut self, area: &'static str, findings: impl IntoIterator<Item = Finding>) {
        self.looked_at.insert(area);
        self.findings.extend(findings);
    }

    /// 0 if nothing is wrong, 1 if there are warnings, 2 if there are errors.
    fn exit_code(&self) -> u8 {
        match self.findings.iter().map(|finding| finding.severity).max() {
            None => 0,
            Some(Severity::Warning) => 1,
            Some(Severity::Error) => 2,
        }
    }

    fn print(mut self, json: bool) -> u8 {
        let code = self.exit_code();
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        if json {
            let json = serde_json::json!({ "findings": self.findings, "looked_at": self.looked_at });
            println!("{json:#}");
            return code;
        }
        for Finding { name, severity, finding, advice } in &self.findings {
            let severity = if *severity == Severity::Error { "ERROR  " } else { "warning" };
            println!("{severity} {name}\n  {finding}\n  -> {advice}");
        }
        let areas: Vec<_> = self.looked_at.iter().copied().collect();
        match self.findings.len() {
            0 => println!("Nothing is wrong. Looked at: {}.", areas.join(", ")),
            number => println!("{number} finding(s). Looked at: {}.", areas.join(", ")),
        }
        code
    }
}

/// Looks, prints what is wrong, and returns the exit status.
pub(crate) async fn run(file: Option<&Path>, environment: Environment, args: &DoctorArgs) -> u8 {
    let mut report = Report::default();
    look(file, environment, args, &mut report).await;
    report.print(args.json)
}

/// Looks at one part after the other, for as long as the next one can be looked at.
async fn look(file: Option<&Path>, environment: Environment, args: &DoctorArgs, report: &mut Report) {
    let settings = match Settings::load(file, environment) {
        Ok(settings) => settings,
        Err(error) => return report.add("configuration", invalid(&error)),
    };
    report.add("configuration", config::judge(&settings));
    report.add("configuration", config::secret_files(&settings, file));
    report.add("disk", storage::disks(&settings));
    if let Some(url) = &args.public_url {
        report.add("outside", outside::look(url, &settings).await);
    }
    let Ok(metrics) = Metrics::new() else { return };
    let options = app::store_options(&settings, &metrics);
    let (findings, schema_is_current) = database::look(&options, &settings, args.replicas.unwrap_or(1)).await;
    report.add("database", findings);
    if !schema_is_current {
        return;
    }
    match Store::open(options).await {
        Ok(store) => {
            look_inside(&store, &settings, args, report).await;
            store.close().await;
        }
        Err(error) => report.add("database", [database::unreachable(&error)]),
    }
}

async fn look_inside(store: &Store, settings: &Settings, args: &DoctorArgs, report: &mut Report) {
    report.add("replicas", replicas::look(store, settings, args.replicas).await);
    report.add("keys", storage::keys(store, settings).await);
    report.add("media", storage::media(store, settings).await);
    report.add("backlog", storage::backlog(store).await);
}

fn invalid(error: &ConfigError) -> Vec<Finding> {
    let advice = "Correct it; `keystead check-config` checks again. README.md lists all settings.";
    match error {
        ConfigError::Problems(problems) => {
            let finding = |problem: &crate::config::Problem| {
                Finding::error(
                    "config.invalid",
                    format!("The setting {} cannot be used: {}.", problem.setting, problem.text),
                    advice,
                )
            };
            problems.0.iter().map(finding).collect()
        }
        error => vec![Finding::error("config.invalid", format!("{}.", chain(error)), advice)],
    }
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// A finding about something that could not be looked at because the database failed.
fn failed(error: &keystead_store::Error) -> Vec<Finding> {
    vec![database::unreachable(error)]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The names of findings, all of which are listed.
    pub(crate) fn names(findings: &[Finding]) -> Vec<&'static str> {
        for finding in findings {
            assert!(NAMES.contains(&finding.name), "{} is not listed", finding.name);
            assert!(finding.finding.ends_with('.') && finding.advice.ends_with('.'), "{finding:?}");
        }
        findings.iter().map(|finding| finding.name).collect()
    }

    #[tokio::test]
    async fn a_configuration_that_cannot_be_used_is_told_setting_by_setting() {
        let environment = Environment::from([("KEYSTEAD_AUTH_BCRYPT_COST", "99"), ("KEYSTEAD_NO_SUCH", "1")]);
        let args = DoctorArgs { json: false, public_url: None, replicas: None };
        let mut report = Report::default();
        look(None, environment, &args, &mut report).await;
        assert_eq!(names(&report.findings), ["config.invalid", "config.invalid"]);
        assert_eq!(report.exit_code(), 2);
        let mut report = Report::default();
        look(Some(Path::new("/no/such/file")), Environment::default(), &args, &mut report).await;
        assert_eq!(names(&report.findings), ["config.invalid"]);
    }

    #[test]
    fn the_exit_status_says_how_bad_it_is() {
        let mut report = Report::default();
        assert_eq!(report.exit_code(), 0);
        report.add("x", [Finding::warning("disk.space", "a.", "b.")]);
        assert_eq!(report.exit_code(), 1);
        report.add("x", [Finding::error("disk.space", "a.", "b.")]);
        assert_eq!(report.exit_code(), 2);
    }

    #[test]
    fn the_names_are_in_order_and_documented() {
        assert!(NAMES.is_sorted());
        let page = include_str!("../../../../docs/operations/doctor.md");
        for name in NAMES {
            assert!(page.contains(&format!("| `{name}` |")), "docs/operations/doctor.md lacks {name}");
        }
    }
}
