//! Devices' keys: upload, query, claim, and whose keys changed.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#key-management-api>.

mod claim;
mod upload;

use std::collections::{BTreeMap, BTreeSet};

use keystead_core::{
    keys::{self as rules, KeyRefusal, KeySignature},
    token::SyncToken,
};
use keystead_store::{
    Error,
    cross_signing::{self, SignedKey},
    keys::{self, Wanted},
};
use ruma::{
    CanonicalJsonObject, OneTimeKeyAlgorithm, OwnedOneTimeKeyId, OwnedUserId, ServerName, UInt, UserId,
    api::client::keys::{
        claim_keys::v3 as claim_keys, get_key_changes::v3 as get_key_changes, get_keys::v3 as get_keys,
        upload_keys::v3 as upload_keys,
    },
    encryption::{CrossSigningKey, DeviceKeys, KeyUsage, OneTimeKey},
    serde::Raw,
};
use serde_json::{json, value::RawValue};

use self::upload::Upload;
pub use self::{claim::KeyClaims, upload::KeyUploads};
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
};

/// `POST /_matrix/client/v3/keys/upload`.
pub(super) async fn upload_keys(
    ctx: Ctx<Session>,
    request: upload_keys::Request,
) -> Result<upload_keys::Response, ApiError> {
    let upload = Upload::check(&ctx, &request)?;
    let counts = if upload.is_empty() {
        let Session { user_id, device_id, .. } = &ctx.requester;
        let device = &(user_id.clone(), device_id.clone());
        ctx.app
            .store
            .read("one_time_key_counts", |tx| async move {
                let counts = keys::one_time_key_counts(&tx, std::slice::from_ref(device)).await?;
                Ok::<_, Error>(counts.into_values().next().unwrap_or_default())
            })
            .await?
    } else {
        ctx.app.key_uploads.submit(upload).await?
    };
    // Clients look at this algorithm's count to see whether to upload more.
    let mut answer = BTreeMap::from([(OneTimeKeyAlgorithm::SignedCurve25519, UInt::MIN)]);
    for (algorithm, count) in counts {
        answer.insert(algorithm.into(), UInt::new_saturating(count));
    }
    Ok(upload_keys::Response::new(answer))
}

/// `POST /_matrix/client/v3/keys/query`.
pub(super) async fn get_keys(
    ctx: Ctx<Session>,
    request: get_keys::Request,
) -> Result<get_keys::Response, ApiError> {
    let viewer = &ctx.requester.user_id;
    let own_server = &ctx.app.settings.server.name;
    let (local, remote): (BTreeMap<_, _>, BTreeMap<_, _>) =
        request.device_keys.into_iter().partition(|(user_id, _)| user_id.server_name() == own_server);
    let users: &Vec<&UserId> = &local.keys().map(|user_id| &**user_id).collect();
    let wanted = &local;
    let (devices, cross_signing, signatures) = ctx
        .app
        .store
        .read("query_keys", |tx| async move {
            Ok::<_, Error>((
                keys::query(&tx, wanted).await?,
                cross_signing::keys_of(&tx, users).await?,
                cross_signing::visible_signatures(&tx, users, viewer).await?,
            ))
        })
        .await?;
    let mut response = get_keys::Response::new();
    response.failures = unreachable_servers(remote.keys());
    response.device_keys = local.keys().map(|user_id| (user_id.clone(), BTreeMap::new())).collect();
    for device in devices {
        let keys = published_device_keys(&device, &signatures)?;
        response.device_keys.entry(device.user_id).or_default().insert(device.device_id, keys);
    }
    for key in cross_signing {
        let place = match key.usage {
            KeyUsage::Master => &mut response.master_keys,
            KeyUsage::SelfSigning => &mut response.self_signing_keys,
            // Whom a user has verified is nobody else's business.
            KeyUsage::UserSigning if &key.user_id == viewer => &mut response.user_signing_keys,
            _ => continue,
        };
        let published = published_cross_signing_key(&key, &signatures)?;
        place.insert(key.user_id, published);
    }
    Ok(response)
}

/// `POST /_matrix/client/v3/keys/claim`.
pub(super) async fn claim_keys(
    ctx: Ctx<Session>,
    request: claim_keys::Request,
) -> Result<claim_keys::Response, ApiError> {
    let own_server = &ctx.app.settings.server.name;
    let (local, remote): (BTreeMap<_, _>, BTreeMap<_, _>) =
        request.one_time_keys.into_iter().partition(|(user_id, _)| user_id.server_name() == own_server);
    let wanted: BTreeSet<Wanted> = local
        .into_iter()
        .flat_map(|(user_id, devices)| {
            devices.into_iter().map(move |(device_id, algorithm)| Wanted {
                user_id: user_id.clone(),
                device_id,
                algorithm: algorithm.to_string(),
            })
        })
        .collect();
    let claimed = if wanted.is_empty() { Vec::new() } else { ctx.app.key_claims.submit(wanted).await? };
    let mut one_time_keys: BTreeMap<OwnedUserId, claim_keys::OneTimeKeys> = BTreeMap::new();
    for key in claimed {
        let key_id = OwnedOneTimeKeyId::try_from(key.key_id.as_str())
            .map_err(|error| Error::corrupt("one_time_keys", "key_id", &key.key_id, error))?;
        let json: Raw<OneTimeKey> = raw("one_time_keys", &key.key_id, key.json)?;
        let of_user = one_time_keys.entry(key.user_id).or_default();
        of_user.entry(key.device_id).or_default().insert(key_id, json);
    }
    let mut response = claim_keys::Response::new(one_time_keys);
    response.failures = unreachable_servers(remote.keys());
    Ok(response)
}

/// `GET /_matrix/client/v3/keys/changes`.
pub(super) async fn get_key_changes(
    ctx: Ctx<Session>,
    request: get_key_changes::Request,
) -> Result<get_key_changes::Response, ApiError> {
    let user_id = &ctx.requester.user_id;
    let parse = |name: &str, token: &str| {
        SyncToken::parse(token, ctx.app.store.shards().room_shards().count())
            .map_err(|error| ApiError::invalid_param(format!("{name}: {error}")))
    };
    let from = &parse("from", &request.from)?;
    // The end is a hint by the specification; that it is a token is checked all the same.
    parse("to", &request.to)?;
    let delta = ctx
        .app
        .store
        .read("key_changes", |tx| async move { keys::device_list_delta(&tx, user_id, from).await })
        .await?;
    Ok(get_key_changes::Response::new(delta.changed.into_iter().collect(), delta.left.into_iter().collect()))
}

/// How a refusal of the rules is answered.
pub(super) fn refused(refusal: KeyRefusal) -> ApiError {
    let text = refusal.to_string();
    match refusal {
        KeyRefusal::Malformed(_) => ApiError::bad_json(text),
        KeyRefusal::Invalid(_) => ApiError::invalid_param(text),
        KeyRefusal::Signature(_) => ApiError::new(http::StatusCode::BAD_REQUEST, "M_INVALID_SIGNATURE", text),
        KeyRefusal::TooLarge => ApiError::too_large(text),
    }
}

/// Reads a key object out of the database.
pub(super) fn stored_object(
    table: &'static str,
    row: &str,
    json: &str,
) -> Result<CanonicalJsonObject, Error> {
    rules::parse_object(json).map_err(|error| Error::corrupt(table, "json", row, error))
}

fn published_device_keys(
    device: &keys::DeviceKeys,
    signatures: &BTreeMap<SignedKey, Vec<KeySignature>>,
) -> Result<Raw<DeviceKeys>, ApiError> {
    let signed = SignedKey { user_id: device.user_id.clone(), key_id: device.device_id.to_string() };
    let mut object = stored_object("device_keys", &signed.key_id, &device.json)?;
    rules::add_signatures(&mut object, signatures.get(&signed).map(Vec::as_slice).unwrap_or_default());
    if let Some(name) = &device.display_name {
        rules::set_display_name(&mut object, name);
    }
    raw("device_keys", &signed.key_id, rules::to_json(&object))
}

fn published_cross_signing_key(
    key: &cross_signing::CrossSigningKey,
    signatures: &BTreeMap<SignedKey, Vec<KeySignature>>,
) -> Result<Raw<CrossSigningKey>, ApiError> {
    let signed = SignedKey { user_id: key.user_id.clone(), key_id: key.public_key.clone() };
    let mut object = stored_object("cross_signing_keys", &signed.key_id, &key.json)?;
    rules::add_signatures(&mut object, signatures.get(&signed).map(Vec::as_slice).unwrap_or_default());
    raw("cross_signing_keys", &signed.key_id, rules::to_json(&object))
}

fn raw<T>(table: &'static str, row: &str, json: String) -> Result<Raw<T>, ApiError> {
    let json = RawValue::from_string(json).map_err(|error| Error::corrupt(table, "json", row, error))?;
    Ok(Raw::from_json(json))
}

/// The servers of users of other servers, which this server does not talk to.
fn unreachable_servers<'a>(
    users: impl Iterator<Item = &'a OwnedUserId>,
) -> BTreeMap<String, serde_json::Value> {
    let servers: BTreeSet<&ServerName> = users.map(|user_id| user_id.server_name()).collect();
    let failure = json!({"status": 503, "message": "This server does not federate"});
    servers.into_iter().map(|server| (server.to_string(), failure.clone())).collect()
}
