//! Files at the homeserver: streamed, never held whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use hyper::{Method, Response, StatusCode};
use serde::Deserialize;

use super::http::{Call, segment};
use super::{Api, ApiError, ServerError};

/// A transfer on which nothing moves for so long has failed.
const STALL: Duration = Duration::from_secs(60);
/// A refusal is not longer.
const MAX_REFUSAL: usize = 64 * 1024;

/// A file, or the rest of one, as it comes from the homeserver.
#[derive(Debug)]
pub struct Download {
    /// The place in the file where it begins.
    pub begin: u64,
    /// The length of the whole file, if the server tells.
    pub total: Option<u64>,
    body: Incoming,
}

impl Download {
    /// The next bytes; nothing after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            match tokio::time::timeout(STALL, self.body.frame()).await {
                Err(_) => return Err(ApiError::Timeout),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(ApiError::Interrupted(error.into())),
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

impl Api {
    /// The largest file that the homeserver takes, in bytes; `None` if it does not say.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediaconfig>
    pub async fn upload_limit(&self) -> Result<Option<u64>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "m.upload.size", default)]
            size: Option<u64>,
        }
        Ok(self.call::<Answer>(Call::get("/_matrix/client/v1/media/config")).await?.size)
    }

    /// Uploads `length` bytes and returns their `mxc://` address. Matrix knows no way to go on with an upload that broke off.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixmediav3upload>
    pub async fn upload<S>(&self, length: u64, content: S) -> Result<String, ApiError>
    where
        S: Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    {
        #[derive(Deserialize)]
        struct Answer {
            content_uri: String,
        }
        let moved = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&moved);
        let content = content.map_ok(move |bytes| {
            counter.fetch_add(1, Ordering::Relaxed);
            Frame::data(bytes)
        });
        // Of what a ciphertext is, neither name nor type tells anything.
        let request = self
            .http
            .request(Method::POST, "/_matrix/media/v3/upload", self.token())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, length)
            .body(StreamBody::new(content).boxed_unsync())
            .map_err(|error| ApiError::Malformed(error.into()))?;
        let mut exchange = std::pin::pin!(self.http.send(request));
        let response = loop {
            let before = moved.load(Ordering::Relaxed);
            match tokio::time::timeout(STALL, &mut exchange).await {
                Ok(response) => break response?,
                Err(_) if moved.load(Ordering::Relaxed) == before => return Err(ApiError::Timeout),
                Err(_) => {}
            }
        };
        let body = whole(accepted(response).await?).await?;
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|error| ApiError::Malformed(error.into()))?;
        Ok(answer.content_uri)
    }

    /// Downloads a file from byte `from` on. The server may answer with the whole file nevertheless.
    ///
    /// `address` is `SERVER/ID` of an `mxc://` address.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid>
    pub async fn download(&self, address: (&str, &str), from: u64) -> Result<Download, ApiError> {
        let (server, id) = (segment(address.0), segment(address.1));
        let path = format!("/_matrix/client/v1/media/download/{server}/{id}");
        let mut request = self.http.request(Method::GET, &path, self.token());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let request =
            request.body(super::http::empty()).map_err(|error| ApiError::Malformed(error.into()))?;
        let response = tokio::time::timeout(STALL, self.http.send(request)).await;
        let response = accepted(response.map_err(|_| ApiError::Timeout)??).await?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let (begin, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => header(CONTENT_RANGE)
                .and_then(content_range)
                .ok_or_else(|| ApiError::Malformed("no Content-Range".into()))?,
            _ => (0, header(CONTENT_LENGTH).and_then(|length| length.parse().ok())),
        };
        Ok(Download { begin, total, body: response.into_body() })
    }
}

/// A success; the server's refusal otherwise.
async fn accepted(response: Response<Incoming>) -> Result<Response<Incoming>, ApiError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = whole(response).await?;
    Err(ServerError::new(status.as_u16(), serde_json::from_slice(&body).unwrap_or_default()).into())
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, ApiError> {
    let body = Limited::new(response.into_body(), MAX_REFUSAL).collect();
    let body = tokio::time::timeout(STALL, body).await.map_err(|_| ApiError::Timeout)?;
    Ok(body.map_err(ApiError::Interrupted)?.to_bytes())
}

/// `bytes BEGIN-END/TOTAL`, where the total may be `*`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for wrong in ["", "bytes */10", "bytes 5/10", "lines 5-9/10", "bytes x-9/10"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
