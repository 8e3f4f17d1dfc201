//! Fetching what a user names: each connection goes to an address that the guard has just checked, and all that comes back is bounded.

use std::{io::Read as _, time::Duration};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use openssl::error::ErrorStack;
use url::{Position, Url};

use crate::outside::{Connection, Guard, Outside, OutsideError};

/// How long all of a page or a picture may take, redirects included.
const TIME: Duration = Duration::from_secs(10);
/// How many redirects are followed.
const MAX_REDIRECTS: usize = 5;
/// How much of a page is read, in bytes, packed and unpacked: what it says about itself stands at its beginning.
const MAX_PAGE: usize = 1024 * 1024;
/// The largest picture, in bytes.
pub(super) const MAX_PICTURE: usize = 8 * 1024 * 1024;

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
    /// The host could not be asked.
    #[error(transparent)]
    Outside(#[from] OutsideError),
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

/// Fetches pages and pictures.
pub(super) struct Fetcher {
    outside: Outside,
    user_agent: HeaderValue,
    time: Duration,
}

impl Fetcher {
    /// Fetches by way of the system's resolver and certificates.
    pub(super) fn new(guard: Guard) -> Result<Self, ErrorStack> {
        Ok(Self {
            outside: Outside::new(guard)?,
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
                url = url.join(target).map_err(|_| OutsideError::Address)?;
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
    async fn ask(&self, url: &Url) -> Result<(http::response::Parts, Incoming, Connection), FetchError> {
        let mut connection = self.outside.connect(url).await?;
        let (parts, body) = connection.send(self.request(url)?).await?.into_parts();
        Ok((parts, body, connection))
    }

    fn request(&self, url: &Url) -> Result<Request<Full<Bytes>>, OutsideError> {
        let host = &url[Position::BeforeHost..Position::AfterPort];
        let path = &url[Position::BeforePath..Position::AfterQuery];
        let request = Request::get(path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, self.user_agent.clone())
            .header(header::ACCEPT, "text/html,application/xhtml+xml,image/*;q=0.9,*/*;q=0.1")
            .header(header::ACCEPT_ENCODING, "gzip")
            .header(header::CONNECTION, "close");
        request.body(Full::default()).map_err(|_| OutsideError::Address)
    }
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
        let Ok(part) = frame.map_err(OutsideError::from)?.into_data() else { continue };
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
