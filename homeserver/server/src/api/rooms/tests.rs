//! The endpoints without HTTP around them, on SQLite.

use std::sync::Arc;

use keystead_store::{
    WriteTx,
    devices::Device,
    sessions::{NewSession, NewTokens},
    users::{self, User},
};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId, UserId,
    api::{
        IncomingRequest,
        client::{
            context::get_context,
            knock::knock_room,
            membership::{
                ban_user, forget_room, invite_user, join_room_by_id, join_room_by_id_or_alias, kick_user,
                leave_room,
            },
            message::{get_message_events, send_message_event},
            redact::redact_event,
            relations::{
                get_relating_events, get_relating_events_with_rel_type,
                get_relating_events_with_rel_type_and_event_type,
            },
            room::{create_room, get_event_by_timestamp, get_room_event},
            state::{get_state_event_for_key, get_state_events, send_state_event},
            threads::get_threads,
        },
    },
    owned_device_id,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    app::App,
    clock::SettableClock,
    config::{Settings, reader::Environment},
    entropy::SeededEntropy,
};

/// When the clock stands at the start of a test.
const START: u64 = 1_700_000_000_000;

struct Server {
    app: Arc<App>,
    clock: Arc<SettableClock>,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("test.db").display());
        let environment: Environment = [("KEYSTEAD_DATABASE_URL", &*url), ("KEYSTEAD_SERVER_NAME", "x")]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let settings = Settings::from_environment(environment).unwrap();
        let clock = Arc::new(SettableClock::at(START));
        let entropy = Arc::new(SeededEntropy::new(1));
        let app = App::start_with(settings, clock.clone(), entropy).await.unwrap();
        let server = Self { app, clock, _folder: folder };
        server.log_in().await;
        server
    }

    /// Everybody whose name is a letter, on the device and by the token of [`Self::ctx`].
    async fn log_in(&self) {
        let now = self.app.clock.now();
        let session = |name: char| NewSession {
            user_id: UserId::parse(format!("@{name}:x")).unwrap(),
            device: Device {
                device_id: owned_device_id!("D"),
                display_name: None,
                last_seen_ts: now,
                last_seen_ip: String::new(),
            },
            tokens: NewTokens { access_hash: name.to_string(), expires_ts: None, refresh_hash: None },
        };
        let stored: &Vec<NewSession> = &('a'..='z').map(session).collect();
        let log_in = |tx: WriteTx| async move {
            let shards: Vec<_> = stored.iter().map(|session| tx.shards().of_user(&session.user_id)).collect();
            tx.lock_shards(&shards).await?;
            for NewSession { user_id, .. } in stored {
                let user = User {
                    user_id: user_id.clone(),
                    password_hash: None,
                    is_admin: false,
                    deactivated: false,
                    created_ts: now,
                };
                users::insert(&tx, &user).await?;
            }
            keystead_store::sessions::begin(&tx, stored).await
        };
        self.app.store.write("log_in", log_in).await.unwrap();
    }

    fn ctx(&self, user: &str) -> Ctx<Session> {
        Ctx {
            app: Arc::clone(&self.app),
            now: self.app.clock.now(),
            client_addr: [127, 0, 0, 1].into(),
            user_agent: None,
            requester: Session {
                user_id: UserId::parse(format!("@{user}:x")).unwrap(),
                device_id: owned_device_id!("D"),
                is_admin: false,
                token_hash: user.to_owned(),
            },
        }
    }

    async fn room(&self, user: &str, body: Value) -> OwnedRoomId {
        let request: create_room::v3::Request = request(&[], body);
        creation::create_room(self.ctx(user), request).await.unwrap().room_id
    }

    async fn join(&self, user: &str, room: &RoomId) -> Result<(), ApiError> {
        let request: join_room_by_id::v3::Request = request(&[room.as_str()], json!({}));
        joining::join_room_by_id(self.ctx(user), request).await.map(drop)
    }

    async fn leave(&self, user: &str, room: &RoomId) -> Result<(), ApiError> {
        let request: leave_room::v3::Request = request(&[room.as_str()], json!({}));
        membership::leave_room(self.ctx(user), request).await.map(drop)
    }

    async fn invite(&self, user: &str, room: &RoomId, invited: &str) -> Result<(), ApiError> {
        let request: invite_user::v3::Request = request(&[room.as_str()], json!({ "user_id": invited }));
        membership::invite_user(self.ctx(user), request).await.map(drop)
    }

    async fn send(&self, user: &str, room: &RoomId, id: &str) -> Result<OwnedEventId, ApiError> {
        let body = json!({ "body": id });
        let request: send_message_event::v3::Request = request(&[room.as_str(), "m.room.message", id], body);
        sending::send_message_event(self.ctx(user), request).await.map(|response| response.event_id)
    }

    async fn set(
        &self,
        user: &str,
        room: &RoomId,
        key: (&str, &str),
        body: Value,
    ) -> Result<OwnedEventId, ApiError> {
        let request: send_state_event::v3::Request = request(&[room.as_str(), key.0, key.1], body);
        state::send_state_event(self.ctx(user), request).await.map(|response| response.event_id)
    }

    async fn get(&self, user: &str, room: &RoomId, key: (&str, &str)) -> Result<Value, ApiError> {
        let request: get_state_event_for_key::v3::Request =
            request(&[room.as_str(), key.0, key.1], Value::Null);
        let response = state::get_state_event_for_key(self.ctx(user), request).await?;
        Ok(serde_json::from_str(response.event_or_content.get()).unwrap())
    }

    async fn messages(&self, user: &str, room: &RoomId, query: &str) -> Result<Value, ApiError> {
        let request: get_message_events::v3::Request = query_request(&[room.as_str()], query);
        let response = messages::get_message_events(self.ctx(user), request).await?;
        let ids = |events: &[Box<RawValue>]| -> Vec<Value> {
            events.iter().map(|event| serde_json::from_str(event.get()).unwrap()).collect()
        };
        let chunk: Vec<_> = response.chunk.into_iter().map(|event| event.into_json()).collect();
        let state: Vec<_> = response.state.into_iter().map(|event| event.into_json()).collect();
        Ok(
            json!({ "start": response.start, "end": response.end, "chunk": ids(&chunk), "state": ids(&state) }),
        )
    }

    async fn redact(&self, user: &str, room: &RoomId, event: &EventId) -> Result<OwnedEventId, ApiError> {
        let request: redact_event::v3::Request = request(&[room.as_str(), event.as_str(), "r"], json!({}));
        redaction::redact_event(self.ctx(user), request).await.map(|response| response.event_id)
    }
}

fn query_request<R: IncomingRequest + ruma::api::Metadata>(path: &[&str], query: &str) -> R {
    let request = http::Request::builder().method(R::METHOD).uri(format!("/?{query}")).body(&[][..]).unwrap();
    R::try_from_http_request_inner(request, path).unwrap()
}

/// The ids in a list of events.
fn ids(events: &Value) -> Vec<&str> {
    events.as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap()).collect()
}

fn request<R: IncomingRequest + ruma::api::Metadata>(path: &[&str], body: Value) -> R {
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
    let request = http::Request::builder().method(R::METHOD).uri("/").body(&*body).unwrap();
    R::try_from_http_request_inner(request, path).unwrap()
}

fn errcode<T>(result: Result<T, ApiError>) -> (u16, String) {
    let error = result.err().expect("a refusal");
    (error.status().as_u16(), error.errcode().unwrap().to_string())
}

fn forbidden() -> (u16, String) {
    (403, "M_FORBIDDEN".to_owned())
}

#[tokio::test]
async fn two_alike_rooms_in_one_millisecond_are_two_rooms() {
    let server = Server::start().await;
    let first = server.room("a", json!({})).await;
    let second = server.room("a", json!({})).await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn an_alias_is_given_away_once() {
    let server = Server::start().await;
    let room = server.room("a", json!({ "room_alias_name": "lobby", "preset": "public_chat" })).await;
    let again: create_room::v3::Request = request(&[], json!({ "room_alias_name": "lobby" }));
    let refused = creation::create_room(server.ctx("b"), again).await;
    assert_eq!(errcode(refused), (400, "M_ROOM_IN_USE".to_owned()));
    let by_alias: join_room_by_id_or_alias::v3::Request = request(&["#lobby:x"], json!({}));
    let joined = joining::join_room_by_id_or_alias(server.ctx("b"), by_alias).await.unwrap();
    assert_eq!(joined.room_id, room);
    let unknown: join_room_by_id_or_alias::v3::Request = request(&["#nobody:x"], json!({}));
    let refused = joining::join_room_by_id_or_alias(server.ctx("b"), unknown).await;
    assert_eq!(errcode(refused), (404, "M_NOT_FOUND".to_owned()));
}

#[tokio::test]
async fn membership_goes_its_way() {
    let server = Server::start().await;
    let room = &server.room("a", json!({})).await;
    assert_eq!(errcode(server.join("b", room).await), forbidden());
    assert_eq!(errcode(server.send("b", room, "1").await), forbidden());
    server.invite("a", room, "@b:x").await.unwrap();
    server.join("b", room).await.unwrap();
    let joined = server.get("b", room, ("m.room.member", "@b:x")).await.unwrap();
    assert_eq!(joined["membership"], "join");
    let before = server.app.tail.room(room).await.unwrap().unwrap().position;
    server.join("b", room).await.unwrap();
    assert_eq!(server.app.tail.room(room).await.unwrap().unwrap().position, before, "joined already");

    server.leave("b", room).await.unwrap();
    server.leave("b", room).await.unwrap();
    assert_eq!(errcode(server.leave("c", room).await), forbidden());
    assert_eq!(errcode(server.invite("a", room, "@b:elsewhere").await), forbidden());
    let kick: kick_user::v3::Request = request(&[room.as_str()], json!({ "user_id": "@b:x" }));
    assert_eq!(errcode(membership::kick_user(server.ctx("a"), kick).await), forbidden());
}

#[tokio::test]
async fn who_left_reads_the_room_as_it_was_until_they_forget_it() {
    let server = Server::start().await;
    let room = &server.room("a", json!({ "name": "old", "preset": "public_chat" })).await;
    let forget = || request::<forget_room::v3::Request>(&[room.as_str()], json!({}));
    assert_eq!(errcode(server.get("b", room, ("m.room.name", "")).await), forbidden());
    server.join("b", room).await.unwrap();
    let refused = membership::forget_room(server.ctx("b"), forget()).await;
    assert_eq!(errcode(refused), (400, "M_UNKNOWN".to_owned()));
    server.leave("b", room).await.unwrap();
    server.set("a", room, ("m.room.name", ""), json!({ "name": "new" })).await.unwrap();
    assert_eq!(server.get("b", room, ("m.room.name", "")).await.unwrap()["name"], "old");
    assert_eq!(server.get("a", room, ("m.room.name", "")).await.unwrap()["name"], "new");
    let all: get_state_events::v3::Request = request(&[room.as_str()], Value::Null);
    let all = state::get_state_events(server.ctx("b"), all).await.unwrap();
    let names = all.room_state.iter().filter(|event| event.json().get().contains(r#""name":"old""#));
    assert_eq!(names.count(), 1);

    membership::forget_room(server.ctx("b"), forget()).await.unwrap();
    assert_eq!(errcode(server.get("b", room, ("m.room.name", "")).await), forbidden());
    server
        .set("a", room, ("m.room.history_visibility", ""), json!({ "history_visibility": "world_readable" }))
        .await
        .unwrap();
    assert_eq!(server.get("c", room, ("m.room.name", "")).await.unwrap()["name"], "new");
}

#[tokio::test]
async fn a_transaction_is_done_once_and_state_is_set_once() {
    let server = Server::start().await;
    let room = &server.room("a", json!({})).await;
    let first = server.send("a", room, "1").await.unwrap();
    assert_eq!(server.send("a", room, "1").await.unwrap(), first);
    assert_ne!(server.send("a", room, "2").await.unwrap(), first);
    let topic = ("m.room.topic", "");
    let set = server.set("a", room, topic, json!({ "topic": "t" })).await.unwrap();
    assert_eq!(server.set("a", room, topic, json!({ "topic": "t" })).await.unwrap(), set);
    assert_ne!(server.set("a", room, topic, json!({ "topic": "u" })).await.unwrap(), set);
    let alias = server.set("a", room, ("m.room.canonical_alias", ""), json!({ "alias": "#none:x" })).await;
    assert_eq!(errcode(alias), (400, "M_BAD_ALIAS".to_owned()));
    let number = server.set("a", room, topic, json!({ "topic": 1.5 })).await;
    assert_eq!(errcode(number), (400, "M_BAD_JSON".to_owned()));
}

#[tokio::test]
async fn a_restricted_room_admits_members_of_its_rooms_only() {
    let server = Server::start().await;
    let space = &server.room("a", json!({ "preset": "public_chat" })).await;
    let rule = json!({ "join_rule": "restricted", "allow": [
        { "type": "m.room_membership", "room_id": space },
    ]});
    let state = json!([{ "type": "m.room.join_rules", "content": rule }]);
    let room = &server.room("a", json!({ "initial_state": state })).await;
    assert_eq!(errcode(server.join("b", room).await), forbidden());
    // Nor may they name somebody who lets them in.
    let member = ("m.room.member", "@b:x");
    let own = json!({ "membership": "join", "join_authorised_via_users_server": "@a:x" });
    assert_eq!(errcode(server.set("b", room, member, own).await), forbidden());
    server.join("b", space).await.unwrap();
    server.join("b", room).await.unwrap();
    let joined = server.get("b", room, member).await.unwrap();
    assert_eq!(joined["join_authorised_via_users_server"], "@a:x");
    server.set("b", room, member, json!({ "membership": "join", "displayname": "B" })).await.unwrap();
}

#[tokio::test]
async fn a_knock_is_answered_by_an_invitation_or_taken_back() {
    let server = Server::start().await;
    let closed = &server.room("a", json!({})).await;
    let state = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
    let room = &server.room("a", json!({ "initial_state": state })).await;
    let knock = |user: &'static str, room: &RoomId| {
        let request = request::<knock_room::v3::Request>(&[room.as_str()], json!({ "reason": "please" }));
        joining::knock_room(server.ctx(user), request)
    };
    assert_eq!(errcode(knock("b", closed).await), forbidden());
    knock("b", room).await.unwrap();
    let member = server.get("a", room, ("m.room.member", "@b:x")).await.unwrap();
    assert_eq!((&member["membership"], &member["reason"]), (&json!("knock"), &json!("please")));
    assert_eq!(errcode(server.join("b", room).await), forbidden());
    server.leave("b", room).await.unwrap();
    knock("b", room).await.unwrap();
    server.invite("a", room, "@b:x").await.unwrap();
    assert_eq!(errcode(knock("b", room).await), forbidden(), "invited already");
    server.join("b", room).await.unwrap();
}

#[tokio::test]
async fn an_invitation_by_address_is_refused() {
    let server = Server::start().await;
    let room = &server.room("a", json!({})).await;
    let address = json!({
        "id_server": "i", "id_access_token": "t", "medium": "email", "address": "b@example.org",
    });
    let invite: invite_user::v3::Request = request(&[room.as_str()], address.clone());
    let refused = membership::invite_user(server.ctx("a"), invite).await;
    assert_eq!(errcode(refused), (403, "M_THREEPID_DENIED".to_owned()));
    let create: create_room::v3::Request = request(&[], json!({ "invite_3pid": [address] }));
    let refused = creation::create_room(server.ctx("a"), create).await;
    assert_eq!(errcode(refused), (403, "M_THREEPID_DENIED".to_owned()));
}

#[tokio::test]
async fn redaction_needs_power_and_a_target() {
    let server = Server::start().await;
    let room = &server.room("a", json!({ "preset": "public_chat" })).await;
    server.join("b", room).await.unwrap();
    let event = server.send("a", room, "1").await.unwrap();
    assert_eq!(errcode(server.redact("b", room, &event).await), forbidden());
    let unknown = ruma::event_id!("$unknown");
    assert_eq!(errcode(server.redact("a", room, unknown).await), (404, "M_NOT_FOUND".to_owned()));
    let redaction = server.redact("a", room, &event).await.unwrap();
    assert_eq!(server.redact("a", room, &event).await.unwrap(), redaction);
    let own = server.send("b", room, "1").await.unwrap();
    server.redact("b", room, &own).await.unwrap();
    // A redaction that is sent as an event obeys the same rules.
    let body = json!({ "redacts": event });
    let sent: send_message_event::v3::Request = request(&[room.as_str(), "m.room.redaction", "2"], body);
    assert_eq!(errcode(sending::send_message_event(server.ctx("b"), sent).await), forbidden());
}

#[tokio::test]
async fn pages_meet_without_gap_or_overlap() {
    let server = Server::start().await;
    let room = &server.room("a", json!({ "preset": "public_chat" })).await;
    for id in 0..7 {
        server.send("a", room, &id.to_string()).await.unwrap();
    }
    let mut all = Vec::new();
    let mut from = String::new();
    loop {
        let page = server.messages("a", room, &format!("dir=b&limit=3{from}")).await.unwrap();
        all.extend(ids(&page["chunk"]).into_iter().map(str::to_owned));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => break,
        }
    }
    let forward = server.messages("a", room, "dir=f&limit=100").await.unwrap();
    assert!(forward["end"].is_null());
    all.reverse();
    assert_eq!(ids(&forward["chunk"]), all);

    let middle = server.messages("a", room, "dir=f&limit=3").await.unwrap();
    let to = middle["end"].as_str().unwrap();
    let back = server.messages("a", room, &format!("dir=b&limit=100&to={to}")).await.unwrap();
    let mut back = ids(&back["chunk"]);
    back.reverse();
    assert_eq!(back, all[3..]);
    assert_eq!(
        errcode(server.messages("a", room, "dir=b&from=s1").await),
        (400, "M_INVALID_PARAM".to_owned())
    );
}

#[tokio::test]
async fn members_are_loaded_lazily_and_filters_apply() {
    let server = Server::start().await;
    let room = &server.room("a", json!({ "preset": "public_chat" })).await;
    server.join("b", room).await.unwrap();
    server.send("b", room, "1").await.unwrap();
    let filter = "%7B%22lazy_load_members%22:true,%22types%22:%5B%22m.room.message%22%5D%7D";
    let page = server.messages("a", room, &format!("dir=b&filter={filter}")).await.unwrap();
    assert_eq!(ids(&page["chunk"]).len(), 1);
    assert_eq!(page["state"].as_array().unwrap().len(), 1);
    assert_eq!(page["state"][0]["state_key"], "@b:x");
    let nothing = "%7B%22types%22:%5B%5D%7D";
    let page = server.messages("a", room, &format!("dir=b&filter={nothing}")).await.unwrap();
    assert!(ids(&page["chunk"]).is_empty() && page["end"].is_null());
}

#[tokio::test]
async fn events_tell_what_they_replaced_and_what_emptied_them() {
    let server = Server::start().await;
    let room = &server.room("a", json!({ "name": "one" })).await;
    let two = server.set("a", room, ("m.room.name", ""), json!({ "name": "two" })).await.unwrap();
    let three = server.set("a", room, ("m.room.name", ""), json!({ "name": "three" })).await.unwrap();
    let message = server.send("a", room, "1").await.unwrap();
    let redaction = server.redact("a", room, &message).await.unwrap();
    let page = server.messages("a", room, "dir=b&limit=4").await.unwrap();
    assert_eq!(ids(&page["chunk"]), [redaction.as_str(), message.as_str(), three.as_str(), two.as_str()]);
    let unsigned = |index: usize| &page["chunk"][index]["unsigned"];
    assert_eq!(unsigned(0)["transaction_id"], "r");
    assert_eq!(unsigned(1)["redacted_because"]["event_id"], redaction.as_str());
    assert_eq!(unsigned(2)["prev_content"], json!({ "name": "two" }));
    assert_eq!(unsigned(2)["replaces_state"], two.as_str());
    assert_eq!(unsigned(3)["prev_content"], json!({ "name": "one" }));
}

#[tokio::test]
async fn an_upgraded_room_leaves_its_names_and_bans_to_the_new_one() {
    let server = Server::start().await;
    let old = &server
        .room(
            "a",
            json!({ "room_version": "11", "preset": "public_chat", "room_alias_name": "lobby", "name": "n" }),
        )
        .await;
    server.join("b", old).await.unwrap();
    server.join("c", old).await.unwrap();
    let ban: ban_user::v3::Request = request(&[old.as_str()], json!({ "user_id": "@c:x" }));
    membership::ban_user(server.ctx("a"), ban).await.unwrap();
    let upgrade = |user: &'static str, version: &str| {
        let body = json!({ "new_version": version });
        upgrade::upgrade_room(server.ctx(user), request(&[old.as_str()], body))
    };
    assert_eq!(errcode(upgrade("b", "12").await), forbidden());
    assert_eq!(errcode(upgrade("a", "1").await), (400, "M_UNSUPPORTED_ROOM_VERSION".to_owned()));
    let new = &upgrade("a", "12").await.unwrap().replacement_room;

    let create = server.get("a", new, ("m.room.create", "")).await.unwrap();
    assert_eq!((&create["room_version"], &create["predecessor"]["room_id"]), (&json!("12"), &json!(old)));
    assert_eq!(server.get("a", new, ("m.room.name", "")).await.unwrap()["name"], "n");
    assert_eq!(errcode(server.join("c", new).await), forbidden());
    let by_alias: join_room_by_id_or_alias::v3::Request = request(&["#lobby:x"], json!({}));
    assert_eq!(&joining::join_room_by_id_or_alias(server.ctx("b"), by_alias).await.unwrap().room_id, new);
    let tombstone = server.get("b", old, ("m.room.tombstone", "")).await.unwrap();
    assert_eq!(tombstone["replacement_room"], json!(new));
    assert_eq!(errcode(server.send("b", old, "1").await), forbidden());
}

#[tokio::test]
async fn a_moderator_who_upgrades_a_room_is_a_moderator_in_the_new_one() {
    let server = Server::start().await;
    let old = &server.room("a", json!({ "room_version": "10", "preset": "public_chat" })).await;
    server.join("b", old).await.unwrap();
    server.join("c", old).await.unwrap();
    let ban: ban_user::v3::Request = request(&[old.as_str()], json!({ "user_id": "@c:x" }));
    membership::ban_user(server.ctx("a"), ban).await.unwrap();
    let mut levels = server.get("a", old, ("m.room.power_levels", "")).await.unwrap();
    levels["users"]["@b:x"] = json!(50);
    levels["events"]["m.room.tombstone"] = json!(50);
    server.set("a", old, ("m.room.power_levels", ""), levels.clone()).await.unwrap();
    let upgrade = request(&[old.as_str()], json!({ "new_version": "11" }));
    let new = &upgrade::upgrade_room(server.ctx("b"), upgrade).await.unwrap().replacement_room;
    assert_eq!(server.get("b", new, ("m.room.power_levels", "")).await.unwrap(), levels);
    assert_eq!(errcode(server.join("c", new).await), forbidden());
    server.join("a", new).await.unwrap();
    levels["users"]["@b:x"] = json!(0);
    server.set("a", new, ("m.room.power_levels", ""), levels).await.unwrap();
}

#[tokio::test]
async fn an_event_is_found_with_what_surrounds_it_and_by_its_time() {
    let server = Server::start().await;
    let room = &server.room("a", json!({ "preset": "public_chat" })).await;
    let mut sent = Vec::new();
    for id in 0..5 {
        server.clock.advance(std::time::Duration::from_millis(100));
        sent.push(server.send("a", room, &id.to_string()).await.unwrap());
    }
    let path = [room.as_str(), sent[2].as_str()];
    let around: get_context::v3::Request = query_request(&path, "limit=3");
    let around = messages::get_context(server.ctx("a"), around).await.unwrap();
    let around: Value = serde_json::from_slice(&around.0).unwrap();
    assert_eq!(around["event"]["event_id"], json!(sent[2]));
    assert_eq!((ids(&around["events_before"]).len(), ids(&around["events_after"]).len()), (1, 2));
    let token = |end: &str| around[end].as_str().unwrap().to_owned();
    let on = format!("dir=f&from={}", token("end"));
    assert!(ids(&server.messages("a", room, &on).await.unwrap()["chunk"]).is_empty());
    let back = format!("dir=b&limit=1&from={}", token("start"));
    assert_eq!(ids(&server.messages("a", room, &back).await.unwrap()["chunk"]), [sent[0].as_str()]);

    let hidden = |user: &'static str| {
        let request: get_room_event::v3::Request = query_request(&path, "");
        messages::get_room_event(server.ctx(user), request)
    };
    assert!(hidden("a").await.is_ok());
    assert_eq!(errcode(hidden("b").await), (404, "M_NOT_FOUND".to_owned()));

    // Events at +100 .. +500 after the clock's start.
    let table = [(250, "f", 2), (300, "f", 2), (300, "b", 2), (299, "b", 1), (9_999, "b", 4)];
    for (after, dir, expected) in table {
        let query = format!("ts={}&dir={dir}", START + after);
        let request: get_event_by_timestamp::v1::Request = query_request(&[room.as_str()], &query);
        let found = messages::get_event_by_timestamp(server.ctx("a"), request).await.unwrap();
        assert_eq!(found.event_id, sent[expected], "{query}");
    }
    let query = format!("ts={}&dir=f", START + 501);
    let request: get_event_by_timestamp::v1::Request = query_request(&[room.as_str()], &query);
    let refused = messages::get_event_by_timestamp(server.ctx("a"), request).await;
    assert_eq!(errcode(refused), (404, "M_NOT_FOUND".to_owned()));
}

/// Sends an event that relates to another; returns its id.
async fn relate(
    server: &Server,
    who: &str,
    room: &RoomId,
    relation: (&str, &EventId),
    body: &str,
) -> OwnedEventId {
    let (rel_type, parent) = relation;
    let content = json!({
        "body": body, "m.new_content": { "body": body },
        "m.relates_to": { "rel_type": rel_type, "event_id": parent },
    });
    let id = format!("{rel_type}{body}");
    let request: send_message_event::v3::Request = request(&[room.as_str(), "m.room.message", &id], content);
    sending::send_message_event(server.ctx(who), request).await.unwrap().event_id
}

async fn relations(
    server: &Server,
    who: &str,
    path: (&RoomId, &EventId),
    query: &str,
) -> Result<Value, ApiError> {
    let request: get_relating_events::v1::Request = query_request(&[path.0.as_str(), path.1.as_str()], query);
    let response = super::relations::get_relating_events(server.ctx(who), request).await?;
    let chunk: Vec<_> = response
        .chunk
        .iter()
        .map(|event| serde_json::from_str(event.json().get()).unwrap())
        .collect::<Vec<Value>>();
    Ok(json!({
        "chunk": chunk, "next_batch": response.next_batch, "prev_batch": response.prev_batch,
        "recursion_depth": response.recursion_depth,
    }))
}

async fn event(server: &Server, who: &str, room: &RoomId, event: &EventId) -> Value {
    let request: get_room_event::v3::Request = query_request(&[room.as_str(), event.as_str()], "");
    let response = messages::get_room_event(server.ctx(who), request).await.unwrap();
    serde_json::from_str(response.event.json().get()).unwrap()
}

#[tokio::test]
async fn relations_are_read_in_pages_in_either_direction() {
    let server = Server::start().await;
    let room = &server.room("a", json!({ "preset": "public_chat" })).await;
    let root = &server.send("a", room, "root").await.unwrap();
    let mut children = Vec::new();
    for number in 0..5 {
        children.push(relate(&server, "a", room, ("m.thread", root), &number.to_string()).await);
    }
    let children: Vec<&str> = children.iter().map(|id| id.as_str()).collect();
    let first = relations(&server, "a", (room, root), "limit=2").await.unwrap();
    assert_eq!(ids(&first["chunk"]), [children[4], children[3]]);
    assert_eq!((&first["prev_batch"], &first["recursion_depth"]), (&Value::Null, &Value::Null));
    let next = first["next_batch"].as_str().unwrap();
    let second = relations(&server, "a", (room, root), &format!("limit=5&from={next}")).await.unwrap();
    assert_eq!(ids(&second["chunk"]), [children[2], children[1], children[0]]);
    assert_eq!((&second["prev_batch"], &second["next_batch"]), (&json!(next), &Value::Null));
    let until = relations(&server, "a", (room, root), &format!("to={next}")).await.unwrap();
    assert_eq!(ids(&until["chunk"]), [children[4], children[3]]);
    let forward = relations(&server, "a", (room, root), "limit=3&dir=f").await.unwrap();
    assert_eq!(ids(&forward["chunk"]), children[..3]);
    let next = forward["next_batch"].as_str().unwrap();
    let rest = relations(&server, "a", (room, root), &format!("dir=f&from={next}")).await.unwrap();
    assert_eq!(ids(&rest["chunk"]), children[3..]);
    let bad = relations(&server, "a", (room, root), "from=x").await;
    assert_eq!(errcode(bad), (400, "M_INVALID_PARAM".to_owned()));
    let stranger = relations(&server, "z", (room, root), "").await;
    assert_eq!(errcode(stranger), (404, "M_NOT_FOUND".to_owned()));
    let unknown = relations(&server, "a", (room, &EventId::parse("$x").unwrap()), "").await;
    assert_eq!(errcode(unknown), (404, "M_NOT_FOUND".to_owned()));
}

#[tokio::test]
async fn relations_of_relations_are_found_down_to_a_depth() {
    let server = Server::start().await;
    let room = &server.room("a", json!({})).await;
    let root = &server.send("a", room, "root").await.unwrap();
    let mut chain = vec![root.clone()];
    for (number, rel_type) in ["m.thread", "m.annotation", "m.reference", "m.reference"].iter().enumerate() {
        let parent = chain.last().unwrap().clone();
        chain.push(relate(&server, "a", room, (rel_type, &parent), &number.to_string()).await);
    }
    let all = relations(&server, "a", (room, root), "recurse=true").await.unwrap();
    assert_eq!(ids(&all["chunk"]), [chain[3].as_str(), chain[2].as_str(), chain[1].as_str()]);
    assert_eq!(all["recursion_depth"], 3);
    let path = [room.as_str(), root.as_str(), "m.reference"];
    let request: get_relating_events_with_rel_type::v1::Request = query_request(&path, "recurse=true");
    let found = super::relations::get_relating_events_with_rel_type(server.ctx("a"), request).await.unwrap();
    assert_eq!(found.chunk.len(), 1, "what lies between is of other kinds");
    let path = [room.as_str(), root.as_str(), "m.thread", "m.room.encrypted"];
    let request: get_relating_events_with_rel_type_and_event_type::v1::Request = query_request(&path, "");
    let found = super::relations::get_relating_events_with_rel_type_and_event_type(server.ctx("a"), request);
    assert!(found.await.unwrap().chunk.is_empty());
}

#[tokio::test]
async fn an_event_is_shown_with_what_its_children_say() {
    let server = Server::start().await;
    let room = &server.room("a", json!({ "preset": "public_chat" })).await;
    server.join("b", room).await.unwrap();
    let root = &server.send("a", room, "root").await.unwrap();
    assert_eq!(event(&server, "a", room, root).await["unsigned"].get("m.relations"), None);
    relate(&server, "a", room, ("m.replace", root), "first").await;
    let newest = relate(&server, "a", room, ("m.replace", root), "second").await;
    relate(&server, "b", room, ("m.replace", root), "not mine").await;
    let reference = relate(&server, "b", room, ("m.reference", root), "see").await;
    relate(&server, "b", room, ("m.thread", root), "reply").await;
    let latest = relate(&server, "b", room, ("m.thread", root), "last").await;
    let edited = relate(&server, "b", room, ("m.replace", &latest), "edited").await;
    let shown = event(&server, "a", room, root).await;
    let relations = &shown["unsigned"]["m.relations"];
    assert_eq!(relations["m.replace"]["event_id"], json!(newest));
    assert_eq!(relations["m.reference"], json!({ "chunk": [{ "event_id": reference }] }));
    let thread = &relations["m.thread"];
    assert_eq!((&thread["count"], &thread["current_user_participated"]), (&json!(2), &json!(true)));
    assert_eq!(thread["latest_event"]["event_id"], json!(latest));
    assert_eq!(thread["latest_event"]["unsigned"]["m.relations"]["m.replace"]["event_id"], json!(edited));

    server.redact("a", room, &newest).await.unwrap();
    let shown = event(&server, "a", room, root).await;
    assert_eq!(shown["unsigned"]["m.relations"]["m.replace"]["content"]["body"], "first");
    let shown = server.messages("a", room, "dir=b&limit=50").await.unwrap();
    let shown = shown["chunk"].as_array().unwrap().iter().find(|event| event["event_id"] == json!(root));
    assert_eq!(shown.unwrap()["unsigned"]["m.relations"]["m.thread"]["count"], 2);
}

#[tokio::test]
async fn a_thread_does_not_begin_within_another() {
    let server = Server::start().await;
    let room = &server.room("a", json!({})).await;
    let root = &server.send("a", room, "root").await.unwrap();
    let reply = relate(&server, "a", room, ("m.thread", root), "reply").await;
    let content = json!({ "body": "x", "m.relates_to": { "rel_type": "m.thread", "event_id": reply } });
    let send = |who: &str, id: &str| {
        let path = [room.as_str(), "m.room.message", id];
        let request: send_message_event::v3::Request = request(&path, content.clone());
        sending::send_message_event(server.ctx(who), request)
    };
    assert_eq!(errcode(send("a", "nested").await), (400, "M_UNKNOWN".to_owned()));
    assert_eq!(errcode(send("z", "nested").await), forbidden());
}

#[tokio::test]
async fn relationships_that_nobody_noted_are_found_on_first_use() {
    let server = Server::start().await;
    let room = &server.room("a", json!({})).await;
    let root = &server.send("a", room, "root").await.unwrap();
    let old = relate(&server, "a", room, ("m.thread", root), "old").await;
    // As a version leaves it that notes no relationships.
    let forgotten = server
        .app
        .store
        .write("test", |tx| async move { keystead_store::rooms::forget_relations(&tx, room).await });
    forgotten.await.unwrap();
    let new = relate(&server, "a", room, ("m.thread", root), "new").await;
    for _ in 0..2 {
        let found = relations(&server, "a", (room, root), "").await.unwrap();
        assert_eq!(ids(&found["chunk"]), [new.as_str(), old.as_str()]);
    }
    let newest = relate(&server, "a", room, ("m.thread", root), "newest").await;
    let unnoted = server
        .app
        .store
        .read("test", |tx| async move { keystead_store::rooms::with_unindexed_relations(&tx, 9).await });
    assert_eq!(unnoted.await.unwrap(), [""; 0], "whoever appends at the end keeps it noted");
    let found = relations(&server, "a", (room, root), "").await.unwrap();
    assert_eq!(ids(&found["chunk"]), [newest.as_str(), new.as_str(), old.as_str()]);
}

#[tokio::test]
async fn threads_are_listed_by_their_newest_events() {
    let server = Server::start().await;
    let room = &server.room("a", json!({ "preset": "public_chat" })).await;
    server.join("b", room).await.unwrap();
    let (first, second, third) = (
        server.send("a", room, "1").await.unwrap(),
        server.send("b", room, "2").await.unwrap(),
        server.send("b", room, "3").await.unwrap(),
    );
    relate(&server, "b", room, ("m.thread", &first), "1a").await;
    relate(&server, "b", room, ("m.thread", &second), "2a").await;
    relate(&server, "b", room, ("m.thread", &third), "3a").await;
    relate(&server, "b", room, ("m.thread", &first), "1b").await;
    let threads = async |who: &str, query: &str| {
        let request: get_threads::v1::Request = query_request(&[room.as_str()], query);
        let response = super::relations::get_threads(server.ctx(who), request).await.unwrap();
        let chunk: Vec<Value> =
            response.chunk.iter().map(|event| serde_json::from_str(event.json().get()).unwrap()).collect();
        (json!(chunk), response.next_batch)
    };
    let (page, next) = threads("a", "limit=2").await;
    assert_eq!(ids(&page), [first.as_str(), third.as_str()]);
    assert_eq!(page[0]["unsigned"]["m.relations"]["m.thread"]["count"], 2);
    let (page, next) = threads("a", &format!("limit=2&from={}", next.unwrap())).await;
    assert_eq!((ids(&page), next), (vec![second.as_str()], None));
    let (page, _) = threads("a", "include=participated").await;
    assert_eq!(ids(&page), [first.as_str()]);
    relate(&server, "a", room, ("m.thread", &second), "2b").await;
    let (page, _) = threads("a", "include=participated").await;
    assert_eq!(ids(&page), [second.as_str(), first.as_str()]);
}
