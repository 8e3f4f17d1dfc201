//! Spaces: the tree of rooms below one, and a few words about a room.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#spaces>.

mod summary;
mod token;
mod walk;

use std::sync::Arc;

use keystead_core::filter;
use keystead_store::{Error, room_summaries};
use ruma::{
    OwnedRoomId,
    api::client::{
        room::get_summary,
        space::{SpaceHierarchyRoomsChunk, get_hierarchy},
    },
    events::room::member::MembershipState,
};

use self::{
    summary::{is_accessible, summary},
    token::Token,
    walk::{Found, walk},
};
use super::room_aliases;
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    streams::RoomsOfUser,
};

/// How many rooms a page has if the client does not say, and at most.
const DEFAULT_LIMIT: usize = 50;
const MOST: usize = 200;
/// How deep a walk goes if the client does not say, and at most.
const MAX_DEPTH: u32 = 50;

/// `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`.
///
/// A page goes on from how many rooms were shown before: no replica has to remember anything. If the tree changes meanwhile, a room
/// can be missed or shown twice.
pub(super) async fn get_hierarchy(
    ctx: Ctx<Session>,
    request: get_hierarchy::v1::Request,
) -> Result<get_hierarchy::v1::Response, ApiError> {
    let asked =
        request.max_depth.map_or(MAX_DEPTH, |depth| u32::try_from(u64::from(depth)).unwrap_or(MAX_DEPTH));
    let first = Token { shown: 0, max_depth: asked.min(MAX_DEPTH), suggested_only: request.suggested_only };
    let place = match request.from.as_deref() {
        None => first,
        Some(from) => goes_on(first, from)?,
    };
    let limit = filter::limit(request.limit, DEFAULT_LIMIT, MOST);
    let (root, rooms) = (&*request.room_id, &*ctx.app.tail.rooms_of(&ctx.requester.user_id).await?);
    let found = ctx
        .app
        .store
        .read("hierarchy", |tx| async move { walk(&tx, root, rooms, place, limit).await })
        .await?;
    // > 403: The user cannot view or peek on the room. […] or the room is not known.
    let Some(Found { rooms, has_more }) = found else {
        return Err(ApiError::forbidden("There is no such space, or you may not see it"));
    };
    let mut response = get_hierarchy::v1::Response::new();
    let shown = place.shown.saturating_add(u32::try_from(rooms.len()).unwrap_or(u32::MAX));
    response.next_batch = has_more.then(|| Token { shown, ..place }.to_string());
    response.rooms = rooms
        .into_iter()
        .map(|room| Ok(SpaceHierarchyRoomsChunk::new(summary(&room.room_id, &room.facts), room.children()?)))
        .collect::<Result<_, ApiError>>()?;
    Ok(response)
}

/// > If specified, `max_depth` and `suggested_only` cannot be changed from the first request.
fn goes_on(asked: Token, from: &str) -> Result<Token, ApiError> {
    let place: Token =
        from.parse().map_err(|_| ApiError::invalid_param("from is not a token of this server"))?;
    if (Token { shown: 0, ..place }) != asked {
        return Err(ApiError::invalid_param("max_depth and suggested_only stay what they were at first"));
    }
    Ok(place)
}

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`. `via` is for rooms of other servers, of which there are none.
pub(super) async fn get_summary(
    ctx: Ctx<Option<Session>>,
    request: get_summary::v1::Request,
) -> Result<get_summary::v1::Response, ApiError> {
    let room_id = &match OwnedRoomId::try_from(request.room_id_or_alias) {
        Ok(room_id) => room_id,
        Err(alias) => room_aliases::resolve(&ctx.app, &alias).await?.room_id,
    };
    let rooms: Option<Arc<RoomsOfUser>> = match &ctx.requester {
        Some(session) => Some(ctx.app.tail.rooms_of(&session.user_id).await?),
        None => None,
    };
    let read = ctx.app.store.read("room_summary", |tx| async move {
        Ok::<_, Error>(room_summaries::read(&tx, &[room_id]).await?.remove(room_id))
    });
    let facts = read.await?.filter(|facts| is_accessible(room_id, facts, rooms.as_deref()));
    let facts = facts.ok_or_else(|| ApiError::not_found("There is no such room, or you may not see it"))?;
    let mut response = get_summary::v1::Response::new(summary(room_id, &facts));
    // > This field will not be present when called unauthenticated, but is required when called authenticated.
    response.membership = rooms.map(|rooms| {
        rooms.get(room_id).map_or(MembershipState::Leave, |membership| membership.membership.clone())
    });
    Ok(response)
}
