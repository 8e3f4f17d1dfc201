//! Beginnings of sessions: all that have queued while the last transaction was under way share the next one.

use keystead_store::{
    Error, Store, WriteTx,
    sessions::{self, NewSession},
};
use ruma::{OwnedDeviceId, OwnedUserId};

use crate::{group_commit::Batches, http::error::ApiError};

/// A session that is to begin.
pub struct Beginning {
    /// The session.
    pub session: NewSession,
    /// Whether its device may have one already, which ends.
    pub may_have_session: bool,
}

/// Begins sessions.
pub struct NewSessions {
    store: Store,
}

impl NewSessions {
    /// Begins them in this database.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Batches for NewSessions {
    type Work = Beginning;
    type Key = (OwnedUserId, OwnedDeviceId);
    type Output = ();

    fn key(beginning: &Beginning) -> Option<Self::Key> {
        Some((beginning.session.user_id.clone(), beginning.session.device.device_id.clone()))
    }

    fn weight(_: &Beginning) -> usize {
        // The device, the two tokens and the note for the caches.
        4
    }

    async fn commit(&self, beginnings: &[Beginning]) -> Result<Vec<Result<(), ApiError>>, ApiError> {
        self.store.write("session_begin", |tx| async move { begin(&tx, beginnings).await }).await?;
        Ok(beginnings.iter().map(|_| Ok(())).collect())
    }
}

async fn begin(tx: &WriteTx, beginnings: &[Beginning]) -> Result<(), Error> {
    let sessions: Vec<NewSession> = beginnings.iter().map(|beginning| beginning.session.clone()).collect();
    // Each user's caches are told once.
    tx.lock_shards_of(sessions.iter().map(|session| &*session.user_id)).await?;
    let ending =
        beginnings.iter().filter(|beginning| beginning.may_have_session).map(|beginning| &beginning.session);
    let ending: Vec<_> = ending.map(|session| (&*session.user_id, &*session.device.device_id)).collect();
    sessions::end(tx, &ending).await?;
    sessions::begin(tx, &sessions).await
}
