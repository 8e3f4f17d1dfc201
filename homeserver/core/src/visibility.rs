//! Who may see an event: history visibility ([spec]).
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#server-behaviour-5

use ruma::events::room::{history_visibility::HistoryVisibility, member::MembershipState};

/// The user's side of the question.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The user's membership in the state before the event.
    pub before: MembershipState,
    /// The user's membership in the state after the event; differs from `before` only if the event is the
    /// user's own `m.room.member` event.
    pub after: MembershipState,
    /// Whether the user joined the room at any time after the event, even if only for a while.
    pub joined_since: bool,
}

impl Viewer {
    /// A user whose membership the event does not change.
    pub fn steady(membership: MembershipState, joined_since: bool) -> Self {
        Self { before: membership.clone(), after: membership, joined_since }
    }
}

/// The event's side of the question.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The room's history visibility in the state before the event.
    pub before: HistoryVisibility,
    /// The same after the event; differs only if the event is an `m.room.history_visibility` event.
    pub after: HistoryVisibility,
}

impl Setting {
    /// The setting for an event that does not change the room's history visibility.
    pub fn steady(visibility: HistoryVisibility) -> Self {
        Self { before: visibility.clone(), after: visibility }
    }
}

/// The history visibility that an absent or unreadable `m.room.history_visibility` stands for.
///
/// The specification lets a room without one, or with a value that is not understood, count as `shared`.
pub fn or_default(visibility: Option<HistoryVisibility>) -> HistoryVisibility {
    match visibility {
        Some(
            known @ (HistoryVisibility::Invited
            | HistoryVisibility::Joined
            | HistoryVisibility::Shared
            | HistoryVisibility::WorldReadable),
        ) => known,
        _ => HistoryVisibility::Shared,
    }
}

/// Whether the viewer may see the event.
///
/// A change of history visibility is seen by whoever may see with the old or with the new setting, and a
/// change of the viewer's own membership if the old or the new membership would show it. Their own membership
/// changes are always shown to users: an invitation or a ban is addressed to them.
pub fn may_see(setting: &Setting, viewer: &Viewer) -> bool {
    viewer.before != viewer.after
        || allows(&setting.before, &viewer.before, viewer.joined_since)
        || allows(&setting.after, &viewer.before, viewer.joined_since)
}

/// The five rules of the specification, for one visibility and one membership.
fn allows(visibility: &HistoryVisibility, membership: &MembershipState, joined_since: bool) -> bool {
    match (visibility, membership) {
        (HistoryVisibility::WorldReadable, _) | (_, MembershipState::Join) => true,
        (HistoryVisibility::Invited, MembershipState::Invite) => true,
        (HistoryVisibility::Invited | HistoryVisibility::Joined, _) => false,
        // `shared`, and what is not understood and therefore counts as `shared`.
        (_, _) => joined_since,
    }
}

#[cfg(test)]
mod tests {
    use HistoryVisibility::{Invited, Joined, Shared, WorldReadable};
    use MembershipState::{Ban, Invite, Join, Knock, Leave};

    use super::*;

    #[test]
    fn follows_the_table_of_the_specification() {
        // (visibility, membership at the event, seen if never joined later, seen if joined later)
        let table = [
            (WorldReadable, Leave, true, true),
            (WorldReadable, Ban, true, true),
            (Shared, Join, true, true),
            (Shared, Invite, false, true),
            (Shared, Leave, false, true),
            (Shared, Knock, false, true),
            (Invited, Join, true, true),
            (Invited, Invite, true, true),
            (Invited, Leave, false, false),
            (Invited, Knock, false, false),
            (Joined, Join, true, true),
            (Joined, Invite, false, false),
            (Joined, Leave, false, false),
            (Joined, Ban, false, false),
        ];
        for (visibility, membership, never, later) in table {
            let setting = Setting::steady(visibility.clone());
            let see = |joined| may_see(&setting, &Viewer::steady(membership.clone(), joined));
            assert_eq!((see(false), see(true)), (never, later), "{visibility:?} {membership:?}");
        }
    }

    #[test]
    fn a_change_of_visibility_is_seen_under_either_setting() {
        let viewer = Viewer::steady(Leave, true);
        assert!(may_see(&Setting { before: Joined, after: Shared }, &viewer));
        assert!(may_see(&Setting { before: Shared, after: Joined }, &viewer));
        assert!(!may_see(&Setting { before: Joined, after: Invited }, &viewer));
    }

    #[test]
    fn users_see_their_own_membership_changes() {
        for (before, after) in [(Leave, Join), (Leave, Invite), (Invite, Leave), (Join, Ban)] {
            let viewer = Viewer { before, after, joined_since: false };
            assert!(may_see(&Setting::steady(Joined), &viewer), "{viewer:?}");
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_shared() {
        assert_eq!(or_default(None), Shared);
        assert_eq!(or_default(Some("org.example.nobody".into())), Shared);
        assert_eq!(or_default(Some(Joined)), Joined);
        let odd = Setting::steady("org.example.nobody".into());
        assert!(may_see(&odd, &Viewer::steady(Leave, true)));
        assert!(!may_see(&odd, &Viewer::steady(Leave, false)));
    }
}
