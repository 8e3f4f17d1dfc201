//! Downloads: a file or a part of it, streamed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use keystead_store::media::{self as store, Content, Medium};
use ruma::{ServerName, api::error::ErrorCode};
use tokio::time::Instant;

use super::{
    headers, objects,
    range::{self, Wanted},
};
use crate::{
    app::App,
    http::{body::Body, error::ApiError, reply::Custom},
};

/// The longest that a request waits for a file that is still to be uploaded, whatever it asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// The medium at an address of this server. Others' media are unknown here: there is no federation.
///
/// # Errors
///
/// 404 `M_NOT_FOUND`, also for an address that has lapsed, and for a medium that is withheld.
pub(crate) async fn find(app: &App, server: &ServerName, media_id: &str) -> Result<Medium, ApiError> {
    let not_found = || ApiError::not_found("There is no such medium on this server");
    if *server != app.settings.server.name {
        return Err(not_found());
    }
    let medium = app.store.read("find_media", |tx| async move { store::find(&tx, media_id).await }).await?;
    let now = app.clock.now();
    medium
        .filter(|medium| !medium.is_quarantined)
        .filter(|medium| medium.content.is_some() || medium.expires_ts.is_none_or(|expires| now < expires))
        .ok_or_else(not_found)
}

/// What was uploaded to an address, waiting up to `timeout` for it.
///
/// # Errors
///
/// 404 `M_NOT_FOUND`, 504 `M_NOT_YET_UPLOADED`.
pub(crate) async fn content(
    app: &App,
    server: &ServerName,
    media_id: &str,
    timeout: Duration,
) -> Result<Content, ApiError> {
    let deadline = Instant::now() + timeout.min(LONGEST_WAIT);
    loop {
        if let Some(content) = find(app, server, media_id).await?.content {
            return Ok(content);
        }
        if Instant::now() >= deadline || app.shutdown.is_draining() {
            let text = "The content has not been uploaded yet";
            return Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, ErrorCode::NotYetUploaded, text));
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline.min(Instant::now() + INTERVAL)) => {}
            () = app.shutdown.draining() => {}
        }
    }
}

/// An object to be sent, and what is told about it.
pub(crate) struct File<'a> {
    /// The medium that it is of.
    pub(crate) media_id: &'a str,
    /// What it is.
    pub(crate) content: &'a Content,
    /// Which of the medium's objects it is.
    pub(crate) object: &'a str,
    /// The name that the receiver shall save it under.
    pub(crate) file_name: Option<&'a str>,
}

impl File<'_> {
    /// The answer to a request with these headers: the file, a part of it, or that the client has it already.
    ///
    /// # Errors
    ///
    /// 404 when the medium has been deleted meanwhile; 500 when the object cannot be read.
    pub(crate) async fn answer(
        &self,
        app: &Arc<App>,
        method: &Method,
        request: &HeaderMap,
    ) -> Result<Custom, ApiError> {
        let size = self.content.size;
        // Objects never change, and no two have the same name.
        let etag = format!("\"{}.{}\"", self.content.object, self.object);
        let headers = headers::of(&self.content.content_type, self.file_name, &etag);
        if matches(request, header::IF_NONE_MATCH, &etag) {
            return Ok(with(StatusCode::NOT_MODIFIED, headers, Bytes::new().into()));
        }
        // > A server MUST ignore a Range header field received with a request method that is unrecognized or for which
        // > range handling is not defined. For this specification, GET is the only method for which range handling is defined.
        let is_current = !request.contains_key(header::IF_RANGE) || matches(request, header::IF_RANGE, &etag);
        let range = request.get(header::RANGE).and_then(|value| value.to_str().ok());
        let range = range.filter(|_| method == Method::GET && is_current);
        match range::wanted(range, size) {
            Wanted::Nothing => Ok(not_satisfiable(size)),
            Wanted::Whole => {
                let body = self.stream(app, 0..size).await?;
                Ok(with(StatusCode::OK, headers, body))
            }
            Wanted::Part(part) => {
                let mut headers = headers;
                let last = part.end.saturating_sub(1);
                headers.insert(
                    header::CONTENT_RANGE,
                    HeaderValue::try_from(format!("bytes {}-{last}/{size}", part.start))
                        .map_err(ApiError::internal)?,
                );
                let body = self.stream(app, part).await?;
                Ok(with(StatusCode::PARTIAL_CONTENT, headers, body))
            }
        }
    }

    async fn stream(&self, app: &Arc<App>, part: std::ops::Range<u64>) -> Result<Body, ApiError> {
        let length = part.end.saturating_sub(part.start);
        let read = match app.media.objects.read(&self.content.object, self.object, part).await {
            Err(error) if error.is_not_found() => {
                // It is an error of ours only if the medium should be there.
                find(app, &app.settings.server.name, self.media_id).await?;
                return Err(ApiError::internal(error));
            }
            read => read.map_err(ApiError::internal)?,
        };
        let metrics = app.metrics.clone();
        let parts = read.inspect(move |part| {
            metrics.media_sent(part.as_ref().map_or(0, Bytes::len));
        });
        Ok(Body::stream(length, parts))
    }
}

impl<'a> File<'a> {
    /// What was uploaded, under the name that it was given, or under another one.
    pub(crate) fn whole(media_id: &'a str, content: &'a Content, file_name: Option<&'a str>) -> Self {
        let file_name = file_name.or(content.file_name.as_deref());
        Self { media_id, content, object: objects::CONTENT, file_name }
    }
}

fn with(status: StatusCode, headers: HeaderMap, body: Body) -> Custom {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Custom(response)
}

/// > A server that generates a 416 response to a byte-range request SHOULD generate a Content-Range header field specifying
/// > the current length of the selected representation.
fn not_satisfiable(size: u64) -> Custom {
    let text = format!("The file has {size} bytes: there is no such part");
    let error = ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::InvalidParam, text);
    let mut response = error.into_response().map(Body::from);
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    Custom(response)
}

/// Whether a header names this entity tag. A weak one (`W/`) is never ours; a date in `If-Range` does not match, since no
/// dates are given out.
fn matches(headers: &HeaderMap, name: header::HeaderName, etag: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|tag| tag.trim() == etag || tag.trim() == "*")
}
