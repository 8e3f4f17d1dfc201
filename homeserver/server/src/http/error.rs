//! [`ApiError`]: the only place where a refusal becomes an HTTP status.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#standard-error-response>.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use keystead_core::room::Refusal;
use ruma::api::{
    client::uiaa::UiaaInfo,
    error::{DeserializationError, ErrorCode, HeaderDeserializationError},
};
use serde_json::{Map, Value};

use crate::{
    group_commit::NotDone,
    rooms::{WriteError, aliases::AliasRefusal},
};

/// The text that a client gets for a failure of ours; the log has the cause.
const INTERNAL_TEXT: &str = "Internal server error";

/// A refused or failed request: what the client is told, and what the log is told besides.
pub struct ApiError(Box<Parts>);

struct Parts {
    status: StatusCode,
    /// None for the first answer of user-interactive authentication, which is not a failure.
    errcode: Option<ErrorCode>,
    message: Cow<'static, str>,
    extra: Map<String, Value>,
    retry_after: Option<Duration>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

/// What the access log writes about a refused or failed request; travels in the response's extensions.
#[derive(Clone, Debug)]
pub struct ErrorReport {
    /// The errcode that the client got.
    pub errcode: Option<ErrorCode>,
    /// The public text and all causes, outermost first.
    pub chain: String,
}

impl ApiError {
    /// An error with this status, errcode (a Matrix one or a vendor's like `COM.TRUSTNER.…`) and public text.
    pub fn new(
        status: StatusCode,
        errcode: impl Into<ErrorCode>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Parts {
            status,
            errcode: Some(errcode.into()),
            message: message.into(),
            extra: Map::new(),
            retry_after: None,
            cause: None,
        }))
    }

    /// 400 `M_BAD_JSON`: valid JSON, but not what the endpoint takes.
    pub fn bad_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::BadJson, message)
    }

    /// 400 `M_NOT_JSON`: the body is no JSON at all.
    pub fn not_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::NotJson, message)
    }

    /// 400 `M_INVALID_PARAM`: a parameter has a value that it cannot have.
    pub fn invalid_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidParam, message)
    }

    /// 400 `M_MISSING_PARAM`: a required parameter is absent.
    pub fn missing_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::MissingParam, message)
    }

    /// 400 `M_UNKNOWN`: what the client asks for is nothing that this endpoint knows.
    pub fn unknown_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, message)
    }

    /// 401 `M_MISSING_TOKEN`: the endpoint wants an access token and got none.
    #[must_use]
    pub fn missing_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::MissingToken, "Missing access token")
    }

    /// 401 `M_UNKNOWN_TOKEN`: no such access token, or no longer. With `soft_logout` the client keeps its keys and
    /// logs in again.
    #[must_use]
    pub fn unknown_token(soft_logout: bool) -> Self {
        let error = Self::new(StatusCode::UNAUTHORIZED, ErrorCode::UnknownToken, "Unknown access token");
        if soft_logout { error.with("soft_logout", true) } else { error }
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message)
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, message)
    }

    /// 404 `M_UNRECOGNIZED`: no endpoint has this path.
    #[must_use]
    pub fn unrecognized() -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::Unrecognized, "Unrecognized request")
    }

    /// 405 `M_UNRECOGNIZED`: the path exists, but not with this method.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::Unrecognized,
            "Unrecognized method for this endpoint",
        )
    }

    /// 431 `M_TOO_LARGE`: RFC 6585, section 5.
    pub fn large_head() -> Self {
        let text = "The headers are larger than this server takes";
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ErrorCode::TooLarge, text)
    }

    /// 413 `M_TOO_LARGE`.
    pub fn too_large(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge, message)
    }

    /// 429 `M_LIMIT_EXCEEDED`: the client may try again after `retry_after`. Told in the `Retry-After` header (whole
    /// seconds, rounded up) and in `retry_after_ms`.
    #[must_use]
    pub fn limit_exceeded(retry_after: Duration) -> Self {
        let mut error =
            Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::LimitExceeded, "Too many requests")
                .with("retry_after_ms", u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX));
        error.0.retry_after = Some(retry_after);
        error
    }

    /// 401 with the stages of user-interactive authentication that remain.
    ///
    /// Specification: <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>.
    #[must_use]
    pub fn uiaa(info: &UiaaInfo) -> Self {
        let extra = match serde_json::to_value(info) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Self::unknown("The authentication stages are not an object"),
            Err(error) => return Self::internal(error),
        };
        Self(Box::new(Parts {
            status: StatusCode::UNAUTHORIZED,
            errcode: extra.get("errcode").and_then(Value::as_str).map(ErrorCode::from),
            message: "Authentication stages remain".into(),
            extra,
            retry_after: None,
            cause: None,
        }))
    }

    /// 500 `M_UNKNOWN` because of `cause`, which only the log shows.
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::unknown(INTERNAL_TEXT).because(cause)
    }

    /// 503 `M_UNKNOWN` because of `cause`: something that the server needs cannot be reached just now.
    pub fn unavailable(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let mut error = Self::unknown("The service is not available just now").because(cause);
        error.0.status = StatusCode::SERVICE_UNAVAILABLE;
        error.0.retry_after = Some(Duration::from_secs(1));
        error
    }

    /// 503 `M_LIMIT_EXCEEDED`: as many connections are open as may be. A client that comes again may find one free, or another replica.
    #[must_use]
    pub fn too_many_connections() -> Self {
        let mut error = Self::limit_exceeded(Duration::from_secs(5));
        error.0.status = StatusCode::SERVICE_UNAVAILABLE;
        error.0.message = "Too many connections are open".into();
        error
    }

    /// 507 `M_RESOURCE_LIMIT_EXCEEDED` because of `cause`: there is no room left to write to. What was written before can
    /// be read.
    pub fn storage_full(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let text = "The server has no room left to store anything";
        Self::new(StatusCode::INSUFFICIENT_STORAGE, ErrorCode::ResourceLimitExceeded, text).because(cause)
    }

    /// What the store could not do: 400 for a text that it cannot hold, 503 while the database is away, 507 when its disk is
    /// full, else 500.
    fn of_store(error: Arc<keystead_store::Error>) -> Self {
        match *error {
            keystead_store::Error::InvalidText => {
                Self::invalid_param("Text must not have zero characters").because(error)
            }
            keystead_store::Error::Unavailable(_) | keystead_store::Error::Retryable(_) => {
                Self::unavailable(error)
            }
            keystead_store::Error::Full(_) => Self::storage_full(error),
            _ => Self::internal(error),
        }
    }

    /// The same failure, for another request that was part of the same transaction.
    #[must_use]
    pub fn shared(&self) -> Self {
        let cause =
            self.0.cause.as_ref().and_then(|cause| cause.downcast_ref::<Arc<keystead_store::Error>>());
        cause.map_or_else(|| Self::unknown(INTERNAL_TEXT), |error| Self::of_store(Arc::clone(error)))
    }

    /// Adds a field to the error's JSON body.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0.extra.insert(field.to_owned(), value.into());
        self
    }

    /// Replaces the public text.
    #[must_use]
    pub fn saying(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.0.message = message.into();
        self
    }

    /// Adds what only the log may show.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The errcode; none for the first answer of user-interactive authentication.
    #[must_use]
    pub fn errcode(&self) -> Option<&ErrorCode> {
        self.0.errcode.as_ref()
    }

    /// The answer to the client, with an [`ErrorReport`] for the access log in its extensions.
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let report = ErrorReport { errcode: self.0.errcode.clone(), chain: self.chain() };
        let Parts { status, errcode, message, extra: mut body, retry_after, .. } = *self.0;
        if let Some(errcode) = errcode {
            body.entry("errcode").or_insert_with(|| errcode.as_str().into());
            body.entry("error").or_insert_with(|| message.into());
        }
        let mut response = Response::new(Bytes::from(Value::Object(body).to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(delay) = retry_after {
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(report);
        response
    }

    fn unknown(message: &'static str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, message)
    }

    fn chain(&self) -> String {
        let mut text = self.0.message.to_string();
        let mut cause = self.0.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static));
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errcode = self.0.errcode.as_ref().map_or("-", ErrorCode::as_str);
        write!(f, "{} {errcode}: {}", self.0.status, self.chain())
    }
}

impl StdError for ApiError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

impl From<keystead_store::Error> for ApiError {
    fn from(error: keystead_store::Error) -> Self {
        Self::of_store(Arc::new(error))
    }
}

impl From<Arc<keystead_store::Error>> for ApiError {
    fn from(error: Arc<keystead_store::Error>) -> Self {
        Self::of_store(error)
    }
}

impl From<NotDone> for ApiError {
    fn from(not_done: NotDone) -> Self {
        match not_done {
            NotDone::Busy => Self::limit_exceeded(Duration::from_secs(1)),
            NotDone::Ended => Self::unavailable(not_done),
        }
    }
}

impl keystead_store::TransactionError for ApiError {
    fn store_error(&self) -> Option<&keystead_store::Error> {
        self.0.cause.as_ref()?.downcast_ref::<Arc<keystead_store::Error>>().map(AsRef::as_ref)
    }
}

impl From<AliasRefusal> for ApiError {
    fn from(error: AliasRefusal) -> Self {
        let text = error.to_string();
        match error {
            AliasRefusal::NotAnAlias => Self::invalid_param(text),
            AliasRefusal::OfAnotherRoom(_) => Self::new(StatusCode::BAD_REQUEST, ErrorCode::BadAlias, text),
            AliasRefusal::Store(error) => error.into(),
        }
    }
}

/// What a room refuses is told with the room's own words.
impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Refused(Refusal::Forbidden(text)) => Self::forbidden(text),
            WriteError::Refused(Refusal::TooLarge(text)) => Self::too_large(text),
            WriteError::Refused(Refusal::BadContent(text) | Refusal::BadEvent(text)) => Self::bad_json(text),
            WriteError::UnknownRoom => Self::not_found("There is no such room"),
            WriteError::Conflict => Self::new(StatusCode::CONFLICT, ErrorCode::Unknown, "The name is taken"),
            WriteError::Busy => Self::limit_exceeded(Duration::from_secs(1)),
            WriteError::Unsure => Self::unavailable(error),
            WriteError::Store(error) => Self::of_store(error),
        }
    }
}

/// What makes a request unreadable is the client's mistake, and the errcode says which kind of mistake.
impl From<DeserializationError> for ApiError {
    fn from(error: DeserializationError) -> Self {
        match error {
            DeserializationError::Json(error) if error.is_data() => {
                let text = error.to_string();
                // ruma takes no version that the specification could not give out; to a client it is one among the unsupported.
                if text.contains("\", expected a Matrix room version ID") {
                    Self::new(StatusCode::BAD_REQUEST, ErrorCode::UnsupportedRoomVersion, text)
                } else {
                    Self::bad_json(text)
                }
            }
            DeserializationError::Json(error) => Self::not_json(error.to_string()),
            // Path and query parameters alike.
            DeserializationError::Query(error) => {
                let text = error.to_string();
                if text.starts_with("missing field") {
                    Self::missing_param(text)
                } else {
                    Self::invalid_param(text)
                }
            }
            DeserializationError::Header(error @ HeaderDeserializationError::MissingHeader(_)) => {
                Self::missing_param(error.to_string())
            }
            error => Self::invalid_param(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(response: &Response<Bytes>) -> Value {
        serde_json::from_slice(response.body()).unwrap()
    }

    #[test]
    fn a_refusal_carries_errcode_and_text_and_nothing_of_its_cause() {
        let error = ApiError::internal(std::io::Error::other("disk on fire"));
        assert!(format!("{error:?}").contains("disk on fire"));
        let response = error.into_response();
        assert_eq!(response.status(), 500);
        assert_eq!(body(&response), json!({"errcode": "M_UNKNOWN", "error": "Internal server error"}));
        let report = response.extensions().get::<ErrorReport>().unwrap();
        assert_eq!(report.chain, "Internal server error: disk on fire");
    }

    #[test]
    fn a_limit_tells_the_delay_twice() {
        let response = ApiError::limit_exceeded(Duration::from_millis(1_500)).into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(body(&response)["retry_after_ms"], 1_500);
        assert_eq!(body(&response)["errcode"], "M_LIMIT_EXCEEDED");
    }

    #[test]
    fn a_vendor_errcode_and_extra_fields_reach_the_client() {
        let response = ApiError::new(StatusCode::FORBIDDEN, "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER", "no")
            .with("room_id", "!a:b")
            .into_response();
        assert_eq!(
            body(&response),
            json!({"errcode": "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER", "error": "no", "room_id": "!a:b"})
        );
    }

    #[test]
    fn uiaa_answers_have_flows_and_no_errcode_at_first() {
        let info: UiaaInfo =
            serde_json::from_value(json!({"flows": [{"stages": ["m.login.dummy"]}], "session": "s"}))
                .unwrap();
        let response = ApiError::uiaa(&info).into_response();
        assert_eq!(response.status(), 401);
        let body = body(&response);
        assert_eq!(body["session"], "s");
        assert_eq!(body["flows"][0]["stages"][0], "m.login.dummy");
        assert!(body.get("errcode").is_none());
    }
}
