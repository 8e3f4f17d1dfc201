//! Deleting the to-device messages that clients have shown to have, in one transaction for all that queue meanwhile.

use std::sync::Arc;

use keystead_store::{Error, Store, to_device};
use ruma::{OwnedDeviceId, OwnedUserId};

use crate::{group_commit::GroupCommit, http::error::ApiError};

/// How many devices one transaction deletes messages of.
const BATCH: usize = 512;

/// A device, and the position that it has acknowledged.
type Acknowledged = (OwnedUserId, OwnedDeviceId, i64);

/// Deletes what was acknowledged.
pub struct Acknowledgements(GroupCommit<Acknowledged, Result<(), Arc<Error>>>);

impl Acknowledgements {
    /// Starts its task.
    pub fn start(store: Store) -> Self {
        Self(GroupCommit::start(
            BATCH,
            |_| 1,
            move |acknowledged| {
                let store = store.clone();
                async move {
                    let all = &acknowledged;
                    let deleted = store
                        .write(
                            "acknowledge_to_device",
                            |tx| async move { to_device::acknowledge(&tx, all).await },
                        )
                        .await;
                    let result = deleted.map(drop).map_err(Arc::new);
                    acknowledged.iter().map(|_| result.clone()).collect()
                }
            },
        ))
    }

    /// Deletes the messages to a device up to a position; they are gone when it returns.
    ///
    /// # Errors
    /// The database's own, or 429 if too many wait already.
    pub(super) async fn acknowledge(
        &self,
        device: &(OwnedUserId, OwnedDeviceId),
        upto: i64,
    ) -> Result<(), ApiError> {
        Ok(self.0.submit((device.0.clone(), device.1.clone(), upto)).await??)
    }
}
