//! Requests over HTTP and HTTPS: one JSON body there, one back; and the ground on which files are streamed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::http::request;
use hyper::{Method, Request, Response, Uri};
use hyper_openssl::client::legacy::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

use super::pin::{ServerFingerprint, split_pin};
use super::{Api, ApiError, ServerError};

/// How long an answer may take, beyond what a long-poll was told to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer may not be longer: the first sync of a large account is a few tens of megabytes.
const MAX_ANSWER: usize = 256 << 20;
/// How often a request that can be repeated safely is, when the server cannot be reached or asks to wait.
const ATTEMPTS: u32 = 4;
/// The longest wait that a server may ask for before the error goes to the caller.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// What is offered for TLS 1.2: forward secrecy and authenticated encryption. TLS 1.3 has nothing else.
const TLS_1_2_CIPHERS: &str = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!PSK:!aDSS";

/// The body of a request: bytes, or a stream of them.
pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The body of a request that has none.
pub(super) fn empty() -> Body {
    full(Bytes::new())
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

#[derive(Clone)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    server: String,
    pin: Option<String>,
    /// What the server showed in the last handshake.
    shown: Arc<Mutex<Option<ServerFingerprint>>>,
}

/// One request of the client-server API.
pub(super) struct Call {
    method: Method,
    path: String,
    body: Option<Zeroizing<Vec<u8>>>,
    timeout: Duration,
    repeat: Repeat,
}

/// When a call may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Never: a person should hear at once that a login has to wait.
    Never,
    /// When the server has put it off, and so done nothing.
    PutOff,
    /// Also when it is not known whether it arrived: twice is as good as once.
    Always,
}

impl Call {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: None,
            timeout: ANSWER_TIMEOUT,
            repeat: Repeat::Always,
        }
    }

    /// A request with a transaction id, which the server takes once however often it comes.
    pub(super) fn put(path: impl Into<String>, body: Value) -> Self {
        Self::put_secret(path, Zeroizing::new(body.to_string().into_bytes()))
    }

    /// With a body of [`secret_json`].
    pub(super) fn put_secret(path: impl Into<String>, body: Zeroizing<Vec<u8>>) -> Self {
        Self { method: Method::PUT, body: Some(body), ..Self::get(path) }
    }

    pub(super) fn post(path: impl Into<String>, body: Value) -> Self {
        Self::post_secret(path, Zeroizing::new(body.to_string().into_bytes()))
    }

    /// With a body of [`secret_json`].
    pub(super) fn post_secret(path: impl Into<String>, body: Zeroizing<Vec<u8>>) -> Self {
        Self { method: Method::POST, body: Some(body), repeat: Repeat::PutOff, ..Self::get(path) }
    }

    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    /// May be sent again when it is not known whether it arrived.
    pub(super) fn repeatable(self) -> Self {
        Self { repeat: Repeat::Always, ..self }
    }

    /// Is not sent again, even if the server only asks to wait.
    pub(super) fn once(self) -> Self {
        Self { repeat: Repeat::Never, ..self }
    }

    /// The server may take this long before it answers.
    pub(super) fn long_poll(self, wait: Duration) -> Self {
        Self { timeout: wait + ANSWER_TIMEOUT, ..self }
    }
}

impl Http {
    pub(super) fn new(server: &str) -> Result<Self, ApiError> {
        let (server, pin) = split_pin(server)?;
        let server = server.trim_end_matches('/').to_owned();
        let uri: Uri = server.parse().map_err(|_| ApiError::Address(server.clone()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(ApiError::Address(server));
        }
        if pin.is_some() && uri.scheme_str() != Some("https") {
            return Err(ApiError::PinWithoutTls);
        }
        let shown = Arc::new(Mutex::new(None));
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let tls = || {
            let mut tls = SslConnector::builder(SslMethod::tls_client())?;
            tls.set_min_proto_version(Some(SslVersion::TLS1_2))?;
            tls.set_cipher_list(TLS_1_2_CIPHERS)?;
            tls.set_alpn_protos(b"\x02h2\x08http/1.1")?;
            let (pin, shown) = (pin.clone(), Arc::clone(&shown));
            tls.set_verify_callback(SslVerifyMode::PEER, move |trusted, context| {
                // The pin is about the server's own certificate, not about those that vouch for it.
                if context.error_depth() != 0 {
                    return trusted;
                }
                let Some(seen) = context.current_cert().and_then(ServerFingerprint::of) else {
                    return false;
                };
                let fits = pin.as_ref().is_none_or(|pin| seen.fits(pin));
                *shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
                trusted && fits
            });
            HttpsConnector::with_connector(connector, tls)
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(tls().map_err(ApiError::Tls)?);
        Ok(Self { client, server, pin, shown })
    }

    pub(super) fn address(&self) -> String {
        match &self.pin {
            Some(pin) => format!("{}#sha256={pin}", self.server),
            None => self.server.clone(),
        }
    }

    pub(super) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    pub(super) fn shown(&self) -> Option<ServerFingerprint> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// The beginning of a request.
    pub(super) fn request(&self, method: Method, path: &str, token: Option<&str>) -> request::Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.server));
        match token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends a request; the answer's body is still to come.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ApiError> {
        self.client.request(request).await.map_err(|error| match (&self.pin, self.shown()) {
            (Some(pin), Some(shown)) if !shown.fits(pin) => ApiError::Pin {
                pinned: pin.clone(),
                certificate: shown.certificate,
                public_key: shown.public_key,
            },
            _ => self.unreachable(error.into()),
        })
    }

    fn unreachable(&self, source: Box<dyn std::error::Error + Send + Sync>) -> ApiError {
        ApiError::Unreachable { server: self.server.clone(), source }
    }

    async fn once(&self, call: &Call, token: Option<&str>) -> Result<Bytes, ApiError> {
        let mut request = self.request(call.method.clone(), &call.path, token);
        if call.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        // The bytes are wiped when the last part of the request that holds them is dropped.
        let body = call.body.clone().map(Bytes::from_owner).unwrap_or_default();
        let request = request.body(full(body)).map_err(|error| self.unreachable(error.into()))?;
        let exchange = async {
            let response = self.send(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| self.unreachable(error))?;
            Ok::<_, ApiError>((status, body.to_bytes()))
        };
        let (status, body) =
            tokio::time::timeout(call.timeout, exchange).await.map_err(|_| ApiError::Timeout)??;
        if status.is_success() {
            return Ok(body);
        }
        Err(ServerError::new(status.as_u16(), serde_json::from_slice(&body).unwrap_or_default()).into())
    }
}

impl Api {
    /// Carries out a call. One that the server puts off, or that may have been lost on the way, is repeated a few times
    /// if that is safe.
    pub(super) async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, ApiError> {
        let body = self.answer(call).await?;
        serde_json::from_slice(&body).map_err(|error| ApiError::Malformed(error.into()))
    }

    /// As [`Self::call`], for an answer that is plain text.
    pub(super) async fn text(&self, call: Call) -> Result<String, ApiError> {
        let body = self.answer(call).await?;
        String::from_utf8(body.into()).map_err(|error| ApiError::Malformed(error.into()))
    }

    /// As [`Self::call`], for an answer that is to be wiped.
    pub(super) async fn answer(&self, call: Call) -> Result<Bytes, ApiError> {
        let mut attempt = 1;
        loop {
            match self.http.once(&call, self.token()).await {
                Ok(body) => return Ok(body),
                Err(error) => match wait_before_repeating(&call, &error, attempt) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(error),
                },
            }
            attempt += 1;
        }
    }
}

fn wait_before_repeating(call: &Call, error: &ApiError, attempt: u32) -> Option<Duration> {
    let put_off = matches!(error, ApiError::Server(error) if error.status == 429);
    let allowed = match call.repeat {
        Repeat::Never => false,
        Repeat::PutOff => put_off,
        Repeat::Always => error.is_temporary(),
    };
    if !allowed || attempt >= ATTEMPTS {
        return None;
    }
    let asked = match error {
        ApiError::Server(error) => error.retry_after_ms.map(Duration::from_millis),
        _ => None,
    };
    let wait = asked.unwrap_or_else(|| Duration::from_millis(250) * 4_u32.pow(attempt - 1));
    (wait <= MAX_WAIT).then_some(wait)
}

/// JSON in memory that is wiped when dropped.
pub(super) fn secret_json(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    // Room for all of it, so that nothing is left behind by a reallocation.
    let mut json = Zeroizing::new(Vec::with_capacity(8192));
    serde_json::to_writer(&mut *json, value).map_err(|error| ApiError::Malformed(error.into()))?;
    Ok(json)
}

/// Wipes an answer, unless something else still holds it.
pub(super) fn wipe(answer: Bytes) {
    if let Ok(mut bytes) = answer.try_into_mut() {
        bytes.as_mut().zeroize();
    }
}

/// Writes `text` as one segment of a path (RFC 3986, section 3.3).
pub(super) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_in_a_path_is_encoded() {
        assert_eq!(segment("!a/b:x?é"), "%21a%2Fb%3Ax%3F%C3%A9");
    }

    #[tokio::test]
    async fn an_address_has_to_be_one() {
        for wrong in ["", "localhost:8008", "ftp://x", "http://"] {
            assert!(matches!(Api::new(wrong), Err(ApiError::Address(_))), "{wrong}");
        }
        let pin = format!("#sha256={}", "0".repeat(64));
        assert!(matches!(Api::new(&format!("http://x{pin}")), Err(ApiError::PinWithoutTls)));
        assert!(matches!(Api::new("https://x#sha256=1"), Err(ApiError::PinMalformed)));
        let pinned = format!("https://x{pin}");
        assert_eq!(Api::new(&pinned).unwrap().address(), pinned);
        assert_eq!(Api::new("http://127.0.0.1:8008/").unwrap().server(), "http://127.0.0.1:8008");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named() {
        // Port 1 of this machine: nothing listens there.
        let api = Api::new("http://127.0.0.1:1").unwrap();
        let error = api.call::<Value>(Call::post("/", Value::Null)).await.unwrap_err();
        assert!(matches!(error, ApiError::Unreachable { ref server, .. } if server == "http://127.0.0.1:1"));
    }

    /// What a server that offers only this cipher for TLS 1.2 says of a client's handshake.
    async fn handshake(cipher: &'static str) -> String {
        use openssl::asn1::Asn1Time;
        use openssl::pkey::PKey;
        use openssl::ssl::SslAcceptor;

        let key = PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap();
        let mut certificate = openssl::x509::X509::builder().unwrap();
        certificate.set_pubkey(&key).unwrap();
        certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        certificate.sign(&key, openssl::hash::MessageDigest::sha256()).unwrap();
        let mut acceptor = SslAcceptor::mozilla_intermediate(SslMethod::tls_server()).unwrap();
        acceptor.set_cipher_list(cipher).unwrap();
        acceptor.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
        acceptor.set_private_key(&key).unwrap();
        acceptor.set_certificate(&certificate.build()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let api = Api::new(&format!("https://{}", listener.local_addr().unwrap())).unwrap();
        let accepting = tokio::task::spawn_blocking(move || {
            let (stream, _) = listener.accept().unwrap();
            acceptor.build().accept(stream).unwrap_err().to_string()
        });
        api.call::<Value>(Call::post("/", Value::Null).once()).await.unwrap_err();
        accepting.await.unwrap()
    }

    #[tokio::test]
    async fn a_server_with_weak_ciphers_only_is_not_spoken_to() {
        // No forward secrecy; no authenticated encryption.
        for weak in ["AES256-GCM-SHA384", "ECDHE-RSA-AES256-SHA384"] {
            let said = handshake(weak).await;
            assert!(said.contains("no shared cipher"), "{weak}: {said}");
        }
        // With a strong one it comes to the certificate, which nobody trusts.
        let said = handshake("ECDHE-RSA-AES128-GCM-SHA256").await;
        assert!(!said.contains("no shared cipher"), "{said}");
    }

    #[test]
    fn a_server_that_asks_to_wait_is_obeyed_within_reason() {
        let error = |retry_after_ms: u64| {
            let body = serde_json::json!({ "errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": retry_after_ms });
            ApiError::from(ServerError::new(429, body))
        };
        let call = Call::get("/");
        assert_eq!(wait_before_repeating(&call, &error(1500), 1), Some(Duration::from_millis(1500)));
        assert_eq!(wait_before_repeating(&call, &error(1500), ATTEMPTS), None);
        assert_eq!(wait_before_repeating(&call, &error(3_600_000), 1), None);
        let post = || Call::post("/", Value::Null);
        assert_eq!(wait_before_repeating(&post(), &error(1500), 1), Some(Duration::from_millis(1500)));
        assert_eq!(wait_before_repeating(&post().once(), &error(1500), 1), None);
        assert_eq!(wait_before_repeating(&post(), &ApiError::Timeout, 1), None);
        assert!(wait_before_repeating(&post().repeatable(), &ApiError::Timeout, 1).is_some());
        let forbidden = ApiError::from(ServerError::new(403, Value::Null));
        assert_eq!(wait_before_repeating(&call, &forbidden, 1), None);
    }
}
