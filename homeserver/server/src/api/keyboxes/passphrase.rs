//! The passphrase of the KeyBox that asks. It comes back with a login only (`api/accounts/login.rs`).

use ruma::DeviceId;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson, router::OwnRequest},
    keyboxes::{Actor, passphrases},
};

#[derive(Deserialize)]
struct Body {
    passphrase: String,
    #[serde(default)]
    keep_previous: bool,
}

/// `PUT …/keyboxes/{keybox_id}/passphrase`.
pub(super) async fn store(ctx: Ctx<Session>, request: OwnRequest) -> Result<RawJson, ApiError> {
    let keybox_id = own_keybox(&ctx, &request)?;
    let body: Body = request.json()?;
    let given = Zeroizing::new(body.passphrase);
    let passphrase = (given.as_str(), body.keep_previous);
    let owner = (&*ctx.requester.user_id, keybox_id);
    passphrases::store(&ctx.app, owner, passphrase, Actor::of(&ctx)).await?;
    Ok(RawJson("{}".into()))
}

/// `DELETE …/keyboxes/{keybox_id}/passphrase`.
pub(super) async fn destroy(ctx: Ctx<Session>, request: OwnRequest) -> Result<RawJson, ApiError> {
    let keybox_id = own_keybox(&ctx, &request)?;
    passphrases::destroy(&ctx.app, &ctx.requester.user_id, keybox_id, Actor::of(&ctx)).await?;
    Ok(RawJson("{}".into()))
}

/// A KeyBox's passphrase is its own business: another one could make its private keys unreadable.
fn own_keybox<'a>(ctx: &'a Ctx<Session>, request: &OwnRequest) -> Result<&'a DeviceId, ApiError> {
    if ctx.requester.device_id.as_str() != request.path_arg(0) {
        return Err(ApiError::forbidden("A KeyBox may change its own passphrase only"));
    }
    Ok(&ctx.requester.device_id)
}
