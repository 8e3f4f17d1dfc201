//! Devices' keys: upload, query, claim, and whose keys changed.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#key-management-api>.

mod claim;
mod published;
mod query;
mod upload;

use std::collections::{BTreeMap, BTreeSet};

use keystead_core::{
    keys::{self as rules, KeyRefusal},
    token::SyncToken,
};
use keystead_store::{
    Error,
    keys::{self, Wanted},
};
use ruma::{
    CanonicalJsonObject, OneTimeKeyAlgorithm, OwnedOneTimeKeyId, OwnedUserId, ServerName, UInt,
    api::client::keys::{
        claim_keys::v3 as claim_keys, get_key_changes::v3 as get_key_changes, upload_keys::v3 as upload_keys,
    },
    encryption::OneTimeKey,
    serde::Raw,
};
use serde_json::{json, value::RawValue};

pub(super) use self::query::get_keys;
use self::upload::Upload;
pub use self::{claim::KeyClaims, published::PublishedKeys, upload::KeyUploads};
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
    let from = parse("from", &request.from)?;
    let from = &ctx.app.restores.lost.settle(from, ctx.app.store.shards().of_user(user_id)).token;
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
