//! Who is in a room: invitations, leaving, removal.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#room-membership>.

use http::StatusCode;
use keystead_core::room::RoomState;
use keystead_store::{
    Error,
    profiles::{AVATAR_URL, DISPLAY_NAME},
    rooms,
    streams::{self, UserChange},
};
use ruma::{
    OwnedUserId, UserId,
    api::{
        client::membership::{
            ban_user, forget_room,
            invite_user::{self, v3::InvitationRecipient},
            joined_rooms, kick_user, leave_room, unban_user,
        },
        error::ErrorCode,
    },
    events::{StateEventType, room::member::MembershipState},
};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::{draft, not_in_room, write};
use crate::{
    api::guard,
    context::{Ctx, Session},
    http::error::ApiError,
    profiles,
};

/// The content of an `m.room.member` event.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Member {
    membership: MembershipState,
    #[serde(skip_serializing_if = "Option::is_none")]
    displayname: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_direct: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_authorised_via_users_server: Option<OwnedUserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Member {
    /// A content with a reason, if there is one.
    pub(super) fn new(membership: MembershipState, reason: Option<String>) -> Self {
        Self {
            membership,
            displayname: None,
            avatar_url: None,
            is_direct: None,
            join_authorised_via_users_server: None,
            reason,
        }
    }

    /// With the member who lets the user into a restricted room.
    pub(super) fn authorised_via(self, user_id: Option<OwnedUserId>) -> Self {
        Self { join_authorised_via_users_server: user_id, ..self }
    }

    /// With the name and the picture of the user's profile, if the user is one of this server.
    pub(super) async fn introduced(self, ctx: &Ctx<Session>, user_id: &UserId) -> Result<Self, Error> {
        let fields = profiles::shown_in_rooms(&ctx.app, user_id).await?;
        let field = |name: &str| fields.get(name).and_then(|value| to_raw_value(value).ok());
        let (displayname, avatar_url) = (field(DISPLAY_NAME), field(AVATAR_URL));
        Ok(Self { displayname, avatar_url, ..self })
    }

    /// The content as JSON.
    pub(super) fn content(&self) -> Result<Box<RawValue>, Error> {
        to_raw_value(self).map_err(|error| Error::Setup(error.to_string()))
    }
}

/// `POST /_matrix/client/v3/rooms/{roomId}/ban`.
pub(super) async fn ban_user(
    ctx: Ctx<Session>,
    request: ban_user::v3::Request,
) -> Result<ban_user::v3::Response, ApiError> {
    let room = guard::joined_room(&ctx.app, &ctx.requester.user_id, &request.room_id).await?;
    let member = Member::new(MembershipState::Ban, request.reason);
    set(&ctx, &room, &request.user_id, member).await?;
    Ok(ban_user::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/forget`. A room that the user never knew is as good as forgotten.
pub(super) async fn forget_room(
    ctx: Ctx<Session>,
    request: forget_room::v3::Request,
) -> Result<forget_room::v3::Response, ApiError> {
    let (room_id, user_id) = (&*request.room_id, &*ctx.requester.user_id);
    let rooms = ctx.app.tail.rooms_of(user_id).await?;
    let Some(membership) = rooms.get(room_id).filter(|membership| !membership.forgotten) else {
        return Ok(forget_room::v3::Response::new());
    };
    if !matches!(membership.membership, MembershipState::Ban | MembershipState::Leave) {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            ErrorCode::Unknown,
            "You have to leave the room before you can forget it",
        ));
    }
    ctx.app
        .store
        .write("forget_room", |tx| async move {
            let shard = tx.shards().of_user(user_id);
            tx.lock_shards(&[shard]).await?;
            if rooms::forget(&tx, user_id, room_id).await? {
                // The other replicas drop what they remember of the user's rooms.
                streams::append_user_change(&tx, shard, user_id, UserChange::Rooms).await?;
            }
            Ok::<_, Error>(())
        })
        .await?;
    ctx.app.tail.forget_rooms_of(user_id);
    Ok(forget_room::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/invite`.
///
/// Whether a user of this server exists is not asked, so that nobody learns from it who has an account here.
pub(super) async fn invite_user(
    ctx: Ctx<Session>,
    request: invite_user::v3::Request,
) -> Result<invite_user::v3::Response, ApiError> {
    let InvitationRecipient::UserId(invited) = request.recipient else {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            ErrorCode::ThreepidDenied,
            "Invitations by address are not supported by this server",
        ));
    };
    check_can_be_invited(&ctx, &invited.user_id)?;
    let room = guard::joined_room(&ctx.app, &ctx.requester.user_id, &request.room_id).await?;
    let member = Member::new(MembershipState::Invite, invited.reason);
    set(&ctx, &room, &invited.user_id, member.introduced(&ctx, &invited.user_id).await?).await?;
    Ok(invite_user::v3::Response::new())
}

/// `GET /_matrix/client/v3/joined_rooms`.
pub(super) async fn joined_rooms(
    ctx: Ctx<Session>,
    _request: joined_rooms::v3::Request,
) -> Result<joined_rooms::v3::Response, ApiError> {
    let rooms = ctx.app.tail.rooms_of(&ctx.requester.user_id).await?;
    let joined = rooms.iter().filter(|(_, room)| room.membership == MembershipState::Join);
    Ok(joined_rooms::v3::Response::new(joined.map(|(room_id, _)| room_id.clone()).collect()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/kick`: also takes back invitations and turns away those who knock.
pub(super) async fn kick_user(
    ctx: Ctx<Session>,
    request: kick_user::v3::Request,
) -> Result<kick_user::v3::Response, ApiError> {
    let room = guard::joined_room(&ctx.app, &ctx.requester.user_id, &request.room_id).await?;
    // The authorisation rules would let it pass, and take a ban away.
    if matches!(room.membership(&request.user_id), MembershipState::Ban | MembershipState::Leave) {
        return Err(ApiError::forbidden("The user is not in the room"));
    }
    let member = Member::new(MembershipState::Leave, request.reason);
    set(&ctx, &room, &request.user_id, member).await?;
    Ok(kick_user::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/leave`: also rejects an invitation and takes back a knock. Who has left already
/// is answered as if they had left now.
pub(super) async fn leave_room(
    ctx: Ctx<Session>,
    request: leave_room::v3::Request,
) -> Result<leave_room::v3::Response, ApiError> {
    let user_id = &ctx.requester.user_id;
    let room = ctx.app.tail.room(&request.room_id).await?;
    let room =
        room.filter(|room| room.get("m.room.member", user_id.as_str()).is_some()).ok_or_else(not_in_room)?;
    if room.membership(user_id) != MembershipState::Leave {
        set(&ctx, &room, user_id, Member::new(MembershipState::Leave, request.reason)).await?;
    }
    Ok(leave_room::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/unban`.
pub(super) async fn unban_user(
    ctx: Ctx<Session>,
    request: unban_user::v3::Request,
) -> Result<unban_user::v3::Response, ApiError> {
    let room = guard::joined_room(&ctx.app, &ctx.requester.user_id, &request.room_id).await?;
    if room.membership(&request.user_id) != MembershipState::Ban {
        return Err(ApiError::forbidden("The user is not banned"));
    }
    let member = Member::new(MembershipState::Leave, request.reason);
    set(&ctx, &room, &request.user_id, member).await?;
    Ok(unban_user::v3::Response::new())
}

/// Gives a user of a room another membership, unless that is what the asking user has given it already.
///
/// # Errors
///
/// 403 `M_FORBIDDEN` if the room's rules do not let the asking user do that.
pub(super) async fn set(
    ctx: &Ctx<Session>,
    room: &RoomState,
    user_id: &UserId,
    member: Member,
) -> Result<(), ApiError> {
    let content = member.content()?;
    let draft = draft(ctx, StateEventType::RoomMember, Some(user_id.as_str()), content);
    write(ctx, &room.room_id, draft, None).await?;
    Ok(())
}

/// Refuses to invite somebody whom the invitation could not reach.
///
/// # Errors
///
/// 403 `M_FORBIDDEN` for users of other servers: this one does not federate.
pub(super) fn check_can_be_invited(ctx: &Ctx<Session>, user_id: &UserId) -> Result<(), ApiError> {
    if user_id.server_name() == ctx.app.settings.server.name {
        Ok(())
    } else {
        Err(ApiError::forbidden("Users of other servers cannot be invited: this server does not federate"))
    }
}
