//! From what clients want written to events with their positions: all of a batch that needs no database.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use keystead_core::{
    closing, encryption,
    event::Draft,
    pdu::{ClientSend, SignedPdu},
    room::{Refusal, RoomEvent, RoomState, Signer},
};
use keystead_store::{Error, transactions::ClientTransaction};
use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedRoomId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde_json::value::RawValue;

use super::writer::{Queued, WriteError, Written};

/// The events of each write, or why it has none.
pub(super) type Built = Vec<Result<Vec<SignedPdu>, Refusal>>;

/// What the events of a batch are built on.
#[derive(Clone, Default)]
pub(super) struct Ground {
    /// The rooms' states.
    pub(super) states: HashMap<OwnedRoomId, RoomState>,
    /// The states have everything of the shard up to here in them.
    pub(super) position: i64,
    /// Rooms whose events were built on something that is no longer so.
    pub(super) rebuild: HashSet<OwnedRoomId>,
    /// The rooms that were looked up and are there.
    pub(super) existing: HashSet<OwnedRoomId>,
    /// What clients' transaction ids have done before, if that was asked.
    pub(super) used: HashMap<ClientTransaction, String>,
}

/// Events with their positions.
#[derive(Default)]
pub(super) struct Placed {
    pub(super) events: Vec<(i64, SignedPdu)>,
    /// The position that each state key had its event at before the batch.
    pub(super) replaced: HashMap<(OwnedRoomId, String, String), i64>,
}

/// What the transaction left behind.
pub(super) struct Committed {
    /// Where the shard stood before.
    pub(super) before: i64,
    pub(super) events: Vec<Arc<RoomEvent>>,
    pub(super) redacted: Vec<Arc<RoomEvent>>,
    pub(super) states: HashMap<OwnedRoomId, RoomState>,
    /// What became of each write, in their order.
    pub(super) results: Vec<Result<Written, WriteError>>,
}

/// Builds the events of all writes, each on what the ones before it leave.
pub(super) fn build(states: &HashMap<OwnedRoomId, RoomState>, writes: &[Queued], signer: &Signer) -> Built {
    let mut states = states.clone();
    writes
        .iter()
        .map(|write| {
            let state = states
                .get_mut(&write.room_id)
                .ok_or_else(|| Refusal::BadEvent("The room's state is not loaded".to_owned()))?;
            build_write(state, write, signer)
        })
        .collect()
}

fn build_write(state: &mut RoomState, write: &Queued, signer: &Signer) -> Result<Vec<SignedPdu>, Refusal> {
    if set_already(state, write).is_some() {
        return Ok(Vec::new());
    }
    let mut next = state.clone();
    let mut events = Vec::with_capacity(write.drafts.len() + 1);
    if let Some((_, create)) = &write.create {
        take(&mut next, create);
        events.push(create.clone());
    }
    for (index, draft) in write.drafts.iter().enumerate() {
        check_encryption(&next, draft)?;
        closing::check(&next, draft).map_err(|refusal| Refusal::Forbidden(refusal.to_string()))?;
        let mut event = next.build(draft.clone(), signer)?;
        if index + 1 == write.drafts.len()
            && let Some(key) = &write.transaction
        {
            Arc::make_mut(&mut event.pdu).sent_by = Some(ClientSend {
                device_id: key.device_id.clone(),
                transaction_id: key.transaction_id.clone(),
            });
        }
        take(&mut next, &event);
        events.push(event);
    }
    *state = next;
    Ok(events)
}

/// The event that a write would only repeat: the same user has set the same state to the same content. Two clients that
/// join at once, or one that asks twice, so make one event.
fn set_already<'a>(state: &'a RoomState, write: &Queued) -> Option<&'a Arc<RoomEvent>> {
    let [draft] = write.drafts.as_slice() else { return None };
    if write.create.is_some() || write.alongside.is_some() {
        return None;
    }
    let state_key = draft.state_key.as_deref()?;
    let current = state.get(&draft.event_type.to_string(), state_key)?;
    // Who is not in the room has no say in its state, but for being in it or not.
    let has_a_say =
        state_key == draft.sender.as_str() || state.membership(&draft.sender) == MembershipState::Join;
    (has_a_say && current.pdu.sender == draft.sender && is_same(&current.pdu.content, &draft.content))
        .then_some(current)
}

/// Whether two contents are the same, however they are written.
fn is_same(one: &RawValue, other: &RawValue) -> bool {
    let read = |content: &RawValue| serde_json::from_str::<CanonicalJsonObject>(content.get()).ok();
    read(one).is_some_and(|one| Some(one) == read(other))
}

/// Lays an event over a state that will be thrown away, at a position that is only the next one.
fn take(state: &mut RoomState, event: &SignedPdu) {
    let position = state.position + 1;
    state.apply(&Arc::new(RoomEvent { position, pdu: event.pdu.clone() }));
}

/// A KeyBox room keeps its suite, and asks for no key to be used for too long (KeyBox profile, sections 5 and 8).
fn check_encryption(state: &RoomState, draft: &Draft) -> Result<(), Refusal> {
    let Some(state_key) = draft.state_key.as_deref() else { return Ok(()) };
    if draft.event_type != TimelineEventType::RoomEncryption {
        return Ok(());
    }
    let frozen =
        state.get("m.room.create", "").and_then(|event| encryption::frozen_suite(&event.pdu.content));
    let current = state.get("m.room.encryption", "").map(|event| &*event.pdu.content);
    encryption::check_state_key(frozen, state_key)
        .and_then(|()| match state_key {
            "" => encryption::check_change(frozen, current, &draft.content),
            _ => Ok(()),
        })
        .map_err(|error| Refusal::Forbidden(error.to_string()))
}

/// Gives the events their positions on the ground that they stand on, building those anew whose ground has moved.
pub(super) fn place(
    (writes, built): (&[Queued], &Built),
    signer: &Signer,
    ground: Ground,
    mut next_position: impl FnMut() -> Result<i64, Error>,
) -> Result<(Committed, Placed), Error> {
    let Ground { states, position, mut rebuild, existing, used } = ground;
    let mut committed = Committed {
        before: position,
        events: Vec::new(),
        redacted: Vec::new(),
        states: states.clone(),
        results: Vec::with_capacity(writes.len()),
    };
    let mut placed = Placed::default();
    let mut building = states;
    let mut created = HashSet::new();
    for (index, write) in writes.iter().enumerate() {
        if let Some(done) = write.transaction.as_ref().and_then(|key| used.get(key)) {
            rebuild.insert(write.room_id.clone());
            committed.results.push(already_done(write, done));
            continue;
        }
        if write.create.is_some() && (existing.contains(&write.room_id) || !created.insert(&write.room_id)) {
            committed.results.push(Err(WriteError::Conflict));
            continue;
        }
        let events = if rebuild.contains(&write.room_id) {
            let state = building.get_mut(&write.room_id);
            state.map_or(Ok(Vec::new()), |state| build_write(state, write, signer))
        } else {
            take_built(built, index, building.get_mut(&write.room_id))
        };
        match events {
            Ok(events) => {
                let result = assign(events, &mut next_position, &mut committed, &mut placed)?;
                let state = committed.states.get(&write.room_id);
                let stands = || state.and_then(|state| set_already(state, write)).map(stands_already);
                let result = result.or_else(stands).ok_or(WriteError::UnknownRoom);
                committed.results.push(result);
            }
            Err(refusal) => committed.results.push(Err(WriteError::Refused(refusal))),
        }
    }
    Ok((committed, placed))
}

/// What was built before the transaction began. The state goes along, in case a later write of the room must be built again.
fn take_built(built: &Built, index: usize, state: Option<&mut RoomState>) -> Result<Vec<SignedPdu>, Refusal> {
    match built.get(index) {
        Some(Ok(events)) => {
            if let Some(state) = state {
                events.iter().for_each(|event| take(state, event));
            }
            Ok(events.clone())
        }
        Some(Err(refusal)) => Err(refusal.clone()),
        None => Ok(Vec::new()),
    }
}

/// Gives the events of one write their positions. `None` if there are none.
fn assign(
    events: Vec<SignedPdu>,
    next_position: &mut impl FnMut() -> Result<i64, Error>,
    committed: &mut Committed,
    placed: &mut Placed,
) -> Result<Option<Written>, Error> {
    let mut written = None;
    for event in events {
        let position = next_position()?;
        let pdu = &event.pdu;
        if let Some(state) = committed.states.get_mut(&pdu.room_id) {
            if let Some(state_key) = &pdu.state_key {
                let event_type = pdu.event_type.to_string();
                let before = state.get(&event_type, state_key).map(|before| before.position);
                if let Some(before) = before.filter(|before| *before <= committed.before) {
                    placed.replaced.insert((pdu.room_id.clone(), event_type, state_key.clone()), before);
                }
            }
            let room_event = Arc::new(RoomEvent { position, pdu: pdu.clone() });
            state.apply(&room_event);
            committed.events.push(room_event);
        }
        written = Some(Written {
            room_id: pdu.room_id.clone(),
            event_id: pdu.event_id.clone(),
            position: Some(position),
        });
        placed.events.push((position, event));
    }
    Ok(written)
}

fn already_done(write: &Queued, result: &str) -> Result<Written, WriteError> {
    let event_id = OwnedEventId::try_from(result)
        .map_err(|error| Error::corrupt("client_transactions", "result", write.room_id.as_str(), error))?;
    Ok(Written { room_id: write.room_id.clone(), event_id, position: None })
}

fn stands_already(event: &Arc<RoomEvent>) -> Written {
    Written { room_id: event.pdu.room_id.clone(), event_id: event.pdu.event_id.clone(), position: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_compared_by_what_they_mean() {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        assert!(is_same(&raw(r#"{"a":1,"b":"\u0041"}"#), &raw(r#"{ "b": "A", "a": 1 }"#)));
        assert!(!is_same(&raw(r#"{"a":1}"#), &raw(r#"{"a":"1"}"#)));
        assert!(!is_same(&raw("[]"), &raw("[]")), "no contents at all");
    }
}
