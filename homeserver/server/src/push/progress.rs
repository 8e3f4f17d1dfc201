//! How far pushers have been told: what all that have queued while the last transaction was under way were told, and what comes next for each, in one.

use std::sync::Arc;

use keystead_store::{
    Store,
    push_queue::{self, Next, PusherId, Told},
};

use super::LEASE;
use crate::{group_commit::Batches, http::error::ApiError};

/// How many events of a pusher are read at once.
pub(super) const BATCH: u32 = 10;

/// Notes what pushers were told, and reads on.
pub struct Progress {
    store: Store,
    holder: Arc<str>,
}

impl Progress {
    /// Of pushers that `holder` tells.
    pub fn new(store: Store, holder: Arc<str>) -> Self {
        Self { store, holder }
    }
}

impl Batches for Progress {
    type Work = Told;
    type Key = PusherId;
    /// `None` if another replica tells the pusher, or it is gone.
    type Output = Option<Next>;

    fn key(told: &Told) -> Option<PusherId> {
        Some(told.id.clone())
    }

    fn weight(told: &Told) -> usize {
        told.events.len() + 1
    }

    async fn commit(&self, told: &[Told]) -> Result<Vec<Result<Option<Next>, ApiError>>, ApiError> {
        let holder = &self.holder;
        let next = |tx| async move { push_queue::next(&tx, holder, told, LEASE, BATCH).await };
        let mut next = self.store.write("next_pushes", next).await?;
        Ok(told.iter().map(|told| Ok(next.remove(&told.id))).collect())
    }
}
