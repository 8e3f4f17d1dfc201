//! Any JSON as a filter, on an event that the same input makes: an answer comes, and soon.
#![no_main]

use keystead_core::filter::{self, Facts};
use libfuzzer_sys::fuzz_target;
use ruma::{api::client::filter::FilterDefinition, room_id, user_id};
use serde_json::value::RawValue;

fuzz_target!(|data: &[u8]| {
    let (event_type, json) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(0));
    let Ok(event_type) = std::str::from_utf8(event_type) else { return };
    let Ok(definition) = serde_json::from_slice::<FilterDefinition>(json) else { return };
    let content = RawValue::from_string("{\"url\":\"mxc://x/y\"}".to_owned()).unwrap();
    let facts = Facts { event_type, sender: Some(user_id!("@a:x")), content: &content };
    let room = &definition.room;
    for part in [&room.timeline, &room.state, &room.ephemeral, &room.account_data] {
        let wanted = filter::matches_in_room(part, room_id!("!r:x"), facts);
        assert!(!(wanted && filter::excludes_everything(part)), "it lets nothing through, and this");
        assert!((1..=100).contains(&filter::limit(part.limit, 10, 100)));
    }
    let _ = filter::matches(&definition.presence, facts);
    let _ = filter::includes_room(room, room_id!("!r:x"));
});
