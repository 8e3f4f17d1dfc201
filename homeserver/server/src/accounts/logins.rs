//! Beginnings of sessions: all that have queued while the last transaction was under way share the next one.

use std::collections::{BTreeMap, BTreeSet};

use keystead_core::shard::Shard;
use keystead_store::{
    Error, Store, WriteTx,
    sessions::{self, NewSession},
};
use ruma::{OwnedDeviceId, OwnedUserId};

use crate::{group_commit::Batches, http::error::ApiError};

/// A session that is to begin.
pub struct Login {
    /// The session.
    pub session: NewSession,
    /// Whether its device may have one already, which ends.
    pub may_have_session: bool,
}

/// Begins sessions.
pub struct Logins {
    store: Store,
}

impl Logins {
    /// Begins them in this database.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Batches for Logins {
    type Work = Login;
    type Key = (OwnedUserId, OwnedDeviceId);
    type Output = ();

    fn key(login: &Login) -> Option<Self::Key> {
        Some((login.session.user_id.clone(), login.session.device.device_id.clone()))
    }

    fn weight(_: &Login) -> usize {
        4
    }

    async fn commit(&self, logins: &[Login]) -> Result<Vec<Result<(), ApiError>>, ApiError> {
        self.store.write("session_begin", |tx| async move { begin(&tx, logins).await }).await?;
        Ok(logins.iter().map(|_| Ok(())).collect())
    }
}

async fn begin(tx: &WriteTx, logins: &[Login]) -> Result<(), Error> {
    let sessions: Vec<NewSession> = logins.iter().map(|login| login.session.clone()).collect();
    // Each user's caches are told once.
    let users: BTreeSet<&OwnedUserId> = sessions.iter().map(|session| &session.user_id).collect();
    let mut changes: BTreeMap<Shard, i64> = BTreeMap::new();
    for user_id in users {
        *changes.entry(tx.shards().of_user(user_id)).or_default() += 1;
    }
    tx.lock_shards_for(&changes).await?;
    let ending = logins.iter().filter(|login| login.may_have_session).map(|login| &login.session);
    let ending: Vec<_> = ending.map(|session| (&*session.user_id, &*session.device.device_id)).collect();
    sessions::end(tx, &ending).await?;
    sessions::begin(tx, &sessions).await
}
