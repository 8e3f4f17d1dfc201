//! The session at the homeserver: what is stored beside the engine's records, and last.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ClientError;
use crate::engine::{Record, RecordError};
use crate::store::Store;

const NAME: &str = "session";

#[derive(Serialize, Deserialize)]
pub(super) struct Session {
    access_token: String,
    /// Where `/sync` goes on.
    pub(super) sync_token: Option<String>,
    /// Changes with every change of the store: tells a process that another has written.
    pub(super) generation: u64,
    /// Whether it differs from what is stored.
    #[serde(skip)]
    pub(super) changed: bool,
}

impl Session {
    pub(super) fn new(access_token: Zeroizing<String>) -> Self {
        Self { access_token: access_token.to_string(), sync_token: None, generation: 0, changed: true }
    }

    /// Everything before `next_batch` has been taken in and stored.
    pub(super) fn advance(&mut self, next_batch: String) {
        self.changed |= self.sync_token.as_ref() != Some(&next_batch);
        self.sync_token = Some(next_batch);
    }

    pub(super) fn access_token(&self) -> Zeroizing<String> {
        Zeroizing::new(self.access_token.clone())
    }

    pub(super) fn load(store: &Store) -> Result<Option<Self>, ClientError> {
        let Some(record) = store.load_one(NAME)? else { return Ok(None) };
        let session = serde_json::from_slice(&record.json)
            .map_err(|source| RecordError::Corrupt { name: NAME.to_owned(), source })?;
        Ok(Some(session))
    }

    pub(super) fn record(&self) -> Result<Record, ClientError> {
        let json = serde_json::to_vec(self)
            .map_err(|source| RecordError::Corrupt { name: NAME.to_owned(), source })?;
        Ok(Record { name: NAME.to_owned(), json: Zeroizing::new(json) })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.access_token);
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("generation", &self.generation).finish_non_exhaustive()
    }
}
