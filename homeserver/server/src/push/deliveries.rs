//! The notices on their way to the gateways: of each pusher one after another, from its queue in the database. A gateway that is slow or silent holds up
//! its own pushers, and no others.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keystead_core::room::RoomEvent;
use keystead_store::{
    Error,
    push_queue::{self, PusherId, Taken, Told},
    pushers::StoredPusher,
    receipts::{self, MAIN},
    rooms,
};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    gateway::Gateways,
    notices::{self, Notice, Target},
    progress::BATCH,
};
use crate::{app::App, outside::Outside};

/// How many notices are told at once, and how many of them to one gateway: a host and a port, which a great many pushers may have in common.
const TURNS: usize = 512;
const TURNS_OF_A_GATEWAY: usize = 32;
/// For how long notices are told without looking whether the pusher is still what it was.
const FRESH: Duration = Duration::from_millis(250);
/// Up to what age events are told as they were queued: the user has hardly read them yet.
const NEW_MS: u64 = 1_000;
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
    gateways: Gateways,
    turns: Arc<Semaphore>,
    /// The turns of gateways that pushers are being told at, by host and port.
    turns_of_gateways: Mutex<HashMap<String, Arc<Semaphore>>>,
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

/// At one gateway, and among all.
type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What a pusher is told next.
struct Batch {
    /// The JSON that the client set.
    pusher: String,
    /// Where its gateway is, unless that need not be told anything.
    gateway: Option<String>,
    /// How often its gateway has not taken what comes first.
    attempts: i64,
    /// The events.
    events: Vec<OwnedEventId>,
    /// What it is to be told of them; nothing of those that do not notify the user any more.
    notices: Vec<Notice>,
    /// When all this was read.
    read_at: Instant,
}

/// How the telling of a pusher goes on.
enum Then {
    /// With this.
    On(Batch),
    /// With what will be read.
    Again,
    /// Not now: nothing is left, another replica has the pusher, or it is left alone.
    Stop,
}

impl Deliveries {
    pub(super) fn new(outside: Outside) -> Self {
        Self {
            gateways: Gateways::new(outside),
            turns: Arc::new(Semaphore::new(TURNS)),
            turns_of_gateways: Mutex::default(),
            active: Mutex::default(),
        }
    }

    /// Tells pushers that this replica has taken. `notices` have been queued for them at `read_at`.
    pub(super) fn start(&self, app: &Arc<App>, taken: Vec<Taken>, notices: Vec<Notice>, read_at: Instant) {
        let mut queued: HashMap<PusherId, Vec<Notice>> = HashMap::new();
        for notice in notices {
            queued.entry(notice.pusher()).or_default().push(notice);
        }
        for Taken { id, pusher, was_idle } in taken {
            match lock(&self.active).entry(id.clone()) {
                Entry::Occupied(mut again) => drop(again.insert(true)),
                Entry::Vacant(entry) => {
                    entry.insert(false);
                    let notices = queued.remove(&id).filter(|_| was_idle).unwrap_or_default();
                    let gateway = Target::read(&pusher).map(|target| target.place()).unwrap_or_default();
                    let first =
                        Batch::queued(pusher, notices, read_at).filter(|batch| batch.is_new(app.clock.now()));
                    let app_of_task = Arc::clone(app);
                    app.shutdown.tasks().spawn(async move { work(&app_of_task, id, gateway, first).await });
                }
            }
        }
    }

    /// Lets go of what is no longer used.
    pub(super) fn tidy(&self) {
        self.gateways.end_old_lines();
    }

    /// Waits for a turn at a gateway.
    async fn turn(&self, gateway: &str) -> Option<Turn> {
        let of_gateway = {
            let mut gateways = lock(&self.turns_of_gateways);
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

impl Batch {
    /// What has just been queued for a pusher for which nothing else waited. It need not be read again, unless the client has set another one since.
    fn queued(pusher: String, mut notices: Vec<Notice>, read_at: Instant) -> Option<Self> {
        notices.truncate(usize::try_from(BATCH).unwrap_or(usize::MAX));
        let target = &notices.first()?.target;
        if target.stored != pusher {
            return None;
        }
        let gateway = Some(target.place());
        let events = notices.iter().map(|notice| notice.event.pdu.event_id.clone()).collect();
        Some(Self { pusher, gateway, attempts: 0, events, notices, read_at })
    }

    /// Whether the read receipts need not be asked.
    fn is_new(&self, now: MilliSecondsSinceUnixEpoch) -> bool {
        self.notices.iter().all(|notice| age(now, notice.event.pdu.origin_server_ts) <= NEW_MS)
    }

    fn is_fresh(&self) -> bool {
        self.read_at.elapsed() < FRESH
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells a pusher until its queue is empty, its gateway does not take something, or the server stops; a batch first, if it is given one.
async fn work(app: &App, id: PusherId, mut gateway: String, mut batch: Option<Batch>) {
    let mut active = Active { deliveries: &app.pushes.deliveries, id, has_ended: false };
    let mut told = Told { id: active.id.clone(), events: Vec::new() };
    loop {
        let Some(_turn) = turn(app, &gateway, &mut batch).await else {
            // Another replica is to go on at once.
            return put_off(app, &told, (Duration::ZERO, None)).await;
        };
        let next = match batch.take() {
            Some(batch) => Then::On(batch),
            None => read(app, &mut told).await,
        };
        let then = match next {
            // What comes next is read while it still has its turn: mostly there is nothing.
            Then::On(batch) if batch.gateway.as_ref().is_none_or(|place| *place == gateway) => {
                if tell(app, batch, &mut told).await { read(app, &mut told).await } else { Then::Stop }
            }
            // Or the turns are those of another gateway.
            next => next,
        };
        match then {
            Then::On(next) => {
                gateway = next.gateway.clone().unwrap_or(gateway);
                batch = Some(next);
            }
            Then::Again => {}
            Then::Stop => {
                if active.ends() {
                    return;
                }
                told.events.clear();
            }
        }
    }
}

/// Waits for a turn at a gateway; `None` if the server stops. What was read is not kept until it would have to be read again.
async fn turn(app: &App, gateway: &str, batch: &mut Option<Batch>) -> Option<Turn> {
    let mut turn = pin!(app.pushes.deliveries.turn(gateway));
    loop {
        let old_at = batch.as_ref().map(|batch| batch.read_at + FRESH);
        tokio::select! {
            biased;
            () = app.shutdown.draining() => return None,
            () = tokio::time::sleep_until(old_at.unwrap_or_else(Instant::now)), if old_at.is_some() => *batch = None,
            turn = &mut turn => return turn,
        }
    }
}

/// Notes what a pusher was told, and reads what comes next.
async fn read(app: &App, told: &mut Told) -> Then {
    let read_at = Instant::now();
    let next = match app.push_progress.submit(told.clone()).await {
        Ok(next) => next,
        Err(error) => return unread(&error).await,
    };
    told.events.clear();
    let Some(next) = next.filter(|next| !next.events.is_empty()) else { return Then::Stop };
    let events: Vec<OwnedEventId> = next.events.iter().map(|event| event.event_id.clone()).collect();
    let stored = StoredPusher { user_id: told.id.user_id.clone(), pusher: next.pusher.clone() };
    let queued =
        next.events.into_iter().filter_map(|event| Error::pass_over(event.into_room_event()).ok().flatten());
    match still_notifying(app, &stored, queued.collect()).await {
        Ok(notices) => {
            let gateway = notices.first().map(|notice| notice.target.place());
            Then::On(Batch {
                pusher: next.pusher,
                gateway,
                attempts: next.attempts,
                events,
                notices,
                read_at,
            })
        }
        Err(error) => unread(&error).await,
    }
}

async fn unread(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Then {
    tracing::warn!(error = error as &dyn std::error::Error, "cannot read what is to be pushed");
    tokio::time::sleep(DATABASE_PAUSE).await;
    Then::Again
}

/// Tells a pusher of the events of a batch, as long as what was read is fresh. Returns whether it goes on; otherwise the pusher has been put off.
async fn tell(app: &App, batch: Batch, told: &mut Told) -> bool {
    let mut notices = batch.notices.iter().peekable();
    let mut was_asked = false;
    for event_id in &batch.events {
        let Some(notice) = notices.next_if(|notice| notice.event.pdu.event_id == *event_id) else {
            // The event notifies nobody any more.
            told.events.push(event_id.clone());
            continue;
        };
        if was_asked && (!batch.is_fresh() || app.shutdown.is_draining()) {
            return true;
        }
        was_asked = true;
        match app.pushes.deliveries.gateways.send(notice).await {
            Ok(rejected) => {
                app.metrics.pushes("sent", 1);
                if rejected.contains(&notice.target.pushkey) {
                    app.metrics.pushes("rejected", 1);
                    reject(app, &told.id, &batch.pusher).await;
                    // If the client has set another one meanwhile, that is told of this event.
                    return true;
                }
                told.events.push(event_id.clone());
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    gateway = notice.target.gateway.host_str(),
                    "cannot tell a push gateway"
                );
                app.metrics.pushes("put_off", 1);
                if batch.attempts >= MAX_ATTEMPTS {
                    give_up(app, &told.id).await;
                }
                put_off(app, told, (pause(batch.attempts), Some(&batch.pusher))).await;
                return false;
            }
        }
    }
    true
}

/// What a pusher is still to be told of events: not of those that the user has read by now, and what the push rules and the rooms say now.
async fn still_notifying(
    app: &App,
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
async fn put_off(app: &App, told: &Told, when: (Duration, Option<&str>)) {
    let holder = app.pushes.holder();
    let put_off = app
        .store
        .write("put_off_push", |tx| async move { push_queue::put_off(&tx, holder, told, when).await });
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
