//! What the children of an event say about it, as clients are shown it with the event ([spec]).
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#aggregations-of-child-events

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
};

use keystead_core::{
    relations::{REFERENCE, REPLACE, THREAD, is_valid_replacement},
    room::RoomEvent,
};
use keystead_store::{
    Error, ReadTx,
    rooms::{self, Child, View},
};
use ruma::{EventId, OwnedEventId};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    client_events::{Form, Reader, write},
    erasure::as_shown,
    visibility::RoomView,
};
use crate::sync::IgnoredUsers;

#[derive(Serialize)]
struct Aggregated<'a> {
    #[serde(rename = "m.reference", skip_serializing_if = "Option::is_none")]
    reference: Option<References<'a>>,
    #[serde(rename = "m.replace", skip_serializing_if = "Option::is_none")]
    replace: Option<Box<RawValue>>,
    #[serde(rename = "m.thread", skip_serializing_if = "Option::is_none")]
    thread: Option<ThreadSummary>,
}

#[derive(Serialize)]
struct References<'a> {
    chunk: Vec<Reference<'a>>,
}

#[derive(Serialize)]
struct Reference<'a> {
    event_id: &'a EventId,
}

#[derive(Serialize)]
struct ThreadSummary {
    latest_event: Box<RawValue>,
    count: i64,
    current_user_participated: bool,
}

/// The `m.relations` of those of the events that have children which the reader may see; all events are of one room.
///
/// What `ignored` users have sent counts for nothing, and neither does what was redacted.
///
/// # Errors
/// The database's own, or an event that cannot be written for clients.
pub(super) async fn aggregate<E: Borrow<RoomEvent> + Sync>(
    tx: &ReadTx,
    events: &[E],
    (reader, ignored): (Reader<'_>, &IgnoredUsers),
    form: Form,
) -> Result<HashMap<OwnedEventId, Box<RawValue>>, Error> {
    let parents = possible_parents(tx, events).await?;
    let Some(room_id) = parents.first().map(|event| &*event.pdu.room_id) else { return Ok(HashMap::new()) };
    let visible = &RoomView::load(tx, room_id, reader.user_id).await?.visible();
    let ignored = &ignored.keys().map(AsRef::as_ref).collect::<Vec<_>>();
    let view = View { user_id: reader.user_id, visible, ignored };
    let senders: Vec<_> = parents.iter().map(|event| (&*event.pdu.event_id, &*event.pdu.sender)).collect();
    let children = rooms::children(tx, room_id, &senders, view).await?;
    if children.is_empty() {
        return Ok(HashMap::new());
    }
    let families = families(&children);
    let mut known = rooms::events(tx, &Vec::from_iter(shown(&families))).await?;
    let latest = families.values().filter_map(|family| family.thread);
    let latest: Vec<_> = latest.filter_map(|child| known.get(&child.event_id)).collect();
    let senders: Vec<_> = latest.iter().map(|event| (&*event.pdu.event_id, &*event.pdu.sender)).collect();
    let replacing_latest = rooms::children(tx, room_id, &senders, view).await?;
    let second = self::families(&replacing_latest);
    let replacing = rooms::events(tx, &Vec::from_iter(second.values().flat_map(replacements))).await?;
    known.extend(replacing);
    let known = as_shown(tx, known, reader).await?;
    let writer = Writer { reader, form, known: &known, second: &second };
    let mut aggregated = HashMap::new();
    for parent in parents {
        let Some(family) = families.get(&*parent.pdu.event_id) else { continue };
        if let Some(written) = writer.aggregated(parent, family)? {
            aggregated.insert(parent.pdu.event_id.clone(), written);
        }
    }
    Ok(aggregated)
}

/// Those of the events that may have children: hardly any, so that one statement is all that the others cost.
async fn possible_parents<'e, E: Borrow<RoomEvent>>(
    tx: &ReadTx,
    events: &'e [E],
) -> Result<Vec<&'e RoomEvent>, Error> {
    let mut parents: Vec<&RoomEvent> =
        events.iter().map(Borrow::borrow).filter(|event| event.pdu.state_key.is_none()).collect();
    let ids: Vec<_> = parents.iter().map(|event| (&*event.pdu.room_id, &*event.pdu.event_id)).collect();
    let possible = rooms::possible_parents(tx, &ids).await?;
    parents.retain(|event| possible.contains(&event.pdu.event_id));
    Ok(parents)
}

/// The events that are shown with the parents of these children, or may be.
fn shown<'a>(families: &HashMap<&EventId, Family<'a>>) -> HashSet<&'a EventId> {
    let shown = families
        .values()
        .flat_map(|family| replacements(family).chain(family.thread.map(|child| &*child.event_id)));
    shown.collect()
}

fn replacements<'a>(family: &Family<'a>) -> impl Iterator<Item = &'a EventId> {
    family.replace.clone().into_iter().map(|child| &*child.event_id)
}

/// The children of one event, oldest first.
#[derive(Default)]
struct Family<'a> {
    reference: Vec<&'a Child>,
    replace: Vec<&'a Child>,
    /// The newest one of its thread.
    thread: Option<&'a Child>,
}

fn families(children: &[Child]) -> HashMap<&EventId, Family<'_>> {
    let mut families: HashMap<&EventId, Family<'_>> = HashMap::new();
    for child in children {
        let family = families.entry(&*child.parent).or_default();
        match &*child.rel_type {
            REFERENCE => family.reference.push(child),
            REPLACE => family.replace.push(child),
            THREAD => family.thread = Some(child),
            _ => {}
        }
    }
    families
}

struct Writer<'a> {
    reader: Reader<'a>,
    form: Form,
    /// The newest events of threads, and replacements.
    known: &'a HashMap<OwnedEventId, RoomEvent>,
    /// What replaces the newest events of threads.
    second: &'a HashMap<&'a EventId, Family<'a>>,
}

impl Writer<'_> {
    fn aggregated(&self, parent: &RoomEvent, family: &Family<'_>) -> Result<Option<Box<RawValue>>, Error> {
        let chunk: Vec<_> =
            family.reference.iter().map(|child| Reference { event_id: &child.event_id }).collect();
        let aggregated = Aggregated {
            reference: (!chunk.is_empty()).then_some(References { chunk }),
            replace: self.replacement(parent, family)?,
            thread: self.thread(parent, family)?,
        };
        if let Aggregated { reference: None, replace: None, thread: None } = aggregated {
            return Ok(None);
        }
        to_raw_value(&aggregated).map(Some).map_err(|error| corrupt(parent, error))
    }

    /// The most recent valid replacement of an event.
    fn replacement(&self, original: &RoomEvent, family: &Family<'_>) -> Result<Option<Box<RawValue>>, Error> {
        let valid = family
            .replace
            .iter()
            .filter_map(|child| self.known.get(&child.event_id))
            .filter(|replacement| is_valid_replacement(&original.pdu, &replacement.pdu));
        // > The most recent event is determined by comparing `origin_server_ts`; if two or more replacement events have identical
        // > `origin_server_ts`, the event with the lexicographically largest `event_id` is treated as more recent.
        let recent =
            valid.max_by_key(|replacement| (replacement.pdu.origin_server_ts, &replacement.pdu.event_id));
        recent.map(|event| self.event(event, None)).transpose()
    }

    fn thread(&self, root: &RoomEvent, family: &Family<'_>) -> Result<Option<ThreadSummary>, Error> {
        let Some(child) = family.thread else { return Ok(None) };
        let Some(latest) = self.known.get(&child.event_id) else { return Ok(None) };
        let replace = match self.second.get(&*latest.pdu.event_id) {
            Some(family) => self.replacement(latest, family)?,
            None => None,
        };
        let relations = replace.map(|replace| {
            to_raw_value(&Aggregated { reference: None, replace: Some(replace), thread: None })
                .map_err(|error| corrupt(latest, error))
        });
        let user_id = self.reader.user_id;
        Ok(Some(ThreadSummary {
            latest_event: self.event(latest, relations.transpose()?.as_deref())?,
            count: child.siblings,
            current_user_participated: root.pdu.sender == user_id || child.has_own,
        }))
    }

    /// > It should be serialized in the same form as the event itself.
    fn event(&self, event: &RoomEvent, relations: Option<&RawValue>) -> Result<Box<RawValue>, Error> {
        write(event, (None, None, relations), self.reader, self.form).map_err(|error| corrupt(event, error))
    }
}

fn corrupt(event: &RoomEvent, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::corrupt("events", "json", event.pdu.event_id.as_str(), error)
}
