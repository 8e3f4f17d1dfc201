//! Reading and setting the state of rooms.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room>.

use std::{collections::BTreeMap, sync::Arc};

use keystead_core::{closing, room::RoomState};
use keystead_store::{Error, keys, rooms};
use ruma::{
    UserId,
    api::client::state::{
        get_state_event_for_key::{self, v3::StateEventFormat},
        get_state_events, send_state_event,
    },
    events::{StateEventType, room::member::MembershipState},
    serde::Raw,
};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use super::{
    access::{self, Access},
    content, draft, joining,
    membership::check_can_be_invited,
    not_in_room, reader, write,
};
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    rooms::{Form, MembershipHistory, aliases::check_canonical_alias, client_events, client_state},
};

/// `GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`.
pub(super) async fn get_state_event_for_key(
    ctx: Ctx<Session>,
    request: get_state_event_for_key::v3::Request,
) -> Result<get_state_event_for_key::v3::Response, ApiError> {
    let (room_id, reader) = (&*request.room_id, reader(&ctx));
    let Access { room, until } = access::readable(&ctx, room_id).await?;
    let event_type = &*request.event_type.to_string();
    let key = (event_type, &*request.state_key);
    let event = match until {
        None => room.get(key.0, key.1).cloned(),
        Some(position) => {
            let read = ctx.app.store.read("state_event", |tx| async move {
                rooms::state_event_at(&tx, room_id, position, key).await
            });
            read.await?.map(Arc::new)
        }
    };
    let event = event.ok_or_else(|| ApiError::not_found("The room has no such state"))?;
    if request.format != StateEventFormat::Event {
        return Ok(get_state_event_for_key::v3::Response::new(event.pdu.content.clone()));
    }
    let events = &[event];
    let read = ctx.app.store.read("state_event", |tx| async move {
        let memberships = MembershipHistory::load(&tx, room_id, reader.user_id).await?;
        client_events(&tx, events, (reader.knowing(&memberships), None), Form::WithRoomId).await
    });
    let event = read.await?.pop().ok_or_else(|| ApiError::not_found("The room has no such state"))?;
    Ok(get_state_event_for_key::v3::Response::new(event))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state`.
pub(super) async fn get_state_events(
    ctx: Ctx<Session>,
    request: get_state_events::v3::Request,
) -> Result<get_state_events::v3::Response, ApiError> {
    let (room_id, reader) = (&*request.room_id, reader(&ctx));
    let Access { room, until } = access::readable(&ctx, room_id).await?;
    let now: &Vec<_> = &room.iter().cloned().collect();
    let read = ctx.app.store.read("state", |tx| async move {
        let memberships = MembershipHistory::load(&tx, room_id, reader.user_id).await?;
        let reader = reader.knowing(&memberships);
        match until {
            None => client_state(&tx, now, reader, Form::WithRoomId).await,
            Some(position) => {
                let then = rooms::state_at(&tx, room_id, position).await?;
                client_state(&tx, &then, reader, Form::WithRoomId).await
            }
        }
    });
    let state = read.await?.into_iter().map(Raw::from_json).collect();
    Ok(get_state_events::v3::Response::new(state))
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`.
///
/// What is set already by the same user is not set again: the answer is the id of the event that stands. `ts` is for
/// application services, of which there are none, and is passed over.
pub(super) async fn send_state_event(
    ctx: Ctx<Session>,
    request: send_state_event::v3::Request,
) -> Result<send_state_event::v3::Response, ApiError> {
    let send_state_event::v3::Request { room_id, event_type, state_key, .. } = &request;
    let room = ctx.app.tail.room(room_id).await?.ok_or_else(not_in_room)?;
    let mut content = content(request.body.json())?;
    match event_type {
        StateEventType::RoomMember => content = checked_member(&ctx, &room, state_key, &content).await?,
        // A redaction without permission must not get in by this door either.
        other if other.to_string() == "m.room.redaction" => {
            return Err(ApiError::forbidden("A redaction is not a state event"));
        }
        other if state_key.is_empty() && other.to_string() == closing::EVENT_TYPE => {
            check_closing(&ctx, &room, &content).await?;
        }
        StateEventType::RoomCanonicalAlias if is_member(&ctx, &room) => {
            check_canonical_alias(&ctx.app.store, &room, &content).await?;
        }
        _ => {}
    }
    let draft = draft(&ctx, event_type.clone(), Some(state_key), content);
    let written = write(&ctx, room_id, draft, None).await?;
    Ok(send_state_event::v3::Response::new(written.event_id))
}

fn is_member(ctx: &Ctx<Session>, room: &RoomState) -> bool {
    room.membership(&ctx.requester.user_id) == MembershipState::Join
}

/// Checks that what closes or opens the room is signed by the KeyBox that sends it. The writer checks the rest.
async fn check_closing(ctx: &Ctx<Session>, room: &RoomState, content: &RawValue) -> Result<(), ApiError> {
    let (user_id, device_id) = (&ctx.requester.user_id, &ctx.requester.device_id);
    let wanted = &BTreeMap::from([(user_id.clone(), vec![device_id.clone()])]);
    let published =
        ctx.app.store.read("closing_keybox", |tx| async move { keys::query(&tx, wanted).await }).await?;
    let device_keys = published.first().map(|device| device.json.as_str());
    closing::check_signer(room, content, (user_id, device_id), device_keys)
        .map_err(|refusal| ApiError::forbidden(refusal.to_string()))
}

/// The content of a member event that a client wrote itself.
///
/// Who may let somebody into a restricted room is for the server to say, not for the client: the authorisation rules only
/// look at whether that member could invite.
async fn checked_member(
    ctx: &Ctx<Session>,
    room: &RoomState,
    state_key: &str,
    content: &RawValue,
) -> Result<Box<RawValue>, ApiError> {
    const AUTHORISED_VIA: &str = "join_authorised_via_users_server";
    let user_id = <&UserId>::try_from(state_key)
        .map_err(|_| ApiError::invalid_param("The state key of a member event must be a user id"))?;
    let mut fields: serde_json::Map<String, Value> =
        serde_json::from_str(content.get()).map_err(|error| ApiError::bad_json(error.to_string()))?;
    let membership = fields.get("membership").and_then(Value::as_str).unwrap_or_default();
    if membership == "invite" {
        check_can_be_invited(ctx, user_id)?;
    }
    let joins = membership == "join" && user_id == ctx.requester.user_id;
    let has_joined = room.membership(user_id) == MembershipState::Join;
    fields.remove(AUTHORISED_VIA);
    if joins
        && !has_joined
        && let Some(via) = joining::authorising_user(ctx, room, user_id).await?
    {
        fields.insert(AUTHORISED_VIA.to_owned(), via.to_string().into());
    }
    Ok(to_raw_value(&fields).map_err(|error| Error::Setup(error.to_string()))?)
}
