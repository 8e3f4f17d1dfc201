//! Rules on `m.room.encryption`: what a KeyBox room may change, and what it may not.
//!
//! The suite of a KeyBox room stands in `m.room.encryption` and, frozen, in the content of `m.room.create`. Nobody
//! takes it away or steps down; from v1 to v2 is the one change. Ordinary rooms keep Matrix's behaviour.

use keystead_keybox::suite::{self, SUITES, Suite};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The key of the `m.room.create` content that freezes a KeyBox room's suite.
pub const CREATE_CONTENT_KEY: &str = "com.trustner.encryption_algorithm";
/// How many messages a KeyBox room may ask to be sealed under one resource key, at most (KeyBox profile, section 8): with
/// 4,096 KeyBoxes that many each, the key stays below the 2^32 of section 5.4.
pub const MAX_ROTATION_MESSAGES: u64 = 1_000_000;
/// How long a KeyBox room may ask for one resource key to be used, at most: a year, in milliseconds.
pub const MAX_ROTATION_MS: u64 = 31_536_000_000;
/// What the identifier of every KeyBox suite starts with.
const SUITE_PREFIX: &str = "com.trustner.keybox.";

/// The suite that an `algorithm` names: `None` for an algorithm of somebody else.
///
/// # Errors
///
/// [`EncryptionRefusal::UnknownSuite`] for an identifier of the KeyBox name space that names no suite.
pub fn suite_of(algorithm: &str) -> Result<Option<&'static Suite>, EncryptionRefusal> {
    match suite::find(algorithm) {
        None if algorithm.starts_with(SUITE_PREFIX) => Err(EncryptionRefusal::UnknownSuite),
        found => Ok(found),
    }
}

/// Why a change of a room's encryption is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncryptionRefusal {
    /// The room has a KeyBox suite and the change names another algorithm.
    #[error("the room is encrypted with a KeyBox suite, which cannot be replaced by another algorithm")]
    LeavesProfile,
    /// The content has no `algorithm`, or it is not a string.
    #[error("m.room.encryption needs an algorithm, a string")]
    NoAlgorithm,
    /// The room was not made with a KeyBox suite.
    #[error("a KeyBox suite is chosen when a room is made and cannot be added to this room")]
    NotAKeyBoxRoom,
    /// The event that carries the suite cannot be redacted.
    #[error("the encryption of a KeyBox room cannot be redacted")]
    Redaction,
    /// The change goes back to an older suite.
    #[error("the room's KeyBox suite cannot step down to an older one")]
    StepDown,
    /// A rotation period is no number, or one that lets a key be used for too long, or for nothing.
    #[error(
        "rotation_period_msgs must be an integer from 1 to {MAX_ROTATION_MESSAGES}, \
         rotation_period_ms one from 1 to {MAX_ROTATION_MS}"
    )]
    RotationPeriod,
    /// The event has a state key, under which nobody looks for a room's encryption.
    #[error("m.room.encryption of a KeyBox room has the empty state key")]
    StateKey,
    /// The create content and `m.room.encryption` of a new room disagree.
    #[error("the create content and m.room.encryption name different algorithms")]
    SuiteMismatch,
    /// No suite has that identifier.
    #[error("there is no KeyBox suite of that name")]
    UnknownSuite,
}

/// The `algorithm` of an `m.room.encryption` content.
///
/// # Errors
///
/// [`EncryptionRefusal::NoAlgorithm`] if there is none or it is no string.
pub fn algorithm(content: &RawValue) -> Result<String, EncryptionRefusal> {
    #[derive(Deserialize)]
    struct Content {
        algorithm: String,
    }
    serde_json::from_str::<Content>(content.get())
        .map(|content| content.algorithm)
        .map_err(|_| EncryptionRefusal::NoAlgorithm)
}

/// The suite that a room's `m.room.create` content froze; `None` for an ordinary room.
///
/// A room whose create content names a suite that this server does not know is still a KeyBox room: the
/// strongest suite that is known stands for it, so that nothing weaker gets in.
pub fn frozen_suite(create_content: &RawValue) -> Option<&'static Suite> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "com.trustner.encryption_algorithm")]
        algorithm: Option<String>,
    }
    let algorithm = serde_json::from_str::<Content>(create_content.get()).ok()?.algorithm?;
    suite_of(&algorithm).unwrap_or(SUITES.last())
}

/// Checks a new `m.room.encryption` event of an existing room.
///
/// `frozen` is the suite of the room's create content, `current` the content of its `m.room.encryption` event if
/// it has one, `new` the content to be sent.
///
/// # Errors
///
/// The reason for the refusal, fit to be shown to the user.
pub fn check_change(
    frozen: Option<&'static Suite>,
    current: Option<&RawValue>,
    new: &RawValue,
) -> Result<(), EncryptionRefusal> {
    let Some(frozen) = frozen else {
        // Matrix lets an ordinary room change its encryption event freely, even to nonsense.
        return match algorithm(new).map(|name| suite_of(&name)) {
            Ok(Ok(Some(_)) | Err(_)) => Err(EncryptionRefusal::NotAKeyBoxRoom),
            _ => Ok(()),
        };
    };
    let floor = current
        .and_then(|content| suite_of(&algorithm(content).ok()?).ok()?)
        .map_or(frozen, |current| current.max(frozen));
    match suite_of(&algorithm(new)?)? {
        None => Err(EncryptionRefusal::LeavesProfile),
        Some(suite) if suite < floor => Err(EncryptionRefusal::StepDown),
        Some(_) => check_rotation(new),
    }
}

/// Checks the state key of an `m.room.encryption` event.
///
/// # Errors
///
/// [`EncryptionRefusal::StateKey`] if it is not empty and the room is a KeyBox room: it would mean nothing.
pub fn check_state_key(frozen: Option<&'static Suite>, state_key: &str) -> Result<(), EncryptionRefusal> {
    if frozen.is_some() && !state_key.is_empty() {
        return Err(EncryptionRefusal::StateKey);
    }
    Ok(())
}

/// Checks how long the content of a KeyBox room's `m.room.encryption` lets one resource key be used.
fn check_rotation(content: &RawValue) -> Result<(), EncryptionRefusal> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default, deserialize_with = "present")]
        rotation_period_msgs: Option<u64>,
        #[serde(default, deserialize_with = "present")]
        rotation_period_ms: Option<u64>,
    }
    /// `null` is no number either.
    fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        u64::deserialize(deserializer).map(Some)
    }
    let refused = EncryptionRefusal::RotationPeriod;
    let asked = serde_json::from_str::<Content>(content.get()).map_err(|_| refused)?;
    let fits = |period: Option<u64>, most| period.is_none_or(|period| (1..=most).contains(&period));
    if fits(asked.rotation_period_msgs, MAX_ROTATION_MESSAGES)
        && fits(asked.rotation_period_ms, MAX_ROTATION_MS)
    {
        return Ok(());
    }
    Err(refused)
}

/// Checks that an event may be redacted as far as the room's encryption is concerned.
///
/// # Errors
///
/// [`EncryptionRefusal::Redaction`] if it is the `m.room.encryption` event of a KeyBox room.
pub fn check_redaction(frozen: Option<&'static Suite>, event_type: &str) -> Result<(), EncryptionRefusal> {
    if frozen.is_some() && event_type == "m.room.encryption" {
        return Err(EncryptionRefusal::Redaction);
    }
    Ok(())
}

/// Settles the suite of a new room from what its creator asked for.
///
/// `create_algorithm` is the value of [`CREATE_CONTENT_KEY`], `encryption` the content of the `m.room.encryption`
/// event of the initial state. The answer is the suite to freeze, or `None` for an ordinary room.
///
/// # Errors
///
/// The reason for the refusal: the two disagree, or name an unknown suite.
pub fn settle_new_room(
    create_algorithm: Option<&str>,
    encryption: Option<&RawValue>,
) -> Result<Option<&'static Suite>, EncryptionRefusal> {
    let wanted = match encryption {
        None => None,
        // An ordinary room may hold any content; only a KeyBox room has to name its suite.
        Some(content) if create_algorithm.is_none() => match algorithm(content) {
            Ok(name) => suite_of(&name)?,
            Err(_) => None,
        },
        Some(content) => suite_of(&algorithm(content)?)?,
    };
    if let (Some(_), Some(content)) = (wanted, encryption) {
        check_rotation(content)?;
    }
    match create_algorithm {
        None => Ok(wanted),
        Some(name) => match suite_of(name)? {
            None => Err(EncryptionRefusal::UnknownSuite),
            suite if suite == wanted => Ok(suite),
            Some(_) => Err(EncryptionRefusal::SuiteMismatch),
        },
    }
}

#[cfg(test)]
mod tests {
    use EncryptionRefusal::*;
    use serde_json::json;

    use super::*;

    fn content(algorithm: &str) -> Box<RawValue> {
        serde_json::value::to_raw_value(&json!({ "algorithm": algorithm })).unwrap()
    }

    const V1: &str = suite::V1;
    const V2: &str = suite::V2;
    const MEGOLM: &str = "m.megolm.v1.aes-sha2";

    #[test]
    fn a_keybox_room_never_steps_down_or_off() {
        let table = [
            (suite::find(V1), Some(V1), V1, Ok(())),
            (suite::find(V1), Some(V1), V2, Ok(())),
            (suite::find(V1), Some(V2), V1, Err(StepDown)),
            (suite::find(V1), Some(V2), V2, Ok(())),
            (suite::find(V2), Some(V2), V1, Err(StepDown)),
            (suite::find(V2), None, V1, Err(StepDown)),
            (suite::find(V1), Some(V1), MEGOLM, Err(LeavesProfile)),
            (suite::find(V1), Some(V1), "com.trustner.keybox.v9", Err(UnknownSuite)),
            (None, None, MEGOLM, Ok(())),
            (None, Some(MEGOLM), "org.example.other", Ok(())),
            (None, Some(MEGOLM), V1, Err(NotAKeyBoxRoom)),
            (None, None, V2, Err(NotAKeyBoxRoom)),
        ];
        for (frozen, current, new, expected) in table {
            let current = current.map(content);
            let found = check_change(frozen, current.as_deref(), &content(new));
            assert_eq!(found, expected, "{frozen:?} {current:?} -> {new}");
        }
    }

    #[test]
    fn content_without_algorithm_is_refused_in_a_keybox_room_only() {
        for text in [r"{}", r#"{"algorithm":7}"#, r#"{"algorithm":null}"#] {
            let raw = RawValue::from_string(text.to_owned()).unwrap();
            assert_eq!(check_change(suite::find(V1), None, &raw), Err(NoAlgorithm));
            assert_eq!(check_change(None, None, &raw), Ok(()));
        }
    }

    #[test]
    fn a_keybox_room_asks_for_no_key_to_be_used_for_too_long() {
        let table = [
            (json!({ "rotation_period_msgs": 1, "rotation_period_ms": 1 }), true),
            (json!({ "rotation_period_msgs": MAX_ROTATION_MESSAGES }), true),
            (json!({ "rotation_period_ms": MAX_ROTATION_MS }), true),
            (json!({ "rotation_period_msgs": 0 }), false),
            (json!({ "rotation_period_ms": 0 }), false),
            (json!({ "rotation_period_msgs": MAX_ROTATION_MESSAGES + 1 }), false),
            (json!({ "rotation_period_ms": MAX_ROTATION_MS + 1 }), false),
            (json!({ "rotation_period_msgs": -1 }), false),
            (json!({ "rotation_period_msgs": "100" }), false),
            (json!({ "rotation_period_ms": null }), false),
        ];
        for (mut value, is_fine) in table {
            for algorithm in [V1, MEGOLM] {
                value["algorithm"] = json!(algorithm);
                let content = serde_json::value::to_raw_value(&value).unwrap();
                let suite = suite::find(algorithm);
                // What an ordinary room asks for is its clients' affair.
                let is_fine = is_fine || suite.is_none();
                let expected = if is_fine { Ok(()) } else { Err(RotationPeriod) };
                assert_eq!(check_change(suite, None, &content), expected, "{value}");
                assert_eq!(settle_new_room(None, Some(&content)), expected.map(|()| suite), "{value}");
            }
        }
    }

    #[test]
    fn the_encryption_of_a_keybox_room_has_no_state_key() {
        assert_eq!(check_state_key(suite::find(V1), ""), Ok(()));
        assert_eq!(check_state_key(suite::find(V1), "other"), Err(StateKey));
        assert_eq!(check_state_key(None, "other"), Ok(()));
    }

    #[test]
    fn a_new_room_names_one_suite() {
        let table = [
            (None, None, Ok(None)),
            (None, Some(MEGOLM), Ok(None)),
            (None, Some(V1), Ok(suite::find(V1))),
            (Some(V1), Some(V1), Ok(suite::find(V1))),
            (Some(V2), Some(V2), Ok(suite::find(V2))),
            (Some(V1), None, Err(SuiteMismatch)),
            (Some(V1), Some(V2), Err(SuiteMismatch)),
            (Some(V1), Some(MEGOLM), Err(SuiteMismatch)),
            (Some(MEGOLM), Some(MEGOLM), Err(UnknownSuite)),
            (None, Some("com.trustner.keybox.v9"), Err(UnknownSuite)),
        ];
        for (create, encryption, expected) in table {
            let encryption = encryption.map(content);
            assert_eq!(settle_new_room(create, encryption.as_deref()), expected, "{create:?} {encryption:?}");
        }
    }

    #[test]
    fn an_unknown_frozen_suite_lets_nothing_weaker_in() {
        let create = |value| serde_json::value::to_raw_value(&json!({ CREATE_CONTENT_KEY: value })).unwrap();
        assert_eq!(frozen_suite(&create(V1)), suite::find(V1));
        assert_eq!(frozen_suite(&create("com.trustner.keybox.v9")), suite::find(V2));
        assert_eq!(frozen_suite(&RawValue::from_string("{}".to_owned()).unwrap()), None);
    }

    #[test]
    fn the_suite_is_not_redacted_away() {
        assert_eq!(check_redaction(suite::find(V1), "m.room.encryption"), Err(Redaction));
        assert_eq!(check_redaction(suite::find(V1), "m.room.message"), Ok(()));
        assert_eq!(check_redaction(None, "m.room.encryption"), Ok(()));
    }
}
