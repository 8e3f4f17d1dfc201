//! Telling push gateways of events, for clients that do not sync.
//!
//! Nothing is written when an event is: replicas divide the shards of rooms among themselves, and whoever holds one goes through its events after they
//! were committed, from where the cursor in the database stands. What a gateway does not take is a job, tried again by any replica; of a pusher
//! only the newest one, for the client asks for all the rest when it is awake.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#push-notifications>,
//! <https://spec.matrix.org/v1.19/push-gateway-api/>.

mod gateway;
mod notices;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keystead_core::room::RoomEvent;
use keystead_store::{
    Error,
    jobs::{self as job_store, NewJob},
    push_cursors::{self, Cursor},
    pushers::{self, PusherKey},
    receipts::{self, MAIN},
    rooms::{self, Bounds},
};
use openssl::{error::ErrorStack, sha::sha256};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use self::{
    gateway::{Gateways, Told},
    notices::Notice,
};
use crate::{
    app::App,
    config::push::PushSettings,
    jobs::{self, JobError},
    outside::{Guard, Outside},
    streams::Item,
};

/// The kind of job for what a gateway has not taken.
pub(crate) const JOB: &str = "push";

/// How often a replica says that it holds its shards, and looks for more; for how long they are left to it.
const RENEW: Duration = Duration::from_secs(5);
const HOLD: Duration = Duration::from_secs(30);
/// How long what comes is gathered before it is gone through.
const REST: Duration = Duration::from_millis(20);
/// How many events are gone through at once.
const EVENTS: usize = 200;
/// Characters of a holder's name.
const NAME_LENGTH: usize = 16;

/// What tells push gateways of events.
pub struct Pushes {
    gateways: Gateways,
    include_content: bool,
    is_enabled: bool,
    /// Whether this replica holds shards.
    holds: AtomicBool,
    /// There are events, or there is a pusher where none was before.
    news: Notify,
    /// There is a pusher where none was before.
    is_new: AtomicBool,
}

/// A job: which event a pusher is to be told of.
#[derive(Debug, Deserialize, Serialize)]
struct PutOff {
    user_id: OwnedUserId,
    app_id: String,
    pushkey: String,
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
}

impl Pushes {
    /// As the settings say.
    ///
    /// # Errors
    /// When OpenSSL cannot be used.
    pub fn new(settings: &PushSettings) -> Result<Self, ErrorStack> {
        let guard = Guard::new(settings.allowed_networks.clone(), settings.denied_networks.clone());
        Ok(Self {
            gateways: Gateways::new(Outside::new(guard)?),
            include_content: settings.include_content,
            is_enabled: settings.enabled,
            holds: AtomicBool::default(),
            news: Notify::default(),
            is_new: AtomicBool::default(),
        })
    }

    /// Takes in a row of the stream.
    pub fn hear(&self, item: &Item) {
        if matches!(item, Item::Event(_)) && self.holds.load(Ordering::Relaxed) {
            self.news.notify_one();
        }
    }

    /// Takes note that there is a pusher, perhaps the first one.
    pub fn pusher_set(&self) {
        if !self.holds.load(Ordering::Relaxed) {
            self.is_new.store(true, Ordering::Relaxed);
            self.news.notify_one();
        }
    }
}

/// Tells the gateways until the server stops.
pub async fn run(app: Arc<App>) {
    if !app.pushes.is_enabled {
        return;
    }
    let holder = &*app.entropy.readable(NAME_LENGTH);
    let mut held: Vec<Cursor> = Vec::new();
    let mut renewed: Option<Instant> = None;
    while !app.shutdown.is_draining() {
        let is_due = renewed.is_none_or(|renewed| renewed.elapsed() >= RENEW);
        if app.pushes.is_new.swap(false, Ordering::Relaxed) || is_due {
            renewed = Some(Instant::now());
            held = match hold(&app, holder, &held).await {
                Ok(held) => held,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot look after pushes");
                    Vec::new()
                }
            };
            app.pushes.holds.store(!held.is_empty(), Ordering::Relaxed);
        }
        for cursor in &mut held {
            if let Err(error) = tell(&app, holder, cursor).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot go through events for pushes"
                );
                // It goes on from the cursor in the database.
                renewed = None;
                tokio::time::sleep(REST).await;
            }
        }
        tokio::select! {
            () = app.shutdown.draining() => break,
            () = app.pushes.news.notified() => tokio::time::sleep(REST).await,
            () = tokio::time::sleep(RENEW) => {}
        }
    }
    let last = &held;
    let released = app.store.write("release_push_cursors", |tx| async move {
        for cursor in last {
            push_cursors::save(&tx, holder, *cursor).await?;
        }
        push_cursors::release(&tx, holder).await
    });
    let released: Result<(), Error> = released.await;
    if let Err(error) = released {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot give back what is pushed");
    }
}

/// Says what has been done, and takes this replica's share of the shards; none while there is no pusher.
async fn hold(app: &App, holder: &str, held: &[Cursor]) -> Result<Vec<Cursor>, Error> {
    let exist = app.store.read_one("pushers_exist", |tx| async move { pushers::exist(&tx).await }).await?;
    if !exist && held.is_empty() {
        return Ok(Vec::new());
    }
    let hold = app.store.write("hold_push_cursors", |tx| async move {
        push_cursors::begin(&tx).await?;
        push_cursors::hold(&tx, holder, held, HOLD).await
    });
    hold.await
}

/// Tells the gateways of what stands after the cursor, as far as this replica has read the shard.
async fn tell(app: &Arc<App>, holder: &str, cursor: &mut Cursor) -> Result<(), Error> {
    let shard = cursor.shard;
    while cursor.position < app.tail.position(shard) && !app.shutdown.is_draining() {
        let bounds = Bounds { after: cursor.position, upto: app.tail.position(shard) };
        let read = app.store.read_one("events_to_push", |tx| async move {
            rooms::events_of_shard(&tx, shard, bounds, EVENTS).await
        });
        let (events, reach) = read.await?;
        let notices = notices::of(app, &events).await?;
        let next = Cursor { shard, position: reach };
        if !notices.is_empty() {
            let told = app.pushes.gateways.tell(notices).await;
            note(app, told, Some((holder, next))).await?;
        }
        *cursor = next;
    }
    Ok(())
}

/// Notes what became of notifications: pushers that were rejected go, and what a gateway did not take is put off.
async fn note(app: &App, told: Told, cursor: Option<(&str, Cursor)>) -> Result<(), Error> {
    app.metrics.pushes("sent", told.sent);
    app.metrics.pushes("rejected", told.rejected.len());
    app.metrics.pushes("put_off", told.put_off.len());
    let now = app.clock.now();
    let put_off = told.put_off.iter().filter_map(|notice| {
        let payload = serde_json::to_string(&notice.put_off()).ok()?;
        let key = sha256(format!("{}\0{}\0{}", notice.user_id, notice.app_id, notice.pushkey).as_bytes());
        Some(NewJob {
            job_id: format!("push {}", URL_SAFE_NO_PAD.encode(key)),
            ..jobs::new(&*app.entropy, JOB, &payload, now)
        })
    });
    let (put_off, rejected) = (&Vec::from_iter(put_off), &told.rejected);
    let noted = app.store.write("note_pushes", |tx| async move {
        for job in put_off {
            job_store::replace(&tx, job).await?;
        }
        for notice in rejected {
            pushers::delete(&tx, notice.key(), &notice.user_id).await?;
        }
        if let Some((holder, cursor)) = cursor {
            push_cursors::save(&tx, holder, cursor).await?;
        }
        Ok(())
    });
    noted.await
}

/// Tells a gateway of what it has not taken before, if the pusher is still there and the user has not read it meanwhile.
///
/// # Errors
/// [`JobError`]
pub(crate) async fn tell_again(app: &Arc<App>, payload: &str) -> Result<(), JobError> {
    let put_off: PutOff = serde_json::from_str(payload).map_err(|_| JobError::Payload)?;
    let PutOff { user_id, app_id, pushkey, room_id, event_id } = &put_off;
    let read = app.store.read("push_again", |tx| async move {
        let key = PusherKey { app_id, pushkey };
        let Some(pusher) = pushers::find(&tx, key, user_id).await? else { return Ok(None) };
        let Some(event) = rooms::event(&tx, room_id, event_id).await? else { return Ok(None) };
        let threads = rooms::threads_of(&tx, [&event]).await?;
        let thread = threads.get(event_id).map_or(MAIN, |root| root.as_str());
        let read = receipts::read_positions(&tx, &[room_id], user_id).await?;
        let is_read = read.get(room_id).and_then(|read| read.in_thread(thread)) >= Some(event.position);
        Ok::<_, Error>((!is_read).then_some((pusher, event)))
    });
    let Some((pusher, event)) = read.await? else { return Ok(()) };
    let events: &[RoomEvent] = std::slice::from_ref(&event);
    let notices = notices::in_room(app, room_id, vec![pusher], events).await?;
    let told = app.pushes.gateways.tell(notices).await;
    if !told.put_off.is_empty() {
        return Err(JobError::Gateway);
    }
    Ok(note(app, told, None).await?)
}

impl Notice {
    fn key(&self) -> PusherKey<'_> {
        PusherKey { app_id: &self.app_id, pushkey: &self.pushkey }
    }

    fn put_off(&self) -> PutOff {
        PutOff {
            user_id: self.user_id.clone(),
            app_id: self.app_id.clone(),
            pushkey: self.pushkey.clone(),
            room_id: self.room_id.clone(),
            event_id: self.event_id.clone(),
        }
    }
}
