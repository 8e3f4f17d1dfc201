//! Hosts outside that users name: each connection goes to an address that the [`guard`] has just checked, and a host has to prove who it is.

mod guard;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use openssl::{
    error::ErrorStack,
    ssl::{SslConnector, SslMethod, SslVersion},
};
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_openssl::SslStream;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};

pub(crate) use self::guard::Guard;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(4);
/// How long a host may go without acknowledging what was sent to it, before the connection counts as dead.
#[cfg(target_os = "linux")]
const ACKNOWLEDGED: Duration = Duration::from_secs(4);
/// How many addresses of a host are tried.
const MAX_ADDRESSES: usize = 3;
/// The longest headers of an answer, in bytes.
pub(crate) const MAX_HEADERS: usize = 64 * 1024;
/// The longest address, in bytes.
pub(crate) const MAX_URL: usize = 4 * 1024;

/// Why a host could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutsideError {
    /// The address is not one that can be asked.
    #[error("not an http or https address without a user name")]
    Address,
    /// The host's addresses are not all permitted.
    #[error("the address {0} is not permitted")]
    Denied(IpAddr),
    /// The host's name leads nowhere.
    #[error("the host's name cannot be resolved")]
    Resolve(#[source] io::Error),
    /// No connection could be made.
    #[error("no connection could be made")]
    Connect(#[source] io::Error),
    /// OpenSSL cannot be used.
    #[error("TLS cannot be set up")]
    Tls(#[from] ErrorStack),
    /// The host did not prove who it is.
    #[error("the TLS handshake failed")]
    Handshake(#[source] openssl::ssl::Error),
    /// The exchange broke off.
    #[error("the exchange failed")]
    Exchange(#[from] hyper::Error),
}

/// Looks up the addresses of a host.
pub(crate) type Resolver = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Makes connections.
pub(crate) struct Outside {
    guard: Guard,
    pub(crate) resolver: Resolver,
    tls: SslConnector,
}

/// A connection to one host, for one request after another. It ends when this is dropped.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

impl Outside {
    /// Connects by way of the system's resolver and certificates.
    ///
    /// # Errors
    /// When OpenSSL cannot be used.
    pub(crate) fn new(guard: Guard) -> Result<Self, ErrorStack> {
        let mut tls = SslConnector::builder(SslMethod::tls_client())?;
        tls.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        Ok(Self { guard, resolver: Arc::new(|host| Box::pin(resolve(host))), tls: tls.build() })
    }

    /// Connects to the host of an address.
    ///
    /// # Errors
    /// [`OutsideError`]
    pub(crate) async fn connect(&self, url: &Url) -> Result<Connection, OutsideError> {
        let (host, port) = target(url)?;
        let tcp = self.reach(&host, port).await?;
        if url.scheme() != "https" {
            return Connection::begin(tcp).await;
        }
        // An address without brackets, as certificates have it.
        let name = match host {
            Host::Domain(name) => name,
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        let ssl = self.tls.configure()?.into_ssl(&name)?;
        let mut stream = SslStream::new(ssl, tcp)?;
        std::pin::Pin::new(&mut stream).connect().await.map_err(OutsideError::Handshake)?;
        Connection::begin(stream).await
    }

    /// Connects to an address of the host that the guard permits: to that very address, so that the name cannot lead elsewhere meanwhile. A host
    /// of which one address is not permitted is not connected to at all.
    async fn reach(&self, host: &Host<String>, port: u16) -> Result<TcpStream, OutsideError> {
        let addresses = match host {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) => (self.resolver)(name.clone()).await.map_err(OutsideError::Resolve)?,
        };
        if let Some(denied) = addresses.iter().find(|address| !self.guard.permits(**address)) {
            return Err(OutsideError::Denied(*denied));
        }
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            match tokio::time::timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, port))).await {
                Ok(Ok(stream)) => {
                    // Else a connection that a firewall has forgotten would be waited for until the whole exchange takes too long.
                    #[cfg(target_os = "linux")]
                    SockRef::from(&stream)
                        .set_tcp_user_timeout(Some(ACKNOWLEDGED))
                        .map_err(OutsideError::Connect)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(late) => last = late.into(),
            }
        }
        Err(OutsideError::Connect(last))
    }
}

impl Connection {
    async fn begin<S>(stream: S) -> Result<Self, OutsideError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) =
            http1::Builder::new().max_buf_size(MAX_HEADERS).handshake(TokioIo::new(stream)).await?;
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            // How it ended, whoever reads the answer is told.
            let _ = connection.await;
        }));
        Ok(Self { sender, _task: task })
    }

    /// Whether it can be used, as far as is known: the host may have closed it since.
    pub(crate) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request, when the answer before it has been read. The answer's body can be read as long as the connection is held.
    ///
    /// # Errors
    /// [`OutsideError::Exchange`]
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, OutsideError> {
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}

async fn resolve(host: String) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
}

/// Host and port of an address that may be asked.
///
/// # Errors
/// [`OutsideError::Address`]
pub(crate) fn target(url: &Url) -> Result<(Host<String>, u16), OutsideError> {
    let is_web = matches!(url.scheme(), "http" | "https");
    if !is_web || !url.username().is_empty() || url.password().is_some() || url.as_str().len() > MAX_URL {
        return Err(OutsideError::Address);
    }
    url.host().map(|host| host.to_owned()).zip(url.port_or_known_default()).ok_or(OutsideError::Address)
}
