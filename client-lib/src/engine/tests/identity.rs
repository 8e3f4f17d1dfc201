use serde_json::Value;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::identity::{IdentityKeys, Usage};
use keystead_keybox::key_set::PrivateKeySet;

use super::world::{ROOM, World, address, user};
use crate::engine::{EncryptError, Notice};

fn is_verified(world: &World, at: &str, name: &str) -> bool {
    let known = world.boxes[at].engine.keyboxes(&user(name));
    known.into_iter().find(|known| known.keys.keybox_id == name).unwrap().is_verified()
}

fn verify(world: &mut World, at: &str, name: &str) {
    assert!(world.boxes.get_mut(at).unwrap().engine.set_verified(&address(name), true));
    world.flush(at);
    world.settle();
}

/// Makes the server show a new identity of a user.
fn replace_identity(world: &mut World, user_id: &str) {
    let identity = IdentityKeys::generate(user_id, &mut OpensslEntropy).unwrap();
    let device = PrivateKeySet::generate(user_id, "OTHER", &mut OpensslEntropy).unwrap();
    world.show_identity(user_id, &identity.objects(&device).unwrap());
}

#[test]
fn one_verification_covers_all_of_a_persons_keyboxes() {
    let mut world = World::new(&["A1", "B1"]);
    verify(&mut world, "A1", "B1");
    world.add("B2");
    world.settle();
    assert!(!is_verified(&world, "A1", "B2"), "nobody has vouched for it");
    // B compares the fingerprints of the two KeyBoxes, on the first.
    verify(&mut world, "B1", "B2");
    assert!(is_verified(&world, "A1", "B2"));
    world.restart("A1");
    assert!(world.boxes["A1"].engine.contacts()[0].is_verified());
    world.say("B2", "from the new one");
    assert!(world.unread("A1")[0].verified);
}

#[test]
fn the_private_keys_go_to_verified_keyboxes_of_the_account_and_no_others() {
    let mut world = World::new(&["A1", "B1"]);
    world.add("B2");
    world.settle();
    assert!(world.boxes["B1"].engine.holds_identity() && !world.boxes["B2"].engine.holds_identity());
    verify(&mut world, "B1", "B2");
    assert!(!world.boxes["B2"].engine.holds_identity(), "the second has not verified the first");
    verify(&mut world, "B2", "B1");
    assert!(world.boxes["B2"].engine.holds_identity());
    assert!(world.notices("B2").contains(&Notice::IdentityReceived { keybox: address("B1") }));
    assert!(is_verified(&world, "B2", "B2"));
    let shown = format!("{:?}", world.boxes["B2"].engine);
    assert!(!shown.contains("seeds"), "{shown}");
}

#[test]
fn what_one_keybox_verifies_counts_at_the_others_of_its_user() {
    let mut world = World::new(&["A1", "B1"]);
    world.add("B2");
    world.settle();
    verify(&mut world, "B1", "B2");
    verify(&mut world, "B2", "B1");
    assert!(!is_verified(&world, "B1", "A1"));
    verify(&mut world, "B2", "A1");
    assert!(is_verified(&world, "B1", "A1"));
    // Taken back here, it is no longer verified here.
    world.boxes.get_mut("A1").unwrap().engine.set_verified(&address("B1"), true);
    world.boxes.get_mut("A1").unwrap().engine.set_verified(&address("B1"), false);
    assert!(!is_verified(&world, "A1", "B1"));
}

#[test]
fn what_a_person_has_verified_can_be_taken_back() {
    let mut world = World::new(&["A1", "B1"]);
    verify(&mut world, "A1", "B1");
    world.add("B2");
    world.settle();
    verify(&mut world, "B1", "B2");
    assert!(is_verified(&world, "A1", "B1") && is_verified(&world, "A1", "B2"));
    // By then A's signature on B's identity is at the server.
    world.boxes.get_mut("A1").unwrap().engine.set_verified(&address("B1"), false);
    world.restart("A1");
    world.settle();
    assert!(!is_verified(&world, "A1", "B1") && !is_verified(&world, "A1", "B2"));
    // The other one is verified by itself: it vouches for its owner again, not for what was taken back.
    verify(&mut world, "A1", "B2");
    assert!(!is_verified(&world, "A1", "B1") && is_verified(&world, "A1", "B2"));
    verify(&mut world, "A1", "B1");
    assert!(is_verified(&world, "A1", "B1"));
}

#[test]
fn another_identity_of_a_contact_blocks_sending_until_it_is_accepted() {
    let mut world = World::new(&["A1", "B1"]);
    verify(&mut world, "A1", "B1");
    world.say("A1", "before");
    replace_identity(&mut world, &user("B1"));
    world.round("A1");
    assert!(world.notices("A1").contains(&Notice::IdentityChanged { user_id: user("B1") }));
    let now = world.now;
    let one = world.boxes.get_mut("A1").unwrap();
    let refused = one.engine.prepare(ROOM, now, &mut OpensslEntropy, &mut one.notices).unwrap_err();
    assert!(matches!(&refused, EncryptError::IdentityChanged(user_id) if *user_id == user("B1")));
    assert!(refused.to_string().contains("keybox accept @b:x"));
    assert!(one.engine.contacts()[0].keys_changed());
    let accepted = one.engine.accept(&user("B1"), now);
    assert!(accepted.identity && accepted.keyboxes.is_empty());
    world.flush("A1");
    world.post("A1", "after");
    assert!(!world.boxes["A1"].engine.contacts()[0].keys_changed());
}

#[test]
fn a_server_cannot_vouch_for_a_keybox_of_its_own() {
    let mut world = World::new(&["A1", "B1"]);
    verify(&mut world, "A1", "B1");
    // The server makes an identity of its own, and a KeyBox that this identity has signed.
    replace_identity(&mut world, &user("B1"));
    world.add("B9");
    world.settle();
    assert!(!is_verified(&world, "A1", "B9"));
    assert!(!world.boxes["B1"].engine.contacts().is_empty());
    assert!(world.notices("B1").contains(&Notice::IdentityChanged { user_id: user("B1") }));
    // If it was B's own doing elsewhere after all, the private keys here are of no more use.
    let now = world.now;
    assert!(world.boxes.get_mut("B1").unwrap().engine.accept(&user("B1"), now).identity);
    world.restart("B1");
    assert!(!world.boxes["B1"].engine.holds_identity());
}

#[test]
fn a_server_that_takes_no_identity_is_not_asked_for_ever() {
    let mut world = World::new(&["A1"]);
    world.refuses_identities = true;
    world.add("B1");
    world.membership(&user("B1"), "join");
    world.settle();
    assert!(!world.boxes["B1"].engine.holds_identity());
    world.say("B1", "all the same");
    assert_eq!(world.texts("A1"), ["all the same"]);
}

#[test]
fn the_second_of_two_that_make_an_identity_at_once_takes_the_first() {
    let mut world = World::new(&["A1"]);
    world.add("B1");
    world.add("B2");
    world.settle();
    let holders = ["B1", "B2"].map(|name| world.boxes[name].engine.holds_identity());
    assert_eq!(holders.iter().filter(|holds| **holds).count(), 1);
}

/// What the server shows under the id of a KeyBox and is not its key set: other keys, with a self-signature that does not hold. The signature of the
/// account does not cover that one, so that the server could put a true one in its place.
#[test]
fn nothing_that_is_no_key_set_is_signed() {
    for name in ["A1", "A2"] {
        let mut world = World::new(&["A1", "A2", "B1"]);
        verify(&mut world, "A1", "A2");
        world.settle();
        let genuine = world.shown_keys(name);
        let mut forged: Value = PrivateKeySet::generate(&user(name), name, &mut OpensslEntropy)
            .unwrap()
            .device_keys()
            .unwrap()
            .into();
        let own = format!("ed25519:{name}");
        forged["signatures"][user(name)][&own] = genuine["signatures"][user(name)][&own].clone();
        world.show_keys(name, forged);
        world.settle();
        let shown = world.shown_keys(name);
        let signers: Vec<_> = shown["signatures"][user(name)].as_object().unwrap().keys().cloned().collect();
        assert_eq!(signers, [own], "signed what the server made up");
        let signed = genuine["signatures"][user(name)].as_object().unwrap().len();
        assert_eq!(signed, 2, "the true key set is signed");
    }
}

/// A KeyBox that a person has verified says nothing about its owner any more once it is revoked.
#[test]
fn a_revoked_keybox_vouches_for_no_identity() {
    let mut world = World::new(&["B1"]);
    world.refuses_identities = true;
    world.membership(&user("A1"), "join");
    world.add("A1");
    world.add("A2");
    world.settle();
    let stolen = world.boxes["A2"].keys.clone();
    verify(&mut world, "B1", "A2");
    world.revoke("A2");
    world.settle();
    // The device is shown again, as what it was; and with it the first identity that Bob hears of.
    let made_up = IdentityKeys::generate(&user("A1"), &mut OpensslEntropy).unwrap();
    let objects = made_up.objects(&stolen).unwrap();
    world.show_identity(&user("A1"), &objects);
    let a1 = world.shown_keys("A1");
    let signed = made_up.signed(Usage::SelfSigning, a1.as_object().unwrap()).unwrap();
    let mut shown = a1;
    let signature = signed["signatures"][user("A1")].as_object().unwrap().clone();
    shown["signatures"][user("A1")].as_object_mut().unwrap().extend(signature);
    world.show_keys("A1", shown);
    let gone = stolen.device_keys().unwrap();
    // Not its whole key set, so that the KeyBox stays gone.
    let mut partial = gone;
    partial.remove("algorithms");
    world.show_keys("A2", partial.into());
    world.settle();
    assert!(!is_verified(&world, "B1", "A1"));
}
