//! `/sync`: everything that happened since a token, or the wait until something does.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#syncing>
//!
//! A sync fixes at once how far it reaches (`upto`), and everything in its answer lies between the token and there. What lies
//! in the tail's memory is taken from there ([`changes`]); the database is asked for older things only.

mod acknowledgements;
mod changes;
mod devices;
mod ephemeral;
mod left;
mod newest;
mod presence;
mod readers;
pub mod reply;
mod room;
mod state;

use std::{
    collections::HashSet,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use keystead_core::{
    filter,
    room::{Refusal, RoomEvent, RoomState},
    shard::Shard,
    token::SyncToken,
};
use keystead_store::{account_data, streams::AccountData};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, RoomId, UserId,
    api::client::{filter::FilterDefinition, sync::sync_events::v3 as sync_events},
    events::{AnyGlobalAccountDataEvent, AnyRoomAccountDataEvent, room::member::MembershipState},
    serde::Raw,
};
use tokio::time::Instant;

use self::changes::Changes;
pub(crate) use self::readers::{COUNTED_EVENTS, push_context};
pub use self::{
    acknowledgements::Acknowledgements,
    devices::DeviceCaches,
    readers::{IgnoredUsers, ReaderCaches},
};
use crate::{
    accounts::sessions,
    app::App,
    context::Session,
    http::error::ApiError,
    push_rules,
    streams::{RoomMembership, RoomsOfUser},
};

/// The longest wait that a client is granted.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// What a client asks for.
pub struct SyncRequest {
    /// Whose sync it is.
    pub session: Session,
    /// Where the last sync ended; `None` for the first one.
    pub since: Option<SyncToken>,
    /// The position up to which the device has its messages, if that is beyond `since`.
    pub delivered: Option<i64>,
    /// What the client wants of it all.
    pub filter: Arc<FilterDefinition>,
    /// Whether all state is wanted, not only what changed.
    pub full_state: bool,
    /// Whether the state is wanted as of the end of the timeline instead of its start.
    pub state_after: bool,
    /// How long to wait for news.
    pub timeout: Duration,
}

/// One pass over everything that the answer is made of.
struct Sync<'a> {
    app: &'a App,
    request: &'a SyncRequest,
    rooms: Arc<RoomsOfUser>,
    ignored: Arc<IgnoredUsers>,
    upto: SyncToken,
    now: MilliSecondsSinceUnixEpoch,
    /// How many more statements may look for events that the client wants behind others.
    pages_left: AtomicUsize,
}

/// Answers a sync: at once if there is news, or when there is, or when the time is up. `request.since` moves on with what is seen meanwhile.
///
/// # Errors
/// 400 `M_INVALID_PARAM` for a token of the future; 401 `M_UNKNOWN_TOKEN` if the session ends during the wait; whatever the
/// database's errors become.
pub async fn sync(app: &App, request: &mut SyncRequest) -> Result<sync_events::Response, ApiError> {
    let (begun, is_initial, mut waited) = (Instant::now(), request.since.is_none(), Duration::ZERO);
    let answer = answer(app, request, &mut waited).await;
    app.metrics.sync(is_initial, begun.elapsed().saturating_sub(waited));
    answer
}

/// Answers a sync; adds to `waited` the time in which there was nothing to do for it.
async fn answer(
    app: &App,
    request: &mut SyncRequest,
    waited: &mut Duration,
) -> Result<sync_events::Response, ApiError> {
    let deadline = Instant::now() + request.timeout.min(LONGEST_WAIT);
    let waiter = app.tail.wait(&request.session.user_id);
    // Boxed, as all that is done besides waiting: thousands wait, and each would keep the room for it.
    Box::pin(reach(app, &request.session.user_id, request.since.as_ref())).await?;
    loop {
        // News that comes from here on ends the wait below.
        let news = waiter.news();
        let Pass { response, is_news, upto } = Box::pin(pass(app, request)).await?;
        let Some(since) = request.since.as_mut().filter(|_| !is_news && !request.full_state) else {
            return Ok(response);
        };
        // The next pass need not look again at what this one has seen.
        (since.rooms, since.user) = (upto.rooms, upto.user);
        let (waiting, began) = (app.metrics.sync_waits(), Instant::now());
        let has_ended = tokio::select! {
            () = news => false,
            () = tokio::time::sleep_until(deadline) => true,
            () = app.shutdown.draining() => true,
        };
        drop(waiting);
        *waited += began.elapsed();
        if has_ended {
            return Ok(response);
        }
        // The news may be that the session has ended, through whichever replica.
        Box::pin(sessions::check_again(app, &request.session)).await?;
    }
}

/// What one pass came to.
struct Pass {
    response: sync_events::Response,
    /// Whether there is anything in the response that a client waits for.
    is_news: bool,
    upto: SyncToken,
}

/// One pass. What it knows of the rooms is let go at its end: it may change while nobody holds on to it.
async fn pass(app: &App, request: &SyncRequest) -> Result<Pass, ApiError> {
    let sync = Sync::begin(app, request).await?;
    let (response, is_news) = sync.run().await?;
    Ok(Pass { response, is_news, upto: sync.upto })
}

/// Waits until this replica has read as far as the one that gave out the token.
async fn reach(app: &App, user_id: &UserId, since: Option<&SyncToken>) -> Result<(), ApiError> {
    let Some(since) = since else { return Ok(()) };
    let shards = app.tail.shards();
    let mut positions: Vec<_> = shards.room_shards().zip(since.rooms.iter().copied()).collect();
    positions.push((shards.of_user(user_id), since.user));
    let is_there = |positions: &[(Shard, i64)]| {
        positions.iter().all(|(shard, position)| app.tail.position(*shard) >= *position)
    };
    if is_there(&positions) {
        return Ok(());
    }
    app.fence().await?;
    if !is_there(&positions) {
        return Err(ApiError::invalid_param("since: the token names a position that does not exist yet"));
    }
    Ok(())
}

impl<'a> Sync<'a> {
    /// Fixes how far the sync reaches, and the user's memberships as of exactly there: a join or a leave between the two
    /// would let the token pass events that the answer does not have.
    async fn begin(app: &'a App, request: &'a SyncRequest) -> Result<Self, ApiError> {
        let user_id = &request.session.user_id;
        let ignored = app.readers.ignored(&app.lookups, user_id).await?;
        let shards = app.tail.shards();
        let mut rooms = app.tail.rooms_of(user_id).await?;
        loop {
            for (shard, rooms) in rooms.by_shard() {
                if app.tail.position(shard) < rooms.newest() {
                    app.tail.reached(shard, rooms.newest()).await;
                }
            }
            let upto = SyncToken {
                rooms: shards.room_shards().map(|shard| app.tail.position(shard)).collect(),
                user: app.tail.position(shards.of_user(user_id)),
                typing: Vec::new(),
            };
            // The tail takes in a membership before it moves its position.
            let now = app.tail.rooms_of(user_id).await?;
            if now == rooms {
                let (now, pages_left) = (app.clock.now(), AtomicUsize::new(newest::MAX_PAGES));
                return Ok(Self { app, request, rooms, ignored, upto, now, pages_left });
            }
            rooms = now;
        }
    }

    /// The answer, and whether there is anything in it that a client waits for.
    async fn run(&self) -> Result<(sync_events::Response, bool), ApiError> {
        let mut changes = Changes::collect(self).await?;
        let mut upto = self.upto.clone();
        let to_device = self.to_device(&mut changes, &mut upto).await?;
        let (typing, seen) = self.typing();
        upto.typing = seen;

        let mut response = sync_events::Response::new(upto.to_string());
        response.to_device = to_device;
        response.account_data.events = self.global_account_data(&changes)?;
        response.rooms.join = self.joined_rooms(&mut changes, typing).await?;
        for (room_id, membership) in self.moved() {
            match membership.membership {
                MembershipState::Invite => {
                    if let Some(invited) = self.invited_room(room_id).await? {
                        response.rooms.invite.insert(room_id.clone(), invited);
                    }
                }
                MembershipState::Knock => {
                    let knocked = self.knocked_room(room_id).await?;
                    response.rooms.knock.insert(room_id.clone(), knocked);
                }
                MembershipState::Leave | MembershipState::Ban if self.wants_left(membership) => {
                    if let Some(left) = self.left_room(room_id, membership).await? {
                        response.rooms.leave.insert(room_id.clone(), left);
                    }
                }
                _ => {}
            }
        }
        response.presence.events = self.presence(&changes).await?;
        self.device_lists(changes.device_lists, &mut response).await?;
        self.key_counts(&mut response).await?;
        let is_news = changes.own_account_changed
            || !response.rooms.is_empty()
            || !response.account_data.is_empty()
            || !response.to_device.is_empty()
            || !response.presence.is_empty()
            || !response.device_lists.is_empty();
        Ok((response, is_news))
    }

    /// Whether an event is one that the user does not want to see because of its sender. State is always shown.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#ignoring-users>
    fn is_ignored(&self, event: &RoomEvent) -> bool {
        event.pdu.state_key.is_none() && self.ignored.contains_key(&event.pdu.sender)
    }

    fn user_id(&self) -> &UserId {
        &self.request.session.user_id
    }

    fn filter(&self) -> &FilterDefinition {
        &self.request.filter
    }

    /// The position of the token in a room's shard; `None` on a first sync.
    fn since_in(&self, room_id: &RoomId) -> Option<i64> {
        let shard = usize::try_from(self.app.tail.shards().of_room(room_id)).ok()?;
        self.request.since.as_ref()?.rooms.get(shard).copied()
    }

    /// How far the sync reaches in a room's shard.
    fn upto_in(&self, room_id: &RoomId) -> i64 {
        let shard = usize::try_from(self.app.tail.shards().of_room(room_id)).ok();
        shard.and_then(|shard| self.upto.rooms.get(shard)).copied().unwrap_or_default()
    }

    /// The rooms that the filter lets through where the user's membership is news.
    fn moved(&self) -> impl Iterator<Item = (&OwnedRoomId, &RoomMembership)> {
        let since = |shard| match &self.request.since {
            Some(since) => usize::try_from(shard).ok().and_then(|shard| since.rooms.get(shard)).copied(),
            None => None,
        };
        self.rooms
            .by_shard()
            .map(move |(shard, rooms)| (since(shard), rooms))
            .filter(|(since, rooms)| since.is_none_or(|since| rooms.newest() > since))
            .flat_map(|(since, rooms)| {
                rooms.iter().filter(move |(_, room)| since.is_none_or(|since| room.position > since))
            })
            .filter(|(room_id, _)| filter::includes_room(&self.filter().room, room_id))
    }

    /// The rooms that the filter lets through.
    fn wanted_rooms(&self) -> impl Iterator<Item = (&OwnedRoomId, &RoomMembership)> {
        self.rooms.iter().filter(|(room_id, _)| filter::includes_room(&self.filter().room, room_id))
    }

    /// A first sync shows rooms that were left only to clients that ask for them; forgotten ones are not shown at all.
    fn wants_left(&self, membership: &RoomMembership) -> bool {
        !membership.forgotten && (self.request.since.is_some() || self.filter().room.include_leave)
    }

    async fn room_state(&self, room_id: &RoomId) -> Result<RoomState, ApiError> {
        self.app.tail.room(room_id).await?.ok_or_else(|| missing_state(room_id))
    }

    fn global_account_data(
        &self,
        changes: &Changes,
    ) -> Result<Vec<Raw<AnyGlobalAccountDataEvent>>, ApiError> {
        newest(&changes.account_data, None)
            .filter(|data| ephemeral::wants(&self.filter().account_data, data))
            .map(ephemeral::account_data_event)
            .collect()
    }

    fn room_account_data(
        &self,
        room_id: &RoomId,
        changes: &Changes,
    ) -> Result<Vec<Raw<AnyRoomAccountDataEvent>>, ApiError> {
        newest(&changes.account_data, Some(room_id))
            .filter(|data| ephemeral::wants_in_room(&self.filter().room.account_data, room_id, data))
            .map(ephemeral::account_data_event)
            .collect()
    }
}

fn missing_state(room_id: &RoomId) -> ApiError {
    ApiError::internal(Refusal::BadEvent(format!("The room {room_id} has a member but no state")))
}

/// The entries of a room or of none: of what changed twice the newest.
fn newest<'a>(
    entries: &'a [Arc<AccountData>],
    room_id: Option<&RoomId>,
) -> impl Iterator<Item = &'a AccountData> {
    let mut seen = HashSet::new();
    let of_room = move |data: &&AccountData| data.room_id.as_deref() == room_id;
    entries.iter().rev().map(AsRef::as_ref).filter(of_room).filter(move |data| seen.insert(&data.data_type))
}

/// The entries of account data between two positions of the user's shard, or all of them on a first sync, with the
/// push rules as they are in force.
async fn load_account_data(sync: &Sync<'_>, since: Option<i64>) -> Result<Vec<Arc<AccountData>>, ApiError> {
    let user_id = sync.user_id();
    let upto = sync.upto.user;
    let entries = sync
        .app
        .store
        .read_one("sync_account_data", |tx| async move {
            let Some(since) = since else {
                let mut entries = account_data::of_user(&tx, user_id).await?;
                let is_rules = |data: &AccountData| {
                    data.data_type == push_rules::ACCOUNT_DATA_TYPE && data.room_id.is_none()
                };
                let stored = entries.iter().position(is_rules).map(|index| entries.remove(index).content);
                let rules = push_rules::read(user_id, stored.as_deref())?;
                entries.push(push_rules::account_data_of(user_id, rules)?);
                return Ok::<_, keystead_store::Error>(entries);
            };
            account_data::changed(&tx, user_id, since, upto).await
        })
        .await?;
    Ok(entries.into_iter().map(Arc::new).collect())
}
