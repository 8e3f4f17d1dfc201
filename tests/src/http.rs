//! A small JSON client.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, header};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// Longer than any long-poll of the tests.
const TIME_OUT: Duration = Duration::from_secs(60);

/// A request to any replica: a path with its query, and perhaps a token and a body.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query, already percent-encoded.
    pub path: String,
    /// The access token, sent as a bearer token.
    pub token: Option<String>,
    /// The body and its content type.
    pub body: Option<(String, Bytes)>,
    /// More headers.
    pub headers: Vec<(&'static str, String)>,
}

impl Request {
    /// A request without token and body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), token: None, body: None, headers: Vec::new() }
    }

    /// With an access token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// With one more header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.bytes("application/json", body.to_string())
    }

    /// With any body.
    pub fn bytes(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = Some((content_type.to_owned(), body.into()));
        self
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// What was asked, for messages.
    pub request: String,
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as JSON; null if it is none.
    pub body: Value,
    /// The body as text.
    pub text: String,
    /// The body as it came.
    pub bytes: Bytes,
}

impl Response {
    /// The body of a 200.
    ///
    /// # Panics
    /// On any other status.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}: {}", self.request, self.text);
        self.body
    }

    /// Asserts an error with this status and this `errcode`.
    ///
    /// # Panics
    /// On any other answer, and on an error without a text for people.
    #[track_caller]
    pub fn refused(self, status: u16, errcode: &str) -> Value {
        let got = (self.status, self.errcode());
        assert_eq!(got, (status, errcode), "{}: {}", self.request, self.text);
        assert!(self.body["error"].is_string(), "{}: no \"error\" in {}", self.request, self.text);
        self.body
    }

    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The `errcode`, or nothing.
    pub fn errcode(&self) -> &str {
        self.body["errcode"].as_str().unwrap_or_default()
    }
}

/// The connections of one test.
pub(crate) struct Client(legacy::Client<HttpConnector, Full<Bytes>>);

impl Client {
    pub(crate) fn new() -> Self {
        Self(legacy::Client::builder(TokioExecutor::new()).build_http())
    }

    pub(crate) async fn send(&self, base: &str, request: Request) -> Result<Response, String> {
        let mut builder = hyper::Request::builder().method(request.method.clone());
        builder = builder.uri(format!("{base}{}", request.path));
        if let Some(token) = &request.token {
            builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some((content_type, _)) = &request.body {
            builder = builder.header(header::CONTENT_TYPE, content_type);
        }
        let body = request.body.map(|(_, body)| body).unwrap_or_default();
        let sent = builder.body(Full::new(body)).map_err(|error| error.to_string())?;
        let exchange = async {
            let answer = self.0.request(sent).await.map_err(chain)?;
            let (parts, body) = answer.into_parts();
            let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok(Response {
                request: format!("{} {}", request.method, request.path),
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: serde_json::from_slice(&bytes).unwrap_or_default(),
                text: String::from_utf8_lossy(&bytes).into_owned(),
                bytes,
            })
        };
        tokio::time::timeout(TIME_OUT, exchange).await.map_err(|_| format!("no answer in {TIME_OUT:?}"))?
    }
}

fn chain(error: legacy::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Percent-encodes one segment of a path, or a value in a query.
pub fn encode(segment: &str) -> String {
    segment.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}
