//! What many endpoints ask before they do anything: is this your own, are you in the room?

use keystead_core::room::RoomState;
use ruma::{RoomId, UserId, events::room::member::MembershipState};

use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
};

/// Refuses a path that names another user than the one who asks.
///
/// # Errors
///
/// 403 `M_FORBIDDEN`.
pub(super) fn own_user(ctx: &Ctx<Session>, user_id: &UserId) -> Result<(), ApiError> {
    if ctx.requester.user_id == user_id {
        Ok(())
    } else {
        Err(ApiError::forbidden("You can do this for your own account only"))
    }
}

/// A room's current state, for a user who is in it.
///
/// # Errors
///
/// 403 `M_FORBIDDEN` if the user is not in the room, or there is no such room, which is not told apart.
pub(super) async fn joined_room(
    app: &App,
    user_id: &UserId,
    room_id: &RoomId,
) -> Result<RoomState, ApiError> {
    let room = app.tail.room(room_id).await?;
    room.filter(|room| room.membership(user_id) == MembershipState::Join)
        .ok_or_else(|| ApiError::forbidden("You are not in this room"))
}

/// Refuses text that is longer than `most` bytes.
///
/// # Errors
///
/// 413 `M_TOO_LARGE`.
pub(super) fn short(what: &'static str, text: &str, most: usize) -> Result<(), ApiError> {
    if text.len() > most {
        return Err(ApiError::too_large(format!("The {what} is longer than {most} bytes")));
    }
    Ok(())
}
