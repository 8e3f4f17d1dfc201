//! The `event_fields` of a filter: which fields of an event a client wants ([spec]).
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3useruseridfilter

use std::collections::BTreeMap;

use serde_json::value::{RawValue, to_raw_value};

/// The fields of an event that a client wants, ready to be applied to many events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFields {
    /// The whole value is wanted, with all that is below it.
    whole: bool,
    below: BTreeMap<String, EventFields>,
}

impl EventFields {
    /// Reads the list of a filter: [dot-separated paths], where `\.` is a dot and `\\` a backslash in a name.
    ///
    /// [dot-separated paths]: https://spec.matrix.org/v1.19/appendices/#dot-separated-property-paths
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut root = Self::default();
        for path in paths {
            let mut node = &mut root;
            for name in split_path(path) {
                node = node.below.entry(name).or_default();
            }
            node.whole = true;
        }
        root
    }

    /// The event with the wanted fields only. A wanted field that the event lacks is left out.
    ///
    /// # Errors
    ///
    /// The parser's error if `event` is not a JSON object.
    pub fn pick(&self, event: &RawValue) -> serde_json::Result<Box<RawValue>> {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_str(event.get())?;
        let mut picked: BTreeMap<&str, Box<RawValue>> = BTreeMap::new();
        for (name, wanted) in &self.below {
            let Some(value) = fields.get(name) else { continue };
            if wanted.whole {
                picked.insert(name, (*value).to_owned());
            } else if value.get().starts_with('{') {
                picked.insert(name, wanted.pick(value)?);
            }
        }
        to_raw_value(&picked)
    }
}

fn split_path(path: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match character {
            '.' => names.push(std::mem::take(&mut name)),
            '\\' => match characters.next() {
                Some(escaped @ ('.' | '\\')) => name.push(escaped),
                // No other escape exists: the backslash stands for itself.
                Some(other) => name.extend(['\\', other]),
                None => name.push('\\'),
            },
            other => name.push(other),
        }
    }
    names.push(name);
    names
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::json::raw;

    fn pick(paths: &[&str], event: &Value) -> Value {
        let picked = EventFields::new(paths.iter().copied()).pick(&raw(event)).unwrap();
        serde_json::from_str(picked.get()).unwrap()
    }

    #[test]
    fn picks_paths_and_whole_subtrees() {
        let event = json!({
            "type": "m.x", "content": { "body": "b", "m.relates_to": { "event_id": "$x", "rel_type": "r" }, "list": [1] },
        });
        let table = [
            (&["type"] as &[&str], json!({ "type": "m.x" })),
            (&["content.body"], json!({ "content": { "body": "b" } })),
            (&["content.body", "content"], json!({ "content": event["content"] })),
            (
                &[r"content.m\.relates_to.rel_type"],
                json!({ "content": { "m.relates_to": { "rel_type": "r" } } }),
            ),
            (&["content.absent"], json!({ "content": {} })),
            (&["content.list.0", "sender", "type.x"], json!({ "content": {} })),
            (&[], json!({})),
        ];
        for (paths, expected) in table {
            assert_eq!(pick(paths, &event), expected, "{paths:?}");
        }
    }

    #[test]
    fn splits_at_unescaped_dots() {
        let table = [
            ("a.b", vec!["a", "b"]),
            (r"a\.b.c", vec!["a.b", "c"]),
            (r"a\\.b", vec![r"a\", "b"]),
            (r"a\x", vec![r"a\x"]),
            (r"a\", vec![r"a\"]),
            ("", vec![""]),
        ];
        for (path, names) in table {
            assert_eq!(split_path(path), names, "{path}");
        }
    }

    #[test]
    fn names_with_escapes_in_the_event_are_found() {
        let event = RawValue::from_string(r#"{"conte\u006et":{"b\"q":1}}"#.to_owned()).unwrap();
        let picked = EventFields::new(["content.b\"q"]).pick(&event).unwrap();
        assert_eq!(picked.get(), r#"{"content":{"b\"q":1}}"#);
    }
}
