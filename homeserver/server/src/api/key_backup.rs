//! Key backup: room keys that a user keeps at the server, sealed.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>.

use std::collections::BTreeMap;

use http::StatusCode;
use keystead_core::json::is_too_deep;
use keystead_store::{
    Error, WriteTx,
    key_backup::{self, BackedUpKey, Part, Version},
};
use ruma::{
    OwnedRoomId, UInt, UserId,
    api::client::backup::{
        BackupAlgorithm, KeyBackupData, RoomKeyBackup, add_backup_keys::v3 as add_backup_keys,
        add_backup_keys_for_room::v3 as add_backup_keys_for_room,
        add_backup_keys_for_session::v3 as add_backup_keys_for_session,
        create_backup_version::v3 as create_backup_version, delete_backup_keys::v3 as delete_backup_keys,
        delete_backup_keys_for_room::v3 as delete_backup_keys_for_room,
        delete_backup_keys_for_session::v3 as delete_backup_keys_for_session,
        delete_backup_version::v3 as delete_backup_version, get_backup_info::v3 as get_backup_info,
        get_backup_keys::v3 as get_backup_keys, get_backup_keys_for_room::v3 as get_backup_keys_for_room,
        get_backup_keys_for_session::v3 as get_backup_keys_for_session,
        get_latest_backup_info::v3 as get_latest_backup_info,
        update_backup_version::v3 as update_backup_version,
    },
    serde::Raw,
};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
};

/// The greatest size of one backed up key or of a version's data, in bytes of JSON.
const MAX_ENTRY_BYTES: usize = 65_535;
/// The greatest length of a session's id, in bytes.
const MAX_SESSION_ID_BYTES: usize = 255;

/// The etag of a version and how many keys it holds.
type Standing = (i64, u64);

/// `POST /_matrix/client/v3/room_keys/version`.
pub(super) async fn create_backup_version(
    ctx: Ctx<Session>,
    request: create_backup_version::Request,
) -> Result<create_backup_version::Response, ApiError> {
    let user_id = &ctx.requester.user_id;
    let (algorithm, auth_data) = &read_algorithm(&request.algorithm)?;
    let version = ctx
        .app
        .store
        .write("create_backup_version", |tx| async move {
            key_backup::create_version(&tx, user_id, algorithm, auth_data).await
        })
        .await?;
    Ok(create_backup_version::Response::new(version.to_string()))
}

/// `GET /_matrix/client/v3/room_keys/version`.
pub(super) async fn get_latest_backup_info(
    ctx: Ctx<Session>,
    _request: get_latest_backup_info::Request,
) -> Result<get_latest_backup_info::Response, ApiError> {
    let (version, count) = info(&ctx, None).await?;
    Ok(get_latest_backup_info::Response::new(
        algorithm(&version)?,
        UInt::new_saturating(count),
        version.etag.to_string(),
        version.version.to_string(),
    ))
}

/// `GET /_matrix/client/v3/room_keys/version/{version}`.
pub(super) async fn get_backup_info(
    ctx: Ctx<Session>,
    request: get_backup_info::Request,
) -> Result<get_backup_info::Response, ApiError> {
    let (version, count) = info(&ctx, Some(&request.version)).await?;
    Ok(get_backup_info::Response::new(
        algorithm(&version)?,
        UInt::new_saturating(count),
        version.etag.to_string(),
        version.version.to_string(),
    ))
}

/// `PUT /_matrix/client/v3/room_keys/version/{version}`.
pub(super) async fn update_backup_version(
    ctx: Ctx<Session>,
    request: update_backup_version::Request,
) -> Result<update_backup_version::Response, ApiError> {
    let user_id = &ctx.requester.user_id;
    let (algorithm, auth_data) = &read_algorithm(&request.algorithm)?;
    // A version in the body, if there is one, must be that of the path.
    if let Ok(Some(version)) = request.algorithm.get_field::<String>("version")
        && version != request.version
    {
        return Err(ApiError::invalid_param("The version in the body is not that of the path"));
    }
    let number = version_number(&request.version)?;
    ctx.app
        .store
        .write("update_backup_version", |tx| async move {
            let stored = key_backup::version(&tx, user_id, number).await?.ok_or_else(no_version)?;
            if &stored.algorithm != algorithm {
                return Err(ApiError::invalid_param("The algorithm of a backup version cannot change"));
            }
            key_backup::update_auth_data(&tx, user_id, number, auth_data).await?;
            Ok(())
        })
        .await?;
    Ok(update_backup_version::Response::new())
}

/// `DELETE /_matrix/client/v3/room_keys/version/{version}`. Deleting a version again is no error; one that never was is.
pub(super) async fn delete_backup_version(
    ctx: Ctx<Session>,
    request: delete_backup_version::Request,
) -> Result<delete_backup_version::Response, ApiError> {
    let user_id = &ctx.requester.user_id;
    let number = version_number(&request.version)?;
    let deleted =
        ctx.app
            .store
            .write("delete_backup_version", |tx| async move {
                key_backup::delete_version(&tx, user_id, number).await
            })
            .await?;
    if deleted { Ok(delete_backup_version::Response::new()) } else { Err(no_version()) }
}

/// `PUT /_matrix/client/v3/room_keys/keys`.
pub(super) async fn add_backup_keys(
    ctx: Ctx<Session>,
    request: add_backup_keys::Request,
) -> Result<add_backup_keys::Response, ApiError> {
    let mut keys = Vec::new();
    for (room_id, room) in request.rooms {
        keys.extend(read_keys(&room_id, room.sessions)?);
    }
    let (etag, count) = put(&ctx, &request.version, keys).await?;
    Ok(add_backup_keys::Response::new(etag.to_string(), UInt::new_saturating(count)))
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}`.
pub(super) async fn add_backup_keys_for_room(
    ctx: Ctx<Session>,
    request: add_backup_keys_for_room::Request,
) -> Result<add_backup_keys_for_room::Response, ApiError> {
    let keys = read_keys(&request.room_id, request.sessions)?;
    let (etag, count) = put(&ctx, &request.version, keys).await?;
    Ok(add_backup_keys_for_room::Response::new(etag.to_string(), UInt::new_saturating(count)))
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`.
pub(super) async fn add_backup_keys_for_session(
    ctx: Ctx<Session>,
    request: add_backup_keys_for_session::Request,
) -> Result<add_backup_keys_for_session::Response, ApiError> {
    let keys = read_keys(&request.room_id, BTreeMap::from([(request.session_id, request.session_data)]))?;
    let (etag, count) = put(&ctx, &request.version, keys).await?;
    Ok(add_backup_keys_for_session::Response::new(etag.to_string(), UInt::new_saturating(count)))
}

/// `GET /_matrix/client/v3/room_keys/keys`.
pub(super) async fn get_backup_keys(
    ctx: Ctx<Session>,
    request: get_backup_keys::Request,
) -> Result<get_backup_keys::Response, ApiError> {
    let mut rooms: BTreeMap<OwnedRoomId, RoomKeyBackup> = BTreeMap::new();
    for key in read_part(&ctx, &request.version, Part::All).await? {
        let data = key_data(&key)?;
        let room = rooms.entry(key.room_id).or_insert_with(|| RoomKeyBackup::new(BTreeMap::new()));
        room.sessions.insert(key.session_id, data);
    }
    Ok(get_backup_keys::Response::new(rooms))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}`. No keys of the room is no error.
pub(super) async fn get_backup_keys_for_room(
    ctx: Ctx<Session>,
    request: get_backup_keys_for_room::Request,
) -> Result<get_backup_keys_for_room::Response, ApiError> {
    let mut sessions = BTreeMap::new();
    for key in read_part(&ctx, &request.version, Part::Room(&request.room_id)).await? {
        let data = key_data(&key)?;
        sessions.insert(key.session_id, data);
    }
    Ok(get_backup_keys_for_room::Response::new(sessions))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`.
pub(super) async fn get_backup_keys_for_session(
    ctx: Ctx<Session>,
    request: get_backup_keys_for_session::Request,
) -> Result<get_backup_keys_for_session::Response, ApiError> {
    let part = Part::Session(&request.room_id, &request.session_id);
    let keys = read_part(&ctx, &request.version, part).await?;
    let key = keys.first().ok_or_else(|| ApiError::not_found("The backup has no key of this session"))?;
    Ok(get_backup_keys_for_session::Response::new(key_data(key)?))
}

/// `DELETE /_matrix/client/v3/room_keys/keys`.
pub(super) async fn delete_backup_keys(
    ctx: Ctx<Session>,
    request: delete_backup_keys::Request,
) -> Result<delete_backup_keys::Response, ApiError> {
    let (etag, count) = delete(&ctx, &request.version, Part::All).await?;
    Ok(delete_backup_keys::Response::new(etag.to_string(), UInt::new_saturating(count)))
}

/// `DELETE /_matrix/client/v3/room_keys/keys/{roomId}`.
pub(super) async fn delete_backup_keys_for_room(
    ctx: Ctx<Session>,
    request: delete_backup_keys_for_room::Request,
) -> Result<delete_backup_keys_for_room::Response, ApiError> {
    let (etag, count) = delete(&ctx, &request.version, Part::Room(&request.room_id)).await?;
    Ok(delete_backup_keys_for_room::Response::new(etag.to_string(), UInt::new_saturating(count)))
}

/// `DELETE /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`.
pub(super) async fn delete_backup_keys_for_session(
    ctx: Ctx<Session>,
    request: delete_backup_keys_for_session::Request,
) -> Result<delete_backup_keys_for_session::Response, ApiError> {
    let part = Part::Session(&request.room_id, &request.session_id);
    let (etag, count) = delete(&ctx, &request.version, part).await?;
    Ok(delete_backup_keys_for_session::Response::new(etag.to_string(), UInt::new_saturating(count)))
}

/// A version, the newest if none is named, and how many keys it holds.
async fn info(ctx: &Ctx<Session>, version: Option<&str>) -> Result<(Version, u64), ApiError> {
    let user_id = &ctx.requester.user_id;
    let number = version.map(version_number).transpose()?;
    ctx.app
        .store
        .read("backup_version", |tx| async move {
            let version = match number {
                Some(number) => key_backup::version(&tx, user_id, number).await?,
                None => key_backup::newest_version(&tx, user_id).await?,
            };
            let version = version.ok_or_else(no_version)?;
            let count = key_backup::count(&tx, user_id, version.version).await?;
            Ok::<_, ApiError>((version, count))
        })
        .await
}

async fn put(ctx: &Ctx<Session>, version: &str, keys: Vec<BackedUpKey>) -> Result<Standing, ApiError> {
    let (user_id, keys) = (&ctx.requester.user_id, &keys);
    ctx.app
        .store
        .write("put_backup_keys", |tx| async move {
            let newest = lock_version(&tx, user_id, version).await?;
            let etag = key_backup::put_keys(&tx, user_id, &newest, keys.clone()).await?;
            Ok((etag, key_backup::count(&tx, user_id, newest.version).await?))
        })
        .await
}

async fn delete(ctx: &Ctx<Session>, version: &str, part: Part<'_>) -> Result<Standing, ApiError> {
    let user_id = &ctx.requester.user_id;
    ctx.app
        .store
        .write("delete_backup_keys", |tx| async move {
            let newest = lock_version(&tx, user_id, version).await?;
            let etag = key_backup::delete_keys(&tx, user_id, &newest, part).await?;
            Ok((etag, key_backup::count(&tx, user_id, newest.version).await?))
        })
        .await
}

async fn read_part(ctx: &Ctx<Session>, version: &str, part: Part<'_>) -> Result<Vec<BackedUpKey>, ApiError> {
    let user_id = &ctx.requester.user_id;
    let number = version_number(version)?;
    ctx.app
        .store
        .read("backup_keys", |tx| async move {
            key_backup::version(&tx, user_id, number).await?.ok_or_else(no_version)?;
            Ok::<_, ApiError>(key_backup::keys(&tx, user_id, number, part).await?)
        })
        .await
}

/// The newest version, held until the transaction ends; keys change in no other.
async fn lock_version(tx: &WriteTx, user_id: &UserId, wanted: &str) -> Result<Version, ApiError> {
    let newest = key_backup::lock_newest_version(tx, user_id).await?.ok_or_else(no_version)?;
    if newest.version.to_string() == wanted {
        return Ok(newest);
    }
    let text = "Keys can be changed in the newest version of the backup only";
    Err(ApiError::new(StatusCode::FORBIDDEN, "M_WRONG_ROOM_KEYS_VERSION", text)
        .with("current_version", newest.version.to_string()))
}

/// What is not a number of ours names no version.
fn version_number(version: &str) -> Result<i64, ApiError> {
    version.parse().ok().filter(|number: &i64| number.to_string() == version).ok_or_else(no_version)
}

fn no_version() -> ApiError {
    ApiError::not_found("There is no such version of the backup")
}

/// The name of the algorithm and the JSON text of its data.
fn read_algorithm(raw: &Raw<BackupAlgorithm>) -> Result<(String, String), ApiError> {
    #[derive(Deserialize)]
    struct Fields {
        algorithm: String,
        auth_data: Box<RawValue>,
    }
    let fields: Fields =
        raw.deserialize_as_unchecked().map_err(|error| ApiError::bad_json(error.to_string()))?;
    let auth_data = fields.auth_data.get();
    if !auth_data.starts_with('{') || is_too_deep(auth_data) {
        return Err(ApiError::bad_json("auth_data is not an object, or nested too deep"));
    }
    if auth_data.len() > MAX_ENTRY_BYTES || fields.algorithm.len() > MAX_SESSION_ID_BYTES {
        return Err(ApiError::too_large("The data of a backup version must not be larger than 65,535 bytes"));
    }
    Ok((fields.algorithm, auth_data.to_owned()))
}

fn algorithm(version: &Version) -> Result<Raw<BackupAlgorithm>, ApiError> {
    let corrupt = |error| Error::corrupt("backup_versions", "auth_data", version.version.to_string(), error);
    let auth_data: Box<RawValue> = RawValue::from_string(version.auth_data.clone()).map_err(corrupt)?;
    let fields = BTreeMap::from([
        ("algorithm", to_raw_value(&version.algorithm).map_err(corrupt)?),
        ("auth_data", auth_data),
    ]);
    Ok(Raw::from_json(to_raw_value(&fields).map_err(corrupt)?))
}

fn read_keys(
    room_id: &OwnedRoomId,
    sessions: BTreeMap<String, Raw<KeyBackupData>>,
) -> Result<Vec<BackedUpKey>, ApiError> {
    sessions.into_iter().map(|(session_id, data)| read_key(room_id, session_id, &data)).collect()
}

/// Checks one key; what is sealed in it is the client's business, and stored as it came.
fn read_key(
    room_id: &OwnedRoomId,
    session_id: String,
    data: &Raw<KeyBackupData>,
) -> Result<BackedUpKey, ApiError> {
    #[derive(Deserialize)]
    struct Fields {
        first_message_index: UInt,
        forwarded_count: UInt,
        is_verified: bool,
        session_data: Box<RawValue>,
    }
    let fields: Fields =
        data.deserialize_as_unchecked().map_err(|error| ApiError::bad_json(error.to_string()))?;
    let json = data.json().get();
    if !fields.session_data.get().starts_with('{') || is_too_deep(json) {
        return Err(ApiError::bad_json("session_data is not an object, or nested too deep"));
    }
    if json.len() > MAX_ENTRY_BYTES || session_id.len() > MAX_SESSION_ID_BYTES {
        return Err(ApiError::too_large("A backed up key must not be larger than 65,535 bytes"));
    }
    Ok(BackedUpKey {
        room_id: room_id.clone(),
        session_id,
        first_message_index: fields.first_message_index.into(),
        forwarded_count: fields.forwarded_count.into(),
        is_verified: fields.is_verified,
        json: json.to_owned(),
    })
}

fn key_data(key: &BackedUpKey) -> Result<Raw<KeyBackupData>, ApiError> {
    let json = RawValue::from_string(key.json.clone())
        .map_err(|error| Error::corrupt("backup_keys", "json", key.session_id.as_str(), error))?;
    Ok(Raw::from_json(json))
}
