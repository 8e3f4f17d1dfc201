//! What this replica knows of restores of the database from a backup ([`keystead_store::restored`]).

use std::time::Duration;

use keystead_core::lost_positions::LostPositions;
use keystead_store::{Error, Store, restored};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};

/// How long after a restore a session that is not known counts as one that the restore has lost.
const FORGIVEN_FOR: Duration = Duration::from_secs(14 * 24 * 3_600);

/// What this replica knows of restores: read once, because no replica runs during one.
#[derive(Clone, Debug, Default)]
pub struct Restores {
    /// The positions that they have lost.
    pub lost: LostPositions,
    last: Option<MilliSecondsSinceUnixEpoch>,
}

impl Restores {
    /// Reads what is known.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn load(store: &Store) -> Result<Self, Error> {
        store
            .read("restores", |tx| async move {
                let lost = restored::lost_positions(&tx).await?;
                Ok(Self { lost, last: restored::last_restore(&tx).await? })
            })
            .await
    }

    /// Whether a session that is not known may be one that began after the backup: then its client is told to log in again and to keep
    /// its keys (`soft_logout`), which it would throw away if it took the session for one that was ended.
    #[must_use]
    pub fn may_have_lost_sessions(&self, now: MilliSecondsSinceUnixEpoch) -> bool {
        let forgiven = UInt::try_from(FORGIVEN_FOR.as_millis()).unwrap_or(UInt::MAX);
        self.last.is_some_and(|last| now.0 < last.0.saturating_add(forgiven))
    }
}
