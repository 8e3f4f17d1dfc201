//! Filters: which events a client wants ([spec]).
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#filtering

use ruma::{
    OwnedUserId, RoomId, UInt, UserId,
    api::client::filter::{Filter, RoomEventFilter, RoomFilter, UrlFilter},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// What a filter looks at in an event.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The event's type.
    pub event_type: &'a str,
    /// The event's sender; `None` for what has none, such as account data.
    pub sender: Option<&'a UserId>,
    /// The event's content; only read if the filter asks for events with or without a `url`.
    pub content: &'a RawValue,
}

/// Whether a filter for what is not in a room (presence, account data) lets an event through.
pub fn matches(filter: &Filter, facts: Facts<'_>) -> bool {
    let Filter { types, not_types, senders, not_senders, .. } = filter;
    type_matches(types.as_deref(), not_types, facts.event_type)
        && sender_matches(senders.as_deref(), not_senders, facts.sender)
}

/// Whether a filter for room events lets an event of the room through.
pub fn matches_in_room(filter: &RoomEventFilter, room_id: &RoomId, facts: Facts<'_>) -> bool {
    let RoomEventFilter { types, not_types, senders, not_senders, .. } = filter;
    matches_room(filter, room_id)
        && type_matches(types.as_deref(), not_types, facts.event_type)
        && sender_matches(senders.as_deref(), not_senders, facts.sender)
        && match filter.url_filter {
            None => true,
            Some(UrlFilter::EventsWithUrl) => contains_url(facts.content),
            Some(UrlFilter::EventsWithoutUrl) => !contains_url(facts.content),
        }
}

/// Whether a filter for room events lets any event of the room through.
pub fn matches_room(filter: &RoomEventFilter, room_id: &RoomId) -> bool {
    id_matches(filter.rooms.as_deref(), &filter.not_rooms, room_id)
}

/// Whether the filter of a sync wants to hear of the room at all.
pub fn includes_room(filter: &RoomFilter, room_id: &RoomId) -> bool {
    id_matches(filter.rooms.as_deref(), &filter.not_rooms, room_id)
}

/// Whether the filter can let no event through whatever it is, so that nothing needs to be read for it.
pub fn excludes_everything(filter: &RoomEventFilter) -> bool {
    let is_empty_list = |list: Option<usize>| list == Some(0);
    is_empty_list(filter.types.as_ref().map(Vec::len))
        || is_empty_list(filter.senders.as_ref().map(Vec::len))
        || is_empty_list(filter.rooms.as_ref().map(Vec::len))
        || filter.not_types.iter().any(|pattern| pattern == "*")
}

/// Whether the filter lets every event through, of every room.
pub fn includes_everything(filter: &RoomEventFilter) -> bool {
    let RoomEventFilter { types, not_types, rooms, not_rooms, senders, not_senders, url_filter, .. } = filter;
    types.is_none()
        && rooms.is_none()
        && senders.is_none()
        && url_filter.is_none()
        && not_types.is_empty()
        && not_rooms.is_empty()
        && not_senders.is_empty()
}

/// How many events to return: what the client asked for, at least 1 and at most `most`.
pub fn limit(asked: Option<UInt>, default: usize, most: usize) -> usize {
    asked.map_or(default, |asked| usize::try_from(u64::from(asked)).unwrap_or(most)).clamp(1, most)
}

/// > If this list is absent then all event types are included. A `*` can be used as a wildcard to match any
/// > sequence of characters. […] `not_types` takes precedence.
fn type_matches(types: Option<&[String]>, not_types: &[String], event_type: &str) -> bool {
    let listed = |patterns: &[String]| patterns.iter().any(|pattern| wildcard_matches(pattern, event_type));
    !listed(not_types) && types.is_none_or(listed)
}

fn sender_matches(
    senders: Option<&[OwnedUserId]>,
    not_senders: &[OwnedUserId],
    sender: Option<&UserId>,
) -> bool {
    match sender {
        Some(sender) => id_matches(senders, not_senders, sender),
        None => senders.is_none(),
    }
}

fn id_matches<Owned, Id>(only: Option<&[Owned]>, not: &[Owned], id: &Id) -> bool
where
    Owned: AsRef<Id>,
    Id: PartialEq + ?Sized,
{
    let listed = |ids: &[Owned]| ids.iter().any(|other| other.as_ref() == id);
    !listed(not) && only.is_none_or(listed)
}

/// Whether the text matches a pattern in which each `*` stands for any characters, or none.
fn wildcard_matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    // Each part at its first place is enough: whatever lies between is matched by the asterisks.
    for part in middle.split('*') {
        let Some((_, after)) = text.split_once(part) else { return false };
        text = after;
    }
    text.ends_with(end)
}

fn contains_url(content: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow, default)]
        url: Option<&'a RawValue>,
    }
    serde_json::from_str::<Content<'_>>(content.get())
        .is_ok_and(|content| content.url.is_some_and(|url| url.get().starts_with('"')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::{room_id, uint, user_id};
    use serde_json::{Value, json};

    use super::*;
    use crate::json::raw;

    fn passes(filter: Value, event_type: &str, content: Value) -> bool {
        let filter: RoomEventFilter = serde_json::from_value(filter).unwrap();
        let content = raw(&content);
        let facts = Facts { event_type, sender: Some(user_id!("@a:b.c")), content: &content };
        matches_in_room(&filter, room_id!("!r:b.c"), facts)
    }

    #[test]
    fn follows_each_list() {
        let table = [
            (json!({}), true),
            (json!({ "types": [] }), false),
            (json!({ "types": ["m.room.message"] }), true),
            (json!({ "types": ["m.room.*"] }), true),
            (json!({ "types": ["m.*.message"] }), true),
            (json!({ "types": ["m.room"] }), false),
            (json!({ "types": ["*"], "not_types": ["m.room.*"] }), false),
            (json!({ "senders": ["@a:b.c"] }), true),
            (json!({ "senders": [] }), false),
            (json!({ "not_senders": ["@a:b.c"], "senders": ["@a:b.c"] }), false),
            (json!({ "rooms": ["!x:b.c"] }), false),
            (json!({ "rooms": ["!r:b.c"] }), true),
            (json!({ "not_rooms": ["!r:b.c"], "rooms": ["!r:b.c"] }), false),
            (json!({ "contains_url": true }), false),
            (json!({ "contains_url": false }), true),
        ];
        for (filter, expected) in table {
            assert_eq!(
                passes(filter.clone(), "m.room.message", json!({ "body": "x" })),
                expected,
                "{filter}"
            );
        }
    }

    #[test]
    fn a_url_is_a_string_at_the_top_of_the_content() {
        let filter = json!({ "contains_url": true });
        assert!(passes(filter.clone(), "m.x", json!({ "url": "mxc://b.c/x" })));
        assert!(!passes(filter.clone(), "m.x", json!({ "url": 7 })));
        assert!(!passes(filter.clone(), "m.x", json!({ "url": null })));
        assert!(!passes(filter, "m.x", json!({ "info": { "url": "mxc://b.c/x" } })));
    }

    #[test]
    fn account_data_has_no_sender() {
        let content = raw(&json!({}));
        let facts = Facts { event_type: "m.tag", sender: None, content: &content };
        let filter = |value| serde_json::from_value::<Filter>(value).unwrap();
        assert!(matches(&filter(json!({ "not_senders": ["@a:b.c"] })), facts));
        assert!(!matches(&filter(json!({ "senders": ["@a:b.c"] })), facts));
        assert!(!matches(&filter(json!({ "not_types": ["m.*"] })), facts));
    }

    #[test]
    fn limits_are_clamped() {
        for (asked, expected) in
            [(None, 10), (Some(uint!(0)), 1), (Some(uint!(50)), 50), (Some(UInt::MAX), 100)]
        {
            assert_eq!(limit(asked, 10, 100), expected, "{asked:?}");
        }
    }

    #[test]
    fn knows_filters_that_let_nothing_through() {
        let table = [
            (json!({}), false),
            (json!({ "types": [] }), true),
            (json!({ "not_types": ["*"] }), true),
            (json!({ "not_types": ["m.*"] }), false),
            (json!({ "rooms": [] }), true),
        ];
        for (filter, expected) in table {
            assert_eq!(excludes_everything(&serde_json::from_value(filter).unwrap()), expected);
        }
    }

    #[test]
    fn knows_filters_that_let_everything_through() {
        let table = [
            (json!({}), true),
            (json!({ "limit": 5, "lazy_load_members": true, "unread_thread_notifications": true }), true),
            (json!({ "types": ["*"] }), false),
            (json!({ "not_types": ["m.x"] }), false),
            (json!({ "rooms": ["!r:b.c"] }), false),
            (json!({ "not_rooms": ["!r:b.c"] }), false),
            (json!({ "senders": ["@a:b.c"] }), false),
            (json!({ "not_senders": ["@a:b.c"] }), false),
            (json!({ "contains_url": false }), false),
        ];
        for (filter, expected) in table {
            let parsed = serde_json::from_value(filter.clone()).unwrap();
            assert_eq!(includes_everything(&parsed), expected, "{filter}");
        }
    }

    #[test]
    fn wildcards_match_any_run_of_characters() {
        let table = [
            ("*", "", true),
            ("**", "ab", true),
            ("a*", "a", true),
            ("a*a", "a", false),
            ("a*b*c", "aXbbYc", true),
            ("a*b*c", "aXcYb", false),
            ("*b", "ab", true),
            ("*ab*ab*", "ab", false),
            ("", "", true),
            ("", "a", false),
            ("a.b", "aXb", false),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(wildcard_matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn wildcards_agree_with_a_plain_search(pattern in "[ab*]{0,7}", text in "[ab]{0,7}") {
            fn plain(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|skip| plain(rest, &text[skip..])),
                    Some((head, rest)) => text.split_first().is_some_and(|(c, text)| c == head && plain(rest, text)),
                }
            }
            prop_assert_eq!(wildcard_matches(&pattern, &text), plain(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
