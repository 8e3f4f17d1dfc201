//! The wake bus: tells readers that something happened. Hints only; the database is the truth.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use keystead_core::shard::Shard;
use sea_orm::sqlx::{
    self, Connection, PgConnection,
    postgres::{PgListener, PgNotification, PgPoolOptions},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::AbortHandle,
    time::{MissedTickBehavior, error::Elapsed, timeout},
};

use crate::{
    Error,
    connect::session_options,
    link::{ANSWER_WITHIN, CONNECT_WITHIN, Link, PING_EVERY},
};

/// PostgreSQL's channel for the positions that shards have reached.
const POSITIONS: &str = "keystead";
/// PostgreSQL's channel for who types, which no look at the database brings back.
const TYPING: &str = "keystead_typing";
/// How many hints a slow reader may fall behind before it is told that it missed some.
const CAPACITY: usize = 4_096;
/// PostgreSQL takes payloads of less than 8,000 bytes; hints are packed up to this.
const MAX_PAYLOAD_BYTES: usize = 6_000;
/// The least time from one NOTIFY to the next: each costs PostgreSQL a commit and every replica a look, so a busy replica
/// tells in one what happened in several commits.
const NOTIFY_EVERY: Duration = Duration::from_millis(5);
/// How long to wait before a lost connection is made anew.
const RECONNECT_AFTER: Duration = Duration::from_millis(500);

/// Something that happened. Losing one costs at most the readers' re-check interval.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Hint {
    /// Shards have reached these positions.
    Positions(Vec<(Shard, i64)>),
    /// A user types in a room, or stops to.
    Typing {
        /// The room.
        room_id: String,
        /// The user.
        user_id: String,
        /// When the user counts as having stopped, in milliseconds since the epoch; `None` for at once.
        until: Option<u64>,
    },
    /// Hints may have been lost: look for yourself.
    Resync,
}

pub(crate) struct WakeBus {
    local: broadcast::Sender<Hint>,
    remote: Option<Remote>,
    stands: Arc<Stands>,
    tasks: Vec<AbortHandle>,
}

/// The other processes.
struct Remote {
    /// What they are to be told.
    queue: mpsc::UnboundedSender<Hint>,
    /// Whether anybody here wants to hear at once what they have written.
    hears_positions: watch::Sender<bool>,
}

/// Which of the bus's two connections to PostgreSQL stand.
#[derive(Default)]
struct Stands {
    listens: AtomicBool,
    notifies: AtomicBool,
    /// PostgreSQL's number for the one that notifies; notifications name their sender by it.
    backend: AtomicU32,
}

impl WakeBus {
    /// A bus for the one process that uses the database.
    pub(crate) fn in_process() -> Self {
        let local = broadcast::channel(CAPACITY).0;
        Self { local, remote: None, stands: Arc::default(), tasks: Vec::new() }
    }

    /// A bus between all processes that use the PostgreSQL database at `url`, by LISTEN and NOTIFY.
    pub(crate) fn postgres(link: &Arc<Link>) -> Self {
        let local = broadcast::channel(CAPACITY).0;
        let (queue, queued) = mpsc::unbounded_channel();
        let hears_positions = watch::Sender::new(true);
        let stands = Arc::<Stands>::default();
        let ears = Ears { local: local.clone(), hears_positions: hears_positions.subscribe() };
        let listen = tokio::spawn(listen(link.clone(), ears, stands.clone()));
        let notify = tokio::spawn(notify(link.clone(), queued, stands.clone()));
        let tasks = vec![listen.abort_handle(), notify.abort_handle()];
        Self { local, remote: Some(Remote { queue, hears_positions }), stands, tasks }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Hint> {
        self.local.subscribe()
    }

    /// Tells this process at once, unless the hint is for `others_only`, and the others soon.
    ///
    /// To be called after the commit that the hint speaks of.
    pub(crate) fn send(&self, hint: Hint, others_only: bool) {
        if let Some(remote) = &self.remote {
            // The receiver ends only with the bus.
            let _ = remote.queue.send(hint.clone());
        }
        if !others_only {
            // Without a subscriber there is nobody to tell.
            let _ = self.local.send(hint);
        }
    }

    /// Begins or ends to hear which positions others have reached. Who begins to hears [`Hint::Resync`] first.
    pub(crate) fn hear_positions(&self, wanted: bool) {
        if let Some(remote) = &self.remote {
            remote.hears_positions.send_if_modified(|hears| std::mem::replace(hears, wanted) != wanted);
        }
    }

    /// Whether hints go to other processes and come from them; always, where there are no others.
    pub(crate) fn is_connected(&self) -> bool {
        let stands = |connection: &AtomicBool| connection.load(Ordering::Relaxed);
        self.remote.is_none() || stands(&self.stands.listens) && stands(&self.stands.notifies)
    }

    pub(crate) fn close(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Drop for WakeBus {
    fn drop(&mut self) {
        self.close();
    }
}

/// Why a connection for hints is of no more use.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// It broke, or could not be made.
    #[error("the connection broke")]
    Broken(#[from] sqlx::Error),
    /// The database did not answer in time.
    #[error("the database did not answer in time")]
    Silent(#[from] Elapsed),
    /// New connections cannot be made.
    #[error("new connections cannot be made")]
    Store(#[from] Error),
}

/// What is heard of other replicas, and by whom.
struct Ears {
    local: broadcast::Sender<Hint>,
    hears_positions: watch::Receiver<bool>,
}

/// Hands the hints of other replicas to this process's readers, for as long as the process lives, and watches meanwhile
/// whether the database answers ([`Link`]).
async fn listen(link: Arc<Link>, mut ears: Ears, stands: Arc<Stands>) {
    loop {
        if let Err(error) = listen_once(&link, &mut ears, &stands).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "lost the connection that listens for hints"
            );
        }
        stands.listens.store(false, Ordering::Relaxed);
        tokio::time::sleep(RECONNECT_AFTER).await;
    }
}

async fn listen_once(link: &Link, ears: &mut Ears, stands: &Stands) -> Result<(), Lost> {
    let Ears { local, hears_positions } = ears;
    let mut listener = match timeout(CONNECT_WITHIN, connect_listener(&link.options().url)).await {
        Ok(Ok(listener)) => listener,
        Ok(Err(error)) => {
            link.give_up();
            return Err(error.into());
        }
        Err(elapsed) => {
            link.give_up();
            return Err(elapsed.into());
        }
    };
    link.restore().await?;
    stands.listens.store(true, Ordering::Relaxed);
    // A new connection does not hear them yet.
    hears_positions.mark_changed();
    loop {
        let notification = tokio::select! {
            notification = listener.try_recv() => notification?,
            // The sender lives as long as the bus.
            Ok(()) = hears_positions.changed() => {
                let wanted = *hears_positions.borrow_and_update();
                let heard = timeout(ANSWER_WITHIN, hear_positions(&mut listener, wanted)).await;
                heard.inspect_err(|_| link.give_up())??;
                if wanted {
                    // Whatever was told before this moment has been missed.
                    let _ = local.send(Hint::Resync);
                }
                continue;
            }
            () = tokio::time::sleep(PING_EVERY) => {
                let ping = timeout(ANSWER_WITHIN, sqlx::query("SELECT 1").execute(&mut listener)).await;
                ping.inspect_err(|_| link.give_up())??;
                continue;
            }
        };
        // `None` means that the connection broke.
        let Some(notification) = notification else { return Ok(()) };
        if notification.process_id() == stands.backend.load(Ordering::Relaxed) {
            continue;
        }
        for hint in parse(&notification) {
            let _ = local.send(hint);
        }
    }
}

async fn connect_listener(url: &str) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
    // Told apart in pg_stat_activity from those that work.
    let options = session_options(url)?.application_name("keystead listen");
    let mut listener = PgListener::connect_with(&pool.connect_with(options).await?).await?;
    // The caller does so, and looks what it missed.
    listener.eager_reconnect(false);
    listener.ignore_pool_close_event(true);
    listener.listen(TYPING).await?;
    Ok(listener)
}

async fn hear_positions(listener: &mut PgListener, wanted: bool) -> Result<(), sqlx::Error> {
    if wanted { listener.listen(POSITIONS).await } else { listener.unlisten(POSITIONS).await }
}

fn parse(notification: &PgNotification) -> Vec<Hint> {
    // A replica of a newer version may say what this one does not know.
    serde_json::from_str(notification.payload()).unwrap_or_else(|_| vec![Hint::Resync])
}

/// Sends what has queued since the last NOTIFY, as one.
async fn notify(link: Arc<Link>, mut queue: mpsc::UnboundedReceiver<Hint>, stands: Arc<Stands>) {
    loop {
        if let Err(error) = notify_until_error(&link.options().url, &mut queue, &stands).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "lost the connection that sends hints");
            stands.notifies.store(false, Ordering::Relaxed);
            tokio::time::sleep(RECONNECT_AFTER).await;
        } else {
            return;
        }
    }
}

async fn notify_until_error(
    url: &str,
    queue: &mut mpsc::UnboundedReceiver<Hint>,
    stands: &Stands,
) -> Result<(), Lost> {
    let connecting = async {
        let mut connection = PgConnection::connect_with(&session_options(url)?).await?;
        let (pid,): (i32,) = sqlx::query_as("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
        Ok::<_, sqlx::Error>((connection, pid))
    };
    let (mut connection, pid) = timeout(CONNECT_WITHIN, connecting).await??;
    stands.backend.store(pid.unsigned_abs(), Ordering::Relaxed);
    stands.notifies.store(true, Ordering::Relaxed);
    let mut hints = Vec::new();
    let mut pace = tokio::time::interval(NOTIFY_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while let Some(first) = queue.recv().await {
        pace.tick().await;
        hints.push(first);
        while let Ok(next) = queue.try_recv() {
            hints.push(next);
        }
        for (channel, payload) in payloads(hints.drain(..)) {
            let sent =
                sqlx::query("SELECT pg_notify($1, $2)").bind(channel).bind(payload).execute(&mut connection);
            timeout(ANSWER_WITHIN, sent).await??;
        }
    }
    Ok(())
}

/// Packs hints into as few payloads as they fit in, with the channel of each: of positions, only the newest of each shard counts.
fn payloads(hints: impl Iterator<Item = Hint>) -> Vec<(&'static str, String)> {
    let mut positions = BTreeMap::new();
    let mut others = Vec::new();
    for hint in hints {
        match hint {
            Hint::Positions(reached) => {
                for (shard, position) in reached {
                    let newest: &mut i64 = positions.entry(shard).or_default();
                    *newest = position.max(*newest);
                }
            }
            other => others.push(other),
        }
    }
    let reached = (!positions.is_empty()).then(|| Hint::Positions(positions.into_iter().collect()));
    let channels = [(POSITIONS, packed(reached)), (TYPING, packed(others))];
    channels
        .into_iter()
        .flat_map(|(channel, packed)| packed.into_iter().map(move |text| (channel, text)))
        .collect()
}

/// Lists of hints, each of a size that PostgreSQL takes.
fn packed(hints: impl IntoIterator<Item = Hint>) -> Vec<String> {
    let mut payloads: Vec<String> = Vec::new();
    for hint in hints {
        let Ok(json) = serde_json::to_string(&hint) else { continue };
        match payloads.last_mut() {
            Some(last) if last.len() + json.len() < MAX_PAYLOAD_BYTES => {
                last.push(',');
                last.push_str(&json);
            }
            _ => payloads.push(format!("[{json}")),
        }
    }
    payloads.iter().map(|payload| format!("{payload}]")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_coalesced_and_everything_else_is_kept() {
        let typing = Hint::Typing { room_id: "!r".to_owned(), user_id: "@u:x".to_owned(), until: Some(1) };
        let hints = vec![
            Hint::Positions(vec![(0, 5), (1, 1)]),
            typing.clone(),
            Hint::Positions(vec![(0, 7)]),
            Hint::Positions(vec![(0, 6)]),
        ];
        let read = |text: &str| serde_json::from_str::<Vec<Hint>>(text).unwrap();
        let packed = payloads(hints.into_iter());
        let packed: Vec<_> = packed.iter().map(|(channel, text)| (*channel, read(text))).collect();
        let newest = Hint::Positions(vec![(0, 7), (1, 1)]);
        assert_eq!(packed, [(POSITIONS, vec![newest]), (TYPING, vec![typing])]);
    }

    #[test]
    fn no_payload_is_larger_than_postgresql_takes() {
        let hint = Hint::Typing { room_id: "r".repeat(255), user_id: "u".repeat(255), until: None };
        let packed = payloads(std::iter::repeat_n(hint, 100));
        assert!(packed.len() > 1 && packed.iter().all(|(_, payload)| payload.len() < 8_000));
        let count: usize =
            packed.iter().map(|(_, text)| serde_json::from_str::<Vec<Hint>>(text).unwrap().len()).sum();
        assert_eq!(count, 100);
    }
}
