//! Making accounts.

use http::StatusCode;
use keystead_store::{
    Error, ReadTx, TransactionError, interactive_auth, profiles, registration as tokens,
    users::{self, User},
};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId, api::error::ErrorCode};

use crate::{accounts::password_policy, app::App, http::error::ApiError};

/// The longest user id, in bytes.
/// <https://spec.matrix.org/v1.19/appendices/#user-identifiers>
const MAX_USER_ID: usize = 255;
/// Characters of a generated name.
const GENERATED_LENGTH: usize = 12;

/// An account to be made.
#[derive(Clone, Debug)]
pub struct NewAccount<'a> {
    /// Its name, free as far as known.
    pub user_id: &'a UserId,
    /// Its password in the clear; it is hashed here.
    pub password: &'a str,
    /// What the user is called at first.
    pub display_name: Option<&'a str>,
    /// Whether it may use the administration endpoints.
    pub is_admin: bool,
    /// The registration token that is used up by it.
    pub token: Option<&'a str>,
    /// The session of interactive authentication that led to it.
    pub session: Option<&'a str>,
}

/// The user id of a name that somebody wants, whose capitals become small letters; a random one if none is given.
///
/// # Errors
///
/// 400 `M_INVALID_USERNAME`, saying why.
pub fn user_id(app: &App, name: Option<&str>) -> Result<OwnedUserId, ApiError> {
    let generated = || app.entropy.readable(GENERATED_LENGTH).to_lowercase();
    let name = name.map_or_else(generated, str::to_ascii_lowercase);
    let invalid =
        |text: &'static str| ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidUsername, text);
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._=-/+".contains(c);
    if name.is_empty() {
        return Err(invalid("The username must not be empty"));
    }
    if !name.chars().all(is_allowed) {
        return Err(invalid("The username may have the letters a-z, digits and . _ = - / + only"));
    }
    if name.starts_with('_') {
        return Err(invalid("The username must not begin with an underscore"));
    }
    let server = &app.settings.server.name;
    if name.len() + server.as_str().len() + 2 > MAX_USER_ID {
        return Err(invalid("The username is too long"));
    }
    UserId::parse_with_server_name(&*name, server)
        .map_err(|error| invalid("The username is invalid").because(error))
}

/// Refuses a name that is taken.
///
/// # Errors
///
/// 400 `M_USER_IN_USE`.
pub async fn check_available(app: &App, user_id: &UserId) -> Result<(), ApiError> {
    let taken = app.store.read("user", |tx| async move { users::find(&tx, user_id).await }).await?;
    if taken.is_some() { Err(in_use()) } else { Ok(()) }
}

/// Makes an account.
///
/// # Errors
///
/// 400 `M_WEAK_PASSWORD`, `M_INVALID_PARAM` (display name), `M_USER_IN_USE`; 401 `M_UNAUTHORIZED` if the registration
/// token was used up meanwhile.
pub async fn register(
    app: &App,
    account: &NewAccount<'_>,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(), ApiError> {
    password_policy::check(app.settings.registration.password_policy, account.password)?;
    let user = &User {
        user_id: account.user_id.to_owned(),
        password_hash: Some(app.passwords.hash(&*app.entropy, account.password).await?),
        is_admin: account.is_admin,
        deactivated: false,
        created_ts: now,
    };
    let profile =
        account.display_name.map(|name| (serde_json::Value::from(name).to_string(), name.to_lowercase()));
    let profile = &profile;
    app.store
        .write("register", |tx| async move {
            if !users::insert(&tx, user).await? {
                return Err(Refused::InUse);
            }
            if let Some(token) = account.token
                && !tokens::use_token(&tx, token, now).await?
            {
                return Err(Refused::Token);
            }
            if let Some(session) = account.session {
                interactive_auth::set_registered(&tx, session, &user.user_id).await?;
            }
            if let Some((name, search_text)) = profile {
                let field = (profiles::DISPLAY_NAME, name.as_str());
                profiles::set_field(&tx, &user.user_id, field, Some(search_text)).await?;
            }
            Ok(())
        })
        .await
        .map_err(ApiError::from)
}

/// Whether a registration token can make an account now.
///
/// # Errors
///
/// The database's own.
pub async fn is_token_valid(
    tx: &ReadTx,
    token: &str,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<bool, Error> {
    Ok(tokens::find_token(tx, token).await?.is_some_and(|token| token.is_valid(now)))
}

fn in_use() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::UserInUse, "This username is taken")
}

/// Why the transaction made no account.
#[derive(Debug)]
enum Refused {
    InUse,
    Store(Error),
    Token,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl TransactionError for Refused {
    fn store_error(&self) -> Option<&Error> {
        match self {
            Self::Store(error) => Some(error),
            Self::InUse | Self::Token => None,
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::InUse => in_use(),
            Refused::Store(error) => error.into(),
            Refused::Token => Self::new(
                StatusCode::UNAUTHORIZED,
                ErrorCode::Unauthorized,
                "The registration token is not valid any more",
            ),
        }
    }
}
