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
    /// The homeserver refused.
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

/// A refusal. <https://spec.matrix.org/v1.19/client-server-api/#standard-error-response>
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the homeserver refused: {message} ({errcode})")]
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
