//! Messages: events that are no state and redact nothing, which is what nearly all are.
//!
//! They are built on the rooms' states in memory, and whatever has queued, for whatever rooms, is appended by one call of the database: to
//! those rooms whose state nobody has changed meanwhile. Messages of other replicas to the same room are no
//! obstacle, they stand beside these in the room's graph. What cannot be appended so is left to the writers under the lock.
//!
//! Only where replicas share a database: SQLite has no functions.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use keystead_core::{event::Draft, pdu::SignedPdu, room::RoomEvent, shard::Shard};
use keystead_store::{
    Error,
    rooms::{self, Appended},
};
use ruma::{OwnedRoomId, events::TimelineEventType};
use tokio::{sync::mpsc, time::Instant};

use super::{
    batch::{answer, no_time},
    placement::build,
    writer::{Context, Queued, Target, Write, WriteError, Written},
};
use crate::streams::{Entry, Item};

/// How long the next batch waits at most where other replicas write, too.
const LONGEST_REST: Duration = Duration::from_millis(20);

/// Whether a write is one message of a client to a room that exists.
pub(super) fn is_message(write: &Write) -> bool {
    let Write { target: Target::Room(_), drafts, transaction: Some(_), alongside: None, .. } = write else {
        return false;
    };
    let is_redaction =
        |draft: &Draft| draft.redacts.is_some() || draft.event_type == TimelineEventType::RoomRedaction;
    matches!(drafts.as_slice(), [draft] if draft.state_key.is_none() && !is_redaction(draft))
}

/// Writes a batch and answers everybody in it, but for those who are given to `writers`, by shard, which write under the lock.
pub(super) async fn write(context: &Context, writers: &[mpsc::Sender<Queued>], writes: Vec<Queued>) {
    let began = Instant::now();
    Batch { context, writers }.append(writes).await;
    // Others write as well: what queues for a while makes a larger batch, and costs the database, which all wait for, less.
    if context.tail.lag() > 0 {
        tokio::time::sleep(began.elapsed().min(LONGEST_REST)).await;
    }
}

struct Batch<'a> {
    context: &'a Context,
    writers: &'a [mpsc::Sender<Queued>],
}

/// A message and who waits for it.
struct Message {
    write: Queued,
    event: SignedPdu,
    /// By how many positions it comes after where its shard stood.
    after: i64,
}

impl Batch<'_> {
    /// Appends what can be appended. If the database refuses the statement for what one of the
    /// messages says, each is tried alone, so that nobody fails for somebody else.
    async fn append(&self, writes: Vec<Queued>) {
        let (messages, known) = self.build(writes);
        if messages.is_empty() {
            return;
        }
        match self.statement(&messages, &known).await {
            Ok(appended) => self.publish(messages, &appended),
            // A transaction id is used at the same time through another replica.
            Err(Error::Conflict(_)) => messages.into_iter().for_each(|message| self.leave(message.write)),
            Err(error) if messages.len() > 1 && error.is_about_data() => {
                for message in messages {
                    Box::pin(self.append(vec![message.write])).await;
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for message in messages {
                    answer(message.write, Err(WriteError::Store(error.clone())));
                }
            }
        }
    }

    /// The events, and up to which position the state of each room was known that they are built on.
    ///
    /// A room that is not in memory is read by the shard's writer, for that may take a while. What a room would refuse as far as this
    /// replica knows it is decided under the lock, where it is sure.
    fn build(&self, writes: Vec<Queued>) -> (Vec<Message>, HashMap<OwnedRoomId, i64>) {
        let mut states = HashMap::new();
        let room_ids: HashSet<&OwnedRoomId> = writes.iter().map(|write| &write.room_id).collect();
        for room_id in room_ids {
            states.extend(self.context.tail.room_in_memory(room_id).map(|state| (room_id.clone(), state)));
        }
        let built = build(&states, &writes, &self.context.signer);
        let mut ends: HashMap<Shard, i64> = HashMap::new();
        let mut messages = Vec::with_capacity(writes.len());
        for (write, built) in writes.into_iter().zip(built) {
            let Some(event) = built.ok().and_then(|mut events| events.pop()) else {
                self.leave(write);
                continue;
            };
            let end = ends.entry(self.shard(&write)).or_default();
            *end += 1;
            messages.push(Message { write, event, after: *end });
        }
        (messages, states.into_iter().map(|(room_id, state)| (room_id, state.position)).collect())
    }

    async fn statement(
        &self,
        messages: &[Message],
        known: &HashMap<OwnedRoomId, i64>,
    ) -> Result<Appended, Error> {
        let now = messages.iter().map(|message| message.write.now).max().unwrap_or_else(no_time);
        let messages = messages.iter().filter_map(|Message { write, event, after }| {
            let (transaction, good_up_to) = (write.transaction.clone()?, write.good_up_to);
            Some(rooms::Message { shard: self.shard(write), after: *after, event, transaction, good_up_to })
        });
        rooms::append_messages(self.context.tail.store(), messages.collect(), known, now).await
    }

    /// Lets this replica's readers see the messages that were appended, and answers.
    fn publish(&self, messages: Vec<Message>, appended: &Appended) {
        let mut entries: HashMap<Shard, Vec<Entry>> = HashMap::new();
        let mut answers = Vec::with_capacity(messages.len());
        for Message { write, event, after } in messages {
            let shard = self.shard(&write);
            let Some(before) = appended.before(&write.room_id, shard) else {
                self.leave(write);
                continue;
            };
            let (position, event_id) = (before + after, event.pdu.event_id.clone());
            let event = Arc::new(RoomEvent { position, pdu: event.pdu });
            entries.entry(shard).or_default().push(Entry { position, item: Item::Event(event) });
            let written = Written { room_id: write.room_id.clone(), event_id, position: Some(position) };
            answers.push((write, written));
        }
        if !answers.is_empty() {
            (self.context.observe)(answers.len(), answers.len());
        }
        for (shard, entries) in entries {
            if let Some(before) = appended.shards.get(&shard) {
                self.context.tail.offer(shard, *before, entries, &[]);
            }
        }
        for (write, written) in answers {
            answer(write, Ok(written));
        }
    }

    /// Leaves a write to the shard's writer: the room's state has changed, or the message has been written before. If the session may
    /// have ended, that has to be found out first.
    fn leave(&self, mut write: Queued) {
        if write.good_up_to.is_some() {
            return answer(write, Err(WriteError::Unsure));
        }
        write.may_be_done = true;
        let shard = usize::try_from(self.shard(&write)).ok();
        match shard.and_then(|shard| self.writers.get(shard)) {
            Some(writer) => {
                if let Err(
                    mpsc::error::TrySendError::Full(write) | mpsc::error::TrySendError::Closed(write),
                ) = writer.try_send(write)
                {
                    answer(write, Err(WriteError::Busy));
                }
            }
            None => answer(write, Err(WriteError::UnknownRoom)),
        }
    }

    fn shard(&self, write: &Queued) -> Shard {
        self.context.tail.shards().of_room(&write.room_id)
    }
}
