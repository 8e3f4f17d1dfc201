//! Listening sockets and connections: HTTP/1.1 and HTTP/2, with or without TLS, within limits.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt as _, future::join_all};
use http::Request;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use openssl::ssl::{Ssl, SslAcceptor};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_openssl::SslStream;
use tracing::{debug, warn};

use crate::{
    config::{Settings, limits::LimitSettings},
    http::{
        client_stream::{ClientStream, Protocol},
        open_files,
        service::Service,
        tls::{self, TlsError},
    },
    telemetry::metrics::ConnectionError,
};

/// After a failed accept, mostly for want of file descriptors, before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections beyond the limit are taken all the same, for probes and to tell the others that they are too many.
const BEYOND_LIMIT: usize = 1_024;
/// How long such a connection may be open. Enough for a handshake and a request around the world.
const BEYOND_LIMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the server could not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {0}")]
    Bind(SocketAddr, #[source] io::Error),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The sockets of the server, open but not yet answering.
pub struct Listeners {
    sockets: Vec<TcpListener>,
    tls: Option<SslAcceptor>,
}

impl Listeners {
    /// Opens all configured sockets.
    ///
    /// # Errors
    ///
    /// [`ListenError`] names the socket or the TLS file that cannot be used.
    pub async fn bind(settings: &Settings) -> Result<Self, ListenError> {
        let tls = match &settings.server.tls {
            Some(tls) => Some(tls::acceptor(&tls.certificate, &tls.private_key)?),
            None => None,
        };
        let mut sockets = Vec::new();
        for address in &settings.server.listen {
            let socket = TcpListener::bind(address).await;
            sockets.push(socket.map_err(|error| ListenError::Bind(*address, error))?);
        }
        Ok(Self { sockets, tls })
    }

    /// The addresses that the sockets really have: a configured port 0 is a free port here.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Whether connections are encrypted.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Accepts connections until the soft stop begins, then waits until the open ones have finished what they were
    /// at.
    pub async fn serve(self, service: Service) {
        if let Some(end) = self.tls.as_ref().and_then(tls::certificate_end) {
            service.app().metrics.certificate_ends(end);
        }
        let most = open_files::most_connections(service.app().settings.limits.max_connections, BEYOND_LIMIT);
        service.app().metrics.takes_connections(most);
        let server = Arc::new(Server::new(service, self.tls, most));
        let graceful = GracefulShutdown::new();
        join_all(self.sockets.into_iter().map(|socket| server.accept_until_draining(socket, &graceful)))
            .await;
        graceful.shutdown().await;
    }
}

/// What all connections share.
struct Server {
    service: Service,
    tls: Option<SslAcceptor>,
    /// One for each connection within the limit.
    within_limit: Arc<Semaphore>,
    /// One for each connection, [`BEYOND_LIMIT`] more.
    all: Arc<Semaphore>,
    handshake_timeout: Duration,
    header_timeout: Duration,
    write_timeout: Duration,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Server {
    fn new(service: Service, tls: Option<SslAcceptor>, most_connections: usize) -> Self {
        let limits = &service.app().settings.limits;
        Self {
            within_limit: Arc::new(Semaphore::new(most_connections)),
            all: Arc::new(Semaphore::new(most_connections + BEYOND_LIMIT)),
            handshake_timeout: limits.handshake_timeout,
            header_timeout: limits.header_timeout,
            write_timeout: limits.write_timeout,
            http1: http1_builder(limits),
            http2: http2_builder(limits),
            tls,
            service,
        }
    }

    async fn accept_until_draining(self: &Arc<Self>, socket: TcpListener, graceful: &GracefulShutdown) {
        let draining = self.service.app().shutdown.clone();
        loop {
            tokio::select! {
                () = draining.draining() => return,
                accepted = self.accept(&socket) => match accepted {
                    Ok((stream, peer, place)) => {
                        let (server, watcher) = (Arc::clone(self), graceful.watcher());
                        match Arc::clone(&self.within_limit).try_acquire_owned() {
                            Ok(permit) => tokio::spawn(async move {
                                server.serve_connection(stream, peer, watcher, false).await;
                                drop((place, permit));
                            }),
                            Err(_) => tokio::spawn(async move {
                                server.serve_beyond_limit(stream, peer, watcher).await;
                                drop(place);
                            }),
                        };
                    }
                    Err(error) => {
                        warn!(error = %error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// The next connection; waits for its place first: where there is none left, the system's own queue holds those who come.
    async fn accept(
        &self,
        socket: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.all).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = socket.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, peer, place))
    }

    async fn serve_connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        watcher: Watcher,
        beyond_limit: bool,
    ) {
        let app = self.service.app();
        let _open = app.metrics.connection_begins();
        let Some(acceptor) = &self.tls else {
            return self.serve_stream(stream, peer.ip(), watcher, beyond_limit).await;
        };
        let shaken = tokio::select! {
            shaken = handshake(acceptor, stream, self.handshake_timeout) => shaken,
            () = app.shutdown.draining() => return,
        };
        match shaken {
            Ok(stream) => self.serve_stream(stream, peer.ip(), watcher, beyond_limit).await,
            Err(error) => {
                app.metrics.connection_error(ConnectionError::Tls);
                debug!(client.address = %peer.ip(), error = %error, "a TLS handshake failed");
            }
        }
    }

    /// Tells a connection that there are too many; without an end, silent ones would keep the place of the next.
    async fn serve_beyond_limit(&self, stream: TcpStream, peer: SocketAddr, watcher: Watcher) {
        self.service.app().metrics.connection_error(ConnectionError::Limit);
        let served = self.serve_connection(stream, peer, watcher, true);
        if tokio::time::timeout(BEYOND_LIMIT_TIMEOUT, served).await.is_err() {
            debug!(client.address = %peer.ip(), "a connection beyond the limit was closed");
        }
    }

    async fn serve_stream(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: IpAddr,
        watcher: Watcher,
        beyond_limit: bool,
    ) {
        let began = tokio::select! {
            began = ClientStream::begin(stream, self.header_timeout, self.write_timeout) => began,
            () = self.service.app().shutdown.draining() => return,
        };
        let ended = match began {
            Ok((protocol, stream)) => {
                self.serve_http(protocol, stream, peer, watcher, beyond_limit).await.map_err(io::Error::other)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            self.service.app().metrics.connection_error(ConnectionError::Http);
            debug!(client.address = %peer, error = %error, "a connection ended with an error");
        }
    }

    async fn serve_http(
        &self,
        protocol: Protocol,
        stream: ClientStream<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>,
        peer: IpAddr,
        watcher: Watcher,
        beyond_limit: bool,
    ) -> hyper::Result<()> {
        let service = self.service.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            service.answer(request, peer, beyond_limit).map(Ok::<_, Infallible>)
        });
        let stream = TokioIo::new(stream);
        match protocol {
            Protocol::Http1 => watcher.watch(self.http1.serve_connection(stream, answer)).await,
            Protocol::Http2 => {
                let mut connection = self.http2.serve_connection(stream, answer);
                if beyond_limit {
                    // What is on its way is answered; for what comes then, the client opens another connection.
                    Pin::new(&mut connection).graceful_shutdown();
                }
                // Boxed: it is twice as large as the other, which most connections are.
                Box::pin(watcher.watch(connection)).await
            }
        }
    }
}

/// Without a timer hyper would silently have no time-outs.
fn http1_builder(limits: &LimitSettings) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Counts while a connection waits for its next request, too: it is the idle time-out of HTTP/1.1.
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.max_headers)
        .max_buf_size(limits.max_header_bytes)
        .keep_alive(true);
    builder
}

fn http2_builder(limits: &LimitSettings) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.idle_timeout)
        .keep_alive_timeout(limits.header_timeout)
        .max_concurrent_streams(256)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
    builder
}

async fn handshake(
    acceptor: &SslAcceptor,
    stream: TcpStream,
    timeout: Duration,
) -> Result<SslStream<TcpStream>, Box<dyn std::error::Error + Send + Sync>> {
    let mut stream = SslStream::new(Ssl::new(acceptor.context())?, stream)?;
    tokio::time::timeout(timeout, Pin::new(&mut stream).accept()).await??;
    Ok(stream)
}
