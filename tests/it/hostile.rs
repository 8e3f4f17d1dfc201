//! Hostile input: whatever comes, the answer is a 4xx with an errcode, and the server goes on.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use hyper::Method;
use keystead_tests::{
    TestCluster, User,
    http::{Request, Response, encode},
    user::in_room,
};
use serde_json::{Value, json};

use crate::routes;

/// The bodies that every endpoint with a body gets.
fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let deep =
        |open: &str, close: &str, depth: usize| (open.repeat(depth) + &close.repeat(depth)).into_bytes();
    vec![
        ("empty", Vec::new()),
        ("one brace", b"{".to_vec()),
        ("not JSON", b"hello".to_vec()),
        ("truncated", br#"{"password": "x"#.to_vec()),
        ("two values", b"{} {}".to_vec()),
        ("invalid UTF-8", b"{\"body\": \"\xff\xfe\"}".to_vec()),
        ("a lone surrogate", br#"{"body": "\ud800"}"#.to_vec()),
        ("a list", b"[]".to_vec()),
        ("a number", b"7".to_vec()),
        ("null", b"null".to_vec()),
        ("deep lists", deep("[", "]", 100_000)),
        ("deep objects", deep(r#"{"a":"#, "}", 50_000)),
        ("NUL in a name", br#"{"\u0000": "\u0000"}"#.to_vec()),
        (
            "huge numbers",
            br#"{"timeout": 1e999, "limit": 99999999999999999999999999, "order": -1e308}"#.to_vec(),
        ),
        ("wrong types", wrong_types().to_string().into_bytes()),
        ("nulls", nulls().to_string().into_bytes()),
        ("the same name twice", br#"{"type": "a", "type": "b", "user_id": "c", "user_id": "d"}"#.to_vec()),
    ]
}

const NAMES: &[&str] = &[
    "actions",
    "algorithm",
    "auth",
    "auth_data",
    "conditions",
    "creation_content",
    "device_id",
    "device_keys",
    "devices",
    "displayname",
    "enabled",
    "event_fields",
    "identifier",
    "initial_state",
    "invite",
    "keys",
    "master_key",
    "messages",
    "new_password",
    "one_time_keys",
    "password",
    "pattern",
    "reason",
    "refresh_token",
    "room",
    "room_id",
    "room_version",
    "rooms",
    "timeout",
    "type",
    "typing",
    "user_id",
    "username",
    "version",
];

fn wrong_types() -> Value {
    let odd = [json!(7), json!([[]]), json!({ "a": { "b": 1.5 } }), json!(true)];
    NAMES.iter().zip(odd.iter().cycle()).map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn nulls() -> Value {
    NAMES.iter().map(|name| ((*name).to_owned(), Value::Null)).collect()
}

/// What takes the place of every parameter of a path.
const SEGMENTS: &[&str] = &[
    "%00",
    "%ff",
    "%zz",
    "%",
    "..",
    "%2e%2e%2f",
    "%F0%9F%94%91",
    "!",
    "@:",
    "$",
    "%23",
    "-1",
    "99999999999999999999999999",
    "%27%20OR%201=1--",
    "%7B%7D",
];

const QUERIES: &[&str] = &[
    "?since=%00&from=%ff&limit=-1&timeout=99999999999999999999&dir=x&filter=%7B&version=%27",
    "?since=s&from=t&to=x&limit=1e9&timeout=-5&dir=b&filter=%5B%5D&membership=none&ts=no",
    "?=&&&%=%&since",
];

/// Refused in the way of the specification, or accepted; never a fault of the server's.
fn check(what: &str, response: &Response) {
    assert!(response.status < 500, "{what}: {}: {} {}", response.request, response.status, response.text);
    if response.status >= 400 && !response.request.starts_with("HEAD") {
        let interactive = response.status == 401 && response.body.get("flows").is_some();
        let errcode = response.errcode();
        let proper = errcode.starts_with("M_") || errcode.starts_with("COM.TRUSTNER.");
        assert!(interactive || proper, "{what}: {}: {} {}", response.request, response.status, response.text);
    }
}

/// The routes worth the whole table: one path of each endpoint, and none that ends the session it is called with.
fn targets() -> Vec<(Method, String)> {
    let ends_sessions = ["/logout", "/deactivate", "/account/password", "/delete_devices"];
    let all = routes::served();
    let newest =
        |path: &str| !path.contains("/r0/") && !path.contains("/unstable/") && !path.contains("/api/v1/");
    all.into_iter()
        .filter(|route| newest(&route.path) && !ends_sessions.iter().any(|end| route.path.contains(end)))
        .map(|route| (route.method, route.path))
        .collect()
}

fn fill(path: &str, room: &str, user: &User) -> String {
    let segment = |segment: &str| match segment.trim_matches(['{', '}']) {
        name if name == segment => segment.to_owned(),
        "room_id" | "room_id_or_alias" => encode(room),
        "user_id" => encode(&user.id),
        "device_id" => "OTHER".to_owned(),
        "event_id" => "$none".to_owned(),
        "kind" => "override".to_owned(),
        _ => "x".to_owned(),
    };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

fn with_odd_parameters(path: &str, odd: &str) -> String {
    path.split('/')
        .map(|segment| if segment.starts_with('{') { odd } else { segment })
        .collect::<Vec<_>>()
        .join("/")
}

/// Whatever came, a new room can be made and talked in, and nothing panicked.
async fn still_works(alice: &User) {
    let room = alice.create_public_room().await;
    for replica in 0..2 {
        alice.at(replica).send_text(&room, "still here").await;
        let log = alice.cluster.log(replica % alice.cluster.size());
        assert!(!log.contains("panicked at"), "the server panicked");
    }
}

#[tokio::test]
async fn no_body_breaks_an_endpoint() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    let bodies = bodies();
    for (method, path) in targets() {
        if method == Method::GET || method == Method::DELETE {
            continue;
        }
        let path = fill(&path, &room, &alice);
        for (what, body) in &bodies {
            let request = Request::new(method.clone(), &*path).bytes("application/json", body.clone());
            check(what, &alice.send(request).await);
        }
    }
    still_works(&alice).await;
}

#[tokio::test]
async fn no_path_or_query_breaks_an_endpoint() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    for (method, path) in targets() {
        let body = |request: Request| match request.method {
            Method::GET | Method::DELETE => request,
            _ => request.json(&json!({})),
        };
        if path.contains('{') {
            for odd in SEGMENTS {
                let request = Request::new(method.clone(), with_odd_parameters(&path, odd));
                check(odd, &alice.send(body(request)).await);
            }
        }
        for query in QUERIES {
            let request = Request::new(method.clone(), format!("{}{query}", fill(&path, &room, &alice)));
            check(query, &alice.send(body(request)).await);
        }
    }
    still_works(&alice).await;
}

#[tokio::test]
async fn malformed_json_has_the_errcode_that_says_so() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let send = |body: &'static [u8]| {
        let request =
            Request::new(Method::POST, "/_matrix/client/v3/createRoom").bytes("application/json", body);
        alice.send(request)
    };
    send(b"{").await.refused(400, "M_NOT_JSON");
    send(b"\xff").await.refused(400, "M_NOT_JSON");
    send(b"{\"nobody reads this\": \"\xff\"}").await.refused(400, "M_NOT_JSON");
    send(b"[]").await.refused(400, "M_BAD_JSON");
    send(br#"{"invite": 7}"#).await.refused(400, "M_BAD_JSON");
    let room = alice.create_public_room().await;
    let path = format!("/_matrix/client/v3{}", in_room(&room, "/send/m.room.message/1"));
    alice.send(Request::new(Method::PUT, path)).await.refused(400, "M_NOT_JSON");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_as_specified() {
    let cluster = TestCluster::start().await;
    for path in ["/_matrix/client/v3/nonsense", "/_matrix/client/v99/sync", "/_matrix", "/nothing"] {
        cluster.send(Request::new(Method::GET, path)).await.refused(404, "M_UNRECOGNIZED");
    }
    for (method, path) in
        [(Method::DELETE, "/_matrix/client/v3/sync"), (Method::PATCH, "/_matrix/client/v3/login")]
    {
        cluster.send(Request::new(method, path)).await.refused(405, "M_UNRECOGNIZED");
    }
    let preflight = cluster.send(Request::new(Method::OPTIONS, "/_matrix/client/v3/sync")).await;
    assert!([200, 204].contains(&preflight.status), "{}", preflight.status);
    assert_eq!(preflight.headers["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    let text = |size: usize| json!({ "msgtype": "m.text", "body": "x".repeat(size) });
    let path = in_room(&room, "/send/m.room.message/");
    alice.put(&format!("{path}1"), text(60_000)).await.ok();
    alice.put(&format!("{path}2"), text(70_000)).await.refused(413, "M_TOO_LARGE");
    alice
        .put(&in_room(&room, "/state/m.room.topic"), json!({ "topic": "x".repeat(70_000) }))
        .await
        .refused(413, "M_TOO_LARGE");
    let long = "k".repeat(300);
    let odd = alice.put(&in_room(&room, &format!("/state/org.example/{long}")), json!({})).await;
    assert!([400, 413].contains(&odd.status), "{}", odd.text);
    let odd = alice.put(&in_room(&room, &format!("/send/{long}/3")), json!({})).await;
    assert!([400, 413].contains(&odd.status), "{}", odd.text);
    alice.put(&format!("{path}{}", "t".repeat(256)), text(1)).await.refused(400, "M_INVALID_PARAM");
    alice.put(&format!("{path}{}", "t".repeat(255)), text(1)).await.ok();
    still_works(&alice).await;
}

#[tokio::test]
async fn an_event_is_canonical_json_or_refused() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    for (number, content) in
        ["{\"a\": 1.5}", "{\"a\": 9007199254740993}", "{\"a\": 1e40}", "{\"a\": [{\"b\": -0.1}]}"]
            .iter()
            .enumerate()
    {
        let path = format!("/_matrix/client/v3{}", in_room(&room, &format!("/send/org.example/{number}")));
        let request = Request::new(Method::PUT, path).bytes("application/json", *content);
        alice.send(request).await.refused(400, "M_BAD_JSON");
    }
    still_works(&alice).await;
}

/// Parsers stop at a depth of 128: what goes into answers to others must leave room for what is around it there.
#[tokio::test]
async fn what_others_could_not_read_is_not_taken() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let (user, device) = (&alice.id, &alice.device);
    let bodies = |depth: usize| {
        let nested = "[".repeat(depth) + &"]".repeat(depth);
        let keys = format!(
            r#"{{"user_id":"{user}","device_id":"{device}","algorithms":[],"keys":{{}},"signatures":{{}},"x":{nested}}}"#
        );
        [
            (Method::POST, "/keys/upload".to_owned(), format!(r#"{{"device_keys":{keys}}}"#)),
            (
                Method::PUT,
                format!("/profile/{}/org.example.deep", encode(user)),
                format!(r#"{{"org.example.deep":{nested}}}"#),
            ),
        ]
        .map(|(method, path, body)| {
            Request::new(method, format!("/_matrix/client/v3{path}")).bytes("application/json", body)
        })
    };
    for request in bodies(120) {
        alice.send(request).await.refused(400, "M_BAD_JSON");
    }
    for request in bodies(90) {
        alice.send(request).await.ok();
    }
    let query = json!({ "device_keys": { user.clone(): [] } });
    let answer = bob.post("/keys/query", query).await.ok();
    assert!(answer["device_keys"][user][device]["x"].is_array(), "{answer}");
}

/// Raw bytes on a connection, and what comes back before it closes.
fn raw(url: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let _the_server_may_close_early = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _or_reset = stream.take(100_000).read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_http_is_refused() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let url = cluster.url(0);
    let many_headers: String = (0..2_000).map(|number| format!("x-{number}: {number}\r\n")).collect();
    let requests: Vec<Vec<u8>> = vec![
        b"nonsense\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "a".repeat(200_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\n{many_headers}\r\n").into_bytes(),
        b"POST /_matrix/client/v3/login HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_vec(),
        b"POST /_matrix/client/v3/login HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\n{}".to_vec(),
        b"POST /_matrix/client/v3/login HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(),
    ];
    for request in requests {
        let url = url.clone();
        let start = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        // The write side stays open: a server that waits for more must give up by itself, which its time-outs bound.
        let answer = tokio::task::spawn_blocking(move || raw(&url, &request)).await.expect("no panic");
        assert!(!answer.starts_with("HTTP/1.1 5") || answer.starts_with("HTTP/1.1 505"), "{start}: {answer}");
        assert!(!answer.starts_with("HTTP/1.1 2"), "{start}: {answer}");
    }
    still_works(&alice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_body_is_refused_before_it_is_read() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let head = format!(
        "POST /_matrix/client/v3/createRoom HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 4000000000\r\n\r\n{{",
        alice.token
    );
    let url = cluster.url(0);
    let answer = tokio::task::spawn_blocking(move || raw(&url, head.as_bytes())).await.expect("no panic");
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("M_TOO_LARGE"), "{answer}");
}

/// What a client that hangs up asked of the database must not stay half done on a connection that others use next.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hang_up_leave_no_transaction_behind() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    let url = cluster.url(0).trim_start_matches("http://").to_owned();
    let first = alice.get("/sync").await.ok();
    // From there on somebody's devices are new, about which the database is asked each time.
    cluster.user("bob").await.join(&room).await;
    let since = first["next_batch"].as_str().expect("a token");
    let request = format!(
        "GET /_matrix/client/v3/sync?since={since}&timeout=0 HTTP/1.1\r\nHost: {url}\r\nAuthorization: Bearer {}\r\n\r\n",
        alice.token
    );
    let hang_up = |patience: u64| {
        let (url, request) = (url.clone(), request.clone());
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(url).expect("connected");
            stream.write_all(request.as_bytes()).expect("sent");
            // Somewhere between the first statement and the last it is tired of waiting for the answer.
            stream.set_read_timeout(Some(Duration::from_micros(1 + patience))).expect("set");
            let _gone = stream.read(&mut [0]);
        })
    };
    futures_util::future::join_all((0..1_000).map(|number| hang_up(number * 37 % 10_000))).await;
    // Both see what the other writes, over whichever connection.
    for number in 0..20 {
        let body = number.to_string();
        let sent = alice.at(number).send_text(&room, &body).await;
        let shown =
            alice.at(number + 1).get(&in_room(&room, &format!("/event/{}", encode(&sent)))).await.ok();
        assert_eq!(shown["content"]["body"], json!(body));
    }
    let log = cluster.log(0);
    assert!(!log.contains("transaction in progress"), "{log}");
}

/// Names, lines and escapes of terminals that clients put where the server might repeat them.
#[tokio::test(flavor = "multi_thread")]
async fn what_clients_send_forges_no_line_of_the_log() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let forged = "\n2026-01-01T00:00:00.000000Z ERROR forged: by a client\u{1b}[2J";
    let there = encode(forged);
    let refused = alice.get(&format!("/rooms/{}/messages?dir={there}", encode("!x:y"))).await;
    // The answer may repeat it; the log only as escapes.
    assert!(refused.refused(400, "M_INVALID_PARAM")["error"].as_str().is_some_and(|e| e.contains("forged")));
    alice.get(&format!("/rooms/{}/state", encode(&format!("!{forged}:y")))).await;
    alice.get(&format!("/sync?since={there}&filter={there}")).await;
    alice.post("/createRoom", json!({ "preset": forged, "visibility": forged })).await;
    alice.post("/keys/upload", json!({ "one_time_keys": { forged: { "key": forged } } })).await;
    let login = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": forged }, "password": "x" });
    cluster.send(Request::new(Method::POST, "/_matrix/client/v3/login").json(&login)).await;
    for replica in 0..cluster.size() {
        let log = cluster.log(replica);
        assert!(!log.contains('\u{1b}'), "an escape of a client is in the log");
        assert!(!log.lines().any(|line| line.starts_with("2026-01-01")), "a client wrote a line of the log");
    }
    let logs: String = (0..cluster.size()).map(|replica| cluster.log(replica)).collect();
    assert!(logs.contains("forged"), "the log tells what was refused");
}

/// What clients pack is not unpacked, so there is no bomb: the bytes are taken as they are, and are no JSON.
#[tokio::test(flavor = "multi_thread")]
async fn packed_bodies_are_not_unpacked() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    // `gzip` of `{}`.
    let packed = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xab\xae\x05\0\x43\xbf\xa6\xa3\x02\0\0\0".to_vec();
    let request = Request::new(Method::POST, "/_matrix/client/v3/createRoom")
        .token(&alice.token)
        .header("content-encoding", "gzip")
        .bytes("application/json", packed);
    cluster.send(request).await.refused(400, "M_NOT_JSON");
}
