use serde_json::json;

use keystead_keybox::encoding::base64;
use keystead_keybox::resource_key::ResourceKey;
use keystead_keybox::suite;

use super::world::{ROOM, World, user};
use crate::engine::Notice;

#[test]
fn who_has_left_cannot_read_what_is_said_afterwards() {
    let mut world = World::new(&["A1", "B1", "C1"]);
    world.say("A1", "for three");
    world.membership(&user("C1"), "leave");
    world.settle();
    world.say("A1", "for two");
    world.say("B1", "for two again");
    assert_eq!(world.keys_in_use(), 2);
    assert_eq!(world.texts("B1"), ["for three", "for two"]);
    // C still gets the ciphertext in this test, as a malicious server could arrange.
    assert_eq!(world.texts("C1"), ["for three"]);
}

#[test]
fn each_way_to_go_takes_a_new_key() {
    for (by, before, after) in [
        ("C1", "join", "leave"),
        ("A1", "join", "leave"),
        ("A1", "join", "ban"),
        ("A1", "invite", "leave"),
        ("C1", "invite", "leave"),
    ] {
        let what = format!("{by}: {before} to {after}");
        let mut world = World::new(&["A1", "B1"]);
        world.add("C1");
        world.membership_by(&user("A1"), &user("C1"), "invite");
        if before == "join" {
            world.membership(&user("C1"), "join");
        }
        world.settle();
        world.say("A1", "for three");
        world.membership_by(&user(by), &user("C1"), after);
        world.settle();
        world.say("A1", "for two");
        world.say("B1", "for two again");
        assert_eq!(world.keys_in_use(), 2, "{what}");
        assert!(!world.texts("C1").iter().any(|text| text.contains("two")), "{what}");
    }
}

#[test]
fn an_invitation_that_is_accepted_takes_no_new_key() {
    let mut world = World::new(&["A1", "B1"]);
    world.add("C1");
    world.membership_by(&user("A1"), &user("C1"), "invite");
    world.settle();
    world.say("A1", "one");
    world.membership(&user("C1"), "join");
    world.settle();
    world.say("A1", "two");
    assert_eq!(world.keys_in_use(), 1);
    assert_eq!(world.texts("C1"), ["one", "two"]);
}

/// Sets who reads back, long after the room was made.
fn visibility(world: &mut World, visibility: &str) {
    world.now += 60 * 60 * 1000;
    let content = json!({ "history_visibility": visibility });
    world.state(&user("A1"), "m.room.history_visibility", "", content);
    world.settle();
}

#[test]
fn where_members_do_not_read_back_a_newcomer_takes_a_new_key() {
    for (set, invited_reads) in [("joined", false), ("invited", true)] {
        let mut world = World::new(&["A1", "B1"]);
        visibility(&mut world, set);
        world.say("A1", "before the invitation");
        world.add("C1");
        world.membership_by(&user("A1"), &user("C1"), "invite");
        world.settle();
        world.say("A1", "before joining");
        world.membership(&user("C1"), "join");
        world.settle();
        world.say("A1", "after joining");
        for _ in 0..3 {
            world.now += 60_000;
            world.settle();
        }
        let expected: &[&str] =
            if invited_reads { &["before joining", "after joining"] } else { &["after joining"] };
        assert_eq!(world.texts("C1"), expected, "{set}");
        assert_eq!(world.texts("B1").len(), 3, "{set}");
        assert_eq!(world.keys_in_use(), 2, "{set}");
    }
}

#[test]
fn a_makers_clock_that_is_ahead_opens_nothing_older() {
    let mut world = World::new(&["A1", "B1"]);
    visibility(&mut world, "joined");
    let now = world.now;
    world.now += 10 * 60 * 60 * 1000;
    world.post("A1", "before C came");
    world.events.last_mut().unwrap().origin_server_ts = now;
    world.now = now + 1_000;
    world.settle();
    assert_eq!(world.texts("B1"), ["before C came"]);
    world.membership(&user("C1"), "join");
    world.add("C1");
    for _ in 0..3 {
        world.now += 60_000;
        world.settle();
    }
    assert!(world.texts("C1").is_empty(), "the order of the events decides");
}

#[test]
fn who_was_invited_before_having_a_keybox_reads_from_the_invitation_on() {
    let mut world = World::new(&["A1", "B1"]);
    visibility(&mut world, "invited");
    world.say("A1", "before the invitation");
    world.membership_by(&user("A1"), &user("C1"), "invite");
    world.settle();
    world.say("A1", "since the invitation");
    // Rotated meanwhile, so that this is not the key that is sent with now.
    world.membership(&user("B1"), "leave");
    world.settle();
    world.membership(&user("C1"), "join");
    world.add("C1");
    world.settle();
    assert_eq!(world.texts("C1"), ["since the invitation"]);
}

#[test]
fn what_was_said_while_nobody_read_back_stays_closed_when_that_changes() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "open");
    visibility(&mut world, "joined");
    world.say("A1", "closed, for two");
    world.membership(&user("B1"), "leave");
    world.settle();
    world.say("A1", "closed");
    visibility(&mut world, "shared");
    world.membership(&user("B1"), "join");
    world.membership(&user("C1"), "join");
    world.add("C1");
    world.settle();
    let read = world.texts("C1");
    assert!(!read.contains(&"closed".to_owned()), "{read:?}");
    world.say("A1", "open again");
    assert_eq!(world.texts("C1"), ["open again"]);
}

#[test]
fn resource_keys_are_stored_as_wraps_only() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "text");
    let event = world.events.last().unwrap().clone();
    for name in ["A1", "B1"] {
        let engine = &mut world.boxes.get_mut(name).unwrap().engine;
        let hex = engine.export_key(ROOM, &event).unwrap().resource_key;
        let key = ResourceKey::from_hex(&hex).unwrap();
        let forms = [hex.as_str().to_owned(), base64(key.as_bytes()), format!("{:?}", key.as_bytes())];
        let forms = forms.map(|form| form.trim_matches(['[', ']']).replace(' ', ""));
        assert!(world.stored(name).any(|record| String::from_utf8_lossy(record).contains("\"wrap\"")));
        for record in world.stored(name) {
            let record = String::from_utf8_lossy(record);
            assert!(!forms.iter().any(|form| record.contains(form.as_str())), "{name}");
        }
    }
}

#[test]
fn a_revoked_keybox_cannot_read_what_is_said_afterwards() {
    let mut world = World::new(&["A1", "B1", "B2"]);
    world.say("A1", "one");
    world.revoke("B2");
    world.settle();
    world.say("A1", "two");
    assert_eq!(world.keys_in_use(), 2);
    assert_eq!(world.texts("B1"), ["one", "two"]);
}

#[test]
fn keys_are_replaced_by_count() {
    let mut world = World::new(&["A1", "B1"]);
    let content = json!({ "algorithm": suite::V1, "rotation_period_msgs": 3 });
    world.state(&user("A1"), "m.room.encryption", "", content);
    world.settle();
    for index in 0..7 {
        world.say(if index % 2 == 0 { "A1" } else { "B1" }, "text");
    }
    assert_eq!(world.keys_in_use(), 3, "both senders' messages count");
}

#[test]
fn keys_are_replaced_by_age() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "one");
    world.now += 6 * 24 * 60 * 60 * 1000;
    world.say("A1", "two");
    assert_eq!(world.keys_in_use(), 1);
    world.now += 2 * 24 * 60 * 60 * 1000;
    world.say("A1", "three");
    assert_eq!(world.keys_in_use(), 2);
    assert_eq!(world.texts("B1"), ["one", "two", "three"]);
}

#[test]
fn the_suite_cannot_be_taken_away() {
    let mut world = World::new(&["A1", "B1"]);
    for algorithm in [json!(null), json!("m.megolm.v1.aes-sha2"), json!("com.trustner.keybox.v0")] {
        world.state(&user("B1"), "m.room.encryption", "", json!({ "algorithm": algorithm }));
    }
    world.settle();
    world.say("A1", "still sealed");
    assert!(world.unread("B1")[0].encrypted);
}

#[test]
fn a_state_event_with_a_key_of_its_own_says_nothing_of_the_room() {
    let mut world = World::new(&["A1", "B1"]);
    let weak = json!({ "algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": 1 });
    world.state(&user("B1"), "m.room.encryption", "other", weak);
    world.state(&user("B1"), "m.room.name", "other", json!({ "name": "not the name" }));
    world.state(&user("B1"), "m.room.history_visibility", "other", json!({ "history_visibility": "joined" }));
    world.settle();
    let weakened = |notice: &Notice| matches!(notice, Notice::SuiteDowngrade { .. });
    assert!(!world.boxes["A1"].notices.iter().any(weakened));
    let room = &world.boxes["A1"].engine.rooms()[ROOM];
    assert_eq!((room.name.as_deref(), room.rotation_period_msgs), (None, 100));
    assert_eq!(room.history_visibility, "shared");
}

#[test]
fn what_the_room_says_of_rotation_is_held_within_bounds() {
    let week = 7 * 24 * 60 * 60 * 1000;
    for (said, msgs, ms) in [
        (json!(0), 1, 60_000),
        (json!(1_000_000_000_000_000_u64), 100_000, 13 * week),
        (json!(u64::MAX), 100_000, 13 * week),
        (json!(-1), 100, week),
        (json!("many"), 100, week),
    ] {
        let mut world = World::new(&["A1", "B1"]);
        let content =
            json!({ "algorithm": suite::V1, "rotation_period_msgs": said, "rotation_period_ms": said });
        world.state(&user("A1"), "m.room.encryption", "", content);
        world.settle();
        let room = &world.boxes["B1"].engine.rooms()[ROOM];
        assert_eq!((room.rotation_period_msgs, room.rotation_period_ms), (msgs, ms), "{said}");
    }
}

#[test]
fn what_was_stored_of_rotation_is_held_within_bounds() {
    let mut world = World::new(&["A1", "B1"]);
    world.alter_stored("A1", &format!("room {ROOM}"), |room| {
        (room["rotation_period_msgs"], room["rotation_period_ms"]) = (json!(u64::MAX), json!(0));
    });
    let room = &world.boxes["A1"].engine.rooms()[ROOM];
    assert_eq!((room.rotation_period_msgs, room.rotation_period_ms), (100_000, 60_000));
    world.say("A1", "one");
    world.say("A1", "two");
    assert_eq!(world.keys_in_use(), 1, "not a key for every message");
}

#[test]
fn an_attempt_to_weaken_the_encryption_changes_no_rotation() {
    let mut world = World::new(&["A1", "B1"]);
    let weak = json!({ "algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": 5_000 });
    world.state(&user("B1"), "m.room.encryption", "", weak);
    world.settle();
    let weakened = |notice: &Notice| matches!(notice, Notice::SuiteDowngrade { .. });
    assert!(world.boxes["A1"].notices.iter().any(weakened));
    assert_eq!(world.boxes["A1"].engine.rooms()[ROOM].rotation_period_msgs, 100);
}
