//! Redacting events.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#redactions>.

use keystead_core::{closing, encryption};
use keystead_store::rooms;
use ruma::{
    EventId, RoomId,
    api::client::redact::redact_event::v3,
    events::{MessageLikeEventType, TimelineEventType},
};
use serde::Serialize;
use serde_json::value::to_raw_value;

use super::{draft, transaction, write};
use crate::{
    api::guard,
    context::{Ctx, Session},
    http::error::ApiError,
};

#[derive(Serialize)]
struct Content<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}`.
pub(super) async fn redact_event(ctx: Ctx<Session>, request: v3::Request) -> Result<v3::Response, ApiError> {
    check(&ctx, &request.room_id, &request.event_id).await?;
    let content = to_raw_value(&Content { reason: request.reason.as_deref() }).map_err(ApiError::internal)?;
    let kind = format!("redact {} {}", request.room_id, request.event_id);
    let transaction = transaction(&ctx, kind, &request.txn_id)?;
    let mut draft = draft(&ctx, MessageLikeEventType::RoomRedaction, None, content);
    draft.redacts = Some(request.event_id);
    let written = write(&ctx, &request.room_id, draft, Some(transaction)).await?;
    Ok(v3::Response::new(written.event_id))
}

/// Checks that the asking user may redact an event.
///
/// The writer checks the power once more when it appends the redaction: then it stands without effect if the power is gone.
///
/// # Errors
///
/// 403 `M_FORBIDDEN`, or 404 `M_NOT_FOUND` if the room has no such event.
pub(super) async fn check(ctx: &Ctx<Session>, room_id: &RoomId, target: &EventId) -> Result<(), ApiError> {
    let user_id = &ctx.requester.user_id;
    let room = guard::joined_room(&ctx.app, user_id, room_id).await?;
    let event = ctx
        .app
        .store
        .read("redacted_event", |tx| async move { rooms::event(&tx, room_id, target).await })
        .await?;
    let event = event.ok_or_else(|| ApiError::not_found("The room has no such event"))?.pdu;
    if !room.may_redact(user_id, &event.sender).map_err(ApiError::internal)? {
        return Err(ApiError::forbidden("You do not have the power to redact events of others"));
    }
    if event.event_type == TimelineEventType::RoomCreate {
        return Err(ApiError::forbidden("The event that made the room cannot be redacted"));
    }
    let suite =
        room.get("m.room.create", "").and_then(|create| encryption::frozen_suite(&create.pdu.content));
    let event_type = event.event_type.to_string();
    encryption::check_redaction(suite, &event_type)
        .map_err(|refusal| ApiError::forbidden(refusal.to_string()))?;
    closing::check_redaction(&event_type).map_err(|refusal| ApiError::forbidden(refusal.to_string()))
}
