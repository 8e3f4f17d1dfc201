//! What can go wrong between a KeyBox and its homeserver.

use serde_json::Value;

/// A request that did not lead to an answer that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The homeserver's address is not an `http` or `https` URL.
    #[error("{0:?} is not the address of a homeserver, such as http://127.0.0.1:8008")]
    Address(String),
    /// The connection broke in the middle of a file.
    #[error("the connection to the homeserver broke off")]
    Interrupted(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not what the Matrix specification says.
    #[error("the homeserver's answer cannot be understood")]
    Malformed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server's certificate is another one than the pinned one. Nothing was sent to it.
    #[error(
        "the homeserver shows another certificate than the pinned one: pinned SHA-256 {pinned}, shown certificate \
         {certificate}, shown public key {public_key}; somebody may be in between, or the server has a new one: ask \
         who runs it"
    )]
    Pin {
        /// What it was to be.
        pinned: String,
        /// SHA-256 of the certificate that was shown.
        certificate: String,
        /// SHA-256 of its public key.
        public_key: String,
    },
    /// A pin is not the hexadecimal SHA-256 of a certificate or key.
    #[error("a pin is the SHA-256 of a certificate or its public key: 64 hexadecimal digits")]
    PinMalformed,
    /// There is no certificate to pin without TLS.
    #[error("a pin needs an https address")]
    PinWithoutTls,
    /// The homeserver refused, or cannot do it just now.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The homeserver did not answer in time.
    #[error("the homeserver did not answer in time")]
    Timeout,
    /// TLS could not be set up on this side.
    #[error("TLS cannot be used")]
    Tls(#[source] openssl::error::ErrorStack),
    /// The homeserver could not be reached, or hung up.
    #[error("the homeserver at {server} cannot be reached")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A refusal, or that the server cannot do it just now. <https://spec.matrix.org/v1.19/client-server-api/#standard-error-response>
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the homeserver {}: {message} ({errcode})", self.verdict())]
pub struct ServerError {
    /// The HTTP status.
    pub status: u16,
    /// The error code, such as `M_FORBIDDEN`; `M_UNKNOWN` if the answer names none.
    pub errcode: String,
    /// The server's words for people.
    pub message: String,
    /// How long to wait before trying again, in milliseconds, if the server says so.
    pub retry_after_ms: Option<u64>,
    /// The whole answer: the interactive authentication of a registration needs it.
    pub body: Value,
}

impl ServerError {
    /// Whether the server wants a password or the like: the interactive authentication.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>
    pub fn asks_for_authentication(&self) -> bool {
        self.status == 401 && self.body.get("flows").is_some()
    }

    /// What the status means to a person: only what is final is a refusal.
    fn verdict(&self) -> String {
        match (self.status, self.retry_after_ms) {
            (429, Some(wait)) => {
                format!("wants fewer requests, try again in {} s", wait.div_ceil(1_000))
            }
            (429, None) => "wants fewer requests, try again later".to_owned(),
            (500.., _) => "cannot do this just now, try again later".to_owned(),
            _ => "refused".to_owned(),
        }
    }

    pub(super) fn new(status: u16, body: Value) -> Self {
        let text = |field: &str| body.get(field).and_then(Value::as_str);
        Self {
            status,
            errcode: text("errcode").unwrap_or("M_UNKNOWN").to_owned(),
            message: text("error").map_or_else(|| format!("HTTP status {status}"), str::to_owned),
            retry_after_ms: body.get("retry_after_ms").and_then(Value::as_u64),
            body,
        }
    }
}

impl ApiError {
    /// The Matrix error code, if the homeserver refused.
    pub fn errcode(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.errcode),
            _ => None,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Server(error) => error.status >= 500 || error.status == 429,
            Self::Interrupted(_) | Self::Timeout | Self::Unreachable { .. } => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_refusal_is_not_called_one() {
        let words = |status, body| ServerError::new(status, body).to_string();
        let denied = json!({ "errcode": "M_FORBIDDEN", "error": "No" });
        assert_eq!(words(403, denied), "the homeserver refused: No (M_FORBIDDEN)");
        let away = json!({ "errcode": "M_UNKNOWN", "error": "The database is away" });
        assert_eq!(
            words(503, away),
            "the homeserver cannot do this just now, try again later: The database is away (M_UNKNOWN)"
        );
        let often = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "Too often", "retry_after_ms": 1_500 });
        assert_eq!(
            words(429, often),
            "the homeserver wants fewer requests, try again in 2 s: Too often (M_LIMIT_EXCEEDED)"
        );
        let often = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "Too often" });
        assert_eq!(
            words(429, often),
            "the homeserver wants fewer requests, try again later: Too often (M_LIMIT_EXCEEDED)"
        );
    }
}
