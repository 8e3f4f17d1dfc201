//! A user's KeyBoxes: what Matrix's list of devices does not say of them. Renaming and revoking are Matrix's own:
//! `PUT` and `DELETE /devices/{deviceId}`.

use keystead_core::keys as rules;
use keystead_store::{Error, cross_signing, cross_signing::SignedKey, devices, keybox_passphrases, keys};
use ruma::{CanonicalJsonValue, UserId, encryption::KeyUsage};
use serde_json::{Value, json};

use crate::{
    api::keys::stored_object,
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson, router::OwnRequest},
};

/// `GET …/keyboxes`: the user's KeyBoxes, in the order of their ids.
pub(super) async fn list(ctx: Ctx<Session>, _request: OwnRequest) -> Result<RawJson, ApiError> {
    let user_id: &UserId = &ctx.requester.user_id;
    let wanted = &[(user_id.to_owned(), Vec::new())].into();
    let (devices, created, key_sets, kept, signing, signatures) = ctx
        .app
        .store
        .read("keyboxes", |tx| async move {
            Ok::<_, Error>((
                devices::of_user(&tx, user_id).await?,
                devices::created(&tx, user_id).await?,
                keys::query(&tx, wanted).await?,
                keybox_passphrases::keyboxes_of(&tx, user_id).await?,
                cross_signing::keys_of(&tx, &[user_id]).await?,
                cross_signing::visible_signatures(&tx, &[user_id], user_id).await?,
            ))
        })
        .await?;
    let self_signing = signing.iter().find(|key| key.usage == KeyUsage::SelfSigning);
    let self_signing = self_signing.map(|key| format!("ed25519:{}", key.public_key));
    let mut keyboxes = Vec::new();
    for device in devices {
        let Some(key_set) = key_sets.iter().find(|keys| keys.device_id == device.device_id) else { continue };
        let object = stored_object("device_keys", device.device_id.as_str(), &key_set.json)?;
        if !rules::is_keybox(&object) {
            continue;
        }
        let signed = SignedKey { user_id: user_id.to_owned(), key_id: device.device_id.to_string() };
        let by_owner = |signature: &&rules::KeySignature| {
            signature.signer_id == user_id.as_str()
                && Some(signature.signer_key_id.as_str()) == self_signing.as_deref()
        };
        let verified = signatures.get(&signed).is_some_and(|list| list.iter().any(|item| by_owner(&item)));
        keyboxes.push(json!({
            "keybox_id": device.device_id,
            "name": device.display_name,
            "created_ts": created.get(&device.device_id),
            "last_seen_ts": device.last_seen_ts,
            "last_seen_ip": device.last_seen_ip,
            "suites": suites(object.get("algorithms")),
            "verified": verified,
            "passphrase_kept": kept.contains(&device.device_id),
        }));
    }
    Ok(RawJson(json!({ "keyboxes": keyboxes }).to_string().into()))
}

/// Those of the algorithms that are suites of the profile.
fn suites(algorithms: Option<&CanonicalJsonValue>) -> Vec<Value> {
    let Some(CanonicalJsonValue::Array(algorithms)) = algorithms else { return Vec::new() };
    let names = algorithms.iter().filter_map(|algorithm| algorithm.as_str());
    names.filter(|name| keystead_core::keybox::is_keybox_suite(name)).map(Value::from).collect()
}
