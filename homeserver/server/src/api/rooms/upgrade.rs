//! Replacing a room by one of another version.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#room-upgrades>.

use std::sync::Arc;

use http::StatusCode;
use keystead_core::{
    closing,
    event::Draft,
    room::RoomState,
    room_creation::is_supported,
    room_upgrade::{banned, lasting_levels, replacement, silenced},
};
use keystead_store::{room_aliases, room_directory};
use ruma::{
    OwnedRoomId, RoomId,
    api::{client::room::upgrade_room::v3, error::ErrorCode},
    events::{StateEventType, room::member::MembershipState},
};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::{carry_over::carry_over, creation, draft, membership::Member};
use crate::{
    api::guard,
    context::{Ctx, Session},
    http::error::ApiError,
    rooms::{Alongside, Target, Write},
};

/// `POST /_matrix/client/v3/rooms/{roomId}/upgrade`.
///
/// The new room comes first, with the aliases, the place in the directory and the bans of the old one, in one transaction;
/// then the old room is told. Should the second step fail, the new room stands and the call can be made again.
pub(super) async fn upgrade_room(ctx: Ctx<Session>, request: v3::Request) -> Result<v3::Response, ApiError> {
    let v3::Request { room_id, new_version, additional_creators, .. } = &request;
    let upgrader = &ctx.requester.user_id;
    let room = guard::joined_room(&ctx.app, upgrader, room_id).await?;
    let rules = new_version.rules().filter(|_| is_supported(new_version)).ok_or_else(|| {
        let text = "This server cannot make rooms of that version";
        ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::UnsupportedRoomVersion, text)
    })?;
    if !is_permitted(&ctx, &room, tombstone(&ctx, room_id)?) {
        return Err(ApiError::forbidden("You do not have the power to upgrade this room"));
    }
    closing::check(&room, &tombstone(&ctx, room_id)?)
        .map_err(|refusal| ApiError::forbidden(refusal.to_string()))?;
    let plan =
        replacement(&room, upgrader, new_version, &rules, additional_creators).map_err(ApiError::internal)?;
    let mut last = banned(&room)
        .map(|user_id| {
            let content = Member::new(MembershipState::Ban, None).content()?;
            Ok(draft(&ctx, StateEventType::RoomMember, Some(user_id), content))
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    if let Some(levels) = lasting_levels(&room, upgrader, &rules).map_err(ApiError::internal)? {
        let content = to_raw_value(&levels).map_err(ApiError::internal)?;
        last.push(draft(&ctx, StateEventType::RoomPowerLevels, Some(""), content));
    }
    let more = creation::More { drafts: last, alongside: Some(move_names(room_id.clone())) };
    let new_room = creation::make(&ctx, &plan, more).await?;

    let write = Write {
        target: Target::Room(room_id.clone()),
        drafts: farewell(&ctx, &room, &new_room)?,
        transaction: None,
        alongside: None,
        good_up_to: None,
        now: ctx.now,
    };
    ctx.app.writer.write(write).await?;
    carry_over(&ctx, &new_room).await;
    Ok(v3::Response::new(new_room))
}

/// What the old room is told: where to go; and, as far as the upgrader may say so, that it has no aliases any more and that
/// nobody should speak in it.
fn farewell(ctx: &Ctx<Session>, room: &RoomState, new_room: &RoomId) -> Result<Vec<Draft>, ApiError> {
    let mut drafts = vec![tombstone(ctx, new_room)?];
    if room.get("m.room.canonical_alias", "").is_some() {
        let content = RawValue::from_string("{}".to_owned()).map_err(ApiError::internal)?;
        let no_alias = draft(ctx, StateEventType::RoomCanonicalAlias, Some(""), content);
        drafts.extend(Some(no_alias).filter(|draft| is_permitted(ctx, room, draft.clone())));
    }
    if let Some(levels) = silenced(room).map_err(ApiError::internal)? {
        let content = to_raw_value(&levels).map_err(ApiError::internal)?;
        let levels = draft(ctx, StateEventType::RoomPowerLevels, Some(""), content);
        drafts.extend(Some(levels).filter(|draft| is_permitted(ctx, room, draft.clone())));
    }
    Ok(drafts)
}

fn tombstone(ctx: &Ctx<Session>, new_room: &RoomId) -> Result<Draft, ApiError> {
    let content = json!({ "body": "This room has been replaced", "replacement_room": new_room });
    let content = to_raw_value(&content).map_err(ApiError::internal)?;
    Ok(draft(ctx, StateEventType::RoomTombstone, Some(""), content))
}

fn is_permitted(ctx: &Ctx<Session>, room: &RoomState, draft: Draft) -> bool {
    room.build(draft, &ctx.app.signer).is_ok()
}

/// Gives the new room the aliases of the old one and its place in the directory.
fn move_names(old_room: OwnedRoomId) -> Alongside {
    Arc::new(move |tx, new_room| {
        let old_room = old_room.clone();
        Box::pin(async move {
            room_aliases::move_all(&tx, &old_room, &new_room).await?;
            if room_directory::is_listed(&tx, &old_room).await? {
                room_directory::set_listed(&tx, &old_room, false).await?;
                room_directory::set_listed(&tx, &new_room, true).await?;
            }
            Ok(())
        })
    })
}
