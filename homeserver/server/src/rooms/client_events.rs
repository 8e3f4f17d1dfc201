//! Events as one client reads them: with its own transaction ids, what state they replaced and why they are empty.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#room-event-format>.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
};

use super::{
    erasure::{Erased, as_shown},
    relations::aggregate,
};
use crate::sync::IgnoredUsers;
use keystead_core::{
    client_format::{self, MalformedEvent, Unsigned},
    room::RoomEvent,
};
use keystead_store::{Error, ReadTx, rooms};
use ruma::{DeviceId, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, UserId};
use serde_json::value::RawValue;

use super::MembershipHistory;

/// Who reads the events, and when.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// The user.
    pub user_id: &'a UserId,
    /// The device that asks: it is shown the transaction ids that it chose.
    pub device_id: &'a DeviceId,
    /// When the request came, in milliseconds since the epoch.
    pub now: MilliSecondsSinceUnixEpoch,
    /// What the user was to the room of the events, where that is known: each is told with it.
    pub memberships: Option<&'a MembershipHistory>,
}

impl<'a> Reader<'a> {
    /// The same for the events of one room.
    #[must_use]
    pub fn knowing<'b>(self, memberships: &'b MembershipHistory) -> Reader<'b>
    where
        'a: 'b,
    {
        Reader { memberships: Some(memberships), ..self }
    }
}

/// In which of the two forms events are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// Without the room's id, which stands above the events: `/sync`.
    Sync,
    /// With the room's id: all other endpoints.
    WithRoomId,
}

/// Writes events for a client, in their order; what belongs into `unsigned` is read from the database. With the users whom the reader
/// ignores given, what the events' children say is shown with them; then all are of one room.
///
/// # Errors
/// The database's own, or an event that cannot be written for clients.
pub async fn client_events<E: Borrow<RoomEvent> + Sync>(
    tx: &ReadTx,
    events: &[E],
    (reader, ignored): (Reader<'_>, Option<&IgnoredUsers>),
    form: Form,
) -> Result<Vec<Box<RawValue>>, Error> {
    let state: Vec<&RoomEvent> =
        events.iter().map(Borrow::borrow).filter(|event| event.pdu.state_key.is_some()).collect();
    let replaced = rooms::replaced_by(tx, &state).await?;
    let relations = match ignored {
        Some(ignored) => aggregate(tx, events, (reader, ignored), form).await?,
        None => HashMap::new(),
    };
    write_all(tx, events, (&replaced, &relations), reader, form).await
}

/// Like [`client_events`], for events that are shown as the state of a room: what they replaced is left out, which is
/// nothing that anybody asks for then, and would be read for every member.
///
/// # Errors
/// As [`client_events`].
pub async fn client_state<E: Borrow<RoomEvent> + Sync>(
    tx: &ReadTx,
    events: &[E],
    reader: Reader<'_>,
    form: Form,
) -> Result<Vec<Box<RawValue>>, Error> {
    write_all(tx, events, (&HashMap::new(), &HashMap::new()), reader, form).await
}

async fn write_all<E: Borrow<RoomEvent> + Sync>(
    tx: &ReadTx,
    events: &[E],
    (replaced, relations): (&HashMap<OwnedEventId, RoomEvent>, &HashMap<OwnedEventId, Box<RawValue>>),
    reader: Reader<'_>,
    form: Form,
) -> Result<Vec<Box<RawValue>>, Error> {
    let redactions = as_shown(tx, redactions_of(tx, events).await?, reader).await?;
    let erased = Erased::among(tx, events, reader).await?;
    events
        .iter()
        .map(Borrow::borrow)
        .map(|event| {
            let event = &*erased.shown(event);
            let redaction = event.pdu.redacted_by.as_ref().and_then(|id| redactions.get(id));
            let replaced = replaced.get(&event.pdu.event_id);
            let relations = relations.get(&event.pdu.event_id).map(AsRef::as_ref);
            write(event, (redaction, replaced, relations), reader, form)
                .map_err(|error| Error::corrupt("events", "json", event.pdu.event_id.as_str(), error))
        })
        .collect()
}

/// Writes one event for a client.
///
/// `redaction` is the event that emptied it, if one did. What the event replaced in the room's state is left out.
///
/// # Errors
/// [`MalformedEvent`] if the content of a redaction is no object.
pub fn client_event(
    event: &RoomEvent,
    redaction: Option<&RoomEvent>,
    reader: Reader<'_>,
    form: Form,
) -> Result<Box<RawValue>, MalformedEvent> {
    write(event, (redaction, None, None), reader, form)
}

/// Writes one event with what emptied it, what it replaced and what its children say.
pub(super) fn write(
    event: &RoomEvent,
    (redaction, replaced, relations): (Option<&RoomEvent>, Option<&RoomEvent>, Option<&RawValue>),
    reader: Reader<'_>,
    form: Form,
) -> Result<Box<RawValue>, MalformedEvent> {
    let redacted_because =
        redaction.map(|redaction| client_event(redaction, None, reader, form)).transpose()?;
    let pdu = &event.pdu;
    let unsigned = Unsigned {
        now: Some(reader.now),
        transaction_id: transaction_id(event, reader),
        prev_content: replaced.map(|replaced| &*replaced.pdu.content),
        replaces_state: replaced.map(|replaced| &*replaced.pdu.event_id),
        redacted_because: redacted_because.as_deref(),
        membership: reader.memberships.and_then(|memberships| memberships.at(event.position)),
        relations,
    };
    match form {
        Form::Sync => client_format::for_sync(pdu, &unsigned),
        Form::WithRoomId => client_format::with_room_id(pdu, &unsigned),
    }
}

/// > The client-supplied transaction ID, […] if the client being given the event is the same one which sent it.
fn transaction_id<'a>(event: &'a RoomEvent, reader: Reader<'_>) -> Option<&'a str> {
    let sent = event.pdu.sent_by.as_ref()?;
    (event.pdu.sender == reader.user_id && sent.device_id == reader.device_id)
        .then_some(sent.transaction_id.as_str())
}

async fn redactions_of<E: Borrow<RoomEvent> + Sync>(
    tx: &ReadTx,
    events: &[E],
) -> Result<HashMap<OwnedEventId, RoomEvent>, Error> {
    let ids: HashSet<&EventId> =
        events.iter().filter_map(|event| event.borrow().pdu.redacted_by.as_deref()).collect();
    rooms::events(tx, &Vec::from_iter(ids)).await
}

#[cfg(test)]
mod tests {
    use keystead_core::pdu::{ClientSend, Pdu};
    use ruma::{device_id, events::room::member::MembershipState, owned_event_id, owned_room_id, user_id};
    use serde_json::{Value, json};

    use super::*;

    fn event(event_id: OwnedEventId, extra: Value) -> RoomEvent {
        let mut json = json!({
            "type": "m.room.message", "sender": "@a:x", "content": {}, "origin_server_ts": 1000,
            "depth": 1, "auth_events": [], "prev_events": [],
        });
        json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let pdu = Pdu::from_json(event_id, owned_room_id!("!r"), &json.to_string()).unwrap();
        RoomEvent { position: 1, pdu: pdu.into() }
    }

    fn parsed(event: &RawValue) -> Value {
        serde_json::from_str(event.get()).unwrap()
    }

    fn reader<'a>(user_id: &'a UserId, device_id: &'a DeviceId) -> Reader<'a> {
        Reader { user_id, device_id, now: MilliSecondsSinceUnixEpoch(1_500_u32.into()), memberships: None }
    }

    #[test]
    fn only_the_sending_device_is_shown_its_transaction_id() {
        let mut event = event(owned_event_id!("$e"), json!({}));
        std::sync::Arc::make_mut(&mut event.pdu).sent_by =
            Some(ClientSend { device_id: device_id!("D").to_owned(), transaction_id: "t".to_owned() });
        let table = [
            (user_id!("@a:x"), device_id!("D"), json!({ "age": 500, "transaction_id": "t" })),
            (user_id!("@a:x"), device_id!("E"), json!({ "age": 500 })),
            // Device ids are only unique within a user.
            (user_id!("@b:x"), device_id!("D"), json!({ "age": 500 })),
        ];
        for (user, device, unsigned) in table {
            let written = client_event(&event, None, reader(user, device), Form::Sync).unwrap();
            assert_eq!(parsed(&written)["unsigned"], unsigned, "{user} {device}");
        }
    }

    #[test]
    fn an_event_tells_what_its_reader_was_to_the_room() {
        let event = event(owned_event_id!("$e"), json!({}));
        let reader = reader(user_id!("@b:x"), device_id!("D"));
        let table = [
            (
                MembershipHistory::whole(vec![(1, MembershipState::Invite), (2, MembershipState::Join)]),
                json!("invite"),
            ),
            (MembershipHistory::whole(Vec::new()), json!("leave")),
            (MembershipHistory::newest(2, MembershipState::Join), Value::Null),
        ];
        for (memberships, expected) in table {
            let written = client_event(&event, None, reader.knowing(&memberships), Form::Sync).unwrap();
            assert_eq!(parsed(&written)["unsigned"]["membership"], expected, "{memberships:?}");
        }
    }

    #[test]
    fn a_redacted_event_carries_its_redaction_in_its_own_form() {
        let event = event(owned_event_id!("$e"), json!({}));
        let redaction = self::event(
            owned_event_id!("$r"),
            json!({ "type": "m.room.redaction", "content": { "redacts": "$e", "reason": "spam" } }),
        );
        let reader = reader(user_id!("@b:x"), device_id!("D"));
        for (form, room) in [(Form::Sync, Value::Null), (Form::WithRoomId, json!("!r"))] {
            let written = parsed(&client_event(&event, Some(&redaction), reader, form).unwrap());
            let because = &written["unsigned"]["redacted_because"];
            assert_eq!(because["event_id"], "$r");
            assert_eq!(because["content"]["reason"], "spam");
            assert_eq!((&written["room_id"], &because["room_id"]), (&room, &room));
        }
    }
}
