//! Walking along a room's timeline: the part that `/messages` and `/context` have in common.

use keystead_core::{
    filter::{self, Facts},
    room::RoomEvent,
    token::TimelineToken,
};
use keystead_store::{
    Error, ReadTx,
    rooms::{self, Bounds, Direction},
};
use ruma::{RoomId, UserId, api::client::filter::RoomEventFilter};

use crate::{app::App, http::error::ApiError, rooms::RoomView};

/// A client may ask for this many events at once.
pub(super) const MAX_EVENTS: usize = 1_000;
/// How many events one statement reads at least, where many may have to be passed over.
const PAGE: usize = 100;
/// How many statements one request makes at most; then the client gets what was found, and a token to go on with.
const MAX_PAGES: usize = 20;

/// What a walk found.
pub(super) struct Walk {
    /// The events that were wanted, in the order in which the walk met them.
    pub(super) events: Vec<RoomEvent>,
    /// Where the walk stopped.
    pub(super) reached: TimelineToken,
    /// Whether there was more to see within the bounds.
    pub(super) has_more: bool,
}

/// Which events a walk is to find.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) room_id: &'a RoomId,
    /// What the user may see.
    pub(super) view: &'a RoomView,
    /// What the client wants to see.
    pub(super) filter: &'a RoomEventFilter,
}

impl Wanted<'_> {
    fn takes(&self, event: &RoomEvent) -> bool {
        self.view.may_see(event.position) && passes(self.filter, event)
    }
}

/// Reads the timeline of a room within `bounds` until `limit` wanted events are found.
///
/// # Errors
/// The database's own.
pub(super) async fn walk(
    tx: &ReadTx,
    wanted: Wanted<'_>,
    mut bounds: Bounds,
    direction: Direction,
    limit: usize,
) -> Result<Walk, Error> {
    let mut events = Vec::new();
    let place = |bounds: &Bounds| match direction {
        Direction::Forward => TimelineToken(bounds.after),
        Direction::Backward => TimelineToken(bounds.upto),
    };
    let page = (limit + 1).max(PAGE);
    for _ in 0..MAX_PAGES {
        let page_limit = u64::try_from(page).unwrap_or(u64::MAX);
        let read = rooms::events_between(tx, wanted.room_id, bounds, direction, page_limit).await?;
        let is_last = read.len() < page;
        for event in read {
            if events.len() == limit {
                return Ok(Walk { events, reached: place(&bounds), has_more: true });
            }
            match direction {
                Direction::Forward => bounds.after = event.position,
                Direction::Backward => bounds.upto = event.position - 1,
            }
            if wanted.takes(&event) {
                events.push(event);
            }
        }
        if is_last {
            return Ok(Walk { events, reached: place(&bounds), has_more: false });
        }
    }
    Ok(Walk { events, reached: place(&bounds), has_more: true })
}

/// Whether the filter lets an event through.
pub(super) fn passes(filter: &RoomEventFilter, event: &RoomEvent) -> bool {
    let pdu = &event.pdu;
    let event_type = pdu.event_type.to_string();
    let facts = Facts { event_type: &event_type, sender: Some(&pdu.sender), content: &pdu.content };
    filter::matches_in_room(filter, &pdu.room_id, facts)
}

/// The senders of events, each once.
pub(super) fn senders<'a>(events: impl IntoIterator<Item = &'a RoomEvent>) -> Vec<&'a UserId> {
    let senders: std::collections::BTreeSet<&UserId> =
        events.into_iter().map(|event| &*event.pdu.sender).collect();
    senders.into_iter().collect()
}

/// Reads a place in a room's timeline that a client names.
///
/// # Errors
/// 400 `M_INVALID_PARAM` if this server has not given it out.
pub(super) fn place(
    app: &App,
    room_id: &RoomId,
    (name, token): (&str, &str),
) -> Result<TimelineToken, ApiError> {
    let shards = app.tail.shards();
    let shard = usize::try_from(shards.of_room(room_id)).unwrap_or(usize::MAX);
    TimelineToken::parse(token, shard, shards.room_shards().count())
        .map_err(|error| ApiError::invalid_param(format!("{name}: {error}")))
}
