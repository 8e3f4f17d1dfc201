//! Deleting the to-device messages that clients have shown to have.

use keystead_store::{Store, to_device};
use ruma::{OwnedDeviceId, OwnedUserId};

use crate::{group_commit::Batches, http::error::ApiError};

/// Deletes what was acknowledged.
pub struct Acknowledgements {
    store: Store,
}

impl Acknowledgements {
    /// Deletes from this database.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Batches for Acknowledgements {
    /// A device, and the position up to which it has its messages.
    type Work = (OwnedUserId, OwnedDeviceId, i64);
    type Key = ();
    type Output = ();

    fn key(_: &Self::Work) -> Option<()> {
        None
    }

    fn weight(_: &Self::Work) -> usize {
        1
    }

    async fn commit(&self, work: &[Self::Work]) -> Result<Vec<Result<(), ApiError>>, ApiError> {
        self.store
            .write("acknowledge_to_device", |tx| async move { to_device::acknowledge(&tx, work).await })
            .await?;
        Ok(work.iter().map(|_| Ok(())).collect())
    }
}
