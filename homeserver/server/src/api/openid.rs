//! Tokens with which users prove to a third party who they are.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#openid>. The third party asks this server whose token it was given,
//! which is the only thing of the federation API that it does.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use keystead_store::openid_tokens;
use openssl::sha::sha256;
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt, api::client::account::request_openid_token, authentication::TokenType,
};
use serde_json::json;

use super::guard;
use crate::{
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson, router::OwnRequest},
    rate_limits::Limit,
};

/// Where a third party asks whose token it was given.
pub(super) const USERINFO_PATH: &str = "/_matrix/federation/v1/openid/userinfo";
/// How long a token is valid.
const VALID_FOR: Duration = Duration::from_secs(3_600);

/// `POST /_matrix/client/v3/user/{userId}/openid/request_token`.
pub(super) async fn request_openid_token(
    ctx: Ctx<Session>,
    request: request_openid_token::v3::Request,
) -> Result<request_openid_token::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    let token = format!("kso_{}", ctx.app.entropy.token());
    let lifetime = UInt::try_from(VALID_FOR.as_millis()).unwrap_or(UInt::MAX);
    let expires_ts = MilliSecondsSinceUnixEpoch(ctx.now.0.saturating_add(lifetime));
    let (token_hash, user_id) = (&*hash(&token), &*request.user_id);
    ctx.app
        .store
        .write("openid_token", |tx| async move {
            openid_tokens::insert(&tx, token_hash, user_id, expires_ts).await
        })
        .await?;
    let server_name = ctx.app.settings.server.name.clone();
    Ok(request_openid_token::v3::Response::new(token, TokenType::Bearer, server_name, VALID_FOR))
}

/// `GET /_matrix/federation/v1/openid/userinfo` ([specification]), which anybody may ask who has a token.
///
/// [specification]: https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1openiduserinfo
pub(super) async fn userinfo(ctx: Ctx<()>, request: OwnRequest) -> Result<RawJson, ApiError> {
    ctx.app.rate_limits.take(Limit::Requests, &ctx.client_addr.to_string(), ctx.now)?;
    let token = request.query_arg("access_token").ok_or_else(ApiError::missing_token)?;
    let (token_hash, now) = (&*hash(&token), ctx.now);
    let user_id = ctx
        .app
        .store
        .read_one("openid_userinfo", |tx| async move { openid_tokens::find(&tx, token_hash, now).await })
        .await?
        .ok_or_else(|| ApiError::unknown_token(false))?;
    Ok(RawJson(json!({ "sub": user_id }).to_string().into()))
}

fn hash(token: &str) -> String {
    STANDARD_NO_PAD.encode(sha256(token.as_bytes()))
}
