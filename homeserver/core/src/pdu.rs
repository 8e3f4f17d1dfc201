//! Persistent data units: the events of a room as the federation knows them.
//!
//! <https://spec.matrix.org/v1.19/server-server-api/#pdus>

use std::sync::Arc;

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UInt,
    UserId, events::TimelineEventType,
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// One event of a room, as much of it as the server's rules and its clients need.
///
/// Hashes and signatures stay in the stored JSON ([`SignedPdu::json`]); nothing that works on events in memory reads them.
#[derive(Clone, Debug)]
pub struct Pdu {
    /// The reference hash of the event: its name everywhere.
    pub event_id: OwnedEventId,
    /// The room. In room version 12 it follows from the `m.room.create` event.
    pub room_id: OwnedRoomId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Its type.
    pub event_type: TimelineEventType,
    /// Its state key, if it is a state event.
    pub state_key: Option<String>,
    /// Its content, a JSON object.
    pub content: Box<RawValue>,
    /// When the sender's server took it, in milliseconds since the epoch.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// The events before it.
    pub prev_events: Vec<OwnedEventId>,
    /// The events that permit it.
    pub auth_events: Vec<OwnedEventId>,
    /// One more than the greatest depth of the events before it.
    pub depth: u64,
    /// The event that it redacts: top level up to room version 10, in the content from 11 on.
    pub redacts: Option<OwnedEventId>,
    /// The redaction that emptied this event, if one did.
    pub redacted_by: Option<OwnedEventId>,
    /// How a client of this server sent it.
    pub sent_by: Option<ClientSend>,
}

/// The client's transaction that an event came with; shown again to that device alone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientSend {
    /// The device that sent the event.
    pub device_id: OwnedDeviceId,
    /// The transaction id that it chose.
    pub transaction_id: String,
}

/// A new event with everything that goes into the database.
#[derive(Clone, Debug)]
pub struct SignedPdu {
    /// The event.
    pub pdu: Arc<Pdu>,
    /// Canonical JSON of the whole event with hashes and signatures, without the event id.
    pub json: String,
}

#[derive(Deserialize)]
struct PduFields {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: TimelineEventType,
    state_key: Option<String>,
    content: Box<RawValue>,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: UInt,
    redacts: Option<OwnedEventId>,
}

#[derive(Deserialize)]
struct RedactsInContent {
    redacts: Option<OwnedEventId>,
}

impl Pdu {
    /// Reads an event from its stored JSON.
    ///
    /// `event_id` and `room_id` come from the row: neither need stand in the JSON itself.
    ///
    /// # Errors
    /// The JSON is not an event: a field is missing or of the wrong type.
    pub fn from_json(event_id: OwnedEventId, room_id: OwnedRoomId, json: &str) -> serde_json::Result<Self> {
        let fields: PduFields = serde_json::from_str(json)?;
        let redacts = match fields.redacts {
            None if fields.event_type == TimelineEventType::RoomRedaction => {
                redacts_of_content(&fields.content)
            }
            redacts => redacts,
        };
        Ok(Self {
            event_id,
            room_id,
            sender: fields.sender,
            event_type: fields.event_type,
            state_key: fields.state_key,
            content: fields.content,
            origin_server_ts: fields.origin_server_ts,
            prev_events: fields.prev_events,
            auth_events: fields.auth_events,
            depth: fields.depth.into(),
            redacts,
            redacted_by: None,
            sent_by: None,
        })
    }
}

/// The `redacts` field of a redaction's content (room version 11 and later).
pub(crate) fn redacts_of_content(content: &RawValue) -> Option<OwnedEventId> {
    serde_json::from_str::<RedactsInContent>(content.get()).ok()?.redacts
}

impl ruma::state_res::Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        Some(&self.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&Self::Id> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        false
    }
}

/// The event that a room version 12 room is named after, and the other way round.
///
/// <https://spec.matrix.org/v1.19/rooms/v12/#room-ids-as-hashes-of-the-create-event>
pub fn room_id_of_create_event(event_id: &EventId) -> Option<OwnedRoomId> {
    let hash = event_id.as_str().strip_prefix('$')?;
    RoomId::parse(format!("!{hash}")).ok()
}
