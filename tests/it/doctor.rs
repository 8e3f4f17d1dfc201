//! `keystead doctor` on deployments that are well and on ones that are not.

use std::sync::Arc;

use keystead_tests::{TestCluster, cluster::on_sqlite, eventually, process};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    keybox_passphrases::{key, path},
    keybox_permission::keybox,
    media::{bytes, objects, upload, uploaded},
};

/// The names of what doctor finds, and its exit status.
async fn found(
    cluster: &TestCluster,
    arguments: &[&str],
    settings: &[(&str, &str)],
) -> (Vec<String>, Option<i32>) {
    let arguments = [&["doctor", "--json"], arguments].concat();
    let output = cluster.run(&arguments, settings).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let findings = report["findings"].as_array().expect("findings");
    for finding in findings {
        for part in ["finding", "advice"] {
            assert!(finding[part].as_str().is_some_and(|text| text.len() > 10), "{finding}");
        }
    }
    let name = |finding: &Value| finding["name"].as_str().expect("a name").to_owned();
    // The tests' PostgreSQL writes nothing through, to be quick; how full this machine's disk is says nothing.
    let is_ours = |name: &String| !["database.durability", "disk.space"].contains(&name.as_str());
    (findings.iter().map(name).filter(is_ours).collect(), output.status.code())
}

/// Replicas as doctor wants them: with one address for all.
async fn start(settings: &[(&str, &str)]) -> Arc<TestCluster> {
    let address = [("KEYSTEAD_SERVER_PUBLIC_BASE_URL", "http://127.0.0.1:8008")];
    TestCluster::start_with(&[&address, settings].concat()).await
}

async fn names(cluster: &TestCluster) -> Vec<String> {
    found(cluster, &[], &[]).await.0
}

/// All replicas have said that they are there.
async fn until_all_report(cluster: &TestCluster) {
    let expected = cluster.size().to_string();
    eventually("all replicas report, and nothing is wrong", || async {
        let (found, _) = found(cluster, &["--replicas", &expected], &[]).await;
        if !found.is_empty() {
            eprintln!("{found:?}");
        }
        found.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_is_well_gives_nothing_to_say() {
    let cluster = start(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &key("one", 1))]).await;
    let alice = keybox(&cluster, "alice").await;
    alice.put(&path(&alice), serde_json::json!({ "passphrase": "kept" })).await.ok();
    uploaded(&alice, upload("a.bin", "application/octet-stream", bytes(900))).await;
    until_all_report(&cluster).await;
    let output = cluster.run(&["doctor", "--json", "--public-url", &cluster.url(0)], &[]).await;
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let left = report["findings"].as_array().expect("findings").clone();
    let left: Vec<_> = left.iter().filter(|finding| finding["name"] != "disk.space").collect();
    if on_sqlite() {
        assert!(left.is_empty(), "{left:?}");
    } else {
        let [durability] = &left[..] else { panic!("{left:?}") };
        let text = durability["finding"].as_str().expect("a text");
        assert!(text.starts_with("fsync and full_page_writes is off"), "{text}");
        assert_eq!(output.status.code(), Some(2));
    }
    let looked_at: Vec<_> =
        report["looked_at"].as_array().expect("a list").iter().map(Value::as_str).collect();
    for area in ["configuration", "database", "replicas", "keys", "media", "backlog", "outside"] {
        assert!(looked_at.contains(&Some(area)), "{looked_at:?}");
    }
    let text = cluster.run(&["doctor"], &[]).await;
    assert!(String::from_utf8_lossy(&text.stdout).contains("Looked at: "), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_beside_the_database_is_found() {
    let cluster = start(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &key("one", 1))]).await;
    let alice = keybox(&cluster, "alice").await;
    alice.put(&path(&alice), serde_json::json!({ "passphrase": "kept" })).await.ok();
    uploaded(&alice, upload("a.bin", "application/octet-stream", bytes(900))).await;
    until_all_report(&cluster).await;
    let with = |name: &'static str, value: String| {
        let cluster = &cluster;
        async move { found(cluster, &[], &[(name, &value)]).await.0 }
    };
    let elsewhere = cluster.folder().join("elsewhere").display().to_string();
    assert_eq!(with("KEYSTEAD_MEDIA_FOLDER", elsewhere).await, ["media.place", "replicas.settings"].sorted());
    assert_eq!(
        with("KEYSTEAD_MEDIA_FOLDER", "/proc/no".to_owned()).await,
        ["media.unusable", "replicas.settings"].sorted()
    );
    assert_eq!(with("KEYSTEAD_KEYBOX_MASTER_KEY", key("one", 2)).await, ["keys.master"]);
    assert_eq!(with("KEYSTEAD_REGISTRATION_OPEN", "false".to_owned()).await, ["replicas.settings"]);
    assert_eq!(with("KEYSTEAD_AUTH_BCRYPT_COST", "99".to_owned()).await, ["config.invalid"]);
    assert_eq!(
        with("KEYSTEAD_DATABASE_URL", "postgres://x@127.0.0.1:1/x".to_owned()).await,
        ["database.unreachable"]
    );
    assert_eq!(with("KEYSTEAD_DATABASE_URL", "sqlite:/no/such/file".to_owned()).await, ["database.missing"]);
    assert_eq!(
        found(&cluster, &["--replicas", "7"], &[]).await,
        (vec!["replicas.number".to_owned()], Some(2))
    );
    let (nowhere, status) = found(&cluster, &["--public-url", "http://127.0.0.1:1"], &[]).await;
    assert_eq!((nowhere, status), (vec!["outside.unreachable".to_owned()], Some(2)));
    let base = ("KEYSTEAD_SERVER_PUBLIC_BASE_URL", "https://chat.example.org");
    let (other, _) = found(&cluster, &["--public-url", &cluster.url(0)], &[base]).await;
    assert!(other.contains(&"outside.well_known".to_owned()), "{other:?}");
    for object in objects(&cluster) {
        std::fs::remove_file(object).expect("removed");
    }
    assert_eq!(names(&cluster).await, ["media.lost"]);
    assert_eq!(cluster.run(&["admin", "signing-key", "rotate"], &[]).await.status.code(), Some(0));
    assert!(names(&cluster).await.contains(&"replicas.signing_key".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_postgresql_is_found() {
    if on_sqlite() {
        return;
    }
    let cluster = start(&[]).await;
    let alice = cluster.user("alice").await;
    until_all_report(&cluster).await;
    let database = cluster.database_url().rsplit('/').next().expect("a name").to_owned();
    let read_only = format!("ALTER DATABASE {database} SET default_transaction_read_only = on");
    let writable =
        format!("BEGIN READ WRITE; ALTER DATABASE {database} RESET default_transaction_read_only; COMMIT");
    let jobs = "INSERT INTO jobs VALUES ('late', 'nothing', '', 1000, 9000000000000000, 3)";
    let waiting = format!(
        "INSERT INTO to_device SELECT 8, -n, '{}', '{}', '{0}', 't', '{{}}' FROM generate_series(1, 100000) n",
        alice.id, alice.device
    );
    let replicas =
        |from: &str, to: &str| format!("UPDATE replicas SET status = REPLACE(status, '{from}', '{to}')");
    for (provoke, mend, expected) in [
        ("DROP INDEX jobs_run_at", "CREATE INDEX jobs_run_at ON jobs (run_at)", "database.indexes"),
        (
            "ALTER FUNCTION append_messages RENAME TO renamed",
            "ALTER FUNCTION renamed RENAME TO append_messages",
            "database.functions",
        ),
        (read_only.as_str(), writable.as_str(), "database.read_only"),
        (
            "ALTER TABLE filters ALTER COLUMN definition TYPE TEXT COLLATE \"default\"",
            "ALTER TABLE filters ALTER COLUMN definition TYPE TEXT COLLATE \"C\"",
            "database.collation",
        ),
        (
            "INSERT INTO seaql_migrations VALUES ('m9999_of_the_future', 0)",
            "DELETE FROM seaql_migrations WHERE version LIKE 'm9999%'",
            "database.newer_schema",
        ),
        (
            "UPDATE seaql_migrations SET version = 'm0013_renamed' WHERE version LIKE 'm0013%'",
            "UPDATE seaql_migrations SET version = 'm0013_revoked_key_sets' WHERE version LIKE 'm0013%'",
            "database.schema",
        ),
        (jobs, "DELETE FROM jobs WHERE job_id = 'late'", "jobs.overdue"),
        (&waiting, "SELECT 1", "to_device.full"),
        ("UPDATE devices SET last_seen_ts = 0", "DELETE FROM to_device", "to_device.dead"),
        ("UPDATE replicas SET skew_ms = 60000", "UPDATE replicas SET skew_ms = 0", "replicas.clock"),
        ("UPDATE replicas SET seen_ts = seen_ts - 60000", "SELECT 1", "replicas.gone"),
        (&replicas("\"hints\":true", "\"hints\":false"), "SELECT 1", "replicas.hints"),
        (&replicas("\"stale_ms\":", "\"stale_ms\":99999"), "SELECT 1", "replicas.behind"),
        (
            "UPDATE replicas SET status = REPLACE(status, '\"version\":\"', '\"version\":\"9.') \
             WHERE replica_id = (SELECT MIN(replica_id) FROM replicas)",
            "SELECT 1",
            "replicas.version",
        ),
    ] {
        // A replica that reports between the two undoes what concerns it.
        eventually(&format!("{expected} is found"), || async {
            cluster.sql(provoke).await;
            let found = names(&cluster).await;
            found.contains(&expected.to_owned()).then_some(())
        })
        .await;
        cluster.sql(mend).await;
    }
    cluster.sql("ALTER TABLE filters ALTER COLUMN definition TYPE TEXT COLLATE \"C\"").await;
    until_all_report(&cluster).await;
}

/// A pooler in transaction mode passes everything on but notifications.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_loses_notifications_is_found() {
    if on_sqlite() {
        return;
    }
    let cluster = start(&[]).await;
    until_all_report(&cluster).await;
    let url = cluster.database_url();
    let (user, place) = url.rsplit_once('@').expect("a user");
    let (server, database) = place.split_once('/').expect("a database");
    let through = pooler(server.to_owned()).await;
    let url = format!("{user}@{through}/{database}?sslmode=disable");
    let (found, _) = found(&cluster, &[], &[("KEYSTEAD_DATABASE_URL", &url)]).await;
    assert_eq!(found, ["database.notifications"]);
}

/// Passes connections to PostgreSQL on, without the messages `NotificationResponse`. Returns its address.
///
/// <https://www.postgresql.org/docs/current/protocol-message-formats.html>
async fn pooler(server: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.expect("PostgreSQL");
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                while let Ok(kind) = from_server.read_u8().await {
                    let length = from_server.read_u32().await?;
                    let mut body = vec![0; usize::try_from(length).expect("small") - 4];
                    from_server.read_exact(&mut body).await?;
                    if kind != b'A' {
                        to_client.write_u8(kind).await?;
                        to_client.write_u32(length).await?;
                        to_client.write_all(&body).await?;
                    }
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
    address
}

#[test]
fn doctor_explains_itself() {
    let output = process::command("doctor").arg("--help").output().expect("it ran");
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(help.contains("--public-url") && help.contains("--replicas"), "{help}");
}

trait Sorted {
    fn sorted(self) -> Vec<String>;
}

impl<const N: usize> Sorted for [&str; N] {
    /// In the order in which doctor looks.
    fn sorted(self) -> Vec<String> {
        let mut names: Vec<String> = self.iter().map(|name| (*name).to_owned()).collect();
        names.sort_by_key(|name| !name.starts_with("replicas"));
        names
    }
}
