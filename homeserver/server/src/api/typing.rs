//! Typing notifications. They travel in hints between the replicas and are never stored.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#typing-notifications>.

use keystead_store::Hint;
use ruma::{RoomId, UserId};
use serde::Deserialize;

use super::guard;
use crate::{
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson, router::OwnRequest},
};

/// The path, of which ruma's type would not take a body without `timeout`, which the specification allows.
pub(super) const PATHS: [&str; 2] = [
    "/_matrix/client/r0/rooms/{room_id}/typing/{user_id}",
    "/_matrix/client/v3/rooms/{room_id}/typing/{user_id}",
];

/// For how long a user types who does not say, in milliseconds.
const DEFAULT_MS: u64 = 30_000;
/// For how long a user types at most without saying so again, in milliseconds.
const MOST_MS: u64 = 120_000;

#[derive(Deserialize)]
struct Body {
    typing: bool,
    timeout: Option<u64>,
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}`.
pub(super) async fn set_typing(ctx: Ctx<Session>, request: OwnRequest) -> Result<RawJson, ApiError> {
    let invalid = |_| ApiError::invalid_param("The path needs a room id and a user id");
    let room_id = RoomId::parse(request.path_arg(0)).map_err(invalid)?;
    let user_id = UserId::parse(request.path_arg(1)).map_err(invalid)?;
    guard::own_user(&ctx, &user_id)?;
    let body: Body = request.json()?;
    guard::joined_room(&ctx.app, &user_id, &room_id).await?;
    let until = body.typing.then(|| u64::from(ctx.now.0) + body.timeout.unwrap_or(DEFAULT_MS).min(MOST_MS));
    ctx.app.store.send_hint(Hint::Typing {
        room_id: room_id.to_string(),
        user_id: user_id.to_string(),
        until,
    });
    Ok(RawJson("{}".into()))
}
