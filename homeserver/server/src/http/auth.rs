//! From an endpoint's authentication scheme to the one who asks.

use std::future::Future;

use bytes::Bytes;
use http::Request;
use ruma::api::auth_scheme::{
    AccessToken, AccessTokenOptional, AppserviceToken, AppserviceTokenOptional, AuthScheme, NoAccessToken,
    NoAuthentication,
};

use crate::{app::App, context::Session, http::error::ApiError, session};

/// Who may call an endpoint; shown by the route table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthKind {
    /// Anybody.
    None,
    /// Anybody; a logged-in user may get another answer.
    Optional,
    /// A logged-in user.
    User,
    /// A logged-in user who is an administrator.
    Admin,
    /// An application service.
    Appservice,
}

impl AuthKind {
    /// The kind as the route table writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Optional => "optional",
            Self::User => "user",
            Self::Admin => "admin",
            Self::Appservice => "appservice",
        }
    }
}

/// An authentication scheme that this server knows how to check.
pub trait Authenticate: 'static {
    /// Who asks, once checked.
    type Requester: Send + 'static;

    /// How the route table shows the scheme.
    const KIND: AuthKind;

    /// Finds out who asks.
    ///
    /// # Errors
    ///
    /// 401 `M_MISSING_TOKEN` or `M_UNKNOWN_TOKEN`.
    fn authenticate(
        app: &App,
        request: &Request<Bytes>,
    ) -> impl Future<Output = Result<Self::Requester, ApiError>> + Send;
}

impl Authenticate for NoAuthentication {
    type Requester = ();
    const KIND: AuthKind = AuthKind::None;

    async fn authenticate(_app: &App, _request: &Request<Bytes>) -> Result<(), ApiError> {
        Ok(())
    }
}

impl Authenticate for NoAccessToken {
    type Requester = ();
    const KIND: AuthKind = AuthKind::None;

    async fn authenticate(_app: &App, _request: &Request<Bytes>) -> Result<(), ApiError> {
        Ok(())
    }
}

impl Authenticate for AccessToken {
    type Requester = Session;
    const KIND: AuthKind = AuthKind::User;

    async fn authenticate(app: &App, request: &Request<Bytes>) -> Result<Session, ApiError> {
        let token = Self::extract_authentication(request).map_err(|_| ApiError::missing_token())?;
        session::of_access_token(app, &token).await
    }
}

impl Authenticate for AccessTokenOptional {
    type Requester = Option<Session>;
    const KIND: AuthKind = AuthKind::Optional;

    async fn authenticate(app: &App, request: &Request<Bytes>) -> Result<Option<Session>, ApiError> {
        match Self::extract_authentication(request).map_err(|_| ApiError::missing_token())? {
            Some(token) => session::of_access_token(app, &token).await.map(Some),
            None => Ok(None),
        }
    }
}

/// The scheme of this server's own administration endpoints: an access token of an administrator.
#[derive(Clone, Copy, Debug)]
pub struct AdminToken;

impl Authenticate for AdminToken {
    type Requester = Session;
    const KIND: AuthKind = AuthKind::Admin;

    async fn authenticate(app: &App, request: &Request<Bytes>) -> Result<Session, ApiError> {
        let session = AccessToken::authenticate(app, request).await?;
        if session.is_admin { Ok(session) } else { Err(ApiError::forbidden("You are not a server admin")) }
    }
}

/// No application service can be registered with this server, so none is known.
impl Authenticate for AppserviceToken {
    type Requester = ();
    const KIND: AuthKind = AuthKind::Appservice;

    async fn authenticate(_app: &App, request: &Request<Bytes>) -> Result<(), ApiError> {
        Self::extract_authentication(request).map_err(|_| ApiError::missing_token())?;
        Err(ApiError::unknown_token(false))
    }
}

/// What an application service could do with its token at these endpoints, nobody can do without one; a client's
/// stray token there means nothing.
impl Authenticate for AppserviceTokenOptional {
    type Requester = ();
    const KIND: AuthKind = AuthKind::None;

    async fn authenticate(_app: &App, _request: &Request<Bytes>) -> Result<(), ApiError> {
        Ok(())
    }
}
