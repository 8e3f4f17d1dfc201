//! The events that relate to an event, and the threads of a room.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#relationships-api>,
//! <https://spec.matrix.org/v1.19/client-server-api/#querying-threads-in-a-room>.

use std::sync::Arc;

use keystead_core::{
    filter,
    relations::{THREAD, relation_in, relation_of},
    room::RoomEvent,
    token::TimelineToken,
};
use keystead_store::{
    Error, ReadTx,
    rooms::{self, Bounds, Direction, Related, View},
};
use ruma::{
    EventId, RoomId, UInt, UserId,
    api::{
        self,
        client::{
            relations::{
                get_relating_events, get_relating_events_with_rel_type,
                get_relating_events_with_rel_type_and_event_type,
            },
            threads::get_threads,
        },
    },
};
use serde_json::value::RawValue;

use super::{
    access::{self, Access},
    messages::{no_such_event, raw},
    reader,
    timeline::place,
};
use crate::{
    api::guard,
    context::{Ctx, Session},
    http::error::ApiError,
    rooms::{Form, MembershipHistory, Reader, RoomView, client_events},
    sync::IgnoredUsers,
};

/// How many events an answer has if the client does not say, and at most.
const DEFAULT_EVENTS: usize = 50;
const MAX_EVENTS: usize = 500;
/// > It is recommended that homeservers traverse at least 3 levels of relationships.
const RECURSION: u32 = 3;
/// How many statements one request makes at most; then the client gets what was found, and a token to go on with.
const MAX_PAGES: usize = 20;
/// How many pages of older events one request looks through for relationships that were not noted: it takes some seconds.
const INDEX_PAGES: usize = 100;

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`.
pub(super) async fn get_relating_events(
    ctx: Ctx<Session>,
    request: get_relating_events::v1::Request,
) -> Result<get_relating_events::v1::Response, ApiError> {
    let asked = Asked {
        room_id: &request.room_id,
        parent: &request.event_id,
        rel_type: None,
        event_type: None,
        from: request.from.as_deref(),
        to: request.to.as_deref(),
        dir: request.dir,
        limit: request.limit,
        recurse: request.recurse,
    };
    let answer = asked.answer(&ctx).await?;
    let mut response = get_relating_events::v1::Response::new(raw(answer.chunk));
    response.next_batch = answer.next_batch;
    response.prev_batch = request.from;
    response.recursion_depth = answer.recursion_depth;
    Ok(response)
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}`.
pub(super) async fn get_relating_events_with_rel_type(
    ctx: Ctx<Session>,
    request: get_relating_events_with_rel_type::v1::Request,
) -> Result<get_relating_events_with_rel_type::v1::Response, ApiError> {
    let rel_type = request.rel_type.to_string();
    let asked = Asked {
        room_id: &request.room_id,
        parent: &request.event_id,
        rel_type: Some(&rel_type),
        event_type: None,
        from: request.from.as_deref(),
        to: request.to.as_deref(),
        dir: request.dir,
        limit: request.limit,
        recurse: request.recurse,
    };
    let answer = asked.answer(&ctx).await?;
    let mut response = get_relating_events_with_rel_type::v1::Response::new(raw(answer.chunk));
    response.next_batch = answer.next_batch;
    response.prev_batch = request.from;
    response.recursion_depth = answer.recursion_depth;
    Ok(response)
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}`.
pub(super) async fn get_relating_events_with_rel_type_and_event_type(
    ctx: Ctx<Session>,
    request: get_relating_events_with_rel_type_and_event_type::v1::Request,
) -> Result<get_relating_events_with_rel_type_and_event_type::v1::Response, ApiError> {
    let (rel_type, event_type) = (request.rel_type.to_string(), request.event_type.to_string());
    let asked = Asked {
        room_id: &request.room_id,
        parent: &request.event_id,
        rel_type: Some(&rel_type),
        event_type: Some(&event_type),
        from: request.from.as_deref(),
        to: request.to.as_deref(),
        dir: request.dir,
        limit: request.limit,
        recurse: request.recurse,
    };
    let answer = asked.answer(&ctx).await?;
    let mut response = get_relating_events_with_rel_type_and_event_type::v1::Response::new(raw(answer.chunk));
    response.next_batch = answer.next_batch;
    response.prev_batch = request.from;
    response.recursion_depth = answer.recursion_depth;
    Ok(response)
}

/// What the three endpoints for relations have in common.
struct Asked<'a> {
    room_id: &'a RoomId,
    parent: &'a EventId,
    rel_type: Option<&'a str>,
    event_type: Option<&'a str>,
    from: Option<&'a str>,
    to: Option<&'a str>,
    dir: api::Direction,
    limit: Option<UInt>,
    recurse: bool,
}

struct Answer {
    chunk: Vec<Box<RawValue>>,
    next_batch: Option<String>,
    recursion_depth: Option<UInt>,
}

impl Asked<'_> {
    async fn answer(&self, ctx: &Ctx<Session>) -> Result<Answer, ApiError> {
        let Self { room_id, parent, rel_type, event_type, .. } = *self;
        // > 404: The parent event was not found or the user does not have permission to read this event.
        let Access { room, until } = access::readable(ctx, room_id).await.map_err(|error| {
            if error.status() == http::StatusCode::FORBIDDEN { no_such_event() } else { error }
        })?;
        let (direction, bounds) = self.bounds(ctx, until.unwrap_or(room.position))?;
        let limit = filter::limit(self.limit, DEFAULT_EVENTS, MAX_EVENTS);
        let depth = if self.recurse { RECURSION } else { 1 };
        let (reader, ignored) = (reader(ctx), &*prepare(ctx, room_id).await?);
        let related = Related { room_id, parent, rel_type, event_type, depth };
        let read = ctx.app.store.read("relations", |tx| async move {
            let view = &RoomView::load(&tx, room_id, reader.user_id).await?;
            let parent = rooms::event(&tx, room_id, parent).await?;
            if parent.is_none_or(|parent| !view.may_see(parent.position)) {
                return Ok(None);
            }
            let (events, next) = walk(&tx, view, related, (bounds, direction), limit).await?;
            let reader = reader.knowing(view.memberships());
            let chunk = client_events(&tx, &events, (reader, Some(ignored)), Form::WithRoomId).await?;
            Ok::<_, Error>(Some((chunk, next)))
        });
        let (chunk, next) = read.await?.ok_or_else(no_such_event)?;
        Ok(Answer {
            chunk,
            next_batch: next.map(|next| next.to_string()),
            recursion_depth: self.recurse.then(|| RECURSION.into()),
        })
    }

    fn bounds(&self, ctx: &Ctx<Session>, newest: i64) -> Result<(Direction, Bounds), ApiError> {
        let named = |name, token: Option<&str>| -> Result<Option<i64>, ApiError> {
            Ok(token
                .map(|token| place(&ctx.app, self.room_id, (name, token)))
                .transpose()?
                .map(|token| token.0))
        };
        let (from, to) = (named("from", self.from)?, named("to", self.to)?);
        let upto = |place: Option<i64>| place.map_or(newest, |place| place.min(newest));
        Ok(match self.dir {
            api::Direction::Backward => {
                (Direction::Backward, Bounds { after: to.unwrap_or(0), upto: upto(from) })
            }
            api::Direction::Forward => {
                (Direction::Forward, Bounds { after: from.unwrap_or(0), upto: upto(to) })
            }
        })
    }
}

/// Reads what relates to an event until `limit` events are found that the user may see. Returns them, and where to go on if there is more.
async fn walk(
    tx: &ReadTx,
    view: &RoomView,
    related: Related<'_>,
    (mut bounds, direction): (Bounds, Direction),
    limit: usize,
) -> Result<(Vec<RoomEvent>, Option<TimelineToken>), Error> {
    let mut events = Vec::new();
    let place = |bounds: &Bounds| match direction {
        Direction::Forward => TimelineToken(bounds.after),
        Direction::Backward => TimelineToken(bounds.upto),
    };
    let page = u64::try_from(limit + 1).unwrap_or(u64::MAX);
    for _ in 0..MAX_PAGES {
        let rows = rooms::related_events(tx, related, bounds, direction, page).await?;
        let is_last = rows.len() <= limit;
        for (position, event) in rows {
            if events.len() == limit {
                return Ok((events, Some(place(&bounds))));
            }
            match direction {
                Direction::Forward => bounds.after = position,
                Direction::Backward => bounds.upto = position - 1,
            }
            events.extend(event.filter(|event| view.may_see(event.position)));
        }
        if is_last {
            return Ok((events, None));
        }
    }
    Ok((events, Some(place(&bounds))))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/threads`.
pub(super) async fn get_threads(
    ctx: Ctx<Session>,
    request: get_threads::v1::Request,
) -> Result<get_threads::v1::Response, ApiError> {
    let (room_id, reader) = (&*request.room_id, reader(&ctx));
    let Access { room, until } = access::readable(&ctx, room_id).await?;
    let until = until.unwrap_or(room.position);
    let from = request.from.as_deref().map(|from| place(&ctx.app, room_id, ("from", from))).transpose()?;
    let ignored = &*prepare(&ctx, room_id).await?;
    let threads = Threads {
        room_id,
        reader,
        ignored: &ignored.keys().map(AsRef::as_ref).collect::<Vec<_>>(),
        participated: request.include == get_threads::v1::IncludeThreads::Participated,
        limit: filter::limit(request.limit, DEFAULT_EVENTS, MAX_EVENTS),
    };
    let (threads, upto) = (&threads, from.map_or(until, |from| from.0));
    let read = ctx.app.store.read("threads", |tx| async move {
        let (roots, next) = threads.walk(&tx, upto).await?;
        let memberships = MembershipHistory::load(&tx, room_id, reader.user_id).await?;
        let reader = reader.knowing(&memberships);
        let chunk = client_events(&tx, &roots, (reader, Some(ignored)), Form::WithRoomId).await?;
        Ok::<_, Error>((chunk, next))
    });
    let (chunk, next) = read.await?;
    let mut response = get_threads::v1::Response::new(raw(chunk));
    response.next_batch = next.map(|next| next.to_string());
    Ok(response)
}

/// Which threads are wanted.
struct Threads<'a> {
    room_id: &'a RoomId,
    reader: Reader<'a>,
    ignored: &'a [&'a UserId],
    participated: bool,
    limit: usize,
}

impl Threads<'_> {
    /// The roots of the threads whose newest events do not lie after `upto`, newest first, and where to go on if there are more.
    async fn walk(
        &self,
        tx: &ReadTx,
        mut upto: i64,
    ) -> Result<(Vec<RoomEvent>, Option<TimelineToken>), Error> {
        let view = RoomView::load(tx, self.room_id, self.reader.user_id).await?;
        let visible = &view.visible();
        let seen = View { user_id: self.reader.user_id, visible, ignored: self.ignored };
        let page = u64::try_from(self.limit + 1).unwrap_or(u64::MAX);
        let mut roots = Vec::new();
        for _ in 0..MAX_PAGES {
            let threads = rooms::newest_threads(tx, self.room_id, seen, upto, page).await?;
            let is_last = threads.len() <= self.limit;
            let ids: Vec<&EventId> = threads.iter().map(|thread| &*thread.root).collect();
            let mut events = rooms::events(tx, &ids).await?;
            for thread in threads {
                if roots.len() == self.limit {
                    return Ok((roots, Some(TimelineToken(upto))));
                }
                upto = thread.latest - 1;
                // The id is the sender's word: the event may be of another room, or not there.
                let root = events.remove(&thread.root).filter(|root| root.pdu.room_id == self.room_id);
                let Some(root) = root.filter(|root| view.may_see(root.position)) else { continue };
                if !self.participated || thread.has_own || root.pdu.sender == self.reader.user_id {
                    roots.push(root);
                }
            }
            if is_last {
                return Ok((roots, None));
            }
        }
        Ok((roots, Some(TimelineToken(upto))))
    }
}

/// Checks the content of a new event: a thread does not begin with an event that itself relates to another.
///
/// # Errors
/// 400 `M_UNKNOWN` if it would; 403 for those who are not in the room.
pub(super) async fn check_thread(
    ctx: &Ctx<Session>,
    room_id: &RoomId,
    content: &RawValue,
) -> Result<(), ApiError> {
    let Some(relation) = relation_in(content).filter(|relation| relation.rel_type == THREAD) else {
        return Ok(());
    };
    guard::joined_room(&ctx.app, &ctx.requester.user_id, room_id).await?;
    let root = &*relation.parent;
    let root =
        ctx.app.store.read_one("thread_root", |tx| async move { rooms::event(&tx, room_id, root).await });
    match root.await?.and_then(|root| relation_of(&root.pdu)) {
        // > Servers SHOULD reject client requests which attempt to start a thread off an event with an `m.relates_to` property.
        Some(_) => {
            Err(ApiError::unknown_request("A thread cannot begin with an event that relates to another"))
        }
        None => Ok(()),
    }
}

/// What is needed to show events of a room with what their children say: the room's relationships, brought up to date, and whom the user
/// ignores.
///
/// In a room of some 50,000 events from before relationships were noted, the first requests see only a part of them.
pub(super) async fn prepare(ctx: &Ctx<Session>, room_id: &RoomId) -> Result<Arc<IgnoredUsers>, ApiError> {
    note_older(ctx, room_id).await?;
    Ok(ctx.app.readers.ignored(&ctx.app.lookups, &ctx.requester.user_id).await?)
}

/// Brings the relationships of a room up to date that were not noted when their events were appended.
pub(super) async fn note_older(ctx: &Ctx<Session>, room_id: &RoomId) -> Result<(), ApiError> {
    rooms::index_relations(&ctx.app.store, room_id, INDEX_PAGES).await?;
    Ok(())
}
