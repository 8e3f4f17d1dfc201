//! One transaction of the writer: everything that has queued for a shard.
//!
//! The events are built on the rooms' states in memory before the transaction begins. Under the lock of the shard, rooms that
//! another replica has written to meanwhile are brought up to date and their events built again, so there is nothing to
//! retry, and two replicas that write to one room cannot keep each other from it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use keystead_core::{
    closing, encryption,
    event::Draft,
    pdu::{ClientSend, SignedPdu},
    redaction,
    room::{Refusal, RoomEvent, RoomState, Signer},
    shard::Shard,
};
use keystead_store::{
    Error, TransactionError, WriteTx,
    rooms::{self, Bounds, Direction, RoomHead},
    transactions::{self, ClientTransaction},
};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde_json::value::RawValue;

use super::writer::{Context, Queued, WriteError, Written};
use crate::streams::{Entry, Item};

/// What the transaction left behind.
struct Committed {
    /// Where the shard stood before.
    before: i64,
    events: Vec<Arc<RoomEvent>>,
    redacted: Vec<Arc<RoomEvent>>,
    states: HashMap<OwnedRoomId, RoomState>,
    /// What became of each write, in their order.
    results: Vec<Result<Written, WriteError>>,
}

/// Why the transaction was rolled back.
enum BatchError {
    Store(Error),
    /// What the write of this number wanted alongside is taken; the others can go on without it.
    Alongside(usize),
}

impl From<Error> for BatchError {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl TransactionError for BatchError {
    fn store_error(&self) -> Option<&Error> {
        match self {
            Self::Store(error) => Some(error),
            Self::Alongside(_) => None,
        }
    }
}

/// The events of each write, or why it has none.
type Built = Vec<Result<Vec<SignedPdu>, Refusal>>;

/// Writes a batch and answers everybody in it, but for those who have to wait for the next one, which are returned.
pub(super) async fn write(context: &Context, shard: Shard, queued: Vec<Queued>) -> Vec<Queued> {
    let (writes, postponed) = postpone_repeated(queued);
    let (writes, states) = load_states(context, writes).await;
    commit(context, shard, writes, &states).await;
    postponed
}

/// Writes a batch in one transaction. If the database refuses it for what one of the writes says, each is tried alone, so
/// that nobody fails for somebody else.
async fn commit(
    context: &Context,
    shard: Shard,
    mut writes: Vec<Queued>,
    states: &HashMap<OwnedRoomId, RoomState>,
) {
    while !writes.is_empty() {
        let built = build(states, &writes, &context.signer);
        let batch = Batch { context, shard, writes: &writes, states, built: &built };
        let store = context.tail.store();
        match store.write("append_events", |tx| batch.append(tx)).await {
            Ok(committed) => {
                (context.observe)(writes.len(), committed.events.len());
                return publish(context, shard, writes, committed);
            }
            Err(BatchError::Alongside(index)) => answer(writes.remove(index), Err(WriteError::Conflict)),
            Err(BatchError::Store(error)) if writes.len() > 1 && error.is_about_data() => {
                for write in writes {
                    Box::pin(commit(context, shard, vec![write], states)).await;
                }
                return;
            }
            Err(BatchError::Store(error)) => {
                let error = Arc::new(error);
                for write in writes.drain(..) {
                    answer(write, Err(WriteError::Store(error.clone())));
                }
            }
        }
    }
}

/// A transaction id that stands twice in a batch waits for the next one, which finds it done.
fn postpone_repeated(queued: Vec<Queued>) -> (Vec<Queued>, Vec<Queued>) {
    let mut seen: HashSet<ClientTransaction> = HashSet::new();
    queued
        .into_iter()
        .partition(|write| write.transaction.as_ref().is_none_or(|key| seen.insert(key.clone())))
}

/// The states that the writes build on. Writes to rooms that the server does not know, or cannot read, are answered here.
async fn load_states(
    context: &Context,
    writes: Vec<Queued>,
) -> (Vec<Queued>, HashMap<OwnedRoomId, RoomState>) {
    let mut states = HashMap::new();
    let mut known = Vec::with_capacity(writes.len());
    for write in writes {
        if let Some((empty, _)) = &write.create {
            states.entry(write.room_id.clone()).or_insert_with(|| empty.clone());
        } else if !states.contains_key(&write.room_id) {
            match context.tail.room(&write.room_id).await {
                Ok(Some(state)) => drop(states.insert(write.room_id.clone(), state)),
                Ok(None) => {
                    answer(write, Err(WriteError::UnknownRoom));
                    continue;
                }
                Err(error) => {
                    answer(write, Err(error.into()));
                    continue;
                }
            }
        }
        known.push(write);
    }
    (known, states)
}

/// Builds the events of all writes, each on what the ones before it leave.
fn build(states: &HashMap<OwnedRoomId, RoomState>, writes: &[Queued], signer: &Signer) -> Built {
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
    for draft in &write.drafts {
        check_encryption(&next, draft)?;
        closing::check(&next, draft).map_err(|refusal| Refusal::Forbidden(refusal.to_string()))?;
        let event = next.build(draft.clone(), signer)?;
        take(&mut next, &event);
        events.push(event);
    }
    if let (Some(event), Some(key)) = (events.last_mut(), &write.transaction) {
        event.pdu.sent_by =
            Some(ClientSend { device_id: key.device_id.clone(), transaction_id: key.transaction_id.clone() });
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

/// A KeyBox room keeps its suite (KeyBox profile, section 2).
fn check_encryption(state: &RoomState, draft: &Draft) -> Result<(), Refusal> {
    if draft.event_type != TimelineEventType::RoomEncryption || draft.state_key.as_deref() != Some("") {
        return Ok(());
    }
    let frozen =
        state.get("m.room.create", "").and_then(|event| encryption::frozen_suite(&event.pdu.content));
    let current = state.get("m.room.encryption", "").map(|event| &*event.pdu.content);
    encryption::check_change(frozen, current, &draft.content)
        .map_err(|error| Refusal::Forbidden(error.to_string()))
}

struct Batch<'a> {
    context: &'a Context,
    shard: Shard,
    writes: &'a [Queued],
    states: &'a HashMap<OwnedRoomId, RoomState>,
    built: &'a Built,
}

impl Batch<'_> {
    async fn append(&self, tx: WriteTx) -> Result<Committed, BatchError> {
        tx.lock_shards(&[self.shard]).await?;
        tx.announce_to_others_only();
        let heads = self.heads(&tx).await?;
        let keys: Vec<_> = self.writes.iter().filter_map(|write| write.transaction.as_ref()).collect();
        let used = transactions::find_used(&tx, &keys).await?;
        let (states, stale) = self.fresh_states(&tx, &heads).await?;

        let mut committed = Committed {
            before: tx.locked_position(self.shard),
            events: Vec::new(),
            redacted: Vec::new(),
            states: states.clone(),
            results: Vec::with_capacity(self.writes.len()),
        };
        let mut appended = Vec::new();
        let mut replaced = HashMap::new();
        let mut building = states;
        // Rooms whose events were built on something that is no longer so.
        let mut rebuild = stale;
        let mut created = HashSet::new();
        for (index, write) in self.writes.iter().enumerate() {
            if let Some(done) = write.transaction.as_ref().and_then(|key| used.get(key)) {
                rebuild.insert(write.room_id.clone());
                committed.results.push(already_done(write, done));
                continue;
            }
            if write.create.is_some()
                && (heads.contains_key(&write.room_id) || !created.insert(&write.room_id))
            {
                committed.results.push(Err(WriteError::Conflict));
                continue;
            }
            let events = if rebuild.contains(&write.room_id) {
                let state = building.get_mut(&write.room_id);
                state.map_or(Ok(Vec::new()), |state| build_write(state, write, &self.context.signer))
            } else {
                self.take_built(index, building.get_mut(&write.room_id))
            };
            match events {
                Ok(events) => {
                    let result =
                        assign(&tx, self.shard, events, &mut committed, (&mut appended, &mut replaced))?;
                    let state = committed.states.get(&write.room_id);
                    let stands = || state.and_then(|state| set_already(state, write)).map(stands_already);
                    let result = result.or_else(stands).ok_or(WriteError::UnknownRoom);
                    committed.results.push(result);
                }
                Err(refusal) => committed.results.push(Err(WriteError::Refused(refusal))),
            }
        }
        self.store(&tx, &mut committed, &appended, &replaced).await?;
        Ok(committed)
    }

    async fn heads(&self, tx: &WriteTx) -> Result<HashMap<OwnedRoomId, RoomHead>, Error> {
        let room_ids: Vec<_> = self.states.keys().map(AsRef::as_ref).collect();
        let heads = rooms::heads(tx, &room_ids).await?;
        Ok(heads.into_iter().map(|head| (head.room_id.clone(), head)).collect())
    }

    /// The states as of now, and the rooms that have changed since the events were built.
    async fn fresh_states(
        &self,
        tx: &WriteTx,
        heads: &HashMap<OwnedRoomId, RoomHead>,
    ) -> Result<(HashMap<OwnedRoomId, RoomState>, HashSet<OwnedRoomId>), Error> {
        let mut states = self.states.clone();
        let mut stale = HashSet::new();
        for (room_id, state) in &mut states {
            let Some(head) = heads.get(room_id).filter(|head| head.position > state.position) else {
                continue;
            };
            let bounds = Bounds { after: state.position, upto: head.position };
            let missed =
                rooms::events_between(tx, room_id, bounds, Direction::Forward, u64::from(u32::MAX)).await?;
            if missed.iter().any(|event| event.pdu.event_type == TimelineEventType::RoomRedaction) {
                // What was redacted may be part of the state.
                let gone = || Error::corrupt("rooms", "room_id", room_id.as_str(), "the room has gone");
                *state = rooms::load(tx, room_id).await?.ok_or_else(gone)?;
            } else {
                missed.into_iter().for_each(|event| state.apply(&Arc::new(event)));
            }
            stale.insert(room_id.clone());
        }
        Ok((states, stale))
    }

    /// What was built before the transaction began. The state goes along, in case a later write of the room must be built again.
    fn take_built(&self, index: usize, state: Option<&mut RoomState>) -> Result<Vec<SignedPdu>, Refusal> {
        match self.built.get(index) {
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

    async fn store(
        &self,
        tx: &WriteTx,
        committed: &mut Committed,
        appended: &[(i64, SignedPdu)],
        replaced: &Replaced,
    ) -> Result<(), BatchError> {
        if appended.is_empty() {
            return Ok(());
        }
        let changed: HashSet<&OwnedRoomId> = appended.iter().map(|(_, event)| &event.pdu.room_id).collect();
        let heads: Vec<_> = changed
            .iter()
            .filter_map(|room_id| Some(head(self.shard, committed.states.get(*room_id)?)))
            .collect();
        rooms::append(tx, &rooms::Append { shard: self.shard, events: appended, replaced, heads: &heads })
            .await?;
        self.redact(tx, committed, appended).await?;
        self.record_transactions(tx, committed).await?;
        for (index, write) in self.writes.iter().enumerate() {
            let written = matches!(committed.results.get(index), Some(Ok(Written { position: Some(_), .. })));
            let Some(alongside) = write.alongside.as_ref().filter(|_| written) else { continue };
            alongside(tx.clone(), write.room_id.clone()).await.map_err(|error| match error {
                Error::Conflict(_) => BatchError::Alongside(index),
                other => BatchError::Store(other),
            })?;
        }
        Ok(())
    }

    /// Empties the events that the batch redacts, where the sender may do so.
    ///
    /// <https://spec.matrix.org/v1.19/rooms/v11/#handling-redactions>
    async fn redact(
        &self,
        tx: &WriteTx,
        committed: &mut Committed,
        appended: &[(i64, SignedPdu)],
    ) -> Result<(), Error> {
        for (_, event) in appended {
            let redaction = &event.pdu;
            let Some(target) = redaction
                .redacts
                .as_ref()
                .filter(|_| redaction.event_type == TimelineEventType::RoomRedaction)
            else {
                continue;
            };
            let Some(state) = committed.states.get(&redaction.room_id) else { continue };
            let Some(stored) = rooms::stored_event(tx, &redaction.room_id, target).await? else { continue };
            let before = stored.clone().into_room_event()?;
            let allowed = state.may_redact(&redaction.sender, &before.pdu.sender).unwrap_or(false);
            if !allowed || before.pdu.redacted_by.is_some() {
                continue;
            }
            let corrupt =
                |problem: &dyn std::fmt::Display| Error::corrupt("events", "json", target.as_str(), problem);
            let raw = serde_json::from_str(&stored.json).map_err(|error| corrupt(&error))?;
            let redacted =
                redaction::redact(raw, &state.rules().redaction).map_err(|error| corrupt(&error))?;
            rooms::redact(tx, target, redacted.get(), &redaction.event_id).await?;
            let after = rooms::StoredEvent {
                json: redacted.get().to_owned(),
                redacted_by: Some(redaction.event_id.clone()),
                ..stored
            };
            let after = Arc::new(after.into_room_event()?);
            if let Some(state) = committed.states.get_mut(&redaction.room_id) {
                state.replace_redacted(&after);
            }
            committed.redacted.push(after);
        }
        Ok(())
    }

    async fn record_transactions(&self, tx: &WriteTx, committed: &Committed) -> Result<(), Error> {
        let mut now = MilliSecondsSinceUnixEpoch(0_u32.into());
        let mut done = Vec::new();
        for (write, result) in self.writes.iter().zip(&committed.results) {
            if let (Some(key), Ok(Written { event_id, position: Some(_), .. })) = (&write.transaction, result)
            {
                now = now.max(write.now);
                done.push((key.clone(), event_id.to_string()));
            }
        }
        transactions::insert(tx, done, now).await
    }
}

/// The position that each state key had its event at before the batch.
type Replaced = HashMap<(OwnedRoomId, String, String), i64>;

/// Gives the events of one write their positions. `None` if there are none.
fn assign(
    tx: &WriteTx,
    shard: Shard,
    events: Vec<SignedPdu>,
    committed: &mut Committed,
    (appended, replaced): (&mut Vec<(i64, SignedPdu)>, &mut Replaced),
) -> Result<Option<Written>, Error> {
    let mut written = None;
    for event in events {
        let position = tx.next_position(shard)?;
        let pdu = &event.pdu;
        if let Some(state) = committed.states.get_mut(&pdu.room_id) {
            if let Some(state_key) = &pdu.state_key {
                let event_type = pdu.event_type.to_string();
                let before = state.get(&event_type, state_key).map(|before| before.position);
                if let Some(before) = before.filter(|before| *before <= committed.before) {
                    replaced.insert((pdu.room_id.clone(), event_type, state_key.clone()), before);
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
        appended.push((position, event));
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

fn head(shard: Shard, state: &RoomState) -> RoomHead {
    RoomHead {
        room_id: state.room_id.clone(),
        shard,
        version: state.version.clone(),
        position: state.position,
        depth: state.depth,
        extremities: state.extremities.clone(),
    }
}

/// Lets this replica's readers see what was committed, then answers.
fn publish(context: &Context, shard: Shard, writes: Vec<Queued>, committed: Committed) {
    let entries: Vec<Entry> = committed
        .events
        .into_iter()
        .map(|event| Entry { position: event.position, item: Item::Event(event) })
        .collect();
    if !entries.is_empty() {
        context.tail.offer(shard, committed.before, entries, &committed.redacted);
    }
    for state in committed.states.into_values() {
        context.tail.keep_room(state);
    }
    for (write, result) in writes.into_iter().zip(committed.results) {
        answer(write, result);
    }
}

fn answer(write: Queued, result: Result<Written, WriteError>) {
    // Whoever asked may have gone; what was written stays written.
    let _ = write.answer.send(result);
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
