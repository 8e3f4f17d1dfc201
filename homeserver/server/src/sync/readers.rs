//! What is known of readers: whom they ignore, and how many events of a room they have not read and were to be notified of.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#receiving-notifications>

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use keystead_core::{
    client_format::{self, Unsigned},
    push,
    relations::{Place, place_of},
    room::{RoomEvent, RoomState},
};
use keystead_store::{
    Error, ReadTx, Store,
    account_data::IGNORED_USER_LIST,
    receipts::{self, MAIN, ReadUpTo},
    rooms::{self, Bounds},
};
use lru::LruCache;
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UInt, UserId,
    api::client::sync::sync_events::UnreadNotificationsCount,
    events::{
        TimelineEventType,
        ignored_user_list::{IgnoredUser, IgnoredUserListEventContent},
        room::power_levels::RoomPowerLevelsEventContent,
    },
    power_levels::NotificationPowerLevels,
    push::{FlattenedJson, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    room_version_rules::RoomPowerLevelsRules,
};
use serde::Deserialize;

use super::Sync;
use crate::{http::error::ApiError, lookups::Lookups, push_rules, streams::Item};

/// How far back events are counted, and the greatest number that is told: one beyond it tells a person nothing more.
pub(crate) const COUNTED_EVENTS: u64 = 100;
/// How many rooms' unread events are in memory at once.
const ROOMS_COUNTED_AT_ONCE: usize = 50;
/// How many users' rules, and how many rooms' counts, are kept.
const CAPACITY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99_999);
/// Of how many rooms the newest redaction is kept.
const REDACTED_ROOMS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(9_999);
/// How many events are kept as push rules look at them, and how large their contents may be, in bytes.
const FLAT_EVENTS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2_047);
const MAX_FLAT_BYTES: usize = 8_192;

/// What is known of readers: whom they ignore, their push rules and their unread events; kept right by the tail.
pub struct ReaderCaches {
    ignored: Mutex<LruCache<OwnedUserId, Arc<IgnoredUsers>>>,
    rules: Mutex<LruCache<OwnedUserId, Arc<Ruleset>>>,
    counts: Mutex<LruCache<(OwnedUserId, OwnedRoomId), Count>>,
    /// Where each room's newest redaction stands: what it emptied may have been counted before.
    redactions: Mutex<LruCache<OwnedRoomId, i64>>,
    /// Events as push rules look at them: the same for all members of a room.
    flat: Mutex<LruCache<OwnedEventId, Arc<FlattenedJson>>>,
    /// Counts what voids the caches, so that what was read before is not kept after: for each user one of these.
    changes: [AtomicU64; 256],
}

/// The users whose messages and invitations a reader does not want.
pub type IgnoredUsers = BTreeMap<OwnedUserId, IgnoredUser>;

/// The unread events of a room.
#[derive(Clone, Debug, Default)]
struct Count {
    /// The position up to which events are counted.
    upto: i64,
    /// What is in no thread.
    main: Tally,
    /// The threads with unread events, by their roots.
    threads: BTreeMap<OwnedEventId, Tally>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    notifications: u32,
    highlights: u32,
}

impl Tally {
    fn add(&mut self, more: Self) {
        self.notifications = self.notifications.saturating_add(more.notifications);
        self.highlights = self.highlights.saturating_add(more.highlights);
    }
}

impl From<Tally> for UnreadNotificationsCount {
    fn from(tally: Tally) -> Self {
        // Who followed the events one by one has counted on; who comes anew counts the newest. Both are told the same.
        let told = |counted: u32| UInt::new_saturating(u64::from(counted).min(COUNTED_EVENTS));
        let mut count = Self::new();
        count.notification_count = Some(told(tally.notifications));
        count.highlight_count = Some(told(tally.highlights));
        count
    }
}

impl Count {
    fn new(upto: i64) -> Self {
        Self { upto, ..Self::default() }
    }

    fn is_nothing(&self) -> bool {
        self.main.notifications == 0 && self.main.highlights == 0 && self.threads.is_empty()
    }

    /// What the client is told: of the room and of its threads, or of all together.
    fn told(&self, by_thread: bool) -> Unread {
        if by_thread {
            let threads = self.threads.iter().map(|(root, tally)| (root.clone(), (*tally).into()));
            return Unread { room: self.main.into(), threads: threads.collect() };
        }
        let mut all = self.main;
        self.threads.values().for_each(|tally| all.add(*tally));
        Unread { room: all.into(), threads: BTreeMap::new() }
    }
}

/// What is unread in a room up to a position, from the database.
#[derive(Default)]
struct StoredUnread {
    events: Vec<RoomEvent>,
    /// Whether the user has read, or joined, beyond that position: what comes up to there will not be unread, though it comes later.
    is_read_beyond: bool,
}

/// The counts of unread events as a client is told them.
pub(super) struct Unread {
    pub(super) room: UnreadNotificationsCount,
    pub(super) threads: BTreeMap<OwnedEventId, UnreadNotificationsCount>,
}

impl Default for ReaderCaches {
    fn default() -> Self {
        Self {
            ignored: Mutex::new(LruCache::new(CAPACITY)),
            rules: Mutex::new(LruCache::new(CAPACITY)),
            counts: Mutex::new(LruCache::new(CAPACITY)),
            redactions: Mutex::new(LruCache::new(REDACTED_ROOMS)),
            flat: Mutex::new(LruCache::new(FLAT_EVENTS)),
            changes: [const { AtomicU64::new(0) }; 256],
        }
    }
}

impl ReaderCaches {
    /// Takes in a row of the stream.
    pub fn hear(&self, item: &Item) {
        match item {
            Item::Receipt(receipt) => {
                self.changes_of(&receipt.user_id).fetch_add(1, Ordering::SeqCst);
                lock(&self.counts).pop(&(receipt.user_id.clone(), receipt.room_id.clone()));
            }
            Item::AccountData(data) if data.data_type == push_rules::ACCOUNT_DATA_TYPE => {
                self.changes_of(&data.user_id).fetch_add(1, Ordering::SeqCst);
                lock(&self.rules).pop(&data.user_id);
            }
            Item::AccountData(data) if data.data_type == IGNORED_USER_LIST => {
                self.changes_of(&data.user_id).fetch_add(1, Ordering::SeqCst);
                lock(&self.ignored).pop(&data.user_id);
                // What is ignored does not count as unread.
                lock(&self.counts).clear();
            }
            // Nothing counts from before a join.
            Item::Event(event) if event.pdu.event_type == TimelineEventType::RoomMember => {
                let member = event.pdu.state_key.as_deref();
                if let Some(user_id) = member.and_then(|member| OwnedUserId::try_from(member).ok()) {
                    self.changes_of(&user_id).fetch_add(1, Ordering::SeqCst);
                    lock(&self.counts).pop(&(user_id, event.pdu.room_id.clone()));
                }
            }
            Item::Event(event) if event.pdu.event_type == TimelineEventType::RoomRedaction => {
                lock(&self.redactions).put(event.pdu.room_id.clone(), event.position);
            }
            _ => {}
        }
    }

    /// The unread events of a user in a room as they were last counted, if none of them may have been redacted since.
    fn counted(&self, key: &(OwnedUserId, OwnedRoomId)) -> Option<Count> {
        let count = lock(&self.counts).get(key).cloned()?;
        let redacted_at = lock(&self.redactions).peek(&key.1).copied().unwrap_or_default();
        (count.is_nothing() || count.upto >= redacted_at).then_some(count)
    }

    /// The counter of a user, which others may share.
    fn changes_of(&self, user_id: &UserId) -> &AtomicU64 {
        let mut hasher = DefaultHasher::new();
        user_id.hash(&mut hasher);
        let [counter, ..] = hasher.finish().to_be_bytes();
        let [first, ..] = &self.changes;
        self.changes.get(usize::from(counter)).unwrap_or(first)
    }

    /// An event as push rules look at it; `None` for one that notifies nobody.
    pub(crate) fn flat(&self, event: &RoomEvent) -> Option<Arc<FlattenedJson>> {
        if let Some(flat) = lock(&self.flat).get(&event.pdu.event_id) {
            return Some(flat.clone());
        }
        let json = client_format::with_room_id(&event.pdu, &Unsigned::default()).ok()?;
        let flat = Arc::new(push::flatten(&json)?);
        if event.pdu.content.get().len() <= MAX_FLAT_BYTES {
            lock(&self.flat).put(event.pdu.event_id.clone(), flat.clone());
        }
        Some(flat)
    }

    /// The push rules of a user.
    ///
    /// # Errors
    /// The database's own, or rules that cannot be read.
    pub async fn push_rules(&self, store: &Store, user_id: &UserId) -> Result<Arc<Ruleset>, Error> {
        if let Some(rules) = lock(&self.rules).get(user_id) {
            return Ok(rules.clone());
        }
        let changes = self.changes_of(user_id).load(Ordering::SeqCst);
        let rules =
            store.read_one("push_rules", |tx| async move { push_rules::load(&tx, user_id).await }).await?;
        let rules = Arc::new(rules);
        if self.changes_of(user_id).load(Ordering::SeqCst) == changes {
            lock(&self.rules).put(user_id.to_owned(), rules.clone());
        }
        Ok(rules)
    }

    /// The users whom a reader ignores.
    ///
    /// # Errors
    /// The database's own. A list that is malformed counts as empty.
    pub async fn ignored(&self, lookups: &Lookups, user_id: &UserId) -> Result<Arc<IgnoredUsers>, Error> {
        if let Some(ignored) = lock(&self.ignored).get(user_id) {
            return Ok(ignored.clone());
        }
        let changes = self.changes_of(user_id).load(Ordering::SeqCst);
        let content = lookups.ignored_users.find(user_id.to_owned()).await?;
        let list =
            content.and_then(|content| serde_json::from_str::<IgnoredUserListEventContent>(&content).ok());
        let ignored = Arc::new(list.map(|list| list.ignored_users).unwrap_or_default());
        if self.changes_of(user_id).load(Ordering::SeqCst) == changes {
            lock(&self.ignored).put(user_id.to_owned(), ignored.clone());
        }
        Ok(ignored)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sync<'_> {
    /// The counts of a room. `new` are all events after `since`, as far as they are at hand.
    pub(super) async fn unread(
        &self,
        room: &RoomState,
        new: &[Arc<RoomEvent>],
        since: Option<i64>,
    ) -> Result<Unread, ApiError> {
        let caches = &self.app.readers;
        let key = (self.user_id().to_owned(), room.room_id.clone());
        let upto = self.upto_in(&room.room_id);
        let changes = caches.changes_of(self.user_id()).load(Ordering::SeqCst);
        let cached = caches.counted(&key);
        let mut is_lasting = true;
        let count = match cached {
            Some(count) if count.upto >= upto => count,
            Some(count) if since.is_some_and(|since| count.upto >= since) => {
                let uncounted: Vec<&RoomEvent> =
                    new.iter().map(AsRef::as_ref).filter(|event| event.position > count.upto).collect();
                self.count(room, &uncounted, Count { upto, ..count }).await?
            }
            // Tokens move on with the shard while the room is quiet.
            Some(count) if since.is_some() => match self.uncounted(&room.room_id, count.upto).await? {
                Some(uncounted) => {
                    let uncounted: Vec<&RoomEvent> = uncounted.iter().map(AsRef::as_ref).collect();
                    self.count(room, &uncounted, Count { upto, ..count }).await?
                }
                None => self.count_stored(room, upto, &mut is_lasting).await?,
            },
            _ => self.count_stored(room, upto, &mut is_lasting).await?,
        };
        let told = count.told(self.filter().room.timeline.unread_thread_notifications);
        if is_lasting && caches.changes_of(self.user_id()).load(Ordering::SeqCst) == changes {
            let mut counts = lock(&caches.counts);
            // Another sync of the user's may have come further.
            if counts.peek(&key).is_none_or(|kept| kept.upto < count.upto) {
                counts.put(key, count);
            }
        }
        Ok(told)
    }

    /// All events of a room after a position, from memory where it was read lately; `None` if there are more than are counted.
    async fn uncounted(&self, room_id: &RoomId, after: i64) -> Result<Option<Vec<Arc<RoomEvent>>>, ApiError> {
        let bounds = Bounds { after, upto: self.upto_in(room_id) };
        let most = usize::try_from(COUNTED_EVENTS).unwrap_or(usize::MAX);
        let mut timelines = self.app.tail.timelines(vec![(room_id.to_owned(), bounds)], most).await?;
        let events = timelines.remove(room_id).unwrap_or_default();
        Ok((events.len() < most).then_some(events))
    }

    /// Counts from the database. Clears `is_lasting` if that is not to be counted on from.
    async fn count_stored(
        &self,
        room: &RoomState,
        upto: i64,
        is_lasting: &mut bool,
    ) -> Result<Count, ApiError> {
        let unread = self.stored_unread(&[(&room.room_id, upto)]).await?.remove(&room.room_id);
        let unread = unread.unwrap_or_default();
        *is_lasting = !unread.is_read_beyond;
        self.count(room, &Vec::from_iter(&unread.events), Count::new(upto)).await
    }

    /// Counts what is unread in rooms of which nothing is known yet, many at a time: a first sync asks for all of them.
    pub(super) async fn count_ahead(&self, rooms: &[&RoomState]) -> Result<(), ApiError> {
        let caches = &self.app.readers;
        let key = |room: &RoomState| (self.user_id().to_owned(), room.room_id.clone());
        let is_unknown = |room: &&&RoomState| !lock(&caches.counts).contains(&key(room));
        let unknown: Vec<&RoomState> = rooms.iter().filter(is_unknown).copied().collect();
        for chunk in unknown.chunks(ROOMS_COUNTED_AT_ONCE) {
            let changes = caches.changes_of(self.user_id()).load(Ordering::SeqCst);
            let wanted: Vec<_> =
                chunk.iter().map(|room| (&*room.room_id, self.upto_in(&room.room_id))).collect();
            let mut unread = self.stored_unread(&wanted).await?;
            for (room, (_, upto)) in chunk.iter().zip(wanted) {
                let unread = unread.remove(&room.room_id).unwrap_or_default();
                let count = self.count(room, &Vec::from_iter(&unread.events), Count::new(upto)).await?;
                if !unread.is_read_beyond
                    && caches.changes_of(self.user_id()).load(Ordering::SeqCst) == changes
                {
                    lock(&caches.counts).put(key(room), count);
                }
            }
        }
        Ok(())
    }

    /// The newest unread events of rooms up to a position of each.
    async fn stored_unread(
        &self,
        rooms: &[(&RoomId, i64)],
    ) -> Result<HashMap<OwnedRoomId, StoredUnread>, ApiError> {
        let user_id = self.user_id();
        let unread = self
            .app
            .store
            .read("sync_unread", |tx| async move {
                let room_ids: Vec<_> = rooms.iter().map(|(room_id, _)| *room_id).collect();
                let read = receipts::read_positions(&tx, &room_ids, user_id).await?;
                let is_unread = |room_id: &RoomId| read.get(room_id).is_none_or(|read| read.all.is_none());
                let not_all_read: Vec<_> =
                    room_ids.iter().filter(|room_id| is_unread(room_id)).copied().collect();
                let joined = rooms::joined_positions(&tx, &not_all_read, user_id).await?;
                let (mut newer, mut threaded) = (Vec::new(), Vec::new());
                let mut read_beyond = Vec::new();
                for (room_id, upto) in rooms {
                    let read = read.get(*room_id);
                    let begin = read.and_then(|read| read.all).or_else(|| joined.get(*room_id).copied());
                    if read.and_then(ReadUpTo::newest).max(begin).is_some_and(|newest| newest > *upto) {
                        read_beyond.push((*room_id).to_owned());
                    }
                    let main = read.and_then(|read| read.in_thread(MAIN));
                    let after = main.max(begin).unwrap_or(*upto);
                    newer.push(((*room_id).to_owned(), Bounds { after, upto: *upto }));
                    // What was read there is the main thread; others may not have been.
                    if let Some(begin) = begin.filter(|begin| *begin < after) {
                        threaded.push(((*room_id).to_owned(), Bounds { after: begin, upto: after }));
                    }
                }
                let mut unread = rooms::timelines(&tx, &newer, COUNTED_EVENTS).await?;
                if !threaded.is_empty() {
                    for event in rooms::threaded_events(&tx, &threaded).await? {
                        unread.entry(event.pdu.room_id.clone()).or_default().push(event);
                    }
                }
                let threads = rooms::threads_of(&tx, unread.values().flatten()).await?;
                for (room_id, read) in &read {
                    let Some(events) = unread.get_mut(room_id) else { continue };
                    events.retain(|event| {
                        let thread = threads.get(&event.pdu.event_id).map_or(MAIN, |root| root.as_str());
                        read.in_thread(thread).is_none_or(|position| position < event.position)
                    });
                }
                let stored = |events| StoredUnread { events, is_read_beyond: false };
                let mut unread: HashMap<_, _> =
                    unread.into_iter().map(|(room_id, events)| (room_id, stored(events))).collect();
                for room_id in read_beyond {
                    unread.entry(room_id).or_default().is_read_beyond = true;
                }
                Ok::<_, Error>(unread)
            })
            .await?;
        Ok(unread)
    }

    async fn count(
        &self,
        room: &RoomState,
        events: &[&RoomEvent],
        mut count: Count,
    ) -> Result<Count, ApiError> {
        if events.iter().all(|event| event.pdu.sender == self.user_id()) {
            return Ok(count);
        }
        let rules = self.app.readers.push_rules(&self.app.store, self.user_id()).await?;
        let context = push_context(room, self.user_id());
        let mut notifying = Vec::new();
        for event in events {
            // A redacted event has nothing left that somebody could want to read.
            if event.pdu.sender == self.user_id() || event.pdu.redacted_by.is_some() || self.is_ignored(event)
            {
                continue;
            }
            let Some(flat) = self.app.readers.flat(event) else { continue };
            let outcome = push::evaluate(&rules, &flat, &context);
            if !outcome.notify && !outcome.highlight {
                continue;
            }
            let tally = Tally { notifications: outcome.notify.into(), highlights: outcome.highlight.into() };
            notifying.push((*event, tally));
        }
        let mut threads = self.threads_of(notifying.iter().map(|(event, _)| *event)).await?;
        for (event, tally) in notifying {
            match threads.remove(&event.pdu.event_id) {
                Some(root) => count.threads.entry(root).or_default().add(tally),
                None => count.main.add(tally),
            }
        }
        Ok(count)
    }

    /// The roots of the threads that events are part of; the database is asked only for those that relate to others in some other way.
    async fn threads_of(
        &self,
        events: impl Iterator<Item = &RoomEvent>,
    ) -> Result<HashMap<OwnedEventId, OwnedEventId>, Error> {
        let (mut roots, mut beside) = (HashMap::new(), Vec::new());
        for event in events {
            match place_of(&event.pdu) {
                Place::Main => {}
                Place::Thread(root) => drop(roots.insert(event.pdu.event_id.clone(), root)),
                Place::Beside(_) => beside.push(event),
            }
        }
        if !beside.is_empty() {
            let beside = &beside;
            let read = |tx: ReadTx| async move { rooms::threads_of(&tx, beside.iter().copied()).await };
            roots.extend(self.app.store.read("threads_of", read).await?);
        }
        Ok(roots)
    }
}

/// What push rules may ask about a room and one of its members.
pub(crate) fn push_context(room: &RoomState, user_id: &UserId) -> PushConditionRoomCtx {
    #[derive(Deserialize)]
    struct Member {
        displayname: Option<String>,
    }
    let name = room
        .get("m.room.member", user_id.as_str())
        .and_then(|event| serde_json::from_str::<Member>(event.pdu.content.get()).ok()?.displayname)
        .unwrap_or_else(|| user_id.localpart().to_owned());
    let members = UInt::try_from(room.joined_count()).unwrap_or(UInt::MAX);
    let context = PushConditionRoomCtx::new(room.room_id.clone(), members, user_id.to_owned(), name);
    let levels: Option<RoomPowerLevelsEventContent> = room
        .get("m.room.power_levels", "")
        .and_then(|event| serde_json::from_str(event.pdu.content.get()).ok());
    let rules = RoomPowerLevelsRules::new(&room.rules().authorization, room.creators());
    let (users, default, notifications) = levels.map_or_else(
        || (Default::default(), 0.into(), NotificationPowerLevels::default()),
        |levels| (levels.users, levels.users_default, levels.notifications),
    );
    context.with_power_levels(PushConditionPowerLevelsCtx::new(users, default, notifications, rules))
}
