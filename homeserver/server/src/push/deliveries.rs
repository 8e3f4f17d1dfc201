//! The notices on their way to the gateways: of each user one after another, so that a gateway that is slow or silent holds up nobody but the user who
//! has named it.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keystead_store::{
    Error, WriteTx,
    pushers::{self, Due, Pending},
};
use ruma::{OwnedUserId, api::client::push::Pusher};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    LEASE,
    gateway::{self, Line},
    notices::{Notice, PusherId},
};
use crate::{app::App, jobs::after, outside::Outside};

/// How many users' gateways are told at once.
const TURNS: usize = 128;
/// How many notices of one user wait at most; of more the oldest are left out.
const WAITING: usize = 200;
/// After how many notices the database is told what was done.
const NOTED_AFTER: usize = 20;
/// How long a pusher is left alone after its gateway has not taken something: the first time, each further time twice as long, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// After so many times what is pending is given up: about a day.
const MAX_ATTEMPTS: i64 = 30;

/// What is on its way.
pub(super) struct Deliveries {
    outside: Outside,
    turns: Semaphore,
    /// What waits for each user who is being told of something.
    waiting: Mutex<HashMap<OwnedUserId, VecDeque<Notice>>>,
    /// The pushers that are left alone, and until when.
    resting: Mutex<HashMap<PusherId, Instant>>,
}

/// What became of notices, to be noted.
#[derive(Default)]
struct Done {
    told: Vec<Notice>,
    rejected: Vec<Notice>,
    failed: Vec<Notice>,
}

impl Deliveries {
    pub(super) fn new(outside: Outside) -> Self {
        let (turns, waiting, resting) = (Semaphore::new(TURNS), Mutex::default(), Mutex::default());
        Self { outside, turns, waiting, resting }
    }

    /// Takes over notices. Those of pushers that are left alone stay in the database until then.
    pub(super) fn add(&self, app: &Arc<App>, notices: Vec<Notice>) {
        let mut put_off = 0;
        for notice in notices {
            // Who has set the pusher anew, or was told by another replica, is not left alone any more.
            if notice.target.attempts == 0 {
                lock(&self.resting).remove(&notice.pusher_id());
            } else if self.is_resting(&notice.pusher_id()) {
                put_off += 1;
                continue;
            }
            let user_id = notice.user_id.clone();
            let mut waiting = lock(&self.waiting);
            match waiting.entry(user_id) {
                Entry::Occupied(mut queue) => {
                    let queue = queue.get_mut();
                    queue.push_back(notice);
                    while queue.len() > WAITING {
                        queue.pop_front();
                    }
                }
                Entry::Vacant(entry) => {
                    let user_id = entry.key().clone();
                    entry.insert(VecDeque::from([notice]));
                    let app_of_task = Arc::clone(app);
                    app.shutdown.tasks().spawn(async move { work(&app_of_task, &user_id).await });
                }
            }
        }
        app.metrics.pushes("put_off", put_off);
    }

    /// The next notice for a user; the queue goes with its last one.
    fn next(&self, user_id: &OwnedUserId) -> Option<Notice> {
        let mut waiting = lock(&self.waiting);
        let next = waiting.get_mut(user_id)?.pop_front();
        if next.is_none() {
            waiting.remove(user_id);
        }
        next
    }

    fn is_resting(&self, pusher: &PusherId) -> bool {
        let mut resting = lock(&self.resting);
        match resting.get(pusher) {
            Some(until) if *until > Instant::now() => true,
            Some(_) => {
                resting.remove(pusher);
                false
            }
            None => false,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells a user's gateways until nothing waits for them any more, or the server stops.
async fn work(app: &App, user_id: &OwnedUserId) {
    let deliveries = &app.pushes.deliveries;
    let Ok(_turn) = deliveries.turns.acquire().await else { return };
    let (mut line, mut done) = (Line::default(), Done::default());
    let (mut noted, mut gone) = (Instant::now(), HashSet::new());
    while let Some(notice) = deliveries.next(user_id) {
        if app.shutdown.is_draining() {
            // Another replica is to go on at once.
            let left = std::iter::once(notice).chain(std::iter::from_fn(|| deliveries.next(user_id)));
            release(app, &left.collect::<Vec<_>>()).await;
            break;
        }
        let pusher = notice.pusher_id();
        if gone.contains(&pusher) {
            continue;
        }
        if deliveries.is_resting(&pusher) {
            app.metrics.pushes("put_off", 1);
            continue;
        }
        match gateway::send(&deliveries.outside, &mut line, &notice).await {
            Ok(rejected) if rejected.contains(&notice.target.pushkey) => {
                gone.insert(pusher);
                done.rejected.push(notice);
            }
            Ok(_) => done.told.push(notice),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    gateway = notice.target.gateway.host_str(),
                    "cannot tell a push gateway"
                );
                lock(&deliveries.resting).insert(pusher, Instant::now() + pause(notice.target.attempts));
                done.failed.push(notice);
            }
        }
        if done.told.len() >= NOTED_AFTER || noted.elapsed() > LEASE / 4 || !done.failed.is_empty() {
            note(app, std::mem::take(&mut done)).await;
            noted = Instant::now();
        }
    }
    note(app, done).await;
}

/// Notes what became of notices. If the database cannot be reached, they are told once more.
async fn note(app: &App, done: Done) {
    if done.told.is_empty() && done.rejected.is_empty() && done.failed.is_empty() {
        return;
    }
    app.metrics.pushes("sent", done.told.len() + done.rejected.len());
    app.metrics.pushes("rejected", done.rejected.len());
    app.metrics.pushes("put_off", done.failed.len());
    let (done, now) = (&done, app.clock.now());
    let noted = app.store.write("note_pushed", |tx| async move {
        for notice in &done.told {
            pushers::told(&tx, notice.pending()).await?;
        }
        for notice in &done.rejected {
            pushers::delete(&tx, notice.target.key(), &notice.user_id).await?;
        }
        for notice in &done.failed {
            let pusher = (notice.target.key(), &*notice.user_id);
            if notice.target.attempts >= MAX_ATTEMPTS {
                pushers::told(&tx, notice.pending()).await?;
            }
            pushers::retry(&tx, pusher, after(now, pause(notice.target.attempts)), true).await?;
        }
        Ok(())
    });
    let noted: Result<(), Error> = noted.await;
    if let Err(error) = noted {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot note what was pushed");
    }
}

/// Leaves what was not told to whoever looks next.
async fn release(app: &App, left: &[Notice]) {
    let now = app.clock.now();
    let released = app.store.write("release_pushes", |tx: WriteTx| async move {
        for notice in left {
            pushers::retry(&tx, (notice.target.key(), &notice.user_id), now, false).await?;
        }
        Ok(())
    });
    let released: Result<(), Error> = released.await;
    if let Err(error) = released {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot leave pushes to others");
    }
}

/// Notes that a pusher need not be told of what was pending.
///
/// # Errors
/// The database's own.
pub(super) async fn forget(app: &App, due: &Due) -> Result<(), Error> {
    let Ok(pusher) = serde_json::from_str::<Pusher>(&due.pusher.pusher) else { return Ok(()) };
    let ids = &pusher.ids;
    app.store
        .write("forget_push", |tx| async move {
            let key = pushers::PusherKey { app_id: &ids.app_id, pushkey: &ids.pushkey };
            let (user_id, room_id, event_id) = (&*due.pusher.user_id, &*due.room_id, &*due.event_id);
            pushers::told(&tx, Pending { key, user_id, room_id, event_id }).await
        })
        .await
}

/// How long a pusher is left alone after it has failed so many times before.
fn pause(attempts: i64) -> Duration {
    let doubled = u32::try_from(attempts.clamp(0, 16)).unwrap_or_default();
    FIRST_PAUSE.saturating_mul(1 << doubled).min(LONGEST_PAUSE)
}
