//! The server's signing key, published, and what else it signs in the server's name.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#publishing-keys>. Clients use it to check the signed heads of
//! their logs; the server does not federate.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, UInt, signatures::sign_json};

use crate::{
    app::App,
    context::Ctx,
    http::{error::ApiError, reply::RawJson, router::OwnRequest},
    signing_keys::OldKey,
};

/// Where the key is published.
pub(super) const PATH: &str = "/_matrix/key/v2/server";
/// How long whoever reads the key may keep it without looking again.
const VALID_FOR: Duration = Duration::from_secs(24 * 3_600);

/// `GET /_matrix/key/v2/server`.
pub(super) async fn server_keys(ctx: Ctx<()>, _request: OwnRequest) -> Result<RawJson, ApiError> {
    let key_pair = ctx.app.signer.key_pair();
    let key = STANDARD_NO_PAD.encode(key_pair.public_key());
    let valid_until =
        u64::from(ctx.now.0).saturating_add(u64::try_from(VALID_FOR.as_millis()).unwrap_or(u64::MAX));
    let text = |text: &str| CanonicalJsonValue::from(text);
    let object = |members: [(&str, CanonicalJsonValue); 1]| {
        let members = members.map(|(name, value)| (name.to_owned(), value));
        CanonicalJsonValue::Object(BTreeMap::from(members))
    };
    let key_id = format!("ed25519:{}", key_pair.version());
    let mut keys = CanonicalJsonObject::from([
        ("server_name".to_owned(), text(ctx.app.signer.server_name().as_str())),
        ("verify_keys".to_owned(), object([(&key_id, object([("key", text(&key))]))])),
        ("old_verify_keys".to_owned(), CanonicalJsonValue::Object(old_keys(&ctx.app))),
        ("valid_until_ts".to_owned(), UInt::new_saturating(valid_until).into()),
    ]);
    sign(&ctx.app, &mut keys)?;
    Ok(RawJson(CanonicalJsonValue::Object(keys).to_string().into()))
}

/// The keys that signed in the server's name before, each with the time since which it does not.
fn old_keys(app: &App) -> CanonicalJsonObject {
    let published = |old: &OldKey| {
        CanonicalJsonValue::Object(BTreeMap::from([
            ("expired_ts".to_owned(), UInt::new_saturating(old.expired_ts).into()),
            ("key".to_owned(), old.key.as_str().into()),
        ]))
    };
    app.old_signing_keys.iter().map(|(id, old)| (id.clone(), published(old))).collect()
}

/// Signs an object in the server's name.
///
/// # Errors
/// An object that cannot be signed, which is a defect of ours.
pub(super) fn sign(app: &App, object: &mut CanonicalJsonObject) -> Result<(), ApiError> {
    let name = app.signer.server_name().as_str();
    sign_json(name, app.signer.key_pair(), object).map_err(ApiError::internal)
}
