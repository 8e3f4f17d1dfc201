//! Looking after media: quotas that hold on all replicas at once, and deletion of which nothing is left.

use std::{path::PathBuf, process::Output};

use hyper::Method;
use keystead_tests::{
    TestCluster, User,
    cluster::{PASSWORD, SERVER_NAME},
    eventually,
    http::Request,
    process,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::media::{begin, bytes, download, grey_png, objects, pair, path_of, upload, uploaded};

/// Runs `keystead admin media`, with the media in `folder`.
async fn try_admin(cluster: &TestCluster, folder: PathBuf, arguments: &[&str]) -> Output {
    let mut command = process::command("admin");
    command.arg("media").args(arguments);
    command.env("KEYSTEAD_SERVER_NAME", SERVER_NAME);
    command.env("KEYSTEAD_DATABASE_URL", cluster.database_url());
    command.env("KEYSTEAD_MEDIA_FOLDER", folder);
    tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it ran")
}

async fn admin(cluster: &TestCluster, arguments: &[&str]) -> String {
    let output = try_admin(cluster, cluster.folder().join("media"), arguments).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

async fn thumbnail(user: &User, path: &str) -> u16 {
    let path = format!("/_matrix/client/v1/media/thumbnail/{path}?width=96&height=96&method=crop");
    user.send(Request::new(Method::GET, path)).await.status
}

#[tokio::test]
async fn a_quota_holds_whatever_replicas_a_user_uploads_to() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_MEDIA_USER_QUOTA_BYTES", "200000")]).await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let first = uploaded(&alice, upload("f", "text/plain", bytes(150_000))).await;
    for replica in 0..2 {
        let refused = alice.at(replica).send(upload("f", "text/plain", bytes(50_001))).await;
        refused.refused(403, "M_FORBIDDEN");
    }
    // Without an announced length it is noticed on the way.
    let mut stream = begin(&cluster, &alice, "Transfer-Encoding: chunked").await;
    let chunk = [format!("{:x}\r\n", 60_000).into_bytes(), bytes(60_000), b"\r\n".to_vec()].concat();
    stream.write_all(&chunk).await.expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 403");
    eventually("nothing is left", || async { (objects(&cluster).len() == 1).then_some(()) }).await;

    // Reserved addresses are no way around, and others have their own quota.
    let create = Request::new(Method::POST, "/_matrix/media/v1/create").json(&json!({}));
    let reserved = path_of(&alice.send(create).await.ok());
    let put = Request::new(Method::PUT, format!("/_matrix/media/v3/upload/{reserved}"));
    alice.send(put.bytes("text/plain", bytes(50_001))).await.refused(403, "M_FORBIDDEN");
    uploaded(&bob, upload("f", "text/plain", bytes(200_000))).await;

    // What is deleted counts no more.
    admin(&cluster, &["delete", &format!("mxc://{first}")]).await;
    let uploads = (0..12).map(|number| {
        let alice = alice.at(number);
        tokio::spawn(async move { alice.send(upload("f", "text/plain", bytes(40_000))).await.status })
    });
    let mut statuses = Vec::new();
    for upload in uploads.collect::<Vec<_>>() {
        statuses.push(upload.await.expect("no panic"));
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![200; 5], vec![403; 7]].concat());
    eventually("nothing is left", || async { (objects(&cluster).len() == 6).then_some(()) }).await;
}

#[tokio::test]
async fn a_page_about_the_quota_is_named_where_there_is_one() {
    let settings =
        [("KEYSTEAD_MEDIA_USER_QUOTA_BYTES", "10"), ("KEYSTEAD_SUPPORT_PAGE", "https://help.example")];
    let cluster = TestCluster::start_with(&settings).await;
    let alice = cluster.user("alice").await;
    let refused =
        alice.send(upload("f", "text/plain", bytes(11))).await.refused(403, "M_USER_LIMIT_EXCEEDED");
    assert_eq!(refused["info_uri"], "https://help.example");
}

#[tokio::test]
async fn what_is_deleted_is_gone_from_database_and_disk() {
    let (cluster, alice, bob) = pair().await;
    let picture = uploaded(&alice, upload("p.png", "image/png", grey_png(400, 300, (400, 300)))).await;
    let other = uploaded(&alice, upload("other", "text/plain", b"stays".to_vec())).await;
    assert_eq!(thumbnail(&bob, &picture).await, 200);
    assert_eq!(objects(&cluster).len(), 3);

    // With another place for media, all would seem to be deleted and nothing would be.
    let refused =
        try_admin(&cluster, cluster.folder().join("elsewhere"), &["delete", &format!("mxc://{picture}")])
            .await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in another place"));
    let unknown = try_admin(
        &cluster,
        cluster.folder().join("media"),
        &["delete", &format!("mxc://{other}"), "mxc://example.org/x"],
    )
    .await;
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("mxc://example.org/x"));
    assert_eq!(download(&bob, &other).await.text, "stays");

    admin(&cluster, &["delete", &format!("mxc://{picture}")]).await;
    for user in [&alice, &bob] {
        download(user, &picture).await.refused(404, "M_NOT_FOUND");
        assert_eq!(thumbnail(user, &picture).await, 404);
    }
    assert_eq!(objects(&cluster).len(), 1);
    assert_eq!(download(&bob, &other).await.text, "stays");
    if cluster.size() > 1 {
        let id = picture.strip_prefix("keystead.test/").expect("a path");
        assert!(!cluster.dump_database().await.contains(id));
    }
}

#[tokio::test]
async fn media_are_withheld_listed_and_purged() {
    let (cluster, alice, bob) = pair().await;
    let one = uploaded(&alice, upload("one.txt", "text/plain", b"1".to_vec())).await;
    let two = uploaded(&alice, upload("two.txt", "text/plain", b"22".to_vec())).await;
    let bobs = uploaded(&bob, upload("bobs", "text/plain", b"333".to_vec())).await;

    assert_eq!(
        admin(&cluster, &["quarantine", &format!("mxc://{one}")]).await,
        "Put into quarantine: 1 medium.\n"
    );
    for user in [&alice, &bob] {
        download(user, &one).await.refused(404, "M_NOT_FOUND");
        assert_eq!(download(user, &two).await.text, "22");
    }
    let list = admin(&cluster, &["list", "alice", "--json"]).await;
    let list: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(list.len(), 2);
    assert_eq!(list[0]["address"], format!("mxc://{one}"));
    assert!(list[0]["quarantined_ts"].is_u64() && list[1]["quarantined_ts"].is_null());
    assert_eq!((&list[1]["file_name"], &list[1]["size"]), (&json!("two.txt"), &json!(2)));
    admin(&cluster, &["release", &format!("mxc://{one}")]).await;
    assert_eq!(download(&bob, &one).await.text, "1");

    assert_eq!(admin(&cluster, &["purge", "--older-than-days", "1"]).await, "Deleted 0 media.\n");
    let would = admin(&cluster, &["purge", "--older-than-days", "0", "--dry-run"]).await;
    assert_eq!(would, "3 media with 6 bytes would be deleted.\n");
    let purged = admin(&cluster, &["purge", "--older-than-days", "0", "--user", "alice"]).await;
    assert_eq!(purged, "Deleted 2 media.\n");
    download(&bob, &two).await.refused(404, "M_NOT_FOUND");
    assert_eq!(download(&alice, &bobs).await.text, "333");
    admin(&cluster, &["delete-of-user", "bob"]).await;
    assert!(objects(&cluster).is_empty());
}

#[tokio::test]
async fn an_account_that_is_erased_takes_its_files_along() {
    let (cluster, alice, bob) = pair().await;
    let carol = cluster.user("carol").await;
    let mut paths = Vec::new();
    for user in [&alice, &bob] {
        for number in 0..3 {
            paths.push(uploaded(user, upload("f", "text/plain", bytes(100 + number))).await);
        }
    }
    deactivate(&alice, true).await;
    deactivate(&bob, false).await;
    eventually("Alice's are gone", || async { (objects(&cluster).len() == 3).then_some(()) }).await;
    for (number, path) in paths.iter().enumerate() {
        assert_eq!(download(&carol, path).await.status, if number < 3 { 404 } else { 200 }, "{number}");
    }
}

pub(crate) async fn deactivate(user: &User, erase: bool) {
    let name = user.id.trim_start_matches('@').split(':').next().expect("a name");
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": PASSWORD,
    });
    user.post("/account/deactivate", json!({ "auth": auth, "erase": erase })).await.ok();
}
