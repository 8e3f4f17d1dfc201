//! What one user was to a room, at each of its events.

use keystead_core::room::membership_of;
use keystead_store::{Error, ReadTx, rooms};
use ruma::{RoomId, UserId, events::room::member::MembershipState};

/// What one user was to a room from which position on: all of it, or only its end.
#[derive(Clone, Debug, Default)]
pub struct MembershipHistory {
    /// Oldest first.
    changes: Vec<(i64, MembershipState)>,
    /// Whether the user was nothing to the room before the first change.
    is_whole: bool,
}

impl MembershipHistory {
    /// All changes, oldest first, with the positions of their events.
    pub fn whole(changes: Vec<(i64, MembershipState)>) -> Self {
        Self { changes, is_whole: true }
    }

    /// Only the newest membership and the position of its event: what is known without a look at the database.
    pub fn newest(position: i64, membership: MembershipState) -> Self {
        Self { changes: vec![(position, membership)], is_whole: false }
    }

    /// Reads all of it: one statement.
    ///
    /// # Errors
    /// The database's own, or a row that cannot be read.
    pub async fn load(tx: &ReadTx, room_id: &RoomId, user_id: &UserId) -> Result<Self, Error> {
        let changes = rooms::state_history(tx, room_id, ("m.room.member", user_id.as_str())).await?;
        Ok(Self::whole(changes.iter().map(|event| (event.position, membership_of(&event.pdu))).collect()))
    }

    /// All changes that are known, oldest first.
    pub fn changes(&self) -> &[(i64, MembershipState)] {
        &self.changes
    }

    /// `join`, `invite`, `leave`, `ban` or `knock`: what the user was after the event at a position. `None` if that is not known.
    ///
    /// > The room membership of the user making the request, at the time of the event. […] If the user had yet to join the
    /// > room at the time of the event (i.e, they have no `m.room.member` state), this property is set to `leave`.
    pub fn at(&self, position: i64) -> Option<&str> {
        let known = self.changes.iter().rev().find(|(since, _)| *since <= position);
        match known {
            Some((_, membership)) => Some(membership.as_str()),
            None => self.is_whole.then_some("leave"),
        }
    }
}

#[cfg(test)]
mod tests {
    use MembershipState::{Ban, Invite, Join};

    use super::*;

    #[test]
    fn before_the_first_change_it_is_leave_only_if_all_is_known() {
        let all = MembershipHistory::whole(vec![(3, Invite), (5, Join), (9, Ban)]);
        let at = |history: &MembershipHistory, position| history.at(position).map(str::to_owned);
        let table =
            [(2, "leave"), (3, "invite"), (4, "invite"), (5, "join"), (8, "join"), (9, "ban"), (99, "ban")];
        for (position, expected) in table {
            assert_eq!(at(&all, position).as_deref(), Some(expected), "{position}");
        }
        let end = MembershipHistory::newest(5, Join);
        assert_eq!((at(&end, 4), at(&end, 5).as_deref()), (None, Some("join")));
        assert_eq!(at(&MembershipHistory::whole(Vec::new()), 1).as_deref(), Some("leave"));
        assert_eq!(at(&MembershipHistory::default(), 1), None);
    }
}
