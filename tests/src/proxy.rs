//! A server in between that alters what it pleases: the malicious homeserver of tests.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::{TestCluster, http::Request};

/// Changes the JSON of an answer; gets the path and query that were asked for.
type Alter = Box<dyn FnMut(&str, &mut Value) + Send>;

/// Changes the bytes of an answer, after [`Alter`] if it is JSON; gets the path and query that were asked for.
type AlterBytes = Box<dyn FnMut(&str, &mut Vec<u8>) + Send>;

/// How answers are changed.
struct Lies {
    json: Alter,
    bytes: AlterBytes,
}

/// A proxy before one replica, on an address of its own.
pub struct Proxy {
    /// Its address: `http://HOST:PORT`.
    pub url: String,
    lies: Arc<Mutex<Lies>>,
}

impl Proxy {
    /// Begins to pass on what replica 0 says, unaltered.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(cluster: &Arc<TestCluster>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let lies = Arc::new(Mutex::new(Lies { json: Box::new(|_, _| {}), bytes: Box::new(|_, _| {}) }));
        let (cluster, altered) = (Arc::clone(cluster), Arc::clone(&lies));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (cluster, altered) = (Arc::clone(&cluster), Arc::clone(&altered));
                let service =
                    service_fn(move |request| pass_on(Arc::clone(&cluster), Arc::clone(&altered), request));
                tokio::spawn(async move {
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Self { url, lies }
    }

    /// From now on answers in JSON are changed like this.
    pub fn alter(&self, alter: impl FnMut(&str, &mut Value) + Send + 'static) {
        self.lies.lock().unwrap_or_else(PoisonError::into_inner).json = Box::new(alter);
    }

    /// From now on the bytes of answers are changed like this, of those in JSON when [`Self::alter`] has had its turn.
    pub fn alter_bytes(&self, alter: impl FnMut(&str, &mut Vec<u8>) + Send + 'static) {
        self.lies.lock().unwrap_or_else(PoisonError::into_inner).bytes = Box::new(alter);
    }
}

async fn pass_on(
    cluster: Arc<TestCluster>,
    lies: Arc<Mutex<Lies>>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let mut passed = Request::new(parts.method, &path);
    let token = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    passed.token = token.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
    let body = body.collect().await.expect("a body").to_bytes();
    if !body.is_empty() {
        passed = passed.bytes("application/json", body);
    }
    let answer = cluster.send_to(0, passed).await;
    let content_type = answer.header("content-type").to_owned();
    let mut lies = lies.lock().unwrap_or_else(PoisonError::into_inner);
    let mut body = if content_type == "application/json" {
        let mut value = answer.body;
        (lies.json)(&path, &mut value);
        value.to_string().into_bytes()
    } else {
        answer.bytes.to_vec()
    };
    (lies.bytes)(&path, &mut body);
    let response = hyper::Response::builder()
        .status(answer.status)
        .header(header::CONTENT_TYPE, content_type)
        .body(Full::new(Bytes::from(body)))
        .expect("a response");
    Ok(response)
}
