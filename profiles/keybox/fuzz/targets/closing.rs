//! Any JSON as the closing of a room: steps that follow each other, none of them signed unless it was.
#![no_main]

use std::sync::LazyLock;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::closing::{Closing, Content, SignedStep, Step};
use keystead_keybox::key_set::{PrivateKeySet, PublicKeySet};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const ROOM: &str = "!r:x";
static KEYS: LazyLock<PrivateKeySet> =
    LazyLock::new(|| PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap());
static PUBLIC: LazyLock<PublicKeySet> = LazyLock::new(|| KEYS.public().unwrap());

fuzz_target!(|data: &[u8]| {
    let Ok(json) = serde_json::from_slice::<Value>(data) else { return };
    if let Ok(content) = Content::read(ROOM, &json) {
        assert_eq!(Content::read(ROOM, &content.to_json()).unwrap(), content);
        assert!(!content.steps().is_empty());
        assert!(
            content.steps().iter().all(|step| !step.mark().is_signed_by(ROOM, &PUBLIC).unwrap()),
            "not ours"
        );
    }
    let mut content = None;
    for step in json["steps"].as_array().into_iter().flatten().take(20) {
        content = taken(content, step);
    }
});

/// The same step, by our KeyBox and with the number and hash that come next: what it can take, others read as it was.
fn taken(before: Option<Content>, step: &Value) -> Option<Content> {
    let Ok(mut step) = serde_json::from_value::<Step>(step.clone()) else { return before };
    let last = before.as_ref().map(|before| Closing::of(before).unwrap().last);
    (step.user_id, step.keybox_id) = ("@a:x".to_owned(), "A".to_owned());
    step.generation = last.as_ref().map_or(1, |last| last.generation + 1);
    step.prev = last.map(|last| last.hash).unwrap_or_default();
    let Ok(signed) = SignedStep::sign(ROOM, &step, &KEYS) else { return before };
    assert_eq!(SignedStep::read(ROOM, signed.json()).unwrap(), signed);
    assert!(signed.mark().is_signed_by(ROOM, &PUBLIC).unwrap());
    assert!(!signed.mark().is_signed_by("!s:x", &PUBLIC).unwrap(), "moved to another room");
    let Ok(next) = Content::with(before.as_ref(), signed.clone()) else { return before };
    assert_eq!(Content::read(ROOM, &next.to_json()).unwrap(), next);
    assert_eq!(next.steps().last(), Some(&signed));
    if let Some(before) = &before {
        assert_eq!(next.step_after(before), Some(&signed));
        // A server asks both: what is one step more, and whether that step may be taken.
        let back = before.step_after(&next).filter(|step| Closing::of(&next).unwrap().next(step).is_ok());
        assert!(back.is_none(), "a step back");
    }
    assert!(Content::with(Some(&next), signed).is_err(), "taken twice");
    Some(next)
}
