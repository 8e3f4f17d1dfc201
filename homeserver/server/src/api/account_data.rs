//! Account data and room tags.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#client-config>,
//! <https://spec.matrix.org/v1.19/client-server-api/#room-tagging>.

use http::StatusCode;
use keystead_store::{account_data, streams::AccountData};
use ruma::{
    OwnedRoomId, RoomId, UserId,
    api::{
        client::{
            config::{
                get_global_account_data, get_room_account_data, set_global_account_data,
                set_room_account_data,
            },
            tag::{create_tag, delete_tag, get_tags},
        },
        error::ErrorCode,
    },
    events::tag::Tags,
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::guard;
use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
    push_rules,
};

/// One entry of account data may have this many bytes: as large as ten events.
pub(super) const MAX_CONTENT_BYTES: usize = 640 * 1024;
/// The names of types and tags may have this many bytes.
const MAX_NAME_BYTES: usize = 255;
/// The account data of a room with its tags.
pub(super) const TAGS: &str = "m.tag";

/// The content of `m.tag`.
#[derive(Default, Deserialize, Serialize)]
struct TagContent {
    #[serde(default)]
    tags: Tags,
}

/// `GET /_matrix/client/v3/user/{userId}/account_data/{type}`.
pub(super) async fn get_global_account_data(
    ctx: Ctx<Session>,
    request: get_global_account_data::v3::Request,
) -> Result<get_global_account_data::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    let data_type = request.event_type.to_string();
    let user_id = &*request.user_id;
    let content = if data_type == push_rules::ACCOUNT_DATA_TYPE {
        // Also for a user who has never changed a rule.
        let rules =
            ctx.app.store.read("get_push_rules", |tx| async move { push_rules::load(&tx, user_id).await });
        let data = push_rules::account_data_of(user_id, rules.await?)?;
        RawValue::from_string(data.content).map_err(ApiError::internal)?
    } else {
        find(&ctx.app, user_id, None, &data_type).await?
    };
    Ok(get_global_account_data::v3::Response::new(Raw::from_json(content)))
}

/// `PUT /_matrix/client/v3/user/{userId}/account_data/{type}`.
pub(super) async fn set_global_account_data(
    ctx: Ctx<Session>,
    request: set_global_account_data::v3::Request,
) -> Result<set_global_account_data::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    put(&ctx, None, request.event_type.to_string(), request.data.json()).await?;
    Ok(set_global_account_data::v3::Response::new())
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`.
pub(super) async fn get_room_account_data(
    ctx: Ctx<Session>,
    request: get_room_account_data::v3::Request,
) -> Result<get_room_account_data::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    let data_type = request.event_type.to_string();
    let content = find(&ctx.app, &request.user_id, Some(&request.room_id), &data_type).await?;
    Ok(get_room_account_data::v3::Response::new(Raw::from_json(content)))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`.
pub(super) async fn set_room_account_data(
    ctx: Ctx<Session>,
    request: set_room_account_data::v3::Request,
) -> Result<set_room_account_data::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    put(&ctx, Some(request.room_id), request.event_type.to_string(), request.data.json()).await?;
    Ok(set_room_account_data::v3::Response::new())
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags`.
pub(super) async fn get_tags(
    ctx: Ctx<Session>,
    request: get_tags::v3::Request,
) -> Result<get_tags::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    let (user_id, room_id) = (&*request.user_id, &*request.room_id);
    let content = ctx
        .app
        .store
        .read("get_tags", |tx| async move { account_data::find(&tx, user_id, Some(room_id), TAGS).await })
        .await?;
    Ok(get_tags::v3::Response::new(tags(content.as_deref()).tags))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`.
pub(super) async fn create_tag(
    ctx: Ctx<Session>,
    request: create_tag::v3::Request,
) -> Result<create_tag::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    guard::short("tag", &request.tag, MAX_NAME_BYTES)?;
    let (tag, info) = (&request.tag, &request.tag_info);
    change_tags(&ctx, &request.room_id, &|tags| {
        tags.insert(tag.as_str().into(), info.clone());
    })
    .await?;
    Ok(create_tag::v3::Response::new())
}

/// `DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`.
pub(super) async fn delete_tag(
    ctx: Ctx<Session>,
    request: delete_tag::v3::Request,
) -> Result<delete_tag::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    let tag = request.tag.as_str();
    change_tags(&ctx, &request.room_id, &|tags| {
        tags.remove(&tag.into());
    })
    .await?;
    Ok(delete_tag::v3::Response::new())
}

async fn find(
    app: &App,
    user_id: &UserId,
    room_id: Option<&RoomId>,
    data_type: &str,
) -> Result<Box<RawValue>, ApiError> {
    let content =
        app.store
            .read("get_account_data", |tx| async move {
                account_data::find(&tx, user_id, room_id, data_type).await
            })
            .await?
            .ok_or_else(|| ApiError::not_found("There is no account data of this type"))?;
    RawValue::from_string(content).map_err(ApiError::internal)
}

async fn put(
    ctx: &Ctx<Session>,
    room_id: Option<OwnedRoomId>,
    data_type: String,
    content: &RawValue,
) -> Result<(), ApiError> {
    if data_type == "m.fully_read" || data_type == push_rules::ACCOUNT_DATA_TYPE {
        return Err(ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::BadJson,
            "The server controls account data of this type",
        ));
    }
    guard::short("type", &data_type, MAX_NAME_BYTES)?;
    guard::short("content", content.get(), MAX_CONTENT_BYTES)?;
    if !content.get().starts_with('{') {
        return Err(ApiError::bad_json("Account data is a JSON object"));
    }
    let user_id = ctx.requester.user_id.clone();
    let data = &AccountData { user_id, room_id, data_type, content: content.get().to_owned() };
    ctx.app
        .store
        .write("put_account_data", |tx| async move {
            tx.lock_shards(&[tx.shards().of_user(&data.user_id)]).await?;
            account_data::put(&tx, data).await
        })
        .await?;
    Ok(())
}

async fn change_tags(
    ctx: &Ctx<Session>,
    room_id: &RoomId,
    change: &(dyn Fn(&mut Tags) + Send + Sync),
) -> Result<(), ApiError> {
    let user_id = &*ctx.requester.user_id;
    ctx.app
        .store
        .write("change_tags", |tx| async move {
            // The lock also keeps two changes of the same tags apart.
            tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
            let stored = account_data::find(&tx, user_id, Some(room_id), TAGS).await?;
            let mut content = tags(stored.as_deref());
            change(&mut content.tags);
            let data = AccountData {
                user_id: user_id.to_owned(),
                room_id: Some(room_id.to_owned()),
                data_type: TAGS.to_owned(),
                content: serde_json::to_string(&content).map_err(ApiError::internal)?,
            };
            guard::short("list of tags", &data.content, MAX_CONTENT_BYTES)?;
            account_data::put(&tx, &data).await?;
            Ok::<_, ApiError>(())
        })
        .await
}

/// The tags in a content of `m.tag`. Clients may also write that content themselves, with anything in it: what cannot be read
/// counts as no tags.
fn tags(content: Option<&str>) -> TagContent {
    content.and_then(|content| serde_json::from_str(content).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_that_cannot_be_read_are_none() {
        assert!(tags(None).tags.is_empty());
        assert!(tags(Some(r#"{"tags":7}"#)).tags.is_empty());
        assert_eq!(tags(Some(r#"{"tags":{"u.x":{"order":0.5}}}"#)).tags.len(), 1);
    }
}
