//! Rooms that the user has left, was removed from, or whose invitation was rejected.

use std::sync::Arc;

use keystead_core::room::RoomEvent;
use keystead_store::rooms::{self, Bounds, Direction};
use ruma::{
    RoomId,
    api::client::sync::sync_events::v3::{LeftRoom, State},
};

use super::{
    Sync,
    newest::{Chosen, Look, Newest},
    state::{Span, Wanted, lazy_load},
};
use crate::{
    http::error::ApiError,
    rooms::{MembershipHistory, RoomView},
    streams::RoomMembership,
};

impl Sync<'_> {
    /// What happened in a room until the user left; `None` if the client never knew of the room.
    pub(super) async fn left_room(
        &self,
        room_id: &RoomId,
        membership: &RoomMembership,
    ) -> Result<Option<LeftRoom>, ApiError> {
        let user_id = self.user_id();
        let since = self.since_in(room_id);
        let bounds = Bounds { after: since.unwrap_or(0), upto: membership.position };
        let asked = self.first_look();
        let limit = u64::try_from(asked).unwrap_or(u64::MAX);
        let (view, newest) = self
            .app
            .store
            .read("sync_left_room", |tx| async move {
                let view = RoomView::load(&tx, room_id, user_id).await?;
                let newest = rooms::events_between(&tx, room_id, bounds, Direction::Backward, limit).await?;
                Ok::<_, keystead_store::Error>((view, newest))
            })
            .await?;
        let newest = newest.into_iter().map(Arc::new).collect();
        let mut newest = Newest::read(newest, asked);
        newest.view = Some(view.clone());
        if !self.wants_all() {
            self.look_further(vec![Look { room_id, after: bounds.after, newest: &mut newest }]).await?;
        }
        let Chosen { mut looked_at, mut timeline, mut limited } = self.choose(room_id, &mut newest).await?;
        looked_at.retain(|event| view.may_see(event.position));
        limited |= self.drop_outdated(&mut looked_at, &mut timeline);
        // Here only the filter counts: what the user was not to see when it happened is nobody's to tell now.
        let span = Span::new(&looked_at, &timeline, membership.position);

        let mut left = LeftRoom::new();
        left.timeline = self.timeline(&timeline, limited, &span, view.memberships()).await?;
        if view.was_joined() {
            // Who joined and left between two syncs has been told nothing of the room yet.
            let is_known = |since: &i64| !self.request.full_state && view.was_joined_at(*since);
            let wanted = since.filter(is_known).map_or(Wanted::Whole, Wanted::Since);
            left.state = self.state_when_left(room_id, wanted, &span, &timeline, view.memberships()).await?;
        }
        Ok(Some(left))
    }

    /// The state section for those who were in the room to see it: as of the start of the timeline, or of its end if the client
    /// asked for that.
    async fn state_when_left(
        &self,
        room_id: &RoomId,
        wanted: Wanted,
        span: &Span,
        timeline: &[Arc<RoomEvent>],
        memberships: &MembershipHistory,
    ) -> Result<State, ApiError> {
        let until = if self.request.state_after { span.end() + 1 } else { span.start() };
        let events = self
            .app
            .store
            .read("sync_left_state", |tx| async move {
                match wanted {
                    Wanted::Whole => rooms::state_at(&tx, room_id, until - 1).await,
                    Wanted::Since(since) => rooms::state_between(&tx, room_id, since, until).await,
                }
            })
            .await?;
        let mut events: Vec<_> = events.into_iter().map(Arc::new).collect();
        if !self.request.state_after {
            span.add_hidden(&mut events, timeline);
        }
        let speakers = self.speakers(wanted, timeline, &[]);
        let missing = lazy_load((speakers, wanted), timeline, &mut events);
        events.extend(self.members_when_left(room_id, missing, span.end()).await?);
        self.write_section(events, memberships).await
    }

    /// The member events of some users as they were when the user left.
    async fn members_when_left(
        &self,
        room_id: &RoomId,
        user_ids: Vec<String>,
        position: i64,
    ) -> Result<Vec<Arc<RoomEvent>>, ApiError> {
        if user_ids.is_empty() {
            return Ok(Vec::new());
        }
        let user_ids = &user_ids;
        let members = self.app.store.read("sync_left_members", |tx| async move {
            let mut members = Vec::new();
            for user_id in user_ids {
                members
                    .extend(rooms::state_event_at(&tx, room_id, position, ("m.room.member", user_id)).await?);
            }
            Ok::<_, keystead_store::Error>(members)
        });
        Ok(members.await?.into_iter().map(Arc::new).collect())
    }
}
