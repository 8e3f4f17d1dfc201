//! Reading what was said in a room.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room>.

use keystead_core::{filter, room::RoomEvent, token::TimelineToken};
use keystead_store::{
    Error,
    rooms::{self, Bounds, Direction},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, RoomId,
    api::{
        self,
        client::{
            context::get_context,
            filter::LazyLoadOptions,
            message::get_message_events,
            room::{get_event_by_timestamp, get_room_event},
        },
    },
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    access::{self, Access},
    reader, relations,
    timeline::{MAX_EVENTS, Walk, Wanted, passes, place, senders, walk},
};
use crate::{
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson},
    rooms::{Form, RoomView, client_events, client_state},
};

/// `GET /_matrix/client/v3/rooms/{roomId}/messages`.
pub(super) async fn get_message_events(
    ctx: Ctx<Session>,
    request: get_message_events::v3::Request,
) -> Result<get_message_events::v3::Response, ApiError> {
    let (room_id, reader) = (&*request.room_id, reader(&ctx));
    let Access { room, until } = access::readable(&ctx, room_id).await?;
    let named = |name, token: Option<&String>| -> Result<Option<i64>, ApiError> {
        Ok(token.map(|token| place(&ctx.app, room_id, (name, token))).transpose()?.map(|token| token.0))
    };
    let (from, to) = (named("from", request.from.as_ref())?, named("to", request.to.as_ref())?);
    let newest = until.unwrap_or(room.position);
    let (direction, bounds) = match request.dir {
        api::Direction::Backward => (
            Direction::Backward,
            Bounds { after: to.unwrap_or(0), upto: from.map_or(newest, |from| from.min(newest)) },
        ),
        api::Direction::Forward => (
            Direction::Forward,
            Bounds { after: from.unwrap_or(0), upto: to.map_or(newest, |to| to.min(newest)) },
        ),
    };
    let start = match direction {
        Direction::Backward => bounds.upto,
        Direction::Forward => bounds.after,
    };
    let filter = &request.filter;
    let limit = filter::limit(Some(filter.limit.unwrap_or(request.limit).min(request.limit)), 10, MAX_EVENTS);
    let is_empty = bounds.after >= bounds.upto || filter::excludes_everything(filter);
    let mut response = get_message_events::v3::Response::new();
    response.start = TimelineToken(from.unwrap_or(start)).to_string();
    if is_empty {
        return Ok(response);
    }
    let ignored = &*relations::prepare(&ctx, room_id).await?;
    let read = ctx.app.store.read("messages", |tx| async move {
        let view = &RoomView::load(&tx, room_id, reader.user_id).await?;
        let found = walk(&tx, Wanted { room_id, view, filter }, bounds, direction, limit).await?;
        let members = match (&filter.lazy_load_options, found.events.first()) {
            (LazyLoadOptions::Enabled { .. }, Some(first)) => {
                rooms::members_of_at(&tx, room_id, first.position, &senders(&found.events)).await?
            }
            _ => Vec::new(),
        };
        let reader = reader.knowing(view.memberships());
        let chunk = client_events(&tx, &found.events, (reader, Some(ignored)), Form::WithRoomId).await?;
        let state = client_state(&tx, &members, reader, Form::WithRoomId).await?;
        Ok::<_, Error>((found, chunk, state))
    });
    let (found, chunk, state) = read.await?;
    // > If no further events are available […], this property is omitted from the response.
    // Beyond `to` there may be some, but a page that shows nothing new must not lead back to itself.
    let goes_on = found.has_more || (to.is_some() && !chunk.is_empty());
    response.end = goes_on.then(|| found.reached.to_string());
    response.chunk = raw(chunk);
    response.state = raw(state);
    Ok(response)
}

/// `GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}`. `limit` is for the events around the event; half of them
/// come before it.
///
/// All lists are there, if empty: the specification lets a server leave them out, but clients (matrix-js-sdk) count on them.
pub(super) async fn get_context(
    ctx: Ctx<Session>,
    request: get_context::v3::Request,
) -> Result<RawJson, ApiError> {
    let (room_id, reader) = (&*request.room_id, reader(&ctx));
    let Access { room, until } = access::readable(&ctx, room_id).await?;
    let newest = until.unwrap_or(room.position);
    let (event_id, filter) = (&*request.event_id, &request.filter);
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(MAX_EVENTS).min(MAX_EVENTS);
    let ignored = &*relations::prepare(&ctx, room_id).await?;
    let read = ctx.app.store.read("context", |tx| async move {
        let Some(event) = rooms::event(&tx, room_id, event_id).await? else { return Ok(None) };
        let view = &RoomView::load(&tx, room_id, reader.user_id).await?;
        if !view.may_see(event.position) {
            return Ok(None);
        }
        let wanted = Wanted { room_id, view, filter };
        let older = Bounds { after: 0, upto: event.position - 1 };
        let before = walk(&tx, wanted, older, Direction::Backward, limit / 2).await?;
        let newer = Bounds { after: event.position, upto: newest };
        let after = walk(&tx, wanted, newer, Direction::Forward, limit - limit / 2).await?;

        let last = after.events.last().map_or(event.position, |event| event.position);
        let mut state = match filter.lazy_load_options {
            LazyLoadOptions::Disabled => rooms::state_at(&tx, room_id, last).await?,
            LazyLoadOptions::Enabled { .. } => {
                let shown = before.events.iter().chain([&event]).chain(&after.events);
                let mut state = rooms::state_without_members_at(&tx, room_id, last).await?;
                state.extend(rooms::members_of_at(&tx, room_id, last, &senders(shown)).await?);
                state
            }
        };
        state.retain(|event| passes(filter, event));
        let (reader, form) = (reader.knowing(view.memberships()), Form::WithRoomId);
        Ok::<_, Error>(Some(Context {
            event: client_events(&tx, &[event], (reader, Some(ignored)), form).await?.pop(),
            events_before: client_events(&tx, &before.events, (reader, Some(ignored)), form).await?,
            events_after: client_events(&tx, &after.events, (reader, Some(ignored)), form).await?,
            state: client_state(&tx, &state, reader, form).await?,
            start: before.reached.to_string(),
            end: after.reached.to_string(),
        }))
    });
    let context = read.await?.ok_or_else(no_such_event)?;
    Ok(RawJson(serde_json::to_vec(&context).map_err(ApiError::internal)?.into()))
}

/// [`get_context::v3::Response`], which would leave empty lists out.
#[derive(Serialize)]
struct Context {
    start: String,
    end: String,
    event: Option<Box<RawValue>>,
    events_before: Vec<Box<RawValue>>,
    events_after: Vec<Box<RawValue>>,
    state: Vec<Box<RawValue>>,
}

/// `GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}`.
pub(super) async fn get_room_event(
    ctx: Ctx<Session>,
    request: get_room_event::v3::Request,
) -> Result<get_room_event::v3::Response, ApiError> {
    let (room_id, reader) = (&*request.room_id, reader(&ctx));
    // > 404: The event was not found or you do not have permission to read this event.
    access::readable(&ctx, room_id).await.map_err(|error| {
        if error.status() == http::StatusCode::FORBIDDEN { no_such_event() } else { error }
    })?;
    let event_id = &*request.event_id;
    let ignored = &*relations::prepare(&ctx, room_id).await?;
    let read = ctx.app.store.read("event", |tx| async move {
        let Some(event) = rooms::event(&tx, room_id, event_id).await? else { return Ok(None) };
        let view = RoomView::load(&tx, room_id, reader.user_id).await?;
        if !view.may_see(event.position) {
            return Ok(None);
        }
        let reader = reader.knowing(view.memberships());
        Ok::<_, Error>(client_events(&tx, &[event], (reader, Some(ignored)), Form::WithRoomId).await?.pop())
    });
    let event = read.await?.ok_or_else(no_such_event)?;
    Ok(get_room_event::v3::Response::new(Raw::from_json(event)))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`.
pub(super) async fn get_event_by_timestamp(
    ctx: Ctx<Session>,
    request: get_event_by_timestamp::v1::Request,
) -> Result<get_event_by_timestamp::v1::Response, ApiError> {
    let (room_id, user_id) = (&*request.room_id, &*ctx.requester.user_id);
    let Access { room, until } = access::readable(&ctx, room_id).await?;
    let all = Bounds { after: 0, upto: until.unwrap_or(room.position) };
    let (ts, dir) = (request.ts, request.dir);
    let read = ctx.app.store.read("event_by_timestamp", |tx| async move {
        let view = &RoomView::load(&tx, room_id, user_id).await?;
        let wanted = Wanted { room_id, view, filter: &ruma::api::client::filter::RoomEventFilter::default() };
        let split = last_before(&tx, room_id, all, (ts, dir)).await?;
        let (bounds, direction) = match dir {
            api::Direction::Forward => (Bounds { after: split, ..all }, Direction::Forward),
            api::Direction::Backward => (Bounds { upto: split, ..all }, Direction::Backward),
        };
        let Walk { mut events, .. } = walk(&tx, wanted, bounds, direction, 1).await?;
        Ok::<_, Error>(events.pop())
    });
    let event =
        read.await?.ok_or_else(|| ApiError::not_found("There is no event on that side of the time"))?;
    Ok(get_event_by_timestamp::v1::Response::new(event.pdu.event_id.clone(), event.pdu.origin_server_ts))
}

/// The position of the last event of a room that was sent before a time, or, on the way back, not after it; 0 if there is
/// none. Times grow with the positions, give or take what the clocks of replicas differ by, so halving finds it.
async fn last_before(
    tx: &keystead_store::ReadTx,
    room_id: &RoomId,
    mut bounds: Bounds,
    (ts, dir): (MilliSecondsSinceUnixEpoch, api::Direction),
) -> Result<i64, Error> {
    let is_before = |event: &RoomEvent| match dir {
        api::Direction::Forward => event.pdu.origin_server_ts < ts,
        api::Direction::Backward => event.pdu.origin_server_ts <= ts,
    };
    // The event at `bounds.after` is before the time, those after `bounds.upto` are not.
    while bounds.after < bounds.upto {
        let middle = bounds.after + (bounds.upto - bounds.after + 1) / 2;
        let lower = Bounds { after: bounds.after, upto: middle };
        match rooms::newest(tx, room_id, lower).await? {
            Some(event) if is_before(&event) => bounds.after = middle,
            Some(event) => bounds.upto = event.position - 1,
            None => bounds.after = middle,
        }
    }
    Ok(bounds.after)
}

pub(super) fn raw<T>(events: Vec<Box<RawValue>>) -> Vec<Raw<T>> {
    events.into_iter().map(Raw::from_json).collect()
}

pub(super) fn no_such_event() -> ApiError {
    ApiError::not_found("There is no such event, or you may not see it")
}
