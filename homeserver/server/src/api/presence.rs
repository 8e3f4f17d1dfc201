//! Who is there.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#presence>. Off unless `presence.enabled` is set: nobody's presence is known
//! then, and nobody can set theirs.

use std::time::Duration;

use keystead_store::{Error, presence, rooms};
use ruma::{
    api::client::presence::{get_presence, set_presence},
    presence::PresenceState,
};

use super::guard;
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    presence as who_is_there,
};

/// The longest status message, in bytes.
const MAX_STATUS: usize = 4 * 1024;

/// `PUT /_matrix/client/v3/presence/{userId}/status`.
pub(super) async fn set_presence(
    ctx: Ctx<Session>,
    request: set_presence::v3::Request,
) -> Result<set_presence::v3::Response, ApiError> {
    guard::own_user(&ctx, &request.user_id)?;
    if !ctx.app.settings.presence.enabled {
        return Err(ApiError::forbidden("Presence is switched off on this server"));
    }
    let set_presence::v3::Request { user_id, presence, status_msg, .. } = request;
    if !matches!(presence, PresenceState::Online | PresenceState::Unavailable | PresenceState::Offline) {
        return Err(ApiError::invalid_param("presence is online, unavailable or offline"));
    }
    let status_msg = status_msg.filter(|text| !text.is_empty());
    if let Some(text) = &status_msg {
        guard::short("status_msg", text, MAX_STATUS)?;
        if text.contains('\0') {
            return Err(ApiError::invalid_param("status_msg has a character that no text has"));
        }
    }
    who_is_there::set(&ctx.app, &user_id, presence, status_msg).await?;
    Ok(set_presence::v3::Response::new())
}

/// `GET /_matrix/client/v3/presence/{userId}/status`: one's own, and that of those with whom one shares a room.
pub(super) async fn get_presence(
    ctx: Ctx<Session>,
    request: get_presence::v3::Request,
) -> Result<get_presence::v3::Response, ApiError> {
    let (reader, user_id) = (&*ctx.requester.user_id, &*request.user_id);
    let read = ctx.app.store.read("get_presence", |tx| async move {
        let may_see = reader == user_id || rooms::share_room(&tx, reader, user_id).await?;
        Ok::<_, Error>((may_see, presence::find(&tx, user_id).await?))
    });
    // > 403: You are not allowed to see this user's presence status.
    let (true, stored) = read.await? else {
        return Err(ApiError::forbidden("You share no room with this user"));
    };
    // > 404: There is no presence state for this user. This user may not exist or isn't exposing presence information to you.
    let stored = stored.filter(|_| ctx.app.settings.presence.enabled);
    let stored = stored.ok_or_else(|| ApiError::not_found("It is not known whether this user is there"))?;
    let ago = u64::from(ctx.now.get()).saturating_sub(stored.last_active_ts.get().into());
    let currently_active = stored.currently_active();
    let mut response = get_presence::v3::Response::new(stored.state);
    response.currently_active = currently_active;
    response.status_msg = stored.status_msg;
    response.last_active_ago = Some(Duration::from_millis(ago));
    Ok(response)
}
