//! Media: what is uploaded through one replica is downloaded through the other, whole and in parts, and what breaks off
//! leaves nothing behind.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::Method;
use keystead_tests::{
    Response, TestCluster, User, eventually,
    http::{Request, encode},
    process,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub(crate) const DOWNLOAD: &str = "/_matrix/client/v1/media/download";

/// Bytes that differ from place to place.
pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 256).expect("a byte")).collect()
}

pub(crate) fn upload(name: &str, content_type: &str, body: Vec<u8>) -> Request {
    let path = format!("/_matrix/media/v3/upload?filename={}", encode(name));
    Request::new(Method::POST, path).bytes(content_type, body)
}

/// `server/id` of what was uploaded.
pub(crate) async fn uploaded(user: &User, request: Request) -> String {
    path_of(&user.send(request).await.ok())
}

pub(crate) fn path_of(answer: &Value) -> String {
    let address = answer["content_uri"].as_str().expect("an address");
    let path = address.strip_prefix("mxc://").expect("an mxc address");
    assert!(path.starts_with("keystead.test/") && path.len() > "keystead.test/".len() + 40, "{path}");
    path.to_owned()
}

pub(crate) async fn download(user: &User, path: &str) -> Response {
    user.send(Request::new(Method::GET, format!("{DOWNLOAD}/{path}"))).await
}

pub(crate) async fn part(user: &User, path: &str, range: &str) -> Response {
    user.send(Request::new(Method::GET, format!("{DOWNLOAD}/{path}")).header("range", range)).await
}

/// All files below the media folder, but for the mark of the place.
pub(crate) fn objects(cluster: &TestCluster) -> Vec<PathBuf> {
    fn files(folder: &Path) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }
    let mut files = files(&cluster.folder().join("media"));
    files.retain(|path| !path.components().any(|part| part.as_os_str() == "keystead-place"));
    files
}

pub(crate) async fn pair() -> (Arc<TestCluster>, User, User) {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await.at(0);
    let bob = cluster.user("bob").await.at(1);
    (cluster, alice, bob)
}

#[tokio::test]
async fn a_file_goes_in_through_one_replica_and_comes_out_of_the_other() {
    let (_cluster, alice, bob) = pair().await;
    let content = bytes(1_500_000);
    let path = uploaded(&alice, upload("a picture.png", "image/png", content.clone())).await;

    let answer = download(&bob, &path).await;
    assert_eq!((answer.status, answer.bytes.len()), (200, content.len()));
    assert!(answer.bytes == content);
    assert_eq!(answer.header("content-type"), "image/png");
    assert_eq!(answer.header("content-length"), "1500000");
    assert_eq!(answer.header("content-disposition"), "inline; filename=\"a picture.png\"");
    assert_eq!(answer.header("accept-ranges"), "bytes");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("cross-origin-resource-policy"), "cross-origin");
    assert!(answer.header("content-security-policy").starts_with("sandbox; default-src 'none'"));
    let etag = answer.header("etag").to_owned();

    let again = Request::new(Method::GET, format!("{DOWNLOAD}/{path}")).header("if-none-match", &etag);
    let again = bob.send(again).await;
    assert_eq!((again.status, again.bytes.len()), (304, 0));
    let head = bob.send(Request::new(Method::HEAD, format!("{DOWNLOAD}/{path}"))).await;
    assert_eq!((head.status, head.header("content-length"), head.bytes.len()), (200, "1500000", 0));

    let empty = uploaded(&alice, upload("nothing", "text/plain", Vec::new())).await;
    let answer = download(&bob, &empty).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, "0"));
}

#[tokio::test]
async fn parts_of_a_file_are_given_as_asked() {
    let (_cluster, alice, bob) = pair().await;
    let content = bytes(300_000);
    let path = uploaded(&alice, upload("f", "application/zip", content.clone())).await;
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=100000-200000", 100_000, 200_001),
        ("bytes=299999-", 299_999, 300_000),
        ("bytes=-10", 299_990, 300_000),
        ("bytes=5-999999999", 5, 300_000),
    ] {
        let answer = part(&bob, &path, range).await;
        assert_eq!(answer.status, 206, "{range}: {}", answer.text);
        assert!(answer.bytes == content[from..to], "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/300000", to - 1));
    }
    for range in ["bytes=300000-", "bytes=-0", "bytes=999999999999999999999-"] {
        let answer = part(&bob, &path, range).await;
        assert_eq!(answer.header("content-range"), "bytes */300000", "{range}");
        answer.refused(416, "M_INVALID_PARAM");
    }
    for range in ["bytes=5-1", "bytes=0-1,3-4", "lines=1-2", "nonsense"] {
        let answer = part(&bob, &path, range).await;
        assert_eq!((answer.status, answer.bytes.len()), (200, 300_000), "{range}");
    }
    let etag = download(&bob, &path).await.header("etag").to_owned();
    for (tag, status) in [(etag.as_str(), 206), ("\"another\"", 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)]
    {
        let request = Request::new(Method::GET, format!("{DOWNLOAD}/{path}"));
        let answer = bob.send(request.header("range", "bytes=1-2").header("if-range", tag)).await;
        assert_eq!(answer.status, status, "{tag}");
    }
}

#[tokio::test]
async fn strangers_other_servers_and_the_frozen_endpoints_get_nothing() {
    let (cluster, alice, bob) = pair().await;
    let path = uploaded(&alice, upload("f", "text/plain", b"for members".to_vec())).await;
    let id = path.strip_prefix("keystead.test/").expect("a path");
    let get = |path: String| Request::new(Method::GET, path);
    cluster.send(get(format!("{DOWNLOAD}/{path}"))).await.refused(401, "M_MISSING_TOKEN");
    for version in ["r0", "v3"] {
        for request in [
            format!("/_matrix/media/{version}/download/{path}"),
            format!("/_matrix/media/{version}/download/{path}/name"),
            format!("/_matrix/media/{version}/thumbnail/{path}?width=32&height=32"),
        ] {
            cluster.send(get(request.clone())).await.refused(404, "M_NOT_FOUND");
            bob.send(get(request)).await.refused(404, "M_NOT_FOUND");
        }
    }
    for other in
        [format!("example.org/{id}"), "keystead.test/nothing".to_owned(), format!("keystead.test/{id}x")]
    {
        download(&bob, &other).await.refused(404, "M_NOT_FOUND");
    }
}

/// An id is looked up, not made a path of: neither what lies beside the file nor what lies above the folder is a medium.
#[tokio::test]
async fn no_media_id_leads_to_another_file() {
    let (_cluster, alice, bob) = pair().await;
    let path = uploaded(&alice, upload("f", "text/plain", b"mine".to_vec())).await;
    let id = path.strip_prefix("keystead.test/").expect("a path");
    for odd in [
        "../../../../etc/passwd".to_owned(),
        "/etc/passwd".to_owned(),
        "..".to_owned(),
        format!("./{id}"),
        format!("../media/{id}"),
        format!("{id}/."),
        "keystead-place".to_owned(),
        "keystead.db".to_owned(),
    ] {
        let odd = format!("keystead.test/{}", encode(&odd));
        download(&bob, &odd).await.refused(404, "M_NOT_FOUND");
        let thumbnail = format!("/_matrix/client/v1/media/thumbnail/{odd}?width=32&height=32");
        bob.send(Request::new(Method::GET, thumbnail)).await.refused(404, "M_NOT_FOUND");
        let put =
            Request::new(Method::PUT, format!("/_matrix/media/v3/upload/{odd}")).bytes("text/plain", "x");
        bob.send(put).await.refused(404, "M_NOT_FOUND");
    }
    download(&bob, &format!("{path}%00")).await.refused(400, "M_INVALID_PARAM");
    assert_eq!(download(&bob, &path).await.bytes, b"mine".as_slice());
}

#[tokio::test]
async fn odd_names_and_types_do_no_harm() {
    let (_cluster, alice, bob) = pair().await;
    for (name, content_type, disposition) in [
        ("../../etc/passwd", "text/html", "attachment; filename=.._.._etc_passwd"),
        ("ünï\u{202e}cödé.txt", "text/plain", "inline; filename*=utf-8''%C3%BCn%C3%AFc%C3%B6d%C3%A9.txt"),
        ("a\r\nx: y", "image/svg+xml", "attachment; filename=\"ax: y\""),
        ("\"quoted\"", "text/javascript", "attachment; filename=\"\\\"quoted\\\"\""),
        ("", "application/pdf", "attachment"),
    ] {
        let path = uploaded(&alice, upload(name, content_type, b"<script>".to_vec())).await;
        let answer = download(&bob, &path).await;
        assert_eq!(answer.header("content-disposition"), disposition, "{name:?}");
        assert_eq!(answer.header("content-type"), content_type);
        let renamed =
            bob.send(Request::new(Method::GET, format!("{DOWNLOAD}/{path}/other%2Fname.bin"))).await;
        assert!(renamed.header("content-disposition").ends_with("filename=other_name.bin"));
    }
    let untyped = Request::new(Method::POST, "/_matrix/media/v3/upload").bytes("no type", "x");
    let path = uploaded(&alice, untyped).await;
    assert_eq!(download(&bob, &path).await.header("content-type"), "application/octet-stream");
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_leaves_nothing() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_MEDIA_MAX_UPLOAD_BYTES", "100000")]).await;
    let alice = cluster.user("alice").await;
    for path in ["/_matrix/client/v1/media/config", "/_matrix/media/v3/config"] {
        let config = alice.send(Request::new(Method::GET, path)).await.ok();
        assert_eq!(config["m.upload.size"], 100_000);
    }
    alice.send(upload("f", "text/plain", bytes(100_001))).await.refused(413, "M_TOO_LARGE");
    uploaded(&alice, upload("f", "text/plain", bytes(100_000))).await;
    assert_eq!(objects(&cluster).len(), 1);

    // Whoever sends all of it before reading the answer gets the answer, too.
    let mut stream = begin(&cluster, &alice, "Content-Length: 20000000").await;
    stream.write_all(&bytes(20_000_000)).await.expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");
    // But nobody is told to go on with what is not wanted.
    let mut stream = begin(&cluster, &alice, "Content-Length: 20000000\r\nExpect: 100-continue").await;
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");

    // Without an announced length it is noticed on the way.
    let mut stream = begin(&cluster, &alice, "Transfer-Encoding: chunked").await;
    let chunk = [format!("{:x}\r\n", 60_000).into_bytes(), bytes(60_000), b"\r\n".to_vec()].concat();
    for _ in 0..2 {
        stream.write_all(&chunk).await.expect("sent");
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");
    eventually("nothing is left", || async { (objects(&cluster).len() == 1).then_some(()) }).await;
}

/// Sends the head of an upload to the first replica.
pub(crate) async fn begin(cluster: &TestCluster, user: &User, length: &str) -> TcpStream {
    let url = cluster.url(0);
    let address = url.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let head = format!(
        "POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n{length}\r\n\r\n",
        user.token
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let (cluster, alice, _bob) = pair().await;
    let mut stream = begin(&cluster, &alice, "Content-Length: 5000000").await;
    stream.write_all(&bytes(1_000_000)).await.expect("sent");
    eventually("it has begun", || async { (!objects(&cluster).is_empty()).then_some(()) }).await;
    drop(stream);
    eventually("nothing is left", || async { objects(&cluster).is_empty().then_some(()) }).await;
    let dump = cluster.dump_database().await;
    assert!(cluster.size() == 1 || !dump.contains("discard_media"), "the job is done with as well");
}

#[tokio::test]
async fn an_address_can_be_reserved_and_used_once_by_its_owner() {
    let (_cluster, alice, bob) = pair().await;
    let create = || Request::new(Method::POST, "/_matrix/media/v1/create").json(&json!({}));
    let answer = alice.send(create()).await.ok();
    assert!(answer["unused_expires_at"].as_u64().is_some_and(|at| at > 1_700_000_000_000));
    let path = path_of(&answer);
    let put = |path: &str, body: &str| {
        let path = format!("/_matrix/media/v3/upload/{path}?filename=late.txt");
        Request::new(Method::PUT, path).bytes("text/plain", body.to_owned())
    };

    let early = Request::new(Method::GET, format!("{DOWNLOAD}/{path}?timeout_ms=100"));
    bob.send(early).await.refused(504, "M_NOT_YET_UPLOADED");
    let waiting = tokio::spawn({
        let (bob, path) = (bob.clone(), path.clone());
        async move { bob.send(Request::new(Method::GET, format!("{DOWNLOAD}/{path}?timeout_ms=30000"))).await }
    });
    bob.send(put(&path, "not mine")).await.refused(403, "M_FORBIDDEN");
    bob.send(put("keystead.test/nothing", "x")).await.refused(404, "M_NOT_FOUND");
    bob.send(put("example.org/nothing", "x")).await.refused(404, "M_NOT_FOUND");
    alice.send(put(&path, "here it is")).await.ok();
    let answer = waiting.await.expect("an answer");
    assert_eq!((answer.status, answer.text.as_str()), (200, "here it is"));
    assert_eq!(answer.header("content-disposition"), "inline; filename=late.txt");
    alice.at(1).send(put(&path, "another")).await.refused(409, "M_CANNOT_OVERWRITE_MEDIA");
    let at_once = uploaded(&alice, upload("f", "text/plain", b"x".to_vec())).await;
    alice.send(put(&at_once, "another")).await.refused(409, "M_CANNOT_OVERWRITE_MEDIA");

    // The first one was used; from here on a hundred are too many.
    for _ in 0..100 {
        alice.send(create()).await.ok();
    }
    alice.at(1).send(create()).await.refused(429, "M_LIMIT_EXCEEDED");
    bob.send(create()).await.ok();
}

/// A PNG of one grey, said to have another size, with its rows stored rather than compressed.
pub(crate) fn grey_png(width: u32, height: u32, told: (u32, u32)) -> Vec<u8> {
    let row = [vec![0], vec![128; usize::try_from(width).expect("small")]].concat();
    let rows = row.repeat(usize::try_from(height).expect("small"));
    let mut zlib = vec![0x78, 1];
    let count = rows.chunks(65_535).count();
    for (number, block) in rows.chunks(65_535).enumerate() {
        let length = u16::try_from(block.len()).expect("a block");
        zlib.push(u8::from(number + 1 == count));
        zlib.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
        zlib.extend(block);
    }
    let (a, b) = rows.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    zlib.extend((b << 16 | a).to_be_bytes());
    let head = [&told.0.to_be_bytes()[..], &told.1.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", &head), (b"IDAT", &zlib), (b"IEND", &Vec::new())] {
        let chunk = [&kind[..], data].concat();
        let sum = !chunk.iter().fold(!0_u32, |sum, byte| {
            (0..8)
                .fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
        });
        png.extend(u32::try_from(data.len()).expect("small").to_be_bytes());
        png.extend(chunk);
        png.extend(sum.to_be_bytes());
    }
    png
}

#[tokio::test]
async fn thumbnails_are_made_once_and_bombs_are_not_decoded() {
    let (cluster, alice, bob) = pair().await;
    let thumbnail = |path: &str, query: &str| {
        Request::new(Method::GET, format!("/_matrix/client/v1/media/thumbnail/{path}?{query}"))
    };
    let picture = grey_png(400, 300, (400, 300));
    let path = uploaded(&alice, upload("grey.png", "image/png", picture.clone())).await;
    let made = bob.send(thumbnail(&path, "width=90&height=90&method=crop")).await;
    assert_eq!((made.status, made.header("content-type")), (200, "image/jpeg"), "{}", made.text);
    assert_eq!(made.header("content-disposition"), "inline");
    assert!(made.bytes.len() < 5_000 && made.bytes.starts_with(&[0xff, 0xd8]));
    assert_eq!(objects(&cluster).len(), 2);
    for replica in 0..2 {
        let again =
            bob.at(replica).send(thumbnail(&path, "width=96&height=96&method=crop&animated=true")).await;
        assert!(again.bytes == made.bytes && again.header("etag") == made.header("etag"));
    }
    assert_eq!(objects(&cluster).len(), 2);
    // It is never made larger than it is.
    let whole = bob.send(thumbnail(&path, "width=640&height=480")).await;
    assert!(whole.bytes == picture);
    assert_eq!(whole.header("content-type"), "image/png");

    let bomb = uploaded(&alice, upload("bomb.png", "image/png", grey_png(10, 10, (19_000, 19_000)))).await;
    bob.send(thumbnail(&bomb, "width=96&height=96")).await.refused(413, "M_TOO_LARGE");
    let text = uploaded(&alice, upload("t.png", "image/png", b"no picture".to_vec())).await;
    bob.send(thumbnail(&text, "width=96&height=96")).await.refused(400, "M_UNKNOWN");
    bob.send(thumbnail("keystead.test/nothing", "width=96&height=96")).await.refused(404, "M_NOT_FOUND");
    bob.send(thumbnail("example.org/x", "width=96&height=96")).await.refused(404, "M_NOT_FOUND");
    bob.send(thumbnail(&path, "width=x&height=96")).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn a_replica_with_another_place_for_media_does_not_start() {
    let (cluster, alice, bob) = pair().await;
    let path = uploaded(&alice, upload("f", "text/plain", b"in the first place".to_vec())).await;
    let mut command = process::command("serve");
    command.env("KEYSTEAD_SERVER_NAME", "keystead.test");
    command.env("KEYSTEAD_DATABASE_URL", cluster.database_url());
    command.env("KEYSTEAD_MEDIA_FOLDER", cluster.folder().join("elsewhere"));
    command.env("KEYSTEAD_SERVER_LISTEN", "127.0.0.1:0");
    let output =
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it ran");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("all replicas have to share one place"), "{told}");
    assert_eq!(download(&bob, &path).await.text, "in the first place");
}

#[tokio::test]
async fn an_avatar_is_a_medium() {
    let (_cluster, alice, bob) = pair().await;
    let path = uploaded(&alice, upload("me.png", "image/png", bytes(100))).await;
    let field = format!("/profile/{}/avatar_url", encode(&alice.id));
    alice.put(&field, json!({ "avatar_url": format!("mxc://{path}") })).await.ok();
    let address = bob.get(&field).await.ok()["avatar_url"].as_str().expect("an address").to_owned();
    let answer = download(&bob, address.strip_prefix("mxc://").expect("an mxc address")).await;
    assert!(answer.bytes == bytes(100));
}
