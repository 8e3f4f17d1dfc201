//! KeyBoxes of people, and their fingerprints.

use serde_json::json;

use keystead_keybox::fingerprint::{fingerprint, matches};

use super::failure::Failure;
use super::output::{Output, date_time, plain};
use crate::client::Client;
use crate::engine::{KeyBoxAddress, KnownKeyBox};

/// What to do with a KeyBox's mark.
pub(super) struct Marking<'a> {
    pub(super) fingerprint: Option<&'a str>,
    pub(super) undo: bool,
}

pub(super) async fn devices(
    client: &mut Client,
    output: &Output,
    user_id: Option<&str>,
) -> Result<(), Failure> {
    let user_id = user_id.unwrap_or(&client.account().user_id).to_owned();
    for known in client.keyboxes(&user_id).await? {
        let own = known.keys.keybox_id == client.account().keybox_id && user_id == client.account().user_id;
        let first_seen = date_time(known.first_seen);
        let text = format!("{}  {}  first seen {first_seen}", known.keys.keybox_id, state_of(&known, own));
        output.result(&text, &value_of(&known, own));
    }
    Ok(())
}

/// A KeyBox's state in words.
pub(super) fn state_of(known: &KnownKeyBox, own: bool) -> String {
    let words = [
        (known.is_verified() || own, "verified"),
        (!known.is_verified() && !own, "not verified"),
        (own, "this one"),
        (known.gone, "gone"),
        (known.conflicting, "CHANGED KEYS"),
    ];
    words.iter().filter_map(|(is, word)| is.then_some(*word)).collect::<Vec<_>>().join(", ")
}

pub(super) fn value_of(known: &KnownKeyBox, own: bool) -> serde_json::Value {
    json!({
        "user_id": known.keys.user_id, "keybox_id": known.keys.keybox_id, "this_one": own,
        "verified": known.is_verified() || own, "gone": known.gone, "changed_keys": known.conflicting,
        "first_seen": known.first_seen, "fingerprint": fingerprint(&known.keys), "suites": known.keys.algorithms,
    })
}

pub(super) async fn verify(
    client: &mut Client,
    output: &Output,
    user_id: &str,
    keybox_id: Option<&str>,
    marking: Marking<'_>,
) -> Result<(), Failure> {
    let mut known = wanted(client, user_id, keybox_id).await?;
    if let (Some(keybox_id), Some(meant)) = (keybox_id, known.first()) {
        let address = KeyBoxAddress::new(user_id, keybox_id);
        if marking.fingerprint.is_some_and(|spoken| !matches(&meant.keys, spoken)) {
            return Err(Failure::Fingerprint(address.to_string()));
        }
        if marking.fingerprint.is_some() || marking.undo {
            client.set_verified(&address, !marking.undo).await?;
            // What it counts as now is not for this mark alone to say.
            known = wanted(client, user_id, Some(keybox_id)).await?;
        }
    }
    for known in &known {
        let own = known.keys.keybox_id == client.account().keybox_id && user_id == client.account().user_id;
        let state = if known.is_verified() || own { "verified" } else { "not verified" };
        let keybox = plain(&format!("{user_id}/{}", known.keys.keybox_id));
        let text = format!("{keybox} ({state})\n{}", fingerprint(&known.keys));
        output.lines(&text, &value_of(known, own));
    }
    if keybox_id.is_none() {
        output.progress(
            "Compare the digits with the owner, face to face or by voice. If they agree:\n  \
             keybox verify USER_ID KEYBOX_ID --fingerprint \"DIGITS\"",
        );
    }
    Ok(())
}

/// The KeyBoxes of a user, or the one that is meant.
async fn wanted(
    client: &mut Client,
    user_id: &str,
    keybox_id: Option<&str>,
) -> Result<Vec<KnownKeyBox>, Failure> {
    let mut known = client.keyboxes(user_id).await?;
    known.retain(|known| keybox_id.is_none_or(|id| id == known.keys.keybox_id));
    if known.is_empty() {
        return Err(Failure::NoSuchKeyBox(keybox_id.unwrap_or(user_id).to_owned()));
    }
    Ok(known)
}
