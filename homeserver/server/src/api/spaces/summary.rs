//! A few words about a room, and who may read them.

use keystead_store::room_summaries::RoomFacts;
use ruma::{
    RoomId, RoomVersionId, UInt,
    events::room::member::MembershipState,
    room::{AllowRule, JoinRule, JoinRuleSummary, RoomSummary},
};

use crate::{api::room_directory::value, streams::RoomsOfUser};

/// What is told about a room. Content that cannot be read counts as absent.
pub(super) fn summary(room_id: &RoomId, facts: &RoomFacts) -> RoomSummary {
    let joined = u64::try_from(facts.joined).unwrap_or_default();
    let rule = match join_rule(facts) {
        // A rule that nobody knows lets nobody in.
        rule if !is_known(&rule) => JoinRuleSummary::Private,
        rule => rule.into(),
    };
    let (guest_can_join, world_readable) =
        (text(facts, "m.room.guest_access", "guest_access"), is_world_readable(facts));
    let guest_can_join = guest_can_join.as_deref() == Some("can_join");
    let joined = UInt::new_saturating(joined);
    let mut summary = RoomSummary::new(room_id.to_owned(), rule, guest_can_join, joined, world_readable);
    for event in &facts.state {
        match event.pdu.event_type.to_string().as_str() {
            "m.room.avatar" => summary.avatar_url = value(event, "url"),
            "m.room.canonical_alias" => summary.canonical_alias = value(event, "alias"),
            "m.room.create" => {
                summary.room_type = value(event, "type");
                summary.room_version = Some(value(event, "room_version").unwrap_or(RoomVersionId::V1));
            }
            "m.room.encryption" => summary.encryption = value(event, "algorithm"),
            "m.room.name" => summary.name = value(event, "name"),
            "m.room.topic" => summary.topic = value(event, "topic"),
            _ => {}
        }
    }
    summary
}

/// Whether a room is a space, which is what has children.
pub(super) fn is_space(facts: &RoomFacts) -> bool {
    text(facts, "m.room.create", "type").as_deref() == Some("m.space")
}

/// Whether somebody may be told of a room: who is in it or invited, and who could come in, ask to, or read it without. `rooms` are
/// the rooms of the one who asks; `None` for a stranger.
pub(super) fn is_accessible(room_id: &RoomId, facts: &RoomFacts, rooms: Option<&RoomsOfUser>) -> bool {
    if is_world_readable(facts) {
        return true;
    }
    let membership = |room_id| rooms.and_then(|rooms| rooms.get(room_id)).map(|room| &room.membership);
    match membership(room_id) {
        Some(MembershipState::Join | MembershipState::Invite) => return true,
        Some(MembershipState::Ban) => return false,
        _ => {}
    }
    match join_rule(facts) {
        JoinRule::Public | JoinRule::Knock | JoinRule::KnockRestricted(_) => true,
        JoinRule::Restricted(restricted) => restricted.allow.iter().any(|rule| match rule {
            AllowRule::RoomMembership(condition) => {
                membership(&condition.room_id) == Some(&MembershipState::Join)
            }
            _ => false,
        }),
        _ => false,
    }
}

/// A room without a rule that can be read is one for the invited.
fn join_rule(facts: &RoomFacts) -> JoinRule {
    let event = facts.state.iter().find(|event| event.pdu.event_type.to_string() == "m.room.join_rules");
    event.and_then(|event| serde_json::from_str(event.pdu.content.get()).ok()).unwrap_or(JoinRule::Invite)
}

fn is_known(rule: &JoinRule) -> bool {
    matches!(
        rule,
        JoinRule::Invite
            | JoinRule::Knock
            | JoinRule::KnockRestricted(_)
            | JoinRule::Private
            | JoinRule::Public
            | JoinRule::Restricted(_)
    )
}

fn is_world_readable(facts: &RoomFacts) -> bool {
    text(facts, "m.room.history_visibility", "history_visibility").as_deref() == Some("world_readable")
}

fn text(facts: &RoomFacts, event_type: &str, key: &str) -> Option<String> {
    let event = facts.state.iter().find(|event| event.pdu.event_type.to_string() == event_type)?;
    value(event, key)
}

#[cfg(test)]
mod tests {
    use keystead_core::{pdu::Pdu, room::RoomEvent};
    use ruma::{owned_event_id, owned_room_id, room_id};
    use serde_json::{Value, json};

    use super::*;

    fn facts(state: &[(&str, Value)]) -> RoomFacts {
        let event = |(event_type, content): &(&str, Value)| {
            let json = json!({
                "type": event_type, "state_key": "", "sender": "@a:x", "content": content, "origin_server_ts": 1,
                "depth": 1, "prev_events": [], "auth_events": [],
            });
            let pdu = Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!r:x"), &json.to_string());
            RoomEvent { position: 1, pdu: pdu.unwrap().into() }
        };
        RoomFacts { joined: 3, state: state.iter().map(event).collect(), children: Vec::new() }
    }

    #[test]
    fn a_stranger_is_told_of_rooms_that_are_open_in_some_way() {
        let rule = |rule: &str| ("m.room.join_rules", json!({ "join_rule": rule }));
        let readable = ("m.room.history_visibility", json!({ "history_visibility": "world_readable" }));
        let table = [
            (vec![rule("public")], true),
            (vec![rule("knock")], true),
            (vec![rule("invite")], false),
            (vec![rule("org.example.odd")], false),
            (vec![], false),
            (vec![rule("invite"), readable], true),
        ];
        for (state, expected) in table {
            assert_eq!(is_accessible(room_id!("!r:x"), &facts(&state), None), expected, "{state:?}");
        }
    }

    #[test]
    fn a_summary_can_be_written_whatever_the_state_says() {
        let odd = facts(&[
            ("m.room.create", json!({ "type": "m.space", "room_version": "11" })),
            ("m.room.join_rules", json!({ "join_rule": "org.example.odd", "x": 1 })),
            ("m.room.encryption", json!({ "algorithm": "m.megolm.v1.aes-sha2" })),
            ("m.room.name", json!({ "name": 7 })),
        ]);
        let written = serde_json::to_value(summary(room_id!("!r:x"), &odd)).unwrap();
        assert_eq!(
            written,
            json!({
                "room_id": "!r:x", "room_type": "m.space", "room_version": "11", "num_joined_members": 3,
                "join_rule": "private", "encryption": "m.megolm.v1.aes-sha2", "world_readable": false,
                "guest_can_join": false,
            })
        );
        assert!(is_space(&odd));
    }
}
