//! Registration with a shared secret, as the tools of this ecosystem do it: a nonce, then a request whose HMAC-SHA1 shows
//! that the tool knows the secret.
//!
//! Tools look at the texts of the errors, so these are the ones that they know.

use std::time::Duration;

use http::StatusCode;
use keystead_store::registration as store;
use openssl::{hash::MessageDigest, memcmp, pkey::PKey, sign::Signer};
use ruma::{MilliSecondsSinceUnixEpoch, UInt, api::error::ErrorCode};
use serde::Deserialize;
use serde_json::json;

use crate::{
    accounts::{
        registration::{self, NewAccount},
        sessions::{self, Wish},
    },
    config::secret::Secret,
    context::Ctx,
    http::{error::ApiError, reply::RawJson, router::OwnRequest},
    rate_limits::Limit,
};

const NONCE_LIFETIME: Duration = Duration::from_secs(60);
const MAX_LENGTH: usize = 512;

#[derive(Deserialize)]
struct Request {
    nonce: Option<String>,
    username: Option<String>,
    #[serde(alias = "display_name")]
    displayname: Option<String>,
    password: Option<String>,
    admin: Option<bool>,
    user_type: Option<String>,
    mac: Option<String>,
    inhibit_login: Option<bool>,
}

/// `GET /_synapse/admin/v1/register`: a nonce, good for one registration within a minute.
pub(super) async fn nonce(ctx: Ctx<()>, _request: OwnRequest) -> Result<RawJson, ApiError> {
    shared_secret(&ctx)?;
    ctx.app.rate_limits.take(Limit::Registration, &ctx.client_addr.to_string(), ctx.now)?;
    let nonce = &hex(&ctx.app.entropy.bytes::<32>());
    let lifetime = u64::try_from(NONCE_LIFETIME.as_millis()).unwrap_or(u64::MAX);
    let expiry = MilliSecondsSinceUnixEpoch(UInt::new_saturating(u64::from(ctx.now.get()) + lifetime));
    let now = ctx.now;
    ctx.app
        .store
        .write("registration_nonce", |tx| async move { store::insert_nonce(&tx, nonce, now, expiry).await })
        .await?;
    Ok(RawJson(json!({ "nonce": nonce }).to_string().into()))
}

/// `POST /_synapse/admin/v1/register`.
pub(super) async fn register(ctx: Ctx<()>, request: OwnRequest) -> Result<RawJson, ApiError> {
    let secret = shared_secret(&ctx)?;
    let request: Request = request.json()?;
    let nonce = &given(request.nonce.as_deref(), "nonce must be specified", "Invalid nonce")?;
    let now = ctx.now;
    let is_fresh = ctx
        .app
        .store
        .write("registration_nonce_use", |tx| async move { store::take_nonce(&tx, nonce, now).await })
        .await?;
    if !is_fresh {
        return Err(ApiError::unknown_request("unrecognised nonce"));
    }
    let username = given(request.username.as_deref(), "username must be specified", "Invalid username")?;
    let password = given(request.password.as_deref(), "password must be specified", "Invalid password")?;
    let is_admin = request.admin.unwrap_or_default();
    let role = if is_admin { "admin" } else { "notadmin" };
    let mut fields = vec![*nonce, username, password, role];
    fields.extend(request.user_type.as_deref());
    let mac = given(request.mac.as_deref(), "mac must be specified", "Invalid mac")?;
    if !is_authentic(&secret, &fields, mac)? {
        return Err(ApiError::new(StatusCode::FORBIDDEN, ErrorCode::Unknown, "HMAC incorrect"));
    }
    let user_id = registration::user_id(&ctx.app, Some(&username.to_lowercase()))?;
    let display_name = request.displayname.as_deref();
    if display_name.is_some_and(|name| name.len() > MAX_LENGTH || name.contains('\0')) {
        return Err(ApiError::bad_json("Invalid displayname"));
    }
    let account =
        NewAccount { user_id: &user_id, password, display_name, is_admin, token: None, session: None };
    registration::register(&ctx.app, &account, ctx.now).await?;
    let mut answer = json!({ "user_id": user_id, "home_server": ctx.app.settings.server.name });
    if !request.inhibit_login.unwrap_or_default()
        && let Some(fields) = answer.as_object_mut()
    {
        let (device_id, granted) =
            sessions::begin(&ctx.app, &user_id, Wish::default(), ctx.now, ctx.client_addr).await?;
        fields.insert("access_token".to_owned(), granted.access_token.into());
        fields.insert("device_id".to_owned(), device_id.as_str().into());
    }
    Ok(RawJson(answer.to_string().into()))
}

fn shared_secret(ctx: &Ctx<()>) -> Result<Secret, ApiError> {
    let secret = ctx.app.settings.registration.shared_secret.clone();
    secret.ok_or_else(|| ApiError::unknown_request("Shared secret registration is not enabled"))
}

fn given<'a>(
    value: Option<&'a str>,
    if_missing: &'static str,
    if_invalid: &'static str,
) -> Result<&'a str, ApiError> {
    let value = value.ok_or_else(|| ApiError::bad_json(if_missing))?;
    if value.is_empty() || value.len() > MAX_LENGTH || value.contains('\0') {
        return Err(ApiError::unknown_request(if_invalid));
    }
    Ok(value)
}

fn is_authentic(secret: &Secret, fields: &[&str], mac: &str) -> Result<bool, ApiError> {
    let key = PKey::hmac(secret.expose().as_bytes()).map_err(ApiError::internal)?;
    let mut signer = Signer::new(MessageDigest::sha1(), &key).map_err(ApiError::internal)?;
    let right = signer.sign_oneshot_to_vec(fields.join("\0").as_bytes()).map_err(ApiError::internal)?;
    let (right, mac) = (hex(&right), mac.to_lowercase());
    Ok(right.len() == mac.len() && memcmp::eq(right.as_bytes(), mac.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_hmac_sha1_over_the_fields_separated_by_zero_bytes() {
        let secret = Secret::new("secret");
        // printf 'n\0u\0p\0admin' | openssl dgst -sha1 -hmac secret
        let fields = ["n", "u", "p", "admin"];
        let mac = "f393a2fa070427923635b76f35737172331c3aef";
        assert!(is_authentic(&secret, &fields, mac).unwrap());
        assert!(is_authentic(&secret, &fields, &mac.to_uppercase()).unwrap());
        assert!(!is_authentic(&secret, &["n", "u", "p", "notadmin"], mac).unwrap());
        assert!(!is_authentic(&secret, &fields, "").unwrap());
    }
}
