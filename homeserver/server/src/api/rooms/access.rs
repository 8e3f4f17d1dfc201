//! Who may read a room, and how far.

use keystead_core::room::RoomState;
use ruma::{RoomId, events::room::member::MembershipState};

use super::not_in_room;
use crate::{
    api::guard,
    context::{Ctx, Session},
    http::error::ApiError,
    rooms::RoomView,
};

/// A room that the asking user may read.
pub(super) struct Access {
    /// The room as it is now.
    pub(super) room: RoomState,
    /// The position of the event with which the user left the room: nothing after it is for them. `None` for those who
    /// are in the room, and for everybody if it is world-readable.
    pub(super) until: Option<i64>,
}

/// How far the asking user may read a room: members up to now, those who left up to then, everybody if the room is
/// world-readable.
///
/// # Errors
///
/// 403 `M_FORBIDDEN` for all others, for those who have forgotten the room, and for a room that does not exist.
pub(super) async fn readable(ctx: &Ctx<Session>, room_id: &RoomId) -> Result<Access, ApiError> {
    let user_id = &*ctx.requester.user_id;
    let room = ctx.app.tail.room(room_id).await?.ok_or_else(not_in_room)?;
    if room.membership(user_id) == MembershipState::Join || guard::is_world_readable(&room) {
        return Ok(Access { room, until: None });
    }
    let rooms = ctx.app.tail.rooms_of(user_id).await?;
    if rooms.get(room_id).is_none_or(|membership| membership.forgotten) {
        return Err(not_in_room());
    }
    let view = ctx
        .app
        .store
        .read("room_view", |tx| async move { RoomView::load(&tx, room_id, user_id).await })
        .await?;
    if view.membership() == MembershipState::Join {
        // The user has joined since the room's state was looked at, maybe through another replica.
        ctx.app.fence().await?;
        let room = ctx.app.tail.room(room_id).await?.ok_or_else(not_in_room)?;
        return Ok(Access { room, until: None });
    }
    match view.joined_until() {
        Some(until) => Ok(Access { room, until: Some(until) }),
        None => Err(not_in_room()),
    }
}
