//! The notices on their way to the gateways: of each pusher one after another, from its queue in the database. A gateway that is slow or silent holds up
//! its own pushers, and no others.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keystead_core::room::RoomEvent;
use keystead_store::{
    Error,
    push_queue::{self, Next, PusherId, Taken},
    pushers::StoredPusher,
    receipts::{self, MAIN},
    rooms,
};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use url::Position;

use super::{
    LEASE,
    gateway::{self, Line},
    notices::{self, Notice, Target},
};
use crate::{app::App, outside::Outside};

/// How many notices are told at once, and how many of them to one gateway: a host and a port, which a great many pushers may have in common.
const TURNS: usize = 512;
const TURNS_OF_A_GATEWAY: usize = 32;
/// How many notices are read at once, and for how long they are told without looking whether the pusher is still what it was.
const BATCH: u32 = 10;
const FRESH: Duration = Duration::from_millis(250);
/// After what time it is looked what the user has done through other replicas since an event was gone through.
const LATE_MS: u64 = 5_000;
/// How long to wait for a database that cannot be reached.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);
/// How long a pusher is left alone after its gateway has not taken something: the first time, each further time twice as long, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// After so many times what is in its queue is given up: about a day.
const MAX_ATTEMPTS: i64 = 30;

/// What is on its way.
pub(super) struct Deliveries {
    outside: Outside,
    turns: Arc<Semaphore>,
    /// The turns of gateways that pushers are being told at, by host and port.
    gateways: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// The pushers that are being told, and whether they were taken once more meanwhile.
    active: Mutex<HashMap<PusherId, bool>>,
}

/// Notes that a pusher is told by a task of this replica, until the task ends, however it does.
struct Active<'a> {
    deliveries: &'a Deliveries,
    id: PusherId,
    has_ended: bool,
}

impl Active<'_> {
    /// Ends it, unless the pusher was taken once more meanwhile.
    fn ends(&mut self) -> bool {
        let mut active = lock(&self.deliveries.active);
        if active.get_mut(&self.id).is_some_and(std::mem::take) {
            return false;
        }
        active.remove(&self.id);
        self.has_ended = true;
        true
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            lock(&self.deliveries.active).remove(&self.id);
        }
    }
}

/// How the telling of a pusher goes on.
enum Then {
    /// With what comes next in its queue.
    On,
    /// Not now.
    Stop,
}

impl Deliveries {
    pub(super) fn new(outside: Outside) -> Self {
        let (turns, gateways, active) = (Arc::new(Semaphore::new(TURNS)), Mutex::default(), Mutex::default());
        Self { outside, turns, gateways, active }
    }

    /// Tells pushers that `holder`, which is this replica, has taken.
    pub(super) fn start(&self, app: &Arc<App>, holder: &Arc<str>, taken: Vec<Taken>) {
        for Taken { id, pusher } in taken {
            match lock(&self.active).entry(id.clone()) {
                Entry::Occupied(mut again) => drop(again.insert(true)),
                Entry::Vacant(entry) => {
                    entry.insert(false);
                    let (app_of_task, holder) = (Arc::clone(app), Arc::clone(holder));
                    app.shutdown.tasks().spawn(async move { work(&app_of_task, &holder, id, &pusher).await });
                }
            }
        }
    }

    /// Waits for a turn at a gateway.
    async fn turn(&self, gateway: &str) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let of_gateway = {
            let mut gateways = lock(&self.gateways);
            // Those at which nobody is told anything have all their turns, and no task waits for one.
            gateways.retain(|_, turns| {
                Arc::strong_count(turns) > 1 || turns.available_permits() < TURNS_OF_A_GATEWAY
            });
            let all = || Arc::new(Semaphore::new(TURNS_OF_A_GATEWAY));
            Arc::clone(gateways.entry(gateway.to_owned()).or_insert_with(all))
        };
        let own = of_gateway.acquire_owned().await.ok()?;
        Some((own, Arc::clone(&self.turns).acquire_owned().await.ok()?))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells a pusher until its queue is empty, its gateway does not take something, or the server stops.
async fn work(app: &Arc<App>, holder: &str, id: PusherId, pusher: &str) {
    let mut active = Active { deliveries: &app.pushes.deliveries, id, has_ended: false };
    let (mut line, mut told) = (Line::default(), Vec::new());
    let mut gateway = gateway_of(pusher);
    loop {
        let _turn = tokio::select! {
            turn = app.pushes.deliveries.turn(&gateway) => turn,
            () = app.shutdown.draining() => {
                // Another replica is to go on at once.
                return put_off(app, (holder, &active.id), &told, (Duration::ZERO, None)).await;
            }
        };
        let next = app.store.write("next_push", |tx| {
            let (id, told) = (&active.id, &told);
            async move { push_queue::next(&tx, (holder, id), told, LEASE, BATCH).await }
        });
        let next: Result<Option<Next>, Error> = next.await;
        let then = match next {
            Ok(Some(next)) if next.events.is_empty() => Then::Stop,
            Ok(Some(next)) => {
                told.clear();
                let was_at = std::mem::replace(&mut gateway, gateway_of(&next.pusher));
                // Its turns are others.
                if gateway != was_at {
                    Then::On
                } else {
                    tell(app, (holder, &active.id), next, &mut line, &mut told).await
                }
            }
            // Another replica has it, or the client has removed it.
            Ok(None) => Then::Stop,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot read what is to be pushed");
                tokio::time::sleep(DATABASE_PAUSE).await;
                Then::On
            }
        };
        if let Then::Stop = then {
            if active.ends() {
                return;
            }
            told.clear();
        }
    }
}

/// The host and the port that a pusher's gateway is at.
fn gateway_of(pusher: &str) -> String {
    let place = |target: Target| target.gateway[Position::BeforeHost..Position::AfterPort].to_owned();
    Target::read(pusher).map(place).unwrap_or_default()
}

/// Tells a pusher of the events that come next, as long as what was read of it is fresh.
async fn tell(
    app: &Arc<App>,
    (holder, id): (&str, &PusherId),
    next: Next,
    line: &mut Line,
    told: &mut Vec<OwnedEventId>,
) -> Then {
    let read_at = Instant::now();
    let Next { pusher, attempts, events } = next;
    let ids: Vec<OwnedEventId> = events.iter().map(|event| event.event_id.clone()).collect();
    let stored = StoredPusher { user_id: id.user_id.clone(), pusher: pusher.clone() };
    let events =
        events.into_iter().filter_map(|event| Error::pass_over(event.into_room_event()).ok().flatten());
    let notices = match still_notifying(app, &stored, events.collect()).await {
        Ok(notices) => notices,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read what is to be pushed");
            tokio::time::sleep(DATABASE_PAUSE).await;
            return Then::On;
        }
    };
    let (mut notices, mut was_asked) = (notices.into_iter().peekable(), false);
    for event_id in ids {
        let Some(notice) = notices.next_if(|notice| notice.event_id == event_id) else {
            // The event notifies nobody any more.
            told.push(event_id);
            continue;
        };
        if was_asked && (read_at.elapsed() > FRESH || app.shutdown.is_draining()) {
            return Then::On;
        }
        was_asked = true;
        match gateway::send(&app.pushes.deliveries.outside, line, &notice).await {
            Ok(rejected) => {
                app.metrics.pushes("sent", 1);
                if rejected.contains(&notice.target.pushkey) {
                    app.metrics.pushes("rejected", 1);
                    reject(app, id, &pusher).await;
                    // If the client has set another one meanwhile, that is told of this event.
                    return Then::On;
                }
                told.push(event_id);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    gateway = notice.target.gateway.host_str(),
                    "cannot tell a push gateway"
                );
                app.metrics.pushes("put_off", 1);
                if attempts >= MAX_ATTEMPTS {
                    give_up(app, id).await;
                }
                put_off(app, (holder, id), told, (pause(attempts), Some(&pusher))).await;
                return Then::Stop;
            }
        }
    }
    Then::On
}

/// What a pusher is still to be told of events: not of those that the user has read by now, and what the push rules and the rooms say now.
async fn still_notifying(
    app: &Arc<App>,
    pusher: &StoredPusher,
    mut events: Vec<RoomEvent>,
) -> Result<Vec<Notice>, Error> {
    let now = app.clock.now();
    if events.iter().any(|event| age(now, event.pdu.origin_server_ts) > LATE_MS) {
        // The user may have left a room or muted it since, through whichever replica.
        let _ = app.fence().await;
    }
    let queued = &events;
    let read = app.store.read("read_since_push", |tx| async move {
        let threads = rooms::threads_of(&tx, queued).await?;
        let room_ids: BTreeSet<&RoomId> = queued.iter().map(|event| &*event.pdu.room_id).collect();
        let read = receipts::read_positions(&tx, &Vec::from_iter(room_ids), &pusher.user_id).await?;
        let is_read = |event: &&RoomEvent| {
            let thread = threads.get(&event.pdu.event_id).map_or(MAIN, |root| root.as_str());
            let upto = read.get(&event.pdu.room_id).and_then(|read| read.in_thread(thread));
            upto >= Some(event.position)
        };
        Ok::<_, Error>(queued.iter().filter(is_read).map(|event| event.pdu.event_id.clone()).collect())
    });
    let read: HashSet<OwnedEventId> = read.await?;
    events.retain(|event| !read.contains(&event.pdu.event_id));
    let mut notices = Vec::with_capacity(events.len());
    for event in &events {
        let (room_id, event) = (&event.pdu.room_id, std::slice::from_ref(event));
        notices.extend(notices::in_room(app, room_id, vec![pusher.clone()], event).await?);
    }
    Ok(notices)
}

fn age(now: MilliSecondsSinceUnixEpoch, sent: MilliSecondsSinceUnixEpoch) -> u64 {
    u64::from(now.0).saturating_sub(sent.0.into())
}

/// Lets go of a pusher for some time. If the database cannot be reached, it is let go when the lease has run out.
async fn put_off(
    app: &App,
    (holder, id): (&str, &PusherId),
    told: &[OwnedEventId],
    when: (Duration, Option<&str>),
) {
    let put_off = app
        .store
        .write("put_off_push", |tx| async move { push_queue::put_off(&tx, (holder, id), told, when).await });
    warn(put_off.await);
}

async fn reject(app: &App, id: &PusherId, pusher: &str) {
    let rejected =
        app.store.write("reject_pusher", |tx| async move { push_queue::reject(&tx, id, pusher).await });
    warn(rejected.await);
}

async fn give_up(app: &App, id: &PusherId) {
    warn(app.store.write("give_up_push", |tx| async move { push_queue::clear(&tx, id).await }).await);
}

fn warn(noted: Result<(), Error>) {
    if let Err(error) = noted {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot note what was pushed");
    }
}

/// How long a pusher is left alone after it has failed so many times before.
fn pause(attempts: i64) -> Duration {
    let doubled = u32::try_from(attempts.clamp(0, 16)).unwrap_or_default();
    FIRST_PAUSE.saturating_mul(1 << doubled).min(LONGEST_PAUSE)
}
