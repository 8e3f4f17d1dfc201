//! Bodies: of requests, read at once or part by part within limits of size and time; of answers, whole or streamed.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, StatusCode, Version, header, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use ruma::api::error::ErrorCode;

use crate::http::error::ApiError;

/// How long what a client still sends is taken after its request has been answered, and how many bytes of it.
const LINGER: Duration = Duration::from_secs(5);
const MAX_LINGER_BYTES: usize = 64 * 1024 * 1024;

/// The body of a request. What nobody reads of it is taken from the client all the same for a while and thrown away: if the connection were closed while
/// the client still sends, the client's system would throw away the answer instead (RFC 9112, section 9.6).
#[derive(Debug)]
pub struct RequestBody {
    /// Until its end.
    body: Option<Incoming>,
    /// An answer in HTTP/2 reaches the client whatever becomes of the rest.
    lingers: bool,
    /// The client sends nothing before it is told to go on (`Expect: 100-continue`), as it is when the first part is read.
    awaits_continue: bool,
}

impl RequestBody {
    /// The body of a request with such a head.
    pub(super) fn new(head: &Parts, body: Incoming) -> Self {
        Self {
            body: Some(body),
            lingers: head.version <= Version::HTTP_11,
            awaits_continue: head.headers.contains_key(header::EXPECT),
        }
    }
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.awaits_continue = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let next = Pin::new(body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = next {
            self.body = None;
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let lingers = self.lingers && !self.awaits_continue;
        if let Some(rest) = self.body.take().filter(|rest| lingers && !rest.is_end_stream())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let mut rest = Limited::new(rest, MAX_LINGER_BYTES);
            let take = async move { while let Some(Ok(_)) = rest.frame().await {} };
            runtime.spawn(tokio::time::timeout(LINGER, take));
        }
    }
}

/// Reads the whole body.
///
/// # Errors
///
/// 413 `M_TOO_LARGE` beyond `limit` bytes, 408 when it takes longer than `timeout`, 400 when the client breaks off.
pub(super) async fn read(
    headers: &HeaderMap,
    body: RequestBody,
    limit: usize,
    timeout: Duration,
) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::too_large(format!("The body must not be larger than {limit} bytes"));
    if announced_length(headers)
        .is_some_and(|length| usize::try_from(length).is_ok_and(|length| length > limit))
    {
        return Err(too_large());
    }
    match tokio::time::timeout(timeout, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(broken_off(error)),
        Err(elapsed) => Err(too_slow(elapsed)),
    }
}

fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn broken_off(error: impl Into<BoxError>) -> ApiError {
    let text = "The body could not be read to its end";
    ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, text).because(error)
}

fn too_slow(elapsed: tokio::time::error::Elapsed) -> ApiError {
    let text = "The body took too long to arrive";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Unknown, text).because(elapsed)
}

/// A request's body that is read part by part, because it is too large to be held in memory.
#[derive(Debug)]
pub struct IncomingBody {
    body: RequestBody,
    announced: Option<u64>,
    timeout: Duration,
}

impl IncomingBody {
    /// The body of a request with these headers; each part has to come within `timeout`.
    pub(super) fn new(headers: &HeaderMap, body: RequestBody, timeout: Duration) -> Self {
        Self { body, announced: announced_length(headers), timeout }
    }

    /// How many bytes the client says that it will send, if it says so.
    #[must_use]
    pub fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// The next part; nothing after the last.
    ///
    /// # Errors
    ///
    /// 408 when it takes too long, 400 when the client breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            match tokio::time::timeout(self.timeout, self.body.frame()).await {
                Ok(None) => return Ok(None),
                // Trailers mean nothing here.
                Ok(Some(Ok(frame))) => {
                    if let Ok(part) = frame.into_data() {
                        return Ok(Some(part));
                    }
                }
                Ok(Some(Err(error))) => return Err(broken_off(error)),
                Err(elapsed) => return Err(too_slow(elapsed)),
            }
        }
    }
}

/// Why the body of an answer could not be sent to its end.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer: bytes that are there already, or a stream of a known length.
pub struct Body {
    content: Content,
    /// How many bytes are still to come.
    left: u64,
}

enum Content {
    Whole(Bytes),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>),
}

impl Body {
    /// The bytes of a stream, `length` of them.
    pub fn stream(length: u64, parts: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Self {
        Self { content: Content::Stream(Box::pin(parts)), left: length }
    }

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.left
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { left: bytes.len().try_into().unwrap_or(u64::MAX), content: Content::Whole(bytes) }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let next = match &mut self.content {
            Content::Whole(bytes) => {
                Poll::Ready(Some(std::mem::take(bytes)).filter(|rest| !rest.is_empty()).map(Ok))
            }
            Content::Stream(parts) => parts.as_mut().poll_next(context),
        };
        next.map(|part| {
            part.map(|part| {
                let part = part?;
                self.left = self.left.saturating_sub(part.len().try_into().unwrap_or(u64::MAX));
                Ok(Frame::data(part))
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
