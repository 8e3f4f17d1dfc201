//! Reading a request's body within limits of size and time.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use ruma::api::error::ErrorCode;

use crate::http::error::ApiError;

/// Reads the whole body.
///
/// # Errors
///
/// 413 `M_TOO_LARGE` beyond `limit` bytes, 408 when it takes longer than `timeout`, 400 when the client breaks off.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Incoming,
    limit: usize,
    timeout: Duration,
) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::too_large(format!("The body must not be larger than {limit} bytes"));
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| usize::try_from(length).is_ok_and(|length| length > limit)) {
        return Err(too_large());
    }
    match tokio::time::timeout(timeout, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            ErrorCode::Unknown,
            "The body could not be read to its end",
        )
        .because(error)),
        Err(elapsed) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            ErrorCode::Unknown,
            "The body took too long to arrive",
        )
        .because(elapsed)),
    }
}
