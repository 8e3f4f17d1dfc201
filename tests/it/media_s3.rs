//! Media in a bucket of a real S3 service: all that a folder does, in constant memory, and nothing left behind.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use hyper::Method;
use keystead_tests::{TestCluster, eventually, http::Request, process, seaweedfs::SeaweedFs};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::media::{begin, bytes, download, grey_png, part, upload, uploaded};

const MIB: usize = 1024 * 1024;

async fn start(more: &[(&'static str, &str)]) -> Option<(SeaweedFs, Arc<TestCluster>)> {
    let s3 = SeaweedFs::start().await?;
    let mut settings = s3.settings("one");
    settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let cluster = TestCluster::start_with(&settings).await;
    Some((s3, cluster))
}

/// What is in the bucket, but for the mark of the place.
async fn objects(s3: &SeaweedFs) -> Vec<String> {
    let mut files = s3.files("one").await;
    files.retain(|path| !path.contains("/keystead-place/"));
    files
}

#[tokio::test]
async fn files_go_into_a_bucket_and_come_out_whole_and_in_parts() {
    let Some((s3, cluster)) = start(&[("KEYSTEAD_MEDIA_MAX_UPLOAD_BYTES", "20000000")]).await else { return };
    let (alice, bob) = (cluster.user("alice").await.at(0), cluster.user("bob").await.at(1));

    // One part, exactly one, several, and none.
    for length in [0, 100, 5 * MIB, 5 * MIB + 1, 13_000_000] {
        let content = bytes(length);
        let path = uploaded(&alice, upload("f", "application/zip", content.clone())).await;
        let answer = download(&bob, &path).await;
        assert_eq!((answer.status, answer.bytes.len()), (200, length));
        assert!(answer.bytes == content, "{length} bytes");
        if length > 5 * MIB {
            let answer = part(&bob, &path, "bytes=5242870-5242880").await;
            assert_eq!(answer.status, 206);
            assert!(answer.bytes == content[5_242_870..5_242_881]);
        }
    }
    let before = objects(&s3).await;
    assert_eq!(before.len(), 5, "{before:?}");
    assert!(!before.iter().any(|path| path.contains(".uploads")), "{before:?}");

    let picture = uploaded(&alice, upload("p.png", "image/png", grey_png(400, 300, (400, 300)))).await;
    let path = format!("/_matrix/client/v1/media/thumbnail/{picture}?width=96&height=96&method=crop");
    let made = bob.send(Request::new(Method::GET, path.clone())).await;
    assert_eq!((made.status, made.header("content-type")), (200, "image/jpeg"));
    assert!(alice.send(Request::new(Method::GET, path)).await.bytes == made.bytes);

    // An upload that breaks off after parts of it were sent leaves neither object nor parts.
    let before = objects(&s3).await.len();
    let mut stream = begin(&cluster, &alice, "Content-Length: 19000000").await;
    stream.write_all(&bytes(17_000_000)).await.expect("sent");
    eventually("parts have arrived", || async { (objects(&s3).await.len() > before).then_some(()) }).await;
    drop(stream);
    eventually("nothing is left", || async { (objects(&s3).await.len() == before).then_some(()) }).await;
}

#[tokio::test]
async fn a_replica_with_another_bucket_does_not_start() {
    let Some((s3, cluster)) = start(&[]).await else { return };
    for (bucket, secret, expected) in
        [("two", None, "all replicas have to share one place"), ("one", Some("wrong"), "cannot be used")]
    {
        let mut command = process::command("serve");
        command.envs(s3.settings(bucket));
        command.env("KEYSTEAD_SERVER_NAME", "keystead.test");
        command.env("KEYSTEAD_DATABASE_URL", cluster.database_url());
        command.env("KEYSTEAD_SERVER_LISTEN", "127.0.0.1:0");
        if let Some(secret) = secret {
            command.env("KEYSTEAD_MEDIA_S3_SECRET_ACCESS_KEY", secret);
        }
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it ran");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(expected), "{told}");
        assert!(!told.contains("secret-of-the-tests"));
    }
}

/// The resident memory of the first replica, in MiB.
async fn memory(cluster: &TestCluster) -> u64 {
    let metrics = cluster.send_to(0, Request::new(Method::GET, "/metrics")).await.text;
    let line =
        metrics.lines().find(|line| line.starts_with("process_resident_memory_bytes ")).expect("a metric");
    let bytes: f64 = line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number");
    format!("{:.0}", bytes / 1_048_576.0).parse().expect("a whole number")
}

#[tokio::test]
async fn a_large_file_passes_in_constant_memory() {
    let Some((_s3, cluster)) = start(&[]).await else { return };
    let alice = cluster.user("alice").await.at(0);
    uploaded(&alice, upload("f", "text/plain", bytes(6 * MIB))).await;
    let (before, peak) = (memory(&cluster).await, Arc::new(AtomicU64::new(0)));
    let watching = tokio::spawn({
        let (cluster, peak) = (Arc::clone(&cluster), Arc::clone(&peak));
        async move {
            loop {
                peak.fetch_max(memory(&cluster).await, Ordering::Relaxed);
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    });
    let count = 250;
    let mut stream = begin(&cluster, &alice, &format!("Content-Length: {}", count * MIB)).await;
    let piece = bytes(MIB);
    for _ in 0..count {
        stream.write_all(&piece).await.expect("sent");
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    watching.abort();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let peak = peak.load(Ordering::Relaxed);
    assert!(peak < before + 64, "{before} MiB before, {peak} MiB while {count} MiB passed");
}
