use std::sync::Arc;

use keystead_keybox::{
    OpensslEntropy,
    closing::{Action, Step},
    key_set::PrivateKeySet,
    suite,
};
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId, device_id, owned_event_id, owned_room_id, user_id};
use serde_json::json;

use super::*;
use crate::{json::raw, pdu::Pdu, room::RoomEvent};

struct World {
    room: RoomState,
    keys: PrivateKeySet,
}

fn world() -> World {
    let mut world = World {
        room: RoomState::empty(owned_room_id!("!r:x"), RoomVersionId::V11).unwrap(),
        keys: PrivateKeySet::generate("@a:x", "BOX", &mut OpensslEntropy).unwrap(),
    };
    world.set("m.room.encryption", "", &json!({ "algorithm": suite::V1 }));
    world.set("m.room.member", "@a:x", &json!({ "membership": "join" }));
    world.set("m.room.member", "@b:x", &json!({ "membership": "invite" }));
    world
}

fn draft(event_type: &str, state_key: &str, content: &Value) -> Draft {
    Draft {
        sender: user_id!("@a:x").to_owned(),
        event_type: event_type.into(),
        state_key: Some(state_key.to_owned()),
        content: raw(content),
        redacts: None,
        origin_server_ts: MilliSecondsSinceUnixEpoch(1_u32.into()),
    }
}

impl World {
    fn set(&mut self, event_type: &str, state_key: &str, content: &Value) {
        let json = json!({
            "type": event_type, "state_key": state_key, "content": content, "sender": "@a:x",
            "origin_server_ts": 1, "depth": 1, "prev_events": [], "auth_events": [],
        });
        let room_id = self.room.room_id.clone();
        let pdu = Pdu::from_json(owned_event_id!("$e"), room_id, &json.to_string()).unwrap();
        self.room.insert_state(&Arc::new(RoomEvent { position: 1, pdu: pdu.into() }));
    }

    fn own_set(&self) -> String {
        key_set_id(&self.keys.public().unwrap().hash())
    }

    fn step(&self, action: Action, keyboxes: &[String], limit: Option<u64>) -> Content {
        let before = self.room.get(EVENT_TYPE, "").and_then(|event| steps("!r:x", &event.pdu.content));
        let last = before.as_ref().map(|before| Closing::of(before).unwrap().last);
        let moderators = if action == Action::Close { vec!["@a:x".to_owned()] } else { Vec::new() };
        let step = Step {
            action,
            generation: last.as_ref().map_or(1, |last| last.generation + 1),
            prev: last.map(|last| last.hash).unwrap_or_default(),
            user_id: "@a:x".to_owned(),
            keybox_id: "BOX".to_owned(),
            at: 1,
            keyboxes: keyboxes.to_vec(),
            moderators,
            limit,
        };
        Content::with(before.as_ref(), SignedStep::sign("!r:x", &step, &self.keys).unwrap()).unwrap()
    }

    fn check(&self, event_type: &str, state_key: &str, content: &Value) -> Result<(), ClosingRefusal> {
        check(&self.room, &draft(event_type, state_key, content))
    }

    fn member(&self, user_id: &str, membership: &str) -> Result<(), ClosingRefusal> {
        self.check("m.room.member", user_id, &json!({ "membership": membership }))
    }

    fn take(&mut self, content: &Content) {
        self.check(EVENT_TYPE, "", &content.to_json()).unwrap();
        self.set(EVENT_TYPE, "", &content.to_json());
    }
}

#[test]
fn nobody_comes_into_a_closed_room() {
    let mut world = world();
    for membership in ["invite", "join", "knock"] {
        world.member("@c:x", membership).unwrap();
    }
    world.take(&world.step(Action::Close, &[world.own_set()], None));
    for (user, membership) in
        [("@c:x", "invite"), ("@c:x", "join"), ("@c:x", "knock"), ("@b:x", "join"), ("@b:x", "invite")]
    {
        let refused = world.member(user, membership);
        assert!(matches!(refused, Err(ClosingRefusal::Closed)), "{user} {membership}");
    }
    for (user, membership) in [("@a:x", "join"), ("@a:x", "leave"), ("@b:x", "leave"), ("@b:x", "ban")] {
        world.member(user, membership).unwrap();
    }
    let tombstone = || world.check("m.room.tombstone", "", &json!({ "replacement_room": "!s:x" }));
    assert!(matches!(tombstone(), Err(ClosingRefusal::Upgrade)));

    world.take(&world.step(Action::Open, &[], None));
    world.member("@b:x", "join").unwrap();
    world.check("m.room.tombstone", "", &json!({})).unwrap();
}

#[test]
fn a_limit_counts_who_is_in_and_who_is_invited() {
    let mut world = world();
    world.take(&world.step(Action::Open, &[], Some(2)));
    world.member("@b:x", "join").unwrap();
    for membership in ["invite", "join"] {
        assert!(matches!(world.member("@c:x", membership), Err(ClosingRefusal::Full(2))));
    }
    world.member("@c:x", "knock").unwrap();
    world.set("m.room.member", "@b:x", &json!({ "membership": "leave" }));
    world.member("@c:x", "join").unwrap();
}

#[test]
fn steps_are_taken_one_by_one() {
    let mut world = world();
    let close = world.step(Action::Close, &[world.own_set()], None);
    world.take(&close);
    let approve = world.step(Action::Approve, &[key_set_id(&[1; 32])], None);
    let open = world.step(Action::Open, &[], None);
    let does_not_follow = |content: &Content| {
        let refused = world.check(EVENT_TYPE, "", &content.to_json());
        matches!(refused, Err(ClosingRefusal::Step(ClosingError::DoesNotFollow)))
    };
    assert!(does_not_follow(&close), "nothing new");
    for content in [json!({}), json!({ "closed": false, "by": "@a:x" })] {
        assert!(matches!(world.check(EVENT_TYPE, "", &content), Err(ClosingRefusal::Step(_))));
    }
    world.take(&approve);
    let refused = world.check(EVENT_TYPE, "", &open.to_json());
    assert!(matches!(refused, Err(ClosingRefusal::Step(ClosingError::DoesNotFollow))), "the other was first");

    let mut by_another = draft(EVENT_TYPE, "", &world.step(Action::Open, &[], None).to_json());
    by_another.sender = user_id!("@b:x").to_owned();
    assert!(matches!(check(&world.room, &by_another), Err(ClosingRefusal::NotYours)));
    world.set("m.room.encryption", "", &json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    assert!(matches!(check(&world.room, &by_another), Err(ClosingRefusal::NotAKeyBoxRoom)));
    assert!(check_redaction(EVENT_TYPE).is_err() && check_redaction("m.room.message").is_ok());
}

#[test]
fn a_step_is_signed_by_a_keybox_of_the_room() {
    let mut world = world();
    let device_keys = Value::Object(world.keys.device_keys().unwrap()).to_string();
    let me = (user_id!("@a:x"), device_id!("BOX"));
    let close = world.step(Action::Close, &[key_set_id(&[1; 32])], None);
    let checked = |world: &World, content: &Content, who, keys: Option<&str>| {
        check_signer(&world.room, &raw(&content.to_json()), who, keys)
    };
    checked(&world, &close, me, Some(&device_keys)).unwrap();
    assert!(matches!(checked(&world, &close, me, None), Err(ClosingRefusal::NotSigned)));
    let elsewhere = (user_id!("@a:x"), device_id!("OTHER"));
    assert!(matches!(checked(&world, &close, elsewhere, Some(&device_keys)), Err(ClosingRefusal::NotYours)));
    let others = PrivateKeySet::generate("@a:x", "BOX", &mut OpensslEntropy).unwrap();
    let others = Value::Object(others.device_keys().unwrap()).to_string();
    assert!(matches!(checked(&world, &close, me, Some(&others)), Err(ClosingRefusal::NotSigned)));

    world.take(&close);
    let open = world.step(Action::Open, &[], None);
    assert!(matches!(checked(&world, &open, me, Some(&device_keys)), Err(ClosingRefusal::NotInTheSet)));
}
