//! Joining rooms, and knocking at their doors.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#joining-rooms>.

use keystead_core::room::{Refusal, RoomState, membership_of};
use ruma::{
    OwnedRoomId, OwnedRoomOrAliasId, OwnedUserId, RoomId, UserId,
    api::client::{
        knock::knock_room,
        membership::{join_room_by_id, join_room_by_id_or_alias},
    },
    events::room::{member::MembershipState, power_levels::UserPowerLevel},
    room::{AllowRule, JoinRule, Restricted},
    state_res::events::RoomPowerLevelsIntField,
};
use serde::Deserialize;

use super::{
    carry_over::carry_over,
    membership::{self, Member},
};
use crate::{
    api::room_aliases,
    context::{Ctx, Session},
    http::error::ApiError,
};

/// `POST /_matrix/client/v3/rooms/{roomId}/join`.
pub(super) async fn join_room_by_id(
    ctx: Ctx<Session>,
    request: join_room_by_id::v3::Request,
) -> Result<join_room_by_id::v3::Response, ApiError> {
    join(&ctx, &request.room_id, request.reason).await?;
    Ok(join_room_by_id::v3::Response::new(request.room_id))
}

/// `POST /_matrix/client/v3/join/{roomIdOrAlias}`.
pub(super) async fn join_room_by_id_or_alias(
    ctx: Ctx<Session>,
    request: join_room_by_id_or_alias::v3::Request,
) -> Result<join_room_by_id_or_alias::v3::Response, ApiError> {
    let room_id = resolve(&ctx, request.room_id_or_alias).await?;
    join(&ctx, &room_id, request.reason).await?;
    Ok(join_room_by_id_or_alias::v3::Response::new(room_id))
}

/// `POST /_matrix/client/v3/knock/{roomIdOrAlias}`.
pub(super) async fn knock_room(
    ctx: Ctx<Session>,
    request: knock_room::v3::Request,
) -> Result<knock_room::v3::Response, ApiError> {
    let room_id = resolve(&ctx, request.room_id_or_alias).await?;
    let user_id = &ctx.requester.user_id;
    let room = known_room(&ctx, &room_id).await?;
    let member = Member::new(MembershipState::Knock, request.reason);
    membership::set(&ctx, &room, user_id, member.introduced(&ctx, user_id).await?).await?;
    Ok(knock_room::v3::Response::new(room_id))
}

/// Who is in the room already is in it: the profile and the reason of the first join stay.
async fn join(ctx: &Ctx<Session>, room_id: &RoomId, reason: Option<String>) -> Result<(), ApiError> {
    let user_id = &ctx.requester.user_id;
    let room = known_room(ctx, room_id).await?;
    if room.membership(user_id) == MembershipState::Join {
        return Ok(());
    }
    let was_there_before = room.get("m.room.member", user_id.as_str()).is_some()
        && matches!(room.membership(user_id), MembershipState::Leave | MembershipState::Ban);
    let member = Member::new(MembershipState::Join, reason)
        .authorised_via(authorising_user(ctx, &room, user_id).await?)
        .introduced(ctx, user_id)
        .await?;
    membership::set(ctx, &room, user_id, member).await?;
    // Who comes back may have changed or removed what was carried over.
    if !was_there_before {
        carry_over(ctx, room_id).await;
    }
    Ok(())
}

/// The room that a client names.
async fn resolve(ctx: &Ctx<Session>, room: OwnedRoomOrAliasId) -> Result<OwnedRoomId, ApiError> {
    match OwnedRoomId::try_from(room) {
        Ok(room_id) => Ok(room_id),
        Err(alias) => Ok(room_aliases::resolve(&ctx.app, &alias).await?.room_id),
    }
}

async fn known_room(ctx: &Ctx<Session>, room_id: &RoomId) -> Result<RoomState, ApiError> {
    ctx.app.tail.room(room_id).await?.ok_or_else(|| ApiError::not_found("There is no such room"))
}

/// The member who lets the user into a restricted room. `None` where nobody has to: other rooms, and users who are invited
/// or in the room.
///
/// # Errors
///
/// 403 `M_FORBIDDEN` if the user meets none of the room's conditions, or no member could invite.
///
/// See [restricted rooms](https://spec.matrix.org/v1.19/client-server-api/#restricted-rooms).
pub(super) async fn authorising_user(
    ctx: &Ctx<Session>,
    room: &RoomState,
    user_id: &UserId,
) -> Result<Option<OwnedUserId>, ApiError> {
    let Some(restricted) = restriction(room) else { return Ok(None) };
    match room.membership(user_id) {
        // Both need nobody, and a ban is for the authorisation rules to refuse.
        MembershipState::Ban | MembershipState::Invite | MembershipState::Join => return Ok(None),
        _ => {}
    }
    let rooms = ctx.app.tail.rooms_of(user_id).await?;
    let is_member = |room_id: &RoomId| {
        rooms.get(room_id).is_some_and(|membership| membership.membership == MembershipState::Join)
    };
    let meets = |rule: &AllowRule| match rule {
        AllowRule::RoomMembership(condition) => is_member(&condition.room_id),
        _ => false,
    };
    if !restricted.allow.iter().any(meets) {
        return Err(ApiError::forbidden("You are in none of the rooms that this room admits members of"));
    }
    let inviter = inviter(room).map_err(ApiError::internal)?;
    inviter.map(Some).ok_or_else(|| ApiError::forbidden("No member of the room could let you in"))
}

/// The conditions of a restricted room.
fn restriction(room: &RoomState) -> Option<Restricted> {
    let event = room.get("m.room.join_rules", "")?;
    let rules = &room.rules().authorization;
    match serde_json::from_str(event.pdu.content.get()).ok()? {
        JoinRule::Restricted(restricted) if rules.restricted_join_rule => Some(restricted),
        JoinRule::KnockRestricted(restricted) if rules.knock_restricted_join_rule => Some(restricted),
        _ => None,
    }
}

/// A member who has the power to invite. All members are users of this server.
fn inviter(room: &RoomState) -> Result<Option<OwnedUserId>, Refusal> {
    let required = UserPowerLevel::Int(room.required_level(RoomPowerLevelsIntField::Invite)?);
    let may_invite = |user_id: &UserId| {
        Ok::<_, Refusal>(
            room.membership(user_id) == MembershipState::Join && room.power_level(user_id)? >= required,
        )
    };
    let named = named_users(room);
    for user_id in &named {
        if may_invite(user_id)? {
            return Ok(Some(user_id.clone()));
        }
    }
    // All others have the same power, so one of them is as good as any.
    let other = room
        .members()
        .filter(|member| membership_of(&member.pdu) == MembershipState::Join)
        .filter_map(|member| member.pdu.state_key.as_deref().and_then(|key| OwnedUserId::try_from(key).ok()))
        .find(|user_id| !named.contains(user_id));
    match other {
        Some(user_id) if may_invite(&user_id)? => Ok(Some(user_id)),
        _ => Ok(None),
    }
}

/// The users who can have another power than most: the creators, and whom the power levels name.
fn named_users(room: &RoomState) -> Vec<OwnedUserId> {
    #[derive(Default, Deserialize)]
    struct Content {
        #[serde(default)]
        additional_creators: Vec<OwnedUserId>,
        #[serde(default)]
        users: serde_json::Map<String, serde_json::Value>,
    }
    let content = |event_type| -> Content {
        let event = room.get(event_type, "");
        event.and_then(|event| serde_json::from_str(event.pdu.content.get()).ok()).unwrap_or_default()
    };
    let create = room.get("m.room.create", "").map(|create| create.pdu.sender.clone());
    let leveled = content("m.room.power_levels").users;
    create
        .into_iter()
        .chain(content("m.room.create").additional_creators)
        .chain(leveled.keys().filter_map(|user| OwnedUserId::try_from(user.as_str()).ok()))
        .collect()
}
