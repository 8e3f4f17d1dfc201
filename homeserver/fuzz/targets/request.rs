//! Any query and any body for endpoints of every kind: they are read into the specification's types, or refused.
//!
//! The first byte chooses the endpoint, the rest up to a line break is the query, what follows the body.
#![no_main]

use http::{Method, Request};
use libfuzzer_sys::fuzz_target;
use ruma::api::{
    IncomingRequest,
    client::{
        account::register,
        alias::create_alias,
        backup::add_backup_keys,
        device::update_device,
        filter::create_filter,
        keys::{claim_keys, get_keys, upload_keys, upload_signatures},
        membership::invite_user,
        message::get_message_events,
        push::set_pushrule,
        read_marker::set_read_marker,
        receipt::create_receipt,
        room::{create_room, upgrade_room},
        state::send_state_event,
        sync::sync_events,
        to_device::send_event_to_device,
        typing::create_typing_event,
        uiaa::UserIdentifier,
    },
};

fn read<R: IncomingRequest>(query: &str, body: &[u8], path: &[&str]) {
    let Ok(request) = Request::builder()
        .method(Method::POST)
        .uri(format!("http://x/?{query}"))
        .header("content-type", "application/json")
        .body(body)
    else {
        return;
    };
    let _ = R::try_from_http_request_inner(request, path);
}

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    let (query, body) = rest.split_at(rest.iter().position(|byte| *byte == b'\n').unwrap_or(0));
    let Ok(query) = std::str::from_utf8(query) else { return };
    let body = body.strip_prefix(b"\n").unwrap_or(body);
    let room = ["!r:x"];
    let user = ["@a:x"];
    match which % 22 {
        0 => read::<register::v3::Request>(query, body, &[]),
        // As in the body of a login, which has a type of the server's own: ruma's expects a `type` that may be missing.
        1 => drop(serde_json::from_slice::<UserIdentifier>(body)),
        2 => read::<create_alias::v3::Request>(query, body, &["#a:x"]),
        3 => read::<add_backup_keys::v3::Request>(query, body, &[]),
        4 => read::<update_device::v3::Request>(query, body, &["D"]),
        5 => read::<create_filter::v3::Request>(query, body, &user),
        6 => read::<upload_keys::v3::Request>(query, body, &[]),
        7 => read::<claim_keys::v3::Request>(query, body, &[]),
        8 => read::<get_keys::v3::Request>(query, body, &[]),
        9 => read::<upload_signatures::v3::Request>(query, body, &[]),
        10 => read::<invite_user::v3::Request>(query, body, &room),
        11 => read::<get_message_events::v3::Request>(query, body, &room),
        12 => read::<set_pushrule::v3::Request>(query, body, &["override", "r"]),
        13 => read::<set_read_marker::v3::Request>(query, body, &room),
        14 => read::<create_receipt::v3::Request>(query, body, &["!r:x", "m.read", "$e"]),
        15 => read::<create_room::v3::Request>(query, body, &[]),
        16 => read::<upgrade_room::v3::Request>(query, body, &room),
        17 => read::<send_state_event::v3::Request>(query, body, &["!r:x", "m.room.name", ""]),
        18 => read::<sync_events::v3::Request>(query, body, &[]),
        19 => read::<send_event_to_device::v3::Request>(query, body, &["m.x", "t"]),
        20 => read::<create_typing_event::v3::Request>(query, body, &["!r:x", "@a:x"]),
        _ => read::<upload_signatures::v3::Request>(query, body, &[]),
    }
});
