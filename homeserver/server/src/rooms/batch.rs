//! One transaction of the writer: everything that has queued for a shard.
//!
//! The events are built on the rooms' states in memory before the transaction begins, which takes the lock of the shard. Rooms that
//! were written to meanwhile are brought up to date and their events built again, so there is nothing to retry, and two who write to
//! one room cannot keep each other from it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use keystead_core::{
    pdu::SignedPdu,
    redaction,
    room::{Refusal, RoomState},
    shard::Shard,
};
use keystead_store::{
    Error, TransactionError, WriteTx,
    rooms::{self, Bounds, RoomHead},
    transactions::{self, ClientTransaction},
};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, events::TimelineEventType};

use super::{
    placement::{Built, Committed, Ground, Placed, build, place},
    writer::{Context, Queued, WriteError, Written},
};
use crate::streams::{Entry, Item};

/// How long a batch waits for this replica to have read what came before it.
const SIGHT: Duration = Duration::from_secs(1);

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

/// Writes a batch and answers everybody in it.
pub(super) async fn write(context: &Context, shard: Shard, writes: Vec<Queued>) {
    // What is missing in memory would be read while the shard is held. The answer may be late, or not come: then it is.
    let _ = tokio::time::timeout(SIGHT, context.tail.caught_up(shard)).await;
    // Read before the states are: they may be newer, never older.
    let position = context.tail.position(shard);
    let (writes, known) = load_states(context, writes).await;
    let known = Ground { position, ..known };
    commit(context, shard, writes, &known).await;
}

/// Writes a batch in one transaction. If the database refuses it for what one of the writes says, each is tried alone, so
/// that nobody fails for somebody else.
async fn commit(context: &Context, shard: Shard, mut writes: Vec<Queued>, known: &Ground) {
    let mut check_used = false;
    while !writes.is_empty() {
        let built = build(&known.states, &writes, &context.signer);
        check_used |= writes.iter().zip(&built).any(may_have_been_done);
        let batch = Batch { context, shard, writes: &writes, known, built: &built, check_used };
        match context.tail.store().write("append_events", |tx| batch.append(tx)).await {
            Ok(committed) => {
                (context.observe)(writes.len(), committed.events.len());
                return publish(context, shard, writes, committed);
            }
            Err(BatchError::Alongside(index)) => answer(writes.remove(index), Err(WriteError::Conflict)),
            Err(BatchError::Store(Error::Conflict(_))) if !check_used => check_used = true,
            Err(BatchError::Store(error)) if writes.len() > 1 && error.is_about_data() => {
                for write in writes {
                    Box::pin(commit(context, shard, vec![write], known)).await;
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

/// Whether to ask if a write was done before: it may have been, or it makes no event now, so that no insert would find out.
fn may_have_been_done((write, built): (&Queued, &Result<Vec<SignedPdu>, Refusal>)) -> bool {
    write.may_be_done || write.transaction.is_some() && built.as_ref().map_or(true, Vec::is_empty)
}

/// The states that the writes build on. Writes to rooms that the server does not know, or cannot read, are answered here.
async fn load_states(context: &Context, writes: Vec<Queued>) -> (Vec<Queued>, Ground) {
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
    (known, Ground { states, ..Ground::default() })
}

struct Batch<'a> {
    context: &'a Context,
    shard: Shard,
    writes: &'a [Queued],
    known: &'a Ground,
    built: &'a Built,
    /// Whether to ask which of the clients' transaction ids have been used before. Most have not, and one that has is found
    /// out by the insert.
    check_used: bool,
}

impl Batch<'_> {
    async fn append(&self, tx: WriteTx) -> Result<Committed, BatchError> {
        let events: usize = self.built.iter().flatten().map(Vec::len).sum();
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        tx.lock_shards_for(&BTreeMap::from([(self.shard, events)])).await?;
        tx.announce_to_others_only();
        let heads = self.heads(&tx).await?;
        let used = self.used(&tx).await?;
        let ground = self.fresh_ground(&tx, heads, used).await?;
        let (mut committed, placed) =
            place((self.writes, self.built), &self.context.signer, ground, || tx.next_position(self.shard))?;
        // What was done before must not be refused today, and no insert will find it.
        let unsure = |(write, result): (&Queued, &Result<Written, WriteError>)| {
            write.transaction.is_some() && !matches!(result, Ok(Written { position: Some(_), .. }))
        };
        if !self.check_used && self.writes.iter().zip(&committed.results).any(unsure) {
            return Err(Error::Conflict("client_transactions".to_owned()).into());
        }
        self.store(&tx, &mut committed, &placed).await?;
        Ok(committed)
    }

    /// Where the rooms stand; nothing if no room can stand elsewhere than in memory, since nothing was appended to the shard.
    async fn heads(&self, tx: &WriteTx) -> Result<HashMap<OwnedRoomId, RoomHead>, Error> {
        let makes_room = self.writes.iter().any(|write| write.create.is_some());
        if self.known.position == tx.locked_position(self.shard) && !makes_room {
            return Ok(HashMap::new());
        }
        let room_ids: Vec<_> = self.known.states.keys().map(AsRef::as_ref).collect();
        let heads = rooms::heads(tx, &room_ids).await?;
        Ok(heads.into_iter().map(|head| (head.room_id.clone(), head)).collect())
    }

    async fn used(&self, tx: &WriteTx) -> Result<HashMap<ClientTransaction, String>, Error> {
        if !self.check_used {
            return Ok(HashMap::new());
        }
        let keys: Vec<_> = self.writes.iter().filter_map(|write| write.transaction.as_ref()).collect();
        transactions::find_used(tx, &keys).await
    }

    /// The ground as of now.
    async fn fresh_ground(
        &self,
        tx: &WriteTx,
        heads: HashMap<OwnedRoomId, RoomHead>,
        used: HashMap<ClientTransaction, String>,
    ) -> Result<Ground, Error> {
        let mut states = self.known.states.clone();
        let mut rebuild = HashSet::new();
        for (room_id, state) in &mut states {
            let Some(head) = heads.get(room_id).filter(|head| head.position > state.position) else {
                continue;
            };
            let bounds = Bounds { after: state.position, upto: head.position };
            let missed = rooms::all_events_between(tx, room_id, bounds).await?;
            if missed.iter().any(|event| event.pdu.event_type == TimelineEventType::RoomRedaction) {
                // What was redacted may be part of the state.
                let gone = || Error::corrupt("rooms", "room_id", room_id.as_str(), "the room has gone");
                *state = rooms::load(tx, room_id).await?.ok_or_else(gone)?;
            } else {
                missed.into_iter().for_each(|event| state.apply(&Arc::new(event)));
            }
            rebuild.insert(room_id.clone());
        }
        let existing = heads.into_keys().collect();
        Ok(Ground { states, position: tx.locked_position(self.shard), rebuild, existing, used })
    }

    /// Where the rooms stand afterwards that something was appended to.
    fn heads_after(&self, committed: &Committed, placed: &Placed) -> Vec<RoomHead> {
        let changed: HashSet<&OwnedRoomId> =
            placed.events.iter().map(|(_, event)| &event.pdu.room_id).collect();
        let states = changed.into_iter().filter_map(|room_id| committed.states.get(room_id));
        states.map(|state| head(self.shard, state)).collect()
    }

    fn rows<'r>(
        &self,
        committed: &Committed,
        placed: &'r Placed,
        heads: &'r [RoomHead],
    ) -> rooms::Append<'r> {
        let (done, now) = self.done(committed);
        rooms::Append {
            shard: self.shard,
            events: &placed.events,
            replaced: &placed.replaced,
            heads,
            done,
            now,
        }
    }

    async fn store(
        &self,
        tx: &WriteTx,
        committed: &mut Committed,
        placed: &Placed,
    ) -> Result<(), BatchError> {
        if placed.events.is_empty() {
            return Ok(());
        }
        let heads = self.heads_after(committed, placed);
        rooms::append(tx, self.rows(committed, placed, &heads)).await?;
        self.redact(tx, committed, &placed.events).await?;
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

    /// What the clients' transaction ids have done, and when the newest of them came.
    fn done(&self, committed: &Committed) -> (Vec<(ClientTransaction, String)>, MilliSecondsSinceUnixEpoch) {
        let mut now = no_time();
        let mut done = Vec::new();
        for (write, result) in self.writes.iter().zip(&committed.results) {
            if let (Some(key), Ok(Written { event_id, position: Some(_), .. })) = (&write.transaction, result)
            {
                now = now.max(write.now);
                done.push((key.clone(), event_id.to_string()));
            }
        }
        (done, now)
    }
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

/// When the newest request of an empty batch came.
pub(super) fn no_time() -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(0_u32.into())
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
        context.tail.keep_room(state, committed.before);
    }
    for (write, result) in writes.into_iter().zip(committed.results) {
        answer(write, result);
    }
}

pub(super) fn answer(write: Queued, result: Result<Written, WriteError>) {
    // Whoever asked may have gone; what was written stays written.
    for copy in write.copies {
        let _ = copy.send(result.clone());
    }
    let _ = write.answer.send(result);
}
