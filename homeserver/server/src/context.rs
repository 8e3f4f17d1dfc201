//! What an endpoint gets besides the request: [`Ctx`].

use std::{net::IpAddr, sync::Arc};

use ruma::{MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId};

use crate::{app::App, http::error::ApiError, rate_limits::Limit};

/// The surroundings of one request.
///
/// `R` says who asks: `()` where anybody may, [`Session`] where a user must be logged in, `Option<Session>` where
/// logging in changes the answer. It follows from the request type's authentication scheme.
#[derive(Clone)]
pub struct Ctx<R> {
    /// What all endpoints share.
    pub app: Arc<App>,
    /// When the request arrived, in milliseconds since the epoch; read once, so a request sees one time.
    pub now: MilliSecondsSinceUnixEpoch,
    /// The address of the client, as told by the proxies that the configuration trusts.
    pub client_addr: IpAddr,
    /// The client's `User-Agent`, cut to 512 characters.
    pub user_agent: Option<String>,
    /// Who asks.
    pub requester: R,
}

impl Ctx<Option<Session>> {
    /// The same for an endpoint that, as things are, only a logged-in user can use.
    ///
    /// # Errors
    ///
    /// 401 `M_MISSING_TOKEN`.
    pub fn logged_in(self) -> Result<Ctx<Session>, ApiError> {
        let Self { app, now, client_addr, user_agent, requester } = self;
        let requester = requester.ok_or_else(ApiError::missing_token)?;
        Ok(Ctx { app, now, client_addr, user_agent, requester })
    }
}

impl Ctx<Session> {
    /// Slows down a user who sends events too fast; to be called by endpoints that send one.
    ///
    /// # Errors
    ///
    /// 429 `M_LIMIT_EXCEEDED`.
    pub fn limit_messages(&self) -> Result<(), ApiError> {
        self.app.rate_limits.take(Limit::Messages, self.requester.user_id.as_str(), self.now)
    }
}

/// A logged-in user on one of their devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device that the access token belongs to.
    pub device_id: OwnedDeviceId,
    /// Whether the user may use the administration endpoints.
    pub is_admin: bool,
    /// What the access token is kept as.
    pub token_hash: String,
}
