//! Previews of pages on the web, from a web server on this machine that the tests allow, and nothing else here.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hyper::Method;
use keystead_tests::{
    Response, TestCluster, User,
    http::{Request, encode},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::media::{download, grey_png};

const PREVIEW: &str = "/_matrix/client/v1/media/preview_url";

/// A web server with a page, its picture and traps; gives its address and how often it was asked.
async fn web() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut request = vec![0; 8_192];
                let length = stream.read(&mut request).await.unwrap_or_default();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                stream.write_all(&answer(request.split(' ').nth(1).unwrap_or_default())).await.ok();
            });
        }
    });
    (base, asked)
}

fn answer(path: &str) -> Vec<u8> {
    let ok = |kind: &str, body: &[u8]| {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let page = |image: &str| {
        let page = format!(
            "<html><head><title>t</title><meta property=og:title content='A page'>\
             <meta property=og:image content='{image}'></head>"
        );
        ok("text/html; charset=utf-8", page.as_bytes())
    };
    match path {
        "/page" => page("/grey.png"),
        "/hidden-picture" => page("http://127.0.0.2:1/x.png"),
        "/no-picture" => page("/text.png"),
        "/text.png" => ok("image/png", b"<script>"),
        "/grey.png" => ok("image/png", &grey_png(40, 30, (40, 30))),
        "/bomb.png" => ok("image/png", &grey_png(10, 10, (19_000, 19_000))),
        "/zip" => ok("application/zip", b"PK"),
        "/inner" => {
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:1/\r\nContent-Length: 0\r\n\r\n".to_vec()
        }
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    }
}

async fn preview(user: &User, url: &str) -> Response {
    user.send(Request::new(Method::GET, format!("{PREVIEW}?url={}", encode(url)))).await
}

#[tokio::test]
async fn a_page_is_looked_at_once_for_all_replicas() {
    let settings = [
        ("KEYSTEAD_URL_PREVIEW_ENABLED", "true"),
        ("KEYSTEAD_URL_PREVIEW_ALLOWED_NETWORKS", "127.0.0.1"),
        ("KEYSTEAD_MEDIA_USER_QUOTA_BYTES", "1"),
    ];
    let cluster = TestCluster::start_with(&settings).await;
    let (alice, bob) = (cluster.user("alice").await.at(0), cluster.user("bob").await.at(1));
    let (base, asked) = web().await;

    let told = preview(&alice, &format!("{base}/page#there")).await.ok();
    assert_eq!((&told["og:title"], &told["og:image:type"]), (&"A page".into(), &"image/png".into()));
    assert_eq!((&told["og:image:width"], &told["og:image:height"]), (&40.into(), &30.into()));
    let picture = grey_png(40, 30, (40, 30));
    assert_eq!(told["matrix:image:size"], picture.len());
    let address =
        told["og:image"].as_str().and_then(|url| url.strip_prefix("mxc://")).expect("an mxc address");
    let sent = download(&bob, address).await;
    assert!(sent.bytes == picture && sent.header("content-type") == "image/png");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    for user in [&alice, &bob] {
        assert_eq!(preview(user, &format!("{base}/page")).await.ok(), told);
    }
    let legacy = format!("/_matrix/media/v3/preview_url?url={}", encode(&format!("{base}/page")));
    assert_eq!(bob.send(Request::new(Method::GET, legacy)).await.ok(), told);
    assert_eq!(asked.load(Ordering::SeqCst), 2);

    // A picture by itself, pictures that cannot be had, and what is neither.
    assert_eq!(preview(&alice, &format!("{base}/grey.png")).await.ok()["og:image:width"], 40);
    for path in ["/hidden-picture", "/no-picture"] {
        let told = preview(&alice, &format!("{base}{path}")).await.ok();
        assert_eq!(told, serde_json::json!({ "og:title": "A page" }), "{path}");
    }
    for path in ["/zip", "/bomb.png"] {
        assert_eq!(preview(&alice, &format!("{base}{path}")).await.ok(), serde_json::json!({}), "{path}");
    }

    // Whatever is wrong, the answer is the same, and a failure is not tried again at once.
    let before = asked.load(Ordering::SeqCst);
    let inner = ["http://127.0.0.2:1/", "http://169.254.169.254/", "http://10.0.0.1/", "http://[::1]:1/"];
    let mut texts = Vec::new();
    for url in inner.map(str::to_owned).into_iter().chain([
        "http://localhost.:1/".to_owned(),
        "http://no-such-name.invalid/".to_owned(),
        format!("{base}/inner"),
        format!("{base}/missing"),
    ]) {
        for user in [&alice, &bob] {
            let refused = preview(user, &url).await.refused(502, "M_UNKNOWN");
            texts.push(refused["error"].as_str().expect("a text").to_owned());
        }
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert_eq!(asked.load(Ordering::SeqCst), before + 2);
    for url in
        ["", "page", "ftp://example.org/", "file:///etc/passwd", "http://user:pass@example.org/", "http://"]
    {
        preview(&alice, url).await.refused(400, "M_INVALID_PARAM");
    }
    alice.send(Request::new(Method::GET, PREVIEW)).await.refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn pages_are_not_looked_at_unless_that_is_switched_on() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let (base, asked) = web().await;
    preview(&alice, &format!("{base}/page")).await.refused(404, "M_UNRECOGNIZED");
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
