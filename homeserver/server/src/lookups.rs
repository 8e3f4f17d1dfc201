//! Look-ups by key: all that have queued while the last statement was under way share the next one.
//!
//! A client that comes to a replica for the first time is asked for with several keys: its session, its user's rooms, its device's messages
//! and keys. After a replica has started, or another one has died, thousands of clients come at once.

use std::{collections::HashMap, hash::Hash};

use futures_util::future::BoxFuture;
use keystead_store::{
    Error, ReadTx, Store,
    account_data::{self, IGNORED_USER_LIST},
    keys::{self, Device, DeviceKeyCounts},
    profiles,
    sessions::{self, StoredSession},
    to_device,
};
use ruma::OwnedUserId;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::telemetry::request;

/// How many keys one statement looks up.
const MOST: usize = 1_000;

/// Finds values by their keys with one statement; keys without a value are left out.
pub type Find<K, V> = for<'a> fn(&'a ReadTx, &'a [K]) -> BoxFuture<'a, Result<HashMap<K, V>, Error>>;

/// Looks up values of one kind. Its task ends with it.
pub struct Lookup<K, V> {
    name: &'static str,
    queue: mpsc::UnboundedSender<Asked<K, V>>,
}

/// A key, and where its value is waited for. As many wait as there are requests, which are limited by the connections.
type Asked<K, V> = (K, oneshot::Sender<Result<Option<V>, Error>>);

/// What is looked up for clients of which this replica has nothing in memory.
pub struct Lookups {
    /// Sessions, by the hashes of their access tokens.
    pub sessions: Lookup<String, StoredSession>,
    /// What users' profiles say in rooms: fields and their JSON values.
    pub profiles: Lookup<OwnedUserId, Vec<(String, String)>>,
    /// The lists of those whom users ignore, as JSON.
    pub ignored_users: Lookup<OwnedUserId, String>,
    /// The oldest and the newest position of the messages to devices.
    pub inboxes: Lookup<Device, (i64, i64)>,
    /// How many keys devices have left.
    pub key_counts: Lookup<Device, DeviceKeyCounts>,
}

impl Lookups {
    /// Starts the tasks.
    pub fn start(store: &Store) -> Self {
        Self {
            sessions: Lookup::start(store, "sessions", |tx, hashes| Box::pin(sessions::find(tx, hashes))),
            profiles: Lookup::start(store, "profiles", |tx, users| {
                Box::pin(profiles::shown_in_rooms(tx, users))
            }),
            ignored_users: Lookup::start(store, "ignored_users", |tx, users| {
                Box::pin(account_data::of_users(tx, users, IGNORED_USER_LIST))
            }),
            inboxes: Lookup::start(store, "inboxes", |tx, devices| Box::pin(to_device::extents(tx, devices))),
            key_counts: Lookup::start(store, "key_counts", |tx, devices| {
                Box::pin(keys::key_counts(tx, devices))
            }),
        }
    }
}

impl<K, V> Lookup<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Starts the task. `name` is what its statements are called in metrics.
    pub fn start(store: &Store, name: &'static str, find: Find<K, V>) -> Self {
        let (queue, mut queued) = mpsc::unbounded_channel();
        let store = store.clone();
        tokio::spawn(async move {
            let mut asked = Vec::new();
            while queued.recv_many(&mut asked, MOST).await > 0 {
                let (store, asked) = (store.clone(), std::mem::take(&mut asked));
                // A panic ends one statement, not the task: those who wait for it see their senders gone.
                let looked_up = tokio::spawn(async move { look_up(&store, (name, find), asked).await });
                if let Err(error) = looked_up.await {
                    tracing::error!(error = &error as &dyn std::error::Error, "a look-up failed");
                }
            }
        });
        Self { name, queue }
    }

    /// The value of a key as it is after this call began, if it has one.
    ///
    /// # Errors
    /// The database's own, or a row that cannot be read.
    pub async fn find(&self, key: K) -> Result<Option<V>, Error> {
        let began = Instant::now();
        let ended = || Error::Setup("The server is stopping".to_owned());
        let (answer, answered) = oneshot::channel();
        self.queue.send((key, answer)).map_err(|_| ended())?;
        let found = answered.await.map_err(|_| ended())?;
        // The statement is shared with others, and runs in a task of its own.
        request::note(self.name, began.elapsed());
        found
    }
}

async fn look_up<K, V>(store: &Store, (name, find): (&'static str, Find<K, V>), asked: Vec<Asked<K, V>>)
where
    K: Clone + Eq + Hash + Send + Sync,
    V: Clone + Send + Sync,
{
    let (keys, answers): (Vec<K>, Vec<_>) = asked.into_iter().unzip();
    let found = read(store, (name, find), &keys).await;
    for (key, answer) in keys.iter().zip(answers) {
        let found = match &found {
            Ok(found) => Ok(found.get(key).cloned()),
            // A row that cannot be read is the trouble of whoever asked for it alone.
            Err(error) if error.is_about_data() && keys.len() > 1 => {
                let found = read(store, (name, find), std::slice::from_ref(key)).await;
                found.map(|mut found| found.remove(key))
            }
            Err(error) => Err(error.clone()),
        };
        // Whoever asked may have gone.
        let _ = answer.send(found);
    }
}

async fn read<K: Sync, V: Send>(
    store: &Store,
    (name, find): (&'static str, Find<K, V>),
    keys: &[K],
) -> Result<HashMap<K, V>, Error> {
    store.read_one(name, |tx| async move { find(&tx, keys).await }).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::future::join_all;
    use keystead_store::Options;

    use super::*;

    /// The value of a number is how many were looked up with it; 7 cannot be read, 0 is not there.
    fn company<'a>(_: &'a ReadTx, keys: &'a [u32]) -> BoxFuture<'a, Result<HashMap<u32, usize>, Error>> {
        Box::pin(async move {
            if keys.contains(&7) {
                return Err(Error::corrupt("numbers", "number", "7", "it is damaged"));
            }
            Ok(keys.iter().filter(|key| **key != 0).map(|key| (*key, keys.len())).collect())
        })
    }

    async fn find_all(keys: [u32; 4]) -> Vec<Result<Option<usize>, String>> {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("test.db").display());
        let options = Options { url, max_connections: 2, room_shards: 1, observer: Arc::new(|_| {}) };
        Store::migrate(&options).await.unwrap();
        let lookup = Lookup::start(&Store::open(options).await.unwrap(), "numbers", company);
        // On one thread all ask before the task has its turn.
        let found = join_all(keys.map(|key| lookup.find(key))).await;
        found.into_iter().map(|found| found.map_err(|error| error.to_string())).collect()
    }

    #[tokio::test]
    async fn what_is_asked_for_at_once_is_looked_up_at_once() {
        assert_eq!(find_all([1, 2, 1, 0]).await, [Ok(Some(4)), Ok(Some(4)), Ok(Some(4)), Ok(None)]);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_the_trouble_of_whoever_asked_for_it() {
        let found = find_all([1, 7, 0, 2]).await;
        assert_eq!((&found[0], &found[2], &found[3]), (&Ok(Some(1)), &Ok(None), &Ok(Some(1))));
        assert!(found[1].as_ref().is_err_and(|error| error.contains("row 7")), "{found:?}");
    }
}
