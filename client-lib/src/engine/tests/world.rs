use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use keystead_keybox::canonical_json::sign_json;
use keystead_keybox::identity::IdentityObjects;
use keystead_keybox::key_message::{KeyMessage, ResourceKeyContent};
use keystead_keybox::key_set::PrivateKeySet;
use keystead_keybox::{OpensslEntropy, suite};

use crate::engine::{Engine, KeyBoxAddress, KeyQuery, Message, Notice, Outgoing, Readiness, Record};
use crate::events::{DeviceLists, Events, JoinedRoom, RoomEvent, SyncResponse, Timeline, ToDeviceEvent};

pub(super) const ROOM: &str = "!room";

/// A KeyBox, what it has not fetched yet, and what it has said.
pub(super) struct KeyBox {
    name: &'static str,
    pub(super) engine: Engine,
    stored: BTreeMap<String, Vec<u8>>,
    pub(super) keys: PrivateKeySet,
    position: usize,
    pub(super) queue: Vec<ToDeviceEvent>,
    changed: Vec<String>,
    pub(super) notices: Vec<Notice>,
}

/// One room with all its events, and the KeyBoxes of everybody.
pub(super) struct World {
    pub(super) boxes: BTreeMap<&'static str, KeyBox>,
    pub(super) events: Vec<RoomEvent>,
    device_keys: BTreeMap<String, Map<String, Value>>,
    /// By usage, by user.
    cross_signing: BTreeMap<&'static str, BTreeMap<String, Map<String, Value>>>,
    members: BTreeMap<String, String>,
    /// Events that the server keeps from a KeyBox.
    pub(super) hidden: Vec<(&'static str, String)>,
    /// Whether the server takes no identities, and shows none.
    pub(super) refuses_identities: bool,
    /// KeyBoxes of earlier software: their key sets name suite v1 only.
    old: Vec<&'static str>,
    pub(super) now: u64,
    /// Which version of a key backup the server takes keys for, and what is in it.
    pub(super) backup_version: Option<String>,
    pub(super) backup: BTreeMap<(String, String), Value>,
}

impl World {
    /// A room that uses suite v1, made by the user of the first KeyBox; the others are joined. Each KeyBox is called as
    /// its id; its user is the id's first letter.
    pub(super) fn new(names: &[&'static str]) -> Self {
        Self::with(suite::V1, names, &[])
    }

    /// The same with another suite, and with KeyBoxes (of those named) whose software knows v1 only.
    pub(super) fn with(suite: &str, names: &[&'static str], old: &[&'static str]) -> Self {
        let mut world = Self {
            boxes: BTreeMap::new(),
            events: Vec::new(),
            device_keys: BTreeMap::new(),
            cross_signing: BTreeMap::new(),
            members: BTreeMap::new(),
            hidden: Vec::new(),
            refuses_identities: false,
            old: Vec::new(),
            now: 1_000_000,
            backup_version: None,
            backup: BTreeMap::new(),
        };
        let founder = user(names[0]);
        world.state(&founder, "m.room.create", "", json!({ "com.trustner.encryption_algorithm": suite }));
        world.membership(&founder, "join");
        world.state(&founder, "m.room.encryption", "", json!({ "algorithm": suite }));
        world.old.extend(old);
        for name in names {
            world.membership(&user(name), "join");
            world.add(name);
        }
        world.settle();
        world
    }

    pub(super) fn add(&mut self, name: &'static str) {
        let keys = PrivateKeySet::generate(&user(name), name, &mut OpensslEntropy).unwrap();
        let engine = Engine::new(keys.clone()).unwrap();
        let new = KeyBox {
            name,
            engine,
            stored: BTreeMap::new(),
            keys,
            position: 0,
            queue: Vec::new(),
            changed: Vec::new(),
            notices: Vec::new(),
        };
        self.boxes.insert(name, new);
    }

    pub(super) fn state(&mut self, sender: &str, event_type: &str, state_key: &str, content: Value) {
        self.event(sender, event_type, Some(state_key.to_owned()), content);
    }

    pub(super) fn membership(&mut self, user_id: &str, membership: &str) {
        self.members.insert(user_id.to_owned(), membership.to_owned());
        self.state(user_id, "m.room.member", user_id, json!({ "membership": membership }));
    }

    /// `sender` changes the membership of another user: invites, kicks, bans.
    pub(super) fn membership_by(&mut self, sender: &str, user_id: &str, membership: &str) {
        self.members.insert(user_id.to_owned(), membership.to_owned());
        self.state(sender, "m.room.member", user_id, json!({ "membership": membership }));
    }

    pub(super) fn event(
        &mut self,
        sender: &str,
        event_type: &str,
        state_key: Option<String>,
        content: Value,
    ) -> String {
        self.now += 1;
        let event_id = format!("${}", self.events.len());
        self.events.push(RoomEvent {
            event_type: event_type.to_owned(),
            state_key,
            sender: sender.to_owned(),
            event_id: event_id.clone(),
            origin_server_ts: self.now,
            content,
        });
        event_id
    }

    /// The server delivers to a KeyBox, with its next sync, every event once more.
    pub(super) fn deliver_again(&mut self, name: &str) {
        self.boxes.get_mut(name).unwrap().position = 0;
    }

    /// Changes what a KeyBox has stored, and starts it anew.
    pub(super) fn alter_stored(&mut self, name: &str, record: &str, alter: impl FnOnce(&mut Value)) {
        let one = self.boxes.get_mut(name).unwrap();
        let stored = one.stored.get_mut(record).unwrap();
        let mut json = serde_json::from_slice(stored).unwrap();
        alter(&mut json);
        *stored = serde_json::to_vec(&json).unwrap();
        self.restart(name);
    }

    fn device_keys_changed(&mut self, user_id: &str) {
        for other in self.boxes.values_mut() {
            other.changed.push(user_id.to_owned());
        }
    }

    pub(super) fn revoke(&mut self, name: &str) {
        self.boxes.remove(name);
        self.device_keys.get_mut(&user(name)).unwrap().remove(name);
        self.device_keys_changed(&user(name));
    }

    /// A KeyBox gets the present software: it starts anew and publishes what it speaks now.
    pub(super) fn update_software(&mut self, name: &str) {
        self.old.retain(|old| *old != name);
        let one = self.boxes.get_mut(name).unwrap();
        let exchange = one.stored.get_mut("exchange").unwrap();
        let mut record: Value = serde_json::from_slice(exchange).unwrap();
        record["published"] = json!([suite::V1]);
        *exchange = serde_json::to_vec(&record).unwrap();
        self.restart(name);
    }

    /// Replaces what the server shows as a KeyBox's key set.
    pub(super) fn forge_keys(&mut self, name: &str) {
        let keys = PrivateKeySet::generate(&user(name), name, &mut OpensslEntropy).unwrap();
        let forged = keys.device_keys().unwrap().into();
        self.device_keys.get_mut(&user(name)).unwrap().insert(name.to_owned(), forged);
        self.device_keys_changed(&user(name));
    }

    /// Makes the server show an identity.
    pub(super) fn show_identity(&mut self, user_id: &str, objects: &IdentityObjects) {
        let of_usage = [
            ("master", &objects.master),
            ("self_signing", &objects.self_signing),
            ("user_signing", &objects.user_signing),
        ];
        for (usage, object) in of_usage {
            let keys = self.cross_signing.entry(usage).or_default();
            keys.insert(user_id.to_owned(), object.clone());
        }
        self.device_keys_changed(user_id);
    }

    fn add_signatures(&mut self, signatures: &Map<String, Value>) {
        for (user_id, objects) in signatures {
            for (name, signed) in objects.as_object().unwrap() {
                let device = self.device_keys.get_mut(user_id).and_then(|devices| devices.get_mut(name));
                let target = match device {
                    Some(device) => device.as_object_mut().unwrap(),
                    None => self.cross_signing.get_mut("master").unwrap().get_mut(user_id).unwrap(),
                };
                for (signer, made) in signed["signatures"].as_object().unwrap() {
                    let all = target["signatures"].as_object_mut().unwrap();
                    let of_signer = all.entry(signer).or_insert_with(|| json!({}));
                    of_signer.as_object_mut().unwrap().extend(made.as_object().unwrap().clone());
                }
            }
            self.device_keys_changed(user_id);
        }
    }

    /// What the server shows as a KeyBox's key set.
    pub(super) fn shown_keys(&self, name: &str) -> Value {
        self.device_keys[&user(name)][name].clone()
    }

    /// Makes the server show `device_keys` as a KeyBox's key set.
    pub(super) fn show_keys(&mut self, name: &str, device_keys: Value) {
        self.device_keys.get_mut(&user(name)).unwrap().insert(name.to_owned(), device_keys);
        self.device_keys_changed(&user(name));
    }

    /// Starts a KeyBox anew under its old id, with other keys and an empty store.
    pub(super) fn change_keys(&mut self, name: &'static str) {
        self.add(name);
        self.round(name);
    }

    /// Everything that a KeyBox has stored.
    pub(super) fn stored(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.boxes[name].stored.values().map(Vec::as_slice)
    }

    /// One round of a KeyBox: sync, then send until nothing is left, storing in between. Then it is started anew from what it
    /// stored, so that every test is a test of restarts too.
    pub(super) fn round(&mut self, name: &str) -> bool {
        self.now += 10;
        let now = self.now;
        let sync = self.sync(name);
        let busy = !sync.to_device.events.is_empty() || !sync.rooms.join.is_empty();
        let one = self.boxes.get_mut(name).unwrap();
        let received = one.engine.receive_sync(&sync, now, &mut OpensslEntropy).unwrap();
        assert!(received.gaps.is_empty());
        one.notices.extend(received.notices);
        let sent = self.flush(name);
        self.restart(name);
        busy || sent
    }

    /// A round that is cut off: what arrived is taken in, and if `sent` also what followed from it is sent; but the KeyBox stores
    /// neither, and starts anew. What it has not acknowledged comes again.
    pub(super) fn crash(&mut self, name: &str, sent: bool) {
        let one = self.boxes.get_mut(name).unwrap();
        let (position, queue, changed) = (one.position, one.queue.clone(), one.changed.clone());
        let now = self.now;
        let sync = self.sync(name);
        let one = self.boxes.get_mut(name).unwrap();
        one.engine.receive_sync(&sync, now, &mut OpensslEntropy).unwrap();
        let requests = one.engine.outgoing(now, &mut OpensslEntropy, &mut Vec::new()).unwrap();
        if sent {
            // Storing comes before sending, always; what is lost is the answer.
            self.store(name);
            for request in requests {
                self.carry_out(name, request);
            }
        }
        let one = self.boxes.get_mut(name).unwrap();
        one.engine.take_changes().unwrap();
        one.position = position;
        one.queue.splice(0..0, queue);
        one.changed.splice(0..0, changed);
        self.restart(name);
    }

    fn sync(&mut self, name: &str) -> SyncResponse {
        let one = self.boxes.get_mut(name).unwrap();
        let is_member = self.members.get(&user(name)).is_some_and(|membership| membership == "join");
        let events = self.events[one.position..].iter();
        let is_shown = |event: &&RoomEvent| !self.hidden.contains(&(one.name, event.event_id.clone()));
        let events: Vec<_> = events.filter(is_shown).cloned().collect();
        one.position = self.events.len();
        let mut sync = SyncResponse {
            to_device: Events { events: std::mem::take(&mut one.queue) },
            device_lists: DeviceLists { changed: std::mem::take(&mut one.changed), left: Vec::new() },
            ..SyncResponse::default()
        };
        if !events.is_empty() {
            let timeline = Timeline { events, ..Timeline::default() };
            let rooms = if is_member { &mut sync.rooms.join } else { &mut sync.rooms.leave };
            rooms.insert(ROOM.to_owned(), JoinedRoom { timeline, ..JoinedRoom::default() });
        }
        sync
    }

    pub(super) fn flush(&mut self, name: &str) -> bool {
        let mut sent = false;
        loop {
            let now = self.now;
            let one = self.boxes.get_mut(name).unwrap();
            let requests = one.engine.outgoing(now, &mut OpensslEntropy, &mut one.notices).unwrap();
            self.store(name);
            if requests.is_empty() {
                return sent;
            }
            sent = true;
            for request in requests {
                self.carry_out(name, request);
            }
        }
    }

    fn carry_out(&mut self, name: &str, request: Outgoing) {
        let now = self.now;
        match request {
            Outgoing::UploadKeys { mut device_keys } => {
                if self.old.contains(&name) {
                    device_keys.insert("algorithms".to_owned(), json!([suite::V1]));
                    sign_json(&self.boxes[name].keys, &mut device_keys).unwrap();
                }
                let devices = self.device_keys.entry(user(name)).or_default();
                devices.insert(name.to_owned(), device_keys.into());
                self.device_keys_changed(&user(name));
                self.boxes.get_mut(name).unwrap().engine.keys_uploaded();
            }
            Outgoing::BackUpKeys { version, rooms, keys } => {
                let engine = &mut self.boxes.get_mut(name).unwrap().engine;
                if Some(&version) == self.backup_version.as_ref() {
                    engine.backed_up(&version, &keys);
                    for (room_id, room) in rooms {
                        let sessions = room["sessions"].as_object().unwrap().clone();
                        self.backup
                            .extend(sessions.into_iter().map(|(id, key)| ((room_id.clone(), id), key)));
                    }
                } else {
                    let notice = engine.backup_refused("M_WRONG_ROOM_KEYS_VERSION");
                    self.boxes.get_mut(name).unwrap().notices.push(notice);
                }
            }
            Outgoing::UploadIdentity { objects } => {
                let engine = &mut self.boxes.get_mut(name).unwrap().engine;
                if self.refuses_identities
                    || self.cross_signing.get("master").is_some_and(|keys| keys.contains_key(&user(name)))
                {
                    engine.identity_refused();
                    return;
                }
                engine.identity_uploaded();
                self.show_identity(&user(name), &objects);
            }
            Outgoing::UploadSignatures { signatures } => {
                self.boxes.get_mut(name).unwrap().engine.signatures_uploaded();
                self.add_signatures(&signatures);
            }
            Outgoing::QueryKeys { users } => {
                let of = |keys: &BTreeMap<String, Map<String, Value>>| {
                    let asked = users.iter().filter(|user_id| keys.contains_key(*user_id));
                    asked.map(|user_id| (user_id.clone(), keys[user_id].clone().into())).collect()
                };
                let cross_signing = |usage: &str| self.cross_signing.get(usage).map(of).unwrap_or_default();
                let answer = KeyQuery {
                    device_keys: of(&self.device_keys),
                    master_keys: cross_signing("master"),
                    self_signing_keys: cross_signing("self_signing"),
                    user_signing_keys: cross_signing("user_signing"),
                };
                let one = self.boxes.get_mut(name).unwrap();
                let notices = one.engine.receive_key_sets(&users, &answer, now, &mut OpensslEntropy).unwrap();
                one.notices.extend(notices);
            }
            Outgoing::SendToDevice { txn_id, event_type, messages } => {
                let joined =
                    |user_id: &str| self.members.get(user_id).is_some_and(|membership| membership == "join");
                let refused = event_type == ResourceKeyContent::EVENT_TYPE
                    && !(joined(&user(name)) && messages.keys().all(|user_id| joined(user_id)));
                if refused {
                    let one = self.boxes.get_mut(name).unwrap();
                    let code = "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER";
                    one.notices
                        .extend(one.engine.to_device_refused(&txn_id, code, &mut OpensslEntropy).unwrap());
                    return;
                }
                for (keybox_id, content) in messages.into_values().flatten() {
                    if let Some(recipient) = self.boxes.get_mut(keybox_id.as_str()) {
                        let event_type = event_type.clone();
                        recipient.queue.push(ToDeviceEvent { event_type, sender: user(name), content });
                    }
                }
                self.boxes.get_mut(name).unwrap().engine.to_device_sent(&txn_id);
            }
        }
    }

    fn store(&mut self, name: &str) {
        let one = self.boxes.get_mut(name).unwrap();
        for record in one.engine.take_changes().unwrap() {
            one.stored.insert(record.name.clone(), record.json.to_vec());
        }
    }

    pub(super) fn restart(&mut self, name: &str) {
        self.store(name);
        let one = self.boxes.get_mut(name).unwrap();
        let stored = one.stored.iter();
        let records: Vec<_> =
            stored.map(|(name, json)| Record { name: name.clone(), json: json.clone().into() }).collect();
        one.engine = Engine::load(one.keys.clone(), &records).unwrap();
    }

    /// Rounds of all KeyBoxes until none has anything to do.
    pub(super) fn settle(&mut self) {
        let names: Vec<_> = self.boxes.keys().copied().collect();
        for _ in 0..20 {
            let busy: Vec<bool> = names.iter().map(|name| self.round(name)).collect();
            if busy.iter().all(|busy| !busy) {
                return;
            }
        }
        panic!("the KeyBoxes do not come to rest");
    }

    /// Sends a text and delivers it to nobody yet. Returns the event's id.
    pub(super) fn post(&mut self, name: &str, text: &str) -> String {
        let now = self.now;
        let key = loop {
            let one = self.boxes.get_mut(name).unwrap();
            match one.engine.prepare(ROOM, now, &mut OpensslEntropy, &mut one.notices).unwrap() {
                Readiness::Ready(key) => break key,
                Readiness::KeySetsNeeded => self.flush(name),
            };
        };
        self.flush(name);
        let content = json!({ "msgtype": "m.text", "body": text });
        let one = self.boxes.get_mut(name).unwrap();
        let envelope = one.engine.encrypt(&key, "m.room.message", content, &mut OpensslEntropy).unwrap();
        self.restart(name);
        self.event(&user(name), "m.room.encrypted", None, serde_json::to_value(envelope).unwrap())
    }

    pub(super) fn say(&mut self, name: &str, text: &str) -> String {
        let event_id = self.post(name, text);
        self.settle();
        event_id
    }

    pub(super) fn unread(&mut self, name: &str) -> Vec<Message> {
        let engine = &mut self.boxes.get_mut(name).unwrap().engine;
        let unread = engine.unread(None, usize::MAX);
        engine.mark_read(&unread);
        unread
    }

    pub(super) fn texts(&mut self, name: &str) -> Vec<String> {
        self.unread(name).iter().map(|message| message.body().unwrap().to_owned()).collect()
    }

    pub(super) fn keys_in_use(&self) -> usize {
        let ids = self.events.iter().filter_map(|event| event.content.get("key_id")?.as_str());
        ids.collect::<std::collections::BTreeSet<_>>().len()
    }

    pub(super) fn notices(&self, name: &str) -> &[Notice] {
        &self.boxes[name].notices
    }
}

pub(super) fn user(name: &str) -> String {
    format!("@{}:x", name[..1].to_lowercase())
}

pub(super) fn address(name: &str) -> KeyBoxAddress {
    KeyBoxAddress::new(&user(name), name)
}
