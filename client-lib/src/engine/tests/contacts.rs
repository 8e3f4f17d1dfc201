use keystead_keybox::OpensslEntropy;
use keystead_keybox::contact_code::{ContactCode, Mismatch};

use super::world::{ROOM, World, address, user};
use crate::engine::{ContactError, EncryptError, Notice, Readiness};

/// What comes of getting ready to send, with what the server has to say asked for.
fn prepare(world: &mut World, name: &'static str) -> Result<Readiness, EncryptError> {
    for _ in 0..3 {
        let now = world.now;
        let one = world.boxes.get_mut(name).unwrap();
        match one.engine.prepare(ROOM, now, &mut OpensslEntropy, &mut one.notices)? {
            Readiness::KeySetsNeeded => world.flush(name),
            ready => return Ok(ready),
        };
    }
    panic!("never ready");
}

#[test]
fn changed_keys_of_a_contact_block_sending_until_they_are_accepted() {
    let mut world = World::new(&["A1", "B1", "C1"]);
    world.say("A1", "before");
    world.boxes.get_mut("A1").unwrap().engine.set_verified(&address("B1"), true);
    world.change_keys("B1");
    world.round("A1");
    assert!(world.notices("A1").contains(&Notice::KeySetChanged { keybox: address("B1") }));
    let error = prepare(&mut world, "A1").unwrap_err();
    let words = error.to_string();
    assert!(matches!(error, EncryptError::KeysChanged { ref user_id, ref keyboxes }
        if *user_id == user("B1") && keyboxes == &["B1"]));
    assert!(words.contains("@b:x") && words.contains("keybox accept @b:x"), "{words}");

    world.restart("A1");
    assert!(prepare(&mut world, "A1").is_err(), "it lasts over a restart");
    let now = world.now;
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    assert!(engine.contacts().iter().any(|contact| contact.user_id == user("B1") && contact.keys_changed()));
    assert!(engine.accept(&user("C1"), now).keyboxes.is_empty());
    let accepted = engine.accept(&user("B1"), now).keyboxes;
    assert_eq!(accepted.len(), 1);
    assert!(!accepted[0].verified, "who was verified was the owner of the old keys");
    world.boxes.get_mut("C1").unwrap().engine.accept(&user("B1"), now);
    world.settle();
    world.say("A1", "after");
    assert_eq!(world.keys_in_use(), 2, "what the old keys hold is not sent with");
    // B1 has lost its old keys, and is the reader of what comes now.
    assert!(world.texts("B1").contains(&"after".to_owned()));
    assert_eq!(world.texts("C1"), ["before", "after"]);
}

#[test]
fn messages_from_before_an_accepted_change_can_still_be_checked() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("B1", "old");
    let event = world.events.last().unwrap().clone();
    world.change_keys("B1");
    world.round("A1");
    let now = world.now;
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    engine.accept(&user("B1"), now);
    let message = engine.decrypt(ROOM, &event).unwrap();
    assert_eq!(message.body(), Some("old"));
    assert!(!message.verified);
}

#[test]
fn a_server_that_takes_the_change_back_does_not_lift_the_block() {
    let mut world = World::new(&["A1", "B1"]);
    world.say("A1", "before");
    let genuine = world.shown_keys("B1");
    world.forge_keys("B1");
    world.round("A1");
    world.show_keys("B1", genuine);
    world.round("A1");
    assert!(matches!(prepare(&mut world, "A1"), Err(EncryptError::KeysChanged { .. })));
    let now = world.now;
    let before = world.boxes["A1"].engine.keyboxes(&user("B1"))[0].keys.clone();
    let accepted = world.boxes.get_mut("A1").unwrap().engine.accept(&user("B1"), now).keyboxes;
    assert_eq!(accepted[0].keys, before);
    world.say("A1", "after");
    assert_eq!(world.texts("B1"), ["before", "after"]);
}

#[test]
fn a_keybox_that_was_gone_does_not_count_as_verified_when_it_is_shown_again() {
    let mut world = World::new(&["A1", "B1", "B2"]);
    let verify = |world: &mut World| {
        assert!(world.boxes.get_mut("A1").unwrap().engine.set_verified(&address("B2"), true));
    };
    let of_b2 = |world: &World| {
        let keyboxes = world.boxes["A1"].engine.keyboxes(&user("B2"));
        keyboxes.into_iter().find(|known| known.keys.keybox_id == "B2").unwrap().clone()
    };
    verify(&mut world);
    world.round("A1");
    assert!(of_b2(&world).is_verified());
    let (keys, code) = (world.shown_keys("B2"), world.boxes["B2"].engine.contact_code());
    world.revoke("B2");
    world.round("A1");
    assert!(of_b2(&world).gone);
    world.show_keys("B2", keys);
    world.round("A1");
    assert!(world.notices("A1").contains(&Notice::KeyBoxReturned { keybox: address("B2") }));
    world.restart("A1");
    let known = of_b2(&world);
    assert!(!known.gone && known.returned && !known.is_verified());
    // A person who makes sure of it again may say so.
    world.boxes.get_mut("A1").unwrap().engine.verify_contact(&code).unwrap();
    assert!(of_b2(&world).is_verified() && !of_b2(&world).returned);
}

#[test]
fn a_contact_code_verifies_the_keys_that_it_was_made_for_and_no_others() {
    let mut world = World::new(&["A1", "B1"]);
    let code = world.boxes["B1"].engine.contact_code();
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    for change in
        [|code: &mut ContactCode| code.ed25519[0] ^= 1, |code: &mut ContactCode| code.key_set_hash[0] ^= 1]
    {
        let mut tampered = code.clone();
        change(&mut tampered);
        let error = engine.verify_contact(&tampered).unwrap_err();
        assert!(matches!(error, ContactError::Mismatch { source, .. } if source != Mismatch::Address));
    }
    let mut stranger = code.clone();
    stranger.keybox_id = "B9".to_owned();
    assert!(matches!(engine.verify_contact(&stranger), Err(ContactError::Unknown(_))));
    let own = engine.contact_code();
    assert!(matches!(engine.verify_contact(&own), Err(ContactError::Own)));
    assert!(!engine.contacts()[0].is_verified());
    assert_eq!(engine.verify_contact(&code).unwrap(), address("B1"));
    world.restart("A1");
    assert!(world.boxes["A1"].engine.contacts()[0].is_verified());

    world.forge_keys("B1");
    world.round("A1");
    let engine = &mut world.boxes.get_mut("A1").unwrap().engine;
    assert!(matches!(engine.verify_contact(&code), Err(ContactError::Changed(_))));
    assert!(!engine.contacts()[0].is_verified());
}
