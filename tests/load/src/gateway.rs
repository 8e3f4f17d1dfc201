//! A push gateway that notes what a server tells it.
//!
//! <https://spec.matrix.org/v1.19/push-gateway-api/>

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use openssl::{
    error::ErrorStack,
    ssl::{Ssl, SslAcceptor, SslFiletype, SslMethod},
};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
    time::Instant,
};
use tokio_openssl::SslStream;

use crate::Error;

/// Where pushers send notices to.
pub const PATH: &str = "/_matrix/push/v1/notify";
/// How long to wait after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Which event a pusher was told of, and when.
#[derive(Clone, Debug)]
pub struct Told {
    /// The event.
    pub event_id: String,
    /// When the notice came.
    pub at: Instant,
}

/// What came, by pushkey.
type Notices = Mutex<HashMap<String, Vec<Told>>>;

/// The gateway. It ends when this is dropped.
#[derive(Debug)]
pub struct Gateway {
    /// Where it listens.
    pub address: SocketAddr,
    told: Arc<Notices>,
    _task: JoinSet<()>,
}

#[derive(Deserialize)]
struct Body {
    notification: Notification,
}

#[derive(Deserialize)]
struct Notification {
    #[serde(default)]
    event_id: Option<String>,
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    pushkey: String,
}

impl Gateway {
    /// Listens, with a certificate and its key (PEM) for TLS, else for plain HTTP.
    ///
    /// # Errors
    /// The address cannot be listened at, or the certificate cannot be used.
    pub async fn start(address: SocketAddr, certificate: Option<(&Path, &Path)>) -> Result<Self, Error> {
        let tls = certificate.map(|(certificate, key)| acceptor(certificate, key)).transpose();
        let tls = tls.map_err(|error| Error::Usage(format!("the push gateway's certificate: {error}")))?;
        let failed = |error| Error::Usage(format!("the push gateway cannot listen at {address}: {error}"));
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let told = Arc::<Notices>::default();
        let noted = Arc::clone(&told);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let (noted, ssl) = (Arc::clone(&noted), tls.as_ref().map(|tls| Ssl::new(tls.context())));
                connections.spawn(async move {
                    let Some(ssl) = ssl else { return serve(&noted, socket).await };
                    let Ok(mut stream) = ssl.and_then(|ssl| SslStream::new(ssl, socket)) else { return };
                    if Pin::new(&mut stream).accept().await.is_ok() {
                        serve(&noted, stream).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, told, _task: task })
    }

    /// How many of some events one pusher was told of.
    pub fn count(&self, pushkey: &str, is_one: impl Fn(&str) -> bool) -> usize {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let events = told.get(pushkey).into_iter().flatten().map(|told| &*told.event_id);
        events.filter(|event_id| is_one(event_id)).collect::<HashSet<_>>().len()
    }

    /// What one pusher was told, in the order in which it came.
    pub fn told(&self, pushkey: &str) -> Vec<Told> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(pushkey).cloned().unwrap_or_default()
    }
}

fn acceptor(certificate: &Path, key: &Path) -> Result<SslAcceptor, ErrorStack> {
    let mut tls = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    tls.set_certificate_chain_file(certificate)?;
    tls.set_private_key_file(key, SslFiletype::PEM)?;
    Ok(tls.build())
}

async fn serve<S>(noted: &Arc<Notices>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let noted = Arc::clone(noted);
        async move { Ok::<_, Infallible>(answer(&noted, request).await) }
    });
    // A server may end a connection as it likes.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(noted: &Notices, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let at = Instant::now();
    let body = request.into_body().collect().await.map(|body| body.to_bytes());
    let Some(body) = body.ok().and_then(|body| serde_json::from_slice::<Body>(&body).ok()) else {
        let mut refused = Response::new(Full::from("{\"errcode\":\"M_BAD_JSON\"}"));
        *refused.status_mut() = StatusCode::BAD_REQUEST;
        return refused;
    };
    // One without an event says how much is unread.
    if let Some(event_id) = body.notification.event_id {
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        for Device { pushkey } in body.notification.devices {
            noted.entry(pushkey).or_default().push(Told { event_id: event_id.clone(), at });
        }
    }
    Response::new(Full::from("{\"rejected\":[]}"))
}
