use serde_json::json;

use keystead_keybox::suite;

use super::world::{World, user};

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
