//! A user's own member event, set by a job instead of a request.

use keystead_core::event::Draft;
use ruma::{OwnedRoomId, UserId, events::TimelineEventType};
use serde::Serialize;
use serde_json::value::to_raw_value;

use super::{Target, Write, WriteError};
use crate::{app::App, jobs::JobError};

/// Sets the content of a user's own member event of a room. A room that refuses it is passed over: the user was removed or
/// banned meanwhile, or the room takes no more of such events, and then there is nothing to be done there.
///
/// # Errors
///
/// [`JobError`] for whatever kept it from being written; it can be tried again.
pub(crate) async fn set_own_member(
    app: &App,
    user_id: &UserId,
    room_id: &OwnedRoomId,
    content: &impl Serialize,
) -> Result<(), JobError> {
    let now = app.clock.now();
    let draft = Draft {
        sender: user_id.to_owned(),
        event_type: TimelineEventType::RoomMember,
        state_key: Some(user_id.to_string()),
        content: to_raw_value(content).map_err(|_| JobError::Payload)?,
        redacts: None,
        origin_server_ts: now,
    };
    let target = Target::Room(room_id.clone());
    let write =
        Write { target, drafts: vec![draft], transaction: None, alongside: None, good_up_to: None, now };
    match app.writer.write(write).await {
        Err(WriteError::Refused(refusal)) => {
            tracing::info!(error = &refusal as &dyn std::error::Error, "a room refuses a job's member event");
            Ok(())
        }
        written => Ok(written.map(drop)?),
    }
}
