//! What one user may see of one room.

use std::collections::BTreeSet;

use keystead_core::{
    room::RoomEvent,
    visibility::{Setting, Viewer, may_see, or_default},
};
use keystead_store::{
    Error, ReadTx,
    rooms::{self, Bounds},
};
use ruma::{
    RoomId, UserId,
    events::room::{history_visibility::HistoryVisibility, member::MembershipState},
};
use serde::Deserialize;

use super::MembershipHistory;

/// Of how many parts of a room a statement is told at most that a user may see them.
const MAX_PARTS: usize = 100;

/// The history of a room's visibility and of one user's membership: enough to judge any event of the room.
#[derive(Clone, Debug)]
pub struct RoomView {
    /// From which position on each visibility held, oldest first.
    visibilities: Vec<(i64, HistoryVisibility)>,
    /// From which position on the user had each membership.
    memberships: MembershipHistory,
}

#[derive(Deserialize)]
struct VisibilityContent {
    history_visibility: HistoryVisibility,
}

impl RoomView {
    /// Reads what the judgement needs: the two histories, not the room.
    ///
    /// # Errors
    /// The database's own.
    pub async fn load(tx: &ReadTx, room_id: &RoomId, user_id: &UserId) -> Result<Self, Error> {
        let visibilities = rooms::state_history(tx, room_id, ("m.room.history_visibility", "")).await?;
        Ok(Self {
            visibilities: visibilities.iter().map(|event| (event.position, visibility_of(event))).collect(),
            memberships: MembershipHistory::load(tx, room_id, user_id).await?,
        })
    }

    /// What the user was to the room, from its beginning.
    pub fn memberships(&self) -> &MembershipHistory {
        &self.memberships
    }

    /// As [`RoomView::memberships`], where nothing else is asked any more.
    pub fn into_memberships(self) -> MembershipHistory {
        self.memberships
    }

    /// The user's membership after the newest event.
    pub fn membership(&self) -> MembershipState {
        self.memberships.changes().last().map_or(MembershipState::Leave, |(_, membership)| membership.clone())
    }

    /// The position from which on the user is no longer in the room, if the user was in it and left.
    pub fn left_at(&self) -> Option<i64> {
        let (position, membership) = self.memberships.changes().last()?;
        matches!(membership, MembershipState::Leave | MembershipState::Ban).then_some(*position)
    }

    /// Whether the user ever was in the room.
    pub fn was_joined(&self) -> bool {
        self.memberships.changes().iter().any(|(_, membership)| *membership == MembershipState::Join)
    }

    /// Whether the user was in the room after the event at `position`.
    pub fn was_joined_at(&self, position: i64) -> bool {
        at(self.memberships.changes(), position) == Some(&MembershipState::Join)
    }

    /// The position of the event with which the user was last taken out of the room. `None` for those who are in it, and
    /// for those who never were.
    pub fn joined_until(&self) -> Option<i64> {
        let mut ended = None;
        let mut joined = false;
        for (position, membership) in self.memberships.changes() {
            match (joined, *membership == MembershipState::Join) {
                (false, true) => ended = None,
                (true, false) => ended = Some(*position),
                _ => {}
            }
            joined = *membership == MembershipState::Join;
        }
        ended
    }

    /// Whether the user ever was in the room, or was invited to it.
    pub fn knows_room(&self) -> bool {
        !self.memberships.changes().is_empty()
    }

    /// Whether anybody may read the room now.
    pub fn is_world_readable(&self) -> bool {
        at(&self.visibilities, i64::MAX)
            .is_some_and(|visibility| *visibility == HistoryVisibility::WorldReadable)
    }

    /// Whether the user may see the event at a position.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#server-behaviour-5>
    pub fn may_see(&self, position: i64) -> bool {
        let visibility = |position| or_default(at(&self.visibilities, position).cloned());
        let membership =
            |position| at(self.memberships.changes(), position).cloned().unwrap_or(MembershipState::Leave);
        let joined_since = self
            .memberships
            .changes()
            .iter()
            .any(|(since, membership)| *since > position && *membership == MembershipState::Join);
        let setting = Setting { before: visibility(position - 1), after: visibility(position) };
        let viewer = Viewer { before: membership(position - 1), after: membership(position), joined_since };
        may_see(&setting, &viewer)
    }

    /// All positions that the user may see events at, in ascending parts; the newest of them if there are very many.
    pub fn visible(&self) -> Vec<Bounds> {
        let changes = self.visibilities.iter().map(|(since, _)| since);
        let changes = changes.chain(self.memberships.changes().iter().map(|(since, _)| since));
        // The judgement of an event looks at what held before it, too.
        let begins: BTreeSet<i64> = changes.flat_map(|since| [*since, since + 1]).chain([1]).collect();
        let mut visible: Vec<Bounds> = Vec::new();
        let mut ends = begins.iter().skip(1).map(|next| next - 1).chain([i64::MAX]);
        for begin in &begins {
            let Some(upto) = ends.next() else { break };
            if !self.may_see(*begin) {
                continue;
            }
            match visible.last_mut().filter(|last| last.upto == begin - 1) {
                Some(last) => last.upto = upto,
                None => visible.push(Bounds { after: begin - 1, upto }),
            }
        }
        visible.split_off(visible.len().saturating_sub(MAX_PARTS))
    }
}

/// What held after the event at `position`.
fn at<T>(history: &[(i64, T)], position: i64) -> Option<&T> {
    history.iter().rev().find(|(since, _)| *since <= position).map(|(_, value)| value)
}

fn visibility_of(event: &RoomEvent) -> HistoryVisibility {
    let content: Option<VisibilityContent> = serde_json::from_str(event.pdu.content.get()).ok();
    or_default(content.map(|content| content.history_visibility))
}

#[cfg(test)]
mod tests {
    use MembershipState::{Ban, Invite, Join, Leave};

    use super::*;

    #[test]
    fn the_visible_parts_are_those_whose_events_may_be_seen() {
        use HistoryVisibility::{Joined, Shared, WorldReadable};
        let histories = [
            (vec![], vec![]),
            (vec![(2, Shared)], vec![(1, Join)]),
            (vec![(2, Joined)], vec![(4, Invite), (6, Join), (9, Leave), (12, Join)]),
            (vec![(2, Joined), (5, WorldReadable), (7, Shared), (8, Joined)], vec![(11, Join), (13, Ban)]),
            (vec![(3, Shared)], vec![(3, Join), (5, Leave)]),
        ];
        for (visibilities, memberships) in histories {
            let view = RoomView { visibilities, memberships: MembershipHistory::whole(memberships) };
            let visible = view.visible();
            for position in 1..20 {
                let within = visible.iter().any(|part| part.after < position && position <= part.upto);
                assert_eq!(within, view.may_see(position), "{position} of {view:?}: {visible:?}");
            }
        }
    }

    #[test]
    fn the_last_time_in_the_room_ends_with_the_first_event_after_it() {
        let table = [
            (vec![], None),
            (vec![(1, Invite), (2, Leave)], None),
            (vec![(1, Join), (2, Join)], None),
            (vec![(1, Join), (5, Leave), (7, Ban)], Some(5)),
            (vec![(1, Join), (5, Leave), (7, Invite), (8, Leave)], Some(5)),
            (vec![(1, Join), (5, Leave), (7, Join), (9, Ban)], Some(9)),
        ];
        for (memberships, expected) in table {
            let memberships = MembershipHistory::whole(memberships);
            let view = RoomView { visibilities: Vec::new(), memberships };
            assert_eq!(view.joined_until(), expected, "{view:?}");
        }
    }
}
