//! Room aliases.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#room-aliases>.

use std::sync::Arc;

use http::StatusCode;
use keystead_core::{
    event::Draft,
    room::{Refusal, RoomState},
};
use keystead_store::{room_aliases, room_aliases::AliasTarget};
use ruma::{
    RoomAliasId, UserId,
    api::{
        client::{
            alias::{create_alias, delete_alias, get_alias},
            room::aliases,
        },
        error::ErrorCode,
    },
    events::{
        TimelineEventType,
        room::{member::MembershipState, power_levels::UserPowerLevel},
    },
};
use serde_json::value::to_raw_value;

use super::guard;
use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
    rooms::{
        Alongside, Target, Write,
        aliases::{aliases_of, canonical_alias},
    },
};

/// `PUT /_matrix/client/v3/directory/room/{roomAlias}`, for members of the room.
pub(super) async fn create_alias(
    ctx: Ctx<Session>,
    request: create_alias::v3::Request,
) -> Result<create_alias::v3::Response, ApiError> {
    let create_alias::v3::Request { room_alias, room_id, .. } = &request;
    let user_id = &*ctx.requester.user_id;
    if room_alias.server_name() != ctx.app.settings.server.name {
        return Err(ApiError::invalid_param("The alias belongs to another server"));
    }
    guard::joined_room(&ctx.app, user_id, room_id).await?;
    let is_new =
        ctx.app
            .store
            .write("create_alias", |tx| async move {
                room_aliases::insert(&tx, room_alias, room_id, user_id).await
            })
            .await?;
    if !is_new {
        return Err(ApiError::new(StatusCode::CONFLICT, ErrorCode::Unknown, "The alias is taken"));
    }
    Ok(create_alias::v3::Response::new())
}

/// `GET /_matrix/client/v3/directory/room/{roomAlias}`.
pub(super) async fn get_alias(
    ctx: Ctx<()>,
    request: get_alias::v3::Request,
) -> Result<get_alias::v3::Response, ApiError> {
    let target = resolve(&ctx.app, &request.room_alias).await?;
    Ok(get_alias::v3::Response::new(target.room_id, vec![ctx.app.settings.server.name.clone()]))
}

/// `DELETE /_matrix/client/v3/directory/room/{roomAlias}`: for its creator, for those who may change the room's canonical
/// alias, and for administrators. If the canonical alias names it, that is mended as well.
pub(super) async fn delete_alias(
    ctx: Ctx<Session>,
    request: delete_alias::v3::Request,
) -> Result<delete_alias::v3::Response, ApiError> {
    let alias = &*request.room_alias;
    let target = resolve(&ctx.app, alias).await?;
    let user_id = &*ctx.requester.user_id;
    let room = ctx.app.tail.room(&target.room_id).await?;
    let rules_alias = match &room {
        Some(room) => may_set_canonical_alias(room, user_id)?,
        None => false,
    };
    if target.creator != user_id && !rules_alias && !ctx.requester.is_admin {
        return Err(ApiError::forbidden("You may not delete this alias"));
    }
    match room.filter(|room| rules_alias && names(room, alias)) {
        Some(room) => delete_from_room(&ctx, &room, alias).await?,
        None => delete(&ctx.app, alias).await?,
    }
    Ok(delete_alias::v3::Response::new())
}

/// `GET /_matrix/client/v3/rooms/{roomId}/aliases`: for members, and for everybody if the room is world-readable.
pub(super) async fn aliases(
    ctx: Ctx<Session>,
    request: aliases::v3::Request,
) -> Result<aliases::v3::Response, ApiError> {
    let room = ctx.app.tail.room(&request.room_id).await?;
    let may_read = room.is_some_and(|room| {
        room.membership(&ctx.requester.user_id) == MembershipState::Join || guard::is_world_readable(&room)
    });
    if !may_read {
        return Err(ApiError::forbidden("You are not in this room"));
    }
    let room_id = &*request.room_id;
    let aliases = ctx
        .app
        .store
        .read("aliases_of_room", |tx| async move { room_aliases::of_room(&tx, room_id).await })
        .await?;
    Ok(aliases::v3::Response::new(aliases))
}

/// The room that an alias of this server stands for.
///
/// # Errors
///
/// 404 `M_NOT_FOUND` if there is no such alias, or it belongs to another server.
pub(crate) async fn resolve(app: &App, alias: &RoomAliasId) -> Result<AliasTarget, ApiError> {
    let target =
        app.store.read("resolve_alias", |tx| async move { room_aliases::find(&tx, alias).await }).await?;
    target.ok_or_else(unknown_alias)
}

/// Whether a user is in the room and may change its canonical alias, and with it how strangers find it.
///
/// # Errors
///
/// 500 if the room's power levels cannot be read.
pub(super) fn may_set_canonical_alias(room: &RoomState, user_id: &UserId) -> Result<bool, ApiError> {
    let unreadable = |refusal: Refusal| ApiError::internal(refusal);
    let required = room.state_level(&TimelineEventType::RoomCanonicalAlias).map_err(unreadable)?;
    Ok(room.membership(user_id) == MembershipState::Join
        && room.power_level(user_id).map_err(unreadable)? >= UserPowerLevel::Int(required))
}

/// Whether the room's canonical alias names this alias.
fn names(room: &RoomState, alias: &RoomAliasId) -> bool {
    aliases_of(&canonical_alias(room)).any(|other| other == alias)
}

async fn delete(app: &App, alias: &RoomAliasId) -> Result<(), ApiError> {
    let deleted =
        app.store.write("delete_alias", |tx| async move { room_aliases::delete(&tx, alias).await }).await?;
    if deleted { Ok(()) } else { Err(unknown_alias()) }
}

/// Deletes an alias and takes it out of the room's canonical alias: both or neither.
async fn delete_from_room(ctx: &Ctx<Session>, room: &RoomState, alias: &RoomAliasId) -> Result<(), ApiError> {
    let mut content = canonical_alias(room);
    content.alias = content.alias.filter(|other| other != alias);
    content.alt_aliases.retain(|other| other != alias);
    let draft = Draft {
        sender: ctx.requester.user_id.clone(),
        event_type: TimelineEventType::RoomCanonicalAlias,
        state_key: Some(String::new()),
        content: to_raw_value(&content).map_err(ApiError::internal)?,
        redacts: None,
        origin_server_ts: ctx.now,
    };
    let alias = alias.to_owned();
    let alongside: Alongside = Arc::new(move |tx, _| {
        let alias = alias.clone();
        Box::pin(async move { room_aliases::delete(&tx, &alias).await.map(drop) })
    });
    let write = Write {
        target: Target::Room(room.room_id.clone()),
        drafts: vec![draft],
        transaction: None,
        alongside: Some(alongside),
        good_up_to: None,
        now: ctx.now,
    };
    ctx.app.writer.write(write).await?;
    Ok(())
}

fn unknown_alias() -> ApiError {
    ApiError::not_found("There is no such room alias")
}
