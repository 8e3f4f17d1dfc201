//! Telling push gateways of events, for clients that do not sync.
//!
//! Nothing is written when an event is: replicas divide the shards of rooms among themselves, and whoever holds one goes through its events after they
//! were committed, from where the cursor in the database stands. Whom an event notifies is noted with the cursor, in a queue of each pusher; then the
//! gateways are told ([`deliveries`]). What a gateway does not take stays in the queue, and is tried again by any replica.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#push-notifications>,
//! <https://spec.matrix.org/v1.19/push-gateway-api/>.

mod deliveries;
mod gateway;
mod notices;
mod progress;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use keystead_store::{
    Error,
    push_cursors::{self, Cursor},
    push_queue::{self, Taken},
    pushers,
    rooms::{self, Bounds},
};
use openssl::error::ErrorStack;
use tokio::{sync::Notify, time::Instant};

pub use self::progress::Progress;
use self::{deliveries::Deliveries, notices::Notice};
use crate::{
    app::App,
    config::push::PushSettings,
    entropy::Entropy,
    outside::{Guard, Outside},
    streams::Item,
};

/// How many pushers a user may have.
pub(crate) const MAX_PUSHERS: i64 = 50;

/// How often a replica says that it holds its shards, looks for more, and for what is to be tried again; for how long they are left to it.
const RENEW: Duration = Duration::from_secs(5);
const HOLD: Duration = Duration::from_secs(30);
/// How often a replica that holds shards looks for events that it has not heard of.
const LOOK: Duration = Duration::from_millis(250);
/// How long what comes is gathered before it is gone through.
const REST: Duration = Duration::from_millis(20);
/// How many events are gone through at once.
const EVENTS: usize = 200;
/// For how long telling a pusher is left to the replica that has begun to, each time that it says so.
const LEASE: Duration = Duration::from_secs(30);
/// How many pushers are taken at once to be told again.
const RETRIES: u32 = 100;
/// Characters of a holder's name.
const NAME_LENGTH: usize = 16;

/// What tells push gateways of events.
pub struct Pushes {
    /// What this replica is called as the holder of shards and pushers.
    holder: Arc<str>,
    deliveries: Deliveries,
    include_content: bool,
    is_enabled: bool,
    /// Whether this replica holds shards.
    holds: AtomicBool,
    /// There are events, or there is a pusher where none was before.
    news: Notify,
    /// There is a pusher where none was before.
    is_new: AtomicBool,
}

impl Pushes {
    /// As the settings say.
    ///
    /// # Errors
    /// When OpenSSL cannot be used.
    pub fn new(settings: &PushSettings, entropy: &dyn Entropy) -> Result<Self, ErrorStack> {
        let guard = Guard::new(settings.allowed_networks.clone(), settings.denied_networks.clone());
        Ok(Self {
            holder: entropy.readable(NAME_LENGTH).into(),
            deliveries: Deliveries::new(Outside::new(guard)?),
            include_content: settings.include_content,
            is_enabled: settings.enabled,
            holds: AtomicBool::default(),
            news: Notify::default(),
            is_new: AtomicBool::default(),
        })
    }

    /// What this replica is called as the holder of shards and pushers.
    pub fn holder(&self) -> &Arc<str> {
        &self.holder
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
    let mut held: Vec<Cursor> = Vec::new();
    let mut renewed: Option<Instant> = None;
    while !app.shutdown.is_draining() {
        let is_due = renewed.is_none_or(|renewed| renewed.elapsed() >= RENEW);
        if app.pushes.is_new.swap(false, Ordering::Relaxed) || is_due {
            renewed = Some(Instant::now());
            held = match look_after(&app, &held).await {
                Ok(held) => held,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot look after pushes");
                    Vec::new()
                }
            };
            app.pushes.holds.store(!held.is_empty(), Ordering::Relaxed);
        }
        for cursor in &mut held {
            match go_through(&app, cursor).await {
                Ok(true) => {}
                // Another replica holds it now.
                Ok(false) => renewed = None,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot go through events for pushes"
                    );
                    renewed = None;
                    tokio::time::sleep(REST).await;
                }
            }
        }
        tokio::select! {
            () = app.shutdown.draining() => break,
            () = app.pushes.news.notified() => tokio::time::sleep(REST).await,
            () = tokio::time::sleep(if held.is_empty() { RENEW } else { LOOK }) => {
                // A replica where nobody waits for news does not hear of it.
                if !held.is_empty()
                    && let Err(error) = app.fence().await
                {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for events to push");
                }
            }
        }
    }
    let (last, holder) = (&held, &*app.pushes.holder);
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

/// Says how far the shards have come and takes this replica's share of them, none while there is no pusher; and the pushers that are to be told again.
async fn look_after(app: &Arc<App>, held: &[Cursor]) -> Result<Vec<Cursor>, Error> {
    app.pushes.deliveries.tidy();
    let exist = app.store.read_one("pushers_exist", |tx| async move { pushers::exist(&tx).await }).await?;
    if !exist && held.is_empty() {
        return Ok(Vec::new());
    }
    let (name, began) = (&*app.pushes.holder, Instant::now());
    let (held, due) = app
        .store
        .write("hold_push_cursors", |tx| async move {
            if !exist {
                push_cursors::release(&tx, name).await?;
                return Ok((Vec::new(), Vec::new()));
            }
            push_cursors::begin(&tx).await?;
            let held = push_cursors::hold(&tx, name, held, HOLD).await?;
            Ok::<_, Error>((held, push_queue::take_due(&tx, name, LEASE, RETRIES).await?))
        })
        .await?;
    app.pushes.deliveries.start(app, due, Vec::new(), began);
    Ok(held)
}

/// Goes through what stands after the cursor, as far as this replica has read the shard. Returns whether it still holds the shard.
async fn go_through(app: &Arc<App>, cursor: &mut Cursor) -> Result<bool, Error> {
    let shard = cursor.shard;
    while cursor.position < app.tail.position(shard) && !app.shutdown.is_draining() {
        let bounds = Bounds { after: cursor.position, upto: app.tail.position(shard) };
        let read = app.store.read_one("events_to_push", |tx| async move {
            rooms::events_of_shard(&tx, shard, bounds, EVENTS).await
        });
        let (events, reach) = read.await?;
        let read_at = Instant::now();
        let notices = notices::of(app, &events).await?;
        let next = Cursor { shard, position: reach };
        if !notices.is_empty() {
            let Some(taken) = queue(app, next, &notices).await? else { return Ok(false) };
            app.pushes.deliveries.start(app, taken, notices, read_at);
        }
        *cursor = next;
    }
    Ok(true)
}

/// Notes what is to be told, and that the shard has come so far. Returns the pushers that this replica is to tell; `None` if it does not hold the shard any
/// more: then nothing is noted.
async fn queue(app: &App, next: Cursor, notices: &[Notice]) -> Result<Option<Vec<Taken>>, Error> {
    let (holder, queued): (_, Vec<_>) = (&*app.pushes.holder, notices.iter().map(Notice::queued).collect());
    let queued = &queued;
    let noted = app.store.write("note_pushes", |tx| async move {
        if !push_cursors::save(&tx, holder, next).await? {
            return Ok(None);
        }
        push_queue::add(&tx, holder, queued, LEASE).await.map(Some)
    });
    noted.await
}
