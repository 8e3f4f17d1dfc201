use serde_json::{Value, json};

use keystead_keybox::context::WrapContext;
use keystead_keybox::envelope::{Envelope, Payload, SealRequest};
use keystead_keybox::key_message::{
    Acknowledgement, KeyMessage as _, Origin, Recipient, ResourceKeyContent, audience_hash, sign,
};
use keystead_keybox::resource_key::ResourceKey;
use keystead_keybox::{OpensslEntropy, suite};

use super::world::{ROOM, World, address, user};
use crate::engine::{EncryptError, KeyRef, Notice};
use crate::events::ToDeviceEvent;

fn refusals(world: &World, name: &str) -> usize {
    world.notices(name).iter().filter(|notice| matches!(notice, Notice::MessageRefused { .. })).count()
}

#[test]
fn a_replayed_message_is_refused() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "pay 100");
    let content = world.events.last().unwrap().content.clone();
    world.event(&user("A1"), "m.room.encrypted", None, content);
    world.settle();
    assert_eq!(world.texts("B1"), ["pay 100"]);
    assert_eq!(refusals(&world, "B1"), 1);
}

#[test]
fn what_was_read_is_no_news_when_the_server_delivers_it_again() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "pay 100");
    assert_eq!(world.texts("B1"), ["pay 100"]);
    world.deliver_again("B1");
    world.settle();
    assert!(world.texts("B1").is_empty());
    // What nobody has read yet is there once.
    world.say("A1", "and 200");
    world.deliver_again("B1");
    world.settle();
    assert_eq!(world.texts("B1"), ["and 200"]);
    assert_eq!(refusals(&world, "B1"), 0);
    // It can be looked at as often as somebody likes.
    let event = world.events.last().unwrap().clone();
    assert_eq!(
        world.boxes.get_mut("B1").unwrap().engine.decrypt(ROOM, &event).unwrap().body(),
        Some("and 200")
    );
}

#[test]
fn a_message_that_is_held_back_is_missed_and_named() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "one");
    assert_eq!(world.boxes["B1"].engine.missing_messages(ROOM), []);
    let held_back = world.post("A1", "two");
    world.hidden.push(("B1", held_back));
    world.settle();
    assert_eq!(world.boxes["B1"].engine.missing_messages(ROOM), [], "nothing came after it");
    world.say("A1", "three");
    assert_eq!(world.texts("B1"), ["one", "three"]);
    let missing = world.boxes["B1"].engine.missing_messages(ROOM);
    assert_eq!(missing.len(), 1);
    assert_eq!((&missing[0].keybox, &missing[0].counters), (&address("A1"), &(1..=1)));
    assert_eq!(world.boxes["B1"].engine.missing_messages("!other:x"), []);
}

#[test]
fn an_altered_or_misattributed_message_is_refused() {
    let mut world = World::new(&["A1", "B1", "C1"]);
    world.say("A1", "text");
    let content = world.events.last().unwrap().content.clone();
    for field in ["ciphertext", "iv", "mac", "signature"] {
        let mut altered = content.clone();
        let text = altered[field].as_str().unwrap();
        let first = if text.starts_with('A') { "B" } else { "A" };
        altered[field] = format!("{first}{}", &text[1..]).into();
        world.event(&user("A1"), "m.room.encrypted", None, altered);
    }
    let mut counter = content.clone();
    counter["counter"] = json!(9);
    world.event(&user("A1"), "m.room.encrypted", None, counter);
    world.settle();
    assert_eq!(world.texts("B1"), ["text"]);
    assert_eq!(refusals(&world, "B1"), 5);
    // C posts A's message as its own: there is no such KeyBox of C.
    world.event(&user("C1"), "m.room.encrypted", None, content);
    world.settle();
    assert!(world.texts("B1").is_empty());
}

#[test]
fn a_key_message_that_was_altered_on_the_way_is_dropped() {
    let mut world = World::new(&["A1", "B1"]);
    world.post("A1", "text");
    for event in &mut world.boxes.get_mut("B1").unwrap().queue {
        event.content["sent_at"] = json!(1);
    }
    world.round("B1");
    let dropped = |world: &World| {
        world.notices("B1").iter().any(|notice| matches!(notice, Notice::KeyMessageDropped { .. }))
    };
    assert!(dropped(&world));
    assert!(world.texts("B1").is_empty());
    // The message is asked for, and so read in the end.
    world.settle();
    assert_eq!(world.texts("B1"), ["text"]);
}

#[test]
fn a_key_from_a_stranger_is_dropped() {
    let mut world = World::new(&["A1", "B1"]);
    // E knows the room's id and B's KeyBox, and makes a key for them in a room of its own making.
    world.add("E1");
    world.boxes.get_mut("E1").unwrap().engine.follow(&user("B1"));
    world.round("E1");
    world.membership(&user("E1"), "join");
    world.round("E1");
    let pretended = world.events.pop().unwrap();
    assert_eq!(pretended.sender, user("E1"));
    world.post("E1", "spam");
    world.events.pop();
    assert!(!world.boxes["B1"].queue.is_empty());
    for _ in 0..3 {
        world.round("B1");
    }
    let stranger = world
        .notices("B1")
        .iter()
        .any(|notice| matches!(notice, Notice::KeyMessageDropped { sender, .. } if *sender == user("E1")));
    assert!(stranger, "{:?}", world.notices("B1"));
}

/// Whoever has a KeyBox that was revoked, and the server, makes a key for exactly those who remain, and has one of them pass it on.
#[test]
fn nobody_sends_with_a_key_that_a_revoked_keybox_made() {
    let mut world = World::new(&["A1", "A2", "B1", "C1"]);
    world.say("A1", "before");
    let stolen = world.boxes["A2"].keys.clone();
    world.revoke("A2");
    world.settle();

    let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    let key_id = key.id(ROOM);
    let rest = ["A1", "B1", "C1"].map(address);
    let audience = audience_hash(rest.iter().map(|one| (one.user_id.as_str(), one.keybox_id.as_str())));
    let origin = Origin::sign(&stolen, suite::V1, ROOM, &key_id, world.now + 1, audience).unwrap();
    let (sender, recipient) = (user("A2"), address("B1"));
    let context = WrapContext {
        suite: suite::V1,
        room_id: ROOM,
        key_id: &key_id,
        sender: &sender,
        sender_keybox: "A2",
        recipient: &recipient.user_id,
        recipient_keybox: &recipient.keybox_id,
    };
    let to = world.boxes["B1"].keys.public().unwrap();
    let content = ResourceKeyContent {
        algorithm: suite::V1.to_owned(),
        room_id: ROOM.to_owned(),
        key_id: key_id.clone(),
        wrap: suite::find(suite::V1).unwrap().wrap(&key, &to, &context, &mut OpensslEntropy).unwrap(),
        sender_keybox: "A2".to_owned(),
        exchange_id: "e".to_owned(),
        sent_at: world.now,
        origin,
        closing: None,
    };
    let addressed = Recipient { user_id: &recipient.user_id, keybox_id: &recipient.keybox_id };
    let content = sign(&content, &stolen, addressed).unwrap();
    let event_type = ResourceKeyContent::EVENT_TYPE.to_owned();
    world.boxes.get_mut("B1").unwrap().queue.push(ToDeviceEvent {
        event_type,
        sender: sender.clone(),
        content,
    });
    let payload = Payload {
        room_id: ROOM.to_owned(),
        event_type: "m.room.message".to_owned(),
        content: json!({ "msgtype": "m.text", "body": "a lure" }),
    };
    let request = SealRequest { suite: suite::V1, key: &key, keys: &stolen, counter: 0 };
    let lure = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap();
    world.event(&sender, "m.room.encrypted", None, serde_json::to_value(lure).unwrap());
    for _ in 0..3 {
        world.now += 60_000;
        world.settle();
    }
    assert!(world.texts("C1").contains(&"a lure".to_owned()), "the key was passed on, for reading");
    for name in ["B1", "C1"] {
        world.say(name, "not for thieves");
        assert_ne!(world.events.last().unwrap().content["key_id"], key_id.as_str(), "{name}");
    }
}

#[test]
fn what_comes_of_a_revoked_keybox_is_not_verified() {
    let mut world = World::new(&["A1", "A2", "B1"]);
    world.boxes.get_mut("B1").unwrap().engine.set_verified(&address("A2"), true);
    world.say("A2", "before");
    world.post("A2", "by a thief");
    let late = world.events.pop().unwrap();
    world.revoke("A2");
    world.settle();
    world.events.push(late);
    world.settle();
    let seen: Vec<_> = world
        .unread("B1")
        .into_iter()
        .map(|message| (message.body().unwrap().to_owned(), message.verified))
        .collect();
    assert_eq!(seen, [("before".to_owned(), true), ("by a thief".to_owned(), false)]);
}

/// A member who names keys that there are not takes no more than a share of what is asked for.
#[test]
fn keys_that_there_are_not_do_not_keep_others_from_being_asked_for() {
    let mut world = World::new(&["A1", "B1", "C1"]);
    world.say("A1", "before");
    let keys = world.boxes["C1"].keys.clone();
    for number in 0..1_100_u64 {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let key = ResourceKey::from_bytes(&bytes).unwrap();
        let payload =
            Payload { room_id: ROOM.to_owned(), event_type: "m.room.message".to_owned(), content: json!({}) };
        let request = SealRequest { suite: suite::V1, key: &key, keys: &keys, counter: 0 };
        let envelope = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap();
        world.event(&user("C1"), "m.room.encrypted", None, serde_json::to_value(envelope).unwrap());
    }
    world.round("B1");
    // What A says next is under a new key, which is lost on its way to B.
    world.revoke("C1");
    world.membership(&user("C1"), "leave");
    world.round("A1");
    world.round("B1");
    world.post("A1", "a true message");
    world.boxes.get_mut("B1").unwrap().queue.clear();
    let is_read = (0..60).any(|_| {
        world.round("B1");
        world.round("A1");
        world.now += 5_000;
        world.texts("B1").contains(&"a true message".to_owned())
    });
    assert!(is_read);
}

#[test]
fn nothing_is_sent_in_the_clear() {
    let mut world = World::new(&["A1"]);
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    let refused = engine.prepare("!other", 0, &mut OpensslEntropy, &mut Vec::new()).unwrap_err();
    assert!(matches!(refused, EncryptError::NotJoined));
    world.boxes.get_mut("A1").unwrap().engine.rooms.get_mut(ROOM).unwrap().suite = None;
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    let refused = engine.prepare(ROOM, 0, &mut OpensslEntropy, &mut Vec::new()).unwrap_err();
    assert!(matches!(refused, EncryptError::NotEncrypted));
}

#[test]
fn junk_for_a_key_message_is_survived() {
    let mut world = World::new(&["A1", "B1"]);
    let junk: [Value; 5] =
        [json!(null), json!([]), json!({}), json!({ "sender_keybox": 1 }), json!({ "sender_keybox": "A1" })];
    for event_type in [
        "com.trustner.keybox.resource_key",
        "com.trustner.keybox.resource_key_request",
        "com.trustner.keybox.resource_key.withheld",
        "com.trustner.keybox.resource_key.ack",
        "m.room_key",
    ] {
        for content in &junk {
            let event = serde_json::from_value(json!({
                "type": event_type, "sender": user("A1"), "content": content,
            }));
            world.boxes.get_mut("B1").unwrap().queue.push(event.unwrap());
        }
    }
    world.round("B1");
    world.say("A1", "text");
    assert_eq!(world.texts("B1"), ["text"]);
}

#[test]
fn no_secret_shows_in_debug() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "text");
    let event = world.events.last().unwrap().clone();
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    let key = engine.export_key(ROOM, &event).unwrap().resource_key;
    let shown = format!("{engine:?}");
    assert!(!shown.contains(key.as_str()));
    // What it says about others' messages is no more than whose they are.
    let unread = &world.boxes["B1"].engine;
    assert_eq!(unread.unread(None, 1)[0].body(), Some("text"));
    assert!(!format!("{unread:?}").contains("\"text\""));
}

#[test]
fn who_claims_to_have_a_key_does_not_get_it_for_that() {
    let mut world = World::new(&["A1", "B1"]);
    world.state(&user("A1"), "m.room.history_visibility", "", json!({ "history_visibility": "joined" }));
    world.say("A1", "not for C");
    let key_id = world.events.last().unwrap().content["key_id"].clone();
    world.membership(&user("B1"), "leave");
    world.settle();
    world.membership(&user("C1"), "join");
    world.add("C1");
    world.round("C1");
    let engine = &mut world.boxes.get_mut("C1").unwrap().engine;
    let acknowledgement = Acknowledgement {
        room_id: ROOM.to_owned(),
        key_id: serde_json::from_value(key_id).unwrap(),
        exchange_id: "pretended".to_owned(),
        sender_keybox: "C1".to_owned(),
    };
    let key = KeyRef { room_id: ROOM.to_owned(), key_id: acknowledgement.key_id.clone() };
    engine.enqueue(&key, vec![(address("A1"), acknowledgement)], &mut OpensslEntropy).unwrap();
    world.settle();
    assert!(world.texts("C1").is_empty());
    let confirmed = world
        .notices("A1")
        .iter()
        .any(|notice| matches!(notice, Notice::KeyConfirmed { keybox, .. } if *keybox == address("C1")));
    assert!(!confirmed);
}
