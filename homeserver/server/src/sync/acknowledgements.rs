//! Deleting the to-device messages that clients have shown to have.

use keystead_store::{Store, to_device};
use ruma::{OwnedDeviceId, OwnedUserId};

use crate::{
    group_commit::Batches,
    http::error::ApiError,
    telemetry::metrics::{Metrics, Removed},
};

/// Deletes what was acknowledged.
pub struct Acknowledgements {
    store: Store,
    metrics: Metrics,
}

impl Acknowledgements {
    /// Deletes from this database, and counts what it deletes.
    pub fn new(store: Store, metrics: Metrics) -> Self {
        Self { store, metrics }
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
        let deleted = self
            .store
            .write("acknowledge_to_device", |tx| async move { to_device::acknowledge(&tx, work).await })
            .await?;
        self.metrics.to_device_removed(Removed::Acknowledged, deleted);
        Ok(work.iter().map(|_| Ok(())).collect())
    }
}
