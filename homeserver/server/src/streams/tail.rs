//! The tail: reads what is new in every shard, once for all who wait.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use keystead_core::{
    room::{RoomEvent, RoomState},
    shard::{Shard, Shards},
};
use keystead_store::{
    Error, Hint, Store,
    rooms::{self, Bounds, Membership},
    streams::{self, StreamItem, StreamRow, UserChange},
};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedUserId, RoomId, UserId, events::TimelineEventType,
};
use tokio::{
    sync::{Notify, broadcast::error::RecvError, watch},
    time::Instant,
};

use super::{
    freshness::Freshness,
    memberships::{Memberships, RoomsOfUser},
    ring::{Entry, Item, Ring, Whose},
    room_states::RoomStates,
    timelines::Timelines,
    typing::Typing,
    waiters::{Waiter, Waiters},
};
use crate::lookups::Lookup;

/// The least time from one reading to the next: if a request waits for it, if long-polls may be concerned, and if neither is so.
const AWAITED_PACE: Duration = Duration::from_millis(2);
const WATCHED_PACE: Duration = Duration::from_millis(5);
const UNWATCHED_PACE: Duration = Duration::from_millis(500);
/// A busy database is read less often, for reading much takes it hardly longer than reading little: so many times as long as the last
/// reading took, within a limit, unless a request waits.
const REST: u32 = 3;
const LONGEST_REST: Duration = Duration::from_millis(15);
/// How many rooms are read from the database at once.
const ROOMS_AT_ONCE: usize = 100;
/// How often the tail looks for itself, in case a hint was lost.
const RECHECK_EVERY: Duration = Duration::from_secs(2);

/// Told of each new row, in the order of its shard, before anybody is woken: how other caches stay right.
pub type Listener = Box<dyn Fn(&Entry) + Send + Sync>;

/// What this replica knows of the streams.
pub struct Tail {
    this: Weak<Tail>,
    store: Store,
    shards: Shards,
    tails: Vec<ShardTail>,
    rooms: RoomStates,
    timelines: Timelines,
    memberships: Memberships,
    stored_memberships: Lookup<OwnedUserId, Vec<Membership>>,
    typing: Typing,
    waiters: Arc<Waiters>,
    listeners: Vec<Listener>,
    freshness: Mutex<Freshness>,
    calls: Arc<Calls>,
}

/// What the task hears that reads the streams.
#[derive(Default)]
struct Calls {
    /// There is something to read.
    behind: Notify,
    /// A request waits for it to be read.
    awaited: Notify,
    /// A long-poll is open where none was before.
    watched: Notify,
}

/// Whom new rows concern.
#[derive(Default)]
struct Concerned {
    /// All who are in these rooms.
    rooms: HashSet<OwnedRoomId>,
    users: HashSet<OwnedUserId>,
}

struct ShardTail {
    ring: RwLock<Ring>,
    /// How far the shard has been read: what the fence and readers wait for.
    position: watch::Sender<i64>,
    /// How far it is known to reach.
    target: AtomicI64,
}

impl Tail {
    /// Begins to follow the streams from where they stand now. The tasks that do so end with the last handle.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn start(store: Store, listeners: Vec<Listener>) -> Result<Arc<Self>, Error> {
        let hints = store.hints();
        let asked = Instant::now();
        let positions = store.positions().await?;
        let tails = positions
            .into_iter()
            .map(|(_, position)| ShardTail {
                ring: RwLock::new(Ring::starting_at(position)),
                position: watch::Sender::new(position),
                target: AtomicI64::new(position),
            })
            .collect();
        let tail = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            shards: store.shards(),
            memberships: Memberships::new(store.shards()),
            stored_memberships: Lookup::start(&store, "memberships", |tx, users| {
                Box::pin(rooms::memberships_of_users(tx, users))
            }),
            store,
            tails,
            rooms: RoomStates::default(),
            timelines: Timelines::default(),
            typing: Typing::default(),
            waiters: Arc::default(),
            listeners,
            freshness: Mutex::new(Freshness::new(asked)),
            calls: Arc::default(),
        });
        tokio::spawn(follow(Arc::downgrade(&tail), tail.calls.clone()));
        tokio::spawn(hear(Arc::downgrade(&tail), hints));
        Ok(tail)
    }

    /// The database that this follows.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// How the streams are cut.
    pub fn shards(&self) -> Shards {
        self.shards
    }

    /// Who types where.
    pub fn typing(&self) -> &Typing {
        &self.typing
    }

    /// Begins to wait for news of a user.
    pub fn wait(&self, user_id: &UserId) -> Waiter {
        self.waiters.register(user_id, || {
            self.store.hear_positions(true);
            self.calls.watched.notify_one();
        })
    }

    /// How far this replica has read a shard.
    pub fn position(&self, shard: Shard) -> i64 {
        self.tail(shard).map_or(0, ShardTail::position)
    }

    /// How many positions this replica is known to be behind, in the shard where it is most.
    pub fn lag(&self) -> i64 {
        self.tails.iter().map(|tail| tail.target() - tail.position()).max().unwrap_or_default().max(0)
    }

    /// How long ago this replica was last known to have read everything that was committed.
    pub fn staleness(&self) -> Duration {
        let mut freshness = self.freshness.lock().unwrap_or_else(PoisonError::into_inner);
        freshness.as_of(|shard| self.position(shard)).elapsed()
    }

    /// Waits until this replica has read a shard as far as it is known to reach.
    pub async fn caught_up(&self, shard: Shard) {
        let reach = self.tail(shard).map_or(0, ShardTail::target);
        self.reached(shard, reach).await;
    }

    /// Waits until this replica has read a shard up to a position that is known to be committed.
    pub async fn reached(&self, shard: Shard, position: i64) {
        self.all_reached(&[(shard, position)]).await;
    }

    /// [`Tail::reached`] for several shards, which are read together.
    pub async fn all_reached(&self, positions: &[(Shard, i64)]) {
        let tails = positions.iter().filter_map(|(shard, position)| Some((self.tail(*shard)?, *position)));
        let behind: Vec<_> = tails.filter(|(tail, position)| tail.position() < *position).collect();
        if behind.is_empty() {
            return;
        }
        behind.iter().for_each(|(tail, position)| self.aim(tail, *position));
        self.calls.awaited.notify_one();
        for (tail, position) in behind {
            // The sender lives as long as `self`.
            let _ = tail.position.subscribe().wait_for(|reached| *reached >= position).await;
        }
    }

    /// Shows `each` the rows of a shard after one position and up to another that are asked for, all changes of device lists and
    /// presence,
    /// and perhaps others, if they are all in memory; returns whether they are. Those of one room or user come oldest first.
    pub fn visit_recent(
        &self,
        shard: Shard,
        (after, upto): (i64, i64),
        whose: Whose<'_>,
        each: impl FnMut(&Entry),
    ) -> bool {
        self.tail(shard).is_some_and(|tail| tail.ring().visit(after, upto, whose, each))
    }

    /// The current state of a room, from memory or the database. `None` for a room that the server does not know.
    ///
    /// It may be newer than what the tail has read, never older.
    ///
    /// # Errors
    /// The database's own.
    pub async fn room(&self, room_id: &RoomId) -> Result<Option<RoomState>, Error> {
        Ok(self.rooms(&[room_id]).await?.pop())
    }

    /// [`Tail::room`], if it is in memory.
    pub fn room_in_memory(&self, room_id: &RoomId) -> Option<RoomState> {
        self.rooms.get(room_id)
    }

    /// [`Tail::room`] for several rooms; those that the server does not know are left out.
    ///
    /// # Errors
    /// The database's own.
    pub async fn rooms(&self, room_ids: &[&RoomId]) -> Result<Vec<RoomState>, Error> {
        let mut states = Vec::with_capacity(room_ids.len());
        let mut missing = Vec::new();
        for room_id in room_ids {
            match self.rooms.get(room_id) {
                Some(state) => states.push(state),
                None => missing.push((*room_id, self.position(self.shards.of_room(room_id)))),
            }
        }
        for chunk in missing.chunks(ROOMS_AT_ONCE) {
            let room_ids: Vec<_> = chunk.iter().map(|(room_id, _)| *room_id).collect();
            let room_ids = &room_ids;
            let read = self
                .store
                .read("load_rooms", |tx| async move { rooms::load_several(&tx, room_ids).await })
                .await?;
            for state in &read {
                // What the tail had read before is in what was read now.
                let before = chunk.iter().find(|(room_id, _)| *room_id == state.room_id);
                self.keep_room(state.clone(), before.map_or(0, |(_, position)| *position));
            }
            states.extend(read);
        }
        Ok(states)
    }

    /// Takes in a room's state that was read from the database or has been committed to it. It holds whatever happened in the
    /// room up to its own position, and up to `as_of` in the shard.
    pub fn keep_room(&self, state: RoomState, as_of: i64) {
        let shard = self.shards.of_room(&state.room_id);
        let (room_id, position) = (state.room_id.clone(), state.position.max(as_of));
        // The ring is locked before the rooms, as where rows are taken in: the other way round, the two would wait for
        // each other for ever.
        let ring = self.tail(shard).map(ShardTail::ring);
        self.rooms.insert(state, || ring.as_ref()?.events_after(&room_id, position));
    }

    /// The newest events of rooms, newest first: of each at most `limit` within its bounds, from memory or the database.
    ///
    /// # Errors
    /// The database's own.
    pub async fn timelines(
        &self,
        wanted: Vec<(OwnedRoomId, Bounds)>,
        limit: usize,
    ) -> Result<HashMap<OwnedRoomId, Vec<Arc<RoomEvent>>>, Error> {
        let mut timelines = HashMap::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for (room_id, bounds) in wanted {
            match self.timelines.newest(&room_id, bounds, limit) {
                Some(newest) => drop(timelines.insert(room_id, newest)),
                None => missing.push((room_id, bounds)),
            }
        }
        if missing.is_empty() {
            return Ok(timelines);
        }
        let (rooms, most) = (&missing, u64::try_from(limit).unwrap_or(u64::MAX));
        let mut read = self
            .store
            .read("timelines", |tx| async move { rooms::timelines(&tx, rooms, most).await })
            .await?;
        for (room_id, bounds) in missing {
            let newest: Vec<_> =
                read.remove(&room_id).unwrap_or_default().into_iter().map(Arc::new).collect();
            let ring = self.tail(self.shards.of_room(&room_id)).map(ShardTail::ring);
            self.timelines.insert(&room_id, bounds, limit, &newest, || {
                ring.as_ref()?.events_after(&room_id, bounds.upto)
            });
            timelines.insert(room_id, newest);
        }
        Ok(timelines)
    }

    /// The rooms of a user, from memory or the database.
    ///
    /// # Errors
    /// The database's own.
    pub async fn rooms_of(&self, user_id: &UserId) -> Result<Arc<RoomsOfUser>, Error> {
        if let Some(rooms) = self.memberships.get(user_id) {
            return Ok(rooms);
        }
        let load = self.memberships.begin_load(user_id);
        let loaded = self.stored_memberships.find(user_id.to_owned()).await?;
        Ok(self.memberships.finish_load(user_id, load, loaded.unwrap_or_default()))
    }

    /// Whether a user is known to share a room with the user of these rooms; `None` if the user's rooms are not in memory.
    pub fn share_room(&self, rooms: &RoomsOfUser, user_id: &UserId) -> Option<bool> {
        self.memberships.get(user_id).map(|others| rooms.share_with(&others))
    }

    /// Drops what is known of a user's rooms, after a change that is no event (a room was forgotten).
    pub fn forget_rooms_of(&self, user_id: &UserId) {
        self.memberships.forget_user(user_id);
    }

    /// Takes in rows that this replica has just committed, which saves reading them, if nothing stands between them
    /// and what it has read; else they are read with the rest, and until then the rooms' next events follow them.
    pub fn offer(&self, shard: Shard, before: i64, entries: Vec<Entry>, redacted: &[Arc<RoomEvent>]) {
        let Some(tail) = self.tail(shard) else { return };
        let upto = entries.last().map_or(before, |entry| entry.position);
        if tail.position() == before {
            self.take(tail, entries, upto, redacted);
        } else {
            for entry in &entries {
                if let Item::Event(event) = &entry.item {
                    self.rooms.follow(event);
                }
            }
            self.aim(tail, upto);
        }
    }

    /// Notes how far a shard is known to reach.
    fn aim(&self, tail: &ShardTail, position: i64) {
        if tail.target.fetch_max(position, Ordering::SeqCst) < position && tail.position() < position {
            self.calls.behind.notify_one();
        }
    }

    /// The least time from one reading to the next, if nobody waits for it. A replica without clients reads for its caches alone.
    fn pace(&self) -> Duration {
        if self.waiters.is_empty() { UNWATCHED_PACE } else { WATCHED_PACE }
    }

    /// The shards that reach further than they have been read: how far they have been read, and how far they reach.
    fn behind(&self) -> Vec<(Shard, i64, i64)> {
        let shards = self.shards.all().zip(&self.tails);
        let bounds = shards.map(|(shard, tail)| (shard, tail.position(), tail.target()));
        bounds.filter(|(_, position, target)| position < target).collect()
    }

    /// Reads what is new in these shards, up to their targets at least.
    async fn catch_up(&self, behind: &[(Shard, i64, i64)]) -> Result<(), Error> {
        let after: Vec<_> = behind.iter().map(|(shard, position, _)| (*shard, *position)).collect();
        let after = &after;
        let mut rows =
            self.store.read_one("tail", |tx| async move { streams::read_shards(&tx, after).await }).await?;
        for (shard, _, upto) in behind {
            let rows = rows.remove(shard).unwrap_or_default();
            let mut entries = Vec::with_capacity(rows.len());
            for row in rows {
                match Error::pass_over(entry(row))?.flatten() {
                    Some(entry) => entries.push(entry),
                    // It may have been state. What is read from the database is read whole, or not at all.
                    None => self.rooms.clear(),
                }
            }
            let redacted = self.redacted_by(&entries).await?;
            self.take(self.shard(*shard)?, entries, *upto, &redacted);
        }
        Ok(())
    }

    /// The events that redactions among these rows have emptied.
    async fn redacted_by(&self, entries: &[Entry]) -> Result<Vec<Arc<RoomEvent>>, Error> {
        let redactions: Vec<_> = entries.iter().filter_map(redaction_of).collect();
        if redactions.is_empty() {
            return Ok(Vec::new());
        }
        let redactions = &redactions;
        let read = |tx| async move {
            let mut redacted = Vec::new();
            for (room_id, redaction, target) in redactions {
                let event = rooms::event(&tx, room_id, target).await?;
                redacted.extend(event.filter(|event| event.pdu.redacted_by.as_deref() == Some(*redaction)));
            }
            Ok::<_, Error>(redacted.into_iter().map(Arc::new).collect())
        };
        self.store.read("tail_redacted", read).await
    }

    /// Brings the caches up to rows that are new, then wakes whom they concern. Rows that came before are passed over.
    fn take(&self, tail: &ShardTail, entries: Vec<Entry>, upto: i64, redacted: &[Arc<RoomEvent>]) {
        let mut concerned = Concerned::default();
        let mut ring = tail.ring.write().unwrap_or_else(PoisonError::into_inner);
        let before = ring.position();
        let new: Vec<Entry> = entries.into_iter().filter(|entry| entry.position > before).collect();
        for entry in &new {
            self.concerned(&entry.item, &mut concerned);
        }
        ring.extend(new.clone(), upto);
        for event in redacted {
            ring.replace_redacted(event);
        }
        // The caches are fed under the ring's lock, so that two who take at once feed them in the order of the positions.
        for entry in &new {
            match &entry.item {
                Item::Event(event) => {
                    self.rooms.apply(event);
                    self.timelines.apply(event);
                    self.memberships.apply(event);
                }
                Item::UserChange(user_id, UserChange::Rooms) => self.memberships.forget_user(user_id),
                _ => {}
            }
            self.listeners.iter().for_each(|listener| listener(entry));
        }
        for event in redacted {
            self.rooms.replace_redacted(event);
            self.timelines.replace_redacted(event);
        }
        let reached = ring.position();
        drop(ring);
        tail.position
            .send_if_modified(|position| std::mem::replace(position, reached.max(*position)) < reached);
        tail.target.fetch_max(reached, Ordering::SeqCst);
        concerned.rooms.iter().for_each(|room_id| self.wake_room(room_id));
        concerned.users.iter().for_each(|user_id| self.waiters.wake(user_id));
    }

    /// Whom a row concerns.
    fn concerned(&self, item: &Item, concerned: &mut Concerned) {
        let Concerned { rooms, users } = concerned;
        match item {
            Item::Event(event) => {
                rooms.insert(event.pdu.room_id.clone());
                if event.pdu.event_type == TimelineEventType::RoomMember {
                    users
                        .extend(event.pdu.state_key.as_deref().and_then(|id| OwnedUserId::try_from(id).ok()));
                }
            }
            Item::Receipt(receipt) => {
                if !receipt.is_private() {
                    rooms.insert(receipt.room_id.clone());
                }
                users.insert(receipt.user_id.clone());
            }
            Item::UserChange(user_id, change) => {
                users.insert(user_id.clone());
                if matches!(change, UserChange::DeviceList | UserChange::Presence) {
                    match self.memberships.get(user_id) {
                        Some(of_user) => rooms.extend(of_user.iter().map(|(room_id, _)| room_id.clone())),
                        None => self.wake_contacts_later(user_id.clone()),
                    }
                }
            }
            Item::ToDevice(message) => drop(users.insert(message.user_id.clone())),
            Item::AccountData(data) => drop(users.insert(data.user_id.clone())),
        }
    }

    /// Wakes those who share a room with a user whose rooms are not in memory, once they are.
    fn wake_contacts_later(&self, user_id: OwnedUserId) {
        let Some(tail) = self.this.upgrade() else { return };
        tokio::spawn(async move {
            match tail.rooms_of(&user_id).await {
                Ok(rooms) => rooms.iter().for_each(|(room_id, _)| tail.wake_room(room_id)),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell who shares a room");
                }
            }
        });
    }

    fn tail(&self, shard: Shard) -> Option<&ShardTail> {
        self.tails.get(usize::try_from(shard).ok()?)
    }

    fn shard(&self, shard: Shard) -> Result<&ShardTail, Error> {
        self.tail(shard).ok_or_else(|| Error::Setup(format!("The database has no stream shard {shard}")))
    }

    fn hear_hint(&self, hint: Hint) {
        match hint {
            Hint::Positions(positions) => {
                for (shard, position) in positions {
                    if let Some(tail) = self.tail(shard) {
                        self.aim(tail, position);
                    }
                }
            }
            Hint::Typing { room_id, user_id, until } => {
                let (Ok(room), Ok(user)) =
                    (<&RoomId>::try_from(room_id.as_str()), <&UserId>::try_from(user_id.as_str()))
                else {
                    return;
                };
                self.typing.set(room, user, until);
                self.wake_room(room);
            }
            Hint::Resync => {}
        }
    }

    /// Ends the typing of those whose time has run out.
    pub fn expire_typing(&self, now: MilliSecondsSinceUnixEpoch) {
        for room_id in self.typing.expire(now) {
            self.wake_room(&room_id);
        }
    }

    fn wake_room(&self, room_id: &RoomId) {
        self.memberships.for_each_user_of(room_id, |user_id| self.waiters.wake(user_id));
    }

    /// Asks the database how far the shards reach.
    async fn look(&self) -> Result<(), Error> {
        let asked = Instant::now();
        let positions = self.store.positions().await?;
        self.hear_hint(Hint::Positions(positions.clone()));
        let mut freshness = self.freshness.lock().unwrap_or_else(PoisonError::into_inner);
        freshness.looked(asked, positions, |shard| self.position(shard));
        Ok(())
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        // Whoever reads for it has nothing left to do.
        self.calls.behind.notify_one();
    }
}

impl ShardTail {
    fn position(&self) -> i64 {
        *self.position.borrow()
    }

    fn target(&self) -> i64 {
        self.target.load(Ordering::SeqCst)
    }

    fn ring(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the shards that are known to reach further than they have been read, all in one go, and no more often than is of use.
async fn follow(tail: Weak<Tail>, calls: Arc<Calls>) {
    let (mut read_at, mut took) = (Instant::now(), Duration::ZERO);
    loop {
        calls.behind.notified().await;
        loop {
            let Some(pace) = tail.upgrade().map(|tail| tail.pace()) else { return };
            let rest = (REST * took).min(LONGEST_REST);
            tokio::select! {
                () = tokio::time::sleep_until(read_at + pace.max(rest)) => break,
                () = calls.awaited.notified() => break tokio::time::sleep_until(read_at + AWAITED_PACE).await,
                () = calls.watched.notified() => {}
            }
        }
        let Some(tail) = tail.upgrade() else { return };
        read_at = Instant::now();
        let shards = tail.behind();
        if shards.is_empty() {
            continue;
        }
        if let Err(error) = tail.catch_up(&shards).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read the streams");
            drop(tail);
            // The database is away; asking again at once would only keep it busy.
            tokio::time::sleep(RECHECK_EVERY / 4).await;
            calls.behind.notify_one();
        }
        took = read_at.elapsed();
    }
}

/// Listens to hints, and looks for itself when it may have missed some.
async fn hear(tail: Weak<Tail>, mut hints: tokio::sync::broadcast::Receiver<Hint>) {
    let mut recheck = tokio::time::interval(RECHECK_EVERY);
    loop {
        let hint = tokio::select! {
            hint = hints.recv() => match hint {
                Ok(hint) => hint,
                Err(RecvError::Lagged(_)) => Hint::Resync,
                Err(RecvError::Closed) => return,
            },
            _ = recheck.tick() => {
                let Some(tail) = tail.upgrade() else { return };
                // Where nobody waits this look is enough: requests pass the fence, which looks for itself.
                tail.waiters.if_quiet(|| tail.store.hear_positions(false));
                Hint::Resync
            }
        };
        let Some(tail) = tail.upgrade() else { return };
        if hint == Hint::Resync
            && let Err(error) = tail.look().await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read where the streams stand");
        }
        tail.hear_hint(hint);
    }
}

/// What is kept of a row; `None` if it is damaged.
fn entry(row: StreamRow) -> Result<Option<Entry>, Error> {
    let item = match row.item {
        StreamItem::Event(event) => Item::Event(Arc::new(event.into_room_event()?)),
        StreamItem::Receipt(receipt) => Item::Receipt(Arc::new(receipt)),
        StreamItem::UserChange { user_id, kind } => Item::UserChange(user_id, kind),
        StreamItem::ToDevice(message) => Item::ToDevice(Arc::new(message)),
        StreamItem::AccountData(data) => Item::AccountData(Arc::new(data)),
        StreamItem::Damaged => return Ok(None),
    };
    Ok(Some(Entry { position: row.position, item }))
}

/// The room, the redaction and the event that it redacts.
fn redaction_of(entry: &Entry) -> Option<(&RoomId, &EventId, &EventId)> {
    let Item::Event(event) = &entry.item else { return None };
    let pdu = &event.pdu;
    let redacts = pdu.redacts.as_deref().filter(|_| pdu.event_type == TimelineEventType::RoomRedaction)?;
    Some((&pdu.room_id, &pdu.event_id, redacts))
}
