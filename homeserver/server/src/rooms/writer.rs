//! The writer: tasks that append whatever has queued while their last commit was under way. One a room shard does so under its lock;
//! where replicas share a database one more, for all shards, appends messages without it, or a few that divide the shards among them.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use keystead_core::{
    event::Draft,
    pdu::SignedPdu,
    room::{Refusal, RoomState, Signer},
    shard::Shard,
};
use keystead_store::{Error, TransactionError, WriteTx, transactions::ClientTransaction};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomVersionId, UInt};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{batch, messages};
use crate::{streams::Tail, telemetry::request};

/// How many writes may wait for one shard; one more is refused, so that a flood is slowed at its source.
const QUEUE: usize = 2_048;
/// How many messages may wait for one task.
const MESSAGE_QUEUE: usize = 8_192;
/// How many writes one transaction takes.
const BATCH: usize = 256;

/// Events that are to become part of a room, all of them or none.
#[derive(Clone)]
pub struct Write {
    /// The room.
    pub target: Target,
    /// The events, in order.
    pub drafts: Vec<Draft>,
    /// The client's transaction: if it has been done before, nothing is written and the first answer given again.
    pub transaction: Option<ClientTransaction>,
    /// What else the database transaction must do, if anything.
    pub alongside: Option<Alongside>,
    /// For a request that has not waited until this replica has seen everything: up to which position of the user's own shard its session
    /// is known to be good. If a session of the user has ended after that, or anything else stands in the way, nothing is written
    /// ([`WriteError::Unsure`]).
    pub good_up_to: Option<i64>,
    /// When the request came.
    pub now: MilliSecondsSinceUnixEpoch,
}

/// Where events go.
#[derive(Clone)]
pub enum Target {
    /// A room that exists.
    Room(OwnedRoomId),
    /// A room that the events make; the first draft is its `m.room.create`.
    NewRoom {
        /// Its version.
        version: RoomVersionId,
        /// Its id in room versions up to 11. From 12 on the id is the hash of the create event, and this is not used.
        room_id: OwnedRoomId,
    },
}

/// More work for the transaction that appends the events: an alias, for instance. It may run more than once.
///
/// It gets the room's id, which for a new room is known only then. [`Error::Conflict`] refuses this write and no other.
pub type Alongside = Arc<
    dyn Fn(WriteTx, OwnedRoomId) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send>> + Send + Sync,
>;

/// What became of a write.
#[derive(Clone, Debug)]
pub struct Written {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The id of the last event: of a client's transaction that had been done before, the id that it was given then.
    pub event_id: OwnedEventId,
    /// The position of the last event; `None` if it had been written before.
    pub position: Option<i64>,
}

/// Why a write did not take place.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The room's rules refuse it.
    #[error("the room refuses the event")]
    Refused(#[source] Refusal),
    /// The server does not know the room.
    #[error("the room is not known")]
    UnknownRoom,
    /// What was to be written alongside is taken.
    #[error("something else has the name already")]
    Conflict,
    /// Something may have happened that this replica has not seen: to be tried again when it has, without [`Write::good_up_to`].
    #[error("this replica may not have seen everything yet")]
    Unsure,
    /// Too many writes wait already.
    #[error("too many writes wait")]
    Busy,
    /// The database could not do it; whether it was done is not known if the connection broke.
    #[error("the database could not write the event")]
    Store(#[source] Arc<Error>),
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl TransactionError for WriteError {
    fn store_error(&self) -> Option<&Error> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// A write and who waits for it.
pub(super) struct Queued {
    pub(super) room_id: OwnedRoomId,
    /// The first event of a new room, and the room without it.
    pub(super) create: Option<(RoomState, SignedPdu)>,
    pub(super) drafts: Vec<Draft>,
    pub(super) transaction: Option<ClientTransaction>,
    pub(super) alongside: Option<Alongside>,
    pub(super) good_up_to: Option<i64>,
    pub(super) now: MilliSecondsSinceUnixEpoch,
    /// Whether the transaction may have been done before, for all that is known.
    pub(super) may_be_done: bool,
    pub(super) answer: oneshot::Sender<Result<Written, WriteError>>,
    /// Who asked for the same transaction at the same time: they get the same answer.
    pub(super) copies: Vec<oneshot::Sender<Result<Written, WriteError>>>,
}

/// Told of each batch: how many writes and events one transaction took.
pub type BatchObserver = Box<dyn Fn(usize, usize) + Send + Sync>;

/// The way to write events. Its tasks end with it.
pub struct Writer {
    /// By shard.
    queues: Vec<mpsc::Sender<Queued>>,
    /// For messages alone; the shards are divided among them. None on SQLite.
    messages: Vec<mpsc::Sender<Queued>>,
    tail: Arc<Tail>,
    signer: Arc<Signer>,
    /// The time of the newest create event, in milliseconds: no two of one replica have the same.
    newest_room: AtomicU64,
}

/// What the tasks share.
pub(super) struct Context {
    pub(super) tail: Arc<Tail>,
    pub(super) signer: Arc<Signer>,
    pub(super) observe: BatchObserver,
}

impl Writer {
    /// Starts the tasks, of which so many append messages.
    ///
    /// Fewer of these make larger batches, which cost the database less; more wait for fewer shards at once.
    pub fn start(
        tail: Arc<Tail>,
        signer: Arc<Signer>,
        observe: BatchObserver,
        message_writers: usize,
    ) -> Self {
        let context = Arc::new(Context { tail: tail.clone(), signer: signer.clone(), observe });
        let queues: Vec<_> = tail.shards().room_shards().map(|shard| start_writer(&context, shard)).collect();
        let messages = if tail.store().is_shared() { message_writers } else { 0 };
        let messages = (0..messages).map(|_| start_messages(&context, &queues)).collect();
        Self { queues, messages, tail, signer, newest_room: AtomicU64::new(0) }
    }

    /// How many writes wait in the fullest queue.
    pub fn waiting(&self) -> usize {
        self.queues
            .iter()
            .chain(&self.messages)
            .map(|queue| queue.max_capacity() - queue.capacity())
            .max()
            .unwrap_or_default()
    }

    /// Writes events and waits until they are committed. Whoever comes after that sees them who waits at the fence.
    ///
    /// Once queued, a write takes place even if its caller stops waiting.
    ///
    /// # Errors
    /// [`WriteError`] says why nothing was written.
    pub async fn write(&self, write: Write) -> Result<Written, WriteError> {
        let asked = Instant::now();
        let (answer, answered) = oneshot::channel();
        let is_message = messages::is_message(&write);
        let queued = self.prepare(write, answer)?;
        let shard = usize::try_from(self.tail.shards().of_room(&queued.room_id)).map_err(|_| ended())?;
        let messages = shard.checked_rem(self.messages.len()).filter(|_| is_message);
        if messages.is_none() && queued.good_up_to.is_some() {
            return Err(WriteError::Unsure);
        }
        let queue = messages.map_or(self.queues.get(shard), |number| self.messages.get(number));
        let queue = queue.ok_or_else(ended)?;
        queue.try_send(queued).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriteError::Busy,
            mpsc::error::TrySendError::Closed(_) => ended(),
        })?;
        let result = answered.await;
        // The transaction is shared with others that queued, and runs in a task of its own.
        request::note("append_events", asked.elapsed());
        result.map_err(|_| ended())?
    }

    /// The id of a version 12 room is the hash of its first event, so that is built before the shard is known.
    fn prepare(
        &self,
        write: Write,
        answer: oneshot::Sender<Result<Written, WriteError>>,
    ) -> Result<Queued, WriteError> {
        let Write { target, mut drafts, transaction, alongside, good_up_to, now } = write;
        let (room_id, create) = match target {
            Target::Room(room_id) => (room_id, None),
            Target::NewRoom { version, room_id } => {
                if drafts.is_empty() {
                    return Err(WriteError::UnknownRoom);
                }
                let mut empty = RoomState::empty(room_id, version).ok_or(WriteError::UnknownRoom)?;
                let mut create = drafts.remove(0);
                create.origin_server_ts = self.time_of_new_room(create.origin_server_ts);
                let create = empty.build(create, &self.signer).map_err(WriteError::Refused)?;
                empty.room_id = create.pdu.room_id.clone();
                (empty.room_id.clone(), Some((empty, create)))
            }
        };
        Ok(Queued {
            room_id,
            create,
            drafts,
            transaction,
            alongside,
            good_up_to,
            now,
            may_be_done: false,
            answer,
            copies: Vec::new(),
        })
    }
}

impl Writer {
    /// The time, or as much later as it takes to differ from that of any other room made here: two create events of one
    /// user with the same content and time would be one event, and so one room.
    fn time_of_new_room(&self, now: MilliSecondsSinceUnixEpoch) -> MilliSecondsSinceUnixEpoch {
        let now = u64::from(now.0);
        let later = |newest: u64| Some(now.max(newest + 1));
        let before =
            self.newest_room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later).unwrap_or_default();
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(now.max(before + 1)))
    }
}

fn ended() -> WriteError {
    WriteError::Store(Arc::new(Error::Setup("The server is stopping".to_owned())))
}

fn start_writer(context: &Arc<Context>, shard: Shard) -> mpsc::Sender<Queued> {
    let context = context.clone();
    start_task(QUEUE, move |queued| {
        let context = context.clone();
        async move { batch::write(&context, shard, queued).await }
    })
}

fn start_messages(context: &Arc<Context>, writers: &[mpsc::Sender<Queued>]) -> mpsc::Sender<Queued> {
    let (context, writers): (_, Arc<[_]>) = (context.clone(), writers.into());
    start_task(MESSAGE_QUEUE, move |queued| {
        let (context, writers) = (context.clone(), writers.clone());
        async move { messages::write(&context, &writers, queued).await }
    })
}

/// Starts a task that gives what has queued to `write`, again and again.
fn start_task<F>(
    capacity: usize,
    mut write: impl FnMut(Vec<Queued>) -> F + Send + 'static,
) -> mpsc::Sender<Queued>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (queue, mut writes) = mpsc::channel(capacity);
    tokio::spawn(async move {
        let mut batch = Vec::new();
        while writes.recv_many(&mut batch, BATCH).await > 0 {
            // A panic ends one batch, not the task.
            if let Err(error) = tokio::spawn(write(join_copies(std::mem::take(&mut batch)))).await {
                tracing::error!(error = &error as &dyn std::error::Error, "a batch of writes failed");
            }
        }
    });
    queue
}

/// Lets the first of those that name the same client's transaction stand for all of them: it is done once, if the session of any of them is good.
fn join_copies(queued: Vec<Queued>) -> Vec<Queued> {
    let mut places: HashMap<ClientTransaction, usize> = HashMap::new();
    let mut joined: Vec<Queued> = Vec::with_capacity(queued.len());
    for write in queued {
        let place = write.transaction.clone().map(|key| *places.entry(key).or_insert(joined.len()));
        match place.and_then(|place| joined.get_mut(place)) {
            Some(first) => {
                first.good_up_to = first.good_up_to.zip(write.good_up_to).map(|(one, other)| one.max(other));
                first.copies.extend(std::iter::once(write.answer).chain(write.copies));
            }
            None => joined.push(write),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, room_id, user_id};

    use super::*;

    fn queued(
        transaction_id: &str,
        good_up_to: Option<i64>,
    ) -> (Queued, oneshot::Receiver<Result<Written, WriteError>>) {
        let (answer, answered) = oneshot::channel();
        let transaction = ClientTransaction {
            user_id: user_id!("@a:x").to_owned(),
            device_id: device_id!("D").to_owned(),
            kind: "send".to_owned(),
            transaction_id: transaction_id.to_owned(),
        };
        let write = Queued {
            room_id: room_id!("!r:x").to_owned(),
            create: None,
            drafts: Vec::new(),
            transaction: Some(transaction),
            alongside: None,
            good_up_to,
            now: MilliSecondsSinceUnixEpoch(UInt::MIN),
            may_be_done: false,
            answer,
            copies: Vec::new(),
        };
        (write, answered)
    }

    #[tokio::test]
    async fn copies_are_answered_as_one_and_the_surest_of_them_counts() {
        let asked = [("t", Some(5)), ("other", Some(1)), ("t", Some(7)), ("t", None), ("other", Some(2))];
        let (writes, answers): (Vec<_>, Vec<_>) =
            asked.into_iter().map(|(id, good_up_to)| queued(id, good_up_to)).unzip();
        let joined = join_copies(writes);
        let good_up_to: Vec<_> = joined.iter().map(|write| write.good_up_to).collect();
        assert_eq!(good_up_to, [None, Some(2)]);
        // Given to another task, they meet more of themselves there.
        let (first, first_answer) = queued("t", None);
        let joined = join_copies(std::iter::once(first).chain(joined).collect());
        assert_eq!(joined.len(), 2);
        let answers = std::iter::once(first_answer).chain(answers);
        joined.into_iter().for_each(|write| batch::answer(write, Err(WriteError::Busy)));
        for answer in answers {
            assert!(matches!(answer.await, Ok(Err(WriteError::Busy))));
        }
    }
}
