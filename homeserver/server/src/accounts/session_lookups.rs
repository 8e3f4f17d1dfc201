//! Look-ups of sessions that are not in memory: all that have queued while the last statement was under way share the next one. After a
//! replica has started, every client that comes to it needs one.

use keystead_store::{
    Store,
    sessions::{self, StoredSession},
};

use crate::{group_commit::Batches, http::error::ApiError};

/// Finds the sessions of access tokens, given by their hashes.
pub struct SessionLookups {
    store: Store,
}

impl SessionLookups {
    /// Finds them in this database.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Batches for SessionLookups {
    type Work = String;
    type Key = ();
    type Output = Option<StoredSession>;

    fn key(_: &String) -> Option<()> {
        None
    }

    fn weight(_: &String) -> usize {
        1
    }

    async fn commit(&self, hashes: &[String]) -> Result<Vec<Result<Self::Output, ApiError>>, ApiError> {
        let found =
            self.store.read_one("session", |tx| async move { sessions::find(&tx, hashes).await }).await?;
        // Two requests may have come with the same token.
        Ok(hashes.iter().map(|hash| Ok(found.get(hash).cloned())).collect())
    }
}
