//! Any JSON as what a homeserver says to a KeyBox: answers of `/keys/query` and `/sync`. Nothing that Alice has not said is taken for hers, her keys
//! stay what they are, and what is stored can be read again.
//!
//! Some texts stand for what no fuzzer makes: `"<key set>"` for Alice's key set, `"<other>"` for one with other keys that is signed as well as hers,
//! `"<sealed>"` for a message of hers, `"<key>"` for the key message with a resource key of hers. Key messages are tried as they are and
//! signed by Alice.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use keystead_client::engine::{Engine, KeyQuery, Outgoing, Readiness, Record};
use keystead_client::events::{Events, JoinedRoom, RoomEvent, SyncResponse, Timeline, ToDeviceEvent};
use keystead_keybox::key_message::{
    Acknowledgement, KeyMessage, KeyRequest, Recipient, ResourceKeyContent, Withheld, sign,
};
use keystead_keybox::key_set::PrivateKeySet;
use keystead_keybox::{OpensslEntropy, suite};
use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde_json::{Map, Value, json};

const ROOM: &str = "!r:x";
const ALICE: &str = "@a:x";
const BOB: &str = "@b:x";
const NOW: u64 = 1_000_000;
const SAID: &str = "what Alice said";

/// Bob's KeyBox as it is stored, and what Alice has made.
struct World {
    alice: PrivateKeySet,
    bob: PrivateKeySet,
    stored: BTreeMap<String, Vec<u8>>,
    placeholders: BTreeMap<&'static str, Value>,
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    keys: KeyQuery,
    sync: SyncResponse,
}

fuzz_target!(|data: &[u8]| {
    let Ok(mut said) = serde_json::from_slice::<Value>(data) else { return };
    WORLD.fill_in(&mut said);
    let Ok(said) = Said::deserialize(said) else { return };
    WORLD.hear(&said.keys, &said.sync);
    let mut signed = said.sync;
    for event in &mut signed.to_device.events {
        WORLD.sign(event);
    }
    WORLD.hear(&said.keys, &signed);
});

impl World {
    fn new() -> Self {
        let keys =
            |user_id: &str, id: &str| PrivateKeySet::generate(user_id, id, &mut OpensslEntropy).unwrap();
        let (alice, bob) = (keys(ALICE, "A1"), keys(BOB, "B1"));
        let [mut a, mut b] = [&alice, &bob].map(|keys| Engine::new(keys.clone()).unwrap());
        let room = sync(begin());
        for engine in [&mut a, &mut b] {
            engine.receive_sync(&room, NOW, &mut OpensslEntropy).unwrap();
        }
        let shown =
            [&alice, &bob].map(|keys| (keys.user_id(), keys.keybox_id(), keys.device_keys().unwrap()));
        let query = query(&shown);
        settle(&mut a, &query);
        settle(&mut b, &query);
        let Readiness::Ready(key) = a.prepare(ROOM, NOW, &mut OpensslEntropy, &mut Vec::new()).unwrap()
        else {
            panic!("the key sets are there");
        };
        let given = settle(&mut a, &query).remove("com.trustner.keybox.resource_key").unwrap();
        let mut seal = || {
            let content = json!({ "msgtype": "m.text", "body": SAID });
            serde_json::to_value(a.encrypt(&key, "m.room.message", content, &mut OpensslEntropy).unwrap())
                .unwrap()
        };
        let (first, second) = (seal(), seal());
        let other = keys(ALICE, "A1").device_keys().unwrap();
        let heard = SyncResponse {
            to_device: Events { events: vec![to_device("com.trustner.keybox.resource_key", given.clone())] },
            ..sync(vec![event("m.room.encrypted", None, ALICE, first)])
        };
        b.receive_sync(&heard, NOW, &mut OpensslEntropy).unwrap();
        settle(&mut b, &query);
        assert_eq!(b.unread(None, 9).len(), 1, "Bob reads what Alice said");
        let stored = b.take_changes().unwrap().into_iter().map(|record| (record.name, record.json.to_vec()));
        let placeholders = BTreeMap::from([
            ("<key set>", alice.device_keys().unwrap().into()),
            ("<other>", other.into()),
            ("<sealed>", second),
            ("<key>", given),
        ]);
        let stored = stored.collect();
        Self { alice, bob, stored, placeholders }
    }

    fn load(&self, stored: &BTreeMap<String, Vec<u8>>) -> Engine {
        let records =
            stored.iter().map(|(name, json)| Record { name: name.clone(), json: json.clone().into() });
        Engine::load(self.bob.clone(), &records.collect::<Vec<_>>()).unwrap()
    }

    fn fill_in(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Some(meant) = self.placeholders.get(text.as_str()) {
                    *value = meant.clone();
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.fill_in(item)),
            Value::Object(members) => members.values_mut().for_each(|member| self.fill_in(member)),
            _ => {}
        }
    }

    fn sign(&self, event: &mut ToDeviceEvent) {
        fn signed<M: KeyMessage>(keys: &PrivateKeySet, content: &Value) -> Option<Value> {
            let mut content = content.clone();
            *content.get_mut("sender_keybox")? = "A1".into();
            let message: M = serde_json::from_value(content).ok()?;
            sign(&message, keys, Recipient { user_id: BOB, keybox_id: "B1" }).ok()
        }
        event.sender = ALICE.to_owned();
        let content = match event.event_type.strip_prefix("com.trustner.keybox.") {
            Some("resource_key") => signed::<ResourceKeyContent>(&self.alice, &event.content),
            Some("resource_key_request") => signed::<KeyRequest>(&self.alice, &event.content),
            Some("resource_key.withheld") => signed::<Withheld>(&self.alice, &event.content),
            Some("resource_key.ack") => signed::<Acknowledgement>(&self.alice, &event.content),
            _ => None,
        };
        event.content = content.unwrap_or_default();
    }

    fn hear(&self, keys: &KeyQuery, sync: &SyncResponse) {
        let mut bob = self.load(&self.stored);
        let mut stored = self.stored.clone();
        let asked: Vec<_> = [ALICE, BOB].map(str::to_owned).to_vec();
        // Twice, and started anew in between: nothing that is heard again may change what holds.
        for _ in 0..2 {
            bob.begin_batch("token");
            bob.receive_key_sets(&asked, keys, NOW, &mut OpensslEntropy).unwrap();
            bob.receive_sync(sync, NOW, &mut OpensslEntropy).unwrap();
            bob.outgoing(NOW, &mut OpensslEntropy, &mut Vec::new()).unwrap();
            self.check(&mut bob);
            let changed = bob.take_changes().unwrap();
            stored.extend(changed.into_iter().map(|record| (record.name, record.json.to_vec())));
            bob = self.load(&stored);
            self.check(&mut bob);
        }
    }

    fn check(&self, bob: &mut Engine) {
        let room = &bob.rooms()[ROOM];
        assert!(room.suite.as_deref().is_some_and(suite::is_keybox_suite), "the encryption is gone");
        assert!((1..=100_000).contains(&room.rotation_period_msgs));
        let alice = bob.keyboxes(ALICE).into_iter().find(|known| known.keys.keybox_id == "A1").unwrap();
        assert_eq!(alice.keys.hash(), self.alice.public().unwrap().hash(), "her keys have changed");
        assert!(!alice.is_verified(), "nobody has compared her keys");
        let blocked = alice.blocks_sending();
        for message in bob.unread(None, usize::MAX).iter().filter(|message| message.encrypted) {
            assert_eq!((&*message.room_id, &*message.sender), (ROOM, ALICE));
            assert_eq!((message.body(), message.verified), (Some(SAID), false));
        }
        let prepared = bob.prepare(ROOM, NOW, &mut OpensslEntropy, &mut Vec::new());
        let alice_reads = bob.rooms()[ROOM]
            .members
            .get(ALICE)
            .is_some_and(|membership| *membership == keystead_client::engine::Membership::Join);
        if blocked && alice_reads {
            assert!(!matches!(prepared, Ok(Readiness::Ready(_))), "sent to changed keys");
        }
    }
}

fn event(event_type: &str, state_key: Option<&str>, sender: &str, content: Value) -> RoomEvent {
    RoomEvent {
        event_type: event_type.to_owned(),
        state_key: state_key.map(str::to_owned),
        sender: sender.to_owned(),
        event_id: format!("${event_type} {sender}"),
        origin_server_ts: NOW,
        content,
    }
}

fn to_device(event_type: &str, content: Value) -> ToDeviceEvent {
    ToDeviceEvent { event_type: event_type.to_owned(), sender: ALICE.to_owned(), content }
}

/// A room of Alice and Bob.
fn begin() -> Vec<RoomEvent> {
    let join = || json!({ "membership": "join" });
    vec![
        event("m.room.create", Some(""), ALICE, json!({ "com.trustner.encryption_algorithm": suite::V1 })),
        event("m.room.member", Some(ALICE), ALICE, join()),
        event("m.room.encryption", Some(""), ALICE, json!({ "algorithm": suite::V1 })),
        event("m.room.member", Some(BOB), BOB, join()),
    ]
}

fn sync(events: Vec<RoomEvent>) -> SyncResponse {
    let timeline = Timeline { events, ..Timeline::default() };
    let mut sync = SyncResponse::default();
    sync.rooms.join.insert(ROOM.to_owned(), JoinedRoom { timeline, ..JoinedRoom::default() });
    sync
}

fn query(shown: &[(&str, &str, Map<String, Value>)]) -> KeyQuery {
    let device_keys = shown.iter().map(|(user_id, id, keys)| ((*user_id).to_owned(), json!({ *id: keys })));
    KeyQuery { device_keys: device_keys.collect(), ..KeyQuery::default() }
}

/// Carries out all that a KeyBox wants. Gives the last key message of each type that it sent.
fn settle(engine: &mut Engine, query: &KeyQuery) -> BTreeMap<String, Value> {
    let mut sent = BTreeMap::new();
    loop {
        let requests = engine.outgoing(NOW, &mut OpensslEntropy, &mut Vec::new()).unwrap();
        if requests.is_empty() {
            return sent;
        }
        for request in requests {
            match request {
                Outgoing::UploadKeys { .. } => engine.keys_uploaded(),
                Outgoing::QueryKeys { users } => {
                    engine.receive_key_sets(&users, query, NOW, &mut OpensslEntropy).unwrap();
                }
                Outgoing::SendToDevice { txn_id, event_type, messages } => {
                    let content = messages.into_values().flat_map(BTreeMap::into_values).next_back();
                    sent.insert(event_type, content.unwrap());
                    engine.to_device_sent(&txn_id);
                }
                Outgoing::UploadIdentity { .. } => engine.identity_refused(),
                Outgoing::UploadSignatures { .. } => engine.signatures_uploaded(),
                Outgoing::BackUpKeys { .. } => unreachable!("there is no recovery key"),
            }
        }
    }
}
