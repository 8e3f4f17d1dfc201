use std::collections::BTreeSet;

use serde_json::{Value, json};

use keystead_keybox::OpensslEntropy;
use keystead_keybox::closing::{Action, Content, EVENT_TYPE, SignedStep, Step};
use keystead_keybox::key_message::WithheldCode;

use super::world::{ROOM, World, address, user};
use crate::engine::{ClosingFailure, EncryptError, KeyBoxAddress, Notice};

const HOUR_MS: u64 = 60 * 60 * 1000;

/// What the server holds as the closing of the room.
fn shown(world: &World) -> Option<Value> {
    let mut closings = world.events.iter().filter(|event| event.event_type == EVENT_TYPE);
    closings.next_back().map(|event| event.content.clone())
}

/// Makes the server show a content as the closing event, sent by the owner of `name`. Returns the event's id.
fn show(world: &mut World, name: &str, content: Value) -> String {
    world.state(&user(name), EVENT_TYPE, "", content);
    world.events.last().unwrap().event_id.clone()
}

fn close(world: &mut World, name: &str) -> String {
    let moderators = BTreeSet::from([user(name)]);
    let before = shown(world);
    let step = world.boxes[name].engine.close(ROOM, before.as_ref(), moderators, None, world.now).unwrap();
    show(world, name, step.content)
}

fn open(world: &mut World, name: &str) -> String {
    let before = shown(world);
    let step = world.boxes[name].engine.open_room(ROOM, before.as_ref(), None, world.now).unwrap();
    show(world, name, step.content)
}

fn approve(world: &mut World, name: &str, keybox: &KeyBoxAddress) -> String {
    let before = shown(world);
    let step = world.boxes[name].engine.approve_keybox(ROOM, before.as_ref(), keybox, world.now).unwrap();
    show(world, name, step.content)
}

fn closed(names: &[&'static str]) -> World {
    let mut world = World::new(names);
    world.say("A1", "while it was open");
    close(&mut world, "A1");
    world.settle();
    world
}

/// Lets all questions be asked and answered.
fn wait(world: &mut World) {
    for _ in 0..3 {
        world.now += 2 * HOUR_MS;
        world.settle();
    }
}

fn was_told(world: &World, name: &str, expected: WithheldCode) -> bool {
    let told = |notice: &Notice| matches!(notice, Notice::KeyWithheld { code, .. } if *code == expected);
    world.notices(name).iter().any(told)
}

fn refused_steps(world: &World, name: &str) -> usize {
    world.notices(name).iter().filter(|notice| matches!(notice, Notice::ClosingRefused { .. })).count()
}

fn prepared(world: &mut World, name: &str) -> Result<(), EncryptError> {
    let now = world.now;
    let one = world.boxes.get_mut(name).unwrap();
    one.engine.prepare(ROOM, now, &mut OpensslEntropy, &mut one.notices).map(drop)
}

#[test]
fn a_new_keybox_gets_no_key_of_a_closed_room_until_it_is_approved() {
    let mut world = closed(&["A1", "B1", "C1"]);
    world.add("B2");
    wait(&mut world);
    world.say("A1", "closed, by A");
    world.say("B1", "closed, by B");
    wait(&mut world);
    assert_eq!(world.texts("C1"), ["while it was open", "closed, by A", "closed, by B"]);
    assert!(world.texts("B2").is_empty(), "not from another of its owner either");
    assert!(was_told(&world, "B2", WithheldCode::RoomClosed));
    assert!(matches!(prepared(&mut world, "B2"), Err(EncryptError::NotApproved)));
    let outside = Notice::KeyBoxOutside { room_id: ROOM.to_owned(), keybox: address("B2") };
    assert!(world.notices("A1").contains(&outside));
    assert!(world.notices("B2").contains(&outside), "its own user is told as well");
    let sealed: Vec<_> =
        world.events.iter().filter(|event| event.event_type == "m.room.encrypted").cloned().collect();
    for event in &sealed {
        let why = world.boxes.get_mut("B2").unwrap().engine.decrypt(ROOM, event).unwrap_err();
        assert!(why.is_temporary() && why.to_string().contains("the room is closed"), "{why}");
    }
    assert_eq!(world.keys_in_use(), 2, "one while it was open, one since");

    approve(&mut world, "A1", &address("B2"));
    world.settle();
    world.say("A1", "with B2");
    wait(&mut world);
    let read = world.texts("B2");
    for text in ["while it was open", "closed, by A", "closed, by B", "with B2"] {
        assert!(read.contains(&text.to_owned()), "{read:?}");
    }
    world.say("B2", "thank you");
    assert!(world.texts("C1").contains(&"thank you".to_owned()));
}

#[test]
fn a_key_from_outside_is_not_taken_into_a_closed_room() {
    let mut world = closed(&["A1", "B1"]);
    world.add("B2");
    wait(&mut world);
    // B2 forgets the closing: it makes a key and gives it to all, and the server of this test delivers it.
    world.alter_stored("B2", &format!("room {ROOM}"), |room| {
        room["closing"] =
            json!({ "now": null, "offered": null, "heard": null, "departed": [], "revoked": [] });
    });
    world.post("B2", "from outside");
    assert!(!world.boxes["A1"].queue.is_empty(), "the key is on its way");
    wait(&mut world);
    let others =
        |world: &mut World| ["A1", "B1"].map(|name| world.texts(name).contains(&"from outside".to_owned()));
    assert_eq!(others(&mut world), [false, false]);
    world.say("A1", "in the closed room");
    assert!(!world.texts("B2").contains(&"in the closed room".to_owned()));
    // A moderator lets it in: what it said before can be read now.
    approve(&mut world, "A1", &address("B2"));
    wait(&mut world);
    assert_eq!(others(&mut world), [true, true]);
}

#[test]
fn an_opened_room_is_as_any_other() {
    let mut world = closed(&["A1", "B1"]);
    world.membership(&user("B1"), "leave");
    world.settle();
    open(&mut world, "A1");
    world.membership(&user("B1"), "join");
    world.add("B2");
    world.settle();
    world.say("A1", "open again");
    assert!(world.texts("B2").contains(&"open again".to_owned()));
    assert!(world.texts("B1").contains(&"open again".to_owned()));
    // And closed again, with who is in it now.
    close(&mut world, "B2");
    world.settle();
    world.say("B2", "closed by B");
    assert!(world.texts("A1").contains(&"closed by B".to_owned()));
    assert_eq!(world.boxes["A1"].engine.rooms()[ROOM].closing().unwrap().last.generation, 3);
}

#[test]
fn a_server_that_alters_the_closing_is_not_believed() {
    let mut world = closed(&["A1", "B1"]);
    let good = shown(&world).unwrap();
    world.add("B2");
    let eve = world.boxes["B2"].engine.public_keys().hash();
    let mut altered = Vec::new();
    let mut alter = |change: &dyn Fn(&mut Value)| {
        let mut content = good.clone();
        change(&mut content);
        altered.push(content);
    };
    let name = keystead_keybox::closing::key_set_id(&eve);
    alter(&|content| *content = json!({}));
    alter(&|content| *content = json!({ "closed": false }));
    alter(&|content| content["closed"] = json!(false));
    alter(&|content| {
        let step = &mut content["steps"][0];
        step["action"] = json!("open");
        step.as_object_mut().unwrap().remove("keyboxes");
        step.as_object_mut().unwrap().remove("moderators");
        content["closed"] = json!(false);
    });
    for action in ["close", "approve", "open"] {
        alter(&|content| {
            let mut step = content["steps"][0].clone();
            step["generation"] = json!(2);
            step["prev"] = world.boxes["A1"].engine.rooms()[ROOM].closing().unwrap().last.hash.clone().into();
            step["action"] = json!(action);
            step["keyboxes"] = json!([name]);
            if action != "close" {
                step.as_object_mut().unwrap().remove("moderators");
            }
            if action == "open" {
                step.as_object_mut().unwrap().remove("keyboxes");
            }
            content["closed"] = json!(action != "open");
            content["steps"].as_array_mut().unwrap().push(step);
        });
    }
    for content in altered {
        show(&mut world, "A1", content);
        world.settle();
        // A redaction leaves nothing of it.
        show(&mut world, "A1", json!({}));
        world.settle();
    }
    assert_eq!(refused_steps(&world, "B1"), 3, "those of the right form");
    world.say("A1", "still closed");
    wait(&mut world);
    assert!(world.texts("B2").is_empty());
    assert!(world.texts("B1").contains(&"still closed".to_owned()));
}

#[test]
fn who_comes_or_comes_back_gets_nothing() {
    let mut world = closed(&["A1", "B1", "C1"]);
    // The server lets D in, lets C leave and come back, and brings back a KeyBox that was revoked.
    world.add("D1");
    world.membership(&user("D1"), "join");
    world.membership(&user("C1"), "leave");
    world.settle();
    world.membership(&user("C1"), "join");
    let keys = world.shown_keys("B1");
    world.show_keys("B1", Value::Null);
    world.settle();
    world.show_keys("B1", keys);
    world.settle();
    world.say("A1", "among those who stayed");
    wait(&mut world);
    for name in ["B1", "C1", "D1"] {
        assert!(!world.texts(name).contains(&"among those who stayed".to_owned()), "{name}");
    }
    // Not even a moderator lets them in before the room was opened.
    let before = shown(&world);
    for name in ["B1", "C1"] {
        let engine = &world.boxes["A1"].engine;
        let refused = engine.approve_keybox(ROOM, before.as_ref(), &address(name), world.now);
        assert!(matches!(refused, Err(ClosingFailure::NotOfAMember(_))), "{name}");
    }
}

#[test]
fn a_new_keybox_of_a_moderator_is_no_moderator() {
    let mut world = closed(&["A1", "B1"]);
    world.add("A2");
    wait(&mut world);
    let before = shown(&world);
    let own = world.boxes["A2"].engine.open_room(ROOM, before.as_ref(), None, world.now);
    assert!(matches!(own, Err(ClosingFailure::Encrypt(EncryptError::NotApproved))));
    // It signs all the same, and the server shows that.
    let step = Step {
        action: Action::Open,
        generation: 2,
        prev: world.boxes["B1"].engine.rooms()[ROOM].closing().unwrap().last.hash.clone(),
        user_id: user("A2"),
        keybox_id: "A2".to_owned(),
        at: world.now,
        keyboxes: Vec::new(),
        moderators: Vec::new(),
        limit: None,
    };
    let step = SignedStep::sign(ROOM, &step, &world.boxes["A2"].keys).unwrap();
    let content = Content::with(Some(&Content::read(ROOM, &before.unwrap()).unwrap()), step).unwrap();
    show(&mut world, "A2", content.to_json());
    world.settle();
    assert_eq!(refused_steps(&world, "B1"), 1);
    assert!(world.boxes["B1"].engine.rooms()[ROOM].is_closed());
}

#[test]
fn bystanders_neither_open_nor_approve() {
    let mut world = closed(&["A1", "B1"]);
    world.add("B2");
    wait(&mut world);
    let before = shown(&world);
    let engine = &world.boxes["B1"].engine;
    for taken in [
        engine.open_room(ROOM, before.as_ref(), None, world.now),
        engine.approve_keybox(ROOM, before.as_ref(), &address("B2"), world.now),
    ] {
        assert!(matches!(taken, Err(ClosingFailure::Step(_))), "{taken:?}");
    }
    let nobody = engine.close(ROOM, before.as_ref(), BTreeSet::new(), None, world.now);
    assert!(matches!(nobody, Err(ClosingFailure::AsItIs(true))));
}

#[test]
fn a_closing_that_the_server_hides_comes_with_the_next_key() {
    let mut world = World::new(&["A1", "B1", "C1"]);
    world.say("A1", "open");
    let event_id = close(&mut world, "A1");
    world.hidden.push(("B1", event_id.clone()));
    world.add("C2");
    world.settle();
    world.say("A1", "closed");
    wait(&mut world);
    assert!(world.texts("B1").contains(&"closed".to_owned()), "what it is given it reads");
    let refused = prepared(&mut world, "B1");
    assert!(matches!(&refused, Err(EncryptError::ClosingHidden(by)) if *by == address("A1")), "{refused:?}");
    assert!(!world.texts("C2").contains(&"closed".to_owned()), "nor does it hand on anything");

    // The server shows it after all.
    world.hidden.clear();
    let content = shown(&world).unwrap();
    show(&mut world, "A1", content);
    world.settle();
    prepared(&mut world, "B1").unwrap();
    world.say("B1", "heard");
    assert!(world.texts("C1").contains(&"heard".to_owned()));
    assert!(world.texts("C2").is_empty());
}

#[test]
fn steps_that_were_missed_are_followed_all_the_same() {
    let mut world = closed(&["A1", "B1"]);
    world.add("A2");
    wait(&mut world);
    let hide = |world: &mut World, event_id: String| world.hidden.push(("B1", event_id));
    let second = approve(&mut world, "A1", &address("A2"));
    hide(&mut world, second);
    world.settle();
    // Signed by the KeyBox that B1 has not seen the approval of.
    let third = open(&mut world, "A2");
    hide(&mut world, third);
    world.settle();
    world.add("B2");
    world.settle();
    assert!(world.boxes["B1"].engine.rooms()[ROOM].is_closed());
    close(&mut world, "A2");
    world.settle();
    let of_b = world.boxes["B1"].engine.rooms()[ROOM].closing().unwrap();
    assert_eq!((of_b.last.generation, of_b.keyboxes.len()), (4, 4));
    world.say("A2", "to all four");
    for name in ["A1", "B1", "B2"] {
        assert!(world.texts(name).contains(&"to all four".to_owned()), "{name}");
    }
    // An older state that the server shows again changes nothing.
    let old = world.events.iter().find(|event| event.event_type == EVENT_TYPE).unwrap().content.clone();
    show(&mut world, "A1", old);
    world.settle();
    assert_eq!(world.boxes["B1"].engine.rooms()[ROOM].closing().unwrap().last.generation, 4);
}

#[test]
fn a_limit_stops_messages_to_more_people() {
    let mut world = World::new(&["A1", "B1"]);
    let step = world.boxes["A1"].engine.open_room(ROOM, None, Some(2), world.now).unwrap();
    show(&mut world, "A1", step.content);
    world.settle();
    prepared(&mut world, "B1").unwrap();
    world.membership(&user("C1"), "join");
    world.settle();
    for name in ["A1", "B1"] {
        let refused = prepared(&mut world, name);
        assert!(matches!(refused, Err(EncryptError::TooManyMembers { limit: 2, members: 3 })), "{name}");
    }
}

#[test]
fn nothing_is_built_on_what_the_server_alone_says() {
    let mut world = closed(&["A1", "B1"]);
    let engine = &world.boxes["A1"].engine;
    let forgotten = engine.open_room(ROOM, None, None, world.now);
    assert!(matches!(forgotten, Err(ClosingFailure::NotWhatIsKnown)));
    // Closing begins a new key; what others were given before is not sent with.
    world.say("B1", "one");
    world.say("A1", "two");
    assert_eq!(world.keys_in_use(), 2);
}
