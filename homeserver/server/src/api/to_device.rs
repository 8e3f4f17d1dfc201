//! Messages to single devices, and the permission to give KeyBoxes resource keys.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>; for KeyBoxes
//! `profiles/keybox/SPEC.md`, section 7.1.

mod batch;
mod inboxes;

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use keystead_core::{
    closing, encryption,
    json::is_too_deep,
    keybox::{
        self, CheckedKeyMessage, KeyMessageKind, KeyMessageRefusal, NotPermitted, RoomFacts,
        audit_log::{Direction, LogEvent},
    },
    keys as rules,
    shard::Shard,
};
use keystead_store::{
    Error, ReadTx, WriteTx, keybox_log::NewEntry, keys, rooms, streams::ToDeviceMessage, to_device::Inbox,
    transactions::ClientTransaction,
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::to_device::send_event_to_device::v3 as send_event_to_device,
    events::room::history_visibility::HistoryVisibility, to_device::DeviceIdOrAllDevices,
};
use serde::Deserialize;

pub use self::{batch::ToDeviceMessages, inboxes::InboxCounts};
use super::guard;
use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
    telemetry::metrics::KeyMessages,
};

/// The greatest size of one message's content, in bytes of JSON: that of an event.
const MAX_CONTENT_BYTES: usize = 65_535;
/// The greatest length of a message's type and of the id of a key exchange, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// The greatest number of messages that one call makes, wildcards expanded.
const MAX_MESSAGES: usize = 10_000;

/// One entry of the request: who is to get which content.
struct Target {
    user_id: OwnedUserId,
    device: DeviceIdOrAllDevices,
    content: String,
    /// What it does, if it is one of the KeyBox profile's key messages.
    key_message: Option<CheckedKeyMessage>,
}

impl Target {
    /// The room whose resource key it carries.
    fn room_of_given_key(&self) -> Option<&OwnedRoomId> {
        let message = self.key_message.as_ref()?;
        (message.kind == KeyMessageKind::Give).then_some(&message.room_id)
    }

    /// Those of the recipient's devices that it is for: `*` stands for all.
    fn devices<'a>(&'a self, known: &'a Devices) -> impl Iterator<Item = &'a OwnedDeviceId> {
        let devices = known.get(&self.user_id).map(Vec::as_slice).unwrap_or_default();
        devices.iter().filter(|device| self.names(device))
    }

    fn names(&self, device: &OwnedDeviceId) -> bool {
        match &self.device {
            DeviceIdOrAllDevices::DeviceId(wanted) => wanted == device,
            DeviceIdOrAllDevices::AllDevices => true,
        }
    }
}

/// What became of the messages of a call.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Appended {
    /// How many messages were stored.
    stored: usize,
    /// How many were not, because too many others wait for their devices.
    dropped: usize,
}

/// The devices of users.
type Devices = BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>;
/// KeyBoxes, with what a closed room calls them.
type KeySetIds = BTreeMap<(OwnedUserId, OwnedDeviceId), Option<String>>;

/// A call, checked as far as it can be without the database.
pub struct Call {
    sender: OwnedUserId,
    sender_device: OwnedDeviceId,
    message_type: String,
    targets: Vec<Target>,
    transaction: ClientTransaction,
    now: MilliSecondsSinceUnixEpoch,
}

/// What is to be stored for a call.
struct Admitted {
    appended: Appended,
    messages: Vec<ToDeviceMessage>,
    log: Vec<NewEntry>,
}

/// `PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}`.
pub(super) async fn send_event_to_device(
    ctx: Ctx<Session>,
    request: send_event_to_device::Request,
) -> Result<send_event_to_device::Response, ApiError> {
    let message_type = request.event_type.to_string();
    let kind = keybox::KEY_MESSAGE_TYPES.into_iter().find(|kind| *kind == message_type);
    let sent = match Call::check(&ctx.requester, request, ctx.now) {
        Ok(call) => ctx.app.to_device.submit(call).await,
        Err(refusal) => Err(refusal),
    };
    let metrics = &ctx.app.metrics;
    if let Some(kind) = kind {
        let what = match &sent {
            Ok(sent) => KeyMessages::Stored(sent.stored),
            Err(error) if error.status().is_server_error() => KeyMessages::Failed,
            Err(_) => KeyMessages::Refused,
        };
        metrics.key_messages(kind, what);
    }
    let sent = sent?;
    metrics.to_device_messages(sent.stored, sent.dropped);
    Ok(send_event_to_device::Response::new())
}

impl Call {
    fn check(
        session: &Session,
        request: send_event_to_device::Request,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, ApiError> {
        let message_type = request.event_type.to_string();
        guard::transaction_id(&request.txn_id)?;
        if message_type.len() > MAX_NAME_BYTES {
            return Err(ApiError::invalid_param("A message's type must not be longer than 255 bytes"));
        }
        let mut targets = Vec::new();
        let is_identity = message_type == keybox::IDENTITY_MESSAGE_TYPE;
        if is_identity && request.messages.keys().any(|user_id| *user_id != session.user_id) {
            return Err(ApiError::forbidden(
                "The private keys of an identity go to KeyBoxes of its own user only",
            ));
        }
        for (user_id, devices) in request.messages {
            for (device, content) in devices {
                let content = content.into_json().get().to_owned();
                if !content.starts_with('{') || is_too_deep(&content) {
                    return Err(ApiError::bad_json(
                        "A message's content is not an object, or nested too deep",
                    ));
                }
                if content.len() > MAX_CONTENT_BYTES {
                    return Err(ApiError::too_large("A message must not be larger than 65,535 bytes"));
                }
                let key_message = keybox::check_key_message(&message_type, &session.device_id, &content)
                    .map_err(malformed)?;
                if key_message.is_some() && has_odd_name(&device) {
                    return Err(ApiError::invalid_param(
                        "A device id must have 1 to 255 bytes and no control characters",
                    ));
                }
                targets.push(Target { user_id: user_id.clone(), device, content, key_message });
            }
        }
        let transaction = ClientTransaction {
            user_id: session.user_id.clone(),
            device_id: session.device_id.clone(),
            kind: format!("sendToDevice {message_type}"),
            transaction_id: request.txn_id.to_string(),
        };
        let (sender, sender_device) = (session.user_id.clone(), session.device_id.clone());
        Ok(Self { sender, sender_device, message_type, targets, transaction, now })
    }

    /// The users whom the call names.
    fn users(&self) -> impl Iterator<Item = &UserId> {
        self.targets.iter().map(|target| &*target.user_id)
    }

    /// What the call adds to, and who adds it.
    fn inboxes(&self, known: &Devices) -> Vec<Inbox> {
        let inboxes = self.targets.iter().flat_map(|target| {
            target.devices(known).map(|device_id| Inbox {
                sender: self.sender.clone(),
                user_id: target.user_id.clone(),
                device_id: device_id.clone(),
            })
        });
        inboxes.collect()
    }

    /// What the transaction has to store for this call; its shards are locked.
    async fn admit(
        &self,
        tx: &WriteTx,
        known: &Devices,
        full: &BTreeSet<Inbox>,
    ) -> Result<Admitted, ApiError> {
        let mut messages = self.messages(known)?;
        self.check_permission(tx, &messages).await?;
        let full = self.full_devices(full);
        self.check_room_for(&full)?;
        let asked = messages.len();
        if !full.is_empty() {
            messages.retain(|message| !full.contains(&(message.user_id.clone(), message.device_id.clone())));
        }
        let appended = Appended { stored: messages.len(), dropped: asked - messages.len() };
        Ok(Admitted { appended, messages, log: self.log_entries(known, &full) })
    }

    /// The devices that take no more from this sender.
    fn full_devices(&self, full: &BTreeSet<Inbox>) -> BTreeSet<(OwnedUserId, OwnedDeviceId)> {
        let own = full.iter().filter(|inbox| inbox.sender == self.sender);
        own.map(|inbox| (inbox.user_id.clone(), inbox.device_id.clone())).collect()
    }

    /// The messages to those devices that exist: `*` stands for all of a user's. What is for others is dropped.
    fn messages(&self, known: &Devices) -> Result<Vec<ToDeviceMessage>, ApiError> {
        let mut messages = Vec::new();
        for target in &self.targets {
            for device_id in target.devices(known) {
                messages.push(ToDeviceMessage {
                    user_id: target.user_id.clone(),
                    device_id: device_id.clone(),
                    sender: self.sender.clone(),
                    message_type: self.message_type.clone(),
                    content: target.content.clone(),
                });
            }
        }
        if messages.len() > MAX_MESSAGES {
            return Err(ApiError::too_large("One call must not send more than 10,000 messages"));
        }
        Ok(messages)
    }

    /// What the logs say of the call: the sender's of all to whom it sent, a recipient's of what waits for it.
    fn log_entries(&self, known: &Devices, full: &BTreeSet<(OwnedUserId, OwnedDeviceId)>) -> Vec<NewEntry> {
        let mut entries = Vec::new();
        let mut note = |user_id: &UserId, event: Option<LogEvent>| {
            entries.extend(event.map(|event| NewEntry { user_id: user_id.to_owned(), event }));
        };
        let own = &*self.sender_device;
        for target in &self.targets {
            let Some(message) = &target.key_message else { continue };
            let recipient = &*target.user_id;
            for device_id in target.devices(known) {
                let is_full = full.contains(&(recipient.to_owned(), device_id.clone()));
                note(&self.sender, message.log_event(Direction::Sent, own, (recipient, device_id), is_full));
                if !is_full {
                    let peer = (&*self.sender, own);
                    note(recipient, message.log_event(Direction::Received, device_id, peer, false));
                }
            }
            if let DeviceIdOrAllDevices::DeviceId(device_id) = &target.device
                && target.devices(known).next().is_none()
            {
                note(&self.sender, message.log_event(Direction::Sent, own, (recipient, device_id), true));
            }
        }
        entries
    }

    /// All shards that the call appends to, the sender's own if the log has to say something, and those of the rooms that its permission depends on: while these are
    /// held, nobody comes or goes.
    fn shards(&self, tx: &ReadTx, known: &Devices) -> Vec<Shard> {
        let recipients = known.keys().map(|user_id| tx.shards().of_user(user_id));
        let messages = self.targets.iter().filter_map(|target| target.key_message.as_ref());
        let logged = messages.map(|_| tx.shards().of_user(&self.sender));
        let rooms = self.targets.iter().filter_map(Target::room_of_given_key);
        let rooms = rooms.map(|room_id| tx.shards().of_room(room_id));
        recipients.chain(logged).chain(rooms).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Checks that the sender may send the key messages in the call to all for whom they are, whether their devices
    /// exist or not. One refusal refuses the call.
    async fn check_permission(&self, tx: &WriteTx, messages: &[ToDeviceMessage]) -> Result<(), ApiError> {
        let mut recipients: BTreeMap<(&RoomId, KeyMessageKind), BTreeSet<&UserId>> = BTreeMap::new();
        let mut gives = false;
        for target in &self.targets {
            let Some(message) = &target.key_message else { continue };
            gives |= message.kind == KeyMessageKind::Give;
            // Whatever a user's own KeyBoxes ask and answer each other, they may know it.
            if message.kind == KeyMessageKind::Give || target.user_id != self.sender {
                recipients.entry((&message.room_id, message.kind)).or_default().insert(&target.user_id);
            }
        }
        let mut closed = BTreeMap::new();
        for ((room_id, kind), users) in recipients {
            let facts = room_facts(tx, room_id, &self.sender, &users).await?;
            let facts = facts.ok_or_else(|| not_permitted(&NotPermitted::RoomWithoutProfile))?;
            facts.permits_message(kind, &self.sender, users).map_err(|refusal| not_permitted(&refusal))?;
            if kind == KeyMessageKind::Give && facts.closing.is_some() {
                closed.insert(room_id, facts);
            }
        }
        if !gives {
            return Ok(());
        }
        let sender = (!closed.is_empty()).then_some((&*self.sender, &self.sender_device));
        let keyboxes = check_keyboxes(tx, messages, sender).await?;
        for (room_id, facts) in closed {
            self.check_closed(room_id, &facts, &keyboxes).map_err(|refusal| not_permitted(&refusal))?;
        }
        Ok(())
    }

    /// Checks that in a closed room keys go from and to its KeyBoxes only.
    fn check_closed(
        &self,
        room_id: &RoomId,
        facts: &RoomFacts,
        keyboxes: &KeySetIds,
    ) -> Result<(), NotPermitted> {
        let key_set_id = |user_id: &UserId, device_id: &OwnedDeviceId| {
            keyboxes.get(&(user_id.to_owned(), device_id.clone())).and_then(Option::as_deref)
        };
        let own = &self.sender_device;
        facts.permits_keybox(&self.sender, own, key_set_id(&self.sender, own))?;
        let of_room = |target: &&Target| target.room_of_given_key().is_some_and(|room| room == room_id);
        for target in self.targets.iter().filter(of_room) {
            for (user_id, device_id) in keyboxes.keys() {
                if *user_id == target.user_id && target.names(device_id) {
                    facts.permits_keybox(user_id, device_id, key_set_id(user_id, device_id))?;
                }
            }
        }
        Ok(())
    }

    /// Refuses key messages to devices that take no more from this sender: what is dropped in silence would be
    /// missed, and the log would not tell the truth.
    fn check_room_for(&self, full: &BTreeSet<(OwnedUserId, OwnedDeviceId)>) -> Result<(), ApiError> {
        if full.is_empty() || self.targets.iter().all(|target| target.key_message.is_none()) {
            return Ok(());
        }
        let text = "Too many messages wait for a device that this is for";
        Err(ApiError::new(StatusCode::FORBIDDEN, keybox::TOO_MANY_PENDING, text))
    }
}

/// What the permission depends on; `None` for a room that the server does not know.
async fn room_facts(
    tx: &ReadTx,
    room_id: &RoomId,
    sender: &UserId,
    recipients: &BTreeSet<&UserId>,
) -> Result<Option<RoomFacts>, Error> {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: HistoryVisibility,
    }
    let Some(head) = rooms::head(tx, room_id).await? else { return Ok(None) };
    let encryption = rooms::state_event_at(tx, room_id, head.position, ("m.room.encryption", "")).await?;
    let visibility =
        rooms::state_event_at(tx, room_id, head.position, ("m.room.history_visibility", "")).await?;
    let closing = rooms::state_event_at(tx, room_id, head.position, (closing::EVENT_TYPE, "")).await?;
    let mut users: Vec<&UserId> = recipients.iter().copied().collect();
    users.push(sender);
    Ok(Some(RoomFacts {
        closing: closing.and_then(|event| closing::read_closing(room_id, &event.pdu.content)),
        algorithm: encryption.and_then(|event| encryption::algorithm(&event.pdu.content).ok()),
        history_visibility: visibility
            .and_then(|event| serde_json::from_str::<Content>(event.pdu.content.get()).ok())
            .map_or(HistoryVisibility::Shared, |content| content.history_visibility),
        memberships: rooms::memberships_in(tx, room_id, &users).await?,
    }))
}

/// Checks that all devices that are to get a message are KeyBoxes. Returns them, and what a closed room calls them if `sender` is
/// given: the device that sends, which is returned as well.
async fn check_keyboxes(
    tx: &ReadTx,
    messages: &[ToDeviceMessage],
    sender: Option<(&UserId, &OwnedDeviceId)>,
) -> Result<KeySetIds, ApiError> {
    let mut wanted: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>> = BTreeMap::new();
    for message in messages {
        wanted.entry(message.user_id.clone()).or_default().push(message.device_id.clone());
    }
    if let Some((user_id, device_id)) = sender {
        wanted.entry(user_id.to_owned()).or_default().push(device_id.clone());
    }
    let mut keyboxes = KeySetIds::new();
    for device in keys::query(tx, &wanted).await? {
        let object = super::keys::stored_object("device_keys", device.device_id.as_str(), &device.json)?;
        if rules::is_keybox(&object) {
            let key_set_id =
                sender.and_then(|_| rules::key_set_id(&device.user_id, &device.device_id, &object));
            keyboxes.insert((device.user_id, device.device_id), key_set_id);
        }
    }
    for message in messages {
        if !keyboxes.contains_key(&(message.user_id.clone(), message.device_id.clone())) {
            return Err(not_permitted(&NotPermitted::NotAKeyBox(message.user_id.clone())));
        }
    }
    Ok(keyboxes)
}

/// Whether no device can have this id.
fn has_odd_name(device: &DeviceIdOrAllDevices) -> bool {
    match device {
        DeviceIdOrAllDevices::DeviceId(id) => {
            id.as_str().is_empty()
                || id.as_str().len() > MAX_NAME_BYTES
                || id.as_str().contains(char::is_control)
        }
        DeviceIdOrAllDevices::AllDevices => false,
    }
}

fn not_permitted(refusal: &NotPermitted) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, refusal.errcode(), refusal.to_string())
}

fn malformed(refusal: KeyMessageRefusal) -> ApiError {
    let text = refusal.to_string();
    match refusal {
        KeyMessageRefusal::Malformed(..) => ApiError::bad_json(text),
        KeyMessageRefusal::Invalid(_) => ApiError::invalid_param(text),
        KeyMessageRefusal::TooLarge => ApiError::too_large(text),
    }
}
