//! The rooms that the user is joined to, invited to or knocks at.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use keystead_core::{
    client_format,
    event_fields::EventFields,
    filter::{self, Facts},
    room::{RoomEvent, RoomState, membership_of},
    token::TimelineToken,
};
use keystead_store::rooms::{self, Bounds};
use ruma::{
    EventId, OwnedRoomId, OwnedUserId, RoomId, UInt,
    api::client::{
        filter::EventFormat,
        sync::sync_events::v3::{
            Ephemeral, InviteState, InvitedRoom, JoinedRoom, KnockState, KnockedRoom, RoomSummary, Timeline,
        },
    },
    events::{TimelineEventType, room::member::MembershipState},
    serde::Raw,
};
use serde_json::value::RawValue;

use super::{
    Sync,
    changes::{Changes, RoomChanges},
    ephemeral, missing_state,
    newest::{Chosen, Look, Newest},
    state::{Span, Wanted},
};
use crate::{
    context::Session,
    http::error::ApiError,
    rooms::{
        Form, MembershipHistory, Reader, RoomView, client_event, client_events, client_state, may_be_erased,
    },
    streams::RoomMembership,
};

/// How many members stand for a room that has no name.
const HEROES: usize = 5;

/// The state that somebody who is invited or knocks is shown.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#stripped-state>
const STRIPPED: [&str; 7] = [
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

/// A joined room with something to tell.
struct Candidate<'a> {
    room_id: &'a OwnedRoomId,
    /// The position after which the timeline begins; `None` to begin anywhere.
    after: Option<i64>,
    /// Whether the room is new to the client.
    is_new: bool,
    changes: RoomChanges,
}

impl Sync<'_> {
    pub(super) async fn joined_rooms(
        &self,
        changes: &mut Changes,
        mut typing: HashMap<OwnedRoomId, Vec<OwnedUserId>>,
    ) -> Result<BTreeMap<OwnedRoomId, JoinedRoom>, ApiError> {
        let candidates = self.candidates(changes, &typing).await?;
        let mut stored = self.stored_timelines(&candidates).await?;
        let states = self.states_of(&candidates).await?;
        let unknown: Vec<_> = candidates
            .iter()
            .filter(|candidate| candidate.is_new)
            .filter_map(|candidate| states.get(candidate.room_id))
            .collect();
        self.count_ahead(&unknown).await?;
        self.look_for_children(stored.values()).await?;
        let mut joined = BTreeMap::new();
        for mut candidate in candidates {
            let in_memory = candidate.changes.events.take().filter(|_| !candidate.is_new);
            let new = match in_memory {
                Some(events) => Newest::all(events),
                None => stored.remove(candidate.room_id).unwrap_or_else(|| Newest::all(Vec::new())),
            };
            let room_typing = typing.remove(candidate.room_id);
            let state = states.get(candidate.room_id).ok_or_else(|| missing_state(candidate.room_id))?;
            let room = self.joined_room(&candidate, state, new, (room_typing, changes)).await?;
            if candidate.is_new || self.request.full_state || !room.is_empty() {
                joined.insert(candidate.room_id.clone(), room);
            }
        }
        Ok(joined)
    }

    /// The joined rooms that have something to tell, or that the client does not know yet.
    async fn candidates<'s>(
        &'s self,
        changes: &mut Changes,
        typing: &HashMap<OwnedRoomId, Vec<OwnedUserId>>,
    ) -> Result<Vec<Candidate<'s>>, ApiError> {
        let mut candidates = Vec::new();
        for (room_id, membership) in self.rooms_to_look_at(changes, typing) {
            if membership.membership != MembershipState::Join {
                continue;
            }
            let since = self.since_in(room_id);
            let is_new = match since {
                None => true,
                // The member event is news: either the user joined, or was in the room already and changed a profile.
                Some(since) if membership.position > since => !self.was_joined(room_id, since).await?,
                Some(_) => false,
            };
            let has_data = changes.account_data.iter().any(|data| data.room_id.as_ref() == Some(room_id));
            let found = changes.rooms.remove(room_id);
            if is_new
                || found.is_some()
                || has_data
                || typing.contains_key(room_id)
                || self.request.full_state
            {
                let after = since.filter(|_| !is_new);
                let nothing = RoomChanges { events: Some(Vec::new()), receipts: Vec::new() };
                candidates.push(Candidate { room_id, after, is_new, changes: found.unwrap_or(nothing) });
            }
        }
        Ok(candidates)
    }

    /// The rooms that may have something to tell; all of them only if the client wants to know of all.
    fn rooms_to_look_at<'s>(
        &'s self,
        changes: &Changes,
        typing: &HashMap<OwnedRoomId, Vec<OwnedUserId>>,
    ) -> HashMap<&'s OwnedRoomId, &'s RoomMembership> {
        if self.request.since.is_none() || self.request.full_state {
            return self.wanted_rooms().collect();
        }
        let with_data = changes.account_data.iter().filter_map(|data| data.room_id.as_ref());
        let with_news = changes.rooms.keys().chain(typing.keys()).chain(with_data);
        with_news
            .filter(|room_id| filter::includes_room(&self.filter().room, room_id))
            .filter_map(|room_id| self.rooms.get_key_value(room_id))
            .chain(self.moved())
            .collect()
    }

    async fn was_joined(&self, room_id: &RoomId, position: i64) -> Result<bool, ApiError> {
        let key = ("m.room.member", self.user_id().as_str());
        let before = self
            .app
            .store
            .read("sync_membership_before", |tx| async move {
                rooms::state_event_at(&tx, room_id, position, key).await
            })
            .await?;
        Ok(before.is_some_and(|event| membership_of(&event.pdu) == MembershipState::Join))
    }

    /// The newest events of the rooms whose news is not in memory.
    async fn stored_timelines(
        &self,
        candidates: &[Candidate<'_>],
    ) -> Result<HashMap<OwnedRoomId, Newest>, ApiError> {
        let wanted: Vec<_> = candidates
            .iter()
            .filter(|candidate| candidate.is_new || candidate.changes.events.is_none())
            .map(|candidate| {
                let bounds =
                    Bounds { after: candidate.after.unwrap_or(0), upto: self.upto_in(candidate.room_id) };
                (candidate.room_id.clone(), bounds)
            })
            .collect();
        let asked = self.first_look();
        let read = self.app.tail.timelines(wanted, asked).await?;
        let mut stored: HashMap<_, _> =
            read.into_iter().map(|(room_id, newest)| (room_id, Newest::read(newest, asked))).collect();
        if !self.wants_all() {
            let after: HashMap<_, _> =
                candidates.iter().map(|candidate| (candidate.room_id, candidate.after)).collect();
            let mut looks = Vec::with_capacity(stored.len());
            for (room_id, newest) in &mut stored {
                let after = after.get(room_id).copied().flatten().unwrap_or(0);
                looks.push(Look { room_id, after, newest });
            }
            self.look_further(looks).await?;
        }
        Ok(stored)
    }

    /// Asks, at once for all rooms, which of the older events have children, as far as that is not known yet.
    async fn look_for_children<'e>(
        &self,
        timelines: impl Iterator<Item = &'e Newest>,
    ) -> Result<(), ApiError> {
        let events = timelines.flat_map(|newest| &newest.events);
        let Some(question) = self.app.parents.question(events) else { return Ok(()) };
        let events = &question.events;
        let read = self
            .app
            .store
            .read_one("sync_children", |tx| async move { rooms::possible_parents(&tx, events).await });
        self.app.parents.answer(&question, read.await?);
        Ok(())
    }

    async fn states_of(
        &self,
        candidates: &[Candidate<'_>],
    ) -> Result<HashMap<OwnedRoomId, RoomState>, ApiError> {
        let room_ids: Vec<&RoomId> = candidates.iter().map(|candidate| candidate.room_id.as_ref()).collect();
        let states = self.app.tail.rooms(&room_ids).await?;
        Ok(states.into_iter().map(|state| (state.room_id.clone(), state)).collect())
    }

    async fn joined_room(
        &self,
        candidate: &Candidate<'_>,
        state: &RoomState,
        mut new: Newest,
        (typing, changes): (Option<Vec<OwnedUserId>>, &Changes),
    ) -> Result<JoinedRoom, ApiError> {
        let room_id = candidate.room_id;
        let end = self.upto_in(room_id);
        let Chosen { mut looked_at, mut timeline, mut limited } = self.choose(room_id, &mut new).await?;
        let memberships = &self.memberships_in(room_id, new.view.take());
        limited |= self.drop_outdated(&mut looked_at, &mut timeline);
        // What the client has of a room that it comes to, or comes back to, does not reach up to the timeline.
        limited |= candidate.is_new && self.request.since.is_some() && !begins_with_the_room(&timeline);
        let span = Span::new(&looked_at, &timeline, end);

        let whole = candidate.is_new || self.request.full_state;
        let wanted = match candidate.after {
            Some(since) if !whole => Wanted::Since(since),
            _ => Wanted::Whole,
        };
        let mut room = JoinedRoom::new();
        let has_news = whole || !new.events.is_empty();
        if has_news {
            let members_changed = limited
                || !new.are_all
                || new.events.iter().any(|event| event.pdu.event_type == TimelineEventType::RoomMember);
            if whole || members_changed {
                room.summary = self.summary(state);
            }
            let all_new = new.are_all.then_some(&*new.events);
            let wanted = (wanted, all_new);
            let heroes = &room.summary.heroes;
            room.state = self.state_section(state, wanted, &span, &timeline, heroes, memberships).await?;
            room.timeline = self.timeline(&timeline, limited, &span, memberships).await?;
        }
        room.account_data.events = self.room_account_data(room_id, changes)?;
        room.ephemeral = self.ephemeral(candidate, typing)?;
        if has_news || !candidate.changes.receipts.is_empty() {
            let counted = candidate.after.filter(|_| new.are_all);
            let unread = self.unread(state, &new.events, counted).await?;
            room.unread_notifications = unread.room;
            room.unread_thread_notifications = unread.threads;
        }
        Ok(room)
    }

    /// What the user was to the room: all of it where it had to be looked up, or only what it is now.
    fn memberships_in(&self, room_id: &RoomId, view: Option<RoomView>) -> MembershipHistory {
        let newest = |now: &RoomMembership| MembershipHistory::newest(now.position, now.membership.clone());
        view.map(RoomView::into_memberships)
            .or_else(|| self.rooms.get(room_id).map(newest))
            .unwrap_or_default()
    }

    /// The timeline section. Paging back goes on before the first event that was looked at, shown or not.
    pub(super) async fn timeline(
        &self,
        events: &[Arc<RoomEvent>],
        limited: bool,
        span: &Span,
        memberships: &MembershipHistory,
    ) -> Result<Timeline, ApiError> {
        let mut timeline = Timeline::new();
        timeline.limited = limited;
        timeline.prev_batch = Some(TimelineToken(span.looked_from - 1).to_string());
        timeline.events = self.write_timeline(events, memberships).await?;
        Ok(timeline)
    }

    /// State in the form that clients read, with the fields that the filter wants; what it replaced is left out.
    pub(super) async fn write_state<T>(
        &self,
        events: &[Arc<RoomEvent>],
        memberships: &MembershipHistory,
    ) -> Result<Vec<Raw<T>>, ApiError> {
        let reader = self.reader(memberships);
        let written = if events.iter().all(|event| event.pdu.redacted_by.is_none()) {
            write_plain(events, reader)?
        } else {
            self.app
                .store
                .read("sync_state", |tx| async move { client_state(&tx, events, reader, Form::Sync).await })
                .await?
        };
        self.pick_fields(self.in_format(events, written).await?)
    }

    /// The events of a timeline in the form that clients read, with the fields that the filter wants.
    async fn write_timeline<T>(
        &self,
        events: &[Arc<RoomEvent>],
        memberships: &MembershipHistory,
    ) -> Result<Vec<Raw<T>>, ApiError> {
        let reader = self.reader(memberships);
        let is_plain = |event: &Arc<RoomEvent>| {
            event.pdu.state_key.is_none()
                && event.pdu.redacted_by.is_none()
                && !may_be_erased(event, Some(memberships))
        };
        let may_be_parents = self.app.parents.may_be_among(events);
        let written = if !may_be_parents && events.iter().all(is_plain) {
            write_plain(events, reader)?
        } else {
            // What a state event replaced, what emptied a redacted one and what others say about it has to be looked up.
            let reader = (reader, may_be_parents.then_some(&*self.ignored));
            self.app
                .store
                .read("sync_events", |tx| async move { client_events(&tx, events, reader, Form::Sync).await })
                .await?
        };
        self.pick_fields(self.in_format(events, written).await?)
    }

    fn reader<'r>(&'r self, memberships: &'r MembershipHistory) -> Reader<'r> {
        let Session { user_id, device_id, .. } = &self.request.session;
        Reader { user_id, device_id, now: self.now, memberships: Some(memberships) }
    }

    /// The events in the format that the filter asks for.
    ///
    /// > `federation` will return the raw event as received over federation.
    async fn in_format(
        &self,
        events: &[Arc<RoomEvent>],
        written: Vec<Box<RawValue>>,
    ) -> Result<Vec<Box<RawValue>>, ApiError> {
        if self.filter().event_format != EventFormat::Federation || events.is_empty() {
            return Ok(written);
        }
        let ids: Vec<&EventId> = events.iter().map(|event| &*event.pdu.event_id).collect();
        let ids = &ids;
        let stored = self
            .app
            .store
            .read("sync_stored_events", |tx| async move { rooms::stored_json(&tx, ids).await })
            .await?;
        ids.iter()
            .zip(&written)
            .filter_map(|(id, event)| Some((id, event, stored.get(*id)?)))
            .map(|(id, event, json)| client_format::for_federation(json, id, event))
            .collect::<Result<_, _>>()
            .map_err(ApiError::internal)
    }

    fn pick_fields<T>(&self, written: Vec<Box<RawValue>>) -> Result<Vec<Raw<T>>, ApiError> {
        let Some(fields) = &self.filter().event_fields else {
            return Ok(written.into_iter().map(Raw::from_json).collect());
        };
        let fields = EventFields::new(fields.iter().map(String::as_str));
        written
            .iter()
            .map(|event| Ok(Raw::from_json(fields.pick(event).map_err(ApiError::internal)?)))
            .collect()
    }

    /// > The required fields for rendering a room's name if it has none of its own.
    fn summary(&self, room: &RoomState) -> RoomSummary {
        let mut summary = RoomSummary::new();
        summary.joined_member_count = UInt::try_from(room.joined_count()).ok();
        summary.invited_member_count = UInt::try_from(room.invited_count()).ok();
        let has_name = ["m.room.name", "m.room.canonical_alias"]
            .iter()
            .any(|event_type| room.get(event_type, "").is_some_and(|event| event.pdu.content.get() != "{}"));
        if !has_name {
            summary.heroes = self.heroes(room);
        }
        summary
    }

    /// The first members by the order of their joining or being invited; those who left only if nobody else is there.
    fn heroes(&self, room: &RoomState) -> Vec<OwnedUserId> {
        let is_other = |user_id: &&OwnedUserId| *user_id != self.user_id();
        let present: Vec<_> = room.first_members().iter().filter(is_other).take(HEROES).cloned().collect();
        if !present.is_empty() {
            return present;
        }
        let mut gone: Vec<_> = room
            .members()
            .filter(|event| {
                matches!(membership_of(&event.pdu), MembershipState::Leave | MembershipState::Ban)
            })
            .collect();
        gone.sort_unstable_by_key(|event| event.position);
        let user_id = |event: &Arc<RoomEvent>| OwnedUserId::try_from(event.pdu.state_key.as_deref()?).ok();
        gone.into_iter().filter_map(user_id).filter(|id| is_other(&id)).take(HEROES).collect()
    }

    fn ephemeral(
        &self,
        candidate: &Candidate<'_>,
        typing: Option<Vec<OwnedUserId>>,
    ) -> Result<Ephemeral, ApiError> {
        let mut section = Ephemeral::new();
        let wants = |event_type: &str| {
            let facts = Facts { event_type, sender: None, content: RawValue::NULL };
            filter::matches_in_room(&self.filter().room.ephemeral, candidate.room_id, facts)
        };
        if wants("m.receipt") {
            section.events.extend(ephemeral::receipt_event(&candidate.changes.receipts)?);
        }
        if let Some(users) = typing.filter(|_| wants("m.typing")) {
            section.events.push(ephemeral::typing_event(&users)?);
        }
        Ok(section)
    }

    /// What the user is shown of a room that the invitation is to; `None` if it comes from somebody whom the user ignores.
    pub(super) async fn invited_room(&self, room_id: &RoomId) -> Result<Option<InvitedRoom>, ApiError> {
        let room = self.room_state(room_id).await?;
        let invitation = room.get("m.room.member", self.user_id().as_str());
        if invitation.is_some_and(|invitation| self.ignored.contains_key(&invitation.pdu.sender)) {
            return Ok(None);
        }
        let events = self.stripped_state(room_id).await?;
        let events: Vec<_> = events.into_iter().map(Raw::from_json).collect();
        Ok(Some(InvitedRoom::from(InviteState::from(events))))
    }

    pub(super) async fn knocked_room(&self, room_id: &RoomId) -> Result<KnockedRoom, ApiError> {
        let mut knock = KnockState::new();
        knock.events = self.stripped_state(room_id).await?.into_iter().map(Raw::from_json).collect();
        Ok(KnockedRoom::from(knock))
    }

    async fn stripped_state(&self, room_id: &RoomId) -> Result<Vec<Box<RawValue>>, ApiError> {
        let room = self.room_state(room_id).await?;
        let own = room.get("m.room.member", self.user_id().as_str());
        let inviter = own.and_then(|own| room.get("m.room.member", own.pdu.sender.as_str()));
        let mut events: Vec<_> = STRIPPED
            .iter()
            .filter_map(|event_type| room.get(event_type, ""))
            .chain(inviter)
            .chain(own)
            .collect();
        events.dedup_by_key(|event| event.position);
        events.iter().map(|event| client_format::stripped(&event.pdu).map_err(ApiError::internal)).collect()
    }
}

/// Events that neither replaced anything nor were redacted, in the form that clients read.
fn begins_with_the_room(timeline: &[Arc<RoomEvent>]) -> bool {
    timeline.first().is_some_and(|event| event.pdu.event_type == TimelineEventType::RoomCreate)
}

fn write_plain(events: &[Arc<RoomEvent>], reader: Reader<'_>) -> Result<Vec<Box<RawValue>>, ApiError> {
    let write = |event: &Arc<RoomEvent>| client_event(event, None, reader, Form::Sync);
    events.iter().map(write).collect::<Result<_, _>>().map_err(ApiError::internal)
}
