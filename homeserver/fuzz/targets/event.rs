//! Any JSON as a stored event: it is refused, or shown as JSON in every form.
#![no_main]

use keystead_core::{
    client_format::{self, Unsigned},
    event_fields::EventFields,
    pdu::Pdu,
};
use libfuzzer_sys::fuzz_target;
use ruma::{owned_event_id, owned_room_id};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let (paths, json) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(0));
    let (Ok(paths), Ok(json)) = (std::str::from_utf8(paths), std::str::from_utf8(json)) else { return };
    // A number that no double holds is JSON, but no event has one: what comes from clients is read as canonical JSON before.
    if serde_json::from_str::<Value>(json).is_err() {
        return;
    }
    let Ok(pdu) = Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!r:x"), json.trim_start()) else {
        return;
    };
    let unsigned = Unsigned::default();
    let fields = EventFields::new(paths.split(','));
    for shown in [client_format::with_room_id(&pdu, &unsigned), client_format::for_sync(&pdu, &unsigned)] {
        let Ok(shown) = shown else { continue };
        let whole: Value = serde_json::from_str(shown.get()).expect("what is shown is JSON");
        assert!(
            whole["content"] == serde_json::from_str::<Value>(pdu.content.get()).unwrap()
                || whole.is_object()
        );
        let picked = fields.pick(&shown).expect("a part of it is JSON, too");
        serde_json::from_str::<Value>(picked.get()).expect("JSON");
    }
    let _ = client_format::stripped(&pdu);
});
