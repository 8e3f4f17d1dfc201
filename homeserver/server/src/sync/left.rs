//! Rooms that the user has left, was removed from, or whose invitation was rejected.

use std::sync::Arc;

use keystead_core::room::RoomEvent;
use keystead_store::rooms::{self, Bounds, Direction};
use ruma::{
    RoomId,
    api::client::sync::sync_events::v3::{LeftRoom, State, StateEvents},
};

use super::{Sync, state::Span};
use crate::{http::error::ApiError, rooms::RoomView, streams::RoomMembership};

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
        let limit = u64::try_from(self.timeline_limit() + 1).unwrap_or(u64::MAX);
        let (view, newest) = self
            .app
            .store
            .read("sync_left_room", |tx| async move {
                let view = RoomView::load(&tx, room_id, user_id).await?;
                let newest = rooms::events_between(&tx, room_id, bounds, Direction::Backward, limit).await?;
                Ok::<_, keystead_store::Error>((view, newest))
            })
            .await?;
        let mut timeline: Vec<Arc<RoomEvent>> = newest.into_iter().rev().map(Arc::new).collect();
        let limited = self.cut(&mut timeline);
        let visible: Vec<_> = timeline.into_iter().filter(|event| view.may_see(event.position)).collect();
        let timeline: Vec<_> =
            visible.iter().filter(|event| self.wants_in_timeline(event)).cloned().collect();
        // Here only the filter counts: what the user was not to see when it happened is nobody's to tell now.
        let span = Span::new(&visible, &timeline, membership.position);

        let mut left = LeftRoom::new();
        left.timeline = self.timeline(&timeline, limited, &span).await?;
        if view.was_joined() {
            let since = since.filter(|_| !self.request.full_state);
            left.state = self.state_when_left(room_id, since, &span, &timeline).await?;
        }
        Ok(Some(left))
    }

    /// The state at the start of the timeline, for those who were in the room to see it.
    async fn state_when_left(
        &self,
        room_id: &RoomId,
        since: Option<i64>,
        span: &Span,
        timeline: &[Arc<RoomEvent>],
    ) -> Result<State, ApiError> {
        let start = span.start();
        let events = self
            .app
            .store
            .read("sync_left_state", |tx| async move {
                match since {
                    None => rooms::state_at(&tx, room_id, start - 1).await,
                    Some(since) => rooms::state_between(&tx, room_id, since, start).await,
                }
            })
            .await?;
        let mut events: Vec<_> = events.into_iter().map(Arc::new).collect();
        span.add_hidden(&mut events, timeline);
        let events = StateEvents::with_events(self.write_state(&events).await?);
        Ok(if self.request.state_after { State::After(events) } else { State::Before(events) })
    }
}
