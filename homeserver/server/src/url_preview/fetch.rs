//! Fetching what a user names: each connection goes to an address that the guard has just checked, and all that comes back is bounded.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use openssl::{
    error::ErrorStack,
    ssl::{SslConnector, SslMethod, SslVersion},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_openssl::SslStream;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Position, Url};

use super::guard::Guard;

/// How long all of a page or a picture may take, redirects included.
const TIME: Duration = Duration::from_secs(10);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(4);
/// How many addresses of a host are tried.
const MAX_ADDRESSES: usize = 3;
/// How many redirects are followed.
const MAX_REDIRECTS: usize = 5;
/// How much of a page is read, in bytes, packed and unpacked: what it says about itself stands at its beginning.
const MAX_PAGE: usize = 1024 * 1024;
/// The largest picture, in bytes.
pub(super) const MAX_PICTURE: usize = 8 * 1024 * 1024;
/// The longest headers of an answer, in bytes.
const MAX_HEADERS: usize = 64 * 1024;
/// The longest address, in bytes.
pub(super) const MAX_URL: usize = 4 * 1024;

/// What came back.
#[derive(Debug)]
pub(super) struct Fetched {
    /// Where it was in the end.
    pub(super) url: Url,
    /// What it is.
    pub(super) content: Content,
}

/// What something is.
#[derive(Debug)]
pub(super) enum Content {
    /// A page, or its beginning, and the encoding that the header names.
    Page(Vec<u8>, Option<String>),
    /// A picture, whole.
    Picture(Vec<u8>),
    /// Something else, of which nothing was read.
    Other,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// The address is not one that can be fetched.
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
    /// The host answered with an error.
    #[error("the host answered with status {0}")]
    Status(StatusCode),
    /// It redirected again and again.
    #[error("more than {MAX_REDIRECTS} redirects")]
    Redirects,
    /// A picture is too large.
    #[error("the picture has more than {MAX_PICTURE} bytes")]
    TooLarge,
    /// The answer is packed in a way that was not asked for.
    #[error("the answer has an encoding that was not asked for")]
    Encoding,
    /// It took too long.
    #[error("it took too long")]
    Time,
}

/// Looks up the addresses of a host.
type Resolver = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Fetches pages and pictures.
pub(super) struct Fetcher {
    guard: Guard,
    resolver: Resolver,
    tls: SslConnector,
    user_agent: HeaderValue,
    time: Duration,
}

impl Fetcher {
    /// Fetches by way of the system's resolver and certificates.
    pub(super) fn new(guard: Guard) -> Result<Self, ErrorStack> {
        let mut tls = SslConnector::builder(SslMethod::tls_client())?;
        tls.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        Ok(Self {
            guard,
            resolver: Arc::new(|host| Box::pin(resolve(host))),
            tls: tls.build(),
            user_agent: HeaderValue::from_static(concat!(
                "Keystead/",
                env!("CARGO_PKG_VERSION"),
                " (link preview; bot)"
            )),
            time: TIME,
        })
    }

    /// Fetches what is at an address.
    pub(super) async fn fetch(&self, url: Url) -> Result<Fetched, FetchError> {
        tokio::time::timeout(self.time, self.follow(url)).await.map_err(|_| FetchError::Time)?
    }

    async fn follow(&self, mut url: Url) -> Result<Fetched, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let (parts, body, _connection) = self.ask(&url).await?;
            if parts.status.is_redirection() {
                let target = parts.headers.get(header::LOCATION).and_then(|target| target.to_str().ok());
                let target = target.ok_or(FetchError::Status(parts.status))?;
                url = url.join(target).map_err(|_| FetchError::Address)?;
                continue;
            }
            if parts.status != StatusCode::OK {
                return Err(FetchError::Status(parts.status));
            }
            let content = read(&parts.headers, body).await?;
            return Ok(Fetched { url, content });
        }
        Err(FetchError::Redirects)
    }

    /// Asks one host once. The body can be read as long as the connection is held.
    async fn ask(
        &self,
        url: &Url,
    ) -> Result<(http::response::Parts, Incoming, AbortOnDropHandle<()>), FetchError> {
        let (host, port) = target(url)?;
        let tcp = self.connect(&host, port).await?;
        let request = self.request(url)?;
        match (url.scheme(), &host) {
            ("https", host) => {
                // An address without brackets, as certificates have it.
                let name = match host {
                    Host::Domain(name) => name.clone(),
                    Host::Ipv4(address) => address.to_string(),
                    Host::Ipv6(address) => address.to_string(),
                };
                let ssl = self.tls.configure()?.into_ssl(&name)?;
                let mut stream = SslStream::new(ssl, tcp)?;
                std::pin::Pin::new(&mut stream).connect().await.map_err(FetchError::Handshake)?;
                exchange(stream, request).await
            }
            _ => exchange(tcp, request).await,
        }
    }

    /// Connects to an address of the host that the guard permits: to that very address, so that the name cannot lead elsewhere meanwhile. A host
    /// of which one address is not permitted is not connected to at all.
    async fn connect(&self, host: &Host<String>, port: u16) -> Result<TcpStream, FetchError> {
        let addresses = match host {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) => (self.resolver)(name.clone()).await.map_err(FetchError::Resolve)?,
        };
        if let Some(denied) = addresses.iter().find(|address| !self.guard.permits(**address)) {
            return Err(FetchError::Denied(*denied));
        }
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            match tokio::time::timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, port))).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(late) => last = late.into(),
            }
        }
        Err(FetchError::Connect(last))
    }

    fn request(&self, url: &Url) -> Result<Request<Empty<Bytes>>, FetchError> {
        let host = &url[Position::BeforeHost..Position::AfterPort];
        let path = &url[Position::BeforePath..Position::AfterQuery];
        let request = Request::get(path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, self.user_agent.clone())
            .header(header::ACCEPT, "text/html,application/xhtml+xml,image/*;q=0.9,*/*;q=0.1")
            .header(header::ACCEPT_ENCODING, "gzip")
            .header(header::CONNECTION, "close");
        request.body(Empty::new()).map_err(|_| FetchError::Address)
    }
}

async fn resolve(host: String) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
}

/// Host and port of an address that may be fetched.
pub(super) fn target(url: &Url) -> Result<(Host<String>, u16), FetchError> {
    let is_web = matches!(url.scheme(), "http" | "https");
    if !is_web || !url.username().is_empty() || url.password().is_some() || url.as_str().len() > MAX_URL {
        return Err(FetchError::Address);
    }
    url.host().map(|host| host.to_owned()).zip(url.port_or_known_default()).ok_or(FetchError::Address)
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<(http::response::Parts, Incoming, AbortOnDropHandle<()>), FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEADERS).handshake(TokioIo::new(stream)).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // How it ended, whoever reads the answer is told.
        let _ = connection.await;
    }));
    let (parts, body) = sender.send_request(request).await?.into_parts();
    Ok((parts, body, connection))
}

async fn read(headers: &HeaderMap, body: Incoming) -> Result<Content, FetchError> {
    let text =
        |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let content_type = text(header::CONTENT_TYPE).to_ascii_lowercase();
    let mut parameters = content_type.split(';').map(str::trim);
    let essence = parameters.next().unwrap_or_default();
    let is_packed = match text(header::CONTENT_ENCODING).trim().to_ascii_lowercase().as_str() {
        "" | "identity" => false,
        "gzip" | "x-gzip" => true,
        _ => return Err(FetchError::Encoding),
    };
    if matches!(essence, "text/html" | "application/xhtml+xml") {
        let charset = parameters.find_map(|parameter| parameter.strip_prefix("charset="));
        let charset = charset.map(|charset| charset.trim_matches('"').to_owned());
        let (page, _) = up_to(MAX_PAGE, body).await?;
        let page = if is_packed { unpacked(&page) } else { page };
        return Ok(Content::Page(page, charset));
    }
    if essence.starts_with("image/") && !is_packed {
        let announced: Option<usize> = text(header::CONTENT_LENGTH).parse().ok();
        if announced.is_some_and(|length| length > MAX_PICTURE) {
            return Err(FetchError::TooLarge);
        }
        let (picture, is_whole) = up_to(MAX_PICTURE, body).await?;
        return if is_whole { Ok(Content::Picture(picture)) } else { Err(FetchError::TooLarge) };
    }
    Ok(Content::Other)
}

/// The beginning of a body, and whether it is all of it.
async fn up_to(limit: usize, mut body: Incoming) -> Result<(Vec<u8>, bool), FetchError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(part) = frame?.into_data() else { continue };
        let room = limit.saturating_sub(bytes.len());
        bytes.extend_from_slice(part.get(..room).unwrap_or(&part));
        if part.len() > room {
            return Ok((bytes, false));
        }
    }
    Ok((bytes, true))
}

/// The beginning of what was packed, as far as it can be unpacked: a few kilobytes can hold gigabytes of zeros.
fn unpacked(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_PAGE).unwrap_or(u64::MAX);
    // The end may be missing, or broken; what came before it is in the buffer.
    let _ = MultiGzDecoder::new(packed).take(limit).read_to_end(&mut bytes);
    bytes
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
