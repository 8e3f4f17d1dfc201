//! Requests to the servers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, header};
use hyper_openssl::client::legacy::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use openssl::ssl::{SslConnector, SslMethod};
use serde_json::Value;

use crate::Error;

/// Longer than any long-poll of a scenario.
const TIME_OUT: Duration = Duration::from_secs(120);
/// How long a client waits before it sends a request again.
const BEFORE_RETRY: Duration = Duration::from_millis(500);

/// The servers, and connections to them.
#[derive(Clone)]
pub struct Api {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    urls: Arc<[String]>,
    retries: u32,
    retried: Arc<AtomicU64>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Bytes,
    /// Whether the answer says when to try again (`Retry-After`).
    pub tells_when: bool,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Why an operation failed, as it is counted: the `errcode` with the status, or what became of the connection.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One request: its path begins behind `/_matrix/client/v3`, unless it begins with `/_` or is one of no specification.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: String,
    body: Option<Value>,
    is_own: bool,
}

impl Call {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, is_own: false }
    }

    /// A GET of a path of the server's own (`/ready`).
    pub fn get_own(path: impl Into<String>) -> Self {
        Self { is_own: true, ..Self::get(path) }
    }

    /// A PUT.
    pub fn put(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::PUT, path: path.into(), body: Some(body), is_own: false }
    }

    /// A POST.
    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body: Some(body), is_own: false }
    }
}

impl Api {
    /// Connects to servers that are replicas of one; `urls` without a path.
    ///
    /// # Errors
    /// There is no server, or TLS cannot be set up.
    pub fn new(urls: &[String]) -> Result<Self, Error> {
        if urls.is_empty() {
            return Err(Error::Usage("--base-url is needed at least once".to_owned()));
        }
        let tls = SslConnector::builder(SslMethod::tls_client())
            .map_err(|error| Error::Usage(format!("TLS: {error}")))?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connector = HttpsConnector::with_connector(connector, tls)
            .map_err(|error| Error::Usage(format!("TLS: {error}")))?;
        let urls = urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            urls,
            retries: 0,
            retried: Arc::default(),
        })
    }

    /// The same, sending a request again so many times to which there was no answer or one with status 5xx, as clients do: with the same
    /// path, and so the same transaction id.
    #[must_use]
    pub fn with_retries(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    /// How many requests were sent again.
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// The servers.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Sends a request to server number `replica` (counted round) and gives whatever it answers.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn answer(&self, replica: usize, token: Option<&str>, call: &Call) -> Result<Answer, Failure> {
        let url = self.urls.get(replica % self.urls.len()).map_or("", String::as_str);
        let prefix = if call.is_own || call.path.starts_with("/_") { "" } else { "/_matrix/client/v3" };
        let mut request =
            Request::builder().method(call.method.clone()).uri(format!("{url}{prefix}{}", call.path));
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = call.body.as_ref().map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(|error| Failure(error.to_string()))?;
        let exchange = async {
            let answer =
                self.client.request(request).await.map_err(|_| Failure("no connection".to_owned()))?;
            let status = answer.status().as_u16();
            let tells_when = answer.headers().contains_key(header::RETRY_AFTER);
            let body = answer.into_body().collect().await.map_err(|_| Failure("broken answer".to_owned()))?;
            Ok(Answer { status, body: body.to_bytes(), tells_when })
        };
        tokio::time::timeout(TIME_OUT, exchange).await.map_err(|_| Failure("no answer".to_owned()))?
    }

    /// Sends a request and gives the body of a 200.
    ///
    /// # Errors
    /// There was no answer, or another one.
    pub async fn ok(&self, replica: usize, token: Option<&str>, call: &Call) -> Result<Value, Failure> {
        let mut answer = self.answer(replica, token, call).await;
        for number in 1..=self.retries {
            if answer.as_ref().is_ok_and(|answer| answer.status < 500) {
                break;
            }
            self.retried.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(BEFORE_RETRY).await;
            let other = replica.saturating_add(usize::try_from(number).unwrap_or_default());
            answer = self.answer(other, token, call).await;
        }
        let answer = answer?;
        let body = answer.json();
        if answer.status == 200 {
            return Ok(body);
        }
        Err(Failure(format!("{} {}", answer.status, body["errcode"].as_str().unwrap_or_default())))
    }
}

/// Percent-encodes one segment of a path, or a value of a query.
pub fn encode(segment: &str) -> String {
    let mut encoded = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Text that no other run has: for names and transaction ids.
pub fn unique() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 12]>()).to_lowercase().replace('_', "-")
}
