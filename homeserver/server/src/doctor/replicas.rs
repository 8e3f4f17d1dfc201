//! The replicas: whether they are there, alike, and keep up.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use keystead_store::{
    Store,
    replicas::{self, Seen},
};

use super::{Finding, failed};
use crate::{
    config::Settings,
    heartbeat::{self, Status, shared_settings},
    signing_keys,
};

/// After this long without a sign, a replica counts as gone: three that did not come.
const GONE_AFTER_MS: i64 = 35_000;
/// How long one that is gone is spoken of.
const SPOKEN_OF_MS: i64 = 600_000;
/// How far a clock may be off.
const CLOCK_MS: i64 = 2_000;
/// How long a replica may not have known whether it is behind.
const STALE_MS: u64 = 10_000;

/// A replica that serves, and what it said.
struct Replica {
    name: String,
    skew_ms: i64,
    status: Status,
}

/// Looks at what the replicas say about themselves.
pub(super) async fn look(store: &Store, settings: &Settings, expected: Option<usize>) -> Vec<Finding> {
    let seen = match store.read("doctor_replicas", |tx| async move { replicas::all(&tx).await }).await {
        Ok(seen) => seen,
        Err(error) => return failed(&error),
    };
    let key = signing_keys::current_public_key(store).await.ok();
    judge(&seen, settings, expected, key.as_deref().map(|key| STANDARD_NO_PAD.encode(key)))
}

fn judge(
    seen: &[Seen],
    settings: &Settings,
    expected: Option<usize>,
    signing_key: Option<String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut serving = Vec::new();
    for replica in seen {
        let status: Status = serde_json::from_str(&replica.status).unwrap_or_default();
        let name = format!("{} ({})", status.host, replica.replica_id);
        if replica.age_ms <= GONE_AFTER_MS {
            serving.push(Replica { name, skew_ms: replica.skew_ms, status });
        } else if replica.age_ms <= SPOKEN_OF_MS {
            findings.push(gone(&name, replica.age_ms));
        }
    }
    findings.extend(judge_number(serving.len(), expected));
    findings.extend(judge_versions(&serving));
    findings.extend(judge_settings(&serving, settings));
    for replica in &serving {
        findings.extend(judge_one(replica, signing_key.as_deref()));
    }
    findings
}

fn gone(name: &str, age_ms: i64) -> Finding {
    Finding::warning(
        "replicas.gone",
        format!("The replica {name} said nothing for {} s, and did not stop in order.", age_ms / 1_000),
        "If it was meant to end, all is well, and this ends in ten minutes. Otherwise look at its log: it was killed, or cannot reach the database.",
    )
}

fn judge_number(serving: usize, expected: Option<usize>) -> Option<Finding> {
    let every = heartbeat::EVERY.as_secs();
    match expected {
        None if serving > 0 => None,
        Some(expected) if expected == serving => None,
        None => Some(Finding::error(
            "replicas.number",
            "No replica serves this database.",
            format!("Start one (`keystead serve`), or wait: each says every {every} s that it is there."),
        )),
        Some(expected) => Some(Finding::error(
            "replicas.number",
            format!("{serving} replica(s) serve this database, and not {expected}."),
            format!(
                "Look at those that are missing, or that nobody knows of; each says every {every} s that it is there."
            ),
        )),
    }
}

fn judge_versions(serving: &[Replica]) -> Option<Finding> {
    let versions: BTreeSet<&str> = serving.iter().map(|replica| replica.status.version.as_str()).collect();
    (versions.len() > 1).then(|| {
        Finding::warning(
            "replicas.version",
            format!(
                "Replicas of different versions serve: {}.",
                versions.into_iter().collect::<Vec<_>>().join(", ")
            ),
            "Finish the upgrade; two neighbouring releases may serve side by side while it lasts.",
        )
    })
}

/// Which settings differ between the replicas, or from the configuration that doctor was given.
fn judge_settings(serving: &[Replica], settings: &Settings) -> Vec<Finding> {
    let own = shared_settings(settings);
    let mut values: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for (name, value) in &own {
        values.entry(name).or_default().entry(value).or_default().push("the configuration that doctor reads");
    }
    for replica in serving {
        for (name, value) in &replica.status.settings {
            values.entry(name).or_default().entry(value).or_default().push(&replica.name);
        }
    }
    let differing = values.into_iter().filter(|(_, values)| values.len() > 1);
    differing
        .map(|(name, values)| {
            let values: Vec<_> =
                values.into_iter().map(|(value, whose)| format!("{value} at {}", whose.join(" and "))).collect();
            Finding::error(
                "replicas.settings",
                format!("The setting {name} differs: {}.", values.join("; ")),
                "Give all replicas, and doctor, the same configuration, and restart those that have another: any request may reach any of them.",
            )
        })
        .collect()
}

fn judge_one(replica: &Replica, signing_key: Option<&str>) -> Vec<Finding> {
    let Replica { name, skew_ms, status } = replica;
    let mut findings = Vec::new();
    if skew_ms.abs() > CLOCK_MS {
        let way = if *skew_ms > 0 { "ahead of" } else { "behind" };
        findings.push(Finding::error(
            "replicas.clock",
            format!("The clock of {name} is {} ms {way} the database's.", skew_ms.unsigned_abs()),
            "Let both machines keep time (chrony, systemd-timesyncd): events get wrong times, and sessions end early or late.",
        ));
    }
    if status.stale_ms > STALE_MS {
        findings.push(Finding::error(
            "replicas.behind",
            format!(
                "{name} is {} position(s) behind, and has not caught up for {} s.",
                status.lag,
                status.stale_ms / 1_000
            ),
            "See monitoring/runbooks/KeysteadReplicaBehind.md.",
        ));
    }
    if !status.hints {
        findings.push(Finding::error(
            "replicas.hints",
            format!("{name} gets no notifications from the database, or cannot send any."),
            "See monitoring/runbooks/KeysteadHintsLost.md.",
        ));
    }
    if signing_key.is_some_and(|key| key != status.signing_key) {
        findings.push(Finding::error(
            "replicas.signing_key",
            format!("{name} signs with another key than the one in force."),
            "Restart it: the signing key was changed after it had started.",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::reader::Environment, doctor::tests::names};

    fn settings() -> Settings {
        Settings::from_environment(Environment::default()).unwrap()
    }

    fn replica(id: &str, alter: impl FnOnce(&mut Status, &mut Seen)) -> Seen {
        let mut status = Status {
            host: "host".to_owned(),
            version: "1.0.0".to_owned(),
            settings: shared_settings(&settings()),
            signing_key: "key".to_owned(),
            lag: 0,
            stale_ms: 20,
            hints: true,
        };
        let mut seen = Seen { replica_id: id.to_owned(), age_ms: 9_000, skew_ms: 12, status: String::new() };
        alter(&mut status, &mut seen);
        seen.status = serde_json::to_string(&status).unwrap();
        seen
    }

    fn judged(second: impl FnOnce(&mut Status, &mut Seen)) -> Vec<&'static str> {
        let seen = [replica("a", |_, _| {}), replica("b", second)];
        names(&judge(&seen, &settings(), None, Some("key".to_owned())))
    }

    #[test]
    fn replicas_that_are_alike_and_keep_up_are_passed_over() {
        assert!(judged(|_, _| {}).is_empty());
        assert!(judged(|_, seen| seen.age_ms = 700_000).is_empty(), "long gone");
    }

    #[test]
    fn each_way_of_being_different_is_named() {
        assert_eq!(judged(|status, _| status.version = "1.1.0".to_owned()), ["replicas.version"]);
        let other = |status: &mut Status, _: &mut Seen| {
            status.settings.insert("registration.open".to_owned(), "true".to_owned());
        };
        assert_eq!(judged(other), ["replicas.settings"]);
        assert_eq!(judged(|_, seen| seen.skew_ms = -30_000), ["replicas.clock"]);
        assert_eq!(judged(|status, _| status.stale_ms = 30_000), ["replicas.behind"]);
        assert_eq!(judged(|status, _| status.hints = false), ["replicas.hints"]);
        assert_eq!(judged(|status, _| status.signing_key = "old".to_owned()), ["replicas.signing_key"]);
        assert_eq!(judged(|_, seen| seen.age_ms = 60_000), ["replicas.gone"]);
    }

    #[test]
    fn the_number_of_replicas_is_compared_with_what_there_should_be() {
        let two = [replica("a", |_, _| {}), replica("b", |_, _| {})];
        let judged = |seen: &[Seen], expected| names(&judge(seen, &settings(), expected, None));
        assert_eq!(judged(&[], None), ["replicas.number"]);
        assert_eq!(judged(&two, Some(3)), ["replicas.number"]);
        assert!(judged(&two, Some(2)).is_empty());
    }
}
