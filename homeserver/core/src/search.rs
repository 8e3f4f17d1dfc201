//! Searching for words in what people wrote ([spec]).
//!
//! A word is a run of letters and digits, whatever their case; nothing is stemmed, so that all languages are treated alike.
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#server-side-search

use std::collections::BTreeSet;

use ruma::{api::client::search::search_events::v3::SearchKeys, events::TimelineEventType};
use serde::Deserialize;
use serde_json::Value;

use crate::pdu::Pdu;

/// The most words that are looked for; what comes after them is passed over.
const MAX_WORDS: usize = 16;

/// The words of a search, each once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Words(BTreeSet<String>);

impl Words {
    /// Takes a search term apart.
    pub fn of(term: &str) -> Self {
        Self(words(term).take(MAX_WORDS).collect())
    }

    /// Each word once, in lower case.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether there are none, so that nothing can be found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How closely a text matches: which part of it are the words that were looked for, at most 1. `None` if one of them is not in
    /// it.
    pub fn rank(&self, text: &str) -> Option<f64> {
        let (mut found, mut hits, mut all) = (BTreeSet::new(), 0_u32, 0_u32);
        for word in words(text) {
            all = all.saturating_add(1);
            if let Some(word) = self.0.get(&word) {
                hits = hits.saturating_add(1);
                found.insert(word);
            }
        }
        (!found.is_empty() && found.len() == self.0.len()).then(|| f64::from(hits) / f64::from(all))
    }
}

/// The text of an event that a search with these keys looks at: what a message says, a room's name, or its topic. `None` for all other
/// events, encrypted ones among them.
pub fn text(pdu: &Pdu, keys: Option<&[SearchKeys]>) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        body: Option<Value>,
        name: Option<Value>,
        topic: Option<Value>,
    }
    let key = match (&pdu.event_type, &pdu.state_key) {
        (TimelineEventType::RoomMessage, None) => SearchKeys::ContentBody,
        (TimelineEventType::RoomName, Some(_)) => SearchKeys::ContentName,
        (TimelineEventType::RoomTopic, Some(_)) => SearchKeys::ContentTopic,
        _ => return None,
    };
    if keys.is_some_and(|keys| !keys.contains(&key)) {
        return None;
    }
    let content: Content = serde_json::from_str(pdu.content.get()).ok()?;
    let value = match key {
        SearchKeys::ContentBody => content.body,
        SearchKeys::ContentName => content.name,
        _ => content.topic,
    };
    match value {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let split = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    split.map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use ruma::{owned_event_id, owned_room_id};
    use serde_json::json;

    use super::*;

    fn pdu(event_type: &str, state_key: Option<&str>, content: Value) -> Pdu {
        let mut json = json!({
            "type": event_type, "sender": "@a:x", "content": content, "origin_server_ts": 1, "prev_events": [],
            "auth_events": [], "depth": 1,
        });
        if let Some(state_key) = state_key {
            json["state_key"] = json!(state_key);
        }
        Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!r:x"), &json.to_string()).unwrap()
    }

    #[test]
    fn all_words_must_be_there_and_whole() {
        let table = [
            ("martians and men", "Men, martians AND others", Some(0.75)),
            ("men", "men", Some(1.0)),
            ("men men", "some men", Some(0.5)),
            ("men", "omen", None),
            ("men mars", "men", None),
            ("ÄRZTE", "die ärzte", Some(0.5)),
            ("", "anything", None),
            ("!?", "anything", None),
        ];
        for (term, text, expected) in table {
            assert_eq!(Words::of(term).rank(text), expected, "{term} in {text}");
        }
    }

    #[test]
    fn only_messages_names_and_topics_have_text_to_search() {
        let body = json!({ "body": "b", "name": "n", "topic": "t" });
        let table = [
            (pdu("m.room.message", None, body.clone()), None, Some("b")),
            (pdu("m.room.name", Some(""), body.clone()), None, Some("n")),
            (pdu("m.room.topic", Some(""), body.clone()), None, Some("t")),
            (pdu("m.room.topic", Some(""), body.clone()), Some(vec![SearchKeys::ContentTopic]), Some("t")),
            (pdu("m.room.message", None, body.clone()), Some(vec![SearchKeys::ContentTopic]), None),
            (pdu("m.room.message", Some(""), body.clone()), None, None),
            (pdu("m.room.encrypted", None, body), None, None),
            (pdu("m.room.message", None, json!({ "body": 7 })), None, None),
            (pdu("m.room.message", None, json!({})), None, None),
        ];
        for (pdu, keys, expected) in table {
            assert_eq!(text(&pdu, keys.as_deref()).as_deref(), expected, "{pdu:?} {keys:?}");
        }
    }
}
