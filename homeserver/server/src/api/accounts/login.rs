//! Login, logout, refresh.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#login>.

use ruma::{
    OwnedDeviceId,
    api::OutgoingResponseExt as _,
    api::client::{
        session::{
            get_login_types::{
                self,
                v3::{LoginType, PasswordLoginType},
            },
            login::v3::{DiscoveryInfo, HomeserverInfo, Response as LoginResponse},
            logout, logout_all, refresh_token,
        },
        uiaa::UserIdentifier,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::{
    accounts::{
        login,
        sessions::{self, Wish},
    },
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson, router::OwnRequest},
    keyboxes::{Actor, passphrases},
    rate_limits::Limit,
};

/// The body of a login. Not ruma's type, which panics when `type` is missing.
#[derive(Deserialize)]
struct LoginRequest {
    #[serde(rename = "type")]
    login_type: String,
    identifier: Option<UserIdentifier>,
    /// In the place of `identifier`, from clients older than it.
    user: Option<String>,
    password: Option<String>,
    device_id: Option<OwnedDeviceId>,
    initial_device_display_name: Option<String>,
    refresh_token: Option<bool>,
    /// Whether the answer is to hold the passphrase that the server keeps for the KeyBox `device_id`.
    #[serde(rename = "com.trustner.keybox.passphrase", default)]
    wants_passphrase: bool,
    /// Whether only the passphrase is wanted, and no session.
    #[serde(rename = "com.trustner.keybox.inhibit_login", default)]
    inhibit_login: bool,
}

/// What a login is answered with.
struct LoggedIn {
    session: Option<LoginResponse>,
    passphrases: Option<Vec<Zeroizing<String>>>,
}

impl LoggedIn {
    fn into_json(self) -> Result<RawJson, ApiError> {
        let mut answer = Map::new();
        if let Some(session) = self.session {
            let written = session.try_into_http_response::<Vec<u8>>().map_err(ApiError::internal)?;
            answer = serde_json::from_slice(written.body()).map_err(ApiError::internal)?;
        }
        if let Some(passphrases) = self.passphrases {
            let passphrases: Vec<&str> = passphrases.iter().map(|passphrase| passphrase.as_str()).collect();
            answer.insert("com.trustner.keybox.passphrases".to_owned(), passphrases.into());
        }
        Ok(RawJson(Value::Object(answer).to_string().into()))
    }
}

/// `GET /_matrix/client/v3/login`.
pub(super) async fn get_login_types(
    _ctx: Ctx<()>,
    _request: get_login_types::v3::Request,
) -> Result<get_login_types::v3::Response, ApiError> {
    Ok(get_login_types::v3::Response::new(vec![LoginType::Password(PasswordLoginType::new())]))
}

/// `POST /_matrix/client/v3/login`.
pub(super) async fn login(ctx: Ctx<()>, request: OwnRequest) -> Result<RawJson, ApiError> {
    ctx.app.rate_limits.take(Limit::Login, &ctx.client_addr.to_string(), ctx.now)?;
    let request: LoginRequest = request.json()?;
    if request.login_type != "m.login.password" {
        return Err(ApiError::unknown_request("Unknown type of login"));
    }
    let user_id = match (&request.identifier, &request.user) {
        (Some(identifier), _) => login::identified_user(&ctx.app, identifier)?,
        (None, Some(name)) => login::named_user(&ctx.app, name)?,
        (None, None) => return Err(ApiError::missing_param("identifier is missing")),
    };
    let password = request.password.ok_or_else(|| ApiError::missing_param("password is missing"))?;
    let wish = Wish {
        device_id: request.device_id,
        display_name: request.initial_device_display_name,
        refresh_token: request.refresh_token.unwrap_or_default(),
    };
    wish.check()?;
    login::check_password(&ctx.app, &user_id, &password, ctx.now, ctx.client_addr).await?;
    let passphrases = match (&wish.device_id, request.wants_passphrase) {
        (_, false) => None,
        (None, true) => return Err(ApiError::missing_param("device_id is missing")),
        (Some(keybox_id), true) => {
            Some(passphrases::retrieve(&ctx.app, &user_id, keybox_id, Actor::logging_in(&ctx)).await?)
        }
    };
    if request.inhibit_login {
        return LoggedIn { session: None, passphrases }.into_json();
    }
    let (device_id, granted) = sessions::begin(&ctx.app, &user_id, wish, ctx.now, ctx.client_addr).await?;
    let mut response = LoginResponse::new(user_id, granted.access_token, device_id);
    response.refresh_token = granted.refresh_token;
    response.expires_in = granted.expires_in;
    let base_url = ctx.app.settings.server.public_base_url.clone();
    response.well_known = Some(DiscoveryInfo::new(HomeserverInfo::new(base_url)));
    LoggedIn { session: Some(response), passphrases }.into_json()
}

/// `POST /_matrix/client/v3/logout`.
pub(super) async fn logout(
    ctx: Ctx<Session>,
    _request: logout::v3::Request,
) -> Result<logout::v3::Response, ApiError> {
    let Session { user_id, device_id, .. } = &ctx.requester;
    sessions::end(&ctx.app, user_id, Actor::of(&ctx), |device| device == device_id).await?;
    Ok(logout::v3::Response::new())
}

/// `POST /_matrix/client/v3/logout/all`.
pub(super) async fn logout_all(
    ctx: Ctx<Session>,
    _request: logout_all::v3::Request,
) -> Result<logout_all::v3::Response, ApiError> {
    sessions::end(&ctx.app, &ctx.requester.user_id, Actor::of(&ctx), |_| true).await?;
    Ok(logout_all::v3::Response::new())
}

/// `POST /_matrix/client/v3/refresh`.
pub(super) async fn refresh_token(
    ctx: Ctx<()>,
    request: refresh_token::v3::Request,
) -> Result<refresh_token::v3::Response, ApiError> {
    let granted = sessions::refresh(&ctx.app, &request.refresh_token, ctx.now).await?;
    let mut response = refresh_token::v3::Response::new(granted.access_token);
    response.refresh_token = granted.refresh_token;
    response.expires_in_ms = granted.expires_in;
    Ok(response)
}
