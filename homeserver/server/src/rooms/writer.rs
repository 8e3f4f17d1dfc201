//! The writer: one task a room shard, which appends whatever has queued while its last commit was under way.

use std::{
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

use super::batch;
use crate::{streams::Tail, telemetry::request};

/// How many writes may wait for one shard; one more is refused, so that a flood is slowed at its source.
const QUEUE: usize = 2_048;
/// How many writes one transaction takes.
const BATCH: usize = 256;

/// Events that are to become part of a room, all of them or none.
pub struct Write {
    /// The room.
    pub target: Target,
    /// The events, in order.
    pub drafts: Vec<Draft>,
    /// The client's transaction: if it has been done before, nothing is written and the first answer given again.
    pub transaction: Option<ClientTransaction>,
    /// What else the database transaction must do, if anything.
    pub alongside: Option<Alongside>,
    /// When the request came.
    pub now: MilliSecondsSinceUnixEpoch,
}

/// Where events go.
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
#[derive(Debug, thiserror::Error)]
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
    /// Too many writes wait already.
    #[error("too many writes wait for this room's shard")]
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
    pub(super) now: MilliSecondsSinceUnixEpoch,
    pub(super) answer: oneshot::Sender<Result<Written, WriteError>>,
}

/// Told of each batch: how many writes and events one transaction took.
pub type BatchObserver = Box<dyn Fn(usize, usize) + Send + Sync>;

/// The way to write events. Its tasks end with it.
pub struct Writer {
    queues: Vec<mpsc::Sender<Queued>>,
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
    /// Starts the tasks.
    pub fn start(tail: Arc<Tail>, signer: Arc<Signer>, observe: BatchObserver) -> Self {
        let context = Arc::new(Context { tail: tail.clone(), signer: signer.clone(), observe });
        let queues = tail
            .shards()
            .room_shards()
            .map(|shard| {
                let (queue, writes) = mpsc::channel(QUEUE);
                tokio::spawn(run(context.clone(), shard, writes));
                queue
            })
            .collect();
        Self { queues, tail, signer, newest_room: AtomicU64::new(0) }
    }

    /// How many writes wait for the shard for which most do.
    pub fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.max_capacity() - queue.capacity()).max().unwrap_or_default()
    }

    /// Writes events and waits until they are committed and this replica's readers can see them.
    ///
    /// Once queued, a write takes place even if its caller stops waiting.
    ///
    /// # Errors
    /// [`WriteError`] says why nothing was written.
    pub async fn write(&self, write: Write) -> Result<Written, WriteError> {
        let asked = Instant::now();
        let (answer, answered) = oneshot::channel();
        let queued = self.prepare(write, answer)?;
        let shard = self.tail.shards().of_room(&queued.room_id);
        let queue = usize::try_from(shard).ok().and_then(|shard| self.queues.get(shard)).ok_or_else(ended)?;
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
        let Write { target, mut drafts, transaction, alongside, now } = write;
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
        Ok(Queued { room_id, create, drafts, transaction, alongside, now, answer })
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

async fn run(context: Arc<Context>, shard: Shard, mut writes: mpsc::Receiver<Queued>) {
    let mut waiting = Vec::new();
    while !waiting.is_empty() || writes.recv_many(&mut waiting, BATCH).await > 0 {
        let queued = std::mem::take(&mut waiting);
        let context = context.clone();
        // A panic ends one batch, not the shard's writer.
        match tokio::spawn(async move { batch::write(&context, shard, queued).await }).await {
            Ok(postponed) => waiting = postponed,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, shard, "a batch of writes failed")
            }
        }
    }
}
