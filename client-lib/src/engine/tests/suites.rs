//! Rooms of either suite, and rooms that go from one to the other.

use serde_json::json;

use keystead_keybox::suite;

use super::world::{World, user};
use crate::engine::{KeyBoxAddress, Notice};

fn upgrade(world: &mut World) {
    world.state(&user("A1"), "m.room.encryption", "", json!({ "algorithm": suite::V2 }));
    world.settle();
}

/// The suites of the messages in the room, in order.
fn algorithms(world: &World) -> Vec<&str> {
    let messages = world.events.iter().filter(|event| event.event_type == "m.room.encrypted");
    messages.map(|event| event.content["algorithm"].as_str().unwrap()).collect()
}

fn left_out(world: &World, by: &str) -> Vec<KeyBoxAddress> {
    let left_out = world.notices(by).iter().filter_map(|notice| match notice {
        Notice::SuiteNotSpoken { keybox, .. } => Some(keybox.clone()),
        _ => None,
    });
    left_out.collect()
}

#[test]
fn a_room_of_suite_v2_works_as_one_of_v1() {
    let mut world = World::with(suite::V2, &["A1", "B1", "B2"], &[]);
    world.say("A1", "one");
    world.say("B1", "two");
    assert_eq!(algorithms(&world), [suite::V2, suite::V2]);
    assert_eq!(world.keys_in_use(), 1, "B's KeyBox sends with the key that A's made");
    assert_eq!(world.texts("B1"), ["one"]);
    assert_eq!(world.texts("B2"), ["one", "two"]);
}

#[test]
fn messages_before_and_after_an_upgrade_are_readable() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "before");
    upgrade(&mut world);
    world.say("A1", "after");
    world.say("B1", "after, too");
    assert_eq!(algorithms(&world), [suite::V1, suite::V2, suite::V2]);
    assert_eq!(world.keys_in_use(), 2, "a resource key serves one suite");
    assert_eq!(world.texts("B1"), ["before", "after"]);
    // One who comes later reads both, too.
    world.membership(&user("C1"), "join");
    world.add("C1");
    world.settle();
    world.now += 60_000;
    world.settle();
    assert_eq!(world.texts("C1"), ["before", "after", "after, too"]);
    let upgraded =
        |notice: &Notice| matches!(notice, Notice::SuiteUpgraded { suite, .. } if suite == suite::V2);
    assert_eq!(world.notices("B1").iter().filter(|notice| upgraded(notice)).count(), 1);
    assert!(!world.notices("C1").iter().any(|notice| matches!(notice, Notice::SuiteDowngrade { .. })));
}

#[test]
fn a_room_does_not_go_back_from_v2() {
    let mut world = World::new(&["A1", "B1"]);
    upgrade(&mut world);
    world.state(&user("B1"), "m.room.encryption", "", json!({ "algorithm": suite::V1 }));
    world.settle();
    world.say("A1", "text");
    assert_eq!(algorithms(&world), [suite::V2]);
    assert!(world.notices("A1").iter().any(|notice| matches!(notice, Notice::SuiteDowngrade { .. })));
}

#[test]
fn who_does_not_speak_the_suite_is_named_and_left_out() {
    let mut world = World::with(suite::V1, &["A1", "B1", "C1"], &["C1"]);
    world.say("A1", "before");
    assert_eq!(left_out(&world, "A1"), []);
    assert_eq!(
        world.boxes["A1"].engine.not_speaking(super::world::ROOM, suite::V2),
        [KeyBoxAddress::new(&user("C1"), "C1")]
    );
    upgrade(&mut world);
    let given = |world: &World| {
        let given =
            |notice: &&Notice| matches!(notice, Notice::KeyGiven { keybox, .. } if keybox.keybox_id == "C1");
        world.notices("A1").iter().filter(given).count()
    };
    let before = given(&world);
    world.say("A1", "after");
    assert_eq!(left_out(&world, "A1"), [KeyBoxAddress::new(&user("C1"), "C1")]);
    assert_eq!(given(&world), before, "no key goes to a KeyBox that could not open it");
    assert_eq!(world.texts("B1"), ["before", "after"]);
    // With new software it publishes the suite, is given the key, and reads on.
    world.update_software("C1");
    world.settle();
    world.say("A1", "welcome back");
    world.now += 60_000;
    world.settle();
    let texts = world.texts("C1");
    assert!(texts.contains(&"welcome back".to_owned()) && texts.contains(&"before".to_owned()), "{texts:?}");
    assert!(!world.notices("A1").iter().any(|notice| matches!(notice, Notice::KeySetChanged { .. })));
}
