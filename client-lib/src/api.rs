//! The Matrix client-server API, as far as a KeyBox needs it.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/>

mod account;
mod backup;
mod error;
mod http;
mod keyboxes;
mod media;
mod passphrases;
mod pin;
mod releases;
mod rooms;
mod sync;

pub use account::{LoggedIn, Registration};
pub use backup::{BackedUpRoom, BackedUpSession, Backup};
pub use error::{ApiError, ServerError};
pub use keyboxes::{ListedKeyBox, LogFilter, LogItem, ServerKey};
pub use media::Download;
pub use pin::{ServerFingerprint, normal_pin, with_pin};
pub use releases::Release;
#[doc(hidden)]
pub use releases::parse_releases;
pub use rooms::{MessagesPage, NewRoom};

use http::Http;
use zeroize::Zeroizing;

/// A connection to one homeserver, with or without an access token.
#[derive(Clone)]
pub struct Api {
    http: Http,
    token: Option<Zeroizing<String>>,
}

impl Api {
    /// A connection to the homeserver at `server`, such as `http://127.0.0.1:8008` or `https://matrix.example.org`. TLS is
    /// version 1.2 or later. With `#sha256=` and 64 hexadecimal digits at its end ([`with_pin`]) the server's certificate, or the
    /// public key in it, has to have that SHA-256, besides being trusted. Nothing is sent yet.
    pub fn new(server: &str) -> Result<Self, ApiError> {
        Ok(Self { http: Http::new(server)?, token: None })
    }

    /// The same connection with an access token.
    #[must_use]
    pub fn with_token(mut self, token: Zeroizing<String>) -> Self {
        self.token = Some(token);
        self
    }

    fn token(&self) -> Option<&str> {
        self.token.as_ref().map(|token| token.as_str())
    }

    /// The homeserver's address with its pin, as [`Self::new`] takes it.
    pub fn address(&self) -> String {
        self.http.address()
    }

    /// The pin of [`Self::new`]: 64 lower-case hexadecimal digits.
    pub fn pin(&self) -> Option<&str> {
        self.http.pin()
    }

    /// What the server has shown of itself so far; `None` before the first connection, and without TLS.
    pub fn server_fingerprint(&self) -> Option<ServerFingerprint> {
        self.http.shown()
    }

    /// Reaches the server, whatever it speaks. <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientversions>
    pub async fn reach(&self) -> Result<(), ApiError> {
        self.text(http::Call::get("/_matrix/client/versions").once()).await.map(drop)
    }

    /// The homeserver's address, without a slash at its end.
    pub fn server(&self) -> &str {
        self.http.server()
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Api").field("server", &self.server()).finish_non_exhaustive()
    }
}
