//! The database: whether it can be reached, is set up as it must be, and carries notifications.

use keystead_store::{
    Error, Options,
    checkup::{self, Facts, Notifications, PostgresFacts},
};

use super::{Finding, chain};
use crate::config::Settings;

/// The oldest PostgreSQL that gets security updates.
const OLDEST_POSTGRES: i64 = 140_000;
/// How long a transaction may be open: none of this program is for longer than its statements take.
const LONGEST_TRANSACTION: i64 = 300;
/// The age of a row at which PostgreSQL should have frozen it long ago.
const OLD_ROW: i64 = 1_000_000_000;

/// Looks at the database; says as well whether its schema is that of this program, so that it can be looked into.
pub(super) async fn look(options: &Options, settings: &Settings, replicas: usize) -> (Vec<Finding>, bool) {
    if let Some(file) = missing_file(&options.url) {
        let finding = Finding::error(
            "database.missing",
            format!("There is no database at {file}."),
            "Start the server, which makes it, or correct database.url; a relative path begins at the folder that the server is started in.",
        );
        return (vec![finding], false);
    }
    let facts = match checkup::facts(options).await {
        Ok(facts) => facts,
        Err(error) => return (vec![unreachable(&error)], false),
    };
    let mut findings = judge(&facts, settings, replicas);
    if facts.postgres.is_some() {
        findings.extend(judge_notifications(&checkup::notifications(options).await));
    }
    (findings, facts.lacking_steps.is_empty())
}

/// The file of an SQLite database that is not there.
fn missing_file(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite:")?.trim_start_matches("//").split('?').next()?;
    (!path.contains(":memory:") && !std::path::Path::new(path).exists()).then_some(path)
}

/// The finding that says why the database does not answer.
pub(super) fn unreachable(error: &Error) -> Finding {
    let text = chain(error);
    let advice = if text.contains("unsupported startup parameter") {
        "A pooler stands before PostgreSQL and refuses the settings that sessions ask for. Connect without it, or at least past it: keystead has a pool of its own."
    } else if text.contains("password authentication failed") {
        "The password in database.url is not the one that PostgreSQL knows for that user."
    } else if text.contains("does not exist") {
        "Create the database or the user that database.url names, or correct it."
    } else if text.contains("too many clients") || text.contains("remaining connection slots") {
        "PostgreSQL has no connection left: raise its max_connections, or lower database.max_connections of the replicas."
    } else if text.contains("certificate") || text.contains("SSL") || text.contains("TLS") {
        "TLS to PostgreSQL fails: see sslmode and sslrootcert in database.url."
    } else {
        "Look whether PostgreSQL runs, whether database.url leads to it, and whether a firewall or a network policy is in between."
    };
    Finding::error("database.unreachable", format!("The database cannot be used: {text}."), advice)
}

/// Judges what was found out.
pub(super) fn judge(facts: &Facts, settings: &Settings, replicas: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !facts.lacking_steps.is_empty() {
        findings.push(Finding::error(
            "database.schema",
            format!(
                "The database lacks {} step(s) of this version's schema: {}.",
                facts.lacking_steps.len(),
                facts.lacking_steps.join(", ")
            ),
            "Run `keystead migrate`, or start a replica of this version.",
        ));
    }
    if !facts.unknown_steps.is_empty() {
        findings.push(Finding::warning(
            "database.newer_schema",
            format!("The database has steps that this program does not know: {}.", facts.unknown_steps.join(", ")),
            "A newer version has been here. Finish the upgrade; older replicas may serve beside it for one release only.",
        ));
    }
    if !facts.missing_indexes.is_empty() {
        findings.push(Finding::error(
            "database.indexes",
            format!("These indexes are missing or not valid: {}. Without them the server is slow, and things can be stored twice.", facts.missing_indexes.join(", ")),
            "Make them again with the statements in homeserver/store/src/migrations, by CREATE INDEX CONCURRENTLY.",
        ));
    }
    if !facts.missing_functions.is_empty() {
        findings.push(Finding::error(
            "database.functions",
            format!("These functions are missing or not to be called by this user: {}. Without them no message can be sent.", facts.missing_functions.join(", ")),
            "Make them again with the statements in homeserver/store/src/migrations, or GRANT EXECUTE on them.",
        ));
    }
    if let Some(postgres) = &facts.postgres {
        findings.extend(judge_settings(postgres));
        findings.extend(judge_state(postgres));
        findings.extend(judge_connections(postgres, settings, replicas));
    }
    findings
}

fn judge_settings(facts: &PostgresFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.version < OLDEST_POSTGRES {
        findings.push(Finding::warning(
            "database.version",
            format!("PostgreSQL is version {}, which gets no updates any more.", facts.version / 10_000),
            "Upgrade it to 15 or later.",
        ));
    }
    if facts.encoding != "UTF8" {
        findings.push(Finding::error(
            "database.encoding",
            format!("The database stores text as {}: some messages cannot be stored.", facts.encoding),
            "Make a new database with ENCODING 'UTF8' TEMPLATE template0, and load a dump of this one into it.",
        ));
    }
    if facts.collation_changed || !facts.other_collations.is_empty() {
        let what = match facts.other_collations.first() {
            Some(column) => format!(
                "{} text column(s), such as {column}, are not compared by their bytes",
                facts.other_collations.len()
            ),
            None => "The system's rules to compare texts have changed since the database was made".to_owned(),
        };
        findings.push(Finding::warning(
            "database.collation",
            format!("{what}: after an update of the system, indexes may not find what is there."),
            "Run `keystead migrate`, which makes all columns compare by bytes; then REINDEX DATABASE and ALTER DATABASE … REFRESH COLLATION VERSION.",
        ));
    }
    let is = |name: &str, value: &str| facts.settings.get(name).is_some_and(|found| found == value);
    let risky: Vec<&str> = ["fsync", "full_page_writes", "synchronous_commit"]
        .into_iter()
        .filter(|name| is(name, "off"))
        .collect();
    if !risky.is_empty() {
        findings.push(Finding::error(
            "database.durability",
            format!(
                "{} is off in PostgreSQL: after a crash, messages that were acknowledged can be gone.",
                risky.join(" and ")
            ),
            "Set it to on (synchronous_commit also to remote_apply or remote_write, if there is a standby).",
        ));
    }
    if is("autovacuum", "off") {
        findings.push(Finding::error(
            "database.autovacuum",
            "PostgreSQL does not clean up by itself: tables grow and statements slow down.",
            "Set autovacuum to on.",
        ));
    }
    findings
}

fn judge_state(facts: &PostgresFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let read_only = facts.settings.get("default_transaction_read_only").is_some_and(|value| value == "on");
    if facts.is_standby || read_only {
        findings.push(Finding::error(
            "database.read_only",
            "This PostgreSQL only reads: it is a standby, or set to read only.",
            "Let database.url lead to the primary; after a failover, the name that it uses has to follow.",
        ));
    }
    if !facts.keeps_session_settings {
        findings.push(Finding::error(
            "database.pooler",
            "Sessions do not have the settings that they asked for: a pooler in between hands connections to one client after the other.",
            "Connect past the pooler, or set it to pool sessions, not transactions, and to pass on startup options.",
        ));
    }
    if facts.oldest_transaction_seconds > LONGEST_TRANSACTION {
        findings.push(Finding::warning(
            "database.long_transaction",
            format!("A transaction has been open for {} s: PostgreSQL can clean nothing up that is newer.", facts.oldest_transaction_seconds),
            "Find it in pg_stat_activity (xact_start), and end it with pg_terminate_backend; it is not one of keystead's.",
        ));
    }
    if facts.oldest_row > OLD_ROW {
        findings.push(Finding::error(
            "database.wraparound",
            format!("The oldest rows are {} transactions old; at about 2,000,000,000 PostgreSQL stops writing.", facts.oldest_row),
            "Run VACUUM FREEZE, and find out what keeps autovacuum from its work (long transactions, prepared ones, replication slots).",
        ));
    }
    findings
}

/// Whether PostgreSQL has connections enough for so many replicas. A replica needs two more for notifications.
pub(super) fn judge_connections(
    facts: &PostgresFacts,
    settings: &Settings,
    replicas: usize,
) -> Option<Finding> {
    let each = i64::from(settings.database.max_connections) + 2;
    let replicas = i64::try_from(replicas).unwrap_or(i64::MAX);
    let needed = each.saturating_mul(replicas);
    let left = facts.max_connections - facts.foreign_connections;
    (needed > left).then(|| {
        Finding::error(
            "database.connections",
            format!(
                "{replicas} replica(s) may need {needed} connections; PostgreSQL has {} and other programs hold {} of them.",
                facts.max_connections, facts.foreign_connections
            ),
            "Raise max_connections of PostgreSQL, or lower database.max_connections of the replicas; during a rolling upgrade there is one replica more.",
        )
    })
}

fn judge_notifications(notifications: &Notifications) -> Option<Finding> {
    let what = match notifications {
        Notifications::Arrive => return None,
        Notifications::Lost => "Notifications (NOTIFY) are sent and never arrive".to_owned(),
        Notifications::Failed(error) => format!("Notifications (LISTEN, NOTIFY) fail: {error}"),
    };
    Some(Finding::error(
        "database.notifications",
        format!("{what}: what is written through one replica, the others see up to two seconds late."),
        "A pooler in transaction mode does that. Connect past it: keystead has a pool of its own.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::reader::Environment, doctor::tests::names};

    fn settings() -> Settings {
        Settings::from_environment(Environment::default()).unwrap()
    }

    fn healthy() -> PostgresFacts {
        let settings = [
            ("autovacuum", "on"),
            ("default_transaction_read_only", "off"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "on"),
        ];
        PostgresFacts {
            version: 150_004,
            encoding: "UTF8".to_owned(),
            other_collations: Vec::new(),
            collation_changed: false,
            max_connections: 97,
            foreign_connections: 3,
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            is_standby: false,
            keeps_session_settings: true,
            oldest_transaction_seconds: 2,
            oldest_row: 200_000_000,
        }
    }

    fn judged(alter: impl FnOnce(&mut PostgresFacts)) -> Vec<&'static str> {
        let mut postgres = healthy();
        alter(&mut postgres);
        let facts = Facts {
            lacking_steps: Vec::new(),
            unknown_steps: Vec::new(),
            missing_indexes: Vec::new(),
            missing_functions: Vec::new(),
            postgres: Some(postgres),
        };
        names(&judge(&facts, &settings(), 1))
    }

    #[test]
    fn each_fault_of_postgresql_is_named_and_health_is_silent() {
        assert!(judged(|_| {}).is_empty());
        let set = |name: &'static str, value: &'static str| {
            move |facts: &mut PostgresFacts| drop(facts.settings.insert(name.to_owned(), value.to_owned()))
        };
        assert_eq!(judged(|facts| facts.version = 120_010), ["database.version"]);
        assert_eq!(judged(|facts| facts.encoding = "SQL_ASCII".to_owned()), ["database.encoding"]);
        assert_eq!(judged(|facts| facts.collation_changed = true), ["database.collation"]);
        assert_eq!(
            judged(|facts| facts.other_collations.push("events.json".to_owned())),
            ["database.collation"]
        );
        assert_eq!(judged(|facts| facts.max_connections = 20), ["database.connections"]);
        for name in ["fsync", "full_page_writes", "synchronous_commit"] {
            assert_eq!(judged(set(name, "off")), ["database.durability"]);
        }
        assert!(judged(set("synchronous_commit", "remote_apply")).is_empty());
        assert_eq!(judged(set("autovacuum", "off")), ["database.autovacuum"]);
        assert_eq!(judged(set("default_transaction_read_only", "on")), ["database.read_only"]);
        assert_eq!(judged(|facts| facts.is_standby = true), ["database.read_only"]);
        assert_eq!(judged(|facts| facts.keeps_session_settings = false), ["database.pooler"]);
        assert_eq!(judged(|facts| facts.oldest_transaction_seconds = 4_000), ["database.long_transaction"]);
        assert_eq!(judged(|facts| facts.oldest_row = 1_600_000_000), ["database.wraparound"]);
    }

    #[test]
    fn a_schema_that_does_not_fit_is_named() {
        let step = || vec!["m1".to_owned()];
        let facts = Facts {
            lacking_steps: step(),
            unknown_steps: step(),
            missing_indexes: step(),
            missing_functions: step(),
            postgres: None,
        };
        assert_eq!(
            names(&judge(&facts, &settings(), 1)),
            ["database.schema", "database.newer_schema", "database.indexes", "database.functions"]
        );
    }

    #[test]
    fn connections_are_counted_for_all_replicas() {
        assert_eq!(judge_connections(&healthy(), &settings(), 5), None);
        assert!(judge_connections(&healthy(), &settings(), 6).is_some());
    }

    #[test]
    fn lost_notifications_are_named() {
        assert_eq!(judge_notifications(&Notifications::Arrive), None);
        for bad in [Notifications::Lost, Notifications::Failed("no".to_owned())] {
            let finding = judge_notifications(&bad).unwrap();
            assert_eq!(names(&[finding]), ["database.notifications"]);
        }
    }

    #[tokio::test]
    async fn a_database_that_is_not_there_is_named_with_its_reason() {
        let metrics = crate::telemetry::metrics::Metrics::new().unwrap();
        let look_at = |url: &str| {
            let environment = Environment::from([("KEYSTEAD_DATABASE_URL", url)]);
            let settings = Settings::from_environment(environment).unwrap();
            let options = crate::app::store_options(&settings, &metrics);
            async move { look(&options, &settings, 1).await.0 }
        };
        assert_eq!(names(&look_at("sqlite:/no/such/folder/keystead.db").await), ["database.missing"]);
        let found = look_at("postgres://nobody@127.0.0.1:1/none").await;
        assert_eq!(names(&found), ["database.unreachable"]);
        let pooler = Error::Setup("unsupported startup parameter: options".to_owned());
        assert!(unreachable(&pooler).advice.contains("pooler"));
    }
}
