use serde_json::json;

use super::*;
use crate::OpensslEntropy;
use crate::canonical_json::MAX_INTEGER;
use crate::key_set::PrivateKeySet;

const ROOM: &str = "!r:x";

fn keys(user_id: &str) -> PrivateKeySet {
    PrivateKeySet::generate(user_id, "BOX", &mut OpensslEntropy).unwrap()
}

fn name(byte: u8) -> String {
    key_set_id(&[byte; 32])
}

fn step(before: Option<&Content>, action: Action, keys: &PrivateKeySet, names: &[String]) -> SignedStep {
    let last = before.map(|before| Closing::of(before).unwrap().last);
    let closes = action == Action::Close;
    let step = Step {
        action,
        generation: last.as_ref().map_or(1, |last| last.generation + 1),
        prev: last.map(|last| last.hash).unwrap_or_default(),
        user_id: keys.user_id().to_owned(),
        keybox_id: keys.keybox_id().to_owned(),
        at: 7,
        keyboxes: names.to_vec(),
        moderators: if closes { vec![keys.user_id().to_owned()] } else { Vec::new() },
        limit: None,
    };
    SignedStep::sign(ROOM, &step, keys).unwrap()
}

fn closed(keys: &PrivateKeySet) -> Content {
    Content::with(None, step(None, Action::Close, keys, &[name(1), name(2)])).unwrap()
}

#[test]
fn steps_lead_from_open_to_closed_and_back() {
    let alice = keys("@a:x");
    let first = closed(&alice);
    let state = Closing::of(&first).unwrap();
    assert!(state.closed && state.admits(&name(1)) && !state.admits(&name(3)));

    let second =
        Content::with(Some(&first), step(Some(&first), Action::Approve, &alice, &[name(3)])).unwrap();
    assert!(Closing::of(&second).unwrap().admits(&name(3)));
    let third = Content::with(Some(&second), step(Some(&second), Action::Open, &alice, &[])).unwrap();
    let state = Closing::of(&third).unwrap();
    assert!(!state.closed && state.admits(&name(9)));
    assert_eq!(state.last.generation, 3);

    let fourth = Content::with(Some(&third), step(Some(&third), Action::Close, &alice, &[name(9)])).unwrap();
    let actions: Vec<_> = fourth.steps().iter().map(|step| step.step().action).collect();
    assert_eq!(actions, [Action::Approve, Action::Open, Action::Close], "older closings are left out");
    for content in [first, second, third, fourth] {
        assert_eq!(Content::read(ROOM, &content.to_json()).unwrap(), content);
    }
}

#[test]
fn only_a_moderator_changes_a_closed_room() {
    let (alice, bob) = (keys("@a:x"), keys("@b:x"));
    let first = closed(&alice);
    for (action, names) in
        [(Action::Approve, vec![name(3)]), (Action::Open, Vec::new()), (Action::Close, vec![name(3)])]
    {
        let refused = Content::with(Some(&first), step(Some(&first), action, &bob, &names)).unwrap_err();
        assert!(matches!(refused, ClosingError::NotAModerator(user) if user == "@b:x"), "{action:?}");
    }
    let opened = Content::with(Some(&first), step(Some(&first), Action::Open, &alice, &[])).unwrap();
    let approve = step(Some(&opened), Action::Approve, &alice, &[name(3)]);
    assert!(matches!(Content::with(Some(&opened), approve), Err(ClosingError::NotClosed)));
    Content::with(Some(&opened), step(Some(&opened), Action::Close, &bob, &[name(3)])).unwrap();
}

#[test]
fn a_step_follows_one_step_only() {
    let alice = keys("@a:x");
    let first = closed(&alice);
    let approve = step(Some(&first), Action::Approve, &alice, &[name(3)]);
    let open = step(Some(&first), Action::Open, &alice, &[]);
    let second = Content::with(Some(&first), approve.clone()).unwrap();
    for late in [approve.clone(), open.clone(), step(None, Action::Open, &alice, &[])] {
        assert!(matches!(Content::with(Some(&second), late), Err(ClosingError::DoesNotFollow)));
    }
    let right = step(Some(&second), Action::Open, &alice, &[]).step().clone();
    for wrong in
        [Step { generation: 4, ..right.clone() }, Step { prev: second.steps()[0].mark().hash, ..right }]
    {
        let wrong = SignedStep::sign(ROOM, &wrong, &alice).unwrap();
        assert!(matches!(Content::with(Some(&second), wrong), Err(ClosingError::DoesNotFollow)));
    }
    // What was written for another step, or leaves one out, cannot be put together.
    let mut json = second.to_json();
    json["steps"] = json!([first.steps()[0].json(), open.json(), approve.json()]);
    json["closed"] = json!(true);
    assert!(Content::read(ROOM, &json).is_err());
    assert_eq!(second.step_after(&first), Some(&approve));
    assert!(second.step_after(&second).is_none() && second.step_after(&closed(&keys("@b:x"))).is_none());
}

#[test]
fn a_signature_holds_for_one_step_of_one_room() {
    let (alice, other) = (keys("@a:x"), keys("@a:x"));
    let first = closed(&alice);
    let public = alice.public().unwrap();
    let mark = first.steps()[0].mark();
    assert!(mark.is_signed_by(ROOM, &public).unwrap());
    assert!(!mark.is_signed_by("!s:x", &public).unwrap());
    assert!(!mark.is_signed_by(ROOM, &other.public().unwrap()).unwrap());
    for (user_id, keybox_id) in [("@b:x", "BOX"), ("@a:x", "BOX2")] {
        let (user_id, keybox_id) = (user_id.to_owned(), keybox_id.to_owned());
        let renamed = crate::key_set::PublicKeySet { user_id, keybox_id, ..public.clone() };
        assert!(!mark.is_signed_by(ROOM, &renamed).unwrap(), "the same keys under another id");
    }
    for (member, value) in [
        ("keyboxes", json!([name(1), name(2), name(3)])),
        ("moderators", json!(["@a:x", "@e:x"])),
        ("at", json!(8)),
        ("more", json!(1)),
    ] {
        let mut json = first.to_json();
        json["steps"][0][member] = value;
        let altered = Content::read(ROOM, &json).unwrap();
        assert!(!altered.steps()[0].mark().is_signed_by(ROOM, &public).unwrap(), "{member}");
    }
}

#[test]
fn what_has_not_the_form_is_refused() {
    let alice = keys("@a:x");
    let good = closed(&alice).to_json();
    let mut bad =
        vec![json!({}), json!({ "closed": true }), json!({ "closed": true, "by": "@a:x", "steps": [] })];
    let mut alter = |pointer: &str, value: Value| {
        let mut content = good.clone();
        *content.pointer_mut(pointer).unwrap() = value;
        bad.push(content);
    };
    alter("/closed", json!(false));
    alter("/by", json!("@b:x"));
    alter("/steps/0/action", json!("approve"));
    alter("/steps/0/action", json!("burn"));
    alter("/steps/0/generation", json!(2));
    alter("/steps/0/generation", json!(0));
    alter("/steps/0/prev", json!("x"));
    alter("/steps/0/keyboxes", json!([]));
    alter("/steps/0/keyboxes", json!(["x"]));
    alter("/steps/0/keyboxes", json!([name(2), name(1)]));
    alter("/steps/0/keyboxes", json!([name(1), name(1)]));
    alter("/steps/0/moderators", json!(["@b:x"]));
    alter("/steps/0/user_id", json!(""));
    alter("/steps/0/at", json!(1.5));
    alter("/steps/0/signature", json!("?"));
    for content in bad {
        assert!(Content::read(ROOM, &content).is_err(), "{content}");
    }
    let many: Vec<_> = (0..=MAX_KEYBOXES).map(|n| key_set_id(&crate::sha256(&n.to_be_bytes()))).collect();
    let mut content = good.clone();
    content["steps"][0]["keyboxes"] = {
        let sorted: BTreeSet<_> = many.into_iter().collect();
        json!(sorted)
    };
    assert!(matches!(Content::read(ROOM, &content), Err(ClosingError::TooManyKeyBoxes)));
    let mut limited = good;
    limited["limit"] = json!(3);
    assert!(Content::read(ROOM, &limited).is_err(), "what no step says");
    limited["steps"][0]["limit"] = json!(3);
    assert_eq!(Closing::of(&Content::read(ROOM, &limited).unwrap()).unwrap().limit, Some(3));
}

#[test]
fn a_thousand_keyboxes_fit_into_an_event() {
    let alice = keys("@a:x");
    let sorted: BTreeSet<_> =
        (0..MAX_KEYBOXES).map(|n| key_set_id(&crate::sha256(&n.to_be_bytes()))).collect();
    let names: Vec<_> = sorted.into_iter().collect();
    let content = Content::with(None, step(None, Action::Close, &alice, &names)).unwrap();
    assert!(content.to_json().to_string().len() < 50_000);
}

#[test]
fn approvals_fill_a_closed_room_and_no_more() {
    let alice = keys("@a:x");
    let hashes = (0..=MAX_KEYBOXES).map(|n| key_set_id(&crate::sha256(&n.to_be_bytes())));
    let names: Vec<_> = hashes.collect::<BTreeSet<_>>().into_iter().collect();
    let (most, last_two) = names.split_at(MAX_KEYBOXES - 1);
    let closed = Content::with(None, step(None, Action::Close, &alice, most)).unwrap();
    let approve = |before: &Content, names: &[String]| {
        Content::with(Some(before), step(Some(before), Action::Approve, &alice, names))
    };
    let full = approve(&closed, &last_two[..1]).unwrap();
    assert!(Closing::of(&full).unwrap().admits(&last_two[0]));
    assert!(matches!(approve(&full, &last_two[1..]), Err(ClosingError::TooManyKeyBoxes)));
    assert!(matches!(approve(&closed, last_two), Err(ClosingError::TooManyKeyBoxes)));
    approve(&full, &last_two[..1]).expect("one that is there already is none more");
}

#[test]
fn nobody_signs_in_the_name_of_another_keybox() {
    let alice = keys("@a:x");
    let step = closed(&alice).steps()[0].step().clone();
    let in_the_name = |user_id: &str, keybox_id: &str| Step {
        user_id: user_id.to_owned(),
        keybox_id: keybox_id.to_owned(),
        moderators: vec![user_id.to_owned()],
        ..step.clone()
    };
    SignedStep::sign(ROOM, &in_the_name("@a:x", "BOX"), &alice).unwrap();
    for other in [in_the_name("@b:x", "BOX"), in_the_name("@a:x", "BOX2")] {
        assert!(matches!(SignedStep::sign(ROOM, &other, &alice), Err(ClosingError::Malformed(_))));
    }
}

#[test]
fn the_form_of_a_step_holds_at_its_limits() {
    let alice = keys("@a:x");
    let close = closed(&alice).steps()[0].step().clone();
    let sign = |step: &Step, keys: &PrivateKeySet| SignedStep::sign(ROOM, step, keys);
    let users = |count: usize| -> Vec<String> {
        let others = (1..count).map(|n| format!("@b{n:03}:x"));
        std::iter::once("@a:x".to_owned()).chain(others).collect()
    };
    let last = Step { generation: MAX_INTEGER, prev: "x".to_owned(), ..close.clone() };
    let long = format!("@c{}:x", "c".repeat(251));
    let long_moderator = |id: String| Step { moderators: vec!["@a:x".to_owned(), id], ..close.clone() };
    for right in [
        last.clone(),
        Step { moderators: users(MAX_MODERATORS), ..close.clone() },
        Step { limit: Some(1), ..close.clone() },
        long_moderator(long.clone()),
    ] {
        let signed = sign(&right, &alice).unwrap();
        assert_eq!(SignedStep::read(ROOM, signed.json()).unwrap(), signed);
    }
    let approve = Step {
        action: Action::Approve,
        generation: 2,
        prev: "x".to_owned(),
        moderators: Vec::new(),
        ..close.clone()
    };
    let open = Step { action: Action::Open, keyboxes: Vec::new(), ..approve.clone() };
    sign(&approve, &alice).unwrap();
    sign(&open, &alice).unwrap();
    for wrong in [
        Step { generation: 0, prev: "x".to_owned(), ..close.clone() },
        Step { generation: MAX_INTEGER + 1, ..last },
        Step { moderators: users(MAX_MODERATORS + 1), ..close.clone() },
        Step { limit: Some(0), ..close.clone() },
        long_moderator(format!("{long}c")),
        Step { moderators: vec![String::new(), "@a:x".to_owned()], ..close.clone() },
        Step { keyboxes: vec!["x".to_owned()], ..close.clone() },
        Step { keyboxes: vec![crate::encoding::base64_url(&[1; 31])], ..close.clone() },
        Step { keyboxes: Vec::new(), ..close.clone() },
        Step { keyboxes: Vec::new(), ..approve.clone() },
        Step { moderators: users(1), ..approve.clone() },
        Step { limit: Some(1), ..approve },
        Step { keyboxes: vec![name(1)], ..open.clone() },
        Step { moderators: users(1), ..open },
    ] {
        sign(&wrong, &alice).unwrap_err();
    }
    for (user_id, keybox_id) in
        [("", "BOX"), ("@a:x", ""), (&*format!("{long}c"), "BOX"), ("@a:x", &*"B".repeat(256))]
    {
        let keys = PrivateKeySet::generate(user_id, keybox_id, &mut OpensslEntropy).unwrap();
        let (user_id, keybox_id) = (user_id.to_owned(), keybox_id.to_owned());
        let step = Step { moderators: vec![user_id.clone()], user_id, keybox_id, ..close.clone() };
        assert!(matches!(sign(&step, &keys), Err(ClosingError::Malformed(_))), "{step:?}");
    }
}
