//! Registration.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#account-registration-and-management>.

use http::StatusCode;
use keystead_store::interactive_auth::InteractiveAuth;
use ruma::{
    OwnedUserId,
    api::{
        client::{
            account::{
                check_registration_token_validity, get_username_availability,
                register::{self, LoginType, RegistrationKind},
            },
            uiaa::AuthType,
        },
        error::ErrorCode,
    },
};

use crate::{
    accounts::{
        interactive_auth::{self, Challenge},
        login, password_policy,
        registration::{self, NewAccount},
        sessions::{self, Wish},
    },
    context::Ctx,
    http::error::ApiError,
    rate_limits::Limit,
};

/// `POST /_matrix/client/v3/register`.
pub(super) async fn register(
    ctx: Ctx<()>,
    request: register::v3::Request,
) -> Result<register::v3::Response, ApiError> {
    if request.kind == RegistrationKind::Guest {
        let text = "This server has no guests";
        return Err(ApiError::new(StatusCode::FORBIDDEN, ErrorCode::GuestAccessForbidden, text));
    }
    if request.login_type == Some(LoginType::ApplicationService) {
        return Err(ApiError::unknown_token(false).saying("No application service is known"));
    }
    ctx.app.rate_limits.take(Limit::Registration, &ctx.client_addr.to_string(), ctx.now)?;
    let wish = Wish {
        device_id: request.device_id.clone(),
        display_name: request.initial_device_display_name.clone(),
        refresh_token: request.refresh_token,
    };
    wish.check()?;
    let stages: &[AuthType] = match ctx.app.settings.registration.open {
        true => &[AuthType::Dummy],
        false => &[AuthType::RegistrationToken],
    };
    let challenge = Challenge {
        operation: "register",
        user_id: None,
        flows: &[stages],
        now: ctx.now,
        address: ctx.client_addr,
    };
    let auth = request.auth.as_ref();
    if let Some(finished) = interactive_auth::finished_registration(&ctx.app, challenge, auth).await? {
        let user_id = registered_before(&ctx, &request, &finished).await?;
        let user_id = user_id.ok_or_else(|| challenge.remaining(&finished, None))?;
        return answer(&ctx, user_id, wish, request.inhibit_login).await;
    }
    let user_id = registration::user_id(&ctx.app, request.username.as_deref())?;
    // Before the stages, so that nobody goes through them in vain.
    registration::check_available(&ctx.app, &user_id).await?;
    if let Some(password) = &request.password {
        password_policy::check(ctx.app.settings.registration.password_policy, password)?;
    }
    let authenticated = interactive_auth::require(&ctx.app, challenge, auth).await?;
    let password = request.password.ok_or_else(|| ApiError::missing_param("password is missing"))?;
    let account = NewAccount {
        user_id: &user_id,
        password: &password,
        display_name: None,
        is_admin: false,
        token: authenticated.registration_token.as_deref(),
        session: Some(&authenticated.session_id),
    };
    registration::register(&ctx.app, &account, ctx.now).await?;
    answer(&ctx, user_id, wish, request.inhibit_login).await
}

/// Whom a session has registered, for who asks for the same once more, because the answer was lost: with the name and the password that
/// were chosen then.
async fn registered_before(
    ctx: &Ctx<()>,
    request: &register::v3::Request,
    finished: &InteractiveAuth,
) -> Result<Option<OwnedUserId>, ApiError> {
    let (Some(user_id), Some(password)) = (&finished.user_id, &request.password) else { return Ok(None) };
    if let Some(name) = &request.username
        && registration::user_id(&ctx.app, Some(name))? != *user_id
    {
        return Ok(None);
    }
    match login::check_password(&ctx.app, user_id, password, ctx.now, ctx.client_addr).await {
        Ok(_) => Ok(Some(user_id.clone())),
        Err(error) if error.status() == StatusCode::FORBIDDEN => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is answered about an account that was made: with a session, unless none is wanted.
async fn answer(
    ctx: &Ctx<()>,
    user_id: OwnedUserId,
    wish: Wish,
    inhibit_login: bool,
) -> Result<register::v3::Response, ApiError> {
    let mut response = register::v3::Response::new(user_id.clone());
    if !inhibit_login {
        let (device_id, granted) =
            sessions::begin(&ctx.app, &user_id, wish, ctx.now, ctx.client_addr).await?;
        response.device_id = Some(device_id);
        response.access_token = Some(granted.access_token);
        response.refresh_token = granted.refresh_token;
        response.expires_in = granted.expires_in;
    }
    Ok(response)
}

/// `GET /_matrix/client/v3/register/available`.
pub(super) async fn get_username_availability(
    ctx: Ctx<()>,
    request: get_username_availability::v3::Request,
) -> Result<get_username_availability::v3::Response, ApiError> {
    let user_id = registration::user_id(&ctx.app, Some(&request.username))?;
    registration::check_available(&ctx.app, &user_id).await?;
    Ok(get_username_availability::v3::Response::new(true))
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`.
pub(super) async fn check_registration_token_validity(
    ctx: Ctx<()>,
    request: check_registration_token_validity::v1::Request,
) -> Result<check_registration_token_validity::v1::Response, ApiError> {
    ctx.app.rate_limits.take(Limit::Registration, &ctx.client_addr.to_string(), ctx.now)?;
    let (token, now) = (&request.token, ctx.now);
    let is_valid = ctx
        .app
        .store
        .read("registration_token", |tx| async move { registration::is_token_valid(&tx, token, now).await })
        .await?;
    Ok(check_registration_token_validity::v1::Response::new(is_valid))
}
