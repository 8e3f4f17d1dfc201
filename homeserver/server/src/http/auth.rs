//! From an endpoint's authentication scheme to the one who asks.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use http::Request;
use ruma::{
    UserId,
    api::auth_scheme::{
        AccessToken, AccessTokenOptional, AppserviceToken, AppserviceTokenOptional, AuthScheme,
        NoAccessToken, NoAuthentication,
    },
};

use crate::{
    accounts::sessions,
    app::App,
    context::Session,
    http::{client_address::Client, error::ApiError},
};

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

    /// The user who asks, if it is one.
    fn user(_requester: &Self::Requester) -> Option<&UserId> {
        None
    }

    /// Finds out who asks.
    ///
    /// # Errors
    ///
    /// 401 `M_MISSING_TOKEN` or `M_UNKNOWN_TOKEN`.
    fn authenticate(
        app: &Arc<App>,
        request: &Request<Bytes>,
        client: &Client,
    ) -> impl Future<Output = Result<Self::Requester, ApiError>> + Send;
}

impl Authenticate for NoAuthentication {
    type Requester = ();
    const KIND: AuthKind = AuthKind::None;

    async fn authenticate(
        _app: &Arc<App>,
        _request: &Request<Bytes>,
        _client: &Client,
    ) -> Result<(), ApiError> {
        Ok(())
    }
}

impl Authenticate for NoAccessToken {
    type Requester = ();
    const KIND: AuthKind = AuthKind::None;

    async fn authenticate(
        _app: &Arc<App>,
        _request: &Request<Bytes>,
        _client: &Client,
    ) -> Result<(), ApiError> {
        Ok(())
    }
}

impl Authenticate for AccessToken {
    type Requester = Session;
    const KIND: AuthKind = AuthKind::User;

    fn user(requester: &Session) -> Option<&UserId> {
        Some(&requester.user_id)
    }

    async fn authenticate(
        app: &Arc<App>,
        request: &Request<Bytes>,
        client: &Client,
    ) -> Result<Session, ApiError> {
        let token = Self::extract_authentication(request).map_err(|_| ApiError::missing_token())?;
        sessions::of_access_token(app, &token, client.address).await
    }
}

impl Authenticate for AccessTokenOptional {
    type Requester = Option<Session>;
    const KIND: AuthKind = AuthKind::Optional;

    fn user(requester: &Option<Session>) -> Option<&UserId> {
        requester.as_ref().map(|session| &*session.user_id)
    }

    async fn authenticate(
        app: &Arc<App>,
        request: &Request<Bytes>,
        client: &Client,
    ) -> Result<Option<Session>, ApiError> {
        match Self::extract_authentication(request).map_err(|_| ApiError::missing_token())? {
            Some(token) => sessions::of_access_token(app, &token, client.address).await.map(Some),
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

    fn user(requester: &Session) -> Option<&UserId> {
        Some(&requester.user_id)
    }

    async fn authenticate(
        app: &Arc<App>,
        request: &Request<Bytes>,
        client: &Client,
    ) -> Result<Session, ApiError> {
        let session = AccessToken::authenticate(app, request, client).await?;
        if session.is_admin { Ok(session) } else { Err(ApiError::forbidden("You are not a server admin")) }
    }
}

/// No application service can be registered with this server, so none is known.
impl Authenticate for AppserviceToken {
    type Requester = ();
    const KIND: AuthKind = AuthKind::Appservice;

    async fn authenticate(
        _app: &Arc<App>,
        request: &Request<Bytes>,
        _client: &Client,
    ) -> Result<(), ApiError> {
        Self::extract_authentication(request).map_err(|_| ApiError::missing_token())?;
        Err(ApiError::unknown_token(false))
    }
}

/// What an application service could do with its token at these endpoints, nobody can do without one; a client's
/// stray token there means nothing.
impl Authenticate for AppserviceTokenOptional {
    type Requester = ();
    const KIND: AuthKind = AuthKind::None;

    async fn authenticate(
        _app: &Arc<App>,
        _request: &Request<Bytes>,
        _client: &Client,
    ) -> Result<(), ApiError> {
        Ok(())
    }
}
