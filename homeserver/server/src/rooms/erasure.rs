//! What is shown of users who asked for erasure when they closed their accounts.
//!
//! > Users (or servers) which join the room after the erasure request are served redacted copies of the events sent by this account.
//!
//! Here that is everybody who was not in the room when the message was sent. State stays as it is: the room depends on it.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3accountdeactivate>.

use std::{
    borrow::{Borrow, Cow},
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use keystead_core::room::RoomEvent;
use keystead_store::{Error, ReadTx, users};
use ruma::{OwnedEventId, OwnedUserId, UserId, events::TimelineEventType};
use serde::Serialize;
use serde_json::value::to_raw_value;

use super::{MembershipHistory, Reader};

/// What is left of a content.
#[derive(Serialize)]
struct Left {
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<OwnedEventId>,
}

/// Whether an event may have to be shown empty: a message from when the reader was not in the room, as far as that is known.
pub(crate) fn may_be_erased(event: &RoomEvent, memberships: Option<&MembershipHistory>) -> bool {
    let was_there = memberships.is_some_and(|memberships| memberships.at(event.position) == Some("join"));
    !was_there && event.pdu.state_key.is_none() && event.pdu.redacted_by.is_none()
}

/// Those senders of events whose messages the reader is shown empty. Hardly ever has the database to be asked.
pub(crate) struct Erased<'a> {
    senders: HashSet<OwnedUserId>,
    reader: Reader<'a>,
}

impl<'a> Erased<'a> {
    /// Finds them.
    ///
    /// # Errors
    /// The database's own.
    pub(crate) async fn among<'e, E: Borrow<RoomEvent> + 'e>(
        tx: &ReadTx,
        events: impl IntoIterator<Item = &'e E>,
        reader: Reader<'a>,
    ) -> Result<Self, Error> {
        let events = events.into_iter().map(Borrow::borrow);
        let events = events.filter(|event| may_be_erased(event, reader.memberships));
        let senders: BTreeSet<&UserId> = events.map(|event: &RoomEvent| &*event.pdu.sender).collect();
        let senders = users::erased(tx, &Vec::from_iter(senders)).await?;
        Ok(Self { senders, reader })
    }

    /// Whether the reader is shown an event empty.
    pub(crate) fn hides(&self, event: &RoomEvent) -> bool {
        self.senders.contains(&event.pdu.sender) && may_be_erased(event, self.reader.memberships)
    }

    /// The event as the reader is shown it.
    pub(super) fn shown<'e>(&self, event: &'e RoomEvent) -> Cow<'e, RoomEvent> {
        if !self.hides(event) {
            return Cow::Borrowed(event);
        }
        let mut event = event.clone();
        // What is left of the content of a message when it is redacted, in all versions of rooms; without what it redacts a redaction says nothing.
        let redacts =
            event.pdu.redacts.clone().filter(|_| event.pdu.event_type == TimelineEventType::RoomRedaction);
        if let Ok(left) = to_raw_value(&Left { redacts }) {
            Arc::make_mut(&mut event.pdu).content = left;
        }
        Cow::Owned(event)
    }
}

/// Events as the reader is shown them.
///
/// # Errors
/// The database's own.
pub(super) async fn as_shown(
    tx: &ReadTx,
    events: HashMap<OwnedEventId, RoomEvent>,
    reader: Reader<'_>,
) -> Result<HashMap<OwnedEventId, RoomEvent>, Error> {
    let erased = Erased::among(tx, events.values(), reader).await?;
    if erased.senders.is_empty() {
        return Ok(events);
    }
    Ok(events.into_iter().map(|(event_id, event)| (event_id, erased.shown(&event).into_owned())).collect())
}
