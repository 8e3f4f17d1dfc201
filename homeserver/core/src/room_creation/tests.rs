use ruma::{UInt, user_id};
use serde_json::{Value, json};

use super::*;

const V1: &str = keystead_keybox::suite::V1;
const V2: &str = keystead_keybox::suite::V2;

fn plan_of(request: Value) -> Result<RoomPlan, CreationRefusal> {
    plan(
        &parse(request),
        user_id!("@a:b.c"),
        &RoomVersionId::V12,
        MilliSecondsSinceUnixEpoch(UInt::from(5_u32)),
    )
}

/// Reads a request body as the server does.
fn parse(body: Value) -> Request {
    use ruma::api::IncomingRequestExt as _;
    let body = body.to_string();
    let request = ruma::exports::http::Request::builder()
        .method("POST")
        .uri("https://b.c/_matrix/client/v3/createRoom")
        .body(body.as_bytes())
        .unwrap();
    Request::try_from_http_request(request, &[] as &[&str]).unwrap()
}

/// The planned events as (type, state key, content).
fn events(plan: &RoomPlan) -> Vec<(String, String, Value)> {
    let event = |draft: &Draft| {
        let content = serde_json::from_str(draft.content.get()).unwrap();
        (draft.event_type.to_string(), draft.state_key.clone().unwrap(), content)
    };
    plan.drafts.iter().map(event).collect()
}

fn content(plan: &RoomPlan, event_type: &str) -> Value {
    let found: Vec<_> = events(plan).into_iter().filter(|event| event.0 == event_type).collect();
    assert_eq!(found.len(), 1, "{event_type}");
    found[0].2.clone()
}

fn order(plan: &RoomPlan) -> Vec<String> {
    events(plan).into_iter().map(|(event_type, key, _)| format!("{event_type}/{key}")).collect()
}

#[test]
fn the_events_stand_in_the_order_of_the_specification() {
    let plan = plan_of(json!({
        "preset": "private_chat", "name": "N", "topic": "T", "room_alias_name": "x", "is_direct": true,
        "invite": ["@b:b.c", "@c:b.c", "@b:b.c", "@a:b.c"],
        "initial_state": [
            { "type": "m.room.encryption", "state_key": "", "content": { "algorithm": "m.megolm.v1.aes-sha2" } },
            { "type": "m.room.guest_access", "content": { "guest_access": "forbidden" } },
            { "type": "m.room.name", "content": { "name": "overridden" } },
        ],
    }))
    .unwrap();
    assert_eq!(
        order(&plan),
        [
            "m.room.create/",
            "m.room.member/@a:b.c",
            "m.room.power_levels/",
            "m.room.canonical_alias/",
            "m.room.join_rules/",
            "m.room.history_visibility/",
            "m.room.encryption/",
            "m.room.guest_access/",
            "m.room.name/",
            "m.room.topic/",
            "m.room.member/@b:b.c",
            "m.room.member/@c:b.c",
        ]
    );
    assert_eq!(plan.alias.as_ref().unwrap(), "#x:b.c");
    assert_eq!(content(&plan, "m.room.name"), json!({ "name": "N" }));
    assert_eq!(content(&plan, "m.room.guest_access"), json!({ "guest_access": "forbidden" }));
    let topic = json!({ "topic": "T", "m.topic": { "m.text": [{ "body": "T" }] } });
    assert_eq!(content(&plan, "m.room.topic"), topic);
    let invite = json!({ "membership": "invite", "is_direct": true });
    assert_eq!(events(&plan).last().unwrap().2, invite);
    assert!(plan.drafts.iter().all(|draft| draft.origin_server_ts.get() == UInt::from(5_u32)));
}

#[test]
fn presets_set_the_three_rules() {
    let table = [
        (json!({}), "invite", "can_join", 0),
        (json!({ "visibility": "public" }), "public", "forbidden", 50),
        (json!({ "preset": "private_chat", "visibility": "public" }), "invite", "can_join", 0),
        (json!({ "preset": "trusted_private_chat" }), "invite", "can_join", 0),
        (json!({ "preset": "public_chat" }), "public", "forbidden", 50),
    ];
    for (request, join_rule, guest_access, invite) in table {
        let plan = plan_of(request.clone()).unwrap();
        assert_eq!(content(&plan, "m.room.join_rules"), json!({ "join_rule": join_rule }), "{request}");
        assert_eq!(content(&plan, "m.room.guest_access"), json!({ "guest_access": guest_access }));
        let shared = json!({ "history_visibility": "shared" });
        assert_eq!(content(&plan, "m.room.history_visibility"), shared);
        assert_eq!(content(&plan, "m.room.power_levels")["invite"], invite, "{request}");
    }
}

#[test]
fn room_versions_differ_in_creator_and_power() {
    for (version, creator, users, tombstone) in [
        ("10", json!("@a:b.c"), json!({ "@a:b.c": 100 }), 100),
        ("11", Value::Null, json!({ "@a:b.c": 100 }), 100),
        ("12", Value::Null, json!({}), 150),
    ] {
        let content_in =
            json!({ "creator": "@evil:b.c", "room_version": "1", "m.federate": false, "x.y": [1] });
        let plan = plan_of(json!({ "room_version": version, "creation_content": content_in })).unwrap();
        let create = content(&plan, "m.room.create");
        assert_eq!(create["room_version"], version);
        assert_eq!(create["creator"], creator, "{version}");
        assert_eq!((&create["m.federate"], &create["x.y"]), (&json!(false), &json!([1])));
        let levels = content(&plan, "m.room.power_levels");
        assert_eq!(levels["users"], users, "{version}");
        assert_eq!(levels["events"]["m.room.tombstone"], tombstone);
    }
}

#[test]
fn trusted_invitees_are_as_powerful_as_the_creator() {
    let request = |version| {
        json!({ "preset": "trusted_private_chat", "room_version": version, "invite": ["@b:b.c", "@c:b.c"],
                "creation_content": if version == "12" { json!({ "additional_creators": ["@c:b.c"] }) } else { json!({}) } })
    };
    let v11 = plan_of(request("11")).unwrap();
    let users = json!({ "@a:b.c": 100, "@b:b.c": 100, "@c:b.c": 100 });
    assert_eq!(content(&v11, "m.room.power_levels")["users"], users);
    assert!(content(&v11, "m.room.create").get("additional_creators").is_none());
    let v12 = plan_of(request("12")).unwrap();
    assert_eq!(content(&v12, "m.room.create")["additional_creators"], json!(["@c:b.c", "@b:b.c"]));
    assert_eq!(content(&v12, "m.room.power_levels")["users"], json!({}));
}

#[test]
fn overrides_lie_on_top_of_the_power_levels() {
    let plan = plan_of(json!({
        "power_level_content_override": { "invite": 7, "users": { "@b:b.c": 50 }, "notifications": { "room": 20 } },
    }))
    .unwrap();
    let levels = content(&plan, "m.room.power_levels");
    assert_eq!((&levels["invite"], &levels["users"]), (&json!(7), &json!({ "@b:b.c": 50 })));
    assert_eq!((&levels["kick"], &levels["notifications"]["room"]), (&json!(50), &json!(20)));
    let given = json!([{ "type": "m.room.power_levels", "content": { "ban": 60 } }]);
    let plan =
        plan_of(json!({ "initial_state": given, "power_level_content_override": { "kick": 61 } })).unwrap();
    assert_eq!(content(&plan, "m.room.power_levels"), json!({ "ban": 60, "kick": 61 }));
}

#[test]
fn bad_power_levels_are_refused() {
    let refused = |version: &str, over: Value| {
        plan_of(json!({ "room_version": version, "power_level_content_override": over })).unwrap_err()
    };
    for over in [
        json!({ "ban": "50" }),
        json!({ "ban": 1.5 }),
        json!({ "users": [] }),
        json!({ "users": { "nobody": 1 } }),
        json!({ "users": { "@a:b.c": "100" } }),
        json!({ "events": { "m.x": null } }),
        json!({ "notifications": { "room": "1" } }),
    ] {
        let error = refused("11", over.clone());
        assert!(matches!(error, CreationRefusal::BadJson { .. }), "{over}: {error:?}");
    }
    let nobody = refused("11", json!({ "users": { "@b:b.c": 100 } }));
    assert!(matches!(nobody, CreationRefusal::InvalidState(_)));
    let creator = refused("12", json!({ "users": { "@a:b.c": 100 } }));
    assert!(matches!(creator, CreationRefusal::InvalidState(_)));
    let trusted = plan_of(json!({
        "preset": "trusted_private_chat", "invite": ["@b:b.c"], "power_level_content_override": { "users": { "@b:b.c": 1 } },
    }));
    assert!(matches!(trusted.unwrap_err(), CreationRefusal::InvalidState(_)));
}

#[test]
fn the_suite_of_a_keybox_room_is_frozen() {
    let request = |frozen: Option<&str>, algorithm: Option<&str>| {
        let state: Vec<Value> = algorithm
            .map(|algorithm| json!({ "type": "m.room.encryption", "content": { "algorithm": algorithm } }))
            .into_iter()
            .collect();
        let create = frozen.map_or(json!({}), |frozen| json!({ encryption::CREATE_CONTENT_KEY: frozen }));
        plan_of(json!({ "creation_content": create, "initial_state": state }))
    };
    for (frozen, algorithm, expected) in [
        (None, Some(V1), json!(V1)),
        (Some(V2), Some(V2), json!(V2)),
        (None, Some("m.megolm.v1.aes-sha2"), Value::Null),
    ] {
        let plan = request(frozen, algorithm).unwrap();
        assert_eq!(content(&plan, "m.room.create")[encryption::CREATE_CONTENT_KEY], expected);
    }
    for (frozen, algorithm) in
        [(Some(V1), None), (Some(V1), Some(V2)), (None, Some("com.trustner.keybox.v9"))]
    {
        let error = request(frozen, algorithm).unwrap_err();
        assert!(matches!(error, CreationRefusal::Encryption(_)), "{frozen:?} {algorithm:?}");
    }
}

#[test]
fn malformed_requests_are_refused() {
    let long = "x".repeat(256);
    let many: Vec<String> = (0..=MAX_INVITES).map(|n| format!("@u{n}:b.c")).collect();
    let deep = format!("{}1{}", "[".repeat(110), "]".repeat(110));
    let state = |event: Value| json!({ "initial_state": [event] });
    let third_party =
        json!({ "id_server": "i.s", "id_access_token": "t", "medium": "email", "address": "a@b.c" });
    let table = [
        (json!({ "room_version": "9" }), "UnsupportedRoomVersion"),
        (json!({ "room_version": "org.example" }), "UnsupportedRoomVersion"),
        (json!({ "invite_3pid": [third_party] }), "ThirdPartyInvite"),
        (json!({ "invite": many }), "TooLarge"),
        (json!({ "room_alias_name": "a:b" }), "BadAlias"),
        (json!({ "room_alias_name": "" }), "BadAlias"),
        (json!({ "room_alias_name": "x".repeat(251) }), "BadAlias"),
        (json!({ "creation_content": [] }), "BadJson"),
        (json!({ "creation_content": { "m.federate": "no" } }), "BadJson"),
        (json!({ "creation_content": { "additional_creators": ["nobody"] } }), "BadJson"),
        (json!({ "creation_content": { "com.trustner.encryption_algorithm": 7 } }), "BadJson"),
        (json!({ "creation_content": { "x": 1.5 } }), "BadJson"),
        (json!({ "creation_content": { "x": serde_json::from_str::<Value>(&deep).unwrap() } }), "BadJson"),
        (state(json!({ "content": {} })), "BadJson"),
        (state(json!({ "type": "m.x" })), "BadJson"),
        (state(json!({ "type": "m.x", "content": [] })), "BadJson"),
        (state(json!({ "type": "m.x", "state_key": 7, "content": {} })), "BadJson"),
        (state(json!({ "type": long, "content": {} })), "TooLarge"),
        (state(json!({ "type": "m.room.create", "content": {} })), "InvalidState"),
        (state(json!({ "type": "m.room.member", "state_key": "@b:b.c", "content": {} })), "InvalidState"),
        (
            json!({ "initial_state": [{ "type": "m.x", "content": {} }, { "type": "m.x", "state_key": "", "content": {} }] }),
            "BadJson",
        ),
    ];
    for (request, expected) in table {
        let error = plan_of(request.clone()).map(|plan| order(&plan)).unwrap_err();
        let name = format!("{error:?}");
        assert!(name.starts_with(expected), "{name}, not {expected}, for {request:.300}");
    }
}

/// Each planned room passes the authorisation rules of its version, event by event.
#[test]
fn plans_pass_the_rooms_own_rules() {
    use std::sync::Arc;

    use ruma::{owned_room_id, owned_server_name, signatures::Ed25519KeyPair};

    use crate::room::{RoomEvent, RoomState, Signer};

    let key = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "1".to_owned()).unwrap();
    let signer = Signer::new(owned_server_name!("b.c"), key);
    for version in ["10", "11", "12"] {
        for preset in ["private_chat", "public_chat", "trusted_private_chat"] {
            let plan = plan_of(json!({
                "room_version": version, "preset": preset, "name": "N", "topic": "T", "room_alias_name": "x",
                "invite": ["@b:b.c"], "is_direct": true,
                "initial_state": [{ "type": "m.room.encryption", "content": { "algorithm": V1 } }],
            }))
            .unwrap();
            let count = plan.drafts.len();
            let mut room = RoomState::empty(owned_room_id!("!r:b.c"), plan.room_version).unwrap();
            for (position, draft) in (1..).zip(plan.drafts) {
                let pdu = room.build(draft, &signer).unwrap().pdu;
                room.room_id.clone_from(&pdu.room_id);
                room.apply(&Arc::new(RoomEvent { position, pdu }));
            }
            assert_eq!(room.iter().count(), count, "{version} {preset}");
            assert_eq!((room.joined_count(), room.invited_count()), (1, 1));
        }
    }
}
