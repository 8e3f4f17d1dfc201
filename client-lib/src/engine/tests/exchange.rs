use serde_json::json;

use keystead_keybox::key_message::WithheldCode;

use super::world::{ROOM, World, address, user};
use crate::engine::{KeyRef, Notice};

fn key_of(world: &World, event_id: &str) -> KeyRef {
    let event = world.events.iter().find(|event| event.event_id == event_id).unwrap();
    let key_id = serde_json::from_value(event.content["key_id"].clone()).unwrap();
    KeyRef { room_id: ROOM.to_owned(), key_id }
}

#[test]
fn two_people_talk() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "hello");
    world.say("B1", "good day");
    world.say("A1", "bye");
    let messages = world.unread("B1");
    assert_eq!(messages.iter().map(|message| message.body().unwrap()).collect::<Vec<_>>(), ["hello", "bye"]);
    assert!(messages.iter().all(|message| message.encrypted && !message.verified));
    assert_eq!(world.texts("A1"), ["good day"]);
    assert!(world.texts("B1").is_empty(), "what was taken is not news again");
}

#[test]
fn one_key_serves_everybody_who_would_have_made_it_for_the_same_keyboxes() {
    let mut world = World::new(&["A1", "B1", "C1"]);
    world.say("A1", "one");
    world.say("B1", "two");
    world.say("C1", "three");
    assert_eq!(world.keys_in_use(), 1);
    assert_eq!(world.texts("A1"), ["two", "three"]);
}

#[test]
fn a_message_reaches_a_keybox_that_was_away() {
    let mut world = World::new(&["A1", "B1"]);
    world.post("A1", "first");
    world.round("A1");
    world.post("A1", "second");
    world.settle();
    assert_eq!(world.texts("B1"), ["first", "second"]);
}

#[test]
fn a_new_member_gets_the_current_key() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "before");
    world.membership(&user("C1"), "join");
    world.add("C1");
    world.settle();
    world.say("A1", "after");
    assert!(world.texts("C1").contains(&"after".to_owned()));
    assert_eq!(world.keys_in_use(), 1);
}

#[test]
fn a_new_member_reads_back_only_where_the_room_lets_it() {
    for (visibility, readable) in [("shared", true), ("joined", false)] {
        let mut world = World::new(&["A1", "B1"]);
        world.state(
            &user("A1"),
            "m.room.history_visibility",
            "",
            json!({ "history_visibility": visibility }),
        );
        world.say("A1", "old");
        // Somebody leaves, so that the key of the old message is not the current one.
        world.membership(&user("B1"), "leave");
        world.settle();
        world.membership(&user("C1"), "join");
        world.add("C1");
        world.settle();
        world.say("A1", "new");
        let mut expected = vec!["new"];
        if readable {
            expected.insert(0, "old");
        }
        assert_eq!(world.texts("C1"), expected, "{visibility}");
        let withheld = world
            .notices("C1")
            .iter()
            .any(|notice| matches!(notice, Notice::KeyWithheld { code: WithheldCode::Unauthorised, .. }));
        assert_eq!(withheld, !readable, "{visibility}");
    }
}

#[test]
fn a_second_keybox_asks_the_first_one_of_its_user() {
    let mut world = World::new(&["A1", "B1"]);
    let event_id = world.say("A1", "hello");
    world.add("B2");
    world.settle();
    assert_eq!(world.texts("B2"), ["hello"]);
    let key = key_of(&world, &event_id);
    let asked = Notice::KeyAsked { key: key.clone(), keyboxes: vec![address("B1")] };
    assert!(world.notices("B2").contains(&asked), "{:?}", world.notices("B2"));
    assert!(world.notices("B1").contains(&Notice::KeyGiven { key: key.clone(), keybox: address("B2") }));
    assert!(!world.notices("A1").contains(&Notice::KeyGiven { key, keybox: address("B2") }));
    assert!(world.notices("B1").contains(&Notice::NewOwnKeyBox { keybox: address("B2") }));
    assert!(world.notices("A1").contains(&Notice::NewKeyBox { keybox: address("B2") }));
    let warned = |notice: &Notice| matches!(notice, Notice::NewOwnKeyBox { .. });
    assert!(!world.notices("B2").iter().any(warned), "what was there first is not new");
}

#[test]
fn when_the_own_keyboxes_do_not_have_it_the_room_is_asked() {
    let mut world = World::new(&["A1", "B1"]);
    // Sealed for A1 alone: B is not in the room yet.
    world.membership(&user("B1"), "leave");
    world.round("A1");
    world.say("A1", "hello");
    world.add("B2");
    world.membership(&user("B1"), "join");
    world.settle();
    for _ in 0..5 {
        world.now += 10_000;
        world.settle();
    }
    assert_eq!(world.texts("B1"), ["hello"]);
    assert_eq!(world.texts("B2"), ["hello"]);
}

#[test]
fn a_question_waits_for_a_keybox_that_is_away_and_is_asked_once() {
    let mut world = World::new(&["A1", "B1"]);
    let event_id = world.say("A1", "hello");
    world.add("B2");
    for _ in 0..5 {
        world.round("B2");
    }
    let asked = world.notices("B2").iter().filter(|notice| matches!(notice, Notice::KeyAsked { .. })).count();
    assert_eq!(asked, 1, "asked again too soon");
    assert_eq!(world.boxes["B2"].engine.rooms()[ROOM].waiting(), 1);
    world.settle();
    assert_eq!(world.texts("B2"), ["hello"]);
    assert_eq!(world.boxes["B2"].engine.rooms()[ROOM].waiting(), 0);
    let key = key_of(&world, &event_id);
    assert!(world.notices("B2").contains(&Notice::KeyReceived { key, keybox: address("B1") }));
}

#[test]
fn a_key_that_the_server_refuses_for_one_reaches_the_others() {
    let mut world = World::new(&["A1", "B1", "C1"]);
    // A has not heard that C left.
    world.boxes.get_mut("A1").unwrap().engine.follow(&user("C1"));
    world.membership(&user("C1"), "leave");
    world.post("A1", "hello");
    world.settle();
    assert_eq!(world.texts("B1"), ["hello"]);
    assert!(world.texts("C1").is_empty());
    let refused = world
        .notices("A1")
        .iter()
        .any(|notice| matches!(notice, Notice::KeyUndeliverable { keybox, .. } if *keybox == address("C1")));
    assert!(refused);
}

#[test]
fn a_person_can_export_what_openssl_needs() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "hello");
    let event = world.events.last().unwrap().clone();
    let exported = world.boxes.get_mut("B1").unwrap().engine.export_key(ROOM, &event).unwrap();
    assert_eq!((exported.resource_key.len(), exported.iv.len()), (64, 32));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ciphertext");
    std::fs::write(&file, exported.ciphertext).unwrap();
    let output = std::process::Command::new("openssl")
        .args([
            "enc",
            "-d",
            "-aes-256-ofb",
            "-K",
            &exported.resource_key,
            "-iv",
            &exported.iv,
            "-a",
            "-A",
            "-in",
        ])
        .arg(&file)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\"body\":\"hello\""), "{text} {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_verified_sender_shows_on_its_messages() {
    let mut world = World::new(&["A1", "B1"]);
    assert!(world.boxes.get_mut("B1").unwrap().engine.set_verified(&address("A1"), true));
    assert!(!world.boxes.get_mut("B1").unwrap().engine.set_verified(&address("A9"), true));
    world.say("A1", "hello");
    assert!(world.unread("B1")[0].verified);
}

#[test]
fn a_crash_at_any_moment_loses_and_doubles_nothing() {
    for sent in [false, true] {
        let mut world = World::new(&["A1", "B1", "C1"]);
        world.post("A1", "one");
        world.crash("B1", sent);
        world.post("B1", "two");
        for name in ["A1", "B1", "C1"] {
            world.crash(name, sent);
            world.crash(name, sent);
        }
        world.settle();
        assert_eq!(world.texts("B1"), ["one"], "sent: {sent}");
        assert_eq!(world.texts("A1"), ["two"], "sent: {sent}");
        assert_eq!(world.texts("C1"), ["one", "two"], "sent: {sent}");
        let refused =
            |name| world.notices(name).iter().any(|notice| matches!(notice, Notice::MessageRefused { .. }));
        assert!(!["A1", "B1", "C1"].into_iter().any(refused), "sent: {sent}");
    }
}
