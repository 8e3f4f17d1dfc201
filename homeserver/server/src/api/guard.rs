//! What many endpoints ask before they do anything: is this your own, are you in the room?

use keystead_core::room::RoomState;
use ruma::{
    RoomId, TransactionId, UserId,
    events::room::{history_visibility::HistoryVisibility, member::MembershipState},
};
use serde::Deserialize;

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

/// Whether anybody may read the room, without being in it.
pub(super) fn is_world_readable(room: &RoomState) -> bool {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: HistoryVisibility,
    }
    room.get("m.room.history_visibility", "")
        .and_then(|event| serde_json::from_str::<Content>(event.pdu.content.get()).ok())
        .is_some_and(|content| content.history_visibility == HistoryVisibility::WorldReadable)
}

/// The longest id of a client's transaction, in bytes: a longer one would not fit into the index that finds it.
const MAX_TRANSACTION_ID_BYTES: usize = 255;

/// Refuses a transaction id that cannot be stored.
///
/// # Errors
///
/// 400 `M_INVALID_PARAM`.
pub(super) fn transaction_id(id: &TransactionId) -> Result<(), ApiError> {
    if id.as_str().len() > MAX_TRANSACTION_ID_BYTES {
        let text = format!("A transaction id must not be longer than {MAX_TRANSACTION_ID_BYTES} bytes");
        return Err(ApiError::invalid_param(text));
    }
    Ok(())
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
