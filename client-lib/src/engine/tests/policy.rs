use keystead_keybox::OpensslEntropy;
use keystead_keybox::key_message::WithheldCode;

use super::world::{ROOM, World, address, user};
use crate::engine::{Decision, EncryptError, Notice, Policy};

/// What `name` was told by others, in order.
fn told(world: &World, name: &str) -> Vec<WithheldCode> {
    let code = |notice: &Notice| match notice {
        Notice::KeyWithheld { code, .. } => Some(*code),
        _ => None,
    };
    world.notices(name).iter().filter_map(code).collect()
}

fn set(world: &mut World, name: &str, policy: Policy) {
    world.boxes.get_mut(name).unwrap().engine.set_policy(policy);
    world.restart(name);
}

/// The number of the one approval that waits at `name`.
fn waiting(world: &World, name: &str) -> Option<u64> {
    let waiting: Vec<_> =
        world.boxes[name].engine.approvals().iter().filter(|approval| !approval.waiting.is_empty()).collect();
    assert!(waiting.len() <= 1, "{waiting:?}");
    waiting.first().map(|approval| approval.id)
}

fn approve(world: &mut World, name: &str, id: u64, always: bool) {
    let now = world.now;
    let one = world.boxes.get_mut(name).unwrap();
    assert!(one.engine.approve(id, always, now, &mut OpensslEntropy, &mut one.notices).unwrap());
    world.restart(name);
    world.settle();
}

#[test]
fn only_verified_keyboxes_get_keys_if_the_policy_is_so() {
    let mut world = World::new(&["A1", "B1", "C1"]);
    // B hands on what it has by its own policy.
    set(&mut world, "A1", Policy::VerifiedOnly);
    set(&mut world, "B1", Policy::VerifiedOnly);
    world.boxes.get_mut("A1").unwrap().engine.set_verified(&address("B1"), true);
    world.say("A1", "secret");
    assert_eq!(world.texts("B1"), ["secret"]);
    assert!(world.texts("C1").is_empty());
    assert!(told(&world, "C1").contains(&WithheldCode::Unverified));
    let event = world.events.last().unwrap().clone();
    let why = world.boxes.get_mut("C1").unwrap().engine.decrypt(ROOM, &event).unwrap_err().to_string();
    assert!(why.contains("was not given") && why.contains("verify this KeyBox"), "{why}");
    // C is verified, asks again, and reads.
    world.boxes.get_mut("A1").unwrap().engine.set_verified(&address("C1"), true);
    world.restart("A1");
    world.now += 2 * 60 * 60 * 1000;
    world.settle();
    assert_eq!(world.texts("C1"), ["secret"]);
}

#[test]
fn a_stricter_policy_takes_a_new_key() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "to all");
    set(&mut world, "A1", Policy::VerifiedOnly);
    world.say("A1", "to nobody yet");
    assert_eq!(world.keys_in_use(), 2, "B1 has the first one");
    assert_eq!(world.texts("B1"), ["to all"]);
}

#[test]
fn a_room_can_have_a_policy_of_its_own() {
    let mut world = World::new(&["A1", "B1"]);
    set(&mut world, "A1", Policy::Never);
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    engine.set_room_policy(ROOM, Some(Policy::Automatic));
    assert_eq!((engine.policy(None), engine.policy(Some(ROOM))), (Policy::Never, Policy::Automatic));
    world.restart("A1");
    world.say("A1", "hello");
    assert_eq!(world.texts("B1"), ["hello"]);
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    engine.set_room_policy(ROOM, None);
    assert_eq!(engine.policy(Some(ROOM)), Policy::Never);
}

#[test]
fn with_never_nothing_is_sent_and_nothing_given() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "before");
    set(&mut world, "A1", Policy::Never);
    let now = world.now;
    let one = world.boxes.get_mut("A1").unwrap();
    let refused = one.engine.prepare(ROOM, now, &mut OpensslEntropy, &mut one.notices).unwrap_err();
    assert!(matches!(refused, EncryptError::PolicyNever));
    world.boxes.remove("B1");
    world.add("B2");
    world.settle();
    for _ in 0..3 {
        world.now += 60_000;
        world.settle();
    }
    assert!(world.texts("B2").is_empty());
    assert!(told(&world, "B2").contains(&WithheldCode::Blacklisted));
    // What others send can be read all the same.
    world.say("B2", "after");
    assert_eq!(world.texts("A1"), ["after"]);
}

#[test]
fn with_ask_each_exchange_waits_for_a_person() {
    let mut world = World::new(&["A1", "B1"]);
    set(&mut world, "A1", Policy::Ask);
    world.say("A1", "one");
    assert!(world.texts("B1").is_empty());
    assert!(told(&world, "B1").contains(&WithheldCode::AwaitingApproval));
    let event = world.events.last().unwrap().clone();
    let why = world.boxes.get_mut("B1").unwrap().engine.decrypt(ROOM, &event).unwrap_err().to_string();
    assert!(why.contains("must approve this KeyBox"), "{why}");
    let id = waiting(&world, "A1").unwrap();
    assert!(world.notices("A1").contains(&Notice::ApprovalNeeded {
        id,
        room_id: ROOM.to_owned(),
        keybox: address("B1"),
    }));
    approve(&mut world, "A1", id, false);
    assert_eq!(world.texts("B1"), ["one"]);
    assert_eq!(waiting(&world, "A1"), None);
    world.say("A1", "two");
    assert_eq!(world.texts("B1"), ["two"]);
    assert_eq!(world.keys_in_use(), 1, "what was agreed to holds for the key");

    // Another key is another exchange.
    world.now += 8 * 24 * 60 * 60 * 1000;
    world.say("A1", "three");
    assert!(world.texts("B1").is_empty());
    assert_eq!(waiting(&world, "A1"), Some(id));
    approve(&mut world, "A1", id, true);
    assert_eq!(world.texts("B1"), ["three"]);
    world.now += 8 * 24 * 60 * 60 * 1000;
    world.say("A1", "four");
    assert_eq!(world.texts("B1"), ["four"]);
    assert_eq!(waiting(&world, "A1"), None);
}

#[test]
fn a_refusal_is_told_and_holds_until_it_is_taken_back() {
    let mut world = World::new(&["A1", "B1"]);
    set(&mut world, "A1", Policy::Ask);
    world.say("A1", "one");
    let id = waiting(&world, "A1").unwrap();
    let one = world.boxes.get_mut("A1").unwrap();
    assert!(one.engine.refuse(id, &mut OpensslEntropy, &mut one.notices).unwrap());
    assert!(!one.engine.refuse(id + 1, &mut OpensslEntropy, &mut one.notices).unwrap());
    world.restart("A1");
    for _ in 0..4 {
        world.settle();
        world.now += 2 * 60 * 60 * 1000;
    }
    assert_eq!(told(&world, "B1").last(), Some(&WithheldCode::Unauthorised));
    assert_eq!(waiting(&world, "A1"), None, "who was refused does not come up again");
    assert_eq!(world.boxes["A1"].engine.approvals()[0].decided, Some(Decision::Refused));
    approve(&mut world, "A1", id, true);
    world.now += 2 * 60 * 60 * 1000;
    world.settle();
    assert_eq!(world.texts("B1"), ["one"]);
}

#[test]
fn what_waits_for_approval_is_taken_back_when_another_has_answered() {
    let mut world = World::new(&["A1", "B1", "C1"]);
    world.say("A1", "one");
    set(&mut world, "A1", Policy::Ask);
    // The other KeyBoxes are away: A1 is asked, and puts the question before its owner.
    let (b1, c1) = (world.boxes.remove("B1").unwrap(), world.boxes.remove("C1").unwrap());
    world.add("B2");
    world.settle();
    for _ in 0..3 {
        world.now += 60_000;
        world.settle();
    }
    assert!(waiting(&world, "A1").is_some());
    world.boxes.insert("B1", b1);
    world.boxes.insert("C1", c1);
    for _ in 0..3 {
        world.now += 2 * 60 * 60 * 1000;
        world.settle();
    }
    assert_eq!(world.texts("B2"), ["one"]);
    assert_eq!(waiting(&world, "A1"), None);
}

#[test]
fn who_has_left_gets_nothing_by_a_late_approval() {
    let mut world = World::new(&["A1", "B1"]);
    set(&mut world, "A1", Policy::Ask);
    world.say("A1", "one");
    let id = waiting(&world, "A1").unwrap();
    world.membership(&user("B1"), "leave");
    world.settle();
    approve(&mut world, "A1", id, true);
    assert!(world.texts("B1").is_empty());
    assert_eq!(told(&world, "B1").last(), Some(&WithheldCode::Unauthorised));
}

#[test]
fn questions_are_spread_in_time() {
    let mut world = World::new(&["A1", "B1"]);
    for _ in 0..60 {
        world.now += 8 * 24 * 60 * 60 * 1000;
        world.post("A1", "text");
    }
    world.add("B2");
    let b1 = world.boxes.remove("B1").unwrap();
    world.round("B2");
    let asked = |world: &World| {
        world.notices("B2").iter().filter(|notice| matches!(notice, Notice::KeyAsked { .. })).count()
    };
    assert_eq!(asked(&world), 50);
    world.now += 1_000;
    world.round("B2");
    assert_eq!(asked(&world), 60);
    world.boxes.insert("B1", b1);
    for _ in 0..3 {
        world.now += 60_000;
        world.settle();
    }
    assert_eq!(world.texts("B2").len(), 60);
}
