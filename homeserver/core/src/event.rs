//! Events: what a user wants to send ([`Draft`]) and what a room holds.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, events::TimelineEventType};
use serde_json::value::RawValue;

/// An event that somebody wants to send, before it has a place in a room.
///
/// The room decides the rest: previous and authorising events, depth, hash, signature and event id.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The user in whose name the event is sent.
    pub sender: OwnedUserId,
    /// The event's type.
    pub event_type: TimelineEventType,
    /// The state key, if the event is a state event.
    pub state_key: Option<String>,
    /// The event's content: a JSON object.
    pub content: Box<RawValue>,
    /// The event that this one redacts, for `m.room.redaction`.
    pub redacts: Option<OwnedEventId>,
    /// When the server took the event, in milliseconds since the epoch.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
}
