//! Logging in with a password.

use std::net::IpAddr;

use keystead_store::users::{self, User};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId, api::client::uiaa::UserIdentifier};

use crate::{accounts::throttle::Attempt, app::App, http::error::ApiError};

/// Said of a wrong password and of an unknown account alike.
const WRONG: &str = "Invalid username or password";

/// Checks a password.
///
/// # Errors
///
/// 403 `M_FORBIDDEN` if it is wrong or the account unknown or closed; 429 `M_LIMIT_EXCEEDED` after too many failures.
pub async fn check_password(
    app: &App,
    user_id: &UserId,
    password: &str,
    now: MilliSecondsSinceUnixEpoch,
    address: IpAddr,
) -> Result<User, ApiError> {
    let attempt = &Attempt::new(user_id, address);
    app.store.read_one("login_failures", |tx| async move { attempt.check(&tx, now).await }).await?;
    let user = app.store.read_one("login", |tx| async move { users::find(&tx, user_id).await }).await?;
    let hash = user.as_ref().and_then(|user| user.password_hash.as_deref());
    let is_right = app.passwords.verify(password, hash).await?;
    match user {
        Some(user) if is_right && !user.deactivated => {
            attempt.succeeded(app).await?;
            Ok(user)
        }
        _ => {
            attempt.failed(app).await?;
            Err(ApiError::forbidden(WRONG))
        }
    }
}

/// The user that an identifier of type `m.id.user` means: a user id of this server, or its local part.
///
/// # Errors
///
/// 403 `M_FORBIDDEN` for whom this server cannot know; 400 `M_UNKNOWN` for another type of identifier.
pub fn identified_user(app: &App, identifier: &UserIdentifier) -> Result<OwnedUserId, ApiError> {
    match identifier {
        UserIdentifier::Matrix(user) => named_user(app, &user.user),
        // No address or phone number belongs to an account.
        UserIdentifier::Email(_) | UserIdentifier::Msisdn(_) | UserIdentifier::PhoneNumber(_) => {
            Err(ApiError::forbidden(WRONG))
        }
        _ => Err(ApiError::unknown_request("Unknown type of identifier")),
    }
}

/// The user that a client means by this name: a user id of this server, or its local part, in which capitals mean small letters, as when
/// it was registered.
///
/// # Errors
///
/// 403 `M_FORBIDDEN` for whom this server cannot know.
pub fn named_user(app: &App, name: &str) -> Result<OwnedUserId, ApiError> {
    let server = &app.settings.server.name;
    UserId::parse_with_server_name(name, server)
        .and_then(|user_id| {
            let localpart = user_id.localpart().to_ascii_lowercase();
            UserId::parse(format!("@{localpart}:{}", user_id.server_name()))
        })
        .ok()
        .filter(|user_id| user_id.server_name() == server && !name.contains('\0'))
        .ok_or_else(|| ApiError::forbidden(WRONG))
}
