//! Rooms: making them, who is in them, what is said in them.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#rooms>.

mod access;
mod annotations;
mod carry_over;
mod creation;
mod joining;
mod members;
mod membership;
mod messages;
mod redaction;
mod relations;
mod search;
mod sending;
mod state;
mod timeline;
mod upgrade;

use std::fmt::Display;

use keystead_core::{event::Draft, json};
use keystead_store::transactions::ClientTransaction;
use ruma::{RoomId, TransactionId, events::TimelineEventType};
use serde_json::value::{RawValue, to_raw_value};

use super::guard;
use crate::{
    accounts::sessions,
    context::{Ctx, Session},
    http::{
        error::ApiError,
        router::{Options, Router},
    },
    rooms::{Reader, Target, Write, WriteError, Written},
};

/// Registers the endpoints.
pub(super) fn routes(router: &mut Router) {
    router
        .route(creation::create_room)
        .route(joining::join_room_by_id)
        .route(joining::join_room_by_id_or_alias)
        .route(joining::knock_room)
        .route(members::get_member_events)
        .route(members::joined_members)
        .route(membership::ban_user)
        .route(membership::forget_room)
        .route(membership::invite_user)
        .route(membership::joined_rooms)
        .route(membership::kick_user)
        .route(membership::leave_room)
        .route(membership::unban_user)
        .route(messages::get_context)
        .route(messages::get_event_by_timestamp)
        .route(messages::get_message_events)
        .route(messages::get_room_event)
        .route(redaction::redact_event)
        .route(relations::get_relating_events)
        .route(relations::get_relating_events_with_rel_type)
        .route(relations::get_relating_events_with_rel_type_and_event_type)
        .route(relations::get_threads)
        .route(search::search_events)
        .route_with(Options::UNFENCED, sending::send_message_event)
        .route(state::get_state_event_for_key)
        .route(state::get_state_events)
        .route(state::send_state_event)
        .route(upgrade::upgrade_room);
}

/// An event that the asking user sends now.
///
/// The type goes by its text: ruma's conversion leaves the type of a state event that is sent as a message a custom one,
/// which equals none that the authorisation rules name.
fn draft(
    ctx: &Ctx<Session>,
    event_type: impl Display,
    state_key: Option<&str>,
    content: Box<RawValue>,
) -> Draft {
    Draft {
        sender: ctx.requester.user_id.clone(),
        event_type: TimelineEventType::from(event_type.to_string()),
        state_key: state_key.map(str::to_owned),
        content,
        redacts: None,
        origin_server_ts: ctx.now,
    }
}

/// Sends one event into a room that exists.
async fn write(
    ctx: &Ctx<Session>,
    room_id: &RoomId,
    draft: Draft,
    transaction: Option<ClientTransaction>,
) -> Result<Written, ApiError> {
    ctx.limit_messages()?;
    let annotation =
        transaction.as_ref().and_then(|transaction| annotations::annotation_of(room_id, &draft, transaction));
    if let Some(annotation) = &annotation {
        annotations::check(ctx, annotation).await?;
    }
    let write = Write {
        target: Target::Room(room_id.to_owned()),
        drafts: vec![draft],
        transaction,
        alongside: annotation.map(annotations::once),
        good_up_to: None,
        now: ctx.now,
    };
    ctx.app.writer.write(write).await.map_err(refused)
}

/// Sends a message that relates to no other into a room that exists, for a request that is not fenced: the database itself sees whether
/// it may be written. Only if that is not sure the request waits until this replica has seen everything.
async fn write_unfenced(
    ctx: &Ctx<Session>,
    room_id: &RoomId,
    draft: Draft,
    transaction: ClientTransaction,
) -> Result<Written, ApiError> {
    ctx.limit_messages()?;
    let write = Write {
        target: Target::Room(room_id.to_owned()),
        drafts: vec![draft],
        transaction: Some(transaction),
        alongside: None,
        good_up_to: Some(sessions::good_up_to(&ctx.app, &ctx.requester).await?),
        now: ctx.now,
    };
    match ctx.app.writer.write(write.clone()).await {
        Err(WriteError::Unsure) => {}
        written => return written.map_err(refused),
    }
    sessions::fence(&ctx.app, &ctx.requester).await?;
    ctx.app.writer.write(Write { good_up_to: None, ..write }).await.map_err(refused)
}

fn refused(error: WriteError) -> ApiError {
    match error {
        WriteError::Conflict => annotations::duplicate(),
        WriteError::UnknownRoom => not_in_room(),
        error => error.into(),
    }
}

/// The client's transaction: the same endpoint, called again by the same device for the same place with the same id,
/// does nothing again.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#transaction-identifiers>
///
/// # Errors
///
/// 400 `M_INVALID_PARAM` if its id is longer than 255 bytes.
fn transaction(ctx: &Ctx<Session>, kind: String, id: &TransactionId) -> Result<ClientTransaction, ApiError> {
    guard::transaction_id(id)?;
    Ok(ClientTransaction {
        user_id: ctx.requester.user_id.clone(),
        device_id: ctx.requester.device_id.clone(),
        kind,
        transaction_id: id.to_string(),
    })
}

/// The one who asks, as a reader of events.
fn reader(ctx: &Ctx<Session>) -> Reader<'_> {
    let Session { user_id, device_id, .. } = &ctx.requester;
    Reader { user_id, device_id, now: ctx.now, memberships: None }
}

/// The content of an event that a client sent, as canonical JSON: of a name that stands in it twice the last value counts for all who look at it.
///
/// # Errors
///
/// 400 `M_BAD_JSON` if events cannot hold it.
fn content(raw: &RawValue) -> Result<Box<RawValue>, ApiError> {
    let object = json::canonical_object(raw).map_err(|error| ApiError::bad_json(error.to_string()))?;
    to_raw_value(&object).map_err(ApiError::internal)
}

/// 403: also for a room that does not exist, so that nobody can find out which rooms do.
fn not_in_room() -> ApiError {
    ApiError::forbidden("You are not in this room")
}

#[cfg(test)]
mod tests;
