//! The newest events of a room, and which of them a timeline shows: what the client does not want takes none of its places.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use keystead_core::{
    filter::{self, Facts},
    room::RoomEvent,
};
use keystead_store::rooms::{self, Bounds};
use ruma::{OwnedRoomId, RoomId, UInt};

use super::Sync;
use crate::{http::error::ApiError, rooms::RoomView};

/// How many events of a timeline an answer has if the client does not say, and at most.
const TIMELINE_LIMIT: usize = 10;
const TIMELINE_MOST: usize = 1_000;
/// How many events of a room are looked at first, at least, if the client does not want all: as many as are in memory.
const FIRST_LOOK: usize = 51;
/// How many events of how many rooms one statement reads that looks further back.
const PAGE: usize = 100;
const ROOMS_A_PAGE: usize = 50;
/// How many such statements one sync makes at most; then the client gets what was found, and a token to go on with.
pub(super) const MAX_PAGES: usize = 20;

/// The newest events of a room, as far back as they were looked at.
#[derive(Default)]
pub(super) struct Newest {
    /// Oldest first.
    pub(super) events: Vec<Arc<RoomEvent>>,
    /// Whether that is everything that happened since the token.
    pub(super) are_all: bool,
    /// Whether there may be older ones that the client wants.
    has_more: bool,
    /// What the user may see of the room, if that had to be looked up.
    pub(super) view: Option<RoomView>,
}

/// What is made of the newest events.
pub(super) struct Chosen {
    /// The events that were looked at, shown or not.
    pub(super) looked_at: Vec<Arc<RoomEvent>>,
    /// Those that are shown.
    pub(super) timeline: Vec<Arc<RoomEvent>>,
    /// Whether the limit has left some out.
    pub(super) limited: bool,
}

/// A room where older events than those in `newest` may have to be looked at, down to those after a position.
pub(super) struct Look<'a> {
    pub(super) room_id: &'a RoomId,
    pub(super) after: i64,
    pub(super) newest: &'a mut Newest,
}

impl Newest {
    /// All that happened since the token, oldest first.
    pub(super) fn all(events: Vec<Arc<RoomEvent>>) -> Self {
        Self { events, are_all: true, ..Self::default() }
    }

    /// What was read of a room, newest first, when `asked` events were asked for.
    pub(super) fn read(newest: Vec<Arc<RoomEvent>>, asked: usize) -> Self {
        let are_all = newest.len() < asked;
        Self { events: newest.into_iter().rev().collect(), are_all, has_more: !are_all, view: None }
    }

    /// Adds a page of older events, newest first. Kept are those that matter later: wanted ones, state, and the oldest, which
    /// says how far the look has come.
    fn extend(&mut self, page: Vec<RoomEvent>, wants: impl Fn(&RoomEvent) -> bool) {
        self.has_more = page.len() >= PAGE;
        let oldest = page.last().map(|event| event.position);
        let matters = |event: &RoomEvent| {
            event.pdu.state_key.is_some() || Some(event.position) == oldest || wants(event)
        };
        let older = page.into_iter().rev().filter(matters).map(Arc::new);
        self.events.splice(..0, older);
    }
}

impl Sync<'_> {
    /// How many events a timeline may have; none, for who asks for none: then what has changed is all in the state.
    pub(super) fn timeline_limit(&self) -> usize {
        let asked = self.filter().room.timeline.limit;
        if asked == Some(UInt::MIN) { 0 } else { filter::limit(asked, TIMELINE_LIMIT, TIMELINE_MOST) }
    }

    /// How many of a room's newest events to read at first: one more than may be shown, to know whether there are more.
    pub(super) fn first_look(&self) -> usize {
        let enough = self.timeline_limit() + 1;
        if self.wants_all() { enough } else { enough.max(FIRST_LOOK) }
    }

    /// Whether the client wants all events that the user may see.
    pub(super) fn wants_all(&self) -> bool {
        self.ignored.is_empty() && filter::includes_everything(&self.filter().room.timeline)
    }

    fn wants_in_timeline(&self, event: &RoomEvent) -> bool {
        if self.is_ignored(event) {
            return false;
        }
        let event_type = event.pdu.event_type.to_string();
        let facts =
            Facts { event_type: &event_type, sender: Some(&event.pdu.sender), content: &event.pdu.content };
        filter::matches_in_room(&self.filter().room.timeline, &event.pdu.room_id, facts)
    }

    /// Reads on where too few of the newest events are wanted, in many rooms at once.
    pub(super) async fn look_further(&self, looks: Vec<Look<'_>>) -> Result<(), ApiError> {
        let mut short = VecDeque::new();
        for mut look in looks {
            if self.is_short(&mut look).await? {
                short.push_back(look);
            }
        }
        while !short.is_empty() && self.may_look_further() {
            let looks: Vec<_> = short.drain(..short.len().min(ROOMS_A_PAGE)).collect();
            let older: Vec<_> = looks.iter().map(Look::older).collect();
            let (older, page) = (&older, u64::try_from(PAGE).unwrap_or(u64::MAX));
            let mut read = self
                .app
                .store
                .read("sync_further_back", |tx| async move { rooms::timelines(&tx, older, page).await })
                .await?;
            for mut look in looks {
                let page = read.remove(look.room_id).unwrap_or_default();
                look.newest.extend(page, |event| self.wants_in_timeline(event));
                if self.is_short(&mut look).await? {
                    short.push_back(look);
                }
            }
        }
        Ok(())
    }

    fn may_look_further(&self) -> bool {
        let took =
            self.pages_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        took.is_ok()
    }

    /// Whether older events have to be looked at to know what to show.
    async fn is_short(&self, look: &mut Look<'_>) -> Result<bool, ApiError> {
        let filter = &self.filter().room.timeline;
        if filter::excludes_everything(filter) || !filter::matches_room(filter, look.room_id) {
            look.newest.has_more = false;
        }
        if !look.newest.has_more || self.timeline_limit() == 0 {
            return Ok(false);
        }
        Ok(self.wanted(look.room_id, look.newest).await?.len() <= self.timeline_limit())
    }

    /// Of the events those that the client wants and the user may see.
    async fn wanted(&self, room_id: &RoomId, newest: &mut Newest) -> Result<Vec<Arc<RoomEvent>>, ApiError> {
        let wanted = newest.events.iter().filter(|event| self.wants_in_timeline(event));
        let mut wanted = wanted.cloned().collect();
        self.hide_what_came_before_joining(room_id, &mut wanted, &mut newest.view).await?;
        Ok(wanted)
    }

    /// Chooses what a timeline shows.
    pub(super) async fn choose(&self, room_id: &RoomId, newest: &mut Newest) -> Result<Chosen, ApiError> {
        let mut looked_at = newest.events.clone();
        if self.wants_all() {
            let limited = self.cut(&mut looked_at);
            let mut timeline = looked_at.clone();
            self.hide_what_came_before_joining(room_id, &mut timeline, &mut newest.view).await?;
            return Ok(Chosen { looked_at, timeline, limited });
        }
        let mut timeline = self.wanted(room_id, newest).await?;
        let is_cut = self.cut(&mut timeline);
        if is_cut {
            let start = timeline.first().map_or(i64::MAX, |event| event.position);
            looked_at.retain(|event| event.position >= start);
        }
        Ok(Chosen { looked_at, timeline, limited: is_cut || newest.has_more })
    }

    /// Keeps the newest events; returns whether some had to go.
    fn cut(&self, timeline: &mut Vec<Arc<RoomEvent>>) -> bool {
        let surplus = timeline.len().saturating_sub(self.timeline_limit());
        timeline.drain(..surplus);
        surplus > 0
    }

    /// Takes out what the user may not see: only before the newest change of the own membership can there be such events.
    async fn hide_what_came_before_joining(
        &self,
        room_id: &RoomId,
        timeline: &mut Vec<Arc<RoomEvent>>,
        view: &mut Option<RoomView>,
    ) -> Result<(), ApiError> {
        if view.is_none() {
            let joined_at = self.rooms.get(room_id).map_or(i64::MAX, |membership| membership.position);
            if timeline.first().is_none_or(|oldest| oldest.position >= joined_at) {
                return Ok(());
            }
            let user_id = self.user_id();
            let load = self
                .app
                .store
                .read("sync_visibility", |tx| async move { RoomView::load(&tx, room_id, user_id).await });
            *view = Some(load.await?);
        }
        if let Some(view) = view {
            timeline.retain(|event| view.may_see(event.position));
        }
        Ok(())
    }
}

impl Look<'_> {
    /// The part of the room's timeline that has not been looked at.
    fn older(&self) -> (OwnedRoomId, Bounds) {
        let oldest = self.newest.events.first().map_or(self.after, |event| event.position - 1);
        (self.room_id.to_owned(), Bounds { after: self.after, upto: oldest })
    }
}
