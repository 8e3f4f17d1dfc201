//! Sending events that are not state.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid>.

use keystead_core::relations::relation_in;
use ruma::{api::client::message::send_message_event::v3, events::MessageLikeEventType};
use serde::Deserialize;

use super::{content, draft, redaction, relations, transaction, write, write_unfenced};
use crate::{
    accounts::sessions,
    context::{Ctx, Session},
    http::error::ApiError,
};

/// `PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}`.
///
/// `ts` is for application services, of which there are none, and is passed over.
pub(super) async fn send_message_event(
    ctx: Ctx<Session>,
    request: v3::Request,
) -> Result<v3::Response, ApiError> {
    let content = content(request.body.json())?;
    let kind = format!("send {} {}", request.room_id, request.event_type);
    let transaction = transaction(&ctx, kind, &request.txn_id)?;
    let mut draft = draft(&ctx, request.event_type.clone(), None, content);
    let is_redaction = request.event_type == MessageLikeEventType::RoomRedaction;
    if !is_redaction && relation_in(&draft.content).is_none() {
        let written = write_unfenced(&ctx, &request.room_id, draft, transaction).await?;
        return Ok(v3::Response::new(written.event_id));
    }
    sessions::fence(&ctx.app, &ctx.requester).await?;
    if is_redaction {
        #[derive(Deserialize)]
        struct Redacts {
            redacts: Option<ruma::OwnedEventId>,
        }
        let redacts = serde_json::from_str::<Redacts>(draft.content.get()).ok();
        let redacts = redacts.and_then(|content| content.redacts);
        let target = redacts.ok_or_else(|| ApiError::missing_param("The content must have redacts"))?;
        redaction::check(&ctx, &request.room_id, &target).await?;
        draft.redacts = Some(target);
    }
    relations::check_thread(&ctx, &request.room_id, &draft.content).await?;
    let written = write(&ctx, &request.room_id, draft, Some(transaction)).await?;
    Ok(v3::Response::new(written.event_id))
}
