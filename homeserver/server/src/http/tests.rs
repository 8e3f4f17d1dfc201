//! The whole walk of a request, over real sockets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::Method;
use keystead_store::{Access, Outcome, TransactionReport};
use openssl::{
    asn1::Asn1Time,
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::PKey,
    ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion},
    x509::{X509, X509Name},
};
use ruma::api::auth_scheme::NoAuthentication;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    api,
    app::App,
    clock::{Clock, SystemClock},
    config::{Settings, reader::Environment},
    context::Ctx,
    entropy::SystemEntropy,
    http::{
        error::ApiError,
        listener::Listeners,
        reply::RawJson,
        router::{Options, OwnRequest, Router},
        service::Service,
    },
};

/// Bytes of an answer that no socket's buffers hold.
const LARGE: usize = 64 << 20;

pub(crate) struct Server {
    address: SocketAddr,
    pub(crate) app: Arc<App>,
    finished: Arc<AtomicBool>,
    /// Holds the database for as long as the server runs.
    _folder: tempfile::TempDir,
}

async fn panics(_: Ctx<()>, _: OwnRequest) -> Result<RawJson, ApiError> {
    panic!("as a test wants it")
}

async fn large(_: Ctx<()>, _: OwnRequest) -> Result<RawJson, ApiError> {
    Ok(RawJson(vec![b' '; LARGE].into()))
}

async fn echo(_: Ctx<()>, request: OwnRequest) -> Result<RawJson, ApiError> {
    let body: Value = request.json()?;
    Ok(RawJson(json!({"path": request.path, "body": body}).to_string().into()))
}

pub(crate) async fn serve(environment: &[(&str, &str)]) -> Server {
    serve_at(environment, Arc::new(SystemClock)).await
}

pub(crate) async fn serve_at(environment: &[(&str, &str)], clock: Arc<dyn Clock>) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}/keystead.db", folder.path().display());
    let base = [("KEYSTEAD_SERVER_LISTEN", "127.0.0.1:0"), ("KEYSTEAD_DATABASE_URL", &database)];
    let environment: Environment =
        base.iter().chain(environment).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let settings = Settings::from_environment(environment).unwrap();
    let listeners = Listeners::bind(&settings).await.unwrap();
    let address = listeners.addresses()[0];
    let app = App::start_with(settings, clock, Arc::new(SystemEntropy)).await.unwrap();
    let finished = Arc::new(AtomicBool::new(false));
    let router = routes(Arc::clone(&finished));
    tokio::spawn(listeners.serve(Service::new(Arc::clone(&app), router)));
    Server { address, app, finished, _folder: folder }
}

fn routes(finished: Arc<AtomicBool>) -> Router {
    let mut router = api::routes();
    let slow = move |_: Ctx<()>, _: OwnRequest| {
        let finished = Arc::clone(&finished);
        async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            finished.store(true, Ordering::SeqCst);
            Ok::<_, ApiError>(RawJson("{}".into()))
        }
    };
    let normal = Options::NORMAL;
    router.route_own::<NoAuthentication, _, _, _>(Method::GET, "/test/panic", normal, panics);
    router.route_own::<NoAuthentication, _, _, _>(Method::POST, "/test/echo/{a}/{b}", normal, echo);
    router.route_own::<NoAuthentication, _, _, _>(Method::GET, "/test/large", normal, large);
    router.route_own::<NoAuthentication, _, _, _>(Method::PUT, "/test/slow", normal, slow.clone());
    router.route_own::<NoAuthentication, _, _, _>(Method::GET, "/test/poll", Options::LONG_POLL, slow);
    router
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    pub(crate) fn body_contains(&self, text: &str) -> bool {
        self.body.contains(text)
    }

    pub(crate) fn errcode(&self) -> (u16, String) {
        (self.status, self.json()["errcode"].as_str().unwrap_or_default().to_owned())
    }
}

impl Server {
    /// Sends bytes as they are and reads until the server closes.
    async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        // A reset after the answer is as good as a close.
        let _ = read.expect("the server should close the connection");
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        self.raw(text.as_bytes()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "").await
    }
}

#[tokio::test]
async fn versions_are_told_with_cors_headers() {
    let server = serve(&[]).await;
    let answer = server.get("/_matrix/client/versions").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("access-control-allow-origin: *"));
    assert!(answer.head.contains("content-type: application/json"));
    let body = answer.json();
    assert!(body["versions"].as_array().unwrap().contains(&json!("v1.14")));
    assert_eq!(body["unstable_features"]["com.trustner.keybox"], true);
}

#[tokio::test]
async fn well_known_files_follow_the_configuration() {
    let server = serve(&[("KEYSTEAD_SERVER_PUBLIC_BASE_URL", "https://m.example/")]).await;
    let answer = server.get("/.well-known/matrix/client").await;
    assert_eq!(answer.json(), json!({"m.homeserver": {"base_url": "https://m.example"}}));
    assert_eq!(server.get("/.well-known/matrix/support").await.errcode(), (404, "M_NOT_FOUND".to_owned()));

    let server = serve(&[("KEYSTEAD_SUPPORT_EMAIL", "help@m.example")]).await;
    let answer = server.get("/.well-known/matrix/support").await;
    assert_eq!(
        answer.json(),
        json!({"contacts": [{"role": "m.role.admin", "email_address": "help@m.example"}]})
    );
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    let server = serve(&[]).await;
    let unrecognized = |status| (status, "M_UNRECOGNIZED".to_owned());
    assert_eq!(server.get("/_matrix/client/v3/nope").await.errcode(), unrecognized(404));
    let answer = server.send("DELETE", "/_matrix/client/versions", "", "").await;
    assert_eq!(answer.errcode(), unrecognized(405));
    assert!(answer.head.contains("allow: get"));
    assert!(answer.head.contains("access-control-allow-origin: *"));
}

#[tokio::test]
async fn a_browser_may_ask_first() {
    let server = serve(&[]).await;
    let answer = server.send("OPTIONS", "/_matrix/client/v3/sync", "Origin: https://app\r\n", "").await;
    assert_eq!(answer.status, 204);
    assert!(
        answer.head.contains("access-control-allow-headers: x-requested-with, content-type, authorization")
    );
    assert!(answer.head.contains("access-control-allow-methods: get, post, put"));
}

#[tokio::test]
async fn head_gets_the_headers_of_get() {
    let server = serve(&[]).await;
    let get = server.get("/_matrix/client/versions").await;
    let head = server.send("HEAD", "/_matrix/client/versions", "", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(head.head.contains(&format!("content-length: {}", get.body.len())));
}

#[tokio::test]
async fn path_parameters_are_decoded_after_matching() {
    let server = serve(&[]).await;
    let answer = server.send("POST", "/test/echo/%21a%3Ab/x%2Fy", "", r#"{"k":1}"#).await;
    assert_eq!(answer.json(), json!({"path": ["!a:b", "x/y"], "body": {"k": 1}}));
    for bad in ["%ff", "%zz", "%2"] {
        let answer = server.send("POST", &format!("/test/echo/{bad}/y"), "", "{}").await;
        assert_eq!(answer.errcode(), (400, "M_INVALID_PARAM".to_owned()), "{bad}");
    }
}

#[tokio::test]
async fn bodies_that_are_no_json_or_the_wrong_json_are_refused() {
    let server = serve(&[]).await;
    let answer = server.send("POST", "/test/echo/a/b", "", "{not json").await;
    assert_eq!(answer.errcode(), (400, "M_NOT_JSON".to_owned()));
    let answer = server.send("POST", "/test/echo/a/b", "", "").await;
    assert_eq!(answer.errcode(), (400, "M_NOT_JSON".to_owned()));
    let deep = "[".repeat(100_000);
    let answer = server.send("POST", "/test/echo/a/b", "", &deep).await;
    assert_eq!(answer.errcode(), (400, "M_NOT_JSON".to_owned()));
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused_however_they_come() {
    let server = serve(&[("KEYSTEAD_LIMITS_MAX_BODY_BYTES", "65536")]).await;
    let large = "x".repeat(70_000);
    let announced = server.send("POST", "/test/echo/a/b", "", &large).await;
    assert_eq!(announced.errcode(), (413, "M_TOO_LARGE".to_owned()));
    let chunked = format!(
        "POST /test/echo/a/b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    assert_eq!(server.raw(chunked.as_bytes()).await.errcode(), (413, "M_TOO_LARGE".to_owned()));
}

#[tokio::test]
async fn malformed_http_gets_a_plain_refusal() {
    let server = serve(&[]).await;
    assert_eq!(server.raw(b"NONSENSE\r\n\r\n").await.status, 400);
    assert_eq!(server.raw(b"GET / HTTP/9.9\r\nHost: x\r\n\r\n").await.status, 400);
    let many = "A: b\r\n".repeat(200);
    assert_eq!(server.raw(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).await.status, 431);
    for (bytes, status) in [(60_000, 200), (66_000, 431), (90_000, 431), (400_000, 431)] {
        let large =
            format!("GET /live HTTP/1.1\r\nHost: x\r\nA: {}\r\nConnection: close\r\n\r\n", "a".repeat(bytes));
        assert_eq!(server.raw(large.as_bytes()).await.status, status, "{bytes}");
    }
    // And the server is still there.
    assert_eq!(server.get("/live").await.status, 200);
}

#[tokio::test]
async fn clients_that_dawdle_are_cut_off() {
    let server = serve(&[
        ("KEYSTEAD_LIMITS_HEADER_TIMEOUT_SECONDS", "1"),
        ("KEYSTEAD_LIMITS_BODY_TIMEOUT_SECONDS", "1"),
    ])
    .await;
    // Nothing, half a preface, half a header, half a body.
    server.raw(b"").await;
    server.raw(b"PRI * HT").await;
    server.raw(b"GET /_matrix/client/versions HTTP/1.1\r\nHost: ").await;
    let answer = server
        .raw(b"POST /test/echo/a/b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{")
        .await;
    assert_eq!(answer.status, 408);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so_and_probes_are_answered() {
    let server = serve(&[("KEYSTEAD_LIMITS_MAX_CONNECTIONS", "2")]).await;
    let mut within = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        within.push(stream);
    }
    // They would like to keep their connections.
    let beyond = async |path| server.raw(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
    let refused = beyond("/_matrix/client/versions").await;
    assert_eq!(refused.errcode(), (503, "M_LIMIT_EXCEEDED".to_owned()));
    assert!(refused.head.contains("retry-after: 5") && refused.head.contains("connection: close"));
    assert_eq!(beyond("/live").await.status, 200);
    let metrics = beyond("/metrics").await;
    assert!(metrics.body_contains("keystead_http_connections_limit 2"));
    assert!(metrics.body_contains("keystead_http_connection_errors_total{layer=\"limit\"} 3"));
    // One that says nothing does not keep its place for ever.
    assert_eq!(server.raw(b"").await.status, 0);

    within.pop();
    // It takes a moment until the server knows that one has gone.
    let taken_again = async { while server.get("/_matrix/client/versions").await.status != 200 {} };
    tokio::time::timeout(Duration::from_secs(10), taken_again).await.expect("the place should be free");
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_cut_off() {
    let server = serve(&[("KEYSTEAD_LIMITS_WRITE_TIMEOUT_SECONDS", "1")]).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /test/large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // More waits than both ends' buffers take, and nobody reads.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    // A reset is as good as a close.
    let _ = read.expect("the server should close the connection");
    assert!(answer.len() < LARGE, "{} bytes were sent", answer.len());
    assert_eq!(server.get("/live").await.status, 200);
}

#[tokio::test]
async fn a_panic_is_a_500_and_a_metric() {
    let server = serve(&[]).await;
    let answer = server.get("/test/panic").await;
    assert_eq!(answer.errcode(), (500, "M_UNKNOWN".to_owned()));
    assert_eq!(answer.json()["error"], "Internal server error");
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("keystead_http_handler_panics_total 1"));
    assert!(metrics.contains(r#"keystead_http_requests_total{route="/test/panic",status="5xx"} 1"#));
}

async fn hang_up_after(server: &Server, request: &str) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(stream);
    tokio::time::sleep(Duration::from_millis(400)).await;
}

#[tokio::test]
async fn a_write_outlives_its_client_and_a_long_poll_does_not() {
    let server = serve(&[]).await;
    hang_up_after(&server, "GET /test/poll").await;
    assert!(!server.finished.load(Ordering::SeqCst));
    hang_up_after(&server, "PUT /test/slow").await;
    assert!(server.finished.load(Ordering::SeqCst));
}

#[tokio::test]
async fn tokens_are_asked_for_and_checked() {
    let server = serve(&[]).await;
    let path = "/_matrix/client/v3/account/whoami";
    assert_eq!(server.get(path).await.errcode(), (401, "M_MISSING_TOKEN".to_owned()));
    for header in ["Authorization: Basic eDp5\r\n", "Authorization: Bearer\r\n"] {
        assert_eq!(server.send("GET", path, header, "").await.status, 401);
    }
    let answer = server.send("GET", path, "Authorization: Bearer nope\r\n", "").await;
    assert_eq!(answer.errcode(), (401, "M_UNKNOWN_TOKEN".to_owned()));
    let answer = server.get(&format!("{path}?access_token=nope")).await;
    assert_eq!(answer.errcode(), (401, "M_UNKNOWN_TOKEN".to_owned()));
    // The old path leads to the same endpoint.
    assert_eq!(server.get("/_matrix/client/r0/account/whoami").await.status, 401);
}

#[tokio::test]
async fn a_soft_stop_fails_readiness_and_closes_connections() {
    let server = serve(&[]).await;
    assert_eq!(server.get("/ready").await.status, 200);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    stream.readable().await.unwrap();
    server.app.shutdown.begin();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 200"));
    server.app.shutdown.drained().await;
}

#[tokio::test]
async fn before_a_soft_stop_requests_are_taken_but_connections_are_not_kept() {
    let server = serve(&[]).await;
    server.app.shutdown.leave();
    assert_eq!(server.get("/ready").await.status, 503);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn all_paths_of_an_endpoint_are_listed() {
    let routes = routes(Arc::default()).routes();
    let auth = |path: &str| routes.iter().find(|route| route.path == path).map(|route| route.auth());
    assert_eq!(auth("/_matrix/client/r0/account/whoami"), Some("user"));
    assert_eq!(auth("/_matrix/client/v3/account/whoami"), Some("user"));
    assert_eq!(auth("/_matrix/client/versions"), Some("optional"));
    assert_eq!(auth("/live"), Some("none"));
}

#[tokio::test]
async fn tls_is_1_2_or_later_and_speaks_both_versions_of_http() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(folder.path());
    let server = serve(&[
        ("KEYSTEAD_SERVER_TLS_CERTIFICATE", &certificate),
        ("KEYSTEAD_SERVER_TLS_PRIVATE_KEY", &key),
    ])
    .await;
    for (version, accepted) in
        [(SslVersion::TLS1_1, false), (SslVersion::TLS1_2, true), (SslVersion::TLS1_3, true)]
    {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
        builder.set_verify(SslVerifyMode::NONE);
        // So that an old version is refused by the server, not by this client.
        builder.set_security_level(0);
        builder.set_min_proto_version(Some(version)).unwrap();
        builder.set_max_proto_version(Some(version)).unwrap();
        builder.set_alpn_protos(b"\x02h2\x08http/1.1").unwrap();
        let ssl = builder.build().configure().unwrap().into_ssl("localhost").unwrap();
        let stream = TcpStream::connect(server.address).await.unwrap();
        let mut stream = tokio_openssl::SslStream::new(ssl, stream).unwrap();
        let connected = std::pin::Pin::new(&mut stream).connect().await.is_ok();
        assert_eq!(connected, accepted, "{version:?}");
        if connected {
            assert_eq!(stream.ssl().selected_alpn_protocol(), Some(&b"h2"[..]));
        }
    }
}

fn self_signed(folder: &std::path::Path) -> (String, String) {
    let key = PKey::from_ec_key(
        EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap(),
    )
    .unwrap();
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_text("CN", "localhost").unwrap();
    let name = name.build();
    let mut certificate = X509::builder().unwrap();
    certificate.set_subject_name(&name).unwrap();
    certificate.set_issuer_name(&name).unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    let write = |file: &str, bytes: Vec<u8>| {
        let path = folder.join(file);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let certificate = write("certificate.pem", certificate.build().to_pem().unwrap());
    (certificate, write("key.pem", key.private_key_to_pem_pkcs8().unwrap()))
}

#[tokio::test]
async fn http_2_works_without_an_upgrade() {
    let server = serve(&[]).await;
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http::<http_body_util::Full<bytes::Bytes>>();
    let uri = format!("http://{}/_matrix/client/versions", server.address).parse().unwrap();
    let answer = client.get(uri).await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (http::Version::HTTP_2, 200));
}

#[tokio::test]
async fn a_replica_stays_below_2000_series_whatever_is_called() {
    let server = serve(&[]).await;
    let metrics = &server.app.metrics;
    let series = || metrics.encode().unwrap().lines().filter(|line| !line.starts_with('#')).count();
    for route in routes(Arc::default()).routes() {
        let method = Method::from_bytes(route.method.as_bytes()).unwrap();
        for status in [200, 400, 500] {
            metrics.http_request(route.template, &method, status.try_into().unwrap(), Duration::ZERO);
        }
    }
    let http = series();
    assert!(http < 1_200, "{http} series with HTTP alone leave too little room for the others");
    // Every transaction of this program, committed and refused, and some that failed.
    for number in 0..150 {
        let name: &'static str = String::leak(format!("transaction {number}"));
        let outcomes = if number < 50 {
            [Outcome::Committed, Outcome::Refused, Outcome::Failed].as_slice()
        } else {
            &[Outcome::Committed]
        };
        for outcome in outcomes.iter().copied() {
            metrics.transaction(&TransactionReport {
                name,
                access: Access::Read,
                duration: Duration::ZERO,
                pool_wait: Duration::ZERO,
                retries: 0,
                statements: 1,
                outcome,
            });
        }
    }
    for number in 0..40 {
        metrics.http_error(&format!("M_ERROR_{number}"));
    }
    assert!(series() < 2_000, "{} series; {http} with HTTP alone", series());
}
