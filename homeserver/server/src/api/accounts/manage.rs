//! What users do with their own account.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#account-registration-and-management>.

use keystead_store::users;
use ruma::api::client::account::{ThirdPartyIdRemovalStatus, change_password, deactivate, whoami};

use crate::{
    accounts::{deactivation, interactive_auth, password_policy, sessions},
    context::{Ctx, Session},
    http::error::ApiError,
    keyboxes::Actor,
};

/// `GET /_matrix/client/v3/account/whoami`.
pub(super) async fn whoami(
    ctx: Ctx<Session>,
    _request: whoami::v3::Request,
) -> Result<whoami::v3::Response, ApiError> {
    let mut response = whoami::v3::Response::new(ctx.requester.user_id, false);
    response.device_id = Some(ctx.requester.device_id);
    Ok(response)
}

/// `POST /_matrix/client/v3/account/password`. Who has forgotten the password, and so has no session, asks an administrator.
pub(super) async fn change_password(
    ctx: Ctx<Option<Session>>,
    request: change_password::v3::Request,
) -> Result<change_password::v3::Response, ApiError> {
    let ctx = ctx.logged_in()?;
    password_policy::check(ctx.app.settings.registration.password_policy, &request.new_password)?;
    interactive_auth::require_password(&ctx, "password", request.auth.as_ref()).await?;
    let Session { user_id, device_id, .. } = &ctx.requester;
    let hash = &ctx.app.passwords.hash(&*ctx.app.entropy, &request.new_password).await?;
    ctx.app
        .store
        .write("password", |tx| async move { users::set_password(&tx, user_id, hash).await })
        .await?;
    if request.logout_devices {
        sessions::end(&ctx.app, user_id, Actor::of(&ctx), |device| device != device_id).await?;
    }
    Ok(change_password::v3::Response::new())
}

/// `POST /_matrix/client/v3/account/deactivate`.
pub(super) async fn deactivate(
    ctx: Ctx<Option<Session>>,
    request: deactivate::v3::Request,
) -> Result<deactivate::v3::Response, ApiError> {
    let ctx = ctx.logged_in()?;
    interactive_auth::require_password(&ctx, "deactivate", request.auth.as_ref()).await?;
    deactivation::deactivate(&ctx.app, &ctx.requester.user_id, ctx.now, request.erase).await?;
    // No address or phone number was bound, so none had to be unbound.
    Ok(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::Success))
}
