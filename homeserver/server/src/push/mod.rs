//! Telling push gateways of events, for clients that do not sync.
//!
//! Nothing is written when an event is: replicas divide the shards of rooms among themselves, and whoever holds one goes through its events after they
//! were committed, from where the cursor in the database stands. Whom an event notifies is noted with the cursor, of each pusher the newest
//! event only; then the gateways are told ([`deliveries`]). What a gateway does not take stays noted, and is tried again by any replica.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#push-notifications>,
//! <https://spec.matrix.org/v1.19/push-gateway-api/>.

mod deliveries;
mod gateway;
mod notices;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use keystead_store::{
    Error,
    push_cursors::{self, Cursor},
    pushers::{self, Due, Pending},
    receipts::{self, MAIN},
    rooms::{self, Bounds},
};
use openssl::error::ErrorStack;
use tokio::{sync::Notify, time::Instant};

use self::{deliveries::Deliveries, notices::Notice};
use crate::{
    app::App,
    config::push::PushSettings,
    jobs::after,
    outside::{Guard, Outside},
    streams::Item,
};

/// How many pushers a user may have.
pub(crate) const MAX_PUSHERS: i64 = 50;

/// How often a replica says that it holds its shards, looks for more, and for what is to be tried again; for how long they are left to it.
const RENEW: Duration = Duration::from_secs(5);
const HOLD: Duration = Duration::from_secs(30);
/// How long what comes is gathered before it is gone through.
const REST: Duration = Duration::from_millis(20);
/// How many events are gone through at once.
const EVENTS: usize = 200;
/// For how long telling somebody is left to the replica that has begun to.
const LEASE: Duration = Duration::from_secs(120);
/// How many pushers are tried again at once.
const RETRIES: u32 = 100;
/// Characters of a holder's name.
const NAME_LENGTH: usize = 16;

/// What tells push gateways of events.
pub struct Pushes {
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
    pub fn new(settings: &PushSettings) -> Result<Self, ErrorStack> {
        let guard = Guard::new(settings.allowed_networks.clone(), settings.denied_networks.clone());
        Ok(Self {
            deliveries: Deliveries::new(Outside::new(guard)?),
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
            held = match look_after(&app, holder, &held).await {
                Ok(held) => held,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot look after pushes");
                    Vec::new()
                }
            };
            app.pushes.holds.store(!held.is_empty(), Ordering::Relaxed);
        }
        for cursor in &mut held {
            match tell(&app, holder, cursor).await {
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

/// Says how far the shards have come and takes this replica's share of them, none while there is no pusher; and tells those who are to be told again.
async fn look_after(app: &Arc<App>, holder: &str, held: &[Cursor]) -> Result<Vec<Cursor>, Error> {
    let exist = app.store.read_one("pushers_exist", |tx| async move { pushers::exist(&tx).await }).await?;
    if !exist && held.is_empty() {
        return Ok(Vec::new());
    }
    let now = app.clock.now();
    let (held, due) = app
        .store
        .write("hold_push_cursors", |tx| async move {
            if !exist {
                push_cursors::release(&tx, holder).await?;
                return Ok((Vec::new(), Vec::new()));
            }
            push_cursors::begin(&tx).await?;
            let held = push_cursors::hold(&tx, holder, held, HOLD).await?;
            Ok::<_, Error>((held, pushers::take_due(&tx, now, after(now, LEASE), RETRIES).await?))
        })
        .await?;
    for due in due {
        tell_again(app, due).await?;
    }
    Ok(held)
}

/// Tells the gateways of what stands after the cursor, as far as this replica has read the shard. Returns whether it still holds the shard.
async fn tell(app: &Arc<App>, holder: &str, cursor: &mut Cursor) -> Result<bool, Error> {
    let shard = cursor.shard;
    while cursor.position < app.tail.position(shard) && !app.shutdown.is_draining() {
        let bounds = Bounds { after: cursor.position, upto: app.tail.position(shard) };
        let read = app.store.read_one("events_to_push", |tx| async move {
            rooms::events_of_shard(&tx, shard, bounds, EVENTS).await
        });
        let (events, reach) = read.await?;
        let notices = notices::of(app, &events).await?;
        let next = Cursor { shard, position: reach };
        if !notices.is_empty() && !note(app, holder, next, &notices).await? {
            return Ok(false);
        }
        app.pushes.deliveries.add(app, notices);
        *cursor = next;
    }
    Ok(true)
}

/// Notes what is to be told, and that the shard has come so far. Returns whether this replica still holds the shard; if not, nothing is noted.
async fn note(app: &App, holder: &str, next: Cursor, notices: &[Notice]) -> Result<bool, Error> {
    // The last one for each pusher, as they are in the order of their events.
    let newest: HashMap<_, _> = notices.iter().map(|notice| (notice.pusher_id(), notice.pending())).collect();
    let (newest, retry_at) = (&Vec::from_iter(newest.into_values()), after(app.clock.now(), LEASE));
    let noted = app.store.write("note_pushes", |tx| async move {
        let holds = push_cursors::save(&tx, holder, next).await?;
        if holds {
            pushers::note_pending(&tx, newest, retry_at).await?;
        }
        Ok(holds)
    });
    noted.await
}

/// Tells a pusher of what its gateway has not taken, unless the user has read it meanwhile.
async fn tell_again(app: &Arc<App>, due: Due) -> Result<(), Error> {
    let Due { pusher, room_id, event_id } = &due;
    let read = app.store.read("push_again", |tx| async move {
        let Some(event) = rooms::event(&tx, room_id, event_id).await? else { return Ok(None) };
        let threads = rooms::threads_of(&tx, [&event]).await?;
        let thread = threads.get(event_id).map_or(MAIN, |root| root.as_str());
        let read = receipts::read_positions(&tx, &[room_id], &pusher.user_id).await?;
        let is_read = read.get(room_id).and_then(|read| read.in_thread(thread)) >= Some(event.position);
        Ok::<_, Error>((!is_read).then_some(event))
    });
    let event = Error::pass_over(read.await)?.flatten();
    let notices = match &event {
        Some(event) => {
            notices::in_room(app, room_id, vec![pusher.clone()], std::slice::from_ref(event)).await?
        }
        None => Vec::new(),
    };
    if notices.is_empty() {
        return deliveries::forget(app, &due).await;
    }
    app.pushes.deliveries.add(app, notices);
    Ok(())
}

impl Notice {
    fn pending(&self) -> Pending<'_> {
        Pending {
            key: self.target.key(),
            user_id: &self.user_id,
            room_id: &self.room_id,
            event_id: &self.event_id,
        }
    }
}
